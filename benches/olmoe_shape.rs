//! A model of OLMoE-1B-7B's sizes, all weights drawn from a seed, experts in 4 bits.
//!
//! `cargo bench --bench olmoe_shape`. It needs 6 GB of memory.
//!
//! Embedding, attention, norms, router and head are in f32. A pass has no cache of keys and values: a
//! step of decoding is windows of one token each, so that attention sees no earlier tokens, while
//! every weight is read as in use. The share of the read rate counts the bytes of the experts that
//! have tokens over the time of their products; that of the products' peak likewise counts theirs.
#![allow(clippy::print_stdout, reason = "the figures are the output")]

#[path = "../agents/benches/ceilings/mod.rs"]
mod ceilings;
mod pass;
mod shared;

use agents::expert::{BitWidth, Expert, ExpertShape};
use agents::linear::Weights;
use agents::rng::stream;
use ceilings::{giga_macs_per_s, read_gb_per_s, seconds};
use nashflock::model::config::ModelConfig;
use nashflock::model::trunk::{FeedForwardWeights, LayerWeights, Trunk};
use pass::{Forward, Parts};
use rand::RngExt as _;
use rayon::prelude::*;
use shared::Failure;
use shared::figures::{median, spread, verdict};
use shared::runs::memory_bytes;
use std::sync::Arc;

const GROUP: usize = 64;
const THREADS: usize = 2;
const REPEATS: usize = 9;
const LIMIT_GB: f64 = 6.0;

/// Name, windows and tokens of a window.
const CASES: [(&str, usize, usize); 3] = [
    ("decode, 1 token a step", 1, 1),
    ("decode, 8 tokens a step", 8, 1),
    ("prefill, 256 tokens", 1, 256),
];

fn main() -> Result<(), Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    pool.install(|| runtime.block_on(measure()))
}

async fn measure() -> Result<(), Failure> {
    let (mut trunk, mut experts) = (None, None);
    let load_s = seconds(|| {
        trunk = Some(random_trunk());
        experts = Some(random_experts());
    });
    let (trunk, experts) = (trunk.ok_or("loaded")??, experts.ok_or("loaded")??);
    let expert = &experts[0][0];
    let (bytes, weights) = (expert.bytes() as f64, expert.shape().weights() as f64);
    let count = experts.iter().map(Vec::len).sum::<usize>() as f64;
    println!(
        "{count} experts of {weights} weights, 4 bits in groups of {GROUP}: {:.2} GB; made in {load_s:.0} s",
        count * bytes / 1e9
    );
    let mut forward = Forward::new(&trunk, &experts, 256).await?;
    let mut ids = stream(4, "ids");
    let mut draw =
        |tokens: usize| -> Vec<u32> { (0..tokens).map(|_| ids.random_range(0..50_304)).collect() };
    for (_, windows, window) in CASES {
        forward.pass(&draw(windows * window), window).await?;
    }
    let resident_gb = memory_bytes("self", "VmHWM").ok_or("no VmHWM")? as f64 / 1e9;
    let verdict = verdict(resident_gb, LIMIT_GB);
    println!("peak resident {resident_gb:.2} GB, {verdict} the limit of {LIMIT_GB} GB");

    // Ceilings are read beside the passes, and their memory is not the model's.
    let memory = vec![1_u64; 1 << 25];
    let (mut reads, mut peaks) = (Vec::new(), Vec::new());
    let mut parts = [const { Vec::new() }; 3];
    for _ in 0..REPEATS {
        for ((_, windows, window), parts) in CASES.into_iter().zip(&mut parts) {
            reads.push(read_gb_per_s(&memory, 1));
            peaks.push(giga_macs_per_s(THREADS));
            parts.push(forward.pass(&draw(windows * window), window).await?.1);
        }
    }
    println!("reads, GB/s {}; 8-bit products, GMAC/s {}", spread(&reads, 3), spread(&peaks, 3));
    for ((name, windows, window), parts) in CASES.into_iter().zip(&parts) {
        let tokens = (windows * window) as f64;
        let of = |figure: &dyn Fn(&Parts) -> f64| spread(parts.iter().map(figure), 3);
        let per_s = |ns: u64| tokens * 1e9 / ns as f64;
        let (read, peak) = (median(&reads), median(&peaks));
        println!("{name}");
        println!("  whole pass, tokens/s                {}", of(&|p| per_s(p.total())));
        println!("  game, experts, combining, tokens/s  {}", of(&|p| per_s(p.routed())));
        println!(
            "  experts' products, GB/s             {}",
            of(&|p| p.groups as f64 * bytes / p.compute as f64)
        );
        println!(
            "  of the read rate                    {}",
            of(&|p| p.groups as f64 * bytes / p.compute as f64 / read)
        );
        let gmacs = |p: &Parts| p.pairs as f64 * weights / p.compute as f64;
        println!("  experts' products, GMAC/s           {}", of(&gmacs));
        println!("  of the products' peak               {}", of(&|p| gmacs(p) / peak));
        println!(
            "  ms: trunk {}, game {}, orders and experts {}, products alone {}, combining {}, head {}",
            of(&|p| p.trunk as f64 / 1e6),
            of(&|p| p.decide as f64 / 1e6),
            of(&|p| p.dispatch as f64 / 1e6),
            of(&|p| p.compute as f64 / 1e6),
            of(&|p| p.combine as f64 / 1e6),
            of(&|p| p.head as f64 / 1e6),
        );
    }
    Ok(())
}

fn random_trunk() -> Result<Trunk, Failure> {
    let json = serde_json::json!({
        "model_type": "olmoe",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 50304,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "intermediate_size": 1024,
        "norm_topk_prob": false,
    });
    let (config, _) = ModelConfig::from_json(&json).map_err(|problems| problems.join("; "))?;
    let moe = config.moe.ok_or("the model has experts")?;
    let (width, vocab) = (config.width, config.vocab);
    let matrix =
        |purpose: &str, rows: usize| Weights::from_rows(&random(purpose, rows * width), width);
    let ones = || vec![1.0; width];
    // The largest first, while little else is held: storing it takes it twice.
    let head = matrix("head", vocab);
    let layer = |layer: usize| LayerWeights {
        attention_norm: ones(),
        query: matrix(&format!("query {layer}"), width),
        key: matrix(&format!("key {layer}"), width),
        value: matrix(&format!("value {layer}"), width),
        attention_out: matrix(&format!("attention out {layer}"), width),
        latent: None,
        biases: None,
        query_norm: Some(ones()),
        key_norm: Some(ones()),
        feed_forward_norm: ones(),
        feed_forward: FeedForwardWeights::Routed {
            router: matrix(&format!("router {layer}"), moe.experts),
            shared: None,
        },
    };
    let layers = (0..config.layers).map(layer).collect();
    Ok(Trunk {
        embedding: random("embedding", vocab * width),
        layers,
        final_norm: ones(),
        head,
        config,
    })
}

/// Uniform, with the standard deviation that such models are initialised with.
fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(1, purpose);
    (0..len).map(|_| (rng.random::<f32>() - 0.5) * 0.07).collect()
}

/// Experts whose codes are random, with the scales of one that was quantized.
fn random_experts() -> Result<Vec<Vec<Arc<Expert>>>, Failure> {
    let (shape, layers, experts) = (ExpertShape { width: 2048, hidden: 1024 }, 16, 64);
    let part = |purpose| random(purpose, shape.weights() / 3);
    let model =
        Expert::quantize(shape, &part("gate"), &part("up"), &part("down"), BitWidth::Four, GROUP);
    let encoded = model.to_bytes();
    let header = encoded.len() - usize::try_from(model.bytes())?;
    // docs/formats.md: a group of 32 rows is a line of scales, one of minima, and its codes, two a byte.
    let (factors, codes) = (2 * 64, 32 * GROUP / 2);
    assert!(encoded[header..].len().is_multiple_of(factors + codes), "whole groups");
    let expert = |at: usize| {
        let mut rng = stream(2, &format!("expert {at}"));
        let mut encoded = encoded.clone();
        for group in encoded[header..].chunks_exact_mut(factors + codes) {
            rng.fill(&mut group[factors..]);
        }
        Expert::from_bytes(&encoded).map(Arc::new)
    };
    let layer = |layer: usize| {
        let all = (0..experts).into_par_iter().map(|id| expert(layer * experts + id));
        all.collect::<Result<Vec<_>, _>>()
    };
    Ok((0..layers).map(layer).collect::<Result<_, _>>()?)
}
