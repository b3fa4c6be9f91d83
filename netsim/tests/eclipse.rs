//! Members that collude hide next to nothing: a tenth of a thousand, whatever they do when they are asked.

use netsim::Seed;
use netsim::eclipse::{Conduct, Eclipse, Measured, OURS, PLAIN, Setup};
use netsim::kademlia::Parameters;

/// A thousand members, a hundred of whom collude.
fn measure(conduct: Conduct, parameters: Parameters, seed: u64) -> Measured {
    let setup = Setup { members: 1000, colluders: 100, conduct, parameters, records: 100, seekers: 5 };
    let measured = Eclipse::by_chance(setup, Seed::or(seed)).measure();
    assert!(measured.keys == 400 && measured.lookups == 2000);
    measured
}

fn hide_less_than_one_in_a_hundred(conduct: Conduct, seed: u64) {
    let measured = measure(conduct, OURS, seed);
    assert!(100 * measured.hidden < measured.lookups, "{conduct:?}, NETSIM_SEED={seed}: {measured:?}");
}

#[test]
fn a_tenth_of_the_members_that_name_each_other_hide_less_than_one_record_in_a_hundred() {
    hide_less_than_one_in_a_hundred(Conduct::NameEachOther, 11);
}

#[test]
fn a_tenth_of_the_members_that_say_nothing_hide_less_than_one_record_in_a_hundred() {
    hide_less_than_one_in_a_hundred(Conduct::SayNothing, 12);
}

#[test]
fn a_tenth_of_the_members_that_make_up_members_hide_less_than_one_record_in_a_hundred() {
    hide_less_than_one_in_a_hundred(Conduct::MakeUpMembers, 13);
}

#[test]
fn one_path_and_places_for_who_comes_first_would_lose_a_quarter() {
    let measured = measure(Conduct::NameEachOther, PLAIN, 11);
    assert!(4 * measured.hidden > measured.lookups, "{measured:?}");
}

#[test]
fn among_honest_members_everything_is_found_and_one_seed_gives_one_result() {
    let conduct = Conduct::SayNothing;
    let setup = Setup { members: 200, colluders: 0, conduct, parameters: OURS, records: 50, seekers: 5 };
    let run = |seed| Eclipse::by_chance(setup, Seed(seed)).measure();
    let measured = run(1);
    assert_eq!((measured.hidden, measured.taken), (0, 0));
    assert!(measured.copies >= 18 * measured.keys, "{measured:?}");
    assert_eq!(measured, run(1));
    assert_ne!(measured, run(2));
}
