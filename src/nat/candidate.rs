//! Candidates: endpoints that may work (RFC 8445, section 5.1.1).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::wire::{relay, socket, stream};

use super::mtu::PathMtu;

/// Where we heard of a candidate. The order is that of trust: a later origin knows better than an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// An invite, or a record kept on disk from an earlier run: it was there once.
    Remembered = 1,
    /// The member's signed record.
    Record = 2,
    /// mDNS on this LAN.
    Sighting = 4,
    /// An authenticated datagram came from there (peer-reflexive, RFC 8445, section 7.3.1.3).
    Observed = 8,
    /// A relay has given us a channel.
    Relay = 16,
    /// It took our connection (TCP).
    Stream = 32,
}

impl Origin {
    /// All, the most trusted first.
    const ALL: [Self; 6] = [Self::Stream, Self::Relay, Self::Observed, Self::Sighting, Self::Record, Self::Remembered];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Remembered => "remembered",
            Self::Record => "record",
            Self::Sighting => "sighting",
            Self::Observed => "observed",
            Self::Relay => "relay",
            Self::Stream => "stream",
        }
    }
}

/// All origins of one candidate. The derived order is that of the most trusted among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Origins(u8);

impl Origins {
    /// One more says so.
    pub fn insert(&mut self, origin: Origin) {
        self.0 |= origin as u8;
    }

    /// Whether this one says so.
    pub fn contains(&self, origin: Origin) -> bool {
        self.0 & origin as u8 != 0
    }

    /// One says so no longer; true if nobody does any more.
    pub fn remove(&mut self, origin: Origin) -> bool {
        self.0 &= !(origin as u8);
        self.0 == 0
    }

    /// Each of them, the most trusted first.
    pub fn iter(self) -> impl Iterator<Item = Origin> {
        Origin::ALL.into_iter().filter(move |origin| self.contains(*origin))
    }
}

/// An endpoint that may work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub endpoint: SocketAddr,
    /// From whom we have it.
    pub origins: Origins,
    /// Who named it first.
    pub found_by: Origin,
    /// When we first sent there, so that our NAT lets its answers in.
    pub opened: Option<Instant>,
    /// When something that asks for an answer last went there.
    pub tried: Option<Instant>,
    /// When it last answered.
    pub answered: Option<Instant>,
    /// The last round trip.
    pub rtt: Option<Duration>,
    /// How long a datagram it carries.
    pub mtu: PathMtu,
    /// Relays on the way; 0 if it is direct.
    pub relays: u8,
}

/// `endpoint` in the one form the house uses: an IPv4-mapped IPv6 address becomes IPv4, flow labels are dropped.
pub fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match (endpoint.ip().to_canonical(), endpoint) {
        (ip @ IpAddr::V4(_), _) => SocketAddr::new(ip, endpoint.port()),
        (IpAddr::V6(_), SocketAddr::V6(mut v6)) => {
            v6.set_flowinfo(0);
            SocketAddr::V6(v6)
        }
        (ip @ IpAddr::V6(_), SocketAddr::V4(_)) => SocketAddr::new(ip, endpoint.port()),
    }
}

/// Whether a datagram could be sent there at all.
pub fn is_usable(endpoint: &SocketAddr) -> bool {
    let ip = endpoint.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    // Whoever names a channel's endpoint, a stream's, or one behind a certain socket, means one of his own, or lies.
    relay::channel_behind(endpoint).is_none()
        && stream::number_behind(endpoint).is_none()
        && socket::split(*endpoint).0 == 0
        && endpoint.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !broadcast
}
