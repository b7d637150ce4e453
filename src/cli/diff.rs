//! `nashflock diff`: what two runs, or two sweeps, were told otherwise, and what that moved.

use super::{Failure, Outcome, print, print_json, results_failure, sweep_files};
use crate::results::compare::{Difference, differences};
use crate::results::{ResultsError, RunDir};
use crate::sweep::SweepDir;
use clap::Args;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct DiffArgs {
    /// Directory of a run or a sweep
    a: PathBuf,
    /// Another of its kind, to hold against it
    b: PathBuf,
    /// Of sweeps: a key of the summary to compare, as `convergence.relative_gap`; may be repeated [default:
    /// those that the sweeps show]
    #[arg(long = "figure", value_name = "KEY")]
    figures: Vec<String>,
    /// Print one JSON object: `same_state`, `scenario`, `origin`, `figures`; of sweeps `scenario`, `points`,
    /// `points_alone`, `figures`
    #[arg(long)]
    json: bool,
}

/// One run as what is compared.
struct Side {
    scenario: Value,
    /// What the binary was built from, where it ran and what it read.
    origin: Value,
    figures: Value,
    state_hash: String,
}

pub(super) fn diff(args: &DiffArgs) -> Outcome {
    if SweepDir::is_at(&args.a) || SweepDir::is_at(&args.b) {
        return sweep_files::diff((&args.a, &args.b), &args.figures, args.json);
    }
    let (a, b) = (side(&args.a)?, side(&args.b)?);
    let scenario = differences(&a.scenario, &b.scenario);
    let origin = differences(&a.origin, &b.origin);
    let figures = differences(&a.figures, &b.figures);
    // A run that was killed before its end has none.
    let same_state = !a.state_hash.is_empty() && a.state_hash == b.state_hash;
    if args.json {
        return print_json(&json!({
            "same_state": same_state,
            "scenario": scenario,
            "origin": origin,
            "figures": figures,
        }));
    }
    let verdict = if same_state { "the same state" } else { "other states" };
    let sections = [
        ("keys of the scenario", &scenario),
        ("of build, machine and inputs", &origin),
        ("figures", &figures),
    ];
    let text: Vec<String> = sections.iter().map(|(name, found)| section(name, found)).collect();
    print(&format!("{verdict}\n{}", text.concat()))
}

pub(super) fn section(name: &str, found: &[Difference]) -> String {
    if found.is_empty() {
        return format!("no {name} differ\n");
    }
    let text = |value: &Value| if value.is_null() { "–".to_owned() } else { value.to_string() };
    let rows: Vec<[String; 4]> = found
        .iter()
        .map(|of| {
            let moved = of.relative.map_or_else(String::new, |by| format!("{:+.2} %", 100.0 * by));
            [of.key.clone(), text(&of.a), text(&of.b), moved]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (first, second, third) =
        (width(0).unwrap_or(0), width(1).unwrap_or(0), width(2).unwrap_or(0));
    let line = |[key, a, b, moved]: &[String; 4]| {
        let line = format!("  {key:<first$}  {a:>second$}  {b:>third$}  {moved}");
        format!("{}\n", line.trim_end())
    };
    format!("{name}:\n{}", rows.iter().map(line).collect::<String>())
}

fn side(path: &Path) -> Result<Side, Failure> {
    let dir = RunDir::open(path).map_err(results_failure)?;
    let manifest = dir.read_manifest().map_err(results_failure)?;
    let file = path.join("scenario.toml");
    let text = fs::read_to_string(&file)
        .map_err(|source| results_failure(ResultsError::Read { file: file.clone(), source }))?;
    let scenario: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        results_failure(ResultsError::Malformed { file, reason: error.message().to_owned() })
    })?;
    let mut inputs = serde_json::Map::new();
    for record in &manifest.inputs {
        inputs.insert(record.path.clone(), json!(record.blake3));
    }
    let summary = dir.read_summary().map_err(results_failure)?;
    let state_hash = summary.state_hash.clone();
    let mut figures = json!(summary);
    if let Value::Object(map) = &mut figures {
        // Listed with the scenario, or words on what is null.
        for key in ["schema_version", "scenario", "seed", "null_reasons"] {
            map.remove(key);
        }
    }
    Ok(Side {
        scenario: json!(scenario),
        origin: json!({
            "source": manifest.source,
            "machine": manifest.machine,
            "inputs": inputs,
        }),
        figures,
        state_hash,
    })
}
