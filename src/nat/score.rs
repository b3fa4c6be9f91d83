//! The ranking of paths as a derived `Ord`: smaller is better.

use std::time::Duration;

use super::candidate::Candidate;

/// How good a candidate is. Fields are compared in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathScore {
    /// An endpoint that never answered comes last.
    unproved: bool,
    /// Round trip in steps of [`STEP`]; within one step paths are equal, so that jitter does not flap them.
    rtt: u32,
}

/// Two milliseconds: less than a person notices and more than a LAN's jitter.
const STEP: Duration = Duration::from_millis(2);

impl PathScore {
    /// The score of a candidate.
    pub fn of(candidate: &Candidate) -> Self {
        let rtt = candidate.rtt.map_or(u32::MAX, |rtt| (rtt.as_micros() / STEP.as_micros()) as u32);
        Self { unproved: candidate.answered.is_none(), rtt }
    }
}
