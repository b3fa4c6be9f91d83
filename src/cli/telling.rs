//! What is said of paths and NATs: `meshd why`, `netcheck` and `ping --path`.

use crate::node::command::{
    CandidateInfo, ForecastInfo, HairpinInfo, NatInfo, NetcheckInfo, PathPongInfo, PathPongsInfo, WhyInfo,
};

use super::duration::human;
use super::render::{dash, key_values, list, path, table};

/// `meshd why`.
pub(super) fn why(info: &WhyInfo) -> String {
    let WhyInfo { member, .. } = info;
    let mut lines =
        vec![("path", path_in_use(info)), ("why", info.because.clone()), ("reason", info.reason.name().to_owned())];
    lines.extend(info.next_try.map(|seconds| ("next try", format!("in {}", human(seconds)))));
    lines.push(("our NAT", nat(&info.our_nat)));
    let theirs = info.their_nat.as_ref().map_or_else(|| "not told".to_owned(), |told| forecast(told, "told"));
    let title = format!("NAT of {}", member.name);
    lines.push((&title, theirs));
    let candidates = info.candidates.iter().map(candidate);
    let candidates = table(["", "CANDIDATE", "KNOWN BY", "TRIED", "ANSWERED", "RTT"], candidates);
    format!("{}\n{candidates}", key_values(&lines))
}

fn path_in_use(info: &WhyInfo) -> String {
    let WhyInfo { member, .. } = info;
    let mut text = path(member);
    text.extend(member.endpoint.map(|endpoint| format!(", at {endpoint}")));
    text.extend(info.socket.map(|number| format!(" through our socket {number}")));
    text.extend(member.rtt_ms.map(|rtt| format!(", {rtt:.2} ms")));
    text.extend(member.path_mtu.map(|mtu| format!(", MTU {mtu}")));
    text
}

fn candidate(info: &CandidateInfo) -> [String; 6] {
    let mut origins = info.origins.join(", ");
    origins.extend(info.via.as_ref().map(|relay| format!(" {relay}")));
    origins.extend(info.socket.map(|number| format!(", our socket {number}")));
    [
        mark(info.in_use),
        info.endpoint.to_string(),
        origins,
        info.tried.map_or_else(|| "never".to_owned(), ago),
        info.answered.map_or_else(|| "never".to_owned(), ago),
        info.rtt_ms.map_or_else(dash, |rtt| format!("{rtt:.2} ms")),
    ]
}

fn mark(in_use: bool) -> String {
    if in_use { "*" } else { "" }.to_owned()
}

fn nat(info: &NatInfo) -> String {
    let seen = if info.seen_at.is_empty() { String::new() } else { format!("; seen at {}", list(&info.seen_at)) };
    match &info.survey {
        Some(survey) if info.mapping != "untranslated" => format!("{}{seen}", forecast(survey, "surveyed")),
        Some(_) | None => format!("{}{seen}", info.mapping),
    }
}

fn forecast(info: &ForecastInfo, how: &str) -> String {
    let ports = info.ports.as_ref().map_or_else(String::new, |ports| format!(", {ports} ports"));
    format!("{}{ports} ({how} {})", info.mapping, ago(info.age))
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", human(seconds)) }
}

/// `meshd netcheck`.
pub(super) fn netcheck(info: &NetcheckInfo) -> String {
    let udp = match (info.udp.blocked, info.udp.heard) {
        (true, _) if info.streams.iter().any(|stream| stream.dialled) => "blocked: TCP stands for it".to_owned(),
        (true, _) => "blocked: nothing comes back".to_owned(),
        (false, Some(heard)) => format!("comes back, heard {}", ago(heard)),
        (false, None) if info.udp.tried.is_some() => "tried, and nothing has come back yet".to_owned(),
        (false, None) => "not tried yet: no member is known to ask".to_owned(),
    };
    let hairpin = match info.hairpin {
        HairpinInfo::NotKnown => "not known",
        HairpinInfo::No => "no",
        HairpinInfo::Yes => "yes",
    };
    let not_known = || "not known".to_owned();
    let ipv6 = match (info.ipv6.is_empty(), info.ipv6_answered) {
        (true, _) => "no global address".to_owned(),
        (false, true) => format!("{}; members answer over it", list(&info.ipv6)),
        (false, false) => format!("{}; no member has answered over it", list(&info.ipv6)),
    };
    let relays: Vec<_> = info.relays.iter().map(|relay| format!("{} ({})", relay.name, relay.members)).collect();
    let streams = info.streams.iter().map(|stream| {
        let how = if stream.tls { "TLS" } else { "TCP" };
        let whose = if stream.dialled { "to" } else { "from" };
        format!("{how} {whose} {} at {}", stream.name, stream.endpoint)
    });
    let streams: Vec<_> = streams.collect();
    let observers: Vec<_> = info.observers.iter().map(|by| format!("{} by {}", by.seen_at, by.name)).collect();
    let mut text = key_values(&[
        ("NAT", nat(&info.nat)),
        ("filtering", info.filtering.map_or_else(not_known, |class| class.name().to_owned())),
        ("hairpin", hairpin.to_owned()),
        ("port mapping", info.port_mapping.clone().unwrap_or_else(not_known)),
        ("endpoints", list(&info.endpoints)),
        ("seen at", list(&observers)),
        ("IPv6", ipv6),
        ("UDP", udp),
        ("streams", list(&streams)),
        ("relays for us", list(&relays)),
        ("we relay for", pairs(info.relayed_pairs)),
        ("MTU", mtu(info)),
    ]);
    text.push('\n');
    if info.advice.is_empty() {
        text.push_str("Nothing to be done.\n");
    }
    info.advice.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
    text
}

fn mtu(info: &NetcheckInfo) -> String {
    let paths = match info.path_mtus {
        None => "none measured".to_owned(),
        Some((least, most)) if least == most => most.to_string(),
        Some((least, most)) => format!("{least} to {most}"),
    };
    format!("{} in the mesh; of the paths: {paths}", info.mtu)
}

fn pairs(count: usize) -> String {
    match count {
        0 => "nobody".to_owned(),
        1 => "1 pair of members".to_owned(),
        _ => format!("{count} pairs of members"),
    }
}

/// One round of `meshd ping --path`.
pub(super) fn path_pongs(sequence: u32, info: &PathPongsInfo) -> String {
    info.paths.iter().map(|path| path_pong(sequence, &info.name, path)).collect()
}

fn path_pong(sequence: u32, name: &str, info: &PathPongInfo) -> String {
    let mut place = info.endpoint.to_string();
    place.extend(info.via.as_ref().map(|relay| format!(" by {relay}")));
    place.extend(info.socket.map(|number| format!(" through our socket {number}")));
    let used = if info.in_use { ", in use" } else { "" };
    match info.rtt_ms {
        Some(rtt) => format!("answer from {name} at {place}: seq={sequence} time={rtt:.3} ms{used}\n"),
        None if info.tried => format!("no answer from {name} at {place}: seq={sequence}{used}\n"),
        None => format!("not asked: {name} at {place}: seq={sequence}, both knock there together\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::command::Reply;

    fn example() -> WhyInfo {
        let text = r#"{"reply":"why","name":"bob","peer":"12D3","mac":"02:00:00:00:00:01","ipv4":"10.70.0.1","ipv6":"fd00::1","roles":[],
            "path":"relayed","via":"pub","relays":1,"endpoint":"192.0.2.1:4747","rtt_ms":23.5,"path_mtu":1480,"cipher":null,"last_heard":1,"socket":null,
            "reason":"relayed-both-random","because":"it is so","next_try":34,
            "our_nat":{"mapping":"unknown","survey":{"mapping":"endpoint-dependent","ports":"random","at":"192.0.2.7:9","age":12},
            "seen_at":["192.0.2.7:4747"]},"their_nat":null,"candidates":[
            {"endpoint":"192.0.2.1:4747","origins":["relay"],"via":"pub","socket":null,"in_use":true,"tried":2,"answered":2,"rtt_ms":23.5,"path_mtu":1480},
            {"endpoint":"192.0.2.9:5","origins":["observed"],"via":null,"socket":7,"in_use":false,"tried":null,"answered":null,"rtt_ms":null,"path_mtu":null}]}"#;
        let Reply::Why(info) = serde_json::from_str(text).expect("a reply") else { panic!("another reply") };
        *info
    }

    #[test]
    fn why_is_told_in_lines_and_a_table() {
        let text = why(&example());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "path:       relayed by pub, at 192.0.2.1:4747, 23.50 ms, MTU 1480",
                "why:        it is so",
                "reason:     relayed-both-random",
                "next try:   in 34s",
                "our NAT:    endpoint-dependent, random ports (surveyed 12s ago); seen at 192.0.2.7:4747",
                "NAT of bob: not told",
                "",
                "   CANDIDATE       KNOWN BY                TRIED   ANSWERED  RTT",
                "*  192.0.2.1:4747  relay pub               2s ago  2s ago    23.50 ms",
                "   192.0.2.9:5     observed, our socket 7  never   never     -",
            ]
        );
    }

    #[test]
    fn a_reason_is_called_the_same_everywhere() {
        let info = example();
        assert_eq!(serde_json::to_value(info.reason).expect("JSON"), info.reason.name());
        assert_eq!(serde_json::to_value(Reply::Why(Box::new(info))).expect("JSON")["reply"], "why");
    }
}
