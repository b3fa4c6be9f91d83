//! The oracle: it sees the topology, so it knows who must be connected with whom.

use meshd::wire::socket::split;
use meshd::wire::stream::number_behind;

use crate::host::{HostId, socket_at};
use crate::kinds::Kind;
use crate::nat::{Filtering, Mapping, NatKind, Ports};
use crate::world::World;

/// How two members behind boxes of two kinds can come to speak by UDP, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A few packets, one round trip.
    Direct,
    /// By the ports that come next: about 40 packets, one round trip.
    Predicted,
    /// By many sockets on one side and many guesses on the other: hundreds of packets, seconds.
    Birthday,
    /// Not at all, but by way of others.
    Relayed,
}

/// What a box is for the one who wants in, from easy to hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// Who knows a mapping gets in.
    Open,
    /// Who has been sent to gets in, from any port.
    Forgiving,
    /// Who has been sent to gets in, and it is known by which port.
    Strict,
    /// The ports of new mappings can be foreseen.
    Sequential,
    /// They cannot.
    Random,
    /// No UDP.
    Blocked,
}

impl Obstacle {
    fn of(kind: &NatKind) -> Self {
        match (kind.mapping, kind.filtering, kind.ports) {
            _ if kind.blocks_udp => Self::Blocked,
            _ if kind.maps_ports => Self::Open,
            // Even where mappings differ, the answer to who was let in leaves by the port that was asked.
            (_, Filtering::EndpointIndependent, _) => Self::Open,
            (Mapping::EndpointIndependent, Filtering::AddressDependent, _) => Self::Forgiving,
            (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, _) => Self::Strict,
            (_, _, Ports::Random) => Self::Random,
            // The second mapping of one socket cannot have its port too, so it gets the next.
            (_, _, Ports::Sequential { .. } | Ports::Preserve) => Self::Sequential,
        }
    }
}

/// The best way between members of two kinds: over the family that has the better one. What only one of them has is no way.
pub fn best_way(a: &Kind, b: &Kind) -> Way {
    let families = a.boxes().into_iter().zip(b.boxes());
    let ways = families.filter_map(|(a, b)| Some(direct_path_possible(&a?, &b?)));
    ways.min().unwrap_or(Way::Relayed)
}

/// The best way, over one family, between members behind a box of kind `a` and one of kind `b`; [`NatKind::PUBLIC`] for none, and
/// [`NatKind::behind`] for two in a row. That a box is careless changes the method, not the outcome. For different
/// homes: one LAN needs no way, and homes of one carrier need it to hairpin.
///
/// The table is theory (RFC 5128, and the birthday problem); the tests check it against the boxes.
pub fn direct_path_possible(a: &NatKind, b: &NatKind) -> Way {
    use Obstacle::{Blocked, Forgiving, Open, Random, Sequential, Strict};
    match (Obstacle::of(a), Obstacle::of(b)) {
        (Blocked, _) | (_, Blocked) => Way::Relayed,
        (Open, _) | (_, Open) => Way::Direct,
        (Forgiving, _) | (_, Forgiving) => Way::Direct,
        (Strict, Strict) => Way::Direct,
        (Strict, Sequential) | (Sequential, Strict | Sequential) => Way::Predicted,
        (Strict, Random) | (Random, Strict) => Way::Birthday,
        (Sequential | Random, Random) | (Random, Sequential) => Way::Relayed,
    }
}

/// Pairs that must be connected directly: both run, are of one network, and a way for UDP leads from one to the
/// other, on a segment of both or out through gateways.
pub fn pairs(world: &World) -> Vec<(HostId, HostId)> {
    let running: Vec<_> = world.hosts().filter(|host| world.is_running(*host)).collect();
    let leads = |a, b| world.topology.leads(a, b, |kind| !kind.blocks_udp);
    let mut pairs = Vec::new();
    for (index, &a) in running.iter().enumerate() {
        for &b in &running[index + 1..] {
            let (of_a, of_b) = (&world.host(a).config.network, &world.host(b).config.network);
            let same = of_a.id() == of_b.id() && of_a.secret.as_bytes() == of_b.secret.as_bytes();
            if same && (leads(a, b) || leads(b, a)) {
                pairs.push((a, b));
            }
        }
    }
    pairs
}

/// Whether forwarding at `from` has a session to `to`, and sends to where `to` really is, at the end of all
/// translations.
pub fn sends(world: &World, from: HostId, to: HostId) -> bool {
    let Some(process) = world.host(from).process.as_ref() else { return false };
    let peer = process.fib().peers.iter().find(|peer| peer.peer == world.host(to).peer);
    peer.is_some_and(|peer| {
        if let Some(number) = number_behind(&peer.endpoint) {
            return peer.transport.is_some() && world.stream_end(from, number) == Some(to);
        }
        // NATs give each of our sockets another mapping, but all lead to the same peer.
        let destination = world.topology.destination(from, split(peer.endpoint).1, world.now());
        peer.transport.is_some() && destination.is_some_and(|(host, port)| host == to && socket_at(port).is_some())
    })
}

/// Pairs that must be connected and are not, each with what is missing. "Neither" is never right on one LAN.
pub fn faults(world: &World) -> Vec<String> {
    let mut faults = Vec::new();
    for (a, b) in pairs(world) {
        for (from, to) in [(a, b), (b, a)] {
            if !sends(world, from, to) {
                let (from, to) = (&world.host(from).name, &world.host(to).name);
                faults.push(format!("{from} has no session to {to}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use std::time::Duration;

    use crate::kinds::KINDS;
    use crate::nat::NatBox;
    use crate::seed::Seed;

    use super::*;

    /// D, P, B, R for the four ways; row and column in the order of `KINDS`.
    const TABLE: [&str; 18] = [
        "DDDDDDDDDDDDRDDDRR",
        "DDDDDDDBPDDBRDBDRR",
        "DDDDDDDDDDDDRDDDRR",
        "DDDDDDDDDDDDRDDDRR",
        "DDDDDDDBPDDBRDBDRR",
        "DDDDDDDBPDDBRDBDRR",
        "DDDDDDDBPDDBRDBDRR",
        "DBDDBBBRRDBRRBRDRR",
        "DPDDPPPRPDPRRPRDRR",
        "DDDDDDDDDDDDRDDDRR",
        "DDDDDDDBPDDBRDBDRR",
        "DBDDBBBRRDBRRBRDRR",
        "RRRRRRRRRRRRDDDRRR",
        "DDDDDDDBPDDBDDDDRR",
        "DBDDBBBRRDBRDDDDRR",
        "DDDDDDDDDDDDRDDDRR",
        "RRRRRRRRRRRRRRRRRR",
        "RRRRRRRRRRRRRRRRRR",
    ];

    #[test]
    fn every_pair_of_kinds_has_the_way_that_the_table_says() {
        for (a, row) in KINDS.iter().zip(TABLE) {
            for (b, cell) in KINDS.iter().zip(row.chars()) {
                let way = match cell {
                    'D' => Way::Direct,
                    'P' => Way::Predicted,
                    'B' => Way::Birthday,
                    _ => Way::Relayed,
                };
                assert_eq!(best_way(a, b), way, "{} x {}", a.name, b.name);
            }
        }
    }

    /// Whether two hear each other who know their mappings towards an observer, send there at the same time, and answer
    /// whoever they hear: the least that a node must do.
    fn hear_each_other(kinds: [&NatKind; 2]) -> bool {
        let address = |text: &str| -> SocketAddr { text.parse().expect("an endpoint") };
        let inside = [address("203.0.1.2:4747"), address("203.0.2.2:4747")];
        let observer = address("198.18.0.1:4747");
        let now = Duration::ZERO;
        let mut boxes = [0, 1].map(|at: usize| {
            let outside = SocketAddr::new([198, 18, 0, 2 + at as u8].into(), 0);
            let mut nat = NatBox::new(*kinds[at], outside.ip(), Seed(9).chance(&format!("box {at}")));
            nat.map_port(inside[at], Duration::from_secs(1), now);
            nat
        });
        let mapped = [0, 1].map(|at| boxes[at].outbound(inside[at], observer, now));
        let [Ok(one), Ok(two)] = mapped else { return false };
        let mut targets = [BTreeSet::from([two]), BTreeSet::from([one])];
        let mut heard = [false; 2];
        for _ in 0..3 {
            let mut under_way = Vec::new();
            for at in [0, 1] {
                for target in &targets[at] {
                    let source = boxes[at].outbound(inside[at], *target, now).expect("UDP passes");
                    under_way.push((source, *target, 1 - at));
                }
            }
            for (source, target, to) in under_way {
                if boxes[to].inbound(source, target, now).is_ok() {
                    heard[to] = true;
                    targets[to].insert(source);
                }
            }
        }
        heard == [true; 2]
    }

    #[test]
    fn those_and_only_those_with_a_direct_way_hear_each_other_at_once() {
        for a in &KINDS {
            for b in &KINDS {
                let mut families = a.boxes().into_iter().zip(b.boxes());
                let heard = families.any(|(a, b)| a.zip(b).is_some_and(|(a, b)| hear_each_other([&a, &b])));
                assert_eq!(heard, best_way(a, b) == Way::Direct, "{} x {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn a_way_is_the_same_from_both_ends() {
        for a in &KINDS {
            for b in &KINDS {
                assert_eq!(best_way(a, b), best_way(b, a));
            }
        }
    }

    #[test]
    fn a_home_behind_a_carrier_is_judged_by_the_harder_box() {
        let strict = NatKind::PORT_RESTRICTED;
        assert_eq!(direct_path_possible(&NatKind::FULL_CONE.behind(NatKind::CARRIER), &strict), Way::Direct);
        assert_eq!(direct_path_possible(&strict.behind(NatKind::CARRIER_SYMMETRIC), &strict), Way::Birthday);
        assert_eq!(direct_path_possible(&NatKind::SYMMETRIC_SEQUENTIAL.behind(strict), &strict), Way::Predicted);
        assert_eq!(direct_path_possible(&strict.behind(NatKind::UDP_BLOCKED), &strict), Way::Relayed);
        let (maps, hard) = (NatKind::UPNP, NatKind::SYMMETRIC_RANDOM);
        assert_eq!(direct_path_possible(&maps, &hard), Way::Direct);
        assert_eq!(direct_path_possible(&maps.behind(NatKind::CARRIER), &hard), Way::Birthday);
    }
}
