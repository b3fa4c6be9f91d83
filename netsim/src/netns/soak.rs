//! The soak: full load for as long as a tournament's evening, and nothing may grow, stop or get lost meanwhile.
//!
//! Two nodes with a router between them; TCP both ways at full rate, a paced stream of numbered datagrams each way, and a
//! ping. Sessions are replaced every two minutes, seen on the router as handshake responses, and that must cost
//! no datagram.
#![expect(clippy::disallowed_methods, reason = "it measures real time")]
#![expect(clippy::print_stdout, reason = "it is made to be watched")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::checked::{Tally, from_outside};
use super::iperf3::{self, Report};
use super::trial::MEET;
use super::{Background, Lab, Laptop, Node, Pings, Routed, read_all};

/// Datagrams a second of each paced stream, and their size: 4.8 Mbit/s, which no queue on the way is full of.
const PACE: &str = "1000";
const SIZE: &str = "600";

/// How often a line is printed.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// After so long buffers and caches have the size that the load asks for.
const WARM: Duration = Duration::from_secs(60);

/// What resident memory may grow by afterwards: what the allocator rounds is a fraction; a leak of one small buffer a
/// second would be seen after an hour, one for each thousandth frame within seconds.
const GROWTH_KIB: u64 = 5 << 10;

/// A second with less than this share of the median is a stall.
const STALL: f64 = 0.1;

/// From one session to the next (`session::rekey::REKEY_AFTER_TIME`), seconds.
const REKEY: u32 = 120;

/// So close to a handshake a lost datagram is laid at its door: answers come each second.
const AT_REKEY: f64 = 2.5;

/// Where everybody listens.
const IPERF: u16 = 5201;
const PORT: u16 = 5400;

/// Runs it for `minutes`.
///
/// # Errors
/// When something grew, stopped or got lost.
pub fn run(lab: &mut Lab, minutes: u32) -> Result<()> {
    let path = Routed::new(lab, ["ada", "bob"], "router")?;
    path.ends[0].found("soak")?;
    let first = path.ends[0].up()?;
    path.ends[1].join(&path.ends[0].invite(&[])?)?;
    let nodes = [first, path.ends[1].up()?];
    for node in &nodes {
        node.wait_connected(1, MEET)?;
    }
    let seconds = 60 * minutes;
    let handshakes = Handshakes::start(&path.router)?;
    let begin = Instant::now();
    let mut streams = Vec::new();
    let mut paces = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        paces.push(Pace::start(&nodes[from], &nodes[to], seconds)?);
        streams.push(Stream::start(&nodes[from], &nodes[to], seconds)?);
    }
    let pings = Pings::start(&path.ends[0], nodes[1].ipv4(), 10)?;

    let mut memory = nodes.each_ref().map(Memory::of);
    let (mut arrived, mut lost) = ([Vec::new(), Vec::new()], Vec::new());
    let mut before = (Instant::now(), [received(&nodes[0])?, received(&nodes[1])?]);
    let mut reported = before;
    println!("{:>6}  {:>17}  {:>19}  {:>11}  rekeys", "time", "RSS, KiB", "Mbit/s to ada, bob", "lost, of");
    while begin.elapsed() < Duration::from_secs(seconds.into()) {
        thread::sleep(Duration::from_secs(1));
        let now = (Instant::now(), [received(&nodes[0])?, received(&nodes[1])?]);
        for (arrived, rate) in arrived.iter_mut().zip(rates(&before, &now)) {
            arrived.push(rate);
        }
        before = now;
        for memory in &mut memory {
            memory.look(begin.elapsed())?;
        }
        for pace in &mut paces {
            if let Some(count) = pace.look()? {
                lost.push((unix_now(), count));
            }
        }
        if reported.0.elapsed() >= REPORT_EVERY {
            let [ada, bob] = rates(&reported, &now).map(|rate| rate / 1e6);
            reported = now;
            println!(
                "{:>4} s  {:>8} {:>8}  {ada:>9.0} {bob:>9.0}  {:>3} {:>7}  {}",
                begin.elapsed().as_secs(),
                memory[0].now,
                memory[1].now,
                paces.iter().map(|pace| pace.tally.lost()).sum::<u64>(),
                paces.iter().map(|pace| pace.tally.next).sum::<u64>(),
                handshakes.times()?.len()
            );
        }
    }

    let loss = pings.stop()?;
    let rekeys = handshakes.times()?;
    println!("pings: {loss:?}");
    for (pace, name) in paces.into_iter().zip(["ada to bob", "bob to ada"]) {
        let tally = pace.finish()?;
        println!(
            "{name}: {} of {} datagrams lost, {} late, {} wrong",
            tally.lost(),
            tally.next,
            tally.late,
            tally.wrong
        );
        ensure!(tally.wrong == 0, "{name}: {tally:?}");
    }
    for (stream, name) in streams.into_iter().zip(["ada to bob", "bob to ada"]) {
        flowed(&format!("{name}, sent"), &stream.finish()?.intervals()?)?;
    }
    for (arrived, name) in arrived.iter().zip(["ada", "bob"]) {
        flowed(&format!("arrived at {name}"), arrived)?;
    }
    for (node, name) in nodes.iter().zip(["ada", "bob"]) {
        println!("{name} dropped: {:?}", node.drops()?);
    }
    for memory in &memory {
        memory.judge()?;
    }
    println!("rekeys: {}", rekeys.len());
    let expected = (seconds - 1) / REKEY;
    ensure!(rekeys.len() as u32 >= expected, "{} rekeys where there should be {expected}", rekeys.len());
    let at_rekey = |time: f64| rekeys.iter().any(|rekey| (time - rekey).abs() < AT_REKEY);
    let (there, elsewhere): (Vec<_>, Vec<_>) = lost.into_iter().partition(|(time, _)| at_rekey(*time));
    let sum = |lost: &[(f64, u64)]| lost.iter().map(|(_, count)| count).sum::<u64>();
    println!("datagrams lost at rekeys: {}, elsewhere: {}", sum(&there), sum(&elsewhere));
    ensure!(there.is_empty(), "{} datagrams were lost at rekeys", sum(&there));
    Ok(())
}

/// That it never stood still.
fn flowed(what: &str, rates: &[f64]) -> Result<()> {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, median) = (sorted.first().context("no seconds")?, sorted[sorted.len() / 2]);
    println!("{what}: median {:.0} Mbit/s, slowest second {:.0}", median / 1e6, least / 1e6);
    ensure!(*least >= STALL * median, "{what}: {least} bit/s in one second where the median is {median}");
    Ok(())
}

/// Bytes that the TAP of `node` has taken from us.
fn received(node: &Node) -> Result<u64> {
    let path = format!("/sys/class/net/{}/statistics/rx_bytes", node.device());
    Ok(node.laptop().run(&format!("cat {path}"))?.parse()?)
}

fn rates(before: &(Instant, [u64; 2]), now: &(Instant, [u64; 2])) -> [f64; 2] {
    let seconds = now.0.duration_since(before.0).as_secs_f64();
    [0, 1].map(|end| (now.1[end] - before.1[end]) as f64 * 8.0 / seconds)
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The memory of a node.
struct Memory<'a> {
    node: &'a Node,
    now: u64,
    /// Once it was warm, and the most since.
    warm: Option<u64>,
    most: u64,
}

impl<'a> Memory<'a> {
    fn of(node: &'a Node) -> Self {
        Self { node, now: 0, warm: None, most: 0 }
    }

    fn look(&mut self, elapsed: Duration) -> Result<()> {
        self.now = self.node.rss_kib()?;
        if elapsed >= WARM {
            self.warm.get_or_insert(self.now);
            self.most = self.most.max(self.now);
        }
        Ok(())
    }

    fn judge(&self) -> Result<()> {
        let Some(warm) = self.warm else { return Ok(()) };
        println!("RSS of {}: {warm} KiB once warm, {} at most", self.node.laptop().name, self.most);
        ensure!(self.most <= warm + GROWTH_KIB, "{} grew from {warm} to {} KiB", self.node.laptop().name, self.most);
        Ok(())
    }
}

/// TCP at full rate.
struct Stream {
    client: std::process::Child,
    _server: Background,
}

impl Stream {
    fn start(from: &Node, to: &Node, seconds: u32) -> Result<Self> {
        let server = iperf3::serve(to.laptop(), IPERF)?;
        let options = format!("--time {seconds} --interval 1");
        let target: IpAddr = to.ipv4().into();
        let mut client = iperf3::client(from.laptop(), target, &options);
        Ok(Self { client: client.stdout(Stdio::piped()).spawn()?, _server: server })
    }

    fn finish(mut self) -> Result<Report> {
        let text = read_all(self.client.stdout.take().context("piped")?)?;
        let status = self.client.wait()?;
        ensure!(status.success(), "iperf3: {status}: {text}");
        Report::of(&text)
    }
}

/// A paced stream of numbered datagrams.
struct Pace {
    sender: Background,
    _receiver: Background,
    log: PathBuf,
    tally: Tally,
}

impl Pace {
    fn start(from: &Node, to: &Node, seconds: u32) -> Result<Self> {
        let netsim = std::env::current_exe()?;
        let netsim = netsim.to_str().context("our own path")?;
        let target = SocketAddr::new(to.ipv4().into(), PORT);
        let receiver = from_outside::receiver(netsim, to.laptop(), "datagrams", target)?;
        let mut sender = from.laptop().command(netsim);
        sender.args(["checked", "pace", &target.to_string(), SIZE, PACE, &seconds.to_string()]);
        let log = from.laptop().dir.join("pace");
        Ok(Self { sender: Background::logged(&mut sender, &log)?, _receiver: receiver, log, tally: Tally::default() })
    }

    /// Takes note of what it last said; how many more are lost than before, if any.
    fn look(&mut self) -> Result<Option<u64>> {
        let before = self.tally.lost();
        self.tally = last(&self.log)?.unwrap_or(self.tally);
        Ok(self.tally.lost().checked_sub(before).filter(|more| *more > 0))
    }

    fn finish(mut self) -> Result<Tally> {
        let status = self.sender.wait()?;
        ensure!(status.success(), "the paced stream: {status}: {}", fs::read_to_string(&self.log)?);
        last(&self.log)?.context("the paced stream said nothing")
    }
}

fn last(log: &Path) -> Result<Option<Tally>> {
    let text = fs::read_to_string(log)?;
    // The last line may be half written.
    Ok(text.lines().rev().find_map(|line| Tally::of_json(line.as_bytes())))
}

/// Responses to handshakes as they pass the router: each is a session replaced, on both sides.
struct Handshakes {
    _tcpdump: Background,
    log: PathBuf,
}

impl Handshakes {
    fn start(router: &Laptop) -> Result<Self> {
        let log = router.dir.join("handshakes");
        let mut tcpdump = router.command("tcpdump");
        tcpdump.args(["-i", "ada", "-nn", "-tt", "-l", "--immediate-mode", "-Z", "root"]);
        // Kind 2 and no flags.
        let tcpdump = Background::logged(tcpdump.arg("udp and udp[8:4] = 0x02000000"), &log)?;
        Ok(Self { _tcpdump: tcpdump, log })
    }

    /// When, in seconds since 1970.
    fn times(&self) -> Result<Vec<f64>> {
        let text = fs::read_to_string(&self.log)?;
        let lines = text.lines().filter(|line| line.contains(": UDP, "));
        Ok(lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect())
    }
}
