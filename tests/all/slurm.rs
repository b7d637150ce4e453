//! A real Slurm cluster on one machine: runs on it, runs that lose a node, and seeds as an array.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::binary::{Folder, SYNTHETIC, skipped};

/// Why there can be no cluster here; none where there can.
fn missing() -> Option<String> {
    for program in ["/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "/usr/bin/srun"]
    {
        if !Path::new(program).exists() {
            return Some(format!("there is no {program}: install slurm-wlm and munge"));
        }
    }
    let namespaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "ip", "link"];
    match Command::new("unshare").args(namespaces).output() {
        Ok(tried) if tried.status.success() => None,
        Ok(tried) => Some(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Runs a script of `tests/slurm` on four nodes, in a folder; none, with a word about it, where there
/// can be no cluster.
fn on_four_nodes(folder: &Folder, script: &str, arguments: &[&str]) -> Option<Output> {
    if let Some(why) = missing() {
        skipped(&why);
        return None;
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm");
    let ended = Command::new("timeout")
        .args(["--signal=KILL", "120", "bash"])
        .arg(scripts.join("cluster.sh"))
        .arg(folder.path("cluster"))
        .args(["4", "bash"])
        .arg(scripts.join(script))
        .arg(env!("CARGO_BIN_EXE_nashflock"))
        .args(arguments)
        .current_dir(folder.path("."))
        .output()
        .expect("bash runs");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {stderr}", ended.status);
    Some(ended)
}

fn summary(run: &Path) -> Value {
    let text = fs::read_to_string(run.join("summary.json")).expect("the run wrote a summary");
    serde_json::from_str(&text).expect("it is JSON")
}

#[test]
fn a_run_on_four_nodes_survives_the_death_of_one_and_no_bit_changes() {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", "requests = 600");
    let folder = Folder::with(&scenario);
    let out = folder.path("out").display().to_string();
    let Some(ended) = on_four_nodes(&folder, "lose-a-node.sh", &["scenario.toml", &out]) else {
        return;
    };
    let said = String::from_utf8_lossy(&ended.stderr);
    let summary = summary(&folder.path("out"));
    assert_eq!(summary["status"], "complete", "{said}");
    let alone = folder.summary("alone", &["--set", "load.rate_per_s=100000"]);
    assert_eq!(summary["state_hash"], alone["state_hash"]);
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    let outcomes = &summary["outcomes"];
    let answered = outcomes["ok"].as_u64().zip(outcomes["late"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(answered, Some(600), "{outcomes}");
    let membership = &summary["membership"];
    assert_eq!(membership["joined"], 4, "{membership}");
    let lost = membership["expired"].as_u64().zip(membership["dropped"].as_u64());
    assert_eq!(lost.map(|(expired, dropped)| expired + dropped), Some(1), "{membership}\n{said}");
    let alive =
        summary["nodes"].as_array().map(|nodes| nodes.iter().filter(|n| n["alive"] == true));
    assert_eq!(alive.map(Iterator::count), Some(3), "{}", summary["nodes"]);
}

#[test]
fn an_array_runs_a_scenario_with_its_indices_for_seeds() {
    let folder = Folder::with(SYNTHETIC);
    if on_four_nodes(&folder, "seeds.sh", &["scenario.toml"]).is_none() {
        return;
    }
    let runs = fs::read_dir(folder.path("runs")).expect("the runs are there");
    let mut runs: Vec<PathBuf> = runs.map(|run| run.expect("readable").path()).collect();
    runs.sort();
    let mut seeds = Vec::new();
    for run in runs {
        let summary = summary(&run);
        let seed = summary["seed"].as_u64().expect("a seed");
        let alone = folder.summary(&format!("alone-{seed}"), &["--seed", &seed.to_string()]);
        assert_eq!(summary["state_hash"], alone["state_hash"], "seed {seed}");
        assert_eq!(summary["membership"]["joined"], 2);
        seeds.push(seed);
    }
    seeds.sort_unstable();
    assert_eq!(seeds, [3, 5]);
}

#[test]
fn the_batch_script_is_what_bash_accepts_whatever_is_in_the_names() {
    let folder = Folder::with(SYNTHETIC);
    fs::rename(folder.path("scenario.toml"), folder.path("it's $(here).toml")).expect("renamed");
    let args = ["launch", "slurm", "it's $(here).toml", "--render", "--array", "1-20%4"];
    let sets = ["--tasks", "3", "--set", "game.top_k=2", "--time-min", "30"];
    let ended = folder.nashflock(&[&args[..], &sets].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for line in ["--nodes=3", "--ntasks=3", "--array=1-20%4", "--time=30", "--no-kill"] {
        assert!(ended.stdout.contains(&format!("#SBATCH {line}\n")), "{line}: {}", ended.stdout);
    }
    assert!(ended.stdout.contains("--set 'game.top_k=2' --nodes slurm"), "{}", ended.stdout);
    // Bash reads the file name back as it was, and runs nothing of it.
    let script = ended.stdout.replace("exec srun", "printf '%s\\n'").replace("set -euo", "set -eo");
    let said = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    let said = String::from_utf8(said.stdout).expect("UTF-8");
    let path = folder.path("it's $(here).toml");
    assert!(said.lines().any(|line| Path::new(line) == path), "{said}");
    let bad = folder.nashflock(&["launch", "slurm", "it's $(here).toml", "--array", "1;rm"]);
    assert_eq!(bad.code, Some(2), "{}", bad.stderr);
}
