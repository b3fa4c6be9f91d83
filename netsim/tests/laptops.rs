//! Laptops on a switch, no Internet: what their users expect, in virtual time.

use std::net::Ipv4Addr;
use std::time::Duration;

use meshd::config::DEFAULT_MTU;
use meshd::identity::{Ipv4Prefix, Mac};
use meshd::node::Command;
use meshd::node::Reply;
use meshd::node::command::PeerInfo;
use netsim::oracle;
use netsim::station::{Conversation, arp_reply, arp_request};
use netsim::{HostId, Network, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A LAN of `count`, all connected.
fn settled_lan(seed: u64, count: usize) -> (World, Vec<HostId>) {
    let mut world = World::new(Seed::or(seed));
    let (_, laptops) = world.lan(count);
    world.settle_within(3 * SECOND);
    (world, laptops)
}

/// That no ping of these conversations was lost, all of them being answered by now.
fn assert_lossless(world: &mut World, conversations: &[usize]) {
    world.run_for(SECOND);
    for &index in conversations {
        let drops = world.drops();
        let conversation = world.conversation(index);
        let (sent, answered) = (conversation.sent, conversation.answered);
        assert!(sent > 0, "conversation {index} never began");
        assert_eq!(
            (answered, conversation.doubled),
            (sent, 0),
            "pings lost {:?} -> {:?}, silent for {:?} from {:?} on; drops: {drops}",
            conversation.from,
            conversation.to,
            conversation.longest_silence,
            conversation.silent_since
        );
    }
}

#[test]
fn two_laptops_on_a_switch_ping_within_a_second_and_a_half_of_their_start() {
    for seed in 0..20 {
        let mut world = World::new(Seed::or(100 + seed));
        let (_, laptops) = world.lan(2);
        let took = world.first_answer(laptops[0], laptops[1], 3 * SECOND);
        assert!(took.is_some_and(|took| took <= 1500 * MS), "the first answer took {took:?}");
    }
}

#[test]
fn five_laptops_that_start_at_once_are_all_connected_and_no_pair_shakes_hands_twice() {
    for seed in 0..10 {
        let mut world = World::new(Seed::or(200 + seed));
        let (_, laptops) = world.lan(5);
        world.settle_within(1500 * MS);
        let pings = world.ping_all(&laptops, 100 * MS, 10 * SECOND);
        world.run_for(10 * SECOND);
        assert_lossless(&mut world, &pings);
        let responses: u64 = laptops.iter().map(|laptop| world.host(*laptop).costs.sent[2]).sum();
        // Ten pairs; a pair whose initiations crossed may answer both of them once.
        assert!((10..=14).contains(&responses), "{responses} handshakes were answered for 10 pairs");
    }
}

#[test]
fn everybody_says_of_everybody_that_the_path_is_direct() {
    let (mut world, laptops) = settled_lan(7, 5);
    for &laptop in &laptops {
        let peers = world.peers(laptop);
        assert_eq!(peers.len(), 4);
        for PeerInfo { name, path, endpoint, .. } in peers {
            assert_eq!(path, "direct", "{name}");
            assert!(endpoint.is_some());
        }
    }
}

#[test]
fn killing_any_one_costs_the_others_nothing() {
    for victim in 0..5 {
        let (mut world, laptops) = settled_lan(300 + victim as u64, 5);
        let others: Vec<_> = laptops.iter().copied().filter(|laptop| *laptop != laptops[victim]).collect();
        let pings = world.ping_all(&others, 50 * MS, 5 * MINUTE);
        world.run_for(10 * SECOND);
        world.stop(laptops[victim], victim % 2 == 0);
        world.run_for(5 * MINUTE);
        assert_lossless(&mut world, &pings);
    }
}

#[test]
fn a_laptop_that_restarts_with_its_key_is_reachable_within_three_seconds() {
    for (seed, goodbye, away) in [
        (1, true, 100 * MS),
        (2, false, 100 * MS),
        (3, false, 5 * SECOND),
        (4, false, 20 * SECOND),
        (5, true, 5 * MINUTE),
        (6, false, 5 * MINUTE),
    ] {
        let (mut world, laptops) = settled_lan(400 + seed, 3);
        world.ping(laptops[1], laptops[0], 200 * MS, 10 * MINUTE);
        world.run_for(10 * SECOND);
        world.stop(laptops[0], goodbye);
        world.run_for(away);
        world.start(laptops[0]);
        let there = world.first_answer(laptops[1], laptops[0], 3 * SECOND);
        assert!(there.is_some(), "goodbye={goodbye} away={away:?}: cannot be reached");
        let back = world.first_answer(laptops[0], laptops[2], 3 * SECOND);
        assert!(back.is_some(), "goodbye={goodbye} away={away:?}: cannot reach");
    }
}

#[test]
fn a_restart_without_anything_kept_but_the_key_is_as_welcome() {
    let (mut world, laptops) = settled_lan(450, 3);
    for _ in 0..3 {
        world.stop(laptops[0], false);
        world.wipe(laptops[0]);
        world.run_for(SECOND);
        world.start(laptops[0]);
        world.settle_within(3 * SECOND);
    }
}

#[test]
fn the_four_first_die_one_after_another_and_a_newcomer_still_gets_in() {
    let mut world = World::new(Seed::or(500));
    let (lan, laptops) = world.lan(5);
    world.settle_within(2 * SECOND);
    for victim in &laptops[..4] {
        world.stop(*victim, false);
        world.run_for(MINUTE);
    }
    let newcomer = world.laptops(1, lan)[0];
    world.start(newcomer);
    let took = world.first_answer(newcomer, laptops[4], 3 * SECOND);
    assert!(took.is_some_and(|took| took <= 1500 * MS), "the first answer took {took:?}");
}

#[test]
fn an_invite_names_one_member_and_the_newcomer_meets_them_all() {
    let mut world = World::new(Seed::or(510));
    let internet = world.internet();
    let old = world.laptops(5, internet);
    for pair in old.windows(2) {
        world.introduce(pair[1], &pair[..1]);
    }
    for host in &old {
        world.start(*host);
    }
    world.settle_within(10 * SECOND);
    for victim in &old[..4] {
        world.stop(*victim, false);
    }
    let newcomers = world.laptops(2, internet);
    for &newcomer in &newcomers {
        world.introduce(newcomer, &[old[0], old[4]]);
        world.start(newcomer);
    }
    world.settle_within(10 * SECOND);
}

#[test]
fn rekeys_happen_and_lose_no_frame() {
    let (mut world, laptops) = settled_lan(600, 3);
    let before: u64 = laptops.iter().map(|laptop| world.host(*laptop).costs.sent[2]).sum();
    let pings = world.ping_all(&laptops, 20 * MS, 20 * MINUTE);
    world.run_for(20 * MINUTE);
    let rekeys: u64 = laptops.iter().map(|laptop| world.host(*laptop).costs.sent[2]).sum::<u64>() - before;
    // Three pairs, every 120 to 135 s.
    assert!((24..=36).contains(&rekeys), "{rekeys} rekeys in 20 minutes");
    assert_lossless(&mut world, &pings);
}

#[test]
fn a_broadcast_reaches_everybody_once_and_nobody_else() {
    let (mut world, laptops) = settled_lan(700, 5);
    for &caller in &laptops {
        let call = world.call(caller);
        world.run_for(SECOND);
        let heard: Vec<_> = world.calls[call].iter().map(|(host, times)| (*host, *times)).collect();
        let others: Vec<_> = laptops.iter().filter(|host| **host != caller).map(|host| (*host, 1)).collect();
        assert_eq!(heard, others);
    }
}

#[test]
fn a_broadcast_at_the_very_start_reaches_whoever_comes_up_in_time_once() {
    let mut world = World::new(Seed::or(710));
    let (_, laptops) = world.lan(3);
    // Members are known (records have come), sessions may not be there yet: the cold flood.
    let known = world.wait_for(2 * SECOND, |world| oracle::faults(world).len() < 3);
    assert!(known.is_some());
    let call = world.call(laptops[0]);
    world.run_for(3 * SECOND);
    assert!(world.calls[call].values().all(|times| *times == 1), "{:?}", world.calls[call]);
}

#[test]
fn arp_is_answered_from_the_records_and_costs_the_lan_nothing() {
    let (mut world, laptops) = settled_lan(720, 3);
    let (asker, owner) = (laptops[0], laptops[2]);
    world.host_mut(asker).station.records = true;
    let before = world.host(asker).costs.datagrams();
    let (mac, ours) = (world.host(asker).station.mac, world.host(asker).station.ipv4.expect("an address"));
    let theirs = world.host(owner).station.ipv4.expect("an address");
    world.send_frame(asker, &arp_request(mac, ours, theirs));
    let answers: Vec<_> = world.host(asker).station.heard.iter().filter_map(|(_, frame)| arp_reply(frame)).collect();
    assert_eq!(answers, [(theirs, world.host(owner).station.mac)]);
    assert_eq!(world.host(asker).costs.datagrams(), before);
}

#[test]
fn a_full_frame_is_cut_and_rejoined() {
    let (mut world, laptops) = settled_lan(730, 2);
    let until = world.now() + 30 * SECOND;
    let full = Conversation::new(laptops[0], laptops[1], 10 * MS, until, DEFAULT_MTU + 14);
    let full = world.converse(full, Duration::ZERO);
    let small = world.ping(laptops[1], laptops[0], 10 * MS, 30 * SECOND);
    world.run_for(30 * SECOND);
    assert_lossless(&mut world, &[full, small]);
}

#[test]
fn in_a_prefix_of_six_addresses_five_laptops_get_five_and_all_agree() {
    for seed in 0..10 {
        let mut world = World::new(Seed::or(800 + seed));
        let mut network: Network = world.home().clone();
        network.config.prefix = Ipv4Prefix::new(Ipv4Addr::new(10, 99, 0, 0), 29).expect("a prefix");
        let lan = world.switch();
        let laptops: Vec<_> = (0..5).map(|n| world.add_host(&format!("crowded-{n}"), &network, &[lan])).collect();
        for (n, laptop) in laptops.iter().enumerate() {
            world.start_after(*laptop, 300 * MS * n as u32);
        }
        world.run_for(10 * SECOND);
        let mut taken: Vec<_> = laptops.iter().filter_map(|laptop| world.host(*laptop).station.ipv4).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 5, "seed {seed}: two laptops share an address: {taken:?}");
        for &laptop in &laptops {
            for peer in world.peers(laptop) {
                let owner = laptops.iter().find(|host| world.host(**host).peer.to_string() == peer.peer);
                let owner = owner.copied().expect("a laptop");
                assert_eq!(Some(peer.ipv4), world.host(owner).station.ipv4, "as {laptop:?} sees {owner:?}");
            }
        }
    }
}

#[test]
fn a_chosen_address_beats_an_automatic_one_and_the_loser_is_told() {
    let mut world = World::new(Seed::or(820));
    let lan = world.switch();
    let laptops = world.laptops(3, lan);
    world.start(laptops[0]);
    world.start(laptops[1]);
    world.settle_within(2 * SECOND);
    let wanted = world.host(laptops[0]).station.ipv4.expect("an address");
    world.host_mut(laptops[2]).config.ipv4 = Some(wanted);
    world.start(laptops[2]);
    world.settle_within(2 * SECOND);
    world.run_for(SECOND);
    assert_eq!(world.host(laptops[2]).station.ipv4, Some(wanted));
    assert_ne!(world.host(laptops[0]).station.ipv4, Some(wanted));
    assert_eq!(world.host(laptops[0]).station.notices.len(), 1);
}

#[test]
fn two_halves_that_gave_one_address_twice_agree_after_they_meet() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(830 + seed));
        let mut network: Network = world.home().clone();
        network.config.prefix = Ipv4Prefix::new(Ipv4Addr::new(10, 99, 0, 0), 29).expect("a prefix");
        let lan = world.switch();
        let laptops: Vec<_> = (0..4).map(|n| world.add_host(&format!("half-{n}"), &network, &[lan])).collect();
        world.partition(lan, &[&laptops[..2], &laptops[2..]]);
        for laptop in &laptops {
            world.start(*laptop);
        }
        world.run_for(MINUTE);
        world.partition(lan, &[]);
        // mDNS announces every quarter of an hour; nobody knows of the other half before.
        world.run_for(17 * MINUTE);
        let mut taken: Vec<_> = laptops.iter().filter_map(|laptop| world.host(*laptop).station.ipv4).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 4, "two laptops share an address: {taken:?}");
        assert_eq!(oracle::faults(&world), Vec::<String>::new());
    }
}

#[test]
fn a_cable_pulled_and_plugged_in_again_is_found_again() {
    for (seed, away) in [(1, SECOND), (2, 20 * SECOND), (3, 2 * MINUTE), (4, 20 * MINUTE)] {
        let (mut world, laptops) = settled_lan(900 + seed, 3);
        world.plug(laptops[0], false);
        world.run_for(away);
        world.plug(laptops[0], true);
        let took = world.first_answer(laptops[0], laptops[1], 10 * SECOND);
        assert!(took.is_some_and(|took| took <= 3 * SECOND), "away {away:?}: first answer after {took:?}");
        let took = world.first_answer(laptops[2], laptops[0], 10 * SECOND);
        assert!(took.is_some_and(|took| took <= 3 * SECOND), "away {away:?}: first answer after {took:?}");
    }
}

#[test]
fn a_laptop_that_leaves_its_cable_for_the_wifi_takes_its_conversations_along() {
    let mut world = World::new(Seed::or(940));
    let (cable, wifi) = (world.switch(), world.switch());
    let laptops = world.laptops(2, cable);
    for laptop in &laptops {
        world.topology.attach(*laptop, wifi);
        world.start(*laptop);
    }
    world.settle_within(3 * SECOND);
    let pings = world.ping_all(&laptops, 50 * MS, 2 * MINUTE);
    world.run_for(10 * SECOND);
    world.plug_into(laptops[0], cable, false);
    world.run_for(MINUTE);
    world.plug_into(laptops[0], cable, true);
    world.plug_into(laptops[0], wifi, false);
    world.run_for(51 * SECOND);
    for ping in pings {
        let conversation = world.conversation(ping);
        let silence = conversation.longest_silence;
        assert!(silence <= SECOND, "{:?} was not answered for {silence:?}", conversation.from);
    }
}

#[test]
fn in_a_large_network_anybodys_address_is_found_though_few_have_sessions() {
    let mut world = World::new(Seed::or(970));
    let internet = world.internet();
    let hosts = world.laptops(60, internet);
    world.start(hosts[0]);
    for host in &hosts[1..] {
        world.introduce(*host, &hosts[..1]);
        world.start(*host);
    }
    world.run_for(10 * MINUTE);
    let newcomer = world.laptops(1, internet)[0];
    world.introduce(newcomer, &hosts[..1]);
    world.start(newcomer);
    world.run_for(5 * SECOND);
    world.host_mut(newcomer).station.records = true;
    let mac = world.host(newcomer).station.mac;
    let ours = world.host(newcomer).station.ipv4.expect("an address");
    for wanted in &hosts[1..] {
        let theirs = world.host(*wanted).station.ipv4.expect("an address");
        let owner = (theirs, world.host(*wanted).station.mac);
        let known = |world: &World| {
            world
                .host(newcomer)
                .station
                .heard
                .iter()
                .filter_map(|(_, frame)| arp_reply(frame))
                .any(|told| told == owner)
        };
        // As a kernel asks: three times, a second apart.
        for _ in 0..3 {
            if !known(&world) {
                world.send_frame(newcomer, &arp_request(mac, ours, theirs));
                world.run_for(SECOND);
            }
        }
        assert!(known(&world), "nobody knows {theirs}");
    }
    let answer = world.first_answer(newcomer, hosts[59], 3 * SECOND);
    assert!(answer.is_some(), "found and not reached");
}

#[test]
fn who_says_goodbye_is_gone_at_once_and_who_dies_within_a_minute() {
    for (goodbye, within) in [(true, SECOND), (false, MINUTE)] {
        let (mut world, laptops) = settled_lan(950, 3);
        // A sighting that is still on its way would make it worth another try.
        world.run_for(SECOND);
        world.stop(laptops[0], goodbye);
        world.run_for(within);
        let gone = world.host(laptops[0]).name.to_string();
        let peers = world.peers(laptops[1]);
        let path = |name: &str| peers.iter().find(|peer| peer.name == name).map(|peer| peer.path.clone());
        assert_eq!(path(&gone).as_deref(), Some("none"), "goodbye={goodbye}");
        let other = world.host(laptops[2]).name.to_string();
        assert_eq!(path(&other).as_deref(), Some("direct"));
    }
}

#[test]
fn the_operators_ping_and_lookup_answer() {
    let (mut world, laptops) = settled_lan(960, 5);
    world.run_for(5 * SECOND);
    let name = world.host(laptops[3]).name.to_string();
    let Reply::Pong(pong) = world.ask(laptops[0], Command::Ping { peer: name.clone() }) else { panic!("no pong") };
    assert_eq!(pong.name, name);
    assert!(pong.rtt_ms > 0.3 && pong.rtt_ms < 2.0, "{} ms", pong.rtt_ms);
    let mac: Mac = world.host(laptops[3]).station.mac;
    let lookup = Command::Lookup { key: mac.to_string() };
    let Reply::Lookup(found) = world.ask(laptops[0], lookup) else { panic!("nothing found") };
    assert_eq!(found.name, name);
    assert!(found.shards.len() >= 4, "{:?}", found.shards);
}
