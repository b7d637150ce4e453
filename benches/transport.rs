//! Writes docs/transport.md: what it costs to move orders and tensors, each beside a plain socket of
//! the same kind in the same run.
//!
//! `cargo bench --bench transport > docs/transport.md`; with names of sections (`steps`, `layers`, `sums`, `tensors`,
//! `copies`) after `--`, these alone.
#![allow(clippy::print_stdout, reason = "the tables are the output")]

mod combine;
mod peers;
mod shared;

use agents::ids::{ExpertId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder, Orders};
use nashflock::dispatch::{Dispatch, InProcess, Remote, RemoteSettings, ShardAssignment};
use nashflock::measure::Clock;
use nashflock::wire::seal_request;
use peers::{
    Client, LAYER, Process, WIDTH, announce, connect, request, serve_raw, small_expert, worker,
};
use shared::figures::median;
use shared::{Failure, runs};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// Rounds of every measurement; those of a table alternate.
const ROUNDS: usize = 5;
const WARM_UP: usize = 500;
const STEPS: usize = 3_000;

/// Bytes of each transfer.
const TRANSFER_BYTES: usize = 512 << 20;
/// Requests on their way at once.
const PIPELINE: usize = 4;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--raw-peer") => return plain_runtime()?.block_on(serve_raw(&arguments[2])),
        Some("--send") => return send(&arguments[2..]),
        Some("--steps") => return round_trips(Path::new(&arguments[2])),
        Some("--combine") => return combine::combine(tempfile::tempdir()?.path(), runtime),
        _ => {}
    }
    let sections = || arguments.iter().skip(1).filter(|argument| !argument.starts_with('-'));
    let is_asked = |name: &str| sections().count() == 0 || sections().any(|asked| asked == name);
    if sections().count() == 0 {
        println!("{}", include_str!("transport.md"));
    }
    let folder = tempfile::tempdir()?;
    if is_asked("steps") {
        steps(folder.path())?;
    }
    if is_asked("layers") {
        empty_layers(folder.path())?;
    }
    if is_asked("sums") {
        combine::combine(folder.path(), runtime)?;
    }
    if is_asked("tensors") {
        one_way(folder.path())?;
    }
    if is_asked("copies") {
        copies(folder.path())?;
    }
    Ok(())
}

fn steps(folder: &Path) -> Result<(), Failure> {
    println!("## A step of 1 KiB, on all cores\n");
    round_trips(&new_folder(folder, "all")?)?;
    println!("\n## A step of 1 KiB, both ends on one core\n");
    let pinned = Command::new("taskset")
        .args(["-c", "0"])
        .arg(env::current_exe()?)
        .arg("--steps")
        .arg(new_folder(folder, "one")?)
        .status();
    if !pinned.is_ok_and(|status| status.success()) {
        println!("skipped: taskset cannot run this");
    }
    Ok(())
}

/// As a run has it: connections on a thread of their own.
fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The best case for plain sockets: one thread.
fn plain_runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Where the peers of a table listen.
fn listens(folder: &Path, table: &str) -> [(&'static str, String, String); 2] {
    let unix = |name: &str| format!("unix:{}", folder.join(format!("{table}-{name}")).display());
    let tcp = || "127.0.0.1:0".to_owned();
    [("TCP", tcp(), tcp()), ("Unix", unix("raw"), unix("worker"))]
}

fn new_folder(parent: &Path, name: &str) -> Result<PathBuf, Failure> {
    let folder = parent.join(name);
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

fn raw_peer(listen: &str) -> Result<Process, Failure> {
    Process::start(Command::new(env::current_exe()?).args(["--raw-peer", listen]))
}

/// Times of one kind of step, µs: p50 and p99 of each round.
#[derive(Default)]
struct Times(Vec<(f64, f64)>);

impl Times {
    /// Runs a step so often and keeps the round's quantiles.
    async fn round(
        &mut self,
        mut step: impl AsyncFnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for _ in 0..WARM_UP {
            step().await?;
        }
        let clock = Clock::start();
        let mut times = Vec::with_capacity(STEPS);
        for _ in 0..STEPS {
            let start = clock.now_ns();
            step().await?;
            times.push(clock.now_ns() - start);
        }
        times.sort_unstable();
        let us = |share: usize| times[STEPS * share / 100] as f64 / 1e3;
        self.0.push((us(50), us(99)));
        Ok(())
    }

    fn p50(&self) -> f64 {
        median(self.0.iter().map(|times| times.0))
    }

    fn p99(&self) -> f64 {
        median(self.0.iter().map(|times| times.1))
    }

    /// The median over the rounds of what this took over what another took.
    fn over(&self, other: &Self) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a.0 / b.0))
    }
}

fn round_trips(folder: &Path) -> Result<(), Failure> {
    println!("| sockets | what | p50, µs | p99, µs | of the plain socket |");
    println!("|---|---|---|---|---|");
    for (kind, raw_listen, listen) in listens(folder, "steps") {
        let [mut raw, mut stream, mut call, mut step, mut apart] = [const { Times(Vec::new()) }; 5];
        let mut computed_ns = Vec::new();
        let (raw_peer, worker) = (raw_peer(&raw_listen)?, worker(&listen, None)?);
        let (plain, nodes) = (plain_runtime()?, runtime()?);
        let mut socket = plain.block_on(connect(&raw_peer.address))?;
        let mut client = plain.block_on(Client::connect(&worker.address))?;
        let mut remote = plain.block_on(remote(&worker.address))?;
        let mut remote_apart = nodes.block_on(self::remote(&worker.address))?;
        let (orders, hidden) = (orders(1), [0.25; WIDTH]);
        let mut sequence = 0;
        for _ in 0..ROUNDS {
            plain.block_on(async {
                announce(&mut *socket, 1024, 1024, WARM_UP + STEPS).await?;
                let mut buffer = [0; 1024];
                raw.round(async || {
                    socket.write_all(&buffer).await?;
                    socket.read_exact(&mut buffer).await?;
                    Ok(())
                })
                .await?;
                stream
                    .round(async || {
                        sequence += 1;
                        client.post(request(1024, sequence)).await?;
                        computed_ns.push(client.reply().await? as f64);
                        Ok(())
                    })
                    .await?;
                call.round(async || client.call(request(1024, 1)).await).await?;
                step.round(async || {
                    remote.send(&orders, &hidden, WIDTH).await?;
                    Ok(())
                })
                .await
            })?;
            nodes.block_on(apart.round(async || {
                remote_apart.send(&orders, &hidden, WIDTH).await?;
                Ok(())
            }))?;
        }
        for (what, times) in [
            ("plain socket", &raw),
            ("message on an open stream", &stream),
            ("step of the dispatcher", &step),
            ("the same, connections on another thread", &apart),
            ("call of its own", &call),
        ] {
            let (p50, p99, over) = (times.p50(), times.p99(), times.over(&raw));
            println!("| {kind} | {what} | {p50:.1} | {p99:.1} | {over:.2} |");
        }
        println!(
            "| {kind} | of which computing | {:.1} | | |",
            median(std::mem::take(&mut computed_ns)) / 1e3
        );
    }
    Ok(())
}

async fn remote(address: &str) -> Result<Remote, Failure> {
    let address = [address.to_owned()];
    let mut remote = Remote::connect(&address, RemoteSettings::default()).await?;
    remote.load(shards(1)).await?;
    Ok(remote)
}

fn shards(nodes: usize) -> Vec<ShardAssignment> {
    let expert_weights = Arc::new(small_expert());
    let shard = |node| ShardAssignment {
        node: NodeId::from_index(node),
        layer: LAYER,
        expert: ExpertId::from_index(node),
        expert_weights: expert_weights.clone(),
    };
    (0..nodes).map(shard).collect()
}

/// One token for each node.
fn orders(nodes: usize) -> Orders {
    let order = |node| NodeOrder {
        node: NodeId::from_index(node),
        groups: vec![ExpertGroup { expert: ExpertId::from_index(node), tokens: vec![TokenId(0)] }],
    };
    Orders { step: StepId(0), layer: LAYER, nodes: (0..nodes).map(order).collect() }
}

fn empty_layers(folder: &Path) -> Result<(), Failure> {
    println!("\n## An empty layer\n");
    println!("| nodes | sockets | p50, µs | p99, µs |");
    println!("|---|---|---|---|");
    for nodes in [1, 2, 4] {
        let (orders, hidden) = (orders(nodes), [0.25; WIDTH]);
        let runtime = runtime()?;
        let mut times = Times::default();
        let mut near = InProcess::new();
        runtime.block_on(async {
            near.load(shards(nodes)).await?;
            for _ in 0..ROUNDS {
                times
                    .round(async || {
                        near.send(&orders, &hidden, WIDTH).await?;
                        Ok(())
                    })
                    .await?;
            }
            Ok::<_, Failure>(())
        })?;
        println!("| {nodes} | none, in process | {:.1} | {:.1} |", times.p50(), times.p99());
        for (kind, _, listen) in listens(folder, "layers") {
            let workers = (0..nodes)
                .map(|node| match listen.strip_prefix("unix:") {
                    Some(path) => worker(&format!("unix:{path}-{nodes}-{node}"), None),
                    None => worker(&listen, None),
                })
                .collect::<Result<Vec<_>, _>>()?;
            let addresses: Vec<_> = workers.iter().map(|worker| worker.address.clone()).collect();
            let mut times = Times::default();
            runtime.block_on(async {
                let mut remote = Remote::connect(&addresses, RemoteSettings::default()).await?;
                remote.load(shards(nodes)).await?;
                for _ in 0..ROUNDS {
                    times
                        .round(async || {
                            remote.send(&orders, &hidden, WIDTH).await?;
                            Ok(())
                        })
                        .await?;
                }
                Ok::<_, Failure>(())
            })?;
            println!("| {nodes} | {kind} | {:.1} | {:.1} |", times.p50(), times.p99());
        }
    }
    Ok(())
}

/// GB/s of one transfer over a plain socket.
async fn plain_transfer(
    socket: &mut dyn peers::Socket,
    bytes: usize,
    total: usize,
) -> Result<f64, Failure> {
    let count = total / bytes;
    announce(socket, bytes, 1, count).await?;
    let buffer = vec![1; bytes];
    let clock = Clock::start();
    // The answers of one byte are read as they pile up: waiting for each would be a ping-pong.
    let mut answers = vec![0; count];
    let mut answered = 0;
    for sent in 0..count {
        socket.write_all(&buffer).await?;
        while sent + 1 - answered >= PIPELINE {
            answered += socket.read(&mut answers[answered..]).await?;
        }
    }
    socket.read_exact(&mut answers[answered..]).await?;
    Ok((bytes * count) as f64 / clock.now_ns() as f64)
}

/// GB/s of one transfer on a stream.
async fn transfer(client: &mut Client, bytes: usize, total: usize) -> Result<f64, Failure> {
    let mut template = request(bytes, 1);
    // The node reads and checks all, then says that it has no such expert: nothing is computed.
    template.groups[0].expert = 1;
    let template = seal_request(template);
    let clock = Clock::start();
    let count = total / bytes;
    let mut answered = 0;
    for sent in 0..count {
        client.post(template.clone()).await?;
        while sent + 1 - answered >= PIPELINE {
            client.refusal().await?;
            answered += 1;
        }
    }
    while answered < count {
        client.refusal().await?;
        answered += 1;
    }
    Ok((bytes * count) as f64 / clock.now_ns() as f64)
}

fn one_way(folder: &Path) -> Result<(), Failure> {
    println!("\n## Tensors one way\n");
    println!("| sockets | message | plain socket, GB/s | stream, GB/s | share |");
    println!("|---|---|---|---|---|");
    for (kind, raw_listen, listen) in listens(folder, "tensors") {
        let (raw_peer, worker) = (raw_peer(&raw_listen)?, worker(&listen, None)?);
        let plain = plain_runtime()?;
        let mut socket = plain.block_on(connect(&raw_peer.address))?;
        let mut client = plain.block_on(Client::connect(&worker.address))?;
        for bytes in [64 << 10, 1 << 20, 8 << 20] {
            let (mut raw, mut stream) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                raw.push(plain.block_on(plain_transfer(&mut *socket, bytes, TRANSFER_BYTES))?);
                stream.push(plain.block_on(transfer(&mut client, bytes, TRANSFER_BYTES))?);
            }
            let share = median(raw.iter().zip(&stream).map(|(raw, ours)| ours / raw));
            let (kib, raw, ours) = (bytes >> 10, median(raw), median(stream));
            println!("| {kind} | {kib} KiB | {raw:.2} | {ours:.2} | {:.0} % |", 100.0 * share);
        }
    }
    Ok(())
}

/// `--send plain|stream ADDRESS BYTES TOTAL`: a sender in a process of its own, whose copies are counted.
fn send(arguments: &[String]) -> Result<(), Failure> {
    let [how, address, bytes, total] = arguments else { return Err("four arguments".into()) };
    let (bytes, total) = (bytes.parse()?, total.parse()?);
    if how == "plain" {
        plain_runtime()?.block_on(async {
            let mut socket = connect(address).await?;
            plain_transfer(&mut *socket, bytes, total).await
        })?;
    } else {
        runtime()?.block_on(async {
            let mut client = Client::connect(address).await?;
            transfer(&mut client, bytes, total).await
        })?;
    }
    Ok(())
}

/// Copies of each payload byte, counted by a library that takes the place of `memcpy` and `memmove`.
fn copies(folder: &Path) -> Result<(), Failure> {
    println!("\n## Bytes copied\n");
    let library = folder.join("count_copies.so");
    let built = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/count_copies.c"))
        .arg("-ldl")
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: cc cannot build benches/count_copies.c");
        return Ok(());
    }
    println!("| what | message | sender | receiver |");
    println!("|---|---|---|---|");
    for how in ["plain", "stream"] {
        for bytes in [64 << 10, 1 << 20, 8 << 20] {
            // The difference of two transfers leaves out what starting and ending copies.
            let [short, long] = [64 << 20, 192 << 20]
                .map(|total| copied(folder, &library, how, bytes, total))
                .map(|found| found.map_err(|error| format!("counting copies: {error}")));
            let (short, long) = (short?, long?);
            let per_byte = |side: usize| (long[side] - short[side]) / (128 << 20) as f64;
            let what = if how == "plain" { "plain socket" } else { "stream" };
            println!("| {what} | {} KiB | {:.2} | {:.2} |", bytes >> 10, per_byte(0), per_byte(1));
        }
    }
    Ok(())
}

/// Bytes that sender and receiver copied.
fn copied(
    folder: &Path,
    library: &Path,
    how: &str,
    bytes: usize,
    total: usize,
) -> Result<[f64; 2], Failure> {
    let counts = ["sender", "receiver"].map(|side| folder.join(side));
    let exe = env::current_exe()?;
    let mut receiver = if how == "plain" {
        let mut command = Command::new(&exe);
        command.args(["--raw-peer", "127.0.0.1:0"]);
        command
    } else {
        let mut command = runs::nashflock();
        command.args(["worker", "--lifeline", "--threads", "1", "--listen", "127.0.0.1:0"]);
        command
    };
    receiver.env("LD_PRELOAD", library).env("COUNT_COPIES", &counts[1]);
    let receiver = Process::start(&mut receiver)?;
    let status = Command::new(&exe)
        .args(["--send", how, &receiver.address, &bytes.to_string(), &total.to_string()])
        .env("LD_PRELOAD", library)
        .env("COUNT_COPIES", &counts[0])
        .status()?;
    if !status.success() {
        return Err(format!("the sender ended with {status}").into());
    }
    receiver.end()?;
    let read = |path: &Path| -> Result<f64, Failure> {
        Ok(std::fs::read_to_string(path)?.trim().parse()?)
    };
    Ok([read(&counts[0])?, read(&counts[1])?])
}
