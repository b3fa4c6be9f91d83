//! The packet filter, as forwarding applies it: at the receiver, to what a member sends us, after it is certain who that is.
//!
//! The node has sorted out who may send what: of each member it keeps the [`Clause`]s that concern it. Here a packet is held against them
//! in order. What answers something that this machine has begun passes whatever they say, so the other half notes what goes out
//! (`Flows`); a bounded table of keyed hashes, shared by all lanes without a lock. Address resolution and ICMP errors always pass:
//! without them no network works. Where no rule denies anything there is no table, and a frame costs nothing more.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::wire::checksum::{TCP, UDP};
use crate::wire::ethernet::FrameHead;

use super::packet::{Content, ICMP, ICMPV6, Packet};

/// How long a flow may be silent: RFC 5382 (TCP, REQ-5), RFC 4787 (UDP, REQ-5), RFC 5508 (ICMP queries, REQ-1).
const TCP_SILENCE: Duration = Duration::from_secs(7440);
const UDP_SILENCE: Duration = Duration::from_secs(300);
const ICMP_SILENCE: Duration = Duration::from_secs(60);

/// Flows remembered, in sets of four: 16384, 128 KiB. A desktop has some hundred; a machine with more that also denies
/// by rule forgets the one silent longest, and an answer to that is judged by the rules.
const SETS: usize = 4096;
const WAYS: usize = 4;

/// Words of 32 bits that a flow is made of: protocol, ports, MAC (2), addresses (8).
const WORDS: usize = 12;

/// One rule, as far as it concerns one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Whether what fits is delivered.
    pub allow: bool,
    /// The IP protocol in IPv4 and in IPv6; `None`: whatever it is.
    pub protocol: Option<[u8; 2]>,
    /// Of TCP and UDP, the ports at the receiver; none: all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The number under which a refusal is counted.
    pub rule: usize,
}

/// What all members and lanes share.
#[derive(Debug)]
pub struct Filter {
    flows: Arc<Flows>,
    /// What each rule has refused; the last is the default.
    refused: Vec<AtomicU64>,
}

impl Filter {
    /// One of `rules` rules, the default included, that has seen nothing yet; `keys` are random.
    pub fn new(rules: usize, keys: FilterKeys, now: Instant) -> Arc<Self> {
        Self::of(Arc::new(Flows::new(keys, now)), rules)
    }

    /// As new for `rules` other rules, but it knows the flows that this one knows.
    pub fn with_rules(&self, rules: usize) -> Arc<Self> {
        Self::of(Arc::clone(&self.flows), rules)
    }

    fn of(flows: Arc<Flows>, rules: usize) -> Arc<Self> {
        Arc::new(Self { flows, refused: (0..rules).map(|_| AtomicU64::new(0)).collect() })
    }

    /// What rule number `rule` has refused.
    pub fn refused(&self, rule: usize) -> u64 {
        self.refused.get(rule).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Notes a frame that goes out, so that what answers it may come in.
    pub(super) fn note(&self, frame: &[u8], head: &FrameHead, now: Instant) {
        if let Content::Packet(packet) = Content::of(frame, head)
            && let Some(flow) = View::of(packet).and_then(|view| view.flow(&head.destination.0, Way::Out))
        {
            self.flows.note(&flow, now);
        }
    }

    /// Whether a frame may come in from the member with these `clauses`.
    pub(super) fn admits(&self, clauses: &[Clause], frame: &[u8], head: &FrameHead, now: Instant) -> bool {
        let refusal = match Content::of(frame, head) {
            // Of a fragment the first is judged.
            Content::Arp | Content::Fragment => return true,
            Content::Broken => clauses.iter().rfind(|clause| !clause.allow),
            Content::Other => decide(clauses, None),
            Content::Packet(packet) => {
                let Some(view) = View::of(packet) else { return true };
                let port = view.packet.ports().map(|(_, port)| port);
                let refusal = decide(clauses, Some((view.packet.protocol, port)));
                if refusal.is_some()
                    && let Some(flow) = view.flow(&head.source.0, Way::In)
                    && self.flows.is_known(&flow, view.silence(), now)
                {
                    return true;
                }
                refusal
            }
        };
        let Some(clause) = refusal else { return true };
        if let Some(count) = self.refused.get(clause.rule) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// The first clause that fits, if it refuses; the last one of a list fits everything.
fn decide(clauses: &[Clause], packet: Option<(u8, Option<u16>)>) -> Option<&Clause> {
    clauses.iter().find(|clause| fits(clause, packet)).filter(|clause| !clause.allow)
}

/// Whether `clause` is about a packet of this protocol and, with TCP and UDP, to this port; `None` is about no IP packet.
pub fn fits(clause: &Clause, packet: Option<(u8, Option<u16>)>) -> bool {
    let Some(protocols) = clause.protocol else { return true };
    let Some((protocol, port)) = packet else { return false };
    let to_port = || port.is_some_and(|port| clause.ports.iter().any(|ports| ports.contains(&port)));
    protocols.contains(&protocol) && (clause.ports.is_empty() || to_port())
}

/// A packet, as the filter sees it.
struct View<'a> {
    packet: Packet<'a>,
    /// Source and destination port; of an ICMP echo its identifier, twice. `None`: it belongs to no flow.
    ends: Option<(u16, u16)>,
    /// It asks to begin something: a TCP SYN, or an echo request. Answers never do.
    begins: bool,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

impl<'a> View<'a> {
    /// `None` for what always passes: ICMP errors, multicast listeners (RFC 2710, 3810), neighbour discovery.
    fn of(packet: Packet<'a>) -> Option<Self> {
        let identifier = || packet.body.get(4..6).map(|id| u16::from_be_bytes([id[0], id[1]])).map(|id| (id, id));
        let (ends, begins) = match (packet.protocol, packet.icmp()) {
            (ICMP, Some(3 | 11 | 12)) | (ICMPV6, Some(1..=4 | 130..=137 | 143)) => return None,
            (ICMP, Some(8)) | (ICMPV6, Some(128)) => (identifier(), true),
            (ICMP, Some(0)) | (ICMPV6, Some(129)) => (identifier(), false),
            // SYN without ACK begins; so does nothing else that a lawful host sends.
            (TCP, _) => (packet.ports(), packet.body[13] & 0x12 == 0x02),
            _ => (packet.ports(), false),
        };
        Some(Self { packet, ends, begins })
    }

    /// The flow with the member at `mac`: the same for both ways. `None` for what belongs to none, or begins one from there.
    fn flow(&self, mac: &[u8; 6], way: Way) -> Option<[u32; WORDS]> {
        let ends = self.ends.filter(|_| way == Way::Out || !self.begins)?;
        let Packet { protocol, source, destination, .. } = self.packet;
        let (ours, theirs, ends) = match way {
            Way::Out => (source, destination, ends),
            Way::In => (destination, source, (ends.1, ends.0)),
        };
        let mut words = [0; WORDS];
        words[0] = u32::from(protocol);
        words[1] = u32::from(ends.0) << 16 | u32::from(ends.1);
        words[2] = u32::from_be_bytes([0, 0, mac[0], mac[1]]);
        words[3] = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]);
        for (word, bytes) in words[4..].iter_mut().zip(ours.chunks_exact(4).chain(theirs.chunks_exact(4))) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(words)
    }

    fn silence(&self) -> Duration {
        match self.packet.protocol {
            TCP => TCP_SILENCE,
            UDP => UDP_SILENCE,
            _ => ICMP_SILENCE,
        }
    }
}

/// Random numbers by which nobody outside knows where a flow is remembered.
pub type FilterKeys = [[u64; WORDS + 1]; 2];

/// Flows that this machine has sent in: for each a tag of 32 bits, and the second in which something last passed.
#[derive(Debug)]
struct Flows {
    keys: FilterKeys,
    start: Instant,
    entries: Box<[[AtomicU64; WAYS]]>,
}

impl Flows {
    fn new(keys: FilterKeys, start: Instant) -> Self {
        Self { keys, start, entries: (0..SETS).map(|_| Default::default()).collect() }
    }

    fn note(&self, flow: &[u32; WORDS], now: Instant) {
        let (set, tag) = self.place(flow);
        let entry = self.entry(tag, now);
        let mut oldest = &set[0];
        let mut least = u32::MAX;
        for way in set {
            let held = way.load(Ordering::Relaxed);
            if held >> 32 == tag {
                if held != entry {
                    way.store(entry, Ordering::Relaxed);
                }
                return;
            }
            if (held as u32) < least {
                (oldest, least) = (way, held as u32);
            }
        }
        oldest.store(entry, Ordering::Relaxed);
    }

    /// Whether the flow is known and not silent for too long; if so, it is alive again.
    fn is_known(&self, flow: &[u32; WORDS], silence: Duration, now: Instant) -> bool {
        let (set, tag) = self.place(flow);
        let entry = self.entry(tag, now);
        let known = |way: &&AtomicU64| {
            let held = way.load(Ordering::Relaxed);
            held >> 32 == tag && u64::from((entry as u32).saturating_sub(held as u32)) <= silence.as_secs()
        };
        let Some(way) = set.iter().find(known) else { return false };
        if way.load(Ordering::Relaxed) != entry {
            way.store(entry, Ordering::Relaxed);
        }
        true
    }

    /// Seconds begin at 1: an empty entry is older than any.
    fn entry(&self, tag: u64, now: Instant) -> u64 {
        tag << 32 | (now.saturating_duration_since(self.start).as_secs() + 1).min(u32::MAX.into())
    }

    /// Multilinear hashing (Lemire and Kaser, 2014): whoever does not know the keys hits a set and its tag by chance only.
    fn place(&self, flow: &[u32; WORDS]) -> (&[AtomicU64; WAYS], u64) {
        let hash = |keys: &[u64; WORDS + 1]| {
            let terms = keys.iter().zip(flow).map(|(key, word)| key.wrapping_mul(u64::from(*word)));
            terms.fold(keys[WORDS], u64::wrapping_add) >> 32
        };
        let set = hash(&self.keys[0]) as usize % SETS;
        (&self.entries[set], hash(&self.keys[1]).max(1))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::super::testing::start;
    use super::*;
    use crate::wire::ethernet::ETHERTYPE_ARP;

    const ADA: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const BOB: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn keys() -> FilterKeys {
        std::array::from_fn(|i| std::array::from_fn(|j| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul((i * 64 + j + 1) as u64)))
    }

    fn clause(allow: bool, protocol: Option<u8>, ports: &[RangeInclusive<u16>], rule: usize) -> Clause {
        Clause { allow, protocol: protocol.map(|number| [number, number]), ports: ports.to_vec(), rule }
    }

    /// Everything is refused.
    fn closed() -> Vec<Clause> {
        vec![clause(false, None, &[], 0)]
    }

    struct Bench {
        filter: Arc<Filter>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { filter: Filter::new(4, keys(), start()), now: start() }
        }

        fn admits(&self, clauses: &[Clause], frame: &[u8]) -> bool {
            self.filter.admits(clauses, frame, &FrameHead::read(frame).expect("a frame"), self.now)
        }

        fn note(&self, frame: &[u8]) {
            self.filter.note(frame, &FrameHead::read(frame).expect("a frame"), self.now);
        }
    }

    /// TCP between ada's and bob's ports; `flags` of SYN (2) and ACK (16).
    fn tcp(from: u8, from_port: u16, to_port: u16, flags: u8) -> Vec<u8> {
        let mut frame = vec![];
        let (source, destination) = if from == 1 { (ADA, BOB) } else { (BOB, ADA) };
        let to = 3 - from;
        PacketBuilder::ethernet2(source, destination)
            .ipv4([10, 0, 0, from], [10, 0, 0, to], 9)
            .tcp(from_port, to_port, 1, 1)
            .write(&mut frame, b"x")
            .expect("it fits");
        frame[14 + 20 + 13] = flags;
        frame
    }

    fn udp6(from: u8, from_port: u16, to_port: u16) -> Vec<u8> {
        let mut frame = vec![];
        let (source, destination) = if from == 1 { (ADA, BOB) } else { (BOB, ADA) };
        let address = |last: u8| std::array::from_fn(|at| if at == 15 { last } else { 0xfd });
        PacketBuilder::ethernet2(source, destination)
            .ipv6(address(from), address(3 - from), 9)
            .udp(from_port, to_port)
            .write(&mut frame, b"x")
            .expect("it fits");
        frame
    }

    fn echo(from: u8, kind: u8, id: u16) -> Vec<u8> {
        let mut frame = vec![];
        let (source, destination) = if from == 1 { (ADA, BOB) } else { (BOB, ADA) };
        let bytes = id.to_be_bytes();
        PacketBuilder::ethernet2(source, destination)
            .ipv4([10, 0, 0, from], [10, 0, 0, 3 - from], 9)
            .icmpv4_raw(kind, 0, [bytes[0], bytes[1], 0, 1])
            .write(&mut frame, b"x")
            .expect("it fits");
        frame
    }

    const SYN: u8 = 2;
    const ACK: u8 = 16;

    #[test]
    fn the_first_clause_that_fits_decides() {
        let bench = Bench::new();
        let clauses =
            [clause(true, Some(TCP), &[80..=90], 0), clause(false, Some(TCP), &[], 1), clause(true, None, &[], 2)];
        assert!(bench.admits(&clauses, &tcp(2, 5000, 80, SYN)) && bench.admits(&clauses, &tcp(2, 5000, 90, SYN)));
        assert!(!bench.admits(&clauses, &tcp(2, 80, 22, SYN)));
        assert!(bench.admits(&clauses, &udp6(2, 5000, 22)));
        assert_eq!([0, 1, 2].map(|rule| bench.filter.refused(rule)), [0, 1, 0]);
    }

    #[test]
    fn what_answers_us_passes_and_nothing_else_of_that_member_does() {
        let bench = Bench::new();
        assert!(!bench.admits(&closed(), &tcp(2, 80, 5000, SYN | ACK)));
        bench.note(&tcp(1, 5000, 80, SYN));
        assert!(
            bench.admits(&closed(), &tcp(2, 80, 5000, SYN | ACK)) && bench.admits(&closed(), &tcp(2, 80, 5000, ACK))
        );
        for other in
            [tcp(2, 80, 5000, SYN), tcp(2, 81, 5000, ACK), tcp(2, 80, 5001, ACK), udp6(2, 80, 5000), echo(2, 8, 1)]
        {
            assert!(!bench.admits(&closed(), &other));
        }
        // The same addresses behind another member's MAC.
        let mut spoofed = tcp(2, 80, 5000, ACK);
        spoofed[11] = 3;
        assert!(!bench.admits(&closed(), &spoofed));
        bench.note(&udp6(1, 5000, 53));
        assert!(bench.admits(&closed(), &udp6(2, 53, 5000)) && !bench.admits(&closed(), &udp6(2, 53, 5001)));
        bench.note(&echo(1, 8, 77));
        assert!(bench.admits(&closed(), &echo(2, 0, 77)) && !bench.admits(&closed(), &echo(2, 0, 78)));
        assert!(!bench.admits(&closed(), &echo(2, 8, 77)), "they may not ping us because we ping them");
    }

    #[test]
    fn a_flow_that_was_silent_for_too_long_is_over() {
        let mut bench = Bench::new();
        bench.note(&udp6(1, 5000, 53));
        bench.note(&tcp(1, 5000, 80, SYN));
        // What comes in keeps it alive as well.
        for _ in 0..3 {
            bench.now += UDP_SILENCE;
            assert!(bench.admits(&closed(), &udp6(2, 53, 5000)));
        }
        bench.now += UDP_SILENCE + Duration::from_secs(1);
        assert!(!bench.admits(&closed(), &udp6(2, 53, 5000)));
        assert!(bench.admits(&closed(), &tcp(2, 80, 5000, ACK)));
        bench.now += TCP_SILENCE + Duration::from_secs(1);
        assert!(!bench.admits(&closed(), &tcp(2, 80, 5000, ACK)));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_fresh() {
        let mut bench = Bench::new();
        for port in 0..40_000 {
            bench.note(&tcp(1, port, 80, SYN));
        }
        bench.now += Duration::from_secs(1);
        for port in 40_000..44_000 {
            bench.note(&tcp(1, port, 80, SYN));
        }
        // One in 250 shares its set with more than four others of them.
        let known = (40_000..44_000).filter(|port| bench.admits(&closed(), &tcp(2, 80, *port, ACK))).count();
        assert!(known >= 3900, "{known} of 4000");
        assert_eq!(bench.filter.flows.entries.len() * WAYS, 16384);
    }

    #[test]
    fn without_arp_and_errors_there_is_no_network_so_they_pass() {
        let bench = Bench::new();
        let mut arp = tcp(2, 1, 1, 0);
        arp[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        assert!(bench.admits(&closed(), &arp));
        assert!(bench.admits(&closed(), &echo(2, 3, 0)), "destination unreachable");
        let mut lldp = arp;
        lldp[12..14].copy_from_slice(&0x88cc_u16.to_be_bytes());
        assert!(!bench.admits(&closed(), &lldp));
        let tcp_only = [clause(false, Some(TCP), &[], 0), clause(true, None, &[], 1)];
        assert!(bench.admits(&tcp_only, &lldp));
    }

    #[test]
    fn a_packet_that_hides_its_ports_is_refused_where_anything_is() {
        let bench = Bench::new();
        let clauses = [clause(false, Some(TCP), &[22..=22], 0), clause(true, None, &[], 1)];
        let whole = tcp(2, 5000, 80, SYN);
        assert!(bench.admits(&clauses, &whole));
        assert!(!bench.admits(&clauses, &whole[..14 + 20 + 12]), "half a header");
        let fragment = |offset: u16| {
            let mut frame = whole.clone();
            frame[20..22].copy_from_slice(&offset.to_be_bytes());
            frame
        };
        assert!(!bench.admits(&clauses, &fragment(1)), "over the flags of the first");
        assert!(bench.admits(&clauses, &fragment(3)));
        let mut options = udp6(2, 5000, 22);
        options[14 + 6] = 60;
        options.truncate(14 + 40 + 4);
        assert!(!bench.admits(&clauses, &options), "a header that never ends");
        // Behind a header that does end, the port is found.
        let mut hidden = udp6(2, 5000, 22);
        hidden[14 + 6] = 60;
        hidden.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        let udp = [clause(false, Some(UDP), &[22..=22], 0), clause(true, None, &[], 1)];
        assert!(!bench.admits(&udp, &hidden));
    }

    proptest! {
        #[test]
        fn no_frame_panics(ethertype in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100]), bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            let mut frame = [BOB, ADA].concat();
            frame.extend(ethertype.to_be_bytes());
            frame.extend(bytes);
            if let Some(head) = FrameHead::read(&frame) {
                let bench = Bench::new();
                bench.filter.note(&frame, &head, bench.now);
                bench.filter.admits(&closed(), &frame, &head, bench.now);
            }
        }
    }
}
