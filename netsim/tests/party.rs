//! Party mode with the real binary: laptops on a switch without Internet, and nothing but five words in common.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use netsim::netns::trial::{MEET, figure, in_lab};
use netsim::netns::{Laptop, Node};
use serde_json::Value;

/// Starts `meshd party`, with a code or for a new one.
fn take_part(laptop: &Laptop, options: &[&str]) -> Result<Node> {
    laptop.start(&mut laptop.meshd_command(&[&["party", "--json", "--name", &laptop.name], options].concat()))
}

/// What it printed first.
fn told(laptop: &Laptop) -> Result<Value> {
    let log = fs::read_to_string(laptop.dir.join("log"))?;
    let line = log.lines().find(|line| line.starts_with('{')).context("`meshd party --json` printed no JSON")?;
    Ok(serde_json::from_str(line)?)
}

fn ping(laptop: &Laptop, target: &Node) -> Result<String> {
    laptop.run(&format!("ping -n -c 3 -i 0.1 -W 2 {}", target.ipv4()))
}

#[test]
fn three_laptops_with_one_code_meet_without_internet_and_leave_nothing() {
    in_lab(|lab| {
        let laptops = lab.laptops(["ada", "bob", "cyd"])?;
        let [ada, bob, cyd] = &laptops;
        let mut first = take_part(ada, &[])?;
        first.wait_ready()?;
        let made = told(ada)?;
        let code = made["code"].as_str().context("a new code")?.to_owned();
        ensure!(code.split('-').count() == 5, "{code}");

        // As words, in any form; and from standard input, where nobody sees it.
        let words: Vec<String> = code.split('-').map(str::to_uppercase).collect();
        let mut options = vec!["--code"];
        options.extend(words.iter().map(String::as_str));
        let second = take_part(bob, &options)?;
        let third = take_part_by_stdin(cyd, &code)?;
        let mut nodes = [first, second, third];
        for node in &mut nodes {
            node.wait_ready()?;
            node.wait_connected(2, MEET)?;
            ensure!(node.rss_kib()? < 80 * 1024, "{} KiB: Argon2's memory is not given back", node.rss_kib()?);
        }
        for laptop in &laptops {
            ensure!(told(laptop)?["network"] == made["network"], "another name for the same code");
            for node in nodes.iter().filter(|node| node.laptop().name != laptop.name) {
                ping(laptop, node)?;
            }
        }
        ensure!(told(bob)?["code"].is_null(), "who knows the code is not told it");
        hidden(&nodes[1], &words)?;

        // Everybody may die, the one who made the code too, and come back by it, as somebody new.
        let before = ada.ask(&["status"])?["peer"].clone();
        nodes[0].kill9()?;
        ping(bob, &nodes[2])?;
        nodes[0] = take_part(ada, &["--code", &code])?;
        nodes[0].wait_ready()?;
        ensure!(ada.ask(&["status"])?["peer"] != before, "a key was kept");
        ping(ada, &nodes[1])?;

        for (node, laptop) in nodes.iter_mut().zip(&laptops) {
            let status = node.terminate()?;
            ensure!(status.success(), "{status}: {}", node.log_tail());
            ensure!(!laptop.dir.join("state").exists(), "{} has kept something", laptop.name);
            let left = laptop.run("find run -type f -size +1k -o -type s")?;
            ensure!(left.is_empty(), "left behind: {left}");
        }
        Ok(())
    });
}

fn take_part_by_stdin(laptop: &Laptop, code: &str) -> Result<Node> {
    let file = laptop.dir.join("code");
    fs::write(&file, format!("{code}\n"))?;
    let node = {
        let mut command = laptop.meshd_command(&["party", "--json", "--name", &laptop.name, "--code", "-"]);
        laptop.start(command.stdin(fs::File::open(&file)?))?
    };
    fs::remove_file(file)?;
    Ok(node)
}

/// No other program sees the words.
fn hidden(node: &Node, words: &[String]) -> Result<()> {
    let line = String::from_utf8_lossy(&fs::read(format!("/proc/{}/cmdline", node.process()))?).into_owned();
    ensure!(line.contains("--code") && line.contains("xxx"), "{line}");
    for word in words {
        ensure!(!line.contains(word), "`{word}` stands in {line}");
    }
    Ok(())
}

#[test]
fn parties_on_one_switch_do_not_see_each_other_and_one_laptop_may_be_at_two() {
    in_lab(|lab| {
        let [ada, bob, cyd] = lab.laptops(["ada", "bob", "cyd"])?;
        let codes = ["tiger lamp ocean violin brick", "zebra lamp ocean violin brick"];
        let mut of_ada = take_part(&ada, &["--code", codes[0]])?;
        let mut of_bob = take_part(&bob, &["--code", codes[0]])?;
        of_ada.wait_ready()?;
        of_bob.wait_ready()?;
        let mut of_cyd = take_part(&cyd, &["--code", codes[1]])?;
        of_cyd.wait_ready()?;
        let other = told(&cyd)?["network"].as_str().context("a name")?.to_owned();
        // Bob goes to the other party too.
        let mut command = bob.meshd_command(&["party", "--name", "bob", "--code", codes[1]]);
        let mut second = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(second.stderr.take().context("piped")?).lines();
        let met = lines.map_while(Result::ok).any(|line| line.contains("cyd is connected"));
        ensure!(met, "bob's second node ended");
        of_ada.wait_connected(1, MEET)?;
        of_cyd.wait_connected(1, MEET)?;
        let names = |laptop: &Laptop, arguments: &[&str]| -> Result<Vec<String>> {
            let peers = laptop.ask(arguments)?["peers"].as_array().cloned().unwrap_or_default();
            Ok(peers.iter().map(|peer| peer["name"].as_str().unwrap_or_default().to_owned()).collect())
        };
        ensure!(names(&ada, &["peers"])? == ["bob"], "{:?}", names(&ada, &["peers"])?);
        ensure!(names(&bob, &["peers", &other])? == ["cyd"], "{:?}", names(&bob, &["peers", &other])?);
        let Err(several) = bob.meshd(&["peers"]) else { anyhow::bail!("which of the two was meant?") };
        ensure!(format!("{several:?}").contains("name one of"), "{several:?}");
        second.kill()?;
        second.wait()?;
        Ok(())
    });
}

#[test]
fn a_code_that_is_none_is_refused_with_the_way_to_get_one() {
    in_lab(|lab| {
        let [ada] = lab.laptops(["ada"])?;
        let refused = |command: &mut Command, stdin: &str| -> Result<String> {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            child.stdin.take().context("piped")?.write_all(stdin.as_bytes())?;
            let output = child.wait_with_output()?;
            ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{output:?}");
            Ok(String::from_utf8(output.stderr)?)
        };
        let said = refused(&mut ada.meshd_command(&["party", "--code", "hunter2"]), "")?;
        ensure!(said.contains("has 5 words, this has 1") && said.contains("without --code makes one"), "{said}");
        let said = refused(&mut ada.meshd_command(&["party", "--code"]), "tiger lamp ocean violin bick\n")?;
        ensure!(said.contains("`bick` is no word") && said.contains("`bicycle`?"), "{said}");
        let begun = std::time::Instant::now();
        let mut node = take_part(&ada, &[])?;
        node.wait_ready()?;
        figure(&format!("from `meshd party` to its interface, this build: {:.2} s", begun.elapsed().as_secs_f64()));
        Ok(())
    });
}
