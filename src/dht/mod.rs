//! The directory: who has which MAC, IP and name, and where they are now.
//!
//! Everything that can be decided without a network is pure: [`record`] (what a member signs about itself),
//! [`membership`] (what a node knows of all members), [`statement`] and [`ledger`] (who is expelled, and who joined by which
//! invite), [`directory`] (a shard: what one node keeps for the others). Two
//! files do I/O: `swarm` (libp2p: Kademlia, gossip, circuits) and `beacon` (mDNS). Between them and the node stand [`Command`] and
//! [`Event`]: a libp2p `Swarm` reads clocks and cannot run in virtual time, so netsim puts a model behind the same two
//! enums.

pub mod directory;
pub mod ledger;
pub mod membership;
pub mod record;
pub mod sighting;
pub mod statement;

#[cfg(feature = "daemon")]
pub mod beacon;
#[cfg(feature = "daemon")]
pub mod swarm;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use blake2::digest::Mac as _;
use blake2::{Blake2sMac256, digest::KeyInit};

use crate::identity::{Mac, Name, NoisePublic, PeerId};

pub use ledger::{Exclusion, Ledger};
pub use record::{Record, RecordError, Verified};
pub use statement::Statement;

/// Names one lookup, chosen by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LookupKey {
    /// The owner of a MAC.
    Mac(Mac),
    /// The owner of an overlay address, IPv4 or IPv6.
    Ip(IpAddr),
    /// The member of a name.
    Name(Name),
}

impl LookupKey {
    /// The directory key: BLAKE2s-256 keyed with the network's directory key, so equal things have unrelated keys in
    /// different networks, and a key tells nothing about the thing.
    pub fn directory_key(&self, network_key: &[u8; 32]) -> [u8; 32] {
        let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(network_key).expect("32 bytes are a BLAKE2s key");
        match self {
            Self::Mac(address) => {
                mac.update(b"mac");
                mac.update(&address.0);
            }
            Self::Ip(IpAddr::V4(address)) => {
                mac.update(b"ip4");
                mac.update(&address.octets());
            }
            Self::Ip(IpAddr::V6(address)) => {
                mac.update(b"ip6");
                mac.update(&address.octets());
            }
            Self::Name(name) => {
                mac.update(b"name");
                mac.update(name.as_str().as_bytes());
            }
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Display for LookupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(address) => address.fmt(f),
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What the node asks of the directory.
#[derive(Debug, Clone)]
pub enum Command {
    /// Store our own record under its keys, keep it stored (republish), and gossip it.
    Publish(Box<Verified<Record>>),
    /// Find the record of `key`; answered by one [`Event::Found`] or [`Event::NotFound`].
    Lookup {
        /// Comes back with the answer.
        id: QueryId,
        /// What to look up.
        key: LookupKey,
    },
    /// A member may be reached for control at these endpoints (TCP, same port numbers as UDP): connect if there is no
    /// connection yet.
    Dial {
        /// Who is expected there.
        peer: PeerId,
        /// Where.
        endpoints: Vec<SocketAddr>,
        /// Its home relays: whoever cannot reach it asks these for a circuit.
        homes: Vec<PeerId>,
    },
    /// The underlay endpoints at which we listen now (TCP). Overlay addresses are never among them.
    Listening(Vec<SocketAddr>),
    /// Our home relays: be reachable through these, and no others. As our record says.
    Homes(Vec<PeerId>),
    /// A statement that the node holds: heed it, and gossip it if it is news.
    State(Arc<Statement>),
}

/// What the directory tells the node.
#[derive(Debug, Clone)]
pub enum Event {
    /// The answer to a lookup: the best record found, and which shards gave it.
    Found {
        /// Of the lookup.
        id: QueryId,
        /// Verified here, whatever the shards said.
        record: Verified<Record>,
        /// Shards that hold it, ourselves perhaps among them.
        holders: Vec<PeerId>,
    },
    /// The lookup ended without a valid record.
    NotFound {
        /// Of the lookup.
        id: QueryId,
    },
    /// A record came by gossip, with a hello or with an answer, and is news; perhaps of ourselves, from an earlier life.
    Gossip(Verified<Record>),
    /// A statement came over the control network, and is news.
    Statement(Arc<Statement>),
    /// mDNS heard of a member on this LAN: unsigned, a hint.
    Sighting(Sighting),
    /// How the control network stands; sent on change, at most once a second.
    Standing(Standing),
    /// The members to whom there is a connection without a relay; sent on change.
    Met(Vec<Met>),
}

/// A member whom the control network has met without a relay's help. Only trying tells who can be reached by TCP: a session
/// may run where a NAT was opened for UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Who.
    pub peer: PeerId,
    /// Where it let us in; `None` if it only came to us.
    pub at: Option<SocketAddr>,
    /// Whether it says that it lets others be reached through it.
    pub relays: bool,
}

/// An unsigned hint that a member is near. Sealed with the network's key, so a stranger can neither read nor make one;
/// a member could lie in it, and the handshake then fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Who.
    pub peer: PeerId,
    /// Its Noise static key.
    pub noise: NoisePublic,
    /// Where it listens: UDP, and TCP with the same port.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it was sealed with an older secret of the network: by somebody who was away, or who was expelled.
    pub stale: bool,
}

/// How the control network stands, for `meshd status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Open libp2p connections to members.
    pub connections: usize,
    /// Peers in the Kademlia routing table.
    pub routing_peers: usize,
    /// Records in our shard.
    pub shard_records: usize,
    /// Members to whom our only connections lead through a relay.
    pub circuits: usize,
    /// Our home relays that let others reach us.
    pub reserved: usize,
    /// Circuits of others that we carry.
    pub carried: usize,
    /// Records and gossip messages refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
}
