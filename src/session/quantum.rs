//! A key that whoever breaks X25519 one day does not have: ML-KEM-768 (FIPS 203), asked and answered inside a session.
//!
//! Both messages are as long as a datagram, so they do not fit the handshake beside a record. They go by the first session
//! instead, and what they agree on is mixed into the keys of the sessions to come (`session::handshake`): recorded traffic of those stays secret unless
//! both X25519 and ML-KEM are broken. The first session, seconds long, is of X25519 alone.
//!
//! The key is bound to both messages; its id names it and tells nothing of it.

use std::fmt;

use ml_kem::array::Array;
use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use zeroize::Zeroizing;

use super::crypto::derive;

/// Length of the encapsulation key that is sent, bytes (FIPS 203, table 3).
pub const ASK_LEN: usize = 1184;

/// Length of the ciphertext in answer, bytes.
pub const ANSWER_LEN: usize = 1088;

/// Names a key, at both ends.
pub type QuantumId = [u8; 8];

/// What two members share beside X25519. Wiped when dropped.
#[derive(Clone)]
pub struct QuantumKey {
    id: QuantumId,
    key: Zeroizing<[u8; 32]>,
}

impl QuantumKey {
    fn new(shared: &[u8; 32], ask: &[u8], answer: &[u8]) -> Self {
        let id = derive(shared, b"kem id 1", &[ask, answer]);
        Self { id: std::array::from_fn(|nth| id[nth]), key: derive(shared, b"kem key1", &[ask, answer]) }
    }

    /// By which the peer knows it. Never zero but by a chance of one in 2^64, and then it is not used.
    pub fn id(&self) -> QuantumId {
        self.id
    }

    /// A transport key that takes both to know: what Noise has split off, and this.
    pub(super) fn mix(&self, split: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        derive(&self.key, b"pq mix 1", &[split])
    }
}

impl fmt::Debug for QuantumKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantumKey({:02x?})", self.id)
    }
}

/// Waits for the answer. The secret half is kept as its seed, and wiped.
pub struct Asker {
    seed: Zeroizing<[u8; 64]>,
    ask: Vec<u8>,
}

impl Asker {
    /// `seed` is 64 random bytes, new for every one.
    pub fn new(seed: Zeroizing<[u8; 64]>) -> Self {
        let ask = secret(&seed).encapsulation_key().to_bytes().to_vec();
        Self { seed, ask }
    }

    /// What the peer is sent: [`ASK_LEN`] bytes.
    pub fn ask(&self) -> &[u8] {
        &self.ask
    }

    /// The key, by the peer's answer; `None` if that is of another length. A wrong answer gives a key that the peer does not
    /// have, and so an id that it does not know.
    pub fn finish(&self, answer: &[u8]) -> Option<QuantumKey> {
        let ciphertext = Ciphertext::try_from(answer).ok()?;
        let shared = Zeroizing::new(<[u8; 32]>::from(secret(&self.seed).decapsulate(&ciphertext)));
        Some(QuantumKey::new(&shared, &self.ask, answer))
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

/// Answers: [`ANSWER_LEN`] bytes for the peer, and the key. `random` is 32 random bytes, new for every answer. `None` if what is
/// asked is no encapsulation key (FIPS 203, section 7.2).
pub fn answer(ask: &[u8], random: &Zeroizing<[u8; 32]>) -> Option<(Vec<u8>, QuantumKey)> {
    let key = EncapsulationKey::new(&Array::try_from(ask).ok()?).ok()?;
    let (ciphertext, shared) = key.encapsulate_deterministic(&Array(**random));
    let shared = Zeroizing::new(<[u8; 32]>::from(shared));
    let key = QuantumKey::new(&shared, ask, &ciphertext);
    Some((ciphertext.to_vec(), key))
}

fn secret(seed: &[u8; 64]) -> DecapsulationKey {
    DecapsulationKey::from_seed(Array(*seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_have_the_same_key_and_nobody_with_another_seed_or_answer_has() {
        let asker = Asker::new(Zeroizing::new([7; 64]));
        assert_eq!(asker.ask().len(), ASK_LEN);
        let (said, ours) = answer(asker.ask(), &Zeroizing::new([8; 32])).expect("a sound question");
        assert_eq!(said.len(), ANSWER_LEN);
        let theirs = asker.finish(&said).expect("a sound answer");
        assert_eq!((theirs.id(), &*theirs.key), (ours.id(), &*ours.key));
        assert_ne!(ours.id(), [0; 8]);
        let (other, another) = answer(asker.ask(), &Zeroizing::new([9; 32])).expect("a sound question");
        assert!(other != said && another.id() != ours.id());
        let stranger = Asker::new(Zeroizing::new([6; 64])).finish(&said).expect("of the right length");
        assert!(stranger.id() != ours.id() && *stranger.key != *ours.key);
        let mut changed = said;
        changed[100] ^= 1;
        assert_ne!(asker.finish(&changed).expect("of the right length").id(), ours.id());
    }

    #[test]
    fn what_is_no_question_or_no_answer_is_refused() {
        let asker = Asker::new(Zeroizing::new([7; 64]));
        let random = Zeroizing::new([8; 32]);
        assert!(answer(&asker.ask()[1..], &random).is_none());
        // A coefficient of 0xfff is not below 3329.
        assert!(answer(&[0xff; ASK_LEN], &random).is_none());
        assert!(asker.finish(&[0; ANSWER_LEN - 1]).is_none());
        assert!(asker.finish(&[0; ANSWER_LEN]).is_some());
    }

    #[test]
    fn a_mixed_key_takes_both() {
        let key = |n: u8| {
            let asker = Asker::new(Zeroizing::new([n; 64]));
            answer(asker.ask(), &Zeroizing::new([8; 32])).expect("a sound question").1
        };
        let (one, two) = (key(1), key(2));
        assert_ne!(*one.mix(&[3; 32]), *two.mix(&[3; 32]));
        assert_ne!(*one.mix(&[3; 32]), *one.mix(&[4; 32]));
        assert_ne!(*one.mix(&[3; 32]), [3; 32]);
    }
}
