//! Why a member is reached as it is, and not better, told to an operator.
//!
//! Everything is read from what the node keeps anyway, but for an [`Account`] of each peer: what both sides last said of their NATs,
//! which otherwise is forgotten seconds later, what was hunted, and when our own budget kept us from trying.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::nat::candidate::Candidate;
use crate::nat::forecast::{FORESEEN, around, foreseen};
use crate::nat::observe::is_local;
use crate::nat::{Mapping, Origin};
use crate::wire::message::Forecast;
use crate::wire::relay::{channel_behind, is_discard};
use crate::wire::socket::split;
use crate::wire::stream::number_behind;

use super::command::{CandidateInfo, CommandId, ForecastInfo, NatInfo, PathReason, PeerInfo, Reply, WhyInfo};
use super::hunt::GUESSES;
use super::operator::milliseconds;
use super::survey::is_chance;
use super::timers::Timer;
use super::{Node, Peer};

/// Our budget is named as the reason for so long after it kept us from trying: as long as flows count in it.
const REFUSAL_COUNTS: Duration = Duration::from_secs(30);

/// So many initiations in one handshake that are not answered are no chance: the last of them is seconds after the first.
const VAIN: u32 = 3;

/// A path that a hunt has found is seen to be direct so soon: after an answer, at the next look.
const NOTICED: Duration = Duration::from_secs(6);

/// What is remembered of a peer only to be told: as long as the peer is there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    /// What our NAT would do, as last surveyed for it.
    pub(super) ours: Option<(Forecast, Instant)>,
    /// What it said of its own.
    pub(super) theirs: Option<(Forecast, Instant)>,
    /// Our forecast and theirs in the last hunt, and when it last sent something.
    pub(super) hunted: Option<(Forecast, Forecast, Instant)>,
    /// Since when the path has been direct: seen at a look at the sessions.
    pub(super) direct: Option<Instant>,
    /// When our budget last kept us from trying.
    pub(super) refused: Option<Instant>,
}

impl Account {
    /// The peer is gone, and may come back from elsewhere.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// How a direct path to `endpoint` was found; `named` says whether the peer has named it.
    fn found(&self, endpoint: SocketAddr, named: bool) -> PathReason {
        let (number, there) = split(endpoint);
        let Some((ours, theirs, at)) = self.hunted else { return PathReason::Direct };
        // Any socket of ours may be hit, the first too, which knocks all the time.
        let in_time = self.direct.is_none_or(|since| since < at + NOTICED);
        let ours_was_hit = match ours {
            Forecast::Independent { .. } | Forecast::Blocked => None,
            _ if number == 0 && !in_time => None,
            Forecast::Sequential { .. } => Some(PathReason::DirectPredicted),
            Forecast::Random { .. } => Some(PathReason::DirectGuessed),
        };
        let theirs_was_hit = || match theirs {
            _ if named || number != 0 => None,
            Forecast::Independent { .. } | Forecast::Blocked => None,
            Forecast::Sequential { last, step } => (1..=FORESEEN)
                .any(|nth| foreseen(last, step, nth) == Some(there))
                .then_some(PathReason::DirectPredicted),
            Forecast::Random { near } => (near.ip() == there.ip()
                && around(near.port(), GUESSES).contains(&there.port()))
            .then_some(PathReason::DirectGuessed),
        };
        ours_was_hit.or_else(theirs_was_hit).unwrap_or(PathReason::Direct)
    }
}

impl Peer {
    /// Whether it has not answered what would have been answered by now.
    pub(super) fn is_silent(&self) -> bool {
        self.failures > 0 || self.handshake.as_ref().is_some_and(|outstanding| outstanding.attempt >= VAIN)
    }
}

impl Node {
    pub(super) fn tell_why(&mut self, command: CommandId, text: &str, now: Instant) {
        let reply = match self.member(text) {
            Ok(id) => {
                self.why(id, now).unwrap_or_else(|| Reply::Error { message: format!("`{text}` has left just now") })
            }
            Err(message) => Reply::Error { message },
        };
        self.reply(command, reply);
    }

    fn why(&self, id: PeerId, now: Instant) -> Option<Reply> {
        let member = self.peer_info(self.roster.get(&id)?, now);
        let peer = self.peers.get(&id)?;
        let primary = peer.current.as_ref().and_then(|_| peer.paths.primary());
        let reason = self.reason(peer, now);
        let next = if peer.is_direct() || reason == PathReason::RelayedHunting {
            None
        } else if reason == PathReason::RelayedResting {
            peer.rests_until().max(peer.next_punch())
        } else if peer.current.is_some() {
            peer.next_punch()
        } else {
            self.timers.at(Timer::Handshake(id)).or_else(|| self.timers.at(Timer::Reconnect(id)))
        };
        let candidates = peer.paths.candidates();
        let candidates = candidates.iter().filter_map(|candidate| self.candidate_info(candidate, primary, now));
        Some(Reply::Why(Box::new(WhyInfo {
            socket: primary.map(|primary| split(primary).0).filter(|number| *number != 0),
            reason,
            because: because(reason, &member, &peer.account),
            next_try: next.map(|at| at.saturating_duration_since(now).as_secs()),
            our_nat: self.nat_info(peer.account.ours, now),
            their_nat: peer.account.theirs.map(|told| forecast_info(told, now)),
            candidates: candidates.collect(),
            member,
        })))
    }

    fn reason(&self, peer: &Peer, now: Instant) -> PathReason {
        match (&peer.current, peer.paths.primary()) {
            (Some(_), Some(primary)) if channel_behind(&primary).is_some() => self.why_relayed(peer, now),
            (Some(_), Some(primary)) if number_behind(&primary).is_some() => PathReason::DirectStream,
            (Some(_), Some(primary)) => {
                let candidates = peer.paths.candidates();
                let named = |origins: &[Origin]| {
                    let primary = candidates.iter().find(|candidate| candidate.endpoint == primary);
                    primary.is_some_and(|primary| origins.iter().any(|origin| primary.origins.contains(*origin)))
                };
                if named(&[Origin::Sighting]) || is_local(split(primary).1.ip()) {
                    PathReason::DirectLan
                } else {
                    // What a hunt has hit is named by the peer too, as soon as it has heard of it.
                    let hit = candidates.iter().any(|it| it.endpoint == primary && it.found_by == Origin::Observed);
                    peer.account.found(primary, !hit)
                }
            }
            (Some(_), None) => PathReason::NoPath,
            (None, _) => self.why_none(peer, now),
        }
    }

    fn why_relayed(&self, peer: &Peer, now: Instant) -> PathReason {
        let refused = peer.account.refused.is_some_and(|at| now < at + REFUSAL_COUNTS);
        let ours = peer.account.ours.map(|(forecast, _)| forecast);
        let theirs = peer.account.theirs.map(|(forecast, _)| forecast);
        match (ours, theirs) {
            _ if self.lacks_udp() || theirs == Some(Forecast::Blocked) => PathReason::RelayedUdpBlocked,
            _ if !self.can_send_to(peer) => PathReason::RelayedNoCandidates,
            _ if self.hunts.is_running(peer.id) => PathReason::RelayedHunting,
            // Whatever the NATs are said to do, a mere knock may help.
            _ if !peer.was_punched(now) => PathReason::RelayedTrying,
            (Some(Forecast::Random { .. }), Some(Forecast::Random { .. })) => PathReason::RelayedBothRandom,
            (Some(Forecast::Random { .. }), Some(Forecast::Sequential { .. }))
            | (Some(Forecast::Sequential { .. }), Some(Forecast::Random { .. })) => PathReason::RelayedRandomSequential,
            _ if refused => PathReason::RelayedBudget,
            _ if !is_chance(ours) && !is_chance(theirs) => PathReason::RelayedTrying,
            _ if !peer.is_used(now) => PathReason::RelayedIdle,
            _ if peer.rests_until().is_some_and(|until| now < until) => PathReason::RelayedResting,
            _ if !self.may_hunt(peer.id, now) => PathReason::RelayedBudget,
            _ => PathReason::RelayedTrying,
        }
    }

    fn why_none(&self, peer: &Peer, now: Instant) -> PathReason {
        let relayed = peer.paths.endpoints().iter().any(|endpoint| channel_behind(endpoint).is_some());
        if peer.departed {
            PathReason::NoSessionDeparted
        } else if self.is_udp_blocked(now) {
            PathReason::UdpBlocked
        } else if !relayed && !self.can_send_to(peer) {
            PathReason::NoSessionNoCandidates
        } else if peer.is_silent() {
            PathReason::NoSessionUnreachable
        } else if peer.handshake.is_some() {
            PathReason::NoSessionTrying
        } else {
            PathReason::NoSessionIdle
        }
    }

    /// Whether any endpoint of a peer is one to which we could send at all, without a relay.
    fn can_send_to(&self, peer: &Peer) -> bool {
        let endpoints = peer.paths.endpoints().into_iter().filter(|endpoint| !is_discard(&split(*endpoint).1));
        endpoints.map(|endpoint| split(endpoint).1.ip()).any(|there| self.leads_to(there) && !self.is_overlay(there))
    }

    /// Whether an address of ours is of the kind that gets there. IPv6 is not translated, or we were seen elsewhere: who has
    /// none but of its own site gets no further.
    pub(super) fn leads_to(&self, there: IpAddr) -> bool {
        let own = self.own.endpoints.iter().chain(&self.own.reflexive).map(SocketAddr::ip);
        let mut own = own.filter(|own| own.is_ipv6() == there.is_ipv6());
        match there {
            IpAddr::V4(_) => own.next().is_some(),
            // It was sighted on a link of ours.
            IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
            IpAddr::V6(_) => own.any(|own| is_local(own) == is_local(there)),
        }
    }

    fn candidate_info(
        &self,
        candidate: &Candidate,
        primary: Option<SocketAddr>,
        now: Instant,
    ) -> Option<CandidateInfo> {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let relayed = channel_behind(&candidate.endpoint).is_some();
        let name = |origin: Origin| origin.name().to_owned();
        Some(CandidateInfo {
            endpoint: self.place(candidate.endpoint)?,
            // That datagrams came through a relay's channel as well is no news.
            origins: candidate.origins.iter().take(if relayed { 1 } else { usize::MAX }).map(name).collect(),
            via: self.relay_at(candidate.endpoint),
            socket: Some(split(candidate.endpoint).0).filter(|number| *number != 0),
            in_use: Some(candidate.endpoint) == primary,
            tried: candidate.tried.map(ago),
            answered: candidate.answered.map(ago),
            rtt_ms: candidate.rtt.map(milliseconds),
            path_mtu: candidate.mtu.packet(candidate.endpoint),
        })
    }

    /// Where an endpoint is in the underlay; `None` if it is a channel's, and the relay has not opened it or is gone.
    pub(super) fn place(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        let place = self.underlay(endpoint);
        (!is_discard(&place)).then_some(place)
    }

    /// The name of the relay behind an endpoint, if it is a channel's.
    pub(super) fn relay_at(&self, endpoint: SocketAddr) -> Option<String> {
        self.carrier(channel_behind(&endpoint)?).map(|relay| self.name_of(relay))
    }

    /// How our NAT maps: that of IPv4, if we have it.
    pub(super) fn mapping(&self) -> Mapping {
        let ipv6 = self.own.endpoints.iter().all(SocketAddr::is_ipv6);
        self.observations.mapping(&self.own.endpoints, ipv6)
    }

    /// What is known of our own NAT; `surveyed` is what was last learnt for the peer in question.
    pub(super) fn nat_info(&self, surveyed: Option<(Forecast, Instant)>, now: Instant) -> NatInfo {
        let latest = [surveyed, self.surveys.latest()].into_iter().flatten().max_by_key(|(_, at)| *at);
        NatInfo {
            mapping: self.mapping().name().to_owned(),
            survey: latest.map(|told| forecast_info(told, now)),
            seen_at: self.own.reflexive.clone(),
        }
    }
}

pub(super) fn forecast_info((forecast, at): (Forecast, Instant), now: Instant) -> ForecastInfo {
    let (mapping, ports, endpoint) = match forecast {
        Forecast::Independent { at } => ("endpoint-independent", None, Some(at)),
        Forecast::Sequential { last, .. } => ("endpoint-dependent", Some("sequential"), Some(last)),
        Forecast::Random { near } => ("endpoint-dependent", Some("random"), Some(near)),
        Forecast::Blocked => ("udp-blocked", None, None),
    };
    let age = now.saturating_duration_since(at).as_secs();
    ForecastInfo { mapping: mapping.to_owned(), ports: ports.map(str::to_owned), at: endpoint, age }
}

/// The one sentence.
fn because(reason: PathReason, member: &PeerInfo, account: &Account) -> String {
    let name = &member.name;
    let relayed = member.via.as_ref().map_or_else(|| "it is relayed".to_owned(), |relay| format!("relayed by {relay}"));
    let at = member.endpoint.map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
    let whose = |is: fn(Forecast) -> bool| match account.hunted {
        Some((ours, theirs, _)) if is(ours) && is(theirs) => "both NATs give".to_owned(),
        Some((ours, ..)) if is(ours) => "our NAT gives".to_owned(),
        Some(_) | None => format!("the NAT of {name} gives"),
    };
    match reason {
        PathReason::DirectLan => format!("{name} answers{at}, on the local network: no relay is in between"),
        PathReason::Direct => format!("{name} answers{at}: no relay is in between"),
        PathReason::DirectPredicted => {
            let whose = whose(|forecast| matches!(forecast, Forecast::Sequential { .. }));
            format!("{name} answers{at}: {whose} ports in sequence, and the next one was foreseen")
        }
        PathReason::DirectGuessed => {
            let whose = whose(|forecast| matches!(forecast, Forecast::Random { .. }));
            format!("{name} answers{at}: {whose} ports by chance, and one was found by guessing")
        }
        PathReason::DirectStream => format!("{name} is reached by TCP{at}: no UDP passes between the two"),
        PathReason::RelayedUdpBlocked => {
            format!("no UDP passes on one side or on both; {relayed}, who has TCP from there")
        }
        PathReason::RelayedBothRandom => {
            format!("both NATs give ports by chance, so no direct path is possible; {relayed}")
        }
        PathReason::RelayedRandomSequential => {
            format!("one NAT gives ports by chance and the other in sequence, so no direct path is possible; {relayed}")
        }
        PathReason::RelayedNoCandidates => {
            format!("{name} names no endpoint of an address family that this machine has; {relayed}")
        }
        PathReason::RelayedHunting => format!("ports are being tried for a direct path; {relayed} meanwhile"),
        PathReason::RelayedTrying => {
            format!("no candidate of {name} has answered yet, and both go on knocking; {relayed} meanwhile")
        }
        PathReason::RelayedIdle => format!(
            "one NAT gives ports by chance, and they are guessed only while there is traffic with {name}; {relayed}"
        ),
        PathReason::RelayedResting => {
            format!("one NAT gives ports by chance, and guessing has found none; it rests now; {relayed} meanwhile")
        }
        PathReason::RelayedBudget => {
            format!("a direct path is not tried now, to spare this network's NAT; {relayed} meanwhile")
        }
        PathReason::NoSessionTrying => format!("a handshake with {name} is under way"),
        PathReason::NoSessionUnreachable => format!("no candidate of {name} answers: it is off, or none leads there"),
        PathReason::NoSessionDeparted => format!("{name} said goodbye, and has not been heard of since"),
        PathReason::NoSessionIdle => format!("nothing was to be sent to {name} lately; the next frame makes a session"),
        PathReason::NoSessionNoCandidates => {
            format!("no endpoint of {name} is known of an address family that this machine has, and no relay")
        }
        PathReason::UdpBlocked => {
            "nobody answers by UDP, though members answer by TCP: this network blocks UDP, or theirs do".to_owned()
        }
        PathReason::NoPath => format!("the path to {name} is gone, and another is being looked for"),
    }
}
