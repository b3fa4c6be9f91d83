//! Hostile datagrams, sent from a laptop of the lab: garbage from one address, and one datagram again and again from
//! spoofed ones. Bounded in number and in time, and only ever pointed at addresses of the lab.
#![expect(clippy::disallowed_methods, reason = "a sender keeps a pace")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The lab's switch: nothing is ever sent elsewhere.
const LAB: [u8; 3] = [192, 168, 77];

/// Datagrams between two looks at the clock.
const BURST: u64 = 50;

/// `count` datagrams of garbage at `rate` a second: every length, and every known kind as first byte.
///
/// # Errors
/// When the socket fails, or `target` is not in the lab.
pub fn garbage(target: SocketAddrV4, count: u64, rate: u64) -> Result<u64> {
    check(target)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut random = ChaCha8Rng::from_seed([7; 32]);
    let mut bytes = [0; 1472];
    let sent = paced(count, rate, |number| {
        random.fill_bytes(&mut bytes);
        let length = random.next_u32() as usize % bytes.len();
        // Kinds 0 to 7; half of them with the zero flags of a well-formed header.
        bytes[0] = (number % 8) as u8;
        if number % 16 < 8 {
            bytes[1..4].fill(0);
        }
        // A full queue on the way is a loss, not an error.
        let _ = socket.send_to(&bytes[..length], target);
    });
    Ok(sent)
}

/// `datagram`, `count` times at `rate` a second, each from another address and port.
///
/// # Errors
/// When the raw socket fails (it needs CAP_NET_RAW), or `target` is not in the lab.
pub fn spoofed(target: SocketAddrV4, datagram: &[u8], count: u64, rate: u64) -> Result<u64> {
    check(target)?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).context("a raw socket")?;
    let to = SockAddr::from(SocketAddr::V4(target));
    let mut random = ChaCha8Rng::from_seed([8; 32]);
    let sent = paced(count, rate, |number| {
        let source = Ipv4Addr::new(LAB[0], LAB[1], LAB[2], 100 + (number % 150) as u8);
        let packet =
            udp_packet(SocketAddrV4::new(source, 1024 + (random.next_u32() % 60_000) as u16), target, datagram);
        let _ = socket.send_to(&packet, &to);
    });
    Ok(sent)
}

fn check(target: SocketAddrV4) -> Result<()> {
    ensure!(target.ip().octets()[..3] == LAB, "{target} is not in the lab");
    Ok(())
}

/// Sends at this pace and no longer than that takes; returns how many it were.
fn paced(count: u64, rate: u64, mut send: impl FnMut(u64)) -> u64 {
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(count as f64 / rate as f64));
    for number in 0..count {
        send(number);
        if number % BURST == BURST - 1 {
            let due = Duration::from_secs_f64((number + 1) as f64 / rate as f64);
            let elapsed = start.elapsed();
            if elapsed > limit {
                return number + 1;
            }
            thread::sleep(due.saturating_sub(elapsed));
        }
    }
    count
}

/// An IPv4 packet (RFC 791) with a UDP datagram (RFC 768) without checksum; the kernel fills in the header's own.
fn udp_packet(source: SocketAddrV4, target: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let (udp, total) = (8 + payload.len(), 28 + payload.len());
    let mut packet = Vec::with_capacity(total);
    packet.extend([0x45, 0]);
    packet.extend((total as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.ip().octets());
    packet.extend(target.ip().octets());
    packet.extend(source.port().to_be_bytes());
    packet.extend(target.port().to_be_bytes());
    packet.extend((udp as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
