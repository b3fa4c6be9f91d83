//! How a datagram travels: from a host, over links and through boxes, to a host.
//!
//! Each hop is an event of its own, so a box sees datagrams in the order in which they reach it, and a cable that is
//! pulled loses what is on it.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::wire::socket::through;

use crate::host::{HostId, socket_at};
use crate::link::Carried;
use crate::nat::Refusal;
use crate::topology::{BoxId, Owner, PortId};
use crate::trace::fingerprint;
use crate::world::{PORT, What, World};

/// The TTL of what nobody gave another: what Linux sets. No way here is as long.
pub const TTL: u8 = 64;

/// Datagrams kept by a capture: the handshakes of a few hundred pairs.
const MAX_CAPTURED: usize = 100_000;

/// A datagram as a cable saw it.
#[derive(Debug, Clone)]
pub struct Captured {
    /// When it was sent.
    pub at: Duration,
    /// By whom.
    pub from: HostId,
    /// Where to.
    pub endpoint: SocketAddr,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// Who sent it, whatever its source says by now.
    from: HostId,
    source: SocketAddr,
    target: SocketAddr,
    /// Routers and boxes that it may still pass, and one.
    ttl: u8,
    bytes: Vec<u8>,
}

impl World {
    /// Sends a datagram from any port of a host, with any TTL, as a program on it would, whether its node runs or not.
    pub fn emit(&mut self, from: HostId, port: u16, to: SocketAddr, ttl: u8, bytes: &[u8]) {
        self.transmit(from, port, to, ttl, bytes.to_vec());
    }

    pub(crate) fn transmit(&mut self, from: HostId, port: u16, target: SocketAddr, ttl: u8, bytes: Vec<u8>) {
        let hop = self.topology.first_hop(from, target.ip());
        // A kernel does not take what its own interface cannot carry: nothing is sent.
        if hop.is_some_and(|(out, _)| bytes.len() + headers(target) > self.topology.conditions(out).mtu) {
            return self.note(from, format_args!("refused {target} {}", bytes.len()));
        }
        self.note(from, format_args!("send {target} {} {:016x}", bytes.len(), fingerprint(&bytes)));
        let now = self.now();
        let target = self.host(from).truth.get(&target).copied().unwrap_or(target);
        let costs = &mut self.host_mut(from).costs;
        let kind = bytes.first().copied().filter(|kind| (1..=4).contains(kind)).unwrap_or(0);
        costs.sent[usize::from(kind)] += 1;
        costs.bytes += bytes.len() as u64;
        if let Some(captured) = self.captured.as_mut().filter(|captured| captured.len() < MAX_CAPTURED) {
            captured.push(Captured { at: now, from, endpoint: target, bytes: bytes.clone() });
        }
        let Some((out, into)) = hop else { return self.go_astray(&bytes) };
        if let Some((to, PORT)) = self.topology.destination_from(into, target, now) {
            let sent = self.sent.entry((from, to)).or_default();
            *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
        }
        let source = SocketAddr::new(self.topology.address_of(out), port);
        self.carry(out, Some(into), Packet { from, source, target, ttl, bytes });
    }

    /// Puts a datagram on the link of `out`.
    fn carry(&mut self, out: PortId, into: Option<PortId>, mut packet: Packet) {
        let is_heard = |into: &PortId| {
            socket_at(packet.target.port()).is_some() || !matches!(self.topology.owner(*into), Owner::Host(_))
        };
        let Some(into) = into.filter(is_heard) else { return self.go_astray(&packet.bytes) };
        let (now, len) = (self.now(), packet.bytes.len() + headers(packet.target));
        let carried = self.topology.carry(out, len, now, &mut self.links);
        let routers = self.topology.routers_at(out);
        if packet.ttl <= routers {
            return self.expire(&packet);
        }
        packet.ttl -= routers;
        match carried {
            Carried::Once(at) => self.push_at(at, What::Arrive { out, into, packet }),
            Carried::Twice(first, second) => {
                self.push_at(first, What::Arrive { out, into, packet: packet.clone() });
                self.push_at(second, What::Arrive { out, into, packet });
            }
            Carried::Lost(loss) => {
                self.lost += 1;
                self.note(packet.from, format_args!("lost {loss:?}"));
            }
        }
    }

    pub(crate) fn arrive(&mut self, out: PortId, into: PortId, packet: Packet) {
        if !self.topology.adjacent(out, into) {
            return;
        }
        match self.topology.owner(into) {
            Owner::Host(host) => {
                let Packet { from, source, target, bytes, .. } = packet;
                let process = self.host(host).process.as_ref();
                let number =
                    socket_at(target.port()).filter(|number| process.is_none_or(|process| process.listens_at(*number)));
                let Some(number) = number else { return self.go_astray(&bytes) };
                let source = through(number, self.told(host, source));
                self.note(host, format_args!("recv {source} {}", bytes.len()));
                *self.arrived.entry((from, host)).or_default() += 1;
                self.drive(host, |process, scratch, now, output| {
                    process.datagram(&bytes, source, scratch, now, output)
                });
            }
            Owner::Inside(id) => self.pass_out(id, packet),
            Owner::Outside(id) => self.pass_in(id, packet),
        }
    }

    /// From where a host says that something came: the node itself cannot lie, so it is lied to, as by a proxy before it.
    fn told(&mut self, host: HostId, source: SocketAddr) -> SocketAddr {
        let host = self.host_mut(host);
        let Some(lie) = host.lie else { return source };
        host.truth.insert(lie(source), source);
        lie(source)
    }

    /// A datagram from inside reached its gateway.
    fn pass_out(&mut self, id: BoxId, mut packet: Packet) {
        let (now, (inside, outside)) = (self.now(), self.topology.ports_of_box(id));
        // The box itself serves nothing.
        if packet.target.ip() == self.topology.address_of(inside) {
            return self.filter(&packet, id, Refusal::Unmapped);
        }
        // A TTL that ends here ends before translation, as in Linux: nothing is opened.
        if packet.ttl <= 1 {
            return self.expire(&packet);
        }
        let (source, target) = (packet.source, packet.target);
        let hairpins = self.topology.is_outside_of(id, target.ip());
        let nat = self.topology.nat_mut(id);
        let passed = if hairpins {
            nat.hairpin(source, target, now)
        } else {
            nat.outbound(source, target, now).map(|source| (source, target))
        };
        match passed {
            Ok((source, target)) => {
                packet = Packet { source, target, ttl: packet.ttl - 1, ..packet };
                self.pass(if hairpins { inside } else { outside }, packet);
            }
            Err(refusal) => self.filter(&packet, id, refusal),
        }
    }

    /// A datagram from outside reached a box.
    fn pass_in(&mut self, id: BoxId, mut packet: Packet) {
        let (now, (inside, _)) = (self.now(), self.topology.ports_of_box(id));
        match self.topology.nat_mut(id).inbound(packet.source, packet.target, now) {
            Ok(_) if packet.ttl <= 1 => self.expire(&packet),
            Ok(target) => {
                packet = Packet { target, ttl: packet.ttl - 1, ..packet };
                self.pass(inside, packet);
            }
            Err(refusal) => self.filter(&packet, id, refusal),
        }
    }

    fn pass(&mut self, out: PortId, packet: Packet) {
        self.note(packet.from, format_args!("pass {} {}", packet.source, packet.target));
        let into = self.topology.next_hop(out, packet.target.ip());
        self.carry(out, into, packet);
    }

    fn filter(&mut self, packet: &Packet, id: BoxId, refusal: Refusal) {
        self.filtered += 1;
        self.note(packet.from, format_args!("filtered {} {} {id:?} {refusal:?}", packet.source, packet.target));
    }

    fn expire(&mut self, packet: &Packet) {
        self.expired += 1;
        self.note(packet.from, format_args!("expired {} {}", packet.source, packet.target));
    }

    fn go_astray(&mut self, bytes: &[u8]) {
        self.astray = (self.astray.0 + 1, self.astray.1 + bytes.len() as u64);
    }
}

/// What IP and UDP put before a datagram, bytes.
fn headers(target: SocketAddr) -> usize {
    if target.is_ipv4() { 28 } else { 48 }
}

#[cfg(test)]
mod tests {
    use crate::nat::NatKind;
    use crate::seed::Seed;
    use crate::topology::SegmentId;

    use super::*;

    /// An Internet with one host on it, and its endpoint.
    fn internet() -> (World, SegmentId, HostId, SocketAddr) {
        let mut world = World::new(Seed(7));
        let internet = world.internet();
        let public = world.laptops(1, internet)[0];
        let endpoint = endpoint(&world, public);
        (world, internet, public, endpoint)
    }

    fn endpoint(world: &World, host: HostId) -> SocketAddr {
        SocketAddr::new(world.topology.addresses(host)[0], PORT)
    }

    /// A home with one host.
    fn home(world: &mut World, kind: NatKind, outside: SegmentId) -> (HostId, BoxId) {
        let (lan, nat) = world.home_behind(kind, outside);
        (world.laptops(1, lan)[0], nat)
    }

    /// Sends one datagram and runs until it must have arrived; whether it did.
    fn arrives(world: &mut World, from: HostId, to: SocketAddr, ttl: u8, at: HostId) -> bool {
        let before = world.arrivals(from, at);
        world.emit(from, PORT, to, ttl, b"hello");
        world.run_for(Duration::from_millis(200));
        world.arrivals(from, at) > before
    }

    #[test]
    fn a_home_is_seen_by_its_outside_endpoint_and_only_answers_come_in() {
        let (mut world, internet, public, there) = internet();
        let (host, nat) = home(&mut world, NatKind::PORT_RESTRICTED_NOT_PRESERVING, internet);
        let stranger = world.laptops(1, internet)[0];
        assert!(arrives(&mut world, host, there, TTL, public));
        let [outside] = world.outside_of(host, nat)[..] else { panic!("one mapping") };
        assert!(outside.ip() == world.topology.nat(nat).address() && outside.port() != PORT);
        assert!(arrives(&mut world, public, outside, TTL, host));
        assert!(!arrives(&mut world, stranger, outside, TTL, host));
        assert_eq!((world.filtered, world.astray.0, world.lost), (1, 0, 0));
        assert_eq!(
            [world.datagrams(host, public), world.datagrams(public, host), world.datagrams(stranger, host)],
            [1; 3]
        );
        let private = endpoint(&world, host);
        assert!(!arrives(&mut world, public, private, TTL, host));
        assert_eq!(world.astray.0, 1);
    }

    #[test]
    fn two_homes_that_send_at_the_same_time_hear_each_other() {
        let (mut world, internet, _, there) = internet();
        let homes = [(); 2].map(|()| home(&mut world, NatKind::PORT_RESTRICTED_NOT_PRESERVING, internet));
        for (host, _) in homes {
            world.emit(host, PORT, there, TTL, b"who am I?");
        }
        world.run_for(Duration::from_secs(1));
        let outside = homes.map(|(host, nat)| world.outside_of(host, nat)[0]);
        world.emit(homes[0].0, PORT, outside[1], TTL, b"hello");
        world.emit(homes[1].0, PORT, outside[0], TTL, b"hello");
        world.run_for(Duration::from_secs(1));
        let [(one, _), (two, _)] = homes;
        assert_eq!((world.arrivals(one, two), world.arrivals(two, one)), (1, 1));
    }

    #[test]
    fn what_comes_too_early_takes_the_port_at_a_careless_router_unless_a_low_ttl_went_before() {
        for careful in [false, true] {
            let (mut world, internet, public, there) = internet();
            let (host, nat) = home(&mut world, NatKind::CARELESS_LINUX, internet);
            let outside = SocketAddr::new(world.topology.nat(nat).address(), PORT);
            // One for the box, one to enter the Internet, where it ends.
            if careful {
                assert!(!arrives(&mut world, host, there, 2, public));
                assert_eq!(world.expired, 1);
            }
            assert_eq!(arrives(&mut world, public, outside, TTL, host), careful);
            assert!(arrives(&mut world, host, there, TTL, public));
            assert_eq!(world.outside_of(host, nat) == [outside], careful);
        }
    }

    #[test]
    fn a_ttl_that_ends_at_the_own_box_opens_nothing_and_one_that_ends_before_the_other_is_not_seen_there() {
        let (mut world, internet, public, there) = internet();
        let (host, nat) = home(&mut world, NatKind::PORT_RESTRICTED, internet);
        let (_, far) = home(&mut world, NatKind::CARELESS_LINUX, internet);
        assert!(!arrives(&mut world, host, there, 1, public) && world.outside_of(host, nat).is_empty());
        let beyond = SocketAddr::new(world.topology.nat(far).address(), PORT);
        assert!(!arrives(&mut world, host, beyond, 2, public) && !world.outside_of(host, nat).is_empty());
        assert_eq!(world.topology.nat(far).statistics().flows, 0);
        assert_eq!((world.expired, world.filtered), (2, 0));
    }

    #[test]
    fn a_home_behind_a_carrier_is_translated_twice() {
        let (mut world, internet, public, there) = internet();
        let (access, carrier) = world.carrier(NatKind::CARRIER, internet);
        let (host, nat) = home(&mut world, NatKind::PORT_RESTRICTED, access);
        // A TTL for the two boxes ends between the second and the public host.
        assert!(!arrives(&mut world, host, there, 3, public));
        let [inner] = world.outside_of(host, nat)[..] else { panic!("one mapping") };
        let [outer] = world.topology.nat(carrier).outside_of(inner, world.now())[..] else { panic!("one mapping") };
        assert!(arrives(&mut world, host, there, TTL, public) && arrives(&mut world, public, outer, TTL, host));
        assert_eq!(world.topology.destination(public, outer, world.now()), Some((host, PORT)));
    }

    #[test]
    fn homes_of_one_carrier_reach_each_other_if_it_hairpins_or_by_their_addresses_on_its_network() {
        for (kind, hairpins) in [(NatKind::CARRIER, true), (NatKind { hairpin: false, ..NatKind::CARRIER }, false)] {
            let (mut world, internet, public, there) = internet();
            let (access, carrier) = world.carrier(kind, internet);
            let homes = [(); 2].map(|()| home(&mut world, NatKind::FULL_CONE, access));
            for (host, _) in homes {
                assert!(arrives(&mut world, host, there, TTL, public));
            }
            let inner = homes.map(|(host, nat)| world.outside_of(host, nat)[0]);
            let outer = inner.map(|inner| world.topology.nat(carrier).outside_of(inner, world.now())[0]);
            assert!(arrives(&mut world, homes[0].0, inner[1], TTL, homes[1].0));
            assert!(!arrives(&mut world, homes[0].0, outer[1], TTL, homes[1].0), "nobody asked for it");
            assert_eq!(arrives(&mut world, homes[1].0, outer[0], TTL, homes[0].0), hairpins);
        }
    }

    #[test]
    fn a_host_behind_a_firewall_keeps_its_address_and_only_answers_come_in() {
        let (mut world, internet, public, there) = internet();
        let (host, _) = home(&mut world, NatKind::FIREWALL, internet);
        let here = endpoint(&world, host);
        assert!(!arrives(&mut world, public, here, TTL, host));
        assert!(arrives(&mut world, host, there, TTL, public));
        assert!(arrives(&mut world, public, here, TTL, host));
        let (open, _) = home(&mut world, NatKind::PUBLIC, internet);
        let here = endpoint(&world, open);
        assert!(arrives(&mut world, public, here, TTL, open));
        assert!(
            world.topology.connects(public, open) && world.topology.dial(public, here, Duration::ZERO) == Some(open)
        );
    }

    #[test]
    fn homes_may_use_the_same_addresses() {
        let (mut world, internet, public, there) = internet();
        let hosts = [(); 2].map(|()| {
            let (lan, nat) = world.home_at([192, 168, 1], NatKind::PORT_RESTRICTED, internet);
            (world.laptops(1, lan)[0], nat)
        });
        assert_eq!(world.topology.addresses(hosts[0].0), world.topology.addresses(hosts[1].0));
        for (host, nat) in hosts {
            assert!(arrives(&mut world, host, there, TTL, public));
            let outside = world.outside_of(host, nat)[0];
            assert!(arrives(&mut world, public, outside, TTL, host));
        }
        let (ours, theirs) = (hosts[0].0, hosts[1].0);
        assert!(!world.topology.reach(ours, theirs) && !world.topology.connects(ours, theirs));
        // What is of our own LAN never goes to the gateway, whoever else has such an address.
        let (astray, same) = (world.astray.0, endpoint(&world, theirs));
        assert!(!arrives(&mut world, ours, same, TTL, theirs));
        assert_eq!((world.astray.0 - astray, world.filtered), (1, 0));
    }

    #[test]
    fn control_connections_lead_out_of_homes_and_not_in() {
        let (mut world, internet, public, there) = internet();
        let [(one, _), (blocked, _)] =
            [NatKind::FULL_CONE, NatKind::UDP_BLOCKED].map(|kind| home(&mut world, kind, internet));
        for host in [one, blocked] {
            assert!(world.topology.connects(host, public) && world.topology.connects(public, host));
            assert_eq!(world.topology.dial(host, there, Duration::ZERO), Some(public));
        }
        assert!(!world.topology.connects(one, blocked));
        assert!(!arrives(&mut world, blocked, there, TTL, public));
        assert_eq!(world.filtered, 1);
    }

    #[test]
    fn a_box_that_is_unplugged_or_on_another_island_passes_nothing() {
        let (mut world, internet, public, there) = internet();
        let (host, nat) = home(&mut world, NatKind::PORT_RESTRICTED, internet);
        world.partition(internet, &[&[host]]);
        assert!(!arrives(&mut world, host, there, TTL, public));
        world.partition(internet, &[]);
        assert!(arrives(&mut world, host, there, TTL, public));
        world.plug_box(nat, false);
        assert!(!arrives(&mut world, host, there, TTL, public));
        assert_eq!(world.astray.0, 2);
    }
}
