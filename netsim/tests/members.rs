//! Who is a member and who is none any more, without anybody in charge: revocations, invites used too often or withdrawn,
//! admins at odds. Partitions heal to one mind, whoever heard what first.

use std::time::Duration;

use meshd::dht::Statement;
use meshd::dht::statement::Fact;
use meshd::identity::{Chain, NetworkSecret, Roles};
use meshd::node::{Command, Reply};
use meshd::wire::DropReason;
use netsim::link::Conditions;
use netsim::network::{Ticket, UNIX_START};
use netsim::oracle::sends;
use netsim::{HostId, Seed, SegmentId, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Has `host` take in a statement, as its operator does.
fn declare(world: &mut World, host: HostId, statement: &Statement) {
    let statement = statement.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let reply = world.ask(host, Command::State { statement });
    assert_eq!(reply, Reply::Stated { news: true });
}

fn revoked(world: &World, host: HostId) -> Fact {
    Fact::Revoked { target: world.host(host).peer, reason: "left".to_owned() }
}

/// The founder expels `target`, at `host`.
fn expel(world: &mut World, host: HostId, target: HostId) {
    let statement = world.home().says(revoked(world, target), world.unix_now());
    declare(world, host, &statement);
}

/// A laptop that became a member by `ticket`, at the beginning.
fn invited(world: &mut World, name: &str, ticket: &Ticket, segment: SegmentId) -> HostId {
    let home = world.home().clone();
    let host = world.add_host(name, &home, &[segment]);
    let (peer, name) = (world.host(host).peer, world.host(host).name.clone());
    world.host_mut(host).config.chain = ticket.redeem(peer, &name, UNIX_START - 60);
    host
}

/// What an admin says.
fn says(world: &World, admin: HostId, fact: Fact) -> Statement {
    let config = &world.host(admin).config;
    Statement::sign(&config.key, &config.network.id(), config.chain.clone(), fact, world.unix_now()).expect("an admin")
}

/// Whether nobody of `hosts` sends to `outcast`, and all of them still do to each other.
fn is_out(world: &World, hosts: &[HostId], outcast: HostId) -> bool {
    hosts.iter().all(|host| !sends(world, *host, outcast) && are_in(world, *host, hosts))
}

fn are_in(world: &World, host: HostId, others: &[HostId]) -> bool {
    others.iter().all(|other| *other == host || sends(world, host, *other))
}

#[test]
fn who_is_expelled_is_lost_by_everybody_at_once_and_hears_nothing_more() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(5000 + seed));
        let (_, hosts) = world.lan(5);
        world.settle_within(3 * SECOND);
        let (others, outcast) = (&hosts[..4], hosts[4]);
        let pings = world.ping_all(others, 50 * MS, 120 * SECOND);
        expel(&mut world, hosts[0], outcast);
        let took = world.wait_for(2 * SECOND, |world| is_out(world, others, outcast));
        assert!(took.is_some(), "somebody still has a session with the expelled member");
        let told = world.wait_for(2 * SECOND, |world| world.host(outcast).expelled);
        assert!(told.is_some(), "it was not told why");
        // It does not obey: it comes back with its key, at another time, and with what it knew.
        world.run_for(5 * SECOND);
        world.stop(outcast, false);
        world.captured = Some(Vec::new());
        world.start(outcast);
        world.run_for(60 * SECOND);
        assert!(is_out(&world, others, outcast));
        let told = world.topology.addresses(outcast);
        let captured = world.captured.take().expect("a capture runs");
        let answers = captured.iter().filter(|sent| sent.from != outcast && told.contains(&sent.endpoint.ip()));
        assert_eq!(answers.count(), 0, "an expelled member was spoken to");
        assert!(world.dropped(hosts[0], DropReason::MembershipRevoked) > 0, "{}", world.drops());
        for &other in others {
            assert_eq!(world.peers(other).len(), 3, "it is in the list of members");
        }
        world.run_for(60 * SECOND);
        for ping in pings {
            let conversation = world.conversation(ping);
            assert_eq!(conversation.answered, conversation.sent, "honest pings were lost");
        }
    }
}

#[test]
fn whoever_was_cut_off_expels_within_five_seconds_of_healing() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(5100 + seed));
        let (lan, hosts) = world.lan(6);
        world.settle_within(3 * SECOND);
        // The outcast is on the island that does not hear of it.
        world.partition(lan, &[&hosts[..3], &hosts[3..]]);
        world.run_for(60 * SECOND);
        expel(&mut world, hosts[0], hosts[5]);
        world.run_for(120 * SECOND);
        assert!(sends(&world, hosts[3], hosts[5]), "nobody there can know");
        world.partition(lan, &[]);
        let met =
            world.wait_for(120 * SECOND, |world| sends(world, hosts[3], hosts[0]) || sends(world, hosts[4], hosts[0]));
        assert!(met.is_some(), "the islands have not met");
        let took = world.wait_for(5 * SECOND, |world| hosts[..5].iter().all(|host| !sends(world, *host, hosts[5])));
        assert!(took.is_some(), "somebody still has a session with the expelled member");
        let whole = world.wait_for(120 * SECOND, |world| is_out(world, &hosts[..5], hosts[5]));
        assert!(whole.is_some(), "not everybody else is back");
    }
}

#[test]
fn a_restart_of_everything_forgets_no_revocation() {
    let mut world = World::new(Seed::or(5200));
    let (_, hosts) = world.lan(4);
    world.settle_within(3 * SECOND);
    expel(&mut world, hosts[0], hosts[3]);
    world.run_for(2 * SECOND);
    for &host in &hosts {
        world.stop(host, false);
    }
    world.run_for(3600 * SECOND);
    world.wipe(hosts[3]);
    for &host in &hosts {
        world.start(host);
    }
    world.run_for(30 * SECOND);
    assert!(is_out(&world, &hosts[..3], hosts[3]));
}

#[test]
fn who_slept_through_a_revocation_hears_of_it_with_its_first_session() {
    let mut world = World::new(Seed::or(5300));
    let (_, hosts) = world.lan(4);
    world.settle_within(3 * SECOND);
    world.run_for(5 * SECOND);
    world.stop(hosts[2], false);
    expel(&mut world, hosts[0], hosts[3]);
    world.run_for(600 * SECOND);
    world.start(hosts[2]);
    let took = world.wait_for(10 * SECOND, |world| are_in(world, hosts[2], &hosts[..2]));
    assert!(took.is_some(), "it is not back");
    world.run_for(2 * SECOND);
    assert!(is_out(&world, &hosts[..3], hosts[3]));
}

#[test]
fn of_two_admins_that_expel_each_other_the_younger_is_out_on_all_nodes() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(5400 + seed));
        let (lan, mut hosts) = world.lan(4);
        let older = world.home().invite(201, Roles::ALL, 1, UNIX_START - 86_400);
        let younger = world.home().invite(202, Roles::ALL, 1, UNIX_START - 3600);
        let (ada, bob) = (invited(&mut world, "ada", &older, lan), invited(&mut world, "bob", &younger, lan));
        hosts.extend([ada, bob]);
        for admin in [ada, bob] {
            world.start(admin);
        }
        world.settle_within(5 * SECOND);
        world.run_for(10 * SECOND);
        let (here, there) = ([hosts[0], hosts[1], ada], [hosts[2], hosts[3], bob]);
        world.partition(lan, &[&here, &there]);
        world.run_for(60 * SECOND);
        let (one, two) = (says(&world, ada, revoked(&world, bob)), says(&world, bob, revoked(&world, ada)));
        declare(&mut world, ada, &one);
        declare(&mut world, bob, &two);
        world.run_for(60 * SECOND);
        world.partition(lan, &[]);
        let rest = [hosts[0], hosts[1], hosts[2], hosts[3], ada];
        let took = world.wait_for(180 * SECOND, |world| is_out(world, &rest, bob));
        assert!(took.is_some(), "the younger is not out, or the older is");
        // It waits a moment before it believes it.
        world.run_for(3 * SECOND);
        assert!(world.host(bob).expelled && !world.host(ada).expelled);
    }
}

#[test]
fn where_it_takes_two_admins_one_expels_nobody_and_the_second_from_another_island_does() {
    for seed in 0..5 {
        let mut world = World::new(Seed::or(5350 + seed));
        let (lan, founders) = world.lan(1);
        let join = |world: &mut World, n: u8, roles: Roles| {
            let ticket = world.home().invite(100 + n, roles.with_quorum(2), 1, UNIX_START - 1000 + u64::from(n));
            invited(world, &format!("host-{n}"), &ticket, lan)
        };
        let admins = [1, 2].map(|n| join(&mut world, n, Roles::ADMIN));
        let (member, outcast) = (join(&mut world, 3, Roles::NONE), join(&mut world, 4, Roles::NONE));
        let all = [founders[0], admins[0], admins[1], member, outcast];
        all[1..].iter().for_each(|host| world.start(*host));
        world.settle_within(5 * SECOND);
        world.partition(lan, &[&[all[0], all[1]], &all[2..]]);
        world.run_for(60 * SECOND);
        let one = says(&world, admins[0], revoked(&world, outcast));
        declare(&mut world, admins[0], &one);
        world.partition(lan, &[]);
        world.settle_within(120 * SECOND);
        world.run_for(60 * SECOND);
        assert!(are_in(&world, outcast, &all), "seed {seed}: one admin is not enough");
        world.partition(lan, &[&[all[0], all[1]], &all[2..]]);
        world.run_for(60 * SECOND);
        let two = says(&world, admins[1], revoked(&world, outcast));
        declare(&mut world, admins[1], &two);
        let took = world.wait_for(2 * SECOND, |world| is_out(world, &all[2..4], outcast));
        assert!(took.is_some(), "seed {seed}: where the second voice was heard");
        world.partition(lan, &[]);
        world.run_for(120 * SECOND);
        assert!(is_out(&world, &all[..4], outcast), "seed {seed}");
        // Neither could know that it was the last: an admin's node draws the secret.
        let newest = |host: HostId| world.host(host).secrets.first().map(NetworkSecret::fingerprint);
        let drawn = newest(all[0]);
        assert!(drawn.is_some() && all[..4].iter().all(|host| newest(*host) == drawn), "seed {seed}: one new secret");
        assert_eq!(newest(outcast), None, "seed {seed}");
    }
}

#[test]
fn whom_an_expelled_admin_invited_falls_with_it_unless_kept() {
    let mut world = World::new(Seed::or(5500));
    let (lan, mut hosts) = world.lan(3);
    let ticket = world.home().invite(201, Roles::ALL, 1, UNIX_START - 86_400);
    let admin = invited(&mut world, "admin", &ticket, lan);
    let config = world.host(admin).config.clone();
    let tickets =
        [211, 212].map(|seed| Ticket::by(&config.key, &config.chain, seed, Roles::NONE, 1, UNIX_START - 3600));
    let kept = invited(&mut world, "kept", &tickets[0], lan);
    let fallen = invited(&mut world, "fallen", &tickets[1], lan);
    for host in [admin, kept, fallen] {
        world.start(host);
    }
    world.settle_within(5 * SECOND);
    let keep = world.home().says(Fact::Kept { subject: world.host(kept).peer }, world.unix_now());
    declare(&mut world, hosts[1], &keep);
    expel(&mut world, hosts[1], admin);
    world.run_for(2 * SECOND);
    hosts.push(kept);
    assert!(is_out(&world, &hosts, admin) && is_out(&world, &hosts, fallen));
    assert!(world.host(fallen).expelled && !world.host(kept).expelled);
}

/// Two islands of two, each with one who has used the same invite for one.
fn used_twice(seed: u64) -> (World, SegmentId, Vec<HostId>, [HostId; 2]) {
    let mut world = World::new(Seed::or(seed));
    let (lan, hosts) = world.lan(4);
    let ticket = world.home().invite(201, Roles::NONE, 1, UNIX_START - 3600);
    let newcomers = [invited(&mut world, "first", &ticket, lan), invited(&mut world, "second", &ticket, lan)];
    world.settle_within(3 * SECOND);
    let islands = [[hosts[0], hosts[1], newcomers[0]], [hosts[2], hosts[3], newcomers[1]]];
    world.partition(lan, &[&islands[0], &islands[1]]);
    world.run_for(60 * SECOND);
    (world, lan, hosts, newcomers)
}

#[test]
fn an_invite_for_one_that_two_used_on_two_islands_leaves_whoever_was_met_first() {
    for seed in 0..5 {
        let (mut world, lan, hosts, [first, second]) = used_twice(5600 + seed);
        world.start(second);
        world.run_for(20 * SECOND);
        world.start(first);
        world.run_for(20 * SECOND);
        assert!(
            are_in(&world, first, &hosts[..2]) && are_in(&world, second, &hosts[2..]),
            "each is let in where it is"
        );
        world.partition(lan, &[]);
        let stayed = [&hosts[..], &[second]].concat();
        let took = world.wait_for(180 * SECOND, |world| is_out(world, &stayed, first));
        assert!(took.is_some(), "not of one mind");
        // It waits a moment before it believes it.
        world.run_for(3 * SECOND);
        assert!(world.host(first).expelled && !world.host(second).expelled);
    }
}

#[test]
fn whoever_comes_second_with_an_invite_for_one_is_not_let_in() {
    let mut world = World::new(Seed::or(5700));
    let (lan, mut hosts) = world.lan(3);
    let ticket = world.home().invite(201, Roles::NONE, 1, UNIX_START - 3600);
    let (first, second) = (invited(&mut world, "first", &ticket, lan), invited(&mut world, "second", &ticket, lan));
    world.start(first);
    world.settle_within(3 * SECOND);
    world.run_for(10 * SECOND);
    world.start(second);
    world.run_for(60 * SECOND);
    hosts.push(first);
    assert!(is_out(&world, &hosts, second));
    assert!(world.dropped(hosts[0], DropReason::MembershipRevoked) > 0, "{}", world.drops());
}

#[test]
fn a_withdrawn_invite_lets_nobody_in_and_nobody_out() {
    let mut world = World::new(Seed::or(5800));
    let (lan, mut hosts) = world.lan(3);
    let ticket = world.home().invite(201, Roles::NONE, 0, UNIX_START - 3600);
    let (early, late) = (invited(&mut world, "early", &ticket, lan), invited(&mut world, "late", &ticket, lan));
    world.start(early);
    world.settle_within(3 * SECOND);
    world.run_for(10 * SECOND);
    let withdrawn = world.home().says(Fact::Withdrawn { invite: ticket.key() }, world.unix_now());
    declare(&mut world, hosts[2], &withdrawn);
    world.start(late);
    world.run_for(60 * SECOND);
    hosts.push(early);
    assert!(is_out(&world, &hosts, late));
}

#[test]
fn no_member_expels_another() {
    let mut world = World::new(Seed::or(5900));
    let (_, hosts) = world.lan(3);
    world.settle_within(3 * SECOND);
    let config = world.host(hosts[2]).config.clone();
    let forged = |chain: Chain| {
        let fact = revoked(&world, hosts[0]);
        Statement::sign(&config.key, &config.network.id(), chain, fact, world.unix_now())
    };
    assert!(forged(config.chain.clone()).is_err(), "it is no admin");
    assert!(forged(Chain { root: config.network.root, links: Vec::new() }).is_err(), "it has not the founder's key");
}

/// The founder expels `target` at `host`, and gives the network its `number`-th new secret.
fn expel_and_rotate(world: &mut World, host: HostId, target: HostId, number: u32) {
    let revocation = world.home().says(revoked(world, target), world.unix_now());
    declare(world, host, &revocation);
    rotate(world, host, target, number, number as u8);
}

fn rotate(world: &mut World, host: HostId, after: HostId, number: u32, secret: u8) {
    let after = world.host(after).peer;
    let (secret, epoch) = world.home().epoch([secret; 32], number, after, world.unix_now());
    let statement = epoch.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(world.ask(host, Command::Epoch { statement, secret }), Reply::Stated { news: true });
}

/// Whether all of `hosts` are in one control network, and nobody else is in it.
fn share_control(world: &World, hosts: &[HostId]) -> bool {
    hosts.iter().all(|host| world.directory.connections(*host) == hosts.len() - 1)
}

#[test]
fn who_is_expelled_does_not_even_see_the_control_network_any_more() {
    for seed in 0..3 {
        let mut world = World::new(Seed::or(6000 + seed));
        let (_, hosts) = world.lan(5);
        world.settle_within(3 * SECOND);
        let (others, outcast) = (&hosts[..4], hosts[4]);
        let pings = world.ping_all(others, 50 * MS, 300 * SECOND);
        expel_and_rotate(&mut world, hosts[0], outcast, 1);
        let took = world.wait_for(20 * SECOND, |world| share_control(world, others));
        assert!(took.is_some(), "the others are not in one control network");
        // Until what is under way has arrived.
        world.run_for(2 * SECOND);
        world.stop(outcast, false);
        world.wipe(outcast);
        world.captured = Some(Vec::new());
        world.start(outcast);
        world.run_for(200 * SECOND);
        assert!(is_out(&world, others, outcast) && share_control(&world, others));
        assert_eq!(world.directory.connections(outcast), 0);
        let told = world.topology.addresses(outcast);
        let captured = world.captured.take().expect("a capture runs");
        let spoken = captured.iter().filter(|sent| sent.from != outcast && told.contains(&sent.endpoint.ip()));
        let spoken: Vec<_> = spoken.map(|sent| (sent.bytes[0], sent.bytes.len(), sent.at)).collect();
        assert_eq!(spoken, [], "an expelled member was spoken to");
        world.run_for(100 * SECOND);
        for ping in pings {
            let conversation = world.conversation(ping);
            assert_eq!(conversation.answered, conversation.sent, "honest pings were lost");
        }
    }
}

#[test]
fn who_was_away_while_the_secret_changed_twice_comes_back_by_itself() {
    for seed in 0..3 {
        let mut world = World::new(Seed::or(6100 + seed));
        let (_, hosts) = world.lan(6);
        world.settle_within(3 * SECOND);
        world.run_for(10 * SECOND);
        world.stop(hosts[3], true);
        expel_and_rotate(&mut world, hosts[0], hosts[4], 1);
        world.run_for(3600 * SECOND);
        expel_and_rotate(&mut world, hosts[1], hosts[5], 2);
        world.run_for(5 * 3600 * SECOND);
        world.start(hosts[3]);
        let took = world.wait_for(30 * SECOND, |world| are_in(world, hosts[3], &hosts[..3]));
        assert!(took.is_some(), "it is not back");
        let took = world.wait_for(60 * SECOND, |world| share_control(world, &hosts[..4]));
        assert!(took.is_some(), "it is not in the control network");
    }
}

/// A new secret is told by single datagrams: one that is lost must not keep anybody out until the next handshake.
#[test]
fn who_was_away_hears_of_a_new_secret_over_a_path_that_loses_a_third() {
    for seed in 0..10 {
        let mut world = World::new(Seed::or(6150 + seed));
        let (lan, hosts) = world.lan(4);
        world.settle_within(3 * SECOND);
        world.run_for(10 * SECOND);
        world.stop(hosts[2], true);
        expel_and_rotate(&mut world, hosts[0], hosts[3], 1);
        world.run_for(10 * SECOND);
        world.topology.set_conditions(lan, Conditions::LAN.losing(33));
        world.start(hosts[2]);
        let took = world.wait_for(40 * SECOND, |world| share_control(world, &hosts[..3]));
        assert!(took.is_some(), "seed {seed}: it has not heard");
    }
}

#[test]
fn everything_restarted_at_once_after_a_new_secret_meets_again() {
    let mut world = World::new(Seed::or(6200));
    let (_, hosts) = world.lan(5);
    world.settle_within(3 * SECOND);
    expel_and_rotate(&mut world, hosts[0], hosts[4], 1);
    world.run_for(10 * SECOND);
    for &host in &hosts {
        world.stop(host, false);
    }
    world.run_for(3600 * SECOND);
    for &host in &hosts[..4] {
        world.start(host);
    }
    let took =
        world.wait_for(10 * SECOND, |world| share_control(world, &hosts[..4]) && are_in(world, hosts[0], &hosts[..4]));
    assert!(took.is_some(), "they have not met");
}

#[test]
fn an_invite_from_before_the_secret_changed_lets_in_still() {
    let mut world = World::new(Seed::or(6300));
    let (lan, hosts) = world.lan(4);
    world.settle_within(3 * SECOND);
    let ticket = world.home().invite(201, Roles::NONE, 1, UNIX_START - 3600);
    let newcomer = invited(&mut world, "newcomer", &ticket, lan);
    expel_and_rotate(&mut world, hosts[0], hosts[3], 1);
    world.run_for(60 * SECOND);
    world.introduce(newcomer, &hosts[..1]);
    world.start(newcomer);
    let all = [hosts[0], hosts[1], hosts[2], newcomer];
    let took = world.wait_for(30 * SECOND, |world| share_control(world, &all) && are_in(world, newcomer, &all));
    assert!(took.is_some(), "it did not get in, or was not told the new secret");
}

#[test]
fn two_new_secrets_on_two_islands_become_one() {
    for seed in 0..3 {
        let mut world = World::new(Seed::or(6400 + seed));
        let (lan, hosts) = world.lan(6);
        world.settle_within(3 * SECOND);
        world.partition(lan, &[&[hosts[0], hosts[1], hosts[4]], &[hosts[2], hosts[3], hosts[5]]]);
        world.run_for(60 * SECOND);
        let now = world.unix_now();
        for (host, target, secret) in [(hosts[0], hosts[4], 11), (hosts[2], hosts[5], 12)] {
            let revocation = world.home().says(revoked(&world, target), now);
            declare(&mut world, host, &revocation);
            rotate(&mut world, host, target, 1, secret);
        }
        world.run_for(60 * SECOND);
        world.partition(lan, &[]);
        let took = world.wait_for(240 * SECOND, |world| {
            share_control(world, &hosts[..4]) && hosts[..4].iter().all(|host| are_in(world, *host, &hosts[..4]))
        });
        assert!(took.is_some(), "they are not of one mind");
    }
}
