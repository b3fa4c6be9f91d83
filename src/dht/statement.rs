//! What admins and members say about membership, signed: who is expelled, which invite is withdrawn, who joined by which.
//!
//! A [`Statement`] proves itself, as a record does: it carries its signer's chain, judged at the moment it was made. So it
//! stays true when its signer's certificate has long ended, and can be handed on by anybody. The only ways to get one are
//! to sign it and to check received bytes. What statements mean together is the business of [`super::ledger`].

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::identity::canonical::{self, CodecError};
use crate::identity::{
    CLOCK_SKEW, Certificate, Chain, ChainError, Kind, NetworkId, PeerId, Roles, Signature, SigningKey, UnixSeconds,
};

const DOMAIN_STATEMENT: &[u8] = b"meshd statement v1";

/// Largest encoded statement, bytes: a chain of four with long names (about 680), a certificate (180), and the rest. It
/// fits one message, so the bound is that of a record.
pub const MAX_STATEMENT: usize = 1024;

/// Longest reason of a revocation, bytes: a line on a screen.
pub const MAX_REASON: usize = 80;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// This key is no member any more, nor is anybody below it. Said by an admin, or by the key itself.
    Revoked {
        /// Of a member, or of an invite.
        target: PeerId,
        /// For people; may be empty. At most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// This key stays a member though a key above it was revoked, or its invite withdrawn. Said by an admin.
    Kept {
        /// Of a member.
        subject: PeerId,
    },
    /// Nobody joins by this invite any more. Said by an admin.
    Withdrawn {
        /// The invite's key.
        invite: PeerId,
    },
    /// A newcomer was met that had joined by an invite. Said by the member that met it first, so that others who use the
    /// same invite cannot claim to have been earlier.
    Redeemed {
        /// The invite's key.
        invite: PeerId,
        /// The newcomer's, signed with the invite's key.
        certificate: Certificate,
    },
    /// The network has a new secret, since somebody was expelled who knows the old one. Said by an admin.
    Epoch {
        /// One more than that of the epoch before.
        number: u32,
        /// [`NetworkSecret::fingerprint`](crate::identity::NetworkSecret::fingerprint).
        secret: [u8; 32],
        /// Who was expelled: whoever has not heard of that is not told the secret.
        after: PeerId,
    },
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    fact: Fact,
    at: UnixSeconds,
    /// The signer's; without certificates if the root itself signs.
    chain: Chain,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    body: Body,
    signature: Signature,
}

/// By its bytes: their SHA-256.
pub type StatementId = [u8; 32];

/// How near to the root a key was certified, and how early: the smaller has the say over the greater. The root's is empty
/// and so the smallest; an admin comes after whoever certified it. The dates of the invites that make admins are signed by
/// the founder, so no admin can make itself older than another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(Vec<(UnixSeconds, PeerId)>);

impl Rank {
    /// Of the key that the first `depth` certificates of `chain` lead to.
    pub fn of(chain: &Chain, depth: usize) -> Self {
        Self(chain.links.iter().take(depth).map(|link| (link.body.not_before, link.body.subject)).collect())
    }

    /// Whether it is the root's.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a statement is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not canonical bytes of at most [`MAX_STATEMENT`].
    #[error("unreadable statement: {0}")]
    Codec(#[from] CodecError),
    /// The signer was no member then.
    #[error("the signer of the statement was no member: {0}")]
    Chain(#[from] ChainError),
    /// It takes an admin to say this.
    #[error("only an admin can say this")]
    Authority,
    /// Not signed by the one whose chain it carries.
    #[error("the statement's signature does not verify")]
    Signature,
    /// Dated ahead of our clock.
    #[error("the statement is dated {at}, and here it is {now} (is this clock right?)")]
    Early {
        /// Its date.
        at: UnixSeconds,
        /// The time here.
        now: UnixSeconds,
    },
    /// A redemption whose certificate is no member's, or whose witness is the newcomer.
    #[error("the statement does not prove that somebody joined")]
    Redemption,
    /// A reason that is too long, or no line of text.
    #[error("a reason is one line of at most {MAX_REASON} bytes")]
    Reason,
}

impl StatementError {
    /// A short name, for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Codec(_) => "statement-malformed",
            Self::Chain(_) => "statement-of-no-member",
            Self::Authority => "statement-authority",
            Self::Signature => "statement-forged",
            Self::Early { .. } => "statement-early",
            Self::Redemption => "statement-redemption",
            Self::Reason => "statement-reason",
        }
    }
}

/// A fact whose signature and authority were checked, with the bytes that were.
#[derive(Clone, PartialEq, Eq)]
pub struct Statement {
    body: Body,
    id: StatementId,
    rank: Rank,
    bytes: Vec<u8>,
}

impl Statement {
    /// Signs a fact at `now`, Unix seconds. `chain` is the signer's, without certificates for the root's key.
    ///
    /// # Errors
    /// As [`Statement::check`]: what others would refuse is never made.
    pub fn sign(
        key: &SigningKey,
        network: &NetworkId,
        chain: Chain,
        fact: Fact,
        now: UnixSeconds,
    ) -> Result<Self, StatementError> {
        let body = Body { fact, at: now, chain };
        let signature = key.sign(DOMAIN_STATEMENT, network, &canonical::encode(&body));
        Self::check(&canonical::encode(&Signed { body, signature }), network, now)
    }

    /// Verifies received bytes: size, encoding, date, chain, authority, signature. `now` is Unix seconds.
    ///
    /// # Errors
    /// A [`StatementError`] that says which of them failed.
    pub fn check(bytes: &[u8], network: &NetworkId, now: UnixSeconds) -> Result<Self, StatementError> {
        let Signed { body, signature } = canonical::decode(bytes, MAX_STATEMENT)?;
        if body.at > now.saturating_add(CLOCK_SKEW) {
            return Err(StatementError::Early { at: body.at, now });
        }
        let signer = body.chain.subject();
        let admin = if body.chain.links.is_empty() {
            let of = NetworkId::of_root(&body.chain.root);
            if of != *network {
                return Err(ChainError::ForeignNetwork(of.short()).into());
            }
            true
        } else {
            let membership = body.chain.verify(network, body.at)?;
            if membership.kind() == Kind::Invite {
                return Err(StatementError::Authority);
            }
            membership.kind() == Kind::Admin || membership.roles().contains(Roles::ADMIN)
        };
        match &body.fact {
            Fact::Revoked { target, reason } => {
                if !admin && *target != signer {
                    return Err(StatementError::Authority);
                }
                if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
                    return Err(StatementError::Reason);
                }
            }
            Fact::Kept { .. } | Fact::Withdrawn { .. } | Fact::Epoch { .. } => {
                if !admin {
                    return Err(StatementError::Authority);
                }
            }
            Fact::Redeemed { invite, certificate } => {
                if certificate.body.kind != Kind::Member || certificate.body.subject == signer {
                    return Err(StatementError::Redemption);
                }
                certificate.verify(invite, network).map_err(|_| StatementError::Redemption)?;
            }
        }
        signer
            .verify(DOMAIN_STATEMENT, network, &canonical::encode(&body), &signature)
            .map_err(|_| StatementError::Signature)?;
        let rank = Rank::of(&body.chain, body.chain.links.len());
        Ok(Self { id: Sha256::digest(bytes).into(), rank, bytes: bytes.to_vec(), body })
    }

    /// What is said.
    pub fn fact(&self) -> &Fact {
        &self.body.fact
    }

    /// When, Unix seconds, by the signer's clock.
    pub fn at(&self) -> UnixSeconds {
        self.body.at
    }

    /// The signer's chain.
    pub fn chain(&self) -> &Chain {
        &self.body.chain
    }

    /// Whose key signed it.
    pub fn signer(&self) -> PeerId {
        self.body.chain.subject()
    }

    /// The signer's name; none for the root itself.
    pub fn signer_name(&self) -> Option<&str> {
        self.body.chain.links.last().map(|link| link.body.name.as_str())
    }

    /// The signer's standing.
    pub fn rank(&self) -> &Rank {
        &self.rank
    }

    /// By which it is known.
    pub fn id(&self) -> &StatementId {
        &self.id
    }

    /// The received bytes, to be handed on unchanged.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statement({:?} by {:?} at {})", self.body.fact, self.signer(), self.body.at)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::CertificateBody;

    pub(crate) const NOW: UnixSeconds = 1_800_000_000;

    pub(crate) fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    pub(crate) fn network() -> NetworkId {
        NetworkId::of_root(&key(1).peer_id())
    }

    /// A certificate of `n`, signed by `issuer`, dated so many seconds before [`NOW`].
    pub(crate) fn certificate(issuer: u8, n: u8, kind: Kind, roles: Roles, uses: u16, ago: u64) -> Certificate {
        let body = CertificateBody {
            subject: key(n).peer_id(),
            kind,
            name: format!("host-{n}").parse().expect("a name"),
            roles,
            not_before: NOW - ago,
            not_after: NOW + 86400,
            grant_until: NOW + 86400,
            uses,
        };
        Certificate::issue(&key(issuer), &network(), body)
    }

    /// The root's: nobody had to certify it.
    pub(crate) fn root() -> Chain {
        Chain { root: key(1).peer_id(), links: Vec::new() }
    }

    /// A member that the root certified itself.
    pub(crate) fn member(n: u8) -> Chain {
        root().extended(certificate(1, n, Kind::Member, Roles::NONE, 0, 100))
    }

    /// An admin who joined by the founder's invite `by`, made so many seconds ago.
    pub(crate) fn admin(by: u8, n: u8, ago: u64) -> Chain {
        admin_with(Roles::ALL, by, n, ago)
    }

    /// The same, with these roles.
    pub(crate) fn admin_with(roles: Roles, by: u8, n: u8, ago: u64) -> Chain {
        let invite = certificate(1, by, Kind::Invite, roles, 1, ago);
        root().extended(invite).extended(certificate(by, n, Kind::Member, roles, 0, 0))
    }

    pub(crate) fn sign(n: u8, chain: Chain, fact: Fact) -> Result<Statement, StatementError> {
        Statement::sign(&key(n), &network(), chain, fact, NOW)
    }

    pub(crate) fn revoked(n: u8) -> Fact {
        Fact::Revoked { target: key(n).peer_id(), reason: "left".to_owned() }
    }

    #[test]
    fn the_root_and_admins_expel_members_and_a_member_itself_only() {
        assert!(sign(1, root(), revoked(9)).is_ok());
        assert!(sign(3, admin(2, 3, 50), revoked(9)).is_ok());
        assert_eq!(sign(4, member(4), revoked(9)), Err(StatementError::Authority));
        assert!(sign(4, member(4), revoked(4)).is_ok());
        assert_eq!(sign(4, member(4), Fact::Kept { subject: key(5).peer_id() }), Err(StatementError::Authority));
        assert_eq!(sign(4, member(4), Fact::Withdrawn { invite: key(5).peer_id() }), Err(StatementError::Authority));
    }

    #[test]
    fn a_statement_survives_the_wire_and_no_byte_of_it_can_change() {
        let statement = sign(3, admin(2, 3, 50), revoked(9)).expect("sound");
        assert_eq!(Statement::check(statement.bytes(), &network(), NOW), Ok(statement.clone()));
        for at in 0..statement.bytes().len() {
            let mut bytes = statement.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(Statement::check(&bytes, &network(), NOW).is_err(), "byte {at}");
        }
        let elsewhere = NetworkId::of_root(&key(8).peer_id());
        assert!(Statement::check(statement.bytes(), &elsewhere, NOW).is_err());
    }

    #[test]
    fn a_statement_outlives_its_signers_certificate_but_is_not_taken_from_the_future() {
        let statement = sign(3, admin(2, 3, 50), revoked(9)).expect("sound");
        assert!(Statement::check(statement.bytes(), &network(), NOW + 10 * 365 * 86400).is_ok());
        let early = Statement::check(statement.bytes(), &network(), NOW - CLOCK_SKEW - 1);
        assert_eq!(early, Err(StatementError::Early { at: NOW, now: NOW - CLOCK_SKEW - 1 }));
    }

    #[test]
    fn a_redemption_takes_the_invites_signature_and_another_witness() {
        let invite = key(2).peer_id();
        let joined =
            |signer| Fact::Redeemed { invite, certificate: certificate(signer, 5, Kind::Member, Roles::NONE, 0, 0) };
        assert!(sign(4, member(4), joined(2)).is_ok());
        assert_eq!(sign(4, member(4), joined(3)), Err(StatementError::Redemption));
        assert_eq!(sign(5, member(5), joined(2)), Err(StatementError::Redemption));
        let invited = root().extended(certificate(1, 2, Kind::Invite, Roles::NONE, 1, 50));
        assert_eq!(sign(2, invited, joined(2)), Err(StatementError::Authority));
    }

    #[test]
    fn the_longest_statement_fits() {
        let long = |issuer, n, kind| {
            let mut body = certificate(issuer, n, kind, Roles::ALL, u16::MAX, 0).body;
            if kind == Kind::Member {
                body.name = "x".repeat(63).parse().expect("a name");
            }
            Certificate::issue(&key(issuer), &network(), body)
        };
        let chain = root()
            .extended(long(1, 2, Kind::Invite))
            .extended(long(2, 3, Kind::Member))
            .extended(long(3, 4, Kind::Invite))
            .extended(long(4, 5, Kind::Member));
        let fact = Fact::Redeemed { invite: key(6).peer_id(), certificate: long(6, 7, Kind::Member) };
        let statement = sign(5, chain, fact).expect("it fits");
        assert!(statement.bytes().len() <= MAX_STATEMENT, "{}", statement.bytes().len());
        let reason = |text: &str| sign(1, root(), Fact::Revoked { target: key(9).peer_id(), reason: text.to_owned() });
        assert!(reason(&"x".repeat(MAX_REASON)).is_ok());
        assert_eq!(reason(&"x".repeat(MAX_REASON + 1)), Err(StatementError::Reason));
        assert_eq!(reason("two\nlines"), Err(StatementError::Reason));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1200)) {
            let _ = Statement::check(&bytes, &network(), NOW);
        }
    }
}
