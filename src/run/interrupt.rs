//! Ctrl-C and SIGTERM: heard from the run's start to its end, so that none is lost between phases.

use super::pace::Pace;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The user or the system asked to stop, by this signal or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub &'static str);

/// What ends a run early: signals, and whoever sets its pace.
pub struct Interrupts<'a> {
    interrupt: Signal,
    terminate: Signal,
    pace: Option<&'a Pace>,
}

impl<'a> Interrupts<'a> {
    /// Listens from now on; the process no longer ends by these signals.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            pace: None,
        })
    }

    /// Ends by this pace too.
    #[must_use]
    pub fn or_by(self, pace: Option<&'a Pace>) -> Self {
        Self { pace, ..self }
    }

    /// Runs `work` until it ends or an interrupt arrives; `work` is dropped then. One that came
    /// before counts.
    ///
    /// # Errors
    /// What came.
    pub async fn or<F: Future>(&mut self, work: F) -> Result<F::Output, Interrupted> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Err(Interrupted("Ctrl-C")),
            _ = self.terminate.recv() => Err(Interrupted("SIGTERM")),
            by = stopped(self.pace) => Err(by),
            done = work => Ok(done),
        }
    }
}

async fn stopped(pace: Option<&Pace>) -> Interrupted {
    match pace {
        Some(pace) => pace.stopped().await,
        None => std::future::pending().await,
    }
}
