//! The oracle: it sees the topology, so it knows who must be connected with whom.

use crate::host::HostId;
use crate::world::World;

/// Pairs that must be connected directly: both run, are of one network, and a way leads from one to the other.
pub fn pairs(world: &World) -> Vec<(HostId, HostId)> {
    let running: Vec<_> = world.hosts().filter(|host| world.is_running(*host)).collect();
    let mut pairs = Vec::new();
    for (index, &a) in running.iter().enumerate() {
        for &b in &running[index + 1..] {
            let (of_a, of_b) = (&world.host(a).config.network, &world.host(b).config.network);
            let same = of_a.id() == of_b.id() && of_a.secret.as_bytes() == of_b.secret.as_bytes();
            if same && world.topology.reach(a, b) {
                pairs.push((a, b));
            }
        }
    }
    pairs
}

/// Whether forwarding at `from` has a session to `to`, and sends to where `to` really is.
pub fn sends(world: &World, from: HostId, to: HostId) -> bool {
    let Some(process) = world.host(from).process.as_ref() else { return false };
    let peer = process.fib().peers.iter().find(|peer| peer.peer == world.host(to).peer);
    peer.is_some_and(|peer| {
        let way = world.topology.route(from, peer.endpoint.ip());
        peer.transport.is_some() && way.is_some_and(|(_, into)| world.topology.host_of(into) == to)
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
