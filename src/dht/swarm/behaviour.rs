//! The protocols of the control network and how each is bounded.
//!
//! Every protocol name holds the network's short id, so nodes of two networks have nothing to say to each other.
//! Kademlia's store is our [`Shard`]; gossip carries records and statements only; `hello` proves membership, hands a newcomer what is
//! known, and asks whether a peer is still there; `relay` and `circuits` are the two ends of a relay's service.

use std::borrow::Cow;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::gossipsub::{
    self, IdentTopic, MessageAuthenticity, MessageId, ValidationMode, WhitelistSubscriptionFilter,
};
use libp2p::kad::store::{self, RecordStore};
use libp2p::kad::{self, ProviderRecord, RecordKey};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, StreamProtocol, identify, identity, memory_connection_limits, relay};
use sha2::{Digest as _, Sha256};

use super::super::directory::Shard;
use super::super::ledger::BUCKETS_LEN;
use super::super::record::{MAX_RECORD, Record, Verified};
use crate::identity::{NetworkId, UnixSeconds};

/// How often gossipsub mends its mesh and offers what others may have missed. News itself does not wait for it. Its default,
/// a second, is made for networks of strangers, and wakes an idle node twice as often.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long one query of Kademlia's may take: it may meet two dead peers one after the other, at ten seconds each.
/// Lookups end sooner, by our own hand.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a hello may take: a round trip, a few signature checks, 64 KiB on a slow line.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Records in the answer to a hello: 64 KiB at most, one flight on a fast line, every member of a usual network.
pub(super) const MAX_BATCH: usize = 64;

/// Open connections, both ways: everybody in a network of up to 8 k = 160 nodes, and three times that against bursts.
/// Each costs about 50 KiB, so 25 MiB in all.
const MAX_CONNECTIONS: u32 = 512;

/// Disjoint paths of a search (S/Kademlia), and requests that each has under way. A colluder who is asked leads its path astray, or
/// lets it wait for members that do not exist; the others share nothing with it. With 10 % of them, three paths lose one lookup in
/// eight to the worst, eight one in a thousand (docs/eclipse.md). In a network of twenty everybody is asked anyhow.
const PATHS: NonZeroUsize = NonZeroUsize::new(8).expect("eight is not zero");

/// Connections that others set up. They cost a handshake each; 64 at a time still make hundreds a second.
const MAX_PENDING: u32 = 64;

/// Connections that we set up: two searches in which every path waits for as many as it may. Fewer, and members who do not
/// exist would keep us from dialling those who do.
const MAX_DIALS: u32 = 128;

/// Connections to one peer: two when both dial at once, twice that while old ones die.
const MAX_PER_PEER: u32 = 4;

/// Members that others may reach through us: half of our connections. Each keeps its own open.
const MAX_RESERVATIONS: usize = 256;

/// Circuits that we carry, each of two buffers of 8 KiB: a network of forty behind NATs in which everybody speaks with everybody, 16 MiB.
const MAX_CIRCUITS: usize = 1024;

/// Circuits of one peer: a quarter of them all, so that no four take everything, and Kademlia's neighbours many times over.
const MAX_CIRCUITS_PER_PEER: usize = 256;

/// A circuit ends after this. It is made anew within seconds, by another relay if that is better now.
const CIRCUIT_LIFE: Duration = Duration::from_secs(3600);

/// What one circuit may carry, both ways: records and questions of an hour ten times over, and no file worth copying. Frames
/// have relays of their own ([`crate::config::Relaying`]).
const CIRCUIT_BYTES: u64 = 4 << 20;

/// How often a peer may ask to be reachable through us: a dozen times in a row if its line comes and goes, then once in half a minute.
const RESERVATION_BURST: NonZeroU32 = NonZeroU32::new(12).expect("twelve is not zero");
const RESERVATION_GAP: Duration = Duration::from_secs(30);

/// How often a peer may ask for a circuit: once for everybody when it starts, then one a second.
const CIRCUIT_BURST: NonZeroU32 = NonZeroU32::new(256).expect("256 is not zero");
const CIRCUIT_GAP: Duration = Duration::from_secs(1);

/// Share of this machine's memory beyond which this process takes no more connections.
const MAX_MEMORY_SHARE: f64 = 0.5;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(super) kad: kad::Behaviour<Store>,
    pub(super) gossip: Gossip,
    pub(super) identify: identify::Behaviour,
    pub(super) hello: request_response::Behaviour<Codec>,
    circuits: relay::client::Behaviour,
    relay: relay::Behaviour,
}

pub(super) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, WhitelistSubscriptionFilter>;

/// The names of the protocols of one network.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) kad: StreamProtocol,
    pub(super) hello: StreamProtocol,
    pub(super) topic: IdentTopic,
    pub(super) statements: IdentTopic,
    version: String,
    gossip: String,
}

impl Names {
    pub(super) fn new(network: &NetworkId) -> Self {
        let name = |protocol: &str| format!("/meshd/{}/{protocol}/1", network.short());
        let stream = |protocol| StreamProtocol::try_from_owned(name(protocol)).expect("it begins with a slash");
        Self {
            kad: stream("kad"),
            hello: stream("hello"),
            topic: IdentTopic::new(name("records")),
            statements: IdentTopic::new(name("statements")),
            version: format!("/meshd/{}", network.short()),
            gossip: format!("/meshd/{}/gossip", network.short()),
        }
    }
}

impl Behaviour {
    pub(super) fn new(
        keypair: &identity::Keypair,
        names: &Names,
        shard: Shard,
        replication: NonZeroUsize,
        circuits: relay::client::Behaviour,
        serve: bool,
    ) -> Result<Self, &'static str> {
        let peer = keypair.public().to_peer_id();
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_DIALS))
            .with_max_established(Some(MAX_CONNECTIONS))
            .with_max_established_per_peer(Some(MAX_PER_PEER));
        let identify = identify::Config::new(names.version.clone(), keypair.public())
            .with_agent_version(format!("meshd/{}", env!("CARGO_PKG_VERSION")))
            .with_hide_listen_addrs(true)
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let hello =
            request_response::Config::default().with_request_timeout(HELLO_TIMEOUT).with_max_concurrent_streams(8);
        let mut gossip = Gossip::new_with_subscription_filter_and_transform(
            MessageAuthenticity::Anonymous,
            gossip_config(names)?,
            WhitelistSubscriptionFilter([names.topic.hash(), names.statements.hash()].into()),
            gossipsub::IdentityTransform,
        )?;
        for topic in [&names.topic, &names.statements] {
            gossip.subscribe(topic).map_err(|_| "the topic is on the list of topics")?;
        }
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            memory: memory_connection_limits::Behaviour::with_max_percentage(MAX_MEMORY_SHARE),
            kad: kademlia(peer, names, shard, replication),
            gossip,
            identify: identify::Behaviour::new(identify),
            hello: request_response::Behaviour::with_codec(
                Codec,
                [(names.hello.clone(), ProtocolSupport::Full)],
                hello,
            ),
            circuits,
            relay: relaying(peer, serve),
        })
    }
}

/// Always or never: left alone it serves only with a confirmed public address, so on a LAN nobody would.
fn relaying(peer: PeerId, serve: bool) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: MAX_RESERVATIONS,
        max_reservations_per_peer: MAX_PER_PEER as usize,
        max_circuits: MAX_CIRCUITS,
        max_circuits_per_peer: MAX_CIRCUITS_PER_PEER,
        max_circuit_duration: CIRCUIT_LIFE,
        max_circuit_bytes: CIRCUIT_BYTES,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let config = config.reservation_rate_per_peer(RESERVATION_BURST, RESERVATION_GAP);
    let mut relay = relay::Behaviour::new(peer, config.circuit_src_per_peer(CIRCUIT_BURST, CIRCUIT_GAP));
    relay.set_status(Some(if serve { relay::Status::Enable } else { relay::Status::Disable }));
    relay
}

/// A server always: left alone, kad serves only with a confirmed public address, so on a LAN nobody would. Its own
/// timers for republishing are off: they remember every key that anybody ever put, without bound; we republish and
/// replicate ourselves. Members come into the routing table by us alone, once they are proved.
fn kademlia(peer: PeerId, names: &Names, shard: Shard, replication: NonZeroUsize) -> kad::Behaviour<Store> {
    let mut config = kad::Config::new(names.kad.clone());
    config
        .set_replication_factor(replication)
        .set_parallelism(PATHS)
        .disjoint_query_paths(true)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_record_filtering(kad::StoreInserts::Unfiltered)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_caching(kad::Caching::Disabled)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_publication_interval(None);
    let mut kad = kad::Behaviour::with_config(peer, Store { shard, stored: Vec::new(), own: peer }, config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Small-mesh parameters: most networks have fewer than twenty nodes. Records are signed by their members, so messages
/// carry neither author nor signature, and are known by the hash of their bytes.
fn gossip_config(names: &Names) -> Result<gossipsub::Config, &'static str> {
    gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(names.gossip.clone())
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| MessageId::new(&Sha256::digest(&message.data)))
        .mesh_n_low(2)
        .mesh_n(4)
        .mesh_n_high(8)
        .mesh_outbound_min(1)
        .heartbeat_initial_delay(Duration::from_secs(1))
        .heartbeat_interval(HEARTBEAT)
        // One record and its framing; control messages name at most a few hundred records of 32-byte ids.
        .max_transmit_size(16 * 1024)
        .max_ihave_messages_heartbeat(10)
        .max_control_messages_sent(512)
        .connection_handler_queue_len(512)
        .build()
        .map_err(|_| "the gossip parameters are in order: 1 <= 2 <= 4 <= 8")
}

/// Records put here between two looks: four keys of a hundred members.
const MAX_STORED: usize = 400;

/// Our shard, as kad sees it: every value is verified on its way in, providers are unknown.
pub(super) struct Store {
    pub(super) shard: Shard,
    /// What others have put here since somebody looked: news, when two networks have merged, long before it is gossiped.
    pub(super) stored: Vec<Arc<Verified<Record>>>,
    own: PeerId,
}

impl RecordStore for Store {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, kad::Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, kad::Record>> {
        let record = self.shard.get(key.as_ref()).filter(|record| !record.has_expired(unix_now()))?;
        Some(Cow::Owned(kad::Record::new(key.clone(), record.bytes().to_vec())))
    }

    /// What is marked as published by us is in the shard already; kad lets no other peer use that mark.
    fn put(&mut self, record: kad::Record) -> store::Result<()> {
        if record.publisher == Some(self.own) {
            return Ok(());
        }
        self.shard.put(record.key.as_ref(), &record.value, unix_now()).map_err(|refusal| {
            tracing::debug!(%refusal, "put refused");
            store::Error::ValueTooLarge
        })?;
        if self.stored.len() < MAX_STORED {
            self.stored.extend(self.shard.get(record.key.as_ref()).cloned());
        }
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.shard.remove(key.as_ref());
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> store::Result<()> {
        Err(store::Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// Unix seconds, now.
#[expect(clippy::disallowed_methods, reason = "records are dated in wall time, and this room is I/O")]
pub(super) fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What one peer says to another on a connection of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// Our record proves our membership; answer with as many records as you like, up to `want` and [`MAX_BATCH`].
    Record { want: u8, record: Vec<u8> },
    /// Are you there? Answered with no record.
    Ping,
    /// The digests of our ledger; answered with up to [`MAX_BATCH`] statements that we may lack.
    Ledger { buckets: Vec<u8> },
}

/// The answer: records or statements, as bytes.
pub(super) type Batch = Vec<Vec<u8>>;

/// A request is a kind, a number wanted and a record, or a kind, a zero and the digests of a ledger; an answer is a count and
/// records or statements; each is a length (two bytes, big endian) and its bytes. Lengths are checked before anything is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec;

const KIND_RECORD: u8 = 1;
const KIND_PING: u8 = 2;
const KIND_LEDGER: u8 = 3;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Hello;
    type Response = Batch;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Hello> {
        let mut head = [0; 2];
        io.read_exact(&mut head).await?;
        match head {
            [KIND_RECORD, want] => Ok(Hello::Record { want, record: read_record(io).await? }),
            [KIND_PING, 0] => Ok(Hello::Ping),
            [KIND_LEDGER, 0] => {
                let mut buckets = vec![0; BUCKETS_LEN];
                io.read_exact(&mut buckets).await?;
                Ok(Hello::Ledger { buckets })
            }
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> std::io::Result<Batch> {
        let mut count = [0; 1];
        io.read_exact(&mut count).await?;
        let count = usize::from(count[0]);
        if count > MAX_BATCH {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            records.push(read_record(io).await?);
        }
        Ok(records)
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        hello: Hello,
    ) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(4 + MAX_RECORD);
        match hello {
            Hello::Record { want, record } => {
                bytes.extend_from_slice(&[KIND_RECORD, want]);
                push_record(&mut bytes, &record);
            }
            Hello::Ping => bytes.extend_from_slice(&[KIND_PING, 0]),
            Hello::Ledger { buckets } => {
                bytes.extend_from_slice(&[KIND_LEDGER, 0]);
                bytes.extend_from_slice(&buckets);
            }
        }
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        batch: Batch,
    ) -> std::io::Result<()> {
        let mut bytes = vec![batch.len().min(MAX_BATCH) as u8];
        for record in batch.iter().take(MAX_BATCH) {
            push_record(&mut bytes, record);
        }
        io.write_all(&bytes).await
    }
}

async fn read_record<T: AsyncRead + Unpin + Send>(io: &mut T) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 2];
    io.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > MAX_RECORD {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut record = vec![0; len];
    io.read_exact(&mut record).await?;
    Ok(record)
}

fn push_record(bytes: &mut Vec<u8>, record: &[u8]) {
    bytes.extend_from_slice(&(record.len() as u16).to_be_bytes());
    bytes.extend_from_slice(record);
}

#[cfg(test)]
mod tests {
    use libp2p::futures::io::Cursor;
    use libp2p::request_response::Codec as _;

    use super::super::super::directory::{Limits, place, target};
    use super::*;
    use crate::identity::SigningKey;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");

    #[tokio::test]
    async fn hellos_survive_the_stream() {
        let ledger = Hello::Ledger { buckets: vec![5; BUCKETS_LEN] };
        for hello in [Hello::Ping, Hello::Record { want: 64, record: vec![7; MAX_RECORD] }, ledger] {
            let mut bytes = Cursor::new(Vec::new());
            Codec.write_request(&PROTOCOL, &mut bytes, hello.clone()).await.expect("memory takes it");
            bytes.set_position(0);
            assert_eq!(Codec.read_request(&PROTOCOL, &mut bytes).await.expect("our own bytes"), hello);
        }
        let batch = vec![vec![1; 5], vec![], vec![2; MAX_RECORD]];
        let mut bytes = Cursor::new(Vec::new());
        Codec.write_response(&PROTOCOL, &mut bytes, batch.clone()).await.expect("memory takes it");
        bytes.set_position(0);
        assert_eq!(Codec.read_response(&PROTOCOL, &mut bytes).await.expect("our own bytes"), batch);
    }

    #[tokio::test]
    async fn oversized_and_truncated_hellos_are_refused() {
        for bad in [
            &[KIND_RECORD, 0, 0xff, 0xff][..],
            &[KIND_RECORD, 0, 0, 9, 1],
            &[9, 9],
            &[KIND_PING],
            &[KIND_LEDGER, 0, 1],
            &[],
        ] {
            assert!(Codec.read_request(&PROTOCOL, &mut Cursor::new(bad)).await.is_err(), "{bad:?}");
        }
        for bad in [&[MAX_BATCH as u8 + 1][..], &[1], &[1, 0xff, 0xff], &[2, 0, 0, 0]] {
            assert!(Codec.read_response(&PROTOCOL, &mut Cursor::new(bad)).await.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn our_peer_id_is_that_of_libp2p_for_the_same_key() {
        for n in 0..20 {
            let key = SigningKey::from_seed(&[n; 32]);
            let keypair = identity::Keypair::ed25519_from_bytes(*key.seed()).expect("32 bytes are a seed");
            let theirs = keypair.public().to_peer_id();
            assert_eq!(theirs.to_bytes(), key.peer_id().to_multihash());
            assert_eq!(theirs.to_string(), key.peer_id().to_string());
            assert_eq!(kad::KBucketKey::from(theirs).hashed_bytes(), place(&key.peer_id()));
            assert_eq!(kad::KBucketKey::new(RecordKey::new(&[n; 32])).hashed_bytes(), target(&[n; 32]));
        }
    }

    #[test]
    fn kad_is_a_server_from_the_start_and_knows_no_providers() {
        let key = SigningKey::from_seed(&[3; 32]);
        let network = NetworkId::of_root(&key.peer_id());
        let shard = Shard::new(network, [0; 32], key.peer_id(), Limits::default());
        let keypair = identity::Keypair::ed25519_from_bytes(*key.seed()).expect("32 bytes are a seed");
        let k = NonZeroUsize::new(8).expect("not zero");
        let (_transport, client) = relay::client::new(keypair.public().to_peer_id());
        let names = Names::new(&network);
        let mut behaviour = Behaviour::new(&keypair, &names, shard, k, client, true).expect("sound parameters");
        assert_eq!(behaviour.kad.mode(), kad::Mode::Server);
        let provider = ProviderRecord::new(RecordKey::new(b"x"), PeerId::random(), vec![]);
        assert!(behaviour.kad.store_mut().add_provider(provider).is_err());
    }
}
