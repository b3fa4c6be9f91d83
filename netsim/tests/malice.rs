//! A member that lies among three that do not, who run the real binary: what it tries is counted under its name at each of them, costs
//! no memory, and their pings do not notice.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netsim::netns::liar::Liar;
use netsim::netns::trial::{MEET, figure, in_lab, party};
use netsim::netns::{Capture, Lab, Laptop, Node, Pings, wait_for};

/// For experiments (IEEE 802, section 9.2.3): nobody but the liar sends it.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

const EVERYBODY: [u8; 6] = [0xff; 6];

/// Records are on disk, and so in invites, when a node has known them for 3 s.
const KEPT: Duration = Duration::from_secs(4);

/// What an honest node may grow by while it is lied to.
const GROWTH_KIB: u64 = 8 * 1024;

/// Of what the liar sends, the kernel may lose a little on its way.
const MOST: f64 = 0.9;

/// Three honest members, and one that lies.
struct Stage {
    laptops: [Laptop; 3],
    nodes: Vec<Node>,
    liar: Liar,
}

/// What came of a lie.
struct Told {
    /// Datagrams that it was.
    datagrams: u64,
    /// How often the reason was counted meanwhile, at each of the three.
    counted: Vec<u64>,
}

impl Stage {
    fn new(lab: &mut Lab) -> Result<Self> {
        Self::with_role(lab, "member")
    }

    /// With a liar that has this role.
    fn with_role(lab: &mut Lab, role: &str) -> Result<Self> {
        let (laptops, nodes, _) = party(lab, ["ada", "bob", "cyd"], &[])?;
        thread::sleep(KEPT);
        let invite = laptops[0].invite(&["--uses", "0", "--role", role])?;
        let dan = lab.laptop("dan")?;
        let mut liar = Liar::start(Path::new(env!("CARGO_BIN_EXE_netsim")), &dan, &invite)?;
        wait_for("the liar has sessions with everybody", MEET, || Ok(liar.tell("sessions 1 1")? == 3))?;
        for node in &nodes {
            node.wait_connected(3, MEET)?;
        }
        // What has just begun still grows by itself.
        thread::sleep(KEPT);
        Ok(Self { laptops, nodes, liar })
    }

    fn drops(&self, reason: &str) -> Result<Vec<u64>> {
        let count = |node: &Node| {
            let drops = node.drops()?;
            Ok(drops.iter().find(|(name, _)| name == reason).map_or(0, |(_, count)| *count))
        };
        self.nodes.iter().map(count).collect()
    }

    /// Has the liar lie, for which the honest count `reason`, and sees what that costs them.
    fn tell(&mut self, lie: &str, reason: &str) -> Result<Told> {
        let words: Vec<&str> = lie.split(' ').collect();
        let rss = self.nodes.iter().map(Node::rss_kib).collect::<Result<Vec<_>>>()?;
        let before = self.drops(reason)?;
        // In a ring, so that everybody asks and answers.
        let pairs = [(0, 1), (1, 2), (2, 0)];
        let pings = pairs.map(|(from, to)| Pings::start(&self.laptops[from], self.nodes[to].ipv4(), 50));
        thread::sleep(Duration::from_millis(500));
        let datagrams = self.liar.tell(lie)?;
        thread::sleep(Duration::from_millis(500));
        let losses = pings.into_iter().map(|pings| pings?.stop()).collect::<Result<Vec<_>>>()?;
        let counted: Vec<_> = self.drops(reason)?.iter().zip(before).map(|(after, before)| after - before).collect();
        let grown = self.nodes.iter().zip(rss).map(|(node, rss)| Ok(node.rss_kib()?.saturating_sub(rss)));
        let grown = grown.collect::<Result<Vec<_>>>()?;
        let (sent, lost) = losses.iter().fold((0, 0), |(sent, lost), loss| (sent + loss.sent, lost + loss.lost));
        figure(&format!(
            "{} {}: {datagrams} datagrams, {reason} {counted:?}, {lost} of {sent} pings lost, {grown:?} KiB grown",
            words[0], words[1]
        ));
        ensure!(datagrams >= words[1].parse()?, "{lie}: only {datagrams} datagrams, so it was not told");
        ensure!((lost as f64) < 0.01 * sent as f64, "{lie}: {losses:?}");
        ensure!(grown.iter().all(|grown| *grown < GROWTH_KIB), "{lie}: they grew by {grown:?} KiB");
        Ok(Told { datagrams, counted })
    }

    /// The same, of which everybody counts most.
    fn tell_all(&mut self, lie: &str, reason: &str) -> Result<()> {
        let told = self.tell(lie, reason)?;
        let least = told.datagrams as f64 / 3.0 * MOST;
        ensure!(
            told.counted.iter().all(|count| *count as f64 >= least),
            "{reason} {:?} for {lie}, {} datagrams",
            told.counted,
            told.datagrams
        );
        Ok(())
    }

    /// A field of `meshd status` of the first of them.
    fn of_ada(&self, field: &str) -> Result<String> {
        Ok(self.laptops[0].ask(&["status"])?[field].as_str().context(field.to_owned())?.to_owned())
    }

    /// Of the first, on whose behalf the liar speaks.
    fn mac_of_ada(&self) -> Result<[u8; 6]> {
        let text = self.of_ada("mac")?;
        let bytes = text.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<Vec<_>>>()?;
        bytes.try_into().ok().with_context(|| format!("{text} is no MAC"))
    }
}

/// A frame that nobody but a capture cares for.
fn experiment(from: [u8; 6], to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &EXPERIMENT].concat();
    frame.resize(len, 0x66);
    frame
}

/// An ARP reply to everybody (RFC 826): `ip` is at `mac`, who sends it.
fn arp_reply(mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    [&EVERYBODY[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac, &ip, &EVERYBODY, &ip].concat()
}

/// A DHCP offer without content.
fn dhcp_offer(mac: [u8; 6]) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, EVERYBODY).ipv4([192, 0, 2, 1], [255; 4], 64).udp(67, 68);
    builder.write(&mut frame, &[2; 240])?;
    Ok(frame)
}

/// An ICMPv6 message to all nodes, from a link-local address that nobody has.
fn to_all_nodes(mac: [u8; 6], kind: u8, head: [u8; 4], rest: &[u8]) -> Result<Vec<u8>> {
    let (mut from, mut all) = ([0; 16], [0; 16]);
    (from[0], from[1], from[15]) = (0xfe, 0x80, 0x66);
    (all[0], all[1], all[15]) = (0xff, 2, 1);
    let builder = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0, 0, 0, 1]).ipv6(from, all, 255);
    let mut frame = Vec::new();
    builder.icmpv6_raw(kind, 0, head).write(&mut frame, rest)?;
    Ok(frame)
}

/// The frames that were captured: tcpdump adds a dump to what it does not know.
fn frames(capture: Capture) -> Result<Vec<String>> {
    Ok(capture.stop()?.into_iter().filter(|line| !line.starts_with('\t')).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn who_speaks_in_anothers_name_is_heard_by_no_host() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        let (liar, ada) = (stage.liar.mac.0, stage.mac_of_ada()?);
        let ip: std::net::Ipv4Addr = stage.of_ada("ipv4")?.parse()?;
        let ipv6: std::net::Ipv6Addr = stage.of_ada("ipv6")?.parse()?;
        let filter = format!(
            "ether proto 0x88b5 or (ether src {} and (udp port 68 or dst host ff02::1 or (arp and src host {ip})))",
            stage.liar.mac
        );
        let captures = stage.nodes.iter().map(|node| Capture::start(node.laptop(), node.device(), &filter));
        let captures = captures.collect::<Result<Vec<_>>>()?;

        // In its own name it may speak: so the captures see what there is to see.
        stage.liar.tell(&format!("frames 3 10 {}", hex(&experiment(liar, EVERYBODY, 60))))?;

        stage.tell_all(&format!("frames 200 100 {}", hex(&experiment(ada, EVERYBODY, 60))), "source-mac")?;
        stage.tell_all(&format!("frames 200 100 {}", hex(&arp_reply(liar, ip.octets()))), "forged-binding")?;
        let at_liar = [&ipv6.octets()[..], &[2, 1], &liar].concat();
        let advertisement = to_all_nodes(liar, 136, [0x20, 0, 0, 0], &at_liar)?;
        stage.tell_all(&format!("frames 200 100 {}", hex(&advertisement)), "forged-binding")?;
        stage.tell_all(&format!("frames 200 100 {}", hex(&dhcp_offer(liar)?)), "rogue-dhcp")?;
        let router = to_all_nodes(liar, 134, [64, 0, 7, 8], &[0; 8])?;
        stage.tell_all(&format!("frames 200 100 {}", hex(&router)), "rogue-router")?;

        for capture in captures {
            let seen = frames(capture)?;
            ensure!(seen.len() == 3, "not what it said in its own name, and that alone: {seen:#?}");
        }
        Ok(())
    });
}

#[test]
fn who_has_ten_thousand_macs_has_one() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        let lie = hex(&experiment([0; 6], EVERYBODY, 60));
        stage.tell_all(&format!("macs 10000 2500 {lie}"), "source-mac")
    });
}

/// How many foreign stations the first of them knows, by `meshd stations`.
fn foreign(stage: &Stage) -> Result<usize> {
    let told = stage.laptops[0].ask(&["stations"])?;
    let stations = told["stations"].as_array().context("stations")?;
    Ok(stations.iter().filter(|station| station["by"] == "bridge").count())
}

#[test]
fn who_is_no_bridge_claims_ten_thousand_stations_in_vain() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        // 192 each.
        stage.tell_all("stations 53 50", "bridge-claim")?;
        ensure!(foreign(&stage)? == 0, "some are believed");
        Ok(())
    });
}

#[test]
fn a_bridge_that_claims_ten_thousand_stations_has_a_thousand_and_never_a_members() {
    in_lab(|lab| {
        let mut stage = Stage::with_role(lab, "bridge")?;
        let told = stage.tell("stations 53 30", "bridge-stations")?;
        let least = ((53 * 192 - 1024) as f64 * MOST) as u64;
        ensure!(told.counted.iter().all(|count| *count >= least), "{:?} counted", told.counted);
        let known = foreign(&stage)?;
        ensure!((1..=1024).contains(&known), "{known} are believed");
        let mac = stage.of_ada("mac")?;
        stage.tell_all(&format!("station 30 20 {mac}"), "bridge-owned")?;
        // More than any bridge has to say.
        let told = stage.tell("stations 5000 1000", "bridge-claim")?;
        ensure!(told.counted.iter().all(|count| *count >= 3500), "{:?} of 5000 counted", told.counted);
        ensure!(foreign(&stage)? <= 1024);
        Ok(())
    });
}

#[test]
fn a_storm_of_broadcasts_is_held_to_its_budget() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        let capture = Capture::start(&stage.laptops[1], stage.nodes[1].device(), "ether proto 0x88b5")?;
        let frame = hex(&experiment(stage.liar.mac.0, EVERYBODY, 100));
        let told = stage.tell(&format!("frames 10000 2500 {frame}"), "flood-budget")?;
        // Twice 200 at once, and twice 100 a second for four seconds and a little.
        let passed = frames(capture)?.len();
        ensure!((400..1600).contains(&passed), "{passed} of 10000 reached bob's kernel");
        ensure!(told.counted.iter().all(|count| *count >= 7500), "{:?} of 10000 counted", told.counted);
        Ok(())
    });
}

#[test]
fn records_of_others_are_not_ones_own_to_sign_and_ones_own_are_taken_at_a_pace() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        let mac = stage.of_ada("mac")?;
        stage.tell_all(&format!("steal 10 10 {mac}"), "record-conflict")?;
        stage.tell_all(&format!("claim 5 10 {mac}"), "record-refused")?;
        stage.tell_all(&format!("forge 10 10 {mac}"), "record-refused")?;
        // 32 at once and 4 a second are taken; the rest is not even looked at.
        let told = stage.tell("records 2000 400", "record-budget")?;
        ensure!(told.counted.iter().all(|count| *count >= 1800), "{:?} of 2000 records", told.counted);
        let told = stage.tell("members 2000 400", "record-budget")?;
        ensure!(told.counted.iter().all(|count| *count >= 1800), "{:?} of 2000 members", told.counted);
        for laptop in &stage.laptops[1..] {
            let peers = laptop.ask(&["peers"])?;
            let peers = peers["peers"].as_array().context("peers")?;
            ensure!(peers.len() < 100, "{} has taken in {} members", laptop.name, peers.len());
            let ada = peers.iter().find(|peer| peer["name"] == "ada").context("ada is gone")?;
            ensure!(ada["mac"] == mac.as_str() && ada["path"] == "direct", "{ada}");
        }
        Ok(())
    });
}

#[test]
fn what_was_sealed_once_opens_once_and_as_it_was_sealed() {
    in_lab(|lab| {
        let mut stage = Stage::new(lab)?;
        let frame = hex(&experiment(stage.liar.mac.0, EVERYBODY, 60));
        stage.liar.tell(&format!("frames 20 20 {frame}"))?;
        let told = stage.tell("again 600 200", "replayed")?;
        let all = told.counted.iter().sum::<u64>() as f64;
        ensure!(all >= told.datagrams as f64 * MOST, "{:?} of {} replayed", told.counted, told.datagrams);
        stage.tell_all(&format!("altered 200 100 {frame}"), "bad-tag")?;
        stage.tell_all("greetings 30 10", "handshake-replayed")
    });
}
