//! Nobody can make members send more to an address than was sent to them in its name: whatever is played back, cut, changed or
//! made up, from whatever source, bytes out are at most bytes in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use meshd::wire::DatagramKind;
use netsim::seed::Chance;
use netsim::{HostId, NatKind, Seed, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Nobody in any world lives here.
const SPOOFED: u8 = 11;

/// Longer than any answer, retransmission or probe is waited for.
const AFTERMATH: Duration = Duration::from_secs(60);

/// What was said in the name of each invented source, and what came back to it, bytes.
struct Books {
    sources: u32,
    sealed_too: bool,
    said: BTreeMap<SocketAddr, (String, usize)>,
    answered: BTreeMap<SocketAddr, usize>,
}

impl Default for Books {
    fn default() -> Self {
        Self { sources: 0, sealed_too: true, said: BTreeMap::new(), answered: BTreeMap::new() }
    }
}

impl Books {
    /// A datagram in the name of somebody new.
    fn say(&mut self, world: &mut World, victim: HostId, what: &str, bytes: &[u8]) {
        self.sources += 1;
        let [_, a, b, c] = self.sources.to_be_bytes();
        let source = SocketAddr::from((Ipv4Addr::new(SPOOFED, a, b, c), 4747));
        self.said.insert(source, (what.to_owned(), bytes.len()));
        world.inject(victim, source, bytes);
        self.count(world);
    }

    /// Reads what the cables saw since the last time.
    fn count(&mut self, world: &mut World) {
        for datagram in world.captured.iter_mut().flat_map(std::mem::take) {
            let spoofed = matches!(datagram.endpoint.ip(), IpAddr::V4(address) if address.octets()[0] == SPOOFED);
            if spoofed && (self.sealed_too || !is_sealed(&datagram.bytes)) {
                *self.answered.entry(datagram.endpoint).or_default() += datagram.bytes.len();
            }
        }
    }

    /// Who got more than was said in its name; and how many were answered at all.
    fn close(mut self, world: &mut World) -> usize {
        for _ in 0..AFTERMATH.as_secs() {
            world.run_for(SECOND);
            self.count(world);
        }
        let gains: Vec<_> = self
            .answered
            .iter()
            .filter_map(|(source, out)| {
                let (what, brought) = &self.said[source];
                (out > brought).then(|| format!("{what}: {brought} bytes in, {out} out"))
            })
            .collect();
        assert!(
            gains.is_empty(),
            "{} of {} gained: {:#?}",
            gains.len(),
            self.said.len(),
            &gains[..gains.len().min(20)]
        );
        self.answered.len()
    }
}

/// To whom a captured datagram goes, if it goes to a host's own address.
fn receiver(world: &World, endpoint: SocketAddr) -> Option<HostId> {
    world.hosts().find(|host| world.topology.addresses(*host).contains(&endpoint.ip()))
}

/// A world in which all kinds of datagrams were seen: handshakes, relayed and direct sessions, probes through NATs, ML-KEM.
/// With what was captured.
fn eavesdropped(seed: u64) -> (World, Vec<(HostId, Vec<u8>)>) {
    let mut world = World::new(Seed::or(seed));
    world.post_quantum = true;
    world.captured = Some(Vec::new());
    let internet = world.internet();
    let public = world.laptops(2, internet);
    let mut hosts = public.clone();
    for kind in [NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_RANDOM, NatKind::SYMMETRIC_RANDOM] {
        let (lan, _) = world.home_behind(kind, internet);
        let host = world.laptops(1, lan)[0];
        world.introduce(host, &public);
        hosts.push(host);
    }
    world.introduce(public[0], &public[1..]);
    hosts.iter().for_each(|host| world.start(*host));
    world.settle_within(10 * SECOND);
    world.ping_all(&hosts, 200 * MS, 20 * SECOND);
    world.run_for(20 * SECOND);
    let captured = world.captured.replace(Vec::new()).expect("a capture runs");
    let heard = captured
        .into_iter()
        .filter_map(|datagram| Some((receiver(&world, datagram.endpoint)?, datagram.bytes)))
        .collect();
    (world, heard)
}

/// What a datagram is, for the books: its kind and length.
fn name_of(bytes: &[u8]) -> String {
    DatagramKind::of(bytes).map_or_else(|| "unknown".to_owned(), |kind| format!("{kind:?} of {}", bytes.len()))
}

fn is_sealed(bytes: &[u8]) -> bool {
    DatagramKind::of(bytes) == Some(DatagramKind::Sealed)
}

/// A few of each kind and length.
fn samples(heard: Vec<(HostId, Vec<u8>)>) -> Vec<(HostId, Vec<u8>)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let few = |bytes: &[u8]| {
        let seen = seen.entry(name_of(bytes)).or_default();
        *seen += 1;
        *seen <= 3
    };
    let mut few = few;
    heard.into_iter().filter(|(_, bytes)| few(bytes)).collect()
}

/// What can be made of a datagram without any key.
fn changed(bytes: &[u8], chance: &mut Chance) -> Vec<(&'static str, Vec<u8>)> {
    let mut made = vec![("again", bytes.to_vec())];
    for kind in 0..8 {
        let mut other = bytes.to_vec();
        other[0] = kind;
        made.push(("of another kind", other));
    }
    for _ in 0..12 {
        made.push(("cut", bytes[..chance.below(bytes.len() as u64) as usize].to_vec()));
        let mut flipped = bytes.to_vec();
        let at = chance.below(flipped.len().min(64) as u64) as usize;
        flipped[at] ^= 1 << chance.below(8);
        made.push(("changed", flipped));
    }
    let mut longer = bytes.to_vec();
    longer.resize(bytes.len() + 1 + chance.below(200) as usize, 0);
    made.push(("longer", longer));
    made
}

#[test]
fn nothing_without_proof_is_answered_with_more_bytes_than_it_brought() {
    let (mut world, heard) = eavesdropped(90_000);
    let samples = samples(heard);
    for kind in [DatagramKind::Initiation, DatagramKind::Response, DatagramKind::Sealed] {
        assert!(samples.iter().any(|(_, bytes)| DatagramKind::of(bytes) == Some(kind)), "no {kind:?} was captured");
    }
    let (mut books, mut chance) = (Books::default(), Seed::or(90_000).chance("changes"));
    for (victim, bytes) in &samples {
        for (how, made) in changed(bytes, &mut chance) {
            books.say(&mut world, *victim, &format!("{} {how}", name_of(bytes)), &made);
            // Slowly, and so fast that who is asked is under load.
            if chance.below(10) == 0 {
                world.run_for(50 * MS);
            }
        }
    }
    // Made up altogether.
    for n in 0..20_000 {
        let len = 1 + chance.below(1400) as usize;
        let mut bytes = chance.noise(len);
        bytes[0] = (n % 8) as u8;
        books.say(&mut world, samples[n % samples.len()].0, "noise", &bytes);
        if n % 20 == 0 {
            world.run_for(MS);
        }
    }
    books.close(&mut world);
}

/// Cookies, which only a member under load gives.
#[test]
fn a_cookie_is_smaller_than_what_asked_for_it() {
    let (mut world, heard) = eavesdropped(90_100);
    let (victim, initiation) =
        heard.into_iter().find(|(_, bytes)| bytes[0] == DatagramKind::Initiation as u8).expect("an initiation");
    let mut books = Books::default();
    for n in 0..2_000 {
        books.say(&mut world, victim, "an initiation, in a flood", &initiation);
        if n % 10 == 0 {
            world.run_for(MS);
        }
    }
    assert!(books.close(&mut world) > 1_000, "who is flooded gives cookies");
}

/// Genuine handshakes, in the name of another and before they arrive. What the session then says is not looked at: by then both
/// have proved who they are.
#[test]
fn who_hears_everything_and_is_faster_gains_nothing_by_handshakes() {
    for seed in 90_200..90_205 {
        let mut world = World::new(Seed::or(seed));
        world.captured = Some(Vec::new());
        let (_, hosts) = world.lan(3);
        world.ping_all(&hosts, 100 * MS, 400 * SECOND);
        let mut books = Books { sealed_too: false, ..Books::default() };
        // Half of what a link takes. Three minutes bring a rekey of each session.
        let step = Duration::from_micros(100);
        for phase in [0, 120, 240] {
            world.run_until(phase * SECOND);
            while world.now() < (phase + 3) * SECOND {
                world.run_for(step);
                let fresh: Vec<_> = world.captured.iter().flatten().cloned().collect();
                books.count(&mut world);
                for datagram in fresh.iter().filter(|datagram| !is_sealed(&datagram.bytes)) {
                    if let Some(victim) = receiver(&world, datagram.endpoint) {
                        let what = format!("{} overtaken", name_of(&datagram.bytes));
                        books.say(&mut world, victim, &what, &datagram.bytes);
                    }
                }
            }
        }
        assert!(books.close(&mut world) > 0, "an initiation is answered, whoever brings it");
    }
}
