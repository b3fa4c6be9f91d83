//! The control network where nearly nobody can be dialled: thirty members, all but one behind boxes.

use std::collections::BTreeSet;
use std::time::Duration;

use meshd::node::{Command, Reply};
use netsim::kinds::{kind, with_udp};
use netsim::{HostId, NatKind, Seed, World};

const SECOND: Duration = Duration::from_secs(1);

/// Members, as issue 4 has it.
const MEMBERS: usize = 30;

/// From the start to a directory that knows everybody: a record that names home relays goes out after five seconds, and everybody
/// has dialled by it ten seconds later.
const SETTLED: Duration = Duration::from_secs(30);

/// From the death of a relay to a directory that can do without it: a silent peer is gone after 30 s, other homes are
/// told after 5 to 30 more.
const MENDED: Duration = Duration::from_secs(90);

/// A public member, and homes behind boxes of all kinds that do not map ports, each on a LAN with the same addresses. With `mapping`
/// the box of the first home maps ports.
fn village(seed: u64, mapping: bool) -> (World, HostId, Vec<HostId>) {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let closed = |nat: &NatKind| nat.translates && !nat.maps_ports;
    let mut kinds = with_udp().iter().map(|kind| kind.nat).filter(closed).cycle();
    let homes: Vec<_> = (1..MEMBERS)
        .map(|number| {
            let others = kinds.next().expect("a cycle does not end");
            let nat = if mapping && number == 1 { kind("maps-ports").nat } else { others };
            let (lan, _) = world.home_at([192, 168, 1], nat, internet);
            let home = world.laptops(1, lan)[0];
            world.introduce(home, &[public]);
            home
        })
        .collect();
    world.start(public);
    for (number, home) in homes.iter().enumerate() {
        world.start_after(*home, number as u32 * SECOND / 10);
    }
    (world, public, homes)
}

/// Everybody looks up everybody, by MAC, IPv4 address or name in turn; the lookups that fail, and the shards that answered.
fn look_up_all(world: &mut World, members: &[HostId]) -> (Vec<String>, usize) {
    let keys: Vec<_> = members
        .iter()
        .map(|member| {
            let Reply::Status(status) = world.ask(*member, Command::Status) else { panic!("no status") };
            (status.peer, [status.mac, status.ipv4.to_string(), status.name])
        })
        .collect();
    let (mut failed, mut shards) = (Vec::new(), BTreeSet::new());
    for (nth, asker) in members.iter().enumerate() {
        for (offset, (peer, texts)) in keys.iter().enumerate() {
            let key = texts[(nth + offset) % texts.len()].clone();
            let reply = world.ask(*asker, Command::Lookup { key: key.clone() });
            if let Reply::Lookup(found) = &reply
                && found.peer == *peer
            {
                shards.extend(found.shards.clone());
            } else {
                failed.push(format!("{} asks for {key}: {reply:?}", world.host(*asker).name));
            }
        }
    }
    (failed, shards.len())
}

/// Of how many other members a member's control connections are: least and most.
fn connections(world: &World, members: &[HostId]) -> (usize, usize) {
    let counts = members.iter().map(|member| world.directory.connections(*member));
    counts.fold((usize::MAX, 0), |(least, most), count| (least.min(count), most.max(count)))
}

#[test]
fn thirty_members_behind_boxes_but_one_are_all_shards_and_survive_it_if_one_box_maps_ports() {
    let (mut world, public, homes) = village(30_000, true);
    let everybody: Vec<_> = homes.iter().copied().chain([public]).collect();
    world.run_for(SETTLED);
    assert_eq!(connections(&world, &everybody), (MEMBERS - 1, MEMBERS - 1), "by circuits");
    let (failed, shards) = look_up_all(&mut world, &everybody);
    assert_eq!(failed, [""; 0]);
    assert_eq!(shards, MEMBERS, "everybody holds something for others");

    world.stop(public, false);
    world.run_for(MENDED);
    assert_eq!(connections(&world, &homes), (MEMBERS - 2, MEMBERS - 2), "through the member with a mapping");
    let (failed, shards) = look_up_all(&mut world, &homes);
    assert_eq!(failed, [""; 0]);
    assert_eq!(shards, MEMBERS - 1);
}

#[test]
fn a_public_member_that_does_not_relay_leaves_the_others_apart() {
    let (mut world, public, homes) = village(30_100, false);
    world.stop(public, false);
    world.host_mut(public).config.relaying.serve = false;
    world.start(public);
    world.run_for(SETTLED);
    assert_eq!(connections(&world, &homes), (1, 1), "they know the public member alone");
    assert_eq!(connections(&world, &[public]), (MEMBERS - 1, MEMBERS - 1));
}

#[test]
fn who_comes_back_takes_its_place_as_a_home_relay_again() {
    let (mut world, public, homes) = village(30_200, false);
    world.run_for(SETTLED);
    world.stop(public, false);
    world.run_for(MENDED);
    assert_eq!(connections(&world, &homes), (0, 0), "nobody is left who can be dialled");
    world.start(public);
    // It is dialled again after a minute at the latest, and told to be a home half a minute after the last change.
    world.run_for(2 * MENDED);
    let everybody: Vec<_> = homes.iter().copied().chain([public]).collect();
    assert_eq!(connections(&world, &everybody), (MEMBERS - 1, MEMBERS - 1));
}

#[test]
fn two_firewalls_without_a_nat_notice_that_neither_can_be_dialled() {
    let mut world = World::new(Seed::or(30_300));
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let mut hosts = vec![public];
    for _ in 0..2 {
        let (lan, _) = world.home_behind(NatKind::FIREWALL, internet);
        let host = world.laptops(1, lan)[0];
        world.introduce(host, &[public]);
        hosts.push(host);
    }
    for host in &hosts {
        world.start(*host);
    }
    world.run_for(2 * SETTLED);
    assert_eq!(connections(&world, &hosts), (2, 2));
}

#[test]
fn laptops_on_one_switch_need_no_home_relays() {
    let mut world = World::new(Seed::or(30_400));
    let (_, laptops) = world.lan(5);
    world.run_for(3 * SETTLED);
    for laptop in laptops {
        let Reply::Status(status) = world.ask(laptop, Command::Status) else { panic!("no status") };
        assert_eq!((status.homes.len(), status.directory_circuits), (0, 0));
    }
}
