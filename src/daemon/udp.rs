//! The underlay socket: one UDP port for both families, read and written in trains of up to 64 datagrams a system call
//! (UDP GRO and GSO).
//!
//! Endpoints are canonical: an IPv4 address is never shown in its IPv6 form, so it compares equal wherever it came
//! from. Nothing here blocks but [`UdpSocket::send_train`], for a moment, when the network card's queue is full: that holds
//! back the TAP queue and so the sender, where a drop would only make it send again.
//!
//! The socket never fragments (quinn-udp sets `IP_PMTUDISC_PROBE` and `IPV6_DONTFRAG`): frames that a path cannot carry
//! are cut inside the tunnel, where one lost piece is noticed.

#![expect(unsafe_code, reason = "poll(2), TIOCOUTQ, control messages and some socket options have no safe wrapper")]

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, bail};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::DEFAULT_PORT;
use crate::wire::relay::is_discard;
use crate::wire::socket::through;
use crate::wire::{Batch, DatagramKind, Ecn, SHARE_BITS};

/// Receive buffer of the socket, bytes: at 10 Gbit/s 4 MiB bridge the 3 ms for which the scheduler may keep an ingress
/// thread waiting. Twice as much would only age datagrams.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What one receive may bring with GRO: 64 datagrams, but never more than an IP packet.
const GRO_BYTES: usize = 1 << 16;

/// The kernel puts at most this many datagrams together (`UDP_GRO_CNT_MAX`): so far one receive may go beyond a limit.
pub(crate) const GRO_DATAGRAMS: usize = 64;

/// Bytes of the longest train: what an IPv4 packet holds behind its headers. The kernel cuts it only after it was one.
pub(crate) const TRAIN_BYTES: usize = 65_507;

/// How long a send waits for room in the socket's buffer. 208 KiB, Linux's default send buffer, leave a 100 Mbit/s
/// line in 17 ms; a line that is slower or stuck had better lose datagrams than stop the lane.
const SEND_WAIT: Duration = Duration::from_millis(20);

/// The part of the send buffer, one in so many, that answers to unproved addresses may fill. The kernel keeps what it
/// sends to a LAN address that nobody has for 3 s, until ARP gives up, and charges it to the socket: forged senders would
/// fill all of it, and nobody else be heard. A quarter is fifty cookies; members keep the rest.
const UNPROVED_SHARE: usize = 4;

/// Receive buffer of the socket for initiations, bytes: some 400, a tenth of a second of the worst; more would only be answered too late.
const CALLERS_BUFFER: usize = 1 << 19;

/// The option that tells what a socket holds and has dropped (asm-generic/socket.h); libc does not have it.
const SO_MEMINFO: libc::c_int = 55;

/// How many free UDP ports are tried until one has its TCP twin free too. One in sixteen would be a crowded machine;
/// sixteen times none is no accident.
const FREE_PORT_TRIES: usize = 16;

/// The sockets at our port.
#[derive(Debug)]
pub struct Opened {
    /// Of each lane.
    pub lanes: Vec<UdpSocket>,
    /// Where initiations come in, unless this kernel cannot tell them from the rest.
    pub callers: Option<UdpSocket>,
}

/// The socket of a lane; sends from any thread.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    /// Of trains and receives: where a train is refused as such, there are no more.
    state: UdpSocketState,
    /// Of single datagrams: one refused for its address says nothing about trains.
    single: UdpSocketState,
    port: u16,
    /// 0 for a lane's ([`crate::wire::socket`]).
    number: u16,
    /// Whether the socket speaks IPv6, and IPv4 in its IPv6 form.
    dual: bool,
}

impl UdpSocket {
    /// Opens the sockets at one port: one for each of `lanes`, between which the kernel divides sessions by the [`SHARE_BITS`] of their
    /// index, so that a peer stays where it is, and one for initiations. `port` must be free for UDP and TCP; without one,
    /// [`DEFAULT_PORT`] is tried and then any other that is.
    ///
    /// # Errors
    /// Fit to be shown.
    pub fn open(port: Option<u16>, lanes: usize) -> anyhow::Result<Opened> {
        // Bound without sharing, so that the port is nobody else's; then it is shared by all of ours.
        let first = Self::open_one(port)?;
        let port = first.port;
        first.socket.set_reuse_port(true)?;
        let mut all = vec![first];
        for _ in 1..lanes {
            let shared = Self::bind(port, true);
            all.push(shared.with_context(|| format!("UDP port {port} could not be shared by the lanes"))?);
        }
        let callers = Self::bind(port, true).and_then(|callers| {
            callers.socket.set_recv_buffer_size(CALLERS_BUFFER)?;
            divide(&all[0].socket, lanes)?;
            Ok(callers)
        });
        let callers = callers.inspect_err(|error| {
            tracing::warn!(%error, "a flood of handshakes takes more from sessions, and a peer whose address changes may change lanes");
        });
        Ok(Opened { lanes: all, callers: callers.ok() })
    }

    /// Opens socket `number` at any port.
    ///
    /// # Errors
    /// When there are no descriptors or ports left.
    pub fn beside(number: u16) -> io::Result<Self> {
        Ok(Self { number, ..Self::bind(0, false)? })
    }

    fn open_one(port: Option<u16>) -> anyhow::Result<Self> {
        if let Some(port) = port.filter(|&port| port != 0) {
            let socket = match Self::bind(port, false) {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    bail!("UDP port {port} is taken (another meshd?): choose another with --port")
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    bail!("UDP port {port} is for root only: choose one above 1023 with --port")
                }
                Err(error) => return Err(error).with_context(|| format!("UDP port {port} could not be opened")),
            };
            if !tcp_is_free(port) {
                bail!("TCP port {port} is taken (another meshd?): choose another with --port");
            }
            return Ok(socket);
        }
        for attempt in 0..=FREE_PORT_TRIES {
            match Self::bind(if attempt == 0 { DEFAULT_PORT } else { 0 }, false) {
                Ok(socket) if tcp_is_free(socket.port) => return Ok(socket),
                Ok(_) => {}
                Err(error) if attempt == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("no UDP socket could be opened"),
            }
        }
        bail!("no port is free for UDP and TCP alike: choose one with --port")
    }

    fn bind(port: u16, shared: bool) -> io::Result<Self> {
        match Self::bind_to(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), shared) {
            // A kernel without IPv6 has no such family, or no such address.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                Self::bind_to(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), shared)
            }
            result => result,
        }
    }

    fn bind_to(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(shared)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        let (state, single) = (UdpSocketState::new((&socket).into())?, UdpSocketState::new((&socket).into())?);
        // quinn-udp asks for the time and the local address of every datagram. We need neither, and with both the buffer it
        // keeps for them has no room left for the congestion mark.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
        set_option(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 0);
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0);
        if address.is_ipv6() {
            // Members know our address in any case, and one that is another tomorrow has every firewall opened anew (RFC 5014).
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, libc::IPV6_PREFER_SRC_PUBLIC);
        }
        // Beyond the system's limit, which CAP_NET_ADMIN allows.
        if !set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as libc::c_int) {
            // Refused beyond net.core.rmem_max without CAP_NET_ADMIN; the kernel then takes what it allows.
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok(Self { socket, state, single, port, number: 0, dual: address.is_ipv6() })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it speaks IPv6 too.
    pub fn has_ipv6(&self) -> bool {
        self.dual
    }

    /// What tells tokio's runtime when there is something to receive.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn readiness(&self) -> io::Result<tokio::net::UdpSocket> {
        tokio::net::UdpSocket::from_std(self.socket.try_clone()?.into())
    }

    /// Receives into slots of `batch`, about `limit` of them, until there is nothing left or the batch is full, and
    /// leaves room for copies. Returns how many slots were made and whether there may be more to receive.
    ///
    /// # Errors
    /// What the kernel says of the socket itself; ICMP errors about earlier datagrams are passed over.
    pub fn receive(&self, batch: &mut Batch, limit: usize) -> io::Result<(usize, bool)> {
        let mut count = 0;
        while count < limit {
            // Twice the room: what is put together again is appended.
            if batch.spare(2 * GRO_BYTES).is_none() {
                break;
            }
            let Some(spare) = batch.spare(GRO_BYTES) else { break };
            let mut meta = [RecvMeta::default()];
            match self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(spare)], &mut meta) {
                Ok(_) => {
                    let RecvMeta { len, stride, addr, ecn, .. } = meta[0];
                    let source = canonical(addr);
                    // Nobody is there: such addresses mean something inside a node only.
                    if is_discard(&source) {
                        continue;
                    }
                    let source = through(self.number, source);
                    let ecn = ecn.map_or(Ecn::NotCapable, |ecn| Ecn::of_bits(ecn as u8));
                    count += batch.commit_strided(len, stride, Some(source), ecn);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((count, false)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_about_a_path(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((count, true))
    }

    /// The receive and the send buffer, bytes, as the kernel granted them (it counts its own overhead in).
    pub fn buffers(&self) -> (usize, usize) {
        (self.socket.recv_buffer_size().unwrap_or(0), self.socket.send_buffer_size().unwrap_or(0))
    }

    /// How many datagrams the kernel has dropped because the receive buffer was full, modulo 2^32.
    pub fn overflows(&self) -> u64 {
        const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
        let mut figures = [0u32; DROPS + 1];
        let mut size = size_of_val(&figures) as libc::socklen_t;
        // SAFETY: the option writes at most `size` bytes of numbers into `figures`; both live for the call; the descriptor is open.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                figures.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if result == 0 { figures[DROPS].into() } else { 0 }
    }

    /// The most datagrams that a train may have; 1 where the kernel or a network card refused trains.
    pub fn longest_train(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends a train: datagrams of `size` bytes end to end, the last of which may be shorter, with one congestion mark. Waits
    /// a moment if the socket's buffer is full. Returns how many were not sent.
    pub fn send_train(&self, endpoint: SocketAddr, ecn: Ecn, bytes: &[u8], size: usize) -> u64 {
        if bytes.len() <= size {
            return self
                .send_patiently(endpoint, ecn, bytes, None)
                .map_or_else(|error| refused(endpoint, &error), |()| 0);
        }
        match self.send_patiently(endpoint, ecn, bytes, Some(size)) {
            Ok(()) => 0,
            // A network card that cannot: quinn-udp has taken note, and these go one by one.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
                tracing::debug!(%endpoint, %error, "no trains here");
                bytes.chunks(size).map(|datagram| self.send_train(endpoint, ecn, datagram, size)).sum()
            }
            Err(error) => refused(endpoint, &error) * bytes.len().div_ceil(size) as u64,
        }
    }

    fn send_patiently(&self, endpoint: SocketAddr, ecn: Ecn, bytes: &[u8], size: Option<usize>) -> io::Result<()> {
        match self.transmit(&self.state, endpoint, ecn, bytes, size) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.wait_writable() => {
                self.transmit(&self.state, endpoint, ecn, bytes, size)
            }
            result => result,
        }
    }

    /// Sends one datagram without waiting.
    ///
    /// # Errors
    /// What the kernel says. All of it concerns this datagram or this endpoint: the caller counts it and goes on.
    pub fn try_send(&self, endpoint: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.transmit(&self.single, endpoint, Ecn::NotCapable, bytes, None)
    }

    /// Sends one datagram that crosses `hops` routers at most, without waiting. All others cross as many as ever, so it is
    /// said with the datagram (RFC 3542, section 6.3), not to the socket.
    ///
    /// # Errors
    /// As [`UdpSocket::try_send`].
    pub fn try_send_near(&self, endpoint: SocketAddr, bytes: &[u8], hops: u8) -> io::Result<()> {
        /// A control message of one `int`, as the kernel has it.
        #[repr(C)]
        struct Control {
            header: libc::cmsghdr,
            value: libc::c_int,
            padding: libc::c_int,
        }
        let (level, option) = match endpoint {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
        };
        let address = socket2::SockAddr::from(self.destination(endpoint)?);
        // SAFETY: a header and a message of zeros are valid, and say nothing. The C libraries pad them differently.
        let (mut header, mut message): (libc::cmsghdr, libc::msghdr) = unsafe { std::mem::zeroed() };
        header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<libc::c_int>()) as _;
        header.cmsg_level = level;
        header.cmsg_type = option;
        let mut control = Control { header, value: hops.into(), padding: 0 };
        let mut contents = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut contents;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        // SAFETY: everything that `message` points to lives for the call, and sendmsg only reads it; the descriptor is open.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// As the socket's family has it.
    fn destination(&self, endpoint: SocketAddr) -> io::Result<SocketAddr> {
        match (endpoint, self.dual) {
            (SocketAddr::V4(v4), true) => Ok(SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))),
            (SocketAddr::V6(_), false) => Err(io::ErrorKind::NetworkUnreachable.into()),
            (SocketAddr::V4(_) | SocketAddr::V6(_), _) => Ok(endpoint),
        }
    }

    fn transmit(
        &self,
        state: &UdpSocketState,
        endpoint: SocketAddr,
        ecn: Ecn,
        bytes: &[u8],
        size: Option<usize>,
    ) -> io::Result<()> {
        let destination = self.destination(endpoint)?;
        let ecn = EcnCodepoint::from_bits(ecn as u8);
        let transmit = Transmit { destination, ecn, contents: bytes, segment_size: size, src_ip: None };
        state.try_send((&self.socket).into(), &transmit)
    }

    /// Sends one datagram to an address that nobody has proved to have, without waiting: only while the kernel holds
    /// little for us.
    ///
    /// # Errors
    /// As [`UdpSocket::try_send`], and `WouldBlock` when the share for such datagrams is used up.
    pub fn try_send_unproved(&self, endpoint: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        if self.held()? > self.socket.send_buffer_size()? / UNPROVED_SHARE {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.try_send(endpoint, bytes)
    }

    /// Bytes of the send buffer in use.
    fn held(&self) -> io::Result<usize> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one c_int, which `bytes` is; it lives for the call; the descriptor is open.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(bytes).unwrap_or(0)) }
    }

    /// Waits until the socket's buffer has room, at most [`SEND_WAIT`].
    fn wait_writable(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll` is one valid pollfd, alive for the call, and its descriptor is open.
        unsafe { libc::poll(&raw mut poll, 1, SEND_WAIT.as_millis() as libc::c_int) == 1 }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One datagram, or one train, that was not sent.
fn refused(endpoint: SocketAddr, error: &io::Error) -> u64 {
    tracing::trace!(%endpoint, %error, "not sent");
    1
}

/// The one form of an endpoint: IPv4 as IPv4, no flow label, a scope only where the address needs one.
pub(crate) fn canonical(endpoint: SocketAddr) -> SocketAddr {
    let ip = endpoint.ip().to_canonical();
    match (ip, endpoint) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => {
            let scope = if ip.is_unicast_link_local() { v6.scope_id() } else { 0 };
            SocketAddrV6::new(ip, v6.port(), 0, scope).into()
        }
        (IpAddr::V4(_) | IpAddr::V6(_), SocketAddr::V4(_) | SocketAddr::V6(_)) => (ip, endpoint.port()).into(),
    }
}

/// An ICMP error about something sent earlier, which the kernel reports at the next receive.
fn is_about_a_path(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EMSGSIZE | libc::EPROTO | libc::ENOBUFS
        )
    )
}

/// Whether the directory can listen on the TCP port of the same number, in both families.
fn tcp_is_free(port: u16) -> bool {
    let probe = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    match probe {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        result => result,
    }
    .is_ok()
}

/// Has the kernel choose among the sockets that share the port of `socket`: initiations go to the one after those of the `lanes`, the rest
/// to one of these by its session. Classic BPF, which sees the UDP payload; what is too short goes to the first.
fn divide(socket: &Socket, lanes: usize) -> io::Result<()> {
    let instruction = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let is_initiation = libc::sock_filter {
        jf: 1,
        ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, DatagramKind::Initiation as u32)
    };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
        is_initiation,
        instruction(libc::BPF_RET | libc::BPF_K, lanes as u32),
        // The last byte of the receiver index.
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 7),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, SHARE_BITS),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, lanes as u32),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option takes a sock_fprog, whose instructions live for the call; the kernel checks them and keeps a copy.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option whose value is a number; whether the kernel took it.
fn set_option(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> bool {
    // SAFETY: every option used here takes a c_int, which `value` is; it lives for the call; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> UdpSocket {
        UdpSocket::bind(0, false).expect("a socket")
    }

    fn receive(socket: &UdpSocket) -> Batch {
        let mut batch = Batch::new(1 << 18, 512);
        for _ in 0..200 {
            if socket.receive(&mut batch, 64).expect("a receive").0 > 0 {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "a test waits for the kernel")]
            std::thread::sleep(Duration::from_millis(5));
        }
        batch
    }

    #[test]
    fn both_families_arrive_at_one_port_with_canonical_sources() {
        let (here, there) = (any(), any());
        here.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, there.port())), b"four").expect("sent");
        let batch = receive(&there);
        assert_eq!(batch.bytes(0), b"four");
        assert_eq!(batch.slots()[0].source, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, here.port()))));
        if !here.has_ipv6() || here.try_send(SocketAddr::from((Ipv6Addr::LOCALHOST, there.port())), b"six").is_err() {
            return;
        }
        let batch = receive(&there);
        assert_eq!(batch.bytes(0), b"six");
        assert_eq!(batch.slots()[0].source, Some(SocketAddr::from((Ipv6Addr::LOCALHOST, here.port()))));
    }

    #[test]
    fn a_datagram_that_is_to_stay_near_arrives_next_door_with_few_hops_left() {
        let receiver = any();
        for (ip, level, option) in [
            (IpAddr::from(Ipv4Addr::LOCALHOST), libc::IPPROTO_IP, libc::IP_RECVTTL),
            (IpAddr::from(Ipv6Addr::LOCALHOST), libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
        ] {
            assert!(set_option(&receiver.socket, level, option, 1));
            any().try_send_near(SocketAddr::new(ip, receiver.port()), b"near", 2).expect("sent");
            let (mut bytes, mut control) = ([0u8; 16], [0u64; 16]);
            let mut contents = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            // SAFETY: as in `try_send_near`; the kernel writes into `bytes` and `control`, which live for the call.
            let hops = unsafe {
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = &raw mut contents;
                message.msg_iovlen = 1;
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = size_of_val(&control);
                assert_eq!(
                    libc::recvmsg(receiver.socket.as_raw_fd(), &raw mut message, 0),
                    4,
                    "blocks until it is there"
                );
                let mut found = None;
                let mut header = libc::CMSG_FIRSTHDR(&raw const message);
                while !header.is_null() {
                    if matches!((*header).cmsg_type, libc::IP_TTL | libc::IPV6_HOPLIMIT) {
                        found = Some(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned());
                    }
                    header = libc::CMSG_NXTHDR(&raw const message, header);
                }
                found
            };
            assert_eq!((&bytes[..4], hops), (&b"near"[..], Some(2)), "{ip}");
        }
    }

    #[test]
    fn a_session_stays_at_one_socket_wherever_it_comes_from() {
        let Opened { lanes: sockets, callers } = UdpSocket::open(None, 3).expect("three sockets");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets[0].port()));
        for index in [5u32, 0xdead_bee5, 16, 17, u32::MAX] {
            for _path in 0..4 {
                let mut datagram = [4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
                datagram[4..8].copy_from_slice(&index.to_be_bytes());
                any().try_send(to, &datagram).expect("sent");
                let socket = &sockets[(index & SHARE_BITS) as usize % 3];
                assert_eq!(receive(socket).bytes(0), datagram, "{index:x}");
            }
        }
        any().try_send(to, b"short").expect("sent");
        assert_eq!(receive(&sockets[0]).bytes(0), b"short");
        let Some(callers) = callers else { return };
        for source in 0..4u8 {
            any().try_send(to, &[DatagramKind::Initiation as u8, source]).expect("sent");
            assert_eq!(receive(&callers).bytes(0), [DatagramKind::Initiation as u8, source]);
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_else_notices() {
        let Opened { lanes, callers: Some(callers) } = UdpSocket::open(None, 1).expect("sockets") else { return };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, lanes[0].port()));
        let sender = any();
        let initiation = [DatagramKind::Initiation as u8; 1200];
        while callers.overflows() < 10 {
            sender.try_send(to, &initiation).expect("sent");
        }
        sender.try_send(to, &[DatagramKind::Sealed as u8; 100]).expect("sent");
        assert_eq!(receive(&lanes[0]).bytes(0), [DatagramKind::Sealed as u8; 100]);
        assert_eq!(lanes[0].overflows(), 0);
    }

    #[test]
    fn many_datagrams_fill_a_batch_in_order_and_leave_room_for_copies() {
        let (here, there) = (any(), any());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, there.port()));
        for number in 0..100u8 {
            here.try_send(to, &[number; 1400]).expect("sent");
        }
        let mut batch = Batch::new(1 << 18, 512);
        let mut seen = 0;
        while seen < 100 {
            batch.clear();
            let (count, more) = there.receive(&mut batch, 32).expect("a receive");
            assert!(count > 0 || more, "only {seen} arrived");
            for index in 0..batch.len() {
                assert_eq!(batch.bytes(index), [seen; 1400]);
                seen += 1;
            }
            assert!(batch.spare(GRO_BYTES).is_some());
        }
    }

    #[test]
    fn datagrams_sent_as_one_segmented_buffer_arrive_as_slots_of_their_own() {
        let (here, there) = (any(), any());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, there.port()));
        let bytes: Vec<u8> = (0..10u8).flat_map(|number| [number; 1000]).collect();
        if !here.has_ipv6() || here.send_train(to, Ecn::Capable0, &bytes, 1000) > 0 {
            return;
        }
        let batch = receive(&there);
        assert_eq!(batch.len(), 10);
        assert!((0..10).all(|index| batch.bytes(index) == [index as u8; 1000]));
        let marks: Vec<_> = batch.slots().iter().map(|slot| slot.ecn).collect();
        assert_eq!(marks, [Ecn::Capable0; 10], "with the mark they were sent with");
    }

    #[test]
    fn a_train_that_is_refused_goes_datagram_by_datagram() {
        let (here, there) = (any(), any());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, there.port()));
        // More datagrams than a train may have: the kernel refuses it as a whole, with EINVAL.
        let bytes: Vec<u8> = (0..200u8).flat_map(|number| [number; 100]).collect();
        assert_eq!((here.send_train(to, Ecn::NotCapable, &bytes, 100), here.longest_train()), (0, 1));
        let mut seen = 0;
        while seen < 200 {
            let batch = receive(&there);
            assert!(!batch.is_empty(), "only {seen} arrived");
            for index in 0..batch.len() {
                assert_eq!(batch.bytes(index), [seen; 100]);
                seen += 1;
            }
        }
    }

    #[test]
    fn a_datagram_nobody_can_get_is_an_error_of_that_datagram_alone() {
        let (here, there) = (any(), any());
        let closed = any().port();
        for _ in 0..3 {
            let _ = here.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, closed)), b"nobody");
        }
        assert!(here.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, there.port())), &[0; 70_000]).is_err());
        assert!(here.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), b"port zero").is_err());
        here.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, there.port())), b"still here").expect("sent");
        assert_eq!(receive(&there).bytes(0), b"still here");
        there.try_send(SocketAddr::from((Ipv4Addr::LOCALHOST, here.port())), b"both ways").expect("sent");
        assert_eq!(receive(&here).bytes(0), b"both ways");
    }

    #[test]
    fn a_chosen_port_that_is_taken_is_refused_and_any_other_is_found() {
        let first = UdpSocket::open_one(None).expect("some port is free");
        let refusal = UdpSocket::open_one(Some(first.port())).expect_err("it is taken").to_string();
        assert_eq!(refusal, format!("UDP port {} is taken (another meshd?): choose another with --port", first.port()));
        let second = UdpSocket::open_one(None).expect("another port is free");
        assert_ne!(first.port(), second.port());
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a TCP port");
        let port = listener.local_addr().expect("bound").port();
        let refusal = UdpSocket::open_one(Some(port)).expect_err("TCP has it").to_string();
        assert!(refusal.contains("is taken"), "{refusal}");
    }

    #[test]
    fn an_endpoint_has_one_form() {
        let form = |text: &str| canonical(text.parse().expect("an endpoint")).to_string();
        assert_eq!(form("[::ffff:192.0.2.1]:7"), "192.0.2.1:7");
        assert_eq!(form("[fe80::1%3]:7"), "[fe80::1%3]:7");
        assert_eq!(form("[2001:db8::1%3]:7"), "[2001:db8::1]:7");
    }
}
