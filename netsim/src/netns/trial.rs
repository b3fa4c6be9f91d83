//! How a test of the real world is run: itself again in namespaces of its own, with the kernel's tools as judges.
//!
//! Where that is impossible it says `SKIPPED: …`; with MESHD_REQUIRE_LAB=1 it fails instead.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::{Lab, Laptop, Node, Place, place};

/// Longest run of one test: the floods take half of it.
const LIMIT: Duration = Duration::from_secs(150);

/// Laptops on a switch find each other well within this.
pub const MEET: Duration = Duration::from_secs(15);

/// One lab at a time: two cores cannot flood one node and measure another's start.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const FIGURE: &str = "figure: ";
const SKIPPED: &str = "SKIPPED: ";

/// Runs `body` in a lab of its own. The test's name is read off the closure's type.
///
/// # Panics
/// When the test fails.
pub fn in_lab<F: FnOnce(&mut Lab) -> Result<()>>(body: F) {
    in_lab_of(body, Some(&ONE_AT_A_TIME));
}

/// The same beside others: for what merely waits, most of the time.
///
/// # Panics
/// When the test fails.
pub fn in_quiet_lab<F: FnOnce(&mut Lab) -> Result<()>>(body: F) {
    in_lab_of(body, None);
}

fn in_lab_of<F: FnOnce(&mut Lab) -> Result<()>>(body: F, turn: Option<&Mutex<()>>) {
    let path = std::any::type_name::<F>();
    let name = path.rsplit("::").find(|part| !part.starts_with('{')).expect("a test function has a name");
    match place(&["--exact", name, "--nocapture", "--test-threads=1"]).expect("our own program") {
        Place::Inside => {
            let mut lab = Lab::new(binary(), LIMIT).expect("a lab");
            if let Err(error) = body(&mut lab) {
                panic!("{error:?}");
            }
        }
        Place::Outside(mut command) => {
            let _turn = turn.map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
            let output = command.output().expect("unshare(1)");
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            for line in text.lines() {
                if let Some(value) = line.strip_prefix(FIGURE) {
                    say(&format!("{name}: {value}"));
                } else if line.starts_with(SKIPPED) {
                    say(line);
                }
            }
            assert!(output.status.success(), "{}\n{text}", output.status);
            assert!(
                text.contains("1 passed"),
                "no test is called {name}: the closure must stand in the test itself\n{text}"
            );
        }
        Place::Impossible(reason) => {
            assert!(std::env::var_os("MESHD_REQUIRE_LAB").is_none(), "must not be skipped here: {reason}");
            skip(name, &reason);
        }
    }
}

/// Says that `name` could not be tried, and why.
///
/// # Panics
/// When the list of skipped tests cannot be written.
pub fn skip(name: &str, reason: &str) {
    say(&format!("{SKIPPED}{name}: {reason}"));
    if let Some(list) = std::env::var_os("MESHD_SKIPS") {
        let mut list = fs::File::options().append(true).open(list).expect("the list of skipped tests");
        writeln!(list, "{name}: {reason}").expect("the list of skipped tests");
    }
}

/// A measured value: shown even when the test passes.
pub fn figure(text: &str) {
    say(&format!("{FIGURE}{text}"));
}

/// Past libtest, which keeps what a passing test prints.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The meshd beside this test: target/debug/meshd.
fn binary() -> PathBuf {
    let beside =
        || std::env::current_exe().expect("our own path").ancestors().nth(2).expect("target/debug").join("meshd");
    std::env::var_os("MESHD_BIN").map_or_else(beside, PathBuf::from)
}

/// Laptops on the switch that have founded, joined, started (`meshd up` with `options`) and met; and the invite.
///
/// # Errors
/// When they do not.
pub fn party<const N: usize>(
    lab: &mut Lab,
    names: [&str; N],
    options: &[&str],
) -> Result<([Laptop; N], Vec<Node>, String)> {
    let laptops = lab.laptops(names)?;
    let invite = laptops[0].found("party")?;
    for laptop in &laptops[1..] {
        laptop.join(&invite)?;
    }
    let nodes = laptops.iter().map(|laptop| laptop.up_with(options)).collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        node.wait_connected(N as u64 - 1, MEET)?;
    }
    Ok((laptops, nodes, invite))
}
