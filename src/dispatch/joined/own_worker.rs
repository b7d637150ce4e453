//! A worker process beside the coordinator, on the same machine.

use crate::transport::{RUN_TOKEN_VARIABLE, RunToken, TlsFiles};
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
    /// Its certificate, where the run uses TLS.
    pub tls: Option<TlsFiles>,
}

impl OwnWorker {
    /// Starts it. Its log goes where this process's goes.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(super) fn start(&self, coordinator: SocketAddr, token: &RunToken) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        if let Some(TlsFiles { certificate, key, ca, peers }) = &self.tls {
            command.arg("--tls-certificate").arg(certificate).arg("--tls-key").arg(key);
            command.arg("--tls-ca").arg(ca);
            peers.iter().for_each(|peer| {
                command.args(["--tls-peer", peer]);
            });
        } else if !coordinator.ip().is_loopback() {
            // The coordinator listens there in plain text because it was told to.
            command.arg("--insecure-non-loopback");
        }
        command
            .args(["worker", "--listen", "127.0.0.1:0", "--lifeline"])
            .args(["--threads", &self.threads.to_string()])
            .args(["--join", &coordinator.to_string()])
            // The environment of a process is not shown to other users, its arguments are.
            .env(RUN_TOKEN_VARIABLE, token.reveal())
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
