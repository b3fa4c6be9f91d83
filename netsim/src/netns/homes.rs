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

use anyhow::Result;

use super::wire::Conditions;
use super::{Lab, Laptop, Wire, run};

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
    let cable = Wire::new(lab, [&gate, &provider], conditions)?;
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
