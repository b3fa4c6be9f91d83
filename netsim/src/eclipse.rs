//! A DHT with colluding members in it: how many of them hide a record from those who look it up?
//!
//! Members join one after another, fill their routing tables as the swarm does, publish under their real keys, and look each other up. A
//! colluder keeps no record and tells the truth to nobody; it knows all the others of its kind, answers faster than anybody, and dials
//! every newcomer at once for a place in its table. What it cannot do is have two places (its certificate is for one key) or forge a
//! record (those are verified). Only Kademlia is measured: what gossip has told a node already is not looked up in vain.

use std::collections::BTreeSet;
use std::time::Duration;

use meshd::dht::LookupKey;
use meshd::identity::{
    Mac, Name, NetworkId, NetworkSecret, PeerId, SigningKey, automatic_ipv4, default_prefix, ula_address,
};

use crate::kademlia::{self, Contact, K, Key, Outcome, Parameters, Reply, Table, bucket, nearest, search};
use crate::seed::{Chance, Seed};

/// What the swarm does: `kademlia` in `src/dht/swarm/behaviour.rs`, `route` in `peers.rs`, `start_puts` in `records.rs`.
pub const OURS: Parameters =
    Parameters { parallelism: 8, disjoint: true, replication: K, by_lot: true, put_to_found: true };

/// What libp2p does if nobody tells it otherwise.
pub const PLAIN: Parameters =
    Parameters { parallelism: 3, disjoint: false, replication: K, by_lot: false, put_to_found: false };

/// Members through whom a newcomer joins: an invite's endpoints, mDNS. As many are asked for records (`WANTED_BATCHES`).
const CONTACTS: usize = 3;

/// Of those whom one contact names, how many the newcomer dials: it has 64 targets (`MAX_TARGETS`), and three contacts.
const DIALLED: usize = 21;

/// A round trip to an honest member, somewhere in the world. A colluder is always near.
const ROUND_TRIP: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
const COLLUDERS_ROUND_TRIP: Duration = Duration::from_millis(5);

/// How long a lookup and a search may take: `LOOKUP_TIMEOUT` and `QUERY_TIMEOUT` of the swarm.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
const SEARCH_LIMIT: Duration = Duration::from_secs(30);

/// How many of its first bits a made-up member has in common with what is looked for: whoever has tried 2²⁴ keys at
/// home has names for members nearer to anything than any real one.
const MADE_UP_BITS: u32 = 24;

/// Keys that colluders try before they ask for their invites, if they want places near one record. Two seconds' work; more would not
/// help, for then all of them are nearer to it than any honest member.
const TRIES: usize = 1 << 16;

/// What colluders do when they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Name the nearest of their own, at once.
    NameEachOther,
    /// Nothing: whoever asks waits.
    SayNothing,
    /// Name members that do not exist, nearer than anybody, at addresses where nobody answers.
    MakeUpMembers,
}

impl Conduct {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NameEachOther, Self::SayNothing, Self::MakeUpMembers];
}

/// A network to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Everybody, colluders included.
    pub members: usize,
    /// How many of them collude.
    pub colluders: usize,
    /// What these do.
    pub conduct: Conduct,
    /// What everybody else does.
    pub parameters: Parameters,
    /// How many members' records are published and looked up, each under its four keys.
    pub records: usize,
    /// How many members look each key up.
    pub seekers: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Keys published.
    pub keys: usize,
    /// Copies that honest members keep of them.
    pub copies: usize,
    /// Lookups made, each of one key by one honest member without a copy of its own.
    pub lookups: usize,
    /// Lookups that found nothing.
    pub hidden: usize,
    /// Requests that they made.
    pub requests: usize,
    /// Places in honest members' tables.
    pub places: usize,
    /// Those that colluders have.
    pub taken: usize,
}

impl Measured {
    /// Hidden lookups in a thousand, rounded up: none is none.
    pub fn hidden_per_mille(&self) -> usize {
        (1000 * self.hidden).div_ceil(self.lookups.max(1))
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            copies: self.copies + other.copies,
            lookups: self.lookups + other.lookups,
            hidden: self.hidden + other.hidden,
            requests: self.requests + other.requests,
            places: self.places + other.places,
            taken: self.taken + other.taken,
        }
    }
}

struct Member {
    peer: PeerId,
    contact: Contact,
    colludes: bool,
    table: Table,
    holds: BTreeSet<Key>,
}

/// The network.
pub struct Eclipse {
    setup: Setup,
    network: NetworkId,
    directory_key: [u8; 32],
    /// Colluders first.
    members: Vec<Member>,
    joined: Vec<u32>,
    /// Those who have joined.
    colluders: Vec<Contact>,
    chance: Chance,
}

impl Eclipse {
    /// A network whose members have the places of chance: their keys were made when they joined.
    pub fn by_chance(setup: Setup, seed: Seed) -> Self {
        let mut world = Self::empty(setup, seed);
        let peers = (0..setup.members).map(|_| world.random_peer()).collect();
        world.gather(peers);
        world
    }

    /// A network whose colluders have tried many keys before they joined, and taken those with the places nearest to the
    /// first honest member's MAC. Measure it with [`Eclipse::measure_one`].
    pub fn around_one(setup: Setup, seed: Seed) -> Self {
        let mut world = Self::empty(setup, seed);
        let honest: Vec<_> = (setup.colluders..setup.members).map(|_| world.random_peer()).collect();
        let victim = honest.first().map(|peer| world.keys_of(peer, setup.colluders)[0]).unwrap_or_default();
        let mut tried: Vec<_> = (0..TRIES).map(|_| world.random_peer()).collect();
        tried.sort_by_cached_key(|peer| kademlia::place(peer) ^ victim);
        tried.truncate(setup.colluders);
        world.gather(tried.into_iter().chain(honest).collect());
        world
    }

    fn empty(setup: Setup, seed: Seed) -> Self {
        let mut chance = seed.chance("eclipse");
        let root = SigningKey::from_seed(&chance.bytes()).peer_id();
        let directory_key = *NetworkSecret::new(chance.bytes()).directory_key();
        Self {
            setup,
            network: NetworkId::of_root(&root),
            directory_key,
            members: Vec::new(),
            joined: Vec::new(),
            colluders: Vec::new(),
            chance,
        }
    }

    /// Lets everybody join, in an order of chance. When all are there, tables are refreshed once more.
    fn gather(&mut self, peers: Vec<PeerId>) {
        for (index, peer) in peers.into_iter().enumerate() {
            let contact = Contact { key: kademlia::place(&peer), node: Some(index as u32) };
            let table = Table::new(contact.key, self.random_key());
            let colludes = index < self.setup.colluders;
            self.members.push(Member { peer, contact, colludes, table, holds: BTreeSet::new() });
        }
        let mut order: Vec<u32> = (0..self.members.len() as u32).collect();
        self.shuffle(&mut order);
        for newcomer in &order {
            self.join(*newcomer);
        }
        for node in order {
            self.bootstrap(node);
        }
    }

    /// Publishes, and looks up.
    pub fn measure(&mut self) -> Measured {
        let mut publishers: Vec<u32> = (self.setup.colluders as u32..self.members.len() as u32).collect();
        self.shuffle(&mut publishers);
        publishers.truncate(self.setup.records);
        let keys = |world: &Self, publisher: u32| world.keys_of(&world.of(publisher).peer, publisher as usize);
        let all: Vec<_> = publishers.iter().flat_map(|who| keys(self, *who).map(|key| (*who, key))).collect();
        self.measure_keys(&all)
    }

    /// Publishes and looks up only the MAC of the first honest member, and has colluders behave in this way meanwhile.
    pub fn measure_one(&mut self, conduct: Conduct) -> Measured {
        self.setup.conduct = conduct;
        for member in &mut self.members {
            member.holds.clear();
        }
        let victim = self.setup.colluders;
        let key = self.keys_of(&self.members[victim].peer, victim)[0];
        self.measure_keys(&[(victim as u32, key)])
    }

    fn measure_keys(&mut self, keys: &[(u32, Key)]) -> Measured {
        let mut measured = Measured { keys: keys.len(), ..Measured::default() };
        for (publisher, key) in keys {
            measured.copies += self.publish(*publisher, *key);
        }
        for (publisher, key) in keys {
            for _ in 0..self.setup.seekers {
                let Some(seeker) = self.seeker(*publisher, *key) else { continue };
                let outcome = self.search(seeker, *key, LOOKUP_LIMIT, true);
                measured.lookups += 1;
                measured.hidden += usize::from(outcome.found.is_none());
                measured.requests += outcome.requests;
            }
        }
        for member in self.members.iter().filter(|member| !member.colludes) {
            measured.places += member.table.iter().count();
            measured.taken += member.table.iter().filter(|known| self.colludes(known)).count();
        }
        measured
    }

    /// A newcomer meets its contacts. Gossip tells colluders of it and they dial it; it dials those whom its contacts name, honest ones by
    /// lot, colluders each other. Then it searches.
    fn join(&mut self, newcomer: u32) {
        let contacts: Vec<u32> = (0..CONTACTS).filter_map(|_| self.one_of_all()).collect();
        for contact in &contacts {
            self.meet(newcomer, *contact);
        }
        if self.of(newcomer).colludes {
            for other in self.joined.clone() {
                self.meet(newcomer, other);
            }
            self.colluders.push(self.of(newcomer).contact);
        } else {
            for colluder in self.colluders.clone() {
                self.meet_contact(newcomer, &colluder);
            }
            for contact in contacts {
                for _ in 0..DIALLED {
                    if self.of(contact).colludes {
                        let named = self.colluders[self.chance.below(self.colluders.len() as u64) as usize];
                        self.meet_contact(newcomer, &named);
                    } else if let Some(named) = self.one_of_all() {
                        self.meet(newcomer, named);
                    }
                }
            }
        }
        self.joined.push(newcomer);
        self.bootstrap(newcomer);
    }

    /// Searches for itself, and for something in each bucket beyond its nearest neighbour's, as libp2p does: it draws sixteen keys at most
    /// for each, so of the nearer buckets not all are hit.
    fn bootstrap(&mut self, node: u32) {
        if self.of(node).colludes {
            return;
        }
        let own = self.of(node).contact.key;
        self.explore(node, own);
        let Some(first) = self.of(node).table.first_bucket() else { return };
        for wanted in first + 1..Key::BITS as usize {
            let mut target = self.random_key();
            for _ in 0..16 {
                if bucket(own, target) == Some(wanted) {
                    break;
                }
                target = self.random_key();
            }
            self.explore(node, target);
        }
    }

    /// Searches, and meets whoever has answered.
    fn explore(&mut self, node: u32, target: Key) -> Outcome {
        let outcome = self.search(node, target, SEARCH_LIMIT, false);
        for met in &outcome.met {
            self.meet_contact(node, met);
        }
        outcome
    }

    fn meet_contact(&mut self, node: u32, other: &Contact) {
        if let Some(other) = other.node {
            self.meet(node, other);
        }
    }

    /// Two have a connection and have proved themselves: each gets its place in the other's table.
    fn meet(&mut self, one: u32, two: u32) {
        for (node, other) in [(one, two), (two, one)] {
            let contact = self.of(other).contact;
            let by_lot = self.setup.parameters.by_lot;
            self.members[node as usize].table.enter(contact, by_lot);
        }
    }

    /// Puts a record under `key`; returns how many honest members keep it.
    fn publish(&mut self, publisher: u32, key: Key) -> usize {
        let Parameters { replication, put_to_found, .. } = self.setup.parameters;
        let outcome = self.explore(publisher, key);
        let mut to = if outcome.finished || put_to_found { outcome.closest } else { Vec::new() };
        // The nearest of our own table get a copy as well, if the search did not bring them one.
        to.extend(self.of(publisher).table.closest(key, replication));
        let mut copies = 0;
        for holder in to.iter().filter_map(|contact| contact.node).collect::<BTreeSet<_>>() {
            let member = &mut self.members[holder as usize];
            // Copies where nobody would look for them are swept out.
            if !member.colludes && member.table.nearer(key) < 2 * replication {
                member.holds.insert(key);
                copies += 1;
            }
        }
        copies
    }

    fn search(&mut self, node: u32, target: Key, limit: Duration, wants_record: bool) -> Outcome {
        let start = self.of(node).table.closest(target, K);
        let parameters = self.setup.parameters;
        search(&parameters, target, &start, limit, |asked| self.answer(node, asked, target, wants_record))
    }

    fn answer(&mut self, asker: u32, asked: Contact, target: Key, wants_record: bool) -> Reply {
        let Some(node) = asked.node else { return Reply::Silence };
        let others = |contact: &Contact| contact.node != Some(asker);
        let member = self.of(node);
        if !member.colludes {
            let closer = member.table.closest(target, K + 1).into_iter().filter(others).take(K).collect();
            let gives = wants_record && member.holds.contains(&target);
            return Reply::Answer(self.chance.between(ROUND_TRIP.0, ROUND_TRIP.1), closer, gives);
        }
        match self.setup.conduct {
            Conduct::SayNothing => Reply::Silence,
            Conduct::NameEachOther => {
                let named = nearest(self.colluders.iter().copied().filter(others), target, K);
                Reply::Answer(COLLUDERS_ROUND_TRIP, named, false)
            }
            Conduct::MakeUpMembers => {
                let made_up = |_| Contact { key: target ^ (self.random_key() >> MADE_UP_BITS), node: None };
                Reply::Answer(COLLUDERS_ROUND_TRIP, (0..K).map(made_up).collect(), false)
            }
        }
    }

    /// An honest member without a copy. Whoever has one need not search, and there are always some without.
    fn seeker(&mut self, publisher: u32, key: Key) -> Option<u32> {
        for _ in 0..1000 {
            let seeker = self.one_of_all()?;
            let member = self.of(seeker);
            if !member.colludes && seeker != publisher && !member.holds.contains(&key) {
                return Some(seeker);
            }
        }
        None
    }

    /// Where a member's record is kept: under its MAC, its two addresses and its name.
    fn keys_of(&self, peer: &PeerId, number: usize) -> [Key; 4] {
        let mac = Mac::automatic(&self.network, peer);
        let prefix = default_prefix(&self.network);
        let name: Name = format!("member-{number}").parse().expect("a short name of letters and digits");
        [
            LookupKey::Mac(mac),
            LookupKey::Ip(automatic_ipv4(&self.network, peer, &prefix, 0).into()),
            LookupKey::Ip(ula_address(&self.network, &mac).into()),
            LookupKey::Name(name),
        ]
        .map(|key| kademlia::target(&key.directory_key(&self.directory_key)))
    }

    fn of(&self, node: u32) -> &Member {
        &self.members[node as usize]
    }

    fn colludes(&self, contact: &Contact) -> bool {
        contact.node.is_some_and(|node| self.of(node).colludes)
    }

    fn one_of_all(&mut self) -> Option<u32> {
        let count = self.joined.len() as u64;
        (count > 0).then(|| self.joined[self.chance.below(count) as usize])
    }

    fn random_peer(&mut self) -> PeerId {
        SigningKey::from_seed(&self.chance.bytes()).peer_id()
    }

    fn random_key(&mut self) -> Key {
        let bytes = self.chance.bytes();
        Key::from_be_bytes(std::array::from_fn(|index| bytes[index]))
    }

    fn shuffle(&mut self, order: &mut [u32]) {
        for index in (1..order.len()).rev() {
            order.swap(index, self.chance.below(index as u64 + 1) as usize);
        }
    }
}
