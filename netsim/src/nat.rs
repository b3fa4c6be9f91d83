//! A box between a home and the Internet: what it translates, what it lets in, and for how long it remembers.
//!
//! The words are those of RFC 4787: a *mapping* gives an inside endpoint an outside one, *filtering* decides who may
//! send to it. A *flow* is a pair of an outside endpoint and a remote one between which something has passed: it is
//! what a kernel's connection tracking holds, and filtering asks it. A kind of box is data ([`NatKind`]), so that a
//! test can name a box that nobody has built yet.
//!
//! A box is told the time and drawn from one source of chance: it is a function of what passes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::seed::Chance;

/// The lowest port that boxes hand out: those below are for services (RFC 6335), and no box gives them to a client.
pub const FIRST_PORT: u16 = 1024;

/// Ports that a box has: all from [`FIRST_PORT`] on. The arithmetic of birthdays is about this number.
pub const PORTS: u16 = u16::MAX - FIRST_PORT + 1;

/// RFC 4787 REQ-5: a mapping must not expire in less. Boxes that are kinder hide faults in keeping mappings alive.
pub(crate) const EXPIRY: Duration = Duration::from_secs(120);

/// What Linux gives a flow that nobody has answered; one that was answered gets 120 s, which no test may rely on.
pub(crate) const LINUX_EXPIRY: Duration = Duration::from_secs(30);

/// Flows that a box holds. Home routers have tables of 1024 to 4096: twice as much would hide who floods them.
pub(crate) const CAPACITY: usize = 4096;

/// Flows of a carrier's box: it serves thousands of homes, and what limits one of them is its block of ports.
pub(crate) const CARRIER_CAPACITY: usize = 1 << 20;

/// Which packets of an inside endpoint get the same outside endpoint, from easy to hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// All.
    EndpointIndependent,
    /// Those to one address.
    AddressDependent,
    /// Those to one address and port.
    AddressAndPortDependent,
}

/// Who may send to a mapping, from easy to hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Who has the address of somebody that it has sent to.
    AddressDependent,
    /// Exactly those that it has sent to.
    AddressAndPortDependent,
}

/// Which port a new mapping gets. What is taken is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// That of the inside endpoint, else the next.
    Preserve,
    /// Any.
    Random,
    /// The last one and a step.
    Sequential {
        /// How far from port to port; not 0.
        step: u16,
    },
}

/// What a box is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatKind {
    /// Whether it translates; if not, what is inside has public addresses.
    pub translates: bool,
    /// Which packets share a mapping.
    pub mapping: Mapping,
    /// Who may answer.
    pub filtering: Filtering,
    /// How it chooses ports.
    pub ports: Ports,
    /// How many ports an inside address has for itself, where a carrier shares them out (RFC 7422).
    pub block: Option<u16>,
    /// How long it remembers what is silent.
    pub expiry: Duration,
    /// Whether what comes in counts as a sign of life (RFC 4787 REQ-6), not only what goes out.
    pub refreshed_by_inbound: bool,
    /// Whether those inside reach each other by their outside endpoints (RFC 4787 REQ-9).
    pub hairpin: bool,
    /// Whether a packet that nobody asked for makes a flow, as with a Linux router that does not drop it: it is taken
    /// for one to the router itself, and a later packet from inside to the same remote endpoint has to get another
    /// port.
    pub careless: bool,
    /// Whether no UDP passes at all.
    pub blocks_udp: bool,
    /// Whether TCP gets out to port 443 only.
    pub only_443: bool,
    /// Flows that it holds; more are refused.
    pub capacity: usize,
    /// Whether those inside may have it let everybody in (PCP, NAT-PMP, UPnP).
    pub maps_ports: bool,
}

impl NatKind {
    /// Whether it is no obstacle at all: whoever knows an address behind it may send there.
    pub fn is_open(&self) -> bool {
        !self.translates && !self.blocks_udp && self.filtering == Filtering::EndpointIndependent
    }

    /// The same, that forgets after `expiry`.
    #[must_use]
    pub const fn expiring(mut self, expiry: Duration) -> Self {
        self.expiry = expiry;
        self
    }

    /// The same, that remembers what is only sent to.
    #[must_use]
    pub const fn refreshed_by_inbound(mut self) -> Self {
        self.refreshed_by_inbound = true;
        self
    }

    /// The same, where those inside reach each other by their outside endpoints.
    #[must_use]
    pub const fn hairpinning(mut self) -> Self {
        self.hairpin = true;
        self
    }

    /// The same, with `block` ports for each inside address.
    #[must_use]
    pub const fn in_blocks(mut self, block: u16) -> Self {
        self.block = Some(block);
        self
    }

    /// The same, that holds `capacity` flows.
    #[must_use]
    pub const fn holding(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }
}

/// Why a box does not pass a datagram on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It passes no UDP.
    Udp,
    /// Nothing is mapped to where it went.
    Unmapped,
    /// There is a mapping, but its owner has not sent to whom it came from.
    Unsolicited,
    /// It is from inside to an outside endpoint, and the box does not hairpin.
    Hairpin,
    /// No room for another flow, or no port.
    Full,
}

/// What a box did so far: for budgets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Mappings opened.
    pub opened: u64,
    /// Flows made by what went out, and at boxes that are careless by what came in.
    pub flows: u64,
    /// The most flows that were held at once.
    pub most: usize,
    /// Datagrams passed on, outwards.
    pub out: u64,
    /// Datagrams passed on, inwards.
    pub into: u64,
    /// Datagrams refused, by the reason.
    pub refused: BTreeMap<Refusal, u64>,
}

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Towards {
    Anybody,
    Address(IpAddr),
    Endpoint(SocketAddr),
}

type Key = (SocketAddr, Towards);

#[derive(Debug, Clone, Copy)]
struct Mapped {
    outside: SocketAddr,
    expires: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    /// `None` if it is taken for one with the box itself.
    inside: Option<SocketAddr>,
    expires: Duration,
}

/// A box at work.
#[derive(Debug)]
pub struct NatBox {
    kind: NatKind,
    address: IpAddr,
    chance: Chance,
    mappings: BTreeMap<Key, Mapped>,
    owners: BTreeMap<SocketAddr, Key>,
    /// By outside and remote endpoint. A flow never outlives its mapping.
    flows: BTreeMap<(SocketAddr, SocketAddr), Flow>,
    /// The outside endpoint of a flow, by inside and remote endpoint.
    bound: BTreeMap<(SocketAddr, SocketAddr), SocketAddr>,
    blocks: BTreeMap<IpAddr, u16>,
    /// Outside endpoints at which everybody is let in, until when.
    open: BTreeMap<SocketAddr, Duration>,
    /// The port chosen last, by the first port of the range that it is from.
    last: BTreeMap<u16, u16>,
    statistics: Statistics,
}

impl NatBox {
    /// A box that has just been turned on, with its `address` outside.
    pub fn new(kind: NatKind, address: IpAddr, chance: Chance) -> Self {
        Self {
            kind,
            address,
            chance,
            mappings: BTreeMap::new(),
            owners: BTreeMap::new(),
            flows: BTreeMap::new(),
            bound: BTreeMap::new(),
            blocks: BTreeMap::new(),
            open: BTreeMap::new(),
            last: BTreeMap::new(),
            statistics: Statistics::default(),
        }
    }

    /// What it is like.
    pub fn kind(&self) -> NatKind {
        self.kind
    }

    /// Its address outside.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What it did so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Forgets everything, as when its plug is pulled.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.owners.clear();
        self.flows.clear();
        self.bound.clear();
        self.blocks.clear();
        self.open.clear();
        self.last.clear();
    }

    /// Mappings that it holds.
    pub fn mappings(&self, now: Duration) -> usize {
        self.mappings.values().filter(|mapped| mapped.expires > now).count()
    }

    /// Flows that it holds.
    pub fn flows(&self, now: Duration) -> usize {
        self.flows.values().filter(|flow| flow.expires > now).count()
    }

    /// Somebody has changed its settings: what it remembers stays.
    pub fn become_kind(&mut self, kind: NatKind) {
        self.kind = kind;
    }

    /// The outside endpoints of an inside one.
    pub fn outside_of(&self, inside: SocketAddr, now: Duration) -> Vec<SocketAddr> {
        let mine = self.mappings.range((inside, Towards::Anybody)..).take_while(|((owner, _), _)| *owner == inside);
        mine.filter(|(_, mapped)| mapped.expires > now).map(|(_, mapped)| mapped.outside).collect()
    }

    /// Whose outside endpoint this is, whether or not anybody may send to it.
    pub fn inside_of(&self, outside: SocketAddr, now: Duration) -> Option<SocketAddr> {
        if !self.kind.translates {
            return Some(outside);
        }
        self.owner(outside, now).map(|(inside, _)| inside)
    }

    /// A datagram from inside; where it seems to come from outside.
    ///
    /// # Errors
    /// If it does not pass.
    pub fn outbound(&mut self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> Result<SocketAddr, Refusal> {
        if self.kind.blocks_udp {
            return self.refuse(Refusal::Udp);
        }
        let key = self.key(inside, remote, now);
        let known = self.mappings.get(&key).filter(|mapped| mapped.expires > now).map(|mapped| mapped.outside);
        if known.is_none_or(|outside| !self.holds_flow(outside, remote, now)) && self.is_full(now) {
            return self.refuse(Refusal::Full);
        }
        let Some(outside) = known.or_else(|| self.open(key, remote, now)) else { return self.refuse(Refusal::Full) };
        let expires = now + self.kind.expiry;
        if let Some(mapped) = self.mappings.get_mut(&key) {
            mapped.expires = expires.max(self.open.get(&outside).copied().unwrap_or_default());
        }
        self.note_flow(outside, remote, Flow { inside: Some(inside), expires }, now);
        self.bound.insert((inside, remote), outside);
        self.statistics.out += 1;
        Ok(outside)
    }

    /// Whoever has `inside` asks that everybody be let in for `lifetime`; by which outside endpoint that is. The one it has by
    /// chance already is kept: then peers know it.
    pub fn map_port(&mut self, inside: SocketAddr, lifetime: Duration, now: Duration) -> Option<SocketAddr> {
        if !self.kind.maps_ports || self.kind.blocks_udp {
            return None;
        }
        let key = (inside, Towards::Anybody);
        let known = self.mappings.get(&key).filter(|mapped| mapped.expires > now).map(|mapped| mapped.outside);
        let nobody = SocketAddr::new(self.address, 0);
        let outside = known.or_else(|| self.open(key, nobody, now))?;
        self.mappings.insert(key, Mapped { outside, expires: now + lifetime });
        self.open.insert(outside, now + lifetime);
        Some(outside)
    }

    /// Whether everybody is let in at an outside endpoint because somebody asked for that.
    pub fn is_mapped(&self, outside: SocketAddr, now: Duration) -> bool {
        self.open.get(&outside).is_some_and(|until| *until > now)
    }

    /// A datagram from outside; whom it goes to inside.
    ///
    /// # Errors
    /// If it does not pass.
    pub fn inbound(&mut self, remote: SocketAddr, outside: SocketAddr, now: Duration) -> Result<SocketAddr, Refusal> {
        if self.kind.blocks_udp {
            return self.refuse(Refusal::Udp);
        }
        let Some(key) = self.owner(outside, now) else {
            if self.kind.is_open() {
                self.statistics.into += 1;
                return Ok(outside);
            }
            self.poison(outside, remote, now);
            return self.refuse(Refusal::Unmapped);
        };
        if !self.lets_in(remote, outside, now) {
            self.poison(outside, remote, now);
            return self.refuse(Refusal::Unsolicited);
        }
        let inside = key.0;
        let mut expires = now;
        if let Some(mapped) = self.mappings.get_mut(&key) {
            if self.kind.refreshed_by_inbound {
                mapped.expires = mapped.expires.max(now + self.kind.expiry);
            }
            expires = mapped.expires;
        }
        if self.holds_flow(outside, remote, now) {
            if self.kind.refreshed_by_inbound {
                self.flows.insert((outside, remote), Flow { inside: Some(inside), expires });
            }
        } else if self.kind.mapping != Mapping::EndpointIndependent && !self.is_full(now) {
            // The answer leaves by the port that was asked, whatever port this destination had or would get otherwise:
            // Linux sees to it by connection tracking, and without it nobody behind another strict box could use an
            // open filter.
            self.note_flow(outside, remote, Flow { inside: Some(inside), expires }, now);
            self.bound.insert((inside, remote), outside);
        }
        self.statistics.into += 1;
        Ok(inside)
    }

    /// A datagram from inside to an outside endpoint of this box; where it seems to come from, and whom it goes to.
    ///
    /// # Errors
    /// If it does not pass.
    pub fn hairpin(
        &mut self,
        inside: SocketAddr,
        outside: SocketAddr,
        now: Duration,
    ) -> Result<(SocketAddr, SocketAddr), Refusal> {
        if !self.kind.hairpin {
            return self.refuse(Refusal::Hairpin);
        }
        let source = self.outbound(inside, outside, now)?;
        Ok((source, self.inbound(source, outside, now)?))
    }

    fn refuse<T>(&mut self, refusal: Refusal) -> Result<T, Refusal> {
        *self.statistics.refused.entry(refusal).or_default() += 1;
        Err(refusal)
    }

    /// The mapping that a datagram from inside takes.
    fn key(&self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> Key {
        if let Some(key) = self.bound_to(inside, remote, now).and_then(|outside| self.owner(outside, now)) {
            return key;
        }
        let usual = match self.kind.mapping {
            Mapping::EndpointIndependent => (inside, Towards::Anybody),
            Mapping::AddressDependent => (inside, Towards::Address(remote.ip())),
            Mapping::AddressAndPortDependent => (inside, Towards::Endpoint(remote)),
        };
        let mapped = self.mappings.get(&usual).filter(|mapped| mapped.expires > now);
        let outside = mapped.map_or(SocketAddr::new(self.address, inside.port()), |mapped| mapped.outside);
        if self.is_poisoned(outside, remote, now) { (inside, Towards::Endpoint(remote)) } else { usual }
    }

    /// The outside endpoint by which an inside one already speaks with a remote one.
    fn bound_to(&self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let outside = *self.bound.get(&(inside, remote))?;
        let flow = self.flows.get(&(outside, remote))?;
        (flow.expires > now && flow.inside == Some(inside)).then_some(outside)
    }

    fn owner(&self, outside: SocketAddr, now: Duration) -> Option<Key> {
        let key = *self.owners.get(&outside)?;
        (self.mappings.get(&key)?.expires > now).then_some(key)
    }

    fn lets_in(&self, remote: SocketAddr, outside: SocketAddr, now: Duration) -> bool {
        match self.kind.filtering {
            _ if self.is_mapped(outside, now) => true,
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                let lowest = SocketAddr::new(remote.ip(), 0);
                let flows = self.flows.range((outside, lowest)..);
                let mut flows = flows.take_while(|((at, with), _)| *at == outside && with.ip() == remote.ip());
                flows.any(|(_, flow)| flow.expires > now && flow.inside.is_some())
            }
            Filtering::AddressAndPortDependent => self.holds_flow(outside, remote, now),
        }
    }

    fn holds_flow(&self, outside: SocketAddr, remote: SocketAddr, now: Duration) -> bool {
        self.flows.get(&(outside, remote)).is_some_and(|flow| flow.expires > now && flow.inside.is_some())
    }

    fn is_poisoned(&self, outside: SocketAddr, remote: SocketAddr, now: Duration) -> bool {
        self.flows.get(&(outside, remote)).is_some_and(|flow| flow.expires > now && flow.inside.is_none())
    }

    /// A careless box takes what nobody asked for as meant for itself, and each retry keeps that flow alive.
    fn poison(&mut self, outside: SocketAddr, remote: SocketAddr, now: Duration) {
        if self.kind.careless && (self.is_poisoned(outside, remote, now) || !self.is_full(now)) {
            let flow = Flow { inside: None, expires: now + self.kind.expiry };
            self.note_flow(outside, remote, flow, now);
        }
    }

    fn note_flow(&mut self, outside: SocketAddr, remote: SocketAddr, flow: Flow, now: Duration) {
        let before = self.flows.insert((outside, remote), flow);
        if before.is_none_or(|before| before.expires <= now) {
            self.statistics.flows += 1;
            self.statistics.most = self.statistics.most.max(self.flows.len());
        }
    }

    fn is_full(&mut self, now: Duration) -> bool {
        if self.flows.len() < self.kind.capacity {
            return false;
        }
        self.flows.retain(|_, flow| flow.expires > now);
        self.mappings.retain(|_, mapped| mapped.expires > now);
        self.owners.retain(|_, key| self.mappings.contains_key(key));
        self.bound.retain(|(_, remote), outside| self.flows.contains_key(&(*outside, *remote)));
        self.flows.len() >= self.kind.capacity
    }

    fn open(&mut self, key: Key, remote: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let outside = if self.kind.translates { self.choose(key.0, remote, now)? } else { key.0 };
        if let Some(stale) = self.mappings.remove(&key) {
            self.owners.remove(&stale.outside);
        }
        if let Some(stale) = self.owners.insert(outside, key) {
            self.mappings.remove(&stale);
        }
        self.mappings.insert(key, Mapped { outside, expires: now + self.kind.expiry });
        self.statistics.opened += 1;
        Some(outside)
    }

    /// A free outside endpoint.
    fn choose(&mut self, inside: SocketAddr, remote: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let (first, count) = self.range(inside.ip())?;
        let usual = SocketAddr::new(self.address, inside.port());
        let (start, step) = match self.kind.ports {
            // Linux looks for another port from a place that it draws.
            Ports::Preserve if self.is_poisoned(usual, remote, now) => (self.chance.below(count.into()), 1),
            Ports::Preserve => (u64::from(inside.port().wrapping_sub(first) % count), 1),
            Ports::Random => (self.chance.below(count.into()), 1),
            Ports::Sequential { step } => {
                let last = match self.last.get(&first) {
                    Some(last) => u64::from(last - first),
                    None => self.chance.below(count.into()),
                };
                (last + u64::from(step), u64::from(step))
            }
        };
        let port_at = |nth: u64| first + ((start + nth * step) % u64::from(count)) as u16;
        let is_free = |port: &u16| {
            let outside = SocketAddr::new(self.address, *port);
            self.owner(outside, now).is_none() && !self.is_poisoned(outside, remote, now)
        };
        let port = (0..u64::from(count)).map(port_at).find(is_free)?;
        self.last.insert(first, port);
        Some(SocketAddr::new(self.address, port))
    }

    /// The first port that an inside address may have, and how many.
    fn range(&mut self, inside: IpAddr) -> Option<(u16, u16)> {
        let Some(block) = self.kind.block else { return Some((FIRST_PORT, PORTS)) };
        if let Some(first) = self.blocks.get(&inside) {
            return Some((*first, block));
        }
        let blocks = u64::from(PORTS / block);
        let start = self.chance.below(blocks);
        let first_of = |nth: u64| FIRST_PORT + ((start + nth) % blocks) as u16 * block;
        let first = (0..blocks).map(first_of).find(|first| !self.blocks.values().any(|taken| taken == first))?;
        self.blocks.insert(inside, first);
        Some((first, block))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::seed::Seed;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const START: Duration = Duration::ZERO;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an endpoint")
    }

    fn built(kind: NatKind) -> NatBox {
        NatBox::new(kind, at("198.18.0.9:0").ip(), Seed(5).chance("nat test"))
    }

    fn inside() -> SocketAddr {
        at("192.168.1.2:4747")
    }

    /// Two ports of one remote host, and another host.
    fn remotes() -> [SocketAddr; 3] {
        [at("198.18.0.1:4747"), at("198.18.0.1:9"), at("198.18.0.2:4747")]
    }

    /// The outside ports of packets from one endpoint to each of `remotes`.
    fn ports(kind: NatKind) -> [u16; 3] {
        let mut nat = built(kind);
        remotes().map(|remote| nat.outbound(inside(), remote, START).expect("it passes").port())
    }

    /// Who of `remotes` may send to a mapping that was opened by sending to the first.
    fn let_in(kind: NatKind) -> [bool; 3] {
        let mut nat = built(kind);
        let outside = nat.outbound(inside(), remotes()[0], START).expect("it passes");
        remotes().map(|remote| nat.inbound(remote, outside, S) == Ok(inside()))
    }

    #[test]
    fn a_mapping_that_is_endpoint_independent_is_the_same_for_all_destinations() {
        assert_eq!(ports(NatKind::PORT_RESTRICTED), [4747; 3]);
        let [a, b, c] = ports(NatKind::PORT_RESTRICTED_NOT_PRESERVING);
        assert!(a == b && b == c && a != 4747);
    }

    #[test]
    fn a_mapping_that_is_address_dependent_is_another_for_each_address() {
        let [a, b, c] = ports(NatKind { mapping: Mapping::AddressDependent, ..NatKind::SYMMETRIC_RANDOM });
        assert!(a == b && b != c);
    }

    #[test]
    fn a_mapping_that_is_address_and_port_dependent_is_another_for_each_endpoint() {
        let [a, b, c] = ports(NatKind::SYMMETRIC_RANDOM);
        assert!(a != b && b != c && a != c);
    }

    #[test]
    fn a_port_that_was_mapped_is_open_to_everybody_until_the_lease_ends_or_the_plug_is_pulled() {
        let (lease, [a, b, _]) = (10 * EXPIRY, remotes());
        let mut nat = built(NatKind::UPNP);
        let outside = nat.outbound(inside(), a, Duration::ZERO).expect("it passes");
        assert!(nat.inbound(b, outside, Duration::ZERO).is_err());
        assert_eq!(nat.map_port(inside(), lease, Duration::ZERO), Some(outside), "peers know it already");
        assert_eq!(nat.outbound(inside(), b, EXPIRY / 2), Ok(outside));
        let last = lease - Duration::from_secs(1);
        assert_eq!(nat.inbound(a, outside, last), Ok(inside()), "what went out meanwhile does not shorten it");
        assert!(nat.inbound(a, outside, lease).is_err());
        let outside = nat.map_port(inside(), lease, lease).expect("again");
        nat.reboot();
        assert!(nat.inbound(a, outside, lease).is_err());
        assert_eq!(built(NatKind::PORT_RESTRICTED).map_port(inside(), lease, Duration::ZERO), None);
    }

    #[test]
    fn filtering_lets_in_everybody_or_an_address_or_an_endpoint() {
        assert_eq!(let_in(NatKind::FULL_CONE), [true, true, true]);
        assert_eq!(let_in(NatKind::ADDRESS_RESTRICTED), [true, true, false]);
        assert_eq!(let_in(NatKind::PORT_RESTRICTED), [true, false, false]);
        assert_eq!(let_in(NatKind::SYMMETRIC_OPEN_FILTER), [true, true, true]);
        assert_eq!(let_in(NatKind::SYMMETRIC_RANDOM), [true, false, false]);
    }

    #[test]
    fn nobody_gets_in_where_nothing_is_mapped() {
        let mut nat = built(NatKind::FULL_CONE);
        assert_eq!(nat.inbound(remotes()[0], at("198.18.0.9:4747"), START), Err(Refusal::Unmapped));
        assert_eq!(nat.statistics().refused, BTreeMap::from([(Refusal::Unmapped, 1)]));
    }

    #[test]
    fn a_port_is_preserved_where_it_is_free_else_it_is_the_next() {
        let mut nat = built(NatKind::PORT_RESTRICTED);
        let port = |nat: &mut NatBox, host| nat.outbound(at(host), remotes()[0], START).expect("it passes").port();
        assert_eq!(port(&mut nat, "192.168.1.2:4747"), 4747);
        assert_eq!(port(&mut nat, "192.168.1.3:4747"), 4748);
        assert_eq!(port(&mut nat, "192.168.1.4:65535"), 65535);
        assert_eq!(port(&mut nat, "192.168.1.5:65535"), FIRST_PORT);
    }

    #[test]
    fn sequential_ports_go_in_steps_and_pass_over_what_is_taken() {
        let [a, b, c] = ports(NatKind { ports: Ports::Sequential { step: 3 }, ..NatKind::SYMMETRIC_SEQUENTIAL });
        assert_eq!((b.wrapping_sub(a), c.wrapping_sub(b)), (3, 3));
    }

    #[test]
    fn random_ports_are_from_the_whole_range() {
        let mut nat = built(NatKind::SYMMETRIC_RANDOM);
        let ports: BTreeSet<_> = (0..1000u16)
            .map(|n| {
                nat.outbound(inside(), SocketAddr::new(remotes()[0].ip(), 1 + n), START).expect("it passes").port()
            })
            .collect();
        assert_eq!(ports.len(), 1000, "a port was given twice");
        assert!(ports.first().is_some_and(|port| (FIRST_PORT..2000).contains(port)));
        assert!(ports.last().is_some_and(|port| *port > 64_000));
    }

    #[test]
    fn a_block_of_ports_is_for_one_address_and_ends() {
        let mut nat = built(NatKind::SYMMETRIC_RANDOM.in_blocks(64));
        let port = |nat: &mut NatBox, host: &str, n: u16| {
            nat.outbound(at(host), SocketAddr::new(remotes()[0].ip(), n), START).map(|outside| outside.port())
        };
        let block: BTreeSet<_> = (1..=64).filter_map(|n| port(&mut nat, "192.168.1.2:4747", n).ok()).collect();
        let (first, last) = (*block.first().expect("a port"), *block.last().expect("a port"));
        assert_eq!((block.len(), last - first), (64, 63));
        assert_eq!(port(&mut nat, "192.168.1.2:4747", 65), Err(Refusal::Full));
        let other = port(&mut nat, "192.168.1.3:4747", 1).expect("another block");
        assert!(!(first..=last).contains(&other));
    }

    #[test]
    fn a_mapping_expires_unless_what_goes_out_refreshes_it() {
        let mut nat = built(NatKind::PORT_RESTRICTED_NOT_PRESERVING.expiring(30 * S));
        let remote = remotes()[0];
        let outside = nat.outbound(inside(), remote, START).expect("it passes");
        assert_eq!(nat.outbound(inside(), remote, 29 * S), Ok(outside));
        assert_eq!(nat.inbound(remote, outside, 58 * S), Ok(inside()));
        assert_eq!(nat.inbound(remote, outside, 59 * S), Err(Refusal::Unmapped));
        assert_eq!((nat.mappings(58 * S), nat.mappings(59 * S), nat.flows(59 * S)), (1, 0, 0));
        assert_ne!(nat.outbound(inside(), remote, 60 * S), Ok(outside));
        assert_eq!(nat.statistics().opened, 2);
    }

    #[test]
    fn what_comes_in_refreshes_a_mapping_only_if_the_box_says_so() {
        for (kind, there) in
            [(NatKind::PORT_RESTRICTED, false), (NatKind::PORT_RESTRICTED.refreshed_by_inbound(), true)]
        {
            let mut nat = built(kind.expiring(30 * S));
            let outside = nat.outbound(inside(), remotes()[0], START).expect("it passes");
            assert_eq!(nat.inbound(remotes()[0], outside, 20 * S), Ok(inside()));
            assert_eq!(nat.inbound(remotes()[0], outside, 40 * S).is_ok(), there);
        }
    }

    #[test]
    fn a_pinhole_expires_though_others_keep_the_mapping() {
        let mut nat = built(NatKind::PORT_RESTRICTED.expiring(30 * S));
        let [first, _, other] = remotes();
        let outside = nat.outbound(inside(), first, START).expect("it passes");
        assert_eq!(nat.outbound(inside(), other, 20 * S), Ok(outside));
        assert_eq!(nat.inbound(first, outside, 40 * S), Err(Refusal::Unsolicited));
        assert_eq!(nat.inbound(other, outside, 40 * S), Ok(inside()));
    }

    #[test]
    fn hairpin_shows_the_outside_source_and_filters_as_for_anybody() {
        let (one, two) = (inside(), at("192.168.1.3:4747"));
        let mut nat = built(NatKind::PORT_RESTRICTED.hairpinning());
        let outside = [one, two].map(|host| nat.outbound(host, remotes()[0], START).expect("it passes"));
        assert_eq!(nat.hairpin(one, outside[1], START), Err(Refusal::Unsolicited));
        assert_eq!(nat.hairpin(two, outside[0], START), Ok((outside[1], one)));
        assert_eq!(nat.hairpin(one, outside[1], START), Ok((outside[0], two)));
        assert_eq!(built(NatKind::PORT_RESTRICTED).hairpin(one, outside[1], START), Err(Refusal::Hairpin));
    }

    #[test]
    fn a_firewall_translates_nothing_and_lets_in_what_was_asked_for() {
        let mut nat = built(NatKind::FIREWALL);
        let host = at("203.0.1.2:4747");
        assert_eq!(nat.inbound(remotes()[0], host, START), Err(Refusal::Unmapped));
        assert_eq!(nat.outbound(host, remotes()[0], START), Ok(host));
        assert_eq!(nat.inbound(remotes()[0], host, START), Ok(host));
        assert_eq!(nat.inbound(remotes()[2], host, START), Err(Refusal::Unsolicited));
        assert_eq!(built(NatKind::PUBLIC).inbound(remotes()[2], host, START), Ok(host));
    }

    #[test]
    fn a_box_that_blocks_udp_passes_none() {
        let mut nat = built(NatKind::UDP_BLOCKED);
        assert_eq!(nat.outbound(inside(), remotes()[0], START), Err(Refusal::Udp));
        assert_eq!(nat.inbound(remotes()[0], at("198.18.0.9:4747"), START), Err(Refusal::Udp));
        assert_eq!((nat.mappings(START), nat.statistics().opened), (0, 0));
    }

    #[test]
    fn a_careless_router_gives_another_port_towards_who_came_too_early() {
        let mut nat = built(NatKind::CARELESS_LINUX);
        let [early, _, other] = remotes();
        let usual = at("198.18.0.9:4747");
        assert_eq!(nat.outbound(inside(), other, START), Ok(usual));
        assert_eq!(nat.inbound(early, usual, START), Err(Refusal::Unsolicited));
        let moved = nat.outbound(inside(), early, S).expect("it passes");
        assert_ne!(moved, usual);
        // The others see what they saw; the early one gets an answer only by the new port.
        assert_eq!(nat.outbound(inside(), other, S), Ok(usual));
        assert_eq!(nat.inbound(early, usual, 2 * S), Err(Refusal::Unsolicited));
        assert_eq!(nat.inbound(early, moved, 2 * S), Ok(inside()));
        assert_eq!(nat.outside_of(inside(), 2 * S), [usual, moved]);
    }

    #[test]
    fn a_careless_router_is_poisoned_before_there_is_a_mapping_and_for_as_long_as_one_retries() {
        let mut nat = built(NatKind::CARELESS_LINUX);
        let usual = at("198.18.0.9:4747");
        for second in [0, 20, 40] {
            assert_eq!(nat.inbound(remotes()[0], usual, second * S), Err(Refusal::Unmapped));
        }
        assert_ne!(nat.outbound(inside(), remotes()[0], 60 * S), Ok(usual));
        assert_eq!(nat.outbound(inside(), remotes()[2], 60 * S), Ok(usual));
        let mut patient = built(NatKind::CARELESS_LINUX);
        assert_eq!(patient.inbound(remotes()[0], usual, START), Err(Refusal::Unmapped));
        assert_eq!(patient.outbound(inside(), remotes()[0], 31 * S), Ok(usual));
    }

    #[test]
    fn a_careless_router_is_not_poisoned_once_something_went_out() {
        let mut nat = built(NatKind::CARELESS_LINUX);
        let usual = nat.outbound(inside(), remotes()[0], START).expect("it passes");
        assert_eq!(nat.inbound(remotes()[0], usual, S), Ok(inside()));
        assert_eq!(nat.outbound(inside(), remotes()[0], S), Ok(usual));
    }

    #[test]
    fn the_answer_to_who_was_let_in_leaves_by_the_port_that_was_asked() {
        let mut nat = built(NatKind::SYMMETRIC_OPEN_FILTER);
        let [known, _, stranger] = remotes();
        let outside = nat.outbound(inside(), known, START).expect("it passes");
        assert_eq!(nat.inbound(stranger, outside, START), Ok(inside()));
        assert_eq!(nat.outbound(inside(), stranger, START), Ok(outside));
        // Even if it had been sent to by another port before.
        let mut nat = built(NatKind::SYMMETRIC_OPEN_FILTER);
        let outside = nat.outbound(inside(), known, START).expect("it passes");
        assert_ne!(nat.outbound(inside(), stranger, START), Ok(outside));
        assert_eq!(nat.inbound(stranger, outside, START), Ok(inside()));
        assert_eq!(nat.outbound(inside(), stranger, START), Ok(outside));
    }

    #[test]
    fn a_full_table_refuses_what_is_new_until_something_is_forgotten() {
        let mut nat = built(NatKind::SYMMETRIC_RANDOM.holding(2).expiring(30 * S));
        let [a, b, c] = remotes();
        assert!(nat.outbound(inside(), a, START).is_ok() && nat.outbound(inside(), b, 10 * S).is_ok());
        assert_eq!(nat.outbound(inside(), c, 20 * S), Err(Refusal::Full));
        assert!(nat.outbound(inside(), b, 20 * S).is_ok());
        assert!(nat.outbound(inside(), c, 30 * S).is_ok());
        assert_eq!(nat.statistics().most, 2);
    }

    #[test]
    fn a_reboot_forgets_everything() {
        let mut nat = built(NatKind::FULL_CONE);
        let outside = nat.outbound(inside(), remotes()[0], START).expect("it passes");
        assert_eq!(nat.inside_of(outside, START), Some(inside()));
        nat.reboot();
        assert_eq!(nat.inbound(remotes()[0], outside, START), Err(Refusal::Unmapped));
        assert_eq!(nat.inside_of(outside, START), None);
    }

    #[test]
    fn a_home_behind_a_carrier_is_as_hard_as_the_harder_of_both() {
        let both = NatKind::FULL_CONE.behind(NatKind::CARRIER);
        assert_eq!((both.mapping, both.filtering), (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent));
        let both = NatKind::SYMMETRIC_SEQUENTIAL.behind(NatKind::CARRIER);
        assert_eq!((both.mapping, both.ports), (Mapping::AddressAndPortDependent, Ports::Random));
        let both = NatKind::SYMMETRIC_SEQUENTIAL.behind(NatKind::PORT_RESTRICTED);
        assert_eq!(both.ports, Ports::Sequential { step: 1 });
        let both = NatKind::PORT_RESTRICTED.behind(NatKind::SYMMETRIC_SEQUENTIAL);
        assert_eq!(both.ports, Ports::Sequential { step: 1 });
        assert!(NatKind::UDP_BLOCKED.behind(NatKind::CARRIER).blocks_udp);
    }
}
