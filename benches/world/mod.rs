//! What is measured on: two nodes with a session, a superframe and small frames from one to the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use meshd::identity::{Mac, PeerId};
use meshd::session::Transport;
use meshd::session::transport::{Cipher, Keys, Quantum};
use meshd::switch::{Fib, FibPeer, Forwarder};
use meshd::tap::coalesce::{Coalescer, Offloads};
use meshd::tap::segment::segment;
use meshd::tap::vnet::{Gso, Superframe, VnetHeader};
use meshd::wire::checksum::{TCP, Transport as Headers, UDP, fold, sum};
use meshd::wire::ethernet::FrameHead;
use meshd::wire::{Batch, Checksum, Verdict};
use zeroize::Zeroizing;

const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];

/// A path of 1500 bytes and more carries a frame of 1514 bytes whole: cutting frames is not measured.
const PATH_PAYLOAD: usize = 1600;

/// Bytes of TCP payload in a frame at an MTU of 1500, with time stamps.
pub(crate) const MSS: u16 = 1448;

/// Frames of a full superframe: 64 KiB less headers, as Linux fills them.
pub(crate) const BULK_FRAMES: usize = 45;

/// Small frames in a batch, and the bytes of each: 64 of payload in UDP over IPv4.
pub(crate) const SMALL_FRAMES: usize = 64;
pub(crate) const SMALL_LEN: usize = 106;

pub(crate) const OFFLOADS: Offloads = Offloads { tcp: true, udp: true };

/// Some instant to begin at.
#[expect(clippy::disallowed_methods, reason = "a benchmark needs some instant to begin at")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A batch with room for everything.
pub(crate) fn batch() -> Batch {
    Batch::new(1 << 20, 1024)
}

/// One end of the session between node 0 and node 1.
pub(crate) fn transport(ours: u8, theirs: u8, now: Instant) -> Transport {
    let keys = Keys {
        send: Zeroizing::new([ours; 32]),
        receive: Zeroizing::new([theirs; 32]),
        cipher: Cipher::Aes256Gcm,
        quantum: Quantum::Never,
        local: ours.into(),
        remote: theirs.into(),
        initiator: ours == 0,
    };
    Transport::new(&keys, now)
}

/// What node `ours` knows of node `theirs`.
pub(crate) fn picture(ours: u8, theirs: u8, now: Instant) -> Fib {
    let transport = Arc::new(transport(ours, theirs, now));
    let mut fib = Fib::empty(MACS[usize::from(ours)], 1500);
    fib.receivers.insert(ours.into(), (Arc::clone(&transport), 0));
    fib.stations.insert(MACS[usize::from(theirs)], 0);
    fib.peers.push(FibPeer {
        peer: PeerId([theirs; 32]),
        mac: MACS[usize::from(theirs)],
        transport: Some(transport),
        next: None,
        endpoint: SocketAddr::from(([192, 0, 2, theirs], 4747)),
        via: None,
        path_payload: PATH_PAYLOAD,
        expected_payload: PATH_PAYLOAD,
        serves: false,
        clauses: None,
    });
    fib
}

/// A node that sends, and what it sends.
pub(crate) struct Sender {
    fib: Fib,
    forwarder: Forwarder,
    now: Instant,
    superframe: (VnetHeader, Vec<u8>),
    small: Vec<u8>,
    pub(crate) batch: Batch,
}

impl Sender {
    /// Node 0.
    pub(crate) fn new(now: Instant) -> Self {
        let tcp = frame(TCP, usize::from(MSS) * BULK_FRAMES);
        let superframe = Superframe { gso: Gso::Tcp4, ecn: false, size: MSS, headers: 66 };
        let header = VnetHeader { checksum: partial(TCP), superframe: Some(superframe) };
        Self {
            fib: picture(0, 1, now),
            forwarder: Forwarder::default(),
            now,
            superframe: (header, tcp),
            small: frame(UDP, SMALL_LEN - 42),
            batch: batch(),
        }
    }

    /// Cuts a superframe that the kernel has laid into the batch.
    pub(crate) fn segment(&mut self) {
        let (header, bytes) = &self.superframe;
        self.batch.clear();
        let spare = self.batch.spare(bytes.len()).expect("room");
        if spare[..14] != bytes[..14] {
            // Only the first time: nothing is written over it afterwards.
            spare.copy_from_slice(bytes);
        }
        let held = self.batch.hold(bytes.len());
        let longest = self.fib.longest_whole(self.fib.peers[0].mac);
        let count = segment(&mut self.batch, header, held, longest).expect("a sound superframe");
        assert_eq!(count, BULK_FRAMES);
    }

    /// Cuts a superframe and seals its frames.
    pub(crate) fn send_bulk(&mut self) {
        self.segment();
        self.forwarder.egress.handle_frames(&self.fib, &mut self.batch, self.now);
    }

    /// Seals small frames, laid into the batch one by one.
    pub(crate) fn send_small(&mut self) {
        self.batch.clear();
        for _ in 0..SMALL_FRAMES {
            let slot = self.batch.push(&self.small, None).expect("room");
            self.batch.slot_mut(slot).checksum = partial(UDP);
        }
        self.forwarder.egress.handle_frames(&self.fib, &mut self.batch, self.now);
    }

    /// The datagrams that were sealed.
    pub(crate) fn datagrams(&self) -> Vec<Vec<u8>> {
        let sent = |slot: &usize| matches!(self.batch.slots()[*slot].verdict, Verdict::Send(_));
        (0..self.batch.len()).filter(sent).map(|slot| self.batch.bytes(slot).to_vec()).collect()
    }
}

/// A node that receives.
pub(crate) struct Receiver {
    fib: Fib,
    forwarder: Forwarder,
    now: Instant,
    coalescer: Coalescer,
    batch: Batch,
}

impl Receiver {
    /// Node 1.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            fib: picture(1, 0, now),
            forwarder: Forwarder::default(),
            now,
            coalescer: Coalescer::new(),
            batch: batch(),
        }
    }

    /// Opens datagrams, laid into the batch one by one, and merges the frames in them. Returns how many writes that makes.
    pub(crate) fn receive(&mut self, datagrams: &[Vec<u8>]) -> usize {
        let source = Some(self.fib.peers[0].endpoint);
        self.batch.clear();
        for datagram in datagrams {
            self.batch.push(datagram, source).expect("room");
        }
        self.forwarder.ingress.handle_datagrams(&self.fib, &mut self.batch, self.now);
        self.coalescer.coalesce(&mut self.batch, OFFLOADS);
        self.coalescer.deliveries().count()
    }
}

/// The frames of one superframe, again and again.
pub(crate) struct Burst {
    batch: Batch,
    headers: Vec<u8>,
    coalescer: Coalescer,
}

impl Burst {
    /// Frames as they come out of datagrams.
    pub(crate) fn new(mut sender: Sender) -> Self {
        sender.segment();
        let mut batch = sender.batch;
        for slot in 0..BULK_FRAMES {
            batch.slot_mut(slot).verdict = Verdict::Deliver;
        }
        let headers = batch.bytes(0)[..66].to_vec();
        Self { batch, headers, coalescer: Coalescer::new() }
    }

    /// Merges them into one superframe.
    pub(crate) fn coalesce(&mut self) {
        // All that the time before has changed.
        self.batch.bytes_mut(0)[..66].copy_from_slice(&self.headers);
        self.coalescer.coalesce(&mut self.batch, OFFLOADS);
        assert_eq!(self.coalescer.deliveries().count(), 1);
    }
}

fn partial(protocol: u8) -> Checksum {
    Checksum::Partial { start: 34, offset: if protocol == TCP { 16 } else { 6 } }
}

/// A frame from node 0 to node 1 with `len` bytes of payload.
fn frame(protocol: u8, len: usize) -> Vec<u8> {
    let ports = [0x10, 1, 1, 0xbb];
    let mut segment = match protocol {
        TCP => [&ports[..], &[0, 0, 3, 0xe8, 0, 0, 7, 0xd0, 0x80, 0x10, 1, 0xf4, 0, 0, 0, 0, 1, 1, 8, 10], &[9; 8]]
            .concat(),
        _ => [&ports[..], &((8 + len) as u16).to_be_bytes(), &[0, 0]].concat(),
    };
    segment.resize(segment.len() + len, 7);
    let total = ((20 + segment.len()) as u16).to_be_bytes();
    let mut ip = [&[0x45, 0][..], &total, &[0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]].concat();
    let check = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut frame = [&MACS[1].0[..], &MACS[0].0, &[8, 0], &ip, &segment].concat();
    let head = FrameHead::read(&frame).expect("a frame");
    let headers = Headers::of(&frame, &head).expect("TCP or UDP");
    let pseudo = fold(headers.pseudo_sum(&frame, &head, segment.len()));
    let at = headers.start + headers.checksum_offset();
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame
}
