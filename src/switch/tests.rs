//! Both halves of the forwarder together: what one node's batch becomes at the other, in which order, with which marks.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::testing::{Side, alone, arp, endpoint, frame, mac, pair, session, start, v4};
use super::{Channel, Egress, Fdb, Ingress, Meter, Notice};
use crate::identity::Mac;
use crate::wire::checksum::{self, Transport as Segment, fold};
use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, FrameHead};
use crate::wire::header::{HEADER_LEN, Header};
use crate::wire::message::{HEADROOM, INNER_LEN, TAILROOM};
use crate::wire::{Batch, Checksum, DropReason, Ecn, Inner, Punt, Verdict, relay};

const LOCAL: u16 = 0x88b5;

/// What the kernel hands to node 1.
struct Given {
    bytes: Vec<u8>,
    checksum: Checksum,
}

fn given(bytes: Vec<u8>) -> Given {
    Given { bytes, checksum: Checksum::Unknown }
}

fn egress(a: &Side, frames: &[Given], now: Instant) -> Batch {
    let mut batch = Batch::new(1 << 18, 256);
    for Given { bytes, checksum } in frames {
        let slot = batch.push(bytes, None).expect("room");
        batch.slot_mut(slot).checksum = *checksum;
    }
    Egress::default().handle_frames(&a.fib, &mut batch, now);
    batch
}

/// The datagrams that leave, in order, with their marks.
fn datagrams(batch: &Batch) -> Vec<(Vec<u8>, Ecn)> {
    let sent = batch.in_order().filter(|slot| batch.slots()[*slot].verdict == Verdict::Send(endpoint(2)));
    sent.map(|slot| (batch.bytes(slot).to_vec(), batch.slots()[slot].ecn)).collect()
}

fn ingress(b: &Side, datagrams: &[(Vec<u8>, Ecn)], now: Instant) -> (Batch, Ingress) {
    let mut batch = Batch::new(1 << 18, 256);
    for (bytes, ecn) in datagrams {
        let slot = batch.push(bytes, Some(endpoint(1))).expect("room");
        batch.slot_mut(slot).ecn = *ecn;
    }
    let mut ingress = Ingress::default();
    ingress.handle_datagrams(&b.fib, &mut batch, now);
    (batch, ingress)
}

/// The frames that the kernel of node 2 gets, in order.
fn delivered(batch: &Batch) -> Vec<(Vec<u8>, Checksum)> {
    let here = batch.in_order().filter(|slot| batch.slots()[*slot].verdict == Verdict::Deliver);
    here.map(|slot| (batch.bytes(slot).to_vec(), batch.slots()[slot].checksum)).collect()
}

fn to_two(len: usize, fill: u8) -> Vec<u8> {
    frame(mac(2), mac(1), LOCAL, &vec![fill; len - 14])
}

/// A UDP packet of IPv4 from node 1 to node 2, with a sound checksum.
fn udp(payload: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 64, 0, 1], [10, 64, 0, 2], 9)
        .udp(7, 9)
        .write(&mut packet, payload)
        .expect("it fits");
    packet[1] = ecn as u8;
    packet[10..12].fill(0);
    let sum = !fold(checksum::sum(&packet[..20]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    frame(mac(2), mac(1), ETHERTYPE_IPV4, &packet)
}

/// The same with its checksum left to whoever puts it on a wire.
fn partial(mut frame: Vec<u8>) -> Given {
    let head = FrameHead::read(&frame).expect("a frame");
    let segment = Segment::of(&frame, &head).expect("UDP");
    let pseudo = fold(segment.pseudo_sum(&frame, &head, segment.end - segment.start));
    let at = segment.start + segment.checksum_offset();
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    let checksum = Checksum::Partial { start: segment.start as u16, offset: segment.checksum_offset() as u16 };
    Given { bytes: frame, checksum }
}

proptest! {
    #[test]
    fn frames_of_all_sizes_arrive_in_their_order(
        lengths in proptest::collection::vec(prop_oneof![14usize..200, 14usize..=1514], 1..40),
        path in 600usize..1500,
    ) {
        let now = start();
        let (mut a, b) = pair(now);
        a.fib.peers[0].path_payload = path;
        let frames: Vec<_> = (0..).zip(&lengths).map(|(n, len)| given(to_two(*len, n))).collect();
        let sent = datagrams(&egress(&a, &frames, now));
        prop_assert!(sent.iter().all(|(datagram, _)| datagram.len() <= path));
        prop_assert_eq!(a.transport.sealed(), sent.len() as u64, "no counter is wasted");
        let (batch, ingress) = ingress(&b, &sent, now);
        let arrived: Vec<_> = delivered(&batch).into_iter().map(|(bytes, _)| bytes).collect();
        prop_assert_eq!(arrived, frames.into_iter().map(|given| given.bytes).collect::<Vec<_>>());
        prop_assert_eq!(ingress.counters().iter().count(), 0);
    }
}

#[test]
fn small_frames_that_wait_together_share_a_datagram() {
    let now = start();
    let (a, _) = pair(now);
    let frames: Vec<_> = (0..64).map(|n| given(to_two(106, n))).collect();
    let sent = datagrams(&egress(&a, &frames, now));
    // 12 entries of 116 bytes fill 1392 of 1412 bytes.
    assert_eq!(sent.len(), 64usize.div_ceil(12));
    let lengths: Vec<_> = sent.iter().map(|(datagram, _)| datagram.len()).collect();
    assert_eq!(lengths, [1432, 1432, 1432, 1432, 1432, 504], "as UDP GSO wants them");
}

#[test]
fn a_lone_frame_and_one_between_full_ones_go_alone() {
    let now = start();
    let (a, _) = pair(now);
    for lengths in [&[60][..], &[1400, 60, 1400]] {
        let frames: Vec<_> = lengths.iter().map(|len| given(to_two(*len, 7))).collect();
        let sent = datagrams(&egress(&a, &frames, now));
        let expected: Vec<_> = lengths.iter().map(|len| HEADROOM + len + TAILROOM).collect();
        assert_eq!(sent.iter().map(|(datagram, _)| datagram.len()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_bundle_for_which_there_is_no_room_is_dropped_and_counted() {
    let now = start();
    let (a, _) = pair(now);
    let mut batch = Batch::new(1 << 16, 3);
    for n in 0..3 {
        batch.push(&to_two(60, n), None).expect("room");
    }
    let mut egress = Egress::default();
    egress.handle_frames(&a.fib, &mut batch, now);
    assert!(batch.slots().iter().all(|slot| slot.verdict == Verdict::Drop(DropReason::BatchFull)));
    assert_eq!(egress.counters().get(DropReason::BatchFull), 3);
}

#[test]
fn a_checksum_that_was_left_out_is_nobodys_work_in_between() {
    let now = start();
    let (a, b) = pair(now);
    let frames = [partial(udp(b"left out", Ecn::NotCapable)), partial(udp(&[7; 1400], Ecn::NotCapable))];
    let (batch, _) = ingress(&b, &datagrams(&egress(&a, &frames, now)), now);
    assert_eq!(delivered(&batch), frames.map(|given| (given.bytes, given.checksum)));
}

#[test]
fn a_checksum_left_out_in_an_unusual_place_is_computed_before_it_leaves() {
    let now = start();
    let (a, b) = pair(now);
    let mut bytes = to_two(100, 1);
    let checksum = Checksum::Partial { start: 50, offset: 10 };
    let (batch, _) = ingress(&b, &datagrams(&egress(&a, &[Given { bytes: bytes.clone(), checksum }], now)), now);
    assert!(checksum::complete(&mut bytes, 50, 10));
    assert_eq!(delivered(&batch), [(bytes, Checksum::Valid)]);
    let outside = Given { bytes: to_two(60, 1), checksum: Checksum::Partial { start: 50, offset: 10 } };
    let batch = egress(&a, &[outside], now);
    assert_eq!(batch.slots()[0].verdict, Verdict::Drop(DropReason::FrameMalformed));
}

#[test]
fn a_member_that_would_have_our_kernel_write_elsewhere_is_refused() {
    let now = start();
    let (a, b) = pair(now);
    let bytes = to_two(100, 1);
    let mut datagram = vec![0; HEADROOM];
    Inner::Frame(Checksum::Partial { start: 14, offset: 4 }).write(&mut datagram[HEADER_LEN..]);
    datagram.extend(bytes);
    datagram.extend([0; TAILROOM]);
    a.transport.seal_in_place(a.transport.reserve(1, now).expect("a counter"), &mut datagram);
    let (batch, _) = ingress(&b, &[(datagram, Ecn::NotCapable)], now);
    assert_eq!(batch.slots()[0].verdict, Verdict::Drop(DropReason::InnerMalformed));
}

#[test]
fn what_goes_to_the_node_has_its_checksum() {
    let now = start();
    let (mut a, _) = pair(now);
    a.fib.peers[0].transport = None;
    let whole = udp(b"early", Ecn::NotCapable);
    let batch = egress(&a, &[partial(whole.clone())], now);
    assert_eq!((batch.slots()[0].verdict, batch.bytes(0)), (Verdict::Punt(Punt::NoSession), &whole[..]));
}

#[test]
fn marks_of_congestion_cross_the_tunnel() {
    let now = start();
    let (mut a, b) = pair(now);
    for path in [1452, 600] {
        // Alone, bundled, and cut in pieces.
        a.fib.peers[0].path_payload = path;
        let frames: Vec<_> = [10, 10, 1000].map(|len| given(udp(&vec![1; len], Ecn::Capable0))).into();
        let mut sent = datagrams(&egress(&a, &frames, now));
        assert!(sent.iter().all(|(_, ecn)| *ecn == Ecn::Capable0));
        sent.iter_mut().for_each(|(_, ecn)| *ecn = Ecn::Congested);
        let (batch, _) = ingress(&b, &sent, now);
        let arrived = delivered(&batch);
        assert_eq!(arrived.len(), 3);
        for (bytes, _) in arrived {
            let head = FrameHead::read(&bytes).expect("a frame");
            assert_eq!(Ecn::of_frame(&bytes, &head), Ecn::Congested);
        }
    }
}

#[test]
fn a_congested_datagram_around_a_frame_that_knows_no_marks_is_a_loss() {
    let now = start();
    let (a, b) = pair(now);
    let mut sent = datagrams(&egress(&a, &[given(udp(b"x", Ecn::NotCapable)), given(udp(b"y", Ecn::Capable1))], now));
    assert_eq!(
        sent.iter().map(|(_, ecn)| *ecn).collect::<Vec<_>>(),
        [Ecn::NotCapable, Ecn::Capable1],
        "never one bundle"
    );
    sent[0].1 = Ecn::Congested;
    let (batch, ingress) = ingress(&b, &sent, now);
    assert_eq!(delivered(&batch).len(), 1);
    assert_eq!(ingress.counters().get(DropReason::Congestion), 1);
}

#[test]
fn a_bundle_cut_short_delivers_what_is_whole_and_is_counted() {
    let now = start();
    let (a, b) = pair(now);
    let mut datagram = vec![0; HEADROOM];
    Inner::Bundle.write(&mut datagram[HEADER_LEN..]);
    for missing in [0, 1] {
        let bytes = to_two(60, 3);
        datagram.extend((bytes.len() as u16 + missing).to_be_bytes());
        let at = datagram.len();
        datagram.resize(at + INNER_LEN, 0);
        Inner::Frame(Checksum::Valid).write(&mut datagram[at..]);
        datagram.extend(bytes);
    }
    datagram.extend([0; TAILROOM]);
    a.transport.seal_in_place(a.transport.reserve(1, now).expect("a counter"), &mut datagram);
    let (batch, ingress) = ingress(&b, &[(datagram, Ecn::NotCapable)], now);
    assert_eq!(delivered(&batch), [(to_two(60, 3), Checksum::Valid)]);
    assert_eq!(ingress.counters().get(DropReason::InnerMalformed), 1);
}

/// Where the relay of these tests is, and the channels: by the first of a pair it is addressed, with the second it addresses.
const RELAY: u8 = 3;
const CHANNELS: [(u32, u32); 2] = [(0x10_0001, 0x20_0002), (0x30_0003, 0x40_0004)];

/// What nodes 1 and 2 send each other by a relay, judged by it: it knows neither session.
fn relayed(datagrams: &[(Vec<u8>, Ecn)], from: u8) -> (Batch, Ingress) {
    let mut fib = alone(RELAY, 1500);
    let ends = [(endpoint(1), endpoint(2)), (endpoint(2), endpoint(1))];
    for ((inbound, outbound), (from, to)) in CHANNELS.into_iter().zip(ends) {
        let meters = [0; 2].map(|_| Arc::new(Meter::new(1_000_000_000, start())));
        fib.channels.insert(inbound, Channel::Relay { from: [from].into(), to, channel: outbound, meters });
    }
    let mut batch = Batch::new(1 << 18, 256);
    for (bytes, ecn) in datagrams {
        let slot = batch.push(bytes, Some(endpoint(from))).expect("room");
        batch.slot_mut(slot).ecn = *ecn;
    }
    let mut ingress = Ingress::default();
    ingress.handle_datagrams(&fib, &mut batch, start());
    (batch, ingress)
}

#[test]
fn what_goes_by_a_relay_arrives_as_it_was_and_is_no_longer() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let frames: Vec<_> = [60, 1400, 1400, 700, 90].into_iter().zip(1..).map(|(len, n)| given(to_two(len, n))).collect();
    let direct: Vec<_> = datagrams(&egress(&a, &frames, now)).iter().map(|(datagram, _)| datagram.len()).collect();
    a.fib.peers[0].via = Some((endpoint(RELAY), CHANNELS[0].0));
    let batch = egress(&a, &frames, now);
    let sent: Vec<_> = batch
        .in_order()
        .filter(|slot| batch.slots()[*slot].verdict == Verdict::Send(endpoint(RELAY)))
        .map(|slot| (batch.bytes(slot).to_vec(), batch.slots()[slot].ecn))
        .collect();
    assert_eq!(sent.iter().map(|(datagram, _)| datagram.len()).collect::<Vec<_>>(), direct);
    let (carried, relay) = relayed(&sent, 1);
    assert_eq!(relay.counters().iter().count(), 0);
    let carried = datagrams(&carried);
    assert_eq!(carried.len(), sent.len(), "each goes on to node 2");
    b.fib.channels.insert(CHANNELS[0].1, Channel::Own);
    b.fib.peers[0].endpoint = relay::endpoint(CHANNELS[0].1);
    let (arrived, mut ingress) = ingress(&b, &carried, now);
    let arrived: Vec<_> = delivered(&arrived).into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(arrived, frames.into_iter().map(|given| given.bytes).collect::<Vec<_>>());
    // It came from the channel, which is where the peer is: nobody has moved.
    assert_eq!(ingress.poll_notice(), Some(Notice::Confirmed { local: b.transport.local() }));
    assert_eq!(ingress.poll_notice(), None);
}

#[test]
fn the_answer_to_the_first_datagram_of_a_session_goes_by_that_session() {
    let now = start();
    let (mut a, mut b) = pair(now);
    let ((at_a, at_b), old) = (session(3, 4, now), Arc::clone(&a.transport));
    b.fib.receivers.insert(at_b.local(), (Arc::clone(&at_b), 0));
    b.fib.peers[0].next = Some(Arc::clone(&at_b));
    let answers = |b: &Side| -> Vec<u32> {
        let (known, to_all) = (frame(mac(1), mac(2), LOCAL, &[1; 50]), frame(Mac([0xff; 6]), mac(2), LOCAL, &[2; 50]));
        let batch = egress(b, &[given(known), given(to_all)], now);
        let sent = batch.in_order().filter(|slot| batch.slots()[*slot].verdict == Verdict::Send(endpoint(1)));
        sent.filter_map(|slot| Header::read(batch.bytes(slot))).map(|header| header.receiver).collect()
    };
    assert_eq!(answers(&b), [old.local(); 2], "whoever begins a session has to prove it first");
    a.fib.peers[0].transport = Some(Arc::clone(&at_a));
    let (arrived, _) = ingress(&b, &datagrams(&egress(&a, &[given(to_two(100, 1))], now)), now);
    assert_eq!(delivered(&arrived).len(), 1);
    assert_eq!(answers(&b), [at_a.local(); 2], "though the picture is the old one");
    b.fib.peers[0].transport = None;
    assert_eq!(answers(&b), [at_a.local(); 2]);
}

#[test]
fn a_relay_carries_only_what_comes_from_where_its_user_is_by_a_channel_it_gave() {
    let now = start();
    let (mut a, _) = pair(now);
    a.fib.peers[0].via = Some((endpoint(RELAY), CHANNELS[0].0));
    let batch = egress(&a, &[given(to_two(100, 1))], now);
    let sent = [(batch.bytes(0).to_vec(), Ecn::NotCapable)];
    for (from, channel, reason) in [
        (2, CHANNELS[0].0, DropReason::ForeignChannel),
        (1, CHANNELS[1].0, DropReason::ForeignChannel),
        (1, CHANNELS[0].1, DropReason::UnknownChannel),
    ] {
        let mut wrong = sent.clone();
        relay::mark(&mut wrong[0].0, channel);
        let (batch, ingress) = relayed(&wrong, from);
        assert_eq!(batch.slots()[0].verdict, Verdict::Drop(reason));
        assert_eq!(ingress.counters().get(reason), 1);
    }
}

/// A foreign station.
const STATION: Mac = Mac([0x00, 0x1b, 0x78, 0, 0, 1]);

/// Nodes 1 and 2, of which 1 is a bridge and has the station behind it.
fn bridged(now: Instant) -> (Side, Side) {
    let (mut a, mut b) = pair(now);
    let mut fdb = Fdb::new(a.fib.peers[0].peer, 0);
    fdb.learn(STATION, now).expect("it is new");
    fdb.admit(STATION);
    a.fib.behind = Some(fdb.behind());
    b.fib.peers[0].serves = true;
    b.fib.stations.insert(STATION, 0);
    (a, b)
}

fn arrived(from: &Side, to: &Side, bytes: &[u8], now: Instant) -> Verdict {
    let mut datagram = vec![0; HEADROOM];
    Inner::Frame(Checksum::Unknown).write(&mut datagram[HEADER_LEN..]);
    datagram.extend(bytes);
    datagram.extend([0; TAILROOM]);
    from.transport.seal_in_place(from.transport.reserve(1, now).expect("a counter"), &mut datagram);
    ingress(to, &[(datagram, Ecn::NotCapable)], now).0.slots()[0].verdict
}

#[test]
fn a_frame_of_a_station_behind_us_leaves_like_our_own_and_is_taken_from_us_alone() {
    let now = start();
    let (a, mut b) = bridged(now);
    let bytes = frame(mac(2), STATION, LOCAL, b"print this");
    let sent = datagrams(&egress(&a, &[given(bytes.clone())], now));
    let (batch, _) = ingress(&b, &sent, now);
    assert_eq!(delivered(&batch), [(bytes.clone(), Checksum::Unknown)]);
    assert_eq!(arrived(&a, &b, &bytes, now), Verdict::Deliver);
    b.fib.peers[0].serves = false;
    assert_eq!(arrived(&a, &b, &bytes, now), Verdict::Drop(DropReason::SourceMac), "no bridge any more");
    b.fib.peers[0].serves = true;
    b.fib.stations.clear();
    assert_eq!(arrived(&a, &b, &bytes, now), Verdict::Drop(DropReason::SourceMac), "not claimed");
}

#[test]
fn a_station_speaks_for_its_own_address_and_for_no_members() {
    let now = start();
    let (a, b) = bridged(now);
    for (address, verdict) in [
        ([10, 64, 0, 200], Verdict::Deliver),
        (v4(1).octets(), Verdict::Drop(DropReason::ForgedBinding)),
        (v4(2).octets(), Verdict::Drop(DropReason::ForgedBinding)),
    ] {
        let reply = arp(2, (STATION, address), (mac(2), v4(2).octets()));
        assert_eq!(arrived(&a, &b, &frame(mac(2), STATION, ETHERTYPE_ARP, &reply), now), verdict, "{address:?}");
    }
}

#[test]
fn what_a_bridge_hears_of_strangers_goes_to_the_node_and_of_members_nowhere() {
    let now = start();
    let (mut a, _) = bridged(now);
    let strange = Mac([0x00, 0x1b, 0x78, 0, 0, 2]);
    let group = Mac([0x01, 0x1b, 0x78, 0, 0, 2]);
    let cases = [
        (strange, mac(2), Verdict::Punt(Punt::NewStation)),
        (strange, Mac::BROADCAST, Verdict::Punt(Punt::NewStation)),
        (mac(2), mac(3), Verdict::Drop(DropReason::BridgeOwned)),
        (group, mac(2), Verdict::Drop(DropReason::ForeignSource)),
        (STATION, STATION, Verdict::Drop(DropReason::OwnDestination)),
        (mac(1), STATION, Verdict::Drop(DropReason::OwnDestination)),
    ];
    for (from, to, verdict) in cases {
        let batch = egress(&a, &[given(frame(to, from, LOCAL, b"hello"))], now);
        assert_eq!(batch.slots()[0].verdict, verdict, "{from} to {to}");
    }
    a.fib.behind = None;
    for from in [strange, STATION, mac(2)] {
        let batch = egress(&a, &[given(frame(mac(3), from, LOCAL, b"hello"))], now);
        assert_eq!(batch.slots()[0].verdict, Verdict::Drop(DropReason::ForeignSource), "whoever is no bridge");
    }
}

#[test]
fn a_storm_of_strangers_reaches_the_node_within_a_budget() {
    let now = start();
    let (a, _) = bridged(now);
    let mut egress = Egress::default();
    let mut punted = 0;
    for n in 0..10_000u32 {
        let [a0, b0, c0, d0] = n.to_be_bytes();
        let mut batch = Batch::new(1 << 12, 4);
        batch.push(&frame(Mac::BROADCAST, Mac([0, 1, a0, b0, c0, d0]), LOCAL, b"hello"), None).expect("room");
        egress.handle_frames(&a.fib, &mut batch, now);
        punted += usize::from(batch.slots()[0].verdict == Verdict::Punt(Punt::NewStation));
    }
    assert!((50..500).contains(&punted), "{punted}");
    assert_eq!(egress.counters().get(DropReason::FloodBudget), 10_000 - punted as u64);
}

#[test]
fn a_bridge_takes_what_is_for_its_stations_and_within_a_budget_what_is_for_nobody_known() {
    let now = start();
    let (mut a, b) = bridged(now);
    a.fib.stations.insert(Mac([0x00, 0x1b, 0x78, 0, 0, 3]), 0);
    let taken = |a: &Side, to| arrived(&b, a, &frame(to, mac(2), LOCAL, b"hello"), now);
    assert_eq!(taken(&a, STATION), Verdict::Deliver);
    assert_eq!(taken(&a, Mac([0x00, 0x1b, 0x78, 0, 0, 2])), Verdict::Deliver, "it may be behind us");
    let elsewhere = Verdict::Drop(DropReason::NotForUs);
    assert_eq!(taken(&a, Mac([0x00, 0x1b, 0x78, 0, 0, 3])), elsewhere, "behind another bridge");
    a.fib.behind = None;
    assert_eq!((taken(&a, STATION), taken(&a, Mac([0x00, 0x1b, 0x78, 0, 0, 2]))), (elsewhere, elsewhere));
}

#[test]
fn a_datagram_of_ours_that_comes_to_our_own_tap_is_not_sealed_into_another() {
    let now = start();
    let (mut a, _) = bridged(now);
    // From port 7, at an address of the bridge.
    let datagram = given(udp(b"sealed", Ecn::NotCapable));
    let sends = |a: &Side| !datagrams(&egress(a, std::slice::from_ref(&datagram), now)).is_empty();
    a.fib.endpoints = ["10.64.0.1:8".parse().expect("an endpoint"), "10.64.0.9:7".parse().expect("an endpoint")].into();
    assert!(sends(&a), "another's, or of another program");
    a.fib.endpoints.push("10.64.0.1:7".parse().expect("an endpoint"));
    assert_eq!(
        egress(&a, std::slice::from_ref(&datagram), now).slots()[0].verdict,
        Verdict::Drop(DropReason::OwnDatagram)
    );
    a.fib.behind = None;
    assert!(sends(&a), "whoever is no bridge has no underlay there");
}
