//! The primitives under the handshake: what snow is given to work with, and keyed BLAKE2s.
//!
//! snow asks a resolver for each primitive. Ours gives X25519 by x25519-dalek, BLAKE2s by the blake2 crate, the cipher by
//! ring, and randomness from a seed, so a handshake is a function of its inputs. snow does not wipe its chaining key when
//! it is dropped; the private keys that pass through here are wiped.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Blake2sMac256, Digest};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

/// Length of mac1, mac2 and a cookie, bytes.
pub(super) const MAC_LEN: usize = 16;

/// Keyed BLAKE2s-128 over `parts`, one after the other; `key` is at most 32 bytes.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    keyed(key, parts).finalize_fixed().into()
}

/// Whether `tag` is the [`mac`] of `parts`, in constant time.
pub(super) fn mac_fits(key: &[u8], parts: &[&[u8]], tag: &[u8]) -> bool {
    keyed(key, parts).verify_slice(tag).is_ok()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("at most 32 bytes are a BLAKE2s key");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// A 32-byte key for `label` and `parts`, out of a 32-byte `key`: keyed BLAKE2s-256. Only the last part may vary in length.
pub(super) fn derive(key: &[u8; 32], label: &[u8; 8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(key).expect("32 bytes are a BLAKE2s key");
    mac.update(label);
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize_fixed().into())
}

/// Gives snow its primitives; all randomness of one handshake comes from `seed`.
pub(super) struct Resolver {
    pub(super) seed: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(ChaCha20Rng::from_seed(*self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        (*choice == DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        (*choice == HashChoice::Blake2s).then(|| Box::new(Blake2s(Blake2s256::new())) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

struct Seeded(ChaCha20Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519 {
    fn secret(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(*self.private)
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.public = x25519_dalek::PublicKey::from(&self.secret()).to_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *private)?;
        self.set(&*private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    /// Refuses an all-zero result (RFC 7748, section 6.1): a point of small order would make the key everybody's.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        #[cfg(test)]
        tests::DH_WORK.with(|count| count.set(count.get() + 1));
        let public = *public.first_chunk::<32>().ok_or(snow::Error::Dh)?;
        let shared = self.secret().diffie_hellman(&x25519_dalek::PublicKey::from(public));
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out[..32].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How many Diffie-Hellman computations this thread did: what a flood must not cause.
        pub(in crate::session) static DH_WORK: Cell<u64> = const { Cell::new(0) };
    }

    #[test]
    fn x25519_is_that_of_rfc_7748() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hexadecimal");
        let mut key = X25519::default();
        key.set(&hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"));
        let mut shared = [0; 32];
        key.dh(&hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"), &mut shared)
            .expect("a secret");
        assert_eq!(shared[..], hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"));
        key.set(&hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(key.pubkey(), hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let mut key = X25519::default();
        key.set(&[7; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(key.dh(&point, &mut [0; 32]), Err(snow::Error::Dh));
        }
    }

    #[test]
    fn blake2s_is_that_of_rfc_7693() {
        let mut hash = Blake2s(Blake2s256::new());
        let mut out = [0; 32];
        hash.input(b"abc");
        hash.result(&mut out);
        let expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        assert_eq!(data_encoding::HEXLOWER.encode(&out), expected);
    }

    #[test]
    fn a_mac_fits_its_own_key_and_bytes_only() {
        let tag = mac(&[1; 32], &[b"ab", b"c"]);
        assert!(mac_fits(&[1; 32], &[b"abc"], &tag));
        assert!(!mac_fits(&[2; 32], &[b"abc"], &tag));
        assert!(!mac_fits(&[1; 16], &[b"abc"], &tag));
        assert!(!mac_fits(&[1; 32], &[b"abd"], &tag));
        assert!(!mac_fits(&[1; 32], &[b"abc"], &tag[..15]));
    }
}
