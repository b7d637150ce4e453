//! Writes docs/calibration.md: what virtual nodes predict of runs on real ones.
//!
//! `cargo bench --bench calibration > docs/calibration.md`; with names of sections (`batch`, `decode`) after `--`,
//! these alone.
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use nashflock::measure::Clock;
use serde_json::Value;
use shared::runs::{self, Running, stat};
use shared::{Failure, Sections};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Largest errors of held-out runs.
const MEAN_LIMIT: f64 = 0.05;
const P99_LIMIT: f64 = 0.09;

const WORKERS: usize = 4;

/// How often each run is played.
const REPETITIONS: u32 = 3;

/// The worker that is stopped for so long, so often, ms.
const SLOW: usize = 1;
const STOPPED_MS: u64 = 18;
const EVERY_MS: u64 = 47;

struct Section {
    name: &'static str,
    title: &'static str,
    scenario: &'static str,
    /// The high load: what is set for it.
    load: [&'static str; 2],
}

const SECTIONS: [Section; 2] = [
    Section {
        name: "batch",
        title: "Batches",
        scenario: BATCH,
        load: ["load.rate_per_s=150", "load.requests=1500"],
    },
    Section {
        name: "decode",
        title: "Prompts and answers",
        scenario: DECODE,
        load: ["load.rate_per_s=20", "load.requests=250"],
    },
];

const BATCH: &str = r#"schema_version = 1
name = "batch"
[source]
kind = "synthetic"
experts = 16
layers = 2
skew = 1.0
width = 384
expert_hidden = 1024
[game]
router = "equilibrium"
top_k = 2
[precision]
budget = "5bpw"
widths = [4]
[nodes]
engine = "local"
count = 4
[load]
arrival = "poisson"
rate_per_s = 100.0
requests = 1000
tokens_per_request = 100
batch_requests_max = 8
batch_window_ms = 20
"#;

const DECODE: &str = r#"schema_version = 1
name = "decode"
[source]
kind = "checkpoint"
checkpoint = "models/books-moe-64e8k"
text = ["text/murmuration.txt"]
[game]
router = "equilibrium"
top_k = 8
[precision]
budget = "5bpw"
widths = [4]
[nodes]
engine = "local"
count = 4
[load]
arrival = "poisson"
rate_per_s = 12.0
requests = 150
deadline_ms = 5000
[load.generation]
lengths = "fixed"
prompt_tokens = 64
generated_tokens = 32
step_tokens_max = 192
running_max = 32
step_us = 3000
token_us = 60
"#;

fn main() -> Result<(), Failure> {
    let sections = Sections::asked();
    let folder = tempfile::tempdir()?;
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    for shared in ["models", "text"] {
        std::os::unix::fs::symlink(scenarios.join(shared), folder.path().join(shared))?;
    }
    if sections.has(SECTIONS[0].name) {
        print!("{}", include_str!("calibration.md"));
    }
    let bench = Bench { folder: folder.path() };
    for section in SECTIONS.iter().filter(|section| sections.has(section.name)) {
        bench.section(section)?;
    }
    Ok(())
}

struct Bench<'a> {
    folder: &'a Path,
}

impl Bench<'_> {
    /// Observes runs to fit and held-out ones several times, fits, predicts and prints it.
    fn section(&self, section: &Section) -> Result<(), Failure> {
        let Section { name, title, scenario, load } = section;
        let file = format!("{name}.toml");
        fs::write(self.folder.join(&file), scenario)?;
        println!("\n## {title}\n\n```toml\n{}\n```\n", scenario.trim_end());
        let pause = format!(
            "virtual.faults=[{{kind=\"pause\",node={SLOW},at_ms=0,for_ms=1000000000,every_ms={EVERY_MS},\
             stopped_ms={STOPPED_MS}}}]"
        );
        let held_out: [(&str, &str, Vec<&str>); 3] = [
            ("low load", "12", Vec::new()),
            ("high load", "13", load.to_vec()),
            ("a slow worker", "14", vec![&pause]),
        ];
        let (mut fitted, mut names) = (Vec::new(), Vec::new());
        // What the machine does beside them changes in minutes: what is fitted and what is held out come in turn.
        for repetition in 1..=REPETITIONS {
            for (seed, sets) in [("1", &[][..]), ("5", &load[..])] {
                let out = format!("{name}-fitted-{seed}-{repetition}");
                self.observe(&file, &out, seed, sets)?;
                fitted.push(out);
            }
            for (label, seed, sets) in &held_out {
                let out = format!("{name}-{label}-{repetition}").replace(' ', "-");
                self.observe(&file, &out, seed, sets)?;
                names.push(out);
            }
        }
        let fit = ["fit"].into_iter().chain(fitted.iter().map(String::as_str));
        let said = self.nashflock(&fit.chain(["--out", "fitted.toml"]).collect::<Vec<_>>())?;
        println!(
            "Fitted to seed 1 at the low load and seed 5 at the high one:\n\n```text\n{}\n```",
            said.trim_end()
        );
        let runs: Vec<&str> = names.iter().map(String::as_str).collect();
        let calibrate =
            [&["calibrate"][..], &runs, &["--fitted", "fitted.toml", "--json"]].concat();
        let said: Value = serde_json::from_str(&self.nashflock(&calibrate)?)?;
        let runs = said["runs"].as_array().ok_or("no runs were compared")?;
        println!("\n### {title}: all held-out runs\n");
        all_together(runs);
        for (run, (label, ..)) in runs.iter().zip(&held_out) {
            println!("\n### {title}: {label}\n");
            table(run);
        }
        Ok(())
    }

    /// Plays a scenario on real workers; where it says that one pauses, that one is stopped.
    fn observe(&self, file: &str, out: &str, seed: &str, sets: &[&str]) -> Result<(), Failure> {
        let mut command = self.command(&["run", file, "--observe", "--seed", seed, "--out", out]);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        let mut run = Running::start(&mut command)?;
        if sets.iter().any(|set| set.starts_with("virtual.faults")) {
            let workers = loop {
                let workers = run.children();
                if workers.len() == WORKERS {
                    break workers;
                }
                if run.try_wait()?.is_some() {
                    return Err(format!("{out} ended before it had workers").into());
                }
                sleep(Duration::from_millis(2));
            };
            stop_and_go(workers[SLOW], &mut run)?;
        }
        let status = run.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{out} ended with {status}").into()) }
    }

    fn nashflock(&self, args: &[&str]) -> Result<String, Failure> {
        let ended = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()?;
        if !ended.status.success() {
            return Err(format!("{args:?}: {}", String::from_utf8_lossy(&ended.stderr)).into());
        }
        Ok(String::from_utf8(ended.stdout)?)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = runs::nashflock();
        command.current_dir(self.folder).args(args);
        command
    }
}

/// Stops a worker at the start of every period and lets it go on, until the run ends. One shell sends all signals:
/// a process for each would take time of the workers.
fn stop_and_go(worker: u32, run: &mut Running) -> Result<(), Failure> {
    let script = "while read signal; do kill -$signal $0 2>/dev/null; done";
    let mut shell = Command::new("sh")
        .args(["-c", script, &worker.to_string()])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut signals = shell.stdin.take().ok_or("the shell has no input")?;
    let clock = Clock::start();
    let until = |at_ms: u64| {
        sleep(Duration::from_nanos((at_ms * 1_000_000).saturating_sub(clock.now_ns())));
    };
    for period in 0.. {
        until(period * EVERY_MS);
        if run.try_wait()?.is_some() || stat(worker).map(|(_, parent)| parent) != Some(run.id()) {
            break;
        }
        writeln!(signals, "STOP")?;
        until(period * EVERY_MS + STOPPED_MS);
        writeln!(signals, "CONT")?;
    }
    drop(signals);
    shell.wait()?;
    Ok(())
}

fn table(run: &Value) {
    println!("| of | | times | measured | predicted | error | means alone | repeated |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for figure in run["figures"].as_array().into_iter().flatten() {
        let number = |key: &str| figure[key].as_f64().unwrap_or(f64::NAN);
        let percent = |key: &str| format!("{:+.1} %", 100.0 * number(key));
        println!(
            "| {} | {} | {} | {:.2} ms | {:.2} ms | {} | {} | {} |",
            figure["of"].as_str().unwrap_or_default(),
            name(&figure["statistic"]),
            figure["count"],
            number("measured_ns") / 1e6,
            number("predicted_ns") / 1e6,
            percent("error"),
            percent("control_error"),
            percent("repeat_error"),
        );
    }
}

fn name(statistic: &Value) -> &str {
    match statistic.as_str() {
        Some("p999") => "p99.9",
        Some(other) => other,
        None => "",
    }
}

/// Errors over all held-out runs, without their signs.
fn all_together(runs: &[Value]) {
    println!("Errors without their signs, over {} runs: mean, and largest.\n", runs.len());
    println!("| of | | error | largest | limit | means alone | largest | repeated | largest |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let figures = || runs.iter().flat_map(|run| run["figures"].as_array().into_iter().flatten());
    for statistic in ["mean", "p50", "p90", "p99", "p999"] {
        for of in ["step", "first token", "token", "request"] {
            let errors = |key: &str| -> Vec<f64> {
                let is = |figure: &&Value| figure["of"] == of && figure["statistic"] == statistic;
                figures()
                    .filter(is)
                    .filter_map(|figure| Some(figure[key].as_f64()?.abs()))
                    .collect()
            };
            if errors("error").is_empty() {
                continue;
            }
            let both = |key: &str| {
                let errors = errors(key);
                let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
                let largest = errors.iter().copied().fold(0.0, f64::max);
                format!("{:.1} % | {:.1} %", 100.0 * mean, 100.0 * largest)
            };
            let limit = match statistic {
                "mean" => format!("{:.0} %", 100.0 * MEAN_LIMIT),
                "p99" => format!("{:.0} %", 100.0 * P99_LIMIT),
                _ => String::new(),
            };
            println!(
                "| {of} | {} | {} | {limit} | {} | {} |",
                name(&Value::from(statistic)),
                both("error"),
                both("control_error"),
                both("repeat_error"),
            );
        }
    }
}
