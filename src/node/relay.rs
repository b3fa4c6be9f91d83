//! Two members that cannot meet speak through a third: we ask relays, and are one.
//!
//! Whoever wants a peer sends [`Message::Open`] to a member with whom it has a direct session; that one, if it has a direct
//! session with the peer too, tells both by [`Message::Opened`] how to mark what is for the other. Both then have one more
//! candidate, a channel's endpoint ([`crate::wire::relay`]), over which they shake hands as over any other. Every message may be
//! sent again: it only says the same once more. A relay knows who speaks with whom, and how much; it opens nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::nat::Origin;
use crate::switch::{Channel, seal_message};
use crate::wire::relay::{CHANNELS, channel_behind, endpoint, mark};
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::Transmit;

/// Relays asked for one peer: when one dies, the other is there. A third would only cost it.
const RELAYS: usize = 2;

/// Circuits of one peer, those included that it has asked for itself by other relays.
const CIRCUITS_OF_ONE: usize = 2 * RELAYS;

/// Our circuits in all: as many as sessions are kept warm with, twice over.
const MAX_CIRCUITS: usize = 256;

/// Pairs that we relay for. Each is two entries in the picture; 1024 are a hundred members of whom twenty cannot meet anybody.
const MAX_PAIRS: usize = 1024;

/// Pairs of one member among them: nobody takes all.
const MAX_PAIRS_OF_ONE: usize = 128;

/// A relay that has refused is not asked for the same peer for so long: it may have met it by then.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// Channels: those by which we reach others, and those we carry.
#[derive(Default)]
pub(super) struct Relays {
    /// By the channel at which we are addressed.
    circuits: BTreeMap<u32, Circuit>,
    /// The smaller id first.
    pairs: BTreeMap<(PeerId, PeerId), Pair>,
    /// (relay, peer), until when.
    refused: BTreeMap<(PeerId, PeerId), Instant>,
}

/// A way to a peer through a relay.
struct Circuit {
    relay: PeerId,
    peer: PeerId,
    /// What the relay wants it marked with, once it has said so.
    out: Option<u32>,
}

/// Two members that speak through us, in the order of their ids.
struct Pair {
    ends: [End; 2],
}

/// One of them.
struct End {
    peer: PeerId,
    /// What it marks datagrams with.
    inbound: u32,
    /// What it wants them marked with, once it has said so.
    outbound: Option<u32>,
}

impl Relays {
    /// Whether a channel at which we are addressed has this number.
    fn has(&self, channel: u32) -> bool {
        let ends = || self.pairs.values().flat_map(|pair| &pair.ends);
        self.circuits.contains_key(&channel) || ends().any(|end| end.inbound == channel)
    }

    fn circuits_to(&self, peer: PeerId) -> impl Iterator<Item = (u32, &Circuit)> {
        self.circuits
            .iter()
            .filter(move |(_, circuit)| circuit.peer == peer)
            .map(|(channel, circuit)| (*channel, circuit))
    }
}

impl Node {
    /// Asks relays for a peer that does not answer, and those asked before once more: they may have forgotten.
    pub(super) fn seek_relays(&mut self, id: PeerId, now: Instant) {
        let asked: Vec<_> = self.relays.circuits_to(id).map(|(channel, circuit)| (circuit.relay, channel)).collect();
        for (relay, channel) in asked {
            self.send_message(relay, &Message::Open { peer: id, channel }, now);
        }
        self.seek_more_relays(id, now);
    }

    /// Asks members for a peer until [`RELAYS`] have been asked.
    pub(super) fn seek_more_relays(&mut self, id: PeerId, now: Instant) {
        self.relays.refused.retain(|_, until| now < *until);
        let asked: Vec<_> = self.relays.circuits_to(id).map(|(_, circuit)| circuit.relay).collect();
        let mut relays: Vec<_> = self
            .peers
            .values()
            .filter(|relay| relay.id != id && relay.is_direct() && !asked.contains(&relay.id))
            .filter(|relay| !self.relays.refused.contains_key(&(relay.id, id)))
            .map(|relay| (relay.paths.rtt().unwrap_or(Duration::MAX), relay.id))
            .collect();
        relays.sort_unstable();
        for (_, relay) in relays.into_iter().take(RELAYS.saturating_sub(asked.len())) {
            if self.relays.circuits.len() >= MAX_CIRCUITS {
                return;
            }
            let channel = self.new_channel();
            self.relays.circuits.insert(channel, Circuit { relay, peer: id, out: None });
            self.redraw(now);
            self.send_message(relay, &Message::Open { peer: id, channel }, now);
        }
    }

    /// `from` wants to speak with `peer` through us.
    pub(super) fn handle_open(&mut self, from: PeerId, peer: PeerId, channel: u32, now: Instant) {
        let direct = |id: &PeerId| self.peers.get(id).is_some_and(super::Peer::is_direct);
        let key = (from.min(peer), from.max(peer));
        let of_one = || self.relays.pairs.keys().filter(|(a, b)| *a == from || *b == from).count();
        let room =
            self.relays.pairs.contains_key(&key) || self.relays.pairs.len() < MAX_PAIRS && of_one() < MAX_PAIRS_OF_ONE;
        if from == peer || channel >= CHANNELS || !room || !direct(&from) || !direct(&peer) {
            self.send_message(from, &Message::Refused { peer }, now);
            return;
        }
        if !self.relays.pairs.contains_key(&key) {
            let ends = [key.0, key.1].map(|peer| End { peer, inbound: self.new_channel(), outbound: None });
            self.relays.pairs.insert(key, Pair { ends });
        }
        let Some(pair) = self.relays.pairs.get_mut(&key) else { return };
        let [ours, theirs] = if pair.ends[0].peer == from { [0, 1] } else { [1, 0] };
        pair.ends[ours].outbound = Some(channel);
        // The other one first: until it has said how it wants to be addressed, nothing can be carried.
        let complete = pair.ends[theirs].outbound.is_some();
        let offer = (peer, Message::Opened { peer: from, channel: pair.ends[theirs].inbound });
        let answer = (from, Message::Opened { peer, channel: pair.ends[ours].inbound });
        self.redraw(now);
        for (to, message) in [offer].into_iter().chain(complete.then_some(answer)) {
            self.send_with_picture(to, &message, now);
        }
    }

    /// `relay` says how to reach `peer` through it, whether we have asked or the peer has.
    pub(super) fn handle_opened(&mut self, relay: PeerId, peer: PeerId, channel: u32, now: Instant) {
        let direct = self.peers.get(&relay).is_some_and(super::Peer::is_direct);
        if peer == relay || channel >= CHANNELS || !direct || self.roster.get(&peer).is_none() {
            return self.counters.count(DropReason::UnknownChannel);
        }
        let known = self.relays.circuits.iter_mut().find(|(_, c)| c.relay == relay && c.peer == peer);
        let own = match known {
            Some((_, circuit)) if circuit.out == Some(channel) => return,
            Some((own, circuit)) => {
                circuit.out = Some(channel);
                *own
            }
            // The peer has asked it for us. It will say the same again when it knows how we want to be addressed.
            None => {
                let many = self.relays.circuits_to(peer).count() >= CIRCUITS_OF_ONE;
                if many || self.relays.circuits.len() >= MAX_CIRCUITS || self.peer_entry(peer).is_none() {
                    return self.counters.count(DropReason::UnknownChannel);
                }
                let channel = self.new_channel();
                self.relays.circuits.insert(channel, Circuit { relay, peer, out: None });
                self.redraw(now);
                self.send_message(relay, &Message::Open { peer, channel }, now);
                return;
            }
        };
        self.redraw(now);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let before = entry.paths.endpoints();
        entry.paths.add(endpoint(own), Origin::Relay);
        let (live, direct) = (entry.current.is_some(), entry.is_direct());
        if live && !direct {
            self.probe(peer, now);
        } else if !live {
            self.try_candidates(peer, &before, now);
        }
    }

    /// `relay` does not reach `peer`, or carries enough.
    pub(super) fn handle_refused(&mut self, relay: PeerId, peer: PeerId, now: Instant) {
        let refused = |circuit: &Circuit| circuit.relay == relay && circuit.peer == peer;
        if !self.close(refused, now) {
            return;
        }
        self.relays.refused.insert((relay, peer), now + REFUSED_FOR);
        if self.peers.get(&peer).is_some_and(|peer| !peer.is_direct() && peer.is_promising()) {
            self.seek_more_relays(peer, now);
        }
    }

    /// A peer is gone: what went through it goes elsewhere, and we relay nothing for it.
    pub(super) fn close_channels(&mut self, id: PeerId, now: Instant) {
        self.relays.pairs.retain(|(a, b), _| *a != id && *b != id);
        let through: Vec<_> =
            self.relays.circuits.values().filter(|circuit| circuit.relay == id).map(|circuit| circuit.peer).collect();
        self.close(|circuit| circuit.relay == id || circuit.peer == id, now);
        for peer in through {
            if self.peers.get(&peer).is_some_and(|peer| peer.current.is_some() && peer.paths.primary().is_none()) {
                self.probe(peer, now);
                self.seek_relays(peer, now);
            }
        }
    }

    fn close(&mut self, which: impl Fn(&Circuit) -> bool, now: Instant) -> bool {
        let closed: Vec<_> = self
            .relays
            .circuits
            .iter()
            .filter(|(_, circuit)| which(circuit))
            .map(|(channel, c)| (*channel, c.peer))
            .collect();
        for (channel, peer) in &closed {
            self.relays.circuits.remove(channel);
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.paths.remove(endpoint(*channel));
            }
        }
        if !closed.is_empty() {
            self.redraw(now);
        }
        !closed.is_empty()
    }

    /// Where a datagram really goes: to a relay, if its endpoint is a channel's. `None` if that is gone.
    pub(super) fn by_relay(&self, mut transmit: Transmit) -> Option<Transmit> {
        let Some(own) = channel_behind(&transmit.endpoint) else { return Some(transmit) };
        let (relay, channel) = self.via(own)?;
        mark(&mut transmit.bytes, channel);
        Some(Transmit::to(relay, transmit.bytes))
    }

    /// The relay's endpoint and channel for what we address to a peer by our own `channel`.
    pub(super) fn via(&self, channel: u32) -> Option<(SocketAddr, u32)> {
        let circuit = self.relays.circuits.get(&channel)?;
        let relay = self.peers.get(&circuit.relay).filter(|relay| relay.is_direct())?;
        Some((relay.paths.primary()?, circuit.out?))
    }

    /// The relay of the path in use to a peer; `None` if it is direct, or none.
    pub(super) fn relay_of(&self, id: PeerId) -> Option<PeerId> {
        let channel = channel_behind(&self.peers.get(&id)?.paths.primary()?)?;
        self.relays.circuits.get(&channel).map(|circuit| circuit.relay)
    }

    /// The relay by which a channel of ours leads.
    pub(super) fn carrier(&self, channel: u32) -> Option<PeerId> {
        self.relays.circuits.get(&channel).map(|circuit| circuit.relay)
    }

    /// Our relays, once for each member to whom they would carry; and how many pairs we relay for.
    pub(super) fn relaying(&self) -> (impl Iterator<Item = PeerId>, usize) {
        let ready = self.relays.circuits.values().filter(|circuit| circuit.out.is_some());
        (ready.map(|circuit| circuit.relay), self.relays.pairs.len())
    }

    /// Every channel at which we are addressed, for the picture.
    pub(super) fn channels(&self) -> impl Iterator<Item = (u32, Channel)> {
        let own = self.relays.circuits.keys().map(|channel| (*channel, Channel::Own));
        let place = |end: &End| self.peers.get(&end.peer).filter(|peer| peer.is_direct())?.paths.primary();
        let carried = self.relays.pairs.values().flat_map(move |Pair { ends: [a, b] }| {
            [(a, b), (b, a)].into_iter().filter_map(move |(from, to)| {
                let channel = Channel::Relay { from: place(from)?, to: place(to)?, channel: to.outbound? };
                Some((from.inbound, channel))
            })
        });
        own.chain(carried)
    }

    /// Sends a message once forwarding knows what it promises.
    fn send_with_picture(&mut self, id: PeerId, message: &Message, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        if let (Some(transport), Some(endpoint)) = (&peer.current, peer.paths.primary())
            && let Some(bytes) = seal_message(transport, message, now)
        {
            self.picture.send(Transmit::to(endpoint, bytes), &mut self.outbox);
        }
    }

    fn new_channel(&mut self) -> u32 {
        loop {
            let channel = self.rng.next_u32() % CHANNELS;
            if !self.relays.has(channel) {
                return channel;
            }
        }
    }
}
