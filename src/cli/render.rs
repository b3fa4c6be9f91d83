//! What people and programs read: aligned tables and `key: value` lines, or one line of JSON a reply.
#![expect(clippy::print_stderr, reason = "errors and hints of a command belong on stderr, once, without a log's frame")]

use std::io::{self, IsTerminal as _, Write};
use std::iter;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::config::NetworkConfig;
use crate::daemon::doctor::{Finding, Verdict};
use crate::daemon::enroll::{Enrolled, Ticket};
use crate::identity::{Name, PartyCode};
use crate::node::command::{
    FilterInfo, FilterVerdictInfo, ForwardingInfo, LookupInfo, MappingInfo, PeerInfo, Reply, StationInfo, Status,
};

use super::duration::human;
use super::ping::Statistics;
use super::{qr, telling};

/// The one line of a failure.
pub(super) fn error(error: &anyhow::Error) {
    let text = format!("{error:#}").replace(['\n', '\r'], " ");
    eprintln!("meshd: {text}");
}

/// After `init`.
pub(super) fn founded(json: bool, enrolled: &Enrolled, ticket: &Ticket) -> Result<()> {
    if json {
        #[derive(Serialize)]
        struct Founded<'a> {
            #[serde(flatten)]
            enrolled: &'a Enrolled,
            invite: &'a str,
        }
        return print_json(&Founded { enrolled, invite: &ticket.invite });
    }
    let Enrolled { network, .. } = enrolled;
    print(&format!(
        "{}\nStart this machine:\n\n    meshd up {network}\n\nOn every other machine, within 7 days:\n\n    \
         meshd join {}\n    meshd up\n\nWhoever has the invite can join: pass it on as you would a password.\n",
        membership(&format!("Network {network} is made, and this machine is its first member."), enrolled),
        ticket.invite,
    ))
}

/// After `invite`.
pub(super) fn invited(json: bool, qr: bool, ticket: &Ticket, running: bool) -> Result<()> {
    if json {
        return print_json(ticket);
    }
    if qr {
        let code = qr::code(&ticket.link, io::stdout().is_terminal());
        print(&format!("{}{}\n", code.unwrap_or_default(), ticket.link))?;
    } else {
        print(&format!("{}\n", ticket.invite))?;
    }
    if !running {
        eprintln!(
            "meshd is not running here, so the invite does not say where this machine is: newcomers find it on the \
             same LAN only; for others run `meshd up {}` first",
            ticket.network
        );
    }
    Ok(())
}

/// After `join`.
pub(super) fn joined(json: bool, enrolled: &Enrolled) -> Result<()> {
    if json {
        return print_json(enrolled);
    }
    let Enrolled { network, .. } = enrolled;
    let title = format!("This machine is a member of network {network} now.");
    print(&format!("{}\nStart it:\n\n    meshd up {network}\n", membership(&title, enrolled)))
}

/// Before a party begins: what the others need, and what everybody there must know.
pub(super) fn party(json: bool, network: &NetworkConfig, made: Option<&PartyCode>) -> Result<()> {
    if json {
        #[derive(Serialize)]
        struct Party {
            network: String,
            network_id: String,
            /// Only if it was made now.
            code: Option<String>,
        }
        let (name, code) = (network.name.to_string(), made.map(PartyCode::to_string));
        return print_json(&Party { network: name, network_id: network.id().to_string(), code });
    }
    let mut text = String::new();
    if let Some(code) = made {
        text.push_str(&format!(
            "The others on this LAN type:\n\n    meshd party --code {code}\n\nFive of 1024 words, drawn by chance: 50 bits. A guess \
             costs 128 MiB and a quarter of a second,\nso that a thousand processor cores need thousands of years. Nobody need hide the \
             party, only the code.\n\n"
        ));
    }
    let name = &network.name;
    print(&format!(
        "{text}This is {name}; who typed the same code sees the same name.\nWhoever has the code is equal here: takes part, lets others \
         in, and cannot be sent away.\nKeys are in memory only. When meshd ends (Ctrl-C), nothing is left of the party here.\n\n"
    ))
}

/// The answer to a question other than a ping.
pub(super) fn reply(json: bool, reply: &Reply) -> Result<()> {
    if json {
        return print_json(reply);
    }
    print(&match reply {
        Reply::Status(info) => status(info),
        Reply::Peers { peers: list } => peers(list),
        Reply::Stations { stations: list } => stations(list),
        Reply::Lookup(info) => lookup(info),
        Reply::Why(info) => telling::why(info),
        Reply::Netcheck(info) => telling::netcheck(info),
        Reply::Filter(info) => filter(info),
        Reply::FilterVerdict(info) => filter_verdict(info),
        Reply::Pong(_) | Reply::PathPongs(_) | Reply::Stated { .. } | Reply::Error { .. } => String::new(),
    })
}

/// After `filter load` without a node that runs.
pub(super) fn filter_kept(json: bool, network: &Name) -> Result<()> {
    if json {
        return print_json(&serde_json::json!({ "kept": true, "running": false }));
    }
    print(&format!("The rules are kept; they hold from the next start on: meshd up {network}\n"))
}

fn filter(info: &FilterInfo) -> String {
    let row = |line: String, rule: String, refused: u64| [line, rule, refused.to_string()];
    let rules = info.rules.iter().map(|rule| row(rule.line.to_string(), rule.rule.clone(), rule.refused));
    let last = row(String::new(), format!("default {}", info.default), info.refused_by_default);
    table(["LINE", "RULE", "REFUSED"], rules.chain([last]))
}

fn filter_verdict(info: &FilterVerdictInfo) -> String {
    let FilterVerdictInfo { from, to, allowed, line, rule } = info;
    let by = line.map_or_else(|| "no rule fits".to_owned(), |line| format!("line {line}"));
    let note = if *allowed { "" } else { " (answers to what the receiver begins pass)" };
    format!("{}: {from} -> {to}, by {by}: {rule}{note}\n", if *allowed { "allowed" } else { "denied" })
}

/// One ping of a run.
pub(super) fn pinged(json: bool, sequence: u32, reply: &Reply) -> Result<()> {
    if json {
        return print_json(reply);
    }
    match reply {
        Reply::Pong(pong) => print(&format!(
            "answer from {} at {}: seq={sequence} time={:.3} ms, sees us at {}\n",
            pong.name, pong.endpoint, pong.rtt_ms, pong.observed
        )),
        Reply::PathPongs(pongs) => print(&telling::path_pongs(sequence, pongs)),
        Reply::Error { message } => print(&format!("no answer: seq={sequence} {message}\n")),
        Reply::Status(_)
        | Reply::Peers { .. }
        | Reply::Stations { .. }
        | Reply::Lookup(_)
        | Reply::Why(_)
        | Reply::Netcheck(_)
        | Reply::Filter(_)
        | Reply::FilterVerdict(_)
        | Reply::Stated { .. } => Ok(()),
    }
}

/// `meshd doctor`: fails if a check does.
pub(super) fn findings(json: bool, findings: &[Finding]) -> Result<ExitCode> {
    let ok = findings.iter().all(|finding| finding.verdict != Verdict::Fails);
    if json {
        #[derive(Serialize)]
        struct Findings<'a> {
            ok: bool,
            checks: &'a [Finding],
        }
        print_json(&Findings { ok, checks: findings })?;
    } else {
        let rows = findings.iter().flat_map(|Finding { check, verdict, found, advice }| {
            let verdict = match verdict {
                Verdict::Passes => "ok",
                Verdict::Warns => "warning",
                Verdict::Fails => "FAILS",
            };
            let advice = advice.iter().map(|advice| [String::new(), String::new(), format!("-> {advice}")]);
            iter::once([verdict.to_owned(), (*check).to_owned(), found.clone()]).chain(advice)
        });
        print(&table(["", "CHECK", "FOUND"], rows))?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The end of a run of pings.
pub(super) fn statistics(json: bool, peer: &str, statistics: &Statistics) -> Result<()> {
    if json {
        return print_json(statistics);
    }
    let Statistics { transmitted, received, .. } = *statistics;
    let loss = 100 * u64::from(transmitted - received) / u64::from(transmitted.max(1));
    let mut text = format!("\n--- {peer} ping statistics ---\n");
    text.push_str(&format!("{transmitted} transmitted, {received} received, {loss}% loss\n"));
    if let (Some(min), Some(avg), Some(max)) = (statistics.min_ms, statistics.avg_ms, statistics.max_ms) {
        text.push_str(&format!("rtt min/avg/max = {min:.3}/{avg:.3}/{max:.3} ms\n"));
    }
    print(&text)
}

fn membership(title: &str, enrolled: &Enrolled) -> String {
    let Enrolled { name, peer, mac, ipv4, prefix, state, .. } = enrolled;
    let lines = [
        ("name", name.clone()),
        ("peer", peer.clone()),
        ("address", format!("{ipv4} in {prefix}")),
        ("mac", mac.clone()),
        ("kept in", state.clone()),
    ];
    format!("{title}\n\n{}", key_values(&lines))
}

fn status(info: &Status) -> String {
    let drops: Vec<_> =
        info.drops.iter().filter(|(_, count)| *count > 0).map(|(name, n)| format!("{name} {n}")).collect();
    key_values(&[
        ("network", format!("{} ({})", info.network, info.network_id)),
        ("name", info.name.clone()),
        ("peer", info.peer.clone()),
        ("roles", if info.roles.is_empty() { "member".to_owned() } else { info.roles.join(", ") }),
        ("device", info.device.clone()),
        ("forwarding", forwarding(&info.forwarding)),
        ("mac", info.mac.clone()),
        ("ipv4", info.ipv4.to_string()),
        ("ipv6", info.ipv6.to_string()),
        ("endpoints", list(&info.endpoints)),
        ("seen at", seen_at(info)),
        ("mapped", mapped(&info.mappings)),
        ("members", format!("{} known, {} connected, {} expelled", info.members, info.connected, info.expelled)),
        ("directory", directory(info)),
        ("homes", if info.homes.is_empty() { "none".to_owned() } else { info.homes.join(", ") }),
        ("uptime", human(info.uptime)),
        ("relaying", if info.carries == 1 { "1 way".to_owned() } else { format!("{} ways", info.carries) }),
        ("dropped", if drops.is_empty() { "nothing".to_owned() } else { drops.join(", ") }),
    ])
}

fn directory(info: &Status) -> String {
    let by_relays = match info.directory_circuits {
        0 => String::new(),
        count => format!(" ({count} by relays)"),
    };
    let through_us = match info.directory_carries {
        0 => String::new(),
        count => format!(", {count} of others through here"),
    };
    format!("{} connections{by_relays}{through_us}, {} records here", info.directory_connections, info.shard_records)
}

fn seen_at(info: &Status) -> String {
    let mapping = format!("mapping {}", info.mapping);
    if info.seen_at.is_empty() { mapping } else { format!("{}; {mapping}", list(&info.seen_at)) }
}

/// What the gateway lets in; both protocols in one line if they have one endpoint.
fn mapped(mappings: &[MappingInfo]) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    for mapping in mappings {
        let end = mapping.ends.map_or_else(|| "without an end".to_owned(), |ends| format!("ends in {}", human(ends)));
        let used = if mapping.used { "" } else { ", not used: peers see another address" };
        let text = format!("{} by {}, {end}{used}", mapping.external, mapping.by);
        match lines.iter_mut().find(|(_, known)| *known == text) {
            Some((protocols, _)) => protocols.push_str(&format!(" and {}", mapping.protocol)),
            None => lines.push((mapping.protocol.clone(), text)),
        }
    }
    let lines: Vec<_> = lines.into_iter().map(|(protocols, text)| format!("{text} ({protocols})")).collect();
    if lines.is_empty() { "nothing".to_owned() } else { lines.join("; ") }
}

fn forwarding(info: &ForwardingInfo) -> String {
    let kinds = [("TCP", info.tcp_superframes), ("UDP", info.udp_superframes)];
    let kinds: Vec<_> = kinds.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    let superframes =
        if kinds.is_empty() { "no superframes".to_owned() } else { format!("{} superframes", kinds.join(" and ")) };
    let trains = if info.train > 1 { format!("trains of {} datagrams", info.train) } else { "no trains".to_owned() };
    let lanes = if info.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", info.lanes) };
    let (receive, send) = (info.receive_buffer >> 10, info.send_buffer >> 10);
    format!("{lanes}, {superframes}, {trains}, socket buffers {receive} KiB in and {send} KiB out")
}

fn peers(list: &[PeerInfo]) -> String {
    let rows = list.iter().map(|peer| {
        [
            peer.name.clone(),
            peer.ipv4.to_string(),
            path(peer),
            keys(peer),
            peer.endpoint.map_or_else(dash, |endpoint| endpoint.to_string()),
            peer.rtt_ms.map_or_else(dash, |rtt| format!("{rtt:.2} ms")),
            peer.last_heard.map_or_else(dash, |seconds| format!("{} ago", human(seconds))),
            if peer.roles.is_empty() { dash() } else { peer.roles.join(",") },
        ]
    });
    table(["NAME", "ADDRESS", "PATH", "KEYS", "ENDPOINT", "RTT", "HEARD", "ROLES"], rows)
}

/// What has to be broken to read the session.
fn keys(peer: &PeerInfo) -> String {
    match &peer.cipher {
        None => dash(),
        Some(_) if peer.post_quantum => "X25519+ML-KEM".to_owned(),
        Some(_) => "X25519".to_owned(),
    }
}

/// `direct`, or `relayed by` whom.
pub(super) fn path(peer: &PeerInfo) -> String {
    match &peer.via {
        None => peer.path.clone(),
        Some(relay) if peer.relays > 1 => format!("{} by {relay} ({} relays)", peer.path, peer.relays),
        Some(relay) => format!("{} by {relay}", peer.path),
    }
}

fn stations(list: &[StationInfo]) -> String {
    let rows = list.iter().map(|it| [it.mac.clone(), it.name.clone(), it.peer.clone(), it.by.clone()]);
    table(["MAC", "NAME", "PEER", "BY"], rows)
}

fn lookup(info: &LookupInfo) -> String {
    key_values(&[
        ("name", info.name.clone()),
        ("peer", info.peer.clone()),
        ("mac", info.mac.clone()),
        ("ipv4", info.ipv4.to_string()),
        ("ipv6", info.ipv6.to_string()),
        ("endpoints", list(&info.endpoints)),
        ("sequence", info.sequence.to_string()),
        ("expires", format!("{} (Unix seconds)", info.expires)),
        ("shards", if info.shards.is_empty() { "none".to_owned() } else { info.shards.join(", ") }),
    ])
}

pub(super) fn list(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn dash() -> String {
    "-".to_owned()
}

/// `key: value` lines, the values in one column.
pub(super) fn key_values(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    lines.iter().map(|(key, value)| format!("{:width$} {value}\n", format!("{key}:"))).collect()
}

/// A heading and rows in columns, two spaces apart, nothing after the last.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = iter::once(heading.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Writes to stdout; a reader that went away, as `head` does, is no failure.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_ends_without_spaces() {
        let rows = [["a".to_owned(), "10.0.0.1".to_owned()], ["laptop".to_owned(), "-".to_owned()]];
        let text = table(["NAME", "ADDRESS"], rows.into_iter());
        assert_eq!(text, "NAME    ADDRESS\na       10.0.0.1\nlaptop  -\n");
    }

    #[test]
    fn values_stand_in_one_column() {
        let text = key_values(&[("name", "laptop".to_owned()), ("mac", "02".to_owned())]);
        assert_eq!(text, "name: laptop\nmac:  02\n");
    }

    #[test]
    fn a_mapping_says_by_whom_and_for_how_long() {
        let mapping = |protocol: &str, external: &str, used| MappingInfo {
            protocol: protocol.to_owned(),
            port: 4747,
            external: external.parse().expect("an endpoint"),
            by: "UPnP".to_owned(),
            ends: Some(1860),
            used,
        };
        let both = [mapping("UDP", "203.0.113.7:4747", true), mapping("TCP", "203.0.113.7:4747", true)];
        assert_eq!(mapped(&both), "203.0.113.7:4747 by UPnP, ends in 31m (UDP and TCP)");
        let forever = MappingInfo { ends: None, ..mapping("UDP", "192.168.0.9:4747", false) };
        assert_eq!(
            mapped(&[forever]),
            "192.168.0.9:4747 by UPnP, without an end, not used: peers see another address (UDP)"
        );
        assert_eq!(mapped(&[]), "nothing");
    }

    #[test]
    fn a_peer_without_a_session_is_a_row_of_dashes() {
        let peer = PeerInfo {
            name: "laptop".to_owned(),
            peer: "12D3KooW".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            ipv4: "10.70.0.1".parse().expect("an address"),
            ipv6: "fd00::1".parse().expect("an address"),
            roles: Vec::new(),
            path: "none".to_owned(),
            via: None,
            relays: 0,
            endpoint: None,
            rtt_ms: None,
            path_mtu: None,
            cipher: None,
            post_quantum: false,
            last_heard: None,
        };
        let text = peers(&[peer]);
        assert_eq!(text.lines().last(), Some("laptop  10.70.0.1  none  -     -         -    -      -"));
    }
}
