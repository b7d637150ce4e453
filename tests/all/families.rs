//! Tiny random checkpoints of every family against what another library computes with them:
//! `tests/oracles/tiny_checkpoints.py` writes both.

use agents::expert::BitWidth;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::{LocalExperts, MoeOutput};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tokens of an oracle's windows.
const WINDOW: usize = 12;

/// Largest error allowed, over the largest magnitude of the oracle's tensor. The oracles are
/// computed in f64 with norms, softmax and rotary angles in f32, so f32 rounding on both sides is
/// all that may differ: about 1e-6 here. A wrong normalisation, bias, group or row order moves
/// these values by more than 1e-2.
const TOLERANCE: f32 = 2e-5;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/tiny").join(name)
}

/// The tensors of an oracle: ids, and f32 values by name.
fn oracle(name: &str) -> (Vec<u32>, BTreeMap<String, Vec<f32>>) {
    let bytes = std::fs::read(tiny(name)).expect("committed oracle");
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    let mut values = BTreeMap::new();
    let mut ids = Vec::new();
    for (key, view) in tensors.iter() {
        let words = view.data().as_chunks::<4>().0.iter();
        if key == "input_ids" {
            ids = words.map(|bytes| u32::from_le_bytes(*bytes)).collect();
        } else {
            let floats = words.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            values.insert(key.to_owned(), floats);
        }
    }
    (ids, values)
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
    eprintln!("{what}: largest error {error:e} of {size}");
    assert!(got.iter().all(|x| x.is_finite()) && error <= TOLERANCE, "{what}: error {error}");
}

/// Runs a checkpoint and compares every tensor of the oracle.
fn assert_agrees(checkpoint: &Path, oracle_name: &str) -> Vec<f32> {
    let name = checkpoint.file_name().expect("a name").to_string_lossy().into_owned();
    let checkpoint = Checkpoint::open(checkpoint).unwrap_or_else(|error| panic!("{error}"));
    let trunk = checkpoint.trunk().expect("finite weights");
    let experts = LocalExperts::load(&checkpoint, BitWidth::Full, 32).expect("finite weights");
    let (ids, oracle) = oracle(oracle_name);
    let mut compared = 1;
    let mut pass = trunk.begin(&ids, WINDOW).expect("ids of this model");
    for layer in 0..trunk.layers.len() {
        let Some(input) = pass.up_to_router(layer) else { continue };
        let key = |part: &str| format!("layers.{layer}.{part}");
        let MoeOutput { output, .. } = experts.forward(layer, input.hidden, input.router_logits);
        let mut block = output.clone();
        block.iter_mut().zip(input.shared).for_each(|(y, shared)| *y += shared);
        for (part, got) in
            [("moe_in", input.hidden), ("router_logits", input.router_logits), ("moe_out", &block)]
        {
            assert_close(&format!("{name} {}", key(part)), got, &oracle[&key(part)]);
            compared += 1;
        }
        pass.add_moe(layer, &output);
    }
    let logits = pass.logits();
    assert_close(&format!("{name} logits"), &logits, &oracle["logits"]);
    assert_eq!(oracle.len(), compared, "every tensor of the oracle was compared");
    logits
}

const FAMILIES: [&str; 5] = ["llama", "olmoe", "mixtral", "qwen2_moe", "qwen3_moe"];

#[test]
fn every_family_agrees_with_the_library_it_comes_from() {
    for family in FAMILIES.into_iter().chain(["deepseek_v2", "deepseek_v3"]) {
        assert_agrees(&tiny(family), &format!("{family}/oracle.safetensors"));
    }
}

#[test]
fn gguf_files_give_the_same_bits_as_the_folders_they_were_made_of() {
    for family in FAMILIES {
        let oracle = format!("{family}/oracle.safetensors");
        let folder = assert_agrees(&tiny(family), &oracle);
        let file = assert_agrees(&tiny(&format!("{family}.gguf")), &oracle);
        assert!(folder == file, "{family}: the same weights give the same logits");
    }
    let stacked = assert_agrees(&tiny("mixtral.gguf"), "mixtral/oracle.safetensors");
    let each = assert_agrees(&tiny("mixtral-each.gguf"), "mixtral/oracle.safetensors");
    assert!(stacked == each, "old files hold each expert by itself");
}

#[test]
fn quantized_gguf_files_agree_with_the_library_on_the_same_weights() {
    assert_agrees(&tiny("qwen3_moe-mixed.gguf"), "qwen3_moe-mixed-oracle.safetensors");
}

#[test]
fn experts_stacked_in_two_tensors_are_the_same_experts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(tiny("mixtral/config.json"), folder.path().join("config.json")).expect("space");
    let weights = folder.path().join("model.safetensors");
    std::fs::copy(tiny("mixtral-fused.safetensors"), weights).expect("space");
    let oracle = "mixtral/oracle.safetensors";
    assert!(assert_agrees(folder.path(), oracle) == assert_agrees(&tiny("mixtral"), oracle));
}
