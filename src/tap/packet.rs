//! Where the headers of a TCP or UDP frame are, and how they are made to say another length: what cutting and merging
//! have in common.

use crate::wire::Checksum;
use crate::wire::checksum::{TCP, Transport, fold, sum};
use crate::wire::ethernet::{ETHERTYPE_IPV4, FrameHead};

/// Bytes from the beginning of the TCP header.
pub(super) const TCP_SEQUENCE: usize = 4;
pub(super) const TCP_FLAGS: usize = 13;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// A whole TCP or UDP packet in a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) head: FrameHead,
    pub(super) transport: Transport,
    /// Where the payload begins, bytes from the start of the frame: everything before it is headers.
    pub(super) payload: usize,
}

impl Packet {
    /// Finds it; `None` for every other frame.
    #[inline]
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let head = FrameHead::read(frame)?;
        let transport = Transport::of(frame, &head)?;
        let (shortest, header) = match transport.protocol {
            TCP => (20, usize::from(frame[transport.start + 12] >> 4) * 4),
            _ => (8, 8),
        };
        let payload = transport.start + header;
        (header >= shortest && payload <= transport.end).then_some(Self { head, transport, payload })
    }

    /// Whether it is IPv4, not IPv6.
    pub(super) fn is_ipv4(&self) -> bool {
        self.head.ethertype == ETHERTYPE_IPV4
    }

    /// Whether it is TCP, not UDP.
    pub(super) fn is_tcp(&self) -> bool {
        self.transport.protocol == TCP
    }

    /// Bytes of payload.
    pub(super) fn payload_len(&self) -> usize {
        self.transport.end - self.payload
    }

    /// How its checksum is described if only the sum of the pseudo header is in the frame.
    pub(super) fn partial(&self) -> Checksum {
        // Both fit: the headers before the transport are at most 22 + 60 bytes.
        Checksum::Partial { start: self.transport.start as u16, offset: self.transport.checksum_offset() as u16 }
    }

    /// The identification of an IPv4 packet; 0 for IPv6.
    pub(super) fn id(&self, frame: &[u8]) -> u16 {
        if self.is_ipv4() { word(frame, self.head.payload + 4) } else { 0 }
    }

    /// Sums what does not depend on the length of the payload.
    pub(super) fn sums(&self, frame: &[u8]) -> Sums {
        let ip = &frame[self.head.payload..self.transport.start];
        let ip = match self.is_ipv4() {
            // All but the length, the identification and the checksum itself.
            true => [0, 6, 8].map(|at| u64::from(word(ip, at))).iter().sum::<u64>() + sum(&ip[12..]),
            false => 0,
        };
        Sums { ip, pseudo: self.transport.pseudo_sum(frame, &self.head, 0) }
    }

    /// Makes the headers in `frame` say that `len` bytes of payload follow: lengths, identification, the checksum of IPv4, and
    /// the sum of the pseudo header in place of the transport's checksum. `sums` is of the same headers.
    // Once a segment: left to itself the compiler now and then makes it a call, which costs a tenth of cutting.
    #[inline(always)]
    pub(super) fn write(&self, frame: &mut [u8], sums: &Sums, len: usize, id: u16) {
        let (ip, transport) = (self.head.payload, self.transport.start);
        let transport_len = self.payload - transport + len;
        if self.is_ipv4() {
            let total = transport - ip + transport_len;
            put(frame, ip + 2, total as u16);
            put(frame, ip + 4, id);
            put(frame, ip + 10, !fold(sums.ip + total as u64 + u64::from(id)));
        } else {
            put(frame, ip + 4, transport_len as u16);
        }
        if !self.is_tcp() {
            put(frame, transport + 4, transport_len as u16);
        }
        put(frame, transport + self.transport.checksum_offset(), fold(sums.pseudo + transport_len as u64));
    }
}

/// Sums over the headers of a packet without everything that tells the length: made once for all frames that share them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    ip: u64,
    pseudo: u64,
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian double word at `at`.
pub(super) fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
