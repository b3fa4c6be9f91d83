//! Where no UDP passes, with the kernel's boxes and the real binary: who speaks by TCP, how fast, and for how long.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`).
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::kinds::kind;
use netsim::netns::homes::Homes;
use netsim::netns::trial::{figure, in_lab};
use netsim::netns::{Background, Lab, Laptop, Node, Pings, iperf3, wait_for};
use serde_json::Value;

/// From the start without UDP to the first session by a stream: the founders' goal.
const CHOSEN: Duration = Duration::from_secs(3);

/// From the moment in which UDP passes to the path that uses it: the next try is five seconds away at most.
const LEFT: Duration = Duration::from_secs(8);

/// A stream that is no longer the path is hung up after five seconds.
const HUNG_UP: Duration = Duration::from_secs(12);

/// From the end of a relay to the first answer by another.
const TAKEN_OVER: Duration = Duration::from_secs(3);

/// Founded by the public laptop, which takes TLS; `ada` has no UDP, `bob` nothing but the web. All started at once.
fn two_homes(lab: &mut Lab) -> Result<(Homes, Node, [Node; 2])> {
    let homes = Homes::new(lab, &[("ada", kind("udp-blocked")), ("bob", kind("only-443"))])?;
    homes.public.found("party")?;
    let public = homes.public.up_with(&["--listen-443"])?;
    for home in &homes.homes {
        home.laptop.join(&homes.public.invite(&[])?)?;
    }
    let start = |laptop: &Laptop| laptop.start(&mut laptop.meshd_command(&["up"]));
    let mut nodes = homes.homes.iter().map(|home| start(&home.laptop)).collect::<Result<Vec<_>>>()?;
    nodes.iter_mut().try_for_each(Node::wait_ready)?;
    Ok((homes, public, nodes.try_into().expect("two homes, two nodes")))
}

fn peer(of: &Laptop, name: &str) -> Result<Value> {
    let peers = of.ask(&["peers"])?;
    let peers = peers["peers"].as_array().context("peers")?;
    Ok(peers.iter().find(|peer| peer["name"] == name).cloned().unwrap_or(Value::Null))
}

fn wait_path(of: &Laptop, name: &str, path: &str, limit: Duration) -> Result<()> {
    let mut last = Value::Null;
    wait_for(&format!("{}: {path} to {name}", of.name), limit, || {
        last = peer(of, name)?;
        Ok(last["path"] == path)
    })
    .with_context(|| last.to_string())
}

#[test]
fn without_udp_everybody_is_reached_by_tcp_until_udp_passes() {
    in_lab(|lab| {
        let begin = Instant::now();
        let (homes, _public, nodes) = two_homes(lab)?;
        let [ada, bob] = [nodes[0].laptop(), nodes[1].laptop()];
        for home in [ada, bob] {
            wait_path(home, "pub", "stream", CHOSEN)?;
        }
        figure(&format!("both have a stream {} ms after the start of everything", begin.elapsed().as_millis()));
        wait_path(ada, "bob", "relayed", CHOSEN)?;
        wait_path(bob, "ada", "relayed", CHOSEN)?;
        let target = nodes[1].ipv4();
        ada.run(&format!("ping -n -q -c 20 -i 0.05 -W 2 {target}"))?;
        for (at, to, reason) in [
            (ada, "pub", "direct-stream"),
            (&homes.public, "bob", "direct-stream"),
            (ada, "bob", "relayed-udp-blocked"),
            (bob, "ada", "relayed-udp-blocked"),
        ] {
            let told = at.ask(&["why", to])?;
            ensure!(told["reason"] == reason, "{}: {told}", at.name);
        }
        for (at, tls) in [(ada, false), (bob, true)] {
            let check = at.ask(&["netcheck"])?;
            ensure!(check["udp"]["blocked"] == true && check["streams"][0]["tls"] == tls, "{check}");
            ensure!(check["streams"][0]["name"] == "pub" && check["streams"][0]["dialled"] == true, "{check}");
        }
        // Both directions, through TLS and a relay.
        let _server = iperf3::serve(bob, 5201)?;
        for options in ["--time 3", "--time 3 --reverse"] {
            let report = iperf3::run(ada, target.into(), options)?;
            let rate = report.received()?;
            figure(&format!("iperf3 {options} by TCP, a relay and TLS: {:.0} Mbit/s", rate / 1e6));
            ensure!(rate > 10e6, "{report:?}");
        }
        let begin = Instant::now();
        homes.homes[0].unblock()?;
        wait_path(ada, "pub", "direct", LEFT)?;
        figure(&format!("direct {} ms after UDP passes", begin.elapsed().as_millis()));
        wait_path(&homes.public, "ada", "direct", LEFT)?;
        wait_for("the stream is hung up", HUNG_UP, || {
            Ok(ada.run("ss -Htn state established dport = :4747")?.lines().count() <= 1)
        })?;
        ada.run(&format!("ping -n -q -c 10 -i 0.05 -W 2 {target}"))?;
        homes.homes[1].unblock()?;
        wait_path(bob, "pub", "direct", LEFT)?;
        wait_path(ada, "bob", "direct", 2 * LEFT)?;
        Ok(())
    });
}

#[test]
fn when_the_relay_is_gone_another_is_dialled_and_idle_strangers_keep_nobody_out() {
    in_lab(|lab| {
        let (homes, mut public, nodes) = two_homes(lab)?;
        let second = homes.another(lab, "second")?;
        second.join(&homes.public.invite(&[])?)?;
        // Forty who say nothing, from one address: more than one gets.
        let idle = format!(
            "for n in $(seq 40); do exec {{fd}}<>/dev/tcp/{}/443 || true; done; sleep 60",
            homes.public.underlay
        );
        let mut strangers = second.command("bash");
        let _strangers = Background::start(strangers.args(["-c", &idle]))?;
        wait_for("the public one has enough of them", CHOSEN, || {
            Ok(public.drops()?.iter().any(|(name, count)| name == "stream-limit" && *count > 0))
        })?;
        let other = second.up_with(&["--listen-443"])?;
        let [ada, bob] = [nodes[0].laptop(), nodes[1].laptop()];
        for home in [ada, bob] {
            wait_path(home, "pub", "stream", CHOSEN)?;
            // It can be dialled, and may have been before the first knew it.
            wait_for("a session with the second", 2 * CHOSEN, || {
                Ok(["relayed", "stream"].iter().any(|path| peer(home, "second").is_ok_and(|it| it["path"] == *path)))
            })?;
        }
        wait_path(ada, "bob", "relayed", CHOSEN)?;
        let pings = Pings::start(ada, nodes[1].ipv4(), 20)?;
        std::thread::sleep(Duration::from_secs(2));
        let begin = Instant::now();
        public.kill9()?;
        let via = |of: &Laptop, name| Ok(peer(of, name)?["via"] == "second");
        wait_for("ada speaks with bob by the other", 2 * TAKEN_OVER, || via(ada, "bob"))?;
        figure(&format!("another relay {} ms after the first was killed", begin.elapsed().as_millis()));
        std::thread::sleep(Duration::from_secs(2));
        let loss = pings.stop()?;
        figure(&format!("{} of {} pings lost, 20 a second", loss.lost, loss.sent));
        ensure!(loss.longest <= 20 * TAKEN_OVER.as_secs() as usize, "{loss:?}");
        drop(other);
        Ok(())
    });
}
