//! The virtual world: a clock that jumps from event to event, and everything that happens on the way.
//!
//! Events are ordered by (time, number), so a run has one order. The only thing that is not virtual is the instant at
//! which the world begins, because `Instant` has no zero; nothing depends on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use meshd::config::NodeConfig;
use meshd::dht;
use meshd::identity::{Name, NetworkSecret, PeerId, UnixSeconds};
use meshd::node::event::PeerChange;
use meshd::node::{CommandId, Reply, Transmit};
use meshd::wire::socket::split;
use meshd::wire::stream::number_behind;

use crate::directory::{Agenda, Ground, Model, Step};
use crate::heap::Heap;
use crate::host::{Costs, HostId, Output, Process, Scratch, port_of};
use crate::network::{Network, UNIX_START};
use crate::seed::{Chance, Seed};
use crate::station::{Conversation, Said, Station};
use crate::stream::{StreamStep, Streams};
use crate::topology::{PortId, SegmentId, Topology};
use crate::trace::{self, Detail, Trace, fingerprint};
use crate::transit::{Captured, Packet, TTL};

/// The port of every node.
pub const PORT: u16 = 4747;

/// How long a daemon takes from its start to a mapping: a quarter of a second with miniupnpd (`tests/portmap.rs`).
const MAPPING_DELAY: Duration = Duration::from_millis(250);

/// How long a mapping is asked for, as the daemon does.
const LEASE: Duration = Duration::from_secs(3600);

/// How long it takes a daemon to end its control network and start it with another secret.
const REKEY_DELAY: Duration = Duration::from_millis(50);

/// Calls of one node without the clock moving: more means that it asks to be called at once for ever.
const MAX_WAKES_IN_PLACE: u32 = 1000;

/// A host, running or not.
pub struct Host {
    /// Its name.
    pub name: Name,
    /// What its node is told at the next start.
    pub config: NodeConfig,
    /// Who it is.
    pub peer: PeerId,
    /// What is at its TAP.
    pub station: Station,
    /// What else is on its LAN, if its TAP is a port of a bridge.
    pub behind: Vec<Station>,
    /// What it cost so far.
    pub costs: Costs,
    /// What its node told the user.
    pub changes: Vec<(Duration, PeerId, PeerChange)>,
    /// How often it was started.
    pub life: u32,
    pub(crate) process: Option<Process>,
    /// Whether its node was told that it is no member any more.
    pub expelled: bool,
    pub(crate) kept: Vec<Vec<u8>>,
    pub(crate) ledger: Vec<Vec<u8>>,
    /// The network's secrets that its daemon was given last, the newest first; none as long as there was one only.
    pub secrets: Vec<NetworkSecret>,
    pub(crate) wake_at: Option<Duration>,
    /// When its gateway is asked for a mapping next.
    map_at: Option<Duration>,
    last_wake: (Duration, u32),
    /// How far its monotonic clock is behind, because it slept.
    pub(crate) slept: Duration,
    pub(crate) asleep_since: Option<Duration>,
    /// Seconds by which its wall clock is ahead.
    pub(crate) ahead: i64,
    /// What it says of where others are, if it does not tell the truth; and who is really at the places that it has named so far.
    pub(crate) lie: Option<fn(SocketAddr) -> SocketAddr>,
    pub(crate) truth: BTreeMap<SocketAddr, SocketAddr>,
}

/// Everything.
pub struct World {
    /// Who is plugged in where.
    pub topology: Topology,
    /// What happened.
    pub trace: Trace,
    /// The control network.
    pub directory: Model,
    /// Pings.
    pub conversations: Vec<Conversation>,
    /// Who heard which call, how often.
    pub calls: Vec<BTreeMap<HostId, u32>>,
    /// Answers to operators.
    pub replies: BTreeMap<CommandId, Reply>,
    /// Datagrams and bytes from host to host that were sent, whether they arrived or not. What went to an outside
    /// endpoint of a box counts for whoever had it then.
    pub sent: BTreeMap<(HostId, HostId), (u64, u64)>,
    /// Datagrams from host to host that arrived.
    pub arrived: BTreeMap<(HostId, HostId), u64>,
    /// Datagrams and bytes sent to addresses that nobody has or that are out of reach, found out at once or on the way.
    pub astray: (u64, u64),
    /// Datagrams that links lost.
    pub lost: u64,
    /// Datagrams that a box did not pass on; [`crate::nat::Statistics`] has the reasons.
    pub filtered: u64,
    /// Datagrams whose TTL ended on the way.
    pub expired: u64,
    /// What cables saw, while a capture runs.
    pub captured: Option<Vec<Captured>>,
    /// Events handled so far.
    pub handled: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) seed: Seed,
    pub(crate) keys: Chance,
    base: Instant,
    now: Duration,
    heap: Heap<What>,
    pub(crate) links: Chance,
    scratch: Scratch,
    home: Network,
    pub(crate) streams: Streams,
    /// Whether nodes that start from now on find out what paths carry.
    pub searches_mtu: bool,
    /// Whether they mix ML-KEM into their sessions. Off: not optimised it takes 20 ms, and worlds have thousands of pairs.
    pub post_quantum: bool,
    /// Connections accepted so far.
    pub(crate) accepted: u32,
}

pub(crate) enum What {
    Start(HostId),
    Endpoints(HostId, u32),
    Map(HostId, u32),
    Wake(HostId, u32),
    /// The control network and mDNS are started with the newest secret.
    Rekey(HostId, u32),
    WallTime(HostId, u32),
    Arrive {
        out: PortId,
        into: PortId,
        packet: Packet,
    },
    Stream(StreamStep),
    Tell(HostId, u32, Box<dht::Event>),
    Step(Step),
    Ping(usize),
}

impl World {
    /// An empty world. With `NETSIM_TRACE` set ([`Detail::asked`]) it keeps the lines of its trace and prints
    /// them when a test fails.
    pub fn new(seed: Seed) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a virtual clock needs some instant to begin at; none depends on it"
        )]
        let base = Instant::now();
        let mut keys = seed.chance("keys");
        let detail = std::env::var("NETSIM_TRACE").map_or(Detail::Hash, |text| Detail::asked(&text));
        Self {
            topology: Topology::default(),
            trace: Trace::new(detail),
            directory: Model::new(seed.chance("directory")),
            conversations: Vec::new(),
            calls: Vec::new(),
            replies: BTreeMap::new(),
            sent: BTreeMap::new(),
            arrived: BTreeMap::new(),
            astray: (0, 0),
            lost: 0,
            filtered: 0,
            expired: 0,
            captured: None,
            handled: 0,
            hosts: Vec::new(),
            seed,
            home: Network::new(&mut keys),
            keys,
            base,
            now: Duration::ZERO,
            heap: Heap::default(),
            links: seed.chance("links"),
            scratch: Scratch::default(),
            streams: Streams::new(),
            searches_mtu: false,
            post_quantum: false,
            accepted: 0,
        }
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Wall time of the virtual world, Unix seconds.
    pub fn unix_now(&self) -> UnixSeconds {
        UNIX_START + self.now.as_secs()
    }

    /// The network that hosts are members of unless a test says otherwise.
    pub fn home(&self) -> &Network {
        &self.home
    }

    /// One host.
    pub fn host(&self, host: HostId) -> &Host {
        &self.hosts[host.0]
    }

    /// One host, to be changed.
    pub fn host_mut(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.0]
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.hosts.len()).map(HostId)
    }

    /// Whether a host's process runs.
    pub fn is_running(&self, host: HostId) -> bool {
        self.hosts[host.0].process.is_some()
    }

    /// Adds a host that is a member of `network`, plugged into `segments`. It is not started.
    pub fn add_host(&mut self, name: &str, network: &Network, segments: &[SegmentId]) -> HostId {
        let key = meshd::identity::SigningKey::from_seed(&self.keys.bytes());
        let id = HostId(self.hosts.len());
        let name: Name = name.parse().expect("a name");
        let config = NodeConfig {
            network: network.config.clone(),
            chain: network.member(key.peer_id(), &name),
            key,
            mac: None,
            ipv4: None,
            mtu: meshd::config::DEFAULT_MTU,
            boots: 0,
            relaying: meshd::config::Relaying::default(),
            tls: false,
            hardware_aes: true,
            post_quantum: true,
            contacts: Vec::new(),
            known_records: Vec::new(),
            known_statements: Vec::new(),
            known_secrets: Vec::new(),
        };
        for segment in segments {
            self.topology.attach(id, *segment);
        }
        self.hosts.push(Host {
            name,
            peer: config.key.peer_id(),
            station: Station::new(config.mac()),
            behind: Vec::new(),
            costs: Costs::default(),
            changes: Vec::new(),
            life: 0,
            process: None,
            expelled: false,
            kept: Vec::new(),
            ledger: Vec::new(),
            secrets: Vec::new(),
            wake_at: None,
            map_at: None,
            last_wake: (Duration::ZERO, 0),
            slept: Duration::ZERO,
            asleep_since: None,
            ahead: 0,
            lie: None,
            truth: BTreeMap::new(),
            config,
        });
        id
    }

    /// Runs until `end`, and to it.
    pub fn run_until(&mut self, end: Duration) {
        while let Some((at, what)) = self.heap.pop_until(end) {
            debug_assert!(at >= self.now, "time never runs backwards");
            self.now = at;
            self.handled += 1;
            self.handle(what);
        }
        self.now = self.now.max(end);
    }

    fn handle(&mut self, what: What) {
        match what {
            What::Start(host) => self.start(host),
            What::Endpoints(host, life) => {
                if self.hosts[host.0].life == life {
                    self.tell_endpoints(host);
                }
            }
            What::Map(host, life) => {
                if self.hosts[host.0].life == life && self.hosts[host.0].map_at == Some(self.now) {
                    self.ask_gateway(host);
                }
            }
            What::Wake(host, life) => self.wake(host, life),
            What::Rekey(host, life) => {
                if self.hosts[host.0].life == life && self.is_running(host) {
                    let agenda = self.directory.rekey(host, &self.hosts[host.0].secrets);
                    self.enter(agenda);
                    self.drive(host, |process, _, now, output| process.new_directory(now, output));
                }
            }
            What::WallTime(host, life) => {
                if self.hosts[host.0].life == life {
                    let unix = self.wall_time(host);
                    self.drive(host, |process, _, now, output| process.wall_time(unix, now, output));
                }
            }
            What::Arrive { out, into, packet } => self.arrive(out, into, packet),
            What::Stream(step) => self.stream_step(step),
            What::Tell(host, life, event) => {
                if self.hosts[host.0].life == life {
                    self.note(host, format_args!("directory {}", trace::kind(&event)));
                    self.drive(host, |process, _, now, output| process.directory(*event, now, output));
                }
            }
            What::Step(step) => {
                let ground = Ground { topology: &self.topology, now: self.now, unix: self.unix_now() };
                let agenda = self.directory.step(step, ground);
                self.enter(agenda);
            }
            What::Ping(index) => self.ask_once(index),
        }
    }

    /// Starts a host now, with what it kept on disk.
    ///
    /// # Panics
    /// If it runs already.
    pub fn start(&mut self, id: HostId) {
        let (now, unix) = (self.instant(id), self.wall_time(id));
        let host = &mut self.hosts[id.0];
        assert!(host.process.is_none(), "{} runs already", host.name);
        host.life += 1;
        (host.wake_at, host.map_at) = (None, None);
        let mut config = host.config.clone();
        config.boots = host.life - 1;
        config.post_quantum &= self.post_quantum;
        config.known_records = host.kept.clone();
        config.known_statements = host.ledger.clone();
        config.known_secrets = host.secrets.clone();
        let seed = self.seed.chance(&format!("{} life {}", host.name, host.life)).bytes();
        self.directory.start(id, host.life, &config, unix);
        let mut output = Output::default();
        let mut process = Process::start(config, seed, now, unix, &mut output);
        if self.searches_mtu {
            process.search_mtus();
        }
        host.process = Some(process);
        self.note(id, format_args!("start"));
        self.settle(id, output);
        self.tell_endpoints(id);
    }

    /// The instant that a host's monotonic clock shows.
    pub(crate) fn instant(&self, host: HostId) -> Instant {
        self.base + (self.now - self.hosts[host.0].slept)
    }

    fn wall_time(&self, host: HostId) -> UnixSeconds {
        self.unix_now().saturating_add_signed(self.hosts[host.0].ahead)
    }

    fn tell_endpoints(&mut self, host: HostId) {
        let endpoints: Vec<_> =
            self.topology.addresses(host).into_iter().map(|address| SocketAddr::new(address, PORT)).collect();
        self.drive(host, |process, _, now, output| process.endpoints(endpoints, now, output));
        if self.topology.mapping_gateways(host).next().is_some() {
            self.map_after(host, MAPPING_DELAY);
        } else if self.hosts[host.0].map_at.take().is_some() {
            self.drive(host, |process, _, now, output| process.mapped(&[], now, output));
        }
    }

    fn map_after(&mut self, host: HostId, after: Duration) {
        let life = self.hosts[host.0].life;
        self.hosts[host.0].map_at = Some(self.now + after);
        self.push(after, What::Map(host, life));
    }

    /// The daemon's mapper: asks the gateways of a host for mappings, and again at half their life.
    fn ask_gateway(&mut self, host: HostId) {
        let now = self.now;
        let gateways: Vec<_> = self.topology.mapping_gateways(host).collect();
        let mapped = gateways
            .into_iter()
            .filter_map(|(address, id)| self.topology.nat_mut(id).map_port(SocketAddr::new(address, PORT), LEASE, now));
        let mapped: Vec<_> = mapped.collect();
        self.note(host, format_args!("mapped {mapped:?}"));
        self.drive(host, |process, _, now, output| process.mapped(&mapped, now, output));
        self.map_after(host, LEASE / 2);
    }

    fn wake(&mut self, id: HostId, life: u32) {
        let (now, host) = (self.now, &mut self.hosts[id.0]);
        if host.life != life || host.wake_at != Some(now) || host.asleep_since.is_some() {
            return;
        }
        host.wake_at = None;
        let Some(deadline) = host.process.as_mut().and_then(Process::deadline) else { return };
        if deadline.at > self.base + (now - host.slept) {
            return self.schedule(id);
        }
        let in_place = if host.last_wake.0 == now { host.last_wake.1 + 1 } else { 0 };
        host.last_wake = (now, in_place);
        assert!(in_place < MAX_WAKES_IN_PLACE, "{} asks for {:?} at {now:?} for ever", host.name, deadline.reason);
        host.costs.wakes += 1;
        let pictures = host.process.as_ref().map_or(0, |process| process.pictures);
        self.note(id, format_args!("wake {:?}", deadline.reason));
        let idle = self.drive(id, |process, _, now, output| process.timeout(now, output));
        let host = &mut self.hosts[id.0];
        if idle && host.process.as_ref().is_some_and(|process| process.pictures == pictures) {
            *host.costs.idle_wakes.entry(deadline.reason).or_default() += 1;
        }
    }

    fn ask_once(&mut self, index: usize) {
        let now = self.now;
        let conversation = &mut self.conversations[index];
        if now >= conversation.until {
            return;
        }
        let (from, to, every) = (conversation.from, conversation.to, conversation.every);
        if self.hosts[from.0].process.is_some() && self.hosts[from.0].asleep_since.is_none() {
            let sequence = conversation.ask(now);
            let said = Said::Ask { conversation: index as u32, sequence };
            let frame = said.frame(self.hosts[from.0].station.mac, self.hosts[to.0].station.mac, conversation.len);
            self.note(from, format_args!("ping {} {index}/{sequence}", to.0));
            self.send_frame(from, &frame);
        }
        self.push(every, What::Ping(index));
    }

    /// Gives a host's process an input and does what it wants. True if nothing came of it.
    pub(crate) fn drive(
        &mut self,
        host: HostId,
        input: impl FnOnce(&mut Process, &mut Scratch, Instant, &mut Output),
    ) -> bool {
        let (now, state) = (self.instant(host), &mut self.hosts[host.0]);
        let Some(process) = state.process.as_mut().filter(|_| state.asleep_since.is_none()) else { return true };
        let mut output = Output::default();
        input(process, &mut self.scratch, now, &mut output);
        let idle = output.is_empty();
        self.settle(host, output);
        idle
    }

    fn settle(&mut self, id: HostId, mut output: Output) {
        let now = self.now;
        loop {
            for Transmit { endpoint, bytes, hop_limit } in std::mem::take(&mut output.sends) {
                if let Some(number) = number_behind(&endpoint) {
                    self.send_by_stream(id, number, bytes);
                    continue;
                }
                let (number, endpoint) = split(endpoint);
                self.transmit(id, port_of(number), endpoint, hop_limit.unwrap_or(TTL), bytes);
            }
            for wish in std::mem::take(&mut output.streams) {
                self.wish_stream(id, wish);
            }
            for command in std::mem::take(&mut output.commands) {
                self.hosts[id.0].costs.commands += 1;
                self.note(id, format_args!("command {}", trace::command_kind(&command)));
                let agenda = self.directory.command(id, command);
                self.enter(agenda);
            }
            self.replies.extend(output.replies.drain(..));
            let host = &mut self.hosts[id.0];
            if let Some(records) = output.persist.take() {
                host.kept = records;
            }
            if let Some(statements) = output.keep.take() {
                host.ledger = statements;
            }
            host.expelled |= std::mem::take(&mut output.expelled);
            if let Some(secrets) = output.secrets.take() {
                host.secrets = secrets;
                self.push(REKEY_DELAY, What::Rekey(id, self.hosts[id.0].life));
            }
            let host = &mut self.hosts[id.0];
            for (mac, ipv4, ipv6, notice) in output.addresses.drain(..) {
                host.station.mac = mac;
                if let (IpAddr::V4(ipv4), IpAddr::V6(ipv6)) = (ipv4, ipv6) {
                    (host.station.ipv4, host.station.ipv6) = (Some(ipv4), Some(ipv6));
                }
                host.station.notices.extend(notice);
                self.trace.note(now, host.name.as_str(), format_args!("addresses {mac} {ipv4} {ipv6}"));
            }
            for (peer, change) in output.changes.drain(..) {
                self.trace.note(now, host.name.as_str(), format_args!("peer {} {change:?}", peer.short()));
                host.changes.push((now, peer, change));
            }
            if output.frames.is_empty() {
                break;
            }
            for frame in std::mem::take(&mut output.frames) {
                self.deliver(id, &frame, &mut output);
            }
        }
        self.schedule(id);
    }

    fn deliver(&mut self, id: HostId, frame: &[u8], output: &mut Output) {
        let now = self.now;
        self.note(id, format_args!("deliver {} {:016x}", frame.len(), fingerprint(frame)));
        match Said::read(frame) {
            Some(Said::Answer { conversation, sequence }) => {
                if let Some(conversation) = self.conversations.get_mut(conversation as usize) {
                    conversation.answer(sequence, now);
                }
            }
            Some(Said::Call { id: call }) => {
                if let Some(heard) = self.calls.get_mut(call as usize) {
                    *heard.entry(id).or_default() += 1;
                }
            }
            Some(Said::Ask { .. }) | None => (),
        }
        let (instant, host) = (self.instant(id), &mut self.hosts[id.0]);
        let answers: Vec<_> = host.stations_for(frame).filter_map(|station| station.hear(frame, now)).collect();
        let Some(process) = host.process.as_mut() else { return };
        answers.iter().for_each(|answer| process.frame(answer, &mut self.scratch, instant, output));
    }

    /// Sees to it that a host is called at its deadline. An event that has become too early reschedules itself.
    pub(crate) fn schedule(&mut self, id: HostId) {
        let (base, now, host) = (self.base, self.now, &mut self.hosts[id.0]);
        let Some(deadline) = host.process.as_mut().and_then(Process::deadline) else { return };
        let at = (deadline.at.saturating_duration_since(base) + host.slept).max(now);
        if host.wake_at.is_none_or(|scheduled| at < scheduled) {
            host.wake_at = Some(at);
            let life = host.life;
            self.push_at(at, What::Wake(id, life));
        }
    }

    pub(crate) fn enter(&mut self, agenda: Agenda) {
        for (delay, step) in agenda.steps {
            self.push(delay, What::Step(step));
        }
        for (delay, host, event) in agenda.tells {
            let life = self.hosts[host.0].life;
            self.push(delay, What::Tell(host, life, Box::new(event)));
        }
    }

    pub(crate) fn push(&mut self, after: Duration, what: What) {
        self.push_at(self.now + after, what);
    }

    pub(crate) fn push_at(&mut self, at: Duration, what: What) {
        self.heap.push(at, what);
    }

    pub(crate) fn note(&mut self, host: HostId, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, self.hosts[host.0].name.as_str(), what);
    }
}

impl Drop for World {
    #[expect(clippy::print_stderr, reason = "a failing run has to say how it can be run again")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for line in self.trace.lines() {
            eprintln!("{line}");
        }
        let test = std::thread::current().name().unwrap_or("the test").to_owned();
        eprintln!(
            "this world failed at {:?} of virtual time; again: NETSIM_SEED={} cargo test -p netsim {test}\n\
             with NETSIM_TRACE=FROM..TO (seconds) it prints what happened",
            self.now, self.seed.0
        );
    }
}
