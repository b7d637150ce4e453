//! Tiny random checkpoints of every family against what another library computes with them:
//! `tests/oracles/tiny_checkpoints.py` writes both.

use agents::expert::{BitWidth, Expert};
use agents::game::{CostSettings, Information, TopK};
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::orders::{NodeReply, Orders, Replies};
use agents::round::{Arena, Perception};
use agents::world::{Affinity, LayerSettings, Rules, WorldSettings};
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::{LocalExperts, MoeOutput};
use nashflock::source::{CheckpointSource, ScoreSource};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// An arena in which the source's own routing plays plain top-k on one node.
fn top_k_arena(source: &CheckpointSource<'_>, tokens: usize) -> Arena {
    let shape = source.shape();
    let layers = (0..shape.layers).map(LayerId::from_index).map(|layer| LayerSettings {
        router: source.router_rows(layer),
        bits: vec![BitWidth::Full; shape.experts],
        hosts: vec![vec![NodeId(0)]; shape.experts],
        selection_bias: source.selection_bias(layer),
    });
    Arena::new(WorldSettings {
        tokens_max: tokens,
        nodes: 1,
        layers: layers.collect(),
        rules: Rules {
            top_k: shape.top_k,
            affinity: Affinity::Probability,
            routing: shape.routing,
            router: Arc::new(TopK),
            information: Information::InBatch,
            cost: Box::new(|shape| {
                let linear = CostSettings::Linear { price_per_fair_share: 0.1 };
                linear.build(shape.tokens, shape.experts, shape.top_k)
            }),
            social_optimum: false,
            flock: None,
        },
    })
}

/// What the one node answers.
fn computed(source: &CheckpointSource<'_>, orders: &Orders, hidden: &[f32]) -> Replies {
    let width = source.shape().width;
    let answer = |expert: ExpertId, rows: Vec<f32>| {
        let weights = source.expert(orders.layer, expert).expect("finite weights");
        let (gate, up, down) = (&weights.gate, &weights.up, &weights.down);
        let expert = Expert::quantize(weights.shape, gate, up, down, BitWidth::Full, 32);
        let mut out = vec![0.0; rows.len()];
        expert.forward(&rows, &mut out);
        out
    };
    let nodes = orders.nodes.iter().map(|order| NodeReply {
        node: order.node,
        outputs: order
            .groups
            .iter()
            .flat_map(|group| {
                let row = |token: usize| &hidden[token * width..][..width];
                let rows = group.tokens.iter().flat_map(|token| row(token.index()));
                answer(group.expert, rows.copied().collect())
            })
            .collect(),
        compute_ns: 0,
    });
    Replies { nodes: nodes.collect() }
}

#[test]
fn top_k_in_the_game_is_the_model_as_it_was_trained() {
    for family in &["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"] {
        let checkpoint = Checkpoint::open(&tiny(family)).expect("committed");
        let trunk = checkpoint.trunk().expect("finite weights");
        let (ids, oracle) = oracle(&format!("{family}/oracle.safetensors"));
        let length = WINDOW - 1;
        let mut source =
            CheckpointSource::new(&checkpoint, &trunk, &ids[..WINDOW], length).expect("a window");
        let mut arena = top_k_arena(&source, length);
        let requests = [RequestId(0)];
        source.begin(&requests);
        for layer in (0..source.shape().layers).map(LayerId::from_index) {
            let input = source.perceive(layer);
            let seats = vec![RequestId(0); length];
            let (step, logits) = (StepId(0), input.logits.as_slice());
            let perception = Perception { step, layer, requests: &seats, logits, hidden: &[] };
            let orders = arena.decide(&perception).expect("finite logits").orders;
            let replies = computed(&source, &orders, &input.hidden);
            let output = arena.absorb(orders, replies, source.shape().width).expect("whole");
            source.absorb(layer, &output);
        }
        let loss = source.finish().expect("text is scored")[0];
        let rows = oracle["logits"].chunks_exact(trunk.config.vocab).zip(&ids[1..WINDOW]);
        let exact: f64 = rows
            .map(|(row, target)| {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum.ln() - f64::from(row[*target as usize])
            })
            .sum();
        assert!((loss / exact - 1.0).abs() < 1e-5, "{family}: {loss} {exact}");
    }
}
