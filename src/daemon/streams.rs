//! Streams: TCP connections that carry datagrams for those who have no UDP ([`crate::wire::stream`]).
//!
//! One thread drives all of them, with a half of a forwarder of its own: TLS and TCP must hold up neither the lanes nor the control
//! side. What comes in is judged there like in a lane and goes to the TAP, the UDP socket or another stream; what is to go out is
//! handed over by whoever has it ([`super::outlets`]). Nothing waits for long: the kernel is given little ahead of time, and what
//! has waited behind it for `STALE` is dropped, as a router would.
//!
//! Those who dial us at the usual port come by way of the control network, which has the port; at 443 we listen ourselves, and what
//! turns out to be of the control network is passed on to it. Who has not proved to know the network's secret is told nothing.

#![expect(clippy::disallowed_methods, reason = "it does I/O: it reads the clock and draws nonces")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::{ArcSwap, Cache};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use futures_rustls::TlsAcceptor;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use crate::dht::swarm::{StreamKeys, tls};
use crate::node::{StreamNews, StreamWish};
use crate::switch::{Fib, Ingress};
use crate::tap::queue::Queue;
use crate::wire::stream::{ACCEPTED, HELLO_LEN, LENGTH_LEN, MAX_DATAGRAM, TLS_PORT, endpoint, first, hello, is_hello};
use crate::wire::{Counters, DropReason};

use super::direction::{BATCH, Direction, FromLane, Port};
use super::outlets::Parcel;
use super::sockets::Sockets;
use super::udp::{UdpSocket, canonical};

/// What has waited longer is worth nothing to a conversation, and TCP inside had better hear of the loss: a router's queue on a slow
/// line is as long.
const STALE: Duration = Duration::from_millis(250);

/// Bytes that the kernel takes ahead of what the other side has acknowledged room for: enough that a core that is busy for a
/// millisecond does not leave a fast line idle, and little delay on a slow one.
const AHEAD: u32 = 64 * 1024;

/// Bytes read at a time.
const READ: usize = 64 * 1024;

/// How long a dial may take, TLS included: a lost packet and its repetition, a second later.
const DIAL_TIME: Duration = Duration::from_secs(3);

/// TLS is dialled so much later than the usual port: that costs both sides less, and answers within a round trip where it is let out.
const HEAD_START: Duration = Duration::from_millis(250);

/// How long a connection may take to prove that it knows the secret: the same with TLS over a satellite.
const PROOF_TIME: Duration = Duration::from_secs(5);

/// A connection whose other end acknowledges nothing, or takes nothing, for so long is dead. The node has left it long before.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// When nothing passes, the kernel asks so often whether the other end is there, so that boxes in between remember.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Connections that others may have with us, and those of one address: a company's whole office behind one.
const MAX_ACCEPTED: usize = 256;
const MAX_OF_SOURCE: usize = 32;

/// Connections of ours. The node wants few.
const MAX_DIALLED: usize = 16;

/// Wishes of the node, and connections that the control network hands over, under way between threads.
const HANDOVER: usize = 64;

/// How long what is still to be sent may take at the end: the goodbyes.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Between tries to accept while the system has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// What the thread works with.
pub struct Setup {
    /// What streams begin with.
    pub keys: StreamKeys,
    /// Our port, where the control network listens.
    pub port: u16,
    /// The picture to forward by.
    pub fib: Arc<ArcSwap<Fib>>,
    /// Where frames go.
    pub queue: Queue,
    /// Where datagrams go.
    pub socket: Arc<UdpSocket>,
    /// The other sockets, and where streams are found by their numbers.
    pub sockets: Arc<Sockets>,
    /// Where news goes.
    pub to_control: mpsc::Sender<FromLane>,
    /// Who has dialled us at the usual port.
    pub guests: mpsc::Receiver<Guest>,
    /// Where we listen for TLS, if we do.
    pub listener: Option<std::net::TcpListener>,
}

/// The running thread. Dropping it stops it and waits.
pub struct Streams {
    wishes: Option<mpsc::Sender<StreamWish>>,
    /// What was dropped by streams, and by the forwarder behind them.
    counters: [Arc<Mutex<Counters>>; 2],
    thread: Option<JoinHandle<()>>,
}

/// Somebody who has dialled us and knows the secret, and from where.
pub type Guest = (std::net::TcpStream, SocketAddr);

/// A channel for them.
pub fn guests() -> (mpsc::Sender<Guest>, mpsc::Receiver<Guest>) {
    mpsc::channel(HANDOVER)
}

/// Listens for TLS, in both families where there are two.
///
/// # Errors
/// Fit to be shown.
pub fn listen() -> anyhow::Result<std::net::TcpListener> {
    let bind = |any: IpAddr| std::net::TcpListener::bind((any, TLS_PORT));
    let refused =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
    let bound = match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if !refused(&error) => bind(Ipv4Addr::UNSPECIFIED.into()),
        result => result,
    };
    let listener = match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("TCP port {TLS_PORT} is taken (a web server?): leave out --listen-443")
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => bail!(
            "TCP port {TLS_PORT} is for root only: run as root, or sudo setcap cap_net_admin,cap_net_bind_service+ep on meshd"
        ),
        result => result.with_context(|| format!("TCP port {TLS_PORT} could not be opened"))?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Streams {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no threads or no randomness left.
    pub fn start(setup: Setup) -> anyhow::Result<Self> {
        let acceptor = setup.listener.is_some().then(tls::acceptor).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (wishes, wished) = mpsc::channel(HANDOVER);
        let counters = <[Arc<Mutex<Counters>>; 2]>::default();
        let shown = counters.clone();
        let body = move || {
            let local = LocalSet::new();
            local.block_on(&runtime, run(setup, acceptor, wished, shown));
        };
        let thread = std::thread::Builder::new().name("streams".into()).spawn(body).context("no thread for streams")?;
        Ok(Self { wishes: Some(wishes), counters, thread: Some(thread) })
    }

    /// Has a stream made or closed. One that cannot be asked for is as one that was not made: the node gives it up.
    pub fn wish(&self, wish: StreamWish) {
        if let Some(Err(error)) = self.wishes.as_ref().map(|wishes| wishes.try_send(wish)) {
            tracing::debug!("streams are busy: {error}");
        }
    }

    /// What was dropped here.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.counters.iter().for_each(|some| sum.add(&some.lock().unwrap_or_else(PoisonError::into_inner)));
        sum
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.wishes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    setup: Setup,
    acceptor: Option<TlsAcceptor>,
    mut wishes: mpsc::Receiver<StreamWish>,
    [counters, forwarded]: [Arc<Mutex<Counters>>; 2],
) {
    let Setup { keys, port, fib, queue, socket, sockets, to_control, mut guests, listener } = setup;
    let beside = (Arc::clone(&sockets), false);
    let forwarding = Port::new(Arc::new(queue), socket, beside, to_control.clone(), forwarded);
    let shared = Rc::new(Shared {
        keys,
        port,
        fib: RefCell::new(Cache::new(fib)),
        direction: RefCell::new(Direction::new(Ingress::default(), forwarding)),
        sockets,
        to_control,
        dials: RefCell::default(),
        sources: RefCell::default(),
        accepted: Cell::new(0),
        running: Cell::new(0),
        counters,
    });
    if let (Some(listener), Some(acceptor)) = (listener, acceptor) {
        spawn_local(Rc::clone(&shared).accept_tls(listener, acceptor));
    }
    loop {
        tokio::select! {
            wish = wishes.recv() => match wish {
                Some(StreamWish::Dial { number, endpoint }) => shared.dial(number, endpoint),
                Some(StreamWish::Hang { number }) => shared.hang(number),
                None => break,
            },
            Some((stream, from)) = guests.recv() => shared.take_guest(stream, canonical(from)),
        }
    }
    // Whoever still writes ends when it has written.
    for number in shared.sockets.outlets.numbers() {
        shared.sockets.outlets.close(number);
    }
    let _ = timeout(LAST_WORDS, async {
        while shared.running.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What all tasks of the thread share.
struct Shared {
    keys: StreamKeys,
    port: u16,
    fib: RefCell<Cache<Arc<ArcSwap<Fib>>, Arc<Fib>>>,
    direction: RefCell<Direction<Ingress>>,
    sockets: Arc<Sockets>,
    to_control: mpsc::Sender<FromLane>,
    /// Those being made.
    dials: RefCell<BTreeMap<u32, AbortHandle>>,
    /// Connections by who has dialled us.
    sources: RefCell<BTreeMap<u128, usize>>,
    /// Streams accepted so far.
    accepted: Cell<u32>,
    running: Cell<usize>,
    counters: Arc<Mutex<Counters>>,
}

/// A connection of any make.
trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

impl Shared {
    fn count(&self, reason: DropReason, count: u64) {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).count_many(reason, count);
    }

    async fn tell(&self, number: u32, news: StreamNews) {
        // The control side has ended, or is about to: nobody wants to know.
        let _ = self.to_control.send(FromLane::Stream(number, news)).await;
    }

    fn dial(self: &Rc<Self>, number: u32, to: SocketAddr) {
        let shared = Rc::clone(self);
        if self.dials.borrow().len() >= MAX_DIALLED {
            spawn_local(async move { shared.tell(number, StreamNews::Closed).await });
            return;
        }
        let task = spawn_local(async move {
            if to.port() == TLS_PORT {
                tokio::time::sleep(HEAD_START).await;
            }
            let wire = match timeout(DIAL_TIME, connect(&shared.keys, to)).await {
                Ok(Ok(wire)) => Some(wire),
                Ok(Err(error)) => {
                    tracing::debug!(%to, %error, "dialled in vain");
                    None
                }
                Err(_) => {
                    tracing::debug!(%to, "dialled in vain: no answer");
                    None
                }
            };
            shared.dials.borrow_mut().remove(&number);
            match wire {
                Some(wire) => shared.serve(number, StreamNews::Connected, wire).await,
                None => shared.tell(number, StreamNews::Closed).await,
            }
        });
        self.dials.borrow_mut().insert(number, task.abort_handle());
    }

    /// What is still to be written is, and then it is closed.
    fn hang(&self, number: u32) {
        if !self.sockets.outlets.close(number)
            && let Some(dial) = self.dials.borrow_mut().remove(&number)
        {
            dial.abort();
        }
    }

    /// Carries datagrams until the other end, or we, have had enough.
    async fn serve(&self, number: u32, news: StreamNews, wire: Box<dyn Wire>) {
        let (parcels, waiting) = self.sockets.outlets.open(number);
        self.running.set(self.running.get() + 1);
        self.tell(number, news).await;
        let (reader, writer) = wire.split();
        let ended = tokio::select! {
            ended = self.read(number, reader) => ended,
            ended = self.write(parcels, &waiting, writer) => ended,
        };
        tracing::debug!(number, ?ended, "a stream has ended");
        self.running.set(self.running.get() - 1);
        // If we have hung up, the node knows.
        if self.sockets.outlets.close(number) {
            self.tell(number, StreamNews::Closed).await;
        }
    }

    async fn read(&self, number: u32, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; READ + LENGTH_LEN + MAX_DATAGRAM];
        let mut filled = 0;
        loop {
            let count = reader.read(&mut buffer[filled..]).await?;
            if count == 0 {
                return Ok(());
            }
            filled += count;
            let used = self.forward(number, &buffer[..filled])?;
            buffer.copy_within(used..filled, 0);
            filled -= used;
        }
    }

    /// Forwards every datagram that is whole; how many bytes they were.
    fn forward(&self, number: u32, received: &[u8]) -> io::Result<usize> {
        let (mut fib, mut direction) = (self.fib.borrow_mut(), self.direction.borrow_mut());
        let (mut at, source) = (0, Some(endpoint(number)));
        loop {
            let mut sound = Ok(());
            let begin = at;
            direction.turn_with(fib.load(), |batch| {
                while batch.len() < BATCH {
                    match first(&received[at..]) {
                        Ok(Some(range)) => {
                            let datagram = &received[at..][range.clone()];
                            if batch.push(datagram, source).is_none() {
                                return;
                            }
                            at += range.end;
                        }
                        Ok(None) => return,
                        Err(error) => {
                            sound = Err(error);
                            return;
                        }
                    }
                }
            });
            if let Err(error) = sound {
                self.count(DropReason::StreamStranger, 1);
                return Err(io::Error::other(error));
            }
            if at == begin {
                direction.rest();
                return Ok(at);
            }
        }
    }

    async fn write(
        &self,
        mut parcels: mpsc::Receiver<Parcel>,
        waiting: &AtomicUsize,
        mut writer: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        while let Some(Parcel { since, bytes, datagrams }) = parcels.recv().await {
            waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
            if since.elapsed() > STALE {
                self.count(DropReason::StreamFull, datagrams);
                continue;
            }
            timeout(DEAD_AFTER, writer.write_all(&bytes)).await??;
            if parcels.is_empty() {
                timeout(DEAD_AFTER, writer.flush()).await??;
            }
        }
        writer.close().await
    }

    /// Somebody has dialled us at the usual port, and knows the secret.
    fn take_guest(self: &Rc<Self>, stream: std::net::TcpStream, from: SocketAddr) {
        let Some(place) = self.admit(from) else { return };
        let shared = Rc::clone(self);
        spawn_local(async move {
            let _place = place;
            match TcpStream::from_std(stream).and_then(prepared) {
                Ok(stream) => shared.welcome(from, Box::new(stream)).await,
                Err(error) => tracing::debug!(%from, %error, "not taken"),
            }
        });
    }

    async fn welcome(&self, from: SocketAddr, wire: Box<dyn Wire>) {
        let number = self.accepted.get() | ACCEPTED;
        self.accepted.set(self.accepted.get().wrapping_add(1));
        if self.sockets.outlets.has(number) {
            return;
        }
        self.serve(number, StreamNews::Accepted { from }, wire).await;
    }

    async fn accept_tls(self: Rc<Self>, listener: std::net::TcpListener, acceptor: TlsAcceptor) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::warn!("nobody is heard at TCP port {TLS_PORT}: {error}"),
        };
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let from = canonical(from);
                    let Some(place) = self.admit(from) else { continue };
                    let (shared, acceptor) = (Rc::clone(&self), acceptor.clone());
                    spawn_local(async move {
                        let _place = place;
                        shared.hear(stream, from, acceptor).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting failed");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// What somebody wants who has come by TLS.
    async fn hear(&self, stream: TcpStream, from: SocketAddr, acceptor: TlsAcceptor) {
        let proof = async {
            let mut wire = acceptor.accept(prepared(stream)?).await?;
            let mut begin = [0; HELLO_LEN];
            wire.read_exact(&mut begin).await?;
            io::Result::Ok((wire, begin))
        };
        let Ok(Ok((wire, begin))) = timeout(PROOF_TIME, proof).await else {
            return self.count(DropReason::StreamStranger, 1);
        };
        if self.keys.load().iter().any(|key| is_hello(key, &begin)) {
            return self.welcome(from, Box::new(wire)).await;
        }
        // The control network has its own proof, and closes what does not bring it.
        if let Err(error) = pass_on(wire, &begin, self.port).await {
            tracing::debug!(%from, %error, "a control connection in TLS has ended");
        }
    }

    /// A place for a connection from there, if there is one.
    fn admit(self: &Rc<Self>, from: SocketAddr) -> Option<Place> {
        let source = match from.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            // Whoever has a network of IPv6 has more addresses than we have connections.
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        };
        let mut sources = self.sources.borrow_mut();
        let all: usize = sources.values().sum();
        let of_source = sources.entry(source).or_default();
        if all >= MAX_ACCEPTED || *of_source >= MAX_OF_SOURCE {
            sources.retain(|_, count| *count > 0);
            self.count(DropReason::StreamLimit, 1);
            return None;
        }
        *of_source += 1;
        Some(Place { shared: Rc::clone(self), source })
    }
}

/// One of the places that there are for connections from outside, until dropped.
struct Place {
    shared: Rc<Shared>,
    source: u128,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.shared.sources.borrow_mut();
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
        }
        sources.retain(|_, count| *count > 0);
    }
}

async fn connect(keys: &StreamKeys, to: SocketAddr) -> io::Result<Box<dyn Wire>> {
    let stream = prepared(TcpStream::connect(to).await?)?;
    let mut wire: Box<dyn Wire> =
        if to.port() == TLS_PORT { Box::new(tls::connect(stream, to.ip()).await?) } else { Box::new(stream) };
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    // Who is up to date knows the newest.
    let first = keys.load().first().map(|key| hello(key, nonce)).ok_or(io::ErrorKind::NotFound)?;
    wire.write_all(&first).await?;
    wire.flush().await?;
    Ok(wire)
}

/// Sets what a stream wants of its kernel: nothing waits for more, little waits at all, and who is gone is noticed.
fn prepared(stream: TcpStream) -> io::Result<Tcp> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_notsent_lowat(AHEAD)?;
    Ok(Tcp(stream))
}

/// Joins a connection with one to our own port, until one side closes.
async fn pass_on(wire: impl AsyncRead + AsyncWrite + Unpin, begin: &[u8], port: u16) -> io::Result<()> {
    let own = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    own.set_nodelay(true)?;
    let (mut from_own, mut to_own) = Tcp(own).split();
    let (mut from_wire, mut to_wire) = wire.split();
    to_own.write_all(begin).await?;
    tokio::select! {
        copied = futures::io::copy(&mut from_own, &mut to_wire) => copied.map(drop),
        copied = futures::io::copy(&mut from_wire, &mut to_own) => copied.map(drop),
    }
}

/// TCP as TLS wants it.
struct Tcp(TcpStream);

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = tokio::io::ReadBuf::new(buffer);
        let ready = tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), context, &mut buffer);
        ready.map_ok(|()| buffer.filled().len())
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.0), context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), context)
    }
}
