//! Whom to dial, and when again: the members that the node names, and now and then one that we have only heard of.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};

use super::super::record::{MAX_ENDPOINTS, MAX_HOMES};
use super::peers::theirs;
use super::{Directory, about, backoff, jitter, random, transport};
use crate::identity::PeerId;

/// Members that we dial again when their connection is lost. Each costs a connection of 50 KiB and a ping a minute; 64
/// hold a small network together, and a large one holds itself together by its routing table.
const MAX_TARGETS: usize = 64;

/// Failed dials after which a target is given up: with the waits below, about ten minutes.
const MAX_FAILURES: u32 = 15;

/// The wait before the second dial; it doubles up to the longest. Jittered.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The wait before a first dial, at most, for each dial that waits already: one peer is dialled at once, two hundred
/// within four seconds (LIBRARIES, trap 5).
const DIAL_SPREAD: Duration = Duration::from_millis(20);

/// How often a member that we know but are not connected to is dialled: it heals partitions that nobody else mends.
const REACH_OUT: Duration = Duration::from_secs(30);
/// The same, while we are connected to nobody.
const REACH_OUT_ALONE: Duration = Duration::from_secs(5);

/// Addresses of one peer in the routing table, and of a target: what its record holds, twice.
pub(super) const MAX_ADDRESSES: usize = 2 * MAX_ENDPOINTS;

/// Members that are dialled until they are connected.
pub(super) struct Targets {
    known: BTreeMap<libp2p::PeerId, Target>,
    reach_out_at: Instant,
}

struct Target {
    endpoints: Vec<SocketAddr>,
    /// Where else it may be asked for.
    homes: Vec<PeerId>,
    failures: u32,
    dial_at: Instant,
    /// Our own dial, while it is under way. Kademlia dials the same members where others say they are, which is often less.
    dialling: Option<ConnectionId>,
    added: Instant,
}

impl Targets {
    pub(super) fn new(now: Instant) -> Self {
        Self { known: BTreeMap::new(), reach_out_at: now + REACH_OUT_ALONE }
    }

    pub(super) fn contains(&self, peer: &libp2p::PeerId) -> bool {
        self.known.contains_key(peer)
    }

    /// The peer is not dialled again.
    pub(super) fn forget(&mut self, peer: &libp2p::PeerId) {
        self.known.remove(peer);
    }

    /// There is a connection without a relay.
    pub(super) fn note_met(&mut self, peer: &libp2p::PeerId) {
        if let Some(target) = self.known.get_mut(peer) {
            target.failures = 0;
        }
    }

    /// The last connection is gone.
    pub(super) fn note_lost(&mut self, peer: &libp2p::PeerId, now: Instant) {
        if let Some(target) = self.known.get_mut(peer) {
            target.dial_at = now + about(FIRST_RETRY);
        }
    }

    /// Those that have not failed yet.
    fn fresh(&self) -> impl Iterator<Item = &libp2p::PeerId> {
        self.known.iter().filter(|(_, target)| target.failures == 0).map(|(peer, _)| peer)
    }
}

impl Directory {
    /// Whether a first dial is due within a fraction of a second.
    pub(super) fn is_dialling(&self) -> bool {
        self.targets.fresh().any(|peer| !self.peers.is_connected(peer))
    }

    /// Dials what is due.
    pub(super) fn tend_targets(&mut self, now: Instant) {
        let met = |peer: &libp2p::PeerId| self.peers.way_to(peer).is_some();
        let due = self.targets.known.iter().filter(|(peer, target)| target.dial_at <= now && !met(peer));
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.dial_target(peer, now);
        }
        self.reach_out(now);
    }

    /// A dial failed. The peer leaves the routing table, where it would slow every query down; it comes back when it
    /// is met again.
    pub(super) fn dial_failed(&mut self, peer: libp2p::PeerId, dial: ConnectionId, error: &DialError, now: Instant) {
        if let DialError::WrongPeerId { address, .. } = error {
            self.rests.note_failure(address, now);
        }
        if matches!(error, DialError::DialPeerConditionFalse(_)) || self.peers.is_connected(&peer) {
            return;
        }
        tracing::debug!(%peer, %error, "dial failed");
        if let Some(target) = self.targets.known.get_mut(&peer).filter(|target| target.dialling == Some(dial)) {
            target.dialling = None;
            target.failures += 1;
            target.dial_at = now + backoff(target.failures, FIRST_RETRY, LONGEST_RETRY);
            if target.failures >= MAX_FAILURES {
                self.targets.known.remove(&peer);
            }
        }
        self.unroute(peer, now);
    }

    /// The node says that a member may be at `endpoints`, or be asked for at its `homes`.
    pub(super) fn remember_target(
        &mut self,
        peer: PeerId,
        endpoints: &[SocketAddr],
        mut homes: Vec<PeerId>,
        now: Instant,
    ) {
        let mut endpoints = self.admitted(endpoints);
        homes.truncate(MAX_HOMES);
        let nowhere = endpoints.is_empty() && homes.is_empty();
        let Some(id) = theirs(&peer).filter(|_| peer != self.own && !nowhere) else { return };
        let waiting = self.targets.fresh().count() as u32;
        let dial_at = now + jitter(DIAL_SPREAD.saturating_mul(waiting));
        // There is a sign of life, or it has moved: what failed there before may work.
        for address in endpoints.iter().map(|at| transport::multiaddr(*at)).chain(self.circuits_to(&homes)) {
            self.rests.forget(&address.with(Protocol::P2p(id)));
        }
        if let Some(target) = self.targets.known.get_mut(&id) {
            target.added = now;
            let moved = endpoints.iter().any(|at| !target.endpoints.contains(at));
            let moved = moved || !homes.is_empty() && homes != target.homes;
            // What a session says of one endpoint says nothing of the others, nor of the homes.
            let others: Vec<_> = target.endpoints.iter().copied().filter(|at| !endpoints.contains(at)).collect();
            endpoints.extend(others);
            endpoints.truncate(MAX_ADDRESSES);
            target.endpoints = endpoints;
            if !homes.is_empty() {
                target.homes = homes;
            }
            if moved || !self.peers.is_connected(&id) {
                (target.failures, target.dial_at) = (0, dial_at);
            }
            return;
        }
        if self.targets.known.len() >= MAX_TARGETS {
            let spare = |peer: &libp2p::PeerId| !self.circuits.is_home(peer);
            let spare = self.targets.known.iter().filter(|(peer, _)| spare(peer));
            let oldest = spare.max_by_key(|(_, target)| (target.failures, now - target.added));
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.targets.known.remove(&oldest);
            }
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints.truncate(MAX_ADDRESSES);
        self.targets.known.insert(id, Target { endpoints, homes, failures: 0, dial_at, dialling: None, added: now });
    }

    /// Dials a target: wherever it may be while there is no connection, and where it is itself while a relay gives us one.
    fn dial_target(&mut self, peer: libp2p::PeerId, now: Instant) {
        let relayed = self.peers.is_connected(&peer);
        let Some(target) = self.targets.known.get_mut(&peer) else { return };
        // Until the dial ends, one way or the other.
        target.dial_at = now + about(LONGEST_RETRY);
        let (endpoints, homes) = (target.endpoints.clone(), target.homes.clone());
        let dialling = if relayed {
            let addresses = endpoints.into_iter().map(|at| transport::multiaddr(at).with(Protocol::P2p(peer)));
            let addresses: Vec<_> = addresses.filter(|address| !self.rests.holds(address, now)).collect();
            if addresses.is_empty() {
                return;
            }
            let options = DialOpts::peer_id(peer).condition(PeerCondition::NotDialing).addresses(addresses);
            self.try_to_dial(options.build())
        } else {
            self.dial(peer, &endpoints, &homes)
        };
        let Some(target) = self.targets.known.get_mut(&peer) else { return };
        match dialling {
            Ok(dial) => target.dialling = Some(dial),
            // Kademlia dials it just now.
            Err(DialError::DialPeerConditionFalse(_)) => target.dial_at = now + about(FIRST_RETRY),
            Err(_) => target.failures = target.failures.saturating_add(1),
        }
    }

    fn dial(
        &mut self,
        peer: libp2p::PeerId,
        endpoints: &[SocketAddr],
        homes: &[PeerId],
    ) -> Result<ConnectionId, DialError> {
        let plain = endpoints.iter().map(|at| transport::multiaddr(*at));
        let addresses = plain.chain(self.circuits_to(homes)).collect();
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        self.try_to_dial(options)
    }

    fn try_to_dial(&mut self, options: DialOpts) -> Result<ConnectionId, DialError> {
        let id = options.connection_id();
        let dialled = self.swarm.dial(options).inspect_err(|error| tracing::debug!(%error, "not dialled"));
        dialled.map(|()| id)
    }

    /// Now and then, dials a member that we have heard of and are not connected to.
    fn reach_out(&mut self, now: Instant) {
        if self.targets.reach_out_at > now {
            return;
        }
        let alone = self.peers.is_alone();
        self.targets.reach_out_at = now + about(if alone { REACH_OUT_ALONE } else { REACH_OUT });
        let strangers: Vec<_> = (self.records.known())
            .filter(|record| record.peer() != self.own && !(record.endpoints.is_empty() && record.homes.is_empty()))
            .filter_map(|record| Some((theirs(&record.peer())?, Arc::clone(record))))
            .filter(|(peer, _)| !self.peers.is_connected(peer))
            .collect();
        if let Some(index) = random().checked_rem(strangers.len() as u64) {
            let (peer, record) = &strangers[index as usize];
            let _ = self.dial(*peer, &self.admitted(&record.endpoints), &record.homes);
        }
    }

    pub(super) fn admitted(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        endpoints.iter().copied().filter(|at| self.overlay.admits(*at)).collect()
    }
}
