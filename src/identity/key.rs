//! Keys: the node's signing key, the Noise key derived from it, the network's secret and what is derived from that.

use std::fmt;
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use ed25519_dalek::Signer;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Domain-separation prefix of record signatures.
pub const DOMAIN_RECORD: &[u8] = b"meshd record v1";

/// libp2p's protobuf framing of an Ed25519 public key inside an identity multihash (libp2p specs, peer-ids).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Why text or bytes are not the identity they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not base58, or not of the length and prefix of an Ed25519 peer id.
    #[error("not a peer id (an Ed25519 peer id starts with 12D3KooW)")]
    PeerId,
    /// Not 64 hexadecimal digits.
    #[error("not a 32-byte hexadecimal string")]
    Hex,
    /// The signature does not fit key, domain, network and bytes.
    #[error("signature does not verify")]
    Signature,
}

/// A remote or own node: its Ed25519 public key, 32 bytes. Printed as libp2p prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub [u8; 32]);

impl PeerId {
    /// Verifies `signature` over (`domain`, `network`, `bytes`); small-order keys never verify (RFC 8032, strict).
    ///
    /// # Errors
    /// [`IdentityError::Signature`].
    pub fn verify(
        &self,
        domain: &[u8],
        network: &NetworkId,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<(), IdentityError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| IdentityError::Signature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.to_bytes());
        key.verify_strict(&signed_bytes(domain, network, bytes), &signature).map_err(|_| IdentityError::Signature)
    }

    /// The 38 bytes of libp2p's identity multihash.
    pub fn to_multihash(self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The peer of libp2p's identity multihash of an Ed25519 key.
    ///
    /// # Errors
    /// [`IdentityError::PeerId`] for any other multihash.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, IdentityError> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(IdentityError::PeerId)?;
        Ok(Self(key.try_into().map_err(|_| IdentityError::PeerId)?))
    }

    /// The last eight characters, for tables and logs: the first eight are the same for every Ed25519 peer.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > 64 {
            return Err(IdentityError::PeerId);
        }
        Self::from_multihash(&bs58::decode(text).into_vec().map_err(|_| IdentityError::PeerId)?)
    }
}

/// An Ed25519 signature, 64 bytes, in two halves because serde stops at 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl Signature {
    /// The 64 bytes of RFC 8032.
    pub fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }
}

fn signed_bytes(domain: &[u8], network: &NetworkId, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + domain.len() + 32 + bytes.len());
    message.push(domain.len() as u8);
    message.extend_from_slice(domain);
    message.extend_from_slice(&network.0);
    message.extend_from_slice(bytes);
    message
}

/// A private Ed25519 key: of a node, of a network's root, or the ephemeral one of an invite. Wiped when dropped.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte seed. The caller draws the seed from the operating system.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, to be written into a key file or an invite.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs (`domain`, `network`, `bytes`); `domain` is at most 255 bytes.
    pub fn sign(&self, domain: &[u8], network: &NetworkId, bytes: &[u8]) -> Signature {
        let bytes = self.0.sign(&signed_bytes(domain, network, bytes)).to_bytes();
        let (mut low, mut high) = ([0; 32], [0; 32]);
        low.copy_from_slice(&bytes[..32]);
        high.copy_from_slice(&bytes[32..]);
        Signature(low, high)
    }

    /// The Noise static key of this node: X25519, derived from the same seed by HKDF-SHA256 (RFC 5869), so one key
    /// file is all a node has to keep.
    pub fn noise_secret(&self) -> NoiseSecret {
        NoiseSecret(*derive(&self.seed(), b"meshd noise static v1"))
    }

    /// By which a gateway knows port mappings as ours, also after a crash (RFC 6887, section 11.3.2).
    pub fn mapping_nonce(&self) -> [u8; 12] {
        let bytes = derive(&self.seed(), b"meshd port mapping v1");
        std::array::from_fn(|at| bytes[at])
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {:?})", self.peer_id())
    }
}

/// The X25519 private key of a node's Noise handshakes. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NoiseSecret([u8; 32]);

impl NoiseSecret {
    /// The 32 bytes, for the Noise implementation.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    pub fn public(&self) -> NoisePublic {
        NoisePublic(x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(self.0)).to_bytes())
    }
}

impl fmt::Debug for NoiseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseSecret(..)")
    }
}

/// The X25519 public key of a node's Noise handshakes, 32 bytes; bound to the node by its signed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NoisePublic(pub [u8; 32]);

/// A network: BLAKE2s-256 of its root public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkId(pub [u8; 32]);

impl NetworkId {
    /// The network of a root key.
    pub fn of_root(root: &PeerId) -> Self {
        let mut hash = Blake2s256::new();
        hash.update(b"meshd network v1");
        hash.update(root.0);
        Self(hash.finalize().into())
    }

    /// The first eight bytes in hexadecimal, for people.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..8])
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({})", self.short())
    }
}

impl FromStr for NetworkId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| IdentityError::Hex)?;
        Ok(Self(bytes.try_into().map_err(|_| IdentityError::Hex)?))
    }
}

/// The 32 bytes that every member knows and no stranger does. It opens no session by itself (that takes a
/// certificate); it keeps strangers from being answered at all. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct NetworkSecret([u8; 32]);

impl NetworkSecret {
    /// A secret of 32 random bytes, drawn by the caller.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes, to be written into the network file or an invite.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// By which a statement names it; tells nothing of it.
    pub fn fingerprint(&self) -> [u8; 32] {
        *derive(&self.0, b"meshd epoch v1")
    }

    /// Pre-shared key of the libp2p private network (pnet).
    pub fn pnet_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd pnet v1")
    }

    /// Pre-shared key of the Noise handshakes (psk2).
    pub fn noise_psk(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd noise psk v1")
    }

    /// Key of the handshake MACs: who lacks it gets no answer.
    pub fn handshake_mac_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd handshake mac v1")
    }

    /// Key of what streams begin with: who lacks it is answered nothing.
    pub fn stream_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd stream v1")
    }

    /// Key that blinds mDNS sightings.
    pub fn beacon_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd mdns v1")
    }

    /// Key that blinds directory keys, so that a shard's logs tell a stranger nothing.
    pub fn directory_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"meshd directory v1")
    }
}

impl fmt::Debug for NetworkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkSecret(..)")
    }
}

/// HKDF-SHA256 (RFC 5869) without salt: 32 bytes for `label`.
fn derive(secret: &[u8; 32], label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut output = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, secret).expand(label, &mut *output).expect("32 bytes are within HKDF's limit");
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    #[test]
    fn a_peer_id_prints_as_libp2p_prints_it_and_parses_back() {
        let peer = key(1).peer_id();
        assert!(peer.to_string().starts_with("12D3KooW"));
        assert_eq!(peer.to_string().parse(), Ok(peer));
    }

    #[test]
    fn text_that_is_no_peer_id_is_refused() {
        assert_eq!("12D3KooW".parse::<PeerId>(), Err(IdentityError::PeerId));
        assert_eq!("l0O".parse::<PeerId>(), Err(IdentityError::PeerId));
        assert_eq!("1".repeat(10_000).parse::<PeerId>(), Err(IdentityError::PeerId));
    }

    #[test]
    fn a_signature_fits_one_key_domain_network_and_text_only() {
        let (network, other) = (NetworkId::of_root(&key(8).peer_id()), NetworkId::of_root(&key(9).peer_id()));
        let signature = key(1).sign(b"a", &network, b"text");
        let peer = key(1).peer_id();
        assert_eq!(peer.verify(b"a", &network, b"text", &signature), Ok(()));
        assert_eq!(key(2).peer_id().verify(b"a", &network, b"text", &signature), Err(IdentityError::Signature));
        assert_eq!(peer.verify(b"b", &network, b"text", &signature), Err(IdentityError::Signature));
        assert_eq!(peer.verify(b"a", &other, b"text", &signature), Err(IdentityError::Signature));
        assert_eq!(peer.verify(b"a", &network, b"texts", &signature), Err(IdentityError::Signature));
    }

    #[test]
    fn secrets_never_show_in_debug_output() {
        let text = format!("{:?} {:?} {:?}", key(0x5a), key(0x5a).noise_secret(), NetworkSecret::new([0x5a; 32]));
        assert!(!text.contains("5a5a") && !text.contains("90, 90"));
    }

    #[test]
    fn each_derived_key_is_its_own() {
        let secret = NetworkSecret::new([3; 32]);
        let keys = [
            secret.pnet_key(),
            secret.noise_psk(),
            secret.handshake_mac_key(),
            secret.stream_key(),
            secret.beacon_key(),
            secret.directory_key(),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b));
        }
    }
}
