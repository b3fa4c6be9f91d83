//! The daemon: threads, sockets, files and the operator's API around the pure node and forwarder.
//!
//! One `control` thread owns the node; each lane has two threads, which share its two directions (TAP → underlay, underlay
//! → TAP) by load and read the node's last picture without a lock; libp2p has a thread of its own, and so have streams. Between them are bounded
//! channels only.

pub mod admin;
pub mod api;
pub mod callers;
pub mod control;
pub mod direction;
pub mod doctor;
pub mod enroll;
mod epoch;
pub mod lane;
pub mod netlink;
pub mod outlets;
pub mod portmap;
pub mod process;
mod saver;
pub mod signals;
pub mod sockets;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod udp;
mod wishes;

use std::time::Duration;

use crate::config::UpConfig;

/// How long the end waits for a file that is being written; everything else is done by then.
const LAST_WRITE: Duration = Duration::from_millis(300);

/// Runs one node until SIGINT or SIGTERM. The calling thread is the control thread.
///
/// # Errors
/// Whatever kept it from starting or from going on, in one line. Nothing is left behind.
pub fn run(config: UpConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(control::run(config));
    runtime.shutdown_timeout(LAST_WRITE);
    result
}
