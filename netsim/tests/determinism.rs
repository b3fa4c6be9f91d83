//! A run is a function of its seed.

use std::time::Duration;

use netsim::{Conditions, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// An eventful minute: bad cables, a partition, a death, a restart.
fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(Seed(seed));
    let (lan, laptops) = world.lan(4);
    world.topology.set_conditions(lan, Conditions::LAN.losing(5).doubling(3).jittering(10 * MS));
    world.ping_all(&laptops, 100 * MS, 60 * SECOND);
    world.run_for(10 * SECOND);
    world.partition(lan, &[&laptops[..2], &laptops[2..]]);
    world.run_for(10 * SECOND);
    world.partition(lan, &[]);
    world.stop(laptops[1], false);
    world.run_for(10 * SECOND);
    world.start(laptops[1]);
    world.run_for(130 * SECOND);
    (world.trace.digest(), world.trace.written())
}

#[test]
fn one_seed_gives_one_trace_byte_for_byte() {
    let first = run(1);
    assert!(first.1 > 1_000, "only {} events", first.1);
    assert_eq!(first, run(1));
}

#[test]
fn another_seed_gives_another_trace() {
    assert_ne!(run(1).0, run(2).0);
}
