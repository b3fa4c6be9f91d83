//! The forwarder: both halves together, and the facts that they find for the node.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::identity::PeerId;

pub use super::egress::Egress;
pub use super::ingress::Ingress;

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

/// Both halves; the daemon splits it over two threads, netsim keeps it whole.
#[derive(Debug, Default)]
pub struct Forwarder {
    /// Frames out.
    pub egress: Egress,
    /// Datagrams in.
    pub ingress: Ingress,
}

/// Notices that wait for the node. They are taken after each batch, and a batch of hundreds of datagrams is mostly of one
/// peer; so this bounds nothing but a caller who never asks.
const MAX_NOTICES: usize = 256;

/// Facts that wait for the node; each at most once.
#[derive(Debug, Default)]
pub(super) struct Notices(VecDeque<Notice>);

impl Notices {
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MAX_NOTICES
    }

    pub(super) fn push(&mut self, notice: Notice) {
        if self.has_room() && !self.0.contains(&notice) {
            self.0.push_back(notice);
        }
    }

    /// The latest endpoint of a peer that has moved.
    pub(super) fn push_roamed(&mut self, peer: PeerId, endpoint: SocketAddr) {
        let same = |notice: &&mut Notice| matches!(notice, Notice::Roamed { peer: other, .. } if *other == peer);
        match self.0.iter_mut().find(same) {
            Some(notice) => *notice = Notice::Roamed { peer, endpoint },
            None => self.push(Notice::Roamed { peer, endpoint }),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Notice> {
        self.0.pop_front()
    }
}
