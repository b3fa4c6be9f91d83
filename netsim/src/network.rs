//! A network to be a member of: its root key, its secret, and certificates for its members.

use meshd::config::NetworkConfig;
use meshd::dht::Statement;
use meshd::dht::statement::Fact;
use meshd::identity::{
    Certificate, CertificateBody, Chain, Ipv4Prefix, Kind, Name, NetworkId, NetworkSecret, PeerId, Roles, SigningKey,
    UnixSeconds, default_prefix,
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

    /// What the founder says, at `at`.
    pub fn says(&self, fact: Fact, at: UnixSeconds) -> Statement {
        let chain = Chain { root: self.root.peer_id(), links: Vec::new() };
        Statement::sign(&self.root, &self.config.id(), chain, fact, at).expect("the founder may say everything")
    }

    /// A secret of chance, and what the founder says of it: the `number`-th, since `after` was expelled.
    pub fn epoch(&self, secret: [u8; 32], number: u32, after: PeerId, at: UnixSeconds) -> (NetworkSecret, Statement) {
        let secret = NetworkSecret::new(secret);
        let fact = Fact::Epoch { number, secret: secret.fingerprint(), after };
        let statement = self.says(fact, at);
        (secret, statement)
    }

    /// An invite by the founder: its key is that of `seed`, and it was made at `at`.
    pub fn invite(&self, seed: u8, roles: Roles, uses: u16, at: UnixSeconds) -> Ticket {
        let chain = Chain { root: self.root.peer_id(), links: Vec::new() };
        Ticket::by(&self.root, &chain, seed, roles, uses, at)
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

/// An invite, with the key inside it.
#[derive(Debug, Clone)]
pub struct Ticket {
    key: SigningKey,
    chain: Chain,
}

impl Ticket {
    /// By whoever has `issuer` and its chain; the invite's key is that of `seed`.
    pub fn by(issuer: &SigningKey, chain: &Chain, seed: u8, roles: Roles, uses: u16, at: UnixSeconds) -> Self {
        let key = SigningKey::from_seed(&[seed; 32]);
        let body = body(key.peer_id(), Kind::Invite, &"invite".parse().expect("a name"), roles, at, uses);
        let network = NetworkId::of_root(&chain.root);
        Self { chain: chain.extended(Certificate::issue(issuer, &network, body)), key }
    }

    /// By which it is withdrawn.
    pub fn key(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Lets `member` in.
    pub fn redeem(&self, member: PeerId, name: &Name, at: UnixSeconds) -> Chain {
        let roles = self.chain.links.last().map_or(Roles::NONE, |link| link.body.roles);
        let network = NetworkId::of_root(&self.chain.root);
        self.chain.extended(Certificate::issue(&self.key, &network, body(member, Kind::Member, name, roles, at, 0)))
    }
}

fn body(subject: PeerId, kind: Kind, name: &Name, roles: Roles, at: UnixSeconds, uses: u16) -> CertificateBody {
    let end = UNIX_START + MEMBERSHIP;
    CertificateBody { subject, kind, name: name.clone(), roles, not_before: at, not_after: end, grant_until: end, uses }
}
