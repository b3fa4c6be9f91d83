//! What a test does with a world, in the words of the test.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::identity::Contact;
use meshd::node::command::PeerInfo;
use meshd::node::{Command, CommandId, Reply};
use meshd::switch::seal_message;
use meshd::wire::ethernet::FrameHead;
use meshd::wire::{Counters, DropReason, Message};

use crate::directory::Ground;
use crate::host::HostId;
use crate::link::Conditions;
use crate::nat::NatKind;
use crate::oracle;
use crate::station::{Conversation, MIN_FRAME, Said, Station};
use crate::topology::{BoxId, Prefix, SegmentId};
use crate::trace::fingerprint;
use crate::transit::TTL;
use crate::world::{Host, What, World};

/// How long the operating system takes to tell that a cable was pulled or plugged in.
const NETLINK_DELAY: Duration = Duration::from_millis(50);

/// How long a daemon takes to look at the wall clock after a sleep: until its next input.
const WALL_CLOCK_DELAY: Duration = Duration::from_secs(1);

/// How finely [`World::wait_for`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// From ping to ping when a test waits for the first answer: a person at a keyboard would be slower.
const IMPATIENT: Duration = Duration::from_millis(50);

impl Host {
    /// Who hears a frame that the node delivers: whoever it is for, and with a LAN behind the TAP everybody if that is nobody.
    pub(crate) fn stations_for(&mut self, frame: &[u8]) -> impl Iterator<Item = &mut Station> {
        let to = FrameHead::read(frame).map(|head| head.destination);
        let known = self.behind.iter().chain([&self.station]).any(|station| Some(station.mac) == to);
        let known = known && !self.behind.is_empty();
        let all = std::iter::once(&mut self.station).chain(&mut self.behind);
        all.filter(move |station| !known || Some(station.mac) == to)
    }
}

impl World {
    /// A switch without anybody on it.
    pub fn switch(&mut self) -> SegmentId {
        self.topology.add_segment(true, Conditions::LAN)
    }

    /// An Internet: everybody reaches everybody, nobody is heard by multicast.
    pub fn internet(&mut self) -> SegmentId {
        self.topology.add_segment(false, Conditions::WAN)
    }

    /// The Internet of IPv6, for those who have it.
    pub fn internet_of_ipv6(&mut self) -> SegmentId {
        self.topology.add_internet_of_ipv6(Conditions::WAN)
    }

    /// A LAN behind a box that is a customer on `outside`: an Internet, or a carrier's network. Hosts are added to it
    /// as to any.
    pub fn home_behind(&mut self, kind: NatKind, outside: SegmentId) -> (SegmentId, BoxId) {
        let number = self.topology.segments() as u8;
        if self.topology.is_ipv6(outside) {
            assert!(!kind.translates, "nobody translates IPv6");
            let lan = self.topology.add_segment_at(Prefix::V6(number.into()), true, Conditions::LAN);
            return (lan, self.add_box(kind, lan, outside));
        }
        // Without translation addresses are public; these look like those kept for documentation (RFC 5737).
        let prefix = if kind.translates { [192, 168, number] } else { [203, 0, number] };
        self.home_at(prefix, kind, outside)
    }

    /// The same, with addresses of `prefix`/24, which other homes may have too.
    pub fn home_at(&mut self, prefix: [u8; 3], kind: NatKind, outside: SegmentId) -> (SegmentId, BoxId) {
        let lan = self.topology.add_segment_at(Prefix::V4(prefix), true, Conditions::LAN);
        (lan, self.add_box(kind, lan, outside))
    }

    /// A carrier's network behind its box (CGN): homes are customers on it as on an Internet. Addresses as RFC 6598
    /// has them.
    pub fn carrier(&mut self, kind: NatKind, internet: SegmentId) -> (SegmentId, BoxId) {
        let number = self.topology.segments() as u8;
        let access = self.topology.add_segment_at(Prefix::V4([100, 64, number]), false, Conditions::ACCESS);
        (access, self.add_box(kind, access, internet))
    }

    fn add_box(&mut self, kind: NatKind, inside: SegmentId, outside: SegmentId) -> BoxId {
        let chance = self.seed.chance(&format!("nat {}", self.topology.boxes().count()));
        self.topology.add_box(kind, inside, outside, chance)
    }

    /// The outside endpoints that a host's node has at the box of its LAN.
    pub fn outside_of(&self, host: HostId, id: BoxId) -> Vec<SocketAddr> {
        let addresses = self.topology.addresses(host).into_iter();
        let inside = addresses.map(|address| SocketAddr::new(address, crate::world::PORT));
        inside.flat_map(|inside| self.topology.nat(id).outside_of(inside, self.now())).collect()
    }

    /// `count` laptops of the home network on one segment, not started.
    pub fn laptops(&mut self, count: usize, segment: SegmentId) -> Vec<HostId> {
        (0..count).map(|_| self.laptop(&[segment])).collect()
    }

    /// A laptop of the home network with a cable in each of these, not started.
    pub fn laptop(&mut self, segments: &[SegmentId]) -> HostId {
        let (home, name) = (self.home().clone(), format!("laptop-{}", self.hosts.len()));
        self.add_host(&name, &home, segments)
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

    /// Starts a host `after` a while.
    pub fn start_after(&mut self, host: HostId, after: Duration) {
        self.push(after, What::Start(host));
    }

    /// Ends a host's process, with or without a goodbye.
    pub fn stop(&mut self, host: HostId, goodbye: bool) {
        if goodbye {
            self.drive(host, |process, _, now, output| process.shutdown(now, output));
        }
        self.note(host, format_args!("stop goodbye={goodbye}"));
        self.hosts[host.0].process = None;
        self.hang_all(host);
        let agenda = self.directory.stop(host);
        self.enter(agenda);
    }

    /// Forgets what a host kept on disk, besides its key.
    pub fn wipe(&mut self, host: HostId) {
        self.hosts[host.0].kept.clear();
        self.hosts[host.0].ledger.clear();
        self.hosts[host.0].secrets.clear();
    }

    /// Plugs a host's cables in or out; it notices soon.
    pub fn plug(&mut self, host: HostId, plugged: bool) {
        self.note(host, format_args!("plug {plugged}"));
        self.topology.plug(host, plugged);
        self.push(NETLINK_DELAY, What::Endpoints(host, self.hosts[host.0].life));
        self.review();
    }

    /// Plugs one cable of a host in or out; it notices soon.
    pub fn plug_into(&mut self, host: HostId, segment: SegmentId, plugged: bool) {
        self.note(host, format_args!("plug {segment:?} {plugged}"));
        self.topology.plug_into(host, segment, plugged);
        self.push(NETLINK_DELAY, What::Endpoints(host, self.hosts[host.0].life));
        self.review();
    }

    /// Plugs the outside of a box in or out; nobody behind it notices.
    pub fn plug_box(&mut self, id: BoxId, plugged: bool) {
        self.topology.plug_box(id, plugged);
        self.review();
    }

    /// Closes a laptop's lid: it does nothing, and its monotonic clock stands still.
    pub fn fall_asleep(&mut self, host: HostId) {
        self.note(host, format_args!("asleep"));
        self.hosts[host.0].asleep_since = Some(self.now());
    }

    /// Opens the lid: the process goes on where it was, and soon looks at the wall clock.
    pub fn wake_up(&mut self, id: HostId) {
        self.note(id, format_args!("awake"));
        let (now, host) = (self.now(), &mut self.hosts[id.0]);
        if let Some(since) = host.asleep_since.take() {
            host.slept += now - since;
        }
        host.wake_at = None;
        let life = host.life;
        self.schedule(id);
        self.push(WALL_CLOCK_DELAY, What::WallTime(id, life));
    }

    /// Stops a host's process (SIGSTOP): it does nothing, and its clocks go on.
    pub fn freeze(&mut self, host: HostId) {
        self.fall_asleep(host);
    }

    /// Lets it go on.
    pub fn thaw(&mut self, id: HostId) {
        self.note(id, format_args!("thaw"));
        let host = &mut self.hosts[id.0];
        (host.asleep_since, host.wake_at) = (None, None);
        let life = host.life;
        self.schedule(id);
        self.push(WALL_CLOCK_DELAY, What::WallTime(id, life));
    }

    /// A host's wall clock is set to be `ahead` of the true time, or behind it; seconds.
    pub fn set_clock(&mut self, id: HostId, ahead: i64) {
        self.hosts[id.0].ahead = ahead;
        self.push(WALL_CLOCK_DELAY, What::WallTime(id, self.hosts[id.0].life));
    }

    /// Cuts a segment into islands; no host notices.
    pub fn partition(&mut self, segment: SegmentId, islands: &[&[HostId]]) {
        self.topology.partition(segment, islands);
        self.review();
    }

    fn review(&mut self) {
        let agenda = self.directory.review(Ground { topology: &self.topology, now: self.now(), unix: self.unix_now() });
        self.enter(agenda);
    }

    /// From now on a host's node says of everybody that it is where `lie` says, and speaks with them nevertheless.
    pub fn make_liar(&mut self, host: HostId, lie: fn(SocketAddr) -> SocketAddr) {
        self.host_mut(host).lie = Some(lie);
    }

    /// Adds a conversation; its first ping goes out `after` a while.
    pub fn converse(&mut self, conversation: Conversation, after: Duration) -> usize {
        self.conversations.push(conversation);
        let index = self.conversations.len() - 1;
        self.push(after, What::Ping(index));
        index
    }

    /// Writes a frame into a host's TAP, as its kernel would.
    pub fn send_frame(&mut self, host: HostId, frame: &[u8]) {
        self.drive(host, |process, scratch, now, output| process.frame(frame, scratch, now, output));
    }

    /// A host says something to another in their session, past all that its own node would say.
    ///
    /// # Panics
    /// If they have no session over a path of IPv4 or IPv6.
    pub fn say(&mut self, from: HostId, to: HostId, message: &Message) {
        let (now, wanted) = (self.instant(from), self.host(to).peer);
        let process = self.host(from).process.as_ref().expect("it runs");
        let peer = process.fib().peers.iter().find(|peer| peer.peer == wanted).expect("it is known");
        let endpoint = peer.endpoint;
        let transport = peer.transport.as_ref().expect("a session");
        let bytes = seal_message(transport, message, now).expect("a session that lives");
        self.transmit(from, crate::world::PORT, endpoint, TTL, bytes);
    }

    /// A datagram reaches a host with any source that an attacker likes.
    pub fn inject(&mut self, host: HostId, source: SocketAddr, bytes: &[u8]) {
        self.note(host, format_args!("inject {source} {:016x}", fingerprint(bytes)));
        self.drive(host, |process, scratch, now, output| process.datagram(bytes, source, scratch, now, output));
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
            | Reply::PathPongs(_)
            | Reply::Why(_)
            | Reply::Netcheck(_)
            | Reply::Filter(_)
            | Reply::FilterVerdict(_)
            | Reply::Stated { .. }
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
                tls: self.host(contact).config.tls,
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

    /// Datagrams from one host that reached another.
    pub fn arrivals(&self, from: HostId, at: HostId) -> u64 {
        self.arrived.get(&(from, at)).copied().unwrap_or(0)
    }
}
