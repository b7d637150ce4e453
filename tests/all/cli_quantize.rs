//! `nashflock quantize`, and what reads its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agents::expert::{BitWidth, Expert};
use agents::precision::{Exact, PruneCriterion};
use agents::quantize::Format;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::eval::{Scored, evaluate};
use nashflock::model::experts::LocalExperts;
use nashflock::model::quantize::{Measured, Pruning, QuantizedModel, Rounding};
use nashflock::model::tokenizer::{Tokenizer, read_text};
use serde_json::Value;

use crate::binary::{Ended, skipped};
use crate::cli_ended_early::SmallDisk;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn nashflock(args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nashflock"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    Ended::from(command.output().expect("the binary runs"))
}

fn loss(checkpoint: &str) -> f64 {
    loss_on(checkpoint, "scenarios/text/murmuration.txt")
}

fn loss_on(checkpoint: &str, text: &str) -> f64 {
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
    let more = ["--rounding", "hqq", "--text", "scenarios/text/murmuration.txt"];
    let hqq = quantize(DENSE, "85%", &folder.path().join("hqq"), &more).json();
    assert_eq!(hqq["bytes"], json["bytes"]);
    // It knows as little of the inputs as the control.
    assert!((0.5..2.0).contains(&(kl(&hqq) / kl(&nearest))), "{hqq} {nearest}");

    // Twice the bytes lose less, by the loss and by the expected divergence.
    let larger = quantize(DENSE, "74%", &folder.path().join("larger"), &[]);
    let larger = larger.json();
    let divergence = |json: &Value| json["expected_divergence"].as_f64().expect("a number");
    assert!(divergence(&larger) < 0.5 * divergence(&json), "{larger} {json}");
    assert!(divergence(&json) >= json["dual_bound"].as_f64().expect("a number"), "{json}");
}

#[test]
fn losses_have_intervals_and_the_paired_one_is_the_narrower() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("quantized");
    let text = ["--text", "scenarios/text/murmuration.txt"];
    let json = quantize(DENSE, "85%", &out, &text).json();
    let number = |key: &str| json["evaluation"][key].as_f64().expect("a number");
    let (wide, narrow) = (number("loss_half_width_95"), number("loss_difference_half_width_95"));
    assert!(0.0 < narrow && narrow < 0.5 * wide && wide < 0.5, "{json}");
    let difference = number("loss") - number("loss_f32");
    assert!((number("loss_difference") - difference).abs() < 1e-9, "{json}");
    let args = [&["eval", out.to_str().expect("a plain path")][..], &text].concat();
    let own = nashflock(&[&args[..], &["--json"]].concat()).json();
    let half = own["loss_half_width_95"].as_f64().expect("a number");
    assert!((half - wide).abs() < 1e-4, "{half}: {json}");
    let table = nashflock(&args).stdout;
    assert!(table.contains(&format!(" ± {half:.4} nats a token")), "{table}");
}

#[test]
fn every_allocator_keeps_the_budget_and_prints_its_gap() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut costs = Vec::new();
    for allocator in ["exact", "hull", "flock", "local_search", "uniform:4"] {
        let out = folder.path().join(allocator);
        let ended = quantize(DENSE, "85%", &out, &["--allocator", allocator]);
        assert_eq!(ended.code, Some(0), "{allocator}: {}", ended.stderr);
        let json = ended.json();
        assert_eq!(json["allocator"], allocator);
        let number = |key: &str| json[key].as_f64().expect("a number");
        assert!(
            number("bytes") <= 0.15 * number("bytes_f32") && number("gap_to_exact") >= 0.0,
            "{json}"
        );
        costs.push((number("expected_divergence"), number("gap_to_exact")));
        if allocator == "uniform:4" {
            for format in json["formats"].as_array().expect("a list") {
                assert_eq!(format["matrices"] != 0, format["bits"] == 4, "{json}");
            }
        }
    }
    let exact = costs[0];
    assert!(exact.1 == 0.0, "{costs:?}");
    for (cost, gap) in costs {
        assert!((gap - (cost - exact.0) / exact.0).abs() < 1e-9, "{cost} {gap}");
    }
}

/// A tiny checkpoint with room for the windows of calibration.
fn with_windows(name: &str) -> tempfile::TempDir {
    let (from, folder) = (repository("tests/oracles/tiny").join(name), tempfile::tempdir());
    let folder = folder.expect("a folder");
    fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors"))
        .expect("a copy");
    let config = fs::read(from.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["max_position_embeddings"] = 256.into();
    fs::write(folder.path().join("config.json"), config.to_string()).expect("it is written");
    folder
}

/// A checkpoint of 4 experts, quantized on the given tokens by a pool of `threads`.
fn tiny(ids: &[u32], rounding: Rounding, threads: usize) -> QuantizedModel {
    let folder = with_windows("mixtral");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let formats = [2, 4].map(|bits| Format { bits, group: 16 });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let measured = Measured::new(&checkpoint, &formats, ids, 8, None).expect("it is measured");
        let budget = (measured.bytes_at(0) + measured.bytes_at(1)) / 2;
        let allocated = measured.allocate(&Exact, budget).expect("it fits");
        measured.quantize(allocated, rounding).expect("it is quantized")
    })
}

#[test]
fn a_model_has_the_same_bits_at_any_number_of_threads() {
    let ids: Vec<u32> = (0_u32..2100).map(|at| at * at % 61).collect();
    for rounding in [Rounding::Gptq, Rounding::Search, Rounding::Hqq, Rounding::Nearest] {
        let (one, five) = (tiny(&ids, rounding, 1), tiny(&ids, rounding, 5));
        assert!(one.matrices == five.matrices, "{rounding:?}");
        assert_eq!(one.allocation, five.allocation, "{rounding:?}");
        let formats = one.matrices.values().map(|matrix| matrix.format().bits);
        assert!(formats.clone().min() < formats.max(), "widths are mixed");
    }
}

#[test]
fn without_a_text_the_model_writes_its_own_and_rounds_by_weighted_search() {
    let folder = tempfile::tempdir().expect("a folder");
    let quantize = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let out = out.to_str().expect("a plain path");
        let args = ["quantize", DENSE, "--budget", "85%", "--out", out, "--json", "--windows", "2"];
        let ended = nashflock(&[&args[..], more].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        (ended.json(), fs::read(Path::new(out).join("model.safetensors")).expect("weights"))
    };
    let scored = ["--text", "scenarios/text/murmuration.txt"];
    let (json, bytes) = quantize("one", &scored);
    assert_eq!(json["calibration"], "own");
    assert!(json["saving"].as_f64() >= Some(0.85), "{json}");
    let of = |key: &str| json["evaluation"][key].as_f64().expect("a number");
    assert!(of("loss") < of("loss_f32") + 0.1, "{json}");
    assert!(bytes == quantize("again", &["--rounding", "search"]).1, "the same text every time");
    assert!(bytes != quantize("other", &["--rounding", "nearest"]).1, "inputs are looked at");
}

#[test]
fn experts_that_saw_no_token_are_quantized_and_counted() {
    // One token over and over reaches two of the four experts of the first layer at most.
    let model = tiny(&[7; 600], Rounding::Gptq, 2);
    let unseen: Vec<_> = model.rarely_seen.iter().filter(|(.., tokens)| *tokens == 0).collect();
    assert!(
        unseen.iter().filter(|(layer, ..)| *layer == 0).count() >= 1,
        "{:?}",
        model.rarely_seen
    );
    assert_eq!(model.matrices.len(), tiny(&[3; 600], Rounding::Gptq, 2).matrices.len());
    for (part, matrix) in &model.matrices {
        assert!(matrix.weights().iter().all(|weight| weight.is_finite()), "{part:?}");
    }
}

#[test]
fn a_full_disk_ends_it_with_4_and_leaves_no_checkpoint() {
    // Room for the configuration, not for the weights.
    let Some(disk) = SmallDisk::mount(600 << 10) else {
        return skipped("this process may not mount a tmpfs");
    };
    let out = disk.0.path().join("out");
    let ended = quantize(DENSE, "85%", &out, &[]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("model.safetensors: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    let left: Vec<_> = fs::read_dir(&out).expect("it was made").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// By layer, what plain top-k on tiny text makes of every expert: tokens, and the sum of gate times
/// output norm; token by token, as the paper has it.
fn scores(checkpoint: &Checkpoint, ids: &[u32]) -> Vec<Vec<(f64, f64)>> {
    let config = &checkpoint.config;
    let (trunk, moe) = (checkpoint.trunk().expect("weights"), config.moe.expect("experts"));
    let all = LocalExperts::load(checkpoint, BitWidth::Full, 32).expect("weights");
    let mut pass = trunk.begin(ids, 256).expect("it fits");
    let layer = |layer: usize| {
        let mut scores = vec![(0.0, 0.0); moe.experts];
        let input = pass.up_to_router(layer).expect("every layer is routed");
        let output = all.forward(layer, input.hidden, input.router_logits).output;
        let mut gates = input.router_logits.to_vec();
        moe.routing.score(&mut gates, moe.experts);
        for (x, row) in input.hidden.chunks(config.width).zip(gates.chunks(moe.experts)) {
            let mut order: Vec<usize> = (0..moe.experts).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            let chosen = &order[..moe.top_k];
            let sum: f32 = chosen.iter().map(|expert| row[*expert]).sum();
            for expert in chosen {
                let w = checkpoint.expert(layer, *expert).expect("weights");
                let full = Expert::quantize(w.shape, &w.gate, &w.up, &w.down, BitWidth::Full, 32);
                let mut out = vec![0.0; config.width];
                full.forward(x, &mut out);
                let norm = out.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                let share = if moe.routing.normalise { sum } else { 1.0 };
                scores[*expert].0 += 1.0;
                scores[*expert].1 += f64::from(row[*expert] / share) * norm;
            }
        }
        pass.add_moe(layer, &output);
        scores
    };
    (0..config.layers).map(layer).collect()
}

#[test]
fn pruning_keeps_the_experts_of_the_best_scores() {
    let ids: Vec<u32> = (0_u32..512).map(|at| at * at % 61).collect();
    let mut kept_by = Vec::new();
    for name in ["olmoe", "qwen3_moe"] {
        let folder = with_windows(name);
        let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
        // Two windows, and the token after them.
        let calibration = [&ids[..], &[0]].concat();
        let scores = scores(&checkpoint, &ids);
        for criterion in [PruneCriterion::Reap, PruneCriterion::Frequency] {
            let pruning = Pruning { share: 0.5, criterion };
            let formats = [Format { bits: 8, group: 16 }];
            let measured = Measured::new(&checkpoint, &formats, &calibration, 2, Some(pruning));
            let measured = measured.expect("it is measured");
            let allocated = measured.allocate(&Exact, u64::MAX).expect("it fits");
            let model = measured.quantize(allocated, Rounding::Nearest).expect("it is quantized");
            let kept = model.kept.expect("some are pruned");
            let value = |(tokens, sum): (f64, f64)| match criterion {
                PruneCriterion::Reap => sum / tokens.max(1.0),
                PruneCriterion::Frequency => tokens,
            };
            for (layer, kept) in &kept {
                assert_eq!(kept.len(), 3);
                let of = |expert: usize| value(scores[*layer][expert]);
                let least = kept.iter().map(|expert| of(*expert)).fold(f64::INFINITY, f64::min);
                let gone = (0..6).filter(|expert| !kept.contains(expert)).map(of);
                assert!(gone.clone().all(|gone| gone <= least * (1.0 + 1e-5)), "{name} {scores:?}");
            }
            kept_by.push(kept);
        }
    }
    assert!(kept_by[0] != kept_by[1] || kept_by[2] != kept_by[3], "the criteria differ");
}

const MOE: &str = "scenarios/models/books-moe-8e2k";

#[test]
fn a_pruned_checkpoint_is_the_old_model_with_the_pruned_masked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, text) = (folder.path().join("pruned"), folder.path().join("text"));
    let whole = fs::read_to_string(repository("scenarios/text/murmuration.txt")).expect("a text");
    fs::write(&text, whole.chars().take(8000).collect::<String>()).expect("it is written");
    let path = text.to_str().expect("a plain path");
    let text = ["--text", path, "--windows", "2"];
    let args = [
        &["quantize", MOE, "--budget", "8bpw", "--formats", "8", "--prune", "0.25"][..],
        &["--calibration", "scenarios/text/calibration.txt", "--json", "--out"],
        &[out.to_str().expect("a plain path")],
        &text,
    ]
    .concat();
    let ended = nashflock(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let json = ended.json();
    // Three quarters of the experts, which are most of it, at about a quarter of f32.
    let bytes = json["bytes"].as_u64().expect("a number");
    assert!((0.78..0.82).contains(&json["saving"].as_f64().expect("a number")), "{json}");
    let stored = fs::metadata(out.join("model.safetensors")).expect("written").len();
    assert!((bytes..bytes + 16_384).contains(&stored), "{stored}: {json}");

    let pruned = Checkpoint::open(&out).expect("a checkpoint");
    let whole = Checkpoint::open(&repository(MOE)).expect("a checkpoint");
    let moe = whole.config.moe.expect("experts");
    assert_eq!(pruned.config.moe.expect("experts").experts, 6);
    let kept = |layer: usize| -> Vec<usize> {
        let kept = json["kept_experts"][layer.to_string()].as_array().expect("a list");
        let id = |id: &Value| usize::try_from(id.as_u64().expect("an id")).expect("a small one");
        kept.iter().map(id).collect()
    };
    // The old routers, the old numbers, and nothing where experts were.
    let mut trunk = pruned.trunk().expect("weights");
    let old = whole.trunk().expect("weights");
    let experts: Vec<Vec<_>> = (0..trunk.layers.len())
        .map(|layer| {
            trunk.layers[layer].feed_forward = old.layers[layer].feed_forward.clone();
            let mut experts: Vec<_> =
                (0..moe.experts).map(|at| whole.expert(layer, at).expect("weights")).collect();
            assert_eq!(kept(layer).len(), 6);
            for (new, old) in kept(layer).into_iter().enumerate() {
                experts[old] = pruned.expert(layer, new).expect("weights");
            }
            experts
        })
        .collect();
    let experts = LocalExperts::of(&experts, &vec![Vec::new(); experts.len()], Some(moe));
    let mut masked = |layer: usize, x: &[f32], logits: &[f32]| {
        let mut logits = logits.to_vec();
        for row in logits.chunks_mut(moe.experts) {
            let gone = (0..moe.experts).filter(|expert| !kept(layer).contains(expert));
            gone.for_each(|expert| row[expert] = f32::NEG_INFINITY);
        }
        experts.forward(layer, x, &logits)
    };
    let tokenizer = Tokenizer::open(&out).expect("a tokenizer");
    let text = read_text(Path::new(path)).expect("a text");
    let document = tokenizer.encode_document(&text).expect("tokens");
    let scored = Scored { trunk: &trunk, moe: &mut masked };
    let masked = evaluate(scored, None, &document, |_, _| ()).expect("it is scored").loss;
    let own = loss_on(out.to_str().expect("a plain path"), path);
    assert!((own - masked).abs() < 1e-5, "{own} {masked}");
    assert!((own - json["evaluation"]["loss"].as_f64().expect("a number")).abs() < 1e-5, "{json}");
    assert!(own > loss_on(MOE, path) + 0.005, "two of eight experts were of use");
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
        ("a whole layer", MOE, "85%", &["--prune", "1"], "a share from 0 to below 1"),
        ("a negative share", MOE, "85%", &["--prune=-0.1"], "a share from 0 to below 1"),
        ("no share", MOE, "85%", &["--prune", "NaN"], "a share from 0 to below 1"),
        ("too few experts", MOE, "85%", &["--prune", "0.9"], "leaves 1 of 8 experts a layer"),
        ("no experts", DENSE, "85%", &["--prune", "0.5"], "no experts to prune"),
        ("an allocator", DENSE, "85%", &["--allocator", "best"], "local_search, uniform:N"),
        ("no such width", DENSE, "85%", &["--allocator", "uniform:5"], "no option has 5 bits"),
        ("a width too large", DENSE, "85%", &["--allocator", "uniform:8"], "choose fewer bits"),
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

/// The whole held-out text, with calibration on the training text alone.
#[test]
fn held_out_loss_of_quantized_64_experts_stays_within_its_bar() {
    let texts = ["../shared/data/books/train.txt", "../shared/data/books/valid.txt"];
    if std::env::var_os("RUN_SLOW").is_none() {
        skipped("minutes of work; set RUN_SLOW=1");
        return;
    }
    if texts.iter().any(|text| !repository(text).exists()) {
        skipped(&format!("{texts:?} are not there"));
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
