//! Who is who: keys, certificates, invites, and the addresses that follow from them.
//!
//! One Ed25519 key makes a node: its public half is the [`PeerId`]. A network is a root key and a 32-byte
//! [`NetworkSecret`]; its [`NetworkId`] is the hash of the root key. Membership is a [`Chain`] of at most four
//! certificates below the root; of a party, key and secret are made of a [`PartyCode`]. Nothing here does I/O, reads a clock or draws randomness: seeds and times come in.
//!
//! Everything signed is canonical postcard behind [`canonical`], with a domain-separation prefix and the network id in
//! the signed bytes, so a signature made for one purpose or network never fits another.

mod address;
pub mod canonical;
mod certificate;
mod invite;
mod key;
mod party;
mod words;

pub use address::{AddressError, Ipv4Prefix, Mac, automatic_ipv4, default_prefix, ula_address, ula_prefix};
pub use certificate::{
    Certificate, CertificateBody, Chain, ChainError, Kind, MAX_LINKS, MAX_QUORUM, Membership, Name, NameError,
    RoleError, Roles,
};
pub use invite::{Ago, Contact, Invite, InviteError, MAX_CONTACTS};
pub use key::{
    DOMAIN_RECORD, IdentityError, NetworkId, NetworkSecret, NoisePublic, NoiseSecret, PeerId, Signature, SigningKey,
};
pub use party::{PartyCode, PartyCodeError};

/// Seconds since the Unix epoch, as wall time enters the house: certificates, records and invites are dated in it.
pub type UnixSeconds = u64;

/// How far two honest clocks may differ, in seconds. Applied to `not_before` only: an hour forgives a laptop that has
/// not seen NTP; more would let a certificate work well before its time.
pub const CLOCK_SKEW: UnixSeconds = 3600;
