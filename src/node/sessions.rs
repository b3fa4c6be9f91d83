//! A session lives: probes when it is silent, replacement when it ages, messages, roaming, goodbye.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::dht;
use crate::identity::PeerId;
use crate::nat::mtu::BASE_PAYLOAD;
use crate::session::Transport;
use crate::session::transport::REST;
use crate::switch::{seal_message, seal_padded};
use crate::wire::relay::{channel_behind, is_discard};
use crate::wire::socket::split;
use crate::wire::stream::is_guest;
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::{Event, PeerChange, Transmit};
use super::timers::Timer;

/// Between two looks at all peers' sessions, which happen together: an idle node wakes every five seconds, however many
/// peers it has. That is fine enough for everything below.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// A new session is looked at so soon: the picture is out by then, and every candidate's round trip can be measured.
pub(super) const FIRST_CHECK: Duration = Duration::from_millis(100);

/// A peer to whom we sent and who has been silent this long is probed: longer than most round trips, and what moves to
/// another path then has lost less than three seconds.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// A probe that is not answered by then is sent on every path, and relays are asked: a satellite's round trip.
pub(super) const ANSWER_TIME: Duration = Duration::from_millis(600);

/// Added to a known round trip when an answer over a relayed path is awaited: others wait for it with us.
const JITTER: Duration = Duration::from_millis(50);

/// Between two looks at a peer to whom frames go, so that silence is noticed in time.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An idle warm peer is probed after this silence, at the next look: NATs exist that forget after 20 s. Ten bytes a second.
pub(super) const WARM_PROBE_AFTER: Duration = Duration::from_secs(12);

/// Silent this long in spite of probes: gone. Six lost probes in a row do not happen on a path worth having.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(30);

/// A session unused this long when it ages is left to die; the next frame makes another within a round trip.
const IDLE_AFTER: Duration = Duration::from_secs(60);

impl Node {
    /// Looks after the sessions of a peer.
    pub(super) fn check_sessions(&mut self, id: PeerId, now: Instant) {
        self.drop_aged(id, now);
        // Others count on it that our home relays reach us.
        let warm = (self.is_warm() || self.own.homes.contains(&id)) && self.roster.get(&id).is_some();
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(current) = peer.current.clone() else {
            if !peer.older.is_empty() || peer.next.is_some() {
                self.timers.set(Timer::Session(id), self.clock.next_look(now));
            } else if warm {
                self.schedule_reconnect(id, now);
            }
            return;
        };
        // After a rest we are told.
        let busy = current.last_sent().is_some_and(|sent| now < sent + REST);
        let next = if busy { now + BUSY_CHECK_INTERVAL } else { self.clock.next_look(now) };
        self.timers.set(Timer::Session(id), next);
        let heard = peer.last_heard().unwrap_or_else(|| current.created());
        let silent = now.saturating_duration_since(heard);
        let sent_since = current.last_sent().is_some_and(|sent| sent > heard);
        if silent >= GONE_AFTER && (warm || sent_since) {
            self.lose(id, "silent", now);
            return;
        }
        let age = now.saturating_duration_since(current.created());
        self.upgrade(id, now);
        self.refresh_outside(id, now);
        let Some(peer) = self.peers.get(&id) else { return };
        // One that replaces another has its path: to try them all again would leave it each time that its probe is lost.
        let unmeasured = peer.paths.rtt().is_none() || age < 2 * FIRST_CHECK && peer.older.is_empty();
        let unanswered = warm && silent >= WARM_PROBE_AFTER + CHECK_INTERVAL;
        let deaf = sent_since && silent >= PROBE_AFTER;
        let direct = peer.is_direct();
        if unmeasured {
            self.probe(id, now);
        } else if unanswered || deaf && peer.paths.is_unanswered() {
            if deaf {
                self.seek_relays(id, now);
                self.seek_stream(id, true, now);
            }
            if deaf && !direct {
                self.timers.set_if_earlier(Timer::Session(id), now + ANSWER_TIME);
            }
            // Where we speak through a relay, a lone knock on any other door only spoils the next one together.
            self.probe_where(id, |endpoint| direct || channel_behind(endpoint).is_some(), now);
        } else if deaf {
            // Whoever has the last word hears nothing either: ask where it costs one datagram, and everywhere if that is lost.
            let rtt = peer.paths.rtt().unwrap_or(ANSWER_TIME);
            // A relay is one more machine that may be gone: the others are asked meanwhile whether they still lead there.
            let patience = if direct { ANSWER_TIME } else { (3 * rtt + JITTER).min(ANSWER_TIME) };
            if direct {
                self.probe_primary(id, now);
            } else {
                self.seek_relays(id, now);
                self.probe_where(id, |endpoint| channel_behind(endpoint).is_some(), now);
            }
            self.timers.set_if_earlier(Timer::Session(id), now + patience);
        } else if warm && silent >= WARM_PROBE_AFTER {
            self.probe_primary(id, now);
        }
        self.tend_mtu(id, now);
        self.tell_ledger_again(id, now);
        self.tell_stations_again(id, now);
        self.tend_quantum(id, now);
        let used = current.last_sent().max(Some(heard)).is_some_and(|used| now < used + IDLE_AFTER);
        if current.is_due(now) && (warm || used) {
            self.initiate(id, now);
        }
    }

    /// Frames go to a peer again.
    pub(super) fn handle_busy(&mut self, local: u32, now: Instant) {
        if let Some(&id) = self.indices.get(&local) {
            self.timers.set_if_earlier(Timer::Session(id), now + BUSY_CHECK_INTERVAL);
        }
    }

    /// Forgets sessions past their time.
    fn drop_aged(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let dead = |transport: &Arc<Transport>| transport.is_dead(now);
        let mut dropped: Vec<_> = peer.older.extract_if(.., |transport| dead(transport)).collect();
        dropped.extend(peer.current.take_if(|transport| dead(transport)));
        dropped.extend(peer.next.take_if(|next| dead(&next.transport)).map(|next| next.transport));
        let mut changed = false;
        for transport in dropped {
            self.indices.remove(&transport.local());
            changed = true;
        }
        if changed {
            self.redraw(now);
        }
    }

    /// Probes every candidate of a peer; the first answer makes the primary.
    pub(super) fn probe(&mut self, id: PeerId, now: Instant) {
        self.probe_where(id, |_| true, now);
    }

    /// Probes the ways through relays, unless an answer from elsewhere is awaited.
    pub(super) fn probe_relays(&mut self, id: PeerId, now: Instant) {
        self.probe_where(id, |endpoint| channel_behind(endpoint).is_some(), now);
    }

    /// Asks whether the peer is still there, on the path that works: one small datagram, however many addresses it has.
    pub(super) fn probe_primary(&mut self, id: PeerId, now: Instant) {
        let primary = self.peers.get(&id).and_then(|peer| peer.paths.endpoints().first().copied());
        self.probe_with(id, |endpoint| Some(*endpoint) == primary, seal_message, now);
    }

    /// What may choose a path is as long as a handshake: who answers that can be sent data.
    pub(super) fn probe_where(&mut self, id: PeerId, wanted: impl Fn(&SocketAddr) -> bool, now: Instant) {
        self.probe_with(id, wanted, self.probe_seal(), now);
    }

    fn probe_seal(&self) -> Seal {
        if self.searches_mtu { seal_probe } else { seal_message }
    }

    fn probe_with(&mut self, id: PeerId, wanted: impl Fn(&SocketAddr) -> bool, seal: Seal, now: Instant) {
        let nonce = self.rng.next_u64();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(transport) = peer.current.clone() else { return };
        for endpoint in peer.paths.begin_round(nonce, wanted, now) {
            if !self.leads_back(&endpoint)
                && let Some(bytes) = seal(&transport, &Message::Ping { nonce }, now)
            {
                self.approach(id, endpoint, &bytes, now);
            }
        }
    }

    /// Our own endpoints changed: tell every peer over its session, and see which paths still work.
    pub(super) fn probe_everybody(&mut self, now: Instant) {
        let ids: Vec<_> = self.peers.iter().filter(|(_, peer)| peer.current.is_some()).map(|(id, _)| *id).collect();
        for id in ids {
            self.probe(id, now);
        }
        let idle: Vec<_> = self.peers.iter().filter(|(_, peer)| peer.current.is_none()).map(|(id, _)| *id).collect();
        if self.is_warm() {
            for id in idle {
                self.reconnect(id, now);
            }
        }
    }

    /// Sends a message to a peer over its session and primary, if it has them.
    pub(super) fn send_message(&mut self, id: PeerId, message: &Message, now: Instant) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let (Some(transport), Some(endpoint)) = (&peer.current, peer.paths.primary()) else { return false };
        let Some(bytes) = seal_message(transport, message, now) else { return false };
        self.send_sealed(id, Transmit::to(endpoint, bytes));
        true
    }

    /// An opened message from `id`.
    pub(super) fn handle_message(&mut self, id: PeerId, bytes: &[u8], source: SocketAddr, now: Instant) {
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(_) => return self.counters.count(DropReason::InnerMalformed),
        };
        self.note_source(id, source, now);
        match message {
            Message::Ping { nonce } => {
                // What answers may become the peer's primary, so its socket must stay; a notice tells of one hit among several.
                if split(source).0 != 0 {
                    self.handle_roamed(id, source, now);
                }
                let transport = self.peers.get(&id).and_then(|peer| peer.current.clone());
                let pong = Message::Pong { nonce, observed: self.underlay(source) };
                if let Some(bytes) = transport.and_then(|transport| seal_message(&transport, &pong, now)) {
                    self.send_sealed(id, Transmit::to(source, bytes));
                }
            }
            Message::Pong { nonce, observed } => self.handle_pong(id, nonce, observed, source, now),
            Message::Record(bytes) => self.handle_record(id, &bytes, now),
            Message::Goodbye => self.handle_goodbye(id, now),
            Message::Keepalive => (),
            Message::Punch => self.handle_punch(id, now),
            Message::Punching => self.handle_punching(id, now),
            Message::AskWitness => self.handle_ask_witness(id, now),
            Message::Witness { ports } => self.handle_witness(id, &ports, now),
            Message::Survey { nonce } => self.handle_survey(id, nonce, source, now),
            Message::Forecast(forecast) => self.handle_forecast(id, forecast, now),
            Message::Filtering { nonce } => self.handle_filtering(id, nonce, source, now),
            Message::Knock { peer, at, nonce } => self.handle_knock(id, peer, at, nonce, now),
            Message::Knocked { nonce } => self.handle_knocked(id, nonce, source, now),
            Message::Knocking { nonce } => self.handle_knocking(id, nonce, now),
            Message::Open(open) => self.handle_open(id, open, now),
            Message::Opened { channel, mark, way } => self.handle_opened(id, channel, mark, way, now),
            Message::Refused { channel } => self.handle_refused(id, channel, now),
            Message::Offer { peer, channel, way } => self.handle_offer(id, peer, channel, way, now),
            Message::Accept { channel, mark } => self.handle_accept(id, channel, mark, now),
            Message::Reached { peer } => self.handle_reached(id, peer, now),
            Message::Ledger { digest, secret } => self.handle_ledger(id, digest, secret, now),
            Message::Buckets(buckets) => self.handle_buckets(id, &buckets, now),
            Message::Statement(bytes) => self.handle_statement(id, &bytes, now),
            Message::Secret { epoch, secret } => self.handle_secret(id, &epoch, secret, now),
            Message::KemKey(ask) => self.handle_kem_key(id, &ask, now),
            Message::KemAnswer(said) => self.handle_kem_answer(id, &said, now),
            Message::Stations(claim) => self.handle_stations(id, &claim, now),
        }
    }

    fn handle_record(&mut self, from: PeerId, bytes: &[u8], now: Instant) {
        // Before the signatures are looked at: they are what costs.
        if !self.peers.get_mut(&from).is_some_and(|peer| peer.takes_record(now)) {
            return self.counters.count(DropReason::RecordBudget);
        }
        match self.verify_record(bytes, now) {
            Ok(record) => self.take_in(record, now),
            Err(reason) => self.counters.count(reason),
        }
    }

    fn handle_pong(&mut self, id: PeerId, nonce: u64, observed: SocketAddr, source: SocketAddr, now: Instant) {
        if !is_discard(&split(source).1) {
            self.netchecks.note_heard(now);
        }
        if self.answer_survey(id, nonce, observed, now)
            || self.answer_ping(id, nonce, observed, source, now)
            || self.answer_path_ping(id, nonce, now)
            || self.answer_mtu(id, nonce, source, now)
        {
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.paths.on_refreshed(nonce, source, now) {
            return self.note_observation(id, source, observed, now);
        }
        let Some((rtt, changed)) = peer.paths.on_answer(nonce, source, now) else { return };
        if changed {
            tracing::debug!(peer = %id, endpoint = %source, ?rtt, "new primary");
            self.redraw(now);
            self.note_path(id, source, now);
            self.tend_mtu(id, now);
        }
        self.note_observation(id, source, observed, now);
    }

    /// A peer at `source` sees us at `observed`.
    fn note_observation(&mut self, id: PeerId, source: SocketAddr, observed: SocketAddr, now: Instant) {
        // Through a relay it saw the relay, by a stream that; and another socket is not where others are to go.
        if self.is_overlay(observed.ip()) || is_discard(&source) {
            return;
        }
        self.observations.note(id, source, observed, now);
        self.review_outside(now);
    }

    /// Something was learnt of where we are for others. If that is news, everybody learns it by our record.
    pub(super) fn review_outside(&mut self, now: Instant) {
        let reflexive = self.observations.reflexive(&self.own.endpoints);
        let moved = reflexive != self.own.reflexive;
        let mapped = self.own.mapped.review(&self.observations.addresses(&self.own.endpoints));
        if moved {
            tracing::debug!(?reflexive, "seen from outside");
            self.own.reflexive = reflexive;
        }
        if mapped {
            tracing::debug!(mapped = ?self.own.mapped.believed(), "let in by the gateway");
            self.events.push_back(Event::Directory(dht::Command::Listening(self.own.listening(self.config.tls))));
        }
        if (moved || mapped) && self.own.record().is_some() {
            self.reconsider_homes(now);
            self.renew_record(now);
        }
    }

    /// An authenticated datagram came from an unexpected endpoint: a candidate at once, the primary once it answers.
    pub(super) fn handle_roamed(&mut self, id: PeerId, endpoint: SocketAddr, now: Instant) {
        let (number, there) = split(endpoint);
        if self.is_overlay(there.ip()) || number != 0 && self.surveys.is_aside(number, id) {
            return;
        }
        let seal = self.probe_seal();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.paths.primary() == Some(endpoint) || peer.is_aside(endpoint) {
            return;
        }
        let primary = peer.paths.primary();
        // Who has dialled us chooses among its streams, and TCP leads back: else what it has relayed came from a foreign place.
        if is_guest(&endpoint) && primary.as_ref().is_some_and(is_guest) {
            peer.paths.adopt(endpoint, now);
            self.note_path(id, endpoint, now);
            return self.redraw(now);
        }
        let relayed = |endpoint: Option<SocketAddr>| endpoint.as_ref().and_then(channel_behind).is_some();
        let between_relays = relayed(primary) && relayed(Some(endpoint));
        // In a crowd each new one pushes out another, which is new again with its next datagram: probes would beget probes.
        let crowded = peer.paths.is_crowded();
        let strange = peer.paths.add(endpoint, crate::nat::Origin::Observed) && !crowded;
        if between_relays && (strange || peer.paths.has_moved_to(endpoint, now)) {
            self.probe_where(id, |candidate| *candidate == endpoint || Some(*candidate) == primary, now);
        } else if strange || peer.paths.is_in_doubt(now) {
            // A lone knock on any other door only spoils the next one together.
            self.probe_where(id, |candidate| !between_relays || relayed(Some(*candidate)), now);
        } else if let Some(nonce) = peer.paths.join_round(endpoint)
            && let Some(transport) = peer.current.clone()
            && let Some(bytes) = seal(&transport, &Message::Ping { nonce }, now)
        {
            // It has found a way already.
            self.send_sealed(id, Transmit::to(endpoint, bytes));
        }
    }

    /// Says goodbye to every peer with a session.
    pub(super) fn say_goodbye(&mut self, now: Instant) {
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            self.send_message(id, &Message::Goodbye, now);
        }
    }

    fn handle_goodbye(&mut self, id: PeerId, now: Instant) {
        self.lose(id, "said goodbye", now);
        self.timers.cancel(Timer::Reconnect(id));
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.departed = true;
        }
    }

    /// The peer is gone: its sessions are forgotten, the member is not.
    pub(super) fn lose(&mut self, id: PeerId, why: &'static str, now: Instant) {
        self.forget_sessions(id);
        self.forget_stations_of(id, now);
        self.close_channels(id, now);
        self.hang_up_on(id);
        self.surveys.forget(id);
        self.hunts.forget(id);
        self.tidy_sockets();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.exchange = None;
        peer.account.forget();
        peer.paths.reset();
        peer.failures = peer.failures.max(1);
        if std::mem::replace(&mut peer.connected, false) {
            self.announce(id, PeerChange::Gone(why));
        }
        self.redraw(now);
        self.schedule_reconnect(id, now);
    }
}

/// How a message is sealed.
type Seal = fn(&Transport, &Message, Instant) -> Option<Vec<u8>>;

/// As long as the shortest datagram that every path carries.
fn seal_probe(transport: &Transport, message: &Message, now: Instant) -> Option<Vec<u8>> {
    seal_padded(transport, message, BASE_PAYLOAD, now)
}
