//! A rate that somebody is held to, with a burst.

use std::time::{Duration, Instant};

/// A token bucket kept as one instant: when all that came so far would be done at the allowed rate (GCRA, ITU-T I.371).
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace(Option<Instant>);

impl Pace {
    /// When all that came so far would be done.
    pub fn done(&self) -> Option<Instant> {
        self.0
    }

    /// How far what came is ahead of the allowed rate.
    pub fn ahead(&self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |done| done.saturating_duration_since(now))
    }

    /// One more came; never further ahead than `cap`.
    pub fn step(&mut self, interval: Duration, cap: Duration, now: Instant) {
        self.0 = Some(now + (self.ahead(now) + interval).min(cap));
    }

    /// Whether one more may come of those that come every `interval` in the long run, and `burst` at once; if so, it is counted.
    pub fn admit(&mut self, interval: Duration, burst: u32, now: Instant) -> bool {
        let pass = self.ahead(now) <= interval.saturating_mul(burst.saturating_sub(1));
        if pass {
            self.step(interval, Duration::MAX, now);
        }
        pass
    }
}
