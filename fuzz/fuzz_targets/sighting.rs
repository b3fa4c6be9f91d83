//! Sightings off the LAN: strangers' bytes, and what a hostile member seals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::dht::sighting::{MAX_ADDRESSES, SEALED_LEN, open_sighting, seal_sighting};
use meshd_fuzz::secret;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

fuzz_target!(|data: &[u8]| {
    let key = secret().beacon_key();
    assert!(data.len() == SEALED_LEN || open_sighting(&key, data).is_err());
    let _ = open_sighting(&key, data);

    // Behind a good seal: nonce, then the fuzzer's bytes padded to the one length there is.
    let mut plain = vec![0; SEALED_LEN - 12 - 16];
    let length = data.len().min(plain.len());
    plain[..length].copy_from_slice(&data[..length]);
    let sealing = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("32 bytes"));
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let tag = sealing.seal_in_place_separate_tag(nonce, Aad::from(b"meshd sighting v1"), &mut plain).expect("short");
    let sealed = [&[0; 12][..], &plain, tag.as_ref()].concat();
    if let Ok(announcement) = open_sighting(&key, &sealed) {
        assert!(announcement.port != 0 && announcement.addresses.len() <= MAX_ADDRESSES);
        assert_eq!(seal_sighting(&key, &announcement, [0; 12])[..], sealed, "two encodings of one announcement");
    }
});
