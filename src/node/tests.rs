//! A few nodes on a perfect LAN in virtual time. netsim has the imperfect ones.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::{DEFAULT_MTU, NetworkConfig, NodeConfig};
use crate::dht::{self, Sighting};
use crate::identity::{
    Certificate, CertificateBody, Chain, Kind, Mac, NetworkId, NetworkSecret, Roles, SigningKey, default_prefix,
};
use crate::switch::Forwarder;
use crate::wire::socket::through;
use crate::wire::{Batch, DatagramKind, DropReason, Message, Verdict};

use super::{Command, CommandId, Event, Node, PeerChange, Punted, Reply};

mod hostile;

const NOW: u64 = 1_800_000_000;
const LATENCY: Duration = Duration::from_millis(1);

#[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
fn start() -> Instant {
    Instant::now()
}

fn network_config(root: u8) -> NetworkConfig {
    let root = SigningKey::from_seed(&[root; 32]).peer_id();
    let prefix = default_prefix(&NetworkId::of_root(&root));
    NetworkConfig { name: "lab".parse().expect("a name"), root, secret: NetworkSecret::new([9; 32]), prefix }
}

fn config(root: u8, n: u8) -> NodeConfig {
    let (key, network) = (SigningKey::from_seed(&[n; 32]), network_config(root));
    let body = CertificateBody {
        subject: key.peer_id(),
        kind: Kind::Member,
        name: format!("host-{n}").parse().expect("a name"),
        roles: Roles::NONE,
        not_before: NOW,
        not_after: NOW + 86400,
        grant_until: NOW + 86400,
        uses: 0,
    };
    let certificate = Certificate::issue(&SigningKey::from_seed(&[root; 32]), &network.id(), body);
    NodeConfig {
        chain: Chain::of_root(network.root, certificate),
        network,
        key,
        mac: None,
        ipv4: None,
        mtu: DEFAULT_MTU,
        boots: 0,
        relaying: crate::config::Relaying::default(),
        tls: false,
        hardware_aes: true,
        post_quantum: true,
        contacts: Vec::new(),
        known_records: Vec::new(),
        known_statements: Vec::new(),
        known_secrets: Vec::new(),
    }
}

struct Host {
    node: Node,
    forwarder: Forwarder,
    fib: std::sync::Arc<crate::switch::Fib>,
    endpoint: SocketAddr,
    heard: Vec<Vec<u8>>,
    replies: Vec<Reply>,
    changes: Vec<PeerChange>,
    commands: Vec<dht::Command>,
    notices: Vec<String>,
    deaf: bool,
    ended: bool,
}

struct Lan {
    now: Instant,
    hosts: Vec<Host>,
    wire: VecDeque<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    /// Every handshake datagram that was sent.
    handshakes: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Lan {
    fn of(configs: impl IntoIterator<Item = NodeConfig>) -> Self {
        let now = start();
        let mut lan = Self { now, hosts: Vec::new(), wire: VecDeque::new(), handshakes: Vec::new() };
        for config in configs {
            lan.add(config);
        }
        lan
    }

    fn add(&mut self, config: NodeConfig) -> usize {
        let index = self.hosts.len();
        let endpoint = SocketAddr::from(([192, 0, 2, index as u8 + 1], 4747));
        let fib = std::sync::Arc::new(crate::switch::Fib::empty(config.mac(), config.mtu));
        let node = Node::new(config, [index as u8; 32], self.now, NOW);
        self.hosts.push(Host {
            node,
            forwarder: Forwarder::default(),
            fib,
            endpoint,
            heard: Vec::new(),
            replies: Vec::new(),
            changes: Vec::new(),
            commands: Vec::new(),
            notices: Vec::new(),
            deaf: false,
            ended: false,
        });
        self.hosts[index].node.handle_endpoints(vec![endpoint], self.now);
        self.drain(index);
        index
    }

    fn sighting(&self, of: usize) -> Sighting {
        let host = &self.hosts[of];
        let record = host.node.own.record().expect("it has endpoints");
        Sighting { peer: host.node.peer_id(), noise: record.noise, endpoints: vec![host.endpoint], stale: false }
    }

    /// Everybody sees everybody.
    fn sight_all(&mut self) {
        for by in 0..self.hosts.len() {
            for of in (0..self.hosts.len()).filter(|of| *of != by) {
                self.sight(by, of);
            }
        }
    }

    fn sight(&mut self, by: usize, of: usize) {
        let sighting = self.sighting(of);
        self.hosts[by].node.handle_directory(dht::Event::Sighting(sighting), self.now);
        self.drain(by);
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let timers = self.hosts.iter_mut().enumerate().filter(|(_, host)| !host.deaf);
            let timer = timers.filter_map(|(index, host)| Some((host.node.poll_timeout()?.at, index))).min();
            let arrival = self.wire.front().map(|(at, ..)| *at);
            match (timer, arrival) {
                (_, Some(at)) if at <= end && timer.is_none_or(|(timer, _)| at <= timer) => {
                    self.now = self.now.max(at);
                    let (_, from, to, bytes) = self.wire.pop_front().expect("just seen");
                    if let Some(index) = self.hosts.iter().position(|host| host.endpoint == to && !host.deaf) {
                        self.receive(index, from, &bytes);
                    }
                }
                (Some((at, index)), _) if at <= end => {
                    self.now = self.now.max(at);
                    self.hosts[index].node.handle_timeout(self.now);
                    self.drain(index);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn receive(&mut self, index: usize, from: SocketAddr, bytes: &[u8]) {
        let host = &mut self.hosts[index];
        let mut batch = Batch::new(1 << 16, 32);
        batch.push(bytes, Some(from)).expect("room for one");
        let fib = host.fib.clone();
        host.forwarder.ingress.handle_datagrams(&fib, &mut batch, self.now);
        self.carry_out(index, &batch);
        while let Some(notice) = self.hosts[index].forwarder.ingress.poll_notice() {
            self.hosts[index].node.handle_notice(notice, self.now);
        }
        self.drain(index);
    }

    /// A frame from the host's own TAP.
    fn frame(&mut self, index: usize, frame: &[u8]) {
        let host = &mut self.hosts[index];
        let mut batch = Batch::new(1 << 16, 32);
        batch.push(frame, None).expect("room for one");
        let fib = host.fib.clone();
        host.forwarder.egress.handle_frames(&fib, &mut batch, self.now);
        self.carry_out(index, &batch);
        self.drain(index);
    }

    fn carry_out(&mut self, index: usize, batch: &Batch) {
        for (at, slot) in batch.slots().iter().enumerate() {
            let bytes = batch.bytes(at).to_vec();
            match slot.verdict {
                Verdict::Deliver => self.hosts[index].heard.push(bytes),
                Verdict::Send(endpoint) => self.send(index, endpoint, bytes),
                Verdict::Punt(punt) => {
                    let host = &mut self.hosts[index];
                    let peer = slot.peer.map(|peer| host.fib.peers[peer].peer);
                    host.node.handle_punt(Punted { punt, bytes, source: slot.source, peer }, self.now);
                }
                Verdict::Pending | Verdict::Done | Verdict::Drop(_) => (),
            }
        }
    }

    fn send(&mut self, index: usize, to: SocketAddr, bytes: Vec<u8>) {
        let from = self.hosts[index].endpoint;
        if DatagramKind::of(&bytes) != Some(DatagramKind::Sealed) {
            self.handshakes.push((from, to, bytes.clone()));
        }
        self.wire.push_back((self.now + LATENCY, from, to, bytes));
    }

    fn drain(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if let Some(fib) = host.node.poll_fib(self.now) {
            host.fib = fib;
        }
        while let Some(transmit) = self.hosts[index].node.poll_transmit() {
            self.send(index, transmit.endpoint, transmit.bytes);
        }
        let host = &mut self.hosts[index];
        while let Some(event) = host.node.poll_event() {
            match event {
                Event::Directory(command) => host.commands.push(command),
                Event::Deliver(frame) => host.heard.push(frame),
                Event::Reply(_, reply) => host.replies.push(*reply),
                Event::PeerChange { change, .. } => host.changes.push(change),
                Event::Addresses { notice, .. } => host.notices.extend(notice),
                Event::MembershipEnded => host.ended = true,
                Event::Expelled(_) => host.ended = true,
                Event::Persist(_)
                | Event::Keep(_)
                | Event::Secrets(_)
                | Event::Witnesses(_)
                | Event::Sockets(_)
                | Event::Stream(_) => (),
            }
        }
    }

    fn mac(&self, index: usize) -> Mac {
        self.hosts[index].node.own.mac
    }

    fn connected(&self, index: usize) -> usize {
        self.hosts[index].node.peers.values().filter(|peer| peer.current.is_some()).count()
    }

    fn dropped(&self, index: usize, reason: DropReason) -> u64 {
        self.hosts[index].node.counters().get(reason)
    }

    fn ask(&mut self, index: usize, command: Command) {
        self.hosts[index].node.handle_command(CommandId(1), command, self.now);
        self.drain(index);
    }

    /// Sends a frame from one to the other and says whether it arrived within a second.
    fn reaches(&mut self, from: usize, to: usize) -> bool {
        let frame = frame(self.mac(from), self.mac(to), b"are you there?");
        self.hosts[to].heard.clear();
        self.frame(from, &frame);
        self.run(Duration::from_secs(1));
        self.hosts[to].heard.contains(&frame)
    }
}

fn frame(source: Mac, destination: Mac, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x88, 0xb5], payload].concat()
}

fn lan(hosts: u8) -> Lan {
    let mut lan = Lan::of((2..2 + hosts).map(|n| config(1, n)));
    lan.sight_all();
    lan.run(Duration::from_secs(2));
    lan
}

#[test]
fn nodes_that_sight_each_other_at_once_agree_on_one_session_each_and_carry_frames() {
    let mut lan = lan(3);
    for index in 0..3 {
        assert_eq!(lan.connected(index), 2);
    }
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        assert!(lan.reaches(from, to), "{from} to {to}");
    }
    let broadcast = frame(lan.mac(0), Mac::BROADCAST, b"everybody");
    lan.frame(0, &broadcast);
    lan.run(Duration::from_millis(10));
    assert!(lan.hosts[1].heard.contains(&broadcast) && lan.hosts[2].heard.contains(&broadcast));
    let again = lan.handshakes.len();
    lan.run(Duration::from_secs(60));
    assert_eq!(lan.handshakes.len(), again, "no handshake without need");
}

#[test]
fn an_initiation_that_arrives_on_two_ways_opens_one_session() {
    let mut lan = Lan::of([config(1, 2), config(1, 3)]);
    lan.sight(1, 0);
    let (at, _, to, bytes) = lan.wire.back().expect("an initiation").clone();
    lan.wire.push_back((at, SocketAddr::from(([198, 51, 100, 1], 4747)), to, bytes));
    lan.run(Duration::from_secs(1));
    assert_eq!((lan.connected(0), lan.connected(1)), (1, 1));
    assert!(lan.reaches(1, 0) && lan.reaches(0, 1));
    assert_eq!(lan.dropped(0, DropReason::UnknownReceiver), 0);
}

#[test]
fn a_session_is_replaced_after_two_minutes_and_no_frame_is_lost_over_it() {
    let mut lan = lan(2);
    let before = lan.handshakes.len();
    for second in 0..400 {
        assert!(lan.reaches(0, 1) && lan.reaches(1, 0), "second {second}");
    }
    let rekeys = (lan.handshakes.len() - before) / 2;
    assert!((5..=7).contains(&rekeys), "{rekeys} rekeys in 800 s");
    assert_eq!(lan.connected(0), 1);
    assert_eq!(lan.hosts[0].changes.len(), 1, "the user sees one connection only");
}

#[test]
fn a_member_is_out_when_its_certificate_ends() {
    let mut short = config(1, 3);
    let body = CertificateBody { not_after: NOW + 20, grant_until: NOW + 20, ..short.chain.links[0].body.clone() };
    short.chain.links[0] = Certificate::issue(&SigningKey::from_seed(&[1; 32]), &short.network.id(), body);
    let mut lan = Lan::of([config(1, 2), short]);
    lan.sight_all();
    lan.run(Duration::from_secs(19));
    assert!(lan.reaches(0, 1));
    assert!(!lan.hosts[1].ended);
    lan.run(Duration::from_secs(2));
    assert_eq!(lan.connected(0), 0);
    assert!(lan.hosts[1].ended && !lan.hosts[0].ended, "it is told to stop");
    assert!(!lan.reaches(1, 0));
}

#[test]
fn the_second_key_with_a_mac_is_refused() {
    let mut lan = lan(2);
    let mut thief = config(1, 12);
    thief.mac = Some(lan.mac(0));
    let thief = lan.add(thief);
    lan.sight(thief, 1);
    lan.run(Duration::from_secs(5));
    assert!(lan.dropped(1, DropReason::RecordConflict) > 0);
    assert_eq!(lan.connected(thief), 0);
    assert!(lan.reaches(1, 0));
}

#[test]
fn two_who_claim_one_address_agree_who_renumbers() {
    let mut configs = [config(1, 2), config(1, 3)];
    let address = configs[0].ipv4(0);
    configs[1].ipv4 = Some(address);
    let mut lan = Lan::of(configs);
    lan.sight_all();
    lan.run(Duration::from_secs(5));
    assert_eq!(lan.hosts[1].node.own.ipv4.address, address, "a chosen address beats an automatic one");
    assert_ne!(lan.hosts[0].node.own.ipv4.address, address);
    assert_eq!((lan.hosts[0].notices.len(), lan.hosts[1].notices.len()), (1, 0));
    let renumbered = lan.hosts[0].node.own.ipv4.address;
    assert!(lan.hosts[1].fib.neighbors.contains_key(&renumbered.into()), "the other knows the new address");
}

#[test]
fn a_goodbye_is_believed_and_a_return_is_welcome() {
    let mut lan = lan(2);
    let now = lan.now;
    lan.hosts[1].node.shutdown(now);
    lan.drain(1);
    lan.hosts[1].deaf = true;
    lan.run(Duration::from_secs(60));
    assert!(matches!(lan.hosts[0].changes.last(), Some(PeerChange::Gone("said goodbye"))));
    let quiet = lan.handshakes.len();
    lan.run(Duration::from_secs(600));
    assert_eq!(lan.handshakes.len(), quiet, "nobody knocks at a closed door");

    let endpoint = lan.hosts[1].endpoint;
    let mut again = config(1, 3);
    again.boots = 1;
    let index = lan.add(again);
    lan.hosts[1].endpoint = lan.hosts[index].endpoint;
    lan.hosts[index].endpoint = endpoint;
    lan.sight(index, 0);
    lan.run(Duration::from_secs(1));
    assert!(lan.reaches(0, index));
}

#[test]
fn a_silent_peer_is_gone_within_a_minute_and_found_again_without_a_sighting() {
    let mut lan = lan(2);
    lan.hosts[1].deaf = true;
    lan.run(Duration::from_secs(60));
    assert!(matches!(lan.hosts[0].changes.last(), Some(PeerChange::Gone("silent"))));
    lan.hosts[1].deaf = false;
    lan.run(Duration::from_secs(90));
    assert_eq!((lan.connected(0), lan.connected(1)), (1, 1));
    assert!(lan.reaches(0, 1));
}

#[test]
fn a_peer_that_moves_is_followed() {
    let mut lan = lan(2);
    let moved = SocketAddr::from(([192, 0, 2, 77], 4747));
    lan.hosts[1].endpoint = moved;
    let now = lan.now;
    lan.hosts[1].node.handle_endpoints(vec![moved], now);
    lan.drain(1);
    lan.run(Duration::from_secs(1));
    assert!(lan.reaches(0, 1));
    let peer = lan.hosts[1].node.peer_id();
    assert_eq!(lan.hosts[0].node.peers[&peer].paths.primary(), Some(moved));
    assert_eq!(lan.hosts[0].changes.len(), 1, "its session lived on");
}

#[test]
fn a_mapped_endpoint_is_told_unless_peers_see_another_address() {
    let mut lan = lan(2);
    let now = lan.now;
    let listed = |lan: &Lan, endpoint| {
        let id = lan.hosts[0].node.peer_id();
        let record = lan.hosts[1].node.roster.get(&id).expect("they know each other");
        record.endpoints.contains(&endpoint)
    };
    let mapped: SocketAddr = "203.0.113.7:4747".parse().expect("an endpoint");
    lan.hosts[0].node.handle_mapped(&[mapped, mapped], now);
    lan.drain(0);
    lan.run(Duration::from_secs(1));
    assert!(listed(&lan, mapped), "peers of our own LAN do not speak against it");
    let told = lan.hosts[0].commands.iter().rev().find_map(|command| match command {
        dht::Command::Listening(endpoints) => Some(endpoints.clone()),
        dht::Command::Publish(_)
        | dht::Command::Lookup { .. }
        | dht::Command::Dial { .. }
        | dht::Command::Homes(_)
        | dht::Command::State(_) => None,
    });
    assert_eq!(told, Some(vec![lan.hosts[0].endpoint, mapped]), "the directory listens there too");

    let (observer, seen) = (lan.hosts[1].node.peer_id(), "198.51.100.9:1024".parse().expect("an endpoint"));
    let node = &mut lan.hosts[0].node;
    node.observations.note(observer, "192.0.2.200:4747".parse().expect("an endpoint"), seen, now);
    node.review_outside(now);
    lan.drain(0);
    lan.run(Duration::from_secs(1));
    assert!(!listed(&lan, mapped) && listed(&lan, seen), "there is another NAT behind the gateway");
    // What the overlay itself would carry is no way to it.
    let inside = SocketAddr::new(lan.hosts[1].node.own.ipv4.address.into(), 4747);
    lan.hosts[0].node.handle_mapped(&[inside], lan.now);
    assert!(lan.hosts[0].node.own.mapped.believed().is_empty());
}

#[test]
fn a_frame_to_an_unknown_station_asks_the_directory_and_waits() {
    let mut lan = Lan::of([config(1, 2), config(1, 3)]);
    let unknown = frame(lan.mac(0), lan.mac(1), b"hello");
    lan.frame(0, &unknown);
    let asked = lan.hosts[0].commands.iter().find_map(|command| match command {
        dht::Command::Lookup { id, .. } => Some(*id),
        dht::Command::Publish(_)
        | dht::Command::Dial { .. }
        | dht::Command::Listening(_)
        | dht::Command::Homes(_)
        | dht::Command::State(_) => None,
    });
    let id = asked.expect("the directory was asked");
    let record = lan.hosts[1].node.own.record().expect("a record").clone();
    let now = lan.now;
    lan.hosts[0].node.handle_directory(dht::Event::Found { id, record, holders: vec![] }, now);
    lan.drain(0);
    lan.run(Duration::from_secs(1));
    assert!(lan.hosts[1].heard.contains(&unknown));
}

#[test]
fn what_nobody_owns_is_dropped_and_not_asked_for_again_at_once() {
    let mut lan = lan(2);
    let nobody = frame(lan.mac(0), Mac([2, 0, 0, 0, 0, 9]), b"hello");
    let lookups = |lan: &Lan| {
        let is_lookup = |command: &&dht::Command| matches!(command, dht::Command::Lookup { .. });
        lan.hosts[0].commands.iter().filter(is_lookup).count()
    };
    for _ in 0..100 {
        lan.frame(0, &nobody);
    }
    assert_eq!(lookups(&lan), 1);
    lan.run(Duration::from_secs(20));
    assert_eq!(
        lan.dropped(0, DropReason::WaitFull) + lan.hosts[0].forwarder.egress.counters().get(DropReason::FloodBudget),
        100
    );
    lan.frame(0, &nobody);
    assert_eq!(lookups(&lan), 2);
}

#[test]
fn an_operators_ping_is_answered_or_fails_with_a_reason() {
    let mut lan = lan(2);
    lan.ask(0, Command::Ping { peer: "host-3".into() });
    lan.run(Duration::from_millis(10));
    let Some(Reply::Pong(pong)) = lan.hosts[0].replies.pop() else { panic!("no pong") };
    assert_eq!((pong.name.as_str(), pong.observed), ("host-3", lan.hosts[0].endpoint));
    assert!((1.9..2.1).contains(&pong.rtt_ms), "{}", pong.rtt_ms);

    lan.ask(0, Command::Ping { peer: "nobody".into() });
    lan.ask(0, Command::Ping { peer: "host-2".into() });
    lan.hosts[1].deaf = true;
    lan.ask(0, Command::Ping { peer: "host-3".into() });
    lan.run(Duration::from_secs(6));
    assert_eq!(lan.hosts[0].replies.len(), 3);
    assert!(lan.hosts[0].replies.iter().all(|reply| matches!(reply, Reply::Error { .. })));
}

#[test]
fn sockets_through_which_a_peer_was_answered_stay_open() {
    let mut lan = lan(2);
    let peer = lan.hosts[1].node.peer_id();
    let (now, there) = (lan.now, lan.hosts[1].endpoint);
    let node = &mut lan.hosts[0].node;
    for number in [5, 6] {
        node.surveys.give(number, peer);
        node.handle_message(peer, &Message::Ping { nonce: 1 }.encode(), through(number, there), now);
    }
    node.tidy_sockets();
    let kept = std::iter::from_fn(|| node.poll_event()).find_map(|event| match event {
        Event::Sockets(kept) => Some(kept),
        Event::Directory(_)
        | Event::Deliver(_)
        | Event::Reply(..)
        | Event::Addresses { .. }
        | Event::Persist(_)
        | Event::Keep(_)
        | Event::Witnesses(_)
        | Event::Stream(_)
        | Event::MembershipEnded
        | Event::Secrets(_)
        | Event::Expelled(_)
        | Event::PeerChange { .. } => None,
    });
    assert_eq!(kept, Some([5, 6].into()));
}
