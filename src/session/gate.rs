//! The gate before the responder: which initiations are worth two Diffie-Hellmans.
//!
//! Checks stand in the order of their price, and each is met only by what passed those before it:
//!
//! 1. form: a comparison
//! 2. mac1: one hash. Strangers, who lack the network's secret, end here
//! 3. under load, mac2: a few hashes. Forged senders, such as a recorded initiation played back from invented
//!    addresses, end here and get a cookie smaller than what they sent
//! 4. the sender's own rate: a look into a bounded table
//!
//! What passes is still only an initiation: Noise, membership and the stamp come after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::wire::DropReason;
use crate::wire::relay::channel_behind;

use super::cookie::Cookies;
use super::handshake::{Local, check_initiation};
use super::pace::Pace;

/// Initiations a second, with a good mac1, above which we are under load. One costs 0.25 ms, and as much again for the
/// signatures of its record, so this is a tenth of the control thread; twice as much would delay members who are already
/// connected, half would ask a network of 200 for cookies whenever a node restarts.
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
        if self.sources.admit(Source::of(source), now) {
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

/// Who shares a budget: an IPv4 address, an IPv6 /64 (what one customer gets), or a link-local interface id, because
/// there all neighbours share one /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6(u64),
    LinkLocal(u64),
    /// What comes through a relay: others there are not to blame.
    Channel(u32),
}

impl Source {
    fn of(endpoint: SocketAddr) -> Self {
        if let Some(channel) = channel_behind(&endpoint) {
            return Self::Channel(channel);
        }
        match endpoint.ip().to_canonical() {
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
        let before = pace.done();
        if !pace.admit(SOURCE_INTERVAL, SOURCE_BURST, now) {
            return false;
        }
        if let Some(done) = before {
            self.forget(done, source);
        }
        if self.by_source.len() >= MAX_SOURCES
            && let Some(&(done, least)) = self.by_done.first()
        {
            self.forget(done, least);
        }
        self.by_source.insert(source, pace);
        self.by_done.extend(pace.done().map(|done| (done, source)));
        true
    }

    fn forget(&mut self, done: Instant, source: Source) {
        self.by_done.remove(&(done, source));
        self.by_source.remove(&source);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{Rng, SeedableRng};

    use super::super::cookie::{COOKIE_REPLY_LEN, CookieJar};
    use super::super::crypto::tests::DH_WORK;
    use super::super::handshake::tests::{initiate, member, start};
    use super::super::handshake::{Initiator, Responder};
    use super::*;
    use crate::wire::relay;

    const FLOOD: usize = 100_000;

    fn v4(bits: u32) -> SocketAddr {
        SocketAddrV4::new(Ipv4Addr::from_bits(bits), 4747).into()
    }

    /// Brings `gate` under load with initiations from many addresses.
    fn press(gate: &mut Gate, local: &Local, initiation: &[u8], now: Instant) {
        for n in 0..2 * LOAD_PER_SECOND {
            gate.admit(local, initiation, v4(0x0a00_0000 + n), now);
        }
        assert!(gate.is_under_load(now));
    }

    #[test]
    fn without_load_an_initiation_needs_no_cookie() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        assert_eq!(gate.admit(&b, &initiation, v4(1), now), Admission::Accept);
        assert_eq!((gate.sources(), gate.is_under_load(now)), (1, false));
    }

    #[test]
    fn under_load_a_member_passes_with_the_cookie_it_was_given_and_only_from_where_it_got_it() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let (initiator, initiation) = initiate(&a, &b, b"");
        press(&mut gate, &b, &initiation, now);
        let home = v4(0xc000_0201);
        let Admission::Cookie(reply) = gate.admit(&b, &initiation, home, now) else {
            panic!("under load every address has to be proved");
        };
        let mut jar = CookieJar::default();
        jar.open(&a, &b.public(), &initiator.last_mac1(), &reply, now).expect("a sound reply");
        let (mut initiator, again) =
            Initiator::new(&a, &b.public(), 8, b"again", jar.cookie(now), None, [5; 32]).expect("an initiation");
        assert!(matches!(gate.admit(&b, &again, v4(0xc000_0202), now), Admission::Cookie(_)));
        assert_eq!(gate.admit(&b, &again, home, now), Admission::Accept);
        let responder = Responder::read(&b, &again, [6; 32]).expect("a sound initiation");
        let (_, response) = responder.respond(9, b"", now).expect("a response");
        assert!(initiator.read_response(&response, now).is_ok());
    }

    #[test]
    fn load_ends_a_second_after_the_flood() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        press(&mut gate, &b, &initiation, now);
        assert!(gate.is_under_load(now + Duration::from_millis(990)));
        assert!(!gate.is_under_load(now + Duration::from_millis(1010)));
    }

    #[test]
    fn a_steady_rate_below_the_threshold_is_no_load() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        for n in 0..10 * LOAD_PER_SECOND {
            let then = now + Duration::from_secs(10) * n / (10 * LOAD_PER_SECOND);
            assert_eq!(gate.admit(&b, &initiation, v4(n), then), Admission::Accept);
        }
    }

    #[test]
    fn a_flood_without_the_networks_secret_does_no_diffie_hellman_and_leaves_no_trace() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let mut initiation = initiate(&a, &b, b"").1;
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let before = DH_WORK.get();
        for n in 0..FLOOD {
            rng.fill_bytes(&mut initiation[1200..]);
            let admission = gate.admit(&b, &initiation, v4(n as u32), now);
            assert_eq!(admission, Admission::Drop(DropReason::HandshakeMac));
        }
        assert_eq!((DH_WORK.get(), gate.sources(), gate.is_under_load(now)), (before, 0, false));
    }

    #[test]
    fn a_recorded_initiation_from_invented_addresses_meets_cookies_and_a_bounded_table() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let (before, mut accepted, mut bytes_out) = (DH_WORK.get(), 0, 0);
        for n in 0..FLOOD {
            let then = now + Duration::from_secs(1).mul_f64(n as f64 / FLOOD as f64);
            match gate.admit(&b, &initiation, v4(rng.next_u32()), then) {
                Admission::Accept => accepted += 1,
                Admission::Cookie(reply) => bytes_out += reply.len(),
                Admission::Drop(reason) => panic!("dropped: {reason:?}"),
            }
        }
        assert!(accepted <= LOAD_PER_SECOND + 1, "{accepted}");
        assert_eq!(bytes_out, (FLOOD - accepted as usize) * COOKIE_REPLY_LEN);
        assert!(gate.sources() <= accepted as usize);
        assert_eq!(DH_WORK.get(), before);
    }

    #[test]
    fn one_source_that_sends_too_much_is_slowed_and_nobody_else() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        for _ in 0..SOURCE_BURST {
            assert_eq!(gate.admit(&b, &initiation, v4(1), now), Admission::Accept);
        }
        assert_eq!(gate.admit(&b, &initiation, v4(1), now), Admission::Drop(DropReason::HandshakeRate));
        assert_eq!(gate.admit(&b, &initiation, v4(2), now), Admission::Accept);
        let later = now + SOURCE_INTERVAL;
        assert_eq!(gate.admit(&b, &initiation, v4(1), later), Admission::Accept);
        assert_eq!(gate.admit(&b, &initiation, v4(1), later), Admission::Drop(DropReason::HandshakeRate));
    }

    #[test]
    fn sources_are_forgotten_when_they_are_silent_and_never_more_than_the_bound() {
        let now = start();
        let mut sources = Sources::default();
        let busy = Source::V4(u32::MAX);
        for _ in 0..SOURCE_BURST {
            assert!(sources.admit(busy, now));
        }
        for n in 0..FLOOD as u32 {
            assert!(sources.admit(Source::V4(n), now));
            assert!(sources.by_source.len() <= MAX_SOURCES && sources.by_source.len() == sources.by_done.len());
        }
        assert!(!sources.admit(busy, now), "the busiest is the last to be forgotten");
        assert!(sources.admit(Source::V4(0), now + Duration::from_secs(3)));
        assert_eq!(sources.by_source.len(), 1);
    }

    #[test]
    fn a_whole_ipv6_network_is_one_source_but_link_local_neighbours_are_many() {
        let source = |text: &str| {
            let address = text.parse::<Ipv6Addr>().expect("an address");
            Source::of(SocketAddr::new(address.into(), 4747))
        };
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_ne!(source("fe80::1"), source("fe80::2"));
        assert_eq!(source("::ffff:192.0.2.1"), Source::V4(0xc000_0201));
    }

    #[test]
    fn one_noisy_pair_does_not_use_up_what_others_send_through_relays() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut gate = Gate::new([1; 32], now);
        let initiation = initiate(&a, &b, b"").1;
        for _ in 0..SOURCE_BURST {
            assert_eq!(gate.admit(&b, &initiation, relay::endpoint(1), now), Admission::Accept);
        }
        let refused = Admission::Drop(DropReason::HandshakeRate);
        assert_eq!(gate.admit(&b, &initiation, relay::endpoint(1), now), refused);
        assert_eq!(gate.admit(&b, &initiation, relay::endpoint(2), now), Admission::Accept);
    }

    proptest! {
        #[test]
        fn whatever_comes_no_more_goes_out_than_came_in(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1400),
            genuine: bool, loaded: bool, source: u32,
        ) {
            let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
            let mut gate = Gate::new([1; 32], now);
            let initiation = initiate(&a, &b, b"").1;
            if loaded {
                press(&mut gate, &b, &initiation, now);
            }
            if genuine {
                bytes = initiation;
            }
            match gate.admit(&b, &bytes, v4(source), now) {
                Admission::Cookie(reply) => prop_assert!(genuine && loaded && reply.len() <= bytes.len()),
                Admission::Accept => prop_assert!(genuine && !loaded),
                Admission::Drop(_) => prop_assert!(!genuine),
            }
        }
    }
}
