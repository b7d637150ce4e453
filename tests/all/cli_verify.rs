//! `nashflock verify`, `replay` and `diff`: what a run directory says can be held against a repetition.

use std::fs;
use std::path::Path;

use nashflock::results::{FileRecord, Manifest, RoundRow, RunDir};

use crate::binary::{Ended, Folder, SYNTHETIC, skipped};

fn manifest(folder: &Folder, out: &str) -> Manifest {
    RunDir::open(&folder.path(out)).expect("a run directory").read_manifest().expect("readable")
}

/// The manifest's record of a file by the end of its path.
fn record<'a>(records: &'a [FileRecord], end: &str) -> &'a FileRecord {
    let found = records.iter().find(|record| record.path.ends_with(end));
    found.unwrap_or_else(|| panic!("{end} is not in {records:?}"))
}

fn refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    words
        .iter()
        .for_each(|words| assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr));
}

#[test]
fn a_run_on_workers_is_verified_in_one_process() {
    let folder = Folder::with(SYNTHETIC);
    folder.summary("out", &["--nodes", "local:2", "--set", "nodes.replicas=2"]);
    let ended = folder.nashflock(&["verify", "out", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said = ended.json();
    assert_eq!(said["verified"], true, "{said}");
    assert_eq!(said["differences"].as_array().map(Vec::len), Some(0), "{said}");
    assert_eq!(said["state_hash"].as_str().map(str::len), Some(64));
    let text = folder.nashflock(&["verify", "out"]);
    assert!(text.stdout.starts_with("verified: 12 rounds and 24 requests"), "{}", text.stdout);
}

#[test]
fn texts_and_answers_are_verified_too() {
    let folder = Folder::with_checkpoint();
    folder.summary("read", &[]);
    let sets = [
        "load.generation.lengths=fixed",
        "load.generation.prompt_tokens=9",
        "load.generation.generated_tokens=7",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    folder.summary("decoded", &sets);
    for out in ["read", "decoded"] {
        let ended = folder.nashflock(&["verify", out]);
        assert_eq!(ended.code, Some(0), "{out}: {}", ended.stderr);
    }
}

#[test]
fn the_manifest_lists_what_a_run_read_and_wrote_and_verify_says_what_has_changed() {
    let folder = Folder::with_checkpoint();
    folder.summary("out", &[]);
    let Manifest { inputs, outputs, .. } = manifest(&folder, "out");
    for (path, records) in [
        (folder.path("text.txt"), &inputs),
        (folder.path("calibration.txt"), &inputs),
        (folder.path("out/summary.json"), &outputs),
        (folder.path("out/hist/requests.hlog"), &outputs),
    ] {
        let bytes = fs::read(&path).expect("readable");
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let listed = record(records, &name);
        assert_eq!(listed.bytes, bytes.len() as u64, "{name}");
        assert_eq!(listed.blake3, blake3::hash(&bytes).to_hex().as_str(), "{name}");
    }
    for name in ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"] {
        assert!(record(&inputs, name).bytes > 100, "{name}");
    }
    let mut written: Vec<&str> = outputs.iter().map(|record| record.path.as_str()).collect();
    written.push("manifest.json");
    written.sort_unstable();
    let all = crate::cli_run::names_under(&folder.path("out"));
    assert_eq!(written, all, "every file but the manifest itself");

    let text = fs::read_to_string(folder.path("text.txt")).expect("readable");
    fs::write(folder.path("text.txt"), text.replacen('e', "a", 1)).expect("writable");
    let changed = folder.nashflock(&["verify", "out"]);
    refused(&changed, 3, &["not played again", "text.txt: as long as before, with other bytes"]);
    fs::write(folder.path("text.txt"), &text[..text.len() - 1]).expect("writable");
    refused(&folder.nashflock(&["verify", "out"]), 3, &["text.txt: ", "bytes, and it had"]);
    fs::remove_file(folder.path("text.txt")).expect("it is there");
    refused(&folder.nashflock(&["verify", "out"]), 3, &["text.txt: it is gone"]);
    fs::write(folder.path("text.txt"), &text).expect("writable");
    let ended = folder.nashflock(&["verify", "out"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// A run whose files say something else than it played: the manifest's list is brought in line, as whoever
/// wants to be believed would.
fn forged(folder: &Folder, file: &str, from: &str, to: &str) {
    let path = folder.path("out").join(file);
    let text = fs::read_to_string(&path).expect("readable");
    assert!(text.contains(from), "{file} has no {from}");
    let text = text.replacen(from, to, 1);
    fs::write(&path, &text).expect("writable");
    let mut all = manifest(folder, "out");
    let listed = all.outputs.iter_mut().find(|record| record.path == file).expect("it is listed");
    listed.bytes = text.len() as u64;
    listed.blake3 = blake3::hash(text.as_bytes()).to_hex().to_string();
    let text = serde_json::to_string(&all).expect("plain data");
    fs::write(folder.path("out/manifest.json"), text).expect("writable");
}

#[test]
fn figures_that_a_repetition_does_not_come_to_are_named_with_3() {
    let folder = Folder::with(SYNTHETIC);
    let summary = folder.summary("out", &[]);
    let hash = summary["state_hash"].as_str().expect("text");
    let other = format!("{}{}", if hash.starts_with('0') { '1' } else { '0' }, &hash[1..]);
    forged(&folder, "summary.json", hash, &other);
    let words = [&format!("state_hash: \"{other}\" in the run, \"{hash}\" again")[..]];
    refused(&folder.nashflock(&["verify", "out"]), 3, &words);
    forged(&folder, "summary.json", &other, hash);
    let ended = folder.nashflock(&["verify", "out"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let pairs = format!("\"dispatched\": {}", summary["pairs"]["dispatched"]);
    forged(&folder, "summary.json", &pairs, "\"dispatched\": 7");
    let ended = folder.nashflock(&["verify", "out", "--json"]);
    assert_eq!(ended.json()["differences"][0]["key"], "pairs.dispatched", "{}", ended.stdout);
    // Without bringing the list in line the file itself is named.
    fs::write(folder.path("out/layers.json"), "{}").expect("writable");
    refused(&folder.nashflock(&["verify", "out"]), 3, &["layers.json: 2 bytes, and it had"]);
}

#[test]
fn what_no_repetition_can_be_held_against_is_refused_with_2() {
    let folder = Folder::with(SYNTHETIC);
    folder.summary("out", &["--set", "load.admission=codel"]);
    refused(&folder.nashflock(&["verify", "out"]), 2, &["depends on the machine's speed"]);
    let text = fs::read_to_string(folder.path("out/manifest.json")).expect("readable");
    let killed = text.replacen("\"exit_code\": 0", "\"exit_code\": null", 1);
    fs::write(folder.path("out/manifest.json"), killed).expect("writable");
    refused(&folder.nashflock(&["verify", "out"]), 2, &["is not complete", "nashflock resume out"]);
    refused(&folder.nashflock(&["verify", "nothing"]), 2, &["is this a run directory?"]);
}

#[test]
fn replay_plays_it_again_and_prints_a_command_that_does_the_same() {
    let folder = Folder::with(SYNTHETIC);
    let sets = ["--set", "game.top_k=4", "--seed", "99"];
    folder.summary("first run", &sets);
    let ended = folder.nashflock(&["replay", "first run", "--out", "second", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let line = ended.stderr.lines().next().expect("the command");
    assert_eq!(line, "nashflock run 'first run/scenario.toml' --out second");
    let state = |out: &str| {
        let dir = RunDir::open(&folder.path(out)).expect("a run directory");
        let rounds: Vec<RoundRow> = dir.read_table().expect("readable");
        (dir.read_summary().expect("readable").state_hash, rounds.len())
    };
    assert_eq!(state("second"), state("first run"));
    // The line itself, in a shell that knows the binary by that name.
    let bin = Path::new(env!("CARGO_BIN_EXE_nashflock")).parent().expect("a folder");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line.replace("second", "third")]).current_dir(folder.path("."));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
    shell.env("PATH", std::env::join_paths(dirs).expect("plain paths"));
    let Ok(output) = shell.output() else { return skipped("no shell") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(state("third"), state("first run"));

    let scenario = folder.path("second/scenario.toml");
    let text = fs::read_to_string(&scenario).expect("readable");
    fs::write(&scenario, text.replace("top_k = 4", "top_k = 2")).expect("writable");
    refused(
        &folder.nashflock(&["replay", "second"]),
        2,
        &["is not the scenario that the run was started with"],
    );
}

#[test]
fn diff_lists_the_keys_that_differ_and_the_figures_that_moved() {
    let folder = Folder::with(SYNTHETIC);
    folder.summary("a", &[]);
    folder.summary("b", &["--set", "game.top_k=4"]);
    folder.summary("again", &[]);
    let said = folder.nashflock(&["diff", "a", "b", "--json"]).json();
    assert_eq!(said["same_state"], false);
    let scenario = said["scenario"].as_array().expect("a list");
    assert_eq!(scenario.len(), 1, "{scenario:?}");
    assert_eq!(scenario[0]["key"], "game.top_k");
    assert_eq!((&scenario[0]["a"], &scenario[0]["b"]), (&3.into(), &4.into()));
    let figures = said["figures"].as_array().expect("a list");
    let pairs = figures.iter().find(|of| of["key"] == "pairs.dispatched").expect("it moved");
    assert!((pairs["relative"].as_f64().expect("numbers") - 1.0 / 3.0).abs() < 1e-12, "{pairs}");
    assert_eq!(said["origin"].as_array().map(Vec::len), Some(0), "one build and machine: {said}");

    let same = folder.nashflock(&["diff", "a", "again"]);
    assert_eq!(same.code, Some(0), "{}", same.stderr);
    assert!(
        same.stdout.starts_with("the same state\nno keys of the scenario differ\n"),
        "{}",
        same.stdout
    );
    assert!(!same.stdout.contains("convergence.epsilon_nash"), "{}", same.stdout);
    refused(&folder.nashflock(&["diff", "a", "nothing"]), 2, &["is this a run directory?"]);
}
