//! The control thread: the node, and everything that speaks to it.
//!
//! [`run`] brings a node up in the one order that works, lets it work, and takes it down again, whichever step failed.
//! In between, one loop takes one input at a time (a punt, a notice, news from the directory, a sighting, a command, an
//! interface that changed, a timer), hands it to the node and carries out what the node wants, in this order: first the
//! new picture for forwarding, then datagrams, which may be answered at once, then the rest.

#![expect(clippy::disallowed_methods, reason = "the control thread tells the node the time and gives it its seed")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{NetworkConfig, UpConfig};
use crate::dht;
use crate::dht::beacon::{Beacon, BeaconInterface};
use crate::dht::swarm::{Guests, StreamKeys};
use crate::identity::{Name, NetworkSecret, ula_prefix};
use crate::nat::portmap::{Lease, Link, Protocol, Wanted};
use crate::node::command::MappingInfo;
use crate::node::event::PeerChange;
use crate::node::{Command, CommandId, Event, ForwardingInfo, Node, Reply, Transmit};
use crate::switch::Fib;
use crate::tap::device::Device;
use crate::tap::queue::Queue;
use crate::wire::socket::split;
use crate::wire::stream::number_behind;
use crate::wire::{Counters, DatagramKind, DropReason};

use super::callers::Callers;
use super::direction::FromLane;
use super::epoch::{Speaker, Speech};
use super::lane::{self, Common, Lanes};
use super::netlink::{self, Interface, TapAddresses};
use super::portmap::Mapper;
use super::process::{self, Pinned};
use super::saver::Saver;
use super::signals::Signals;
use super::sockets::Sockets;
use super::streams::{self, Streams};
use super::udp::{Opened, UdpSocket};
use super::wishes::Directory;
use super::{api, store};

/// Inputs of one kind that are worked off before the others get their turn. A hundred handshakes are 40 ms; nobody
/// should wait longer for an answer.
const BUDGET: usize = 100;

/// Operators' commands that wait; the API has sixteen clients at most.
const COMMANDS: usize = 16;

/// Pictures of the interfaces that wait: only the last one counts.
const INTERFACES: usize = 1;

/// Brings the node up, runs it until SIGINT or SIGTERM, and takes it down.
///
/// # Errors
/// Whatever kept it from starting or from going on. Everything is undone.
pub async fn run(config: UpConfig) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let account = process::account(config.user.as_deref())?;
    let network = config.node.network.clone();
    store::private_dir(&config.runtime).with_context(|| format!("cannot make {}", config.runtime.display()))?;
    let _lock = store::lock(&config.runtime, &network.name)?;
    let server = api::Server::bind(&api::socket_path(&config.runtime))?;
    let Opened { lanes: sockets, callers } = UdpSocket::open(config.port, config.lanes)?;
    let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
    let socket = Arc::clone(&sockets[0]);
    let device = Device::open(&config.device, config.node.mac().0, config.node.mtu, config.lanes)?;
    let folder = config.state.as_deref().map(Pinned::open).transpose().context("cannot open the network's folder")?;
    let rules = config.state.as_deref().map(store::load_filter).transpose()?.unwrap_or_default();
    let listener = config.node.tls.then(streams::listen).transpose()?;
    // Everything that needs root is open; everything that starts a thread comes after.
    process::settle(account.as_ref(), &config, folder.as_ref())?;

    let key = config.node.key.clone();
    let secrets: Vec<_> = config.node.known_secrets.iter().chain([&network.secret]).cloned().collect();
    let (stream_keys, (guests, guests_to_streams)) = (StreamKeys::default(), streams::guests());
    let speaker = Speaker {
        key,
        network: network.id(),
        prefix: network.prefix,
        port: socket.port(),
        relay: config.node.relaying.serve,
        guests: Guests::new(guests, Arc::clone(&stream_keys)),
    };
    // Before the TAP is up: mDNS joins its group on every interface there is when it starts.
    let Speech { beacon, sightings, commands: to_directory, events: from_directory, thread } =
        speaker.start(&secrets, config.node.known_statements.clone(), seed()?)?;
    device.bring_up().with_context(|| format!("cannot bring up {}", config.device))?;
    let fib = Arc::new(ArcSwap::from_pointee(Fib::empty(config.node.mac(), config.node.mtu)));
    let (to_control, from_lanes) = mpsc::channel(lane::TO_CONTROL);
    let beside = Arc::new(Sockets::new()?);
    let common =
        Common { fib: Arc::clone(&fib), sockets: Arc::clone(&beside), to_control, busy_poll: config.busy_poll };
    let streams = Streams::start(streams::Setup {
        keys: stream_keys,
        port: socket.port(),
        fib: Arc::clone(&fib),
        queue: device.queue(0)?,
        socket: Arc::clone(&socket),
        sockets: Arc::clone(&beside),
        to_control: common.to_control.clone(),
        guests: guests_to_streams,
        listener,
    })?;
    let callers = callers.map(|socket| Callers::new(socket, device.queue(0)?, Arc::clone(&beside), Arc::clone(&fib)));
    let callers = callers.transpose().context("the socket for initiations cannot be watched")?;
    let lanes = sockets.into_iter().enumerate().map(|(lane, socket)| Ok((device.queue(lane)?, socket)));
    let lanes = Lanes::start(lanes.collect::<std::io::Result<_>>()?, &common)?;
    process::give_way();

    let (interfaces_to_us, interfaces) = mpsc::channel(INTERFACES);
    tokio::spawn(async {
        if let Err(error) = netlink::watch(interfaces_to_us).await {
            tracing::warn!("changes of the network interfaces go unnoticed: {error:#}");
        }
    });
    let wanted = [Protocol::Udp, Protocol::Tcp].map(|protocol| Wanted { protocol, port: socket.port() });
    let (mapper, leases) = if config.port_mapping {
        let (mapper, leases) = Mapper::start(wanted.to_vec(), config.node.key.mapping_nonce());
        (Some(mapper), leases)
    } else {
        (None, watch::channel(Vec::new()).1)
    };
    let mtu = config.node.mtu;
    let mut node = Node::new(config.node, seed()?, Instant::now(), unix_now());
    if config.search_mtu {
        node.search_mtus();
    }
    let (commands_to_us, commands) = mpsc::channel(COMMANDS);
    tokio::spawn(server.serve(commands_to_us));

    tracing::info!("network {} ({}), as {}", network.name, network.id().short(), config.name);
    let mut control = Control {
        overlay: Overlay(network),
        mtu,
        node,
        queue: device.queue(0)?,
        device,
        socket,
        beside,
        fib,
        lanes,
        callers,
        streams,
        beacon: Some(beacon),
        mapper,
        leases: Vec::new(),
        speaker,
        new_secrets: None,
        directory: Directory::new(to_directory),
        directory_thread: Some(thread),
        hearing: Vec::new(),
        addresses: None,
        waiting: BTreeMap::new(),
        next_command: 0,
        ended: None,
        state: config.state,
        saver: Saver::new(folder.as_ref().map(Pinned::path), store::save_records),
        keeper: Saver::new(folder.as_ref().map(Pinned::path), store::save_statements),
        counters: Counters::default(),
    };
    control.node.set_filter(rules, Instant::now());
    let mut inputs = Inputs { from_lanes, from_directory, sightings, interfaces, leases, commands };
    let result = control.work(&mut inputs, &mut signals).await;
    let mapper = control.mapper.take();
    control.finish();
    // After the goodbyes: a gateway may take its time.
    if let Some(mapper) = mapper {
        mapper.stop().await;
    }
    result
}

fn membership_ended(folder: Option<&Path>) -> anyhow::Error {
    let folder = folder.unwrap_or(Path::new("it")).display();
    anyhow::anyhow!(
        "the membership of this machine has ended, unless its clock is wrong; ask for a new invite, remove {folder} and \
         join again"
    )
}

fn expelled(network: &Name, why: &str) -> anyhow::Error {
    anyhow::anyhow!("this machine is no member of network {network} any more: {why}; ask its admin")
}

struct Control {
    node: Node,
    overlay: Overlay,
    mtu: usize,
    device: Device,
    queue: Queue,
    socket: Arc<UdpSocket>,
    beside: Arc<Sockets>,
    fib: Arc<ArcSwap<Fib>>,
    lanes: Lanes,
    callers: Option<Callers>,
    streams: Streams,
    beacon: Option<Beacon>,
    mapper: Option<Mapper>,
    /// What the gateway has granted.
    leases: Vec<Lease>,
    speaker: Speaker,
    /// With which control network and mDNS are to be started anew; the first is the newest.
    new_secrets: Option<Vec<NetworkSecret>>,
    directory: Directory,
    directory_thread: Option<std::thread::JoinHandle<()>>,
    /// Where mDNS speaks.
    hearing: Vec<BeaconInterface>,
    /// What the TAP is to carry from now on, and why it changed.
    addresses: Option<(TapAddresses, Option<String>)>,
    /// Who waits for the answer to which command.
    waiting: BTreeMap<CommandId, oneshot::Sender<Reply>>,
    next_command: u64,
    /// Our folder, for messages: it may be out of reach by this path.
    state: Option<PathBuf>,
    /// We are no member any more, and why.
    ended: Option<anyhow::Error>,
    saver: Saver,
    /// Of the ledger.
    keeper: Saver,
    /// What was lost here.
    counters: Counters,
}

struct Inputs {
    from_lanes: mpsc::Receiver<FromLane>,
    from_directory: mpsc::Receiver<dht::Event>,
    sightings: mpsc::Receiver<dht::Event>,
    interfaces: mpsc::Receiver<Vec<Interface>>,
    leases: watch::Receiver<Vec<Lease>>,
    commands: mpsc::Receiver<(Command, oneshot::Sender<Reply>)>,
}

impl Control {
    /// Takes inputs until a signal says to stop.
    async fn work(&mut self, inputs: &mut Inputs, signals: &mut Signals) -> anyhow::Result<()> {
        self.drain(Instant::now());
        self.set_addresses().await?;
        tracing::info!("{} is up, listening at UDP and TCP port {}", self.device.name(), self.socket.port());
        loop {
            if let Some(ended) = self.ended.take() {
                return Err(ended);
            }
            if let Some(secrets) = self.new_secrets.take() {
                self.speak_anew(&secrets, inputs).await.context("the network's new secret cannot be used")?;
            }
            self.node.handle_wall_time(unix_now(), Instant::now());
            let deadline = self.node.poll_timeout().map(|deadline| deadline.at);
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let callers = async {
                match &mut self.callers {
                    Some(callers) => callers.turn().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                name = signals.stop() => {
                    tracing::info!("{name}: stopping");
                    return Ok(());
                }
                error = self.lanes.failure() => return Err(error),
                () = timer => self.node.handle_timeout(Instant::now()),
                Some(first) = inputs.from_lanes.recv() => {
                    self.handle_lane(first);
                    for _ in 1..BUDGET {
                        let Ok(next) = inputs.from_lanes.try_recv() else { break };
                        self.handle_lane(next);
                    }
                }
                turn = callers => {
                    turn?;
                    while let Some(punt) = self.callers.as_mut().and_then(Callers::next_punt) {
                        self.handle_lane(punt);
                    }
                }
                event = inputs.from_directory.recv() => {
                    let event = event.context("the directory has stopped")?;
                    self.node.handle_directory(event, Instant::now());
                }
                Some(event) = inputs.sightings.recv() => self.node.handle_directory(event, Instant::now()),
                Some((command, reply)) = inputs.commands.recv() => self.handle_command(command, reply),
                Some(interfaces) = inputs.interfaces.recv() => self.handle_interfaces(&interfaces),
                Ok(()) = inputs.leases.changed() => {
                    let leases = inputs.leases.borrow_and_update().clone();
                    self.handle_leases(leases);
                }
                () = self.directory.has_room() => {}
                () = self.saver.written() => {}
                () = self.keeper.written() => {}
            }
            self.drain(Instant::now());
            if let Err(error) = self.set_addresses().await {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Ends control network and mDNS, and starts them with the newest secret. Sessions go on meanwhile.
    async fn speak_anew(&mut self, secrets: &[NetworkSecret], inputs: &mut Inputs) -> anyhow::Result<()> {
        if let Some(folder) = &self.saver.folder {
            store::save_secrets(folder, secrets)?;
        }
        self.beacon = None;
        // Without its channels the directory ends, and with it what listens at our port.
        self.directory = Directory::new(mpsc::channel(1).0);
        inputs.from_directory = mpsc::channel(1).1;
        if let Some(thread) = self.directory_thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        let mut speech = self.speaker.start(secrets, self.node.statements(), seed()?)?;
        speech.beacon.set_interfaces(&self.hearing);
        self.beacon = Some(speech.beacon);
        self.directory = Directory::new(speech.commands);
        self.directory_thread = Some(speech.thread);
        (inputs.from_directory, inputs.sightings) = (speech.events, speech.sightings);
        self.node.handle_new_directory();
        self.drain(Instant::now());
        Ok(())
    }

    /// Says goodbye to everybody; afterwards nothing is left but to drop.
    fn finish(mut self) {
        self.node.shutdown(Instant::now());
        self.drain(Instant::now());
        // Says its own goodbye, and waits for it as long as it takes to leave.
        if let Some(beacon) = self.beacon.take() {
            beacon.stop();
        }
        tracing::info!("{} is down", self.device.name());
    }

    fn handle_lane(&mut self, from_lane: FromLane) {
        let now = Instant::now();
        match from_lane {
            FromLane::Punt(punted) => self.node.handle_punt(punted, now),
            FromLane::Notice(notice) => self.node.handle_notice(notice, now),
            FromLane::Stream(number, news) => self.node.handle_stream(number, news, now),
        }
        self.drain(now);
    }

    fn handle_command(&mut self, command: Command, reply: oneshot::Sender<Reply>) {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.waiting.insert(id, reply);
        self.node.handle_command(id, command, Instant::now());
    }

    /// The machine's interfaces changed: tells the node where we can be reached, and mDNS where to speak.
    fn handle_interfaces(&mut self, interfaces: &[Interface]) {
        let overlay = &self.overlay;
        let underlay: Vec<_> = interfaces
            .iter()
            .filter(|interface| interface.is_underlay() && interface.index != self.device.index())
            .cloned()
            .collect();
        let mut endpoints = netlink::endpoints(&underlay, self.socket.port(), |address| overlay.contains(address));
        endpoints.retain(|endpoint| endpoint.is_ipv4() || self.socket.has_ipv6());
        if let Some(beacon) = &mut self.beacon {
            self.hearing = underlay.into_iter().map(|interface| for_beacon(interface, overlay)).collect();
            beacon.set_interfaces(&self.hearing);
        }
        if let Some(mapper) = &self.mapper {
            mapper.set_link(underlay_link(interfaces, self.device.index()));
        }
        self.node.handle_endpoints(endpoints, Instant::now());
    }

    /// The gateway lets in something else than before.
    fn handle_leases(&mut self, leases: Vec<Lease>) {
        for lease in &leases {
            let Lease { wanted, external, method, .. } = lease;
            if !self.leases.iter().any(|old| (old.wanted, old.external, old.method) == (*wanted, *external, *method)) {
                tracing::info!(
                    "{} {} is mapped to {external} by {}",
                    wanted.protocol.name(),
                    wanted.port,
                    method.name()
                );
            }
        }
        self.leases = leases;
        let endpoints: Vec<_> = self.leases.iter().map(|lease| lease.external).collect();
        self.node.handle_mapped(&endpoints, Instant::now());
    }

    /// Carries out everything the node wants.
    fn drain(&mut self, now: Instant) {
        if let Some(fib) = self.node.poll_fib(now) {
            self.fib.store(fib);
        }
        while let Some(transmit) = self.node.poll_transmit() {
            match self.send(&transmit) {
                Ok(()) => {}
                // A probe longer than the interface carries: that it is not answered says so.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
                Err(error) => {
                    tracing::trace!(endpoint = %transmit.endpoint, "not sent: {error}");
                    self.counters.count(DropReason::SendFailed);
                }
            }
        }
        while let Some(event) = self.node.poll_event() {
            if let Event::Witnesses(numbers) = event {
                self.open_witnesses(&numbers, now);
                return self.drain(now);
            }
            self.handle_event(event);
        }
    }

    /// Opens sockets at which others are to see how their NATs map. Those that cannot be opened are not offered.
    fn open_witnesses(&mut self, numbers: &BTreeSet<u16>, now: Instant) {
        let opened = numbers.iter().filter_map(|number| match self.beside.open(*number) {
            Ok(socket) => Some((*number, socket.port())),
            Err(error) => {
                tracing::debug!("no witness: {error}");
                None
            }
        });
        let opened = opened.collect();
        self.node.handle_witnesses(opened, now);
    }

    /// Sends outside the overlay only: a tunnel in its own tunnel never ends.
    fn send(&self, transmit: &Transmit) -> std::io::Result<()> {
        let Transmit { endpoint, ref bytes, hop_limit } = *transmit;
        if let Some(number) = number_behind(&endpoint) {
            let sent = self.beside.outlets.send(number, bytes, bytes.len()) == 0;
            return if sent { Ok(()) } else { Err(std::io::Error::other("the stream is gone, or takes no more")) };
        }
        let (number, endpoint) = split(endpoint);
        if self.overlay.contains(endpoint.ip()) {
            return Err(std::io::Error::other("it is inside the overlay"));
        }
        let beside = if number == 0 { None } else { Some(self.beside.open(number)?) };
        let socket = beside.as_ref().unwrap_or(&self.socket);
        if let Some(hops) = hop_limit {
            return socket.try_send_near(endpoint, bytes, hops);
        }
        match DatagramKind::of(bytes) {
            Some(DatagramKind::Cookie) => socket.try_send_unproved(endpoint, bytes),
            Some(DatagramKind::Initiation | DatagramKind::Response | DatagramKind::Sealed) | None => {
                socket.try_send(endpoint, bytes)
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Directory(wish) => self.directory.wish(wish),
            Event::Deliver(frame) => {
                if let Err(error) = self.queue.write(&frame) {
                    tracing::trace!("not delivered: {error}");
                    self.counters.count(DropReason::TapFailed);
                }
            }
            Event::Reply(id, reply) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    // Who asked may have gone meanwhile.
                    let _ = waiting.send(self.complete(*reply));
                }
            }
            Event::Addresses { ipv4, ipv6, notice, .. } => {
                let prefix = self.overlay.0.prefix;
                self.addresses = Some((TapAddresses { ipv4, prefix, ipv6, mtu: self.mtu }, notice));
            }
            Event::Persist(records) => self.saver.save(records.iter().map(|record| record.bytes().to_vec()).collect()),
            Event::Witnesses(_) => unreachable!("drain opens them"),
            Event::Sockets(kept) => self.beside.keep(&kept),
            Event::Keep(statements) => self.keeper.save(statements),
            Event::Secrets(secrets) => self.new_secrets = Some(secrets),
            Event::Stream(wish) => self.streams.wish(wish),
            Event::MembershipEnded => self.ended = Some(membership_ended(self.state.as_deref())),
            Event::Expelled(why) => self.ended = Some(expelled(&self.overlay.0.name, &why)),
            Event::PeerChange { name, change, .. } => match change {
                PeerChange::Connected(endpoint) => tracing::info!("{name} is connected, at {endpoint}"),
                PeerChange::Relayed => tracing::info!("{name} is connected, through a relay"),
                PeerChange::Gone(reason) => tracing::info!("{name} is gone: {reason}"),
            },
        }
    }

    /// Gives the TAP its addresses, if they are new.
    async fn set_addresses(&mut self) -> anyhow::Result<()> {
        let Some((addresses, notice)) = self.addresses.take() else { return Ok(()) };
        netlink::set_tap_addresses(self.device.name(), &addresses).await?;
        let because = notice.map(|notice| format!(": {notice}")).unwrap_or_default();
        let TapAddresses { ipv4, prefix, ipv6, .. } = addresses;
        tracing::info!("{} has {ipv4}/{} and {ipv6}{because}", self.device.name(), prefix.length());
        Ok(())
    }

    fn forwarding(&self) -> ForwardingInfo {
        let offloads = self.device.offloads().unwrap_or_default();
        let (receive_buffer, send_buffer) = self.socket.buffers();
        ForwardingInfo {
            lanes: self.device.queues(),
            tcp_superframes: offloads.tcp,
            udp_superframes: offloads.udp,
            train: self.socket.longest_train(),
            receive_buffer,
            send_buffer,
        }
    }

    /// Adds to a status what the node cannot know.
    fn complete(&self, reply: Reply) -> Reply {
        let Reply::Status(mut status) = reply else { return reply };
        status.device = self.device.name().to_owned();
        status.forwarding = self.forwarding();
        status.mappings = self.leases.iter().map(|lease| mapping_info(lease, &status.mapped)).collect();
        let mut lost = self.lanes.counters();
        lost.add(&self.streams.counters());
        self.callers.iter().for_each(|callers| lost.add(&callers.counters()));
        lost.add(&self.counters);
        let mut drops: BTreeMap<String, u64> = std::mem::take(&mut status.drops).into_iter().collect();
        for (reason, count) in lost.iter() {
            *drops.entry(reason.name().to_owned()).or_default() += count;
        }
        if let Some(heard) = self.beacon.as_ref().map(Beacon::counters) {
            let named = [("sighting-malformed", heard.malformed), ("sighting-lost", heard.lost)];
            drops.extend(
                named.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)),
            );
        }
        status.drops = drops.into_iter().collect();
        Reply::Status(status)
    }
}

/// The addresses inside our network.
struct Overlay(NetworkConfig);

impl Overlay {
    fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.0.prefix.contains(address),
            IpAddr::V6(address) => address.segments()[..4] == ula_prefix(&self.0.id()).segments()[..4],
        }
    }
}

/// The way to the Internet, if it is by a private gateway and no tunnel.
fn underlay_link(interfaces: &[Interface], tap: u32) -> Option<Link> {
    let mut underlay = interfaces.iter().filter(|interface| interface.is_underlay() && interface.index != tap);
    underlay.find_map(|interface| interface.uplink)
}

fn mapping_info(lease: &Lease, used: &[SocketAddr]) -> MappingInfo {
    MappingInfo {
        protocol: lease.wanted.protocol.name().to_owned(),
        port: lease.wanted.port,
        external: lease.external,
        by: lease.method.name().to_owned(),
        ends: lease.ends.map(|ends| ends.saturating_duration_since(Instant::now()).as_secs()),
        used: used.contains(&lease.external),
    }
}

fn for_beacon(interface: Interface, overlay: &Overlay) -> BeaconInterface {
    let Interface { index, name, mut addresses, .. } = interface;
    addresses.retain(|address| !overlay.contains(*address));
    BeaconInterface { index, name, addresses }
}

/// Randomness of the operating system.
fn seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the system has no randomness: {error}"))?;
    Ok(seed)
}

/// Unix seconds. A clock before 1970 is as wrong as any; certificates will say so.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::identity::{NetworkSecret, PeerId, default_prefix};

    fn network() -> NetworkConfig {
        let root = PeerId([7; 32]);
        let prefix = default_prefix(&crate::identity::NetworkId::of_root(&root));
        let name = "test".to_owned().try_into().expect("a name");
        NetworkConfig { name, root, secret: NetworkSecret::new([1; 32]), prefix }
    }

    #[test]
    fn addresses_of_the_overlay_are_known_in_every_form() {
        let overlay = Overlay(network());
        let inside = Ipv4Addr::from(overlay.0.prefix.address().to_bits() + 9);
        let ula = ula_prefix(&overlay.0.id());
        assert!(overlay.contains(inside.into()) && overlay.contains(inside.to_ipv6_mapped().into()));
        assert!(overlay.contains(ula.into()));
        assert!(!overlay.contains(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert!(!overlay.contains("fd00::1".parse().expect("an address")));
    }
}
