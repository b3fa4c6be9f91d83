//! Members behind boxes, for real: all are shards of the directory (see `netsim::netns::village`).

use std::time::Duration;

use netsim::netns::trial::in_lab;
use netsim::netns::village::{self, Options};

#[test]
fn twelve_members_behind_boxes_but_one_find_each_other_and_survive_it_if_one_box_maps_ports() {
    in_lab(|lab| village::run(lab, Options { members: 12, rest: Duration::ZERO, only_rest: false }));
}
