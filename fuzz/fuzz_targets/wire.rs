//! Datagram headers, inner headers, control messages, streams of datagrams and Ethernet heads: no bytes panic, and what is read is canonical.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::wire::ethernet::FrameHead;
use meshd::wire::header::HEADER_LEN;
use meshd::wire::message::INNER_LEN;
use meshd::wire::{DatagramKind, Header, Inner, Message, stream};

fuzz_target!(|data: &[u8]| {
    if let Some(header) = Header::read(data) {
        assert_eq!(DatagramKind::of(data), Some(DatagramKind::Sealed));
        let mut again = [0; HEADER_LEN];
        header.write(&mut again);
        assert_eq!(again, data[..HEADER_LEN]);
    }
    if let Some(inner) = Inner::read(data) {
        let mut again = [0; INNER_LEN];
        inner.write(&mut again);
        assert_eq!(again, data[..INNER_LEN]);
    }
    if let Ok(Some(range)) = stream::first(data) {
        assert_eq!(stream::length(&data[range.clone()]).as_ref(), data.first_chunk());
    }
    if let Ok(message) = Message::decode(data) {
        assert_eq!(message.encode(), data);
    }
    if let Some(head) = FrameHead::read(data) {
        assert!(head.payload <= data.len());
    }
});
