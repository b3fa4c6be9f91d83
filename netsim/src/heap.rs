//! What happens when: events ordered by (time, number), so that a run has one order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Events to come.
#[derive(Debug)]
pub struct Heap<T> {
    entries: BinaryHeap<Entry<T>>,
    pushed: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    number: u64,
    what: T,
}

impl<T> Default for Heap<T> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), pushed: 0 }
    }
}

impl<T> Heap<T> {
    /// `what` is to happen `at`, after everything that was put at the same time before.
    pub fn push(&mut self, at: Duration, what: T) {
        self.pushed += 1;
        self.entries.push(Entry { at, number: self.pushed, what });
    }

    /// The next event, if it is not after `end`.
    pub fn pop_until(&mut self, end: Duration) -> Option<(Duration, T)> {
        if self.entries.peek()?.at > end {
            return None;
        }
        self.entries.pop().map(|entry| (entry.at, entry.what))
    }

    /// How many events are to come.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing will ever happen again.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The heap gives the greatest first, so the earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_they_were_put() {
        let (mut heap, second) = (Heap::default(), Duration::from_secs(1));
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b'), (3, 'e')] {
            heap.push(at * second, what);
        }
        let order: String = std::iter::from_fn(|| heap.pop_until(2 * second)).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
        assert_eq!(heap.len(), 1);
        assert!(!heap.is_empty());
    }
}
