//! Experts that are served from the codes of a quantized checkpoint.

use crate::binary::{Ended, Folder};
use serde_json::Value;
use std::path::Path;

const TEXT: [&str; 2] = ["--text", "text.txt"];

/// A scenario on books-moe-8e2k, quantized into `small`.
fn quantized() -> (Folder, Value) {
    let folder = Folder::with_checkpoint();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/models");
    std::os::unix::fs::symlink(models, folder.path("models")).expect("a link is made");
    let line = "quantize models/books-moe-8e2k --out small --budget 90.6% --rounding nearest \
                --calibration calibration.txt --windows 2 --json";
    let ended = folder.nashflock(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    (folder, ended.json())
}

const SET: [&str; 4] = ["--set", "source.checkpoint=small", "--set", "precision.budget=stored"];

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.json()
}

#[test]
fn workers_serve_the_codes_of_a_quantized_checkpoint() {
    let (folder, quantized) = quantized();
    let summary = folder.summary("here", &SET);
    let bytes = |summary: &Value| summary["memory"]["expert_bytes"].as_u64().expect("bytes");
    let whole = quantized["bytes"].as_u64().expect("bytes");
    assert!(bytes(&summary) < whole, "the experts are a part of the model: {summary}");
    // Three bits a weight, with scales; twice that would be another width.
    let weights = summary["memory"]["expert_bytes_f32"].as_u64().expect("bytes") / 4;
    let bits = 8.0 * bytes(&summary) as f64 / weights as f64;
    assert!((2.0..4.0).contains(&bits), "{bits} bits a weight");
    assert!(summary["precision"].is_null(), "nothing was allocated: {summary}");

    // The control with f32 arithmetic on the same codes: only activations differ.
    let quality = |key: &str| summary["quality"][key].as_f64().expect("a loss");
    let (served, exact) = (quality("loss_top_k"), quality("loss_f32"));
    assert!((served / exact - 1.0).abs() < 0.01, "{summary}");

    let local = [&SET[..], &["--set", "nodes.engine=local", "--set", "nodes.count=2"]].concat();
    let on_workers = folder.summary("workers", &local);
    assert_eq!(on_workers["state_hash"], summary["state_hash"]);
}

#[test]
fn eval_runs_experts_from_their_codes_when_asked() {
    let (folder, _) = quantized();
    let eval = |more: &[&str]| folder.nashflock(&[&["eval"], more, &TEXT, &["--json"]].concat());
    let loss = |ended: Ended| json(&ended)["loss"].as_f64().expect("a loss");
    let (stored, decoded) = (loss(eval(&["small", "--stored"])), loss(eval(&["small"])));
    assert!(stored.to_bits() != decoded.to_bits(), "activations of 8 bits are not those of f32");
    assert!((stored / decoded - 1.0).abs() < 0.01, "{stored} {decoded}");
}

#[test]
fn what_is_not_stored_in_codes_is_refused_before_anything_starts() {
    let folder = Folder::with_checkpoint();
    let ended = folder.nashflock(&["run", "scenario.toml", "--set", "precision.budget=stored"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stdout);
    assert!(ended.stderr.contains("not stored in codes"), "{}", ended.stderr);
    assert!(ended.stderr.contains("nashflock quantize"), "{}", ended.stderr);
    assert_eq!(folder.names(), ["calibration.txt", "scenario.toml", "text.txt"]);
}
