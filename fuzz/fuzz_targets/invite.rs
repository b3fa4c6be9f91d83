//! Text that claims to be an invite, and bodies behind a good checksum: no text panics, and what parses prints the same.
#![no_main]

use blake2::{Blake2s256, Digest};
use libfuzzer_sys::fuzz_target;
use meshd::identity::Invite;
use meshd_fuzz::{NOW, key, name};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        judge(text);
    }
    // The fuzzer would never find a checksum.
    let mut bytes = u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(data);
    let sum = Blake2s256::digest(&bytes);
    bytes.extend_from_slice(&sum[..4]);
    judge(&format!("meshd1-{}", data_encoding::BASE64URL_NOPAD.encode(&bytes)));
});

fn judge(text: &str) {
    if let Ok(invite) = text.parse::<Invite>() {
        let text = text.trim();
        assert_eq!(invite.to_string(), text.strip_prefix("meshd://join/").unwrap_or(text));
        if invite.check(NOW).is_ok() {
            let chain = invite.redeem(key(9).peer_id(), name("eve"), NOW).expect("a good invite admits");
            assert_eq!(chain.verify(&invite.network_id(), NOW).expect("a member").subject(), key(9).peer_id());
        }
    }
}
