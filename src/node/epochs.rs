//! The network's secret changes when somebody is expelled, who knows it.
//!
//! Whoever expels draws a new secret and says so in a statement that has its fingerprint ([`Fact::Epoch`]). The secret itself
//! goes from member to member inside their sessions, and to nobody who does not know of the revocation yet: it would hand it
//! on to the one who is to be kept out. Control network and mDNS speak the newest secret only. Handshakes are read with the
//! last few, so that a member that was away comes back by itself: it knocks with the secret that it has, is a member, and is
//! told the new one. Who was expelled knocks as well, but is answered by nobody.
//!
//! Where it takes several admins to expel somebody, the last to say so draws the secret. On two islands nobody is the last, and where both have drawn
//! one, whom the other has expelled may know it: then the node of an admin draws another, when both are one again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::config::NodeConfig;
use crate::dht::statement::Fact;
use crate::dht::{self, Ledger, Statement};
use crate::identity::{NetworkSecret, PeerId};
use crate::session::gate::Admission;
use crate::session::handshake::{Local, check_mac1};
use crate::wire::{DropReason, Message};

use super::Node;
use super::command::{CommandId, Reply};
use super::event::Event;
use super::streams::with_tls;
use super::timers::Timer;

/// Secrets kept, the newest among them: whoever slept through seven revocations comes back by itself. Each costs a datagram
/// of garbage one more hash.
const MAX_EPOCHS: usize = 8;

/// From the news that somebody expelled may know the newest secret to another one: at least, and up to twice as long. Gossip takes a few hundred
/// milliseconds, so mostly one admin's node does it; of two the ledger takes one.
const FOLLOW_AFTER: Duration = Duration::from_secs(5);

/// The secrets that we know, the newest first; at least one.
pub(super) struct Epochs {
    known: Vec<Epoch>,
    /// A secret whose statement we have, but not the revocation that it came of.
    pending: Option<(Arc<Statement>, NetworkSecret)>,
}

/// One secret.
struct Epoch {
    secret: NetworkSecret,
    fingerprint: [u8; 32],
    local: Local,
}

impl Epochs {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let mut epochs = Self { known: Vec::new(), pending: None };
        for secret in config.known_secrets.iter().chain([&config.network.secret]) {
            if !epochs.knows(&secret.fingerprint()) {
                epochs.known.push(Epoch::new(secret.clone(), config));
            }
        }
        epochs
    }

    /// What handshakes are made with, the newest secret's.
    pub(super) fn current(&self) -> &Local {
        &self.known[0].local
    }

    /// What the `attempt`-th try of a handshake is made with: every other one with the newest secret, those between with the
    /// older ones in turn, for peers that have not heard of it.
    pub(super) fn at_attempt(&self, attempt: u32) -> (&Local, [u8; 32]) {
        let (attempt, older) = (attempt as usize, self.known.len() - 1);
        let at = if attempt % 2 == 0 || older == 0 { 0 } else { 1 + attempt / 2 % older };
        (&self.known[at].local, self.known[at].fingerprint)
    }

    /// What was made with the secret of this fingerprint; of the newest, if it is not known any more.
    pub(super) fn of(&self, fingerprint: &[u8; 32]) -> &Local {
        &self.known.iter().find(|epoch| epoch.fingerprint == *fingerprint).unwrap_or(&self.known[0]).local
    }

    /// Whether this is the newest secret's fingerprint.
    pub(super) fn is_newest(&self, fingerprint: &[u8; 32]) -> bool {
        self.known[0].fingerprint == *fingerprint
    }

    /// By which peers compare their newest secrets: the first half of its fingerprint.
    pub(super) fn newest_mark(&self) -> [u8; 16] {
        std::array::from_fn(|nth| self.known[0].fingerprint[nth])
    }

    fn knows(&self, fingerprint: &[u8; 32]) -> bool {
        self.known.iter().any(|epoch| epoch.fingerprint == *fingerprint)
    }

    /// Puts the newest first, as the ledger has it; what it does not name is older than what it names.
    fn order(&mut self, ledger: &Ledger) {
        let order: Vec<_> = ledger.epochs().into_iter().map(|(fingerprint, _)| fingerprint).collect();
        let place = |epoch: &Epoch| order.iter().position(|one| *one == epoch.fingerprint).unwrap_or(usize::MAX);
        self.known.sort_by_key(place);
        self.known.truncate(MAX_EPOCHS);
    }
}

impl Epoch {
    fn new(secret: NetworkSecret, config: &NodeConfig) -> Self {
        let local = Local::new(&config.key.noise_secret(), &secret, config.hardware_aes);
        let local = local.with_post_quantum(config.post_quantum);
        Self { fingerprint: secret.fingerprint(), local, secret }
    }
}

impl Node {
    /// Which of our secrets an initiation is made with, and whether it is worth reading. One made with an older secret is
    /// let in while there is time for it, but not given a cookie: it may be of somebody who was expelled.
    pub(super) fn admit(
        &mut self,
        datagram: &[u8],
        source: std::net::SocketAddr,
        now: Instant,
    ) -> Result<([u8; 32], Option<Vec<u8>>), DropReason> {
        let mut epoch = &self.epochs.known[0];
        let mut admission = self.gate.admit(&epoch.local, datagram, source, now);
        if admission == Admission::Drop(DropReason::HandshakeMac) {
            let older = self.epochs.known[1..].iter().find(|epoch| check_mac1(&epoch.local, datagram).is_ok());
            epoch = older.ok_or(DropReason::HandshakeMac)?;
            if self.gate.is_under_load(now) {
                return Err(DropReason::HandshakeRate);
            }
            admission = self.gate.admit(&epoch.local, datagram, source, now);
        }
        match admission {
            Admission::Accept => Ok((epoch.fingerprint, None)),
            Admission::Cookie(bytes) => Ok((epoch.fingerprint, Some(bytes))),
            Admission::Drop(reason) => Err(reason),
        }
    }

    /// The operator has drawn a new secret.
    pub(super) fn begin_epoch(&mut self, id: CommandId, text: &str, secret: NetworkSecret, now: Instant) {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap_or_default();
        let reply = match Statement::check(&bytes, &self.network, self.clock.unix(now)) {
            Ok(statement) => Reply::Stated { news: self.take_secret(Arc::new(statement), secret, None, now) },
            Err(error) => Reply::Error { message: error.to_string() },
        };
        self.reply(id, reply);
    }

    /// A peer tells us a secret.
    pub(super) fn handle_secret(&mut self, from: PeerId, epoch: &[u8], secret: [u8; 32], now: Instant) {
        let secret = NetworkSecret::new(secret);
        match Statement::check(epoch, &self.network, self.clock.unix(now)) {
            Ok(statement) => drop(self.take_secret(Arc::new(statement), secret, Some(from), now)),
            Err(error) => {
                tracing::debug!(peer = %from, %error, "a secret is refused");
                self.counters.count(DropReason::StatementRefused);
            }
        }
    }

    /// Takes in a secret and the statement about it; returns whether it is news.
    fn take_secret(
        &mut self,
        statement: Arc<Statement>,
        secret: NetworkSecret,
        from: Option<PeerId>,
        now: Instant,
    ) -> bool {
        let Fact::Epoch { secret: fingerprint, after, .. } = statement.fact() else {
            self.counters.count(DropReason::StatementRefused);
            return false;
        };
        let (fingerprint, after) = (*fingerprint, *after);
        if fingerprint != secret.fingerprint() {
            self.counters.count(DropReason::StatementRefused);
            return false;
        }
        if self.epochs.knows(&fingerprint) {
            return false;
        }
        self.take_statement(Arc::clone(&statement), from, now);
        if !self.ledger.is_accused(&after) {
            self.epochs.pending = Some((statement, secret));
            return false;
        }
        if !self.ledger.contains(statement.id()) {
            return false;
        }
        self.epochs.known.push(Epoch::new(secret, &self.config));
        self.review_epochs(now);
        true
    }

    /// The ledger or what we know of secrets has changed: the newest secret may be another. Everybody is told it.
    pub(super) fn review_epochs(&mut self, now: Instant) {
        if let Some((statement, secret)) = self.epochs.pending.take_if(
            |(statement, _)| matches!(statement.fact(), Fact::Epoch { after, .. } if self.ledger.is_accused(after)),
        ) {
            self.take_secret(statement, secret, None, now);
        }
        let before = self.epochs.known[0].fingerprint;
        self.epochs.order(&self.ledger);
        if self.epochs.is_newest(&before) {
            return;
        }
        tracing::info!("the network has a new secret");
        self.events.push_back(Event::Secrets(self.secrets()));
        self.note_ledger_news();
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            self.tell_secret(id, now);
        }
    }

    /// Somebody expelled may know the newest secret, and we may draw another.
    pub(super) fn note_unfollowed(&mut self, now: Instant) {
        let chain = &self.config.chain;
        if chain.is_admin() && self.ledger.unfollowed().is_some() && self.ledger.verdict(chain).is_ok() {
            let wait = FOLLOW_AFTER + FOLLOW_AFTER * (self.rng.next_u32() % 1024) / 1024;
            self.timers.set_if_earlier(Timer::Epoch, now + wait);
        }
    }

    /// Draws another secret, if nobody has by now.
    pub(super) fn follow(&mut self, now: Instant) {
        let Some(after) = self.ledger.unfollowed() else { return };
        let secret = NetworkSecret::new(self.random_seed());
        let fact = Fact::Epoch { number: self.ledger.next_epoch(), secret: secret.fingerprint(), after };
        let (chain, unix) = (self.config.chain.clone(), self.clock.unix(now));
        match Statement::sign(&self.config.key, &self.network, chain, fact, unix) {
            Ok(statement) => drop(self.take_secret(Arc::new(statement), secret, None, now)),
            Err(error) => return tracing::warn!(%error, "no new secret can be drawn"),
        }
        self.note_unfollowed(now);
    }

    /// Every secret that we know, the newest first: for the disk, the control network and mDNS.
    pub(super) fn secrets(&self) -> Vec<NetworkSecret> {
        self.epochs.known.iter().map(|epoch| epoch.secret.clone()).collect()
    }

    /// What the disk keeps is put in order, once the ledger is there.
    pub(super) fn order_epochs(&mut self) {
        self.epochs.order(&self.ledger);
    }

    /// Tells a peer the newest secret, if there was ever another.
    pub(super) fn tell_secret(&mut self, id: PeerId, now: Instant) {
        let newest = &self.epochs.known[0];
        let named = self.ledger.epochs().into_iter().find(|(fingerprint, _)| *fingerprint == newest.fingerprint);
        if let Some((_, statement)) = named {
            let message = Message::Secret { epoch: statement.bytes().to_vec(), secret: *newest.secret.as_bytes() };
            self.send_message(id, &message, now);
        }
    }

    /// The directory was started anew, with another secret: it must be told everything once more.
    pub fn handle_new_directory(&mut self) {
        let listening = self.own.listening(self.config.tls);
        self.events.push_back(Event::Directory(dht::Command::Listening(listening)));
        if let Some(own) = self.own.record() {
            self.events.push_back(Event::Directory(dht::Command::Publish(Box::new(own.clone()))));
        }
        for record in self.roster.iter().filter(|record| record.peer() != self.own.peer) {
            let (peer, homes) = (record.peer(), record.homes.clone());
            let endpoints = with_tls(&record.endpoints, record.tls);
            self.events.push_back(Event::Directory(dht::Command::Dial { peer, endpoints, homes }));
        }
        self.events.push_back(Event::Directory(dht::Command::Homes(self.own.homes.clone())));
    }

    /// The ledger, for a directory that is started anew.
    pub fn statements(&self) -> Vec<Vec<u8>> {
        self.ledger.iter().map(|held| held.bytes().to_vec()).collect()
    }
}
