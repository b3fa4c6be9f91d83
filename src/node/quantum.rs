//! Post-quantum keys at work: whoever began a session asks for one ([`crate::session::quantum`]) when the session has settled, and begins
//! the next session, which has it mixed in, as soon as it is answered. After that each session has it, and after a day another.
//!
//! Keys are in memory only. Who has been started anew has none, says so in the handshake, and is asked again.

use std::time::{Duration, Instant};

use rand_core::Rng;
use zeroize::Zeroizing;

use crate::identity::PeerId;
use crate::session::QuantumKey;
use crate::session::quantum::{Asker, answer};
use crate::session::transport::Quantum;
use crate::wire::{DropReason, Message};

use super::Node;

/// A session is not asked over before: paths are sought in its first seconds, and a handshake then would be one more.
const SETTLED: Duration = Duration::from_secs(2);

/// Until another key is agreed on: what was recorded of one is worth breaking ML-KEM for. Sessions themselves are replaced every two minutes.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Between two questions of one peer that are answered, and two of ours: an answer costs as much as half a handshake.
const PACE: Duration = Duration::from_secs(4);

/// Keys kept for a peer: the one in use, and the one that the peer may use already, or still.
const MAX_KEYS: usize = 2;

/// What there is with one peer.
#[derive(Default)]
pub(super) struct Agreement {
    /// The latest first.
    keys: Vec<QuantumKey>,
    asker: Option<Asker>,
    /// When we asked last, answered last, and agreed last.
    asked: Option<Instant>,
    answered: Option<Instant>,
    agreed: Option<Instant>,
}

impl Agreement {
    /// What the next session is to have mixed in.
    pub(super) fn newest(&self) -> Option<QuantumKey> {
        self.keys.first().cloned()
    }

    /// What a session may have mixed in.
    pub(super) fn keys(&self) -> &[QuantumKey] {
        &self.keys
    }

    fn agree(&mut self, key: QuantumKey, now: Instant) {
        self.keys.insert(0, key);
        self.keys.truncate(MAX_KEYS);
        self.agreed = Some(now);
    }
}

/// Whether `span` has passed since, if it ever was.
fn is_over(since: Option<Instant>, span: Duration, now: Instant) -> bool {
    since.is_none_or(|since| now >= since + span)
}

impl Node {
    /// Asks the peer for a key, if we began its session, both can, and it is time to.
    pub(super) fn tend_quantum(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(current) = &peer.current else { return };
        let due = match current.quantum() {
            Quantum::Never => false,
            // It is in no key yet, or the peer has forgotten it.
            Quantum::Possible => is_over(peer.quantum.agreed, 2 * PACE, now),
            Quantum::Mixed => is_over(peer.quantum.agreed, RENEW_AFTER, now),
        };
        let settled = now >= current.created() + SETTLED;
        if !due || !settled || !current.is_initiator() || !is_over(peer.quantum.asked, PACE, now) {
            return;
        }
        let mut seed = Zeroizing::new([0; 64]);
        self.rng.fill_bytes(&mut *seed);
        let asker = Asker::new(seed);
        let message = Message::KemKey(asker.ask().to_vec());
        (peer.quantum.asker, peer.quantum.asked) = (Some(asker), Some(now));
        self.send_message(id, &message, now);
    }

    /// A peer asks.
    pub(super) fn handle_kem_key(&mut self, id: PeerId, ask: &[u8], now: Instant) {
        if !self.config.post_quantum {
            return;
        }
        let random = Zeroizing::new(self.random_seed());
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !is_over(peer.quantum.answered, PACE / 2, now) {
            return self.counters.count(DropReason::HandshakeRate);
        }
        let Some((said, key)) = answer(ask, &random) else { return self.counters.count(DropReason::InnerMalformed) };
        peer.quantum.answered = Some(now);
        peer.quantum.agree(key, now);
        self.send_message(id, &Message::KemAnswer(said), now);
    }

    /// A peer answers: the next session has the key, and begins.
    pub(super) fn handle_kem_answer(&mut self, id: PeerId, said: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(asker) = peer.quantum.asker.take() else { return };
        let Some(key) = asker.finish(said) else { return self.counters.count(DropReason::InnerMalformed) };
        peer.quantum.agree(key, now);
        self.initiate(id, now);
    }
}
