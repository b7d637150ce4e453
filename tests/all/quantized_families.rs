//! `quantize` of tiny random checkpoints of every family, from folders, fused tensors and GGUF files, against the
//! logits that the families' own library computes.

use agents::expert::BitWidth;
use agents::ids::{ExpertId, LayerId};
use agents::precision::{Exact, PruneCriterion};
use agents::quantize::Format;
use agents::rng::stream;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::LocalExperts;
use nashflock::model::quantize::{
    Part, Pruning, QuantizeSettings, QuantizedModel, Rounding, quantize, write,
};
use nashflock::model::trunk::Trunk;
use nashflock::source::{CheckpointSource, ScoreSource};
use rand::RngExt as _;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Tokens of an oracle's windows.
const WINDOW: usize = 12;

/// Root mean square error of a token's logits with 8 bits everywhere, over that of the logits. A group of 32 spans
/// about four standard deviations, in 255 steps: a matrix errs by 4 / 255 / √12 = 0.5 % of its weights, and so of
/// its outputs. Fewer than 16 matrices stand one after another in two layers, so √16 · 0.5 % = 2 %, and twice that
/// for norms, softmax and gates, which may double an error. It is held against the median token: one that stands near
/// a tie may go to another expert, and then changes as a whole.
const EIGHT_BITS: f64 = 0.04;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/tiny").join(name)
}

/// Ids and logits of another library.
fn oracle(family: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(tiny(family).join("oracle.safetensors")).expect("committed oracle");
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors.tensor(name).expect("an oracle").data().as_chunks::<4>().0.to_vec()
    };
    let ids = words("input_ids").into_iter().map(u32::from_le_bytes).collect();
    (ids, words("logits").into_iter().map(f32::from_le_bytes).collect())
}

fn logits(trunk: &Trunk, experts: &LocalExperts, ids: &[u32]) -> Vec<f32> {
    let mut pass = trunk.begin(ids, WINDOW).expect("ids of this model");
    for layer in 0..trunk.layers.len() {
        let Some(input) = pass.up_to_router(layer) else { continue };
        let output = experts.forward(layer, input.hidden, input.router_logits).output;
        pass.add_moe(layer, &output);
    }
    pass.logits()
}

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|x| f64::from(x).powi(2)).sum()
    };
    let error = squares(&mut got.iter().zip(want).map(|(a, b)| a - b));
    (error / squares(&mut want.iter().copied())).sqrt()
}

/// The error of the token in the middle.
fn median_error(got: &[f32], want: &[f32], vocab: usize) -> f64 {
    let tokens = got.chunks_exact(vocab).zip(want.chunks_exact(vocab));
    let mut each: Vec<f64> = tokens.map(|(got, want)| relative_error(got, want)).collect();
    each.sort_by(f64::total_cmp);
    each[each.len() / 2]
}

/// Quantizes every matrix to one width and writes it to a folder.
fn quantized(path: &Path, bits: u32, out: &Path, pruning: Option<Pruning>) -> QuantizedModel {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"));
    let vocab = u32::try_from(checkpoint.config.vocab).expect("tiny");
    let mut rng = stream(3, "calibration");
    let settings = QuantizeSettings {
        budget_bytes: u64::MAX,
        formats: vec![Format { bits, group: 32 }],
        rounding: Rounding::Gptq,
        calibration: (0..1025).map(|_| rng.random_range(0..vocab)).collect(),
        windows: 32,
        pruning,
    };
    let model = quantize(&checkpoint, &settings, &Exact, |_| ());
    let model = model.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    write(&model, &checkpoint, path, out).expect("a new folder");
    model
}

/// The median errors at 8, 4, 3 and 2 bits against the oracle of a family.
fn errors(path: &Path, family: &str) -> Vec<f64> {
    let (ids, want) = oracle(family);
    let source = Checkpoint::open(path).expect("a checkpoint");
    let at = |bits| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("quantized");
        let model = quantized(path, bits, &out, None);
        let read = Checkpoint::open(&out).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.config.moe, source.config.moe);
        let trunk = read.trunk().expect("finite weights");
        let experts = LocalExperts::load(&read, BitWidth::Full, 32).expect("finite weights");
        let got = logits(&trunk, &experts, &ids);
        let (trunk, experts) = model.decode(&source).expect("finite weights");
        assert!(got == logits(&trunk, &experts, &ids), "the file holds what was quantized");
        median_error(&got, &want, source.config.vocab)
    };
    let errors: Vec<f64> = [8, 4, 3, 2].map(at).into();
    eprintln!("{}: {errors:.4?}", path.display());
    errors
}

const FAMILIES: [&str; 5] = ["llama", "olmoe", "mixtral", "qwen2_moe", "qwen3_moe"];

#[test]
fn every_family_keeps_its_logits_in_eight_bits_and_loses_more_in_fewer() {
    let families = FAMILIES.into_iter().chain(["deepseek_v2", "deepseek_v3"]);
    let all: Vec<_> = families.map(|family| (family, errors(&tiny(family), family))).collect();
    for (family, errors) in all {
        assert!(errors[0] <= EIGHT_BITS, "{family}: {errors:?}");
        assert!(errors[0] < 0.3 * errors[1] && errors[1] < errors[3], "{family}: {errors:?}");
        assert!(errors[3] < 1.5, "{family}: {errors:?}");
    }
}

#[test]
fn gguf_files_and_fused_experts_become_the_same_folder_as_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fused = folder.path().join("fused");
    std::fs::create_dir(&fused).expect("space");
    std::fs::copy(tiny("mixtral/config.json"), fused.join("config.json")).expect("space");
    let weights = fused.join("model.safetensors");
    std::fs::copy(tiny("mixtral-fused.safetensors"), weights).expect("space");
    let files = FAMILIES.map(|family| (tiny(&format!("{family}.gguf")), family));
    let others = [(tiny("mixtral-each.gguf"), "mixtral"), (fused, "mixtral")];
    for (at, (path, family)) in files.into_iter().chain(others).enumerate() {
        let bytes = |path: &Path, name: String| {
            let out = folder.path().join(name);
            quantized(path, 4, &out, None);
            std::fs::read(out.join("model.safetensors")).expect("written")
        };
        let own = bytes(&tiny(family), format!("{at} own"));
        assert!(bytes(&path, format!("{at}")) == own, "{}: the same weights", path.display());
    }
}

#[test]
fn shared_experts_and_latents_are_quantized_and_runs_serve_the_stored_experts() {
    for (family, shared, latent) in
        [("qwen2_moe", true, false), ("deepseek_v2", true, true), ("deepseek_v3", true, true)]
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("quantized");
        let model = quantized(&tiny(family), 4, &out, None);
        let has = |wanted: &dyn Fn(&Part) -> bool| model.matrices.keys().any(wanted);
        assert_eq!(has(&|part| matches!(part, Part::Shared(..))), shared, "{family}");
        let is_latent = |part: &Part| format!("{part:?}").contains("KeyValueUp");
        assert_eq!(has(&is_latent), latent, "{family}");

        let read = Checkpoint::open(&out).expect("a checkpoint");
        let trunk = read.trunk().expect("finite weights");
        let (ids, want) = oracle(family);
        let source = CheckpointSource::new(&read, &trunk, &ids, WINDOW - 1).expect("a text");
        let stored = source.stored_expert(LayerId(0), ExpertId(1));
        assert_eq!(stored.expect("codes that are computed in").bits(), BitWidth::Four);
        let served = LocalExperts::load_stored(&read).expect("every expert");
        let decoded = LocalExperts::load(&read, BitWidth::Full, 32).expect("every expert");
        let served = logits(&trunk, &served, &ids);
        let decoded = logits(&trunk, &decoded, &ids);
        // Activations of 8 bits alone are between them.
        let apart = relative_error(&served, &decoded);
        assert!(apart < EIGHT_BITS, "{family}: {apart}");
        assert!(relative_error(&served, &want) < 0.7, "{family}");
    }
}

#[test]
fn a_pruned_gguf_file_becomes_a_smaller_folder_and_groups_of_experts_are_not_pruned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("pruned");
    let pruning = Pruning { share: 0.25, criterion: PruneCriterion::Reap };
    let whole = Checkpoint::open(&tiny("qwen2_moe.gguf")).expect("a checkpoint").config.moe;
    let whole = whole.expect("experts").experts;
    let model = quantized(&tiny("qwen2_moe.gguf"), 8, &out, Some(pruning));
    let read = Checkpoint::open(&out).unwrap_or_else(|error| panic!("{error}"));
    let left = read.config.moe.expect("experts").experts;
    assert_eq!(left, whole - whole / 4);
    assert!(model.kept.is_some_and(|kept| kept.values().all(|kept| kept.len() == left)));
    LocalExperts::load_stored(&read).expect("every expert that is left");

    let path = tiny("deepseek_v3");
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    assert!(checkpoint.config.moe.expect("experts").routing.groups.is_some());
    let settings = QuantizeSettings {
        budget_bytes: u64::MAX,
        formats: vec![Format { bits: 4, group: 32 }],
        rounding: Rounding::Nearest,
        calibration: vec![0; 100],
        windows: 1,
        pruning: Some(pruning),
    };
    let refused = quantize(&checkpoint, &settings, &Exact, |_| ()).expect_err("groups");
    assert!(refused.to_string().contains("groups of experts"), "{refused}");
}
