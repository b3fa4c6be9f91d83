//! What may pass at most: a token bucket that all lanes share, in one atomic number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much may pass at once, as time at the allowed rate: a few of the longest trains at 10 Mbit/s, and less than what makes
/// a queue worth complaining about.
const BURST: Duration = Duration::from_millis(250);

/// A rate that is not to be exceeded for long, kept as one instant: when all that passed so far would be done (GCRA, ITU-T I.371).
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    /// Bytes a second.
    rate: u64,
    /// Nanoseconds since `start`.
    done: AtomicU64,
    /// When something passed last, in seconds since `start`, and one more; 0 for never.
    used: AtomicU64,
}

impl Meter {
    /// One that lets `bits` a second pass.
    pub fn new(bits: u64, start: Instant) -> Self {
        Self { start, rate: (bits / 8).max(1), done: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    /// Whether `len` bytes may pass now; if so, they are counted.
    pub fn take(&self, len: usize, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.start);
        let (now, burst) = (since.as_nanos() as u64, BURST.as_nanos() as u64);
        let cost = (len as u64).saturating_mul(1_000_000_000) / self.rate;
        // Nothing else is ordered by these numbers.
        let pass = |done: u64| (done <= now.saturating_add(burst)).then(|| done.max(now).saturating_add(cost));
        let passed = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pass).is_ok();
        if passed && self.used.load(Ordering::Relaxed) != since.as_secs() + 1 {
            self.used.store(since.as_secs() + 1, Ordering::Relaxed);
        }
        passed
    }

    /// When something passed last, to the second.
    pub fn last_used(&self) -> Option<Instant> {
        let seconds = self.used.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Bytes that pass in `seconds` of trying a datagram of 1000 every 100 us: 80 Mbit/s.
    fn passed(meter: &Meter, start: Instant, seconds: u64) -> u64 {
        let tries = (0..seconds * 10_000).map(|n| start + Duration::from_micros(100 * n));
        tries.filter(|now| meter.take(1000, *now)).count() as u64 * 1000
    }

    #[test]
    fn no_more_passes_than_the_rate_and_one_burst() {
        let start = start();
        let meter = Meter::new(8_000_000, start);
        let bytes = passed(&meter, start, 10);
        assert!((10_000_000..=10_252_000).contains(&bytes), "{bytes}");
        // After a rest there is a burst again, not the whole rest.
        let later = start + Duration::from_secs(100);
        assert!((1_000_000..=1_252_000).contains(&passed(&meter, later, 1)));
    }

    #[test]
    fn what_is_slower_than_the_rate_passes_whole() {
        let start = start();
        let meter = Meter::new(80_000_000, start);
        assert_eq!(meter.last_used(), None);
        assert_eq!(passed(&meter, start, 3), 30_000_000);
        assert_eq!(meter.last_used(), Some(start + Duration::from_secs(2)));
    }
}
