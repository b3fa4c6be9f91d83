//! A bridge at work: stations behind us are learned and told, those behind others are taken in, and what nobody knows goes to bridges.
//!
//! A frame of a station that we hear for the first time comes here from forwarding. Everybody with a session is told at once
//! ([`Message::Stations`]), and the frame follows a moment later, when they have a picture with that station in it: otherwise they would refuse
//! it, and the station would ask again after a second. From then on forwarding takes its frames without us.
//!
//! A claim may be lost on the way. So all of them are told with each new session, at the next two looks after that and after news,
//! and then every minute; who does not hear them for three minutes forgets them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::dht::{LookupKey, Record, Verified};
use crate::identity::{Mac, PeerId, Roles};
use crate::switch::{Fdb, Fib};
use crate::wire::ethernet::FrameHead;
use crate::wire::message::Claim;
use crate::wire::{DropReason, Message};

use super::Node;
use super::timers::Timer;

/// How long the first frames of a station wait for others to know of it: a picture every 10 ms, and a slow machine. A person
/// sees nothing below 50 ms.
const HOLD: Duration = Duration::from_millis(30);

/// Frames that wait so: a LAN that comes up behind us is a few dozen stations.
const MAX_HELD: usize = 64;

/// Between two tellings of news to everybody. The first station of a burst is told at once, the others together.
const PACE: Duration = Duration::from_millis(200);

/// How often a peer is told everything after it has changed: at once, and at the next looks.
const TELLINGS: u32 = 3;

/// And from then on.
const REFRESH: Duration = Duration::from_secs(60);

/// Between two looks for what is too old: a tenth of its age.
const SWEEP: Duration = Duration::from_secs(30);

/// What a node keeps of stations.
pub(super) struct Bridging {
    pub(super) fdb: Fdb,
    /// Frames of stations of which nobody was told yet.
    waiting: Vec<Vec<u8>>,
    /// Frames of stations of which others were told, and when they are to go.
    held: VecDeque<(Instant, Vec<u8>)>,
    /// When news was last told.
    told: Option<Instant>,
}

impl Bridging {
    pub(super) fn new(own: PeerId, sequence: u64) -> Self {
        Self { fdb: Fdb::new(own, sequence), waiting: Vec::new(), held: VecDeque::new(), told: None }
    }
}

impl Node {
    /// Whether our certificate lets us speak for stations.
    fn is_bridge(&self) -> bool {
        self.config.chain.links.last().is_some_and(|link| link.body.roles.contains(Roles::BRIDGE))
    }

    /// Whether a record gives `mac` to a member, be it ourselves.
    fn is_owned(&self, mac: Mac) -> bool {
        mac == self.own.mac || self.roster.find(&LookupKey::Mac(mac)).is_some()
    }

    /// A frame from our own TAP whose source forwarding does not know.
    pub(super) fn handle_new_station(&mut self, frame: Vec<u8>, now: Instant) {
        let Some(head) = FrameHead::read(&frame) else { return self.counters.count(DropReason::FrameMalformed) };
        let mac = head.source;
        if !self.is_bridge() {
            return self.counters.count(DropReason::ForeignSource);
        }
        if self.is_owned(mac) {
            return self.counters.count(DropReason::BridgeOwned);
        }
        if let Err(reason) = self.bridging.fdb.learn(mac, now) {
            return self.counters.count(reason);
        }
        let Bridging { fdb, waiting, held, told } = &mut self.bridging;
        if waiting.len() + held.len() >= MAX_HELD {
            self.counters.count(DropReason::WaitFull);
        } else if fdb.is_news(mac) {
            waiting.push(frame);
        } else if fdb.is_admitted(mac) == Some(false) {
            held.push_back((told.map_or(now, |told| told + HOLD), frame));
        } else {
            // The picture with it is not out yet.
            return self.forward(frame, now);
        }
        self.timers.set_if_earlier(Timer::Sweep, now + SWEEP);
        self.tend_stations(now);
    }

    /// Sends what has waited long enough, tells what has changed.
    pub(super) fn tend_stations(&mut self, now: Instant) {
        while self.bridging.held.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, frame)) = self.bridging.held.pop_front() else { break };
            if let Some(head) = FrameHead::read(&frame) {
                self.bridging.fdb.admit(head.source);
                self.redraw(now);
            }
            self.forward(frame, now);
        }
        let paced = self.bridging.told.map(|told| told + PACE);
        if self.bridging.fdb.has_news() && paced.is_none_or(|at| at <= now) {
            self.tell_news(now);
        }
        let paced = self.bridging.told.filter(|_| self.bridging.fdb.has_news()).map(|told| told + PACE);
        let next = self.bridging.held.front().map(|(due, _)| *due).into_iter().chain(paced).min();
        if let Some(next) = next {
            self.timers.set_if_earlier(Timer::Stations, next);
        }
    }

    /// A frame of a station behind us that forwarding did not send.
    fn forward(&mut self, frame: Vec<u8>, now: Instant) {
        let Some(head) = FrameHead::read(&frame) else { return };
        if self.bridging.fdb.is_admitted(head.source).is_none() {
            // It has moved meanwhile.
            return self.counters.count(DropReason::ForeignSource);
        }
        if head.destination == self.own.mac || self.bridging.fdb.is_admitted(head.destination).is_some() {
            return self.counters.count(DropReason::OwnDestination);
        }
        if !head.destination.is_group() {
            return self.handle_frame(frame, now);
        }
        let ids: Vec<_> = self.peers.values().filter(|peer| peer.current.is_some()).map(|peer| peer.id).collect();
        for id in ids {
            self.seal_and_send(id, &frame, now);
        }
        self.handle_flood(&frame, now);
    }

    /// Tells everybody what has changed behind us.
    fn tell_news(&mut self, now: Instant) {
        let claims = self.bridging.fdb.tell_news();
        self.bridging.told = Some(now);
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            for claim in &claims {
                self.send_message(id, &Message::Stations(claim.clone()), now);
            }
        }
        // Whom that does not reach is told at the next looks.
        self.peers.values_mut().for_each(|peer| peer.stations_told = peer.stations_told.min(1));
        let waiting = std::mem::take(&mut self.bridging.waiting);
        self.bridging.held.extend(waiting.into_iter().map(|frame| (now + HOLD, frame)));
        self.redraw(now);
    }

    /// Tells a peer with a new session what is behind us: if nothing is, that too, for it may have heard otherwise in our last life.
    pub(super) fn tell_stations(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            (peer.stations_told, peer.stations_due) = (0, None);
        }
        self.tell_stations_again(id, now);
    }

    /// The same at a look, if it is due.
    pub(super) fn tell_stations_again(&mut self, id: PeerId, now: Instant) {
        if !self.is_bridge() {
            return;
        }
        let nothing = self.bridging.fdb.has_nothing_behind();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let again = peer.stations_due.is_some_and(|due| due <= now) && !nothing;
        if peer.stations_told >= TELLINGS && !again || nothing && peer.stations_told > 1 {
            return;
        }
        peer.stations_told = peer.stations_told.saturating_add(1);
        peer.stations_due = Some(now + REFRESH);
        for claim in self.bridging.fdb.tell_all() {
            self.send_message(id, &Message::Stations(claim), now);
        }
    }

    /// A peer says what is behind it.
    pub(super) fn handle_stations(&mut self, id: PeerId, claim: &Claim, now: Instant) {
        let may = self.roster.get(&id).is_some_and(serves);
        if !may || !self.peers.get_mut(&id).is_some_and(|peer| peer.takes_claim(now)) {
            return self.counters.count(DropReason::BridgeClaim);
        }
        if !claim.is_sound() {
            return self.counters.count(DropReason::InnerMalformed);
        }
        let (own, roster) = (self.own.mac, &self.roster);
        let owned = |mac| mac == own || roster.find(&LookupKey::Mac(mac)).is_some();
        if self.bridging.fdb.take(id, claim, owned, now, &mut self.counters) {
            self.redraw(now);
        }
        self.timers.set_if_earlier(Timer::Sweep, now + SWEEP);
        // One of ours may be there now.
        self.tend_stations(now);
    }

    /// A member's record is new, or another: its MAC is its own, and it may be no bridge any more.
    pub(super) fn review_stations(&mut self, id: PeerId, now: Instant) {
        let Some(record) = self.roster.get(&id) else { return };
        let (mac, serves) = (record.mac, serves(record));
        let changed = self.bridging.fdb.yield_to_record(mac, now);
        if changed | (!serves && self.bridging.fdb.forget(id, now)) {
            self.redraw(now);
            self.tend_stations(now);
        }
    }

    /// A peer is gone, and with it what is behind it.
    pub(super) fn forget_stations_of(&mut self, id: PeerId, now: Instant) {
        if self.bridging.fdb.forget(id, now) {
            self.redraw(now);
        }
    }

    /// Forgets what is too old.
    pub(super) fn sweep_stations(&mut self, now: Instant) {
        if self.bridging.fdb.expire(now) {
            self.redraw(now);
            self.tend_stations(now);
        }
        if !self.bridging.fdb.is_empty() {
            self.timers.set(Timer::Sweep, now + SWEEP);
        }
    }

    /// Sends a frame for a station that nobody knows to every bridge; false if there is none.
    pub(super) fn flood_to_bridges(&mut self, frame: &[u8], now: Instant) -> bool {
        let bridges: Vec<_> = self.bridges().collect();
        for id in &bridges {
            self.send_or_wait(*id, frame.to_vec(), now);
        }
        !bridges.is_empty()
    }

    /// The other bridges that may be reached.
    pub(super) fn bridges(&self) -> impl Iterator<Item = PeerId> {
        let is_there = |peer: &super::Peer| peer.current.is_some() || peer.is_promising();
        let there = move |id: &PeerId| self.peers.get(id).is_some_and(is_there);
        self.roster.iter().filter(|record| serves(record)).map(Verified::peer).filter(there)
    }

    /// Draws foreign stations into a picture that has all members.
    pub(super) fn draw_stations(&mut self, fib: &mut Fib) {
        if self.is_bridge() {
            fib.behind = Some(self.bridging.fdb.behind());
            fib.endpoints.clone_from(&self.own.endpoints);
        }
        for (mac, at) in self.bridging.fdb.places() {
            if let Ok(index) = fib.peers.binary_search_by(|peer| peer.peer.cmp(&at))
                && fib.peers[index].serves
            {
                fib.stations.entry(mac).or_insert(index);
            }
        }
    }
}

/// Whether a member may speak for stations.
fn serves(record: &Verified<Record>) -> bool {
    record.membership().roles().contains(Roles::BRIDGE)
}
