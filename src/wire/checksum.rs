//! The Internet checksum of TCP and UDP (RFC 1071): summed, completed, verified.
//!
//! The fast path avoids all of it: kernels leave the sum to whoever puts the frame on a wire, the AEAD proves the bytes in
//! between. This is for the rest: frames of a kernel that left it to us in an unusual place, kernels without offloads, and
//! frames that are merged although nobody has verified them.

use super::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, FrameHead};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

const IPV6_HEADER_LEN: usize = 40;

/// The transport header of a frame: TCP or UDP, right behind the header of a packet that is no fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Where it begins, bytes from the start of the frame.
    pub start: usize,
    /// Where the packet ends, bytes from the start of the frame: Ethernet may pad behind it.
    pub end: usize,
}

impl Transport {
    /// Finds it; `None` for every other frame, also behind extension headers of IPv6, and if the packet is cut off.
    pub fn of(frame: &[u8], head: &FrameHead) -> Option<Self> {
        let packet = &frame[head.payload..];
        let (protocol, header, len) = match head.ethertype {
            ETHERTYPE_IPV4 => {
                let fixed = packet.first_chunk::<20>()?;
                let header = usize::from(fixed[0] & 15) * 4;
                let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0;
                if fixed[0] >> 4 != 4 || header < 20 || fragment {
                    return None;
                }
                (fixed[9], header, usize::from(u16::from_be_bytes([fixed[2], fixed[3]])))
            }
            ETHERTYPE_IPV6 => {
                let fixed = packet.first_chunk::<IPV6_HEADER_LEN>()?;
                if fixed[0] >> 4 != 6 {
                    return None;
                }
                let payload = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
                (fixed[6], IPV6_HEADER_LEN, IPV6_HEADER_LEN + payload)
            }
            _ => return None,
        };
        let fixed = match protocol {
            TCP => 20,
            UDP => 8,
            _ => return None,
        };
        let fits = len <= packet.len() && header + fixed <= len;
        fits.then_some(Self { protocol, start: head.payload + header, end: head.payload + len })
    }

    /// Where the checksum is, bytes from [`Transport::start`].
    pub fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) with a transport length of `len` bytes.
    pub fn pseudo_sum(&self, frame: &[u8], head: &FrameHead, len: usize) -> u64 {
        let packet = &frame[head.payload..self.start];
        let addresses = if head.ethertype == ETHERTYPE_IPV6 { &packet[8..40] } else { &packet[12..20] };
        sum(addresses) + u64::from(self.protocol) + len as u64
    }

    /// Whether the checksum in the frame holds. A UDP checksum of zero means that there is none, and does not.
    pub fn verifies(&self, frame: &[u8], head: &FrameHead) -> bool {
        let segment = &frame[self.start..self.end];
        let at = self.checksum_offset();
        let absent = self.protocol == UDP && segment[at..at + 2] == [0, 0];
        !absent && fold(self.pseudo_sum(frame, head, segment.len()) + sum(segment)) == 0xffff
    }
}

/// The unfolded sum of big-endian words; an odd byte counts as the high half of a word.
pub fn sum(bytes: &[u8]) -> u64 {
    // One's complement sums do not care about the width of the words: eight bytes at once, folded afterwards.
    let mut total: u128 = 0;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        total += u128::from(u64::from_be_bytes(chunk.try_into().expect("eight bytes")));
    }
    let mut tail = [0; 8];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    total += u128::from(u64::from_be_bytes(tail));
    let total = (total as u64 as u128) + (total >> 64);
    let (low, high) = (total as u64, (total >> 64) as u64);
    (low & 0xffff_ffff) + (low >> 32) + high
}

/// Folds a sum into 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Does what [`super::Checksum::Partial`] leaves to do: adds the sum of everything from `start` on, and stores it at `start + offset`.
/// False, and nothing done, if that is not inside the frame.
#[must_use]
pub fn complete(frame: &mut [u8], start: u16, offset: u16) -> bool {
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if at + 2 > frame.len() {
        return false;
    }
    let value = match !fold(sum(&frame[start..])) {
        // Zero would mean that there is none (RFC 768); for TCP both are the same number.
        0 => 0xffff,
        value => value,
    };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(bytes: &[u8]) -> u16 {
        let word = |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        fold(bytes.chunks(2).map(word).sum())
    }

    fn udp(payload: &[u8], vlan: bool) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if vlan {
            frame.extend([0x81, 0, 0, 7]);
        }
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(7, 9)
            .write(&mut packet, payload)
            .expect("it fits");
        frame.extend([8, 0]);
        frame.extend(packet);
        frame
    }

    proptest! {
        #[test]
        fn words_of_any_width_make_the_same_sum(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(&bytes)), slow(&bytes));
        }

        #[test]
        fn a_sum_that_is_left_out_and_completed_verifies(payload in proptest::collection::vec(any::<u8>(), 0..1500), vlan: bool) {
            let mut frame = udp(&payload, vlan);
            let head = FrameHead::read(&frame).expect("a frame");
            let transport = Transport::of(&frame, &head).expect("UDP");
            prop_assert!(transport.verifies(&frame, &head), "as etherparse made it");
            let whole = frame.clone();
            let partial = fold(transport.pseudo_sum(&frame, &head, transport.end - transport.start));
            let at = transport.start + 6;
            frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
            prop_assert!(complete(&mut frame, transport.start as u16, 6));
            prop_assert_eq!(&frame, &whole);
            frame[at] ^= 1;
            prop_assert!(!transport.verifies(&frame, &head));
            frame.push(0);
            prop_assert_eq!(Transport::of(&frame, &head), Some(transport), "padding is no part of it");
        }

        #[test]
        fn hostile_frames_never_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..100), start: u16, offset: u16) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(if start & 1 == 0 { &[8, 0] } else { &[0x86, 0xdd] });
            }
            if let Some(head) = FrameHead::read(&frame)
                && let Some(transport) = Transport::of(&frame, &head)
            {
                prop_assert!(transport.end <= frame.len());
                transport.verifies(&frame, &head);
            }
            let _ = complete(&mut frame, start, offset);
        }
    }
}
