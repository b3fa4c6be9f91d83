//! How machines become members: founding a network, inviting, joining. All of it works offline.
//!
//! The founder has the root key and certifies itself. An invite certifies an ephemeral key that travels inside it; the
//! newcomer signs its own certificate with that key. This file is where the clock and the operating system's randomness
//! meet certificates.
#![expect(clippy::disallowed_methods, reason = "seeds come from the operating system, dates from its clock")]

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::{DEFAULT_MTU, NetworkConfig, NodeConfig, Relaying};
use crate::dht::{Record, Verified};
use crate::identity::{
    Ago, Certificate, CertificateBody, Chain, ChainError, Contact, Invite, InviteError, Ipv4Prefix, Kind, MAX_CONTACTS,
    MAX_LINKS, Mac, Name, NetworkId, NetworkSecret, PartyCode, PeerId, Roles, SigningKey, UnixSeconds, automatic_ipv4,
    canonical, default_prefix,
};
use crate::wire::stream::TLS_PORT;

use super::admin;
use super::store::{self, Home, Store};

/// How long the founder's own membership lasts: a hundred years. It holds the root key and could renew itself at any
/// time, so an end would protect nothing.
const FOUNDER_LIFETIME: UnixSeconds = 100 * 365 * 86400;

/// The first of January 2026. A clock before it is not set: meshd is younger.
const EARLIEST_CLOCK: UnixSeconds = 1_767_225_600;

/// Endpoints of one contact in an invite: both families on two interfaces. More would not fit the invite's 1200 bytes.
const CONTACT_ENDPOINTS: usize = 4;

/// Names tried for a network nobody named, before giving up: 65536 names, and few networks on a machine.
const NAME_ATTEMPTS: usize = 32;

/// What an invite allows.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What it is called in lists.
    pub name: Name,
    /// What whoever joins by it may do.
    pub roles: Roles,
    /// How long one may join by it.
    pub expires: Duration,
    /// How many may join by it; 0 means any number.
    pub uses: u16,
    /// How long memberships last that come of it, counted from now.
    pub member_for: Duration,
}

/// A membership that was just made, for people and `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Enrolled {
    /// The network's name here.
    pub network: String,
    /// Its id.
    pub network_id: String,
    /// Our name.
    pub name: String,
    /// Our peer id.
    pub peer: String,
    /// Our automatic MAC.
    pub mac: String,
    /// Our automatic IPv4 address.
    pub ipv4: String,
    /// The network's IPv4 prefix.
    pub prefix: String,
    /// When the membership ends, Unix seconds.
    pub member_until: UnixSeconds,
    /// The network's folder.
    pub state: String,
}

/// An invite, for people and `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Ticket {
    /// What the newcomer types.
    pub invite: String,
    /// The same as a link.
    pub link: String,
    /// The network.
    pub network: String,
    /// What it is called in lists.
    pub name: String,
    /// Its key, by which it is withdrawn.
    pub key: String,
    /// What whoever joins by it may do.
    pub roles: Vec<&'static str>,
    /// Until when one may join by it, Unix seconds.
    pub expires: UnixSeconds,
    /// How many may; 0 means any number.
    pub uses: u16,
    /// Until when memberships last that come of it, Unix seconds.
    pub member_until: UnixSeconds,
    /// How many members to try first it names.
    pub contacts: usize,
}

/// Makes a network and ourselves its first member. `quorum` is how many admins it takes to expel one, at most
/// [`MAX_QUORUM`](crate::identity::MAX_QUORUM); the founder needs no other.
///
/// # Errors
/// When the name is taken, the clock not set, or the disk full; nothing is left behind then.
pub fn found(
    store: &Store,
    name: Option<Name>,
    host: Option<Name>,
    prefix: Option<Ipv4Prefix>,
    quorum: u8,
) -> Result<(Home, Enrolled)> {
    let now = clock()?;
    let host = host.map_or_else(host_name, Ok)?;
    let (root, name) = match name {
        Some(name) => (new_key()?, name),
        None => unnamed(store)?,
    };
    let id = NetworkId::of_root(&root.peer_id());
    let key = new_key()?;
    let chain = Chain::of_root(
        root.peer_id(),
        Certificate::issue(&root, &id, of_a_founder(key.peer_id(), host, Roles::ALL.with_quorum(quorum), now)),
    );
    let network = NetworkConfig {
        name,
        root: root.peer_id(),
        secret: NetworkSecret::new(*seed()?),
        prefix: prefix.unwrap_or_else(|| default_prefix(&id)),
    };
    store.create(&network, &key, &chain, &[], Some(&root))?;
    enrolled(store, &network.name, now)
}

/// Makes an invite. `endpoints` are those of our own running node, if it runs: the newcomer tries them first, and then
/// those of members we knew last.
///
/// # Errors
/// When this machine is no admin, or may not grant these roles.
pub fn invite(home: &Home, terms: &Terms, endpoints: &[SocketAddr]) -> Result<Ticket> {
    let now = clock()?;
    let name = &home.network.name;
    let (issuer, chain) = admin::signer(home)?;
    if !chain.links.is_empty() && terms.roles.contains(Roles::ADMIN) {
        bail!("only the founder of network {name} makes admins: their certificates must fit a handshake");
    }
    let ours = chain.links.last().map(|link| &link.body);
    if ours.is_some_and(|ours| !ours.roles.contains(terms.roles)) {
        bail!("this machine cannot grant a role that it does not have");
    }
    if chain.links.len() + 2 > MAX_LINKS {
        bail!("this machine is an admin that was made by an admin: it expels, but does not invite");
    }
    let ours_ends = ours.map_or(UnixSeconds::MAX, |ours| ours.grant_until);
    let expires = (now + terms.expires.as_secs()).min(ours_ends);
    let member_until = (now + terms.member_for.as_secs()).min(ours_ends);
    let (id, key) = (home.network.id(), new_key()?);
    // What the founder signs says how many admins it takes to expel a member.
    let roles = if chain.links.is_empty() { terms.roles.with_quorum(home.chain.quorum()) } else { terms.roles };
    let body = CertificateBody {
        subject: key.peer_id(),
        kind: Kind::Invite,
        name: terms.name.clone(),
        roles,
        not_before: now,
        not_after: expires,
        grant_until: member_until,
        uses: terms.uses,
    };
    let certificate = Certificate::issue(&issuer, &id, body);
    let chain = chain.extended(certificate.clone());
    let mut invite = Invite::new(name.clone(), home.network.prefix, home.newest_secret(), &key, chain);
    invite.contacts = contacts(home, endpoints, now);
    let contacts = invite.contacts.len();
    if let Err(error) = store::add_invite(&home.dir, canonical::encode(&certificate)) {
        tracing::warn!(
            "the invite is good, but not in the list of `meshd invites` until somebody has joined by it: {error:#}"
        );
    }
    let ticket = Ticket {
        invite: invite.to_string(),
        link: invite.link(),
        network: name.to_string(),
        name: terms.name.to_string(),
        key: key.peer_id().to_string(),
        roles: terms.roles.names().collect(),
        expires,
        uses: terms.uses,
        member_until,
        contacts,
    };
    Ok(ticket)
}

/// Becomes a member by the invite `text`: makes a key, certifies it, keeps it all. No one else need be online.
///
/// # Errors
/// One line for each way in which an invite can be unusable, and when we are a member already.
pub fn join(store: &Store, text: &str, name: Option<Name>, host: Option<Name>) -> Result<(Home, Enrolled)> {
    let now = clock()?;
    let invite: Invite = text.parse()?;
    let id = invite.network_id();
    if let Some(home) = store.find(&id)? {
        let name = &home.network.name;
        bail!("this machine is already a member of that network, as {name}: start it with `meshd up {name}`");
    }
    let name = name.unwrap_or_else(|| invite.network.clone());
    if store.contains(&name) {
        bail!("another network is called {name} here; choose a name for this one with --network");
    }
    let host = host.map_or_else(host_name, Ok)?;
    let key = new_key()?;
    let chain = invite.redeem(key.peer_id(), host, now).map_err(|error| unusable(error, now))?;
    chain.verify(&id, now).map_err(|error| match error {
        ChainError::Expired { not_after, .. } => {
            anyhow!("the memberships of this invite ended {} ago; ask for a new one", Ago(now - not_after))
        }
        error @ (ChainError::ForeignNetwork(_)
        | ChainError::Length(_)
        | ChainError::Signature(_)
        | ChainError::Kind(_)
        | ChainError::Widened(_)
        | ChainError::NotYetValid { .. }
        | ChainError::JoinedLate { .. }) => anyhow!("{error}; ask for a new invite"),
    })?;
    let network = NetworkConfig { name, root: invite.chain.root, secret: invite.secret.clone(), prefix: invite.prefix };
    store.create(&network, &key, &chain, &invite.contacts, None)?;
    enrolled(store, &network.name, now)
}

/// What a guest of the party with this code starts with, and its name: a key for this time only, certified by itself with the root key that
/// everybody there can make. Nothing of it touches the disk. Takes a quarter of a second and 128 MiB.
///
/// # Errors
/// When the clock is not set, or the host name no name.
pub fn party(code: &PartyCode, host: Option<Name>) -> Result<(NodeConfig, Name)> {
    let now = clock()?;
    let name = host.map_or_else(host_name, Ok)?;
    let (root, secret) = code.network();
    let (id, key) = (NetworkId::of_root(&root.peer_id()), new_key()?);
    let chain = Chain::of_root(
        root.peer_id(),
        Certificate::issue(&root, &id, of_a_founder(key.peer_id(), name.clone(), Roles::NONE, now)),
    );
    let network = NetworkConfig {
        name: format!("{}{}", store::PARTY, &id.short()[..4]).parse()?,
        root: root.peer_id(),
        secret,
        prefix: default_prefix(&id),
    };
    let node = NodeConfig {
        network,
        key,
        chain,
        mac: None,
        ipv4: None,
        mtu: DEFAULT_MTU,
        boots: 1,
        relaying: Relaying::default(),
        tls: false,
        hardware_aes: store::has_hardware_aes(),
        post_quantum: true,
        contacts: Vec::new(),
        known_records: Vec::new(),
        known_statements: Vec::new(),
        known_secrets: Vec::new(),
    };
    Ok((node, name))
}

/// A new code, by chance.
///
/// # Errors
/// When the system gives no random numbers.
pub fn party_code() -> Result<PartyCode> {
    let seed = seed()?;
    Ok(PartyCode::of_random(std::array::from_fn(|at| seed[at])))
}

/// The certificate of who has the root key.
fn of_a_founder(subject: PeerId, name: Name, roles: Roles, now: UnixSeconds) -> CertificateBody {
    CertificateBody {
        subject,
        kind: Kind::Member,
        name,
        roles,
        not_before: now,
        not_after: now + FOUNDER_LIFETIME,
        grant_until: now + FOUNDER_LIFETIME,
        uses: 0,
    }
}

/// The network of the invite `text`, if this machine is a member of it already. The invite may have expired since.
///
/// # Errors
/// When the text is no invite.
pub fn joined(store: &Store, text: &str) -> Result<Option<Home>> {
    store.find(&text.parse::<Invite>()?.network_id())
}

/// This machine's wall clock, Unix seconds.
///
/// # Errors
/// When it was never set: certificates are dated by it.
pub fn clock() -> Result<UnixSeconds> {
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    if now < EARLIEST_CLOCK {
        bail!("this machine's clock is not set (it is before 2026); set it, certificates are dated by it");
    }
    Ok(now)
}

/// The machine's host name as a DNS label: its first label, in lower case, other characters as hyphens.
///
/// # Errors
/// When nothing is left of it.
pub fn host_name() -> Result<Name> {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    label(&text).with_context(|| format!("the host name {:?} is no DNS label; choose one with --name", text.trim()))
}

fn label(host: &str) -> Option<Name> {
    let first = host.trim().split('.').next()?.to_ascii_lowercase();
    let mut text: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    text.truncate(text.trim_end_matches('-').len());
    Name::try_from(text.trim_start_matches('-').to_owned()).ok()
}

/// A root key whose network's name by default, `mesh-` and four digits of the id, is free here.
fn unnamed(store: &Store) -> Result<(SigningKey, Name)> {
    for _ in 0..NAME_ATTEMPTS {
        let root = new_key()?;
        let id = NetworkId::of_root(&root.peer_id()).short();
        let name = format!("mesh-{}", &id[..4]).parse()?;
        if !store.contains(&name) {
            return Ok((root, name));
        }
    }
    bail!("no free name found for the network; choose one with --name")
}

/// Ourselves first, if we run; then members whose records we still hold.
fn contacts(home: &Home, endpoints: &[SocketAddr], now: UnixSeconds) -> Vec<Contact> {
    let contact = |peer: PeerId, noise, endpoints: &[SocketAddr], tls: bool| {
        let plain = |endpoint: &SocketAddr| endpoint.port() != TLS_PORT;
        let usable =
            |endpoint: &&SocketAddr| plain(endpoint) && !endpoint.ip().is_loopback() && !endpoint.ip().is_unspecified();
        let endpoints: Vec<_> = endpoints.iter().filter(usable).take(CONTACT_ENDPOINTS).copied().collect();
        (!endpoints.is_empty()).then_some(Contact { peer, noise, endpoints, tls })
    };
    // Where we take TLS is named beside where we take the rest.
    let tls = endpoints.iter().any(|endpoint| endpoint.port() == TLS_PORT);
    let ourselves = contact(home.key.peer_id(), home.key.noise_secret().public(), endpoints, tls);
    let (id, kept) = (home.network.id(), store::load_records(&home.dir));
    let records = kept.iter().filter_map(|bytes| Verified::<Record>::check(bytes, &id, now).ok());
    let others = records.filter(|record| record.peer() != home.key.peer_id());
    let others = others.filter_map(|record| contact(record.peer(), record.noise, &record.endpoints, record.tls));
    ourselves.into_iter().chain(others).take(MAX_CONTACTS).collect()
}

fn unusable(error: InviteError, now: UnixSeconds) -> anyhow::Error {
    match error {
        InviteError::Foreign(ChainError::NotYetValid { not_before, .. }) => {
            anyhow!("the invite begins in {}; set this machine's clock, it is behind", Ago(not_before - now))
        }
        InviteError::Foreign(_) => anyhow!("{error}; ask a member of that network for a new one"),
        InviteError::NotAnInvite | InviteError::Truncated { .. } | InviteError::Garbled | InviteError::Expired(_) => {
            error.into()
        }
    }
}

/// Reads back what was just written: what is told is what is on disk.
fn enrolled(store: &Store, name: &Name, now: UnixSeconds) -> Result<(Home, Enrolled)> {
    let home = store.load(name)?;
    let membership = home.membership(now)?;
    let (id, peer) = (home.network.id(), home.key.peer_id());
    let enrolled = Enrolled {
        network: name.to_string(),
        network_id: id.to_string(),
        name: membership.name().to_string(),
        peer: peer.to_string(),
        mac: Mac::automatic(&id, &peer).to_string(),
        ipv4: automatic_ipv4(&id, &peer, &home.network.prefix, 0).to_string(),
        prefix: home.network.prefix.to_string(),
        member_until: membership.not_after(),
        state: home.dir.display().to_string(),
    };
    Ok((home, enrolled))
}

/// A new secret for the network.
///
/// # Errors
/// When the system has no randomness.
pub fn new_secret() -> Result<NetworkSecret> {
    Ok(NetworkSecret::new(*seed()?))
}

fn new_key() -> Result<SigningKey> {
    Ok(SigningKey::from_seed(&*seed()?))
}

fn seed() -> Result<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| anyhow!("the system gives no random numbers: {error}"))?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_dns_label() {
        let labelled = |host: &str| label(host).map(String::from);
        assert_eq!(labelled("Laptop.example.com\n").as_deref(), Some("laptop"));
        assert_eq!(labelled("_my box_").as_deref(), Some("my-box"));
        assert_eq!(labelled(&"x".repeat(80)).map(|name| name.len()), Some(63));
        assert_eq!(labelled("..."), None);
        assert_eq!(labelled("ü"), None);
    }
}
