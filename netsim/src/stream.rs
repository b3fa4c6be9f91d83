//! Streams between hosts: what TCP does to datagrams that it carries.
//!
//! A connection leads out through gateways, never in, and to a host that runs and listens at that port. What is sent arrives in
//! its order, each loss after a retransmission, with everything behind it. A way that is gone is noticed late, an end that is gone at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshd::identity::NetworkSecret;
use meshd::node::{StreamNews, StreamWish};
use meshd::wire::stream::{ACCEPTED, TLS_PORT, endpoint};

use crate::host::HostId;
use crate::link::{Carried, Link};
use crate::world::{PORT, What, World};

/// How long the kernel waits for an answer before it sends again, at the least (Linux, `TCP_RTO_MIN`).
const RETRANSMIT: Duration = Duration::from_millis(200);

/// The same for the first packet of a connection (RFC 6298).
const FIRST_RETRANSMIT: Duration = Duration::from_secs(1);

/// The daemon gives up a dial, and the kernel a connection that is not answered.
const DIAL_TIME: Duration = Duration::from_secs(3);
const BREAK_AFTER: Duration = Duration::from_secs(10);

/// The daemon dials TLS so much later than the usual port.
const HEAD_START: Duration = Duration::from_millis(250);

/// Round trips until the first datagram may be sent: TCP's own, and TLS 1.3's.
const PLAIN_TRIPS: u32 = 1;
const TLS_TRIPS: u32 = 2;

/// Bytes that come on top of each datagram: IP, TCP with time stamps, the length.
const HEADERS: usize = 54;

/// A packet of a handshake.
const HANDSHAKE: usize = 66;

/// What does not fit a segment goes in two, which makes no difference here.
const SEGMENT: usize = 1400;

/// One of the two ends of a connection.
type End = (HostId, u32);

/// A connection, as one of its ends sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    other: End,
    /// Whether this end has dialled, and where the one that did has dialled to.
    dialled: bool,
    place: SocketAddr,
    /// When what this end sent last arrives.
    last: Duration,
    broken: bool,
}

/// Something that happens to a stream.
pub(crate) enum StreamStep {
    /// A dial ends.
    Connect(End, u32, SocketAddr),
    /// A datagram arrives.
    Arrive(End, u32, Vec<u8>),
    /// An end hears that the other is gone.
    Closed(End, u32),
}

/// All of them, by both ends.
pub(crate) type Streams = BTreeMap<End, Stream>;

impl World {
    pub(crate) fn wish_stream(&mut self, host: HostId, wish: StreamWish) {
        let life = self.host(host).life;
        match wish {
            StreamWish::Dial { number, endpoint } => {
                self.note(host, format_args!("dial {endpoint} {number}"));
                let end = (host, number);
                let step = StreamStep::Connect(end, life, endpoint);
                match self.listener(host, endpoint) {
                    Some(_) => {
                        let trips = if endpoint.port() == TLS_PORT { TLS_TRIPS } else { PLAIN_TRIPS };
                        let mut at = self.now() + if trips == TLS_TRIPS { HEAD_START } else { Duration::ZERO };
                        for _ in 0..trips {
                            at = self.travel(host, endpoint, true, HANDSHAKE, at, FIRST_RETRANSMIT);
                            at = self.travel(host, endpoint, false, HANDSHAKE, at, FIRST_RETRANSMIT);
                        }
                        self.push_at(at, What::Stream(step));
                    }
                    None => self.push(DIAL_TIME, What::Stream(StreamStep::Closed(end, life))),
                }
            }
            StreamWish::Hang { number } => self.hang((host, number)),
        }
    }

    /// Who listens there for streams, and can be dialled.
    fn listener(&self, host: HostId, to: SocketAddr) -> Option<HostId> {
        let listens = |other: &HostId| {
            let (theirs, ours) = (&self.host(*other).config, &self.host(host).config.network);
            let open = to.port() == PORT || to.port() == TLS_PORT && theirs.tls;
            // Who does not have the secret is no stream's end, but the control network's stranger.
            let same = |secret: &NetworkSecret| secret.as_bytes() == ours.secret.as_bytes();
            open && self.is_running(*other) && theirs.known_secrets.iter().chain([&theirs.network.secret]).any(same)
        };
        self.topology.dial(host, to, self.now()).filter(listens)
    }

    /// When `len` bytes sent at `at` are at the other end of the way from `host` to `to`, or back.
    fn travel(
        &mut self,
        host: HostId,
        to: SocketAddr,
        forth: bool,
        len: usize,
        mut at: Duration,
        again: Duration,
    ) -> Duration {
        let hops = self.topology.tcp_hops(host, to, self.now()).unwrap_or_default();
        let outs: Vec<_> =
            if forth { hops.iter().map(|hop| hop.0).collect() } else { hops.iter().rev().map(|hop| hop.1).collect() };
        for out in outs {
            // Like all TCP it waits for room; how it shares a busy cable is not what is looked at.
            let mut idle = Link::new(self.topology.conditions(out));
            at = loop {
                match idle.carry(len.min(SEGMENT), at, &mut self.links) {
                    Carried::Once(arrives) | Carried::Twice(arrives, _) => break arrives,
                    Carried::Lost(_) => at += again,
                }
            };
        }
        at
    }

    /// Whether a stream's end exists, and who is at the other.
    pub fn stream_end(&self, host: HostId, number: u32) -> Option<HostId> {
        self.streams.get(&(host, number)).map(|stream| stream.other.0)
    }

    /// Streams that a host has.
    pub fn streams_of(&self, host: HostId) -> usize {
        self.streams.range((host, 0)..=(host, u32::MAX)).count()
    }

    pub(crate) fn send_by_stream(&mut self, host: HostId, number: u32, bytes: Vec<u8>) {
        let end = (host, number);
        let Some(stream) = self.streams.get(&end).copied() else { return };
        let (dialler, acceptor) = if stream.dialled { (host, stream.other.0) } else { (stream.other.0, host) };
        if self.topology.dial(dialler, stream.place, self.now()) != Some(acceptor) {
            if !stream.broken {
                for end in [end, stream.other] {
                    let life = self.host(end.0).life;
                    self.push(BREAK_AFTER, What::Stream(StreamStep::Closed(end, life)));
                    self.streams.entry(end).and_modify(|stream| stream.broken = true);
                }
            }
            return;
        }
        let sent = self.sent.entry((host, stream.other.0)).or_default();
        *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
        let now = self.now();
        let at = self.travel(dialler, stream.place, stream.dialled, bytes.len() + HEADERS, now, RETRANSMIT);
        let at = at.max(stream.last);
        self.streams.entry(end).and_modify(|stream| stream.last = at);
        let life = self.host(stream.other.0).life;
        self.push_at(at, What::Stream(StreamStep::Arrive(stream.other, life, bytes)));
    }

    /// One end is closed: the other hears of it.
    fn hang(&mut self, end: End) {
        let Some(stream) = self.streams.remove(&end) else { return };
        let life = self.host(stream.other.0).life;
        let (dialler, forth) = if stream.dialled { (end.0, true) } else { (stream.other.0, false) };
        if self.topology.dial(dialler, stream.place, self.now()).is_some() {
            let at = self.travel(dialler, stream.place, forth, HANDSHAKE, self.now(), RETRANSMIT);
            self.push_at(at.max(stream.last), What::Stream(StreamStep::Closed(stream.other, life)));
        } else {
            self.push(BREAK_AFTER, What::Stream(StreamStep::Closed(stream.other, life)));
        }
    }

    /// A host's process is gone: its kernel says so.
    pub(crate) fn hang_all(&mut self, host: HostId) {
        let ends: Vec<_> = self.streams.range((host, 0)..=(host, u32::MAX)).map(|(end, _)| *end).collect();
        ends.into_iter().for_each(|end| self.hang(end));
    }

    pub(crate) fn stream_step(&mut self, step: StreamStep) {
        match step {
            StreamStep::Connect(end @ (host, number), life, place) if self.host(host).life == life => {
                let Some(other) = self.listener(host, place) else { return self.tell_stream(end, StreamNews::Closed) };
                self.accepted += 1;
                let far = (other, self.accepted | ACCEPTED);
                let last = Duration::ZERO;
                self.streams.insert(end, Stream { other: far, dialled: true, place, last, broken: false });
                self.streams.insert(far, Stream { other: end, dialled: false, place, last, broken: false });
                let hops = self.topology.tcp_hops(host, place, self.now()).unwrap_or_default();
                let from = self.topology.outermost(&hops).unwrap_or(place.ip());
                let from = SocketAddr::new(from, 40_000 + (number % 20_000) as u16);
                self.tell_stream(far, StreamNews::Accepted { from });
                self.tell_stream(end, StreamNews::Connected);
            }
            StreamStep::Arrive(end @ (host, number), life, bytes)
                if self.host(host).life == life && self.streams.contains_key(&end) =>
            {
                self.note(host, format_args!("recv stream {number} {}", bytes.len()));
                self.drive(host, |process, scratch, now, output| {
                    process.datagram(&bytes, endpoint(number), scratch, now, output)
                });
            }
            StreamStep::Closed(end, life) if self.host(end.0).life == life => {
                self.streams.remove(&end);
                self.tell_stream(end, StreamNews::Closed);
            }
            StreamStep::Connect(..) | StreamStep::Arrive(..) | StreamStep::Closed(..) => (),
        }
    }

    fn tell_stream(&mut self, (host, number): End, news: StreamNews) {
        self.note(host, format_args!("stream {number} {news:?}"));
        self.drive(host, |process, _, now, output| process.stream(number, news, now, output));
    }
}
