//! The ranking of paths as a derived `Ord`: smaller is better.

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::{socket, stream};

use super::candidate::Candidate;

/// How good a candidate is. Fields are compared in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathScore {
    /// An endpoint that never answered comes last.
    unproved: bool,
    /// Whether it is a way round, and how long.
    detour: Detour,
    /// An IPv6 link-local address works, but means something on one link only and to nobody who reads it in a table.
    link_local: bool,
    /// Round trip in steps of [`STEP`]; within one step paths are equal, so that jitter does not flap them.
    rtt: u32,
    /// IPv6 has no translation that could expire or move, so it wins among equals, and for [`BONUS`] more.
    ipv4: bool,
}

/// What a path has to put up with because a NAT or a firewall is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detour {
    None,
    /// TCP holds everything back behind what was lost.
    Stream,
    /// Each relay is another machine that can fail, and somebody else's line.
    Relays(u8),
}

/// Two milliseconds: less than a person notices and more than a LAN's jitter.
const STEP: Duration = Duration::from_millis(2);

/// By how many steps of the round trip IPv6 may be slower: ten milliseconds are the noise of two lone probes over a wide network, not a
/// detour.
const BONUS: u32 = 5;

impl PathScore {
    /// The score of a candidate.
    pub fn of(candidate: &Candidate) -> Self {
        let rtt = candidate.rtt.map_or(u32::MAX, |rtt| (rtt.as_micros() / STEP.as_micros()) as u32);
        let link_local = matches!(candidate.endpoint.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        let ipv4 = socket::split(candidate.endpoint).1.is_ipv4();
        let detour = match stream::number_behind(&candidate.endpoint) {
            Some(_) => Detour::Stream,
            None if candidate.relays > 0 => Detour::Relays(candidate.relays),
            None => Detour::None,
        };
        Self { unproved: candidate.answered.is_none(), detour, link_local, rtt, ipv4 }
    }

    /// Whether it is a way round where `used` is a shorter one, or none.
    pub fn is_longer_way_than(&self, used: &Self) -> bool {
        self.detour > used.detour
    }

    /// Whether a path in use is worth leaving for this one: not for a few milliseconds, which are different tomorrow.
    pub fn is_clearly_better_than(&self, used: &Self) -> bool {
        let kind = |score: &Self| (score.unproved, score.detour, score.link_local);
        let less = match (self.detour, used.detour) {
            // One relay fewer is no reason to move at once.
            (Detour::Relays(_), Detour::Relays(_)) => false,
            (less, more) => less < more,
        };
        self.unproved <= used.unproved && less
            || kind(self) < kind(used) && self.rtt <= used.rtt.saturating_mul(2).saturating_add(1)
            || kind(self) <= kind(used) && self.rtt < used.rtt / 2
            || kind(self) <= kind(used) && used.ipv4 && !self.ipv4 && self.rtt <= used.rtt.saturating_add(BONUS)
                // Or the other would be left for this one in turn.
                && used.rtt >= self.rtt / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(relays: u8, rtt: u32) -> PathScore {
        let detour = if relays > 0 { Detour::Relays(relays) } else { Detour::None };
        PathScore { unproved: false, detour, link_local: false, rtt, ipv4: false }
    }

    #[test]
    fn a_stream_is_worse_than_udp_and_better_than_a_relay_whatever_their_round_trips() {
        let stream = PathScore { detour: Detour::Stream, ..score(0, 20) };
        assert!(score(0, 500).is_clearly_better_than(&stream) && !stream.is_clearly_better_than(&score(0, 500)));
        assert!(stream.is_clearly_better_than(&score(1, 1)) && !score(1, 1).is_clearly_better_than(&stream));
    }

    #[test]
    fn a_direct_path_beats_any_relayed_one_and_fewer_relays_beat_more_unless_they_are_far_slower() {
        assert!(score(0, 500).is_clearly_better_than(&score(1, 1)));
        assert!(!score(1, 1).is_clearly_better_than(&score(0, 500)));
        assert!(score(1, 20).is_clearly_better_than(&score(3, 10)));
        assert!(!score(1, 50).is_clearly_better_than(&score(3, 10)));
        assert!(!score(3, 10).is_clearly_better_than(&score(1, 20)));
        assert!(score(1, 20) < score(2, 10) && score(2, 10) < score(2, 11));
    }

    #[test]
    fn ipv6_is_taken_though_it_is_a_little_slower_and_no_two_paths_are_left_for_each_other() {
        let of = |ipv4, rtt| PathScore { ipv4, ..score(0, rtt) };
        assert!(of(false, 15).is_clearly_better_than(&of(true, 10)) && of(false, 10) < of(true, 10));
        assert!(!of(false, 16).is_clearly_better_than(&of(true, 10)));
        assert!(!of(true, 10).is_clearly_better_than(&of(false, 15)));
        for (a, b) in (0..40).flat_map(|a| (0..40).map(move |b| (a, b))) {
            let (ipv6, ipv4) = (of(false, a), of(true, b));
            assert!(!(ipv6.is_clearly_better_than(&ipv4) && ipv4.is_clearly_better_than(&ipv6)), "{a} {b}");
        }
    }
}
