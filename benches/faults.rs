//! Writes docs/faults.md: what a killed and a slowed worker cost, each beside its controls.
//!
//! `cargo bench --bench faults > docs/faults.md`; with names of sections (`killed`, `joined`, `slowed`,
//! `choice`) after `--`, these alone.
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod choice;
mod peers;
mod shared;

use nashflock::measure::Clock;
use nashflock::results::{FaultFigures, RequestRow, Summary};
use shared::figures::median;
use shared::runs::{self, Running, stat};
use shared::{Failure, Sections};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Pairs of runs of each kind.
const REPEATS: usize = 5;

const SCENARIO: &str = r#"schema_version = 1
name = "faults"
seed = 11
[source]
kind = "synthetic"
experts = 64
layers = 2
skew = 1.0
width = 256
expert_hidden = 512
[game]
router = "equilibrium"
top_k = 4
[precision]
budget = "5bpw"
widths = [4]
[nodes]
engine = "local"
replicas = 2
[load]
arrival = "poisson"
rate_per_s = 50.0
requests = 1000
tokens_per_request = 16
batch_requests_max = 8
batch_window_ms = 20
"#;

/// More than two cores can serve, and so many requests that it takes several seconds.
const OVERLOAD: [&str; 2] = ["load.rate_per_s=1000000", "load.requests=6000"];

/// The kill is over by then: at most 1 s after the first request.
const AFTER_S: f64 = 1.5;

/// The shards of a lost worker are with others by then.
const AFTER_JOINED_S: f64 = 2.5;

fn main() -> Result<(), Failure> {
    let sections = Sections::asked();
    if sections.is_all() {
        println!("{}", include_str!("faults.md"));
    }
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("scenario.toml"), SCENARIO)?;
    let bench = Bench { folder: folder.path() };
    if sections.has("killed") {
        bench.killed("Killed", Nodes::Local, AFTER_S)?;
    }
    if sections.has("joined") {
        bench.killed("Killed, of workers that joined", Nodes::Joined, AFTER_JOINED_S)?;
    }
    if sections.has("slowed") {
        bench.slowed()?;
    }
    if sections.has("choice") {
        choice::choice(runtime)?;
    }
    if sections.is_all() {
        println!("\n{}", include_str!("simulation.md").trim_end());
    }
    Ok(())
}

/// As a run has it: connections on a thread of their own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// Where a run has its workers from.
#[derive(Clone, Copy, PartialEq)]
enum Nodes {
    /// It starts them.
    Local,
    /// They join it.
    Joined,
}

struct Bench<'a> {
    folder: &'a Path,
}

impl Bench<'_> {
    fn killed(&self, title: &str, nodes: Nodes, after_s: f64) -> Result<(), Failure> {
        let (hash, _) =
            self.run("alone", Nodes::Local, 0, &OVERLOAD, |_| Ok(()))?.hash_and_faults();
        println!("\n## {title}\n");
        println!(
            "| run | same state | recovery, ms | requests/s after | of a cluster of three | ratio |"
        );
        println!("|---|---|---|---|---|---|");
        let mut ratios = Vec::new();
        for repeat in 0..REPEATS {
            let three = self.run("three", nodes, 3, &OVERLOAD, |_| Ok(()))?;
            let three_per_s = three.requests_per_s(after_s)?;
            let kill = |workers: &[u32]| signal("KILL", workers[1]);
            let killed = self.run("killed", nodes, 4, &OVERLOAD, kill)?;
            let per_s = killed.requests_per_s(after_s)?;
            ratios.push(per_s / three_per_s);
            let (found, faults) = killed.hash_and_faults();
            println!(
                "| {} | {} | {:.1} | {per_s:.0} | {three_per_s:.0} | {:.3} |",
                repeat + 1,
                found == hash,
                faults.recovery_ns_max.unwrap_or(0) as f64 / 1e6,
                ratios[repeat]
            );
        }
        println!("| median | | | | | {:.3} |", median(&ratios));
        Ok(())
    }

    fn slowed(&self) -> Result<(), Failure> {
        let (hash, _) = self.run("alone", Nodes::Local, 0, &[], |_| Ok(()))?.hash_and_faults();
        println!("\n## Slowed\n");
        println!(
            "| run | healthy p99, ms | slowed, hedged | ratio | slowed, not hedged | ratio | extra pairs | set aside | same state |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        let mut ratios = Vec::new();
        for repeat in 0..REPEATS {
            let healthy = self.run("healthy", Nodes::Local, 4, &[], |_| Ok(()))?.p99_ms()?;
            let hedged = self.run("hedged", Nodes::Local, 4, &[], slow_down)?;
            let plain = self
                .run("plain", Nodes::Local, 4, &["nodes.hedge_budget=0"], slow_down)?
                .p99_ms()?;
            let (found, faults) = hedged.hash_and_faults();
            let p99 = hedged.p99_ms()?;
            ratios.push(p99 / healthy);
            println!(
                "| {} | {healthy:.1} | {p99:.1} | {:.2} | {plain:.1} | {:.2} | {:.2} % | {} | {} |",
                repeat + 1,
                ratios[repeat],
                plain / healthy,
                100.0 * faults.hedged_share.unwrap_or(0.0),
                faults.set_aside,
                found == hash,
            );
        }
        println!("| median | | | {:.2} | | | | | |", median(&ratios));
        Ok(())
    }

    /// Runs the scenario on so many workers, in this process for none, and does `to` them amid it.
    fn run(
        &self,
        name: &str,
        nodes: Nodes,
        workers: usize,
        set: &[&str],
        mut to: impl FnMut(&[u32]) -> Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        let out = self.folder.join(name);
        runs::clear(&out)?;
        // Free a moment ago, and nobody else here takes ports.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = runs::run(&self.folder.join("scenario.toml"), &out, set);
        match nodes {
            _ if workers == 0 => {
                command.args(["--nodes", "in-process", "--set", "nodes.replicas=1"]);
            }
            Nodes::Local => {
                command.args(["--nodes", &format!("local:{workers}")]);
            }
            Nodes::Joined => {
                command.args(["--nodes", &format!("join:{address}:{workers}")]);
            }
        }
        let mut run = start(&mut command)?;
        let joined = if nodes == Nodes::Joined { workers } else { 0 };
        let joined = (0..joined).map(|_| {
            let args = ["worker", "--listen", "127.0.0.1:0", "--threads", "1", "--join", &address];
            start(runs::nashflock().args(args))
        });
        let joined = joined.collect::<Result<Vec<Running>, _>>()?;
        let clock = Clock::start();
        let began = out.join("requests.parquet.partial");
        while !began.exists() || (joined.is_empty() && run.children().len() < workers) {
            if run.try_wait()?.is_some() || clock.now_ns() > 60_000_000_000 {
                return Err(format!("run {name} did not begin").into());
            }
            sleep(Duration::from_millis(10));
        }
        // The shards are loaded in less than this.
        sleep(Duration::from_millis(1_000));
        if joined.is_empty() {
            to(&run.children())?;
        } else {
            to(&joined.iter().map(|worker| worker.id()).collect::<Vec<_>>())?;
        }
        let status = run.wait()?;
        let (dir, summary) = runs::ended(status, &out)?;
        Ok(Ended { summary, requests: dir.read_table()? })
    }
}

fn start(command: &mut Command) -> Result<Running, Failure> {
    Running::start(command.env("NASHFLOCK_RUN_TOKEN", "of this run"))
}

struct Ended {
    summary: Summary,
    requests: Vec<RequestRow>,
}

impl Ended {
    fn hash_and_faults(&self) -> (String, FaultFigures) {
        let Summary { state_hash, faults, .. } = &self.summary;
        (state_hash.clone(), faults.clone().unwrap_or_default())
    }

    fn p99_ms(&self) -> Result<f64, Failure> {
        Ok(self.summary.latency_ns.p99.ok_or("no request was answered")? as f64 / 1e6)
    }

    /// Requests finished a second, of those that finish later than this after the first arrival.
    fn requests_per_s(&self, after_s: f64) -> Result<f64, Failure> {
        let start = self.requests.iter().map(|row| row.intended_ns).min().ok_or("no requests")?;
        let after_ns = Duration::from_secs_f64(after_s).as_nanos();
        let times: Vec<u64> = self.requests.iter().map(|row| row.finished_ns - start).collect();
        let last = times.iter().copied().max().ok_or("no requests")?;
        let count = times.iter().filter(|ns| u128::from(**ns) > after_ns).count();
        let span_s = last as f64 / 1e9 - after_s;
        if span_s < 1.0 {
            return Err(format!("the run ended {span_s:.2} s later: serve more requests").into());
        }
        Ok(count as f64 / span_s)
    }
}

/// Stops a worker for 90 ms of every 100 ms until it ends.
fn slow_down(workers: &[u32]) -> Result<(), Failure> {
    let pid = workers[1];
    while Path::new(&format!("/proc/{pid}/stat")).exists() && !is_zombie(pid) {
        if signal("STOP", pid).is_err() {
            break;
        }
        sleep(Duration::from_millis(90));
        if signal("CONT", pid).is_err() {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn signal(name: &str, pid: u32) -> Result<(), Failure> {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    if sent.success() { Ok(()) } else { Err(format!("no signal to {pid}").into()) }
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == "Z")
}
