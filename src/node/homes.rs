//! Our home relays: who can be asked for us when we cannot be met. They stand in our record, so anybody finds them.
//!
//! Who needs none has none, and a LAN's records stay as short as they were. A home is kept as long as there is a direct
//! session with it: a record that changes with every round trip would be gossip about nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::dht::record::MAX_HOMES;
use crate::identity::{PeerId, Roles};

use super::Node;
use super::timers::Timer;

/// From news of relays to a new record: by then everybody who starts with us is there.
const SETTLE: Duration = Duration::from_secs(5);

/// Between two records that differ in the home relays alone.
const PACE: Duration = Duration::from_secs(30);

impl Node {
    /// Something has changed that our home relays depend on.
    pub(super) fn reconsider_homes(&mut self, now: Instant) {
        let due = self.own.homes_at.map_or(now + SETTLE, |last| (last + PACE).max(now + SETTLE));
        self.timers.set_if_earlier(Timer::Homes, due);
    }

    /// Chooses our home relays, and says so if they are others.
    pub(super) fn choose_homes(&mut self, now: Instant) {
        let homes = self.best_homes();
        if homes != self.own.homes {
            tracing::debug!(count = homes.len(), "other home relays");
            (self.own.homes, self.own.homes_at) = (homes, Some(now));
            self.renew_record(now);
        }
    }

    /// Those we have, if they are still there; then those that have the role for it; then those by whom we reach most others, the
    /// nearest first. Two on one machine die together.
    fn best_homes(&self) -> Vec<PeerId> {
        let through = self.circuits_by_relay();
        if self.own.reflexive.is_empty() && through.is_empty() {
            return Vec::new();
        }
        let mut direct: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.is_direct() && self.roster.get(&peer.id).is_some())
            .map(|peer| {
                let uses = through.get(&peer.id).copied().unwrap_or(0);
                let rtt = peer.paths.rtt().unwrap_or(Duration::MAX);
                let meant = self.roster.get(&peer.id).is_some_and(|it| it.membership().roles().contains(Roles::RELAY));
                (!self.own.homes.contains(&peer.id), !meant, std::cmp::Reverse(uses), rtt, peer.id)
            })
            .collect();
        direct.sort_unstable();
        let mut machines = BTreeSet::new();
        let place = |id: &PeerId| self.peers.get(id).and_then(|peer| peer.paths.primary()).map(|at| at.ip());
        let homes = direct.into_iter().map(|(.., id)| id).filter(|id| machines.insert(place(id)));
        let mut homes: Vec<_> = homes.take(MAX_HOMES).collect();
        homes.sort_unstable();
        homes
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
