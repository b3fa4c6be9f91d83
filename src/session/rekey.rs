//! When a session is to be replaced, when it is dead, and when a handshake is tried again; [`super::Transport`] applies it. Times and counts as WireGuard
//! has them (section 6.1); the retries are faster, because a mesh tries many candidates that do not answer.

use std::time::Duration;

use crate::identity::PeerId;

/// After this a session in use is replaced: two minutes bound what one stolen key opens; half would double the
/// handshakes of every pair for little.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// After this a session neither seals nor opens: a minute of grace for a replacement on a bad path.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// After this many datagrams a session is replaced: 2^32 keeps AES-GCM with 64 KiB messages far below its bound
/// (RFC 8446, section 5.5), and lasts 2 hours at 500,000 a second, so time nearly always comes first.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 32;

/// After this many nothing is sealed any more.
pub const REJECT_AFTER_MESSAGES: u64 = 1 << 33;

/// How much later than the initiator a responder with data to send replaces a session itself: six tries of the
/// initiator have failed by then, or it sends nothing. 45 s remain until the session is dead.
pub const RESPONDER_GRACE: Duration = Duration::from_secs(15);

/// Before the second try of a handshake: above the round trip of most paths on Earth, below what a person notices.
pub const FIRST_RETRY: Duration = Duration::from_millis(250);

/// Between later tries: WireGuard's figure. Half would double what an unreachable peer costs.
pub const MAX_RETRY: Duration = Duration::from_secs(5);

/// After this a handshake is given up, until there is traffic again. Seven tries; who lost them all is not there, and
/// frames have not waited that long anyway.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(20);

/// How long our own initiation may make us ignore the peer's: as long as an answer may take. See [`our_initiation_wins`].
pub const TIE_BREAK_TIME: Duration = Duration::from_secs(1);

/// How long to wait for an answer to try number `attempt`, counted from 0, before the next: [`FIRST_RETRY`], doubling to
/// [`MAX_RETRY`], and up to a quarter more by `random`, so that nodes that lost power together do not retry together.
pub fn retry_delay(attempt: u32, random: u32) -> Duration {
    let delay = FIRST_RETRY.saturating_mul(1 << attempt.min(16)).min(MAX_RETRY);
    delay + delay.mul_f64(0.25 * f64::from(random) / f64::from(u32::MAX))
}

/// Whether, of two initiations that crossed, ours is the one to be answered. The smaller id wins, so both sides decide
/// alike: the winner ignores the peer's initiation while its own is younger than [`TIE_BREAK_TIME`], the loser answers and
/// drops its own. After that time the winner answers too: its own was lost, or cannot arrive.
pub fn our_initiation_wins(ours: &PeerId, theirs: &PeerId) -> bool {
    ours < theirs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retries_double_to_five_seconds_and_end_after_seven() {
        let delays: Vec<_> = (0..8).map(|attempt| retry_delay(attempt, 0).as_millis()).collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        assert!((0..7).map(|attempt| retry_delay(attempt, 0)).sum::<Duration>() < GIVE_UP_AFTER);
        assert!((0..8).map(|attempt| retry_delay(attempt, 0)).sum::<Duration>() > GIVE_UP_AFTER);
    }

    proptest! {
        #[test]
        fn jitter_adds_a_quarter_at_most(attempt: u32, random: u32) {
            let (least, delay) = (retry_delay(attempt, 0), retry_delay(attempt, random));
            prop_assert!(least <= delay && delay <= least + least / 4);
        }

        #[test]
        fn of_two_crossing_initiations_exactly_one_wins(one: [u8; 32], other: [u8; 32]) {
            prop_assume!(one != other);
            let (one, other) = (PeerId(one), PeerId(other));
            prop_assert_ne!(our_initiation_wins(&one, &other), our_initiation_wins(&other, &one));
        }
    }
}
