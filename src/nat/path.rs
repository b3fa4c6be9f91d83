//! The path agent of one peer: candidates in, the primary out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::wire::relay::{channel_behind, is_discard};
use crate::wire::{socket, stream};

use super::candidate::{Candidate, Origin, Origins, canonical, is_usable};
use super::mtu::{self, PathMtu};
use super::score::PathScore;

/// Candidates kept for a peer: its 8 recorded endpoints, as many sighted or observed. A member that lists more is not
/// easier to reach.
const MAX_CANDIDATES: usize = 16;

/// Between probes while the peer's datagrams come from elsewhere and the primary does not answer: longer than a round
/// trip.
const DOUBT: Duration = Duration::from_secs(1);

/// Between probes while they do and it does: a path that has failed since is noticed after this at the latest.
const DOUBT_CALMED: Duration = Duration::from_secs(5);

/// Between the datagram that opens our own NAT and one that is to arrive: by then the peer, who heard of us when we heard of it,
/// has opened its own. Gossip and relays bring news to both sides within less.
pub const OPENING_TIME: Duration = Duration::from_millis(250);

/// Where somebody answered so lately, a NAT still has the flow.
const PROVED: Duration = Duration::from_secs(60);

/// A path that has answered so lately works, though a probe is on its way.
const LIVES: Duration = Duration::from_secs(3);

/// Who is named by these has no NAT before it that our first datagram would have to open.
const OPEN: [Origin; 5] = [Origin::Sighting, Origin::Remembered, Origin::Observed, Origin::Relay, Origin::Stream];

/// Keeps the candidates of one peer and chooses the primary.
#[derive(Debug, Clone, Default)]
pub struct PathAgent {
    candidates: Vec<Candidate>,
    primary: Option<SocketAddr>,
    round: Option<Round>,
    /// The one before: its answers may still be on their way, and count.
    earlier: Option<Round>,
    /// From where the peer spoke last that was not the primary.
    heard: Option<SocketAddr>,
    /// A question over a path that is merely kept open: its nonce, and when it was asked.
    refresh: Option<(u64, Instant)>,
}

/// Probes under way: one nonce, sent to several candidates.
#[derive(Debug, Clone, Copy)]
struct Round {
    nonce: u64,
    sent: Instant,
    /// When the first was sent of those that nobody has answered, this one the last.
    since: Instant,
    decided: bool,
    /// Whether one more has been asked since. Not more: its answer may look like a move in turn.
    joined: bool,
}

impl PathAgent {
    /// Replaces the candidates of `origin` by `endpoints`; those that another origin names too stay. Returns whether
    /// anything is there now that was not before.
    pub fn set_candidates(&mut self, origin: Origin, endpoints: &[SocketAddr]) -> bool {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| canonical(*endpoint)).filter(is_usable).collect();
        self.candidates
            .retain_mut(|candidate| endpoints.contains(&candidate.endpoint) || !candidate.origins.remove(origin));
        let mut news = false;
        for endpoint in endpoints {
            news |= self.add(endpoint, origin);
        }
        news
    }

    /// Adds one candidate; true if its endpoint is new.
    pub fn add(&mut self, endpoint: SocketAddr, origin: Origin) -> bool {
        let endpoint = canonical(endpoint);
        if let Some(known) = self.candidates.iter_mut().find(|candidate| candidate.endpoint == endpoint) {
            known.origins.insert(origin);
            return false;
        }
        // What came in through another of our sockets is answered through it, and what came by a stream by that.
        let (_, there) = if origin == Origin::Observed { socket::split(endpoint) } else { (0, endpoint) };
        let streamed = stream::number_behind(&there).is_some() && matches!(origin, Origin::Observed | Origin::Stream);
        if !is_usable(&there) && origin != Origin::Relay && !streamed {
            return false;
        }
        if self.candidates.len() >= MAX_CANDIDATES {
            let primary = self.primary;
            let worst = self
                .candidates
                .iter()
                .enumerate()
                .filter(|(_, candidate)| Some(candidate.endpoint) != primary)
                .max_by_key(|(index, candidate)| {
                    (PathScore::of(candidate), std::cmp::Reverse(candidate.origins), *index)
                })
                .map(|(index, _)| index);
            if let Some(worst) = worst {
                self.candidates.remove(worst);
            }
        }
        let mut origins = Origins::default();
        origins.insert(origin);
        let (opened, tried, answered, rtt) = (None, None, None, None);
        let found_by = origin;
        let (mtu, relays) = (PathMtu::default(), u8::from(channel_behind(&endpoint).is_some()));
        self.candidates.push(Candidate { endpoint, origins, opened, tried, answered, rtt, mtu, relays, found_by });
        true
    }

    /// A relay has opened a channel, or says anew how many relays it leads over.
    pub fn add_relayed(&mut self, endpoint: SocketAddr, relays: u8) {
        self.add(endpoint, Origin::Relay);
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.endpoint == endpoint) {
            candidate.relays = relays;
        }
    }

    /// A relay is gone, or a stream: its channel is no path any more. True if it was the primary.
    pub fn remove(&mut self, endpoint: SocketAddr) -> bool {
        self.candidates.retain(|candidate| candidate.endpoint != endpoint);
        self.primary.take_if(|primary| *primary == endpoint).is_some()
    }

    /// Every endpoint to try, the best first.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let mut candidates: Vec<_> = self.candidates.iter().collect();
        candidates.sort_by_key(|candidate| {
            (Some(candidate.endpoint) != self.primary, PathScore::of(candidate), std::cmp::Reverse(candidate.origins))
        });
        candidates.into_iter().map(|candidate| candidate.endpoint).collect()
    }

    /// Every candidate, the best first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let known = |endpoint| self.candidates.iter().find(|candidate| candidate.endpoint == endpoint).copied();
        self.endpoints().into_iter().filter_map(known).collect()
    }

    /// The sockets through which candidates are reached, the first left out.
    pub fn sockets(&self) -> impl Iterator<Item = u16> {
        self.candidates.iter().map(|candidate| socket::split(candidate.endpoint).0).filter(|number| *number != 0)
    }

    /// Whether another candidate would push one out.
    pub fn is_crowded(&self) -> bool {
        self.candidates.len() >= MAX_CANDIDATES
    }

    /// Whether `endpoint` is a candidate.
    pub fn knows(&self, endpoint: SocketAddr) -> bool {
        let endpoint = canonical(endpoint);
        self.candidates.iter().any(|candidate| candidate.endpoint == endpoint)
    }

    /// Whether nobody has answered from `endpoint` lately, nor sent from there, and it is not on our LAN.
    pub fn is_unproved(&self, endpoint: SocketAddr, now: Instant) -> bool {
        let candidate = self.candidates.iter().find(|candidate| candidate.endpoint == endpoint);
        let named = |origin| candidate.is_some_and(|candidate| candidate.origins.contains(origin));
        let proved = candidate.is_none_or(|candidate| match candidate.answered {
            Some(at) => now < at + PROVED,
            None => named(Origin::Observed),
        });
        !proved && !named(Origin::Sighting) && !named(Origin::Relay) && stream::number_behind(&endpoint).is_none()
    }

    /// Whether what is sent to `endpoint` now is to arrive. It is where nothing has to be opened: where it came from, on
    /// our LAN, at somebody's who had been there, at a relay; elsewhere [`OPENING_TIME`] after the first try, which begins now
    /// if it has not.
    pub fn may_arrive(&mut self, endpoint: SocketAddr, now: Instant) -> bool {
        let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.endpoint == endpoint) else {
            return true;
        };
        candidate.tried = Some(now);
        let opened = *candidate.opened.get_or_insert(now);
        OPEN.iter().any(|origin| candidate.origins.contains(*origin)) || now >= opened + OPENING_TIME
    }

    /// Both sides begin anew: what was opened long ago is closed.
    pub fn begin_anew(&mut self) {
        for candidate in &mut self.candidates {
            candidate.opened = None;
        }
    }

    /// Where datagrams go.
    pub fn primary(&self) -> Option<SocketAddr> {
        self.primary
    }

    /// The best place without a relay that has answered our first socket over this family.
    pub fn working(&self, ipv6: bool) -> Option<SocketAddr> {
        let works = |candidate: &Candidate| {
            candidate.answered.is_some() && candidate.endpoint.is_ipv6() == ipv6 && !is_discard(&candidate.endpoint)
        };
        self.candidates().into_iter().find(works).map(|candidate| candidate.endpoint)
    }

    /// The places without a relay from which the peer has answered, the primary first; at most four.
    pub fn proved(&self) -> Vec<SocketAddr> {
        let others = self.candidates.iter().filter(|it| it.answered.is_some() && it.relays == 0).map(|it| it.endpoint);
        let others = others.filter(|endpoint| Some(*endpoint) != self.primary);
        self.primary.into_iter().chain(others).take(4).collect()
    }

    /// A path that is not the primary is asked with `nonce`, only to be kept open; not sooner than `pace` after the last time.
    pub fn begin_refresh(&mut self, nonce: u64, pace: Duration, now: Instant) -> bool {
        let due = self.refresh.is_none_or(|(_, asked)| now >= asked + pace);
        if due {
            self.refresh = Some((nonce, now));
        }
        due
    }

    /// An answer with `nonce` came from `endpoint`: true if it was to keep a path open. The primary is not in question.
    pub fn on_refreshed(&mut self, nonce: u64, endpoint: SocketAddr, now: Instant) -> bool {
        let Some((_, asked)) = self.refresh.filter(|(expected, _)| *expected == nonce) else { return false };
        self.answered(canonical(endpoint), Some(now.saturating_duration_since(asked)), now);
        true
    }

    /// The last round trip over the primary.
    pub fn rtt(&self) -> Option<Duration> {
        let primary = self.primary?;
        self.candidates.iter().find(|candidate| candidate.endpoint == primary)?.rtt
    }

    /// How long a datagram the primary carries.
    pub fn mtu(&self) -> PathMtu {
        self.candidates.iter().find(|it| Some(it.endpoint) == self.primary).map_or_else(PathMtu::default, |it| it.mtu)
    }

    /// Looks at how long a datagram the primary carries: where to send what. A path that carries none counts as one that
    /// does not answer.
    pub fn tend_mtu(&mut self, seed: u64, busy: bool, now: Instant) -> Option<(SocketAddr, mtu::Step)> {
        let primary = self.candidates.iter_mut().find(|candidate| Some(candidate.endpoint) == self.primary)?;
        let step = primary.mtu.tend(primary.endpoint, seed, busy, primary.rtt, now);
        if step.blocked {
            primary.answered = None;
        }
        Some((primary.endpoint, step))
    }

    /// An answer from `endpoint`: `None` if it is to no probe of its length, else whether something is known now.
    pub fn on_mtu_answer(&mut self, nonce: u64, endpoint: SocketAddr, now: Instant) -> Option<bool> {
        let endpoint = canonical(endpoint);
        self.candidates.iter_mut().find(|candidate| candidate.endpoint == endpoint)?.mtu.on_answer(nonce, now)
    }

    /// Our own lines are others now: what was found of paths over the old ones says nothing.
    pub fn forget_mtus(&mut self) {
        self.candidates.iter_mut().for_each(|candidate| candidate.mtu = PathMtu::default());
    }

    /// A handshake was answered from `endpoint`, or an initiation came from there: it works, and is the primary now. Its
    /// round trip is for probes to measure: a handshake's is mostly cryptography.
    pub fn adopt(&mut self, endpoint: SocketAddr, now: Instant) {
        let endpoint = canonical(endpoint);
        self.add(endpoint, Origin::Observed);
        let blocked = self.candidates.iter().any(|it| it.endpoint == endpoint && it.mtu.is_blocked());
        if blocked && self.primary.is_some_and(|primary| primary != endpoint) {
            // What comes from there says nothing of what goes there; a round of probes will.
            return;
        }
        self.answered(endpoint, None, now);
        self.primary = Some(endpoint);
        (self.round, self.earlier) = (None, None);
    }

    /// A session was replaced by a handshake over `endpoint`: unlike the first, it does not take back what was found meanwhile. Probes that
    /// are under way count on, and a way round that works does not push out a straight one that answers.
    pub fn renew(&mut self, endpoint: SocketAddr, now: Instant) {
        let endpoint = canonical(endpoint);
        let find = |wanted| self.candidates.iter().find(|candidate| Some(candidate.endpoint) == wanted);
        let kept = find(self.primary).is_some_and(|used| {
            let lives = !self.is_unanswered() || used.answered.is_some_and(|at| now < at + LIVES);
            let longer =
                find(Some(endpoint)).is_some_and(|new| PathScore::of(new).is_longer_way_than(&PathScore::of(used)));
            used.endpoint == endpoint || lives && longer
        });
        if !kept {
            return self.adopt(endpoint, now);
        }
        self.answered(endpoint, None, now);
    }

    /// Probes begin: `nonce` goes to every endpoint returned, which are those `wanted`. The first answer makes its endpoint the
    /// primary.
    pub fn begin_round(&mut self, nonce: u64, wanted: impl Fn(&SocketAddr) -> bool, now: Instant) -> Vec<SocketAddr> {
        self.earlier = self.round;
        let since = self.unanswered_since().unwrap_or(now);
        let endpoints: Vec<_> = self.endpoints().into_iter().filter(wanted).collect();
        self.round = Some(Round { nonce, sent: now, since, decided: false, joined: false });
        endpoints
    }

    /// The peer speaks from `endpoint` now and did not before: it has a reason, and what we use may be dead. Not soon after
    /// probes, which come from everywhere.
    pub fn has_moved_to(&mut self, endpoint: SocketAddr, now: Instant) -> bool {
        let moved = self.heard.replace(canonical(endpoint)) != Some(canonical(endpoint));
        moved && self.round.is_none_or(|round| round.decided && now >= round.sent + DOUBT / 4)
    }

    /// The peer speaks from `endpoint`, and nobody has answered the last probes: their nonce, to be sent there too, once.
    pub fn join_round(&mut self, endpoint: SocketAddr) -> Option<u64> {
        let round = self.round.as_mut().filter(|round| !round.decided && !round.joined)?;
        round.joined = self.candidates.iter().any(|candidate| candidate.endpoint == canonical(endpoint));
        round.joined.then_some(round.nonce)
    }

    /// Whether nobody has answered the last probes yet.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered_since().is_some()
    }

    /// Since when nobody has answered any probes.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.round.filter(|round| !round.decided).map(|round| round.since)
    }

    /// Datagrams of the peer come from elsewhere than the primary. Whether to probe for that: at once the first time, soon
    /// again while the primary does not answer, seldom while it does, for then each side merely prefers another path.
    pub fn is_in_doubt(&self, now: Instant) -> bool {
        let Some(round) = self.round else { return true };
        let primary = self.candidates.iter().find(|candidate| Some(candidate.endpoint) == self.primary);
        // Nobody prefers one relay to another for long: the other side has lost this one.
        let relayed = self.primary.is_some_and(|primary| channel_behind(&primary).is_some());
        let answers = !relayed && primary.is_some_and(|primary| primary.answered.is_some_and(|at| at > round.sent));
        now >= round.sent + if answers { DOUBT_CALMED } else { DOUBT }
    }

    /// An answer with `nonce` came from `endpoint`. Returns the round trip if the nonce is of the round under way, and
    /// whether the primary changed: the first to answer becomes it, and then one that is clearly better.
    pub fn on_answer(&mut self, nonce: u64, endpoint: SocketAddr, now: Instant) -> Option<(Duration, bool)> {
        let endpoint = canonical(endpoint);
        let sent = self.round.iter().chain(&self.earlier).find(|round| round.nonce == nonce)?.sent;
        let rtt = now.saturating_duration_since(sent);
        let first = self.round.as_mut().is_some_and(|round| !std::mem::replace(&mut round.decided, true));
        self.add(endpoint, Origin::Observed);
        self.answered(endpoint, Some(rtt), now);
        let score = |wanted| self.candidates.iter().find(|c| Some(c.endpoint) == wanted).map(PathScore::of);
        let better = match (score(Some(endpoint)), score(self.primary)) {
            (Some(new), Some(old)) => first || new.is_clearly_better_than(&old),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let changed = better && self.primary != Some(endpoint);
        if changed {
            self.primary = Some(endpoint);
        }
        Some((rtt, changed))
    }

    /// The peer's record is no longer valid: where it was becomes a memory, worth a try now and then.
    pub fn retire(&mut self) {
        self.reset();
        for candidate in &mut self.candidates {
            candidate.origins = Origins::default();
            candidate.origins.insert(Origin::Remembered);
        }
    }

    /// Whether an invite, or an earlier time, says where the peer was.
    pub fn is_remembered(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.origins.contains(Origin::Remembered))
    }

    /// The peer is gone: nothing is proved any more, and observed endpoints are forgotten.
    pub fn reset(&mut self) {
        self.primary = None;
        (self.round, self.earlier) = (None, None);
        self.candidates.retain_mut(|candidate| !candidate.origins.remove(Origin::Observed));
        for candidate in &mut self.candidates {
            candidate.opened = None;
            candidate.answered = None;
            candidate.rtt = None;
            candidate.mtu = PathMtu::default();
        }
    }

    fn answered(&mut self, endpoint: SocketAddr, rtt: Option<Duration>, now: Instant) {
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.endpoint == endpoint) {
            candidate.answered = Some(now);
            candidate.mtu.unblock();
            candidate.rtt = rtt.or(candidate.rtt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 4747))
    }

    #[test]
    fn the_first_answer_of_a_round_becomes_the_primary() {
        let (mut agent, now) = (PathAgent::default(), start());
        assert!(agent.set_candidates(Origin::Record, &[endpoint(1), endpoint(2)]));
        assert_eq!(agent.begin_round(7, |_| true, now), [endpoint(1), endpoint(2)]);
        assert_eq!(agent.on_answer(8, endpoint(2), now), None);
        let later = now + Duration::from_millis(3);
        assert_eq!(agent.on_answer(7, endpoint(2), later), Some((Duration::from_millis(3), true)));
        assert_eq!(agent.on_answer(7, endpoint(1), later), Some((Duration::from_millis(3), false)));
        assert_eq!(agent.primary(), Some(endpoint(2)));
        assert_eq!(agent.rtt(), Some(Duration::from_millis(3)));
    }

    #[test]
    fn an_answer_to_the_probes_before_the_last_still_counts_but_decides_nothing() {
        let (mut agent, now) = (PathAgent::default(), start());
        agent.set_candidates(Origin::Record, &[endpoint(1), endpoint(2)]);
        let ms = Duration::from_millis;
        agent.begin_round(7, |_| true, now);
        agent.begin_round(8, |_| true, now + ms(1));
        assert_eq!(agent.on_answer(8, endpoint(2), now + ms(31)), Some((ms(30), true)));
        assert_eq!(agent.on_answer(7, endpoint(1), now + ms(32)), Some((ms(32), false)));
        assert_eq!(agent.primary(), Some(endpoint(2)));
        agent.begin_round(9, |_| true, now + ms(40));
        assert_eq!(agent.on_answer(7, endpoint(1), now + ms(50)), None);
    }

    #[test]
    fn a_peer_that_speaks_from_elsewhere_has_moved_once_and_joins_a_round_once() {
        let (mut agent, now) = (PathAgent::default(), start());
        agent.set_candidates(Origin::Record, &[endpoint(1), endpoint(2)]);
        agent.adopt(endpoint(1), now);
        assert!(agent.has_moved_to(endpoint(2), now) && !agent.has_moved_to(endpoint(2), now));
        agent.begin_round(7, |_| true, now);
        assert_eq!(agent.join_round(endpoint(9)), None, "it is no candidate");
        assert_eq!((agent.join_round(endpoint(2)), agent.join_round(endpoint(1))), (Some(7), None));
        assert!(!agent.has_moved_to(endpoint(1), now + DOUBT), "while an answer is awaited");
        agent.on_answer(7, endpoint(2), now + DOUBT);
        assert_eq!(agent.join_round(endpoint(1)), None);
        assert!(agent.has_moved_to(endpoint(2), now + DOUBT));
    }

    #[test]
    fn doubt_is_resolved_at_once_and_then_not_for_ever_asked_again() {
        let (mut agent, now) = (PathAgent::default(), start());
        agent.set_candidates(Origin::Record, &[endpoint(1), endpoint(2)]);
        agent.adopt(endpoint(1), now);
        assert!(agent.is_in_doubt(now));
        agent.begin_round(7, |_| true, now);
        assert!(!agent.is_in_doubt(now + DOUBT / 2) && agent.is_in_doubt(now + DOUBT));
        agent.on_answer(7, endpoint(1), now + Duration::from_millis(1));
        assert!(!agent.is_in_doubt(now + DOUBT) && agent.is_in_doubt(now + DOUBT_CALMED));
    }

    #[test]
    fn a_moved_peer_is_followed_and_its_old_places_are_forgotten() {
        let (mut agent, now) = (PathAgent::default(), start());
        agent.set_candidates(Origin::Record, &[endpoint(1)]);
        agent.adopt(endpoint(9), now);
        assert_eq!(agent.endpoints(), [endpoint(9), endpoint(1)]);
        assert!(agent.set_candidates(Origin::Record, &[endpoint(3)]));
        assert!(!agent.knows(endpoint(1)) && agent.knows(endpoint(9)));
        agent.adopt(endpoint(3), now);
        agent.reset();
        assert_eq!(
            (agent.primary(), agent.endpoints()),
            (None, vec![endpoint(3)]),
            "only what was merely observed goes"
        );
    }

    #[test]
    fn nobody_can_make_us_keep_or_try_silly_endpoints() {
        let mut agent = PathAgent::default();
        let silly = ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "[::]:1", "[ff02::1]:1", "192.0.2.1:0"];
        for text in silly {
            assert!(!agent.add(text.parse().expect("an endpoint"), Origin::Record), "{text}");
        }
        for port in 1..1000 {
            agent.add(SocketAddr::from(([192, 0, 2, 1], port)), Origin::Observed);
        }
        assert_eq!(agent.endpoints().len(), MAX_CANDIDATES);
        assert!(agent.is_crowded() && !PathAgent::default().is_crowded());
        let mapped = "[::ffff:192.0.2.7]:5".parse().expect("an endpoint");
        agent.add(mapped, Origin::Sighting);
        assert!(agent.knows("192.0.2.7:5".parse().expect("an endpoint")));
    }
}
