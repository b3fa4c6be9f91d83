//! ARP and IPv6 neighbour discovery: answered from signed records, and held to them.
//!
//! Going out, a request for another member's address is rewritten where it lies into the answer, so it never leaves the
//! machine ([`answer`]). Coming in, a frame that speaks in the name of an address which the records give to somebody
//! else is a forgery ([`is_forged`]). Addresses that no record names are nobody's business here.
//!
//! ARP is RFC 826 with the probes of RFC 5227; neighbour discovery is RFC 4861, with the header-chain rules of RFC 6980
//! and RFC 7112, because an extension header would otherwise hide a forgery.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::identity::Mac;
use crate::wire::Batch;
use crate::wire::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, VLAN_TAG_LEN};

const ARP_LEN: usize = 28;
/// Ethernet, IPv4, 6-byte and 4-byte addresses, request.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

const IPV6_HEADER_LEN: usize = 40;
const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Type, code, checksum, flags, target.
const NEIGHBOR_LEN: usize = 24;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// An advertisement of a MAC: frame header, IPv6, ICMPv6, one option of 8 bytes.
const ADVERTISEMENT_LEN: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + NEIGHBOR_LEN + 8;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// Rewrites the frame of slot `index` into the answer, if it is an untagged ARP or neighbour request, to everybody, for
/// the address of a member other than ourselves (`own`). Requests to one station only ask whether *it* is still there;
/// those it answers itself. Requests for our own address are our kernel looking for a second owner: we must not be it.
pub fn answer(batch: &mut Batch, index: usize, neighbors: &BTreeMap<IpAddr, Mac>, own: Mac) -> bool {
    let frame = batch.bytes(index);
    let Some(target) = requested(frame) else { return false };
    let Some(&mac) = neighbors.get(&target).filter(|mac| **mac != own) else { return false };
    match target {
        IpAddr::V4(target) => {
            batch.shrink(index, 0..ETHERNET_HEADER_LEN + ARP_LEN);
            rewrite_arp(batch.bytes_mut(index), target, mac);
        }
        IpAddr::V6(target) => {
            let len = frame.len();
            if len < ADVERTISEMENT_LEN {
                // A request has at least 78 bytes, so 8 of the tailroom are enough.
                batch.grow(index, 0, ADVERTISEMENT_LEN - len);
            } else {
                batch.shrink(index, 0..ADVERTISEMENT_LEN);
            }
            rewrite_solicitation(batch.bytes_mut(index), target, mac);
        }
    }
    true
}

/// A frame that tells our own kernel, at `own_ip` and `own`, that `ip` is at `mac`: the answer to a question which it may
/// have asked before the record was known, and would only repeat after a second. Whoever has not asked ignores it.
/// `None` if the addresses are not of one family.
pub fn announcement(ip: IpAddr, mac: Mac, own_ip: IpAddr, own: Mac) -> Option<Vec<u8>> {
    let mut frame = vec![0; ETHERNET_HEADER_LEN];
    frame[6..12].copy_from_slice(&own.0);
    match (ip, own_ip) {
        (IpAddr::V4(ip), IpAddr::V4(own_ip)) => {
            frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
            frame.extend(ARP_REQUEST);
            frame.extend(own.0);
            frame.extend(own_ip.octets());
            frame.resize(ETHERNET_HEADER_LEN + ARP_LEN, 0);
            rewrite_arp(&mut frame, ip, mac);
        }
        (IpAddr::V6(ip), IpAddr::V6(own_ip)) => {
            frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
            frame.resize(ADVERTISEMENT_LEN, 0);
            let header = &mut frame[ETHERNET_HEADER_LEN..];
            header[6..8].copy_from_slice(&[ICMPV6, 255]);
            header[8..24].copy_from_slice(&own_ip.octets());
            rewrite_solicitation(&mut frame, ip, mac);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    Some(frame)
}

/// The address that a frame to everybody asks for: of an ARP request or a neighbour solicitation.
pub fn requested(frame: &[u8]) -> Option<IpAddr> {
    if !Mac(array(frame, 0)?).is_group() {
        return None;
    }
    let body = &frame[ETHERNET_HEADER_LEN.min(frame.len())..];
    match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_ARP if body.starts_with(&ARP_REQUEST) => Some(Ipv4Addr::from(array::<4>(body, 24)?).into()),
        ETHERTYPE_IPV6 => {
            // A request as RFC 4861 has it: no extension header, hop limit 255, code 0.
            let icmp = body.get(IPV6_HEADER_LEN..)?;
            let target = Ipv6Addr::from(array::<16>(icmp, 8)?);
            (body[6] == ICMPV6 && body[7] == 255 && icmp[..2] == [NEIGHBOR_SOLICITATION, 0]).then_some(target.into())
        }
        _ => None,
    }
}

/// A request for `target` becomes the reply that it is at `mac`.
fn rewrite_arp(frame: &mut [u8], target: Ipv4Addr, mac: Mac) {
    let asker: [u8; 10] = array(frame, ETHERNET_HEADER_LEN + 8).expect("the request was read");
    let source: [u8; 6] = array(frame, 6).expect("the request was read");
    frame[..6].copy_from_slice(&source);
    frame[6..12].copy_from_slice(&mac.0);
    let arp = &mut frame[ETHERNET_HEADER_LEN..];
    arp[7] = 2;
    arp[8..14].copy_from_slice(&mac.0);
    arp[14..18].copy_from_slice(&target.octets());
    arp[18..28].copy_from_slice(&asker);
}

/// A solicitation of `target` becomes the advertisement that it is at `mac`. The kernel's checksum offload may have left
/// the request's checksum undone, so the answer's is made anew.
fn rewrite_solicitation(frame: &mut [u8], target: Ipv6Addr, mac: Mac) {
    let asker: [u8; 6] = array(frame, 6).expect("the request was read");
    let source = Ipv6Addr::from(array::<16>(frame, ETHERNET_HEADER_LEN + 8).expect("the request was read"));
    // RFC 4861, section 7.2.4: duplicate address detection asks from :: and is answered to all nodes, unsolicited.
    let (to, to_mac, flags) = if source.is_unspecified() {
        (ALL_NODES, [0x33, 0x33, 0, 0, 0, 1], FLAG_OVERRIDE)
    } else {
        (source, asker, FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    frame[..6].copy_from_slice(&to_mac);
    frame[6..12].copy_from_slice(&mac.0);
    let (ip, icmp) = frame[ETHERNET_HEADER_LEN..].split_at_mut(IPV6_HEADER_LEN);
    let icmp_len = (NEIGHBOR_LEN + 8) as u16;
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&icmp_len.to_be_bytes());
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..40].copy_from_slice(&to.octets());
    icmp[..8].copy_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[TARGET_LINK_LAYER, 1]);
    icmp[26..32].copy_from_slice(&mac.0);
    let checksum = icmp_checksum(&ip[8..40], icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// Of an ICMPv6 message whose checksum field is zero; `addresses` are source and destination (RFC 4443, section 2.3).
fn icmp_checksum(addresses: &[u8], icmp: &[u8]) -> u16 {
    let words = addresses.chunks(2).chain(icmp.chunks(2));
    let sum = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum::<u32>();
    let sum = sum + icmp.len() as u32 + u32::from(ICMPV6);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Whether a frame, whose source MAC was checked already, claims an address which the records give to another MAC: as
/// the source of an IP packet, as the sender of an ARP packet, or in a link-layer option of neighbour discovery. Where
/// no record speaks, everybody may claim an address for the MAC it sends from.
pub fn is_forged(frame: &[u8], neighbors: &BTreeMap<IpAddr, Mac>) -> bool {
    let Some((ethertype, body)) = untagged(frame) else { return false };
    let Some(source) = array(frame, 6).map(Mac) else { return false };
    let bound = |ip: IpAddr| *neighbors.get(&ip).unwrap_or(&source);
    match ethertype {
        ETHERTYPE_IPV4 => array::<4>(body, 12).is_some_and(|ip| bound(Ipv4Addr::from(ip).into()) != source),
        ETHERTYPE_ARP => {
            // Whatever the hardware type and the operation: kernels learn from more of them than RFC 826 asks for.
            let sender = array::<6>(body, 8).zip(array::<4>(body, 14)).filter(|_| body[2..6] == ARP_REQUEST[2..6]);
            sender.is_some_and(|(mac, ip)| Mac(mac) != source || bound(Ipv4Addr::from(ip).into()) != source)
        }
        ETHERTYPE_IPV6 => {
            let Some(ip) = array::<16>(body, 8).map(Ipv6Addr::from) else { return false };
            bound(ip.into()) != source
                || match icmp_of(body) {
                    Upper::Icmp(icmp) => discovery_is_forged(ip, source, icmp, bound),
                    Upper::Hidden => true,
                    Upper::Other => false,
                }
        }
        _ => false,
    }
}

/// EtherType and payload of a frame on the untagged network, to which priority tags (VLAN 0) belong as well. Records
/// say nothing about other VLANs.
fn untagged(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut at = ETHERNET_HEADER_LEN - 2;
    loop {
        match u16::from_be_bytes(array(frame, at)?) {
            0x8100 | 0x88a8 if u16::from_be_bytes(array(frame, at + 2)?) & 0x0fff == 0 => at += VLAN_TAG_LEN,
            0x8100 | 0x88a8 => return None,
            ethertype => return Some((ethertype, &frame[at + 2..])),
        }
    }
}

/// Of an ICMPv6 message from `ip` at `source`; `bound` is the MAC at which an address must be.
fn discovery_is_forged(ip: Ipv6Addr, source: Mac, icmp: &[u8], bound: impl Fn(IpAddr) -> Mac) -> bool {
    let target = array::<16>(icmp, 8).map(Ipv6Addr::from);
    // Where the options begin, the kind of option that binds, and the address that it binds.
    let (at, kind, address) = match icmp.first() {
        Some(&ROUTER_SOLICITATION) => (8, SOURCE_LINK_LAYER, Some(ip)),
        Some(&ROUTER_ADVERTISEMENT) => (16, SOURCE_LINK_LAYER, Some(ip)),
        Some(&NEIGHBOR_SOLICITATION) => (NEIGHBOR_LEN, SOURCE_LINK_LAYER, Some(ip)),
        Some(&NEIGHBOR_ADVERTISEMENT) => (NEIGHBOR_LEN, TARGET_LINK_LAYER, target),
        Some(&REDIRECT) => (40, TARGET_LINK_LAYER, target),
        _ => return false,
    };
    let Some((address, mut options)) = address.zip(icmp.get(at..)) else { return false };
    let bound = bound(address.into());
    if icmp[0] == NEIGHBOR_ADVERTISEMENT && bound != source {
        // Even without a MAC it says "this address is mine", which spoils a duplicate address detection.
        return true;
    }
    while let Some(&[option, units]) = options.first_chunk::<2>() {
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return false;
        }
        if option == kind && array(options, 2).is_some_and(|mac| Mac(mac) != bound) {
            return true;
        }
        options = &options[len..];
    }
    false
}

/// What an IPv6 packet carries.
enum Upper<'a> {
    /// An ICMPv6 message.
    Icmp(&'a [u8]),
    /// Something that its first fragment does not show, or a discovery message in fragments: nobody lawful sends such.
    Hidden,
    /// Anything else.
    Other,
}

fn icmp_of(packet: &[u8]) -> Upper<'_> {
    let (mut next, mut at, mut fragmented) = (packet[6], IPV6_HEADER_LEN, false);
    // Each turn moves on by 8 bytes at least, so the packet's length bounds the loop.
    loop {
        let Some(rest) = packet.get(at..).filter(|rest| rest.len() >= 8) else {
            return if fragmented { Upper::Hidden } else { Upper::Other };
        };
        match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => at += (usize::from(rest[1]) + 1) * 8,
            // Authentication header.
            51 => at += (usize::from(rest[1]) + 2) * 4,
            // Fragment: only the first one shows what it carries.
            44 => {
                if u16::from_be_bytes([rest[2], rest[3]]) & 0xfff8 != 0 {
                    return Upper::Other;
                }
                fragmented |= rest[3] & 1 != 0;
                at += 8;
            }
            ICMPV6 if fragmented && (ROUTER_SOLICITATION..=REDIRECT).contains(&rest[0]) => return Upper::Hidden,
            ICMPV6 => return Upper::Icmp(rest),
            _ => return Upper::Other,
        }
        next = rest[0];
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{alone, arp, discovery, frame, ipv6, mac, meet, v4, v6};
    use super::*;

    const NOBODY: Mac = Mac([0; 6]);
    const UNRECORDED: [u8; 4] = [10, 64, 0, 99];

    /// The addresses that node 1 knows: its own, and those of nodes 2 and 3.
    fn neighbors() -> BTreeMap<IpAddr, Mac> {
        let mut fib = alone(1, 1500);
        meet(&mut fib, 2, None);
        meet(&mut fib, 3, None);
        fib.neighbors.as_ref().clone()
    }

    fn answer_to(request: &[u8]) -> Option<Vec<u8>> {
        let mut batch = Batch::new(4096, 1);
        batch.push(request, None).expect("room");
        let answered = answer(&mut batch, 0, &neighbors(), mac(1));
        if !answered {
            assert_eq!(batch.bytes(0), request, "what is not answered is not touched");
        }
        answered.then(|| batch.bytes(0).to_vec())
    }

    fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &arp(1, (mac(1), sender), (NOBODY, target)))
    }

    fn solicitation(source: Ipv6Addr, target: Ipv6Addr, option: Option<(u8, Mac)>) -> Vec<u8> {
        let octets = target.octets();
        let group = Mac([0x33, 0x33, 0xff, octets[13], octets[14], octets[15]]);
        let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(octets[13]), target.segments()[7]);
        frame(
            group,
            mac(1),
            ETHERTYPE_IPV6,
            &ipv6(source, to, ICMPV6, &discovery(NEIGHBOR_SOLICITATION, target, option)),
        )
    }

    fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    }

    #[test]
    fn an_arp_request_for_a_member_is_answered_from_the_records() {
        let mut request = arp_request(v4(1).octets(), v4(2).octets());
        let expected =
            frame(mac(1), mac(2), ETHERTYPE_ARP, &arp(2, (mac(2), v4(2).octets()), (mac(1), v4(1).octets())));
        assert_eq!(answer_to(&request), Some(expected.clone()));
        request.extend([0; 18]);
        assert_eq!(answer_to(&request), Some(expected), "padding makes no difference");
    }

    #[test]
    fn a_probe_for_a_members_address_learns_that_it_is_taken() {
        let expected = frame(mac(1), mac(2), ETHERTYPE_ARP, &arp(2, (mac(2), v4(2).octets()), (mac(1), [0; 4])));
        assert_eq!(answer_to(&arp_request([0; 4], v4(2).octets())), Some(expected));
    }

    #[test]
    fn our_own_address_is_never_answered_with_our_own_mac() {
        assert_eq!(answer_to(&arp_request([0; 4], v4(1).octets())), None);
        assert_eq!(answer_to(&arp_request(v4(1).octets(), v4(1).octets())), None);
        assert_eq!(answer_to(&solicitation(Ipv6Addr::UNSPECIFIED, v6(1), None)), None);
    }

    #[test]
    fn requests_that_records_cannot_answer_are_left_alone() {
        let request = arp_request(v4(1).octets(), v4(2).octets());
        assert_eq!(answer_to(&arp_request(v4(1).octets(), UNRECORDED)), None);
        assert_eq!(answer_to(&tagged(&request, 5)), None, "records bind the untagged network");
        let mut unicast = request.clone();
        unicast[..6].copy_from_slice(&mac(2).0);
        assert_eq!(answer_to(&unicast), None, "a question to one station is the station's");
        let reply = frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &arp(2, (mac(1), [1; 4]), (NOBODY, v4(2).octets())));
        assert_eq!(answer_to(&reply), None);
        assert_eq!(answer_to(&solicitation(v6(1), "fe80::1".parse().expect("an address"), None)), None);
        let mut routed = solicitation(v6(1), v6(2), None);
        routed[ETHERNET_HEADER_LEN + 7] = 64;
        assert_eq!(answer_to(&routed), None, "hop limit");
    }

    fn assert_advertises(answer: &[u8], to: (Mac, Ipv6Addr), flags: u8) {
        let expected = frame(
            to.0,
            mac(2),
            ETHERTYPE_IPV6,
            &ipv6(v6(2), to.1, ICMPV6, &discovery(NEIGHBOR_ADVERTISEMENT, v6(2), Some((TARGET_LINK_LAYER, mac(2))))),
        );
        let icmp = etherparse::Icmpv6Slice::from_slice(&answer[54..]).expect("an ICMPv6 message");
        assert!(icmp.is_checksum_valid(v6(2).octets(), to.1.octets()));
        let mut without = answer.to_vec();
        without[56..58].fill(0);
        assert_eq!(without[58], flags);
        without[58] = 0;
        assert_eq!(without, expected);
    }

    #[test]
    fn a_solicitation_for_a_member_is_answered_with_a_sound_advertisement() {
        let option = Some((SOURCE_LINK_LAYER, mac(1)));
        for request in [solicitation(v6(1), v6(2), option), solicitation(v6(1), v6(2), None)] {
            let answer = answer_to(&request).expect("an answer");
            assert_advertises(&answer, (mac(1), v6(1)), FLAG_SOLICITED | FLAG_OVERRIDE);
        }
    }

    #[test]
    fn an_announcement_is_the_answer_to_a_question_not_heard() {
        let option = Some((SOURCE_LINK_LAYER, mac(1)));
        let asked = answer_to(&solicitation(v6(1), v6(2), option));
        assert_eq!(announcement(v6(2).into(), mac(2), v6(1).into(), mac(1)), asked);
        let asked = answer_to(&arp_request(v4(1).octets(), v4(2).octets()));
        assert_eq!(announcement(v4(2).into(), mac(2), v4(1).into(), mac(1)), asked);
        assert_eq!(announcement(v4(2).into(), mac(2), v6(1).into(), mac(1)), None);
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all_nodes() {
        let mut request = solicitation(Ipv6Addr::UNSPECIFIED, v6(2), None);
        let to = (Mac([0x33, 0x33, 0, 0, 0, 1]), ALL_NODES);
        assert_advertises(&answer_to(&request).expect("an answer"), to, FLAG_OVERRIDE);
        // With two options, as RFC 7527 adds a nonce.
        request.extend([14, 1, 1, 2, 3, 4, 5, 6, 14, 1, 1, 2, 3, 4, 5, 6]);
        assert_advertises(&answer_to(&request).expect("an answer"), to, FLAG_OVERRIDE);
    }

    fn forged(ethertype: u16, payload: &[u8]) -> bool {
        let frame = frame(Mac::BROADCAST, mac(2), ethertype, payload);
        let verdict = is_forged(&frame, &neighbors());
        assert_eq!(is_forged(&tagged(&tagged(&tagged(&frame, 0), 0), 0), &neighbors()), verdict, "priority tags");
        assert!(!is_forged(&tagged(&frame, 7), &neighbors()), "records bind the untagged network");
        verdict
    }

    #[test]
    fn an_arp_sender_must_be_the_owner_by_record() {
        for operation in [1, 2, 9] {
            let claims = |mac, ip: [u8; 4]| forged(ETHERTYPE_ARP, &arp(operation, (mac, ip), (NOBODY, v4(1).octets())));
            assert!(!claims(mac(2), v4(2).octets()), "its own address");
            assert!(!claims(mac(2), UNRECORDED), "nobody's address");
            assert!(!claims(mac(2), [0; 4]), "a probe");
            assert!(claims(mac(2), v4(3).octets()), "another member's address");
            assert!(claims(mac(2), v4(1).octets()), "our address");
            assert!(claims(mac(3), v4(3).octets()), "in another's name, however true");
            assert!(claims(mac(3), UNRECORDED), "for another");
        }
    }

    #[test]
    fn an_ip_packet_must_come_from_the_owner_of_its_source_address() {
        let packet = |source: [u8; 4]| [&[0x45; 12][..], &source, &v4(1).octets()].concat();
        assert!(!forged(ETHERTYPE_IPV4, &packet(v4(2).octets())));
        assert!(!forged(ETHERTYPE_IPV4, &packet([8, 8, 8, 8])), "it may be a router");
        assert!(forged(ETHERTYPE_IPV4, &packet(v4(3).octets())));
        assert!(!forged(ETHERTYPE_IPV6, &ipv6(v6(2), v6(1), 17, &[0; 8])));
        assert!(forged(ETHERTYPE_IPV6, &ipv6(v6(3), v6(1), 17, &[0; 8])));
    }

    #[test]
    fn neighbour_discovery_must_bind_by_the_records() {
        let nd = |source, kind, target, option| {
            forged(ETHERTYPE_IPV6, &ipv6(source, ALL_NODES, ICMPV6, &discovery(kind, target, option)))
        };
        let link_local = "fe80::2".parse().expect("an address");
        let (ours, others) = (|kind| Some((kind, mac(2))), |kind| Some((kind, mac(3))));
        let (solicit, advertise) = (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT);
        assert!(!nd(v6(2), solicit, v6(3), ours(SOURCE_LINK_LAYER)));
        assert!(!nd(Ipv6Addr::UNSPECIFIED, solicit, v6(2), None), "duplicate address detection");
        assert!(!nd(link_local, solicit, v6(1), ours(SOURCE_LINK_LAYER)), "nobody's address");
        assert!(nd(v6(2), solicit, v6(1), others(SOURCE_LINK_LAYER)));
        assert!(nd(link_local, solicit, v6(1), others(SOURCE_LINK_LAYER)));

        assert!(!nd(v6(2), advertise, v6(2), ours(TARGET_LINK_LAYER)));
        assert!(!nd(link_local, advertise, v6(2), None));
        assert!(nd(link_local, advertise, v6(3), ours(TARGET_LINK_LAYER)), "another's address");
        assert!(nd(link_local, advertise, v6(1), None), "ours, without a MAC");
        assert!(nd(v6(2), advertise, v6(2), others(TARGET_LINK_LAYER)));

        let router = |option: [u8; 6]| [&[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &option].concat();
        assert!(!forged(ETHERTYPE_IPV6, &ipv6(v6(2), ALL_NODES, ICMPV6, &router(mac(2).0))));
        assert!(forged(ETHERTYPE_IPV6, &ipv6(v6(2), ALL_NODES, ICMPV6, &router(mac(3).0))));
        let mut redirect = discovery(REDIRECT, v6(3), None);
        redirect.extend(v6(9).octets());
        redirect.extend([TARGET_LINK_LAYER, 1, 2, 0, 0, 0, 0, 3]);
        assert!(!forged(ETHERTYPE_IPV6, &ipv6(link_local, v6(1), ICMPV6, &redirect)), "the record says so too");
        redirect[47] = 2;
        assert!(forged(ETHERTYPE_IPV6, &ipv6(link_local, v6(1), ICMPV6, &redirect)));
    }

    #[test]
    fn extension_headers_and_fragments_hide_no_forgery() {
        let link_local: Ipv6Addr = "fe80::2".parse().expect("an address");
        let lie = discovery(NEIGHBOR_ADVERTISEMENT, v6(1), Some((TARGET_LINK_LAYER, mac(2))));
        let truth = discovery(NEIGHBOR_ADVERTISEMENT, v6(2), Some((TARGET_LINK_LAYER, mac(2))));
        let judge = |next, headers: &[u8], icmp: &[u8]| {
            forged(ETHERTYPE_IPV6, &ipv6(link_local, v6(1), next, &[headers, icmp].concat()))
        };
        let options = [ICMPV6, 0, 1, 4, 0, 0, 0, 0];
        let authentication = [ICMPV6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (next, headers) in [(0, &options[..]), (43, &options), (60, &options), (51, &authentication)] {
            assert!(judge(next, headers, &lie), "{next}");
            assert!(!judge(next, headers, &truth), "{next}");
        }
        assert!(judge(44, &[ICMPV6, 0, 0, 1, 0, 0, 0, 9], &truth), "RFC 6980: never in fragments");
        assert!(judge(44, &[60, 0, 0, 1, 0, 0, 0, 9], &[ICMPV6, 9, 1, 4]), "RFC 7112: the first one shows it all");
        assert!(!judge(44, &[17, 0, 0, 1, 0, 0, 0, 9], &[0; 64]), "fragments of UDP are usual");
        assert!(!judge(44, &[17, 0, 0, 0x99, 0, 0, 0, 9], &lie), "a later one");
        assert!(judge(44, &[ICMPV6, 0, 0, 0, 0, 0, 0, 9], &lie), "an atomic one");
    }

    proptest! {
        #[test]
        fn hostile_frames_never_panic(mut hostile in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..6) {
            let heads = [
                arp_request([0; 4], v4(2).octets()),
                solicitation(v6(1), v6(2), None),
                tagged(&solicitation(v6(1), v6(2), None), 0),
                frame(Mac::BROADCAST, mac(2), ETHERTYPE_IPV6, &ipv6(v6(2), v6(1), 0, &[60, 0])),
                frame(Mac::BROADCAST, mac(2), ETHERTYPE_IPV6, &ipv6(v6(2), v6(1), ICMPV6, &[NEIGHBOR_ADVERTISEMENT, 0])),
                Vec::new(),
            ];
            let cut = hostile.first().map_or(0, |byte| usize::from(*byte));
            let head = &heads[kind][..heads[kind].len() - (cut % 64).min(heads[kind].len())];
            hostile.splice(0..0, head.iter().copied());
            is_forged(&hostile, &neighbors());
            if let Some(answer) = answer_to(&hostile) {
                prop_assert!(answer.len() == ETHERNET_HEADER_LEN + ARP_LEN || answer.len() == ADVERTISEMENT_LEN);
                prop_assert_eq!(&answer[6..12], &mac(2).0[..]);
            }
        }
    }
}
