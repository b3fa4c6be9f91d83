//! Two members that cannot meet speak through others: our own ways through relays. What we carry is in [`super::carry`].
//!
//! Whoever wants a peer sends [`Message::Open`] to a member with whom it has a direct session. That one asks on until a relay
//! has a direct session with the peer, offers it the way, and the answers come back by the same relays; each has told its
//! neighbours how to mark datagrams. So both ends have one more candidate, a channel's endpoint ([`crate::wire::relay`]), over
//! which they shake hands as over any other. The same question asked again proves the way from end to end, or finds another.
//! A relay knows who speaks with whom, and how much; it opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::switch::{Channel, seal_message};
use crate::wire::relay::{CHANNELS, channel_behind, endpoint, mark};
use crate::wire::{DropReason, Message, Open, Way};

use super::Node;
use super::carry::Carried;
use super::event::Transmit;
use super::sessions::ANSWER_TIME;

/// Relays between two members at most: a chain of six machines. Each costs a line and a round trip; who needs a fifth should
/// be told where to plug in.
pub(super) const MAX_RELAYS: usize = 4;

/// Relays kept for one peer: when one dies, the other is there. A third would only cost it.
const RELAYS: usize = 2;

/// Ways to one peer that we have asked for, dead ones and those on trial included; and as many that it has asked for.
const CIRCUITS_OF_ONE: usize = 2 * RELAYS;

/// Our circuits in all: as many as sessions are kept warm with, many times over.
const MAX_CIRCUITS: usize = 256;

/// A relay that has refused is not asked for the same peer for so long, unless it says that it has met it by then.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(30);

/// Members that have started together have met by then.
const SETTLE: Duration = Duration::from_secs(2);

/// One that was no better than those we have is not tried again for so long.
const TRIED_FOR: Duration = Duration::from_secs(600);

/// Between trials of another relay while the path is a relay's.
const TRIAL_INTERVAL: Duration = Duration::from_secs(10);

/// A circuit is asked for again after this, so that its relays keep it.
const REFRESH_AFTER: Duration = Duration::from_secs(60);

/// One that nobody has asked for again for so long is forgotten, by its ends and by its relays: five times in vain is no loss.
pub(super) const CHANNEL_LIFE: Duration = Duration::from_secs(300);

/// Questions in a row without an answer after which a circuit is given up; the last few are seconds apart.
const MAX_UNANSWERED: u8 = 6;

/// Channels: those by which we reach others, and those we carry.
#[derive(Default)]
pub(super) struct Relays {
    /// By the channel at which we are addressed.
    circuits: BTreeMap<u32, Circuit>,
    pub(super) carried: Carried,
    /// (relay, peer), until when.
    refused: BTreeMap<(PeerId, PeerId), Instant>,
    /// When another relay was last tried for a peer.
    trials: BTreeMap<PeerId, Instant>,
}

/// A way to a peer through a relay.
struct Circuit {
    relay: PeerId,
    peer: PeerId,
    /// What the relay wants it marked with, once it has said so.
    out: Option<u32>,
    /// Whether we have asked for it; else the peer has.
    ours: bool,
    /// No longer one of those that we use; the peer may.
    retired: bool,
    way: Way,
    /// Since when our question waits for an answer, and how often it was asked.
    asked: Option<Instant>,
    unanswered: u8,
    /// When the relay last said that it works.
    fresh: Instant,
}

impl Circuit {
    fn is_overdue(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now >= asked + ANSWER_TIME)
    }
}

impl Relays {
    /// Whether a channel at which we are addressed has this number.
    fn has(&self, channel: u32) -> bool {
        self.circuits.contains_key(&channel) || self.carried.has(channel)
    }

    /// Whether `relay` has said that it does not lead to `peer`, and not just now: both may be about to meet.
    pub(super) fn has_refused(&self, relay: PeerId, peer: PeerId, now: Instant) -> bool {
        let until = self.refused.get(&(relay, peer));
        until.is_some_and(|until| now < *until && now + REFUSED_FOR >= *until + SETTLE)
    }

    /// Whether a way that we have asked for leads to `peer`, as far as we know.
    pub(super) fn lead_to(&self, peer: PeerId, now: Instant) -> bool {
        self.asked_for(peer).any(|(_, circuit)| circuit.out.is_some() && !circuit.retired && !circuit.is_overdue(now))
    }

    fn circuits_to(&self, peer: PeerId) -> impl Iterator<Item = (u32, &Circuit)> {
        self.circuits
            .iter()
            .filter(move |(_, circuit)| circuit.peer == peer)
            .map(|(channel, circuit)| (*channel, circuit))
    }

    fn asked_for(&self, peer: PeerId) -> impl Iterator<Item = (u32, &Circuit)> {
        self.circuits_to(peer).filter(|(_, circuit)| circuit.ours)
    }
}

impl Node {
    /// Asks relays for a peer that does not answer, and those asked before once more: the way may be another now.
    pub(super) fn seek_relays(&mut self, id: PeerId, now: Instant) {
        self.ask_again(id, |_| true, now);
        self.seek_more_relays(id, now);
    }

    /// While the path to a peer is a relay's: sees to it that another is ready, that they keep it, and that they are the best.
    pub(super) fn keep_relays(&mut self, id: PeerId, now: Instant) {
        self.ask_again(id, |circuit| circuit.asked.is_some() || now >= circuit.fresh + REFRESH_AFTER, now);
        self.seek_more_relays(id, now);
        self.try_another_relay(id, now);
    }

    fn ask_again(&mut self, id: PeerId, which: impl Fn(&Circuit) -> bool, now: Instant) {
        self.close(|circuit| circuit.peer == id && circuit.unanswered >= MAX_UNANSWERED, now);
        let again = self.relays.asked_for(id).filter(|(_, circuit)| !circuit.retired && which(circuit));
        for channel in again.map(|(channel, _)| channel).collect::<Vec<_>>() {
            self.ask(channel, now);
        }
    }

    fn ask(&mut self, channel: u32, now: Instant) {
        let Some(circuit) = self.relays.circuits.get_mut(&channel) else { return };
        circuit.asked.get_or_insert(now);
        circuit.unanswered = circuit.unanswered.saturating_add(1);
        let (relay, target) = (circuit.relay, circuit.peer);
        let open = Open { origin: self.own.peer, target, channel, passed: Vec::new(), rtt: 0 };
        self.send_with_picture(relay, &Message::Open(open), now);
    }

    /// Asks members for a peer until [`RELAYS`] answer.
    pub(super) fn seek_more_relays(&mut self, id: PeerId, now: Instant) {
        let mine = || self.relays.asked_for(id).filter(|(_, circuit)| !circuit.retired);
        let live = mine().filter(|(_, circuit)| !circuit.is_overdue(now)).count();
        let room = CIRCUITS_OF_ONE.saturating_sub(mine().count());
        if live < RELAYS {
            self.meet_homes_of(id, now);
        }
        for relay in self.strange_relays(id, now).into_iter().take(RELAYS.saturating_sub(live).min(room)) {
            self.open_circuit(relay, id, now);
        }
    }

    /// Direct peers that could be asked for `id` and have not been: its home relays first, then the nearest.
    fn strange_relays(&mut self, id: PeerId, now: Instant) -> Vec<PeerId> {
        self.relays.refused.retain(|_, until| now < *until);
        let asked: Vec<_> = self.relays.asked_for(id).map(|(_, circuit)| circuit.relay).collect();
        let homes: Vec<_> = self.homes_of(id).collect();
        let mut relays: Vec<_> = self
            .peers
            .values()
            .filter(|relay| relay.id != id && relay.is_direct() && !asked.contains(&relay.id))
            .filter(|relay| !self.relays.refused.contains_key(&(relay.id, id)))
            .map(|relay| (!homes.contains(&relay.id), relay.paths.rtt().unwrap_or(Duration::MAX), relay.id))
            .collect();
        relays.sort_unstable();
        relays.into_iter().map(|(.., relay)| relay).collect()
    }

    fn open_circuit(&mut self, relay: PeerId, peer: PeerId, now: Instant) {
        if self.relays.circuits.len() >= MAX_CIRCUITS {
            return;
        }
        let channel = self.new_channel();
        let way = Way { relays: 1, rtt: u32::MAX };
        let circuit =
            Circuit { relay, peer, out: None, ours: true, retired: false, way, asked: None, unanswered: 0, fresh: now };
        self.relays.circuits.insert(channel, circuit);
        self.redraw(now);
        self.ask(channel, now);
    }

    /// Now and then one more relay is asked how far the peer is from it: the two that are nearest to both stay.
    fn try_another_relay(&mut self, id: PeerId, now: Instant) {
        let ready = |circuit: &Circuit| circuit.out.is_some() && circuit.asked.is_none();
        let (open, waiting): (Vec<_>, Vec<_>) =
            self.relays.asked_for(id).filter(|(_, c)| !c.retired).partition(|(_, circuit)| ready(circuit));
        if open.len() != RELAYS || !waiting.is_empty() {
            return;
        }
        if self.relays.trials.get(&id).is_some_and(|last| now < *last + TRIAL_INTERVAL) {
            return;
        }
        self.relays.trials.retain(|_, last| now < *last + TRIAL_INTERVAL);
        self.relays.trials.insert(id, now);
        if let Some(relay) = self.strange_relays(id, now).first().copied() {
            self.open_circuit(relay, id, now);
        }
    }

    /// Relays on the way, and the round trip by what we and they have measured.
    fn cost(&self, circuit: &Circuit) -> (u8, u32) {
        (circuit.way.relays, self.rtt_to(circuit.relay).saturating_add(circuit.way.rtt))
    }

    /// Of more than [`RELAYS`] ways to a peer the worst is no longer used: the newest, unless it is clearly better.
    fn retire_worst(&mut self, newest: u32) {
        let Some(id) = self.relays.circuits.get(&newest).map(|circuit| circuit.peer) else { return };
        let primary = self.peers.get(&id).and_then(|peer| peer.paths.primary());
        let open = self.relays.asked_for(id).filter(|(_, c)| !c.retired && c.out.is_some() && c.asked.is_none());
        let open: Vec<_> = open.map(|(channel, circuit)| (self.cost(circuit), channel)).collect();
        let others = open.iter().filter(|(_, channel)| *channel != newest && Some(endpoint(*channel)) != primary);
        let (Some(worst), Some(new)) = (others.max().copied(), open.iter().find(|(_, channel)| *channel == newest))
        else {
            return;
        };
        if open.len() <= RELAYS {
            return;
        }
        let ((relays, rtt), (new_relays, new_rtt)) = (worst.0, new.0);
        let better = new_relays < relays || new_relays == relays && new_rtt < rtt / 3 * 2;
        let goes = if better { worst.1 } else { newest };
        let Some(circuit) = self.relays.circuits.get_mut(&goes) else { return };
        circuit.retired = true;
        let (relay, now) = (circuit.relay, circuit.fresh);
        self.relays.refused.insert((relay, id), now + TRIED_FOR);
        if let Some(peer) = self.peers.get_mut(&id)
            && Some(endpoint(goes)) != primary
        {
            peer.paths.remove(endpoint(goes));
        }
        let retired = self.relays.asked_for(id).filter(|(_, circuit)| circuit.retired);
        let retired: Vec<_> = retired.map(|(channel, circuit)| (circuit.fresh, channel)).collect();
        if let Some((_, oldest)) = retired.iter().min().filter(|_| retired.len() > RELAYS) {
            self.close_one(*oldest, now);
        }
    }

    /// `relay` says that a way of ours leads to the peer.
    pub(super) fn handle_opened(&mut self, relay: PeerId, channel: u32, mark: u32, way: Way, now: Instant) {
        let direct = self.peers.get(&relay).is_some_and(super::Peer::is_direct);
        if mark >= CHANNELS || !direct || !(1..=MAX_RELAYS).contains(&way.relays.into()) {
            return self.counters.count(DropReason::UnknownChannel);
        }
        if self.carries_to(relay, channel) {
            return self.pass_opened(relay, channel, mark, way, now);
        }
        let Some(circuit) = self.relays.circuits.get_mut(&channel).filter(|c| c.ours && c.relay == relay) else {
            return self.counters.count(DropReason::UnknownChannel);
        };
        let (peer, first, news) = (circuit.peer, circuit.out.is_none(), circuit.out != Some(mark));
        (circuit.out, circuit.way, circuit.asked, circuit.unanswered) = (Some(mark), way, None, 0);
        circuit.fresh = now;
        if news {
            self.redraw(now);
        }
        if first {
            self.tell_askers(peer, now);
            self.reconsider_homes(now);
        }
        self.retire_worst(channel);
        if self.relays.circuits.get(&channel).is_some_and(|circuit| circuit.retired) {
            return;
        }
        let Some(entry) = self.peer_entry(peer) else { return };
        let before = entry.paths.endpoints();
        entry.paths.add_relayed(endpoint(channel), way.relays);
        let (live, direct, unanswered) = (entry.current.is_some(), entry.is_direct(), entry.paths.is_unanswered());
        if !live {
            self.try_candidates(peer, &before, now);
        } else if unanswered || news && !direct {
            self.probe_relays(peer, now);
        }
    }

    /// `relay` says that `peer` wants to speak with us through it.
    pub(super) fn handle_offer(&mut self, relay: PeerId, peer: PeerId, channel: u32, way: Way, now: Instant) {
        let direct = self.peers.get(&relay).is_some_and(super::Peer::is_direct);
        let sound = channel < CHANNELS && (1..=MAX_RELAYS).contains(&way.relays.into()) && peer != relay;
        if !sound || !direct || self.roster.get(&peer).is_none() || self.peer_entry(peer).is_none() {
            return self.counters.count(DropReason::UnknownChannel);
        }
        let is_it = |circuit: &Circuit| !circuit.ours && circuit.relay == relay && circuit.peer == peer;
        let known = self.relays.circuits.iter_mut().find(|(_, c)| c.out == Some(channel) && is_it(c));
        let own = match known {
            Some((own, circuit)) => {
                (circuit.way, circuit.fresh) = (way, now);
                let own = *own;
                if let Some(entry) = self.peers.get_mut(&peer).filter(|entry| entry.paths.knows(endpoint(own))) {
                    entry.paths.add_relayed(endpoint(own), way.relays);
                }
                own
            }
            None => {
                let Some(own) = self.accept(relay, peer, channel, way, now) else {
                    return self.counters.count(DropReason::UnknownChannel);
                };
                own
            }
        };
        self.send_with_picture(relay, &Message::Accept { channel, mark: own }, now);
    }

    /// One more way that a peer has asked for. What is oldest makes room, but not what is in use.
    fn accept(&mut self, relay: PeerId, peer: PeerId, out: u32, way: Way, now: Instant) -> Option<u32> {
        let primary = self.peers.get(&peer).and_then(|peer| peer.paths.primary());
        let offered = || self.relays.circuits_to(peer).filter(|(_, circuit)| !circuit.ours);
        if offered().count() >= CIRCUITS_OF_ONE {
            let unused = offered().filter(|(channel, _)| Some(endpoint(*channel)) != primary);
            let (oldest, _) = unused.min_by_key(|(_, circuit)| circuit.fresh)?;
            self.close_one(oldest, now);
        }
        if self.relays.circuits.len() >= MAX_CIRCUITS {
            return None;
        }
        let own = self.new_channel();
        let (out, fresh) = (Some(out), now);
        let circuit = Circuit { relay, peer, out, ours: false, retired: false, way, asked: None, unanswered: 0, fresh };
        self.relays.circuits.insert(own, circuit);
        self.redraw(now);
        self.peer_entry(peer)?.paths.add_relayed(endpoint(own), way.relays);
        Some(own)
    }

    /// `relay` does not lead there, or carries enough.
    pub(super) fn handle_refused(&mut self, relay: PeerId, channel: u32, now: Instant) {
        if self.carries_to(relay, channel) {
            return self.pass_refusal(relay, channel, now);
        }
        let circuit = self.relays.circuits.get(&channel).filter(|circuit| circuit.ours && circuit.relay == relay);
        let Some(peer) = circuit.map(|circuit| circuit.peer) else { return };
        self.close_one(channel, now);
        self.relays.refused.insert((relay, peer), now + REFUSED_FOR);
        if self.peers.get(&peer).is_some_and(|peer| !peer.is_direct() && peer.is_promising()) {
            self.seek_more_relays(peer, now);
        }
    }

    /// `relay` has refused before, and has found a way to `peer` by now.
    pub(super) fn handle_reached(&mut self, relay: PeerId, peer: PeerId, now: Instant) {
        self.relays.refused.remove(&(relay, peer));
        if self.peers.get(&peer).is_some_and(|peer| !peer.is_direct() && !peer.departed) {
            self.seek_more_relays(peer, now);
        }
    }

    /// A peer is gone: what went through it goes elsewhere, and we relay nothing for it.
    pub(super) fn close_channels(&mut self, id: PeerId, now: Instant) {
        if self.own.homes.contains(&id) {
            self.reconsider_homes(now);
        }
        self.drop_pairs_of(id, now);
        self.close(|circuit| circuit.relay == id || circuit.peer == id, now);
    }

    /// Forgets circuits that nobody has asked for again, and what we carry for nobody.
    pub(super) fn expire_channels(&mut self, now: Instant) {
        self.drop_idle_pairs(now);
        // The peer may use one that we do not; its relays keep it as long as it does.
        let life = |circuit: &Circuit| if circuit.retired { 4 * CHANNEL_LIFE } else { CHANNEL_LIFE };
        self.close(|circuit| now >= circuit.fresh + life(circuit), now);
    }

    /// How many circuits lead through whom.
    pub(super) fn circuits_by_relay(&self) -> BTreeMap<PeerId, usize> {
        let mut counts = BTreeMap::new();
        let used = |circuit: &&Circuit| {
            let peer = self.peers.get(&circuit.peer);
            circuit.out.is_some() && peer.is_some_and(|peer| peer.current.is_some() && !peer.is_direct())
        };
        for circuit in self.relays.circuits.values().filter(used) {
            *counts.entry(circuit.relay).or_default() += 1;
        }
        counts
    }

    fn close_one(&mut self, channel: u32, now: Instant) {
        let Some(circuit) = self.relays.circuits.remove(&channel) else { return };
        self.redraw(now);
        let Some(peer) = self.peers.get_mut(&circuit.peer) else { return };
        // The only way may have been this one.
        if peer.paths.remove(endpoint(channel)) && peer.current.is_some() {
            self.probe(circuit.peer, now);
            self.seek_relays(circuit.peer, now);
        }
    }

    fn close(&mut self, which: impl Fn(&Circuit) -> bool, now: Instant) {
        let closed = self.relays.circuits.iter().filter(|(_, circuit)| which(circuit)).map(|(channel, _)| *channel);
        for channel in closed.collect::<Vec<_>>() {
            self.close_one(channel, now);
        }
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

    /// The first relay of the path in use to a peer, and how many there are; `None` if it is direct, or none.
    pub(super) fn relay_of(&self, id: PeerId) -> Option<(PeerId, u8)> {
        let channel = channel_behind(&self.peers.get(&id)?.paths.primary()?)?;
        self.relays.circuits.get(&channel).map(|circuit| (circuit.relay, circuit.way.relays))
    }

    /// Members through whom we reach `target` now, with at most `relays` relays, the best first.
    pub(super) fn relays_towards(&self, target: PeerId, relays: usize, now: Instant) -> Vec<PeerId> {
        let works = |c: &Circuit| c.out.is_some() && !c.retired && !c.is_overdue(now);
        let circuits = self.relays.circuits_to(target).filter(|(_, circuit)| works(circuit));
        let mut ways: Vec<_> = circuits
            .filter(|(_, circuit)| usize::from(circuit.way.relays) <= relays)
            .map(|(_, circuit)| (self.cost(circuit), circuit.relay))
            .collect();
        ways.sort_unstable();
        ways.into_iter().map(|(_, relay)| relay).collect()
    }

    /// The round trip to a direct peer, microseconds.
    pub(super) fn rtt_to(&self, id: PeerId) -> u32 {
        let rtt = self.peers.get(&id).and_then(|peer| peer.paths.rtt());
        rtt.map_or(u32::MAX, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX))
    }

    /// The relay by which a channel of ours leads.
    pub(super) fn carrier(&self, channel: u32) -> Option<PeerId> {
        self.relays.circuits.get(&channel).map(|circuit| circuit.relay)
    }

    /// Our relays, once for each member to whom they would carry; and how many pairs we relay for.
    pub(super) fn relaying(&self) -> (impl Iterator<Item = PeerId>, usize) {
        let ready = self.relays.circuits.values().filter(|circuit| circuit.out.is_some());
        let ready: BTreeSet<_> = ready.map(|circuit| (circuit.relay, circuit.peer)).collect();
        (ready.into_iter().map(|(relay, _)| relay), self.carried_couples())
    }

    /// Every channel at which we are addressed, for the picture.
    pub(super) fn channels(&self) -> impl Iterator<Item = (u32, Channel)> {
        let own = self.relays.circuits.keys().map(|channel| (*channel, Channel::Own));
        own.chain(self.carried_channels())
    }

    /// Sends a message once forwarding knows what it promises.
    pub(super) fn send_with_picture(&mut self, id: PeerId, message: &Message, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        if let (Some(transport), Some(endpoint)) = (&peer.current, peer.paths.primary())
            && let Some(bytes) = seal_message(transport, message, now)
        {
            self.picture.send(Transmit::to(endpoint, bytes), &mut self.outbox);
        }
    }

    pub(super) fn new_channel(&mut self) -> u32 {
        loop {
            let channel = self.rng.next_u32() % CHANNELS;
            if !self.relays.has(channel) {
                return channel;
            }
        }
    }
}
