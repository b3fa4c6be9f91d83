//! Budgets of BUM traffic: what one origin may spread over the mesh.
//!
//! A flooded frame is sent once per member, so what is harmless on a cable is a multiple of itself here. Our own floods
//! are held back before they are copied; a member's are held back again where they arrive, because a member may lie.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::identity::PeerId;

use super::fib::FibPeer;

/// Flooded frames a second that an origin may keep up. A busy office LAN of hundreds sees below 50 from all its
/// stations together; twice that from a single one, to 50 members, is 5000 datagrams a second, as much as a small
/// machine should spend on chatter.
const FRAMES_PER_SECOND: u32 = 100;

/// Flooded frames at once: the start of a desktop (DHCP, ARP, MLD, mDNS of every service) is a few dozen, a LAN game's
/// search a hundred. Two seconds' worth; more would be felt as a stutter by everybody.
const FRAMES_BURST: u32 = 200;

/// Flooded bytes a second that an origin may keep up: to 50 members this is 25 Mbit/s, what a good home uplink has
/// and a member may take of it in the worst case. Twice as much would be all of it.
const BYTES_PER_SECOND: u32 = 64 * 1024;

/// Flooded bytes at once: the burst of frames at 1280 bytes each.
const BYTES_BURST: u32 = 256 * 1024;

/// How much more is accepted from a member than it may send: jitter pushes a lawful sequence together, and it must not
/// suffer for it. Twice is the most that a path which delays by less than the burst can do.
const INGRESS_FACTOR: u32 = 2;

/// A token bucket that counts frames and bytes. It is kept as a debt: how long until it would be full again.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Of all rates and bursts.
    factor: u32,
    frames: Duration,
    bytes: Duration,
    at: Option<Instant>,
}

impl Bucket {
    /// A full bucket for what we send ourselves.
    pub fn egress() -> Self {
        Self { factor: 1, frames: Duration::ZERO, bytes: Duration::ZERO, at: None }
    }

    /// A full bucket for what a member sends us.
    pub fn ingress() -> Self {
        Self { factor: INGRESS_FACTOR, ..Self::egress() }
    }

    /// Takes a frame of `len` bytes; false, and nothing taken, if it is beyond the budget.
    pub fn take(&mut self, len: usize, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.frames = self.frames.saturating_sub(passed);
        self.bytes = self.bytes.saturating_sub(passed);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let frames = self.frames + cost(1, FRAMES_PER_SECOND * self.factor);
        let bytes = self.bytes + cost(len, BYTES_PER_SECOND * self.factor);
        // Rate and burst grow together, so the time to fill an empty bucket does not depend on the factor.
        if frames > cost(FRAMES_BURST, FRAMES_PER_SECOND) || bytes > cost(BYTES_BURST, BYTES_PER_SECOND) {
            return false;
        }
        (self.frames, self.bytes) = (frames, bytes);
        true
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::egress()
    }
}

/// How long `amount` takes to flow in at `rate` a second.
fn cost(amount: u32, rate: u32) -> Duration {
    Duration::from_nanos(u64::from(amount) * 1_000_000_000 / u64::from(rate))
}

/// A bucket for every member that has flooded anything to us.
#[derive(Debug, Default)]
pub struct Budgets(BTreeMap<PeerId, Bucket>);

impl Budgets {
    /// Takes a frame of `len` bytes from the budget of `origin`, who is one of `peers`; false if it is beyond.
    pub fn take(&mut self, origin: &PeerId, len: usize, peers: &[FibPeer], now: Instant) -> bool {
        if let Some(bucket) = self.0.get_mut(origin) {
            return bucket.take(len, now);
        }
        if self.0.len() >= peers.len() {
            self.0.retain(|peer, _| is_one_of(peers, peer));
        }
        self.0.entry(*origin).or_insert_with(Bucket::ingress).take(len, now)
    }

    /// How many members have one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether `peers`, in the order of their keys, contain `peer`.
pub(super) fn is_one_of(peers: &[FibPeer], peer: &PeerId) -> bool {
    peers.binary_search_by(|other| other.peer.cmp(peer)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{alone, meet, start};
    use super::*;

    fn taken(bucket: &mut Bucket, len: usize, now: Instant) -> u32 {
        (0..10_000).map(|_| u32::from(bucket.take(len, now))).sum()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let now = start();
        let mut bucket = Bucket::egress();
        assert_eq!(taken(&mut bucket, 64, now), FRAMES_BURST);
        assert_eq!(taken(&mut bucket, 64, now + Duration::from_secs(1)), FRAMES_PER_SECOND);
        assert_eq!(taken(&mut bucket, 64, now + Duration::from_secs(3600)), FRAMES_BURST);
    }

    #[test]
    fn long_frames_are_held_by_their_bytes() {
        let now = start();
        let mut bucket = Bucket::egress();
        assert_eq!(taken(&mut bucket, 9000, now), BYTES_BURST / 9000);
        assert!(!bucket.take(usize::MAX, now + Duration::from_secs(3600)));
    }

    #[test]
    fn a_clock_that_seems_to_go_back_gives_nothing_away() {
        let now = start() + Duration::from_secs(10);
        let mut bucket = Bucket::egress();
        assert_eq!(taken(&mut bucket, 64, now), FRAMES_BURST);
        assert_eq!(taken(&mut bucket, 64, now - Duration::from_secs(5)), 0);
        assert_eq!(taken(&mut bucket, 64, now), 0);
    }

    #[test]
    fn one_members_flood_takes_nothing_from_another() {
        let now = start();
        let mut fib = alone(1, 1500);
        meet(&mut fib, 2, None);
        meet(&mut fib, 3, None);
        let mut budgets = Budgets::default();
        let (two, three) = (fib.peers[0].peer, fib.peers[1].peer);
        let passed: u32 = (0..10_000).map(|_| u32::from(budgets.take(&two, 64, &fib.peers, now))).sum();
        assert_eq!(passed, FRAMES_BURST * INGRESS_FACTOR);
        assert!(budgets.take(&three, 64, &fib.peers, now));
    }

    #[test]
    fn there_are_never_more_budgets_than_members() {
        let now = start();
        let mut budgets = Budgets::default();
        for n in 2..=200 {
            let mut fib = alone(1, 1500);
            meet(&mut fib, n, None);
            assert!(budgets.take(&fib.peers[0].peer, 64, &fib.peers, now));
            assert_eq!(budgets.len(), 1);
        }
    }
}
