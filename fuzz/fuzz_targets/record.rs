//! Records from strangers, and records that a hostile member signs: no bytes panic, and what passes is what was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::dht::record::MAX_RECORD;
use meshd::dht::{Record, Verified};
use meshd::identity::canonical;
use meshd_fuzz::{NOW, key, network};

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Verified::<Record>::check(data, &network(), NOW) {
        assert_eq!(record.bytes(), data);
        assert!(!record.has_expired(NOW));
    }
    // Behind a good signature: the fuzzer cannot sign, a member can.
    if let Ok(record) = canonical::decode::<Record>(data, MAX_RECORD)
        && let Ok(verified) = Verified::sign(&key(3), &network(), record.clone(), NOW)
    {
        assert_eq!(*verified, record);
        assert_eq!(verified.peer(), key(3).peer_id());
    }
});
