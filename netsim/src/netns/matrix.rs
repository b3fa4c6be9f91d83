//! The matrix: a member behind each kind of box that the kernel can make, with one behind each other, by the real binary.
//!
//! A pair has a lab of its own: fresh namespaces, a public member as the only contact, and three daemons started at once. What
//! is measured, from that start: the first answered ping, and when both say that they have the path that the oracle
//! expects. Pairs mostly wait, so some run side by side; each is our own program again.
#![expect(clippy::disallowed_methods, reason = "it measures real time")]
#![expect(clippy::print_stdout, reason = "it is made to be watched")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Homes, Lab, Laptop, Node, Pings, Place, place, start};
use crate::kinds::{self, Kind};
use crate::oracle::{Way, best_way};

/// From the start of everything to the first ping, in half of all pairs and at the worst.
const FIRST_PING: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(5)];

/// What ends as the oracle says, at least: a birthday may miss, and has another try later.
const AS_EXPECTED: f64 = 0.98;

/// After this no first ping is waited for.
const NO_PING: Duration = Duration::from_secs(20);

/// After this no better path is waited for: by then everything was tried thrice, and a birthday twice.
const NO_PATH: Duration = Duration::from_secs(100);

/// Longest run of one pair: both of these, and what comes before and after.
pub const LIMIT: Duration = Duration::from_secs(140);

/// As whoever wants to be reached from everywhere says.
const FROM_EVERYWHERE: &str = "--listen-443";

/// How often the daemons are asked for their paths: well below the times that are measured so.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// From the start of everything to the best path, in half of all pairs of that way; a relayed one is there with the first ping.
fn at_the_median(way: Way) -> Duration {
    Duration::from_secs(match way {
        Way::Direct | Way::Relayed => 3,
        Way::Predicted => 4,
        Way::Birthday => 12,
    })
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Direct => "direct",
        Way::Predicted => "predicted",
        Way::Birthday => "birthday",
        Way::Relayed => "relayed",
    }
}

/// What came of one pair.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the oracle says.
    pub way: Way,
    /// From the start to the first answered ping, if there was one.
    pub first_ping: Option<Duration>,
    /// From the start to the path that the oracle says, if it came, and stayed, and carried pings.
    pub best_path: Option<Duration>,
    /// What both said of each other at the end: `direct`, `relayed` or worse, and the endpoint.
    pub paths: [String; 2],
    /// Why, in the words of `meshd why` for programs.
    pub reasons: [String; 2],
    /// What else there is to say.
    pub remark: String,
}

impl Outcome {
    /// For one line of JSON.
    pub fn to_json(&self) -> Value {
        let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        json!({
            "way": name(self.way),
            "first_ping_ms": ms(self.first_ping),
            "best_path_ms": ms(self.best_path),
            "paths": self.paths,
            "reasons": self.reasons,
            "remark": self.remark,
        })
    }

    fn of_json(way: Way, line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let ms = |field: &str| value[field].as_u64().map(Duration::from_millis);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Self {
            way,
            first_ping: ms("first_ping_ms"),
            best_path: ms("best_path_ms"),
            paths: [text(&value["paths"][0]), text(&value["paths"][1])],
            reasons: [text(&value["reasons"][0]), text(&value["reasons"][1])],
            remark: text(&value["remark"]),
        })
    }

    /// One that never came about.
    fn none(way: Way, remark: String) -> Self {
        let (paths, reasons) = Default::default();
        Self { way, first_ping: None, best_path: None, paths, reasons, remark }
    }
}

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    kinds: Vec<&'static Kind>,
    /// Only pairs with one of these, if there are any.
    with: Vec<&'static Kind>,
    at_once: usize,
    runs: usize,
    out: PathBuf,
}

impl Options {
    /// `--kinds a,b,…`, `--with a,b,…` for the pairs of these only, `--pairs N` at a time, `--runs N` of each, `--out DIR`.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let (kinds, out) = (kinds::of_the_kernel().collect(), "target/matrix".into());
        let mut options = Self { kinds, with: Vec::new(), at_once: 3, runs: 1, out };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            let find = |name| {
                let all = || kinds::KINDS.map(|kind| kind.name).join(" ");
                kinds::find(name).with_context(|| format!("no kind {name}; there are: {}", all()))
            };
            match *word {
                "--kinds" => options.kinds = value.split(',').map(find).collect::<Result<_>>()?,
                "--with" => options.with = value.split(',').map(find).collect::<Result<_>>()?,
                "--pairs" => options.at_once = value.parse::<usize>().context("--pairs N")?.max(1),
                "--runs" => options.runs = value.parse::<usize>().context("--runs N")?.max(1),
                "--out" => options.out = value.into(),
                _ => bail!("what is {word}?"),
            }
        }
        Ok(options)
    }
}

/// All pairs, some at a time; whether everything is as it must be. From outside of any lab.
///
/// # Errors
/// When there can be no lab here, or nothing be written.
pub fn run(options: &Options) -> Result<bool> {
    fs::create_dir_all(&options.out)?;
    let out = fs::canonicalize(&options.out)?;
    let mut pairs = Vec::new();
    for (row, a) in options.kinds.iter().enumerate() {
        let is_with = |kind: &Kind| options.with.is_empty() || options.with.iter().any(|with| with.name == kind.name);
        pairs.extend(options.kinds[row..].iter().filter(|b| is_with(a) || is_with(b)).map(|b| [*a, *b]));
    }
    let pairs: Vec<_> = (0..options.runs).flat_map(|run| pairs.iter().map(move |pair| (run, *pair))).collect();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    // A lab that could not be made says nothing, so it is a fault whatever the kinds.
    let unmade = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.at_once.min(pairs.len()) {
            scope.spawn(|| {
                while let Some((run, [a, b])) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let logs = out.join(format!("{}-{}-{run}", a.name, b.name));
                    let way = best_way(a, b);
                    let outcome = apart([a, b], &logs).unwrap_or_else(|error| {
                        let broken = format!("{} x {}: {error:#}", a.name, b.name);
                        unmade.lock().unwrap_or_else(PoisonError::into_inner).push(broken);
                        Outcome::none(way, format!("{error:#}"))
                    });
                    println!("{} x {}: {}", a.name, b.name, outcome.to_json());
                    if outcome.best_path.is_some() {
                        let _ = fs::remove_dir_all(&logs);
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(([a.name, b.name], outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    print_table(&options.kinds, &outcomes);
    let mut faults = judge(&outcomes);
    faults.extend(unmade.into_inner().unwrap_or_else(PoisonError::into_inner));
    let lines: Vec<Value> = outcomes
        .iter()
        .map(|([a, b], outcome)| {
            let mut value = outcome.to_json();
            (value["a"], value["b"]) = (json!(a), json!(b));
            value
        })
        .collect();
    fs::write(
        out.join("matrix.json"),
        serde_json::to_string_pretty(&json!({ "pairs": lines, "faults": faults }))? + "\n",
    )?;
    for fault in &faults {
        println!("FAULT: {fault}");
    }
    println!("{} has every pair", out.join("matrix.json").display());
    Ok(faults.is_empty())
}

/// One pair, in a lab of its own, by our own program.
fn apart([a, b]: [&Kind; 2], logs: &Path) -> Result<Outcome> {
    fs::create_dir_all(logs)?;
    let logs = logs.display().to_string();
    match place(&["matrix", "one", a.name, b.name, &logs])? {
        Place::Inside => bail!("a matrix is made of labs; it is not made in one"),
        Place::Impossible(reason) => bail!("no lab on this machine: {reason}"),
        Place::Outside(mut command) => {
            let output = command.output().context("unshare(1)")?;
            let text = String::from_utf8_lossy(&output.stdout);
            let said = text.lines().last().and_then(|line| Outcome::of_json(best_way(a, b), line));
            said.with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }
}

/// `netsim matrix one A B LOGS`: one pair, inside; what came of it, as a line of JSON, and what the daemons said, in the folder LOGS.
///
/// # Errors
/// When the lab cannot be made or a daemon does not start.
pub fn one(lab: &mut Lab, kinds: [&str; 2], logs: &Path) -> Result<()> {
    let [a, b] = kinds.map(|name| kinds::find(name).with_context(|| format!("no kind {name}")));
    println!("{}", pair(lab, [a?, b?], Some(logs))?.to_json());
    Ok(())
}

/// One pair, inside; what the daemons said goes to the folder `logs`.
///
/// # Errors
/// When the lab cannot be made or a daemon does not start.
pub fn pair(lab: &mut Lab, kinds: [&Kind; 2], logs: Option<&Path>) -> Result<Outcome> {
    let way = best_way(kinds[0], kinds[1]);
    let stage = Homes::new(lab, &[("ada", kinds[0]), ("bob", kinds[1])])?;
    let laptops = [&stage.public, &stage.homes[0].laptop, &stage.homes[1].laptop];
    stage.public.found("party")?;
    // An invite names where its maker is only while it runs.
    let mut founder = stage.public.up_with(&[FROM_EVERYWHERE])?;
    for laptop in &laptops[1..] {
        laptop.join(&stage.public.invite(&[])?)?;
    }
    founder.terminate()?;
    let begin = Instant::now();
    let up = |laptop: &Laptop| -> &'static [&'static str] {
        if laptop.name == stage.public.name { &["up", FROM_EVERYWHERE] } else { &["up"] }
    };
    let mut nodes =
        laptops.iter().map(|laptop| laptop.start(&mut laptop.meshd_command(up(laptop)))).collect::<Result<Vec<_>>>()?;
    let without_udp = kinds.iter().any(|kind| !kind.kernel.passes_udp);
    let outcome = watch(&mut nodes[1..], ways(way, without_udp), way, begin);
    if let Some(logs) = logs {
        for laptop in laptops {
            fs::copy(laptop.dir.join("log"), logs.join(format!("{}.log", laptop.name)))?;
        }
        for home in &stage.homes {
            fs::write(logs.join(format!("{}.flows", home.laptop.name)), home.flows().unwrap_or_default())?;
        }
    }
    outcome
}

/// What both may say of their path. Who has no UDP may have dialled the other before the relay knew it.
fn ways(way: Way, without_udp: bool) -> &'static [&'static str] {
    match way {
        Way::Relayed if without_udp => &["relayed", "stream"],
        Way::Relayed => &["relayed"],
        Way::Direct | Way::Predicted | Way::Birthday => &["direct"],
    }
}

fn watch(nodes: &mut [Node], best: &[&str], way: Way, begin: Instant) -> Result<Outcome> {
    let is_best = |path: &String| best.iter().any(|best| path.starts_with(best));
    for node in &mut *nodes {
        node.wait_ready()?;
    }
    let [ada, bob] = nodes else { bail!("two homes") };
    let mut outcome = Outcome::none(way, String::new());
    while outcome.first_ping.is_none() {
        if begin.elapsed() > NO_PING {
            outcome.remark = "no ping was answered".to_owned();
            outcome.paths = [path(ada.laptop(), "bob")?, path(bob.laptop(), "ada")?];
            return Ok(outcome);
        }
        if start::ping_once(ada.laptop(), bob.ipv4())? {
            outcome.first_ping = Some(begin.elapsed());
        }
    }
    let mut found = None;
    while found.is_none() && begin.elapsed() < NO_PATH {
        outcome.paths = [path(ada.laptop(), "bob")?, path(bob.laptop(), "ada")?];
        if outcome.paths.iter().all(is_best) {
            found = Some(begin.elapsed());
        } else {
            thread::sleep(ASK_EVERY);
        }
    }
    // It stays, and carries what it is for.
    let pings = Pings::start(ada.laptop(), bob.ipv4(), 20)?;
    thread::sleep(Duration::from_secs(3));
    let loss = pings.stop()?;
    let stays = [path(ada.laptop(), "bob")?, path(bob.laptop(), "ada")?];
    let good = stays.iter().all(is_best) && loss.ratio() < 0.1;
    if found.is_some() && !good {
        outcome.remark = format!("it did not stay: {} of {} pings were lost", loss.lost, loss.sent);
    }
    outcome.paths = stays;
    outcome.reasons = [reason(ada.laptop(), "bob")?, reason(bob.laptop(), "ada")?];
    outcome.best_path = found.filter(|_| good);
    Ok(outcome)
}

/// How `from` reaches `name` now, and where it sends to.
fn path(from: &Laptop, name: &str) -> Result<String> {
    let reply = from.ask(&["peers"])?;
    let peers = reply["peers"].as_array().context("`meshd peers --json` has no list")?;
    let peer = peers.iter().find(|peer| peer["name"] == name);
    let text = |field: &str| peer.and_then(|peer| peer[field].as_str()).unwrap_or("unknown").to_owned();
    Ok(format!("{} {}", text("path"), text("endpoint")))
}

/// Why `from` reaches `name` so.
fn reason(from: &Laptop, name: &str) -> Result<String> {
    Ok(from.ask(&["why", name])?["reason"].as_str().unwrap_or_default().to_owned())
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// What is not as it must be.
fn judge(outcomes: &[([&'static str; 2], Outcome)]) -> Vec<String> {
    let mut faults = Vec::new();
    if outcomes.is_empty() {
        return faults;
    }
    let good = outcomes.iter().filter(|(_, outcome)| outcome.best_path.is_some()).count();
    println!("{good} of {} pairs end as the oracle says", outcomes.len());
    if (good as f64) < AS_EXPECTED * outcomes.len() as f64 {
        faults.push(format!("{good} of {} pairs end as the oracle says", outcomes.len()));
    }
    let first: Vec<_> = outcomes.iter().filter_map(|(_, outcome)| outcome.first_ping).collect();
    let worst = first.iter().max().copied();
    let within = |time: Option<Duration>, limit: Duration| time.is_some_and(|time| time <= limit);
    let [usual, most] = FIRST_PING;
    let shown = |time: Option<Duration>| time.map_or("never".to_owned(), |time| format!("{time:.1?}"));
    println!("first ping: median {}, worst {}", shown(median(first.clone())), shown(worst));
    if first.len() < outcomes.len() || !within(median(first), usual) || !within(worst, most) {
        faults.push(format!("the first ping must take {usual:?} at the median and {most:?} at the worst"));
    }
    for way in [Way::Direct, Way::Predicted, Way::Birthday, Way::Relayed] {
        let those = outcomes.iter().filter(|(_, outcome)| outcome.way == way);
        // One that never came took for ever.
        let times: Vec<_> = those.map(|(_, outcome)| outcome.best_path.unwrap_or(NO_PATH)).collect();
        let (count, worst) = (times.len(), times.iter().max().copied().unwrap_or_default());
        let Some(median) = median(times) else { continue };
        println!("{}: {count} pairs, median {median:.1?}, worst {worst:.1?}", name(way));
        if median > at_the_median(way) {
            faults.push(format!("{}: {median:.1?} at the median, not {:?}", name(way), at_the_median(way)));
        }
    }
    faults
}

/// Seconds to the best path, and its first letter as the oracle says; `!` where it never came.
fn print_table(kinds: &[&Kind], outcomes: &[([&str; 2], Outcome)]) {
    let header: String = (1..=kinds.len()).map(|column| format!("{column:>8}")).collect();
    println!("\n{:<26}{header}", "seconds to the best path");
    for (row, a) in kinds.iter().enumerate() {
        let mut line = format!("{:>2} {:<23}", row + 1, a.name);
        for b in kinds {
            let of_pair = |(names, _): &&([&str; 2], Outcome)| *names == [a.name, b.name];
            let those: Vec<_> = outcomes.iter().filter(of_pair).map(|(_, outcome)| outcome).collect();
            let cell = those.first().map_or_else(String::new, |first| {
                let letter = &name(first.way)[..1].to_uppercase();
                let times: Vec<_> = those.iter().filter_map(|outcome| outcome.best_path).collect();
                let mark = if times.len() < those.len() { "!" } else { "" };
                median(times).map_or(format!("{letter} !"), |time| format!("{letter} {:.1}{mark}", time.as_secs_f64()))
            });
            line.push_str(&format!("{cell:>8}"));
        }
        println!("{line}");
    }
}

/// Whether `outcome` is as it must be for one pair alone, for a test.
///
/// # Errors
/// When it is not.
pub fn hold(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.first_ping.is_some_and(|time| time <= FIRST_PING[1]), "the first ping: {outcome:?}");
    ensure!(outcome.best_path.is_some(), "no path as the oracle says: {outcome:?}");
    Ok(())
}
