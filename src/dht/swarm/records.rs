//! Publishing, replicating, looking up, gossip: what the directory does with records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::gossipsub::{MessageAcceptance, MessageId, PublishError};
use libp2p::kad::{self, GetRecordOk, KBucketKey, PutRecordError, QueryId as KadQuery, QueryResult, Quorum, RecordKey};

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

/// After the routing table changed near one of our keys, the record is put there again: when changes have paused for
/// so long, but not before the last time is so long ago; that gap doubles while changes go on.
const SETTLE: Duration = Duration::from_secs(1);
const FIRST_GAP: Duration = Duration::from_secs(4);
const LONGEST_GAP: Duration = Duration::from_secs(300);

/// Puts under way at once, and waiting. A put asks about k + 3 peers; four at a time keep a laptop quiet.
const MAX_PUTS: usize = 4;
const MAX_WAITING_PUTS: usize = 256;

/// Copies that make a put a success, where there are as many peers.
const ENOUGH_COPIES: usize = 3;

/// Lookups under way. The node asks for one member at a time; 256 are a broadcast storm's worth.
const MAX_LOOKUPS: usize = 256;

/// A lookup ends with so many answers, or so long after the first: the rest would say the same.
const ENOUGH_ANSWERS: usize = 3;
const GRACE: Duration = Duration::from_millis(250);

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
    replication: usize,
    known: BTreeMap<PeerId, Known>,
    arrivals: u64,
    waiting: VecDeque<Put>,
    puts: Vec<(KadQuery, DirectoryKey, bool)>,
    lookups: Vec<Lookup>,
    ungossiped: bool,
    /// A peer has subscribed since gossip last failed.
    pub(super) gossip_may_work: bool,
    dirty: BTreeSet<DirectoryKey>,
    changed_at: Instant,
    flushed_at: Instant,
    gap: Duration,
    republish_at: Instant,
    replicate_at: Instant,
    forget_at: Instant,
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
}

struct Lookup {
    id: QueryId,
    key: LookupKey,
    directory_key: DirectoryKey,
    query: KadQuery,
    first: Option<Instant>,
    answers: BTreeMap<PeerId, Answer>,
}

struct Answer {
    record: Arc<Verified<Record>>,
    holders: BTreeSet<PeerId>,
}

impl Records {
    pub(super) fn new(replication: NonZeroUsize, now: Instant) -> Self {
        Self {
            own: None,
            replication: replication.get(),
            known: BTreeMap::new(),
            arrivals: 0,
            waiting: VecDeque::new(),
            puts: Vec::new(),
            lookups: Vec::new(),
            ungossiped: false,
            gossip_may_work: false,
            dirty: BTreeSet::new(),
            changed_at: now,
            flushed_at: now,
            gap: Duration::ZERO,
            republish_at: now + about(REPUBLISH),
            replicate_at: now + about(REPLICATE),
            forget_at: now,
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

    /// The members heard of, latest news first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Arc<Verified<Record>>> {
        let mut known: Vec<_> = self.known.values().collect();
        known.sort_unstable_by_key(|known| std::cmp::Reverse(known.arrival));
        known.into_iter().map(|known| &known.record)
    }

    /// Whether something is due within a fraction of a second.
    pub(super) fn is_busy(&self) -> bool {
        !self.lookups.is_empty() || !self.dirty.is_empty()
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
            self.want_put(key, Arc::clone(&record));
        }
        self.records.dirty.clear();
        self.records.own = Some(record);
        self.records.ungossiped = true;
        self.records.gossip_may_work = true;
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
        self.records.lookups.push(Lookup { id, key, directory_key, query, first: None, answers: BTreeMap::new() });
    }

    pub(super) fn handle_kad(&mut self, event: kad::Event) {
        if let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event {
            match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => self.handle_answer(id, &found),
                QueryResult::GetRecord(_) if step.last => self.finish_lookup(id),
                QueryResult::PutRecord(result) => self.handle_put(id, result),
                QueryResult::GetRecord(_)
                | QueryResult::Bootstrap(_)
                | QueryResult::GetClosestPeers(_)
                | QueryResult::GetProviders(_)
                | QueryResult::StartProviding(_)
                | QueryResult::RepublishProvider(_)
                | QueryResult::RepublishRecord(_) => {}
            }
        } else if let kad::Event::RoutingUpdated { peer, is_new_peer: true, .. } = event {
            self.routing_changed(peer, Instant::now());
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
        self.routing_changed(peer, now);
        self.swarm.behaviour_mut().kad.remove_peer(&peer);
    }

    /// Ends the lookups that have answers enough.
    pub(super) fn end_ripe_lookups(&mut self, now: Instant) {
        let ripe = |lookup: &Lookup| {
            lookup.first.is_some_and(|first| {
                let answers: usize = lookup.answers.values().map(|answer| answer.holders.len()).sum();
                answers >= ENOUGH_ANSWERS || now.saturating_duration_since(first) >= GRACE
            })
        };
        for query in
            self.records.lookups.iter().filter(|lookup| ripe(lookup)).map(|lookup| lookup.query).collect::<Vec<_>>()
        {
            self.finish_lookup(query);
        }
    }

    /// What is due: gossip, republishing, replicating, forgetting.
    pub(super) fn tend_records(&mut self, now: Instant) {
        if self.records.republish_at <= now {
            self.records.republish_at = now + about(REPUBLISH);
            self.put_own(None);
        }
        self.flush_dirty(now);
        if self.records.replicate_at <= now {
            self.records.replicate_at = now + about(REPLICATE);
            self.replicate();
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

    /// Notes which of our keys `peer` is, or was, among the k closest to: there our record must be put again.
    fn routing_changed(&mut self, peer: libp2p::PeerId, now: Instant) {
        let Some(own) = self.records.own.clone() else { return };
        let k = self.records.replication;
        for key in self.keys_of(&own) {
            let target = KBucketKey::new(RecordKey::new(&key));
            let mut closest = self.swarm.behaviour_mut().kad.get_closest_local_peers(&target).take(k);
            if closest.any(|close| *close.preimage() == peer) {
                self.records.dirty.insert(key);
                self.records.changed_at = now;
            }
        }
    }

    fn flush_dirty(&mut self, now: Instant) {
        let records = &mut self.records;
        let quiet = now.saturating_duration_since(records.flushed_at);
        if quiet > LONGEST_GAP {
            records.gap = Duration::ZERO;
        }
        let settled = now.saturating_duration_since(records.changed_at) >= SETTLE || quiet >= 4 * FIRST_GAP;
        if records.dirty.is_empty() || !settled || quiet < records.gap {
            return;
        }
        records.flushed_at = now;
        records.gap = (2 * records.gap).clamp(FIRST_GAP, LONGEST_GAP);
        let dirty = std::mem::take(&mut records.dirty);
        self.put_own(Some(&dirty));
    }

    /// Puts our record under its keys, or under those of `only`.
    fn put_own(&mut self, only: Option<&BTreeSet<DirectoryKey>>) {
        let Some(own) = self.records.own.clone() else { return };
        for key in self.keys_of(&own) {
            if only.is_none_or(|only| only.contains(&key)) {
                self.want_put(key, Arc::clone(&own));
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
            self.want_put(key, record);
        }
    }

    fn want_put(&mut self, key: DirectoryKey, record: Arc<Verified<Record>>) {
        self.records.waiting.retain(|put| put.key != key);
        if self.records.waiting.len() >= MAX_WAITING_PUTS {
            return self.count("put-overflow");
        }
        self.records.waiting.push_back(Put { key, record });
    }

    /// With [`Quorum::All`], though it cannot be reached below k nodes: a smaller quorum ends the put as soon as so
    /// many have answered, and peers that must first be dialled never get their copy. We count the copies ourselves.
    pub(super) fn start_puts(&mut self) {
        while self.records.puts.len() < MAX_PUTS && !self.records.waiting.is_empty() {
            if self.swarm.behaviour_mut().kad.kbuckets().next().is_none() {
                return;
            }
            let Some(Put { key, record }) = self.records.waiting.pop_front() else { return };
            if record.has_expired(unix_now()) {
                continue;
            }
            let of_ours = record.peer() == self.own;
            let value = kad::Record::new(RecordKey::new(&key), record.bytes().to_vec());
            match self.swarm.behaviour_mut().kad.put_record(value, Quorum::All) {
                Ok(query) => self.records.puts.push((query, key, of_ours)),
                Err(error) => tracing::debug!(%error, "our store refuses nothing of ours"),
            }
        }
    }

    fn handle_put(&mut self, query: KadQuery, result: kad::PutRecordResult) {
        let Some(index) = self.records.puts.iter().position(|(running, ..)| *running == query) else { return };
        let (_, key, of_ours) = self.records.puts.swap_remove(index);
        let copies = match result {
            Ok(_) => return,
            Err(PutRecordError::QuorumFailed { success, .. } | PutRecordError::Timeout { success, .. }) => {
                success.len()
            }
        };
        if of_ours && copies < ENOUGH_COPIES.min(self.routing_peers()) {
            self.count("put-with-few-copies");
            self.records.dirty.insert(key);
            self.records.changed_at = Instant::now();
        }
    }

    fn keys_of(&self, record: &Verified<Record>) -> [DirectoryKey; 4] {
        record.lookup_keys().map(|key| key.directory_key(&self.directory_key))
    }
}
