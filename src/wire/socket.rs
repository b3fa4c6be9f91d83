//! Sockets besides the first: how an endpoint says through which of ours it is reached.
//!
//! A path is a socket and an endpoint (RFC 8445 speaks of a base). Nearly all paths use the first socket, whose number is 0 and
//! need not be said. The others exist because a NAT that maps each destination to another port gives each socket one more guess
//! (the birthday method), and because a fresh socket has fresh mappings. Inside a node an IPv4 endpoint that is reached through one
//! of those is an address in the discard prefix 100::/64 (RFC 6666), as a relay's channel is ([`super::relay`]): never on a wire,
//! never believed when somebody else names it. IPv6 is not translated, so nobody has to guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::relay::PREFIX;

/// `endpoint` as it is reached through our socket `number`. Unchanged for the first, and where there is no IPv4.
pub fn through(number: u16, endpoint: SocketAddr) -> SocketAddr {
    let IpAddr::V4(ip) = endpoint.ip() else { return endpoint };
    if number == 0 {
        return endpoint;
    }
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&PREFIX);
    octets[8..10].copy_from_slice(&number.to_be_bytes());
    octets[12..].copy_from_slice(&ip.octets());
    SocketAddr::new(Ipv6Addr::from(octets).into(), endpoint.port())
}

/// The number of our socket through which `endpoint` is reached, and where that is.
pub fn split(endpoint: SocketAddr) -> (u16, SocketAddr) {
    if let IpAddr::V6(ip) = endpoint.ip()
        && let [prefix @ .., a, b, 0, 0, w, x, y, z] = ip.octets()
        && prefix == PREFIX
        && (a, b) != (0, 0)
    {
        return (u16::from_be_bytes([a, b]), SocketAddr::new(Ipv4Addr::new(w, x, y, z).into(), endpoint.port()));
    }
    (0, endpoint)
}

/// Whether an address means something on its own site only (RFC 1918, RFC 3927, RFC 4193, RFC 4291).
pub fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::relay;
    use super::*;

    proptest! {
        #[test]
        fn an_endpoint_behind_a_socket_is_found_again(number in 1u16.., ip: Ipv4Addr, port: u16) {
            let endpoint = SocketAddr::new(ip.into(), port);
            let behind = through(number, endpoint);
            prop_assert_eq!(split(behind), (number, endpoint));
            prop_assert_eq!(relay::channel_behind(&behind), None);
            prop_assert_eq!(through(0, endpoint), endpoint);
        }

        #[test]
        fn other_endpoints_are_what_they_are(ip: Ipv6Addr, port: u16, channel in 0..relay::CHANNELS) {
            let endpoint = SocketAddr::new(ip.into(), port);
            prop_assert_eq!(through(7, endpoint), endpoint);
            prop_assert!(split(endpoint) == (0, endpoint) || ip.octets()[..8] == PREFIX);
            prop_assert_eq!(split(relay::endpoint(channel)), (0, relay::endpoint(channel)));
        }
    }
}
