//! The node, given what a hostile member may send: messages in a session, payloads of true handshakes, frames, in any
//! order and at any pace. It neither panics nor answers with a storm, and what proves nothing gets no more bytes than it brought.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use meshd::config::{DEFAULT_MTU, NetworkConfig, NodeConfig};
use meshd::identity::{canonical, default_prefix};
use meshd::node::{Node, Punted};
use meshd::session::handshake::Initiator;
use meshd::switch::Notice;
use meshd::wire::{DatagramKind, Punt};
use meshd_fuzz::{INDEX, NOW, invite, key, local, name, network, record, secret};

/// More inputs would only repeat what fewer can do.
const MAX_INPUTS: usize = 64;

/// Datagrams that one input may cause: a flush of 32 waiting frames is no transmit, an initiation goes to 8 endpoints
/// of each of two peers, a minute of timers to a few more.
const MAX_TRANSMITS: usize = 256;

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let mut node = connected(now);
    let mut rest = data;
    for _ in 0..MAX_INPUTS {
        let [kind, high, low, tail @ ..] = rest else { break };
        let length = usize::from(u16::from_be_bytes([*high, *low]) % 1200).min(tail.len());
        let (bytes, after) = tail.split_at(length);
        rest = after;
        let punt = match kind % 9 {
            0 | 1 => Punt::Message,
            8 => Punt::NewStation,
            2 => Punt::NoSession,
            3 => Punt::UnknownUnicast,
            4 => Punt::ColdFlood,
            5 => {
                node.handle_punt(punted(Punt::Handshake, bytes), now);
                let answered = drain(&mut node, now);
                assert!(answered <= bytes.len(), "{answered} bytes for {}", bytes.len());
                continue;
            }
            6 => {
                // A member that is not connected yet says hello with these bytes.
                let bob = key(4).noise_secret().public();
                let payload = &bytes[..bytes.len().min(1024)];
                let (_, initiation) =
                    Initiator::new(&local(5), &bob, INDEX + 1, payload, None, None, [6; 32]).expect("short");
                give(&mut node, Punt::Handshake, &initiation, now);
                continue;
            }
            _ => {
                now += Duration::from_millis(u64::from(u16::from_be_bytes([*high, *low])));
                node.handle_timeout(now);
                drain(&mut node, now);
                continue;
            }
        };
        give(&mut node, punt, bytes, now);
    }
    node.shutdown(now);
    drain(&mut node, now);
});

/// A node with key 4 that has a session with the member of key 3.
fn connected(now: Instant) -> Node {
    let config = NodeConfig {
        network: NetworkConfig {
            name: name("lab"),
            root: key(1).peer_id(),
            secret: secret(),
            prefix: default_prefix(&network()),
        },
        key: key(4),
        chain: invite().redeem(key(4).peer_id(), name("bob"), NOW).expect("a good invite"),
        mac: None,
        ipv4: None,
        mtu: DEFAULT_MTU,
        boots: 0,
        hardware_aes: true,
        post_quantum: true,
        relaying: meshd::config::Relaying::default(),
        tls: false,
        contacts: Vec::new(),
        known_records: Vec::new(),
        known_statements: Vec::new(),
        known_secrets: Vec::new(),
    };
    let mut node = Node::new(config, [9; 32], now, NOW);
    node.handle_endpoints(vec!["192.0.2.4:4747".parse().expect("an endpoint")], now);
    drain(&mut node, now);
    let bob = key(4).noise_secret().public();
    let hello = canonical::encode(&(1u64, record(3).bytes().to_vec()));
    let (mut initiator, initiation) =
        Initiator::new(&local(3), &bob, INDEX, &hello, None, None, [1; 32]).expect("a sound payload");
    node.handle_punt(punted(Punt::Handshake, &initiation), now);
    let now = now + Duration::from_millis(20);
    node.handle_timeout(now);
    let _ = node.poll_fib(now);
    let sent: Vec<_> = std::iter::from_fn(|| node.poll_transmit()).collect();
    let response =
        sent.iter().map(|sent| &sent.bytes).find(|bytes| DatagramKind::of(bytes) == Some(DatagramKind::Response));
    let response = response.expect("a true initiation is answered");
    initiator.read_response(response, now).expect("a true response");
    let local = u32::from_be_bytes(*response[8..].first_chunk().expect("the responder's index"));
    node.handle_notice(Notice::Confirmed { local }, now);
    drain(&mut node, now);
    node
}

fn give(node: &mut Node, punt: Punt, bytes: &[u8], now: Instant) {
    node.handle_punt(punted(punt, bytes), now);
    drain(node, now);
}

fn punted(punt: Punt, bytes: &[u8]) -> Punted {
    let peer = (punt == Punt::Message).then(|| key(3).peer_id());
    Punted { punt, bytes: bytes.to_vec(), source: Some("192.0.2.3:4747".parse().expect("an endpoint")), peer }
}

/// Takes everything that the node says; returns how many bytes go out.
fn drain(node: &mut Node, now: Instant) -> usize {
    let _ = node.poll_fib(now);
    let sent: Vec<_> = std::iter::from_fn(|| node.poll_transmit()).map(|sent| sent.bytes.len()).collect();
    assert!(sent.len() <= MAX_TRANSMITS, "{} datagrams at once", sent.len());
    while node.poll_event().is_some() {}
    let _ = (node.poll_timeout(), node.counters());
    sent.iter().sum()
}
