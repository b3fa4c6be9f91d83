//! Homes on an Internet: each laptop behind a box that the kernel makes, a slow cable to its provider, the
//! providers on one switch, and a public laptop on the same. The ways are 10 ms long each, for a lab without delay hides every mistake
//! of timing. The Internet has addresses that are no private ones: a node takes none of those for outside. Homes that have IPv6 have a
//! /64 of their own behind a stateful firewall, over the same cables; the public laptop has both.
//!
//! ```text
//! ada ── box-ada [── carrier] ══ 10 ms ══ isp-ada ──┬── isp-bob ══ 10 ms ══ [carrier ──] box-bob ── bob
//!                                                  pub
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::wire::Conditions;
use super::{Background, Lab, Laptop, Wire, run, wait_for};
use crate::kinds::{Families, Kernel, Kind, Source, Unasked};

/// How long a mapping daemon takes to start, at the most.
const MAPPER_STARTS: Duration = Duration::from_secs(5);

/// The Internet, of addresses that a gateway takes for public and that nobody here leads anywhere else: .0.0/24 is the switch, .N the
/// cable of home N, .100+N its inside if nothing is translated.
const INTERNET: [u8; 2] = [44, 128];

/// Public laptops are below, providers from here on.
const PROVIDERS: u8 = 200;

/// The subnet between a home and its carrier: 100.64.N (RFC 6598).
const CARRIERS: [u8; 2] = [100, 64];

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
    /// The laptop, .2 behind its box.
    pub laptop: Laptop,
    /// The outermost box, as the provider knows it.
    pub gate: Laptop,
    /// Where the rest of the world sees the laptop, over IPv4 if it has that.
    pub outside: Ipv4Addr,
    provider: Laptop,
    /// Where the provider is on the switch.
    via: Ipv4Addr,
    /// The same over IPv6, and the home's network, if it has that.
    ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
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

    /// From now on nothing gets from here to `other`: the two providers have fallen out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut_off_from(&self, other: &Self) -> Result<()> {
        self.provider.run(&format!("ip route replace unreachable {}", other.outside)).map(drop)
    }

    /// From now on everything gets out: the hotel's network was left for another, or its owner had a word with somebody.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unblock(&self) -> Result<()> {
        self.gate.run("nft flush chain ip box stop").map(drop)
    }

    /// What the outermost box remembers, one flow a line.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn flows(&self) -> Result<String> {
        self.gate.run("cat /proc/net/nf_conntrack")
    }
}

/// Homes and a public laptop.
#[derive(Debug)]
pub struct Homes {
    /// On the Internet itself.
    pub public: Laptop,
    /// Behind boxes.
    pub homes: Vec<Home>,
}

impl Homes {
    /// Builds them: a name and a kind of box each, and a public laptop `pub`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &mut Lab, homes: &[(&str, &Kind)]) -> Result<Self> {
        let public = lab.laptop_at("pub", within(INTERNET, 0, 1), "switch")?;
        add_ipv6(&public, "eth0", ipv6(0, 1))?;
        let homes = (1..).zip(homes).map(|(number, (name, kind))| home(lab, name, kind, number));
        let homes = homes.collect::<Result<Vec<_>>>()?;
        for machine in homes.iter().map(|home| &home.provider).chain([&public]) {
            lead(machine, homes.iter().filter(|home| home.provider.name != machine.name))?;
        }
        Ok(Self { public, homes })
    }

    /// One more public laptop.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn another(&self, lab: &mut Lab, name: &str) -> Result<Laptop> {
        let laptop = lab.laptop_at(name, within(INTERNET, 0, 2), "switch")?;
        lead(&laptop, self.homes.iter())?;
        Ok(laptop)
    }
}

fn within([a, b]: [u8; 2], subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, subnet, host)
}

/// Tells `machine`, which is on the switch, the ways to `homes`.
fn lead<'a>(machine: &Laptop, homes: impl Iterator<Item = &'a Home>) -> Result<()> {
    let mut lines = String::new();
    for home in homes {
        for [a, b, c, _] in [home.gate.underlay, home.outside].map(|address| address.octets()) {
            lines += &format!("route replace {a}.{b}.{c}.0/24 via {}\n", home.via);
        }
        if let Some((via, network)) = home.ipv6 {
            lines += &format!("route replace {network}/64 via {via}\n");
        }
    }
    let path = machine.dir.join("routes");
    std::fs::write(&path, lines)?;
    run(&format!("ip -n {} -batch {}", machine.name, path.display())).map(drop)
}

/// The address `host` of a network of IPv6: 0 is the switch, N the cable of home N, 100+N its inside.
fn ipv6(network: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network.into(), 0, 0, 0, 0, host.into())
}

fn add_ipv6(machine: &Laptop, device: &str, address: Ipv6Addr) -> Result<()> {
    machine.run(&format!("ip -6 addr add {address}/64 dev {device} nodad")).map(drop)
}

/// Lays IPv6 over the cables of home `number`: a route from the switch to the laptop, and a stateful firewall at the gate. Returns where
/// the provider is on the switch, and the network inside.
fn lay_ipv6(provider: &Laptop, gate: &Laptop, laptop: &Laptop, number: u8) -> Result<(Ipv6Addr, Ipv6Addr)> {
    let (via, inside) = (ipv6(0, PROVIDERS + number), 100 + number);
    add_ipv6(provider, "eth0", ipv6(number, 2))?;
    add_ipv6(gate, "eth0", ipv6(number, 1))?;
    add_ipv6(gate, "home", ipv6(inside, 1))?;
    add_ipv6(laptop, "eth0", ipv6(inside, 2))?;
    provider.run(&format!("ip -6 route add {}/64 via {}", ipv6(inside, 0), ipv6(number, 1)))?;
    gate.run(&format!("ip -6 route add default via {}", ipv6(number, 2)))?;
    laptop.run(&format!("ip -6 route add default via {}", ipv6(inside, 1)))?;
    let rules = "table ip6 box {\n chain through {\n type filter hook forward priority filter\n iifname eth0 ct state new drop\n }\n}\n";
    let path = gate.dir.join("rules6.nft");
    std::fs::write(&path, rules)?;
    gate.run(&format!("nft -f {}", path.display()))?;
    for router in [provider, gate] {
        router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    }
    Ok((via, ipv6(inside, 0)))
}

fn home(lab: &mut Lab, name: &str, kind: &Kind, number: u8) -> Result<Home> {
    let kernel = &kind.kernel;
    let conditions = Conditions { delay: Duration::from_millis(10), seed: number.into(), ..Conditions::PERFECT };
    let (gate, provider) = (format!("gate-{name}"), format!("isp-{name}"));
    let cable = Wire::within(lab, [INTERNET[0], INTERNET[1], number], [&gate, &provider], conditions)?;
    let [gate, provider] = cable.ends.clone();
    gate.run(&format!("ip route add default via {}", provider.underlay))?;
    let via = within(INTERNET, 0, PROVIDERS + number);
    run(&format!("ip link add core-{} type veth peer name core netns {}", provider.name, provider.name))?;
    run(&format!("ip link set core-{} master switch up", provider.name))?;
    provider.plug_in("core", via)?;
    add_ipv6(&provider, "core", ipv6(0, PROVIDERS + number))?;
    provider.run("sysctl -qw net.ipv4.ip_forward=1")?;
    let inner = match kernel.carrier {
        None => gate.clone(),
        Some(carrier) => {
            let at = within(CARRIERS, number, 2);
            let inner = lab.machine(&format!("box-{name}"), at)?;
            join(&gate, within(CARRIERS, number, 1), &inner, at)?;
            become_box(&gate, carrier)?;
            inner
        }
    };
    let translates = kernel.source != Source::Kept;
    let inside = if translates { [192, 168, number] } else { [INTERNET[0], INTERNET[1], 100 + number] };
    let at = |host: u8| Ipv4Addr::new(inside[0], inside[1], inside[2], host);
    let laptop = lab.machine(name, at(2))?;
    join(&inner, at(1), &laptop, at(2))?;
    become_box(&inner, kernel)?;
    if !translates {
        provider.run(&format!("ip route add {}/24 via {}", at(0), gate.underlay))?;
    }
    let outside = if translates { gate.underlay } else { laptop.underlay };
    let ipv6 = kind.families.has_ipv6().then(|| lay_ipv6(&provider, &gate, &laptop, number)).transpose()?;
    if kind.families == Families::V6 {
        laptop.run("ip -4 addr flush dev eth0")?;
    }
    Ok(Home { laptop, gate, outside, provider, via, ipv6, _cable: cable })
}

/// A cable from `router`, where it is called `home`, to `machine`, whose way out it is.
fn join(router: &Laptop, near: Ipv4Addr, machine: &Laptop, far: Ipv4Addr) -> Result<()> {
    run(&format!("ip link add home netns {} type veth peer name eth0 netns {}", router.name, machine.name))?;
    router.plug_in("home", near)?;
    machine.plug_in("eth0", far)?;
    machine.run(&format!("ip route add default via {near}")).map(drop)
}

/// Makes `machine`, with `home` inside and `eth0` outside, such a box.
fn become_box(machine: &Laptop, kernel: &Kernel) -> Result<()> {
    let path = machine.dir.join("rules.nft");
    std::fs::write(&path, rules(kernel, machine.underlay))?;
    machine.run(&format!("nft -f {}", path.display()))?;
    machine.run("sysctl -qw net.ipv4.ip_forward=1").map(drop)
}

/// The rules, for `nft -f`.
fn rules(kernel: &Kernel, outside: Ipv4Addr) -> String {
    let mut chains = String::new();
    let mut chain = |name: &str, hook: &str, rules: &str| {
        chains += &format!("chain {name} {{\n type {hook}\n {rules}\n}}\n");
    };
    let translate = match kernel.source {
        Source::Kept => None,
        Source::Said(words) => Some(words.to_owned()),
        // By a table: a number that is counted is no port, for its bytes are the other way round.
        Source::Counted { by, first, count } => {
            let ports: Vec<_> = (0..count).map(|nth| format!("{nth} : {}", first + nth)).collect();
            Some(format!("snat to {outside} : {by} mod {count} map {{ {} }}", ports.join(", ")))
        }
    };
    if let Some(translate) = translate {
        let rules = format!("oifname eth0 meta l4proto udp {translate}\n oifname eth0 masquerade");
        chain("post", "nat hook postrouting priority srcnat", &rules);
    }
    if let Some(which) = kernel.lets_in {
        // After the translation, so the source is the mapping. Flows that began outside say nothing new.
        let note = "oifname eth0 meta l4proto udp ct direction original \
                    update @back { udp sport : ct original ip saddr . ct original proto-src } \
                    update @asked { ip daddr . udp sport }";
        chain("note", "filter hook postrouting priority srcnat + 10", note);
        let pass = format!("iifname eth0 meta l4proto udp {which} dnat to udp dport map @back");
        chain("pre", "nat hook prerouting priority dstnat", &pass);
    }
    if kernel.unasked != Unasked::Passes {
        if kernel.unasked == Unasked::Drops {
            chain("in", "filter hook input priority filter", "iifname eth0 ct state new drop");
        }
        // What was let in above has another destination by now.
        chain("through", "filter hook forward priority filter", "iifname eth0 ct state new ct status & dnat == 0 drop");
    }
    if !kernel.passes_udp {
        let web = if kernel.only_443 { "\n iifname home tcp dport != 443 drop" } else { "" };
        chain("stop", "filter hook forward priority filter - 1", &format!("meta l4proto udp drop{web}"));
    }
    // As long as a kernel remembers a flow that was answered.
    let memory = "flags dynamic,timeout\n timeout 2m\n size 65536";
    format!(
        "table ip box {{\n\
         map back {{\n type inet_service : ipv4_addr . inet_service\n {memory}\n}}\n\
         set asked {{\n type ipv4_addr . inet_service\n {memory}\n}}\n\
         {chains}}}\n"
    )
}
