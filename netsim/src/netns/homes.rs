//! Homes on an Internet: each laptop behind a router with the kernel's NAT, a slow cable to its provider, the
//! providers on one switch, and a public laptop on the same. The ways are 10 ms long each, for a lab without delay hides every mistake
//! of timing.
//!
//! ```text
//! ada ── gate-ada (NAT) ══ 10 ms ══ isp-ada ──┬── isp-bob ══ 10 ms ══ gate-bob (NAT) ── bob
//!                                            pub
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::wire::Conditions;
use super::{Background, Lab, Laptop, Wire, run, wait_for};

/// Where the providers' customers are: addresses that a gateway takes for public, and that nobody here leads anywhere else.
const INTERNET: [u8; 2] = [44, 128];

/// How long a mapping daemon takes to start, at the most.
const MAPPER_STARTS: Duration = Duration::from_secs(5);

/// What stands between a home and its provider. All of Linux' keep the port where they can, map independently of the endpoint
/// until there is a conflict, and filter by address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// Drops what nobody asked for, before it leaves any trace: as home routers do.
    Careful,
    /// Lets its own kernel answer what nobody asked for, and remembers it: a laptop that sends to the same peer later gets
    /// another port.
    Careless,
    /// Another port by chance for each destination ("symmetric").
    Symmetric,
}

impl Router {
    /// The rules, for `nft -f`.
    fn rules(self) -> String {
        let translate = match self {
            Self::Careful | Self::Careless => "masquerade",
            Self::Symmetric => "masquerade random,fully-random",
        };
        let filter = match self {
            Self::Careful | Self::Symmetric => "drop",
            Self::Careless => "accept",
        };
        format!(
            "table ip home {{\n\
             chain post {{\n type nat hook postrouting priority srcnat\n oifname eth0 {translate}\n }}\n\
             chain in {{\n type filter hook input priority filter\n iifname eth0 ct state new {filter}\n }}\n\
             }}\n"
        )
    }
}

/// The languages in which a router can be asked for a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapper {
    /// RFC 6887 alone.
    Pcp,
    /// RFC 6886 alone.
    NatPmp,
    /// UPnP-IGD alone.
    Upnp,
}

impl Mapper {
    /// The settings of miniupnpd in a home.
    fn settings(self, external: Option<Ipv4Addr>) -> String {
        let switch = |on: bool| if on { "yes" } else { "no" };
        let upnp = self == Self::Upnp;
        let lie = external.map(|address| format!("ext_ip={address}\n")).unwrap_or_default();
        format!(
            "ext_ifname=eth0\nlistening_ip=home\nipv6_disable=yes\nsecure_mode=yes\nhttp_port=5000\n\
             enable_upnp={}\nenable_natpmp={}\n{lie}\
             uuid=ec74fff4-c53e-40e9-82fd-dfc94c589758\n\
             allow 1024-65535 192.168.0.0/16 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            switch(upnp),
            switch(!upnp),
        )
    }

    /// miniupnpd speaks PCP and NAT-PMP or neither: the version, the first byte of a question, tells them apart.
    fn only(self) -> &'static str {
        match self {
            Self::Pcp => "udp dport 5351 @th,64,8 0 drop",
            Self::NatPmp => "udp dport 5351 @th,64,8 2 drop",
            Self::Upnp => "udp dport 5351 drop",
        }
    }

    /// The chains that miniupnpd fills, as its package makes them but without a policy: the home's own rules filter.
    fn rules(self) -> String {
        format!(
            "table inet filter\ndelete table inet filter\ntable inet filter {{\n\
             chain miniupnpd {{\n }}\n\
             chain prerouting_miniupnpd {{\n }}\n\
             chain postrouting_miniupnpd {{\n }}\n\
             chain forward {{\n type filter hook forward priority 0\n jump miniupnpd\n }}\n\
             chain prerouting {{\n type nat hook prerouting priority -100\n jump prerouting_miniupnpd\n }}\n\
             chain questions {{\n type filter hook input priority -10\n {}\n }}\n\
             }}\n",
            self.only()
        )
    }
}

/// One home.
#[derive(Debug)]
pub struct Home {
    /// The laptop: 192.168.N.2 behind the gate.
    pub laptop: Laptop,
    /// The router, as the provider knows it.
    pub gate: Laptop,
    provider: Laptop,
    /// Where the provider is on the switch.
    via: Ipv4Addr,
    _cable: Wire,
}

impl Home {
    /// Starts miniupnpd on the router, which forgets what an earlier one had mapped, speaking one language. With `external` it says that this is its address outside.
    ///
    /// # Errors
    /// When it does not start.
    pub fn offer_mappings(&self, mapper: Mapper, external: Option<Ipv4Addr>) -> Result<Background> {
        let (rules, settings) = (self.gate.dir.join("miniupnpd.nft"), self.gate.dir.join("miniupnpd.conf"));
        std::fs::write(&rules, mapper.rules())?;
        std::fs::write(&settings, mapper.settings(external))?;
        self.gate.run(&format!("nft -f {}", rules.display()))?;
        let process = self.gate.dir.join("miniupnpd.pid");
        let mut command = self.gate.command("miniupnpd");
        let log = self.gate.dir.join("miniupnpd.log");
        command.arg("-d").arg("-f").arg(&settings).arg("-P").arg(&process);
        let running = Background::logged(&mut command, &log)?;
        let port = if mapper == Mapper::Upnp { ":1900" } else { ":5351" };
        wait_for("miniupnpd listens", MAPPER_STARTS, || Ok(self.gate.run("ss -lun")?.contains(port)))
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(running)
    }

    /// What the router lets in for everybody, as its kernel says: `udp 4747`.
    ///
    /// # Errors
    /// When it does not say.
    pub fn mapped(&self) -> Result<Vec<String>> {
        let chain = self.gate.run("nft list chain inet filter prerouting_miniupnpd")?;
        let rules = chain.lines().filter(|line| line.contains(" dnat "));
        // miniupnpd compares the byte of the IP header that names the protocol.
        let mut mapped: Vec<_> = rules
            .map(|rule| {
                let protocol = if rule.contains("@nh,72,8 0x11 ") { "udp" } else { "tcp" };
                let port = rule.split(" dport ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("any");
                format!("{protocol} {port}")
            })
            .collect();
        mapped.sort_unstable();
        Ok(mapped)
    }

    /// From now on nothing gets from here to the gate of `other`: the two providers have fallen out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut_off_from(&self, other: &Self) -> Result<()> {
        self.provider.run(&format!("ip route replace unreachable {}", other.gate.underlay)).map(drop)
    }
}

/// Homes and a public laptop.
#[derive(Debug)]
pub struct Homes {
    /// On the Internet itself.
    pub public: Laptop,
    /// Behind routers.
    pub homes: Vec<Home>,
}

impl Homes {
    /// Builds them: a name and a router each, and a public laptop `pub`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &mut Lab, homes: &[(&str, Router)]) -> Result<Self> {
        let public = lab.laptop("pub")?;
        let homes = (1..).zip(homes).map(|(seed, (name, router))| home(lab, name, *router, seed));
        let homes = homes.collect::<Result<Vec<_>>>()?;
        for home in &homes {
            let others = homes.iter().map(|other| &other.provider).filter(|other| other.name != home.provider.name);
            others.chain([&public]).try_for_each(|machine| lead(machine, home))?;
        }
        Ok(Self { public, homes })
    }

    /// One more public laptop.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn another(&self, lab: &mut Lab, name: &str) -> Result<Laptop> {
        let laptop = lab.laptop(name)?;
        self.homes.iter().try_for_each(|home| lead(&laptop, home))?;
        Ok(laptop)
    }
}

/// Tells `machine`, which is on the switch, the way to the gate of `home`.
fn lead(machine: &Laptop, home: &Home) -> Result<()> {
    let [a, b, c, _] = home.gate.underlay.octets();
    machine.run(&format!("ip route add {a}.{b}.{c}.0/24 via {}", home.via)).map(drop)
}

fn home(lab: &mut Lab, name: &str, router: Router, seed: u64) -> Result<Home> {
    let conditions = Conditions { delay: Duration::from_millis(10), seed, ..Conditions::PERFECT };
    let (gate, provider) = (format!("gate-{name}"), format!("isp-{name}"));
    let [.., number] = lab.subnet();
    let cable = Wire::at(lab, [INTERNET[0], INTERNET[1], number], [&gate, &provider], conditions)?;
    let [gate, provider] = cable.ends.clone();
    let [a, b, c] = lab.subnet();
    let laptop = lab.machine(name, Ipv4Addr::new(a, b, c, 2))?;
    run(&format!("ip link add home netns {} type veth peer name eth0 netns {name}", gate.name))?;
    gate.plug_in("home", Ipv4Addr::new(a, b, c, 1))?;
    laptop.plug_in("eth0", laptop.underlay)?;
    laptop.run(&format!("ip route add default via {a}.{b}.{c}.1"))?;
    gate.run(&format!("ip route add default via {}", provider.underlay))?;
    let via = Ipv4Addr::new(192, 168, super::SWITCH_SUBNET, 200 + seed as u8);
    run(&format!("ip link add core-{} type veth peer name core netns {}", provider.name, provider.name))?;
    run(&format!("ip link set core-{} master switch up", provider.name))?;
    provider.plug_in("core", via)?;
    for machine in [&gate, &provider] {
        machine.run("sysctl -qw net.ipv4.ip_forward=1")?;
    }
    let path = gate.dir.join("rules.nft");
    std::fs::write(&path, router.rules())?;
    gate.run(&format!("nft -f {}", path.display()))?;
    Ok(Home { laptop, gate, provider, via, _cable: cable })
}
