//! A model of the control network: libp2p and mDNS behind the two enums that the node sees.
//!
//! A libp2p swarm reads clocks, so it cannot run in virtual time. The model keeps what matters to a node: control
//! connections come of `Dial` and need a way in the topology, which may lead out through gateways, in only where a port is
//! mapped, or by a circuit through a home relay (`circuits`); a newcomer's first connections tell it whom they know; a record is gossiped once, to whoever is connected then, and put
//! into the shards of the nodes nearest to its keys; statements are gossiped, and compared with each new connection; a lookup asks the nearest shards that it hears of and can reach; everything takes its time; mDNS announces on the
//! LAN at the start and at intervals.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshd::config::NodeConfig;
use meshd::dht::{Command, Event, Ledger, LookupKey, Met, QueryId, Record, Sighting, Standing, Statement, Verified};
use meshd::identity::{NetworkId, NetworkSecret, NoisePublic, PeerId, UnixSeconds};

use crate::circuits::{Link, Target};
use crate::host::HostId;
use crate::seed::Chance;
use crate::topology::Topology;
use crate::world::PORT;

/// Shards that keep a key: Kademlia's k.
const REPLICAS: usize = 20;

/// How long an mDNS announcement or answer takes: RFC 6762 has responders wait 20 to 120 ms.
const SIGHTING_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

/// From announcement to announcement: blinded names change every quarter of an hour, and between that a responder
/// only answers newcomers.
const ANNOUNCE_EVERY: (Duration, Duration) = (Duration::from_secs(14 * 60), Duration::from_secs(16 * 60));

/// TCP, pnet, noise, yamux: a handful of round trips.
pub(crate) const CONNECT_DELAY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// Records that one connection tells a newcomer, and connections it asks for them, as in the real one.
const BATCH: usize = 63;
pub(crate) const WANTED_BATCHES: u8 = 3;

/// One hop of gossip.
const GOSSIP_HOP: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(30));

/// A put, and a lookup, walk a few hops.
const WALK_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));

/// From put to put of one record.
const REPUBLISH_EVERY: (Duration, Duration) = (Duration::from_secs(540), Duration::from_secs(660));

/// A connection whose way is gone breaks after this: keepalives notice.
const BREAK_AFTER: Duration = Duration::from_secs(30);

/// [`Standing`] is told at most so often.
const STANDING_EVERY: Duration = Duration::from_secs(1);

/// Where the model stands, and when.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// Who is where.
    pub topology: &'a Topology,
    /// Virtual time.
    pub now: Duration,
    /// Wall time.
    pub unix: UnixSeconds,
}

/// Something that the model does later.
#[derive(Debug)]
pub enum Step {
    /// mDNS announces.
    Announce(HostId, u32),
    /// A dial ends: the so-manyth in a row.
    Connect(HostId, u32, PeerId, u32),
    /// A host's record is stored, and gossiped if it has not been.
    Put(HostId, u32),
    /// A host's record is stored again.
    Republish(HostId, u32, u64),
    /// A lookup ends.
    Answer(HostId, u32, QueryId, LookupKey),
    /// A host is told how things stand.
    Standing(HostId, u32),
    /// A connection whose way is gone breaks.
    Break(HostId, HostId),
}

/// What follows, and after how long.
#[derive(Debug, Default)]
pub struct Agenda {
    /// The model's own later steps.
    pub steps: Vec<(Duration, Step)>,
    /// Events for nodes.
    pub tells: Vec<(Duration, HostId, Event)>,
}

/// The control network of the whole world.
pub struct Model {
    pub(crate) members: BTreeMap<HostId, Member>,
    pub(crate) chance: Chance,
    arrivals: u64,
    /// Lookups answered, by whether something was found: for cost tables.
    pub lookups: (u64, u64),
}

pub(crate) struct Member {
    /// Who has the same newest secret is in the same control network; who has an older one is heard by mDNS.
    pub(crate) realm: [u8; 32],
    older: Vec<[u8; 32]>,
    /// Records are checked against this on arrival.
    network: NetworkId,
    pub(crate) life: u32,
    pub(crate) peer: PeerId,
    noise: NoisePublic,
    /// Whether it lets others be reached through it.
    pub(crate) serves: bool,
    pub(crate) listening: Vec<SocketAddr>,
    pub(crate) homes: Vec<PeerId>,
    pub(crate) targets: BTreeMap<PeerId, Target>,
    pub(crate) own: Option<Arc<Verified<Record>>>,
    gossiped: bool,
    announced: bool,
    pub(crate) wanted_batches: u8,
    /// Others' newest records, by when they came.
    known: BTreeMap<PeerId, (u64, Arc<Verified<Record>>)>,
    pub(crate) links: BTreeMap<HostId, Link>,
    told: Vec<Met>,
    shard: BTreeMap<[u8; 32], Arc<Verified<Record>>>,
    ledger: Ledger,
    pub(crate) put_due: bool,
    standing_due: bool,
}

impl Model {
    /// A control network without members.
    pub fn new(chance: Chance) -> Self {
        Self { members: BTreeMap::new(), chance, arrivals: 0, lookups: (0, 0) }
    }

    /// A host's process starts its `life`-th life.
    pub fn start(&mut self, host: HostId, life: u32, config: &NodeConfig, unix_now: UnixSeconds) {
        let mut ledger = Ledger::default();
        for bytes in &config.known_statements {
            if let Ok(statement) = Statement::check(bytes, &config.network.id(), unix_now) {
                let _ = ledger.insert(Arc::new(statement));
            }
        }
        let secrets = config.known_secrets.iter().chain([&config.network.secret]);
        let mut realms = secrets.map(|secret| *secret.directory_key());
        let member = Member {
            realm: realms.next().expect("every network has a secret"),
            older: realms.collect(),
            network: config.network.id(),
            life,
            peer: config.key.peer_id(),
            noise: config.key.noise_secret().public(),
            serves: config.relaying.serve,
            listening: Vec::new(),
            homes: Vec::new(),
            targets: BTreeMap::new(),
            own: None,
            gossiped: false,
            announced: false,
            wanted_batches: WANTED_BATCHES,
            known: BTreeMap::new(),
            links: BTreeMap::new(),
            told: Vec::new(),
            shard: BTreeMap::new(),
            ledger,
            put_due: false,
            standing_due: false,
        };
        self.members.insert(host, member);
    }

    /// A host starts its control network and mDNS with another secret, the first of these.
    pub fn rekey(&mut self, host: HostId, secrets: &[NetworkSecret]) -> Agenda {
        let mut agenda = Agenda::default();
        let Some(member) = self.members.get_mut(&host) else { return agenda };
        let mut realms = secrets.iter().map(|secret| *secret.directory_key());
        let Some(realm) = realms.next() else { return agenda };
        (member.realm, member.older) = (realm, realms.collect());
        member.shard.clear();
        (member.gossiped, member.announced, member.wanted_batches) = (false, false, WANTED_BATCHES);
        member.targets.clear();
        for other in member.links.keys().copied().collect::<Vec<_>>() {
            self.unlink(host, other, &mut agenda);
        }
        self.end_circuits(&mut agenda);
        self.standing_changed(host, &mut agenda);
        agenda
    }

    /// A host's process is gone.
    pub fn stop(&mut self, host: HostId) -> Agenda {
        let mut agenda = Agenda::default();
        let others: Vec<_> =
            self.members.get(&host).map(|member| member.links.keys().copied().collect()).unwrap_or_default();
        for other in others {
            self.unlink(host, other, &mut agenda);
        }
        self.members.remove(&host);
        self.end_circuits(&mut agenda);
        agenda
    }

    /// The topology changed: connections whose way is gone will break.
    pub fn review(&mut self, ground: Ground<'_>) -> Agenda {
        let mut agenda = Agenda::default();
        for (&host, member) in &self.members {
            let lost = member.links.keys().filter(|other| host < **other && !self.is_up(host, **other, ground));
            agenda.steps.extend(lost.map(|other| (BREAK_AFTER, Step::Break(host, *other))));
        }
        agenda
    }

    /// A node commands.
    pub fn command(&mut self, host: HostId, command: Command) -> Agenda {
        let mut agenda = Agenda::default();
        let Some(member) = self.members.get_mut(&host) else { return agenda };
        let life = member.life;
        match command {
            Command::Publish(record) => {
                let sequence = record.sequence;
                member.own = Some(Arc::new(*record));
                member.gossiped = false;
                agenda.steps.push((Duration::ZERO, Step::Put(host, life)));
                let (low, high) = REPUBLISH_EVERY;
                agenda.steps.push((self.chance.between(low, high), Step::Republish(host, life, sequence)));
            }
            Command::Lookup { id, key } => {
                let (low, high) = WALK_DELAY;
                agenda.steps.push((self.chance.between(low, high), Step::Answer(host, life, id, key)));
            }
            Command::Dial { peer, endpoints, homes } => self.aim(host, peer, endpoints, homes, &mut agenda),
            Command::Homes(homes) => {
                member.homes = homes;
                self.end_circuits(&mut agenda);
                self.standing_changed(host, &mut agenda);
            }
            Command::State(statement) => {
                if member.ledger.contains(statement.id()) {
                    return agenda;
                }
                self.heed(host, &statement, &mut agenda);
                self.spread(host, &statement, &mut agenda);
            }
            Command::Listening(endpoints) => {
                if member.listening != endpoints || !member.announced {
                    member.listening = endpoints;
                    let first = !member.announced;
                    member.announced = true;
                    if first {
                        agenda.steps.push((Duration::ZERO, Step::Announce(host, life)));
                    } else {
                        agenda.steps.push((Duration::from_millis(100), Step::Announce(host, life)));
                    }
                }
            }
        }
        agenda
    }

    /// A step is due.
    pub fn step(&mut self, step: Step, ground: Ground<'_>) -> Agenda {
        let mut agenda = Agenda::default();
        let topology = ground.topology;
        match step {
            Step::Announce(host, life) if self.lives(host, life) => self.announce(host, topology, &mut agenda),
            Step::Connect(host, life, peer, nth) if self.lives(host, life) => {
                self.connect(host, peer, nth, ground, &mut agenda);
            }
            Step::Put(host, life) if self.lives(host, life) => self.put(host, ground, &mut agenda),
            Step::Republish(host, life, sequence) if self.lives(host, life) => {
                let current = self.members.get(&host).and_then(|member| member.own.as_ref());
                if current.is_some_and(|record| record.sequence == sequence) {
                    let (low, high) = REPUBLISH_EVERY;
                    agenda.steps.push((self.chance.between(low, high), Step::Republish(host, life, sequence)));
                    self.store(host, ground, &mut agenda);
                }
            }
            Step::Answer(host, life, id, key) if self.lives(host, life) => {
                let event = self.answer(host, id, &key, ground);
                agenda.tells.push((Duration::ZERO, host, event));
            }
            Step::Standing(host, life) if self.lives(host, life) => {
                self.tell_standing(host, &mut agenda);
            }
            Step::Break(a, b) if !self.is_up(a, b, ground) => {
                self.unlink(a, b, &mut agenda);
                self.end_circuits(&mut agenda);
            }
            Step::Announce(..)
            | Step::Connect(..)
            | Step::Put(..)
            | Step::Republish(..)
            | Step::Answer(..)
            | Step::Standing(..)
            | Step::Break(..) => (),
        }
        agenda
    }

    /// Hosts with a control connection to `host`.
    pub fn connections(&self, host: HostId) -> usize {
        self.members.get(&host).map_or(0, |member| member.links.len())
    }

    fn lives(&self, host: HostId, life: u32) -> bool {
        self.members.get(&host).is_some_and(|member| member.life == life)
    }

    fn announce(&mut self, host: HostId, topology: &Topology, agenda: &mut Agenda) {
        let life = self.members.get(&host).map_or(0, |member| member.life);
        let (low, high) = ANNOUNCE_EVERY;
        agenda.steps.push((self.chance.between(low, high), Step::Announce(host, life)));
        for other in topology.neighbors(host) {
            // An announcement is also a question: both hear of each other.
            for (speaker, listener) in [(host, other), (other, host)] {
                let Some(sighting) = self.sighting(speaker, listener, topology) else { continue };
                let (low, high) = SIGHTING_DELAY;
                agenda.tells.push((self.chance.between(low, high), listener, Event::Sighting(sighting)));
            }
        }
    }

    fn sighting(&self, speaker: HostId, listener: HostId, topology: &Topology) -> Option<Sighting> {
        let (spoken, heard) = (self.members.get(&speaker)?, self.members.get(&listener)?);
        let stale = spoken.realm != heard.realm;
        if stale && !heard.older.contains(&spoken.realm) || !spoken.announced {
            return None;
        }
        let on_this_lan = topology.heard_by_multicast(listener, speaker);
        let endpoints: Vec<_> =
            spoken.listening.iter().filter(|at| at.port() == PORT && on_this_lan.contains(&at.ip())).copied().collect();
        (!endpoints.is_empty()).then_some(Sighting { peer: spoken.peer, noise: spoken.noise, endpoints, stale })
    }

    /// Two that have just met compare their ledgers.
    pub(crate) fn compare(&mut self, host: HostId, other: HostId, agenda: &mut Agenda) {
        for (one, two) in [(host, other), (other, host)] {
            let Some(theirs) = self.members.get(&two).map(|member| member.ledger.clone()) else { continue };
            for statement in theirs.iter() {
                if self.heed(one, statement, agenda) {
                    agenda.tells.push((CONNECT_DELAY.1, one, Event::Statement(Arc::clone(statement))));
                    self.spread(one, statement, agenda);
                }
            }
        }
    }

    /// A statement reaches a host's directory; returns whether it is news. Who is expelled by it is forgotten and parted from.
    fn heed(&mut self, host: HostId, statement: &Arc<Statement>, agenda: &mut Agenda) -> bool {
        let Some(member) = self.members.get_mut(&host) else { return false };
        let ours = NetworkId::of_root(&statement.chain().root) == member.network;
        if !ours || member.ledger.insert(Arc::clone(statement)) != Ok(true) {
            return false;
        }
        let Member { ledger, known, shard, .. } = member;
        known.retain(|_, (_, record)| ledger.verdict(&record.chain).is_ok());
        shard.retain(|_, record| ledger.verdict(&record.chain).is_ok());
        let others: Vec<_> = member.links.keys().copied().collect();
        for other in others.into_iter().filter(|other| self.expels(host, *other)).collect::<Vec<_>>() {
            let expelled = self.members.get(&other).map(|member| member.peer);
            if let (Some(member), Some(expelled)) = (self.members.get_mut(&host), expelled) {
                member.targets.remove(&expelled);
            }
            self.unlink(host, other, agenda);
        }
        self.end_circuits(agenda);
        true
    }

    /// Gossips a statement, from hop to hop.
    fn spread(&mut self, host: HostId, statement: &Arc<Statement>, agenda: &mut Agenda) {
        let mut queue: VecDeque<_> = [(host, 0)].into();
        while let Some((at, hops)) = queue.pop_front() {
            let next: Vec<_> = self.members.get(&at).map(|m| m.links.keys().copied().collect()).unwrap_or_default();
            for other in next {
                if self.heed(other, statement, agenda) {
                    let (low, high) = GOSSIP_HOP;
                    let delay = self.chance.between(low * (hops + 1), high * (hops + 1));
                    agenda.tells.push((delay, other, Event::Statement(Arc::clone(statement))));
                    queue.push_back((other, hops + 1));
                }
            }
        }
    }

    /// Whether one host's directory knows that the member at the other is none any more.
    pub(crate) fn expels(&self, host: HostId, other: HostId) -> bool {
        let (Some(member), Some(other)) = (self.members.get(&host), self.members.get(&other)) else { return false };
        other.own.as_ref().is_some_and(|record| member.ledger.verdict(&record.chain).is_err())
    }

    /// `asker` proves its membership to `asked`, who does the same and tells whom it knows if that is wanted.
    pub(crate) fn say_hello(&mut self, asker: HostId, asked: HostId, unix_now: UnixSeconds, agenda: &mut Agenda) {
        let Some(newcomer) = self.members.get_mut(&asker) else { return };
        let count = if newcomer.wanted_batches > 0 { BATCH } else { 0 };
        newcomer.wanted_batches = newcomer.wanted_batches.saturating_sub(1);
        let Some(member) = self.members.get(&asked) else { return };
        let mut known: Vec<_> = member.known.values().filter(|(_, record)| !record.has_expired(unix_now)).collect();
        known.sort_unstable_by_key(|(arrival, _)| std::cmp::Reverse(*arrival));
        let others = known.into_iter().map(|(_, record)| record).take(count);
        let batch: Vec<_> = member.own.iter().chain(others).cloned().collect();
        let (low, high) = CONNECT_DELAY;
        let delay = self.chance.between(low, high);
        for record in batch {
            self.tell(asker, &record, delay, agenda);
        }
    }

    /// A record reaches a host: news for its node, or not.
    fn tell(&mut self, host: HostId, record: &Arc<Verified<Record>>, delay: Duration, agenda: &mut Agenda) {
        if !self.accepts(host, record) {
            return;
        }
        self.arrivals += 1;
        let Some(member) = self.members.get_mut(&host).filter(|member| member.peer != record.peer()) else { return };
        if member.known.get(&record.peer()).is_none_or(|(_, held)| held.sequence < record.sequence) {
            member.known.insert(record.peer(), (self.arrivals, Arc::clone(record)));
            agenda.tells.push((delay, host, Event::Gossip(Verified::clone(record))));
        }
    }

    pub(crate) fn standing_changed(&mut self, host: HostId, agenda: &mut Agenda) {
        if let Some(member) = self.members.get_mut(&host)
            && !member.standing_due
        {
            member.standing_due = true;
            agenda.steps.push((STANDING_EVERY, Step::Standing(host, member.life)));
        }
    }

    fn tell_standing(&mut self, host: HostId, agenda: &mut Agenda) {
        let reserved = self.reservations(host).count();
        let met: Vec<_> = self.met(host).collect();
        let Some(member) = self.members.get_mut(&host) else { return };
        member.standing_due = false;
        let standing = Standing {
            connections: member.links.len(),
            routing_peers: member.links.len(),
            shard_records: member.shard.len(),
            circuits: member.links.values().filter(|link| !link.is_met()).count(),
            reserved,
            carried: 0,
            refused: Vec::new(),
        };
        agenda.tells.push((Duration::ZERO, host, Event::Standing(standing)));
        if met != member.told {
            member.told.clone_from(&met);
            agenda.tells.push((Duration::ZERO, host, Event::Met(met)));
        }
    }

    fn put(&mut self, host: HostId, ground: Ground<'_>, agenda: &mut Agenda) {
        self.store(host, ground, agenda);
        let Some(member) = self.members.get_mut(&host) else { return };
        member.put_due = false;
        let Some(record) = member.own.clone().filter(|_| !member.gossiped) else { return };
        // Publishing fails while nobody is subscribed; the first connection brings another put.
        member.gossiped = !member.links.is_empty();
        for (other, hops) in self.component(host, ground) {
            let (low, high) = GOSSIP_HOP;
            let delay = self.chance.between(low * hops, high * hops);
            self.tell(other, &record, delay, agenda);
        }
    }

    /// Whether `host` lets a record in: a swarm verifies what it receives.
    fn accepts(&self, host: HostId, record: &Verified<Record>) -> bool {
        self.members.get(&host).is_some_and(|member| {
            member.network == NetworkId::of_root(&record.chain.root) && member.ledger.verdict(&record.chain).is_ok()
        })
    }

    /// Puts the host's record into the shards nearest to each of its keys.
    fn store(&mut self, host: HostId, ground: Ground<'_>, agenda: &mut Agenda) {
        let unix_now = ground.unix;
        let Some((record, realm)) = self.members.get(&host).and_then(|m| Some((m.own.clone()?, m.realm))) else {
            return;
        };
        let reached = self.within_reach(host, ground);
        for key in record.lookup_keys() {
            let at = key.directory_key(&realm);
            for other in self
                .nearest(&reached, &at)
                .into_iter()
                .filter(|other| self.accepts(*other, &record))
                .collect::<Vec<_>>()
            {
                let Some(member) = self.members.get_mut(&other) else { continue };
                let held = member.shard.get(&at).filter(|held| !held.has_expired(unix_now));
                let better = held.is_none_or(|held| {
                    if held.peer() == record.peer() {
                        record.sequence >= held.sequence
                    } else {
                        record.wins_over(held, &key)
                    }
                });
                if better {
                    member.shard.insert(at, Arc::clone(&record));
                    self.tell(other, &record, Duration::ZERO, agenda);
                }
            }
        }
    }

    fn answer(&mut self, host: HostId, id: QueryId, key: &LookupKey, ground: Ground<'_>) -> Event {
        let unix_now = ground.unix;
        let realm = self.members.get(&host).map_or([0; 32], |member| member.realm);
        let at = key.directory_key(&realm);
        let reached = self.within_reach(host, ground);
        let mut best: Option<Arc<Verified<Record>>> = None;
        let mut holders = Vec::new();
        for other in self.nearest(&reached, &at) {
            let Some(member) = self.members.get(&other) else { continue };
            let Some(record) = member.shard.get(&at).filter(|record| !record.has_expired(unix_now)) else { continue };
            holders.push(member.peer);
            let better = best.as_ref().is_none_or(|best| {
                if best.peer() == record.peer() { record.sequence > best.sequence } else { record.wins_over(best, key) }
            });
            if better {
                best = Some(Arc::clone(record));
            }
        }
        match best {
            Some(record) => {
                self.lookups.0 += 1;
                Event::Found { id, record: Verified::clone(&record), holders }
            }
            None => {
                self.lookups.1 += 1;
                Event::NotFound { id }
            }
        }
    }

    /// The hosts that control messages reach from `host`, with the number of hops; itself first.
    fn component(&self, host: HostId, ground: Ground<'_>) -> Vec<(HostId, u32)> {
        let mut found = vec![(host, 0)];
        let mut seen = BTreeSet::from([host]);
        let mut queue = VecDeque::from([(host, 0)]);
        while let Some((at, hops)) = queue.pop_front() {
            let Some(member) = self.members.get(&at) else { continue };
            for &next in member.links.keys() {
                if !seen.contains(&next) && self.is_up(at, next, ground) {
                    seen.insert(next);
                    found.push((next, hops + 1));
                    queue.push_back((next, hops + 1));
                }
            }
        }
        found
    }

    /// The hosts whose shards `host` can ask: it hears of them by others, and a connection is there or can be made.
    fn within_reach(&self, host: HostId, ground: Ground<'_>) -> Vec<HostId> {
        let heard_of = self.component(host, ground).into_iter().map(|(other, _)| other);
        heard_of.filter(|other| *other == host || self.reaches(host, *other, ground)).collect()
    }

    fn nearest(&self, hosts: &[HostId], key: &[u8; 32]) -> Vec<HostId> {
        if hosts.len() <= REPLICAS {
            return hosts.to_vec();
        }
        let distance = |host: &HostId| {
            let peer = self.members.get(host).map_or([0; 32], |member| member.peer.0);
            let mut distance = [0; 32];
            for (byte, (a, b)) in distance.iter_mut().zip(key.iter().zip(peer)) {
                *byte = a ^ b;
            }
            distance
        };
        let mut sorted: Vec<_> = hosts.iter().map(|host| (distance(host), *host)).collect();
        sorted.sort_unstable();
        sorted.into_iter().take(REPLICAS).map(|(_, host)| host).collect()
    }
}
