//! Who is connected, and who has proved membership.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::ConnectedPoint;
use libp2p::request_response::{self, Message, OutboundFailure, OutboundRequestId};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, identify, relay};

use super::super::{Met, Record, Verified};
use super::behaviour::{Batch, Hello, MAX_BATCH, unix_now};
use super::targets::MAX_ADDRESSES;
use super::{Directory, about, random, transport};
use crate::identity::PeerId;

/// How long a peer may take to prove membership: a round trip and a signature check, with time for a lost packet.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// Hellos accepted on one connection: one is needed, one more is sent by a peer that had no record at first.
const MAX_HELLOS: u8 = 4;

/// Connections whose hello asks for a batch of records. Three peers know what there is to know; asking all of fifty
/// would bring everything fifty times.
const WANTED_BATCHES: u8 = 3;

/// How often a peer that we want to keep is asked whether it is still there. A pulled cable is otherwise noticed only
/// when TCP gives up, a quarter of an hour later.
const PING_INTERVAL: Duration = Duration::from_secs(45);

/// The peers of the control network.
pub(super) struct Peers {
    connected: BTreeMap<libp2p::PeerId, Connected>,
    pings: BTreeMap<OutboundRequestId, libp2p::PeerId>,
    comparisons: BTreeMap<OutboundRequestId, libp2p::PeerId>,
    wanted_batches: u8,
    /// Decides who has a place in a full bucket (`table`); nobody else knows it.
    pub(super) lot: u64,
}

/// How a connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It let us in, there.
    Dialled(SocketAddr),
    /// It came to us.
    Accepted,
    /// Through a relay.
    Circuit,
}

impl Way {
    fn of(endpoint: &ConnectedPoint) -> Self {
        match endpoint {
            ConnectedPoint::Dialer { address, .. } if transport::is_circuit(address) => Self::Circuit,
            ConnectedPoint::Listener { local_addr, .. } if transport::is_circuit(local_addr) => Self::Circuit,
            ConnectedPoint::Dialer { address, .. } => {
                transport::endpoint(address).map_or(Self::Accepted, Self::Dialled)
            }
            ConnectedPoint::Listener { .. } => Self::Accepted,
        }
    }
}

struct Connected {
    since: Instant,
    ways: BTreeMap<ConnectionId, Way>,
    /// Whether it relays, by its own account.
    relays: bool,
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

impl Connected {
    /// Whether there is a connection without a relay.
    fn is_met(&self) -> bool {
        self.ways.values().any(|way| *way != Way::Circuit)
    }

    /// Where it let us in.
    fn dialled(&self) -> Option<SocketAddr> {
        self.ways.values().find_map(|way| if let Way::Dialled(at) = way { Some(*at) } else { None })
    }
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            connected: BTreeMap::new(),
            pings: BTreeMap::new(),
            comparisons: BTreeMap::new(),
            wanted_batches: WANTED_BATCHES,
            lot: random(),
        }
    }

    /// How many connected peers have proved membership.
    pub(super) fn proved(&self) -> usize {
        self.connected.values().filter(|peer| peer.proof.is_some()).count()
    }

    /// How many connected peers we speak with through relays alone.
    pub(super) fn circuits(&self) -> usize {
        self.connected.values().filter(|peer| !peer.is_met()).count()
    }

    /// Who has proved membership and is connected without a relay.
    pub(super) fn met(&self) -> impl Iterator<Item = Met> {
        let met = self.connected.iter().filter(|(_, peer)| peer.proof.is_some() && peer.is_met());
        met.filter_map(|(id, peer)| Some(Met { peer: ours(id)?, at: peer.dialled(), relays: peer.relays }))
    }

    /// Whether there is a connection without a relay to a peer, and where it let us in.
    pub(super) fn way_to(&self, peer: &libp2p::PeerId) -> Option<Option<SocketAddr>> {
        self.connected.get(peer).filter(|peer| peer.is_met()).map(Connected::dialled)
    }

    /// The connections without a relay to a peer.
    pub(super) fn connections(&self, peer: &libp2p::PeerId) -> Vec<ConnectionId> {
        let ways = self.connected.get(peer).into_iter().flat_map(|peer| &peer.ways);
        ways.filter(|(_, way)| **way != Way::Circuit).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_connected(&self, peer: &libp2p::PeerId) -> bool {
        self.connected.contains_key(peer)
    }

    /// Whether we are connected to nobody.
    pub(super) fn is_alone(&self) -> bool {
        self.connected.is_empty()
    }

    pub(super) fn has_proved(&self, peer: &libp2p::PeerId) -> bool {
        self.connected.get(peer).is_some_and(|peer| peer.proof.is_some())
    }

    /// The peers of whose proofs `wanted` is true.
    pub(super) fn proved_by(&self, wanted: impl Fn(&Verified<Record>) -> bool) -> Vec<libp2p::PeerId> {
        let proof = |peer: &Connected| peer.proof.as_ref().is_some_and(|proof| wanted(proof));
        self.connected.iter().filter(|(_, peer)| proof(peer)).map(|(peer, _)| *peer).collect()
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
    }
}

impl Directory {
    pub(super) fn connected(
        &mut self,
        peer: libp2p::PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
        now: Instant,
    ) {
        let way = Way::of(endpoint);
        tracing::debug!(%peer, ?way, "connected");
        if self.is_expelled(&peer) {
            self.targets.forget(&peer);
            return self.part(peer, "peer-expelled");
        }
        if let Some(known) = self.peers.connected.get_mut(&peer) {
            known.ways.insert(id, way);
        } else {
            let fresh = Connected {
                since: now,
                ways: BTreeMap::from([(id, way)]),
                relays: false,
                proof: None,
                hellos: 0,
                comparisons: 0,
                compared: false,
                addresses: None,
                routed: Vec::new(),
                ping_at: now + about(PING_INTERVAL),
            };
            self.peers.connected.insert(peer, fresh);
            self.say_hello(peer);
        }
        if way != Way::Circuit {
            self.targets.note_met(&peer);
        }
    }

    pub(super) fn disconnected(&mut self, peer: libp2p::PeerId, id: ConnectionId, now: Instant) {
        if let Some(known) = self.peers.connected.get_mut(&peer) {
            known.ways.remove(&id);
            if !known.ways.is_empty() {
                return;
            }
        }
        self.peers.connected.remove(&peer);
        self.forget_copies(&peer);
        self.targets.note_lost(&peer, now);
        if self.peers.connected.is_empty() {
            self.peers.wanted_batches = WANTED_BATCHES;
        }
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
            connected.relays = info.protocols.contains(&relay::HOP_PROTOCOL_NAME);
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
                let was_comparison = self.peers.comparisons.remove(&request_id).is_some();
                let was_ping = self.peers.pings.remove(&request_id).is_some();
                // Of two connections the one is gone that our hello had taken.
                let lost = matches!(error, OutboundFailure::ConnectionClosed) && !was_ping && !was_comparison;
                if lost && self.peers.connected.contains_key(&peer) {
                    self.say_hello(peer);
                }
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

    /// What is due: proofs that did not come, pings.
    pub(super) fn tend_peers(&mut self, now: Instant) {
        let late = |peer: &Connected| peer.proof.is_none() && now.saturating_duration_since(peer.since) > PROOF_TIMEOUT;
        let unproved: Vec<_> =
            self.peers.connected.iter().filter(|(_, peer)| late(peer)).map(|(peer, _)| *peer).collect();
        for peer in unproved {
            self.part(peer, "peer-unproved");
        }
        // What a relay carried for us it need not carry any longer; but proofs may be under way.
        let settled = |peer: &&Connected| now.saturating_duration_since(peer.since) > 2 * PROOF_TIMEOUT;
        let met = self.peers.connected.values().filter(|peer| peer.is_met()).filter(settled);
        let circuits = met.flat_map(|peer| &peer.ways).filter(|(_, way)| **way == Way::Circuit);
        for circuit in circuits.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.swarm.close_connection(circuit);
        }
        self.ping(now);
    }

    /// Asks those whom we want to keep whether they are there: members that the node had us dial, and those that we
    /// gossip with. Others idle out by themselves.
    fn ping(&mut self, now: Instant) {
        let topic = self.names.topic.hash();
        let mesh: Vec<_> = self.swarm.behaviour().gossip.mesh_peers(&topic).copied().collect();
        let kept = |peer: &libp2p::PeerId| self.targets.contains(peer) || mesh.contains(peer);
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
        let mut others: Vec<_> = self.records.known().filter(|known| ours(&peer) != Some(known.peer())).collect();
        // By lot: of the newest, members that renew their records all day would have every place.
        others.sort_by_cached_key(|_| random());
        others.truncate(limit);
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
    /// Kademlia: where it says it listens, and where its record says so, by its home relays too.
    fn route(&mut self, peer: libp2p::PeerId) {
        let Some(Connected { proof: Some(proof), addresses: Some(said), .. }) = self.peers.connected.get(&peer) else {
            return;
        };
        let mut endpoints = self.admitted(&proof.endpoints);
        endpoints.extend(said.iter().copied());
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints.truncate(MAX_ADDRESSES);
        let circuits = self.circuits_to(&proof.homes);
        let addresses: Vec<_> = endpoints.into_iter().map(transport::multiaddr).chain(circuits).collect();
        if !addresses.is_empty() && !self.makes_place(&peer) {
            return;
        }
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
