//! The picture for forwarding: drawn whole when something changed, at most every 10 ms.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dht::{Record, Verified};
use crate::identity::{PeerId, Roles};
use crate::switch::{Fib, FibPeer};
use crate::wire::relay::channel_behind;

use super::timers::Timer;
use super::{Node, Transmit};

/// Between two pictures: a hundred a second follow anything a person does, and drawing one for 100 peers takes 20 us.
const PACE: Duration = Duration::from_millis(10);

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
        // Records and peers are in the same order.
        let mut peers = self.peers.values().peekable();
        for record in members {
            let id = record.peer();
            while peers.next_if(|peer| peer.id < id).is_some() {}
            let peer = peers.next_if(|peer| peer.id == id);
            let index = fib.peers.len();
            fib.stations.insert(record.mac, index);
            let drawn = self.fib_peer(record, peer);
            fib.cold |= drawn.transport.is_none() && peer.is_some_and(super::Peer::is_promising);
            fib.peers.push(drawn);
            for transport in peer.into_iter().flat_map(super::Peer::transports) {
                fib.receivers.insert(transport.local(), (Arc::clone(transport), index));
            }
        }
        self.peers.values_mut().for_each(|peer| peer.is_undrawn = false);
        fib.channels = self.channels().collect();
        fib.neighbors = self.roster.neighbors();
        self.draw_stations(&mut fib);
        self.draw_filter(&mut fib);
        Some(Arc::new(fib))
    }

    /// Sends what is sealed in the session with a peer: once forwarding knows that, for the peer answers by it at once.
    pub(super) fn send_sealed(&mut self, id: PeerId, transmit: Transmit) {
        match self.peers.get(&id).is_some_and(|peer| peer.is_undrawn) {
            true => self.picture.hold(transmit),
            false => self.outbox.push_back(transmit),
        }
    }

    /// One member, as forwarding sees it.
    pub(super) fn fib_peer(&self, record: &Verified<Record>, peer: Option<&super::Peer>) -> FibPeer {
        let next = peer.and_then(|peer| peer.next.as_ref());
        // Where it has begun a session from, while we have none with it.
        let begun = next.filter(|_| peer.is_some_and(|peer| peer.current.is_none())).map(|next| next.endpoint);
        let primary = begun.or_else(|| peer?.paths.primary());
        let channel = primary.as_ref().and_then(channel_behind);
        let via = channel.and_then(|channel| self.via(channel));
        // A relay may be gone that was the only way.
        let is_there = primary.is_some() && via.is_some() == channel.is_some();
        let endpoint = primary.unwrap_or(NOWHERE);
        let mtu = peer.map(|peer| peer.paths.mtu()).unwrap_or_default();
        FibPeer {
            peer: record.peer(),
            mac: record.mac,
            transport: peer.and_then(|peer| peer.current.clone()).filter(|_| is_there),
            next: next.map(|next| Arc::clone(&next.transport)).filter(|_| is_there),
            endpoint,
            via,
            path_payload: if self.searches_mtu { mtu.payload(endpoint) } else { mtu.expected_payload(endpoint) },
            expected_payload: mtu.expected_payload(endpoint),
            serves: record.membership().roles().contains(Roles::BRIDGE),
            clauses: None,
        }
    }
}
