//! The handshake: `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` (Noise rev. 34) by snow, between two nodes that know each other's
//! static keys and one network's secret, in two datagrams.
//!
//! ```text
//! initiation                                        response
//! 0        kind 1, flags 0 (3)                      0        kind 2, flags 0 (3)
//! 4        sender's index                           4        receiver's index
//!                                                   8        sender's index
//! 8        ephemeral key (32)                       12       ephemeral key (32)
//! 40       static key, sealed (32 + 16)
//! 88       Offer and payload, sealed, + 16          44       Offer and payload, sealed, + 16
//! 1200     mac1 (16)                                end - 16 mac1 (16)
//! 1216     mac2 (16), zero without a cookie
//! ```
//!
//! Before the opaque payload stands an `Offer` of 16 bytes: version, whether the sender has AES in hardware and can do ML-KEM, the
//! payload's length, the sender's index once more, and the id of a [`QuantumKey`] that both have by an earlier session: the initiator's says which
//! it has, the responder's whether that is mixed in. Being sealed and part of the transcript, it cannot be changed on the way: whoever
//! flips a bit or the index destroys the message, so nobody but the two ends has a say in the cipher or the keys.
//!
//! mac1 is keyed with the network's secret and the receiver's static key: a stranger is never answered, and costs one
//! hash. An initiation is always padded to [`MAX_HANDSHAKE`], so no answer to it is larger than it.
//!
//! What the first message lacks by its nature (Noise section 7.7): an initiation can be *replayed*. A replay decrypts;
//! only the node, by the stamp that its payload carries, can tell (and nobody but the one who made it can read the answer). And the
//! initiation's payload is readable to whoever gets the responder's static key later; the response and all transport is not.

use std::fmt;
use std::time::Instant;

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::identity::{NetworkSecret, NoisePublic, NoiseSecret};
use crate::wire::{DatagramKind, DropReason};

use super::cookie::Cookie;
use super::crypto::{MAC_LEN, Resolver, derive, mac, mac_fits};
use super::quantum::{QuantumId, QuantumKey};
use super::transport::{Cipher, Keys, Quantum, Transport};

/// The size of every initiation, and the largest of any handshake datagram, bytes: IPv6's minimum MTU of 1280 less 40
/// (IPv6) and 8 (UDP). It passes wherever IPv6 does; anything larger might be lost before any path MTU is known.
pub const MAX_HANDSHAKE: usize = 1232;

/// The largest payload, bytes: what an initiation has left. A record (1024) and 56 bytes beside it fit.
pub const MAX_PAYLOAD: usize =
    MAX_HANDSHAKE - INITIATION_HEAD - KEY_LEN - SEALED_KEY_LEN - OFFER_LEN - TAG_LEN - 2 * MAC_LEN;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// Part of the transcript, so that no message of another protocol or version fits.
const PROLOGUE: &[u8] = b"meshd handshake v1";
const VERSION: u8 = 1;

const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const SEALED_KEY_LEN: usize = KEY_LEN + TAG_LEN;
const INITIATION_HEAD: usize = 8;
const RESPONSE_HEAD: usize = 12;
const OFFER_LEN: usize = 16;

/// The bits of an offer's second byte.
const AES: u8 = 1;
const QUANTUM: u8 = 2;
/// Of no key.
const NO_KEY: QuantumId = [0; 8];
const RESPONSE_MIN: usize = RESPONSE_HEAD + KEY_LEN + OFFER_LEN + TAG_LEN + MAC_LEN;
const RESPONSE_MAX: usize = RESPONSE_MIN + MAX_PAYLOAD;
/// Where an initiation's mac1 begins; mac2 follows it.
const MAC1_AT: usize = MAX_HANDSHAKE - 2 * MAC_LEN;
const MAC2_AT: usize = MAX_HANDSHAKE - MAC_LEN;
const _: () = assert!(RESPONSE_MAX <= MAX_HANDSHAKE, "an answer is never larger than what it answers");

/// Why a handshake datagram is refused, or cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not of the length, kind and flags that it should have, or its opened inside makes no sense.
    #[error("malformed handshake datagram")]
    Malformed,
    /// mac1 is not made with our network's secret and our key.
    #[error("the first MAC does not fit: a stranger, or meant for another")]
    Mac,
    /// A response or cookie to some other initiation.
    #[error("the answer names index {0:08x}, which is not that of this handshake")]
    Index(u32),
    /// Noise cannot open it: wrong key, wrong secret, changed on the way, or a point of small order.
    #[error("the handshake does not decrypt")]
    Decrypt,
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {0} of the handshake, we speak version 1")]
    Version(u8),
    /// More payload than [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes does not fit a handshake datagram")]
    TooLong(usize),
    /// The remote static key is a point of small order, or otherwise unusable.
    #[error("the peer's static key is unusable")]
    RemoteKey,
    /// This handshake has ended already.
    #[error("the handshake has ended already")]
    Ended,
}

impl HandshakeError {
    /// Under which name a datagram refused for this is counted.
    pub fn drop_reason(&self) -> DropReason {
        match self {
            Self::Mac => DropReason::HandshakeMac,
            Self::Ended => DropReason::HandshakeReplayed,
            Self::Malformed
            | Self::Index(_)
            | Self::Decrypt
            | Self::Version(_)
            | Self::TooLong(_)
            | Self::RemoteKey => DropReason::HandshakeMalformed,
        }
    }
}

/// What our side brings into every handshake. Made once; wiped when dropped.
pub struct Local {
    noise: NoiseSecret,
    public: NoisePublic,
    psk: Zeroizing<[u8; 32]>,
    /// The network's; mac1 and cookie keys of every node derive from it.
    mac_key: Zeroizing<[u8; 32]>,
    mac1_key: Zeroizing<[u8; 32]>,
    cookie_key: Zeroizing<[u8; 32]>,
    hardware_aes: bool,
    post_quantum: bool,
}

impl Local {
    /// Our static key in the network of `network_secret`. `hardware_aes` is what we offer to the peer.
    pub fn new(noise: &NoiseSecret, network_secret: &NetworkSecret, hardware_aes: bool) -> Self {
        let (public, mac_key) = (noise.public(), network_secret.handshake_mac_key());
        Self {
            noise: noise.clone(),
            public,
            psk: network_secret.noise_psk(),
            mac1_key: mac1_key(&mac_key, &public),
            cookie_key: cookie_key(&mac_key, &public),
            mac_key,
            hardware_aes,
            post_quantum: false,
        }
    }

    /// The same, and says that it can do ML-KEM if `post_quantum`.
    #[must_use]
    pub fn with_post_quantum(self, post_quantum: bool) -> Self {
        Self { post_quantum, ..self }
    }

    /// What we offer, with the id of a key.
    fn offer(&self, index: u32, key: Option<&QuantumKey>) -> Offer {
        Offer { aes: self.hardware_aes, quantum: self.post_quantum, index, key: key.map_or(NO_KEY, QuantumKey::id) }
    }

    /// Our static public key.
    pub fn public(&self) -> NoisePublic {
        self.public
    }

    /// Seals the cookies we hand out.
    pub(super) fn cookie_key(&self) -> &[u8; 32] {
        &self.cookie_key
    }

    /// Opens the cookies that `remote` hands out.
    pub(super) fn cookie_key_of(&self, remote: &NoisePublic) -> Zeroizing<[u8; 32]> {
        cookie_key(&self.mac_key, remote)
    }

    fn builder(&self, seed: [u8; 32]) -> Builder<'_> {
        let params = PATTERN.parse().expect("a pattern that snow knows");
        Builder::with_resolver(params, Box::new(Resolver { seed: Zeroizing::new(seed) }))
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(self.noise.as_bytes()))
            .and_then(|builder| builder.psk(2, &self.psk))
            .expect("each parameter is set once and in range")
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Local({:?}, hardware AES: {})", self.public, self.hardware_aes)
    }
}

/// One outstanding handshake that we began.
pub struct Initiator {
    noise: HandshakeState,
    index: u32,
    mac1: [u8; MAC_LEN],
    has_cookie: bool,
    /// Keys the mac1 of answers to us.
    mac1_key: Zeroizing<[u8; 32]>,
    offer: Offer,
    quantum: Option<QuantumKey>,
}

impl Initiator {
    /// Begins a handshake with `remote`: the state, and the datagram to send. `index` is ours, chosen at random, and
    /// names the session to come; `seed` is 32 random bytes, new for every handshake; `cookie` is what `remote` gave us, if it did; `quantum`
    /// is a key that it has too, unless it has forgotten it.
    ///
    /// # Errors
    /// [`HandshakeError::TooLong`] or [`HandshakeError::RemoteKey`].
    pub fn new(
        local: &Local,
        remote: &NoisePublic,
        index: u32,
        payload: &[u8],
        cookie: Option<&Cookie>,
        quantum: Option<QuantumKey>,
        seed: [u8; 32],
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let mut datagram = vec![0; MAX_HANDSHAKE];
        datagram[0] = DatagramKind::Initiation as u8;
        datagram[4..8].copy_from_slice(&index.to_be_bytes());
        let offer = local.offer(index, quantum.as_ref());
        let inside = offer.before(payload, MAX_PAYLOAD)?;
        let mut noise = local
            .builder(seed)
            .remote_public_key(&remote.0)
            .and_then(Builder::build_initiator)
            .expect("every parameter that the pattern needs is there");
        let len = noise
            .write_message(&inside, &mut datagram[INITIATION_HEAD..MAC1_AT])
            .map_err(|_| HandshakeError::RemoteKey)?;
        debug_assert_eq!(INITIATION_HEAD + len, MAC1_AT);
        let mac1 = mac(&*mac1_key(&local.mac_key, remote), &[&datagram[..MAC1_AT]]);
        datagram[MAC1_AT..MAC2_AT].copy_from_slice(&mac1);
        if let Some(cookie) = cookie {
            let mac2 = cookie.mac2(&datagram[..MAC2_AT]);
            datagram[MAC2_AT..].copy_from_slice(&mac2);
        }
        let mac1_key = local.mac1_key.clone();
        Ok((Self { noise, index, mac1, has_cookie: cookie.is_some(), mac1_key, offer, quantum }, datagram))
    }

    /// Our index, by which the answer finds this state.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The initiation's mac1: what a cookie in answer to it is bound to.
    pub fn last_mac1(&self) -> [u8; 16] {
        self.mac1
    }

    /// Whether the initiation carries a cookie. A cookie in answer to one that does is for another path of ours, and is
    /// to be kept for the next try, not to begin anew at once: two paths would keep each other from ever being answered.
    pub fn has_cookie(&self) -> bool {
        self.has_cookie
    }

    /// Reads the response and ends the handshake: the session, and the responder's payload. A datagram that is refused
    /// changes nothing, so a forged one does not keep the genuine one from working.
    ///
    /// # Errors
    /// A [`HandshakeError`] that says what is wrong with the datagram.
    pub fn read_response(&mut self, datagram: &[u8], now: Instant) -> Result<(Transport, Vec<u8>), HandshakeError> {
        let head = response_head(datagram).ok_or(HandshakeError::Malformed)?;
        if head.receiver != self.index {
            return Err(HandshakeError::Index(head.receiver));
        }
        let (message, mac1) = datagram.split_at(datagram.len() - MAC_LEN);
        if !mac_fits(&*self.mac1_key, &[message], mac1) {
            return Err(HandshakeError::Mac);
        }
        if self.noise.is_handshake_finished() {
            return Err(HandshakeError::Ended);
        }
        let mut inside = Zeroizing::new([0; MAX_HANDSHAKE]);
        let len =
            self.noise.read_message(&message[RESPONSE_HEAD..], &mut *inside).map_err(|_| HandshakeError::Decrypt)?;
        let (offer, payload) = Offer::read(&inside[..len], head.sender)?;
        let payload = payload.to_vec();
        if offer.key != NO_KEY && offer.key != self.offer.key {
            return Err(HandshakeError::Malformed);
        }
        let key = self.quantum.as_ref().filter(|key| key.id() == offer.key);
        let keys = split(&mut self.noise, &self.offer, &offer, key, head.sender);
        Ok((Transport::new(&keys, now), payload))
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiator({:08x})", self.index)
    }
}

/// An initiation that decrypted, not answered yet. It may be a replay: see the stamp in its payload before answering.
pub struct Responder {
    noise: HandshakeState,
    index: u32,
    remote: NoisePublic,
    ephemeral: [u8; KEY_LEN],
    payload: Vec<u8>,
    /// Theirs, and ours but for the index.
    offer: Offer,
    ours: Offer,
    quantum: Option<QuantumKey>,
    /// Keys the mac1 of the response: of the initiator.
    mac1_key: Zeroizing<[u8; 32]>,
}

impl Responder {
    /// Reads an initiation: form, mac1, then Noise (two Diffie-Hellmans). `seed` is 32 random bytes, new for every call.
    ///
    /// # Errors
    /// A [`HandshakeError`] that says what is wrong with the datagram.
    pub fn read(local: &Local, datagram: &[u8], seed: [u8; 32]) -> Result<Self, HandshakeError> {
        check_initiation(local, datagram)?;
        let mut noise = local.builder(seed).build_responder().expect("every parameter that the pattern needs is there");
        let mut inside = Zeroizing::new([0; MAX_HANDSHAKE]);
        let len = noise
            .read_message(&datagram[INITIATION_HEAD..MAC1_AT], &mut *inside)
            .map_err(|_| HandshakeError::Decrypt)?;
        let index = u32_at(datagram, 4).ok_or(HandshakeError::Malformed)?;
        let (offer, payload) = Offer::read(&inside[..len], index)?;
        let mut remote = [0; KEY_LEN];
        remote.copy_from_slice(noise.get_remote_static().ok_or(HandshakeError::Decrypt)?);
        let mut ephemeral = [0; KEY_LEN];
        ephemeral.copy_from_slice(&datagram[INITIATION_HEAD..INITIATION_HEAD + KEY_LEN]);
        Ok(Self {
            index,
            remote: NoisePublic(remote),
            ephemeral,
            payload: payload.to_vec(),
            offer,
            ours: local.offer(0, None),
            quantum: None,
            mac1_key: mac1_key(&local.mac_key, &NoisePublic(remote)),
            noise,
        })
    }

    /// Who began: proved by Noise, up to a replay.
    pub fn remote(&self) -> NoisePublic {
        self.remote
    }

    /// What the initiator put in.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Mixes in one of `keys`: that which the initiator has too, if any.
    pub fn mix(&mut self, keys: &[QuantumKey]) {
        self.quantum = keys.iter().find(|key| key.id() == self.offer.key && key.id() != NO_KEY).cloned();
    }

    /// The initiator's index.
    pub fn remote_index(&self) -> u32 {
        self.index
    }

    /// The initiator's ephemeral key: the same in two datagrams only if one is a copy of the other.
    pub fn ephemeral(&self) -> [u8; 32] {
        self.ephemeral
    }

    /// Answers: the session, unconfirmed until a datagram of the initiator opens, and the datagram to send, which is
    /// never larger than the initiation. `index` is ours, chosen at random.
    ///
    /// # Errors
    /// [`HandshakeError::TooLong`]; [`HandshakeError::RemoteKey`] if the initiator's keys are of small order.
    pub fn respond(mut self, index: u32, payload: &[u8], now: Instant) -> Result<(Transport, Vec<u8>), HandshakeError> {
        let ours = Offer { index, key: self.quantum.as_ref().map_or(NO_KEY, QuantumKey::id), ..self.ours };
        let inside = ours.before(payload, payload.len())?;
        let mut datagram = vec![0; RESPONSE_MIN + payload.len()];
        datagram[0] = DatagramKind::Response as u8;
        datagram[4..8].copy_from_slice(&self.index.to_be_bytes());
        datagram[8..12].copy_from_slice(&index.to_be_bytes());
        let mac1_at = datagram.len() - MAC_LEN;
        self.noise
            .write_message(&inside, &mut datagram[RESPONSE_HEAD..mac1_at])
            .map_err(|_| HandshakeError::RemoteKey)?;
        let mac1 = mac(&*self.mac1_key, &[&datagram[..mac1_at]]);
        datagram[mac1_at..].copy_from_slice(&mac1);
        let keys = split(&mut self.noise, &ours, &self.offer, self.quantum.as_ref(), self.index);
        Ok((Transport::new(&keys, now), datagram))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder(to {:08x} of {:?})", self.index, self.remote)
    }
}

/// The receiver's index in a response or a cookie, by which to find the [`Initiator`]; `None` if `datagram` is neither.
pub fn receiver_index(datagram: &[u8]) -> Option<u32> {
    match DatagramKind::of(datagram)? {
        DatagramKind::Response => Some(response_head(datagram)?.receiver),
        DatagramKind::Cookie => super::cookie::reply_receiver(datagram),
        DatagramKind::Initiation | DatagramKind::Sealed => None,
    }
}

/// Whether an initiation or response to us is well-formed and made with our network's secret: one hash, before any
/// Diffie-Hellman.
///
/// # Errors
/// [`HandshakeError::Malformed`] or [`HandshakeError::Mac`].
pub fn check_mac1(local: &Local, datagram: &[u8]) -> Result<(), HandshakeError> {
    if DatagramKind::of(datagram) != Some(DatagramKind::Response) {
        return check_initiation(local, datagram);
    }
    response_head(datagram).ok_or(HandshakeError::Malformed)?;
    let (message, mac1) = datagram.split_at(datagram.len() - MAC_LEN);
    mac_fits(&*local.mac1_key, &[message], mac1).then_some(()).ok_or(HandshakeError::Mac)
}

/// Makes mac1 of an initiation or response fit `receiver`, as a hostile member can: without it neither a fuzzer nor a
/// test of hostile members would ever get past the first hash.
#[doc(hidden)]
pub fn forge_mac1(receiver: &Local, datagram: &mut [u8]) {
    let at = match DatagramKind::of(datagram) {
        Some(DatagramKind::Response) => datagram.len().checked_sub(MAC_LEN),
        Some(DatagramKind::Initiation | DatagramKind::Cookie | DatagramKind::Sealed) | None => Some(MAC1_AT),
    };
    if let Some((message, macs)) = at.and_then(|at| datagram.split_at_mut_checked(at))
        && let Some(mac1) = macs.first_chunk_mut()
    {
        *mac1 = mac(&*receiver.mac1_key, &[message]);
    }
}

/// The parts of a well-formed initiation that mac2 and a cookie are about: all before mac2, mac1, mac2.
pub(super) fn initiation_macs(datagram: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    is_initiation(datagram).then(|| (&datagram[..MAC2_AT], &datagram[MAC1_AT..MAC2_AT], &datagram[MAC2_AT..]))
}

/// As [`check_mac1`], for an initiation only.
pub(super) fn check_initiation(local: &Local, datagram: &[u8]) -> Result<(), HandshakeError> {
    if !is_initiation(datagram) {
        return Err(HandshakeError::Malformed);
    }
    let (message, macs) = datagram.split_at(MAC1_AT);
    mac_fits(&*local.mac1_key, &[message], &macs[..MAC_LEN]).then_some(()).ok_or(HandshakeError::Mac)
}

fn is_initiation(datagram: &[u8]) -> bool {
    datagram.len() == MAX_HANDSHAKE && datagram[..4] == [DatagramKind::Initiation as u8, 0, 0, 0]
}

struct ResponseHead {
    receiver: u32,
    sender: u32,
}

fn response_head(datagram: &[u8]) -> Option<ResponseHead> {
    if !(RESPONSE_MIN..=RESPONSE_MAX).contains(&datagram.len())
        || datagram[..4] != [DatagramKind::Response as u8, 0, 0, 0]
    {
        return None;
    }
    Some(ResponseHead { receiver: u32_at(datagram, 4)?, sender: u32_at(datagram, 8)? })
}

/// The big-endian number at `at`.
pub(super) fn u32_at(datagram: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*datagram.get(at..)?.first_chunk()?))
}

/// What stands before the payload, sealed with it.
#[derive(Clone, Copy)]
struct Offer {
    aes: bool,
    quantum: bool,
    index: u32,
    key: QuantumId,
}

impl Offer {
    /// Version (1), bits (1), length of the payload (2), sender's index (4), id of a key (8), payload, zeros up to `padded` bytes of
    /// payload.
    fn before(&self, payload: &[u8], padded: usize) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
        let too_long = HandshakeError::TooLong(payload.len());
        let len = u16::try_from(payload.len()).map_err(|_| too_long)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(too_long);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(OFFER_LEN + padded));
        bytes.extend_from_slice(&[VERSION, (AES * u8::from(self.aes)) | (QUANTUM * u8::from(self.quantum))]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&self.index.to_be_bytes());
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(payload);
        bytes.resize(OFFER_LEN + padded, 0);
        Ok(bytes)
    }

    /// Only the one encoding is accepted, and only if the index inside is the one outside.
    fn read(bytes: &[u8], outside: u32) -> Result<(Self, &[u8]), HandshakeError> {
        let (head, rest) = bytes.split_first_chunk::<OFFER_LEN>().ok_or(HandshakeError::Malformed)?;
        let [version, bits, high, low, i0, i1, i2, i3, key @ ..] = *head;
        if version != VERSION {
            return Err(HandshakeError::Version(version));
        }
        let (len, index) = (usize::from(u16::from_be_bytes([high, low])), u32::from_be_bytes([i0, i1, i2, i3]));
        let (payload, padding) = rest.split_at_checked(len).ok_or(HandshakeError::Malformed)?;
        if bits > AES | QUANTUM || len > MAX_PAYLOAD || index != outside || padding.iter().any(|byte| *byte != 0) {
            return Err(HandshakeError::Malformed);
        }
        Ok((Self { aes: bits & AES != 0, quantum: bits & QUANTUM != 0, index, key }, payload))
    }
}

/// Splits off the transport keys of a finished handshake, the first of which is the initiator's to send with, and mixes `quantum` in.
/// It is the keys that it is mixed into, not Noise's PSK: the responder chooses it after it has read the initiation.
fn split(noise: &mut HandshakeState, ours: &Offer, theirs: &Offer, quantum: Option<&QuantumKey>, remote: u32) -> Keys {
    let initiator = noise.is_initiator();
    let (first, second) = noise.dangerously_get_raw_split();
    let mixed = |split: [u8; 32]| {
        let split = Zeroizing::new(split);
        quantum.map_or(split.clone(), |key| key.mix(&split))
    };
    let (first, second) = (mixed(first), mixed(second));
    let (send, receive) = if initiator { (first, second) } else { (second, first) };
    Keys {
        send,
        receive,
        cipher: if ours.aes && theirs.aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 },
        quantum: match quantum {
            Some(_) => Quantum::Mixed,
            None if ours.quantum && theirs.quantum => Quantum::Possible,
            None => Quantum::Never,
        },
        local: ours.index,
        remote,
        initiator,
    }
}

fn mac1_key(network: &[u8; 32], receiver: &NoisePublic) -> Zeroizing<[u8; 32]> {
    derive(network, b"mac1 v1 ", &[&receiver.0])
}

fn cookie_key(network: &[u8; 32], responder: &NoisePublic) -> Zeroizing<[u8; 32]> {
    derive(network, b"cookie 1", &[&responder.0])
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::crypto::tests::DH_WORK;
    use super::super::transport::OpenError;
    use super::*;
    use crate::identity::SigningKey;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    pub(in crate::session) fn start() -> Instant {
        Instant::now()
    }

    /// Member number `n` of the network number `network`.
    pub(in crate::session) fn member(n: u8, network: u8, hardware_aes: bool) -> Local {
        let noise = SigningKey::from_seed(&[n; 32]).noise_secret();
        Local::new(&noise, &NetworkSecret::new([network; 32]), hardware_aes)
    }

    fn alice() -> Local {
        member(1, 9, true)
    }

    fn bob() -> Local {
        member(2, 9, true)
    }

    pub(in crate::session) fn initiate(from: &Local, to: &Local, payload: &[u8]) -> (Initiator, Vec<u8>) {
        Initiator::new(from, &to.public(), 7, payload, None, None, [3; 32]).expect("an initiation")
    }

    fn with_mac1_for(to: &Local, mut datagram: Vec<u8>) -> Vec<u8> {
        forge_mac1(to, &mut datagram);
        datagram
    }

    /// An initiation with `inside` where offer and payload belong.
    fn initiation_with(from: &Local, to: &Local, inside: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; MAX_HANDSHAKE];
        datagram[0] = 1;
        datagram[4..8].copy_from_slice(&7u32.to_be_bytes());
        let noise = from.builder([3; 32]).remote_public_key(&to.public.0).and_then(Builder::build_initiator);
        noise.expect("a state").write_message(inside, &mut datagram[INITIATION_HEAD..MAC1_AT]).expect("room");
        with_mac1_for(to, datagram)
    }

    fn carries(from: &Transport, to: &Transport, now: Instant) -> Result<usize, OpenError> {
        let mut datagram = [0; 16 + 5 + 16];
        from.seal_in_place(from.reserve(1, now).expect("a counter"), &mut datagram);
        to.open_in_place(&mut to.window(), &mut datagram, now)
    }

    #[test]
    fn two_members_agree_on_keys_and_on_the_cipher_that_both_have_in_hardware() {
        let now = start();
        for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
            let (a, b) = (member(1, 9, ours), member(2, 9, theirs));
            let (mut initiator, initiation) = initiate(&a, &b, b"from a");
            assert_eq!((check_mac1(&b, &initiation), receiver_index(&initiation)), (Ok(()), None));
            let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
            assert_eq!((responder.remote(), responder.payload()), (a.public(), &b"from a"[..]));
            assert_eq!(responder.remote_index(), initiator.index());
            let (at_b, response) = responder.respond(8, b"from b", now).expect("a response");
            assert_eq!((check_mac1(&a, &response), receiver_index(&response)), (Ok(()), Some(7)));
            let (at_a, payload) = initiator.read_response(&response, now).expect("a sound response");
            assert_eq!(payload, b"from b");
            let cipher = if ours && theirs { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
            assert_eq!((at_a.cipher(), at_b.cipher()), (cipher, cipher));
            assert_eq!((at_a.local(), at_b.local()), (7, 8));
            assert!(at_a.is_initiator() && !at_b.is_initiator() && !at_b.is_confirmed());
            assert_eq!((carries(&at_a, &at_b, now), carries(&at_b, &at_a, now)), (Ok(5), Ok(5)));
        }
    }

    #[test]
    fn a_stranger_or_a_datagram_for_another_is_refused_without_any_diffie_hellman() {
        let (a, b, carol, stranger) = (alice(), bob(), member(3, 9, true), member(1, 8, true));
        let from_stranger = initiate(&stranger, &b, b"").1;
        let for_carol = initiate(&a, &carol, b"").1;
        let before = DH_WORK.get();
        for datagram in [from_stranger, for_carol] {
            assert_eq!(check_mac1(&b, &datagram), Err(HandshakeError::Mac));
            assert_eq!(Responder::read(&b, &datagram, [4; 32]).err(), Some(HandshakeError::Mac));
        }
        assert_eq!(DH_WORK.get(), before);
        assert_eq!(HandshakeError::Mac.drop_reason(), DropReason::HandshakeMac);
    }

    #[test]
    fn without_the_pre_shared_key_there_is_no_session_even_with_every_other_key() {
        let (a, mut b) = (alice(), bob());
        b.psk = Zeroizing::new([0; 32]);
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("the secret enters with the second message");
        let (_, response) = responder.respond(8, b"", start()).expect("a response");
        assert_eq!(initiator.read_response(&response, start()).err(), Some(HandshakeError::Decrypt));
    }

    #[test]
    fn an_answer_by_somebody_else_is_refused() {
        let (a, b) = (alice(), bob());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let mut mallory = member(3, 9, true);
        mallory.mac1_key = b.mac1_key.clone();
        assert_eq!(Responder::read(&mallory, &initiation, [4; 32]).err(), Some(HandshakeError::Decrypt));
        let (_, for_mallory) = initiate(&a, &member(3, 9, true), b"");
        let responder = Responder::read(&member(3, 9, true), &for_mallory, [4; 32]).expect("a sound initiation");
        let (_, response) = responder.respond(8, b"", start()).expect("a response");
        assert_eq!(initiator.read_response(&response, start()).err(), Some(HandshakeError::Decrypt));
    }

    #[test]
    fn no_byte_of_an_initiation_can_be_changed_not_even_by_a_member() {
        let (a, b) = (alice(), bob());
        let initiation = initiate(&a, &b, b"genuine").1;
        for at in 0..MAC2_AT {
            let mut changed = initiation.clone();
            changed[at] ^= 0x10;
            let error = if at < 4 { HandshakeError::Malformed } else { HandshakeError::Mac };
            assert_eq!(Responder::read(&b, &changed, [4; 32]).err(), Some(error), "byte {at}");
            if at < MAC1_AT {
                let by_a_member = Responder::read(&b, &with_mac1_for(&b, changed), [4; 32]);
                assert!(by_a_member.is_err(), "byte {at}");
            }
        }
        assert_eq!(Responder::read(&b, &initiation, [4; 32]).expect("genuine").payload(), b"genuine");
    }

    #[test]
    fn no_byte_of_a_response_can_be_changed_and_the_genuine_one_still_works_afterwards() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let (at_b, response) = responder.respond(8, b"genuine", now).expect("a response");
        for at in 0..response.len() {
            let mut changed = response.clone();
            changed[at] ^= 0x10;
            assert!(initiator.read_response(&changed, now).is_err(), "byte {at}");
            let head = at < 8;
            if !head && at < response.len() - MAC_LEN && !(8..12).contains(&at) {
                let changed = with_mac1_for(&a, changed);
                assert_eq!(initiator.read_response(&changed, now).err(), Some(HandshakeError::Decrypt), "byte {at}");
            }
        }
        let (at_a, payload) = initiator.read_response(&response, now).expect("the genuine one");
        assert_eq!((payload, carries(&at_a, &at_b, now)), (b"genuine".to_vec(), Ok(5)));
        assert_eq!(initiator.read_response(&response, now).err(), Some(HandshakeError::Ended));
    }

    #[test]
    fn a_member_in_the_middle_cannot_swap_the_responders_index() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let (_, mut response) = responder.respond(8, b"", now).expect("a response");
        response[11] ^= 1;
        let response = with_mac1_for(&a, response);
        assert_eq!(initiator.read_response(&response, now).err(), Some(HandshakeError::Malformed));
    }

    #[test]
    fn datagrams_of_another_length_kind_or_flags_are_malformed() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        for len in (0..MAX_HANDSHAKE).chain([MAX_HANDSHAKE + 1, 65_507]) {
            let mut cut = initiation.clone();
            cut.resize(len, 0);
            assert_eq!(Responder::read(&b, &cut, [4; 32]).err(), Some(HandshakeError::Malformed));
            cut.iter_mut().take(1).for_each(|kind| *kind = 2);
            assert!(initiator.read_response(&cut, now).is_err() && check_mac1(&a, &cut).is_err());
        }
        assert_eq!(receiver_index(&[2; RESPONSE_MIN - 1]), None);
    }

    #[test]
    fn an_offer_has_one_encoding_only() {
        let (a, b) = (alice(), bob());
        let sound = a.offer(7, None).before(b"payload", MAX_PAYLOAD).expect("it fits").to_vec();
        assert!(Responder::read(&b, &initiation_with(&a, &b, &sound), [4; 32]).is_ok());
        let long = (MAX_PAYLOAD as u16 + 1).to_be_bytes();
        for (at, value, error) in [
            (0, 2, HandshakeError::Version(2)),
            (1, 4, HandshakeError::Malformed),
            (2, long[0], HandshakeError::Malformed),
            (3, 6, HandshakeError::Malformed),
            (7, 8, HandshakeError::Malformed),
            (OFFER_LEN + 7, 1, HandshakeError::Malformed),
            (sound.len() - 1, 1, HandshakeError::Malformed),
        ] {
            let mut inside = sound.clone();
            inside[at] = value;
            if at == 2 {
                inside[3] = long[1];
            }
            let read = Responder::read(&b, &initiation_with(&a, &b, &inside), [4; 32]);
            assert_eq!(read.err(), Some(error), "byte {at}");
        }
    }

    /// What two members have agreed on inside an earlier session.
    fn quantum_key(n: u8) -> QuantumKey {
        let asker = super::super::quantum::Asker::new(Zeroizing::new([n; 64]));
        super::super::quantum::answer(asker.ask(), &Zeroizing::new([8; 32])).expect("a sound question").1
    }

    #[test]
    fn what_x25519_alone_gives_does_not_open_a_session_with_a_post_quantum_key() {
        let now = start();
        let (a, b) = (alice().with_post_quantum(true), bob().with_post_quantum(true));
        let begin =
            || Initiator::new(&a, &b.public(), 7, b"", None, Some(quantum_key(1)), [3; 32]).expect("an initiation");
        let (mut initiator, initiation) = begin();
        let mut responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        responder.mix(&[quantum_key(2), quantum_key(1)]);
        let (at_b, response) = responder.respond(8, b"", now).expect("a response");
        // Whoever has broken X25519 has every secret of the initiator's but the one that Noise never saw.
        let mut broken = begin().0;
        broken.quantum = None;
        let (by_x25519, _) = broken.read_response(&response, now).expect("Noise itself is open to them");
        assert_eq!(carries(&by_x25519, &at_b, now).err(), Some(OpenError::BadTag));
        let (at_a, _) = initiator.read_response(&response, now).expect("a sound response");
        assert_eq!((at_a.quantum(), at_b.quantum()), (Quantum::Mixed, Quantum::Mixed));
        assert!(carries(&at_a, &at_b, now).is_ok() && carries(&at_b, &at_a, now).is_ok());
        assert_eq!(carries(&at_b, &by_x25519, now).err(), Some(OpenError::BadTag));
    }

    #[test]
    fn a_post_quantum_key_that_one_has_forgotten_or_does_not_want_is_left_out() {
        let now = start();
        for (ours, theirs, quantum) in [(true, true, Quantum::Possible), (true, false, Quantum::Never)] {
            let (a, b) = (alice().with_post_quantum(ours), bob().with_post_quantum(theirs));
            let key = Some(quantum_key(1));
            let (mut initiator, initiation) =
                Initiator::new(&a, &b.public(), 7, b"", None, key, [3; 32]).expect("an initiation");
            let mut responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
            responder.mix(&[quantum_key(2)]);
            let (at_b, response) = responder.respond(8, b"", now).expect("a response");
            let (at_a, _) = initiator.read_response(&response, now).expect("a sound response");
            assert_eq!((at_a.quantum(), at_b.quantum()), (quantum, quantum));
            assert!(carries(&at_a, &at_b, now).is_ok() && carries(&at_b, &at_a, now).is_ok());
        }
    }

    #[test]
    fn a_responder_cannot_mix_in_what_was_not_offered() {
        let (a, b) = (alice(), bob());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let mut responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        responder.quantum = Some(quantum_key(1));
        let (_, response) = responder.respond(8, b"", start()).expect("a response");
        assert_eq!(initiator.read_response(&response, start()).err(), Some(HandshakeError::Malformed));
    }

    /// A replay is the node's to detect, by the stamp in the payload: here it decrypts. But nobody can use the answer, and
    /// it is another session.
    #[test]
    fn a_replayed_initiation_decrypts_and_leads_to_keys_that_the_replayer_lacks() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"stamp");
        let first = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let again = Responder::read(&b, &initiation, [5; 32]).expect("a replay");
        assert_eq!((first.ephemeral(), first.payload()), (again.ephemeral(), again.payload()));
        let (at_b, response) = first.respond(8, b"", now).expect("a response");
        let (at_b_again, _) = again.respond(9, b"", now).expect("a response");
        let (at_a, _) = initiator.read_response(&response, now).expect("a sound response");
        assert_eq!(carries(&at_a, &at_b_again, now), Err(OpenError::BadTag));
        assert_eq!(carries(&at_a, &at_b, now), Ok(5));
    }

    #[test]
    fn a_response_to_another_handshake_is_refused() {
        let (a, b, now) = (alice(), bob(), start());
        let initiation = initiate(&a, &b, b"").1;
        let (mut other, _) = Initiator::new(&a, &b.public(), 6, b"", None, None, [5; 32]).expect("an initiation");
        let (mut same_index, _) = Initiator::new(&a, &b.public(), 7, b"", None, None, [6; 32]).expect("an initiation");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let (_, response) = responder.respond(8, b"", now).expect("a response");
        assert_eq!(other.read_response(&response, now).err(), Some(HandshakeError::Index(7)));
        assert_eq!(same_index.read_response(&response, now).err(), Some(HandshakeError::Decrypt));
    }

    #[test]
    fn keys_of_small_order_are_refused_on_both_sides() {
        let (a, b) = (alice(), bob());
        let zero = Initiator::new(&a, &NoisePublic([0; 32]), 7, b"", None, None, [3; 32]);
        assert_eq!(zero.err(), Some(HandshakeError::RemoteKey));
        let mut initiation = initiate(&a, &b, b"").1;
        initiation[INITIATION_HEAD..INITIATION_HEAD + KEY_LEN].fill(0);
        let read = Responder::read(&b, &with_mac1_for(&b, initiation), [4; 32]);
        assert_eq!(read.err(), Some(HandshakeError::Decrypt));
    }

    #[test]
    fn no_response_is_larger_than_its_initiation_whatever_the_payloads() {
        let (a, b, now) = (alice(), bob(), start());
        const { assert!(MAX_PAYLOAD >= 1024 + 24, "a record and a stamp fit") };
        for size in (0..MAX_PAYLOAD).step_by(37).chain([1024 + 24, MAX_PAYLOAD]) {
            let payload = vec![0xa5; size];
            let (mut initiator, initiation) = initiate(&a, &b, &payload[..size / 2]);
            let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
            let (_, response) = responder.respond(8, &payload, now).expect("a response");
            assert_eq!(initiation.len(), MAX_HANDSHAKE);
            assert!(response.len() <= initiation.len(), "{size}");
            assert_eq!(initiator.read_response(&response, now).expect("sound").1, payload);
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_refused_before_any_work() {
        let (a, b) = (alice(), bob());
        for size in [MAX_PAYLOAD + 1, 70_000] {
            let payload = vec![0; size];
            let made = Initiator::new(&a, &b.public(), 7, &payload, None, None, [3; 32]);
            assert_eq!(made.err(), Some(HandshakeError::TooLong(size)));
            let responder = Responder::read(&b, &initiate(&a, &b, b"").1, [4; 32]).expect("a sound initiation");
            let answer = responder.respond(8, &payload, start());
            assert_eq!(answer.err(), Some(HandshakeError::TooLong(size)));
        }
    }

    /// Forward secrecy: whoever records everything and later gets *both* static keys and the network's secret can
    /// rebuild either side, but for the ephemeral keys; what it rebuilds opens nothing that was recorded.
    #[test]
    fn recorded_traffic_stays_closed_when_the_static_keys_leak() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let (at_b, response) = responder.respond(8, b"", now).expect("a response");
        let (at_a, _) = initiator.read_response(&response, now).expect("a sound response");
        let mut recorded = [0; 16 + 5 + 16];
        at_a.seal_in_place(at_a.reserve(1, now).expect("a counter"), &mut recorded);

        let (as_b, _) = Responder::read(&b, &initiation, [99; 32])
            .expect("the initiation is readable with the responder's key")
            .respond(8, b"", now)
            .expect("a response");
        assert_eq!(as_b.open_in_place(&mut as_b.window(), &mut recorded.clone(), now), Err(OpenError::BadTag));
        let (mut as_a, _) = Initiator::new(&a, &b.public(), 7, b"", None, None, [98; 32]).expect("an initiation");
        assert_eq!(as_a.read_response(&response, now).err(), Some(HandshakeError::Decrypt));
        assert_eq!(at_b.open_in_place(&mut at_b.window(), &mut recorded, now), Ok(5));
    }

    #[test]
    fn the_same_inputs_give_the_same_datagrams_and_other_seeds_other_ones() {
        let (a, b) = (alice(), bob());
        assert_eq!(initiate(&a, &b, b"x").1, initiate(&a, &b, b"x").1);
        let other = Initiator::new(&a, &b.public(), 7, b"x", None, None, [77; 32]).expect("an initiation").1;
        let one = initiate(&a, &b, b"x").1;
        assert_ne!(one[8..40], other[8..40]);
        assert_ne!(one[40..88], other[40..88]);
    }

    #[test]
    fn a_late_response_still_makes_a_session_that_lives_from_then_on() {
        let (a, b, now) = (alice(), bob(), start());
        let (mut initiator, initiation) = initiate(&a, &b, b"");
        let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
        let (_, response) = responder.respond(8, b"", now).expect("a response");
        let late = now + Duration::from_secs(4);
        assert_eq!(initiator.read_response(&response, late).expect("sound").0.created(), late);
    }

    #[test]
    fn nothing_secret_shows_in_debug_output() {
        let a = alice();
        let (initiator, initiation) = initiate(&bob(), &a, b"");
        let responder = Responder::read(&a, &initiation, [4; 32]).expect("a sound initiation");
        let text = format!("{a:?} {initiator:?} {responder:?}");
        assert!(!text.contains("psk") && !text.contains("key"), "{text}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn hostile_bytes_never_panic_and_never_pass(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1400),
            kind in 0u8..6,
        ) {
            let (a, b, now) = (alice(), bob(), start());
            let (mut initiator, _) = initiate(&a, &b, b"");
            if bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
                bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
            }
            let _ = receiver_index(&bytes);
            for _ in 0..2 {
                prop_assert!(Responder::read(&b, &bytes, [4; 32]).is_err());
                prop_assert!(initiator.read_response(&bytes, now).is_err());
                // The second time as a member would send it: of the right length and with a good mac1.
                if kind == 2 && bytes.len() >= RESPONSE_MIN {
                    bytes.truncate(RESPONSE_MAX);
                    bytes = with_mac1_for(&a, bytes);
                } else {
                    bytes.resize(MAX_HANDSHAKE, 0);
                    bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
                    bytes = with_mac1_for(&b, bytes);
                }
            }
        }

        #[test]
        fn any_payload_arrives_as_it_was(
            ours in proptest::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD),
            theirs in proptest::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD),
        ) {
            let (a, b, now) = (alice(), bob(), start());
            let (mut initiator, initiation) = initiate(&a, &b, &ours);
            let responder = Responder::read(&b, &initiation, [4; 32]).expect("a sound initiation");
            prop_assert_eq!(responder.payload(), &ours[..]);
            let (_, response) = responder.respond(8, &theirs, now).expect("a response");
            prop_assert_eq!(initiator.read_response(&response, now).expect("a sound response").1, theirs);
        }
    }
}
