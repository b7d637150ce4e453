//! The forward pass against oracles that another library computed in f64, and broken checkpoints
//! against the messages they deserve.

use crate::binary::skipped;
use agents::expert::BitWidth;
use agents::linear::Weights;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::eval::{BATCH_WINDOWS, Evaluation, Scored, evaluate};
use nashflock::model::experts::{LocalExperts, MoeOutput};
use nashflock::model::tokenizer::{Document, Tokenizer, read_text};
use nashflock::model::trunk::{Pass, Trunk};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MODELS: [&str; 3] = ["books-dense", "books-moe-8e2k", "books-moe-64e8k"];

/// Tokens of an oracle's windows.
const WINDOW: usize = 128;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model_directory(model: &str) -> PathBuf {
    root().join("scenarios/models").join(model)
}

struct Model {
    trunk: Trunk,
    experts: LocalExperts,
}

fn load(model: &str) -> Model {
    let checkpoint = Checkpoint::open(&model_directory(model)).expect("shipped checkpoint");
    Model {
        trunk: checkpoint.trunk().expect("finite weights"),
        experts: LocalExperts::load(&checkpoint, BitWidth::Full, 32).expect("finite weights"),
    }
}

impl Model {
    /// Runs all layers; `look` sees the input, router logits and output of every routed one.
    fn run(
        &self,
        ids: &[u32],
        window: usize,
        mut look: impl FnMut(usize, &[f32], &[f32], &[f32]),
    ) -> Pass<'_> {
        let mut pass = self.trunk.begin(ids, window).expect("ids of this model");
        for layer in 0..self.trunk.layers.len() {
            let Some(input) = pass.up_to_router(layer) else { continue };
            let MoeOutput { output, .. } =
                self.experts.forward(layer, input.hidden, input.router_logits);
            look(layer, input.hidden, input.router_logits, &output);
            pass.add_moe(layer, &output);
        }
        pass
    }

    /// What runs the routed layers.
    fn moe(&self) -> impl FnMut(usize, &[f32], &[f32]) -> MoeOutput {
        |layer, x, router_logits| self.experts.forward(layer, x, router_logits)
    }

    fn score(&self, document: &Document, progress: impl FnMut(usize, usize)) -> Evaluation {
        let mut moe = self.moe();
        let scored = Scored { trunk: &self.trunk, moe: &mut moe };
        evaluate(scored, None, document, progress).expect("a text of this model")
    }
}

/// The tensors of an oracle: ids, and f32 values by name.
fn oracle(model: &str) -> (Vec<u32>, BTreeMap<String, Vec<f32>>) {
    let path = root().join(format!("tests/oracles/{model}-oracle.safetensors"));
    let bytes = std::fs::read(path).expect("shipped oracle");
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    let words = |view: &TensorView<'_>| -> Vec<[u8; 4]> { view.data().as_chunks().0.to_vec() };
    let ids = words(&tensors.tensor("input_ids").expect("ids"));
    let values = tensors
        .iter()
        .filter(|(name, _)| *name != "input_ids")
        .map(|(name, view)| {
            let values = words(&view).into_iter().map(f32::from_le_bytes).collect();
            (name.to_owned(), values)
        })
        .collect();
    (ids.into_iter().map(u32::from_le_bytes).collect(), values)
}

fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{what}: largest error {error:e}");
    // A NaN is not within any tolerance, which `<=` sees and `max` would not.
    assert!(got.iter().all(|x| x.is_finite()) && error <= tolerance, "{what}: error {error}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn logits_routers_and_experts_agree_with_the_oracles() {
    for name in MODELS {
        let (ids, oracle) = oracle(name);
        let model = load(name);
        let mut routed = 0;
        let pass = model.run(&ids, WINDOW, |layer, input, router_logits, output| {
            routed += 1;
            for (part, got) in
                [("moe_in", input), ("router_logits", router_logits), ("moe_out", output)]
            {
                let key = format!("layers.{layer}.{part}");
                assert_close(&format!("{name} {key}"), got, &oracle[&key], 1e-4);
            }
        });
        assert_close(&format!("{name} logits"), &pass.logits(), &oracle["logits"], 1e-3);
        assert_eq!(oracle.len(), 1 + 3 * routed, "every tensor of the oracle was compared");
    }
}

#[test]
fn losses_are_those_of_the_logits() {
    for name in MODELS {
        let (ids, oracle) = oracle(name);
        let targets: Vec<u32> = ids[1..].iter().chain(&ids[..1]).copied().collect();
        let losses = load(name).run(&ids, WINDOW, |_, _, _, _| {}).losses(&targets);
        let rows = oracle["logits"].chunks_exact(1000).zip(&targets);
        for (loss, (row, target)) in losses.iter().zip(rows) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let exact = sum.ln() - f64::from(row[*target as usize]);
            assert!((loss - exact).abs() < 1e-3, "{name}: {loss} {exact}");
        }
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    for name in MODELS {
        let (ids, _) = oracle(name);
        let model = load(name);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| {
                let pass = model.run(&ids, WINDOW, |_, _, _, _| {});
                (bits(&pass.logits()), pass.losses(&ids))
            })
        };
        assert!(run(1) == run(2), "{name}");
    }
}

#[test]
fn a_window_does_not_depend_on_the_windows_beside_it() {
    for name in MODELS {
        let (ids, _) = oracle(name);
        let model = load(name);
        let all = bits(&model.run(&ids, WINDOW, |_, _, _, _| {}).logits());
        let vocab = model.trunk.config.vocab;
        for (window, ids) in ids.chunks(WINDOW).enumerate() {
            let alone = bits(&model.run(ids, WINDOW, |_, _, _, _| {}).logits());
            let at = window * WINDOW * vocab;
            assert!(alone == all[at..at + WINDOW * vocab], "{name}: window {window}");
        }
    }
}

#[test]
fn shared_key_heads_are_repeated_ones() {
    let mut shared = load("books-dense");
    let mut repeated = load("books-dense");
    (shared.trunk.config.kv_heads, repeated.trunk.config.kv_heads) = (2, 8);
    let width = shared.trunk.config.width;
    let head = shared.trunk.config.head_dim * width;
    for (two, eight) in shared.trunk.layers.iter_mut().zip(&mut repeated.trunk.layers) {
        for (two, eight) in [(&mut two.key, &mut eight.key), (&mut two.value, &mut eight.value)] {
            let rows = two.rows();
            let (first, second) = (&rows[..head], &rows[head..2 * head]);
            *two = Weights::from_rows(&rows[..2 * head], width);
            *eight = Weights::from_rows(&[first.repeat(4), second.repeat(4)].concat(), width);
        }
    }
    let (ids, _) = oracle("books-dense");
    let logits = |model: &Model| model.run(&ids, WINDOW, |_, _, _, _| {}).logits();
    assert_close("shared key heads", &logits(&shared), &logits(&repeated), 1e-4);
    assert_ne!(bits(&logits(&shared)), bits(&logits(&load("books-dense"))), "heads differ");
}

/// A copy of a shipped checkpoint with one change in its `config.json`.
fn copy_with_config(name: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(model_directory(name)).expect("the model is shipped") {
        let path = entry.expect("readable").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a file")))
            .expect("copied");
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("text");
    assert!(text.contains(from), "config.json holds {from}");
    std::fs::write(&config, text.replace(from, to)).expect("written");
    folder
}

#[test]
fn tied_heads_and_clipped_projections_are_honoured() {
    let (ids, _) = oracle("books-dense");
    let logits = |change: fn(&mut Trunk)| {
        let mut model = load("books-dense");
        change(&mut model.trunk);
        bits(&model.run(&ids, WINDOW, |_, _, _, _| {}).logits())
    };
    let plain = logits(|_| {});
    let tied = logits(|trunk| {
        trunk.head = Weights::from_rows(&trunk.embedding, trunk.config.width);
    });
    assert!(tied != plain);
    let folder = copy_with_config(
        "books-dense",
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    let mut model = load("books-dense");
    model.trunk = Checkpoint::open(folder.path()).and_then(|c| c.trunk()).expect("a tied model");
    assert!(tied == bits(&model.run(&ids, WINDOW, |_, _, _, _| {}).logits()));
    assert!(plain == logits(|trunk| trunk.config.clip_qkv = Some(1e6)));
    assert!(plain != logits(|trunk| trunk.config.clip_qkv = Some(0.1)));
}

#[test]
fn ids_of_another_vocabulary_and_long_windows_are_refused() {
    let trunk = load("books-dense").trunk;
    let error = trunk.begin(&[1, 2, 1000, 3], 2).expect_err("1000 symbols").to_string();
    assert!(error.contains("token id 1000 at position 2"), "{error}");
    let error = trunk.begin(&[0; 2048], 2048).expect_err("1024 positions").to_string();
    assert!(error.contains("2048 tokens exceeds the 1024 positions"), "{error}");
}

/// The held-out text as tokens, or why a test cannot run without it.
fn held_out(model: &str) -> Option<Document> {
    let path = root().join("../shared/data/books/valid.txt");
    if !path.exists() {
        skipped(&format!("{} is not there", path.display()));
        return None;
    }
    let tokenizer = Tokenizer::open(&model_directory(model)).expect("shipped tokenizer");
    let text = read_text(&path).expect("UTF-8");
    Some(tokenizer.encode_document(&text).expect("plain text"))
}

/// The first windows of a document.
fn first_windows(document: Document, windows: usize) -> Document {
    let tokens = windows * 256 + 1;
    let characters = document.characters * tokens / document.ids.len();
    Document { ids: document.ids[..tokens].to_vec(), characters }
}

/// Scores the whole held-out text; the figures are those of the training library.
fn check_held_out(name: &str, loss: f64, bits_per_char: f64) {
    if std::env::var_os("RUN_SLOW").is_none() {
        skipped("RUN_SLOW is not set; this takes more than a minute on two cores");
        return;
    }
    let Some(document) = held_out(name) else { return };
    assert_eq!(document.ids.len(), 362_991);
    let score = load(name).score(&document, |_, _| {});
    eprintln!("{name}: {score:?}");
    assert_eq!(score.tokens, (362_991 - 1) / 256 * 256);
    assert!((score.loss - loss).abs() < 0.002, "{}", score.loss);
    assert!((score.bits_per_char - bits_per_char).abs() < 0.001, "{}", score.bits_per_char);
    assert!((score.perplexity - score.loss.exp()).abs() < 1e-9);
    assert!((score.loss_uniform - 1000f64.ln()).abs() < 1e-12);
}

#[test]
fn held_out_loss_of_the_dense_model_is_that_of_the_training_library() {
    check_held_out("books-dense", 2.9685, 1.604);
}

#[test]
fn held_out_loss_of_8_experts_is_that_of_the_training_library() {
    check_held_out("books-moe-8e2k", 2.9176, 1.576);
}

#[test]
fn held_out_loss_of_64_experts_is_that_of_the_training_library() {
    check_held_out("books-moe-64e8k", 2.9247, 1.580);
}

#[test]
fn a_score_is_the_mean_over_windows_run_one_by_one() {
    for name in MODELS {
        let Some(document) = held_out(name) else { return };
        // One window more than a batch.
        let document = first_windows(document, BATCH_WINDOWS + 1);
        let model = load(name);
        let mut calls = Vec::new();
        let score = model.score(&document, |done, all| calls.push((done, all)));
        assert_eq!(calls, [(8, 9), (9, 9)], "{name}");
        let ids = &document.ids;
        let sum: f64 = (0..9)
            .map(|window| {
                let (from, to) = (window * 256, (window + 1) * 256);
                let pass = model.run(&ids[from..to], 256, |_, _, _, _| {});
                pass.losses(&ids[from + 1..=to]).iter().sum::<f64>()
            })
            .sum();
        let tokens = 9 * 256;
        assert_eq!(score.tokens, tokens, "{name}");
        assert!((score.loss - sum / tokens as f64).abs() < 1e-12, "{name}: {}", score.loss);
        for layer in &score.expert_loads {
            let top_k = if layer.loads.len() == 8 { 2 } else { 8 };
            let pairs: u64 = layer.loads.iter().sum();
            assert_eq!(pairs, tokens as u64 * top_k, "{name}: every pair counts once");
        }
    }
}

#[test]
fn fewer_bits_move_a_model_further_from_its_f32_reference() {
    let checkpoint = Checkpoint::open(&model_directory("books-moe-8e2k")).expect("shipped");
    let Some(document) = held_out("books-moe-8e2k") else { return };
    let document = first_windows(document, 3);
    let reference = load("books-moe-8e2k");
    let agreement = |bits| {
        let experts = LocalExperts::load(&checkpoint, bits, 32).expect("finite weights");
        let model = Model { trunk: reference.trunk.clone(), experts };
        let (mut moe, mut reference_moe) = (model.moe(), reference.moe());
        let scored = Scored { trunk: &model.trunk, moe: &mut moe };
        let against = Scored { trunk: &reference.trunk, moe: &mut reference_moe };
        let score = evaluate(scored, Some(against), &document, |_, _| {}).expect("a text");
        let alone = model.score(&document, |_, _| {});
        assert!((alone.loss - score.loss).abs() < 1e-9, "{bits:?}: one loss either way");
        score.agreement.expect("there is a reference")
    };
    let [full, eight, four, two] =
        [BitWidth::Full, BitWidth::Eight, BitWidth::Four, BitWidth::Two].map(agreement);
    eprintln!("{full:?}\n{eight:?}\n{four:?}\n{two:?}");
    assert_eq!((full.kl_to_f32, full.top1_agreement), (0.0, 1.0));
    assert!(full.loss_f32 == two.loss_f32, "the reference stays what it is");
    assert!(0.0 < eight.kl_to_f32 && eight.kl_to_f32 < 1e-3 && eight.top1_agreement > 0.98);
    assert!(eight.kl_to_f32 < four.kl_to_f32 && four.kl_to_f32 < two.kl_to_f32);
    assert!(two.top1_agreement < eight.top1_agreement);
}

#[test]
fn a_text_without_a_whole_window_is_refused() {
    let model = load("books-dense");
    let mut moe = model.moe();
    let scored = Scored { trunk: &model.trunk, moe: &mut moe };
    let document = Document { ids: vec![0; 256], characters: 256 };
    let error = evaluate(scored, None, &document, |_, _| {}).expect_err("too short").to_string();
    assert_eq!(error, "the text has 256 tokens; scoring needs at least 257");
}
