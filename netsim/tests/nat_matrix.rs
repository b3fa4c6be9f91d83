//! Every pair of boxes: how two homes speak that know one public member with both families, held against the oracle.

use std::collections::BTreeMap;
use std::time::Duration;

use meshd::node::Reply;
use meshd::node::command::{Command, PathReason, WhyInfo};
use netsim::kinds::{KINDS, Kind, kind};
use netsim::link::Conditions;
use netsim::oracle::{Way, best_way, direct_path_possible};
use netsim::{HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Seeds of each pair.
const SEEDS: u64 = 20;

/// From the start of everything to the first ping: the founders' goal for its worst.
const FIRST_PING: Duration = Duration::from_secs(5);

/// From then to the best path, at the worst: when a loss has let a careless box be knocked at too early, it must first forget.
const BEST_PATH: Duration = Duration::from_secs(120);

/// From then until both know that there is no better one, at the worst: two more tries.
const AGREED: Duration = Duration::from_secs(50);

/// From the start of everything to the best path, in half of all cases.
fn at_the_median(way: Way) -> Duration {
    match way {
        Way::Direct | Way::Relayed => 3 * SECOND,
        Way::Predicted => 4 * SECOND,
        Way::Birthday => 12 * SECOND,
    }
}

/// The Internets of both families, with 10 ms and more each way and 2 % of everything lost, and a member on them.
fn stage(seed: u64) -> (World, [SegmentId; 2], HostId) {
    let mut world = World::new(Seed::or(seed));
    let internets = [world.internet(), world.internet_of_ipv6()];
    internets.into_iter().for_each(|internet| world.topology.set_conditions(internet, Conditions::WAN.losing(2)));
    let public = world.laptop(&internets);
    // As whoever wants to be reached from everywhere does.
    world.host_mut(public).config.tls = true;
    (world, internets, public)
}

/// A home of this kind that knows `contact`.
fn home(world: &mut World, internets: [SegmentId; 2], kind: &Kind, contact: HostId) -> HostId {
    let boxes = internets.into_iter().zip(kind.boxes());
    let lans: Vec<_> = boxes.filter_map(|(internet, nat)| Some(world.home_behind(nat?, internet).0)).collect();
    let host = world.laptop(&lans);
    world.introduce(host, &[contact]);
    host
}

/// A public member and two homes that know it, all started at once.
fn two_homes(seed: u64, kinds: [&Kind; 2]) -> (World, [HostId; 2]) {
    let (mut world, internets, public) = stage(seed);
    let homes = kinds.map(|kind| home(&mut world, internets, kind, public));
    world.start(public);
    homes.into_iter().for_each(|home| world.start(home));
    (world, homes)
}

/// How `from` reaches `to` now: `direct`, `relayed` or something worse.
fn path(world: &mut World, from: HostId, to: HostId) -> String {
    let wanted = world.host(to).peer.to_string();
    let peers = world.peers(from);
    peers.into_iter().find(|peer| peer.peer == wanted).map_or_else(|| "unknown".to_owned(), |peer| peer.path)
}

/// What `from` is told of its path to `to`.
fn why(world: &mut World, from: HostId, to: HostId) -> WhyInfo {
    let peer = world.host(to).peer.to_string();
    let Reply::Why(info) = world.ask(from, Command::Why { peer }) else { panic!("another reply") };
    *info
}

/// Which reasons are true of a pair.
fn reasons(way: Way, without_udp: bool, without_family: bool) -> &'static [PathReason] {
    match way {
        // Both are true, and each side knows one of them.
        Way::Relayed if without_udp && without_family => {
            &[PathReason::RelayedUdpBlocked, PathReason::DirectStream, PathReason::RelayedNoCandidates]
        }
        // Who can be dialled may have been, before the relay knew it.
        Way::Relayed if without_udp => &[PathReason::RelayedUdpBlocked, PathReason::DirectStream],
        // A port may have been foreseen or guessed before the mere knock came through.
        Way::Direct => &[PathReason::Direct, PathReason::DirectPredicted, PathReason::DirectGuessed],
        Way::Predicted => &[PathReason::DirectPredicted],
        Way::Birthday => &[PathReason::DirectGuessed],
        Way::Relayed => {
            &[PathReason::RelayedBothRandom, PathReason::RelayedRandomSequential, PathReason::RelayedNoCandidates]
        }
    }
}

/// The pairs of row `row`, each once.
fn hold_against_the_oracle(row: usize) {
    let kind = &KINDS[row];
    let name = kind.name;
    let mut times = Vec::new();
    let mut ways: BTreeMap<Way, Vec<Duration>> = BTreeMap::new();
    for (column, other_kind) in KINDS.iter().enumerate().skip(row) {
        let other = other_kind.name;
        let way = best_way(kind, other_kind);
        let without_udp = kind.nat.blocks_udp || other_kind.nat.blocks_udp;
        let best: &[&str] = match way {
            Way::Direct | Way::Predicted | Way::Birthday => &["direct"],
            Way::Relayed if without_udp => &["relayed", "stream"],
            Way::Relayed => &["relayed"],
        };
        let without_family = kind.boxes().iter().zip(other_kind.boxes()).all(|(a, b)| a.is_none() || b.is_none());
        let reasons = reasons(way, without_udp, without_family);
        for seed in 0..SEEDS {
            let what = format!("{name} with {other}, seed {seed}");
            let number = 20_000 + (row * 100 + column) as u64 * 100 + seed;
            let (mut world, [a, b]) = two_homes(number, [kind, other_kind]);
            let took = world.first_answer(a, b, FIRST_PING);
            times.push(took.unwrap_or_else(|| panic!("{what}: no ping is answered; drops: {}", world.drops())));
            let is_best = |world: &mut World, from, to| best.contains(&path(world, from, to).as_str());
            let found = world.wait_for(BEST_PATH, |world| is_best(world, a, b) && is_best(world, b, a));
            let paths = [path(&mut world, a, b), path(&mut world, b, a)];
            assert!(found.is_some(), "{what}: {paths:?}, not {best:?}; drops: {}", world.drops());
            ways.entry(way).or_default().push(world.now());
            // It stays, and everybody is there.
            let ping = world.ping(a, b, 100 * MS, 3 * SECOND);
            world.run_for(4 * SECOND);
            let conversation = world.conversation(ping);
            assert!(conversation.answered * 10 >= conversation.sent * 7, "{what}: {conversation:?}");
            if way == Way::Relayed {
                // If what both say of their NATs was lost the first times, they say it again when they knock again.
                let told = |world: &mut World, from, to| reasons.contains(&why(world, from, to).reason);
                world.wait_for(AGREED, |world| told(world, a, b) && told(world, b, a));
            }
            for (from, to) in [(a, b), (b, a)] {
                let told = why(&mut world, from, to);
                assert!(reasons.contains(&told.reason), "{what}: {way:?}, but {told:?}");
            }
        }
    }
    for (way, mut times) in ways {
        times.sort_unstable();
        let median = times[times.len() / 2];
        assert!(median <= at_the_median(way), "{name}: {way:?} after {median:?}");
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] <= 2 * SECOND, "{name}: the median first ping took {:?}", times[times.len() / 2]);
}

#[test]
fn a_home_behind_a_carriers_box_is_met_like_one_behind_the_harder_of_both() {
    for (row, outer) in [NatKind::CARRIER, NatKind::CARRIER_SYMMETRIC, NatKind::SYMMETRIC_RANDOM].iter().enumerate() {
        for (column, other) in ["port-restricted", "careless-linux"].map(kind).into_iter().enumerate() {
            let way = direct_path_possible(&NatKind::PORT_RESTRICTED.behind(*outer), &other.nat);
            let mut times = Vec::new();
            for seed in 0..SEEDS {
                let number = 40_000 + (row * 100 + column) as u64 * 100 + seed;
                let (mut world, internets, public) = stage(number);
                let (access, _) = world.home_behind(*outer, internets[0]);
                let (lan, _) = world.home_behind(NatKind::PORT_RESTRICTED, access);
                let (a, b) = (world.laptop(&[lan]), home(&mut world, internets, other, public));
                world.introduce(a, &[public]);
                [public, a, b].into_iter().for_each(|host| world.start(host));
                // Only who is used is hunted for.
                world.first_answer(a, b, FIRST_PING).expect("an answer");
                let found =
                    world.wait_for(BEST_PATH, |world| path(world, a, b) == "direct" && path(world, b, a) == "direct");
                assert!(found.is_some(), "box {row} with {column}, seed {seed}; drops: {}", world.drops());
                times.push(world.now());
            }
            times.sort_unstable();
            assert!(times[times.len() / 2] <= at_the_median(way), "box {row} with {column}: {times:?}");
            // One try is enough: the next is a minute later.
            let late = times.iter().filter(|time| **time > 20 * SECOND).count();
            assert!(late <= 1, "box {row} with {column}: {times:?}");
        }
    }
}

/// Who relays from `from` to `to`, by name.
fn relay(world: &mut World, from: HostId, to: HostId) -> Option<String> {
    let wanted = world.host(to).peer.to_string();
    world.peers(from).into_iter().find(|peer| peer.peer == wanted)?.via
}

#[test]
fn when_a_relay_dies_its_pairs_go_on_by_another_within_three_seconds() {
    for seed in 0..SEEDS {
        let mut world = World::new(Seed::or(30_000 + seed));
        let internet = world.internet();
        let publics = world.laptops(3, internet);
        let homes = [(); 2].map(|()| {
            let (lan, _) = world.home_behind(NatKind::SYMMETRIC_RANDOM, internet);
            let host = world.laptops(1, lan)[0];
            world.introduce(host, &publics[..1]);
            host
        });
        for newcomer in &publics[1..] {
            world.introduce(*newcomer, &publics[..1]);
        }
        for host in publics.iter().chain(&homes) {
            world.start(*host);
        }
        world.first_answer(homes[0], homes[1], FIRST_PING).expect("an answer");
        world.run_for(10 * SECOND);
        let ping = world.ping(homes[0], homes[1], 100 * MS, 20 * SECOND);
        world.run_for(5 * SECOND);
        let first = relay(&mut world, homes[0], homes[1]).expect("a relay");
        let dying =
            publics.iter().copied().find(|host| world.host(*host).name.to_string() == first).expect("it is known");
        world.stop(dying, false);
        world.run_for(20 * SECOND);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= 3 * SECOND, "seed {seed}: {conversation:?}");
        assert_ne!(relay(&mut world, homes[0], homes[1]), Some(first));
    }
}

macro_rules! rows {
    ($($test:ident = $row:literal,)+) => { $(#[test] fn $test() { hold_against_the_oracle($row); })+ };
}

rows! {
    a_public_host_with_everybody = 0,
    a_firewall_with_everybody = 1,
    a_full_cone_with_everybody = 2,
    an_address_restricted_box_with_everybody = 3,
    a_port_restricted_box_with_everybody = 4,
    a_box_that_does_not_preserve_ports_with_everybody = 5,
    a_careless_linux_router_with_everybody = 6,
    a_symmetric_box_of_random_ports_with_everybody = 7,
    a_symmetric_box_of_sequential_ports_with_everybody = 8,
    a_symmetric_box_with_an_open_filter_with_everybody = 9,
    a_carrier_with_everybody = 10,
    a_symmetric_carrier_with_everybody = 11,
    ipv6_alone_with_everybody = 12,
    both_families_with_everybody = 13,
    both_families_and_a_symmetric_box_with_everybody = 14,
    a_box_that_maps_ports_with_its_like_and_those_without_udp = 15,
    a_network_without_udp_with_its_like = 16,
    a_network_with_the_web_only_with_its_like = 17,
}
