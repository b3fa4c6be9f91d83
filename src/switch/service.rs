//! Who may serve a whole LAN: DHCP and router advertisements change what every host believes of the network, so they are accepted from
//! members with the role for it only. What others send of them is dropped and counted.

use crate::wire::DropReason;
use crate::wire::checksum::{TCP, UDP};
use crate::wire::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, FrameHead};

use super::packet::{Content, ICMP, ICMPV6};

/// Ports of DHCP servers: RFC 2131, section 4.1; RFC 8415, section 7.2.
const DHCP_SERVER: u16 = 67;
const DHCPV6_SERVER: u16 = 547;
/// Ports at which only clients listen, whatever a server sends from.
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;

/// RFC 792; RFC 4861, section 4.
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// Why a frame may not come from an ordinary member: it is a DHCP server's, or a router's.
pub(super) fn refusal(frame: &[u8], head: &FrameHead) -> Option<DropReason> {
    let protocol = match head.ethertype {
        ETHERTYPE_IPV4 => frame.get(head.payload + 9),
        ETHERTYPE_IPV6 => frame.get(head.payload + 6),
        _ => return None,
    };
    if protocol == Some(&TCP) {
        // Bulk need not be looked into.
        return None;
    }
    let Content::Packet(packet) = Content::of(frame, head) else { return None };
    match (packet.protocol, packet.ports(), packet.icmp()) {
        // A relay agent and a server speak to each other from and to 67 (RFC 1542): that reaches no client.
        (UDP, Some((DHCP_SERVER, to)), _) if to != DHCP_SERVER => Some(DropReason::RogueDhcp),
        (UDP, Some((DHCPV6_SERVER, to)), _) if to != DHCPV6_SERVER => Some(DropReason::RogueDhcp),
        (UDP, Some((_, DHCP_CLIENT | DHCPV6_CLIENT)), _) => Some(DropReason::RogueDhcp),
        (ICMP, _, Some(ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT)) => Some(DropReason::RogueRouter),
        (ICMPV6, _, Some(ROUTER_ADVERTISEMENT | REDIRECT)) => Some(DropReason::RogueRouter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn refused(frame: &[u8]) -> Option<DropReason> {
        refusal(frame, &FrameHead::read(frame).expect("a frame"))
    }

    fn udp4(from: u16, to: u16) -> Vec<u8> {
        let mut frame = vec![];
        let builder = PacketBuilder::ethernet2([2; 6], [255; 6]).ipv4([10, 0, 0, 1], [255; 4], 9).udp(from, to);
        builder.write(&mut frame, b"x").expect("it fits");
        frame
    }

    fn udp6(from: u16, to: u16) -> Vec<u8> {
        let mut frame = vec![];
        let builder = PacketBuilder::ethernet2([2; 6], [0x33; 6]).ipv6([0xfe; 16], [0xff; 16], 9).udp(from, to);
        builder.write(&mut frame, b"x").expect("it fits");
        frame
    }

    fn icmp6(kind: u8) -> Vec<u8> {
        let mut frame = vec![];
        let builder = PacketBuilder::ethernet2([2; 6], [0x33; 6]).ipv6([0xfe; 16], [0xff; 16], 255);
        builder.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &[0; 8]).expect("it fits");
        frame
    }

    #[test]
    fn what_a_dhcp_server_says_is_refused_and_what_a_client_says_is_not() {
        for offer in [udp4(67, 68), udp4(1067, 68), udp4(67, 9), udp6(547, 546), udp6(9, 546)] {
            assert_eq!(refused(&offer), Some(DropReason::RogueDhcp));
        }
        for lawful in [udp4(68, 67), udp4(67, 67), udp6(546, 547), udp6(547, 547), udp4(5353, 5353)] {
            assert_eq!(refused(&lawful), None);
        }
        let mut tagged = udp4(67, 68);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(refused(&tagged), Some(DropReason::RogueDhcp), "on a VLAN too");
    }

    #[test]
    fn what_a_router_says_is_refused_and_neighbours_are_not_routers() {
        for kind in [134, 137] {
            assert_eq!(refused(&icmp6(kind)), Some(DropReason::RogueRouter));
        }
        for kind in [128, 133, 135, 136] {
            assert_eq!(refused(&icmp6(kind)), None);
        }
        let mut hidden = icmp6(134);
        hidden[14 + 6] = 0;
        hidden.splice(54..54, [ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(refused(&hidden), Some(DropReason::RogueRouter), "behind an extension header");
    }
}
