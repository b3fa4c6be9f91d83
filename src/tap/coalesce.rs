//! Frames become superframes again: what a network card would do before the kernel looks (generic receive offload).
//!
//! Frames of one flow that differ in nothing but what cutting a superframe makes different are written together: one system
//! call, one walk through the kernel. The rules are Linux's (`tcp_gro_receive`, `udp_gro_receive`, `inet_gro_receive`). Nothing is
//! copied: the headers of the first frame are made to speak for all, and the payloads are gathered from where they lie.
//! Nothing waits: what is not in the batch is not merged.

use std::iter;

use crate::wire::checksum::{fold, sum};
use crate::wire::{Batch, Checksum, Verdict};

use super::packet::{ACK, CWR, ECE, FIN, PSH, Packet, TCP_FLAGS, TCP_SEQUENCE, long, word};
use super::segment::kind;
use super::vnet::{Superframe, VnetHeader};

/// Most frames in one merge: what Linux allows for the datagrams of one UDP superframe. TCP of an ordinary size is full
/// at 45 frames.
pub const MAX_FRAMES: usize = 64;

/// Largest packet, headers included: what the 16-bit length of IPv4 can say.
const MAX_PACKET: usize = 65_535;

/// Merges that may still grow, at a time. A batch is what one wake-up brings, at most a few bursts; Linux keeps 8 in each
/// bucket of its table. Twice as many would make the search twice as long for a frame that finds nothing.
const MAX_OPEN: usize = 8;

/// The end of a chain of slots.
const NONE: usize = usize::MAX;

/// Which superframes the kernel takes on a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// TCP over IPv4 and IPv6, with CWR on the first segment.
    pub tcp: bool,
    /// UDP over IPv4 and IPv6.
    pub udp: bool,
}

/// Merges the frames of one batch after the other. Kept, it allocates only for a batch larger than all before.
#[derive(Debug, Default)]
pub struct Coalescer {
    merges: Vec<Merge>,
    /// For each slot of the batch the next of its merge.
    next: Vec<usize>,
    /// At most [`MAX_OPEN`], the oldest first.
    open: Vec<Open>,
    /// Where in `open` the last frame found its flow: a burst is of one flow.
    hit: usize,
}

impl Coalescer {
    /// One that has not seen a batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at all slots of `batch` to be delivered, in order, and decides which go to the kernel together. The headers of the
    /// first frame of each merge are rewritten in place, and padding behind merged frames is cut off.
    pub fn coalesce(&mut self, batch: &mut Batch, offloads: Offloads) {
        self.merges.clear();
        self.open.clear();
        self.next.clear();
        self.next.resize(batch.len(), NONE);
        let mut at = batch.first();
        while let Some(slot) = at {
            if batch.slots()[slot].verdict == Verdict::Deliver {
                self.take(batch, slot, offloads);
            }
            at = batch.next(slot);
        }
        for open in self.open.drain(..) {
            open.finish(batch, &mut self.merges);
        }
    }

    /// What to write, in order: of each flow nothing is before what came before it.
    pub fn deliveries(&self) -> impl Iterator<Item = Delivery<'_>> {
        self.merges.iter().map(|&Merge { first, header, headers }| Delivery {
            header,
            headers,
            first,
            next: &self.next,
        })
    }

    fn take(&mut self, batch: &mut Batch, slot: usize, offloads: Offloads) {
        let frame = batch.bytes(slot);
        let wanted = |packet: &Packet| if packet.is_tcp() { offloads.tcp } else { offloads.udp };
        let Some(packet) = Packet::of(frame).filter(wanted) else {
            self.begin(batch, slot);
            return;
        };
        let mergeable = is_mergeable(&packet, frame);
        let ends = packet.is_tcp() && frame[packet.transport.start + TCP_FLAGS] & (PSH | FIN) != 0;
        if let Some(index) = self.find(batch, slot, &packet) {
            let open = &mut self.open[index];
            if mergeable && open.accepts(batch, slot, &packet) {
                self.next[open.last] = slot;
                open.add(batch, slot, &packet);
                if ends || packet.payload_len() < open.size || open.count == MAX_FRAMES {
                    self.close(batch, index);
                } else {
                    self.hit = index;
                }
                return;
            }
            // Whatever this frame becomes, nothing of its flow may overtake it any more.
            self.close(batch, index);
        }
        let merge = self.begin(batch, slot);
        if mergeable && !ends {
            if self.open.len() == MAX_OPEN {
                self.close(batch, 0);
            }
            self.hit = self.open.len();
            self.open.push(Open::new(batch, slot, packet, merge));
        }
    }

    /// A delivery of slot `slot` alone, until others join it.
    fn begin(&mut self, batch: &Batch, slot: usize) -> usize {
        let header = VnetHeader { checksum: batch.slots()[slot].checksum, superframe: None };
        self.merges.push(Merge { first: slot, header, headers: 0 });
        self.merges.len() - 1
    }

    /// The open merge of the flow of `packet`.
    fn find(&self, batch: &Batch, slot: usize, packet: &Packet) -> Option<usize> {
        let frame = batch.bytes(slot);
        let ports = ports(packet, frame);
        let is_of_flow = |open: &Open| {
            open.ports == ports
                && open.packet.transport.protocol == packet.transport.protocol
                && open.packet.head.ethertype == packet.head.ethertype
                && addresses(&open.packet, batch.bytes(open.first)) == addresses(packet, frame)
        };
        if self.open.get(self.hit).is_some_and(is_of_flow) {
            return Some(self.hit);
        }
        self.open.iter().position(is_of_flow)
    }

    fn close(&mut self, batch: &mut Batch, index: usize) {
        let open = self.open.remove(index);
        open.finish(batch, &mut self.merges);
    }
}

/// What is written to the kernel at once: a frame, or a superframe.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// What is written before it.
    pub header: VnetHeader,
    /// Bytes of all headers: left out of every slot but the first.
    pub headers: usize,
    first: usize,
    next: &'a [usize],
}

impl Delivery<'_> {
    /// The slots whose bytes it is made of: all of the first, the payload of every other, from [`Delivery::headers`] on.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        iter::successors(Some(self.first), |slot| Some(self.next[*slot]).filter(|next| *next != NONE))
    }
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    first: usize,
    header: VnetHeader,
    headers: usize,
}

/// A merge that may still grow.
#[derive(Debug)]
struct Open {
    /// Index of its [`Merge`].
    merge: usize,
    first: usize,
    last: usize,
    /// The first frame: everything that must be equal is compared with it.
    packet: Packet,
    ports: u32,
    /// Bytes of payload in every frame but the last.
    size: usize,
    /// Bytes of payload so far.
    len: usize,
    count: usize,
    /// The identification of the first frame.
    id: u16,
    /// The sequence number of the first byte of the first frame.
    sequence: u32,
    /// What the last frame adds to the flags of the first.
    flags: u8,
}

impl Open {
    fn new(batch: &Batch, slot: usize, packet: Packet, merge: usize) -> Self {
        let frame = batch.bytes(slot);
        let len = packet.payload_len();
        Self {
            merge,
            first: slot,
            last: slot,
            packet,
            ports: ports(&packet, frame),
            size: len,
            len,
            count: 1,
            id: packet.id(frame),
            sequence: long(frame, packet.transport.start + TCP_SEQUENCE),
            flags: 0,
        }
    }

    /// Whether slot `slot`, of the same flow, continues the merge.
    fn accepts(&self, batch: &Batch, slot: usize, packet: &Packet) -> bool {
        let (first, frame) = (batch.bytes(self.first), batch.bytes(slot));
        let Packet { head, transport, payload } = self.packet;
        (head.payload, transport.start, payload) == (packet.head.payload, packet.transport.start, packet.payload)
            && packet.payload_len() <= self.size
            && payload - head.payload + self.len + packet.payload_len() <= MAX_PACKET
            && first[..head.payload] == frame[..head.payload]
            && self.continues_ip(&first[head.payload..], &frame[head.payload..])
            && (!packet.is_tcp()
                || self.continues_tcp(&first[transport.start..payload], &frame[transport.start..payload]))
            && (self.count > 1 || is_proven(batch, self.first, &self.packet))
            && is_proven(batch, slot, packet)
    }

    /// What the network did with the packets, or shall do, is the same. The addresses are.
    fn continues_ip(&self, first: &[u8], packet: &[u8]) -> bool {
        if self.packet.is_ipv4() {
            // Without DF the identification counts; with it, it means nothing (RFC 6864, section 4).
            let counts = first[6] & 0x40 == 0;
            let expected = self.id.wrapping_add(self.count as u16);
            first[..2] == packet[..2] && first[6..10] == packet[6..10] && (!counts || word(packet, 4) == expected)
        } else {
            // Traffic class and flow label; the hop limit.
            first[..4] == packet[..4] && first[7] == packet[7]
        }
    }

    /// The sequence goes on, and nothing else is said than before.
    fn continues_tcp(&self, first: &[u8], header: &[u8]) -> bool {
        let flags = header[TCP_FLAGS];
        long(header, TCP_SEQUENCE) == self.sequence.wrapping_add(self.len as u32)
            // The acknowledgement and the length of the header; the window; the urgent pointer and the options.
            && first[8..13] == header[8..13]
            && first[14..16] == header[14..16]
            && first[18..] == header[18..]
            && flags & CWR == 0
            && (flags ^ first[TCP_FLAGS]) & !(CWR | FIN | PSH) == 0
    }

    fn add(&mut self, batch: &mut Batch, slot: usize, packet: &Packet) {
        if packet.is_tcp() {
            self.flags = batch.bytes(slot)[packet.transport.start + TCP_FLAGS] & (FIN | PSH);
        }
        batch.shrink(slot, 0..packet.transport.end);
        self.last = slot;
        self.len += packet.payload_len();
        self.count += 1;
    }

    /// Nothing comes any more: makes the first frame's headers speak for all.
    fn finish(&self, batch: &mut Batch, merges: &mut [Merge]) {
        if self.count == 1 {
            return;
        }
        let packet = &self.packet;
        batch.shrink(self.first, 0..packet.transport.end);
        let frame = batch.bytes_mut(self.first);
        let sums = packet.sums(frame);
        packet.write(frame, &sums, self.len, self.id);
        let mut ecn = false;
        if packet.is_tcp() {
            let flags = &mut frame[packet.transport.start + TCP_FLAGS];
            *flags |= self.flags;
            ecn = *flags & CWR != 0;
        }
        // Both fit: headers are at most 22 + 20 + 60 bytes, a payload is at most a packet.
        let (size, headers) = (self.size as u16, packet.payload as u16);
        let superframe = Superframe { gso: kind(packet), ecn, size, headers };
        let merge = &mut merges[self.merge];
        merge.header = VnetHeader { checksum: packet.partial(), superframe: Some(superframe) };
        merge.headers = packet.payload;
    }
}

/// Whether the frame may be part of any merge, as far as it alone can tell.
fn is_mergeable(packet: &Packet, frame: &[u8]) -> bool {
    let ip = &frame[packet.head.payload..packet.transport.start];
    let transport = &frame[packet.transport.start..packet.transport.end];
    let header = if packet.is_ipv4() { ip.len() == 20 && fold(sum(ip)) == 0xffff } else { true };
    let plain = match packet.is_tcp() {
        true => transport[TCP_FLAGS] & !(CWR | ECE | FIN | PSH) == ACK,
        // The length is once more in UDP; a checksum of zero is none.
        false => usize::from(word(transport, 4)) == transport.len() && word(transport, 6) != 0,
    };
    header && plain && packet.payload_len() > 0
}

/// Whether nothing is lost if the checksum in the frame is not looked at any more.
fn is_proven(batch: &Batch, slot: usize, packet: &Packet) -> bool {
    match batch.slots()[slot].checksum {
        Checksum::Valid => true,
        checksum @ Checksum::Partial { .. } => checksum == packet.partial(),
        Checksum::Unknown => packet.transport.verifies(batch.bytes(slot), &packet.head),
    }
}

fn addresses<'a>(packet: &Packet, frame: &'a [u8]) -> &'a [u8] {
    let ip = packet.head.payload;
    if packet.is_ipv4() { &frame[ip + 12..ip + 20] } else { &frame[ip + 8..ip + 40] }
}

fn ports(packet: &Packet, frame: &[u8]) -> u32 {
    long(frame, packet.transport.start)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tap::samples::{BOTH, Sample, batch, completed, superframes, written};
    use crate::tap::segment::segment;
    use crate::tap::vnet::Gso;

    /// Three frames that follow each other.
    fn three(first: Sample) -> Vec<Sample> {
        let second = first.next();
        vec![first, second.clone(), second.next()]
    }

    /// How many frames go into each write.
    fn merged_with(samples: &[Sample], offloads: Offloads, checksum: fn(&Sample) -> (Vec<u8>, Checksum)) -> Vec<usize> {
        let mut batch = batch(samples.iter().map(checksum));
        let mut coalescer = Coalescer::new();
        coalescer.coalesce(&mut batch, offloads);
        coalescer.deliveries().map(|delivery| delivery.slots().count()).collect()
    }

    fn merged(samples: &[Sample]) -> Vec<usize> {
        merged_with(samples, BOTH, |sample| (sample.frame(), sample.partial()))
    }

    /// Three frames of which the second and the third were changed: how many go into each write.
    fn changed(first: Sample, change: fn(&mut Sample)) -> Vec<usize> {
        let mut samples = three(first);
        samples[1..].iter_mut().for_each(change);
        merged(&samples)
    }

    #[test]
    fn frames_that_continue_each_other_are_written_together() {
        for sample in [Sample::default(), Sample { ipv6: true, ..Sample::default() }, Sample::udp()] {
            let samples = three(sample.clone());
            let mut batch = batch(samples.iter().map(|sample| (sample.frame(), sample.partial())));
            let payload = samples.iter().flat_map(|sample| sample.payload.clone()).collect();
            let whole = Sample { payload, ..sample };
            assert_eq!(written(&mut batch, BOTH), [(whole.header(100), whole.frame())]);
        }
    }

    #[test]
    fn a_lone_frame_keeps_its_bytes_and_what_is_known_of_its_checksum() {
        let sample = Sample::default();
        for checksum in [Checksum::Unknown, Checksum::Valid, sample.partial()] {
            let mut batch = batch([(sample.frame(), checksum)]);
            assert_eq!(written(&mut batch, BOTH), [(VnetHeader { checksum, superframe: None }, sample.frame())]);
        }
    }

    #[test]
    fn only_what_the_kernel_takes_is_merged() {
        let samples = [three(Sample::default()), three(Sample::udp())].concat();
        let with = |tcp, udp| merged_with(&samples, Offloads { tcp, udp }, |sample| (sample.frame(), sample.partial()));
        assert_eq!(with(true, false), [3, 1, 1, 1]);
        assert_eq!(with(false, true), [1, 1, 1, 3]);
        assert_eq!(with(false, false), [1; 6]);
    }

    #[test]
    fn only_what_is_to_be_delivered_is_looked_at() {
        let samples = three(Sample::default());
        let mut batch = batch(samples.iter().map(|sample| (sample.frame(), sample.partial())));
        batch.slot_mut(1).verdict = Verdict::Done;
        let mut coalescer = Coalescer::new();
        coalescer.coalesce(&mut batch, BOTH);
        let slots: Vec<Vec<usize>> = coalescer.deliveries().map(|delivery| delivery.slots().collect()).collect();
        assert_eq!(slots, [[0], [2]]);
        batch.clear();
        coalescer.coalesce(&mut batch, BOTH);
        assert_eq!(coalescer.deliveries().count(), 0, "nothing is left of the batch before");
    }

    #[test]
    fn flows_that_alternate_are_merged_each_for_itself_in_the_order_of_their_first_frames() {
        let (a, b) = (three(Sample::default()), three(Sample { flow: 2, ..Sample::udp() }));
        assert_eq!(merged(&[&a[..1], &b[..1], &a[1..2], &b[1..2], &a[2..], &b[2..]].concat()), [3, 3]);
        // The same ports between others, the other transport, the other version of IP: other flows.
        let others: Vec<Sample> = [Sample::default(), Sample::udp(), Sample { ipv6: true, ..Sample::default() }].into();
        let next: Vec<Sample> = others.iter().map(Sample::next).collect();
        assert_eq!(merged(&[others, next].concat()), [2, 2, 2]);
    }

    #[test]
    fn more_flows_than_are_kept_open_end_the_oldest() {
        let flows: Vec<Sample> = (0..9).map(|flow| Sample { flow, ..Sample::default() }).collect();
        let next: Vec<Sample> = flows.iter().map(Sample::next).collect();
        let counts = merged(&[&flows[..8], &next[..8]].concat());
        assert_eq!(counts, [2; 8]);
        let counts = merged(&[&flows[..], &next[1..]].concat());
        assert_eq!(counts, [1, 2, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_frame_that_does_not_continue_its_flow_begins_anew() {
        for first in [Sample::default(), Sample::udp()] {
            assert_eq!(changed(first.clone(), |sample| sample.tags = 1), [1, 2], "the VLAN");
            assert_eq!(changed(first.clone(), |sample| sample.traffic = 3), [1, 2], "congestion or class");
            assert_eq!(changed(first.clone(), |sample| sample.hops = 63), [1, 2], "hops");
            assert_eq!(changed(first.clone(), |sample| sample.dont_fragment = false), [1, 2], "fragmenting");
            let ipv6 = Sample { ipv6: true, ..first };
            assert_eq!(changed(ipv6.clone(), |sample| sample.traffic = 0x50), [1, 2], "the class of IPv6");
            assert_eq!(changed(ipv6, |sample| sample.hops = 63), [1, 2], "hops of IPv6");
        }
        let tcp = Sample::default();
        assert_eq!(changed(tcp.clone(), |sample| sample.sequence += 1), [1, 2], "a gap");
        assert_eq!(changed(tcp.clone(), |sample| sample.sequence -= 1), [1, 2], "an overlap");
        assert_eq!(changed(tcp.clone(), |sample| sample.acknowledged += 1), [1, 2]);
        assert_eq!(changed(tcp.clone(), |sample| sample.window += 1), [1, 2]);
        assert_eq!(changed(tcp.clone(), |sample| sample.options[7] += 1), [1, 2], "a later time stamp");
        assert_eq!(changed(tcp.clone(), |sample| sample.options.truncate(4)), [1, 2], "fewer options");
        assert_eq!(changed(tcp, |sample| sample.flags |= ECE), [1, 2], "an echo of congestion");
        let mut labelled: Vec<Vec<u8>> =
            three(Sample { ipv6: true, ..Sample::default() }).iter().map(Sample::whole).collect();
        labelled[1][17] ^= 1;
        assert_eq!(written(&mut batch(labelled.into_iter().map(|frame| (frame, Checksum::Valid))), BOTH).len(), 3);
    }

    #[test]
    fn the_macs_and_the_urgent_pointer_must_be_the_same_too() {
        for at in [0, 6, 11, 52] {
            let mut frames: Vec<_> = three(Sample::default()).iter().map(Sample::whole).collect();
            frames[1][at] ^= 4;
            assert_eq!(written(&mut batch(frames.into_iter().map(|frame| (frame, Checksum::Valid))), BOTH).len(), 3);
        }
    }

    #[test]
    fn the_identification_counts_only_where_packets_may_be_cut() {
        let constant = |sample: &mut Sample| sample.id = 7;
        assert_eq!(changed(Sample::default(), constant), [3]);
        assert_eq!(changed(Sample { dont_fragment: false, ..Sample::default() }, constant), [1, 1, 1]);
        assert_eq!(changed(Sample { dont_fragment: false, id: 0xffff, ..Sample::udp() }, |_| ()), [3], "it wraps");
    }

    #[test]
    fn a_frame_with_less_payload_is_the_last_and_one_with_more_is_not_taken() {
        for first in [Sample::default(), Sample::udp()] {
            let mut samples = three(first.clone());
            samples[1].payload.truncate(99);
            samples[2].sequence -= 1;
            assert_eq!(merged(&samples), [2, 1]);
            samples[2].payload.truncate(99);
            assert_eq!(merged(&samples), [2, 1]);
            let mut samples = three(first);
            samples[1].payload.push(9);
            samples[2] = samples[1].next();
            assert_eq!(merged(&samples), [1, 2]);
        }
    }

    #[test]
    fn push_and_fin_are_the_last_frames_and_end_a_merge() {
        for flag in [PSH, FIN, PSH | FIN] {
            let mut samples = three(Sample::default());
            samples.push(samples[2].next());
            samples[1].flags |= flag;
            assert_eq!(merged(&samples), [2, 2]);
            let mut batch = batch(samples.iter().map(|sample| (sample.frame(), sample.partial())));
            assert_eq!(written(&mut batch, BOTH)[0].1[47], ACK | flag);
            samples[0].flags |= flag;
            assert_eq!(merged(&samples), [1, 1, 2], "alone if it is the first");
        }
    }

    #[test]
    fn a_reduced_congestion_window_is_said_by_the_first_frame_only() {
        let mut samples = three(Sample::default());
        samples[0].flags |= CWR;
        let mut frames = batch(samples.iter().map(|sample| (sample.frame(), sample.partial())));
        let [(header, bytes)] = &written(&mut frames, BOTH)[..] else { panic!("one superframe") };
        assert_eq!((header.superframe.map(|superframe| superframe.ecn), bytes[47]), (Some(true), CWR | ACK));
        samples[0].flags = ACK;
        samples[1].flags |= CWR;
        assert_eq!(merged(&samples), [1, 2]);
    }

    #[test]
    fn acknowledgements_and_other_signals_are_never_merged_nor_overtaken() {
        assert_eq!(merged(&three(Sample { payload: Vec::new(), ..Sample::default() })), [1, 1, 1]);
        assert_eq!(merged(&three(Sample { payload: Vec::new(), ..Sample::udp() })), [1, 1, 1]);
        // SYN, RST, URG; no ACK.
        for flags in [ACK | 2, ACK | 4, ACK | 0x20, 0] {
            assert_eq!(merged(&three(Sample { flags, ..Sample::default() })), [1, 1, 1]);
            let [a, b, c] = &three(Sample::default())[..] else { panic!("three") };
            let signal = Sample { flags, ..b.clone() };
            assert_eq!(merged(&[a.clone(), signal, b.clone(), c.clone()]), [1, 1, 2]);
        }
        let [a, b, c] = &three(Sample::default())[..] else { panic!("three") };
        let empty = Sample { payload: Vec::new(), ..b.clone() };
        assert_eq!(merged(&[a.clone(), empty, b.clone(), c.clone()]), [1, 1, 2]);
    }

    #[test]
    fn no_merge_is_larger_than_a_packet_or_has_more_frames_than_linux_takes() {
        let chain = |first: Sample, count: usize| -> Vec<Sample> {
            iter::successors(Some(first), |sample| Some(sample.next())).take(count).collect()
        };
        for first in [Sample::default(), Sample::udp()] {
            assert_eq!(merged(&chain(first.clone(), 130)), [64, 64, 2]);
            let large = chain(Sample { payload: vec![1; 8000], ..first }, 17);
            assert_eq!(merged(&large), [8, 8, 1]);
        }
        // 45 x 1455 and the headers are 65,527 bytes of IPv4; 9 more would be one too many.
        let mut samples = chain(Sample { payload: vec![1; 1455], ..Sample::default() }, 46);
        samples[45].payload.truncate(8);
        assert_eq!(merged(&samples), [46]);
        samples[45].payload.push(1);
        assert_eq!(merged(&samples), [45, 1]);
    }

    #[test]
    fn a_checksum_that_nobody_has_verified_is_verified_before_a_merge() {
        for first in [Sample::default(), Sample { ipv6: true, ..Sample::udp() }] {
            let samples = three(first);
            assert_eq!(merged_with(&samples, BOTH, |sample| (sample.whole(), Checksum::Unknown)), [3]);
            for bad in 0..3 {
                let mut frames: Vec<_> = samples.iter().map(Sample::whole).collect();
                *frames[bad].last_mut().expect("payload") ^= 1;
                let mut batch = batch(frames.iter().map(|frame| (frame.clone(), Checksum::Unknown)));
                let writes = written(&mut batch, BOTH);
                let alone = writes.iter().find(|(_, bytes)| *bytes == frames[bad]).expect("the bad one as it came");
                assert_eq!(alone.0, VnetHeader::default(), "the kernel judges it");
            }
        }
    }

    #[test]
    fn a_partial_checksum_in_another_place_is_not_merged() {
        let elsewhere = |sample: &Sample| (sample.frame(), Checksum::Partial { start: 30, offset: 16 });
        assert_eq!(merged_with(&three(Sample::default()), BOTH, elsewhere), [1, 1, 1]);
        assert_eq!(merged_with(&three(Sample::default()), BOTH, |sample| (sample.frame(), Checksum::Valid)), [3]);
    }

    #[test]
    fn udp_without_a_checksum_or_with_another_length_is_not_merged() {
        for (at, value) in [(40, [0, 0]), (38, [0, 50])] {
            let mut frames: Vec<_> = three(Sample::udp()).iter().map(Sample::whole).collect();
            frames.iter_mut().for_each(|frame| frame[at..at + 2].copy_from_slice(&value));
            assert_eq!(written(&mut batch(frames.into_iter().map(|frame| (frame, Checksum::Valid))), BOTH).len(), 3);
        }
    }

    #[test]
    fn a_packet_with_options_a_bad_header_or_in_fragments_is_not_merged() {
        let options = |sample: &Sample| {
            let mut frame = sample.frame();
            frame.splice(34..34, [1, 1, 1, 1]);
            (frame[14], frame[17]) = (0x46, frame[17] + 4);
            frame[24..26].fill(0);
            let check = !fold(sum(&frame[14..38]));
            frame[24..26].copy_from_slice(&check.to_be_bytes());
            (frame, Checksum::Partial { start: 38, offset: 16 })
        };
        assert_eq!(merged_with(&three(Sample::default()), BOTH, options), [1, 1, 1]);
        let fragment = |sample: &Sample| {
            let mut frame = sample.frame();
            frame[20] = 0x20;
            (frame, Checksum::Valid)
        };
        assert_eq!(merged_with(&three(Sample::default()), BOTH, fragment), [1, 1, 1]);
        let bad = |sample: &Sample| {
            let mut frame = sample.frame();
            frame[24] ^= 1;
            (frame, Checksum::Valid)
        };
        assert_eq!(merged_with(&three(Sample::default()), BOTH, bad), [1, 1, 1]);
    }

    #[test]
    fn padding_is_no_payload() {
        let samples = three(Sample { options: Vec::new(), payload: vec![1, 2], ..Sample::default() });
        let padded = |sample: &Sample| ([sample.frame(), vec![0xee; 4]].concat(), sample.partial());
        let mut batch = batch(samples.iter().map(padded));
        let whole = Sample { payload: vec![1, 2, 2, 3, 3, 4], ..samples[0].clone() };
        assert_eq!(written(&mut batch, BOTH), [(whole.header(2), whole.frame())]);
    }

    #[test]
    fn frames_of_no_flow_are_written_as_they_are() {
        let (a, b) = (Sample::default(), Sample::default().next());
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
        let frames = [(a.frame(), a.partial()), (arp.clone(), Checksum::Unknown), (b.frame(), b.partial())];
        let writes = written(&mut batch(frames), BOTH);
        assert_eq!(writes.len(), 2);
        assert_eq!(writes[1], (VnetHeader::default(), arp));
        assert_eq!(writes[0].0.superframe.map(|superframe| superframe.gso), Some(Gso::Tcp4));
    }

    /// The frames of each flow, in order, as far as they mean anything: completed, without padding, and without the
    /// identification of a packet that must not be cut.
    fn by_flow(frames: impl IntoIterator<Item = (Vec<u8>, Checksum)>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
        let mut flows = BTreeMap::<_, Vec<_>>::new();
        for (mut frame, checksum) in frames {
            let packet = Packet::of(&frame).expect("a packet");
            let key = [addresses(&packet, &frame), &frame[packet.transport.start..][..4]].concat();
            frame.truncate(packet.transport.end);
            let mut frame = completed(frame, checksum);
            let ip = packet.head.payload;
            if packet.is_ipv4() && frame[ip + 6] & 0x40 != 0 {
                frame[ip + 4..ip + 6].fill(0);
                frame[ip + 10..ip + 12].fill(0);
            }
            flows.entry(key).or_default().push(frame);
        }
        flows
    }

    /// The frames that a network card would make of a write.
    fn cut((header, bytes): (VnetHeader, Vec<u8>)) -> Vec<(Vec<u8>, Checksum)> {
        if header.superframe.is_none() {
            return vec![(bytes, header.checksum)];
        }
        let mut batch = Batch::new(1 << 18, 64);
        batch.spare(bytes.len()).expect("room").copy_from_slice(&bytes);
        let held = batch.hold(bytes.len());
        let count = segment(&mut batch, &header, held, usize::MAX).expect("a sound superframe");
        (0..count).map(|slot| (batch.bytes(slot).to_vec(), batch.slots()[slot].checksum)).collect()
    }

    /// Something that may happen to a frame on its way.
    fn disturb(sample: &mut Sample, kind: u8, value: u8) {
        match kind {
            0 => sample.flags ^= value,
            1 => sample.sequence = sample.sequence.wrapping_add(value.into()),
            2 => sample.acknowledged = sample.acknowledged.wrapping_add(value.into()),
            3 => sample.window ^= u16::from(value),
            4 => sample.hops = value,
            5 => sample.traffic = value,
            6 => sample.options = vec![value; usize::from(value % 11) * 4],
            7 => sample.payload.truncate(value.into()),
            8 => sample.payload.push(value),
            9 => sample.id ^= u16::from(value),
            10 => sample.dont_fragment = !sample.dont_fragment,
            11 => sample.tags = usize::from(value % 3),
            _ => {}
        }
    }

    /// Frames of several flows in any order, some of them disturbed, with checksums known in any way.
    fn traffic() -> impl Strategy<Value = Vec<(Vec<u8>, Checksum)>> {
        let flow =
            (any::<bool>(), any::<bool>(), any::<bool>(), 1..150usize).prop_map(|(ipv6, tcp, dont_fragment, len)| {
                Sample { ipv6, tcp, dont_fragment, payload: vec![0; len], ..Sample::default() }
            });
        let steps = proptest::collection::vec((any::<u16>(), 0..80u8, any::<u8>(), 0..8u8), 0..150);
        (proptest::collection::vec(flow, 1..10), steps).prop_map(|(mut flows, steps)| {
            flows.iter_mut().zip(0..).for_each(|(flow, number)| flow.flow = number);
            let take = |(which, kind, value, checksum): (u16, u8, u8, u8)| {
                // Most often the flow of the frame before.
                let which = if which & 3 == 0 { usize::from(which >> 2) } else { 0 } % flows.len();
                let mut sample = flows[which].clone();
                flows[which] = sample.next();
                flows.swap(0, which);
                disturb(&mut sample, kind, value);
                let checksum = match checksum {
                    0 => Checksum::Unknown,
                    1 => Checksum::Valid,
                    _ => sample.partial(),
                };
                let mut frame = if checksum == sample.partial() { sample.frame() } else { sample.whole() };
                frame.resize(frame.len().max(60), 0xee);
                (frame, checksum)
            };
            steps.into_iter().map(take).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_merged_is_cut_into_the_same_frames_again_flow_by_flow(frames in traffic(), tcp: bool, udp: bool) {
            let writes = written(&mut batch(frames.clone()), Offloads { tcp, udp });
            let cut = writes.into_iter().flat_map(cut);
            prop_assert_eq!(by_flow(cut), by_flow(frames));
        }

        #[test]
        fn the_frames_of_a_superframe_are_one_write_whoever_looked_at_their_checksums(
            (sample, size) in superframes(), known in 0..3u8,
        ) {
            let (bytes, header) = (sample.frame(), sample.header(size));
            let frames = cut((header, bytes.clone())).into_iter().map(|(frame, partial)| match known {
                0 => (completed(frame, partial), Checksum::Unknown),
                1 => (completed(frame, partial), Checksum::Valid),
                _ => (frame, partial),
            });
            prop_assert_eq!(written(&mut batch(frames), BOTH), [(header, bytes)]);
        }

        #[test]
        fn hostile_frames_never_panic_and_every_one_is_written_once(
            mut frames in traffic(),
            changes in proptest::collection::vec((any::<u16>(), 0..120usize, any::<u8>()), 0..20),
            cuts in proptest::collection::vec((any::<u16>(), 0..120usize), 0..4),
        ) {
            let count = frames.len().max(1);
            for (which, at, value) in changes {
                if let Some(byte) = frames.get_mut(usize::from(which) % count).and_then(|(frame, _)| frame.get_mut(at)) {
                    *byte = value;
                }
            }
            for (which, len) in cuts {
                if let Some((frame, _)) = frames.get_mut(usize::from(which) % count) {
                    frame.truncate(len);
                }
            }
            let mut batch = batch(frames);
            let mut coalescer = Coalescer::new();
            coalescer.coalesce(&mut batch, BOTH);
            let mut slots: Vec<_> = coalescer.deliveries().flat_map(|delivery| delivery.slots().collect::<Vec<_>>()).collect();
            let firsts: Vec<_> = coalescer.deliveries().filter_map(|delivery| delivery.slots().next()).collect();
            prop_assert!(firsts.is_sorted());
            slots.sort_unstable();
            prop_assert_eq!(slots, (0..batch.len()).collect::<Vec<_>>());
        }
    }
}
