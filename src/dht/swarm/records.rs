//! Publishing, replicating, looking up, gossip: what the directory does with records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::gossipsub::{MessageAcceptance, MessageId, PublishError};
use libp2p::kad::{
    self, GetClosestPeersError, GetClosestPeersOk, GetRecordOk, KBucketKey, PutRecordError, QueryId as KadQuery,
    QueryResult, Quorum, RecordKey,
};

use super::super::directory::DirectoryKey;
use super::super::record::RECORD_LIFETIME;
use super::super::{Event, LookupKey, QueryId, Record, Verified};
use super::behaviour::unix_now;
use super::peers::ours;
use super::{Directory, about};
use crate::identity::{PeerId, UnixSeconds};

/// How often we publish our record again though nothing changed: six times in its life.
const REPUBLISH: Duration = Duration::from_secs(RECORD_LIFETIME / 6);

/// How often we look for records that nobody has stored here again, and how old that makes them: publishers who are
/// here renew theirs in less.
const REPLICATE: Duration = Duration::from_secs(15 * 60);
const UNREFRESHED: UnixSeconds = 30 * 60;

/// Keys replicated in one round. The expected load is 80 keys in all, most of them renewed by their publishers.
const MAX_REPLICATED: usize = 64;

/// How often we look for keys that are not ours to keep, how many at a time, and how long they were left alone before.
/// Who starts knows few nodes and hands its record to those; when all have met, the copies that lie 2 k nodes away from
/// their key go again. The margin of k forgives that tables differ.
const SWEEP: Duration = Duration::from_secs(10);
const MAX_SWEPT: usize = 128;
const SWEEP_AGE: UnixSeconds = 20;

/// After the routing table changed, peers that have come close to our keys get their copies: when changes have paused
/// for so long, or have gone on for so long.
const SETTLE: Duration = Duration::from_millis(250);
const SETTLE_AT_LAST: Duration = Duration::from_secs(3);

/// Puts under way at once, and waiting. A put asks about k + 3 peers; four at a time keep a laptop quiet.
const MAX_PUTS: usize = 4;
const MAX_WAITING_PUTS: usize = 256;

/// Lookups under way. The node asks for one member at a time; 256 are a broadcast storm's worth.
const MAX_LOOKUPS: usize = 256;

/// A lookup ends with so many answers, or so long after the first: the rest would say the same. Without any it ends
/// after the last.
const ENOUGH_ANSWERS: usize = 2;
const GRACE: Duration = Duration::from_millis(250);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Records remembered from hellos, gossip and lookups, for newcomers: about 1 MiB, as many as the verifier remembers.
const MAX_KNOWN: usize = 1024;

/// How often an unchanged record is passed on by gossip, at most.
const FORWARD_AGAIN: Duration = Duration::from_secs(600);

/// How often one member may change its record, on average, and how many changes may come at once. A laptop that roams
/// makes two or three in a row; each costs every node four signature checks.
const CHANGE_GAP: Duration = Duration::from_secs(5);
const CHANGE_BURST: u32 = 8;

/// What the directory does with records.
pub(super) struct Records {
    own: Option<Arc<Verified<Record>>>,
    replication: NonZeroUsize,
    known: BTreeMap<PeerId, Known>,
    arrivals: u64,
    waiting: VecDeque<Put>,
    puts: Vec<(KadQuery, Put)>,
    lookups: Vec<Lookup>,
    ungossiped: bool,
    /// A peer has subscribed since gossip last failed.
    pub(super) gossip_may_work: bool,
    /// Who has a copy of our record as it is now, by key.
    copies: BTreeMap<DirectoryKey, BTreeSet<libp2p::PeerId>>,
    /// Whether we have searched for the nodes closest to our keys since we were last alone.
    searched: bool,
    /// When the routing table began to change, and when it changed last.
    changed: Option<(Instant, Instant)>,
    republish_at: Instant,
    replicate_at: Instant,
    forget_at: Instant,
    sweep_at: Instant,
    swept: DirectoryKey,
}

struct Known {
    record: Arc<Verified<Record>>,
    arrival: u64,
    forwarded: Option<Instant>,
    /// When the member's changes will be paid off at one each [`CHANGE_GAP`].
    paid_off: Instant,
}

struct Put {
    key: DirectoryKey,
    record: Arc<Verified<Record>>,
    /// `None` searches the network for the k closest first.
    to: Option<Vec<libp2p::PeerId>>,
}

struct Lookup {
    id: QueryId,
    key: LookupKey,
    directory_key: DirectoryKey,
    query: KadQuery,
    begun: Instant,
    first: Option<Instant>,
    answers: BTreeMap<PeerId, Answer>,
}

impl Lookup {
    fn answers(&self) -> usize {
        self.answers.values().map(|answer| answer.holders.len()).sum()
    }
}

struct Answer {
    record: Arc<Verified<Record>>,
    holders: BTreeSet<PeerId>,
}

impl Records {
    pub(super) fn new(replication: NonZeroUsize, now: Instant) -> Self {
        Self {
            own: None,
            replication,
            known: BTreeMap::new(),
            arrivals: 0,
            waiting: VecDeque::new(),
            puts: Vec::new(),
            lookups: Vec::new(),
            ungossiped: false,
            gossip_may_work: false,
            copies: BTreeMap::new(),
            searched: false,
            changed: None,
            republish_at: now + about(REPUBLISH),
            replicate_at: now + about(REPLICATE),
            forget_at: now,
            sweep_at: now + about(SWEEP),
            swept: [0; 32],
        }
    }

    /// Our own record, once the node has published one.
    pub(super) fn own(&self) -> Option<&Arc<Verified<Record>>> {
        self.own.as_ref()
    }

    /// The members heard of.
    pub(super) fn known(&self) -> impl Iterator<Item = &Arc<Verified<Record>>> {
        self.known.values().map(|known| &known.record)
    }

    /// What is known of a member, ourselves included.
    pub(super) fn of(&self, peer: &PeerId) -> Option<&Arc<Verified<Record>>> {
        let own = self.own.as_ref().filter(|own| own.peer() == *peer);
        own.or_else(|| self.known.get(peer).map(|known| &known.record))
    }

    /// Whether a member was heard of.
    pub(super) fn knows(&self, peer: &PeerId) -> bool {
        self.known.contains_key(peer)
    }

    /// Forgets the members of whom `gone` is true, and what was to be put of theirs.
    pub(super) fn forget(&mut self, gone: impl Fn(&Verified<Record>) -> bool) {
        self.known.retain(|_, known| !gone(&known.record));
        self.waiting.retain(|put| !gone(&put.record));
    }

    /// Whether something is due within a fraction of a second.
    pub(super) fn is_busy(&self) -> bool {
        !self.lookups.is_empty() || self.changed.is_some()
    }
}

impl Directory {
    /// The node's own record, new or renewed.
    pub(super) fn publish(&mut self, record: Verified<Record>) {
        if record.peer() != self.own {
            return self.count("publish-of-another");
        }
        let (record, now) = (Arc::new(record), unix_now());
        let first = self.records.own.is_none();
        for key in self.keys_of(&record) {
            let _ = self.shard().put(&key, record.bytes(), now);
        }
        self.records.own = Some(record);
        self.records.ungossiped = true;
        self.records.gossip_may_work = true;
        self.put_own();
        if first {
            self.say_hello_to_all();
        }
    }

    pub(super) fn look_up(&mut self, id: QueryId, key: LookupKey) {
        if self.records.lookups.len() >= MAX_LOOKUPS {
            self.count("lookup-overflow");
            return self.tell(Event::NotFound { id });
        }
        let directory_key = key.directory_key(&self.directory_key);
        let query = self.swarm.behaviour_mut().kad.get_record(RecordKey::new(&directory_key));
        self.records.lookups.push(Lookup {
            id,
            key,
            directory_key,
            query,
            begun: Instant::now(),
            first: None,
            answers: BTreeMap::new(),
        });
    }

    pub(super) fn handle_kad(&mut self, event: kad::Event) {
        if let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event {
            match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => self.handle_answer(id, &found),
                QueryResult::GetRecord(_) if step.last => self.finish_lookup(id),
                QueryResult::PutRecord(result) => self.handle_put(id, result),
                QueryResult::GetClosestPeers(
                    Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }),
                ) => self.put_to_found(id, peers.into_iter().map(|found| found.peer_id).collect()),
                // It has told us who is near: time to search for the nodes closest to our keys.
                QueryResult::Bootstrap(_) if step.last && !self.records.searched => self.put_own(),
                QueryResult::GetRecord(_)
                | QueryResult::Bootstrap(_)
                | QueryResult::GetProviders(_)
                | QueryResult::StartProviding(_)
                | QueryResult::RepublishProvider(_)
                | QueryResult::RepublishRecord(_) => {}
            }
        } else if let kad::Event::RoutingUpdated { is_new_peer: true, .. } = event {
            self.routing_changed(Instant::now());
        }
    }

    /// A record came by gossip. It is passed on when it is sound and news to us, or was never passed on by us.
    pub(super) fn handle_gossip(&mut self, from: libp2p::PeerId, id: &MessageId, bytes: &[u8], now: Instant) {
        let acceptance = self.judge_gossip(&from, bytes, now);
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &from, acceptance);
    }

    /// Takes note of a valid record, wherever it came from; returns whether it is news.
    pub(super) fn learn(&mut self, record: &Arc<Verified<Record>>) -> bool {
        let peer = record.peer();
        let held = if peer == self.own {
            self.records.own.as_ref()
        } else {
            self.records.known.get(&peer).map(|known| &known.record)
        };
        if held.is_some_and(|held| held.sequence >= record.sequence) {
            return false;
        }
        self.tell(Event::Gossip(Verified::clone(record)));
        if peer == self.own {
            // Ours, and newer than ours: an earlier life of this node. The node must know; we keep what it published.
            return true;
        }
        self.shard().supersede(record);
        self.records.arrivals += 1;
        let arrival = self.records.arrivals;
        let now = Instant::now();
        let known = self.records.known.entry(peer).or_insert_with(|| Known {
            record: Arc::clone(record),
            arrival,
            forwarded: None,
            paid_off: now,
        });
        *known = Known { record: Arc::clone(record), arrival, forwarded: None, paid_off: known.paid_off };
        if self.records.known.len() > MAX_KNOWN {
            let oldest = self.records.known.iter().min_by_key(|(_, known)| known.arrival).map(|(peer, _)| *peer);
            if let Some(oldest) = oldest {
                self.records.known.remove(&oldest);
            }
        }
        true
    }

    /// A peer could not be reached: it leaves the routing table, and what it held of ours goes elsewhere.
    pub(super) fn unroute(&mut self, peer: libp2p::PeerId, now: Instant) {
        if self.swarm.behaviour_mut().kad.remove_peer(&peer).is_some() {
            self.routing_changed(now);
        }
    }

    /// The routing table changed, or a peer in it was away: see who needs a copy of our record.
    pub(super) fn routing_changed(&mut self, now: Instant) {
        let began = self.records.changed.map_or(now, |(began, _)| began);
        self.records.changed = Some((began, now));
    }

    /// A peer is gone. If it comes back, it may come back with an empty shard.
    pub(super) fn forget_copies(&mut self, peer: &libp2p::PeerId) {
        for holders in self.records.copies.values_mut() {
            holders.remove(peer);
        }
    }

    /// Ends the lookups that have answers enough.
    pub(super) fn end_ripe_lookups(&mut self, now: Instant) {
        let ripe = |lookup: &&Lookup| match lookup.first {
            Some(first) => lookup.answers() >= ENOUGH_ANSWERS || now.saturating_duration_since(first) >= GRACE,
            None => now.saturating_duration_since(lookup.begun) >= LOOKUP_TIMEOUT,
        };
        let ripe: Vec<_> = self.records.lookups.iter().filter(ripe).map(|lookup| lookup.query).collect();
        for query in ripe {
            self.finish_lookup(query);
        }
    }

    /// What is due: gossip, republishing, replicating, forgetting.
    pub(super) fn tend_records(&mut self, now: Instant) {
        for record in std::mem::take(&mut self.swarm.behaviour_mut().kad.store_mut().stored) {
            self.learn(&record);
        }
        if self.records.republish_at <= now {
            self.records.republish_at = now + about(REPUBLISH);
            self.put_own();
        }
        self.hand_out_copies(now);
        if self.records.replicate_at <= now {
            self.records.replicate_at = now + about(REPLICATE);
            self.replicate();
        }
        if self.records.sweep_at <= now {
            self.records.sweep_at = now + about(SWEEP);
            self.sweep();
        }
        if self.records.forget_at <= now {
            self.records.forget_at = now + Duration::from_secs(60);
            let unix = unix_now();
            self.shard().expire(unix);
            self.records.known.retain(|_, known| !known.record.has_expired(unix));
        }
        self.gossip_own();
    }

    fn handle_answer(&mut self, query: KadQuery, found: &kad::PeerRecord) {
        let Some(index) = self.records.lookups.iter().position(|lookup| lookup.query == query) else { return };
        let key = self.records.lookups[index].directory_key;
        // A shard may answer anything: kad checks neither the value nor that it belongs to the key.
        let record = match self.shard().check(&found.record.value, unix_now()) {
            Ok(record) if self.shard().meaning(&key, &record).is_some() => record,
            Ok(_) => return self.count("answer-to-another-key"),
            Err(error) => return self.count(error.name()),
        };
        let holder = found.peer.as_ref().map_or(Some(self.own), ours);
        let now = Instant::now();
        let lookup = &mut self.records.lookups[index];
        lookup.first.get_or_insert(now);
        let answer = lookup
            .answers
            .entry(record.peer())
            .or_insert_with(|| Answer { record: Arc::clone(&record), holders: BTreeSet::new() });
        if record.sequence > answer.record.sequence {
            answer.record = record;
        }
        answer.holders.extend(holder);
    }

    /// Ends a lookup with the best answer there is. Of one member, that is the highest sequence. Of two that claim one
    /// MAC, it is the one that more shards have pinned; of two that claim an address or a name, the better claim.
    fn finish_lookup(&mut self, query: KadQuery) {
        let Some(index) = self.records.lookups.iter().position(|lookup| lookup.query == query) else { return };
        if let Some(mut running) = self.swarm.behaviour_mut().kad.query_mut(&query) {
            running.finish();
        }
        let Lookup { id, key, answers, .. } = self.records.lookups.swap_remove(index);
        let by_count = matches!(key, LookupKey::Mac(_));
        let best = answers.into_values().reduce(|best, other| {
            let (more, fewer) = (best.holders.len() > other.holders.len(), best.holders.len() < other.holders.len());
            let keep = if by_count && (more || fewer) { more } else { best.record.wins_over(&other.record, &key) };
            if keep { best } else { other }
        });
        let event = match best {
            Some(Answer { record, holders }) => {
                self.learn(&record);
                Event::Found { id, record: Verified::clone(&record), holders: holders.into_iter().collect() }
            }
            None => Event::NotFound { id },
        };
        self.tell(event);
    }

    fn judge_gossip(&mut self, from: &libp2p::PeerId, bytes: &[u8], now: Instant) -> MessageAcceptance {
        if !self.peers.has_proved(from) {
            self.count("gossip-of-unproved");
            return MessageAcceptance::Ignore;
        }
        let record = match self.shard().check(bytes, unix_now()) {
            Ok(record) => record,
            Err(error) => {
                self.count(error.name());
                return MessageAcceptance::Reject;
            }
        };
        let peer = record.peer();
        if let Some(known) = self.records.known.get_mut(&peer)
            && record.sequence > known.record.sequence
        {
            if known.paid_off.saturating_duration_since(now) > CHANGE_GAP * CHANGE_BURST {
                self.count("gossip-too-often");
                return MessageAcceptance::Ignore;
            }
            known.paid_off = known.paid_off.max(now) + CHANGE_GAP;
        }
        self.learn(&record);
        let Some(known) = self.records.known.get_mut(&peer) else { return MessageAcceptance::Ignore };
        let lately = known.forwarded.is_some_and(|at| now.saturating_duration_since(at) < FORWARD_AGAIN);
        if known.record.bytes() != record.bytes() || lately {
            return MessageAcceptance::Ignore;
        }
        known.forwarded = Some(now);
        MessageAcceptance::Accept
    }

    /// Publishes our record by gossip, again and again until somebody has subscribed to hear it.
    fn gossip_own(&mut self) {
        if !(self.records.ungossiped && self.records.gossip_may_work) {
            return;
        }
        let Some(bytes) = self.records.own.as_ref().map(|own| own.bytes().to_vec()) else { return };
        let topic = self.names.topic.hash();
        match self.swarm.behaviour_mut().gossip.publish(topic, bytes) {
            Ok(_) | Err(PublishError::Duplicate) => self.records.ungossiped = false,
            Err(PublishError::NoPeersSubscribedToTopic) => self.records.gossip_may_work = false,
            Err(PublishError::AllQueuesFull(_)) => {}
            Err(
                error @ (PublishError::SigningError(_)
                | PublishError::MessageTooLarge
                | PublishError::TransformFailed(_)),
            ) => {
                tracing::warn!(%error, "our record cannot be gossiped");
                self.records.ungossiped = false;
            }
        }
    }

    /// Searches for the nodes closest to our keys and puts our record there.
    fn put_own(&mut self) {
        self.records.copies.clear();
        self.records.searched = self.routing_peers() > 0;
        let Some(own) = self.records.own.clone().filter(|_| self.records.searched) else { return };
        for key in self.keys_of(&own) {
            self.want_put(Put { key, record: Arc::clone(&own), to: None });
        }
    }

    /// Gives our record to those in our routing table who are among the k closest to one of our keys and have no copy
    /// yet: one request each, where a search takes dozens.
    fn hand_out_copies(&mut self, now: Instant) {
        let Some((began, last)) = self.records.changed else { return };
        if now.saturating_duration_since(last) < SETTLE && now.saturating_duration_since(began) < SETTLE_AT_LAST {
            return;
        }
        self.records.changed = None;
        if self.routing_peers() == 0 {
            self.records.searched = false;
        }
        let Some(own) = self.records.own.clone() else { return };
        for key in self.keys_of(&own) {
            let mut to = self.closest(&key);
            let copies = self.records.copies.entry(key).or_default();
            to.retain(|peer| !copies.contains(peer));
            if !to.is_empty() {
                self.want_put(Put { key, record: Arc::clone(&own), to: Some(to) });
            }
        }
    }

    /// Puts what others have not renewed here to the k closest again: the publisher is away, or other holders are.
    fn replicate(&mut self) {
        let unix = unix_now();
        let shard = self.shard();
        shard.expire(unix);
        let due: Vec<_> = (shard.unrefreshed(unix.saturating_sub(UNREFRESHED)).take(MAX_REPLICATED))
            .map(|(key, record)| (*key, Arc::clone(record)))
            .collect();
        for (key, record) in due {
            self.shard().mark_refreshed(&key, unix);
            self.want_put(Put { key, record, to: None });
        }
    }

    /// Drops keys that so many others are nearer to that nobody will look for them here.
    fn sweep(&mut self) {
        let (last, since) = (self.records.swept, unix_now().saturating_sub(SWEEP_AGE));
        let aged = self.shard().unrefreshed(since).map(|(key, _)| *key);
        let keys: Vec<_> = aged.skip_while(|key| *key <= last).take(MAX_SWEPT).collect();
        self.records.swept = keys.last().copied().filter(|_| keys.len() == MAX_SWEPT).unwrap_or_default();
        let (enough, own) = (2 * self.records.replication.get(), KBucketKey::from(*self.swarm.local_peer_id()));
        for key in keys {
            let target = KBucketKey::new(RecordKey::new(&key));
            let distance = own.distance(&target);
            let closest = self.swarm.behaviour_mut().kad.get_closest_local_peers(&target);
            if closest.take_while(|peer| peer.distance(&target) < distance).take(enough).count() == enough {
                self.shard().remove(&key);
            }
        }
    }

    /// Queues a put. One that searches makes those that do not needless.
    fn want_put(&mut self, put: Put) {
        let same = |waiting: &Put| waiting.key == put.key && waiting.record.peer() == put.record.peer();
        if put.to.is_some() && self.records.waiting.iter().any(|waiting| same(waiting) && waiting.to.is_none()) {
            return;
        }
        self.records.waiting.retain(|waiting| !same(waiting));
        if self.records.waiting.len() >= MAX_WAITING_PUTS {
            return self.count("put-overflow");
        }
        self.records.waiting.push_back(put);
    }

    /// With [`Quorum::All`], though it cannot be reached below k nodes: a smaller quorum ends the put as soon as so
    /// many have answered, and peers that must first be dialled never get their copy. We count the copies ourselves. The search is
    /// a query of its own: Kademlia's put forgets whom it has found if its time ends, which one member that sends one path after
    /// members who do not exist can bring about.
    pub(super) fn start_puts(&mut self) {
        while self.records.puts.len() < MAX_PUTS && !self.records.waiting.is_empty() {
            if self.swarm.behaviour_mut().kad.kbuckets().next().is_none() {
                return;
            }
            let Some(put) = self.records.waiting.pop_front() else { return };
            if put.record.has_expired(unix_now()) {
                continue;
            }
            self.start_put(put);
        }
    }

    fn start_put(&mut self, put: Put) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let query = match &put.to {
            Some(peers) => {
                let value = kad::Record::new(RecordKey::new(&put.key), put.record.bytes().to_vec());
                kad.put_record_to(value, peers.clone().into_iter(), Quorum::All)
            }
            None => kad.get_n_closest_peers(put.key.to_vec(), self.records.replication),
        };
        self.records.puts.push((query, put));
    }

    /// A put's search has ended: whoever it has found gets the record.
    fn put_to_found(&mut self, query: KadQuery, found: Vec<libp2p::PeerId>) {
        let Some(index) = self.records.puts.iter().position(|(running, _)| *running == query) else { return };
        let (_, put) = self.records.puts.swap_remove(index);
        if self.records.own.as_ref().is_some_and(|own| own.bytes() == put.record.bytes()) {
            // Whoever is near and did not answer the search is asked once more.
            self.routing_changed(Instant::now());
        }
        if !found.is_empty() {
            self.start_put(Put { to: Some(found), ..put });
        }
    }

    fn handle_put(&mut self, query: KadQuery, result: kad::PutRecordResult) {
        let Some(index) = self.records.puts.iter().position(|(running, _)| *running == query) else { return };
        let (_, put) = self.records.puts.swap_remove(index);
        if self.records.own.as_ref().is_none_or(|own| own.bytes() != put.record.bytes()) {
            return;
        }
        let holders = match result {
            Ok(_) => put.to.unwrap_or_default(),
            Err(PutRecordError::QuorumFailed { success, .. } | PutRecordError::Timeout { success, .. }) => success,
        };
        tracing::debug!(copies = holders.len(), "our record was put");
        self.records.copies.entry(put.key).or_default().extend(holders);
    }

    /// The k closest to a key of those in our routing table.
    fn closest(&mut self, key: &DirectoryKey) -> Vec<libp2p::PeerId> {
        let target = KBucketKey::new(RecordKey::new(key));
        let closest = self.swarm.behaviour_mut().kad.get_closest_local_peers(&target);
        closest.take(self.records.replication.get()).map(KBucketKey::into_preimage).collect()
    }

    fn keys_of(&self, record: &Verified<Record>) -> [DirectoryKey; 4] {
        record.lookup_keys().map(|key| key.directory_key(&self.directory_key))
    }
}
