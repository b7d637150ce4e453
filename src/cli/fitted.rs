//! `nashflock fit`: the parameters of virtual nodes by runs that were observed, and the file that holds them.

use super::{Failure, Outcome, print, print_json, results_failure};
use crate::fidelity::{self, FidelityError, fitted_text, fitted_toml};
use crate::results::{Manifest, RunDir};
use agents::cluster::fit::{Estimate, Fitted, Residual, fit as fit_rounds};
use clap::Args;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use toml::Table;

#[derive(Args)]
pub(super) struct FitArgs {
    /// Directories of runs that were observed, `run --observe`
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File for the keys of `[virtual]`, which `run --virtual` and `calibrate` read
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Cores that the nodes share; 0 where each has its own [default: those of the machine for workers that the runs
    /// started, what the scenario says for virtual nodes, else 0]
    #[arg(long, value_name = "N")]
    shared_cores: Option<u32>,
    /// Print one JSON object: `rounds`, `service`, `ways`, `coordinator`, `residuals`
    #[arg(long)]
    json: bool,
}

pub(super) fn fit(args: &FitArgs) -> Outcome {
    let (mut rounds, mut cores) = (Vec::new(), Vec::new());
    for run in &args.runs {
        let dir = RunDir::open(run).map_err(results_failure)?;
        rounds.extend(fidelity::rounds(&dir).map_err(failure)?);
        cores.push(shared_cores(&dir)?);
    }
    let cores = args.shared_cores.map_or_else(|| alike(&cores, args), Ok)?;
    let fitted = fit_rounds(&rounds, cores).expect("a run without rounds was refused");
    if let Some(out) = &args.out {
        let runs: Vec<String> = args.runs.iter().map(|run| run.display().to_string()).collect();
        let comment = format!("Fitted to {}.\n{}", runs.join(", "), fitted_text(&fitted));
        fs::write(out, fitted_toml(&fitted, &comment)).map_err(|error| {
            Failure::Dependency(format!("cannot write {}: {error}", out.display()))
        })?;
    }
    if args.json { print_json(&as_json(&fitted)) } else { print(&fitted_text(&fitted)) }
}

/// Cores that the nodes of a run share.
fn shared_cores(dir: &RunDir) -> Result<u32, Failure> {
    let manifest: Manifest = dir.read_manifest().map_err(results_failure)?;
    dir.check_scenario(&manifest).map_err(results_failure)?;
    let file = dir.path().join("scenario.toml");
    let text = read(&file)?;
    let scenario: Table = parsed(&file, &text)?;
    let of = |section: &str, key: &str| scenario.get(section).and_then(|of| of.get(key)).cloned();
    let engine = of("nodes", "engine");
    Ok(match engine.as_ref().and_then(toml::Value::as_str) {
        Some("local") => manifest.machine.logical_cpus,
        Some("virtual") => {
            let cores = of("virtual", "shared_cores").and_then(|cores| cores.as_integer());
            cores.and_then(|cores| u32::try_from(cores).ok()).unwrap_or(0)
        }
        _ => 0,
    })
}

fn alike(cores: &[u32], args: &FitArgs) -> Result<u32, Failure> {
    match cores {
        [first, others @ ..] if others.iter().all(|other| other == first) => Ok(*first),
        _ => {
            let runs = args.runs.iter().zip(cores);
            let said: Vec<String> =
                runs.map(|(run, cores)| format!("{} {cores}", run.display())).collect();
            Err(Failure::BadInput(format!(
                "the nodes of these runs do not share the same number of cores ({}): fit them apart, or say \
                 `--shared-cores N`",
                said.join(", ")
            )))
        }
    }
}

/// The `--set` texts that the `[virtual]` of a fitted file stands for.
pub(super) fn sets(file: &Path) -> Result<Vec<String>, Failure> {
    section(file, "virtual")
}

/// The same of any of its sections.
pub(super) fn section(file: &Path, name: &str) -> Result<Vec<String>, Failure> {
    let text = read(file)?;
    let table = parsed(file, &text)?;
    let Some(keys) = table.get(name).and_then(toml::Value::as_table) else {
        return Err(Failure::BadInput(format!(
            "{} has no [{name}]: give a file that `nashflock fit --out` wrote",
            file.display()
        )));
    };
    Ok(keys.iter().map(|(key, value)| format!("virtual.{key}={value}")).collect())
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::BadInput(format!("cannot read {}: {error}", file.display())))
}

fn parsed(file: &Path, text: &str) -> Result<Table, Failure> {
    text.parse()
        .map_err(|error| Failure::BadInput(format!("{} is not TOML: {error}", file.display())))
}

pub(super) fn failure(error: FidelityError) -> Failure {
    match error {
        FidelityError::Results(error) => results_failure(error),
        error => Failure::bad_input(error),
    }
}

fn as_json(fitted: &Fitted) -> Value {
    let estimate = |Estimate { value, error }: Estimate| json!({"value": value, "error": error});
    let residual = |Residual { mean_ns, rms_ns, bias_ns }: Residual| json!({"mean_ns": mean_ns, "rms_ns": rms_ns, "bias_ns": bias_ns});
    let [setup, pair, weight_byte, pass_byte] = fitted.service.map(estimate);
    let [latency, message, byte] = fitted.ways.map(estimate);
    let [round, token, step, step_token] = fitted.coordinator.map(estimate);
    let [services, rounds, coordinator] = fitted.residuals.map(residual);
    json!({
        "rounds": fitted.rounds,
        "shared_cores": fitted.cores,
        "node_factors": fitted.node_factors,
        "service": {
            "setup_ns": setup, "pair_ns": pair, "weight_byte_ns": weight_byte, "pass_byte_ns": pass_byte,
        },
        "ways": {"latency_ns": latency, "message_ns": message, "byte_ns": byte},
        "coordinator": {"round_ns": round, "token_ns": token, "step_ns": step, "step_token_ns": step_token},
        "residuals": {"services": services, "rounds": rounds, "coordinator": coordinator},
    })
}
