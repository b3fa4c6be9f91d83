//! Channels: how a relay knows where a datagram goes, and its receiver who sent it.
//!
//! A relayed datagram is any datagram with bit 7 of its kind set and the number of a channel in the three bytes that are
//! otherwise zero. Whoever receives chose the number, as with session indices. The relay replaces the number and nothing
//! else; the receiver restores the four bytes before it looks further, so what was sealed is what is opened. A relayed
//! datagram is no longer than a direct one: it needs no other MTU, and travels in the same trains.
//!
//! Inside a node a relayed path has an endpoint like any other, in the discard prefix 100::/64 (RFC 6666): never on a wire,
//! never believed when somebody else names it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bit 7 of the kind.
const RELAYED: u8 = 0x80;

/// Channels have 24 bits.
pub const CHANNELS: u32 = 1 << 24;

/// The discard prefix.
pub(super) const PREFIX: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

/// Marks a datagram to go by `channel`, whatever it was marked with before.
pub fn mark(datagram: &mut [u8], channel: u32) {
    if let [kind, number @ ..] = datagram
        && let Some(number) = number.first_chunk_mut::<3>()
    {
        let [_, high, mid, low] = channel.to_be_bytes();
        *kind |= RELAYED;
        *number = [high, mid, low];
    }
}

/// The channel of a relayed datagram; `None` for a direct one, and for one too short to be any.
pub fn channel_of(datagram: &[u8]) -> Option<u32> {
    match *datagram.first_chunk::<4>()? {
        [kind, high, mid, low] if kind & RELAYED != 0 => Some(u32::from_be_bytes([0, high, mid, low])),
        [..] => None,
    }
}

/// Makes a relayed datagram what it was when it was sealed.
pub fn unmark(datagram: &mut [u8]) {
    if let Some([kind, number @ ..]) = datagram.first_chunk_mut::<4>() {
        *kind &= !RELAYED;
        *number = [0; 3];
    }
}

/// The endpoint by which a node knows the channel at which it is addressed itself.
pub fn endpoint(channel: u32) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&PREFIX);
    octets[12..].copy_from_slice(&channel.to_be_bytes());
    SocketAddr::new(Ipv6Addr::from(octets).into(), 1)
}

/// Whether an endpoint is in the discard prefix: in a node only, and on no wire.
pub fn is_discard(endpoint: &SocketAddr) -> bool {
    matches!(endpoint.ip(), IpAddr::V6(ip) if ip.octets()[..8] == PREFIX)
}

/// The channel behind such an endpoint; `None` for a direct one.
pub fn channel_behind(endpoint: &SocketAddr) -> Option<u32> {
    let IpAddr::V6(ip) = endpoint.ip() else { return None };
    let octets = ip.octets();
    let number = octets.last_chunk::<4>().filter(|_| octets[..8] == PREFIX && octets[8..12] == [0; 4])?;
    Some(u32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_marked_datagram_is_restored(mut datagram in proptest::collection::vec(any::<u8>(), 4..40), channel in 0..CHANNELS, next in 0..CHANNELS) {
            datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
            let original = datagram.clone();
            prop_assert_eq!(channel_of(&datagram), None);
            mark(&mut datagram, channel);
            prop_assert_eq!(channel_of(&datagram), Some(channel));
            mark(&mut datagram, next);
            prop_assert_eq!((channel_of(&datagram), datagram.len()), (Some(next), original.len()));
            unmark(&mut datagram);
            prop_assert_eq!(datagram, original);
        }

        #[test]
        fn hostile_bytes_never_panic(mut datagram: Vec<u8>, channel: u32) {
            let _ = channel_of(&datagram);
            mark(&mut datagram, channel);
            unmark(&mut datagram);
        }

        #[test]
        fn a_channel_has_an_endpoint_that_nothing_else_has(channel in 0..CHANNELS, ip: IpAddr, port: u16) {
            prop_assert_eq!(channel_behind(&endpoint(channel)), Some(channel));
            let other = SocketAddr::new(ip, port);
            prop_assert!(channel_behind(&other).is_none() || ip.to_string().starts_with("100:"));
        }
    }
}
