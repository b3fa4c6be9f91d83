//! The signals that concern us.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens to them.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Only kept so that SIGHUP does not kill us: a node outlives the terminal it was started from.
    _hangup: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop, and says which. Cancel-safe.
    pub async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
