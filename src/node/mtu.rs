//! How long a datagram each path carries: the node sends what [`crate::nat::mtu`] wants to be sent, and says what came.
//!
//! Only the path in use is searched: when it becomes that, and while frames go over it. A path that turns out to carry no
//! data, though small probes pass, is treated as one that does not answer: relays are asked, and the first path that answers a
//! probe as long as a handshake is the next.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;

use crate::identity::PeerId;
use crate::switch::seal_padded;
use crate::wire::Message;
use crate::wire::relay::channel_behind;

use super::Node;
use super::event::Transmit;
use super::sessions::FIRST_CHECK;
use super::timers::Timer;

/// Frames went to a peer so lately that the path is in use: a little longer than between two looks at it.
const BUSY: Duration = Duration::from_secs(3);

/// Datagrams sent since the last probes that are worth others: what TCP begins with. So a broadcast now and then, which every member has,
/// does not cost a probe each time.
const WORTH: u64 = 10;

impl Node {
    /// From now on it finds out how long a datagram each path carries. Otherwise every path is taken to carry what most do.
    pub fn search_mtus(&mut self) {
        self.searches_mtu = true;
    }

    /// Looks at how long a datagram the path to a peer carries.
    pub(super) fn tend_mtu(&mut self, id: PeerId, now: Instant) {
        if !self.searches_mtu {
            return;
        }
        let seed = self.rng.next_u64();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(transport) = peer.current.clone() else { return };
        let before = peer.probed.filter(|(session, _)| *session == transport.local()).map_or(0, |(_, sealed)| sealed);
        let busy = transport.last_sent().is_some_and(|sent| now < sent + BUSY);
        let busy = busy && transport.sealed() >= before + WORTH;
        let Some((endpoint, step)) = peer.paths.tend_mtu(seed, busy, now) else { return };
        let probed = !step.probes.is_empty();
        for (nonce, len) in step.probes {
            let Some(bytes) = seal_padded(&transport, &Message::Ping { nonce }, len, now) else { continue };
            let transmit = Transmit::to(endpoint, bytes);
            match channel_behind(&endpoint) {
                None => self.send_sealed(id, transmit),
                // The answer needs the channel in the picture.
                Some(_) => self.picture.send(transmit, &mut self.outbox),
            }
        }
        if probed && let Some(peer) = self.peers.get_mut(&id) {
            peer.probed = Some((transport.local(), transport.sealed()));
        }
        if let Some(next) = step.next {
            self.timers.set(Timer::Mtu(id), next);
        }
        if step.changed {
            self.redraw(now);
        }
        if step.blocked {
            tracing::debug!(peer = %id, %endpoint, "the path carries no data");
            self.seek_relays(id, now);
            self.probe(id, now);
        }
    }

    /// Our own lines are others now: all paths are measured anew.
    pub(super) fn forget_mtus(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.paths.forget_mtus();
            self.timers.set(Timer::Mtu(peer.id), now + FIRST_CHECK);
        }
        self.redraw(now);
    }

    /// A pong from `source`: true if it answers a probe of that path's length.
    pub(super) fn answer_mtu(&mut self, id: PeerId, nonce: u64, source: SocketAddr, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let Some(over) = peer.paths.on_mtu_answer(nonce, source, now) else { return false };
        if over {
            tracing::debug!(peer = %id, endpoint = %source, mtu = ?peer.path_mtu(), "path MTU");
            self.redraw(now);
            self.tend_mtu(id, now);
        }
        true
    }
}
