//! How long a datagram a path carries, found by probes (DPLPMTUD, RFC 8899).
//!
//! A probe is a ping that is filled up to the length in question and may not be fragmented: its answer is the proof. Nothing is
//! believed of ICMP, which anybody may send and many firewalls drop. Nor is a loss: probes go in pairs, a shorter one beside the
//! one in question, and a length is refused when the shorter ones are answered and it is not. What every path carries is proved by
//! the handshake, or by the round of probes that chose the path: both are as long as that. From there the path is searched upwards;
//! while it is used, the length in use is proved again and again, for a path may change without anybody's being told (a
//! *black hole*: small datagrams arrive, long ones vanish).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::wire::relay::is_discard;
use crate::wire::socket;

/// The UDP payload that every path carries, bytes: IPv6's minimum MTU of 1280 less its headers.
pub const BASE_PAYLOAD: usize = 1232;

/// IP packets that links carry, bytes: what every path does; tunnels (1400 to 1480: IPsec, WireGuard, GRE, VXLAN, 6in4); PPPoE;
/// Ethernet; jumbo frames. A path between two of them is used as the lower one, at the cost of 2 % at most, which more
/// probes would not be worth.
const RUNGS: [usize; 10] = [1280, 1400, 1420, 1440, 1450, 1460, 1480, 1492, 1500, 9000];

/// What most paths carry, by its place in [`RUNGS`].
const ETHERNET: usize = 8;

/// Bits of a nonce that tell which probe was answered: the last of a pair's two, those before it of which pair.
const PROBE_BITS: u64 = 0x7f;
const LONG: u64 = 1;

/// How often the shorter probe of a pair is answered while the longer one is not, until the longer one counts as too long. Loss takes
/// both alike, so by chance alone one search in sixteen goes wrong on a line that loses nearly everything, and none on another.
const REFUSES: u8 = 4;

/// The same of a length that was proved before: cut frames are a burden for a line that is full already.
const REVOKES: u8 = 8;

/// The same of the least: a queue that is full has room for a small datagram now and then, not for that.
const BLOCKS: u8 = 16;

/// Pairs sent before a trial is given up that comes to no end: eight seconds. The peer is silent, which is for others to mend, or the line
/// full, which others would not help. At most 64, for the nonce.
const MAX_PAIRS: u8 = 40;

/// Between two proofs of the length in use, while frames go over the path: a black hole is noticed in half of that on average. Two probes
/// cost 550 bytes a second; twice as often would be felt beside a voice call.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);

/// A path must have been in use for so long before it is searched: at the beginning, and where one broke, several are tried within a
/// second, and each datagram over one that is about to be left again raises the question anew.
const CALM: Duration = Duration::from_secs(1);

/// Until more than what was found is looked for (RFC 8899, `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);

/// A path on which not even the least arrived is looked at again after this, if it is still in use for want of another.
const BLOCKED_FOR: Duration = Duration::from_secs(60);

/// Between two pairs, if half as much again as the round trip is not longer: no burst, and a refusal is known within a second. An answer
/// to the shorter one that comes later says that a queue is full somewhere, which takes the longer ones first: it does not count. A
/// longer one is proved whenever its answer comes.
const PACE: Duration = Duration::from_millis(200);

/// What is known of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// The highest rung that is proved, and the lowest that is refused.
    carries: usize,
    refused: usize,
    phase: Phase,
    trial: Option<Trial>,
    /// When it was first looked at.
    since: Option<Instant>,
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
    /// That failed; or nothing was answered; or the least is in use: that is being proved again.
    Doubting,
    /// Not even the least arrives.
    Blocked,
}

/// A length on trial: pairs of probes, one of that length and one that is shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    rung: usize,
    nonce: u64,
    pairs: u8,
    /// When the last pair was sent, if any was.
    sent: Option<Instant>,
    /// How often the shorter one was answered.
    answers: u8,
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
        let (trial, since, confirmed, searched) = (None, None, None, None);
        Self { carries: 0, refused: RUNGS.len(), phase: Phase::Fresh, trial, since, confirmed, searched }
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
            // The rung of 1480 fits Ethernet in either family, and most of what is narrower is not much so.
            Phase::Fresh | Phase::Searching => {
                payload(self.carries.max((self.refused - 1).min(ETHERNET - 2)), endpoint)
            }
            Phase::Settled | Phase::Confirming | Phase::Doubting | Phase::Blocked => self.payload(endpoint),
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

    /// Looks at the path in use. `seed` is fresh randomness; `busy` says whether frames go over it, `rtt` its round trip.
    pub fn tend(&mut self, endpoint: SocketAddr, seed: u64, busy: bool, rtt: Option<Duration>, now: Instant) -> Step {
        let mut step = Step::default();
        let pace = rtt.map_or(PACE, |rtt| (3 * rtt / 2).max(PACE));
        let calm = *self.since.get_or_insert(now) + CALM;
        if self.phase == Phase::Fresh && now < calm {
            step.next = Some(calm);
            return step;
        }
        match &self.trial {
            Some(trial) if trial.answers >= self.patience() => self.refuse(&mut step, seed, now),
            Some(Trial { sent: Some(sent), .. }) if now < *sent + pace => {
                step.next = Some(*sent + pace);
                return step;
            }
            // Perhaps not even the shorter one arrives any more.
            Some(trial) if self.phase == Phase::Confirming && trial.pairs >= REVOKES && trial.answers == 0 => {
                (self.phase, self.trial) = (Phase::Doubting, Some(Trial::new(0, seed)));
            }
            Some(trial) if trial.pairs >= MAX_PAIRS => {
                // Who is gone and comes back is searched anew. Of a line that is full too much was asked already.
                if self.phase == Phase::Searching {
                    self.searched = Some(now);
                }
                (self.phase, self.trial, self.confirmed, step.changed) = (Phase::Settled, None, Some(now), true);
                return step;
            }
            Some(_) => {}
            None => self.begin(endpoint, seed, busy, now),
        }
        if let Some(trial) = &mut self.trial {
            // The longer one first: where a queue is nearly full, the other would take the room that it finds.
            let shorter = if trial.rung == 0 { 0 } else { BASE_PAYLOAD };
            let nonce = trial.nonce | u64::from(trial.pairs) << 1;
            step.probes = vec![(nonce | LONG, payload(trial.rung, endpoint)), (nonce, shorter)];
            (trial.pairs, trial.sent) = (trial.pairs + 1, Some(now));
            step.next = Some(now + pace);
        }
        step
    }

    /// Whether it is time for something.
    fn begin(&mut self, endpoint: SocketAddr, seed: u64, busy: bool, now: Instant) {
        // A relay's limit takes long datagrams first and delays none, which looks the same.
        let relayed = is_discard(&endpoint) && socket::split(endpoint).0 == 0;
        let over = |since: Option<Instant>, span| since.is_none_or(|since| now >= since + span);
        let rung = match self.phase {
            Phase::Fresh => self.search(),
            Phase::Settled if busy && self.carries < ETHERNET && over(self.searched, RAISE_AFTER) => self.search(),
            Phase::Settled if busy && !relayed && over(self.confirmed, CONFIRM_EVERY) => {
                self.phase = if self.carries == 0 { Phase::Doubting } else { Phase::Confirming };
                Some(self.carries)
            }
            Phase::Blocked if busy && over(self.confirmed, BLOCKED_FOR) => {
                self.phase = Phase::Doubting;
                Some(0)
            }
            Phase::Settled | Phase::Searching | Phase::Confirming | Phase::Doubting | Phase::Blocked => None,
        };
        self.trial = rung.map(|rung| Trial::new(rung, seed));
    }

    fn search(&mut self) -> Option<usize> {
        (self.phase, self.refused) = (Phase::Searching, RUNGS.len());
        self.next_rung()
    }

    /// What is tried next: what is nearly always right, then the middle of what is left.
    fn next_rung(&self) -> Option<usize> {
        match (self.carries, self.refused) {
            (carries, refused) if carries < ETHERNET && refused > ETHERNET => Some(ETHERNET),
            (carries, refused) if refused > carries + 1 => Some(usize::midpoint(carries, refused)),
            _ => None,
        }
    }

    /// How many answers to the shorter probes alone the trial takes.
    fn patience(&self) -> u8 {
        match self.phase {
            Phase::Confirming => REVOKES,
            Phase::Doubting => BLOCKS,
            Phase::Fresh | Phase::Searching | Phase::Settled | Phase::Blocked => REFUSES,
        }
    }

    /// The trial has failed.
    fn refuse(&mut self, step: &mut Step, seed: u64, now: Instant) {
        let Some(failed) = self.trial.take() else { return };
        step.changed = true;
        match self.phase {
            Phase::Confirming => {
                (self.phase, self.carries) = (Phase::Doubting, 0);
                self.trial = Some(Trial::new(0, seed));
            }
            Phase::Doubting => {
                step.blocked = true;
                (self.phase, self.carries, self.confirmed) = (Phase::Blocked, 0, Some(now));
            }
            Phase::Fresh | Phase::Searching | Phase::Settled | Phase::Blocked => {
                self.refused = failed.rung;
                self.go_on(seed, now);
            }
        }
    }

    /// The next trial of a search, or its end.
    fn go_on(&mut self, seed: u64, now: Instant) {
        self.trial = self.next_rung().map(|rung| Trial::new(rung, seed));
        if self.trial.is_none() {
            (self.phase, self.searched) = (Phase::Settled, Some(now));
            self.confirmed.get_or_insert(now);
        }
    }

    /// An answer came over this path. `None` if it is to none of its probes, else whether the trial is over: then it wants to be
    /// tended, and what the path is taken to carry may be another now.
    pub fn on_answer(&mut self, nonce: u64, now: Instant) -> Option<bool> {
        let trial = self.trial.as_mut().filter(|trial| trial.nonce == nonce & !PROBE_BITS)?;
        if nonce & LONG == 0 {
            let is_last = (nonce & PROBE_BITS) >> 1 == u64::from(trial.pairs.saturating_sub(1));
            trial.answers = trial.answers.saturating_add(u8::from(is_last));
            return Some(false);
        }
        let (rung, seed) = (trial.rung, trial.nonce.wrapping_add(PROBE_BITS + 1));
        (self.confirmed, self.trial) = (Some(now), None);
        match self.phase {
            Phase::Confirming => self.phase = Phase::Settled,
            // It was only silent for a while.
            Phase::Doubting if self.carries > 0 => self.phase = Phase::Settled,
            Phase::Doubting => self.trial = self.search().map(|rung| Trial::new(rung, seed)),
            Phase::Fresh | Phase::Searching | Phase::Settled | Phase::Blocked => {
                self.carries = rung;
                self.go_on(seed, now);
            }
        }
        Some(true)
    }

    /// A handshake, or a probe as long as one, has been answered: it carries the least, if that was in doubt.
    pub fn unblock(&mut self) {
        if self.is_blocked() {
            *self = Self::default();
        }
    }
}

impl Trial {
    fn new(rung: usize, seed: u64) -> Self {
        Self { rung, nonce: seed & !PROBE_BITS, pairs: 0, sent: None, answers: 0 }
    }
}

/// What IP and UDP put before a datagram. A relayed one may go by either family on its way; IPv4 is taken for all, and a
/// way with IPv6 in it is found to carry the rung of 1480, which is as long as IPv6 on Ethernet.
fn headers(endpoint: SocketAddr) -> usize {
    let ipv6 = endpoint.is_ipv6() && !is_discard(&endpoint);
    if ipv6 { 48 } else { 28 }
}

fn payload(rung: usize, endpoint: SocketAddr) -> usize {
    if rung == 0 { BASE_PAYLOAD } else { RUNGS[rung] - headers(endpoint) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
    fn start() -> Instant {
        Instant::now()
    }

    /// A path that carries IP packets up to a length, and is looked at as often as it wants and each second.
    struct Path {
        mtu: PathMtu,
        endpoint: SocketAddr,
        carries: usize,
        delay: Duration,
        silent: bool,
        busy: bool,
        /// One in so many probes passes.
        passes: u64,
        now: Instant,
        count: u64,
        /// Answers on their way.
        late: BTreeMap<(Instant, u64), u64>,
        probes: Vec<usize>,
        blocked: bool,
        /// For how long it was taken to carry everything.
        whole: Duration,
    }

    impl Path {
        fn new(carries: usize) -> Self {
            let endpoint = SocketAddr::from(([192, 0, 2, 1], 4747));
            let (now, late) = (start(), BTreeMap::new());
            // It has been in use long enough.
            let mtu = PathMtu { since: Some(now - CALM), ..PathMtu::default() };
            let (delay, silent, busy, passes, count, whole) = (20 * MS, false, true, 1, 0, Duration::ZERO);
            Self {
                mtu,
                endpoint,
                carries,
                delay,
                silent,
                busy,
                passes,
                now,
                count,
                late,
                probes: Vec::new(),
                blocked: false,
                whole,
            }
        }

        fn packet(&self) -> usize {
            self.mtu.packet(self.endpoint).expect("somebody has looked")
        }

        fn run(&mut self, span: Duration) {
            let (end, mut look) = (self.now + span, self.now);
            while self.now < end {
                let mut over = false;
                while let Some(due) = self.late.first_entry().filter(|due| due.key().0 <= self.now) {
                    over |= self.mtu.on_answer(due.remove(), self.now) == Some(true);
                }
                if over || self.now >= look {
                    self.count += 1;
                    let step = self.mtu.tend(self.endpoint, self.count << 20, self.busy, Some(20 * MS), self.now);
                    self.blocked |= step.blocked;
                    look = step.next.unwrap_or(self.now + SECOND);
                    for (nonce, payload) in step.probes {
                        let packet = payload + headers(self.endpoint);
                        self.probes.push(packet);
                        self.count += 1;
                        let by_chance = self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                        if packet <= self.carries && !self.silent && by_chance.is_multiple_of(self.passes) {
                            self.late.insert((self.now + self.delay, self.count), nonce);
                        }
                    }
                }
                self.whole += if self.packet() == self.carries { 5 * MS } else { Duration::ZERO };
                self.now += 5 * MS;
            }
        }
    }

    #[test]
    fn what_most_paths_carry_is_found_with_one_pair_of_probes() {
        let mut path = Path::new(1500);
        path.run(100 * MS);
        assert_eq!((path.packet(), &path.probes[..4]), (1500, &[1500, 1260, 9000, 1260][..]));
        path.run(4 * SECOND);
        assert_eq!(path.probes.len(), 2 + 2 * usize::from(REFUSES), "the interface refuses jumbo frames itself");
        assert_eq!((path.mtu.expected_payload(path.endpoint), path.mtu.phase), (1472, Phase::Settled));
    }

    #[test]
    fn every_rung_is_found_and_nothing_between_them_is_believed() {
        for carries in [1260, 1300, 1400, 1410, 1420, 1450, 1470, 1480, 1492, 1499, 1500, 4000, 9000, 9100] {
            let mut path = Path::new(carries);
            path.run(4500 * MS);
            let rung = RUNGS[1..].iter().rev().find(|rung| **rung <= carries);
            assert_eq!(path.packet(), rung.copied().unwrap_or(1260), "of {carries}");
            assert!(path.probes.len() <= 34 && path.mtu.phase == Phase::Settled, "{:?}", path.probes);
        }
    }

    #[test]
    fn tcp_is_told_what_is_to_be_expected_until_it_is_known() {
        let mut path = Path::new(1400);
        assert_eq!((path.mtu.payload(path.endpoint), path.mtu.expected_payload(path.endpoint)), (1232, 1452));
        path.run(4 * SECOND);
        assert_eq!((path.mtu.payload(path.endpoint), path.mtu.expected_payload(path.endpoint)), (1372, 1372));
        let six = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 4747));
        assert_eq!(PathMtu::default().expected_payload(six), 1432);
    }

    #[test]
    fn a_black_hole_is_noticed_and_what_still_passes_is_found() {
        let mut path = Path::new(1500);
        path.run(10 * SECOND);
        path.carries = 1400;
        path.run(CONFIRM_EVERY + 6 * SECOND);
        assert_eq!((path.packet(), path.blocked), (1400, false));
        path.carries = 1500;
        path.run(RAISE_AFTER + 10 * SECOND);
        assert_eq!(path.packet(), 1500, "and one day it is better again");
    }

    #[test]
    fn a_path_that_passes_small_datagrams_only_is_blocked_and_may_come_back() {
        let mut path = Path::new(1500);
        path.run(10 * SECOND);
        path.carries = 1000;
        path.run(CONFIRM_EVERY + 7 * SECOND);
        assert!(path.blocked && path.mtu.is_blocked());
        let before = path.probes.len();
        path.run(BLOCKED_FOR / 2);
        assert_eq!(path.probes.len(), before);
        path.carries = 1500;
        path.run(BLOCKED_FOR);
        assert_eq!((path.packet(), path.mtu.is_blocked()), (1500, false));
        path.mtu.phase = Phase::Blocked;
        path.mtu.unblock();
        assert_eq!(path.mtu, PathMtu::default());
    }

    #[test]
    fn a_line_whose_buffer_is_full_or_that_loses_three_of_four_is_not_narrow() {
        for (delay, passes) in [(3 * SECOND, 1), (20 * MS, 4), (20 * MS, 2)] {
            let mut path = Path::new(1500);
            path.run(10 * SECOND);
            // The round trip that was measured is that of the empty line.
            (path.delay, path.passes, path.whole) = (delay, passes, Duration::ZERO);
            path.run(600 * SECOND);
            assert!(!path.blocked && path.whole >= 570 * SECOND, "{delay:?}, 1 in {passes}: {:?}", path.whole);
        }
    }

    #[test]
    fn silence_says_nothing_of_lengths() {
        let mut path = Path::new(1500);
        path.run(10 * SECOND);
        path.silent = true;
        path.run(60 * SECOND);
        assert_eq!((path.packet(), path.blocked), (1500, false));
    }

    #[test]
    fn an_idle_path_costs_nothing_and_a_busy_one_two_probes_in_five_seconds() {
        let mut path = Path::new(1500);
        path.busy = false;
        path.run(10 * SECOND);
        path.probes.clear();
        path.run(100 * SECOND);
        assert_eq!(path.probes, [0; 0]);
        path.busy = true;
        path.run(100 * SECOND);
        assert!((32..=40).contains(&path.probes.len()), "{:?}", path.probes);
    }

    #[test]
    fn answers_to_nothing_are_not_believed() {
        let mut mtu = PathMtu::default();
        let (endpoint, now) = (SocketAddr::from(([192, 0, 2, 1], 4747)), start());
        assert_eq!(mtu.on_answer(9, now), None);
        assert_eq!(mtu.tend(endpoint, u64::MAX, true, None, now).next, Some(now + CALM));
        let step = mtu.tend(endpoint, u64::MAX, true, None, now + CALM);
        let (nonce, _) = step.probes[1];
        assert_eq!(mtu.on_answer(nonce ^ 1 << 20, start()), None);
        assert_eq!(mtu.on_answer(nonce, start()), Some(false), "that proves nothing new");
        assert_eq!(mtu.payload(endpoint), BASE_PAYLOAD);
    }
}
