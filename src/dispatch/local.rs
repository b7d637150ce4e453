//! Worker processes of this machine, which end with the process that started them.

use super::{
    Dispatch, DispatchError, Rehosted, Rehosting, Remote, RemoteSettings, Served, ShardAssignment,
    remote::Peer,
};
use crate::transport::{Listen, RUN_TOKEN_VARIABLE, SOCKET_FOLDER_PREFIX};
use crate::worker::DRAIN_MS_MAX;
use agents::{
    ids::{ExpertId, LayerId, NodeId},
    orders::{Orders, PairGates, Replies},
    placement::NodeLoad,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::timeout,
};

/// Log lines that are kept of each worker, and their length.
const LOG_LINES_MAX: usize = 20;
const LOG_LINE_BYTES_MAX: usize = 512;

/// How long a worker whose connection broke may take until it counts as alive.
const EXIT_WAIT: Duration = Duration::from_millis(500);

/// How long a worker that was told to stop may take: its drain and its closing of connections.
const STOP_WAIT: Duration = Duration::from_millis(DRAIN_MS_MAX + 3_000);

/// How the workers are started.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// Compute threads of each worker.
    pub threads: usize,
    /// Encoded bytes of all shards of each worker.
    pub shard_bytes_max: usize,
    /// Largest request and largest reply, in bytes.
    pub message_bytes_max: usize,
    /// What the workers listen on.
    pub sockets: SocketKind,
    /// How they are talked to.
    pub remote: RemoteSettings,
}

/// What workers of this machine listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketKind {
    /// Socket files in a folder that only this user can enter.
    #[default]
    Unix,
    /// Free TCP ports of the loopback interface.
    Tcp,
}

impl Default for LocalSettings {
    /// One thread each; the limits of [`crate::worker::Settings::new`].
    fn default() -> Self {
        Self {
            threads: 1,
            shard_bytes_max: 4 << 30,
            message_bytes_max: 64 << 20,
            sockets: SocketKind::default(),
            remote: RemoteSettings::default(),
        }
    }
}

/// Worker processes of this machine. When this is dropped they are killed; when this process is
/// killed they notice that their standard input ended, end too and remove their socket files and the
/// folder of these.
#[derive(Debug)]
pub struct Local {
    remote: Remote,
    workers: Vec<Worker>,
    /// Dropped after the workers.
    _sockets: Option<TempDir>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    /// Kept apart from the child, because waiting for a child closes its standard input.
    lifeline: Option<ChildStdin>,
    log: Arc<Mutex<VecDeque<String>>>,
    logging: JoinHandle<()>,
}

impl Local {
    /// Starts `count` workers of `program`, the nashflock executable, and waits until they serve.
    ///
    /// # Errors
    /// [`DispatchError::Start`] with the worker's last log lines; those already started are ended.
    pub async fn spawn(
        program: &Path,
        count: u32,
        settings: LocalSettings,
    ) -> Result<Self, DispatchError> {
        let nodes = || (0..count).map(NodeId);
        let sockets = match settings.sockets {
            SocketKind::Tcp => None,
            SocketKind::Unix => Some(socket_folder().map_err(|error| {
                let detail = format!("cannot make a folder for sockets: {error}");
                DispatchError::Start { node: NodeId(0), detail, log: Vec::new() }
            })?),
        };
        let mut workers = Vec::new();
        for node in nodes() {
            let listen = match &sockets {
                Some(folder) => Listen::Unix(folder.path().join(node.to_string())),
                None => Listen::Tcp(([127, 0, 0, 1], 0).into()),
            };
            workers.push(Worker::spawn(program, &listen, &settings).map_err(|error| {
                let detail = format!("cannot run {}: {error}", program.display());
                DispatchError::Start { node, detail, log: Vec::new() }
            })?);
        }
        let mut peers = Vec::new();
        for (node, worker) in nodes().zip(&mut workers) {
            match worker.connect(node, &settings.remote).await {
                Ok(peer) => peers.push(peer),
                Err(error) => return Err(worker.explain(error).await),
            }
        }
        Ok(Self { remote: Remote::new(peers, &settings.remote), workers, _sockets: sockets })
    }

    /// Process ids of the workers that have not been seen to end, by node.
    #[must_use]
    pub fn process_ids(&self) -> Vec<Option<u32>> {
        self.workers.iter().map(|worker| worker.child.id()).collect()
    }

    async fn explain(&mut self, error: DispatchError) -> DispatchError {
        match self.workers.get_mut(error.node().index()) {
            Some(worker) => worker.explain(error).await,
            None => error,
        }
    }
}

impl Dispatch for Local {
    async fn load(&mut self, shards: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        match self.remote.load(shards).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn replace(&mut self, shards: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        self.remote.replace(shards).await
    }

    async fn rehost(&mut self, changes: Vec<Rehosting>) -> Result<(), DispatchError> {
        self.remote.rehost(changes).await
    }

    async fn rehosted(&mut self) -> Result<Rehosted, DispatchError> {
        self.remote.rehosted().await
    }

    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        match self.remote.deliver(orders, gates, hidden, width).await {
            Ok(replies) => Ok(replies),
            Err(error) => Err(self.explain(error).await),
        }
    }

    fn is_available(&self, node: NodeId) -> bool {
        self.remote.is_available(node)
    }

    fn legs(&self) -> &[(NodeId, u64)] {
        self.remote.legs()
    }

    fn node_load(&self, node: NodeId) -> NodeLoad {
        self.remote.node_load(node)
    }

    fn moved(&mut self) -> Option<BTreeMap<(LayerId, ExpertId), Vec<NodeId>>> {
        self.remote.moved()
    }

    fn so_far(&self) -> Served {
        self.remote.so_far()
    }

    async fn close(self) -> Served {
        let Self { remote, mut workers, _sockets } = self;
        let served = remote.close().await;
        for worker in &mut workers {
            worker.lifeline = None;
        }
        for (node, worker) in workers.iter_mut().enumerate() {
            if timeout(STOP_WAIT, worker.child.wait()).await.is_err() {
                tracing::warn!("worker {node} did not stop when told to and is killed");
                // It can only fail because the worker has ended.
                let _ = worker.child.kill().await;
            }
        }
        served
    }
}

impl Worker {
    fn spawn(program: &Path, listen: &Listen, settings: &LocalSettings) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(["worker", "--lifeline", "--listen", &listen.to_string()])
            .args(["--threads", &settings.threads.to_string()])
            .args(["--shard-bytes-max", &settings.shard_bytes_max.to_string()])
            .args(["--message-bytes-max", &settings.message_bytes_max.to_string()])
            // The environment of a process is not shown to other users, its arguments are.
            .env(RUN_TOKEN_VARIABLE, settings.remote.access.token.reveal())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal reaches this process alone, which then stops its workers.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let log = Arc::default();
        let stderr = child.stderr.take().expect("stderr is piped above");
        let logging = tokio::spawn(keep_last_lines(stderr, Arc::clone(&log)));
        let lifeline = child.stdin.take();
        Ok(Self { child, lifeline, log, logging })
    }

    async fn connect(
        &mut self,
        node: NodeId,
        settings: &RemoteSettings,
    ) -> Result<Peer, DispatchError> {
        let deadlines = settings.deadlines;
        let failed = |detail| DispatchError::Start { node, detail, log: Vec::new() };
        let stdout = self.child.stdout.take().expect("stdout is piped and taken once");
        let announced = timeout(deadlines.start, first_line(stdout)).await;
        let line = announced.map_err(|_| {
            failed(format!("it announced no address within {} ms", deadlines.start.as_millis()))
        })?;
        let address = listening(&line)
            .ok_or_else(|| failed(format!("it announced no address but \"{}\"", line.trim())))?
            .to_string();
        tokio::select! {
            peer = Peer::connect(node, &address, settings) => peer,
            _ = self.child.wait() => Err(failed("it ended while it started".into())),
        }
    }

    /// Adds to an error of this worker how it ended and what it said last.
    async fn explain(&mut self, mut error: DispatchError) -> DispatchError {
        let (DispatchError::Start { detail, log, .. }
        | DispatchError::NodeLost { detail, log, .. }) = &mut error
        else {
            return error;
        };
        if let Ok(Ok(status)) = timeout(EXIT_WAIT, self.child.wait()).await {
            *detail = format!("its process ended ({status}); {detail}");
            // After the exit only what is in the pipe is left to read.
            let _ = timeout(EXIT_WAIT, &mut self.logging).await;
        }
        let kept = self.log.lock().expect("no holder of this lock can panic");
        *log = kept.iter().cloned().collect();
        drop(kept);
        error
    }
}

/// A folder for socket files that only this user can enter. The path of a socket has about a hundred
/// bytes at most, so a long temporary folder is not used.
fn socket_folder() -> io::Result<TempDir> {
    const FOLDER_BYTES_MAX: usize = 64;
    let folder = std::env::temp_dir();
    let is_short = folder.is_absolute() && folder.as_os_str().len() <= FOLDER_BYTES_MAX;
    let folder = if is_short { folder } else { PathBuf::from("/tmp") };
    tempfile::Builder::new().prefix(SOCKET_FOLDER_PREFIX).tempdir_in(folder)
}

/// The address of `{"listening":"IP:PORT"}` or `{"listening":"unix:PATH"}`.
fn listening(line: &str) -> Option<Listen> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("listening")?.as_str()?.parse().ok()
}

async fn first_line(stdout: impl AsyncRead + Unpin) -> String {
    let mut line = Vec::new();
    let mut stdout = BufReader::new(stdout.take(LOG_LINE_BYTES_MAX as u64));
    // An error reads as an incomplete line, which is no address.
    let _ = stdout.read_until(b'\n', &mut line).await;
    String::from_utf8_lossy(&line).into_owned()
}

/// Reads a log to its end, so that its writer never blocks, and keeps its last lines.
async fn keep_last_lines(stderr: impl AsyncRead + Unpin, log: Arc<Mutex<VecDeque<String>>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        let chunk = match stderr.fill_buf().await {
            Ok(chunk) if !chunk.is_empty() => chunk,
            _ => break,
        };
        for byte in chunk {
            match byte {
                b'\n' => push_line(&log, &mut line),
                byte if line.len() < LOG_LINE_BYTES_MAX => line.push(*byte),
                _ => {}
            }
        }
        let read = chunk.len();
        stderr.consume(read);
    }
    if !line.is_empty() {
        push_line(&log, &mut line);
    }
}

fn push_line(log: &Mutex<VecDeque<String>>, line: &mut Vec<u8>) {
    let mut log = log.lock().expect("no holder of this lock can panic");
    if log.len() == LOG_LINES_MAX {
        log.pop_front();
    }
    log.push_back(String::from_utf8_lossy(line).into_owned());
    line.clear();
}

#[cfg(test)]
mod tests {
    use super::{LOG_LINE_BYTES_MAX, LOG_LINES_MAX, keep_last_lines, listening};
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn a_flood_of_log_lines_keeps_the_last_ones_cut_to_length() {
        let long = "x".repeat(10 * LOG_LINE_BYTES_MAX);
        let text: String = (0..1000).map(|i| format!("line {i} {long}\n")).collect();
        let log = Arc::new(Mutex::default());
        keep_last_lines(format!("{text}the end").as_bytes(), Arc::clone(&log)).await;
        let log = log.lock().expect("not poisoned");
        assert_eq!(log.len(), LOG_LINES_MAX);
        assert_eq!(log.back().map(String::as_str), Some("the end"));
        assert!(log[0].starts_with("line 981 ") && log[0].len() == LOG_LINE_BYTES_MAX);
    }

    #[test]
    fn only_the_announcement_is_an_address() {
        assert!(listening("{\"listening\":\"127.0.0.1:5001\"}\n").is_some());
        assert!(listening("{\"listening\":\"unix:/tmp/0\"}\n").is_some());
        for other in ["", "{}", "{\"listening\":5001}", "{\"listening\":\"here\"}", "hello"] {
            assert_eq!(listening(other), None, "{other}");
        }
    }
}
