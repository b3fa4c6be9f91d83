//! The packet filter with the real binary: the kernel's own TCP, UDP and ping meet it, and an operator loads, shows and tries it.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use netsim::netns::trial::{in_lab, party};
use netsim::netns::{Background, Laptop, Node, wait_for};

/// Listens at TCP port `port` of `laptop` and says a word to whoever connects.
fn serve(laptop: &Laptop, port: u16) -> Result<Background> {
    let script = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => {port}, Listen => 5, ReuseAddr => 1) or die; \
         while (my $c = $s->accept) {{ print $c \"hello\\n\"; close $c }}"
    );
    let server = Background::start(laptop.command("perl").args(["-e", &script]))?;
    let listens = || Ok(laptop.run("ss -ltn")?.contains(&format!(":{port}")));
    wait_for("perl listens", Duration::from_secs(5), listens)?;
    Ok(server)
}

/// What comes of connecting there.
fn greeted(laptop: &Laptop, node: &Node, port: u16) -> bool {
    let script = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => '{}', PeerPort => {port}, Timeout => 1) or exit 1; \
         exit(<$s> eq \"hello\\n\" ? 0 : 1)",
        node.ipv4()
    );
    laptop.command("perl").args(["-e", &script]).status().is_ok_and(|status| status.success())
}

fn pings(laptop: &Laptop, node: &Node) -> bool {
    laptop.run(&format!("ping -n -c 1 -W 1 {}", node.ipv4())).is_ok()
}

#[test]
fn a_filter_keeps_out_what_it_says_and_lets_in_what_we_begin() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob", "cyd"], &[])?;
        let [ada, bob, cyd] = &laptops;
        let _servers = [serve(ada, 8022)?, serve(ada, 8080)?, serve(bob, 8080)?];
        ensure!(greeted(bob, &nodes[0], 8022), "without a filter");

        let file = ada.dir.join("rules");
        fs::write(&file, "allow from bob tcp 8022   # the only one\ndeny tcp 8022\ndeny from cyd\n")?;
        ada.meshd(&["filter", "load", "rules"])?;
        ensure!(greeted(bob, &nodes[0], 8022) && greeted(bob, &nodes[0], 8080) && pings(bob, &nodes[0]), "bob may");
        ensure!(
            !greeted(cyd, &nodes[0], 8022) && !greeted(cyd, &nodes[0], 8080) && !pings(cyd, &nodes[0]),
            "cyd may not"
        );
        ensure!(pings(ada, &nodes[2]), "cyd may answer");
        let drops = nodes[0].drops()?;
        ensure!(drops.iter().any(|(reason, count)| reason == "filtered" && *count >= 3), "{drops:?}");
        let shown = ada.ask(&["filter", "show"])?;
        ensure!(shown["rules"][2]["refused"].as_u64() >= Some(2) && shown["default"] == "allow", "{shown}");
        let verdict = ada.meshd(&["filter", "test", "cyd", "tcp", "8022"])?;
        ensure!(
            verdict == "denied: cyd -> ada, by line 2: deny tcp 8022 (answers to what the receiver begins pass)",
            "{verdict}"
        );

        // Everything is closed, and yet TCP of our own goes out and its answers come in.
        fs::write(&file, "default deny\n")?;
        ada.meshd(&["filter", "load", "rules"])?;
        ensure!(!greeted(bob, &nodes[0], 8080) && !pings(bob, &nodes[0]), "closed");
        ensure!(greeted(ada, &nodes[1], 8080) && pings(ada, &nodes[1]), "stateful");

        // It holds from the next start on, and a file without sense stops that start.
        ensure!(nodes[0].terminate()?.success());
        nodes[0] = ada.up()?;
        nodes[0].wait_connected(2, Duration::from_secs(15))?;
        ensure!(!pings(bob, &nodes[0]) && pings(ada, &nodes[1]), "kept");
        let refused = format!("{:?}", ada.meshd(&["filter", "load", "log"]).expect_err("a log is no filter"));
        ensure!(refused.contains("line 1: a rule begins with allow, deny or default"), "{refused}");
        ensure!(nodes[0].terminate()?.success());
        fs::write(ada.dir.join("state/party/filter"), "denyy\n")?;
        let refused = format!("{:?}", ada.up().expect_err("it must not start open"));
        ensure!(refused.contains("state/party/filter: line 1"), "{refused}");
        Ok(())
    });
}
