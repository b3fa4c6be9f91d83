//! Handshake datagrams from strangers, and what a hostile member puts into good ones: no bytes panic, and nobody is
//! answered who has not the network's secret.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use meshd::session::cookie::{CookieJar, Cookies};
use meshd::session::handshake::{Initiator, Local, MAX_PAYLOAD, Responder, check_mac1, receiver_index};
use meshd_fuzz::{INDEX, key, local};

fuzz_target!(|data: &[u8]| {
    let now = Instant::now();
    let (alice, bob) = (local(3), local(4));
    let source = "192.0.2.3:4747".parse().expect("an endpoint");

    // A stranger's datagram, at the responder.
    let _ = receiver_index(data);
    let greeted = check_mac1(&bob, data).is_ok();
    if Responder::read(&bob, data, [2; 32]).is_ok() {
        assert!(greeted, "an initiation without the secret was read");
    }
    let mut cookies = Cookies::new([5; 32], now);
    assert!(!cookies.check(data, source, now), "nobody knows the cookie secret");
    if let Some(reply) = cookies.reply(&bob, data, source, now) {
        assert!(reply.len() < data.len());
    }

    // And at the initiator.
    let (mut initiator, initiation) = begin(&alice, b"record");
    let _ = initiator.read_response(data, now);
    let _ = CookieJar::default().open(&alice, &bob.public(), &initiator.last_mac1(), data, now);

    // Whatever came before, the true handshake still works, with the fuzzer's bytes as both payloads.
    let payload = &data[..data.len().min(MAX_PAYLOAD)];
    let (mut initiator, initiation) = if payload.is_empty() { (initiator, initiation) } else { begin(&alice, payload) };
    let responder = Responder::read(&bob, &initiation, [2; 32]).expect("a true initiation");
    assert!(payload.is_empty() || responder.payload() == payload);
    let (_, response) = responder.respond(9, payload, now).expect("a true responder");
    assert!(response.len() <= initiation.len(), "an answer larger than the question");
    assert_eq!(initiator.read_response(&response, now).expect("a true response").1, payload);
});

fn begin(local: &Local, payload: &[u8]) -> (Initiator, Vec<u8>) {
    let bob = key(4).noise_secret().public();
    Initiator::new(local, &bob, INDEX, payload, None, None, [1; 32]).expect("a sound payload")
}
