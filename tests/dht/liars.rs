//! Those who should not be there, and what should not be told: strangers without the secret, holders of the secret who are no members,
//! members who lie, addresses of the overlay.

use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, Quorum, RecordKey};
use meshd::dht::record::MAX_RECORD;

use super::*;

#[test]
fn a_malicious_client_with_the_secret_gets_nothing_into_any_store() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(4);
        let nodes: Vec<_> = (0..3).map(|n| mesh.node(n, 20)).collect();
        nodes[0].publish(mesh.record(0, 5)).await;
        for node in &nodes[1..] {
            node.dial(&nodes[0]).await;
        }
        let victim = LookupKey::Mac(nodes[0].mac);
        until(10, 50, "all hold all twelve keys", || nodes.iter().all(|node| node.standing().shard_records == 12))
            .await;
        until(10, 50, "and the latest record", || nodes[1..].iter().all(|node| node.heard(&nodes[0].peer) == Some(5)))
            .await;

        let sound = mesh.record(0, 6);
        let mut forged = sound.bytes().to_vec();
        *forged.last_mut().expect("not empty") ^= 1;
        let other = Mesh::new(5);
        let foreign = other.record(7, 1);
        let expired = mesh.record_signed_at(8, 1, unix_now() - 3 * 3600);
        let attacks: Vec<(&str, LookupKey, Vec<u8>)> = vec![
            ("record-forged", victim.clone(), forged),
            ("record-stale", victim.clone(), mesh.record(0, 4).bytes().to_vec()),
            ("record-oversized", victim.clone(), vec![0; MAX_RECORD + 1]),
            ("record-malformed", victim.clone(), b"junk".to_vec()),
            ("record-expired", LookupKey::Mac(expired.mac), expired.bytes().to_vec()),
            ("record-foreign-network", LookupKey::Mac(foreign.mac), foreign.bytes().to_vec()),
            ("record-wrong-key", victim.clone(), mesh.record(9, 1).bytes().to_vec()),
        ];
        for (reason, key, value) in attacks {
            // A new connection each time: an intruder without membership is soon shown the door.
            let mut intruder = Raw::new(&mesh, &SigningKey::from_seed(&[77; 32]), mesh.secret());
            assert_eq!(intruder.put(&nodes, mesh.directory_key(&key), value).await, 0, "{reason}: nobody stores it");
            until(5, 50, reason, || nodes.iter().all(|node| node.refused(reason) >= 1)).await;
        }
        // The same client with a sound record: it is not its voice that is refused.
        let sound = mesh.record(10, 1);
        let mut courier = Raw::new(&mesh, &SigningKey::from_seed(&[77; 32]), mesh.secret());
        let key = mesh.directory_key(&LookupKey::Mac(sound.mac));
        assert_eq!(courier.put(&nodes, key, sound.bytes().to_vec()).await, nodes.len());
        until(3, 50, "stored", || nodes.iter().all(|node| node.standing().shard_records == 13)).await;

        assert!(nodes.iter().all(|node| node.standing().shard_records == 13), "nothing else came in, nothing went");
        for node in &nodes {
            let (record, _) = node.look_up(victim.clone()).await.expect("it is still there");
            assert_eq!((record.peer(), record.sequence), (nodes[0].peer, 5));
        }
    });
}

#[test]
fn a_member_that_answers_lookups_with_lies_is_not_believed() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(6);
        let nodes: Vec<_> = (0..2).map(|n| mesh.node(n, 20)).collect();
        nodes[1].dial(&nodes[0]).await;
        let mut liar = Raw::new(&mesh, &mesh.key(30), mesh.secret());
        let (victim, nobody) = (LookupKey::Mac(nodes[0].mac), LookupKey::Mac(Mac([2, 9, 9, 9, 9, 9])));
        let own = mesh.record(30, 1);
        let mut forged = nodes[0].record.bytes().to_vec();
        *forged.last_mut().expect("not empty") ^= 1;
        liar.hold(mesh.directory_key(&victim), own.bytes().to_vec());
        liar.hold(mesh.directory_key(&nobody), own.bytes().to_vec());
        liar.hold(mesh.directory_key(&LookupKey::Name(nodes[0].record.name().clone())), forged);
        for node in &nodes {
            liar.dial(node);
        }
        let (gone, stop) = oneshot::channel();
        let greeting = [&[1, 0], &(own.bytes().len() as u16).to_be_bytes()[..], own.bytes()].concat();
        let task = tokio::spawn(async move { liar.serve(Some(greeting), gone).await });

        until(10, 50, "the liar is a member in good standing", || {
            nodes.iter().all(|node| node.standing().connections == 2 && node.standing().routing_peers == 2)
        })
        .await;
        let (record, _) = nodes[1].find_soon(victim).await;
        assert_eq!(record.peer(), nodes[0].peer);
        assert!(nodes[1].look_up(nobody).await.is_none());
        until(5, 50, "counted", || nodes[1].refused("answer-to-another-key") >= 1).await;
        let name = LookupKey::Name(nodes[0].record.name().clone());
        let (record, _) = nodes[1].find_soon(name).await;
        assert_eq!(record.peer(), nodes[0].peer);
        drop(stop);
        task.abort();
    });
}

#[test]
fn who_has_the_secret_but_no_membership_is_disconnected() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(7);
        let node = mesh.node(0, 20);
        let member = mesh.record(1, 1);
        let foreign = Mesh::new(8).record(1, 1);
        let hello = |record: &Verified<Record>| {
            [&[1, 64], &(record.bytes().len() as u16).to_be_bytes()[..], record.bytes()].concat()
        };
        // Says nothing; shows another member's record; shows a record of another network; speaks nonsense.
        for (reason, greeting, within) in [
            ("peer-unproved", None, 7),
            ("hello-of-another", Some(hello(&member)), 3),
            ("record-foreign-network", Some(hello(&foreign)), 3),
            ("peer-unproved", Some(b"\x09\x09nonsense".to_vec()), 7),
        ] {
            let before = node.refused(reason);
            let mut intruder = Raw::new(&mesh, &SigningKey::from_seed(&[66; 32]), mesh.secret());
            intruder.dial(&node);
            let (gone, closed) = oneshot::channel();
            let task = tokio::spawn(async move { intruder.serve(greeting, gone).await });
            let answers = tokio::time::timeout(Duration::from_secs(within), closed).await;
            let answers = answers.unwrap_or_else(|_| panic!("{reason}: still connected after {within} s"));
            assert_eq!(answers.expect("the intruder tells"), 0, "{reason}: it was told no record");
            until(3, 50, reason, || node.refused(reason) > before && node.standing().connections == 0).await;
            task.abort();
        }
    });
}

#[test]
fn who_lacks_the_secret_learns_nothing() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(9);
        let node = mesh.node(0, 20);
        let mut stranger = tokio::net::TcpStream::connect(node.at).await.expect("TCP is open");
        let mut seen = Vec::new();
        tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\nHost: meshd.example\r\n\r\n and so on")
            .await
            .expect("the kernel takes it");
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut seen);
        let ended = tokio::time::timeout(Duration::from_secs(15), read).await;
        assert!(ended.is_ok(), "closed within the time for setting up");
        assert!(seen.len() <= 24 + 64, "{} bytes: a nonce and a line of cipher text at most", seen.len());
        let text = String::from_utf8_lossy(&seen);
        assert!(!text.contains("multistream") && !text.contains("meshd") && !text.contains("noise"));

        let wrong = NetworkSecret::new([99; 32]);
        let mut guesser = Raw::new(&mesh, &mesh.key(1), wrong);
        guesser.dial(&node);
        assert!(!guesser.connects(Duration::from_secs(15)).await, "the wrong secret opens nothing");
        until(3, 50, "strangers are counted", || node.refused("stranger") >= 2).await;
        assert_eq!(node.standing().connections, 0);
    });
}

#[test]
fn the_overlay_never_becomes_underlay() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(10);
        let overlay = [Prefix::host(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)))];
        let own = SocketAddr::new(IpAddr::V4(automatic_ipv4(&mesh.network, &mesh.peer(0), &mesh.prefix(), 0)), 4747);
        let ada = mesh.node_at(0, 20, "127.0.0.1:0".parse().expect("an endpoint"), &overlay);
        let bob = mesh.node_at(1, 20, "127.0.0.9:0".parse().expect("an endpoint"), &[]);

        // An endpoint in the overlay is not dialled, and nobody who comes from one is let in.
        ada.dial(&bob).await;
        ada.send(Command::Dial { peer: bob.peer, endpoints: vec![own], homes: vec![] }).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ada.standing().connections, 0);

        // What identify tells is what we were told to tell, and the overlay not even then.
        let real: SocketAddr = "192.0.2.7:4747".parse().expect("an endpoint");
        ada.send(Command::Listening(vec![own, real, ada.at])).await;
        let mut asker = Raw::new(&mesh, &SigningKey::from_seed(&[55; 32]), mesh.secret());
        asker.dial(&ada);
        let told = asker.identity_of_peer().await;
        let expected: BTreeSet<_> = [real, ada.at].into_iter().map(multiaddr).collect();
        assert_eq!(told, expected);
    });
}

/// A libp2p node that keeps no rules: plain Kademlia, and hellos with whatever bytes it likes.
struct Raw {
    swarm: Swarm<RawBehaviour>,
}

#[derive(NetworkBehaviour)]
struct RawBehaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    hello: request_response::Behaviour<Bytes>,
}

impl Raw {
    fn new(mesh: &Mesh, key: &SigningKey, secret: NetworkSecret) -> Self {
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes(*key.seed()).expect("a seed");
        let pnet = PnetConfig::new(PreSharedKey::new(*secret.pnet_key()));
        let prologue = [b"meshd control v1".as_slice(), &mesh.network.0].concat();
        let transport = tcp::tokio::Transport::new(tcp::Config::new())
            .and_then(move |stream, _| pnet.handshake(stream))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&keypair).expect("a key").with_prologue(prologue))
            .multiplex(yamux::Config::default())
            .timeout(Duration::from_secs(10))
            .boxed();
        let name = |protocol: &str| {
            StreamProtocol::try_from_owned(format!("/meshd/{}/{protocol}/1", mesh.network.short())).expect("a name")
        };
        let peer = keypair.public().to_peer_id();
        let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), kad::Config::new(name("kad")));
        kad.set_mode(Some(kad::Mode::Server));
        let behaviour = RawBehaviour {
            kad,
            identify: identify::Behaviour::new(identify::Config::new("raw".into(), keypair.public())),
            hello: request_response::Behaviour::with_codec(
                Bytes,
                [(name("hello"), ProtocolSupport::Full)],
                request_response::Config::default(),
            ),
        };
        let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
        let mut swarm = Swarm::new(transport, behaviour, peer, config);
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("a free port");
        Self { swarm }
    }

    fn dial(&mut self, node: &Node) {
        self.swarm.dial(multiaddr(node.at)).expect("an address to dial");
    }

    /// Holds a value as if it had been put here.
    fn hold(&mut self, key: [u8; 32], value: Vec<u8>) {
        use libp2p::kad::store::RecordStore as _;
        let record = kad::Record::new(RecordKey::new(&key), value);
        self.swarm.behaviour_mut().kad.store_mut().put(record).expect("there is room");
    }

    async fn connects(&mut self, within: Duration) -> bool {
        let connected = async {
            loop {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::ConnectionEstablished { .. } = event {
                    return true;
                } else if let SwarmEvent::OutgoingConnectionError { .. } = event {
                    return false;
                }
            }
        };
        tokio::time::timeout(within, connected).await.unwrap_or(false)
    }

    /// Puts a value at each node; how many of them say, within a second, that it is stored.
    async fn put(&mut self, nodes: &[Node], key: [u8; 32], value: Vec<u8>) -> usize {
        for node in nodes {
            self.dial(node);
            assert!(self.connects(Duration::from_secs(5)).await, "the secret opens the door");
        }
        let peer = |node: &Node| libp2p::PeerId::from_bytes(&node.peer.to_multihash()).expect("a peer");
        let peers: Vec<_> = nodes.iter().map(peer).collect();
        let record = kad::Record::new(RecordKey::new(&key), value);
        let query = self.swarm.behaviour_mut().kad.put_record_to(record, peers.into_iter(), Quorum::All);
        let end = tokio::time::sleep(Duration::from_secs(1));
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = self.swarm.select_next_some() => event,
                () = &mut end, if !end.is_elapsed() => {
                    self.swarm.behaviour_mut().kad.query_mut(&query).expect("it waits for refused puts").finish();
                    continue;
                }
            };
            if let SwarmEvent::Behaviour(RawBehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id, result, ..
            })) = event
                && id == query
                && let kad::QueryResult::PutRecord(result) = result
            {
                return match result {
                    Ok(_) => nodes.len(),
                    Err(
                        kad::PutRecordError::QuorumFailed { success, .. }
                        | kad::PutRecordError::Timeout { success, .. },
                    ) => success.len(),
                };
            }
        }
    }

    /// Greets everyone with `greeting`, if there is one, until its last connection ends; tells how many bytes of
    /// records it was given.
    async fn serve(&mut self, greeting: Option<Vec<u8>>, gone: oneshot::Sender<usize>) {
        let mut given = 0;
        loop {
            let event = self.swarm.select_next_some().await;
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                if let Some(greeting) = &greeting {
                    self.swarm.behaviour_mut().hello.send_request(&peer_id, greeting.clone());
                }
            } else if let SwarmEvent::Behaviour(RawBehaviourEvent::Hello(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            })) = event
            {
                given += response.len();
            } else if let SwarmEvent::ConnectionClosed { num_established: 0, .. } = event
                && self.swarm.connected_peers().next().is_none()
            {
                let _ = gone.send(given);
                return;
            }
        }
    }

    /// The addresses that the other end tells of itself.
    async fn identity_of_peer(&mut self) -> BTreeSet<Multiaddr> {
        let told = async {
            loop {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::Behaviour(RawBehaviourEvent::Identify(identify::Event::Received { info, .. })) =
                    event
                {
                    return info.listen_addrs.into_iter().collect();
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), told).await.expect("identify speaks first")
    }
}
