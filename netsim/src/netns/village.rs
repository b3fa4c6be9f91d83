//! The village: a public member, and all others at home behind boxes that let nobody in, one of whom maps ports.
//!
//! Everybody must be a shard of the directory: each looks up each, then the public member is killed, and each looks up each again.
//! How often members dial while nothing happens is counted by their kernels.
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::homes::{Homes, Mapper};
use super::trial::figure;
use super::{Lab, Laptop, Node, wait_for};
use crate::kinds::kind;

/// From the last start until everybody has a control connection to everybody: home relays are chosen after five seconds and told
/// by gossip; on two cores thirty starts take a while.
const CONNECTED: Duration = Duration::from_secs(60);

/// From the death of a relay until everybody has one to everybody else: a silent peer is gone after half a minute, and other
/// homes are told half a minute after the last.
const MENDED: Duration = Duration::from_secs(90);

/// Letters that look like no MAC and no address.
fn name(number: usize) -> String {
    format!("h{number}")
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Members, the public one included.
    pub members: usize,
    /// For how long dials at rest are counted; not at all if that is nothing.
    pub rest: Duration,
    /// Whether that is all: a version without circuits can do nothing else.
    pub only_rest: bool,
}

impl Options {
    /// Reads `--members N`, `--rest SECONDS`, `--only-rest`.
    ///
    /// # Errors
    /// When something else stands there.
    pub fn parse(mut words: &[&str]) -> Result<Self> {
        let mut options = Self { members: 30, rest: Duration::from_secs(60), only_rest: false };
        loop {
            words = match words {
                [] => return Ok(options),
                ["--members", number, rest @ ..] => {
                    options.members = number.parse().context("--members N")?;
                    rest
                }
                ["--rest", seconds, rest @ ..] => {
                    options.rest = Duration::from_secs(seconds.parse().context("--rest SECONDS")?);
                    rest
                }
                ["--only-rest", rest @ ..] => {
                    options.only_rest = true;
                    rest
                }
                [other, ..] => bail!("what is {other}?"),
            };
        }
    }

    /// How long it may take.
    pub fn limit(&self) -> Duration {
        CONNECTED + MENDED + self.rest + Duration::from_secs(10 * self.members as u64)
    }
}

/// Tells the whole story.
///
/// # Errors
/// When a lookup fails, or somebody has not met everybody in time.
pub fn run(lab: &mut Lab, options: Options) -> Result<()> {
    let names: Vec<_> = (1..options.members).map(name).collect();
    let homes: Vec<_> = names.iter().map(|name| (name.as_str(), kind("port-restricted"))).collect();
    let homes = Homes::new(lab, &homes)?;
    homes.public.found("village")?;
    let mut public = homes.public.up()?;
    let invite = homes.public.invite(&["--uses", &options.members.to_string()])?;
    let _gateway = homes.homes[0].offer_mappings(Mapper::Upnp, None)?;
    let mut nodes = Vec::new();
    for home in &homes.homes {
        home.laptop.join(&invite)?;
        nodes.push(home.laptop.up()?);
    }
    figure(&format!("{} members are up after {:.1} s", options.members, lab.since().elapsed().as_secs_f64()));
    let begin = Instant::now();
    if options.only_rest {
        thread::sleep(CONNECTED);
        return count_dials(&nodes, options.rest);
    }
    let laptops: Vec<_> = homes.homes.iter().map(|home| home.laptop.clone()).collect();
    let everybody: Vec<_> = laptops.iter().cloned().chain([homes.public.clone()]).collect();
    wait_connected(&everybody, options.members - 1, CONNECTED).with_context(|| tails(&nodes))?;
    figure(&format!("everybody is connected to everybody {:.1} s after the last start", begin.elapsed().as_secs_f64()));
    let status = laptops[1].ask(&["status"])?;
    ensure!(status["directory_circuits"].as_u64() > Some(0), "by relays: {status}");
    if !options.rest.is_zero() {
        count_dials(&nodes, options.rest)?;
    }
    // A home relay must be up that is not the public member, before that may go.
    wait_for("two home relays each", CONNECTED, || {
        Ok(laptops[1..].iter().all(|laptop| laptop.ask(&["status"]).is_ok_and(|status| status["directory_homes"] == 2)))
    })
    .with_context(|| tails(&nodes))?;
    look_up_all(&everybody, &everybody)?;

    public.kill9()?;
    let begin = Instant::now();
    wait_connected(&laptops, options.members - 2, MENDED).with_context(|| tails(&nodes))?;
    figure(&format!(
        "the public member is killed: everybody else connected after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
    look_up_all(&laptops, &laptops)
}

fn tails(nodes: &[Node]) -> String {
    let said =
        |node: &Node| format!("--- {}: {:?}\n{}", node.laptop().name, node.laptop().ask(&["status"]), node.log_tail());
    nodes.iter().take(3).map(said).collect::<Vec<_>>().join("\n")
}

/// Waits until each of `laptops` has control connections to exactly `others`.
fn wait_connected(laptops: &[Laptop], others: usize, limit: Duration) -> Result<()> {
    let mut waiting: Vec<_> = laptops.iter().collect();
    let mut counts = Vec::new();
    wait_for("everybody is connected to everybody", limit, || {
        counts.clear();
        waiting.retain(|laptop| {
            let count = laptop.ask(&["status"]).ok().and_then(|status| status["directory_connections"].as_u64());
            counts.push((laptop.name.clone(), count));
            count != Some(others as u64)
        });
        thread::sleep(Duration::from_millis(200));
        Ok(waiting.is_empty())
    })
    .with_context(|| format!("of {others}: {counts:?}"))
}

/// Each of `askers` looks up each of `targets`, by MAC, IPv4 address or name in turn; all askers at once, as people do.
fn look_up_all(askers: &[Laptop], targets: &[Laptop]) -> Result<()> {
    let mut keys = Vec::new();
    for target in targets {
        let status = target.ask(&["status"])?;
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        keys.push((text("peer"), [text("mac"), text("ipv4"), text("name")]));
    }
    let begin = Instant::now();
    let look_up = |asker: &Laptop, nth: usize| -> Result<()> {
        for (offset, (peer, texts)) in keys.iter().enumerate() {
            let key = &texts[(nth + offset) % texts.len()];
            let found = asker.ask(&["lookup", key]).with_context(|| format!("{} looks up {key}", asker.name))?;
            ensure!(found["peer"] == peer.as_str(), "{} looks up {key}: {found}", asker.name);
        }
        Ok(())
    };
    let look_up = &look_up;
    thread::scope(|scope| {
        let running: Vec<_> =
            askers.iter().enumerate().map(|(nth, asker)| scope.spawn(move || look_up(asker, nth))).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("a thread that does not panic"))
    })?;
    let count = askers.len() * targets.len();
    figure(&format!("{count} of {count} lookups found, in {:.1} s", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// How many TCP connections each has begun so far, by its kernel.
fn dials(nodes: &[Node]) -> Result<u64> {
    let mut sum = 0;
    for node in nodes {
        let counters = node.laptop().run("cat /proc/net/snmp")?;
        let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let at = names.split(' ').position(|name| name == "ActiveOpens").context("ActiveOpens")?;
        sum += values.split(' ').nth(at).context("a value")?.parse::<u64>()?;
    }
    Ok(sum)
}

fn count_dials(nodes: &[Node], rest: Duration) -> Result<()> {
    let before = dials(nodes)?;
    thread::sleep(rest);
    let each = (dials(nodes)? - before) as f64 / nodes.len() as f64;
    figure(&format!("at rest a member dials by TCP {:.1} times a minute", each * 60.0 / rest.as_secs_f64()));
    Ok(())
}
