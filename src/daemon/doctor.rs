//! `meshd doctor`: whether this machine is set up right, and what to do if not.
//!
//! Every check looks at the real thing (opens the device, binds the port, reads the firewall's rules) and changes nothing. A check
//! that [`Verdict::Fails`] keeps a node from running; one that [`Verdict::Warns`] costs speed, comfort or safety.

#![expect(unsafe_code, reason = "ioctl(2) and adjtimex(2) have no safe wrapper")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::config::DEFAULT_PORT;
use crate::identity::{Ago, Name};
use crate::node::{self, Reply};

use super::store::{self, Store};
use super::udp::UdpSocket;
use super::{api, enroll, process};

/// A membership that ends within so many seconds is worth a word: two weeks, enough to ask for a new invite.
const ENDS_SOON: u64 = 14 * 86400;

const TUN: &str = "/dev/net/tun";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Passes,
    /// It works, but not as well as it could.
    Warns,
    /// A node cannot run like this.
    Fails,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, for programs.
    pub check: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What is so.
    pub found: String,
    /// What to do about it, if anything.
    pub advice: Option<String>,
}

/// What is looked at.
pub struct Patient<'a> {
    /// Where networks are.
    pub store: &'a Store,
    /// Where API sockets are, if chosen.
    pub runtime: Option<&'a Path>,
    /// The one network that is meant; all, if none.
    pub network: Option<&'a Name>,
    /// As for `up --user`.
    pub user: Option<&'a str>,
}

/// Looks at everything.
pub fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let networks: Vec<Name> = match patient.network {
        Some(name) => vec![name.clone()],
        None => patient.store.networks().unwrap_or_default(),
    };
    let running: Vec<Option<u32>> = networks.iter().map(|name| running(patient.runtime, name)).collect();
    let mut findings = vec![tun(), capability(), user(patient.user), confinement(), clock()];
    findings.push(port(running.iter().any(Option::is_some)));
    findings.extend([firewall(), offloads(), ipv6()]);
    findings.extend(networks.iter().zip(running).map(|(name, running)| network(patient, name, running)));
    if networks.is_empty() {
        let found = format!("this machine is a member of none (in {})", patient.store.base().display());
        findings.push(warns(
            "network",
            found,
            "meshd init, or meshd join INVITE; under sudo it is root's folder that counts",
        ));
    }
    findings
}

fn passes(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Passes, found: found.into(), advice: None }
}

fn warns(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Warns, found: found.into(), advice: Some(advice.into()) }
}

fn fails(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Fails, found: found.into(), advice: Some(advice.into()) }
}

fn tun() -> Finding {
    match open_tun() {
        Ok(_) => passes("tun", format!("{TUN} can be opened")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fails("tun", format!("{TUN} may not be opened"), "run as root, or in a container add --device /dev/net/tun")
        }
        Err(error) => {
            let advice = "modprobe tun; in a container add --device /dev/net/tun";
            fails("tun", format!("{TUN}: {error}"), advice)
        }
    }
}

fn open_tun() -> io::Result<File> {
    File::options().read(true).write(true).open(TUN)
}

fn capability() -> Finding {
    let held = proc_status("self").get("CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    if held & process::NET_ADMIN != 0 {
        return passes("capability", "CAP_NET_ADMIN is there");
    }
    let program = std::env::current_exe().map_or("meshd".into(), |path| path.display().to_string());
    let advice = format!("run as root, or: setcap cap_net_admin+ep {program}; in a container add --cap-add NET_ADMIN");
    fails("capability", "CAP_NET_ADMIN is missing", advice)
}

fn user(chosen: Option<&str>) -> Finding {
    let uid = proc_status("self").get("Uid").and_then(|uids| uids.split_whitespace().next().map(str::to_owned));
    match process::account(chosen) {
        Ok(Some(account)) => passes("user", format!("a node becomes user {} after its start", account.name)),
        Ok(None) if uid.as_deref() == Some("0") => {
            warns("user", "a node stays root", "leave --user root away; in a container use the image's own user")
        }
        Ok(None) => passes("user", format!("a node runs as user {}", uid.unwrap_or_default())),
        Err(error) => fails("user", format!("{error:#}"), "as it says"),
    }
}

fn confinement() -> Finding {
    let landlock = process::landlock_version();
    let seccomp = proc_status("self").contains_key("Seccomp");
    let found = match (landlock, seccomp) {
        (1.., true) => {
            return passes("confinement", format!("the kernel has Landlock (version {landlock}) and seccomp"));
        }
        (1.., false) => "the kernel has no seccomp",
        (_, true) => "the kernel has no Landlock",
        (_, false) => "the kernel has neither Landlock nor seccomp",
    };
    warns("confinement", found, "a kernel from 5.13 on with lsm=landlock,… confines a node that was broken into")
}

fn clock() -> Finding {
    if let Err(error) = enroll::clock() {
        return fails("clock", format!("{error:#}"), "timedatectl set-ntp true, or date --set");
    }
    // SAFETY: a timex of zeros is valid and asks for nothing to be changed; it lives for the call.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    if state == libc::TIME_ERROR {
        let advice = "fine without Internet if it is right within an hour; else timedatectl set-ntp true";
        return warns("clock", "set, but nothing keeps it right", advice);
    }
    passes("clock", "set, and kept right")
}

fn port(running: bool) -> Finding {
    match UdpSocket::open(Some(DEFAULT_PORT), 1) {
        Ok(_) => passes("port", format!("UDP and TCP port {DEFAULT_PORT} are free")),
        Err(_) if running => passes("port", format!("port {DEFAULT_PORT} is in use, and meshd runs")),
        Err(error) => {
            let advice = "a node takes any free one then; invites and firewalls want a fixed one: --port OTHER";
            warns("port", format!("{error:#}"), advice)
        }
    }
}

fn firewall() -> Finding {
    let rules = match (said("nft", &["list", "ruleset"]), said("iptables", &["-S", "INPUT"])) {
        (None, None) => return passes("firewall", "no rules found (neither nft nor iptables is installed)"),
        (Some(Err(error)), None | Some(Err(_))) | (None, Some(Err(error))) => {
            return warns("firewall", format!("the rules cannot be read: {error}"), "run meshd doctor as root");
        }
        (nft, iptables) => [nft, iptables].into_iter().flatten().flatten().collect::<Vec<_>>().join("\n"),
    };
    judge_firewall(&rules)
}

fn judge_firewall(rules: &str) -> Finding {
    if !drops_what_comes_in(rules) {
        return passes("firewall", "nothing is kept out in general");
    }
    if rules.contains(&DEFAULT_PORT.to_string()) {
        return passes("firewall", format!("it keeps out what no rule names, and a rule names port {DEFAULT_PORT}"));
    }
    let advice = format!(
        "allow UDP and TCP {DEFAULT_PORT}, and on the LAN UDP 5353 (mDNS): ufw allow {DEFAULT_PORT} && ufw allow mdns; or \
         firewall-cmd --permanent --add-port={DEFAULT_PORT}/udp --add-port={DEFAULT_PORT}/tcp --add-service=mdns"
    );
    warns("firewall", format!("it keeps out what no rule names, and none names port {DEFAULT_PORT}"), advice)
}

/// Whether some chain of incoming packets ends in a refusal: by its policy, or by a last rule for everything.
fn drops_what_comes_in(rules: &str) -> bool {
    let mut incoming = false;
    for line in rules.lines().map(str::trim) {
        if line == "-P INPUT DROP" || line == "-A INPUT -j DROP" || line.starts_with("-A INPUT -j REJECT") {
            return true;
        }
        if line.starts_with("chain ") {
            incoming = false;
        }
        incoming |= line.contains("hook input");
        let for_all = line == "drop" || line == "reject" || line.starts_with("reject with ");
        if incoming && (line.contains("policy drop") || for_all) {
            return true;
        }
    }
    false
}

/// What a program prints; `None` if it is not installed.
fn said(program: &str, arguments: &[&str]) -> Option<Result<String, String>> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) if output.status.success() => Some(Ok(String::from_utf8_lossy(&output.stdout).into_owned())),
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            Some(Err(error.lines().next().unwrap_or("it fails").to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

fn offloads() -> Finding {
    /// `TUNGETFEATURES`, and `IFF_VNET_HDR` of what it answers (linux/if_tun.h).
    const TUNGETFEATURES: libc::c_ulong = 0x8004_54cf;
    const VNET_HDR: libc::c_uint = 0x4000;
    let mut missing = Vec::new();
    if let Ok(tun) = open_tun() {
        let mut features: libc::c_uint = 0;
        // SAFETY: it writes one unsigned int, which `features` is; the descriptor is open.
        let told = unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETFEATURES as _, &raw mut features) };
        if told == 0 && features & VNET_HDR == 0 {
            missing.push("superframes on the TAP (IFF_VNET_HDR)");
        }
    }
    if UdpSocket::beside(0).is_ok_and(|socket| socket.longest_train() == 1) {
        missing.push("trains of UDP datagrams (UDP_SEGMENT)");
    }
    if missing.is_empty() {
        return passes("offloads", "superframes on the TAP and trains of UDP datagrams are there");
    }
    warns(
        "offloads",
        format!("the kernel lacks {}", missing.join(" and ")),
        "it works, at more processor time; a kernel from 6.2 on has all",
    )
}

fn ipv6() -> Finding {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6") {
        Ok(text) if text.trim() == "0" => passes("ipv6", "new interfaces get IPv6"),
        Ok(_) => {
            let advice = "sysctl net.ipv6.conf.default.disable_ipv6=0, if programs are to use IPv6 in the mesh";
            warns("ipv6", "IPv6 is turned off for new interfaces", advice)
        }
        Err(_) => warns("ipv6", "this kernel has no IPv6", "IPv4 works without it"),
    }
}

fn network(patient: &Patient<'_>, name: &Name, running: Option<u32>) -> Finding {
    let member = patient.store.load(name).and_then(|home| {
        let now = enroll::clock()?;
        Ok(home.membership(now)?.not_after().saturating_sub(now))
    });
    let ends = match member {
        Ok(ends) => ends,
        Err(error) => return fails("network", format!("{name}: {error:#}"), "as it says"),
    };
    let Some(process) = running else {
        return warns(
            "network",
            format!("{name}: does not run"),
            format!("meshd up {name}, or systemctl start meshd@{name}"),
        );
    };
    if ends < ENDS_SOON {
        return warns(
            "network",
            format!("{name}: the membership ends in {}", Ago(ends)),
            "ask for a new invite in time",
        );
    }
    let status = proc_status(&process.to_string());
    let is_root = status.get("Uid").is_none_or(|uids| uids.split_whitespace().any(|uid| uid == "0"));
    let held = status.get("CapPrm").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(u64::MAX);
    if is_root || held & !(process::NET_ADMIN | process::NET_BIND_SERVICE) != 0 {
        return warns(
            "network",
            format!("{name}: runs with more rights than it needs (process {process})"),
            "restart it without --user root",
        );
    }
    passes("network", format!("{name}: runs, unprivileged (process {process}), a member for {} more", Ago(ends)))
}

/// The process that answers for a network, if one does.
fn running(runtime: Option<&Path>, name: &Name) -> Option<u32> {
    let folder = store::runtime_dir(runtime, name).ok()?;
    match api::request(&api::socket_path(&folder), &node::Command::Status) {
        Ok(Reply::Status(_)) => store::holder(&folder),
        Ok(_) | Err(_) => None,
    }
}

/// /proc/PROCESS/status, by field.
fn proc_status(process: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UFW: &str = "table ip filter {\n\tchain ufw-before-input {\n\t\taccept\n\t}\n\tchain INPUT {\n\t\ttype filter hook input priority \
                       filter; policy drop;\n\t}\n}\n";
    const FIREWALLD: &str = "table inet firewalld {\n\tchain filter_INPUT {\n\t\ttype filter hook input priority filter + 10; policy \
                             accept;\n\t\tct state { established, related } accept\n\t\treject with icmpx admin-prohibited\n\t}\n}\n";
    const OPEN: &str = "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tip saddr \
                        192.0.2.1 drop\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";

    #[test]
    fn a_firewall_that_keeps_everything_out_is_seen_whoever_wrote_it() {
        for rules in [
            UFW,
            FIREWALLD,
            "-P INPUT DROP\n",
            "-P INPUT ACCEPT\n-A INPUT -j REJECT --reject-with icmp-port-unreachable\n",
        ] {
            let finding = judge_firewall(rules);
            assert_eq!(finding.verdict, Verdict::Warns, "{rules}");
            assert!(finding.advice.is_some_and(|advice| advice.contains("4747")));
            assert_eq!(judge_firewall(&format!("{rules}udp dport 4747 accept")).verdict, Verdict::Passes, "{rules}");
        }
        for rules in [OPEN, "-P INPUT ACCEPT\n-A INPUT -s 192.0.2.1/32 -j DROP\n", ""] {
            assert_eq!(judge_firewall(rules).verdict, Verdict::Passes, "{rules}");
        }
    }
}
