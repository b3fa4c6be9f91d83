//! The process of the real binary, as the kernel sees it: whom it runs as, what it may do, what it hides; and what `meshd doctor`
//! says of the machine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim::netns::trial::{MEET, in_lab, party};
use netsim::netns::{Node, wait_for};

/// Whom a node becomes that root has started, where no account is called meshd; root itself where nobody else exists, which is so when an
/// ordinary user runs the lab.
fn user() -> u32 {
    let alone = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().nth(2) == Some("1"));
    if alone { 0 } else { 4747 }
}

/// What /proc/PID/task/TID/status says in the field `name`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn tasks(node: &Node) -> Result<Vec<(PathBuf, String)>> {
    let folder = fs::read_dir(format!("/proc/{}/task", node.process()))?;
    folder
        .map(|entry| {
            let path = entry?.path();
            Ok((path.clone(), fs::read_to_string(path.join("status"))?))
        })
        .collect()
}

#[test]
fn after_its_start_a_node_is_nobody_with_one_capability() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob"], &[])?;
        let tasks = tasks(&nodes[0])?;
        ensure!(tasks.len() >= 4, "{} threads", tasks.len());
        for (path, status) in &tasks {
            let user = [user().to_string().as_str(); 4].join(" ");
            for (name, wanted) in [
                ("Uid", user.as_str()),
                ("Gid", user.as_str()),
                ("Groups", ""),
                ("CapPrm", "0000000000001000"),
                ("CapEff", "0000000000001000"),
                ("CapInh", "0000000000000000"),
                ("CapBnd", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ] {
                let found = field(status, name);
                ensure!(found == wanted, "{name} of {} is {found}, not {wanted}", path.display());
            }
        }
        ensure!(nodes[0].log_tail().contains("confined with Landlock and with seccomp"), "{}", nodes[0].log_tail());
        let process = PathBuf::from(format!("/proc/{}", nodes[0].process()));
        let limits = fs::read_to_string(process.join("limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit of cores")?;
        ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
        // The kernel gives these files to root when nobody else may look into the process.
        for file in ["environ", "maps", "mem"] {
            ensure!(fs::metadata(process.join(file))?.uid() == 0, "others of its user may read its {file}");
        }
        keeps_working_in_its_folder(&laptops[0].dir, &mut nodes)
    });
}

/// It keeps what it learns, cannot touch the keys, and goes as it came.
fn keeps_working_in_its_folder(dir: &Path, nodes: &mut [Node]) -> Result<()> {
    let folder = dir.join("state/party");
    let is = |name: &str| fs::metadata(folder.join(name)).with_context(|| name.to_owned());
    wait_for("ada keeps bob's record", Duration::from_secs(15), || Ok(is("peers").is_ok()))?;
    ensure!(is("peers")?.uid() == user(), "it was not the node that wrote `peers`");
    for key in ["key", "root.key"] {
        let key = is(key)?;
        ensure!((key.uid(), key.mode() & 0o777) == (0, 0o600), "the node might read a key again");
    }
    let mode = is(".")?.mode() & 0o7777;
    ensure!(
        user() == 0 || mode == 0o1770,
        "the folder's mode is {mode:o}: the node could remove keys, or others look in"
    );
    // Once more after an end without a goodbye, and then politely.
    nodes[0].kill9()?;
    nodes[0] = nodes[0].laptop().clone().up()?;
    nodes[0].wait_connected(1, MEET)?;
    let socket = dir.join("run/party/api.sock");
    ensure!(socket.exists(), "no socket at {}", socket.display());
    let status = nodes[0].terminate()?;
    ensure!(status.success() && !socket.exists(), "{status}, socket there: {}", socket.exists());
    Ok(())
}

#[test]
fn an_invite_given_openly_is_hidden_and_no_log_has_a_secret() {
    in_lab(|lab| {
        let [ada, bob, cyd] = lab.laptops(["ada", "bob", "cyd"])?;
        let invite = ada.found("party")?;
        let on_the_line = bob.start(&mut bob.meshd_command(&["-vvv", "up", "--invite", &invite]))?;
        let mut command = cyd.meshd_command(&["-vvv", "up"]);
        let in_the_environment = cyd.start(command.env("MESHD_INVITE", &invite))?;
        for mut node in [on_the_line, in_the_environment] {
            node.wait_ready()?;
            let process = PathBuf::from(format!("/proc/{}", node.process()));
            for file in ["cmdline", "environ"] {
                let text = String::from_utf8_lossy(&fs::read(process.join(file))?).into_owned();
                ensure!(!text.contains(&invite[..24]), "the invite stands in {file} of {}", node.laptop().name);
                ensure!(
                    text.contains("xxxxxxxx") == (text.contains("--invite") || text.contains("MESHD_INVITE")),
                    "{text}"
                );
            }
            let dir = &node.laptop().dir;
            let log = fs::read_to_string(dir.join("log"))?;
            let key = fs::read_to_string(dir.join("state/party/key"))?;
            let network: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("state/party/network"))?)?;
            let secret: Vec<u8> = serde_json::from_value(network["network"]["secret"].clone())?;
            let hexadecimal: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            let listed = format!("{secret:?}");
            ensure!(log.len() > 1000, "a node that says everything says more than {log}");
            for told in [&invite[..24], key.trim(), &hexadecimal, listed.trim_matches(['[', ']'])] {
                ensure!(!log.contains(told), "{} logs {told}", node.laptop().name);
            }
        }
        Ok(())
    });
}

#[test]
fn the_doctor_names_what_is_missing_and_by_its_exit_code_whether_it_matters() {
    in_lab(|lab| {
        let [ada] = lab.laptops(["ada"])?;
        let checks = |command: &mut std::process::Command| -> Result<(Option<i32>, serde_json::Value)> {
            let output = command.output()?;
            Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
        };
        let verdict = |report: &serde_json::Value, check: &str| {
            let checks = report["checks"].as_array().cloned().unwrap_or_default();
            let found = checks.into_iter().find(|finding| finding["check"] == check);
            found.map_or_else(String::new, |finding| finding["verdict"].as_str().unwrap_or_default().to_owned())
        };
        let (code, report) = checks(&mut ada.meshd_command(&["doctor", "--json"]))?;
        ensure!(code == Some(0) && report["ok"] == true, "{report}");
        ensure!(verdict(&report, "network") == "warns", "no network yet: {report}");
        ada.found("home")?;
        let _node = ada.up()?;
        let (code, report) = checks(&mut ada.meshd_command(&["doctor", "home", "--json"]))?;
        for check in ["tun", "capability", "user", "confinement", "port", "offloads", "network"] {
            ensure!(verdict(&report, check) == "passes", "{check}: {report}");
        }
        ensure!(code == Some(0), "{report}");

        let bare = ada.meshd_command(&["doctor", "--json"]);
        let arguments: Vec<_> = bare.get_args().skip(3).collect();
        let mut without = ada.command("setpriv");
        without.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]).args(arguments);
        let (code, report) = checks(&mut without)?;
        ensure!(code == Some(1) && report["ok"] == false, "{report}");
        ensure!(verdict(&report, "capability") == "fails", "{report}");
        let text = String::from_utf8(ada.meshd_command(&["doctor"]).output()?.stdout)?;
        ensure!(text.contains("CAP_NET_ADMIN is there") && text.starts_with("  "), "{text}");
        Ok(())
    });
}
