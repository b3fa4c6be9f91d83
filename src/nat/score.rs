//! The ranking of paths as a derived `Ord`: smaller is better.

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::socket;

use super::candidate::Candidate;

/// How good a candidate is. Fields are compared in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathScore {
    /// An endpoint that never answered comes last.
    unproved: bool,
    /// Each relay is another machine that can fail, and somebody else's line.
    relays: u8,
    /// An IPv6 link-local address works, but means something on one link only and to nobody who reads it in a table.
    link_local: bool,
    /// Round trip in steps of [`STEP`]; within one step paths are equal, so that jitter does not flap them.
    rtt: u32,
    /// IPv6 has no translation that could expire or move, so it wins among equals, and for [`BONUS`] more.
    ipv4: bool,
}

/// Two milliseconds: less than a person notices and more than a LAN's jitter.
const STEP: Duration = Duration::from_millis(2);

/// By how many steps of the round trip IPv6 may be slower: two milliseconds are the noise of two races, not a detour.
const BONUS: u32 = 1;

impl PathScore {
    /// The score of a candidate.
    pub fn of(candidate: &Candidate) -> Self {
        let rtt = candidate.rtt.map_or(u32::MAX, |rtt| (rtt.as_micros() / STEP.as_micros()) as u32);
        let link_local = matches!(candidate.endpoint.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        let ipv4 = socket::split(candidate.endpoint).1.is_ipv4();
        Self { unproved: candidate.answered.is_none(), relays: candidate.relays, link_local, rtt, ipv4 }
    }

    /// Whether a path in use is worth leaving for this one: not for a few milliseconds, which are different tomorrow.
    pub fn is_clearly_better_than(&self, used: &Self) -> bool {
        let kind = |score: &Self| (score.unproved, score.relays, score.link_local);
        self.unproved <= used.unproved && self.relays == 0 && used.relays > 0
            || kind(self) < kind(used) && self.rtt <= used.rtt.saturating_mul(2).saturating_add(1)
            || kind(self) <= kind(used) && self.rtt < used.rtt / 2
            || kind(self) <= kind(used) && used.ipv4 && !self.ipv4 && self.rtt <= used.rtt.saturating_add(BONUS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(relays: u8, rtt: u32) -> PathScore {
        PathScore { unproved: false, relays, link_local: false, rtt, ipv4: false }
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
}
