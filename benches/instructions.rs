//! One scenario of a frame's path, so many times: what scripts/instructions counts the instructions of.
//!
//! `instructions SCENARIO ROUNDS` prints how many frames a round has. What is prepared does not depend on the rounds, so the
//! difference of two runs is that of their rounds alone.
#![expect(clippy::print_stdout, reason = "its output is for a script")]

mod world;

use std::env;
use std::hint::black_box;

use world::{BULK_FRAMES, Burst, Receiver, SMALL_FRAMES, Sender};

/// Most rounds: so many are sealed beforehand where a round opens what was sealed, since nothing opens twice.
const MAX_ROUNDS: usize = 64;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [scenario, rounds] = &arguments[..] else {
        // `cargo bench` and `cargo test` run every benchmark without arguments.
        return;
    };
    let rounds: usize = rounds.parse().expect("a number of rounds");
    assert!(rounds <= MAX_ROUNDS, "at most {MAX_ROUNDS} rounds");
    let now = world::now();
    let mut sender = Sender::new(now);
    let frames = match scenario.as_str() {
        "segment" => {
            (0..rounds).for_each(|_| sender.segment());
            BULK_FRAMES
        }
        "coalesce" => {
            let mut burst = Burst::new(sender);
            (0..rounds).for_each(|_| burst.coalesce());
            BULK_FRAMES
        }
        "egress-bulk" => {
            (0..rounds).for_each(|_| sender.send_bulk());
            BULK_FRAMES
        }
        "egress-small" => {
            (0..rounds).for_each(|_| sender.send_small());
            SMALL_FRAMES
        }
        "ingress-bulk" => {
            receive(sender, Sender::send_bulk, Receiver::new(now), rounds);
            BULK_FRAMES
        }
        "ingress-small" => {
            receive(sender, Sender::send_small, Receiver::new(now), rounds);
            SMALL_FRAMES
        }
        other => panic!("no scenario {other}"),
    };
    println!("{frames}");
}

fn receive(mut sender: Sender, send: fn(&mut Sender), mut receiver: Receiver, rounds: usize) {
    let sealed = |_| {
        send(&mut sender);
        sender.datagrams()
    };
    let sealed: Vec<_> = (0..MAX_ROUNDS).map(sealed).collect();
    for datagrams in &sealed[..rounds] {
        black_box(receiver.receive(datagrams));
    }
}
