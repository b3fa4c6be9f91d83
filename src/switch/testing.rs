//! Two nodes' pictures of each other, wired by real sessions; for the tests of this room.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::identity::{Mac, PeerId};
use crate::session::Transport;
use crate::session::transport::{Cipher, Keys};

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

/// The overlay addresses of the `n`-th node.
pub(super) fn addresses(n: u8) -> [std::net::IpAddr; 2] {
    [std::net::Ipv4Addr::new(10, 64, 0, n).into(), std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into()]
}

/// Both ends of a session between nodes `a` and `b`; `a` is the initiator.
pub(super) fn session(a: u8, b: u8, now: Instant) -> (Arc<Transport>, Arc<Transport>) {
    let (ours, theirs) = (u32::from(a) << 8 | u32::from(b), u32::from(b) << 8 | u32::from(a));
    let keys = |send: u8, receive: u8, local, remote, initiator| Keys {
        send: Zeroizing::new([send; 32]),
        receive: Zeroizing::new([receive; 32]),
        cipher: Cipher::Aes256Gcm,
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
    fib.neighbors.extend(addresses(n).map(|address| (address, mac(n))));
    fib.peers.push(FibPeer {
        peer: PeerId([n; 32]),
        mac: mac(n),
        transport,
        endpoint: endpoint(n),
        path_payload: 1452,
    });
}

/// A picture of the `n`-th node that knows only itself.
pub(super) fn alone(n: u8, mtu: usize) -> Fib {
    let mut fib = Fib::empty(mac(n), mtu);
    fib.neighbors.extend(addresses(n).map(|address| (address, mac(n))));
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
