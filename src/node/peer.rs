//! One remote member, as the node keeps it: keys, paths, sessions, and what waits for them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::identity::{NoisePublic, PeerId};
use crate::nat::PathAgent;
use crate::session::Transport;
use crate::session::cookie::CookieJar;
use crate::session::handshake::Initiator;
use crate::session::pace::Pace;
use crate::wire::relay::channel_behind;

use super::ledger::Comparisons;
use super::quantum::Agreement;
use super::survey::Exchange;
use super::why::Account;

/// Frames that wait for one peer's session: a TCP start and an ARP or two. More would only arrive too late.
const MAX_WAITING: usize = 32;

/// How long a frame may wait: the kernel's first SYN retry comes after 1 s and replaces it.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// Sessions kept behind the current one. When two handshakes cross, each side may send with another of the two; the next
/// one must not cost either.
const MAX_OLDER: usize = 2;

/// Sources of surveys remembered: all of one are remembered until the next.
const MAX_ASIDE: usize = 8;

/// Between two records that a peer tells us in the long run: each costs up to five signatures and a new picture of the network, and an honest
/// member has a new one when it moves. Half of it would let fifty that lie take a tenth of a core.
const RECORD_INTERVAL: Duration = Duration::from_millis(250);

/// Records at once: as a laptop makes none in its first minute.
const RECORD_BURST: u32 = 32;

/// Between two claims of stations that a bridge tells us in the long run: news five times a second, each in six parts, is 30. Each costs some ten
/// microseconds, and a new picture perhaps.
const CLAIM_INTERVAL: Duration = Duration::from_millis(25);

/// Claims at once: all stations of a bridge ten times.
const CLAIM_BURST: u32 = 64;

/// A remote member.
pub(super) struct Peer {
    pub(super) id: PeerId,
    /// The last bits of our session indices with it.
    pub(super) share: u32,
    /// From its record, else from a sighting or an invite; handshakes fail if it is a lie.
    pub(super) noise: Option<NoisePublic>,
    pub(super) paths: PathAgent,
    /// Whether it takes streams in TLS at port 443, by its record or an invite.
    pub(super) tls: bool,
    /// The session we send with.
    pub(super) current: Option<Arc<Transport>>,
    /// Whether it is so new that forwarding does not know it yet.
    pub(super) is_undrawn: bool,
    /// Those before, the latest first, for datagrams still on their way: at most [`MAX_OLDER`].
    pub(super) older: Vec<Arc<Transport>>,
    /// Ours as responder, until the initiator's first datagram confirms it.
    pub(super) next: Option<Next>,
    pub(super) handshake: Option<Outstanding>,
    pub(super) cookies: CookieJar,
    /// What sessions with it have mixed in.
    pub(super) quantum: Agreement,
    /// The greatest stamp of an initiation that led to a confirmed session.
    pub(super) stamp: u64,
    /// The sequence of our record that it was sent last.
    pub(super) told: u64,
    /// Of the records that it tells us.
    records: Pace,
    /// How often it was told what our ledger is, since that or the session changed.
    pub(super) tellings: u32,
    /// How often it was told what is behind us, since that or the session changed, and when it is to be told again.
    pub(super) stations_told: u32,
    pub(super) stations_due: Option<Instant>,
    /// Of the claims of stations that it tells us.
    claims: Pace,
    /// What it asked of our ledger.
    pub(super) comparisons: Comparisons,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// Our index of the session, and what it had sealed, when the length of the path was last probed.
    pub(super) probed: Option<(u32, u64)>,
    /// When all candidates were last tried to get rid of a relay, and how often.
    pub(super) punched: Option<Instant>,
    pub(super) punches: usize,
    /// When it last had us knock.
    pub(super) knocked: Option<Instant>,
    /// What both know of their NATs.
    pub(super) exchange: Option<Exchange>,
    /// What an operator is told of it.
    pub(super) account: Account,
    /// When ports were last guessed by the hundred, and how often.
    pub(super) birthday: Option<Instant>,
    pub(super) birthdays: usize,
    /// Where it asked from only to be told so: no paths.
    aside: VecDeque<SocketAddr>,
    /// Handshakes given up in a row.
    pub(super) failures: u32,
    /// Whether the user was told that it is connected.
    pub(super) connected: bool,
    /// It said goodbye and has not been heard of since.
    pub(super) departed: bool,
}

/// A session that waits to be confirmed.
pub(super) struct Next {
    pub(super) transport: Arc<Transport>,
    pub(super) endpoint: SocketAddr,
    pub(super) stamp: u64,
    /// The initiation's ephemeral key: the same only in copies of it.
    pub(super) ephemeral: [u8; 32],
    /// The response, for such copies.
    pub(super) answer: Vec<u8>,
    /// The fingerprint of the secret that it was made with.
    pub(super) secret: [u8; 32],
}

/// A handshake that we began.
pub(super) struct Outstanding {
    pub(super) initiator: Initiator,
    /// The initiation, to be sent to candidates that turn up meanwhile.
    pub(super) datagram: Vec<u8>,
    /// When the first initiation of this try went out.
    pub(super) began: Instant,
    /// How many were sent before it.
    pub(super) attempt: u32,
    /// Whether it has only gone out to open our own NAT.
    pub(super) opens: bool,
    /// The fingerprint of the secret that it was made with.
    pub(super) secret: [u8; 32],
}

impl Peer {
    pub(super) fn new(id: PeerId, share: u32) -> Self {
        Self {
            id,
            share,
            noise: None,
            paths: PathAgent::default(),
            tls: false,
            current: None,
            is_undrawn: false,
            older: Vec::new(),
            next: None,
            handshake: None,
            cookies: CookieJar::default(),
            quantum: Agreement::default(),
            stamp: 0,
            told: 0,
            records: Pace::default(),
            tellings: 0,
            stations_told: 0,
            stations_due: None,
            claims: Pace::default(),
            comparisons: Comparisons::default(),
            waiting: VecDeque::new(),
            probed: None,
            punched: None,
            punches: 0,
            knocked: None,
            exchange: None,
            account: Account::default(),
            birthday: None,
            birthdays: 0,
            aside: VecDeque::new(),
            failures: 0,
            connected: false,
            departed: false,
        }
    }

    /// Whether there is a session over a path without a relay.
    pub(super) fn is_direct(&self) -> bool {
        self.current.is_some() && self.paths.primary().is_some_and(|primary| channel_behind(&primary).is_none())
    }

    /// The longest IP packet that the path in use is known to carry, bytes.
    pub(super) fn path_mtu(&self) -> Option<usize> {
        self.paths.mtu().packet(self.paths.primary()?)
    }

    /// Whether it may tell us another record now; if so, that is counted.
    pub(super) fn takes_record(&mut self, now: Instant) -> bool {
        self.records.admit(RECORD_INTERVAL, RECORD_BURST, now)
    }

    /// The same of a claim of stations.
    pub(super) fn takes_claim(&mut self, now: Instant) -> bool {
        self.claims.admit(CLAIM_INTERVAL, CLAIM_BURST, now)
    }

    /// Whether a handshake is worth trying: not after a goodbye, and not while the last ones failed.
    pub(super) fn is_promising(&self) -> bool {
        !self.departed && self.failures == 0
    }

    /// What came from `source` was no sign that it is there.
    pub(super) fn set_aside(&mut self, source: SocketAddr) {
        if self.aside.len() >= MAX_ASIDE {
            self.aside.pop_front();
        }
        self.aside.push_back(source);
    }

    /// Whether `endpoint` is no path to it.
    pub(super) fn is_aside(&self, endpoint: SocketAddr) -> bool {
        self.aside.contains(&endpoint)
    }

    /// Keeps a frame until there is a session; false if there is no room.
    pub(super) fn wait(&mut self, frame: Vec<u8>, now: Instant) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            return false;
        }
        self.waiting.push_back((now, frame));
        true
    }

    /// Whether frames wait.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the frames that waited: those still fresh, and how many were not.
    pub(super) fn take_waiting(&mut self, now: Instant) -> (Vec<Vec<u8>>, usize) {
        let all = std::mem::take(&mut self.waiting);
        let count = all.len();
        let fresh: Vec<_> =
            all.into_iter().filter(|(since, _)| now < *since + MAX_WAIT).map(|(_, frame)| frame).collect();
        let late = count - fresh.len();
        (fresh, late)
    }

    /// Makes `transport` the session to send with; returns the one that is older than all that are kept.
    pub(super) fn succeed(&mut self, transport: Arc<Transport>) -> Option<Arc<Transport>> {
        self.older.splice(0..0, self.current.replace(transport));
        if self.older.len() > MAX_OLDER { self.older.pop() } else { None }
    }

    /// Every session there is, with our index of it.
    pub(super) fn transports(&self) -> impl Iterator<Item = &Arc<Transport>> {
        let next = self.next.as_ref().map(|next| &next.transport);
        self.current.iter().chain(&self.older).chain(next)
    }

    /// When it was last heard, over any session.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        let confirmed = |transport: &&Arc<Transport>| transport.is_confirmed();
        self.transports()
            .filter(confirmed)
            .map(|transport| transport.last_received().unwrap_or_else(|| transport.created()))
            .max()
    }
}
