//! Two homes behind boxes, and one member on the Internet itself whom everybody knows.

use std::net::SocketAddr;
use std::time::Duration;

use netsim::kinds::{Families, Kind, with_udp};
use netsim::oracle;
use netsim::transit::TTL;
use netsim::{BoxId, HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Seeds of each story.
const SEEDS: u64 = 10;

/// A home with one member.
#[derive(Clone, Copy)]
struct Home {
    host: HostId,
    nat: BoxId,
}

/// The stage: all are members of one network, none is started.
struct Stage {
    world: World,
    internet: SegmentId,
    public: HostId,
    homes: Vec<Home>,
}

impl Stage {
    fn new(seed: u64) -> Self {
        let mut world = World::new(Seed::or(seed));
        let internet = world.internet();
        let public = world.laptops(1, internet)[0];
        Self { world, internet, public, homes: Vec::new() }
    }

    /// Two homes on the Internet, one behind a box of each kind.
    fn of(seed: u64, kinds: [NatKind; 2]) -> Self {
        let mut stage = Self::new(seed);
        for kind in kinds {
            stage.add_home(kind, stage.internet);
        }
        stage
    }

    fn add_home(&mut self, kind: NatKind, outside: SegmentId) {
        let (lan, nat) = self.world.home_behind(kind, outside);
        self.add_member(lan, nat);
    }

    fn add_member(&mut self, lan: SegmentId, nat: BoxId) {
        let host = self.world.laptops(1, lan)[0];
        self.world.introduce(host, &[self.public]);
        self.homes.push(Home { host, nat });
    }

    fn start(&mut self) {
        self.world.start(self.public);
        for home in &self.homes {
            self.world.start(home.host);
        }
    }

    /// That pings between the public member and everybody at home are all answered for `span`, whoever asks.
    fn assert_everybody_speaks_with_the_public_member(&mut self, span: Duration, what: &str) {
        let pairs = self.homes.iter().flat_map(|home| [(home.host, self.public), (self.public, home.host)]);
        let pings: Vec<_> =
            pairs.collect::<Vec<_>>().into_iter().map(|(a, b)| self.world.ping(a, b, 200 * MS, span)).collect();
        self.world.run_for(span + SECOND);
        for ping in pings {
            let drops = self.world.drops();
            let conversation = self.world.conversation(ping);
            let (sent, answered) = (conversation.sent, conversation.answered);
            assert!(sent > 0 && answered == sent, "{what}: {answered} of {sent} pings answered; drops: {drops}");
        }
    }
}

#[test]
fn a_member_on_the_internet_has_a_session_with_every_home_whatever_its_box() {
    let ipv4 = with_udp().iter().filter(|kind| kind.families == Families::V4);
    for (index, &Kind { name, nat: kind, .. }) in ipv4.skip(1).enumerate() {
        for seed in 0..SEEDS {
            let mut stage = Stage::of(10_000 + 100 * index as u64 + seed, [kind, NatKind::PORT_RESTRICTED]);
            stage.start();
            stage.world.settle_within(3 * SECOND);
            assert_eq!(oracle::pairs(&stage.world).len(), 2, "{name}");
            stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, name);
        }
    }
}

#[test]
fn a_session_that_is_not_used_outlives_the_memory_of_the_box() {
    for seed in 0..SEEDS {
        let kinds = [NatKind::CARELESS_LINUX, NatKind::PORT_RESTRICTED.expiring(30 * SECOND)];
        let mut stage = Stage::of(12_000 + seed, kinds);
        stage.start();
        stage.world.settle_within(3 * SECOND);
        stage.world.run_for(20 * MINUTE);
        assert_eq!(oracle::faults(&stage.world), [""; 0]);
        stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "after twenty minutes");
        for home in &stage.homes {
            assert!(!stage.world.outside_of(home.host, home.nat).is_empty());
        }
    }
}

#[test]
fn homes_see_nothing_of_what_they_did_not_ask_for() {
    for seed in 0..SEEDS {
        let mut stage = Stage::of(12_100 + seed, [NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_RANDOM]);
        let stranger = stage.world.laptops(1, stage.internet)[0];
        stage.start();
        stage.world.settle_within(3 * SECOND);
        let world = &mut stage.world;
        let targets: Vec<SocketAddr> =
            stage.homes.iter().flat_map(|home| world.outside_of(home.host, home.nat)).collect();
        assert!(targets.len() >= 2);
        let filtered = world.filtered;
        for target in &targets {
            for port in [target.port(), target.port().wrapping_add(1), 22] {
                world.emit(stranger, 4747, SocketAddr::new(target.ip(), port), TTL, b"let me in");
            }
        }
        world.run_for(SECOND);
        assert!(world.filtered >= filtered + 3 * targets.len() as u64);
        for home in &stage.homes {
            assert_eq!(world.arrivals(stranger, home.host), 0);
        }
        stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "after a stranger knocked");
    }
}

#[test]
fn mappings_of_who_is_gone_expire_and_nothing_comes_in_any_more() {
    for seed in 0..SEEDS {
        let mut stage = Stage::of(12_200 + seed, [NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_SEQUENTIAL]);
        stage.start();
        stage.world.settle_within(3 * SECOND);
        let (world, public) = (&mut stage.world, stage.public);
        for home in &stage.homes {
            let now = world.now();
            assert!(world.topology.nat(home.nat).mappings(now) > 0);
            world.stop(home.host, false);
        }
        world.run_for(2 * MINUTE + SECOND);
        for home in &stage.homes {
            let (now, before) = (world.now(), world.arrivals(public, home.host));
            let nat = world.topology.nat(home.nat);
            assert_eq!((nat.mappings(now), nat.flows(now)), (0, 0));
            let outside = SocketAddr::new(nat.address(), 4747);
            world.emit(public, 4747, outside, TTL, b"still there?");
            world.run_for(SECOND);
            assert_eq!(world.arrivals(public, home.host), before);
        }
    }
}

#[test]
fn who_comes_back_after_its_mapping_expired_has_its_session_again() {
    for seed in 0..SEEDS {
        let mut stage = Stage::of(12_300 + seed, [NatKind::PORT_RESTRICTED_NOT_PRESERVING, NatKind::SYMMETRIC_RANDOM]);
        stage.start();
        stage.world.settle_within(3 * SECOND);
        for home in stage.homes.clone() {
            stage.world.stop(home.host, false);
        }
        stage.world.run_for(5 * MINUTE);
        for home in stage.homes.clone() {
            stage.world.start(home.host);
        }
        stage.world.settle_within(3 * SECOND);
        stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "after coming back");
    }
}

#[test]
fn where_udp_is_blocked_a_stream_stands_for_it() {
    for seed in 0..SEEDS {
        let mut stage = Stage::of(12_400 + seed, [NatKind::UDP_BLOCKED, NatKind::PORT_RESTRICTED]);
        stage.start();
        stage.world.settle_within(3 * SECOND);
        stage.world.run_for(MINUTE);
        stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "by a stream");
        let (world, public) = (&stage.world, stage.public);
        let [blocked, free] = stage.homes[..] else { panic!("two homes") };
        assert_eq!(oracle::pairs(world), [(public, free.host)]);
        assert!(oracle::sends(world, blocked.host, public) && oracle::sends(world, public, blocked.host));
        assert_eq!([blocked.host, free.host, public].map(|host| world.streams_of(host)), [1, 0, 1]);
        assert_eq!((world.arrivals(blocked.host, public), world.arrivals(public, blocked.host)), (0, 0));
        assert_eq!(world.topology.nat(blocked.nat).statistics().opened, 0);
        assert!(world.filtered > 0);
        // Both are connected with the public member, and with each other through it.
        assert_eq!([blocked, free].map(|home| world.directory.connections(home.host)), [2, 2]);
    }
}

#[test]
fn homes_with_the_same_addresses_do_not_confuse_anybody() {
    for seed in 0..SEEDS {
        let mut stage = Stage::new(12_500 + seed);
        for kind in [NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC_RANDOM] {
            let (lan, nat) = stage.world.home_at([192, 168, 178], kind, stage.internet);
            for _ in 0..2 {
                stage.add_member(lan, nat);
            }
        }
        stage.start();
        // Those of one home have each other by mDNS, and all of them the public member.
        stage.world.settle_within(5 * SECOND);
        assert_eq!(oracle::pairs(&stage.world).len(), 6);
        stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "same addresses");
        stage.world.run_for(MINUTE);
        assert_eq!(oracle::faults(&stage.world), [""; 0]);
    }
}

#[test]
fn an_address_of_a_peer_that_is_ours_too_is_never_tried_and_a_stranger_at_it_is_not_taken_for_the_peer() {
    for seed in 0..SEEDS {
        let mut stage = Stage::new(12_550 + seed);
        for members in [2, 1] {
            let (lan, nat) = stage.world.home_at([192, 168, 1], NatKind::PORT_RESTRICTED, stage.internet);
            (0..members).for_each(|_| stage.add_member(lan, nat));
        }
        stage.world.captured = Some(Vec::new());
        stage.start();
        stage.world.settle_within(5 * SECOND);
        stage.world.run_for(MINUTE);
        let sent = stage.world.captured.take().expect("it was asked for");
        for host in stage.world.hosts().collect::<Vec<_>>() {
            let own = stage.world.topology.addresses(host)[0];
            let back = sent.iter().filter(|sent| sent.from == host && sent.endpoint.ip() == own).count();
            assert_eq!(back, 0, "{} speaks with itself", stage.world.host(host).name);
            // Of the two at one home, the other home's only member has the address of one: each is who it proves to be.
            for peer in stage.world.peers(host) {
                assert!(peer.path == "direct" || peer.path == "relayed", "{} at {:?}", peer.name, peer.endpoint);
                assert_ne!(peer.endpoint.map(|at| at.ip()), Some(own), "{}", peer.name);
            }
        }
        assert_eq!(oracle::faults(&stage.world), [""; 0]);
    }
}

#[test]
fn a_home_behind_a_carrier_has_its_session() {
    for seed in 0..SEEDS {
        for kind in [NatKind::CARRIER, NatKind::CARRIER_SYMMETRIC] {
            let mut stage = Stage::new(12_600 + seed);
            let (access, carrier) = stage.world.carrier(kind, stage.internet);
            stage.add_home(NatKind::PORT_RESTRICTED, access);
            stage.add_home(NatKind::SYMMETRIC_RANDOM, stage.internet);
            stage.start();
            stage.world.settle_within(3 * SECOND);
            stage.assert_everybody_speaks_with_the_public_member(5 * SECOND, "a carrier");
            assert!(stage.world.topology.nat(carrier).statistics().opened > 0);
        }
    }
}

#[test]
fn a_run_behind_boxes_is_a_function_of_its_seed() {
    let run = |seed| {
        let mut stage = Stage::of(seed, [NatKind::SYMMETRIC_RANDOM, NatKind::CARELESS_LINUX]);
        stage.start();
        stage.world.run_for(MINUTE);
        (stage.world.trace.digest(), stage.world.trace.written())
    };
    assert_eq!(run(12_700), run(12_700));
    assert_ne!(run(12_700).0, run(12_701).0);
}

/// Two members of one LAN that keeps its guests apart, and how they reach each other.
fn guests(seed: u64, kind: NatKind) -> (Stage, [String; 2]) {
    let mut stage = Stage::new(seed);
    let (lan, nat) = stage.world.home_behind(kind, stage.internet);
    stage.world.topology.isolate(lan);
    for _ in 0..2 {
        stage.add_member(lan, nat);
    }
    let paths = stage.paths_of_two();
    (stage, paths)
}

impl Stage {
    /// Starts everybody; the first two homes must have an answer in time, and have kept their path half a minute later: which it is.
    fn paths_of_two(&mut self) -> [String; 2] {
        self.start();
        let [a, b] = [self.homes[0].host, self.homes[1].host];
        self.world.first_answer(a, b, 5 * SECOND).expect("an answer");
        let ping = self.world.ping(a, b, 100 * MS, 30 * SECOND);
        self.world.run_for(31 * SECOND);
        let conversation = self.world.conversation(ping);
        assert!(conversation.answered + 3 >= conversation.sent, "{conversation:?}");
        [(a, b), (b, a)].map(|(from, to)| {
            let wanted = self.world.host(to).peer.to_string();
            let peer = self.world.peers(from).into_iter().find(|peer| peer.peer == wanted).expect("it is known");
            format!("{} {}", peer.path, peer.endpoint.map_or_else(String::new, |endpoint| endpoint.ip().to_string()))
        })
    }
}

#[test]
fn guests_that_a_lan_keeps_apart_meet_at_the_outside_of_their_box_if_it_hairpins() {
    for seed in 0..SEEDS {
        for kind in [NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED_NOT_PRESERVING, NatKind::FULL_CONE] {
            let (stage, paths) = guests(12_800 + seed, kind.hairpinning());
            let outside = stage.world.topology.nat(stage.homes[0].nat).address();
            assert_eq!(paths, [(); 2].map(|()| format!("direct {outside}")), "{kind:?}, seed {seed}");
        }
    }
}

#[test]
fn guests_that_a_lan_keeps_apart_are_relayed_if_their_box_does_not_hairpin() {
    for seed in 0..SEEDS {
        for kind in [NatKind::PORT_RESTRICTED, NatKind::CARELESS_LINUX, NatKind::SYMMETRIC_RANDOM] {
            let (_, paths) = guests(12_900 + seed, kind);
            assert!(paths.iter().all(|path| path.starts_with("relayed ")), "{kind:?}, seed {seed}: {paths:?}");
        }
    }
}

#[test]
fn two_homes_of_one_carrier_meet_at_its_outside_if_it_hairpins_and_else_are_relayed() {
    for seed in 0..SEEDS {
        for (carrier, hairpins) in [(NatKind::CARRIER, true), (NatKind { hairpin: false, ..NatKind::CARRIER }, false)] {
            let mut stage = Stage::new(13_000 + seed);
            let (access, outer) = stage.world.carrier(carrier, stage.internet);
            stage.add_home(NatKind::PORT_RESTRICTED, access);
            stage.add_home(NatKind::CARELESS_LINUX, access);
            let paths = stage.paths_of_two();
            let outside = stage.world.topology.nat(outer).address();
            if hairpins {
                assert_eq!(paths, [(); 2].map(|()| format!("direct {outside}")), "seed {seed}");
            } else {
                assert!(paths.iter().all(|path| path.starts_with("relayed ")), "seed {seed}: {paths:?}");
            }
        }
    }
}
