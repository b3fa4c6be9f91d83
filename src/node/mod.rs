//! The node: the control machine that knows every member and keeps the sessions, paths, records and lookups.
//!
//! Inputs are `handle_*`, outputs are `poll_*`. After each input drain every output, [`Node::poll_fib`] first: datagrams
//! that invite an answer are held back until forwarding can read the answer. A run is a function of the seed and the
//! inputs.
//!
//! | file | journey |
//! |---|---|
//! | `handshakes` | a peer becomes a session: initiate, answer, confirm, replace |
//! | `sessions` | a session lives: probes, silence, messages, goodbye |
//! | `bridging` | foreign stations behind bridges: learned, told, taken in |
//! | `epochs` | the network's secret changes when somebody is expelled |
//! | `frames` | a frame waits for a session or a lookup |
//! | `mtu` | how long a datagram each path carries is found out |
//! | `punch` | two behind NATs knock at the same time |
//! | `survey` | what our NAT does next is asked of others |
//! | `hunt` | two hard NATs are passed by guessing ports |
//! | `relay` | two that cannot meet speak through others: our own ways |
//! | `carry` | the same: what we carry for others |
//! | `homes` | who can be asked for us when we cannot be met |
//! | `streams` | where no UDP passes, TCP to somebody who relays |
//! | `records` | records come and go: ours, gossip, sightings, conflicts |
//! | `ledger` | who is expelled, who joined by which invite: said, heard, compared |
//! | `operator` | what an operator asks |
//! | `paths` | round trips over each path, for an operator |
//! | `why` | why a member is reached as it is, told to an operator |
//! | `filtering` | whom our NAT lets in, tried by others for an operator |
//! | `outside` | where others see us, kept true for both families |
//! | `netcheck` | how this network treats us, asked for an operator |
//! | `filter` | which rules of the packet filter concern whom |
//! | `picture` | the Fib is drawn |

mod bridging;
mod carry;
pub mod command;
mod epochs;
pub mod event;
mod filter;
mod filtering;
mod frames;
mod handshakes;
mod homes;
mod hunt;
mod ledger;
mod mtu;
mod netcheck;
mod operator;
mod outside;
mod own;
mod paths;
mod peer;
mod picture;
mod punch;
mod quantum;
mod records;
mod relay;
mod sessions;
mod streams;
mod survey;
mod timers;
mod why;

pub use command::{Command, CommandId, ForwardingInfo, Reply};
pub use event::{Deadline, Event, PeerChange, Punted, Reason, StreamNews, StreamWish, Transmit};

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::NodeConfig;
use crate::dht::membership::Roster;
use crate::dht::{self, Ledger, Standing};
use crate::identity::{NetworkId, NoisePublic, PeerId, UnixSeconds};
use crate::nat::Observations;
use crate::session::gate::Gate;
use crate::switch::{Fib, Notice};
use crate::wire::{Counters, DropReason, Punt, SHARE_BITS};

use self::bridging::Bridging;
use self::epochs::Epochs;
use self::filter::PacketFilter;
use self::filtering::Filtering;
use self::frames::Frames;
use self::hunt::Hunts;
use self::netcheck::Netchecks;
use self::operator::Pings;
use self::own::Own;
use self::paths::PathPings;
use self::peer::Peer;
use self::picture::Picture;
use self::relay::Relays;
use self::sessions::{CHECK_INTERVAL, GONE_AFTER};
use self::streams::Streams;
use self::survey::Surveys;
use self::timers::{Timer, Timers};

/// Up to so many members, sessions are kept with everybody whether used or not, so that presence is known and floods
/// go out at once: 31 handshakes in two minutes cost a node 0.01 % of a core. Twice as many would cost the LAN four
/// times the datagrams.
const WARM_MEMBERS: usize = 32;

/// Seconds by which the wall clock may differ from our count before we believe it: NTP slews by less, a nap is longer.
const CLOCK_TOLERANCE: UnixSeconds = 5;

/// Peers known without a record (sightings, invites): a LAN party of 1024; more could only be somebody's noise.
const MAX_UNPROVED: usize = 1024;

/// One node of one network.
pub struct Node {
    config: NodeConfig,
    /// Whether it finds out how long a datagram each path carries.
    searches_mtu: bool,
    network: NetworkId,
    clock: Clock,
    rng: ChaCha20Rng,
    epochs: Epochs,
    gate: Gate,
    own: Own,
    roster: Roster,
    ledger: Ledger,
    peers: BTreeMap<PeerId, Peer>,
    /// Our index of a session or an outstanding handshake → its peer.
    indices: BTreeMap<u32, PeerId>,
    /// Who proved to hold this key and to be no member, until when it is not approached again.
    refused: BTreeMap<NoisePublic, Instant>,
    frames: Frames,
    pings: Pings,
    path_pings: PathPings,
    netchecks: Netchecks,
    filtering: Filtering,
    standing: Standing,
    /// Whom the control network has met.
    met: BTreeMap<PeerId, dht::Met>,
    observations: Observations,
    relays: Relays,
    surveys: Surveys,
    hunts: Hunts,
    streams: Streams,
    bridging: Bridging,
    picture: Picture,
    filter: PacketFilter,
    timers: Timers,
    last_stamp: u64,
    outbox: VecDeque<Transmit>,
    events: VecDeque<Event>,
    counters: Counters,
}

/// Wall time, which entered once.
struct Clock {
    start: Instant,
    unix_start: UnixSeconds,
    /// Where in [`CHECK_INTERVAL`] our looks at sessions fall, so that machines that got power together do not look together.
    phase: Duration,
}

impl Clock {
    fn unix(&self, now: Instant) -> UnixSeconds {
        self.unix_start + now.saturating_duration_since(self.start).as_secs()
    }

    /// The next of the looks that all peers share, after `now`.
    fn next_look(&self, now: Instant) -> Instant {
        let interval = CHECK_INTERVAL.as_millis() as u64;
        let since = (now.saturating_duration_since(self.start) + self.phase).as_millis() as u64;
        let next = Duration::from_millis((since / interval + 1) * interval);
        self.start + next - self.phase
    }
}

impl Node {
    /// A node that starts `now`, at `unix_now` of wall time. `seed` is all its randomness.
    pub fn new(config: NodeConfig, seed: [u8; 32], now: Instant, unix_now: UnixSeconds) -> Self {
        let network = config.network.id();
        let mut rng = ChaCha20Rng::from_seed(seed);
        let mut gate_seed = [0; 32];
        rng.fill_bytes(&mut gate_seed);
        let mut node = Self {
            searches_mtu: false,
            network,
            clock: Clock { start: now, unix_start: unix_now, phase: CHECK_INTERVAL * (rng.next_u32() % 256) / 256 },
            epochs: Epochs::new(&config),
            gate: Gate::new(gate_seed, now),
            own: Own::new(&config, &network),
            roster: Roster::default(),
            ledger: Ledger::default(),
            peers: BTreeMap::new(),
            indices: BTreeMap::new(),
            refused: BTreeMap::new(),
            frames: Frames::default(),
            pings: Pings::default(),
            path_pings: PathPings::default(),
            netchecks: Netchecks::default(),
            filtering: Filtering::default(),
            standing: Standing::default(),
            met: BTreeMap::new(),
            observations: Observations::default(),
            relays: Relays::default(),
            surveys: Surveys::default(),
            hunts: Hunts::default(),
            streams: Streams::default(),
            bridging: Bridging::new(config.key.peer_id(), own::sequence_base(config.boots)),
            picture: Picture::default(),
            filter: PacketFilter::default(),
            timers: Timers::default(),
            last_stamp: 0,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            rng,
            config,
        };
        node.begin(now);
        node
    }

    /// A frame or datagram that forwarding could not judge.
    pub fn handle_punt(&mut self, punted: Punted, now: Instant) {
        let Punted { punt, bytes, source, peer } = punted;
        match (punt, source, peer) {
            (Punt::NoSession | Punt::UnknownUnicast, ..) => self.handle_frame(bytes, now),
            (Punt::NewStation, ..) => self.handle_new_station(bytes, now),
            (Punt::ColdFlood, ..) => self.handle_flood(&bytes, now),
            (Punt::Handshake, Some(source), _) => self.handle_handshake(&bytes, source, now),
            (Punt::Message, Some(source), Some(peer)) => self.handle_message(peer, &bytes, source, now),
            (Punt::Handshake | Punt::Message, ..) => self.counters.count(DropReason::DatagramMalformed),
        }
    }

    /// A fact from forwarding.
    pub fn handle_notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Confirmed { local } => self.handle_confirmed(local, now),
            Notice::Roamed { peer, endpoint } => self.handle_roamed(peer, endpoint, now),
            Notice::Busy { local } => self.handle_busy(local, now),
            Notice::RekeyDue { local } => {
                if let Some(&peer) = self.indices.get(&local) {
                    self.initiate(peer, now);
                }
            }
        }
    }

    /// News from the directory.
    pub fn handle_directory(&mut self, event: dht::Event, now: Instant) {
        match event {
            dht::Event::Found { id, record, holders } => self.handle_found(id, record, &holders, now),
            dht::Event::NotFound { id } => self.handle_not_found(id),
            dht::Event::Gossip(record) => self.take_in(record, now),
            dht::Event::Statement(statement) => drop(self.take_statement(statement, None, now)),
            dht::Event::Sighting(sighting) => self.handle_sighting(sighting, now),
            dht::Event::Standing(standing) => self.standing = standing,
            dht::Event::Met(met) => self.handle_met(met, now),
        }
    }

    /// The underlay endpoints at which we can be reached now, overlays excluded: every address of every physical
    /// interface, with our port.
    pub fn handle_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Instant) {
        let endpoints: Vec<_> = endpoints.into_iter().filter(|endpoint| !self.is_overlay(endpoint.ip())).collect();
        let same = endpoints == self.own.endpoints && self.own.record().is_some();
        self.own.endpoints = endpoints;
        self.events.push_back(Event::Directory(dht::Command::Listening(self.own.listening(self.config.tls))));
        if same {
            return;
        }
        // The network is another, and its NAT too. Where we were seen is published until somebody sees us anew.
        self.observations.clear();
        self.surveys.clear();
        self.filtering.clear();
        self.forget_mtus(now);
        self.streams.begin_anew();
        self.renew_record(now);
        self.probe_everybody(now);
    }

    /// Our gateway says that it lets in, for everybody, what goes to these endpoints; replaces what it said before. Peers are
    /// told unless they see us elsewhere, for then there is another NAT behind it.
    pub fn handle_mapped(&mut self, endpoints: &[SocketAddr], now: Instant) {
        let endpoints: Vec<_> = endpoints.iter().copied().filter(|endpoint| !self.is_overlay(endpoint.ip())).collect();
        self.own.mapped.set(&endpoints);
        self.review_outside(now);
    }

    /// The operator asks. Every command is answered by one [`Event::Reply`] with its id.
    pub fn handle_command(&mut self, id: CommandId, command: Command, now: Instant) {
        match command {
            Command::Status => self.reply(id, Reply::Status(Box::new(self.status(now)))),
            Command::Peers => self.reply(id, Reply::Peers { peers: self.peer_infos(now) }),
            Command::Stations => self.reply(id, Reply::Stations { stations: self.stations() }),
            Command::Lookup { key } => self.begin_lookup(id, &key, now),
            Command::Ping { peer } => self.begin_ping(id, &peer, now),
            Command::PingPaths { peer } => self.begin_path_ping(id, &peer, now),
            Command::Why { peer } => self.tell_why(id, &peer, now),
            Command::Netcheck => self.begin_netcheck(id, now),
            Command::Filter => self.reply(id, Reply::Filter(self.filter_info())),
            Command::LoadFilter { rules } => self.load_filter(id, &rules, now),
            Command::TestFilter { from, to, protocol, port } => {
                self.reply(id, self.test_filter(&from, to.as_deref(), &protocol, port));
            }
            Command::State { statement } => self.declare(id, &statement, now),
            Command::Epoch { statement, secret } => self.begin_epoch(id, &statement, secret, now),
        }
    }

    /// What the wall clock says. A laptop's monotonic clock stands still while it sleeps, and a clock may be set right:
    /// records are dated anew then, and what others forgot meanwhile is not waited for. Cheap if nothing is wrong.
    pub fn handle_wall_time(&mut self, unix_now: UnixSeconds, now: Instant) {
        let expected = self.clock.unix(now);
        if unix_now.abs_diff(expected) < CLOCK_TOLERANCE {
            return;
        }
        tracing::debug!(unix_now, expected, "the wall clock jumped");
        self.clock.unix_start = unix_now.saturating_sub(now.saturating_duration_since(self.clock.start).as_secs());
        if unix_now.saturating_sub(expected) >= GONE_AFTER.as_secs() {
            let ids: Vec<_> = self.peers.keys().copied().collect();
            for id in ids {
                self.lose(id, "we slept", now);
            }
        }
        // Whoever was refused may have been in the right.
        self.refused.clear();
        self.expire_records(now);
        if self.own.record().is_some() {
            self.renew_record(now);
            self.probe_everybody(now);
        }
    }

    /// The instant of [`Node::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Handshake(peer) => self.retry_handshake(peer, now),
                Timer::Reconnect(peer) => self.reconnect(peer, now),
                Timer::Session(peer) => self.check_sessions(peer, now),
                Timer::Punch(peer) => self.probe(peer, now),
                Timer::Survey => self.tend_surveys(now),
                Timer::Hunt(peer) => self.hunt(peer, now),
                Timer::Mtu(peer) => self.tend_mtu(peer, now),
                Timer::Streams => self.tend_streams(now),
                Timer::Lookup(id) => self.handle_not_found(id),
                Timer::Pings => self.expire_pings(now),
                Timer::Netcheck => self.tend_netcheck(now),
                Timer::Renew => self.renew_record(now),
                Timer::Homes => self.choose_homes(now),
                Timer::Expire => self.expire_records(now),
                Timer::Leave => self.check_ourselves(),
                Timer::Persist => self.persist(),
                Timer::Keep => self.keep_ledger(),
                Timer::Epoch => self.follow(now),
                Timer::Witness => self.witness(now),
                Timer::Stations => self.tend_stations(now),
                Timer::Sweep => self.sweep_stations(now),
                Timer::Fib => (),
            }
        }
    }

    /// We stop: says goodbye to every peer; drain once more, then drop.
    pub fn shutdown(&mut self, now: Instant) {
        self.say_goodbye(now);
    }

    /// A new picture for forwarding, if there is one; at most one every 10 ms. Drain it before [`Node::poll_transmit`].
    pub fn poll_fib(&mut self, now: Instant) -> Option<Arc<Fib>> {
        let fib = self.draw(now)?;
        self.outbox.extend(self.picture.release());
        Some(fib)
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        while let Some(transmit) = self.outbox.pop_front() {
            if let Some(transmit) = self.by_relay(transmit) {
                return Some(transmit);
            }
        }
        None
    }

    /// The next thing for the I/O to do, after everything was sent.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front().or_else(|| self.poll_sockets())
    }

    /// When to call [`Node::handle_timeout`], and why.
    pub fn poll_timeout(&mut self) -> Option<Deadline> {
        self.timers.next()
    }

    /// What the node dropped so far; forwarding counts its own.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Our own peer id.
    pub fn peer_id(&self) -> PeerId {
        self.own.peer
    }

    fn is_warm(&self) -> bool {
        self.roster.len() <= WARM_MEMBERS
    }

    fn is_overlay(&self, ip: std::net::IpAddr) -> bool {
        match ip.to_canonical() {
            std::net::IpAddr::V4(v4) => self.config.network.prefix.contains(v4),
            std::net::IpAddr::V6(v6) => v6.octets()[..8] == crate::identity::ula_prefix(&self.network).octets()[..8],
        }
    }

    /// Whether what is sent there comes back to us, or into the tunnel: two homes may have the same addresses.
    fn leads_back(&self, endpoint: &SocketAddr) -> bool {
        self.is_overlay(endpoint.ip()) || self.own.endpoints.contains(endpoint)
    }

    /// The entry of a peer, made if there is room.
    fn peer_entry(&mut self, id: PeerId) -> Option<&mut Peer> {
        if id == self.own.peer {
            return None;
        }
        if !self.peers.contains_key(&id) && self.peers.len() >= self.roster.len() + MAX_UNPROVED {
            return None;
        }
        let share = self.peers.len() as u32 & SHARE_BITS;
        Some(self.peers.entry(id).or_insert_with(|| Peer::new(id, share)))
    }

    fn random_seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    /// A session index that is in no use, with the peer's share in its last bits.
    fn new_index(&mut self, peer: PeerId) -> u32 {
        let share = self.peers.get(&peer).map_or(0, |peer| peer.share);
        loop {
            let index = self.rng.next_u32() & !SHARE_BITS | share;
            if index != 0 && !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    /// `span`, up to a quarter longer by chance, so that a LAN does not act in step.
    fn jittered(&mut self, span: Duration) -> Duration {
        span + span * (self.rng.next_u32() % 256) / 1024
    }

    fn reply(&mut self, id: CommandId, reply: Reply) {
        self.events.push_back(Event::Reply(id, Box::new(reply)));
    }
}

#[cfg(test)]
mod tests;
