//! The node's timers: one instant a key, the earliest first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::dht::QueryId;
use crate::identity::PeerId;

use super::event::{Deadline, Reason};

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The outstanding handshake with a peer is to be sent again.
    Handshake(PeerId),
    /// A peer without a session is to be tried again.
    Reconnect(PeerId),
    /// A peer's sessions are to be looked at.
    Session(PeerId),
    /// A peer has had the time to open its NAT.
    Punch(PeerId),
    /// Who has not said how our NAT maps does not.
    Survey,
    /// Datagrams that are to pass a peer's NAT by guessing are due.
    Hunt(PeerId),
    /// The length of what the path to a peer carries is to be looked at.
    Mtu(PeerId),
    /// A stream may lead nowhere, or not be needed any more.
    Streams,
    /// Frames have waited long enough for a directory answer.
    Lookup(QueryId),
    /// Operator's pings are to be given up.
    Pings,
    /// A netcheck is to be over.
    Netcheck,
    /// Our record is to be renewed.
    Renew,
    /// Our home relays may be others now.
    Homes,
    /// Expired records are to be forgotten.
    Expire,
    /// We seem to be no member any more.
    Leave,
    /// The records are to be kept on disk.
    Persist,
    /// The ledger is to be kept on disk.
    Keep,
    /// Somebody expelled may know the newest secret, and nobody has drawn another yet.
    Epoch,
    /// Newcomers have waited long enough for somebody to say that they joined.
    Witness,
    /// Stations behind us are to be told of, or their first frames to go.
    Stations,
    /// Stations may have been silent for too long.
    Sweep,
    /// The picture for forwarding is due.
    Fib,
}

impl Timer {
    fn reason(self) -> Reason {
        match self {
            Self::Handshake(_) | Self::Reconnect(_) => Reason::Handshake,
            Self::Session(_) | Self::Punch(_) | Self::Survey | Self::Hunt(_) | Self::Mtu(_) | Self::Streams => {
                Reason::Session
            }
            Self::Lookup(_) | Self::Pings | Self::Netcheck | Self::Stations => Reason::Waiting,
            Self::Renew
            | Self::Homes
            | Self::Expire
            | Self::Leave
            | Self::Persist
            | Self::Keep
            | Self::Epoch
            | Self::Witness
            | Self::Sweep => Reason::Records,
            Self::Fib => Reason::Fib,
        }
    }
}

/// All timers that are set.
#[derive(Debug, Default)]
pub(super) struct Timers {
    instants: BTreeMap<Timer, Instant>,
    queue: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Sets `timer` to `at`, whatever it was set to.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.cancel(timer);
        self.instants.insert(timer, at);
        self.queue.insert((at, timer));
    }

    /// Sets `timer` to `at` unless it is set to an earlier instant.
    pub(super) fn set_if_earlier(&mut self, timer: Timer, at: Instant) {
        if self.instants.get(&timer).is_none_or(|set| at < *set) {
            self.set(timer, at);
        }
    }

    /// Unsets `timer`.
    pub(super) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.instants.remove(&timer) {
            self.queue.remove(&(at, timer));
        }
    }

    /// Unsets and returns the earliest timer that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }

    /// When `timer` is due, if it is set.
    pub(super) fn at(&self, timer: Timer) -> Option<Instant> {
        self.instants.get(&timer).copied()
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.queue.first().map(|(at, timer)| Deadline { at: *at, reason: timer.reason() })
    }
}
