//! What an admin does about members: expel them, keep those below, list and withdraw invites. All of it works offline.
//!
//! Statements are signed here and not in the node, because the network's root key is on the founder's disk only and no node
//! has any use for it. A node that runs is handed them and tells everybody; otherwise they wait in the ledger on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use serde::Serialize;

use crate::dht::statement::Fact;
use crate::dht::{Ledger, Record, Statement, Verified};
use crate::identity::{Certificate, Chain, Name, NetworkId, NetworkSecret, PeerId, SigningKey, UnixSeconds, canonical};
use crate::node::{Command, Reply};

use super::api;
use super::enroll::{clock, new_secret};
use super::store::{self, Home};

/// Largest certificate in the list of our invites, bytes: as long as its name allows.
const MAX_CERTIFICATE: usize = 256;

/// What came of `revoke`, for people and `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Expelled {
    /// The member's name, if we know it.
    pub name: Option<String>,
    /// Its peer id.
    pub peer: String,
    /// Who falls with it, by name.
    pub fallen: Vec<String>,
    /// Who would have fallen and is kept, by name.
    pub kept: Vec<String>,
    /// How many more admins have to say so before it is out.
    pub missing: usize,
    /// Whether the node here runs, and so has told everybody whom it reaches.
    pub told: bool,
}

/// An invite, for people and `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct InviteInfo {
    /// Its key, by which it is withdrawn.
    pub key: String,
    /// What it is called.
    pub name: String,
    /// The roles of whoever joins by it.
    pub roles: Vec<&'static str>,
    /// Until when one may join by it, Unix seconds.
    pub expires: UnixSeconds,
    /// How many may; 0 is any number.
    pub uses: u16,
    /// How many are known to have joined.
    pub redeemed: usize,
    /// `open`, `expired`, `used`, `withdrawn` or `revoked`.
    pub state: &'static str,
    /// The members known here that joined by it.
    pub members: Vec<String>,
}

/// The key that signs for this machine, and its chain: the network's root key on the founder's.
///
/// # Errors
/// When this machine is no admin.
pub fn signer(home: &Home) -> Result<(SigningKey, Chain)> {
    if let Some(root) = home.root_key()? {
        return Ok((root, Chain { root: home.network.root, links: Vec::new() }));
    }
    if !home.chain.is_admin() {
        let name = &home.network.name;
        bail!("this machine is no admin of network {name}; ask one, or the founder");
    }
    Ok((home.key.clone(), home.chain.clone()))
}

/// Expels a member: `text` is its name or peer id. With `keep`, those whom it has invited stay members.
///
/// # Errors
/// When it is not known, or not ours to expel.
pub fn revoke(home: &Home, socket: &Path, text: &str, reason: String, keep: bool) -> Result<Expelled> {
    let (known, now) = (Known::read(home)?, clock()?);
    let (key, chain) = signer(home)?;
    let target = known.find(text)?;
    if target == home.key.peer_id() {
        bail!("`{text}` is this machine; another admin can expel it");
    }
    let id = home.network.id();
    let sign = |fact| Statement::sign(&key, &id, chain.clone(), fact, now).map(Arc::new);
    let revocation = sign(Fact::Revoked { target, reason })?;
    let mut ledger = known.ledger.clone();
    let _ = ledger.insert(Arc::clone(&revocation));
    let falls = |record: &&Verified<Record>| {
        known.ledger.verdict(&record.chain).is_ok() && ledger.verdict(&record.chain).is_err()
    };
    let own = known.records.values().find(|record| record.peer() == target);
    let out = own.map_or_else(|| ledger.is_accused(&target), |own| ledger.verdict(&own.chain).is_err());
    if !out && own.is_some_and(|own| !ledger.has_voice(&revocation.signer(), &own.chain)) {
        bail!("`{text}` is the founder's machine, or an admin of longer standing: only those above it can expel it");
    }
    let below: Vec<_> = known.records.values().filter(falls).filter(|record| record.peer() != target).collect();
    if below.iter().any(|record| record.peer() == home.key.peer_id()) || ledger.verdict(&home.chain).is_err() {
        bail!("this machine was invited by `{text}` and would fall with it; ask another admin");
    }
    let mut said = vec![revocation];
    if !out {
        // The last to say so keeps those below, and draws the new secret.
        let missing = usize::from(home.chain.quorum()).saturating_sub(ledger.accusers(&target)).max(1);
        let told = deliver(home, socket, &said, None)?;
        let (name, peer) = (known.name(&target), target.to_string());
        return Ok(Expelled { name, peer, fallen: Vec::new(), kept: Vec::new(), missing, told });
    }
    if keep {
        for record in &below {
            said.push(sign(Fact::Kept { subject: record.peer() })?);
        }
        // Those who stay before the one who goes, so that nobody falls for a moment.
        said.rotate_left(1);
    }
    // A secret that it does not know. Whoever is told it has heard of the revocation.
    let secret = new_secret()?;
    let number = ledger.next_epoch();
    let epoch = sign(Fact::Epoch { number, secret: secret.fingerprint(), after: target })?;
    let told = deliver(home, socket, &said, Some((epoch, secret)))?;
    let mut names: Vec<_> = below.iter().map(|record| record.name().to_string()).collect();
    names.sort();
    let (fallen, kept) = if keep { (Vec::new(), names) } else { (names, Vec::new()) };
    Ok(Expelled { name: known.name(&target), peer: target.to_string(), fallen, kept, missing: 0, told })
}

/// The invites made here, and those by which members known here have joined.
///
/// # Errors
/// When the clock is not set.
pub fn invites(home: &Home) -> Result<Vec<InviteInfo>> {
    let (known, now) = (Known::read(home)?, clock()?);
    Ok(known.invites(home).into_values().map(|(invite, members)| known.invite_info(&invite, members, now)).collect())
}

/// Lets nobody join any more by the invite with this key, or these last characters of it, or this name.
///
/// # Errors
/// When no such invite is known, several are, or we are no admin.
pub fn withdraw(home: &Home, socket: &Path, text: &str) -> Result<InviteInfo> {
    let (known, now) = (Known::read(home)?, clock()?);
    let (key, chain) = signer(home)?;
    let invites = known.invites(home);
    let means = |invite: &Certificate| {
        let id = invite.body.subject.to_string();
        id == text || text.len() >= 8 && id.ends_with(text) || invite.body.name.as_str() == text
    };
    let mut meant = invites.into_values().filter(|(invite, _)| means(invite));
    let (invite, members) = match (meant.next(), meant.next()) {
        (Some(one), None) => one,
        (None, _) => bail!("no invite is called `{text}`; `meshd invites` lists them"),
        (Some(_), Some(_)) => bail!("several invites are called `{text}`; give the key of one"),
    };
    let fact = Fact::Withdrawn { invite: invite.body.subject };
    let said = Arc::new(Statement::sign(&key, &home.network.id(), chain, fact, now)?);
    deliver(home, socket, &[Arc::clone(&said)], None)?;
    let mut known = known;
    let _ = known.ledger.insert(said);
    Ok(known.invite_info(&invite, members, now))
}

/// Hands statements to the node that runs here, or keeps them for it; returns whether it runs.
fn deliver(
    home: &Home,
    socket: &Path,
    said: &[Arc<Statement>],
    epoch: Option<(Arc<Statement>, NetworkSecret)>,
) -> Result<bool> {
    if let Ok(_lock) = home.lock() {
        let mut statements = store::load_statements(&home.dir);
        let epochs = epoch.iter().map(|(statement, _)| statement);
        statements.extend(said.iter().chain(epochs).map(|statement| statement.bytes().to_vec()));
        if let Some((_, secret)) = &epoch {
            let mut secrets = store::load_secrets(&home.dir);
            secrets.insert(0, secret.clone());
            store::save_secrets(&home.dir, &secrets)?;
        }
        store::save_statements(&home.dir, &statements)?;
        return Ok(false);
    }
    let epoch = epoch.map(|(statement, secret)| {
        let statement = data_encoding::HEXLOWER.encode(statement.bytes());
        Command::Epoch { statement, secret }
    });
    for statement in said {
        let statement = data_encoding::HEXLOWER.encode(statement.bytes());
        if let Reply::Error { message } = api::request(socket, &Command::State { statement })? {
            bail!(message);
        }
    }
    if let Some(epoch) = epoch
        && let Reply::Error { message } = api::request(socket, &epoch)?
    {
        bail!(message);
    }
    Ok(true)
}

/// What this machine's disk knows of the members.
struct Known {
    ledger: Ledger,
    records: BTreeMap<PeerId, Verified<Record>>,
}

impl Known {
    fn read(home: &Home) -> Result<Self> {
        let (id, now) = (home.network.id(), clock()?);
        let mut ledger = Ledger::default();
        for bytes in store::load_statements(&home.dir) {
            if let Ok(statement) = Statement::check(&bytes, &id, now) {
                let _ = ledger.insert(Arc::new(statement));
            }
        }
        let records = store::load_records(&home.dir).into_iter().filter_map(|bytes| readable(&bytes, &id, now));
        Ok(Self { ledger, records: records.map(|record| (record.peer(), record)).collect() })
    }

    /// Every certificate of a member that was heard of, by record or by redemption.
    fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        let redeemed = self.ledger.iter().filter_map(|held| match held.fact() {
            Fact::Redeemed { certificate, .. } => Some(certificate),
            Fact::Revoked { .. } | Fact::Kept { .. } | Fact::Withdrawn { .. } | Fact::Epoch { .. } => None,
        });
        self.records.values().filter_map(|record| record.chain.links.last()).chain(redeemed)
    }

    fn name(&self, peer: &PeerId) -> Option<String> {
        self.certificates().find(|one| one.body.subject == *peer).map(|one| one.body.name.to_string())
    }

    fn find(&self, text: &str) -> Result<PeerId> {
        if let Ok(peer) = text.parse() {
            return Ok(peer);
        }
        let name: Name = text.parse().map_err(|_| anyhow!("`{text}` is no name and no peer id"))?;
        let mut found: Vec<_> =
            self.certificates().filter(|one| one.body.name == name).map(|one| one.body.subject).collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|peer| !self.ledger.is_accused(peer));
        match found.as_slice() {
            [one] => Ok(*one),
            [] => bail!("no member is called `{text}`; `meshd peers` lists them, and a peer id always works"),
            several => {
                let ids = several.iter().map(PeerId::to_string).collect::<Vec<_>>().join(", ");
                bail!("several members are called `{text}`; name one by its peer id: {ids}")
            }
        }
    }

    /// By key: the invites made here and those seen in chains, with the names of whoever joined by them.
    fn invites(&self, home: &Home) -> BTreeMap<PeerId, (Certificate, Vec<String>)> {
        let ours = store::load_invites(&home.dir).into_iter();
        let ours = ours.filter_map(|bytes| canonical::decode::<Certificate>(&bytes, MAX_CERTIFICATE).ok());
        let mut invites: BTreeMap<_, _> = ours.map(|invite| (invite.body.subject, (invite, Vec::new()))).collect();
        for record in self.records.values() {
            for (invite, member) in record.chain.redemptions() {
                let (_, members) = invites.entry(invite.body.subject).or_insert_with(|| (invite.clone(), Vec::new()));
                let name = member.body.name.to_string();
                if !members.contains(&name) {
                    members.push(name);
                }
            }
        }
        invites
    }

    fn invite_info(&self, invite: &Certificate, members: Vec<String>, now: UnixSeconds) -> InviteInfo {
        let body = &invite.body;
        let redeemed = self.ledger.redemptions(&body.subject).count();
        let state = if self.ledger.is_accused(&body.subject) {
            "revoked"
        } else if self.ledger.withdrawal(&body.subject).is_some() {
            "withdrawn"
        } else if body.uses > 0 && redeemed >= usize::from(body.uses) {
            "used"
        } else if body.not_after < now {
            "expired"
        } else {
            "open"
        };
        InviteInfo {
            key: body.subject.to_string(),
            name: body.name.to_string(),
            roles: body.roles.names().collect(),
            expires: body.not_after,
            uses: body.uses,
            redeemed,
            state,
            members,
        }
    }
}

/// A kept record, though it may have expired: its chain still says who its member is.
fn readable(bytes: &[u8], network: &NetworkId, now: UnixSeconds) -> Option<Verified<Record>> {
    match Verified::<Record>::check(bytes, network, now) {
        Ok(record) => Some(record),
        Err(crate::dht::RecordError::Expired(at)) => Verified::<Record>::check(bytes, network, at).ok(),
        Err(_) => None,
    }
}
