//! The fast path does not allocate: a frame is sealed where the TAP laid it down and opened where the socket did.
//!
//! Allocations are counted for each thread: the test harness has threads of its own.
#![expect(unsafe_code, reason = "a global allocator that counts is an unsafe trait's implementation")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use meshd::identity::{Mac, PeerId};
use meshd::session::Transport;
use meshd::session::transport::{Cipher, Keys, Quantum};
use meshd::switch::{Fdb, Fib, FibPeer, Forwarder};
use meshd::wire::{Batch, Verdict};
use zeroize::Zeroizing;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it is; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];

/// What node `ours` knows of node `theirs`.
fn picture(ours: u8, theirs: u8, path_payload: usize, now: Instant) -> Fib {
    let keys = Keys {
        send: Zeroizing::new([ours; 32]),
        receive: Zeroizing::new([theirs; 32]),
        cipher: Cipher::Aes256Gcm,
        quantum: Quantum::Never,
        local: ours.into(),
        remote: theirs.into(),
        initiator: ours == 0,
    };
    let transport = Arc::new(Transport::new(&keys, now));
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
        path_payload,
        expected_payload: path_payload,
        serves: false,
        clauses: None,
    });
    fib
}

/// A foreign station behind node 0.
const STATION: Mac = Mac([0x00, 0x1b, 0x78, 0, 0, 1]);

/// Sends 32 frames of `source` from node 0 to node 1, `rounds` times; returns how many were delivered after the first round, and how
/// many allocations that took.
fn exchange(source: Mac, path_payload: usize, rounds: usize) -> (u64, u64) {
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    let now = Instant::now();
    let (mut a, mut b) = (picture(0, 1, path_payload, now), picture(1, 0, path_payload, now));
    if source == STATION {
        let mut fdb = Fdb::new(PeerId([0; 32]), 0);
        fdb.learn(STATION, now).expect("it is new");
        fdb.admit(STATION);
        a.behind = Some(fdb.behind());
        b.peers[0].serves = true;
        b.stations.insert(STATION, 0);
    }
    let (mut sender, mut receiver) = (Forwarder::default(), Forwarder::default());
    let (mut frames, mut datagrams) = (Batch::new(1 << 18, 128), Batch::new(1 << 18, 128));
    let mut frame = [7; 1514];
    frame[..6].copy_from_slice(&MACS[1].0);
    frame[6..12].copy_from_slice(&source.0);
    let (mut delivered, mut before) = (0, 0);
    for round in 0..rounds {
        if round == 1 {
            // The first round fills what is kept for reuse.
            before = ALLOCATIONS.get();
            delivered = 0;
        }
        frames.clear();
        datagrams.clear();
        for _ in 0..32 {
            frames.push(&frame, None).expect("room");
        }
        sender.egress.handle_frames(&a, &mut frames, now);
        for (index, slot) in frames.slots().iter().enumerate() {
            if let Verdict::Send(_) = slot.verdict {
                datagrams.push(frames.bytes(index), Some(a.peers[0].endpoint)).expect("room");
            }
        }
        receiver.ingress.handle_datagrams(&b, &mut datagrams, now);
        delivered += datagrams.slots().iter().filter(|slot| slot.verdict == Verdict::Deliver).count() as u64;
    }
    (delivered, ALLOCATIONS.get() - before)
}

#[test]
fn neither_whole_nor_cut_unicast_frames_allocate() {
    for source in [MACS[0], STATION] {
        assert_eq!(exchange(source, 1600, 101), (3200, 0), "whole");
        assert_eq!(exchange(source, 1280, 101), (3200, 0), "cut in two");
    }
}
