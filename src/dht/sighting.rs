//! What a beacon says, sealed: a stranger on the LAN can neither read nor make it.
//!
//! An [`Announcement`] travels as [`SEALED_LEN`] bytes, always the same number: nonce, then ChaCha20-Poly1305 (RFC 8439)
//! over the canonical bytes and zeros. So its length tells nothing either. Names on the wire are keyed hashes that
//! change every quarter of an hour.
//!
//! Replay is not prevented, only bounded. Machines on a LAN without Internet may disagree about the time by years, so
//! the stamp is compared with nothing but other stamps of the same peer. Whoever plays back an old announcement makes
//! each listener try one handshake with an endpoint that a member once had; the [`Sieve`] allows that once in ten
//! seconds a peer, and the handshake fails where the peer is not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::{KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac256, Digest as _};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::identity::canonical::{self, CodecError};
use crate::identity::{NoisePublic, PeerId};

/// Addresses in an announcement: a laptop with wire, wireless and a phone tethered has about ten with IPv6. The sealed
/// bytes are padded to the most, so twice as many would cost everybody a packet twice as long.
pub const MAX_ADDRESSES: usize = 12;

/// Bytes of every sealed announcement.
pub const SEALED_LEN: usize = NONCE_LEN + PLAIN_LEN + TAG_LEN;

/// Seconds for which a node keeps its name on the wire. Shorter would make every listener ask again more often than the
/// records' own 75 minutes suggest; an hour would let a café's logger follow a guest through the morning.
pub const EPOCH: u64 = 900;

const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Two bytes of length, then at most 282: keys 64, port 3, stamp 10, count 1, twelve addresses of 17.
const PLAIN_LEN: usize = 288;

const AAD: &[u8] = b"meshd sighting v1";

/// What a node tells its own network on a LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Who.
    pub peer: PeerId,
    /// Its Noise static key.
    pub noise: NoisePublic,
    /// Its UDP and TCP port; never 0.
    pub port: u16,
    /// When it was made, Unix seconds by the maker's clock; says only which of two of the same maker is newer.
    pub stamp: u64,
    /// Addresses on its underlay interfaces, IPv6 link-local ones too; at most [`MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
}

/// Why sealed bytes are no announcement for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SightingError {
    /// Of another length, or not sealed with our network's key.
    #[error("not sealed by a member of this network")]
    Foreign,
    /// A member sealed something that is no announcement.
    #[error("malformed announcement: {0}")]
    Malformed(#[from] CodecError),
    /// No port, too many addresses, or one that nobody can have.
    #[error("an announcement with an address nobody can have")]
    Address,
}

/// Seals `announcement` with the network's beacon key. A nonce must never come twice; 12 random bytes will do, for a
/// network makes a few thousand announcements a day. Addresses beyond [`MAX_ADDRESSES`] are left out.
pub fn seal_sighting(key: &[u8; 32], announcement: &Announcement, nonce: [u8; NONCE_LEN]) -> [u8; SEALED_LEN] {
    let mut announcement = announcement.clone();
    announcement.addresses.truncate(MAX_ADDRESSES);
    let body = canonical::encode(&announcement);
    let mut plain = [0; PLAIN_LEN];
    plain[..2].copy_from_slice(&(body.len() as u16).to_be_bytes());
    plain[2..2 + body.len()].copy_from_slice(&body);
    let tag = sealing_key(key)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(AAD), &mut plain)
        .expect("a few hundred bytes are within the cipher's limit");
    let mut sealed = [0; SEALED_LEN];
    sealed[..NONCE_LEN].copy_from_slice(&nonce);
    sealed[NONCE_LEN..NONCE_LEN + PLAIN_LEN].copy_from_slice(&plain);
    sealed[NONCE_LEN + PLAIN_LEN..].copy_from_slice(tag.as_ref());
    sealed
}

/// Opens what [`seal_sighting`] made with the same key.
///
/// # Errors
/// A [`SightingError`]; all but [`SightingError::Foreign`] mean that a member misbehaves.
pub fn open_sighting(key: &[u8; 32], sealed: &[u8]) -> Result<Announcement, SightingError> {
    let sealed: &[u8; SEALED_LEN] = sealed.try_into().map_err(|_| SightingError::Foreign)?;
    let (nonce, rest) = sealed.split_at(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).expect("split at the length of a nonce");
    let mut buffer = rest.to_vec();
    let plain =
        sealing_key(key).open_in_place(nonce, Aad::from(AAD), &mut buffer).map_err(|_| SightingError::Foreign)?;
    let (length, rest) = plain.split_at(2);
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let (body, padding) = rest.split_at_checked(length).ok_or(CodecError::Malformed)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(CodecError::Trailing.into());
    }
    let announcement: Announcement = canonical::decode(body, PLAIN_LEN)?;
    let nobodys = |address: &IpAddr| {
        address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || address.to_canonical() != *address
    };
    if announcement.port == 0
        || announcement.addresses.len() > MAX_ADDRESSES
        || announcement.addresses.iter().any(nobodys)
    {
        return Err(SightingError::Address);
    }
    Ok(announcement)
}

/// The names under which a node appears on the wire for one epoch: unlinkable without the network's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlindedNames {
    /// DNS-SD instance, 16 characters of lower-case base32 (10 bytes: no two of a million nodes share one).
    pub instance: String,
    /// Host name without domain, the same way.
    pub host: String,
    /// A link-local address that no interface has. mDNS wants each host to have addresses; those that are used are in
    /// the sealed bytes, and the true link-local one of another interface may tell that interface's MAC.
    pub address: Ipv6Addr,
}

impl BlindedNames {
    /// The names of `peer` at `unix` seconds, as [`BlindedNames::epoch`] counts them.
    pub fn new(key: &[u8; 32], peer: &PeerId, epoch: u64) -> Self {
        let text = |label: &[u8]| {
            let hash = keyed(key, label, peer, epoch);
            data_encoding::BASE32_NOPAD.encode(&hash[..10]).to_ascii_lowercase()
        };
        let mut address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[8..].copy_from_slice(&keyed(key, b"address", peer, epoch)[..8]);
        Self { instance: text(b"instance"), host: text(b"host"), address: Ipv6Addr::from(address) }
    }

    /// The number of the epoch at `unix` seconds. Each peer changes at its own moment, so that a network of hundreds
    /// does not speak all at once.
    pub fn epoch(key: &[u8; 32], peer: &PeerId, unix: u64) -> u64 {
        let hash = keyed(key, b"offset", peer, 0);
        unix.saturating_add(u64::from(u16::from_be_bytes([hash[0], hash[1]])) % EPOCH) / EPOCH
    }
}

/// The endpoints that `announcement` gives to somebody who heard it on the interfaces of `scopes`: link-local
/// addresses once for each scope, last.
pub fn endpoints_heard(announcement: &Announcement, scopes: &[u32]) -> Vec<SocketAddr> {
    let port = announcement.port;
    let link_local = |address: &&IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let mut endpoints: Vec<SocketAddr> = announcement
        .addresses
        .iter()
        .filter(|address| !link_local(address))
        .map(|address| SocketAddr::new(*address, port))
        .collect();
    for address in announcement.addresses.iter().filter(link_local) {
        for scope in scopes.iter().take(MAX_SCOPES) {
            let mut endpoint = SocketAddr::new(*address, port);
            if let SocketAddr::V6(endpoint) = &mut endpoint {
                endpoint.set_scope_id(*scope);
            }
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// Interfaces on which one announcement may be heard and each multiply its link-local addresses: wire and wireless on
/// the same LAN, and a spare.
const MAX_SCOPES: usize = 3;

/// Lets news through and holds repetitions back.
#[derive(Debug, Default)]
pub struct Sieve {
    seen: BTreeMap<PeerId, Seen>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    admitted: u32,
    stamp: u64,
    endpoints: Vec<SocketAddr>,
}

impl Sieve {
    /// How long a sighting is remembered, and so how often a repeated one counts as news again. A handshake that failed
    /// is given up in about that time.
    pub const MEMORY: Duration = Duration::from_secs(10);

    /// Sightings of one peer within [`Self::MEMORY`]: a laptop that finds both families, a second cable and its
    /// restart. A member that sends more is broken or hostile.
    pub const BURST: u32 = 4;

    /// Peers remembered; with more on one LAN the oldest is forgotten, and its repetition costs one needless event.
    pub const CAPACITY: usize = 1024;

    /// Whether a sighting made at `stamp` is news at `now`.
    pub fn admit(&mut self, peer: PeerId, stamp: u64, endpoints: &[SocketAddr], now: Instant) -> bool {
        if let Some(seen) = self.seen.get_mut(&peer)
            && now.saturating_duration_since(seen.since) < Self::MEMORY
        {
            let is_news = stamp > seen.stamp || (stamp == seen.stamp && endpoints != seen.endpoints);
            if !is_news || seen.admitted >= Self::BURST {
                return false;
            }
            seen.admitted += 1;
            seen.stamp = stamp;
            seen.endpoints = endpoints.to_vec();
            return true;
        }
        if self.seen.len() >= Self::CAPACITY && !self.seen.contains_key(&peer) {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.since).map(|(peer, _)| *peer);
            oldest.map(|oldest| self.seen.remove(&oldest));
        }
        self.seen.insert(peer, Seen { since: now, admitted: 1, stamp, endpoints: endpoints.to_vec() });
        true
    }

    /// Forgets everything: our own links changed, so all that is heard is news.
    pub fn clear(&mut self) {
        self.seen.clear();
    }
}

/// The AEAD key is its own, not the one under which names are hashed.
fn sealing_key(key: &[u8; 32]) -> LessSafeKey {
    let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(key).expect("32 bytes are a BLAKE2s key");
    mac.update(b"meshd sighting seal v1");
    let key = UnboundKey::new(&CHACHA20_POLY1305, &mac.finalize().into_bytes()).expect("32 bytes are a ChaCha20 key");
    LessSafeKey::new(key)
}

fn keyed(key: &[u8; 32], label: &[u8], peer: &PeerId, epoch: u64) -> [u8; 32] {
    let mut message = Blake2s256::new();
    message.update(b"meshd sighting name v1");
    message.update(label);
    message.update(peer.0);
    message.update(epoch.to_be_bytes());
    let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(key).expect("32 bytes are a BLAKE2s key");
    mac.update(&message.finalize());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    fn announcement(addresses: &[&str]) -> Announcement {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        Announcement { peer: PeerId([1; 32]), noise: NoisePublic([2; 32]), port: 4747, stamp: 1_800_000_000, addresses }
    }

    #[test]
    fn a_member_reads_what_a_member_sealed() {
        let said = announcement(&["192.0.2.7", "2001:db8::7", "fe80::1"]);
        assert_eq!(open_sighting(&KEY, &seal_sighting(&KEY, &said, [3; 12])), Ok(said));
    }

    #[test]
    fn another_network_cannot_read_it() {
        let sealed = seal_sighting(&KEY, &announcement(&["192.0.2.7"]), [3; 12]);
        assert_eq!(open_sighting(&[8; 32], &sealed), Err(SightingError::Foreign));
    }

    #[test]
    fn the_longest_announcement_fits_and_more_addresses_are_left_out() {
        let mut said = announcement(&[]);
        said.port = u16::MAX;
        said.stamp = u64::MAX;
        said.addresses = vec!["2001:db8::7".parse().expect("an address"); 40];
        let heard = open_sighting(&KEY, &seal_sighting(&KEY, &said, [3; 12])).expect("our own");
        assert_eq!(heard.addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn addresses_nobody_can_have_are_refused() {
        for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1", "::ffff:192.0.2.7"] {
            let sealed = seal_sighting(&KEY, &announcement(&[address]), [3; 12]);
            assert_eq!(open_sighting(&KEY, &sealed), Err(SightingError::Address), "{address}");
        }
        let mut said = announcement(&[]);
        said.port = 0;
        assert_eq!(open_sighting(&KEY, &seal_sighting(&KEY, &said, [3; 12])), Err(SightingError::Address));
    }

    #[test]
    fn names_change_with_the_epoch_the_peer_and_the_network() {
        let names = BlindedNames::new(&KEY, &PeerId([1; 32]), 5);
        assert_eq!((names.instance.len(), names.host.len()), (16, 16));
        assert!(names.address.is_unicast_link_local());
        for other in [
            BlindedNames::new(&KEY, &PeerId([1; 32]), 6),
            BlindedNames::new(&KEY, &PeerId([2; 32]), 5),
            BlindedNames::new(&[8; 32], &PeerId([1; 32]), 5),
        ] {
            assert!(other.instance != names.instance && other.host != names.host && other.address != names.address);
        }
        assert_eq!(names, BlindedNames::new(&KEY, &PeerId([1; 32]), 5));
        assert_eq!(
            BlindedNames::epoch(&KEY, &PeerId([1; 32]), 0) + 2,
            BlindedNames::epoch(&KEY, &PeerId([1; 32]), 2 * EPOCH)
        );
    }

    #[test]
    fn a_link_local_address_gets_the_scope_it_was_heard_on() {
        let said = announcement(&["fe80::1", "192.0.2.7"]);
        let text = |scopes: &[u32]| -> Vec<String> {
            endpoints_heard(&said, scopes).iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(&[3, 5]), ["192.0.2.7:4747", "[fe80::1%3]:4747", "[fe80::1%5]:4747"]);
        assert_eq!(text(&[]), ["192.0.2.7:4747"]);
    }

    #[test]
    fn a_sighting_repeated_within_ten_seconds_is_no_news() {
        let (mut sieve, peer, now) = (Sieve::default(), PeerId([1; 32]), start());
        let here = ["192.0.2.7:1".parse().expect("an endpoint")];
        let there = ["192.0.2.8:1".parse().expect("an endpoint")];
        assert!(sieve.admit(peer, 10, &here, now));
        assert!(!sieve.admit(peer, 10, &here, now + Duration::from_secs(9)), "repeated");
        assert!(!sieve.admit(peer, 9, &there, now + Duration::from_secs(9)), "older: a replay");
        assert!(sieve.admit(peer, 11, &here, now + Duration::from_secs(9)), "announced anew");
        assert!(sieve.admit(peer, 10, &here, now + Duration::from_secs(10)), "clocks are not trusted for longer");
    }

    #[test]
    fn one_peer_cannot_flood_and_many_cannot_fill_memory() {
        let (mut sieve, now) = (Sieve::default(), start());
        let admitted = (0..100).filter(|stamp| sieve.admit(PeerId([1; 32]), *stamp, &[], now)).count();
        assert_eq!(admitted, Sieve::BURST as usize);
        for n in 0..2 * Sieve::CAPACITY as u64 {
            let mut peer = [0; 32];
            peer[..8].copy_from_slice(&n.to_be_bytes());
            assert!(sieve.admit(PeerId(peer), 0, &[], now));
        }
        assert_eq!(sieve.seen.len(), Sieve::CAPACITY);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(open_sighting(&KEY, &bytes), Err(SightingError::Foreign));
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0..SEALED_LEN * 8) {
            let mut sealed = seal_sighting(&KEY, &announcement(&["192.0.2.7"]), [3; 12]);
            sealed[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(open_sighting(&KEY, &sealed), Err(SightingError::Foreign));
        }

        #[test]
        fn no_member_can_make_us_panic(body in proptest::collection::vec(any::<u8>(), PLAIN_LEN)) {
            let mut plain = body;
            let tag = sealing_key(&KEY)
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key([4; 12]), Aad::from(AAD), &mut plain)
                .expect("short enough");
            let sealed = [&[4; 12][..], &plain, tag.as_ref()].concat();
            prop_assert!(open_sighting(&KEY, &sealed).is_err());
        }
    }
}
