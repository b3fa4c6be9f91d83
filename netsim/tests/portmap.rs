//! Port mappings at a real gateway: miniupnpd on the router of a home, with the real binary behind it.
//!
//! Both homes have routers that choose another port for each destination, so that without a mapping they are relayed. Each test
//! runs itself again in private namespaces (see `netsim::netns`).
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::kinds::kind;
use netsim::netns::homes::{Home, Homes, Mapper};
use netsim::netns::trial::{MEET, figure, in_lab};
use netsim::netns::{Background, Lab, Node, wait_for};
use serde_json::Value;

/// From the start of the second home to a direct path: a mapping takes under a second, and a record that says so is pushed.
const DIRECT: Duration = Duration::from_secs(10);

/// An address that no router here has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(44, 99, 0, 1);

struct Party {
    homes: Homes,
    public: Node,
    _gateway: Background,
}

/// A public founder, and two homes behind symmetric routers that have joined but do not run; that of ada maps ports.
fn party(lab: &mut Lab, mapper: Mapper, external: Option<Ipv4Addr>) -> Result<Party> {
    let homes = Homes::new(lab, &[("ada", kind("symmetric-random")), ("bob", kind("symmetric-random"))])?;
    homes.public.found("party")?;
    let public = homes.public.up()?;
    for home in &homes.homes {
        home.laptop.join(&homes.public.invite(&[])?)?;
    }
    let gateway = homes.homes[0].offer_mappings(mapper, external)?;
    Ok(Party { homes, public, _gateway: gateway })
}

/// What `by` says of the member at `home`.
fn peer(home: &Home, by: &Node) -> Result<Value> {
    let peers = by.laptop().ask(&["peers"])?;
    let all = peers["peers"].as_array().context("peers")?;
    Ok(all.iter().find(|peer| peer["name"] == home.laptop.name.as_str()).cloned().unwrap_or_default())
}

fn become_direct(lab: &mut Lab, mapper: Mapper, by: &str) -> Result<()> {
    let Party { homes, mut public, _gateway } = party(lab, mapper, None)?;
    let [ada, bob] = &homes.homes[..] else { unreachable!("two homes") };
    let outside = format!("{}:4747", ada.gate.underlay);
    let begin = Instant::now();
    let of_ada = ada.laptop.up()?;
    let mut status = Value::Null;
    wait_for("two mappings", MEET, || {
        status = ada.laptop.ask(&["status"])?;
        Ok(status["mappings"].as_array().is_some_and(|all| all.len() == 2))
    })
    .with_context(|| of_ada.log_tail())?;
    figure(&format!("mapped by {by} {} ms after the start", begin.elapsed().as_millis()));
    for mapping in status["mappings"].as_array().context("mappings")? {
        ensure!(mapping["by"] == by && mapping["external"] == outside.as_str(), "{status}");
        ensure!(mapping["ends"].as_u64().is_some_and(|ends| (3500..=3600).contains(&ends)), "{status}");
    }
    ensure!(ada.mapped()? == ["tcp 4747", "udp 4747"], "{:?}", ada.mapped()?);
    of_ada.wait_connected(1, MEET)?;

    let begin = Instant::now();
    let of_bob = bob.laptop.up()?;
    wait_for("a direct path", DIRECT, || {
        let (there, back) = (peer(ada, &of_bob)?, peer(bob, &of_ada)?);
        Ok(there["path"] == "direct" && there["endpoint"] == outside.as_str() && back["path"] == "direct")
    })
    .with_context(|| format!("{:?} {:?}", peer(ada, &of_bob), peer(bob, &of_ada)))?;
    figure(&format!(
        "{by}: two symmetric homes are direct {} ms after the second started",
        begin.elapsed().as_millis()
    ));
    ensure!(ada.laptop.ask(&["status"])?["mapped"][0] == outside.as_str(), "peers are told");
    // The directory is let in too.
    let dial = format!("exec 3<>/dev/tcp/{}/4747", ada.gate.underlay);
    let dialled = homes.public.command("timeout").args(["5", "bash", "-c", &dial]).status()?;
    ensure!(dialled.success(), "nobody at TCP {outside}");
    public.kill9()?;
    ada.laptop.run(&format!("ping -n -q -c 20 -i 0.1 -W 2 {}", of_bob.ipv4()))?;
    Ok(())
}

#[test]
fn two_symmetric_homes_become_direct_if_one_router_speaks_pcp() {
    in_lab(|lab| become_direct(lab, Mapper::Pcp, "PCP"));
}

#[test]
fn two_symmetric_homes_become_direct_if_one_router_speaks_nat_pmp() {
    in_lab(|lab| become_direct(lab, Mapper::NatPmp, "NAT-PMP"));
}

#[test]
fn two_symmetric_homes_become_direct_if_one_router_speaks_upnp() {
    in_lab(|lab| become_direct(lab, Mapper::Upnp, "UPnP"));
}

fn leave_nothing(lab: &mut Lab, mapper: Mapper) -> Result<()> {
    let Party { homes, public: _public, _gateway } = party(lab, mapper, None)?;
    let ada = &homes.homes[0];
    let mut node = ada.laptop.up()?;
    wait_for("two rules", MEET, || Ok(ada.mapped()?.len() == 2)).with_context(|| node.log_tail())?;
    // Who died without a word finds its own mappings again.
    node.kill9()?;
    ensure!(ada.mapped()?.len() == 2);
    let mut node = ada.laptop.up()?;
    wait_for("the same mappings", MEET, || {
        let status = ada.laptop.ask(&["status"])?;
        let mappings = status["mappings"].as_array().cloned().unwrap_or_default();
        let same = |mapping: &Value| mapping["external"] == format!("{}:4747", ada.gate.underlay);
        Ok(mappings.len() == 2 && mappings.iter().all(same))
    })
    .with_context(|| node.log_tail())?;
    let begin = Instant::now();
    node.terminate()?;
    figure(&format!("{mapper:?}: down {} ms after SIGTERM", begin.elapsed().as_millis()));
    ensure!(ada.mapped()?.is_empty(), "left behind: {:?}", ada.mapped()?);
    // Nor by one that is stopped while it asks.
    for pause in [20, 60, 120] {
        let mut node = ada.laptop.up()?;
        thread::sleep(Duration::from_millis(pause));
        node.terminate()?;
        ensure!(ada.mapped()?.is_empty(), "left behind after {pause} ms: {:?}", ada.mapped()?);
    }
    // And who is told to asks for none.
    let node = ada.laptop.up_with(&["--no-port-mapping"])?;
    node.wait_connected(1, MEET)?;
    ensure!(ada.mapped()?.is_empty() && ada.laptop.ask(&["status"])?["mappings"] == serde_json::json!([]));
    Ok(())
}

#[test]
fn at_the_end_nothing_is_left_at_a_pcp_router() {
    in_lab(|lab| leave_nothing(lab, Mapper::Pcp));
}

#[test]
fn at_the_end_nothing_is_left_at_a_nat_pmp_router() {
    in_lab(|lab| leave_nothing(lab, Mapper::NatPmp));
}

#[test]
fn at_the_end_nothing_is_left_at_a_upnp_router() {
    in_lab(|lab| leave_nothing(lab, Mapper::Upnp));
}

fn come_back(lab: &mut Lab, mapper: Mapper) -> Result<()> {
    let Party { homes, public: _public, _gateway: gateway } = party(lab, mapper, None)?;
    let ada = &homes.homes[0];
    let node = ada.laptop.up()?;
    wait_for("two rules", MEET, || Ok(ada.mapped()?.len() == 2)).with_context(|| node.log_tail())?;
    drop(gateway);
    let _gateway = ada.offer_mappings(mapper, None)?;
    ensure!(ada.mapped()?.is_empty(), "the router remembers");
    let begin = Instant::now();
    // Most routers take the link down with them; the laptop renews its address then.
    let route = ada.laptop.run("ip route show default")?;
    ada.laptop.run("ip route del default")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(ada.laptop.ask(&["status"])?["mappings"] == serde_json::json!([]), "without a way out there is no mapping");
    ada.laptop.run(&format!("ip route add {}", route.trim()))?;
    wait_for("the rules are back", MEET, || Ok(ada.mapped()?.len() == 2)).with_context(|| node.log_tail())?;
    figure(&format!("{mapper:?}: back {} ms after the way to the Internet went", begin.elapsed().as_millis()));
    wait_for("peers know", MEET, || Ok(ada.laptop.ask(&["status"])?["mapped"] != serde_json::json!([])))
}

#[test]
fn a_pcp_router_that_was_restarted_maps_again_when_the_network_is_back() {
    in_lab(|lab| come_back(lab, Mapper::Pcp));
}

#[test]
fn a_upnp_router_that_was_restarted_maps_again_when_the_network_is_back() {
    in_lab(|lab| come_back(lab, Mapper::Upnp));
}

#[test]
fn a_mapping_at_an_address_where_nobody_sees_us_is_not_told() {
    in_lab(|lab| {
        let Party { homes, public, _gateway } = party(lab, Mapper::Upnp, Some(NOBODY))?;
        let ada = &homes.homes[0];
        let node = ada.laptop.up()?;
        node.wait_connected(1, MEET)?;
        let lie = format!("{NOBODY}:4747");
        let mut status = Value::Null;
        wait_for("a mapping that is not used", MEET, || {
            status = ada.laptop.ask(&["status"])?;
            let mappings = status["mappings"].as_array().cloned().unwrap_or_default();
            let unused = |mapping: &Value| mapping["external"] == lie.as_str() && mapping["used"] == false;
            Ok(mappings.len() == 2 && mappings.iter().all(unused) && status["seen_at"] != serde_json::json!([]))
        })
        .with_context(|| format!("{status}\n{}", node.log_tail()))?;
        ensure!(status["mapped"] == serde_json::json!([]), "{status}");
        wait_for("the record says so", MEET, || {
            let record = public.laptop().ask(&["lookup", "ada"])?;
            let endpoints = record["endpoints"].as_array().cloned().unwrap_or_default();
            Ok(!endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint != lie.as_str()))
        })?;
        let text = ada.laptop.meshd(&["status"])?;
        ensure!(text.contains("not used: peers see another address"), "{text}");
        Ok(())
    });
}
