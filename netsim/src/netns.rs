//! The real world: laptops on one switch without Internet, each a network namespace, each running the real binary.
//!
//! Everything happens inside one private set of namespaces (network, mount, process, and as an ordinary user also
//! user), entered by running ourselves again under unshare(1): [`place`]. /run is a tmpfs there, so named namespaces,
//! keys and sockets exist nowhere else, and our process is number 1. When it ends, by return, panic, Ctrl-C or kill -9,
//! the kernel ends every process and removes every namespace, cable, TAP and file. There is nothing to clean up, so
//! nothing can be left behind.
//!
//! Beside the switch there are a path with a router in it ([`Routed`]) and a slow, lossy or narrow cable ([`Wire`]).
//!
//! Plain ip(8) and a bridge, not patchbay: its devices always hang off a router with addresses, a default route and an
//! exchange, and a switch with nothing behind it is exactly the case to be shown here.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

pub mod attack;
pub mod background;
pub mod bench;
pub mod bridged;
pub mod chain;
pub mod checked;
pub mod demo;
pub mod frames;
pub mod homes;
pub mod iperf3;
pub mod liar;
pub mod load;
pub mod matrix;
pub mod measure;
pub mod routed;
pub mod soak;
pub mod start;
pub mod trial;
pub mod village;
pub mod vlan;
pub mod wire;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub use background::Background;
pub use bridged::Bridged;
pub use chain::Chain;
pub use homes::Homes;
pub use measure::{Capture, Pings};
pub use routed::Routed;
pub use wire::Wire;

/// Set for the process inside.
const INSIDE: &str = "MESHD_LAB_INSIDE";

/// Programs without which there is no lab.
const PROGRAMS: &[&str] = &["ip", "unshare", "setpriv", "mount", "ping"];

/// The switch is 192.168.77.0/24; other cables have the numbers above.
const SWITCH_SUBNET: u8 = 77;

/// How often a condition is looked at, milliseconds: well below the shortest time measured by looking (1 s).
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where the process stands.
#[derive(Debug)]
pub enum Place {
    /// In the private namespaces: go on.
    Inside,
    /// Outside: run this, which is our own program with the same arguments, inside.
    Outside(Box<Command>),
    /// This machine cannot: why.
    Impossible(String),
}

/// Where we are, and how to get in with `arguments`.
///
/// # Errors
/// When our own program cannot be found.
pub fn place<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Place> {
    if is_inside() {
        return Ok(Place::Inside);
    }
    if let Some(reason) = why_impossible() {
        return Ok(Place::Impossible(reason));
    }
    let mut command = unshare();
    command.arg(std::env::current_exe()?).args(arguments).env(INSIDE, "1");
    Ok(Place::Outside(Box::new(command)))
}

/// Whether this process is in the lab's namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// unshare(1) with everything private. It dies with us, and everything inside with it.
fn unshare() -> Command {
    let mut command = Command::new("setpriv");
    command.env("PATH", search_path());
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    command.arg("--mount-proc");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

/// Debian keeps ip(8) where an ordinary user does not look.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether `program` is where we look.
fn is_installed(program: &str) -> bool {
    search_path().split(':').any(|folder| Path::new(folder).join(program).exists())
}

fn why_impossible() -> Option<String> {
    if let Some(missing) = PROGRAMS.iter().find(|program| !is_installed(program)) {
        return Some(format!("{missing} is not installed (make setup)"));
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        let mend = if is_root() { "modprobe tun" } else { "sudo chmod 0666 /dev/net/tun" };
        return Some(format!("/dev/net/tun cannot be opened: {error}; run first: {mend}"));
    }
    let tried = unshare().arg("true").stderr(Stdio::piped()).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Some(format!("no namespaces here: {said}; run first: sudo sysctl kernel.unprivileged_userns_clone=1"))
        }
        Err(error) => Some(format!("no namespaces here: {error}")),
    }
}

fn is_root() -> bool {
    // The effective user of /proc/self is its owner.
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").expect("/proc is there on every Linux")) == 0
}

/// The switch and everything plugged into it.
#[derive(Debug)]
pub struct Lab {
    binary: PathBuf,
    laptops: u8,
    subnets: u8,
    since: Instant,
}

impl Lab {
    /// A switch without laptops. `binary` is the meshd to run. Everything ends after `limit`, whatever happens.
    ///
    /// # Errors
    /// When we are not inside, or the kernel refuses.
    pub fn new(binary: PathBuf, limit: Duration) -> Result<Self> {
        ensure!(is_inside(), "a lab is only made inside its namespaces: see place()");
        ensure!(binary.exists(), "{} is not built: cargo build --workspace --all-features --bins", binary.display());
        thread::spawn(move || {
            thread::sleep(limit);
            let _ = writeln!(std::io::stderr(), "the lab took longer than {} s: stopped", limit.as_secs());
            // We are process 1 here: the kernel stops the rest.
            std::process::exit(124);
        });
        run("mount -t tmpfs -o mode=755 lab /run")?;
        fs::create_dir_all("/run/netns")?;
        run("ip link set lo up")?;
        run("ip link add switch type bridge forward_delay 0 stp_state 0 mcast_snooping 0")?;
        run("ip link set switch up")?;
        Ok(Self { binary, laptops: 0, subnets: SWITCH_SUBNET, since: Instant::now() })
    }

    /// A new laptop named `name` with its cable in the switch: 192.168.77.N, no route anywhere else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn laptop(&mut self, name: &str) -> Result<Laptop> {
        self.laptops += 1;
        self.laptop_at(name, Ipv4Addr::new(192, 168, SWITCH_SUBNET, self.laptops), "switch")
    }

    /// A new laptop with its cable in the bridge `bridge`.
    fn laptop_at(&self, name: &str, underlay: Ipv4Addr, bridge: &str) -> Result<Laptop> {
        let laptop = self.machine(name, underlay)?;
        run(&format!("ip link add port-{name} type veth peer name eth0 netns {name}"))?;
        run(&format!("ip link set port-{name} master {bridge} up"))?;
        laptop.plug_in("eth0", laptop.underlay)?;
        Ok(laptop)
    }

    /// A namespace without any cable, whose first one will have `underlay`.
    fn machine(&self, name: &str, underlay: Ipv4Addr) -> Result<Laptop> {
        run(&format!("ip netns add {name}"))?;
        run(&format!("ip -n {name} link set lo up"))?;
        let dir = PathBuf::from("/run/lab").join(name);
        fs::create_dir_all(&dir)?;
        Ok(Laptop { name: name.to_owned(), underlay, dir, binary: self.binary.clone() })
    }

    /// A /24 that nobody has yet: its first three bytes.
    fn subnet(&mut self) -> [u8; 3] {
        self.subnets += 1;
        [192, 168, self.subnets]
    }

    /// Several laptops.
    ///
    /// # Errors
    /// As [`Lab::laptop`].
    pub fn laptops<const N: usize>(&mut self, names: [&str; N]) -> Result<[Laptop; N]> {
        let laptops = names.iter().map(|name| self.laptop(name)).collect::<Result<Vec<_>>>()?;
        Ok(laptops.try_into().expect("as many laptops as names"))
    }

    /// Since when the switch is there.
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// One machine: a network namespace with a cable, and a folder of its own.
#[derive(Debug, Clone)]
pub struct Laptop {
    /// Its name, also in the mesh.
    pub name: String,
    /// Its address in the underlay.
    pub underlay: Ipv4Addr,
    /// Its folder: state, sockets, log.
    pub dir: PathBuf,
    binary: PathBuf,
}

impl Laptop {
    /// Brings the cable's end `device` up with `address`.
    fn plug_in(&self, device: &str, address: Ipv4Addr) -> Result<()> {
        let name = &self.name;
        // No duplicate address detection: IPv6 of the underlay is there at once, as on a laptop that was up before.
        run(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.{device}.accept_dad=0"))?;
        run(&format!("ip -n {name} link set {device} up"))?;
        run(&format!("ip -n {name} addr add {address}/24 dev {device}")).map(drop)
    }

    /// `program`, to be run in this laptop, with its own home folder.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).current_dir(&self.dir);
        command.env("HOME", &self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a command line (words between spaces) here and returns its output.
    ///
    /// # Errors
    /// When it fails; the error has its words.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        output(self.command(program).args(words)).with_context(|| format!("{}: {line}", self.name))
    }

    /// The meshd of this laptop, with its own folders. A command with a space in an argument needs this one.
    pub fn meshd_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.binary);
        command.arg("--state-dir").arg(self.dir.join("state")).arg("--runtime-dir").arg(self.dir.join("run"));
        command.args(arguments).env("NO_COLOR", "1");
        command
    }

    /// Runs `meshd ARGUMENTS` here.
    ///
    /// # Errors
    /// When it fails; the error has its words.
    pub fn meshd(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.meshd_command(arguments))
            .with_context(|| format!("{}: meshd {}", self.name, arguments.join(" ")))
    }

    /// Runs `meshd ARGUMENTS --json` here.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.meshd(&[arguments, &["--json"]].concat())?;
        // `ping` prints one line for each answer and one for all: the first is asked for.
        let first = serde_json::Deserializer::from_str(&text).into_iter().next();
        first.with_context(|| format!("meshd {} said nothing", arguments.join(" ")))?.with_context(|| text.clone())
    }

    /// Founds a network here and returns its first invite, which any number may use.
    ///
    /// # Errors
    /// When meshd does.
    pub fn found(&self, network: &str) -> Result<String> {
        let founded = self.ask(&["init", "--name", network, "--host", &self.name])?;
        Ok(founded["invite"].as_str().context("`meshd init --json` has no field `invite`")?.to_owned())
    }

    /// An invite of the only network here, with more `arguments`.
    ///
    /// # Errors
    /// When meshd does.
    pub fn invite(&self, arguments: &[&str]) -> Result<String> {
        let ticket = self.ask(&[&["invite"], arguments].concat())?;
        Ok(ticket["invite"].as_str().context("`meshd invite --json` has no field `invite`")?.to_owned())
    }

    /// Joins by an invite.
    ///
    /// # Errors
    /// When meshd does.
    pub fn join(&self, invite: &str) -> Result<()> {
        self.meshd(&["join", invite, "--name", &self.name]).map(drop)
    }

    /// Starts `meshd up`, and waits until its TAP has its addresses.
    ///
    /// # Errors
    /// When it does not come up within 10 s; the error has the end of its log.
    pub fn up(&self) -> Result<Node> {
        self.up_with(&[])
    }

    /// The same with more `options`.
    ///
    /// # Errors
    /// As [`Laptop::up`].
    pub fn up_with(&self, options: &[&str]) -> Result<Node> {
        let mut node = self.start(&mut self.meshd_command(&[&["up"], options].concat()))?;
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts `command`, a `meshd up`, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: &mut Command) -> Result<Node> {
        let log = self.dir.join("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Node { child, laptop: self.clone(), log, ipv4: None, device: String::new() })
    }

    /// Pulls the cable.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unplug(&self) -> Result<()> {
        run(&format!("ip link set port-{} down", self.name)).map(drop)
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&self) -> Result<()> {
        run(&format!("ip link set port-{} up", self.name)).map(drop)
    }
}

/// A running meshd. Killed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    laptop: Laptop,
    log: PathBuf,
    ipv4: Option<Ipv4Addr>,
    device: String,
}

impl Node {
    /// Where it runs.
    pub fn laptop(&self) -> &Laptop {
        &self.laptop
    }

    /// Its address in the overlay.
    ///
    /// # Panics
    /// Before [`Node::wait_ready`].
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4.expect("a node that is ready has an address")
    }

    /// The name of its TAP.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Waits until it answers and its TAP has its address.
    ///
    /// # Errors
    /// When it ends instead, or takes longer than 10 s; the error has the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("meshd on {} ended ({status}):\n{}", self.laptop.name, self.log_tail());
            }
            if let Ok(status) = self.laptop.ask(&["status"]) {
                let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
                let (ipv4, device) = (text("ipv4"), text("device"));
                let shown = self.laptop.run(&format!("ip -4 addr show dev {device}")).unwrap_or_default();
                if shown.contains(&format!("inet {ipv4}/")) && shown.contains("UP") {
                    self.ipv4 = Some(ipv4.parse()?);
                    self.device = device;
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                bail!("meshd on {} is not up after 10 s:\n{}", self.laptop.name, self.log_tail());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// kill -9.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended after 5 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        signal("TERM", self.child.id())?;
        let mut ended = None;
        wait_for("meshd ends after SIGTERM", Duration::from_secs(5), || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        ended.context("it ended")
    }

    /// SIGSTOP: it does nothing, as a machine that is suspended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pause(&self) -> Result<()> {
        signal("STOP", self.child.id())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resume(&self) -> Result<()> {
        signal("CONT", self.child.id())
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS: the process ended")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Every drop counted so far, by reason.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn drops(&self) -> Result<Vec<(String, u64)>> {
        let status = self.laptop.ask(&["status"])?;
        Ok(serde_json::from_value(status["drops"].clone())?)
    }

    /// The sum of [`Node::drops`].
    ///
    /// # Errors
    /// As there.
    pub fn drop_total(&self) -> Result<u64> {
        Ok(self.drops()?.iter().map(|(_, count)| count).sum())
    }

    /// Waits until it has sessions with exactly `peers` others.
    ///
    /// # Errors
    /// When it has not after `limit`; the error has the end of its log.
    pub fn wait_connected(&self, peers: u64, limit: Duration) -> Result<()> {
        let mut last = Value::Null;
        wait_for(&format!("{} has {peers} sessions", self.laptop.name), limit, || {
            last = self.laptop.ask(&["status"])?;
            Ok(last["connected"].as_u64() == Some(peers))
        })
        .with_context(|| format!("status: {last}\n{}", self.log_tail()))
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- log of {}:\n{}", self.laptop.name, self.log_tail());
        }
    }
}

/// Looks at `condition` until it holds.
///
/// # Errors
/// When it does not hold after `limit`, or fails.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if condition()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {:.1} s: {what}", limit.as_secs_f64());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Runs a command line in the namespace of the switch.
fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    output(Command::new(words.next().context("an empty command line")?).args(words)).with_context(|| line.to_owned())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        bail!("{}: {}\n{}", output.status, text(&output.stderr), text(&output.stdout));
    }
    Ok(text(&output.stdout))
}

fn signal(name: &str, process: u32) -> Result<()> {
    // kill(1) may be missing where the shell's own is not.
    run_shell(&format!("kill -{name} {process}"))
}

fn run_shell(line: &str) -> Result<()> {
    output(Command::new("sh").args(["-c", line])).map(drop)
}

fn read_all(mut source: impl Read) -> Result<String> {
    let mut text = String::new();
    source.read_to_string(&mut text)?;
    Ok(text)
}
