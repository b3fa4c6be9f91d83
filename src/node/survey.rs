//! How our NAT maps, asked anew: three members, or three sockets of one, say where a fresh socket of ours is seen.
//!
//! Only a relayed path makes us ask, or an operator. What we learn goes to the peer as a [`Forecast`], and its own comes back; when both are
//! fresh, [`super::hunt`] acts on them. A NAT that maps by the source alone is believed for a while; of any other only the
//! latest mapping is worth anything, so it is asked again each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::nat::Mapping;
use crate::nat::forecast::{Told, forecast};
use crate::nat::observe::is_local;
use crate::switch::seal_message;
use crate::wire::message::{Forecast, MAX_WITNESSES};
use crate::wire::socket::{split, through};
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::{Event, Transmit};
use super::timers::Timer;

/// Destinations of one survey: two tell whether they matter, the third tells a sequence from chance.
const DESTINATIONS: usize = 1 + MAX_WITNESSES;

/// Answers that take longer do not come: a satellite's round trip.
const PATIENCE: Duration = Duration::from_millis(700);

/// A forecast is acted upon while it is so fresh: the peer needs a survey of its own, and a relay's round trip.
const FRESH: Duration = Duration::from_secs(3);

/// A forecast that has found no answer is sent again.
const REPEAT: Duration = Duration::from_millis(400);

/// From one datagram of a survey to the next: more than the jitter of a LAN, or the NAT would see them in another order.
pub(super) const SPACING: Duration = Duration::from_millis(15);

/// How often witnesses are asked for before the survey is given up.
const ASKS: u32 = 3;

/// A NAT that maps by the source alone is believed to for so long: nobody replaces a router without our addresses changing.
const BELIEVED: Duration = Duration::from_secs(300);

/// Surveys under way at once: each is a socket and three flows.
const MAX_SURVEYS: usize = 8;

/// What surveys have brought, and those under way.
#[derive(Default)]
pub(super) struct Surveys {
    /// By the number of the fresh socket.
    running: BTreeMap<u16, Survey>,
    /// For whom one is wanted as soon as a witness has said where it listens; `None` is the operator.
    wanted: Vec<Option<PeerId>>,
    /// Whom we asked for witnesses, when, and how often.
    asked: Option<(PeerId, Instant, u32)>,
    /// Witnesses of others.
    witnesses: BTreeMap<PeerId, Vec<SocketAddr>>,
    /// For whom our sockets are, but the first and the witnesses.
    owners: BTreeMap<u16, PeerId>,
    /// Our own: numbers and ports.
    own: Vec<(u16, u16)>,
    /// Who asked for them before they were there.
    askers: Vec<PeerId>,
    /// Who did not answer the last time: behind a NAT, most likely, that knows the first socket only.
    silent: BTreeSet<PeerId>,
    /// Our NAT maps by the source alone: seen when, and by whom.
    independent: Option<(Instant, PeerId)>,
    /// How many were made: each rests on others' words, if others are there.
    made: usize,
    /// What the last one has brought.
    latest: Option<(Forecast, Instant)>,
    last_socket: u16,
}

struct Survey {
    /// For whom; `None` is the operator.
    peer: Option<PeerId>,
    began: Instant,
    /// In the order in which they are asked.
    places: Vec<Place>,
    /// How many have been asked.
    asked: usize,
}

struct Place {
    observer: PeerId,
    at: SocketAddr,
    nonce: u64,
    seen: Option<SocketAddr>,
}

/// What we have learnt for a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learnt {
    pub(super) forecast: Forecast,
    /// The socket it was learnt with: whatever it sends next gets the next mapping. The first one where that does not matter.
    pub(super) socket: u16,
}

/// What both sides of a pair know, in one try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    began: Instant,
    /// When ours was sent last.
    told: Instant,
    pub(super) ours: Option<Learnt>,
    pub(super) theirs: Option<Forecast>,
    /// Whether our NAT was asked about.
    surveyed: bool,
    /// Whether it was acted upon.
    pub(super) acted: bool,
}

impl Surveys {
    /// Our network is another.
    pub(super) fn clear(&mut self) {
        self.independent = None;
        self.latest = None;
        self.silent.clear();
        self.witnesses.clear();
    }

    /// A peer is gone.
    pub(super) fn forget(&mut self, id: PeerId) {
        self.witnesses.remove(&id);
        self.silent.remove(&id);
        self.wanted.retain(|wanted| *wanted != Some(id));
        self.askers.retain(|asker| *asker != id);
    }

    /// What the last survey has brought, and when.
    pub(super) fn latest(&self) -> Option<(Forecast, Instant)> {
        self.latest
    }

    /// Whether one for the operator is under way.
    pub(super) fn is_for_operator(&self) -> bool {
        self.wanted.contains(&None) || self.running.values().any(|survey| survey.peer.is_none())
    }

    /// Whether a datagram of `id` that came through socket `number` says nothing of a path to it.
    pub(super) fn is_aside(&self, number: u16, id: PeerId) -> bool {
        self.owners.get(&number) != Some(&id)
    }

    /// Socket `number` is for `id` only.
    pub(super) fn give(&mut self, number: u16, id: PeerId) {
        self.owners.insert(number, id);
    }

    /// All other sockets are closed.
    pub(super) fn keep(&mut self, used: &BTreeSet<u16>) {
        self.owners.retain(|number, _| used.contains(number));
    }

    /// Numbers in use.
    pub(super) fn sockets(&self) -> impl Iterator<Item = u16> {
        self.running.keys().copied().chain(self.own.iter().map(|(number, _)| *number))
    }
}

impl Node {
    /// Learns what our NAT does next, for `id`, and tells it.
    pub(super) fn survey(&mut self, id: PeerId, now: Instant) {
        if self.surveys.running.len() >= MAX_SURVEYS {
            return;
        }
        let Some(exchange) = self.exchange(id, now) else { return };
        if std::mem::replace(&mut exchange.surveyed, true) {
            return;
        }
        if self.lacks_udp() {
            return self.learn(id, Forecast::Blocked, 0, now);
        }
        let untranslated = self.observations.mapping(&self.own.endpoints, false) == Mapping::Untranslated;
        let believed = self.surveys.independent.filter(|(at, _)| now < *at + BELIEVED).map(|(_, by)| by);
        if (untranslated || believed.is_some())
            && let Some(at) = self.seen_at(believed)
        {
            return self.learn(id, Forecast::Independent { at }, 0, now);
        }
        self.begin_survey(Some(id), now);
    }

    /// Learns it for `id`, or for the operator, whatever we believe to know. Nothing comes of it if nobody can see us.
    pub(super) fn begin_survey(&mut self, id: Option<PeerId>, now: Instant) {
        if self.surveys.running.len() >= MAX_SURVEYS {
            return;
        }
        let mut places = self.observers();
        if !places.is_empty() && places.len() < DESTINATIONS {
            // One of two may lie, and nobody can say which: now both are asked, now the one alone, now the other.
            let turn = self.surveys.made % 3;
            if let Some(alone) = turn.checked_sub(1) {
                let first = alone % places.len();
                places.rotate_left(first);
                places.truncate(1);
            }
        }
        let Some((helper, _)) = places.first().copied() else { return };
        if places.len() < DESTINATIONS {
            let Some(witnesses) = self.surveys.witnesses.get(&helper) else {
                self.surveys.wanted.push(id);
                if self.surveys.asked.is_none() {
                    self.ask_witness(helper, 1, now);
                }
                return;
            };
            places.extend(witnesses.iter().map(|at| (helper, *at)));
        }
        places.truncate(DESTINATIONS);
        let Some(number) = self.new_socket() else { return };
        self.surveys.made += 1;
        let places = places.into_iter().map(|(observer, at)| {
            let nonce = self.rng.next_u64();
            Place { observer, at, nonce, seen: None }
        });
        let survey = Survey { peer: id, began: now, places: places.collect(), asked: 0 };
        if let Some(id) = id {
            self.surveys.give(number, id);
        }
        self.surveys.running.insert(number, survey);
        self.tend_surveys(now);
    }

    fn ask_witness(&mut self, helper: PeerId, count: u32, now: Instant) {
        self.surveys.asked = Some((helper, now, count));
        self.send_message(helper, &Message::AskWitness, now);
        self.timers.set_if_earlier(Timer::Survey, now + REPEAT);
    }

    /// Members that we reach directly over IPv4 and that see us from outside, and where they are. Those at private addresses see
    /// what stands between us and them only; they will do if there is nobody else, as where all of the world is one company's.
    fn observers(&self) -> Vec<(PeerId, SocketAddr)> {
        let outside = |id: &PeerId| {
            self.observations.seen_by(*id, false).is_some_and(|(seen, _)| !self.own.endpoints.contains(&seen))
        };
        let direct = self.peers.values().filter(|peer| peer.is_direct() && outside(&peer.id));
        let mut found: Vec<_> = direct.filter_map(|peer| Some((peer.id, peer.paths.working(false)?))).collect();
        prefer(&mut found, |(_, at)| !is_local(at.ip()));
        // A fresh socket is a stranger to whoever sits behind a NAT.
        prefer(&mut found, |(id, at)| self.is_at_home(*id, *at));
        prefer(&mut found, |(id, _)| !self.surveys.silent.contains(id));
        found
    }

    /// Whether the first place over IPv4 that a member names is `at`, so that it is its own: where others see it, or say that they do, comes
    /// after.
    pub(super) fn is_at_home(&self, id: PeerId, at: SocketAddr) -> bool {
        let mut named = self.roster.get(&id).into_iter().flat_map(|record| &record.endpoints);
        named.find(|named| named.is_ipv4()) == Some(&at)
    }

    /// Where our first socket is seen over IPv4, by `observer` if it has told: outside, or by everybody.
    fn seen_at(&self, observer: Option<PeerId>) -> Option<SocketAddr> {
        if let Some((seen, _)) = observer.and_then(|observer| self.observations.seen_by(observer, false)) {
            return Some(seen);
        }
        let public = self.own.endpoints.iter().filter(|at| !is_local(at.ip()));
        self.own.reflexive.iter().chain(public).find(|at| at.is_ipv4()).copied()
    }

    /// The numbers of the sockets that we offer as witnesses, once they are there.
    pub(super) fn witness_sockets(&self) -> impl Iterator<Item = u16> {
        self.surveys.own.iter().map(|(number, _)| *number)
    }

    /// Somebody wants to know where else we listen.
    pub(super) fn handle_ask_witness(&mut self, id: PeerId, now: Instant) {
        if self.surveys.own.is_empty() {
            if self.surveys.askers.is_empty() {
                let numbers: BTreeSet<_> = (0..MAX_WITNESSES).filter_map(|_| self.new_socket()).collect();
                self.events.push_back(Event::Witnesses(numbers));
            }
            if !self.surveys.askers.contains(&id) {
                self.surveys.askers.push(id);
            }
            return;
        }
        let ports = self.surveys.own.iter().map(|(_, port)| *port).collect();
        self.send_message(id, &Message::Witness { ports }, now);
    }

    /// The sockets that [`Event::Witnesses`] asked for are there: numbers and ports.
    pub fn handle_witnesses(&mut self, sockets: Vec<(u16, u16)>, now: Instant) {
        self.surveys.own = sockets;
        for id in std::mem::take(&mut self.surveys.askers) {
            self.handle_ask_witness(id, now);
        }
    }

    /// A member says where else it listens.
    pub(super) fn handle_witness(&mut self, id: PeerId, ports: &[u16], now: Instant) {
        let place = self.peers.get(&id).and_then(|peer| peer.paths.working(false));
        let Some(place) = place.filter(|_| ports.len() <= MAX_WITNESSES) else {
            return self.counters.count(DropReason::InnerMalformed);
        };
        if self.surveys.asked.take_if(|(asked, ..)| *asked == id).is_none() {
            return;
        }
        let places = ports.iter().map(|port| SocketAddr::new(place.ip(), *port)).collect();
        self.surveys.witnesses.insert(id, places);
        for peer in std::mem::take(&mut self.surveys.wanted) {
            self.begin_survey(peer, now);
        }
    }

    /// A member asks where it is seen, from a socket that is no path of ours.
    pub(super) fn handle_survey(&mut self, id: PeerId, nonce: u64, source: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.set_aside(source);
        let pong = Message::Pong { nonce, observed: split(source).1 };
        let Some(transport) = peer.current.clone() else { return };
        if let Some(bytes) = seal_message(&transport, &pong, now) {
            self.send_sealed(id, Transmit::to(source, bytes));
        }
    }

    /// A pong: true if it answers a survey.
    pub(super) fn answer_survey(&mut self, id: PeerId, nonce: u64, observed: SocketAddr, now: Instant) -> bool {
        for (number, survey) in &mut self.surveys.running {
            let number = *number;
            let place = survey.places.iter_mut().find(|place| place.observer == id && place.nonce == nonce);
            let Some(place) = place else { continue };
            place.seen = Some(observed);
            if survey.places.iter().all(|place| place.seen.is_some()) {
                self.end_survey(number, now);
            }
            return true;
        }
        false
    }

    /// Asks whoever is next, asks again where nothing came, and gives up what takes too long.
    pub(super) fn tend_surveys(&mut self, now: Instant) {
        self.repeat_forecasts(now);
        if let Some((helper, _, count)) = self.surveys.asked.take_if(|(_, at, _)| now >= *at + REPEAT) {
            if count < ASKS {
                self.ask_witness(helper, count + 1, now);
            } else {
                self.surveys.wanted.clear();
            }
        }
        if let Some((_, at, _)) = self.surveys.asked {
            self.timers.set_if_earlier(Timer::Survey, at + REPEAT);
        }
        let mut due = Vec::new();
        let mut late = Vec::new();
        for (number, survey) in &mut self.surveys.running {
            while let Some(place) = survey.places.get(survey.asked)
                && now >= survey.began + SPACING * survey.asked as u32
            {
                due.push((*number, place.observer, place.at, place.nonce));
                survey.asked += 1;
            }
            let next = match survey.places.get(survey.asked) {
                Some(_) => survey.began + SPACING * survey.asked as u32,
                None => survey.began + PATIENCE,
            };
            if now >= next {
                late.push(*number);
            } else {
                self.timers.set_if_earlier(Timer::Survey, next);
            }
        }
        for (number, observer, at, nonce) in due {
            let transport = self.peers.get(&observer).and_then(|peer| peer.current.clone());
            if let Some(bytes) = transport.and_then(|with| seal_message(&with, &Message::Survey { nonce }, now)) {
                self.send_sealed(observer, Transmit::to(through(number, at), bytes));
            }
        }
        for number in late {
            self.end_survey(number, now);
        }
        if self.surveys.running.is_empty() {
            self.tidy_sockets();
        }
    }

    fn end_survey(&mut self, number: u16, now: Instant) {
        let Some(survey) = self.surveys.running.remove(&number) else { return };
        for place in &survey.places {
            if place.seen.is_some() {
                self.surveys.silent.remove(&place.observer);
            } else {
                self.surveys.silent.insert(place.observer);
            }
        }
        let places = (0..).zip(&survey.places);
        let told = places.filter_map(|(nth, place)| Some(Told { nth, by: place.at.ip(), seen: place.seen? }));
        let told: Vec<_> = told.collect();
        let forecast = forecast(&told, survey.places.len() as i32).and_then(|(forecast, nth)| {
            let by = survey.places.get(nth as usize)?.observer;
            match forecast {
                // Others are to knock at the first socket.
                Forecast::Independent { .. } => Some((Forecast::Independent { at: self.seen_at(Some(by))? }, by)),
                // A peer would send two thousand datagrams there, so it must not be one member's word against another's.
                Forecast::Random { near } => {
                    self.observations.agree_on(near.ip(), &self.own.endpoints).then_some((forecast, by))
                }
                Forecast::Sequential { .. } | Forecast::Blocked => Some((forecast, by)),
            }
        });
        if let Some((forecast, by)) = forecast {
            tracing::debug!(?forecast, "our NAT");
            let independent = matches!(forecast, Forecast::Independent { .. });
            let told = self.seen_at(Some(by)).is_some_and(|at| !self.observations.is_disputed(at));
            self.surveys.independent = (independent && told).then_some((now, by));
            self.surveys.latest = Some((forecast, now));
            if let Some(peer) = survey.peer {
                self.learn(peer, forecast, if independent { 0 } else { number }, now);
            }
        }
        if survey.peer.is_none() {
            let (forecast, seen) = (forecast.map(|(forecast, _)| forecast), told.first().map(|told| told.seen));
            self.end_netcheck_survey(number, forecast, seen, now);
        }
    }

    /// The try under way with `id`, or a new one.
    fn exchange(&mut self, id: PeerId, now: Instant) -> Option<&mut Exchange> {
        let peer = self.peers.get_mut(&id).filter(|peer| !peer.is_direct())?;
        peer.exchange.take_if(|exchange| now >= exchange.began + FRESH);
        Some(peer.exchange.get_or_insert(Exchange {
            began: now,
            told: now,
            ours: None,
            theirs: None,
            surveyed: false,
            acted: false,
        }))
    }

    /// This is what `id` must know of our NAT.
    fn learn(&mut self, id: PeerId, forecast: Forecast, socket: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.account.ours = Some((forecast, now));
        }
        let theirs = self.exchange(id, now).and_then(|exchange| exchange.theirs);
        // It would guess, or wait for our guesses, in vain.
        if is_chance(Some(forecast)) | is_chance(theirs) && !self.may_hunt(id, now) {
            return;
        }
        let Some(exchange) = self.exchange(id, now) else { return };
        (exchange.ours, exchange.told) = (Some(Learnt { forecast, socket }), now);
        self.send_message(id, &Message::Forecast(forecast), now);
        self.timers.set_if_earlier(Timer::Survey, now + REPEAT);
        self.begin_hunt(id, now);
    }

    /// This is what `id` says of its own.
    pub(super) fn handle_forecast(&mut self, id: PeerId, forecast: Forecast, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.account.theirs = Some((forecast, now));
        }
        let at = match forecast {
            Forecast::Independent { at } => Some(at),
            Forecast::Sequential { last, .. } => Some(last),
            Forecast::Random { near } => Some(near),
            Forecast::Blocked => None,
        };
        // Or a member could have us knock at a stranger's by the thousand.
        let its_own = |peer: &super::Peer| {
            let known = peer.paths.endpoints();
            at.is_none_or(|at| known.iter().any(|known| split(*known).1.ip() == at.ip()))
        };
        if !self.peers.get(&id).is_some_and(its_own) {
            return self.counters.count(DropReason::InnerMalformed);
        }
        let Some(exchange) = self.exchange(id, now) else { return };
        let repeated = exchange.theirs.replace(forecast).is_some();
        match exchange.ours {
            // It would not say the same again if it had heard us.
            Some(ours) if repeated => {
                self.send_message(id, &Message::Forecast(ours.forecast), now);
            }
            Some(_) => self.begin_hunt(id, now),
            None => self.survey(id, now),
        }
    }

    /// Says again what has found no answer.
    fn repeat_forecasts(&mut self, now: Instant) {
        let mut due = Vec::new();
        for peer in self.peers.values_mut() {
            let Some(exchange) = peer.exchange.as_mut().filter(|exchange| now < exchange.began + FRESH) else {
                continue;
            };
            let (Some(ours), None) = (exchange.ours, exchange.theirs) else { continue };
            if now >= exchange.told + REPEAT {
                exchange.told = now;
                due.push((peer.id, ours.forecast));
            }
            self.timers.set_if_earlier(Timer::Survey, exchange.told + REPEAT);
        }
        for (id, forecast) in due {
            self.send_message(id, &Message::Forecast(forecast), now);
        }
    }

    /// A socket number that is in no use.
    pub(super) fn new_socket(&mut self) -> Option<u16> {
        self.new_socket_beside(&BTreeSet::new())
    }

    /// A socket number that is in no use and none of `others`.
    pub(super) fn new_socket_beside(&mut self, others: &BTreeSet<u16>) -> Option<u16> {
        let mut used = self.sockets_in_use();
        used.extend(others);
        for _ in 0..=used.len() {
            self.surveys.last_socket = self.surveys.last_socket % MAX_SOCKET + 1;
            if !used.contains(&self.surveys.last_socket) {
                return Some(self.surveys.last_socket);
            }
        }
        None
    }
}

/// Keeps those that are better, if there are any.
pub(super) fn prefer(found: &mut Vec<(PeerId, SocketAddr)>, is_better: impl Fn(&(PeerId, SocketAddr)) -> bool) {
    if found.iter().any(&is_better) {
        found.retain(is_better);
    }
}

/// Whether one side's ports are chance.
pub(super) fn is_chance(forecast: Option<Forecast>) -> bool {
    matches!(forecast, Some(Forecast::Random { .. }))
}

/// Numbers of sockets come around after this many: long after what came through the last one of that number has been read.
const MAX_SOCKET: u16 = 4095;
