//! Writes docs/eclipse.md and docs/eclipse.svg: what colluding members hide, from 5 to 50 % of a thousand. `make sim`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use netsim::Seed;
use netsim::eclipse::{Conduct, Eclipse, Measured, OURS, PLAIN, Setup};
use netsim::kademlia::Parameters;

const MEMBERS: usize = 1000;
const PERCENT: [usize; 6] = [5, 10, 20, 30, 40, 50];

/// One world for each figure: two differ by less than the width of a line, and `tests/eclipse.rs` has others.
const SEED: u64 = 1;

/// Colluders that have chosen their places, and worlds for each number of them: each has one victim.
const GROUND: [usize; 3] = [10, 20, 30];
const VICTIMS: [u64; 3] = [1, 2, 3];

/// Members that look for the one record.
const SEEKERS: usize = 200;

const BEFORE: &str = "\
# What colluding members can hide

Made by `make sim` (`netsim/examples/eclipse.rs`); do not edit. The world is `netsim/src/eclipse.rs`: a thousand members with real keys and
certificates' places, who join through three others, publish under their four keys and look each other up; only Kademlia counts. What gossip
has told a node, in a network of this size everything, is not looked up at all. A lookup is *hidden* if it finds nothing within its ten seconds.

Colluders keep no record, dial every newcomer at once for a place in its table, answer faster than anybody, and do one of three things
when they are asked. They cannot forge a record, nor be in two places: the place is that of the key in the certificate.

## Keys by chance

";

const BETWEEN: &str = "
![Hidden lookups by the share of colluding members](eclipse.svg)

Three rules make the difference to plain Kademlia (the last column: one path, places for who comes first):

- **The lot decides who has a place in a full bucket**, by a secret of each node (`src/dht/swarm/table.rs`). First come, first served, one
  colluder that is asked once while a table fills names twenty others, and they have all of the far buckets.
- **Eight disjoint paths** (S/Kademlia). Who names members that do not exist holds up its own path, for ten seconds each; on a single path
  that is the whole lookup.
- **A put goes to whoever its search has found, even if its time has ended** (`src/dht/swarm/records.rs`). Otherwise one path that waits
  keeps a record from being stored anywhere.

From 30 % on that no longer helps: most paths meet a colluder before they meet a copy.

Not modelled: members that come and go, losses, the limit on dials under way (128, which made-up members of several searches at once can fill), and
whatever gossip, sessions and mDNS add to a table. Honest contacts name members by lot, as the swarm does.

## Keys ground near one record

A certificate is for a key, but the newcomer makes the key. Who tries a few ten thousand before asking for invites has places nearer to *one*
key of *one* member than any honest member's. Lookups of that key that are hidden:

";

const AFTER: &str = "
Twenty such places, as many as there are copies, are not enough: other paths end at honest members just beside them, who have copies too. Thirty
hide the key from nearly half of those who look for it, and each that joins them from more. The owner is found by its other three
keys still, and by everybody whom gossip reaches; for all four it takes four times as many invites. What bounds it is who gives invites to whom: an
invite for *n* makes *n* members at most, and expelling who invited them expels all of them.
";

/// Measures one world, perhaps in several ways.
type Job = Box<dyn Fn() -> Vec<Measured> + Send + Sync>;

fn main() -> io::Result<()> {
    let by_chance = |percent: usize, conduct: Conduct, parameters: Parameters| -> Job {
        let colluders = MEMBERS * percent / 100;
        let setup = Setup { members: MEMBERS, colluders, conduct, parameters, records: 100, seekers: 5 };
        Box::new(move || vec![Eclipse::by_chance(setup, Seed(SEED)).measure()])
    };
    // Where so few collude, it matters little how they behaved while the others joined.
    let around_one = |colluders: usize, seed: u64| -> Job {
        let (parameters, conduct) = (OURS, Conduct::NameEachOther);
        let setup = Setup { members: MEMBERS, colluders, conduct, parameters, records: 1, seekers: SEEKERS };
        Box::new(move || {
            let mut world = Eclipse::around_one(setup, Seed(seed));
            Conduct::ALL.map(|conduct| world.measure_one(conduct)).to_vec()
        })
    };
    let mut jobs = Vec::new();
    for percent in PERCENT {
        for conduct in Conduct::ALL {
            jobs.push(by_chance(percent, conduct, OURS));
            jobs.push(by_chance(percent, conduct, PLAIN));
        }
    }
    for colluders in GROUND {
        jobs.extend(VICTIMS.map(|seed| around_one(colluders, seed)));
    }
    let mut results = run(&jobs).into_iter();
    let mut next = || results.next().expect("each job has its results");

    let mut chance = Vec::new();
    for percent in PERCENT {
        let (mut hidden, mut worst, mut all) = (Vec::new(), 0, Measured::default());
        for _ in Conduct::ALL {
            let measured = next()[0];
            hidden.push(measured.hidden_per_mille());
            all = all.and(measured);
            worst = worst.max(next()[0].hidden_per_mille());
        }
        hidden.push(worst);
        chance.push((percent, hidden, 100 * all.taken / all.places.max(1)));
    }
    let mut page = BEFORE.to_owned();
    let mut put = |line: String| writeln!(page, "{line}").expect("a String takes everything");
    put("| colluders | name each other | say nothing | make up members | have of all places | plain Kademlia, the worst |".into());
    put("|---|---|---|---|---|---|".into());
    for (percent, hidden, places) in &chance {
        let [each, none, made_up, plain] = [0, 1, 2, 3].map(|column: usize| share(hidden[column]));
        put(format!("| {percent} % | {each} | {none} | {made_up} | {places} % | {plain} |"));
    }
    page.push_str(BETWEEN);
    let mut put = |line: String| writeln!(page, "{line}").expect("a String takes everything");
    put("| colluders | name each other | say nothing | make up members |".into());
    put("|---|---|---|---|".into());
    for colluders in GROUND {
        let worlds = VICTIMS.map(|_| next());
        let of = |conduct: usize| worlds.iter().map(|world| world[conduct]).fold(Measured::default(), Measured::and);
        let [each, none, made_up] = [0, 1, 2].map(|conduct| share(of(conduct).hidden_per_mille()));
        put(format!("| {colluders} of {MEMBERS} | {each} | {none} | {made_up} |"));
    }
    page.push_str(AFTER);

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::write(docs.join("eclipse.md"), page)?;
    fs::write(docs.join("eclipse.svg"), draw(&chance))
}

/// Worlds share nothing, so they run side by side.
fn run(jobs: &[Job]) -> Vec<Vec<Measured>> {
    let (turn, results) = (AtomicUsize::new(0), Mutex::new(vec![Vec::new(); jobs.len()]));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = turn.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { return };
                    let measured = job();
                    results.lock().expect("no world panics while it holds this")[index] = measured;
                }
            });
        }
    });
    results.into_inner().expect("no world panics while it holds this")
}

fn share(per_mille: usize) -> String {
    format!("{}.{} %", per_mille / 10, per_mille % 10)
}

/// Pixels: of the picture, of the chart in it.
const WIDTH: usize = 760;
const HEIGHT: usize = 380;
const LEFT: usize = 60;
const TOP: usize = 48;
const ACROSS: usize = 480;
const DOWN: usize = 280;

const LINES: [(&str, &str); 4] = [
    ("they name each other", "#3b6fb6"),
    ("they say nothing", "#4d9a57"),
    ("they make up members", "#d9622b"),
    ("plain Kademlia, the worst", "#a9b4c2"),
];

/// The curves, by hand.
fn draw(rows: &[(usize, Vec<usize>, usize)]) -> String {
    let x = |percent: usize| LEFT + ACROSS * percent / 50;
    let y = |per_mille: usize| TOP + DOWN - DOWN * per_mille / 1000;
    let mut body = String::new();
    let mut put = |line: String| writeln!(body, "{line}").expect("a String takes everything");
    put(format!("<text x=\"16\" y=\"28\" class=\"title\">Lookups that find nothing, of {MEMBERS} members</text>"));
    for tenth in (0..=10).step_by(2) {
        let at = y(100 * tenth);
        put(format!("<path d=\"M{LEFT} {at}H{}\" stroke=\"#e4e8ee\"/>", LEFT + ACROSS));
        put(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} %</text>", LEFT - 8, at + 4, 10 * tenth));
    }
    for (percent, ..) in rows {
        put(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{percent} %</text>", x(*percent), TOP + DOWN + 20));
    }
    put(format!("<text x=\"{LEFT}\" y=\"{}\" class=\"value\">colluding members</text>", TOP + DOWN + 42));
    for (index, (name, colour)) in LINES.iter().enumerate() {
        let points: Vec<_> = rows.iter().map(|(percent, hidden, _)| (x(*percent), y(hidden[index]))).collect();
        let line: Vec<_> = points.iter().map(|(x, y)| format!("{x},{y}")).collect();
        put(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", line.join(" ")));
        for (x, y) in points {
            put(format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        let legend = TOP + 12 + 24 * index;
        put(format!("<path d=\"M{} {}h20\" stroke=\"{colour}\" stroke-width=\"3\"/>", LEFT + ACROSS + 16, legend - 4));
        put(format!("<text x=\"{}\" y=\"{legend}\">{name}</text>", LEFT + ACROSS + 42));
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>text{{fill:#333}} .title{{font-weight:600;font-size:15px}} .value{{fill:#666}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}
