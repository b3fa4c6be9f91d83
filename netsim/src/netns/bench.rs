//! The benchmark: what a tunnel costs, against no tunnel and the kernel's, on this machine, in one run.
//!
//! Rounds are interleaved: each contestant is started, measured and stopped, then the next; at the end of a round the
//! bare path once more, so that a machine that changes its mind is seen. What counts are medians over the rounds. Nothing
//! is pinned, everybody has the same settings, and both laptops, the router, iperf3 and the tunnel share the cores.

pub mod chart;
pub mod gauge;
pub mod limits;
pub mod peers;
pub mod report;
pub mod samples;
pub mod tunnel;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::wire::Conditions;
use super::{Chain, Lab, Laptop, Node, Routed, Wire, iperf3, signal};
use gauge::{Busy, RoundTrips, Stream, Watch};
use samples::{Metric, Samples, Way};
use tunnel::Tunnel;

/// A part of the benchmark that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// TCP and its CPU.
    Tcp,
    /// The highest rates of packets.
    Udp,
    /// Round trips, at rest and beside TCP.
    Ping,
    /// TCP with 1 % loss and 20 ms.
    Loss,
    /// TCP and UDP over a narrow cable.
    Rate,
    /// A mesh of five at rest.
    Idle,
    /// TCP through a relay, and its CPU.
    Relay,
}

impl Part {
    /// All, in order.
    pub const ALL: [Self; 7] = [Self::Tcp, Self::Udp, Self::Ping, Self::Loss, Self::Rate, Self::Idle, Self::Relay];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
            Self::Loss => "loss",
            Self::Rate => "rate",
            Self::Idle => "idle",
            Self::Relay => "relay",
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: u32,
    /// With the other tunnels.
    pub peers: bool,
    /// Short runs: to see whether it works, not how fast.
    pub quick: bool,
    /// What of it.
    pub parts: BTreeSet<Part>,
    /// TCP's congestion control, if not the machine's own.
    pub congestion: Option<String>,
    /// The folder that the results go to.
    pub out: PathBuf,
}

impl Options {
    /// Reads the words after `netsim bench`.
    ///
    /// # Errors
    /// When one makes no sense.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            rounds: 3,
            peers: false,
            quick: false,
            parts: Part::ALL.into(),
            congestion: None,
            out: PathBuf::from("target/bench"),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--rounds" => options.rounds = value()?.parse::<u32>().context("--rounds N")?.max(1),
                "--peers" => options.peers = true,
                "--quick" => options.quick = true,
                "--only" => options.parts = value()?.split(',').map(part).collect::<Result<_>>()?,
                "--congestion" => options.congestion = Some((*value()?).to_owned()),
                "--out" => options.out = PathBuf::from(value()?),
                other => anyhow::bail!("{other}: not an option of netsim bench"),
            }
        }
        Ok(options)
    }

    /// Longer than it can take: each round of a contestant is about a minute, and a hanging one must not be for ever.
    pub fn limit(&self) -> Duration {
        let contestants = if self.peers { 10 } else { 5 };
        Duration::from_secs(u64::from(600 + 120 * contestants * self.rounds))
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// One run of iperf3.
    fn stream(&self, streams: u32, back: bool) -> Stream<'_> {
        Stream { streams, back, seconds: self.seconds(), congestion: self.congestion.as_deref() }
    }

    /// One run of iperf3, seconds.
    fn seconds(&self) -> u32 {
        if self.quick { 2 } else { 5 }
    }
}

fn part(name: &str) -> Result<Part> {
    let found = Part::ALL.into_iter().find(|part| part.name() == name);
    found.with_context(|| format!("{name} is no part: tcp, udp, ping, loss, rate, idle, relay"))
}

/// Runs it and writes the results.
///
/// # Errors
/// When the bare path cannot be measured, or the folder not written. What a tunnel cannot do is noted, and goes on.
pub fn run(lab: &mut Lab, options: &Options) -> Result<()> {
    let mut samples = Samples::default();
    if [Part::Tcp, Part::Udp, Part::Ping].iter().any(|part| options.has(*part)) {
        routed(lab, options, &mut samples)?;
    }
    if options.has(Part::Loss) {
        lossy(lab, options, &mut samples)?;
    }
    if options.has(Part::Rate) {
        narrow(lab, options, &mut samples)?;
    }
    if options.has(Part::Idle) {
        idle(lab, options, &mut samples)?;
    }
    if options.has(Part::Relay) {
        relay(lab, options, &mut samples)?;
    }
    report::write(&samples, options, lab.since().elapsed())
}

/// What TCP learned of a path must not serve the next contestant.
fn settle(laptops: &[Laptop]) -> Result<()> {
    for laptop in laptops {
        laptop.run("sysctl -qw net.ipv4.tcp_no_metrics_save=1")?;
    }
    Ok(())
}

/// Everybody over the routed path.
fn routed(lab: &mut Lab, options: &Options, samples: &mut Samples) -> Result<()> {
    let path = Routed::new(lab, ["ada", "bob"], "router")?;
    settle(&path.ends)?;
    let mut ways = vec![Way::Raw, Way::Vxlan, Way::Meshd];
    if options.has(Part::Ping) {
        ways.push(Way::MeshdBusy);
    }
    if options.peers {
        ways.extend(Way::PEERS);
    }
    if options.has(Part::Tcp) {
        ways.push(Way::Control);
    }
    for round in 1..=options.rounds {
        for way in &ways {
            report::progress(&format!("round {round} of {}: {}", options.rounds, way.name()));
            if let Err(error) = contestant(*way, &path, options, samples) {
                ensure!(!matches!(way, Way::Raw | Way::Control), "the bare path: {error:#}");
                report::progress(&format!("  not run: {error:#}"));
                samples.note(*way, error.root_cause().to_string());
            }
        }
    }
    Ok(())
}

fn contestant(way: Way, path: &Routed, options: &Options, samples: &mut Samples) -> Result<()> {
    let tunnel = Tunnel::start(way, &path.ends, Some(&path.router))?;
    let highest = |processes: &[u32]| {
        let memory = processes.iter().map(|process| gauge::rss(*process)).collect::<Result<Vec<_>>>()?;
        Ok::<_, anyhow::Error>(memory.into_iter().fold(0.0, f64::max))
    };
    let from = &path.ends[0];
    if !tunnel.processes.is_empty() {
        samples.add(way, Metric::RssIdle, highest(&tunnel.processes)?);
    }
    if way == Way::Control {
        return tcp(way, from, &tunnel, options, samples, &[(Metric::TcpThere, 1, false)]);
    }
    let watch = Watch::start(&tunnel.processes);
    if options.has(Part::Ping) {
        round_trips(way, from, &tunnel, options, samples)?;
    }
    if way == Way::MeshdBusy {
        return Ok(());
    }
    if options.has(Part::Tcp) {
        let runs = [
            (Metric::TcpThere, 1, false),
            (Metric::TcpBack, 1, true),
            (Metric::Tcp4There, 4, false),
            (Metric::Tcp4Back, 4, true),
        ];
        tcp(way, from, &tunnel, options, samples, &runs)?;
    }
    if options.has(Part::Udp) {
        let step = Duration::from_millis(if options.quick { 300 } else { 1000 });
        for (rate, late, packet) in
            [(Metric::Udp64, Metric::Udp64Late, 64), (Metric::Udp1400, Metric::Udp1400Late, 1400)]
        {
            let found = gauge::udp(from, tunnel.target, packet, step)?;
            report::progress(&format!(
                "  udp {packet}: {:.0} packets/s, {:.2} % lost, {} late",
                found.received,
                100.0 * found.loss,
                found.reordered
            ));
            // No rate at all had less than 1 % loss: that is no rate.
            samples.add(way, rate, if found.is_good() { found.received } else { 0.0 });
            samples.add(way, late, found.reordered as f64 / (found.sent * step.as_secs_f64()));
        }
    }
    let loaded = watch.stop();
    if !tunnel.processes.is_empty() {
        samples.add(way, Metric::RssLoaded, loaded);
    }
    Ok(())
}

fn tcp(
    way: Way,
    from: &Laptop,
    tunnel: &Tunnel,
    options: &Options,
    samples: &mut Samples,
    runs: &[(Metric, u32, bool)],
) -> Result<()> {
    for (metric, streams, back) in runs {
        let spent = || tunnel.processes.iter().map(|process| gauge::cpu_seconds(*process)).sum::<Result<f64>>();
        let before = spent()?;
        let tcp = gauge::tcp(from, tunnel.target, options.stream(*streams, *back))?;
        let cpu = (spent()? - before) / (tcp.bytes / 1e9);
        samples.add(way, *metric, tcp.bits_per_second);
        if *streams == 1 && !tunnel.processes.is_empty() {
            samples.add(way, Metric::Cpu, cpu);
        }
        report::progress(&format!("  {}: {:.0} ({cpu:.2} s/GB)", metric.label(), tcp.bits_per_second / 1e6));
    }
    Ok(())
}

fn round_trips(way: Way, from: &Laptop, tunnel: &Tunnel, options: &Options, samples: &mut Samples) -> Result<()> {
    let (idle_count, loaded_count) = if options.quick { (500, 250) } else { (2000, 1000) };
    let mut add = |times: &RoundTrips, metrics: [Metric; 3]| {
        for (metric, share) in metrics.into_iter().zip([0.5, 0.99, 0.999]) {
            samples.add(way, metric, times.percentile(share));
        }
        let shown: Vec<_> =
            metrics.iter().zip([0.5, 0.99, 0.999]).map(|(m, share)| m.show(times.percentile(share))).collect();
        report::progress(&format!("  {}: {}", metrics[0].label(), shown.join(", ")));
    };
    let idle = RoundTrips::measure(from, tunnel.target, idle_count)?;
    add(&idle, [Metric::IdleP50, Metric::IdleP99, Metric::IdleP999]);
    // Longer than the pings can take; it ends with them.
    let mut stream = gauge::iperf3(from, tunnel.target, Stream { seconds: 60, ..options.stream(1, false) });
    let mut stream = stream.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::sleep(Duration::from_secs(1));
    let loaded = RoundTrips::measure(from, tunnel.target, loaded_count);
    let still = stream.try_wait()?.is_none();
    signal("TERM", stream.id())?;
    stream.wait()?;
    ensure!(still, "the TCP stream ended before the pings");
    add(&loaded?, [Metric::LoadedP50, Metric::LoadedP99, Metric::LoadedP999]);
    Ok(())
}

/// A path that loses one frame in a hundred each way and takes 20 ms there and back.
const LOSSY: Conditions = Conditions { delay: Duration::from_millis(10), loss: 0.01, rate: None, queue: 0, seed: 1 };

/// Streams at once over the lossy path. They do not hinder one another there (the cable has no limit), and one run sees
/// four times the losses: a single stream sees a hundred in 15 s, and cubic makes 10 % of noise of that.
const LOSSY_STREAMS: u32 = 4;

fn lossy(lab: &mut Lab, options: &Options, samples: &mut Samples) -> Result<()> {
    let wire = Wire::new(lab, ["cat", "cow"], LOSSY)?;
    settle(&wire.ends)?;
    let seconds = if options.quick { 4 } else { 15 };
    prove(&wire)?;
    alternate(options, samples, &wire, |way, tunnel, samples| {
        // A control that does not slow down for a loss would not show what one costs.
        let stream = Stream { streams: LOSSY_STREAMS, back: false, seconds, congestion: Some("cubic") };
        let tcp = gauge::tcp(&wire.ends[0], tunnel.target, stream)?;
        samples.add(way, Metric::TcpLossy, tcp.bits_per_second);
        report::progress(&format!("  {}: {:.2}", Metric::TcpLossy.label(), tcp.bits_per_second / 1e6));
        Ok(())
    })
}

/// That the impairment is real: a cable that does nothing makes everybody look good.
fn prove(wire: &Wire) -> Result<()> {
    let round_trip = 2.0 * LOSSY.delay.as_secs_f64();
    let times = RoundTrips::measure(&wire.ends[0], wire.ends[1].underlay, 500)?;
    let median = times.percentile(0.5);
    ensure!((round_trip..1.25 * round_trip).contains(&median), "the slow cable takes {median} s");
    let (frames, lost) = (wire.counters().frames(), wire.counters().lost());
    let share = lost as f64 / frames.max(1) as f64;
    ensure!((0.5 * LOSSY.loss..2.0 * LOSSY.loss).contains(&share), "the lossy cable lost {lost} of {frames}");
    report::progress(&format!("the cable: {:.1} ms there and back, {lost} of {frames} frames lost", 1e3 * median));
    Ok(())
}

/// A slow uplink: its queue is smaller than one segmentation-offload burst of 64 datagrams.
const NARROW: Conditions =
    Conditions { delay: Duration::from_millis(2), loss: 0.0, rate: Some(50_000_000), queue: 64 << 10, seed: 1 };

/// Bits a second in packets of 1400 bytes: four fifths of the cable, which leaves a tunnel room for its headers.
const NARROW_OFFER: f64 = 40e6;

fn narrow(lab: &mut Lab, options: &Options, samples: &mut Samples) -> Result<()> {
    let wire = Wire::new(lab, ["dog", "doe"], NARROW)?;
    settle(&wire.ends)?;
    alternate(options, samples, &wire, |way, tunnel, samples| {
        let stream = Stream { seconds: 2 * options.seconds(), ..options.stream(1, false) };
        let before = wire.counters().overflowed();
        let tcp = gauge::tcp(&wire.ends[0], tunnel.target, stream)?;
        let dropped = wire.counters().overflowed() - before;
        ensure!(way != Way::Raw || tcp.bits_per_second < 50e6, "the narrow cable carried {}", tcp.bits_per_second);
        let offer = NARROW_OFFER / 8.0 / 1400.0;
        let time = Duration::from_secs(u64::from(options.seconds()));
        let udp = gauge::udp_at(&wire.ends[0], tunnel.target, 1400, offer, time)?;
        samples.add(way, Metric::TcpNarrow, tcp.bits_per_second);
        samples.add(way, Metric::UdpNarrowLoss, udp.loss);
        report::progress(&format!(
            "  TCP {:.1} Mbit/s with {dropped} frames dropped, UDP {:.2} % lost",
            tcp.bits_per_second / 1e6,
            100.0 * udp.loss
        ));
        Ok(())
    })
}

/// The bare cable and ours, in turn.
fn alternate(
    options: &Options,
    samples: &mut Samples,
    wire: &Wire,
    measure: impl Fn(Way, &Tunnel, &mut Samples) -> Result<()>,
) -> Result<()> {
    for round in 1..=options.rounds {
        for way in [Way::Raw, Way::Meshd] {
            report::progress(&format!("round {round} of {}: {}", options.rounds, way.name()));
            let measured = Tunnel::start(way, &wire.ends, None).and_then(|tunnel| measure(way, &tunnel, samples));
            if let Err(error) = measured {
                ensure!(way != Way::Raw, "the bare cable: {error:#}");
                report::progress(&format!("  not run: {error:#}"));
                samples.note(way, error.root_cause().to_string());
            }
        }
    }
    Ok(())
}

/// Five laptops on the switch, met and left alone.
fn idle(lab: &mut Lab, options: &Options, samples: &mut Samples) -> Result<()> {
    report::progress("a mesh of five at rest");
    let laptops = lab.laptops(["one", "two", "three", "four", "five"])?;
    let invite = laptops[0].found("rest")?;
    for laptop in &laptops[1..] {
        laptop.join(&invite)?;
    }
    let nodes = laptops.iter().map(Laptop::up).collect::<Result<Vec<Node>>>()?;
    for node in &nodes {
        node.wait_connected(4, Duration::from_secs(15))?;
    }
    // What follows a meeting (routing tables, first publications) is over; half a minute has some of every timer.
    let (settling, watching) = if options.quick { (5, 5) } else { (20, 30) };
    thread::sleep(Duration::from_secs(settling));
    let look = || nodes.iter().map(|node| Busy::read(node.process())).collect::<Result<Vec<_>>>();
    let before = look()?;
    thread::sleep(Duration::from_secs(watching));
    for ((before, after), node) in before.iter().zip(look()?).zip(&nodes) {
        let seconds = watching as f64;
        samples.add(Way::Meshd, Metric::Wakeups, (after.switches - before.switches) / seconds);
        samples.add(Way::Meshd, Metric::IdleCpu, (after.cpu - before.cpu) / seconds);
        samples.add(Way::Meshd, Metric::MeshRss, gauge::rss(node.process())?);
    }
    Ok(())
}

/// More than any machine carries: what is measured is work, not the limit.
const NO_LIMIT: &[&str] = &["--relay-limit", "1000000"];

/// Three machines, two LANs: what a byte costs the one in the middle, and what it costs the ends.
fn relay(lab: &mut Lab, options: &Options, samples: &mut Samples) -> Result<()> {
    report::progress("a relay between two LANs");
    let chain = Chain::new(lab, 3)?;
    settle(&chain.machines)?;
    let invite = chain.machines[0].found("chain")?;
    for machine in &chain.machines[1..] {
        machine.join(&invite)?;
    }
    let nodes = chain.machines.iter().map(|machine| machine.up_with(NO_LIMIT)).collect::<Result<Vec<Node>>>()?;
    for node in &nodes {
        node.wait_connected(2, Duration::from_secs(15))?;
    }
    let target = nodes[2].ipv4();
    let _server = iperf3::serve(&chain.machines[2], 5201)?;
    let cpu = || nodes.iter().map(|node| gauge::cpu_seconds(node.process())).collect::<Result<Vec<_>>>();
    for _ in 0..options.rounds {
        for back in [false, true] {
            let before = cpu()?;
            let tcp = gauge::tcp(&chain.machines[0], target, options.stream(1, back))?;
            let spent: Vec<_> = cpu()?.iter().zip(before).map(|(after, before)| after - before).collect();
            let ends = (spent[0] + spent[2]) / 2.0;
            let peers = chain.machines[0].ask(&["peers"])?;
            let far = peers["peers"].as_array().and_then(|all| all.iter().find(|peer| peer["name"] == "host-3"));
            ensure!(far.is_some_and(|far| far["via"] == "host-2"), "not by the relay: {peers}");
            samples.add(Way::Meshd, Metric::TcpRelayed, tcp.bits_per_second);
            samples.add(Way::Meshd, Metric::RelayCpu, spent[1] / tcp.bytes * 1e9);
            samples.add(Way::Meshd, Metric::RelayShare, spent[1] / ends);
            let shown = [tcp.bits_per_second / 1e6, spent[1] / tcp.bytes * 1e9, spent[1] / ends];
            let [rate, relay, share] = shown;
            report::progress(&format!("  {rate:.0} Mbit/s, the relay {relay:.2} s/GB, {share:.2} of an end's"));
        }
    }
    Ok(())
}
