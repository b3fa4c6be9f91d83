//! Loads of which every byte is checked: a TCP stream, and UDP datagrams in trains, as QUIC sends them (UDP GSO).
//!
//! Both ends know what is sent. A datagram: kind (1), its length (2), number (8), then bytes that follow from the number. The
//! sender asks now and then what has arrived, in the same socket, and goes on after the answer: so nothing is lost for want
//! of room, and what is missing was lost on the way. It only ever runs inside the lab.

use std::io::{ErrorKind, IoSliceMut, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::{Background, Laptop, is_inside, output, wait_for};

/// What a stream carries is drawn with this.
const SEED: [u8; 32] = [5; 32];

/// Of a stream, at a time: neither a multiple of a segment nor of a page.
const PIECE: usize = 100_003;

/// Bytes sent between two questions: with what the kernel charges for each, it fits into a receive buffer of 208 KiB,
/// Linux's default, even if the receiver sleeps all the while.
const UNASKED: usize = 64 << 10;

/// How long an answer is waited for, and how often it is asked for: 5 s together.
const PATIENCE: Duration = Duration::from_millis(250);
const TRIES: u32 = 20;

const DATA: u8 = 0;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
/// Kind, length and number.
const HEADER: usize = 11;

/// What the receiver does with datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Takes one at a time.
    Plain,
    /// Takes what the kernel has put together (UDP GRO).
    Gro,
}

/// What arrived of a sender's datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub received: u64,
    /// One more than the highest number: so many were sent before, or are lost.
    pub next: u64,
    /// Of another length or with other bytes than were sent.
    pub wrong: u64,
    /// That came after one with a higher number, or twice.
    pub late: u64,
    /// Receives that brought several at once.
    pub merged: u64,
}

impl Tally {
    /// Those that are missing.
    pub fn lost(&self) -> u64 {
        self.next.saturating_sub(self.received)
    }

    fn take(&mut self, datagram: &[u8]) {
        self.received += 1;
        let Some((length, number)) = parse(datagram) else {
            self.wrong += 1;
            return;
        };
        let mut expected = vec![0; length];
        fill(&mut expected, number);
        self.wrong += u64::from(expected != datagram);
        self.late += u64::from(number < self.next);
        self.next = self.next.max(number + 1);
    }

    fn to_json(self) -> Value {
        let Self { received, next, wrong, late, merged } = self;
        json!({ "received": received, "next": next, "wrong": wrong, "late": late, "merged": merged })
    }

    pub(super) fn of_json(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let number = |field: &str| value[field].as_u64();
        Some(Self {
            received: number("received")?,
            next: number("next")?,
            wrong: number("wrong")?,
            late: number("late")?,
            merged: number("merged")?,
        })
    }
}

/// Takes one stream after the other at `address`, and tells each sender whether it was as it should be.
///
/// # Errors
/// When the socket fails, or we are not in the lab.
pub fn receive_streams(address: SocketAddr) -> Result<()> {
    ensure!(is_inside(), "a load is only for the lab");
    let listener = TcpListener::bind(address).with_context(|| format!("{address}"))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        // One that breaks says so to its sender by having no answer.
        let _ = judge_stream(&mut stream).and_then(|answer| Ok(stream.write_all(answer.as_bytes())?));
    }
}

fn judge_stream(stream: &mut TcpStream) -> Result<String> {
    let mut random = ChaCha8Rng::from_seed(SEED);
    let (mut bytes, mut expected, mut at) = (vec![0; PIECE], vec![0; PIECE], 0);
    loop {
        random.fill_bytes(&mut expected);
        let mut filled = 0;
        while filled < PIECE {
            match stream.read(&mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if let Some(wrong) = bytes[..filled].iter().zip(&expected).position(|(byte, expected)| byte != expected) {
            return Ok(format!("wrong at {}", at + wrong));
        }
        at += filled;
        if filled < PIECE {
            return Ok(format!("right {at}"));
        }
    }
}

/// Sends a stream of `pieces` times 100,003 bytes.
///
/// # Errors
/// When a byte of it did not arrive as it was sent.
pub fn send_stream(target: SocketAddr, pieces: usize) -> Result<()> {
    ensure!(is_inside(), "a load is only for the lab");
    let mut stream = TcpStream::connect(target)?;
    let mut random = ChaCha8Rng::from_seed(SEED);
    let mut bytes = vec![0; PIECE];
    for _ in 0..pieces {
        random.fill_bytes(&mut bytes);
        stream.write_all(&bytes)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer == format!("right {}", pieces * PIECE), "of {} bytes: {answer}", pieces * PIECE);
    Ok(())
}

/// Takes datagrams at `address`, and tells senders what has arrived, until killed. A question of number 0 begins anew.
///
/// # Errors
/// When the socket fails, or we are not in the lab.
pub fn receive_datagrams(address: SocketAddr, reader: Reader) -> Result<()> {
    ensure!(is_inside(), "a load is only for the lab");
    let socket = UdpSocket::bind(address).with_context(|| format!("{address}"))?;
    // Asks for GRO; without it a receive never brings more than one.
    let state = (reader == Reader::Gro).then(|| UdpSocketState::new((&socket).into())).transpose()?;
    // quinn-udp makes it non-blocking.
    socket.set_nonblocking(false)?;
    let mut bytes = vec![0; 1 << 16];
    let mut tally = Tally::default();
    loop {
        let (length, stride, from) = match &state {
            None => {
                let (length, from) = socket.recv_from(&mut bytes)?;
                (length, length, from)
            }
            Some(state) => {
                let mut meta = [RecvMeta::default()];
                state.recv((&socket).into(), &mut [IoSliceMut::new(&mut bytes)], &mut meta)?;
                (meta[0].len, meta[0].stride.max(1), meta[0].addr)
            }
        };
        tally.merged += u64::from(length > stride);
        for datagram in bytes[..length].chunks(stride) {
            if datagram.first() == Some(&QUESTION) {
                if parse(datagram).is_some_and(|(_, number)| number == 0) {
                    tally = Tally::default();
                }
                let mut answer = vec![0; HEADER];
                head(&mut answer, ANSWER, parse(datagram).map_or(0, |(_, number)| number));
                answer.extend(tally.to_json().to_string().bytes());
                let _ = socket.send_to(&answer, from);
            } else {
                tally.take(datagram);
            }
        }
    }
}

/// A socket that sends datagrams and asks what has arrived.
struct Sender {
    socket: UdpSocket,
    state: UdpSocketState,
    target: SocketAddr,
    /// Of the next datagram.
    number: u64,
    /// Of the last question.
    asked: u64,
}

impl Sender {
    fn new(target: SocketAddr) -> Result<Self> {
        ensure!(is_inside(), "a load is only for the lab");
        let any: SocketAddr =
            if target.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any)?;
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut sender = Self { socket, state, target, number: 0, asked: 0 };
        sender.ask(0)?;
        Ok(sender)
    }

    /// Sends `count` datagrams of `size` bytes and a shorter one, in one system call.
    fn train(&mut self, size: usize, count: usize) -> Result<()> {
        let mut bytes = vec![0; size * count + size / 2];
        for datagram in bytes.chunks_mut(size) {
            fill(datagram, self.number);
            self.number += 1;
        }
        self.send(&bytes, size)
    }

    fn send(&mut self, bytes: &[u8], size: usize) -> Result<()> {
        let segment_size = (size < bytes.len()).then_some(size);
        let transmit = Transmit { destination: self.target, ecn: None, contents: bytes, segment_size, src_ip: None };
        Ok(self.state.try_send((&self.socket).into(), &transmit)?)
    }

    /// What has arrived so far.
    fn ask(&mut self, question: u64) -> Result<Tally> {
        self.asked = question;
        for _ in 0..TRIES {
            self.question()?;
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                if let Some(tally) = self.answer()? {
                    return Ok(tally);
                }
            }
        }
        bail!("the receiver at {} does not answer", self.target)
    }

    fn question(&mut self) -> Result<()> {
        let mut question = [0; HEADER];
        head(&mut question, QUESTION, self.asked);
        match self.send(&question, HEADER) {
            // Nobody listened when an earlier one arrived.
            Err(error) if error.is::<std::io::Error>() => Ok(()),
            result => result,
        }
    }

    /// The answer to the last question, if it comes within [`PATIENCE`].
    fn answer(&self) -> Result<Option<Tally>> {
        let mut bytes = [0; 512];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let about = parse(&bytes[..length]).filter(|(_, number)| bytes[0] == ANSWER && *number == self.asked);
                Ok(about.and_then(|_| Tally::of_json(&bytes[HEADER..length])))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends `trains` trains, each of as many datagrams of `size` bytes as one system call takes and a shorter one.
///
/// # Errors
/// When the kernel has no UDP GSO, or the receiver does not answer.
pub fn send_trains(target: SocketAddr, size: usize, trains: usize) -> Result<Tally> {
    let mut sender = Sender::new(target)?;
    let most = sender.state.max_gso_segments();
    // What an IPv4 packet holds; and no more than that between two questions.
    let count = (65_507_usize.min(UNASKED) / size).min(most) - 1;
    ensure!(count > 1, "this kernel sends no trains: {most}");
    let mut tally = Tally::default();
    for _ in 0..trains {
        sender.train(size, count)?;
        tally = sender.ask(sender.number)?;
    }
    ensure!(sender.state.max_gso_segments() == most, "the kernel refused trains");
    // The last ones may be lost too.
    tally.next = sender.number;
    Ok(tally)
}

/// Sends datagrams of `size` bytes one by one, `rate` a second for `time`, and calls `see` each second with what arrived of
/// those sent before.
///
/// # Errors
/// When the receiver does not answer for 5 s.
pub fn send_paced(
    target: SocketAddr,
    size: usize,
    rate: f64,
    time: Duration,
    mut see: impl FnMut(Tally) -> Result<()>,
) -> Result<Tally> {
    let mut sender = Sender::new(target)?;
    sender.socket.set_nonblocking(true)?;
    let begin = Instant::now();
    let (mut answered, mut asked) = (begin, begin);
    while begin.elapsed() < time {
        // What is late is made up for: a loss is to be one of the way, not of ours.
        let due = (begin.elapsed().as_secs_f64() * rate) as u64;
        while sender.number < due {
            let mut datagram = vec![0; size];
            fill(&mut datagram, sender.number);
            sender.number += 1;
            // What the kernel refuses is lost.
            let _ = sender.send(&datagram, size);
        }
        if asked.elapsed() > Duration::from_secs(1) {
            asked = Instant::now();
            sender.asked = sender.number;
            sender.question()?;
        }
        if let Some(tally) = sender.answer()? {
            answered = Instant::now();
            see(tally)?;
        }
        ensure!(answered.elapsed() < Duration::from_secs(5), "the receiver at {target} does not answer");
        thread::sleep(Duration::from_secs_f64(0.5 / rate));
    }
    sender.socket.set_nonblocking(false)?;
    let mut tally = sender.ask(sender.number)?;
    tally.next = sender.number;
    Ok(tally)
}

fn head(bytes: &mut [u8], kind: u8, number: u64) {
    bytes[0] = kind;
    let length = bytes.len() as u16;
    bytes[1..3].copy_from_slice(&length.to_be_bytes());
    bytes[3..HEADER].copy_from_slice(&number.to_be_bytes());
}

/// Makes it datagram `number`.
fn fill(bytes: &mut [u8], number: u64) {
    let Some((header, rest)) = bytes.split_at_mut_checked(HEADER) else { return };
    // Every bit of the number has its say (Knuth's multiplicative hash).
    let mixed = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    for (at, byte) in rest.iter_mut().enumerate() {
        *byte = ((at ^ at >> 8) as u8).wrapping_add(mixed);
    }
    head(header, DATA, number);
    header[1..3].copy_from_slice(&((HEADER + rest.len()) as u16).to_be_bytes());
}

fn parse(bytes: &[u8]) -> Option<(usize, u64)> {
    let length = bytes.get(1..3)?.try_into().expect("two bytes");
    let number = bytes.get(3..HEADER)?.try_into().expect("eight bytes");
    Some((u16::from_be_bytes(length).into(), u64::from_be_bytes(number)))
}

/// What a test calls: the same in a laptop, by our own command line (`netsim` is its path).
pub mod from_outside {
    use super::*;

    /// Starts a receiver, and waits until it listens: `what` is `streams`, `datagrams` or `trains`.
    ///
    /// # Errors
    /// When it does not.
    pub fn receiver(netsim: &str, laptop: &Laptop, what: &str, address: SocketAddr) -> Result<Background> {
        let started = Background::start(laptop.command(netsim).args(["checked", what, &address.to_string()]))?;
        let options = if what == "streams" { "-ltn" } else { "-lun" };
        let port = format!(":{} ", address.port());
        wait_for("the receiver listens", Duration::from_secs(5), || {
            Ok(laptop.run(&format!("ss {options}"))?.contains(&port))
        })?;
        Ok(started)
    }

    /// A stream of `pieces` times 100,003 bytes.
    ///
    /// # Errors
    /// When a byte of it did not arrive as it was sent.
    pub fn stream(netsim: &str, laptop: &Laptop, target: SocketAddr, pieces: usize) -> Result<()> {
        let words = ["stream", &target.to_string(), &pieces.to_string()].map(str::to_owned);
        send(netsim, laptop, &words).map(drop)
    }

    /// Trains of datagrams of `size` bytes.
    ///
    /// # Errors
    /// When the receiver does not answer.
    pub fn trains(netsim: &str, laptop: &Laptop, target: SocketAddr, size: usize, trains: usize) -> Result<Tally> {
        let words = ["train", &target.to_string(), &size.to_string(), &trains.to_string()].map(str::to_owned);
        let text = send(netsim, laptop, &words)?;
        Tally::of_json(text.as_bytes()).with_context(|| text.clone())
    }

    fn send(netsim: &str, laptop: &Laptop, words: &[String]) -> Result<String> {
        let mut command: Command = laptop.command("timeout");
        output(command.args(["30", netsim, "checked"]).args(words))
    }
}

/// `netsim checked …`: the words after it.
///
/// # Errors
/// When they make no sense, or what they say fails.
pub fn act(words: &[&str]) -> Result<String> {
    let said = |tally: Tally| Ok(tally.to_json().to_string());
    match words {
        ["streams", address] => receive_streams(address.parse()?).map(|()| String::new()),
        ["datagrams", address] => receive_datagrams(address.parse()?, Reader::Plain).map(|()| String::new()),
        ["trains", address] => receive_datagrams(address.parse()?, Reader::Gro).map(|()| String::new()),
        ["stream", target, pieces] => send_stream(target.parse()?, pieces.parse()?).map(|()| String::new()),
        ["train", target, size, trains] => said(send_trains(target.parse()?, size.parse()?, trains.parse()?)?),
        ["pace", target, size, rate, seconds] => {
            let time = Duration::from_secs(seconds.parse()?);
            let mut out = std::io::stdout();
            let tally = send_paced(target.parse()?, size.parse()?, rate.parse()?, time, |tally| {
                Ok(writeln!(out, "{}", tally.to_json())?)
            })?;
            said(tally)
        }
        _ => bail!("netsim checked streams|datagrams|trains ADDRESS, stream|train|pace TARGET …"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        fill(&mut bytes, number);
        bytes
    }

    #[test]
    fn a_datagram_is_known_by_every_byte() {
        let mut tally = Tally::default();
        for number in [0, 1, 2] {
            tally.take(&datagram(number, 600));
        }
        assert_eq!(tally, Tally { received: 3, next: 3, ..Tally::default() });
        for at in 0..600 {
            let mut bad = datagram(3, 600);
            bad[at] ^= 1;
            let mut tally = Tally::default();
            tally.take(&bad);
            assert_eq!(tally.wrong, 1, "byte {at}");
        }
        for cut in [0, HEADER - 1, HEADER, 599] {
            let mut tally = Tally::default();
            tally.take(&datagram(3, 600)[..cut]);
            assert_eq!(tally.wrong, 1, "cut to {cut}");
        }
    }

    #[test]
    fn what_is_missing_late_or_twice_is_seen() {
        let mut tally = Tally::default();
        for number in [0, 3, 2, 5] {
            tally.take(&datagram(number, 100));
        }
        assert_eq!((tally.lost(), tally.late), (2, 1));
        assert_eq!(Tally::of_json(tally.to_json().to_string().as_bytes()), Some(tally));
    }
}
