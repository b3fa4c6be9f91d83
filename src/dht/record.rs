//! What a member signs about itself: keys, addresses, endpoints, for a limited time.
//!
//! [`Verified<Record>`] is the proof: the only ways to get one are to sign it with one's own key and to verify received
//! bytes. The record carries the member's whole certificate chain, so it proves membership by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::identity::canonical::{self, CodecError};
use crate::identity::{
    Chain, ChainError, DOMAIN_RECORD, Kind, Mac, Membership, Name, NetworkId, NoisePublic, PeerId, Signature,
    SigningKey, UnixSeconds, ula_address,
};

use super::LookupKey;
use super::ledger::Exclusion;

/// Largest encoded record, bytes: a chain of four (about 500, and 620 with the longest
/// names), addresses, 8 endpoints and 2 home relays (about 270).
/// A handshake carries one in a single datagram of 1280 bytes, so there is no room for twice as much.
pub const MAX_RECORD: usize = 1024;

/// Endpoints in a record: enough for a laptop with three interfaces and both families.
pub const MAX_ENDPOINTS: usize = 8;

/// Home relays in a record: when one dies, the other can still be asked.
pub const MAX_HOMES: usize = 2;

/// How long a record lives, seconds. Two hours outlast a train ride; the dead are forgotten the same day.
pub const RECORD_LIFETIME: UnixSeconds = 2 * 3600;

/// How far ahead of our clock a record's expiry may be: its lifetime and an hour of clock difference.
const MAX_EXPIRY_AHEAD: UnixSeconds = RECORD_LIFETIME + crate::identity::CLOCK_SKEW;

/// An IPv4 address that a member claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Claim {
    /// The address.
    pub address: Ipv4Addr,
    /// Whether a person chose it (`--ip`): such a claim beats an automatic one.
    pub fixed: bool,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Root to member; its subject signs the record.
    pub chain: Chain,
    /// The member's Noise static key.
    pub noise: NoisePublic,
    /// Its MAC.
    pub mac: Mac,
    /// Its IPv4 address in the overlay.
    pub ipv4: Ipv4Claim,
    /// Its IPv6 address in the overlay: that of its MAC.
    pub ipv6: Ipv6Addr,
    /// Where it listens in the underlay: UDP, and TCP with the same port. At most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<SocketAddr>,
    /// Members that can be asked for it if it cannot be met: its home relays. At most [`MAX_HOMES`].
    pub homes: Vec<PeerId>,
    /// Whether it takes TLS at TCP port 443 of the same addresses, for those whom nothing else is let out to.
    pub tls: bool,
    /// Grows with every record of this member, across restarts too.
    pub sequence: u64,
    /// Unix seconds.
    pub expires: UnixSeconds,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    record: Record,
    signature: Signature,
}

/// Why a record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not canonical bytes of at most [`MAX_RECORD`].
    #[error("unreadable record: {0}")]
    Codec(#[from] CodecError),
    /// The certificate chain proves no membership here and now.
    #[error("no member: {0}")]
    Chain(#[from] ChainError),
    /// The chain ends in an admin's or invite's key, not in a member's.
    #[error("the certificate is no member's")]
    NotAMember,
    /// Not signed by the member.
    #[error("the record's signature does not verify")]
    Signature,
    /// Too old.
    #[error("the record expired at {0}")]
    Expired(UnixSeconds),
    /// Its expiry is further ahead than any record's may be.
    #[error("the record claims to live until {0}")]
    TooLong(UnixSeconds),
    /// The member was expelled, or never rightly joined.
    #[error("no member any more: {0}")]
    Excluded(#[from] Exclusion),
    /// A group MAC, an unspecified address, an IPv6 address that is not that of the MAC, too many endpoints or home relays.
    #[error("the record has an address nobody can have")]
    Address,
}

impl RecordError {
    /// A short name, for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Codec(CodecError::TooLong { .. }) => "record-oversized",
            Self::Codec(_) => "record-malformed",
            Self::Chain(ChainError::ForeignNetwork(_)) => "record-foreign-network",
            Self::Chain(ChainError::Expired { .. }) => "record-certificate-expired",
            Self::Chain(_) => "record-certificate",
            Self::NotAMember => "record-no-member",
            Self::Signature => "record-forged",
            Self::Expired(_) => "record-expired",
            Self::TooLong(_) => "record-too-long-lived",
            Self::Excluded(_) => "record-of-expelled",
            Self::Address => "record-address",
        }
    }
}

/// A value whose signature and membership were checked, with the bytes that were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    membership: Membership,
    bytes: Vec<u8>,
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Verified<Record> {
    /// Signs our own record. `now` is Unix seconds.
    ///
    /// # Errors
    /// As [`Verified::check`]: a record that others would refuse is never made.
    pub fn sign(key: &SigningKey, network: &NetworkId, record: Record, now: UnixSeconds) -> Result<Self, RecordError> {
        let signature = key.sign(DOMAIN_RECORD, network, &canonical::encode(&record));
        Self::check(&canonical::encode(&Signed { record, signature }), network, now)
    }

    /// Verifies received bytes: size, encoding, chain, signature, times, addresses. `now` is Unix seconds.
    ///
    /// # Errors
    /// A [`RecordError`] that says which of them failed.
    pub fn check(bytes: &[u8], network: &NetworkId, now: UnixSeconds) -> Result<Self, RecordError> {
        let Signed { record, signature } = canonical::decode(bytes, MAX_RECORD)?;
        if record.expires < now {
            return Err(RecordError::Expired(record.expires));
        }
        if record.expires > now.saturating_add(MAX_EXPIRY_AHEAD) {
            return Err(RecordError::TooLong(record.expires));
        }
        let ipv4 = record.ipv4.address;
        if record.mac.is_group()
            || record.mac == Mac([0; 6])
            || ipv4.is_unspecified()
            || ipv4.is_multicast()
            || ipv4.is_broadcast()
            || record.endpoints.len() > MAX_ENDPOINTS
            || record.homes.len() > MAX_HOMES
        {
            return Err(RecordError::Address);
        }
        let membership = record.chain.verify(network, now)?;
        if membership.kind() != Kind::Member {
            return Err(RecordError::NotAMember);
        }
        // Otherwise whoever has the smaller key could take another's.
        if record.ipv6 != ula_address(network, &record.mac) {
            return Err(RecordError::Address);
        }
        membership
            .subject()
            .verify(DOMAIN_RECORD, network, &canonical::encode(&record), &signature)
            .map_err(|_| RecordError::Signature)?;
        Ok(Self { value: record, membership, bytes: bytes.to_vec() })
    }

    /// The member that signed it.
    pub fn peer(&self) -> PeerId {
        self.membership.subject()
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        self.membership.name()
    }

    /// What its chain proves.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The received bytes, to be handed on unchanged.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// When the record or its membership ends, whichever is first, Unix seconds.
    pub fn ends(&self) -> UnixSeconds {
        self.expires.min(self.membership.not_after())
    }

    /// Whether the record or its membership has ended at `now`, Unix seconds.
    pub fn has_expired(&self, now: UnixSeconds) -> bool {
        now > self.ends()
    }

    /// Everything under which the directory finds this record: MAC, IPv4, IPv6, name.
    pub fn lookup_keys(&self) -> [LookupKey; 4] {
        [
            LookupKey::Mac(self.mac),
            LookupKey::Ip(IpAddr::V4(self.ipv4.address)),
            LookupKey::Ip(IpAddr::V6(self.ipv6)),
            LookupKey::Name(self.name().clone()),
        ]
    }

    /// Whether this member, rather than that of `other`, has the right to the thing of `key`, both claiming it. For an
    /// IPv4 address a chosen claim beats an automatic one; otherwise, and for names, the smaller key wins. The rule is
    /// the same on every node, so all decide alike without talking. For MACs see [`super::directory`]: the first seen
    /// is pinned.
    pub fn wins_over(&self, other: &Self, key: &LookupKey) -> bool {
        let rank = |record: &Self| match key {
            LookupKey::Ip(IpAddr::V4(_)) => (!record.ipv4.fixed, record.peer()),
            LookupKey::Ip(IpAddr::V6(_)) | LookupKey::Mac(_) | LookupKey::Name(_) => (false, record.peer()),
        };
        rank(self) < rank(other)
    }
}
