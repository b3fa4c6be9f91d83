//! Who wants no good: garbage, floods of initiations, replays, strangers. They get nothing, cost little, and are counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use meshd::identity::NetworkSecret;
use meshd::wire::DropReason;
use netsim::network::UNIX_START;
use netsim::{HostId, Network, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const FLOOD: u32 = 100_000;

/// What an attack may make this process grow by: caches warm up, a leak of 100 bytes a datagram would be 10 MB.
const MAX_GROWTH: u64 = 8 << 20;

/// Resident memory of this process, bytes (proc(5), statm).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4096
}

fn spoofed(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0b00_0000 + n), (1024 + n % 60_000) as u16))
}

/// Two laptops that ping each other, and the conversation.
fn honest(seed: u64) -> (World, HostId, HostId, Vec<usize>) {
    let mut world = World::new(Seed::or(seed));
    let (_, laptops) = world.lan(2);
    world.settle_within(3 * SECOND);
    let pings = world.ping_all(&laptops, 20 * MS, 300 * SECOND);
    world.run_for(SECOND);
    (world, laptops[0], laptops[1], pings)
}

fn assert_unaffected(world: &mut World, pings: &[usize]) {
    for &index in pings {
        world.conversations[index].until = world.now();
    }
    world.run_for(SECOND);
    for &index in pings {
        let conversation = world.conversation(index);
        assert_eq!(conversation.answered, conversation.sent, "honest pings were lost");
    }
}

#[test]
fn a_hundred_thousand_datagrams_of_garbage_cost_no_memory_and_no_ping() {
    let (mut world, victim, _, pings) = honest(2000);
    let mut chance = Seed::or(2000).chance("garbage");
    let mut throw = |world: &mut World, count: u32| {
        for n in 0..count {
            let len = 1 + chance.below(1400) as usize;
            let mut garbage = chance.noise(len);
            if n % 2 == 0 {
                garbage[0] = 1 + (n / 2 % 4) as u8;
            }
            world.inject(victim, spoofed(n), &garbage);
            if n % 100 == 0 {
                world.run_for(MS);
            }
        }
    };
    throw(&mut world, 5_000);
    let (before, astray) = (resident(), world.astray);
    throw(&mut world, FLOOD);
    let grown = resident().saturating_sub(before);
    assert!(grown < MAX_GROWTH, "memory grew by {grown} bytes");
    assert_eq!(world.astray, astray, "somebody answered garbage");
    let counted: u64 = [
        DropReason::DatagramMalformed,
        DropReason::UnknownReceiver,
        DropReason::UnknownChannel,
        DropReason::HandshakeMac,
        DropReason::HandshakeMalformed,
    ]
    .into_iter()
    .map(|reason| world.dropped(victim, reason))
    .sum();
    assert_eq!(counted, u64::from(FLOOD) + 5_000, "every drop has a name: {}", world.drops());
    assert_unaffected(&mut world, &pings);
}

/// A world in which one genuine initiation to the first host was captured.
fn with_initiation(seed: u64) -> (World, HostId, HostId, Vec<usize>, Vec<u8>) {
    let mut world = World::new(Seed::or(seed));
    world.captured = Some(Vec::new());
    let (_, laptops) = world.lan(2);
    world.settle_within(3 * SECOND);
    let captured = world.captured.take().expect("a capture runs");
    let initiation = captured.iter().find(|datagram| datagram.bytes[0] == 1).expect("somebody initiated").clone();
    let way = world.topology.route(initiation.from, initiation.endpoint.ip()).expect("a way");
    let victim = world.topology.host_of(way.1);
    let pings = world.ping_all(&laptops, 20 * MS, 300 * SECOND);
    world.run_for(SECOND);
    (world, victim, initiation.from, pings, initiation.bytes)
}

#[test]
fn a_hundred_thousand_replayed_initiations_from_forged_sources_cost_no_memory_and_no_ping() {
    let (mut world, victim, _, pings, initiation) = with_initiation(2100);
    let throw = |world: &mut World, count: u32| {
        for n in 0..count {
            world.inject(victim, spoofed(n), &initiation);
            if n % 100 == 0 {
                world.run_for(MS);
            }
        }
    };
    throw(&mut world, 5_000);
    let before = resident();
    let astray = world.astray;
    throw(&mut world, FLOOD);
    let grown = resident().saturating_sub(before);
    assert!(grown < MAX_GROWTH, "memory grew by {grown} bytes");
    let (datagrams, bytes) = (world.astray.0 - astray.0, world.astray.1 - astray.1);
    assert!(
        bytes <= u64::from(FLOOD) * initiation.len() as u64 && datagrams <= u64::from(FLOOD),
        "{datagrams} datagrams, {bytes} bytes came back: more than went in"
    );
    let named: u64 = [DropReason::HandshakeCookie, DropReason::HandshakeRate, DropReason::HandshakeReplayed]
        .into_iter()
        .map(|reason| world.dropped(victim, reason))
        .sum();
    assert_eq!(named, u64::from(FLOOD) + 5_000, "every drop has a name: {}", world.drops());
    assert_unaffected(&mut world, &pings);
}

#[test]
fn under_a_flood_of_initiations_a_newcomer_still_gets_in() {
    let (mut world, victim, _, pings, initiation) = with_initiation(2200);
    let lan = netsim::SegmentId(0);
    let newcomer = world.laptops(1, lan)[0];
    world.start(newcomer);
    let mut got_in = None;
    let start = world.now();
    for n in 0..50_000 {
        world.inject(victim, spoofed(n), &initiation);
        if n % 10 == 0 {
            world.run_for(MS);
        }
        if n % 500 == 0 && netsim::oracle::sends(&world, newcomer, victim) {
            got_in = Some(world.now() - start);
            break;
        }
    }
    assert!(got_in.is_some_and(|took| took < 3 * SECOND), "the newcomer got in after {got_in:?}; {}", world.drops());
    assert_unaffected(&mut world, &pings);
}

/// Datagrams from one to the other since the capture began, own initiations not counted: who holds the network's secret
/// can announce itself by mDNS, and is then tried.
fn answers(world: &World, from: HostId, to: HostId) -> usize {
    let addresses = world.topology.addresses(to);
    let captured = world.captured.iter().flatten();
    let theirs = captured.filter(|datagram| datagram.from == from && addresses.contains(&datagram.endpoint.ip()));
    theirs.filter(|datagram| datagram.bytes[0] != 1).count()
}

/// A host that thinks it belongs to the laptops' network, pointed at one of them; nothing may come back to it.
fn assert_ignored(seed: u64, reason: DropReason, make: impl FnOnce(&mut World, &Network) -> HostId) {
    let mut world = World::new(Seed::or(seed));
    let (_, laptops) = world.lan(2);
    world.settle_within(3 * SECOND);
    let home = world.home().clone();
    let stranger = make(&mut world, &home);
    world.introduce(stranger, &laptops);
    world.captured = Some(Vec::new());
    world.start(stranger);
    world.run_for(60 * SECOND);
    let asked = world.datagrams(stranger, laptops[0]);
    assert!(asked > 0, "the stranger never knocked");
    for &laptop in &laptops {
        assert_eq!(answers(&world, laptop, stranger), 0, "a stranger was answered");
        assert_eq!(world.dropped(laptop, reason), world.datagrams(stranger, laptop), "{}", world.drops());
        assert_eq!(world.peers(laptop).len(), 1, "a stranger is in the list of members");
    }
    assert!(!netsim::oracle::sends(&world, stranger, laptops[0]));
}

#[test]
fn a_stranger_with_the_wrong_secret_hears_nothing() {
    assert_ignored(2300, DropReason::HandshakeMac, |world, home| {
        let wrong = home.clone().with_secret(NetworkSecret::new([9; 32]));
        world.add_host("wrong-secret", &wrong, &[netsim::SegmentId(0)])
    });
}

#[test]
fn a_member_of_another_network_hears_nothing() {
    assert_ignored(2310, DropReason::HandshakeMac, |world, _| {
        let other = Network::new(&mut Seed(77).chance("another network"));
        world.add_host("another-network", &other, &[netsim::SegmentId(0)])
    });
}

#[test]
fn a_member_of_another_network_who_knows_our_secret_hears_nothing() {
    assert_ignored(2320, DropReason::MembershipRefused, |world, home| {
        let other = Network::new(&mut Seed(78).chance("another network"));
        let thief = other.with_secret(home.config.secret.clone());
        world.add_host("thief", &thief, &[netsim::SegmentId(0)])
    });
}

#[test]
fn a_member_whose_certificate_runs_out_is_expelled_and_hears_nothing_more() {
    let mut world = World::new(Seed::or(2330));
    let (lan, laptops) = world.lan(2);
    let home = world.home().clone();
    let leaver = world.add_host("leaver", &home, &[lan]);
    let (peer, name) = (world.host(leaver).peer, world.host(leaver).name.clone());
    world.host_mut(leaver).config.chain = home.member_until(peer, &name, UNIX_START + 600);
    world.start(leaver);
    world.settle_within(3 * SECOND);
    world.run_for(900 * SECOND);
    world.captured = Some(Vec::new());
    world.stop(leaver, false);
    world.start(leaver);
    world.run_for(300 * SECOND);
    for laptop in &laptops {
        assert!(!netsim::oracle::sends(&world, *laptop, leaver), "an expired member still has a session");
        assert_eq!(answers(&world, *laptop, leaver), 0, "an expired member was answered");
    }
    assert!(netsim::oracle::sends(&world, laptops[0], laptops[1]));
}
