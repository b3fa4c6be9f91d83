//! Invites that are not taken, and what is said of them.

use super::*;

#[test]
fn a_garbled_invite_is_refused() {
    let invite = Machine::new().invite_of_new();
    for at in [10, invite.len() / 2, invite.len() - 3] {
        let other = if invite.as_bytes()[at] == b'A' { "B" } else { "A" };
        let garbled = format!("{}{other}{}", &invite[..at], &invite[at + 1..]);
        let line = Machine::new().fails(&["join", &garbled]);
        assert!(line.contains("garbled") || line.contains("truncated"), "{line}");
    }
    assert!(Machine::new().fails(&["join", &invite.replace("meshd1-", "meshd1-ü")]).contains("garbled"));
}

#[test]
fn a_truncated_invite_is_refused_wherever_it_was_cut() {
    let invite = Machine::new().invite_of_new();
    for length in [7, 8, 40, invite.len() / 2, invite.len() - 1] {
        let line = Machine::new().fails(&["join", &invite[..length]]);
        assert!(line.contains("truncated"), "{length}: {line}");
    }
}

#[test]
fn text_that_is_no_invite_is_refused() {
    for text in ["", "hello", "tskey-auth-1234", "MESHD1-AAAA", "/etc/passwd"] {
        assert!(Machine::new().fails(&["join", text]).contains("not a meshd invite"), "{text}");
    }
}

#[test]
fn an_expired_invite_is_refused_and_says_since_when() {
    let now = unix_now();
    let line = Machine::new().fails(&["join", &crafted(now - 9 * 86400, now - 2 * 86400, now + 86400).to_string()]);
    assert!(line.contains("expired 2 days ago; ask for a new one"), "{line}");
    let line = Machine::new().fails(&["join", &crafted(now - 9 * 86400, now + 86400, now - 3600).to_string()]);
    assert!(line.contains("ended 1 hour ago; ask for a new one"), "{line}");
}

#[test]
fn an_invite_from_the_future_blames_the_clock() {
    let now = unix_now();
    let line = Machine::new().fails(&["join", &crafted(now + 2 * 86400, now + 9 * 86400, now + 9 * 86400).to_string()]);
    assert!(line.contains("set this machine's clock"), "{line}");
}

#[test]
fn an_invite_that_was_signed_for_another_network_is_refused() {
    let now = unix_now();
    let mut foreign = crafted(now, now + 86400, now + 86400);
    foreign.chain.root = SigningKey::from_seed(&[99; 32]).peer_id();
    let line = Machine::new().fails(&["join", &foreign.to_string()]);
    assert!(line.contains("not valid for its network"), "{line}");
}
