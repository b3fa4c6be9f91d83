//! Streams: the same datagrams over TCP, where no UDP passes.
//!
//! Whoever has no UDP dials a member at the TCP port of the same number, or, where only the web is let out, at port 443 in TLS.
//! The first 24 bytes prove knowledge of the network's secret, so a stranger is answered nothing; after them come, in both directions,
//! datagrams as UDP would carry them, each behind its length (2 bytes). A stream proves nothing about who is at its other end:
//! the sessions inside do. It stands for UDP, so what does not fit is dropped, not queued.
//!
//! Inside a node a stream is an endpoint like any other, an address in the discard prefix 100::/64 (RFC 6666) with the stream's number,
//! as a relay's channel is ([`super::relay`]): never on a wire, never believed when somebody else names it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};

use super::header::{HEADER_LEN, TAG_LEN};
use super::relay::PREFIX;

/// TCP at this port is TLS, whoever listens there: where nothing but the web is let out, nothing else would pass.
pub const TLS_PORT: u16 = 443;

/// Bytes with which a stream begins. The control network's begin with as many random ones (pnet's nonce), so that one port serves
/// both.
pub const HELLO_LEN: usize = 24;

/// Of these so many are random, and the rest is their MAC.
const NONCE_LEN: usize = 8;

/// Bytes before each datagram: its length.
pub const LENGTH_LEN: usize = 2;

/// The longest datagram: a frame of a device with an MTU of 9000, sealed. Whoever announces more is no member.
pub const MAX_DATAGRAM: usize = 9216;

/// The shortest: a sealed nothing.
const MIN_DATAGRAM: usize = HEADER_LEN + TAG_LEN;

/// Separates the address of a stream from those of channels and sockets.
const KIND: [u8; 4] = [0, 0, 0, 1];

/// Numbers of streams that others have dialled have this bit; those that we have dialled do not.
pub const ACCEPTED: u32 = 1 << 31;

/// The endpoint by which a node knows its stream `number`.
pub fn endpoint(number: u32) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&PREFIX);
    octets[8..12].copy_from_slice(&KIND);
    octets[12..].copy_from_slice(&number.to_be_bytes());
    SocketAddr::new(Ipv6Addr::from(octets).into(), 1)
}

/// The stream behind such an endpoint; `None` for any other.
pub fn number_behind(endpoint: &SocketAddr) -> Option<u32> {
    let IpAddr::V6(ip) = endpoint.ip() else { return None };
    let octets = ip.octets();
    let number = octets.last_chunk::<4>().filter(|_| octets[..8] == PREFIX && octets[8..12] == KIND)?;
    Some(u32::from_be_bytes(*number))
}

/// Whether it is the endpoint of a stream that another has dialled.
pub fn is_guest(endpoint: &SocketAddr) -> bool {
    number_behind(endpoint).is_some_and(|number| number & ACCEPTED != 0)
}

/// What a stream begins with, in the network of `key`.
pub fn hello(key: &[u8; 32], nonce: [u8; NONCE_LEN]) -> [u8; HELLO_LEN] {
    let mut bytes = [0; HELLO_LEN];
    bytes[..NONCE_LEN].copy_from_slice(&nonce);
    bytes[NONCE_LEN..].copy_from_slice(&mac(key, &nonce).finalize().into_bytes());
    bytes
}

/// Whether a connection that begins so is a stream.
pub fn is_hello(key: &[u8; 32], bytes: &[u8; HELLO_LEN]) -> bool {
    let (nonce, code) = bytes.split_at(NONCE_LEN);
    mac(key, nonce).verify_slice(code).is_ok()
}

fn mac(key: &[u8; 32], nonce: &[u8]) -> Blake2sMac<U16> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("32 bytes are a BLAKE2s key");
    mac.update(b"stream 1");
    mac.update(nonce);
    mac
}

/// The length that stands before a datagram; `None` for one that no stream carries.
pub fn length(datagram: &[u8]) -> Option<[u8; LENGTH_LEN]> {
    let len = datagram.len();
    // It fits 16 bits, for the bound does.
    (MIN_DATAGRAM..=MAX_DATAGRAM).contains(&len).then(|| (len as u16).to_be_bytes())
}

/// These bytes are of no stream: what follows cannot be told apart any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes was announced")]
pub struct Malformed(pub u16);

/// Where the first datagram of what was received is; `None` if it is not whole yet. The rest follows behind it.
///
/// # Errors
/// [`Malformed`] as soon as a length is there that no datagram has.
pub fn first(received: &[u8]) -> Result<Option<Range<usize>>, Malformed> {
    let Some(length) = received.first_chunk::<LENGTH_LEN>() else { return Ok(None) };
    let length = u16::from_be_bytes(*length);
    if !(MIN_DATAGRAM..=MAX_DATAGRAM).contains(&usize::from(length)) {
        return Err(Malformed(length));
    }
    let range = LENGTH_LEN..LENGTH_LEN + usize::from(length);
    Ok((range.end <= received.len()).then_some(range))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{relay, socket};
    use super::*;

    #[test]
    fn only_who_has_the_key_says_hello() {
        let bytes = hello(&[7; 32], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(is_hello(&[7; 32], &bytes) && !is_hello(&[8; 32], &bytes));
        for at in 0..HELLO_LEN {
            let mut other = bytes;
            other[at] ^= 1;
            assert!(!is_hello(&[7; 32], &other), "byte {at}");
        }
    }

    #[test]
    fn a_web_servers_answer_is_no_datagram() {
        assert_eq!(first(b"HTTP/1.1 400 Bad Request"), Err(Malformed(u16::from_be_bytes(*b"HT"))));
        assert_eq!(first(&[0, 31]), Err(Malformed(31)));
        assert_eq!(first(&[0]), Ok(None));
        assert_eq!((length(&[0; MIN_DATAGRAM - 1]), length(&[0; MAX_DATAGRAM + 1])), (None, None));
    }

    proptest! {
        #[test]
        fn a_stream_has_an_endpoint_that_nothing_else_has(number: u32, ip: IpAddr, port: u16, channel in 0..relay::CHANNELS) {
            let stream = endpoint(number);
            prop_assert_eq!(number_behind(&stream), Some(number));
            prop_assert_eq!((relay::channel_behind(&stream), socket::split(stream)), (None, (0, stream)));
            prop_assert!(relay::is_discard(&stream));
            prop_assert_eq!(number_behind(&relay::endpoint(channel)), None);
            prop_assert_eq!(number_behind(&socket::through(7, SocketAddr::new(ip, port))), None);
        }

        #[test]
        fn datagrams_come_out_as_they_went_in_however_they_arrive(
            datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), MIN_DATAGRAM..1500), 0..6),
            piece in 1usize..700,
        ) {
            let mut sent = Vec::new();
            for datagram in &datagrams {
                sent.extend(length(datagram).expect("a datagram's length"));
                sent.extend(datagram);
            }
            let (mut buffer, mut received) = (Vec::new(), Vec::new());
            for piece in sent.chunks(piece) {
                buffer.extend_from_slice(piece);
                while let Some(range) = first(&buffer).expect("sound") {
                    received.push(buffer[range.clone()].to_vec());
                    buffer.drain(..range.end);
                }
            }
            prop_assert_eq!(received, datagrams);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(received: Vec<u8>) {
            if let Ok(Some(range)) = first(&received) {
                prop_assert!(range.len() >= MIN_DATAGRAM && range.end <= received.len());
            }
        }
    }
}
