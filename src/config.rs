//! What is meant: the settings of a network and of a node, after the command line and the disk were read.

pub mod filter;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::identity::{
    Chain, Contact, Ipv4Prefix, Mac, Name, NetworkId, NetworkSecret, PeerId, SigningKey, automatic_ipv4,
};

/// The TAP's MTU: 1500, so that bridges to ordinary Ethernet work.
pub const DEFAULT_MTU: usize = 1500;

/// The UDP and TCP port tried first. Registered to nobody; the next network on one machine takes a free one.
pub const DEFAULT_PORT: u16 = 4747;

pub use crate::wire::stream::TLS_PORT;

/// What every member of a network knows about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Its name on this machine.
    pub name: Name,
    /// Its root public key.
    pub root: PeerId,
    /// Its secret.
    pub secret: NetworkSecret,
    /// Its IPv4 network.
    pub prefix: Ipv4Prefix,
}

impl NetworkConfig {
    /// The network's id.
    pub fn id(&self) -> NetworkId {
        NetworkId::of_root(&self.root)
    }
}

/// What `meshd up` was told, beyond the node itself.
#[derive(Debug, Clone)]
pub struct UpConfig {
    /// For the node.
    pub node: NodeConfig,
    /// Our name, for messages.
    pub name: Name,
    /// The TAP device name; at most 15 bytes.
    pub device: String,
    /// UDP and TCP port; `None` tries [`DEFAULT_PORT`] and then any free one.
    pub port: Option<u16>,
    /// Lanes; at least one.
    pub lanes: usize,
    /// Whether lanes look for work for a while before they sleep.
    pub busy_poll: bool,
    /// Whether to find out how long a datagram each path carries.
    pub search_mtu: bool,
    /// Whether the gateway is asked to let others in.
    pub port_mapping: bool,
    /// The account to become (`--user`): a name or a number; `None`: the usual one.
    pub user: Option<String>,
    /// The network's folder on disk: keys, settings, known records. `None`: nothing is kept.
    pub state: Option<PathBuf>,
    /// The folder of the API socket and the lock.
    pub runtime: PathBuf,
}

/// What a member carries for two others that cannot meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relaying {
    /// Whether it does at all.
    pub serve: bool,
    /// For all together, bits a second. Two members get half of it at most, so that they cannot take everything.
    pub limit: u64,
}

impl Default for Relaying {
    fn default() -> Self {
        Self { serve: true, limit: u64::from(DEFAULT_RELAY_LIMIT) * 1_000_000 }
    }
}

/// What a member carries for others unless told otherwise, Mbit/s: a fifth of a core of a small machine, more than most lines
/// to a home have, and enough for the chains of LANs where somebody copies a file. Two get 200 of it.
pub const DEFAULT_RELAY_LIMIT: u32 = 400;

/// What a node is told when it starts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Of which network.
    pub network: NetworkConfig,
    /// Our key.
    pub key: SigningKey,
    /// Our certificate chain.
    pub chain: Chain,
    /// `--mac`.
    pub mac: Option<Mac>,
    /// `--ip`.
    pub ipv4: Option<Ipv4Addr>,
    /// The TAP's MTU, bytes.
    pub mtu: usize,
    /// How often this key has started before: the high part of our sequence numbers, kept on disk.
    pub boots: u32,
    /// What we carry for others.
    pub relaying: Relaying,
    /// `--listen-443`: whether we take TLS at TCP port 443.
    pub tls: bool,
    /// Whether this machine has AES in hardware.
    pub hardware_aes: bool,
    /// Whether sessions have ML-KEM mixed in where the peer wants it too.
    pub post_quantum: bool,
    /// Members to try first, from the invite.
    pub contacts: Vec<Contact>,
    /// Records kept on disk from the last run, as bytes; checked again.
    pub known_records: Vec<Vec<u8>>,
    /// Statements kept on disk, as bytes; checked again.
    pub known_statements: Vec<Vec<u8>>,
    /// The network's secrets kept on disk, the newest first; that of [`NetworkConfig`] is the oldest.
    pub known_secrets: Vec<NetworkSecret>,
}

impl NodeConfig {
    /// Our MAC: the chosen or the automatic one.
    pub fn mac(&self) -> Mac {
        self.mac.unwrap_or_else(|| Mac::automatic(&self.network.id(), &self.key.peer_id()))
    }

    /// Our IPv4 address at the `attempt`-th try: the chosen one always, else the automatic ones in turn.
    pub fn ipv4(&self, attempt: u32) -> Ipv4Addr {
        let automatic = || automatic_ipv4(&self.network.id(), &self.key.peer_id(), &self.network.prefix, attempt);
        self.ipv4.unwrap_or_else(automatic)
    }
}
