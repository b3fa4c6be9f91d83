//! Two members behind NATs knock at the same time, each at its own door first.
//!
//! What is sent to an endpoint that nobody has proved goes there twice: first with a hop limit that lets it open our own
//! NAT and die before the peer's, and only [`crate::nat::path::OPENING_TIME`] later so that it arrives. A careless NAT (many Linux routers)
//! keeps state for what arrives unasked, and then gives the peer another port than the one that everybody was told. While a
//! session runs through a relay, one opens its NAT and says so ([`Message::Punch`]), the other does the same
//! ([`Message::Punching`]), and only who knows that the other has done it knocks: a message that is lost spoils nothing. That
//! happens again and again but ever more seldom.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::nat::path::OPENING_TIME;
use crate::switch::seal_message;
use crate::wire::relay::channel_behind;
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::Transmit;
use super::timers::Timer;

/// Routers that a datagram crosses which is only to open our own NAT: the one at home. With three it would reach a
/// neighbour's.
pub(super) const OPENING_HOPS: u8 = 2;

/// How often such a datagram is sent: if the only one is lost, the peer's arrives too early.
const OPENINGS: usize = 2;

/// Between tries of all candidates while the path is a relay's: nearly all that ever works works at once; what a careless
/// NAT spoilt is good again when it was silent for half a minute; and a router may be restarted.
const AGAIN: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(35), Duration::from_secs(60), Duration::from_secs(300)];

/// A member that keeps asking us to knock is not obeyed more often: its record may name others' addresses.
const PACE: Duration = Duration::from_secs(2);

impl super::peer::Peer {
    /// When all its candidates are to be tried again, if they have been.
    pub(super) fn next_punch(&self) -> Option<Instant> {
        self.punched.map(|last| last + AGAIN[self.punches.saturating_sub(1).min(AGAIN.len() - 1)])
    }

    /// Whether a try of all its candidates has had its time.
    pub(super) fn was_punched(&self, now: Instant) -> bool {
        self.punches > 1 || self.punched.is_some_and(|last| now >= last + PACE)
    }
}

impl Node {
    /// Sends a datagram to a candidate of a peer: so that it arrives, if we have been to our own door. Returns whether it will.
    pub(super) fn approach(&mut self, id: PeerId, endpoint: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return true };
        let unproved = peer.paths.is_unproved(endpoint, now);
        if unproved && !(self.hunts.afford(OPENINGS as u32, now) && self.hunts.admit(&[endpoint], now)) {
            peer.account.refused = Some(now);
            self.counters.count(DropReason::ProbeBudget);
            return true;
        }
        let arrives = peer.paths.may_arrive(endpoint, now);
        let transmit = Transmit::to(endpoint, bytes.to_vec());
        match (arrives, channel_behind(&endpoint)) {
            (true, None) => self.send_sealed(id, transmit),
            // The answer to what goes through a relay needs its channel in the picture.
            (_, Some(_)) => self.picture.send(transmit, &mut self.outbox),
            (false, None) => {
                let opening = Transmit { hop_limit: Some(OPENING_HOPS), ..transmit };
                self.outbox.extend(std::iter::repeat_n(opening, OPENINGS));
            }
        }
        arrives
    }

    /// If the path to a peer is a relay's, sees to it that another relay is ready, and tries for a better path when it is time.
    pub(super) fn upgrade(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.is_direct() {
            peer.account.direct.get_or_insert(now);
            (peer.punched, peer.punches) = (None, 0);
            peer.exchange = None;
            return self.try_udp(id, now);
        }
        peer.account.direct = None;
        self.keep_relays(id, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.next_punch().is_some_and(|next| now < next) {
            return;
        }
        (peer.punched, peer.punches) = (Some(now), peer.punches + 1);
        self.open_doors(id, now);
        self.send_message(id, &Message::Punch, now);
        self.survey(id, now);
    }

    /// A peer has opened its NAT for us. We open ours, say so, and knock when it has heard that.
    pub(super) fn handle_punch(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.knocked.is_some_and(|last| now < last + PACE) {
            return;
        }
        peer.knocked = Some(now);
        // If both ask at the same time, our doors are open already.
        if peer.punched.is_none_or(|last| now >= last + PACE) {
            (peer.punched, peer.punches) = (Some(now), peer.punches + 1);
            self.open_doors(id, now);
        }
        self.send_message(id, &Message::Punching, now);
        self.timers.set(Timer::Punch(id), now + OPENING_TIME);
    }

    /// A peer has done as we asked: now whatever we send finds its NAT open.
    pub(super) fn handle_punching(&mut self, id: PeerId, now: Instant) {
        let asked = self.peers.get(&id).and_then(|peer| peer.punched).is_some_and(|last| now < last + PACE);
        if asked {
            self.timers.set_if_earlier(Timer::Punch(id), now + OPENING_TIME);
        }
    }

    /// Opens our NAT for every candidate of a peer.
    fn open_doors(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(transport) = peer.current.clone() else { return };
        peer.paths.begin_anew();
        let candidates = peer.paths.endpoints();
        let strange = candidates.into_iter().filter(|endpoint| channel_behind(endpoint).is_none());
        for endpoint in strange.collect::<Vec<_>>() {
            if !self.leads_back(&endpoint)
                && let Some(bytes) = seal_message(&transport, &Message::Keepalive, now)
            {
                self.approach(id, endpoint, &bytes, now);
            }
        }
    }
}
