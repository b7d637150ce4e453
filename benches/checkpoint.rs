//! Prints what checkpoints cost a run, beside runs without them.
//!
//! `cargo bench --bench checkpoint`
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod shared;

use nashflock::measure::Clock;
use nashflock::results::{RunDir, Summary};
use shared::Failure;
use shared::figures::median;
use shared::runs;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Pairs of runs of each kind.
const PAIRS: usize = 5;

/// Name, scenario, and what makes it saturated and short.
const SCENARIOS: [(&str, &str, &[&str]); 3] = [
    (
        "quickstart, text in batches",
        "scenarios/quickstart.toml",
        &["load.requests=240", "load.rate_per_s=100000", "nodes.engine=in-process"],
    ),
    (
        "decode, answers in steps",
        "scenarios/decode.toml",
        &[
            "load.requests=40",
            "load.rate_per_s=100000",
            "nodes.engine=in-process",
            "load.generation.step_us=1",
        ],
    ),
    (
        "synthetic-skew",
        "scenarios/synthetic-skew.toml",
        &["load.requests=2400", "load.rate_per_s=1000000", "nodes.engine=in-process"],
    ),
];

const INTERVALS: [(&str, u32); 3] =
    [("none, the control", 0), ("every 256 rounds, the default", 256), ("every batch or step", 1)];

fn main() -> Result<(), Failure> {
    println!("{}", include_str!("checkpoint.md"));
    println!("| run | checkpoints | served, s | ratio | same state | state, bytes | bytes a row |");
    println!("|---|---|---|---|---|---|---|");
    let folder = tempfile::tempdir()?;
    for (name, scenario, sets) in SCENARIOS {
        let bench = Bench { folder: folder.path(), scenario, sets };
        for (interval, every) in INTERVALS {
            let (mut ratios, mut times, mut same) = (Vec::new(), Vec::new(), true);
            for _ in 0..PAIRS {
                let without = bench.run(0)?;
                let with = bench.run(every)?;
                let time = |summary: &Summary| summary.throughput.elapsed_ns as f64;
                ratios.push(time(&with) / time(&without));
                times.push(time(&with) / 1e9);
                same &= with.state_hash == without.state_hash;
            }
            let (served, ratio) = (median(&times), median(&ratios));
            let (state, row) = if every == 1 { bench.sizes()? } else { Default::default() };
            println!(
                "| {name} | {interval} | {served:.2} | {ratio:.3} | {same} | {state} | {row} |"
            );
        }
    }
    Ok(())
}

struct Bench<'a> {
    folder: &'a Path,
    scenario: &'a str,
    sets: &'a [&'a str],
}

impl Bench<'_> {
    fn command(&self, every: u32, out: &Path) -> Command {
        let every = format!("run.checkpoint_every_rounds={every}");
        runs::run(Path::new(self.scenario), out, &[self.sets, &[&every]].concat())
    }

    fn run(&self, every: u32) -> Result<Summary, Failure> {
        let out = self.folder.join("run");
        let status = self.command(every, &out).status()?;
        // 3: a goal was missed, which says nothing here.
        if !matches!(status.code(), Some(0 | 3)) {
            return Err(format!("{}: {status}", self.scenario).into());
        }
        let summary = RunDir::open(&out)?.read_summary()?;
        fs::remove_dir_all(&out)?;
        Ok(summary)
    }

    /// Bytes of the larger state file and of a row in the log, of a run that is killed.
    fn sizes(&self) -> Result<(String, String), Failure> {
        let out = self.folder.join("killed");
        // One that is still under way when it is killed.
        let mut command = self.command(1, &out);
        let requests = self.sets.iter().find_map(|set| set.strip_prefix("load.requests="));
        let requests: u32 = requests.ok_or("every scenario sets its requests")?.parse()?;
        command.args(["--set", &format!("load.requests={}", 20 * requests)]);
        let mut run = command.spawn()?;
        let clock = Clock::start();
        let bytes =
            |name: &str| fs::metadata(out.join("checkpoint").join(name)).map_or(0, |of| of.len());
        while bytes("0.state") == 0 && clock.now_ns() < 60_000_000_000 {
            sleep(Duration::from_millis(20));
        }
        sleep(Duration::from_millis(600));
        run.kill()?;
        run.wait()?;
        let (state, log) =
            (bytes("0.state").max(bytes("1.state")), fs::read(out.join("checkpoint/rows.log"))?);
        fs::remove_dir_all(&out)?;
        let (mut at, mut rows) = (0, 0_usize);
        while let Some(lead) = log.get(at..at + 5) {
            at += 5 + u32::from_le_bytes([lead[1], lead[2], lead[3], lead[4]]) as usize;
            rows += 1;
        }
        Ok((state.to_string(), (log.len() / rows.max(1)).to_string()))
    }
}
