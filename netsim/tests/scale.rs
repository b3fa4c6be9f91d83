//! Many nodes, long times, and what it costs: tables that are asserted with bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use meshd::node::Reason;
use netsim::station::Conversation;
use netsim::trace::{Detail, Trace};
use netsim::{HostId, Seed, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What hosts cost since some moment; printed as one line of the table (`--nocapture`).
struct Meter {
    hosts: Vec<HostId>,
    since: Duration,
    before: Vec<[u64; 5]>,
}

/// Per node and hour.
#[derive(Debug)]
struct Line {
    datagrams: f64,
    bytes: f64,
    initiations: f64,
    wakes: f64,
    idle_wakes: f64,
}

impl Meter {
    fn start(world: &World, hosts: &[HostId]) -> Self {
        let before = hosts.iter().map(|host| totals(world, *host)).collect();
        Self { hosts: hosts.to_vec(), since: world.now(), before }
    }

    fn read(&self, title: &str, world: &World) -> Line {
        let hours = (world.now() - self.since).as_secs_f64() / 3600.0;
        let mut sums = [0; 5];
        for (host, before) in self.hosts.iter().zip(&self.before) {
            for (sum, (after, before)) in sums.iter_mut().zip(totals(world, *host).into_iter().zip(before)) {
                *sum += after - before;
            }
        }
        let [datagrams, bytes, initiations, wakes, idle_wakes] =
            sums.map(|sum| sum as f64 / (self.hosts.len() as f64 * hours));
        let line = Line { datagrams, bytes, initiations, wakes, idle_wakes };
        let mut idle: BTreeMap<Reason, u64> = BTreeMap::new();
        for host in &self.hosts {
            for (reason, count) in &world.host(*host).costs.idle_wakes {
                *idle.entry(*reason).or_default() += count;
            }
        }
        show(&format!(
            "{title:32} | {datagrams:9.0} | {bytes:9.0} | {initiations:11.1} | {wakes:7.0} | {idle_wakes:7.0} {idle:?}"
        ));
        line
    }
}

fn totals(world: &World, host: HostId) -> [u64; 5] {
    let costs = &world.host(host).costs;
    [costs.datagrams(), costs.bytes, costs.sent[1], costs.wakes, costs.idle_wakes.values().sum()]
}

#[expect(clippy::print_stdout, reason = "the cost table is there to be read, with --nocapture")]
fn show(line: &str) {
    println!("{line}");
}

const HEAD: &str = "per node and hour                | datagrams |     bytes | initiations |   wakes | for nothing";

/// Processor time of this thread (proc(5), stat: utime and stime in hundredths of a second): what a run costs, however
/// busy the machine is.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux");
    let after_name = stat.rsplit(')').next().expect("a name in brackets");
    let ticks: u64 = after_name.split(' ').skip(12).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(10 * ticks)
}

#[test]
fn an_idle_mesh_sends_almost_nothing() {
    show(HEAD);
    // Members; bounds per node and hour: datagrams, bytes, initiations, wakes. Up to 32 members everybody keeps a
    // session with everybody, beyond that only with those it talks to.
    for (count, datagrams, bytes, initiations, wakes) in [
        (2, 420.0, 50e3, 18.0, 1000.0),
        (5, 1700.0, 200e3, 72.0, 1150.0),
        (32, 13e3, 1.6e6, 560.0, 2300.0),
        (60, 5.0, 2e3, 1.0, 80.0),
    ] {
        let mut world = World::new(Seed::or(3000));
        world.trace = Trace::new(Detail::Off);
        let (_, hosts) = world.lan(count);
        // The bustle of the beginning is not idleness.
        world.run_for(10 * MINUTE);
        let meter = Meter::start(&world, &hosts);
        world.run_for(HOUR);
        let line = meter.read(&format!("{count} laptops, idle"), &world);
        assert!(line.datagrams <= datagrams && line.bytes <= bytes, "{count} laptops: {line:?}");
        assert!(line.initiations <= initiations && line.wakes <= wakes, "{count} laptops: {line:?}");
        // One look at the sessions every 5 s, one at the records every minute.
        assert!(line.idle_wakes <= 3600.0 / 5.0 + 60.0 + 10.0, "{count} laptops: {line:?}");
    }
}

#[test]
fn members_who_are_away_cost_little_and_ever_less() {
    show(HEAD);
    let mut world = World::new(Seed::or(3050));
    world.trace = Trace::new(Detail::Off);
    let (_, hosts) = world.lan(12);
    world.run_for(10 * MINUTE);
    let (here, away) = hosts.split_at(2);
    for host in away {
        world.stop(*host, false);
    }
    // For ten members who are away, per node and hour.
    for (title, span, bytes) in [
        ("10 away, the first half hour", HOUR / 2, 2.6e6),
        ("10 away, the next hour and a half", 3 * HOUR / 2, 0.4e6),
        ("10 away, the night", 12 * HOUR, 0.3e6),
    ] {
        let meter = Meter::start(&world, here);
        world.run_for(span);
        let line = meter.read(title, &world);
        assert!(line.bytes <= bytes, "{title}: {line:?}");
    }
}

#[test]
fn a_hundred_nodes_live_through_a_day() {
    let began = processor_time();
    let mut world = World::new(Seed::or(3100));
    world.trace = Trace::new(Detail::Off);
    let internet = world.internet();
    // Ten offices of ten, all with a line to the Internet; everybody was invited by the first.
    let home = world.home().clone();
    let mut hosts = Vec::new();
    for office in 0..10 {
        let lan = world.switch();
        for desk in 0..10 {
            hosts.push(world.add_host(&format!("office-{office}-{desk}"), &home, &[lan, internet]));
        }
    }
    let mut chance = Seed::or(3100).chance("who talks to whom");
    for (n, &host) in hosts.iter().enumerate() {
        if n > 0 {
            world.introduce(host, &hosts[..1]);
        }
        world.start_after(host, chance.between(Duration::ZERO, 5 * MINUTE));
    }
    world.run_for(10 * MINUTE);
    // Fifty pairs, two spells of half an hour each.
    let mut talks = Vec::new();
    while talks.len() < 100 {
        let (from, to) = (hosts[chance.below(100) as usize], hosts[chance.below(100) as usize]);
        if from == to {
            continue;
        }
        for _ in 0..2 {
            let begin = chance.between(MINUTE, 22 * HOUR);
            let until = world.now() + begin + 30 * MINUTE;
            talks.push(world.converse(Conversation::new(from, to, 2 * SECOND, until, 200), begin));
        }
    }
    let meter = Meter::start(&world, &hosts);
    world.run_for(24 * HOUR);
    show(HEAD);
    meter.read("100 nodes, a day, 50 pairs talk", &world);
    let took = processor_time() - began;
    show(&format!("{} events in {took:?} of processor time", world.handled));
    let drops = world.drops();
    for &talk in &talks {
        let conversation = world.conversation(talk);
        assert_eq!(
            (conversation.answered, conversation.doubled),
            (conversation.sent, 0),
            "{:?} -> {:?}, silent for {:?} from {:?} on; drops: {drops}",
            conversation.from,
            conversation.to,
            conversation.longest_silence,
            conversation.silent_since
        );
        assert!(conversation.worst < 2 * SECOND, "an answer took {:?}", conversation.worst);
    }
    // 45 s where it was written; a machine may be half as fast, or busy beside it.
    assert!(took < 5 * MINUTE / 2, "a virtual day took {took:?}");
}
