//! A superframe becomes frames: what a network card would do with what the kernel left to it (generic segmentation
//! offload).
//!
//! Each frame is a copy of the headers and of its part of the payload, laid down with room of its own around it, so that it
//! is sealed where it lies. No payload is summed: the checksum of every frame stays partial, and whoever puts it on a wire completes it.

use std::ops::Range;

use crate::wire::Batch;

use super::packet::{CWR, FIN, PSH, Packet, TCP_FLAGS, TCP_SEQUENCE, long};
use super::vnet::{Gso, Superframe, VnetHeader};

/// Why a superframe was not cut. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The bytes are not what the header says.
    #[error("the superframe is not what its header says")]
    Malformed,
    /// The batch has no room for all of its frames.
    #[error("the batch has no room for the frames of a superframe")]
    Full,
}

/// Cuts the superframe that lies at `superframe` (what [`Batch::hold`] gave) into frames, appended to `batch` as slots.
/// Returns how many.
///
/// TCP is cut so that no frame is longer than `longest` bytes, and none has more payload than the header says; if the headers
/// alone are as long, by the header only. The datagrams of UDP are the application's and stay as they are.
///
/// # Errors
/// If the superframe makes no sense, or its frames do not fit. Then nothing is appended.
pub fn segment(
    batch: &mut Batch,
    header: &VnetHeader,
    superframe: Range<usize>,
    longest: usize,
) -> Result<usize, SegmentError> {
    let frame = batch.held(superframe.clone());
    let what = header.superframe.ok_or(SegmentError::Malformed)?;
    let packet = Packet::of(frame).ok_or(SegmentError::Malformed)?;
    if kind(&packet) != what.gso || header.checksum != packet.partial() || what.size == 0 {
        return Err(SegmentError::Malformed);
    }
    let (headers, len) = (packet.payload, packet.payload_len());
    let size = size(&packet, &what, longest);
    // A superframe without payload is one frame, not none.
    let count = len.div_ceil(size).max(1);
    if !batch.has_room(count, count * headers + len) {
        return Err(SegmentError::Full);
    }
    let (sums, id) = (packet.sums(frame), packet.id(frame));
    let tcp = packet.is_tcp().then(|| {
        let start = packet.transport.start;
        (long(frame, start + TCP_SEQUENCE), frame[start + TCP_FLAGS])
    });
    for part in 0..count {
        let from = part * size;
        let to = len.min(from + size);
        let payload = superframe.start + headers;
        let slot =
            batch.push_parts(superframe.start..payload, payload + from..payload + to).expect("there is room for all");
        let frame = batch.bytes_mut(slot);
        packet.write(frame, &sums, to - from, id.wrapping_add(part as u16));
        if let Some((sequence, mut flags)) = tcp {
            let header = &mut frame[packet.transport.start..];
            let sequence = sequence.wrapping_add(from as u32);
            header[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
            if part > 0 {
                flags &= !CWR;
            }
            if part + 1 < count {
                flags &= !(FIN | PSH);
            }
            header[TCP_FLAGS] = flags;
        }
        batch.slot_mut(slot).checksum = header.checksum;
    }
    Ok(count)
}

/// What a superframe of such packets is.
pub(super) fn kind(packet: &Packet) -> Gso {
    match (packet.is_tcp(), packet.is_ipv4()) {
        (true, true) => Gso::Tcp4,
        (true, false) => Gso::Tcp6,
        (false, _) => Gso::Udp,
    }
}

/// Bytes of payload in each frame but the last.
fn size(packet: &Packet, what: &Superframe, longest: usize) -> usize {
    let size = usize::from(what.size);
    match longest.checked_sub(packet.payload) {
        Some(room @ 1..) if packet.is_tcp() => size.min(room),
        _ => size,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    use super::*;
    use crate::tap::packet::{ACK, ECE};
    use crate::tap::samples::{BOTH, Sample, completed, superframes, written};
    use crate::wire::checksum::{fold, sum};
    use crate::wire::{Checksum, Verdict};

    /// A batch that holds `bytes`, with room for a frame of each of them, and where.
    fn held(bytes: &[u8]) -> (Batch, Range<usize>) {
        let mut batch = Batch::new(1 << 24, 1 << 16);
        batch.spare(bytes.len()).expect("room").copy_from_slice(bytes);
        let range = batch.hold(bytes.len());
        (batch, range)
    }

    /// The frames of `sample`, cut into `size` bytes of payload.
    fn cut(sample: &Sample, size: u16, longest: usize) -> Vec<Vec<u8>> {
        let (mut batch, range) = held(&sample.frame());
        let count = segment(&mut batch, &sample.header(size), range, longest).expect("a sound superframe");
        assert_eq!(count, batch.len());
        assert!(batch.slots().iter().all(|slot| slot.checksum == sample.partial()));
        (0..count).map(|slot| batch.bytes(slot).to_vec()).collect()
    }

    fn refused(bytes: &[u8], header: &VnetHeader) -> Option<SegmentError> {
        let (mut batch, range) = held(bytes);
        let result = segment(&mut batch, header, range, 1514);
        assert!(result.is_ok() || batch.is_empty(), "nothing is appended");
        result.err()
    }

    #[test]
    fn tcp_is_cut_into_what_a_kernel_would_have_sent() {
        let whole = Sample { flags: CWR | ECE | PSH | FIN | ACK, ..Sample::default() };
        let parts = [(0..40, CWR | ECE | ACK), (40..80, ECE | ACK), (80..100, ECE | PSH | FIN | ACK)];
        let expected: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|(part, (range, flags))| {
                let (id, sequence) = (whole.id + part as u16, whole.sequence + range.start as u32);
                Sample { id, sequence, flags, payload: whole.payload[range].to_vec(), ..whole.clone() }.frame()
            })
            .collect();
        assert_eq!(cut(&whole, 40, 1514), expected);
    }

    #[test]
    fn udp_is_cut_into_the_datagrams_of_the_application() {
        for ipv6 in [false, true] {
            let whole = Sample { ipv6, tags: 2, ..Sample::udp() };
            let datagram = |part: usize, range: Range<usize>| {
                Sample { id: whole.id + part as u16, payload: whole.payload[range].to_vec(), ..whole.clone() }.frame()
            };
            let expected = [datagram(0, 0..60), datagram(1, 60..100)];
            assert_eq!(cut(&whole, 60, 1514), expected);
            assert_eq!(cut(&whole, 60, 80), expected, "however short the frames should be");
        }
    }

    #[test]
    fn no_frame_of_tcp_is_longer_than_allowed_and_none_has_more_payload_than_the_kernel_said() {
        let whole = Sample::default();
        let lengths = |longest| cut(&whole, 40, longest).iter().map(|frame| frame.len() - 66).collect::<Vec<_>>();
        assert_eq!(lengths(66 + 30), [30, 30, 30, 10]);
        assert_eq!(lengths(66 + 41), [40, 40, 20]);
        assert_eq!(lengths(67).len(), 100, "a byte each");
        assert_eq!(lengths(66), [40, 40, 20], "what is impossible is not tried");
    }

    #[test]
    fn a_superframe_of_one_frame_or_none_at_all_stays_one() {
        let whole = Sample { flags: CWR | PSH | ACK, ..Sample::default() };
        assert_eq!(cut(&whole, 100, 1514), [whole.frame()]);
        let empty = Sample { payload: Vec::new(), ..whole };
        assert_eq!(cut(&empty, 100, 1514), [empty.frame()]);
    }

    #[test]
    fn options_of_ipv4_are_in_every_frame() {
        let mut frame = Sample::default().frame();
        // A router alert, and the length it adds.
        frame.splice(34..34, [148, 4, 0, 0]);
        frame[14] = 0x46;
        frame[17] += 4;
        let mut header = Sample::default().header(50);
        header.checksum = Checksum::Partial { start: 38, offset: 16 };
        let (mut batch, range) = held(&frame);
        assert_eq!(segment(&mut batch, &header, range, 1514), Ok(2));
        for slot in 0..2 {
            assert_eq!(&batch.bytes(slot)[34..38], [148, 4, 0, 0]);
            assert_eq!(fold(sum(&batch.bytes(slot)[14..38])), 0xffff);
        }
    }

    #[test]
    fn what_lies_behind_the_packet_is_left_out() {
        let (mut bytes, header) = (Sample::default().frame(), Sample::default().header(60));
        bytes.extend([0xee; 9]);
        let (mut batch, range) = held(&bytes);
        assert_eq!(segment(&mut batch, &header, range, 1514), Ok(2));
        assert_eq!(batch.bytes(1).len(), 66 + 40);
    }

    #[test]
    fn a_superframe_that_is_not_what_its_header_says_is_refused() {
        let sample = Sample::default();
        let (bytes, good) = (sample.frame(), sample.header(40));
        assert_eq!(refused(&bytes, &good), None);
        let with = |change: fn(&mut Superframe)| {
            let mut header = good;
            change(header.superframe.as_mut().expect("it is one"));
            header
        };
        let malformed = Some(SegmentError::Malformed);
        assert_eq!(refused(&bytes, &VnetHeader { superframe: None, ..good }), malformed);
        assert_eq!(refused(&bytes, &VnetHeader { checksum: Checksum::Valid, ..good }), malformed);
        let elsewhere = Checksum::Partial { start: 34, offset: 6 };
        assert_eq!(refused(&bytes, &VnetHeader { checksum: elsewhere, ..good }), malformed);
        assert_eq!(refused(&bytes, &with(|superframe| superframe.gso = Gso::Tcp6)), malformed);
        assert_eq!(refused(&bytes, &with(|superframe| superframe.gso = Gso::Udp)), malformed);
        assert_eq!(refused(&bytes, &with(|superframe| superframe.size = 0)), malformed);
        assert_eq!(refused(&bytes[..bytes.len() - 1], &good), malformed, "cut off");
        let changed = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            refused(&bytes, &good)
        };
        assert_eq!(changed(46, 0x40), malformed, "a TCP header of 16 bytes");
        let mut long = Sample { payload: Vec::new(), ..Sample::default() }.frame();
        long[46] = 0xf0;
        assert_eq!(refused(&long, &good), malformed, "a TCP header that ends behind the packet");
        assert_eq!(changed(20, 0x20), malformed, "a fragment");
        assert_eq!(changed(13, 0x06), malformed, "ARP");
        let mut big = bytes.clone();
        big[16..18].fill(0);
        assert_eq!(refused(&big, &good), malformed, "BIG TCP, longer than 64 KiB");
    }

    #[test]
    fn a_batch_without_room_for_all_frames_gets_none() {
        let sample = Sample::default();
        let bytes = sample.frame();
        let mut batch = Batch::new(1 << 16, 2);
        batch.spare(bytes.len()).expect("room").copy_from_slice(&bytes);
        let range = batch.hold(bytes.len());
        assert_eq!(segment(&mut batch, &sample.header(40), range.clone(), 1514), Err(SegmentError::Full));
        assert_eq!((batch.len(), segment(&mut batch, &sample.header(50), range, 1514)), (0, Ok(2)));
    }

    /// Whether etherparse finds nothing wrong with the lengths and checksums of a frame.
    fn is_sound(frame: &[u8]) -> bool {
        let Ok(packet) = PacketHeaders::from_ethernet_slice(frame) else { return false };
        let (Some(net), Some(mut transport)) = (packet.net, packet.transport) else { return false };
        let (mut before, payload) = (transport.clone(), packet.payload.slice());
        if let TransportHeader::Tcp(tcp) = &mut before
            && tcp.checksum == 0xffff
        {
            // The same number in one's complement: ours is the one that UDP needs.
            tcp.checksum = 0;
        }
        let updated = match net {
            NetHeaders::Ipv4(ip, _) => {
                ip.calc_header_checksum() == ip.header_checksum && transport.update_checksum_ipv4(&ip, payload).is_ok()
            }
            NetHeaders::Ipv6(ip, _) => transport.update_checksum_ipv6(&ip, payload).is_ok(),
            NetHeaders::Arp(_) => false,
        };
        updated && transport == before && transport.header_len() + payload.len() + head_len(frame) == frame.len()
    }

    /// Where the transport's header begins.
    fn head_len(frame: &[u8]) -> usize {
        Packet::of(frame).expect("a packet").transport.start
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn what_is_cut_and_put_together_is_what_it_was((sample, size) in superframes()) {
            let (bytes, header) = (sample.frame(), sample.header(size));
            let (mut batch, range) = held(&bytes);
            let count = segment(&mut batch, &header, range, 1 << 16).expect("a sound superframe");
            prop_assert_eq!(count, sample.payload.len().div_ceil(size.into()));
            for slot in 0..count {
                batch.slot_mut(slot).verdict = Verdict::Deliver;
            }
            prop_assert_eq!(written(&mut batch, BOTH), [(header, bytes)]);
        }

        #[test]
        fn every_frame_is_sound_and_no_byte_of_payload_is_lost((sample, size) in superframes(), longest in 60..3000usize) {
            let mut payload: Vec<u8> = Vec::new();
            for frame in cut(&sample, size, longest) {
                payload.extend(&frame[sample.headers()..]);
                let frame = completed(frame, sample.partial());
                prop_assert!(is_sound(&frame), "{frame:02x?}");
            }
            prop_assert_eq!(payload, sample.payload);
        }

        #[test]
        fn hostile_superframes_never_panic(
            (sample, size) in superframes(),
            changes in proptest::collection::vec((0..120usize, any::<u8>()), 0..6),
            keep in 0..200usize,
            vnet: [u8; 10],
            longest: u16,
        ) {
            let mut bytes = sample.frame();
            bytes.truncate(keep);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let (mut batch, range) = held(&bytes);
            let _ = segment(&mut batch, &sample.header(size), range.clone(), longest.into());
            if let Some(header) = VnetHeader::read(vnet) {
                let _ = segment(&mut batch, &header, range, longest.into());
            }
        }
    }

    /// What tun-rs makes of the same superframe: it knows nothing of Ethernet and completes every checksum.
    #[cfg(feature = "daemon")]
    fn oracle(sample: &Sample, size: u16) -> Vec<Vec<u8>> {
        let (mut bytes, header, ip) = (sample.frame(), sample.header(size), sample.ip());
        let mut shifted = header.write();
        for (at, value) in [(2, sample.headers() - ip), (6, sample.transport() - ip)] {
            shifted[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        }
        let shifted = tun_rs::VirtioNetHdr::decode(&shifted).expect("ten bytes");
        let mut frames = vec![vec![0; 4096]; 64];
        let mut sizes = [0; 64];
        let count = tun_rs::gso_split(&mut bytes[ip..], shifted, &mut frames, &mut sizes, ip, sample.ipv6);
        frames.truncate(count.expect("a sound superframe"));
        for (frame, len) in frames.iter_mut().zip(sizes) {
            frame.truncate(ip + len);
            frame[..ip].copy_from_slice(&bytes[..ip]);
            let check = sample.transport() + 16;
            if sample.tcp && frame[check..check + 2] == [0, 0] {
                // The same number in one's complement: ours is the one that UDP needs.
                frame[check..check + 2].fill(0xff);
            }
        }
        frames
    }

    #[cfg(feature = "daemon")]
    proptest! {
        #[test]
        fn frames_are_cut_as_tun_rs_cuts_packets((sample, size) in superframes()) {
            let ours: Vec<_> =
                cut(&sample, size, 1 << 16).into_iter().map(|frame| completed(frame, sample.partial())).collect();
            prop_assert_eq!(ours, oracle(&sample, size));
        }
    }
}
