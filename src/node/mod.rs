//! The node: the control machine. (Interface; the body follows.)
//!
//! Inputs are `handle_*`, outputs are `poll_*`; after each input, drain every output. A run is a function of the seed
//! and the inputs.

pub mod command;
pub mod event;

pub use command::{Command, CommandId, Reply};
pub use event::{Deadline, Event, Punted, Reason, Transmit};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::NodeConfig;
use crate::dht;
use crate::identity::UnixSeconds;
use crate::switch::{Fib, Notice};
use crate::wire::Counters;

/// One node of one network.
pub struct Node;

impl Node {
    /// A node that starts `now`, at `unix_now` of wall time. `seed` is all its randomness.
    pub fn new(config: NodeConfig, seed: [u8; 32], now: Instant, unix_now: UnixSeconds) -> Self {
        let _ = (config, seed, now, unix_now);
        Self
    }

    /// A frame or datagram that forwarding could not judge.
    pub fn handle_punt(&mut self, punted: Punted, now: Instant) {
        let _ = (punted, now);
    }

    /// A fact from forwarding.
    pub fn handle_notice(&mut self, notice: Notice, now: Instant) {
        let _ = (notice, now);
    }

    /// News from the directory.
    pub fn handle_directory(&mut self, event: dht::Event, now: Instant) {
        let _ = (event, now);
    }

    /// The underlay endpoints at which we can be reached now, overlays excluded: every address of every physical
    /// interface, with our port.
    pub fn handle_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Instant) {
        let _ = (endpoints, now);
    }

    /// The operator asks. Every command is answered by one [`Event::Reply`] with its id.
    pub fn handle_command(&mut self, id: CommandId, command: Command, now: Instant) {
        let _ = (id, command, now);
    }

    /// The instant of [`Node::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// We stop: says goodbye to every peer; drain once more, then drop.
    pub fn shutdown(&mut self, now: Instant) {
        let _ = now;
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next thing for the I/O to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// A new picture for forwarding, if there is one; at most one every 10 ms.
    pub fn poll_fib(&mut self, now: Instant) -> Option<Arc<Fib>> {
        let _ = now;
        None
    }

    /// When to call [`Node::handle_timeout`], and why.
    pub fn poll_timeout(&mut self) -> Option<Deadline> {
        None
    }

    /// What the node dropped so far; forwarding counts its own.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
