//! The roster: every member whose record a node holds, and who has the right to which address.
//!
//! MACs are pinned at first sight: while a record lives, a second key with its MAC is refused. IPv4 addresses and names
//! may be claimed twice (two LANs that merge); then [`Verified::wins_over`] decides, on every node alike. Who was expelled is
//! never put in: the node asks the [`Ledger`](super::Ledger) first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::{Mac, Name, PeerId, UnixSeconds};

use super::{LookupKey, Record, Verified};

/// Most members a node remembers: 1 KiB each makes 8 MiB; beyond that the directory finds who is not remembered.
const MAX_MEMBERS: usize = 8192;

/// What an inserted record changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A member not known before.
    New,
    /// Something besides sequence and expiry is different now.
    Updated,
    /// The same content, perhaps living longer.
    Refreshed,
    /// The record is older than the one we hold.
    Stale,
}

/// Why a record was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Another member's live record has this MAC.
    #[error("the MAC {mac} belongs to {owner}")]
    MacTaken {
        /// Which.
        mac: Mac,
        /// Whose.
        owner: PeerId,
    },
    /// No room for another member.
    #[error("the roster is full")]
    Full,
}

/// Every member known.
#[derive(Debug, Default)]
pub struct Roster {
    records: BTreeMap<PeerId, Verified<Record>>,
    by_mac: BTreeMap<Mac, PeerId>,
    by_ip: BTreeMap<IpAddr, PeerId>,
    by_name: BTreeMap<Name, PeerId>,
    /// Kept, because pictures are drawn far more often than members change.
    neighbors: Arc<BTreeMap<IpAddr, Mac>>,
}

impl Roster {
    /// Takes in a record.
    ///
    /// # Errors
    /// [`RosterError`]; nothing is changed then.
    pub fn insert(&mut self, record: Verified<Record>, now: UnixSeconds) -> Result<Change, RosterError> {
        let peer = record.peer();
        if let Some(&owner) = self.by_mac.get(&record.mac)
            && owner != peer
            && self.records.get(&owner).is_some_and(|held| !held.has_expired(now))
        {
            return Err(RosterError::MacTaken { mac: record.mac, owner });
        }
        let change = match self.records.get(&peer) {
            None if self.records.len() >= MAX_MEMBERS => return Err(RosterError::Full),
            None => Change::New,
            Some(held) if held.sequence > record.sequence => return Ok(Change::Stale),
            Some(held) if held.sequence == record.sequence => return Ok(Change::Refreshed),
            Some(held) if same_content(held, &record) => Change::Refreshed,
            Some(_) => Change::Updated,
        };
        if change == Change::Updated {
            self.records.remove(&peer);
            self.reindex();
        }
        self.index(&record);
        self.records.insert(peer, record);
        if change != Change::Refreshed {
            self.list_neighbors();
        }
        Ok(change)
    }

    /// Forgets a member.
    pub fn remove(&mut self, peer: &PeerId) {
        if self.records.remove(peer).is_some() {
            self.reindex();
            self.list_neighbors();
        }
    }

    /// Forgets every record that has expired at `now` and returns their members.
    pub fn remove_expired(&mut self, now: UnixSeconds) -> Vec<PeerId> {
        let expired: Vec<_> =
            self.records.iter().filter(|(_, record)| record.has_expired(now)).map(|(peer, _)| *peer).collect();
        for peer in &expired {
            self.records.remove(peer);
        }
        if !expired.is_empty() {
            self.reindex();
            self.list_neighbors();
        }
        expired
    }

    /// The record of a member.
    pub fn get(&self, peer: &PeerId) -> Option<&Verified<Record>> {
        self.records.get(peer)
    }

    /// The record that has the right to the thing of `key`.
    pub fn find(&self, key: &LookupKey) -> Option<&Verified<Record>> {
        let peer = match key {
            LookupKey::Mac(mac) => self.by_mac.get(mac),
            LookupKey::Ip(address) => self.by_ip.get(address),
            LookupKey::Name(name) => self.by_name.get(name),
        }?;
        self.records.get(peer)
    }

    /// Every record, in the order of the members' keys.
    pub fn iter(&self) -> impl Iterator<Item = &Verified<Record>> {
        self.records.values()
    }

    /// Every overlay address with the MAC of the member that has the right to it.
    pub fn neighbors(&self) -> Arc<BTreeMap<IpAddr, Mac>> {
        Arc::clone(&self.neighbors)
    }

    /// How many members are known.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn reindex(&mut self) {
        self.by_mac.clear();
        self.by_ip.clear();
        self.by_name.clear();
        let records = std::mem::take(&mut self.records);
        for record in records.values() {
            self.index_into(record, &records);
        }
        self.records = records;
    }

    fn index(&mut self, record: &Verified<Record>) {
        let records = std::mem::take(&mut self.records);
        self.index_into(record, &records);
        self.records = records;
    }

    fn list_neighbors(&mut self) {
        let mac = |peer| self.records.get(peer).map(|record| record.mac);
        self.neighbors = Arc::new(self.by_ip.iter().filter_map(|(ip, peer)| Some((*ip, mac(peer)?))).collect());
    }

    fn index_into(&mut self, record: &Verified<Record>, records: &BTreeMap<PeerId, Verified<Record>>) {
        let peer = record.peer();
        for key in record.lookup_keys() {
            let holder = match &key {
                LookupKey::Mac(mac) => self.by_mac.entry(*mac).or_insert(peer),
                LookupKey::Ip(address) => self.by_ip.entry(*address).or_insert(peer),
                LookupKey::Name(name) => self.by_name.entry(name.clone()).or_insert(peer),
            };
            let wins = match records.get(holder) {
                Some(held) if *holder != peer => record.wins_over(held, &key),
                Some(_) | None => true,
            };
            if wins {
                *holder = peer;
            }
        }
    }
}

fn same_content(a: &Record, b: &Record) -> bool {
    a.chain == b.chain
        && a.noise == b.noise
        && a.mac == b.mac
        && a.ipv4 == b.ipv4
        && a.ipv6 == b.ipv6
        && a.endpoints == b.endpoints
        && a.homes == b.homes
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::super::record::{Ipv4Claim, RECORD_LIFETIME};
    use super::*;
    use crate::identity::{
        Certificate, CertificateBody, Chain, Kind, NetworkId, Roles, SigningKey, default_prefix, ula_address,
    };

    const NOW: UnixSeconds = 1_800_000_000;

    fn network() -> NetworkId {
        NetworkId::of_root(&SigningKey::from_seed(&[1; 32]).peer_id())
    }

    fn record(n: u8, sequence: u64, change: impl FnOnce(&mut Record)) -> Verified<Record> {
        let (root, key, network) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[n; 32]), network());
        let body = CertificateBody {
            subject: key.peer_id(),
            kind: Kind::Member,
            name: format!("host-{n}").parse().expect("a name"),
            roles: Roles::NONE,
            not_before: NOW,
            not_after: NOW + 86400,
            grant_until: NOW + 86400,
            uses: 0,
        };
        let mac = Mac::automatic(&network, &key.peer_id());
        let mut record = Record {
            chain: Chain::of_root(root.peer_id(), Certificate::issue(&root, &network, body)),
            noise: key.noise_secret().public(),
            mac,
            ipv4: Ipv4Claim {
                address: Ipv4Addr::from(default_prefix(&network).address().to_bits() + u32::from(n)),
                fixed: false,
            },
            ipv6: ula_address(&network, &mac),
            endpoints: vec![],
            homes: vec![],
            tls: false,
            sequence,
            expires: NOW + RECORD_LIFETIME,
        };
        change(&mut record);
        Verified::sign(&key, &network, record, NOW).expect("a sound record")
    }

    #[test]
    fn a_member_is_found_by_mac_address_and_name() {
        let mut roster = Roster::default();
        let ada = record(2, 1, |_| ());
        assert_eq!(roster.insert(ada.clone(), NOW), Ok(Change::New));
        for key in ada.lookup_keys() {
            assert_eq!(roster.find(&key), Some(&ada));
        }
    }

    #[test]
    fn an_older_record_changes_nothing_and_a_newer_one_moves_every_index() {
        let mut roster = Roster::default();
        let (old, new) = (record(2, 1, |_| ()), record(2, 2, |r| r.ipv4.address = Ipv4Addr::new(10, 100, 9, 9)));
        assert_eq!(roster.insert(new.clone(), NOW), Ok(Change::New));
        assert_eq!(roster.insert(old.clone(), NOW), Ok(Change::Stale));
        assert_eq!(roster.find(&LookupKey::Ip(old.ipv4.address.into())), None);
        let mut roster = Roster::default();
        assert_eq!(roster.insert(old.clone(), NOW), Ok(Change::New));
        assert_eq!(roster.insert(new.clone(), NOW), Ok(Change::Updated));
        assert_eq!(roster.find(&LookupKey::Ip(old.ipv4.address.into())), None);
        assert_eq!(roster.find(&LookupKey::Ip(new.ipv4.address.into())), Some(&new));
    }

    #[test]
    fn a_mac_stays_with_the_key_that_was_seen_first() {
        let mut roster = Roster::default();
        let ada = record(2, 1, |_| ());
        let thief = record(3, 9, |r| (r.mac, r.ipv6) = (ada.mac, ada.ipv6));
        assert_eq!(roster.insert(ada.clone(), NOW), Ok(Change::New));
        let refusal = Err(RosterError::MacTaken { mac: ada.mac, owner: ada.peer() });
        assert_eq!(roster.insert(thief.clone(), NOW), refusal);
        assert_eq!(roster.remove_expired(NOW + RECORD_LIFETIME + 1), vec![ada.peer()]);
        assert_eq!(roster.insert(thief, NOW), Ok(Change::New));
    }

    #[test]
    fn two_claims_of_one_address_are_decided_alike_in_either_order() {
        let address = Ipv4Addr::new(10, 100, 1, 1);
        let a = record(2, 1, |r| r.ipv4.address = address);
        let b = record(3, 1, |r| r.ipv4.address = address);
        let fixed = record(4, 1, |r| r.ipv4 = Ipv4Claim { address, fixed: true });
        let smaller = if a.peer() < b.peer() { a.peer() } else { b.peer() };
        for order in [[&a, &b], [&b, &a]] {
            let mut roster = Roster::default();
            for record in order {
                assert_eq!(roster.insert(record.clone(), NOW), Ok(Change::New));
            }
            assert_eq!(roster.find(&LookupKey::Ip(address.into())).map(Verified::peer), Some(smaller));
            assert_eq!(roster.insert(fixed.clone(), NOW), Ok(Change::New));
            assert_eq!(roster.find(&LookupKey::Ip(address.into())).map(Verified::peer), Some(fixed.peer()));
        }
    }

    #[test]
    fn when_the_winner_goes_the_other_claim_stands() {
        let address = Ipv4Addr::new(10, 100, 1, 1);
        let fixed = record(4, 1, |r| {
            r.ipv4 = Ipv4Claim { address, fixed: true };
            r.expires = NOW + 10;
        });
        let other = record(2, 1, |r| r.ipv4.address = address);
        let mut roster = Roster::default();
        assert!(roster.insert(fixed.clone(), NOW).is_ok() && roster.insert(other.clone(), NOW).is_ok());
        assert_eq!(roster.remove_expired(NOW + 11), vec![fixed.peer()]);
        assert_eq!(roster.find(&LookupKey::Ip(address.into())), Some(&other));
    }
}
