//! The keys and counters of an established session.
//!
//! Shared by `Arc` between the forwarding threads and the node, so everything is an atomic or behind one short lock.
//! Sealing and opening happen in place, in the batch's arena.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::wire::header::{HEADER_LEN, Header, TAG_LEN};

use super::rekey::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, RESPONDER_GRACE};
use super::replay::ReplayWindow;

/// Data that comes after so long a rest is told; while there is no such rest, somebody looks after the peer's silence every
/// second (`node::sessions`).
pub const REST: Duration = Duration::from_secs(1);

/// Which AEAD seals a session's datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// Where either side lacks AES in hardware.
    ChaCha20Poly1305,
    /// Where both have it.
    Aes256Gcm,
}

impl Cipher {
    /// The name as cryptographers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gcm => "AES-256-GCM",
        }
    }
}

/// What ML-KEM has to do with a session's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantum {
    /// One side cannot do it, or does not want to.
    Never,
    /// Both can: the next session may have it.
    Possible,
    /// It is mixed in.
    Mixed,
}

/// Why a sealed datagram does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The tag does not verify.
    #[error("the tag does not verify")]
    BadTag,
    /// The counter was seen before or is too old.
    #[error("replayed")]
    Replayed,
    /// The session is past its time.
    #[error("the session has expired")]
    Expired,
}

/// One session: ours to send with, ours to receive with.
pub struct Transport {
    send: LessSafeKey,
    receive: LessSafeKey,
    cipher: Cipher,
    quantum: Quantum,
    /// Our index: in datagrams to us.
    local: u32,
    /// The peer's index: in datagrams from us.
    remote: u32,
    initiator: bool,
    created: Instant,
    counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
    /// Milliseconds after `created` of the last datagram that opened, plus one; 0 for none.
    received: AtomicU64,
    /// Milliseconds after `created` of the last data sealed, plus one; 0 for none.
    sent: AtomicU64,
    confirmed: AtomicBool,
}

/// The replay window of a session, taken for a batch of datagrams.
pub struct Window<'a>(MutexGuard<'a, ReplayWindow>);

/// What a handshake hands over to [`Transport::new`].
pub struct Keys {
    /// Seals what we send.
    pub send: Zeroizing<[u8; 32]>,
    /// Opens what we receive.
    pub receive: Zeroizing<[u8; 32]>,
    /// Of both.
    pub cipher: Cipher,
    /// What is mixed in, or could be.
    pub quantum: Quantum,
    /// Our index.
    pub local: u32,
    /// The peer's index.
    pub remote: u32,
    /// Whether we initiated.
    pub initiator: bool,
}

impl Transport {
    /// A session that begins `now`. The responder's is unconfirmed until a datagram of the initiator opens.
    pub fn new(keys: &Keys, now: Instant) -> Self {
        let algorithm = match keys.cipher {
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Cipher::Aes256Gcm => &AES_256_GCM,
        };
        let key = |bytes: &[u8; 32]| {
            LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both ciphers have 32-byte keys"))
        };
        Self {
            send: key(&keys.send),
            receive: key(&keys.receive),
            cipher: keys.cipher,
            quantum: keys.quantum,
            local: keys.local,
            remote: keys.remote,
            initiator: keys.initiator,
            created: now,
            counter: AtomicU64::new(0),
            replay: Mutex::new(ReplayWindow::default()),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            confirmed: AtomicBool::new(keys.initiator),
        }
    }

    /// Reserves `count` counters for sealing and returns the first; `None` when the session is exhausted by count or
    /// by time, and nothing may be sealed any more.
    pub fn reserve(&self, count: u64, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.created);
        if age >= REJECT_AFTER_TIME {
            return None;
        }
        let first = self.counter.fetch_add(count, Ordering::Relaxed);
        if first >= REJECT_AFTER_MESSAGES - count {
            self.counter.fetch_sub(count, Ordering::Relaxed);
            return None;
        }
        Some(first)
    }

    /// Seals `datagram` in place: 16 bytes for the header, the plaintext, 16 bytes for the tag. `counter` was reserved
    /// and is used once.
    ///
    /// # Panics
    /// If `datagram` has no room for header and tag.
    pub fn seal_in_place(&self, counter: u64, datagram: &mut [u8]) {
        Header { receiver: self.remote, counter }.write(datagram);
        let (header, rest) = datagram.split_at_mut(HEADER_LEN);
        let (plaintext, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        let sealed = self
            .send
            .seal_in_place_separate_tag(self.nonce(counter), Aad::from(&*header), plaintext)
            .expect("a datagram is far below the AEAD's limit");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Takes the replay window, for as many datagrams as lie behind one another. Only another lane ever waits for it, and
    /// only when one peer's datagrams reach both.
    pub fn window(&self) -> Window<'_> {
        Window(self.replay.lock().expect("nothing panics while holding the window"))
    }

    /// Opens `datagram` in place and returns the length of its plaintext, which lies right behind the header. A counter
    /// is accepted once by `window`, which is this session's.
    ///
    /// # Errors
    /// [`OpenError`]; the bytes are then undefined.
    pub fn open_in_place(
        &self,
        window: &mut Window<'_>,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<usize, OpenError> {
        let header = Header::read(datagram).ok_or(OpenError::BadTag)?;
        let age = now.saturating_duration_since(self.created);
        if age >= REJECT_AFTER_TIME {
            return Err(OpenError::Expired);
        }
        let (head, rest) = datagram.split_at_mut(HEADER_LEN);
        let len = self
            .receive
            .open_in_place(self.nonce(header.counter), Aad::from(&*head), rest)
            .map_err(|_| OpenError::BadTag)?
            .len();
        if !window.0.accept(header.counter) {
            return Err(OpenError::Replayed);
        }
        self.received.store(age.as_millis() as u64 + 1, Ordering::Relaxed);
        Ok(len)
    }

    /// The nonce of the Noise specification: 4 zero bytes and the counter, little endian for ChaChaPoly, big endian
    /// for AESGCM (Noise rev. 34, section 12).
    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self.cipher {
            Cipher::ChaCha20Poly1305 => counter.to_le_bytes(),
            Cipher::Aes256Gcm => counter.to_be_bytes(),
        });
        Nonce::assume_unique_for_key(nonce)
    }

    /// Notes that data (not mere keepalives) was sealed at `now`: such a session is worth replacing when it ages. True if
    /// there was none for [`REST`]: whoever watches over silence may have stopped looking.
    pub fn note_sent(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.created).as_millis() as u64 + 1;
        let last = self.sent.load(Ordering::Relaxed);
        self.sent.store(age, Ordering::Relaxed);
        last == 0 || age.saturating_sub(last) >= REST.as_millis() as u64
    }

    /// Marks the session confirmed; true the first time. The forwarder calls it when a datagram has opened.
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Whether the peer has proved that it holds the keys.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// When the last datagram opened, to the millisecond.
    pub fn last_received(&self) -> Option<Instant> {
        self.instant(&self.received)
    }

    /// When data was last sealed, to the millisecond.
    pub fn last_sent(&self) -> Option<Instant> {
        self.instant(&self.sent)
    }

    fn instant(&self, millis: &AtomicU64) -> Option<Instant> {
        let millis = millis.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.created + Duration::from_millis(millis))
    }

    /// Whether it is to be replaced, for its age (by the initiator first) or for its count, if it is still wanted.
    pub fn is_due(&self, now: Instant) -> bool {
        let grace = if self.initiator { Duration::ZERO } else { RESPONDER_GRACE };
        let age = now.saturating_duration_since(self.created);
        age >= REKEY_AFTER_TIME + grace || self.sealed() >= REKEY_AFTER_MESSAGES
    }

    /// Whether it seals nothing any more, for its age or for its count.
    pub fn is_dead(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME || self.sealed() >= REJECT_AFTER_MESSAGES - 1
    }

    /// How many datagrams were sealed.
    pub fn sealed(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// When the handshake ended.
    pub fn created(&self) -> Instant {
        self.created
    }

    /// Our index.
    pub fn local(&self) -> u32 {
        self.local
    }

    /// Whether we initiated; the initiator is the one to replace it in time.
    pub fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Which AEAD.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// What ML-KEM has to do with it.
    pub fn quantum(&self) -> Quantum {
        self.quantum
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({:08x} -> {:08x}, {})", self.local, self.remote, self.cipher.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(cipher: Cipher, now: Instant) -> (Transport, Transport) {
        let keys = |send: u8, receive: u8, local, remote, initiator| Keys {
            send: Zeroizing::new([send; 32]),
            receive: Zeroizing::new([receive; 32]),
            cipher,
            quantum: Quantum::Never,
            local,
            remote,
            initiator,
        };
        (Transport::new(&keys(1, 2, 10, 20, true), now), Transport::new(&keys(2, 1, 20, 10, false), now))
    }

    fn sealed(transport: &Transport, text: &[u8], now: Instant) -> Vec<u8> {
        let mut datagram = vec![0; HEADER_LEN + text.len() + TAG_LEN];
        datagram[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
        transport.seal_in_place(transport.reserve(1, now).expect("a counter"), &mut datagram);
        datagram
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn what_one_seals_the_other_opens_once() {
        let now = start();
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
            let (a, b) = pair(cipher, now);
            let datagram = sealed(&a, b"hello", now);
            let mut copy = datagram.clone();
            assert_eq!(b.open_in_place(&mut b.window(), &mut copy, now), Ok(5));
            assert_eq!(&copy[HEADER_LEN..HEADER_LEN + 5], b"hello");
            assert_eq!(b.open_in_place(&mut b.window(), &mut datagram.clone(), now), Err(OpenError::Replayed));
            assert!(b.confirm() && !b.confirm());
        }
    }

    #[test]
    fn no_bit_of_a_datagram_can_be_changed() {
        let now = start();
        let (a, b) = pair(Cipher::Aes256Gcm, now);
        let datagram = sealed(&a, b"hello", now);
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(b.open_in_place(&mut b.window(), &mut changed, now), Err(OpenError::BadTag), "bit {bit}");
        }
        assert!(b.open_in_place(&mut b.window(), &mut datagram.clone(), now).is_ok());
    }

    #[test]
    fn an_old_session_neither_seals_nor_opens() {
        let now = start();
        let (a, b) = pair(Cipher::Aes256Gcm, now);
        let mut datagram = sealed(&a, b"late", now);
        let end = now + REJECT_AFTER_TIME;
        assert!(a.reserve(1, end - Duration::from_millis(1)).is_some());
        assert_eq!(a.reserve(1, end), None);
        assert_eq!(b.open_in_place(&mut b.window(), &mut datagram, end), Err(OpenError::Expired));
    }

    #[test]
    fn counters_never_run_past_the_limit() {
        let now = start();
        let (a, _) = pair(Cipher::ChaCha20Poly1305, now);
        a.counter.store(REJECT_AFTER_MESSAGES - 3, Ordering::Relaxed);
        assert!(a.reserve(2, now).is_some());
        assert_eq!(a.reserve(64, now), None);
        assert_eq!(a.sealed(), REJECT_AFTER_MESSAGES - 1);
    }

    #[test]
    fn a_session_is_replaced_by_its_initiator_first_and_dies_a_minute_later() {
        let now = start();
        let (ours, theirs) = pair(Cipher::Aes256Gcm, now);
        let tick = Duration::from_millis(1);
        for (transport, after) in [(ours, REKEY_AFTER_TIME), (theirs, REKEY_AFTER_TIME + RESPONDER_GRACE)] {
            assert!(!transport.is_due(now + after - tick) && transport.is_due(now + after));
            let retries_end = now + after + super::super::rekey::GIVE_UP_AFTER;
            assert!(!transport.is_dead(retries_end), "there is time for every retry");
            assert!(!transport.is_dead(now + REJECT_AFTER_TIME - tick) && transport.is_dead(now + REJECT_AFTER_TIME));
        }
    }

    #[test]
    fn a_session_is_replaced_and_ends_by_count_too() {
        let now = start();
        let (transport, _) = pair(Cipher::Aes256Gcm, now);
        transport.reserve(REKEY_AFTER_MESSAGES - 1, now).expect("counters");
        assert!(!transport.is_due(now));
        transport.reserve(1, now).expect("a counter");
        assert!(transport.is_due(now) && !transport.is_dead(now));
        transport.reserve(REJECT_AFTER_MESSAGES - REKEY_AFTER_MESSAGES - 1, now).expect("counters");
        assert!(transport.is_dead(now));
        assert_eq!(transport.reserve(1, now), None);
    }
}
