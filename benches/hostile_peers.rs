//! Writes docs/security.md: what hostile peers cost another client of the same worker.
//!
//! `cargo bench --bench hostile_peers > docs/security.md`
#![allow(clippy::print_stdout, reason = "the tables are the output")]

#[path = "../tests/all/attacks.rs"]
mod attacks;
#[path = "../tests/all/certificates.rs"]
mod certificates;
mod peers;
mod shared;

use agents::ids::{ExpertId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder, Orders};
use attacks::{Held, garbage, giants, hold, rapid_reset, without_certificate};
use certificates::{Authority, NAME, access, flags};
use nashflock::dispatch::{Dispatch as _, Remote, RemoteSettings, ShardAssignment};
use nashflock::measure::Clock;
use nashflock::transport::{Access, TlsFiles};
use peers::{LAYER, Process, WIDTH, small_expert};
use proto::{StatusRequest, expert_service_client::ExpertServiceClient};
use shared::Failure;
use shared::figures::median;
use shared::runs::{self, Running};
use std::env;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

const TOKEN: &str = "of this run";
const ROUNDS: usize = 5;
const WARM_UP: usize = 300;
const STEPS: usize = 5_000;
/// Attempts a second; 0 is as fast as one after the other can be.
const RATES: [u32; 2] = [50, 0];
/// What a row's p99 may be of that without peers.
const BAR: f64 = 1.10;
/// Connections that are held; the oldest of more are let go by the peer itself.
const HELD: usize = 400;

const PLAIN: [&str; 5] =
    ["4 GiB header", "held connections", "rapid reset", "garbage", "other run's token"];
const TLS: [&str; 3] = ["no certificate", "wrong authority", "expired certificate"];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().collect();
    if arguments.get(1).map(String::as_str) == Some("--attack") {
        return attack(&arguments[2..]);
    }
    println!("{}", include_str!("hostile_peers.md"));
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "authority");
    let own = authority.issue(NAME, 2999);
    let certificates = Certificates {
        stranger: TlsFiles {
            ca: authority.ca().to_owned(),
            ..Authority::new(folder.path(), "other").issue(NAME, 2999)
        },
        expired: authority.issue(NAME, 2021),
    };
    let mut rows = Vec::new();
    for (kinds, tls, title) in
        [(&PLAIN[..], None, "Plain text"), (&TLS[..], Some(&own), "Mutual TLS")]
    {
        println!("\n## {title}\n");
        println!(
            "| peer | attempts a second | p50 alone, µs | elsewhere | here | p99 alone, µs | elsewhere \
             | here | p99, here over alone | memory, MiB |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for kind in kinds {
            for rate in RATES {
                rows.push(row(kind, rate, tls, &certificates)?);
            }
        }
    }
    bar(&rows);
    overhead(&own)
}

/// What a row came to.
struct Row {
    name: String,
    /// Its p99 over that without peers, and over that with them elsewhere.
    over_alone: f64,
    over_elsewhere: f64,
    /// Steps of a round that took longer than all but 1 % of those without peers: with peers elsewhere, and here.
    slow: [f64; 2],
    /// Attempts in a round here.
    attempts: f64,
}

/// Says which rows hold the bar, and which miss it.
fn bar(rows: &[Row]) {
    println!("\n## The bar\n");
    let missed: Vec<&Row> = rows.iter().filter(|row| row.over_alone > BAR).collect();
    println!(
        "{} of {} rows are within {BAR:.2} of the client alone.",
        rows.len() - missed.len(),
        rows.len()
    );
    for Row { name, over_alone, over_elsewhere, slow: [elsewhere, here], attempts } in missed {
        let reason = if *over_elsewhere <= BAR {
            "they cost as much at a worker that the client does not talk to: it is the machine that is shared"
        } else {
            "it is the worker that they keep busy"
        };
        println!(
            "- Missed: {name}: {over_alone:.2} of alone, {over_elsewhere:.2} of the same peers elsewhere. Of {STEPS} \
             steps {here:.0} took longer than the {} slowest alone, elsewhere {elsewhere:.0}, with {attempts:.0} \
             attempts in that time: {reason}.",
            STEPS / 100
        );
    }
}

struct Certificates {
    stranger: TlsFiles,
    expired: TlsFiles,
}

fn worker(tls: Option<&TlsFiles>) -> Result<Process, Failure> {
    let mut command = runs::nashflock();
    command.args(["worker", "--lifeline", "--threads", "1", "--listen", "127.0.0.1:0"]);
    command.args(["--run-token", TOKEN]).args(tls.map(flags).unwrap_or_default());
    Process::start(&mut command)
}

/// As a run has it: connections on a thread of their own.
fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

async fn client(address: &str, tls: Option<&TlsFiles>) -> Result<Remote, Failure> {
    let settings = RemoteSettings { access: access(tls, TOKEN), ..RemoteSettings::default() };
    let mut remote = Remote::connect(&[address.to_owned()], settings).await?;
    let shard = ShardAssignment {
        node: NodeId(0),
        layer: LAYER,
        expert: ExpertId(0),
        expert_weights: Arc::new(small_expert()),
    };
    remote.load(vec![shard]).await?;
    Ok(remote)
}

/// Times of steps, ns, ascending.
async fn steps(remote: &mut Remote) -> Result<Vec<u64>, Failure> {
    let group = ExpertGroup { expert: ExpertId(0), tokens: vec![TokenId(0)] };
    let order = NodeOrder { node: NodeId(0), groups: vec![group] };
    let orders = Orders { step: StepId(0), layer: LAYER, nodes: vec![order] };
    let hidden = [0.25; WIDTH];
    for _ in 0..WARM_UP {
        remote.send(&orders, &hidden, WIDTH).await?;
    }
    let clock = Clock::start();
    let mut times = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let start = clock.now_ns();
        remote.send(&orders, &hidden, WIDTH).await?;
        times.push(clock.now_ns() - start);
    }
    times.sort_unstable();
    Ok(times)
}

/// p50 and p99 of these, µs.
fn quantiles(times: &[u64]) -> (f64, f64) {
    (times[STEPS / 2] as f64 / 1e3, times[STEPS * 99 / 100] as f64 / 1e3)
}

fn row(
    kind: &str,
    rate: u32,
    tls: Option<&TlsFiles>,
    certificates: &Certificates,
) -> Result<Row, Failure> {
    let (here, elsewhere) = (worker(tls)?, worker(tls)?);
    let runtime = runtime()?;
    let mut remote = runtime.block_on(client(&here.address, tls))?;
    runtime.block_on(steps(&mut remote))?;
    let rss_before = rss_mib(here.id())?;
    let mut times: [Vec<(f64, f64)>; 3] = Default::default();
    let mut attempts = Vec::new();
    let (mut slow, mut in_round) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..ROUNDS {
        let mut slowest = u64::MAX;
        for (place, target) in [None, Some(&elsewhere), Some(&here)].into_iter().enumerate() {
            let attacker = target
                .map(|target| Attacker::start(kind, &target.address, rate, tls, certificates))
                .transpose()?;
            // It has begun.
            std::thread::sleep(Duration::from_millis(100));
            let clock = Clock::start();
            let found = runtime.block_on(steps(&mut remote))?;
            let took_s = clock.now_ns() as f64 / 1e9;
            times[place].push(quantiles(&found));
            match place {
                0 => slowest = found[STEPS * 99 / 100],
                _ => {
                    let count = found.iter().filter(|ns| **ns > slowest).count();
                    slow[place - 1].push(count as f64);
                }
            }
            if let Some(attacker) = attacker {
                let found = attacker.end()?;
                if place == 2 {
                    attempts.push(found);
                    in_round.push(found * took_s);
                }
            }
        }
    }
    let growth = rss_mib(here.id())? - rss_before;
    let of = |place: usize, part: fn(&(f64, f64)) -> f64| median(times[place].iter().map(part));
    let [p50, p99] = [|t: &(f64, f64)| t.0, |t: &(f64, f64)| t.1];
    let over_of = |place: usize| -> f64 {
        median(times[2].iter().zip(&times[place]).map(|(a, b)| a.1 / b.1))
    };
    let over = over_of(0);
    let rate = if rate == 0 { " (flat out)" } else { "" };
    println!(
        "| {kind} | {:.0}{rate} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {over:.2} | {growth:.1} |",
        median(attempts),
        of(0, p50),
        of(1, p50),
        of(2, p50),
        of(0, p99),
        of(1, p99),
        of(2, p99),
    );
    Ok(Row {
        name: format!("{kind}{rate}"),
        over_alone: over,
        over_elsewhere: over_of(1),
        slow: slow.map(median),
        attempts: median(in_round),
    })
}

fn rss_mib(pid: u32) -> Result<f64, Failure> {
    let bytes = runs::memory_bytes(&pid.to_string(), "VmRSS").ok_or("no VmRSS")?;
    Ok(bytes as f64 / (1 << 20) as f64)
}

/// A process that attacks until it is told to end, and then says how often it tried in a second.
struct Attacker(Running);

impl Attacker {
    fn start(
        kind: &str,
        address: &str,
        rate: u32,
        tls: Option<&TlsFiles>,
        certificates: &Certificates,
    ) -> Result<Self, Failure> {
        // Peers of another machine take no core of this one.
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(env::current_exe()?);
        command.args(["--attack", kind, address, &rate.to_string()]);
        let files = match kind {
            "expired certificate" => Some(&certificates.expired),
            "wrong authority" => Some(&certificates.stranger),
            _ => tls,
        };
        for file in files.into_iter().flat_map(|files| [&files.certificate, &files.key, &files.ca])
        {
            command.arg(file);
        }
        Ok(Self(Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?))
    }

    fn end(mut self) -> Result<f64, Failure> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().ok_or("piped above")?.read_to_string(&mut said)?;
        self.0.wait()?;
        Ok(said.trim().parse()?)
    }
}

fn attack(arguments: &[String]) -> Result<(), Failure> {
    let [kind, address, rate, files @ ..] = arguments else { return Err("too few words".into()) };
    let files = match files {
        [certificate, key, ca] => Some(TlsFiles {
            certificate: PathBuf::from(certificate),
            key: PathBuf::from(key),
            ca: PathBuf::from(ca),
            peers: vec![NAME.to_owned()],
        }),
        _ => None,
    };
    let rate: u32 = rate.parse()?;
    let shown = files.as_ref().map(|files| access(Some(files), TOKEN));
    let ca = files.as_ref().map(|files| files.ca.clone());
    let (stop, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        // It may have ended.
        let _ = stop.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clock = Clock::start();
    let mut held = std::collections::VecDeque::new();
    let mut attempts = 0_u32;
    while stopped.try_recv().is_err() {
        // Whatever the worker does to it, it goes on.
        runtime.block_on(async {
            match attempt(kind, address, shown.as_ref(), ca.as_deref()).await {
                Some(stream) if held.len() < HELD => held.push_back(stream),
                Some(stream) => {
                    held.pop_front();
                    held.push_back(stream);
                }
                None => {}
            }
        });
        attempts += 1;
        if rate > 0 {
            let next_ns = u64::from(attempts) * 1_000_000_000 / u64::from(rate);
            let wait = next_ns.saturating_sub(clock.now_ns());
            runtime.block_on(async { tokio::time::sleep(Duration::from_nanos(wait)).await });
        }
    }
    println!("{:.1}", f64::from(attempts) * 1e9 / clock.now_ns() as f64);
    Ok(())
}

/// One attempt; a connection where that is to be held.
async fn attempt(
    kind: &str,
    address: &str,
    shown: Option<&Access>,
    ca: Option<&Path>,
) -> Option<tokio::net::TcpStream> {
    // What an attempt comes to is the worker's business, not the peer's.
    match kind {
        "4 GiB header" => drop(giants(address, TOKEN, 8).await),
        "held connections" => return hold(address, Held::HalfHeaders).await.ok(),
        "rapid reset" => {
            rapid_reset(address, "of another run", 200).await;
        }
        "garbage" => drop(garbage(address).await),
        "other run's token" => drop(call(address, &access(None, "of another run")).await),
        "no certificate" => {
            drop(without_certificate(address, ca.expect("it has an authority"), NAME).await);
        }
        _ => drop(call(address, shown.expect("it has a certificate")).await),
    }
    None
}

async fn call(address: &str, shown: &Access) -> Result<(), Failure> {
    let mut client = ExpertServiceClient::new(shown.channel(address)?);
    let mut request = tonic::Request::new(StatusRequest {});
    let token = tonic::metadata::BinaryMetadataValue::from_bytes(shown.token.reveal().as_bytes());
    request.metadata_mut().insert_bin("nashflock-run-token-bin", token);
    client.status(request).await?;
    Ok(())
}

/// What TLS costs a client that gets in.
fn overhead(files: &TlsFiles) -> Result<(), Failure> {
    println!("\n## What TLS costs\n");
    println!("Steps as above without peers, in turn; medians over five rounds.\n");
    println!("| connection | p50, µs | p99, µs |");
    println!("|---|---|---|");
    let (plain, tls) = (worker(None)?, worker(Some(files))?);
    let runtime = runtime()?;
    let mut remotes = [
        ("plain text", runtime.block_on(client(&plain.address, None))?),
        ("mutual TLS", runtime.block_on(client(&tls.address, Some(files)))?),
    ];
    let mut times: [Vec<(f64, f64)>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, remote), times) in remotes.iter_mut().zip(&mut times) {
            times.push(quantiles(&runtime.block_on(steps(remote))?));
        }
    }
    for ((name, _), times) in remotes.iter().zip(&times) {
        let of = |part: fn(&(f64, f64)) -> f64| median(times.iter().map(part));
        println!("| {name} | {:.1} | {:.1} |", of(|t| t.0), of(|t| t.1));
    }
    Ok(())
}
