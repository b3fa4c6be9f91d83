//! Lanes: each is one TAP queue, one UDP socket, and the two threads that move frames between them.
//!
//! `egress` reads frames, `ingress` receives datagrams; each lets its half of the forwarder judge the batch and carries
//! the verdicts out itself, so no channel stands on the fast path and nothing is allocated for a frame. Datagrams leave
//! in trains, frames are merged before they reach the kernel. What forwarding
//! cannot judge goes to the control side by a bounded channel: when it is full, punts are dropped and counted, and
//! notices wait where they are.
//!
//! A thread sleeps in poll(2) on its descriptor and on an eventfd, without a timeout: an idle lane costs nothing. A flow
//! stays in its lane: the kernel chooses the TAP queue by the flow and the socket by the peer's endpoint, and a lane writes what
//! it receives into its own queue, so that answers leave by the same lane. Only a peer whose path changes may change lanes.

#![expect(unsafe_code, reason = "poll(2) and eventfd(2) have no safe wrapper")]
#![expect(clippy::disallowed_methods, reason = "a lane tells the forwarder the time, once a batch")]

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use tokio::sync::mpsc;

use crate::identity::Mac;
use crate::node::Punted;
use crate::switch::{Egress, Fib, Forwarder, Ingress, Notice};
use crate::tap::coalesce::Coalescer;
use crate::tap::queue::Queue;
use crate::wire::{Batch, Counters, DropReason, Ecn, Punt, Verdict};

use super::udp::{GRO_DATAGRAMS, TRAIN_BYTES, UdpSocket};

/// Frames read, or datagrams received, in one batch. 64 full frames are 100 KB, which stay in the second-level cache
/// from read to send; more only add delay for the first of them.
const BATCH: usize = 64;

/// Slots of a batch: what one read may bring and room for the copies of floods and the pieces of cut frames. A flood
/// to 255 members and three large bursts of it fit; beyond, the forwarder counts `batch-full`.
const SLOTS: usize = 1024 + GRO_DATAGRAMS;

/// Bytes of a batch: room for as many copies of full frames as there are slots. Untouched pages cost nothing.
const ARENA: usize = SLOTS * 1600;

/// What waits for the control side, punts and notices of one lane together: it works off a few thousand handshakes a
/// second, so 512 are a tenth of a second of the worst; more would only be answered too late.
pub const TO_CONTROL: usize = 512;

/// How often a thread that has worked gives way to others and looks again before it sleeps. In bulk the next superframe is
/// often there by then, and to be woken costs all sides more than to look: with 2 a gigabyte takes 12 % less processor time than
/// with 0. With 8 a crowded machine spends its time on looking.
const LOOKS: u32 = 2;

/// How long a thread looks for work before it sleeps, if it is told to: longer than from one packet to the next of a game
/// that runs at 64 Hz, or it would sleep before each of them. Twice as long would only cost more of the core.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// How often a busy lane shows its counters; an idle one has shown them before it slept.
const COUNTERS_EVERY: Duration = Duration::from_millis(100);

/// What a lane hands to the control side.
#[derive(Debug)]
pub enum FromLane {
    /// A slot that forwarding could not judge.
    Punt(Punted),
    /// A fact that forwarding found.
    Notice(Notice),
}

/// The running lanes. Dropping them stops their threads and waits for them.
pub struct Lanes {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    /// Of each thread.
    counters: Vec<Arc<Mutex<Counters>>>,
    ended: mpsc::Receiver<anyhow::Error>,
}

/// What all lanes share.
pub struct Common {
    /// The picture to forward by.
    pub fib: Arc<ArcSwap<Fib>>,
    /// Where punts and notices go.
    pub to_control: mpsc::Sender<FromLane>,
    /// Whether threads look for work for 20 ms before they sleep.
    pub busy_poll: bool,
}

impl Lanes {
    /// Starts a lane for each queue and its socket: two threads, until the lanes are dropped.
    ///
    /// # Errors
    /// When the system has no threads or descriptors left.
    pub fn start(lanes: Vec<(Queue, Arc<UdpSocket>)>, common: &Common) -> io::Result<Self> {
        let (failed, ended) = mpsc::channel(2 * lanes.len().max(1));
        let mut all = Self { stop: Arc::new(Stop::new()?), threads: Vec::new(), counters: Vec::new(), ended };
        for (index, (queue, socket)) in lanes.into_iter().enumerate() {
            let queue = Arc::new(queue);
            let Forwarder { egress, ingress } = Forwarder::default();
            let port = all.port(&queue, &socket, common);
            all.threads.push(spawn(format!("egress/{index}"), port, egress, failed.clone())?);
            let port = all.port(&queue, &socket, common);
            all.threads.push(spawn(format!("ingress/{index}"), port, ingress, failed.clone())?);
        }
        Ok(all)
    }

    /// What the next thread works with.
    fn port(&mut self, queue: &Arc<Queue>, socket: &Arc<UdpSocket>, common: &Common) -> Port {
        let shown = Arc::<Mutex<Counters>>::default();
        self.counters.push(Arc::clone(&shown));
        Port {
            queue: Arc::clone(queue),
            socket: Arc::clone(socket),
            fib: Arc::clone(&common.fib),
            to_control: common.to_control.clone(),
            busy_poll: common.busy_poll,
            stop: Arc::clone(&self.stop),
            shown,
            counters: Counters::default(),
            coalescer: Coalescer::new(),
        }
    }

    /// What the lanes dropped so far, both directions.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for half in &self.counters {
            sum.add(&half.lock().unwrap_or_else(PoisonError::into_inner));
        }
        sum
    }

    /// Waits until a thread has failed, and says why. Lanes that work never return from this. Cancel-safe.
    pub async fn failure(&mut self) -> anyhow::Error {
        match self.ended.recv().await {
            Some(error) => error,
            None => anyhow::anyhow!("a lane has ended without a reason"),
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.signal();
        for thread in self.threads.drain(..) {
            // A panic was reported by `failure` already.
            let _ = thread.join();
        }
    }
}

/// The half of a forwarder that a thread runs, and where its batches come from.
trait Half: Send + 'static {
    /// The descriptor to wait for.
    fn wait_for<'a>(&self, port: &'a Port) -> BorrowedFd<'a>;
    /// Fills `batch`; whether there may be more to read at once.
    fn read(&mut self, port: &mut Port, fib: &Fib, batch: &mut Batch) -> anyhow::Result<bool>;
    /// Judges every slot.
    fn judge(&mut self, fib: &Fib, batch: &mut Batch, now: Instant);
    /// The next fact.
    fn notice(&mut self) -> Option<Notice>;
    /// What it dropped.
    fn dropped(&self) -> &Counters;
}

impl Half for Egress {
    fn wait_for<'a>(&self, port: &'a Port) -> BorrowedFd<'a> {
        port.queue.as_fd()
    }

    fn read(&mut self, port: &mut Port, fib: &Fib, batch: &mut Batch) -> anyhow::Result<bool> {
        let longest =
            |frame: &[u8]| frame.first_chunk().map_or(usize::MAX, |destination| fib.longest_whole(Mac(*destination)));
        let taken = port
            .queue
            .read(batch, BATCH, longest)
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
    fn wait_for<'a>(&self, port: &'a Port) -> BorrowedFd<'a> {
        port.socket.as_fd()
    }

    fn read(&mut self, port: &mut Port, _: &Fib, batch: &mut Batch) -> anyhow::Result<bool> {
        let (_, more) =
            port.socket.receive(batch, BATCH).map_err(|error| anyhow::anyhow!("the UDP socket failed: {error}"))?;
        Ok(more)
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

/// Everything a thread of a lane works with, its half apart.
struct Port {
    queue: Arc<Queue>,
    socket: Arc<UdpSocket>,
    fib: Arc<ArcSwap<Fib>>,
    to_control: mpsc::Sender<FromLane>,
    busy_poll: bool,
    stop: Arc<Stop>,
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

fn spawn<H: Half>(
    name: String,
    mut port: Port,
    mut half: H,
    failed: mpsc::Sender<anyhow::Error>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        let run = std::panic::AssertUnwindSafe(|| port.run(&mut half));
        let error = match std::panic::catch_unwind(run) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.context(format!("lane {name}")),
            // The panic hook has printed what and where.
            Err(_) => anyhow::anyhow!("lane {name} panicked"),
        };
        let _ = failed.try_send(error);
    })
}

impl Port {
    fn run<H: Half>(&mut self, half: &mut H) -> anyhow::Result<()> {
        let mut batch = Batch::new(ARENA, SLOTS);
        let mut fib = Cache::new(Arc::clone(&self.fib));
        let mut shown = Instant::now();
        let (mut worked, mut looks) = (shown, LOOKS);
        while !self.stop.is_signalled() {
            batch.clear();
            let fib = fib.load();
            let more = half.read(self, fib, &mut batch)?;
            let now = Instant::now();
            if !batch.is_empty() {
                half.judge(fib, &mut batch, now);
                self.carry_out(fib, &mut batch);
            }
            self.pass_notices(half);
            if !more || now.duration_since(shown) >= COUNTERS_EVERY {
                self.show(half.dropped());
                shown = now;
            }
            if more {
                continue;
            }
            if !batch.is_empty() {
                worked = now;
            }
            looks = if batch.is_empty() { looks + 1 } else { 0 };
            if looks < LOOKS || self.busy_poll && now.duration_since(worked) < BUSY_POLL {
                // Whoever makes our work may be waiting for this very core.
                std::thread::yield_now();
            } else {
                self.stop.wait(half.wait_for(self))?;
                looks = 0;
            }
        }
        Ok(())
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
        let lost = self.socket.send_train(endpoint, ecn, batch.bytes_across(first, last), size);
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

    fn show(&self, dropped: &Counters) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone_from(dropped);
        shown.add(&self.counters);
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

/// Wakes the threads of a lane so that they end.
struct Stop {
    event: File,
    signalled: AtomicBool,
}

impl Stop {
    fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let event = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { event, signalled: AtomicBool::new(false) })
    }

    fn signal(&self) {
        self.signalled.store(true, Ordering::Release);
        // It can only fail when the counter is full, and then everybody is awake.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::Acquire)
    }

    /// Sleeps until `fd` is readable or has an error, or the lane is to stop.
    fn wait(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = [wanted(fd.as_raw_fd()), wanted(self.event.as_raw_fd())];
        // SAFETY: `polls` is an array of two valid pollfds, alive for the call; both descriptors are open.
        let result = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        match result {
            0.. => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::tap::queue::tests::{MAC, device};

    /// Punts every datagram, panics at the word "panic", and has seen one thing worth telling.
    #[derive(Default)]
    struct Witness {
        told: bool,
        counters: Counters,
    }

    impl Half for Witness {
        fn wait_for<'a>(&self, port: &'a Port) -> BorrowedFd<'a> {
            port.socket.as_fd()
        }

        fn read(&mut self, port: &mut Port, _: &Fib, batch: &mut Batch) -> anyhow::Result<bool> {
            Ok(port.socket.receive(batch, BATCH)?.1)
        }

        fn judge(&mut self, _: &Fib, batch: &mut Batch, _: Instant) {
            for index in 0..batch.len() {
                assert_ne!(batch.bytes(index), b"panic");
                batch.slot_mut(index).verdict = Verdict::Punt(Punt::Handshake);
            }
        }

        fn notice(&mut self) -> Option<Notice> {
            (!std::mem::replace(&mut self.told, true)).then_some(Notice::Confirmed { local: 7 })
        }

        fn dropped(&self) -> &Counters {
            &self.counters
        }
    }

    fn socket() -> UdpSocket {
        UdpSocket::open(None, 1).expect("a socket").remove(0)
    }

    struct Bench {
        lane: Lanes,
        from_lane: mpsc::Receiver<FromLane>,
        to: SocketAddr,
        sender: UdpSocket,
    }

    fn bench(name: &str, room: usize) -> Option<Bench> {
        let device = device(name)?;
        let here = Arc::new(socket());
        let (to_control, from_lane) = mpsc::channel(room);
        let (failed, ended) = mpsc::channel(2);
        let stop = Arc::new(Stop::new().expect("an eventfd"));
        let counters = vec![Arc::default()];
        let port = Port {
            queue: Arc::new(device.queue(0).expect("a queue")),
            socket: Arc::clone(&here),
            fib: Arc::new(ArcSwap::from_pointee(Fib::empty(Mac(MAC), 1500))),
            to_control,
            busy_poll: false,
            stop: Arc::clone(&stop),
            shown: Arc::clone(&counters[0]),
            counters: Counters::default(),
            coalescer: Coalescer::new(),
        };
        let thread = spawn("test/0".into(), port, Witness::default(), failed).expect("a thread");
        let lane = Lanes { stop, threads: vec![thread], counters, ended };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, here.port()));
        Some(Bench { lane, from_lane, to, sender: socket() })
    }

    fn soon<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), future).await }).expect("in time")
    }

    #[test]
    fn punts_and_notices_reach_the_control_side() {
        let Some(mut bench) = bench("mtest-punt", 8) else { return };
        assert!(matches!(soon(bench.from_lane.recv()), Some(FromLane::Notice(Notice::Confirmed { local: 7 }))));
        bench.sender.try_send(bench.to, b"who are you").expect("sent");
        let Some(FromLane::Punt(punted)) = soon(bench.from_lane.recv()) else { panic!("no punt") };
        assert_eq!((punted.punt, &punted.bytes[..], punted.peer), (Punt::Handshake, &b"who are you"[..], None));
        assert_eq!(punted.source, Some((Ipv4Addr::LOCALHOST, bench.sender.port()).into()));
    }

    #[test]
    fn what_the_control_side_has_no_room_for_is_dropped_and_counted() {
        let Some(bench) = bench("mtest-full", 1) else { return };
        for _ in 0..20 {
            bench.sender.try_send(bench.to, b"too many").expect("sent");
        }
        for _ in 0..200 {
            if bench.lane.counters().get(DropReason::PuntFull) >= 19 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?}", bench.lane.counters());
    }

    #[test]
    fn a_panic_in_a_lane_is_an_error_of_the_daemon() {
        let Some(mut bench) = bench("mtest-panic", 8) else { return };
        bench.sender.try_send(bench.to, b"panic").expect("sent");
        assert_eq!(soon(bench.lane.failure()).to_string(), "lane test/0 panicked");
    }

    #[test]
    fn an_idle_lane_stops_at_once() {
        let Some(device) = device("mtest-stop") else { return };
        let socket = Arc::new(socket());
        let fib = Arc::new(ArcSwap::from_pointee(Fib::empty(Mac(MAC), 1500)));
        let (to_control, _from_lane) = mpsc::channel(8);
        let queue = device.queue(0).expect("a queue");
        let lane =
            Lanes::start(vec![(queue, socket)], &Common { fib, to_control, busy_poll: false }).expect("it starts");
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        drop(lane);
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    }
}
