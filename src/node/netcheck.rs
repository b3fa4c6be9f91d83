//! How this network treats us, asked anew for an operator.
//!
//! A survey with a fresh socket says how our NAT maps; every member that we reach directly says where it sees us; and where the
//! fresh socket's endpoint outside is known, both our sockets send each other a handshake there, which arrives if the NAT hairpins
//! (RFC 4787, section 6). Meanwhile others try to get in ([`super::filtering`]). That takes two seconds at most. The same question
//! asked meanwhile gets the same answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::nat::observe::is_local;
use crate::nat::{Candidate, Mapping};
use crate::session::handshake::Initiator;
use crate::wire::message::Forecast;
use crate::wire::relay::is_discard;
use crate::wire::socket::{split, through};

use super::command::{CommandId, HairpinInfo, NetcheckInfo, ObserverInfo, RelayingInfo, Reply, UdpInfo};
use super::event::Transmit;
use super::handshakes::hello;
use super::operator::{MAX_UNDER_WAY, busy};
use super::timers::Timer;
use super::{Node, Peer};

/// How long all of it may take: asking for witnesses three times, and a survey.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long members may take to say where they see us, if there is no survey to wait for: a satellite's round trip.
const ANSWER_TIME: Duration = Duration::from_millis(700);

/// How long our own datagrams may take to the NAT and back, and how often they are sent: the first opens the NAT for the other's.
const HAIRPIN_TIME: Duration = Duration::from_millis(300);
const HAIRPIN_TRIES: usize = 3;

/// Members asked where they see us.
const MAX_ASKED: usize = 32;

/// UDP counts as blocked when nothing has come for so long after a try: more than the handshake's second try takes.
const SILENCE: Duration = Duration::from_secs(5);

/// What an operator wants to know of our network, and what is remembered for it.
#[derive(Default)]
pub(super) struct Netchecks {
    /// When anything last came from a member without a relay.
    heard: Option<Instant>,
    running: Option<Netcheck>,
}

struct Netcheck {
    /// Who asked.
    commands: Vec<CommandId>,
    /// Whether a survey that brought nothing may be made once more: who did not answer is not asked again.
    again: bool,
    /// When the survey and what follows it are over.
    due: Instant,
    /// The fresh socket, while it is needed.
    socket: Option<u16>,
    hairpin: HairpinInfo,
}

impl Netchecks {
    /// Something came from a member without a relay.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// The number of the socket in use.
    pub(super) fn sockets(&self) -> impl Iterator<Item = u16> {
        self.running.as_ref().and_then(|running| running.socket).into_iter()
    }
}

impl Node {
    pub(super) fn begin_netcheck(&mut self, command: CommandId, now: Instant) {
        if let Some(running) = &mut self.netchecks.running {
            if running.commands.len() >= MAX_UNDER_WAY {
                return self.reply(command, busy());
            }
            return running.commands.push(command);
        }
        let (again, socket, hairpin) = (true, None, HairpinInfo::NotKnown);
        self.netchecks.running = Some(Netcheck { commands: vec![command], again, due: now, socket, hairpin });
        let direct: Vec<_> = self.peers.values().filter(|peer| peer.is_direct()).map(|peer| peer.id).collect();
        for id in direct.into_iter().take(MAX_ASKED) {
            self.probe_primary(id, now);
        }
        self.begin_survey(None, now);
        self.ask_filtering(now);
        let patience = if self.surveys.is_for_operator() { PATIENCE } else { ANSWER_TIME };
        if let Some(running) = &mut self.netchecks.running {
            running.due = now + patience;
        }
        self.tend_netcheck(now);
    }

    /// Ends it if nothing is to be waited for any more.
    pub(super) fn tend_netcheck(&mut self, now: Instant) {
        let told = self.is_filtering_told(now);
        let Some(due) = self.netchecks.running.as_ref().map(|running| running.due) else { return };
        let waits = [Some(due), self.filtering.until().filter(|_| !told)];
        match waits.into_iter().flatten().filter(|at| now < *at).min() {
            Some(next) => self.timers.set(Timer::Netcheck, next),
            None => self.end_netcheck(now),
        }
    }

    /// The survey is over: through socket `number`, which was first seen at `seen`.
    pub(super) fn end_netcheck_survey(
        &mut self,
        number: u16,
        forecast: Option<Forecast>,
        seen: Option<SocketAddr>,
        now: Instant,
    ) {
        let Some(running) = &mut self.netchecks.running else { return };
        if forecast.is_none() && std::mem::take(&mut running.again) {
            return self.begin_survey(None, now);
        }
        let first = self.own.reflexive.iter().find(|at| at.is_ipv4()).copied();
        let (Some(Forecast::Independent { .. }), Some(other), Some(first)) = (forecast, seen, first) else {
            running.due = now;
            return self.tend_netcheck(now);
        };
        (running.socket, running.hairpin, running.due) = (Some(number), HairpinInfo::No, now + HAIRPIN_TIME);
        for _ in 0..HAIRPIN_TRIES {
            for endpoint in [other, through(number, first)] {
                if let Some(bytes) = self.own_initiation(now) {
                    self.outbox.push_back(Transmit::to(endpoint, bytes));
                }
            }
        }
        self.timers.set_if_earlier(Timer::Netcheck, now + HAIRPIN_TIME);
    }

    /// A handshake with ourselves: nobody else can make one, and nobody answers it.
    fn own_initiation(&mut self, now: Instant) -> Option<Vec<u8>> {
        let record = self.own.record()?.bytes().to_vec();
        let (stamp, index, seed) = (self.next_stamp(now), self.new_index(self.own.peer), self.random_seed());
        let public = self.config.key.noise_secret().public();
        let started = Initiator::new(self.epochs.current(), &public, index, &hello(stamp, &record), None, None, seed);
        started.ok().map(|(_, datagram)| datagram)
    }

    /// A handshake of our own came in: true if we wait for it.
    pub(super) fn handle_own_initiation(&mut self, now: Instant) -> bool {
        let Some(running) = self.netchecks.running.as_mut().filter(|running| running.socket.is_some()) else {
            return false;
        };
        running.hairpin = HairpinInfo::Yes;
        // The others of the same kind that are still to come are no strangers' either.
        running.due = running.due.min(now + HAIRPIN_TIME / 3);
        self.timers.set_if_earlier(Timer::Netcheck, running.due);
        true
    }

    /// Everything that will be answered has been.
    fn end_netcheck(&mut self, now: Instant) {
        let Some(running) = self.netchecks.running.take() else { return };
        self.timers.cancel(Timer::Netcheck);
        let filtering = self.filtering.take(now);
        self.tidy_sockets();
        let info = NetcheckInfo { filtering, ..self.netcheck_info(running.hairpin, now) };
        for command in running.commands {
            self.reply(command, Reply::Netcheck(Box::new(info.clone())));
        }
    }

    /// Whether nothing comes back by UDP, though members were tried that are there, as the directory knows by TCP.
    pub(super) fn is_udp_blocked(&self, now: Instant) -> bool {
        let heard = self.netchecks.heard.unwrap_or(self.clock.start);
        if self.lacks_udp() {
            return true;
        }
        if self.peers.values().any(|peer| peer.is_direct() && peer.stream().is_none()) || now < heard + SILENCE {
            return false;
        }
        let tried = |peer: &&Peer| last_tried(peer).is_some_and(|at| at > heard);
        let silent = self.peers.values().filter(|peer| peer.is_silent()).filter(tried).count();
        // Then one that speaks TCP with us is among those that do not answer.
        silent > 0 && silent + self.standing.connections > self.peers.len()
    }

    fn netcheck_info(&self, hairpin: HairpinInfo, now: Instant) -> NetcheckInfo {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let observers = self.observations.latest();
        let mut observers: Vec<_> =
            observers.map(|(id, seen_at, at)| ObserverInfo { name: self.name_of(id), seen_at, age: ago(at) }).collect();
        observers.sort_by(|a, b| (&a.name, a.seen_at).cmp(&(&b.name, b.seen_at)));
        let is_global_ipv6 = |at: &SocketAddr| at.is_ipv6() && !is_local(at.ip());
        let answers = |candidate: &Candidate| {
            candidate.answered.is_some()
                && !is_discard(&candidate.endpoint)
                && is_global_ipv6(&split(candidate.endpoint).1)
        };
        let mtus = self.peers.values().filter(|peer| peer.current.is_some()).filter_map(Peer::path_mtu);
        let (relays, relayed_pairs) = self.relaying();
        let mut of: BTreeMap<PeerId, usize> = BTreeMap::new();
        relays.for_each(|relay| *of.entry(relay).or_default() += 1);
        let mapped: Vec<_> = self.own.mapped.believed().iter().map(ToString::to_string).collect();
        let mut info = NetcheckInfo {
            nat: self.nat_info(None, now),
            filtering: None,
            hairpin,
            port_mapping: (!mapped.is_empty()).then(|| mapped.join(", ")),
            endpoints: self.own.endpoints.clone(),
            observers,
            ipv6: self.own.endpoints.iter().copied().filter(is_global_ipv6).collect(),
            ipv6_answered: self.peers.values().any(|peer| peer.paths.candidates().iter().any(answers)),
            udp: UdpInfo {
                blocked: self.is_udp_blocked(now),
                heard: self.netchecks.heard.map(ago),
                tried: self.peers.values().filter_map(last_tried).max().map(ago),
            },
            streams: self.stream_infos(),
            relays: of.into_iter().map(|(id, members)| RelayingInfo { name: self.name_of(id), members }).collect(),
            relayed_pairs,
            mtu: self.config.mtu,
            path_mtus: mtus.clone().min().zip(mtus.max()),
            advice: Vec::new(),
        };
        info.advice = self.advice(&info);
        info
    }

    /// What to do, if something is bad.
    fn advice(&self, info: &NetcheckInfo) -> Vec<String> {
        let mut advice = Vec::new();
        let port = info.endpoints.first().map_or(4747, SocketAddr::port);
        if info.endpoints.is_empty() {
            advice.push("this machine has no address outside the mesh: plug it in somewhere".to_owned());
        }
        let through: Vec<_> =
            info.streams.iter().filter(|stream| stream.dialled).map(|stream| stream.name.as_str()).collect();
        if info.udp.blocked && !through.is_empty() {
            advice.push(format!(
                "no UDP passes here, so everything goes by TCP to {}, which is slower; have UDP port {port} opened for this machine, or \
                 use another network",
                through.join(" and ")
            ));
        } else if info.udp.blocked {
            advice.push(format!(
                "no UDP comes back, though members answer by TCP: this network blocks it, or theirs do; have UDP port {port} opened for this machine, or use another network"
            ));
        } else if info.udp.heard.is_none() && info.udp.tried.is_some() {
            advice.push(format!(
                "no member has answered yet: all are off, or no endpoint of theirs leads there; let one that is reachable make an \
                 invite, or open UDP port {port} at one"
            ));
        }
        let dependent = info.nat.mapping == Mapping::EndpointDependent.name();
        let ports = info.nat.survey.as_ref().and_then(|survey| survey.ports.as_deref());
        if ports == Some("random") || dependent && ports.is_none() {
            advice.push(format!(
                "this NAT gives each destination another port by chance: members behind a NAT of the same kind are reached through \
                 relays only; forward UDP port {port} to this machine, or let another member be reachable from outside"
            ));
        } else if ports == Some("sequential") {
            advice.push(format!(
                "this NAT gives each destination the next port: members behind a NAT that gives them by chance are reached through \
                 relays only; to change that, forward UDP port {port} to this machine"
            ));
        }
        let behind_nat = info.endpoints.iter().filter(|at| at.is_ipv4()).all(|at| is_local(at.ip()));
        if behind_nat && !info.udp.blocked && info.observers.is_empty() && info.udp.heard.is_some() {
            advice.push(
                "nobody outside sees this machine, so its NAT is not known: connect to a member that is elsewhere"
                    .to_owned(),
            );
        }
        advice
    }
}

/// When an initiation or a probe last went to a member without a relay.
fn last_tried(peer: &Peer) -> Option<Instant> {
    let candidates = peer.paths.candidates().into_iter();
    candidates.filter(|candidate| !is_discard(&split(candidate.endpoint).1)).filter_map(|it| it.tried).max()
}
