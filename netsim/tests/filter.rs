//! The packet filter between nodes, in virtual time: who is kept out, who is not, and what an operator is told.

use std::time::Duration;

use meshd::node::{Command, Reply};
use meshd::wire::DropReason;
use netsim::{HostId, Seed, World};

const SECOND: Duration = Duration::from_secs(1);

const SYN: u8 = 2;
const SYN_ACK: u8 = 18;

/// A LAN of three that all know each other; the stations record what reaches them.
fn lan(seed: u64) -> (World, [HostId; 3]) {
    let mut world = World::new(Seed::or(seed));
    let (_, laptops) = world.lan(3);
    world.settle_within(3 * SECOND);
    for laptop in &laptops {
        world.host_mut(*laptop).station.records = true;
    }
    (world, laptops.try_into().expect("three"))
}

/// Sends a TCP segment without payload through the mesh; whether it reached the other's TAP.
fn arrives(world: &mut World, from: HostId, to: HostId, ports: (u16, u16), flags: u8) -> bool {
    let (source, destination) = (world.host(from).station.clone(), world.host(to).station.clone());
    let mut frame = [destination.mac.0, source.mac.0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(source.ipv4.expect("an address").octets());
    frame.extend(destination.ipv4.expect("an address").octets());
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 255, 255, 0, 0, 0, 0]);
    world.host_mut(to).station.heard.clear();
    world.send_frame(from, &frame);
    world.run_for(SECOND);
    world.host(to).station.heard.iter().any(|(_, heard)| heard.ends_with(&frame[14..]))
}

fn load(world: &mut World, host: HostId, rules: &str) -> Reply {
    let reply = world.ask(host, Command::LoadFilter { rules: rules.to_owned() });
    // Until forwarding has the next picture.
    world.run_for(Duration::from_millis(20));
    reply
}

#[test]
fn rules_keep_out_whom_they_name_and_answers_still_come_in() {
    let (mut world, [server, ada, bob]) = lan(1);
    assert!(arrives(&mut world, ada, server, (5000, 22), SYN), "without rules everything is allowed");
    let name = world.host(ada).name.clone();
    load(&mut world, server, &format!("deny from {name} tcp 22, 80-90\nallow from any"));
    assert!(!arrives(&mut world, ada, server, (5000, 22), SYN) && !arrives(&mut world, ada, server, (5000, 85), SYN));
    assert!(arrives(&mut world, ada, server, (5000, 443), SYN), "no rule names that port");
    assert!(arrives(&mut world, bob, server, (5000, 22), SYN), "nobody named bob");
    assert_eq!(world.dropped(server, DropReason::Filtered), 2);

    load(&mut world, server, "default deny");
    assert!(!arrives(&mut world, bob, server, (80, 6000), SYN_ACK), "an answer to nothing");
    assert!(arrives(&mut world, server, bob, (6000, 80), SYN), "bob has no rules");
    assert!(arrives(&mut world, bob, server, (80, 6000), SYN_ACK), "an answer");
    assert!(!arrives(&mut world, ada, server, (80, 6000), SYN_ACK), "the same from somebody else");
    // Other rules do not end what was begun under these.
    load(&mut world, server, "deny from any\ndefault deny");
    assert!(arrives(&mut world, bob, server, (80, 6000), SYN_ACK));

    load(&mut world, server, "");
    assert!(arrives(&mut world, ada, server, (5000, 22), SYN));
}

#[test]
fn a_rule_of_which_we_are_not_the_receiver_is_not_ours() {
    let (mut world, [server, ada, bob]) = lan(2);
    let rules = format!("deny from {} to {} tcp 22", world.host(ada).name, world.host(server).name);
    for host in [server, bob] {
        load(&mut world, host, &rules);
    }
    assert!(!arrives(&mut world, ada, server, (5000, 22), SYN));
    assert!(arrives(&mut world, ada, bob, (5000, 22), SYN), "the same file, but bob is not meant");
}

#[test]
fn an_operator_is_told_the_verdict_and_the_rule_that_made_it() {
    let (mut world, [server, ada, bob]) = lan(3);
    let (ada, bob) = (world.host(ada).name.to_string(), world.host(bob).name.to_string());
    load(&mut world, server, &format!("# SSH\nallow from {ada} tcp 22\ndeny tcp 22"));
    let mut test = |from: &str, protocol: &str, port| {
        let command = Command::TestFilter { from: from.to_owned(), to: None, protocol: protocol.to_owned(), port };
        let reply = world.ask(server, command);
        if let Reply::Error { message } = reply {
            return Err(message);
        }
        let Reply::FilterVerdict(verdict) = reply else { panic!("{reply:?}") };
        Ok((verdict.allowed, verdict.line, verdict.rule))
    };
    assert_eq!(test(&ada, "tcp", Some(22)), Ok((true, Some(2), format!("allow from {ada} tcp 22"))));
    assert_eq!(test(&bob, "tcp", Some(22)), Ok((false, Some(3), "deny tcp 22".to_owned())));
    assert_eq!(test(&bob, "udp", Some(22)), Ok((true, None, "default allow".to_owned())));
    assert_eq!(test(&bob, "icmp", None), Ok((true, None, "default allow".to_owned())));
    assert!(test("nobody", "tcp", Some(22)).is_err_and(|said| said.contains("no member is called")));
    assert!(test(&bob, "tcp", None).is_err_and(|said| said.contains("which port")));
    assert!(test(&bob, "carrier-pigeon", None).is_err_and(|said| said.contains("no protocol")));
    let Reply::Error { message } = load(&mut world, server, "deny\nfrobnicate") else { panic!("nonsense is taken") };
    assert!(message.starts_with("line 2:"), "{message}");
    let Reply::Filter(info) = world.ask(server, Command::Filter) else { panic!("no rules") };
    assert_eq!((info.rules.len(), info.default.as_str()), (2, "allow"), "the old rules still hold");
}

/// Broadcasts `frame` from the MAC of `from`; whether it reached the TAP of `to`.
fn shouts(world: &mut World, from: HostId, to: HostId, ethertype: u16, packet: &[u8]) -> bool {
    let mac = world.host(from).station.mac.0;
    let frame = [&[255; 6], &mac[..], &ethertype.to_be_bytes(), packet].concat();
    world.host_mut(to).station.heard.clear();
    world.send_frame(from, &frame);
    world.run_for(SECOND);
    world.host(to).station.heard.iter().any(|(_, heard)| *heard == frame)
}

#[test]
fn who_is_no_bridge_is_no_dhcp_server_and_no_router() {
    let (mut world, [server, rogue, _]) = lan(4);
    let address = world.host(rogue).station.ipv4.expect("an address").octets();
    let dhcp = |from: u16, to: u16| {
        let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(address);
        packet.extend([255; 4]);
        packet.extend([from.to_be_bytes(), to.to_be_bytes(), [0, 16], [0, 0]].concat());
        packet.extend([2; 8]);
        packet
    };
    assert!(shouts(&mut world, rogue, server, 0x0800, &dhcp(68, 67)), "a client may look for a server");
    assert!(!shouts(&mut world, rogue, server, 0x0800, &dhcp(67, 68)));
    assert_eq!(world.dropped(server, DropReason::RogueDhcp), 1);
    let mut advertisement = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    advertisement.extend(world.host(rogue).station.ipv6.expect("an address").octets());
    advertisement.extend([[0xff, 2], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 1]].concat());
    advertisement.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(!shouts(&mut world, rogue, server, 0x86dd, &advertisement));
    assert_eq!(world.dropped(server, DropReason::RogueRouter), 1);
}
