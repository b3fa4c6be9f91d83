//! What the node wishes of the directory, on its way to that thread: nothing waits for it, and little waits.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::dht;

/// Wishes to the directory that wait while it is busy. A lookup that waited longer has failed already.
const WISHES: usize = 256;

/// The way to the directory's thread.
#[derive(Debug)]
pub(super) struct Directory {
    sender: mpsc::Sender<dht::Command>,
    /// What there was no room for yet.
    wishes: VecDeque<dht::Command>,
}

impl Directory {
    /// Nothing is wished yet.
    pub(super) fn new(sender: mpsc::Sender<dht::Command>) -> Self {
        Self { sender, wishes: VecDeque::new() }
    }

    /// Hands a wish on, or keeps it until there is room. Of our record, our endpoints and our homes only the last ones count.
    pub(super) fn wish(&mut self, wish: dht::Command) {
        let wish = if self.wishes.is_empty() {
            match self.sender.try_send(wish) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(wish) | mpsc::error::TrySendError::Closed(wish)) => wish,
            }
        } else {
            wish
        };
        if matches!(wish, dht::Command::Publish(_) | dht::Command::Listening(_) | dht::Command::Homes(_)) {
            let kind = std::mem::discriminant(&wish);
            self.wishes.retain(|other| std::mem::discriminant(other) != kind);
        } else if self.wishes.len() >= WISHES {
            tracing::debug!("the directory is too busy for {wish:?}");
            return;
        }
        self.wishes.push_back(wish);
    }

    /// Waits until a wish that was kept could be handed on. Cancel-safe.
    pub(super) async fn has_room(&mut self) {
        if self.wishes.is_empty() {
            return std::future::pending().await;
        }
        match self.sender.reserve().await {
            Ok(permit) => {
                if let Some(wish) = self.wishes.pop_front() {
                    permit.send(wish);
                }
            }
            // The loop notices by the other channel that the directory has stopped.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::dht::{LookupKey, QueryId};

    fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), future).await }).expect("in time")
    }

    #[test]
    fn a_busy_directory_gets_every_lookup_but_only_the_last_endpoints() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut directory = Directory::new(sender);
        let lookup = |id| dht::Command::Lookup { id: QueryId(id), key: LookupKey::Ip(Ipv4Addr::LOCALHOST.into()) };
        let listening = |port| dht::Command::Listening(vec![(Ipv4Addr::LOCALHOST, port).into()]);
        for wish in [lookup(1), listening(1), lookup(2), listening(2)] {
            directory.wish(wish);
        }
        let got = on_a_runtime(async {
            let mut got = Vec::new();
            for left in [2, 1, 0] {
                got.push(format!("{:?}", receiver.recv().await.expect("the sender lives")));
                if left > 0 {
                    directory.has_room().await;
                }
            }
            got
        });
        assert_eq!(got, [lookup(1), lookup(2), listening(2)].map(|wish| format!("{wish:?}")));
    }

    #[test]
    fn what_a_busy_directory_cannot_keep_is_bounded() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut directory = Directory::new(sender);
        for id in 0..2 * WISHES as u64 {
            directory.wish(dht::Command::Lookup { id: QueryId(id), key: LookupKey::Ip(Ipv4Addr::LOCALHOST.into()) });
        }
        assert_eq!(directory.wishes.len(), WISHES);
        directory.wish(dht::Command::Listening(Vec::new()));
        assert!(matches!(directory.wishes.back(), Some(dht::Command::Listening(_))));
    }
}
