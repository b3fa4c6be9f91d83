//! The transport of the control network: TCP, then pnet, Noise and yamux, with the overlay kept out of the underlay.
//!
//! pnet comes first, so a stranger without the network's secret sees 24 random bytes and then nothing; the Noise
//! prologue holds the network's id, so two networks that share a secret by accident still never talk. [`Guard`] lies
//! below all of them: libp2p listens on every interface, our own TAP among them, and left alone would tell the others
//! to reach us through the tunnel that this network is to build.
//!
//! A circuit is such a connection too, but for its bottom: a stream to a relay in the place of TCP. So the relay sees nothing
//! but pnet's noise.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{Multiaddr, Transport, identity, noise, relay, tcp, yamux};

use super::rest::{Rested, Rests};
use crate::identity::{Ipv4Prefix, NetworkId, NetworkSecret, ula_prefix};

/// How long a connection may take from TCP to yamux. Four round trips; ten seconds are a lost packet in each.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`; a length beyond the address's bits means all of them.
    pub fn new(address: IpAddr, length: u8) -> Self {
        Self { address: address.to_canonical(), length }
    }

    /// One address.
    pub fn host(address: IpAddr) -> Self {
        Self::new(address, u8::MAX)
    }

    /// Whether `address` is inside. An IPv4-mapped IPv6 address counts as the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |difference: u128, bits: u32| {
            let host_bits = bits.saturating_sub(u32::from(self.length));
            difference.checked_shr(host_bits).unwrap_or(0) == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same(u128::from(own.to_bits() ^ other.to_bits()), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits() ^ other.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// What belongs to the overlay, and the count of what was kept out for that.
#[derive(Debug, Clone)]
pub(super) struct Overlay {
    prefixes: Arc<[Prefix]>,
    loopback: bool,
    refused: Arc<AtomicU64>,
}

impl Overlay {
    /// The network's own IPv4 and IPv6 prefixes and `more`. `loopback` says whether loopback endpoints make sense:
    /// they do where we listen on one.
    pub(super) fn new(network: &NetworkId, ipv4: &Ipv4Prefix, more: &[Prefix], loopback: bool) -> Self {
        let own =
            [Prefix::new(IpAddr::V4(ipv4.address()), ipv4.length()), Prefix::new(IpAddr::V6(ula_prefix(network)), 64)];
        Self { prefixes: own.into_iter().chain(more.iter().copied()).collect(), loopback, refused: Arc::default() }
    }

    /// Whether `address` is of the overlay.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// Whether a peer may sensibly be dialled at `endpoint`, and others be told so. Link-local IPv6 is left out: a
    /// multiaddr has no zone.
    pub(super) fn admits(&self, endpoint: SocketAddr) -> bool {
        let address = endpoint.ip().to_canonical();
        let usable = match address {
            IpAddr::V4(v4) => !v4.is_broadcast(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        usable
            && endpoint.port() != 0
            && !address.is_unspecified()
            && !address.is_multicast()
            && (self.loopback || !address.is_loopback())
            && !self.contains(address)
    }

    /// The endpoint of a multiaddr, if we would dial it.
    pub(super) fn admitted(&self, address: &Multiaddr) -> Option<SocketAddr> {
        endpoint(address).filter(|endpoint| self.admits(*endpoint))
    }

    /// How often the guard kept the overlay out.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// `/ip4/…/tcp/…`, the only kind of address we speak.
pub(super) fn multiaddr(endpoint: SocketAddr) -> Multiaddr {
    Multiaddr::from(endpoint.ip().to_canonical()).with(Protocol::Tcp(endpoint.port()))
}

/// The endpoint of `/ip4/…/tcp/…` or `/ip6/…/tcp/…`, with or without `/p2p/…`; `None` for any other address.
pub(super) fn endpoint(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let first = parts.next()?;
    let ip = if let Protocol::Ip4(ip) = first {
        IpAddr::V4(ip)
    } else if let Protocol::Ip6(ip) = first {
        IpAddr::V6(ip).to_canonical()
    } else {
        return None;
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    let rest = matches!(parts.next(), None | Some(Protocol::P2p(_))) && parts.next().is_none();
    rest.then(|| SocketAddr::new(ip, port))
}

/// Whether an address, or either end of a connection, leads through a relay.
pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The relay that an address leads through.
pub(super) fn relay_of(address: &Multiaddr) -> Option<libp2p::PeerId> {
    let before = address.iter().take_while(|part| *part != Protocol::P2pCircuit);
    let relay = before.filter_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None }).last();
    relay.filter(|_| is_circuit(address))
}

/// `/ip4/…/tcp/…/p2p/RELAY/p2p-circuit`: where `relay`, which is at `endpoint`, gives circuits.
pub(super) fn circuit(relay: libp2p::PeerId, endpoint: SocketAddr) -> Multiaddr {
    multiaddr(endpoint).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}

/// TCP and the guard, or circuits; pnet, Noise, yamux.
pub(super) fn build(
    keypair: &identity::Keypair,
    network: &NetworkId,
    secret: &NetworkSecret,
    overlay: Overlay,
    circuits: relay::client::Transport,
    rests: Rests,
) -> Result<Boxed<(libp2p::PeerId, StreamMuxerBox)>, noise::Error> {
    let pnet = PnetConfig::new(PreSharedKey::new(*secret.pnet_key()));
    let prologue = [b"meshd control v1".as_slice(), &network.0].concat();
    let noise = noise::Config::new(keypair)?.with_prologue(prologue);
    let transport = circuits
        .or_transport(Guard { inner: tcp::tokio::Transport::new(tcp::Config::new()), overlay })
        .and_then(move |stream, _| pnet.handshake(stream))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(SETUP_TIMEOUT);
    Ok(Rested::new(transport.boxed(), rests, keypair.public().to_peer_id()).boxed())
}

/// Keeps the overlay out of a transport: overlay addresses are not announced, nothing is accepted on them or from
/// them, and they are not dialled. It also dials from a fresh port: dialling from the listening port makes two nodes
/// that discover each other at the same instant open one TCP connection from both ends, with two initiators.
struct Guard<T> {
    inner: T,
    overlay: Overlay,
}

impl<T: Transport + Unpin> Transport for Guard<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        if self.overlay.admitted(&address).is_none() {
            self.overlay.refuse();
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        let inside = |address: &Multiaddr| endpoint(address).is_some_and(|at| this.overlay.contains(at.ip()));
        loop {
            let event = std::task::ready!(Pin::new(&mut this.inner).poll(context));
            let swallowed = match &event {
                TransportEvent::NewAddress { listen_addr, .. } | TransportEvent::AddressExpired { listen_addr, .. } => {
                    inside(listen_addr)
                }
                TransportEvent::Incoming { local_addr, send_back_addr, .. } => {
                    inside(local_addr) || inside(send_back_addr)
                }
                TransportEvent::ListenerClosed { .. } | TransportEvent::ListenerError { .. } => false,
            };
            if !swallowed {
                return Poll::Ready(event);
            }
            this.overlay.refuse();
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::Endpoint;
    use libp2p::futures::StreamExt;

    use super::*;
    use crate::identity::{SigningKey, default_prefix};

    fn overlay(loopback: bool) -> Overlay {
        let network = NetworkId::of_root(&SigningKey::from_seed(&[1; 32]).peer_id());
        Overlay::new(&network, &default_prefix(&network), &[], loopback)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an endpoint")
    }

    #[test]
    fn a_prefix_holds_its_own_and_nothing_else() {
        let prefix = Prefix::new("10.64.0.0".parse().expect("an address"), 16);
        for (address, inside) in [
            ("10.64.0.1", true),
            ("10.64.255.255", true),
            ("::ffff:10.64.3.4", true),
            ("10.65.0.0", false),
            ("::1", false),
        ] {
            assert_eq!(prefix.contains(address.parse().expect("an address")), inside, "{address}");
        }
        let host = Prefix::host("fe80::1".parse().expect("an address"));
        assert!(host.contains("fe80::1".parse().expect("an address")));
        assert!(!host.contains("fe80::2".parse().expect("an address")));
        assert!(Prefix::new("::".parse().expect("an address"), 0).contains("fe80::2".parse().expect("an address")));
    }

    #[test]
    fn overlay_addresses_and_nonsense_are_not_admitted() {
        let network = NetworkId::of_root(&SigningKey::from_seed(&[1; 32]).peer_id());
        let overlay = overlay(false);
        let inside = default_prefix(&network).address().to_bits() + 9;
        assert!(!overlay.admits(SocketAddr::new(IpAddr::V4(inside.into()), 4747)));
        let ula = ula_prefix(&network).to_bits() + 9;
        assert!(!overlay.admits(SocketAddr::new(IpAddr::V6(ula.into()), 4747)));
        for nonsense in
            ["0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1", "127.0.0.1:1", "[fe80::1]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(!overlay.admits(at(nonsense)), "{nonsense}");
        }
        assert!(overlay.admits(at("192.0.2.1:4747")) && overlay.admits(at("[2001:db8::1]:4747")));
    }

    #[test]
    fn only_plain_tcp_addresses_have_an_endpoint() {
        let endpoint_of = |text: &str| endpoint(&text.parse().expect("a multiaddr"));
        assert_eq!(endpoint_of("/ip4/192.0.2.1/tcp/4747"), Some(at("192.0.2.1:4747")));
        assert_eq!(endpoint_of("/ip6/::ffff:192.0.2.1/tcp/4747"), Some(at("192.0.2.1:4747")));
        assert_eq!(multiaddr(at("[2001:db8::1]:4747")).to_string(), "/ip6/2001:db8::1/tcp/4747");
        for other in [
            "/ip4/192.0.2.1/udp/4747",
            "/dns4/example.org/tcp/1",
            "/ip4/192.0.2.1",
            "/ip4/192.0.2.1/tcp/1/ip4/10.64.0.1/tcp/2",
        ] {
            assert_eq!(endpoint_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_by_a_relay_names_it() {
        let [relay, member] =
            [1u8, 2].map(|n| identity::Keypair::ed25519_from_bytes([n; 32]).expect("a seed").public());
        let (relay, member) = (relay.to_peer_id(), member.to_peer_id());
        let by = circuit(relay, at("192.0.2.1:4747"));
        assert_eq!(by.to_string(), format!("/ip4/192.0.2.1/tcp/4747/p2p/{relay}/p2p-circuit"));
        assert_eq!(relay_of(&by.with(Protocol::P2p(member))), Some(relay));
        assert_eq!(relay_of(&multiaddr(at("192.0.2.1:4747")).with(Protocol::P2p(member))), None);
    }

    fn guard(overlay: Overlay) -> Guard<tcp::tokio::Transport> {
        Guard { inner: tcp::tokio::Transport::new(tcp::Config::new()), overlay }
    }

    #[tokio::test]
    async fn the_guard_announces_accepts_and_dials_nothing_of_the_overlay() {
        let ours = overlay(true);
        let loopback = [Prefix::new("127.0.0.0".parse().expect("an address"), 8)];
        let network = NetworkId::of_root(&SigningKey::from_seed(&[1; 32]).peer_id());
        let as_overlay = Overlay::new(&network, &default_prefix(&network), &loopback, true);

        let mut listener = guard(as_overlay.clone()).boxed();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
        listener.listen_on(ListenerId::next(), multiaddr(taken)).expect("a free port");
        let _caller = tokio::net::TcpStream::connect(taken).await.expect("the kernel accepts");
        let event = tokio::time::timeout(Duration::from_millis(300), listener.next()).await;
        assert!(event.is_err(), "neither NewAddress nor Incoming comes up: {event:?}");
        assert_eq!(as_overlay.refused(), 2, "both were swallowed");

        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        assert!(guard(as_overlay).dial(multiaddr(taken), options).is_err());
        assert!(guard(ours).dial(multiaddr(taken), options).is_ok());
    }
}
