//! meshd: a layer-2 mesh VPN with no centre.
//!
//! A pure node (control) and a pure forwarder (data) stand in the middle; thin I/O stands around them; netsim is
//! merely another I/O. Who may import whom is a table in ARCHITECTURE.md, held by `tests/layering.rs`.
//!
//! | room | what it does |
//! |---|---|
//! | [`identity`] | keys, certificates, invites, derived addresses |
//! | [`wire`] | bytes: datagram header, sealed messages, Ethernet, batches |
//! | [`config`] | what a network and a node are configured to be |
//! | [`session`] | Noise handshakes, transport keys, replay, cookies, rekeying |
//! | [`nat`] | candidates and paths |
//! | [`dht`] | records, membership, the directory; the libp2p swarm and mDNS behind one boundary |
//! | [`switch`] | FDB, FIB, flooding, ARP/ND, the forwarder |
//! | [`node`] | the control machine that ties them together |
//! | [`tap`] | the TAP device and its queues |
//! | `daemon` | threads, sockets, files, the operator's API |

pub mod config;
pub mod dht;
pub mod identity;
pub mod nat;
pub mod node;
pub mod session;
pub mod switch;
pub mod tap;
pub mod wire;

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
