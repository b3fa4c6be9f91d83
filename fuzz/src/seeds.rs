//! Writes fuzz/corpus: a few real encodings for each target, so that the fuzzer begins where the parsers are deep.

use std::fs;
use std::path::Path;
use std::time::Instant;

use meshd::dht::sighting::{Announcement, seal_sighting};
use meshd::identity::{Mac, canonical};
use meshd::session::cookie::Cookies;
use meshd::session::handshake::{Initiator, Responder};
use meshd::tap::segment::segment;
use meshd::tap::vnet::{Gso, Superframe, VnetHeader};
use meshd::wire::checksum::{TCP, Transport, UDP, fold, sum};
use meshd::wire::ethernet::FrameHead;
use meshd::wire::header::{HEADER_LEN, TAG_LEN};
use meshd::wire::message::INNER_LEN;
use meshd::wire::{Batch, Checksum, Claim, Header, Inner, Message};
use meshd_fuzz::{INDEX, NOW, invite, key, local, record, revocation, secret};

fn main() {
    let mut datagram = [0xa5; HEADER_LEN + INNER_LEN + TAG_LEN];
    Header { receiver: 7, counter: 1 }.write(&mut datagram);
    seed("wire", "sealed", &datagram);
    for (name, inner) in [
        ("inner-frame", Inner::Frame(Checksum::Valid)),
        ("inner-bundle", Inner::Bundle),
        ("inner-message", Inner::Message),
        ("inner-padded", Inner::Padded(9)),
        ("inner-fragment", Inner::Fragment { id: 9, part: 3, last: true }),
    ] {
        let mut bytes = [0; INNER_LEN];
        inner.write(&mut bytes);
        seed("wire", name, &bytes);
    }
    let observed = "[2001:db8::1]:4747".parse().expect("an endpoint");
    let stations = vec![Mac([0, 0x1b, 0x78, 0, 0, 1]), Mac([0, 0x1b, 0x78, 0, 0, 2])];
    let claim = Claim { sequence: 1, first: Mac([0; 6]), last: Mac::BROADCAST, stations };
    for (name, message) in [
        ("ping", Message::Ping { nonce: 1 }),
        ("pong", Message::Pong { nonce: u64::MAX, observed }),
        ("message-record", Message::Record(record(3).bytes().to_vec())),
        ("goodbye", Message::Goodbye),
        ("keepalive", Message::Keepalive),
        ("stations", Message::Stations(claim.clone())),
    ] {
        seed("wire", name, &message.encode());
    }
    let head = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    seed("wire", "arp", &[&head[..], &[0x08, 0x06], &[0; 28]].concat());
    seed("wire", "qinq", &[&head[..], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 42, 0x86, 0xdd], &[0; 40]].concat());

    seed("typed", "code", b"tiger-lamp-ocean-violin-brick");
    seed("typed", "filter", b"allow from ada, role:admin to any tcp 22, 80-90 # SSH\ndeny from eve\ndefault deny\n");

    seed("record", "signed", record(3).bytes());
    seed("record", "unsigned", &canonical::encode(&*record(3)));
    seed("record", "of-the-root", &canonical::encode(&*record(1)));

    seed("statement", "revocation", revocation().bytes());
    seed("statement", "fact", &canonical::encode(revocation().fact()));
    let link = record(3).chain.links.last().expect("a member's").clone();
    let joined = meshd::dht::statement::Fact::Redeemed { invite: key(2).peer_id(), certificate: link };
    seed("statement", "redeemed", &canonical::encode(&joined));

    let payload = record(3).bytes().to_vec();
    let bob = key(4).noise_secret().public();
    let (mut initiator, initiation) =
        Initiator::new(&local(3), &bob, INDEX, &payload, None, None, [1; 32]).expect("a sound payload");
    seed("handshake", "initiation", &initiation);
    let now = Instant::now();
    let source = "192.0.2.3:4747".parse().expect("an endpoint");
    let cookie = Cookies::new([5; 32], now).reply(&local(4), &initiation, source, now).expect("an initiation");
    seed("handshake", "cookie", &cookie);
    let responder = Responder::read(&local(4), &initiation, [2; 32]).expect("a true initiation");
    let (_, response) = responder.respond(9, &payload, now).expect("a sound payload");
    initiator.read_response(&response, now).expect("a true response");
    seed("handshake", "response", &response);

    let announcement = Announcement {
        peer: key(3).peer_id(),
        noise: key(3).noise_secret().public(),
        port: 4747,
        stamp: NOW,
        addresses: vec!["192.0.2.2".parse().expect("an address"), "fe80::1".parse().expect("an address")],
    };
    seed("sighting", "sealed", &seal_sighting(&secret().beacon_key(), &announcement, [3; 12]));
    let body = canonical::encode(&announcement);
    let length = u16::try_from(body.len()).expect("a few hundred bytes").to_be_bytes();
    seed("sighting", "plain", &[&length[..], &body].concat());

    // Inputs to the node: kind, length, bytes.
    let input = |kind: u8, bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        [&[kind][..], &length, bytes].concat()
    };
    let messages = [
        Message::Ping { nonce: 1 },
        Message::Pong { nonce: 1, observed },
        Message::Record(record(5).bytes().to_vec()),
        Message::Keepalive,
        Message::Statement(revocation().bytes().to_vec()),
        Message::Ledger { digest: [1; 16], secret: [2; 16] },
        Message::Buckets(vec![1; 512]),
        Message::Secret { epoch: revocation().bytes().to_vec(), secret: [1; 32] },
        Message::KemKey(vec![1; 1184]),
        Message::KemAnswer(vec![1; 1088]),
        Message::Stations(claim.clone()),
        Message::Goodbye,
    ];
    let all: Vec<u8> = messages.iter().flat_map(|message| input(0, &message.encode())).collect();
    seed("node", "messages", &all);
    let hello = canonical::encode(&(2u64, record(5).bytes().to_vec()));
    seed("node", "hello-and-time", &[input(6, &hello), vec![7, 0xff, 0xff], input(5, &initiation)].concat());
    let arp = [&head[..], &[0x08, 0x06], &[0; 28]].concat();
    seed("node", "frames", &[input(2, &arp), input(3, &arp), input(4, &arp), vec![7, 0x10, 0]].concat());

    for (name, gso, tagged) in
        [("tcp4", Gso::Tcp4, false), ("tcp6-vlan", Gso::Tcp6, true), ("udp4-vlan", Gso::Udp, true)]
    {
        let (header, bytes) = superframe(gso, tagged);
        seed("segment", name, &[&header.write()[..], &[5, 0xea], &bytes].concat());
        let mut batch = Batch::new(1 << 16, 8);
        batch.spare(bytes.len()).expect("room").copy_from_slice(&bytes);
        let held = batch.hold(bytes.len());
        let count = segment(&mut batch, &header, held, 1514).expect("a sound superframe");
        // How the frames are told apart: a byte for the length, and one that says that the checksum is partial.
        let told = |frame: &[u8]| [&[u8::try_from(frame.len()).expect("short"), 2][..], frame].concat();
        let frames: Vec<u8> = (0..count).flat_map(|slot| told(batch.bytes(slot))).collect();
        seed("coalesce", name, &[&[0][..], &frames].concat());
        // The first, three that follow it, and one that has PSH.
        let follow = [[0, 6], [0, 6], [0, 6]].concat();
        let push = [2, 6, batch.bytes(0).len().min(47) as u8, 8];
        seed("coalesce", &format!("{name}-follow"), &[&[0][..], &told(batch.bytes(0)), &follow, &push].concat());
    }

    seed("invite", "text", invite().to_string().as_bytes());
    seed("invite", "body", &canonical::encode(&invite()));
}

/// 250 bytes of payload, to be cut into 100.
fn superframe(gso: Gso, tagged: bool) -> (VnetHeader, Vec<u8>) {
    let protocol = if gso == Gso::Udp { UDP } else { TCP };
    let ports = [0x10, 1, 1, 0xbb];
    let mut segment = match protocol {
        // Sequence and acknowledgement, 12 bytes of time stamps, ACK, PSH and CWR, the window.
        TCP => [&ports[..], &[0, 0, 3, 0xe8, 0, 0, 7, 0xd0, 0x80, 0x98, 1, 0xf4, 0, 0, 0, 0], &[1, 1, 8, 10], &[9; 8]]
            .concat(),
        _ => [&ports[..], &[1, 2, 0, 0]].concat(),
    };
    let headers = segment.len();
    segment.extend((0..250).map(|byte| byte as u8));
    let tag: &[u8] = if tagged { &[0x81, 0, 0, 7] } else { &[] };
    let ip = if gso == Gso::Tcp6 {
        let len = u16::try_from(segment.len()).expect("short").to_be_bytes();
        [&[0x86, 0xdd, 0x60, 0, 0, 0][..], &len, &[protocol, 64], &[0xfd; 32]].concat()
    } else {
        let len = u16::try_from(20 + segment.len()).expect("short").to_be_bytes();
        let mut ip = [&[0x45, 0][..], &len, &[0, 7, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]].concat();
        let check = !fold(sum(&ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        [&[8, 0][..], &ip].concat()
    };
    let mut frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], tag, &ip, &segment].concat();
    let head = FrameHead::read(&frame).expect("a frame");
    let transport = Transport::of(&frame, &head).expect("TCP or UDP");
    let (start, offset) = (transport.start, transport.checksum_offset());
    let pseudo = fold(transport.pseudo_sum(&frame, &head, segment.len()));
    frame[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
    let checksum = Checksum::Partial { start: start as u16, offset: offset as u16 };
    let superframe = Superframe { gso, ecn: protocol == TCP, size: 100, headers: (start + headers) as u16 };
    (VnetHeader { checksum, superframe: Some(superframe) }, frame)
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("fuzz/corpus can be made");
    fs::write(folder.join(name), bytes).expect("a seed can be written");
}
