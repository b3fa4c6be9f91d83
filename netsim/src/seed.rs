//! Chance: one seed, and everything that is drawn from it.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What a run is a function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The seed of `NETSIM_SEED`, else `default`: a test is the same every day unless one asks for another.
    ///
    /// # Panics
    /// If the variable is no number.
    pub fn or(default: u64) -> Self {
        match std::env::var("NETSIM_SEED") {
            Ok(text) => Self(text.parse().expect("NETSIM_SEED is a number")),
            Err(_) => Self(default),
        }
    }

    /// A source of chance for one `purpose`, so that one purpose's draws do not shift another's.
    pub fn chance(self, purpose: &str) -> Chance {
        // FNV-1a (Fowler, Noll, Vo): any function that tells purposes apart would do.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Chance(ChaCha8Rng::seed_from_u64(self.0 ^ hash))
    }
}

/// A source of chance.
#[derive(Debug, Clone)]
pub struct Chance(ChaCha8Rng);

impl Chance {
    /// A number below `bound`, which is not 0. The bias of a remainder is far below what any test sees.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// True `parts` times in a million.
    pub fn per_million(&mut self, parts: u32) -> bool {
        parts > 0 && self.below(1_000_000) < u64::from(parts)
    }

    /// A span between `low` and `high`, to the microsecond.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let width = high.saturating_sub(low).as_micros() as u64;
        low + Duration::from_micros(self.below(width + 1))
    }

    /// 32 bytes, for keys and seeds.
    pub fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// `len` bytes.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_run_and_purposes_are_independent() {
        let draw = |seed: u64, purpose: &str| Seed(seed).chance(purpose).bytes();
        assert_eq!(draw(1, "links"), draw(1, "links"));
        assert_ne!(draw(1, "links"), draw(2, "links"));
        assert_ne!(draw(1, "links"), draw(1, "directory"));
    }

    #[test]
    fn a_span_is_within_its_bounds() {
        let mut chance = Seed(3).chance("test");
        let (low, high) = (Duration::from_millis(20), Duration::from_millis(100));
        for _ in 0..1000 {
            let span = chance.between(low, high);
            assert!((low..=high).contains(&span));
        }
        assert_eq!(chance.between(low, low), low);
    }
}
