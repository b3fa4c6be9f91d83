//! Behind NATs of the kernel, with the real binary: who meets whom, how fast, and over which path.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`).
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::kinds::kind;
use netsim::netns::homes::{Home, Homes};
use netsim::netns::trial::{MEET, figure, in_lab};
use netsim::netns::{Background, Chain, Lab, Node, Pings, wait_for};

/// From the start of the second of two laptops behind routers to their session: they meet over the public member's control
/// network, and both must open their routers first.
const DIRECT: Duration = Duration::from_secs(5);

/// From the start of the first machine of a chain of five to the first answer of the last: the founders' goal.
const FAR: Duration = Duration::from_secs(10);

/// Founded by the public laptop; both homes have joined by its invite and started.
fn two_homes(lab: &mut Lab, routers: [&str; 2]) -> Result<(Homes, Node, [Node; 2])> {
    let homes = Homes::new(lab, &[("ada", kind(routers[0])), ("bob", kind(routers[1]))])?;
    homes.public.found("party")?;
    let public = homes.public.up()?;
    let mut nodes = Vec::new();
    for home in &homes.homes {
        home.laptop.join(&homes.public.invite(&[])?)?;
        nodes.push(home.laptop.up()?);
        nodes.last().context("just started")?.wait_connected(1, MEET)?;
    }
    Ok((homes, public, nodes.try_into().expect("two homes, two nodes")))
}

/// Where `home` is for the rest of the world, as its peer says.
fn endpoint_of(home: &Home, by: &Node) -> Result<String> {
    let peers = by.laptop().ask(&["peers"])?;
    let peers = peers["peers"].as_array().context("peers")?.clone();
    let peer = peers.iter().find(|peer| peer["name"] == home.laptop.name.as_str()).context("it is not known")?;
    Ok(peer["endpoint"].as_str().unwrap_or("none").to_owned())
}

/// Until both sides of a relayed pair have told of their NATs while there is traffic: at the second knock, or the third.
const AGREED: Duration = Duration::from_secs(50);

/// Why `node` reaches `peer` as it does.
fn why(node: &Node, peer: &str) -> Result<serde_json::Value> {
    node.laptop().ask(&["why", peer])
}

/// A netcheck must say this of the NAT, for programs and for people.
fn check_nat(node: &Node, mapping: &str, ports: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    let check = node.laptop().ask(&["netcheck"])?;
    let took = begin.elapsed();
    let survey = &check["nat"]["survey"];
    ensure!(survey["mapping"] == mapping && survey["ports"].as_str() == ports, "{check}");
    ensure!(check["udp"]["blocked"] == false && check["hairpin"] != "yes", "{check}");
    ensure!(took < Duration::from_secs(3), "it took {took:?}");
    figure(&format!("netcheck after {} ms: {survey}, hairpin {}", took.as_millis(), check["hairpin"]));
    let text = node.laptop().meshd(&["netcheck"])?;
    ensure!(text.contains(&format!("NAT:           {mapping}")), "{text}");
    Ok(())
}

fn meet(lab: &mut Lab, routers: [&str; 2]) -> Result<()> {
    let (homes, mut public, nodes) = two_homes(lab, routers)?;
    let begin = Instant::now();
    for node in &nodes {
        node.wait_connected(2, DIRECT)?;
    }
    figure(&format!(
        "{routers:?}: a session {} ms after the second knew the public member",
        begin.elapsed().as_millis()
    ));
    for (home, other) in [(0, 1), (1, 0)] {
        let gate = format!("{}:", homes.homes[home].gate.underlay);
        // They may have met through the public one first.
        wait_for("a direct path", DIRECT, || Ok(endpoint_of(&homes.homes[home], &nodes[other])?.starts_with(&gate)))?;
        let status = nodes[home].laptop().ask(&["status"])?;
        ensure!(status["seen_at"][0].as_str().is_some_and(|seen| seen.starts_with(&gate)), "{status}");
    }
    figure(&format!("{routers:?}: direct after {} ms", begin.elapsed().as_millis()));
    for (node, other) in [(0, "bob"), (1, "ada")] {
        let told = why(&nodes[node], other)?;
        ensure!(told["reason"].as_str().is_some_and(|reason| reason.starts_with("direct")), "{told}");
        let tried = told["candidates"].as_array().context("candidates")?;
        ensure!(tried.iter().any(|it| it["in_use"] == true && it["answered"].is_u64()), "{told}");
        check_nat(&nodes[node], "endpoint-independent", None)?;
    }
    let paths = nodes[0].laptop().meshd(&["ping", "bob", "--path", "-c", "2"])?;
    ensure!(paths.contains("in use") && paths.contains("2 transmitted, 2 received"), "{paths}");
    // The public one was only needed to meet.
    public.kill9()?;
    let target = nodes[1].ipv4();
    homes.homes[0].laptop.run(&format!("ping -n -q -c 20 -i 0.1 -W 2 {target}"))?;
    Ok(())
}

#[test]
fn two_homes_behind_symmetric_routers_speak_through_the_public_member_and_it_reads_nothing() {
    in_lab(|lab| {
        let (homes, public, nodes) = two_homes(lab, ["symmetric-random", "symmetric-random"])?;
        let begin = Instant::now();
        for node in &nodes {
            node.wait_connected(2, DIRECT)?;
        }
        figure(&format!("relayed {} ms after the second knew the public member", begin.elapsed().as_millis()));
        let peers = nodes[0].laptop().ask(&["peers"])?;
        let bob =
            peers["peers"].as_array().and_then(|all| all.iter().find(|peer| peer["name"] == "bob")).context("bob")?;
        ensure!(bob["path"] == "relayed" && bob["via"] == "pub", "{bob}");
        let target = nodes[1].ipv4();
        let file = homes.public.dir.join("seen.pcap");
        let words =
            ["-i", "eth0", "-U", "-s", "0", "-w", &file.display().to_string(), "udp port 4747"].map(str::to_owned);
        let capture = Background::start(homes.public.command("tcpdump").args(words))?;
        // It writes the header of the file when it listens.
        wait_for("tcpdump listens", MEET, || Ok(file.metadata().is_ok_and(|file| file.len() > 0)))?;
        homes.homes[0].laptop.run(&format!("ping -n -q -c 20 -i 0.1 -W 2 -p 6d65736864 {target}"))?;
        // Each question and each answer, 98 bytes of frame at least, comes and goes.
        wait_for("the relay has seen all of it", MEET, || Ok(file.metadata()?.len() > 80 * 98))?;
        drop(capture);
        let seen = std::fs::read(&file)?;
        ensure!(!seen.windows(10).any(|window| window == b"meshdmeshd"), "what was pinged can be read at the relay");
        for (node, other) in [(0, "bob"), (1, "ada")] {
            wait_for("both have told of their NATs", AGREED, || {
                Ok(why(&nodes[node], other)?["reason"] == "relayed-both-random")
            })?;
            let told = why(&nodes[node], other)?;
            ensure!(told["because"].as_str().is_some_and(|why| why.ends_with("relayed by pub")), "{told}");
            check_nat(&nodes[node], "endpoint-dependent", Some("random"))?;
        }
        let text = nodes[0].laptop().meshd(&["why", "bob"])?;
        ensure!(text.contains("NAT of bob: endpoint-dependent, random ports") && text.contains("relay pub"), "{text}");
        ensure!(public.drops()?.iter().all(|(reason, _)| !reason.ends_with("-channel")), "{:?}", public.drops());
        Ok(())
    });
}

/// Two homes that can only be relayed, and two members that do so: what becomes of pings when the relay in use fails as `fail` has it.
fn relay_fails(lab: &mut Lab, fail: impl FnOnce(&mut Node) -> Result<()>) -> Result<[Node; 2]> {
    let homes = Homes::new(lab, &[("ada", kind("symmetric-random")), ("bob", kind("symmetric-random"))])?;
    let spare = homes.another(lab, "spare")?;
    homes.public.found("party")?;
    let public = homes.public.up()?;
    spare.join(&homes.public.invite(&[])?)?;
    let spare = spare.up()?;
    spare.wait_connected(1, MEET)?;
    let mut nodes = Vec::new();
    for home in &homes.homes {
        home.laptop.join(&homes.public.invite(&[])?)?;
        nodes.push(home.laptop.up()?);
    }
    for node in &nodes {
        node.wait_connected(3, DIRECT)?;
    }
    let via = |node: &Node| -> Result<String> {
        let peers = node.laptop().ask(&["peers"])?;
        let bob = peers["peers"].as_array().and_then(|all| all.iter().find(|peer| peer["name"] == "bob").cloned());
        Ok(bob.context("bob")?["via"].as_str().unwrap_or("nobody").to_owned())
    };
    let pings = Pings::start(nodes[0].laptop(), nodes[1].ipv4(), 20)?;
    thread::sleep(Duration::from_secs(4));
    let first = via(&nodes[0])?;
    let mut relays = [public, spare];
    let used = relays.iter_mut().find(|relay| relay.laptop().name == first).context("relayed by one of the two")?;
    fail(used)?;
    thread::sleep(Duration::from_secs(6));
    let loss = pings.stop()?;
    figure(&format!("{first}, the relay, failed: {} ms without an answer", loss.longest * 50));
    ensure!(loss.longest <= 3 * 20, "{loss:?}");
    ensure!(via(&nodes[0])? != first, "still by {first}");
    Ok(nodes.try_into().expect("two homes, two nodes"))
}

/// What a relay sends has the first bit of its first byte set; its own sessions' datagrams do not.
fn bend(relay: &Node, verdict: &str) -> Result<()> {
    let path = relay.laptop().dir.join("bend.nft");
    let rule = format!("udp sport 4747 @th,64,1 1 {verdict}");
    let chain = format!("chain out {{ type filter hook output priority 0; {rule}\n}}");
    std::fs::write(&path, format!("table ip bend {{ {chain}\n}}\n"))?;
    relay.laptop().run(&format!("nft -f {}", path.display())).map(drop)
}

#[test]
fn when_one_of_two_relays_dies_its_pairs_go_on_by_the_other() {
    in_lab(|lab| relay_fails(lab, Node::kill9).map(drop));
}

#[test]
fn a_relay_that_drops_what_it_carries_is_left_for_the_other() {
    in_lab(|lab| relay_fails(lab, |relay| bend(relay, "drop")).map(drop));
}

#[test]
fn a_relay_that_alters_what_it_carries_is_left_for_the_other_and_nothing_altered_is_opened() {
    in_lab(|lab| {
        // Two bytes behind the headers.
        let nodes = relay_fails(lab, |relay| bend(relay, "@th,224,16 set 0x5a5a"))?;
        for node in &nodes {
            let refused = node.drops()?.iter().find(|(reason, _)| reason == "bad-tag").map_or(0, |(_, count)| *count);
            ensure!(refused > 0, "{:?}", node.drops()?);
            figure(&format!("{}: bad-tag {refused}", node.laptop().name));
        }
        Ok(())
    });
}

#[test]
fn when_the_direct_way_breaks_the_public_member_carries_it_within_four_seconds() {
    in_lab(|lab| {
        let (homes, _public, nodes) = two_homes(lab, ["port-restricted", "port-restricted"])?;
        let [ada, bob] = &homes.homes[..] else { unreachable!("two homes") };
        let gate = format!("{}:", bob.gate.underlay);
        nodes[0].wait_connected(2, DIRECT)?;
        wait_for("a direct path", 2 * DIRECT, || Ok(endpoint_of(bob, &nodes[0])?.starts_with(&gate)))?;
        let pings = Pings::start(&ada.laptop, nodes[1].ipv4(), 20)?;
        thread::sleep(Duration::from_secs(3));
        ada.cut_off_from(bob)?;
        bob.cut_off_from(ada)?;
        thread::sleep(Duration::from_secs(8));
        let loss = pings.stop()?;
        figure(&format!("the direct way broke: {} ms without an answer", loss.longest * 50));
        ensure!(loss.longest <= 4 * 20, "{loss:?}");
        ensure!(
            endpoint_of(bob, &nodes[0])?.starts_with(&homes.public.underlay.to_string()),
            "not by the public member"
        );
        Ok(())
    });
}

#[test]
fn two_homes_behind_careful_routers_meet_directly() {
    in_lab(|lab| meet(lab, ["port-restricted", "port-restricted"]));
}

#[test]
fn two_homes_behind_careless_routers_meet_directly() {
    in_lab(|lab| meet(lab, ["careless-linux", "careless-linux"]));
}

#[test]
fn a_careless_router_and_a_careful_one_meet_directly() {
    in_lab(|lab| meet(lab, ["careless-linux", "port-restricted"]));
}

#[test]
fn the_ends_of_a_chain_of_four_lans_speak_within_ten_seconds_and_a_second_middle_takes_over() {
    in_lab(|lab| {
        let chain = Chain::new(lab, 5)?;
        let second = chain.beside(lab, 2, "second")?;
        let [first, others @ ..] = &chain.machines[..] else { unreachable!("five") };
        first.found("party")?;
        for other in others {
            other.join(&first.invite(&[])?)?;
        }
        second.join(&first.invite(&[])?)?;
        let begin = Instant::now();
        let mut nodes = chain.machines.iter().map(netsim::netns::Laptop::up).collect::<Result<Vec<_>>>()?;
        let target = nodes[4].ipv4();
        let far = begin + FAR;
        first.run(&format!("ping -n -q -c 1 -W 1 {target}")).or_else(|_| {
            wait_for("the far end answers", far.saturating_duration_since(Instant::now()), || {
                Ok(first.run(&format!("ping -n -q -c 1 -W 0.2 {target}")).is_ok())
            })
            .map(|()| String::new())
        })?;
        figure(&format!("the far end answers {} ms after the start of the first", begin.elapsed().as_millis()));
        ensure!(begin.elapsed() <= FAR, "{:?}", begin.elapsed());
        let peers = first.ask(&["peers"])?;
        let peer = peers["peers"].as_array().and_then(|all| all.iter().find(|peer| peer["name"] == "host-5"));
        let peer = peer.context("host-5")?;
        ensure!(peer["via"] == "host-2" && peer["relays"] == 3, "{peer}");
        let second = second.up()?;
        second.wait_connected(5, MEET)?;
        thread::sleep(Duration::from_secs(10));
        let pings = Pings::start(first, target, 20)?;
        thread::sleep(Duration::from_secs(3));
        nodes[2].kill9()?;
        thread::sleep(Duration::from_secs(10));
        let loss = pings.stop()?;
        figure(&format!("the middle was killed: {} ms without an answer", loss.longest * 50));
        ensure!(loss.longest <= 5 * 20, "{loss:?}");
        ensure!(first.run(&format!("ping -n -q -c 5 -i 0.1 -W 2 {target}")).is_ok(), "not by the second");
        Ok(())
    });
}

#[test]
fn a_laptop_with_temporary_addresses_is_known_by_its_stable_one() {
    in_lab(|lab| {
        let homes = Homes::new(lab, &[("ada", kind("ipv6-only"))])?;
        let ada = &homes.homes[0].laptop;
        ada.run("sysctl -qw net.ipv6.conf.eth0.use_tempaddr=2")?;
        ada.run("ip -6 addr replace 2001:db8:65::2/64 dev eth0 mngtmpaddr nodad")?;
        wait_for("the kernel has made a temporary address", MEET, || {
            Ok(!ada.run("ip -6 route get 2001:db8::1")?.contains("src 2001:db8:65::2 "))
        })?;
        homes.public.found("party")?;
        let public = homes.public.up()?;
        ada.join(&homes.public.invite(&[])?)?;
        let node = ada.up()?;
        node.wait_connected(1, MEET)?;
        wait_for("it is seen at the stable one", MEET, || {
            Ok(endpoint_of(&homes.homes[0], &public)? == "[2001:db8:65::2]:4747")
        })?;
        wait_for("it is seen there", MEET, || Ok(ada.ask(&["status"])?["mapping"] == "untranslated"))?;
        let status = ada.ask(&["status"])?;
        ensure!(status["endpoints"] == serde_json::json!(["[2001:db8:65::2]:4747"]), "{status}");
        ensure!(status["seen_at"] == serde_json::json!([]), "{status}");
        let check = ada.ask(&["netcheck"])?;
        ensure!(check["ipv6_answered"] == true && check["udp"]["blocked"] == false, "{check}");
        Ok(())
    });
}

#[test]
fn two_members_outside_find_out_whom_each_router_lets_in() {
    in_lab(|lab| {
        let homes = Homes::new(lab, &[("ada", kind("full-cone")), ("bob", kind("port-restricted"))])?;
        let second = homes.another(lab, "pub2")?;
        homes.public.found("party")?;
        let _public = homes.public.up()?;
        let mut nodes = Vec::new();
        for laptop in [&second, &homes.homes[0].laptop, &homes.homes[1].laptop] {
            laptop.join(&homes.public.invite(&[])?)?;
            nodes.push(laptop.up()?);
        }
        let classes = ["endpoint-independent", "address-and-port-dependent"];
        for (node, class) in nodes[1..].iter().zip(classes) {
            node.wait_connected(3, MEET)?;
            let begin = Instant::now();
            let check = node.laptop().ask(&["netcheck"])?;
            let took = begin.elapsed();
            ensure!(check["filtering"] == class && took < Duration::from_secs(3), "after {took:?}: {check}");
            figure(&format!("{class} after {} ms", took.as_millis()));
            let text = node.laptop().meshd(&["netcheck"])?;
            ensure!(text.contains(&format!("filtering:     {class}")), "{text}");
        }
        Ok(())
    });
}
