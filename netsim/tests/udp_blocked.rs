//! Where no UDP passes, or passes no longer, or passes again: by what members speak then, and how soon.

use std::time::Duration;

use meshd::node::Reply;
use meshd::node::command::{Command, PathReason};
use netsim::link::Conditions;
use netsim::topology::BoxId;
use netsim::{HostId, NatKind, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const SEEDS: u64 = 5;

/// From the start, or from the end of UDP, to an answer by TCP: the founders' goal, and the second in which silence is no sign yet.
const CHOSEN: Duration = Duration::from_secs(3);
const CHOSEN_AGAIN: Duration = Duration::from_secs(6);

/// From the moment in which UDP passes to the path that uses it, and to the end of the stream.
const LEFT: Duration = Duration::from_secs(7);
const HUNG_UP: Duration = Duration::from_secs(12);

/// Public members that take TLS, and homes that know the first of them, with 2 % of everything lost. All started at once.
fn stage(seed: u64, publics: usize, homes: &[NatKind]) -> (World, Vec<HostId>, Vec<(HostId, BoxId)>) {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    world.topology.set_conditions(internet, Conditions::WAN.losing(2));
    let publics = world.laptops(publics, internet);
    for public in &publics {
        world.host_mut(*public).config.tls = true;
    }
    for public in &publics[1..] {
        world.introduce(*public, &publics[..1]);
    }
    let mut members = Vec::new();
    for kind in homes {
        let (lan, nat) = world.home_behind(*kind, internet);
        let host = world.laptops(1, lan)[0];
        world.introduce(host, &publics[..1]);
        members.push((host, nat));
    }
    let homes = members;
    for host in publics.iter().copied().chain(homes.iter().map(|(host, _)| *host)) {
        world.start(host);
    }
    (world, publics, homes)
}

fn path(world: &mut World, from: HostId, to: HostId) -> String {
    let wanted = world.host(to).peer.to_string();
    let peers = world.peers(from);
    peers.into_iter().find(|peer| peer.peer == wanted).map_or_else(|| "unknown".to_owned(), |peer| peer.path)
}

fn reason(world: &mut World, from: HostId, to: HostId) -> PathReason {
    let peer = world.host(to).peer.to_string();
    let Reply::Why(info) = world.ask(from, Command::Why { peer }) else { panic!("another reply") };
    info.reason
}

#[test]
fn a_stream_is_chosen_within_three_seconds_and_only_those_are_kept_that_answered_at_once() {
    for (nth, kind) in [NatKind::UDP_BLOCKED, NatKind::ONLY_443].into_iter().enumerate() {
        for seed in 0..SEEDS {
            let (mut world, publics, homes) =
                stage(60_000 + 100 * nth as u64 + seed, 3, &[kind, NatKind::PORT_RESTRICTED]);
            let [(blocked, _), (free, _)] = homes[..] else { panic!("two homes") };
            world.first_answer(blocked, publics[0], CHOSEN).expect("an answer by a stream");
            world.first_answer(blocked, free, CHOSEN).expect("an answer through it");
            world.run_for(20 * SECOND);
            let streams: usize = publics.iter().map(|public| world.streams_of(*public)).sum();
            // It dials all three together; who answers too late is hung up on, and nobody is dialled to whom they lead.
            let ours = world.streams_of(blocked);
            assert!((1..=3).contains(&ours), "seed {seed}: {ours}");
            assert_eq!((streams, world.streams_of(free)), (ours, 0), "seed {seed}");
            for public in publics {
                let path = path(&mut world, blocked, public);
                assert!(["stream", "relayed"].contains(&path.as_str()), "seed {seed}: {path}");
            }
            assert_eq!(reason(&mut world, free, blocked), PathReason::RelayedUdpBlocked, "seed {seed}");
        }
    }
}

#[test]
fn when_udp_passes_again_the_stream_is_left_and_hung_up() {
    for seed in 0..SEEDS {
        let (mut world, publics, homes) = stage(61_000 + seed, 1, &[NatKind::UDP_BLOCKED, NatKind::PORT_RESTRICTED]);
        let [(blocked, nat), (free, _)] = homes[..] else { panic!("two homes") };
        world.first_answer(blocked, free, CHOSEN).expect("an answer");
        world.run_for(30 * SECOND);
        let (ping, end) = (world.ping(blocked, free, 100 * MS, 40 * SECOND), world.now() + 40 * SECOND);
        world.topology.nat_mut(nat).become_kind(NatKind::PORT_RESTRICTED);
        let direct =
            |world: &mut World, from, to| path(world, from, to) == "direct" && path(world, to, from) == "direct";
        let left = world.wait_for(LEFT, |world| direct(world, blocked, publics[0]));
        assert!(left.is_some(), "seed {seed}: {}", path(&mut world, blocked, publics[0]));
        let hung_up = world.wait_for(HUNG_UP, |world| world.streams_of(blocked) == 0);
        assert!(hung_up.is_some(), "seed {seed}");
        let met = world.wait_for(2 * LEFT, |world| direct(world, blocked, free));
        assert!(met.is_some(), "seed {seed}: {}", path(&mut world, blocked, free));
        world.run_until(end);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= SECOND, "seed {seed}: {conversation:?}");
    }
}

#[test]
fn when_udp_ends_in_the_midst_a_stream_takes_over() {
    for seed in 0..SEEDS {
        let (mut world, _, homes) = stage(62_000 + seed, 2, &[NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED]);
        let [(ada, nat), (bob, _)] = homes[..] else { panic!("two homes") };
        world.first_answer(ada, bob, CHOSEN).expect("an answer");
        world.run_for(20 * SECOND);
        let ping = world.ping(ada, bob, 100 * MS, 40 * SECOND);
        world.run_for(5 * SECOND);
        world.topology.nat_mut(nat).become_kind(NatKind::UDP_BLOCKED);
        world.run_for(36 * SECOND);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= CHOSEN_AGAIN, "seed {seed}: {conversation:?}");
        assert_eq!(path(&mut world, ada, bob), "relayed", "seed {seed}");
    }
}

#[test]
fn when_the_relay_dies_another_is_dialled() {
    for seed in 0..SEEDS {
        let (mut world, publics, homes) = stage(63_000 + seed, 3, &[NatKind::UDP_BLOCKED, NatKind::ONLY_443]);
        let [(ada, _), (bob, _)] = homes[..] else { panic!("two homes") };
        world.first_answer(ada, bob, 2 * CHOSEN).expect("an answer");
        world.run_for(20 * SECOND);
        let ping = world.ping(ada, bob, 100 * MS, 40 * SECOND);
        world.run_for(5 * SECOND);
        world.stop(publics[0], false);
        world.run_for(36 * SECOND);
        let conversation = world.conversation(ping);
        assert!(conversation.longest_silence <= CHOSEN, "seed {seed}: {conversation:?}");
        assert_eq!(path(&mut world, ada, bob), "relayed", "seed {seed}");
    }
}

#[test]
fn who_has_udp_dials_nobody_for_a_member_that_is_off() {
    for seed in 0..SEEDS {
        let (mut world, publics, homes) =
            stage(64_000 + seed, 2, &[NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_RANDOM]);
        world.run_for(10 * SECOND);
        world.stop(homes[1].0, false);
        world.run_for(300 * SECOND);
        let all = publics.into_iter().chain(homes.into_iter().map(|(host, _)| host));
        let streams: Vec<_> = all.map(|host| world.streams_of(host)).collect();
        assert_eq!(streams, [0; 4], "seed {seed}");
    }
}
