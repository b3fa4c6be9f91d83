//! Sessions that stay secret when X25519 falls: agreed on by themselves, renewed, and lost and found again.

use std::time::Duration;

use netsim::link::Conditions;
use netsim::{HostId, Seed, World};

const SECOND: Duration = Duration::from_secs(1);

/// From the first session to the one that has it mixed in: it settles for two seconds, and is looked at every five.
const AGREED: Duration = Duration::from_secs(8);

fn is_safe(world: &mut World, from: HostId, to: HostId) -> bool {
    let name = world.host(to).peer.to_string();
    world.peers(from).iter().any(|peer| peer.peer == name && peer.post_quantum)
}

fn all_safe(world: &mut World, hosts: &[HostId]) -> bool {
    let pairs = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (*from, *to)));
    let pairs: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
    pairs.into_iter().all(|(from, to)| is_safe(world, from, to))
}

#[test]
fn every_session_has_it_within_seconds_and_costs_no_frame() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(80_000 + seed));
        world.post_quantum = true;
        let (_, hosts) = world.lan(4);
        world.settle_within(3 * SECOND);
        let pings = world.ping_all(&hosts, SECOND / 20, 30 * SECOND);
        let took = world.wait_for(AGREED, |world| all_safe(world, &hosts));
        assert!(took.is_some(), "seed {seed}");
        world.run_for(31 * SECOND);
        for ping in pings {
            let conversation = world.conversation(ping);
            assert_eq!(conversation.answered, conversation.sent, "seed {seed}");
        }
        // Through rekeys and another agreement.
        for _ in 0..if seed == 0 { 5 } else { 0 } {
            world.run_for(6 * 3600 * SECOND);
            assert!(all_safe(&mut world, &hosts), "seed {seed}: {:?}", world.now());
        }
    }
}

#[test]
fn a_third_of_all_datagrams_lost_delays_it_and_no_more() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(80_100 + seed));
        world.post_quantum = true;
        let (lan, hosts) = world.lan(3);
        world.topology.set_conditions(lan, Conditions::LAN.losing(33));
        world.settle_within(30 * SECOND);
        let took = world.wait_for(120 * SECOND, |world| all_safe(world, &hosts));
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn who_does_not_want_it_speaks_with_everybody_all_the_same() {
    let mut world = World::new(Seed::or(80_200));
    world.post_quantum = true;
    let lan = world.switch();
    let hosts = world.laptops(3, lan);
    world.host_mut(hosts[0]).config.post_quantum = false;
    for host in &hosts {
        world.start(*host);
    }
    world.settle_within(3 * SECOND);
    world.run_for(60 * SECOND);
    for (from, to, safe) in [(0, 1, false), (1, 0, false), (1, 2, true), (2, 1, true)] {
        assert_eq!(is_safe(&mut world, hosts[from], hosts[to]), safe, "{from} to {to}");
    }
    let before = world.host(hosts[0]).costs.bytes;
    world.run_for(600 * SECOND);
    let after = world.host(hosts[0]).costs.bytes;
    assert!(after - before < 2 * 40 * 600, "{} bytes: it is asked again and again", after - before);
}

#[test]
fn who_was_started_anew_has_forgotten_it_and_agrees_again() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(80_300 + seed));
        world.post_quantum = true;
        let (_, hosts) = world.lan(3);
        world.settle_within(3 * SECOND);
        world.run_for(10 * SECOND);
        world.stop(hosts[1], false);
        world.run_for(3 * SECOND);
        world.start(hosts[1]);
        world.settle_within(5 * SECOND);
        let took = world.wait_for(20 * SECOND, |world| all_safe(world, &hosts));
        assert!(took.is_some(), "seed {seed}");
    }
}
