//! Where no UDP comes back, a member is dialled by TCP, and the same datagrams go by that stream.
//!
//! A stream to a member that others reach leads to everybody else, for it relays: so nobody is dialled to whom a relay leads. A few are
//! dialled together, and those that answer at once are kept: each is a shorter way to one member.
//! A stream is one more candidate ([`crate::wire::stream`]), worse than UDP and better than a relay; while it is the path, UDP is tried again
//! and again, and what is no longer the path is hung up. Only who has no UDP dials; who is dialled learns of it by the first datagram.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::nat::Origin;
use crate::nat::candidate::is_usable;
use crate::nat::observe::is_local;
use crate::wire::relay::channel_behind;
use crate::wire::socket::split;
use crate::wire::stream::{ACCEPTED, TLS_PORT, endpoint, number_behind};

use super::command::StreamInfo;
use super::event::{Event, StreamNews, StreamWish};
use super::sessions::ANSWER_TIME;
use super::timers::Timer;
use super::{Node, Peer};

/// Connections that are being made at once: three members at two places each. Who answers first is taken.
const MAX_DIALS: usize = 6;
const MEMBERS_AT_ONCE: usize = 3;

/// Places of a member that are dialled in one try, that for TLS not counted: with the next try come the next two.
const PLACES: usize = 2;

/// Streams that we have dialled and that lead to a member, in all: those dialled together, and one that may be on its way out.
const MAX_STREAMS: usize = 4;

/// Who was dialled in vain is not dialled again for so long, doubled each time. That is a connection of a few packets every ten
/// minutes in the end, for a member that is off.
const REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(600);

/// A connection is given up by the I/O long before this.
const LONGEST_DIAL: Duration = Duration::from_secs(10);

/// A stream of ours over which nobody has answered by then leads to nobody: six round trips of a satellite.
const PROVE_TIME: Duration = Duration::from_secs(4);

/// One that others have dialled, and over which no member has spoken. They may wait for a slow handshake.
const GUEST_PROVE_TIME: Duration = Duration::from_secs(10);

/// A stream that is no longer the path is kept so long: what works by UDP has shown by then that it stays.
const LINGER: Duration = Duration::from_secs(5);

/// While a stream is the path, UDP is tried so often: eight datagrams, and who has left the hotel notices at once. Less than what lies
/// between two looks at an idle peer, so that each of them tries.
const TRY_UDP: Duration = Duration::from_secs(4);

/// UDP came from outside so lately: a member that does not answer is off. Members kept warm speak every 17 s.
const UDP_LIVES: Duration = Duration::from_secs(20);

/// Members that are asked whether UDP still works, when one has fallen silent.
const ASKED: usize = 3;

/// Their answers are worth something for so long.
const ASKED_LATELY: Duration = Duration::from_secs(3);

/// All streams, and what makes us want one.
#[derive(Default)]
pub(super) struct Streams {
    open: BTreeMap<u32, Stream>,
    /// For whom one is wanted, while others are asked whether UDP works at all.
    wanted: BTreeMap<PeerId, Instant>,
    /// Who was dialled in vain: how often in a row, and until when it is left alone.
    rests: BTreeMap<PeerId, (u32, Instant)>,
    /// When UDP last came from beyond the LAN.
    heard: Option<Instant>,
    /// When others were last asked.
    asked: Option<Instant>,
    last: u32,
}

struct Stream {
    /// For whom it was dialled, or who has spoken over it.
    peer: Option<PeerId>,
    /// Its other end.
    place: SocketAddr,
    /// Since when it is what it is.
    since: Instant,
    stage: Stage,
    /// When UDP was last tried instead.
    tried_udp: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The connection is being made.
    Dialled,
    /// It is there; a member is still to speak.
    Open,
    /// A member has spoken.
    Proved,
    /// It is not the member's path any more.
    Left,
}

impl Streams {
    /// Where the other end of a stream is.
    pub(super) fn place(&self, number: u32) -> Option<SocketAddr> {
        self.open.get(&number).map(|stream| stream.place)
    }

    /// We are somewhere else now: who did not answer may.
    pub(super) fn begin_anew(&mut self) {
        self.rests.clear();
        self.heard = None;
    }

    /// Numbers of streams of or for a peer that we have dialled.
    fn dialled(&self, id: PeerId) -> impl Iterator<Item = (u32, &Stream)> {
        let ours = self.open.iter().filter(move |(number, stream)| **number & ACCEPTED == 0 && stream.peer == Some(id));
        ours.map(|(number, stream)| (*number, stream))
    }
}

impl Peer {
    /// The stream that is its path, if one is.
    pub(super) fn stream(&self) -> Option<u32> {
        self.current.as_ref().and_then(|_| self.paths.primary()).as_ref().and_then(number_behind)
    }
}

/// Whether an endpoint is one of UDP, and not of this LAN.
fn is_udp_outside(endpoint: &SocketAddr) -> bool {
    channel_behind(endpoint).is_none() && number_behind(endpoint).is_none() && !is_local(split(*endpoint).1.ip())
}

/// Where a member can be dialled: at its endpoints, and at port 443 of the same addresses if it takes TLS there.
pub(super) fn with_tls(endpoints: &[SocketAddr], tls: bool) -> Vec<SocketAddr> {
    let mut all = endpoints.to_vec();
    for at in endpoints.iter().filter(|_| tls) {
        let secure = SocketAddr::new(at.ip(), TLS_PORT);
        if !all.contains(&secure) {
            all.push(secure);
        }
    }
    all
}

impl Node {
    /// What became of a stream.
    pub fn handle_stream(&mut self, number: u32, news: StreamNews, now: Instant) {
        match news {
            StreamNews::Accepted { from } => {
                let stream = Stream { peer: None, place: from, since: now, stage: Stage::Open, tried_udp: now };
                self.streams.open.insert(number, stream);
                self.timers.set_if_earlier(Timer::Streams, now + GUEST_PROVE_TIME);
            }
            StreamNews::Connected => self.handle_connected(number, now),
            StreamNews::Closed => self.handle_closed(number, now),
        }
    }

    fn handle_connected(&mut self, number: u32, now: Instant) {
        let Some(stream) = self.streams.open.get_mut(&number) else { return self.hang_up(number) };
        (stream.stage, stream.since) = (Stage::Open, now);
        self.timers.set_if_earlier(Timer::Streams, now + PROVE_TIME);
        let Some(id) = stream.peer else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let before = peer.paths.endpoints();
        peer.paths.add(endpoint(number), Origin::Stream);
        if peer.current.is_some() {
            self.probe_where(id, |candidate| *candidate == endpoint(number), now);
        } else if peer.handshake.is_some() {
            self.try_candidates(id, &before, now);
        } else {
            self.initiate(id, now);
        }
    }

    fn handle_closed(&mut self, number: u32, now: Instant) {
        let Some(stream) = self.streams.open.remove(&number) else { return };
        if let Some(id) = stream.peer.filter(|_| number & ACCEPTED == 0 && stream.stage < Stage::Proved) {
            self.note_vain_dial(id, now);
        }
        self.forget_stream(number, now);
    }

    /// A dial for `id` came to nothing. If it was the last, the member rests.
    fn note_vain_dial(&mut self, id: PeerId, now: Instant) {
        if self.streams.dialled(id).next().is_some() {
            return;
        }
        let failures = self.streams.rests.get(&id).map_or(0, |(failures, _)| *failures);
        let rest = self.jittered((REST * (1 << failures.min(16))).min(LONGEST_REST));
        // No longer a list than that of those whom we know.
        let known = &self.peers;
        self.streams.rests.retain(|member, _| known.contains_key(member));
        self.streams.rests.insert(id, (failures.saturating_add(1), now + rest));
        // Whoever was its member until now is not there.
        if self.peers.get(&id).is_some_and(|peer| peer.current.is_some() && peer.paths.primary().is_none()) {
            self.lose(id, "its connection has ended", now);
        }
    }

    /// A stream is gone: it is nobody's path any more. Whose path it was is dialled again at once, if it was we who had dialled.
    fn forget_stream(&mut self, number: u32, now: Instant) {
        let at = endpoint(number);
        let of = |peer: &&mut Peer| peer.paths.knows(at);
        let lost: Vec<_> =
            self.peers.values_mut().filter(of).filter_map(|peer| peer.paths.remove(at).then_some(peer.id)).collect();
        for id in lost {
            self.redraw(now);
            if self.peers.get(&id).is_some_and(|peer| peer.current.is_some()) {
                self.probe(id, now);
                self.seek_relays(id, now);
                if number & ACCEPTED == 0 {
                    self.dial_for(id, now);
                }
            }
        }
    }

    /// Has a stream closed.
    fn hang_up(&mut self, number: u32) {
        self.events.push_back(Event::Stream(StreamWish::Hang { number }));
    }

    fn drop_stream(&mut self, number: u32, now: Instant) {
        self.streams.open.remove(&number);
        self.hang_up(number);
        self.forget_stream(number, now);
    }

    /// A member is gone, and so is what leads to it.
    pub(super) fn hang_up_on(&mut self, id: PeerId) {
        self.streams.wanted.remove(&id);
        let of = |stream: &Stream| stream.peer == Some(id);
        let numbers: Vec<_> = self.streams.open.iter().filter(|(_, s)| of(s)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.streams.open.remove(&number);
            self.hang_up(number);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.paths.remove(endpoint(number));
            }
        }
    }

    /// A datagram of `id` that opened came from `source`.
    pub(super) fn note_source(&mut self, id: PeerId, source: SocketAddr, now: Instant) {
        if is_udp_outside(&source) {
            self.streams.heard = Some(now);
        } else if let Some(stream) = number_behind(&source).and_then(|number| self.streams.open.get_mut(&number))
            && stream.stage == Stage::Open
        {
            (stream.peer, stream.stage) = (Some(id), Stage::Proved);
            self.streams.rests.remove(&id);
            self.streams.wanted.clear();
            self.timers.set_if_earlier(Timer::Streams, now + LINGER);
        }
    }

    /// The path to `id` is `path` now.
    pub(super) fn note_path(&mut self, id: PeerId, path: SocketAddr, now: Instant) {
        self.note_source(id, path, now);
        match number_behind(&path) {
            Some(number) if number & ACCEPTED == 0 => {
                // What is still being dialled is given up; what is there may be the other side's path by now.
                let ours = self.streams.open.iter().filter(|(_, stream)| stream.stage == Stage::Dialled);
                for other in ours.map(|(other, _)| *other).collect::<Vec<_>>() {
                    self.drop_stream(other, now);
                }
                // It is the first that can be asked for others.
                let waiting = self.peers.values().filter(|peer| peer.id != id && !peer.is_direct());
                let waiting = waiting.filter(|peer| peer.current.is_some() || peer.handshake.is_some());
                for other in waiting.map(|peer| peer.id).collect::<Vec<_>>() {
                    self.seek_more_relays(other, now);
                }
                self.reconsider_homes(now);
            }
            Some(_) => {}
            None if self.streams.open.values().any(|stream| stream.peer == Some(id)) => {
                self.timers.set_if_earlier(Timer::Streams, now + LINGER);
                // What did not pass until now may.
                for peer in self.peers.values_mut().filter(|peer| !peer.is_direct()) {
                    (peer.punched, peer.punches) = (None, 0);
                }
            }
            None => {}
        }
    }

    /// Whether all that we have is a stream: no UDP passes here.
    pub(super) fn lacks_udp(&self) -> bool {
        let ours = |peer: &Peer| peer.stream().is_some_and(|number| number & ACCEPTED == 0);
        let outside = |peer: &Peer| peer.is_direct() && peer.paths.primary().as_ref().is_some_and(is_udp_outside);
        self.peers.values().any(ours) && !self.peers.values().any(outside)
    }

    /// `id` has not answered, neither it nor by relays. If it is UDP that does not pass, somebody is dialled. `gone` says that it was
    /// there a moment ago: then those who were too are asked whether they still are.
    pub(super) fn seek_stream(&mut self, id: PeerId, gone: bool, now: Instant) {
        if self.is_led_to(id, now) {
            return;
        }
        // What came by UDP since the member was asked in vain tells enough: it is silent, not UDP.
        let vain = self.peers.get(&id).and_then(|peer| peer.paths.unanswered_since().max(peer.last_heard()));
        let lives = |heard| if gone { vain.is_some_and(|vain| heard > vain) } else { now < heard + UDP_LIVES };
        if self.streams.heard.is_some_and(lives) {
            return;
        }
        let Some(asked) = self.streams.asked.filter(|asked| now < *asked + ASKED_LATELY) else {
            let outside = |peer: &&Peer| peer.is_direct() && peer.paths.primary().as_ref().is_some_and(is_udp_outside);
            let outside: Vec<_> = self.peers.values().filter(outside).map(|peer| peer.id).take(ASKED).collect();
            if outside.is_empty() {
                return self.dial_for(id, now);
            }
            for other in outside {
                self.probe_primary(other, now);
            }
            self.streams.asked = Some(now);
            self.streams.wanted.insert(id, now);
            return self.timers.set_if_earlier(Timer::Streams, now + ANSWER_TIME);
        };
        if now < asked + ANSWER_TIME {
            self.streams.wanted.insert(id, now);
            return self.timers.set_if_earlier(Timer::Streams, asked + ANSWER_TIME);
        }
        if self.streams.heard.is_none_or(|heard| heard < asked) {
            self.dial_for(id, now);
        }
    }

    /// Whether a relay leads to `id`, or one to whom we have a stream has still to say so.
    fn is_led_to(&self, id: PeerId, now: Instant) -> bool {
        let answers = |peer: &Peer| peer.id != id && peer.stream().is_some() && !peer.paths.is_unanswered();
        let refused = |peer: &Peer| self.relays.has_refused(peer.id, id, now);
        self.relays.lead_to(id, now) || self.peers.values().any(|peer| answers(peer) && !refused(peer))
    }

    /// Dials `id`, and others that could relay to it.
    fn dial_for(&mut self, id: PeerId, now: Instant) {
        let proved =
            self.streams.open.iter().filter(|(number, s)| **number & ACCEPTED == 0 && s.stage == Stage::Proved);
        if proved.count() >= MAX_STREAMS {
            return;
        }
        for member in self.worth_dialling(id, now) {
            self.dial_member(member, now);
        }
    }

    /// `id` itself, its home relays, ours, and whoever else might be reached: those first who were dialled in vain least often.
    fn worth_dialling(&self, id: PeerId, now: Instant) -> Vec<PeerId> {
        let homes: Vec<_> = self.homes_of(id).chain(self.own.homes.iter().copied()).collect();
        let rests = |peer: &Peer| self.streams.rests.get(&peer.id).is_some_and(|(_, until)| now < *until);
        let busy = |peer: &Peer| {
            let fresh = |stream: &Stream| stream.stage < Stage::Proved || !peer.paths.is_unanswered();
            self.streams.dialled(peer.id).any(|(_, stream)| fresh(stream))
        };
        let lives = |peer: &Peer| {
            let path = peer.paths.primary().filter(|_| peer.is_direct() && !peer.paths.is_unanswered());
            path.as_ref().is_some_and(|path| number_behind(path).is_none() && !is_udp_outside(path))
        };
        let worth =
            |peer: &&Peer| peer.noise.is_some() && !peer.departed && !rests(peer) && !busy(peer) && !lives(peer);
        let mut worth: Vec<_> = (self.peers.values().filter(worth))
            .filter(|peer| !self.places(peer).is_empty())
            .map(|peer| {
                let outside = self.places(peer).iter().any(|at| !is_local(at.ip()));
                let failures = self.streams.rests.get(&peer.id).map_or(0, |(failures, _)| *failures);
                (peer.id != id, !outside, !homes.contains(&peer.id), failures, !peer.paths.is_remembered(), peer.id)
            })
            .collect();
        worth.sort_unstable();
        worth.into_iter().map(|(.., member)| member).take(MEMBERS_AT_ONCE).collect()
    }

    /// Where a member can be dialled, what is outside first.
    fn places(&self, peer: &Peer) -> Vec<SocketAddr> {
        let mut candidates: Vec<_> = peer.paths.candidates();
        candidates.retain(|candidate| {
            let at = candidate.endpoint;
            let on_link = matches!(at.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
            let named = [Origin::Record, Origin::Remembered, Origin::Sighting];
            let named = named.iter().any(|origin| candidate.origins.contains(*origin));
            named && is_usable(&at) && !on_link && !self.is_overlay(at.ip()) && self.leads_to(at.ip())
        });
        let mut places: Vec<_> = candidates.into_iter().map(|candidate| candidate.endpoint).collect();
        places.sort_by_key(|at| is_local(at.ip()));
        places
    }

    fn dial_member(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let places = self.places(peer);
        // Another two with each try.
        let tries = self.streams.rests.get(&id).map_or(0, |(failures, _)| *failures as usize);
        let count = places.len().min(PLACES);
        let plain = (0..count).map(|nth| places[(tries * PLACES + nth) % places.len()]);
        let mut chosen: Vec<_> = plain.collect();
        if peer.tls {
            let secure = |at: &SocketAddr| SocketAddr::new(at.ip(), TLS_PORT);
            chosen.extend(places.iter().map(secure).cycle().nth(tries % places.len().max(1)));
        }
        for place in chosen {
            let dialling = self.streams.open.values().filter(|stream| stream.stage == Stage::Dialled).count();
            if dialling >= MAX_DIALS {
                return;
            }
            let number = self.new_stream();
            tracing::debug!(peer = %id, %place, number, "dialling, for no UDP comes back");
            let stream = Stream { peer: Some(id), place, since: now, stage: Stage::Dialled, tried_udp: now };
            self.streams.open.insert(number, stream);
            self.events.push_back(Event::Stream(StreamWish::Dial { number, endpoint: place }));
            self.timers.set_if_earlier(Timer::Streams, now + LONGEST_DIAL);
        }
    }

    fn new_stream(&mut self) -> u32 {
        loop {
            self.streams.last = (self.streams.last + 1) & !ACCEPTED;
            if !self.streams.open.contains_key(&self.streams.last) {
                return self.streams.last;
            }
        }
    }

    /// While the path is a stream that we have dialled: UDP may pass again.
    pub(super) fn try_udp(&mut self, id: PeerId, now: Instant) {
        let Some(number) = self.peers.get(&id).and_then(Peer::stream).filter(|number| number & ACCEPTED == 0) else {
            return;
        };
        let Some(stream) = self.streams.open.get_mut(&number).filter(|stream| now >= stream.tried_udp + TRY_UDP) else {
            return;
        };
        stream.tried_udp = now;
        // The stream is asked too, so that it does not look unanswered.
        self.probe_where(id, |candidate| channel_behind(candidate).is_none(), now);
    }

    /// Hangs up what nobody has spoken over, and what is no longer the path; and asks again for whom one is wanted.
    pub(super) fn tend_streams(&mut self, now: Instant) {
        let mut over = Vec::new();
        let mut next = None;
        for (number, stream) in &mut self.streams.open {
            let ours = number & ACCEPTED == 0;
            let is_path = stream.peer.and_then(|id| self.peers.get(&id)).and_then(Peer::stream) == Some(*number);
            match stream.stage {
                Stage::Proved if !is_path => (stream.stage, stream.since) = (Stage::Left, now),
                Stage::Left if is_path => (stream.stage, stream.since) = (Stage::Proved, now),
                Stage::Dialled | Stage::Open | Stage::Proved | Stage::Left => {}
            }
            let life = match (stream.stage, ours) {
                (Stage::Dialled, _) => LONGEST_DIAL,
                (Stage::Open, true) => PROVE_TIME,
                (Stage::Open, false) => GUEST_PROVE_TIME,
                (Stage::Left, true) => LINGER,
                (Stage::Proved, true) => {
                    next = Some(next.map_or(now + LINGER, |at: Instant| at.min(now + LINGER)));
                    continue;
                }
                // Who has dialled hangs up.
                (Stage::Proved | Stage::Left, false) => continue,
            };
            let end = stream.since + life;
            if now >= end {
                over.push((*number, stream.peer.filter(|_| ours && stream.stage < Stage::Proved)));
            } else {
                next = Some(next.map_or(end, |at: Instant| at.min(end)));
            }
        }
        for (number, vain) in over {
            self.drop_stream(number, now);
            if let Some(id) = vain {
                self.note_vain_dial(id, now);
            }
        }
        for id in std::mem::take(&mut self.streams.wanted).into_keys() {
            if self.peers.get(&id).is_some_and(|peer| peer.current.is_none() || peer.paths.is_unanswered()) {
                self.seek_stream(id, true, now);
            }
        }
        if let Some(next) = next {
            self.timers.set_if_earlier(Timer::Streams, next);
        }
    }

    /// The streams that are members' paths, for an operator.
    pub(super) fn stream_infos(&self) -> Vec<StreamInfo> {
        let path = |peer: &Peer| {
            let number = peer.stream()?;
            let endpoint = self.streams.place(number)?;
            let dialled = number & ACCEPTED == 0;
            Some(StreamInfo {
                name: self.name_of(peer.id),
                endpoint,
                tls: dialled && endpoint.port() == TLS_PORT,
                dialled,
            })
        };
        let mut infos: Vec<_> = self.peers.values().filter_map(path).collect();
        infos.sort_by(|a, b| (&a.name, a.endpoint).cmp(&(&b.name, b.endpoint)));
        infos
    }
}
