//! mDNS: members on one LAN find each other without anything else.
//!
//! One thread runs between `mdns-sd` (which has a thread and two sockets of its own) and the control thread. It
//! announces one service per node and browses for the same type, on underlay interfaces only. What a stranger sees: a
//! generic type, names that are keyed hashes and change every quarter of an hour, and [`SEALED_LEN`] sealed bytes. What
//! counts is inside the sealed bytes alone; of the rest only the interface on which it was heard is used, as the scope
//! of link-local addresses.
//!
//! Three things of `mdns-sd` shape this file. It joins the multicast group on *every* interface that is up when it
//! starts, so a beacon should start before the TAP does (if it does not, the TAP sees one IGMP report, never mDNS). It
//! never repeats a record within one second (RFC 6762, section 6), so a node that announced just before its neighbour
//! listened is heard a second later; hence we listen and ask first and announce `LISTEN_FIRST` later. And its cache has no
//! bound, so it is started afresh when a LAN fills it.

#![expect(clippy::disallowed_methods, reason = "mDNS is I/O: epochs and stamps are read off the wall clock here")]

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc as std_mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mdns_sd::{IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, sleep_until, timeout};
use zeroize::Zeroizing;

use super::sighting::{
    Announcement, BlindedNames, MAX_ADDRESSES, SEALED_LEN, Sieve, SightingError, endpoints_heard, open_sighting,
    seal_sighting,
};
use super::{Event, Sighting};
use crate::identity::{NoisePublic, PeerId};

/// The service type: it says that somebody here runs meshd, not who nor in which network.
pub const SERVICE: &str = "_meshd._udp.local.";

/// TXT keys of the two halves of the sealed bytes: a TXT string holds 255 bytes, they are 316.
const HALVES: [&str; 2] = ["a", "b"];

/// How long we listen before we announce. Machines that start together (power comes back, a switch is plugged in) have
/// all joined the group by then and hear each other; later it would be felt by those who already listen.
const LISTEN_FIRST: Duration = Duration::from_millis(60);

/// How often names and the size of the cache are looked at: an epoch is 15 minutes, and 30 000 forged announcements a
/// second grow the cache by 20 MB in this time (measured; `mdns-sd` gets slower as it fills). Twice as much buys nothing.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Records in `mdns-sd`'s cache before it is started afresh: 1000 members have 4 each, old and new epoch.
const MAX_CACHED: i64 = 8192;

/// Sightings that wait for the control thread. It handles hundreds in a millisecond; what does not fit is announced
/// again within the quarter of an hour.
const MAX_WAITING: usize = 256;

/// How long `stop` waits for the goodbye to leave.
const GOODBYE: Duration = Duration::from_millis(200);

/// How long to wait before `mdns-sd` is tried again, and how long for its answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a beacon needs to know.
pub struct BeaconConfig {
    /// The network's beacon key.
    pub key: Zeroizing<[u8; 32]>,
    /// Those of older secrets: members that were away speak them still.
    pub older: Vec<Zeroizing<[u8; 32]>>,
    /// Who we are.
    pub peer: PeerId,
    /// Our Noise static key.
    pub noise: NoisePublic,
    /// Our UDP and TCP port.
    pub port: u16,
}

/// An underlay interface, as the beacon needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeaconInterface {
    /// The kernel's index.
    pub index: u32,
    /// Its name, for the log.
    pub name: String,
    /// Its usable addresses, IPv6 link-local ones too; best first.
    pub addresses: Vec<IpAddr>,
}

/// What was heard and came to nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BeaconCounters {
    /// Announcements of other networks, or forged.
    pub foreign: u64,
    /// Announcements that a member of ours sealed and that make no sense.
    pub malformed: u64,
    /// Repetitions, replays and floods held back.
    pub repeated: u64,
    /// Sightings dropped because the control thread did not keep up.
    pub lost: u64,
    /// How often `mdns-sd` was started afresh.
    pub restarts: u64,
}

#[derive(Debug, Default)]
struct Counters {
    foreign: AtomicU64,
    malformed: AtomicU64,
    repeated: AtomicU64,
    lost: AtomicU64,
    restarts: AtomicU64,
}

/// Announces us and hears others, from [`Beacon::start`] to [`Beacon::stop`] (or drop, which does not wait).
#[derive(Debug)]
pub struct Beacon {
    commands: mpsc::Sender<Command>,
    interfaces: Vec<BeaconInterface>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
enum Command {
    Interfaces(Vec<BeaconInterface>),
    Stop(std_mpsc::SyncSender<()>),
}

impl Beacon {
    /// Starts the beacon in the network namespace of the calling thread. It is silent and deaf until
    /// [`Beacon::set_interfaces`] names interfaces. `seed` is all its randomness and must never come twice.
    ///
    /// # Errors
    /// The operating system gives no thread or poll handle. Trouble with sockets shows in the log only: mDNS is a
    /// convenience, and a machine where port 5353 is taken still works by invites.
    pub fn start(config: BeaconConfig, seed: [u8; 32], sightings: mpsc::Sender<Event>) -> anyhow::Result<Self> {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let counters = Arc::new(Counters::default());
        let service = Service::start().context("cannot start mDNS")?;
        let worker = Worker {
            config,
            random: ChaCha20Rng::from_seed(seed),
            service,
            interfaces: Vec::new(),
            names: None,
            announce_at: None,
            sieve: Sieve::default(),
            waiting: VecDeque::new(),
            counters: Arc::clone(&counters),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        thread::Builder::new()
            .name("beacon".to_owned())
            .spawn(move || runtime.block_on(worker.run(receiver, sightings)))
            .context("cannot start the beacon's thread")?;
        Ok(Self { commands, interfaces: Vec::new(), counters })
    }

    /// The underlay interfaces as they are now: physical and up. Call it with each snapshot; what did not change costs
    /// nothing, a change is announced at once.
    pub fn set_interfaces(&mut self, interfaces: &[BeaconInterface]) {
        if interfaces == self.interfaces {
            return;
        }
        // Full means that eight changes wait in a thread that needs microseconds for each; keep the old picture, so
        // that the next snapshot tries again.
        if self.commands.try_send(Command::Interfaces(interfaces.to_vec())).is_ok() {
            self.interfaces = interfaces.to_vec();
        }
    }

    /// What was heard and came to nothing.
    pub fn counters(&self) -> BeaconCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BeaconCounters {
            foreign: read(&self.counters.foreign),
            malformed: read(&self.counters.malformed),
            repeated: read(&self.counters.repeated),
            lost: read(&self.counters.lost),
            restarts: read(&self.counters.restarts),
        }
    }

    /// Says goodbye (records with TTL 0) and ends; takes at most 200 ms.
    pub fn stop(self) {
        let (done, wait) = std_mpsc::sync_channel(1);
        if self.commands.try_send(Command::Stop(done)).is_ok() {
            let _ = wait.recv_timeout(GOODBYE);
        }
    }
}

/// Commands that may wait.
const COMMANDS: usize = 8;

/// `mdns-sd` and the set of interfaces it may use.
struct Service {
    daemon: ServiceDaemon,
    allowed: Arc<RwLock<BTreeSet<u32>>>,
    events: Receiver<ServiceEvent>,
}

impl Service {
    fn start() -> mdns_sd::Result<Self> {
        let allowed = Arc::new(RwLock::new(BTreeSet::new()));
        let daemon = ServiceDaemon::new()?;
        // One rule for ever instead of one more for each change: `mdns-sd` keeps every rule it was given.
        let rule = Arc::clone(&allowed);
        let is_allowed = IfPredicate::new(move |interface| {
            let allowed = rule.read().unwrap_or_else(PoisonError::into_inner);
            interface.index.is_some_and(|index| allowed.contains(&index))
        });
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(IfKind::Predicate(is_allowed))?;
        let events = daemon.browse(SERVICE)?;
        Ok(Self { daemon, allowed, events })
    }

    /// Takes the interfaces into use, and asks at once who is there.
    fn apply(&mut self, interfaces: &[BeaconInterface]) -> mdns_sd::Result<()> {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) =
            interfaces.iter().map(|interface| interface.index).collect();
        // No new rule: only makes `mdns-sd` apply the one it has.
        self.daemon.enable_interface(Vec::<IfKind>::new())?;
        self.events = self.daemon.browse(SERVICE)?;
        Ok(())
    }

    fn register(&self, names: &BlindedNames, sealed: &[u8; SEALED_LEN], addresses: &[IpAddr]) -> mdns_sd::Result<()> {
        let (first, second) = sealed.split_at(SEALED_LEN / 2);
        let halves: Vec<mdns_sd::TxtProperty> = vec![(HALVES[0], first).into(), (HALVES[1], second).into()];
        let host = format!("{}.local.", names.host);
        // Port 0: the true one is sealed.
        let mut info = ServiceInfo::new(SERVICE, &names.instance, &host, addresses, 0, halves)?;
        // Probing would take 750 ms to find that nobody else uses our 80 random bits.
        info.set_requires_probe(false);
        self.daemon.register(info)
    }

    fn withdraw(&self, names: &BlindedNames) {
        let _ = self.daemon.unregister(&format!("{}.{SERVICE}", names.instance));
    }
}

struct Worker {
    config: BeaconConfig,
    random: ChaCha20Rng,
    service: Service,
    interfaces: Vec<BeaconInterface>,
    /// Under which we are announced now, and their epoch.
    names: Option<(u64, BlindedNames)>,
    announce_at: Option<Instant>,
    sieve: Sieve,
    waiting: VecDeque<Sighting>,
    counters: Arc<Counters>,
}

impl Worker {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, sightings: mpsc::Sender<Event>) {
        let mut housekeeping = interval(HOUSEKEEPING);
        loop {
            let announce_at = self.announce_at;
            let announce = async {
                match announce_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Interfaces(interfaces)) => self.set_interfaces(interfaces),
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop().await,
                },
                () = announce => self.announce(),
                _ = housekeeping.tick() => self.keep_house().await,
                permit = sightings.reserve(), if !self.waiting.is_empty() => match permit {
                    Ok(permit) => if let Some(sighting) = self.waiting.pop_front() {
                        permit.send(Event::Sighting(sighting));
                    },
                    Err(_) => return self.stop().await,
                },
                event = self.service.events.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(service)) => self.hear(&service),
                    // Found without content, removed (a session notices by itself), started, stopped.
                    Ok(_) => {}
                    // `mdns-sd` ended, or a flood filled its channel and it closed it.
                    Err(_) => {
                        sleep(RETRY).await;
                        self.restart();
                    }
                },
            }
        }
    }

    fn set_interfaces(&mut self, interfaces: Vec<BeaconInterface>) {
        let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        tracing::debug!("mDNS on {}", names.join(", "));
        self.interfaces = interfaces;
        self.sieve.clear();
        if let Err(error) = self.service.apply(&self.interfaces) {
            tracing::warn!("mDNS does not follow the interfaces: {error}");
            self.restart();
        }
        self.announce_at = Some(Instant::now() + LISTEN_FIRST);
    }

    /// Announces us under the names of this epoch with freshly sealed bytes, and withdraws those of the last.
    fn announce(&mut self) {
        self.announce_at = None;
        if self.interfaces.is_empty() {
            return;
        }
        let unix = unix_now();
        let (key, peer) = (&*self.config.key, self.config.peer);
        let epoch = BlindedNames::epoch(key, &peer, unix);
        let names = BlindedNames::new(key, &peer, epoch);
        let announcement = Announcement {
            peer,
            noise: self.config.noise,
            port: self.config.port,
            stamp: unix,
            addresses: announced(&self.interfaces),
        };
        let mut nonce = [0; 12];
        self.random.fill_bytes(&mut nonce);
        let sealed = seal_sighting(key, &announcement, nonce);
        // In clear goes, on each interface, the IPv4 address that every frame there shows anyway, and a made-up
        // link-local one in place of any IPv6 address.
        let mut clear = vec![IpAddr::V6(names.address)];
        clear.extend(self.interfaces.iter().flat_map(|interface| &interface.addresses).filter(|a| a.is_ipv4()));
        if let Err(error) = self.service.register(&names, &sealed, &clear) {
            tracing::warn!("mDNS does not announce us: {error}");
            return;
        }
        if let Some((former, withdrawn)) = self.names.replace((epoch, names))
            && former != epoch
        {
            self.service.withdraw(&withdrawn);
        }
    }

    async fn keep_house(&mut self) {
        let epoch = BlindedNames::epoch(&self.config.key, &self.config.peer, unix_now());
        if self.names.as_ref().is_some_and(|(named, _)| *named != epoch) {
            self.announce();
        }
        let Ok(metrics) = self.service.daemon.get_metrics() else { return };
        // No answer: `mdns-sd` is busy with a flood. Another one beside it would only be busy too, so wait for a pause.
        if let Ok(Ok(metrics)) = timeout(RETRY, metrics.recv_async()).await {
            let cached: i64 = metrics.iter().filter(|(name, _)| name.starts_with("cached-")).map(|(_, n)| *n).sum();
            if cached > MAX_CACHED {
                tracing::warn!("{cached} mDNS records on this LAN: starting afresh");
                self.restart();
            }
        }
    }

    fn restart(&mut self) {
        let _ = self.service.daemon.shutdown();
        self.counters.restarts.fetch_add(1, Ordering::Relaxed);
        match Service::start() {
            Ok(service) => {
                self.service = service;
                let _ = self.service.apply(&self.interfaces);
                self.announce_at = Some(Instant::now() + LISTEN_FIRST);
            }
            Err(error) => tracing::warn!("mDNS does not start: {error}"),
        }
    }

    fn hear(&mut self, service: &ResolvedService) {
        let half = |key| service.txt_properties.get_property_val(key).flatten().unwrap_or_default();
        let sealed = [half(HALVES[0]), half(HALVES[1])].concat();
        let mut stale = false;
        let mut opened = open_sighting(&self.config.key, &sealed);
        for key in &self.config.older {
            if matches!(opened, Err(SightingError::Foreign)) {
                (stale, opened) = (true, open_sighting(key, &sealed));
            }
        }
        let announcement = match opened {
            Ok(announcement) => announcement,
            Err(error) => {
                let counter = match error {
                    SightingError::Foreign => &self.counters.foreign,
                    SightingError::Malformed(_) | SightingError::Address => &self.counters.malformed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        if announcement.peer == self.config.peer {
            return;
        }
        let endpoints = endpoints_heard(&announcement, &scopes(service));
        if endpoints.is_empty() {
            return;
        }
        if !self.sieve.admit(announcement.peer, announcement.stamp, &endpoints, Instant::now()) {
            self.counters.repeated.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tracing::debug!("mDNS heard {} at {endpoints:?}", announcement.peer.short());
        self.waiting.push_back(Sighting { peer: announcement.peer, noise: announcement.noise, endpoints, stale });
    }

    async fn stop(&mut self) {
        if let Ok(status) = self.service.daemon.shutdown() {
            let _ = timeout(GOODBYE, status.recv_async()).await;
        }
    }
}

/// The interfaces on which a service was heard.
fn scopes(service: &ResolvedService) -> Vec<u32> {
    let indices = |address: &ScopedIp| -> Vec<u32> {
        if let ScopedIp::V4(address) = address {
            address.interface_ids().iter().map(|id| id.index).collect()
        } else if let ScopedIp::V6(address) = address {
            vec![address.scope_id().index]
        } else {
            Vec::new()
        }
    };
    let scopes: BTreeSet<u32> = service.addresses.iter().flat_map(indices).filter(|index| *index != 0).collect();
    scopes.into_iter().collect()
}

/// The addresses worth announcing: first of each interface first, so that the last ones fall off, not an interface.
fn announced(interfaces: &[BeaconInterface]) -> Vec<IpAddr> {
    let longest = interfaces.iter().map(|interface| interface.addresses.len()).max().unwrap_or_default();
    let mut addresses = Vec::new();
    for rank in 0..longest {
        for address in interfaces.iter().filter_map(|interface| interface.addresses.get(rank)) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// Seconds since 1970 by this machine's clock, however wrong it is.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
