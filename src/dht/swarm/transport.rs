//! The transport of the control network: TCP, then pnet, Noise and yamux, with the overlay kept out of the underlay.
//!
//! pnet comes first, so a stranger without the network's secret sees 24 random bytes and then nothing; the Noise
//! prologue holds the network's id, so two networks that share a secret by accident still never talk. [`Guard`] lies
//! below all of them: libp2p listens on every interface, our own TAP among them, and left alone would tell the others
//! to reach us through the tunnel that this network is to build.
//!
//! A circuit is such a connection too, but for its bottom: a stream to a relay in the place of TCP. So the relay sees nothing
//! but pnet's noise.
//! The same port takes streams of datagrams ([`crate::wire::stream`]). The first bytes tell them apart, and they are handed to
//! [`Guests`]. At port 443 everything is in TLS ([`super::tls`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::futures::future::Either;
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use libp2p::multiaddr::Protocol;
use libp2p::pnet::{PnetConfig, PnetOutput, PreSharedKey};
use libp2p::{Multiaddr, Transport, identity, noise, relay, tcp, yamux};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::rest::{Rested, Rests};
use super::tls;
use crate::identity::{Ipv4Prefix, NetworkId, NetworkSecret, ula_prefix};
use crate::wire::stream::{HELLO_LEN, TLS_PORT, is_hello};

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

/// Who takes the streams of datagrams that come to our port, and how many it was given.
#[derive(Debug, Clone)]
pub struct Guests {
    sender: mpsc::Sender<(std::net::TcpStream, SocketAddr)>,
    keys: StreamKeys,
    taken: Arc<AtomicU64>,
}

/// What streams begin with ([`NetworkSecret::stream_key`]), the newest first: epochs change it while all runs.
pub type StreamKeys = Arc<ArcSwap<Vec<[u8; 32]>>>;

impl Guests {
    /// They go to `sender`; what it has no room for is closed.
    pub fn new(sender: mpsc::Sender<(std::net::TcpStream, SocketAddr)>, keys: StreamKeys) -> Self {
        Self { sender, keys, taken: Arc::default() }
    }

    /// The network's secrets are these, the newest first.
    pub fn set_secrets(&self, secrets: &[NetworkSecret]) {
        self.keys.store(Arc::new(secrets.iter().map(|secret| *secret.stream_key()).collect()));
    }

    fn know(&self, first: &[u8; HELLO_LEN]) -> bool {
        self.keys.load().iter().any(|key| is_hello(key, first))
    }

    /// How many were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, stream: tcp::tokio::TcpStream, from: SocketAddr) -> io::Result<()> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.try_send((stream.0.into_std()?, from));
        Ok(())
    }
}

/// `/ip4/…/tcp/…`, the only kind of address we speak; at port 443 `/tls` follows.
pub(super) fn multiaddr(endpoint: SocketAddr) -> Multiaddr {
    let plain = Multiaddr::from(endpoint.ip().to_canonical()).with(Protocol::Tcp(endpoint.port()));
    if endpoint.port() == TLS_PORT { plain.with(Protocol::Tls) } else { plain }
}

/// The endpoint of `/ip4/…/tcp/…` or `/ip6/…/tcp/…`, with or without `/p2p/…`, at port 443 with `/tls`; `None` for any other address.
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
    let mut next = parts.next();
    if port == TLS_PORT {
        let Some(Protocol::Tls) = next else { return None };
        next = parts.next();
    }
    let rest = matches!(next, None | Some(Protocol::P2p(_))) && parts.next().is_none();
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

/// What the control network stands on besides TCP.
pub(super) struct Below {
    /// Connections through relays.
    pub(super) circuits: relay::client::Transport,
    /// Who is not dialled for a while.
    pub(super) rests: Rests,
    /// Who takes streams of datagrams.
    pub(super) guests: Option<Guests>,
}

/// TCP and the guard, or circuits; pnet, Noise, yamux.
pub(super) fn build(
    keypair: &identity::Keypair,
    network: &NetworkId,
    secret: &NetworkSecret,
    overlay: Overlay,
    below: Below,
) -> Result<Boxed<(libp2p::PeerId, StreamMuxerBox)>, noise::Error> {
    let pnet = PnetConfig::new(PreSharedKey::new(*secret.pnet_key()));
    let prologue = [b"meshd control v1".as_slice(), &network.0].concat();
    let noise = noise::Config::new(keypair)?.with_prologue(prologue);
    let Below { circuits, rests, guests } = below;
    let door = Door { pnet, guests };
    let tcp = Guard { inner: tcp::tokio::Transport::new(tcp::Config::new()), overlay };
    let transport = circuits
        .or_transport(tcp)
        .and_then(move |stream, point| door.pass(stream, point))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(SETUP_TIMEOUT);
    Ok(Rested::new(transport.boxed(), rests, keypair.public().to_peer_id()).boxed())
}

/// What stands between a TCP connection and the control network.
#[derive(Clone)]
struct Door {
    pnet: PnetConfig,
    guests: Option<Guests>,
}

/// A connection of any make.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Door {
    /// Who dials speaks first. Who is dialled hears from its first bytes what it wants, and has said nothing until then.
    async fn pass(
        self,
        stream: Either<relay::client::Connection, tcp::tokio::TcpStream>,
        point: ConnectedPoint,
    ) -> io::Result<PnetOutput<Box<dyn Wire>>> {
        let mut stream = match stream {
            Either::Left(circuit) => return self.prove(Box::new(circuit)).await,
            Either::Right(stream) => stream,
        };
        let wire: Box<dyn Wire> = match point {
            ConnectedPoint::Dialer { address, .. } => match endpoint(&address).filter(|at| at.port() == TLS_PORT) {
                Some(at) => Box::new(tls::connect(stream, at.ip()).await?),
                None => Box::new(stream),
            },
            ConnectedPoint::Listener { send_back_addr, .. } => {
                let mut first = [0; HELLO_LEN];
                stream.read_exact(&mut first).await?;
                if let (Some(guests), Some(from)) = (&self.guests, endpoint(&send_back_addr))
                    && guests.know(&first)
                {
                    guests.take(stream, from)?;
                    return Err(io::Error::other("it is a stream of datagrams"));
                }
                Box::new(Begun { first, read: 0, stream })
            }
        };
        self.prove(wire).await
    }

    async fn prove(&self, wire: Box<dyn Wire>) -> io::Result<PnetOutput<Box<dyn Wire>>> {
        self.pnet.handshake(wire).await.map_err(io::Error::other)
    }
}

/// A connection whose first bytes have been read already.
struct Begun {
    first: [u8; HELLO_LEN],
    /// How many of them were read again.
    read: usize,
    stream: tcp::tokio::TcpStream,
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let rest = &this.first[this.read..];
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        this.read += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
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
        let Some(endpoint) = self.overlay.admitted(&address) else {
            self.overlay.refuse();
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        // TCP knows nothing of TLS.
        let plain = Multiaddr::from(endpoint.ip()).with(Protocol::Tcp(endpoint.port()));
        self.inner.dial(plain, DialOpts { port_use: PortUse::New, ..options })
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
        assert_eq!(multiaddr(at("192.0.2.1:443")).to_string(), "/ip4/192.0.2.1/tcp/443/tls");
        assert_eq!(endpoint_of("/ip4/192.0.2.1/tcp/443/tls"), Some(at("192.0.2.1:443")));
        for other in [
            "/ip4/192.0.2.1/udp/4747",
            "/dns4/example.org/tcp/1",
            "/ip4/192.0.2.1",
            "/ip4/192.0.2.1/tcp/443",
            "/ip4/192.0.2.1/tcp/4747/tls",
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

    #[tokio::test]
    async fn the_first_bytes_tell_a_stream_from_the_rest_and_a_stranger_hears_nothing() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tokio::net::TcpStream;

        let network = NetworkId::of_root(&SigningKey::from_seed(&[1; 32]).peer_id());
        let secret = NetworkSecret::new([7; 32]);
        let (sender, mut guests) = mpsc::channel(4);
        let keys = StreamKeys::default();
        let door = |guests| {
            let keypair = identity::Keypair::generate_ed25519();
            let (circuits, client) = relay::client::new(keypair.public().to_peer_id());
            let below = Below { circuits, rests: Rests::default(), guests };
            (build(&keypair, &network, &secret, overlay(true), below).expect("a key"), client)
        };
        let taker = Guests::new(sender, keys);
        taker.set_secrets(&[NetworkSecret::new([8; 32]), secret.clone()]);
        let (mut transport, _client) = door(Some(taker));
        let place = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
        transport.listen_on(ListenerId::next(), multiaddr(place)).expect("a free port");
        tokio::spawn(async move {
            while let Some(event) = transport.next().await {
                if let TransportEvent::Incoming { upgrade, .. } = event {
                    tokio::spawn(upgrade);
                }
            }
        });
        let patience = Duration::from_millis(200);

        let mut stranger = TcpStream::connect(place).await.expect("connected");
        stranger.write_all(&[1; HELLO_LEN - 1]).await.expect("written");
        assert!(tokio::time::timeout(patience, stranger.read_u8()).await.is_err(), "nothing is said");

        let mut guest = TcpStream::connect(place).await.expect("connected");
        guest.write_all(&crate::wire::stream::hello(&secret.stream_key(), [9; 8])).await.expect("written");
        let (taken, from) = guests.recv().await.expect("handed over");
        assert_eq!(from, guest.local_addr().expect("connected"));
        guest.write_all(b"a datagram").await.expect("written");
        let mut bytes = [0; 10];
        TcpStream::from_std(taken).expect("a stream").read_exact(&mut bytes).await.expect("what follows is there");
        assert_eq!(&bytes, b"a datagram");

        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (mut other, _other_client) = door(None);
        let dial = other.dial(multiaddr(place), options).expect("an address");
        assert!(
            tokio::time::timeout(10 * patience, dial).await.is_ok_and(|met| met.is_ok()),
            "it is the control network's"
        );
        assert!(guests.try_recv().is_err());
    }
}
