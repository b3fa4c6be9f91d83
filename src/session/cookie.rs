//! Cookies: a proof of address, so that a flood from forged addresses costs hashes instead of Diffie-Hellmans.
//!
//! A responder under load answers an initiation with a cookie: keyed BLAKE2s of the sender's endpoint under a secret that
//! only the responder has. It keeps nothing. The initiator makes mac2 of its next initiation with it, and so shows that
//! what is sent to that endpoint arrives there. As in WireGuard (section 5.4.7), with one change: ring has no XChaCha, so the
//! cookie is sealed with ChaCha20-Poly1305 under a key made for this reply from (cookie key, random nonce).
//!
//! ```text
//! 0   kind 3, flags 0 (3)
//! 4   receiver's index: that of the initiation
//! 8   nonce (24)
//! 32  the cookie (16), sealed with mac1 of the initiation as associated data, + 16
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::identity::NoisePublic;
use crate::wire::DatagramKind;

use super::crypto::{MAC_LEN, derive, mac, mac_fits};
use super::handshake::{HandshakeError, Local, initiation_macs, u32_at};

/// How long an initiator uses a cookie, and how often a responder changes its secret. The secret before the last is
/// honoured too, so a cookie outlives its use by up to as much again. Twice as long would only help those who collect cookies.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Length of a cookie reply, bytes: a nineteenth of the initiation that it answers.
pub const COOKIE_REPLY_LEN: usize = NONCE_AT + NONCE_LEN + MAC_LEN + TAG_LEN;

const NONCE_AT: usize = 8;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// What a responder gave to us: good for one endpoint of ours and for [`COOKIE_LIFETIME`].
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Cookie([u8; MAC_LEN]);

impl Cookie {
    /// mac2 of an initiation: over all bytes before it.
    pub(super) fn mac2(&self, before: &[u8]) -> [u8; MAC_LEN] {
        mac(&self.0, &[before])
    }
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(..)")
    }
}

/// The responder's side: makes cookies and knows them again, without a table.
pub struct Cookies {
    seed: Zeroizing<[u8; 32]>,
    start: Instant,
    replies: u64,
}

impl Cookies {
    /// Secrets and nonces come from `seed`, 32 random bytes; periods are counted from `now`.
    pub fn new(seed: [u8; 32], now: Instant) -> Self {
        Self { seed: Zeroizing::new(seed), start: now, replies: 0 }
    }

    /// Whether mac2 of this initiation was made with a cookie that we gave to `source`, in this period or the last. Zeros,
    /// as they stand without a cookie, cost no hash.
    pub fn check(&self, datagram: &[u8], source: SocketAddr, now: Instant) -> bool {
        let Some((before, _, mac2)) = initiation_macs(datagram) else {
            return false;
        };
        if mac2 == [0; MAC_LEN] {
            return false;
        }
        let period = self.period(now);
        [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|period| mac_fits(&self.cookie(source, period).0, &[before], mac2))
    }

    /// The datagram that gives `source` its cookie, in answer to this initiation; `None` if it is none.
    pub fn reply(&mut self, local: &Local, datagram: &[u8], source: SocketAddr, now: Instant) -> Option<Vec<u8>> {
        let (_, mac1, _) = initiation_macs(datagram)?;
        self.replies += 1;
        let nonce = derive(&self.seed, b"nonce  1", &[&self.replies.to_be_bytes()]);
        let nonce = &nonce[..NONCE_LEN];
        let mut sealed = self.cookie(source, self.period(now)).0;
        let tag = reply_key(local.cookie_key(), nonce)
            .seal_in_place_separate_tag(zero_nonce(), Aad::from(mac1), &mut sealed)
            .expect("16 bytes are far below the AEAD's limit");
        let mut reply = Vec::with_capacity(COOKIE_REPLY_LEN);
        reply.extend_from_slice(&[DatagramKind::Cookie as u8, 0, 0, 0]);
        reply.extend_from_slice(&datagram[4..8]);
        reply.extend_from_slice(nonce);
        reply.extend_from_slice(&sealed);
        reply.extend_from_slice(tag.as_ref());
        Some(reply)
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / COOKIE_LIFETIME.as_secs()
    }

    fn cookie(&self, source: SocketAddr, period: u64) -> Cookie {
        let secret = derive(&self.seed, b"secret 1", &[&period.to_be_bytes()]);
        let address = match source.ip().to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Cookie(mac(&*secret, &[&address.octets(), &source.port().to_be_bytes()]))
    }
}

/// The initiator's side: the cookie that one peer gave us.
#[derive(Debug, Clone, Default)]
pub struct CookieJar(Option<(Cookie, Instant)>);

impl CookieJar {
    /// Opens a cookie reply of `remote` to our initiation with this `mac1` (see
    /// [`Initiator::last_mac1`](super::handshake::Initiator::last_mac1)) and keeps the cookie for the next one.
    ///
    /// # Errors
    /// [`HandshakeError::Malformed`], or [`HandshakeError::Decrypt`] if it answers something else or is forged.
    pub fn open(
        &mut self,
        local: &Local,
        remote: &NoisePublic,
        mac1: &[u8; 16],
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        reply_receiver(datagram).ok_or(HandshakeError::Malformed)?;
        let (nonce, sealed) = datagram[NONCE_AT..].split_at(NONCE_LEN);
        let mut opened = Zeroizing::new([0; MAC_LEN + TAG_LEN]);
        opened.copy_from_slice(sealed);
        reply_key(&local.cookie_key_of(remote), nonce)
            .open_in_place(zero_nonce(), Aad::from(mac1), &mut *opened)
            .map_err(|_| HandshakeError::Decrypt)?;
        let mut cookie = Cookie([0; MAC_LEN]);
        cookie.0.copy_from_slice(&opened[..MAC_LEN]);
        self.0 = Some((cookie, now));
        Ok(())
    }

    /// The cookie for the next initiation, while it is good.
    pub fn cookie(&self, now: Instant) -> Option<&Cookie> {
        let (cookie, since) = self.0.as_ref()?;
        (now.saturating_duration_since(*since) < COOKIE_LIFETIME).then_some(cookie)
    }
}

/// The receiver's index of a well-formed cookie reply.
pub(super) fn reply_receiver(datagram: &[u8]) -> Option<u32> {
    let fits = datagram.len() == COOKIE_REPLY_LEN && datagram[..4] == [DatagramKind::Cookie as u8, 0, 0, 0];
    if fits { u32_at(datagram, 4) } else { None }
}

/// A key for one reply: nonces of 24 bytes never meet by chance, so the AEAD's own nonce may be zero.
fn reply_key(cookie_key: &[u8; 32], nonce: &[u8]) -> LessSafeKey {
    let key = derive(cookie_key, b"reply  1", &[nonce]);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("the key has 32 bytes"))
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::super::handshake::Initiator;
    use super::super::handshake::tests::{initiate, member, start};
    use super::*;

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().expect("an endpoint")
    }

    /// An initiation of `a` to `b` with the cookie that `cookies` gives to `source`.
    fn proved(a: &Local, b: &Local, cookies: &mut Cookies, source: SocketAddr, now: Instant) -> Vec<u8> {
        let (initiator, initiation) = initiate(a, b, b"");
        let reply = cookies.reply(b, &initiation, source, now).expect("a reply");
        let mut jar = CookieJar::default();
        jar.open(a, &b.public(), &initiator.last_mac1(), &reply, now).expect("a sound reply");
        Initiator::new(a, &b.public(), 8, b"", jar.cookie(now), None, [5; 32]).expect("an initiation").1
    }

    #[test]
    fn a_cookie_proves_the_endpoint_that_it_was_sent_to_and_no_other() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut cookies = Cookies::new([1; 32], now);
        let source = endpoint("192.0.2.1:4747");
        let proved = proved(&a, &b, &mut cookies, source, now);
        assert!(cookies.check(&proved, source, now));
        assert!(cookies.check(&proved, endpoint("[::ffff:192.0.2.1]:4747"), now), "the same, on a dual-stack socket");
        for other in ["192.0.2.2:4747", "192.0.2.1:4748", "[2001:db8::1]:4747"] {
            assert!(!cookies.check(&proved, endpoint(other), now), "{other}");
        }
        assert!(!Cookies::new([2; 32], now).check(&proved, source, now), "of another responder");
        assert!(!cookies.check(&initiate(&a, &b, b"").1, source, now), "no mac2 at all");
        let mut changed = proved;
        changed[100] ^= 1;
        assert!(!cookies.check(&changed, source, now), "mac2 covers every byte before it");
    }

    #[test]
    fn the_secret_changes_and_the_one_before_is_honoured_for_one_more_period() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut cookies = Cookies::new([1; 32], now);
        let source = endpoint("192.0.2.1:4747");
        let end = now + COOKIE_LIFETIME;
        let tick = Duration::from_millis(1);
        let proved = proved(&a, &b, &mut cookies, source, end - tick);
        assert!(cookies.check(&proved, source, end - tick));
        assert!(cookies.check(&proved, source, end + COOKIE_LIFETIME - tick));
        assert!(!cookies.check(&proved, source, end + COOKIE_LIFETIME));
    }

    #[test]
    fn a_cookie_is_used_for_its_lifetime_and_no_longer() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let mut jar = CookieJar::default();
        assert_eq!(jar.cookie(now), None);
        let (initiator, initiation) = initiate(&a, &b, b"");
        let reply = Cookies::new([1; 32], now).reply(&b, &initiation, endpoint("192.0.2.1:1"), now).expect("a reply");
        jar.open(&a, &b.public(), &initiator.last_mac1(), &reply, now).expect("a sound reply");
        assert!(jar.cookie(now + COOKIE_LIFETIME - Duration::from_millis(1)).is_some());
        assert_eq!(jar.cookie(now + COOKIE_LIFETIME), None);
    }

    #[test]
    fn a_forged_or_misdirected_reply_leaves_the_jar_as_it_was() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let (initiator, initiation) = initiate(&a, &b, b"");
        let mac1 = initiator.last_mac1();
        let reply = Cookies::new([1; 32], now).reply(&b, &initiation, endpoint("192.0.2.1:1"), now).expect("a reply");
        let mut jar = CookieJar::default();
        for at in 0..reply.len() {
            // The index only finds the initiation; the seal is bound to its mac1.
            if !(4..8).contains(&at) {
                let mut changed = reply.clone();
                changed[at] ^= 1;
                assert!(jar.open(&a, &b.public(), &mac1, &changed, now).is_err(), "byte {at}");
            }
            assert!(jar.open(&a, &b.public(), &mac1, &reply[..at], now).is_err(), "length {at}");
        }
        let stranger = member(1, 8, true);
        for (local, remote, mac1) in
            [(&stranger, b.public(), mac1), (&a, a.public(), mac1), (&a, b.public(), [0; MAC_LEN])]
        {
            assert_eq!(jar.open(local, &remote, &mac1, &reply, now), Err(HandshakeError::Decrypt));
        }
        assert_eq!(jar.cookie(now), None);
        assert_eq!(super::super::handshake::receiver_index(&reply), Some(7));
        assert_eq!(jar.open(&a, &b.public(), &mac1, &reply, now), Ok(()));
    }

    #[test]
    fn no_two_replies_share_a_nonce_and_none_is_larger_than_what_it_answers() {
        let (a, b, now) = (member(1, 9, true), member(2, 9, true), start());
        let initiation = initiate(&a, &b, b"").1;
        let mut cookies = Cookies::new([1; 32], now);
        let mut nonces = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let reply = cookies.reply(&b, &initiation, endpoint("192.0.2.1:1"), now).expect("a reply");
            assert_eq!(reply.len(), COOKIE_REPLY_LEN);
            assert!(nonces.insert(reply[NONCE_AT..NONCE_AT + NONCE_LEN].to_vec()));
        }
        const { assert!(COOKIE_REPLY_LEN <= super::super::handshake::MAX_HANDSHAKE / 19) };
        assert_eq!(cookies.reply(&b, b"no initiation", endpoint("192.0.2.1:1"), now), None);
    }
}
