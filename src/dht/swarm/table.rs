//! Who has a place in the routing table, where libp2p leaves it to us.
//!
//! A bucket has twenty places. In the far ones there are many times more members than that, and members that collude are first wherever
//! they like: one of them, asked once while a newcomer fills its table, names twenty others. If the first comers stayed, a tenth of
//! the members would have a third of all places, nearly all of the far ones, and hide most records (docs/eclipse.md). So each
//! node draws lots, by a secret of its own: whoever has the better one has the place, whenever it came.

use libp2p::kad;
use sha2::{Digest as _, Sha256};

use super::Directory;

impl Directory {
    /// Whether a peer that has proved itself has a place in the routing table. It may be that of another, which leaves.
    pub(super) fn makes_place(&mut self, peer: &libp2p::PeerId) -> bool {
        let lot = self.peers.lot;
        let table = &mut self.swarm.behaviour_mut().kad;
        let Some(bucket) = table.kbucket(*peer) else { return false };
        let places: Vec<_> = bucket.iter().map(|entry| *entry.node.key.preimage()).collect();
        if places.len() < kad::K_VALUE.get() || places.contains(peer) {
            return true;
        }
        let last = places.into_iter().max_by_key(|known| draw(lot, known));
        let Some(last) = last.filter(|last| draw(lot, peer) < draw(lot, last)) else { return false };
        table.remove_peer(&last);
        true
    }
}

/// A peer's lot. The least wins.
fn draw(lot: u64, peer: &libp2p::PeerId) -> [u8; 32] {
    Sha256::new().chain_update(lot.to_be_bytes()).chain_update(peer.to_bytes()).finalize().into()
}
