//! The forwarder (interface; the body follows).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use crate::identity::PeerId;
use crate::wire::{Batch, Counters};

use super::fib::Fib;

/// A fact that forwarding found and the node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The first datagram of the initiator opened: the session with our index `local` is confirmed.
    Confirmed {
        /// Our index of the session.
        local: u32,
    },
    /// An authenticated datagram of `peer` came from an endpoint other than the one the Fib has.
    Roamed {
        /// Who.
        peer: PeerId,
        /// From where.
        endpoint: SocketAddr,
    },
    /// The session has sealed so many datagrams that it is to be replaced; said once a session is due, at most once a batch.
    RekeyDue {
        /// Our index of the session.
        local: u32,
    },
}

/// Frames from the TAP, on their way out.
#[derive(Debug, Default)]
pub struct Egress {
    counters: Counters,
    notices: VecDeque<Notice>,
}

/// Datagrams from the underlay, on their way in.
#[derive(Debug, Default)]
pub struct Ingress {
    counters: Counters,
    notices: VecDeque<Notice>,
}

/// Both halves; the daemon splits it over two threads, netsim keeps it whole.
#[derive(Debug, Default)]
pub struct Forwarder {
    /// Frames out.
    pub egress: Egress,
    /// Datagrams in.
    pub ingress: Ingress,
}

impl Egress {
    /// Judges every slot that is `Pending`: frames read from our TAP. Known unicast is sealed in place (`Send`), floods
    /// and cut frames append slots (`Done` for the original), ARP and ND requests that the records answer become
    /// replies (`Deliver`).
    pub fn handle_frames(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        let _ = (fib, batch, now);
    }

    /// Facts for the node; drain after each batch.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// What was dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Ingress {
    /// Judges every slot that is `Pending`: datagrams received. Frames for us are opened in place (`Deliver`),
    /// handshakes and messages go to the node (`Punt`, with `slot.peer` set for messages).
    pub fn handle_datagrams(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        let _ = (fib, batch, now);
    }

    /// Facts for the node; drain after each batch.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// What was dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
