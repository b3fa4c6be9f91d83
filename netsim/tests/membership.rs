//! Membership with the real binary: laptops are expelled, invites used too often, withdrawn, forged, and admins fall out,
//! on one switch, cut in two and whole again.
#![expect(clippy::disallowed_methods, reason = "the real world has real time")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netsim::netns::trial::{MEET, figure, in_lab, party};
use netsim::netns::{Capture, Laptop, Node, Pings, wait_for};

/// From the news of a revocation to the end of every session, and from healing to there, with the time that `ping` and
/// `meshd peers` take themselves.
const EXPELLED: Duration = Duration::from_secs(2);
const EXPELLED_AFTER_HEALING: Duration = Duration::from_secs(5);

fn answers(from: &Laptop, to: &Node) -> bool {
    from.run(&format!("ping -n -c 1 -W 1 {}", to.ipv4())).is_ok()
}

/// Whether `laptop` lists `name` as a member.
fn lists(laptop: &Laptop, name: &str) -> Result<bool> {
    let peers = laptop.ask(&["peers"])?;
    Ok(peers["peers"].as_array().context("peers")?.iter().any(|peer| peer["name"] == name))
}

/// Cuts the switch between two groups of laptops: each drops what comes from the other's network cards.
fn cut(here: &[&Laptop], there: &[&Laptop]) -> Result<()> {
    for (group, others) in [(here, there), (there, here)] {
        let macs =
            others.iter().map(|other| other.run("cat /sys/class/net/eth0/address")).collect::<Result<Vec<_>>>()?;
        let macs = macs.iter().map(|mac| mac.trim()).collect::<Vec<_>>().join(", ");
        let rules = format!(
            "table inet cut {{\n chain in {{\n type filter hook input priority -10\n iifname eth0 ether saddr {{ {macs} }} drop\n }}\n}}\n"
        );
        for laptop in group {
            let path = laptop.dir.join("cut.nft");
            fs::write(&path, &rules)?;
            laptop.run(&format!("nft -f {}", path.display()))?;
        }
    }
    Ok(())
}

fn heal(laptops: &[&Laptop]) -> Result<()> {
    laptops.iter().try_for_each(|laptop| laptop.run("nft delete table inet cut").map(drop))
}

#[test]
fn who_is_expelled_is_out_in_two_seconds_and_gets_nothing_with_all_it_knew() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob", "cyd", "dan"], &[])?;
        ensure!(answers(&laptops[1], &nodes[3]), "bob reaches dan");
        ensure!(laptops[1].meshd(&["revoke", "dan"]).is_err(), "bob is no admin");
        let pings = Pings::start(&laptops[1], nodes[2].ipv4(), 20)?;
        // Redemptions are witnessed and records kept on disk within a few seconds.
        wait_for("ada knows dan", MEET, || Ok(laptops[0].meshd(&["invites"])?.contains("dan")))?;
        let begun = Instant::now();
        laptops[0].meshd(&["revoke", "dan", "--reason", "left the team"])?;
        for laptop in &laptops[..3] {
            wait_for("dan is out", EXPELLED, || Ok(!lists(laptop, "dan")?))?;
        }
        ensure!(!answers(&laptops[1], &nodes[3]), "bob still reaches dan");
        figure(&format!("expelled everywhere after {:.2} s", begun.elapsed().as_secs_f64()));
        ensure!(begun.elapsed() < EXPELLED + Duration::from_secs(1), "{:?}", begun.elapsed());
        wait_for("dan stops", MEET, || nodes[3].is_running().map(|running| !running))?;
        let log = nodes[3].log_tail();
        ensure!(log.contains("no member of network party any more") && log.contains("left the team"), "{log}");
        ensure!(laptops[0].meshd(&["lookup", "dan"]).is_err(), "the directory still knows dan");

        // Dan makes his machine forget, keeps key, certificate and secret, and moves to another address.
        fs::remove_file(laptops[3].dir.join("state/party/ledger"))?;
        laptops[3].run("ip addr flush dev eth0 scope global")?;
        laptops[3].run(&format!("ip addr add {}/24 dev eth0", another_address(&laptops[3])))?;
        let told = Capture::start(&laptops[3], "eth0", "(udp or tcp) and dst port 4747 and not multicast")?;
        let node = laptops[3].up()?;
        thread::sleep(Duration::from_secs(6));
        let status = laptops[3].ask(&["status"])?;
        ensure!(status["connected"] == 0, "dan has sessions again: {status}");
        drop(node);
        let told = told.stop()?;
        let from_others =
            |line: &&String| laptops[..3].iter().any(|other| line.contains(&format!("IP {}.", other.underlay)));
        let answers_to_udp = told.iter().filter(from_others).filter(|line| line.contains("UDP")).count();
        ensure!(answers_to_udp == 0, "dan was answered: {told:#?}");

        // The same laptop with a new invite and a new key is as good as any other.
        fs::remove_dir_all(laptops[3].dir.join("state"))?;
        laptops[3].join(&laptops[0].invite(&[])?)?;
        let node = laptops[3].up()?;
        node.wait_connected(3, MEET)?;
        let loss = pings.stop()?;
        ensure!(loss.lost == 0, "bob to cyd meanwhile: {loss:?}");
        Ok(())
    });
}

/// In the same network, and nobody's.
fn another_address(laptop: &Laptop) -> String {
    let [a, b, c, d] = laptop.underlay.octets();
    format!("{a}.{b}.{c}.{}", d + 100)
}

#[test]
fn a_revocation_in_one_half_of_a_cut_network_holds_everywhere_when_it_heals() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob", "cyd", "dan"], &[])?;
        wait_for("ada knows dan", MEET, || Ok(laptops[0].meshd(&["invites"])?.contains("dan")))?;
        cut(&[&laptops[0], &laptops[1]], &[&laptops[2], &laptops[3]])?;
        wait_for("the halves have parted", Duration::from_secs(60), || {
            Ok(laptops[0].ask(&["status"])?["connected"] == 1 && laptops[2].ask(&["status"])?["connected"] == 1)
        })?;
        laptops[0].meshd(&["revoke", "dan"])?;
        thread::sleep(Duration::from_secs(2));
        ensure!(answers(&laptops[2], &nodes[3]), "cyd cannot know yet");
        let all: Vec<_> = laptops.iter().collect();
        heal(&all)?;
        wait_for(
            "cyd meets the others",
            Duration::from_secs(75),
            || Ok(laptops[2].ask(&["status"])?["expelled"] == 1),
        )?;
        let begun = Instant::now();
        for laptop in &laptops[..3] {
            wait_for("dan is out", EXPELLED_AFTER_HEALING, || Ok(!lists(laptop, "dan")?))?;
        }
        ensure!(!answers(&laptops[2], &nodes[3]), "cyd still reaches dan");
        figure(&format!("after the first news: out everywhere after {:.2} s", begun.elapsed().as_secs_f64()));
        // A power cut: what was heard is on disk.
        for node in &mut nodes[..3] {
            node.kill9()?;
        }
        let _ = nodes[3].kill9();
        fs::remove_file(laptops[3].dir.join("state/party/ledger"))
            .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        let nodes = laptops.iter().map(Laptop::up).collect::<Result<Vec<_>>>()?;
        for node in &nodes[..3] {
            node.wait_connected(2, MEET)?;
        }
        thread::sleep(Duration::from_secs(2));
        ensure!(laptops[3].ask(&["status"])?["connected"] == 0, "dan is back after a power cut");
        Ok(())
    });
}

#[test]
fn invites_are_used_up_withdrawn_and_made_by_an_admin_while_everybody_else_is_off() {
    in_lab(|lab| {
        let [ada, bob, cyd, dan, eve] = lab.laptops(["ada", "bob", "cyd", "dan", "eve"])?;
        ada.found("party")?;
        // Ada makes an admin and is gone for ever.
        bob.join(&ada.invite(&["--role", "admin", "--name", "boss"])?)?;
        let once = bob.invite(&["--name", "once"])?;
        let open = bob.invite(&["--name", "open", "--uses", "0"])?;
        ensure!(bob.meshd(&["invite", "--role", "admin"]).is_err(), "only the founder makes admins");
        cyd.join(&once)?;
        dan.join(&once)?;
        let nodes = [bob.up()?, cyd.up()?];
        for node in &nodes {
            node.wait_connected(1, MEET)?;
        }
        wait_for("bob has witnessed it", MEET, || {
            let list = bob.ask(&["invites"])?;
            let once = list.as_array().context("a list")?.iter().find(|invite| invite["name"] == "once").cloned();
            Ok(once.is_some_and(|once| once["state"] == "used" && once["members"] == serde_json::json!(["cyd"])))
        })?;
        let late = dan.up()?;
        thread::sleep(Duration::from_secs(5));
        ensure!(dan.ask(&["status"])?["connected"] == 0, "dan got in by an invite for one");
        drop(late);

        bob.meshd(&["invites", "--withdraw", "open"])?;
        eve.join(&open)?;
        let late = eve.up()?;
        thread::sleep(Duration::from_secs(5));
        ensure!(eve.ask(&["status"])?["connected"] == 0, "eve got in by a withdrawn invite");
        drop(late);
        fs::remove_dir_all(eve.dir.join("state"))?;
        eve.join(&bob.invite(&["--role", "relay"])?)?;
        let third = eve.up()?;
        third.wait_connected(2, MEET)?;
        let roles = cyd.ask(&["peers"])?;
        let eve_there = roles["peers"].as_array().context("peers")?.iter().find(|peer| peer["name"] == "eve").cloned();
        ensure!(eve_there.is_some_and(|eve| eve["roles"] == serde_json::json!(["relay"])), "{roles}");
        Ok(())
    });
}

#[test]
fn two_admins_that_expel_each_other_while_cut_off_leave_the_older_one() {
    in_lab(|lab| {
        let [ada, bob, cyd, dan] = lab.laptops(["ada", "bob", "cyd", "dan"])?;
        let invite = ada.found("party")?;
        let older = ada.invite(&["--role", "admin"])?;
        // Dates are in seconds.
        thread::sleep(Duration::from_millis(1100));
        bob.join(&ada.invite(&["--role", "admin"])?)?;
        cyd.join(&older)?;
        dan.join(&invite)?;
        let laptops = [&ada, &bob, &cyd, &dan];
        let mut nodes = laptops.iter().map(|laptop| laptop.up()).collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.wait_connected(3, MEET)?;
        }
        thread::sleep(Duration::from_secs(4));
        cut(&[&ada, &cyd], &[&bob, &dan])?;
        wait_for("the halves have parted", Duration::from_secs(60), || {
            Ok(ada.ask(&["status"])?["connected"] == 1 && dan.ask(&["status"])?["connected"] == 1)
        })?;
        cyd.meshd(&["revoke", "bob"])?;
        let refused = bob.meshd(&["revoke", "cyd"]);
        let told = format!("{refused:?}");
        ensure!(refused.is_err() && told.contains("longer standing"), "bob may not: {told}");
        heal(&laptops)?;
        wait_for("bob stops", Duration::from_secs(90), || nodes[1].is_running().map(|running| !running))?;
        for laptop in [&ada, &cyd, &dan] {
            wait_for("bob is out", EXPELLED_AFTER_HEALING, || Ok(!lists(laptop, "bob")?))?;
        }
        for node in [&nodes[0], &nodes[2], &nodes[3]] {
            node.wait_connected(2, Duration::from_secs(75))?;
        }
        Ok(())
    });
}

/// The newest secret that a laptop has on disk.
fn newest_secret(laptop: &Laptop) -> Option<Vec<u8>> {
    let secrets = fs::read(laptop.dir.join("state/party/secrets")).ok()?;
    secrets.get(1..33).map(<[u8]>::to_vec)
}

#[test]
fn the_network_gets_a_new_secret_and_who_was_away_or_has_an_old_invite_is_told_it() {
    in_lab(|lab| {
        let (laptops, mut nodes, _) = party(lab, ["ada", "bob", "cyd", "dan"], &[])?;
        wait_for("ada knows dan", MEET, || Ok(laptops[0].meshd(&["invites"])?.contains("dan")))?;
        let old = laptops[0].invite(&[])?;
        nodes[2].terminate()?;
        laptops[0].meshd(&["revoke", "dan"])?;
        wait_for("bob has the new secret", MEET, || {
            Ok(newest_secret(&laptops[1]).is_some_and(|secret| Some(secret) == newest_secret(&laptops[0])))
        })?;
        nodes[2] = laptops[2].up()?;
        let begun = Instant::now();
        nodes[2].wait_connected(2, MEET)?;
        wait_for("cyd has it too", MEET, || Ok(newest_secret(&laptops[2]) == newest_secret(&laptops[0])))?;
        figure(&format!("who was away is back and told after {:.2} s", begun.elapsed().as_secs_f64()));
        for laptop in &laptops[..3] {
            wait_for("the control network is whole", Duration::from_secs(30), || {
                Ok(laptop.ask(&["status"])?["directory_connections"].as_u64() >= Some(2))
            })?;
        }
        // A power cut.
        for node in &mut nodes[..3] {
            node.kill9()?;
        }
        let nodes = laptops[..3].iter().map(Laptop::up).collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.wait_connected(2, MEET)?;
        }
        // The invite has the old secret, and says where ada is.
        let eve = lab.laptop("eve")?;
        eve.join(&old)?;
        let _eve = eve.up()?;
        nodes[0].wait_connected(3, MEET)?;
        wait_for("eve has it too", MEET, || Ok(newest_secret(&eve) == newest_secret(&laptops[0])))?;
        Ok(())
    });
}
