//! The control network: libp2p under the [`Command`]s and [`Event`]s of this room.
//!
//! A node publishes its record under four keys, finds others' records by theirs, and keeps a shard for everybody
//! (Kademlia); a record that is new travels to all by gossip; each connection begins with a hello that proves
//! membership. `transport` keeps strangers and the overlay out, `behaviour` bounds the protocols, `peers` knows who is
//! connected, `targets` whom to dial, `circuits` reaches those behind NATs through relays, `rest` keeps dials from being repeated too soon,
//! `table` draws lots for the routing table, `records` publishes, replicates and looks up, `statements` expels.
//!
//! One task owns it all ([`Directory::run`]). [`spawn`] gives it a thread; [`start`] leaves that to the caller, so
//! fifty of them fit in one test. It stops when the commands' sender is dropped.

#![expect(clippy::disallowed_methods, reason = "this room is I/O: it reads clocks and draws randomness")]

mod behaviour;
mod circuits;
mod peers;
mod records;
mod rest;
mod statements;
mod table;
mod targets;
pub mod tls;
mod transport;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use libp2p::futures::StreamExt as _;
use libp2p::swarm::{self, Swarm, SwarmEvent};
use libp2p::{gossipsub, identify, identity, relay};
use tokio::sync::mpsc;

use super::directory::{Limits, Shard};
use super::{Command, Event, Standing, Statement};
use crate::identity::{Ipv4Prefix, NetworkId, NetworkSecret, PeerId, SigningKey};
use behaviour::{Behaviour, BehaviourEvent, Names};
use circuits::Circuits;
use peers::Peers;
use records::Records;
use rest::Rests;
use targets::Targets;
use transport::Overlay;

pub use transport::{Guests, Prefix, StreamKeys};

/// In how many shards a record is kept, Kademlia's k: twenty may all but one be away and it is still found. More would
/// cost every publisher more puts for nothing.
pub const DEFAULT_REPLICATION: NonZeroUsize = NonZeroUsize::new(20).expect("twenty is not zero");

/// How long a connection without traffic stays open. Below a minute, a network started at once collapses under its own
/// reconnecting (LIBRARIES, trap 5); above a few, the dead are kept as living.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Commands and events under way between two threads: bursts of a few hundred members, then backpressure.
const CHANNEL: usize = 256;

/// Events that wait for the node. Beyond it gossip is dropped and counted, and commands wait.
const MAX_OUTBOX: usize = 1024;

/// How often housekeeping looks around: while something is under way, and otherwise. What is due then (a sweep every 10 s,
/// a dial that failed before) may be two seconds late; each look wakes an idle laptop's processor twice.
const BUSY_TICK: Duration = Duration::from_millis(100);
const CALM_TICK: Duration = Duration::from_secs(2);

/// How often the standing may be told.
const STANDING_INTERVAL: Duration = Duration::from_secs(1);

/// What the directory is told when it starts.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Our key.
    pub key: SigningKey,
    /// Of which network.
    pub network: NetworkId,
    /// Its secret.
    pub secret: NetworkSecret,
    /// Its IPv4 network, which never becomes underlay.
    pub prefix: Ipv4Prefix,
    /// TCP port, the same as for UDP; 0 takes any free one.
    pub port: u16,
    /// Addresses to listen on; none means all, IPv4 and IPv6.
    pub listen: Vec<IpAddr>,
    /// More addresses that never become underlay: those on the TAP, and other overlays'.
    pub overlay: Vec<Prefix>,
    /// In how many shards a record is kept.
    pub replication: NonZeroUsize,
    /// How much our own shard keeps.
    pub limits: Limits,
    /// Whether others behind NATs may be reached through us.
    pub relay: bool,
    /// Statements kept on disk, as bytes.
    pub statements: Vec<Vec<u8>>,
    /// Who takes the streams of datagrams that come to the port; nobody does in a test of the directory alone.
    pub guests: Option<Guests>,
}

impl SwarmConfig {
    /// The usual settings: on all addresses, twenty replicas, relaying.
    pub fn new(key: SigningKey, network: NetworkId, secret: NetworkSecret, prefix: Ipv4Prefix, port: u16) -> Self {
        Self {
            key,
            network,
            secret,
            prefix,
            port,
            listen: Vec::new(),
            overlay: Vec::new(),
            replication: DEFAULT_REPLICATION,
            limits: Limits::default(),
            relay: true,
            statements: Vec::new(),
            guests: None,
        }
    }
}

/// Both ends of the node's conversation with a running directory.
#[derive(Debug)]
pub struct Channels {
    /// To the directory; drop it to stop the directory.
    pub commands: mpsc::Sender<Command>,
    /// From the directory.
    pub events: mpsc::Receiver<Event>,
    /// Where it listens: wildcards as bound.
    pub listening: Vec<SocketAddr>,
}

/// A directory on a thread of its own.
#[derive(Debug)]
pub struct SwarmHandle {
    /// To the directory; drop it to stop the directory.
    pub commands: mpsc::Sender<Command>,
    /// From the directory.
    pub events: mpsc::Receiver<Event>,
    /// Where it listens: wildcards as bound.
    pub listening: Vec<SocketAddr>,
    /// Ends soon after `commands` was dropped.
    pub thread: JoinHandle<()>,
}

/// Starts the directory on a thread named "directory", and returns once it listens.
///
/// # Errors
/// The port is taken, or the operating system gives no socket or thread.
pub fn spawn(config: SwarmConfig) -> anyhow::Result<SwarmHandle> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error.into()))),
        };
        runtime.block_on(async {
            match start(config) {
                Ok((directory, channels)) => {
                    let _ = ready.send(Ok(channels));
                    directory.run().await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    };
    let thread =
        std::thread::Builder::new().name("directory".into()).spawn(body).context("no thread for the directory")?;
    let Channels { commands, events, listening } = started.recv().context("the directory's thread ended")??;
    Ok(SwarmHandle { commands, events, listening, thread })
}

/// Starts the directory inside the caller's tokio runtime; it lives in [`Directory::run`].
///
/// # Errors
/// As [`spawn`].
pub fn start(config: SwarmConfig) -> anyhow::Result<(Directory, Channels)> {
    let keypair = identity::Keypair::ed25519_from_bytes(*config.key.seed()).context("our key")?;
    let own = config.key.peer_id();
    let listen = listen_endpoints(&config)?;
    let loopback = listen.iter().any(|endpoint| endpoint.ip().is_loopback());
    let overlay = Overlay::new(&config.network, &config.prefix, &config.overlay, loopback);
    let names = Names::new(&config.network);
    let mut shard = Shard::new(config.network, *config.secret.directory_key(), own, config.limits);
    for bytes in &config.statements {
        // The node says which of them are no good.
        if let Ok(statement) = Statement::check(bytes, &config.network, behaviour::unix_now()) {
            let _ = shard.state(Arc::new(statement));
        }
    }
    let (circuits, client) = relay::client::new(keypair.public().to_peer_id());
    let behaviour = Behaviour::new(&keypair, &names, shard, config.replication, client, config.relay)
        .map_err(anyhow::Error::msg)?;
    let rests = Rests::default();
    let below = transport::Below { circuits, rests: rests.clone(), guests: config.guests.clone() };
    let transport = transport::build(&keypair, &config.network, &config.secret, overlay.clone(), below)
        .context("the Noise key of the control network")?;
    // Smart: all addresses of a peer within a second, a circuit a quarter of a second after what is public.
    let settings = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_TIMEOUT).with_smart_dial();
    let mut swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), settings);
    for endpoint in &listen {
        swarm.listen_on(transport::multiaddr(*endpoint)).with_context(|| format!("cannot listen on TCP {endpoint}"))?;
    }
    let (commands, command_inbox) = mpsc::channel(CHANNEL);
    let (event_outbox, events) = mpsc::channel(CHANNEL);
    let now = Instant::now();
    let directory = Directory {
        own,
        network: config.network,
        directory_key: *config.secret.directory_key(),
        names,
        overlay,
        swarm,
        commands: command_inbox,
        events: event_outbox,
        outbox: VecDeque::new(),
        peers: Peers::new(),
        targets: Targets::new(now),
        circuits: Circuits::new(),
        rests,
        records: Records::new(config.replication, now),
        refused: BTreeMap::new(),
        guests: config.guests,
        guests_left: 0,
        told: None,
        looked_at: now,
    };
    Ok((directory, Channels { commands, events, listening: listen }))
}

/// A running directory.
pub struct Directory {
    own: PeerId,
    network: NetworkId,
    directory_key: [u8; 32],
    names: Names,
    overlay: Overlay,
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    peers: Peers,
    targets: Targets,
    circuits: Circuits,
    rests: Rests,
    records: Records,
    refused: BTreeMap<&'static str, u64>,
    guests: Option<Guests>,
    /// Of those that were taken, how many ended here as connections that failed.
    guests_left: u64,
    told: Option<(Instant, Standing)>,
    looked_at: Instant,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Directory(of {:?})", self.own)
    }
}

impl Directory {
    /// Serves until the commands' sender is dropped.
    pub async fn run(mut self) {
        loop {
            let tick = if self.is_busy() { BUSY_TICK } else { CALM_TICK };
            let room = async { self.events.reserve().await.map(drop) };
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_event(event),
                command = self.commands.recv(), if self.outbox.len() < MAX_OUTBOX => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                room = room, if !self.outbox.is_empty() => match room {
                    Ok(()) => self.hand_over(),
                    Err(_) => return,
                },
                () = tokio::time::sleep(tick) => {}
            }
            self.look_around(Instant::now());
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Publish(record) => self.publish(*record),
            Command::Lookup { id, key } => self.look_up(id, key),
            Command::Dial { peer, endpoints, homes } => self.remember_target(peer, &endpoints, homes, Instant::now()),
            Command::Listening(endpoints) => self.set_listening(&endpoints),
            Command::Homes(homes) => self.set_homes(&homes, Instant::now()),
            Command::State(statement) => self.state(statement),
        }
    }

    fn handle_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        if let SwarmEvent::Behaviour(event) = event {
            self.handle_behaviour(event);
        } else if let SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } = event {
            self.connected(peer_id, connection_id, &endpoint, Instant::now());
        } else if let SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } = event {
            self.disconnected(peer_id, connection_id, Instant::now());
        } else if let SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } = event {
            self.dial_failed(peer, connection_id, &error, Instant::now());
        } else if let SwarmEvent::IncomingConnectionError { error, local_addr, send_back_addr, .. } = event {
            if self.guests.as_ref().is_some_and(|guests| guests.taken() > self.guests_left) {
                self.guests_left += 1;
                return;
            }
            tracing::debug!(%error, from = %send_back_addr, "a stranger was not let in");
            self.count(if transport::is_circuit(&local_addr) { "circuit-broken" } else { "stranger" });
        } else if let SwarmEvent::ListenerError { error, .. } = event {
            tracing::debug!(%error, "accepting a control connection failed");
            self.count("listener-error");
        } else if let SwarmEvent::ListenerClosed { listener_id, addresses, reason } = event
            && !self.reservation_ended(listener_id, &reason, Instant::now())
        {
            tracing::warn!(?addresses, ?reason, "the directory no longer listens");
        }
    }

    fn handle_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.handle_kad(event),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                if message.topic == self.names.statements.hash() {
                    self.handle_statement(propagation_source, &message_id, &message.data);
                } else {
                    self.handle_gossip(propagation_source, &message_id, &message.data, Instant::now());
                }
            }
            BehaviourEvent::Gossip(_) => self.records.gossip_may_work = true,
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.identified(peer_id, &info);
            }
            BehaviourEvent::Identify(_) => {}
            BehaviourEvent::Hello(event) => self.handle_hello(event),
            BehaviourEvent::Circuits(event) => self.handle_circuit(&event),
            BehaviourEvent::Relay(event) => self.handle_relayed(&event),
        }
    }

    /// Everything that time alone brings about. Answers and puts go on after each event, the rest a few times a second.
    fn look_around(&mut self, now: Instant) {
        self.end_ripe_lookups(now);
        self.start_puts();
        if now.saturating_duration_since(self.looked_at) >= BUSY_TICK {
            self.looked_at = now;
            self.tend_peers(now);
            self.tend_targets(now);
            self.tend_circuits(now);
            self.tend_records(now);
            self.tell_standing(now);
        }
    }

    /// Moves waiting events into the channel for as long as it has room.
    fn hand_over(&mut self) {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(refused) = self.events.try_send(event) {
                self.outbox.push_front(refused.into_inner());
                return;
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.peers.is_busy() || self.is_dialling() || self.records.is_busy()
    }

    fn set_listening(&mut self, endpoints: &[SocketAddr]) {
        let wanted: Vec<_> =
            endpoints.iter().filter(|at| self.overlay.admits(**at)).map(|at| transport::multiaddr(*at)).collect();
        let had: Vec<_> = self.swarm.external_addresses().filter(|at| !transport::is_circuit(at)).cloned().collect();
        if wanted.iter().any(|at| !had.contains(at)) {
            self.rests.clear();
        }
        for address in had.iter().filter(|at| !wanted.contains(at)) {
            self.swarm.remove_external_address(address);
        }
        for address in wanted {
            self.swarm.add_external_address(address);
        }
    }

    fn shard(&mut self) -> &mut Shard {
        &mut self.swarm.behaviour_mut().kad.store_mut().shard
    }

    fn count(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// Queues an event for the node. Gossip is repeated by lookups and republishing, so it may fall off; answers may
    /// not.
    fn tell(&mut self, event: Event) {
        if self.outbox.len() >= MAX_OUTBOX && matches!(event, Event::Gossip(_) | Event::Standing(_)) {
            return self.count("node-too-slow");
        }
        self.outbox.push_back(event);
    }

    fn tell_standing(&mut self, now: Instant) {
        if self.told.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < STANDING_INTERVAL) {
            return;
        }
        let mut refused = self.refused.clone();
        for (reason, count) in self.shard().refused().clone() {
            *refused.entry(reason).or_default() += count;
        }
        if self.overlay.refused() > 0 {
            refused.insert("overlay-in-underlay", self.overlay.refused());
        }
        let standing = Standing {
            connections: self.peers.proved(),
            routing_peers: self.routing_peers(),
            shard_records: self.shard().len(),
            circuits: self.peers.circuits(),
            reserved: self.circuits.reserved(),
            carried: self.circuits.carried(),
            refused: refused.into_iter().collect(),
        };
        if self.told.as_ref().is_none_or(|(_, told)| *told != standing) {
            self.tell(Event::Standing(standing.clone()));
            self.told = Some((now, standing));
        }
    }

    fn routing_peers(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }
}

/// The endpoints to listen on, each seen to be free. libp2p sets SO_REUSEPORT on its listeners, so a second `meshd` of
/// the same user would get the same port without an error, and half the connections.
fn listen_endpoints(config: &SwarmConfig) -> anyhow::Result<Vec<SocketAddr>> {
    let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let (addresses, chosen) =
        if config.listen.is_empty() { (&wildcards[..], false) } else { (&config.listen[..], true) };
    let (mut port, mut endpoints) = (config.port, Vec::new());
    for address in addresses {
        let endpoint = SocketAddr::new(*address, port);
        match bind(endpoint) {
            Ok(bound) => {
                port = bound.port();
                endpoints.push(bound);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                anyhow::bail!(
                    "TCP port {port} is taken (at {address}): stop what uses it, or choose another with --port"
                )
            }
            // A machine without IPv6 is well with IPv4 alone.
            Err(error) if !chosen && address.is_ipv6() => tracing::info!(%error, "no IPv6 for the directory"),
            Err(error) => return Err(error).with_context(|| format!("cannot listen on TCP {endpoint}")),
        }
    }
    Ok(endpoints)
}

fn bind(endpoint: SocketAddr) -> std::io::Result<SocketAddr> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(endpoint), Type::STREAM, Some(Protocol::TCP))?;
    if endpoint.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&endpoint.into())?;
    socket.listen(1)?;
    TcpListener::from(socket).local_addr()
}

/// A random duration below `most`: things that all nodes do shall not be done by all at once.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(random() as f64 / (u64::MAX as f64 + 1.0))
}

/// `around`, a quarter more or less.
fn about(around: Duration) -> Duration {
    around.mul_f64(0.75) + jitter(around / 2)
}

/// The wait after `failures` in a row: `first` doubled with each, at most `longest`, jittered.
fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    about(first.saturating_mul(1 << failures.min(16)).min(longest))
}

fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::default_prefix;

    fn config(port: u16, listen: &[&str]) -> SwarmConfig {
        let key = SigningKey::from_seed(&[1; 32]);
        let network = NetworkId::of_root(&key.peer_id());
        let listen = listen.iter().map(|address| address.parse().expect("an address")).collect();
        let base = SwarmConfig::new(key, network, NetworkSecret::new([2; 32]), default_prefix(&network), port);
        SwarmConfig { listen, ..base }
    }

    #[test]
    fn a_taken_port_is_called_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let error = spawn(config(port, &["127.0.0.1"])).expect_err("it is taken");
        assert!(error.to_string().starts_with(&format!("TCP port {port} is taken")), "{error}");
    }

    #[test]
    fn a_second_directory_on_the_same_port_is_refused_too() {
        let first = spawn(config(0, &["127.0.0.1"])).expect("a free port");
        let port = first.listening[0].port();
        let error = spawn(config(port, &["127.0.0.1"])).expect_err("it is taken");
        assert!(error.to_string().contains("is taken"), "{error}");
        drop(first.commands);
        first.thread.join().expect("it ends by itself");
    }

    #[test]
    fn both_families_get_one_port() {
        let handle = spawn(config(0, &[])).expect("a free port");
        assert!(handle.listening.iter().all(|at| at.ip().is_unspecified() && at.port() == handle.listening[0].port()));
        drop(handle.commands);
        handle.thread.join().expect("it ends by itself");
    }
}
