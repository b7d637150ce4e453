//! One node: stores shards and computes on them.

pub mod compute;
mod figures;
mod join;
mod once;
mod serve;
pub mod store;

pub use figures::{COMPUTE_BOUNDS_NS, Figures, NodeFigures, Standing};
pub use join::{Join, JoinError};

use crate::transport::{
    Access, CheckToken, ConnectionLimits, Identity, Incoming, Listen, Refusals, RunToken,
    ServerLimits, TlsError, TlsFiles, is_loopback, server, with_health_and_reflection,
};
use join::{Left, Own};
use proto::expert_service_server::ExpertServiceServer;
use serve::{Node, Shared};
use std::{
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_stream::Stream;
use tonic::service::{Routes, interceptor::InterceptedService};
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;

/// How long a draining node waits for what is in flight.
pub const DRAIN_MS_MAX: u64 = 8_000;

/// How long a node that leaves a run waits until others hold what it holds.
const HANDOVER_MS_MAX: u64 = 5_000;

/// How long it then waits for its connections to close.
const CLOSE_MS_MAX: u64 = 2_000;

/// Connections of a node, at most: a coordinator has as many as `nodes.data_connections` and one.
const CONNECTIONS_MAX: usize = 512;

/// What a node is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: Listen,
    /// Threads that compute.
    pub threads: usize,
    /// Encoded bytes of all shards together.
    pub shard_bytes_max: usize,
    /// Largest request and largest reply, in bytes.
    pub message_bytes_max: usize,
    /// Whether the end of standard input ends the node, so that none outlives its parent.
    pub lifeline: bool,
    /// Accept a listen address that other machines reach, though the traffic is plain text.
    pub insecure_non_loopback: bool,
    /// Whether the address is printed on standard output.
    pub announce: bool,
    /// What every call has to show, and what it shows itself to the coordinator that it joins. Without
    /// one it serves whoever reaches it.
    pub run_token: RunToken,
    /// For TLS on its TCP connections, those to the coordinator that it joins included.
    pub tls: Option<TlsFiles>,
    /// The run to join; none for a node that coordinators find by themselves.
    pub join: Option<Join>,
    /// Where it counts what it does.
    pub figures: Arc<Figures>,
    /// Where these are served, to be announced with its own address; nothing more is done with it.
    pub metrics: Option<SocketAddr>,
}

impl Settings {
    /// Two threads, 4 GiB of shards, messages of 64 MiB, no lifeline, loopback only,
    /// no token.
    #[must_use]
    pub fn new(listen: impl Into<Listen>) -> Self {
        Self {
            listen: listen.into(),
            threads: 2,
            shard_bytes_max: 4 << 30,
            message_bytes_max: 64 << 20,
            lifeline: false,
            insecure_non_loopback: false,
            announce: true,
            run_token: RunToken::default(),
            tls: None,
            join: None,
            figures: Arc::default(),
            metrics: None,
        }
    }
}

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The address is in use or not of this machine.
    #[error("cannot listen on {address}: {source}; {}", .address.remedy(.source))]
    Bind {
        /// Asked for.
        address: Listen,
        /// The system's answer.
        source: io::Error,
    },
    /// The address is reachable from other machines.
    #[error(
        "refusing to listen on {address}: traffic is plain text and other machines could read and \
         change it; listen on 127.0.0.1, give --tls-certificate and its like, or \
         --insecure-non-loopback on a network you trust"
    )]
    NonLoopback {
        /// Asked for.
        address: Listen,
    },
    /// The coordinator is on another machine.
    #[error(
        "refusing to join {coordinator} in plain text: give --tls-certificate and its like, or \
         --insecure-non-loopback on a network you trust"
    )]
    NonLoopbackCoordinator {
        /// Asked for.
        coordinator: String,
    },
    /// There is no TLS with these files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// The operating system refused something that a node needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not of the run that it was to join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The transport failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl WorkerError {
    /// Whether what the user gave is at fault, so that nothing was started.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Bind { .. }
                | Self::NonLoopback { .. }
                | Self::NonLoopbackCoordinator { .. }
                | Self::Tls(_)
                | Self::Setting(_)
                | Self::Join(JoinError::Refused { .. })
        )
    }
}

/// Serves until SIGTERM, SIGINT or the end of the lifeline, then drains.
///
/// When it is ready it prints one JSON line on standard output, unless that is switched off:
/// `{"listening":"IP:PORT"}` or `{"listening":"unix:PATH"}`, and `"metrics"` where that is told.
///
/// # Errors
/// See [`WorkerError`].
pub async fn serve(settings: Settings) -> Result<(), WorkerError> {
    let tls = settings.tls.as_ref().map(Identity::load).transpose()?;
    refuse_plain_text(&settings)?;
    let refusals = Arc::new(Refusals::new());
    let limits = ConnectionLimits::new(CONNECTIONS_MAX);
    let address = &settings.listen;
    let (incoming, listening) = Incoming::bind(address, tls.as_ref(), limits, refusals.clone())
        .map_err(|source| WorkerError::Bind { address: address.clone(), source })?;
    settings.figures.listens(incoming.attendance());
    let access = Access { token: settings.run_token.clone(), tls };
    let system = |action| move |source| WorkerError::System { action, source };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(system("listen for the terminate signal"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(system("listen for the interrupt signal"))?;
    // A dropped sender would read as an ended lifeline: without one it is kept.
    let (ended, lifeline) = oneshot::channel();
    let _kept = if settings.lifeline {
        watch_lifeline(ended).map_err(system("start the lifeline thread"))?;
        None
    } else {
        Some(ended)
    };
    let incarnation = new_incarnation();
    let (drain, draining) = watch::channel(false);
    let stay = async {
        match &settings.join {
            None => std::future::pending().await,
            Some(join) => {
                let address = listening.to_string();
                let own = Own { address, shard_bytes_max: settings.shard_bytes_max, incarnation };
                join::stay(join, &access, own, draining).await
            }
        }
    };
    let mut failure = None;
    let shutdown = async {
        let mut stay = pin!(stay);
        let (reason, hands_over) = tokio::select! {
            _ = terminate.recv() => ("terminate signal", settings.join.is_some()),
            _ = interrupt.recv() => ("interrupt signal", settings.join.is_some()),
            _ = lifeline => ("end of the lifeline", false),
            ended = &mut stay => {
                failure = ended.err();
                ("end of the stay", false)
            }
        };
        tracing::info!("draining: {reason}");
        drain.send_replace(true);
        if hands_over {
            let wait = Duration::from_millis(HANDOVER_MS_MAX);
            match timeout(wait, stay).await {
                Ok(Ok(Left::Released)) => tracing::info!("others hold what this node held"),
                Ok(Ok(Left::RunOver | Left::WithoutSeat)) => {}
                Ok(Err(error)) => tracing::warn!("{error}"),
                Err(_) => tracing::warn!("leaving before others hold what this node holds"),
            }
        }
    };
    let threads = settings.threads;
    let node = Prepared::new(&settings, refusals, incarnation)?;
    if settings.announce {
        let mut announced = serde_json::json!({ "listening": listening.to_string() });
        if let Some(metrics) = settings.metrics {
            announced["metrics"] = metrics.to_string().into();
        }
        writeln!(io::stdout(), "{announced}").map_err(system("announce the listen address"))?;
    }
    tracing::info!("listening on {listening} with {threads} compute threads");
    node.serve(incoming, shutdown).await?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn refuse_plain_text(settings: &Settings) -> Result<(), WorkerError> {
    if settings.tls.is_some() || settings.insecure_non_loopback {
        return Ok(());
    }
    if !settings.listen.is_local() {
        return Err(WorkerError::NonLoopback { address: settings.listen.clone() });
    }
    match &settings.join {
        Some(Join { coordinator, .. }) if !is_loopback(coordinator) => {
            Err(WorkerError::NonLoopbackCoordinator { coordinator: coordinator.clone() })
        }
        _ => Ok(()),
    }
}

/// Serves the connections of `incoming` until `shutdown`, then drains: health answers NOT_SERVING,
/// what is in flight is finished within [`DRAIN_MS_MAX`], nothing new is taken.
///
/// # Errors
/// When the settings or the transport fail. `settings.listen`, `settings.lifeline` and `settings.tls` are
/// not used.
pub async fn serve_with_incoming<IO>(
    settings: Settings,
    incoming: impl Stream<Item = io::Result<IO>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let refusals = Arc::new(Refusals::new());
    Prepared::new(&settings, refusals, new_incarnation())?.serve(incoming, shutdown).await
}

/// Names one start of a node; not 0, which names none.
fn new_incarnation() -> u64 {
    // The keys of this are drawn by the system.
    RandomState::new().hash_one("incarnation") | 1
}

/// A node with its threads, before it has connections.
struct Prepared {
    shared: Arc<Shared>,
    check: CheckToken,
}

impl Prepared {
    fn new(
        settings: &Settings,
        refusals: Arc<Refusals>,
        incarnation: u64,
    ) -> Result<Self, WorkerError> {
        if !(1..=THREADS_MAX).contains(&settings.threads) {
            return Err(WorkerError::Setting(format!(
                "{} compute threads: choose 1 to {THREADS_MAX}",
                settings.threads
            )));
        }
        if !(MESSAGE_BYTES_MIN..=MESSAGE_BYTES_MAX).contains(&settings.message_bytes_max) {
            return Err(WorkerError::Setting(format!(
                "messages of at most {} bytes: choose {MESSAGE_BYTES_MIN} to {MESSAGE_BYTES_MAX}",
                settings.message_bytes_max
            )));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .thread_name(|index| format!("compute-{index}"))
            // The panic hook has logged it; the request's stream ends with an internal error.
            .panic_handler(|_| tracing::error!("a computation panicked"))
            .build()
            .map_err(|error| WorkerError::System {
                action: "start the compute threads",
                source: io::Error::other(error),
            })?;
        let check = CheckToken::new(settings.run_token.clone(), refusals);
        let shared = Arc::new(Shared::new(pool, settings, incarnation));
        settings.figures.are_of(&shared);
        Ok(Self { shared, check })
    }

    async fn serve<IO>(
        self,
        incoming: impl Stream<Item = io::Result<IO>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), WorkerError>
    where
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let Self { shared, check } = self;
        let service = ExpertServiceServer::new(Node(shared.clone()))
            .max_decoding_message_size(shared.message_bytes_max)
            .max_encoding_message_size(
                shared.message_bytes_max + crate::wire::REPLY_HEADER_BYTES_MAX,
            );
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<ExpertServiceServer<Node>>().await;
        let routes = Routes::new(InterceptedService::new(service, check));
        let routes = with_health_and_reflection(routes, health, proto::DESCRIPTORS);
        let (close, closed) = oneshot::channel::<()>();
        let limits = ServerLimits { streams: STREAMS_MAX, is_bulk: true };
        let mut server =
            pin!(server(limits).add_routes(routes).serve_with_incoming_shutdown(incoming, async {
                // An error means that the sender is gone: then this future is, too.
                let _ = closed.await;
            }));
        let drained = async {
            shutdown.await;
            reporter.set_service_status("", ServingStatus::NotServing).await;
            reporter.set_not_serving::<ExpertServiceServer<Node>>().await;
            shared.drain(Duration::from_millis(DRAIN_MS_MAX)).await;
        };
        tokio::select! {
            result = &mut server => return Ok(result?),
            () = drained => {}
        }
        // The server is still there: `select` polls no branch after it returned.
        let _ = close.send(());
        if timeout(Duration::from_millis(CLOSE_MS_MAX), server).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
        Ok(())
    }
}

/// Streams of a connection.
const STREAMS_MAX: u32 = 64;

/// Room for a chunk of a shard upload with its header.
const MESSAGE_BYTES_MIN: usize = 2 * crate::wire::CHUNK_BYTES_MAX;

/// The length of a gRPC message has 32 bits.
const MESSAGE_BYTES_MAX: usize = u32::MAX as usize;

/// More threads than this are a slip of the keyboard.
const THREADS_MAX: usize = 1024;

/// Reads standard input to its end. A thread of its own and never joined, because such a read
/// cannot be cancelled and would hold up the end of the runtime.
fn watch_lifeline(ended: oneshot::Sender<()>) -> io::Result<()> {
    let read = move || {
        let mut buffer = [0; 256];
        while matches!(io::stdin().read(&mut buffer), Ok(1..)) {}
        // An error means that the node has already ended.
        let _ = ended.send(());
    };
    std::thread::Builder::new().name("lifeline".into()).spawn(read).map(drop)
}
