//! How our NAT filters (RFC 4787, section 5), asked for an operator. Nothing else depends on it: who misjudges a NAT and therefore
//! does not knock has lost a path.
//!
//! A fresh socket of ours asks one member, the *observer*, to have it knocked at from elsewhere: from another port of the observer,
//! and by a *helper*, a third member at another address. That socket has sent to nobody else, so who gets in tells whom the NAT lets
//! in; and both say over their usual paths that they have knocked, so that who does not get in tells something too.
//!
//! Nobody can have a stranger knocked at: the observer names the place from which the question came, both look whether the asker is
//! known to be at that address, and nobody gets help more often than [`HELP`] in [`HELP_TIME`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::nat::candidate::is_usable;
use crate::nat::observe::is_local;
use crate::switch::seal_message;
use crate::wire::socket::{split, through};
use crate::wire::{DropReason, Message};

use super::command::FilteringInfo;
use super::event::Transmit;
use super::survey::prefer;
use super::timers::Timer;
use super::{Node, Peer};

/// Between questions that bring nothing, and how many: the first may find that the observer has no second socket yet, or has a NAT
/// of its own that knows its first one only.
const REPEAT: Duration = Duration::from_millis(400);
const QUESTIONS: usize = 3;

/// After somebody has said that it knocks: by then what was let in is there, a satellite's round trip apart.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often each knocks for one question: one may be lost, and nobody would know that it was not the NAT.
const KNOCKS: usize = 2;

/// Questions of one member that are heeded within [`HELP_TIME`]: those of two netchecks. So nobody is sent more than two datagrams a
/// second by us because another has asked for it.
const HELP: u32 = 2 * QUESTIONS as u32;
const HELP_TIME: Duration = Duration::from_secs(6);

/// Members remembered that were helped. Netchecks are made by people.
const MAX_HELPED: usize = 64;

/// What was told so lately is told again if a question brings nothing.
const BELIEVED: Duration = Duration::from_secs(60);

/// What is asked, and who was helped.
#[derive(Default)]
pub(super) struct Filtering {
    running: Option<Question>,
    latest: Option<(FilteringInfo, Instant)>,
    /// Since when, and how often.
    helped: BTreeMap<PeerId, (Instant, u32)>,
}

/// Asked by us.
struct Question {
    /// The fresh socket.
    number: u16,
    nonce: u64,
    observer: PeerId,
    asked: usize,
    until: Instant,
    /// What knocks from the observer's other port, and what from the helper.
    observers: Knock,
    helpers: Knock,
}

#[derive(Default)]
struct Knock {
    sent: bool,
    came: bool,
}

impl Question {
    fn class(&self) -> Option<FilteringInfo> {
        match (&self.observers, &self.helpers) {
            (_, Knock { came: true, .. }) => Some(FilteringInfo::EndpointIndependent),
            (Knock { came: true, .. }, Knock { sent: true, .. }) => Some(FilteringInfo::AddressDependent),
            (Knock { came: true, .. }, Knock { sent: false, .. }) => Some(FilteringInfo::NotPortDependent),
            (Knock { sent: true, .. }, _) => Some(FilteringInfo::AddressAndPortDependent),
            (Knock { sent: false, .. }, _) => None,
        }
    }

    fn knock_of(&mut self, id: PeerId) -> &mut Knock {
        if id == self.observer { &mut self.observers } else { &mut self.helpers }
    }
}

impl Filtering {
    /// The number of the socket in use.
    pub(super) fn sockets(&self) -> impl Iterator<Item = u16> {
        self.running.iter().map(|question| question.number)
    }

    /// When the answer is there at the latest, if one is awaited.
    pub(super) fn until(&self) -> Option<Instant> {
        self.running.as_ref().map(|question| question.until)
    }

    /// What has come of it, which is over now.
    pub(super) fn take(&mut self, now: Instant) -> Option<FilteringInfo> {
        let told = self.running.take().and_then(|question| question.class()).map(|class| (class, now));
        self.latest = told.or(self.latest).filter(|(_, at)| now < *at + BELIEVED);
        self.latest.map(|(class, _)| class)
    }

    /// Our network is another.
    pub(super) fn clear(&mut self) {
        self.latest = None;
    }

    /// Whether `id` may be helped once more.
    fn admit(&mut self, id: PeerId, now: Instant) -> bool {
        self.helped.retain(|_, (since, _)| now < *since + HELP_TIME);
        if self.helped.len() >= MAX_HELPED && !self.helped.contains_key(&id) {
            return false;
        }
        let (_, count) = self.helped.entry(id).or_insert((now, 0));
        *count += 1;
        *count <= HELP
    }
}

impl Node {
    /// Asks who gets in at a fresh socket of ours.
    pub(super) fn ask_filtering(&mut self, now: Instant) {
        let places = self.public_places();
        let (Some((observer, at)), Some(number)) = (places.first().copied(), self.new_socket()) else { return };
        let question = Question {
            number,
            nonce: self.rng.next_u64(),
            observer,
            asked: 0,
            until: now + REPEAT,
            observers: Knock::default(),
            helpers: Knock::default(),
        };
        self.filtering.running = Some(question);
        self.send_question(at, now);
    }

    fn send_question(&mut self, at: SocketAddr, now: Instant) {
        let Some(question) = &mut self.filtering.running else { return };
        question.asked += 1;
        let (message, observer) = (Message::Filtering { nonce: question.nonce }, question.observer);
        let place = through(question.number, at);
        self.send_to(observer, place, &message, 1, now);
        self.timers.set_if_earlier(Timer::Netcheck, now + REPEAT);
    }

    /// Time has passed: true if the answer is there, or will not come.
    pub(super) fn is_filtering_told(&mut self, now: Instant) -> bool {
        let places = self.public_places();
        let Some(question) = &mut self.filtering.running else { return true };
        if now < question.until {
            return false;
        }
        if question.class().is_some() || question.asked >= QUESTIONS || places.is_empty() {
            return true;
        }
        // Whoever did not answer may be behind a NAT; and who was asked has been sent to, so the socket is a stranger no more.
        let (observer, at) = places[question.asked % places.len()];
        if observer != question.observer {
            let (Some(number), nonce) = (self.new_socket(), self.rng.next_u64()) else { return true };
            let Some(question) = &mut self.filtering.running else { return true };
            (question.observer, question.number, question.nonce) = (observer, number, nonce);
        }
        if let Some(question) = &mut self.filtering.running {
            question.until = now + REPEAT;
        }
        self.send_question(at, now);
        false
    }

    /// Members that can be asked over IPv4 from any socket, those at addresses of the Internet first.
    fn public_places(&self) -> Vec<(PeerId, SocketAddr)> {
        let outside = |id: PeerId, at: SocketAddr| {
            let seen = self.observations.seen_by(id, false);
            !is_local(at.ip()) || seen.is_some_and(|(seen, _)| !self.own.endpoints.contains(&seen))
        };
        let direct = self.peers.values().filter(|peer| peer.is_direct());
        let mut found: Vec<_> = direct.filter_map(|peer| Some((peer.id, peer.paths.working(false)?))).collect();
        found.retain(|(id, at)| outside(*id, *at));
        prefer(&mut found, |(_, at)| !is_local(at.ip()));
        prefer(&mut found, |(id, at)| self.is_at_home(*id, *at));
        found
    }

    /// `id` asks from `source` to be knocked at.
    pub(super) fn handle_filtering(&mut self, id: PeerId, nonce: u64, source: SocketAddr, now: Instant) {
        let at = split(source).1;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.set_aside(source);
        if !at.is_ipv4() || !is_at(peer, at.ip()) {
            return self.counters.count(DropReason::InnerMalformed);
        }
        if !self.filtering.admit(id, now) {
            return self.counters.count(DropReason::ProbeBudget);
        }
        let Some(number) = self.witness_sockets().next() else {
            // It asks again, and they are there by then.
            return self.handle_ask_witness(id, now);
        };
        self.send_to(id, through(number, at), &Message::Knocked { nonce }, KNOCKS, now);
        self.send_message(id, &Message::Knocking { nonce }, now);
        if let Some(helper) = self.helper(id, at.ip()) {
            self.send_message(helper, &Message::Knock { peer: id, at, nonce }, now);
        }
    }

    /// A member that is neither here nor there, and would come from an address of its own.
    fn helper(&self, asker: PeerId, there: IpAddr) -> Option<PeerId> {
        let own = |ip: IpAddr| self.own.endpoints.iter().chain(&self.own.reflexive).any(|own| own.ip() == ip);
        let direct = self.peers.values().filter(|peer| peer.is_direct() && peer.id != asker);
        let mut found: Vec<_> = direct.filter_map(|peer| Some((peer.id, peer.paths.working(false)?))).collect();
        found.retain(|(_, at)| at.ip() != there && !own(at.ip()) && is_local(at.ip()) == is_local(there));
        prefer(&mut found, |(id, at)| self.is_at_home(*id, *at));
        found.first().map(|(id, _)| *id)
    }

    /// `from` says that `peer` wants to be knocked at.
    pub(super) fn handle_knock(&mut self, from: PeerId, peer: PeerId, at: SocketAddr, nonce: u64, now: Instant) {
        let known = self.peers.get(&peer).is_some_and(|peer| is_at(peer, at.ip()));
        if !known || from == peer || !at.is_ipv4() || !is_usable(&at) || self.is_overlay(at.ip()) {
            return self.counters.count(DropReason::InnerMalformed);
        }
        if !self.filtering.admit(from, now) || !self.filtering.admit(peer, now) {
            return self.counters.count(DropReason::ProbeBudget);
        }
        if self.send_to(peer, at, &Message::Knocked { nonce }, KNOCKS, now) {
            self.send_message(peer, &Message::Knocking { nonce }, now);
        }
    }

    /// `id` got in at `source`'s end.
    pub(super) fn handle_knocked(&mut self, id: PeerId, nonce: u64, source: SocketAddr, now: Instant) {
        let ours = |question: &&mut Question| question.nonce == nonce && question.number == split(source).0;
        let Some(question) = self.filtering.running.as_mut().filter(ours) else { return };
        question.knock_of(id).came = true;
        self.note_knock(now);
    }

    /// `id` says that it has knocked.
    pub(super) fn handle_knocking(&mut self, id: PeerId, nonce: u64, now: Instant) {
        let ours = |question: &&mut Question| question.nonce == nonce;
        let Some(question) = self.filtering.running.as_mut().filter(ours) else { return };
        let knock = question.knock_of(id);
        if !std::mem::replace(&mut knock.sent, true) && !knock.came {
            question.until = now + PATIENCE;
        }
        self.note_knock(now);
    }

    /// There is nothing to wait for once both have come, or once the easiest has.
    fn note_knock(&mut self, now: Instant) {
        let Some(question) = &mut self.filtering.running else { return };
        if question.helpers.came {
            question.until = now;
        }
        self.timers.set_if_earlier(Timer::Netcheck, question.until);
    }

    /// Sends a message of a session to any place, `count` times; false if there is no session.
    fn send_to(&mut self, id: PeerId, place: SocketAddr, message: &Message, count: usize, now: Instant) -> bool {
        let Some(transport) = self.peers.get(&id).and_then(|peer| peer.current.clone()) else { return false };
        let sealed = (0..count).filter_map(|_| seal_message(&transport, message, now));
        self.outbox.extend(sealed.map(|bytes| Transmit::to(place, bytes)));
        true
    }
}

/// Whether a member is known to be at an address.
fn is_at(peer: &Peer, ip: IpAddr) -> bool {
    peer.paths.endpoints().iter().any(|known| split(*known).1.ip() == ip)
}
