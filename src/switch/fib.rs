//! The forwarding information base: an immutable picture that forwarding threads read without a lock.
//!
//! The node makes a new one when something changes and hands it over whole.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::identity::{Mac, PeerId};
use crate::session::Transport;
use crate::wire::message::{HEADROOM, TAILROOM};

use super::fdb::Behind;
use super::filter::{Clause, Filter};
use super::meter::Meter;

/// One member, as forwarding sees it.
#[derive(Debug, Clone)]
pub struct FibPeer {
    /// Who.
    pub peer: PeerId,
    /// The MAC that its record gives it: the only source address accepted from it, but for stations behind it if it is a bridge.
    pub mac: Mac,
    /// The session to send with; `None` while there is none.
    pub transport: Option<Arc<Transport>>,
    /// The session that it has begun. Once a datagram in it has opened it is the one to send with, whatever the node has heard of that: the answer
    /// to that datagram may be here first, and a peer that was away knows no older session.
    pub next: Option<Arc<Transport>>,
    /// The path in use, a channel's endpoint if it is relayed; meaningless without a session.
    pub endpoint: SocketAddr,
    /// Where to send, if the path is relayed, and the channel to mark datagrams with.
    pub via: Option<(SocketAddr, u32)>,
    /// The largest datagram (UDP payload, bytes) that the path carries.
    pub path_payload: usize,
    /// What that will probably be once the path has been searched: TCP asks once only, so it is told this.
    pub expected_payload: usize,
    /// Whether it has the role `bridge`: it may speak for stations behind it, and as DHCP server and router.
    pub serves: bool,
    /// Which of its packets the filter lets in; `None`: all.
    pub clauses: Option<Arc<[Clause]>>,
}

impl FibPeer {
    /// Whether `next` is the session to send with.
    pub(super) fn is_renewed(&self) -> bool {
        self.next.as_ref().is_some_and(|next| next.is_confirmed())
    }

    /// The session to send with, where `renewed` says what [`FibPeer::is_renewed`] said: what is reserved in a session must be sealed in it, and
    /// another thread may confirm `next` in between.
    pub(super) fn session(&self, renewed: bool) -> Option<&Arc<Transport>> {
        if renewed { self.next.as_ref() } else { self.transport.as_ref() }
    }

    /// The longest frame that the path carries in one datagram, bytes.
    pub fn longest_whole(&self) -> usize {
        self.path_payload.saturating_sub(HEADROOM + TAILROOM)
    }

    /// The same of what is to be expected.
    pub fn longest_expected(&self) -> usize {
        self.expected_payload.saturating_sub(HEADROOM + TAILROOM)
    }
}

/// What becomes of the datagrams of a channel.
#[derive(Debug, Clone)]
pub enum Channel {
    /// They are for us.
    Own,
    /// We are their relay.
    Relay {
        /// Where they must come from.
        /// Who has several ways to us need not use the one that we use.
        from: Arc<[SocketAddr]>,
        /// Where they go.
        to: SocketAddr,
        /// The channel they go on by.
        channel: u32,
        /// What may pass: of these two, and of everybody.
        meters: [Arc<Meter>; 2],
    },
}

/// What forwarding knows.
#[derive(Debug, Clone)]
pub struct Fib {
    /// Our own MAC.
    pub mac: Mac,
    /// The TAP's MTU: the longest payload of an untagged frame, bytes.
    pub mtu: usize,
    /// All members with a record, in the order of their keys.
    pub peers: Vec<FibPeer>,
    /// MAC → index into `peers`: of members, and of stations behind bridges. Only looked up, never iterated.
    pub stations: HashMap<Mac, usize>,
    /// Our session index → the session and the index into `peers` of its owner: current, previous and next sessions.
    /// Only looked up, never iterated.
    pub receivers: HashMap<u32, (Arc<Transport>, usize)>,
    /// The channels by which others address us. Only looked up, never iterated.
    pub channels: HashMap<u32, Channel>,
    /// Overlay address → MAC by signed record, of every member and ourselves: what ARP and neighbour discovery are answered from.
    pub neighbors: Arc<BTreeMap<IpAddr, Mac>>,
    /// Whether any member has no live session, so that a flood does not reach everybody at once.
    pub cold: bool,
    /// The stations behind us; `None` if we are no bridge.
    pub behind: Option<Arc<Behind>>,
    /// Where our own datagrams come from, if we are a bridge: its LAN may be underlay too.
    pub endpoints: Vec<SocketAddr>,
    /// What the filters of all peers share; `None` where nothing is filtered.
    pub filter: Option<Arc<Filter>>,
}

impl Fib {
    /// A picture of a node that knows nobody.
    pub fn empty(mac: Mac, mtu: usize) -> Self {
        Self {
            mac,
            mtu,
            peers: Vec::new(),
            stations: HashMap::new(),
            receivers: HashMap::new(),
            channels: HashMap::new(),
            neighbors: Arc::default(),
            cold: false,
            behind: None,
            endpoints: Vec::new(),
            filter: None,
        }
    }

    /// Whether `mac` is a foreign station behind `peer`.
    #[cold]
    pub(super) fn is_behind(&self, peer: &FibPeer, mac: Mac) -> bool {
        let place = self.stations.get(&mac).and_then(|place| self.peers.get(*place));
        peer.serves && place.is_some_and(|place| place.peer == peer.peer)
    }

    /// Whether a member's record has `mac`.
    pub(super) fn is_members(&self, mac: Mac) -> bool {
        let place = self.stations.get(&mac).and_then(|place| self.peers.get(*place));
        place.is_some_and(|place| place.mac == mac)
    }

    /// The longest frame, bytes, that reaches the owner of `destination` in one datagram; unbounded for a group and for a
    /// MAC that nobody owns.
    pub fn longest_whole(&self, destination: Mac) -> usize {
        let peer = self.stations.get(&destination).and_then(|peer| self.peers.get(*peer));
        peer.map_or(usize::MAX, FibPeer::longest_whole)
    }
}
