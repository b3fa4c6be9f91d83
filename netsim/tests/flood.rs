//! More than anybody has to say: garbage and stolen initiations from forged addresses, as many as go. Sessions live on, and memory is
//! what it was.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::netns::trial::{MEET, figure, in_lab, party};
use netsim::netns::{Background, Lab, Laptop, Node, Pings, iperf3, wait_for};

/// How many hostile datagrams.
const FLOOD: u64 = 100_000;
/// How many a second: more than a switch port of 100 Mbit/s carries at 1232 bytes.
const FLOOD_RATE: u64 = 12_000;

#[test]
fn a_flood_of_garbage_costs_no_memory_and_no_pings() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let mallory = lab.laptop("mallory")?;
        let target = udp_endpoint(&nodes[0])?;
        under_flood("garbage", &laptops, &nodes, || {
            mallory.run(&format!("{} attack garbage {target} {FLOOD} {FLOOD_RATE}", netsim())).map(drop)
        })
    });
}

/// A real initiation to the first of `laptops`, taken off the wire: its MAC is good, only its time is over. As a file of `mallory`, who
/// is beside them.
fn stolen_initiation(lab: &mut Lab, laptops: &[Laptop], invite: &str) -> Result<(Laptop, PathBuf)> {
    let [cyd, mallory] = lab.laptops(["cyd", "mallory"])?;
    let pcap = mallory.dir.join("initiation.pcap");
    let filter = format!("udp and dst host {} and udp[8] = 1", laptops[0].underlay);
    let mut sniffer = laptops[0].command("tcpdump");
    sniffer.args(["-i", "eth0", "-nn", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&pcap).arg(&filter);
    let sniffer = Background::start(&mut sniffer)?;
    wait_for("tcpdump listens", Duration::from_secs(5), || Ok(pcap.exists()))?;
    cyd.join(invite)?;
    let mut brief = cyd.up()?;
    brief.wait_connected(2, MEET)?;
    if udp_payload(&pcap)?.is_none() {
        // The other was the one to call. Dead and back with a new index, cyd has to call herself.
        brief.kill9()?;
        brief = cyd.up()?;
        wait_for("an initiation", MEET, || Ok(udp_payload(&pcap)?.is_some()))?;
    }
    drop(sniffer);
    brief.terminate()?;
    let file = mallory.dir.join("initiation");
    fs::write(&file, udp_payload(&pcap)?.context("an initiation")?)?;
    Ok((mallory, file))
}

#[test]
fn a_flood_of_spoofed_initiations_costs_no_memory_and_no_pings() {
    in_lab(|lab| {
        let (laptops, nodes, invite) = party(lab, ["ada", "bob"], &[])?;
        let target = udp_endpoint(&nodes[0])?;
        let (mallory, file) = stolen_initiation(lab, &laptops, &invite)?;
        under_flood("spoofed initiations", &laptops, &nodes, || {
            mallory
                .run(&format!("{} attack spoofed {target} {FLOOD} {FLOOD_RATE} {}", netsim(), file.display()))
                .map(drop)
        })
    });
}

/// Bits a second from the second laptop to the first, while a million initiations a second are sent to that one, or as many as
/// this machine makes; and how many were sent in ten seconds.
fn under_a_million(laptops: &[Laptop], nodes: &[Node], mallory: &Laptop, file: &Path) -> Result<(f64, u64)> {
    let target = udp_endpoint(&nodes[0])?;
    let (words, log) = (format!("attack spoofed {target} 10000000 1000000"), mallory.dir.join("sent"));
    let mut attack = mallory.command(netsim());
    let mut attack = Background::logged(attack.args(words.split(' ')).arg(file), &log)?;
    thread::sleep(Duration::from_secs(1));
    let report = iperf3::run(&laptops[1], nodes[0].ipv4().into(), "-t 7 --omit 1")?;
    ensure!(attack.wait()?.success(), "{}", fs::read_to_string(&log)?);
    let said = fs::read_to_string(&log)?;
    let last = said.lines().next_back().unwrap_or_default();
    let sent = last.strip_prefix("sent ").and_then(|sent| sent.parse().ok());
    Ok((report.received()?, sent.with_context(|| format!("not how many: {said}"))?))
}

#[test]
fn a_million_initiations_a_second_leave_sessions_most_of_their_throughput() {
    in_lab(|lab| {
        let (laptops, nodes, invite) = party(lab, ["ada", "bob"], &[])?;
        let (mallory, file) = stolen_initiation(lab, &laptops, &invite)?;
        let _server = iperf3::serve(&laptops[0], 5201)?;
        // The same load on the same machine, but dropped by the kernel before it gets to meshd.
        let path = laptops[0].dir.join("spared.nft");
        let spoofed = "ip saddr 192.168.77.100-192.168.77.249 udp dport 4747 drop";
        let chain = format!("chain in {{ type filter hook prerouting priority raw; {spoofed}\n}}");
        fs::write(&path, format!("table ip spared {{ {chain}\n}}\n"))?;
        laptops[0].run(&format!("nft -f {}", path.display()))?;
        let (spared, _) = under_a_million(&laptops, &nodes, &mallory, &file)?;
        laptops[0].run("nft delete table ip spared")?;
        let rss = nodes[0].rss_kib()?;
        let (flooded, sent) = under_a_million(&laptops, &nodes, &mallory, &file)?;
        let grown = nodes[0].rss_kib()?.saturating_sub(rss);
        figure(&format!(
            "{sent} initiations in ten seconds: {:.0} Mbit/s, {:.0} if the kernel drops them, {:.0} %; {grown} KiB grown",
            flooded / 1e6,
            spared / 1e6,
            100.0 * flooded / spared
        ));
        figure(&format!("counters: {:?}", nodes[0].drops()?));
        ensure!(flooded >= 0.7 * spared, "{flooded} of {spared}");
        ensure!(grown < 4096, "{grown} KiB grown");
        nodes[0].wait_connected(1, Duration::from_secs(2))
    });
}

fn netsim() -> &'static str {
    env!("CARGO_BIN_EXE_netsim")
}

/// Where a node takes datagrams on the switch.
fn udp_endpoint(node: &Node) -> Result<String> {
    let status = node.laptop().ask(&["status"])?;
    let own = format!("{}:", node.laptop().underlay);
    let endpoints = status["endpoints"].as_array().context("endpoints")?;
    let endpoint =
        endpoints.iter().filter_map(|endpoint| endpoint.as_str()).find(|endpoint| endpoint.starts_with(&own));
    Ok(endpoint.with_context(|| format!("no endpoint {own} in {status}"))?.to_owned())
}

/// The payload of the first UDP datagram of a capture of Ethernet and IPv4 without options.
fn udp_payload(pcap: &Path) -> Result<Option<Vec<u8>>> {
    const FILE: usize = 24;
    const HEAD: usize = FILE + 16 + 14 + 20 + 8;
    let bytes = fs::read(pcap)?;
    let Some(length) = bytes.get(FILE + 8..FILE + 12) else { return Ok(None) };
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    Ok(bytes.get(HEAD..FILE + 16 + length).map(<[u8]>::to_vec))
}

fn under_flood(what: &str, laptops: &[Laptop], nodes: &[Node], flood: impl FnOnce() -> Result<()>) -> Result<()> {
    let (rss, drops) = (nodes[0].rss_kib()?, nodes[0].drop_total()?);
    let pings = Pings::start(&laptops[1], nodes[0].ipv4(), 50)?;
    let begun = Instant::now();
    flood()?;
    let took = begun.elapsed().as_secs_f64();
    let loss = pings.stop()?;
    let (rss_after, counted) = (nodes[0].rss_kib()?, nodes[0].drop_total()? - drops);
    figure(&format!(
        "{FLOOD} of {what} in {took:.0} s: {} of {} pings lost, RSS {rss} to {rss_after} KiB, {counted} counted",
        loss.lost, loss.sent
    ));
    figure(&format!("counters: {:?}", nodes[0].drops()?));
    ensure!(loss.ratio() < 0.01, "{loss:?}");
    // What a node may keep of strangers is bounded and small; 4 MiB is what the allocator itself rounds.
    ensure!(rss_after < rss + 4096, "RSS grew from {rss} to {rss_after} KiB");
    ensure!(counted > FLOOD / 2, "only {counted} were counted: {:?}", nodes[0].drops()?);
    nodes[0].wait_connected(1, Duration::from_secs(2))
}
