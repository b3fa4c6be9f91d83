//! Frames on their way out: from our TAP to the members.

use std::time::Instant;

use crate::session::rekey::REKEY_AFTER_MESSAGES;
use crate::wire::ethernet::FrameHead;
use crate::wire::{Batch, Counters, DropReason, Punt, Verdict};

use super::fib::Fib;
use super::flood::Bucket;
use super::forwarder::{Notice, Notices};
use super::neighbor;
use super::seal::{SealError, seal_copy, seal_slot};

/// Frames from the TAP, on their way out.
#[derive(Debug, Default)]
pub struct Egress {
    counters: Counters,
    notices: Notices,
    /// Of broadcast and multicast, which are copied to everybody.
    floods: Bucket,
    /// Of unknown unicast, which costs a lookup: of its own, so that a stream into the void silences no ARP.
    unknown: Bucket,
    /// With whom the next flood begins. If a batch has no room for a copy for everybody, it is not always the same
    /// members who get none.
    turn: usize,
}

impl Egress {
    /// Judges every slot that is `Pending`: frames read from our TAP. Known unicast is sealed in place (`Send`), floods
    /// and cut frames append slots (`Done` for the original), ARP and ND requests that the records answer become
    /// replies (`Deliver`).
    pub fn handle_frames(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        for index in 0..batch.len() {
            if batch.slots()[index].verdict == Verdict::Pending {
                let verdict = self.judge(fib, batch, index, now);
                if let Verdict::Drop(reason) = verdict {
                    self.counters.count(reason);
                }
                batch.slot_mut(index).verdict = verdict;
            }
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

    fn judge(&mut self, fib: &Fib, batch: &mut Batch, index: usize, now: Instant) -> Verdict {
        let frame = batch.bytes(index);
        let len = frame.len();
        let Some(head) = FrameHead::read(frame) else { return Verdict::Drop(DropReason::FrameMalformed) };
        if len > head.payload + fib.mtu {
            return Verdict::Drop(DropReason::FrameTooLong);
        }
        if head.source != fib.mac {
            return Verdict::Drop(DropReason::ForeignSource);
        }
        if head.destination == fib.mac {
            return Verdict::Drop(DropReason::OwnDestination);
        }
        if head.destination.is_group() {
            if neighbor::answer(batch, index, &fib.neighbors, fib.mac) {
                return Verdict::Deliver;
            }
            return self.flood(fib, batch, index, now);
        }
        let Some(peer) = fib.stations.get(&head.destination).and_then(|peer| fib.peers.get(*peer)) else {
            if self.unknown.take(len, now) {
                return Verdict::Punt(Punt::UnknownUnicast);
            }
            return Verdict::Drop(DropReason::FloodBudget);
        };
        let Some(transport) = &peer.transport else { return Verdict::Punt(Punt::NoSession) };
        match seal_slot(batch, index, peer, transport, now) {
            Ok(verdict) => {
                if transport.sealed() >= REKEY_AFTER_MESSAGES {
                    self.notices.push(Notice::RekeyDue { local: transport.local() });
                }
                verdict
            }
            Err(SealError::Exhausted) => Verdict::Punt(Punt::NoSession),
            Err(SealError::Drop(reason)) => Verdict::Drop(reason),
        }
    }

    /// Head-end replication: a sealed copy for every member with a session.
    fn flood(&mut self, fib: &Fib, batch: &mut Batch, index: usize, now: Instant) -> Verdict {
        if !self.floods.take(batch.bytes(index).len(), now) {
            return Verdict::Drop(DropReason::FloodBudget);
        }
        let (before, after) = fib.peers.split_at(self.turn % fib.peers.len().max(1));
        self.turn = self.turn.wrapping_add(1);
        for peer in after.iter().chain(before) {
            let Some(transport) = &peer.transport else { continue };
            match seal_copy(batch, index, peer, transport, now) {
                Ok(()) if transport.sealed() >= REKEY_AFTER_MESSAGES => {
                    self.notices.push(Notice::RekeyDue { local: transport.local() });
                }
                Ok(()) => {}
                Err(SealError::Exhausted) => self.counters.count(DropReason::SessionExhausted),
                Err(SealError::Drop(reason)) => self.counters.count(reason),
            }
        }
        // Of whom the records did not know, the directory may.
        let asks = neighbor::requested(batch.bytes(index)).is_some();
        if fib.cold || asks { Verdict::Punt(Punt::ColdFlood) } else { Verdict::Done }
    }
}
