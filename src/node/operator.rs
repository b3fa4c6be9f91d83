//! What an operator asks: status, peers, stations, lookups, pings.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::dht::{self, LookupKey, Record, Verified};
use crate::identity::PeerId;
use crate::session::transport::Quantum;
use crate::wire::Message;
use crate::wire::relay::channel_behind;
use crate::wire::socket::split;
use crate::wire::stream::number_behind;

use super::Node;
use super::command::{CommandId, ForwardingInfo, LookupInfo, PeerInfo, PongInfo, Reply, StationInfo, Status};
use super::event::Event;
use super::frames::LOOKUP_PATIENCE;
use super::streams::with_tls;
use super::timers::Timer;

/// How long a ping may take, handshake included.
pub(super) const PING_PATIENCE: Duration = Duration::from_secs(5);

/// Operator's questions under way; a script that asks faster than the network answers is told so.
pub(super) const MAX_UNDER_WAY: usize = 256;

/// Pings under way, by nonce.
#[derive(Default)]
pub(super) struct Pings(BTreeMap<u64, Ping>);

struct Ping {
    command: CommandId,
    peer: PeerId,
    /// `None` while there is no session.
    sent: Option<Instant>,
    until: Instant,
}

impl Node {
    /// Whether an operator waits for an answer of this peer.
    pub(super) fn is_pinged(&self, id: PeerId) -> bool {
        self.pings.0.values().any(|ping| ping.peer == id) || self.is_path_pinged(id)
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        Status {
            network: self.config.network.name.to_string(),
            network_id: self.network.to_string(),
            name: self.own.record().map_or_else(String::new, |record| record.name().to_string()),
            peer: self.own.peer.to_string(),
            mac: self.own.mac.to_string(),
            ipv4: self.own.ipv4.address,
            ipv6: self.own.ipv6,
            device: String::new(),
            forwarding: ForwardingInfo::default(),
            endpoints: with_tls(&self.own.endpoints, self.config.tls),
            seen_at: self.own.reflexive.clone(),
            mapped: self.own.mapped.believed().to_vec(),
            mappings: Vec::new(),
            mapping: self.mapping().name().to_owned(),
            roles: self.own.record().map_or_else(Vec::new, roles_of),
            expelled: self.ledger.expelled(),
            members: self.roster.iter().filter(|record| record.peer() != self.own.peer).count(),
            connected: self.peers.values().filter(|peer| peer.current.is_some()).count(),
            uptime: now.saturating_duration_since(self.clock.start).as_secs(),
            carries: self.carried_pairs(),
            directory_connections: self.standing.connections,
            shard_records: self.standing.shard_records,
            homes: self.own.homes.iter().map(|home| self.name_of(*home)).collect(),
            directory_circuits: self.standing.circuits,
            directory_homes: self.standing.reserved,
            directory_carries: self.standing.carried,
            drops: self
                .counters
                .iter()
                .map(|(reason, count)| (reason.name().to_owned(), count))
                .chain(self.standing.refused.iter().map(|(name, count)| ((*name).to_owned(), *count)))
                .collect(),
        }
    }

    pub(super) fn peer_infos(&self, now: Instant) -> Vec<PeerInfo> {
        let members = self.roster.iter().filter(|record| record.peer() != self.own.peer);
        let mut infos: Vec<_> = members.map(|record| self.peer_info(record, now)).collect();
        infos.sort_by(|a, b| (&a.name, &a.peer).cmp(&(&b.name, &b.peer)));
        infos
    }

    pub(super) fn peer_info(&self, record: &Verified<Record>, now: Instant) -> PeerInfo {
        let peer = self.peers.get(&record.peer());
        let session = peer.and_then(|peer| peer.current.as_ref());
        let path = match peer {
            Some(peer) if peer.stream().is_some() => "stream",
            Some(peer) if peer.is_direct() => "direct",
            Some(peer) if peer.current.is_some() => "relayed",
            Some(peer) if peer.is_promising() => "idle",
            Some(_) | None => "none",
        };
        PeerInfo {
            name: record.name().to_string(),
            peer: record.peer().to_string(),
            mac: record.mac.to_string(),
            ipv4: record.ipv4.address,
            ipv6: record.ipv6,
            roles: roles_of(record),
            path: path.to_owned(),
            endpoint: session.and(peer).and_then(|peer| peer.paths.primary()).map(|primary| self.underlay(primary)),
            via: self.relay_of(record.peer()).map(|(relay, _)| self.name_of(relay)),
            relays: self.relay_of(record.peer()).map_or(0, |(_, relays)| relays),
            rtt_ms: session.and(peer).and_then(|peer| peer.paths.rtt()).map(milliseconds),
            path_mtu: session.and(peer).and_then(super::Peer::path_mtu),
            cipher: session.map(|session| session.cipher().name().to_owned()),
            post_quantum: session.is_some_and(|session| session.quantum() == Quantum::Mixed),
            last_heard: peer.and_then(|peer| peer.last_heard()).map(|at| now.saturating_duration_since(at).as_secs()),
        }
    }

    pub(super) fn stations(&self) -> Vec<StationInfo> {
        let mut stations: Vec<_> = self
            .roster
            .iter()
            .map(|record| StationInfo {
                mac: record.mac.to_string(),
                peer: record.peer().to_string(),
                name: record.name().to_string(),
                by: if record.peer() == self.own.peer { "own" } else { "record" }.to_owned(),
            })
            .collect();
        stations.extend(self.bridging.fdb.places().map(|(mac, at)| StationInfo {
            mac: mac.to_string(),
            peer: at.to_string(),
            name: self.name_of(at),
            by: "bridge".to_owned(),
        }));
        stations.sort_by(|a, b| a.mac.cmp(&b.mac));
        stations
    }

    pub(super) fn begin_lookup(&mut self, command: CommandId, text: &str, now: Instant) {
        let Some(key) = parse_key(text) else {
            let message = format!("`{text}` is no MAC, IP address or name");
            return self.reply(command, Reply::Error { message });
        };
        if self.frames.operator.len() >= MAX_UNDER_WAY {
            return self.reply(command, busy());
        }
        let id = self.frames.new_query();
        self.frames.operator.insert(id, (command, key.clone()));
        self.timers.set(Timer::Lookup(id), now + LOOKUP_PATIENCE);
        self.events.push_back(Event::Directory(dht::Command::Lookup { id, key }));
    }

    pub(super) fn answer_lookup(
        &mut self,
        command: CommandId,
        key: &LookupKey,
        record: &Verified<Record>,
        holders: &[PeerId],
    ) {
        let name_of = |id: &PeerId| self.roster.get(id).map_or_else(|| id.to_string(), |held| held.name().to_string());
        let mut shards: Vec<_> = holders.iter().map(name_of).collect();
        shards.sort();
        let info = LookupInfo {
            key: key.to_string(),
            name: record.name().to_string(),
            peer: record.peer().to_string(),
            mac: record.mac.to_string(),
            ipv4: record.ipv4.address,
            ipv6: record.ipv6,
            endpoints: record.endpoints.clone(),
            sequence: record.sequence,
            expires: record.expires,
            shards,
        };
        self.reply(command, Reply::Lookup(info));
    }

    pub(super) fn fail_lookup(&mut self, command: CommandId, key: &LookupKey) {
        let message = format!("the directory knows nothing of {key}");
        self.reply(command, Reply::Error { message });
    }

    pub(super) fn begin_ping(&mut self, command: CommandId, text: &str, now: Instant) {
        let peer = match self.member(text) {
            Ok(peer) => peer,
            Err(message) => return self.reply(command, Reply::Error { message }),
        };
        if self.pings.0.len() >= MAX_UNDER_WAY {
            return self.reply(command, busy());
        }
        let until = now + PING_PATIENCE;
        self.pings.0.insert(self.rng.next_u64(), Ping { command, peer, sent: None, until });
        self.timers.set_if_earlier(Timer::Pings, until);
        self.send_pings(peer, now);
        if self.peers.get(&peer).is_some_and(|entry| entry.current.is_none()) {
            self.initiate(peer, now);
        }
    }

    /// Sends the pings that waited for a session with `id`.
    pub(super) fn send_pings(&mut self, id: PeerId, now: Instant) {
        let waiting = self.pings.0.iter().filter(|(_, ping)| ping.peer == id && ping.sent.is_none());
        let nonces: Vec<_> = waiting.map(|(nonce, _)| *nonce).collect();
        for nonce in nonces {
            if self.send_message(id, &Message::Ping { nonce }, now)
                && let Some(ping) = self.pings.0.get_mut(&nonce)
            {
                ping.sent = Some(now);
            }
        }
        self.send_path_pings(id, now);
    }

    /// A pong: true if it answers an operator's ping.
    pub(super) fn answer_ping(
        &mut self,
        id: PeerId,
        nonce: u64,
        observed: SocketAddr,
        endpoint: SocketAddr,
        now: Instant,
    ) -> bool {
        let Some(ping) = self.pings.0.get(&nonce).filter(|ping| ping.peer == id) else { return false };
        let (command, Some(sent)) = (ping.command, ping.sent) else { return false };
        self.pings.0.remove(&nonce);
        let (name, endpoint) = (self.name_of(id), self.underlay(endpoint));
        let rtt_ms = milliseconds(now.saturating_duration_since(sent));
        self.reply(command, Reply::Pong(PongInfo { name, endpoint, rtt_ms, observed }));
        true
    }

    /// Where an endpoint is in the underlay, whatever our socket: at the relay, if it is a channel's.
    pub(super) fn underlay(&self, endpoint: SocketAddr) -> SocketAddr {
        let relay = channel_behind(&endpoint).and_then(|channel| self.via(channel)).map(|(relay, _)| relay);
        self.origin_of(relay.unwrap_or(endpoint))
    }

    /// Who is behind an endpoint, whatever our socket: the other end, if it is a stream's.
    pub(super) fn origin_of(&self, endpoint: SocketAddr) -> SocketAddr {
        let place = number_behind(&endpoint).and_then(|number| self.streams.place(number));
        place.unwrap_or_else(|| split(endpoint).1)
    }

    pub(super) fn name_of(&self, id: PeerId) -> String {
        self.roster.get(&id).map_or_else(|| id.to_string(), |record| record.name().to_string())
    }

    /// The pings of a peer end with an error.
    pub(super) fn fail_pings(&mut self, id: PeerId, why: &str) {
        self.end_pings(|ping| ping.peer == id, why);
    }

    pub(super) fn expire_pings(&mut self, now: Instant) {
        self.end_pings(|ping| ping.until <= now, "does not answer");
        self.expire_path_pings(now);
        if let Some(until) = self.pings.0.values().map(|ping| ping.until).min() {
            self.timers.set_if_earlier(Timer::Pings, until);
        }
    }

    fn end_pings(&mut self, ends: impl Fn(&Ping) -> bool, why: &str) {
        let ended: Vec<_> = self.pings.0.iter().filter(|(_, ping)| ends(ping)).map(|(nonce, _)| *nonce).collect();
        for nonce in ended {
            if let Some(ping) = self.pings.0.remove(&nonce) {
                let name = self.roster.get(&ping.peer).map_or_else(|| ping.peer.to_string(), |r| r.name().to_string());
                self.reply(ping.command, Reply::Error { message: format!("{name} {why}") });
            }
        }
    }

    /// The other member that `text` names, or what is wrong with it.
    pub(super) fn member(&self, text: &str) -> Result<PeerId, String> {
        match self.resolve(text) {
            Some(peer) if peer == self.own.peer => Err(format!("`{text}` is this node")),
            Some(peer) => Ok(peer),
            None => Err(format!("no member is called `{text}`; `meshd peers` lists them")),
        }
    }

    /// The member that `text` names: a peer id, a name, a MAC or an overlay address.
    pub(super) fn resolve(&self, text: &str) -> Option<PeerId> {
        if let Ok(peer) = text.parse::<PeerId>() {
            return (self.roster.get(&peer).is_some() || peer == self.own.peer).then_some(peer);
        }
        self.roster.find(&parse_key(text)?).map(Verified::peer)
    }
}

fn roles_of(record: &Verified<Record>) -> Vec<String> {
    record.membership().roles().names().map(str::to_owned).collect()
}

fn parse_key(text: &str) -> Option<LookupKey> {
    if let Ok(mac) = text.parse() {
        return Some(LookupKey::Mac(mac));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(LookupKey::Ip(address));
    }
    text.parse().ok().map(LookupKey::Name)
}

pub(super) fn busy() -> Reply {
    Reply::Error { message: "too many questions are under way; try again in a moment".to_owned() }
}

pub(super) fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
