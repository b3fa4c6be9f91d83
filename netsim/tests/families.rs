//! Homes with both families: which is used, what becomes of the other, and what happens when one fails.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::node::Reply;
use meshd::node::command::{Command, NetcheckInfo, PeerInfo};
use netsim::{BoxId, HostId, NatKind, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

const SEEDS: u64 = 10;

/// A public member with both families, and a home with both, of which each has a box.
struct Stage {
    world: World,
    internets: [SegmentId; 2],
    public: HostId,
    home: HostId,
    boxes: [BoxId; 2],
}

impl Stage {
    fn new(seed: u64, ipv4: NatKind) -> Self {
        let mut world = World::new(Seed::or(seed));
        let internets = [world.internet(), world.internet_of_ipv6()];
        let public = world.laptop(&internets);
        let lans = [world.home_behind(ipv4, internets[0]), world.home_behind(NatKind::FIREWALL, internets[1])];
        let home = world.laptop(&lans.map(|(lan, _)| lan));
        world.introduce(home, &[public]);
        world.start(public);
        world.start(home);
        Self { world, internets, public, home, boxes: lans.map(|(_, nat)| nat) }
    }

    fn peer(&mut self, from: HostId, to: HostId) -> PeerInfo {
        let wanted = self.world.host(to).peer.to_string();
        self.world.peers(from).into_iter().find(|peer| peer.peer == wanted).expect("it is known")
    }

    fn is_over_ipv6(&mut self, from: HostId, to: HostId) -> bool {
        let peer = self.peer(from, to);
        peer.path == "direct" && peer.endpoint.is_some_and(|endpoint| endpoint.is_ipv6())
    }

    fn netcheck(&mut self, host: HostId) -> NetcheckInfo {
        let Reply::Netcheck(info) = self.world.ask(host, Command::Netcheck) else { panic!("another reply") };
        *info
    }
}

#[test]
fn ipv6_is_taken_where_both_families_are_as_good() {
    for seed in 0..SEEDS {
        let mut stage = Stage::new(70_000 + seed, NatKind::PORT_RESTRICTED);
        let (public, home) = (stage.public, stage.home);
        stage.world.run_for(5 * SECOND);
        for (from, to) in [(public, home), (home, public)] {
            assert!(stage.is_over_ipv6(from, to), "seed {seed}: {:?}", stage.peer(from, to));
        }
        let info = stage.netcheck(home);
        assert!(info.ipv6_answered && info.nat.survey.is_some(), "seed {seed}: {info:?}");
    }
}

#[test]
fn what_is_seen_over_ipv4_stays_true_while_everything_goes_over_ipv6() {
    for seed in 0..SEEDS {
        let short = NatKind::PORT_RESTRICTED_NOT_PRESERVING.expiring(20 * SECOND);
        let mut stage = Stage::new(70_100 + seed, short);
        let (public, home) = (stage.public, stage.home);
        stage.world.run_for(5 * SECOND);
        let outside = stage.world.outside_of(home, stage.boxes[0]);
        stage.world.run_for(20 * MINUTE);
        assert!(stage.is_over_ipv6(home, public), "seed {seed}: {:?}", stage.peer(home, public));
        // The mapping was never lost, and everybody is told of it.
        assert_eq!((outside.len(), &stage.world.outside_of(home, stage.boxes[0])), (1, &outside), "seed {seed}");
        assert!(stage.netcheck(home).nat.seen_at.contains(&outside[0]), "seed {seed}");
        // So who comes with IPv4 alone meets us as if we had no more.
        let (lan, _) = stage.world.home_behind(NatKind::PORT_RESTRICTED, stage.internets[0]);
        let newcomer = stage.world.laptops(1, lan)[0];
        stage.world.introduce(newcomer, &[public]);
        stage.world.start(newcomer);
        stage.world.first_answer(newcomer, home, 5 * SECOND).expect("an answer");
        stage.world.run_for(3 * SECOND);
        let peer = stage.peer(newcomer, home);
        assert_eq!((&*peer.path, peer.endpoint), ("direct", Some(outside[0])), "seed {seed}");
    }
}

#[test]
fn when_ipv6_fails_ipv4_takes_over_within_five_seconds() {
    for seed in 0..SEEDS {
        let mut stage = Stage::new(70_200 + seed, NatKind::PORT_RESTRICTED.expiring(20 * SECOND));
        let (public, home) = (stage.public, stage.home);
        stage.world.run_for(5 * MINUTE);
        let ping = stage.world.ping(home, public, 100 * MS, 20 * SECOND);
        stage.world.run_for(5 * SECOND);
        assert!(stage.is_over_ipv6(home, public), "seed {seed}");
        stage.world.plug_box(stage.boxes[1], false);
        stage.world.run_for(20 * SECOND);
        let conversation = stage.world.conversation(ping);
        assert!(conversation.longest_silence <= 5 * SECOND, "seed {seed}: {conversation:?}");
        let peer = stage.peer(home, public);
        assert!(peer.path == "direct" && peer.endpoint.as_ref().is_some_and(SocketAddr::is_ipv4), "{peer:?}");
    }
}
