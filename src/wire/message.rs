//! What a sealed datagram holds: an 8-byte inner header, then a frame, a piece of a frame, or a control message.
//!
//! | bytes | frame | fragment | message |
//! |---|---|---|---|
//! | 0 | 1 | 2 | 3 |
//! | 1 | checksum flags, zero | part, from 0; bit 7 marks the last | 0 |
//! | 2..4 | `csum_start`, zero | 0 | 0 |
//! | 4..8 | `csum_offset` (2), 0 (2) | id of the cut frame | 0 |
//!
//! The pieces of a cut frame, put together, are again an inner header and a frame.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::identity::canonical::{self, CodecError};

use super::header::{HEADER_LEN, TAG_LEN};

/// Length of the inner header, bytes.
pub const INNER_LEN: usize = 8;

/// Bytes before a frame in a sealed datagram: what a batch keeps free as headroom.
pub const HEADROOM: usize = HEADER_LEN + INNER_LEN;

/// Bytes after a frame in a sealed datagram: what a batch keeps free as tailroom.
pub const TAILROOM: usize = TAG_LEN;

/// Most pieces a frame is cut into: 16 pieces of a 1280-byte path carry a 9000-byte frame twice over; more would let
/// one lost datagram cost even more.
pub const MAX_PARTS: u8 = 16;

/// Largest encoded [`Message`]: a record (1 KiB) and its frame. It fits any path of IPv6's minimum MTU.
pub const MAX_MESSAGE: usize = 1100;

/// The inner header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inner {
    /// A whole Ethernet frame follows.
    Frame,
    /// A piece of an inner header and frame follows.
    Fragment {
        /// Which cut frame, chosen by the sender, per session.
        id: u32,
        /// Which piece, below [`MAX_PARTS`].
        part: u8,
        /// Whether it is the last piece.
        last: bool,
    },
    /// A canonical [`Message`] follows.
    Message,
}

impl Inner {
    /// Writes the inner header into the first 8 bytes of `buffer`.
    pub fn write(&self, buffer: &mut [u8]) {
        buffer[..INNER_LEN].fill(0);
        match *self {
            Self::Frame => buffer[0] = 1,
            Self::Fragment { id, part, last } => {
                buffer[0] = 2;
                buffer[1] = part | if last { 0x80 } else { 0 };
                buffer[4..8].copy_from_slice(&id.to_be_bytes());
            }
            Self::Message => buffer[0] = 3,
        }
    }

    /// Reads the inner header; `None` if the bytes are none of this version.
    pub fn read(plaintext: &[u8]) -> Option<Self> {
        match *plaintext.first_chunk::<INNER_LEN>()? {
            [1, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Frame),
            [2, part, 0, 0, a, b, c, d] => {
                let (part, last) = (part & 0x7f, part & 0x80 != 0);
                (part < MAX_PARTS).then_some(Self::Fragment { id: u32::from_be_bytes([a, b, c, d]), part, last })
            }
            [3, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Message),
            _ => None,
        }
    }
}

/// Control messages between two nodes with a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Answer with [`Message::Pong`] of the same nonce.
    Ping {
        /// Chosen by the sender.
        nonce: u64,
    },
    /// The answer to a ping.
    Pong {
        /// From the ping.
        nonce: u64,
        /// Where the ping came from, as seen here: the sender's endpoint from outside.
        observed: SocketAddr,
    },
    /// A signed record, pushed because it changed or because the peer may lack it: at most 1 KiB.
    Record(Vec<u8>),
    /// The sender stops; forget the session, not the member.
    Goodbye,
    /// Nothing: confirms a session or keeps it warm.
    Keepalive,
}

impl Message {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// The message of `bytes`.
    ///
    /// # Errors
    /// As [`canonical::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        canonical::decode(bytes, MAX_MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_inner_header_survives_the_wire() {
        for inner in [Inner::Frame, Inner::Message, Inner::Fragment { id: 0xdead_beef, part: 15, last: true }] {
            let mut buffer = [0xff; INNER_LEN];
            inner.write(&mut buffer);
            assert_eq!(Inner::read(&buffer), Some(inner));
        }
    }

    #[test]
    fn unknown_kinds_flags_and_parts_are_no_inner_header() {
        for bytes in [[0u8; 8], [4, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [2, 16, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Inner::read(&bytes), None, "{bytes:?}");
        }
        assert_eq!(Inner::read(&[1; 7]), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Inner::read(&bytes);
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
