//! TCP and UDP frames to test with, described by what they say.

use proptest::prelude::*;

use crate::wire::checksum::{TCP, UDP, complete, fold, sum};
use crate::wire::{Batch, Checksum, Verdict};

use super::coalesce::{Coalescer, Offloads};
use super::packet::{ACK, CWR, ECE, FIN, PSH};
use super::vnet::{Gso, Superframe, VnetHeader};

pub(super) const BOTH: Offloads = Offloads { tcp: true, udp: true };

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) ipv6: bool,
    pub(super) tcp: bool,
    pub(super) tags: usize,
    pub(super) flow: u8,
    pub(super) traffic: u8,
    pub(super) hops: u8,
    pub(super) dont_fragment: bool,
    pub(super) id: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) window: u16,
    pub(super) flags: u8,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            ipv6: false,
            tcp: true,
            tags: 0,
            flow: 1,
            traffic: 0,
            hops: 64,
            dont_fragment: true,
            id: 7,
            sequence: 1000,
            acknowledged: 2000,
            window: 500,
            flags: ACK,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: (0..100).collect(),
        }
    }
}

impl Sample {
    /// UDP.
    pub(super) fn udp() -> Self {
        Self { tcp: false, ..Self::default() }
    }

    /// The frame that follows this one in its flow, with as much other payload.
    pub(super) fn next(&self) -> Self {
        let sequence = self.sequence.wrapping_add(self.payload.len() as u32);
        let payload = self.payload.iter().map(|byte| byte.wrapping_add(1)).collect();
        Self { sequence, id: self.id.wrapping_add(1), payload, ..self.clone() }
    }

    /// Where the packet begins.
    pub(super) fn ip(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Where the transport's header begins.
    pub(super) fn transport(&self) -> usize {
        self.ip() + if self.ipv6 { 40 } else { 20 }
    }

    /// Bytes of all headers.
    pub(super) fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// How its checksum is described while it is partial, as [`Sample::frame`] leaves it.
    pub(super) fn partial(&self) -> Checksum {
        Checksum::Partial { start: self.transport() as u16, offset: if self.tcp { 16 } else { 6 } }
    }

    /// The bytes, with the sum of the pseudo header only.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend([&[][..], &[0x81, 0, 0x20, 7], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]][self.tags]);
        let protocol = if self.tcp { TCP } else { UDP };
        let len = self.headers() - self.transport() + self.payload.len();
        let addresses: Vec<u8> = if self.ipv6 {
            frame.extend([0x86, 0xdd, 0x60 | self.traffic >> 4, self.traffic << 4, 0, 5]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([protocol, self.hops]);
            [[0xfd; 15], [0xfe; 15]].iter().flat_map(|prefix| [&prefix[..], &[self.flow]].concat()).collect()
        } else {
            let mut head = vec![0x45, self.traffic];
            head.extend(((20 + len) as u16).to_be_bytes());
            head.extend(self.id.to_be_bytes());
            head.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hops, protocol]);
            let addresses = vec![10, 0, 0, self.flow, 10, 0, 1, 1];
            let check = !fold(sum(&head) + sum(&addresses));
            frame.extend([8, 0]);
            frame.extend(head);
            frame.extend(check.to_be_bytes());
            addresses
        };
        frame.extend(&addresses);
        frame.extend([0x10, self.flow, 0x01, 0xbb]);
        let pseudo = fold(sum(&addresses) + u64::from(protocol) + len as u64).to_be_bytes();
        if self.tcp {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend(self.acknowledged.to_be_bytes());
            frame.extend([((20 + self.options.len()) as u8) << 2, self.flags]);
            frame.extend(self.window.to_be_bytes());
            frame.extend(pseudo);
            frame.extend([0, 0]);
            frame.extend(&self.options);
        } else {
            frame.extend((len as u16).to_be_bytes());
            frame.extend(pseudo);
        }
        frame.extend(&self.payload);
        frame
    }

    /// The bytes, with the whole checksum.
    pub(super) fn whole(&self) -> Vec<u8> {
        completed(self.frame(), self.partial())
    }

    /// What a kernel puts before it if it is to be cut into frames of `size` bytes of payload.
    pub(super) fn header(&self, size: u16) -> VnetHeader {
        let gso = match (self.tcp, self.ipv6) {
            (true, false) => Gso::Tcp4,
            (true, true) => Gso::Tcp6,
            (false, _) => Gso::Udp,
        };
        let ecn = self.tcp && self.flags & CWR != 0;
        let superframe = Superframe { gso, ecn, size, headers: self.headers() as u16 };
        VnetHeader { checksum: self.partial(), superframe: Some(superframe) }
    }
}

/// `frame` with the checksum it lacks.
pub(super) fn completed(mut frame: Vec<u8>, checksum: Checksum) -> Vec<u8> {
    if let Checksum::Partial { start, offset } = checksum {
        assert!(complete(&mut frame, start, offset));
    }
    frame
}

/// A batch in which `frames` are to be delivered.
pub(super) fn batch(frames: impl IntoIterator<Item = (Vec<u8>, Checksum)>) -> Batch {
    let mut batch = Batch::new(1 << 20, 4096);
    for (frame, checksum) in frames {
        let slot = batch.push(&frame, None).expect("room");
        batch.slot_mut(slot).checksum = checksum;
        batch.slot_mut(slot).verdict = Verdict::Deliver;
    }
    batch
}

/// What the kernel is given for `batch`: header and bytes of each write.
pub(super) fn written(batch: &mut Batch, offloads: Offloads) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut coalescer = Coalescer::new();
    coalescer.coalesce(batch, offloads);
    let write = |delivery: super::coalesce::Delivery<'_>| {
        let mut slots = delivery.slots();
        let mut bytes = batch.bytes(slots.next().expect("at least one")).to_vec();
        slots.for_each(|slot| bytes.extend(&batch.bytes(slot)[delivery.headers..]));
        (delivery.header, bytes)
    };
    coalescer.deliveries().map(write).collect()
}

/// Any superframe that a kernel may hand out and that one merge can hold, and the payload in each of its frames.
pub(super) fn superframes() -> impl Strategy<Value = (Sample, u16)> {
    let kind = (any::<bool>(), any::<bool>(), 0..3usize, any::<u8>(), any::<bool>(), any::<u16>());
    let tcp = (any::<u32>(), any::<u32>(), any::<u16>(), 0..16u8, 0..11usize, any::<u8>());
    let size = (1..2000u16).prop_flat_map(|size| (Just(size), usize::from(size) + 1..=64 * usize::from(size)));
    (kind, tcp, size, any::<[u8; 2]>()).prop_map(|(kind, tcp, (size, len), [traffic, hops])| {
        let (ipv6, is_tcp, tags, flow, dont_fragment, id) = kind;
        let (sequence, acknowledged, window, flags, words, option) = tcp;
        let flags = [FIN, PSH, ECE, CWR].iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0);
        let flags = flags.fold(ACK, |all, (_, flag)| all | flag);
        let mut sample = Sample {
            ipv6,
            tcp: is_tcp,
            tags,
            flow,
            traffic,
            hops,
            dont_fragment,
            id,
            sequence,
            acknowledged,
            window,
            flags,
            options: vec![option; 4 * words],
            payload: Vec::new(),
        };
        let len = len.min(65_535 + sample.ip() - sample.headers());
        sample.payload = (0..len).map(|at| (at / 7 + at) as u8).collect();
        (sample, size)
    })
}
