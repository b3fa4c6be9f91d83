//! What a node tells its operator of paths and NATs, in a virtual world: `why`, `netcheck` and pings over each path.

use std::time::Duration;

use meshd::node::Reply;
use meshd::node::command::{Command, FilteringInfo, HairpinInfo, NetcheckInfo, PathPongsInfo, PathReason, WhyInfo};
use netsim::kinds::{Families, with_udp};
use netsim::nat::Filtering;
use netsim::{BoxId, HostId, NatKind, Seed, World};

const SECOND: Duration = Duration::from_secs(1);

/// One public member, and a home with one member behind each box; all started, and ten seconds later.
fn homes(seed: u64, kinds: &[NatKind]) -> (World, HostId, Vec<(HostId, BoxId)>) {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    let public = world.laptops(1, internet)[0];
    let homes: Vec<_> = kinds
        .iter()
        .map(|kind| {
            let (lan, nat) = world.home_behind(*kind, internet);
            let host = world.laptops(1, lan)[0];
            world.introduce(host, &[public]);
            (host, nat)
        })
        .collect();
    world.start(public);
    homes.iter().for_each(|(home, _)| world.start(*home));
    world.run_for(10 * SECOND);
    (world, public, homes)
}

fn why(world: &mut World, from: HostId, to: HostId) -> WhyInfo {
    let peer = world.host(to).peer.to_string();
    let Reply::Why(info) = world.ask(from, Command::Why { peer }) else { panic!("another reply") };
    *info
}

fn netcheck(world: &mut World, host: HostId) -> NetcheckInfo {
    let begin = world.now();
    let Reply::Netcheck(info) = world.ask(host, Command::Netcheck) else { panic!("another reply") };
    assert!(world.now() - begin <= 3 * SECOND, "it took {:?}", world.now() - begin);
    *info
}

fn ping_paths(world: &mut World, from: HostId, to: HostId) -> PathPongsInfo {
    let peer = world.host(to).peer.to_string();
    let Reply::PathPongs(info) = world.ask(from, Command::PingPaths { peer }) else { panic!("another reply") };
    info
}

#[test]
fn a_survey_says_how_each_nat_maps() {
    let kinds = [
        (NatKind::PORT_RESTRICTED, "endpoint-independent", None),
        (NatKind::FULL_CONE.hairpinning(), "endpoint-independent", None),
        (NatKind::PORT_RESTRICTED_NOT_PRESERVING, "endpoint-independent", None),
        (NatKind::SYMMETRIC_RANDOM, "endpoint-dependent", Some("random")),
        (NatKind::SYMMETRIC_SEQUENTIAL, "endpoint-dependent", Some("sequential")),
        (NatKind::CARRIER, "endpoint-independent", None),
    ];
    for (kind, mapping, ports) in kinds {
        let (mut world, _, homes) = homes(1, &[kind]);
        let info = netcheck(&mut world, homes[0].0);
        let survey = info.nat.survey.clone().expect("there is somebody to ask");
        assert_eq!((&*survey.mapping, survey.ports.as_deref(), survey.age), (mapping, ports, 0), "{info:?}");
        assert_eq!(survey.at.map(|at| at.ip()), Some(world.outside_of(homes[0].0, homes[0].1)[0].ip()), "{info:?}");
        assert_eq!(info.observers.len(), 1, "{info:?}");
        let hairpin = match (kind.hairpin, mapping) {
            (true, "endpoint-independent") => HairpinInfo::Yes,
            (false, "endpoint-independent") => HairpinInfo::No,
            _ => HairpinInfo::NotKnown,
        };
        assert_eq!(info.hairpin, hairpin, "{info:?}");
        assert_eq!(info.advice.is_empty(), ports.is_none(), "{info:?}");
        assert!(!info.udp.blocked && info.udp.heard.is_some_and(|seconds| seconds < 3), "{info:?}");
    }
}

/// A home behind each kind of box, `publics` members outside, and what one netcheck says of the filtering.
fn filtering(seed: u64, kind: NatKind, publics: usize) -> Option<FilteringInfo> {
    let mut world = World::new(Seed::or(seed));
    let internet = world.internet();
    let publics = world.laptops(publics, internet);
    let (lan, _) = world.home_behind(kind, internet);
    let home = world.laptops(1, lan)[0];
    world.introduce(home, &publics);
    for newcomer in &publics[1..] {
        world.introduce(*newcomer, &publics[..1]);
    }
    publics.iter().chain([&home]).for_each(|host| world.start(*host));
    world.run_for(5 * SECOND);
    netcheck(&mut world, home).filtering
}

#[test]
fn two_members_outside_find_out_whom_each_nat_lets_in() {
    for kind in with_udp().iter().filter(|kind| kind.families == Families::V4) {
        // A gateway that maps ports lets everybody in at that port only, and a fresh socket has another.
        let class = match kind.nat.filtering {
            Filtering::EndpointIndependent => FilteringInfo::EndpointIndependent,
            Filtering::AddressDependent => FilteringInfo::AddressDependent,
            Filtering::AddressAndPortDependent => FilteringInfo::AddressAndPortDependent,
        };
        for seed in 0..5 {
            assert_eq!(filtering(20 + seed, kind.nat, 2), Some(class), "{}, seed {seed}", kind.name);
        }
    }
}

#[test]
fn one_member_outside_finds_out_half_of_it_and_nobody_nothing() {
    assert_eq!(filtering(30, NatKind::FULL_CONE, 1), Some(FilteringInfo::NotPortDependent));
    assert_eq!(filtering(31, NatKind::ADDRESS_RESTRICTED, 1), Some(FilteringInfo::NotPortDependent));
    assert_eq!(filtering(32, NatKind::PORT_RESTRICTED, 1), Some(FilteringInfo::AddressAndPortDependent));
    let mut world = World::new(Seed::or(33));
    let (_, hosts) = world.lan(2);
    world.run_for(5 * SECOND);
    assert_eq!(netcheck(&mut world, hosts[0]).filtering, None);
}

#[test]
fn a_public_member_has_no_nat_and_says_whom_it_relays_for() {
    let (mut world, public, homes) = homes(2, &[NatKind::SYMMETRIC_RANDOM, NatKind::SYMMETRIC_RANDOM]);
    let info = netcheck(&mut world, public);
    assert_eq!((&*info.nat.mapping, info.relayed_pairs, info.hairpin), ("untranslated", 1, HairpinInfo::NotKnown));
    let info = netcheck(&mut world, homes[0].0);
    let relay = world.host(public).name.to_string();
    assert_eq!(info.relays.iter().map(|it| (&*it.name, it.members)).collect::<Vec<_>>(), [(&*relay, 1)]);
}

#[test]
fn a_netcheck_harms_no_session_and_leaves_no_socket() {
    let (mut world, public, homes) = homes(3, &[NatKind::PORT_RESTRICTED]);
    let home = homes[0].0;
    for _ in 0..5 {
        netcheck(&mut world, home);
        world.run_for(SECOND);
    }
    assert_eq!(why(&mut world, home, public).reason, PathReason::Direct);
    assert!(why(&mut world, public, home).candidates.iter().all(|it| it.socket.is_none()));
    // One from each flow of ours, and no more than the last survey's.
    let ping = world.ping(home, public, SECOND / 10, 2 * SECOND);
    world.run_for(3 * SECOND);
    let conversation = world.conversation(ping);
    assert_eq!(conversation.answered, conversation.sent);
}

#[test]
fn who_was_alone_from_the_start_says_that_nothing_was_tried() {
    let mut world = World::new(Seed::or(4));
    let internet = world.internet();
    let alone = world.laptops(1, internet)[0];
    world.start(alone);
    world.run_for(SECOND);
    let info = netcheck(&mut world, alone);
    assert_eq!((&*info.nat.mapping, &info.nat.survey, info.udp.tried), ("unknown", &None, None));
    assert!(!info.udp.blocked && info.observers.is_empty());
}

#[test]
fn a_member_that_left_or_died_is_told_apart() {
    let (mut world, public, homes) = homes(5, &[NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED]);
    let [(ada, _), (bob, _)] = homes[..] else { unreachable!("two homes") };
    assert_eq!(why(&mut world, ada, bob).reason, PathReason::Direct);
    world.stop(bob, true);
    world.run_for(SECOND);
    let told = why(&mut world, ada, bob);
    assert_eq!((told.reason, told.next_try), (PathReason::NoSessionDeparted, None), "{told:?}");
    world.stop(public, false);
    world.run_for(45 * SECOND);
    let told = why(&mut world, ada, public);
    assert_eq!(told.reason, PathReason::NoSessionUnreachable, "{told:?}");
    assert!(told.next_try.is_some() && told.candidates.iter().any(|it| it.tried.is_some()), "{told:?}");
}

#[test]
fn on_one_lan_the_reason_is_the_lan() {
    let mut world = World::new(Seed::or(6));
    let (_, hosts) = world.lan(2);
    world.run_for(5 * SECOND);
    assert_eq!(why(&mut world, hosts[0], hosts[1]).reason, PathReason::DirectLan);
}

#[test]
fn guessing_waits_for_traffic_and_says_so() {
    let (mut world, _, homes) = homes(7, &[NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_RANDOM]);
    world.run_for(60 * SECOND);
    for (from, to) in [(0, 1), (1, 0)] {
        let told = why(&mut world, homes[from].0, homes[to].0);
        assert!(matches!(told.reason, PathReason::RelayedIdle | PathReason::RelayedTrying), "{told:?}");
    }
    // Who has the hard NAT knows it.
    let told = why(&mut world, homes[1].0, homes[0].0);
    assert_eq!(told.reason, PathReason::RelayedIdle, "{told:?}");
}

#[test]
fn each_path_is_measured_by_itself() {
    let (mut world, public, homes) = homes(8, &[NatKind::SYMMETRIC_RANDOM, NatKind::SYMMETRIC_RANDOM]);
    let relay = world.host(public).name.to_string();
    let info = ping_paths(&mut world, homes[0].0, homes[1].0);
    let relayed: Vec<_> = info.paths.iter().filter(|path| path.via.as_ref() == Some(&relay)).collect();
    // Each side may have asked it for a way.
    assert!((1..=2).contains(&relayed.len()) && relayed.iter().all(|path| path.rtt_ms.is_some()), "{info:?}");
    assert_eq!(relayed.iter().filter(|path| path.in_use).count(), 1, "{info:?}");
    // Nobody knocks alone where a NAT is shut.
    let direct = info.paths.iter().filter(|path| path.via.is_none());
    assert!(direct.clone().count() > 0 && direct.clone().all(|path| !path.tried && path.rtt_ms.is_none()), "{info:?}");
    let info = ping_paths(&mut world, homes[0].0, public);
    assert!(info.paths.iter().all(|path| path.tried) && info.paths.iter().any(|path| path.in_use), "{info:?}");
    let answer = world.ask(homes[0].0, Command::PingPaths { peer: "nobody".to_owned() });
    assert!(matches!(answer, Reply::Error { ref message } if message.contains("no member is called `nobody`")));
}

#[test]
fn where_udp_is_blocked_it_says_so_and_by_what_it_speaks() {
    let (mut world, public, homes) = homes(9, &[NatKind::UDP_BLOCKED]);
    let home = homes[0].0;
    world.run_for(10 * SECOND);
    for (from, to) in [(home, public), (public, home)] {
        let told = why(&mut world, from, to);
        assert_eq!((told.reason, &*told.member.path), (PathReason::DirectStream, "stream"), "{told:?}");
    }
    let info = netcheck(&mut world, home);
    assert!(
        info.udp.blocked && info.udp.heard.is_none() && info.udp.tried.is_some() && info.advice.len() == 1,
        "{info:?}"
    );
    let [stream] = &info.streams[..] else { panic!("one is enough: {info:?}") };
    assert!(stream.dialled && !stream.tls && stream.endpoint.port() == 4747, "{info:?}");
    let info = netcheck(&mut world, public);
    assert!(!info.udp.blocked && info.streams.len() == 1 && !info.streams[0].dialled, "{info:?}");
}
