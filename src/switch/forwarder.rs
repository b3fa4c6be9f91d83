//! The forwarder: both halves together, and the facts that they find for the node.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::identity::PeerId;

pub use super::egress::Egress;
pub use super::ingress::Ingress;

/// A fact that forwarding found and the node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The first datagram of the initiator opened: the session with our index `local` is confirmed.
    Confirmed {
        /// Our index of the session.
        local: u32,
    },
    /// An authenticated datagram of `peer` came from an endpoint other than the one the Fib has.
    Roamed {
        /// Who.
        peer: PeerId,
        /// From where.
        endpoint: SocketAddr,
    },
    /// Frames go to a peer again after a rest: whether it answers is to be watched.
    Busy {
        /// Our index of the session.
        local: u32,
    },
    /// The session has sealed so many datagrams that it is to be replaced; said once a session is due, at most once a batch.
    RekeyDue {
        /// Our index of the session.
        local: u32,
    },
}

/// Both halves; the daemon splits it over two threads, netsim keeps it whole.
#[derive(Debug, Default)]
pub struct Forwarder {
    /// Frames out.
    pub egress: Egress,
    /// Datagrams in.
    pub ingress: Ingress,
}

/// Notices that wait for the node. They are taken after each batch, and a batch of hundreds of datagrams is mostly of one
/// peer; so this bounds nothing but a caller who never asks.
const MAX_NOTICES: usize = 256;

/// Facts that wait for the node; each at most once.
#[derive(Debug, Default)]
pub(super) struct Notices(VecDeque<Notice>);

impl Notices {
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MAX_NOTICES
    }

    pub(super) fn push(&mut self, notice: Notice) {
        if self.has_room() && !self.0.contains(&notice) {
            self.0.push_back(notice);
        }
    }

    /// The latest endpoint of a peer that has moved.
    pub(super) fn push_roamed(&mut self, peer: PeerId, endpoint: SocketAddr) {
        let same = |notice: &&mut Notice| matches!(notice, Notice::Roamed { peer: other, .. } if *other == peer);
        match self.0.iter_mut().find(same) {
            Some(notice) => *notice = Notice::Roamed { peer, endpoint },
            None => self.push(Notice::Roamed { peer, endpoint }),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Notice> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::super::testing::{
        Side, alone, arp, discovery, endpoint, frame, ipv6, mac, meet, pair, session, start, v4, v6,
    };
    use super::super::{Fib, seal_message};
    use super::*;
    use crate::identity::Mac;
    use crate::session::rekey::{REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES};
    use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
    use crate::wire::header::HEADER_LEN;
    use crate::wire::message::{HEADROOM, INNER_LEN, TAILROOM};
    use crate::wire::{Batch, Checksum, DropReason, Inner, Message, Punt, Verdict};

    /// An EtherType for experiments (IEEE 802).
    const LOCAL: u16 = 0x88b5;

    fn batch() -> Batch {
        Batch::new(1 << 18, 256)
    }

    fn out(egress: &mut Egress, fib: &Fib, frames: &[&[u8]], now: Instant) -> Batch {
        let mut batch = batch();
        for frame in frames {
            batch.push(frame, None).expect("room");
        }
        egress.handle_frames(fib, &mut batch, now);
        batch
    }

    fn verdicts(batch: &Batch) -> Vec<Verdict> {
        batch.slots().iter().map(|slot| slot.verdict).collect()
    }

    /// The datagrams that a batch sends to `to`.
    fn sent(batch: &Batch, to: SocketAddr) -> Vec<Vec<u8>> {
        let here = |index: &usize| batch.slots()[*index].verdict == Verdict::Send(to);
        (0..batch.len()).filter(here).map(|index| batch.bytes(index).to_vec()).collect()
    }

    fn arrive(ingress: &mut Ingress, fib: &Fib, from: u8, datagrams: &[Vec<u8>], now: Instant) -> Batch {
        let mut batch = batch();
        for datagram in datagrams {
            batch.push(datagram, Some(endpoint(from))).expect("room");
        }
        ingress.handle_datagrams(fib, &mut batch, now);
        assert!(!verdicts(&batch).contains(&Verdict::Pending), "every slot is judged");
        batch
    }

    fn delivered(batch: &Batch) -> Vec<Vec<u8>> {
        let here = |index: &usize| batch.slots()[*index].verdict == Verdict::Deliver;
        (0..batch.len()).filter(here).map(|index| batch.bytes(index).to_vec()).collect()
    }

    /// What node 2 does with a plaintext that node 1, honest or not, has sealed.
    fn judged(a: &Side, b: &Side, ingress: &mut Ingress, plaintext: &[u8], now: Instant) -> Verdict {
        let mut datagram = vec![0; HEADER_LEN];
        datagram.extend_from_slice(plaintext);
        datagram.extend([0; TAILROOM]);
        a.transport.seal_in_place(a.transport.reserve(1, now).expect("a counter"), &mut datagram);
        arrive(ingress, &b.fib, 1, &[datagram], now).slots()[0].verdict
    }

    fn inner(inner: Inner, bytes: &[u8]) -> Vec<u8> {
        let mut plaintext = vec![0; INNER_LEN];
        inner.write(&mut plaintext);
        plaintext.extend_from_slice(bytes);
        plaintext
    }

    fn to_two(len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..len - 14).map(|n| n as u8).collect();
        frame(mac(2), mac(1), LOCAL, &payload)
    }

    #[test]
    fn a_frame_for_a_member_arrives_there_as_it_was() {
        let now = start();
        let (a, b) = pair(now);
        let mut egress = Egress::default();
        let frame = to_two(100);
        let batch = out(&mut egress, &a.fib, &[&frame], now);
        assert_eq!(verdicts(&batch), [Verdict::Send(endpoint(2))]);
        assert_eq!(batch.bytes(0).len(), HEADROOM + 100 + TAILROOM);
        assert_eq!(a.transport.last_sent(), Some(now));

        let mut ingress = Ingress::default();
        let batch = arrive(&mut ingress, &b.fib, 1, &sent(&batch, endpoint(2)), now);
        assert_eq!((delivered(&batch), batch.slots()[0].peer), (vec![frame], Some(0)));
        assert_eq!(ingress.counters().iter().count() + egress.counters().iter().count(), 0);
    }

    #[test]
    fn only_sound_frames_from_our_own_mac_leave() {
        let now = start();
        let (a, _) = pair(now);
        let mut egress = Egress::default();
        let mut tagged = to_two(1514);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let mut tagged_long = tagged.clone();
        tagged_long.push(0);
        let frames: [(&[u8], Option<DropReason>); 7] = [
            (&to_two(100)[..13], Some(DropReason::FrameMalformed)),
            (&to_two(1515), Some(DropReason::FrameTooLong)),
            (&to_two(1514), None),
            (&tagged, None),
            (&tagged_long, Some(DropReason::FrameTooLong)),
            (&frame(mac(2), mac(3), LOCAL, b""), Some(DropReason::ForeignSource)),
            (&frame(mac(1), mac(1), LOCAL, b""), Some(DropReason::OwnDestination)),
        ];
        for (bytes, reason) in frames {
            let batch = out(&mut egress, &a.fib, &[bytes], now);
            match reason {
                Some(reason) => {
                    assert_eq!(verdicts(&batch), [Verdict::Drop(reason)]);
                    assert!(egress.counters().get(reason) > 0);
                }
                None => assert!(!sent(&batch, endpoint(2)).is_empty()),
            }
        }
    }

    #[test]
    fn a_frame_for_a_member_without_a_live_session_goes_to_the_node_as_it_was() {
        let now = start();
        let (mut a, _) = pair(now);
        let mut egress = Egress::default();
        for len in [100, 1514] {
            // 1514 bytes would have to be cut.
            let frame = to_two(len);
            let batch = out(&mut egress, &a.fib, &[&frame], now + REJECT_AFTER_TIME);
            assert_eq!((verdicts(&batch), batch.bytes(0)), (vec![Verdict::Punt(Punt::NoSession)], &frame[..]));
        }
        a.fib.peers[0].transport = None;
        let frame = to_two(100);
        let batch = out(&mut egress, &a.fib, &[&frame], now);
        assert_eq!((verdicts(&batch), batch.bytes(0)), (vec![Verdict::Punt(Punt::NoSession)], &frame[..]));
    }

    #[test]
    fn a_frame_for_an_unknown_mac_goes_to_the_node_within_a_budget() {
        let now = start();
        let (a, _) = pair(now);
        let mut egress = Egress::default();
        let unknown = frame(mac(9), mac(1), LOCAL, b"who?");
        let punted = (0..1000)
            .filter(|_| verdicts(&out(&mut egress, &a.fib, &[&unknown], now)) == [Verdict::Punt(Punt::UnknownUnicast)])
            .count();
        assert!((50..500).contains(&punted), "{punted}");
        assert_eq!(egress.counters().get(DropReason::FloodBudget), 1000 - punted as u64);
        let broadcast = frame(Mac::BROADCAST, mac(1), LOCAL, b"hello");
        assert_eq!(sent(&out(&mut egress, &a.fib, &[&broadcast], now), endpoint(2)).len(), 1, "of another budget");
    }

    #[test]
    fn an_arp_request_is_answered_on_the_spot() {
        let now = start();
        let (a, _) = pair(now);
        let request = arp(1, (mac(1), v4(1).octets()), (Mac([0; 6]), v4(2).octets()));
        let batch =
            out(&mut Egress::default(), &a.fib, &[&frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &request)], now);
        let reply = arp(2, (mac(2), v4(2).octets()), (mac(1), v4(1).octets()));
        assert_eq!(delivered(&batch), [frame(mac(1), mac(2), ETHERTYPE_ARP, &reply)]);
        assert_eq!(batch.len(), 1, "nothing is sent");
    }

    /// Node 1 with sessions to `members`, whose ends are returned.
    fn star(members: std::ops::RangeInclusive<u8>, now: Instant) -> (Fib, Vec<Side>) {
        let mut fib = alone(1, 1500);
        let mut sides = Vec::new();
        for n in members {
            let (ours, theirs) = session(1, n, now);
            meet(&mut fib, n, Some(ours));
            let mut side = Side { fib: alone(n, 1500), transport: Arc::clone(&theirs) };
            meet(&mut side.fib, 1, Some(theirs));
            sides.push(side);
        }
        (fib, sides)
    }

    #[test]
    fn a_broadcast_reaches_every_member_once() {
        let now = start();
        let (fib, sides) = star(2..=40, now);
        let broadcast = frame(Mac::BROADCAST, mac(1), LOCAL, &[7; 1500]);
        let batch = out(&mut Egress::default(), &fib, &[&broadcast], now);
        assert_eq!(batch.slots()[0].verdict, Verdict::Done);
        assert_eq!(batch.bytes(0), broadcast);
        for (n, side) in (2..).zip(&sides) {
            let datagrams = sent(&batch, endpoint(n));
            assert_eq!(datagrams.len(), 2, "1514 bytes are cut for a path of 1452");
            let batch = arrive(&mut Ingress::default(), &side.fib, 1, &datagrams, now);
            assert_eq!(delivered(&batch), std::slice::from_ref(&broadcast), "node {n}");
        }
    }

    #[test]
    fn a_flood_that_does_not_reach_everybody_goes_to_the_node_too() {
        let now = start();
        let (mut fib, _) = star(2..=4, now);
        fib.peers[1].transport = None;
        fib.cold = true;
        let multicast = frame(Mac([1, 0, 0x5e, 0, 0, 0xfb]), mac(1), LOCAL, b"mdns");
        let batch = out(&mut Egress::default(), &fib, &[&multicast], now);
        assert_eq!((batch.slots()[0].verdict, batch.bytes(0)), (Verdict::Punt(Punt::ColdFlood), &multicast[..]));
        assert_eq!([2, 3, 4].map(|n| sent(&batch, endpoint(n)).len()), [1, 0, 1]);
    }

    #[test]
    fn a_flood_beyond_the_budget_is_dropped_before_it_is_copied() {
        let now = start();
        let (fib, _) = star(2..=3, now);
        let broadcast = frame(Mac::BROADCAST, mac(1), LOCAL, b"again");
        let mut egress = Egress::default();
        let copies: usize = (0..1000).map(|_| out(&mut egress, &fib, &[&broadcast], now).len() - 1).sum();
        assert_eq!(copies as u64, 2 * (1000 - egress.counters().get(DropReason::FloodBudget)));
        assert!(copies < 1000);
    }

    #[test]
    fn a_batch_without_room_for_everybody_slights_nobody_for_ever() {
        let now = start();
        let (fib, _) = star(2..=5, now);
        let broadcast = frame(Mac::BROADCAST, mac(1), LOCAL, b"hello");
        let mut egress = Egress::default();
        let mut reached = [0; 4];
        for _ in 0..4 {
            let mut batch = Batch::new(4096, 3);
            batch.push(&broadcast, None).expect("room");
            egress.handle_frames(&fib, &mut batch, now);
            assert_eq!(batch.len(), 3);
            for (n, reached) in (2..).zip(&mut reached) {
                *reached += sent(&batch, endpoint(n)).len();
            }
        }
        assert_eq!(reached, [2; 4]);
        assert_eq!(egress.counters().get(DropReason::BatchFull), 8);
    }

    #[test]
    fn a_cut_frame_leaves_whole_or_not_at_all() {
        let now = start();
        let (mut a, _) = pair(now);
        a.fib.peers[0].path_payload = 600;
        let frame = to_two(1514);
        let mut egress = Egress::default();
        for slots in 1..=3 {
            let mut batch = Batch::new(1 << 16, slots);
            batch.push(&frame, None).expect("room");
            egress.handle_frames(&a.fib, &mut batch, now);
            assert_eq!(verdicts(&batch), [Verdict::Drop(DropReason::BatchFull)]);
        }
        assert_eq!(egress.counters().get(DropReason::BatchFull), 3);
        let mut batch = Batch::new(1 << 16, 4);
        batch.push(&frame, None).expect("room");
        egress.handle_frames(&a.fib, &mut batch, now);
        assert_eq!((batch.slots()[0].verdict, sent(&batch, endpoint(2)).len()), (Verdict::Done, 3));
    }

    #[test]
    fn frames_after_a_rest_are_told_once() {
        let now = start();
        let (a, _) = pair(now);
        let mut egress = Egress::default();
        let busy = Some(Notice::Busy { local: a.transport.local() });
        for (after, told) in [(0, true), (900, false), (1800, false), (2800, true), (2900, false)] {
            out(&mut egress, &a.fib, &[&to_two(60), &to_two(60)], now + Duration::from_millis(after));
            assert_eq!(egress.poll_notice(), busy.clone().filter(|_| told), "after {after} ms");
        }
    }

    #[test]
    fn a_session_that_has_sealed_its_share_is_to_be_replaced() {
        let now = start();
        let (a, _) = pair(now);
        let mut egress = Egress::default();
        out(&mut egress, &a.fib, &[&to_two(60)], now);
        assert_eq!(egress.poll_notice(), Some(Notice::Busy { local: a.transport.local() }));
        assert_eq!(egress.poll_notice(), None);
        a.transport.reserve(REKEY_AFTER_MESSAGES, now).expect("counters");
        out(&mut egress, &a.fib, &[&to_two(60), &to_two(60)], now);
        assert_eq!(egress.poll_notice(), Some(Notice::RekeyDue { local: a.transport.local() }));
        assert_eq!(egress.poll_notice(), None);
    }

    #[test]
    fn handshakes_go_to_the_node_and_rubbish_nowhere() {
        let now = start();
        let (_, b) = pair(now);
        let mut ingress = Ingress::default();
        let datagrams = [vec![1, 9], vec![2, 9], vec![3, 9], vec![], vec![5; 100], vec![4; 31], vec![4; 100]];
        let batch = arrive(&mut ingress, &b.fib, 1, &datagrams, now);
        assert_eq!(verdicts(&batch)[..3], [Verdict::Punt(Punt::Handshake); 3]);
        assert_eq!(verdicts(&batch)[3..], [Verdict::Drop(DropReason::DatagramMalformed); 4]);
        assert_eq!(ingress.counters().get(DropReason::DatagramMalformed), 4);
    }

    #[test]
    fn strange_forged_repeated_and_late_datagrams_are_dropped_by_name() {
        let now = start();
        let (a, mut b) = pair(now);
        let mut ingress = Ingress::default();
        let mut egress = Egress::default();
        let mut sealed = || sent(&out(&mut egress, &a.fib, &[&to_two(60)], now), endpoint(2)).remove(0);
        let (first, second) = (sealed(), sealed());
        let mut forged = first.clone();
        forged[30] ^= 1;
        let batch = arrive(&mut ingress, &b.fib, 1, &[forged, first.clone(), first], now);
        let expected = [Verdict::Drop(DropReason::BadTag), Verdict::Deliver, Verdict::Drop(DropReason::Replayed)];
        assert_eq!(verdicts(&batch), expected);
        let late = arrive(&mut ingress, &b.fib, 1, std::slice::from_ref(&second), now + REJECT_AFTER_TIME);
        assert_eq!(verdicts(&late), [Verdict::Drop(DropReason::SessionExhausted)]);
        b.fib.receivers.clear();
        let strange = arrive(&mut ingress, &b.fib, 1, &[second], now);
        assert_eq!(verdicts(&strange), [Verdict::Drop(DropReason::UnknownReceiver)]);
        assert_eq!(ingress.counters().iter().count(), 4);
    }

    #[test]
    fn a_message_goes_to_the_node_with_the_name_of_its_sender() {
        let now = start();
        let (a, b) = pair(now);
        let message = Message::Record(vec![7; 1024]);
        let datagram = seal_message(&a.transport, &message, now).expect("a session");
        let batch = arrive(&mut Ingress::default(), &b.fib, 1, &[datagram], now);
        assert_eq!(batch.slots()[0].verdict, Verdict::Punt(Punt::Message));
        assert_eq!((batch.bytes(0), batch.slots()[0].peer), (&message.encode()[..], Some(0)));
    }

    #[test]
    fn the_first_datagram_confirms_the_responders_session() {
        let now = start();
        let (a, b) = pair(now);
        let mut ingress = Ingress::default();
        for _ in 0..2 {
            let datagram = seal_message(&a.transport, &Message::Keepalive, now).expect("a session");
            arrive(&mut ingress, &b.fib, 1, &[datagram], now);
        }
        assert_eq!(ingress.poll_notice(), Some(Notice::Confirmed { local: b.transport.local() }));
        assert_eq!(ingress.poll_notice(), None);
    }

    #[test]
    fn a_peer_that_moved_is_noticed_once_a_batch_and_only_if_it_is_proved() {
        let now = start();
        let (a, b) = pair(now);
        let mut ingress = Ingress::default();
        let datagrams: Vec<_> =
            (0..3).map(|_| seal_message(&a.transport, &Message::Keepalive, now).expect("a session")).collect();
        arrive(&mut ingress, &b.fib, 9, &datagrams, now);
        assert_eq!(ingress.poll_notice(), Some(Notice::Confirmed { local: b.transport.local() }));
        let roamed = Notice::Roamed { peer: b.fib.peers[0].peer, endpoint: endpoint(9) };
        assert_eq!(ingress.poll_notice(), Some(roamed));
        assert_eq!(ingress.poll_notice(), None);
        arrive(&mut ingress, &b.fib, 8, &datagrams, now);
        assert_eq!(ingress.poll_notice(), None, "a repeated datagram proves nothing");
    }

    #[test]
    fn an_endpoint_seen_through_a_dual_stack_socket_is_the_same() {
        let now = start();
        let (a, b) = pair(now);
        let mut ingress = Ingress::default();
        let mut batch = batch();
        let datagram = seal_message(&a.transport, &Message::Keepalive, now).expect("a session");
        let mapped = "[::ffff:192.0.2.1]:4747".parse().expect("an endpoint");
        batch.push(&datagram, Some(mapped)).expect("room");
        ingress.handle_datagrams(&b.fib, &mut batch, now);
        assert_eq!(ingress.poll_notice(), Some(Notice::Confirmed { local: b.transport.local() }));
        assert_eq!(ingress.poll_notice(), None);
    }

    #[test]
    fn a_member_that_lies_in_a_frame_is_not_believed() {
        let now = start();
        let (a, mut b) = pair(now);
        meet(&mut b.fib, 3, None);
        let mut ingress = Ingress::default();
        let gratuitous = |mac: Mac, ip: [u8; 4]| arp(1, (mac, ip), (Mac([0; 6]), ip));
        let advertise = |n| {
            let link_local = "fe80::1".parse().expect("an address");
            ipv6(link_local, v6(2), 58, &discovery(136, v6(n), Some((2, mac(1)))))
        };
        let lies = [
            (frame(mac(2), mac(3), LOCAL, b""), DropReason::SourceMac),
            (frame(Mac::BROADCAST, mac(2), LOCAL, b""), DropReason::SourceMac),
            (frame(mac(3), mac(1), LOCAL, b""), DropReason::NotForUs),
            (frame(mac(2), mac(1), LOCAL, &[0; 1501]), DropReason::FrameTooLong),
            (
                frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &gratuitous(mac(1), v4(3).octets())),
                DropReason::ForgedBinding,
            ),
            (frame(mac(2), mac(1), ETHERTYPE_ARP, &gratuitous(mac(1), v4(2).octets())), DropReason::ForgedBinding),
            (frame(mac(2), mac(1), ETHERTYPE_IPV6, &advertise(3)), DropReason::ForgedBinding),
            (frame(mac(2), mac(1), ETHERTYPE_IPV4, &[10, 64, 0, 3].repeat(5)), DropReason::ForgedBinding),
        ];
        for (lie, reason) in &lies {
            let verdict = judged(&a, &b, &mut ingress, &inner(Inner::Frame(Checksum::Unknown), lie), now);
            assert_eq!(verdict, Verdict::Drop(*reason), "{lie:02x?}");
        }
        let total: u64 = ingress.counters().iter().map(|(_, count)| count).sum();
        assert_eq!(total, lies.len() as u64);
        let truths = [
            frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &gratuitous(mac(1), v4(1).octets())),
            frame(Mac::BROADCAST, mac(1), ETHERTYPE_ARP, &gratuitous(mac(1), [10, 64, 0, 99])),
            frame(mac(2), mac(1), ETHERTYPE_IPV6, &advertise(1)),
        ];
        for truth in &truths {
            assert_eq!(
                judged(&a, &b, &mut ingress, &inner(Inner::Frame(Checksum::Unknown), truth), now),
                Verdict::Deliver
            );
        }
    }

    #[test]
    fn a_members_flood_is_held_back_where_it_arrives() {
        let now = start();
        let (a, b) = pair(now);
        let mut ingress = Ingress::default();
        let broadcast = inner(Inner::Frame(Checksum::Unknown), &frame(Mac::BROADCAST, mac(1), LOCAL, b"storm"));
        let passed =
            (0..2000).filter(|_| judged(&a, &b, &mut ingress, &broadcast, now) == Verdict::Deliver).count() as u64;
        assert!((100..1000).contains(&passed), "{passed}");
        assert_eq!(ingress.counters().get(DropReason::FloodBudget), 2000 - passed);
        let unicast = inner(Inner::Frame(Checksum::Unknown), &frame(mac(2), mac(1), LOCAL, b"work"));
        assert_eq!(judged(&a, &b, &mut ingress, &unicast, now), Verdict::Deliver);
    }

    #[test]
    fn a_rejoined_frame_is_judged_like_any_other() {
        let now = start();
        let (a, b) = pair(now);
        let mut ingress = Ingress::default();
        let one = Inner::Fragment { id: 1, part: 0, last: true };
        let cut = |plaintext: &[u8]| inner(one, plaintext);
        let spoofed = cut(&inner(Inner::Frame(Checksum::Unknown), &frame(mac(2), mac(3), LOCAL, b"")));
        assert_eq!(judged(&a, &b, &mut ingress, &spoofed, now), Verdict::Done);
        assert_eq!(ingress.counters().get(DropReason::SourceMac), 1);
        for nested in [
            cut(&cut(b"nested")),
            cut(&inner(Inner::Message, b"m")),
            cut(b"short"),
            cut(&inner(Inner::Frame(Checksum::Unknown), b"x")),
        ] {
            assert_eq!(judged(&a, &b, &mut ingress, &nested, now), Verdict::Done);
        }
        assert_eq!(ingress.counters().get(DropReason::InnerMalformed), 4);
        assert_eq!(judged(&a, &b, &mut ingress, &cut(b""), now), Verdict::Drop(DropReason::FragmentLost));
    }

    #[test]
    fn lost_pieces_deliver_nothing_and_are_counted_when_their_time_is_over() {
        let now = start();
        let (mut a, b) = pair(now);
        a.fib.peers[0].path_payload = 600;
        let mut ingress = Ingress::default();
        let batch = out(&mut Egress::default(), &a.fib, &[&to_two(1514)], now);
        let mut pieces = sent(&batch, endpoint(2));
        let late = pieces.pop().expect("three pieces");
        let batch = arrive(&mut ingress, &b.fib, 1, &pieces, now);
        assert_eq!(verdicts(&batch), [Verdict::Done, Verdict::Done]);
        assert_eq!(ingress.counters().get(DropReason::FragmentLost), 0);
        let batch = arrive(&mut ingress, &b.fib, 1, &[late], now + Duration::from_millis(500));
        assert_eq!(delivered(&batch), Vec::<Vec<u8>>::new());
        assert_eq!(ingress.counters().get(DropReason::FragmentLost), 2);
        arrive(&mut ingress, &b.fib, 1, &[], now + Duration::from_secs(1));
        assert_eq!(ingress.counters().get(DropReason::FragmentLost), 3);
    }

    #[test]
    fn a_rejoined_frame_without_room_in_the_batch_is_counted() {
        let now = start();
        let (mut a, b) = pair(now);
        a.fib.peers[0].path_payload = 1000;
        let mut ingress = Ingress::default();
        let frames = out(&mut Egress::default(), &a.fib, &[&to_two(1514)], now);
        let mut batch = Batch::new(1 << 16, 2);
        for datagram in sent(&frames, endpoint(2)) {
            batch.push(&datagram, Some(endpoint(1))).expect("room");
        }
        ingress.handle_datagrams(&b.fib, &mut batch, now);
        assert_eq!(verdicts(&batch), [Verdict::Done, Verdict::Drop(DropReason::BatchFull)]);
        assert_eq!(ingress.counters().get(DropReason::BatchFull), 1);
    }

    #[test]
    fn jumbo_frames_pass_through_a_narrow_path() {
        let now = start();
        let (mut a, mut b) = pair(now);
        (a.fib.mtu, b.fib.mtu) = (9000, 9000);
        a.fib.peers[0].path_payload = 1232;
        let frame = to_two(9014);
        let batch = out(&mut Egress::default(), &a.fib, &[&frame], now);
        let batch = arrive(&mut Ingress::default(), &b.fib, 1, &sent(&batch, endpoint(2)), now);
        assert_eq!(delivered(&batch), [frame]);
        // 16 pieces of a 600-byte datagram do not carry it.
        a.fib.peers[0].path_payload = 600;
        let batch = out(&mut Egress::default(), &a.fib, &[&to_two(9014)], now);
        assert_eq!(verdicts(&batch), [Verdict::Drop(DropReason::FrameTooLong)]);
    }

    /// Puts `items` into an order that `seed` chooses.
    fn shuffle<T>(items: &mut [T], mut seed: u64) {
        for at in (1..items.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            items.swap(at, (seed >> 33) as usize % (at + 1));
        }
    }

    proptest! {
        #[test]
        fn every_frame_arrives_as_it_was_however_its_pieces_are_shuffled_and_doubled(
            lens in proptest::collection::vec(14usize..=1518, 1..8), path in 600usize..1500, seed: u64, doubled: bool,
        ) {
            let now = start();
            let (mut a, b) = pair(now);
            a.fib.peers[0].path_payload = path;
            let mut frames: Vec<_> = lens.iter().map(|len| {
                let mut frame = to_two(*len);
                if *len > 1514 {
                    frame[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
                }
                frame
            }).collect();
            let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let batch = out(&mut Egress::default(), &a.fib, &slices, now);
            let mut datagrams = sent(&batch, endpoint(2));
            prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= path));
            prop_assert_eq!(a.transport.sealed(), datagrams.len() as u64);
            if doubled {
                datagrams.extend(datagrams.clone());
            }
            shuffle(&mut datagrams, seed);
            let mut ingress = Ingress::default();
            let batch = arrive(&mut ingress, &b.fib, 1, &datagrams, now);
            let mut arrived = delivered(&batch);
            arrived.sort();
            frames.sort();
            prop_assert_eq!(arrived, frames);
            prop_assert_eq!(ingress.counters().get(DropReason::FragmentLost), 0);
        }

        #[test]
        fn with_any_piece_lost_nothing_is_delivered(len in 700usize..=1514, path in 600usize..700, lost: u8) {
            let now = start();
            let (mut a, b) = pair(now);
            a.fib.peers[0].path_payload = path;
            let batch = out(&mut Egress::default(), &a.fib, &[&to_two(len)], now);
            let mut datagrams = sent(&batch, endpoint(2));
            prop_assert!(datagrams.len() > 1);
            datagrams.remove(usize::from(lost) % datagrams.len());
            let mut ingress = Ingress::default();
            prop_assert!(delivered(&arrive(&mut ingress, &b.fib, 1, &datagrams, now)).is_empty());
            arrive(&mut ingress, &b.fib, 1, &[], now + Duration::from_secs(1));
            prop_assert_eq!(ingress.counters().get(DropReason::FragmentLost), datagrams.len() as u64);
        }

        #[test]
        fn hostile_datagrams_end_in_a_counted_drop(
            datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20), sealed: bool,
        ) {
            let now = start();
            let (_, b) = pair(now);
            let mut ingress = Ingress::default();
            let datagrams: Vec<_> = datagrams.into_iter().map(|mut datagram| {
                if sealed && datagram.len() >= HEADER_LEN {
                    datagram[..8].copy_from_slice(&[4, 0, 0, 0, 0, 0, 2, 1]);
                }
                datagram
            }).collect();
            let batch = arrive(&mut ingress, &b.fib, 1, &datagrams, now);
            let drops = verdicts(&batch).iter().filter(|verdict| matches!(verdict, Verdict::Drop(_))).count();
            let punts = verdicts(&batch).iter().filter(|verdict| **verdict == Verdict::Punt(Punt::Handshake)).count();
            prop_assert_eq!(drops + punts, datagrams.len());
            prop_assert_eq!(ingress.counters().iter().map(|(_, count)| count).sum::<u64>(), drops as u64);
        }

        #[test]
        fn hostile_plaintexts_of_a_member_end_in_a_counted_drop_or_a_frame_of_its_own(
            plaintexts in proptest::collection::vec((0u8..5, proptest::collection::vec(any::<u8>(), 0..200)), 1..20),
            dressed: bool,
        ) {
            let now = start();
            let (a, b) = pair(now);
            let mut ingress = Ingress::default();
            for (kind, mut plaintext) in plaintexts {
                if dressed && plaintext.len() >= INNER_LEN {
                    plaintext[0] = kind;
                    plaintext[1] &= if kind == 2 { 0x83 } else { 0 };
                    plaintext[2..8].fill(0);
                    if let Some(source) = plaintext.get_mut(14..20) {
                        source.copy_from_slice(&mac(1).0);
                    }
                }
                let before = ingress.counters().iter().map(|(_, count)| count).sum::<u64>();
                let verdict = judged(&a, &b, &mut ingress, &plaintext, now);
                let after = ingress.counters().iter().map(|(_, count)| count).sum::<u64>();
                prop_assert!(after == before || !matches!(verdict, Verdict::Deliver | Verdict::Punt(_)));
                prop_assert!(after > before || !matches!(verdict, Verdict::Drop(_)));
            }
        }
    }
}
