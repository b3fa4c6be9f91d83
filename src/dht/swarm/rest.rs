//! The door through which every dial goes, ours and Kademlia's: an address that failed rests before it is tried again.
//!
//! Kademlia dials whoever a query meets, at every address it was told, and a member behind a NAT has private ones: without this
//! each of them is knocked at every few seconds, for ever.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};

use super::backoff;
use super::transport::relay_of;

/// How long an address rests after its first failure; it doubles with each that follows. A peer that restarts is back by then.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest rest: who has moved says so by a new record, and whoever comes back dials us itself.
const LONGEST_REST: Duration = Duration::from_secs(600);

/// Addresses remembered: four for each of a thousand members, half a megabyte. The one that rests least is forgotten first.
const MAX_RESTING: usize = 4096;

type Connection = (libp2p::PeerId, StreamMuxerBox);

/// What failed, and until when it rests.
#[derive(Debug, Clone, Default)]
pub(super) struct Rests(Arc<Mutex<BTreeMap<Vec<u8>, Rest>>>);

#[derive(Debug)]
struct Rest {
    failures: u32,
    until: Instant,
}

impl Rests {
    /// Whether `address`, which ends in the peer's id, may not be dialled yet.
    pub(super) fn holds(&self, address: &Multiaddr, now: Instant) -> bool {
        self.lock().get(&address.to_vec()).is_some_and(|rest| now < rest.until)
    }

    /// `address` failed: it was silent, or somebody else is there.
    pub(super) fn note_failure(&self, address: &Multiaddr, now: Instant) {
        let mut resting = self.lock();
        let address = address.to_vec();
        if resting.len() >= MAX_RESTING
            && !resting.contains_key(&address)
            && let Some(soonest) = resting.iter().min_by_key(|(_, rest)| rest.until).map(|(known, _)| known.clone())
        {
            resting.remove(&soonest);
        }
        let rest = resting.entry(address).or_insert(Rest { failures: 0, until: now });
        let until = now + backoff(rest.failures, FIRST_REST, LONGEST_REST);
        *rest = Rest { failures: rest.failures.saturating_add(1), until };
    }

    /// We are somewhere else now: what failed may work.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// There is reason to think that `address` works.
    pub(super) fn forget(&self, address: &Multiaddr) {
        self.lock().remove(&address.to_vec());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Rest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transport that does not dial what rests, nor through ourselves.
pub(super) struct Rested {
    inner: Boxed<Connection>,
    rests: Rests,
    own: libp2p::PeerId,
}

impl Rested {
    pub(super) fn new(inner: Boxed<Connection>, rests: Rests, own: libp2p::PeerId) -> Self {
        Self { inner, rests, own }
    }
}

impl Transport for Rested {
    type Output = Connection;
    type Error = std::io::Error;
    type ListenerUpgrade = <Boxed<Connection> as Transport>::ListenerUpgrade;
    type Dial = Pin<Box<dyn Future<Output = std::io::Result<Connection>> + Send>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        if relay_of(&address) == Some(self.own) {
            return Err(TransportError::Other(std::io::Error::other("we are the relay, and it is not here")));
        }
        if self.rests.holds(&address, Instant::now()) {
            return Err(TransportError::Other(std::io::Error::other("it failed lately and rests")));
        }
        let (dial, rests) = (self.inner.dial(address.clone(), options)?, self.rests.clone());
        Ok(Box::pin(async move {
            let outcome = dial.await;
            match &outcome {
                Ok(_) => rests.forget(&address),
                Err(_) => rests.note_failure(&address, Instant::now()),
            }
            outcome
        }))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{}", n + 1).parse().expect("an address")
    }

    #[test]
    fn each_failure_doubles_the_rest_up_to_ten_minutes() {
        let (rests, begin) = (Rests::default(), Instant::now());
        let mut now = begin;
        for nth in 0..20 {
            assert!(!rests.holds(&address(0), now), "the {nth}th");
            rests.note_failure(&address(0), now);
            assert!(rests.holds(&address(0), now));
            now += FIRST_REST.saturating_mul(1 << nth.min(16)).min(LONGEST_REST) * 5 / 4;
        }
        assert!(now - begin > 8 * LONGEST_REST && now - begin < 20 * LONGEST_REST);
        rests.note_failure(&address(0), now);
        rests.forget(&address(0));
        rests.note_failure(&address(0), now);
        assert!(!rests.holds(&address(0), now + 2 * FIRST_REST), "what worked begins anew");
        rests.clear();
        assert!(!rests.holds(&address(0), now));
    }

    #[test]
    fn what_rests_least_makes_room() {
        let (rests, now) = (Rests::default(), Instant::now());
        for n in 0..MAX_RESTING {
            rests.note_failure(&address(n), now);
            rests.note_failure(&address(n), now);
        }
        rests.note_failure(&address(MAX_RESTING), now);
        rests.note_failure(&address(MAX_RESTING + 1), now);
        assert_eq!(rests.lock().len(), MAX_RESTING);
        assert!(rests.holds(&address(MAX_RESTING + 1), now) && !rests.holds(&address(MAX_RESTING), now));
    }
}
