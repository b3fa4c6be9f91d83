//! Who moves, sleeps, or sits behind a forgetful NAT, with the real binary: what its conversations notice.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`).
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::kinds::kind;
use netsim::netns::homes::Homes;
use netsim::netns::trial::{MEET, figure, in_lab, in_quiet_lab};
use netsim::netns::{Capture, Lab, Laptop, Node, Routed, iperf3, wait_for};

/// Intervals of iperf3, a second.
const PER_SECOND: usize = 10;

/// What is asked of a peer: where it is, and by which path.
fn peer(of: &Node, name: &str) -> Result<serde_json::Value> {
    let peers = of.laptop().ask(&["peers"])?;
    let peer = peers["peers"].as_array().and_then(|all| all.iter().find(|peer| peer["name"] == name).cloned());
    peer.with_context(|| format!("{name} is not known: {peers}"))
}

/// Two laptops with a router between, the second joined by the first one's invite.
fn routed(lab: &mut Lab, options: &[&str]) -> Result<(Routed, [Node; 2])> {
    let routed = Routed::new(lab, ["ada", "bob"], "router")?;
    routed.ends[0].found("party")?;
    let first = routed.ends[0].up_with(options)?;
    // This one says where it is.
    routed.ends[1].join(&routed.ends[0].invite(&[])?)?;
    let second = routed.ends[1].up_with(options)?;
    for node in [&first, &second] {
        node.wait_connected(1, MEET)?;
    }
    Ok((routed, [first, second]))
}

/// A DHCP server has given it another address.
fn renumber(laptop: &Laptop, router: Ipv4Addr, last: u8) -> Result<()> {
    let [a, b, c, _] = laptop.underlay.octets();
    laptop.run("ip -4 addr flush dev eth0")?;
    laptop.run(&format!("ip addr add {a}.{b}.{c}.{last}/24 dev eth0"))?;
    laptop.run(&format!("ip route add default via {router}")).map(drop)
}

#[test]
fn an_address_that_changes_in_the_midst_of_a_download_costs_it_less_than_two_seconds() {
    in_lab(|lab| {
        let (routed, nodes) = routed(lab, &[])?;
        let [ada, bob] = &routed.ends;
        let _server = iperf3::serve(bob, 5201)?;
        // The receiver says in which tenths of a second something came. Who sends hears of a new address only by what the other does.
        let load = {
            let (ada, target) = (ada.clone(), IpAddr::from(nodes[1].ipv4()));
            thread::spawn(move || iperf3::run(&ada, target, "--reverse --time 12 --interval 0.1 --bitrate 200M"))
        };
        thread::sleep(Duration::from_secs(4));
        let gateway = |laptop: &Laptop| {
            let [a, b, c, _] = laptop.underlay.octets();
            Ipv4Addr::new(a, b, c, 254)
        };
        renumber(ada, gateway(ada), 77)?;
        thread::sleep(Duration::from_secs(4));
        renumber(bob, gateway(bob), 88)?;
        let report = load.join().expect("iperf3 does not panic")?;
        let intervals = report.intervals()?;
        let silence = intervals.split(|rate| *rate > 0.0).map(<[f64]>::len).max().unwrap_or(0);
        figure(&format!("both addresses changed: {} ms without data at worst", silence * 1000 / PER_SECOND));
        ensure!(intervals.len() > 11 * PER_SECOND, "the connection ended early: {intervals:?}");
        ensure!(silence <= 2 * PER_SECOND, "{silence} tenths of a second without data: {intervals:?}");
        for (node, name, last) in [(&nodes[0], "bob", 88), (&nodes[1], "ada", 77)] {
            let peer = peer(node, name)?;
            ensure!(peer["endpoint"].as_str().is_some_and(|at| at.contains(&format!(".{last}:"))), "{peer}");
        }
        Ok(())
    });
}

/// Datagrams of more than 500 bytes that leave a laptop for 20 pings with so much payload.
fn long_datagrams(laptop: &Laptop, target: Ipv4Addr, payload: usize) -> Result<usize> {
    let filter = format!("udp and src host {} and greater 500", laptop.underlay);
    let capture = Capture::start(laptop, "eth0", &filter)?;
    let said = laptop.run(&format!("ping -n -q -c 20 -i 0.05 -W 2 -s {payload} {target}"))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(capture.stop()?.len())
}

#[test]
#[ignore = "open: of --search-mtu, an experiment; frames one byte too long went as 20 long datagrams, where 40 were expected"]
fn what_the_path_carries_goes_whole_and_when_a_router_grows_narrow_that_is_noticed() {
    in_lab(|lab| {
        let (routed, nodes) = routed(lab, &["--search-mtu"])?;
        let (ada, target) = (&routed.ends[0], nodes[1].ipv4());
        let path_mtu = |node: &Node, name: &str| -> Result<Option<u64>> { Ok(peer(node, name)?["path_mtu"].as_u64()) };
        let begin = Instant::now();
        wait_for("the path is measured", MEET, || {
            Ok(path_mtu(&nodes[0], "bob")? == Some(1500) && path_mtu(&nodes[1], "ada")? == Some(1500))
        })?;
        figure(&format!("1500 bytes are known {} ms after they met", begin.elapsed().as_millis()));
        // 28 bytes of IP and UDP, 40 of ours, 14 of Ethernet, 28 of the ping's. Probes of the path may be among them.
        for (payload, datagrams) in [(1390, 20), (1391, 40)] {
            let sent = long_datagrams(ada, target, payload)?;
            ensure!((datagrams..=datagrams + 4).contains(&sent), "{payload} bytes 20 times: {sent} datagrams");
        }
        let check = ada.ask(&["netcheck"])?;
        ensure!(check["path_mtus"] == serde_json::json!([1500, 1500]), "{check}");
        // The router says so by ICMP, which nobody believes; what comes from bob it drops without a word.
        routed.router.run("ip link set bob mtu 1400")?;
        let begin = Instant::now();
        let pings = {
            let ada = ada.clone();
            thread::spawn(move || ada.run(&format!("ping -n -q -i 0.05 -w 16 -s 1390 {target}")))
        };
        wait_for("the narrow path is measured", Duration::from_secs(16), || {
            Ok(path_mtu(&nodes[0], "bob")? == Some(1400) && path_mtu(&nodes[1], "ada")? == Some(1400))
        })?;
        figure(&format!("a router grew narrow: known on both sides after {} ms", begin.elapsed().as_millis()));
        pings.join().expect("ping does not panic").ok();
        let sent = long_datagrams(ada, target, 1390)?;
        ensure!((40..=44).contains(&sent), "{sent} datagrams");
        let _server = iperf3::serve(&routed.ends[1], 5201)?;
        for direction in ["", "--reverse"] {
            let report = iperf3::run(ada, target.into(), &format!("{direction} --time 2"))?;
            ensure!(report.received()? > 10e6, "{report:?}");
        }
        let why = ada.meshd(&["why", "bob"])?;
        ensure!(why.contains("MTU 1400"), "{why}");
        Ok(())
    });
}

/// Two at home behind boxes that forget a flow after 20 s, one outside who stays, and one whom the tests may stop; all have met.
fn forgetful(lab: &mut Lab) -> Result<(Homes, Vec<Node>)> {
    let homes = Homes::new(lab, &[("ada", kind("port-restricted")), ("bob", kind("port-restricted"))])?;
    let outside = homes.another(lab, "outside")?;
    for home in &homes.homes {
        home.gate.run(
            "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=20 net.netfilter.nf_conntrack_udp_timeout_stream=20",
        )?;
    }
    homes.public.found("party")?;
    let public = homes.public.up()?;
    let mut nodes = Vec::new();
    for laptop in homes.homes.iter().map(|home| &home.laptop).chain([&outside]) {
        laptop.join(&homes.public.invite(&[])?)?;
        nodes.push(laptop.up()?);
    }
    nodes.push(public);
    for node in &nodes {
        node.wait_connected(3, MEET)?;
    }
    wait_for("a direct path", MEET, || Ok(peer(&nodes[0], "bob")?["path"] == "direct"))?;
    // The session with ML-KEM mixed in begins up to seven seconds after the first: up to then the peer is not merely kept.
    wait_for("post-quantum sessions", MEET, || {
        Ok(peer(&nodes[0], "bob")?["post_quantum"] == true && peer(&nodes[1], "ada")?["post_quantum"] == true)
    })?;
    // What was said at the beginning is over.
    thread::sleep(Duration::from_secs(5));
    Ok((homes, nodes))
}

#[test]
fn after_an_idle_minute_behind_nats_that_forget_after_twenty_seconds_nothing_is_lost() {
    in_quiet_lab(|lab| {
        let (homes, nodes) = forgetful(lab)?;
        let (ada, bob, target) = (&homes.homes[0].laptop, &homes.homes[1], nodes[1].ipv4());
        let idle = Duration::from_secs(60);
        // What keeps the session: small messages and handshakes. Frames are longer: kernels speak in the mesh unasked.
        let filter = format!("udp and host {} and (less 101 or udp[8] < 4)", bob.outside);
        let capture = Capture::start(ada, "eth0", &filter)?;
        thread::sleep(idle);
        let lines = capture.stop()?;
        // Of Ethernet frames: 14 bytes are no IP.
        let len = |line: &String| {
            let len = line.split_once(", length ")?.1.split(':').next()?.parse::<usize>().ok()?;
            Some(len - 14)
        };
        let bytes: usize = lines.iter().filter_map(len).sum();
        let rate = bytes as f64 / idle.as_secs_f64();
        figure(&format!("a warm peer: {} datagrams, {rate:.0} bytes a second, both ways", lines.len()));
        ensure!(!lines.is_empty() && rate <= 40.0, "{rate} bytes a second: {lines:?}");
        let lost = ada.run(&format!("ping -n -q -c 20 -i 0.05 -W 2 {target}"))?;
        ensure!(lost.contains(" 0% packet loss"), "{lost}");
        ensure!(peer(&nodes[0], "bob")?["path"] == "direct");
        Ok(())
    });
}

#[test]
fn who_was_stopped_for_forty_seconds_is_back_at_once_and_nobody_else_is_bothered_meanwhile() {
    in_quiet_lab(|lab| {
        let (homes, nodes) = forgetful(lab)?;
        let ada = &homes.homes[0].laptop;
        nodes[2].pause()?;
        let filter = format!("udp and src host {} and dst host {} and less 101", ada.underlay, homes.homes[1].outside);
        let capture = Capture::start(ada, "eth0", &filter)?;
        thread::sleep(Duration::from_secs(25));
        let asked = capture.stop()?.len();
        // Everybody has long taken it for gone.
        thread::sleep(Duration::from_secs(15));
        nodes[2].resume()?;
        let took = Instant::now();
        ada.run(&format!("ping -n -q -c 1 -W 2 {}", nodes[2].ipv4()))?;
        figure(&format!("stopped for 40 s: answers {} ms after it goes on", took.elapsed().as_millis()));
        ensure!(asked <= 8, "while one was silent, another was asked {asked} times whether UDP passes");
        Ok(())
    });
}
