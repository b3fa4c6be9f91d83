//! Sealing: a frame becomes one datagram where it lies, several pieces when the path is too narrow for it, or a part of
//! a bundle when other small frames for the same peer are waiting beside it.
//!
//! The id of a cut frame is the first counter reserved for its pieces. It is unique in its session without anybody
//! having to agree on a counter, so the forwarding threads and the node may cut at the same time.

use std::ops::Range;
use std::time::Instant;

use crate::session::Transport;
use crate::wire::checksum::{self, Transport as Segment};
use crate::wire::ethernet::FrameHead;
use crate::wire::header::{HEADER_LEN, TAG_LEN};
use crate::wire::message::{ENTRY_LEN, HEADROOM, INNER_LEN, MAX_PARTS, TAILROOM};
use crate::wire::{Batch, Checksum, DropReason, Inner, Message, Verdict, relay};

use super::fib::FibPeer;
use super::mss;

/// Seals one frame for `peer` outside a batch: the datagrams to send to its endpoint, several if the path is too
/// narrow for one. For frames that waited for a session. `None` if there is no session, if it is exhausted, or if the
/// frame would need more than [`MAX_PARTS`] pieces.
pub fn seal_frame(peer: &FibPeer, frame: &[u8], now: Instant) -> Option<Vec<Vec<u8>>> {
    let transport = peer.transport.as_ref()?;
    let cut = Cut::of(frame.len(), peer.path_payload)?;
    let first = transport.reserve(cut.parts, now)?;
    transport.note_sent(now);
    let mut whole = vec![0; INNER_LEN];
    Inner::Frame(Checksum::Unknown).write(&mut whole);
    whole.extend_from_slice(frame);
    let frame = &mut whole[INNER_LEN..];
    if let Some(head) = FrameHead::read(frame)
        && let Some(segment) = Segment::of(frame, &head)
    {
        mss::clamp(frame, &segment, Checksum::Unknown, peer.longest_expected());
    }
    if cut.parts == 1 {
        return Some(vec![seal(transport, first, &whole)]);
    }
    let piece = |(counter, inner, range): (u64, Inner, Range<usize>)| {
        let mut plaintext = vec![0; INNER_LEN];
        inner.write(&mut plaintext);
        plaintext.extend_from_slice(&whole[range]);
        seal(transport, counter, &plaintext)
    };
    Some(cut.pieces(first).map(piece).collect())
}

/// Seals one control message: the datagram to send. `None` if the session is exhausted.
pub fn seal_message(transport: &Transport, message: &Message, now: Instant) -> Option<Vec<u8>> {
    let counter = transport.reserve(1, now)?;
    let mut plaintext = vec![0; INNER_LEN];
    Inner::Message.write(&mut plaintext);
    plaintext.extend(message.encode());
    Some(seal(transport, counter, &plaintext))
}

/// Seals one control message in a datagram of `len` bytes, or in a longer one if it does not fit: whether it arrives says
/// whether such datagrams do. `None` if the session is exhausted.
pub fn seal_padded(transport: &Transport, message: &Message, len: usize, now: Instant) -> Option<Vec<u8>> {
    let counter = transport.reserve(1, now)?;
    let message = message.encode();
    let mut plaintext = vec![0; INNER_LEN];
    // A message is far shorter than 64 KiB.
    Inner::Padded(message.len() as u16).write(&mut plaintext);
    plaintext.extend(message);
    plaintext.resize(plaintext.len().max(len.saturating_sub(HEADER_LEN + TAG_LEN)), 0);
    Some(seal(transport, counter, &plaintext))
}

/// Seals an inner header and what follows it.
fn seal(transport: &Transport, counter: u64, plaintext: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADER_LEN + plaintext.len() + TAG_LEN];
    datagram[HEADER_LEN..HEADER_LEN + plaintext.len()].copy_from_slice(plaintext);
    transport.seal_in_place(counter, &mut datagram);
    datagram
}

/// The checksum's state as a peer accepts it: left out only where every kernel leaves it out, in the TCP or UDP header right
/// behind the IP header. Elsewhere (a tunnel inside the frame) it is computed here. `None` if it lies outside the frame.
pub(super) fn plain(frame: &mut [u8], segment: Option<&Segment>, checksum: Checksum) -> Option<Checksum> {
    let Checksum::Partial { start, offset } = checksum else { return Some(checksum) };
    let usual = segment.is_some_and(|segment| is_usual(segment, start, offset));
    if usual { Some(checksum) } else { checksum::complete(frame, start, offset).then_some(Checksum::Valid) }
}

/// Whether a checksum that is left out is that of the segment, at its place.
pub(super) fn is_usual(segment: &Segment, start: u16, offset: u16) -> bool {
    usize::from(start) == segment.start && usize::from(offset) == segment.checksum_offset()
}

/// Computes the checksum of slot `index` if it was left out: whoever gets the frame next knows nothing of offloads.
pub(super) fn complete(batch: &mut Batch, index: usize) {
    if let Checksum::Partial { start, offset } = batch.slots()[index].checksum
        && checksum::complete(batch.bytes_mut(index), start, offset)
    {
        batch.slot_mut(index).checksum = Checksum::Valid;
    }
}

/// To whom a datagram goes, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// Whose session.
    pub(super) peer: &'a FibPeer,
    /// Its session.
    pub(super) transport: &'a Transport,
}

impl Target<'_> {
    /// Seals the frame of slot `index` where it lies, or, if it must be cut, its pieces behind it. `counter` is the first
    /// of as many as `cut` has parts.
    pub(super) fn seal_slot(&self, batch: &mut Batch, index: usize, cut: &Cut, counter: u64) -> Verdict {
        if cut.parts == 1 {
            let inner = Inner::Frame(batch.slots()[index].checksum);
            self.seal(batch, index, inner, counter);
            return batch.slots()[index].verdict;
        }
        match self.seal_pieces(batch, index, cut, counter) {
            true => Verdict::Done,
            false => Verdict::Drop(DropReason::BatchFull),
        }
    }

    /// Adds a sealed copy of the frame of slot `index` behind it, in pieces if need be; the slot itself stays as it is.
    /// False if there is no room.
    pub(super) fn seal_copy(&self, batch: &mut Batch, index: usize, cut: &Cut, counter: u64) -> bool {
        if cut.parts > 1 {
            return self.seal_pieces(batch, index, cut, counter);
        }
        let (checksum, ecn) = (batch.slots()[index].checksum, batch.slots()[index].ecn);
        let Some(copy) = batch.push_copy_of(index, 0..cut.whole - INNER_LEN, index) else { return false };
        batch.slot_mut(copy).ecn = ecn;
        self.seal(batch, copy, Inner::Frame(checksum), counter);
        true
    }

    /// Seals a bundle of the frames of `slots`, which have one congestion mark, behind slot `first`, with one counter. `len`
    /// is that of all entries.
    /// False if there is no room.
    pub(super) fn seal_bundle(
        &self,
        batch: &mut Batch,
        first: usize,
        slots: impl Iterator<Item = usize>,
        len: usize,
        counter: u64,
    ) -> bool {
        if batch.spare(len).is_none() {
            return false;
        }
        let (mut at, ecn) = (0, batch.slots()[first].ecn);
        for slot in slots {
            let frame = batch.bytes(slot).len();
            let checksum = batch.slots()[slot].checksum;
            let entry = &mut batch.spare(len).expect("it was there")[at..at + ENTRY_LEN];
            // A frame that is bundled is shorter than a datagram.
            entry[..2].copy_from_slice(&(frame as u16).to_be_bytes());
            Inner::Frame(checksum).write(&mut entry[2..]);
            batch.copy_to_spare(slot, at + ENTRY_LEN);
            at += ENTRY_LEN + frame;
            batch.slot_mut(slot).verdict = Verdict::Done;
        }
        debug_assert_eq!(at, len);
        let bundle = batch.commit_behind(len, first);
        batch.slot_mut(bundle).ecn = ecn;
        self.seal(batch, bundle, Inner::Bundle, counter);
        true
    }

    /// All pieces or none.
    fn seal_pieces(&self, batch: &mut Batch, index: usize, cut: &Cut, counter: u64) -> bool {
        if !batch.has_room(cut.parts as usize, cut.whole) {
            return false;
        }
        let (checksum, ecn) = (batch.slots()[index].checksum, batch.slots()[index].ecn);
        Inner::Frame(checksum).write(batch.grow(index, INNER_LEN, 0));
        let mut after = index;
        for (counter, inner, range) in cut.pieces(counter) {
            after = batch.push_copy_of(index, range, after).expect("there is room");
            batch.slot_mut(after).ecn = ecn;
            self.seal(batch, after, inner, counter);
        }
        batch.shrink(index, INNER_LEN..cut.whole);
        true
    }

    fn seal(&self, batch: &mut Batch, index: usize, inner: Inner, counter: u64) {
        let datagram = batch.grow(index, HEADROOM, TAILROOM);
        inner.write(&mut datagram[HEADER_LEN..]);
        self.transport.seal_in_place(counter, datagram);
        let endpoint = match self.peer.via {
            None => self.peer.endpoint,
            Some((relay, channel)) => {
                relay::mark(datagram, channel);
                relay
            }
        };
        batch.slot_mut(index).verdict = Verdict::Send(endpoint);
    }
}

/// How a frame is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Pieces; 1 means that it goes whole.
    pub(super) parts: u64,
    /// Bytes of the inner header and the frame.
    whole: usize,
}

impl Cut {
    /// For a frame of `len` bytes on a path that carries datagrams of `path_payload` bytes; `None` if it would take
    /// more than [`MAX_PARTS`] pieces.
    pub(super) fn of(len: usize, path_payload: usize) -> Option<Self> {
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
        let len = side.transport.open_in_place(&mut side.transport.window(), &mut bytes, now).expect("it opens");
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
    fn a_padded_message_is_as_long_as_it_is_to_be() {
        let now = start();
        let (a, b) = pair(now);
        let message = Message::Ping { nonce: 7 };
        let bytes = message.encode();
        for len in [0, 100, 1472, 9000] {
            let datagram = seal_padded(&a.transport, &message, len, now).expect("a session");
            assert_eq!(datagram.len(), len.max(HEADROOM + TAILROOM + bytes.len()));
            let (inner, content) = open(&b, &datagram, now);
            assert_eq!((inner, &content[..bytes.len()]), (Inner::Padded(bytes.len() as u16), &bytes[..]));
        }
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
