//! The matrix of boxes with the kernel's NATs and the real binary: one pair for each way that a path is found. All pairs: `make matrix`.
//!
//! Each test runs itself again in private namespaces (see `netsim::netns`).

use anyhow::Result;
use netsim::kinds::kind;
use netsim::netns::Lab;
use netsim::netns::matrix::{hold, pair};
use netsim::netns::trial::{figure, in_lab};

fn meet(lab: &mut Lab, a: &str, b: &str) -> Result<()> {
    let outcome = pair(lab, [kind(a), kind(b)], None)?;
    figure(&outcome.to_json().to_string());
    hold(&outcome)
}

#[test]
fn a_port_that_is_not_preserved_is_told_by_who_sees_it() {
    in_lab(|lab| meet(lab, "not-preserving", "careless-linux"));
}

#[test]
fn who_can_be_reached_is_reached_from_behind_a_symmetric_box() {
    in_lab(|lab| meet(lab, "full-cone", "symmetric-random"));
}

#[test]
fn who_knows_the_address_may_come_from_any_port() {
    in_lab(|lab| meet(lab, "address-restricted", "symmetric-sequential"));
}

#[test]
fn two_boxes_in_a_row_are_opened_like_one() {
    in_lab(|lab| meet(lab, "carrier", "port-restricted"));
}

#[test]
fn the_next_port_is_foreseen() {
    in_lab(|lab| meet(lab, "port-restricted", "symmetric-sequential"));
}

#[test]
fn both_foresee_the_next_ports() {
    in_lab(|lab| meet(lab, "symmetric-sequential", "symmetric-sequential"));
}

#[test]
fn a_port_by_chance_is_found_by_a_birthday() {
    in_lab(|lab| meet(lab, "port-restricted", "symmetric-random"));
}

#[test]
fn a_port_by_chance_behind_two_boxes_is_found_by_a_birthday() {
    in_lab(|lab| meet(lab, "careless-linux", "symmetric-carrier"));
}

#[test]
fn two_ports_by_chance_are_left_to_a_relay() {
    in_lab(|lab| meet(lab, "symmetric-random", "symmetric-random"));
}
