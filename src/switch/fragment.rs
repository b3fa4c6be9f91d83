//! Rejoining: the pieces of a cut frame are kept until all are there, or until it is too late.
//!
//! Pieces are kept one behind the other as they come, with a table of where each lies; so they can neither overlap nor
//! leave a hole, and a hostile sender has no offset to lie about. Memory is bounded per peer and in total, and a peer
//! that leaves its frames unfinished displaces its own first.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::identity::PeerId;
use crate::wire::message::{INNER_LEN, MAX_PARTS};

use super::fib::FibPeer;
use super::flood::is_one_of;

/// How long the first piece waits for the last. All leave in one batch; what parts them is reordering and jitter, which
/// is tens of milliseconds even on a bad mobile link. Twice as long would only keep the leftovers of lost pieces.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Unfinished frames of one peer. In order there is one at a time; a path that reorders by 5 ms at 100 Mbit/s of cut
/// 1500-byte frames has about 40. Lost pieces leave theirs behind until newer ones displace them.
const PER_PEER: usize = 64;

/// Bytes of all unfinished frames: 2700 at an MTU of 1500, 450 at 9000, so some tens of peers can reorder at once. Twice
/// as much would help nobody and be felt on a small router.
const TOTAL_BYTES: usize = 4 << 20;

/// Buffers kept for reuse, so that a stream of cut frames does not allocate for each.
const SPARES: usize = 16;

/// A piece as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Our index of the session that it came by: ids are unique in a session only.
    pub session: u32,
    /// Which frame.
    pub id: u32,
    /// Which piece of it.
    pub part: u8,
    /// Whether it is the last.
    pub last: bool,
    /// Whether a router marked its datagram as congested.
    pub congested: bool,
    /// What it carries.
    pub bytes: &'a [u8],
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// It waits for its siblings.
    Waiting,
    /// It does not fit its siblings, or is too long with them.
    Refused,
    /// It was the one that was missing.
    Complete(Whole),
}

/// All pieces of a cut frame. Hand it back to [`Reassembly::recycle`].
#[derive(Debug, PartialEq, Eq)]
pub struct Whole(Partial);

impl Whole {
    /// Bytes of the inner header and the frame.
    pub fn len(&self) -> usize {
        self.0.buffer.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.buffer.is_empty()
    }

    /// Whether any piece came marked as congested (RFC 3168, section 5.3).
    pub fn is_congested(&self) -> bool {
        self.0.congested
    }

    /// Puts the pieces in their order into `target`, which is [`Whole::len`] bytes long.
    pub fn copy_to(&self, target: &mut [u8]) {
        let mut at = 0;
        for (start, end) in self.0.pieces.iter().flatten() {
            let piece = &self.0.buffer[usize::from(*start)..usize::from(*end)];
            target[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
    }
}

/// A frame of which some pieces are here.
#[derive(Debug, PartialEq, Eq)]
struct Partial {
    session: u32,
    id: u32,
    since: Instant,
    congested: bool,
    buffer: Vec<u8>,
    /// Where each piece lies in the buffer.
    pieces: [Option<(u16, u16)>; MAX_PARTS as usize],
    /// Which piece is the last, once it is here.
    last: Option<u8>,
}

impl Partial {
    fn arrived(&self) -> u64 {
        self.pieces.iter().flatten().count() as u64
    }

    fn is_complete(&self) -> bool {
        self.last.is_some_and(|last| self.arrived() == u64::from(last) + 1)
    }

    /// Keeps a piece if it fits the others.
    fn keep(&mut self, piece: &Piece<'_>, longest: usize) -> bool {
        let part = usize::from(piece.part);
        let Range { start, end } = self.buffer.len()..self.buffer.len() + piece.bytes.len();
        let beyond = |last: u8| self.pieces[usize::from(last) + 1..].iter().any(Option::is_some);
        let fits = !piece.bytes.is_empty()
            && end <= longest
            && self.pieces[part].is_none()
            && self.last.is_none_or(|last| piece.part < last && !piece.last)
            && !(piece.last && beyond(piece.part));
        let range = u16::try_from(start).ok().zip(u16::try_from(end).ok()).filter(|_| fits);
        let Some(range) = range else { return false };
        self.buffer.extend_from_slice(piece.bytes);
        self.pieces[part] = Some(range);
        self.congested |= piece.congested;
        if piece.last {
            self.last = Some(piece.part);
        }
        true
    }
}

/// The unfinished frames of all peers.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// Of each peer, the oldest first.
    peers: BTreeMap<PeerId, VecDeque<Partial>>,
    /// Of all peers.
    count: usize,
    /// No frame is older than this; `None` if there is none.
    oldest: Option<Instant>,
    spares: Vec<Vec<u8>>,
    lost: u64,
}

impl Reassembly {
    /// Keeps a piece from `peer`, who is one of `peers`. `mtu` is the TAP's.
    pub fn keep(&mut self, peer: &PeerId, piece: Piece<'_>, peers: &[FibPeer], mtu: usize, now: Instant) -> Kept {
        let longest = INNER_LEN + super::longest_frame(mtu);
        let frames = self.peers.get(peer);
        let known = frames.and_then(|frames| {
            // The newest is the likeliest.
            frames.iter().rposition(|frame| (frame.session, frame.id) == (piece.session, piece.id))
        });
        let at = match known {
            Some(at) => at,
            // Also before a buffer is taken: nothing is kept of a piece that never fits.
            None if piece.bytes.is_empty() || piece.bytes.len() > longest => return Kept::Refused,
            None => self.begin(peer, &piece, peers, longest, now),
        };
        let frames = self.peers.get_mut(peer).expect("its frame was found or begun");
        if !frames[at].keep(&piece, longest) {
            return Kept::Refused;
        }
        if !frames[at].is_complete() {
            return Kept::Waiting;
        }
        let frame = frames.remove(at).expect("it was there");
        self.count -= 1;
        Kept::Complete(Whole(frame))
    }

    /// Makes room for a frame and returns its place among the peer's.
    fn begin(&mut self, peer: &PeerId, piece: &Piece<'_>, peers: &[FibPeer], longest: usize, now: Instant) -> usize {
        if !self.peers.contains_key(peer) && self.peers.len() >= peers.len() {
            self.forget_strangers(peers);
        }
        if self.peers.get(peer).is_some_and(|frames| frames.len() >= PER_PEER) {
            self.displace(peer);
        }
        if self.count >= (TOTAL_BYTES / longest).max(1) {
            let greediest = self.peers.iter().max_by_key(|(_, frames)| frames.len()).map(|(peer, _)| *peer);
            self.displace(&greediest.expect("somebody has frames if there are frames"));
        }
        let mut buffer = self.spares.pop().unwrap_or_default();
        buffer.reserve_exact(longest);
        let frame = Partial {
            session: piece.session,
            id: piece.id,
            since: now,
            congested: false,
            buffer,
            pieces: [None; MAX_PARTS as usize],
            last: None,
        };
        self.count += 1;
        self.oldest = self.oldest.or(Some(now));
        let frames = self.peers.entry(*peer).or_default();
        frames.push_back(frame);
        frames.len() - 1
    }

    /// Gives up the oldest frame of `peer`.
    fn displace(&mut self, peer: &PeerId) {
        if let Some(frame) = self.peers.get_mut(peer).and_then(VecDeque::pop_front) {
            self.give_up(frame);
        }
    }

    fn give_up(&mut self, frame: Partial) {
        self.count -= 1;
        self.lost += frame.arrived();
        self.recycle(Whole(frame));
    }

    fn forget_strangers(&mut self, peers: &[FibPeer]) {
        let strangers: Vec<_> = self.peers.keys().filter(|peer| !is_one_of(peers, peer)).copied().collect();
        for peer in strangers {
            for frame in self.peers.remove(&peer).unwrap_or_default() {
                self.give_up(frame);
            }
        }
    }

    /// Gives up every frame whose time is over. Costs nothing while none can be.
    pub fn expire(&mut self, now: Instant) {
        let over = |since: Instant| now.saturating_duration_since(since) >= TIMEOUT;
        if !self.oldest.is_some_and(over) {
            return;
        }
        let mut over_now = Vec::new();
        for frames in self.peers.values_mut() {
            while frames.front().is_some_and(|frame| over(frame.since)) {
                over_now.extend(frames.pop_front());
            }
        }
        for frame in over_now {
            self.give_up(frame);
        }
        self.oldest = self.peers.values().filter_map(|frames| frames.front()).map(|frame| frame.since).min();
        if self.oldest.is_none() {
            // Idle: nothing is kept but the map's entries, of which there are no more than members.
            self.spares.clear();
        }
    }

    /// Takes back the buffer of a frame that was carried out.
    pub fn recycle(&mut self, Whole(frame): Whole) {
        if self.spares.len() < SPARES {
            let mut buffer = frame.buffer;
            buffer.clear();
            self.spares.push(buffer);
        }
    }

    /// How many pieces were given up since this was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// How many frames are unfinished.
    pub fn unfinished(&self) -> usize {
        self.count
    }

    /// Bytes allocated for frames.
    pub fn allocated(&self) -> usize {
        let unfinished = self.peers.values().flatten().map(|frame| frame.buffer.capacity());
        unfinished.chain(self.spares.iter().map(Vec::capacity)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{alone, meet, start};
    use super::*;

    const MTU: usize = 1500;

    fn piece(id: u32, part: u8, last: bool, bytes: &[u8]) -> Piece<'_> {
        Piece { session: 1, id, part, last, congested: part == 1, bytes }
    }

    struct Bench {
        reassembly: Reassembly,
        peers: Vec<FibPeer>,
        now: Instant,
    }

    impl Bench {
        fn new(members: u8) -> Self {
            let mut fib = alone(1, MTU);
            (2..2 + members).for_each(|n| meet(&mut fib, n, None));
            Self { reassembly: Reassembly::default(), peers: fib.peers, now: start() }
        }

        fn keep_from(&mut self, peer: usize, piece: Piece<'_>) -> Kept {
            let peer = self.peers[peer].peer;
            self.reassembly.keep(&peer, piece, &self.peers, MTU, self.now)
        }

        fn keep(&mut self, piece: Piece<'_>) -> Kept {
            self.keep_from(0, piece)
        }
    }

    fn bytes(kept: Kept) -> Vec<u8> {
        let Kept::Complete(whole) = kept else { panic!("{kept:?} instead of a whole frame") };
        let mut bytes = vec![0; whole.len()];
        whole.copy_to(&mut bytes);
        bytes
    }

    #[test]
    fn pieces_in_any_order_make_the_frame() {
        let mut bench = Bench::new(1);
        assert_eq!(bench.keep(piece(5, 2, true, b"c")), Kept::Waiting);
        assert_eq!(bench.keep(piece(5, 0, false, b"aaa")), Kept::Waiting);
        let whole = bench.keep(piece(5, 1, false, b"bbb"));
        assert!(matches!(&whole, Kept::Complete(whole) if whole.is_congested()), "one mark is enough");
        assert_eq!(bytes(whole), b"aaabbbc");
        assert_eq!(bench.reassembly.unfinished(), 0);
    }

    #[test]
    fn pieces_of_two_frames_sessions_and_peers_do_not_mix() {
        let mut bench = Bench::new(2);
        assert_eq!(bench.keep(piece(5, 0, false, b"a")), Kept::Waiting);
        assert_eq!(bench.keep(piece(6, 1, true, b"x")), Kept::Waiting);
        assert_eq!(bench.keep(Piece { session: 2, ..piece(5, 1, true, b"y") }), Kept::Waiting);
        assert_eq!(bench.keep_from(1, piece(5, 1, true, b"z")), Kept::Waiting);
        assert_eq!(bytes(bench.keep(piece(5, 1, true, b"b"))), b"ab");
        assert_eq!(bench.reassembly.unfinished(), 3);
    }

    #[test]
    fn pieces_that_do_not_fit_their_siblings_are_refused() {
        let mut bench = Bench::new(1);
        assert_eq!(bench.keep(piece(1, 0, false, b"")), Kept::Refused);
        assert_eq!(bench.keep(piece(1, 0, false, &[0; 2000])), Kept::Refused);
        assert_eq!(bench.reassembly.unfinished(), 0);
        assert_eq!(bench.keep(piece(1, 3, false, b"d")), Kept::Waiting);
        assert_eq!(bench.keep(piece(1, 3, false, b"d")), Kept::Refused, "twice the same");
        assert_eq!(bench.keep(piece(1, 2, true, b"c")), Kept::Refused, "a last one before others");
        assert_eq!(bench.keep(piece(1, 4, true, b"e")), Kept::Waiting);
        assert_eq!(bench.keep(piece(1, 5, true, b"f")), Kept::Refused, "two last ones");
        assert_eq!(bench.keep(piece(1, 6, false, b"g")), Kept::Refused, "one behind the last");
        assert_eq!(bench.keep(piece(1, 0, false, &[0; 1529])), Kept::Refused, "too long together");
    }

    #[test]
    fn unfinished_frames_are_given_up_in_time_and_their_memory_with_them() {
        let mut bench = Bench::new(1);
        bench.keep(piece(1, 0, false, b"a"));
        bench.now += TIMEOUT / 2;
        bench.keep(piece(2, 0, false, b"a"));
        bench.keep(piece(2, 1, false, b"b"));
        bench.reassembly.expire(bench.now);
        assert_eq!((bench.reassembly.unfinished(), bench.reassembly.take_lost()), (2, 0));
        bench.reassembly.expire(bench.now + TIMEOUT / 2);
        assert_eq!((bench.reassembly.unfinished(), bench.reassembly.take_lost()), (1, 1));
        bench.reassembly.expire(bench.now + TIMEOUT);
        assert_eq!((bench.reassembly.unfinished(), bench.reassembly.take_lost()), (0, 2));
        assert_eq!(bench.reassembly.allocated(), 0);
    }

    #[test]
    fn a_peer_that_never_finishes_displaces_its_own_frames() {
        let mut bench = Bench::new(2);
        bench.keep_from(1, piece(0, 0, false, b"other"));
        for id in 0..10_000 {
            assert_eq!(bench.keep(piece(id, 0, false, b"a")), Kept::Waiting);
        }
        assert_eq!(bench.reassembly.unfinished(), PER_PEER + 1);
        assert_eq!(bench.reassembly.take_lost(), 10_000 - PER_PEER as u64);
        assert_eq!(bytes(bench.keep_from(1, piece(0, 1, true, b"wise"))), b"otherwise");
    }

    #[test]
    fn all_peers_together_stay_within_the_total() {
        let mut bench = Bench::new(200);
        for peer in 0..200 {
            for id in 0..PER_PEER as u32 {
                bench.keep_from(peer, piece(id, 0, false, b"a"));
            }
        }
        assert!(bench.reassembly.allocated() <= TOTAL_BYTES + SPARES * 2000, "{}", bench.reassembly.allocated());
        assert!(bench.reassembly.unfinished() > 2000);
        // The last to come has not been starved by the first.
        assert_eq!(bytes(bench.keep_from(199, piece(PER_PEER as u32 - 1, 1, true, b"b"))), b"ab");
    }

    #[test]
    fn peers_that_left_are_forgotten() {
        let mut bench = Bench::new(3);
        for peer in 0..3 {
            bench.keep_from(peer, piece(0, 0, false, b"a"));
        }
        bench.peers = Bench::new(4).peers.split_off(3);
        bench.keep(piece(0, 0, false, b"a"));
        assert_eq!((bench.reassembly.unfinished(), bench.reassembly.take_lost()), (1, 3));
    }
}
