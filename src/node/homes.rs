//! Our home relays: who can be asked for us when we cannot be met. They stand in our record, so anybody finds them, and serve
//! twice: they carry sessions (see [`super::relay`]), and the control network reaches us through them by circuits.
//!
//! A session may run through an opening made for UDP alone, so only the control network knows who lets others in by TCP: it
//! tells whom it has *met* ([`crate::dht::Met`]). Such members are the better homes, and of them those with a public endpoint:
//! a laptop on our own LAN lets us in too, but nobody from outside. So a record without homes says: everybody can knock here.
//!
//! Who needs none has none, and a LAN's records stay as short as they were. A home is kept as long as there is a direct
//! session with it: a record that changes with every round trip would be gossip about nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::dht::record::MAX_HOMES;
use crate::dht::{self, Met, Record, Verified};
use crate::identity::{PeerId, Roles};
use crate::wire::socket::is_local;

use super::Node;
use super::event::Event;
use super::peer::Peer;
use super::timers::Timer;

/// From news of relays to a new record: by then everybody who starts with us is there.
const SETTLE: Duration = Duration::from_secs(5);

/// Between two records that differ in the home relays alone.
const PACE: Duration = Duration::from_secs(30);

/// A member with a session and without a control connection for so long cannot be dialled by us, nor we by it: two tries of
/// TCP's, and time for both to notice that one of them was away.
const UNMET_FOR: Duration = Duration::from_secs(20);

/// How well a member serves as a home, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// It relays and lets everybody in by TCP: us, at a public endpoint, or it needs no homes itself.
    Public,
    /// It relays and let us in by TCP, on our own site perhaps.
    Local,
    /// There is a session. That may be an opening of UDP which we made together.
    Session,
}

impl Node {
    /// Something has changed that our home relays depend on.
    pub(super) fn reconsider_homes(&mut self, now: Instant) {
        let due = self.own.homes_at.map_or(now + SETTLE, |last| (last + PACE).max(now + SETTLE));
        self.timers.set_if_earlier(Timer::Homes, due);
    }

    /// The control network has met others than before.
    pub(super) fn handle_met(&mut self, met: Vec<Met>, now: Instant) {
        let met = met.into_iter().map(|met| (met.peer, met)).collect();
        if met != self.met {
            self.met = met;
            self.reconsider_homes(now);
        }
    }

    /// Chooses our home relays, and says so if they are others.
    pub(super) fn choose_homes(&mut self, now: Instant) {
        let homes = self.best_homes(now);
        if homes != self.own.homes {
            tracing::debug!(count = homes.len(), "other home relays");
            (self.own.homes, self.own.homes_at) = (homes, Some(now));
            self.events.push_back(Event::Directory(dht::Command::Homes(self.own.homes.clone())));
            self.renew_record(now);
        }
    }

    /// Those that others can reach first; of them those we have; then those that have the role for it; then those by whom we reach most
    /// others, the nearest first. Two on one machine die together.
    fn best_homes(&mut self, now: Instant) -> Vec<PeerId> {
        let through = self.circuits_by_relay();
        let unmet = self.is_unmet(now);
        let behind_nat = !self.own.reflexive.is_empty() && self.own.mapped.believed().is_empty();
        let without_udp =
            self.lacks_udp() || !self.met.is_empty() && self.peers.values().all(|peer| peer.current.is_none());
        if !behind_nat && through.is_empty() && !unmet && !without_udp {
            return Vec::new();
        }
        let mut found: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.is_direct() || self.met.get(&peer.id).is_some_and(|met| met.relays))
            .filter(|peer| self.roster.get(&peer.id).is_some())
            .map(|peer| {
                let uses = through.get(&peer.id).copied().unwrap_or(0);
                let rtt = peer.paths.rtt().unwrap_or(Duration::MAX);
                let kept = self.own.homes.contains(&peer.id);
                let meant = self.roster.get(&peer.id).is_some_and(|it| it.membership().roles().contains(Roles::RELAY));
                (self.reach_of(peer), !kept, !meant, std::cmp::Reverse(uses), rtt, peer.id)
            })
            .collect();
        found.sort_unstable();
        let mut machines = BTreeSet::new();
        let place = |id: &PeerId| {
            let met = || self.met.get(id).and_then(|met| met.at);
            let path = self.peers.get(id).and_then(|peer| peer.paths.primary()).map(|at| self.origin_of(at));
            path.or_else(met).map(|at| at.ip())
        };
        let homes = found.into_iter().map(|(.., id)| id).filter(|id| machines.insert(place(id)));
        let mut homes: Vec<_> = homes.take(MAX_HOMES).collect();
        homes.sort_unstable();
        homes
    }

    fn reach_of(&self, peer: &Peer) -> Reach {
        let Some(met) = self.met.get(&peer.id).filter(|met| met.relays) else { return Reach::Session };
        let is_public = |at: &SocketAddr| !is_local(at.ip());
        // It may have come to us on our own LAN: then its record tells whether it needs homes itself.
        let open = |record: &Verified<Record>| record.homes.is_empty() && record.endpoints.iter().any(is_public);
        if met.at.as_ref().is_some_and(is_public) || self.roster.get(&peer.id).is_some_and(open) {
            Reach::Public
        } else if met.at.is_some() {
            Reach::Local
        } else {
            Reach::Session
        }
    }

    /// Whether there is a member with whom we speak and whom neither we can dial nor it us: firewalls are in between, though
    /// nobody sees a NAT.
    fn is_unmet(&mut self, now: Instant) -> bool {
        let stranger = |peer: &Peer| peer.is_direct() && !self.met.contains_key(&peer.id);
        let known = |peer: &Peer| self.roster.get(&peer.id).is_some();
        if self.met.is_empty() || !self.is_warm() || !self.peers.values().any(|peer| stranger(peer) && known(peer)) {
            self.own.unmet = None;
            return false;
        }
        let due = *self.own.unmet.get_or_insert(now) + UNMET_FOR;
        if now < due {
            self.timers.set_if_earlier(Timer::Homes, due);
        }
        now >= due
    }

    /// The home relays of a member, by its record.
    pub(super) fn homes_of(&self, id: PeerId) -> impl Iterator<Item = PeerId> {
        self.roster.get(&id).map(|record| record.homes.clone()).into_iter().flatten()
    }

    /// Meets the home relays of a member that we want: in a large network there is no session with everybody.
    pub(super) fn meet_homes_of(&mut self, id: PeerId, now: Instant) {
        let strange = |home: &PeerId| self.peers.get(home).is_some_and(|home| home.current.is_none());
        for home in self.homes_of(id).filter(strange).collect::<Vec<_>>() {
            self.initiate(home, now);
        }
    }
}
