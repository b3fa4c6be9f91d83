//! The picture for forwarding: drawn whole when something changed, at most every 10 ms.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dht::{Record, Verified};
use crate::switch::{Fib, FibPeer};

use super::timers::Timer;
use super::{Node, Transmit};

/// Between two pictures: a hundred a second follow anything a person does, and drawing one for 100 peers takes 20 us.
const PACE: Duration = Duration::from_millis(10);

/// The UDP payload that any path carries: IPv6's minimum MTU of 1280 less 48 bytes of headers would always do; Ethernet
/// with 1500 and IPv6 gives 1452. Until paths are probed, every LAN of the founders is Ethernet.
const PATH_PAYLOAD: usize = 1452;

/// An endpoint for peers without a session; never sent to.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// Whether a picture is due, and the datagrams that wait for it.
#[derive(Default)]
pub(super) struct Picture {
    dirty: bool,
    last: Option<Instant>,
    held: Vec<Transmit>,
}

impl Picture {
    /// Sends `transmit` once the next picture is out: the peer's answer then finds forwarding ready.
    pub(super) fn hold(&mut self, transmit: Transmit) {
        self.held.push(transmit);
    }

    /// Sends `transmit` now, or with the next picture if one is to come: behind what is held already.
    pub(super) fn send(&mut self, transmit: Transmit, outbox: &mut VecDeque<Transmit>) {
        if self.dirty {
            self.held.push(transmit);
        } else {
            outbox.push_back(transmit);
        }
    }

    /// What was held.
    pub(super) fn release(&mut self) -> Vec<Transmit> {
        std::mem::take(&mut self.held)
    }
}

impl Node {
    /// Something that forwarding reads has changed.
    pub(super) fn redraw(&mut self, now: Instant) {
        self.picture.dirty = true;
        let due = self.picture.last.map_or(now, |last| (last + PACE).max(now));
        self.timers.set_if_earlier(Timer::Fib, due);
    }

    /// The picture, if it is dirty and due.
    pub(super) fn draw(&mut self, now: Instant) -> Option<Arc<Fib>> {
        if !self.picture.dirty || self.picture.last.is_some_and(|last| now < last + PACE) {
            return None;
        }
        self.picture.dirty = false;
        self.picture.last = Some(now);
        self.timers.cancel(Timer::Fib);
        let members = self.roster.iter().filter(|record| record.peer() != self.own.peer);
        let mut fib = Fib::empty(self.own.mac, self.config.mtu);
        let mut index_of = BTreeMap::new();
        for record in members {
            let index = fib.peers.len();
            index_of.insert(record.peer(), index);
            fib.stations.insert(record.mac, index);
            let peer = self.fib_peer(record);
            let promising = self.peers.get(&record.peer()).is_some_and(super::Peer::is_promising);
            fib.cold |= peer.transport.is_none() && promising;
            fib.peers.push(peer);
        }
        let mut receivers = HashMap::new();
        for peer in self.peers.values() {
            let Some(&index) = index_of.get(&peer.id) else { continue };
            for transport in peer.transports() {
                receivers.insert(transport.local(), (Arc::clone(transport), index));
            }
        }
        fib.receivers = receivers;
        fib.neighbors = self.roster.neighbors().collect();
        Some(Arc::new(fib))
    }

    /// One member, as forwarding sees it.
    pub(super) fn fib_peer(&self, record: &Verified<Record>) -> FibPeer {
        let peer = self.peers.get(&record.peer());
        FibPeer {
            peer: record.peer(),
            mac: record.mac,
            transport: peer.and_then(|peer| peer.current.clone()),
            endpoint: peer.and_then(|peer| peer.paths.primary()).unwrap_or(NOWHERE),
            path_payload: PATH_PAYLOAD,
        }
    }
}
