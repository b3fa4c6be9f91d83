//! Members who ask too much, and strangers who are asked about nothing.

use std::collections::BTreeMap;

use crate::identity::PeerId;
use crate::node::own::Own;
use crate::session::handshake::{Initiator, Local};
use crate::wire::{Open, Way};

use super::*;

#[test]
fn a_recorded_initiation_is_worth_nothing() {
    let mut lan = lan(2);
    let (from, to, bytes) = lan
        .handshakes
        .iter()
        .find(|(_, to, bytes)| {
            let answered = lan.handshakes.iter().any(|(from, _, answer)| from == to && answer[0] == 2);
            bytes[0] == 1 && answered
        })
        .cloned()
        .expect("one initiation was answered");
    let victim = lan.hosts.iter().position(|host| host.endpoint == to).expect("a host");
    // The session with ML-KEM mixed in takes its place.
    lan.run(Duration::from_secs(10));
    let sent = lan.handshakes.len();
    for _ in 0..10 {
        lan.receive(victim, from, &bytes);
        lan.run(Duration::from_secs(1));
    }
    assert_eq!(lan.dropped(victim, DropReason::HandshakeReplayed), 10);
    assert_eq!(lan.handshakes.len(), sent, "nothing was answered");
    assert!(lan.reaches(0, 1) && lan.reaches(1, 0));
}

#[test]
fn a_stranger_gets_no_answer() {
    let mut lan = lan(2);
    let mut foreign = config(7, 8);
    foreign.network.secret = NetworkSecret::new([10; 32]);
    let wrong_secret = lan.add(foreign);
    let insider_of_another = lan.add(config(7, 9));
    let mut expired = config(1, 10);
    expired.chain.links[0].body.not_after = NOW - 1;
    for stranger in [wrong_secret, insider_of_another] {
        lan.sight(stranger, 0);
    }
    lan.run(Duration::from_secs(30));
    let strangers = [lan.hosts[wrong_secret].endpoint, lan.hosts[insider_of_another].endpoint];
    assert!(lan.handshakes.iter().all(|(_, to, _)| !strangers.contains(to)), "not one byte back");
    assert!(lan.dropped(0, DropReason::HandshakeMac) > 0);
    assert!(lan.dropped(0, DropReason::MembershipRefused) > 0);
    assert!(lan.reaches(0, 1));
}

#[test]
fn who_proved_to_be_no_member_any_more_is_not_approached_again() {
    let mut lan = lan(1);
    let (mut former, own) = (config(1, 12), SigningKey::from_seed(&[12; 32]));
    let (root, network) = (SigningKey::from_seed(&[1; 32]), former.network.id());
    let body = CertificateBody { not_before: NOW - 1000, not_after: NOW - 50, ..former.chain.links[0].body.clone() };
    former.chain.links[0] = Certificate::issue(&root, &network, body);
    let record = Own::new(&former, &network).sign(&former, &network, NOW - 100).expect("valid then");
    let local = Local::new(&own.noise_secret(), &former.network.secret, true);
    let hello = crate::node::handshakes::hello(1, record.bytes());
    let target = lan.hosts[0].node.config.key.noise_secret().public();
    let (_, bytes) = Initiator::new(&local, &target, 7, &hello, None, None, [1; 32]).expect("an initiation");
    let endpoint = SocketAddr::from(([192, 0, 2, 99], 4747));
    lan.receive(0, endpoint, &bytes);
    assert_eq!(lan.dropped(0, DropReason::MembershipExpired), 1);
    let noise = own.noise_secret().public();
    let sighting = Sighting { peer: own.peer_id(), noise, endpoints: vec![endpoint], stale: false };
    let now = lan.now;
    lan.hosts[0].node.handle_directory(dht::Event::Sighting(sighting), now);
    lan.drain(0);
    lan.run(Duration::from_secs(300));
    assert!(lan.handshakes.iter().all(|(_, to, _)| *to != endpoint), "not one byte");
}

#[test]
fn hostile_handshakes_and_messages_are_counted_and_never_panic() {
    let mut lan = lan(2);
    let source = SocketAddr::from(([192, 0, 2, 99], 1));
    let genuine = lan.handshakes.clone();
    let (now, mut kinds) = (lan.now, BTreeMap::new());
    for (_, _, bytes) in &genuine {
        for at in (0..bytes.len()).step_by(7) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x40;
            let punted = Punted { punt: crate::wire::Punt::Handshake, bytes, source: Some(source), peer: None };
            lan.hosts[0].node.handle_punt(punted, now);
        }
        *kinds.entry(bytes[0]).or_insert(0) += 1;
    }
    let peer = lan.hosts[1].node.peer_id();
    for len in 0..200 {
        let bytes = vec![len as u8; len];
        let punted = Punted { punt: crate::wire::Punt::Message, bytes, source: Some(source), peer: Some(peer) };
        lan.hosts[0].node.handle_punt(punted, now);
    }
    lan.drain(0);
    assert!(kinds.len() >= 2);
    assert!(lan.dropped(0, DropReason::HandshakeMac) > 0 && lan.dropped(0, DropReason::InnerMalformed) > 0);
    assert!(lan.reaches(0, 1) && lan.reaches(1, 0));
}

#[test]
fn a_member_that_asks_us_to_knock_again_and_again_is_obeyed_once_in_two_seconds() {
    let mut lan = lan(2);
    let peer = lan.hosts[1].node.peer_id();
    let now = lan.now;
    let node = &mut lan.hosts[0].node;
    let mut sent = || {
        for _ in 0..1000 {
            node.handle_punch(peer, now);
        }
        std::iter::from_fn(|| node.poll_transmit()).count()
    };
    let first = sent();
    assert!((1..=32).contains(&first), "{first} datagrams");
    assert_eq!(sent(), 0);
}

#[test]
fn a_member_that_is_heard_from_everywhere_is_not_probed_for_each_datagram() {
    let mut lan = lan(2);
    let peer = lan.hosts[1].node.peer_id();
    let now = lan.now;
    let node = &mut lan.hosts[0].node;
    for port in 1..=1000 {
        node.handle_roamed(peer, ([192, 0, 2, 77], port).into(), now);
    }
    let sent = std::iter::from_fn(|| node.poll_transmit()).count();
    assert!((1..=16 * 16).contains(&sent), "{sent} datagrams");
}

#[test]
fn a_relay_serves_whom_it_reaches_and_refuses_the_rest_without_keeping_anything() {
    let mut lan = lan(3);
    let ids: Vec<_> = lan.hosts.iter().map(|host| host.node.peer_id()).collect();
    let strangers: Vec<_> = (90..100).map(|n| config(1, n).key.peer_id()).collect();
    let now = lan.now;
    let relay = &mut lan.hosts[0].node;
    let open = |origin, target, passed: &[PeerId]| Open { origin, target, channel: 7, passed: passed.to_vec(), rtt: 0 };
    let [own, a, b] = ids[..] else { unreachable!("three") };
    let (c, d) = (strangers[0], strangers[1]);
    for (what, open) in [
        ("a stranger", open(a, c, &[])),
        ("we", open(a, own, &[])),
        ("itself", open(a, a, &[])),
        ("no channel", Open { channel: 1 << 24, ..open(a, b, &[]) }),
        ("in another's name", open(c, b, &[])),
        ("not from the last of the list", open(c, b, &[a, d])),
        ("we have been asked before", open(c, b, &[own, a])),
        ("the origin has", open(c, b, &[c, a])),
        ("the target has", open(c, b, &[b, a])),
        ("for us", open(own, b, &[a])),
        ("too many relays", open(c, b, &[d, strangers[2], strangers[3], a])),
    ] {
        relay.handle_open(a, open, now);
        assert_eq!((relay.carried_pairs(), relay.channels().count()), (0, 0), "{what}");
    }
    relay.handle_open(c, open(c, b, &[]), now);
    assert_eq!(relay.carried_pairs(), 0, "nobody we have a session with");
    relay.handle_open(a, open(a, b, &[]), now);
    relay.handle_open(a, open(a, b, &[]), now);
    assert_eq!(relay.carried_pairs(), 1);
    assert_eq!(relay.channels().count(), 1, "the other end has not said how it wants to be addressed");
    let offered = relay.channels().next().expect("towards the origin").0;
    relay.handle_accept(a, offered, 8, now);
    relay.handle_accept(b, offered + 1, 8, now);
    assert_eq!((relay.channels().count(), relay.counters().get(DropReason::UnknownChannel)), (1, 2));
    relay.handle_accept(b, offered, 8, now);
    relay.handle_accept(b, offered, 8, now);
    assert_eq!(relay.channels().count(), 2);
    relay.lose(a, "a test", now);
    assert_eq!(relay.channels().count(), 0, "one end is gone");
}

#[test]
fn what_one_member_asks_of_a_relay_is_bounded_and_forgotten() {
    let mut lan = lan(3);
    let ids: Vec<_> = lan.hosts.iter().map(|host| host.node.peer_id()).collect();
    let (mut now, relay) = (lan.now, &mut lan.hosts[0].node);
    let open = |channel, target| Open { origin: ids[1], target, channel, passed: Vec::new(), rtt: 0 };
    for channel in 0..2000 {
        relay.handle_open(ids[1], open(channel, ids[2]), now);
        relay.handle_open(ids[1], open(channel + 5000, SigningKey::from_seed(&[channel as u8; 32]).peer_id()), now);
    }
    assert!((1..=256).contains(&relay.carried_pairs()), "{}", relay.carried_pairs());
    // The other end's circuits are bounded too: by one relay, from one peer.
    let (relay_id, end) = (ids[0], &mut lan.hosts[2].node);
    let before = end.channels().count();
    for channel in 0..2000 {
        end.handle_offer(relay_id, ids[1], channel, Way { relays: 1, rtt: 0 }, now);
    }
    assert!(end.channels().count() <= before + 4);
    now += crate::node::relay::CHANNEL_LIFE;
    lan.hosts[0].node.expire_channels(now);
    lan.hosts[2].node.expire_channels(now);
    assert_eq!((lan.hosts[0].node.carried_pairs(), lan.hosts[2].node.channels().count()), (0, 0));
}

#[test]
fn a_forecast_of_ports_at_a_strangers_address_is_dropped() {
    let mut lan = lan(2);
    let peer = lan.hosts[1].node.peer_id();
    let now = lan.now;
    let before = lan.dropped(0, DropReason::InnerMalformed);
    let near = SocketAddr::from(([203, 0, 113, 9], 5000));
    lan.hosts[0].node.handle_forecast(peer, crate::wire::message::Forecast::Random { near }, now);
    assert_eq!(lan.dropped(0, DropReason::InnerMalformed), before + 1);
}

#[test]
fn nobody_can_have_a_stranger_knocked_at_nor_a_member_knocked_at_for_ever() {
    let mut lan = lan(3);
    let ids = [0, 1, 2].map(|index: usize| lan.hosts[index].node.peer_id());
    let now = lan.now;
    let [asker, other] = [1, 2].map(|index: usize| SocketAddr::from((lan.hosts[index].endpoint.ip(), 50_000)));
    let stranger = SocketAddr::from(([203, 0, 113, 9], 5000));
    let node = &mut lan.hosts[0].node;
    node.handle_witnesses(vec![(7, 50_007)], now);
    let sent = |node: &mut Node| std::iter::from_fn(|| node.poll_transmit()).map(|it| it.endpoint).collect::<Vec<_>>();
    sent(node);
    let before = node.counters().get(DropReason::InnerMalformed);
    node.handle_filtering(ids[1], 1, stranger, now);
    node.handle_knock(ids[2], ids[1], stranger, 1, now);
    node.handle_knock(ids[2], ids[2], asker, 1, now);
    assert_eq!((sent(node), node.counters().get(DropReason::InnerMalformed)), (Vec::new(), before + 3));
    for nonce in 0..1000 {
        node.handle_filtering(ids[1], nonce, asker, now);
    }
    let knocks = sent(node).into_iter().filter(|to| *to == through(7, asker)).count();
    assert!((1..=12).contains(&knocks), "{knocks} datagrams");
    for nonce in 0..1000 {
        node.handle_knock(ids[1], ids[2], other, nonce, now);
    }
    assert!(sent(node).is_empty(), "who has used up its questions does not ask in another's name");
}
