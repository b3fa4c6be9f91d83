//! Circuits: how members behind NATs reach one another over TCP, and so stay shards like everybody else.
//!
//! The node chooses our home relays and says so in our record; here we *reserve* at them (libp2p's circuit relay, version 2):
//! a relay that we are connected to lets others through to us. Whoever wants us asks the homes in our record. A circuit carries
//! a connection like any other, with pnet, Noise and a hello of its own, so a relay reads nothing and a stranger proves nothing
//! by it. Only without a relay is a member *met*: the node is told, since only trying tells who can be reached by TCP.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, relay};

use super::super::record::MAX_HOMES;
use super::super::{Event, Met};
use super::peers::{ours, theirs};
use super::{Directory, MAX_OUTBOX, about, backoff, transport};
use crate::identity::PeerId;
use crate::wire::socket::is_local;

/// The wait before a home is asked again that has refused or is gone; it doubles up to the longest. Jittered.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Endpoints by which a home is named to others: the first works nearly always.
const ENDPOINTS_OF_A_HOME: usize = 2;

/// Members in one word to the node: more than it can want, and less than a hundredth of a second of its time.
const MAX_MET: usize = 512;

/// Our part in circuits.
pub(super) struct Circuits {
    /// Where others are to reach us, now and formerly.
    homes: Vec<Home>,
    told: Vec<Met>,
    carried: usize,
}

struct Home {
    peer: libp2p::PeerId,
    /// Whether the node still wants it.
    wanted: bool,
    /// While we ask or have got it.
    listener: Option<ListenerId>,
    granted: bool,
    failures: u32,
    ask_at: Instant,
}

impl Circuits {
    pub(super) fn new() -> Self {
        Self { homes: Vec::new(), told: Vec::new(), carried: 0 }
    }

    /// How many of our home relays let others through to us.
    pub(super) fn reserved(&self) -> usize {
        self.homes.iter().filter(|home| home.wanted && home.granted).count()
    }

    /// Circuits of others that we carry.
    pub(super) fn carried(&self) -> usize {
        self.carried
    }

    /// Whether `peer` is a home relay of ours.
    pub(super) fn is_home(&self, peer: &libp2p::PeerId) -> bool {
        self.homes.iter().any(|home| home.wanted && home.peer == *peer)
    }
}

impl Directory {
    /// The node has chosen our home relays.
    pub(super) fn set_homes(&mut self, homes: &[PeerId], now: Instant) {
        let wanted: Vec<_> = homes.iter().take(MAX_HOMES).filter_map(theirs).collect();
        for home in &mut self.circuits.homes {
            home.wanted = wanted.contains(&home.peer);
        }
        for peer in wanted {
            if !self.circuits.homes.iter().any(|home| home.peer == peer) {
                let home = Home { peer, wanted: true, listener: None, granted: false, failures: 0, ask_at: now };
                self.circuits.homes.push(home);
            }
        }
        self.leave_former_homes();
    }

    /// A reservation is given back by closing the connection that it is made on: closing its listener instead, while an answer is
    /// on its way, is an `expect` that fails in libp2p-relay 0.22. The connection comes back without it if anybody wants it.
    fn leave_former_homes(&mut self) {
        self.circuits.homes.retain(|home| home.wanted || home.listener.is_some());
        let former: Vec<_> = self.circuits.homes.iter().filter(|home| !home.wanted).map(|home| home.peer).collect();
        for peer in former {
            for connection in self.peers.connections(&peer) {
                self.swarm.close_connection(connection);
            }
        }
    }

    /// What is due: reservations, and news for the node.
    pub(super) fn tend_circuits(&mut self, now: Instant) {
        let due = |home: &Home| home.wanted && home.listener.is_none() && home.ask_at <= now;
        let due: Vec<_> = self.circuits.homes.iter().filter(|home| due(home)).map(|home| home.peer).collect();
        for peer in due {
            self.reserve(peer, now);
        }
        self.tell_met();
    }

    /// Asks a home relay to let others through to us, if it is connected.
    fn reserve(&mut self, peer: libp2p::PeerId, now: Instant) {
        let Some(way) = self.peers.way_to(&peer).filter(|_| self.peers.has_proved(&peer)) else { return };
        let known = || self.endpoints_of_home(&ours(&peer)?).into_iter().next();
        let Some(endpoint) = way.or_else(known) else { return };
        let listener = self.swarm.listen_on(transport::circuit(peer, endpoint));
        let Some(home) = self.circuits.homes.iter_mut().find(|home| home.peer == peer) else { return };
        home.ask_at = now + about(LONGEST_RETRY);
        match listener {
            Ok(listener) => home.listener = Some(listener),
            Err(error) => tracing::debug!(%peer, %error, "no reservation"),
        }
    }

    /// Whether the listener that ended was a reservation. It is made again as long as it is wanted.
    pub(super) fn reservation_ended(
        &mut self,
        listener: ListenerId,
        reason: &std::io::Result<()>,
        now: Instant,
    ) -> bool {
        let Some(home) = self.circuits.homes.iter_mut().find(|home| home.listener == Some(listener)) else {
            return false;
        };
        tracing::debug!(peer = %home.peer, ?reason, "a reservation ended");
        // One that was granted ends with its connection.
        home.failures = if home.granted { 0 } else { home.failures.saturating_add(1) };
        (home.listener, home.granted) = (None, false);
        home.ask_at = now + backoff(home.failures, FIRST_RETRY, LONGEST_RETRY);
        self.circuits.homes.retain(|home| home.wanted || home.listener.is_some());
        true
    }

    /// News of circuits that we use.
    pub(super) fn handle_circuit(&mut self, event: &relay::client::Event) {
        if let relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal: false, .. } = event {
            tracing::debug!(peer = %relay_peer_id, "reachable through a relay");
            let home = self.circuits.homes.iter_mut().find(|home| home.peer == *relay_peer_id);
            if let Some(home) = home.filter(|home| home.listener.is_some()) {
                (home.granted, home.failures) = (true, 0);
            }
        }
    }

    /// News of circuits that we carry.
    pub(super) fn handle_relayed(&mut self, event: &relay::Event) {
        if let relay::Event::CircuitReqAccepted { .. } = event {
            self.circuits.carried += 1;
        } else if let relay::Event::CircuitClosed { error, .. } = event {
            self.circuits.carried = self.circuits.carried.saturating_sub(1);
            // The only error that libp2p words itself is that of too many bytes.
            if error.as_ref().is_some_and(|error| error.kind() == std::io::ErrorKind::Other) {
                self.count("circuit-limit");
            }
        } else if let relay::Event::ReservationReqDenied { .. } = event {
            self.count("reservation-refused");
        } else if let relay::Event::CircuitReqDenied { .. } = event {
            self.count("circuit-refused");
        }
    }

    /// Where the relays among `homes` give circuits to their member.
    pub(super) fn circuits_to(&self, homes: &[PeerId]) -> Vec<Multiaddr> {
        let mut addresses = Vec::new();
        for home in homes {
            let Some(peer) = theirs(home) else { continue };
            let endpoints = self.endpoints_of_home(home).into_iter().take(ENDPOINTS_OF_A_HOME);
            addresses.extend(endpoints.map(|at| transport::circuit(peer, at)));
        }
        addresses
    }

    /// Where a home relay is, for us and those whom we tell: public endpoints first.
    fn endpoints_of_home(&self, home: &PeerId) -> Vec<SocketAddr> {
        let Some(record) = self.records.of(home) else { return Vec::new() };
        let mut endpoints: Vec<_> =
            record.endpoints.iter().copied().filter(|endpoint| self.overlay.admits(*endpoint)).collect();
        endpoints.sort_by_key(|endpoint| is_local(endpoint.ip()));
        endpoints
    }

    fn tell_met(&mut self) {
        let met: Vec<_> = self.peers.met().take(MAX_MET).collect();
        if met != self.circuits.told && self.outbox.len() < MAX_OUTBOX {
            self.circuits.told.clone_from(&met);
            self.tell(Event::Met(met));
        }
    }
}
