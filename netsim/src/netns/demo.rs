//! The demonstration: what meshd promises, on five laptops and one switch, in less than a minute.
#![expect(clippy::disallowed_methods, reason = "it measures real time")]
#![expect(clippy::print_stdout, reason = "it is made to be watched")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Background, Lab, Laptop, Node, Pings, start, wait_for};

/// Pings a second while a laptop is killed: a gap of 50 ms would show.
const PINGS_PER_SECOND: u32 = 20;

/// Runs it; every step that fails ends it.
///
/// # Errors
/// When a promise is not kept.
pub fn run(lab: &mut Lab) -> Result<()> {
    step("Five laptops, one switch, no Internet");
    let laptops = lab.laptops(["ada", "bob", "cyd", "dan", "eve"])?;
    for laptop in &laptops {
        println!("   {}  {}  routes: {}", laptop.name, laptop.underlay, laptop.run("ip -4 route show")?);
    }

    step("ada founds a network; the others join by the same invite");
    let invite = laptops[0].found("party")?;
    println!("   {}… ({} characters)", &invite[..40.min(invite.len())], invite.len());
    for laptop in &laptops[1..] {
        laptop.join(&invite)?;
    }

    step("meshd up, on all five");
    let begun = Instant::now();
    let mut nodes = laptops.iter().map(Laptop::up).collect::<Result<Vec<Node>>>()?;
    for node in &nodes {
        node.wait_connected(4, Duration::from_secs(15))?;
    }
    println!("   everybody has found everybody after {:.1} s", begun.elapsed().as_secs_f64());

    step("Peers, paths and round-trip times");
    peers_table(&laptops[0])?;
    round_trips(&laptops)?;

    step("cyd clones from bob's laptop, through the mesh");
    let (head, _daemon) = serve_git(&nodes[1])?;
    clone(&laptops[2], &nodes[1], &head)?;

    step("kill -9 ada, who founded the network; the others go on");
    let ring = [(1, 2), (2, 3), (3, 4), (4, 1)];
    let pings = ring
        .iter()
        .map(|&(from, to)| Ok((from, to, Pings::start(&laptops[from], nodes[to].ipv4(), PINGS_PER_SECOND)?)))
        .collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_secs(1));
    nodes[0].kill9()?;
    thread::sleep(Duration::from_secs(4));
    for (from, to, pings) in pings {
        let loss = pings.stop()?;
        println!("   {} to {}: {} pings, {} lost", laptops[from].name, laptops[to].name, loss.sent, loss.lost);
        ensure!(loss.lost == 0, "the death of one laptop cost others {} pings", loss.lost);
    }

    step("fay arrives, joins by the same invite, and clones too");
    let fay = lab.laptop("fay")?;
    fay.join(&invite)?;
    let (node, time) = start::until_first_ping(&fay, nodes[1].ipv4())?;
    println!("   from `meshd up` to the first ping answered: {:.2} s", time.as_secs_f64());
    clone(&fay, &nodes[1], &head)?;
    nodes.push(node);

    println!("\nAll of it worked. {:.0} s in all.", lab.since().elapsed().as_secs_f64());
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}

/// A repository on the node's laptop, served on its overlay address; the commit it is at.
///
/// # Errors
/// When git fails.
pub fn serve_git(node: &Node) -> Result<(String, Background)> {
    let laptop = node.laptop();
    let repository = laptop.dir.join("git/hello");
    fs::create_dir_all(&repository)?;
    fs::write(repository.join("README"), "git as git was meant\n".repeat(1000))?;
    let path = repository.display();
    laptop.run(&format!("git -C {path} init --quiet --initial-branch main"))?;
    laptop.run(&format!("git -C {path} add ."))?;
    laptop
        .run(&format!("git -C {path} -c user.name={0} -c user.email={0}@lab commit --quiet -m Begin", laptop.name))?;
    let head = laptop.run(&format!("git -C {path} rev-parse HEAD"))?;
    let base = laptop.dir.join("git");
    let mut daemon = laptop.command("git");
    daemon.args(["daemon", "--export-all", "--reuseaddr"]);
    daemon.arg(format!("--listen={}", node.ipv4())).arg(format!("--base-path={}", base.display())).arg(&base);
    let daemon = Background::start(&mut daemon)?;
    wait_for("git daemon listens", Duration::from_secs(5), || Ok(laptop.run("ss -ltn")?.contains(":9418")))?;
    Ok((head, daemon))
}

/// Clones the repository of `from` to `laptop` and checks that it is the same.
///
/// # Errors
/// When git fails, or the commit is another.
pub fn clone(laptop: &Laptop, from: &Node, head: &str) -> Result<()> {
    let begun = Instant::now();
    laptop.run(&format!("timeout 20 git clone --quiet git://{}/hello copy", from.ipv4()))?;
    let time = begun.elapsed();
    let got = laptop.run("git -C copy rev-parse HEAD")?;
    ensure!(got == head, "{} has {got}, {} has {head}", laptop.name, from.laptop().name);
    println!(
        "   {} has commit {} from git://{}/hello, in {} ms",
        laptop.name,
        &head[..12],
        from.ipv4(),
        time.as_millis()
    );
    Ok(())
}

fn peers_table(laptop: &Laptop) -> Result<()> {
    let reply = laptop.ask(&["peers"])?;
    let peers = reply.get("peers").unwrap_or(&reply).as_array().context("`meshd peers --json` has no list")?;
    println!("   {:<6} {:<16} {:<8} {:<22} {:>9}  cipher", "peer", "overlay", "path", "endpoint", "rtt");
    for peer in peers {
        let text = |field: &str| peer[field].as_str().unwrap_or("-").to_owned();
        let rtt = peer["rtt_ms"].as_f64().map_or("-".to_owned(), |rtt| format!("{rtt:.2} ms"));
        println!(
            "   {:<6} {:<16} {:<8} {:<22} {rtt:>9}  {}",
            text("name"),
            text("ipv4"),
            text("path"),
            text("endpoint"),
            text("cipher")
        );
        ensure!(text("path") == "direct", "on one switch every path is direct, {}'s is not", text("name"));
    }
    ensure!(peers.len() == 4, "{} sees {} peers, not 4", laptop.name, peers.len());
    Ok(())
}

/// The round trip inside the tunnel between every two laptops.
fn round_trips(laptops: &[Laptop]) -> Result<()> {
    let names: Vec<&str> = laptops.iter().map(|laptop| laptop.name.as_str()).collect();
    println!("\n   ms    {}", names.iter().map(|name| format!("{name:>8}")).collect::<String>());
    for from in laptops {
        let mut line = format!("   {:<6}", from.name);
        for to in &names {
            if *to == from.name {
                line.push_str("       ·");
                continue;
            }
            let pong = from.ask(&["ping", to, "--count", "1"])?;
            let rtt = pong["rtt_ms"].as_f64().with_context(|| format!("no rtt_ms in {pong}"))?;
            line.push_str(&format!("{rtt:>8.2}"));
        }
        println!("{line}");
    }
    Ok(())
}
