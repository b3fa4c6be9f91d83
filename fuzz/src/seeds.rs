//! Writes fuzz/corpus: a few real encodings for each target, so that the fuzzer begins where the parsers are deep.

use std::fs;
use std::path::Path;

use meshd::identity::canonical;
use meshd::wire::header::{HEADER_LEN, TAG_LEN};
use meshd::wire::message::INNER_LEN;
use meshd::wire::{Header, Inner, Message};
use meshd_fuzz::{invite, record};

fn main() {
    let mut datagram = [0xa5; HEADER_LEN + INNER_LEN + TAG_LEN];
    Header { receiver: 7, counter: 1 }.write(&mut datagram);
    seed("wire", "sealed", &datagram);
    for (name, inner) in [
        ("inner-frame", Inner::Frame),
        ("inner-message", Inner::Message),
        ("inner-fragment", Inner::Fragment { id: 9, part: 3, last: true }),
    ] {
        let mut bytes = [0; INNER_LEN];
        inner.write(&mut bytes);
        seed("wire", name, &bytes);
    }
    let observed = "[2001:db8::1]:4747".parse().expect("an endpoint");
    for (name, message) in [
        ("ping", Message::Ping { nonce: 1 }),
        ("pong", Message::Pong { nonce: u64::MAX, observed }),
        ("message-record", Message::Record(record(3).bytes().to_vec())),
        ("goodbye", Message::Goodbye),
        ("keepalive", Message::Keepalive),
    ] {
        seed("wire", name, &message.encode());
    }
    let head = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    seed("wire", "arp", &[&head[..], &[0x08, 0x06], &[0; 28]].concat());
    seed("wire", "qinq", &[&head[..], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 42, 0x86, 0xdd], &[0; 40]].concat());

    seed("record", "signed", record(3).bytes());
    seed("record", "unsigned", &canonical::encode(&*record(3)));
    seed("record", "of-the-root", &canonical::encode(&*record(1)));

    seed("invite", "text", invite().to_string().as_bytes());
    seed("invite", "body", &canonical::encode(&invite()));
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("fuzz/corpus can be made");
    fs::write(folder.join(name), bytes).expect("a seed can be written");
}
