//! Kademlia as our swarm runs it: routing tables and searches of libp2p-kad 0.49, without libp2p and in virtual time.
//!
//! libp2p reads clocks and draws its own randomness, so a thousand nodes of it are neither quick nor the same twice. Modelled is what
//! decides who finds whom: buckets of k, searches that wait for `parallelism` answers at once and end when the k
//! nearest have answered, disjoint paths (S/Kademlia, Baumgart and Mies 2007) which share nothing but where they begin, and
//! ten seconds for each peer that is silent. Distances are those of the first 128 bits of the keys: nothing here comes nearer.

use std::collections::BTreeMap;
use std::time::Duration;

use meshd::dht::directory::{self, DirectoryKey};
use meshd::identity::PeerId;

/// Kademlia's k, which libp2p has fixed: the places of a bucket, and the peers named in one answer.
pub const K: usize = 20;

/// How long a silent peer is waited for. A dial, a stream and a query's peer have ten seconds each: `SETUP_TIMEOUT` of ours, and
/// two constants of libp2p's.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A place in the DHT: the first 128 bits of a SHA-256.
pub type Key = u128;

/// Where a member has its place: its peer id is that of the key in its certificate, so one certificate is one place.
pub fn place(peer: &PeerId) -> Key {
    head(directory::place(peer))
}

/// Where a record is kept.
pub fn target(key: &DirectoryKey) -> Key {
    head(directory::target(key))
}

fn head(hash: [u8; 32]) -> Key {
    hash.into_iter().take(16).fold(0, |key, byte| key << 8 | Key::from(byte))
}

/// How a node searches, publishes and fills its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Requests that one path has under way: α. Of disjoint paths there are as many.
    pub parallelism: usize,
    /// Whether a search takes disjoint paths.
    pub disjoint: bool,
    /// Copies of a record, and peers that a search ends with.
    pub replication: usize,
    /// Whether the lot decides who has a place in a full bucket. Otherwise who came first stays.
    pub by_lot: bool,
    /// Whether a put whose search did not end in time goes to those whom it has found. Otherwise to nobody.
    pub put_to_found: bool,
}

/// A peer that somebody has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Its place.
    pub key: Key,
    /// Its number, unless it was made up.
    pub node: Option<u32>,
}

/// A routing table.
#[derive(Debug, Clone)]
pub struct Table {
    own: Key,
    /// Nobody else knows it, so nobody can choose a place that wins.
    lot: Key,
    /// Bucket `n` has those at a distance of 2ⁿ to 2ⁿ⁺¹.
    buckets: Vec<Vec<Contact>>,
}

impl Table {
    /// The empty table of the node at `own`; `lot` is a secret of its own.
    pub fn new(own: Key, lot: Key) -> Self {
        Self { own, lot, buckets: vec![Vec::new(); Key::BITS as usize] }
    }

    /// Enters a peer that was met. Of a full bucket the first comers stay (libp2p dials the one that it would drop, and
    /// nobody dies here), or those whom the lot prefers.
    pub fn enter(&mut self, contact: Contact, by_lot: bool) {
        let Some(index) = bucket(self.own, contact.key) else { return };
        let lot = self.lot;
        let bucket = &mut self.buckets[index];
        if bucket.contains(&contact) {
            return;
        }
        if bucket.len() < K {
            bucket.push(contact);
        } else if by_lot
            && let Some(last) = bucket.iter_mut().max_by_key(|entry| draw(lot, entry.key))
            && draw(lot, contact.key) < draw(lot, last.key)
        {
            *last = contact;
        }
    }

    /// The `count` nearest to `target`, nearest first. Whoever is in the bucket of `target` is nearer than all others, the buckets
    /// below come next, then those above, one by one.
    pub fn closest(&self, target: Key, count: usize) -> Vec<Contact> {
        let at = bucket(self.own, target).unwrap_or_default();
        let mut near = self.buckets[at].clone();
        if near.len() < count {
            let first = self.first_bucket().unwrap_or(at).min(at);
            near.extend(self.buckets[first..at].iter().flatten());
        }
        for farther in &self.buckets[at + 1..] {
            if near.len() >= count {
                break;
            }
            near.extend(farther);
        }
        nearest(near.into_iter(), target, count)
    }

    /// How many of those known are nearer to `target` than we.
    pub fn nearer(&self, target: Key) -> usize {
        let distance = self.own ^ target;
        self.iter().filter(|entry| entry.key ^ target < distance).count()
    }

    /// The bucket of the nearest neighbour, if there is one.
    pub fn first_bucket(&self) -> Option<usize> {
        self.buckets.iter().position(|bucket| !bucket.is_empty())
    }

    /// Everybody known.
    pub fn iter(&self) -> impl Iterator<Item = &Contact> {
        self.buckets.iter().flatten()
    }
}

/// The lot of `key`: any function that nobody can foresee without the secret would do (the multipliers are those of splitmix64,
/// Steele, Lea and Flood 2014).
fn draw(lot: Key, key: Key) -> u64 {
    let mut mixed = ((lot ^ key) >> 64) as u64;
    for word in [(lot ^ key) as u64, lot as u64, (lot >> 64) as u64] {
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ word;
    }
    mixed ^ mixed >> 31
}

/// The bucket of `other` in the table of `own`; `None` for itself.
pub fn bucket(own: Key, other: Key) -> Option<usize> {
    (own ^ other).checked_ilog2().map(|bucket| bucket as usize)
}

/// The `count` nearest to `target`, nearest first.
pub fn nearest(contacts: impl Iterator<Item = Contact>, target: Key, count: usize) -> Vec<Contact> {
    let mut near: Vec<_> = contacts.collect();
    if near.len() > count {
        near.select_nth_unstable_by_key(count, |contact| contact.key ^ target);
        near.truncate(count);
    }
    near.sort_unstable_by_key(|contact| contact.key ^ target);
    near
}

/// What a peer makes of a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// It answers, after so long: whom it knows, and whether it gives the record.
    Answer(Duration, Vec<Contact>, bool),
    /// It does not, or cannot be reached at all.
    Silence,
}

/// How a search ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Who first gave the record, if that was looked for.
    pub found: Option<Contact>,
    /// Who has answered, in that order.
    pub met: Vec<Contact>,
    /// The nearest that have answered, of all paths, nearest first.
    pub closest: Vec<Contact>,
    /// Whether the search was done; otherwise its time was up.
    pub finished: bool,
    /// Requests made.
    pub requests: usize,
    /// How long it took.
    pub took: Duration,
}

/// Searches from `start` towards `target` for at most `limit`, and stops at the first record.
pub fn search(
    parameters: &Parameters,
    target: Key,
    start: &[Contact],
    limit: Duration,
    mut ask: impl FnMut(Contact) -> Reply,
) -> Outcome {
    let mut search = Search::new(parameters, target, start);
    let mut outcome = Outcome::default();
    let mut under_way: BTreeMap<(Duration, usize), (Contact, Reply)> = BTreeMap::new();
    let mut now = Duration::ZERO;
    loop {
        outcome.finished = loop {
            match search.next() {
                Next::Ask(contact) => {
                    let reply = ask(contact);
                    let at = now + if let Reply::Answer(after, ..) = &reply { *after } else { PATIENCE };
                    under_way.insert((at, outcome.requests), (contact, reply));
                    outcome.requests += 1;
                }
                Next::Wait => break false,
                Next::Finished => break true,
            }
        };
        let next = under_way.pop_first().filter(|((at, _), _)| *at < limit && !outcome.finished);
        let Some(((at, _), (contact, reply))) = next else { break };
        now = at;
        match reply {
            Reply::Answer(_, closer, gives) => {
                outcome.met.push(contact);
                if gives {
                    outcome.found = Some(contact);
                    break;
                }
                search.answered(contact, &closer);
            }
            Reply::Silence => search.failed(contact),
        }
    }
    outcome.took = if outcome.finished || outcome.found.is_some() { now } else { limit };
    outcome.closest = search.closest();
    outcome
}

/// What a search wants next.
enum Next {
    Ask(Contact),
    Wait,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Waiting,
    Answered,
    Failed,
}

/// One or more paths, each peer asked once and for one of them.
struct Search {
    paths: Vec<Path>,
    turn: usize,
    /// For which path a peer was asked, and what came of it.
    asked: BTreeMap<Key, (usize, State)>,
    target: Key,
}

impl Search {
    fn new(parameters: &Parameters, target: Key, start: &[Contact]) -> Self {
        let count = if parameters.disjoint { parameters.parallelism } else { 1 };
        let path = Path::new(parameters, target, start);
        Self { paths: vec![path; count], turn: 0, asked: BTreeMap::new(), target }
    }

    /// The paths take turns. A peer that another path has asked already counts with its outcome, but tells this one nothing.
    fn next(&mut self) -> Next {
        let mut finished = true;
        for _ in 0..self.paths.len() {
            let turn = self.turn;
            self.turn = (turn + 1) % self.paths.len();
            let path = &mut self.paths[turn];
            loop {
                match path.next() {
                    Next::Ask(contact) => match self.asked.get(&contact.key) {
                        Some((_, State::Answered)) => path.answered(contact, &[]),
                        Some((_, State::Failed)) => path.failed(contact),
                        Some((_, State::New | State::Waiting)) => {}
                        None => {
                            self.asked.insert(contact.key, (turn, State::Waiting));
                            return Next::Ask(contact);
                        }
                    },
                    Next::Wait => {
                        finished = false;
                        break;
                    }
                    Next::Finished => break,
                }
            }
        }
        if finished { Next::Finished } else { Next::Wait }
    }

    fn answered(&mut self, contact: Contact, closer: &[Contact]) {
        let Some((asker, state)) = self.asked.get_mut(&contact.key) else { return };
        *state = State::Answered;
        for (path, of) in self.paths.iter_mut().enumerate() {
            of.answered(contact, if path == *asker { closer } else { &[] });
        }
    }

    fn failed(&mut self, contact: Contact) {
        if let Some((_, state)) = self.asked.get_mut(&contact.key) {
            *state = State::Failed;
        }
        for path in &mut self.paths {
            path.failed(contact);
        }
    }

    /// What all paths have ended with: more than were wanted, if some were led astray.
    fn closest(&self) -> Vec<Contact> {
        let mut found = BTreeMap::new();
        for path in &self.paths {
            found.extend(path.closest().map(|contact| (contact.key ^ self.target, contact)));
        }
        found.into_values().collect()
    }
}

/// Somebody that a path has heard of, at a distance from the target.
#[derive(Clone, Copy)]
struct Heard {
    distance: Key,
    node: Option<u32>,
    state: State,
}

/// One path: everybody heard of, nearest first.
#[derive(Clone)]
struct Path {
    parallelism: usize,
    wanted: usize,
    target: Key,
    heard: Vec<Heard>,
    waiting: usize,
    /// Answers in a row that named nobody new among the nearest. After `parallelism` of them all of the nearest are asked at once.
    idle: usize,
    stalled: bool,
    finished: bool,
}

impl Path {
    fn new(parameters: &Parameters, target: Key, start: &[Contact]) -> Self {
        let start = nearest(start.iter().copied(), target, K);
        let heard = |contact: Contact| Heard { distance: contact.key ^ target, node: contact.node, state: State::New };
        Self {
            parallelism: parameters.parallelism,
            wanted: parameters.replication,
            target,
            heard: start.into_iter().map(heard).collect(),
            waiting: 0,
            idle: 0,
            stalled: false,
            finished: false,
        }
    }

    fn next(&mut self) -> Next {
        if self.finished {
            return Next::Finished;
        }
        let allowed = if self.stalled { self.wanted.max(self.parallelism) } else { self.parallelism };
        let full = self.waiting >= allowed;
        let (mut answers, mut all_answered) = (0, true);
        for heard in &mut self.heard {
            match heard.state {
                State::New | State::Waiting if full => return Next::Wait,
                State::New => {
                    heard.state = State::Waiting;
                    self.waiting += 1;
                    return Next::Ask(Contact { key: heard.distance ^ self.target, node: heard.node });
                }
                State::Waiting => all_answered = false,
                State::Answered if all_answered => {
                    answers += 1;
                    if answers >= self.wanted {
                        self.finished = true;
                        return Next::Finished;
                    }
                }
                State::Answered | State::Failed => {}
            }
        }
        self.finished = self.waiting == 0;
        if self.finished { Next::Finished } else { Next::Wait }
    }

    fn answered(&mut self, contact: Contact, closer: &[Contact]) {
        if !self.settle(contact, State::Answered) {
            return;
        }
        let range = self.heard.get(self.wanted - 1).or(self.heard.last()).map_or(0, |heard| heard.distance);
        let mut progress = self.heard.len() < self.wanted;
        for Contact { key, node } in closer {
            let distance = key ^ self.target;
            if let Err(at) = self.at(distance) {
                self.heard.insert(at, Heard { distance, node: *node, state: State::New });
                progress |= distance < range;
            }
        }
        self.idle = if progress { 0 } else { self.idle + 1 };
        self.stalled = !progress && (self.stalled || self.idle >= self.parallelism);
    }

    fn failed(&mut self, contact: Contact) {
        self.settle(contact, State::Failed);
    }

    /// Notes what came of a request; whether this path had waited for it.
    fn settle(&mut self, contact: Contact, outcome: State) -> bool {
        let at = self.at(contact.key ^ self.target);
        let Some(heard) = at.ok().and_then(|at| self.heard.get_mut(at)) else { return false };
        let waited = heard.state == State::Waiting && !self.finished;
        if waited {
            heard.state = outcome;
            self.waiting -= 1;
        }
        waited
    }

    fn at(&self, distance: Key) -> Result<usize, usize> {
        self.heard.binary_search_by_key(&distance, |heard| heard.distance)
    }

    fn closest(&self) -> impl Iterator<Item = Contact> {
        let answered = self.heard.iter().filter(|heard| heard.state == State::Answered);
        answered.take(self.wanted).map(|heard| Contact { key: heard.distance ^ self.target, node: heard.node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    const PLAIN: Parameters =
        Parameters { parallelism: 3, disjoint: false, replication: K, by_lot: false, put_to_found: false };

    fn contacts(count: u32) -> Vec<Contact> {
        let mut chance = Seed(7).chance("contacts");
        (0..count).map(|node| Contact { key: head(chance.bytes()), node: Some(node) }).collect()
    }

    fn table(all: &[Contact], own: usize, by_lot: bool) -> Table {
        let mut table = Table::new(all[own].key, head(Seed(own as u64).chance("lot").bytes()));
        for contact in all {
            table.enter(*contact, by_lot);
        }
        table
    }

    #[test]
    fn a_table_names_the_nearest_of_those_it_knows() {
        let all = contacts(300);
        let table = table(&all, 0, false);
        for target in all.iter().map(|contact| contact.key ^ 1 << 90) {
            let mut known: Vec<_> = table.iter().copied().collect();
            known.sort_unstable_by_key(|contact| contact.key ^ target);
            known.truncate(K);
            assert_eq!(table.closest(target, K), known);
        }
    }

    #[test]
    fn a_bucket_has_k_places_and_by_lot_it_matters_not_who_came_first() {
        let all = contacts(400);
        let backwards: Vec<_> = [all[0]].into_iter().chain(all[1..].iter().rev().copied()).collect();
        for by_lot in [false, true] {
            let tables = [table(&all, 0, by_lot), table(&backwards, 0, by_lot)];
            assert!(tables.iter().all(|table| table.buckets.iter().all(|bucket| bucket.len() <= K)));
            let [mut one, mut two] = tables.map(|table| table.iter().map(|contact| contact.key).collect::<Vec<_>>());
            one.sort_unstable();
            two.sort_unstable();
            assert_eq!(one == two, by_lot);
        }
    }

    #[test]
    fn among_honest_nodes_a_search_ends_with_the_k_nearest_by_one_path_or_many() {
        let all = contacts(500);
        let tables: Vec<_> = (0..all.len()).map(|own| table(&all, own, true)).collect();
        for (parallelism, disjoint) in [(3, false), (3, true), (8, true)] {
            let parameters = Parameters { parallelism, disjoint, ..PLAIN };
            for (seeker, target) in [(0, all[1].key ^ 1 << 100), (7, all[99].key ^ 1 << 90), (3, 0)] {
                let start = tables[seeker].closest(target, K);
                let ask = |asked: Contact| {
                    let node = asked.node.expect("nobody is made up") as usize;
                    Reply::Answer(Duration::from_millis(node as u64 % 7 + 1), tables[node].closest(target, K), false)
                };
                let outcome = search(&parameters, target, &start, PATIENCE, ask);
                assert!(outcome.finished && outcome.found.is_none());
                let others = all.iter().copied().filter(|contact| contact.node != Some(seeker as u32));
                let found: Vec<_> =
                    outcome.closest.iter().copied().filter(|found| found.node != Some(seeker as u32)).collect();
                let right = nearest(others, target, K);
                assert!(right.iter().filter(|contact| found.contains(contact)).count() >= K - 1);
            }
        }
    }

    #[test]
    fn members_that_do_not_exist_hold_up_only_the_path_that_was_told_of_them() {
        let all = contacts(40);
        let target = 0;
        let start = nearest(all.iter().copied(), target, K);
        let made_up: Vec<_> = (1..=K as Key).map(|key| Contact { key, node: None }).collect();
        let ask = |asked: Contact| {
            if asked.node.is_none() {
                Reply::Silence
            } else if asked == start[0] {
                Reply::Answer(Duration::from_millis(1), made_up.clone(), false)
            } else {
                Reply::Answer(Duration::from_millis(100), Vec::new(), asked == start[15])
            }
        };
        let plain = search(&PLAIN, target, &start, PATIENCE, ask);
        assert!(plain.found.is_none() && plain.took == PATIENCE);
        let disjoint = search(&Parameters { disjoint: true, ..PLAIN }, target, &start, PATIENCE, ask);
        assert!(disjoint.found == Some(start[15]) && disjoint.took < Duration::from_secs(2));
    }
}
