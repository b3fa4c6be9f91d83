//! Others, each as its documentation says a secure tunnel is made: between two laptops, the first process on the first
//! one, the second on the second, helpers after them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::samples::Way;
use super::tunnel::INNER;
use crate::netns::{Background, Laptop, is_installed, output, wait_for};

/// How each is set up, for the report.
pub fn setup(way: Way) -> &'static str {
    match way {
        Way::Raw => "no tunnel: veth cables through a forwarding namespace, MTU 1500, the kernel's offloads on",
        Way::Control => "the same once more at the end of each round",
        Way::Vxlan => "the kernel's VXLAN, no encryption, MTU 1450",
        Way::Meshd => "as it comes: AES-256-GCM, MTU 1500",
        Way::MeshdBusy => "the same, looking for work for 20 ms before it sleeps",
        Way::N2n => "edge and supernode, direct path, Twofish (the only cipher of this version), MTU 1400",
        Way::Tinc => "mode switch, aes-256-cbc and sha256 (the defaults of 1.0), MTU 1500",
        Way::Fastd => "mode tap, salsa2012+umac, MTU 1426",
        Way::OpenVpn => "dev tap, UDP, TLS, AES-256-GCM, no data-channel offload, MTU 1500",
        Way::WireGuardGo => "layer 3, ChaCha20-Poly1305, MTU 1420",
    }
}

/// Programs it needs.
pub fn programs(way: Way) -> &'static [&'static str] {
    match way {
        Way::Raw | Way::Control | Way::Vxlan | Way::Meshd | Way::MeshdBusy => &[],
        Way::N2n => &["edge", "supernode"],
        Way::Tinc => &["tincd"],
        Way::Fastd => &["fastd"],
        Way::OpenVpn => &["openvpn", "openssl"],
        Way::WireGuardGo => &["wireguard-go", "wg"],
    }
}

/// Starts one.
///
/// # Errors
/// When a program is missing or fails.
pub fn start(way: Way, ends: &[Laptop; 2], between: Option<&Laptop>) -> Result<Vec<Background>> {
    if let Some(missing) = programs(way).iter().find(|program| !is_installed(program)) {
        bail!("{missing} is not installed");
    }
    match way {
        Way::Raw | Way::Control | Way::Vxlan | Way::Meshd | Way::MeshdBusy => bail!("{} is not a peer", way.name()),
        Way::N2n => n2n(ends, between.context("n2n needs a machine for its supernode")?),
        Way::Tinc => tinc(ends),
        Way::Fastd => fastd(ends),
        Way::OpenVpn => openvpn(ends),
        Way::WireGuardGo => wireguard_go(ends),
    }
}

/// The other end of each.
const OTHER: [usize; 2] = [1, 0];

/// Both start `command` with what `arguments` adds, and log beside their folders.
fn both(
    ends: &[Laptop; 2],
    program: &str,
    arguments: impl Fn(usize, &Laptop) -> Result<Vec<String>>,
) -> Result<Vec<Background>> {
    let start = |(end, laptop): (usize, &Laptop)| {
        let mut command = laptop.command(program);
        command.args(arguments(end, laptop)?).env("LOG_LEVEL", "error");
        Background::logged(&mut command, &laptop.dir.join("log"))
    };
    ends.iter().enumerate().map(start).collect()
}

/// A new folder of a laptop, and its path.
fn folder(laptop: &Laptop, name: &str) -> Result<PathBuf> {
    let folder = laptop.dir.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Waits until `device` is there, and gives it its address.
fn address(ends: &[Laptop; 2], device: &str, mtu: u32) -> Result<()> {
    for (laptop, inner) in ends.iter().zip(INNER) {
        let is_there = || Ok(laptop.run(&format!("ip link show {device}")).is_ok());
        wait_for(&format!("{device} on {}", laptop.name), Duration::from_secs(5), is_there)?;
        laptop.run(&format!("ip addr replace {inner}/24 dev {device}"))?;
        laptop.run(&format!("ip link set {device} mtu {mtu} up"))?;
    }
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn n2n(ends: &[Laptop; 2], between: &Laptop) -> Result<Vec<Background>> {
    let supernode = Background::start(between.command("supernode").args(["-l", "7654"]))?;
    let mut edges = both(ends, "edge", |end, _| {
        let supernode = between.underlay;
        let inner = INNER[end];
        // Its own port on each, and our user: what it would become may not read the TAP.
        Ok(words(&format!(
            "-d n2n0 -a {inner} -s 255.255.255.0 -c bench -k secret -l {supernode}:7654 -p 7655 -M 1400 -u 0 -g 0"
        )))
    })?;
    edges.push(supernode);
    Ok(edges)
}

fn tinc(ends: &[Laptop; 2]) -> Result<Vec<Background>> {
    let folders = ends.iter().map(|laptop| folder(laptop, "tinc")).collect::<Result<Vec<_>>>()?;
    for (end, laptop) in ends.iter().enumerate() {
        let (folder, other) = (&folders[end], &ends[OTHER[end]]);
        fs::create_dir(folder.join("hosts"))?;
        fs::write(
            folder.join("tinc.conf"),
            format!("Name={}\nMode=switch\nDeviceType=tap\nInterface=tinc0\nConnectTo={}\n", laptop.name, other.name),
        )?;
        fs::write(folder.join("hosts").join(&laptop.name), format!("Address={}\n", laptop.underlay))?;
        // Appends the public key to the host's file.
        laptop.run(&format!("tincd --config {} --generate-keys=2048", folder.display()))?;
    }
    for (end, laptop) in ends.iter().enumerate() {
        let host = folders[end].join("hosts").join(&laptop.name);
        fs::copy(host, folders[OTHER[end]].join("hosts").join(&laptop.name))?;
    }
    let daemons = both(ends, "tincd", |end, _| {
        let folder = folders[end].display();
        Ok(words(&format!("--config {folder} --pidfile {folder}/pid --no-detach --debug=0")))
    })?;
    address(ends, "tinc0", 1500)?;
    Ok(daemons)
}

fn fastd(ends: &[Laptop; 2]) -> Result<Vec<Background>> {
    let mut keys = Vec::new();
    for laptop in ends {
        // Two lines: `Secret: …` and `Public: …`.
        let said = laptop.run("fastd --generate-key")?;
        let key = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(|key| key.trim().to_owned());
        keys.push((key("Secret:").context("no secret key")?, key("Public:").context("no public key")?));
    }
    for (end, laptop) in ends.iter().enumerate() {
        let (other, secret) = (&keys[OTHER[end]].1, &keys[end].0);
        // Only the first calls: two handshakes at once may leave each side with a session the other has dropped.
        let remote = if end == 0 { format!("remote ipv4 {}:10000;", ends[1].underlay) } else { String::new() };
        let configuration = format!(
            "mode tap; interface \"fastd0\"; method \"salsa2012+umac\"; mtu 1426; bind any:10000; secret \"{secret}\";\n\
             peer \"other\" {{ key \"{other}\"; {remote} }}\n"
        );
        fs::write(folder(laptop, "fastd")?.join("fastd.conf"), configuration)?;
    }
    let daemons = both(ends, "fastd", |_, _| Ok(words("--config fastd/fastd.conf")))?;
    address(ends, "fastd0", 1426)?;
    Ok(daemons)
}

fn openvpn(ends: &[Laptop; 2]) -> Result<Vec<Background>> {
    let mut fingerprints = Vec::new();
    for laptop in ends {
        let folder = folder(laptop, "openvpn")?;
        let folder = folder.display();
        laptop.run(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={} \
             -keyout {folder}/key -out {folder}/certificate",
            laptop.name
        ))?;
        let said = laptop.run(&format!("openssl x509 -noout -fingerprint -sha256 -in {folder}/certificate"))?;
        fingerprints.push(said.split_once('=').context("no fingerprint")?.1.to_owned());
    }
    let daemons = both(ends, "openvpn", |end, _| {
        let (role, remote) = (["--tls-server", "--tls-client"][end], ends[OTHER[end]].underlay);
        let fingerprint = &fingerprints[OTHER[end]];
        Ok(words(&format!(
            "--dev ovpn0 --dev-type tap --proto udp --port 1194 --remote {remote} --disable-dco {role} --dh none \
             --data-ciphers AES-256-GCM --cert openvpn/certificate --key openvpn/key --peer-fingerprint {fingerprint}"
        )))
    })?;
    address(ends, "ovpn0", 1500)?;
    Ok(daemons)
}

fn wireguard_go(ends: &[Laptop; 2]) -> Result<Vec<Background>> {
    // Both share /run, where the sockets are, so the devices have names of their own.
    const DEVICES: [&str; 2] = ["wg0", "wg1"];
    let daemons = both(ends, "wireguard-go", |end, _| Ok(words(&format!("--foreground {}", DEVICES[end]))))?;
    let mut public = Vec::new();
    for laptop in ends {
        let key = folder(laptop, "wireguard")?.join("key");
        fs::write(&key, laptop.run("wg genkey")?)?;
        let mut pubkey = laptop.command("wg");
        public.push(output(pubkey.arg("pubkey").stdin(File::open(&key)?))?);
    }
    for (end, laptop) in ends.iter().enumerate() {
        let (device, other) = (DEVICES[end], &ends[OTHER[end]]);
        let is_there = || Ok(laptop.run(&format!("wg show {device}")).is_ok());
        wait_for(&format!("{device} on {}", laptop.name), Duration::from_secs(5), is_there)?;
        laptop.run(&format!(
            "wg set {device} listen-port 51820 private-key wireguard/key peer {} endpoint {}:51820 allowed-ips {}/32",
            public[OTHER[end]], other.underlay, INNER[OTHER[end]]
        ))?;
        laptop.run(&format!("ip addr add {}/24 dev {device}", INNER[end]))?;
        laptop.run(&format!("ip link set {device} mtu 1420 up"))?;
    }
    Ok(daemons)
}
