//! Machines behind a node, whose TAP becomes a port of a bridge.
//!
//! [`Bridged`]: what was the node's place in the overlay, its MAC and its addresses, goes to a station at another port. For the members
//! it is the same member; but every frame leaves the node's host by a bridge, as onto a real wire.
//!
//! [`enslave`] and [`foreign`]: the node keeps its place, and stations at other ports have MACs of their own, as docs/operations.md has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Lab, Laptop, Node, run};

/// What the TAP is called to the kernel once the station has its MAC: locally administered, and nobody's.
const TAP_MAC: &str = "02:00:00:00:00:01";

/// The bridge, in the node's namespace.
pub const BRIDGE: &str = "lan";

/// A node whose TAP is a port of a bridge.
#[derive(Debug)]
pub struct Bridged<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its MAC by its record: the station's.
    pub mac: String,
    /// Its addresses in the overlay with their prefixes: the station's.
    pub addresses: Vec<String>,
}

impl<'a> Bridged<'a> {
    /// Puts the TAP of `node` into a bridge without other ports.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(node: &'a Node) -> Result<Self> {
        let (laptop, device) = (node.laptop(), node.device());
        let (mac, addresses) = place_of(node)?;
        laptop.run(&format!("ip addr flush dev {device}"))?;
        laptop.run(&format!("ip link set {device} address {TAP_MAC}"))?;
        laptop.run(&format!("ip link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"))?;
        for quiet in [device, BRIDGE] {
            // The host itself says nothing on this LAN.
            laptop.run(&format!("sysctl -qw net.ipv6.conf.{quiet}.disable_ipv6=1"))?;
        }
        laptop.run(&format!("ip link set {device} master {BRIDGE}"))?;
        laptop.run(&format!("ip link set {BRIDGE} up"))?;
        Ok(Self { node, mac, addresses })
    }

    /// A new machine `name` at the bridge, in the node's place. Its cable takes nothing off the kernel's hands: what leaves the
    /// bridge is cut and summed as for a plain network card. In the other direction it leaves everything to others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn station(&self, lab: &Lab, name: &str) -> Result<Laptop> {
        let host = self.node.laptop();
        let station = lab.machine(name, self.node.ipv4())?;
        run(&format!("ip link add cable netns {} type veth peer name eth0 netns {name}", host.name))?;
        host.run("ethtool -K cable tso off gso off tx off tx-udp-segmentation off")?;
        host.run("sysctl -qw net.ipv6.conf.cable.disable_ipv6=1")?;
        host.run(&format!("ip link set cable master {BRIDGE} up"))?;
        station.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")?;
        self.take_place(&station, "eth0")?;
        for address in &self.addresses {
            station.run(&format!("ip addr add {address} dev eth0"))?;
        }
        Ok(station)
    }

    /// Gives `device` the node's MAC and brings it up.
    pub(super) fn take_place(&self, laptop: &Laptop, device: &str) -> Result<()> {
        laptop.run(&format!("ip link set {device} address {}", self.mac))?;
        laptop.run(&format!("ip link set {device} up")).map(drop)
    }

    /// Its address of that family, without the prefix.
    pub fn address(&self, ipv6: bool) -> &str {
        let found = self.addresses.iter().find(|address| address.contains(':') == ipv6).expect("one of each family");
        found.split('/').next().expect("an address before its prefix")
    }
}

/// The MAC of `node`, and its addresses in the overlay with their prefixes.
fn place_of(node: &Node) -> Result<(String, Vec<String>)> {
    let mac = node.laptop().ask(&["status"])?["mac"].as_str().context("mac")?.to_owned();
    let shown = node.laptop().run(&format!("ip -oneline addr show dev {} scope global", node.device()))?;
    let addresses: Vec<String> =
        shown.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
    ensure!(addresses.len() == 2, "the TAP has other addresses than one of each family: {shown}");
    Ok((mac, addresses))
}

/// Puts the TAP of `node` into a bridge, which has the node's MAC and addresses from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn enslave(node: &Node) -> Result<()> {
    let (laptop, device) = (node.laptop(), node.device());
    let (mac, addresses) = place_of(node)?;
    laptop.run(&format!("ip link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"))?;
    laptop.run(&format!("ip link set {BRIDGE} address {mac}"))?;
    laptop.run(&format!("sysctl -qw net.ipv6.conf.{BRIDGE}.accept_dad=0"))?;
    laptop.run(&format!("ip link set {device} master {BRIDGE}"))?;
    laptop.run(&format!("ip addr flush dev {device}"))?;
    laptop.run(&format!("ip link set {BRIDGE} up"))?;
    for address in addresses {
        laptop.run(&format!("ip addr add {address} dev {BRIDGE}"))?;
    }
    Ok(())
}

/// A new machine `name` at the bridge of `node`, without meshd, with a MAC of its own and these addresses (with their prefixes).
///
/// # Errors
/// When the kernel refuses.
pub fn foreign(lab: &Lab, node: &Node, name: &str, addresses: &[String]) -> Result<Laptop> {
    let host = node.laptop();
    let station = lab.machine(name, node.ipv4())?;
    let cable = format!("to-{name}");
    run(&format!("ip link add {cable} netns {} type veth peer name eth0 netns {name}", host.name))?;
    host.run(&format!("sysctl -qw net.ipv6.conf.{cable}.disable_ipv6=1"))?;
    host.run(&format!("ip link set {cable} master {BRIDGE} up"))?;
    station.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")?;
    station.run("ip link set eth0 up")?;
    for address in addresses {
        station.run(&format!("ip addr add {address} dev eth0"))?;
    }
    Ok(station)
}

/// Addresses beside those of `node`, of both families, with their prefixes: the last byte is `last`.
///
/// # Errors
/// When the node has none.
pub fn beside(node: &Node, last: u8) -> Result<Vec<String>> {
    let (_, addresses) = place_of(node)?;
    let with = |address: &String| -> Result<String> {
        let (address, length) = address.split_once('/').context("an address with its prefix")?;
        let address = match address.parse::<IpAddr>()? {
            IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from(v4.to_bits() & !0xff | u32::from(last))),
            IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from(v6.to_bits() & !0xff | u128::from(last))),
        };
        Ok(format!("{address}/{length}"))
    };
    addresses.iter().map(with).collect()
}

/// A counter of the network stack in `laptop`, from /proc/net/netstat or /proc/net/snmp: `group` is `TcpExt`, say.
///
/// # Errors
/// When there is none of that name.
pub fn counter(laptop: &Laptop, group: &str, name: &str) -> Result<u64> {
    for file in ["netstat", "snmp"] {
        let text = laptop.run(&format!("cat {}", Path::new("/proc/net").join(file).display()))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else { continue };
        let found = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
        if let Some((_, value)) = found {
            return Ok(value.parse()?);
        }
    }
    anyhow::bail!("this kernel does not count {group}{name}")
}
