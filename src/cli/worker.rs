//! `nashflock worker`: one node.

use super::{Failure, Outcome};
use crate::worker::{self, Settings};
use clap::Args;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Args)]
pub(super) struct WorkerArgs {
    /// Address to listen on; port 0 takes a free one, which is printed as JSON
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5001")]
    listen: SocketAddr,
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
    /// Accept an address that other machines reach, in plain text
    #[arg(long)]
    insecure_non_loopback: bool,
}

pub(super) fn worker(args: &WorkerArgs) -> Outcome {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let settings = Settings {
        threads: args.threads.unwrap_or_else(cores),
        shard_bytes_max: args.shard_bytes_max,
        message_bytes_max: args.message_bytes_max,
        lifeline: args.lifeline,
        insecure_non_loopback: args.insecure_non_loopback,
        ..Settings::new(args.listen)
    };
    // Computation has threads of its own, so few are needed for the connections.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start the runtime: {error}")))?;
    let served = runtime.block_on(worker::serve(settings));
    runtime.shutdown_timeout(Duration::from_millis(500));
    served.map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })
}
