//! Silence, sleep and roaming, in virtual time: who is silent is probed, who cannot be reached directly is reached by relay, and
//! whoever was away is back at once.

use std::time::Duration;

use netsim::{HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Two that share a LAN, and a third that is on another LAN with each.
fn two_ways(seed: u64) -> (World, [HostId; 2], SegmentId) {
    let mut world = World::new(Seed::or(seed));
    let [fast, left, right] = [(); 3].map(|()| world.switch());
    let pair = [(); 2].map(|()| world.laptops(1, fast)[0]);
    let relay = world.laptops(1, left)[0];
    world.topology.attach(relay, right);
    world.topology.attach(pair[0], left);
    world.topology.attach(pair[1], right);
    for host in [pair[0], pair[1], relay] {
        world.start(host);
    }
    world.settle_within(5 * SECOND);
    world.run_for(5 * SECOND);
    (world, pair, fast)
}

fn path(world: &mut World, from: HostId, to: HostId) -> String {
    let name = world.host(to).peer.to_string();
    world.peers(from).into_iter().find(|peer| peer.peer == name).map(|peer| peer.path).unwrap_or_default()
}

#[test]
fn who_is_silent_is_probed_after_a_second_relayed_within_three_and_probed_for_ever() {
    for seed in 0..20 {
        let (mut world, [a, b], fast) = two_ways(60_000 + seed);
        let talk = world.ping(a, b, 50 * MS, 20 * MINUTE);
        // At any phase of the looks at a session.
        world.run_for(5 * SECOND + 50 * MS * seed as u32);
        assert_eq!(path(&mut world, a, b), "direct");
        world.partition(fast, &[&[a], &[b]]);
        world.run_for(MINUTE);
        let silence = world.conversation(talk).longest_silence;
        assert!(silence <= 3 * SECOND, "seed {seed}: silent for {silence:?}");
        assert_eq!(path(&mut world, a, b), "relayed", "seed {seed}");
        // Ten minutes of silence of the direct way later it is still being tried, and taken as soon as it is there.
        world.run_for(10 * MINUTE);
        world.partition(fast, &[]);
        let back = world.wait_for(6 * MINUTE, |world| path(world, a, b) == "direct" && path(world, b, a) == "direct");
        assert!(back.is_some(), "seed {seed}: never direct again");
        let silence = world.conversation(talk).longest_silence;
        assert!(silence <= 3 * SECOND, "seed {seed}: silent for {silence:?} on the way back");
    }
}

/// A home behind a box that forgets soon, and somebody public.
fn home_and_public(seed: u64) -> (World, [HostId; 2]) {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let (lan, _) = world.home_behind(NatKind::PORT_RESTRICTED, internet);
    let home = world.laptops(1, lan)[0];
    world.introduce(home, &[public]);
    world.start(public);
    world.start(home);
    world.settle_within(5 * SECOND);
    (world, [home, public])
}

#[test]
fn a_process_that_was_stopped_for_minutes_is_back_with_the_first_frame_within_two_seconds() {
    for (seed, stopped) in [(1, 5 * SECOND), (2, 40 * SECOND), (3, 5 * MINUTE), (4, 60 * MINUTE)] {
        for asker in [0, 1] {
            let mut world = World::new(Seed::or(60_200 + seed));
            let (_, hosts) = world.lan(3);
            world.settle_within(3 * SECOND);
            world.run_for(10 * SECOND);
            world.freeze(hosts[0]);
            world.run_for(stopped);
            world.thaw(hosts[0]);
            let took = world.first_answer(hosts[asker], hosts[1 - asker], 10 * SECOND);
            assert!(took.is_some_and(|took| took <= 2 * SECOND), "stopped for {stopped:?}, asked by {asker}: {took:?}");

            // Behind a NAT, which has forgotten it, it is itself that must ask.
            let (mut world, [home, public]) = home_and_public(60_300 + seed);
            world.freeze(home);
            world.run_for(stopped);
            world.thaw(home);
            let took = world.first_answer(home, public, 10 * SECOND);
            assert!(took.is_some_and(|took| took <= 2 * SECOND), "at home, stopped for {stopped:?}: {took:?}");
        }
    }
}
