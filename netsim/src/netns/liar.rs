//! A member that lies: a pure node with a key and a certificate of its own behind a real socket, so that real binaries have
//! sessions with it. What it is told on its standard input it seals straight into them, past all that an honest node checks of itself.
//!
//! `LIE COUNT RATE [WHAT]`: the lie COUNT times to everybody, RATE a second; it answers with the number of datagrams.
//!
//! | lie | what everybody gets |
//! |---|---|
//! | `frames HEX` | this frame |
//! | `macs HEX` | this frame, each time from another source MAC |
//! | `altered HEX` | this frame, and one bit of the datagram is not what was sealed |
//! | `again` | what was sealed last |
//! | `greetings` | its first handshake |
//! | `records` | a new record of its own, elsewhere each time |
//! | `steal MAC` | a record of its own with another's MAC |
//! | `claim MAC` | a record of its own with the IPv6 address that belongs to another's MAC |
//! | `forge MAC` | that member's record, newer than its own |
//! | `members` | a member that it has made up with its invite |
//! | `stations` | a claim of 192 foreign stations, others each time |
//! | `station MAC` | a claim of this one |
//!
//! `sessions 1 1` answers with how many it has.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]
#![expect(clippy::print_stdout, reason = "it answers on its standard output")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use meshd::config::{DEFAULT_MTU, DEFAULT_PORT, NetworkConfig, NodeConfig, Relaying};
use meshd::dht::Record;
use meshd::dht::record::{Ipv4Claim, MAX_RECORD, RECORD_LIFETIME};
use meshd::identity::{Chain, DOMAIN_RECORD, Invite, Mac, NetworkId, Signature, SigningKey, UnixSeconds, canonical};
use meshd::identity::{automatic_ipv4, ula_address};
use meshd::switch::{FibPeer, seal_frame, seal_message};
use meshd::wire::message::MAX_CLAIMED;
use meshd::wire::socket::split;
use meshd::wire::{Claim, DatagramKind, Message};

use super::Laptop;
use crate::host::{Output, Process, Scratch};

/// Datagrams kept to be sent again.
const MAX_KEPT: usize = 60;

/// Handshakes kept to be sent again: the first with each of three.
const MAX_GREETINGS: usize = 3;

/// Lies between two looks at the socket.
const BURST: u64 = 50;

/// How long it waits for a datagram while it has nothing to tell, and while it has.
const IDLE: Duration = Duration::from_millis(20);
const BUSY: Duration = Duration::from_millis(1);

/// Above every sequence of its node's own records.
const LATER: u64 = 1 << 50;

/// The liar as a test has it. Killed when dropped.
#[derive(Debug)]
pub struct Liar {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Its MAC.
    pub mac: Mac,
}

impl Liar {
    /// Starts it in `laptop`; `program` is netsim.
    ///
    /// # Errors
    /// When it cannot be started, or does not like the invite.
    pub fn start(program: &Path, laptop: &Laptop, invite: &str) -> Result<Self> {
        let mut command = laptop.command(program);
        command.args(["liar", invite, &laptop.underlay.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().context("piped")?;
        let answers = BufReader::new(child.stdout.take().context("piped")?);
        let mut liar = Self { child, orders, answers, mac: Mac([0; 6]) };
        liar.mac = liar.answer()?.parse()?;
        Ok(liar)
    }

    /// Has it tell a lie; returns how many datagrams it made of it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn tell(&mut self, lie: &str) -> Result<u64> {
        writeln!(self.orders, "{lie}")?;
        let answer = self.answer()?;
        answer.parse().with_context(|| format!("{lie}: {answer}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the liar ended");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a liar at `underlay` until its standard input ends.
///
/// # Errors
/// When the socket fails, or the invite is of no use.
pub fn run(invite: &str, underlay: Ipv4Addr) -> Result<()> {
    let (sender, orders) = sync_channel(1);
    thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
    });
    let mut member = Member::join(invite.parse()?, SocketAddr::from((underlay, DEFAULT_PORT)))?;
    println!("{}", member.config.mac());
    let mut job: Option<Job> = None;
    loop {
        member.live(if job.is_some() { BUSY } else { IDLE })?;
        if job.is_none() {
            job = match orders.try_recv() {
                Ok(line) => Some(Job::read(&line)?),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Ok(()),
            };
        }
        if let Some(told) = job.as_mut().map(|job| job.go_on(&mut member)) {
            match told {
                Ok(None) => continue,
                Ok(Some(datagrams)) => println!("{datagrams}"),
                Err(error) => println!("{error:#}"),
            }
            job = None;
        }
    }
}

/// A lie that is being told.
struct Job {
    lie: Lie,
    count: u64,
    rate: u64,
    begun: Instant,
    told: u64,
    datagrams: u64,
}

enum Lie {
    Frames(Vec<u8>),
    Macs(Vec<u8>),
    Altered(Vec<u8>),
    Again,
    Greetings,
    Records,
    Steal(Mac),
    Claim(Mac),
    Forge(Mac),
    Members,
    Stations,
    Station(Mac),
    /// None: a question.
    Sessions,
}

impl Job {
    fn read(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [lie, count, rate, what @ ..] = words.as_slice() else { bail!("LIE COUNT RATE, not {line}") };
        let lie = match (*lie, what) {
            ("frames", [frame]) => Lie::Frames(unhex(frame)?),
            ("macs", [frame]) => Lie::Macs(unhex(frame)?),
            ("altered", [frame]) => Lie::Altered(unhex(frame)?),
            ("again", []) => Lie::Again,
            ("greetings", []) => Lie::Greetings,
            ("records", []) => Lie::Records,
            ("steal", [mac]) => Lie::Steal(mac.parse()?),
            ("claim", [mac]) => Lie::Claim(mac.parse()?),
            ("forge", [mac]) => Lie::Forge(mac.parse()?),
            ("members", []) => Lie::Members,
            ("stations", []) => Lie::Stations,
            ("station", [mac]) => Lie::Station(mac.parse()?),
            ("sessions", []) => Lie::Sessions,
            _ => bail!("no lie: {line}"),
        };
        Ok(Self { lie, count: count.parse()?, rate: rate.parse()?, begun: Instant::now(), told: 0, datagrams: 0 })
    }

    /// Tells what is due; how many datagrams it was in all, if that was the end.
    fn go_on(&mut self, member: &mut Member) -> Result<Option<u64>> {
        let due = 1 + (self.begun.elapsed().as_secs_f64() * self.rate as f64) as u64;
        let end = due.min(self.count).min(self.told + BURST);
        while self.told < end {
            self.datagrams += member.tell(&self.lie, self.told, Instant::now())?;
            self.told += 1;
        }
        Ok((self.told >= self.count).then_some(self.datagrams))
    }
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "no hex: {text}");
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}

/// The node, its socket, and what it has kept to make lies of.
struct Member {
    socket: UdpSocket,
    endpoint: SocketAddr,
    process: Process,
    scratch: Scratch,
    config: NodeConfig,
    invite: Invite,
    network: NetworkId,
    unix: UnixSeconds,
    /// Others' records.
    records: Vec<Vec<u8>>,
    greetings: Vec<(SocketAddr, Vec<u8>)>,
    /// What was sealed last.
    sealed: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl Member {
    fn join(invite: Invite, endpoint: SocketAddr) -> Result<Self> {
        let (now, unix) = (Instant::now(), SystemTime::UNIX_EPOCH.elapsed()?.as_secs());
        let key = SigningKey::from_seed(&[66; 32]);
        let network = NetworkConfig {
            name: invite.network.clone(),
            root: invite.chain.root,
            secret: invite.secret.clone(),
            prefix: invite.prefix,
        };
        let config = NodeConfig {
            chain: invite.redeem(key.peer_id(), "liar".parse()?, unix)?,
            key,
            mac: None,
            ipv4: None,
            mtu: DEFAULT_MTU,
            boots: 1,
            relaying: Relaying { serve: false, ..Relaying::default() },
            tls: false,
            hardware_aes: false,
            post_quantum: false,
            contacts: invite.contacts.clone(),
            known_records: Vec::new(),
            known_statements: Vec::new(),
            known_secrets: Vec::new(),
            network,
        };
        let mut output = Output::default();
        let mut process = Process::start(config.clone(), [67; 32], now, unix, &mut output);
        process.endpoints(vec![endpoint], now, &mut output);
        let mut member = Self {
            socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, endpoint.port()))?,
            endpoint,
            process,
            scratch: Scratch::default(),
            network: config.network.id(),
            config,
            invite,
            unix,
            records: Vec::new(),
            greetings: Vec::new(),
            sealed: VecDeque::new(),
        };
        member.carry_out(output);
        Ok(member)
    }

    /// Lives as an honest node does: takes what comes within `wait`, and does what is due.
    fn live(&mut self, wait: Duration) -> Result<()> {
        let mut bytes = [0; 2048];
        self.socket.set_read_timeout(Some(wait))?;
        loop {
            let mut output = Output::default();
            match self.socket.recv_from(&mut bytes) {
                Ok((len, from)) => {
                    self.process.datagram(&bytes[..len], from, &mut self.scratch, Instant::now(), &mut output);
                    self.carry_out(output);
                    self.socket.set_read_timeout(Some(BUSY))?;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                // Somebody is not there any more.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => (),
                Err(error) => return Err(error.into()),
            }
        }
        let now = Instant::now();
        if self.process.deadline().is_some_and(|deadline| deadline.at <= now) {
            let mut output = Output::default();
            self.process.timeout(now, &mut output);
            self.carry_out(output);
        }
        Ok(())
    }

    /// It has one socket of IPv4, no TAP and no directory.
    fn carry_out(&mut self, output: Output) {
        if let Some(records) = output.persist {
            self.records = records;
        }
        for sent in output.sends {
            if sent.hop_limit.is_some() || split(sent.endpoint).0 != 0 {
                continue;
            }
            if DatagramKind::of(&sent.bytes) == Some(DatagramKind::Initiation) && self.greetings.len() < MAX_GREETINGS {
                self.greetings.push((sent.endpoint, sent.bytes.clone()));
            }
            // What does not go is a loss: an endpoint of IPv6, a full queue.
            let _ = self.socket.send_to(&sent.bytes, sent.endpoint);
        }
    }

    /// Tells a lie to everybody, the `number`-th of a row; returns how many datagrams that was.
    fn tell(&mut self, lie: &Lie, number: u64, now: Instant) -> Result<u64> {
        let datagrams = match lie {
            Lie::Frames(frame) => self.seal(|peer| seal_frame(peer, frame, now)),
            Lie::Macs(frame) => {
                let [.., a, b, c, d] = number.to_be_bytes();
                let mut frame = frame.clone();
                frame.get_mut(6..12).context("a frame")?.copy_from_slice(&[2, 66, a, b, c, d]);
                self.seal(|peer| seal_frame(peer, &frame, now))
            }
            Lie::Altered(frame) => {
                let mut sealed = self.seal(|peer| seal_frame(peer, frame, now));
                sealed.iter_mut().filter_map(|(_, bytes)| bytes.last_mut()).for_each(|last| *last ^= 1);
                sealed
            }
            Lie::Again => self.sealed.iter().cycle().skip(number as usize % MAX_KEPT).take(1).cloned().collect(),
            Lie::Greetings => self.greetings.clone(),
            Lie::Records => {
                let port = (number % 60_000) as u16 + 1;
                let elsewhere = SocketAddr::new(self.endpoint.ip(), port);
                let (key, chain) = (&self.config.key, self.config.chain.clone());
                let record = self.record(key, chain, LATER + number, |record| record.endpoints.push(elsewhere));
                self.say(record, now)
            }
            Lie::Steal(mac) => {
                let (key, chain) = (&self.config.key, self.config.chain.clone());
                let ipv6 = ula_address(&self.network, mac);
                self.say(
                    self.record(key, chain, 2 * LATER + number, |record| (record.mac, record.ipv6) = (*mac, ipv6)),
                    now,
                )
            }
            Lie::Claim(mac) => {
                let (key, chain) = (&self.config.key, self.config.chain.clone());
                let ipv6 = ula_address(&self.network, mac);
                self.say(self.record(key, chain, 2 * LATER + number, |record| record.ipv6 = ipv6), now)
            }
            Lie::Forge(mac) => self.say(self.forged(mac, number)?, now),
            Lie::Members => {
                let mut seed = [68; 32];
                seed[..8].copy_from_slice(&number.to_be_bytes());
                let key = SigningKey::from_seed(&seed);
                let chain = self.invite.redeem(key.peer_id(), format!("puppet-{number}").parse()?, self.unix)?;
                let record = self.record(&key, chain, 1, |_| ());
                self.say(record, now)
            }
            Lie::Stations => {
                let count = MAX_CLAIMED as u64;
                let station = |n: u64| {
                    let [.., a, b, c, d] = n.to_be_bytes();
                    Mac([2, 67, a, b, c, d])
                };
                let stations: Vec<_> = (number * count..(number + 1) * count).map(station).collect();
                self.claim(stations, now)
            }
            Lie::Station(mac) => self.claim(vec![*mac], now),
            Lie::Sessions => return Ok(self.seal(|_| Some(vec![Vec::new()])).len() as u64),
        };
        for (endpoint, bytes) in &datagrams {
            let _ = self.socket.send_to(bytes, endpoint);
        }
        let count = datagrams.len() as u64;
        if !matches!(lie, Lie::Again | Lie::Greetings | Lie::Altered(_)) {
            self.sealed.extend(datagrams);
            self.sealed.drain(..self.sealed.len().saturating_sub(MAX_KEPT));
        }
        Ok(count)
    }

    /// Seals something for everybody with whom there is a session without a relay.
    fn seal(&self, seal: impl Fn(&FibPeer) -> Option<Vec<Vec<u8>>>) -> Vec<(SocketAddr, Vec<u8>)> {
        let peers = self.process.fib().peers.iter().filter(|peer| peer.transport.is_some() && peer.via.is_none());
        peers.flat_map(|peer| seal(peer).into_iter().flatten().map(|bytes| (peer.endpoint, bytes))).collect()
    }

    fn say(&self, record: Vec<u8>, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let message = Message::Record(record);
        self.seal(|peer| Some(vec![seal_message(peer.transport.as_ref()?, &message, now)?]))
    }

    /// A claim of these stations, and of no other between them.
    fn claim(&self, stations: Vec<Mac>, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let (first, last) = (stations[0], stations[stations.len() - 1]);
        // What its own node says of what is behind it comes before.
        let message = Message::Stations(Claim { sequence: u64::MAX, first, last, stations });
        self.seal(|peer| Some(vec![seal_message(peer.transport.as_ref()?, &message, now)?]))
    }

    /// A record, signed by `key` whatever it says.
    fn record(&self, key: &SigningKey, chain: Chain, sequence: u64, change: impl FnOnce(&mut Record)) -> Vec<u8> {
        let (peer, network) = (key.peer_id(), &self.network);
        let mac = Mac::automatic(network, &peer);
        let mut record = Record {
            chain,
            noise: key.noise_secret().public(),
            mac,
            ipv4: Ipv4Claim { address: automatic_ipv4(network, &peer, &self.config.network.prefix, 0), fixed: false },
            ipv6: ula_address(network, &mac),
            endpoints: vec![self.endpoint],
            homes: Vec::new(),
            tls: false,
            sequence,
            expires: self.unix + RECORD_LIFETIME,
        };
        change(&mut record);
        let signature = key.sign(DOMAIN_RECORD, network, &canonical::encode(&record));
        canonical::encode(&(record, signature))
    }

    /// The record of the owner of `mac` with a higher sequence, under the signature of the true one.
    fn forged(&self, mac: &Mac, number: u64) -> Result<Vec<u8>> {
        let signed = self.records.iter().map(|bytes| canonical::decode::<(Record, Signature)>(bytes, MAX_RECORD));
        let mut found =
            signed.filter_map(Result::ok).find(|(record, _)| record.mac == *mac).context("no such record")?;
        found.0.sequence += LATER + number;
        Ok(canonical::encode(&found))
    }
}
