//! Superframes: a virtio header, how long a frame may be, and bytes that claim to be what the header says. Nothing panics; what is cut
//! loses no byte of payload, respects the bounds, and is put together again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::tap::coalesce::{Coalescer, Offloads};
use meshd::tap::segment::segment;
use meshd::tap::vnet::{Gso, VNET_LEN, VnetHeader};
use meshd::wire::checksum::{TCP, Transport};
use meshd::wire::ethernet::FrameHead;
use meshd::wire::{Batch, Verdict};

fuzz_target!(|data: &[u8]| {
    let Some((vnet, rest)) = data.split_first_chunk::<VNET_LEN>() else { return };
    let Some((longest, bytes)) = rest.split_first_chunk::<2>() else { return };
    let Some(header) = VnetHeader::read(*vnet) else { return };
    let longest = usize::from(u16::from_be_bytes(*longest));
    // Room for a frame for each byte of the longest input.
    let mut batch = Batch::new(1 << 19, 2048);
    batch.spare(bytes.len()).expect("room").copy_from_slice(bytes);
    let held = batch.hold(bytes.len());
    let Ok(count) = segment(&mut batch, &header, held, longest) else {
        assert!(batch.is_empty(), "a refused superframe left frames behind");
        return;
    };
    let superframe = header.superframe.expect("only a superframe is cut");
    let head = FrameHead::read(bytes).expect("a frame");
    let transport = Transport::of(bytes, &head).expect("TCP or UDP");
    let headers = match transport.protocol {
        TCP => transport.start + usize::from(bytes[transport.start + 12] >> 4) * 4,
        _ => transport.start + 8,
    };
    assert_eq!(count, batch.len());
    let mut payload = Vec::new();
    for slot in 0..count {
        let frame = batch.bytes(slot);
        assert_eq!(batch.slots()[slot].checksum, header.checksum);
        assert_eq!(FrameHead::read(frame), Some(head));
        let part = Transport::of(frame, &head).expect("still TCP or UDP");
        assert_eq!((part.start, part.end), (transport.start, frame.len()));
        assert!(frame.len() <= headers + usize::from(superframe.size), "more payload than the kernel said");
        assert!(superframe.gso == Gso::Udp || longest <= headers || frame.len() <= longest, "too long");
        payload.extend(&frame[headers..]);
    }
    assert_eq!(payload, bytes[headers..transport.end]);

    // Whatever of it is merged again, it is the same payload in the same order.
    for slot in 0..count {
        batch.slot_mut(slot).verdict = Verdict::Deliver;
    }
    let mut coalescer = Coalescer::new();
    coalescer.coalesce(&mut batch, Offloads { tcp: true, udp: true });
    let slots: Vec<usize> = coalescer.deliveries().flat_map(|delivery| delivery.slots().collect::<Vec<_>>()).collect();
    assert_eq!(slots, (0..count).collect::<Vec<_>>());
    let again: Vec<u8> = slots.iter().flat_map(|slot| &batch.bytes(*slot)[headers..]).copied().collect();
    assert_eq!(again, payload);
});
