//! Who is connected, who has proved membership, whom to dial again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::request_response::{self, Message, OutboundFailure, OutboundRequestId};
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, identify};

use super::super::record::MAX_ENDPOINTS;
use super::super::{Record, Verified};
use super::behaviour::{Batch, Hello, MAX_BATCH, unix_now};
use super::{Directory, about, jitter, random, transport};
use crate::identity::PeerId;

/// How long a peer may take to prove membership: a round trip and a signature check, with time for a lost packet.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Hellos accepted on one connection: one is needed, one more is sent by a peer that had no record at first.
const MAX_HELLOS: u8 = 4;

/// Connections whose hello asks for a batch of records. Three peers know what there is to know; asking all of fifty
/// would bring everything fifty times.
const WANTED_BATCHES: u8 = 3;

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

/// How often a peer that we want to keep is asked whether it is still there. A pulled cable is otherwise noticed only
/// when TCP gives up, a quarter of an hour later.
const PING_INTERVAL: Duration = Duration::from_secs(45);

/// Addresses of one peer in the routing table: what its record holds, twice.
const MAX_ADDRESSES: usize = 2 * MAX_ENDPOINTS;

/// The peers of the control network.
pub(super) struct Peers {
    connected: BTreeMap<libp2p::PeerId, Connected>,
    targets: BTreeMap<libp2p::PeerId, Target>,
    pings: BTreeMap<OutboundRequestId, libp2p::PeerId>,
    comparisons: BTreeMap<OutboundRequestId, libp2p::PeerId>,
    wanted_batches: u8,
    reach_out_at: Instant,
}

struct Connected {
    since: Instant,
    proof: Option<Arc<Verified<Record>>>,
    hellos: u8,
    /// How often it has compared its ledger with ours, and whether we have.
    comparisons: u8,
    compared: bool,
    /// Where it listens by its own account; `None` while we do not know whether it speaks our Kademlia.
    addresses: Option<Vec<SocketAddr>>,
    routed: Vec<Multiaddr>,
    ping_at: Instant,
}

struct Target {
    endpoints: Vec<SocketAddr>,
    failures: u32,
    dial_at: Instant,
    added: Instant,
}

impl Peers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            connected: BTreeMap::new(),
            targets: BTreeMap::new(),
            pings: BTreeMap::new(),
            comparisons: BTreeMap::new(),
            wanted_batches: WANTED_BATCHES,
            reach_out_at: now + REACH_OUT_ALONE,
        }
    }

    /// How many connected peers have proved membership.
    pub(super) fn proved(&self) -> usize {
        self.connected.values().filter(|peer| peer.proof.is_some()).count()
    }

    pub(super) fn has_proved(&self, peer: &libp2p::PeerId) -> bool {
        self.connected.get(peer).is_some_and(|peer| peer.proof.is_some())
    }

    /// The peers of whose proofs `wanted` is true.
    pub(super) fn proved_by(&self, wanted: impl Fn(&Verified<Record>) -> bool) -> Vec<libp2p::PeerId> {
        let proof = |peer: &Connected| peer.proof.as_ref().is_some_and(|proof| wanted(proof));
        self.connected.iter().filter(|(_, peer)| proof(peer)).map(|(peer, _)| *peer).collect()
    }

    /// The peer is not dialled again.
    pub(super) fn forget_target(&mut self, peer: &libp2p::PeerId) {
        self.targets.remove(peer);
    }

    /// The answer to `request` will be statements.
    pub(super) fn note_comparison(&mut self, request: OutboundRequestId, peer: libp2p::PeerId) {
        self.comparisons.insert(request, peer);
    }

    /// Counts a comparison that a peer asks for; `None` if it has not proved to be a member.
    pub(super) fn count_comparison(&mut self, peer: &libp2p::PeerId) -> Option<u8> {
        let connected = self.connected.get_mut(peer).filter(|peer| peer.proof.is_some())?;
        connected.comparisons = connected.comparisons.saturating_add(1);
        Some(connected.comparisons)
    }

    /// Whether something is due within a fraction of a second.
    pub(super) fn is_busy(&self) -> bool {
        self.connected.values().any(|peer| peer.proof.is_none())
            || self.targets.iter().any(|(peer, target)| target.failures == 0 && !self.connected.contains_key(peer))
    }
}

impl Directory {
    pub(super) fn connected(&mut self, peer: libp2p::PeerId, now: Instant) {
        let fresh = Connected {
            since: now,
            proof: None,
            hellos: 0,
            comparisons: 0,
            compared: false,
            addresses: None,
            routed: Vec::new(),
            ping_at: now + about(PING_INTERVAL),
        };
        if self.is_expelled(&peer) {
            self.peers.forget_target(&peer);
            return self.part(peer, "peer-expelled");
        }
        self.peers.connected.insert(peer, fresh);
        if let Some(target) = self.peers.targets.get_mut(&peer) {
            target.failures = 0;
        }
        self.say_hello(peer);
    }

    pub(super) fn disconnected(&mut self, peer: libp2p::PeerId, now: Instant) {
        self.peers.connected.remove(&peer);
        self.forget_copies(&peer);
        if let Some(target) = self.peers.targets.get_mut(&peer) {
            target.dial_at = now + about(FIRST_RETRY);
        }
        if self.peers.connected.is_empty() {
            self.peers.wanted_batches = WANTED_BATCHES;
        }
    }

    /// A dial failed. The peer leaves the routing table, where it would slow every query down; it comes back when it
    /// is met again.
    pub(super) fn dial_failed(&mut self, peer: libp2p::PeerId, error: &DialError, now: Instant) {
        if matches!(error, DialError::DialPeerConditionFalse(_)) || self.peers.connected.contains_key(&peer) {
            return;
        }
        tracing::debug!(%peer, %error, "dial failed");
        if let Some(target) = self.peers.targets.get_mut(&peer) {
            target.failures += 1;
            let wait = FIRST_RETRY.saturating_mul(1 << target.failures.min(10)).min(LONGEST_RETRY);
            target.dial_at = now + about(wait);
            if target.failures >= MAX_FAILURES {
                self.peers.targets.remove(&peer);
            }
        }
        self.unroute(peer, now);
    }

    /// The node says that a member may be at `endpoints`.
    pub(super) fn remember_target(&mut self, peer: PeerId, endpoints: &[SocketAddr], now: Instant) {
        let mut endpoints: Vec<_> = endpoints.iter().copied().filter(|at| self.overlay.admits(*at)).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints.truncate(MAX_ADDRESSES);
        let Some(id) = theirs(&peer).filter(|_| peer != self.own && !endpoints.is_empty()) else { return };
        let waiting = self.peers.targets.values().filter(|target| target.failures == 0).count() as u32;
        let dial_at = now + jitter(DIAL_SPREAD.saturating_mul(waiting));
        if let Some(target) = self.peers.targets.get_mut(&id) {
            target.added = now;
            if target.endpoints != endpoints {
                *target = Target { endpoints, failures: 0, dial_at, added: now };
            }
            return;
        }
        if self.peers.targets.len() >= MAX_TARGETS {
            let oldest = self.peers.targets.iter().max_by_key(|(_, target)| (target.failures, now - target.added));
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.peers.targets.remove(&oldest);
            }
        }
        self.peers.targets.insert(id, Target { endpoints, failures: 0, dial_at, added: now });
    }

    /// What a peer says of itself: whether it speaks our Kademlia, and where it listens.
    pub(super) fn identified(&mut self, peer: libp2p::PeerId, info: &identify::Info) {
        if !info.protocols.contains(&self.names.kad) {
            self.count("peer-without-kad");
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
            return;
        }
        let addresses =
            info.listen_addrs.iter().filter_map(|at| self.overlay.admitted(at)).take(MAX_ADDRESSES).collect();
        if let Some(connected) = self.peers.connected.get_mut(&peer) {
            connected.addresses = Some(addresses);
            self.route(peer);
        }
    }

    pub(super) fn handle_hello(&mut self, event: request_response::Event<Hello, Batch>) {
        match event {
            request_response::Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                // An answer that is not sent closes the stream, and the peer sees a failure.
                if let Some(batch) = self.answer_hello(peer, &request) {
                    let _ = self.swarm.behaviour_mut().hello.send_response(channel, batch);
                }
            }
            request_response::Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                if self.peers.comparisons.remove(&request_id).is_some() {
                    self.read_statements(peer, &response);
                } else if self.peers.pings.remove(&request_id).is_none() {
                    self.read_batch(peer, &response);
                }
            }
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                self.peers.comparisons.remove(&request_id);
                let was_ping = self.peers.pings.remove(&request_id).is_some();
                let foreign = matches!(error, OutboundFailure::UnsupportedProtocols);
                if foreign || (was_ping && matches!(error, OutboundFailure::Timeout)) {
                    self.part(peer, if foreign { "peer-foreign-protocol" } else { "peer-silent" });
                }
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {}
        }
    }

    /// Proves our membership to a peer. Called again for everybody when we first have a record.
    pub(super) fn say_hello(&mut self, peer: libp2p::PeerId) {
        let Some(record) = self.records.own().map(|own| own.bytes().to_vec()) else { return };
        let want = if self.peers.wanted_batches > 0 { MAX_BATCH as u8 } else { 0 };
        self.peers.wanted_batches = self.peers.wanted_batches.saturating_sub(1);
        self.swarm.behaviour_mut().hello.send_request(&peer, Hello::Record { want, record });
    }

    pub(super) fn say_hello_to_all(&mut self) {
        for peer in self.peers.connected.keys().copied().collect::<Vec<_>>() {
            self.say_hello(peer);
        }
    }

    /// What is due: proofs that did not come, dials, pings.
    pub(super) fn tend_peers(&mut self, now: Instant) {
        let late = |peer: &Connected| peer.proof.is_none() && now.saturating_duration_since(peer.since) > PROOF_TIMEOUT;
        let unproved: Vec<_> =
            self.peers.connected.iter().filter(|(_, peer)| late(peer)).map(|(peer, _)| *peer).collect();
        for peer in unproved {
            self.part(peer, "peer-unproved");
        }
        let due: Vec<_> = (self.peers.targets.iter())
            .filter(|(peer, target)| target.dial_at <= now && !self.peers.connected.contains_key(peer))
            .map(|(peer, target)| (*peer, target.endpoints.clone()))
            .collect();
        for (peer, endpoints) in due {
            if let Some(target) = self.peers.targets.get_mut(&peer) {
                // Until the dial ends, one way or the other.
                target.dial_at = now + LONGEST_RETRY;
            }
            self.dial(peer, &endpoints);
        }
        self.reach_out(now);
        self.ping(now);
    }

    fn dial(&mut self, peer: libp2p::PeerId, endpoints: &[SocketAddr]) {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(endpoints.iter().map(|at| transport::multiaddr(*at)).collect())
            .extend_addresses_through_behaviour()
            .build();
        if let Err(error) = self.swarm.dial(options) {
            tracing::debug!(%peer, %error, "not dialled");
        }
    }

    /// Now and then, dials a member that we have heard of and are not connected to.
    fn reach_out(&mut self, now: Instant) {
        if self.peers.reach_out_at > now {
            return;
        }
        let alone = self.peers.connected.is_empty();
        self.peers.reach_out_at = now + about(if alone { REACH_OUT_ALONE } else { REACH_OUT });
        let strangers: Vec<_> = (self.records.known())
            .filter(|record| record.peer() != self.own)
            .filter_map(|record| Some((theirs(&record.peer())?, self.admitted(&record.endpoints))))
            .filter(|(peer, endpoints)| !endpoints.is_empty() && !self.peers.connected.contains_key(peer))
            .collect();
        if let Some(index) = random().checked_rem(strangers.len() as u64) {
            let (peer, endpoints) = &strangers[index as usize];
            self.dial(*peer, endpoints);
        }
    }

    /// Asks those whom we want to keep whether they are there: members that the node had us dial, and those that we
    /// gossip with. Others idle out by themselves.
    fn ping(&mut self, now: Instant) {
        let topic = self.names.topic.hash();
        let mesh: Vec<_> = self.swarm.behaviour().gossip.mesh_peers(&topic).copied().collect();
        let kept = |peer: &libp2p::PeerId| self.peers.targets.contains_key(peer) || mesh.contains(peer);
        let due: Vec<_> = (self.peers.connected.iter())
            .filter(|(peer, connected)| connected.ping_at <= now && connected.proof.is_some() && kept(peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            if let Some(connected) = self.peers.connected.get_mut(&peer) {
                connected.ping_at = now + about(PING_INTERVAL);
            }
            let request = self.swarm.behaviour_mut().hello.send_request(&peer, Hello::Ping);
            self.peers.pings.insert(request, peer);
        }
    }

    fn answer_hello(&mut self, peer: libp2p::PeerId, hello: &Hello) -> Option<Batch> {
        let connected = self.peers.connected.get_mut(&peer)?;
        let (want, record) = match hello {
            Hello::Record { want, record } => (want, record),
            Hello::Ping => return connected.proof.is_some().then(Vec::new),
            Hello::Ledger { buckets } => return self.answer_comparison(peer, buckets),
        };
        connected.hellos = connected.hellos.saturating_add(1);
        if connected.hellos > MAX_HELLOS {
            self.part(peer, "hello-flood");
            return None;
        }
        self.prove(peer, record)?;
        let limit = usize::from(*want).min(MAX_BATCH - 1);
        let others = self.records.newest().filter(|known| ours(&peer) != Some(known.peer())).take(limit);
        Some(self.records.own().into_iter().chain(others).map(|record| record.bytes().to_vec()).collect())
    }

    fn read_batch(&mut self, peer: libp2p::PeerId, batch: &Batch) {
        let mut records = batch.iter();
        // Its own record is the first, once it has one; without it, its own hello will prove it.
        if let Some(first) = records.next()
            && self.prove(peer, first).is_none()
        {
            return;
        }
        // Who answers with its record knows ours.
        if let Some(connected) = self.peers.connected.get_mut(&peer)
            && connected.proof.is_some()
            && !std::mem::replace(&mut connected.compared, true)
        {
            self.compare_ledgers(peer);
        }
        for bytes in records {
            match self.shard().check(bytes, unix_now()) {
                Ok(record) => drop(self.learn(&record)),
                Err(error) => self.count(error.name()),
            }
        }
    }

    /// Takes `bytes` as the proof of a peer's membership: a valid record, signed by the very key that Noise saw.
    /// Anything else parts us.
    fn prove(&mut self, peer: libp2p::PeerId, bytes: &[u8]) -> Option<()> {
        let record = match self.shard().check(bytes, unix_now()) {
            Ok(record) if ours(&peer) == Some(record.peer()) => record,
            Ok(_) => {
                self.part(peer, "hello-of-another");
                return None;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "no proof of membership");
                self.part(peer, error.name());
                return None;
            }
        };
        let connected = self.peers.connected.get_mut(&peer)?;
        if connected.proof.is_none() {
            tracing::debug!(%peer, name = %record.name(), "member connected");
        }
        connected.proof = Some(Arc::clone(&record));
        self.learn(&record);
        self.route(peer);
        Some(())
    }

    /// Enters a peer into the routing table, or updates it there, once it has proved membership and speaks our
    /// Kademlia: where it says it listens, and where its record says so.
    fn route(&mut self, peer: libp2p::PeerId) {
        let Some(Connected { proof: Some(proof), addresses: Some(said), .. }) = self.peers.connected.get(&peer) else {
            return;
        };
        let mut endpoints = self.admitted(&proof.endpoints);
        endpoints.extend(said.iter().copied());
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints.truncate(MAX_ADDRESSES);
        let addresses: Vec<_> = endpoints.into_iter().map(transport::multiaddr).collect();
        let Some(connected) = self.peers.connected.get_mut(&peer) else { return };
        let old = std::mem::replace(&mut connected.routed, addresses.clone());
        let kad = &mut self.swarm.behaviour_mut().kad;
        for address in &addresses {
            kad.add_address(&peer, address.clone());
        }
        for address in old.iter().filter(|address| !addresses.contains(address)) {
            kad.remove_address(&peer, address);
        }
        self.routing_changed(Instant::now());
    }

    fn admitted(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        endpoints.iter().copied().filter(|at| self.overlay.admits(*at)).collect()
    }

    pub(super) fn part(&mut self, peer: libp2p::PeerId, reason: &'static str) {
        tracing::debug!(%peer, reason, "parting");
        self.count(reason);
        self.swarm.behaviour_mut().kad.remove_peer(&peer);
        let _ = self.swarm.disconnect_peer_id(peer);
        self.peers.connected.remove(&peer);
    }
}

/// libp2p's name for a peer.
pub(super) fn theirs(peer: &PeerId) -> Option<libp2p::PeerId> {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).ok()
}

/// Our name for a peer; `None` for one whose key is not Ed25519.
pub(super) fn ours(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes()).ok()
}
