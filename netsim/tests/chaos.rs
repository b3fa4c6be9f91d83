//! What goes wrong with cables: partitions, loss, reordering, duplicates, queues, start and stop at random.

use std::time::Duration;

use netsim::oracle;
use netsim::{Conditions, HostId, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The longest silence of any conversation that is meant to be heard.
fn worst_silence(world: &mut World, conversations: &[usize]) -> (Duration, String) {
    let worst = conversations.iter().map(|&index| {
        let conversation = world.conversation(index);
        let text = format!(
            "{:?} -> {:?} from {:?} on ({} of {} answered)",
            conversation.from, conversation.to, conversation.silent_since, conversation.answered, conversation.sent
        );
        (conversation.longest_silence, text)
    });
    worst.max().expect("somebody talks")
}

#[test]
fn a_partition_hurts_nobody_on_one_side_and_heals() {
    for (seed, apart) in [(1, 5 * SECOND), (2, MINUTE), (3, 10 * MINUTE)] {
        let mut world = World::new(Seed::or(1000 + seed));
        let (lan, laptops) = world.lan(6);
        world.settle_within(3 * SECOND);
        let (left, right) = laptops.split_at(3);
        let inside: Vec<_> =
            [world.ping_all(left, 100 * MS, apart + 3 * MINUTE), world.ping_all(right, 100 * MS, apart + 3 * MINUTE)]
                .concat();
        world.run_for(10 * SECOND);
        world.partition(lan, &[left, right]);
        world.run_for(apart);
        assert_eq!(oracle::faults(&world), Vec::<String>::new());
        world.partition(lan, &[]);
        world.settle_within(90 * SECOND);
        world.run_for(2 * MINUTE);
        let (silence, who) = worst_silence(&mut world, &inside);
        assert!(silence < 100 * MS, "{who} was silent for {silence:?}");
    }
}

#[test]
fn no_session_is_lost_in_an_hour_of_loss_reordering_and_doubling() {
    let mut world = World::new(Seed::or(1100));
    let (lan, laptops) = world.lan(4);
    let bad = Conditions::LAN.losing(5).doubling(2).jittering(30 * MS);
    world.topology.set_conditions(lan, bad);
    world.settle_within(30 * SECOND);
    let pings = world.ping_all(&laptops, 500 * MS, HOUR);
    world.run_for(HOUR);
    // A ping and its answer are lost one time in ten; ten seconds are twenty pings in a row.
    let (silence, who) = worst_silence(&mut world, &pings);
    assert!(silence < 10 * SECOND, "{who} was silent for {silence:?}; drops: {}", world.drops());
    for &index in &pings {
        let conversation = world.conversation(index);
        assert_eq!(conversation.doubled, 0, "a doubled datagram became two frames");
        let share = f64::from(conversation.answered) / f64::from(conversation.sent);
        assert!(share > 0.87, "only {share:.2} of the pings were answered");
    }
}

#[test]
fn a_very_bad_link_is_slow_and_not_dead() {
    let mut world = World::new(Seed::or(1150));
    let (lan, laptops) = world.lan(2);
    world.topology.set_conditions(lan, Conditions::LAN.losing(30).jittering(100 * MS));
    world.settle_within(30 * SECOND);
    let pings = world.ping_all(&laptops, 500 * MS, HOUR);
    world.run_for(HOUR);
    let (silence, who) = worst_silence(&mut world, &pings);
    assert!(silence < 25 * SECOND, "{who} was silent for {silence:?}; drops: {}", world.drops());
}

#[test]
fn a_thin_line_carries_what_it_can_and_keeps_its_session() {
    let mut world = World::new(Seed::or(1160));
    let thin =
        world.topology.add_segment(true, Conditions { rate: Some(256_000), queue: 16 * 1024, ..Conditions::WAN });
    let laptops = world.laptops(2, thin);
    for laptop in &laptops {
        world.start(*laptop);
    }
    world.settle_within(5 * SECOND);
    let until = world.now() + 10 * MINUTE;
    // Four times what the line carries.
    let bulk = netsim::station::Conversation::new(laptops[0], laptops[1], 10 * MS, until, 1200);
    let bulk = world.converse(bulk, Duration::ZERO);
    world.run_for(10 * MINUTE);
    let conversation = world.conversation(bulk);
    assert!(conversation.longest_silence < 5 * SECOND, "silent for {:?}", conversation.longest_silence);
}

#[test]
fn whatever_comes_and_goes_at_random_is_whole_again_when_left_alone() {
    for seed in 0..10 {
        let mut world = World::new(Seed::or(1200 + seed));
        let mut chance = Seed::or(1200 + seed).chance("who comes and goes");
        let (lan, laptops) = world.lan(6);
        for _ in 0..60 {
            let host = laptops[chance.below(6) as usize];
            match chance.below(6) {
                0 | 1 if world.is_running(host) => world.stop(host, chance.below(2) == 0),
                2 if world.is_running(host) => {
                    world.plug(host, false);
                    world.run_for(chance.between(MS, 20 * SECOND));
                    world.plug(host, true);
                }
                3 => {
                    let some: Vec<HostId> = laptops.iter().copied().filter(|_| chance.below(2) == 0).collect();
                    world.partition(lan, &[&some]);
                    world.run_for(chance.between(MS, 40 * SECOND));
                    world.partition(lan, &[]);
                }
                _ if !world.is_running(host) => world.start(host),
                _ => (),
            }
            world.run_for(chance.between(MS, 10 * SECOND));
        }
        for &host in &laptops {
            if !world.is_running(host) {
                world.start(host);
            }
        }
        world.settle_within(90 * SECOND);
        let pings = world.ping_all(&laptops, 200 * MS, 5 * MINUTE);
        world.run_for(5 * MINUTE);
        let (silence, who) = worst_silence(&mut world, &pings);
        assert!(silence < SECOND, "seed {seed}: {who} was silent for {silence:?}");
    }
}
