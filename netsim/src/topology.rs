//! Who is plugged in where, and who can reach whom.
//!
//! A segment is a switch, or the Internet: everything on it reaches everything else on it. A host has a port on one or
//! several segments. A segment may fall apart into islands (a cable between two switches was pulled: no host notices),
//! and a port may be unplugged (its host notices).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::host::HostId;
use crate::link::{Carried, Conditions, Link};
use crate::seed::Chance;

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub usize);

/// A host's port on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub usize);

#[derive(Debug)]
struct Segment {
    /// Whether multicast reaches everybody, so that mDNS works: a LAN, not the Internet.
    multicast: bool,
    conditions: Conditions,
    ports: Vec<PortId>,
}

#[derive(Debug)]
struct Port {
    host: HostId,
    segment: SegmentId,
    address: IpAddr,
    plugged: bool,
    /// Ports of one segment reach each other if they are on the same island.
    island: usize,
    /// What it sends over.
    link: Link,
}

/// All segments and ports.
#[derive(Debug, Default)]
pub struct Topology {
    segments: Vec<Segment>,
    ports: Vec<Port>,
    of_host: BTreeMap<HostId, Vec<PortId>>,
    by_address: BTreeMap<IpAddr, PortId>,
}

impl Topology {
    /// Adds a segment.
    pub fn add_segment(&mut self, multicast: bool, conditions: Conditions) -> SegmentId {
        self.segments.push(Segment { multicast, conditions, ports: Vec::new() });
        SegmentId(self.segments.len() - 1)
    }

    /// Plugs `host` into `segment` and returns its address there: unique in the world, and in no mesh's prefix.
    pub fn attach(&mut self, host: HostId, segment: SegmentId) -> IpAddr {
        let number = self.segments[segment.0].ports.len() + 1;
        let [.., high, low] = (number as u32).to_be_bytes();
        // 192.168.x for LANs as at home; beyond 250 hosts, and for the Internet, 198.18/15 (RFC 2544, for benchmarks).
        let address = if self.segments[segment.0].multicast && number < 250 && segment.0 < 256 {
            IpAddr::from([192, 168, segment.0 as u8, low])
        } else {
            IpAddr::from([198, 18 + (segment.0 % 2) as u8, high.wrapping_add(32 * (segment.0 / 2) as u8), low])
        };
        let port = PortId(self.ports.len());
        let link = Link::new(self.segments[segment.0].conditions);
        self.ports.push(Port { host, segment, address, plugged: true, island: 0, link });
        self.segments[segment.0].ports.push(port);
        self.of_host.entry(host).or_default().push(port);
        assert!(self.by_address.insert(address, port).is_none(), "{address} was given twice");
        address
    }

    /// The addresses of `host` on cables that are plugged in.
    pub fn addresses(&self, host: HostId) -> Vec<IpAddr> {
        self.ports_of(host)
            .iter()
            .map(|port| &self.ports[port.0])
            .filter(|port| port.plugged)
            .map(|p| p.address)
            .collect()
    }

    /// Plugs every cable of `host` in or out.
    pub fn plug(&mut self, host: HostId, plugged: bool) {
        for port in self.of_host.get(&host).cloned().unwrap_or_default() {
            self.ports[port.0].plugged = plugged;
        }
    }

    /// Plugs the cable of `host` into `segment` in or out.
    pub fn plug_into(&mut self, host: HostId, segment: SegmentId, plugged: bool) {
        for port in self.of_host.get(&host).cloned().unwrap_or_default() {
            if self.ports[port.0].segment == segment {
                self.ports[port.0].plugged = plugged;
            }
        }
    }

    /// Cuts `segment` into islands; hosts that no island names stay on one of their own together.
    pub fn partition(&mut self, segment: SegmentId, islands: &[&[HostId]]) {
        for port in &self.segments[segment.0].ports {
            let host = self.ports[port.0].host;
            self.ports[port.0].island = islands.iter().position(|island| island.contains(&host)).map_or(0, |at| at + 1);
        }
    }

    /// Makes `segment` whole again.
    pub fn heal(&mut self, segment: SegmentId) {
        self.partition(segment, &[]);
    }

    /// Changes what every cable of `segment` is like.
    pub fn set_conditions(&mut self, segment: SegmentId, conditions: Conditions) {
        self.segments[segment.0].conditions = conditions;
        for port in &self.segments[segment.0].ports {
            self.ports[port.0].link.conditions = conditions;
        }
    }

    /// The way from `host` to an address: the ports it leaves and enters by.
    pub fn route(&self, host: HostId, to: IpAddr) -> Option<(PortId, PortId)> {
        let target = *self.by_address.get(&to)?;
        let out = self.ports_of(host).iter().find(|out| self.adjacent(**out, target))?;
        Some((*out, target))
    }

    /// Whether `a` and `b` reach each other.
    pub fn reach(&self, a: HostId, b: HostId) -> bool {
        self.shared(a, b).next().is_some()
    }

    /// The addresses of `b` that `a` hears by multicast.
    pub fn heard_by_multicast(&self, a: HostId, b: HostId) -> Vec<IpAddr> {
        self.shared(a, b)
            .map(|port| &self.ports[port.0])
            .filter(|port| self.segments[port.segment.0].multicast)
            .map(|port| port.address)
            .collect()
    }

    /// Hosts with a port on a segment of `host`, itself not among them, each once.
    pub fn neighbors(&self, host: HostId) -> Vec<HostId> {
        let segments = self.ports_of(host).iter().map(|port| self.ports[port.0].segment);
        let mut hosts: Vec<_> = segments
            .flat_map(|segment| &self.segments[segment.0].ports)
            .map(|port| self.ports[port.0].host)
            .filter(|other| *other != host)
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Sends an IP packet of `len` bytes out of `port`.
    pub fn carry(&mut self, port: PortId, len: usize, now: Duration, chance: &mut Chance) -> Carried {
        self.ports[port.0].link.carry(len, now, chance)
    }

    /// The address of a port.
    pub fn address_of(&self, port: PortId) -> IpAddr {
        self.ports[port.0].address
    }

    /// The host of a port.
    pub fn host_of(&self, port: PortId) -> HostId {
        self.ports[port.0].host
    }

    /// Whether a datagram on its way between two ports still arrives: a pulled cable loses what is on it.
    pub fn adjacent(&self, a: PortId, b: PortId) -> bool {
        let (a, b) = (&self.ports[a.0], &self.ports[b.0]);
        a.segment == b.segment && a.island == b.island && a.plugged && b.plugged && a.host != b.host
    }

    fn ports_of(&self, host: HostId) -> &[PortId] {
        self.of_host.get(&host).map_or(&[], Vec::as_slice)
    }

    fn shared(&self, a: HostId, b: HostId) -> impl Iterator<Item = PortId> {
        let reached = move |theirs: &&PortId| self.ports_of(a).iter().any(|ours| self.adjacent(*ours, **theirs));
        self.ports_of(b).iter().filter(reached).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = HostId(0);
    const B: HostId = HostId(1);
    const C: HostId = HostId(2);

    fn one_lan() -> (Topology, SegmentId, [IpAddr; 3]) {
        let mut topology = Topology::default();
        let lan = topology.add_segment(true, Conditions::LAN);
        let addresses = [A, B, C].map(|host| topology.attach(host, lan));
        (topology, lan, addresses)
    }

    #[test]
    fn hosts_on_one_switch_reach_each_other_and_nobody_reaches_itself() {
        let (topology, _, [_, b, _]) = one_lan();
        assert!(topology.reach(A, B) && topology.reach(C, A) && !topology.reach(A, A));
        let (out, into) = topology.route(A, b).expect("a way");
        assert_eq!((topology.host_of(out), topology.host_of(into)), (A, B));
        assert_eq!(topology.route(A, "8.8.8.8".parse().expect("an address")), None);
        assert_eq!(topology.neighbors(A), [B, C]);
    }

    #[test]
    fn islands_are_apart_until_healed() {
        let (mut topology, lan, _) = one_lan();
        topology.partition(lan, &[&[A, B]]);
        assert!(topology.reach(A, B) && !topology.reach(A, C) && !topology.reach(C, B));
        topology.heal(lan);
        assert!(topology.reach(A, C));
    }

    #[test]
    fn a_pulled_cable_takes_the_address_with_it() {
        let (mut topology, _, [_, b, _]) = one_lan();
        topology.plug(B, false);
        assert!(!topology.reach(A, B) && topology.addresses(B).is_empty() && topology.route(A, b).is_none());
        topology.plug(B, true);
        assert_eq!(topology.addresses(B), [b]);
    }

    #[test]
    fn multicast_is_heard_on_a_lan_and_not_on_the_internet() {
        let mut topology = Topology::default();
        let (lan, internet) =
            (topology.add_segment(true, Conditions::LAN), topology.add_segment(false, Conditions::WAN));
        let near = [topology.attach(A, lan), topology.attach(B, lan)];
        topology.attach(A, internet);
        topology.attach(C, internet);
        assert_eq!(topology.heard_by_multicast(A, B), [near[1]]);
        assert!(topology.reach(A, C) && topology.heard_by_multicast(A, C).is_empty());
        assert!(!topology.reach(B, C));
    }
}
