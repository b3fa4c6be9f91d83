//! The ledger: every statement a node has heard, and what they mean for a chain of certificates.
//!
//! It only grows, and what it says does not depend on the order in which statements came: each has a slot (who is expelled,
//! which invite is withdrawn, who joined by which), and of two for one slot the same one stays on every node. So two
//! ledgers that have exchanged what the other lacked are equal, and [`Ledger::verdict`] is the same everywhere.
//!
//! | case | outcome, on all nodes |
//! |---|---|
//! | a member is revoked by any admin, or by as many as the network's quorum asks for | it is out, for ever, and so is whoever it invited, but for those that an admin keeps |
//! | an admin revokes an older admin, or the founder's own machine | nothing: [`Rank`] decides |
//! | two admins revoke each other | the younger is out |
//! | more join by an invite than it allows | those first met by somebody else stay, by date, then by key |
//! | an invite is withdrawn | who had been met before stays |
//! | the network gets two new secrets at once | that of the admin of higher standing is the newer |
//!
//! Ledgers are compared by one digest, then by the digests of [`BUCKETS`] buckets; what lies in those that differ is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blake2::{Blake2s256, Digest as _};

use crate::identity::{Certificate, Chain, Kind, PeerId, Roles, UnixSeconds};

use super::statement::{Fact, Rank, Statement, StatementId};

/// Statements kept: as many as a node remembers members, about 6 MiB. A network of a thousand that loses a hundred members a
/// year is far from it.
pub const MAX_STATEMENTS: usize = 8192;

/// Of these, how many may tell who joined by which invite: a flood of them leaves room for what expels the flooder.
const MAX_REDEMPTIONS: usize = MAX_STATEMENTS * 3 / 4;

/// Redemptions that one member may have witnessed: the one that is always on meets every newcomer of a network of a thousand.
const MAX_WITNESSED: usize = 1024;

/// Parts in which two ledgers are compared: their digests fit one message, and of a few hundred statements a part has one or
/// two, so little is sent that is there already.
pub const BUCKETS: usize = 128;

/// Bytes of the digest of one bucket: that two different buckets look alike happens once in four billion comparisons.
const BUCKET_DIGEST: usize = 4;

/// Length of [`Ledger::buckets`], bytes.
pub const BUCKETS_LEN: usize = BUCKETS * BUCKET_DIGEST;

/// The digest of a whole ledger.
pub type LedgerDigest = [u8; 16];

/// Why a chain proves no membership any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exclusion {
    /// The member itself, or a key above it, was revoked.
    #[error("{}expelled by {by}{}", if *.fallen { "invited by somebody who was " } else { "" }, because(.reason))]
    Revoked {
        /// By whom.
        by: String,
        /// Why; may be empty.
        reason: String,
        /// Whether it was a key above the member's.
        fallen: bool,
    },
    /// More have joined by the invite than it allows, and this member was not among the first.
    #[error("the invite was used up by others ({uses} of {uses})")]
    UsedUp {
        /// How many it allows.
        uses: u16,
    },
    /// The invite was withdrawn before anybody had met this member.
    #[error("the invite was withdrawn")]
    Withdrawn,
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// No room for another statement of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger is full")]
pub struct LedgerFull;

/// What a statement is about; the ledger holds one for each. In the order in which they are sent: news of the expelled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// Of a key, by an admin: it may take several.
    Revoked(PeerId, PeerId),
    /// Of a member, by an admin: one of them may be expelled later.
    Kept(PeerId, PeerId),
    Withdrawn(PeerId),
    /// Of an epoch, by an admin.
    Epoch(u32, PeerId),
    /// Of an invite, by a member.
    Redeemed(PeerId, PeerId),
}

impl Slot {
    fn of(statement: &Statement) -> Self {
        match statement.fact() {
            Fact::Revoked { target, .. } => Self::Revoked(*target, statement.signer()),
            Fact::Kept { subject } => Self::Kept(*subject, statement.signer()),
            Fact::Withdrawn { invite } => Self::Withdrawn(*invite),
            Fact::Epoch { number, .. } => Self::Epoch(*number, statement.signer()),
            Fact::Redeemed { invite, certificate } => Self::Redeemed(*invite, certificate.body.subject),
        }
    }
}

/// Every statement heard.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    held: BTreeMap<Slot, Arc<Statement>>,
    slots: BTreeMap<StatementId, Slot>,
    witnessed: BTreeMap<PeerId, usize>,
    redemptions: usize,
    digest: LedgerDigest,
}

impl Ledger {
    /// Takes in a statement; returns whether it says something new.
    ///
    /// # Errors
    /// [`LedgerFull`].
    pub fn insert(&mut self, statement: Arc<Statement>) -> Result<bool, LedgerFull> {
        let slot = Slot::of(&statement);
        let old = self.held.get(&slot);
        if old.is_some_and(|old| precedence(old) <= precedence(&statement)) {
            return Ok(false);
        }
        let redemption = matches!(slot, Slot::Redeemed(..));
        if redemption {
            let count = self.witnessed.get(&statement.signer()).copied().unwrap_or(0);
            if count >= MAX_WITNESSED || old.is_none() && self.redemptions >= MAX_REDEMPTIONS {
                return Err(LedgerFull);
            }
        } else if old.is_none() && self.held.len() - self.redemptions >= MAX_STATEMENTS - MAX_REDEMPTIONS {
            return Err(LedgerFull);
        }
        if let Some(old) = self.held.remove(&slot) {
            self.slots.remove(old.id());
            if redemption {
                self.redemptions -= 1;
                self.witnessed.entry(old.signer()).and_modify(|count| *count -= 1);
            }
        }
        if redemption {
            self.redemptions += 1;
            *self.witnessed.entry(statement.signer()).or_default() += 1;
        }
        self.slots.insert(*statement.id(), slot);
        self.held.insert(slot, statement);
        let mut hash = Blake2s256::new();
        self.slots.keys().for_each(|id| hash.update(id));
        self.digest.copy_from_slice(&hash.finalize()[..16]);
        Ok(true)
    }

    /// Whether exactly this statement is held.
    pub fn contains(&self, id: &StatementId) -> bool {
        self.slots.contains_key(id)
    }

    /// What all statements together say of a chain, which is sound by itself.
    ///
    /// # Errors
    /// An [`Exclusion`] that says why its member is none any more.
    pub fn verdict(&self, chain: &Chain) -> Result<(), Exclusion> {
        if self.held.is_empty() {
            return Ok(());
        }
        self.judge(chain, true)
    }

    /// Whether as many admins as it takes have revoked this key, rightly or not: who announces itself with it and shows no chain is
    /// not worth an answer.
    pub fn is_accused(&self, key: &PeerId) -> bool {
        let (mut count, mut enough) = (0, 1);
        for held in self.accusations(key) {
            count += 1;
            enough = enough.max(usize::from(held.chain().quorum()));
            if speaks_alone(held, key) {
                return true;
            }
        }
        count >= enough
    }

    /// How many have revoked this key, rightly or not.
    pub fn accusers(&self, key: &PeerId) -> usize {
        self.accusations(key).count()
    }

    /// Whether `admin` has revoked the last key of `chain`, and may.
    pub fn has_voice(&self, admin: &PeerId, chain: &Chain) -> bool {
        let held = self.held.get(&Slot::Revoked(chain.subject(), *admin));
        chain.links.len().checked_sub(1).is_some_and(|depth| held.is_some_and(|held| has_say(held, chain, depth)))
    }

    fn accusations(&self, key: &PeerId) -> impl Iterator<Item = &Arc<Statement>> {
        let (first, last) = (PeerId([0; 32]), PeerId([0xff; 32]));
        self.held.range(Slot::Revoked(*key, first)..=Slot::Revoked(*key, last)).map(|(_, held)| held)
    }

    /// The redemption of an invite by a member.
    pub fn redemption(&self, invite: &PeerId, member: &PeerId) -> Option<&Arc<Statement>> {
        self.held.get(&Slot::Redeemed(*invite, *member))
    }

    /// Everybody who is known to have joined by an invite.
    pub fn redemptions(&self, invite: &PeerId) -> impl Iterator<Item = &Arc<Statement>> {
        let (first, last) = (PeerId([0; 32]), PeerId([0xff; 32]));
        self.held.range(Slot::Redeemed(*invite, first)..=Slot::Redeemed(*invite, last)).map(|(_, held)| held)
    }

    /// When an invite was withdrawn, if it was: the statement that says so.
    pub fn withdrawal(&self, invite: &PeerId) -> Option<&Arc<Statement>> {
        self.held.get(&Slot::Withdrawn(*invite))
    }

    /// How many keys as many admins as it takes have revoked.
    pub fn expelled(&self) -> usize {
        self.accused().filter(|key| self.is_accused(key)).count()
    }

    /// Somebody who may know the newest secret although enough have revoked it. Several have together, on two islands, so nobody knew
    /// that it was the last and drew a new one; or it was expelled on one island while another one drew a secret too, and told it.
    pub fn unfollowed(&self) -> Option<PeerId> {
        let after = |held: &Arc<Statement>| match held.fact() {
            Fact::Epoch { number, after, .. } => Some((*number, *after)),
            Fact::Revoked { .. } | Fact::Kept { .. } | Fact::Withdrawn { .. } | Fact::Redeemed { .. } => None,
        };
        let epochs: Vec<_> = self.epochs().into_iter().filter_map(|(_, held)| after(held)).collect();
        let all = Slot::Epoch(0, PeerId([0; 32]))..=Slot::Epoch(u32::MAX, PeerId([0xff; 32]));
        let drawn: BTreeSet<_> = self.held.range(all).filter_map(|(_, held)| Some(after(held)?.1)).collect();
        self.accused().find(|key| {
            let mut own = epochs.iter().filter(|(_, after)| after == key).peekable();
            let is_open = if own.peek().is_some() {
                // Of two with one number neither knew of the other.
                own.all(|(number, _)| epochs.iter().any(|(other, after)| other == number && after != key))
            } else {
                let alone = |held: &Arc<Statement>| speaks_alone(held, key) || held.chain().quorum() < 2;
                !drawn.contains(key) && !self.accusations(key).any(alone)
            };
            is_open && self.is_accused(key)
        })
    }

    /// Every key that somebody has revoked.
    fn accused(&self) -> impl Iterator<Item = PeerId> {
        let keys = self.held.keys().map_while(|slot| if let Slot::Revoked(key, _) = slot { Some(*key) } else { None });
        // All of one key stand together.
        let mut last = None;
        keys.filter(move |key| last.replace(*key) != Some(*key))
    }

    /// The epochs of the network's secret, the newest first: the fingerprint of each and the statement about it. Those that
    /// an expelled admin began do not count. Of two with one number, begun on two islands, the one begun by the higher
    /// standing is the newer.
    pub fn epochs(&self) -> Vec<([u8; 32], &Arc<Statement>)> {
        let (first, last) = (Slot::Epoch(0, PeerId([0; 32])), Slot::Epoch(u32::MAX, PeerId([0xff; 32])));
        let mut epochs: Vec<_> = (self.held.range(first..=last))
            .filter_map(|(_, held)| {
                let Fact::Epoch { number, secret, .. } = held.fact() else { return None };
                let counts = self.judge(held.chain(), true).is_ok();
                counts.then(|| (std::cmp::Reverse(*number), held.rank(), *held.id(), *secret, held))
            })
            .collect();
        epochs.sort_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)));
        epochs.into_iter().map(|(.., secret, held)| (secret, held)).collect()
    }

    /// The number of the next epoch.
    pub fn next_epoch(&self) -> u32 {
        let newest = self.epochs().first().map(|(_, held)| held.fact().clone());
        if let Some(Fact::Epoch { number, .. }) = newest { number.saturating_add(1) } else { 1 }
    }

    /// Every statement, news of the expelled first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.held.values()
    }

    /// How many statements are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nobody has said anything.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The same in equal ledgers; zeros if it is empty.
    pub fn digest(&self) -> LedgerDigest {
        self.digest
    }

    /// The digests of all buckets, one after the other; zeros for an empty bucket.
    pub fn buckets(&self) -> Vec<u8> {
        let mut hashes: Vec<Option<Blake2s256>> = vec![None; BUCKETS];
        for id in self.slots.keys() {
            hashes[bucket(id)].get_or_insert_with(Blake2s256::new).update(id);
        }
        let mut bytes = vec![0; BUCKETS_LEN];
        for (hash, digest) in hashes.into_iter().zip(bytes.chunks_mut(BUCKET_DIGEST)) {
            if let Some(hash) = hash {
                digest.copy_from_slice(&hash.finalize()[..BUCKET_DIGEST]);
            }
        }
        bytes
    }

    /// What somebody with these `buckets` may lack, news of the expelled first; nothing if they are of another length.
    pub fn beyond(&self, buckets: &[u8]) -> impl Iterator<Item = &Arc<Statement>> {
        let ours = self.buckets();
        let sound = buckets.len() == BUCKETS_LEN;
        let differs: Vec<_> = ours
            .chunks(BUCKET_DIGEST)
            .zip(buckets.chunks(BUCKET_DIGEST))
            .map(|(ours, theirs)| sound && ours != theirs)
            .collect();
        self.iter().filter(move |held| differs.get(bucket(held.id())).copied().unwrap_or(false))
    }

    fn judge(&self, chain: &Chain, keeps: bool) -> Result<(), Exclusion> {
        for depth in 0..chain.links.len() {
            let out = self.judge_link(chain, depth);
            let below = chain.links.iter().skip(depth + 1);
            if out.is_err() && !(keeps && below.map(|link| link.body.subject).any(|subject| self.is_kept(&subject))) {
                return out;
            }
        }
        Ok(())
    }

    fn judge_link(&self, chain: &Chain, depth: usize) -> Result<(), Exclusion> {
        let link = &chain.links[depth];
        let subject = &link.body.subject;
        let mut voices: Vec<_> = self.accusations(subject).filter(|held| has_say(held, chain, depth)).collect();
        if voices.len() >= usize::from(chain.quorum()) || voices.iter().any(|held| speaks_alone(held, subject)) {
            // In the order of their standing, so that every node names the same.
            voices.sort_by_cached_key(|held| precedence(held));
            let names: Vec<_> = voices.iter().map(|held| held.signer_name().unwrap_or("the founder")).collect();
            let reason = voices.first().and_then(|held| match held.fact() {
                Fact::Revoked { reason, .. } => Some(reason.clone()),
                Fact::Kept { .. } | Fact::Withdrawn { .. } | Fact::Redeemed { .. } | Fact::Epoch { .. } => None,
            });
            let fallen = depth + 1 < chain.links.len();
            return Err(Exclusion::Revoked { by: names.join(" and "), reason: reason.unwrap_or_default(), fallen });
        }
        match (link.body.kind, chain.links.get(depth + 1)) {
            (Kind::Invite, Some(member)) => self.judge_redemption(link, &member.body.subject),
            (Kind::Invite | Kind::Member | Kind::Admin, _) => Ok(()),
        }
    }

    /// Whether `member` may have joined by `invite`. Nobody knows of it before the first has met it, so an invite that is not
    /// used up lets in whoever comes.
    fn judge_redemption(&self, invite: &Certificate, member: &PeerId) -> Result<(), Exclusion> {
        let (key, uses) = (invite.body.subject, invite.body.uses);
        let redeemed = self.redemption(&key, member);
        if let Some(withdrawal) = self.withdrawal(&key)
            && redeemed.is_none_or(|redeemed| redeemed.at() > withdrawal.at())
        {
            return Err(Exclusion::Withdrawn);
        }
        if uses == 0 {
            return Ok(());
        }
        // Who joined by it as well would profit by a false date.
        let impartial = |held: &&Arc<Statement>| !is_partial(held);
        let place = redeemed.filter(impartial).map(|held| (held.at(), *member));
        let before = self.redemptions(&key).filter(impartial).filter(|held| {
            let Fact::Redeemed { certificate, .. } = held.fact() else { return false };
            let other = (held.at(), certificate.body.subject);
            other.1 != *member && place.is_none_or(|place| other < place)
        });
        if before.count() >= usize::from(uses) { Err(Exclusion::UsedUp { uses }) } else { Ok(()) }
    }

    /// Whether an admin keeps `subject`: one who is a member itself without being kept.
    fn is_kept(&self, subject: &PeerId) -> bool {
        let (first, last) = (PeerId([0; 32]), PeerId([0xff; 32]));
        let mut kept = self.held.range(Slot::Kept(*subject, first)..=Slot::Kept(*subject, last));
        kept.any(|(_, held)| self.judge(held.chain(), false).is_ok())
    }
}

fn bucket(id: &StatementId) -> usize {
    usize::from(id[0]) * BUCKETS / 256
}

/// Of two statements for one slot, the one with the smaller stays. For a revocation it is the signer's rank that counts, so
/// that whoever may expel is not hidden by somebody who may not.
fn precedence(statement: &Statement) -> (Rank, bool, UnixSeconds, StatementId) {
    let rank = match statement.fact() {
        Fact::Revoked { .. } => statement.rank().clone(),
        Fact::Kept { .. } | Fact::Withdrawn { .. } | Fact::Redeemed { .. } | Fact::Epoch { .. } => {
            Rank::of(statement.chain(), 0)
        }
    };
    (rank, is_partial(statement), statement.at(), *statement.id())
}

/// Whether the witness of a redemption has joined by the same invite.
fn is_partial(statement: &Statement) -> bool {
    let Fact::Redeemed { invite, .. } = statement.fact() else { return false };
    statement.chain().links.iter().any(|link| link.body.subject == *invite)
}

/// Whether a revocation of `key` needs no other beside it: the founder's, or one's own.
fn speaks_alone(revocation: &Statement, key: &PeerId) -> bool {
    revocation.rank().is_root() || revocation.signer() == *key
}

/// Whether a revocation counts against the key at `depth` of `chain`. The root has the say over everybody, and everybody
/// over itself; an admin over members and their invites, and over what is younger than itself where it makes admins.
fn has_say(revocation: &Statement, chain: &Chain, depth: usize) -> bool {
    let body = &chain.links[depth].body;
    if speaks_alone(revocation, &body.subject) {
        return true;
    }
    let of_the_founder = depth == 0 && body.kind == Kind::Member;
    let of_an_admin = body.kind == Kind::Admin || body.roles.contains(Roles::ADMIN);
    !of_the_founder && (!of_an_admin || *revocation.rank() < Rank::of(chain, depth + 1))
}

#[cfg(test)]
mod tests {
    use super::super::statement::tests::{
        NOW, admin, admin_with, certificate, key, member, network, revoked, root, sign,
    };
    use super::*;

    fn ledger(statements: impl IntoIterator<Item = Statement>) -> Ledger {
        let mut ledger = Ledger::default();
        for statement in statements {
            ledger.insert(Arc::new(statement)).expect("room");
        }
        ledger
    }

    fn say(n: u8, chain: Chain, fact: Fact) -> Statement {
        sign(n, chain, fact).expect("sound")
    }

    /// One who joined by an invite of `uses` that `by`, with the chain `top`, had made.
    fn invited(top: &Chain, by: u8, invite: u8, n: u8, uses: u16) -> Chain {
        top.extended(certificate(by, invite, Kind::Invite, Roles::NONE, uses, 40)).extended(certificate(
            invite,
            n,
            Kind::Member,
            Roles::NONE,
            0,
            0,
        ))
    }

    fn redeemed(invite: u8, n: u8, witness: u8, chain: Chain, ago: u64) -> Statement {
        let certificate = certificate(invite, n, Kind::Member, Roles::NONE, 0, 0);
        let fact = Fact::Redeemed { invite: key(invite).peer_id(), certificate };
        Statement::sign(&key(witness), &network(), chain, fact, NOW - ago).expect("sound")
    }

    fn is_revoked(ledger: &Ledger, chain: &Chain) -> bool {
        matches!(ledger.verdict(chain), Err(Exclusion::Revoked { .. }))
    }

    #[test]
    fn who_is_revoked_falls_and_whoever_it_invited_unless_kept() {
        let (ada, bob) = (admin(2, 3, 50), invited(&admin(2, 3, 50), 3, 4, 5, 0));
        let mut ledger = ledger([say(1, root(), revoked(3))]);
        assert_eq!(ledger.verdict(&member(9)), Ok(()));
        let expelled = Exclusion::Revoked { by: "the founder".to_owned(), reason: "left".to_owned(), fallen: false };
        assert_eq!(ledger.verdict(&ada), Err(expelled.clone()));
        assert_eq!(expelled.to_string(), "expelled by the founder (left)");
        assert!(matches!(ledger.verdict(&bob), Err(Exclusion::Revoked { fallen: true, .. })));
        ledger.insert(Arc::new(say(1, root(), Fact::Kept { subject: key(5).peer_id() }))).expect("room");
        assert_eq!(ledger.verdict(&bob), Ok(()));
        assert!(is_revoked(&ledger, &ada));
        ledger.insert(Arc::new(say(1, root(), revoked(5)))).expect("room");
        assert!(is_revoked(&ledger, &bob), "to be kept helps against what befell others only");
    }

    #[test]
    fn who_was_expelled_keeps_nobody() {
        let (older, younger) = (admin(2, 3, 50), admin(6, 7, 40));
        let bob = invited(&older, 3, 4, 5, 0);
        let ledger = ledger([
            say(1, root(), revoked(3)),
            say(1, root(), revoked(7)),
            say(3, older, Fact::Kept { subject: key(5).peer_id() }),
            say(7, younger, Fact::Kept { subject: key(5).peer_id() }),
        ]);
        assert!(is_revoked(&ledger, &bob));
    }

    #[test]
    fn of_two_admins_that_revoke_each_other_the_younger_is_out_in_whatever_order_the_news_comes() {
        let (older, younger) = (admin(2, 3, 50), admin(6, 7, 40));
        let one = say(3, older.clone(), revoked(7));
        let two = say(7, younger.clone(), revoked(3));
        let ledgers = [ledger([one.clone(), two.clone()]), ledger([two, one])];
        for ledger in &ledgers {
            assert_eq!(ledger.verdict(&older), Ok(()));
            assert!(is_revoked(ledger, &younger));
        }
        assert_eq!(ledgers[0].digest(), ledgers[1].digest());
    }

    #[test]
    fn an_admin_expels_neither_the_founders_machine_nor_itself_by_its_own_invite() {
        let (founder, ada) = (member(9), admin(2, 3, 50));
        let younger = admin(6, 7, 40);
        let ledger = ledger([say(3, ada.clone(), revoked(9)), say(7, younger, revoked(2))]);
        assert_eq!(ledger.verdict(&founder), Ok(()));
        assert_eq!(ledger.verdict(&ada), Ok(()), "the invite that made an older admin");
    }

    #[test]
    fn a_powerless_revocation_does_not_hide_a_good_one() {
        let (older, younger) = (admin(2, 3, 50), admin(6, 7, 40));
        let third = admin(10, 11, 60);
        let statements = [say(7, younger, revoked(3)), say(11, third, revoked(3))];
        for order in [[0, 1], [1, 0]] {
            let ledger = ledger(order.map(|at| statements[at].clone()));
            assert!(is_revoked(&ledger, &older));
            assert_eq!(ledger.len(), 2, "each admin has one voice, and keeps it");
        }
    }

    #[test]
    fn where_it_takes_two_admins_neither_expels_alone_but_the_founder_does() {
        let two = Roles::ALL.with_quorum(2);
        let target = admin_with(Roles::NONE.with_quorum(2), 8, 9, 100);
        let ninth = key(9).peer_id();
        let voices =
            [(2, 3), (6, 7)].map(|(by, n)| Arc::new(say(n, admin_with(two, by, n, 43 + u64::from(n)), revoked(9))));
        for order in [[0, 1], [1, 0]] {
            let mut ledger = Ledger::default();
            let mut hear = |at: usize| ledger.insert(Arc::clone(&voices[order[at]]));
            assert_eq!((hear(0), hear(0)), (Ok(true), Ok(false)), "nobody has two voices");
            assert!(!is_revoked(&ledger, &target) && !ledger.is_accused(&ninth));
            assert_eq!((ledger.accusers(&ninth), ledger.len()), (1, 1));
            assert_eq!(ledger.insert(Arc::clone(&voices[order[1]])), Ok(true));
            assert!(is_revoked(&ledger, &target) && ledger.is_accused(&ninth));
            assert_eq!(ledger.unfollowed(), Some(ninth), "until one of them draws a new secret");
            let epoch = Fact::Epoch { number: 1, secret: [5; 32], after: ninth };
            let follows = ledger.insert(Arc::new(say(3, admin_with(two, 2, 3, 46), epoch)));
            assert_eq!((follows, ledger.unfollowed()), (Ok(true), None));
            let said = ledger.verdict(&target).expect_err("it is out").to_string();
            assert_eq!(said, "expelled by host-7 and host-3 (left)", "the older first, on every node");
        }
        let alone = ledger([say(1, root(), revoked(9))]);
        assert!(is_revoked(&alone, &target) && alone.unfollowed().is_none(), "who speaks alone draws the secret too");
    }

    #[test]
    fn of_two_secrets_of_two_islands_each_may_be_known_to_whom_the_other_expelled() {
        let epoch =
            |number, secret, after: u8| Fact::Epoch { number, secret: [secret; 32], after: key(after).peer_id() };
        let (here, there) = (admin(2, 3, 50), admin(6, 7, 40));
        let mut ledger = ledger([
            say(3, here.clone(), revoked(20)),
            say(3, here.clone(), epoch(1, 5, 20)),
            say(7, there.clone(), revoked(21)),
        ]);
        assert_eq!(ledger.unfollowed(), None, "who draws it says it in the same breath");
        let mut hear = |n, chain: &Chain, fact| {
            ledger.insert(Arc::new(say(n, chain.clone(), fact))).expect("room");
            ledger.unfollowed()
        };
        let first = hear(7, &there, epoch(1, 6, 21)).expect("either");
        let [first, second] = if first == key(20).peer_id() { [20, 21] } else { [21, 20] };
        assert_eq!(hear(7, &there, epoch(2, 7, first)), Some(key(second).peer_id()));
        assert_eq!(hear(3, &here, epoch(2, 8, first)), Some(key(second).peer_id()), "both knew whom it came after");
        assert_eq!(hear(3, &here, epoch(3, 9, second)), None);
    }

    #[test]
    fn a_voice_against_an_older_admin_does_not_count_towards_a_quorum() {
        let admin = |by, n, ago| admin_with(Roles::ALL.with_quorum(2), by, n, ago);
        let [oldest, middle, youngest] = [admin(2, 3, 50), admin(6, 7, 40), admin(10, 11, 30)];
        let ledger = ledger([say(3, oldest, revoked(7)), say(11, youngest, revoked(7))]);
        assert!(ledger.has_voice(&key(3).peer_id(), &middle) && !ledger.has_voice(&key(11).peer_id(), &middle));
        assert!(!is_revoked(&ledger, &middle));
    }

    #[test]
    fn the_first_that_others_met_stay_when_an_invite_was_used_too_often() {
        let chains = [5, 6, 7].map(|n| invited(&root(), 1, 4, n, 2));
        let met = |n: u8, ago| redeemed(4, n, 9, member(9), ago);
        let full = ledger([met(5, 10), met(6, 20)]);
        assert_eq!(full.verdict(&chains[0]), Ok(()));
        assert_eq!(full.verdict(&chains[1]), Ok(()));
        assert_eq!(full.verdict(&chains[2]), Err(Exclusion::UsedUp { uses: 2 }));
        // Another island had met the third before the first.
        let merged = ledger([met(5, 10), met(6, 20), met(7, 15)]);
        assert_eq!(merged.verdict(&chains[0]), Err(Exclusion::UsedUp { uses: 2 }));
        assert_eq!(merged.verdict(&chains[2]), Ok(()));
        let open = ledger([met(5, 10)]);
        assert_eq!(open.verdict(&chains[2]), Ok(()), "there is room yet");
    }

    #[test]
    fn who_holds_a_used_invite_cannot_push_out_whoever_used_it() {
        let (honest, thief) = (invited(&root(), 1, 4, 5, 1), invited(&root(), 1, 4, 6, 1));
        // The thief has it witnessed by a key that it let in by the same invite, long before.
        let false_date = redeemed(4, 6, 7, invited(&root(), 1, 4, 7, 1), 1000);
        let ledger = ledger([redeemed(4, 5, 9, member(9), 10), false_date]);
        assert_eq!(ledger.verdict(&honest), Ok(()));
        assert_eq!(ledger.verdict(&thief), Err(Exclusion::UsedUp { uses: 1 }));
    }

    #[test]
    fn a_withdrawn_invite_keeps_whoever_had_been_met() {
        let (early, late, unmet) =
            (invited(&root(), 1, 4, 5, 0), invited(&root(), 1, 4, 6, 0), invited(&root(), 1, 4, 7, 0));
        let withdrawn =
            Statement::sign(&key(1), &network(), root(), Fact::Withdrawn { invite: key(4).peer_id() }, NOW - 30);
        let ledger =
            ledger([withdrawn.expect("sound"), redeemed(4, 5, 9, member(9), 40), redeemed(4, 6, 9, member(9), 20)]);
        assert_eq!(ledger.verdict(&early), Ok(()));
        assert_eq!(ledger.verdict(&late), Err(Exclusion::Withdrawn));
        assert_eq!(ledger.verdict(&unmet), Err(Exclusion::Withdrawn));
    }

    #[test]
    fn the_newest_epoch_has_the_highest_number_of_those_begun_by_who_is_still_an_admin() {
        let epoch = |number, secret| Fact::Epoch { number, secret: [secret; 32], after: key(9).peer_id() };
        let (older, younger) = (admin(2, 3, 50), admin(6, 7, 40));
        let mut ledger =
            ledger([say(1, root(), epoch(1, 1)), say(7, younger.clone(), epoch(2, 2)), say(3, older, epoch(2, 3))]);
        let order = |ledger: &Ledger| ledger.epochs().iter().map(|(secret, _)| secret[0]).collect::<Vec<_>>();
        assert_eq!((order(&ledger), ledger.next_epoch()), (vec![3, 2, 1], 3));
        // One that is expelled later could have begun the last epoch there can be.
        ledger.insert(Arc::new(say(7, younger, epoch(u32::MAX, 4)))).expect("room");
        assert_eq!(order(&ledger), [4, 3, 2, 1]);
        ledger.insert(Arc::new(say(1, root(), revoked(7)))).expect("room");
        assert_eq!((order(&ledger), ledger.next_epoch()), (vec![3, 1], 3));
    }

    #[test]
    fn two_ledgers_find_out_what_the_other_lacks() {
        let mut here = ledger((10..90).map(|n| say(1, root(), revoked(n))));
        let mut there = ledger((50..140).map(|n| say(1, root(), revoked(n))));
        assert_ne!(here.digest(), there.digest());
        let for_there: Vec<_> = here.beyond(&there.buckets()).cloned().collect();
        let for_here: Vec<_> = there.beyond(&here.buckets()).cloned().collect();
        assert!(for_there.into_iter().all(|statement| there.insert(statement).is_ok()));
        assert!(for_here.into_iter().all(|statement| here.insert(statement).is_ok()));
        assert_eq!((here.len(), here.digest()), (130, there.digest()));
        assert_eq!(here.beyond(&there.buckets()).count(), 0);
        assert_eq!(here.beyond(&[0; 7]).count(), 0, "not the buckets of a ledger");
        assert_eq!(Ledger::default().digest(), [0; 16]);
    }

    #[test]
    fn one_who_witnesses_without_end_fills_neither_the_ledger_nor_the_place_of_revocations() {
        let mut ledger = Ledger::default();
        let mut taken = 0;
        for n in 0..=MAX_WITNESSED as u64 {
            let seed: [u8; 32] = std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or(7));
            let mut body = certificate(4, 5, Kind::Member, Roles::NONE, 0, 0).body;
            body.subject = crate::identity::SigningKey::from_seed(&seed).peer_id();
            let certificate = Certificate::issue(&key(4), &network(), body);
            let fact = Fact::Redeemed { invite: key(4).peer_id(), certificate };
            taken += usize::from(ledger.insert(Arc::new(say(9, member(9), fact))).is_ok());
        }
        assert_eq!(taken, MAX_WITNESSED);
        assert_eq!(ledger.insert(Arc::new(say(1, root(), revoked(9)))), Ok(true));
    }
}
