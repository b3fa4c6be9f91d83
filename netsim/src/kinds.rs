//! The kinds of boxes that every matrix is made of: what each is in the virtual world, and how the kernel does it in the real one.

use crate::nat::{CAPACITY, CARRIER_CAPACITY, EXPIRY, Filtering, LINUX_EXPIRY, Mapping, NatKind, Ports};

/// A kind of box.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// One word, for tables and the command line.
    pub name: &'static str,
    /// Which of IP it speaks.
    pub families: Families,
    /// In the virtual world, and for the oracle: for IPv4, or for IPv6 where that is all there is.
    pub nat: NatKind,
    /// In the real world, the same.
    pub kernel: Kernel,
}

/// The address families of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both; what is between it and the IPv6 Internet is a stateful firewall, as with every provider.
    Both,
}

impl Families {
    /// Whether it has IPv4.
    pub fn has_ipv4(self) -> bool {
        self != Self::V6
    }

    /// Whether it has IPv6.
    pub fn has_ipv6(self) -> bool {
        self != Self::V4
    }
}

impl Kind {
    /// What is between it and the Internet of IPv4, if it has that, and of IPv6.
    pub fn boxes(&self) -> [Option<NatKind>; 2] {
        let ipv6 = if self.families == Families::V6 { self.nat } else { NatKind::FIREWALL };
        [self.families.has_ipv4().then_some(self.nat), self.families.has_ipv6().then_some(ipv6)]
    }
}

/// How nft(8) makes the kernel such a box.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// What becomes of the source of a new UDP flow outwards.
    pub source: Source,
    /// Of the datagrams that no flow awaits, those to a mapping that fit this come in: nft's words for a match. `@asked` has who was
    /// sent something, by which mapping.
    pub lets_in: Option<&'static str>,
    /// What becomes of the others.
    pub unasked: Unasked,
    /// Whether UDP passes at all.
    pub passes_udp: bool,
    /// Whether TCP gets out to port 443 only.
    pub only_443: bool,
    /// The carrier's box outside this one.
    pub carrier: Option<&'static Self>,
}

/// The source of a new flow, outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// As it is: the home has public addresses.
    Kept,
    /// The box's address and what nft makes of the port by these words.
    Said(&'static str),
    /// The box's address, and one of `count` ports from `first` on, by a number that these words make.
    Counted {
        /// Before `mod count`.
        by: &'static str,
        /// The lowest port.
        first: u16,
        /// How many.
        count: u16,
    },
}

/// What a box does with what nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unasked {
    /// Drops it before it leaves any trace.
    Drops,
    /// Answers itself, and remembers it: a laptop that sends to the same peer later gets another port.
    Answers,
    /// Passes it on: it is no obstacle.
    Passes,
}

impl Kernel {
    /// What routers at home are: Linux keeps the port where it can, maps independently of the destination until there is a
    /// conflict, and filters by address and port.
    const HOME: Self = Self {
        source: Source::Said("masquerade"),
        lets_in: None,
        unasked: Unasked::Drops,
        passes_udp: true,
        only_443: false,
        carrier: None,
    };

    /// Nothing is translated.
    const ROUTER: Self = Self { source: Source::Kept, ..Self::HOME };

    /// A block of ports, one for each of the home's.
    const CARRIER: Self =
        Self { source: Source::Counted { by: "jhash udp sport", first: 30_000, count: 1024 }, ..Self::HOME };

    /// A block of ports, one by chance for each destination.
    const CARRIER_SYMMETRIC: Self =
        Self { source: Source::Said("masquerade to :30000-31023 fully-random"), ..Self::HOME };
}

/// All of them, from easy to hard where they can be ordered; the last two let no UDP out.
pub const KINDS: [Kind; 18] = [
    Kind {
        name: "public",
        families: Families::V4,
        nat: NatKind::PUBLIC,
        kernel: Kernel { unasked: Unasked::Passes, ..Kernel::ROUTER },
    },
    Kind { name: "firewall", families: Families::V4, nat: NatKind::FIREWALL, kernel: Kernel::ROUTER },
    Kind {
        name: "full-cone",
        families: Families::V4,
        nat: NatKind::FULL_CONE,
        kernel: Kernel { lets_in: Some(""), ..Kernel::HOME },
    },
    Kind {
        name: "address-restricted",
        families: Families::V4,
        nat: NatKind::ADDRESS_RESTRICTED,
        kernel: Kernel { lets_in: Some("ip saddr . udp dport @asked"), ..Kernel::HOME },
    },
    Kind { name: "port-restricted", families: Families::V4, nat: NatKind::PORT_RESTRICTED, kernel: Kernel::HOME },
    Kind {
        name: "not-preserving",
        families: Families::V4,
        nat: NatKind::PORT_RESTRICTED_NOT_PRESERVING,
        // The same for all destinations, and nobody can tell it from the port inside.
        kernel: Kernel {
            source: Source::Counted { by: "jhash udp sport", first: 20_000, count: 4096 },
            ..Kernel::HOME
        },
    },
    Kind {
        name: "careless-linux",
        families: Families::V4,
        nat: NatKind::CARELESS_LINUX,
        kernel: Kernel { unasked: Unasked::Answers, ..Kernel::HOME },
    },
    Kind {
        name: "symmetric-random",
        families: Families::V4,
        nat: NatKind::SYMMETRIC_RANDOM,
        kernel: Kernel { source: Source::Said("masquerade fully-random"), ..Kernel::HOME },
    },
    Kind {
        name: "symmetric-sequential",
        families: Families::V4,
        nat: NatKind::SYMMETRIC_SEQUENTIAL,
        // A number for each new flow.
        kernel: Kernel { source: Source::Counted { by: "numgen inc", first: 20_000, count: 4096 }, ..Kernel::HOME },
    },
    // If two flows of a pair meet in it, the kernel changes the source port of the one from outside: harder than need be.
    Kind {
        name: "symmetric-open",
        families: Families::V4,
        nat: NatKind::SYMMETRIC_OPEN_FILTER,
        kernel: Kernel { source: Source::Said("masquerade fully-random"), lets_in: Some(""), ..Kernel::HOME },
    },
    Kind {
        name: "carrier",
        families: Families::V4,
        nat: NatKind::CARRIER,
        kernel: Kernel { carrier: Some(&Kernel::CARRIER), ..Kernel::HOME },
    },
    Kind {
        name: "symmetric-carrier",
        families: Families::V4,
        nat: NatKind::CARRIER_SYMMETRIC,
        kernel: Kernel { carrier: Some(&Kernel::CARRIER_SYMMETRIC), ..Kernel::HOME },
    },
    // As mobile networks are, but for those that translate to IPv4 (NAT64).
    Kind { name: "ipv6-only", families: Families::V6, nat: NatKind::FIREWALL, kernel: Kernel::ROUTER },
    Kind { name: "dual-stack", families: Families::Both, nat: NatKind::PORT_RESTRICTED, kernel: Kernel::HOME },
    // Where the provider has IPv6 for everybody and has run out of IPv4 (DS-Lite).
    Kind {
        name: "symmetric-dual-stack",
        families: Families::Both,
        nat: NatKind::SYMMETRIC_RANDOM,
        kernel: Kernel { source: Source::Said("masquerade fully-random"), ..Kernel::HOME },
    },
    // In the real world a program beside the kernel does it: netsim/tests/portmap.rs.
    Kind { name: "maps-ports", families: Families::V4, nat: NatKind::UPNP, kernel: Kernel::HOME },
    Kind {
        name: "udp-blocked",
        families: Families::V4,
        nat: NatKind::UDP_BLOCKED,
        kernel: Kernel { passes_udp: false, ..Kernel::HOME },
    },
    Kind {
        name: "only-443",
        families: Families::V4,
        nat: NatKind::ONLY_443,
        kernel: Kernel { passes_udp: false, only_443: true, ..Kernel::HOME },
    },
];

/// Those that let UDP out.
pub fn with_udp() -> &'static [Kind] {
    &KINDS[..16]
}

/// Those that the kernel makes alone.
pub fn of_the_kernel() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| !kind.nat.maps_ports)
}

/// The one of this name.
///
/// # Panics
/// When there is none: a slip of a test's pen.
pub fn kind(name: &str) -> &'static Kind {
    find(name).unwrap_or_else(|| panic!("no kind of box is called {name}"))
}

/// The one of this name, if there is one.
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

impl NatKind {
    /// No obstacle: a plain router. As an oracle's argument it is a host on the Internet itself.
    pub const PUBLIC: Self = Self {
        filtering: Filtering::EndpointIndependent,
        careless: false,
        capacity: CARRIER_CAPACITY,
        ..Self::FIREWALL
    };

    /// Lets in what was asked for and translates nothing, as for IPv6 at home.
    pub const FIREWALL: Self = Self { translates: false, ..Self::PORT_RESTRICTED };

    /// Whoever knows the mapping may use it.
    pub const FULL_CONE: Self = Self { filtering: Filtering::EndpointIndependent, ..Self::PORT_RESTRICTED };

    /// Whoever has been sent something may answer from any port.
    pub const ADDRESS_RESTRICTED: Self = Self { filtering: Filtering::AddressDependent, ..Self::PORT_RESTRICTED };

    /// The usual router at home.
    pub const PORT_RESTRICTED: Self = Self {
        translates: true,
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressAndPortDependent,
        ports: Ports::Preserve,
        block: None,
        expiry: EXPIRY,
        refreshed_by_inbound: false,
        hairpin: false,
        careless: false,
        blocks_udp: false,
        only_443: false,
        capacity: CAPACITY,
        maps_ports: false,
    };

    /// The same, that lets everybody in if it is asked to, as a new one does out of the box.
    pub const UPNP: Self = Self { maps_ports: true, ..Self::PORT_RESTRICTED };

    /// The same, but nobody can guess the outside port from the inside one.
    pub const PORT_RESTRICTED_NOT_PRESERVING: Self = Self { ports: Ports::Random, ..Self::PORT_RESTRICTED };

    /// A Linux router that accepts what nobody asked for: who comes too early loses the port (NAT.md, asuswrt-merlin
    /// #139).
    pub const CARELESS_LINUX: Self =
        Self { careless: true, expiry: LINUX_EXPIRY, refreshed_by_inbound: true, ..Self::PORT_RESTRICTED };

    /// A port by chance for each destination: the hardest there is, as pf by default.
    pub const SYMMETRIC_RANDOM: Self =
        Self { mapping: Mapping::AddressAndPortDependent, ports: Ports::Random, ..Self::PORT_RESTRICTED };

    /// The next port for each destination.
    pub const SYMMETRIC_SEQUENTIAL: Self = Self { ports: Ports::Sequential { step: 1 }, ..Self::SYMMETRIC_RANDOM };

    /// A port by chance for each destination, but everybody may send to all of them.
    pub const SYMMETRIC_OPEN_FILTER: Self =
        Self { filtering: Filtering::EndpointIndependent, ..Self::SYMMETRIC_RANDOM };

    /// A company or hotel where only TCP gets out.
    pub const UDP_BLOCKED: Self = Self { blocks_udp: true, ..Self::PORT_RESTRICTED };

    /// The same, where only the web gets out.
    pub const ONLY_443: Self = Self { only_443: true, ..Self::UDP_BLOCKED };

    /// A carrier's box as RFC 6888 wants it: easy to pass, a block of ports for each home, homes reach each other.
    pub const CARRIER: Self = Self {
        ports: Ports::Random,
        block: Some(1024),
        hairpin: true,
        capacity: CARRIER_CAPACITY,
        ..Self::PORT_RESTRICTED
    };

    /// A carrier's box as mobile networks have it: a port by chance within the block for each destination.
    pub const CARRIER_SYMMETRIC: Self =
        Self { mapping: Mapping::AddressAndPortDependent, hairpin: false, ..Self::CARRIER };

    /// What the Internet sees of this box if it is behind `outer`, as a home behind a carrier's: the harder of both
    /// in everything.
    #[must_use]
    pub fn behind(self, outer: Self) -> Self {
        // The outer box has the last word on ports, but keeps one port for each that it is given.
        let ports = if outer.mapping >= self.mapping && outer.translates { outer.ports } else { self.ports };
        let scattered = outer.translates && outer.ports == Ports::Random;
        Self {
            translates: self.translates || outer.translates,
            mapping: self.mapping.max(outer.mapping),
            filtering: self.filtering.max(outer.filtering),
            ports: if scattered { Ports::Random } else { ports },
            block: outer.block.or(self.block),
            expiry: self.expiry.min(outer.expiry),
            refreshed_by_inbound: self.refreshed_by_inbound && outer.refreshed_by_inbound,
            hairpin: outer.hairpin,
            careless: self.careless || outer.careless,
            blocks_udp: self.blocks_udp || outer.blocks_udp,
            only_443: self.only_443 || outer.only_443,
            capacity: self.capacity.min(outer.capacity),
            // Those inside can only ask the inner box.
            maps_ports: self.maps_ports && outer.is_open(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_without_udp_are_last_and_no_name_is_taken_twice() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.nat.blocks_udp, at >= with_udp().len(), "{}", kind.name);
            assert_eq!(KINDS.iter().filter(|other| other.name == kind.name).count(), 1, "{}", kind.name);
            // The two columns tell of one box.
            assert_eq!(kind.nat.translates, kind.kernel.source != Source::Kept, "{}", kind.name);
            assert_eq!(kind.nat.blocks_udp, !kind.kernel.passes_udp, "{}", kind.name);
            assert_eq!(kind.nat.only_443, kind.kernel.only_443, "{}", kind.name);
            assert_eq!(kind.nat.careless, kind.kernel.unasked == Unasked::Answers, "{}", kind.name);
        }
    }
}
