//! What was typed: the command line, and one function a command.
//!
//! Data goes to stdout, everything else to stderr. A failure is one line, `meshd: what is wrong; what to do`, and exit
//! code 1; a command line that makes no sense is clap's business and exit code 2.

mod duration;
mod input;
mod members;
mod ping;
mod qr;
mod render;
mod telling;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::config::filter::Rules;
use crate::config::{NetworkConfig, NodeConfig, Relaying, TLS_PORT, UpConfig};
use crate::daemon::doctor::{self, Patient};
use crate::daemon::enroll::{self, Terms};
use crate::daemon::store::{self, Home, Store};
use crate::daemon::{self, admin, api, process, telemetry};
use crate::identity::{Ipv4Prefix, MAX_QUORUM, Mac, Name, PartyCode, Roles};
use crate::node::{Command, Reply};

/// Bytes of an interface's name that Linux allows: IFNAMSIZ less the zero at the end.
const MAX_DEVICE_NAME: usize = 15;

/// The first invite of a network is open for a week to everybody who gets it: a founder sets up several machines.
fn first_invite() -> Terms {
    Terms {
        name: "first".parse().expect("a DNS label"),
        roles: Roles::NONE,
        expires: Duration::from_secs(7 * 86400),
        uses: 0,
        member_for: Duration::from_secs(5 * 365 * 86400),
    }
}

/// A layer-2 mesh VPN with no centre.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, about, long_about = None)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Args)]
struct Global {
    /// Where networks are kept [default: /var/lib/meshd for root, else ~/.local/state/meshd]
    #[arg(long, global = true, env = "MESHD_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where API sockets are [default: /run/meshd for root, else $XDG_RUNTIME_DIR/meshd]
    #[arg(long, global = true, env = "MESHD_RUNTIME_DIR", value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Which network, if this machine is a member of several; for `join`, what to call it here
    #[arg(long, global = true, value_name = "NETWORK")]
    network: Option<Name>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    /// Log more; twice: a line for each datagram
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a network with this machine as its first member, and print the first invite
    Init {
        /// What to call the network [default: mesh- and four digits of its id]
        #[arg(long, value_name = "NETWORK")]
        name: Option<Name>,
        /// What to call this machine [default: its host name]
        #[arg(long, value_name = "HOST")]
        host: Option<Name>,
        /// The network's IPv4 addresses [default: 10.x.0.0/16, x by the network's id]
        #[arg(long, value_name = "PREFIX")]
        prefix: Option<Ipv4Prefix>,
        /// How many admins it takes to expel a member. This machine, as the founder's, needs no other
        #[arg(long, value_name = "ADMINS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_QUORUM)))]
        quorum: u8,
    },
    /// Print an invite; whoever gets it can become a member
    Invite {
        #[command(flatten)]
        which: Which,
        /// How long one may join by it
        #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration::parse)]
        expires: Duration,
        /// How many may join by it; 0: any number. Of more, those stay whom others met first
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        uses: u16,
        /// What they may do: member, relay, bridge or admin; may be repeated
        #[arg(long, value_name = "ROLE")]
        role: Vec<Roles>,
        /// What to call it in lists
        #[arg(long, value_name = "LABEL", default_value = "invite")]
        name: Name,
        /// Print it as a meshd:// link and a QR code
        #[arg(long)]
        qr: bool,
        /// How long their membership lasts, from now
        #[arg(long, value_name = "DURATION", default_value = "5y", value_parser = duration::parse)]
        member_for: Duration,
    },
    /// Show the invites: those made here, and those by which members have joined
    Invites {
        #[command(flatten)]
        which: Which,
        /// Let nobody join any more by this one: its key, the last eight characters of it or more, or its name
        #[arg(long, value_name = "INVITE")]
        withdraw: Option<String>,
    },
    /// Expel a member, for ever, with everybody whom it has invited
    Revoke {
        /// A name or a peer id
        member: String,
        /// Why, for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Let those stay whom it has invited
        #[arg(long)]
        keep: bool,
    },
    /// Become a member by an invite; works offline
    Join {
        /// The invite, or its link; `-` reads it from standard input, `@FILE` from a file
        invite: String,
        /// What to call this machine [default: its host name]
        #[arg(long, value_name = "HOST")]
        name: Option<Name>,
    },
    /// Run the node, until SIGINT or SIGTERM
    Up {
        #[command(flatten)]
        which: Which,
        /// Become a member first, if this machine is none yet; as for `join`
        #[arg(long, env = "MESHD_INVITE", hide_env_values = true, value_name = "INVITE")]
        invite: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Meet everybody on this LAN who has the same code; nothing is kept when it ends
    Party {
        /// The five words; without them meshd asks, `-` reads standard input, `@FILE` a file [default: a new code, which is printed]
        #[arg(long, value_name = "WORDS", num_args = 0..=5)]
        code: Option<Vec<String>>,
        /// What to call this machine [default: its host name]
        #[arg(long, value_name = "HOST")]
        name: Option<Name>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show how this node stands
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Show the members and how they are reached
    Peers {
        #[command(flatten)]
        which: Which,
    },
    /// Show the MACs and behind which member each is
    Stations {
        #[command(flatten)]
        which: Which,
    },
    /// Show what the directory says, and which shards hold it
    Lookup {
        /// A MAC, an IP address or a name
        key: String,
    },
    /// Show why a member is reached as it is: the candidates, both NATs, and the reason
    Why {
        /// A name, an address in the mesh, a MAC or a peer id
        peer: String,
    },
    /// Ask anew how this network treats us: its NAT, where others see us, whether UDP comes back
    Netcheck {
        #[command(flatten)]
        which: Which,
    },
    /// Show, load or try the packet filter: which packets of other members this machine takes
    Filter {
        #[command(subcommand)]
        action: FilterAction,
    },
    /// Tell whether this machine is set up right, and what to do if not; exit code 1 if a node could not run
    Doctor {
        #[command(flatten)]
        which: Which,
        /// As for `up`
        #[arg(long, env = "MESHD_USER", value_name = "USER")]
        user: Option<String>,
    },
    /// Measure the round trip to a member inside the tunnel
    Ping {
        /// A name, an address in the mesh, a MAC or a peer id
        peer: String,
        /// Over each path there is, relays too
        #[arg(long)]
        path: bool,
        /// Stop after so many [default: at Ctrl-C]
        #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
        /// Seconds from one to the next
        #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = ping::parse_interval)]
        interval: Duration,
    },
}

#[derive(Debug, Subcommand)]
enum FilterAction {
    /// Show the rules that hold, and what each has refused
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Take the rules of a file, now and at every start
    Load {
        /// The file; `-`: standard input [default: the network's own, STATE/NETWORK/filter]
        file: Option<PathBuf>,
    },
    /// Tell what would become of a packet that begins something, and by which rule
    Test {
        /// Who sends: a name, an address in the mesh, a MAC or a peer id
        from: String,
        /// tcp, udp, icmp or a number
        protocol: String,
        /// Of tcp and udp
        port: Option<u16>,
        /// Who receives [default: this machine]
        #[arg(long, value_name = "MEMBER")]
        to: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// Which network, if this machine is a member of several
    #[arg(id = "NETWORK", value_name = "NETWORK")]
    named: Option<Name>,
}

/// `meshd up`'s settings; the environment serves the systemd unit.
#[derive(Debug, Args)]
struct Settings {
    /// Name of the network interface [default: the network's name, cut to 15 bytes]
    #[arg(long, env = "MESHD_DEVICE", value_name = "NAME")]
    device: Option<String>,
    /// UDP and TCP port [default: 4747, or any free one]
    #[arg(long, env = "MESHD_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Our MAC address in the mesh [default: by our key]
    #[arg(long, env = "MESHD_MAC", value_parser = parse_mac)]
    mac: Option<Mac>,
    /// Our IPv4 address in the mesh [default: by our key]
    #[arg(long, env = "MESHD_IP", value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// MTU of the network interface
    #[arg(long, env = "MESHD_MTU", value_name = "BYTES", default_value_t = crate::config::DEFAULT_MTU as u16,
          value_parser = clap::value_parser!(u16).range(1280..=9000))]
    mtu: u16,
    /// Forwarding lanes, of two threads each; more than one helps machines that speak to several members at gigabits
    #[arg(long, env = "MESHD_LANES", value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=16))]
    lanes: u8,
    /// Look for packets for 20 ms before sleeping: less latency, for up to two cores a lane
    #[arg(long, env = "MESHD_BUSY_POLL")]
    busy_poll: bool,
    /// Do not mix ML-KEM-768 into the keys of sessions
    #[arg(long, env = "MESHD_NO_POST_QUANTUM")]
    no_post_quantum: bool,
    /// Find out how long a datagram each path carries, instead of taking it to be 1452 bytes (an experiment)
    #[arg(long, env = "MESHD_SEARCH_MTU")]
    search_mtu: bool,
    /// Whom the process becomes after its start, if root starts it: a name, a number, or root [default: meshd if there is such an account, else 4747]
    #[arg(long, env = "MESHD_USER", value_name = "USER")]
    user: Option<String>,
    /// Do not ask the router at home (PCP, NAT-PMP, UPnP) to let other members in
    #[arg(long, env = "MESHD_NO_PORT_MAPPING")]
    no_port_mapping: bool,
    /// Also take members at TCP port 443, in TLS: those whose network lets out nothing but the web
    #[arg(long, env = "MESHD_LISTEN_443")]
    listen_443: bool,
    /// Carry nothing for other members that cannot meet each other
    #[arg(long, env = "MESHD_NO_RELAY")]
    no_relay: bool,
    /// What is carried for others at most, Mbit/s; two of them get half of it
    #[arg(long, env = "MESHD_RELAY_LIMIT", value_name = "MBITS", default_value_t = crate::config::DEFAULT_RELAY_LIMIT,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    relay_limit: u32,
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    process::begin();
    let Cli { global, action } = Cli::parse();
    secrets(&action).into_iter().filter(|text| input::is_literal(text)).for_each(process::conceal);
    telemetry::start(global.verbose);
    act(&global, action).unwrap_or_else(|error| {
        render::error(&error);
        ExitCode::FAILURE
    })
}

/// What of the command line is nobody else's business.
fn secrets(action: &Action) -> Vec<&str> {
    match action {
        Action::Join { invite, .. } | Action::Up { invite: Some(invite), .. } => vec![invite],
        Action::Party { code: Some(words), .. } => words.iter().map(String::as_str).collect(),
        Action::Init { .. }
        | Action::Invite { .. }
        | Action::Invites { .. }
        | Action::Revoke { .. }
        | Action::Up { .. }
        | Action::Party { .. }
        | Action::Status { .. }
        | Action::Peers { .. }
        | Action::Stations { .. }
        | Action::Lookup { .. }
        | Action::Why { .. }
        | Action::Netcheck { .. }
        | Action::Filter { .. }
        | Action::Doctor { .. }
        | Action::Ping { .. } => Vec::new(),
    }
}

fn act(global: &Global, action: Action) -> Result<ExitCode> {
    let store = Store::open(global.state_dir.clone())?;
    match action {
        Action::Init { name, host, prefix, quorum } => {
            let name = one_name("--name", name, global.network.clone())?;
            let (home, enrolled) = enroll::found(&store, name, host, prefix, quorum)?;
            render::founded(global.json, &enrolled, &enroll::invite(&home, &first_invite(), &[])?)?;
        }
        Action::Invite { which, expires, uses, role, name, qr, member_for } => {
            let home = open(&store, global, which)?;
            let status = runtime(global, &home.network.name).and_then(|path| api::request(&path, &Command::Status));
            let endpoints = match status {
                // What the router lets in comes first: newcomers elsewhere need it, those on this LAN have mDNS.
                Ok(Reply::Status(status)) => [status.mapped, status.endpoints].concat(),
                // Not running: an invite without our endpoints still works on one LAN.
                Ok(_) | Err(_) => Vec::new(),
            };
            let asked = role.into_iter().fold(Roles::NONE, Roles::with);
            // An admin may grant what it has: everything but its own role.
            let roles = if asked.contains(Roles::ADMIN) { Roles::ALL } else { asked };
            let ticket = enroll::invite(&home, &Terms { name, roles, expires, uses, member_for }, &endpoints)?;
            render::invited(global.json, qr, &ticket, !endpoints.is_empty())?;
        }
        Action::Invites { which, withdraw } => {
            let home = open(&store, global, which)?;
            match withdraw {
                Some(text) => {
                    let invite = admin::withdraw(&home, &runtime(global, &home.network.name)?, &text)?;
                    members::withdrawn(global.json, &invite)?;
                }
                None => members::invites(global.json, &admin::invites(&home)?)?,
            }
        }
        Action::Revoke { member, reason, keep } => {
            let home = open(&store, global, Which { named: None })?;
            let socket = runtime(global, &home.network.name)?;
            let expelled = admin::revoke(&home, &socket, &member, reason, keep)?;
            members::expelled(global.json, &member, &expelled)?;
        }
        Action::Join { invite, name } => {
            let text = input::invite(&invite)?;
            let (_, enrolled) = enroll::join(&store, &text, global.network.clone(), name)?;
            render::joined(global.json, &enrolled)?;
        }
        Action::Up { which, invite, settings } => {
            // Empty is how a compose file says "none".
            let home = match invite.filter(|invite| !invite.is_empty()) {
                Some(invite) => invited(&store, global, which, &invite)?,
                None => open(&store, global, which)?,
            };
            up(global, home, settings)?;
        }
        Action::Party { code, name, settings } => party(global, code.as_deref(), name, settings)?,
        Action::Status { which } => show(&store, global, which.named, Command::Status)?,
        Action::Peers { which } => show(&store, global, which.named, Command::Peers)?,
        Action::Stations { which } => show(&store, global, which.named, Command::Stations)?,
        Action::Lookup { key } => show(&store, global, None, Command::Lookup { key })?,
        Action::Why { peer } => show(&store, global, None, Command::Why { peer })?,
        Action::Netcheck { which } => show(&store, global, which.named, Command::Netcheck)?,
        Action::Filter { action } => match action {
            FilterAction::Show { which } => show(&store, global, which.named, Command::Filter)?,
            FilterAction::Load { file } => load_filter(&store, global, file.as_deref())?,
            FilterAction::Test { from, protocol, port, to } => {
                show(&store, global, None, Command::TestFilter { from, to, protocol, port })?;
            }
        },
        Action::Doctor { which, user } => {
            let network = one_name("NETWORK", which.named, global.network.clone())?;
            let runtime = global.runtime_dir.as_deref();
            let patient = Patient { store: &store, runtime, network: network.as_ref(), user: user.as_deref() };
            return render::findings(global.json, &doctor::examine(&patient));
        }
        Action::Ping { peer, path, count, interval } => {
            let socket = asked(&store, global, None)?;
            let command = if path { Command::PingPaths { peer } } else { Command::Ping { peer } };
            return ping::run(&socket, &command, count, interval, global.json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(global: &Global, home: Home, settings: Settings) -> Result<()> {
    let membership = home.membership(enroll::clock()?)?;
    may_have(&home.network, settings.ip)?;
    let _lock = home.lock()?;
    let boots = home.next_boot()?;
    let dir = home.dir.clone();
    let node = home.into_node(boots, settings.mac, settings.ip, usize::from(settings.mtu));
    run(global, node, membership.name().clone(), Some(dir), settings)
}

/// Takes part in a party: the code's, or a new one.
fn party(global: &Global, words: Option<&[String]>, host: Option<Name>, settings: Settings) -> Result<()> {
    let code = match words {
        Some(words) => input::party_code(words)?.parse::<PartyCode>()?,
        None => enroll::party_code()?,
    };
    let (node, name) = enroll::party(&code, host)?;
    may_have(&node.network, settings.ip)?;
    render::party(global.json, &node.network, words.is_none().then_some(&code))?;
    drop(code);
    let node = NodeConfig { mac: settings.mac, ipv4: settings.ip, mtu: usize::from(settings.mtu), ..node };
    // Who is not on this LAN has no business here.
    run(global, node, name, None, Settings { no_port_mapping: true, ..settings })
}

fn may_have(network: &NetworkConfig, ip: Option<std::net::Ipv4Addr>) -> Result<()> {
    if let Some(ip) = ip.filter(|ip| !network.prefix.contains_host(*ip)) {
        bail!("{ip} is not a host of network {}, which is {}; choose an --ip in it", network.name, network.prefix);
    }
    Ok(())
}

fn run(global: &Global, node: NodeConfig, name: Name, state: Option<PathBuf>, settings: Settings) -> Result<()> {
    if settings.port == Some(TLS_PORT) {
        bail!("port {TLS_PORT} is for TLS only: choose another --port, and --listen-443 beside it");
    }
    let network = &node.network.name;
    let relaying = Relaying { serve: !settings.no_relay, limit: u64::from(settings.relay_limit) * 1_000_000 };
    daemon::run(UpConfig {
        name,
        device: settings.device.unwrap_or_else(|| device_name(network)),
        port: settings.port,
        lanes: settings.lanes.into(),
        busy_poll: settings.busy_poll,
        search_mtu: settings.search_mtu,
        port_mapping: !settings.no_port_mapping,
        user: settings.user,
        state,
        runtime: store::runtime_dir(global.runtime_dir.as_deref(), network)?,
        node: NodeConfig { relaying, tls: settings.listen_443, post_quantum: !settings.no_post_quantum, ..node },
    })
}

/// The network of an invite; joins it, if that was not done before.
fn invited(store: &Store, global: &Global, which: Which, invite: &str) -> Result<Home> {
    let named = one_name("NETWORK", which.named, global.network.clone())?;
    let text = input::invite(invite)?;
    if let Some(home) = enroll::joined(store, &text)? {
        if let Some(name) = named.filter(|name| *name != home.network.name) {
            bail!("the network of this invite is called {} here, not {name}", home.network.name);
        }
        return Ok(home);
    }
    let (home, enrolled) = enroll::join(store, &text, named, None)?;
    tracing::info!("this machine is a member of network {} now, as {}", enrolled.network, enrolled.name);
    Ok(home)
}

/// Checks a filter, keeps it, and hands it to the node, if it runs.
fn load_filter(store: &Store, global: &Global, file: Option<&Path>) -> Result<()> {
    let name = choose(store, global, None)?;
    let dir = store.dir(&name);
    let text = match file {
        Some(file) => input::filter(file)?,
        None => store::read_filter(&dir)?,
    };
    text.parse::<Rules>()?;
    if file.is_some() {
        store::save_filter(&dir, &text)?;
    }
    let path = runtime(global, &name)?;
    if store::runs(&path) {
        return show(store, global, Some(name), Command::LoadFilter { rules: text });
    }
    render::filter_kept(global.json, &name)
}

/// Asks the daemon and prints what it says.
fn show(store: &Store, global: &Global, named: Option<Name>, command: Command) -> Result<()> {
    let path = asked(store, global, named)?;
    let reply = api::request(&path, &command)?;
    if let Reply::Error { message } = reply {
        bail!(message);
    }
    render::reply(global.json, &reply)
}

fn open(store: &Store, global: &Global, which: Which) -> Result<Home> {
    store.load(&choose(store, global, which.named)?)
}

/// The socket of the network or party that is meant.
fn asked(store: &Store, global: &Global, named: Option<Name>) -> Result<PathBuf> {
    let named = one_name("NETWORK", named, global.network.clone())?;
    runtime(global, &store.choose_among(named.as_ref(), &store::parties(global.runtime_dir.as_deref()))?)
}

fn choose(store: &Store, global: &Global, named: Option<Name>) -> Result<Name> {
    store.choose(one_name("NETWORK", named, global.network.clone())?.as_ref())
}

fn runtime(global: &Global, network: &Name) -> Result<PathBuf> {
    Ok(api::socket_path(&store::runtime_dir(global.runtime_dir.as_deref(), network)?))
}

/// A name may be said in two places, but not differently.
fn one_name(place: &str, named: Option<Name>, global: Option<Name>) -> Result<Option<Name>> {
    if let (Some(a), Some(b)) = (&named, &global)
        && a != b
    {
        bail!("{place} says {a} and --network says {b}; say one of them");
    }
    Ok(named.or(global))
}

fn device_name(network: &Name) -> String {
    let text = network.as_str();
    text[..text.len().min(MAX_DEVICE_NAME)].trim_end_matches('-').to_owned()
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse().map_err(|error| format!("{error}"))?;
    if mac.is_group() || mac == Mac([0; 6]) {
        return Err("a node needs a unicast MAC: the first byte must be even, and not all bytes zero".to_owned());
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_device_is_called_like_its_network_as_far_as_linux_lets_it() {
        let device = |name: &str| device_name(&name.parse().expect("a name"));
        assert_eq!(device("mesh-7f3a"), "mesh-7f3a");
        assert_eq!(device("a-network-with-a-long-name"), "a-network-with");
    }

    #[test]
    fn a_group_mac_is_refused() {
        assert!(parse_mac("02:00:00:00:00:01").is_ok());
        for text in ["03:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00"] {
            assert!(parse_mac(text).is_err(), "{text}");
        }
    }
}
