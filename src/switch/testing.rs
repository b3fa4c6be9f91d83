//! Two nodes' pictures of each other, wired by real sessions; for the tests of this room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::identity::{Mac, PeerId};
use crate::session::Transport;
use crate::session::transport::{Cipher, Keys, Quantum};

use super::fib::{Fib, FibPeer};

/// One of two nodes.
pub(super) struct Side {
    /// Its picture; the other is `peers[0]`.
    pub(super) fib: Fib,
    /// Its end of the session.
    pub(super) transport: Arc<Transport>,
}

#[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
pub(super) fn start() -> Instant {
    Instant::now()
}

/// The MAC of the `n`-th node.
pub(super) fn mac(n: u8) -> Mac {
    Mac([0x02, 0, 0, 0, 0, n])
}

/// The endpoint of the `n`-th node.
pub(super) fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 4747))
}

/// The overlay IPv4 address of the `n`-th node.
pub(super) fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 64, 0, n)
}

/// The overlay IPv6 address of the `n`-th node.
pub(super) fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into())
}

/// Both overlay addresses of the `n`-th node.
fn addresses(n: u8) -> [IpAddr; 2] {
    [v4(n).into(), v6(n).into()]
}

/// Both ends of a session between nodes `a` and `b`; `a` is the initiator.
pub(super) fn session(a: u8, b: u8, now: Instant) -> (Arc<Transport>, Arc<Transport>) {
    let (ours, theirs) = (u32::from(a) << 8 | u32::from(b), u32::from(b) << 8 | u32::from(a));
    let keys = |send: u8, receive: u8, local, remote, initiator| Keys {
        send: Zeroizing::new([send; 32]),
        receive: Zeroizing::new([receive; 32]),
        cipher: Cipher::Aes256Gcm,
        quantum: Quantum::Never,
        local,
        remote,
        initiator,
    };
    (
        Arc::new(Transport::new(&keys(a, b, ours, theirs, true), now)),
        Arc::new(Transport::new(&keys(b, a, theirs, ours, false), now)),
    )
}

/// Adds the `n`-th node to a picture.
pub(super) fn meet(fib: &mut Fib, n: u8, transport: Option<Arc<Transport>>) {
    let index = fib.peers.len();
    if let Some(transport) = &transport {
        fib.receivers.insert(transport.local(), (Arc::clone(transport), index));
    }
    fib.stations.insert(mac(n), index);
    Arc::make_mut(&mut fib.neighbors).extend(addresses(n).map(|address| (address, mac(n))));
    fib.peers.push(FibPeer {
        peer: PeerId([n; 32]),
        mac: mac(n),
        transport,
        next: None,
        endpoint: endpoint(n),
        via: None,
        path_payload: 1452,
        expected_payload: 1452,
        serves: false,
        clauses: None,
    });
}

/// A picture of the `n`-th node that knows only itself.
pub(super) fn alone(n: u8, mtu: usize) -> Fib {
    let mut fib = Fib::empty(mac(n), mtu);
    Arc::make_mut(&mut fib.neighbors).extend(addresses(n).map(|address| (address, mac(n))));
    fib
}

/// Nodes 1 and 2 with a session begun by node 1.
pub(super) fn pair(now: Instant) -> (Side, Side) {
    let (a, b) = session(1, 2, now);
    let side = |ours: u8, theirs: u8, transport: Arc<Transport>| {
        let mut fib = alone(ours, 1500);
        meet(&mut fib, theirs, Some(Arc::clone(&transport)));
        Side { fib, transport }
    };
    (side(1, 2, a), side(2, 1, b))
}

/// An Ethernet frame.
pub(super) fn frame(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// The payload of an ARP frame for Ethernet and IPv4.
pub(super) fn arp(operation: u8, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &sender.0.0[..], &sender.1[..], &target.0.0[..], &target.1[..]].concat()
}

/// An IPv6 packet with hop limit 255 that carries `content` behind the first header `next`.
pub(super) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((content.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(content);
    packet
}

/// An ICMPv6 message of neighbour discovery about `target`, with one link-layer option or none; the checksum is undone.
pub(super) fn discovery(kind: u8, target: Ipv6Addr, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    if let Some((option, mac)) = option {
        icmp.extend([option, 1]);
        icmp.extend(mac.0);
    }
    icmp
}
