//! Files that a node rewrites as it learns: off the control thread, one write at a time, the last one wins.

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

/// Writes the known records, or the ledger, to disk, off this thread and one write at a time: a disk may take its time.
pub(super) struct Saver {
    /// `None`: nothing is kept.
    pub(super) folder: Option<PathBuf>,
    write: fn(&Path, &[Vec<u8>]) -> anyhow::Result<()>,
    wanted: Option<Vec<Vec<u8>>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Saver {
    pub(super) fn new(folder: Option<PathBuf>, write: fn(&Path, &[Vec<u8>]) -> anyhow::Result<()>) -> Self {
        Self { folder, write, wanted: None, running: None }
    }

    pub(super) fn save(&mut self, records: Vec<Vec<u8>>) {
        self.wanted = Some(records);
        self.start();
    }

    fn start(&mut self) {
        if self.running.is_none()
            && let Some(records) = self.wanted.take()
            && let Some(folder) = self.folder.clone()
        {
            let write = self.write;
            self.running = Some(tokio::task::spawn_blocking(move || write(&folder, &records)));
        }
    }

    /// Waits for the write under way and begins the next. Cancel-safe.
    pub(super) async fn written(&mut self) {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        match running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("what is known of the members is not kept: {error:#}"),
            Err(error) => tracing::warn!("what is known of the members is not kept: {error}"),
        }
        self.running = None;
        self.start();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::store;
    use super::*;

    #[test]
    fn the_last_of_many_writes_is_what_the_disk_keeps() {
        let folder = std::env::temp_dir().join(format!("meshd-saver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let writing = async {
            let mut saver = Saver::new(Some(folder.clone()), store::save_records);
            for number in 0..5u8 {
                saver.save(vec![vec![number; 3]]);
            }
            while saver.running.is_some() {
                saver.written().await;
            }
        };
        let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), writing).await });
        in_time.expect("the disk answers");
        assert_eq!(store::load_records(&folder), [[4; 3]]);
        std::fs::remove_dir_all(folder).expect("clean up");
    }
}
