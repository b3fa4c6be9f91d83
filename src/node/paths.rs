//! Round trips over each path to a member, for an operator.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::switch::seal_message;
use crate::wire::Message;
use crate::wire::relay::channel_behind;
use crate::wire::socket::split;

use super::Node;
use super::command::{CommandId, PathPongInfo, PathPongsInfo, Reply};
use super::operator::{MAX_UNDER_WAY, PING_PATIENCE, busy, milliseconds};
use super::timers::Timer;

/// How long the slowest path may take: a satellite's round trip through a relay. Who wants a second round waits as long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Questions under way.
#[derive(Default)]
pub(super) struct PathPings(Vec<PathPing>);

struct PathPing {
    command: CommandId,
    peer: PeerId,
    until: Instant,
    /// Empty while there is no session.
    asked: Vec<Asked>,
}

struct Asked {
    path: SocketAddr,
    /// None if it was not.
    nonce: Option<u64>,
    sent: Instant,
    rtt: Option<Duration>,
}

impl Node {
    pub(super) fn begin_path_ping(&mut self, command: CommandId, text: &str, now: Instant) {
        let peer = match self.member(text) {
            Ok(peer) => peer,
            Err(message) => return self.reply(command, Reply::Error { message }),
        };
        if self.path_pings.0.len() >= MAX_UNDER_WAY {
            return self.reply(command, busy());
        }
        self.path_pings.0.push(PathPing { command, peer, until: now + PING_PATIENCE, asked: Vec::new() });
        self.send_path_pings(peer, now);
        self.timers.set_if_earlier(Timer::Pings, now + PING_PATIENCE);
        if self.peers.get(&peer).is_some_and(|entry| entry.current.is_none()) {
            self.initiate(peer, now);
        }
    }

    /// Whether an operator waits for a session with this peer.
    pub(super) fn is_path_pinged(&self, id: PeerId) -> bool {
        self.path_pings.0.iter().any(|ping| ping.peer == id)
    }

    /// Asks over each path for whom a session was missing.
    pub(super) fn send_path_pings(&mut self, id: PeerId, now: Instant) {
        let mut waiting = std::mem::take(&mut self.path_pings.0);
        for ping in waiting.iter_mut().filter(|ping| ping.peer == id && ping.asked.is_empty()) {
            ping.asked = self.ask_all_paths(id, now);
            if !ping.asked.is_empty() {
                ping.until = now + PATIENCE;
                self.timers.set_if_earlier(Timer::Pings, ping.until);
            }
        }
        self.path_pings.0 = waiting;
    }

    fn ask_all_paths(&mut self, id: PeerId, now: Instant) -> Vec<Asked> {
        let Some(peer) = self.peers.get(&id) else { return Vec::new() };
        let Some(transport) = peer.current.clone() else { return Vec::new() };
        let (direct, candidates) = (peer.is_direct(), peer.paths.candidates());
        let mut all = Vec::new();
        for candidate in candidates {
            let path = candidate.endpoint;
            if self.leads_back(&split(path).1) || self.place(path).is_none() {
                continue;
            }
            // Where we speak through a relay, a lone knock on any other door only spoils the next one together.
            let nonce = (direct || channel_behind(&path).is_some() || candidate.answered.is_some())
                .then(|| self.rng.next_u64());
            if let Some(nonce) = nonce
                && let Some(bytes) = seal_message(&transport, &Message::Ping { nonce }, now)
            {
                self.approach(id, path, &bytes, now);
            }
            all.push(Asked { path, nonce, sent: now, rtt: None });
        }
        all
    }

    /// A pong: true if it answers one of these.
    pub(super) fn answer_path_ping(&mut self, id: PeerId, nonce: u64, now: Instant) -> bool {
        let pings = self.path_pings.0.iter_mut().filter(|ping| ping.peer == id);
        let asked = pings.flat_map(|ping| &mut ping.asked).find(|asked| asked.nonce == Some(nonce));
        let Some(asked) = asked else { return false };
        asked.rtt.get_or_insert(now.saturating_duration_since(asked.sent));
        self.expire_path_pings(now);
        true
    }

    /// Ends those that are over: all have answered, or the time is up.
    pub(super) fn expire_path_pings(&mut self, now: Instant) {
        let over = |ping: &mut PathPing| {
            let waits = ping.asked.iter().any(|asked| asked.nonce.is_some() && asked.rtt.is_none());
            ping.until <= now || !ping.asked.is_empty() && !waits
        };
        let ended: Vec<_> = self.path_pings.0.extract_if(.., over).collect();
        for PathPing { command, peer, asked, .. } in ended {
            let name = self.name_of(peer);
            let primary = self.peers.get(&peer).and_then(|peer| peer.paths.primary());
            let paths: Vec<_> = asked.iter().filter_map(|asked| self.path_pong(asked, primary)).collect();
            let reply = if asked.is_empty() {
                Reply::Error { message: format!("{name} does not answer; `meshd why {name}` says why") }
            } else {
                Reply::PathPongs(PathPongsInfo { name, paths })
            };
            self.reply(command, reply);
        }
        if let Some(until) = self.path_pings.0.iter().map(|ping| ping.until).min() {
            self.timers.set_if_earlier(Timer::Pings, until);
        }
    }

    fn path_pong(&self, asked: &Asked, primary: Option<SocketAddr>) -> Option<PathPongInfo> {
        Some(PathPongInfo {
            endpoint: self.place(asked.path)?,
            via: self.relay_at(asked.path),
            socket: Some(split(asked.path).0).filter(|number| *number != 0),
            in_use: Some(asked.path) == primary,
            tried: asked.nonce.is_some(),
            rtt_ms: asked.rtt.map(milliseconds),
        })
    }
}
