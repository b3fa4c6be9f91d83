//! How long a datagram each path carries, in virtual time: it is found, used, and noticed when it changes.

use std::time::Duration;

use meshd::config::DEFAULT_MTU;
use netsim::link::Conditions;
use netsim::station::Conversation;
use netsim::{HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What full frames take: header and payload.
const FULL: usize = DEFAULT_MTU + 14;

/// The longest frame that a path of 1500 bytes carries whole: 28 bytes of IP and UDP, 40 of ours.
const WHOLE: usize = 1500 - 28 - 40;

/// A black hole is noticed five seconds after the last proof at the latest, and a second for looking; then eight pairs of probes, a fifth of a second apart.
const NOTICED: Duration = Duration::from_secs(9);

/// If nothing long passes any more, sixteen more are sent before a relay takes over.
const LEFT: Duration = Duration::from_secs(12);

fn with_mtu(conditions: Conditions, mtu: usize) -> Conditions {
    Conditions { mtu, ..conditions }
}

/// Frames of `len` bytes both ways from now on, every 20 ms.
fn talk(world: &mut World, [a, b]: [HostId; 2], len: usize, span: Duration) -> usize {
    let until = world.now() + span;
    world.converse(Conversation::new(a, b, 20 * MS, until, len), Duration::ZERO)
}

fn path_mtu(world: &mut World, from: HostId, to: HostId) -> Option<usize> {
    let name = world.host(to).peer.to_string();
    world.peers(from).into_iter().find(|peer| peer.peer == name).and_then(|peer| peer.path_mtu)
}

fn via(world: &mut World, from: HostId, to: HostId) -> Option<String> {
    let name = world.host(to).peer.to_string();
    world.peers(from).into_iter().find(|peer| peer.peer == name).and_then(|peer| peer.via)
}

fn assert_lossless(world: &mut World, conversation: usize) {
    world.run_for(SECOND);
    let drops = world.drops();
    let conversation = world.conversation(conversation);
    assert!(conversation.sent > 0);
    assert_eq!(conversation.answered, conversation.sent, "silent for {:?}; {drops}", conversation.longest_silence);
}

/// Two on a LAN whose interfaces carry `mtu`, with a conversation of full frames that begins as soon as they know each other.
fn two_on_a_lan(seed: u64, mtu: usize) -> (World, [HostId; 2], SegmentId, usize) {
    let mut world = World::new(Seed::or(seed));
    world.searches_mtu = true;
    let (lan, laptops) = world.lan(2);
    world.topology.set_conditions(lan, with_mtu(Conditions::LAN, mtu));
    world.settle_within(3 * SECOND);
    let pair = [laptops[0], laptops[1]];
    let talk = talk(&mut world, pair, FULL, 20 * SECOND);
    (world, pair, lan, talk)
}

#[test]
fn what_a_path_carries_is_found_within_seconds_and_no_full_frame_is_lost_meanwhile() {
    for (mtu, found) in
        [(1280, 1260), (1399, 1260), (1400, 1400), (1420, 1420), (1450, 1450), (1492, 1492), (1500, 1500), (9000, 9000)]
    {
        let (mut world, [a, b], _, talk) = two_on_a_lan(50_000 + mtu as u64, mtu);
        let at_once = mtu == 1500 || mtu == 9000;
        let took = world.wait_for(10 * SECOND, |world| {
            [(a, b), (b, a)].into_iter().all(|(from, to)| path_mtu(world, from, to) == Some(found))
        });
        assert!(took.is_some_and(|took| took <= if at_once { 2 * SECOND } else { 6 * SECOND }), "{mtu}: {took:?}");
        world.run_for(20 * SECOND);
        assert_lossless(&mut world, talk);
        assert_eq!(path_mtu(&mut world, a, b), Some(found));
    }
}

#[test]
fn on_a_path_of_1500_bytes_only_what_exceeds_it_is_cut() {
    let (mut world, [a, b], ..) = two_on_a_lan(50_001, 1500);
    world.run_for(25 * SECOND);
    for (len, datagrams) in [(WHOLE, 1), (WHOLE + 1, 2)] {
        let before = world.datagrams(a, b);
        talk(&mut world, [a, b], len, 10 * SECOND);
        world.run_for(11 * SECOND);
        let sent = world.datagrams(a, b) - before;
        // Beside 500 frames: proofs of the path, and answers to the other's.
        assert!((datagrams * 500..datagrams * 500 + 25).contains(&sent), "{len}: {sent}");
    }
}

#[test]
fn jumbo_frames_go_whole_where_the_interfaces_carry_them() {
    let mut world = World::new(Seed::or(50_010));
    world.searches_mtu = true;
    let (lan, laptops) = (world.switch(), [(); 2]);
    world.topology.set_conditions(lan, with_mtu(Conditions::LAN, 9000));
    let laptops: Vec<_> = laptops.iter().flat_map(|()| world.laptops(1, lan)).collect();
    for laptop in &laptops {
        world.host_mut(*laptop).config.mtu = 9000;
        world.start(*laptop);
    }
    world.settle_within(3 * SECOND);
    world.run_for(5 * SECOND);
    let (a, b) = (laptops[0], laptops[1]);
    assert_eq!(path_mtu(&mut world, a, b), Some(9000));
    let before = world.datagrams(a, b);
    let long = talk(&mut world, [a, b], 9000 - 28 - 40, 10 * SECOND);
    world.run_for(10 * SECOND);
    assert_lossless(&mut world, long);
    let sent = world.datagrams(a, b) - before;
    assert!((500..520).contains(&sent), "{sent}");
}

/// A home whose LAN carries 1500 bytes, and somebody on an Internet that carries `mtu`: nobody's interface says so.
fn home_and_public(seed: u64, mtu: usize) -> (World, [HostId; 2], SegmentId) {
    let mut world = World::new(Seed::or(seed));
    world.searches_mtu = true;
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let (lan, _) = world.home_behind(NatKind::PORT_RESTRICTED, internet);
    let home = world.laptops(1, lan)[0];
    world.topology.set_conditions(internet, with_mtu(Conditions::WAN, mtu));
    // The public one's own interface is an ordinary one.
    world.introduce(home, &[public]);
    world.start(public);
    world.start(home);
    world.settle_within(5 * SECOND);
    (world, [home, public], internet)
}

#[test]
fn a_black_hole_in_the_middle_is_noticed_and_what_still_passes_is_used() {
    for seed in 0..5 {
        let (mut world, [home, public], internet) = home_and_public(50_020 + seed, 1500);
        // A full frame is cut in two, which fit any path.
        let talk = talk(&mut world, [home, public], WHOLE, 14 * MINUTE);
        world.run_for(10 * SECOND + 700 * MS * seed as u32);
        assert_eq!(path_mtu(&mut world, home, public), Some(1500));
        world.topology.set_conditions(internet, with_mtu(Conditions::WAN, 1400));
        world.run_for(MINUTE);
        assert_eq!(path_mtu(&mut world, home, public), Some(1400));
        let silence = world.conversation(talk).longest_silence;
        assert!((100 * MS..=NOTICED).contains(&silence), "{silence:?}");
        world.topology.set_conditions(internet, with_mtu(Conditions::WAN, 1500));
        world.run_for(11 * MINUTE);
        assert_eq!(path_mtu(&mut world, home, public), Some(1500), "and one day it is better again");
    }
}

/// Two that share a fast LAN, and another way: by a third that is on a LAN with each.
fn two_ways(seed: u64) -> (World, [HostId; 2], HostId, SegmentId) {
    let mut world = World::new(Seed::or(seed));
    world.searches_mtu = true;
    let [fast, left, right] = [(); 3].map(|()| world.switch());
    let pair = [(); 2].map(|()| world.laptops(1, fast)[0]);
    let relay = world.laptops(1, left)[0];
    world.topology.attach(relay, right);
    world.topology.attach(pair[0], left);
    world.topology.attach(pair[1], right);
    (world, pair, relay, fast)
}

#[test]
fn a_path_that_carries_small_probes_and_no_data_is_not_chosen() {
    for seed in 0..5 {
        let (mut world, [a, b], relay, fast) = two_ways(50_030 + seed);
        world.topology.set_conditions(fast, with_mtu(Conditions::LAN, 1000));
        for host in [a, b, relay] {
            world.start(host);
        }
        let name = world.host(relay).name.to_string();
        let found = world.wait_for(5 * SECOND, |world| via(world, a, b) == Some(name.clone()));
        assert!(found.is_some());
        let talk = talk(&mut world, [a, b], FULL, MINUTE);
        world.run_for(MINUTE);
        assert_lossless(&mut world, talk);
        assert_eq!((via(&mut world, a, b), via(&mut world, b, a)), (Some(name.clone()), Some(name)));
    }
}

#[test]
fn a_path_that_comes_to_carry_no_data_any_more_is_left() {
    for seed in 0..5 {
        let (mut world, [a, b], relay, fast) = two_ways(50_040 + seed);
        for host in [a, b, relay] {
            world.start(host);
        }
        world.settle_within(5 * SECOND);
        let full = talk(&mut world, [a, b], FULL, 5 * MINUTE);
        let small = talk(&mut world, [a, b], 60, 5 * MINUTE);
        world.run_for(10 * SECOND + 900 * MS * seed as u32);
        assert_eq!((via(&mut world, a, b), path_mtu(&mut world, a, b)), (None, Some(1500)));
        world.topology.set_conditions(fast, with_mtu(Conditions::LAN, 1000));
        world.run_for(MINUTE);
        let silences = [full, small].map(|index| world.conversation(index).longest_silence);
        assert!(silences[0] <= LEFT && silences[1] <= SECOND, "{silences:?}");
        assert!(via(&mut world, a, b).is_some() && path_mtu(&mut world, a, b) == Some(1500));
        world.topology.set_conditions(fast, Conditions::LAN);
        let again = world.wait_for(3 * MINUTE, |world| (via(world, a, b), path_mtu(world, a, b)) == (None, Some(1500)));
        assert!(again.is_some(), "it is good again");
    }
}

#[test]
fn a_relayed_path_is_measured_from_end_to_end() {
    for (narrow, found) in [(1500, 1500), (1420, 1420)] {
        let mut world = World::new(Seed::or(50_050 + narrow as u64));
        world.searches_mtu = true;
        let [left, right] = [(); 2].map(|()| world.switch());
        let (a, b, relay) = (world.laptops(1, left)[0], world.laptops(1, right)[0], world.laptops(1, left)[0]);
        world.topology.attach(relay, right);
        world.topology.set_conditions(right, with_mtu(Conditions::LAN, narrow));
        for host in [a, b, relay] {
            world.start(host);
        }
        let name = world.host(relay).name.to_string();
        let found_in = world.wait_for(5 * SECOND, |world| via(world, a, b) == Some(name.clone()));
        assert!(found_in.is_some());
        let talk = talk(&mut world, [a, b], FULL, 20 * SECOND);
        world.run_for(20 * SECOND);
        assert_lossless(&mut world, talk);
        assert_eq!(path_mtu(&mut world, a, b), Some(found), "nobody's interface says so");
    }
}
