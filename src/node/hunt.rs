//! Two members whose NATs cannot be passed by merely knocking, and what they do when each knows how the other's maps.
//!
//! | we | they | we send |
//! |---|---|---|
//! | independent | sequential | to the ports that come next |
//! | sequential | independent | from the fresh socket, which gets the next port |
//! | sequential | sequential | the i-th datagram to their i-th next port, as they do |
//! | independent | random | to two thousand ports, one after the other |
//! | random | independent | from 192 fresh sockets: one of their ports will be guessed (the birthday problem); in the end from all again |
//! | blocked | any | nothing, nor do they |
//! | random | random or sequential | nothing: a path by chance would take minutes and fill both routers' tables |
//!
//! Everything is planned at once, datagram by datagram, and sent when it is due. What hits is authenticated traffic from a new
//! endpoint, so it makes a candidate and then the primary like any other ([`Node::handle_roamed`]). The other sockets are
//! closed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::nat::forecast::{FORESEEN, around, foreseen};
use crate::nat::path::OPENING_TIME;
use crate::switch::seal_message;
use crate::wire::message::Forecast;
use crate::wire::socket::{split, through};
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::{Event, Transmit};
use super::punch::OPENING_HOPS;
use super::survey::{Exchange, Learnt, SPACING, is_chance};
use super::timers::Timer;

/// Sockets of a birthday: with as many, 336 guesses are enough on average, and 1310 in 98 of 100 cases. Twice as many would halve that,
/// and leave no room in [`FLOWS`].
const SOCKETS: usize = 192;

/// Guesses of a birthday: one in five hundred tries fails for want of more. And guesses within [`FLOW_LIFE`], whoever they are for: the NAT
/// before us has a flow for each, and routers hold a few thousand.
pub(super) const GUESSES: u16 = 2048;

/// With fewer left a birthday is put off: half of all would fail.
const ENOUGH_GUESSES: usize = 256;

/// Mere knocking has so long to succeed before a birthday begins.
const HEAD_START: Duration = Duration::from_millis(700);

/// Between two handfuls, and how many: 400 datagrams a second. More is what people report to their provider as an attack.
const TICK: Duration = Duration::from_millis(50);
const HANDFUL: usize = 20;
const HANDFUL_OF_SOCKETS: usize = 32;

/// Of the knocks at the end: where a carrier gives its homes a thousand ports each, every one of them hits, and one is wanted.
const HANDFUL_OF_KNOCKS: usize = 4;

/// How often the ports that come next are tried: the peer's fresh mapping is there a relay's delay later, and datagrams get lost.
const SWEEPS: u32 = 3;
const SWEEP_EVERY: Duration = Duration::from_millis(150);

/// Datagrams that both send to each other's next ports in step: the first may find that somebody else took a port.
const IN_STEP: u32 = 20;

/// After the last datagram: the time of an answer.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Between birthdays for one peer: the second is for bad luck, the third for a router that was restarted.
const BIRTHDAYS: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// A birthday is only for a peer with whom there was traffic so lately: nobody else is worth hundreds of flows.
const USED: Duration = Duration::from_secs(60);

/// Flows that our probing may open in the NAT within [`FLOW_LIFE`], which is how long a NAT keeps one (RFC 4787, REQ-5). Routers
/// with a table of 1024 exist; a birthday and a hundred lone knocks leave them two thirds.
const FLOWS: usize = 300;
const FLOW_LIFE: Duration = Duration::from_secs(120);

/// Datagrams a second to where nobody has answered yet, initiations and knocks alike; so many may go at once. They are what
/// a birthday sends, and no more than a page of the web.
const PROBES: u32 = 400;

/// What is being sent in the hope of an answer.
#[derive(Default)]
pub(super) struct Hunts {
    running: BTreeMap<PeerId, Hunt>,
    /// Where probes went, and when last: the NAT has a flow for each.
    flows: BTreeMap<SocketAddr, Instant>,
    /// Probes sent since when.
    probes: Option<(Instant, u32)>,
    /// Guesses, handful by handful, within [`FLOW_LIFE`].
    guesses: VecDeque<(Instant, usize)>,
    /// Whether sockets may be open that nothing needs.
    untidy: bool,
}

/// When, where, and whether it is only to open our own NAT.
type Probe = (Instant, SocketAddr, bool);

struct Hunt {
    /// The earliest first.
    plan: VecDeque<Probe>,
    sockets: BTreeSet<u16>,
    birthday: bool,
    /// Whether it is us who guess.
    guesses: bool,
    /// Our forecast and theirs.
    known: (Forecast, Forecast),
}

impl Hunts {
    /// Whether probes may go to all of `endpoints`: the flows that are open, and those that this opens, stay in the budget.
    pub(super) fn admit(&mut self, endpoints: &[SocketAddr], now: Instant) -> bool {
        self.flows.retain(|_, last| now < *last + FLOW_LIFE);
        let new = endpoints.iter().filter(|endpoint| !self.flows.contains_key(endpoint)).count();
        let room = self.flows.len() + new <= FLOWS;
        if room {
            self.flows.extend(endpoints.iter().map(|endpoint| (*endpoint, now)));
        }
        room
    }

    /// Takes `count` probes out of this second's budget, if there is room.
    pub(super) fn afford(&mut self, count: u32, now: Instant) -> bool {
        let (began, sent) = self.probes.filter(|(began, _)| now < *began + Duration::from_secs(1)).unwrap_or((now, 0));
        let room = sent + count <= PROBES;
        self.probes = Some((began, if room { sent + count } else { sent }));
        room
    }

    /// How many guesses there is room for.
    fn guesses_left(&self, now: Instant) -> usize {
        let alive = self.guesses.iter().filter(|(at, _)| now < *at + FLOW_LIFE);
        usize::from(GUESSES).saturating_sub(alive.map(|(_, count)| count).sum())
    }

    fn note_guesses(&mut self, count: usize, now: Instant) {
        while self.guesses.front().is_some_and(|(at, _)| now >= *at + FLOW_LIFE) {
            self.guesses.pop_front();
        }
        self.guesses.push_back((now, count));
    }

    /// Whether ports are being tried for `id`.
    pub(super) fn is_running(&self, id: PeerId) -> bool {
        self.running.contains_key(&id)
    }

    pub(super) fn forget(&mut self, id: PeerId) {
        self.running.remove(&id);
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = u16> {
        self.running.values().flat_map(|hunt| hunt.sockets.iter().copied())
    }
}

impl super::peer::Peer {
    /// Whether there was traffic with it lately.
    pub(super) fn is_used(&self, now: Instant) -> bool {
        self.transports().filter_map(|session| session.last_sent()).any(|at| now < at + USED)
    }

    /// When ports may be guessed for it again, if they have been.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let wait = BIRTHDAYS[self.birthdays.saturating_sub(1).min(BIRTHDAYS.len() - 1)];
        self.birthday.map(|last| last + wait)
    }
}

impl Node {
    /// Whether a birthday with `id` may begin: one at a time, for a peer that is used, ever more seldom, and with room for guesses.
    pub(super) fn may_hunt(&self, id: PeerId, now: Instant) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let rested = peer.rests_until().is_none_or(|until| now >= until);
        let room = self.hunts.guesses_left(now) >= ENOUGH_GUESSES;
        peer.is_used(now) && rested && room && !self.hunts.running.values().any(|hunt| hunt.birthday)
    }

    /// Acts on what both sides know, if they do.
    pub(super) fn begin_hunt(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let direct = peer.is_direct();
        let Some(exchange) = peer.exchange.as_mut().filter(|exchange| !direct && !exchange.acted) else { return };
        let Exchange { ours: Some(ours), theirs: Some(theirs), .. } = *exchange else { return };
        exchange.acted = true;
        let birthday = is_chance(Some(ours.forecast)) || is_chance(Some(theirs));
        if birthday && !self.may_hunt(id, now) {
            return;
        }
        let Some((mut plan, sockets)) = self.plan(&ours, &theirs, now) else { return };
        // Guesses last a few seconds, and are for one peer at a time.
        let flows: Vec<_> = plan.iter().map(|(_, to, _)| *to).collect();
        if flows.len() <= FLOWS && !self.hunts.admit(&flows, now) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.account.refused = Some(now);
            }
            return self.counters.count_many(DropReason::ProbeBudget, plan.len() as u64);
        }
        // The last answer may be on its way, so the sockets stay until one more has gone nowhere.
        plan.extend(plan.last().copied().map(|(at, to, _)| (at + AFTERMATH, to, true)));
        tracing::debug!(peer = %id, ours = ?ours.forecast, theirs = ?theirs, datagrams = plan.len(), "hunting a path");
        if birthday && let Some(peer) = self.peers.get_mut(&id) {
            (peer.birthday, peer.birthdays) = (Some(now), peer.birthdays + 1);
        }
        sockets.iter().for_each(|number| self.surveys.give(*number, id));
        let guesses = birthday && is_chance(Some(theirs));
        let known = (ours.forecast, theirs);
        self.hunts.running.insert(id, Hunt { plan: plan.into(), sockets, birthday, guesses, known });
        self.hunt(id, now);
    }

    /// What to send when, and through which sockets.
    fn plan(&mut self, ours: &Learnt, theirs: &Forecast, now: Instant) -> Option<(Vec<Probe>, BTreeSet<u16>)> {
        use Forecast::{Blocked, Independent, Random, Sequential};
        let mut plan = Vec::new();
        let knock = now + OPENING_TIME;
        let birthday = now + HEAD_START;
        match (ours.forecast, *theirs) {
            (Independent { .. }, Sequential { last, step }) => {
                for sweep in 0..SWEEPS {
                    let next = (1..=FORESEEN).filter_map(|nth| foreseen(last, step, nth));
                    plan.extend(next.map(|to| (now + SWEEP_EVERY * sweep, to, false)));
                }
                Some((plan, BTreeSet::new()))
            }
            (Sequential { .. }, Independent { at }) => {
                let to = through(ours.socket, at);
                plan.extend([(now, to, true), (now, to, true), (knock, to, false), (knock + TICK, to, false)]);
                Some((plan, BTreeSet::from([ours.socket])))
            }
            (Sequential { .. }, Sequential { last, step }) => {
                // The order counts, and a LAN has its jitter.
                let next: Vec<_> = (1..=IN_STEP).filter_map(|nth| foreseen(last, step, nth as i32)).collect();
                let opening = (0..).zip(&next).map(|(nth, to)| (now + SPACING * nth, through(ours.socket, *to), true));
                plan.extend(opening);
                let knock = knock + SPACING * IN_STEP;
                plan.extend(next.iter().map(|to| (knock, through(ours.socket, *to), false)));
                Some((plan, BTreeSet::from([ours.socket])))
            }
            (Independent { .. }, Random { near }) => {
                let mut ports: Vec<_> = around(near.port(), GUESSES).collect();
                for last in (1..ports.len()).rev() {
                    ports.swap(last, self.rng.next_u32() as usize % (last + 1));
                }
                ports.truncate(self.hunts.guesses_left(now));
                // Their sockets are open by then.
                let begin = birthday + TICK * SOCKETS.div_ceil(HANDFUL_OF_SOCKETS) as u32;
                plan.extend(ports.into_iter().enumerate().map(|(nth, port)| {
                    (begin + TICK * (nth / HANDFUL) as u32, SocketAddr::new(near.ip(), port), false)
                }));
                Some((plan, BTreeSet::new()))
            }
            (Random { .. }, Independent { at }) => {
                let mut sockets = BTreeSet::from([ours.socket]);
                for nth in 0..SOCKETS - 1 {
                    let number = self.new_socket_beside(&sockets)?;
                    sockets.insert(number);
                    plan.push((birthday + TICK * (nth / HANDFUL_OF_SOCKETS) as u32, through(number, at), true));
                }
                // They stay open for as long as the peer guesses. Then all of them knock: behind two NATs the outer one was not opened
                // yet, and the peer's is open now for as many ports. Sooner would spoil ports with a careless one.
                let end = birthday + TICK * (usize::from(GUESSES) / HANDFUL + SOCKETS / HANDFUL_OF_SOCKETS) as u32;
                plan.extend(
                    sockets.iter().enumerate().map(|(nth, number)| {
                        (end + TICK * (nth / HANDFUL_OF_KNOCKS) as u32, through(*number, at), false)
                    }),
                );
                Some((plan, sockets))
            }
            (Independent { .. }, Independent { .. }) | (Random { .. }, _) | (Sequential { .. }, Random { .. }) => None,
            (Blocked, _) | (_, Blocked) => None,
        }
    }

    /// Sends what is due, until there is a path or nothing is left to try.
    pub(super) fn hunt(&mut self, id: PeerId, now: Instant) {
        let Some(mut hunt) = self.hunts.running.remove(&id) else { return };
        let peer = self.peers.get(&id).filter(|peer| !peer.is_direct());
        let Some(transport) = peer.and_then(|peer| peer.current.clone()) else { return self.tidy_sockets() };
        let nonce = self.rng.next_u64();
        let due = hunt.plan.partition_point(|(at, ..)| *at <= now);
        if hunt.guesses && due > 0 {
            self.hunts.note_guesses(due, now);
        }
        if due > 0
            && let Some(peer) = self.peers.get_mut(&id)
        {
            peer.account.hunted = Some((hunt.known.0, hunt.known.1, now));
        }
        for (_, endpoint, opens) in hunt.plan.drain(..due) {
            // A guess that there is no room for is one of many.
            if !self.is_overlay(split(endpoint).1.ip())
                && self.hunts.afford(1, now)
                && let Some(bytes) = seal_message(&transport, &Message::Ping { nonce }, now)
            {
                self.outbox
                    .push_back(Transmit { hop_limit: opens.then_some(OPENING_HOPS), ..Transmit::to(endpoint, bytes) });
            }
        }
        match hunt.plan.front() {
            Some((next, ..)) => {
                self.timers.set(Timer::Hunt(id), *next);
                self.hunts.running.insert(id, hunt);
            }
            None => self.tidy_sockets(),
        }
    }

    /// Has the sockets closed that nothing needs, once everything has been sent.
    pub(super) fn tidy_sockets(&mut self) {
        self.hunts.untidy = true;
    }

    /// If there is something to close: what is to stay.
    pub(super) fn poll_sockets(&mut self) -> Option<Event> {
        std::mem::take(&mut self.hunts.untidy).then(|| {
            let used = self.sockets_in_use();
            self.surveys.keep(&used);
            Event::Sockets(used)
        })
    }

    /// The numbers of all sockets but the first that something needs.
    pub(super) fn sockets_in_use(&self) -> BTreeSet<u16> {
        let paths = self.peers.values().flat_map(|peer| peer.paths.sockets());
        let learnt = self.peers.values().filter_map(|peer| peer.exchange?.ours.map(|ours| ours.socket));
        paths
            .chain(learnt)
            .chain(self.surveys.sockets())
            .chain(self.hunts.sockets())
            .chain(self.netchecks.sockets())
            .chain(self.filtering.sockets())
            .filter(|number| *number != 0)
            .collect()
    }
}
