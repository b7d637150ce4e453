//! Ctrl-C and SIGTERM: heard from the run's start to its end, so that none is lost between phases.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The user or the system asked to stop, by this signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub &'static str);

/// The signals that end a run early.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Listens from now on; the process no longer ends by these signals.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Runs `work` until it ends or a signal arrives; `work` is dropped then. A signal that came
    /// before counts.
    ///
    /// # Errors
    /// Which signal came.
    pub async fn or<F: Future>(&mut self, work: F) -> Result<F::Output, Interrupted> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Err(Interrupted("Ctrl-C")),
            _ = self.terminate.recv() => Err(Interrupted("SIGTERM")),
            done = work => Ok(done),
        }
    }
}
