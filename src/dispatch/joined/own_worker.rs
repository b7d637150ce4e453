//! A worker process beside the coordinator, on the same machine.

use crate::worker::DRAIN_MS_MAX;
use std::{io, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long it may take to end once the run is over.
const STOP_WAIT: Duration = Duration::from_millis(DRAIN_MS_MAX + 3_000);

/// How it is started. It is killed when the coordinator's part of it is dropped, and notices by its
/// standard input when the coordinator is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnWorker {
    /// The nashflock executable.
    pub program: PathBuf,
    /// Compute threads.
    pub threads: usize,
}

impl OwnWorker {
    /// Starts it. Its log goes where this process's goes.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(super) fn start(&self, coordinator: SocketAddr, run_token: &str) -> io::Result<Child> {
        Command::new(&self.program)
            .args(["worker", "--listen", "127.0.0.1:0", "--lifeline"])
            .args(["--threads", &self.threads.to_string()])
            .args(["--join", &coordinator.to_string()])
            // The environment of a process is not shown to other users, its arguments are.
            .env("NASHFLOCK_RUN_TOKEN", run_token)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Waits for its end: it hears that the run is over, and its lifeline ends with this call.
pub(super) async fn end(child: &mut Child) {
    if timeout(STOP_WAIT, child.wait()).await.is_err() {
        tracing::warn!("the coordinator's own worker did not stop when told to and is killed");
        // It can only fail because the worker has ended.
        let _ = child.kill().await;
    }
}
