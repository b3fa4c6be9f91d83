//! What the kernel leaves to us and what we leave to the kernel, seen from outside: superframes, checksums left out, trains
//! of datagrams, lanes, jumbo frames, congestion marks. The real binary, with iperf3, tcpdump and a strange parser as judges.
//!
//! Thresholds of speed are for a debug build on a busy machine of two cores: they tell a stall from a tunnel that works. What
//! is to be right has no threshold.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim::netns::bridged::counter;
use netsim::netns::checked::{Tally, from_outside};
use netsim::netns::frames::{Arrivals, judge};
use netsim::netns::iperf3::{self, Report};
use netsim::netns::load::Burst;
use netsim::netns::trial::{MEET, figure, in_lab, party, skip};
use netsim::netns::vlan::Vlan;
use netsim::netns::{Background, Bridged, Capture, Lab, Laptop, Node, Routed, wait_for};

/// A frame of 1500 bytes of payload, without a tag.
const FULL_FRAME: usize = 1514;

/// Where iperf3 and our own receivers listen.
const IPERF: u16 = 5201;
const PORT: u16 = 5400;

/// Bits a second that every build does, with offloads; without them a debug build does a tenth.
const FLOOR: f64 = 100e6;

fn netsim() -> &'static str {
    env!("CARGO_BIN_EXE_netsim")
}

fn addresses(node: &Node) -> Result<[IpAddr; 2]> {
    let status = node.laptop().ask(&["status"])?;
    Ok([node.ipv4().into(), status["ipv6"].as_str().context("ipv6")?.parse()?])
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Two nodes with a router between them, which have met: there is one path from one to the other.
fn routed(lab: &mut Lab, options: &[&str]) -> Result<(Routed, [Node; 2])> {
    let path = Routed::new(lab, ["ada", "bob"], "router")?;
    path.ends[0].found("party")?;
    let first = path.ends[0].up_with(options)?;
    path.ends[1].join(&path.ends[0].invite(&[])?)?;
    let nodes = [first, path.ends[1].up_with(options)?];
    for node in &nodes {
        node.wait_connected(1, MEET)?;
    }
    Ok((path, nodes))
}

/// Waits until `target` answers.
fn reach(laptop: &Laptop, target: IpAddr) -> Result<()> {
    let line = format!("ping -n -q -c 1 -W 1 {target}");
    wait_for(&format!("{} reaches {target}", laptop.name), MEET, || Ok(laptop.run(&line).is_ok()))
}

/// TCP from `laptop` to `target` and back, and what it did, in bits a second.
fn tcp_both_ways(what: &str, laptop: &Laptop, target: IpAddr, options: &str) -> Result<()> {
    for (way, back) in [("there", ""), ("back", "--reverse")] {
        let report = iperf3::run(laptop, target, &format!("-t 2 -i 0.5 {options} {back}"))?;
        flowed(&format!("{what}, TCP {way}"), &report)?;
    }
    Ok(())
}

/// That it was fast enough, and never stood still.
fn flowed(what: &str, report: &Report) -> Result<()> {
    let rate = report.received()?;
    let slowest = report.intervals()?.into_iter().fold(f64::INFINITY, f64::min);
    let again = report.retransmits().map_or(String::new(), |count| format!(", {count} segments sent again"));
    figure(&format!("{what}: {:.0} Mbit/s, slowest half second {:.0}{again}", rate / 1e6, slowest / 1e6));
    ensure!(rate > FLOOR, "{what}: {rate} bit/s");
    ensure!(slowest > 0.0, "{what}: it stood still for half a second");
    Ok(())
}

/// That every datagram of the trains arrived as it was sent, in order.
fn arrived(what: &str, tally: Tally) -> Result<()> {
    ensure!(tally.wrong == 0, "{what}: of another length or other bytes: {tally:?}");
    ensure!(tally.late == 0, "{what}: out of order: {tally:?}");
    ensure!(tally.lost() == 0, "{what}: lost, though nothing was full: {tally:?}");
    Ok(())
}

/// Two nodes whose TAPs are ports of bridges, with a station behind each.
fn stations<'a>(lab: &Lab, nodes: &'a [Node]) -> Result<([Bridged<'a>; 2], [Laptop; 2])> {
    let ends = [Bridged::new(&nodes[0])?, Bridged::new(&nodes[1])?];
    let stations = [ends[0].station(lab, "amy")?, ends[1].station(lab, "ben")?];
    for ipv6 in [false, true] {
        reach(&stations[0], ends[1].address(ipv6).parse()?)?;
    }
    Ok((ends, stations))
}

#[test]
fn a_frame_that_leaves_by_a_bridge_onto_a_wire_has_a_valid_checksum_and_fits() {
    in_lab(|lab| {
        let (_, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let (ends, stations) = stations(lab, &nodes)?;
        let mut running = Vec::new();
        for (station, end) in stations.iter().zip(&ends) {
            running.push(iperf3::serve(station, IPERF)?);
            for ipv6 in [false, true] {
                let address = end.address(ipv6).parse()?;
                let port = PORT + u16::from(ipv6);
                running.push(from_outside::receiver(netsim(), station, "streams", at(address, port))?);
                running.push(from_outside::receiver(netsim(), station, "datagrams", at(address, port))?);
            }
        }
        let arrivals = stations.each_ref().map(|station| Arrivals::start(station, "eth0"));
        let mut datagrams = [0; 2];
        for (from, to) in [(0, 1), (1, 0)] {
            for ipv6 in [false, true] {
                let (from, target) = (&stations[from], ends[to].address(ipv6).parse()?);
                let port = PORT + u16::from(ipv6);
                from_outside::stream(netsim(), from, at(target, port), 40)?;
                let tally = from_outside::trains(netsim(), from, at(target, port), 1200, 10)?;
                arrived("trains", tally)?;
                datagrams[to] += tally.received as usize;
                iperf3::run(from, target, "--bytes 8M")?;
                // Longer than a path of 1500 bytes carries: cut in the tunnel, and whole again behind it.
                iperf3::run(from, target, "--udp --length 1450 --bitrate 50M --bytes 2M")?;
                let pings = from.run(&format!("ping -n -c 3 -i 0.1 -W 2 -s 4000 {target}"))?;
                ensure!(pings.contains(" 0% packet loss"), "{pings}");
            }
        }
        for ((station, arrivals), trains) in stations.iter().zip(arrivals).zip(datagrams) {
            let frames = arrivals?.stop()?;
            let kinds = judge(&frames, FULL_FRAME).with_context(|| format!("at {}", station.name))?;
            figure(&format!("all valid at {}: {kinds:?}", station.name));
            // 12 MB each way and family are 8500 segments; the datagrams of the trains, half of each family, all came.
            for kind in ["tcp4", "tcp6"] {
                ensure!(kinds.get(kind).is_some_and(|count| *count > 8000), "{kind} in {kinds:?}");
            }
            for kind in ["udp4", "udp6"] {
                ensure!(kinds.get(kind).is_some_and(|count| *count > trains / 2), "{kind} in {kinds:?}");
            }
            // Of 4000 bytes each: three questions and three answers of three pieces.
            for kind in ["piece4", "piece6"] {
                ensure!(kinds.get(kind) == Some(&18), "{kind} in {kinds:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn iperf3_runs_at_speed_with_both_families_and_udp() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let [ipv4, ipv6] = addresses(&nodes[1])?;
        let _server = iperf3::serve(&laptops[1], IPERF)?;
        tcp_both_ways("IPv4", &laptops[0], ipv4, "")?;
        tcp_both_ways("IPv6", &laptops[0], ipv6, "")?;
        tcp_both_ways("four streams", &laptops[0], ipv4, "--parallel 4")?;
        for (family, target) in [("IPv4", ipv4), ("IPv6", ipv6)] {
            let report = iperf3::run(&laptops[0], target, "-t 2 --udp --length 1372 --bitrate 100M")?;
            let (rate, lost) = (report.received()?, report.lost()?);
            figure(&format!("{family}, UDP: {:.0} Mbit/s, {:.2} % lost", rate / 1e6, 100.0 * lost));
            ensure!(rate > 0.8 * FLOOR, "UDP over {family}: {rate} bit/s of {FLOOR}");
        }
        Ok(())
    });
}

#[test]
fn frames_with_a_vlan_tag_are_carried_as_fast_as_others() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let ends = [Bridged::new(&nodes[0])?, Bridged::new(&nodes[1])?];
        // Ada's kernel hands out superframes with a tag and takes them; Bob's only plain frames.
        let vlans = [Vlan::new(&ends[0], 5, "10.9.0.1/24", true)?, Vlan::new(&ends[1], 5, "10.9.0.2/24", false)?];
        let target: IpAddr = "10.9.0.2".parse()?;
        reach(&laptops[0], target)?;
        let tagged = Capture::start(&laptops[1], nodes[1].device(), "vlan 5 and icmp")?;
        laptops[0].run("ping -n -c 3 -i 0.1 -W 2 -M do -s 1472 10.9.0.2")?;
        let tagged = tagged.stop()?;
        ensure!(tagged.len() == 6, "not every ping and answer had the tag: {tagged:?}");
        let mut running = vec![iperf3::serve(&laptops[1], IPERF)?];
        tcp_both_ways("802.1Q", &laptops[0], target, "")?;
        for (laptop, address) in laptops.iter().zip(["10.9.0.1", "10.9.0.2"]) {
            for (what, port) in [("streams", PORT), ("datagrams", PORT), ("trains", PORT + 1)] {
                running.push(from_outside::receiver(netsim(), laptop, what, at(address.parse()?, port))?);
            }
        }
        for (laptop, target) in laptops.iter().zip(["10.9.0.2", "10.9.0.1"]) {
            from_outside::stream(netsim(), laptop, at(target.parse()?, PORT), 40)?;
            for port in [PORT, PORT + 1] {
                let tally = from_outside::trains(netsim(), laptop, at(target.parse()?, port), 1200, 20)?;
                arrived(&format!("trains to {target} with a tag"), tally)?;
            }
        }
        drop(vlans);
        Ok(())
    });
}

#[test]
fn trains_of_datagrams_arrive_whole_and_in_order_at_every_kind_of_receiver() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let features = laptops[1].run(&format!("ethtool -k {}", nodes[1].device()))?;
        let merges = features.contains("tx-udp-segmentation: on");
        if !merges {
            let reason = "this kernel's TAPs take no UDP superframes (USO, Linux 6.2): nothing is merged";
            skip("trains_of_datagrams_arrive_whole_and_in_order_at_every_kind_of_receiver", reason);
        }
        for target in addresses(&nodes[1])? {
            for (what, port) in [("datagrams", PORT), ("trains", PORT + 1)] {
                let target = at(target, port);
                let _receiver = from_outside::receiver(netsim(), &laptops[1], what, target)?;
                // QUIC's first size, what a path of 1500 bytes carries whole, what it does not, and tiny ones.
                for size in [1200, 1350, 1452, 100] {
                    let tally = from_outside::trains(netsim(), &laptops[0], target, size, 30)?;
                    arrived(&format!("trains of {size} bytes to {target}"), tally)?;
                    if what == "trains" {
                        figure(&format!(
                            "{size} bytes to {target}: {} datagrams in at most {} receives",
                            tally.received,
                            tally.received + tally.merged
                        ));
                        ensure!(tally.merged > 0 || !merges, "nothing was merged for a receiver with GRO: {tally:?}");
                    } else {
                        ensure!(tally.merged == 0, "merged for a receiver without GRO: {tally:?}");
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_tap_of_9000_bytes_carries_tcp_pings_and_datagrams_of_that_size() {
    in_lab(|lab| {
        // Busy polling beside it: whoever looks for frames without rest must not miss or reorder them either.
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &["--mtu", "9000", "--busy-poll"])?;
        for (laptop, node) in laptops.iter().zip(&nodes) {
            let mtu = laptop.run(&format!("cat /sys/class/net/{}/mtu", node.device()))?;
            ensure!(mtu == "9000", "the TAP's MTU is {mtu}");
        }
        let _server = iperf3::serve(&laptops[1], IPERF)?;
        for target in addresses(&nodes[1])? {
            let pings = laptops[0].run(&format!("ping -n -c 5 -i 0.1 -W 2 -M do -s 8900 {target}"))?;
            ensure!(pings.contains(" 0% packet loss"), "{pings}");
            tcp_both_ways("9000 bytes", &laptops[0], target, "")?;
            for (what, port) in [("datagrams", PORT), ("trains", PORT + 1)] {
                let target = at(target, port);
                let _receiver = from_outside::receiver(netsim(), &laptops[1], what, target)?;
                for size in [8900, 1200] {
                    let tally = from_outside::trains(netsim(), &laptops[0], target, size, 20)?;
                    arrived(&format!("{size} bytes to {target}"), tally)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn two_lanes_reorder_no_flow() {
    in_lab(|lab| no_reordering(lab, "2"));
}

#[test]
fn four_lanes_reorder_no_flow() {
    in_lab(|lab| no_reordering(lab, "4"));
}

/// Flows each way, of these packet sizes: some share datagrams, some fill them.
const FLOWS: [&str; 4] = ["64", "1400", "300", "900"];

fn no_reordering(lab: &mut Lab, lanes: &str) -> Result<()> {
    // One path, because the first to answer changes under load, and what is on the new one overtakes the old on its way.
    let (path, nodes) = routed(lab, &["--lanes", lanes])?;
    let laptops = &path.ends;
    for (node, peer) in nodes.iter().zip(nodes.iter().rev()) {
        // What the kernel kept until the neighbour answered, it sends beside what comes after.
        reach(node.laptop(), peer.ipv4().into())?;
    }
    let mut running = Vec::new();
    for node in &nodes {
        for port in (PORT..).take(FLOWS.len()) {
            let address = at(node.ipv4().into(), port).to_string();
            running.push(Background::start(node.laptop().command(netsim()).args(["load", "receive", &address]))?);
        }
        wait_for("the receivers listen", Duration::from_secs(5), || {
            let listening = node.laptop().run("ss -lun")?;
            Ok((PORT..).take(FLOWS.len()).all(|port| listening.contains(&format!(":{port} "))))
        })?;
    }
    let mut senders = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for (port, size) in (PORT..).zip(FLOWS) {
            let target = at(nodes[to].ipv4().into(), port).to_string();
            // More than two cores can do.
            let words = ["20", netsim(), "load", "send", &target, size, "3000", "200000"];
            let sender = laptops[from].command("timeout").args(words).stdout(Stdio::piped()).spawn()?;
            senders.push((format!("{} bytes to {target}", size), sender));
        }
    }
    let mut flows = Vec::new();
    for (flow, sender) in senders {
        let output = sender.wait_with_output()?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| flow.clone())?;
        flows.push((flow, Burst::from_json(&value).context("a burst")?));
    }
    let received: f64 = flows.iter().map(|(_, burst)| burst.received).sum();
    figure(&format!("{lanes} lanes: {received:.0} datagrams a second arrived, of {} flows", flows.len()));
    for (flow, burst) in &flows {
        ensure!(burst.received > 100.0, "{flow}: {burst:?}");
        ensure!(burst.reordered == 0, "{flow}: {burst:?}");
    }

    let _server = iperf3::serve(&laptops[1], IPERF)?;
    let back = iperf3::serve(&laptops[0], IPERF)?;
    let seen = || -> Result<u64> {
        // The sender's kernel counts what its peer's acknowledgements tell.
        let names = ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"];
        let counts = laptops.iter().flat_map(|laptop| names.map(|name| counter(laptop, "TcpExt", name)));
        counts.sum()
    };
    let before = seen()?;
    thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| iperf3::run(&laptops[1], nodes[0].ipv4().into(), "-t 3 --parallel 4"));
        let report = iperf3::run(&laptops[0], nodes[1].ipv4().into(), "-t 3 --parallel 4")?;
        let other = other.join().expect("waiting for iperf3 does not panic")?;
        let [here, there] = [report.received()?, other.received()?];
        figure(&format!("{lanes} lanes, TCP both ways at once: {:.0} and {:.0} Mbit/s", here / 1e6, there / 1e6));
        Ok(())
    })?;
    let reordered = seen()? - before;
    figure(&format!("{lanes} lanes: TCP saw {reordered} segments out of order"));
    ensure!(reordered == 0, "TCP saw {reordered} segments out of order");
    drop(back);
    Ok(())
}

#[test]
fn congestion_is_marked_outside_and_felt_inside() {
    in_lab(|lab| {
        let (path, nodes) = routed(lab, &[])?;
        // The stations' kernels count what is inside, and nothing else.
        let (ends, stations) = stations(lab, &nodes)?;
        let target: IpAddr = ends[1].address(false).parse()?;
        let _server = iperf3::serve(&stations[1], IPERF)?;
        let run = |ecn: u8| -> Result<(usize, Report)> {
            for station in &stations {
                station.run(&format!("sysctl -qw net.ipv4.tcp_ecn={ecn}"))?;
            }
            let capable = Capture::start(&path.router, "ada", "udp and ip[1] & 3 = 2")?;
            let report = iperf3::run(&stations[0], target, "--bytes 4M")?;
            Ok((capable.stop()?.len(), report))
        };
        let inside = |name| counter(&stations[1], "IpExt", name);

        let (capable, _) = run(0)?;
        ensure!(capable == 0, "{capable} datagrams say ECT(0) though TCP does not");
        let (capable, _) = run(1)?;
        figure(&format!("ECT(0) outside: {capable} datagrams or trains; inside: {}", inside("InECT0Pkts")?));
        ensure!(capable > 20, "only {capable} datagrams say ECT(0)");
        ensure!(inside("InECT0Pkts")? > 20 && inside("InCEPkts")? == 0, "nobody has marked anything yet");

        if let Err(error) = path.router.run("nft add table inet marks") {
            skip("congestion_is_marked_outside_and_felt_inside", &format!("nobody to mark: {error:#}"));
            return Ok(());
        }
        path.router.run("nft add chain inet marks forward { type filter hook forward priority 0 ; }")?;
        path.router.run("nft add rule inet marks forward meta l4proto udp ip ecn ect0 counter ip ecn set ce")?;
        run(1)?;
        let (marked, felt) = (inside("InCEPkts")?, counter(&stations[0], "TcpExt", "TCPDeliveredCE")?);
        figure(&format!("CE inside: {marked} packets; the sender was told of {felt}"));
        ensure!(marked > 20, "{marked} marks arrived inside: {}", path.router.run("nft list ruleset")?);
        ensure!(felt > 20, "the sender was told of {felt}");
        Ok(())
    });
}
