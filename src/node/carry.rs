//! What we carry for others: a pair of channels for two members that speak through us, the next relay or the member itself at
//! either end.
//!
//! A relay does not search. It asks on where it reaches the target itself: directly, by a relay of its own, or by one that
//! the target names as its home. Who was asked in vain remembers the asker and tells it when that changes; so a chain of LANs
//! grows together from its ends within a few round trips. The names of all relays go with the question, so a way has no
//! loop, and no more than [`MAX_RELAYS`]. What nobody asks for again and nobody uses is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::switch::{Channel, Meter};
use crate::wire::relay::CHANNELS;
use crate::wire::{DropReason, Message, Open, Way};

use super::Node;
use super::relay::{CHANNEL_LIFE, MAX_RELAYS, REFUSED_FOR};
use super::sessions::ANSWER_TIME;

/// Pairs that we relay for. Each is two entries in the picture; 1024 are a hundred members of whom twenty cannot meet anybody.
const MAX_PAIRS: usize = 1024;

/// Pairs that one neighbour has asked for among them, and of one member: nobody takes all.
const MAX_PAIRS_OF_ONE: usize = 256;

/// Those who asked in vain, in all: a small network with a handful of members absent.
const MAX_ASKERS: usize = 256;

/// What the far end has not answered by then is asked of another, when we are asked again: a little less than
/// [`ANSWER_TIME`], after which an end asks again, because questions do not travel equally fast.
const FAR_ANSWER_TIME: Duration = ANSWER_TIME.saturating_sub(Duration::from_millis(150));

/// The pairs.
#[derive(Default)]
pub(super) struct Carried {
    /// By who has asked, and with which channel.
    pairs: BTreeMap<(PeerId, u32), Pair>,
    /// (asked for, asker), until when.
    askers: BTreeMap<(PeerId, PeerId), Instant>,
    /// Of everybody together.
    meter: Option<Arc<Meter>>,
}

/// Two members that speak through us.
struct Pair {
    origin: PeerId,
    target: PeerId,
    /// Relays before us.
    passed: Vec<PeerId>,
    /// Towards the origin, who has asked.
    near: End,
    /// Towards the target.
    far: End,
    /// The round trip to the origin, microseconds.
    rtt: u32,
    /// Who was the far end before and refused, or did not answer.
    tried: Vec<PeerId>,
    /// Since when a question to the far end waits for an answer.
    asked: Option<Instant>,
    /// When it was asked for last.
    renewed: Instant,
    meter: Arc<Meter>,
}

/// A neighbour on a way.
struct End {
    peer: PeerId,
    /// What it marks datagrams with.
    inbound: u32,
    /// What it wants them marked with, once it has said so.
    outbound: Option<u32>,
}

impl Carried {
    /// Whether a channel of ours has this number.
    pub(super) fn has(&self, channel: u32) -> bool {
        self.pairs.values().any(|pair| pair.near.inbound == channel || pair.far.inbound == channel)
    }

    fn with_far(&mut self, peer: PeerId, channel: u32) -> Option<(&(PeerId, u32), &mut Pair)> {
        self.pairs.iter_mut().find(|(_, pair)| pair.far.peer == peer && pair.far.inbound == channel)
    }
}

impl Node {
    /// Whether we have asked `peer` with this channel to carry on for others.
    pub(super) fn carries_to(&self, peer: PeerId, channel: u32) -> bool {
        let mut pairs = self.relays.carried.pairs.values();
        pairs.any(|pair| pair.far.peer == peer && pair.far.inbound == channel)
    }

    /// How many pairs of members speak through us.
    pub(super) fn carried_couples(&self) -> usize {
        let pairs =
            self.relays.carried.pairs.values().map(|pair| (pair.origin.min(pair.target), pair.origin.max(pair.target)));
        pairs.collect::<BTreeSet<_>>().len()
    }

    /// Ways that lead through us: each of two members may have asked for its own.
    pub(super) fn carried_pairs(&self) -> usize {
        self.relays.carried.pairs.len()
    }

    /// `from` wants a way through us, for itself or for another.
    pub(super) fn handle_open(&mut self, from: PeerId, open: Open, now: Instant) {
        let Open { origin, target, channel, ref passed, rtt } = open;
        let own = self.own.peer;
        let honest = passed.last().map_or(from == origin, |last| *last == from && origin != from);
        let sound = channel < CHANNELS && origin != target && origin != own && target != own && target != from;
        let circular = passed.contains(&own) || passed.contains(&origin) || passed.contains(&target);
        if !sound || !honest || circular || passed.len() >= MAX_RELAYS || !self.is_direct_with(from) {
            return self.refuse_to_carry(from, channel, now);
        }
        let key = (from, channel);
        if let Some(pair) = self.relays.carried.pairs.get_mut(&key).filter(|p| p.origin == origin && p.target == target)
        {
            (pair.renewed, pair.rtt) = (now, rtt);
            pair.passed.clone_from(passed);
            let overdue = pair.asked.is_some_and(|asked| now >= asked + FAR_ANSWER_TIME);
            if !overdue || !self.find_another_far_end(key, now) {
                self.ask_on(key, now);
            }
            return;
        }
        self.relays.carried.pairs.remove(&key);
        let pairs = || self.relays.carried.pairs.values();
        let of_one = |peer: PeerId| pairs().filter(|pair| pair.origin == peer || pair.near.peer == peer).count();
        let room = pairs().count() < MAX_PAIRS && of_one(from).max(of_one(origin)) < MAX_PAIRS_OF_ONE;
        let far = self.far_end(origin, target, from, passed, &[], now).filter(|_| room && self.config.relaying.serve);
        let Some(far) = far else {
            self.remember_asker(target, from, now);
            return self.refuse_to_carry(from, channel, now);
        };
        let limit = self.config.relaying.limit;
        self.relays.carried.meter.get_or_insert_with(|| Arc::new(Meter::new(limit, now)));
        let near = End { peer: from, inbound: self.new_channel(), outbound: Some(channel) };
        // Not in the map yet, so that number could come again.
        let far = loop {
            let inbound = self.new_channel();
            if inbound != near.inbound {
                break End { peer: far, inbound, outbound: None };
            }
        };
        let meter = Arc::new(Meter::new(limit / 2, now));
        let passed = passed.clone();
        let (tried, asked, renewed) = (Vec::new(), None, now);
        let pair = Pair { origin, target, passed, near, far, rtt, tried, asked, renewed, meter };
        self.relays.carried.pairs.insert(key, pair);
        self.ask_on(key, now);
    }

    fn is_direct_with(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(super::Peer::is_direct)
    }

    fn refuse_to_carry(&mut self, to: PeerId, channel: u32, now: Instant) {
        self.send_message(to, &Message::Refused { channel }, now);
    }

    /// Where a way to `target` goes on: there itself, or where we reach it.
    fn far_end(
        &self,
        origin: PeerId,
        target: PeerId,
        near: PeerId,
        passed: &[PeerId],
        tried: &[PeerId],
        now: Instant,
    ) -> Option<PeerId> {
        if self.is_direct_with(target) && !tried.contains(&target) {
            return Some(target);
        }
        let room = MAX_RELAYS.checked_sub(passed.len() + 1).filter(|room| *room > 0)?;
        let fits = |peer: &PeerId| {
            ![origin, target, near].contains(peer)
                && !passed.contains(peer)
                && !tried.contains(peer)
                && self.is_direct_with(*peer)
        };
        let own = self.relays_towards(target, room, now).into_iter().find(fits);
        own.or_else(|| self.homes_of(target).find(fits))
    }

    /// Puts the question to the far end: to the target an offer.
    fn ask_on(&mut self, key: (PeerId, u32), now: Instant) {
        let (own, to_near) = (self.own.peer, self.rtt_to(key.0));
        let Some(pair) = self.relays.carried.pairs.get_mut(&key) else { return };
        pair.asked.get_or_insert(now);
        let (to, channel, rtt) = (pair.far.peer, pair.far.inbound, pair.rtt.saturating_add(to_near));
        let message = if to == pair.target {
            let way = Way { relays: pair.passed.len() as u8 + 1, rtt };
            Message::Offer { peer: pair.origin, channel, way }
        } else {
            let passed = pair.passed.iter().copied().chain([own]).collect();
            Message::Open(Open { origin: pair.origin, target: pair.target, channel, passed, rtt })
        };
        self.redraw(now);
        self.send_with_picture(to, &message, now);
    }

    /// The far end leads nowhere: another is asked. False if there is none.
    fn find_another_far_end(&mut self, key: (PeerId, u32), now: Instant) -> bool {
        let Some(pair) = self.relays.carried.pairs.get(&key) else { return false };
        let tried: Vec<_> = pair.tried.iter().copied().chain([pair.far.peer]).collect();
        let far = self.far_end(pair.origin, pair.target, pair.near.peer, &pair.passed, &tried, now);
        let inbound = self.new_channel();
        let Some(pair) = self.relays.carried.pairs.get_mut(&key) else { return false };
        let Some(peer) = far else {
            // The next question begins from the first again.
            pair.tried.clear();
            return false;
        };
        (pair.tried, pair.asked) = (tried, None);
        pair.far = End { peer, inbound, outbound: None };
        self.ask_on(key, now);
        true
    }

    /// The target has taken what we have offered.
    pub(super) fn handle_accept(&mut self, from: PeerId, channel: u32, mark: u32, now: Instant) {
        let is_target = |pair: &Pair| pair.target == from && mark < CHANNELS;
        if self.relays.carried.with_far(from, channel).is_none_or(|(_, pair)| !is_target(pair)) {
            return self.counters.count(DropReason::UnknownChannel);
        }
        self.pass_opened(from, channel, mark, Way { relays: 0, rtt: 0 }, now);
    }

    /// The far end works: so do we, for the near one.
    pub(super) fn pass_opened(&mut self, from: PeerId, channel: u32, mark: u32, way: Way, now: Instant) {
        let rtt = way.rtt.saturating_add(self.rtt_to(from));
        let Some((_, pair)) = self.relays.carried.with_far(from, channel) else { return };
        let relays = way.relays + 1;
        let Some(near) = pair.near.outbound.filter(|_| pair.passed.len() + usize::from(relays) <= MAX_RELAYS) else {
            return;
        };
        (pair.far.outbound, pair.asked) = (Some(mark), None);
        pair.tried.clear();
        let (to, mark) = (pair.near.peer, pair.near.inbound);
        self.redraw(now);
        self.send_with_picture(to, &Message::Opened { channel: near, mark, way: Way { relays, rtt } }, now);
    }

    /// The far end refuses: another may not.
    pub(super) fn pass_refusal(&mut self, from: PeerId, channel: u32, now: Instant) {
        let Some((&key, _)) = self.relays.carried.with_far(from, channel) else { return };
        self.replace_far_end(key, now);
    }

    fn replace_far_end(&mut self, key: (PeerId, u32), now: Instant) {
        self.redraw(now);
        if self.find_another_far_end(key, now) {
            return;
        }
        if let Some(pair) = self.relays.carried.pairs.remove(&key) {
            self.remember_asker(pair.target, key.0, now);
            self.refuse_to_carry(key.0, key.1, now);
        }
    }

    /// A neighbour is gone.
    pub(super) fn drop_pairs_of(&mut self, id: PeerId, now: Instant) {
        self.relays.carried.pairs.retain(|_, pair| pair.near.peer != id && pair.origin != id);
        let broken = self.relays.carried.pairs.iter().filter(|(_, pair)| pair.far.peer == id).map(|(key, _)| *key);
        for key in broken.collect::<Vec<_>>() {
            self.replace_far_end(key, now);
        }
        self.redraw(now);
    }

    /// Forgets what was not asked for again and is not used.
    pub(super) fn drop_idle_pairs(&mut self, now: Instant) {
        let used = |pair: &Pair| pair.meter.last_used().map_or(pair.renewed, |used| used.max(pair.renewed));
        let before = self.relays.carried.pairs.len();
        self.relays.carried.pairs.retain(|_, pair| now < used(pair) + CHANNEL_LIFE);
        if self.relays.carried.pairs.len() != before {
            self.redraw(now);
        }
        self.relays.carried.askers.retain(|_, until| now < *until);
    }

    /// Who is refused now is told when we find a way: so it does not ask for ever.
    fn remember_asker(&mut self, target: PeerId, asker: PeerId, now: Instant) {
        let askers = &mut self.relays.carried.askers;
        if askers.len() >= MAX_ASKERS {
            askers.retain(|_, until| now < *until);
        }
        if askers.len() < MAX_ASKERS && self.config.relaying.serve {
            askers.insert((target, asker), now + REFUSED_FOR + Duration::from_secs(1));
        }
    }

    /// We reach `target` now: whoever has asked for it in vain may ask again.
    pub(super) fn tell_askers(&mut self, target: PeerId, now: Instant) {
        let range = (target, PeerId([0; 32]))..=(target, PeerId([0xff; 32]));
        let askers: Vec<_> = self.relays.carried.askers.range(range).map(|(key, until)| (*key, *until)).collect();
        for (key, until) in askers {
            self.relays.carried.askers.remove(&key);
            if now < until {
                self.send_message(key.1, &Message::Reached { peer: target }, now);
            }
        }
    }

    /// The channels of what we carry, for the picture.
    pub(super) fn carried_channels(&self) -> impl Iterator<Item = (u32, Channel)> {
        let place = |end: &End| self.peers.get(&end.peer).filter(|peer| peer.is_direct())?.paths.primary();
        let total = self.relays.carried.meter.clone();
        self.relays.carried.pairs.values().flat_map(move |Pair { near, far, meter, .. }| {
            let total = total.clone();
            [(near, far), (far, near)].into_iter().filter_map(move |(from, to)| {
                let meters = [Arc::clone(meter), Arc::clone(total.as_ref()?)];
                let (channel, to) = (to.outbound?, place(to)?);
                let sender = self.peers.get(&from.peer).filter(|peer| peer.is_direct())?;
                let relay = Channel::Relay { from: sender.paths.proved().into(), to, channel, meters };
                Some((from.inbound, relay))
            })
        })
    }
}
