//! A network to be a member of: its root key, its secret, and certificates for its members.

use meshd::config::NetworkConfig;
use meshd::identity::{
    Certificate, CertificateBody, Chain, Ipv4Prefix, Kind, Name, NetworkSecret, PeerId, Roles, SigningKey, UnixSeconds,
    default_prefix,
};

use crate::seed::Chance;

/// The wall time at which every virtual world begins: 15 January 2027, Unix seconds.
pub const UNIX_START: UnixSeconds = 1_800_000_000;

/// How long its members' certificates hold, seconds: longer than any run.
const MEMBERSHIP: UnixSeconds = 365 * 86_400;

/// A network, with the key that makes members.
#[derive(Debug, Clone)]
pub struct Network {
    /// What every member knows.
    pub config: NetworkConfig,
    root: SigningKey,
}

impl Network {
    /// A network of chance.
    pub fn new(chance: &mut Chance) -> Self {
        let root = SigningKey::from_seed(&chance.bytes());
        let mut config = NetworkConfig {
            name: "team".parse().expect("a name"),
            root: root.peer_id(),
            secret: NetworkSecret::new(chance.bytes()),
            prefix: Ipv4Prefix::new([10, 77, 0, 0].into(), 16).expect("a prefix"),
        };
        config.prefix = default_prefix(&config.id());
        Self { config, root }
    }

    /// The same network as somebody knows it who was told another secret.
    #[must_use]
    pub fn with_secret(mut self, secret: NetworkSecret) -> Self {
        self.config.secret = secret;
        self
    }

    /// A certificate for `member` that holds for a year.
    pub fn member(&self, member: PeerId, name: &Name) -> Chain {
        self.member_until(member, name, UNIX_START + MEMBERSHIP)
    }

    /// A certificate for `member` that holds until `not_after`.
    pub fn member_until(&self, member: PeerId, name: &Name, not_after: UnixSeconds) -> Chain {
        let body = CertificateBody {
            subject: member,
            kind: Kind::Member,
            name: name.clone(),
            roles: Roles::NONE,
            not_before: UNIX_START - 86_400,
            not_after,
            grant_until: not_after,
            uses: 0,
        };
        Chain::of_root(self.root.peer_id(), Certificate::issue(&self.root, &self.config.id(), body))
    }
}
