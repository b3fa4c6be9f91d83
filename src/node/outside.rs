//! Where others see us, kept true for both families.
//!
//! One path a peer is in use, and it is of one family. What is seen of us over the other would be forgotten, and the NAT's mapping
//! with it, while members that have this family only are told of it. So who has seen us there from outside is asked again, over
//! a path that works, as often as an idle session is.

use std::time::Instant;

use rand_core::Rng;

use crate::identity::PeerId;
use crate::switch::seal_message;
use crate::wire::Message;
use crate::wire::relay::is_discard;
use crate::wire::socket::split;

use super::Node;
use super::event::Transmit;
use super::sessions::{CHECK_INTERVAL, WARM_PROBE_AFTER};

impl Node {
    /// Asks `id` where it sees us over the family that the path to it is not of, if it is time to.
    pub(super) fn refresh_outside(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.is_direct()) else { return };
        let (Some(transport), Some(primary)) = (&peer.current, peer.paths.primary()) else { return };
        let other = !split(primary).1.is_ipv6();
        let (due, pace) = match self.observations.seen_by(id, other) {
            Some((seen, at)) => (!self.own.endpoints.contains(&seen) && now >= at + WARM_PROBE_AFTER, CHECK_INTERVAL),
            // What would have told us was lost; or it cannot be reached there, so not too often.
            None => (self.own.endpoints.iter().any(|endpoint| endpoint.is_ipv6() == other), WARM_PROBE_AFTER),
        };
        if !due {
            return;
        }
        let untried = || peer.paths.endpoints().into_iter().find(|at| at.is_ipv6() == other && !is_discard(at));
        let Some(endpoint) = peer.paths.working(other).or_else(untried) else { return };
        let nonce = self.rng.next_u64();
        if peer.paths.begin_refresh(nonce, pace, now)
            && let Some(bytes) = seal_message(transport, &Message::Ping { nonce }, now)
        {
            self.send_sealed(id, Transmit::to(endpoint, bytes));
        }
    }
}
