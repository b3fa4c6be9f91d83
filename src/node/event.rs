//! What goes into the node and comes out of it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::dht;
use crate::dht::{Record, Verified};
use crate::identity::{Mac, NetworkSecret, PeerId};
use crate::wire::Punt;

use super::command::{CommandId, Reply};

/// A slot that forwarding punted, copied out of its batch.
#[derive(Debug, Clone)]
pub struct Punted {
    /// Why.
    pub punt: Punt,
    /// A frame, a handshake datagram, or an opened message without its inner header.
    pub bytes: Vec<u8>,
    /// Where a datagram came from.
    pub source: Option<SocketAddr>,
    /// Who sent a message: proved by the session it opened with.
    pub peer: Option<PeerId>,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to; perhaps through another socket than the first ([`crate::wire::socket`]).
    pub endpoint: SocketAddr,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many routers it may cross, if not as many as the system allows: one that opens our own NAT must not arrive.
    pub hop_limit: Option<u8>,
}

impl Transmit {
    /// One that is to arrive.
    pub(super) fn to(endpoint: SocketAddr, bytes: Vec<u8>) -> Self {
        Self { endpoint, bytes, hop_limit: None }
    }
}

/// What the I/O around the node is to do.
#[derive(Debug, Clone)]
pub enum Event {
    /// For the directory.
    Directory(dht::Command),
    /// Write this frame to the TAP.
    Deliver(Vec<u8>),
    /// The answer to a command.
    Reply(CommandId, Box<Reply>),
    /// The overlay addresses to set on the TAP; the first time at the start, again after a lost conflict.
    Addresses {
        /// Ours.
        mac: Mac,
        /// Ours, in the network's prefix.
        ipv4: Ipv4Addr,
        /// Ours, in the network's /64.
        ipv6: Ipv6Addr,
        /// Why they changed, for people; `None` at the start.
        notice: Option<String>,
    },
    /// Keep these records on disk: the members we know, so that a restart finds them without mDNS.
    Persist(Vec<Verified<Record>>),
    /// Open sockets of these numbers and any ports, and say which with [`super::Node::handle_witnesses`].
    Witnesses(BTreeSet<u16>),
    /// Close every socket but the first and these. Others are opened by the first datagram that goes through them
    /// ([`crate::wire::socket`]).
    Sockets(BTreeSet<u16>),
    /// Keep these statements on disk, instead of those before: they must outlast us.
    Keep(Vec<Vec<u8>>),
    /// The network has a new secret, the first of these: keep them all on disk, and start control network and mDNS anew with
    /// it; then [`super::Node::handle_new_directory`].
    Secrets(Vec<NetworkSecret>),
    /// Have a stream made, or closed; [`super::Node::handle_stream`] is told what came of it.
    Stream(StreamWish),
    /// Our own certificate has ended: nobody accepts us any more, so stop.
    MembershipEnded,
    /// We are no member any more, and why: stop.
    Expelled(String),
    /// Something the user sees happened to a peer: one line at INFO.
    PeerChange {
        /// Who.
        peer: PeerId,
        /// Its name.
        name: String,
        /// What happened.
        change: PeerChange,
    },
}

/// What the node wants of streams ([`crate::wire::stream`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamWish {
    /// Dial; in TLS if the port is [`crate::wire::stream::TLS_PORT`]. Within seconds it is there, or closed.
    Dial {
        /// Its number from now on.
        number: u32,
        /// Where.
        endpoint: SocketAddr,
    },
    /// Close it, and say nothing more of it.
    Hang {
        /// Which.
        number: u32,
    },
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamNews {
    /// Somebody who knows the network's secret has dialled us.
    Accepted {
        /// From there.
        from: SocketAddr,
    },
    /// Ours is there.
    Connected,
    /// It was not made, or has ended.
    Closed,
}

/// What happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// Its first session since the start, or since it was gone.
    Connected(SocketAddr),
    /// The same, through a relay.
    Relayed,
    /// It said goodbye, or has been silent for too long.
    Gone(&'static str),
}

/// When the node wants to be called, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Why.
    pub reason: Reason,
}

/// Why the node wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A handshake is to be sent again or given up.
    Handshake,
    /// A session is to be replaced or forgotten.
    Session,
    /// Frames or commands have waited too long.
    Waiting,
    /// Our record is to be renewed, or others' have expired.
    Records,
    /// The picture for forwarding is due.
    Fib,
}
