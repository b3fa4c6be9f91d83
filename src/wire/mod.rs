//! Bytes: what stands where in a datagram, in a sealed message, in an Ethernet frame, and in the batch that carries them.
//!
//! A datagram is a 16-byte [`header`] and either a handshake message or sealed bytes. Sealed bytes open to an 8-byte
//! [`Inner`] header and a frame, a piece of one, a bundle of small ones, or a control [`Message`]. Parsers here take hostile bytes: they return
//! errors, they never panic. docs/protocol.md has the tables.

pub mod batch;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod header;
pub mod message;
pub mod relay;
pub mod socket;
pub mod stream;

pub use batch::{Batch, Counters, DropReason, Punt, Slot, Verdict};
pub use ecn::Ecn;
pub use header::{DatagramKind, Header, SHARE_BITS};
pub use message::{Checksum, Claim, Inner, Message, Open, Way};
