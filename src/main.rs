//! The `nashflock` binary.

use clap::{Args, Parser, Subcommand};
use nashflock::worker::{self, Settings};
use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves experts as one node
    Worker(WorkerArgs),
}

#[derive(Args)]
struct WorkerArgs {
    /// Address to listen on; port 0 takes a free one, which is printed as JSON
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5001")]
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

fn main() -> ExitCode {
    let Command::Worker(args) = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // A worker outlives the reader of its log by a moment; that must not panic.
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
                .from_env_lossy(),
        )
        .init();
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
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start the runtime: {error}");
            return ExitCode::from(4);
        }
    };
    let result = runtime.block_on(worker::serve(settings));
    runtime.shutdown_timeout(Duration::from_millis(500));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(if error.is_bad_input() { 2 } else { 4 })
        }
    }
}
