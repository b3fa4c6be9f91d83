//! The FDB: which foreign stations are behind which bridge. Ours are learned from the frames that they send, as a switch does
//! (IEEE 802.1D, section 7.8); those of others are told by them, in [`Claim`]s.
//!
//! A station has one place. Of two bridges that claim it the newer claim wins, for that is how a station moves; then the place
//! stays for [`HOLD_DOWN`], so that a station that seems to be everywhere costs little. Of claims that cross on the way that
//! of the smaller key wins, so that all decide alike. A bridge whose station is elsewhere now withdraws its own claim, so what is left
//! in the end is one.
//!
//! Everything here is bounded, and what a record gives to a member never comes in: the node sees to that, before and after.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::identity::{Mac, PeerId};
use crate::wire::message::{Claim, MAX_CLAIMED};
use crate::wire::{Counters, DropReason};

/// Stations behind one bridge: four floors of an office. Twice as many are no LAN to be bridged whole, for everybody's broadcasts
/// would come along.
pub const MAX_STATIONS: usize = 1024;

/// Stations of all bridges together: as many as members are remembered, about a megabyte.
pub const MAX_STATIONS_IN_ALL: usize = 8192;

/// A station of ours that has said nothing for so long is forgotten (IEEE 802.1D, table 7-5).
pub const AGING: Duration = Duration::from_secs(300);

/// A claim that is not told again for so long is forgotten: three times the interval of [`crate::node`]'s tellings and a little.
pub const CLAIM_LIFE: Duration = Duration::from_secs(200);

/// How long a station that has moved stays where it is: a person who carries a laptop to another floor takes longer. Twice as long
/// would be felt where somebody plugs a cable back.
pub const HOLD_DOWN: Duration = Duration::from_secs(3);

/// Claims no further apart may have crossed on the way: longer than any round trip worth having.
const CROSSING: Duration = Duration::from_secs(1);

/// The stations behind us that forwarding takes frames from. It notes who has spoken, without a lock.
#[derive(Debug, Default)]
pub struct Behind(HashMap<Mac, Arc<AtomicBool>>);

impl Behind {
    /// Whether `mac` is behind us.
    pub fn has(&self, mac: Mac) -> bool {
        self.0.contains_key(&mac)
    }

    /// The same of who has just spoken.
    pub fn hears(&self, mac: Mac) -> bool {
        let Some(spoken) = self.0.get(&mac) else { return false };
        // Lanes share it: it is written once a sweep only.
        if !spoken.load(Ordering::Relaxed) {
            spoken.store(true, Ordering::Relaxed);
        }
        true
    }
}

/// One bridge's claim of one station.
#[derive(Debug, Clone, Copy)]
struct Claimed {
    since: Instant,
    /// When the station was last heard, if it is ours; when it was last told.
    fresh: Instant,
}

/// Where a station is.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: PeerId,
    /// Since when that one claims it.
    since: Instant,
}

/// What is known of a bridge.
#[derive(Debug, Clone, Copy, Default)]
struct Bridge {
    /// The greatest that it has told.
    sequence: u64,
    /// Stations that it claims.
    count: usize,
}

/// A station of ours, as forwarding is told of it.
#[derive(Debug, Default)]
struct Ours {
    spoken: Arc<AtomicBool>,
    /// Whether others know of it by now.
    admitted: bool,
}

/// The table.
#[derive(Debug)]
pub struct Fdb {
    own: PeerId,
    claims: BTreeMap<(PeerId, Mac), Claimed>,
    bridges: BTreeMap<PeerId, Bridge>,
    places: BTreeMap<Mac, Place>,
    /// When a station went from one bridge to another.
    moves: BTreeMap<Mac, Instant>,
    ours: BTreeMap<Mac, Ours>,
    behind: Option<Arc<Behind>>,
    /// Grows with each change of what is behind us.
    sequence: u64,
    /// What changed behind us and was not told.
    news: BTreeSet<Mac>,
}

impl Fdb {
    /// An empty table of the node `own`, whose claims are numbered from `sequence` on: above all that it has told in earlier lives.
    pub fn new(own: PeerId, sequence: u64) -> Self {
        Self {
            own,
            claims: BTreeMap::new(),
            bridges: BTreeMap::new(),
            places: BTreeMap::new(),
            moves: BTreeMap::new(),
            ours: BTreeMap::new(),
            behind: None,
            sequence,
            news: BTreeSet::new(),
        }
    }

    /// A station behind us has spoken: whether it is new.
    ///
    /// # Errors
    /// Under which name it is counted that it is not learned.
    pub fn learn(&mut self, mac: Mac, now: Instant) -> Result<bool, DropReason> {
        if let Some(claimed) = self.claims.get_mut(&(self.own, mac)) {
            claimed.fresh = now;
            return Ok(false);
        }
        let elsewhere = self.places.get(&mac).is_some_and(|place| self.withstands(place, mac, self.own, now, now));
        if elsewhere || !is_station(mac) {
            return Err(DropReason::ForeignSource);
        }
        if !self.claim(self.own, mac, now) {
            return Err(DropReason::BridgeStations);
        }
        self.ours.insert(mac, Ours::default());
        self.note(mac);
        self.settle(self.own, mac, now);
        Ok(true)
    }

    /// Others have been told of a station of ours: forwarding may take frames from it.
    pub fn admit(&mut self, mac: Mac) {
        if let Some(ours) = self.ours.get_mut(&mac)
            && !std::mem::replace(&mut ours.admitted, true)
        {
            self.behind = None;
        }
    }

    /// Whether forwarding may take frames from a station of ours; `None` if it is none.
    pub fn is_admitted(&self, mac: Mac) -> Option<bool> {
        self.ours.get(&mac).map(|ours| ours.admitted)
    }

    /// Takes in what the bridge `by` claims, but for what is `owned` by a member; `claim` is sound. Returns whether any station
    /// has another place now.
    pub fn take(
        &mut self,
        by: PeerId,
        claim: &Claim,
        owned: impl Fn(Mac) -> bool,
        now: Instant,
        counters: &mut Counters,
    ) -> bool {
        let bridge = self.bridges.entry(by).or_default();
        if claim.sequence < bridge.sequence {
            // It was overtaken; what it said will be told again, if it is still so.
            return false;
        }
        bridge.sequence = claim.sequence;
        let range = (by, claim.first)..=(by, claim.last);
        let claimed = self.claims.range(range).map(|(key, _)| *key);
        let gone = claimed.filter(|(_, mac)| claim.stations.binary_search(mac).is_err()).collect();
        let mut changed = self.withdraw_all(gone, now);
        for &mac in &claim.stations {
            if owned(mac) {
                counters.count(DropReason::BridgeOwned);
            } else if let Some(claimed) = self.claims.get_mut(&(by, mac)) {
                claimed.fresh = now;
                changed |= self.settle(by, mac, now);
            } else if self.claim(by, mac, now) {
                changed |= self.settle(by, mac, now);
            } else {
                counters.count(DropReason::BridgeStations);
            }
        }
        changed
    }

    /// Forgets all that `by` claims; whether any station has another place now.
    pub fn forget(&mut self, by: PeerId, now: Instant) -> bool {
        let all = (by, Mac([0; 6]))..=(by, Mac::BROADCAST);
        let gone = self.claims.range(all).map(|(key, _)| *key).collect();
        let changed = self.withdraw_all(gone, now);
        self.bridges.remove(&by);
        changed
    }

    /// A member's record has this MAC: nobody else may claim it.
    pub fn yield_to_record(&mut self, mac: Mac, now: Instant) -> bool {
        let gone = self.bridges.keys().map(|by| (*by, mac)).collect();
        self.withdraw_all(gone, now)
    }

    /// Forgets stations of ours that have been silent, and claims that were not told again; whether any has another place now.
    pub fn expire(&mut self, now: Instant) -> bool {
        for (mac, ours) in &self.ours {
            if ours.spoken.swap(false, Ordering::Relaxed)
                && let Some(claimed) = self.claims.get_mut(&(self.own, *mac))
            {
                claimed.fresh = now;
            }
        }
        let life = |by: &PeerId| if *by == self.own { AGING } else { CLAIM_LIFE };
        let over = self.claims.iter().filter(|((by, _), claimed)| now >= claimed.fresh + life(by));
        let over = over.map(|(key, _)| *key).collect();
        let changed = self.withdraw_all(over, now);
        self.bridges.retain(|_, bridge| bridge.count > 0);
        self.moves.retain(|_, at| now < *at + HOLD_DOWN);
        changed
    }

    /// Whether nobody claims anything.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// How many claims there are, of all bridges.
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether nothing is behind us.
    pub fn has_nothing_behind(&self) -> bool {
        self.ours.is_empty()
    }

    /// Where a station is: at which bridge.
    pub fn place(&self, mac: Mac) -> Option<PeerId> {
        self.places.get(&mac).map(|place| place.at)
    }

    /// Where every station is.
    pub fn places(&self) -> impl Iterator<Item = (Mac, PeerId)> {
        self.places.iter().map(|(mac, place)| (*mac, place.at))
    }

    /// The stations behind us, for forwarding.
    pub fn behind(&mut self) -> Arc<Behind> {
        let admitted = self.ours.iter().filter(|(_, ours)| ours.admitted);
        let make = || Arc::new(Behind(admitted.map(|(mac, ours)| (*mac, Arc::clone(&ours.spoken))).collect()));
        Arc::clone(self.behind.get_or_insert_with(make))
    }

    /// Whether something behind us changed and was not told.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Whether that is news.
    pub fn is_news(&self, mac: Mac) -> bool {
        self.news.contains(&mac)
    }

    /// All that is behind us, to be told: one claim at least, and together they cover every MAC.
    pub fn tell_all(&self) -> Vec<Claim> {
        let macs: Vec<_> = self.ours.keys().copied().collect();
        let mut first = Mac([0; 6]);
        let mut claims = Vec::with_capacity(macs.len().div_ceil(MAX_CLAIMED).max(1));
        let mut chunks = macs.chunks(MAX_CLAIMED).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunk.last().filter(|_| chunks.peek().is_some()).copied().unwrap_or(Mac::BROADCAST);
            claims.push(Claim { sequence: self.sequence, first, last, stations: chunk.to_vec() });
            first = next(last);
        }
        if claims.is_empty() {
            claims.push(Claim { sequence: self.sequence, first, last: Mac::BROADCAST, stations: Vec::new() });
        }
        claims
    }

    /// What has changed of that, and is told with this.
    pub fn tell_news(&mut self) -> Vec<Claim> {
        let news = std::mem::take(&mut self.news);
        let mut claims = self.tell_all();
        claims.retain(|claim| news.range(claim.first..=claim.last).next().is_some());
        claims
    }

    /// Whether a claim by another, since then, does not move the station.
    fn withstands(&self, place: &Place, mac: Mac, by: PeerId, since: Instant, now: Instant) -> bool {
        if place.at == by || self.moves.get(&mac).is_some_and(|at| now < *at + HOLD_DOWN) {
            return true;
        }
        let apart = since.saturating_duration_since(place.since).max(place.since.saturating_duration_since(since));
        if apart < CROSSING { place.at < by } else { place.since > since }
    }

    /// A new claim, if there is room.
    fn claim(&mut self, by: PeerId, mac: Mac, now: Instant) -> bool {
        let bridge = self.bridges.entry(by).or_default();
        if bridge.count >= MAX_STATIONS || self.claims.len() >= MAX_STATIONS_IN_ALL {
            return false;
        }
        bridge.count += 1;
        self.claims.insert((by, mac), Claimed { since: now, fresh: now });
        true
    }

    /// Decides where a station is that `by` claims; whether that is another place.
    fn settle(&mut self, by: PeerId, mac: Mac, now: Instant) -> bool {
        let Some(since) = self.claims.get(&(by, mac)).map(|claimed| claimed.since) else { return false };
        let before = match self.places.get(&mac) {
            Some(place) if self.withstands(place, mac, by, since, now) => return false,
            place => place.map(|place| place.at),
        };
        self.places.insert(mac, Place { at: by, since });
        if before.is_some() {
            self.moves.insert(mac, now);
        }
        if before == Some(self.own) {
            self.withdraw(self.own, mac, now);
        }
        true
    }

    /// Ends these claims; whether any station has another place now.
    fn withdraw_all(&mut self, claims: Vec<(PeerId, Mac)>, now: Instant) -> bool {
        let mut changed = false;
        for (by, mac) in claims {
            changed |= self.withdraw(by, mac, now);
        }
        changed
    }

    /// Ends a claim; whether the station has another place now, or none.
    fn withdraw(&mut self, by: PeerId, mac: Mac, now: Instant) -> bool {
        if self.claims.remove(&(by, mac)).is_none() {
            return false;
        }
        if let Some(bridge) = self.bridges.get_mut(&by) {
            bridge.count -= 1;
        }
        if by == self.own {
            self.ours.remove(&mac);
            self.note(mac);
        }
        if self.places.get(&mac).is_none_or(|place| place.at != by) {
            return by == self.own;
        }
        self.places.remove(&mac);
        let others = self.bridges.keys().filter_map(|other| Some((self.claims.get(&(*other, mac))?.since, *other)));
        if let Some((since, at)) = others.max_by_key(|(since, other)| (*since, std::cmp::Reverse(*other))) {
            self.places.insert(mac, Place { at, since });
            self.moves.insert(mac, now);
        }
        true
    }

    /// What is behind us changed.
    fn note(&mut self, mac: Mac) {
        self.sequence += 1;
        self.news.insert(mac);
        self.behind = None;
    }
}

/// Whether a station may have it: one that is no group's, nor nobody's.
fn is_station(mac: Mac) -> bool {
    !mac.is_group() && mac != Mac([0; 6])
}

/// The next MAC in order.
fn next(mac: Mac) -> Mac {
    let [a, b, c, d, e, f] = mac.0;
    let [.., a, b, c, d, e, f] = (u64::from_be_bytes([0, 0, a, b, c, d, e, f]) + 1).to_be_bytes();
    Mac([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::start;
    use super::*;

    const OWN: PeerId = PeerId([5; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    fn bridge(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn station(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([0x00, 0x1b, a, b, c, d])
    }

    fn claim(sequence: u64, stations: impl IntoIterator<Item = u32>) -> Claim {
        let stations: Vec<_> = stations.into_iter().map(station).collect();
        Claim { sequence, first: Mac([0; 6]), last: Mac::BROADCAST, stations }
    }

    fn take(fdb: &mut Fdb, by: u8, claim: &Claim, now: Instant) -> Counters {
        let mut counters = Counters::default();
        fdb.take(bridge(by), claim, |_| false, now, &mut counters);
        counters
    }

    #[test]
    fn a_station_is_learned_told_and_forgotten_when_it_has_been_silent() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 7);
        assert_eq!((fdb.learn(station(1), now), fdb.learn(station(1), now)), (Ok(true), Ok(false)));
        assert_eq!(fdb.tell_news(), [claim(8, [1])]);
        assert!(!fdb.behind().has(station(1)), "before others know of it");
        fdb.admit(station(1));
        assert!(fdb.behind().hears(station(1)) && !fdb.behind().hears(station(2)));
        assert!(!fdb.expire(now + AGING), "it has spoken since");
        assert!(!fdb.expire(now + 2 * AGING - SECOND) && fdb.expire(now + 2 * AGING));
        assert_eq!((fdb.tell_news(), fdb.len(), fdb.place(station(1))), (vec![claim(9, [])], 0, None));
    }

    #[test]
    fn groups_and_nobodys_mac_are_no_stations() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        for mac in [Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1]), Mac([0; 6])] {
            assert_eq!(fdb.learn(mac, now), Err(DropReason::ForeignSource));
        }
        assert!(fdb.is_empty());
    }

    #[test]
    fn many_stations_are_told_in_parts_that_cover_everything_and_only_what_changed_is_told_anew() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        for n in 0..MAX_STATIONS as u32 {
            assert_eq!(fdb.learn(station(n), now), Ok(true));
        }
        assert_eq!(fdb.learn(station(5000), now), Err(DropReason::BridgeStations));
        let parts = fdb.tell_news();
        assert_eq!(parts, fdb.tell_all());
        assert!(parts.len() == MAX_STATIONS.div_ceil(MAX_CLAIMED) && parts.iter().all(Claim::is_sound));
        assert_eq!((parts[0].first, parts[parts.len() - 1].last), (Mac([0; 6]), Mac::BROADCAST));
        assert!(parts.windows(2).all(|pair| next(pair[0].last) == pair[1].first));
        let mut other = Fdb::new(bridge(9), 0);
        for part in parts.iter().rev() {
            assert_eq!(take(&mut other, 5, part, now).iter().count(), 0);
        }
        assert_eq!(other.len(), MAX_STATIONS);
        assert!(fdb.yield_to_record(station(3), now));
        let news = fdb.tell_news();
        assert_eq!(news.len(), 1);
        take(&mut other, 5, &news[0], now);
        assert_eq!((other.len(), other.place(station(3))), (MAX_STATIONS - 1, None));
    }

    #[test]
    fn ten_thousand_claimed_stations_are_bounded_and_counted() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        let mut refused = 0;
        for part in 0..100u32 {
            let macs: Vec<_> = (part * 100..part * 100 + 100).map(station).collect();
            let claim = Claim { sequence: 1, first: macs[0], last: macs[99], stations: macs };
            refused += take(&mut fdb, 2, &claim, now).get(DropReason::BridgeStations);
        }
        assert_eq!((fdb.len(), refused), (MAX_STATIONS, 10_000 - MAX_STATIONS as u64));
        for by in 10..30u8 {
            for part in 0..8u32 {
                let from = u32::from(by) * 10_000 + part * 128;
                let macs: Vec<_> = (from..from + 128).map(station).collect();
                let claim = Claim { sequence: 1, first: macs[0], last: macs[127], stations: macs };
                take(&mut fdb, by, &claim, now);
            }
        }
        assert_eq!(fdb.len(), MAX_STATIONS_IN_ALL);
        assert!(fdb.expire(now + CLAIM_LIFE) && fdb.is_empty());
    }

    #[test]
    fn what_a_member_owns_is_refused_and_counted() {
        let now = start();
        let (mut fdb, mut counters) = (Fdb::new(OWN, 0), Counters::default());
        fdb.take(bridge(2), &claim(1, [1, 2, 3]), |mac| mac == station(2), now, &mut counters);
        assert_eq!((counters.get(DropReason::BridgeOwned), fdb.place(station(2))), (1, None));
        assert_eq!(fdb.place(station(3)), Some(bridge(2)));
        assert!(fdb.yield_to_record(station(3), now), "a member that comes later");
        assert_eq!(fdb.place(station(3)), None);
    }

    #[test]
    fn a_claim_that_was_overtaken_changes_nothing() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        take(&mut fdb, 2, &claim(5, [1]), now);
        take(&mut fdb, 2, &claim(4, [2]), now);
        assert_eq!((fdb.place(station(1)), fdb.place(station(2))), (Some(bridge(2)), None));
    }

    #[test]
    fn a_station_that_moves_is_at_the_newest_place_and_stays_there_for_a_while() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        take(&mut fdb, 2, &claim(1, [1]), now);
        let later = now + 10 * SECOND;
        take(&mut fdb, 3, &claim(1, [1]), later);
        assert_eq!(fdb.place(station(1)), Some(bridge(3)));
        // The first one withdraws and claims it anew, at once: not yet.
        take(&mut fdb, 2, &claim(2, []), later);
        take(&mut fdb, 2, &claim(3, [1]), later + 2 * SECOND);
        assert_eq!(fdb.place(station(1)), Some(bridge(3)));
        // It says so again.
        take(&mut fdb, 2, &claim(3, [1]), later + HOLD_DOWN);
        assert_eq!(fdb.place(station(1)), Some(bridge(2)));
    }

    #[test]
    fn a_station_of_ours_that_speaks_elsewhere_is_withdrawn() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        fdb.learn(station(1), now).expect("it is new");
        fdb.tell_news();
        take(&mut fdb, 9, &claim(1, [1]), now + 10 * SECOND);
        assert_eq!((fdb.place(station(1)), fdb.tell_news()), (Some(bridge(9)), vec![claim(2, [])]));
        assert_eq!(fdb.learn(station(1), now + 11 * SECOND), Err(DropReason::ForeignSource), "it has just moved");
        assert_eq!(fdb.learn(station(1), now + 10 * SECOND + HOLD_DOWN), Ok(true));
        assert_eq!(fdb.place(station(1)), Some(OWN));
    }

    #[test]
    fn claims_that_cross_are_decided_alike_in_either_order() {
        let now = start();
        for order in [[2, 3], [3, 2]] {
            let mut fdb = Fdb::new(OWN, 0);
            take(&mut fdb, order[0], &claim(1, [1]), now);
            take(&mut fdb, order[1], &claim(1, [1]), now + SECOND / 10);
            assert_eq!(fdb.place(station(1)), Some(bridge(2)), "{order:?}");
        }
        // And by the two themselves: one of them keeps it.
        for (other, keeps) in [(2, false), (9, true)] {
            let mut fdb = Fdb::new(OWN, 0);
            fdb.learn(station(1), now).expect("it is new");
            take(&mut fdb, other, &claim(1, [1]), now + SECOND / 10);
            assert_eq!(fdb.is_admitted(station(1)).is_some(), keeps);
        }
    }

    #[test]
    fn who_takes_and_gives_back_without_end_moves_a_station_once_in_a_while() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        fdb.learn(station(1), now).expect("it is new");
        let (mut moves, mut place) = (0, fdb.place(station(1)));
        for n in 0..300u64 {
            let at = now + 10 * SECOND + n as u32 * SECOND / 10;
            take(&mut fdb, 2, &claim(n, (n % 2 == 0).then_some(1)), at);
            let _ = fdb.learn(station(1), at);
            if let Some(now_at) = fdb.place(station(1)).filter(|at| Some(*at) != place) {
                (moves, place) = (moves + 1, Some(now_at));
            }
        }
        assert!(moves <= 2 * 30 / HOLD_DOWN.as_secs() + 2, "{moves} moves in half a minute");
    }

    #[test]
    fn what_a_bridge_has_claimed_goes_with_it() {
        let now = start();
        let mut fdb = Fdb::new(OWN, 0);
        take(&mut fdb, 2, &claim(9, [1, 2]), now);
        take(&mut fdb, 3, &claim(9, [2]), now + 5 * SECOND);
        assert!(fdb.forget(bridge(3), now + 6 * SECOND) && !fdb.forget(bridge(3), now + 6 * SECOND));
        assert_eq!(fdb.place(station(2)), Some(bridge(2)), "who claimed it before still does");
        assert!(fdb.forget(bridge(2), now + 6 * SECOND) && fdb.is_empty());
        take(&mut fdb, 2, &claim(1, [1]), now + 7 * SECOND);
        assert_eq!(fdb.place(station(1)), Some(bridge(2)), "in another life it counts anew");
    }

    proptest! {
        /// Whatever bridges say, a station's place is one that claims it, and every claimed station has a place.
        #[test]
        fn places_are_those_of_claims(steps in proptest::collection::vec((0u8..5, 0u32..4, any::<bool>(), 0u64..2000), 1..60)) {
            let (mut now, mut fdb, mut sequence) = (start(), Fdb::new(OWN, 0), 0);
            for (by, n, holds, wait) in steps {
                now += Duration::from_millis(wait);
                sequence += 1;
                if by == 0 {
                    let _ = fdb.learn(station(n), now);
                } else if by == 4 && holds {
                    fdb.expire(now);
                } else {
                    let stations = if holds { vec![station(n)] } else { Vec::new() };
                    let claim = Claim { sequence, first: station(n), last: station(n), stations };
                    take(&mut fdb, by, &claim, now);
                }
                let claimed: BTreeSet<_> = fdb.claims.keys().map(|(_, mac)| *mac).collect();
                prop_assert_eq!(claimed, fdb.places.keys().copied().collect::<BTreeSet<_>>());
                for (mac, at) in fdb.places() {
                    prop_assert!(fdb.claims.contains_key(&(at, mac)));
                    prop_assert_eq!(at == OWN, fdb.ours.contains_key(&mac));
                }
                let counted: usize = fdb.bridges.values().map(|bridge| bridge.count).sum();
                prop_assert_eq!(counted, fdb.claims.len());
            }
        }
    }
}
