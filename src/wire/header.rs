//! The 16 bytes before the ciphertext.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind |
//! | 1..4 | flags, zero in this version |
//! | 4..8 | receiver index, big endian (in an initiation: the sender's index); its owner may give its bits a meaning ([`SHARE_BITS`]) |
//! | 8..16 | counter, big endian (absent from handshake datagrams, see `session::handshake`) |
//!
//! The header is the associated data of the AEAD, so no bit of it can be changed on the way.

/// Length of [`Header`], bytes.
pub const HEADER_LEN: usize = 16;

/// The last bits of a receiver index, which are the same in every session with one peer: a receiver of several sockets
/// chooses one by them, so that neither a new session nor a new path of a peer lets its datagrams overtake each other. 16
/// values are enough for as many lanes, which are more than any laptop has cores to spare.
pub const SHARE_BITS: u32 = 0xf;

/// Length of an AEAD tag, bytes (ChaCha20-Poly1305 and AES-GCM alike).
pub const TAG_LEN: usize = 16;

/// First byte of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DatagramKind {
    /// First Noise message, initiator to responder.
    Initiation = 1,
    /// Second Noise message, responder to initiator.
    Response = 2,
    /// A cookie, responder under load to initiator.
    Cookie = 3,
    /// Sealed under a session's transport keys.
    Sealed = 4,
}

impl DatagramKind {
    /// The kind of a datagram by its first byte; `None` for an unknown kind or an empty datagram.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        match datagram.first()? {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::Cookie),
            4 => Some(Self::Sealed),
            _ => None,
        }
    }
}

/// The header of a sealed datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which session of the receiver.
    pub receiver: u32,
    /// Nonce of the AEAD, never used twice with one key.
    pub counter: u64,
}

impl Header {
    /// Writes the header into the first 16 bytes of `buffer`.
    pub fn write(&self, buffer: &mut [u8]) {
        buffer[0] = DatagramKind::Sealed as u8;
        buffer[1..4].fill(0);
        buffer[4..8].copy_from_slice(&self.receiver.to_be_bytes());
        buffer[8..16].copy_from_slice(&self.counter.to_be_bytes());
    }

    /// Reads the header of a sealed datagram; `None` if it is too short to be sealed, of another kind, or has flags
    /// that this version does not know.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
        if head[0] != DatagramKind::Sealed as u8 || head[1..4] != [0; 3] || rest.len() < TAG_LEN {
            return None;
        }
        let [_, _, _, _, a, b, c, d, counter @ ..] = *head;
        Some(Self { receiver: u32::from_be_bytes([a, b, c, d]), counter: u64::from_be_bytes(counter) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_survives_the_wire(receiver: u32, counter: u64) {
            let mut datagram = [0; HEADER_LEN + TAG_LEN];
            let header = Header { receiver, counter };
            header.write(&mut datagram);
            prop_assert_eq!(Header::read(&datagram), Some(header));
            prop_assert_eq!(Header::read(&datagram[..HEADER_LEN + TAG_LEN - 1]), None);
        }

        #[test]
        fn hostile_bytes_are_no_header_or_a_sound_one(datagram: Vec<u8>) {
            if Header::read(&datagram).is_some() {
                prop_assert_eq!(DatagramKind::of(&datagram), Some(DatagramKind::Sealed));
            }
        }
    }
}
