//! Who is plugged in where, and who can reach whom.
//!
//! A segment is a switch, or the Internet: everything on it reaches everything else on it. A host has a port on one or
//! several segments. A segment may fall apart into islands (a cable between two switches was pulled: no host notices),
//! and a port may be unplugged (its host notices).
//!
//! A segment may have a gateway: a [`NatBox`] with one port on it and one on another segment, which may have a gateway
//! again. What is addressed to nobody on a host's segments goes there. An address is one only within its segment, so
//! two homes may use the same ones.
//!
//! A segment speaks IPv4 or IPv6. Who has both is plugged into a segment of each, and so is the Internet two: the cables
//! may be the same, but nothing gets from one family to the other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::host::HostId;
use crate::link::{Carried, Conditions, Link};
use crate::nat::{NatBox, NatKind};
use crate::seed::Chance;

/// Routers between any two ports of an Internet. There are more, but as many as this already tell a TTL that opens
/// the sender's boxes (2 for one, 3 for two) from one that arrives.
pub const INTERNET_ROUTERS: u8 = 8;

/// Boxes on a way: a home behind a carrier makes two on each side. More than this is a loop.
const MAX_BOXES: usize = 16;

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub usize);

/// A port on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub usize);

/// A box between two segments, in the order in which they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoxId(pub usize);

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A host.
    Host(HostId),
    /// A box whose gateway it is.
    Inside(BoxId),
    /// A box that is a customer here.
    Outside(BoxId),
}

/// The addresses of a segment, where they matter: what is among them never goes to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// A /24.
    V4([u8; 3]),
    /// The /64 of this number in 2001:db8::/32 (RFC 3849).
    V6(u16),
}

impl Prefix {
    /// The address of its `number`th port.
    fn address(self, number: u16) -> IpAddr {
        match self {
            Self::V4([a, b, c]) => {
                assert!(number < 255, "a /24 is full");
                IpAddr::from([a, b, c, number as u8])
            }
            Self::V6(network) => Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, number).into(),
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(prefix), IpAddr::V4(address)) => address.octets()[..3] == prefix,
            (Self::V6(network), IpAddr::V6(address)) => address.segments()[..4] == [0x2001, 0xdb8, network, 0],
            (Self::V4(_), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[derive(Debug)]
struct Segment {
    /// Whether multicast reaches everybody, so that mDNS works: a LAN, not the Internet.
    multicast: bool,
    /// Whether hosts reach its gateway only, as guests on a wireless LAN.
    isolated: bool,
    conditions: Conditions,
    prefix: Option<Prefix>,
    /// Routers that a datagram passes from port to port.
    routers: u8,
    gateway: Option<BoxId>,
    ports: Vec<PortId>,
}

#[derive(Debug)]
struct Gateway {
    inside: PortId,
    outside: PortId,
    nat: NatBox,
}

#[derive(Debug)]
struct Port {
    owner: Owner,
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
    boxes: Vec<Gateway>,
    of_host: BTreeMap<HostId, Vec<PortId>>,
    by_address: BTreeMap<(SegmentId, IpAddr), PortId>,
}

impl Topology {
    /// Adds a segment: a LAN if it carries multicast, else an Internet.
    pub fn add_segment(&mut self, multicast: bool, conditions: Conditions) -> SegmentId {
        let routers = if multicast { 0 } else { INTERNET_ROUTERS };
        let (isolated, prefix, gateway, ports) = (false, None, None, Vec::new());
        self.segments.push(Segment { multicast, isolated, conditions, prefix, routers, gateway, ports });
        SegmentId(self.segments.len() - 1)
    }

    /// Segments so far.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Adds a segment without routers whose addresses are of a prefix, which others may use too.
    pub fn add_segment_at(&mut self, prefix: Prefix, multicast: bool, conditions: Conditions) -> SegmentId {
        let segment = self.add_segment(multicast, conditions);
        let added = &mut self.segments[segment.0];
        (added.prefix, added.routers) = (Some(prefix), 0);
        segment
    }

    /// Adds an Internet of IPv6.
    pub fn add_internet_of_ipv6(&mut self, conditions: Conditions) -> SegmentId {
        let prefix = Prefix::V6(self.segments.len() as u16);
        let segment = self.add_segment_at(prefix, false, conditions);
        self.segments[segment.0].routers = INTERNET_ROUTERS;
        segment
    }

    /// Keeps the hosts of a segment apart: each reaches the gateway only.
    pub fn isolate(&mut self, segment: SegmentId) {
        self.segments[segment.0].isolated = true;
    }

    /// Whether a segment speaks IPv6.
    pub fn is_ipv6(&self, segment: SegmentId) -> bool {
        matches!(self.segments[segment.0].prefix, Some(Prefix::V6(_)))
    }

    /// Puts a box between a segment and another, nearer to the Internet, where it gets an address. It is the gateway
    /// of `inside`.
    ///
    /// # Panics
    /// If `inside` has a gateway.
    pub fn add_box(&mut self, kind: NatKind, inside: SegmentId, outside: SegmentId, chance: Chance) -> BoxId {
        let id = BoxId(self.boxes.len());
        let before = self.segments[inside.0].gateway.replace(id);
        assert!(before.is_none(), "{inside:?} has a gateway");
        let inner = self.add_port(Owner::Inside(id), inside);
        let outer = self.add_port(Owner::Outside(id), outside);
        let nat = NatBox::new(kind, self.ports[outer.0].address, chance);
        self.boxes.push(Gateway { inside: inner, outside: outer, nat });
        id
    }

    /// Plugs `host` into `segment` and returns its address there: unique on the segment, and in no mesh's prefix.
    pub fn attach(&mut self, host: HostId, segment: SegmentId) -> IpAddr {
        let port = self.add_port(Owner::Host(host), segment);
        self.of_host.entry(host).or_default().push(port);
        self.ports[port.0].address
    }

    fn add_port(&mut self, owner: Owner, id: SegmentId) -> PortId {
        let segment = &mut self.segments[id.0];
        let number = segment.ports.len() + 1;
        let [.., high, low] = (number as u32).to_be_bytes();
        // 192.168.x for LANs as at home; beyond 250 hosts, and for the Internet, 198.18/15 (RFC 2544, for benchmarks).
        let address = if let Some(prefix) = segment.prefix {
            prefix.address(number as u16)
        } else if segment.multicast && number < 250 && id.0 < 256 {
            IpAddr::from([192, 168, id.0 as u8, low])
        } else {
            IpAddr::from([198, 18 + (id.0 % 2) as u8, high.wrapping_add(32 * (id.0 / 2) as u8), low])
        };
        let port = PortId(self.ports.len());
        segment.ports.push(port);
        let link = Link::new(segment.conditions);
        self.ports.push(Port { owner, segment: id, address, plugged: true, island: 0, link });
        assert!(self.by_address.insert((id, address), port).is_none(), "{address} was given twice");
        port
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

    /// Cuts `segment` into islands; hosts that no island names stay on one of their own together. A box goes with the
    /// hosts behind it.
    pub fn partition(&mut self, segment: SegmentId, islands: &[&[HostId]]) {
        for port in self.segments[segment.0].ports.clone() {
            let hosts = self.hosts_at(port);
            let island = islands.iter().position(|island| hosts.iter().any(|host| island.contains(host)));
            self.ports[port.0].island = island.map_or(0, |at| at + 1);
        }
    }

    /// Makes `segment` whole again.
    pub fn heal(&mut self, segment: SegmentId) {
        self.partition(segment, &[]);
    }

    /// Plugs the outside of a box in or out: nobody behind it notices.
    pub fn plug_box(&mut self, id: BoxId, plugged: bool) {
        let outside = self.boxes[id.0].outside;
        self.ports[outside.0].plugged = plugged;
    }

    /// A box.
    pub fn nat(&self, id: BoxId) -> &NatBox {
        &self.boxes[id.0].nat
    }

    /// A box, to be changed.
    pub fn nat_mut(&mut self, id: BoxId) -> &mut NatBox {
        &mut self.boxes[id.0].nat
    }

    /// Every box.
    pub fn boxes(&self) -> impl Iterator<Item = BoxId> + use<> {
        (0..self.boxes.len()).map(BoxId)
    }

    /// The gateway of a segment.
    pub fn gateway(&self, segment: SegmentId) -> Option<BoxId> {
        self.segments[segment.0].gateway
    }

    /// The gateways of `host` that let everybody in if they are asked to, each with the address that it knows the host by.
    pub fn mapping_gateways(&self, host: HostId) -> impl Iterator<Item = (IpAddr, BoxId)> + use<'_> {
        let ports = self.ports_of(host).iter().map(|port| &self.ports[port.0]).filter(|port| port.plugged);
        ports.filter_map(|port| {
            let id = self.segments[port.segment.0].gateway?;
            self.boxes[id.0].nat.kind().maps_ports.then_some((port.address, id))
        })
    }

    /// The ports of a box: inside and outside.
    pub fn ports_of_box(&self, id: BoxId) -> (PortId, PortId) {
        (self.boxes[id.0].inside, self.boxes[id.0].outside)
    }

    /// What the link of a port is like.
    pub fn conditions(&self, port: PortId) -> Conditions {
        self.ports[port.0].link.conditions
    }

    /// Changes what every cable of `segment` is like.
    pub fn set_conditions(&mut self, segment: SegmentId, conditions: Conditions) {
        self.segments[segment.0].conditions = conditions;
        for port in &self.segments[segment.0].ports {
            self.ports[port.0].link.conditions = conditions;
        }
    }

    /// Changes what the cable of `host` into `segment` is like, in what it sends.
    pub fn set_cable(&mut self, host: HostId, segment: SegmentId, conditions: Conditions) {
        for port in self.of_host.get(&host).cloned().unwrap_or_default() {
            if self.ports[port.0].segment == segment {
                self.ports[port.0].link.conditions = conditions;
            }
        }
    }

    /// The way from `host` to an address of a host on one of its segments: the ports it leaves and enters by.
    pub fn route(&self, host: HostId, to: IpAddr) -> Option<(PortId, PortId)> {
        self.ports_of(host).iter().find_map(|out| {
            let target = *self.by_address.get(&(self.ports[out.0].segment, to))?;
            let is_host = matches!(self.ports[target.0].owner, Owner::Host(_));
            (is_host && self.adjacent(*out, target)).then_some((*out, target))
        })
    }

    /// The first part of the way from `host` to any address: to whoever has it on one of its segments, else to a
    /// gateway.
    pub fn first_hop(&self, host: HostId, to: IpAddr) -> Option<(PortId, PortId)> {
        let ports = self.ports_of(host);
        let on_link = |out: &PortId| Some((*out, self.across(*out, to)?));
        if let Some(hop) = ports.iter().find_map(on_link) {
            return Some(hop);
        }
        let is_here = |out: &&PortId| self.ports[out.0].plugged && self.is_on_link(self.ports[out.0].segment, to);
        if ports.iter().any(|out| is_here(&out)) {
            return None;
        }
        let of_family = |out: &&PortId| self.ports[out.0].address.is_ipv6() == to.is_ipv6();
        ports.iter().filter(of_family).find_map(|out| Some((*out, self.gateway_from(*out)?)))
    }

    /// The next part of the way to an address, for a box that sends out of `out`.
    pub fn next_hop(&self, out: PortId, to: IpAddr) -> Option<PortId> {
        let segment = self.ports[out.0].segment;
        let target = self.across(out, to);
        if target.is_some() || self.is_on_link(segment, to) { target } else { self.gateway_from(out) }
    }

    /// Who has an address on the segment of `out`, or routes to whoever has it, and is reached from there.
    fn across(&self, out: PortId, to: IpAddr) -> Option<PortId> {
        let segment = self.ports[out.0].segment;
        let target = self.by_address.get(&(segment, to)).copied().or_else(|| self.routed(segment, to))?;
        self.adjacent(out, target).then_some(target)
    }

    /// The box on `segment` behind which an address is without being translated.
    fn routed(&self, segment: SegmentId, to: IpAddr) -> Option<PortId> {
        let is_way = |gateway: &&Gateway| {
            !gateway.nat.kind().translates
                && self.ports[gateway.outside.0].segment == segment
                && self.is_on_link(self.ports[gateway.inside.0].segment, to)
        };
        self.boxes.iter().find(is_way).map(|gateway| gateway.outside)
    }

    fn gateway_from(&self, out: PortId) -> Option<PortId> {
        let gateway = self.segments[self.ports[out.0].segment.0].gateway?;
        let target = self.boxes[gateway.0].inside;
        self.adjacent(out, target).then_some(target)
    }

    fn is_on_link(&self, segment: SegmentId, to: IpAddr) -> bool {
        let prefix = self.segments[segment.0].prefix;
        prefix.is_some_and(|prefix| prefix.contains(to)) || self.by_address.contains_key(&(segment, to))
    }

    /// Who gets what `host` sends to an endpoint, if every box lets it pass: an oracle's question, no datagram moves.
    pub fn destination(&self, host: HostId, to: SocketAddr, now: Duration) -> Option<(HostId, u16)> {
        let (_, into) = self.first_hop(host, to.ip())?;
        self.destination_from(into, to, now)
    }

    /// The same, of what enters `into`.
    pub fn destination_from(&self, mut into: PortId, mut to: SocketAddr, now: Duration) -> Option<(HostId, u16)> {
        for _ in 0..MAX_BOXES {
            let (out, id) = match self.ports[into.0].owner {
                Owner::Host(host) => return Some((host, to.port())),
                Owner::Inside(id) if self.is_outside_of(id, to.ip()) => (self.boxes[id.0].inside, Some(id)),
                Owner::Inside(id) => (self.boxes[id.0].outside, None),
                Owner::Outside(id) => (self.boxes[id.0].inside, Some(id)),
            };
            if let Some(id) = id {
                to = self.boxes[id.0].nat.inside_of(to, now)?;
            }
            into = self.next_hop(out, to.ip())?;
        }
        None
    }

    /// Whether an address is the one by which a box is known outside, so that what is inside and sends there hairpins.
    pub fn is_outside_of(&self, id: BoxId, address: IpAddr) -> bool {
        let nat = &self.boxes[id.0].nat;
        nat.kind().translates && nat.address() == address
    }

    /// The host that a connection from `host` to an endpoint ends at. Gateways let TCP out, some to one port only, and in only what
    /// they were asked to map.
    pub fn dial(&self, host: HostId, to: SocketAddr, now: Duration) -> Option<HostId> {
        let (_, into) = self.tcp_hops(host, to, now)?.pop()?;
        match self.ports[into.0].owner {
            Owner::Host(other) => Some(other),
            Owner::Inside(_) | Owner::Outside(_) => None,
        }
    }

    /// The parts of the way that such a connection takes, if it gets through: the ports it leaves and enters by.
    pub fn tcp_hops(&self, host: HostId, mut to: SocketAddr, now: Duration) -> Option<Vec<(PortId, PortId)>> {
        let mut hops = vec![self.first_hop(host, to.ip())?];
        for _ in 0..MAX_BOXES {
            let (_, into) = *hops.last()?;
            let out = match self.ports[into.0].owner {
                Owner::Host(_) => return Some(hops),
                Owner::Inside(id) if self.is_outside_of(id, to.ip()) => return None,
                Owner::Inside(id) if self.boxes[id.0].nat.kind().only_443 && to.port() != 443 => return None,
                Owner::Inside(id) => self.boxes[id.0].outside,
                Owner::Outside(id) => {
                    let nat = &self.boxes[id.0].nat;
                    if !nat.kind().is_open() {
                        to = nat.inside_of(to, now).filter(|_| nat.is_mapped(to, now))?;
                    }
                    self.boxes[id.0].inside
                }
            };
            hops.push((out, self.next_hop(out, to.ip())?));
        }
        None
    }

    /// The address by which the host at the end of such a way knows the one at its beginning: that of the last box that translates.
    pub fn outermost(&self, hops: &[(PortId, PortId)]) -> Option<IpAddr> {
        let translates = |(out, _): &&(PortId, PortId)| match self.ports[out.0].owner {
            Owner::Host(_) => true,
            Owner::Outside(id) => self.boxes[id.0].nat.kind().translates,
            Owner::Inside(_) => false,
        };
        hops.iter().rev().find(translates).map(|(out, _)| self.ports[out.0].address)
    }

    /// Whether `a` gets to `b` without help: on a segment of both, or outwards through gateways that satisfy `passes`.
    pub fn leads(&self, a: HostId, b: HostId, passes: impl Fn(&NatKind) -> bool) -> bool {
        self.reach(a, b)
            || !self.boxes.is_empty()
                && self.addresses(b).into_iter().any(|address| self.outward(a, address, &passes) == Some(b))
    }

    /// Whether a connection between `a` and `b` has a way: one of them can dial the other, and then both may speak.
    pub fn connects(&self, a: HostId, b: HostId) -> bool {
        self.leads(a, b, |_| true) || self.leads(b, a, |_| true)
    }

    fn outward(&self, host: HostId, to: IpAddr, passes: impl Fn(&NatKind) -> bool) -> Option<HostId> {
        let (_, mut into) = self.first_hop(host, to)?;
        for _ in 0..MAX_BOXES {
            into = match self.ports[into.0].owner {
                Owner::Host(other) => return Some(other),
                Owner::Inside(id) if !self.is_outside_of(id, to) && passes(&self.boxes[id.0].nat.kind()) => {
                    self.next_hop(self.boxes[id.0].outside, to)?
                }
                Owner::Outside(id) if self.boxes[id.0].nat.kind().is_open() => {
                    self.next_hop(self.boxes[id.0].inside, to)?
                }
                Owner::Inside(_) | Owner::Outside(_) => return None,
            };
        }
        None
    }

    /// Whether `a` and `b` reach each other on a segment of both.
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
            .filter_map(|port| match self.ports[port.0].owner {
                Owner::Host(other) => Some(other),
                Owner::Inside(_) | Owner::Outside(_) => None,
            })
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

    /// What a port belongs to.
    pub fn owner(&self, port: PortId) -> Owner {
        self.ports[port.0].owner
    }

    /// The host of a port.
    ///
    /// # Panics
    /// If it is a box's.
    pub fn host_of(&self, port: PortId) -> HostId {
        match self.ports[port.0].owner {
            Owner::Host(host) => host,
            Owner::Inside(_) | Owner::Outside(_) => panic!("{port:?} is a box's"),
        }
    }

    /// Routers that a datagram passes on the segment of a port.
    pub fn routers_at(&self, port: PortId) -> u8 {
        self.segments[self.ports[port.0].segment.0].routers
    }

    /// Whether a datagram on its way between two ports still arrives: a pulled cable loses what is on it.
    pub fn adjacent(&self, a: PortId, b: PortId) -> bool {
        let (a, b) = (&self.ports[a.0], &self.ports[b.0]);
        let guests = matches!((a.owner, b.owner), (Owner::Host(_), Owner::Host(_)));
        let apart = a.island != b.island || guests && self.segments[a.segment.0].isolated;
        a.segment == b.segment && !apart && a.plugged && b.plugged && a.owner != b.owner
    }

    /// The hosts at and behind a port, seen from its segment.
    fn hosts_at(&self, port: PortId) -> Vec<HostId> {
        match self.ports[port.0].owner {
            Owner::Host(host) => vec![host],
            Owner::Inside(_) => Vec::new(),
            Owner::Outside(id) => {
                let inside = self.ports[self.boxes[id.0].inside.0].segment;
                self.segments[inside.0].ports.iter().flat_map(|port| self.hosts_at(*port)).collect()
            }
        }
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
