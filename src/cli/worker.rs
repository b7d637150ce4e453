//! `nashflock worker`: one node.

use super::{Failure, Outcome, exports};
use crate::dispatch::is_host_and_port;
use crate::export::MetricsAddress;
use crate::transport::{Listen, RUN_TOKEN_VARIABLE, TlsFiles};
use crate::worker::{self, Join, Settings};
use clap::Args;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

#[derive(Args)]
pub(super) struct WorkerArgs {
    /// Address to listen on, or unix:PATH; port 0 takes a free one, which is printed as JSON
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5001")]
    listen: Listen,
    /// Join the run of the coordinator that listens there, as one of its nodes
    #[arg(long, value_name = "HOST:PORT")]
    join: Option<String>,
    /// Where the coordinator reaches this worker [default: where it listens, and the address that it
    /// comes from where that is 0.0.0.0]
    #[arg(long, value_name = "HOST:PORT", requires = "join")]
    advertise: Option<String>,
    /// What every call has to show, and what this worker shows the coordinator that it joins; without
    /// one it serves whoever reaches it [default: `NASHFLOCK_RUN_TOKEN`]
    #[arg(long, value_name = "TOKEN")]
    run_token: Option<String>,
    /// How long the coordinator may be out of reach, seconds
    #[arg(long, value_name = "S", default_value_t = 30, requires = "join")]
    join_patience_s: u32,
    /// Compute threads [default: the cores of the machine]
    #[arg(long)]
    threads: Option<usize>,
    /// End when standard input ends
    #[arg(long)]
    lifeline: bool,
    /// Encoded bytes of all shards together
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    shard_bytes_max: usize,
    /// Largest request and largest reply
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    message_bytes_max: usize,
    /// Certificate for TLS, with those between it and the authority's, PEM
    #[arg(long, value_name = "PATH", requires = "tls_key", requires = "tls_ca")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "PATH", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// The authority's certificates, PEM
    #[arg(long, value_name = "PATH", requires = "tls_certificate")]
    tls_ca: Option<PathBuf>,
    /// A DNS name or IP address that a peer's certificate may have; may be repeated
    #[arg(long = "tls-peer", value_name = "NAME", requires = "tls_certificate")]
    tls_peers: Vec<String>,
    /// Accept an address that other machines reach, in plain text
    #[arg(long)]
    insecure_non_loopback: bool,
    /// Serve figures for Prometheus at `/metrics`: PORT on 127.0.0.1, or an address that is spelled out; port 0
    /// takes a free one. In builds with feature `prometheus`
    #[arg(long, value_name = "[IP:]PORT")]
    metrics: Option<MetricsAddress>,
}

impl WorkerArgs {
    fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            certificate: self.tls_certificate.clone()?,
            key: self.tls_key.clone()?,
            ca: self.tls_ca.clone()?,
            peers: self.tls_peers.clone(),
        })
    }
}

/// What glibc is to keep for the next large message instead of giving it back and having each page made anew,
/// which takes longer than to receive it: up to 64 MiB.
const KEPT_MEMORY: &str =
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864";

/// Becomes the same program with [`KEPT_MEMORY`], which glibc reads when a program starts, unless the
/// environment already says what it is to do.
fn keep_freed_memory() {
    const VARIABLE: &str = "GLIBC_TUNABLES";
    let (None, Ok(program)) = (std::env::var_os(VARIABLE), std::env::current_exe()) else {
        return;
    };
    let mut words = std::env::args_os();
    let mut again = Command::new(program);
    again.arg0(words.next().unwrap_or_default()).args(words).env(VARIABLE, KEPT_MEMORY);
    // It returns where that fails: then large messages cost more, and nothing else is different.
    let error = again.exec();
    tracing::debug!("memory is not kept: {error}");
}

pub(super) fn worker(args: &WorkerArgs) -> Outcome {
    keep_freed_memory();
    for (flag, address) in [("--join", &args.join), ("--advertise", &args.advertise)] {
        if let Some(address) = address.as_ref().filter(|address| !is_host_and_port(address)) {
            return Err(Failure::BadInput(format!("{flag} \"{address}\" is not HOST:PORT")));
        }
    }
    let join = args.join.clone().map(|coordinator| Join {
        coordinator,
        advertise: args.advertise.clone(),
        patience: Duration::from_secs(args.join_patience_s.into()),
    });
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let settings = Settings {
        threads: args.threads.unwrap_or_else(cores),
        shard_bytes_max: args.shard_bytes_max,
        message_bytes_max: args.message_bytes_max,
        lifeline: args.lifeline,
        insecure_non_loopback: args.insecure_non_loopback,
        run_token: args.run_token.clone().unwrap_or_else(run_token).into(),
        tls: args.tls(),
        join,
        ..Settings::new(args.listen.clone())
    };
    serve(settings, args.metrics)
}

/// The token of the environment; empty where there is none.
pub(super) fn run_token() -> String {
    std::env::var(RUN_TOKEN_VARIABLE).unwrap_or_default()
}

/// Serves as one node until told to stop.
pub(super) fn serve(mut settings: Settings, address: Option<MetricsAddress>) -> Outcome {
    let _page = exports::of_node(address, &mut settings)?;
    // Computation has threads of its own; with one thread for the connections no step waits until
    // another wakes up.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start the runtime: {error}")))?;
    let served = runtime.block_on(worker::serve(settings));
    runtime.shutdown_timeout(Duration::from_millis(500));
    served.map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })
}
