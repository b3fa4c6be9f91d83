//! What a test does with a world, in the words of the test.

use std::time::Duration;

use meshd::identity::Contact;
use meshd::node::command::PeerInfo;
use meshd::node::{Command, CommandId, Reply};
use meshd::wire::{Counters, DropReason};

use crate::host::HostId;
use crate::link::Conditions;
use crate::oracle;
use crate::station::{Conversation, MIN_FRAME, Said};
use crate::topology::SegmentId;
use crate::world::World;

/// How finely [`World::wait_for`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// From ping to ping when a test waits for the first answer: a person at a keyboard would be slower.
const IMPATIENT: Duration = Duration::from_millis(50);

impl World {
    /// A switch without anybody on it.
    pub fn switch(&mut self) -> SegmentId {
        self.topology.add_segment(true, Conditions::LAN)
    }

    /// An Internet: everybody reaches everybody, nobody is heard by multicast.
    pub fn internet(&mut self) -> SegmentId {
        self.topology.add_segment(false, Conditions::WAN)
    }

    /// `count` laptops of the home network on one segment, not started.
    pub fn laptops(&mut self, count: usize, segment: SegmentId) -> Vec<HostId> {
        let home = self.home().clone();
        (0..count)
            .map(|_| {
                let name = format!("laptop-{}", self.hosts.len());
                self.add_host(&name, &home, &[segment])
            })
            .collect()
    }

    /// A switch with `count` laptops, all started at once.
    pub fn lan(&mut self, count: usize) -> (SegmentId, Vec<HostId>) {
        let lan = self.switch();
        let laptops = self.laptops(count, lan);
        for laptop in &laptops {
            self.start(*laptop);
        }
        (lan, laptops)
    }

    /// Runs for a while.
    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now() + span);
    }

    /// Runs until `holds`, at most for `limit`; how long it took.
    pub fn wait_for(&mut self, limit: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> Option<Duration> {
        let start = self.now();
        while !holds(self) {
            if self.now() >= start + limit {
                return None;
            }
            self.run_for(LOOK_EVERY);
        }
        Some(self.now() - start)
    }

    /// Runs until all who can be connected are, at most for `limit`; how long it took.
    ///
    /// # Panics
    /// With the list of pairs that are not, if the limit passes.
    pub fn settle_within(&mut self, limit: Duration) -> Duration {
        match self.wait_for(limit, |world| oracle::faults(world).is_empty()) {
            Some(took) => took,
            None => panic!("not everybody is connected after {limit:?}:\n{}", oracle::faults(self).join("\n")),
        }
    }

    /// Pings from one to another for `span`.
    pub fn ping(&mut self, from: HostId, to: HostId, every: Duration, span: Duration) -> usize {
        let until = self.now() + span;
        self.converse(Conversation::new(from, to, every, until, MIN_FRAME), Duration::ZERO)
    }

    /// Pings between all of `hosts`, both ways, for `span`; each starts at its own moment of the interval.
    pub fn ping_all(&mut self, hosts: &[HostId], every: Duration, span: Duration) -> Vec<usize> {
        let until = self.now() + span;
        let mut started = Vec::new();
        let pairs = (hosts.len() * hosts.len()).max(1) as u32;
        for &from in hosts {
            for &to in hosts.iter().filter(|to| **to != from) {
                let after = every * started.len() as u32 / pairs;
                started.push(self.converse(Conversation::new(from, to, every, until, MIN_FRAME), after));
            }
        }
        started
    }

    /// One conversation, with what has waited too long counted.
    pub fn conversation(&mut self, index: usize) -> &Conversation {
        let now = self.now();
        self.conversations[index].settle(now);
        &self.conversations[index]
    }

    /// Pings impatiently until the first answer; how long it took.
    pub fn first_answer(&mut self, from: HostId, to: HostId, limit: Duration) -> Option<Duration> {
        let index = self.ping(from, to, IMPATIENT, limit);
        let took = self.wait_for(limit, |world| world.conversations[index].answered > 0);
        self.conversations[index].until = self.now();
        took
    }

    /// Says something to everybody: a broadcast frame. [`World::calls`] has who heard it.
    pub fn call(&mut self, from: HostId) -> usize {
        let id = self.calls.len();
        self.calls.push(std::collections::BTreeMap::new());
        let frame =
            Said::Call { id: id as u32 }.frame(self.host(from).station.mac, meshd::identity::Mac::BROADCAST, MIN_FRAME);
        self.send_frame(from, &frame);
        id
    }

    /// Asks a host's operator interface and runs until it answers.
    ///
    /// # Panics
    /// If it does not within 15 s, or the host does not run.
    pub fn ask(&mut self, host: HostId, command: Command) -> Reply {
        let id = CommandId(self.replies.len() as u64);
        self.drive(host, |process, _, now, output| process.command(id, command, now, output));
        let answered = self.wait_for(Duration::from_secs(15), |world| world.replies.contains_key(&id));
        assert!(answered.is_some(), "{} does not answer its operator", self.host(host).name);
        self.replies[&id].clone()
    }

    /// What a host says of its peers.
    ///
    /// # Panics
    /// If it says something else.
    pub fn peers(&mut self, host: HostId) -> Vec<PeerInfo> {
        match self.ask(host, Command::Peers) {
            Reply::Peers { peers } => peers,
            reply @ (Reply::Status(_)
            | Reply::Stations { .. }
            | Reply::Lookup(_)
            | Reply::Pong(_)
            | Reply::Error { .. }) => panic!("peers? {reply:?}"),
        }
    }

    /// Tells a newcomer, as an invite does, where `contacts` are.
    pub fn introduce(&mut self, newcomer: HostId, contacts: &[HostId]) {
        let contacts = contacts
            .iter()
            .map(|&contact| Contact {
                peer: self.host(contact).peer,
                noise: self.host(contact).config.key.noise_secret().public(),
                endpoints: self
                    .topology
                    .addresses(contact)
                    .into_iter()
                    .map(|ip| (ip, crate::world::PORT).into())
                    .collect(),
            })
            .collect();
        self.host_mut(newcomer).config.contacts = contacts;
    }

    /// What a host dropped, node and forwarder together.
    pub fn counters(&self, host: HostId) -> Counters {
        self.host(host).process.as_ref().map(crate::host::Process::counters).unwrap_or_default()
    }

    /// How often a host dropped something for `reason`.
    pub fn dropped(&self, host: HostId, reason: DropReason) -> u64 {
        self.counters(host).get(reason)
    }

    /// Every drop of every running host, by name: for failure messages.
    pub fn drops(&self) -> String {
        let mut total = Counters::default();
        for host in self.hosts() {
            total.add(&self.counters(host));
        }
        total.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect::<Vec<_>>().join(", ")
    }

    /// Datagrams that one host sent to another.
    pub fn datagrams(&self, from: HostId, to: HostId) -> u64 {
        self.sent.get(&(from, to)).map_or(0, |sent| sent.0)
    }
}
