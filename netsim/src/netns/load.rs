//! A load of UDP datagrams, and the highest rate that arrives: our own generator, because iperf3 sends its small packets in
//! bursts and counts none of them as late.
//!
//! The receiver counts; the sender asks it after each burst, in the same socket, so the question queues behind the load.
//! A datagram: kind (1), run (4), number (8), zeros. An answer: kind (1), run (4), received (8), reordered (8).
//! It only ever runs inside the lab.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use socket2::Socket;

use super::is_inside;

/// Where the receiver listens.
pub const PORT: u16 = 5300;

/// Lost for each sent that a rate may have and still count.
const ALLOWED_LOSS: f64 = 0.01;

/// Steps of the search after the unpaced one: the bracket, often twenty times wide, is down to 5 % after six halvings of
/// its logarithm.
const STEPS: u32 = 6;

/// What is late by more than this is not made up: no burst is longer than what 1 ms has room for.
const LONGEST_BURST: Duration = Duration::from_millis(1);

/// Between two looks at the clock, so that a burst is usually a tenth of the longest.
const PACE: Duration = Duration::from_micros(100);

/// A receive buffer of 4 MiB where the kernel allows it: the tunnel is measured, not how soon the receiver wakes up.
const RECEIVE_BUFFER: usize = 4 << 20;

const DATA: u8 = 0;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
/// Kind, run and number.
const HEADER: usize = 13;

/// What came of one burst.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// Datagrams sent a second.
    pub sent: f64,
    /// Datagrams received a second of sending.
    pub received: f64,
    /// Lost for each sent.
    pub loss: f64,
    /// How many came after one with a higher number.
    pub reordered: u64,
}

impl Burst {
    /// Whether less than 1 % was lost.
    pub fn is_good(&self) -> bool {
        self.loss < ALLOWED_LOSS
    }

    /// For a program to read.
    pub fn to_json(self) -> Value {
        json!({ "sent": self.sent, "received": self.received, "loss": self.loss, "reordered": self.reordered })
    }

    /// As [`Burst::to_json`] has it.
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |field: &str| value[field].as_f64();
        Some(Self {
            sent: number("sent")?,
            received: number("received")?,
            loss: number("loss")?,
            reordered: value["reordered"].as_u64()?,
        })
    }
}

/// Counts what comes to `address`, until killed.
///
/// # Errors
/// When the socket fails, or we are not in the lab.
pub fn receive(address: SocketAddr) -> Result<()> {
    ensure!(is_inside(), "a load is only for the lab");
    let socket = UdpSocket::bind(address).with_context(|| format!("{address}"))?;
    let socket = Socket::from(socket);
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let socket = UdpSocket::from(socket);
    let mut bytes = [0; 2048];
    let (mut run, mut received, mut reordered, mut highest) = (0, 0_u64, 0_u64, 0);
    loop {
        let (length, from) = socket.recv_from(&mut bytes)?;
        let Some((kind, number_of_run, number)) = parse(&bytes[..length]) else { continue };
        if number_of_run != run {
            (run, received, reordered, highest) = (number_of_run, 0, 0, 0);
        }
        match kind {
            DATA => {
                received += 1;
                reordered += u64::from(number < highest);
                highest = highest.max(number);
            }
            QUESTION => {
                let mut answer = [0; HEADER + 8];
                header(&mut answer, ANSWER, run, received);
                answer[HEADER..].copy_from_slice(&reordered.to_be_bytes());
                // An answer that finds no room is asked for again.
                let _ = socket.send_to(&answer, from);
            }
            _ => {}
        }
    }
}

/// One end that sends to a receiver.
#[derive(Debug)]
pub struct Sender {
    socket: UdpSocket,
    run: u32,
    size: usize,
}

impl Sender {
    /// Of datagrams that are IPv4 packets of `packet` bytes.
    ///
    /// # Errors
    /// When the socket fails, or we are not in the lab.
    pub fn new(target: SocketAddr, packet: usize) -> Result<Self> {
        ensure!(is_inside(), "a load is only for the lab");
        // IPv4 and UDP headers.
        let size = packet.checked_sub(28).filter(|size| *size >= HEADER).context("too small a packet")?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        // Our process's number: a receiver that outlives us does not take the next sender's first run for ours.
        Ok(Self { socket, run: std::process::id() << 8, size })
    }

    /// Sends for `time`, `rate` datagrams a second or as many as it can.
    ///
    /// # Errors
    /// When the receiver does not answer afterwards.
    pub fn burst(&mut self, rate: Option<f64>, time: Duration) -> Result<Burst> {
        self.run += 1;
        let mut bytes = vec![0; self.size];
        let (start, mut sent, mut due) = (Instant::now(), 0, 0.0);
        let mut last = start;
        while start.elapsed() < time {
            let now = Instant::now();
            let share = match rate {
                Some(rate) => rate * now.duration_since(last).min(LONGEST_BURST).as_secs_f64(),
                None => 32.0,
            };
            last = now;
            due += share;
            while due >= 1.0 {
                header(&mut bytes, DATA, self.run, sent);
                // What the kernel refuses at once is lost as well as what it loses later.
                let _ = self.socket.send(&bytes);
                sent += 1;
                due -= 1.0;
            }
            if rate.is_some() {
                thread::sleep(PACE);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let (received, reordered) = self.ask()?;
        ensure!(sent > 0, "nothing was sent at {rate:?} a second");
        Ok(Burst {
            sent: sent as f64 / seconds,
            received: received as f64 / seconds,
            loss: sent.saturating_sub(received) as f64 / sent as f64,
            reordered,
        })
    }

    fn ask(&self) -> Result<(u64, u64)> {
        // What a queue on the way holds comes first; without this the last of a burst could be counted as lost.
        thread::sleep(Duration::from_millis(50));
        let mut question = [0; HEADER];
        header(&mut question, QUESTION, self.run, 0);
        let mut answer = [0; HEADER + 8];
        for _ in 0..50 {
            let _ = self.socket.send(&question);
            while let Ok(length) = self.socket.recv(&mut answer) {
                let about = parse(&answer[..length]).filter(|(kind, run, _)| (*kind, *run) == (ANSWER, self.run));
                if let Some((_, _, received)) = about.filter(|_| length == answer.len()) {
                    let reordered = answer[HEADER..].try_into().expect("eight bytes");
                    return Ok((received, u64::from_be_bytes(reordered)));
                }
            }
        }
        bail!("the receiver does not answer")
    }

    /// The highest rate at which less than 1 % is lost: first unpaced, then by halving the logarithm of what is between
    /// the best and the worst known. Each step takes `step`. If nothing was good, the burst with the least loss.
    ///
    /// # Errors
    /// As [`Sender::burst`].
    pub fn search(&mut self, step: Duration) -> Result<Burst> {
        // Learns the neighbours and wakes everything up.
        self.burst(Some(1000.0), Duration::from_millis(50))?;
        let mut best = self.burst(None, step)?;
        if best.is_good() {
            return Ok(best);
        }
        let (mut low, mut high) = (None, best.sent);
        // What gets through an overload is a good first guess.
        let mut guess = best.received.max(1000.0);
        for _ in 0..STEPS {
            let burst = self.burst(Some(guess), step)?;
            let better = if burst.is_good() {
                !best.is_good() || burst.received > best.received
            } else {
                burst.loss < best.loss
            };
            if burst.is_good() {
                low = Some(low.map_or(burst.sent, |low: f64| low.max(burst.sent)));
            } else {
                high = high.min(guess);
            }
            if better {
                best = burst;
            }
            guess = low.map_or(high / 2.0, |low| (low * high).sqrt());
        }
        Ok(best)
    }
}

fn header(bytes: &mut [u8], kind: u8, run: u32, number: u64) {
    bytes[0] = kind;
    bytes[1..5].copy_from_slice(&run.to_be_bytes());
    bytes[5..HEADER].copy_from_slice(&number.to_be_bytes());
}

fn parse(bytes: &[u8]) -> Option<(u8, u32, u64)> {
    let run = bytes.get(1..5)?.try_into().expect("four bytes");
    let number = bytes.get(5..HEADER)?.try_into().expect("eight bytes");
    Some((bytes[0], u32::from_be_bytes(run), u64::from_be_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_was_written() {
        let mut bytes = [0; HEADER];
        header(&mut bytes, QUESTION, 7, 1 << 40);
        assert_eq!(parse(&bytes), Some((QUESTION, 7, 1 << 40)));
        assert_eq!(parse(&bytes[1..]), None);
    }

    #[test]
    fn a_burst_survives_its_json() {
        let burst = Burst { sent: 2.0, received: 1.0, loss: 0.5, reordered: 3 };
        let again = Burst::from_json(&burst.to_json()).expect("the same");
        assert_eq!(again.to_json(), burst.to_json());
    }
}
