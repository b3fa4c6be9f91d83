//! The model's control connections: by TCP where the topology lets it, else by circuits through home relays.
//!
//! As in the real swarm: a member that its record's homes let through is reached by asking these; a relay lets through whoever has
//! reserved there, which takes a connection without a relay; such a connection takes the place of a circuit; a circuit ends with
//! what it rests on; whatever ends or fails is tried again, ever more rarely.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::dht::Met;
use meshd::identity::PeerId;

use crate::directory::{Agenda, CONNECT_DELAY, Ground, Model, Step};
use crate::host::HostId;

/// From a first connection to the put that follows it: connections come in bunches.
const PUT_AFTER_CONNECT: Duration = Duration::from_secs(1);

/// The wait before the second dial; it doubles up to the longest. After so many failures it is given up.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const MAX_FAILURES: u32 = 15;

/// One end of a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The other one let us in, there.
    Dialled(SocketAddr),
    /// It came to us.
    Accepted,
    /// Through this relay.
    Circuit(HostId),
}

impl Link {
    pub(crate) fn is_met(self) -> bool {
        !matches!(self, Self::Circuit(_))
    }
}

/// A member whose node wants a connection.
#[derive(Debug, Default)]
pub(crate) struct Target {
    endpoints: Vec<SocketAddr>,
    homes: Vec<PeerId>,
    failures: u32,
}

impl Model {
    /// A node says where a member may be.
    pub(crate) fn aim(
        &mut self,
        host: HostId,
        peer: PeerId,
        endpoints: Vec<SocketAddr>,
        homes: Vec<PeerId>,
        agenda: &mut Agenda,
    ) {
        let Some(realm) = self.members.get(&host).map(|member| member.realm) else { return };
        let linked = self.host_of(peer, realm).and_then(|other| self.links_between(host, other));
        let Some(member) = self.members.get_mut(&host) else { return };
        let target = member.targets.entry(peer).or_default();
        let moved = endpoints.iter().any(|at| !target.endpoints.contains(at));
        let moved = moved || !homes.is_empty() && homes != target.homes;
        target.endpoints.retain(|at| !endpoints.contains(at));
        target.endpoints.splice(0..0, endpoints);
        if !homes.is_empty() {
            target.homes = homes;
        }
        if linked.is_some_and(Link::is_met) || linked.is_some() && !moved {
            return;
        }
        target.failures = 0;
        let (low, high) = CONNECT_DELAY;
        let step = Step::Connect(host, member.life, peer, 0);
        agenda.steps.push((self.chance.between(low, high), step));
    }

    /// A dial ends: with a connection, or with another dial later.
    pub(crate) fn connect(&mut self, host: HostId, peer: PeerId, nth: u32, ground: Ground<'_>, agenda: &mut Agenda) {
        let Some(member) = self.members.get(&host) else { return };
        let (realm, life) = (member.realm, member.life);
        let Some(target) = member.targets.get(&peer).filter(|target| target.failures == nth) else { return };
        let other = self.host_of(peer, realm);
        let link = other.and_then(|other| self.links_between(host, other));
        if link.is_some_and(Link::is_met) {
            return;
        }
        let at = target
            .endpoints
            .iter()
            .copied()
            .find(|at| other.is_some_and(|other| self.lets_in(host, other, *at, ground)));
        if let (Some(other), Some(at)) = (other, at) {
            return self.link(host, other, Link::Dialled(at), ground, agenda);
        }
        if link.is_some() {
            return;
        }
        let relays = target.homes.iter().filter_map(|home| self.host_of(*home, realm)).filter(|relay| *relay != host);
        let relays: Vec<_> =
            relays.filter(|relay| other.is_some_and(|other| self.has_reserved(other, *relay))).collect();
        for relay in relays {
            let met = self.links_between(host, relay).is_some_and(Link::is_met);
            if let Some(at) = self.door(host, relay, ground).filter(|_| !met) {
                self.link(host, relay, Link::Dialled(at), ground, agenda);
            } else if !met {
                continue;
            }
            if let Some(other) = other {
                return self.link(host, other, Link::Circuit(relay), ground, agenda);
            }
        }
        self.dial_again(host, life, peer, agenda);
    }

    fn dial_again(&mut self, host: HostId, life: u32, peer: PeerId, agenda: &mut Agenda) {
        let Some(member) = self.members.get_mut(&host) else { return };
        let Some(target) = member.targets.get_mut(&peer) else { return };
        target.failures += 1;
        let failures = target.failures;
        if failures >= MAX_FAILURES {
            member.targets.remove(&peer);
            return;
        }
        let wait = (FIRST_RETRY * (1 << failures.min(10))).min(LONGEST_RETRY);
        let wait = self.chance.between(wait * 3 / 4, wait * 5 / 4);
        agenda.steps.push((wait, Step::Connect(host, life, peer, failures)));
    }

    fn link(&mut self, host: HostId, other: HostId, link: Link, ground: Ground<'_>, agenda: &mut Agenda) {
        if self.expels(host, other) || self.expels(other, host) {
            return;
        }
        let is_new = self.links_between(host, other).is_none();
        let back = if link.is_met() { Link::Accepted } else { link };
        for (one, two, link) in [(host, other, link), (other, host, back)] {
            let Some(member) = self.members.get_mut(&one) else { continue };
            let before = member.links.insert(two, link);
            self.standing_changed(one, agenda);
            let Some(member) = self.members.get_mut(&one).filter(|_| before.is_none()) else { continue };
            if !member.put_due && member.own.is_some() {
                member.put_due = true;
                agenda.steps.push((PUT_AFTER_CONNECT, Step::Put(one, member.life)));
            }
            self.say_hello(one, two, ground.unix, agenda);
        }
        if is_new {
            self.compare(host, other, agenda);
        }
    }

    /// A connection ends. Who wanted it dials again.
    pub(crate) fn unlink(&mut self, host: HostId, other: HostId, agenda: &mut Agenda) {
        for (one, two) in [(host, other), (other, host)] {
            let lost = self.members.get(&two).map(|member| member.peer);
            let Some(member) = self.members.get_mut(&one) else { continue };
            member.links.remove(&two);
            if member.links.is_empty() {
                member.wanted_batches = crate::directory::WANTED_BATCHES;
            }
            let target = lost.and_then(|lost| Some((lost, member.targets.get_mut(&lost)?)));
            if let Some((lost, target)) = target {
                target.failures = 0;
                agenda.steps.push((FIRST_RETRY, Step::Connect(one, member.life, lost, 0)));
            }
            self.standing_changed(one, agenda);
        }
    }

    /// Ends the circuits that rest on nothing any more.
    pub(crate) fn end_circuits(&mut self, agenda: &mut Agenda) {
        let stands = |a: HostId, b: HostId, relay: HostId| {
            let met = |end| self.links_between(end, relay).is_some_and(Link::is_met);
            met(a) && met(b) && (self.has_reserved(a, relay) || self.has_reserved(b, relay))
        };
        let mut ended = Vec::new();
        for (&host, member) in &self.members {
            let circuits = member.links.iter().filter_map(|(other, link)| match link {
                Link::Circuit(relay) => Some((*other, *relay)),
                Link::Dialled(_) | Link::Accepted => None,
            });
            let fallen = circuits.filter(|(other, relay)| host < *other && !stands(host, *other, *relay));
            ended.extend(fallen.map(|(other, _)| (host, other)));
        }
        for (host, other) in ended {
            self.unlink(host, other, agenda);
        }
    }

    /// Whether a connection still has its way.
    pub(crate) fn is_up(&self, host: HostId, other: HostId, ground: Ground<'_>) -> bool {
        let dialled = |from, to| self.dialled(from, to).is_some_and(|at| self.lets_in(from, to, at, ground));
        match self.links_between(host, other) {
            Some(Link::Circuit(relay)) => self.is_up(host, relay, ground) && self.is_up(other, relay, ground),
            Some(Link::Dialled(_) | Link::Accepted) => {
                ground.topology.connects(host, other) || dialled(host, other) || dialled(other, host)
            }
            None => false,
        }
    }

    /// Whether `host` has a connection to `other`, or could make one.
    pub(crate) fn reaches(&self, host: HostId, other: HostId, ground: Ground<'_>) -> bool {
        let met = |relay: &HostId| self.links_between(host, *relay).is_some_and(Link::is_met);
        self.links_between(host, other).is_some()
            || self.door(host, other, ground).is_some()
            || self.reservations(other).any(|relay| met(&relay) || self.door(host, relay, ground).is_some())
    }

    /// Whom a host has met, and where they let it in.
    pub(crate) fn met(&self, host: HostId) -> impl Iterator<Item = Met> {
        let links = self.members.get(&host).into_iter().flat_map(|member| &member.links);
        links.filter(|(_, link)| link.is_met()).filter_map(move |(other, _)| {
            let member = self.members.get(other)?;
            Some(Met { peer: member.peer, at: self.dialled(host, *other), relays: member.serves })
        })
    }

    /// The home relays that let others through to a host.
    pub(crate) fn reservations(&self, host: HostId) -> impl Iterator<Item = HostId> {
        let homes = self.members.get(&host).map(|member| (member.realm, member.homes.clone()));
        let homes = homes.into_iter().flat_map(|(realm, homes)| homes.into_iter().map(move |home| (realm, home)));
        homes.filter_map(|(realm, home)| self.host_of(home, realm)).filter(move |relay| self.has_reserved(host, *relay))
    }

    fn has_reserved(&self, host: HostId, relay: HostId) -> bool {
        let (Some(member), Some(at)) = (self.members.get(&host), self.members.get(&relay)) else { return false };
        at.serves && member.homes.contains(&at.peer) && self.links_between(host, relay).is_some_and(Link::is_met)
    }

    /// An endpoint at which `other` lets `host` in.
    fn door(&self, host: HostId, other: HostId, ground: Ground<'_>) -> Option<SocketAddr> {
        let listening = self.members.get(&other)?.listening.iter();
        listening.copied().find(|at| self.lets_in(host, other, *at, ground))
    }

    fn lets_in(&self, host: HostId, other: HostId, at: SocketAddr, ground: Ground<'_>) -> bool {
        self.members.get(&other).is_some_and(|member| member.listening.contains(&at))
            && ground.topology.dial(host, at, ground.now) == Some(other)
    }

    fn links_between(&self, host: HostId, other: HostId) -> Option<Link> {
        self.members.get(&host)?.links.get(&other).copied()
    }

    fn dialled(&self, host: HostId, other: HostId) -> Option<SocketAddr> {
        if let Some(Link::Dialled(at)) = self.links_between(host, other) { Some(at) } else { None }
    }

    fn host_of(&self, peer: PeerId, realm: [u8; 32]) -> Option<HostId> {
        let is_it = |(_, member): &(&HostId, &crate::directory::Member)| member.peer == peer && member.realm == realm;
        self.members.iter().find(is_it).map(|(host, _)| *host)
    }
}
