//! Membership certificates: root → invite → admin → invite → member at most, verified without asking anyone.
//!
//! A [`Chain`] starts at the root public key (whose hash is the network id) and has one to four certificates. Each is
//! signed by the key above it, may only narrow what that key may do, and the last one names the member. An admin is a
//! member with the role [`Roles::ADMIN`]: its key signs invites.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::canonical;
use super::key::{IdentityError, NetworkId, PeerId, Signature, SigningKey};
use super::{CLOCK_SKEW, UnixSeconds};

const DOMAIN_CERTIFICATE: &[u8] = b"meshd certificate v1";

/// Certificates below the root: the invite by which an admin joined, the admin, its invite, the member. So the founder
/// makes admins and admins make members; two more would let admins make admins, and no longer fit a handshake.
pub const MAX_LINKS: usize = 4;

/// A DNS label (RFC 1123): 1 to 63 letters, digits and hyphens, no hyphen at either end. Kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Text that is no [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 63 letters, digits and hyphens, with no hyphen at either end")]
pub struct NameError;

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let sound =
            (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
        sound.then_some(Self(text)).ok_or(NameError)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > 63 {
            return Err(NameError);
        }
        Self::try_from(text.to_ascii_lowercase())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many admins, at most, it may take to expel a member.
pub const MAX_QUORUM: u8 = 15;

/// What a member may do beyond speaking for itself; a bit set so that later roles need no new format. In a certificate that the
/// founder has signed, the four highest bits are the network's quorum, less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Roles(pub u16);

impl Roles {
    /// An ordinary member.
    pub const NONE: Self = Self(0);
    /// Every role there is and will be: what the root holds.
    pub const ALL: Self = Self(u16::MAX);
    /// Meant to carry others' datagrams: asked first. Any member may do so; this one is there for it.
    pub const RELAY: Self = Self(1);
    /// Speaks for stations behind it.
    pub const BRIDGE: Self = Self(1 << 1);
    /// Issues invites, expels members.
    pub const ADMIN: Self = Self(1 << 2);

    /// Each role with the word for it.
    const NAMED: [(Self, &'static str); 3] = [(Self::RELAY, "relay"), (Self::BRIDGE, "bridge"), (Self::ADMIN, "admin")];

    /// These roles and those.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These roles in a network where it takes so many admins to expel a member, 1 to [`MAX_QUORUM`].
    #[must_use]
    pub fn with_quorum(self, admins: u8) -> Self {
        Self(self.0 & (u16::MAX >> 4) | u16::from(admins.clamp(1, MAX_QUORUM) - 1) << 12)
    }

    /// How many admins it takes to expel a member. Every bit set is the root's and no number.
    pub fn quorum(self) -> u8 {
        let less_one = (self.0 >> 12) as u8;
        if less_one < MAX_QUORUM { less_one + 1 } else { 1 }
    }

    /// The words for its roles; none for an ordinary member.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMED.into_iter().filter(move |(role, _)| self.contains(*role)).map(|(_, name)| name)
    }

    /// Whether every role of `other` is in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Text that is no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the roles are member, relay, bridge and admin")]
pub struct RoleError;

impl FromStr for Roles {
    type Err = RoleError;

    /// One role by its word; `member` is none in particular.
    fn from_str(text: &str) -> Result<Self, RoleError> {
        let named = Self::NAMED.into_iter().find(|(_, name)| *name == text).map(|(role, _)| role);
        if text == "member" { Ok(Self::NONE) } else { named.ok_or(RoleError) }
    }
}

/// What a certificate's key may do with the next certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Issues invites and members.
    Admin,
    /// Issues members; its key travels inside an invite.
    Invite,
    /// A node. Issues nothing, or invites if it is an admin.
    Member,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateBody {
    /// The key that is certified.
    pub subject: PeerId,
    /// What it may issue.
    pub kind: Kind,
    /// Its name; of an invite, a label for the list of invites.
    pub name: Name,
    /// Roles, a subset of the issuer's.
    pub roles: Roles,
    /// Valid from, Unix seconds.
    pub not_before: UnixSeconds,
    /// For an invite, the last moment at which a member may join by it; for others, the end of validity. Unix seconds.
    pub not_after: UnixSeconds,
    /// The latest `not_after` of a member below this certificate, Unix seconds. Of a member, its own `not_after`.
    pub grant_until: UnixSeconds,
    /// How many may join by an invite; 0 means any number. Recorded here, enforced by the register of redemptions.
    pub uses: u16,
}

/// A body and its issuer's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What is signed.
    pub body: CertificateBody,
    /// By the key above, over (domain, network, canonical body).
    pub signature: Signature,
}

impl Certificate {
    /// Signs `body` with the issuer's key.
    pub fn issue(issuer: &SigningKey, network: &NetworkId, body: CertificateBody) -> Self {
        let signature = issuer.sign(DOMAIN_CERTIFICATE, network, &canonical::encode(&body));
        Self { body, signature }
    }

    /// Whether `issuer` has signed it for `network`; neither what it may issue nor the time is looked at.
    ///
    /// # Errors
    /// [`IdentityError::Signature`].
    pub fn verify(&self, issuer: &PeerId, network: &NetworkId) -> Result<(), IdentityError> {
        issuer.verify(DOMAIN_CERTIFICATE, network, &canonical::encode(&self.body), &self.signature)
    }
}

/// Why a chain proves no membership.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The root key is not the one of our network.
    #[error("the certificate is of another network ({0})")]
    ForeignNetwork(String),
    /// No certificate, or more than four.
    #[error("a chain has 1 to 4 certificates, this one {0}")]
    Length(usize),
    /// A signature does not verify.
    #[error("the signature of certificate {0} is not its issuer's")]
    Signature(usize),
    /// A certificate stands where its kind may not.
    #[error("certificate {0} is of a kind that may not stand there")]
    Kind(usize),
    /// A certificate grants more than its issuer has.
    #[error("certificate {0} grants more than its issuer may")]
    Widened(usize),
    /// Not valid yet; the two times in Unix seconds.
    #[error("certificate {link} is valid from {not_before}, and here it is {now} (is this clock right?)")]
    NotYetValid {
        /// Which certificate, from 0.
        link: usize,
        /// Its beginning.
        not_before: UnixSeconds,
        /// The time here.
        now: UnixSeconds,
    },
    /// No longer valid; the two times in Unix seconds.
    #[error("certificate {link} expired at {not_after}, and here it is {now}")]
    Expired {
        /// Which certificate, from 0.
        link: usize,
        /// Its end.
        not_after: UnixSeconds,
        /// The time here.
        now: UnixSeconds,
    },
    /// The member joined after the invite had expired.
    #[error("joined at {joined} by an invite that expired at {not_after}")]
    JoinedLate {
        /// `not_before` of the member.
        joined: UnixSeconds,
        /// `not_after` of the invite.
        not_after: UnixSeconds,
    },
}

/// The root key and the certificates below it, topmost first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The network's root public key.
    pub root: PeerId,
    /// One to four certificates.
    pub links: Vec<Certificate>,
}

/// What a verified chain proves. Only [`Chain::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    subject: PeerId,
    kind: Kind,
    name: Name,
    roles: Roles,
    not_after: UnixSeconds,
}

impl Membership {
    /// The certified key.
    pub fn subject(&self) -> PeerId {
        self.subject
    }

    /// What it may issue; a node is a [`Kind::Member`].
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its roles.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// When the whole chain ends, Unix seconds: the earliest end of its links.
    pub fn not_after(&self) -> UnixSeconds {
        self.not_after
    }
}

impl Chain {
    /// The chain of a certificate issued directly by the root.
    pub fn of_root(root: PeerId, certificate: Certificate) -> Self {
        Self { root, links: vec![certificate] }
    }

    /// The last of the certified keys: whose chain it is. The root's, if nothing was certified.
    pub fn subject(&self) -> PeerId {
        self.links.last().map_or(self.root, |link| link.body.subject)
    }

    /// How many admins it takes to expel a member of this network. The founder has signed it, in the first certificate.
    pub fn quorum(&self) -> u8 {
        self.links.first().map_or(1, |link| link.body.roles.quorum())
    }

    /// Whether the last key is an admin's.
    pub fn is_admin(&self) -> bool {
        self.links.last().is_some_and(|link| link.body.roles.contains(Roles::ADMIN))
    }

    /// The invites in it, each with the member that joined by it.
    pub fn redemptions(&self) -> impl Iterator<Item = (&Certificate, &Certificate)> {
        self.links.windows(2).filter(|pair| pair[0].body.kind == Kind::Invite).map(|pair| (&pair[0], &pair[1]))
    }

    /// This chain and one more certificate.
    pub fn extended(&self, certificate: Certificate) -> Self {
        let mut chain = self.clone();
        chain.links.push(certificate);
        chain
    }

    /// Verifies every link at `now` (Unix seconds).
    ///
    /// # Errors
    /// A [`ChainError`] that names the first link at fault.
    pub fn verify(&self, network: &NetworkId, now: UnixSeconds) -> Result<Membership, ChainError> {
        let of = NetworkId::of_root(&self.root);
        if of != *network {
            return Err(ChainError::ForeignNetwork(of.short()));
        }
        if self.links.is_empty() || self.links.len() > MAX_LINKS {
            return Err(ChainError::Length(self.links.len()));
        }
        let mut issuer = Issuer { key: self.root, kind: Kind::Admin, roles: Roles::ALL, grant_until: UnixSeconds::MAX };
        let mut end = UnixSeconds::MAX;
        for (index, link) in self.links.iter().enumerate() {
            let body = &link.body;
            let below = match issuer.kind {
                Kind::Admin => true,
                Kind::Invite => body.kind == Kind::Member,
                Kind::Member => body.kind == Kind::Invite && issuer.roles.contains(Roles::ADMIN),
            };
            if !below {
                return Err(ChainError::Kind(index));
            }
            if !issuer.roles.contains(body.roles) || body.grant_until > issuer.grant_until {
                return Err(ChainError::Widened(index));
            }
            link.verify(&issuer.key, network).map_err(|_| ChainError::Signature(index))?;
            end = end.min(self.check_times(index, now)?);
            issuer = Issuer { key: body.subject, kind: body.kind, roles: body.roles, grant_until: body.grant_until };
        }
        let last = &self.links[self.links.len() - 1].body;
        Ok(Membership {
            subject: last.subject,
            kind: last.kind,
            name: last.name.clone(),
            roles: last.roles,
            not_after: end,
        })
    }

    /// An invite's own end limits the moment of joining, not the membership that came of it.
    fn check_times(&self, index: usize, now: UnixSeconds) -> Result<UnixSeconds, ChainError> {
        let body = &self.links[index].body;
        if now.saturating_add(CLOCK_SKEW) < body.not_before {
            return Err(ChainError::NotYetValid { link: index, not_before: body.not_before, now });
        }
        if let (Kind::Invite, Some(member)) = (body.kind, self.links.get(index + 1)) {
            let joined = member.body.not_before;
            if joined > body.not_after {
                return Err(ChainError::JoinedLate { joined, not_after: body.not_after });
            }
            return Ok(body.grant_until);
        }
        let not_after = if body.kind == Kind::Member { body.not_after.min(body.grant_until) } else { body.not_after };
        if now > not_after {
            return Err(ChainError::Expired { link: index, not_after, now });
        }
        Ok(not_after)
    }
}

struct Issuer {
    key: PeerId,
    kind: Kind,
    roles: Roles,
    grant_until: UnixSeconds,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = 1_800_000_000;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn network() -> NetworkId {
        NetworkId::of_root(&key(1).peer_id())
    }

    fn body(subject: u8, kind: Kind) -> CertificateBody {
        CertificateBody {
            subject: key(subject).peer_id(),
            kind,
            name: "ada".parse().expect("a name"),
            roles: Roles::NONE,
            not_before: NOW,
            not_after: NOW + 1000,
            grant_until: NOW + 1000,
            uses: 0,
        }
    }

    fn issue(issuer: u8, body: CertificateBody) -> Certificate {
        Certificate::issue(&key(issuer), &network(), body)
    }

    fn full() -> Chain {
        Chain::of_root(key(1).peer_id(), issue(1, body(2, Kind::Admin)))
            .extended(issue(2, body(3, Kind::Invite)))
            .extended(issue(3, body(4, Kind::Member)))
    }

    #[test]
    fn root_admin_invite_member_verifies() {
        let membership = full().verify(&network(), NOW).expect("a sound chain");
        assert_eq!(membership.subject(), key(4).peer_id());
        assert_eq!(membership.name().as_str(), "ada");
        assert_eq!(membership.not_after(), NOW + 1000);
    }

    #[test]
    fn a_chain_of_another_network_is_foreign() {
        let other = NetworkId::of_root(&key(9).peer_id());
        assert!(matches!(full().verify(&other, NOW), Err(ChainError::ForeignNetwork(_))));
    }

    #[test]
    fn a_forged_link_is_named() {
        let mut chain = full();
        chain.links[1].body.uses = 9;
        assert_eq!(chain.verify(&network(), NOW), Err(ChainError::Signature(1)));
    }

    #[test]
    fn a_member_issues_nothing_and_an_invite_only_members() {
        let chain =
            Chain::of_root(key(1).peer_id(), issue(1, body(2, Kind::Member))).extended(issue(2, body(3, Kind::Member)));
        assert_eq!(chain.verify(&network(), NOW), Err(ChainError::Kind(1)));
        let chain =
            Chain::of_root(key(1).peer_id(), issue(1, body(2, Kind::Invite))).extended(issue(2, body(3, Kind::Admin)));
        assert_eq!(chain.verify(&network(), NOW), Err(ChainError::Kind(1)));
    }

    #[test]
    fn an_admin_who_joined_by_an_invite_invites_members_and_no_admins() {
        let admin = |subject, kind| CertificateBody { roles: Roles::ADMIN, ..body(subject, kind) };
        let top = Chain::of_root(key(1).peer_id(), issue(1, admin(2, Kind::Invite)))
            .extended(issue(2, admin(3, Kind::Member)));
        assert!(top.verify(&network(), NOW).expect("sound").roles().contains(Roles::ADMIN));
        let chain = top.extended(issue(3, body(4, Kind::Invite))).extended(issue(4, body(5, Kind::Member)));
        assert_eq!(chain.verify(&network(), NOW).expect("sound").subject(), key(5).peer_id());
        let member = top.extended(issue(3, body(4, Kind::Member)));
        assert_eq!(member.verify(&network(), NOW), Err(ChainError::Kind(2)));
        let longer = chain.extended(issue(5, body(6, Kind::Invite)));
        assert_eq!(longer.verify(&network(), NOW), Err(ChainError::Length(5)));
        let plain = Chain::of_root(key(1).peer_id(), issue(1, body(3, Kind::Member)));
        let invited = plain.extended(issue(3, body(4, Kind::Invite)));
        assert_eq!(invited.verify(&network(), NOW), Err(ChainError::Kind(1)));
    }

    #[test]
    fn roles_have_words() {
        assert_eq!("admin".parse(), Ok(Roles::ADMIN));
        assert_eq!("member".parse(), Ok(Roles::NONE));
        assert_eq!("boss".parse::<Roles>(), Err(RoleError));
        assert_eq!(Roles::RELAY.with(Roles::ADMIN).names().collect::<Vec<_>>(), ["relay", "admin"]);
    }

    #[test]
    fn an_invite_that_has_expired_keeps_those_who_joined_in_time() {
        let mut invite = body(3, Kind::Invite);
        invite.not_after = NOW + 10;
        let top = Chain::of_root(key(1).peer_id(), issue(1, invite));
        let in_time = top.extended(issue(3, body(4, Kind::Member)));
        assert!(in_time.verify(&network(), NOW + 500).is_ok());
        let mut member = body(4, Kind::Member);
        member.not_before = NOW + 11;
        let late = top.extended(issue(3, member));
        assert_eq!(
            late.verify(&network(), NOW + 500),
            Err(ChainError::JoinedLate { joined: NOW + 11, not_after: NOW + 10 })
        );
    }

    #[test]
    fn expiry_is_enforced_to_the_second() {
        assert!(full().verify(&network(), NOW + 1000).is_ok());
        assert!(matches!(full().verify(&network(), NOW + 1001), Err(ChainError::Expired { .. })));
        assert!(full().verify(&network(), NOW - CLOCK_SKEW).is_ok());
        assert!(matches!(full().verify(&network(), NOW - CLOCK_SKEW - 1), Err(ChainError::NotYetValid { .. })));
    }

    #[test]
    fn nobody_grants_what_it_does_not_have() {
        let mut wide = body(4, Kind::Member);
        wide.roles = Roles(1);
        let chain = Chain::of_root(key(1).peer_id(), issue(1, body(3, Kind::Invite)));
        assert_eq!(chain.extended(issue(3, wide)).verify(&network(), NOW), Err(ChainError::Widened(1)));
        let mut long = body(4, Kind::Member);
        long.grant_until = NOW + 1001;
        assert_eq!(chain.extended(issue(3, long)).verify(&network(), NOW), Err(ChainError::Widened(1)));
    }

    #[test]
    fn a_chain_of_four_links_is_too_long() {
        let chain = full().extended(issue(4, body(5, Kind::Member))).extended(issue(5, body(6, Kind::Member)));
        assert_eq!(chain.verify(&network(), NOW), Err(ChainError::Length(5)));
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "laptop-3", "ADA"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(bad.parse::<Name>(), Err(NameError), "{bad}");
        }
    }
}
