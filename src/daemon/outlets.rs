//! Where datagrams for streams are handed over, by whatever thread has them: a bounded queue for each.

#![expect(clippy::disallowed_methods, reason = "what waits is dated")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::wire::stream::{LENGTH_LEN, length};

/// Bytes that wait for a stream in our own memory: two trains and a little. At 10 Mbit/s they are gone in a
/// quarter of a second.
const QUEUE: usize = 256 * 1024;

/// Trains among them; most are one datagram.
const PARCELS: usize = 512;

/// Where datagrams for streams go, from any thread.
#[derive(Debug, Default)]
pub struct Outlets(ArcSwap<BTreeMap<u32, Outlet>>);

#[derive(Debug, Clone)]
struct Outlet {
    sender: mpsc::Sender<Parcel>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
}

/// Datagrams with their lengths, as they go out.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) since: Instant,
    pub(super) bytes: Vec<u8>,
    pub(super) datagrams: u64,
}

impl Outlets {
    /// Hands over datagrams that lie end to end, each of `size` bytes but the last. How many were dropped.
    pub fn send(&self, number: u32, bytes: &[u8], size: usize) -> u64 {
        let datagrams = bytes.len().div_ceil(size.max(1)) as u64;
        let open = self.0.load();
        let Some(outlet) = open.get(&number) else { return datagrams };
        let mut framed = Vec::with_capacity(bytes.len() + datagrams as usize * LENGTH_LEN);
        let mut lost = 0;
        for datagram in bytes.chunks(size.max(1)) {
            match length(datagram) {
                Some(length) => {
                    framed.extend_from_slice(&length);
                    framed.extend_from_slice(datagram);
                }
                None => lost += 1,
            }
        }
        let len = framed.len();
        if len == 0 {
            return datagrams;
        }
        if outlet.waiting.fetch_add(len, Ordering::Relaxed) + len > QUEUE {
            outlet.waiting.fetch_sub(len, Ordering::Relaxed);
            return datagrams;
        }
        let parcel = Parcel { since: Instant::now(), bytes: framed, datagrams: datagrams - lost };
        if outlet.sender.try_send(parcel).is_err() {
            outlet.waiting.fetch_sub(len, Ordering::Relaxed);
            return datagrams;
        }
        lost
    }

    /// Whether a stream has this number.
    pub(super) fn has(&self, number: u32) -> bool {
        self.0.load().contains_key(&number)
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.0.load().keys().copied().collect()
    }

    /// Only the thread of the streams opens and closes.
    pub(super) fn open(&self, number: u32) -> (mpsc::Receiver<Parcel>, Arc<AtomicUsize>) {
        let (sender, receiver) = mpsc::channel(PARCELS);
        let waiting = Arc::<AtomicUsize>::default();
        let mut all = BTreeMap::clone(&self.0.load());
        all.insert(number, Outlet { sender, waiting: Arc::clone(&waiting) });
        self.0.store(Arc::new(all));
        (receiver, waiting)
    }

    /// What waits is still written. False if it was closed before.
    pub(super) fn close(&self, number: u32) -> bool {
        let mut all = BTreeMap::clone(&self.0.load());
        let was_open = all.remove(&number).is_some();
        self.0.store(Arc::new(all));
        was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_is_handed_over_with_the_length_of_each_datagram() {
        let outlets = Outlets::default();
        let (mut parcels, waiting) = outlets.open(7);
        let train = [[1; 100], [2; 100]].concat();
        assert_eq!((outlets.send(7, &train, 100), outlets.send(8, &train, 100)), (0, 2));
        assert_eq!(outlets.send(7, &train[..140], 100), 0);
        let first = parcels.try_recv().expect("a parcel");
        assert_eq!((first.datagrams, first.bytes.len(), &first.bytes[..3]), (2, 204, &[0, 100, 1][..]));
        let second = parcels.try_recv().expect("a parcel");
        assert_eq!(second.bytes[102..105], [0, 40, 2], "the last is shorter");
        assert_eq!(waiting.load(Ordering::Relaxed), 204 + 144);
        assert!(outlets.close(7) && !outlets.close(7) && !outlets.has(7));
        assert_eq!(outlets.send(7, &train, 100), 2);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_said() {
        let outlets = Outlets::default();
        let (mut parcels, waiting) = outlets.open(1);
        let (train, mut lost) = (vec![3; 64_000], 0);
        for _ in 0..10 {
            lost += outlets.send(1, &train, 1000);
        }
        let mut taken = 0;
        while let Ok(parcel) = parcels.try_recv() {
            taken += parcel.datagrams;
            waiting.fetch_sub(parcel.bytes.len(), Ordering::Relaxed);
        }
        assert_eq!((taken + lost, taken), (640, 256), "a quarter of a megabyte");
        assert_eq!(outlets.send(1, &[0; 31], 31), 1, "nothing that short is a datagram");
    }
}
