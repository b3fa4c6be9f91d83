//! The switch: what forwarding reads ([`fib`]), what it does ([`forwarder`]), and its helpers.
//!
//! A [`Forwarder`] takes a batch of frames from the TAP, or of datagrams from the underlay, and writes a verdict into
//! every slot. It has no queue, no timer and no error: a drop is a counter with a name, a fact for the node is a
//! [`Notice`]. What it knows is one immutable [`Fib`], made by the node. The egress half (frames out) and the ingress
//! half (datagrams in) share nothing, so the daemon gives each its own thread.

pub mod fib;
pub mod flood;
pub mod forwarder;
pub mod fragment;
pub mod neighbor;
pub mod seal;
#[cfg(test)]
mod testing;

pub use fib::{Fib, FibPeer};
pub use forwarder::{Egress, Forwarder, Ingress, Notice};
pub use seal::{seal_frame, seal_message};
