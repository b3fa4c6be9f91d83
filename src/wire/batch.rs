//! Batches: the only thing that moves on the fast path.
//!
//! A [`Batch`] is one arena and a list of [`Slot`]s in it. Every slot is laid down with [`HEADROOM`] free bytes before
//! it and [`TAILROOM`] after it, so a frame becomes a sealed datagram where it lies. The I/O fills a batch, the
//! forwarder writes a [`Verdict`] into each slot (and may add others behind it), the I/O carries the verdicts out in the
//! order of [`Batch::in_order`] and clears it. What comes of a slot stands right behind it there, although it lies at
//! the end of the arena: so a frame that was cut, bundled or rejoined overtakes nobody and is overtaken by nobody.
//! Whoever holds `&mut Batch` owns every byte of it until it hands it on.

use std::net::SocketAddr;
use std::ops::Range;

use super::ecn::Ecn;
use super::message::{Checksum, HEADROOM, TAILROOM};

/// What is to become of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The forwarder has not spoken yet.
    Pending,
    /// Write the slot's bytes to the TAP device as one frame.
    Deliver,
    /// Send the slot's bytes to the endpoint as one datagram.
    Send(SocketAddr),
    /// Hand the slot's bytes to the control side.
    Punt(Punt),
    /// Forget it; the reason is counted already.
    Drop(DropReason),
    /// Nothing is left to do: copies further on in the batch carry it, or a part was kept for rejoining.
    Done,
}

/// Why a slot goes to the control side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Punt {
    /// A frame for a known peer without a live session: start one, then send it.
    NoSession,
    /// A frame for a MAC that no record names yet: ask the directory.
    UnknownUnicast,
    /// A broadcast or multicast frame, already sent to live sessions; some members have none, or it asks for an address
    /// that no record gives.
    ColdFlood,
    /// A frame from our own TAP with a source that we do not know, where we are a bridge: learn the station, tell of it, then send it.
    NewStation,
    /// An initiation, a response or a cookie.
    Handshake,
    /// The bytes of a canonical [`super::Message`], opened.
    Message,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a frame or a datagram was dropped. Each has a counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name under which it is counted and shown.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// A frame shorter than an Ethernet header, or ending inside a VLAN tag.
    FrameMalformed = "frame-malformed",
    /// A frame longer than the TAP's MTU allows.
    FrameTooLong = "frame-too-long",
    /// A frame from our own TAP whose source is not our MAC.
    ForeignSource = "foreign-source",
    /// A frame from our own TAP to our own MAC.
    OwnDestination = "own-destination",
    /// One of our own datagrams, come to our own TAP: the LAN that we bridge seems to lead where the tunnel leads.
    OwnDatagram = "own-datagram",
    /// Broadcast, multicast or unknown unicast beyond the origin's budget.
    FloodBudget = "flood-budget",
    /// No room left in the batch for a copy or a fragment.
    BatchFull = "batch-full",
    /// The bounded queue to the control side is full, or the buffer of the socket for initiations.
    PuntFull = "punt-full",
    /// The receive buffer of a lane's socket is full: the machine has no time for what comes in.
    ReceiveFull = "receive-full",
    /// Frames waiting for a session or a lookup beyond the bound, or for too long.
    WaitFull = "wait-full",
    /// A session whose counter or age is exhausted.
    SessionExhausted = "session-exhausted",
    /// A datagram of no known kind, length or flags.
    DatagramMalformed = "datagram-malformed",
    /// A sealed datagram for a session we do not have.
    UnknownReceiver = "unknown-receiver",
    /// A relayed datagram for a channel that we do not have, or whose other end is not there yet.
    UnknownChannel = "unknown-channel",
    /// A datagram to be relayed that does not come from where its sender is.
    ForeignChannel = "foreign-channel",
    /// A probe that would have opened more flows in our NAT than a node may.
    ProbeBudget = "probe-budget",
    /// More to be relayed than we let through, for these two or for all together.
    RelayLimit = "relay-limit",
    /// A counter seen before, or older than the replay window.
    Replayed = "replayed",
    /// The AEAD tag does not verify.
    BadTag = "bad-tag",
    /// An opened datagram whose inner bytes make no sense.
    InnerMalformed = "inner-malformed",
    /// A frame whose source MAC the sending peer does not own.
    SourceMac = "source-mac",
    /// A frame addressed to somebody else.
    NotForUs = "not-for-us",
    /// An ARP or neighbour-discovery frame that binds an address against the signed records.
    ForgedBinding = "forged-binding",
    /// What only a DHCP server sends, from a member without the role for it.
    RogueDhcp = "rogue-dhcp",
    /// A router advertisement or redirect from a member without the role for it.
    RogueRouter = "rogue-router",
    /// A frame that the packet filter does not let in.
    Filtered = "filtered",
    /// A datagram that a router marked as congested around a frame that asked for losses instead (RFC 6040).
    Congestion = "congestion",
    /// A superframe from the TAP that makes no sense.
    SuperframeMalformed = "superframe-malformed",
    /// A fragment without its siblings, out of its time or bound.
    FragmentLost = "fragment-lost",
    /// A handshake datagram whose first MAC is not made with the network's key: a stranger.
    HandshakeMac = "handshake-mac",
    /// A handshake datagram that does not decrypt or does not parse.
    HandshakeMalformed = "handshake-malformed",
    /// An initiation answered with a cookie, because we are under load.
    HandshakeCookie = "handshake-cookie",
    /// An initiation beyond the rate we work off.
    HandshakeRate = "handshake-rate",
    /// An initiation or response that was seen before.
    HandshakeReplayed = "handshake-replayed",
    /// A handshake whose certificate is of another network, forged, or otherwise unsound.
    MembershipRefused = "membership-refused",
    /// A handshake, record or sighting of somebody who was expelled, or whose invite was used up or withdrawn.
    MembershipRevoked = "membership-revoked",
    /// A statement about members that proves nothing, or beyond what one may say.
    StatementRefused = "statement-refused",
    /// A handshake or record whose certificate or record has expired.
    MembershipExpired = "membership-expired",
    /// A handshake from ourselves.
    HandshakeSelf = "handshake-self",
    /// A record with a bad signature, key, size or encoding.
    RecordRefused = "record-refused",
    /// A record whose MAC another key holds already.
    RecordConflict = "record-conflict",
    /// A record from a member who has told us too many of late.
    RecordBudget = "record-budget",
    /// A claim of stations by a member without the role `bridge`, or by a bridge that has told us too many of late.
    BridgeClaim = "bridge-claim",
    /// A station beyond those of one bridge, or of all together: claimed by another, or behind us.
    BridgeStations = "bridge-stations",
    /// A station with a MAC that a signed record gives to a member: claimed by a bridge, or heard at our own TAP.
    BridgeOwned = "bridge-owned",
    /// A datagram for a stream that is not there, or whose other end takes them too slowly.
    StreamFull = "stream-full",
    /// A connection that did not prove to be a stream of this network in time, or announced what no member sends.
    StreamStranger = "stream-stranger",
    /// A connection beyond those that are taken, of one source or in all.
    StreamLimit = "stream-limit",
    /// The operating system refused to send.
    SendFailed = "send-failed",
    /// The operating system refused a frame.
    TapFailed = "tap-failed",
}

/// One counter for each [`DropReason`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters(Vec<u64>);

impl Default for Counters {
    fn default() -> Self {
        Self(vec![0; DropReason::ALL.len()])
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Counts several.
    pub fn count_many(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] += count;
    }

    /// How many so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours += theirs;
        }
    }

    /// The reasons that have occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason))).filter(|(_, count)| *count > 0)
    }
}

/// A frame or a datagram in a batch.
#[derive(Debug, Clone)]
pub struct Slot {
    start: usize,
    len: usize,
    /// The next slot in order.
    next: Option<usize>,
    /// Where a datagram came from; `None` for a frame.
    pub source: Option<SocketAddr>,
    /// Index into `Fib::peers` of the peer that a datagram proved to be from, set by the forwarder.
    pub peer: Option<usize>,
    /// What is known of the transport checksum of a frame.
    pub checksum: Checksum,
    /// The congestion mark of a datagram: as received, or to be sent with.
    pub ecn: Ecn,
    /// What is to become of it.
    pub verdict: Verdict,
}

impl Slot {
    /// Where its bytes are in the arena.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// An arena with slots.
pub struct Batch {
    arena: Box<[u8]>,
    end: usize,
    slots: Vec<Slot>,
    max_slots: usize,
    /// The last slot in order.
    last: usize,
}

impl Batch {
    /// A batch of `arena` bytes for at most `max_slots` slots. Nothing is allocated after this.
    pub fn new(arena: usize, max_slots: usize) -> Self {
        Self { arena: vec![0; arena].into(), end: 0, slots: Vec::with_capacity(max_slots), max_slots, last: 0 }
    }

    /// Forgets every slot; the arena is free again.
    pub fn clear(&mut self) {
        self.end = 0;
        self.slots.clear();
    }

    /// The slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// One slot, to be judged.
    pub fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The bytes of slot `index`.
    #[inline]
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.arena[self.slots[index].range()]
    }

    /// The bytes of slot `index`, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.arena[self.slots[index].range()]
    }

    /// The bytes of slot `index` and `head` bytes before them, which are nobody's: at most [`HEADROOM`] for a slot with room
    /// of its own, at most what was shrunk away for others.
    pub fn bytes_with_head(&mut self, index: usize, head: usize) -> &mut [u8] {
        let Range { start, end } = self.slots[index].range();
        &mut self.arena[start - head..end]
    }

    /// As [`Batch::bytes_with_head`], to be read.
    pub fn bytes_after_head(&self, index: usize, head: usize) -> &[u8] {
        let Range { start, end } = self.slots[index].range();
        &self.arena[start - head..end]
    }

    /// The bytes from the beginning of slot `first` to the end of slot `last`, which lies behind it.
    pub fn bytes_across(&self, first: usize, last: usize) -> &[u8] {
        &self.arena[self.slots[first].start..self.slots[last].range().end]
    }

    /// Free space of exactly `len` bytes with head- and tailroom around it, to be filled by the I/O and then
    /// committed; `None` if the batch is full.
    pub fn spare(&mut self, len: usize) -> Option<&mut [u8]> {
        let start = self.end + HEADROOM;
        if self.slots.len() >= self.max_slots || start + len + TAILROOM > self.arena.len() {
            return None;
        }
        Some(&mut self.arena[start..start + len])
    }

    /// Makes a slot of the first `len` bytes of the space that [`Batch::spare`] gave, and returns its index.
    ///
    /// # Panics
    /// If there was no such space.
    pub fn commit(&mut self, len: usize, source: Option<SocketAddr>) -> usize {
        assert!(self.slots.len() < self.max_slots, "commit without spare");
        let start = self.hold(len).start;
        self.add(start, len, source)
    }

    /// Makes a slot, the last in order.
    fn add(&mut self, start: usize, len: usize, source: Option<SocketAddr>) -> usize {
        let (checksum, ecn) = (Checksum::default(), Ecn::default());
        let index = self.slots.len();
        self.slots.push(Slot { start, len, next: None, source, peer: None, checksum, ecn, verdict: Verdict::Pending });
        if index > 0 {
            self.slots[self.last].next = Some(index);
        }
        self.last = index;
        index
    }

    /// Makes a slot, right behind slot `after` in order.
    fn add_behind(&mut self, after: usize, start: usize, len: usize) -> usize {
        let last = self.last;
        let index = self.add(start, len, self.slots[after].source);
        self.slots[index].peer = self.slots[after].peer;
        if after != last {
            self.slots[last].next = None;
            self.slots[index].next = self.slots[after].next.replace(index);
            self.last = last;
        }
        index
    }

    /// The indices of all slots in the order in which they are to be carried out.
    pub fn in_order(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.first(), |slot| self.next(*slot))
    }

    /// The first slot in order.
    pub fn first(&self) -> Option<usize> {
        (!self.slots.is_empty()).then_some(0)
    }

    /// The slot behind `slot` in order.
    pub fn next(&self, slot: usize) -> Option<usize> {
        self.slots[slot].next
    }

    /// As [`Batch::spare`], with `head` of the free bytes before it: for an I/O that puts a header of its own there.
    pub fn spare_with_head(&mut self, head: usize, len: usize) -> Option<&mut [u8]> {
        debug_assert!(head <= HEADROOM);
        self.spare(len)?;
        let start = self.end + HEADROOM;
        Some(&mut self.arena[start - head..start + len])
    }

    /// Takes the first `len` bytes of the space that [`Batch::spare`] gave out of use until the batch is cleared, without
    /// making a slot of them: the frames in them are about to be copied into slots of their own. Returns where they are in the arena.
    ///
    /// # Panics
    /// If there was no such space.
    pub fn hold(&mut self, len: usize) -> Range<usize> {
        let start = self.end + HEADROOM;
        assert!(start + len + TAILROOM <= self.arena.len(), "taken without spare");
        self.end = start + len + TAILROOM;
        start..start + len
    }

    /// The bytes of `range` of the arena.
    pub fn held(&self, range: Range<usize>) -> &[u8] {
        &self.arena[range]
    }

    /// Appends a slot with a copy of two ranges of the arena, one behind the other; `None` if the batch is full.
    pub fn push_parts(&mut self, first: Range<usize>, second: Range<usize>) -> Option<usize> {
        let (head, len) = (first.len(), first.len() + second.len());
        self.spare(len)?;
        let start = self.end + HEADROOM;
        self.arena.copy_within(first, start);
        self.arena.copy_within(second, start + head);
        Some(self.commit(len, None))
    }

    /// Adds a slot that is `range` of the bytes of slot `index`, without copying them, behind slot `after` in order;
    /// `None` if there are too many slots. It has no room of its own before and behind it.
    pub fn split_off(&mut self, index: usize, range: Range<usize>, after: usize) -> Option<usize> {
        debug_assert!(range.end <= self.slots[index].len);
        let start = self.slots[index].start + range.start;
        (self.slots.len() < self.max_slots).then(|| self.add_behind(after, start, range.len()))
    }

    /// Copies slot `index` into the space that [`Batch::spare`] gives, `at` bytes behind its beginning.
    #[inline]
    pub fn copy_to_spare(&mut self, index: usize, at: usize) {
        let from = self.slots[index].range();
        self.arena.copy_within(from, self.end + HEADROOM + at);
    }

    /// As [`Batch::commit`], behind slot `after` in order and from where that came.
    pub fn commit_behind(&mut self, len: usize, after: usize) -> usize {
        let start = self.hold(len).start;
        self.add_behind(after, start, len)
    }

    /// Makes several slots of `len` bytes that one receive call laid down end to end, `stride` bytes each but the last
    /// (UDP GRO), all with one congestion mark. They have no headroom of their own: what is received is opened, never sealed. Returns how many slots
    /// were made; those beyond the bound of slots are left out.
    pub fn commit_strided(&mut self, len: usize, stride: usize, source: Option<SocketAddr>, ecn: Ecn) -> usize {
        let start = self.end + HEADROOM;
        self.end = (start + len + TAILROOM).min(self.arena.len());
        let before = self.slots.len();
        let mut at = 0;
        while at < len && self.slots.len() < self.max_slots {
            let piece = stride.max(1).min(len - at);
            let slot = self.add(start + at, piece, source);
            self.slots[slot].ecn = ecn;
            at += piece;
        }
        self.slots.len() - before
    }

    /// Whether `count` more slots of `len` bytes altogether fit.
    pub fn has_room(&self, count: usize, len: usize) -> bool {
        self.slots.len() + count <= self.max_slots && self.end + len + count * (HEADROOM + TAILROOM) <= self.arena.len()
    }

    /// Appends a slot with a copy of `bytes`; `None` if the batch is full.
    pub fn push(&mut self, bytes: &[u8], source: Option<SocketAddr>) -> Option<usize> {
        self.spare(bytes.len())?.copy_from_slice(bytes);
        Some(self.commit(bytes.len(), source))
    }

    /// Adds a slot with a copy of `range` of the bytes of slot `index`, behind slot `after` in order; `None` if the batch is
    /// full.
    pub fn push_copy_of(&mut self, index: usize, range: Range<usize>, after: usize) -> Option<usize> {
        let from = self.slots[index].range();
        let from = from.start + range.start..from.start + range.end;
        let len = from.len();
        self.spare(len)?;
        self.arena.copy_within(from, self.end + HEADROOM);
        Some(self.commit_behind(len, after))
    }

    /// Grows slot `index` by `head` bytes at its front and `tail` at its end, into its own head- and tailroom, and
    /// returns all its bytes. `head` and `tail` are at most [`HEADROOM`] and [`TAILROOM`], over all calls.
    pub fn grow(&mut self, index: usize, head: usize, tail: usize) -> &mut [u8] {
        let slot = &mut self.slots[index];
        slot.start -= head;
        slot.len += head + tail;
        self.bytes_mut(index)
    }

    /// Shrinks slot `index` to `range` of its bytes.
    pub fn shrink(&mut self, index: usize, range: Range<usize>) {
        let slot = &mut self.slots[index];
        debug_assert!(range.end <= slot.len);
        slot.start += range.start;
        slot.len = range.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_grows_into_its_own_room_and_touches_no_neighbour() {
        let mut batch = Batch::new(4096, 4);
        let first = batch.push(b"first", None).expect("room");
        let second = batch.push(b"second", None).expect("room");
        batch.grow(first, HEADROOM, TAILROOM).fill(0xee);
        batch.grow(second, HEADROOM, TAILROOM);
        assert_eq!(&batch.bytes(second)[HEADROOM..HEADROOM + 6], b"second");
        batch.shrink(first, HEADROOM..HEADROOM + 5);
        assert_eq!(batch.bytes(first), [0xee; 5]);
    }

    #[test]
    fn a_full_batch_says_so() {
        let mut batch = Batch::new(2 * (HEADROOM + 100 + TAILROOM), 8);
        assert!(batch.push(&[1; 100], None).is_some());
        assert!(batch.push_copy_of(0, 10..20, 0).is_some());
        assert!(batch.spare(100).is_none());
        batch.clear();
        assert!(batch.is_empty() && batch.spare(100).is_some());
        assert!(batch.has_room(2, 200) && !batch.has_room(2, 201) && !batch.has_room(9, 0));
        let mut batch = Batch::new(4096, 1);
        assert!(batch.push(b"x", None).is_some() && batch.push(b"y", None).is_none());
    }

    #[test]
    fn what_comes_of_a_slot_stands_behind_it() {
        let mut batch = Batch::new(4096, 9);
        assert_eq!(batch.in_order().count(), 0);
        for word in ["a", "b", "c"] {
            batch.push(word.as_bytes(), None).expect("room");
        }
        let first = batch.push_copy_of(0, 0..1, 0).expect("room");
        let second = batch.push_copy_of(0, 0..1, first).expect("room");
        let last = batch.push_copy_of(2, 0..1, 2).expect("room");
        let end = batch.push(b"d", None).expect("room");
        assert_eq!(batch.in_order().collect::<Vec<_>>(), [0, first, second, 1, 2, last, end]);
        batch.clear();
        assert_eq!(batch.in_order().count(), 0);
    }

    #[test]
    fn one_receive_of_many_datagrams_becomes_many_slots() {
        let mut batch = Batch::new(4096, 3);
        batch.spare(25).expect("room").copy_from_slice(b"aaaaaaaaaabbbbbbbbbbccccc");
        assert_eq!(batch.commit_strided(25, 10, None, Ecn::Congested), 3);
        assert_eq!((batch.bytes(0), batch.bytes(2)), (&b"aaaaaaaaaa"[..], &b"ccccc"[..]));
        assert!(batch.slots().iter().all(|slot| slot.ecn == Ecn::Congested));
    }

    #[test]
    fn a_held_buffer_is_copied_in_parts_and_a_slot_split_without_copying() {
        let mut batch = Batch::new(4096, 4);
        batch.spare_with_head(2, 6).expect("room").copy_from_slice(b"..header");
        let held = batch.hold(6);
        assert_eq!((batch.held(held.clone()), batch.len()), (&b"header"[..], 0));
        let both = batch.push_parts(held.start..held.start + 2, held.start + 4..held.end).expect("room");
        assert_eq!(batch.bytes(both), b"heer");
        let part = batch.split_off(both, 1..3, both).expect("room");
        batch.bytes_with_head(part, 1)[0] = b'x';
        assert_eq!((batch.bytes(part), batch.bytes(both)), (&b"ee"[..], &b"xeer"[..]));
        let next = batch.push(b"next", None).expect("room");
        assert_eq!(batch.bytes_across(both, next).len(), 4 + TAILROOM + HEADROOM + 4);
        assert!(batch.split_off(both, 0..1, both).is_some() && batch.split_off(both, 0..1, both).is_none());
        assert_eq!(batch.in_order().collect::<Vec<_>>(), [both, 3, part, next]);
    }

    #[test]
    fn every_drop_reason_has_its_own_name() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
