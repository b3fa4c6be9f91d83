//! One contestant, up: how to reach the second laptop through it, and which processes it costs.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::peers;
use super::samples::Way;
use crate::netns::load::PORT;
use crate::netns::{Background, Laptop, Node, wait_for};

/// The first laptop's address in a tunnel that does not choose its own.
pub(super) const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// From the start of the slowest contestant (tinc, which measures its MTU) to the first ping.
const MEET: Duration = Duration::from_secs(20);

/// A tunnel that is up, with a server of iperf3 and a receiver of our load behind it. Down when dropped.
#[derive(Debug)]
pub struct Tunnel {
    /// The second laptop's address in it.
    pub target: Ipv4Addr,
    /// The processes that carry it: one a laptop, or none.
    pub processes: Vec<u32>,
    laptops: Vec<Laptop>,
    /// Links of the kernel's to remove.
    device: Option<&'static str>,
    /// Dropped in this order.
    _running: Vec<Background>,
    _nodes: Vec<Node>,
}

impl Tunnel {
    /// Starts `way` between two laptops; `between` is a machine both can reach, for those who need a third.
    ///
    /// # Errors
    /// When it cannot, or the second laptop does not answer through it.
    pub fn start(way: Way, ends: &[Laptop; 2], between: Option<&Laptop>) -> Result<Self> {
        for laptop in ends {
            // What the one before wrote is no explanation of this one's failure. There may be none yet.
            let _ = fs::remove_file(laptop.dir.join("log"));
        }
        let mut tunnel = Self {
            target: INNER[1],
            processes: Vec::new(),
            laptops: ends.to_vec(),
            device: None,
            _running: Vec::new(),
            _nodes: Vec::new(),
        };
        match way {
            Way::Raw | Way::Control => tunnel.target = ends[1].underlay,
            Way::Vxlan => {
                tunnel.device = Some(VXLAN);
                vxlan(ends)?;
            }
            Way::Meshd | Way::MeshdBusy => {
                let nodes = meshd(ends, if way == Way::MeshdBusy { &["--busy-poll"] } else { &[] })?;
                tunnel.target = nodes[1].ipv4();
                tunnel.processes = nodes.iter().map(Node::process).collect();
                tunnel._nodes = nodes;
            }
            Way::N2n | Way::Tinc | Way::Fastd | Way::OpenVpn | Way::WireGuardGo => {
                let peers = peers::start(way, ends, between)?;
                tunnel.processes = peers.iter().take(2).map(Background::process).collect();
                tunnel._running = peers;
            }
        }
        let target = tunnel.target;
        let answers = || Ok(ends[0].run(&format!("ping -n -q -c 1 -W 1 {target}")).is_ok());
        wait_for(&format!("{} reaches {target}", way.name()), MEET, answers).with_context(|| {
            let tail = |laptop: &Laptop| laptop.run("tail -n 20 log").unwrap_or_default();
            format!("logs:\n{}\n{}", tail(&ends[0]), tail(&ends[1]))
        })?;
        if !tunnel.processes.is_empty() {
            // Rounds of MTU probes, of address announcements, of path choices: half a minute of them is over in a few.
            std::thread::sleep(Duration::from_secs(3));
        }
        tunnel.serve(&ends[1])?;
        Ok(tunnel)
    }

    fn serve(&mut self, laptop: &Laptop) -> Result<()> {
        self._running.push(Background::start(laptop.command("iperf3").arg("--server"))?);
        let address = format!("{}:{PORT}", self.target);
        let mut receiver = laptop.command(std::env::current_exe()?);
        self._running.push(Background::start(receiver.args(["load", "receive", &address]))?);
        wait_for("iperf3 and the receiver listen", Duration::from_secs(5), || {
            Ok(laptop.run("ss -ltn")?.contains(":5201") && laptop.run("ss -lun")?.contains(&format!(":{PORT}")))
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(device) = self.device {
            for laptop in &self.laptops {
                let _ = laptop.run(&format!("ip link delete {device}"));
            }
        }
    }
}

const VXLAN: &str = "vxlan0";

/// The kernel's tunnel with the MTU that its 50 bytes leave of 1500.
fn vxlan(ends: &[Laptop; 2]) -> Result<()> {
    for (here, there) in [(0, 1), (1, 0)] {
        let (laptop, remote) = (&ends[here], ends[there].underlay);
        let local = laptop.underlay;
        laptop
            .run(&format!("ip link add {VXLAN} type vxlan id 7 local {local} remote {remote} dstport 4789 dev eth0"))?;
        laptop.run(&format!("ip addr add {}/24 dev {VXLAN}", INNER[here]))?;
        laptop.run(&format!("ip link set {VXLAN} mtu 1450 up"))?;
    }
    Ok(())
}

/// The first laptop founds and is up, with `options`, before it invites the second, so the invite says where it is.
fn meshd(ends: &[Laptop; 2], options: &[&str]) -> Result<Vec<Node>> {
    for laptop in ends {
        let state = laptop.dir.join("state");
        if state.exists() {
            fs::remove_dir_all(state)?;
        }
    }
    ends[0].found("bench")?;
    let first = ends[0].up_with(options)?;
    ends[1].join(&ends[0].invite(&[])?)?;
    let second = ends[1].up_with(options)?;
    for node in [&first, &second] {
        node.wait_connected(1, MEET)?;
    }
    let peers = first.laptop().ask(&["peers"])?;
    if !peers.to_string().contains("\"direct\"") {
        bail!("the path is not direct: {peers}");
    }
    Ok(vec![first, second])
}
