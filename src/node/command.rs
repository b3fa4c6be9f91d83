//! What an operator asks and is told. Serializable, so the API socket and `--json` carry the same thing.

mod filter;
mod telling;

pub use filter::{FilterInfo, FilterRuleInfo, FilterVerdictInfo};
pub use telling::{
    CandidateInfo, FilteringInfo, ForecastInfo, HairpinInfo, NatInfo, NetcheckInfo, ObserverInfo, PathPongInfo,
    PathPongsInfo, PathReason, RelayingInfo, StreamInfo, UdpInfo, WhyInfo,
};

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::identity::NetworkSecret;

/// Names a command until its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What the operator asks of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// How the node stands.
    Status,
    /// Every member known.
    Peers,
    /// Every MAC known, and behind which peer.
    Stations,
    /// What the directory says of a MAC, an IP or a name.
    Lookup {
        /// As typed.
        key: String,
    },
    /// A round trip inside the tunnel.
    Ping {
        /// A peer id, a name, an overlay address or a MAC.
        peer: String,
    },
    /// A round trip over each path there is.
    PingPaths {
        /// As for [`Command::Ping`].
        peer: String,
    },
    /// Why this path to a member, and not a better one.
    Why {
        /// As for [`Command::Ping`].
        peer: String,
    },
    /// How this network treats us, asked anew.
    Netcheck,
    /// The rules of the packet filter.
    Filter,
    /// From now on these are the rules.
    LoadFilter {
        /// As a file has them ([`crate::config::filter`]).
        rules: String,
    },
    /// What would become of a packet that begins something.
    TestFilter {
        /// As for [`Command::Ping`].
        from: String,
        /// The same, or this node.
        to: Option<String>,
        /// `tcp`, `udp`, `icmp` or a number.
        protocol: String,
        /// Of TCP and UDP.
        port: Option<u16>,
    },
    /// Takes in a statement, and tells everybody.
    State {
        /// Its bytes, hexadecimal.
        statement: String,
    },
    /// Takes in a new secret of the network, and tells everybody.
    Epoch {
        /// The statement about it, hexadecimal.
        statement: String,
        /// Itself.
        secret: NetworkSecret,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Command::Status`].
    Status(Box<Status>),
    /// To [`Command::Peers`].
    Peers {
        /// In the order of their names.
        peers: Vec<PeerInfo>,
    },
    /// To [`Command::Stations`].
    Stations {
        /// In the order of their MACs.
        stations: Vec<StationInfo>,
    },
    /// To [`Command::Lookup`].
    Lookup(LookupInfo),
    /// To [`Command::Ping`].
    Pong(PongInfo),
    /// To [`Command::PingPaths`].
    PathPongs(PathPongsInfo),
    /// To [`Command::Why`].
    Why(Box<WhyInfo>),
    /// To [`Command::Netcheck`].
    Netcheck(Box<NetcheckInfo>),
    /// To [`Command::Filter`] and [`Command::LoadFilter`].
    Filter(FilterInfo),
    /// To [`Command::TestFilter`].
    FilterVerdict(FilterVerdictInfo),
    /// To [`Command::State`] and [`Command::Epoch`].
    Stated {
        /// Whether it was not known before.
        news: bool,
    },
    /// The command could not be carried out.
    Error {
        /// One line: what is wrong and what to do.
        message: String,
    },
}

/// How the node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The network's name here.
    pub network: String,
    /// Its id, hexadecimal.
    pub network_id: String,
    /// Our name.
    pub name: String,
    /// Our peer id.
    pub peer: String,
    /// Our MAC.
    pub mac: String,
    /// Our IPv4 address in the overlay.
    pub ipv4: Ipv4Addr,
    /// Our IPv6 address in the overlay.
    pub ipv6: Ipv6Addr,
    /// The name of the TAP device; filled in by the daemon.
    pub device: String,
    /// How frames are moved; filled in by the daemon.
    pub forwarding: ForwardingInfo,
    /// Underlay endpoints at which we listen.
    pub endpoints: Vec<SocketAddr>,
    /// Where peers see us, if that is none of them: a NAT is in between.
    pub seen_at: Vec<SocketAddr>,
    /// What our gateway lets in for everybody, as far as peers are told.
    pub mapped: Vec<SocketAddr>,
    /// Every mapping that our gateway has granted; filled in by the daemon.
    pub mappings: Vec<MappingInfo>,
    /// How the NAT of IPv4 maps (RFC 4787, section 4.1): `unknown`, `untranslated`, `endpoint-independent`, `endpoint-dependent`.
    pub mapping: String,
    /// Our roles, beyond those of every member.
    pub roles: Vec<String>,
    /// Keys that were revoked, as far as is known here.
    pub expelled: usize,
    /// Members known, ourselves not counted.
    pub members: usize,
    /// Members with a live session.
    pub connected: usize,
    /// Seconds since the start.
    pub uptime: u64,
    /// Ways of others that lead through us.
    pub carries: usize,
    /// Open control connections (libp2p).
    pub directory_connections: usize,
    /// Records in our shard of the directory.
    pub shard_records: usize,
    /// Our home relays, by name: who can be asked for us. None if we need none.
    pub homes: Vec<String>,
    /// Members to whom control connections lead through relays alone.
    pub directory_circuits: usize,
    /// How many of our home relays let control connections through to us.
    pub directory_homes: usize,
    /// Control connections of others that lead through us.
    pub directory_carries: usize,
    /// What was dropped, by reason; forwarding's counters are added by the daemon.
    pub drops: Vec<(String, u64)>,
}

/// A port mapping at our gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingInfo {
    /// `UDP` for sessions, `TCP` for the directory.
    pub protocol: String,
    /// The port here.
    pub port: u16,
    /// Where others reach it, as the gateway says.
    pub external: SocketAddr,
    /// Who granted it: `PCP`, `NAT-PMP`, `UPnP`.
    pub by: String,
    /// Seconds until it ends unless it is renewed; none if the gateway knows no end.
    pub ends: Option<u64>,
    /// Whether peers are told. Not if they see us at another address: then another NAT is behind the gateway.
    pub used: bool,
}

/// How the daemon moves frames: what it was told, and what the kernel has granted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ForwardingInfo {
    /// Lanes.
    pub lanes: usize,
    /// Whether the TAP takes and gives superframes of TCP (TSO).
    pub tcp_superframes: bool,
    /// Whether the TAP takes and gives superframes of UDP (USO).
    pub udp_superframes: bool,
    /// Most datagrams in one send (UDP GSO); 1 for none.
    pub train: usize,
    /// The socket's receive buffer, bytes.
    pub receive_buffer: usize,
    /// The socket's send buffer, bytes.
    pub send_buffer: usize,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// Its peer id.
    pub peer: String,
    /// Its MAC.
    pub mac: String,
    /// Its IPv4 address in the overlay.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address in the overlay.
    pub ipv6: Ipv6Addr,
    /// Its roles, beyond those of every member.
    pub roles: Vec<String>,
    /// `direct`, `stream` (by TCP, for no UDP passes), `relayed`, `idle` or `none`.
    pub path: String,
    /// The first relay's name, if it is relayed.
    pub via: Option<String>,
    /// How many relays there are on the path.
    pub relays: u8,
    /// Where datagrams to it go, if there is a session: to the relay, if it is relayed.
    pub endpoint: Option<SocketAddr>,
    /// The last measured round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The longest IP packet that the path in use is known to carry, bytes.
    pub path_mtu: Option<usize>,
    /// Which AEAD the session uses.
    pub cipher: Option<String>,
    /// Whether ML-KEM-768 is mixed into its keys.
    #[serde(default)]
    pub post_quantum: bool,
    /// Seconds since something was last heard from it.
    pub last_heard: Option<u64>,
}

/// A MAC behind a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StationInfo {
    /// The MAC.
    pub mac: String,
    /// The peer behind which it is.
    pub peer: String,
    /// The peer's name.
    pub name: String,
    /// How it is known: `record`; `own`; or `bridge`, if it is a foreign station behind that peer.
    pub by: String,
}

/// What the directory says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupInfo {
    /// What was asked.
    pub key: String,
    /// The member's name.
    pub name: String,
    /// Its peer id.
    pub peer: String,
    /// Its MAC.
    pub mac: String,
    /// Its IPv4 address in the overlay.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address in the overlay.
    pub ipv6: Ipv6Addr,
    /// Its underlay endpoints by its record.
    pub endpoints: Vec<SocketAddr>,
    /// The record's sequence number.
    pub sequence: u64,
    /// When the record ends, Unix seconds.
    pub expires: u64,
    /// Names (or ids) of the shards that hold it.
    pub shards: Vec<String>,
}

/// A round trip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PongInfo {
    /// The peer's name.
    pub name: String,
    /// Which endpoint answered.
    pub endpoint: SocketAddr,
    /// The round trip, milliseconds.
    pub rtt_ms: f64,
    /// Our endpoint as the peer saw it.
    pub observed: SocketAddr,
}
