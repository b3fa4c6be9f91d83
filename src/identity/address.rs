//! Addresses that follow from keys: the MAC, the IPv6 unique local address, the automatic IPv4 address.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};

use super::key::{NetworkId, PeerId};

/// An Ethernet address, six bytes as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The virtual MAC of a node: locally administered, unicast, 46 bits of hash(network, key). It is a name, not a
    /// proof: the signed record binds (MAC, key).
    pub fn automatic(network: &NetworkId, peer: &PeerId) -> Self {
        let hash = hash(b"meshd mac v1", network, peer, 0);
        let mut mac = [0; 6];
        mac.copy_from_slice(&hash[..6]);
        mac[0] = (mac[0] & 0xfc) | 0x02;
        Self(mac)
    }

    /// Whether the group bit is set: broadcast or multicast (IEEE 802).
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

/// Text that is no MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an address of the form 02:00:00:00:00:01")]
pub struct AddressError;

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(AddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| AddressError)?;
        }
        parts.next().is_none().then_some(Self(mac)).ok_or(AddressError)
    }
}

/// An IPv4 network of the overlay: address and prefix length (8 to 30).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(Ipv4Addr, u8)", into = "(Ipv4Addr, u8)")]
pub struct Ipv4Prefix {
    address: Ipv4Addr,
    length: u8,
}

impl Ipv4Prefix {
    /// The prefix of `length` bits that holds `address`; `None` unless 8 <= length <= 30.
    pub fn new(address: Ipv4Addr, length: u8) -> Option<Self> {
        (8..=30).contains(&length).then(|| Self { address: Ipv4Addr::from(address.to_bits() & mask(length)), length })
    }

    /// The network address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` may be a host of this network: inside it, neither the network nor the broadcast address.
    pub fn contains_host(&self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !mask(self.length);
        self.contains(address) && host != 0 && host != !mask(self.length)
    }

    /// Whether `address` is inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }
}

impl TryFrom<(Ipv4Addr, u8)> for Ipv4Prefix {
    type Error = AddressError;

    fn try_from((address, length): (Ipv4Addr, u8)) -> Result<Self, AddressError> {
        Self::new(address, length).filter(|prefix| prefix.address == address).ok_or(AddressError)
    }
}

impl From<Ipv4Prefix> for (Ipv4Addr, u8) {
    fn from(prefix: Ipv4Prefix) -> Self {
        (prefix.address, prefix.length)
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Ipv4Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, length) = text.split_once('/').ok_or(AddressError)?;
        let (address, length) = (address.parse().map_err(|_| AddressError)?, length.parse().map_err(|_| AddressError)?);
        Self::try_from((address, length))
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX << (32 - u32::from(length))
}

/// The IPv4 network a mesh has unless its founder says otherwise: 10.x.0.0/16, x of 64..=191 by hash of the network,
/// away from the 10.0, 10.1 and 10.8 that homes, offices and other VPNs use.
pub fn default_prefix(network: &NetworkId) -> Ipv4Prefix {
    Ipv4Prefix { address: Ipv4Addr::new(10, 64 + network.0[0] % 128, 0, 0), length: 16 }
}

/// The `attempt`-th automatic IPv4 address of a node, counted from 0; the next one is taken after a lost conflict.
pub fn automatic_ipv4(network: &NetworkId, peer: &PeerId, prefix: &Ipv4Prefix, attempt: u32) -> Ipv4Addr {
    let hash = hash(b"meshd ipv4 v1", network, peer, attempt);
    let number = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
    let hosts = u64::from(!mask(prefix.length)) - 1;
    Ipv4Addr::from(prefix.address.to_bits() + 1 + (number % hosts) as u32)
}

/// The mesh's IPv6 unique local /64 (RFC 4193): fd, 40 bits of the network id as global id, subnet 0.
pub fn ula_prefix(network: &NetworkId) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&network.0[..5]);
    Ipv6Addr::from(bytes)
}

/// The unique local address of a MAC in the mesh: modified EUI-64 (RFC 4291, appendix A) below [`ula_prefix`].
pub fn ula_address(network: &NetworkId, mac: &Mac) -> Ipv6Addr {
    let mut bytes = ula_prefix(network).octets();
    let [a, b, c, d, e, f] = mac.0;
    bytes[8..].copy_from_slice(&[a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(bytes)
}

fn hash(domain: &[u8], network: &NetworkId, peer: &PeerId, attempt: u32) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    hash.update(domain);
    hash.update(network.0);
    hash.update(peer.0);
    hash.update(attempt.to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::canonical;

    proptest! {
        #[test]
        fn an_automatic_mac_is_local_and_unicast(network: [u8; 32], peer: [u8; 32]) {
            let mac = Mac::automatic(&NetworkId(network), &PeerId(peer));
            prop_assert_eq!(mac.0[0] & 0x03, 0x02);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        }

        #[test]
        fn an_automatic_ipv4_address_is_a_host_of_the_prefix(
            network: [u8; 32], peer: [u8; 32], length in 8u8..=30, attempt: u32,
        ) {
            let prefix = Ipv4Prefix::new(Ipv4Addr::new(10, 77, 3, 9), length).expect("in range");
            prop_assert!(prefix.contains_host(automatic_ipv4(&NetworkId(network), &PeerId(peer), &prefix, attempt)));
        }
    }

    #[test]
    fn a_ula_is_in_the_ula_prefix_and_ends_in_eui_64() {
        let network = NetworkId([0xab; 32]);
        let address = ula_address(&network, &Mac([0x02, 0, 0, 0, 0, 1]));
        assert_eq!(address.to_string(), "fdab:abab:abab::ff:fe00:1");
        assert_eq!(ula_prefix(&network).to_string(), "fdab:abab:abab::");
    }

    #[test]
    fn a_prefix_off_the_wire_obeys_the_same_rules() {
        let prefix: Ipv4Prefix = "10.1.0.0/16".parse().expect("a prefix");
        assert_eq!(canonical::decode(&canonical::encode(&prefix), 16), Ok(prefix));
        for (address, length) in [([10, 0, 0, 0], 0), ([10, 0, 0, 0], 99), ([10, 0, 0, 1], 16)] {
            let bytes = canonical::encode(&(Ipv4Addr::from(address), length as u8));
            assert!(canonical::decode::<Ipv4Prefix>(&bytes, 16).is_err(), "{address:?}/{length}");
        }
    }

    #[test]
    fn a_prefix_with_host_bits_or_a_silly_length_is_refused() {
        assert!("10.1.0.0/16".parse::<Ipv4Prefix>().is_ok());
        for text in ["10.1.0.1/16", "10.0.0.0/31", "10.0.0.0/7", "10.0.0.0", "x/16", "10.0.0.0/-1"] {
            assert_eq!(text.parse::<Ipv4Prefix>(), Err(AddressError), "{text}");
        }
    }
}
