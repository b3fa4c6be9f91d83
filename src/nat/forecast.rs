//! What a NAT will do with the next new mapping, told from the last ones (NAT.md, section 4; RFC 5128, section 3.3).
//!
//! Who wants to know sends from a fresh socket to three places that have never heard of it, in one go, and is told by each where
//! it came from. One place for all: the NAT maps by the source alone, and the first socket's endpoint is good for everybody.
//! Steps of a few: the next destination gets the next port. Anything else: the port is chance.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::wire::message::Forecast;

/// Steps that count as sequential: a port for each new mapping, or for each pair, with a few of other people's in between.
const STEPS: RangeInclusive<i32> = 1..=8;

/// Ports tried of a sequential NAT: what others took since we were told, and what our own other peers took.
pub const FORESEEN: i32 = 40;

/// The lowest port that NATs hand out to clients.
const FIRST_PORT: i32 = 1024;

/// What one destination of a survey has told.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Its place among those asked: each took a mapping.
    pub nth: i32,
    /// Where it is; who tells from two ports is one witness.
    pub by: IpAddr,
    /// Where it saw the fresh socket.
    pub seen: SocketAddr,
}

/// The forecast of a NAT that showed a fresh socket so, and the place among those asked of one on whose word it rests. Of a NAT that is
/// independent it names the fresh socket's endpoint; of a sequential one the mapping that the last of the `asked` got, whether it told or
/// not. `None` if fewer than two agree on the address: nothing can be said.
///
/// Of three witnesses one may lie: two who agree are believed.
pub fn forecast(told: &[Told], asked: i32) -> Option<(Forecast, i32)> {
    let votes = |ip: IpAddr| told.iter().filter(|told| told.seen.ip() == ip).count();
    let address = told.iter().map(|told| told.seen.ip()).max_by_key(|ip| votes(*ip))?;
    let told: Vec<_> = told.iter().filter(|told| told.seen.ip() == address).copied().collect();
    let pairs = || (0..told.len()).flat_map(|b| (0..b).map(move |a| (a, b))).map(|(a, b)| (told[a], told[b]));
    let [first, .., last] = told[..] else { return None };
    let agreed = pairs().find(|(a, b)| a.seen == b.seen && a.by != b.by);
    if told.iter().all(|other| other.seen == first.seen) || agreed.is_some() {
        let believed = agreed.map_or(first, |(a, _)| a);
        return Some((Forecast::Independent { at: believed.seen }, believed.nth));
    }
    // Of a mapping that nobody told us of, half the way to the next.
    let step = |a: &Told, b: &Told| (i32::from(b.seen.port()) - i32::from(a.seen.port())) / (b.nth - a.nth);
    let steps: Vec<_> = told.windows(2).map(|two| step(&two[0], &two[1])).collect();
    let upwards = steps.iter().all(|step| STEPS.contains(step));
    let downwards = steps.iter().all(|step| STEPS.contains(&-step));
    let sequence =
        steps.iter().min_by_key(|step| step.abs()).filter(|_| upwards || downwards).map(|step| (last, *step));
    // Two are chance once in four thousand, and two of three once in a thousand; what is wrong then costs forty datagrams.
    let strangers = pairs().all(|(a, b)| a.by != b.by);
    let two = || pairs().map(|(a, b)| (b, step(&a, &b))).find(|(_, step)| strangers && STEPS.contains(&step.abs()));
    if let Some((last, step)) = sequence.or_else(two) {
        let (nth, step) = (last.nth, step as i16);
        let last = foreseen(last.seen, step, asked - 1 - nth).unwrap_or(last.seen);
        return Some((Forecast::Sequential { last, step }, nth));
    }
    // The one in the middle: where ports come from a block, a lie would be outside it.
    let mut ports = told;
    ports.sort_unstable_by_key(|told| told.seen.port());
    let near = ports[ports.len() / 2];
    Some((Forecast::Random { near: near.seen }, near.nth))
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

    /// What destination after destination told, all at one address or each at another; port 0 was lost.
    fn told(ports: &[u16], apart: bool) -> Vec<Told> {
        let by = |nth: i32| IpAddr::from([198, 51, 100, if apart { nth as u8 } else { 9 }]);
        let told = (0..).zip(seen(ports)).filter(|(_, seen)| seen.port() != 0);
        told.map(|(nth, seen)| Told { nth, by: by(nth), seen }).collect()
    }

    #[test]
    fn a_nat_is_known_by_its_last_mappings() {
        for apart in [false, true] {
            let of = |ports: &[u16]| forecast(&told(ports, apart), 3).map(|(forecast, _)| forecast);
            assert_eq!(of(&[5000; 3]), Some(Forecast::Independent { at: seen(&[5000])[0] }));
            for (ports, last, step) in [
                ([5000, 5001, 5002], 5002, 1),
                ([5000, 5003, 5004], 5004, 1),
                ([5000, 4996, 4992], 4992, -4),
                ([5000, 0, 5002], 5002, 1),
                ([5000, 5002, 0], 5004, 2),
            ] {
                assert_eq!(of(&ports), Some(Forecast::Sequential { last: seen(&[last])[0], step }), "{ports:?}");
            }
            for (ports, near) in [([5000, 9000, 7001], 7001), ([5000, 5009, 5018], 5009), ([1024, 65535, 3024], 3024)] {
                assert_eq!(of(&ports), Some(Forecast::Random { near: seen(&[near])[0] }), "{ports:?}");
            }
            assert_eq!((of(&[]), of(&[5000]), of(&[0, 5000, 0])), (None, None, None));
        }
        // By address: the second port of one witness gets the same mapping.
        let by_address = [(0, 1, 5000), (1, 2, 9000), (2, 1, 5000)];
        let by_address =
            by_address.map(|(nth, by, port)| Told { nth, by: [198, 51, 100, by].into(), seen: seen(&[port])[0] });
        assert!(matches!(forecast(&by_address, 3), Some((Forecast::Random { .. }, _))));
    }

    #[test]
    fn one_liar_among_three_changes_nothing() {
        let elsewhere = SocketAddr::from(([203, 0, 113, 2], 5000));
        for liar in 0..3 {
            for lie in [elsewhere, seen(&[40_000])[0], seen(&[1024])[0]] {
                let lied = |ports: &[u16]| {
                    let mut told = told(ports, true);
                    told[liar].seen = lie;
                    forecast(&told, 3).expect("two have told the truth")
                };
                let (independent, believed) = lied(&[5000; 3]);
                assert_eq!(independent, Forecast::Independent { at: seen(&[5000])[0] }, "{liar} {lie}");
                assert_ne!(believed, liar as i32);
                let (sequential, believed) = lied(&[5000, 5001, 5002]);
                assert_eq!(sequential, Forecast::Sequential { last: seen(&[5002])[0], step: 1 }, "{liar} {lie}");
                assert_ne!(believed, liar as i32);
                let (random, _) = lied(&[9100, 9900, 9400]);
                let Forecast::Random { near } = random else { panic!("{random:?}") };
                assert!((9100..=9900).contains(&near.port()), "{liar} {lie}: {near}");
            }
        }
        let two = [elsewhere, seen(&[5000])[0]].map(|seen| Told { nth: i32::from(seen.port()), by: seen.ip(), seen });
        assert_eq!(forecast(&two, 3), None);
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
