//! A host: a node and a forwarder, wired as the daemon wires them.
//!
//! What the daemon does with threads, channels and sockets happens here in one call: a frame or a datagram goes through
//! the forwarder, punts and notices go into the node, and everything that the node wants comes out in an [`Output`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use meshd::config::NodeConfig;
use meshd::dht;
use meshd::identity::{Mac, NetworkSecret, PeerId, UnixSeconds};
use meshd::node::event::PeerChange;
use meshd::node::{Command, CommandId, Event, Node, Punted, Reason, Reply, StreamNews, StreamWish, Transmit};
use meshd::switch::{Fib, Forwarder};
use meshd::wire::socket::split;
use meshd::wire::{Batch, Counters, Verdict};

use crate::world::PORT;

/// Bytes of a batch: a flood of a full frame to a hundred peers, in fragments, with their room.
const BATCH_BYTES: usize = 512 * 1024;

/// Slots of a batch: one frame and its copies to every peer, cut in two.
const BATCH_SLOTS: usize = 512;

/// What a host cost the network and its machine.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    /// Datagrams sent, by their first byte: initiation, response, cookie, sealed; the rest at 0.
    pub sent: [u64; 5],
    /// Bytes of UDP payload sent.
    pub bytes: u64,
    /// Calls because of a deadline.
    pub wakes: u64,
    /// Calls of which nothing came, by the reason given.
    pub idle_wakes: BTreeMap<Reason, u64>,
    /// Commands to the directory.
    pub commands: u64,
}

impl Costs {
    /// Datagrams of any kind.
    pub fn datagrams(&self) -> u64 {
        self.sent.iter().sum()
    }
}

/// The port of a host's socket.
pub fn port_of(number: u16) -> u16 {
    if number == 0 { PORT } else { FIRST_EPHEMERAL + number }
}

/// The socket at a port, if there may be one.
pub fn socket_at(port: u16) -> Option<u16> {
    if port == PORT { Some(0) } else { port.checked_sub(FIRST_EPHEMERAL).filter(|number| *number != 0) }
}

/// Below the ports of all sockets but the first.
const FIRST_EPHEMERAL: u16 = 50_000;

/// A host of the world, in the order in which they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

/// What a host wants of the world after an input.
#[derive(Debug, Default)]
pub struct Output {
    /// Datagrams.
    pub sends: Vec<Transmit>,
    /// Streams to be made or closed.
    pub streams: Vec<StreamWish>,
    /// For the directory.
    pub commands: Vec<dht::Command>,
    /// Frames for the TAP.
    pub frames: Vec<Vec<u8>>,
    /// Answers to the operator.
    pub replies: Vec<(CommandId, Reply)>,
    /// New overlay addresses, and why.
    pub addresses: Vec<(Mac, IpAddr, IpAddr, Option<String>)>,
    /// The records to keep on disk, replacing those kept before.
    pub persist: Option<Vec<Vec<u8>>>,
    /// The statements to keep on disk, replacing those kept before.
    pub keep: Option<Vec<Vec<u8>>>,
    /// The network's secrets, newest first, if there is a new one.
    pub secrets: Option<Vec<NetworkSecret>>,
    /// Whether the node was told that it is no member any more.
    pub expelled: bool,
    /// What the user sees.
    pub changes: Vec<(PeerId, PeerChange)>,
}

impl Output {
    /// Whether nothing came of the input.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty()
            && self.streams.is_empty()
            && self.commands.is_empty()
            && self.frames.is_empty()
            && self.replies.is_empty()
            && self.addresses.is_empty()
            && self.persist.is_none()
            && self.keep.is_none()
            && self.secrets.is_none()
            && !self.expelled
            && self.changes.is_empty()
    }
}

/// A host's process while it runs.
pub struct Process {
    node: Node,
    forwarder: Forwarder,
    fib: Arc<Fib>,
    /// The numbers of its sockets but the first.
    sockets: BTreeSet<u16>,
    /// Which of them the node wants to keep, once everything has been sent.
    keep: Option<BTreeSet<u16>>,
    /// How many new pictures the node made.
    pub pictures: u64,
}

/// The batch that all hosts use in turn: only one runs at a time.
pub struct Scratch(Batch);

impl Default for Scratch {
    fn default() -> Self {
        Self(Batch::new(BATCH_BYTES, BATCH_SLOTS))
    }
}

impl Process {
    /// Starts the node; it is told its endpoints next.
    pub fn start(config: NodeConfig, seed: [u8; 32], now: Instant, unix_now: UnixSeconds, output: &mut Output) -> Self {
        let fib = Arc::new(Fib::empty(config.mac(), config.mtu));
        let node = Node::new(config, seed, now, unix_now);
        let mut process =
            Self { node, forwarder: Forwarder::default(), fib, sockets: BTreeSet::new(), keep: None, pictures: 0 };
        process.drain(now, output);
        process
    }

    /// As `meshd up --search-mtu`.
    pub fn search_mtus(&mut self) {
        self.node.search_mtus();
    }

    /// A frame that the host wrote into its TAP.
    pub fn frame(&mut self, frame: &[u8], scratch: &mut Scratch, now: Instant, output: &mut Output) {
        let batch = &mut scratch.0;
        batch.clear();
        batch.push(frame, None).expect("one frame fits a batch");
        self.forwarder.egress.handle_frames(&self.fib, batch, now);
        self.carry_out(scratch, now, output);
    }

    /// A datagram that came to the UDP socket.
    pub fn datagram(
        &mut self,
        datagram: &[u8],
        source: SocketAddr,
        scratch: &mut Scratch,
        now: Instant,
        output: &mut Output,
    ) {
        let batch = &mut scratch.0;
        batch.clear();
        batch.push(datagram, Some(source)).expect("one datagram fits a batch");
        self.forwarder.ingress.handle_datagrams(&self.fib, batch, now);
        self.carry_out(scratch, now, output);
    }

    /// What became of a stream.
    pub fn stream(&mut self, number: u32, news: StreamNews, now: Instant, output: &mut Output) {
        self.node.handle_stream(number, news, now);
        self.drain(now, output);
    }

    /// News from the directory.
    pub fn directory(&mut self, event: dht::Event, now: Instant, output: &mut Output) {
        self.node.handle_directory(event, now);
        self.drain(now, output);
    }

    /// The directory was started anew.
    pub fn new_directory(&mut self, now: Instant, output: &mut Output) {
        self.node.handle_new_directory();
        self.drain(now, output);
    }

    /// The interfaces changed.
    pub fn endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Instant, output: &mut Output) {
        self.node.handle_endpoints(endpoints, now);
        self.drain(now, output);
    }

    /// The gateway was asked for a mapping, and said this.
    pub fn mapped(&mut self, endpoints: &[SocketAddr], now: Instant, output: &mut Output) {
        self.node.handle_mapped(endpoints, now);
        self.drain(now, output);
    }

    /// The daemon looks at the wall clock.
    pub fn wall_time(&mut self, unix_now: UnixSeconds, now: Instant, output: &mut Output) {
        self.node.handle_wall_time(unix_now, now);
        self.drain(now, output);
    }

    /// The operator asks.
    pub fn command(&mut self, id: CommandId, command: Command, now: Instant, output: &mut Output) {
        self.node.handle_command(id, command, now);
        self.drain(now, output);
    }

    /// The node's deadline has come.
    pub fn timeout(&mut self, now: Instant, output: &mut Output) {
        self.node.handle_timeout(now);
        self.drain(now, output);
    }

    /// The node says goodbye.
    pub fn shutdown(&mut self, now: Instant, output: &mut Output) {
        self.node.shutdown(now);
        self.drain(now, output);
    }

    /// When the node wants to be called.
    pub fn deadline(&mut self) -> Option<meshd::node::Deadline> {
        self.node.poll_timeout()
    }

    /// The picture that forwarding reads now.
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// What was dropped, by node and forwarder.
    pub fn counters(&self) -> Counters {
        let mut counters = self.node.counters();
        counters.add(self.forwarder.egress.counters());
        counters.add(self.forwarder.ingress.counters());
        counters
    }

    fn carry_out(&mut self, scratch: &mut Scratch, now: Instant, output: &mut Output) {
        let batch = &scratch.0;
        // Punts name peers by their index in the picture that the forwarder read, so the names are taken before the
        // node may draw a new one.
        let fib = Arc::clone(&self.fib);
        for (index, slot) in batch.slots().iter().enumerate() {
            let bytes = batch.bytes(index);
            match slot.verdict {
                Verdict::Deliver => output.frames.push(bytes.to_vec()),
                Verdict::Send(endpoint) => {
                    output.sends.push(Transmit { endpoint, bytes: bytes.to_vec(), hop_limit: None });
                }
                Verdict::Punt(punt) => {
                    let peer = slot.peer.map(|peer| fib.peers[peer].peer);
                    self.node.handle_punt(Punted { punt, bytes: bytes.to_vec(), source: slot.source, peer }, now);
                }
                Verdict::Drop(_) | Verdict::Done => (),
                Verdict::Pending => panic!("the forwarder has not judged slot {index} of {}", batch.len()),
            }
        }
        self.drain(now, output);
    }

    /// Whether it has this socket.
    pub fn listens_at(&self, number: u16) -> bool {
        number == 0 || self.sockets.contains(&number)
    }

    fn drain(&mut self, now: Instant, output: &mut Output) {
        let first = output.sends.len();
        while self.drain_once(now, output) {}
        self.sockets
            .extend(output.sends[first..].iter().map(|sent| split(sent.endpoint).0).filter(|number| *number != 0));
        if let Some(kept) = self.keep.take() {
            self.sockets = kept;
        }
    }

    /// Whether the node may have more to say.
    fn drain_once(&mut self, now: Instant, output: &mut Output) -> bool {
        let mut again = false;
        let Forwarder { egress, ingress } = &mut self.forwarder;
        while let Some(notice) = egress.poll_notice().or_else(|| ingress.poll_notice()) {
            self.node.handle_notice(notice, now);
        }
        if let Some(fib) = self.node.poll_fib(now) {
            self.fib = fib;
            self.pictures += 1;
        }
        while let Some(transmit) = self.node.poll_transmit() {
            output.sends.push(transmit);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Directory(command) => output.commands.push(command),
                Event::Deliver(frame) => output.frames.push(frame),
                Event::Reply(id, reply) => output.replies.push((id, *reply)),
                Event::Addresses { mac, ipv4, ipv6, notice } => {
                    output.addresses.push((mac, ipv4.into(), ipv6.into(), notice));
                }
                Event::Persist(records) => {
                    output.persist = Some(records.iter().map(|record| record.bytes().to_vec()).collect());
                }
                Event::Witnesses(numbers) => {
                    self.sockets.extend(&numbers);
                    self.node.handle_witnesses(numbers.into_iter().map(|n| (n, port_of(n))).collect(), now);
                    again = true;
                }
                Event::Sockets(kept) => self.keep = Some(kept),
                Event::Secrets(secrets) => output.secrets = Some(secrets),
                Event::Keep(statements) => output.keep = Some(statements),
                Event::Stream(wish) => output.streams.push(wish),
                // A virtual member that is none any more goes on, as one that does not obey would.
                Event::MembershipEnded => (),
                Event::Expelled(_) => output.expelled = true,
                Event::PeerChange { peer, change, .. } => output.changes.push((peer, change)),
            }
        }
        again
    }
}
