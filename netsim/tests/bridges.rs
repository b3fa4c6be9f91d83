//! Bridges with the real binary: a member's TAP is a port of a Linux bridge, and machines without meshd at its other ports speak with every
//! member, and with what is behind another bridge.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim::netns::bridged::{beside, enslave, foreign};
use netsim::netns::trial::{MEET, figure, in_lab};
use netsim::netns::{Lab, Laptop, Node, iperf3, wait_for};

const PORT: u16 = 5201;

/// Ada and bob are bridges, cyd is none.
fn stage(lab: &mut Lab) -> Result<([Laptop; 3], Vec<Node>)> {
    let laptops = lab.laptops(["ada", "bob", "cyd"])?;
    let invite = laptops[0].found("party")?;
    let as_bridge = laptops[0].invite(&["--role", "bridge"])?;
    laptops[1].join(&as_bridge)?;
    laptops[2].join(&invite)?;
    let nodes = laptops.iter().map(Laptop::up).collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        node.wait_connected(2, MEET)?;
    }
    Ok((laptops, nodes))
}

/// An address without its prefix.
fn bare(address: &str) -> &str {
    address.split('/').next().expect("something")
}

fn pings(from: &Laptop, to: &str) -> Result<()> {
    for size in [56, 1472 - 20] {
        let said = from.run(&format!("ping -n -c 5 -i 0.1 -W 2 -s {size} {}", bare(to)))?;
        ensure!(said.contains(" 0% packet loss"), "{} to {to}: {said}", from.name);
    }
    Ok(())
}

/// Behind whom `laptop` sees the foreign station at eth0 of `station`.
fn place(laptop: &Laptop, station: &Laptop) -> Result<Option<String>> {
    let mac = station.run("cat /sys/class/net/eth0/address")?;
    let told = laptop.ask(&["stations"])?;
    let stations = told["stations"].as_array().context("stations")?;
    let here = stations.iter().find(|it| it["mac"] == mac.trim() && it["by"] == "bridge");
    Ok(here.and_then(|it| it["name"].as_str()).map(str::to_owned))
}

#[test]
fn a_printer_behind_a_bridge_speaks_with_every_member_and_with_what_is_behind_another() {
    in_lab(|lab| {
        let ([ada, bob, cyd], nodes) = stage(lab)?;
        let (at_ada, at_bob) = (beside(&nodes[0], 201)?, beside(&nodes[1], 202)?);
        enslave(&nodes[0])?;
        enslave(&nodes[1])?;
        let printer = foreign(lab, &nodes[0], "printer", &at_ada)?;
        let scanner = foreign(lab, &nodes[1], "scanner", &at_bob)?;
        for address in &at_ada {
            for from in [&cyd, &bob, &ada, &scanner] {
                pings(from, address)?;
            }
        }
        for address in &at_bob {
            pings(&printer, address)?;
        }
        for node in &nodes {
            pings(&printer, &node.ipv4().to_string())?;
        }
        for laptop in [&ada, &bob, &cyd] {
            ensure!(place(laptop, &printer)?.as_deref() == Some("ada"), "the printer, at {}", laptop.name);
            ensure!(place(laptop, &scanner)?.as_deref() == Some("bob"), "the scanner, at {}", laptop.name);
        }
        let _server = iperf3::serve(&printer, PORT)?;
        let target = bare(&at_ada[0]).parse()?;
        for options in ["--time 3", "--time 3 --reverse"] {
            let rate = iperf3::run(&cyd, target, options)?.received()?;
            figure(&format!("{:.0} Mbit/s to the printer, {options}", rate / 1e6));
            ensure!(rate > 20e6, "{rate} bit/s");
        }
        for node in &nodes {
            let drops = node.drops()?;
            let refused = |name: &str| drops.iter().any(|(reason, count)| reason == name && *count > 0);
            ensure!(!refused("source-mac") && !refused("bridge-claim") && !refused("bridge-stations"), "{drops:?}");
        }
        Ok(())
    });
}

#[test]
fn a_printer_that_is_carried_to_another_bridge_is_found_there() {
    in_lab(|lab| {
        let ([ada, bob, cyd], nodes) = stage(lab)?;
        let addresses = beside(&nodes[0], 201)?;
        enslave(&nodes[0])?;
        enslave(&nodes[1])?;
        let printer = foreign(lab, &nodes[0], "printer", &addresses)?;
        pings(&cyd, &addresses[0])?;
        // The same MAC at another cable, into the other bridge.
        let mac = printer.run("cat /sys/class/net/eth0/address")?;
        ada.run("ip link del to-printer")?;
        let moved = foreign(lab, &nodes[1], "moved", &addresses)?;
        moved.run(&format!("ip link set eth0 address {}", mac.trim()))?;
        for laptop in [&ada, &bob, &cyd] {
            let there = || {
                // It says where it is itself, as a machine does that gets a link.
                let _ = moved.run(&format!("ping -n -c 1 -W 1 {}", nodes[2].ipv4()));
                Ok(place(laptop, &moved)?.as_deref() == Some("bob"))
            };
            wait_for(&format!("{} finds it behind bob", laptop.name), Duration::from_secs(5), there)?;
        }
        pings(&cyd, &addresses[0])
    });
}
