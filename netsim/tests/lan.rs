//! The real binary on one switch without Internet: laptops in namespaces, with the kernel's own tools as judges.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`), so nothing it does reaches this machine, and
//! whatever happens nothing is left of it.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::netns::bench::gauge::RoundTrips;
use netsim::netns::trial::{MEET, figure, in_lab, party, skip};
use netsim::netns::wire::{Conditions, Wire};
use netsim::netns::{Background, Capture, Laptop, Node, Pings, Routed, demo, start, wait_for};

fn ping(laptop: &Laptop, arguments: &str) -> Result<String> {
    laptop.run(&format!("ping -n -c 3 -i 0.1 -W 2 {arguments}"))
}

#[test]
fn arp_and_neighbour_discovery_resolve_and_both_families_ping() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let bob = laptops[1].ask(&["status"])?;
        let (ipv6, mac) = (bob["ipv6"].as_str().context("ipv6")?, bob["mac"].as_str().context("mac")?);
        let device = nodes[0].device();
        laptops[0].run(&format!("ip neigh flush dev {device}"))?;
        ping(&laptops[0], &nodes[1].ipv4().to_string())?;
        ping(&laptops[0], ipv6)?;
        let neighbours = laptops[0].run(&format!("ip neigh show dev {device}"))?;
        for address in [&nodes[1].ipv4().to_string(), ipv6] {
            let wanted = format!("{address} lladdr {mac}");
            ensure!(neighbours.contains(&wanted), "no `{wanted}` in:\n{neighbours}");
        }
        // The other way round, link-local: nobody has that address in a record.
        let link_local = laptops[0].run(&format!("ip -6 addr show dev {device} scope link"))?;
        let address = link_local.split("inet6 ").nth(1).and_then(|rest| rest.split('/').next()).context("fe80::")?;
        ping(&laptops[1], &format!("{address}%{}", nodes[1].device()))?;
        Ok(())
    });
}

#[test]
fn broadcast_and_multicast_reach_every_laptop() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob", "cyd"], &[])?;
        for laptop in &laptops {
            laptop.run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        }
        let device = nodes[0].device();
        let own = laptops[0].run(&format!("ip -4 addr show dev {device}"))?;
        let broadcast = own.split("brd ").nth(1).and_then(|rest| rest.split(' ').next());
        let broadcast = broadcast.map_or("255.255.255.255".to_owned(), str::to_owned);
        for (what, target) in
            [("broadcast", format!("-b -I {device} {broadcast}")), ("all nodes", format!("-I {device} ff02::1"))]
        {
            let answers = laptops[0].run(&format!("ping -n -c 4 -i 0.2 -W 2 {target}"))?;
            for other in &nodes[1..] {
                // Linux answers ff02::1 from the address of the widest scope.
                let status = other.laptop().ask(&["status"])?;
                let from =
                    status[if what == "broadcast" { "ipv4" } else { "ipv6" }].as_str().context("address")?.to_owned();
                ensure!(answers.contains(&from), "{} did not answer the {what}:\n{answers}", other.laptop().name);
            }
        }
        // A group that meshd knows nothing about.
        let capture = Capture::start(&laptops[2], nodes[2].device(), "dst host 239.1.2.3")?;
        laptops[0].run(&format!("ip route add 239.0.0.0/8 dev {device}"))?;
        let _ = laptops[0].run("ping -n -c 3 -i 0.1 -W 1 239.1.2.3");
        let seen = capture.stop()?;
        ensure!(seen.len() >= 3, "239.1.2.3 reached cyd {} times of 3", seen.len());
        Ok(())
    });
}

#[test]
fn frames_of_1500_bytes_and_vlan_tags_pass_uncut() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let mtu = laptops[0].run(&format!("cat /sys/class/net/{}/mtu", nodes[0].device()))?;
        ensure!(mtu == "1500", "the TAP's MTU is {mtu}");
        ping(&laptops[0], &format!("-M do -s 1472 {}", nodes[1].ipv4()))?;
        ping(&laptops[0], &format!("-s 9000 {}", nodes[1].ipv4()))?;
        let tagged = ["1", "2"].iter().zip(&nodes).try_for_each(|(host, node)| {
            let (laptop, device) = (node.laptop(), node.device());
            laptop.run(&format!("ip link add link {device} name vlan42 type vlan id 42"))?;
            laptop.run(&format!("ip addr add 172.30.42.{host}/24 dev vlan42"))?;
            laptop.run("ip link set vlan42 up").map(drop)
        });
        let capture = Capture::start(&laptops[1], nodes[1].device(), "vlan 42")?;
        if tagged.is_ok() {
            ping(&laptops[0], "-M do -s 1472 172.30.42.2")?;
        } else {
            // This kernel knows no VLANs, but it lets frames with a tag pass.
            send_tagged(&nodes[0], &nodes[1], 3)?;
        }
        let seen = capture.stop()?;
        let tagged_frames = seen.iter().filter(|line| line.contains("vlan 42")).count();
        ensure!(tagged_frames >= 3, "tagged frames: {seen:?}");
        figure(&format!("VLAN by {}: {}", if tagged.is_ok() { "the kernel" } else { "hand" }, seen[0]));
        Ok(())
    });
}

/// Sends full frames tagged for VLAN 42 into the TAP of `from`, by perl, which every Debian has.
fn send_tagged(from: &Node, to: &Node, count: usize) -> Result<()> {
    let mac = |node: &Node| -> Result<String> {
        let status = node.laptop().ask(&["status"])?;
        Ok(status["mac"].as_str().context("mac")?.replace(':', ""))
    };
    let index = from.laptop().run(&format!("cat /sys/class/net/{}/ifindex", from.device()))?;
    // AF_PACKET is 17, SOCK_RAW 3; sockaddr_ll as in packet(7).
    let script = format!(
        "socket(S, 17, 3, 0) && bind(S, pack('SnlSCCa8', 17, 0, {index}, 0, 0, 0, '')) or die $!; \
         for (1..{count}) {{ syswrite(S, pack('H*', '{}{}8100002a88b5') . ('x' x 1500)) == 1518 or die $! }}",
        mac(to)?,
        mac(from)?
    );
    let output = from.laptop().command("perl").args(["-e", &script]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_laptop_clones_from_another_and_iperf3_runs() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let (head, _daemon) = demo::serve_git(&nodes[0])?;
        demo::clone(&laptops[1], &nodes[0], &head)?;

        let _server = Background::start(laptops[0].command("iperf3").args(["-s", "-1"]))?;
        wait_for("iperf3 listens", Duration::from_secs(5), || Ok(laptops[0].run("ss -ltn")?.contains(":5201")))?;
        let report = laptops[1].run(&format!("timeout 20 iperf3 -J -t 3 -c {}", nodes[0].ipv4()))?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("bits_per_second")?;
        figure(&format!("iperf3, one TCP stream, this build: {:.0} Mbit/s", rate / 1e6));
        // A debug build on a busy machine still does this; a tunnel that cuts or loses frames does not.
        ensure!(rate > 10e6, "{rate} bit/s");
        Ok(())
    });
}

#[test]
fn dhcp_works_over_the_mesh() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let (here, there) = (nodes[0].device(), nodes[1].device());
        laptops[0].run(&format!("ip addr add 172.31.7.1/24 dev {here}"))?;
        let lease = laptops[0].dir.join("leases");
        let mut server = laptops[0].command("dnsmasq");
        server.args(["--no-daemon", "--port=0", "--bind-interfaces", "--no-ping", "--user=root"]);
        server.args(["--conf-file=/dev/null", "--dhcp-authoritative", "--dhcp-range=172.31.7.50,172.31.7.59,10m"]);
        server.arg(format!("--interface={here}")).arg(format!("--dhcp-leasefile={}", lease.display()));
        let _server = Background::start(&mut server)?;
        let script = laptops[1].dir.join("bound");
        fs::write(&script, "#!/bin/sh\n[ \"$1\" != bound ] || ip addr add $ip/24 dev $interface\n")?;
        laptops[1].run(&format!("chmod 755 {}", script.display()))?;
        laptops[1].run(&format!("timeout 20 udhcpc -f -n -q -t 10 -T 1 -i {there} -s {}", script.display()))?;
        let address = laptops[1].run(&format!("ip -4 addr show dev {there}"))?;
        ensure!(address.contains("inet 172.31.7.5"), "no lease: {address}");
        ping(&laptops[1], "172.31.7.1")?;
        Ok(())
    });
}

#[test]
fn killing_any_one_of_five_costs_the_others_no_ping() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob", "cyd", "dan", "eve"], &[])?;
        let mut slowest = Duration::ZERO;
        for victim in 0..5 {
            let others: Vec<usize> = (0..5).filter(|&index| index != victim).collect();
            let mut pings = Vec::new();
            for (place, &from) in others.iter().enumerate() {
                let to = others[(place + 1) % others.len()];
                pings.push((from, to, Pings::start(&laptops[from], nodes[to].ipv4(), 20)?));
            }
            thread::sleep(Duration::from_millis(500));
            nodes[victim].kill9()?;
            thread::sleep(Duration::from_secs(2));
            // It comes back with its key, while the others go on.
            let witness = others[0];
            let begun = Instant::now();
            nodes[victim] = laptops[victim].up()?;
            let target = nodes[victim].ipv4();
            while laptops[witness].run(&format!("ping -n -c 1 -W 1 {target}")).is_err() {
                ensure!(begun.elapsed() < Duration::from_secs(10), "{} is not reachable", laptops[victim].name);
            }
            slowest = slowest.max(begun.elapsed());
            for (from, to, pings) in pings {
                let loss = pings.stop()?;
                let (from, to, name) = (&laptops[from].name, &laptops[to].name, &laptops[victim].name);
                ensure!(loss.lost == 0 && loss.sent > 30, "{from} to {to}, while {name} died: {loss:?}");
            }
            for node in &nodes {
                node.wait_connected(4, MEET)?;
            }
        }
        figure(&format!(
            "kill -9 and restart with the same key: reachable again after {:.2} s at worst",
            slowest.as_secs_f64()
        ));
        ensure!(slowest < Duration::from_secs(3), "back after {slowest:?}");
        Ok(())
    });
}

#[test]
fn the_last_one_standing_still_accepts_a_newcomer() {
    in_lab(|lab| {
        let (laptops, mut nodes, invite) = party(lab, ["ada", "bob", "cyd", "dan", "eve"], &[])?;
        for node in &mut nodes[..4] {
            node.kill9()?;
            thread::sleep(Duration::from_millis(300));
        }
        let fay = lab.laptop("fay")?;
        fay.join(&invite)?;
        let (_node, time) = start::until_first_ping(&fay, nodes[4].ipv4())?;
        figure(&format!("a newcomer reaches the last of five after {:.2} s", time.as_secs_f64()));
        ping(&laptops[4], fay.ask(&["status"])?["ipv4"].as_str().context("ipv4")?)?;
        Ok(())
    });
}

#[test]
fn from_up_to_the_first_ping_takes_at_most_a_second_and_a_half() {
    in_lab(|lab| {
        let times = start::measure(lab, 20, |_| ())?;
        figure(&format!("from `meshd up` to the first answered ping, {times}"));
        ensure!(times.median() <= Duration::from_millis(1500), "{times}");
        ensure!(times.worst() <= Duration::from_secs(5), "{times}");
        Ok(())
    });
}

#[test]
fn strangers_are_refused_told_nothing_and_counted() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob"], &[])?;
        // An invite made while ada runs names her as a contact, so that a stranger knows where to knock.
        let invite = laptops[0].invite(&["--uses", "0"])?;
        let [sam, tom, una] = lab.laptops(["sam", "tom", "una"])?;

        // Sam has a network of his own, and the addresses of ours.
        sam.join(&invite)?;
        let ours = network_file(&sam)?;
        fs::remove_dir_all(sam.dir.join("state"))?;
        sam.found("elsewhere")?;
        edit_network_file(&sam, |file| file["contacts"] = ours["contacts"].clone())?;

        // Tom has everything but the secret.
        tom.join(&invite)?;
        edit_network_file(&tom, |file| {
            let secret = &mut file["network"]["secret"];
            secret[0] = serde_json::json!((secret[0].as_u64().unwrap_or_default() + 1) % 256);
        })?;

        let before = nodes.iter().map(Node::drop_total).collect::<Result<Vec<_>>>()?;
        let pings = Pings::start(&laptops[0], nodes[1].ipv4(), 50)?;
        for stranger in [&sam, &tom, &una] {
            let knocks = format!("udp and src host {} and not multicast", stranger.underlay);
            let knocks = Capture::start(&laptops[0], "eth0", &knocks)?;
            let told = format!("udp and dst host {}", stranger.underlay);
            let told = Capture::start(stranger, "eth0", &told)?;
            if stranger.name == "una" {
                // Her certificate ends while her cable is out.
                una.join(&laptops[0].invite(&["--uses", "0", "--member-for", "6s"])?)?;
                una.unplug()?;
            }
            let mut node = stranger.up().with_context(|| format!("{} starts", stranger.name))?;
            if stranger.name == "una" {
                // Two seconds of rounding: hers and that of the node's clock.
                thread::sleep(Duration::from_secs(9));
                una.plug()?;
            }
            thread::sleep(Duration::from_secs(6));
            if stranger.name == "una" {
                ensure!(node.log_tail().contains("membership of this machine has ended"), "{}", node.log_tail());
            } else {
                let connected = stranger.ask(&["status"])?["connected"].as_u64();
                ensure!(connected == Some(0), "{} has {connected:?} sessions:\n{}", stranger.name, node.log_tail());
            }
            let _ = node.terminate();
            let (knocks, told) = (knocks.stop()?, told.stop()?);
            ensure!(told.is_empty(), "{} was told: {told:?}", stranger.name);
            ensure!(
                !knocks.is_empty() || stranger.name == "una",
                "{} never knocked: this shows nothing",
                stranger.name
            );
            figure(&format!("{}: {} datagrams to ada, none back", stranger.name, knocks.len()));
        }
        let loss = pings.stop()?;
        ensure!(loss.lost == 0, "honest pings: {loss:?}");
        let after = nodes.iter().map(Node::drop_total).collect::<Result<Vec<_>>>()?;
        ensure!(after[0] > before[0], "ada counted nothing: {:?}", nodes[0].drops()?);
        figure(&format!("ada's counters: {:?}", nodes[0].drops()?));
        for node in &nodes {
            node.wait_connected(1, Duration::from_secs(1))?;
        }
        Ok(())
    });
}

fn network_path(laptop: &Laptop) -> Result<PathBuf> {
    let state = laptop.dir.join("state");
    let folders = fs::read_dir(&state)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let file = folders.iter().map(|folder| folder.join("network")).find(|file| file.exists());
    file.with_context(|| format!("no network in {}", state.display()))
}

fn network_file(laptop: &Laptop) -> Result<serde_json::Value> {
    Ok(serde_json::from_slice(&fs::read(network_path(laptop)?)?)?)
}

fn edit_network_file(laptop: &Laptop, edit: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
    let mut file = network_file(laptop)?;
    edit(&mut file);
    Ok(fs::write(network_path(laptop)?, serde_json::to_vec(&file)?)?)
}

#[test]
fn sigterm_says_goodbye_and_removes_the_tap() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let device = nodes[1].device().to_owned();
        laptops[1].run(&format!("ip link show {device}"))?;
        let begun = Instant::now();
        let status = nodes[1].terminate()?;
        let stopped = begun.elapsed();
        ensure!(status.success(), "{status}:\n{}", nodes[1].log_tail());
        ensure!(laptops[1].run(&format!("ip link show {device}")).is_err(), "{device} is still there");
        // Silence alone takes longer than this to be noticed.
        nodes[0].wait_connected(0, Duration::from_secs(1))?;
        figure(&format!("SIGTERM: gone after {:.2} s", stopped.as_secs_f64()));
        Ok(())
    });
}

#[test]
fn cap_net_admin_alone_is_enough() {
    in_lab(|lab| {
        let [ada, bob] = lab.laptops(["ada", "bob"])?;
        // Nobody owns the files; in a user namespace there is only one user, and it has every capability there.
        let Ok(()) = give_to_nobody(&bob) else {
            skip("cap_net_admin_alone_is_enough", "a user namespace of one user has no other to become");
            return Ok(());
        };
        let invite = ada.found("party")?;
        let target = ada.up()?;
        as_nobody(&bob, &bob.meshd_command(&["join", &invite, "--name", "bob"]))
            .output()
            .map_err(anyhow::Error::from)
            .and_then(|output| {
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Ok(())
            })?;
        let mut node = bob.start(&mut as_nobody(&bob, &bob.meshd_command(&["up"])))?;
        node.wait_ready()?;
        ping(&bob, &target.ipv4().to_string())?;
        let status = node.terminate()?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}

/// Makes `laptop`'s folder nobody's, and /dev/net/tun everybody's (in our private mounts only).
fn give_to_nobody(laptop: &Laptop) -> Result<()> {
    laptop.run(&format!("chown -R 65534:65534 {}", laptop.dir.display()))?;
    fs::create_dir_all("/run/dev")?;
    laptop.run("mknod -m 666 /run/dev/tun c 10 200")?;
    Ok(())
}

/// `command` (an `ip netns exec …`) as user nobody with CAP_NET_ADMIN and nothing else.
fn as_nobody(laptop: &Laptop, command: &std::process::Command) -> std::process::Command {
    // ip netns exec makes mounts of its own, so the device goes in there.
    let arguments: Vec<_> = command.get_args().skip(3).collect();
    let mut changed = laptop.command("sh");
    let line = "mount --bind /run/dev/tun /dev/net/tun && exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                --bounding-set -all,+net_admin --inh-caps -all,+net_admin --ambient-caps -all,+net_admin \"$@\"";
    changed.args(["-c", line, "sh"]).args(arguments);
    changed
}

#[test]
fn cables_are_pulled_and_plugged() {
    in_lab(|lab| {
        let (laptops, nodes, _) = party(lab, ["ada", "bob", "cyd"], &[])?;
        let mut worst = Duration::ZERO;
        // Shorter than a session's patience, and longer.
        for out in [2, 12] {
            let others = Pings::start(&laptops[0], nodes[1].ipv4(), 20)?;
            laptops[2].unplug()?;
            thread::sleep(Duration::from_secs(out));
            ensure!(laptops[0].run(&format!("ping -n -c 1 -W 1 {}", nodes[2].ipv4())).is_err(), "the cable is out");
            let loss = others.stop()?;
            ensure!(loss.lost == 0, "ada and bob, without cyd: {loss:?}");
            laptops[2].plug()?;
            let begun = Instant::now();
            while laptops[0].run(&format!("ping -n -c 1 -W 1 {}", nodes[2].ipv4())).is_err() {
                ensure!(begun.elapsed() < MEET, "cyd is not back:\n{}", nodes[2].log_tail());
            }
            worst = worst.max(begun.elapsed());
        }
        figure(&format!("a cable plugged in again: reachable after {:.2} s at worst", worst.as_secs_f64()));
        ensure!(worst < Duration::from_secs(5), "back after {worst:?}");
        Ok(())
    });
}

#[test]
fn the_lab_itself_is_a_switch_without_internet() {
    in_lab(|lab| {
        let [ada, bob] = lab.laptops(["ada", "bob"])?;
        ping(&ada, &bob.underlay.to_string())?;
        ensure!(ada.run("ip route show default")?.is_empty(), "a default route");
        ensure!(ada.run("ping -n -c 1 -W 1 192.0.2.1").is_err(), "there is Internet");
        let pings = Pings::start(&ada, bob.underlay, 50)?;
        thread::sleep(Duration::from_millis(500));
        bob.unplug()?;
        thread::sleep(Duration::from_millis(500));
        bob.plug()?;
        thread::sleep(Duration::from_millis(500));
        let loss = pings.stop()?;
        ensure!((10..50).contains(&loss.longest), "an unplugged cable loses pings: {loss:?}");
        Ok(())
    });
}

#[test]
fn a_wire_is_as_slow_and_as_lossy_as_asked() {
    in_lab(|lab| {
        let perfect = Wire::new(lab, ["ada", "bob"], Conditions::PERFECT)?;
        let times = RoundTrips::measure(&perfect.ends[0], perfect.ends[1].underlay, 200)?;
        ensure!(times.percentile(0.5) < 0.005, "{} s on a perfect wire", times.percentile(0.5));
        let slow = Conditions { delay: Duration::from_millis(10), loss: 0.2, seed: 1, ..Conditions::PERFECT };
        let slow = Wire::new(lab, ["cyd", "dan"], slow)?;
        let times = RoundTrips::measure(&slow.ends[0], slow.ends[1].underlay, 200)?;
        let fastest = times.percentile(0.01);
        ensure!((0.02..0.03).contains(&fastest), "{fastest} s on a wire of 20 ms there and back");
        let (frames, lost) = (slow.counters().frames(), slow.counters().lost());
        // Four hundred chances of one in five: 80, give or take 8.
        ensure!((frames / 10..frames / 3).contains(&lost), "{lost} of {frames} lost, not one in five");
        Ok(())
    });
}

#[test]
fn a_router_lets_two_laptops_meet_who_share_no_network() {
    in_lab(|lab| {
        let path = Routed::new(lab, ["ada", "bob"], "router")?;
        let [ada, bob] = &path.ends;
        ada.found("party")?;
        let first = ada.up()?;
        // Made while ada runs, so it says where she is: nothing else could.
        bob.join(&ada.invite(&[])?)?;
        let second = bob.up()?;
        second.wait_connected(1, MEET)?;
        ping(bob, &first.ipv4().to_string())?;
        Ok(())
    });
}
