//! What a NAT will do with the next new mapping, told from the last ones (NAT.md, section 4; RFC 5128, section 3.3).
//!
//! Who wants to know sends from a fresh socket to three places that have never heard of it, in one go, and is told by each where
//! it came from. One place for all: the NAT maps by the source alone, and the first socket's endpoint is good for everybody.
//! Steps of a few: the next destination gets the next port. Anything else: the port is chance.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::wire::message::Forecast;

/// Steps that count as sequential: a port for each new mapping, or for each pair, with a few of other people's in between.
const STEPS: RangeInclusive<i32> = 1..=8;

/// Ports tried of a sequential NAT: what others took since we were told, and what our own other peers took.
pub const FORESEEN: i32 = 40;

/// The lowest port that NATs hand out to clients.
const FIRST_PORT: i32 = 1024;

/// The forecast of a NAT that showed a fresh socket at `seen`, in this order, with what was lost in between; `at` is where the
/// first socket is seen. `None` for fewer than two, or another address among them: nothing can be said.
pub fn forecast(seen: &[Option<SocketAddr>], at: Option<SocketAddr>) -> Option<Forecast> {
    let seen: Vec<_> = (0..).zip(seen).filter_map(|(nth, seen)| Some((nth, (*seen)?))).collect();
    let ((_, first), (_, last)) = (seen.first()?, seen.last()?);
    if seen.len() < 2 || seen.iter().any(|(_, other)| other.ip() != first.ip()) {
        return None;
    }
    if seen.iter().all(|(_, other)| other == first) {
        return at.map(|at| Forecast::Independent { at });
    }
    // Of a mapping that nobody told us of, half the way to the next.
    let step =
        |two: &[(i32, SocketAddr)]| (i32::from(two[1].1.port()) - i32::from(two[0].1.port())) / (two[1].0 - two[0].0);
    let steps: Vec<_> = seen.windows(2).map(step).collect();
    let upwards = steps.iter().all(|step| STEPS.contains(step));
    let downwards = steps.iter().all(|step| STEPS.contains(&-step));
    // Two are chance once in four thousand; what is wrong then costs forty datagrams.
    let step = steps.iter().min_by_key(|step| step.abs()).filter(|_| upwards || downwards);
    Some(match step {
        Some(step) => Forecast::Sequential { last: *last, step: *step as i16 },
        None => Forecast::Random { near: *last },
    })
}

/// The `nth` endpoint after `last`, from 1; `None` where ports end.
pub fn foreseen(last: SocketAddr, step: i16, nth: i32) -> Option<SocketAddr> {
    let port = i32::from(last.port()) + i32::from(step) * nth;
    let port = u16::try_from(port).ok().filter(|port| i32::from(*port) >= FIRST_PORT)?;
    Some(SocketAddr::new(last.ip(), port))
}

/// `count` ports around `near`, none twice: a carrier that shares its ports out among homes gave ours a block of a thousand or
/// two, and where there are no blocks they are as good as any others.
pub fn around(near: u16, count: u16) -> RangeInclusive<u16> {
    let lowest = near.saturating_sub(count / 2).clamp(FIRST_PORT as u16, u16::MAX - (count - 1));
    lowest..=lowest + (count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| ([203, 0, 113, 1], *port).into()).collect()
    }

    /// Port 0 was lost.
    fn told(ports: &[u16]) -> Option<Forecast> {
        let seen: Vec<_> = seen(ports).into_iter().map(|at| (at.port() != 0).then_some(at)).collect();
        forecast(&seen, Some(([203, 0, 113, 1], 4747).into()))
    }

    #[test]
    fn a_nat_is_known_by_its_last_mappings() {
        let at = seen(&[4747])[0];
        assert_eq!(told(&[5000; 3]), Some(Forecast::Independent { at }));
        for (ports, last, step) in [
            ([5000, 5001, 5002], 5002, 1),
            ([5000, 5003, 5004], 5004, 1),
            ([5000, 4996, 4992], 4992, -4),
            ([5000, 0, 5002], 5002, 1),
            ([5000, 5002, 0], 5002, 2),
        ] {
            assert_eq!(told(&ports), Some(Forecast::Sequential { last: seen(&[last])[0], step }), "{ports:?}");
        }
        for ports in [[5000, 9000, 5001], [5000, 5001, 5000], [5000, 5009, 5018], [1024, 65535, 1024]] {
            assert_eq!(told(&ports), Some(Forecast::Random { near: seen(&ports)[2] }), "{ports:?}");
        }
        assert_eq!((told(&[]), told(&[5000]), told(&[0, 5000, 0])), (None, None, None));
        let two_addresses = [Some(seen(&[5000])[0]), Some(([203, 0, 113, 2], 5000).into())];
        assert_eq!(forecast(&two_addresses, None), None);
    }

    #[test]
    fn ports_end_and_none_is_named_twice() {
        let last = seen(&[65_530])[0];
        assert_eq!(foreseen(last, 1, 5).map(|at| at.port()), Some(65_535));
        assert_eq!(foreseen(last, 1, 6), None);
        assert_eq!(foreseen(seen(&[1030])[0], -1, 7), None);
        for (near, expected) in [(0, 1024..=3071), (30_000, 28_976..=31_023), (65_535, 63_488..=65_535)] {
            assert_eq!(around(near, 2048), expected);
        }
    }
}
