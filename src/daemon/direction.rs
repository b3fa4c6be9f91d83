//! One direction of a lane: batches from the TAP to the UDP socket, or back, a turn at a time, for whichever thread drives it.
//!
//! A turn reads what is there, lets its half of the forwarder judge it, and carries the verdicts out itself, so no channel stands
//! on the fast path and nothing is allocated for a frame. Datagrams leave in trains, frames are merged before they reach the
//! kernel. What forwarding cannot judge goes to the control side by a bounded channel: when it is full, punts are dropped and counted, and
//! notices wait where they are.

#![expect(clippy::disallowed_methods, reason = "a direction tells the forwarder the time, once a batch")]

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::identity::Mac;
use crate::node::{Punted, StreamNews};
use crate::switch::{Egress, Fib, Ingress, Notice};
use crate::tap::coalesce::Coalescer;
use crate::tap::queue::Queue;
use crate::wire::socket::split;
use crate::wire::stream::number_behind;
use crate::wire::{Batch, Counters, DropReason, Ecn, Punt, Verdict};

use super::sockets::Sockets;
use super::udp::{GRO_DATAGRAMS, TRAIN_BYTES, UdpSocket};

/// Frames read, or datagrams received, in one batch. 64 full frames are 100 KB, which stay in the second-level cache
/// from read to send; more only add delay for the first of them.
pub(super) const BATCH: usize = 64;

/// Slots of a batch: what one read may bring and room for the copies of floods and the pieces of cut frames. A flood
/// to 255 members and three large bursts of it fit; beyond, the forwarder counts `batch-full`.
const SLOTS: usize = 1024 + GRO_DATAGRAMS;

/// Bytes of a batch: room for as many copies of full frames as there are slots. Untouched pages cost nothing.
const ARENA: usize = SLOTS * 1600;

/// Frames, or datagrams, of the first batch after a rest: what woke a lane is mostly alone, and to find that out first would delay
/// it by a system call at each of four places of a round trip.
const FIRST: usize = 1;

/// How often a busy lane shows its counters; an idle one has shown them before it slept.
const COUNTERS_EVERY: Duration = Duration::from_millis(100);

/// What a lane hands to the control side.
#[derive(Debug)]
pub enum FromLane {
    /// A slot that forwarding could not judge.
    Punt(Punted),
    /// A fact that forwarding found.
    Notice(Notice),
    /// What became of a stream; in one channel with what came by it, so that it is known before.
    Stream(u32, StreamNews),
}

/// What a turn was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// Whether there was anything to do.
    pub(super) worked: bool,
    /// Whether there may be more to read at once.
    pub(super) more: bool,
    /// When it was read.
    pub(super) at: Instant,
}

/// A direction: one half of a forwarder, its batch, and where that comes from and goes.
pub(super) struct Direction<H> {
    half: H,
    port: Port,
    batch: Batch,
    /// How much the next turn reads.
    limit: usize,
    shown: Instant,
}

impl<H: Half> Direction<H> {
    /// A direction that has done nothing yet.
    pub(super) fn new(half: H, port: Port) -> Self {
        Self { half, port, batch: Batch::new(ARENA, SLOTS), limit: FIRST, shown: Instant::now() }
    }

    /// Reads a batch, if there is one, and brings all of it to where it belongs.
    ///
    /// # Errors
    /// When the device or the socket is gone.
    pub(super) fn turn(&mut self, fib: &Fib) -> anyhow::Result<Turn> {
        self.batch.clear();
        let full = self.half.read(&mut self.port, fib, &mut self.batch, self.limit)?;
        Ok(self.work(fib, full))
    }

    /// The same with a batch that the caller has.
    pub(super) fn turn_with(&mut self, fib: &Fib, fill: impl FnOnce(&mut Batch)) -> Turn {
        self.batch.clear();
        fill(&mut self.batch);
        self.work(fib, false)
    }

    fn work(&mut self, fib: &Fib, full: bool) -> Turn {
        let at = Instant::now();
        let worked = !self.batch.is_empty();
        // A full first batch says nothing yet.
        let more = full && self.limit == BATCH;
        if worked {
            self.limit = BATCH;
            self.half.judge(fib, &mut self.batch, at);
            self.port.carry_out(fib, &mut self.batch);
            if at.duration_since(self.shown) >= COUNTERS_EVERY {
                self.show();
                self.shown = at;
            }
        }
        self.port.pass_notices(&mut self.half);
        Turn { worked, more, at }
    }

    /// To be called before whoever drives it sleeps.
    pub(super) fn rest(&mut self) {
        self.limit = FIRST;
        self.show();
    }

    /// Shows what was dropped so far.
    fn show(&self) {
        let mut shown = self.port.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone_from(self.half.dropped());
        shown.add(&self.port.counters);
    }
}

/// The half of a forwarder that judges this direction, and where its batches come from.
pub(super) trait Half: Send + 'static {
    /// Fills `batch` with about `limit` slots; whether there may be more to read at once.
    fn read(&mut self, port: &mut Port, fib: &Fib, batch: &mut Batch, limit: usize) -> anyhow::Result<bool>;
    /// Judges every slot.
    fn judge(&mut self, fib: &Fib, batch: &mut Batch, now: Instant);
    /// The next fact.
    fn notice(&mut self) -> Option<Notice>;
    /// What it dropped.
    fn dropped(&self) -> &Counters;
}

impl Half for Egress {
    fn read(&mut self, port: &mut Port, fib: &Fib, batch: &mut Batch, limit: usize) -> anyhow::Result<bool> {
        let longest =
            |frame: &[u8]| frame.first_chunk().map_or(usize::MAX, |destination| fib.longest_whole(Mac(*destination)));
        let taken = port
            .queue
            .read(batch, limit, longest)
            .map_err(|error| anyhow::anyhow!("the TAP device is gone: {error}"))?;
        port.counters.count_many(DropReason::SuperframeMalformed, taken.malformed);
        port.counters.count_many(DropReason::BatchFull, taken.full);
        Ok(taken.more)
    }

    fn judge(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        self.handle_frames(fib, batch, now);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.poll_notice()
    }

    fn dropped(&self) -> &Counters {
        self.counters()
    }
}

impl Half for Ingress {
    fn read(&mut self, port: &mut Port, _: &Fib, batch: &mut Batch, limit: usize) -> anyhow::Result<bool> {
        let failed = |error| anyhow::anyhow!("the UDP socket failed: {error}");
        let (_, more) = port.socket.receive(batch, limit).map_err(failed)?;
        let beside = port.reads_beside && port.beside.receive(batch, limit).map_err(failed)?;
        Ok(more || beside)
    }

    fn judge(&mut self, fib: &Fib, batch: &mut Batch, now: Instant) {
        self.handle_datagrams(fib, batch, now);
    }

    fn notice(&mut self) -> Option<Notice> {
        self.poll_notice()
    }

    fn dropped(&self) -> &Counters {
        self.counters()
    }
}

/// Everything a direction works with, its half apart.
pub(super) struct Port {
    queue: Arc<Queue>,
    pub(super) socket: Arc<UdpSocket>,
    /// The other sockets, and whether this lane reads them.
    beside: Arc<Sockets>,
    reads_beside: bool,
    to_control: mpsc::Sender<FromLane>,
    /// What the status shows: the half's counters and `counters` together.
    shown: Arc<Mutex<Counters>>,
    /// What was lost here, outside the forwarder.
    counters: Counters,
    coalescer: Coalescer,
}

/// Datagrams that lie end to end and go to one endpoint: one system call sends them.
#[derive(Debug, Clone, Copy)]
struct Train {
    endpoint: SocketAddr,
    ecn: Ecn,
    /// The slots at its ends.
    first: usize,
    last: usize,
    /// Datagrams.
    count: usize,
    /// Bytes of the first, and of every other but the last.
    size: usize,
    /// Bytes of all.
    len: usize,
}

impl Port {
    /// Between `queue` and `socket`, and those `beside` it if it is the lane that reads them, with `shown` to show its
    /// counters in.
    pub(super) fn new(
        queue: Arc<Queue>,
        socket: Arc<UdpSocket>,
        (beside, reads_beside): (Arc<Sockets>, bool),
        to_control: mpsc::Sender<FromLane>,
        shown: Arc<Mutex<Counters>>,
    ) -> Self {
        Self {
            queue,
            socket,
            beside,
            reads_beside,
            to_control,
            shown,
            counters: Counters::default(),
            coalescer: Coalescer::new(),
        }
    }

    fn carry_out(&mut self, fib: &Fib, batch: &mut Batch) {
        let mut train: Option<Train> = None;
        let (mut deliver, longest) = (false, self.socket.longest_train());
        for index in batch.in_order() {
            match batch.slots()[index].verdict {
                Verdict::Send(endpoint) => {
                    let joined = train.and_then(|train| train.with(batch, index, endpoint, longest));
                    if joined.is_none() {
                        self.depart(batch, train);
                    }
                    train = joined.or_else(|| Some(Train::of(batch, index, endpoint)));
                }
                Verdict::Deliver => deliver = true,
                Verdict::Punt(punt) => self.punt(fib, batch, index, punt),
                Verdict::Drop(reason) => tracing::trace!(reason = reason.name(), "dropped"),
                Verdict::Pending | Verdict::Done => {}
            }
        }
        self.depart(batch, train);
        if deliver {
            self.deliver(batch);
        }
    }

    fn depart(&mut self, batch: &Batch, train: Option<Train>) {
        let Some(Train { endpoint, ecn, first, last, size, .. }) = train else { return };
        let bytes = batch.bytes_across(first, last);
        if let Some(number) = number_behind(&endpoint) {
            let lost = self.beside.outlets.send(number, bytes, size);
            return self.counters.count_many(DropReason::StreamFull, lost);
        }
        let lost = match split(endpoint) {
            (0, endpoint) => self.socket.send_train(endpoint, ecn, bytes, size),
            (number, endpoint) => match self.beside.get(number) {
                Some(socket) => socket.send_train(endpoint, ecn, bytes, size),
                None => bytes.len().div_ceil(size) as u64,
            },
        };
        self.counters.count_many(DropReason::SendFailed, lost);
    }

    fn deliver(&mut self, batch: &mut Batch) {
        self.coalescer.coalesce(batch, self.queue.offloads());
        for delivery in self.coalescer.deliveries() {
            if let Err(error) = self.queue.deliver(batch, &delivery) {
                tracing::trace!(%error, "not delivered");
                self.counters.count_many(DropReason::TapFailed, delivery.slots().count() as u64);
            }
        }
    }

    /// Copies a slot to the control side, if there is room.
    fn punt(&mut self, fib: &Fib, batch: &Batch, index: usize, punt: Punt) {
        let Ok(permit) = self.to_control.try_reserve() else {
            self.counters.count(DropReason::PuntFull);
            return;
        };
        let slot = &batch.slots()[index];
        let peer = slot.peer.and_then(|peer| fib.peers.get(peer)).map(|peer| peer.peer);
        let punted = Punted { punt, bytes: batch.bytes(index).to_vec(), source: slot.source, peer };
        permit.send(FromLane::Punt(punted));
    }

    /// Hands notices on while there is room; the others stay in the forwarder until the next batch.
    fn pass_notices<H: Half>(&self, half: &mut H) {
        while let Ok(permit) = self.to_control.try_reserve() {
            let Some(notice) = half.notice() else { return };
            permit.send(FromLane::Notice(notice));
        }
    }
}

impl Train {
    fn of(batch: &Batch, slot: usize, endpoint: SocketAddr) -> Self {
        let len = batch.bytes(slot).len();
        Self { endpoint, ecn: batch.slots()[slot].ecn, first: slot, last: slot, count: 1, size: len, len }
    }

    /// The train with the datagram of `slot` behind it; `None` if it cannot join.
    fn with(self, batch: &Batch, slot: usize, endpoint: SocketAddr, longest: usize) -> Option<Self> {
        let (before, next) = (&batch.slots()[self.last], &batch.slots()[slot]);
        let (Range { start: begin, end }, Range { start, end: next_end }) = (before.range(), next.range());
        let joins = endpoint == self.endpoint
            && next.ecn == self.ecn
            && start == end
            && next_end - start <= self.size
            // A shorter one is the last.
            && end - begin == self.size
            && self.count < longest
            && self.len + next_end - start <= TRAIN_BYTES;
        joins.then_some(Self { last: slot, count: self.count + 1, len: self.len + next_end - start, ..self })
    }
}
