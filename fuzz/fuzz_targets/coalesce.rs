//! Frames from peers, in any order and of any kind. Nothing panics, every frame is written once, and what is written as a
//! superframe is cut into the very frames that came.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use meshd::tap::coalesce::{Coalescer, Offloads};
use meshd::tap::segment::segment;
use meshd::wire::checksum::{Transport, complete};
use meshd::wire::ethernet::{ETHERTYPE_IPV4, FrameHead};
use meshd::wire::{Batch, Checksum, Verdict};

/// More frames would only repeat what fewer can do.
const MAX_FRAMES: usize = 128;

fuzz_target!(|data: &[u8]| {
    let Some((offloads, data)) = data.split_first() else { return };
    let offloads = Offloads { tcp: offloads & 1 == 0, udp: offloads & 2 == 0 };
    let frames = frames(data);
    let mut batch = Batch::new(1 << 19, MAX_FRAMES);
    for (frame, checksum) in &frames {
        let slot = batch.push(frame, None).expect("room");
        batch.slot_mut(slot).checksum = *checksum;
        batch.slot_mut(slot).verdict = Verdict::Deliver;
    }
    let mut coalescer = Coalescer::new();
    coalescer.coalesce(&mut batch, offloads);

    let mut seen = vec![false; frames.len()];
    let (mut came, mut cut) = (Flows::new(), Flows::new());
    for delivery in coalescer.deliveries() {
        let mut bytes = Vec::new();
        for slot in delivery.slots() {
            assert!(!std::mem::replace(&mut seen[slot], true), "a frame is written twice");
            bytes.extend(&batch.bytes(slot)[if bytes.is_empty() { 0 } else { delivery.headers }..]);
        }
        if delivery.header.superframe.is_none() {
            assert_eq!(delivery.slots().count(), 1);
            let slot = delivery.slots().next().expect("one");
            assert_eq!(
                (&bytes, delivery.header.checksum),
                (&frames[slot].0, frames[slot].1),
                "a lone frame was changed"
            );
            note(&mut cut, &bytes, delivery.header.checksum);
            continue;
        }
        let mut again = Batch::new(1 << 18, 64);
        again.spare(bytes.len()).expect("room").copy_from_slice(&bytes);
        let held = again.hold(bytes.len());
        let count = segment(&mut again, &delivery.header, held, usize::MAX).expect("our own superframes are sound");
        assert_eq!(count, delivery.slots().count());
        (0..count).for_each(|slot| note(&mut cut, again.bytes(slot), again.slots()[slot].checksum));
    }
    assert!(seen.iter().all(|seen| *seen), "a frame is lost");
    frames.iter().for_each(|(frame, checksum)| note(&mut came, frame, *checksum));
    assert_eq!(cut, came);
});

/// What comes out of the bytes: the length, how the checksum is known and whether the frame repeats the headers of the one
/// before, the frame. A repeated header saves the fuzzer from guessing what makes two frames one flow.
fn frames(mut data: &[u8]) -> Vec<(Vec<u8>, Checksum)> {
    let mut frames: Vec<(Vec<u8>, Checksum)> = Vec::new();
    while let [len, kind, rest @ ..] = data
        && frames.len() < MAX_FRAMES
    {
        let (bytes, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        let mut frame = bytes.to_vec();
        if kind & 4 != 0
            && let Some((before, _)) = frames.last()
        {
            frame = follow(before, bytes);
        }
        let checksum = match (kind & 3, transport(&frame)) {
            (0, _) | (_, None) => Checksum::Unknown,
            (1, _) => Checksum::Valid,
            (2, Some((_, transport))) => partial(&transport),
            (_, Some((_, transport))) => Checksum::Partial { start: transport.start as u16, offset: 0 },
        };
        if kind & 8 != 0
            && let Checksum::Unknown = checksum
            && let Some((head, transport)) = transport(&frame)
        {
            make_good(&mut frame, &head, &transport);
        }
        frames.push((frame, checksum));
    }
    frames
}

/// The frame that follows `before` if its flow goes on, with changes: pairs of a place and what is xored there.
fn follow(before: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut frame = before.to_vec();
    if let Some((head, transport)) = transport(before) {
        let ip = head.payload;
        if head.ethertype == ETHERTYPE_IPV4 {
            let id = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]).wrapping_add(1);
            frame[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            let check = u16::from_be_bytes([frame[ip + 10], frame[ip + 11]]);
            // One more in the sum is one less in its complement (RFC 1624).
            let check = check.checked_sub(1).unwrap_or(0xfffe);
            frame[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
        }
        if partial(&transport) == (Checksum::Partial { start: transport.start as u16, offset: 16 }) {
            let header = usize::from(frame[transport.start + 12] >> 4) * 4;
            let len = (transport.end - transport.start).saturating_sub(header) as u32;
            let at = transport.start + 4;
            let sequence = u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes")).wrapping_add(len);
            frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        }
    }
    for change in changes.chunks_exact(2) {
        if let Some(byte) = frame.get_mut(usize::from(change[0])) {
            *byte ^= change[1];
        }
    }
    frame
}

fn transport(frame: &[u8]) -> Option<(FrameHead, Transport)> {
    let head = FrameHead::read(frame)?;
    Transport::of(frame, &head).map(|transport| (head, transport))
}

fn partial(transport: &Transport) -> Checksum {
    Checksum::Partial { start: transport.start as u16, offset: transport.checksum_offset() as u16 }
}

/// Gives a frame a checksum that holds.
fn make_good(frame: &mut [u8], head: &FrameHead, transport: &Transport) {
    let at = transport.start + transport.checksum_offset();
    let pseudo = transport.pseudo_sum(frame, head, transport.end - transport.start);
    let pseudo = meshd::wire::checksum::fold(pseudo);
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    assert!(complete(&mut frame[..transport.end], transport.start as u16, transport.checksum_offset() as u16));
}

/// The frames of each flow, in order; those of none under an empty key.
type Flows = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// Keeps of a frame what means something: without padding, without the identification of a packet that must not be cut, and
/// without the checksum of the transport, which is as good as the one it replaces.
fn note(flows: &mut Flows, frame: &[u8], checksum: Checksum) {
    let Some((head, transport)) = transport(frame) else {
        flows.entry(Vec::new()).or_default().push(frame.to_vec());
        return;
    };
    let mut frame = frame[..transport.end].to_vec();
    let ip = head.payload;
    let addresses = if head.ethertype == ETHERTYPE_IPV4 { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
    let key = [&frame[addresses], &frame[transport.start..transport.start + 4], &[transport.protocol]].concat();
    if head.ethertype == ETHERTYPE_IPV4 && frame[ip + 6] & 0x40 != 0 {
        frame[ip + 4..ip + 6].fill(0);
        frame[ip + 10..ip + 12].fill(0);
    }
    let at = transport.start + transport.checksum_offset();
    if checksum != Checksum::Unknown || transport.verifies(&frame, &head) {
        frame[at..at + 2].fill(0);
    }
    flows.entry(key).or_default().push(frame);
}
