//! In namespaces of its own: with a daemon, or on a full disk.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::*;

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    if !inside("running::a_full_disk_leaves_nothing_half_made") {
        return;
    }
    let machine = Machine::new();
    let mut refusals = 0;
    // Each page more lets one file more be written before the disk is full.
    for pages in 1..=8 {
        let disk = machine.path(&format!("disk-{pages}"));
        fs::create_dir(&disk).expect("a folder");
        let size = format!("size={}k,mode=700", 4 * pages);
        system("mount", &["-t", "tmpfs", "-o", &size, "none", path_text(&disk)]);
        let state = disk.join("state");
        let output = machine.run(&["--state-dir", path_text(&state), "init", "--name", "home"]);
        let left = fs::read_dir(&disk).expect("a folder").count();
        system("umount", &[path_text(&disk)]);
        if output.status.success() {
            break;
        }
        refusals += 1;
        let line = one_line(&output);
        assert!(line.contains("No space left on device") && line.contains("nothing was kept"), "{line}");
        assert_eq!(left, 0, "{pages} pages");
    }
    assert!((2..8).contains(&refusals), "{refusals} of the disks were too small");
}

#[test]
fn a_running_node_answers_questions_and_stops_at_a_signal() {
    if !inside("running::a_running_node_answers_questions_and_stops_at_a_signal") {
        return;
    }
    let machine = Machine::new();
    let made = machine.json(&["init", "--name", "home", "--host", "alpha"]);
    let node = Node::up(&machine, &["--device", "mesh0", "--port", "5555"]);
    let status = machine.json(&["status"]);
    for (key, value) in [("network", "home"), ("name", "alpha"), ("device", "mesh0")] {
        assert_eq!(status[key], value, "{status}");
    }
    for key in ["network_id", "peer", "mac", "ipv4"] {
        assert_eq!(status[key], made[key], "{status}");
    }
    assert_eq!(machine.json(&["peers"])["peers"], Value::Array(Vec::new()));
    let table = machine.run(&["peers"]);
    assert_eq!(String::from_utf8_lossy(&table.stdout), "NAME  ADDRESS  PATH  KEYS  ENDPOINT  RTT  HEARD  ROLES\n");
    let stations = machine.json(&["stations"]);
    assert_eq!((&stations["stations"][0]["mac"], &stations["stations"][0]["by"]), (&made["mac"], &"own".into()));
    for question in [&["ping", "nobody"][..], &["ping", "nobody", "--path"], &["why", "nobody"]] {
        assert!(machine.fails(question).contains("no member is called `nobody`; `meshd peers` lists them"));
    }
    assert!(machine.fails(&["why", "alpha"]).contains("`alpha` is this node"));
    let check = machine.json(&["netcheck"]);
    assert_eq!((&check["nat"]["mapping"], &check["udp"]["tried"]), (&"unknown".into(), &Value::Null), "{check}");
    let text = String::from_utf8_lossy(&machine.run(&["netcheck"]).stdout).into_owned();
    assert!(text.contains("UDP:           not tried yet: no member is known to ask\n"), "{text}");
    assert!(machine.fails(&["lookup", "not.a.key"]).contains("no MAC, IP address or name"));
    assert_eq!(status["forwarding"]["lanes"], 1);
    assert!(status["forwarding"]["receive_buffer"].as_u64().is_some_and(|bytes| bytes >= 4 << 20), "{status}");
    let text = String::from_utf8_lossy(&machine.run(&["status"]).stdout).into_owned();
    // The column's width is that of the longest key.
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim_start);
    assert_eq!(value("device:"), Some("mesh0"), "{text}");
    assert!(value("forwarding:").is_some_and(|value| value.starts_with("1 lane, ")), "{text}");

    assert_eq!(node.stop("TERM"), Some(0), "{}", machine.log());
    assert!(!machine.dir.join("run/home/api.sock").exists(), "the socket went with the daemon");
    assert!(!succeeds("ip", &["link", "show", "dev", "mesh0"]), "so did the device");
    assert!(machine.fails(&["status"]).contains("is not running"));
}

#[test]
fn a_node_joins_by_its_invite_once_and_then_comes_up_by_it() {
    if !inside("running::a_node_joins_by_its_invite_once_and_then_comes_up_by_it") {
        return;
    }
    let (founder, machine) = (Machine::new(), Machine::new());
    let made = founder.json(&["init", "--name", "home", "--host", "alpha"]);
    let invite = text(&made["invite"]);
    assert!(machine.fails(&["up", "--invite", ""]).contains("no network in"), "empty is none");
    assert!(machine.fails(&["up", "--invite", &invite[..100]]).contains("truncated"));
    let mut peers = Vec::new();
    for start in 1..=2 {
        let node = Node::up(&machine, &["--invite", invite]);
        assert_eq!(fs::read_to_string(machine.path("home/boots")).expect("a count").trim(), start.to_string());
        let status = machine.json(&["status"]);
        assert_eq!(status["network_id"], made["network_id"]);
        peers.push(status["peer"].clone());
        assert_eq!(node.stop("TERM"), Some(0));
    }
    assert_eq!(peers[0], peers[1], "it is the same member");
    assert_ne!(peers[0], made["peer"]);
    let line = machine.fails(&["up", "office", "--invite", invite]);
    assert_eq!(line, "meshd: the network of this invite is called home here, not office");
}

#[test]
fn a_member_comes_up_by_an_invite_that_has_expired() {
    if !inside("running::a_member_comes_up_by_an_invite_that_has_expired") {
        return;
    }
    let (machine, late) = (Machine::new(), Machine::new());
    let now = unix_now();
    let invite = crafted(now, now + 4, now + 3600).to_string();
    assert_eq!(Node::up(&machine, &["--invite", &invite]).stop("TERM"), Some(0));
    wait_until("the invite to expire", || unix_now() > now + 4);
    assert!(late.fails(&["up", "--invite", &invite]).contains("the invite expired"));
    assert_eq!(Node::up(&machine, &["--invite", &invite]).stop("TERM"), Some(0));
}

#[test]
fn a_second_up_is_refused_while_the_first_goes_on() {
    if !inside("running::a_second_up_is_refused_while_the_first_goes_on") {
        return;
    }
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let node = Node::up(&machine, &["--device", "mesh0"]);
    let line = machine.fails(&["up", "--device", "mesh1"]);
    assert_eq!(
        line,
        format!("meshd: meshd is already running for network home (process {}); stop it first", node.id())
    );
    assert!(machine.run(&["status"]).status.success());
    assert_eq!(node.stop("INT"), Some(0));
}

#[test]
fn a_node_that_was_killed_starts_again_and_counts_on() {
    if !inside("running::a_node_that_was_killed_starts_again_and_counts_on") {
        return;
    }
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    for start in 1..=3 {
        let node = Node::up(&machine, &[]);
        assert_eq!(fs::read_to_string(machine.path("home/boots")).expect("a count").trim(), start.to_string());
        assert_eq!(node.stop("KILL"), None);
        assert!(machine.dir.join("run/home/api.sock").exists(), "a killed daemon removes nothing");
    }
}

#[test]
fn an_invite_of_a_running_node_says_where_it_is() {
    if !inside("running::an_invite_of_a_running_node_says_where_it_is") {
        return;
    }
    system("ip", &["link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]);
    for wire in ["wire0", "wire1"] {
        system("ip", &["link", "set", wire, "up"]);
    }
    system("ip", &["address", "add", "192.0.2.7/24", "dev", "wire0"]);
    let machine = Machine::new();
    let made = machine.json(&["init", "--name", "home"]);
    let node = Node::up(&machine, &["--port", "5555"]);
    let here = "192.0.2.7:5555".parse().expect("an endpoint");
    wait_until("the node to see its interfaces", || {
        machine.json(&["status"])["endpoints"].to_string().contains("192.0.2.7")
    });
    let invite: Invite = text(&machine.json(&["invite"])["invite"]).parse().expect("an invite");
    assert_eq!(invite.contacts.len(), 1);
    assert_eq!(invite.contacts[0].peer.to_string(), text(&made["peer"]));
    assert!(invite.contacts[0].endpoints.contains(&here), "{:?}", invite.contacts[0].endpoints);
    assert_eq!(node.stop("TERM"), Some(0));
}

#[test]
fn a_taken_device_name_is_never_taken_over() {
    if !inside("running::a_taken_device_name_is_never_taken_over") {
        return;
    }
    system("ip", &["tuntap", "add", "dev", "taken0", "mode", "tap"]);
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    for device in ["taken0", "lo"] {
        let line = machine.fails_to_come_up(&["--device", device]);
        assert!(line.contains(&format!("interface {device} is in use; choose another with --device")), "{line}");
    }
    assert!(succeeds("ip", &["link", "show", "dev", "taken0"]), "it is still there");
}

#[test]
fn a_taken_port_is_named_with_its_protocol() {
    if !inside("running::a_taken_port_is_named_with_its_protocol") {
        return;
    }
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5555)).expect("a UDP port");
    let line = machine.fails_to_come_up(&["--port", "5555"]);
    assert!(line.contains("UDP port 5555 is taken") && line.contains("--port"), "{line}");
    drop(udp);
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5555)).expect("a TCP port");
    let line = machine.fails_to_come_up(&["--port", "5555"]);
    assert!(line.contains("TCP port 5555 is taken") && line.contains("--port"), "{line}");
    drop(tcp);
    assert_eq!(Node::up(&machine, &["--port", "5555"]).stop("TERM"), Some(0));
}

#[test]
fn without_the_capability_the_cure_is_named() {
    if !inside("running::without_the_capability_the_cure_is_named") {
        return;
    }
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let line = machine.fails_to_come_up_under(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    assert!(line.contains("CAP_NET_ADMIN") && line.contains("run as root"), "{line}");
}

#[test]
fn without_a_tun_driver_the_cure_is_named() {
    if !inside("running::without_a_tun_driver_the_cure_is_named") {
        return;
    }
    // Read-only, or tun-rs makes the file that is missing. Only for us: the mount namespace is our own.
    system("mount", &["-t", "tmpfs", "-o", "ro", "none", "/dev/net"]);
    let machine = Machine::new();
    machine.json(&["init", "--name", "home"]);
    let line = machine.fails_to_come_up(&[]);
    assert!(line.contains("there is no /dev/net/tun") && line.contains("modprobe tun"), "{line}");
}

/// A daemon that runs. Killed when dropped, so a failing test leaves none.
struct Node {
    child: Child,
}

impl Node {
    /// Starts it and waits until it answers.
    fn up(machine: &Machine, arguments: &[&str]) -> Self {
        let log = fs::File::create(machine.dir.join("log")).expect("a log");
        let mut command = machine.command(&[&["up"], arguments].concat());
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("meshd starts");
        let mut node = Self { child };
        wait_until("the daemon to answer", || {
            let ended = node.child.try_wait().expect("our child");
            assert!(ended.is_none(), "{ended:?}: {}", machine.log());
            machine.run(&["status"]).status.success()
        });
        node
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; returns the exit code.
    fn stop(mut self, signal: &str) -> Option<i32> {
        system("kill", &[&format!("-{signal}"), &self.id().to_string()]);
        let mut status = None;
        wait_until("the daemon to stop", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
