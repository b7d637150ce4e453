//! `nashflock quantize`, and what reads its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agents::quantize::Format;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::quantize::{QuantizeSettings, Rounding, quantize as quantize_model};
use serde_json::Value;

use crate::binary::Ended;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn nashflock(args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nashflock"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    Ended::from(command.output().expect("the binary runs"))
}

fn loss(checkpoint: &str) -> f64 {
    let text = "scenarios/text/murmuration.txt";
    let ended = nashflock(&["eval", checkpoint, "--text", text, "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.json()["loss"].as_f64().expect("a loss")
}

/// Quantizes with four windows of calibration text.
fn quantize(model: &str, budget: &str, out: &Path, more: &[&str]) -> Ended {
    let out = out.to_str().expect("a plain path");
    let args = ["quantize", model, "--budget", budget, "--out", out, "--json"];
    let text = ["--calibration", "scenarios/text/calibration.txt", "--windows", "4"];
    nashflock(&[&args[..], &text, more].concat())
}

const DENSE: &str = "scenarios/models/books-dense";

#[test]
fn a_quantized_checkpoint_fits_its_budget_and_every_command_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("quantized");
    let ended = quantize(DENSE, "85%", &out, &["--text", "scenarios/text/murmuration.txt"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let json = ended.json();
    let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("{key}: {json}"));
    assert!((0.85..0.87).contains(&number("saving")), "{json}");
    // The file has a header besides, with a hash a tensor.
    let stored = fs::metadata(out.join("model.safetensors")).expect("written").len();
    assert!((0.0..8192.0).contains(&(stored as f64 - number("bytes"))), "{stored}: {json}");
    let at_most = |key: &str| json["evaluation"][key].as_f64().expect("a number");
    let own = loss(out.to_str().expect("a plain path"));
    assert!((own - at_most("loss")).abs() < 1e-4, "the file holds what was scored: {own}");
    assert!((at_most("loss_f32") - loss(DENSE)).abs() < 1e-4, "{json}");
    let rise = own / loss(DENSE) - 1.0;
    assert!((-0.002..0.02).contains(&rise), "{rise}: {json}");

    let again = folder.path().join("again");
    assert_eq!(quantize(DENSE, "85%", &again, &[]).code, Some(0));
    let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).expect("written");
    assert!(bytes(&out) == bytes(&again), "a second run writes the same bytes");

    // The control: as many bits, each group rounded by itself.
    let more = ["--rounding", "nearest", "--text", "scenarios/text/murmuration.txt"];
    let nearest = quantize(DENSE, "85%", &folder.path().join("nearest"), &more).json();
    assert_eq!(nearest["bytes"], json["bytes"]);
    let kl = |json: &Value| json["evaluation"]["kl_to_f32"].as_f64().expect("a number");
    assert!(kl(&json) < 0.8 * kl(&nearest), "{json} {nearest}");

    // Twice the bytes lose less, by the loss and by the expected divergence.
    let larger = quantize(DENSE, "74%", &folder.path().join("larger"), &[]);
    let larger = larger.json();
    let divergence = |json: &Value| json["expected_divergence"].as_f64().expect("a number");
    assert!(divergence(&larger) < 0.5 * divergence(&json), "{larger} {json}");
    assert!(divergence(&json) >= json["dual_bound"].as_f64().expect("a number"), "{json}");
}

#[test]
fn a_flipped_bit_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("quantized");
    assert_eq!(quantize(DENSE, "74%", &out, &[]).code, Some(0));
    let file = out.join("model.safetensors");
    let good = fs::read(&file).expect("written");
    let header = u64::from_le_bytes(*good.first_chunk().expect("a header"));
    let start = 8 + usize::try_from(header).expect("small");
    let text = ["--text", "scenarios/text/murmuration.txt"];
    // In the first and last bytes of the weights, within, and in the stated hashes.
    for at in [start, start + 30, (start + good.len()) / 2, good.len() - 1, start / 2] {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&file, &bytes).expect("writable");
        let args = [&["eval", out.to_str().expect("a plain path")][..], &text].concat();
        let ended = nashflock(&args);
        assert_eq!(ended.code, Some(2), "byte {at}: {}", ended.stdout);
    }
}

#[test]
fn what_cannot_be_quantized_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    for (what, model, budget, more, words) in [
        ("a budget", DENSE, "99%", &[][..], "too small"),
        ("formats", DENSE, "85%", &["--formats", "9:64"], "write bits from 1 to 8"),
        ("a group", DENSE, "85%", &["--formats", "4:512"], "1 to 256 weights a scale"),
        ("no model", "nosuch", "85%", &[], "nosuch"),
    ] {
        let ended = quantize(model, budget, &out, more);
        assert_eq!(ended.code, Some(2), "{what}: {} {}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(words), "{what}: {}", ended.stderr);
        assert!(!out.exists(), "{what} left something behind");
    }
    fs::create_dir(&out).expect("a folder");
    fs::write(out.join("mine"), "kept").expect("writable");
    let ended = quantize(DENSE, "85%", &out, &[]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("is not empty: name a new folder"), "{}", ended.stderr);
}

#[test]
fn a_family_with_parts_that_have_no_quantizer_is_refused() {
    for (model, words) in [
        ("qwen2_moe", "attention biases"),
        ("deepseek_v2", "latent attention"),
        ("mixtral.gguf", "GGUF"),
    ] {
        let path = repository("tests/oracles/tiny").join(model);
        let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
        let settings = QuantizeSettings {
            budget_bytes: 1 << 30,
            formats: vec![Format { bits: 4, group: 64 }],
            rounding: Rounding::Gptq,
            calibration: vec![0; 1000],
            windows: 1,
        };
        let refused = quantize_model(&checkpoint, &settings, |_| ()).expect_err(model).to_string();
        assert!(refused.contains(words) && refused.contains("does not handle"), "{refused}");
    }
}

/// The whole held-out text, with calibration on the training text alone.
#[test]
fn held_out_loss_of_quantized_64_experts_stays_within_its_bar() {
    let texts = ["../shared/data/books/train.txt", "../shared/data/books/valid.txt"];
    if std::env::var_os("RUN_SLOW").is_none() {
        eprintln!("skipped: minutes of work; set RUN_SLOW=1");
        return;
    }
    if texts.iter().any(|text| !repository(text).exists()) {
        eprintln!("skipped: {texts:?} are not there");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("quantized");
    let model = "scenarios/models/books-moe-64e8k";
    let more = ["--text", texts[1], "--calibration", texts[0], "--windows", "128"];
    let args = ["quantize", model, "--budget", "90.6%", "--json", "--out"];
    let ended = nashflock(&[&args[..], &[out.to_str().expect("a plain path")], &more].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let json = ended.json();
    let of = |key: &str| json["evaluation"][key].as_f64().expect("a number");
    let rise = of("loss") / of("loss_f32") - 1.0;
    eprintln!("saved {}, loss {:+.3} %", json["saving"], 100.0 * rise);
    assert!(json["saving"].as_f64() >= Some(0.906) && rise <= 0.006, "{json}");
}
