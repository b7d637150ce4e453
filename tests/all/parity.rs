//! The forward pass against oracles that another library computed in f64, and broken checkpoints
//! against the messages they deserve.

use agents::expert::BitWidth;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::eval::{Evaluation, Scored, evaluate};
use nashflock::model::experts::{LocalExperts, MoeOutput};
use nashflock::model::tokenizer::{Tokenizer, read_text};
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
    fn run(&self, ids: &[u32], mut look: impl FnMut(usize, &[f32], &[f32], &[f32])) -> Pass<'_> {
        let mut pass = self.trunk.begin(ids, WINDOW).expect("ids of this model");
        for layer in 0..self.trunk.layers.len() {
            let Some(input) = pass.up_to_router(layer) else { continue };
            let MoeOutput { output, .. } =
                self.experts.forward(layer, input.hidden, input.router_logits);
            look(layer, input.hidden, input.router_logits, &output);
            pass.add_moe(layer, &output);
        }
        pass
    }

    fn score(&self, document: &nashflock::model::tokenizer::Document) -> Evaluation {
        let mut moe = |layer, x: &[f32], logits: &[f32]| self.experts.forward(layer, x, logits);
        let scored = Scored { trunk: &self.trunk, moe: &mut moe };
        evaluate(scored, None, document, |_, _| {}).expect("a text of this model")
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
    println!("{what}: largest error {error:e}");
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
        let pass = model.run(&ids, |layer, input, router_logits, output| {
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
        let losses = load(name).run(&ids, |_, _, _, _| {}).losses(&targets);
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
                let pass = model.run(&ids, |_, _, _, _| {});
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
        let all = bits(&model.run(&ids, |_, _, _, _| {}).logits());
        let vocab = model.trunk.config.vocab;
        for (window, ids) in ids.chunks(WINDOW).enumerate() {
            let alone = bits(&model.run(ids, |_, _, _, _| {}).logits());
            let at = window * WINDOW * vocab;
            assert!(alone == all[at..at + WINDOW * vocab], "{name}: window {window}");
        }
    }
}

#[test]
fn ids_of_another_vocabulary_and_long_windows_are_refused() {
    let trunk = load("books-dense").trunk;
    let error = trunk.begin(&[1, 2, 1000, 3], 2).expect_err("1000 symbols").to_string();
    assert!(error.contains("token id 1000 at position 2"), "{error}");
    let error = trunk.begin(&[0; 2048], 2048).expect_err("1024 positions").to_string();
    assert!(error.contains("2048 tokens exceeds the 1024 positions"), "{error}");
}

/// The held-out text, or why a test cannot run without it.
fn held_out_text() -> Option<String> {
    let path = root().join("../shared/data/books/valid.txt");
    if path.exists() {
        return Some(read_text(&path).expect("UTF-8"));
    }
    println!("skipped: {} is not there", path.display());
    None
}

#[test]
fn held_out_loss_is_that_of_the_training_library() {
    let Some(text) = held_out_text() else { return };
    let expected = [(2.9685, 1.604), (2.9176, 1.576), (2.9247, 1.580)];
    for (name, (loss, bits_per_char)) in MODELS.into_iter().zip(expected) {
        let tokenizer = Tokenizer::open(&model_directory(name)).expect("shipped tokenizer");
        let document = tokenizer.encode_document(&text).expect("plain text");
        assert_eq!(document.ids.len(), 362_991, "{name}");
        let score = load(name).score(&document);
        println!("{name}: {score:?}");
        assert_eq!(score.tokens, (362_991 - 1) / 256 * 256, "{name}");
        assert!((score.loss - loss).abs() < 0.002, "{name}: {}", score.loss);
        assert!((score.bits_per_char - bits_per_char).abs() < 0.001, "{name}");
        assert!((score.perplexity - score.loss.exp()).abs() < 1e-9, "{name}");
        assert!((score.loss_uniform - 1000f64.ln()).abs() < 1e-12, "{name}");
    }
}
