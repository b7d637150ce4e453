//! A batch script for Slurm.

use super::super::{Failure, Outcome, check, print};
use crate::scenario::Scenario;
use agents::game::Registries;
use clap::Args;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Args)]
pub(in super::super) struct SlurmArgs {
    /// Scenario file
    scenario: PathBuf,
    /// Override a key, as `game.top_k=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Tasks, one a node: the first coordinates and works, the others work [default: `nodes.count`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tasks: Option<u32>,
    /// Seeds as an array of jobs, each with its own run: `1-20`, `3,5`, or `1-100%4` for four at a time
    #[arg(long, value_name = "SEEDS")]
    array: Option<String>,
    /// Time limit, minutes
    #[arg(long, value_name = "MIN")]
    time_min: Option<u32>,
    /// Partition
    #[arg(long)]
    partition: Option<String>,
    /// Print the script and submit nothing
    #[arg(long)]
    render: bool,
}

pub(super) fn slurm(args: &SlurmArgs, registries: &Registries) -> Outcome {
    for (flag, value) in [("--array", &args.array), ("--partition", &args.partition)] {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_,%:.".contains(c);
        if let Some(value) = value.as_ref().filter(|value| !value.chars().all(plain)) {
            return Err(Failure::BadInput(format!(
                "{flag} \"{value}\": letters, digits and -_,%:."
            )));
        }
    }
    let scenario = check::load(&args.scenario, &args.sets, registries, false)?;
    let own = |error| Failure::Dependency(format!("cannot find this program: {error}"));
    let program = std::env::current_exe().map_err(own)?;
    let file = std::path::absolute(&args.scenario).unwrap_or_else(|_| args.scenario.clone());
    let script = script(args, &scenario, &program, &file)?;
    if args.render { print(&script) } else { submit(&script) }
}

fn script(
    args: &SlurmArgs,
    scenario: &Scenario,
    program: &Path,
    file: &Path,
) -> Result<String, Failure> {
    let path_word = |path: &Path| {
        let text = path.to_str().filter(|text| !text.contains(['\n', '\0']));
        let text = text.ok_or_else(|| {
            Failure::BadInput(format!("{}: a batch script cannot name this path", path.display()))
        })?;
        Ok::<_, Failure>(shell_word(text))
    };
    let (tasks, name) = (args.tasks.unwrap_or(scenario.nodes.count), &scenario.name);
    let mut lines = vec![
        "#!/bin/bash".to_owned(),
        format!("#SBATCH --job-name={name}"),
        format!("#SBATCH --nodes={tasks}"),
        format!("#SBATCH --ntasks={tasks}"),
        "#SBATCH --ntasks-per-node=1".to_owned(),
        format!("#SBATCH --cpus-per-task={}", scenario.nodes.threads),
        "# Survivors go on when a node dies.".to_owned(),
        "#SBATCH --no-kill".to_owned(),
        "# Time to finish what is in flight and to write the results.".to_owned(),
        "#SBATCH --signal=TERM@60".to_owned(),
    ];
    let log = if args.array.is_some() { "%x-%A_%a.log" } else { "%x-%j.log" };
    lines.push(format!("#SBATCH --output={log}"));
    lines.extend(args.array.as_ref().map(|array| format!("#SBATCH --array={array}")));
    lines.extend(args.time_min.map(|minutes| format!("#SBATCH --time={minutes}")));
    lines.extend(args.partition.as_ref().map(|name| format!("#SBATCH --partition={name}")));
    let sets: String = args.sets.iter().map(|set| format!(" --set {}", shell_word(set))).collect();
    let (program, file) = (path_word(program)?, path_word(file)?);
    lines.extend([
        "set -euo pipefail".to_owned(),
        "# Workers show it to the coordinator; the environment carries it to every task."
            .to_owned(),
        "NASHFLOCK_RUN_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')".to_owned(),
        "export NASHFLOCK_RUN_TOKEN".to_owned(),
        "# An element of an array takes its index for its seed.".to_owned(),
        format!(
            "exec srun --no-kill --kill-on-bad-exit=0 --wait=0 \\\n    {program} run {file}{sets} \
             --nodes slurm --out {}\"-$SLURM_JOB_ID\"",
            shell_word(&format!("runs/{name}"))
        ),
    ]);
    Ok(lines.join("\n") + "\n")
}

/// A word of a shell, whatever it holds.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn submit(script: &str) -> Outcome {
    let failed = |error: std::io::Error| {
        Failure::Dependency(format!(
            "cannot run sbatch: {error}; print the script with --render and submit it where Slurm is"
        ))
    };
    let mut sbatch = Command::new("sbatch")
        .arg("--parsable")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut input = sbatch.stdin.take().expect("it is piped above");
    // An sbatch that refuses before it has read all says so by its exit code.
    let _ = input.write_all(script.as_bytes());
    drop(input);
    let ended = sbatch.wait_with_output().map_err(failed)?;
    if !ended.status.success() {
        return Err(Failure::Dependency(format!("sbatch refused the job ({})", ended.status)));
    }
    print(&format!("submitted job {}", String::from_utf8_lossy(&ended.stdout).trim()))
}
