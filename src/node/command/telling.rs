//! What is told of paths and NATs.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::PeerInfo;

/// Why a member is reached as it is, and not better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathReason {
    /// It answers on our LAN.
    DirectLan,
    /// It answers, and no relay is in between.
    Direct,
    /// The same, at a port that was foreseen: one NAT or both give ports in sequence.
    DirectPredicted,
    /// The same, at a port that was guessed: one NAT gives ports by chance.
    DirectGuessed,
    /// It answers by TCP: no UDP passes between the two.
    DirectStream,
    /// No UDP passes on one side or on both: what the relay has from there comes by TCP.
    RelayedUdpBlocked,
    /// Both NATs give ports by chance: no direct path is possible.
    RelayedBothRandom,
    /// One NAT gives ports by chance, the other in sequence: no direct path is possible.
    RelayedRandomSequential,
    /// It names no endpoint to which we could send: of another address family, as a rule.
    RelayedNoCandidates,
    /// Ports are being tried.
    RelayedHunting,
    /// All candidates are tried again and again; none has answered yet.
    RelayedTrying,
    /// Only guessing would help, and ports are guessed for members in use only.
    RelayedIdle,
    /// Guessing has found nothing, and rests.
    RelayedResting,
    /// Our budget of new flows, or of guessing, is used up for now.
    RelayedBudget,
    /// A handshake is under way.
    NoSessionTrying,
    /// No candidate answers.
    NoSessionUnreachable,
    /// It said goodbye.
    NoSessionDeparted,
    /// Nobody wanted one yet.
    NoSessionIdle,
    /// No candidate is known to which we could send.
    NoSessionNoCandidates,
    /// Nobody answers us by UDP, though there are members: UDP is blocked here.
    UdpBlocked,
    /// There is a session, and no path: its relay is gone, another is being asked.
    NoPath,
}

impl PathReason {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::DirectLan => "direct-lan",
            Self::Direct => "direct",
            Self::DirectPredicted => "direct-predicted",
            Self::DirectGuessed => "direct-guessed",
            Self::DirectStream => "direct-stream",
            Self::RelayedUdpBlocked => "relayed-udp-blocked",
            Self::RelayedBothRandom => "relayed-both-random",
            Self::RelayedRandomSequential => "relayed-random-sequential",
            Self::RelayedNoCandidates => "relayed-no-candidates",
            Self::RelayedHunting => "relayed-hunting",
            Self::RelayedTrying => "relayed-trying",
            Self::RelayedIdle => "relayed-idle",
            Self::RelayedResting => "relayed-resting",
            Self::RelayedBudget => "relayed-budget",
            Self::NoSessionTrying => "no-session-trying",
            Self::NoSessionUnreachable => "no-session-unreachable",
            Self::NoSessionDeparted => "no-session-departed",
            Self::NoSessionIdle => "no-session-idle",
            Self::NoSessionNoCandidates => "no-session-no-candidates",
            Self::UdpBlocked => "udp-blocked",
            Self::NoPath => "no-path",
        }
    }
}

/// Why a member is reached as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyInfo {
    /// The member, and the path in use.
    #[serde(flatten)]
    pub member: PeerInfo,
    /// Which of our sockets the path goes through, if not the first.
    pub socket: Option<u16>,
    /// For programs.
    pub reason: PathReason,
    /// For people: one sentence.
    pub because: String,
    /// Seconds to the next try for a better path, or for any.
    pub next_try: Option<u64>,
    /// Our own NAT.
    pub our_nat: NatInfo,
    /// What the member has told of its NAT, if it has: it does while the path is relayed.
    pub their_nat: Option<ForecastInfo>,
    /// Every candidate, the best first.
    pub candidates: Vec<CandidateInfo>,
}

/// How the NAT before us maps (RFC 4787, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatInfo {
    /// By what peers see: `unknown`, `untranslated`, `endpoint-independent`, `endpoint-dependent`.
    pub mapping: String,
    /// By the last survey with a fresh socket, if there was one.
    pub survey: Option<ForecastInfo>,
    /// Where peers see us, if that is none of our own addresses.
    pub seen_at: Vec<SocketAddr>,
}

/// What a NAT showed of its mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastInfo {
    /// `endpoint-independent`, `endpoint-dependent`, or `udp-blocked`.
    pub mapping: String,
    /// How it gives ports if they differ: `sequential` or `random`.
    pub ports: Option<String>,
    /// An endpoint outside: of the first socket, or the last that was given; none where no UDP passes.
    pub at: Option<SocketAddr>,
    /// Seconds ago.
    pub age: u64,
}

/// An endpoint that may work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateInfo {
    /// Where: at the relay, if it is relayed.
    pub endpoint: SocketAddr,
    /// Who named it: `relay`, `observed`, `sighting`, `record`, `remembered`.
    pub origins: Vec<String>,
    /// The relay's name, if it is relayed.
    pub via: Option<String>,
    /// Which of our sockets it is reached through, if not the first.
    pub socket: Option<u16>,
    /// Whether it is the path in use.
    pub in_use: bool,
    /// Seconds since it was last tried.
    pub tried: Option<u64>,
    /// Seconds since it last answered.
    pub answered: Option<u64>,
    /// The last round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The longest IP packet that it is known to carry, bytes, if it has been in use.
    pub path_mtu: Option<usize>,
}

/// Round trips over each path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathPongsInfo {
    /// The peer's name.
    pub name: String,
    /// One for each path, the best first.
    pub paths: Vec<PathPongInfo>,
}

/// A round trip over one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathPongInfo {
    /// Where: at the relay, if it is relayed.
    pub endpoint: SocketAddr,
    /// The relay's name, if it is relayed.
    pub via: Option<String>,
    /// Which of our sockets it goes through, if not the first.
    pub socket: Option<u16>,
    /// Whether it is the path in use.
    pub in_use: bool,
    /// Whether it was asked: a lone knock at a door that a NAT keeps shut only spoils the next one together.
    pub tried: bool,
    /// The round trip, milliseconds; nothing if no answer came.
    pub rtt_ms: Option<f64>,
}

/// How this network treats us.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetcheckInfo {
    /// The NAT of IPv4.
    pub nat: NatInfo,
    /// How it filters (RFC 4787, section 5); `None` if there was nobody to try.
    pub filtering: Option<FilteringInfo>,
    /// Whether two of our sockets hear each other by their endpoints outside.
    pub hairpin: HairpinInfo,
    /// What was mapped by PCP, NAT-PMP or UPnP.
    pub port_mapping: Option<String>,
    /// Our own underlay endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Who sees us where.
    pub observers: Vec<ObserverInfo>,
    /// Our IPv6 addresses that mean something beyond this site.
    pub ipv6: Vec<SocketAddr>,
    /// Whether a member has answered at such an address.
    pub ipv6_answered: bool,
    /// Whether UDP comes back.
    pub udp: UdpInfo,
    /// Members that are reached by TCP, or reach us so, because no UDP passes.
    pub streams: Vec<StreamInfo>,
    /// Who relays for us, and to how many members.
    pub relays: Vec<RelayingInfo>,
    /// Pairs of members that we relay for.
    pub relayed_pairs: usize,
    /// MTU of the overlay's interface.
    pub mtu: usize,
    /// The longest IP packets, bytes, that the paths to members with a session are known to carry: the narrowest path
    /// and the widest. None if there is none.
    pub path_mtus: Option<(usize, usize)>,
    /// What to do if something is bad, one line each.
    pub advice: Vec<String>,
}

/// Who may send to a mapping of our NAT (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilteringInfo {
    /// Everybody.
    EndpointIndependent,
    /// Who has an address that we have sent to.
    AddressDependent,
    /// Who has an address and port that we have sent to.
    AddressAndPortDependent,
    /// Another port of who was sent to may; there was nobody at another address to try.
    NotPortDependent,
}

impl FilteringInfo {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::NotPortDependent => "not port-dependent (it takes two members outside to tell more)",
        }
    }
}

/// Whether one socket of ours reaches another by their endpoints outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HairpinInfo {
    /// It was not tried: there is no NAT, or one whose mappings cannot be named.
    NotKnown,
    /// It was tried in vain.
    No,
    /// It does.
    Yes,
}

/// Whether UDP comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpInfo {
    /// Nothing comes back, though members were tried and the directory reaches some by TCP.
    pub blocked: bool,
    /// Seconds since anything last came from a member without a relay.
    pub heard: Option<u64>,
    /// Seconds since a member was last tried.
    pub tried: Option<u64>,
}

/// A TCP connection that stands for UDP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// The member's name.
    pub name: String,
    /// The other end.
    pub endpoint: SocketAddr,
    /// Whether it is in TLS, as far as we know: only who has dialled does.
    pub tls: bool,
    /// Whether we have dialled: then it is we who have no UDP.
    pub dialled: bool,
}

/// Where a member sees us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverInfo {
    /// The member's name.
    pub name: String,
    /// Where it sees us.
    pub seen_at: SocketAddr,
    /// Seconds ago.
    pub age: u64,
}

/// A relay of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayingInfo {
    /// Its name.
    pub name: String,
    /// Members to whom it would carry.
    pub members: usize,
}
