//! Writes docs/faults.md: what a killed and a slowed worker cost, each beside its controls.
//!
//! `cargo bench --bench faults > docs/faults.md`
#![allow(clippy::print_stdout, reason = "the table is the output")]

use nashflock::measure::Clock;
use nashflock::results::{FaultFigures, RequestRow, RunDir, Summary};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

type Failure = Box<dyn Error + Send + Sync>;

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

fn main() -> Result<(), Failure> {
    println!("{}", include_str!("faults.md"));
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("scenario.toml"), SCENARIO)?;
    let bench = Bench { folder: folder.path() };
    bench.killed()?;
    bench.slowed()?;
    bench.overloaded()?;
    println!("\n{}", include_str!("simulation.md").trim_end());
    Ok(())
}

struct Bench<'a> {
    folder: &'a Path,
}

impl Bench<'_> {
    fn killed(&self) -> Result<(), Failure> {
        let (hash, _) = self.run("alone", 0, &OVERLOAD, |_| Ok(()))?.hash_and_faults();
        println!("## Killed\n");
        println!(
            "| run | same state | recovery, ms | requests/s after | of a cluster of three | ratio |"
        );
        println!("|---|---|---|---|---|---|");
        let mut ratios = Vec::new();
        for repeat in 0..REPEATS {
            let three = self.run("three", 3, &OVERLOAD, |_| Ok(()))?;
            let three_per_s = three.requests_per_s(AFTER_S)?;
            let killed = self.run("killed", 4, &OVERLOAD, |workers| signal("KILL", workers[1]))?;
            let per_s = killed.requests_per_s(AFTER_S)?;
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
        println!("| median | | | | | {:.3} |", median(ratios));
        Ok(())
    }

    fn slowed(&self) -> Result<(), Failure> {
        let (hash, _) = self.run("alone", 0, &[], |_| Ok(()))?.hash_and_faults();
        println!("\n## Slowed\n");
        println!(
            "| run | healthy p99, ms | slowed, hedged | ratio | slowed, not hedged | ratio | extra pairs | set aside | same state |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        let mut ratios = Vec::new();
        for repeat in 0..REPEATS {
            let healthy = self.run("healthy", 4, &[], |_| Ok(()))?.p99_ms()?;
            let hedged = self.run("hedged", 4, &[], slow_down)?;
            let plain = self.run("plain", 4, &["nodes.hedge_budget=0"], slow_down)?.p99_ms()?;
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
        println!("| median | | | {:.2} | | | | | |", median(ratios));
        Ok(())
    }

    fn overloaded(&self) -> Result<(), Failure> {
        let deadline = "load.deadline_ms=200";
        let capacity = self.run("capacity", 4, &OVERLOAD, |_| Ok(()))?.requests_per_s(AFTER_S)?;
        let goodput = |share: f64, admission: &str| -> Result<Ended, Failure> {
            let rate = format!("load.rate_per_s={:.1}", share * capacity);
            // About eight seconds of arrivals.
            let requests = format!("load.requests={:.0}", 8.0 * share * capacity);
            let admission = format!("load.admission={admission}");
            self.run("goodput", 4, &[deadline, &rate, &requests, &admission], |_| Ok(()))
        };
        println!("\n## Overloaded\n");
        println!(
            "| offered, of {capacity:.0} requests/s | admission | in time/s | of peak | p99, ms | shed | late |"
        );
        println!("|---|---|---|---|---|---|---|");
        let mut peak: f64 = 0.0;
        for (share, admission) in [
            (0.5, "all"),
            (0.7, "all"),
            (0.8, "all"),
            (0.9, "all"),
            (1.0, "deadline"),
            (1.5, "deadline"),
            (2.0, "deadline"),
            (2.0, "all"),
        ] {
            let run = goodput(share, admission)?;
            let in_time =
                run.summary.outcomes.ok as f64 * 1e9 / run.summary.throughput.elapsed_ns as f64;
            peak = peak.max(in_time);
            println!(
                "| {share:.1} | {admission} | {in_time:.0} | {:.2} | {:.0} | {} | {} |",
                in_time / peak,
                run.p99_ms()?,
                run.summary.outcomes.shed,
                run.summary.outcomes.late
            );
        }
        Ok(())
    }

    /// Runs the scenario on so many workers, in this process for none, and does `to` them amid it.
    fn run(
        &self,
        name: &str,
        workers: usize,
        set: &[&str],
        mut to: impl FnMut(&[u32]) -> Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        let out = self.folder.join(name);
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_nashflock"));
        command.current_dir(self.folder).args(["run", "scenario.toml", "--out", name]);
        if workers == 0 {
            command.args(["--nodes", "in-process", "--set", "nodes.replicas=1"]);
        } else {
            command.args(["--nodes", &format!("local:{workers}")]);
        }
        set.iter().for_each(|change| {
            command.args(["--set", change]);
        });
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut run = Run(child);
        let clock = Clock::start();
        while children(run.0.id()).len() < workers {
            if run.0.try_wait()?.is_some() || clock.now_ns() > 60_000_000_000 {
                return Err(format!("run {name} did not begin").into());
            }
            sleep(Duration::from_millis(10));
        }
        // The shards are loaded in less than this.
        sleep(Duration::from_millis(1_000));
        to(&children(run.0.id()))?;
        let status = run.0.wait()?;
        if !status.success() {
            return Err(format!("run {name} ended with {status}").into());
        }
        let dir = RunDir::open(&out)?;
        let requests = dir.read_table()?;
        Ok(Ended { summary: dir.read_summary()?, requests })
    }
}

/// Killed when dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut found: Vec<u32> =
        pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect();
    found.sort_unstable();
    found
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == "Z")
}

fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
