//! Members that nobody can dial, for nobody is told where they listen: they reach each other through relays.

use libp2p::relay;
use libp2p::swarm::dial_opts::DialOpts;

use super::*;

/// Relays 0 and 1, and members who have them for homes and are known at no endpoint.
struct Village {
    mesh: Mesh,
    relays: Vec<Node>,
    hidden: Vec<Node>,
}

impl Village {
    fn new(seed: u8, hidden: u8) -> Self {
        let mesh = Mesh::new(seed);
        let relays: Vec<_> = (0..2).map(|n| mesh.relay(n, true)).collect();
        let hidden = (0..hidden).map(|n| mesh.hidden(10 + n, &relays)).collect();
        Self { mesh, relays, hidden }
    }

    /// Everybody who has heard of a hidden member wants it, as a node would.
    async fn introduce(&self) {
        let all = || self.relays.iter().chain(&self.hidden);
        until(10, 50, "everybody has heard of everybody", || {
            all().all(|one| all().all(|other| one.peer == other.peer || one.heard(&other.peer).is_some()))
        })
        .await;
        for one in &self.hidden {
            for other in self.hidden.iter().filter(|other| other.peer != one.peer) {
                let homes = self.relays.iter().map(|relay| relay.peer).collect();
                one.send(Command::Dial { peer: other.peer, endpoints: vec![], homes }).await;
            }
        }
    }
}

impl Mesh {
    fn config(&self, n: u8) -> SwarmConfig {
        let base = SwarmConfig::new(self.key(n), self.network, self.secret(), self.prefix(), 0);
        SwarmConfig { listen: vec![Ipv4Addr::LOCALHOST.into()], ..base }
    }

    fn relay(&self, n: u8, serves: bool) -> Node {
        let mut node = self.run(n, SwarmConfig { relay: serves, ..self.config(n) });
        node.record = self.record_with(n, 1, unix_now(), &[node.at], &[]);
        for command in [Command::Listening(vec![node.at]), Command::Publish(Box::new(node.record.clone()))] {
            node.link.commands.try_send(command).expect("there is room for two");
        }
        node
    }

    fn hidden(&self, n: u8, relays: &[Node]) -> Node {
        let homes: Vec<_> = relays.iter().map(|relay| relay.peer).collect();
        let mut node = self.run(n, self.config(n));
        node.record = self.record_with(n, 1, unix_now(), &[], &homes);
        let dials =
            relays.iter().map(|relay| Command::Dial { peer: relay.peer, endpoints: vec![relay.at], homes: vec![] });
        for command in dials.chain([Command::Homes(homes), Command::Publish(Box::new(node.record.clone()))]) {
            node.link.commands.try_send(command).expect("there is room for a few");
        }
        node
    }
}

#[test]
fn members_whom_nobody_can_dial_are_shards_and_survive_a_relay() {
    let _others = with_others();
    runtime().block_on(async {
        const HIDDEN: usize = 8;
        let mut village = Village::new(20, HIDDEN as u8);
        let begun = Instant::now();
        until(10, 50, "both relays let others through to everybody", || {
            village.hidden.iter().all(|node| node.standing().reserved == 2)
        })
        .await;
        village.introduce().await;
        until(20, 50, "everybody is connected to everybody", || {
            let full =
                |node: &Node| (node.standing().connections, node.standing().circuits) == (HIDDEN + 1, HIDDEN - 1);
            village.hidden.iter().all(full)
        })
        .await;
        figure!("{HIDDEN} members behind two relays are connected after {:.1} s", begun.elapsed().as_secs_f64());
        for node in &village.hidden {
            let met = node.link.state.lock().expect("nobody panics with it").met.clone();
            let relays = village.relays.iter().map(|relay| Met { peer: relay.peer, at: Some(relay.at), relays: true });
            let mut expected: Vec<_> = relays.collect();
            expected.sort_unstable_by_key(|met| met.peer.to_multihash());
            let mut met = met;
            met.sort_unstable_by_key(|met| met.peer.to_multihash());
            assert_eq!(met, expected, "circuits are no meetings");
        }
        let carried: usize = village.relays.iter().map(|relay| relay.standing().carried).sum();
        assert!(carried >= HIDDEN * (HIDDEN - 1) / 2, "{carried} circuits carried");
        until(20, 200, "everybody keeps all", || {
            village.hidden.iter().all(|node| node.standing().shard_records == 4 * (HIDDEN + 2))
        })
        .await;
        let (found, asked, _) = look_up_everything(&village.hidden, &village.hidden).await;
        assert_eq!(found, asked);

        let begun = Instant::now();
        drop(village.relays.remove(0));
        until(20, 50, "everybody is connected again, through the other relay", || {
            village.hidden.iter().all(|node| node.standing().connections == HIDDEN && node.standing().reserved == 1)
        })
        .await;
        figure!("a relay died: mended after {:.1} s", begun.elapsed().as_secs_f64());
        let (found, asked, _) = look_up_everything(&village.hidden, &village.hidden).await;
        assert_eq!(found, asked);
    });
}

#[test]
fn a_relay_that_comes_back_is_asked_again_and_a_former_one_is_left() {
    let _others = with_others();
    runtime().block_on(async {
        let mut village = Village::new(21, 1);
        let [member] = &village.hidden[..] else { unreachable!("one is hidden") };
        until(10, 50, "reserved at both", || member.standing().reserved == 2).await;
        let (at, gone) = (village.relays[1].at, village.relays.remove(1));
        drop(gone);
        until(10, 50, "one is gone", || member.standing().reserved == 1).await;
        let config = SwarmConfig { port: at.port(), ..village.mesh.config(1) };
        let back = village.mesh.run(1, config);
        for command in [
            Command::Listening(vec![at]),
            Command::Publish(Box::new(village.mesh.record_with(1, 2, unix_now(), &[at], &[]))),
        ] {
            back.send(command).await;
        }
        until(20, 50, "reserved at both again", || member.standing().reserved == 2).await;
        // The connection on which the reservation was made comes back without it.
        member.send(Command::Homes(vec![back.peer])).await;
        until(10, 50, "one is enough", || member.standing().reserved == 1).await;
        until(10, 50, "the other is met all the same", || member.standing().connections == 2).await;
        member.send(Command::Homes(vec![])).await;
        until(10, 50, "none is wanted", || member.standing().reserved == 0).await;
    });
}

#[test]
fn who_does_not_relay_says_so() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(22);
        let selfish = mesh.relay(0, false);
        let member = mesh.hidden(10, std::slice::from_ref(&selfish));
        until(10, 50, "met", || {
            let met = member.link.state.lock().expect("nobody panics with it").met.clone();
            met == [Met { peer: selfish.peer, at: Some(selfish.at), relays: false }]
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        until(5, 50, "it stays a member like any other", || member.standing().connections == 1).await;
        assert_eq!(member.standing().reserved, 0);
    });
}

/// A libp2p client that keeps no rules and knows circuits.
#[derive(NetworkBehaviour)]
struct Caller {
    circuits: relay::client::Behaviour,
    hello: request_response::Behaviour<Bytes>,
}

fn caller(mesh: &Mesh, key: &SigningKey, secret: &NetworkSecret) -> Swarm<Caller> {
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(*key.seed()).expect("a seed");
    let (circuits, client) = relay::client::new(keypair.public().to_peer_id());
    let pnet = PnetConfig::new(PreSharedKey::new(*secret.pnet_key()));
    let prologue = [b"meshd control v1".as_slice(), &mesh.network.0].concat();
    let transport = tcp::tokio::Transport::new(tcp::Config::new())
        .or_transport(circuits)
        .and_then(move |stream, _| pnet.handshake(stream))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&keypair).expect("a key").with_prologue(prologue))
        .multiplex(yamux::Config::default())
        .boxed();
    let name = StreamProtocol::try_from_owned(format!("/meshd/{}/hello/1", mesh.network.short())).expect("a name");
    let hello = request_response::Behaviour::with_codec(Bytes, [(name, ProtocolSupport::Full)], Default::default());
    let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, Caller { circuits: client, hello }, keypair.public().to_peer_id(), config)
}

fn theirs(node: &Node) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&node.peer.to_multihash()).expect("a peer")
}

/// `/…/p2p/RELAY/p2p-circuit`.
fn through(relay: &Node) -> Multiaddr {
    multiaddr(relay.at).with(Protocol::P2p(theirs(relay))).with(Protocol::P2pCircuit)
}

#[test]
fn a_stranger_with_the_secret_proves_nothing_by_coming_through_a_relay() {
    let _others = with_others();
    runtime().block_on(async {
        let village = Village::new(23, 1);
        let (relay, member) = (&village.relays[0], &village.hidden[0]);
        until(10, 50, "reserved", || member.standing().reserved == 2).await;
        let mut stranger = caller(&village.mesh, &SigningKey::from_seed(&[66; 32]), &village.mesh.secret());
        let target = DialOpts::peer_id(theirs(member)).addresses(vec![through(relay)]).build();
        stranger.dial(target).expect("an address to dial");
        let (mut arrived, mut told) = (false, 0);
        let end = tokio::time::sleep(Duration::from_secs(8));
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = stranger.select_next_some() => event,
                () = &mut end => panic!("the stranger is still there after eight seconds"),
            };
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                arrived |= peer_id == theirs(member);
            } else if let SwarmEvent::Behaviour(CallerEvent::Hello(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            })) = event
            {
                told += response.len();
            } else if let SwarmEvent::ConnectionClosed { peer_id, .. } = event
                && peer_id == theirs(member)
            {
                break;
            }
        }
        assert!(arrived, "the relay carries for whoever has the secret, as long as it bears with it");
        assert_eq!(told, 0, "it was told no record");
        until(5, 50, "and counted", || relay.refused("peer-unproved") >= 1).await;
        assert_eq!(member.standing().connections, 2, "the two relays");
    });
}
