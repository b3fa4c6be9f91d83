//! How long a datagram a path carries, found by probes (DPLPMTUD, RFC 8899).
//!
//! A probe is a ping that is filled up to the length in question and may not be fragmented: its answer is the proof. Nothing is
//! believed of ICMP, which anybody may send and many firewalls drop. What every path carries is proved by the handshake, or by the
//! round of probes that chose the path: both are as long as that. From there the path is searched upwards, first for the two
//! lengths that are nearly always right, then for all at once; while it is used, the length in use is proved again and again,
//! for a path may change without anybody's being told (a *black hole*: small datagrams arrive, long ones vanish).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The UDP payload that every path carries, bytes: IPv6's minimum MTU of 1280 less its headers.
pub const BASE_PAYLOAD: usize = 1232;

/// IP packets that links carry, bytes: what every path does; tunnels (1400 to 1480: IPsec, WireGuard, GRE, VXLAN, 6in4); PPPoE;
/// Ethernet; jumbo frames. A path between two of them is used as the lower one, at the cost of 2 % at most, which more
/// probes would not be worth. Sixteen at most: they are told apart by four bits of a nonce.
const RUNGS: [usize; 10] = [1280, 1400, 1420, 1440, 1450, 1460, 1480, 1492, 1500, 9000];

/// What most paths carry, by its place in [`RUNGS`].
const ETHERNET: usize = 8;

/// Bits of a nonce that tell the rung.
const RUNG_BITS: u64 = 0xf;

/// How often a rung is tried before it counts as refused (RFC 8899, `MAX_PROBES`): of three probes and their answers at 2 % loss
/// one is heard but for once in 16,000.
const TRIES: u8 = 3;

/// Between two proofs of the length in use, while frames go over the path: a black hole is noticed in half of that on average.
/// One probe costs 300 bytes a second; twice as often would cost a voice call a tenth more.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);

/// Until more than what was found is looked for (RFC 8899, `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);

/// How long an answer may take whose round trip is not known yet.
const PATIENCE: Duration = Duration::from_millis(600);

/// Added to twice the round trip that is known: what a long datagram waits for at a slow line, and the other side's own work.
const SLACK: Duration = Duration::from_millis(100);

/// What is known of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// The highest rung that is proved.
    carries: usize,
    phase: Phase,
    /// Of the probes of this phase: its last bits are the rung.
    nonce: u64,
    /// When the first and the last of them went out, while answers are awaited, and how often that was done.
    sent: Option<(Instant, Instant)>,
    tries: u8,
    /// When the length in use was last proved, and when more was last looked for in vain.
    confirmed: Option<Instant>,
    searched: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody has looked yet.
    Fresh,
    /// More is looked for.
    Searching,
    /// It is known.
    Settled,
    /// The length in use is being proved again.
    Confirming,
    /// That failed: everything is looked for, the least too.
    Fallen,
    /// Not even the least arrives.
    Blocked,
}

/// Whose path it is just now.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// Whether frames go over it.
    pub busy: bool,
    /// When the peer was last heard. A peer that is silent altogether says nothing of lengths.
    pub heard: Option<Instant>,
    /// The round trip.
    pub rtt: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Pings to send: the nonce, and the length of the UDP payload.
    pub probes: Vec<(u64, usize)>,
    /// When to look again.
    pub next: Option<Instant>,
    /// What the path is taken to carry is another now.
    pub changed: bool,
    /// It carries no data, whatever small probes say.
    pub blocked: bool,
}

impl Default for PathMtu {
    fn default() -> Self {
        let (sent, confirmed, searched) = (None, None, None);
        Self { carries: 0, phase: Phase::Fresh, nonce: 0, sent, tries: 0, confirmed, searched }
    }
}

impl PathMtu {
    /// The UDP payload that is proved, bytes.
    pub fn payload(&self, endpoint: SocketAddr) -> usize {
        payload(self.carries, endpoint)
    }

    /// What it will probably turn out to be: TCP, which asks once only, is told that.
    pub fn expected_payload(&self, endpoint: SocketAddr) -> usize {
        match self.phase {
            // That fits Ethernet in either family, and most of what is narrower is not much so.
            Phase::Fresh | Phase::Searching => payload(self.carries.max(ETHERNET - 2), endpoint),
            Phase::Settled | Phase::Confirming | Phase::Fallen | Phase::Blocked => self.payload(endpoint),
        }
    }

    /// The longest IP packet that is proved, bytes; `None` before anybody has looked.
    pub fn packet(&self, endpoint: SocketAddr) -> Option<usize> {
        (self.phase != Phase::Fresh).then(|| self.payload(endpoint) + headers(endpoint))
    }

    /// Whether not even the least arrives.
    pub fn is_blocked(&self) -> bool {
        self.phase == Phase::Blocked
    }

    /// Looks at the path in use. `seed` is fresh randomness.
    pub fn tend(&mut self, endpoint: SocketAddr, seed: u64, used: Use, now: Instant) -> Step {
        let mut step = Step::default();
        let patience = used.rtt.map_or(PATIENCE, |rtt| 2 * rtt + SLACK);
        if let Some((began, sent)) = self.sent {
            if now < sent + patience {
                step.next = Some(sent + patience);
                return step;
            }
            if used.heard.is_none_or(|heard| heard < began) {
                // Whether it is there at all is for others to find out. Then we begin anew.
                let confirming = self.phase == Phase::Confirming;
                self.enter(if confirming { Phase::Settled } else { Phase::Fresh }, seed);
                self.confirmed = Some(now);
                return step;
            }
            if self.tries >= TRIES {
                match self.phase {
                    Phase::Confirming => {
                        step.changed = true;
                        self.carries = 0;
                        self.enter(Phase::Fallen, seed);
                    }
                    Phase::Fallen => {
                        step.blocked = true;
                        self.enter(Phase::Blocked, seed);
                    }
                    Phase::Fresh | Phase::Searching | Phase::Settled | Phase::Blocked => {
                        step.changed = true;
                        self.searched = Some(now);
                        self.enter(Phase::Settled, seed);
                    }
                }
            }
        } else {
            let over = |since: Option<Instant>, span| since.is_none_or(|since| now >= since + span);
            match self.phase {
                Phase::Fresh => self.enter(Phase::Searching, seed),
                Phase::Settled if !used.busy => {}
                Phase::Settled if self.carries < ETHERNET && over(self.searched, RAISE_AFTER) => {
                    self.enter(Phase::Searching, seed);
                }
                Phase::Settled if over(self.confirmed, CONFIRM_EVERY) => self.enter(Phase::Confirming, seed),
                Phase::Settled | Phase::Searching | Phase::Confirming | Phase::Fallen | Phase::Blocked => {}
            }
        }
        let wanted = |rung: &usize| match self.phase {
            Phase::Searching if self.tries == 0 => *rung > self.carries && *rung >= ETHERNET,
            // The least is asked along: its answer tells a narrow path from a peer that is silent.
            Phase::Searching => *rung > self.carries || *rung == 0 && self.carries == 0,
            Phase::Confirming => *rung == self.carries,
            Phase::Fallen => true,
            Phase::Fresh | Phase::Settled | Phase::Blocked => false,
        };
        let probe = |rung: usize| (self.nonce | rung as u64, payload(rung, endpoint));
        step.probes = (0..RUNGS.len()).filter(wanted).map(probe).collect();
        if !step.probes.is_empty() {
            self.tries += 1;
            self.sent = Some((self.sent.map_or(now, |(began, _)| began), now));
            step.next = Some(now + patience);
        }
        step
    }

    /// An answer came over this path. `None` if it is to none of its probes, else whether the path is taken to carry
    /// something else now.
    pub fn on_answer(&mut self, nonce: u64, now: Instant) -> Option<bool> {
        let rung = (nonce & RUNG_BITS) as usize;
        if self.phase == Phase::Fresh || nonce & !RUNG_BITS != self.nonce || rung >= RUNGS.len() {
            return None;
        }
        self.confirmed = Some(now);
        let before = (self.carries, self.phase);
        match self.phase {
            Phase::Fallen | Phase::Blocked => {
                // The others of the same volley are on their way.
                (self.carries, self.phase, self.tries) = (rung, Phase::Searching, 1);
            }
            Phase::Confirming if rung == self.carries => {
                (self.phase, self.sent) = (Phase::Settled, None);
                return Some(false);
            }
            Phase::Fresh | Phase::Searching | Phase::Settled | Phase::Confirming => {
                self.carries = self.carries.max(rung);
            }
        }
        if self.carries == RUNGS.len() - 1 {
            (self.phase, self.sent) = (Phase::Settled, None);
        }
        Some(before != (self.carries, self.phase))
    }

    /// A handshake, or a probe as long as one, has been answered: it carries the least, if that was in doubt.
    pub fn unblock(&mut self) {
        if self.is_blocked() {
            *self = Self::default();
        }
    }

    fn enter(&mut self, phase: Phase, seed: u64) {
        (self.phase, self.sent, self.tries) = (phase, None, 0);
        self.nonce = seed & !RUNG_BITS;
    }
}

/// What IP and UDP put before a datagram. A relayed one may go by either family on its way; IPv4 is taken for all, and a
/// way with IPv6 in it is found to carry the rung of 1480, which is as long as IPv6 on Ethernet.
fn headers(endpoint: SocketAddr) -> usize {
    let ipv6 = endpoint.is_ipv6() && !crate::wire::relay::is_discard(&endpoint);
    if ipv6 { 48 } else { 28 }
}

fn payload(rung: usize, endpoint: SocketAddr) -> usize {
    if rung == 0 { BASE_PAYLOAD } else { RUNGS[rung] - headers(endpoint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    /// A path that carries IP packets up to a length, and how it is looked at: as often as it asks, and each second.
    struct Path {
        mtu: PathMtu,
        endpoint: SocketAddr,
        carries: usize,
        now: Instant,
        busy: bool,
        silent: bool,
        probes: Vec<usize>,
        blocked: bool,
        seed: u64,
    }

    impl Path {
        fn new(carries: usize) -> Self {
            let endpoint = SocketAddr::from(([192, 0, 2, 1], 4747));
            let (mtu, now) = (PathMtu::default(), start());
            Self { mtu, endpoint, carries, now, busy: true, silent: false, probes: Vec::new(), blocked: false, seed: 1 }
        }

        fn packet(&self) -> usize {
            self.mtu.packet(self.endpoint).expect("somebody has looked")
        }

        fn run(&mut self, span: Duration) {
            let end = self.now + span;
            let rtt = 20 * MS;
            while self.now < end {
                let heard = (!self.silent).then_some(self.now);
                let used = Use { busy: self.busy, heard, rtt: Some(rtt) };
                self.seed += 0x1_0000;
                let step = self.mtu.tend(self.endpoint, self.seed, used, self.now);
                self.blocked |= step.blocked;
                let next = step.next.unwrap_or(self.now + Duration::from_secs(1));
                let sent = self.now;
                for (nonce, payload) in step.probes {
                    self.probes.push(payload + headers(self.endpoint));
                    if payload + headers(self.endpoint) <= self.carries && !self.silent {
                        self.now = sent + rtt;
                        assert!(self.mtu.on_answer(nonce, self.now).is_some());
                    }
                }
                self.now = next.max(self.now);
            }
        }
    }

    #[test]
    fn what_most_paths_carry_is_found_with_one_probe() {
        let mut path = Path::new(1500);
        path.run(100 * MS);
        assert_eq!((path.packet(), &path.probes[..]), (1500, &[1500, 9000][..]));
        path.run(Duration::from_secs(4));
        assert_eq!(path.probes, [1500, 9000, 9000, 9000], "the interface refuses all but the first of these");
        assert_eq!(path.mtu.expected_payload(path.endpoint), 1472);
    }

    #[test]
    fn every_rung_is_found_and_nothing_between_them_is_believed() {
        for carries in [1260, 1300, 1400, 1410, 1420, 1450, 1470, 1480, 1492, 1499, 1500, 4000, 9000, 9100] {
            let mut path = Path::new(carries);
            path.run(Duration::from_secs(2));
            let rung = RUNGS[1..].iter().rev().find(|rung| **rung <= carries);
            assert_eq!(path.packet(), rung.copied().unwrap_or(1260), "of {carries}");
            assert!(path.probes.len() <= 22, "{:?}", path.probes);
        }
    }

    #[test]
    fn tcp_is_told_what_is_to_be_expected_until_it_is_known() {
        let mut path = Path::new(1400);
        assert_eq!((path.mtu.payload(path.endpoint), path.mtu.expected_payload(path.endpoint)), (1232, 1452));
        path.run(Duration::from_secs(2));
        assert_eq!((path.mtu.payload(path.endpoint), path.mtu.expected_payload(path.endpoint)), (1372, 1372));
        let six = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 4747));
        assert_eq!(PathMtu::default().expected_payload(six), 1432);
    }

    #[test]
    fn a_black_hole_is_noticed_and_what_still_passes_is_found() {
        let mut path = Path::new(1500);
        path.run(Duration::from_secs(10));
        path.carries = 1400;
        path.run(CONFIRM_EVERY + Duration::from_secs(2));
        assert_eq!((path.packet(), path.blocked), (1400, false));
        path.carries = 1500;
        path.run(RAISE_AFTER + Duration::from_secs(10));
        assert_eq!(path.packet(), 1500, "and one day it is better again");
    }

    #[test]
    fn a_path_that_passes_small_datagrams_only_is_blocked_and_may_come_back() {
        let mut path = Path::new(1500);
        path.run(Duration::from_secs(10));
        path.carries = 1000;
        path.run(CONFIRM_EVERY + Duration::from_secs(2));
        assert!(path.blocked && path.mtu.is_blocked());
        let before = path.probes.len();
        path.run(Duration::from_secs(60));
        assert_eq!(path.probes.len(), before);
        path.mtu.unblock();
        assert_eq!(path.mtu, PathMtu::default());
    }

    #[test]
    fn silence_says_nothing_of_lengths() {
        let mut path = Path::new(1500);
        path.run(Duration::from_secs(10));
        path.silent = true;
        path.run(Duration::from_secs(60));
        assert_eq!((path.packet(), path.blocked), (1500, false));
    }

    #[test]
    fn an_idle_path_costs_nothing_and_a_busy_one_three_hundred_bytes_a_second() {
        let mut path = Path::new(1500);
        path.busy = false;
        path.run(Duration::from_secs(10));
        path.probes.clear();
        path.run(Duration::from_secs(100));
        assert_eq!(path.probes, [0; 0]);
        path.busy = true;
        path.run(Duration::from_secs(100));
        assert!((17..=20).contains(&path.probes.len()), "{:?}", path.probes);
    }

    #[test]
    fn answers_to_nothing_are_not_believed() {
        let mut mtu = PathMtu::default();
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 4747));
        assert_eq!(mtu.on_answer(9, start()), None);
        let used = Use { busy: true, heard: None, rtt: None };
        let step = mtu.tend(endpoint, u64::MAX, used, start());
        let (nonce, _) = step.probes[0];
        assert_eq!(mtu.on_answer(nonce ^ 1 << 20, start()), None);
        assert_eq!(mtu.on_answer(nonce | RUNG_BITS, start()), None, "there is no such rung");
        assert_eq!(mtu.payload(endpoint), BASE_PAYLOAD);
    }
}
