//! What the targets and the seeds share: one network, its founder, one member, one moment.

use meshd::dht::record::{Ipv4Claim, RECORD_LIFETIME};
use meshd::dht::statement::Fact;
use meshd::dht::{Record, Statement, Verified};
use meshd::identity::{
    Certificate, CertificateBody, Chain, Contact, Invite, Kind, Mac, Name, NetworkId, NetworkSecret, Roles, SigningKey,
    UnixSeconds, default_prefix, ula_address,
};
use meshd::session::handshake::Local;

/// The moment at which everything is judged, Unix seconds.
pub const NOW: UnixSeconds = 1_800_000_000;

/// Key number `n`.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// The network of key 1.
pub fn network() -> NetworkId {
    NetworkId::of_root(&key(1).peer_id())
}

/// Its secret.
pub fn secret() -> NetworkSecret {
    NetworkSecret::new([7; 32])
}

/// What the node of key `n` brings into a handshake.
pub fn local(n: u8) -> Local {
    Local::new(&key(n).noise_secret(), &secret(), true)
}

/// The index that the handshake's initiator chose.
pub const INDEX: u32 = 7;

/// An invite signed by the root, with one contact.
pub fn invite() -> Invite {
    let body = CertificateBody {
        subject: key(2).peer_id(),
        kind: Kind::Invite,
        name: name("invite"),
        roles: Roles::BRIDGE,
        not_before: NOW,
        not_after: NOW + 7 * 86400,
        grant_until: NOW + 365 * 86400,
        uses: 1,
    };
    let chain = Chain::of_root(key(1).peer_id(), Certificate::issue(&key(1), &network(), body));
    let mut invite = Invite::new(name("lab"), default_prefix(&network()), secret(), &key(2), chain);
    invite.contacts.push(Contact {
        peer: key(1).peer_id(),
        noise: key(1).noise_secret().public(),
        endpoints: vec!["192.0.2.1:4747".parse().expect("an endpoint")],
        tls: true,
    });
    invite
}

/// The record of the member with key `n`.
pub fn record(n: u8) -> Verified<Record> {
    let chain = invite().redeem(key(n).peer_id(), name("ada"), NOW).expect("the invite is good");
    let mac = Mac::automatic(&network(), &key(n).peer_id());
    let record = Record {
        chain,
        noise: key(n).noise_secret().public(),
        mac,
        ipv4: Ipv4Claim { address: [10, 77, 0, n].into(), fixed: false },
        ipv6: ula_address(&network(), &mac),
        endpoints: vec!["192.0.2.2:4747".parse().expect("an endpoint"), "[fe80::1]:4747".parse().expect("an endpoint")],
        homes: vec![key(3).peer_id()],
        tls: false,
        sequence: 1,
        expires: NOW + RECORD_LIFETIME,
    };
    Verified::sign(&key(n), &network(), record, NOW).expect("a sound record")
}

/// The chain of the root itself.
pub fn root() -> Chain {
    Chain { root: key(1).peer_id(), links: Vec::new() }
}

/// That the member of key 5 was expelled by the founder.
pub fn revocation() -> Statement {
    let fact = Fact::Revoked { target: key(5).peer_id(), reason: "left".to_owned() };
    Statement::sign(&key(1), &network(), root(), fact, NOW).expect("a sound statement")
}

/// `text` as a name.
pub fn name(text: &str) -> Name {
    text.parse().expect("a sound name")
}
