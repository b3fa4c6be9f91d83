//! The daemon: threads, sockets, files and the operator's API around the pure node and forwarder.
//!
//! One `control` thread owns the node; each lane has an egress thread (TAP → underlay) and an ingress thread (underlay
//! → TAP) that read the node's last picture without a lock; libp2p has a thread of its own. Between them are bounded
//! channels only.

pub mod lane;
pub mod netlink;
pub mod udp;
