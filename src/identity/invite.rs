//! Invites: everything a newcomer needs, in one line of text.
//!
//! `meshd1-` and base64url (RFC 4648 §5, no padding) of: length (2 bytes, big endian), canonical postcard of
//! [`Invite`], checksum (first 4 bytes of BLAKE2s-256 over length and body). The length tells a truncated invite from a garbled one.
//! As a link it has `meshd://join/` before it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::UnixSeconds;
use super::address::Ipv4Prefix;
use super::canonical;
use super::certificate::{Certificate, CertificateBody, Chain, ChainError, Kind, Membership, Name};
use super::key::{NetworkId, NetworkSecret, NoisePublic, PeerId, SigningKey};

const PREFIX: &str = "meshd1-";

/// What makes a link of it.
const LINK: &str = "meshd://join/";

/// Largest body: 2 certificates (about 400 bytes), 3 contacts (about 350 bytes), the rest fixed. Twice that would no
/// longer fit a QR code.
const MAX_BODY: usize = 1200;

/// Contacts carried: enough to survive two dead ones, few enough to stay short.
pub const MAX_CONTACTS: usize = 3;

/// Why text is no usable invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Does not begin as invites do.
    #[error("this is not a meshd invite (one begins with `meshd1-`)")]
    NotAnInvite,
    /// The end is missing.
    #[error("the invite is truncated: {got} of {want} bytes; copy it whole")]
    Truncated {
        /// Bytes there.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// Characters changed on the way.
    #[error("the invite is garbled; copy it again")]
    Garbled,
    /// Its certificate does not fit its own network.
    #[error("the invite is not valid for its network: {0}")]
    Foreign(ChainError),
    /// Its time is over.
    #[error("the invite expired {0} ago; ask for a new one")]
    Expired(Ago),
}

/// A span of seconds, printed in its largest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ago(pub UnixSeconds);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self.0 {
            s @ 0..60 => (s, "second"),
            s @ 60..3600 => (s / 60, "minute"),
            s @ 3600..86400 => (s / 3600, "hour"),
            s => (s / 86400, "day"),
        };
        write!(f, "{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

/// A member that a newcomer may try first, and where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Who.
    pub peer: PeerId,
    /// Its Noise static key, so that the first datagram can be a handshake.
    pub noise: NoisePublic,
    /// Where it was when the invite was made; UDP, and TCP with the same port.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it took TLS at TCP port 443 of the same addresses.
    #[serde(default)]
    pub tls: bool,
}

/// What the text carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invite {
    /// The network's name, a suggestion for the newcomer's disk.
    pub network: Name,
    /// The mesh's IPv4 network.
    pub prefix: Ipv4Prefix,
    /// The network's secret.
    pub secret: NetworkSecret,
    /// Seed of the ephemeral key that signs the newcomer's certificate.
    seed: Zeroizing<[u8; 32]>,
    /// Root to invite.
    pub chain: Chain,
    /// Members to try first, at most [`MAX_CONTACTS`].
    pub contacts: Vec<Contact>,
}

impl Invite {
    /// An invite whose ephemeral key is `key`; `chain` ends in that key's certificate.
    pub fn new(network: Name, prefix: Ipv4Prefix, secret: NetworkSecret, key: &SigningKey, chain: Chain) -> Self {
        Self { network, prefix, secret, seed: key.seed(), chain, contacts: Vec::new() }
    }

    /// The network it leads into.
    pub fn network_id(&self) -> NetworkId {
        NetworkId::of_root(&self.chain.root)
    }

    /// The invite as a link: for QR codes, and for systems that open such.
    pub fn link(&self) -> String {
        format!("{LINK}{self}")
    }

    /// Checks that the invite may be used at `now`.
    ///
    /// # Errors
    /// [`InviteError::Foreign`] or [`InviteError::Expired`].
    pub fn check(&self, now: UnixSeconds) -> Result<Membership, InviteError> {
        let membership = self.chain.verify(&self.network_id(), now).map_err(|error| match error {
            ChainError::Expired { not_after, .. } => InviteError::Expired(Ago(now - not_after)),
            error @ (ChainError::ForeignNetwork(_)
            | ChainError::Length(_)
            | ChainError::Signature(_)
            | ChainError::Kind(_)
            | ChainError::Widened(_)
            | ChainError::NotYetValid { .. }
            | ChainError::JoinedLate { .. }) => InviteError::Foreign(error),
        })?;
        let key = SigningKey::from_seed(&self.seed);
        if membership.kind() != Kind::Invite || membership.subject() != key.peer_id() {
            return Err(InviteError::Foreign(ChainError::Kind(self.chain.links.len() - 1)));
        }
        Ok(membership)
    }

    /// Signs a certificate for `member`, who joins as `name` at `now`, and returns its whole chain.
    ///
    /// # Errors
    /// As [`Invite::check`].
    pub fn redeem(&self, member: PeerId, name: Name, now: UnixSeconds) -> Result<Chain, InviteError> {
        let invite = self.check(now)?;
        let grant_until = self.chain.links[self.chain.links.len() - 1].body.grant_until;
        let body = CertificateBody {
            subject: member,
            kind: Kind::Member,
            name,
            roles: invite.roles(),
            not_before: now,
            not_after: grant_until,
            grant_until,
            uses: 0,
        };
        let certificate = Certificate::issue(&SigningKey::from_seed(&self.seed), &self.network_id(), body);
        Ok(self.chain.extended(certificate))
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Zeroizing::new(canonical::encode(self));
        let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + 6));
        bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&body);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        let text = text.strip_prefix(LINK).unwrap_or(text).strip_prefix(PREFIX).ok_or(InviteError::NotAnInvite)?;
        if text.len() > 2 * MAX_BODY {
            return Err(InviteError::Garbled);
        }
        let bytes = Zeroizing::new(decode_prefix(text)?);
        let head: [u8; 2] = bytes
            .get(..2)
            .and_then(|head| head.try_into().ok())
            .ok_or(InviteError::Truncated { got: bytes.len(), want: 6 })?;
        let want = usize::from(u16::from_be_bytes(head)) + 6;
        if want > MAX_BODY + 6 {
            return Err(InviteError::Garbled);
        }
        if bytes.len() < want {
            return Err(InviteError::Truncated { got: bytes.len(), want });
        }
        let (body, sum) = bytes.split_at(bytes.len() - 4);
        if bytes.len() != want || checksum(body) != *sum {
            return Err(InviteError::Garbled);
        }
        let invite: Self = canonical::decode(&body[2..], MAX_BODY).map_err(|_| InviteError::Garbled)?;
        if invite.contacts.len() > MAX_CONTACTS || invite.chain.links.is_empty() {
            return Err(InviteError::Garbled);
        }
        Ok(invite)
    }
}

/// Decodes what can be decoded of base64url text that may have lost its end.
fn decode_prefix(text: &str) -> Result<Vec<u8>, InviteError> {
    let decode = |text: &str| data_encoding::BASE64URL_NOPAD.decode(text.as_bytes());
    if !text.is_ascii() {
        return Err(InviteError::Garbled);
    }
    decode(text).or_else(|_| decode(&text[..text.len() / 4 * 4])).map_err(|_| InviteError::Garbled)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash = Blake2s256::digest(bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{Roles, default_prefix};

    const NOW: UnixSeconds = 1_800_000_000;

    fn invite() -> Invite {
        let (root, key) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let network = NetworkId::of_root(&root.peer_id());
        let body = CertificateBody {
            subject: key.peer_id(),
            kind: Kind::Invite,
            name: "invite".parse().expect("a name"),
            roles: Roles::NONE,
            not_before: NOW,
            not_after: NOW + 7 * 86400,
            grant_until: NOW + 365 * 86400,
            uses: 1,
        };
        let chain = Chain::of_root(root.peer_id(), Certificate::issue(&root, &network, body));
        let mut invite = Invite::new(
            "lab".parse().expect("a name"),
            default_prefix(&network),
            NetworkSecret::new([7; 32]),
            &key,
            chain,
        );
        invite.contacts.push(Contact {
            peer: root.peer_id(),
            noise: root.noise_secret().public(),
            endpoints: vec!["192.0.2.1:4747".parse().expect("an endpoint")],
            tls: true,
        });
        invite
    }

    #[test]
    fn an_invite_survives_paper_and_admits_a_member() {
        let text = invite().to_string();
        let read: Invite = format!("  {text}\n").parse().expect("our own text");
        assert_eq!(read.to_string(), text);
        let member = SigningKey::from_seed(&[3; 32]).peer_id();
        let chain = read.redeem(member, "ada".parse().expect("a name"), NOW + 1).expect("a good invite");
        let membership = chain.verify(&read.network_id(), NOW + 300 * 86400).expect("a member");
        assert_eq!((membership.subject(), membership.kind()), (member, Kind::Member));
    }

    #[test]
    fn each_way_to_be_unusable_has_its_error() {
        let text = invite().to_string();
        assert_eq!("tskey-auth-1234".parse::<Invite>().err(), Some(InviteError::NotAnInvite));
        assert!(matches!(text[..text.len() / 2].parse::<Invite>(), Err(InviteError::Truncated { .. })));
        assert!(matches!(text[..8].parse::<Invite>(), Err(InviteError::Truncated { .. })));
        let middle = text.len() / 2;
        let other = if text.as_bytes()[middle] == b'A' { "B" } else { "A" };
        let garbled = format!("{}{other}{}", &text[..middle], &text[middle + 1..]);
        assert_eq!(garbled.parse::<Invite>().err(), Some(InviteError::Garbled));
        assert_eq!(invite().check(NOW + 9 * 86400).err(), Some(InviteError::Expired(Ago(2 * 86400))));
        let mut foreign = invite();
        foreign.chain.root = SigningKey::from_seed(&[5; 32]).peer_id();
        assert!(matches!(foreign.check(NOW), Err(InviteError::Foreign(ChainError::Signature(0)))));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "meshd1-[A-Za-z0-9_-]{0,900}|.{0,200}") {
            let _ = text.parse::<Invite>();
        }

        #[test]
        fn every_truncation_is_called_truncated(cut in 1usize..400) {
            let text = invite().to_string();
            let short = &text[..text.len().saturating_sub(cut).max(PREFIX.len())];
            let verdict = short.parse::<Invite>();
            prop_assert!(matches!(verdict, Err(InviteError::Truncated { .. })), "{:?}", verdict.err());
        }
    }
}
