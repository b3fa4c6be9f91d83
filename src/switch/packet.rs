//! What an IP packet is, as far as whoever judges it needs to know: addresses, protocol, and the head of what is above, behind
//! whatever extension headers there are.

use crate::wire::checksum::{TCP, UDP};
use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FrameHead};

/// IP protocol number of ICMP.
pub(super) const ICMP: u8 = 1;
/// IP protocol number of ICMP for IPv6.
pub(super) const ICMPV6: u8 = 58;

/// What is in a frame, on whichever VLAN.
pub(super) enum Content<'a> {
    /// ARP.
    Arp,
    /// No IP and no ARP.
    Other,
    /// An IP packet cut short, or one that hides what it carries, which nobody lawful sends (RFC 1858, RFC 7112).
    Broken,
    /// A fragment other than the first. It is nothing without that.
    Fragment,
    /// Any other IP packet.
    Packet(Packet<'a>),
}

/// A packet, or its first fragment.
pub(super) struct Packet<'a> {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Address, 4 or 16 bytes.
    pub(super) source: &'a [u8],
    /// Address, as long as the other.
    pub(super) destination: &'a [u8],
    /// Behind the IP headers. Of TCP, UDP and ICMP at least 20, 8 and 4 bytes.
    pub(super) body: &'a [u8],
}

impl<'a> Content<'a> {
    /// Looks into `frame`, whose head is `head`.
    pub(super) fn of(frame: &'a [u8], head: &FrameHead) -> Self {
        let packet = &frame[head.payload..];
        match head.ethertype {
            ETHERTYPE_ARP => Self::Arp,
            ETHERTYPE_IPV4 => Self::of_v4(packet),
            ETHERTYPE_IPV6 => Self::of_v6(packet),
            _ => Self::Other,
        }
    }

    fn of_v4(packet: &'a [u8]) -> Self {
        let header = usize::from(packet.first().unwrap_or(&0) & 15) * 4;
        if packet.len() < 20 || packet[0] >> 4 != 4 || header < 20 || packet.len() < header {
            return Self::Broken;
        }
        let offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
        Self::above(packet[9], offset, &packet[12..16], &packet[16..20], &packet[header..])
    }

    fn of_v6(packet: &'a [u8]) -> Self {
        let Some((fixed, mut rest)) = packet.split_first_chunk::<40>() else { return Self::Broken };
        if fixed[0] >> 4 != 6 {
            return Self::Broken;
        }
        let (mut next, mut offset) = (fixed[6], 0);
        // Hop-by-hop, routing, fragment, authentication, destination. Each is 8 bytes at least, so the packet's length bounds the loop.
        while matches!(next, 0 | 43 | 44 | 51 | 60) && offset == 0 {
            let &[following, units, high, low, ..] = rest else { return Self::Broken };
            let len = match next {
                44 => 8,
                51 => (usize::from(units) + 2) * 4,
                _ => (usize::from(units) + 1) * 8,
            };
            if next == 44 {
                offset = u16::from_be_bytes([high, low]) >> 3;
            }
            let Some(beyond) = rest.get(len..) else { return Self::Broken };
            (next, rest) = (following, beyond);
        }
        Self::above(next, offset, &packet[8..24], &packet[24..40], rest)
    }

    /// `offset` is that of a fragment, in units of 8 bytes.
    fn above(protocol: u8, offset: u16, source: &'a [u8], destination: &'a [u8], body: &'a [u8]) -> Self {
        let least = match protocol {
            TCP => 20,
            UDP => 8,
            ICMP | ICMPV6 => 4,
            _ => 0,
        };
        match offset {
            0 if body.len() < least => Self::Broken,
            0 => Self::Packet(Packet { protocol, source, destination, body }),
            // One that begins inside a transport header would replace what was judged (RFC 3128).
            1 | 2 => Self::Broken,
            _ => Self::Fragment,
        }
    }
}

impl Packet<'_> {
    /// Source and destination port, of TCP and UDP.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let word = |at: usize| u16::from_be_bytes([self.body[at], self.body[at + 1]]);
        matches!(self.protocol, TCP | UDP).then(|| (word(0), word(2)))
    }

    /// The type of an ICMP message, of either family.
    pub(super) fn icmp(&self) -> Option<u8> {
        matches!(self.protocol, ICMP | ICMPV6).then(|| self.body[0])
    }
}
