//! The command line as people meet it: the real binary, and every bad input there is a known way to give it.
//!
//! A failure is one line on stderr, exit code 1, nothing on stdout and nothing left on disk. Tests that need root's
//! powers run themselves again inside namespaces of their own; where that is not allowed they print SKIPPED and why.

#![cfg(feature = "daemon")]
#![expect(clippy::disallowed_methods, reason = "tests of a real program wait for it by a real clock")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use meshd::identity::{
    Certificate, CertificateBody, Chain, Invite, Kind, NetworkId, NetworkSecret, Roles, SigningKey, UnixSeconds,
};
use serde_json::Value;

#[path = "cli/invites.rs"]
mod invites;
#[path = "cli/running.rs"]
mod running;

const MESHD: &str = env!("CARGO_BIN_EXE_meshd");

/// How long any program may run. A busy machine starts one in a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Set inside the namespaces: which test of which process this is.
const INSIDE: &str = "MESHD_TEST_INSIDE";

// ---- Joining ----

#[test]
fn a_network_is_made_an_invite_given_and_taken() {
    let (founder, newcomer) = (Machine::new(), Machine::new());
    let made = founder.json(&["init", "--name", "home", "--host", "alpha", "--prefix", "10.99.0.0/16"]);
    assert_eq!(
        (&made["network"], &made["name"], &made["prefix"]),
        (&"home".into(), &"alpha".into(), &"10.99.0.0/16".into())
    );
    let invite = founder.json(&["invite", "--expires", "1h", "--uses", "3", "--member-for", "2d"]);
    assert_eq!((&invite["uses"], &invite["contacts"]), (&3.into(), &0.into()));
    let joined = newcomer.json(&["join", text(&invite["invite"]), "--name", "beta"]);
    assert_eq!((&joined["network_id"], &joined["name"]), (&made["network_id"], &"beta".into()));
    assert_ne!(joined["peer"], made["peer"]);
    assert!(newcomer.path("home/key").exists() && !newcomer.path("home/root.key").exists());
}

#[test]
fn an_invite_may_come_from_standard_input_or_a_file() {
    let founder = Machine::new();
    let invite = founder.invite();
    let stdin = Machine::new();
    assert!(stdin.run_with(&["join", "-", "--name", "beta"], Some(&format!("\n{invite}\n"))).status.success());
    let file = Machine::new();
    fs::write(file.path("invite"), &invite).expect("write");
    assert!(file.run(&["join", &format!("@{}", file.path("invite").display()), "--name", "beta"]).status.success());
    let link = founder.json(&["invite"])["link"].clone();
    assert!(text(&link).starts_with("meshd://join/meshd1-"));
    assert!(Machine::new().run(&["join", text(&link), "--name", "beta"]).status.success());
    let code = founder.run(&["invite", "--qr"]).stdout;
    let code = String::from_utf8(code).expect("text");
    assert!(code.lines().count() > 20 && code.lines().last().is_some_and(|line| line.starts_with("meshd://join/")));
    let empty = Machine::new();
    assert!(empty.fails_with(&["join", "-"], "").contains("is empty"));
    assert!(empty.fails_with(&["join", "-"], &"x".repeat(100_000)).contains("too long"));
    assert!(empty.fails(&["join", "@/nowhere/at/all"]).contains("cannot open /nowhere/at/all"));
}

#[test]
fn the_first_invite_is_for_any_number_of_machines() {
    let founder = Machine::new();
    let made = founder.json(&["init", "--name", "home"]);
    let ids = ["beta", "gamma", "delta"]
        .map(|name| Machine::new().json(&["join", text(&made["invite"]), "--name", name])["network_id"].clone());
    assert!(ids.iter().all(|id| *id == made["network_id"]));
}

#[test]
fn an_unnamed_network_gets_a_name_of_its_own() {
    let machine = Machine::new();
    let (one, other) = (machine.json(&["init"]), machine.json(&["init"]));
    for made in [&one, &other] {
        assert_eq!(text(&made["network"]), format!("mesh-{}", &text(&made["network_id"])[..4]));
    }
    assert_ne!(one["network"], other["network"]);
}

#[test]
fn joining_twice_says_what_the_network_is_called_here() {
    let machine = Machine::new();
    let invite = Machine::new().invite_of_new();
    assert!(machine.run(&["join", &invite, "--name", "beta", "--network", "work"]).status.success());
    for again in [&["join", &invite][..], &["join", &invite, "--network", "other"]] {
        assert!(machine.fails(again).contains("already a member of that network, as work"));
    }
}

#[test]
fn two_networks_of_one_name_need_a_choice() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let invite = Machine::new().invite_of_new();
    assert!(machine.fails(&["join", &invite, "--name", "beta"]).contains("choose a name for this one with --network"));
    assert!(machine.run(&["join", &invite, "--name", "beta", "--network", "other"]).status.success());
    assert!(machine.path("other/key").exists());
}

#[test]
fn making_a_network_twice_leaves_the_first_alone() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let key = fs::read(machine.path("home/key")).expect("a key");
    assert!(machine.fails(&["init", "--name", "home"]).contains("exists already"));
    assert_eq!(fs::read(machine.path("home/key")).expect("a key"), key);
}

#[test]
fn only_an_admin_invites_and_expels_and_only_the_founder_makes_admins() {
    let (founder, member, admin) = (Machine::new(), Machine::new(), Machine::new());
    let invite = founder.invite();
    assert!(member.run(&["join", &invite, "--name", "beta"]).status.success());
    for refused in [&["invite"][..], &["revoke", "alpha"], &["invites", "--withdraw", "first"]] {
        let line = member.fails(refused);
        assert!(line.contains("this machine is no admin of network home") || line.contains("no invite"), "{line}");
    }
    let boss = founder.json(&["invite", "--role", "admin", "--name", "boss"]);
    assert_eq!(boss["roles"], serde_json::json!(["relay", "bridge", "admin"]));
    assert!(admin.run(&["join", text(&boss["invite"]), "--name", "gamma"]).status.success());
    assert!(admin.fails(&["invite", "--role", "admin"]).contains("only the founder of network home makes admins"));
    let ticket = admin.json(&["invite", "--role", "relay", "--role", "bridge"]);
    let newcomer = Machine::new();
    assert!(newcomer.run(&["join", text(&ticket["invite"]), "--name", "delta"]).status.success());
    assert!(newcomer.fails(&["invite"]).contains("no admin"));
    assert_eq!(founder.run(&["invite", "--role", "boss"]).status.code(), Some(2));
}

#[test]
fn invites_are_listed_and_withdrawn_and_members_expelled_while_meshd_is_not_running() {
    let founder = Machine::new();
    founder.invite();
    let ticket = founder.json(&["invite", "--name", "guests", "--uses", "5"]);
    let states = |founder: &Machine| -> Vec<(String, String)> {
        let list = founder.json(&["invites"]);
        let list = list.as_array().expect("a list");
        let mut states: Vec<_> =
            list.iter().map(|it| (text(&it["name"]).to_owned(), text(&it["state"]).to_owned())).collect();
        states.sort();
        states
    };
    let named = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(states(&founder), [named("first", "open"), named("guests", "open")]);
    assert!(founder.fails(&["invites", "--withdraw", "nobody"]).contains("no invite is called `nobody`"));
    let key = text(&ticket["key"]);
    assert!(founder.run(&["invites", "--withdraw", &key[key.len() - 8..]]).status.success());
    assert_eq!(states(&founder), [named("first", "open"), named("guests", "withdrawn")]);

    assert!(founder.fails(&["revoke", "beta"]).contains("no member is called `beta`"));
    let stranger = SigningKey::from_seed(&[9; 32]).peer_id().to_string();
    let long = "x".repeat(81);
    assert!(founder.fails(&["revoke", &stranger, "--reason", &long]).contains("at most 80 bytes"));
    let expelled = founder.json(&["revoke", &stranger, "--reason", "never met"]);
    assert_eq!((&expelled["peer"], &expelled["told"]), (&stranger.into(), &false.into()));
}

#[test]
fn where_it_takes_two_admins_to_expel_one_of_them_says_who_is_missing() {
    let (founder, admin, second) = (Machine::new(), Machine::new(), Machine::new());
    founder.json(&["init", "--name", "home", "--quorum", "2"]);
    for (machine, name) in [(&admin, "beta"), (&second, "gamma")] {
        let invite = founder.json(&["invite", "--role", "admin"]);
        assert!(machine.run(&["join", text(&invite["invite"]), "--name", name]).status.success());
    }
    let stranger = SigningKey::from_seed(&[9; 32]).peer_id().to_string();
    let said = admin.run(&["revoke", &stranger]);
    let line = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(line.contains(&format!("{stranger} is out once another admin says so too")), "{line}");
    assert_eq!(second.json(&["revoke", &stranger])["missing"], 1);
    assert_eq!(founder.json(&["revoke", &stranger])["missing"], 0, "the founder needs nobody");
    // Whom an admin lets in is of the same network.
    let invite = admin.json(&["invite"]);
    assert!(Machine::new().run(&["join", text(&invite["invite"]), "--name", "delta"]).status.success());
    for wrong in ["0", "16"] {
        assert_eq!(Machine::new().run(&["init", "--quorum", wrong]).status.code(), Some(2));
    }
}

// ---- The state on disk ----

#[test]
fn a_key_that_others_can_read_is_refused_with_the_cure() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    for (file, mode) in [("key", 0o640), ("key", 0o604), ("root.key", 0o644), ("network", 0o660)] {
        let path = machine.path("home").join(file);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        let line = machine.fails(&["invite"]);
        assert!(line.contains(&format!("is readable by others; run: chmod 600 {}", path.display())), "{line}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    }
    assert!(machine.run(&["invite"]).status.success());
}

#[test]
fn a_damaged_key_or_network_file_is_named() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    for file in ["key", "root.key", "network"] {
        let path = machine.path("home").join(file);
        let whole = fs::read(&path).expect("a file");
        for bytes in [&b""[..], &whole[..whole.len() / 2], &b"\xff\xfe garbage \n garbage"[..], &[b'0'; 100_000]] {
            fs::write(&path, bytes).expect("write");
            let line = machine.fails(&["invite"]);
            assert!(line.contains(&path.display().to_string()), "{line}");
        }
        fs::write(&path, &whole).expect("write");
    }
    let line = {
        fs::write(machine.path("home/key"), "11".repeat(32)).expect("write");
        machine.fails(&["up"])
    };
    assert!(line.contains("is not the key of this membership"), "{line}");
}

#[test]
fn an_unknown_network_is_answered_with_those_there_are() {
    let machine = Machine::new();
    assert!(machine.fails(&["status"]).contains("make one with `meshd init` or join one"));
    assert!(machine.fails(&["up", "home"]).contains("no network home"));
    machine.json(&["init", "--name", "home"]);
    assert!(machine.fails(&["peers", "work"]).contains("there is: home"));
    machine.json(&["init", "--name", "work"]);
    assert!(machine.fails(&["stations"]).contains("name one of: home, work"));
    assert!(machine.fails(&["up", "home", "--network", "work"]).contains("say one of them"));
}

#[test]
fn every_question_to_a_daemon_that_does_not_run_says_how_to_start_it() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    for question in [
        &["status"][..],
        &["peers", "home"],
        &["stations"],
        &["lookup", "x"],
        &["ping", "x", "-c", "1"],
        &["ping", "x", "--path"],
        &["why", "x"],
        &["netcheck", "home"],
    ] {
        let line = machine.fails(question);
        assert_eq!(line, "meshd: meshd is not running for network home: start it with `meshd up home`");
    }
}

#[test]
fn an_address_outside_the_network_is_refused() {
    let machine = Machine::new();
    machine.json(&["init", "--name", "home", "--prefix", "10.99.0.0/16"]);
    for ip in ["10.98.0.1", "10.99.0.0", "10.99.255.255"] {
        let line = machine.fails(&["up", "--ip", ip]);
        assert!(line.contains("not a host of network home, which is 10.99.0.0/16"), "{line}");
    }
}

#[test]
fn an_expired_membership_does_not_come_up() {
    let machine = Machine::new();
    let now = unix_now();
    let invite = crafted(now, now + 60, now + 2).to_string();
    machine.json(&["join", &invite, "--name", "beta"]);
    wait_until("the membership to end", || unix_now() > now + 2);
    assert!(machine.fails(&["up"]).contains("join with a new invite"));
}

#[test]
fn a_command_line_without_sense_is_a_usage_error() {
    let machine = Machine::new();
    for nonsense in [
        &["dance"][..],
        &[],
        &["init", "--name", "not a name"],
        &["init", "--prefix", "10.0.0.1/8"],
        &["init", "--prefix", "10.0.0.0/31"],
        &["invite", "--expires", "soon"],
        &["invite", "--uses", "-1"],
        &["join"],
        &["up", "--port", "0"],
        &["up", "--port", "65536"],
        &["up", "--mac", "ff:ff:ff:ff:ff:ff"],
        &["up", "--mtu", "9001"],
        &["up", "../../etc"],
        &["ping", "x", "-c", "0"],
        &["ping", "x", "-i", "0"],
        &["why"],
        &["netcheck", "not a name"],
    ] {
        let output = machine.run(nonsense);
        assert_eq!(output.status.code(), Some(2), "{nonsense:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{nonsense:?}");
    }
    assert_eq!(machine.tree(), Vec::<String>::new());
}

// ---- Helpers ----

/// A machine: a state folder and a runtime folder of its own, removed at the end.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Inside, process ids begin anew: the outer one keeps the folders apart.
        let run = std::env::var(INSIDE).unwrap_or_else(|_| std::process::id().to_string());
        let dir = std::env::temp_dir().join(format!("meshd-cli-{run}-{number}"));
        fs::create_dir_all(dir.join("state")).expect("a folder");
        Self { dir }
    }

    /// Of something in the state folder.
    fn path(&self, below: &str) -> PathBuf {
        self.dir.join("state").join(below)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(MESHD);
        command.args(arguments).env_remove("MESHD_LOG").env("MESHD_STATE_DIR", self.dir.join("state"));
        command.env("MESHD_RUNTIME_DIR", self.dir.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, None)
    }

    fn run_with(&self, arguments: &[&str], stdin: Option<&str>) -> Output {
        let mut command = self.command(arguments);
        if stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().expect("meshd starts");
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // It may have read enough and gone.
            let _ = pipe.write_all(text.as_bytes());
        }
        finish(child, &format!("meshd {arguments:?}"))
    }

    /// What a command that must succeed prints with `--json`.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON value")
    }

    /// The one line of a command that must fail and leave the state folder as it was.
    fn fails(&self, arguments: &[&str]) -> String {
        self.fails_with(arguments, "")
    }

    fn fails_with(&self, arguments: &[&str], stdin: &str) -> String {
        let before = self.tree();
        let line = one_line(&self.run_with(arguments, Some(stdin)));
        // A start takes its lock even if it fails later.
        let lasting = |tree: Vec<String>| tree.into_iter().filter(|path| !path.ends_with("/lock")).collect::<Vec<_>>();
        assert_eq!(lasting(self.tree()), lasting(before), "{arguments:?} left something behind");
        line
    }

    /// As [`Machine::fails`], of `meshd up`, which counts its start before it fails.
    fn fails_to_come_up(&self, arguments: &[&str]) -> String {
        let line = self.fails(&[&["up"], arguments].concat());
        assert!(!self.dir.join("run/home/api.sock").exists(), "{arguments:?} left its socket");
        line
    }

    /// The one line of a `meshd up` that another program starts, and that must fail.
    fn fails_to_come_up_under(&self, wrapper: &[&str]) -> String {
        let plain = self.command(&[]);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(MESHD).arg("up");
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let line = one_line(&finish(child.expect("the wrapper is there"), wrapper[0]));
        assert!(!self.dir.join("run/home/api.sock").exists(), "{wrapper:?} left its socket");
        line
    }

    /// What the daemon wrote.
    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn invite(&self) -> String {
        text(&self.json(&["init", "--name", "home", "--host", "alpha"])["invite"]).to_owned()
    }

    fn invite_of_new(self) -> String {
        self.invite()
    }

    /// Everything in the state folder.
    fn tree(&self) -> Vec<String> {
        let (mut found, mut folders) = (Vec::new(), vec![self.dir.join("state")]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                found.push(path.display().to_string());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An invite into a network called home, with the times chosen.
fn crafted(not_before: UnixSeconds, not_after: UnixSeconds, grant_until: UnixSeconds) -> Invite {
    let (root, key) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
    let body = CertificateBody {
        subject: key.peer_id(),
        kind: Kind::Invite,
        name: "invite".parse().expect("a name"),
        roles: Roles::NONE,
        not_before,
        not_after,
        grant_until,
        uses: 0,
    };
    let id = NetworkId::of_root(&root.peer_id());
    let chain = Chain::of_root(root.peer_id(), Certificate::issue(&root, &id, body));
    let prefix = "10.99.0.0/16".parse().expect("a prefix");
    Invite::new("home".parse().expect("a name"), prefix, NetworkSecret::new([3; 32]), &key, chain)
}

/// Checks that a command failed as a command has to, and returns its one line.
fn one_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let line = stderr.strip_suffix('\n').expect("a whole line");
    assert!(line.starts_with("meshd: ") && !line.contains('\n'), "{stderr}");
    line.to_owned()
}

/// Waits for the end of a program, and kills it if it takes too long.
fn finish(mut child: Child, what: &str) -> Output {
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = std::thread::spawn(move || drain(&mut stdout));
    let err = std::thread::spawn(move || drain(&mut stderr));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} takes too long: {}", String::from_utf8_lossy(&err.join().expect("no panic")));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().expect("no panic"), stderr: err.join().expect("no panic") }
}

fn drain(pipe: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("our own names")
}

fn unix_now() -> UnixSeconds {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn system(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().expect("the program is there").status.success()
}

/// Whether we are in namespaces of our own: network, mounts, and processes, so that nothing outlives the test. If not, runs the test `name` again in such, and says
/// false: that run has decided. Where namespaces are not allowed the test is skipped.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let as_root = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let as_user = [&as_root[..], &["--map-root-user"]].concat();
    let allowed = [&as_root[..], &as_user].into_iter().find(|flags| {
        let tried = Command::new("unshare").args(*flags).args(["test", "-w", "/dev/net/tun"]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    let Some(flags) = allowed else {
        skip(name, "this user may not make namespaces, or there is no /dev/net/tun to use in them");
        return false;
    };
    let this = std::env::current_exe().expect("this test");
    let mut again = Command::new("unshare");
    again
        .args(flags)
        .arg(this)
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, format!("{}-{name}", std::process::id()));
    let child =
        again.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("unshare starts");
    let output = finish(child, name);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Says that a test was skipped; where the lab is required that is a failure.
fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
    if let Some(list) = std::env::var_os("MESHD_SKIPS") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).expect("the list of skips");
        writeln!(list, "{name}: {why}").expect("written");
    }
    assert!(std::env::var_os("MESHD_REQUIRE_LAB").is_none(), "{name} must run here: {why}");
}
