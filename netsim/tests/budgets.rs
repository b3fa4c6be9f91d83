//! What a node may do to the NAT it is behind, and to the network before it.

use std::time::Duration;

use meshd::wire::DropReason;
use netsim::trace::{Detail, Trace};
use netsim::{HostId, NatKind, Seed, World, oracle};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// `node::hunt`: flows that may be open in a NAT for our probing, and probes a second.
const FLOWS: usize = 300;
const PROBES: u64 = 400;

/// Guesses of one birthday, and of all of them in two minutes.
const GUESSES: usize = 2048;

#[test]
fn who_seeks_two_hundred_peers_that_are_nowhere_spares_its_router() {
    let mut world = World::new(Seed::or(40_000));
    world.trace = Trace::new(Detail::Off);
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let (lan, nat) = world.home_behind(NatKind::PORT_RESTRICTED, internet);
    let seeker = world.laptops(1, lan)[0];
    let mut absent: Vec<HostId> = Vec::new();
    for _ in 0..200 {
        let (lan, _) = world.home_behind(NatKind::PORT_RESTRICTED, internet);
        absent.extend(world.laptops(1, lan));
    }
    world.introduce(seeker, &[public]);
    world.start(public);
    world.start(seeker);
    // One after the other, so that they need not all meet each other: their records are good for another half hour.
    for host in &absent {
        world.introduce(*host, &[public]);
        world.start(*host);
        world.run_for(2 * SECOND);
        world.stop(*host, false);
    }
    // The NAT forgets the sessions that there were.
    world.run_for(5 * MINUTE);
    let known = world.peers(seeker).len();
    assert!(known > 100, "only {known} are known");
    for (nth, host) in absent.iter().enumerate() {
        let begin = SECOND / 200 * nth as u32;
        let until = world.now() + begin + 30 * SECOND;
        world.converse(netsim::station::Conversation::new(seeker, *host, SECOND, until, 60), begin);
    }
    let (mut flows, mut worst) = (0, 0);
    for _ in 0..120 {
        // What is said to the public member is no probe: it is asked to relay.
        let probes = |world: &World| world.host(seeker).costs.datagrams() - world.datagrams(seeker, public);
        let before = probes(&world);
        world.run_for(SECOND);
        worst = worst.max(probes(&world) - before);
        flows = flows.max(world.topology.nat(nat).flows(world.now()));
    }
    // The flow to the public member is no probe either.
    assert!(flows > FLOWS / 2 && flows <= FLOWS + 1, "{flows} flows");
    assert!(worst > PROBES / 2 && worst <= PROBES + PROBES / 10, "{worst} datagrams in a second");
    assert!(world.dropped(seeker, DropReason::ProbeBudget) > 0);
}

#[test]
fn who_guesses_for_twelve_peers_one_after_the_other_spares_its_router_too() {
    let most = (0..8).map(|seed| flows_of_one_who_guesses(40_500 + seed)).max();
    // Whoever is lucky at once needs few; not everybody is.
    assert!(most > Some(GUESSES / 2), "{most:?} flows");
}

fn flows_of_one_who_guesses(seed: u64) -> usize {
    let mut world = World::new(Seed::or(seed));
    world.trace = Trace::new(Detail::Off);
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let (lan, nat) = world.home_behind(NatKind::PORT_RESTRICTED, internet);
    let seeker = world.laptops(1, lan)[0];
    let mut hard: Vec<HostId> = Vec::new();
    for _ in 0..12 {
        let (lan, _) = world.home_behind(NatKind::SYMMETRIC_RANDOM, internet);
        hard.extend(world.laptops(1, lan));
    }
    world.start(public);
    for host in hard.iter().chain([&seeker]) {
        world.introduce(*host, &[public]);
        world.start(*host);
    }
    world.run_for(5 * SECOND);
    for host in &hard {
        world.ping(seeker, *host, SECOND, 150 * SECOND);
    }
    let mut flows = 0;
    for _ in 0..150 {
        world.run_for(SECOND);
        flows = flows.max(world.topology.nat(nat).flows(world.now()));
    }
    // Beside those that answer: sessions, and the control network's.
    assert!(flows <= GUESSES + FLOWS + 1, "seed {seed}: {flows} flows");
    let direct = world.peers(seeker).iter().filter(|peer| peer.path == "direct").count();
    // The public one, and those whose turn it was.
    assert!(direct > 1, "seed {seed}: only {direct} are direct");
    flows
}

#[test]
fn nothing_is_lost_after_ten_idle_minutes_behind_nats_that_forget_after_twenty_seconds() {
    for seed in 0..10 {
        let mut world = World::new(Seed::or(40_100 + seed));
        let internet = world.internet();
        let public = world.laptops(1, internet)[0];
        let homes = [(); 2].map(|()| {
            let (lan, _) = world.home_behind(NatKind::PORT_RESTRICTED.expiring(20 * SECOND), internet);
            let host = world.laptops(1, lan)[0];
            world.introduce(host, &[public]);
            host
        });
        [public].iter().chain(&homes).for_each(|host| world.start(*host));
        world.settle_within(10 * SECOND);
        for _ in 0..2 {
            world.run_for(10 * MINUTE);
            assert_eq!(oracle::faults(&world), [""; 0]);
            let before = homes.map(|home| world.datagrams(home, public));
            let ping = world.ping(homes[0], homes[1], 100 * Duration::from_millis(1), 5 * SECOND);
            world.run_for(6 * SECOND);
            let conversation = world.conversation(ping);
            assert_eq!(conversation.answered, conversation.sent, "seed {seed}: {conversation:?}");
            // All of it went directly.
            let after = homes.map(|home| world.datagrams(home, public));
            assert!(after[0] - before[0] < 10, "seed {seed}: {before:?} {after:?}");
        }
    }
}

#[test]
fn a_warm_peer_costs_at_most_forty_bytes_a_second() {
    let mut world = World::new(Seed::or(40_200));
    let (_, hosts) = world.lan(2);
    world.run_for(MINUTE);
    let bytes = |world: &World| hosts.iter().map(|host| world.host(*host).costs.bytes).collect::<Vec<_>>();
    let before = bytes(&world);
    world.run_for(10 * MINUTE);
    for (before, after) in before.iter().zip(bytes(&world)) {
        assert!(after - before <= 40 * 600, "{} bytes in ten minutes", after - before);
    }
}
