//! A frame waits: for a session, or for the directory to say who owns its destination.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::dht::{self, LookupKey, QueryId, Record, Verified};
use crate::identity::{Mac, PeerId};
use crate::switch::{requested, seal_frame};
use crate::wire::ethernet::FrameHead;
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::{Event, Transmit};
use super::timers::Timer;

/// Unknown destinations looked up at a time: a host talks to few strangers at once, a scanner to many.
const MAX_LOOKUPS: usize = 64;

/// Frames kept for one unknown destination; as many TCP starts as a browser opens.
const MAX_FRAMES: usize = 8;

/// After this the directory's silence is a no.
pub(super) const LOOKUP_PATIENCE: Duration = Duration::from_secs(12);

/// A MAC that the directory does not know is not asked for again so soon.
const NEGATIVE_LIFE: Duration = Duration::from_secs(5);

/// Frames whose destination is being looked up, and destinations that nobody has.
#[derive(Default)]
pub(super) struct Frames {
    next_query: u64,
    stations: BTreeMap<QueryId, (Mac, VecDeque<Vec<u8>>)>,
    unknown: BTreeMap<Mac, Instant>,
    /// Addresses that our host asked for and no record here gives.
    addresses: BTreeMap<QueryId, IpAddr>,
    /// Until when they are not looked up again.
    asked: BTreeMap<IpAddr, Instant>,
    /// Operator's lookups are answered elsewhere; they share the numbering.
    pub(super) operator: BTreeMap<QueryId, (super::CommandId, LookupKey)>,
}

impl Frames {
    /// A fresh number.
    pub(super) fn new_query(&mut self) -> QueryId {
        self.next_query += 1;
        QueryId(self.next_query)
    }
}

impl Node {
    /// A unicast frame that forwarding could not place.
    pub(super) fn handle_frame(&mut self, frame: Vec<u8>, now: Instant) {
        let Some(head) = FrameHead::read(&frame) else { return self.counters.count(DropReason::FrameMalformed) };
        match self.roster.find(&LookupKey::Mac(head.destination)).map(Verified::peer) {
            Some(owner) if owner == self.own.peer => self.counters.count(DropReason::OwnDestination),
            Some(owner) => self.send_or_wait(owner, frame, now),
            None => match self.bridging.fdb.place(head.destination) {
                Some(bridge) if bridge == self.own.peer => self.counters.count(DropReason::OwnDestination),
                Some(bridge) => self.send_or_wait(bridge, frame, now),
                None => self.look_up_station(head.destination, frame, now),
            },
        }
    }

    /// A flood that has reached every live session: the others get it once they have one. If it asks for an address, the
    /// directory is asked too: in a large network nobody has sessions, or records, of all.
    pub(super) fn handle_flood(&mut self, frame: &[u8], now: Instant) {
        if let Some(address) = requested(frame) {
            self.look_up_address(address, now);
        }
        let cold = |peer: &&super::Peer| peer.current.is_none() && peer.is_promising();
        let ids: Vec<_> = self.peers.values().filter(cold).map(|peer| peer.id).collect();
        for id in ids {
            if self.roster.get(&id).is_some() {
                self.send_or_wait(id, frame.to_vec(), now);
            }
        }
    }

    pub(super) fn send_or_wait(&mut self, id: PeerId, frame: Vec<u8>, now: Instant) {
        if self.peers.get(&id).is_some_and(|peer| peer.current.is_some()) && self.seal_and_send(id, &frame, now) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else { return self.counters.count(DropReason::WaitFull) };
        if !peer.wait(frame, now) {
            self.counters.count(DropReason::WaitFull);
        }
        self.initiate(id, now);
    }

    /// Seals one frame over the peer's session; false if it has none that seals.
    pub(super) fn seal_and_send(&mut self, id: PeerId, frame: &[u8], now: Instant) -> bool {
        let Some(peer) = self.roster.get(&id).map(|record| self.fib_peer(record, self.peers.get(&id))) else {
            return false;
        };
        let Some(datagrams) = seal_frame(&peer, frame, now) else { return false };
        for bytes in datagrams {
            self.picture.send(Transmit::to(peer.endpoint, bytes), &mut self.outbox);
        }
        true
    }

    /// A session has come up. A message confirms it: our record, if it changed since the handshake began, else a
    /// keepalive. Then goes what waited.
    pub(super) fn flush_waiting(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (frames, late) = peer.take_waiting(now);
        for _ in 0..late {
            self.counters.count(DropReason::WaitFull);
        }
        let message = match self.own.record() {
            Some(record) if record.sequence > peer.told => {
                peer.told = record.sequence;
                Message::Record(record.bytes().to_vec())
            }
            Some(_) | None => Message::Keepalive,
        };
        self.send_message(id, &message, now);
        for frame in frames {
            self.seal_and_send(id, &frame, now);
        }
    }

    /// The peer does not answer: what waited for it is lost.
    pub(super) fn drop_waiting(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (frames, late) = peer.take_waiting(now);
        for _ in 0..frames.len() + late {
            self.counters.count(DropReason::WaitFull);
        }
    }

    /// Nobody has said whose this MAC is. It may be a silent station behind a bridge, so bridges get the frame at once; or a member's, so
    /// the directory is asked too.
    fn look_up_station(&mut self, mac: Mac, frame: Vec<u8>, now: Instant) {
        let lost = u64::from(!self.flood_to_bridges(&frame, now));
        if self.frames.unknown.get(&mac).is_some_and(|until| now < *until) {
            return self.counters.count_many(DropReason::WaitFull, lost);
        }
        if let Some((_, waiting)) = self.frames.stations.values_mut().find(|(wanted, _)| *wanted == mac) {
            if waiting.len() < MAX_FRAMES {
                waiting.push_back(frame);
            } else {
                self.counters.count_many(DropReason::WaitFull, lost);
            }
            return;
        }
        if self.frames.stations.len() >= MAX_LOOKUPS {
            return self.counters.count_many(DropReason::WaitFull, lost);
        }
        self.frames.unknown.retain(|_, until| now < *until);
        if self.frames.unknown.len() < MAX_LOOKUPS {
            self.frames.unknown.insert(mac, now + NEGATIVE_LIFE);
        }
        let id = self.frames.new_query();
        self.frames.stations.insert(id, (mac, VecDeque::from([frame])));
        self.timers.set(Timer::Lookup(id), now + LOOKUP_PATIENCE);
        self.events.push_back(Event::Directory(dht::Command::Lookup { id, key: LookupKey::Mac(mac) }));
    }

    /// The answer, if there is one, becomes known to our host as every new record does.
    fn look_up_address(&mut self, address: IpAddr, now: Instant) {
        let key = LookupKey::Ip(address);
        self.frames.asked.retain(|_, until| now < *until);
        let busy = self.frames.addresses.len() >= MAX_LOOKUPS || self.frames.asked.len() >= MAX_LOOKUPS;
        let known = self.roster.find(&key).is_some() || self.frames.asked.contains_key(&address);
        if busy || known || !self.is_overlay(address) {
            return;
        }
        let id = self.frames.new_query();
        self.frames.asked.insert(address, now + NEGATIVE_LIFE);
        self.frames.addresses.insert(id, address);
        self.timers.set(Timer::Lookup(id), now + LOOKUP_PATIENCE);
        self.events.push_back(Event::Directory(dht::Command::Lookup { id, key }));
    }

    /// The directory found a record.
    pub(super) fn handle_found(&mut self, id: QueryId, record: Verified<Record>, holders: &[PeerId], now: Instant) {
        self.timers.cancel(Timer::Lookup(id));
        self.frames.addresses.remove(&id);
        if let Some((command, key)) = self.frames.operator.remove(&id) {
            self.answer_lookup(command, &key, &record, holders);
        }
        self.take_in(record, now);
        if let Some((mac, frames)) = self.frames.stations.remove(&id) {
            self.frames.unknown.remove(&mac);
            let owner = self.roster.find(&LookupKey::Mac(mac)).map(Verified::peer);
            for frame in frames {
                match owner {
                    Some(owner) if owner != self.own.peer => self.send_or_wait(owner, frame, now),
                    Some(_) | None => self.counters.count(DropReason::WaitFull),
                }
            }
        }
    }

    /// The directory found nothing, or has not answered in time.
    pub(super) fn handle_not_found(&mut self, id: QueryId) {
        self.timers.cancel(Timer::Lookup(id));
        self.frames.addresses.remove(&id);
        if let Some((command, key)) = self.frames.operator.remove(&id) {
            self.fail_lookup(command, &key);
        }
        if let Some((_, frames)) = self.frames.stations.remove(&id)
            && self.bridges().next().is_none()
        {
            self.counters.count_many(DropReason::WaitFull, frames.len() as u64);
        }
    }
}
