//! The matrix of boxes with the kernel's NATs and the real binary: one pair for each way that a path is found. All pairs: `make matrix`.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`).

use anyhow::{Result, ensure};
use netsim::kinds::kind;
use netsim::netns::Lab;
use netsim::netns::matrix::{Outcome, hold, pair};
use netsim::netns::trial::{figure, in_lab};

fn meet(lab: &mut Lab, a: &str, b: &str) -> Result<Outcome> {
    let outcome = pair(lab, [kind(a), kind(b)], None)?;
    figure(&outcome.to_json().to_string());
    hold(&outcome)?;
    Ok(outcome)
}

#[test]
fn a_port_that_is_not_preserved_is_told_by_who_sees_it() {
    in_lab(|lab| meet(lab, "not-preserving", "careless-linux").map(drop));
}

#[test]
fn who_can_be_reached_is_reached_from_behind_a_symmetric_box() {
    in_lab(|lab| meet(lab, "full-cone", "symmetric-random").map(drop));
}

#[test]
fn who_knows_the_address_may_come_from_any_port() {
    in_lab(|lab| meet(lab, "address-restricted", "symmetric-sequential").map(drop));
}

#[test]
fn two_boxes_in_a_row_are_opened_like_one() {
    in_lab(|lab| meet(lab, "carrier", "port-restricted").map(drop));
}

#[test]
fn the_next_port_is_foreseen() {
    in_lab(|lab| meet(lab, "port-restricted", "symmetric-sequential").map(drop));
}

#[test]
fn both_foresee_the_next_ports() {
    in_lab(|lab| meet(lab, "symmetric-sequential", "symmetric-sequential").map(drop));
}

#[test]
fn a_port_by_chance_is_found_by_a_birthday() {
    in_lab(|lab| meet(lab, "port-restricted", "symmetric-random").map(drop));
}

#[test]
fn a_port_by_chance_behind_two_boxes_is_found_by_a_birthday() {
    in_lab(|lab| meet(lab, "careless-linux", "symmetric-carrier").map(drop));
}

#[test]
fn two_firewalls_of_ipv6_are_opened_from_inside() {
    in_lab(|lab| meet(lab, "ipv6-only", "symmetric-dual-stack").map(drop));
}

#[test]
fn a_port_by_chance_is_no_matter_where_both_have_ipv6() {
    in_lab(|lab| meet(lab, "symmetric-dual-stack", "symmetric-dual-stack").map(drop));
}

#[test]
fn who_has_only_ipv6_and_who_has_only_ipv4_are_left_to_a_relay_that_has_both_and_know_why() {
    in_lab(|lab| {
        let outcome = meet(lab, "ipv6-only", "port-restricted")?;
        ensure!(outcome.reasons == ["relayed-no-candidates"; 2].map(str::to_owned), "{outcome:?}");
        Ok(())
    });
}

#[test]
fn who_has_no_udp_is_reached_by_tcp_to_a_relay() {
    in_lab(|lab| meet(lab, "udp-blocked", "careless-linux").map(drop));
}

#[test]
fn two_ports_by_chance_are_left_to_a_relay() {
    in_lab(|lab| meet(lab, "symmetric-random", "symmetric-random").map(drop));
}
