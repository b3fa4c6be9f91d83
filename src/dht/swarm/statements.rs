//! Statements: heeded as soon as they come, gossiped under a topic of their own, compared with each new connection.

use std::sync::Arc;

use libp2p::gossipsub::{MessageAcceptance, MessageId};

use super::super::{Event, Record, Statement, Verified};
use super::Directory;
use super::behaviour::{Batch, Hello, MAX_BATCH, unix_now};
use super::peers::ours;

/// Comparisons answered on one connection: each brings up to 64 statements, so this is every ledger there may be.
const MAX_COMPARISONS: u8 = 128;

impl Directory {
    /// A statement that the node holds.
    pub(super) fn state(&mut self, statement: Arc<Statement>) {
        if self.heed(&statement) {
            self.gossip_statement(&statement);
        }
    }

    /// A statement came by gossip. It is passed on if it is news.
    pub(super) fn handle_statement(&mut self, from: libp2p::PeerId, id: &MessageId, bytes: &[u8]) {
        let acceptance = if !self.peers.has_proved(&from) {
            self.count("gossip-of-unproved");
            MessageAcceptance::Ignore
        } else {
            match self.check_statement(bytes) {
                Some(statement) if self.heed(&statement) => {
                    self.tell(Event::Statement(statement));
                    MessageAcceptance::Accept
                }
                Some(_) => MessageAcceptance::Ignore,
                None => MessageAcceptance::Reject,
            }
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &from, acceptance);
    }

    /// Asks a peer for what it knows and we do not.
    pub(super) fn compare_ledgers(&mut self, peer: libp2p::PeerId) {
        let buckets = self.shard().ledger().buckets();
        let request = self.swarm.behaviour_mut().hello.send_request(&peer, Hello::Ledger { buckets });
        self.peers.note_comparison(request, peer);
    }

    /// A peer asks what we know and it does not.
    pub(super) fn answer_comparison(&mut self, peer: libp2p::PeerId, buckets: &[u8]) -> Option<Batch> {
        if self.peers.count_comparison(&peer)? > MAX_COMPARISONS {
            self.count("hello-flood");
            return None;
        }
        let beyond = self.shard().ledger().beyond(buckets).take(MAX_BATCH);
        Some(beyond.map(|statement| statement.bytes().to_vec()).collect())
    }

    /// The answer. What is news here may be news to those with whom we were before.
    pub(super) fn read_statements(&mut self, peer: libp2p::PeerId, batch: &Batch) {
        let mut news = false;
        for bytes in batch {
            let Some(statement) = self.check_statement(bytes) else { continue };
            if self.heed(&statement) {
                news = true;
                self.gossip_statement(&statement);
                self.tell(Event::Statement(statement));
            }
        }
        if news && batch.len() == MAX_BATCH {
            self.compare_ledgers(peer);
        }
    }

    fn check_statement(&mut self, bytes: &[u8]) -> Option<Arc<Statement>> {
        match Statement::check(bytes, &self.network, unix_now()) {
            Ok(statement) => Some(Arc::new(statement)),
            Err(error) => {
                self.count(error.name());
                None
            }
        }
    }

    /// Whether it was news. Whoever is expelled by it leaves the shard, the known members and the connections.
    fn heed(&mut self, statement: &Arc<Statement>) -> bool {
        match self.shard().state(Arc::clone(statement)) {
            Ok(true) => (),
            Ok(false) => return false,
            Err(_) => {
                self.count("ledger-full");
                return false;
            }
        }
        let ledger = self.swarm.behaviour_mut().kad.store_mut().shard.ledger();
        let expelled = |record: &Verified<Record>| ledger.verdict(&record.chain).is_err();
        self.records.forget(expelled);
        for peer in self.peers.proved_by(expelled) {
            self.targets.forget(&peer);
            self.part(peer, "peer-expelled");
        }
        true
    }

    /// While nobody has subscribed it is not gossiped: who connects will compare.
    fn gossip_statement(&mut self, statement: &Statement) {
        let topic = self.names.statements.hash();
        if let Err(error) = self.swarm.behaviour_mut().gossip.publish(topic, statement.bytes().to_vec()) {
            tracing::debug!(%error, "a statement was not gossiped");
        }
    }

    /// Whether a peer that has proved nothing yet is known to be expelled.
    pub(super) fn is_expelled(&mut self, peer: &libp2p::PeerId) -> bool {
        let Some(id) = ours(peer) else { return false };
        self.shard().ledger().is_accused(&id) && !self.records.knows(&id)
    }
}
