//! Relays: chains of LANs, who takes over, whom one serves, and how much.

use std::time::Duration;

use meshd::wire::DropReason;
use netsim::station::Conversation;
use netsim::{Conditions, HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SEEDS: u64 = 20;

/// The founders' goal for a chain: from the start of everything to the first answer.
const FIRST_PING: Duration = Duration::from_secs(10);

/// Machines in a row, each pair of neighbours on a LAN of its own, all started at once.
fn chain(seed: u64, count: usize) -> (World, Vec<HostId>, Vec<SegmentId>) {
    let mut world = World::new(Seed::or(seed));
    let lans: Vec<_> = (1..count).map(|_| world.switch()).collect();
    let hosts = (0..count).map(|n| {
        let sides: Vec<_> = lans.iter().copied().skip(n.saturating_sub(1)).take(if n == 0 { 1 } else { 2 }).collect();
        machine(&mut world, &format!("host-{n}"), &sides)
    });
    let hosts = hosts.collect::<Vec<_>>();
    hosts.iter().for_each(|host| world.start(*host));
    (world, hosts, lans)
}

fn machine(world: &mut World, name: &str, lans: &[SegmentId]) -> HostId {
    let home = world.home().clone();
    world.add_host(name, &home, lans)
}

/// The first relay on the path from one host to another, and how many there are.
fn way(world: &mut World, from: HostId, to: HostId) -> (Option<String>, u8) {
    let wanted = world.host(to).peer.to_string();
    let peers = world.peers(from).into_iter().find(|peer| peer.peer == wanted);
    peers.map_or((None, 0), |peer| (peer.via, peer.relays))
}

fn name(world: &World, host: HostId) -> String {
    world.host(host).name.to_string()
}

#[test]
fn five_machines_in_a_chain_of_four_lans_all_speak_with_each_other() {
    let mut times = Vec::new();
    for seed in 0..SEEDS {
        let (mut world, hosts, _) = chain(40_000 + seed, 5);
        let took = world.first_answer(hosts[0], hosts[4], FIRST_PING);
        times.push(took.unwrap_or_else(|| panic!("seed {seed}: no answer; drops: {}", world.drops())));
        assert_eq!(way(&mut world, hosts[0], hosts[4]), (Some("host-1".to_owned()), 3), "seed {seed}");
        for from in 0..5 {
            for to in 0..5 {
                if from != to {
                    let took = world.first_answer(hosts[from], hosts[to], 3 * SECOND);
                    assert!(took.is_some(), "seed {seed}: {from} to {to}; drops: {}", world.drops());
                }
            }
        }
        // And it stays.
        let ping = world.ping(hosts[0], hosts[4], 100 * MS, 300 * SECOND);
        world.run_for(301 * SECOND);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= SECOND, "seed {seed}: {conversation:?}");
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] <= 4 * SECOND, "the median first answer took {:?}", times[times.len() / 2]);
}

#[test]
fn four_relays_are_the_most() {
    for seed in 0..3 {
        let (mut world, hosts, _) = chain(41_000 + seed, 7);
        assert!(world.first_answer(hosts[0], hosts[5], FIRST_PING).is_some(), "drops: {}", world.drops());
        assert_eq!(way(&mut world, hosts[0], hosts[5]).1, 4);
        assert_eq!(world.first_answer(hosts[0], hosts[6], 60 * SECOND), None);
        assert!(world.first_answer(hosts[1], hosts[6], SECOND).is_some());
    }
}

#[test]
fn when_the_middle_dies_a_second_on_its_two_lans_takes_over_within_five_seconds() {
    for seed in 0..SEEDS {
        let (mut world, mut hosts, lans) = chain(42_000 + seed, 5);
        let second = machine(&mut world, "host-5", &lans[1..3]);
        world.start(second);
        hosts.push(second);
        world.first_answer(hosts[0], hosts[4], FIRST_PING).expect("an answer");
        world.run_for(15 * SECOND);
        let ping = world.ping(hosts[0], hosts[4], 100 * MS, 40 * SECOND);
        world.run_for(5 * SECOND);
        // Whichever the middle is: one dies, then it is back and the other dies.
        for dying in [hosts[2], second] {
            world.stop(dying, false);
            world.run_for(10 * SECOND);
            world.start(dying);
            world.run_for(6 * SECOND);
        }
        world.run_for(5 * SECOND);
        let conversation = world.conversation(ping).clone();
        assert!(conversation.longest_silence <= 5 * SECOND, "seed {seed}: {conversation:?}; drops: {}", world.drops());
    }
}

#[test]
fn in_rings_and_with_somebody_absent_nothing_goes_round() {
    for seed in 0..SEEDS {
        let mut world = World::new(Seed::or(43_000 + seed));
        // Six LANs in a ring, a machine between each two, and two machines between two of them.
        let lans: Vec<_> = (0..6).map(|_| world.switch()).collect();
        let mut hosts: Vec<_> =
            (0..6).map(|n| machine(&mut world, &format!("host-{n}"), &[lans[n], lans[(n + 1) % 6]])).collect();
        hosts.push(machine(&mut world, "host-6", &lans[..2]));
        hosts.iter().for_each(|host| world.start(*host));
        assert!(world.first_answer(hosts[0], hosts[3], FIRST_PING).is_some(), "drops: {}", world.drops());
        world.run_for(30 * SECOND);
        for (from, to) in [(0, 3), (1, 4), (2, 5), (0, 4)] {
            let (via, relays) = way(&mut world, hosts[from], hosts[to]);
            assert!(via.is_some() && relays <= 4, "seed {seed}: {from} to {to} by {via:?}, {relays}");
        }
        // One is gone, and everybody asks for it for ten minutes: a few datagrams a second in all.
        world.stop(hosts[3], false);
        world.run_for(120 * SECOND);
        let before = datagrams(&world);
        world.run_for(600 * SECOND);
        let a_second = (datagrams(&world) - before) / 600;
        assert!(a_second <= 40, "seed {seed}: {a_second} datagrams a second");
    }
}

fn datagrams(world: &World) -> u64 {
    let all: Vec<_> = world.hosts().collect();
    all.iter().flat_map(|from| all.iter().map(|to| world.datagrams(*from, *to))).sum()
}

/// Homes that only meet through public members, which are returned too; all but those in `idle` are started.
fn homes_and_publics(seed: u64, count: usize) -> (World, [HostId; 2], Vec<HostId>, SegmentId) {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    let publics = world.laptops(count, internet);
    let homes = [(); 2].map(|()| {
        let (lan, _) = world.home_behind(NatKind::SYMMETRIC_RANDOM, internet);
        let host = world.laptops(1, lan)[0];
        world.introduce(host, &publics);
        host
    });
    for newcomer in &publics[1..] {
        world.introduce(*newcomer, &publics[..1]);
    }
    (world, homes, publics, internet)
}

#[test]
fn when_both_relays_of_a_pair_die_at_once_a_third_takes_over_within_three_seconds() {
    for seed in 0..SEEDS {
        let (mut world, homes, publics, _) = homes_and_publics(44_000 + seed, 3);
        // Two first, so that they are the two; then the third.
        for host in publics[..2].iter().chain(&homes) {
            world.start(*host);
        }
        world.first_answer(homes[0], homes[1], FIRST_PING).expect("an answer");
        world.run_for(10 * SECOND);
        world.start(publics[2]);
        world.run_for(60 * SECOND);
        let direct = world.ping(homes[0], publics[2], 100 * MS, 20 * SECOND);
        let ping = world.ping(homes[0], homes[1], 100 * MS, 20 * SECOND);
        world.run_for(5 * SECOND);
        let used = way(&mut world, homes[0], homes[1]).0.expect("a relay");
        let spare = publics.iter().copied().find(|host| name(&world, *host) != used).expect("another");
        for host in &publics {
            if *host != spare && *host != publics[2] || name(&world, *host) == used {
                world.stop(*host, false);
            }
        }
        world.run_for(14 * SECOND);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= 3 * SECOND, "seed {seed}: {conversation:?}");
        if world.is_running(publics[2]) {
            let conversation = world.conversation(direct);
            assert!(conversation.longest_silence <= SECOND, "seed {seed}: a direct session: {conversation:?}");
        }
    }
}

#[test]
fn who_does_not_serve_is_not_used_and_who_does_is_found() {
    for seed in 0..SEEDS {
        let (mut world, homes, publics, _) = homes_and_publics(45_000 + seed, 3);
        for host in &publics[..2] {
            world.host_mut(*host).config.relaying.serve = false;
        }
        for host in publics[..2].iter().chain(&homes) {
            world.start(*host);
        }
        assert_eq!(world.first_answer(homes[0], homes[1], 20 * SECOND), None, "seed {seed}");
        world.start(publics[2]);
        let took = world.first_answer(homes[0], homes[1], 65 * SECOND);
        assert!(took.is_some(), "seed {seed}; drops: {}", world.drops());
        assert_eq!(way(&mut world, homes[0], homes[1]).0, Some(name(&world, publics[2])));
    }
}

#[test]
fn what_is_too_much_for_a_relay_is_dropped_and_counted_and_the_rest_arrives() {
    let (mut world, homes, publics, _) = homes_and_publics(46_000, 1);
    // A pair gets 64 kbit/s: 8 kB a second.
    world.host_mut(publics[0]).config.relaying.limit = 128_000;
    for host in publics.iter().chain(&homes) {
        world.start(*host);
    }
    world.first_answer(homes[0], homes[1], FIRST_PING).expect("an answer");
    world.run_for(10 * SECOND);
    let limited = |world: &World| -> u64 { world.dropped(publics[0], DropReason::RelayLimit) };
    let before = limited(&world);
    let small = world.ping(homes[0], homes[1], 100 * MS, 10 * SECOND);
    world.run_for(11 * SECOND);
    assert_eq!((limited(&world) - before, world.conversation(small).lost), (0, 0));
    // Ten times a second 1400 bytes there and back are 28 kB a second.
    let until = world.now() + 20 * SECOND;
    let large = world.converse(Conversation::new(homes[0], homes[1], 100 * MS, until, 1400), Duration::ZERO);
    world.run_for(21 * SECOND);
    let conversation = world.conversation(large).clone();
    assert!(limited(&world) > before, "{conversation:?}");
    assert!((20..=100).contains(&conversation.answered), "{conversation:?}");
}

#[test]
fn the_relay_that_is_nearest_to_both_is_found_and_kept() {
    for seed in 0..SEEDS {
        let (mut world, homes, publics, internet) = homes_and_publics(47_000 + seed, 4);
        // All are equally far from the first home's provider in what it sends; three answer late.
        for (public, late) in publics.iter().zip([120, 90, 60, 5]) {
            let conditions = Conditions { latency: late * MS, jitter: Duration::ZERO, ..Conditions::WAN };
            world.topology.set_cable(*public, internet, conditions);
        }
        for host in publics[..2].iter().chain(&homes) {
            world.start(*host);
        }
        world.first_answer(homes[0], homes[1], FIRST_PING).expect("an answer");
        publics[2..].iter().for_each(|host| world.start(*host));
        let best = name(&world, publics[3]);
        let found = world.wait_for(120 * SECOND, |world| {
            [(0, 1), (1, 0)].into_iter().all(|(a, b)| way(world, homes[a], homes[b]).0.as_ref() == Some(&best))
        });
        assert!(found.is_some(), "seed {seed}: {:?}", way(&mut world, homes[0], homes[1]));
        // It stays the one.
        let ping = world.ping(homes[0], homes[1], 100 * MS, 600 * SECOND);
        for _ in 0..60 {
            world.run_for(10 * SECOND);
            assert_eq!(way(&mut world, homes[0], homes[1]).0.as_ref(), Some(&best), "seed {seed}");
        }
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= SECOND, "seed {seed}: {conversation:?}");
    }
}

#[test]
fn lans_full_of_others_are_a_chain_too() {
    for seed in 0..5 {
        let (mut world, hosts, lans) = chain(48_000 + seed, 5);
        // Six more on each LAN, who lead nowhere.
        let crowds: Vec<_> = lans.iter().map(|lan| world.laptops(6, *lan)).collect();
        crowds.iter().flatten().for_each(|host| world.start(*host));
        for (from, to) in [(hosts[0], hosts[4]), (crowds[0][3], crowds[3][2])] {
            let took = world.first_answer(from, to, FIRST_PING);
            assert!(took.is_some(), "seed {seed}; drops: {}", world.drops());
            assert!(way(&mut world, from, to).1 >= 3);
        }
        world.run_for(60 * SECOND);
        for from in crowds.iter().flatten() {
            let all = world.peers(*from);
            assert!(all.iter().all(|peer| peer.path == "direct" || peer.path == "relayed"), "seed {seed}: {all:?}");
        }
    }
}
