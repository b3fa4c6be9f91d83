//! Logs, on stderr. Levels as in DESIGN: a change the user sees is INFO, a decision DEBUG, a datagram TRACE.
//!
//! At a terminal a line is just what happened; journald brings its own clock; only a plain file gets timestamps.
//! Libraries speak up from WARN, but for two that warn of what is usual: netlink of attributes that a newer kernel has,
//! Kademlia of being alone. Secrets have no `Debug` that shows them, so no log line can.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging; `verbose` counts the `-v`. MESHD_LOG, a filter as of `tracing_subscriber`, beats it.
pub fn start(verbose: u8) {
    let directives = match verbose {
        0 => "warn,netlink_packet_route=error,libp2p_kad=error,meshd=info",
        1 => "warn,netlink_packet_route=error,libp2p_kad=error,meshd=debug",
        2 => "warn,netlink_packet_route=error,libp2p_kad=error,meshd=trace",
        _ => "debug,meshd=trace",
    };
    let filter = EnvFilter::try_from_env("MESHD_LOG").unwrap_or_else(|_| EnvFilter::new(directives));
    let terminal = io::stderr().is_terminal();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(terminal);
    let lines = lines.with_target(verbose > 0).compact();
    // Only the first call counts; a second one, in a test, is no mistake.
    let _ = if terminal || journal { lines.without_time().try_init() } else { lines.try_init() };
}
