//! The ledger at work: statements come from operators, peers and the control network, go to everybody with a session, and
//! whoever is expelled by one is lost at once.
//!
//! Two nodes with a new session tell each other the digests of their ledgers; who sees another than its own says what it has
//! by buckets, and is sent what it may lack ([`crate::dht::ledger`]). So a partition that heals is of one mind after a round
//! trip or two. Any of it may be lost on the way, so the digest is told a few times, after news too.
//!
//! A member that meets somebody who joined by an invite says so after a while, unless somebody else has by then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::dht::statement::Fact;
use crate::dht::{self, Exclusion, Record, Statement, Verified};
use crate::identity::{Kind, PeerId};
use crate::wire::{DropReason, Message};

use super::Node;
use super::command::{CommandId, Reply};
use super::event::Event;
use super::timers::Timer;

/// Statements in answer to one comparison: 64 KiB, a burst that a slow line carries in a second. With more to say the
/// digest is told again, and the rest is asked for.
const MAX_ANSWER: usize = 64;

/// Answers that one peer gets within [`COMPARISON_SPAN`]: every statement that a ledger holds, once.
const MAX_COMPARISONS: u32 = 128;
const COMPARISON_SPAN: Duration = Duration::from_secs(60);

/// How often a peer is told the digest of a ledger: at once, and at the next looks. Three datagrams in a row are not lost on a
/// path worth having.
const TELLINGS: u32 = 3;

/// How long statements wait to be written to disk: the news of one moment, once.
const KEEP_AFTER: Duration = Duration::from_millis(250);

/// From meeting a newcomer to saying so: at least, at most, and for each member that might do it too. Gossip takes a few
/// hundred milliseconds, so one or two of all do.
const WITNESS_AFTER: Duration = Duration::from_secs(1);
const WITNESS_SPREAD: Duration = Duration::from_secs(2);
const WITNESS_SPREAD_EACH: Duration = Duration::from_millis(20);

/// Newcomers witnessed at once; more take another while.
const MAX_WITNESSED_AT_ONCE: usize = 32;

/// How often a peer was sent statements in answer to its buckets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Comparisons {
    since: Option<Instant>,
    count: u32,
}

impl Comparisons {
    /// One more, if it may be.
    fn admit(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + COMPARISON_SPAN) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count <= MAX_COMPARISONS
    }
}

/// From the news that we are no member any more to our leaving: that somebody keeps us may come a moment later, by another way. Twice as
/// long would only show the operator later why nobody answers.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// What the disk keeps, before anything else is judged.
    pub(super) fn load_ledger(&mut self, now: Instant) {
        let unix = self.clock.unix(now);
        for bytes in std::mem::take(&mut self.config.known_statements) {
            match Statement::check(&bytes, &self.network, unix) {
                // The directory has read them itself.
                Ok(statement) => drop(self.ledger.insert(Arc::new(statement))),
                Err(error) => tracing::warn!(%error, "a kept statement is refused"),
            }
        }
        self.order_epochs();
        self.note_unfollowed(now);
        self.check_ourselves();
    }

    /// An operator says something, signed already: its key may be the network's root key, which no node holds.
    pub(super) fn declare(&mut self, id: CommandId, text: &str, now: Instant) {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap_or_default();
        let reply = match Statement::check(&bytes, &self.network, self.clock.unix(now)) {
            Ok(statement) => Reply::Stated { news: self.take_statement(Arc::new(statement), None, now) },
            Err(error) => Reply::Error { message: error.to_string() },
        };
        self.reply(id, reply);
    }

    /// A peer says something.
    pub(super) fn handle_statement(&mut self, from: PeerId, bytes: &[u8], now: Instant) {
        match Statement::check(bytes, &self.network, self.clock.unix(now)) {
            Ok(statement) => drop(self.take_statement(Arc::new(statement), Some(from), now)),
            Err(error) => {
                tracing::debug!(peer = %from, %error, "statement refused");
                self.counters.count(DropReason::StatementRefused);
            }
        }
    }

    /// Takes in a statement that came from a peer, or from elsewhere; returns whether it is news. Who is expelled by it hears
    /// of it before its session ends.
    pub(super) fn take_statement(&mut self, statement: Arc<Statement>, from: Option<PeerId>, now: Instant) -> bool {
        match self.ledger.insert(Arc::clone(&statement)) {
            Ok(true) => (),
            Ok(false) => return false,
            Err(_) => {
                self.counters.count(DropReason::StatementRefused);
                return false;
            }
        }
        tracing::debug!(?statement, "news");
        let message = Message::Statement(statement.bytes().to_vec());
        let others: Vec<_> = self.peers.keys().copied().filter(|id| Some(*id) != from).collect();
        for id in others {
            self.send_message(id, &message, now);
        }
        self.note_ledger_news();
        self.timers.set_if_earlier(Timer::Keep, now + KEEP_AFTER);
        self.events.push_back(Event::Directory(dht::Command::State(Arc::clone(&statement))));
        let about = match statement.fact() {
            Fact::Revoked { target, .. } => *target,
            Fact::Withdrawn { invite } | Fact::Redeemed { invite, .. } => *invite,
            // Lets in; expels nobody. Who was refused may be in the right now.
            Fact::Kept { .. } => {
                self.refused.clear();
                return true;
            }
            Fact::Epoch { .. } => {
                self.review_epochs(now);
                self.note_unfollowed(now);
                return true;
            }
        };
        let concerns = |record: &&Verified<Record>| record.chain.links.iter().any(|link| link.body.subject == about);
        let concerned = self.roster.iter().filter(concerns);
        let out: Vec<_> =
            concerned.filter_map(|record| Some((record.peer(), self.ledger.verdict(&record.chain).err()?))).collect();
        for (id, exclusion) in out {
            self.expel(id, &exclusion, now);
        }
        self.review_epochs(now);
        self.note_unfollowed(now);
        if self.ledger.verdict(&self.config.chain).is_err() {
            self.timers.set_if_earlier(Timer::Leave, now + LEAVE_AFTER);
        }
        true
    }

    /// The member is none any more: nothing of it stays but the statement.
    fn expel(&mut self, id: PeerId, exclusion: &Exclusion, now: Instant) {
        if id == self.own.peer {
            return;
        }
        tracing::info!("{} is no member any more: {exclusion}", self.name_of(id));
        self.lose(id, "no member any more", now);
        self.forget_sessions(id);
        self.fail_pings(id, "is no member any more");
        if let Some(noise) = self.peers.remove(&id).and_then(|peer| peer.noise) {
            self.refuse(noise, now);
        }
        self.roster.remove(&id);
        self.timers.set_if_earlier(Timer::Persist, now);
        self.redraw(now);
    }

    /// Leaves, if we are no member any more.
    pub(super) fn check_ourselves(&mut self) {
        if let Err(exclusion) = self.ledger.verdict(&self.config.chain) {
            // Nobody will tell us again.
            self.keep_ledger();
            self.events.push_back(Event::Expelled(exclusion.to_string()));
        }
    }

    /// Tells a peer with a new session what our ledger is, if we have heard anything.
    pub(super) fn tell_ledger(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.tellings = 0;
        }
        self.tell_ledger_again(id, now);
    }

    /// The same at a look, unless it was told often enough.
    pub(super) fn tell_ledger_again(&mut self, id: PeerId, now: Instant) {
        if self.ledger.is_empty() {
            return;
        }
        let message = Message::Ledger { digest: self.ledger.digest(), secret: self.epochs.newest_mark() };
        if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.tellings < TELLINGS) {
            peer.tellings += 1;
            self.send_message(id, &message, now);
        }
    }

    /// Our ledger or our secret is another. It has just been pushed; whom that does not reach is told at the next looks.
    pub(super) fn note_ledger_news(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.tellings = peer.tellings.min(1));
    }

    /// A peer's ledger has this digest, and of its secrets this is the newest.
    pub(super) fn handle_ledger(&mut self, id: PeerId, digest: [u8; 16], secret: [u8; 16], now: Instant) {
        if digest != self.ledger.digest() {
            self.send_message(id, &Message::Buckets(self.ledger.buckets()), now);
        }
        if secret != self.epochs.newest_mark() {
            self.tell_secret(id, now);
        }
    }

    /// A peer's ledger has these buckets: it gets what it may lack.
    pub(super) fn handle_buckets(&mut self, id: PeerId, buckets: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.comparisons.admit(now) {
            return self.counters.count(DropReason::StatementRefused);
        }
        let beyond: Vec<_> = self.ledger.beyond(buckets).take(MAX_ANSWER).map(|held| held.bytes().to_vec()).collect();
        let full = beyond.len() == MAX_ANSWER;
        for bytes in beyond {
            self.send_message(id, &Message::Statement(bytes), now);
        }
        if full {
            self.tell_ledger(id, now);
        }
    }

    /// Hands the whole ledger to the disk.
    pub(super) fn keep_ledger(&mut self) {
        self.events.push_back(Event::Keep(self.ledger.iter().map(|held| held.bytes().to_vec()).collect()));
    }

    /// A member is known of whom nobody has said that it joined, perhaps.
    pub(super) fn note_newcomer(&mut self, id: PeerId, now: Instant) {
        if self.roster.get(&id).is_some_and(|record| self.unwitnessed(record).next().is_some()) {
            let spread = WITNESS_SPREAD + WITNESS_SPREAD_EACH * self.roster.len() as u32;
            let wait = WITNESS_AFTER + spread * (self.rng.next_u32() % 1024) / 1024;
            self.timers.set_if_earlier(Timer::Witness, now + wait);
        }
    }

    /// Says who joined by which invite, where nobody has.
    pub(super) fn witness(&mut self, now: Instant) {
        let facts: Vec<_> =
            self.roster.iter().flat_map(|record| self.unwitnessed(record)).take(MAX_WITNESSED_AT_ONCE).collect();
        if facts.len() == MAX_WITNESSED_AT_ONCE {
            self.timers.set(Timer::Witness, now + WITNESS_AFTER);
        }
        let unix = self.clock.unix(now);
        for fact in facts {
            match Statement::sign(&self.config.key, &self.network, self.config.chain.clone(), fact, unix) {
                Ok(statement) => drop(self.take_statement(Arc::new(statement), None, now)),
                Err(error) => return tracing::debug!(%error, "we cannot witness"),
            }
        }
    }

    /// By which invites a member joined without anybody's having said so, where we may. By an invite of limited use, whoever
    /// joined by it too may not: it would profit.
    fn unwitnessed(&self, record: &Verified<Record>) -> impl Iterator<Item = Fact> {
        let ours = |key: &PeerId| self.config.chain.links.iter().any(|link| link.body.subject == *key);
        record.chain.redemptions().filter_map(move |(invite, member)| {
            let (key, subject) = (invite.body.subject, member.body.subject);
            let may =
                subject != self.own.peer && member.body.kind == Kind::Member && (invite.body.uses == 0 || !ours(&key));
            (may && self.ledger.redemption(&key, &subject).is_none())
                .then(|| Fact::Redeemed { invite: key, certificate: member.clone() })
        })
    }
}
