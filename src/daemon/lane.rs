//! Lanes: each is one TAP queue, one UDP socket, and the two threads that move frames between them.
//!
//! A lane has two [directions](super::direction). While little happens, its leader drives both by turns: what it has just
//! written into the TAP is often answered by the kernel at once, and the answer leaves without waking anybody. When it has
//! worked for a while without a rest, its second takes over what comes in, so that a busy lane has two cores; when nothing has come
//! in for a moment, it gives it back. Only one thread at a time drives a direction, so nothing is reordered.
//!
//! Who has nothing to do sleeps in poll(2) without a timeout: an idle lane costs nothing. A flow
//! stays in its lane: the kernel chooses the TAP queue by the flow and the socket by the session, and a lane writes what
//! it receives into its own queue, so that answers leave by the same lane.

#![expect(unsafe_code, reason = "poll(2) and eventfd(2) have no safe wrapper")]
#![expect(clippy::disallowed_methods, reason = "how long a thread has worked is read from the clock")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use tokio::sync::mpsc;

use crate::switch::{Fib, Forwarder};
use crate::tap::queue::Queue;
use crate::wire::{Counters, DropReason};

use super::direction::{Direction, FromLane, Half, Port};
use super::sockets::Sockets;
use super::udp::UdpSocket;

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

/// How long the leader works without a rest before its second helps. A round trip of one packet takes a tenth of it; in bulk it
/// is over before TCP has left its slow start.
const APART_AFTER: Duration = Duration::from_millis(1);

/// How long nothing comes in before the second gives the direction back. In bulk something comes every tenth of that; twice as long
/// would leave more lone packets to two threads.
const TOGETHER_AFTER: Duration = Duration::from_millis(2);

/// The running lanes. Dropping them stops their threads and waits for them.
pub struct Lanes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// What wakes the leader of each lane.
    bells: Vec<Arc<Bell>>,
    /// Of each direction.
    counters: Vec<Arc<Mutex<Counters>>>,
    sockets: Vec<Arc<UdpSocket>>,
    ended: mpsc::Receiver<anyhow::Error>,
    failed: mpsc::Sender<anyhow::Error>,
}

/// What all lanes share.
pub struct Common {
    /// The picture to forward by.
    pub fib: Arc<ArcSwap<Fib>>,
    /// The sockets besides those of the lanes; the first lane reads them.
    pub sockets: Arc<Sockets>,
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
        let mut all = Self::none(lanes.len());
        for (queue, socket) in lanes {
            let Forwarder { egress, ingress } = Forwarder::default();
            all.add(queue, socket, common, egress, ingress)?;
        }
        Ok(all)
    }

    /// No lanes yet, of at most `count`.
    fn none(count: usize) -> Self {
        let (failed, ended) = mpsc::channel(2 * count.max(1));
        let stop = Arc::default();
        let (threads, bells, counters, sockets) = Default::default();
        Self { stop, threads, bells, counters, sockets, ended, failed }
    }

    fn add<E: Half, I: Half>(
        &mut self,
        queue: Queue,
        socket: Arc<UdpSocket>,
        common: &Common,
        egress: E,
        ingress: I,
    ) -> io::Result<()> {
        let index = self.bells.len();
        self.sockets.push(Arc::clone(&socket));
        let queue = Arc::new(queue);
        let mut port = || {
            let shown = Arc::<Mutex<Counters>>::default();
            self.counters.push(Arc::clone(&shown));
            let beside = (Arc::clone(&common.sockets), index == 0);
            Port::new(Arc::clone(&queue), Arc::clone(&socket), beside, common.to_control.clone(), shown)
        };
        let mut egress = Direction::new(egress, port());
        let ingress = Mutex::new(Direction::new(ingress, port()));
        let bell = Arc::new(Bell::new()?);
        self.bells.push(Arc::clone(&bell));
        let lane = Arc::new(Lane {
            queue,
            socket,
            beside: (index == 0).then(|| Arc::clone(&common.sockets)),
            fib: Arc::clone(&common.fib),
            busy_poll: common.busy_poll,
            stop: Arc::clone(&self.stop),
            bell,
            apart: AtomicBool::new(false),
            ingress,
        });
        let second = {
            let lane = Arc::clone(&lane);
            self.spawn(format!("second/{index}"), move || lane.second())?
        };
        self.spawn(format!("lane/{index}"), move || lane.lead(&mut egress, &second))?;
        Ok(())
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<std::thread::Thread> {
        let failed = self.failed.clone();
        let handle = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let error = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.context(format!("thread {name}")),
                // The panic hook has printed what and where.
                Err(_) => anyhow::anyhow!("thread {name} panicked"),
            };
            let _ = failed.try_send(error);
        })?;
        let thread = handle.thread().clone();
        self.threads.push(handle);
        Ok(thread)
    }

    /// What the lanes dropped so far, both directions.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for half in &self.counters {
            sum.add(&half.lock().unwrap_or_else(PoisonError::into_inner));
        }
        sum.count_many(DropReason::ReceiveFull, self.sockets.iter().map(|socket| socket.overflows()).sum());
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
        self.stop.store(true, Ordering::Release);
        self.bells.iter().for_each(|bell| bell.ring());
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A panic was reported by `failure` already.
            let _ = thread.join();
        }
    }
}

/// What the two threads of a lane share.
struct Lane<I> {
    queue: Arc<Queue>,
    socket: Arc<UdpSocket>,
    /// The other sockets, if this lane reads them.
    beside: Option<Arc<Sockets>>,
    fib: Arc<ArcSwap<Fib>>,
    busy_poll: bool,
    stop: Arc<AtomicBool>,
    bell: Arc<Bell>,
    /// Whether the second drives what comes in.
    apart: AtomicBool,
    /// Locked by whoever drives it, for a turn or for as long as the lane is apart; nobody ever waits for it.
    ingress: Mutex<Direction<I>>,
}

impl<I: Half> Lane<I> {
    /// Drives what goes out, and, unless the second does, what comes in: by turns, what woke it first.
    fn lead<E: Half>(&self, egress: &mut Direction<E>, second: &std::thread::Thread) -> anyhow::Result<()> {
        let mut fib = Cache::new(Arc::clone(&self.fib));
        let mut pace = Pace::new(self.busy_poll.then_some(BUSY_POLL));
        let (mut out, mut found_nothing) = (true, false);
        while !self.is_stopped() {
            let fib = fib.load();
            let apart = self.apart.load(Ordering::Acquire);
            out |= apart;
            let turn = if out { egress.turn(fib)? } else { self.ingress().turn(fib)? };
            if turn.worked && !apart && turn.at.duration_since(pace.rested) >= APART_AFTER {
                self.apart.store(true, Ordering::Release);
                second.unpark();
            }
            // The kernel answers most of what is written into the TAP at once: there is nobody to give way to.
            let answered = turn.worked && !out;
            let half_a_look = !turn.worked && !found_nothing && !apart;
            found_nothing = half_a_look;
            out = !out;
            if turn.more || half_a_look || pace.goes_on(turn.worked, !answered, turn.at) {
                continue;
            }
            egress.rest();
            if apart {
                self.bell.wait([Some(self.queue.as_fd()), None, None])?;
                out = true;
            } else {
                self.ingress().rest();
                let [socket, beside] = self.sockets();
                out = self.bell.wait([Some(self.queue.as_fd()), socket, beside])?;
            }
            pace.rested = Instant::now();
        }
        Ok(())
    }

    /// Drives what comes in while there is much of it.
    fn second(&self) -> anyhow::Result<()> {
        let mut fib = Cache::new(Arc::clone(&self.fib));
        while !self.is_stopped() {
            if !self.apart.load(Ordering::Acquire) {
                std::thread::park();
                continue;
            }
            let mut ingress = self.ingress();
            let mut pace = Pace::new(self.busy_poll.then_some(TOGETHER_AFTER));
            while !self.is_stopped() {
                let turn = ingress.turn(fib.load())?;
                if turn.more || pace.goes_on(turn.worked, true, turn.at) {
                    continue;
                }
                ingress.rest();
                if !is_readable(self.sockets(), TOGETHER_AFTER)? {
                    break;
                }
            }
            drop(ingress);
            self.apart.store(false, Ordering::Release);
            self.bell.ring();
        }
        Ok(())
    }

    fn ingress(&self) -> MutexGuard<'_, Direction<I>> {
        self.ingress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What datagrams come in by.
    fn sockets(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [Some(self.socket.as_fd()), self.beside.as_ref().map(|beside| beside.as_fd())]
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// When a thread sleeps.
struct Pace {
    /// How long to look for work first.
    busy_poll: Option<Duration>,
    /// When it last woke up, or would have slept.
    rested: Instant,
    /// When it last had work.
    worked: Instant,
    /// How often in a row it found none.
    looks: u32,
}

impl Pace {
    fn new(busy_poll: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { busy_poll, rested: now, worked: now, looks: 0 }
    }

    /// Whether to look again after a turn at `at` that `worked` or did not; `gives_way` to others first, if told to.
    fn goes_on(&mut self, worked: bool, gives_way: bool, at: Instant) -> bool {
        if worked {
            self.worked = at;
            self.looks = 0;
        } else {
            self.looks += 1;
        }
        if self.looks >= LOOKS {
            self.rested = at;
        }
        let patient = |limit| at.duration_since(self.worked) < limit;
        let goes_on = self.looks < LOOKS || self.busy_poll.is_some_and(patient);
        if !goes_on {
            self.looks = 0;
        } else if gives_way {
            // Whoever makes our work, or waits for it, may be waiting for this very core.
            std::thread::yield_now();
        }
        goes_on
    }
}

/// Wakes the leader of a lane.
struct Bell(File);

impl Bell {
    fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    fn ring(&self) {
        // It can only fail when the counter is full, and then it rings already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Sleeps until one of `fds` is readable or has an error, or the bell rings; whether it is the first of them.
    fn wait(&self, fds: [Option<BorrowedFd<'_>>; 3]) -> io::Result<bool> {
        let mut polls = [watched(Some(self.0.as_fd())), watched(fds[0]), watched(fds[1]), watched(fds[2])];
        poll(&mut polls, -1)?;
        if polls[0].revents != 0 {
            // It says how often it rang; all of that is over now.
            let _ = (&self.0).read(&mut [0; 8]);
        }
        Ok(polls[1].revents != 0)
    }
}

/// Waits until one of `fds` is readable or has an error, or `limit` is over; whether one is.
fn is_readable(fds: [Option<BorrowedFd<'_>>; 2], limit: Duration) -> io::Result<bool> {
    poll(&mut fds.map(watched), limit.as_millis() as libc::c_int)
}

fn watched(fd: Option<BorrowedFd<'_>>) -> libc::pollfd {
    // poll(2) passes over what is negative.
    libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 }
}

/// Whether any of them has something, before `limit` milliseconds are over (-1: never).
fn poll(polls: &mut [libc::pollfd], limit: libc::c_int) -> io::Result<bool> {
    // SAFETY: `polls` is a slice of valid pollfds, alive for the call.
    let result = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, limit) };
    match result {
        0.. => Ok(result > 0),
        _ => match io::Error::last_os_error() {
            // Somebody looks whether there is work, and comes back.
            error if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::identity::Mac;
    use crate::node::Punted;
    use crate::switch::{Egress, Notice};
    use crate::tap::queue::tests::{MAC, device};
    use crate::wire::{Batch, DropReason, Punt, Verdict};

    /// Punts every datagram, panics at the word "panic", and has seen one thing worth telling.
    #[derive(Default)]
    struct Witness {
        told: bool,
        counters: Counters,
    }

    impl Half for Witness {
        fn read(&mut self, port: &mut Port, _: &Fib, batch: &mut Batch, limit: usize) -> anyhow::Result<bool> {
            Ok(port.socket.receive(batch, limit)?.1)
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
        UdpSocket::open(None, 1).expect("a socket").lanes.remove(0)
    }

    struct Bench {
        lane: Lanes,
        from_lane: mpsc::Receiver<FromLane>,
        to: SocketAddr,
        sender: UdpSocket,
    }

    /// A lane whose incoming direction is a [`Witness`], with room for `room` things to tell.
    fn bench(name: &str, room: usize) -> Option<Bench> {
        let queue = device(name)?.queue(0).expect("a queue");
        let here = Arc::new(socket());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, here.port()));
        let (common, from_lane) = common(room);
        let mut lane = Lanes::none(1);
        lane.add(queue, here, &common, Egress::default(), Witness::default()).expect("it starts");
        Some(Bench { lane, from_lane, to, sender: socket() })
    }

    fn common(room: usize) -> (Common, mpsc::Receiver<FromLane>) {
        let (to_control, from_lane) = mpsc::channel(room);
        let fib = Arc::new(ArcSwap::from_pointee(Fib::empty(Mac(MAC), 1500)));
        let sockets = Arc::new(Sockets::new().expect("an epoll instance"));
        (Common { fib, sockets, to_control, busy_poll: false }, from_lane)
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
    fn whoever_drives_a_direction_its_order_stays() {
        const BURSTS: u32 = 8;
        const IN_ONE: u32 = 3000;
        let Some(mut bench) = bench("mtest-order", (BURSTS * IN_ONE + 8) as usize) else { return };
        let (mut last, mut arrived) = (None, 0);
        for burst in 0..BURSTS {
            // Far longer than it takes until the second helps, and after it a rest in which it gives back.
            for number in burst * IN_ONE..(burst + 1) * IN_ONE {
                bench.sender.try_send(bench.to, &number.to_be_bytes()).expect("sent");
            }
            std::thread::sleep(10 * TOGETHER_AFTER);
            while let Ok(told) = bench.from_lane.try_recv() {
                // What the kernel sends into a new device is punted too, by the other direction.
                let FromLane::Punt(punted @ Punted { punt: Punt::Handshake, .. }) = told else { continue };
                let number = u32::from_be_bytes(punted.bytes[..].try_into().expect("a number"));
                assert!(last < Some(number), "{number} after {last:?}");
                (last, arrived) = (Some(number), arrived + 1);
            }
        }
        assert!(arrived > BURSTS * IN_ONE / 2, "{arrived} of {}", BURSTS * IN_ONE);
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
        assert_eq!(soon(bench.lane.failure()).to_string(), "thread lane/0 panicked");
    }

    #[test]
    fn an_idle_lane_stops_at_once() {
        let Some(device) = device("mtest-stop") else { return };
        let (common, _from_lane) = common(8);
        let queue = device.queue(0).expect("a queue");
        let lane = Lanes::start(vec![(queue, Arc::new(socket()))], &common).expect("it starts");
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        drop(lane);
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    }
}
