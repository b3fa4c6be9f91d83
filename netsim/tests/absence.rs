//! Who was away: contacts that sleep, afternoons without a network, nights. Without mDNS nobody is told of anybody.

use std::time::Duration;

use netsim::{Seed, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

// Who has been away for more than half an hour is tried every ten to twelve and a half minutes.

#[test]
fn a_newcomer_waits_for_its_only_contact() {
    for (seed, asleep) in [(1, MINUTE), (2, 20 * MINUTE), (3, 3 * HOUR)] {
        let mut world = World::new(Seed::or(4000 + seed));
        let internet = world.internet();
        let hosts = world.laptops(2, internet);
        world.introduce(hosts[1], &hosts[..1]);
        world.start(hosts[1]);
        world.run_for(asleep);
        world.start(hosts[0]);
        world.settle_within(13 * MINUTE);
    }
}

#[test]
fn an_afternoon_apart_is_bridged_without_mdns() {
    for (seed, apart) in [(1, 30 * MINUTE), (2, 5 * HOUR), (3, 30 * HOUR)] {
        let mut world = World::new(Seed::or(4100 + seed));
        let internet = world.internet();
        let hosts = world.laptops(4, internet);
        for host in &hosts[1..] {
            world.introduce(*host, &hosts[..1]);
        }
        for host in &hosts {
            world.start(*host);
        }
        world.settle_within(30 * SECOND);
        world.partition(internet, &[&hosts[..2], &hosts[2..]]);
        world.run_for(apart);
        world.partition(internet, &[]);
        world.settle_within(13 * MINUTE);
    }
}

#[test]
fn a_laptop_whose_line_was_down_for_hours_is_back_at_once() {
    for (seed, away) in [(1, HOUR), (2, 5 * HOUR), (3, 60 * HOUR)] {
        let mut world = World::new(Seed::or(4200 + seed));
        let internet = world.internet();
        let hosts = world.laptops(4, internet);
        for host in &hosts[1..] {
            world.introduce(*host, &hosts[..1]);
        }
        for host in &hosts {
            world.start(*host);
        }
        world.settle_within(30 * SECOND);
        world.plug(hosts[3], false);
        world.run_for(away);
        world.plug(hosts[3], true);
        world.settle_within(5 * SECOND);
    }
}

#[test]
fn a_laptop_that_was_off_for_a_night_finds_whoever_is_still_where_it_was() {
    let mut world = World::new(Seed::or(4300));
    let internet = world.internet();
    let hosts = world.laptops(4, internet);
    for host in &hosts[1..] {
        world.introduce(*host, &hosts[..1]);
    }
    for host in &hosts {
        world.start(*host);
    }
    world.settle_within(30 * SECOND);
    world.run_for(MINUTE);
    world.stop(hosts[3], true);
    world.run_for(HOUR);
    // The one that invited everybody is gone for ever.
    world.stop(hosts[0], false);
    world.run_for(14 * HOUR);
    world.start(hosts[3]);
    world.settle_within(5 * SECOND);
}

#[test]
fn a_lid_that_was_closed_is_opened_and_everybody_is_back_within_three_seconds() {
    for (seed, asleep) in [(1, 20 * SECOND), (2, 2 * MINUTE), (3, HOUR), (4, 9 * HOUR), (5, 60 * HOUR)] {
        let mut world = World::new(Seed::or(4400 + seed));
        let (_, hosts) = world.lan(3);
        world.settle_within(3 * SECOND);
        world.run_for(10 * SECOND);
        world.fall_asleep(hosts[0]);
        world.run_for(asleep);
        world.wake_up(hosts[0]);
        let took = world.first_answer(hosts[0], hosts[1], 10 * SECOND);
        assert!(took.is_some_and(|took| took <= 3 * SECOND), "after {asleep:?} the first answer took {took:?}");
        let took = world.first_answer(hosts[2], hosts[0], 10 * SECOND);
        assert!(took.is_some_and(|took| took <= 3 * SECOND), "after {asleep:?} the first answer took {took:?}");
        // Its record is dated rightly again, and stays so.
        world.run_for(5 * HOUR);
        world.settle_within(SECOND);
    }
}

#[test]
fn clocks_that_differ_by_three_quarters_of_an_hour_harm_nobody() {
    let mut world = World::new(Seed::or(4500));
    let lan = world.switch();
    let hosts = world.laptops(3, lan);
    world.set_clock(hosts[0], 45 * 60);
    world.set_clock(hosts[1], -10 * 60);
    for host in &hosts {
        world.start(*host);
    }
    world.settle_within(3 * SECOND);
    let pings = world.ping_all(&hosts, SECOND, 8 * HOUR);
    world.run_for(8 * HOUR + 15 * SECOND);
    for ping in pings {
        let conversation = world.conversation(ping);
        assert_eq!(conversation.answered, conversation.sent);
    }
}

#[test]
fn a_clock_that_was_wrong_and_is_set_right_lets_its_laptop_in() {
    for (seed, ahead) in [(1, 12 * 3600), (2, -12 * 3600)] {
        let mut world = World::new(Seed::or(4600 + seed));
        let lan = world.switch();
        let hosts = world.laptops(3, lan);
        world.set_clock(hosts[0], ahead);
        for host in &hosts {
            world.start(*host);
        }
        world.run_for(MINUTE);
        assert!(!netsim::oracle::faults(&world).is_empty(), "a clock that is half a day wrong should be noticed");
        world.set_clock(hosts[0], 0);
        world.settle_within(90 * SECOND);
    }
}
