//! The replay window (RFC 6479): a ring of bits, so that moving it costs no shifting.

/// Counters remembered behind the greatest one seen. At 64 datagrams a batch, two lanes and a path that reorders by
/// 10 ms at 5 Gbit/s, about 4500 may arrive late; the window is the next power of two, less one word.
pub const WINDOW: u64 = 8192;

const WORD_BITS: u64 = 64;
/// One word more than the window, because the newest word is only partly valid.
const WORDS: usize = (WINDOW / WORD_BITS) as usize + 1;

/// Which counters were seen.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// One more than the greatest counter accepted; 0 if none.
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Accepts `counter` once: false if it was accepted before or lies behind the window. Call it only with counters
    /// that an AEAD has authenticated.
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter.saturating_add(WINDOW) < self.next || counter == u64::MAX {
            return false;
        }
        let word = counter / WORD_BITS;
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / WORD_BITS;
            let fresh = (word - newest).min(WORDS as u64);
            for step in 1..=fresh {
                self.words[((newest + step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let bit = 1 << (counter % WORD_BITS);
        let slot = &mut self.words[(word % WORDS as u64) as usize];
        let unseen = *slot & bit == 0;
        *slot |= bit;
        unseen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_is_accepted_once_and_never_from_behind_the_window() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(0) && !window.accept(0));
        assert!(window.accept(WINDOW) && window.accept(1) && !window.accept(0));
        assert!(window.accept(WINDOW + 10_000) && !window.accept(WINDOW));
        assert!(!window.accept(u64::MAX));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(start in 0u64..100_000, steps in proptest::collection::vec(-9000i64..9000, 1..500)) {
            let (mut window, mut seen, mut greatest, mut at) = (ReplayWindow::default(), BTreeSet::new(), None, start);
            for step in steps {
                at = at.saturating_add_signed(step);
                let late = greatest.is_some_and(|greatest: u64| at + WINDOW < greatest + 1);
                let expected = !late && seen.insert(at);
                prop_assert_eq!(window.accept(at), expected);
                greatest = greatest.max(Some(at));
            }
        }
    }
}
