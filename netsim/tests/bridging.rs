//! Foreign stations behind bridges, in virtual time: they speak with every member, move, age and are forgotten; and what a member
//! claims that may not, or too much, does no harm.

use std::time::Duration;

use meshd::identity::{Mac, Roles};
use meshd::node::{Command, Reply};
use meshd::switch::fdb::{AGING, MAX_STATIONS};
use meshd::wire::message::MAX_CLAIMED;
use meshd::wire::{Claim, DropReason, Message};
use netsim::network::UNIX_START;
use netsim::station::{MIN_FRAME, Said, Station};
use netsim::{Conditions, HostId, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A conversation that netsim does not keep count of.
const OURS: u32 = 1000;

const PRINTER: Mac = Mac([0x00, 0x1b, 0x78, 0, 0, 1]);

/// `bridges` laptops with the role, then `others` without, all on one LAN.
fn lan(seed: u64, bridges: usize, others: usize) -> (World, Vec<HostId>) {
    let mut world = World::new(Seed::or(seed));
    let segment = world.switch();
    let hosts = stage(&mut world, segment, bridges, others);
    world.settle_within(3 * SECOND);
    (world, hosts)
}

fn stage(world: &mut World, segment: SegmentId, bridges: usize, others: usize) -> Vec<HostId> {
    let hosts = world.laptops(bridges + others, segment);
    for host in &hosts[..bridges] {
        let ticket = world.home().invite(40, Roles::BRIDGE, 0, UNIX_START - 60);
        let (peer, name) = (world.host(*host).peer, world.host(*host).name.clone());
        world.host_mut(*host).config.chain = ticket.redeem(peer, &name, UNIX_START - 60);
    }
    hosts.iter().for_each(|host| world.start(*host));
    hosts
}

/// Puts a station that records what it hears behind a host's TAP.
fn put(world: &mut World, host: HostId, mac: Mac) {
    let mut station = Station::new(mac);
    station.records = true;
    world.host_mut(host).behind.push(station);
}

/// What a station behind `host` has heard since it was last asked.
fn heard(world: &mut World, host: HostId, mac: Mac) -> Vec<Said> {
    let behind = &mut world.host_mut(host).behind;
    let station = behind.iter_mut().find(|station| station.mac == mac).expect("it is there");
    station.heard.drain(..).filter_map(|(_, frame)| Said::read(&frame)).collect()
}

fn mac(world: &World, host: HostId) -> Mac {
    world.host(host).station.mac
}

/// A station behind `at` asks a member; whether the answer comes back within `limit`.
fn asks(world: &mut World, at: HostId, from: Mac, to: HostId, len: usize, limit: Duration) -> bool {
    heard(world, at, from);
    let frame = Said::Ask { conversation: OURS, sequence: 0 }.frame(from, mac(world, to), len);
    world.send_frame(at, &frame);
    world.run_for(limit);
    heard(world, at, from).contains(&Said::Answer { conversation: OURS, sequence: 0 })
}

/// A member asks a station; whether the answer comes back within `limit`.
fn is_asked(world: &mut World, from: HostId, to: Mac, len: usize, limit: Duration) -> bool {
    world.host_mut(from).station.records = true;
    world.host_mut(from).station.heard.clear();
    let frame = Said::Ask { conversation: OURS, sequence: 0 }.frame(mac(world, from), to, len);
    world.send_frame(from, &frame);
    world.run_for(limit);
    let answer = Some(Said::Answer { conversation: OURS, sequence: 0 });
    world.host(from).station.heard.iter().any(|(_, frame)| Said::read(frame) == answer)
}

/// Where a host thinks that a foreign station is, by the bridge's name.
fn place(world: &mut World, host: HostId, mac: Mac) -> Option<String> {
    stations(world, host).into_iter().find(|(at, _)| *at == mac.to_string()).map(|(_, name)| name)
}

/// Every foreign station that a host knows, with its bridge's name.
fn stations(world: &mut World, host: HostId) -> Vec<(String, String)> {
    let Reply::Stations { stations } = world.ask(host, Command::Stations) else { panic!("another reply") };
    let foreign = stations.into_iter().filter(|station| station.by == "bridge");
    foreign.map(|station| (station.mac, station.name)).collect()
}

fn dropped(world: &World, hosts: &[HostId], reason: DropReason) -> Vec<u64> {
    hosts.iter().map(|host| world.dropped(*host, reason)).collect()
}

/// `count` claims that say together that so many foreign stations are behind their sender.
fn claims(count: u32) -> Vec<Message> {
    let all: Vec<_> = (0..count)
        .map(|n| {
            let [_, b, c, d] = n.to_be_bytes();
            Mac([0x00, 0x1b, 0x79, b, c, d])
        })
        .collect();
    let claim =
        |part: &[Mac]| Claim { sequence: 1, first: part[0], last: part[part.len() - 1], stations: part.to_vec() };
    all.chunks(MAX_CLAIMED).map(|part| Message::Stations(claim(part))).collect()
}

#[test]
fn a_station_behind_a_bridge_speaks_with_every_member_from_its_first_frame_on() {
    for seed in 0..5 {
        let (mut world, hosts) = lan(90_000 + seed, 1, 3);
        let (bridge, members) = (hosts[0], &hosts[1..]);
        put(&mut world, bridge, PRINTER);
        // The first frame of all is not lost, and waits for less than anybody notices.
        assert!(asks(&mut world, bridge, PRINTER, members[0], MIN_FRAME, 60 * MS));
        for len in [MIN_FRAME, 1514] {
            for member in members {
                assert!(asks(&mut world, bridge, PRINTER, *member, len, 10 * MS), "seed {seed}, {len} bytes");
                assert!(is_asked(&mut world, *member, PRINTER, len, 10 * MS), "seed {seed}, {len} bytes");
            }
        }
        let name = world.host(bridge).name.to_string();
        for host in &hosts {
            assert_eq!(stations(&mut world, *host), [(PRINTER.to_string(), name.clone())]);
        }
        for reason in [DropReason::SourceMac, DropReason::ForeignSource, DropReason::NotForUs, DropReason::WaitFull] {
            assert_eq!(dropped(&world, &hosts, reason), [0; 4], "{reason:?}");
        }
    }
}

#[test]
fn what_a_station_calls_everybody_hears_once_and_it_hears_what_members_call() {
    let (mut world, hosts) = lan(90_100, 2, 2);
    let other = Mac([0x00, 0x1b, 0x78, 0, 0, 2]);
    put(&mut world, hosts[0], PRINTER);
    put(&mut world, hosts[1], other);
    for host in &hosts {
        world.host_mut(*host).station.records = true;
    }
    for round in 0..3 {
        let call = Said::Call { id: OURS + round };
        world.send_frame(hosts[0], &call.frame(PRINTER, Mac::BROADCAST, MIN_FRAME));
        world.run_for(100 * MS);
        for host in &hosts[1..] {
            let heard = world.host(*host).station.heard.iter().filter(|(_, frame)| Said::read(frame) == Some(call));
            assert_eq!(heard.count(), 1, "what comes from a bridge is not sent on by another");
        }
        assert_eq!(heard(&mut world, hosts[1], other), [call]);
        assert_eq!(heard(&mut world, hosts[0], PRINTER), []);
    }
    let call = Said::Call { id: OURS + 9 };
    world.send_frame(hosts[3], &call.frame(mac(&world, hosts[3]), Mac::BROADCAST, MIN_FRAME));
    world.run_for(100 * MS);
    assert_eq!((heard(&mut world, hosts[0], PRINTER), heard(&mut world, hosts[1], other)), (vec![call], vec![call]));
    // From one bridge's LAN to that of the other.
    let ask = Said::Ask { conversation: OURS, sequence: 3 };
    world.send_frame(hosts[0], &ask.frame(PRINTER, other, MIN_FRAME));
    world.run_for(200 * MS);
    assert_eq!(heard(&mut world, hosts[0], PRINTER), [Said::Answer { conversation: OURS, sequence: 3 }]);
}

#[test]
fn a_station_that_has_never_spoken_is_asked_through_bridges_alone() {
    let (mut world, hosts) = lan(90_200, 2, 3);
    put(&mut world, hosts[1], PRINTER);
    assert!(is_asked(&mut world, hosts[2], PRINTER, MIN_FRAME, 100 * MS));
    assert_eq!(dropped(&world, &hosts[2..], DropReason::NotForUs), [0; 3], "whoever is no bridge is not bothered");
    assert_eq!(dropped(&world, &hosts, DropReason::WaitFull), [0; 5], "nothing is lost by it");
    // Nobody has this one: a stream to it is held to its budget.
    let nobody = Mac([0x00, 0x1b, 0x78, 0, 0, 9]);
    let frame = Said::Call { id: OURS }.frame(mac(&world, hosts[2]), nobody, MIN_FRAME);
    let before = world.host(hosts[0]).behind.len();
    for _ in 0..1000 {
        world.send_frame(hosts[2], &frame);
    }
    world.run_for(SECOND);
    assert!(world.dropped(hosts[2], DropReason::FloodBudget) >= 750);
    assert_eq!(before, 0);
}

#[test]
fn who_is_no_bridge_claims_in_vain_and_everybody_counts_it() {
    let (mut world, hosts) = lan(90_300, 1, 3);
    let liar = hosts[3];
    put(&mut world, liar, PRINTER);
    assert!(!asks(&mut world, liar, PRINTER, hosts[1], MIN_FRAME, SECOND), "its own node does not even send it");
    assert_eq!(world.dropped(liar, DropReason::ForeignSource), 1);
    let claims = claims(10_000);
    for to in &hosts[..3] {
        claims.iter().for_each(|claim| world.say(liar, *to, claim));
    }
    world.run_for(SECOND);
    assert_eq!(dropped(&world, &hosts[..3], DropReason::BridgeClaim), [claims.len() as u64; 3]);
    for host in &hosts[..3] {
        assert_eq!(stations(&mut world, *host), []);
    }
}

#[test]
fn a_bridge_that_claims_ten_thousand_stations_has_some_of_them_and_the_rest_is_counted() {
    let (mut world, hosts) = lan(90_400, 1, 3);
    let pings = world.ping_all(&hosts, 50 * MS, 20 * SECOND);
    let claims = claims(10_000);
    for _ in 0..10 {
        for to in &hosts[1..] {
            claims.iter().for_each(|claim| world.say(hosts[0], *to, claim));
        }
        world.run_for(SECOND);
    }
    for host in &hosts[1..] {
        assert_eq!(stations(&mut world, *host).len(), MAX_STATIONS);
        assert!(world.dropped(*host, DropReason::BridgeStations) >= 10_000 - MAX_STATIONS as u64);
        assert!(world.dropped(*host, DropReason::BridgeClaim) > 0, "nor does it say so at any pace");
    }
    world.run_for(20 * SECOND);
    for ping in pings {
        assert_eq!(world.conversation(ping).lost, 0);
    }
    // Its own node claims nothing: with what that says next they are gone.
    world.run_for(400 * SECOND);
    for host in &hosts {
        assert_eq!(stations(&mut world, *host), []);
    }
}

#[test]
fn what_a_record_gives_to_a_member_no_bridge_gets() {
    let (mut world, hosts) = lan(90_500, 1, 3);
    let victim = mac(&world, hosts[2]);
    let all = Claim { sequence: u64::MAX, first: Mac([0; 6]), last: Mac::BROADCAST, stations: vec![victim] };
    for to in &hosts[1..] {
        world.say(hosts[0], *to, &Message::Stations(all.clone()));
    }
    // And its own switch says that this member is on its LAN.
    put(&mut world, hosts[0], victim);
    assert!(!asks(&mut world, hosts[0], victim, hosts[1], MIN_FRAME, SECOND));
    assert_eq!(dropped(&world, &hosts, DropReason::BridgeOwned), [1; 4]);
    world.host_mut(hosts[0]).behind.clear();
    for host in [hosts[0], hosts[1], hosts[3]] {
        assert!(is_asked(&mut world, host, victim, MIN_FRAME, 10 * MS));
        assert_eq!(stations(&mut world, host), []);
    }
}

#[test]
fn a_station_that_moves_to_another_bridge_is_found_there_at_once() {
    for seed in 0..5 {
        let (mut world, hosts) = lan(90_600 + seed, 2, 2);
        put(&mut world, hosts[0], PRINTER);
        assert!(asks(&mut world, hosts[0], PRINTER, hosts[2], MIN_FRAME, 60 * MS));
        world.run_for(10 * SECOND);
        world.host_mut(hosts[0]).behind.clear();
        put(&mut world, hosts[1], PRINTER);
        assert!(asks(&mut world, hosts[1], PRINTER, hosts[2], MIN_FRAME, 60 * MS), "seed {seed}");
        let name = Some(world.host(hosts[1]).name.to_string());
        for host in &hosts {
            assert_eq!(place(&mut world, *host, PRINTER), name, "seed {seed}");
            if *host != hosts[1] {
                assert!(is_asked(&mut world, *host, PRINTER, MIN_FRAME, 10 * MS), "seed {seed}");
            }
        }
        // And back, when it has been there for a while.
        world.run_for(10 * SECOND);
        world.host_mut(hosts[1]).behind.clear();
        put(&mut world, hosts[0], PRINTER);
        assert!(asks(&mut world, hosts[0], PRINTER, hosts[3], MIN_FRAME, 60 * MS), "seed {seed}");
    }
}

#[test]
fn a_station_on_the_lan_of_two_bridges_is_at_one_of_them_and_everybody_agrees() {
    for seed in 0..10 {
        let (mut world, hosts) = lan(90_700 + seed, 2, 2);
        // Each bridge hears each of its calls, at the same moment.
        for round in 0..40 {
            let call = Said::Call { id: OURS + round }.frame(PRINTER, Mac::BROADCAST, MIN_FRAME);
            for bridge in &hosts[..2] {
                world.send_frame(*bridge, &call);
            }
            world.run_for(500 * MS);
        }
        world.run_for(5 * SECOND);
        let places: Vec<_> = hosts.iter().map(|host| place(&mut world, *host, PRINTER)).collect();
        assert!(places[0].is_some() && places.iter().all(|place| *place == places[0]), "seed {seed}: {places:?}");
    }
}

#[test]
fn a_station_that_has_been_silent_is_forgotten_everywhere_and_learned_again() {
    let (mut world, hosts) = lan(90_800, 1, 2);
    put(&mut world, hosts[0], PRINTER);
    assert!(asks(&mut world, hosts[0], PRINTER, hosts[1], MIN_FRAME, 60 * MS));
    world.run_for(AGING - 10 * SECOND);
    for host in &hosts {
        assert!(place(&mut world, *host, PRINTER).is_some(), "it may be silent for so long");
    }
    world.run_for(AGING);
    for host in &hosts {
        assert_eq!(place(&mut world, *host, PRINTER), None);
    }
    // It is asked nevertheless, and its answer teaches everybody anew.
    assert!(is_asked(&mut world, hosts[1], PRINTER, MIN_FRAME, 100 * MS));
    assert!(place(&mut world, hosts[2], PRINTER).is_some());
    // While it speaks it is never forgotten.
    for _ in 0..100 {
        assert!(is_asked(&mut world, hosts[1], PRINTER, MIN_FRAME, 10 * SECOND));
    }
}

#[test]
fn what_is_behind_a_bridge_goes_and_comes_with_it() {
    let (mut world, hosts) = lan(90_900, 1, 2);
    put(&mut world, hosts[0], PRINTER);
    assert!(asks(&mut world, hosts[0], PRINTER, hosts[1], MIN_FRAME, 60 * MS));
    world.stop(hosts[0], true);
    world.run_for(SECOND);
    assert_eq!(place(&mut world, hosts[1], PRINTER), None);
    world.start(hosts[0]);
    world.run_for(5 * SECOND);
    assert!(asks(&mut world, hosts[0], PRINTER, hosts[1], MIN_FRAME, 60 * MS));
    // It crashes and is back before anybody notices: it knows nothing of the station any more, and says so.
    world.stop(hosts[0], false);
    world.start(hosts[0]);
    world.run_for(5 * SECOND);
    assert_eq!(place(&mut world, hosts[1], PRINTER), None);
    // Who comes later learns what is there already.
    assert!(asks(&mut world, hosts[0], PRINTER, hosts[1], MIN_FRAME, 60 * MS));
    world.stop(hosts[2], true);
    world.run_for(SECOND);
    world.start(hosts[2]);
    world.run_for(5 * SECOND);
    assert!(is_asked(&mut world, hosts[2], PRINTER, MIN_FRAME, 10 * MS));
}

#[test]
fn on_a_lossy_path_every_station_is_known_all_the_same() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(91_000 + seed));
        let lossy = world.topology.add_segment(true, Conditions::LAN.losing(30));
        let hosts = stage(&mut world, lossy, 1, 3);
        world.settle_within(30 * SECOND);
        for n in 0..250u8 {
            let from = Mac([0x00, 0x1b, 0x78, 0, 1, n]);
            world.send_frame(hosts[0], &Said::Call { id: OURS }.frame(from, Mac::BROADCAST, MIN_FRAME));
            world.run_for(20 * MS);
        }
        let all = |world: &mut World| hosts.iter().all(|host| stations(world, *host).len() == 250);
        let took = world.wait_for(130 * SECOND, all);
        assert!(took.is_some_and(|took| took <= 20 * SECOND), "seed {seed}: {took:?}");
    }
}
