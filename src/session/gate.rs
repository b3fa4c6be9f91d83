//! The gate before the responder: which initiations are worth two Diffie-Hellmans.
//!
//! Checks stand in the order of their price, and each is met only by what passed those before it:
//!
//! 1. form: a comparison
//! 2. mac1: one hash. Strangers, who lack the network's secret, end here
//! 3. under load, mac2: three short hashes. Forged senders, such as a recorded initiation played back from invented
//!    addresses, end here and get a cookie smaller than what they sent
//! 4. the sender's own rate: a look into a bounded table
//!
//! What passes is still only an initiation: Noise, membership and the stamp come after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::wire::DropReason;

use super::cookie::Cookies;
use super::handshake::{Local, check_initiation};

/// Initiations a second, with a good mac1, above which we are under load. One costs about 0.5 ms with its certificates,
/// so this is a tenth of the control thread; twice as much would delay members who are already connected, half would
/// ask a network of 200 for cookies whenever a node restarts.
pub const LOAD_PER_SECOND: u32 = 200;

/// Initiations a second that one source may send for long: more than thirty machines behind one NAT that all start
/// again, and still only a sixtieth of the control thread.
pub const SOURCE_PER_SECOND: u32 = 32;

/// Initiations that one source may send at once: an office behind one address, after its power comes back.
pub const SOURCE_BURST: u32 = 64;

/// Sources remembered. Below load at most [`LOAD_PER_SECOND`] new ones come in a second, and one is forgotten after 2 s
/// of silence; above it a source has to prove its address. So ten times that is never reached but by thousands of real
/// addresses; it costs about 400 KiB then.
pub const MAX_SOURCES: usize = 4096;

/// What becomes of an initiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Worth [`Responder::read`](super::handshake::Responder::read).
    Accept,
    /// Send this back instead; counts as [`DropReason::HandshakeCookie`].
    Cookie(Vec<u8>),
    /// Forget it.
    Drop(DropReason),
}

/// Judges initiations before any work is done for them.
pub struct Gate {
    cookies: Cookies,
    load: Pace,
    sources: Sources,
}

impl Gate {
    /// A gate without a past. `seed` is 32 random bytes.
    pub fn new(seed: [u8; 32], now: Instant) -> Self {
        Self { cookies: Cookies::new(seed, now), load: Pace::default(), sources: Sources::default() }
    }

    /// Judges an initiation to us from `source`. Anything that is no initiation is dropped as malformed.
    pub fn admit(&mut self, local: &Local, datagram: &[u8], source: SocketAddr, now: Instant) -> Admission {
        if let Err(error) = check_initiation(local, datagram) {
            return Admission::Drop(error.drop_reason());
        }
        self.load.step(LOAD_INTERVAL, LOAD_CAP, now);
        if self.is_under_load(now) && !self.cookies.check(datagram, source, now) {
            return match self.cookies.reply(local, datagram, source, now) {
                Some(reply) => Admission::Cookie(reply),
                None => Admission::Drop(DropReason::HandshakeMalformed),
            };
        }
        if self.sources.admit(Source::of(source.ip()), now) {
            Admission::Accept
        } else {
            Admission::Drop(DropReason::HandshakeRate)
        }
    }

    /// Whether initiations have to prove their address now: more than a second's worth of work has come in, and it
    /// takes a second below the rate to get out again.
    pub fn is_under_load(&self, now: Instant) -> bool {
        self.load.ahead(now) > LOAD_THRESHOLD
    }

    /// How many sources are remembered, at most [`MAX_SOURCES`].
    pub fn sources(&self) -> usize {
        self.sources.by_source.len()
    }
}

const LOAD_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / LOAD_PER_SECOND as u64);
const LOAD_THRESHOLD: Duration = Duration::from_secs(1);
const LOAD_CAP: Duration = Duration::from_secs(2);
const SOURCE_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / SOURCE_PER_SECOND as u64);
/// How far ahead of its pace a source may be: the burst, less the one that is asking.
const SOURCE_AHEAD: Duration =
    Duration::from_nanos((SOURCE_BURST as u64 - 1) * (1_000_000_000 / SOURCE_PER_SECOND as u64));

/// A token bucket kept as one instant: when all that came so far would be done at the allowed rate (GCRA, ITU-T I.371).
#[derive(Debug, Clone, Copy, Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// How far what came is ahead of the allowed rate.
    fn ahead(&self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |done| done.saturating_duration_since(now))
    }

    /// One more came; never further ahead than `cap`.
    fn step(&mut self, interval: Duration, cap: Duration, now: Instant) {
        self.0 = Some(now + (self.ahead(now) + interval).min(cap));
    }
}

/// Who shares a budget: an IPv4 address, an IPv6 /64 (what one customer gets), or a link-local interface id, because
/// there all neighbours share one /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6(u64),
    LinkLocal(u64),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) if address.is_unicast_link_local() => Self::LinkLocal(address.to_bits() as u64),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// The pace of each source that is ahead of it. One that is not ahead is like one never seen, and forgotten; if there are
/// too many, the one that is least ahead goes, since that loses the least.
#[derive(Debug, Default)]
struct Sources {
    by_source: BTreeMap<Source, Pace>,
    by_done: BTreeSet<(Instant, Source)>,
}

impl Sources {
    fn admit(&mut self, source: Source, now: Instant) -> bool {
        while let Some(&(done, gone)) = self.by_done.first()
            && done <= now
        {
            self.forget(done, gone);
        }
        let mut pace = self.by_source.get(&source).copied().unwrap_or_default();
        if pace.ahead(now) > SOURCE_AHEAD {
            return false;
        }
        if let Some(done) = pace.0 {
            self.forget(done, source);
        }
        if self.by_source.len() >= MAX_SOURCES
            && let Some(&(done, least)) = self.by_done.first()
        {
            self.forget(done, least);
        }
        pace.step(SOURCE_INTERVAL, Duration::MAX, now);
        self.by_source.insert(source, pace);
        self.by_done.extend(pace.0.map(|done| (done, source)));
        true
    }

    fn forget(&mut self, done: Instant, source: Source) {
        self.by_done.remove(&(done, source));
        self.by_source.remove(&source);
    }
}
