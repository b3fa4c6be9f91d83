//! Datagrams on their way in: from the underlay to our TAP.
//!
//! What a session opens proves who sent it, not that the sender is honest: every frame is held against the sender's
//! record, or its claims if it is a bridge, before the kernel sees it.

use std::net::{SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::time::Instant;

use crate::identity::Mac;
use crate::session::transport::Window;
use crate::session::{OpenError, Transport};
use crate::wire::checksum::Transport as Segment;
use crate::wire::ethernet::FrameHead;
use crate::wire::header::HEADER_LEN;
use crate::wire::message::{self, INNER_LEN, MAX_MESSAGE};
use crate::wire::stream::is_guest;
use crate::wire::{Batch, Checksum, Counters, DatagramKind, DropReason, Ecn, Header, Inner, Punt, Verdict, ecn, relay};

use super::fib::{Channel, Fib, FibPeer};
use super::flood::Budgets;
use super::forwarder::{Notice, Notices};
use super::fragment::{Kept, Piece, Reassembly, Whole};
use super::seal::is_usual;
use super::{neighbor, service};

/// Datagrams from the underlay, on their way in.
#[derive(Debug, Default)]
pub struct Ingress {
    counters: Counters,
    notices: Notices,
    floods: Budgets,
    reassembly: Reassembly,
}

/// A session of the picture with its replay window.
struct Taken<'a> {
    transport: &'a Transport,
    window: Window<'a>,
    /// Index into `Fib::peers`.
    sender: usize,
    peer: &'a FibPeer,
}

impl<'a> Taken<'a> {
    fn of(fib: &'a Fib, receiver: u32) -> Option<Self> {
        let (transport, sender) = fib.receivers.get(&receiver)?;
        Some(Self { transport, window: transport.window(), sender: *sender, peer: fib.peers.get(*sender)? })
    }
}

impl Ingress {
    /// Judges every slot that is `Pending`: datagrams received. Frames for us are opened in place (`Deliver`),
    /// handshakes and messages go to the node (`Punt`, with `slot.peer` set for messages). The frames of a bundle, and a cut
    /// frame with its last piece, become slots of their own; the datagrams are `Done`.
    pub fn handle_datagrams(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        self.reassembly.expire(now);
        let mut taken = None;
        for index in 0..batch.len() {
            if batch.slots()[index].verdict == Verdict::Pending {
                let verdict = self.judge(fib, batch, index, &mut taken, now);
                self.speak(batch, index, verdict);
            }
        }
        for _ in 0..self.reassembly.take_lost() {
            self.counters.count(DropReason::FragmentLost);
        }
    }

    /// Facts for the node; drain after each batch.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop()
    }

    /// What was dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn speak(&mut self, batch: &mut Batch, index: usize, verdict: Verdict) {
        if let Verdict::Drop(reason) = verdict {
            self.counters.count(reason);
        }
        batch.slot_mut(index).verdict = verdict;
    }

    /// `taken` is the session of the datagram before: all of one receive are of one session.
    fn judge<'a>(
        &mut self,
        fib: &'a Fib,
        batch: &mut Batch,
        index: usize,
        taken: &mut Option<Taken<'a>>,
        now: Instant,
    ) -> Verdict {
        if let Some(channel) = relay::channel_of(batch.bytes(index))
            && let Some(verdict) = self.judge_relayed(fib, batch, index, channel, now)
        {
            return verdict;
        }
        let datagram = batch.bytes_mut(index);
        match DatagramKind::of(datagram) {
            Some(DatagramKind::Sealed) => {}
            Some(DatagramKind::Initiation | DatagramKind::Response | DatagramKind::Cookie) => {
                return Verdict::Punt(Punt::Handshake);
            }
            None => return Verdict::Drop(DropReason::DatagramMalformed),
        }
        let Some(header) = Header::read(datagram) else { return Verdict::Drop(DropReason::DatagramMalformed) };
        if taken.as_ref().is_none_or(|taken| taken.transport.local() != header.receiver) {
            *taken = None;
            *taken = Taken::of(fib, header.receiver);
        }
        let Some(Taken { transport, window, sender, peer }) = taken else {
            return Verdict::Drop(DropReason::UnknownReceiver);
        };
        let len = match transport.open_in_place(window, datagram, now) {
            Ok(len) => len,
            Err(OpenError::BadTag) => return Verdict::Drop(DropReason::BadTag),
            Err(OpenError::Replayed) => return Verdict::Drop(DropReason::Replayed),
            Err(OpenError::Expired) => return Verdict::Drop(DropReason::SessionExhausted),
        };
        let inner = Inner::read(&datagram[HEADER_LEN..HEADER_LEN + len]);
        let slot = batch.slot_mut(index);
        slot.peer = Some(*sender);
        let source = slot.source;
        self.note_opening(transport, peer, source);
        let content = HEADER_LEN + INNER_LEN..HEADER_LEN + len;
        match inner {
            Some(Inner::Frame(checksum)) => {
                batch.shrink(index, content);
                self.judge_frame(fib, batch, index, checksum, peer, now)
            }
            Some(Inner::Bundle) => self.open_bundle(fib, batch, index, content, peer, now),
            Some(Inner::Message) if content.len() <= MAX_MESSAGE => {
                batch.shrink(index, content);
                Verdict::Punt(Punt::Message)
            }
            Some(Inner::Padded(message)) if usize::from(message) <= content.len().min(MAX_MESSAGE) => {
                batch.shrink(index, content.start..content.start + usize::from(message));
                Verdict::Punt(Punt::Message)
            }
            Some(Inner::Fragment { id, part, last }) => {
                let congested = batch.slots()[index].ecn == Ecn::Congested;
                let bytes = &batch.bytes(index)[content];
                let piece = Piece { session: transport.local(), id, part, last, congested, bytes };
                match self.reassembly.keep(&peer.peer, piece, &fib.peers, fib.mtu, now) {
                    Kept::Waiting => Verdict::Done,
                    Kept::Refused => Verdict::Drop(DropReason::FragmentLost),
                    Kept::Complete(whole) => self.rejoin(fib, batch, index, whole, peer, now),
                }
            }
            Some(Inner::Message | Inner::Padded(_)) | None => Verdict::Drop(DropReason::InnerMalformed),
        }
    }

    /// Sends on what we relay. `None` if it is for us: then it is what it was when it was sealed, and comes from the channel.
    fn judge_relayed(&self, fib: &Fib, batch: &mut Batch, index: usize, channel: u32, now: Instant) -> Option<Verdict> {
        match fib.channels.get(&channel) {
            Some(Channel::Own) => {
                relay::unmark(batch.bytes_mut(index));
                batch.slot_mut(index).source = Some(relay::endpoint(channel));
                None
            }
            Some(Channel::Relay { from, .. })
                if batch.slots()[index].source.is_none_or(|source| from.iter().all(|at| is_foreign(source, *at))) =>
            {
                Some(Verdict::Drop(DropReason::ForeignChannel))
            }
            Some(Channel::Relay { meters, .. })
                if !meters.iter().all(|meter| meter.take(batch.bytes(index).len(), now)) =>
            {
                Some(Verdict::Drop(DropReason::RelayLimit))
            }
            Some(Channel::Relay { to, channel, .. }) => {
                relay::mark(batch.bytes_mut(index), *channel);
                Some(Verdict::Send(*to))
            }
            None => Some(Verdict::Drop(DropReason::UnknownChannel)),
        }
    }

    /// The frames of a bundle become slots of their own, where they lie.
    fn open_bundle(
        &mut self,
        fib: &Fib,
        batch: &mut Batch,
        index: usize,
        content: Range<usize>,
        peer: &FibPeer,
        now: Instant,
    ) -> Verdict {
        let ecn = batch.slots()[index].ecn;
        let Range { start: mut at, end } = content;
        let mut after = index;
        while at < end {
            let Some((checksum, frame)) = message::entry(&batch.bytes(index)[at..end]) else {
                return Verdict::Drop(DropReason::InnerMalformed);
            };
            let frame = at + frame.start..at + frame.end;
            at = frame.end;
            let Some(slot) = batch.split_off(index, frame, after) else {
                return Verdict::Drop(DropReason::BatchFull);
            };
            after = slot;
            batch.slot_mut(slot).ecn = ecn;
            let verdict = self.judge_frame(fib, batch, slot, checksum, peer, now);
            self.speak(batch, slot, verdict);
        }
        Verdict::Done
    }

    /// The pieces of a cut frame, put together, are an inner header and a frame: nothing else is ever cut.
    fn rejoin(
        &mut self,
        fib: &Fib,
        batch: &mut Batch,
        index: usize,
        whole: Whole,
        peer: &FibPeer,
        now: Instant,
    ) -> Verdict {
        let Some(space) = batch.spare(whole.len()) else {
            self.reassembly.recycle(whole);
            return Verdict::Drop(DropReason::BatchFull);
        };
        whole.copy_to(space);
        let (len, congested) = (whole.len(), whole.is_congested());
        self.reassembly.recycle(whole);
        let slot = batch.commit_behind(len, index);
        if congested {
            batch.slot_mut(slot).ecn = Ecn::Congested;
        }
        let verdict = match Inner::read(batch.bytes(slot)) {
            Some(Inner::Frame(checksum)) => {
                batch.shrink(slot, INNER_LEN..len);
                self.judge_frame(fib, batch, slot, checksum, peer, now)
            }
            Some(Inner::Fragment { .. } | Inner::Message | Inner::Bundle | Inner::Padded(_)) | None => {
                Verdict::Drop(DropReason::InnerMalformed)
            }
        };
        self.speak(batch, slot, verdict);
        Verdict::Done
    }

    fn judge_frame(
        &mut self,
        fib: &Fib,
        batch: &mut Batch,
        index: usize,
        checksum: Checksum,
        peer: &FibPeer,
        now: Instant,
    ) -> Verdict {
        let outer = batch.slots()[index].ecn;
        let frame = batch.bytes_mut(index);
        let Some(head) = FrameHead::read(frame) else { return Verdict::Drop(DropReason::InnerMalformed) };
        if frame.len() > head.payload + fib.mtu {
            return Verdict::Drop(DropReason::FrameTooLong);
        }
        if head.source != peer.mac && !fib.is_behind(peer, head.source) {
            return Verdict::Drop(DropReason::SourceMac);
        }
        let Some(flooded) = is_flooded(fib, head.destination) else { return Verdict::Drop(DropReason::NotForUs) };
        if let Checksum::Partial { start, offset } = checksum
            && !Segment::of(frame, &head).is_some_and(|segment| is_usual(&segment, start, offset))
        {
            // Elsewhere the kernel would write into bytes that were judged as they are.
            return Verdict::Drop(DropReason::InnerMalformed);
        }
        if neighbor::is_forged(frame, &fib.neighbors) {
            return Verdict::Drop(DropReason::ForgedBinding);
        }
        if !peer.serves
            && let Some(refusal) = service::refusal(frame, &head)
        {
            return Verdict::Drop(refusal);
        }
        if let (Some(filter), Some(clauses)) = (&fib.filter, &peer.clauses)
            && !filter.admits(clauses, frame, &head, now)
        {
            return Verdict::Drop(DropReason::Filtered);
        }
        let len = frame.len();
        if outer != Ecn::NotCapable && !ecn::decapsulate(outer, frame, &head) {
            return Verdict::Drop(DropReason::Congestion);
        }
        if flooded && !self.floods.take(&peer.peer, len, &fib.peers, now) {
            return Verdict::Drop(DropReason::FloodBudget);
        }
        batch.slot_mut(index).checksum = checksum;
        Verdict::Deliver
    }

    /// What the node learns from a datagram that opened.
    fn note_opening(&mut self, transport: &Transport, peer: &FibPeer, source: Option<SocketAddr>) {
        if self.notices.has_room() && transport.confirm() {
            self.notices.push(Notice::Confirmed { local: transport.local() });
        }
        let Some(endpoint) = source.map(canonical).filter(|_| peer.transport.is_some()) else { return };
        if endpoint != canonical(peer.endpoint) {
            self.notices.push_roamed(peer.peer, endpoint);
        }
    }
}

/// Whether a frame to `destination` is one to everybody: a group's, or, where we are a bridge, one to a station that nobody knows.
/// `None` if it is for somebody else.
fn is_flooded(fib: &Fib, destination: Mac) -> Option<bool> {
    if destination == fib.mac {
        return Some(false);
    }
    if destination.is_group() {
        return Some(true);
    }
    let behind = fib.behind.as_ref()?;
    if behind.has(destination) {
        return Some(false);
    }
    (!fib.stations.contains_key(&destination)).then_some(true)
}

/// Whether what comes from `source` is not from who is at `from`. A member that has dialled us may have two streams for a while, and
/// changes from one to the other without a word to its relays: any stream will do, for who has one knows the network's secret, and
/// a channel's number is known to its ends.
fn is_foreign(source: SocketAddr, from: SocketAddr) -> bool {
    canonical(source) != canonical(from) && !(is_guest(&source) && is_guest(&from))
}

/// An IPv4 endpoint that a dual-stack socket shows as IPv6 is the same endpoint; flow labels are no part of one.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint {
        SocketAddr::V4(_) => endpoint,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}
