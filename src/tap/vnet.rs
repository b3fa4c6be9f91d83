//! The header that the kernel puts before a frame of a TAP with `IFF_VNET_HDR`, and wants before ours: `virtio_net_hdr`
//! (virtio 1.2, section 5.1.6), in its 10-byte form and the byte order of this machine.
//!
//! It says what is left to do: a checksum to complete, a superframe to cut into frames of `gso_size` bytes of payload.

use crate::wire::Checksum;

/// Its length, bytes.
pub const VNET_LEN: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Into what a superframe is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over either.
    Udp,
}

/// A superframe's part of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superframe {
    /// What it is.
    pub gso: Gso,
    /// Whether it begins with CWR, which only the first segment keeps (RFC 3168, section 6.1.2).
    pub ecn: bool,
    /// Bytes of payload in each frame but the last, which has at most as many. Never 0.
    pub size: u16,
    /// Bytes of all headers; a hint for how much the kernel keeps in one piece.
    pub headers: u16,
}

/// The header, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// What is known of the transport checksum.
    pub checksum: Checksum,
    /// Set for a superframe; its checksum is always partial.
    pub superframe: Option<Superframe>,
}

impl VnetHeader {
    /// Reads one; `None` for kinds and combinations that were not asked for.
    pub fn read(bytes: [u8; VNET_LEN]) -> Option<Self> {
        let [flags, kind, a, b, c, d, e, f, g, h] = bytes;
        let [headers, size, start, offset] = [[a, b], [c, d], [e, f], [g, h]].map(u16::from_ne_bytes);
        let checksum = match flags & (FLAG_NEEDS_CSUM | FLAG_DATA_VALID) {
            0 => Checksum::Unknown,
            FLAG_DATA_VALID => Checksum::Valid,
            _ => Checksum::Partial { start, offset },
        };
        let gso = match kind & !GSO_ECN {
            GSO_NONE => return Some(Self { checksum, superframe: None }),
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return None,
        };
        if size == 0 || !matches!(checksum, Checksum::Partial { .. }) {
            return None;
        }
        Some(Self { checksum, superframe: Some(Superframe { gso, ecn: kind & GSO_ECN != 0, size, headers }) })
    }

    /// The bytes.
    pub fn write(&self) -> [u8; VNET_LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Unknown => (0, 0, 0),
            Checksum::Valid => (FLAG_DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (FLAG_NEEDS_CSUM, start, offset),
        };
        let (kind, headers, size) = match self.superframe {
            None => (GSO_NONE, 0, 0),
            Some(Superframe { gso, ecn, size, headers }) => {
                let kind = match gso {
                    Gso::Tcp4 => GSO_TCPV4,
                    Gso::Tcp6 => GSO_TCPV6,
                    Gso::Udp => GSO_UDP_L4,
                };
                (if ecn { kind | GSO_ECN } else { kind }, headers, size)
            }
        };
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, value) in [(2, headers), (4, size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_written_again(bytes: [u8; VNET_LEN]) {
            if let Some(header) = VnetHeader::read(bytes) {
                prop_assert_eq!(VnetHeader::read(header.write()), Some(header));
            }
        }
    }

    #[test]
    fn a_superframe_of_a_kernel_is_understood() {
        let mut bytes = [1, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, value) in [(2, 66u16), (4, 1448), (6, 34), (8, 16)] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        let superframe = Superframe { gso: Gso::Tcp4, ecn: true, size: 1448, headers: 66 };
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        assert_eq!(VnetHeader::read(bytes), Some(VnetHeader { checksum, superframe: Some(superframe) }));
        assert_eq!(VnetHeader { checksum, superframe: Some(superframe) }.write(), bytes);
    }

    #[test]
    fn kinds_that_make_no_sense_are_refused() {
        assert_eq!(VnetHeader::read([0; VNET_LEN]), Some(VnetHeader::default()));
        assert_eq!(VnetHeader::read([1, 3, 0, 0, 9, 9, 0, 0, 0, 0]), None, "UFO was not asked for");
        assert_eq!(VnetHeader::read([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None, "segments of nothing");
        assert_eq!(VnetHeader::read([0, 1, 0, 0, 9, 9, 0, 0, 0, 0]), None, "segments without a checksum to complete");
    }
}
