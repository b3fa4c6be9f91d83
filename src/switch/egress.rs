//! Frames on their way out: from our TAP to the members.
//!
//! A batch is judged in two passes. The first decides for every frame what becomes of it and counts what each session is
//! to seal; then each session is asked once for its counters; the second pass seals. Between them it is known which
//! small frames stand beside others for the same peer: they share a datagram.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::identity::Mac;
use crate::session::rekey::REKEY_AFTER_MESSAGES;
use crate::wire::checksum::{Transport as Segment, UDP};
use crate::wire::ethernet::FrameHead;
use crate::wire::message::ENTRY_LEN;
use crate::wire::{Batch, Counters, DropReason, Ecn, Punt, Verdict};

use super::fib::Fib;
use super::flood::Bucket;
use super::forwarder::{Notice, Notices};
use super::packet::Content;
use super::seal::{self, Cut, Target};
use super::{mss, neighbor};

/// Frames from the TAP, on their way out.
#[derive(Debug, Default)]
pub struct Egress {
    counters: Counters,
    notices: Notices,
    /// Of broadcast and multicast, which are copied to everybody.
    floods: Bucket,
    /// Of unknown unicast, which costs a lookup: of its own, so that a stream into the void silences no ARP.
    unknown: Bucket,
    /// Of frames from stations that we do not know, where we are a bridge: each costs the node a look, and its first one everybody a message.
    strange: Bucket,
    /// With whom the next flood begins. If a batch has no room for a copy for everybody, it is not always the same
    /// members who get none.
    turn: usize,
    /// The frames of this batch that are to be sealed, in order.
    plan: Vec<Planned>,
    /// The peers of the plan.
    loads: Vec<Load>,
}

/// A frame that is to be sealed for one peer.
#[derive(Debug, Clone, Copy)]
struct Planned {
    slot: usize,
    /// Index into `loads`.
    load: usize,
    cut: Cut,
    part: Part,
}

/// A frame's part in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// None: it goes alone.
    Alone,
    /// The first of a bundle.
    First,
    /// Another one of the last bundle for that peer.
    Next,
}

/// What one peer gets of a batch.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// Index into `Fib::peers`.
    peer: usize,
    /// Which of its sessions.
    renewed: bool,
    /// Datagrams to seal.
    datagrams: u64,
    /// The next counter; `None` if the session is exhausted.
    counter: Option<u64>,
    /// What small frames may still join.
    open: Option<Bundle>,
}

/// A bundle in the making; of a single frame none will come.
#[derive(Debug, Clone, Copy)]
struct Bundle {
    /// Where it begins in the plan.
    first: usize,
    /// Bytes of all entries.
    len: usize,
    /// Of all its frames: the datagram has one mark for all.
    ecn: Ecn,
}

/// What the first pass says of a frame.
enum Judgement {
    /// Its end.
    Verdict(Verdict),
    /// Seal it for this peer.
    For(usize),
}

impl Egress {
    /// Judges every slot that is `Pending`: frames read from our TAP. Known unicast is sealed in place (`Send`), cut or
    /// bundled (new slots, `Done` for the original), floods add copies, ARP and ND requests that the records answer become
    /// replies (`Deliver`).
    pub fn handle_frames(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        self.plan.clear();
        self.loads.clear();
        let mut last = None;
        for index in 0..batch.len() {
            if batch.slots()[index].verdict == Verdict::Pending {
                match self.judge(fib, batch, index, &mut last, now) {
                    Judgement::Verdict(verdict) => self.speak(batch, index, verdict),
                    Judgement::For(peer) => self.plan(fib, batch, index, peer),
                }
            }
        }
        for load in &mut self.loads {
            let transport = fib.peers[load.peer].session(load.renewed);
            let transport = transport.expect("only peers with a session are planned for");
            load.counter = transport.reserve(load.datagrams, now);
            if load.counter.is_some() && transport.note_sent(now) {
                self.notices.push(Notice::Busy { local: transport.local() });
            }
            if transport.sealed() >= REKEY_AFTER_MESSAGES {
                self.notices.push(Notice::RekeyDue { local: transport.local() });
            }
        }
        for at in 0..self.plan.len() {
            self.seal(fib, batch, at);
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
        match verdict {
            Verdict::Drop(reason) => self.counters.count(reason),
            Verdict::Punt(_) => seal::complete(batch, index),
            Verdict::Pending | Verdict::Deliver | Verdict::Send(_) | Verdict::Done => {}
        }
        batch.slot_mut(index).verdict = verdict;
    }

    /// `last` is the last destination and its peer: the frames of a superframe all have one.
    fn judge(
        &mut self,
        fib: &Fib,
        batch: &mut Batch,
        index: usize,
        last: &mut Option<(Mac, usize)>,
        now: Instant,
    ) -> Judgement {
        let drop = |reason| Judgement::Verdict(Verdict::Drop(reason));
        let checksum = batch.slots()[index].checksum;
        let frame = batch.bytes_mut(index);
        let len = frame.len();
        let Some(head) = FrameHead::read(frame) else { return drop(DropReason::FrameMalformed) };
        if len > head.payload + fib.mtu {
            return drop(DropReason::FrameTooLong);
        }
        let strange = if head.source != fib.mac || fib.behind.is_some() {
            match judge_as_bridge(fib, frame, &head) {
                Ok(strange) => strange,
                Err(reason) => return drop(reason),
            }
        } else {
            false
        };
        if head.destination == fib.mac {
            return drop(DropReason::OwnDestination);
        }
        let segment = Segment::of(frame, &head);
        let Some(checksum) = seal::plain(frame, segment.as_ref(), checksum) else {
            return drop(DropReason::FrameMalformed);
        };
        let ecn = Ecn::of_frame(frame, &head);
        let slot = batch.slot_mut(index);
        (slot.checksum, slot.ecn) = (checksum, ecn);
        if let Some(filter) = &fib.filter
            && !head.destination.is_group()
        {
            filter.note(batch.bytes(index), &head, now);
        }
        if strange {
            let verdict = match self.strange.take(len, now) {
                true => Verdict::Punt(Punt::NewStation),
                false => Verdict::Drop(DropReason::FloodBudget),
            };
            return Judgement::Verdict(verdict);
        }
        if head.destination.is_group() {
            if neighbor::answer(batch, index, &fib.neighbors, fib.mac) {
                return Judgement::Verdict(Verdict::Deliver);
            }
            return Judgement::Verdict(self.flood(fib, batch, index, now));
        }
        let known = last.filter(|(mac, _)| *mac == head.destination).map(|(_, peer)| peer);
        let Some(peer) = known.or_else(|| fib.stations.get(&head.destination).copied()) else {
            if fib.behind.as_ref().is_some_and(|behind| behind.has(head.destination)) {
                // The host's own switch does not know where it is, and asks everywhere.
                return drop(DropReason::OwnDestination);
            }
            let verdict = match self.unknown.take(len, now) {
                true => Verdict::Punt(Punt::UnknownUnicast),
                false => Verdict::Drop(DropReason::FloodBudget),
            };
            return Judgement::Verdict(verdict);
        };
        *last = Some((head.destination, peer));
        if fib.peers[peer].transport.is_none() && !fib.peers[peer].is_renewed() {
            return Judgement::Verdict(Verdict::Punt(Punt::NoSession));
        }
        if let Some(segment) = segment {
            mss::clamp(batch.bytes_mut(index), &segment, checksum, fib.peers[peer].longest_expected());
        }
        Judgement::For(peer)
    }

    /// Puts the frame of slot `index` on the plan.
    fn plan(&mut self, fib: &Fib, batch: &mut Batch, index: usize, peer: usize) {
        let (len, ecn) = (batch.bytes(index).len(), batch.slots()[index].ecn);
        let Some(cut) = Cut::of(len, fib.peers[peer].path_payload) else {
            return self.speak(batch, index, Verdict::Drop(DropReason::FrameTooLong));
        };
        let load = match self.loads.iter().rposition(|load| load.peer == peer) {
            Some(load) => load,
            None => {
                // What is confirmed stays so: if there was none but `next`, it is that.
                let renewed = fib.peers[peer].is_renewed();
                self.loads.push(Load { peer, renewed, datagrams: 0, counter: None, open: None });
                self.loads.len() - 1
            }
        };
        let at = self.plan.len();
        let state = &mut self.loads[load];
        let capacity = fib.peers[peer].longest_whole();
        let entry = ENTRY_LEN + len;
        let part = match &mut state.open {
            Some(bundle) if bundle.len + entry <= capacity && bundle.ecn == ecn => {
                self.plan[bundle.first].part = Part::First;
                bundle.len += entry;
                Part::Next
            }
            Some(_) | None => {
                // What fills more than half a datagram leaves room for nobody of its kind, so bulk need not be copied.
                state.open = (entry <= capacity / 2).then_some(Bundle { first: at, len: entry, ecn });
                state.datagrams += cut.parts;
                Part::Alone
            }
        };
        self.plan.push(Planned { slot: index, load, cut, part });
    }

    /// Seals entry `at` of the plan, and with the first of a bundle all of it.
    fn seal(&mut self, fib: &Fib, batch: &mut Batch, at: usize) {
        let Planned { slot, load, cut, part } = self.plan[at];
        if part == Part::Next {
            return;
        }
        let peer = &fib.peers[self.loads[load].peer];
        let (Some(counter), Some(transport)) = (self.loads[load].counter, peer.session(self.loads[load].renewed))
        else {
            for member in self.members(at) {
                seal::complete(batch, self.plan[member].slot);
                batch.slot_mut(self.plan[member].slot).verdict = Verdict::Punt(Punt::NoSession);
            }
            return;
        };
        let target = Target { peer, transport };
        if part == Part::Alone {
            self.loads[load].counter = Some(counter + cut.parts);
            let verdict = target.seal_slot(batch, slot, &cut, counter);
            return self.speak(batch, slot, verdict);
        }
        self.loads[load].counter = Some(counter + 1);
        let len = self.members(at).map(|member| ENTRY_LEN + batch.bytes(self.plan[member].slot).len()).sum();
        let slots = self.members(at).map(|member| self.plan[member].slot);
        if !target.seal_bundle(batch, slot, slots, len, counter) {
            for member in self.members(at) {
                batch.slot_mut(self.plan[member].slot).verdict = Verdict::Drop(DropReason::BatchFull);
            }
            (0..self.members(at).count()).for_each(|_| self.counters.count(DropReason::BatchFull));
        }
    }

    /// The plan's entries that share a datagram with entry `first`, itself included.
    fn members(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        let load = self.plan[first].load;
        let rest = (first + 1..self.plan.len()).filter(move |at| self.plan[*at].load == load);
        std::iter::once(first).chain(rest.take_while(|at| self.plan[*at].part == Part::Next))
    }

    /// Head-end replication: a sealed copy for every member with a session.
    fn flood(&mut self, fib: &Fib, batch: &mut Batch, index: usize, now: Instant) -> Verdict {
        let len = batch.bytes(index).len();
        if !self.floods.take(len, now) {
            return Verdict::Drop(DropReason::FloodBudget);
        }
        let (before, after) = fib.peers.split_at(self.turn % fib.peers.len().max(1));
        self.turn = self.turn.wrapping_add(1);
        for peer in after.iter().chain(before) {
            let Some(transport) = peer.session(peer.is_renewed()) else { continue };
            let Some(cut) = Cut::of(len, peer.path_payload) else {
                self.counters.count(DropReason::FrameTooLong);
                continue;
            };
            let Some(counter) = transport.reserve(cut.parts, now) else {
                self.counters.count(DropReason::SessionExhausted);
                continue;
            };
            if !(Target { peer, transport }).seal_copy(batch, index, &cut, counter) {
                self.counters.count(DropReason::BatchFull);
                continue;
            }
            transport.note_sent(now);
            if transport.sealed() >= REKEY_AFTER_MESSAGES {
                self.notices.push(Notice::RekeyDue { local: transport.local() });
            }
        }
        // Of whom the records did not know, the directory may.
        let asks = neighbor::requested(batch.bytes(index)).is_some();
        if fib.cold || asks { Verdict::Punt(Punt::ColdFlood) } else { Verdict::Done }
    }
}

/// Whether a frame is one of our own datagrams. Where the LAN of a bridge is underlay too, the other end of a path may seem to be on it while
/// it is behind the tunnel: each datagram would become another, without end.
fn is_datagram_of_ours(frame: &[u8], head: &FrameHead, endpoints: &[SocketAddr]) -> bool {
    let Some(segment) = Segment::of(frame, head).filter(|segment| segment.protocol == UDP) else { return false };
    let port = u16::from_be_bytes([frame[segment.start], frame[segment.start + 1]]);
    // Nearly all end here.
    if !endpoints.iter().any(|endpoint| endpoint.port() == port) {
        return false;
    }
    let Content::Packet(packet) = Content::of(frame, head) else { return false };
    let is_source = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => packet.source == ip.octets(),
        IpAddr::V6(ip) => packet.source == ip.octets(),
    };
    endpoints.iter().any(|endpoint| endpoint.port() == port && is_source(endpoint.ip()))
}

/// What is looked at where we are a bridge, or a frame from our TAP does not have our MAC: whether it is from a station that we do not
/// know yet.
///
/// # Errors
/// Why it may not leave.
#[cold]
fn judge_as_bridge(fib: &Fib, frame: &[u8], head: &FrameHead) -> Result<bool, DropReason> {
    let Some(behind) = &fib.behind else { return Err(DropReason::ForeignSource) };
    let source = head.source;
    let strange = source != fib.mac && !behind.hears(source);
    if strange && source.is_group() {
        return Err(DropReason::ForeignSource);
    }
    if strange && fib.is_members(source) {
        return Err(DropReason::BridgeOwned);
    }
    // To ourselves is said below, and more plainly.
    if head.destination != fib.mac && is_datagram_of_ours(frame, head, &fib.endpoints) {
        return Err(DropReason::OwnDatagram);
    }
    Ok(strange)
}
