//! Sealing: a frame becomes one datagram where it lies, or several pieces when the path is too narrow for it.
//!
//! The id of a cut frame is the first counter reserved for its pieces. It is unique in its session without anybody
//! having to agree on a counter, so the forwarding threads and the node may cut at the same time.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use crate::session::Transport;
use crate::wire::header::{HEADER_LEN, TAG_LEN};
use crate::wire::message::{HEADROOM, INNER_LEN, MAX_PARTS, TAILROOM};
use crate::wire::{Batch, Checksum, DropReason, Inner, Message, Verdict};

use super::fib::FibPeer;

/// Seals one frame for `peer` outside a batch: the datagrams to send to its endpoint, several if the path is too
/// narrow for one. For frames that waited for a session. `None` if there is no session, if it is exhausted, or if the
/// frame would need more than [`MAX_PARTS`] pieces.
pub fn seal_frame(peer: &FibPeer, frame: &[u8], now: Instant) -> Option<Vec<Vec<u8>>> {
    let transport = peer.transport.as_ref()?;
    let cut = Cut::of(frame.len(), peer.path_payload)?;
    let first = transport.reserve(cut.parts, now)?;
    transport.note_sent(now);
    if cut.parts == 1 {
        return Some(vec![seal(transport, first, Inner::Frame(Checksum::Unknown), frame)]);
    }
    let mut whole = vec![0; INNER_LEN];
    Inner::Frame(Checksum::Unknown).write(&mut whole);
    whole.extend_from_slice(frame);
    let piece = |(counter, inner, range): (u64, Inner, Range<usize>)| seal(transport, counter, inner, &whole[range]);
    Some(cut.pieces(first).map(piece).collect())
}

/// Seals one control message: the datagram to send. `None` if the session is exhausted.
pub fn seal_message(transport: &Transport, message: &Message, now: Instant) -> Option<Vec<u8>> {
    let counter = transport.reserve(1, now)?;
    Some(seal(transport, counter, Inner::Message, &message.encode()))
}

fn seal(transport: &Transport, counter: u64, inner: Inner, bytes: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADROOM + bytes.len() + TAILROOM];
    inner.write(&mut datagram[HEADER_LEN..]);
    datagram[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
    transport.seal_in_place(counter, &mut datagram);
    datagram
}

/// Why a frame was not sealed. Its bytes are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SealError {
    /// Counters or time of the session are exhausted.
    Exhausted,
    /// It cannot be sent at all.
    Drop(DropReason),
}

/// Seals the frame of slot `index` for `peer` where it lies (`Send`); if it must be cut, its pieces are appended and
/// nothing is left to do (`Done`).
pub(super) fn seal_slot(
    batch: &mut Batch,
    index: usize,
    peer: &FibPeer,
    transport: &Transport,
    now: Instant,
) -> Result<Verdict, SealError> {
    let cut = Cut::of(batch.bytes(index).len(), peer.path_payload).ok_or(SealError::Drop(DropReason::FrameTooLong))?;
    if cut.parts > 1 {
        append_pieces(batch, index, &cut, transport, peer.endpoint, now)?;
        return Ok(Verdict::Done);
    }
    let counter = transport.reserve(1, now).ok_or(SealError::Exhausted)?;
    seal_in_batch(batch, index, transport, counter, Inner::Frame(Checksum::Unknown), peer.endpoint);
    transport.note_sent(now);
    Ok(Verdict::Send(peer.endpoint))
}

/// Appends a sealed copy of the frame of slot `index` for `peer`, in pieces if need be; the slot itself stays as it is.
pub(super) fn seal_copy(
    batch: &mut Batch,
    index: usize,
    peer: &FibPeer,
    transport: &Transport,
    now: Instant,
) -> Result<(), SealError> {
    let len = batch.bytes(index).len();
    let cut = Cut::of(len, peer.path_payload).ok_or(SealError::Drop(DropReason::FrameTooLong))?;
    if cut.parts > 1 {
        return append_pieces(batch, index, &cut, transport, peer.endpoint, now);
    }
    if !batch.has_room(1, len) {
        return Err(SealError::Drop(DropReason::BatchFull));
    }
    let counter = transport.reserve(1, now).ok_or(SealError::Exhausted)?;
    let copy = batch.push_copy_of(index, 0..len).expect("there is room");
    seal_in_batch(batch, copy, transport, counter, Inner::Frame(Checksum::Unknown), peer.endpoint);
    transport.note_sent(now);
    Ok(())
}

/// All pieces or none.
fn append_pieces(
    batch: &mut Batch,
    index: usize,
    cut: &Cut,
    transport: &Transport,
    endpoint: SocketAddr,
    now: Instant,
) -> Result<(), SealError> {
    if !batch.has_room(cut.parts as usize, cut.whole) {
        return Err(SealError::Drop(DropReason::BatchFull));
    }
    let first = transport.reserve(cut.parts, now).ok_or(SealError::Exhausted)?;
    Inner::Frame(Checksum::Unknown).write(batch.grow(index, INNER_LEN, 0));
    for (counter, inner, range) in cut.pieces(first) {
        let piece = batch.push_copy_of(index, range).expect("there is room");
        seal_in_batch(batch, piece, transport, counter, inner, endpoint);
    }
    batch.shrink(index, INNER_LEN..cut.whole);
    transport.note_sent(now);
    Ok(())
}

fn seal_in_batch(
    batch: &mut Batch,
    index: usize,
    transport: &Transport,
    counter: u64,
    inner: Inner,
    endpoint: SocketAddr,
) {
    let datagram = batch.grow(index, HEADROOM, TAILROOM);
    inner.write(&mut datagram[HEADER_LEN..]);
    transport.seal_in_place(counter, datagram);
    batch.slot_mut(index).verdict = Verdict::Send(endpoint);
}

/// How a frame is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Pieces; 1 means that it goes whole.
    parts: u64,
    /// Bytes of the inner header and the frame.
    whole: usize,
}

impl Cut {
    /// For a frame of `len` bytes on a path that carries datagrams of `path_payload` bytes; `None` if it would take
    /// more than [`MAX_PARTS`] pieces.
    fn of(len: usize, path_payload: usize) -> Option<Self> {
        let whole = INNER_LEN + len;
        if HEADER_LEN + whole + TAG_LEN <= path_payload {
            return Some(Self { parts: 1, whole });
        }
        let room = path_payload.checked_sub(HEADROOM + TAILROOM).filter(|room| *room > 0)?;
        let parts = whole.div_ceil(room).max(2);
        (parts <= usize::from(MAX_PARTS)).then_some(Self { parts: parts as u64, whole })
    }

    /// Counter, inner header and range of every piece. All are of one length but the last, which is shorter, as UDP
    /// GSO wants it.
    fn pieces(&self, first: u64) -> impl Iterator<Item = (u64, Inner, Range<usize>)> + use<> {
        let Self { parts, whole } = *self;
        let len = whole.div_ceil(parts as usize);
        (0..parts).map(move |part| {
            let start = (part as usize * len).min(whole);
            let inner = Inner::Fragment { id: first as u32, part: part as u8, last: part + 1 == parts };
            (first + part, inner, start..(start + len).min(whole))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Side, pair, start};
    use super::*;

    fn open(side: &Side, datagram: &[u8], now: Instant) -> (Inner, Vec<u8>) {
        let mut bytes = datagram.to_vec();
        let len = side.transport.open_in_place(&mut bytes, now).expect("it opens");
        let inner = Inner::read(&bytes[HEADER_LEN..]).expect("an inner header");
        (inner, bytes[HEADROOM..HEADER_LEN + len].to_vec())
    }

    #[test]
    fn a_frame_that_waited_for_its_session_is_sealed_whole() {
        let now = start();
        let (a, b) = pair(now);
        let datagrams = seal_frame(&a.fib.peers[0], b"a frame of some length", now).expect("a session");
        assert_eq!(datagrams.len(), 1);
        assert_eq!(open(&b, &datagrams[0], now), (Inner::Frame(Checksum::Unknown), b"a frame of some length".to_vec()));
        assert_eq!(a.transport.last_sent().map(|at| at.max(now)), Some(now));
    }

    #[test]
    fn without_a_session_nothing_is_sealed() {
        let now = start();
        let (mut a, _) = pair(now);
        a.fib.peers[0].transport = None;
        assert_eq!(seal_frame(&a.fib.peers[0], b"a frame", now), None);
    }

    #[test]
    fn a_message_is_sealed_and_is_no_data() {
        let now = start();
        let (a, b) = pair(now);
        let message = Message::Ping { nonce: 7 };
        let datagram = seal_message(&a.transport, &message, now).expect("a session");
        assert_eq!(open(&b, &datagram, now), (Inner::Message, message.encode()));
        assert_eq!(a.transport.last_sent(), None);
    }

    #[test]
    fn a_frame_for_which_a_path_is_too_narrow_by_far_is_not_cut_to_crumbs() {
        assert_eq!(Cut::of(9018, 600), None);
        assert_eq!(Cut::of(60, 40), None);
        assert_eq!(Cut::of(60, 0), None);
        assert_eq!(Cut::of(9018, 1232).map(|cut| cut.parts), Some(8));
    }

    proptest! {
        #[test]
        fn the_pieces_of_a_cut_frame_fit_the_path_and_make_the_frame(len in 14usize..=9022, path in 600usize..1500) {
            let now = start();
            let (mut a, b) = pair(now);
            a.fib.peers[0].path_payload = path;
            let frame: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let Some(datagrams) = seal_frame(&a.fib.peers[0], &frame, now) else {
                prop_assert!((len + INNER_LEN).div_ceil(path - 40) > usize::from(MAX_PARTS));
                return Ok(());
            };
            prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= path));
            let mut whole = Vec::new();
            for (n, datagram) in datagrams.iter().enumerate() {
                let (inner, bytes) = open(&b, datagram, now);
                if datagrams.len() > 1 {
                    prop_assert_eq!(inner, Inner::Fragment { id: 0, part: n as u8, last: n + 1 == datagrams.len() });
                    prop_assert!(!bytes.is_empty());
                }
                whole.extend(bytes);
            }
            if datagrams.len() > 1 {
                prop_assert_eq!(Inner::read(&whole), Some(Inner::Frame(Checksum::Unknown)));
                whole.drain(..INNER_LEN);
            }
            prop_assert_eq!(whole, frame);
        }
    }
}
