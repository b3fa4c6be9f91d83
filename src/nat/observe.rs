//! What peers see of us: our endpoint from outside, and what that tells of the NAT in between (RFC 4787, section 4.1).
//!
//! Every answer to a probe says, sealed, where the probe came from: for the very socket that carries data, and at no cost. An
//! observer may lie, or sit behind our own NAT, so observers vote, those of one address with one voice; what has been
//! published stays until another endpoint has more votes. Peers try what we publish, so a lie costs them a datagram,
//! and us nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::identity::PeerId;
pub use crate::wire::socket::is_local;

use super::candidate::{canonical, is_usable};

/// After this an observation counts no longer: twenty probes of a session that is kept warm. A NAT that was restarted, or a
/// line with a new address, is forgotten by then even without an event of ours.
const LIFE: Duration = Duration::from_secs(300);

/// Observers remembered: more are no surer, and the oldest goes first.
const MAX_OBSERVERS: usize = 32;

/// Endpoints published for a family: what most see, and one more, so that a lone liar cannot take the place of a lone
/// honest observer.
const MAX_PUBLISHED: usize = 2;

/// How a NAT chooses the external endpoint of our socket (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// Nobody, or only one, has told.
    Unknown,
    /// We are seen at an address of our own: there is none.
    Untranslated,
    /// The same for all destinations: who has it reaches us, once we have sent there.
    EndpointIndependent,
    /// Another for each destination ("symmetric").
    EndpointDependent,
}

impl Mapping {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Untranslated => "untranslated",
            Self::EndpointIndependent => "endpoint-independent",
            Self::EndpointDependent => "endpoint-dependent",
        }
    }
}

/// What one observer saw last.
#[derive(Debug, Clone, Copy)]
struct Observation {
    /// The address at which we reach it.
    observer: IpAddr,
    seen: SocketAddr,
    at: Instant,
}

/// What all of them see.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// By observer and family, IPv6 last.
    latest: BTreeMap<(PeerId, bool), Observation>,
    published: BTreeSet<SocketAddr>,
}

impl Observations {
    /// `peer`, whom we reach at `at`, saw a datagram of ours come from `seen`.
    pub fn note(&mut self, peer: PeerId, at: SocketAddr, seen: SocketAddr, now: Instant) {
        let (at, seen) = (canonical(at), canonical(seen));
        let on_link = matches!(seen.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !is_usable(&seen) || on_link || at.is_ipv6() != seen.is_ipv6() {
            return;
        }
        self.latest.retain(|_, observation| now < observation.at + LIFE);
        self.latest.insert((peer, seen.is_ipv6()), Observation { observer: at.ip(), seen, at: now });
        if self.latest.len() > MAX_OBSERVERS {
            let oldest = self.latest.iter().min_by_key(|(_, observation)| observation.at).map(|(key, _)| *key);
            self.latest.remove(&oldest.expect("there are more than none"));
        }
    }

    /// Where we are seen that is none of our `own` endpoints: candidates to publish, in an order that stays. Where two from outside
    /// see us at our own, a third that does not is alone with it.
    pub fn reflexive(&mut self, own: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut published = BTreeSet::new();
        for ipv6 in [false, true] {
            let least = if self.untranslated(own, ipv6) >= 2 { 2 } else { 1 };
            let votes = self.votes(ipv6).into_iter().filter(|(seen, count)| !own.contains(seen) && *count >= least);
            let mut votes: Vec<_> = votes.collect();
            votes.sort_by_key(|(seen, count)| (std::cmp::Reverse(*count), !self.published.contains(seen), *seen));
            published.extend(votes.into_iter().take(MAX_PUBLISHED).map(|(seen, _)| seen));
        }
        self.published = published;
        self.published.iter().copied().collect()
    }

    /// The addresses at which we are seen that are none of our own.
    pub fn addresses(&self, own: &[SocketAddr]) -> BTreeSet<IpAddr> {
        let seen = self.latest.values().map(|observation| observation.seen.ip());
        seen.filter(|seen| own.iter().all(|own| own.ip() != *seen)).collect()
    }

    /// How our NAT maps, for one family. It takes two observers that agree to call it endpoint-independent, and two
    /// outvoted to call it otherwise: one liar changes nothing.
    pub fn mapping(&self, own: &[SocketAddr], ipv6: bool) -> Mapping {
        let votes = self.votes(ipv6);
        let translated = votes.iter().filter(|(seen, _)| !own.contains(seen)).map(|(_, count)| *count);
        let (most, all) = translated.fold((0, 0), |(most, all), count| (count.max(most), all + count));
        let untranslated = self.untranslated(own, ipv6);
        match (most, all - most) {
            (0 | 1, 0) if untranslated > most => Mapping::Untranslated,
            (0, _) | (1, 0) => Mapping::Unknown,
            (1, _) => Mapping::EndpointDependent,
            (most, others) if others < most => Mapping::EndpointIndependent,
            (_, _) => Mapping::EndpointDependent,
        }
    }

    /// How many who are no neighbours see us at our own address: neighbours do, whatever NAT is behind us.
    fn untranslated(&self, own: &[SocketAddr], ipv6: bool) -> usize {
        let all = self.latest.iter().filter(|((_, family), _)| *family == ipv6).map(|(_, observation)| observation);
        let outside = all.filter(|seen| own.contains(&seen.seen) && !is_local(seen.observer)).map(|seen| seen.observer);
        outside.collect::<BTreeSet<_>>().len()
    }

    /// Where `peer` saw us last over a family, and when.
    pub fn seen_by(&self, peer: PeerId, ipv6: bool) -> Option<(SocketAddr, Instant)> {
        self.latest.get(&(peer, ipv6)).map(|observation| (observation.seen, observation.at))
    }

    /// Whether more see us at this address than at any other of its family that is none of our own. Many datagrams may be sent there on
    /// our word.
    pub fn agree_on(&self, address: IpAddr, own: &[SocketAddr]) -> bool {
        let mut voters: BTreeMap<IpAddr, BTreeSet<IpAddr>> = BTreeMap::new();
        for observation in
            self.latest.values().filter(|it| it.seen.is_ipv6() == address.is_ipv6() && !own.contains(&it.seen))
        {
            voters.entry(observation.seen.ip()).or_default().insert(observation.observer);
        }
        let votes = voters.remove(&address).map_or(0, |voters| voters.len());
        voters.values().all(|others| others.len() < votes) && votes > 0
    }

    /// Whether as many see us elsewhere, over its family, as see us at `seen`.
    pub fn is_disputed(&self, seen: SocketAddr) -> bool {
        let votes = self.votes(seen.is_ipv6());
        let most =
            |wanted: bool| votes.iter().filter(|(at, _)| (**at == seen) == wanted).map(|(_, count)| *count).max();
        most(false).is_some_and(|others| others >= most(true).unwrap_or(0))
    }

    /// What each observer saw last, by family, and when: the youngest is no surer than the oldest.
    pub fn latest(&self) -> impl Iterator<Item = (PeerId, SocketAddr, Instant)> {
        self.latest.iter().map(|((peer, _), observation)| (*peer, observation.seen, observation.at))
    }

    /// We are somewhere else now: nothing that was seen holds.
    pub fn clear(&mut self) {
        self.latest.clear();
    }

    /// Each endpoint at which we are seen, and by how many addresses.
    fn votes(&self, ipv6: bool) -> BTreeMap<SocketAddr, usize> {
        let mut voters: BTreeMap<SocketAddr, BTreeSet<IpAddr>> = BTreeMap::new();
        for ((_, family), observation) in &self.latest {
            if *family == ipv6 {
                voters.entry(observation.seen).or_default().insert(observation.observer);
            }
        }
        voters.into_iter().map(|(seen, voters)| (seen, voters.len())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SigningKey;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    fn peer(n: u8) -> PeerId {
        SigningKey::from_seed(&[n; 32]).peer_id()
    }

    /// Where observer `n` is.
    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, n], 4747))
    }

    fn seen(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], port))
    }

    fn home() -> [SocketAddr; 1] {
        [SocketAddr::from(([192, 168, 1, 5], 4747))]
    }

    /// What observers 1, 2, 3 … see, in this order.
    fn told(ports: &[u16]) -> Observations {
        let mut observations = Observations::default();
        for (n, port) in (1..).zip(ports) {
            observations.note(peer(n), at(n), seen(*port), start());
        }
        observations
    }

    #[test]
    fn who_is_seen_at_its_own_address_has_no_nat_and_nothing_to_publish() {
        let mut observations = Observations::default();
        observations.note(peer(1), at(1), home()[0], start());
        assert_eq!(observations.mapping(&home(), false), Mapping::Untranslated);
        assert_eq!(observations.reflexive(&home()), []);
        assert_eq!(observations.mapping(&home(), true), Mapping::Unknown);
    }

    #[test]
    fn two_observers_that_agree_make_a_mapping_endpoint_independent() {
        assert_eq!(told(&[5]).mapping(&home(), false), Mapping::Unknown);
        assert_eq!(told(&[5]).reflexive(&home()), [seen(5)], "one is enough to try it");
        assert_eq!(told(&[5, 5]).mapping(&home(), false), Mapping::EndpointIndependent);
        assert_eq!(told(&[5, 6]).mapping(&home(), false), Mapping::EndpointDependent);
        assert_eq!(told(&[5, 6, 7]).mapping(&home(), false), Mapping::EndpointDependent);
    }

    #[test]
    fn neighbours_see_our_own_address_and_do_not_hide_the_nat() {
        let (mut alone, mut observations) = (Observations::default(), told(&[5, 5]));
        for n in 20..25 {
            for observations in [&mut alone, &mut observations] {
                observations.note(peer(n), SocketAddr::from(([192, 168, 1, n], 4747)), home()[0], start());
            }
        }
        assert_eq!(alone.mapping(&home(), false), Mapping::Unknown);
        assert_eq!(observations.mapping(&home(), false), Mapping::EndpointIndependent);
        assert_eq!(observations.reflexive(&home()), [seen(5)]);
    }

    #[test]
    fn one_liar_cannot_move_us() {
        let mut observations = told(&[5]);
        observations.reflexive(&home());
        for lie in 1000..1100 {
            observations.note(peer(66), at(66), seen(lie), start());
            assert!(observations.reflexive(&home()).contains(&seen(5)));
        }
        observations.note(peer(2), at(2), seen(5), start());
        assert_eq!(observations.mapping(&home(), false), Mapping::EndpointIndependent);
        let elsewhere = SocketAddr::from(([192, 0, 2, 66], 5));
        assert!(observations.agree_on(seen(5).ip(), &home()) && !observations.agree_on(elsewhere.ip(), &home()));
        observations.note(peer(66), at(66), elsewhere, start());
        assert!(observations.agree_on(seen(5).ip(), &home()) && !observations.agree_on(elsewhere.ip(), &home()));
        observations.note(peer(67), at(67), elsewhere, start());
        assert!(
            !observations.agree_on(seen(5).ip(), &home()) && !observations.agree_on(elsewhere.ip(), &home()),
            "two against two"
        );
        let published = observations.reflexive(&home());
        assert!(published.len() <= MAX_PUBLISHED && published.contains(&seen(5)));
    }

    #[test]
    fn where_two_from_outside_see_us_at_home_a_lone_liar_changes_nothing() {
        let mut observations = told(&[5]);
        let (own, at_home) =
            (SocketAddr::from(([198, 51, 100, 50], 4747)), |n| SocketAddr::from(([192, 168, 1, n], 4747)));
        for n in 10..15 {
            observations.note(peer(n), at_home(n), own, start());
        }
        assert_eq!(observations.reflexive(&[own]), [seen(5)], "neighbours see it whatever is behind us");
        observations.note(peer(2), at(2), own, start());
        assert_eq!(observations.reflexive(&[own]), [seen(5)], "one against one");
        observations.note(peer(3), at(3), own, start());
        assert_eq!(observations.reflexive(&[own]), []);
        assert_eq!(observations.mapping(&[own], false), Mapping::Untranslated);
        observations.note(peer(4), at(4), seen(5), start());
        assert_eq!(observations.reflexive(&[own]), [seen(5)], "two ways out, perhaps");
    }

    #[test]
    fn many_members_behind_one_address_have_one_voice() {
        let mut observations = told(&[5, 5]);
        for n in 50..60 {
            observations.note(peer(n), at(66), seen(9), start());
        }
        assert_eq!(observations.mapping(&home(), false), Mapping::EndpointIndependent);
    }

    #[test]
    fn what_is_published_stays_while_somebody_sees_it() {
        let mut observations = told(&[5, 6]);
        assert_eq!(observations.reflexive(&home()), [seen(5), seen(6)]);
        for n in 10..15 {
            observations.note(peer(n), at(n), seen(1), start());
            observations.note(peer(n + 50), at(n), seen(2), start());
        }
        assert_eq!(observations.reflexive(&home()), [seen(1), seen(2)], "more see these");
        let mut dependent = told(&[9, 8, 7]);
        let published = dependent.reflexive(&home());
        dependent.note(peer(20), at(20), seen(1), start());
        assert_eq!(dependent.reflexive(&home()), published, "one voice each");
    }

    #[test]
    fn old_and_silly_observations_count_for_nothing() {
        let now = start();
        let mut observations = told(&[5, 5]);
        observations.note(peer(3), at(3), seen(7), now + LIFE * 2);
        assert_eq!(observations.reflexive(&home()), [seen(7)]);
        for silly in ["0.0.0.0:1", "224.0.0.1:1", "203.0.113.1:0", "[2001:db8::1]:5", "[fe80::1%2]:5"] {
            observations.note(peer(4), at(4), silly.parse().expect("an endpoint"), now + LIFE * 2);
        }
        assert_eq!(observations.reflexive(&home()), [seen(7)]);
        for n in 0..=255 {
            observations.note(peer(n), at(n), seen(u16::from(n) + 1), now + LIFE * 2);
        }
        assert!(observations.latest.len() <= MAX_OBSERVERS);
        observations.clear();
        assert_eq!(observations.reflexive(&home()), []);
    }
}
