//! What a sealed datagram holds: an 8-byte inner header, then a frame, a piece of a frame, a control message, alone or filled
//! up to a length, or a bundle of small frames.
//!
//! | bytes | frame | fragment | message | bundle | padded message |
//! |---|---|---|---|---|---|
//! | 0 | 1 | 2 | 3 | 4 | 5 |
//! | 1 | checksum: 0 unknown, 1 partial, 2 valid | part, from 0; bit 7 marks the last | 0 | 0 | 0 |
//! | 2..4 | `csum_start`, if partial | 0 | 0 | 0 | length of the message |
//! | 4..6 | `csum_offset`, if partial | id of the cut frame (4..8) | 0 | 0 | 0 |
//! | 6..8 | 0 | | 0 | 0 | 0 |
//!
//! The pieces of a cut frame, put together, are again an inner header and a frame. A bundle is a sequence of entries to its
//! very end: the length of the frame (2), an inner header of a frame (8), the frame.

use std::net::SocketAddr;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::identity::canonical::{self, CodecError};
use crate::identity::{Mac, PeerId};

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
pub const MAX_MESSAGE: usize = 1190;

/// Length of what stands before each frame of a bundle: its length and its inner header, bytes.
pub const ENTRY_LEN: usize = 2 + INNER_LEN;

/// What is known of the transport checksum of a frame: nobody computes it where the AEAD proves the bytes already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Nothing: it is in the frame, and nobody has looked at it.
    #[default]
    Unknown,
    /// Only the sum of the pseudo header is in the frame. Whoever puts it on a wire adds the sum of the bytes from `start`
    /// on, and stores it at `start + offset` (virtio 1.2, section 5.1.6.2).
    Partial {
        /// `csum_start`: bytes from the beginning of the frame.
        start: u16,
        /// `csum_offset`: bytes from `start`.
        offset: u16,
    },
    /// It is in the frame, and the kernel that the frame came from has verified it.
    Valid,
}

/// The inner header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inner {
    /// A whole Ethernet frame follows, with what its sender knows of its checksum.
    Frame(Checksum),
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
    /// Several small frames follow, each behind its length and its own inner header: see [`entry`].
    Bundle,
    /// A canonical [`Message`] of so many bytes follows, and then what nobody looks at: that a datagram of this length has
    /// arrived is what is to be known.
    Padded(u16),
}

/// The first entry of what is left of a bundle: the frame's checksum and where its bytes are in `rest`. `None` if it is
/// none, or ends too early.
pub fn entry(rest: &[u8]) -> Option<(Checksum, Range<usize>)> {
    let (len, inner) = rest.split_first_chunk::<2>()?;
    let end = ENTRY_LEN + usize::from(u16::from_be_bytes(*len));
    match Inner::read(inner)? {
        Inner::Frame(checksum) if end <= rest.len() => Some((checksum, ENTRY_LEN..end)),
        Inner::Frame(_) | Inner::Fragment { .. } | Inner::Message | Inner::Bundle | Inner::Padded(_) => None,
    }
}

impl Inner {
    /// Writes the inner header into the first 8 bytes of `buffer`.
    pub fn write(&self, buffer: &mut [u8]) {
        buffer[..INNER_LEN].fill(0);
        match *self {
            Self::Frame(checksum) => {
                buffer[0] = 1;
                match checksum {
                    Checksum::Unknown => {}
                    Checksum::Partial { start, offset } => {
                        buffer[1] = 1;
                        buffer[2..4].copy_from_slice(&start.to_be_bytes());
                        buffer[4..6].copy_from_slice(&offset.to_be_bytes());
                    }
                    Checksum::Valid => buffer[1] = 2,
                }
            }
            Self::Fragment { id, part, last } => {
                buffer[0] = 2;
                buffer[1] = part | if last { 0x80 } else { 0 };
                buffer[4..8].copy_from_slice(&id.to_be_bytes());
            }
            Self::Message => buffer[0] = 3,
            Self::Bundle => buffer[0] = 4,
            Self::Padded(len) => {
                buffer[0] = 5;
                buffer[2..4].copy_from_slice(&len.to_be_bytes());
            }
        }
    }

    /// Reads the inner header; `None` if the bytes are none of this version.
    pub fn read(plaintext: &[u8]) -> Option<Self> {
        match *plaintext.first_chunk::<INNER_LEN>()? {
            [1, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Frame(Checksum::Unknown)),
            [1, 1, a, b, c, d, 0, 0] => {
                let (start, offset) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                Some(Self::Frame(Checksum::Partial { start, offset }))
            }
            [1, 2, 0, 0, 0, 0, 0, 0] => Some(Self::Frame(Checksum::Valid)),
            [2, part, 0, 0, a, b, c, d] => {
                let (part, last) = (part & 0x7f, part & 0x80 != 0);
                (part < MAX_PARTS).then_some(Self::Fragment { id: u32::from_be_bytes([a, b, c, d]), part, last })
            }
            [3, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Message),
            [4, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Bundle),
            [5, 0, a, b, 0, 0, 0, 0] => Some(Self::Padded(u16::from_be_bytes([a, b]))),
            _ => None,
        }
    }
}

/// Sockets that one node offers as witnesses: with its first that makes three destinations, which tell a sequence from chance.
pub const MAX_WITNESSES: usize = 2;

/// What a NAT will do with the next new mapping (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forecast {
    /// It maps by the source alone.
    Independent {
        /// Where the first socket is seen.
        at: SocketAddr,
    },
    /// Each destination gets the next port.
    Sequential {
        /// The last mapping.
        last: SocketAddr,
        /// From port to port; not 0.
        step: i16,
    },
    /// Each destination gets any port.
    Random {
        /// One of them.
        near: SocketAddr,
    },
    /// It lets no UDP pass.
    Blocked,
}

/// What lies between one end of a relayed path and the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Relays on it, the sender of the message included.
    pub relays: u8,
    /// The round trip from the sender to the other end, as the relays have measured its parts, microseconds.
    pub rtt: u32,
}

/// The question for a relayed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Who wants to speak: the sender, or the first who has asked.
    pub origin: PeerId,
    /// With whom.
    pub target: PeerId,
    /// Of 24 bits, chosen by the sender.
    pub channel: u32,
    /// The relays so far, the sender the last: nobody is asked twice.
    pub passed: Vec<PeerId>,
    /// The round trip from the sender to the origin, microseconds.
    pub rtt: u32,
}

/// Stations in one [`Claim`]: what fits [`MAX_MESSAGE`], 6 bytes each behind at most 25.
pub const MAX_CLAIMED: usize = 192;

/// Which stations are behind the sender, of all MACs from the first to the last. It says so of this part alone, and all of it: so it
/// needs no other to be understood, may be told again, and takes back what an earlier one said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Grows with each change of what is behind the sender, across restarts too.
    pub sequence: u64,
    /// Of the part.
    pub first: Mac,
    /// Of the part.
    pub last: Mac,
    /// In their order, each once; at most [`MAX_CLAIMED`].
    pub stations: Vec<Mac>,
}

impl Claim {
    /// Whether it is as an honest node makes it.
    pub fn is_sound(&self) -> bool {
        let within = |mac: &Mac| self.first <= *mac && *mac <= self.last;
        let sound = |mac: &Mac| within(mac) && !mac.is_group() && *mac != Mac([0; 6]);
        self.first <= self.last
            && self.stations.len() <= MAX_CLAIMED
            && self.stations.is_sorted_by(|a, b| a < b)
            && self.stations.iter().all(sound)
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
    /// To a relay: I want to speak with a member through you, or somebody wants to through me. Mark what comes from there with
    /// `channel` ([`super::relay`]). Sent again, it asks whether the way still leads there.
    Open(Open),
    /// From a relay, in answer to [`Message::Open`]: it leads there. Mark what goes there with `mark`.
    Opened {
        /// Of the question: chosen by whoever asked.
        channel: u32,
        /// Of 24 bits, chosen by the relay.
        mark: u32,
        /// What is between the asker and the other end.
        way: Way,
    },
    /// Over a relay: I have opened my NAT for all your candidates. Do the same, and knock.
    Punch,
    /// From a relay, in answer to [`Message::Open`]: not to this member, not now.
    Refused {
        /// Of the question.
        channel: u32,
    },
    /// From a relay: `peer` wants to speak with you through me. Mark what goes there with `channel`.
    Offer {
        /// At the other end.
        peer: PeerId,
        /// Of 24 bits, chosen by the relay.
        channel: u32,
        /// What is between here and the other end.
        way: Way,
    },
    /// To a relay, in answer to [`Message::Offer`]: mark what comes from there with `mark`.
    Accept {
        /// Of the offer.
        channel: u32,
        /// Of 24 bits, chosen by the sender.
        mark: u32,
    },
    /// To a member who has asked for `peer` in vain: I have found a way there, ask again.
    Reached {
        /// Who was asked for.
        peer: PeerId,
    },
    /// To one who sees us from outside: I want to know how my NAT maps. Where else do you listen?
    AskWitness,
    /// The answer: ports of other sockets at the same address.
    Witness {
        /// At most [`MAX_WITNESSES`].
        ports: Vec<u16>,
    },
    /// As [`Message::Ping`], from a socket that is no path of ours: only say where it came from.
    Survey {
        /// Chosen by the sender.
        nonce: u64,
    },
    /// Over a relay: what my NAT will do with the next new mapping. Tell me of yours, and we both act on it.
    Forecast(Forecast),
    /// The answer to [`Message::Punch`]: my NAT is open for you too.
    Punching,
    /// From a fresh socket that has sent to nobody else: have me knocked at from elsewhere, at the place that this came from, so that I
    /// learn whom my NAT lets in.
    Filtering {
        /// Chosen by the sender.
        nonce: u64,
    },
    /// To a third member: `peer` wants to know whether you get in at `at`. Only where it is known to be.
    Knock {
        /// Who has asked.
        peer: PeerId,
        /// Where its question came from.
        at: SocketAddr,
        /// Of the question.
        nonce: u64,
    },
    /// To where [`Message::Filtering`] came from, from elsewhere: it gets in.
    Knocked {
        /// Of the question.
        nonce: u64,
    },
    /// To who has asked, by the usual path: I have sent [`Message::Knocked`].
    Knocking {
        /// Of the question.
        nonce: u64,
    },
    /// What the sender's ledger is.
    Ledger {
        /// Of all its statements.
        digest: [u8; 16],
        /// The first half of the fingerprint of the newest secret that it knows.
        secret: [u8; 16],
    },
    /// In answer to a [`Message::Ledger`] that is not ours: the digests of the parts of the sender's. Send what it may lack.
    Buckets(Vec<u8>),
    /// A signed statement about members: pushed because it is news, or because the peer may lack it. At most 1 KiB.
    Statement(Vec<u8>),
    /// The network's newest secret: the statement about it, and itself.
    Secret {
        /// A statement.
        epoch: Vec<u8>,
        /// 32 bytes.
        secret: [u8; 32],
    },
    /// An encapsulation key of ML-KEM-768: answer it, and the next session has what we agree on mixed in.
    KemKey(Vec<u8>),
    /// The ciphertext in answer.
    KemAnswer(Vec<u8>),
    /// From a bridge: the foreign stations behind it.
    Stations(Claim),
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
        let checksums = [Checksum::Unknown, Checksum::Valid, Checksum::Partial { start: 34, offset: 16 }];
        let fragment = Inner::Fragment { id: 0xdead_beef, part: 15, last: true };
        let others = [Inner::Message, Inner::Bundle, Inner::Padded(0x1234), fragment];
        for inner in checksums.map(Inner::Frame).into_iter().chain(others) {
            let mut buffer = [0xff; INNER_LEN];
            inner.write(&mut buffer);
            assert_eq!(Inner::read(&buffer), Some(inner));
        }
    }

    #[test]
    fn unknown_kinds_flags_and_parts_are_no_inner_header() {
        for bytes in [
            [0u8; 8],
            [6, 0, 0, 0, 0, 0, 0, 0],
            [5, 1, 0, 9, 0, 0, 0, 0],
            [5, 0, 0, 9, 0, 0, 0, 1],
            [4, 1, 0, 0, 0, 0, 0, 0],
            [1, 3, 0, 0, 0, 0, 0, 0],
            [1, 2, 0, 1, 0, 0, 0, 0],
            [1, 1, 0, 1, 0, 1, 0, 1],
            [2, 16, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Inner::read(&bytes), None, "{bytes:?}");
        }
        assert_eq!(Inner::read(&[1; 7]), None);
    }

    #[test]
    fn a_bundle_is_read_entry_by_entry() {
        let mut bundle = vec![0, 3];
        bundle.extend([1, 2, 0, 0, 0, 0, 0, 0]);
        bundle.extend(b"abc");
        assert_eq!(entry(&bundle), Some((Checksum::Valid, 10..13)));
        assert_eq!(entry(&bundle[..12]), None, "cut short");
        bundle[2] = 3;
        assert_eq!(entry(&bundle), None, "only frames are bundled");
    }

    #[test]
    fn the_longest_claim_is_a_message() {
        let stations: Vec<_> = (0..MAX_CLAIMED as u8).map(|n| Mac([0xfc, 0, 0, 0, 0, n])).collect();
        let mut claim = Claim { sequence: u64::MAX, first: Mac([0xfc; 6]), last: Mac::BROADCAST, stations };
        assert!(Message::Stations(claim.clone()).encode().len() <= MAX_MESSAGE);
        assert!(!claim.is_sound(), "outside of its part");
        claim.first = Mac([0; 6]);
        assert!(claim.is_sound());
        claim.stations.push(Mac::BROADCAST);
        assert!(!claim.is_sound(), "too many");
        claim.stations.truncate(2);
        claim.stations.swap(0, 1);
        assert!(!claim.is_sound(), "out of order");
        claim.stations[1] = claim.stations[0];
        assert!(!claim.is_sound(), "twice");
        for mac in [Mac([0; 6]), Mac([1, 0, 0x5e, 0, 0, 1])] {
            claim.stations = vec![mac];
            assert!(!claim.is_sound(), "no station's: {mac}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Inner::read(&bytes);
            if let Some((_, range)) = entry(&bytes) {
                prop_assert!(bytes.get(range).is_some());
            }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
