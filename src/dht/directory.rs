//! A shard: what one node keeps of the directory for the others.
//!
//! Kademlia brings (key, value) pairs from anybody who is connected. [`Shard::put`] lets in only what proves itself: a
//! record signed by a member of our network, stored under one of its own four keys, no older than what we have of that
//! member, and not in another's place. So a shard cannot be poisoned, only starved, and its bounds say how far.
//!
//! A member is held once, however many of its keys fall to us: its newer record replaces the older one under all of
//! them, and keys that it no longer claims (an old IP address) go. A refused put is counted by the name of its reason.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::identity::{NetworkId, PeerId, UnixSeconds};

use super::ledger::{Ledger, LedgerFull};
use super::record::MAX_RECORD;
use super::{LookupKey, Record, RecordError, Statement, Verified};

/// A key of the directory: [`LookupKey::directory_key`].
pub type DirectoryKey = [u8; 32];

/// How much a shard keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Keys. N members publish 4 N keys, each kept by k of N nodes: 4 k a node on average, 80 at k = 20, whatever N
    /// is. The default of 4096 is fifty times that; twice as much would hold nothing more in an honest network and
    /// double what a flood of forged members could make us keep.
    pub keys: usize,
    /// Bytes of records. The default of 2 MiB holds every key by a different member at the 512 bytes of a usual record.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { keys: 4096, bytes: 2 << 20 }
    }
}

/// What a put that was let in did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Nothing was known of this member.
    New,
    /// It replaced the member's older record.
    Newer,
    /// The same record again, perhaps under one more key.
    Refreshed,
}

/// Why a put was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The value is no valid record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The key is none of the record's own four.
    #[error("the key is none of the record's own")]
    Key,
    /// Older than what is held of the same member.
    #[error("sequence {got} is older than {held}, which is held")]
    Stale {
        /// Of the refused record.
        got: u64,
        /// Of the held record.
        held: u64,
    },
    /// Another record of the same member with the same sequence: it signed two.
    #[error("sequence {0} was signed twice with different contents")]
    Equivocal(u64),
    /// Another key owns this MAC, and its record has not expired.
    #[error("the MAC is pinned to {0}")]
    MacPinned(PeerId),
    /// Another member has the better claim to this address or name.
    #[error("{0} has the better claim")]
    ClaimLost(PeerId),
    /// The shard is full of records that are nearer to us.
    #[error("the shard is full")]
    Full,
}

impl Refusal {
    /// A short name, for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Record(error) => error.name(),
            Self::Key => "record-wrong-key",
            Self::Stale { .. } => "record-stale",
            Self::Equivocal(_) => "record-equivocal",
            Self::MacPinned(_) => "record-mac-conflict",
            Self::ClaimLost(_) => "record-claim-lost",
            Self::Full => "shard-full",
        }
    }
}

/// Checks records, and remembers those it has checked: Kademlia, gossip and lookups bring the same bytes again and
/// again, and a check costs up to five Ed25519 signatures. What the ledger says of their members is asked each time.
#[derive(Debug)]
pub struct Verifier {
    network: NetworkId,
    ledger: Ledger,
    known: BTreeMap<[u8; 32], Arc<Verified<Record>>>,
    order: VecDeque<[u8; 32]>,
    checks: u64,
}

impl Verifier {
    /// Records remembered, oldest forgotten first: 1024 are about 1 MiB, and more members than one node talks to.
    const CAPACITY: usize = 1024;

    /// A verifier for the records of `network`.
    pub fn new(network: NetworkId) -> Self {
        Self { network, ledger: Ledger::default(), known: BTreeMap::new(), order: VecDeque::new(), checks: 0 }
    }

    /// As [`Verified::check`], and that the member was not expelled. `now` is Unix seconds.
    ///
    /// # Errors
    /// As [`Verified::check`], and [`RecordError::Excluded`].
    pub fn check(&mut self, bytes: &[u8], now: UnixSeconds) -> Result<Arc<Verified<Record>>, RecordError> {
        let record = self.check_itself(bytes, now)?;
        self.ledger.verdict(&record.chain)?;
        Ok(record)
    }

    fn check_itself(&mut self, bytes: &[u8], now: UnixSeconds) -> Result<Arc<Verified<Record>>, RecordError> {
        if bytes.len() > MAX_RECORD {
            return Verified::check(bytes, &self.network, now).map(Arc::new);
        }
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        if let Some(record) = self.known.get(&hash) {
            let record = Arc::clone(record);
            return if record.has_expired(now) { Err(RecordError::Expired(end(&record))) } else { Ok(record) };
        }
        self.checks += 1;
        let record = Arc::new(Verified::check(bytes, &self.network, now)?);
        if self.order.len() >= Self::CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(hash);
        self.known.insert(hash, Arc::clone(&record));
        Ok(record)
    }

    /// How many checks were really made.
    pub fn checks(&self) -> u64 {
        self.checks
    }
}

/// What one node keeps for the others.
#[derive(Debug)]
pub struct Shard {
    directory_key: [u8; 32],
    own: PeerId,
    own_hash: [u8; 32],
    limits: Limits,
    verifier: Verifier,
    held: BTreeMap<PeerId, Held>,
    keys: BTreeMap<DirectoryKey, Entry>,
    by_rank: BTreeMap<Rank, DirectoryKey>,
    bytes: usize,
    soonest_end: UnixSeconds,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Held {
    record: Arc<Verified<Record>>,
    keys: BTreeSet<DirectoryKey>,
}

#[derive(Debug)]
struct Entry {
    peer: PeerId,
    refreshed: UnixSeconds,
}

/// The order of eviction, last first: our own record stays, then the keys nearest to us.
type Rank = (bool, [u8; 32]);

impl Shard {
    /// An empty shard of the node `own`. `directory_key` is [`crate::identity::NetworkSecret::directory_key`].
    pub fn new(network: NetworkId, directory_key: [u8; 32], own: PeerId, limits: Limits) -> Self {
        Self {
            directory_key,
            own,
            own_hash: place(&own),
            limits,
            verifier: Verifier::new(network),
            held: BTreeMap::new(),
            keys: BTreeMap::new(),
            by_rank: BTreeMap::new(),
            bytes: 0,
            soonest_end: UnixSeconds::MAX,
            refused: BTreeMap::new(),
        }
    }

    /// Stores `value` under `key`, both from an untrusted peer. `now` is Unix seconds.
    ///
    /// # Errors
    /// A [`Refusal`], counted in [`Shard::refused`].
    pub fn put(&mut self, key: &[u8], value: &[u8], now: UnixSeconds) -> Result<Accepted, Refusal> {
        let outcome = self.try_put(key, value, now);
        if let Err(refusal) = &outcome {
            *self.refused.entry(refusal.name()).or_default() += 1;
        }
        outcome
    }

    /// Takes note of a valid record that came another way: an older one of the same member makes place for it, under
    /// every key that it still claims. So an address that a member gave up is free in every shard that gossip reaches.
    pub fn supersede(&mut self, record: &Arc<Verified<Record>>) {
        if self.held.get(&record.peer()).is_some_and(|held| held.record.sequence < record.sequence) {
            self.replace(record);
        }
    }

    /// The record under `key`; perhaps expired, if [`Shard::expire`] was not called.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Verified<Record>>> {
        let key = DirectoryKey::try_from(key).ok()?;
        self.keys.get(&key).map(|entry| &self.held_by(&entry.peer).record)
    }

    /// Every key and its record, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&DirectoryKey, &Arc<Verified<Record>>)> {
        self.keys.iter().map(|(key, entry)| (key, &self.held_by(&entry.peer).record))
    }

    /// Every member held, each once.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Verified<Record>>> {
        self.held.values().map(|held| &held.record)
    }

    /// Keys of other members which nobody has stored here again since `since`, Unix seconds: their publisher is away
    /// or lost sight of us, so we replicate them.
    pub fn unrefreshed(&self, since: UnixSeconds) -> impl Iterator<Item = (&DirectoryKey, &Arc<Verified<Record>>)> {
        self.keys
            .iter()
            .filter(move |(_, entry)| entry.peer != self.own && entry.refreshed < since)
            .map(|(key, entry)| (key, &self.held_by(&entry.peer).record))
    }

    /// Notes that `key` was replicated at `now`.
    pub fn mark_refreshed(&mut self, key: &DirectoryKey, now: UnixSeconds) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.refreshed = entry.refreshed.max(now);
        }
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &[u8]) {
        if let Ok(key) = DirectoryKey::try_from(key) {
            self.remove_key(&key);
        }
    }

    /// What is known of who was expelled.
    pub fn ledger(&self) -> &Ledger {
        &self.verifier.ledger
    }

    /// Heeds a statement; returns whether it is news. The records of whoever is expelled by it go.
    ///
    /// # Errors
    /// [`LedgerFull`].
    pub fn state(&mut self, statement: Arc<Statement>) -> Result<bool, LedgerFull> {
        let news = self.verifier.ledger.insert(statement)?;
        if news {
            let excluded = |held: &&Held| self.verifier.ledger.verdict(&held.record.chain).is_err();
            let gone: Vec<_> = self.held.values().filter(excluded).flat_map(keys_of).collect();
            for key in gone {
                self.remove_key(&key);
            }
        }
        Ok(news)
    }

    /// Drops what has expired at `now`. Cheap while nothing has.
    pub fn expire(&mut self, now: UnixSeconds) {
        if now <= self.soonest_end {
            return;
        }
        let expired: Vec<_> =
            self.held.values().filter(|held| held.record.has_expired(now)).flat_map(keys_of).collect();
        for key in expired {
            self.remove_key(&key);
        }
        self.soonest_end = self.held.values().map(|held| end(&held.record)).min().unwrap_or(UnixSeconds::MAX);
    }

    /// Checks a record that came another way (gossip, a lookup), sharing the memory of what was checked.
    ///
    /// # Errors
    /// As [`Verified::check`].
    pub fn check(&mut self, bytes: &[u8], now: UnixSeconds) -> Result<Arc<Verified<Record>>, RecordError> {
        self.verifier.check(bytes, now)
    }

    /// Under which of its four meanings `record` belongs to `key`, if under any.
    pub fn meaning(&self, key: &[u8], record: &Verified<Record>) -> Option<LookupKey> {
        record.lookup_keys().into_iter().find(|lookup| lookup.directory_key(&self.directory_key) == *key)
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Refused puts, by the name of the reason.
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    fn try_put(&mut self, key: &[u8], value: &[u8], now: UnixSeconds) -> Result<Accepted, Refusal> {
        let key = DirectoryKey::try_from(key).map_err(|_| Refusal::Key)?;
        let record = self.check(value, now)?;
        let lookup = self.meaning(&key, &record).ok_or(Refusal::Key)?;
        self.expire(now);
        let accepted = self.check_sequence(&record)?;
        self.check_claim(&key, &lookup, &record)?;

        let peer = record.peer();
        if accepted == Accepted::Newer {
            self.replace(&record);
        }
        if self.keys.get(&key).is_none_or(|entry| entry.peer != peer) {
            self.remove_key(&key);
            let more_bytes = if self.held.contains_key(&peer) { 0 } else { record.bytes().len() };
            self.make_room(self.rank(&key, &peer), more_bytes)?;
        }
        self.insert(key, record, now);
        Ok(accepted)
    }

    fn check_sequence(&self, record: &Verified<Record>) -> Result<Accepted, Refusal> {
        let Some(held) = self.held.get(&record.peer()).map(|held| &held.record) else { return Ok(Accepted::New) };
        let (got, held_sequence) = (record.sequence, held.sequence);
        match got.cmp(&held_sequence) {
            std::cmp::Ordering::Less => Err(Refusal::Stale { got, held: held_sequence }),
            std::cmp::Ordering::Equal if held.bytes() == record.bytes() => Ok(Accepted::Refreshed),
            std::cmp::Ordering::Equal => Err(Refusal::Equivocal(got)),
            std::cmp::Ordering::Greater => Ok(Accepted::Newer),
        }
    }

    /// A MAC belongs to the first key seen with it, for as long as that key renews it; addresses and names go to the
    /// better claim, which every node judges alike.
    fn check_claim(&self, key: &DirectoryKey, lookup: &LookupKey, record: &Verified<Record>) -> Result<(), Refusal> {
        let Some(owner) = self.keys.get(key).map(|entry| entry.peer).filter(|owner| *owner != record.peer()) else {
            return Ok(());
        };
        match lookup {
            LookupKey::Mac(_) => Err(Refusal::MacPinned(owner)),
            LookupKey::Ip(_) | LookupKey::Name(_) if record.wins_over(&self.held_by(&owner).record, lookup) => Ok(()),
            LookupKey::Ip(_) | LookupKey::Name(_) => Err(Refusal::ClaimLost(owner)),
        }
    }

    /// Puts a member's newer record in the place of its older one, and drops the keys that it no longer claims.
    fn replace(&mut self, record: &Arc<Verified<Record>>) {
        let peer = record.peer();
        let claimed = record.lookup_keys().map(|lookup| lookup.directory_key(&self.directory_key));
        let dropped: Vec<_> = keys_of(self.held_by(&peer)).into_iter().filter(|key| !claimed.contains(key)).collect();
        for key in dropped {
            self.remove_key(&key);
        }
        if let Some(held) = self.held.get_mut(&peer) {
            self.bytes = self.bytes - held.record.bytes().len() + record.bytes().len();
            self.soonest_end = self.soonest_end.min(end(record));
            held.record = Arc::clone(record);
        }
    }

    /// Makes room for one key of `rank` by giving up those farther from us.
    fn make_room(&mut self, rank: Rank, more_bytes: usize) -> Result<(), Refusal> {
        while self.keys.len() >= self.limits.keys || self.bytes + more_bytes > self.limits.bytes {
            match self.by_rank.last_key_value() {
                Some((farthest, key)) if *farthest > rank => {
                    let key = *key;
                    self.remove_key(&key);
                }
                _ => return Err(Refusal::Full),
            }
        }
        Ok(())
    }

    fn insert(&mut self, key: DirectoryKey, record: Arc<Verified<Record>>, now: UnixSeconds) {
        let peer = record.peer();
        self.by_rank.insert(self.rank(&key, &peer), key);
        self.keys.insert(key, Entry { peer, refreshed: now });
        self.soonest_end = self.soonest_end.min(end(&record));
        let held = self.held.entry(peer).or_insert_with(|| {
            self.bytes += record.bytes().len();
            Held { record, keys: BTreeSet::new() }
        });
        held.keys.insert(key);
    }

    fn remove_key(&mut self, key: &DirectoryKey) {
        let Some(Entry { peer, .. }) = self.keys.remove(key) else { return };
        self.by_rank.remove(&self.rank(key, &peer));
        if let Some(held) = self.held.get_mut(&peer) {
            held.keys.remove(key);
            if held.keys.is_empty() {
                self.bytes -= held.record.bytes().len();
                self.held.remove(&peer);
            }
        }
    }

    fn held_by(&self, peer: &PeerId) -> &Held {
        self.held.get(peer).expect("every key in the shard belongs to a member that is held")
    }

    /// Kademlia's distance, as libp2p has it: XOR of the SHA-256 of both sides.
    fn rank(&self, key: &DirectoryKey, peer: &PeerId) -> Rank {
        let mut distance = target(key);
        for (byte, own) in distance.iter_mut().zip(self.own_hash) {
            *byte ^= own;
        }
        (*peer != self.own, distance)
    }
}

/// Where a member has its place among the shards, as libp2p has it: the SHA-256 of its peer id. That is the key in its
/// certificate, so one certificate is one place, and no other can be had without another certificate.
pub fn place(peer: &PeerId) -> [u8; 32] {
    Sha256::digest(peer.to_multihash()).into()
}

/// Where a key lies: the shards of the k members nearest to it keep it.
pub fn target(key: &DirectoryKey) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn keys_of(held: &Held) -> Vec<DirectoryKey> {
    held.keys.iter().copied().collect()
}

/// The last second at which a record is valid.
fn end(record: &Verified<Record>) -> UnixSeconds {
    record.expires.min(record.membership().not_after())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::dht::record::Ipv4Claim;
    use crate::identity::{Certificate, CertificateBody, Chain, Kind, Mac, Name, Roles, SigningKey, ula_address};

    const NOW: UnixSeconds = 1_800_000_000;
    const DIRECTORY_KEY: [u8; 32] = [9; 32];

    fn root() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn network() -> NetworkId {
        NetworkId::of_root(&root().peer_id())
    }

    fn member(n: u16) -> SigningKey {
        let mut seed = [2; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        SigningKey::from_seed(&seed)
    }

    fn chain(root: &SigningKey, subject: PeerId, name: &str) -> Chain {
        let body = CertificateBody {
            subject,
            kind: Kind::Member,
            name: name.parse().expect("a name"),
            roles: Roles::NONE,
            not_before: NOW,
            not_after: NOW + 86400,
            grant_until: NOW + 86400,
            uses: 0,
        };
        Chain::of_root(root.peer_id(), Certificate::issue(root, &NetworkId::of_root(&root.peer_id()), body))
    }

    fn record(key: &SigningKey, sequence: u64) -> Record {
        let mac = Mac::automatic(&network(), &key.peer_id());
        let [a, b, ..] = key.peer_id().0;
        Record {
            chain: chain(&root(), key.peer_id(), &format!("m{}", key.peer_id().short().to_lowercase())),
            noise: key.noise_secret().public(),
            mac,
            ipv4: Ipv4Claim { address: Ipv4Addr::new(10, 64, a, b), fixed: false },
            ipv6: ula_address(&network(), &mac),
            endpoints: vec![],
            homes: vec![],
            tls: false,
            sequence,
            expires: NOW + 7200,
        }
    }

    fn sign(key: &SigningKey, record: Record) -> Verified<Record> {
        Verified::sign(key, &network(), record, NOW).expect("a sound record")
    }

    fn signed(n: u16, sequence: u64) -> Verified<Record> {
        sign(&member(n), record(&member(n), sequence))
    }

    fn key(lookup: &LookupKey) -> DirectoryKey {
        lookup.directory_key(&DIRECTORY_KEY)
    }

    fn keys(record: &Verified<Record>) -> [DirectoryKey; 4] {
        record.lookup_keys().map(|lookup| key(&lookup))
    }

    fn mac_key(record: &Verified<Record>) -> DirectoryKey {
        key(&LookupKey::Mac(record.mac))
    }

    fn ip_key(record: &Verified<Record>) -> DirectoryKey {
        key(&LookupKey::Ip(IpAddr::V4(record.ipv4.address)))
    }

    fn shard(limits: Limits) -> Shard {
        Shard::new(network(), DIRECTORY_KEY, member(0).peer_id(), limits)
    }

    fn put_all(shard: &mut Shard, record: &Verified<Record>) {
        for key in keys(record) {
            shard.put(&key, record.bytes(), NOW).expect("a sound record under its own key");
        }
    }

    /// The refusal, after seeing that it was counted and left nothing behind.
    fn refused(shard: &mut Shard, key: &[u8], value: &[u8], now: UnixSeconds) -> Refusal {
        let before = shard.len();
        let refusal = shard.put(key, value, now).expect_err("a put that must be refused");
        assert_eq!(shard.refused().get(refusal.name()), Some(&1), "{refusal} is counted");
        assert!(shard.len() <= before);
        refusal
    }

    #[test]
    fn a_record_is_found_under_each_of_its_four_keys() {
        let (mut shard, record) = (shard(Limits::default()), signed(1, 1));
        put_all(&mut shard, &record);
        assert_eq!(shard.len(), 4);
        for key in keys(&record) {
            assert_eq!(shard.get(&key).map(|found| found.bytes()), Some(record.bytes()));
        }
        assert_eq!(shard.iter().count(), 4);
        assert_eq!(shard.members().count(), 1);
    }

    #[test]
    fn a_forged_record_is_refused() {
        let record = signed(1, 1);
        let mut bytes = record.bytes().to_vec();
        *bytes.last_mut().expect("not empty") ^= 1;
        let refusal = refused(&mut shard(Limits::default()), &mac_key(&record), &bytes, NOW);
        assert_eq!(refusal, Refusal::Record(RecordError::Signature));
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let refusal = refused(&mut shard(Limits::default()), &[7; 32], b"junk", NOW);
        assert_eq!(refusal.name(), "record-malformed");
    }

    #[test]
    fn an_oversized_value_is_refused_before_it_is_read() {
        let mut shard = shard(Limits::default());
        let refusal = refused(&mut shard, &[7; 32], &vec![0; MAX_RECORD + 1], NOW);
        assert_eq!(refusal.name(), "record-oversized");
        assert_eq!(shard.verifier.checks(), 0);
    }

    #[test]
    fn an_expired_record_is_refused() {
        let record = signed(1, 1);
        let refusal = refused(&mut shard(Limits::default()), &mac_key(&record), record.bytes(), NOW + 7201);
        assert_eq!(refusal, Refusal::Record(RecordError::Expired(NOW + 7200)));
    }

    #[test]
    fn a_record_that_expired_since_it_was_checked_is_refused() {
        let (mut shard, record) = (shard(Limits::default()), signed(1, 1));
        put_all(&mut shard, &record);
        let refusal = refused(&mut shard, &mac_key(&record), record.bytes(), NOW + 7201);
        assert_eq!(refusal, Refusal::Record(RecordError::Expired(NOW + 7200)));
    }

    #[test]
    fn a_record_of_another_network_is_refused() {
        let (other, key) = (SigningKey::from_seed(&[8; 32]), member(1));
        let (elsewhere, own) = (NetworkId::of_root(&other.peer_id()), record(&key, 1));
        let ipv6 = ula_address(&elsewhere, &own.mac);
        let foreign = Record { chain: chain(&other, key.peer_id(), "spy"), ipv6, ..own };
        let foreign = Verified::sign(&key, &elsewhere, foreign, NOW).expect("sound there");
        let refusal = refused(&mut shard(Limits::default()), &mac_key(&foreign), foreign.bytes(), NOW);
        assert_eq!(refusal.name(), "record-foreign-network");
    }

    #[test]
    fn a_record_under_a_key_that_is_not_its_own_is_refused() {
        let (victim, record) = (signed(1, 1), signed(2, 1));
        let mut shard = shard(Limits::default());
        assert_eq!(refused(&mut shard, &mac_key(&victim), record.bytes(), NOW), Refusal::Key);
        assert_eq!(shard.put(&mac_key(&record)[..31], record.bytes(), NOW), Err(Refusal::Key));
        assert_eq!(shard.put(&[0; 5000], record.bytes(), NOW), Err(Refusal::Key));
    }

    #[test]
    fn an_older_record_played_again_is_refused() {
        let mut shard = shard(Limits::default());
        let newer = signed(1, 2);
        put_all(&mut shard, &newer);
        let older = signed(1, 1);
        let refusal = refused(&mut shard, &mac_key(&older), older.bytes(), NOW);
        assert_eq!(refusal, Refusal::Stale { got: 1, held: 2 });
        assert_eq!(shard.get(&mac_key(&newer)).map(|found| found.sequence), Some(2));
    }

    #[test]
    fn an_equal_record_is_a_refresh_and_is_not_verified_again() {
        let (mut shard, record) = (shard(Limits::default()), signed(1, 1));
        put_all(&mut shard, &record);
        assert_eq!(shard.put(&mac_key(&record), record.bytes(), NOW + 60), Ok(Accepted::Refreshed));
        assert_eq!(shard.verifier.checks(), 1, "five puts, one check");
        assert_eq!(shard.unrefreshed(NOW + 1).count(), 3);
    }

    #[test]
    fn two_records_with_one_sequence_are_told_apart() {
        let mut shard = shard(Limits::default());
        put_all(&mut shard, &signed(1, 1));
        let key = member(1);
        let other = sign(&key, Record { expires: NOW + 7000, ..record(&key, 1) });
        assert_eq!(refused(&mut shard, &mac_key(&other), other.bytes(), NOW), Refusal::Equivocal(1));
    }

    #[test]
    fn a_newer_record_takes_its_older_ones_place_and_its_old_address_goes() {
        let mut shard = shard(Limits::default());
        let old = signed(1, 1);
        put_all(&mut shard, &old);
        let key = member(1);
        let claim = Ipv4Claim { address: Ipv4Addr::new(10, 64, 99, 99), fixed: true };
        let new = sign(&key, Record { ipv4: claim, ..record(&key, 2) });
        assert_eq!(shard.put(&mac_key(&new), new.bytes(), NOW), Ok(Accepted::Newer));
        assert_eq!(shard.get(&ip_key(&old)), None, "the old address is nobody's");
        assert_eq!(shard.len(), 3, "name and IPv6 moved on to the new record");
        assert!(shard.iter().all(|(_, record)| record.sequence == 2));
    }

    #[test]
    fn a_newer_record_heard_of_elsewhere_frees_the_old_address_too() {
        let mut shard = shard(Limits::default());
        let old = signed(1, 2);
        put_all(&mut shard, &old);
        let key = member(1);
        let claim = Ipv4Claim { address: Ipv4Addr::new(10, 64, 99, 99), fixed: true };
        shard.supersede(&Arc::new(sign(&key, Record { ipv4: claim, ..record(&key, 1) })));
        assert_eq!(shard.len(), 4, "an older one changes nothing");
        shard.supersede(&Arc::new(sign(&key, Record { ipv4: claim, ..record(&key, 3) })));
        assert_eq!(shard.get(&ip_key(&old)), None);
        assert!(shard.len() == 3 && shard.iter().all(|(_, record)| record.sequence == 3));
        shard.supersede(&Arc::new(signed(2, 1)));
        assert_eq!(shard.members().count(), 1, "a member that is not held stays so");
    }

    #[test]
    fn a_mac_is_pinned_to_the_first_key_until_that_has_expired() {
        let mut shard = shard(Limits::default());
        let first = signed(1, 1);
        put_all(&mut shard, &first);
        let thief = member(2);
        let stolen = |expires| {
            let ipv6 = ula_address(&network(), &first.mac);
            sign(&thief, Record { mac: first.mac, ipv6, expires, ..record(&thief, 9) })
        };
        let theft = stolen(NOW + 7200);
        let refusal = refused(&mut shard, &mac_key(&first), theft.bytes(), NOW);
        assert_eq!(refusal, Refusal::MacPinned(member(1).peer_id()));
        let late = stolen(NOW + 7210);
        assert_eq!(shard.put(&mac_key(&first), late.bytes(), NOW + 7201), Ok(Accepted::New));
        assert_eq!(shard.get(&mac_key(&first)).map(|found| found.peer()), Some(thief.peer_id()));
    }

    #[test]
    fn an_address_and_a_name_go_to_the_better_claim_in_either_order() {
        let (mut low, mut high) = (member(1), member(2));
        if low.peer_id() > high.peer_id() {
            std::mem::swap(&mut low, &mut high);
        }
        let ipv4 = |fixed| Ipv4Claim { address: Ipv4Addr::new(10, 64, 0, 7), fixed };
        let claim = |who: &SigningKey, fixed| {
            let chain = chain(&root(), who.peer_id(), "twin");
            sign(who, Record { chain, ipv4: ipv4(fixed), ..record(who, 1) })
        };
        let name = key(&LookupKey::Name("twin".parse::<Name>().expect("a name")));
        // The smaller key wins the name; the chosen address beats the automatic one.
        let (winner_of_name, winner_of_ip) = (claim(&low, false), claim(&high, true));
        let ip = ip_key(&winner_of_ip);
        for order in [[&winner_of_name, &winner_of_ip], [&winner_of_ip, &winner_of_name]] {
            let mut shard = shard(Limits::default());
            for record in order {
                let _ = shard.put(&ip, record.bytes(), NOW);
                let _ = shard.put(&name, record.bytes(), NOW);
            }
            assert_eq!(shard.get(&ip).map(|found| found.peer()), Some(high.peer_id()));
            assert_eq!(shard.get(&name).map(|found| found.peer()), Some(low.peer_id()));
            assert_eq!(shard.refused().get("record-claim-lost"), Some(&1));
        }
    }

    #[test]
    fn one_member_cannot_hold_more_than_four_keys() {
        let mut shard = shard(Limits::default());
        for sequence in 1..200 {
            let key = member(1);
            let [high, low] = (sequence as u16).to_be_bytes();
            let mac = Mac([0x02, 0, 0, 0, high, low]);
            let stuffed = Record {
                mac,
                ipv4: Ipv4Claim { address: Ipv4Addr::new(10, 64, high, low), fixed: true },
                ipv6: ula_address(&network(), &mac),
                ..record(&key, sequence)
            };
            put_all(&mut shard, &sign(&key, stuffed));
            assert!(shard.len() <= 4);
        }
        assert_eq!(shard.members().count(), 1);
    }

    #[test]
    fn stuffing_ends_at_the_bound_and_the_nearest_keys_stay() {
        let limits = Limits { keys: 40, bytes: usize::MAX };
        let mut shard = shard(limits);
        let mut all = Vec::new();
        for n in 1..=50 {
            let record = signed(n, 1);
            for key in keys(&record) {
                let _ = shard.put(&key, record.bytes(), NOW);
                all.push((shard.rank(&key, &record.peer()), key));
                assert!(shard.len() <= limits.keys);
            }
        }
        all.sort_unstable();
        assert_eq!(shard.len(), 40);
        assert!(all[..40].iter().all(|(_, key)| shard.get(key).is_some()), "the 40 nearest of 200 are held");
        assert!(shard.refused().contains_key("shard-full"));
    }

    #[test]
    fn our_own_record_is_never_evicted() {
        let mut shard = shard(Limits { keys: 8, bytes: usize::MAX });
        let own = signed(0, 1);
        put_all(&mut shard, &own);
        for n in 1..=30 {
            let record = signed(n, 1);
            for key in keys(&record) {
                let _ = shard.put(&key, record.bytes(), NOW);
            }
        }
        assert_eq!(shard.len(), 8);
        assert!(keys(&own).iter().all(|key| shard.get(key).is_some()));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let bytes = 5 * signed(1, 1).bytes().len();
        let mut shard = shard(Limits { keys: usize::MAX, bytes });
        for n in 1..=30 {
            let record = signed(n, 1);
            let _ = shard.put(&mac_key(&record), record.bytes(), NOW);
            assert!(shard.bytes <= bytes);
        }
        assert!((4..=5).contains(&shard.members().count()));
    }

    #[test]
    fn the_expired_go_first_and_free_their_room() {
        let mut shard = shard(Limits { keys: 4, bytes: usize::MAX });
        let key = member(1);
        put_all(&mut shard, &sign(&key, Record { expires: NOW + 10, ..record(&key, 1) }));
        for n in 2..=3 {
            let record = signed(n, 1);
            assert_eq!(shard.put(&mac_key(&record), record.bytes(), NOW + 11), Ok(Accepted::New));
        }
        assert_eq!(shard.len(), 2);
        shard.expire(NOW + 7200);
        assert_eq!(shard.len(), 2, "valid to the last second");
        shard.expire(NOW + 7201);
        assert!(shard.is_empty() && shard.bytes == 0 && shard.by_rank.is_empty() && shard.held.is_empty());
    }

    #[test]
    fn the_memory_of_checked_records_is_bounded() {
        let mut verifier = Verifier::new(network());
        for n in 0..Verifier::CAPACITY as u16 + 10 {
            verifier.check(signed(n, 1).bytes(), NOW).expect("a sound record");
        }
        assert_eq!((verifier.known.len(), verifier.order.len()), (Verifier::CAPACITY, Verifier::CAPACITY));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn no_bytes_panic(key: Vec<u8>, value: Vec<u8>, now: u64) {
            prop_assert!(shard(Limits::default()).put(&key, &value, now).is_err());
        }

        #[test]
        fn the_books_balance_after_any_puts(puts in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let mut shard = shard(Limits { keys: 12, bytes: 6 * 1024 });
            for (n, sequence, which) in puts {
                let record = signed(u16::from(n % 6), u64::from(sequence % 4));
                let _ = shard.put(&keys(&record)[usize::from(which % 4)], record.bytes(), NOW);
            }
            prop_assert!(shard.keys.len() <= 12 && shard.bytes <= 6 * 1024);
            prop_assert_eq!(shard.keys.len(), shard.by_rank.len());
            prop_assert_eq!(shard.keys.len(), shard.held.values().map(|held| held.keys.len()).sum::<usize>());
            prop_assert_eq!(shard.bytes, shard.held.values().map(|held| held.record.bytes().len()).sum::<usize>());
            prop_assert!(shard.held.values().all(|held| !held.keys.is_empty()));
        }
    }
}
