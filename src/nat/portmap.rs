//! Port mappings: what our gateway is asked to let in, when to ask again, and which of its answers to believe.
//!
//! A mapping turns the worst NAT into the best, if it holds: who knows it reaches us, whoever it is. [`Mappings`] keeps the
//! time for the I/O that speaks PCP, NAT-PMP and UPnP; [`Claims`] holds what the gateway says against what peers see: behind
//! a second NAT its "external" address is nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::candidate::{canonical, is_usable};
use super::observe::is_local;

/// How long a mapping is asked for: a machine that died leaves its hole open no longer. Half of what NAT-PMP suggests
/// (RFC 6886, section 3.3), because laptops leave without a word.
pub const LEASE: Duration = Duration::from_secs(3600);

/// A gateway that grants less than twice this is not asked more often: a lease that short is a fault.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(60);

/// Between tries while the gateway gives nothing: it may just be starting, it may be switched on some day. Each costs
/// a handful of datagrams.
const AGAIN: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(300), Duration::from_secs(1800)];

/// Mapped endpoints listed in a record, which has eight in all: one gateway, two protocols.
pub const MAX_MAPPED: usize = 2;

/// What is mapped: sessions by UDP, the directory by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Sessions.
    Udp,
    /// The directory.
    Tcp,
}

impl Protocol {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

/// Who granted a mapping. The order is that of preference: PCP says the external address with the grant, UPnP takes a
/// web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl Method {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// One mapping that we want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where we listen.
    pub port: u16,
}

/// The way to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The default gateway.
    pub gateway: Ipv4Addr,
    /// Our address towards it.
    pub address: Ipv4Addr,
}

impl Link {
    /// A link on which there may be a NAT of ours: both addresses are private (RFC 1918). A gateway elsewhere is somebody
    /// else's, and who has a public address needs no mapping.
    pub fn private(gateway: Ipv4Addr, address: Ipv4Addr) -> Option<Self> {
        (gateway.is_private() && address.is_private() && gateway != address).then_some(Self { gateway, address })
    }
}

/// A mapping that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// For what.
    pub wanted: Wanted,
    /// Where it is reached from outside, as the gateway says.
    pub external: SocketAddr,
    /// By which protocol.
    pub method: Method,
    /// When it ends, unless the gateway knows only leases for ever.
    pub ends: Option<Instant>,
}

/// External ports to ask for, the best first: our own; then one for which nobody else on a /24 asks, for each of them does
/// the same (UPnP error 718); then a few by which two such networks differ.
pub fn ports(wanted: Wanted, address: Ipv4Addr) -> impl Iterator<Item = u16> {
    let [.., high, low] = address.octets();
    let offsets = [0, u16::from(low), 256 + u16::from(low), 512 + u16::from(high) * 16 + u16::from(low)];
    // Below 1024 are services, and gateways refuse them.
    offsets.into_iter().map(move |offset| wanted.port.checked_add(offset).unwrap_or(1024 + offset))
}

/// Which mappings there are, and when to ask for them again.
#[derive(Debug)]
pub struct Mappings {
    link: Option<Link>,
    entries: BTreeMap<Wanted, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    lease: Option<Lease>,
    /// When to ask; never, without a link.
    due: Option<Instant>,
    failures: usize,
}

impl Mappings {
    /// Nothing is mapped, and nobody is there to be asked.
    pub fn new(wanted: impl IntoIterator<Item = Wanted>) -> Self {
        Self { link: None, entries: wanted.into_iter().map(|wanted| (wanted, Entry::default())).collect() }
    }

    /// The network changed, or something on it did: everything is asked for at once. On another link, what another gateway
    /// gave is worth nothing.
    pub fn handle_link(&mut self, link: Option<Link>, now: Instant) {
        let moved = link != self.link;
        self.link = link;
        for entry in self.entries.values_mut() {
            if moved {
                entry.lease = None;
            }
            entry.failures = 0;
            entry.due = link.map(|_| now);
        }
    }

    /// The gateway has granted a mapping for `lifetime`; `None` is for ever, which is looked after all the same: gateways
    /// are restarted.
    pub fn handle_granted(
        &mut self,
        wanted: Wanted,
        external: SocketAddr,
        method: Method,
        lifetime: Option<Duration>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&wanted) else { return };
        let external = canonical(external);
        if !is_usable(&external) {
            return self.handle_refused(wanted, now);
        }
        let lifetime = lifetime.map(|lifetime| lifetime.min(2 * LEASE));
        entry.lease = Some(Lease { wanted, external, method, ends: lifetime.map(|lifetime| now + lifetime) });
        entry.failures = 0;
        let renewal = lifetime.unwrap_or(LEASE) / 2;
        entry.due = Some(now + renewal.clamp(SHORTEST_RENEWAL, LEASE / 2));
    }

    /// The gateway has not. What it granted before holds until it ends.
    pub fn handle_refused(&mut self, wanted: Wanted, now: Instant) {
        let Some(entry) = self.entries.get_mut(&wanted) else { return };
        let wait = AGAIN[entry.failures.min(AGAIN.len() - 1)];
        entry.failures += 1;
        entry.due = self.link.map(|_| now + wait);
    }

    /// The instant of [`Mappings::poll_timeout`] has come: leases that are over go.
    pub fn handle_timeout(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.lease.take_if(|lease| lease.ends.is_some_and(|ends| ends <= now));
        }
    }

    /// What to ask for now, and where. Each is answered by [`Mappings::handle_granted`] or [`Mappings::handle_refused`].
    pub fn poll_due(&mut self, now: Instant) -> Option<(Link, Vec<Wanted>)> {
        let link = self.link?;
        let is_due = |entry: &Entry| entry.due.is_some_and(|due| due <= now);
        let due: Vec<_> = self.entries.iter().filter(|(_, entry)| is_due(entry)).map(|(wanted, _)| *wanted).collect();
        for wanted in &due {
            if let Some(entry) = self.entries.get_mut(wanted) {
                entry.due = None;
            }
        }
        (!due.is_empty()).then_some((link, due))
    }

    /// When to call [`Mappings::handle_timeout`] and [`Mappings::poll_due`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ends = self.entries.values().filter_map(|entry| entry.lease?.ends);
        self.entries.values().filter_map(|entry| entry.due).chain(ends).min()
    }

    /// What is mapped, UDP first.
    pub fn leases(&self) -> Vec<Lease> {
        self.entries.values().filter_map(|entry| entry.lease).collect()
    }
}

/// What the gateway claims to be our endpoints from outside, and what of it is believed.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    claimed: Vec<SocketAddr>,
    believed: Vec<SocketAddr>,
    /// The last verdict on an address, for while nobody sees us.
    verdicts: BTreeMap<IpAddr, bool>,
}

impl Claims {
    /// The gateway claims this now, and no longer what it claimed before.
    pub fn set(&mut self, claimed: &[SocketAddr]) {
        let mut usable: Vec<_> = claimed.iter().map(|endpoint| canonical(*endpoint)).filter(is_usable).collect();
        usable.dedup();
        usable.truncate(MAX_MAPPED);
        self.verdicts.retain(|ip, _| usable.iter().any(|endpoint| endpoint.ip() == *ip));
        self.claimed = usable;
    }

    /// Holds the claims against the addresses at which peers see us; true if another set is believed now. An observer counts
    /// for its own scope: who sees a private address of ours says nothing of the public one. While nobody says anything a
    /// public address is believed, for it costs peers a datagram, and a private one is not: it means somebody else
    /// elsewhere.
    pub fn review(&mut self, observed: &BTreeSet<IpAddr>) -> bool {
        let mut believed = Vec::new();
        for endpoint in &self.claimed {
            let ip = endpoint.ip();
            let verdict = self.verdicts.entry(ip).or_insert(scope(ip) == Scope::Public);
            let tells = |seen: &IpAddr| {
                seen.is_ipv6() == ip.is_ipv6() && (scope(*seen) == Scope::Public || scope(*seen) == scope(ip))
            };
            if observed.iter().any(tells) {
                *verdict = observed.contains(&ip);
            }
            if *verdict {
                believed.push(*endpoint);
            }
        }
        let changed = believed != self.believed;
        self.believed = believed;
        changed
    }

    /// What peers are told.
    pub fn believed(&self) -> &[SocketAddr] {
        &self.believed
    }
}

/// Where an address means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// On one site.
    Local,
    /// At one carrier (RFC 6598).
    Carrier,
    /// Everywhere.
    Public,
}

fn scope(ip: IpAddr) -> Scope {
    let is_shared = matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64);
    if is_local(ip) {
        Scope::Local
    } else if is_shared {
        Scope::Carrier
    } else {
        Scope::Public
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: Wanted = Wanted { protocol: Protocol::Udp, port: 4747 };
    const TCP: Wanted = Wanted { protocol: Protocol::Tcp, port: 4747 };
    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    fn link(last: u8) -> Option<Link> {
        Link::private(Ipv4Addr::new(192, 168, last, 1), Ipv4Addr::new(192, 168, last, 7))
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an endpoint")
    }

    fn asked(mappings: &mut Mappings, now: Instant) -> Vec<Wanted> {
        mappings.handle_timeout(now);
        mappings.poll_due(now).map_or_else(Vec::new, |(_, wanted)| wanted)
    }

    fn granted() -> (Mappings, Instant) {
        let (mut mappings, now) = (Mappings::new([UDP, TCP]), start());
        mappings.handle_link(link(1), now);
        assert_eq!(mappings.poll_due(now), Some((link(1).expect("private"), vec![UDP, TCP])));
        for wanted in [UDP, TCP] {
            mappings.handle_granted(wanted, at("203.0.113.7:4747"), Method::Pcp, Some(LEASE), now);
        }
        (mappings, now)
    }

    #[test]
    fn only_a_private_gateway_of_a_private_address_is_asked() {
        let pairs = [([192, 168, 1, 1], [192, 168, 1, 7], true), ([10, 0, 0, 1], [10, 9, 0, 1], true)];
        let others = [([198, 51, 100, 1], [198, 51, 100, 7]), ([192, 168, 1, 1], [198, 51, 100, 7])];
        let more = [([100, 64, 0, 1], [100, 64, 0, 7]), ([10, 0, 0, 1], [10, 0, 0, 1])];
        let none = others.into_iter().chain(more).map(|(gateway, address)| (gateway, address, false));
        for (gateway, address, asks) in pairs.into_iter().chain(none) {
            assert_eq!(Link::private(gateway.into(), address.into()).is_some(), asks, "{gateway:?} {address:?}");
        }
        let mut mappings = Mappings::new([UDP]);
        mappings.handle_link(None, start());
        assert_eq!((mappings.poll_due(start()), mappings.poll_timeout()), (None, None));
    }

    #[test]
    fn a_mapping_is_renewed_at_half_its_life_and_kept_until_its_end_if_nobody_renews_it() {
        let (mut mappings, now) = granted();
        assert_eq!(mappings.poll_timeout(), Some(now + LEASE / 2));
        assert_eq!(asked(&mut mappings, now + LEASE / 2 - SECOND), []);
        assert_eq!(asked(&mut mappings, now + LEASE / 2), [UDP, TCP]);
        let half = now + LEASE / 2;
        mappings.handle_granted(UDP, at("203.0.113.7:4747"), Method::Pcp, Some(LEASE), half);
        mappings.handle_refused(TCP, half);
        assert_eq!(mappings.leases().len(), 2);
        assert_eq!(asked(&mut mappings, half + AGAIN[0]), [TCP], "not only at the next half");
        mappings.handle_refused(TCP, half + AGAIN[0]);
        asked(&mut mappings, now + LEASE);
        let left: Vec<_> = mappings.leases().iter().map(|lease| lease.wanted).collect();
        assert_eq!(left, [UDP]);
    }

    #[test]
    fn a_network_event_asks_again_and_another_network_forgets() {
        let (mut mappings, now) = granted();
        mappings.handle_link(link(1), now + SECOND);
        assert_eq!(mappings.leases().len(), 2);
        assert_eq!(asked(&mut mappings, now + SECOND), [UDP, TCP], "the gateway may have been restarted");
        mappings.handle_link(link(2), now + 2 * SECOND);
        assert_eq!(mappings.leases(), []);
        assert_eq!(asked(&mut mappings, now + 2 * SECOND), [UDP, TCP]);
        mappings.handle_link(None, now + 3 * SECOND);
        mappings.handle_refused(UDP, now + 3 * SECOND);
        assert_eq!(mappings.poll_timeout(), None);
    }

    #[test]
    fn a_gateway_that_gives_nothing_is_asked_ever_more_seldom() {
        let (mut mappings, mut now) = (Mappings::new([UDP]), start());
        mappings.handle_link(link(1), now);
        let mut waits = Vec::new();
        for _ in 0..5 {
            assert_eq!(asked(&mut mappings, now), [UDP]);
            mappings.handle_refused(UDP, now);
            let next = mappings.poll_timeout().expect("it tries on");
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits, [AGAIN[0], AGAIN[1], AGAIN[2], AGAIN[2], AGAIN[2]]);
    }

    #[test]
    fn silly_grants_neither_hurry_nor_deceive() {
        for (lifetime, expected) in [(0, 60), (1, 60), (600, 300), (u64::from(u32::MAX), 1800)] {
            let (mut mappings, now) = (Mappings::new([UDP]), start());
            mappings.handle_link(link(1), now);
            mappings.poll_due(now);
            let lifetime = Some(Duration::from_secs(lifetime));
            mappings.handle_granted(UDP, at("203.0.113.7:4747"), Method::Pcp, lifetime, now);
            let due = mappings.entries[&UDP].due.expect("it is renewed");
            assert_eq!(due - now, Duration::from_secs(expected), "{lifetime:?}");
        }
        let (mut mappings, now) = (Mappings::new([UDP]), start());
        mappings.handle_link(link(1), now);
        mappings.handle_granted(UDP, at("0.0.0.0:4747"), Method::NatPmp, Some(LEASE), now);
        assert_eq!(mappings.leases(), [], "a gateway without a line");
        mappings.handle_granted(UDP, at("203.0.113.7:4747"), Method::Upnp, None, now);
        assert_eq!(asked(&mut mappings, now + LEASE / 2), [UDP], "for ever ends with the gateway");
        asked(&mut mappings, now + 100 * LEASE);
        assert_eq!(mappings.leases().len(), 1);
    }

    #[test]
    fn two_machines_of_one_home_ask_for_different_ports_from_the_second_try_on() {
        let of = |last| ports(UDP, Ipv4Addr::new(192, 168, 1, last)).collect::<Vec<_>>();
        assert_eq!(of(7)[..2], [4747, 4754]);
        for other in (1..=254).filter(|other| *other != 7) {
            assert!(of(7)[1..].iter().zip(&of(other)[1..]).all(|(a, b)| a != b), "{other}");
        }
        let high = ports(Wanted { port: 65_535, ..UDP }, Ipv4Addr::new(10, 255, 255, 254));
        assert!(high.into_iter().all(|port| port >= 1024));
    }

    #[test]
    fn what_no_observer_sees_is_not_believed_and_what_one_sees_is() {
        let seen = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        let mut claims = Claims::default();
        claims.set(&[at("203.0.113.7:4747")]);
        assert!(claims.review(&seen(&[])) && claims.believed().len() == 1, "nobody says otherwise");
        assert!(claims.review(&seen(&["198.51.100.9"])) && claims.believed().is_empty(), "a second NAT");
        assert!(!claims.review(&seen(&[])) && claims.believed().is_empty(), "that nobody is there now changes nothing");
        assert!(!claims.review(&seen(&["10.0.0.9", "2001:db8::9"])), "an office sees another side of us");
        assert!(claims.review(&seen(&["198.51.100.9", "203.0.113.7"])) && claims.believed().len() == 1);
        claims.set(&[]);
        assert!(claims.review(&seen(&["203.0.113.7"])) && claims.believed().is_empty());
    }

    #[test]
    fn a_private_address_outside_is_believed_only_if_it_is_seen() {
        let seen = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        for inner in ["192.168.178.20", "100.64.3.4"] {
            let mut claims = Claims::default();
            claims.set(&[SocketAddr::new(inner.parse().expect("an address"), 4747)]);
            assert!(!claims.review(&seen(&[])) && !claims.review(&seen(&["203.0.113.7"])), "{inner}");
            assert!(claims.review(&seen(&["203.0.113.7", inner])), "a neighbour of the same carrier can use it");
        }
    }
}
