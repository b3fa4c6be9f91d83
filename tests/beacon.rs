//! mDNS and netlink on real links: network namespaces joined by veth pairs and bridges, real multicast between them.
//!
//! A namespace belongs to a thread, and threads inherit it: so each member runs in a thread that enters its namespace
//! first. Needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN) and iproute2; without them each test says that it is skipped.

#![cfg(feature = "daemon")]
#![expect(unsafe_code, reason = "setns(2) has no safe wrapper here")]
#![expect(clippy::disallowed_methods, reason = "a test of real links waits for them in real time")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use meshd::daemon::netlink::{self, Interface, InterfaceKind, TapAddresses};
use meshd::dht::beacon::{Beacon, BeaconConfig, BeaconCounters, BeaconInterface};
use meshd::dht::{Event, Sighting};
use meshd::identity::{NetworkId, NetworkSecret, PeerId, SigningKey};
use tokio::sync::{mpsc, oneshot};

#[path = "beacon/flood.rs"]
mod flood;
#[path = "beacon/links.rs"]
mod links;

/// Longest wait for something that must happen. IPv6 needs up to two seconds for duplicate address detection, and this
/// machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Long enough to see that something does not happen: `mdns-sd` repeats itself after 1.1 s.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn two_members_on_a_link_see_each_other_within_a_second() {
    let Some(lab) = Lab::new("two members") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    a.settle();
    b.settle();

    let began = Instant::now();
    let (one, two) = (Member::start(&a, 1), Member::start(&b, 2));
    let (at_one, at_two) = (one.sees(2, began), two.sees(1, began));
    figure("started together, both heard", at_one.1.max(at_two.1));
    assert!(at_one.1.max(at_two.1) < Duration::from_secs(1));
    assert_eq!(at_one.0.endpoints[0], endpoint("192.0.2.2:4747"));
    assert_eq!(at_two.0.endpoints[0], endpoint("192.0.2.1:4747"));
    assert_eq!(at_one.0.noise, SigningKey::from_seed(&[2; 32]).noise_secret().public());
    two.stop();

    // A latecomer, when the first has long fallen silent.
    thread::sleep(Duration::from_millis(2500));
    one.forget();
    let began = Instant::now();
    let late = Member::start(&b, 3);
    let (late_heard, heard_late) = (one.sees(3, began).1, late.sees(1, began).1);
    figure("latecomer heard by the first", late_heard);
    figure("first heard by the latecomer", heard_late);
    assert!(late_heard.max(heard_late) < Duration::from_secs(1));
}

#[test]
fn a_link_without_any_ipv4_is_enough() {
    let Some(lab) = Lab::new("link-local") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", ""), (&b, "eth0", ""));
    a.settle();
    b.settle();
    let began = Instant::now();
    let (one, two) = (Member::start(&a, 1), Member::start(&b, 2));
    let (sighting, took) = one.sees(2, began);
    figure("IPv6 link-local only", took);
    two.sees(1, began);
    let SocketAddr::V6(endpoint) = sighting.endpoints[0] else { panic!("{sighting:?}") };
    assert!(endpoint.ip().is_unicast_link_local());
    assert_eq!(endpoint.scope_id(), a.index_of("eth0"), "the scope is of the listener's interface");
}

#[test]
fn a_stranger_learns_nothing_from_what_is_sent() {
    let Some(lab) = Lab::new("privacy") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    lab.cable((&a, "eth1", "198.51.100.1/24"), (&b, "eth1", ""));
    let capture = Capture::start(&b);
    let began = Instant::now();
    let (one, two) = (Member::start(&a, 1), Member::start(&b, 2));
    one.sees(2, began);
    two.sees(1, began);
    thread::sleep(SILENCE);
    one.stop();
    two.stop();
    let payloads = capture.mdns_payloads();
    assert!(payloads.len() >= 8, "queries, announcements and goodbyes of two: {}", payloads.len());

    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    let network = NetworkId::of_root(&SigningKey::from_seed(&[9; 32]).peer_id());
    for seed in [1, 2] {
        let key = SigningKey::from_seed(&[seed; 32]);
        let peer = key.peer_id();
        secrets.push(("peer id".into(), peer.0[..8].to_vec()));
        secrets.push(("peer id in base58".into(), peer.to_string().into_bytes()));
        secrets.push(("short peer id".into(), peer.short().into_bytes()));
        secrets.push(("Noise key".into(), key.noise_secret().public().0[..8].to_vec()));
    }
    secrets.push(("network id".into(), network.0[..8].to_vec()));
    secrets.push(("network id in hexadecimal".into(), network.short().into_bytes()));
    secrets.push(("network secret".into(), secret(9).as_bytes()[..8].to_vec()));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux has a hostname");
    secrets.push(("hostname".into(), hostname.trim().as_bytes().to_vec()));
    for address in a.interfaces().iter().flat_map(|interface| &interface.addresses) {
        if let IpAddr::V6(address) = address {
            secrets.push(("an IPv6 address".into(), address.octets().to_vec()));
        }
    }
    for payload in &payloads {
        for (what, bytes) in secrets.iter().filter(|(_, bytes)| bytes.len() >= 4) {
            assert!(!contains(payload, bytes), "the {what} is in {}", printable(payload));
        }
    }
}

#[test]
fn a_strangers_announcement_is_counted_and_otherwise_ignored() {
    let Some(lab) = Lab::new("stranger") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    a.settle();
    b.settle();
    let member = Member::start(&a, 1);
    let other_network = Member::start_in(&b, 2, 77);
    let forger = b.run(|| {
        let daemon = mdns_sd::ServiceDaemon::new().expect("a stranger may run mDNS too");
        for (name, half) in [("forged", vec![0x5a; 158]), ("empty", Vec::new()), ("plain", b"12D3KooW".to_vec())] {
            let halves: Vec<mdns_sd::TxtProperty> = vec![("a", half.clone()).into(), ("b", half).into()];
            let host = format!("{name}.local.");
            let mut info =
                mdns_sd::ServiceInfo::new("_meshd._udp.local.", name, &host, "192.0.2.2", 4747, halves).expect("valid");
            info.set_requires_probe(false);
            daemon.register(info).expect("registered");
        }
        daemon
    });
    member.sees_nothing(SILENCE);
    other_network.sees_nothing(Duration::from_millis(1));
    assert!(other_network.stop().foreign >= 1, "it heard us and could not read us");
    let counters = member.stop();
    assert!(counters.foreign >= 4, "three forgeries and another network: {counters:?}");
    let _ = forger.shutdown();
}

#[test]
fn a_pulled_cable_is_noticed_when_it_is_plugged_again() {
    let Some(lab) = Lab::new("cable") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    b.ip(&["link", "set", "eth0", "down"]);
    let (one, two) = (Member::start(&a, 1), Member::start(&b, 2));
    one.sees_nothing(Duration::from_millis(500));

    b.ip(&["link", "set", "eth0", "up"]);
    let began = Instant::now();
    let took = one.sees(2, began).1.max(two.sees(1, began).1);
    figure("started before the link came up, both heard", took);

    thread::sleep(SILENCE);
    b.ip(&["link", "set", "eth0", "down"]);
    thread::sleep(Duration::from_millis(500));
    one.forget();
    two.forget();
    b.ip(&["link", "set", "eth0", "up"]);
    let began = Instant::now();
    let took = one.sees(2, began).1.max(two.sees(1, began).1);
    figure("cable plugged again, both heard", took);
    assert!(took < Duration::from_secs(3));
}

#[test]
fn a_member_moved_to_another_switch_port_is_heard_by_those_who_stayed() {
    let Some(lab) = Lab::new("switch") else { return };
    let [a, b, switch] = [lab.namespace("a"), lab.namespace("b"), lab.namespace("s")];
    switch.ip(&["link", "add", "br0", "type", "bridge"]);
    switch.ip(&["link", "set", "br0", "up"]);
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&switch, "port1", ""));
    lab.cable((&b, "eth0", "192.0.2.2/24"), (&switch, "port2", ""));
    for port in ["port1", "port2"] {
        switch.ip(&["link", "set", port, "master", "br0"]);
    }
    let began = Instant::now();
    let (one, two) = (Member::start(&a, 1), Member::start(&b, 2));
    one.sees(2, began);
    two.sees(1, began);
    thread::sleep(SILENCE);
    switch.ip(&["link", "set", "port1", "down"]);
    thread::sleep(Duration::from_millis(500));
    one.forget();
    two.forget();
    switch.ip(&["link", "set", "port1", "up"]);
    let began = Instant::now();
    figure("replugged behind a switch, heard by the other", two.sees(1, began).1);
    figure("replugged behind a switch, hears the other", one.sees(2, began).1);
}

#[test]
fn a_member_with_two_links_is_seen_on_both() {
    let Some(lab) = Lab::new("two links") else { return };
    let [a, b, c] = [lab.namespace("a"), lab.namespace("b"), lab.namespace("c")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    lab.cable((&a, "eth1", "198.51.100.1/24"), (&c, "eth0", "198.51.100.2/24"));
    let began = Instant::now();
    let middle = Member::start(&a, 1);
    let (left, right) = (Member::start(&b, 2), Member::start(&c, 3));
    for neighbour in [&left, &right] {
        let heard = neighbour.sees(1, began).0.endpoints;
        for address in ["192.0.2.1:4747", "198.51.100.1:4747"] {
            assert!(heard.contains(&endpoint(address)), "{address} is not in {heard:?}");
        }
    }
    middle.sees(2, began);
    middle.sees(3, began);
    left.forget();
    left.sees_nobody_but(1, SILENCE);
}

#[test]
fn two_members_on_one_machine_see_each_other() {
    let Some(lab) = Lab::new("one machine") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", ""));
    let began = Instant::now();
    let (one, two) = (Member::start(&a, 1), Member::start(&a, 2));
    one.sees(2, began);
    two.sees(1, began);
}

// The lab.

/// A few namespaces, gone when dropped.
struct Lab {
    prefix: String,
}

impl Lab {
    /// `None`, and says so, where this process may not make namespaces.
    fn new(what: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("mb{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let probe = format!("{prefix}probe");
        let made = Command::new("ip").args(["netns", "add", &probe]).output();
        let reason = match made {
            Ok(output) if output.status.success() => {
                let _ = Command::new("ip").args(["netns", "delete", &probe]).output();
                return Some(Self { prefix });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("no ip command: {error}"),
        };
        let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: cannot make network namespaces ({reason})");
        None
    }

    fn namespace(&self, name: &str) -> Namespace {
        let namespace = Namespace { name: format!("{}{name}", self.prefix) };
        run_ip(&["netns", "add", &namespace.name]);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Joins two interfaces and gives them their addresses; "" means none beside IPv6 link-local.
    fn cable(&self, left: (&Namespace, &str, &str), right: (&Namespace, &str, &str)) {
        let pair = ["type", "veth", "peer", "name", right.1, "netns", &right.0.name];
        run_ip(&[&["link", "add", left.1, "netns", &left.0.name][..], &pair[..]].concat());
        for (namespace, interface, address) in [left, right] {
            if !address.is_empty() {
                namespace.ip(&["address", "add", address, "dev", interface]);
            }
            namespace.ip(&["link", "set", interface, "up"]);
        }
    }
}

struct Namespace {
    name: String,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

impl Namespace {
    fn ip(&self, arguments: &[&str]) {
        run_ip(&[&["-n", &self.name], arguments].concat());
    }

    fn ip_batch(&self, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("ip runs");
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads");
        assert!(child.wait().expect("ip ends").success());
    }

    /// A thread in this namespace.
    fn spawn<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("ip made it");
        thread::spawn(move || {
            // SAFETY: setns changes nothing but the namespace of this thread; the descriptor is open.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            body()
        })
    }

    fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(body).join().expect("no panic in the namespace")
    }

    /// Waits until every link here is up and done with duplicate address detection. The kernel takes a second to tell of
    /// the carrier of a new veth, and up to two for the addresses.
    fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        let is_settled = |interface: &Interface| {
            let mut addresses = interface.addresses.iter();
            interface.kind != InterfaceKind::Physical || (interface.up && addresses.any(IpAddr::is_ipv6))
        };
        while !self.interfaces().iter().all(is_settled) {
            assert!(Instant::now() < deadline, "{:?}", self.interfaces());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn interfaces(&self) -> Vec<Interface> {
        self.run(|| runtime().block_on(netlink::snapshot()).expect("netlink answers"))
    }

    fn index_of(&self, name: &str) -> u32 {
        self.interfaces().iter().find(|interface| interface.name == name).expect("an interface of the lab").index
    }

    fn set_tap(&self, device: &'static str, addresses: TapAddresses) {
        self.run(move || runtime().block_on(netlink::set_tap_addresses(device, &addresses)).expect("root may"));
    }
}

fn run_ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn secret(network: u8) -> NetworkSecret {
    NetworkSecret::new([network; 32])
}

fn peer(seed: u8) -> PeerId {
    SigningKey::from_seed(&[seed; 32]).peer_id()
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().expect("an endpoint")
}

/// A beacon that follows its namespace's interfaces, as the daemon's control loop does.
struct Member {
    sightings: Receiver<(Instant, Sighting)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<BeaconCounters>>,
}

impl Member {
    fn start(namespace: &Namespace, seed: u8) -> Self {
        Self::start_in(namespace, seed, 9)
    }

    fn start_in(namespace: &Namespace, seed: u8, network: u8) -> Self {
        let (report, sightings) = sync_channel(64);
        let (stop, mut stopped) = oneshot::channel();
        let thread = namespace.spawn(move || {
            runtime().block_on(async move {
                let key = SigningKey::from_seed(&[seed; 32]);
                let config = BeaconConfig {
                    key: secret(network).beacon_key(),
                    older: Vec::new(),
                    peer: key.peer_id(),
                    noise: key.noise_secret().public(),
                    port: 4747,
                };
                let (sender, mut events) = mpsc::channel(64);
                let mut random = [0; 32];
                File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).expect("randomness");
                let mut beacon = Beacon::start(config, random, sender).expect("a beacon");
                let (sender, mut pictures) = mpsc::channel(8);
                let watch = tokio::spawn(netlink::watch(sender));
                loop {
                    tokio::select! {
                        Some(interfaces) = pictures.recv() => beacon.set_interfaces(&underlay(&interfaces)),
                        Some(event) = events.recv() => if let Event::Sighting(sighting) = event {
                            let _ = report.try_send((Instant::now(), sighting));
                        },
                        _ = &mut stopped => break,
                    }
                }
                watch.abort();
                let counters = beacon.counters();
                let began = Instant::now();
                beacon.stop();
                assert!(began.elapsed() < Duration::from_millis(400), "stopping took {:?}", began.elapsed());
                counters
            })
        });
        Self { sightings, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits for a sighting of the member with `seed`; how long after `began` it came.
    fn sees(&self, seed: u8, began: Instant) -> (Sighting, Duration) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.sightings.recv_timeout(left) {
                Ok((at, sighting)) if sighting.peer == peer(seed) => {
                    return (sighting, at.saturating_duration_since(began));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("the member died"),
            }
        }
        panic!("member {seed} was not seen within {PATIENCE:?}");
    }

    fn sees_nothing(&self, how_long: Duration) {
        assert_eq!(self.sightings.recv_timeout(how_long).ok(), None);
    }

    fn sees_nobody_but(&self, seed: u8, how_long: Duration) {
        let deadline = Instant::now() + how_long;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Ok((_, sighting)) = self.sightings.recv_timeout(left) {
                assert_eq!(sighting.peer, peer(seed));
            }
        }
    }

    /// Forgets what was seen so far.
    fn forget(&self) {
        while self.sightings.try_recv().is_ok() {}
    }

    fn stop(mut self) -> BeaconCounters {
        self.stop.take();
        self.thread.take().expect("stopped once").join().expect("no panic in the member")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn underlay(interfaces: &[Interface]) -> Vec<BeaconInterface> {
    let beacon_interface = |interface: &Interface| BeaconInterface {
        index: interface.index,
        name: interface.name.clone(),
        addresses: interface.addresses.clone(),
    };
    interfaces.iter().filter(|interface| interface.is_underlay()).map(beacon_interface).collect()
}

/// Every frame that passes any interface of a namespace.
struct Capture {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let (ready, wait) = sync_channel(1);
        let thread = namespace.spawn(move || {
            let every_protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
            let socket = socket2::Socket::new(
                socket2::Domain::PACKET,
                socket2::Type::RAW,
                Some(socket2::Protocol::from(every_protocol)),
            );
            let mut socket = socket.expect("root may capture");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            let _ = ready.send(());
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 65_536]);
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                if let Ok(length) = socket.read(&mut buffer) {
                    frames.push(buffer[..length].to_vec());
                }
            }
            frames
        });
        wait.recv_timeout(PATIENCE).expect("the capture starts");
        Self { stop, thread }
    }

    fn mdns_payloads(self) -> Vec<Vec<u8>> {
        drop(self.stop);
        let frames = self.thread.join().expect("no panic in the capture");
        frames.iter().filter_map(|frame| mdns_payload(frame)).map(<[u8]>::to_vec).collect()
    }
}

/// The payload of a UDP datagram to port 5353.
fn mdns_payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    if let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport
        && udp.destination_port() == 5353
    {
        return Some(udp.payload());
    }
    None
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}

fn printable(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

/// Figures go past the test harness, which swallows what a passing test prints.
fn figure(what: &str, took: Duration) {
    let _ = writeln!(std::io::stderr(), "figure: {what}: {} ms", took.as_millis());
}
