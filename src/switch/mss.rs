//! MSS clamping: two hosts that open a TCP connection through us learn what the path carries whole, so bulk traffic is
//! never cut (RFC 9293, section 3.7.1; the practice of every tunnel since PPPoE, RFC 2923).

use crate::wire::Checksum;
use crate::wire::checksum::{TCP, Transport, fold, sum};

/// What every host must accept (RFC 9293, section 3.7.1): a path too narrow even for this gets cut frames.
const LEAST: usize = 536;

const SYN: u8 = 0x02;
const END: u8 = 0;
const PADDING: u8 = 1;
const MSS: u8 = 2;

/// Lowers the MSS that a TCP SYN announces, so that no frame sent in answer to it is longer than `longest` bytes.
pub(super) fn clamp(frame: &mut [u8], transport: &Transport, checksum: Checksum, longest: usize) {
    if transport.protocol != TCP || frame[transport.start + 13] & SYN == 0 {
        return;
    }
    let header = usize::from(frame[transport.start + 12] >> 4) * 4;
    let segment = &mut frame[transport.start..transport.end];
    let Some(at) = segment.get(..header).and_then(announced) else { return };
    // The MSS does not count options, whatever a segment carries of them (RFC 6691).
    let most = longest.saturating_sub(transport.start + 20).max(LEAST);
    let Some(most) = u16::try_from(most).ok().filter(|most| *most < u16::from_be_bytes([segment[at], segment[at + 1]]))
    else {
        return;
    };
    // Whole words around it: an option may begin at an odd place.
    let words = at & !1..(at + 3) & !1;
    let old = fold(sum(&segment[words.clone()]));
    segment[at..at + 2].copy_from_slice(&most.to_be_bytes());
    if !matches!(checksum, Checksum::Partial { .. }) {
        let new = fold(sum(&segment[words]));
        // RFC 1624, equation 3.
        let before = u16::from_be_bytes([segment[16], segment[17]]);
        let after = !fold(u64::from(!before) + u64::from(!old) + u64::from(new));
        segment[16..18].copy_from_slice(&after.to_be_bytes());
    }
}

/// Where the value of the MSS option is in a TCP header.
fn announced(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    loop {
        match *header.get(at)? {
            END => return None,
            PADDING => at += 1,
            kind => {
                let len = usize::from(*header.get(at + 1)?);
                if kind == MSS && len == 4 && at + 4 <= header.len() {
                    return Some(at + 2);
                }
                at += len.max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::ethernet::FrameHead;

    /// A SYN of IPv4 with these TCP options.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .tcp(1, 2, 3, 4)
            .syn()
            .options_raw(options)
            .expect("options")
            .write(&mut frame, &[])
            .expect("it fits");
        frame
    }

    fn clamped(mut frame: Vec<u8>, longest: usize) -> Vec<u8> {
        let head = FrameHead::read(&frame).expect("a frame");
        let transport = Transport::of(&frame, &head).expect("TCP");
        let sound = transport.verifies(&frame, &head);
        clamp(&mut frame, &transport, Checksum::Unknown, longest);
        assert_eq!(transport.verifies(&frame, &head), sound, "neither broken nor mended");
        frame
    }

    #[test]
    fn an_mss_beyond_the_path_is_lowered_and_the_checksum_holds() {
        for options in [&[2, 4, 5, 180][..], &[1, 2, 4, 5, 180, 1, 1, 0], &[1, 1, 2, 4, 5, 180, 4, 2]] {
            let frame = clamped(syn(options), 1432);
            let at = frame.windows(2).position(|pair| pair == [2, 4]).expect("the option is still there");
            assert_eq!(u16::from_be_bytes([frame[at + 2], frame[at + 3]]), 1432 - 54);
        }
    }

    #[test]
    fn an_mss_that_fits_and_a_segment_that_is_no_syn_stay_as_they_are() {
        let small = syn(&[2, 4, 2, 0]);
        assert_eq!(clamped(small.clone(), 1432), small);
        let mut later = syn(&[2, 4, 5, 180]);
        later[14 + 20 + 13] = 0x10;
        assert_eq!(clamped(later.clone(), 1432), later);
    }

    #[test]
    fn a_left_out_checksum_stays_left_out() {
        let mut frame = syn(&[2, 4, 5, 180]);
        let head = FrameHead::read(&frame).expect("a frame");
        let transport = Transport::of(&frame, &head).expect("TCP");
        let before = frame[transport.start + 16..transport.start + 18].to_vec();
        let partial = Checksum::Partial { start: transport.start as u16, offset: 16 };
        clamp(&mut frame, &transport, partial, 1432);
        assert_eq!(frame[transport.start + 16..transport.start + 18], before[..]);
        assert_ne!(frame, syn(&[2, 4, 5, 180]));
    }

    proptest! {
        #[test]
        fn hostile_options_never_panic(mut options in proptest::collection::vec(any::<u8>(), 0..=40), longest in 0usize..2000) {
            options.truncate(options.len() / 4 * 4);
            clamped(syn(&options), longest);
        }
    }
}
