//! Explicit congestion notification across the tunnel (RFC 3168, RFC 6040).
//!
//! A frame's mark is copied to its datagram, so routers of the underlay can mark instead of drop; what they marked is
//! carried back into the frame at the other end.

use super::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, FrameHead};

/// The two ECN bits of an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ecn {
    /// The transport does not speak ECN: congestion shows by loss.
    #[default]
    NotCapable = 0,
    /// Capable, codepoint ECT(1).
    Capable1 = 1,
    /// Capable, codepoint ECT(0).
    Capable0 = 2,
    /// A router was congested.
    Congested = 3,
}

impl Ecn {
    /// Of the lowest two bits of a traffic class or type of service.
    pub fn of_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotCapable,
            1 => Self::Capable1,
            2 => Self::Capable0,
            _ => Self::Congested,
        }
    }

    /// Of the IP packet in `frame`, whose head is `head`; not capable if it is none.
    pub fn of_frame(frame: &[u8], head: &FrameHead) -> Self {
        match (head.ethertype, frame.get(head.payload..head.payload + 2)) {
            (ETHERTYPE_IPV4, Some(&[_, class])) => Self::of_bits(class),
            // Four bits of version, eight of traffic class.
            (ETHERTYPE_IPV6, Some(&[_, class])) => Self::of_bits(class >> 4),
            _ => Self::NotCapable,
        }
    }
}

/// Carries the mark of the datagram around it into a frame (RFC 6040, section 4.2, figure 4). False if the frame must be dropped: a
/// router was congested, and the frame's transport would not see a mark.
#[must_use]
pub fn decapsulate(outer: Ecn, frame: &mut [u8], head: &FrameHead) -> bool {
    let inner = Ecn::of_frame(frame, head);
    match (inner, outer) {
        (Ecn::NotCapable, Ecn::Congested) => head.ethertype != ETHERTYPE_IPV4 && head.ethertype != ETHERTYPE_IPV6,
        (Ecn::Capable0 | Ecn::Capable1, Ecn::Congested) => {
            set(frame, head, Ecn::Congested);
            true
        }
        (Ecn::Capable0, Ecn::Capable1) => {
            set(frame, head, Ecn::Capable1);
            true
        }
        (Ecn::NotCapable | Ecn::Capable0 | Ecn::Capable1 | Ecn::Congested, _) => true,
    }
}

/// Sets the mark of an IP packet, of which [`Ecn::of_frame`] has found one.
fn set(frame: &mut [u8], head: &FrameHead, ecn: Ecn) {
    let packet = &mut frame[head.payload..];
    if head.ethertype == ETHERTYPE_IPV6 {
        packet[1] = packet[1] & !0x30 | (ecn as u8) << 4;
        return;
    }
    let Some(header) = packet.first_chunk_mut::<20>() else { return };
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] = header[1] & !3 | ecn as u8;
    let new = u16::from_be_bytes([header[0], header[1]]);
    // RFC 1624, equation 3.
    let sum = u32::from(!u16::from_be_bytes([header[10], header[11]])) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 frame with `ecn` and a sound header checksum.
    fn ipv4(ecn: Ecn) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, ecn as u8, 0, 20, 1, 2, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !header_sum(&frame);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn ipv6(ecn: Ecn) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x6a, 0xb5 & 0xcf | (ecn as u8) << 4]);
        frame.resize(54, 0);
        frame
    }

    fn header_sum(frame: &[u8]) -> u16 {
        let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn marks_cross_the_tunnel_as_rfc_6040_says() {
        use Ecn::{Capable0, Capable1, Congested, NotCapable};
        // Inner, outer, what leaves; None for a drop.
        let table = [
            (NotCapable, NotCapable, Some(NotCapable)),
            (NotCapable, Capable0, Some(NotCapable)),
            (NotCapable, Capable1, Some(NotCapable)),
            (NotCapable, Congested, None),
            (Capable0, NotCapable, Some(Capable0)),
            (Capable0, Capable0, Some(Capable0)),
            (Capable0, Capable1, Some(Capable1)),
            (Capable0, Congested, Some(Congested)),
            (Capable1, NotCapable, Some(Capable1)),
            (Capable1, Capable0, Some(Capable1)),
            (Capable1, Capable1, Some(Capable1)),
            (Capable1, Congested, Some(Congested)),
            (Congested, NotCapable, Some(Congested)),
            (Congested, Congested, Some(Congested)),
        ];
        for (inner, outer, expected) in table {
            for mut frame in [ipv4(inner), ipv6(inner)] {
                let head = FrameHead::read(&frame).expect("a frame");
                assert_eq!(Ecn::of_frame(&frame, &head), inner);
                let before = frame.clone();
                let kept = decapsulate(outer, &mut frame, &head).then(|| Ecn::of_frame(&frame, &head));
                assert_eq!(kept, expected, "{inner:?} in {outer:?}");
                if head.ethertype == ETHERTYPE_IPV4 {
                    assert_eq!(header_sum(&frame), 0xffff, "the header's checksum still holds");
                } else {
                    assert_eq!((frame[14], frame[15] & 0xcf), (before[14], before[15] & 0xcf));
                }
            }
        }
    }

    #[test]
    fn what_is_no_packet_has_no_mark_and_is_never_dropped_for_one() {
        let mut frame = vec![2; 12];
        frame.extend([8, 6, 0xff]);
        let head = FrameHead::read(&frame).expect("a frame");
        assert_eq!(Ecn::of_frame(&frame, &head), Ecn::NotCapable);
        assert!(decapsulate(Ecn::Congested, &mut frame, &head));
        let mut short = vec![2; 12];
        short.extend([8, 0, 0x45, 2, 0]);
        let head = FrameHead::read(&short).expect("a frame");
        assert!(decapsulate(Ecn::Congested, &mut short, &head));
    }
}
