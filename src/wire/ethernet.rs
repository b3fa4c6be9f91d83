//! Where the fields of an Ethernet frame are: offsets only, nothing is copied.

use crate::identity::Mac;

/// Destination, source, EtherType.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// One IEEE 802.1Q tag.
pub const VLAN_TAG_LEN: usize = 4;

/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Tags that are looked through: a provider's and a customer's (IEEE 802.1ad); a third is nobody's.
const MAX_TAGS: usize = 2;

/// The parsed head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// EtherType behind at most two VLAN tags.
    pub ethertype: u16,
    /// Where the payload begins, bytes from the start of the frame.
    pub payload: usize,
}

impl FrameHead {
    /// Reads the head; `None` if the frame ends before its payload begins.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk::<6>()?;
        let (source, _) = rest.split_first_chunk::<6>()?;
        let mut at = ETHERNET_HEADER_LEN - 2;
        let mut ethertype = ethertype_at(frame, at)?;
        for _ in 0..MAX_TAGS {
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
                break;
            }
            at += VLAN_TAG_LEN;
            ethertype = ethertype_at(frame, at)?;
        }
        Some(Self { destination: Mac(*destination), source: Mac(*source), ethertype, payload: at + 2 })
    }
}

fn ethertype_at(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk::<2>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_and_tagged_frames_show_their_ethertype_and_payload() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 9]);
        let head = FrameHead::read(&frame).expect("a frame");
        assert_eq!((head.destination, head.source), (Mac::BROADCAST, Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!((head.ethertype, head.payload), (ETHERTYPE_ARP, 14));

        frame.splice(12..12, [0x88, 0xa8, 0, 7, 0x81, 0x00, 0, 42]);
        let head = FrameHead::read(&frame).expect("a tagged frame");
        assert_eq!((head.ethertype, head.payload), (ETHERTYPE_ARP, 22));
    }

    proptest! {
        #[test]
        fn hostile_frames_never_panic_and_agree_with_etherparse(frame in proptest::collection::vec(any::<u8>(), 0..64)) {
            let ours = FrameHead::read(&frame);
            if let (Some(head), Ok(theirs)) = (ours, etherparse::Ethernet2Slice::from_slice_without_fcs(&frame)) {
                prop_assert_eq!(head.destination.0, theirs.destination());
                prop_assert_eq!(head.source.0, theirs.source());
                prop_assert!(head.payload <= frame.len());
            }
        }
    }
}
