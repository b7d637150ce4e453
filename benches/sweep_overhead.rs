//! Prints the page of sweeps: how they are used, and what a run in a sweep costs beside the run itself.
//!
//! `cargo bench --bench sweep_overhead > docs/sweeps.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use agents::game::Registries;
use nashflock::measure::Clock;
use nashflock::measure::memory::peak_resident_bytes;
use nashflock::run::Shared;
use nashflock::scenario::sweep::Experiment;
use nashflock::scenario::{self, Known};
use nashflock::sweep::{self, Order, PlaySettings, Row, Shard, SweepDir, SweepProgress};
use nashflock::transport::RunToken;
use serde_json::{Value, json};
use shared::Failure;
use shared::figures::median;
use shared::runs;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// 8 requests of 16 tokens in two batches, over 12 experts.
const TINY: &str = r#"# Question: what does a run in a sweep cost beside the run itself?
schema_version = 1
name = "tiny"
seed = 7
[source]
kind = "synthetic"
experts = 12
skew = 1.0
width = 16
expert_hidden = 16
[game]
router = "equilibrium"
top_k = 3
[load]
arrival = "constant"
rate_per_s = 100000.0
requests = 8
tokens_per_request = 16
batch_requests_max = 4
[compute]
threads = 1
[sweep]
at_once = true
seeds = 250
[[sweep.axis]]
key = "game.router"
values = ["equilibrium", "top_k"]
[[sweep.axis]]
key = "source.skew"
values = [0.0, 1.0]
"#;

/// The model of scenarios/quickstart.toml, its experts and its budget, in one process and at once: four points that
/// need the same experts.
const TRAINED: &str = r#"# Question: what do runs over a trained model gain from what they have in common?
schema_version = 1
name = "trained"
seed = 7
[source]
kind = "checkpoint"
checkpoint = "models/books-moe-64e8k"
text = ["text/murmuration.txt"]
[game]
router = "equilibrium"
top_k = 8
[precision]
budget = "4.5bpw"
widths = [2, 4, 8]
group = 64
calibration_text = "text/calibration.txt"
calibration_tokens = 2048
[load]
arrival = "constant"
rate_per_s = 100000.0
requests = 64
tokens_per_request = 64
batch_requests_max = 16
[compute]
threads = 1
[sweep]
at_once = true
[[sweep.axis]]
key = "game.router"
values = ["equilibrium", "top_k"]
[[sweep.axis]]
key = "flock.price_step"
values = [0.003, 0.01]
"#;

/// Sweeps of each size; medians are printed.
const TIMES: usize = 3;
/// Runs as processes of their own: the control.
const PROCESSES: u32 = 40;

fn main() -> Result<(), Failure> {
    // Peaks are of a process: this one plays one sweep of a page in a process of its own.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [OWN, way, seeds, file, out] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let said = trained(way == SHARING, seeds.parse()?, Path::new(file), Path::new(out))?;
        println!("{said}");
        return Ok(());
    }
    println!("{}", include_str!("sweep_overhead.md"));
    let folder = tempfile::tempdir()?;
    let scenario = folder.path().join("tiny.toml");
    fs::write(&scenario, TINY)?;
    let bench = Bench { folder: folder.path(), scenario: &scenario };
    bench.overhead()?;
    bench.memory()?;
    bench.trained()?;
    bench.kills()
}

struct Bench<'a> {
    folder: &'a Path,
    scenario: &'a Path,
}

impl Bench<'_> {
    fn command(&self, seeds: u32, out: &Path, jobs: u32) -> Command {
        let mut command = runs::nashflock();
        command.arg("sweep").arg(self.scenario).args(["--json", "--jobs", &jobs.to_string()]);
        command.args(["--set", &format!("sweep.seeds={seeds}"), "--out"]).arg(out);
        command.stdout(Stdio::piped());
        command
    }

    /// Time of the process, s; what it said; its rows.
    fn sweep(&self, seeds: u32, jobs: u32) -> Result<(f64, Value, Vec<Row>), Failure> {
        let out = self.folder.join("sweep");
        let clock = Clock::start();
        let output = self.command(seeds, &out, jobs).output()?;
        let time = clock.now_ns() as f64 / 1e9;
        if !output.status.success() {
            return Err(format!("the sweep ended with {}", output.status).into());
        }
        let rows = SweepDir::open(&out)?.rows()?.collect::<Result<_, _>>()?;
        fs::remove_dir_all(&out)?;
        Ok((time, serde_json::from_slice(&output.stdout)?, rows))
    }

    fn overhead(&self) -> Result<(), Failure> {
        println!("## Overhead\n\n| ms a run | 1 job | 2 jobs |\n|---|---|---|");
        let mut columns = Vec::new();
        for jobs in [1, 2] {
            let (mut whole, mut own, mut served) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..TIMES {
                let (time, _, rows) = self.sweep(250, jobs)?;
                let runs = rows.len() as f64;
                let sum = |key: &str| {
                    rows.iter().filter_map(|row| row.figure(key)).sum::<f64>() / 1e6 / runs
                };
                // Two jobs do two runs at a time: what one of them has is twice the share of the whole.
                whole.push(f64::from(jobs) * time * 1e3 / runs);
                own.push(sum("wall_ns"));
                served.push(sum("throughput.elapsed_ns"));
            }
            columns.push([median(&whole), median(&own), median(&served)]);
        }
        let row = |name: &str, of: &dyn Fn(&[f64; 3]) -> f64| {
            let cells: Vec<String> = columns.iter().map(|c| format!("{:.2}", of(c))).collect();
            println!("| {name} | {} |", cells.join(" | "));
        };
        row("the sweep: time of its process × jobs / 1000 runs", &|of| of[0]);
        row("a run in it, from its first file to its figures", &|of| of[1]);
        row("serving alone, the run itself", &|of| of[2]);
        row("**overhead**: the sweep less serving alone", &|of| of[0] - of[2]);
        let clock = Clock::start();
        for run in 0..PROCESSES {
            let out = self.folder.join(format!("run {run}"));
            if !runs::run::<&str>(self.scenario, &out, &[]).status()?.success() {
                return Err("a run failed".into());
            }
        }
        let alone = clock.now_ns() as f64 / 1e6 / f64::from(PROCESSES);
        println!(
            "| the control: `nashflock run`, a process and a directory a run | {alone:.2} | – |"
        );
        Ok(())
    }

    fn memory(&self) -> Result<(), Failure> {
        println!("\n## Memory\n\n| runs | peak, MB | Parquet, kB |\n|---|---|---|");
        for seeds in [25, 250, 750, 2_500] {
            let out = self.folder.join("memory");
            let output = self.command(seeds, &out, 1).output()?;
            let said: Value = serde_json::from_slice(&output.stdout)?;
            let peak = said["peak_bytes"].as_f64().ok_or("the system says nothing of memory")?;
            let bytes = fs::metadata(out.join("shard-1-of-1.parquet"))?.len() as f64;
            fs::remove_dir_all(&out)?;
            println!("| {} | {:.1} | {:.0} |", 4 * seeds, peak / 1e6, bytes / 1e3);
        }
        Ok(())
    }

    /// Sweeps of the trained model, with and without what its runs have in common, in turn.
    fn trained(&self) -> Result<(), Failure> {
        const FOLDERS: [&str; 2] = ["models", "text"];
        let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut text = TRAINED.to_owned();
        for folder in FOLDERS {
            let whole = format!("\"{}/", scenarios.join(folder).display());
            text = text.replace(&format!("\"{folder}/"), &whole);
        }
        let file = self.folder.join("trained.toml");
        fs::write(&file, text)?;
        println!("\n## A trained model\n\n{}", include_str!("sweep_trained.md"));
        println!("| runs | shared | s a run | the first, s | median of the others, s | peak, MB |");
        println!("|---|---|---|---|---|---|");
        let mut played_rows = Vec::new();
        for seeds in [1_u32, 2, 20] {
            for way in ["nothing", SHARING] {
                // Without sharing all runs are alike: few tell.
                if way != SHARING && seeds > 2 {
                    continue;
                }
                let out = self.folder.join("trained");
                let mut own = Command::new(std::env::current_exe()?);
                own.args([OWN, way, &seeds.to_string()]).arg(&file).arg(&out);
                let output = own.stderr(Stdio::inherit()).output()?;
                let said: Value = serde_json::from_slice(&output.stdout)?;
                let rows: Vec<Row> = SweepDir::open(&out)?.rows()?.collect::<Result<_, _>>()?;
                fs::remove_dir_all(&out)?;
                let runs = rows.len();
                let mut of_run: Vec<f64> = rows
                    .iter()
                    .filter_map(|row| row.figure("wall_ns"))
                    .map(|ns| ns / 1e9)
                    .collect();
                let first = of_run.remove(0);
                let (time_s, peak) = (&said["time_s"], &said["peak_bytes"]);
                println!(
                    "| {runs} | {way} | {:.2} | {first:.2} | {:.2} | {:.0} |",
                    time_s.as_f64().ok_or("no time")? / runs as f64,
                    median(of_run),
                    peak.as_f64().ok_or("the system says nothing of memory")? / 1e6
                );
                if seeds == 2 {
                    played_rows.push(played(rows));
                }
            }
        }
        let same = if played_rows[0] == played_rows[1] { "the same" } else { "NOT the same" };
        println!(
            "\nThe rows of 8 runs with and without are {same} to the last bit, but for `measured.*`."
        );
        Ok(())
    }

    /// Kills sweeps after ever longer times and goes on with them.
    fn kills(&self) -> Result<(), Failure> {
        println!(
            "\n## Kills\n\n| killed after, ms | rows kept of 400 | rows played again | same rows |\n|---|---|---|---|"
        );
        let expected = played(self.sweep(100, 2)?.2);
        for wait_ms in [5, 20, 60, 120, 200, 300, 420, 560] {
            let out = self.folder.join("killed");
            let mut sweep = self.command(100, &out, 2).spawn()?;
            sleep(Duration::from_millis(wait_ms));
            sweep.kill()?;
            sweep.wait()?;
            let rows = || -> Result<Vec<Row>, Failure> {
                Ok(SweepDir::open(&out)?.rows()?.collect::<Result<_, _>>()?)
            };
            let kept = rows().map_or(0, |rows| rows.len());
            runs::nashflock().arg("resume").arg(&out).status()?;
            if rows().map_or(true, |rows| rows.is_empty()) {
                // Killed before anything was played.
                self.command(100, &out, 2).stdout(Stdio::null()).status()?;
            }
            let same = played(rows()?) == expected;
            println!("| {wait_ms} | {kept} | {} | {same} |", 400 - kept);
            fs::remove_dir_all(&out)?;
        }
        Ok(())
    }
}

/// Names an own process.
const OWN: &str = "one-sweep";
/// What [`OWN`] is to do.
const SHARING: &str = "all there is";

struct Silent;

impl SweepProgress for Silent {
    fn played(&self, _done: u64, _runs: u64, _failed: u64) {}
}

/// Plays one sweep in this process, one run at a time.
fn trained(shares: bool, seeds: u32, file: &Path, out: &Path) -> Result<Value, Failure> {
    let registries = Registries::standard();
    let routers = registries.routers.names().map(str::to_owned).collect();
    let Registries { costs, allocators, motions, migrations, .. } = &registries;
    let known = Known { routers, costs, allocators, motions, migrations };
    let sets = [format!("sweep.seeds={seeds}")];
    let scenario = scenario::load(file, &sets, &known).map_err(|_| "a bad scenario")?;
    let dir = SweepDir::create(out, &scenario)?;
    let settings = PlaySettings {
        command: vec!["bench".to_owned()],
        program: Path::new(env!("CARGO_BIN_EXE_nashflock")),
        registries: &registries,
        run_token: RunToken::default(),
        shared: shares.then(Shared::default),
    };
    let order = Order { shard: Shard::whole(), jobs: 1, failed_again: false };
    let clock = Clock::start();
    let end = sweep::start(&dir, &Experiment::new(&scenario), order, &settings, &Silent)?;
    let time_s = clock.now_ns() as f64 / 1e9;
    if !end.is_complete() || end.failed > 0 {
        return Err(format!("{end:?}").into());
    }
    Ok(json!({ "time_s": time_s, "peak_bytes": peak_resident_bytes() }))
}

/// Rows without what a clock enters, to the last bit.
fn played(rows: Vec<Row>) -> Vec<Vec<u8>> {
    let bytes = |row: Row| postcard::to_stdvec(&Row { measured: BTreeMap::new(), ..row });
    rows.into_iter().map(|row| bytes(row).expect("a row has a binary form")).collect()
}
