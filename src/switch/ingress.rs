//! Datagrams on their way in: from the underlay to our TAP.
//!
//! What a session opens proves who sent it, not that the sender is honest: every frame is held against the sender's
//! record before the kernel sees it.

use std::net::{SocketAddr, SocketAddrV6};
use std::time::Instant;

use crate::session::{OpenError, Transport};
use crate::wire::ethernet::FrameHead;
use crate::wire::header::HEADER_LEN;
use crate::wire::message::{INNER_LEN, MAX_MESSAGE};
use crate::wire::{Batch, Counters, DatagramKind, DropReason, Header, Inner, Punt, Verdict};

use super::fib::{Fib, FibPeer};
use super::flood::Budgets;
use super::forwarder::{Notice, Notices};
use super::fragment::{Kept, Piece, Reassembly};
use super::neighbor;

/// Datagrams from the underlay, on their way in.
#[derive(Debug, Default)]
pub struct Ingress {
    counters: Counters,
    notices: Notices,
    floods: Budgets,
    reassembly: Reassembly,
}

impl Ingress {
    /// Judges every slot that is `Pending`: datagrams received. Frames for us are opened in place (`Deliver`),
    /// handshakes and messages go to the node (`Punt`, with `slot.peer` set for messages). The last piece of a cut
    /// frame appends the frame as a slot of its own; the pieces are `Done`.
    pub fn handle_datagrams(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        self.reassembly.expire(now);
        for index in 0..batch.len() {
            if batch.slots()[index].verdict == Verdict::Pending {
                let verdict = self.judge(fib, batch, index, now);
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

    fn judge(&mut self, fib: &Fib, batch: &mut Batch, index: usize, now: Instant) -> Verdict {
        let datagram = batch.bytes_mut(index);
        match DatagramKind::of(datagram) {
            Some(DatagramKind::Sealed) => {}
            Some(DatagramKind::Initiation | DatagramKind::Response | DatagramKind::Cookie) => {
                return Verdict::Punt(Punt::Handshake);
            }
            None => return Verdict::Drop(DropReason::DatagramMalformed),
        }
        let Some(header) = Header::read(datagram) else { return Verdict::Drop(DropReason::DatagramMalformed) };
        let receiver = fib.receivers.get(&header.receiver);
        let Some((transport, sender, peer)) =
            receiver.and_then(|(transport, sender)| Some((transport, *sender, fib.peers.get(*sender)?)))
        else {
            return Verdict::Drop(DropReason::UnknownReceiver);
        };
        let len = match transport.open_in_place(datagram, now) {
            Ok(len) => len,
            Err(OpenError::BadTag) => return Verdict::Drop(DropReason::BadTag),
            Err(OpenError::Replayed) => return Verdict::Drop(DropReason::Replayed),
            Err(OpenError::Expired) => return Verdict::Drop(DropReason::SessionExhausted),
        };
        let inner = Inner::read(&datagram[HEADER_LEN..HEADER_LEN + len]);
        let slot = batch.slot_mut(index);
        slot.peer = Some(sender);
        let source = slot.source;
        self.note_opening(transport, peer, source);
        let content = HEADER_LEN + INNER_LEN..HEADER_LEN + len;
        match inner {
            Some(Inner::Frame(checksum)) => {
                batch.slot_mut(index).checksum = checksum;
                batch.shrink(index, content);
                self.judge_frame(fib, batch.bytes(index), peer, now)
            }
            Some(Inner::Message) if content.len() <= MAX_MESSAGE => {
                batch.shrink(index, content);
                Verdict::Punt(Punt::Message)
            }
            Some(Inner::Fragment { id, part, last }) => {
                let bytes = &batch.bytes(index)[content];
                let piece = Piece { session: transport.local(), id, part, last, bytes };
                match self.reassembly.keep(&peer.peer, piece, &fib.peers, fib.mtu, now) {
                    Kept::Waiting => Verdict::Done,
                    Kept::Refused => Verdict::Drop(DropReason::FragmentLost),
                    Kept::Complete(whole) => {
                        let Some(space) = batch.spare(whole.len()) else {
                            self.reassembly.recycle(whole);
                            return Verdict::Drop(DropReason::BatchFull);
                        };
                        whole.copy_to(space);
                        let frame = batch.commit(whole.len(), source);
                        self.reassembly.recycle(whole);
                        batch.slot_mut(frame).peer = Some(sender);
                        let verdict = self.judge_whole(fib, batch, frame, peer, now);
                        self.speak(batch, frame, verdict);
                        Verdict::Done
                    }
                }
            }
            Some(Inner::Message | Inner::Bundle) | None => Verdict::Drop(DropReason::InnerMalformed),
        }
    }

    /// The pieces of a cut frame, put together, are an inner header and a frame: nothing else is ever cut.
    fn judge_whole(&mut self, fib: &Fib, batch: &mut Batch, index: usize, peer: &FibPeer, now: Instant) -> Verdict {
        let whole = batch.bytes(index);
        if !matches!(Inner::read(whole), Some(Inner::Frame(_))) {
            return Verdict::Drop(DropReason::InnerMalformed);
        }
        let len = whole.len();
        batch.shrink(index, INNER_LEN..len);
        self.judge_frame(fib, batch.bytes(index), peer, now)
    }

    fn judge_frame(&mut self, fib: &Fib, frame: &[u8], peer: &FibPeer, now: Instant) -> Verdict {
        let Some(head) = FrameHead::read(frame) else { return Verdict::Drop(DropReason::InnerMalformed) };
        if frame.len() > head.payload + fib.mtu {
            return Verdict::Drop(DropReason::FrameTooLong);
        }
        if head.source != peer.mac {
            return Verdict::Drop(DropReason::SourceMac);
        }
        let flooded = head.destination.is_group();
        if !flooded && head.destination != fib.mac {
            return Verdict::Drop(DropReason::NotForUs);
        }
        if neighbor::is_forged(frame, &fib.neighbors) {
            return Verdict::Drop(DropReason::ForgedBinding);
        }
        if flooded && !self.floods.take(&peer.peer, frame.len(), &fib.peers, now) {
            return Verdict::Drop(DropReason::FloodBudget);
        }
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
