//! netsim: worlds in which meshd can be wrong without harm.
//!
//! The virtual world is merely another I/O around the same [`meshd::node::Node`] and [`meshd::switch::Forwarder`] that
//! the daemon runs: a virtual clock and an event heap instead of threads and sockets. A run is a function of its seed,
//! so a failing test prints the seed, and with `NETSIM_SEED` it fails again in the same way.
//!
//! | file | what |
//! |---|---|
//! | [`world`] | the clock, the heap, and what a test does with it |
//! | [`heap`] | what happens when |
//! | [`host`] | a node and a forwarder wired as the daemon wires them, and the station on their TAP |
//! | [`station`] | what runs above the TAP: pings, broadcasts, a record of frames |
//! | [`link`] | latency, jitter, loss, duplication, rate, MTU |
//! | [`topology`] | segments, cables, islands, gateways: who can reach whom |
//! | [`transit`] | the way of a datagram, hop by hop |
//! | [`nat`] | boxes between homes and the Internet: mapping, filtering, memory |
//! | [`kinds`] | the kinds of boxes of every matrix, in both worlds |
//! | [`directory`] | a model of libp2p and mDNS behind [`meshd::dht::Command`] and [`meshd::dht::Event`] |
//! | `circuits` | the same model's connections: by TCP, or through relays |
//! | [`kademlia`] | routing tables and searches as our swarm has them |
//! | [`eclipse`] | a DHT with colluding members in it: what can they hide? |
//! | [`play`] | what a test does with a world |
//! | [`oracle`] | which pairs must be connected, and whether they are |
//! | [`trace`] | what happened, byte for byte |
//! | [`seed`], [`network`] | chance, and networks made of it |
//!
//! The real world (`netns`: network namespaces around the real binary) is behind the feature `lab`.

mod circuits;
pub mod directory;
pub mod eclipse;
pub mod heap;
pub mod host;
pub mod kademlia;
pub mod kinds;
pub mod link;
pub mod nat;
#[cfg(feature = "lab")]
pub mod netns;
pub mod network;
pub mod oracle;
pub mod play;
pub mod seed;
pub mod station;
mod stream;
pub mod topology;
pub mod trace;
pub mod transit;
pub mod world;

pub use host::HostId;
pub use link::Conditions;
pub use nat::NatKind;
pub use network::Network;
pub use seed::{Chance, Seed};
pub use topology::{BoxId, SegmentId};
pub use world::World;
