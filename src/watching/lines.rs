//! A run as lines on standard error, where no dashboard can be drawn.

use super::figures::line;
use crate::measure::Clock;
use crate::run::Feed;
use std::io::{self, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Between two lines of a phase.
const EVERY: Duration = Duration::from_secs(5);
/// Between two looks at the run.
const LOOK: Duration = Duration::from_millis(200);

/// Prints lines until it is dropped.
#[derive(Debug)]
pub struct Lines {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    /// A line at the start of each phase, and one every few seconds.
    ///
    /// # Errors
    /// There is no further thread.
    pub fn start(feed: &Feed) -> io::Result<Self> {
        let latest = feed.subscribe();
        let (stop, stopped) = mpsc::channel::<()>();
        let print = move || {
            let clock = Clock::start();
            let (mut phase, mut due_ns) = (String::new(), 0);
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let snapshot = latest.borrow().clone();
                let now_ns = clock.now_ns();
                if snapshot.phase == phase && now_ns < due_ns {
                    continue;
                }
                let is_new = snapshot.phase != phase;
                due_ns = now_ns + u64::try_from(EVERY.as_nanos()).unwrap_or(u64::MAX);
                phase.clone_from(&snapshot.phase);
                if is_new || snapshot.rounds > 0 {
                    // Standard error may be closed; the run goes on.
                    let _ = writeln!(io::stderr(), "{}", line(&snapshot));
                }
            }
        };
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(print)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, that is on standard error.
            let _ = thread.join();
        }
    }
}
