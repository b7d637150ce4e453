//! Writes docs/overload.md: what is answered in time at twice the capacity and after it, by admission.
//!
//! `cargo bench --bench overload > docs/overload.md`
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod shared;

use nashflock::results::{RequestRow, Summary};
use shared::{Failure, runs};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const SCENARIO: &str = r#"schema_version = 1
name = "overload"
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
[load]
arrival = "poisson"
rate_per_s = 1000000.0
requests = 4000
tokens_per_request = 16
batch_requests_max = 8
batch_window_ms = 20
deadline_ms = 200
queue_target_ms = 40
queue_interval_ms = 100
"#;

const RULES: [&str; 3] = ["all", "deadline", "codel"];

/// Seconds and load of the pulse, in shares of the capacity.
const PULSE: [(u32, f64); 3] = [(2, 0.7), (4, 2.0), (4, 0.7)];

fn main() -> Result<(), Failure> {
    println!("{}", include_str!("overload.md"));
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("scenario.toml"), SCENARIO)?;
    let bench = Bench { folder: folder.path() };
    let capacity = 1e9 * 4000.0 / bench.run("capacity", &[])?.0.throughput.elapsed_ns as f64;
    bench.steady(capacity)?;
    bench.pulse(capacity)
}

struct Bench<'a> {
    folder: &'a Path,
}

impl Bench<'_> {
    fn steady(&self, capacity: f64) -> Result<(), Failure> {
        println!("## Steady\n");
        println!(
            "| offered, of {capacity:.0} requests/s | admission | in time/s | of peak | p99, ms | late | shed | timeout |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut peak: f64 = 0.0;
        let loads = [0.6, 0.7, 0.8, 0.9].map(|share| (share, "all"));
        for (share, rule) in loads.into_iter().chain(RULES.map(|rule| (2.0, rule))) {
            // About five seconds of arrivals.
            let requests = format!("load.requests={:.0}", 5.0 * share * capacity);
            let rate = format!("load.rate_per_s={:.1}", share * capacity);
            let (summary, _) = self.run(rule, &[&rate, &requests, &admission(rule)])?;
            let of = &summary.outcomes;
            let in_time = of.ok as f64 * 1e9 / summary.throughput.elapsed_ns as f64;
            if share < 1.0 {
                peak = peak.max(in_time);
            }
            let p99_ms = summary.latency_ns.p99.ok_or("nothing was answered")? as f64 / 1e6;
            let of_peak =
                if share < 1.0 { String::new() } else { format!("{:.2}", in_time / peak) };
            println!(
                "| {share:.1} | {rule} | {in_time:.0} | {of_peak} | {p99_ms:.0} | {} | {} | {} |",
                of.late, of.shed, of.timeout
            );
        }
        Ok(())
    }

    fn pulse(&self, capacity: f64) -> Result<(), Failure> {
        let mut times = String::from("time\n");
        let (mut from_s, mut requests) = (0.0, 0_u32);
        for (seconds, share) in PULSE {
            let gap_s = 1.0 / (share * capacity);
            let mut at_s = 0.0;
            while at_s < f64::from(seconds) {
                writeln!(times, "{:.9}", from_s + at_s)?;
                at_s += gap_s;
                requests += 1;
            }
            from_s += f64::from(seconds);
        }
        fs::write(self.folder.join("pulse.csv"), times)?;
        let (first, last) = (2.0, from_s - 3.0);
        println!("\n## Pulse\n");
        println!("| admission | in time before | in the pulse | after | longest wait after, ms |");
        println!("|---|---|---|---|---|");
        // A trace is stretched to a rate: this one keeps its own.
        let rate = f64::from(requests - 1) / from_s;
        let (rate, requests) =
            (format!("load.rate_per_s={rate:.6}"), format!("load.requests={requests}"));
        for rule in RULES {
            let trace = ["load.arrival=trace", "load.trace=pulse.csv", &rate, &requests];
            let (_, rows) = self.run(rule, &[&trace[..], &[&admission(rule)]].concat())?;
            let start = rows.iter().map(|row| row.intended_ns).min().ok_or("no requests")?;
            let at = |row: &RequestRow| (row.intended_ns - start) as f64 / 1e9;
            let within =
                |from: f64, to: f64| rows.iter().filter(move |row| (from..to).contains(&at(row)));
            let share = |from, to| {
                let ok = within(from, to).filter(|row| row.outcome == "ok").count();
                100.0 * ok as f64 / within(from, to).count().max(1) as f64
            };
            let wait = within(last, f64::MAX).map(|row| row.latency_ns).max().unwrap_or(0);
            println!(
                "| {rule} | {:.1} % | {:.1} % | {:.1} % | {:.0} |",
                share(0.0, first),
                share(first, last - 1.0),
                share(last, f64::MAX),
                wait as f64 / 1e6
            );
        }
        Ok(())
    }

    /// Runs the scenario in one process.
    fn run(&self, name: &str, set: &[&str]) -> Result<(Summary, Vec<RequestRow>), Failure> {
        let out = self.folder.join(name);
        runs::clear(&out)?;
        let status = runs::run(&self.folder.join("scenario.toml"), &out, set).status()?;
        let (dir, summary) = runs::ended(status, &out)?;
        Ok((summary, dir.read_table()?))
    }
}

fn admission(rule: &str) -> String {
    format!("load.admission={rule}")
}
