//! The directory, for real: libp2p swarms on 127.0.0.1, each a shard, some of them liars.
//!
//! Fifty members with k = 8, so that nobody holds everything: whoever asks for a MAC, an address or a name must find it,
//! also after a fifth of the nodes were killed at once. Then those who should not be there: strangers without the secret,
//! holders of the secret who are no members, members who lie.

#![cfg(feature = "daemon")]
#![expect(clippy::disallowed_methods, reason = "real swarms take real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use libp2p::core::upgrade::Version;
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::multiaddr::Protocol;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{self, NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, Transport as _, identify, noise, tcp, yamux};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use meshd::dht::record::{Ipv4Claim, Record, Verified};
use meshd::dht::statement::Fact;
use meshd::dht::swarm::{Channels, Prefix, SwarmConfig, start};
use meshd::dht::{Command, Event, LookupKey, Met, QueryId, Standing, Statement};
use meshd::identity::{
    Certificate, CertificateBody, Chain, Kind, Mac, NetworkId, NetworkSecret, PeerId, Roles, SigningKey, UnixSeconds,
    automatic_ipv4, default_prefix, ula_address,
};

/// Shows a figure, also when the test passes: the test runner captures what is printed by `println!` only.
macro_rules! figure {
    ($($text:tt)*) => { writeln!(std::io::stderr(), $($text)*).expect("stderr is there") };
}

#[path = "dht/circuits.rs"]
mod circuits;
#[path = "dht/liars.rs"]
mod liars;

/// Fifty swarms are load enough for two cores: that test runs alone, the others with one another.
static LOAD: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    LOAD.write().unwrap_or_else(PoisonError::into_inner)
}

fn with_others() -> RwLockReadGuard<'static, ()> {
    LOAD.read().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn fifty_members_find_one_another_and_go_on_when_a_fifth_is_killed() {
    let _alone = alone();
    runtime().block_on(async {
        const N: usize = 50;
        const K: usize = 8;
        let mesh = Mesh::new(1);
        let begun = Instant::now();
        let mut nodes: Vec<_> = (0..N).map(|n| mesh.node(n as u8, K)).collect();
        for node in &nodes[1..] {
            node.dial(&nodes[0]).await;
        }
        // Each key lies with its publisher and the k nearest others.
        let mut before = 0;
        until(60, 2000, "everybody is met and no more copies are handed out", || {
            let copies: usize = nodes.iter().map(|node| node.standing().shard_records).sum();
            let settled = copies.abs_diff(std::mem::replace(&mut before, copies)) <= N && copies >= 4 * N * (K + 1);
            settled && nodes.iter().all(|node| node.standing().routing_peers >= 2 * K)
        })
        .await;
        figure!("{N} swarms, k = {K}: settled after {:.1} s", begun.elapsed().as_secs_f64());

        let (found, asked, _) = look_up_everything(&nodes, &nodes).await;
        assert!(found * 1000 >= asked * 999, "at least 99.9 % are found");

        let begun = Instant::now();
        let roamer = &nodes[N / 2];
        roamer.publish(mesh.record(N as u8 / 2, 2)).await;
        until(10, 50, "a new record reaches everybody", || {
            nodes.iter().all(|node| node.peer == roamer.peer || node.heard(&roamer.peer) == Some(2))
        })
        .await;
        figure!("gossip: a new record reached all {N} within {:.2} s", begun.elapsed().as_secs_f64());

        until(60, 500, "the copies of the beginning are swept away", || {
            nodes.iter().all(|node| node.standing().shard_records * 5 < 4 * N * 2)
        })
        .await;
        show_shards(&nodes, K);

        // Every fifth, the one whom all had dialled among them.
        let mut index = 0;
        nodes.retain(|_| {
            index += 1;
            (index - 1) % 5 != 0
        });
        assert_eq!(nodes.len(), N * 4 / 5);
        figure!("a fifth killed at once, the first of all among them");
        let (found, asked, took) = look_up_everything(&nodes, &nodes).await;
        assert!(took < Duration::from_secs(60) && found * 100 >= asked * 99, "at least 99 % are found within 60 s");
    });
}

#[test]
fn an_expelled_member_leaves_every_shard_and_is_parted_from_by_all_who_hear_of_it() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(40);
        let nodes: Vec<_> = (0..6).map(|n| mesh.node(n, 20)).collect();
        for node in &nodes[1..] {
            node.dial(&nodes[0]).await;
        }
        let (others, outcast) = (&nodes[..5], &nodes[5]);
        until(20, 50, "every shard has every key", || nodes.iter().all(|node| node.standing().shard_records == 24))
            .await;
        others[1].find_soon(LookupKey::Mac(outcast.mac)).await;

        let fact = Fact::Revoked { target: outcast.peer, reason: "left".to_owned() };
        let chain = Chain { root: mesh.root.peer_id(), links: Vec::new() };
        let statement = Statement::sign(&mesh.root, &mesh.network, chain, fact, unix_now()).expect("a sound statement");
        let begun = Instant::now();
        others[2].send(Command::State(Arc::new(statement))).await;
        until(5, 20, "its records are gone from every shard", || {
            others.iter().all(|node| node.standing().shard_records == 20)
        })
        .await;
        figure!("expelled from every shard within {:.2} s", begun.elapsed().as_secs_f64());
        until(5, 50, "nobody keeps a connection with it", || outcast.standing().connections == 0).await;
        assert!(others[1].look_up(LookupKey::Mac(outcast.mac)).await.is_none(), "it is still found");

        // Who comes later compares its ledger with the first that it meets.
        let newcomer = mesh.node(6, 20);
        newcomer.dial(&others[3]).await;
        until(10, 50, "the newcomer has every key", || newcomer.standing().shard_records == 24).await;
        outcast.dial(&newcomer).await;
        until(10, 50, "the newcomer parts from it too", || {
            newcomer.refused("peer-expelled") + newcomer.refused("record-of-expelled") > 0
        })
        .await;
    });
}

#[test]
fn a_newcomer_knows_everybody_after_its_first_hello() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(2);
        let nodes: Vec<_> = (0..10).map(|n| mesh.node(n, 20)).collect();
        for node in &nodes[1..] {
            node.dial(&nodes[0]).await;
        }
        until(10, 50, "the first knows the others", || {
            nodes[1..].iter().all(|node| nodes[0].heard(&node.peer).is_some())
        })
        .await;
        let newcomer = mesh.node(10, 20);
        let begun = Instant::now();
        newcomer.dial(&nodes[0]).await;
        until(3, 50, "the newcomer knows all", || nodes.iter().all(|node| newcomer.heard(&node.peer).is_some())).await;
        figure!("a newcomer knew all 10 members after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
        let (found, asked, _) = look_up_everything(std::slice::from_ref(&newcomer), &nodes).await;
        assert_eq!(found, asked);
    });
}

#[test]
fn two_nodes_are_a_directory_and_a_lost_connection_comes_back() {
    let _others = with_others();
    runtime().block_on(async {
        let mesh = Mesh::new(3);
        let (ada, bob) = (mesh.node(0, 20), mesh.node(1, 20));
        let begun = Instant::now();
        ada.dial(&bob).await;
        let (record, holders) = ada.find_soon(LookupKey::Mac(bob.mac)).await;
        figure!("two nodes: found after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
        assert_eq!((record.peer(), holders.contains(&bob.peer)), (bob.peer, true));
        until(5, 50, "connected", || ada.standing().connections == 1 && bob.standing().connections == 1).await;
        assert!(ada.look_up(LookupKey::Mac(Mac([2, 9, 9, 9, 9, 9]))).await.is_none(), "what nobody has is not found");

        let at = bob.at;
        drop(bob);
        until(5, 50, "the loss is seen", || ada.standing().connections == 0).await;
        let bob = mesh.node_at(1, 20, at, &[]);
        until(20, 50, "connected again, without being told", || bob.standing().connections == 1).await;
    });
}

/// Looks up the MAC, the IPv4 address and the name of each of `targets` from each of `askers`, two at a time each.
async fn look_up_everything(askers: &[Node], targets: &[Node]) -> (usize, usize, Duration) {
    let begun = Instant::now();
    let wanted: Arc<Vec<(PeerId, LookupKey)>> = Arc::new(
        targets
            .iter()
            .flat_map(|node| {
                let [mac, ipv4, _, name] = node.record.lookup_keys();
                [mac, ipv4, name].map(|key| (node.peer, key))
            })
            .collect(),
    );
    let mut tasks = Vec::new();
    for asker in askers {
        let (link, wanted) = (asker.link.clone(), Arc::clone(&wanted));
        tasks.push(tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(2));
            let mut lookups = Vec::new();
            for (peer, key) in wanted.iter().cloned() {
                let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore stays open");
                let link = link.clone();
                lookups.push(tokio::spawn(async move {
                    let begun = Instant::now();
                    let found = link.look_up(key).await.is_some_and(|(record, _)| record.peer() == peer);
                    drop(permit);
                    (found, begun.elapsed())
                }));
            }
            let mut ended = Vec::new();
            for lookup in lookups {
                ended.push(lookup.await.expect("a lookup ends"));
            }
            ended
        }));
    }
    let mut ended = Vec::new();
    for task in tasks {
        ended.extend(task.await.expect("the lookups end"));
    }
    let mut times: Vec<_> = ended.iter().map(|(_, time)| time.as_millis()).collect();
    times.sort_unstable();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let (found, took) = (ended.iter().filter(|(found, _)| *found).count(), begun.elapsed());
    figure!(
        "{found} of {} lookups found in {:.1} s (median {median} ms, 99 % {late} ms)",
        ended.len(),
        took.as_secs_f64()
    );
    (found, ended.len(), took)
}

fn show_shards(nodes: &[Node], k: usize) {
    let all = 4 * nodes.len();
    let mut held: Vec<_> = nodes.iter().map(|node| node.standing().shard_records).collect();
    held.sort_unstable();
    let (least, most, sum) = (held[0], held[held.len() - 1], held.iter().sum::<usize>());
    figure!("keys held by each of {} shards, of {all} (expected {}): ", nodes.len(), all * k / nodes.len());
    for row in held.chunks(10) {
        figure!("    {}", row.iter().map(|count| format!("{count:4}")).collect::<String>());
    }
    figure!("    least {least}, mean {:.1}, most {most}", sum as f64 / nodes.len() as f64);
    assert!(most * 2 < all && sum < all * 3 * (k + 1), "nobody holds half of everything, all hold about k of each");
    assert!(least >= 4, "everybody holds at least its own");
}

/// Looks every so many milliseconds whether `condition` holds, for so many seconds.
async fn until(seconds: u64, every: u64, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(every)).await;
    }
}

fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn multiaddr(at: SocketAddr) -> Multiaddr {
    Multiaddr::from(at.ip()).with(Protocol::Tcp(at.port()))
}

/// One network: its root, and members made to order.
struct Mesh {
    root: SigningKey,
    network: NetworkId,
    secret: [u8; 32],
    homes: [Home; 2],
}

/// A thread with a runtime where swarms live: two of them use two cores.
struct Home {
    handle: tokio::runtime::Handle,
    _stop: oneshot::Sender<()>,
}

impl Home {
    fn new() -> Self {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || runtime.block_on(stopped));
        Self { handle, _stop: stop }
    }
}

impl Mesh {
    fn new(seed: u8) -> Self {
        let root = SigningKey::from_seed(&[seed; 32]);
        Self {
            network: NetworkId::of_root(&root.peer_id()),
            root,
            secret: [seed; 32],
            homes: [Home::new(), Home::new()],
        }
    }

    fn secret(&self) -> NetworkSecret {
        NetworkSecret::new(self.secret)
    }

    fn prefix(&self) -> meshd::identity::Ipv4Prefix {
        default_prefix(&self.network)
    }

    fn key(&self, n: u8) -> SigningKey {
        let mut seed = self.secret;
        seed[0] = n;
        seed[1] = 0xee;
        SigningKey::from_seed(&seed)
    }

    fn peer(&self, n: u8) -> PeerId {
        self.key(n).peer_id()
    }

    fn directory_key(&self, key: &LookupKey) -> [u8; 32] {
        key.directory_key(&self.secret().directory_key())
    }

    fn record(&self, n: u8, sequence: u64) -> Verified<Record> {
        self.record_signed_at(n, sequence, unix_now())
    }

    fn record_signed_at(&self, n: u8, sequence: u64, now: UnixSeconds) -> Verified<Record> {
        self.record_with(n, sequence, now, &[], &[])
    }

    fn record_with(
        &self,
        n: u8,
        sequence: u64,
        now: UnixSeconds,
        endpoints: &[SocketAddr],
        homes: &[PeerId],
    ) -> Verified<Record> {
        let key = self.key(n);
        let body = CertificateBody {
            subject: key.peer_id(),
            kind: Kind::Member,
            name: format!("member-{n}").parse().expect("a name"),
            roles: Roles::NONE,
            not_before: now - 60,
            not_after: now + 7 * 86400,
            grant_until: now + 7 * 86400,
            uses: 0,
        };
        let mac = Mac::automatic(&self.network, &key.peer_id());
        let record = Record {
            chain: Chain::of_root(self.root.peer_id(), Certificate::issue(&self.root, &self.network, body)),
            noise: key.noise_secret().public(),
            mac,
            // By hand: of fifty automatic ones, two may be the same, and then one member loses.
            ipv4: Ipv4Claim { address: (self.prefix().address().to_bits() + 256 + u32::from(n)).into(), fixed: false },
            ipv6: ula_address(&self.network, &mac),
            endpoints: endpoints.to_vec(),
            homes: homes.to_vec(),
            tls: false,
            sequence,
            expires: now + 3600,
        };
        Verified::sign(&key, &self.network, record, now).expect("a sound record")
    }

    fn node(&self, n: u8, k: usize) -> Node {
        self.node_at(n, k, "127.0.0.1:0".parse().expect("an endpoint"), &[])
    }

    fn node_at(&self, n: u8, k: usize, at: SocketAddr, overlay: &[Prefix]) -> Node {
        let base = SwarmConfig::new(self.key(n), self.network, self.secret(), self.prefix(), at.port());
        let replication = NonZeroUsize::new(k).expect("not zero");
        let config = SwarmConfig { listen: vec![at.ip()], overlay: overlay.to_vec(), replication, ..base };
        let node = self.run(n, config);
        for command in [Command::Listening(vec![node.at]), Command::Publish(Box::new(node.record.clone()))] {
            node.link.commands.try_send(command).expect("there is room for two");
        }
        node
    }

    /// A swarm that has been told nothing: nobody learns where it listens.
    fn run(&self, n: u8, config: SwarmConfig) -> Node {
        let home = &self.homes[usize::from(n) % self.homes.len()].handle;
        let _inside = home.enter();
        let (directory, Channels { commands, events, listening }) = start(config).expect("it starts");
        let record = self.record(n, 1);
        let link = Link { commands, state: Arc::default() };
        let reader = home.spawn(read_events(events, Arc::clone(&link.state)));
        let body = home.spawn(directory.run());
        Node { peer: record.peer(), mac: record.mac, record, at: listening[0], link, tasks: [reader, body] }
    }
}

/// A real swarm; killed when dropped, as by SIGKILL.
struct Node {
    peer: PeerId,
    mac: Mac,
    record: Verified<Record>,
    at: SocketAddr,
    link: Link,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct Link {
    commands: mpsc::Sender<Command>,
    state: Arc<Mutex<State>>,
}

type Found = Option<(Verified<Record>, Vec<PeerId>)>;

#[derive(Default)]
struct State {
    next_query: u64,
    waiting: BTreeMap<QueryId, oneshot::Sender<Found>>,
    heard: BTreeMap<PeerId, u64>,
    standing: Standing,
    met: Vec<Met>,
}

async fn read_events(mut events: mpsc::Receiver<Event>, state: Arc<Mutex<State>>) {
    while let Some(event) = events.recv().await {
        let mut state = state.lock().expect("nobody panics with it");
        match event {
            Event::Found { id, record, holders } => {
                let waiting = state.waiting.remove(&id).expect("each lookup is answered once");
                let _ = waiting.send(Some((record, holders)));
            }
            Event::NotFound { id } => {
                let waiting = state.waiting.remove(&id).expect("each lookup is answered once");
                let _ = waiting.send(None);
            }
            Event::Gossip(record) => {
                state.heard.insert(record.peer(), record.sequence);
            }
            Event::Standing(standing) => state.standing = standing,
            Event::Met(met) => state.met = met,
            Event::Sighting(_) | Event::Statement(_) => {}
        }
    }
}

impl Link {
    async fn look_up(&self, key: LookupKey) -> Found {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = self.state.lock().expect("nobody panics with it");
            state.next_query += 1;
            let id = QueryId(state.next_query);
            state.waiting.insert(id, answer);
            id
        };
        self.commands.send(Command::Lookup { id, key }).await.expect("the directory runs");
        let within = tokio::time::timeout(Duration::from_secs(20), answered).await;
        within.expect("every lookup ends").expect("every lookup is answered")
    }
}

impl Node {
    async fn send(&self, command: Command) {
        self.link.commands.send(command).await.expect("the directory runs");
    }

    async fn publish(&self, record: Verified<Record>) {
        self.send(Command::Publish(Box::new(record))).await;
    }

    async fn dial(&self, other: &Self) {
        self.send(Command::Dial { peer: other.peer, endpoints: vec![other.at], homes: vec![] }).await;
    }

    async fn look_up(&self, key: LookupKey) -> Found {
        self.link.look_up(key).await
    }

    /// Asks until it is found, for five seconds.
    async fn find_soon(&self, key: LookupKey) -> (Verified<Record>, Vec<PeerId>) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(found) = self.look_up(key.clone()).await {
                return found;
            }
            assert!(Instant::now() < end, "{key} is not found within 5 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn standing(&self) -> Standing {
        self.link.state.lock().expect("nobody panics with it").standing.clone()
    }

    fn heard(&self, peer: &PeerId) -> Option<u64> {
        self.link.state.lock().expect("nobody panics with it").heard.get(peer).copied()
    }

    fn refused(&self, reason: &str) -> u64 {
        self.standing().refused.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
    }
}

/// Hellos as bare bytes: writes what it is given, reads what comes.
#[derive(Clone)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Vec<u8>> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Vec<u8>> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        io.write_all(&bytes).await
    }
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(1 << 20).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
