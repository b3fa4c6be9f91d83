//! The switch: what forwarding reads ([`fib`]), what it does ([`forwarder`]), and its helpers.
//!
//! A [`Forwarder`] takes a batch of frames from the TAP ([`egress`]), or of datagrams from the underlay ([`ingress`]),
//! and writes a verdict into every slot. It has no queue, no timer and no error: a drop is a counter with a name, a fact
//! for the node is a [`Notice`]. What it knows is one immutable [`Fib`], made by the node. The halves share nothing, so
//! the daemon gives each its own thread.
//!
//! Around them: [`neighbor`] answers ARP and neighbour discovery from records and refuses forgeries, [`flood`] budgets
//! what is copied to everybody, [`seal`] turns frames into datagrams, cuts those that a path is too narrow for and
//! bundles small ones, [`fragment`] puts cut ones together again, `mss` sees to it that TCP need not be cut, [`meter`] bounds
//! what is relayed, `service` DHCP servers and routers
//! that nobody asked for, [`filter`] what the operator does not want.
//!
//! Members' stations come from signed records alone: one MAC for each, so there is nothing to learn and nothing to poison.
//! Foreign stations are learned by members with the role `bridge` only, and told by them; [`fdb`] is the table of both, kept by the
//! node. What it says goes into [`Fib::stations`] and [`Fib::behind`]; a member's own record wins always.

pub mod egress;
pub mod fdb;
pub mod fib;
pub mod filter;
pub mod flood;
pub mod forwarder;
pub mod fragment;
pub mod ingress;
pub mod meter;
mod mss;
pub mod neighbor;
mod packet;
pub mod seal;
mod service;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use fdb::{Behind, Fdb};
pub use fib::{Channel, Fib, FibPeer};
pub use forwarder::{Egress, Forwarder, Ingress, Notice};
pub use meter::Meter;
pub use neighbor::requested;
pub use seal::{seal_frame, seal_message, seal_padded};

use crate::wire::ethernet::{ETHERNET_HEADER_LEN, VLAN_TAG_LEN};

/// The longest frame at an MTU: a header, two tags, the payload. Bytes.
fn longest_frame(mtu: usize) -> usize {
    ETHERNET_HEADER_LEN + 2 * VLAN_TAG_LEN + mtu
}
