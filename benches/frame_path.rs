//! How long the pieces of a frame's path take, without any I/O: `make micro`.

mod world;

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use meshd::identity::Mac;
use meshd::wire::header::{HEADER_LEN, TAG_LEN};
use meshd::wire::message::INNER_LEN;

use world::{BULK_FRAMES, Burst, MSS, Receiver, SMALL_FRAMES, SMALL_LEN, Sender};

/// Headers of a frame of TCP with time stamps, bytes.
const TCP_HEADERS: usize = 66;

/// Bytes of frames in a burst.
const BULK_LEN: usize = BULK_FRAMES * (TCP_HEADERS + MSS as usize);

fn main() {
    divan::main();
}

/// One datagram of a frame of this many bytes, with AES-256-GCM.
#[divan::bench(args = [SMALL_LEN, TCP_HEADERS + MSS as usize])]
fn seal(bencher: Bencher<'_, '_>, len: usize) {
    let now = world::now();
    let transport = world::transport(0, 1, now);
    let mut datagram = vec![7; HEADER_LEN + INNER_LEN + len + TAG_LEN];
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let counter = transport.reserve(1, now).expect("a young session");
        transport.seal_in_place(counter, black_box(&mut datagram));
    });
}

/// The same datagram, opened.
#[divan::bench(args = [SMALL_LEN, TCP_HEADERS + MSS as usize])]
fn open(bencher: Bencher<'_, '_>, len: usize) {
    let now = world::now();
    let (sender, receiver) = (world::transport(0, 1, now), world::transport(1, 0, now));
    let sealed = || {
        let mut datagram = vec![7; HEADER_LEN + INNER_LEN + len + TAG_LEN];
        sender.seal_in_place(sender.reserve(1, now).expect("a young session"), &mut datagram);
        datagram
    };
    bencher.counter(BytesCount::new(len)).with_inputs(sealed).bench_local_refs(|datagram| {
        receiver.open_in_place(&mut receiver.window(), datagram, now).expect("a true datagram")
    });
}

/// A superframe of 64 KiB into frames.
#[divan::bench]
fn segment(bencher: Bencher<'_, '_>) {
    let mut sender = Sender::new(world::now());
    bencher.counter(BytesCount::new(BULK_LEN)).bench_local(|| sender.segment());
}

/// The same frames into a superframe.
#[divan::bench]
fn coalesce(bencher: Bencher<'_, '_>) {
    let mut burst = Burst::new(Sender::new(world::now()));
    bencher.counter(BytesCount::new(BULK_LEN)).bench_local(|| burst.coalesce());
}

/// Whose MAC it is, among so many members.
#[divan::bench(args = [2, 50, 1000])]
fn look_up(bencher: Bencher<'_, '_>, members: u16) {
    let mac = |member: u16| {
        let [high, low] = member.to_be_bytes();
        Mac([2, 0, 0, 0, high, low])
    };
    let mut fib = world::picture(0, 1, world::now());
    fib.stations.clear();
    fib.stations.extend((0..members).map(|member| (mac(member), 0)));
    let mut member = 0;
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        member = (member + 7) % members;
        let peer = fib.stations.get(black_box(&mac(member))).and_then(|peer| fib.peers.get(*peer));
        peer.map(|peer| peer.endpoint)
    });
}

/// A superframe cut and sealed.
#[divan::bench]
fn send_bulk(bencher: Bencher<'_, '_>) {
    let mut sender = Sender::new(world::now());
    bencher.counter(BytesCount::new(BULK_LEN)).bench_local(|| sender.send_bulk());
}

/// Small frames sealed.
#[divan::bench]
fn send_small(bencher: Bencher<'_, '_>) {
    let mut sender = Sender::new(world::now());
    bencher.counter(ItemsCount::new(SMALL_FRAMES)).bench_local(|| sender.send_small());
}

/// The datagrams of a superframe opened and merged.
#[divan::bench]
fn receive_bulk(bencher: Bencher<'_, '_>) {
    receive(bencher.counter(BytesCount::new(BULK_LEN)), Sender::send_bulk);
}

/// The datagrams of small frames opened and merged.
#[divan::bench]
fn receive_small(bencher: Bencher<'_, '_>) {
    receive(bencher.counter(ItemsCount::new(SMALL_FRAMES)), Sender::send_small);
}

fn receive(bencher: Bencher<'_, '_>, send: fn(&mut Sender)) {
    let now = world::now();
    let (mut sender, mut receiver) = (Sender::new(now), Receiver::new(now));
    let sealed = || {
        send(&mut sender);
        sender.datagrams()
    };
    bencher.with_inputs(sealed).bench_local_refs(|datagrams| receiver.receive(datagrams));
}
