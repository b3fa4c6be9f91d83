//! A peer becomes a session: initiate to every candidate at once, answer, confirm, replace.
//!
//! The payload both ways is a [`Hello`]: a stamp that only grows, across restarts too, so that a recorded initiation is
//! worth nothing later; and the sender's signed record, which proves membership and binds the Noise key to the peer.
//! The responder's session is used for sending only once a datagram of the initiator has opened in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::dht::record::MAX_RECORD;
use crate::dht::{Record, RecordError, Verified};
use crate::identity::{ChainError, NoisePublic, PeerId, canonical};
use crate::nat::path::OPENING_TIME;
use crate::session::Transport;
use crate::session::handshake::{HandshakeError, Initiator, Responder, receiver_index};
use crate::session::rekey::{GIVE_UP_AFTER, TIE_BREAK_TIME, our_initiation_wins, retry_delay};
use crate::wire::relay::{channel_behind, is_discard};
use crate::wire::socket::split;
use crate::wire::{DatagramKind, DropReason};

use super::event::{Event, PeerChange, Transmit};
use super::own::sequence_base;
use super::peer::{Next, Outstanding};
use super::records::drop_reason;
use super::sessions::FIRST_CHECK;
use super::timers::Timer;
use super::{Node, Peer};

/// Candidates that one initiation goes to: the best eight of sixteen, so that a liar's list costs little.
const MAX_TARGETS: usize = 8;

/// With the third initiation, 0.8 s after the first, TCP is thought of: UDP that passes has been answered by then, be it by a relay.
const UNANSWERED: u32 = 2;

/// Between tries of a peer that does not answer: 5 s, doubled up to a minute. A minute after a switch is plugged in
/// again everybody is found even without mDNS.
const RECONNECT_FIRST: Duration = Duration::from_secs(5);
const RECONNECT_MAX: Duration = Duration::from_secs(60);

/// After this many tries in vain, half an hour, a peer is tried every ten minutes only: it is off, or elsewhere, and will
/// try us when it is back. A hundred bytes a minute and absent member remain.
const RECONNECT_TIRED: u32 = 30;
const RECONNECT_RARE: Duration = Duration::from_secs(600);

/// A try of a peer that was absent before, and for which nothing waits, ends after this: three initiations, of which
/// the last may take a second, as over a satellite.
const RECONNECT_PATIENCE: Duration = Duration::from_millis(1500);

/// Who was refused is not approached for so long: nobody gets a new certificate and complains within minutes, and a
/// clock that was wrong is right by then.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Refused keys remembered: to be one takes the network's secret, so they are former members.
const MAX_REFUSED: usize = 256;

/// The payload of a handshake message.
#[derive(Serialize, Deserialize)]
struct Hello {
    stamp: u64,
    record: Vec<u8>,
}

const MAX_HELLO: usize = MAX_RECORD + 16;

impl Node {
    /// Begins a handshake with `id` unless one is under way, its key or every endpoint is unknown, or we have no record yet.
    /// Who has just been answered is about to confirm: a second handshake would only cross the first.
    pub(super) fn initiate(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.handshake.is_none()) else { return };
        let Some(noise) = peer.noise else { return };
        if self.refused.get(&noise).is_some_and(|until| now < *until) {
            return;
        }
        let patience = peer.next.as_ref().map(|next| next.transport.created() + TIE_BREAK_TIME);
        match patience.filter(|until| now < *until) {
            Some(until) => self.timers.set_if_earlier(Timer::Reconnect(id), until),
            None => self.send_initiation(id, 0, now, now),
        }
    }

    fn send_initiation(&mut self, id: PeerId, attempt: u32, began: Instant, now: Instant) {
        let Some((record, sequence)) = self.own.record().map(|record| (record.bytes().to_vec(), record.sequence))
        else {
            return;
        };
        self.forget_handshake(id);
        let (stamp, index, seed) = (self.next_stamp(now), self.new_index(id), self.random_seed());
        let hello = hello(stamp, &record);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(noise) = peer.noise else { return };
        let mut targets = self.targets(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // A session that is merely replaced has a path that works; only if it does not, the others are tried.
        if attempt == 0 && peer.current.is_some() && peer.paths.primary().is_some() {
            targets.truncate(1);
        }
        if targets.is_empty() {
            return;
        }
        let cookie = peer.cookies.cookie(now);
        let (local, secret) = self.epochs.at_attempt(attempt);
        let quantum = peer.quantum.newest();
        let (initiator, datagram) = match Initiator::new(local, &noise, index, &hello, cookie, quantum, seed) {
            Ok(started) => started,
            Err(error) => {
                tracing::debug!(peer = %id, %error, "cannot initiate");
                return;
            }
        };
        let lonely = peer.current.is_none();
        peer.told = sequence;
        peer.handshake = Some(Outstanding { initiator, datagram, began, attempt, opens: false, secret });
        self.indices.insert(index, id);
        tracing::debug!(peer = %id, attempt, "initiation sent");
        self.send_to_targets(id, targets, now);
        if attempt > 0 && lonely {
            self.seek_relays(id, now);
        }
        if attempt >= UNANSWERED && lonely {
            self.seek_stream(id, false, now);
        }
    }

    /// Sends the outstanding initiation to `targets`, and sets when to try again.
    fn send_to_targets(&mut self, id: PeerId, targets: Vec<SocketAddr>, now: Instant) {
        let Some(outstanding) = self.peers.get(&id).and_then(|peer| peer.handshake.as_ref()) else { return };
        let (datagram, attempt) = (outstanding.datagram.clone(), outstanding.attempt);
        let mut opens = true;
        for endpoint in targets {
            opens &= !self.approach(id, endpoint, &datagram, now);
        }
        if let Some(outstanding) = self.peers.get_mut(&id).and_then(|peer| peer.handshake.as_mut()) {
            outstanding.opens = opens;
        }
        let wait = if opens { OPENING_TIME } else { retry_delay(attempt, self.rng.next_u32()) };
        self.timers.set(Timer::Handshake(id), now + wait);
    }

    fn targets(&self, id: PeerId) -> Vec<SocketAddr> {
        let endpoints = self.peers.get(&id).map(|peer| peer.paths.endpoints()).unwrap_or_default();
        let endpoints = endpoints.into_iter().filter(|endpoint| !self.leads_back(endpoint));
        // Relays and streams were found for this very peer, and are few.
        let (found, named): (Vec<_>, Vec<_>) = endpoints.partition(is_discard);
        named.into_iter().take(MAX_TARGETS).chain(found).collect()
    }

    /// New candidates turned up: an outstanding initiation goes there too, else a handshake begins if the peer is wanted.
    pub(super) fn try_candidates(&mut self, id: PeerId, before: &[SocketAddr], now: Instant) {
        let targets = self.targets(id);
        let Some(peer) = self.peers.get(&id) else { return };
        if let Some(datagram) = peer.handshake.as_ref().map(|outstanding| outstanding.datagram.clone()) {
            for endpoint in targets.into_iter().filter(|endpoint| !before.contains(endpoint)) {
                self.approach(id, endpoint, &datagram, now);
            }
        } else if peer.current.is_none() && (self.is_warm() || peer.has_waiting()) {
            self.initiate(id, now);
        }
    }

    /// The outstanding initiation was not answered in time.
    pub(super) fn retry_handshake(&mut self, id: PeerId, now: Instant) {
        let Some(outstanding) = self.peers.get(&id).and_then(|peer| peer.handshake.as_ref()) else { return };
        let (attempt, began) = (outstanding.attempt + 1, outstanding.began);
        if outstanding.opens {
            // Nobody can have answered yet; the same goes out again, so that it arrives.
            self.send_to_targets(id, self.targets(id), now);
            return;
        }
        let hopeless = self.peers.get(&id).is_some_and(|peer| peer.failures > 0 && !peer.has_waiting());
        let patience = if hopeless && !self.is_pinged(id) { RECONNECT_PATIENCE } else { GIVE_UP_AFTER };
        if now < began + patience {
            self.send_initiation(id, attempt, began, now);
            return;
        }
        self.forget_handshake(id);
        self.drop_waiting(id, now);
        self.fail_pings(id, "does not answer");
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.failures = peer.failures.saturating_add(1);
        let failures = peer.failures;
        tracing::debug!(peer = %id, failures, "handshake given up");
        self.redraw(now);
        self.schedule_reconnect(id, now);
    }

    /// In a small network an absent member is tried again and again, ever more rarely.
    pub(super) fn schedule_reconnect(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let known = self.roster.get(&id).is_some() || peer.paths.is_remembered();
        if peer.departed || !known || !self.is_warm() {
            return;
        }
        let wait = (RECONNECT_FIRST * (1 << peer.failures.saturating_sub(1).min(5))).min(RECONNECT_MAX);
        let wait = if peer.failures < RECONNECT_TIRED { wait } else { RECONNECT_RARE };
        let wait = self.jittered(wait);
        self.timers.set(Timer::Reconnect(id), now + wait);
    }

    /// It is time to try an absent member again.
    pub(super) fn reconnect(&mut self, id: PeerId, now: Instant) {
        if self.peers.get(&id).is_some_and(|peer| peer.current.is_none() && !peer.departed) {
            self.initiate(id, now);
        }
    }

    /// A handshake datagram came in.
    pub(super) fn handle_handshake(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) {
        let outcome = match DatagramKind::of(datagram) {
            Some(DatagramKind::Initiation) => self.handle_initiation(datagram, source, now),
            Some(DatagramKind::Response) => self.handle_response(datagram, source, now),
            Some(DatagramKind::Cookie) => self.handle_cookie(datagram, now),
            Some(DatagramKind::Sealed) | None => Err(DropReason::DatagramMalformed),
        };
        if let Err(reason) = outcome {
            tracing::trace!(%source, reason = reason.name(), "handshake dropped");
            self.counters.count(reason);
        }
    }

    fn handle_initiation(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) -> Result<(), DropReason> {
        let (secret, cookie) = self.admit(datagram, self.origin_of(source), now)?;
        if let Some(bytes) = cookie {
            self.outbox.push_back(Transmit::to(source, bytes));
            return Err(DropReason::HandshakeCookie);
        }
        let seed = self.random_seed();
        let mut responder =
            Responder::read(self.epochs.of(&secret), datagram, seed).map_err(|error| refusal(&error))?;
        let (record, stamp) = match self.check_hello(responder.payload(), responder.remote(), now) {
            Err(DropReason::HandshakeSelf) if self.handle_own_initiation(now) => return Ok(()),
            checked => checked?,
        };
        let id = record.peer();
        let outstanding = self.peers.get(&id).and_then(|peer| peer.handshake.as_ref());
        if let Some(outstanding) = outstanding
            && now < outstanding.began + TIE_BREAK_TIME
            && our_initiation_wins(&self.own.peer, &id)
            && self.peers.get(&id).is_some_and(|peer| peer.paths.knows(source))
        {
            // A relayed way opens at our end first, so what we sent by it may not have arrived.
            if channel_behind(&source).is_some() {
                self.outbox.push_back(Transmit::to(source, outstanding.datagram.clone()));
            }
            return Ok(());
        }
        if self.peers.get(&id).is_some_and(|peer| stamp <= peer.stamp) {
            return Err(DropReason::HandshakeReplayed);
        }
        // An initiation goes to every candidate, so it arrives once for each of our addresses. A second session in answer
        // to it would replace the one that the initiator is about to use.
        if let Some(next) = self.peers.get(&id).and_then(|peer| peer.next.as_ref())
            && next.ephemeral == responder.ephemeral()
        {
            let copy = Transmit::to(source, next.answer.clone());
            self.picture.send(copy, &mut self.outbox);
            return Ok(());
        }
        self.absorb(record, now)?;
        let Some((own, sequence)) = self.own.record().map(|record| (record.bytes().to_vec(), record.sequence)) else {
            return Ok(());
        };
        let hello = hello(self.next_stamp(now), &own);
        let index = self.new_index(id);
        if let Some(peer) = self.peers.get(&id) {
            responder.mix(peer.quantum.keys());
        }
        let ephemeral = responder.ephemeral();
        let (transport, bytes) = responder.respond(index, &hello, now).map_err(|error| refusal(&error))?;
        let Some(peer) = self.peers.get_mut(&id) else { return Err(DropReason::RecordRefused) };
        peer.told = sequence;
        let answer = bytes.clone();
        let next = Next { transport: Arc::new(transport), endpoint: source, stamp, ephemeral, answer, secret };
        if let Some(replaced) = peer.next.replace(next) {
            self.indices.remove(&replaced.transport.local());
        }
        self.indices.insert(index, id);
        self.timers.set_if_earlier(Timer::Session(id), self.clock.next_look(now));
        self.redraw(now);
        self.picture.hold(Transmit::to(source, bytes));
        Ok(())
    }

    fn handle_response(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) -> Result<(), DropReason> {
        let index = receiver_index(datagram).ok_or(DropReason::HandshakeMalformed)?;
        let id = *self.indices.get(&index).ok_or(DropReason::UnknownReceiver)?;
        let outstanding = self
            .peers
            .get_mut(&id)
            .and_then(|peer| peer.handshake.as_mut())
            .filter(|outstanding| outstanding.initiator.index() == index)
            .ok_or(DropReason::HandshakeReplayed)?;
        let secret = outstanding.secret;
        let (transport, payload) =
            outstanding.initiator.read_response(datagram, now).map_err(|error| refusal(&error))?;
        let noise = self.peers.get(&id).and_then(|peer| peer.noise).ok_or(DropReason::HandshakeMalformed)?;
        let (record, _) = self.check_hello(&payload, noise, now)?;
        if record.peer() != id {
            return Err(DropReason::MembershipRefused);
        }
        self.absorb(record, now)?;
        self.forget_handshake(id);
        self.indices.insert(index, id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.is_undrawn = true;
        }
        self.promote(id, Arc::new(transport), source, &secret, now);
        Ok(())
    }

    fn handle_cookie(&mut self, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        let index = receiver_index(datagram).ok_or(DropReason::HandshakeMalformed)?;
        let id = *self.indices.get(&index).ok_or(DropReason::UnknownReceiver)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownReceiver)?;
        let (Some(outstanding), Some(noise)) = (&peer.handshake, &peer.noise) else {
            return Err(DropReason::HandshakeReplayed);
        };
        let mac1 = outstanding.initiator.last_mac1();
        let (attempt, began, answered) = (outstanding.attempt, outstanding.began, outstanding.initiator.has_cookie());
        let local = self.epochs.of(&outstanding.secret);
        peer.cookies.open(local, noise, &mac1, datagram, now).map_err(|error| refusal(&error))?;
        // A cookie fits one path. Over two paths each would answer the initiation with the other's cookie by a cookie of
        // its own; after the first, the retry timer sets the pace.
        if !answered {
            self.send_initiation(id, attempt, began, now);
        }
        Ok(())
    }

    /// The first datagram of the initiator opened: our answer arrived, the session is good.
    pub(super) fn handle_confirmed(&mut self, local: u32, now: Instant) {
        let Some(&id) = self.indices.get(&local) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(next) = peer.next.take_if(|next| next.transport.local() == local) else { return };
        peer.stamp = peer.stamp.max(next.stamp);
        self.forget_handshake(id);
        self.promote(id, next.transport, next.endpoint, &next.secret, now);
    }

    /// `transport` is the session to send with from now on; it was made with the secret of this fingerprint.
    fn promote(
        &mut self,
        id: PeerId,
        transport: Arc<Transport>,
        endpoint: SocketAddr,
        secret: &[u8; 32],
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let replaces = peer.current.is_some();
        if let Some(oldest) = peer.succeed(transport) {
            self.indices.remove(&oldest.local());
        }
        if replaces {
            peer.paths.renew(endpoint, now);
        } else {
            peer.paths.adopt(endpoint, now);
        }
        if !is_discard(&split(endpoint).1) {
            self.netchecks.note_heard(now);
        }
        self.note_path(id, endpoint, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.failures = 0;
        peer.departed = false;
        let first = !std::mem::replace(&mut peer.connected, true);
        self.timers.cancel(Timer::Reconnect(id));
        // What replaces another is measured already.
        let look = if replaces { self.clock.next_look(now) } else { now + FIRST_CHECK };
        self.timers.set_if_earlier(Timer::Session(id), look);
        self.redraw(now);
        self.flush_waiting(id, now);
        self.tell_ledger(id, now);
        self.tell_stations(id, now);
        if !self.epochs.is_newest(secret) {
            self.tell_secret(id, now);
        }
        self.send_pings(id, now);
        if first {
            self.tell_askers(id, now);
            match channel_behind(&endpoint) {
                Some(_) => self.announce(id, PeerChange::Relayed),
                None => {
                    let place = self.underlay(endpoint);
                    self.announce(id, PeerChange::Connected(place));
                    // A socket of its own was opened for UDP alone, and a stream is no place.
                    if place == endpoint {
                        self.dial(id, vec![place], Vec::new());
                    }
                }
            }
            self.reconsider_homes(now);
        }
    }

    /// Reads and judges the payload of a handshake whose sender holds the private key of `noise`.
    fn check_hello(
        &mut self,
        payload: &[u8],
        noise: NoisePublic,
        now: Instant,
    ) -> Result<(Verified<Record>, u64), DropReason> {
        let hello: Hello = canonical::decode(payload, MAX_HELLO).map_err(|_| DropReason::HandshakeMalformed)?;
        let checked = self.check_record(&hello.record, now);
        if matches!(checked, Err(RecordError::Chain(ChainError::Expired { .. }) | RecordError::Excluded(_))) {
            self.refuse(noise, now);
        }
        let record = checked.map_err(|error| drop_reason(&error))?;
        if record.noise != noise {
            return Err(DropReason::MembershipRefused);
        }
        if record.peer() == self.own.peer {
            return Err(DropReason::HandshakeSelf);
        }
        Ok((record, hello.stamp))
    }

    /// The holder of `noise` is no member any more: whatever sightings say, it learns nothing more from us. A record that
    /// is merely out of date is no such proof: clocks are wrong, and set right.
    pub(super) fn refuse(&mut self, noise: NoisePublic, now: Instant) {
        self.refused.retain(|_, until| now < *until);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_first();
        }
        self.refused.insert(noise, now + REFUSED_FOR);
    }

    /// Milliseconds of this run above every earlier run, and greater than any stamp before.
    pub(super) fn next_stamp(&mut self, now: Instant) -> u64 {
        let run = now.saturating_duration_since(self.clock.start).as_millis() as u64;
        self.last_stamp = (self.last_stamp + 1).max(sequence_base(self.config.boots) + run);
        self.last_stamp
    }

    fn forget_handshake(&mut self, id: PeerId) {
        self.timers.cancel(Timer::Handshake(id));
        if let Some(outstanding) = self.peers.get_mut(&id).and_then(|peer: &mut Peer| peer.handshake.take()) {
            self.indices.remove(&outstanding.initiator.index());
        }
    }

    /// Drops everything there is with a peer: sessions, handshake, their indices.
    pub(super) fn forget_sessions(&mut self, id: PeerId) {
        self.forget_handshake(id);
        self.timers.cancel(Timer::Session(id));
        self.timers.cancel(Timer::Reconnect(id));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for transport in peer.transports() {
            self.indices.remove(&transport.local());
        }
        peer.current = None;
        peer.older.clear();
        peer.next = None;
    }

    pub(super) fn announce(&mut self, id: PeerId, change: PeerChange) {
        let name = self.roster.get(&id).map_or_else(|| id.short(), |record| record.name().to_string());
        self.events.push_back(Event::PeerChange { peer: id, name, change });
    }
}

fn refusal(error: &HandshakeError) -> DropReason {
    error.drop_reason()
}

/// The payload of a handshake: a stamp and our signed record.
pub(super) fn hello(stamp: u64, record: &[u8]) -> Vec<u8> {
    canonical::encode(&Hello { stamp, record: record.to_vec() })
}
