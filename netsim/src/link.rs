//! One direction of a cable: what it delays, loses, doubles and refuses.

use std::time::Duration;

use crate::seed::Chance;

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// The least time a datagram takes.
    pub latency: Duration,
    /// Up to so much is added by chance; more than the gap between two datagrams reorders them.
    pub jitter: Duration,
    /// Lost, parts per million.
    pub loss: u32,
    /// Delivered twice, parts per million.
    pub duplicate: u32,
    /// Bits per second; `None` is as fast as one likes.
    pub rate: Option<u64>,
    /// Bytes that may wait for a link with a rate; what comes on top is dropped (drop-tail).
    pub queue: usize,
    /// Longest IP packet, bytes; longer ones are dropped, as with DF set.
    pub mtu: usize,
}

impl Conditions {
    /// An office switch: a fifth of a millisecond, 1 Gbit/s, 1500 bytes.
    pub const LAN: Self = Self {
        latency: Duration::from_micros(200),
        jitter: Duration::from_micros(50),
        loss: 0,
        duplicate: 0,
        rate: Some(1_000_000_000),
        queue: 512 * 1024,
        mtu: 1500,
    };

    /// From a home to its carrier: 3 ms each way, 100 Mbit/s up.
    pub const ACCESS: Self =
        Self { latency: Duration::from_millis(3), jitter: Duration::from_micros(500), ..Self::WAN };

    /// The Internet within a country: 10 ms each way, 100 Mbit/s up.
    pub const WAN: Self = Self {
        latency: Duration::from_millis(10),
        jitter: Duration::from_millis(2),
        loss: 0,
        duplicate: 0,
        rate: Some(100_000_000),
        queue: 256 * 1024,
        mtu: 1500,
    };

    /// The same, with `percent` of all datagrams lost.
    #[must_use]
    pub const fn losing(mut self, percent: u32) -> Self {
        self.loss = percent * 10_000;
        self
    }

    /// The same, with `percent` of all datagrams doubled.
    #[must_use]
    pub const fn doubling(mut self, percent: u32) -> Self {
        self.duplicate = percent * 10_000;
        self
    }

    /// The same, with up to `jitter` added to each datagram's way.
    #[must_use]
    pub const fn jittering(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }
}

/// A link at work.
#[derive(Debug, Clone)]
pub struct Link {
    /// What it is like; may be changed at any time.
    pub conditions: Conditions,
    /// When everything that waits has left.
    free_at: Duration,
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// It arrives once.
    Once(Duration),
    /// It arrives twice.
    Twice(Duration, Duration),
    /// It does not arrive.
    Lost(Loss),
}

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// By chance.
    Chance,
    /// The queue was full.
    Queue,
    /// Longer than the MTU.
    Mtu,
}

impl Link {
    /// An idle link.
    pub fn new(conditions: Conditions) -> Self {
        Self { conditions, free_at: Duration::ZERO }
    }

    /// Takes an IP packet of `len` bytes at `now`.
    pub fn carry(&mut self, len: usize, now: Duration, chance: &mut Chance) -> Carried {
        let Conditions { latency, jitter, loss, duplicate, rate, queue, mtu } = self.conditions;
        if len > mtu {
            return Carried::Lost(Loss::Mtu);
        }
        let mut leaves = now;
        if let Some(rate) = rate {
            let waiting = self.free_at.saturating_sub(now);
            let backlog = waiting.as_nanos() * u128::from(rate) / 8_000_000_000;
            if backlog as usize + len > queue {
                return Carried::Lost(Loss::Queue);
            }
            leaves = self.free_at.max(now) + Duration::from_nanos(len as u64 * 8_000_000_000 / rate);
            self.free_at = leaves;
        }
        if chance.per_million(loss) {
            return Carried::Lost(Loss::Chance);
        }
        let mut arrival = || leaves + latency + chance.between(Duration::ZERO, jitter);
        let first = arrival();
        let second = arrival();
        if chance.per_million(duplicate) { Carried::Twice(first, second) } else { Carried::Once(first) }
    }
}

#[cfg(test)]
mod tests {
    use crate::seed::Seed;

    use super::*;

    fn chance() -> Chance {
        Seed(11).chance("link test")
    }

    #[test]
    fn a_packet_takes_its_time_on_the_wire_and_the_latency() {
        let mut link = Link::new(Conditions { jitter: Duration::ZERO, ..Conditions::LAN });
        // 1500 bytes at 1 Gbit/s are 12 µs, the second packet waits for the first.
        let mut chance = chance();
        assert_eq!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Once(Duration::from_micros(212)));
        assert_eq!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Once(Duration::from_micros(224)));
        let later = Duration::from_secs(1);
        assert_eq!(link.carry(1500, later, &mut chance), Carried::Once(later + Duration::from_micros(212)));
    }

    #[test]
    fn a_full_queue_drops_the_tail_and_recovers() {
        let conditions = Conditions { rate: Some(1_000_000), queue: 3000, ..Conditions::LAN };
        let (mut link, mut chance) = (Link::new(conditions), chance());
        assert!(matches!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Once(_)));
        assert!(matches!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Once(_)));
        assert_eq!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Lost(Loss::Queue));
        assert!(matches!(link.carry(1500, Duration::from_millis(12), &mut chance), Carried::Once(_)));
    }

    #[test]
    fn what_is_longer_than_the_mtu_never_arrives() {
        let (mut link, mut chance) = (Link::new(Conditions::LAN), chance());
        assert!(matches!(link.carry(1500, Duration::ZERO, &mut chance), Carried::Once(_)));
        assert_eq!(link.carry(1501, Duration::ZERO, &mut chance), Carried::Lost(Loss::Mtu));
    }

    #[test]
    fn loss_and_doubling_come_as_often_as_they_are_set() {
        let conditions = Conditions { rate: None, ..Conditions::LAN.losing(5).doubling(2) };
        let (mut link, mut chance) = (Link::new(conditions), chance());
        let (mut lost, mut twice) = (0, 0);
        for _ in 0..100_000 {
            match link.carry(100, Duration::ZERO, &mut chance) {
                Carried::Lost(Loss::Chance) => lost += 1,
                Carried::Twice(..) => twice += 1,
                Carried::Once(_) | Carried::Lost(_) => (),
            }
        }
        assert!((4_800..5_200).contains(&lost), "{lost} of 100000 lost");
        assert!((1_750..2_050).contains(&twice), "{twice} of 100000 doubled");
    }

    #[test]
    fn jitter_reorders() {
        let conditions = Conditions::LAN.jittering(Duration::from_millis(5));
        let (mut link, mut chance) = (Link::new(conditions), chance());
        let arrivals: Vec<_> = (0..100)
            .map(|n| match link.carry(100, Duration::from_millis(n), &mut chance) {
                Carried::Once(at) => at,
                Carried::Twice(..) | Carried::Lost(_) => panic!("a link without loss and doubling delivers once"),
            })
            .collect();
        assert!(arrivals.windows(2).any(|pair| pair[0] > pair[1]));
    }
}
