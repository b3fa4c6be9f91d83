//! What arrives at an interface, byte by byte, held against the standards by a parser that is not ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{Background, Laptop, signal, wait_for};

/// Of a pcap file (draft-ietf-opsawg-pcap): its header, and one for each frame.
const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;

/// The magic number of a file with microseconds, of a machine like ours.
const MAGIC: u32 = 0xa1b2_c3d4;

/// No more is coming if nothing came for so long.
const QUIET: Duration = Duration::from_millis(500);

/// A tcpdump that writes what comes in to a file.
#[derive(Debug)]
pub struct Arrivals {
    tcpdump: Background,
    file: PathBuf,
    log: PathBuf,
}

impl Arrivals {
    /// Begins to write what comes in at `interface` of `laptop`.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn start(laptop: &Laptop, interface: &str) -> Result<Self> {
        let file = laptop.dir.join(format!("{interface}.pcap"));
        if file.exists() {
            fs::remove_file(&file)?;
        }
        let mut tcpdump = laptop.command("tcpdump");
        // All of each frame; 32 MiB bridge a second in which tcpdump does not run.
        tcpdump.args(["-i", interface, "-Q", "in", "-s", "0", "-B", "32768", "-U", "-Z", "root", "-w"]);
        let log = laptop.dir.join("tcpdump.log");
        let tcpdump = Background::logged(tcpdump.arg(&file), &log)?;
        // The header is written when it listens.
        let listens = || Ok(fs::metadata(&file).is_ok_and(|file| file.len() >= FILE_HEADER as u64));
        wait_for("tcpdump listens", Duration::from_secs(5), listens)?;
        Ok(Self { tcpdump, file, log })
    }

    /// Stops, and returns the frames.
    ///
    /// # Errors
    /// When tcpdump has missed a frame, or written nonsense.
    #[expect(clippy::disallowed_methods, reason = "the last frames are on their way through the kernel")]
    pub fn stop(self) -> Result<Vec<Vec<u8>>> {
        // What tcpdump has not fetched when it is stopped, it forgets without a word.
        let mut written = 0;
        wait_for("tcpdump has written everything", Duration::from_secs(10), || {
            thread::sleep(QUIET);
            let before = std::mem::replace(&mut written, fs::metadata(&self.file)?.len());
            Ok(before == written)
        })?;
        signal("INT", self.tcpdump.process())?;
        let Self { mut tcpdump, file, log } = self;
        tcpdump.wait()?;
        let said = fs::read_to_string(log)?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "not everything was seen: {said}");
        read(&fs::read(file)?)
    }
}

fn read(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    let number = |at: usize| -> Result<u32> {
        let bytes = file.get(at..at + 4).context("a file cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    ensure!(number(0)? == MAGIC, "no pcap file");
    let (mut at, mut frames) = (FILE_HEADER, Vec::new());
    while at < file.len() {
        let (kept, length) = (number(at + 8)? as usize, number(at + 12)? as usize);
        ensure!(kept == length, "tcpdump kept {kept} of {length} bytes");
        at += FRAME_HEADER;
        frames.push(file.get(at..at + kept).context("a file cut short")?.to_vec());
        at += kept;
    }
    Ok(frames)
}

/// Headers of a fixed length.
const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// Looks at every frame: no longer than `longest` bytes, and every checksum in it valid. Returns how many there are of each
/// kind: `tcp4`, `udp6`, `arp`, and so on.
///
/// # Errors
/// The first that is not, and why.
pub fn judge(frames: &[Vec<u8>], longest: usize) -> Result<BTreeMap<&'static str, usize>> {
    let mut kinds = BTreeMap::new();
    for (number, frame) in frames.iter().enumerate() {
        ensure!(frame.len() <= longest, "frame {number} has {} bytes", frame.len());
        let kind = verify(frame).with_context(|| {
            format!("frame {number} of {}, {} bytes: {:02x?}", frames.len(), frame.len(), &frame[..frame.len().min(80)])
        })?;
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

/// Which kind of frame it is, if its checksums are valid.
fn verify(frame: &[u8]) -> Result<&'static str> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let transport = packet.transport;
    match packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            same("IPv4", header.header_checksum(), header.to_header().calc_header_checksum())?;
            long("IPv4", frame.len() - ETHERNET, header.total_len().into())?;
            let (source, target) = (header.source(), header.destination());
            Ok(match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    same("TCP", one_zero(tcp.checksum()), one_zero(tcp.calc_checksum_ipv4(source, target)?))?;
                    "tcp4"
                }
                Some(TransportSlice::Udp(udp)) => {
                    long("UDP", ip.payload().payload.len(), udp.length().into())?;
                    let expected = udp.to_header().calc_checksum_ipv4_raw(source, target, udp.payload())?;
                    same("UDP", udp.checksum(), expected)?;
                    "udp4"
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    same("ICMP", icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()))?;
                    "icmp4"
                }
                Some(TransportSlice::Icmpv6(_)) => bail!("ICMPv6 in IPv4"),
                Some(TransportSlice::Igmp(_)) => "igmp",
                // Its transport checksum is one of all pieces together: the receiver judges that.
                None if ip.payload().fragmented => "piece4",
                None => "other4",
            })
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            long("IPv6", frame.len() - ETHERNET - IPV6, header.payload_length().into())?;
            let (source, target) = (header.source(), header.destination());
            Ok(match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    same("TCP", one_zero(tcp.checksum()), one_zero(tcp.calc_checksum_ipv6(source, target)?))?;
                    "tcp6"
                }
                Some(TransportSlice::Udp(udp)) => {
                    long("UDP", ip.payload().payload.len(), udp.length().into())?;
                    let expected = udp.to_header().calc_checksum_ipv6_raw(source, target, udp.payload())?;
                    same("UDP", udp.checksum(), expected)?;
                    "udp6"
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    ensure!(icmp.is_checksum_valid(source, target), "ICMPv6: {:04x}", icmp.checksum());
                    "icmp6"
                }
                Some(TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_)) => bail!("a protocol of IPv4 in IPv6"),
                None if ip.payload().fragmented => "piece6",
                None => "other6",
            })
        }
        Some(NetSlice::Arp(_)) => Ok("arp"),
        None => Ok("other"),
    }
}

/// Nothing here is so short that it is padded.
fn long(what: &str, found: usize, expected: usize) -> Result<()> {
    ensure!(found == expected, "{what}: {found} bytes where {expected} are said");
    Ok(())
}

/// Zero has two forms in one's complement, and a receiver takes both (RFC 1071); Linux writes ffff where it completes a checksum, for TCP
/// too.
fn one_zero(checksum: u16) -> u16 {
    if checksum == 0xffff { 0 } else { checksum }
}

fn same(what: &str, found: u16, expected: u16) -> Result<()> {
    ensure!(found == expected, "{what}: {found:04x} for {expected:04x}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn datagram() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut frame, b"hello")
            .expect("a frame");
        frame
    }

    #[test]
    fn a_valid_frame_is_counted_and_any_wrong_byte_of_it_is_found() {
        let good = datagram();
        assert_eq!(judge(&[good.clone(), good.clone()], 1514).expect("valid"), BTreeMap::from([("udp4", 2)]));
        assert!(judge(std::slice::from_ref(&good), good.len() - 1).is_err(), "too long");
        for at in 14..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(judge(&[bad], 1514).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_file_of_two_frames_is_read_and_one_cut_short_is_refused() {
        let mut file = MAGIC.to_le_bytes().to_vec();
        file.resize(FILE_HEADER, 0);
        for frame in [&b"first"[..], b"second"] {
            let length = (frame.len() as u32).to_le_bytes();
            file.extend([[0; 4], [0; 4], length, length].concat());
            file.extend(frame);
        }
        assert_eq!(read(&file).expect("two"), [b"first".to_vec(), b"second".to_vec()]);
        assert!(read(&file[..file.len() - 1]).is_err());
        assert!(read(&[0; FILE_HEADER]).is_err());
    }
}
