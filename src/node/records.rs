//! Records come and go: ours is signed, renewed and pushed; others' are judged, taken in, expired.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::dht::membership::{Change, RosterError};
use crate::dht::record::RECORD_LIFETIME;
use crate::dht::{self, LookupKey, Record, RecordError, Sighting, Verified};
use crate::identity::{ChainError, NoisePublic, PeerId, UnixSeconds};
use crate::nat::Origin;
use crate::switch::neighbor::announcement;
use crate::wire::{DropReason, Message};

use super::Node;
use super::event::Event;
use super::streams::with_tls;
use super::timers::Timer;

/// Our record is renewed at a third of its life, or a little later: so that one failed renewal harms nobody, nor an hour
/// of difference between clocks.
const RENEW_AFTER: Duration = Duration::from_secs(RECORD_LIFETIME / 3);

/// Expired records are looked for when the next one expires, and once a minute: clocks are set, laptops sleep.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// Records are written to disk this long after a change: one write for a whole LAN that comes up.
const PERSIST_AFTER: Duration = Duration::from_secs(3);

/// Members remembered beyond their records: the colleagues of an office. More could only be a large network, and that
/// is found again through any one of them.
const MAX_REMEMBERED: usize = 64;

/// Records kept on disk: enough to find a large network again; a quarter of a megabyte.
const MAX_PERSISTED: usize = 256;

impl Node {
    /// The first inputs: what the disk and the invite know, our addresses, the timers.
    pub(super) fn begin(&mut self, now: Instant) {
        self.load_ledger(now);
        let unix = self.clock.unix(now);
        for bytes in std::mem::take(&mut self.config.known_records) {
            match Verified::check(&bytes, &self.network, unix) {
                Ok(record) => self.take_in(record, now),
                // An expired record is no proof any more, but a hint where its member was.
                Err(RecordError::Expired(at)) => {
                    if let Ok(record) = Verified::check(&bytes, &self.network, at)
                        && self.ledger.verdict(&record.chain).is_ok()
                    {
                        self.remember(record.peer(), record.noise, &record.endpoints, record.tls);
                    }
                }
                Err(error) => tracing::debug!(%error, "kept record refused"),
            }
        }
        for contact in std::mem::take(&mut self.config.contacts) {
            self.remember(contact.peer, contact.noise, &contact.endpoints, contact.tls);
        }
        let taken = self.roster.find(&LookupKey::Ip(IpAddr::V4(self.own.ipv4.address))).map(Verified::peer);
        if !self.own.ipv4.fixed && taken.is_some_and(|owner| owner != self.own.peer) {
            self.renumber();
        }
        self.announce_addresses(None);
        self.timers.set(Timer::Expire, now + EXPIRE_INTERVAL);
        self.redraw(now);
    }

    /// A member may be at these endpoints; it is tried when our own endpoints are known.
    fn remember(&mut self, id: PeerId, noise: NoisePublic, endpoints: &[SocketAddr], tls: bool) {
        let Some(peer) = self.peer_entry(id) else { return };
        peer.noise.get_or_insert(noise);
        peer.paths.set_candidates(Origin::Remembered, endpoints);
        peer.tls = tls;
        self.dial(id, with_tls(endpoints, tls), Vec::new());
    }

    /// The control network may find a member there, or ask for it at its home relays.
    pub(super) fn dial(&mut self, peer: PeerId, endpoints: Vec<SocketAddr>, homes: Vec<PeerId>) {
        self.events.push_back(Event::Directory(dht::Command::Dial { peer, endpoints, homes }));
    }

    /// Signs our record anew, stores and gossips it, and pushes it over every live session.
    pub(super) fn renew_record(&mut self, now: Instant) {
        let wait = self.jittered(RENEW_AFTER);
        self.timers.set(Timer::Renew, now + wait);
        let record = match self.own.sign(&self.config, &self.network, self.clock.unix(now)) {
            Ok(record) => record,
            Err(RecordError::Chain(ChainError::Expired { .. })) => {
                self.events.push_back(Event::MembershipEnded);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "our own record is not valid; others will not accept us");
                return;
            }
        };
        let unix = self.clock.unix(now);
        let _ = self.roster.insert(record.clone(), unix);
        self.timers.set_if_earlier(Timer::Expire, now + until_over(record.ends(), unix));
        self.redraw(now);
        let message = Message::Record(record.bytes().to_vec());
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            if self.send_message(id, &message, now)
                && let Some(peer) = self.peers.get_mut(&id)
            {
                peer.told = record.sequence;
            }
        }
        self.events.push_back(Event::Directory(dht::Command::Publish(Box::new(record))));
    }

    /// Verifies received bytes, and that nobody has expelled their member.
    pub(super) fn check_record(&self, bytes: &[u8], now: Instant) -> Result<Verified<Record>, RecordError> {
        let record = Verified::check(bytes, &self.network, self.clock.unix(now))?;
        self.ledger.verdict(&record.chain)?;
        Ok(record)
    }

    /// Verifies received bytes, naming the reason if they are no good.
    pub(super) fn verify_record(&self, bytes: &[u8], now: Instant) -> Result<Verified<Record>, DropReason> {
        self.check_record(bytes, now).map_err(|error| drop_reason(&error))
    }

    /// Takes a verified record into the roster and acts on what is new in it.
    pub(super) fn take_in(&mut self, record: Verified<Record>, now: Instant) {
        let id = record.peer();
        let before = self.peers.get(&id).map(|peer| peer.paths.endpoints()).unwrap_or_default();
        match self.absorb(record, now) {
            Ok(Change::New | Change::Updated) => (),
            Ok(Change::Refreshed | Change::Stale) => return,
            Err(reason) => return self.counters.count(reason),
        }
        let Some(peer) = self.peers.get(&id) else { return };
        let (live, wanted) = (peer.current.is_some(), !peer.departed);
        let moved = peer.paths.endpoints().iter().any(|endpoint| !before.contains(endpoint));
        if moved && live {
            self.probe(id, now);
        } else if wanted {
            self.try_candidates(id, &before, now);
        }
    }

    /// Takes a verified record into the roster; starts nothing with its member.
    pub(super) fn absorb(&mut self, record: Verified<Record>, now: Instant) -> Result<Change, DropReason> {
        let (id, unix) = (record.peer(), self.clock.unix(now));
        if record.has_expired(unix) {
            return Err(DropReason::MembershipExpired);
        }
        // The directory may not have heard what we have.
        if self.ledger.verdict(&record.chain).is_err() {
            return Err(DropReason::MembershipRevoked);
        }
        if id == self.own.peer {
            // An echo of an earlier life: whoever holds it must not take our next record for an old one.
            if self.own.skip_sequence(record.sequence) && self.own.record().is_some() {
                self.renew_record(now);
            }
            return Ok(Change::Stale);
        }
        let (noise, endpoints, name) = (record.noise, record.endpoints.clone(), record.name().clone());
        let homes = record.homes.clone();
        let tls = record.tls;
        let over = until_over(record.ends(), unix);
        let ours = LookupKey::Ip(IpAddr::V4(self.own.ipv4.address));
        let rival = record.ipv4.address == self.own.ipv4.address
            && self.own.record().is_none_or(|own| record.wins_over(own, &ours));
        let change = self.roster.insert(record, unix).map_err(|error| {
            tracing::debug!(peer = %id, %error, "record refused");
            match error {
                RosterError::MacTaken { .. } => DropReason::RecordConflict,
                RosterError::Full => DropReason::WaitFull,
            }
        })?;
        if change == Change::Stale {
            return Ok(change);
        }
        self.timers.set_if_earlier(Timer::Expire, now + over);
        self.refused.remove(&noise);
        let peer = self.peer_entry(id).ok_or(DropReason::WaitFull)?;
        peer.noise = Some(noise);
        if matches!(change, Change::New | Change::Updated) {
            peer.paths.set_candidates(Origin::Record, &endpoints);
            peer.tls = tls;
            self.dial(id, with_tls(&endpoints, tls), homes);
            self.timers.set_if_earlier(Timer::Persist, now + PERSIST_AFTER);
            self.redraw(now);
            self.tell_kernel(id);
            self.note_newcomer(id, now);
            self.review_stations(id, now);
            if self.own.homes.contains(&id) {
                self.reconsider_homes(now);
            }
        }
        if rival {
            let old = self.own.ipv4.address;
            self.renumber();
            self.announce_addresses(Some(format!("{name} has a better claim to {old}")));
            self.renew_record(now);
        }
        Ok(change)
    }

    /// Our kernel may wait for the addresses of this member already.
    fn tell_kernel(&mut self, id: PeerId) {
        let Some(record) = self.roster.get(&id) else { return };
        let pairs = [
            (IpAddr::V4(record.ipv4.address), IpAddr::V4(self.own.ipv4.address)),
            (IpAddr::V6(record.ipv6), IpAddr::V6(self.own.ipv6)),
        ];
        for (ip, own_ip) in pairs {
            let is_owner = self.roster.find(&LookupKey::Ip(ip)).is_some_and(|owner| owner.peer() == id);
            if is_owner && ip != own_ip {
                let frame = announcement(ip, record.mac, own_ip, self.own.mac);
                self.events.extend(frame.map(Event::Deliver));
            }
        }
    }

    fn renumber(&mut self) {
        let roster = &self.roster;
        let taken = |address: &std::net::Ipv4Addr| roster.find(&LookupKey::Ip(IpAddr::V4(*address))).is_some();
        self.own.renumber(&self.config, &self.network, taken);
    }

    fn announce_addresses(&mut self, notice: Option<String>) {
        let (mac, ipv4, ipv6) = (self.own.mac, self.own.ipv4.address, self.own.ipv6);
        self.events.push_back(Event::Addresses { mac, ipv4, ipv6, notice });
    }

    /// mDNS heard of a member: a hint to try.
    pub(super) fn handle_sighting(&mut self, sighting: Sighting, now: Instant) {
        let Sighting { peer: id, noise, endpoints, stale } = sighting;
        // It knows the network's secret still, and would learn our record by an initiation.
        let known = self.peers.get(&id).and_then(|peer| peer.noise) == Some(noise);
        if self.ledger.is_accused(&id) && self.roster.get(&id).is_none() || stale && !known {
            return self.counters.count(DropReason::MembershipRevoked);
        }
        let endpoints: Vec<_> = endpoints.into_iter().filter(|endpoint| !self.is_overlay(endpoint.ip())).collect();
        let Some(peer) = self.peer_entry(id) else { return };
        peer.noise.get_or_insert(noise);
        peer.departed = false;
        peer.failures = 0;
        let before = peer.paths.endpoints();
        peer.paths.set_candidates(Origin::Sighting, &endpoints);
        self.dial(id, endpoints, Vec::new());
        self.try_candidates(id, &before, now);
    }

    /// Ends the sessions of members whose records have expired. Where they were is remembered: who was apart from the
    /// rest for an afternoon has seen every record expire, and must find somebody again. An ended membership is not.
    pub(super) fn expire_records(&mut self, now: Instant) {
        let unix = self.clock.unix(now);
        let expelled: Vec<_> =
            self.roster.iter().filter(|record| record.membership().not_after() < unix).map(Verified::peer).collect();
        for id in self.roster.remove_expired(unix) {
            self.redraw(now);
            if id == self.own.peer {
                self.renew_record(now);
                continue;
            }
            self.lose(id, "its membership or record expired", now);
            self.forget_sessions(id);
            if expelled.contains(&id) || self.peers.len() > self.roster.len() + MAX_REMEMBERED {
                self.peers.remove(&id);
            } else if let Some(peer) = self.peers.get_mut(&id) {
                peer.paths.retire();
                self.schedule_reconnect(id, now);
            }
        }
        self.expire_channels(now);
        let next = self.roster.iter().map(Verified::ends).min().map_or(EXPIRE_INTERVAL, |ends| until_over(ends, unix));
        self.timers.set(Timer::Expire, now + next.min(EXPIRE_INTERVAL));
    }

    /// Hands the newest records to the disk.
    pub(super) fn persist(&mut self) {
        let records = self.roster.iter().filter(|record| record.peer() != self.own.peer);
        self.events.push_back(Event::Persist(records.take(MAX_PERSISTED).cloned().collect()));
    }
}

/// How long until a record that ends at `ends` is over: a second later, since it is valid to the end of that one.
fn until_over(ends: UnixSeconds, unix: UnixSeconds) -> Duration {
    Duration::from_secs(ends.saturating_sub(unix) + 1)
}

/// Under which name a record refused for this is counted.
pub(super) fn drop_reason(error: &RecordError) -> DropReason {
    match error {
        RecordError::Expired(_) | RecordError::Chain(ChainError::Expired { .. }) => DropReason::MembershipExpired,
        RecordError::Chain(_) | RecordError::NotAMember => DropReason::MembershipRefused,
        RecordError::Excluded(_) => DropReason::MembershipRevoked,
        RecordError::Codec(_) | RecordError::Signature | RecordError::TooLong(_) | RecordError::Address => {
            DropReason::RecordRefused
        }
    }
}
