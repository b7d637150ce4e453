//! Score matrices that several benches route.

use crate::shared::Failure;
use agents::expert::BitWidth;
use agents::rng::stream;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::LocalExperts;
use nashflock::model::tokenizer::{Tokenizer, read_text, windows};
use rand::RngExt as _;
use rand_distr::StandardNormal;
use rand_distr::weighted::WeightedIndex;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Tokens of each matrix.
pub(crate) const TOKENS: usize = 4096;

/// Scores of one router.
pub(crate) struct Source {
    pub(crate) title: String,
    /// `[T, E]`
    pub(crate) values: Vec<f32>,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
}

/// sigmoid(N(0,1) + 0.5·N_e).
#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
pub(crate) fn synthetic(seed: u64) -> Source {
    let (experts, top_k) = (64, 8);
    let mut rng = stream(seed, "router table");
    let bias: Vec<f64> = (0..experts).map(|_| 0.5 * rng.sample::<f64, _>(StandardNormal)).collect();
    let values = (0..TOKENS * experts)
        .map(|i| {
            let logit = rng.sample::<f64, _>(StandardNormal) + bias[i % experts];
            (1.0 / (1.0 + (-logit).exp())) as f32
        })
        .collect();
    let title = "Synthetic: sigmoid(N(0,1) + 0.5·N_e)".to_owned();
    Source { title, values, experts, top_k }
}

/// Router probabilities of each layer of a shipped checkpoint on the shipped story.
pub(crate) fn checkpoint(name: &str) -> Result<Vec<Source>, Failure> {
    const WINDOW: usize = 256;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let folder = root.join("models").join(name);
    let checkpoint = Checkpoint::open(&folder)?;
    let moe = checkpoint.config.moe.ok_or("a Mixture-of-Experts model")?;
    let (trunk, experts) =
        (checkpoint.trunk()?, LocalExperts::load(&checkpoint, BitWidth::Full, 32)?);
    let text = read_text(&root.join("text/murmuration.txt"))?;
    let document = Tokenizer::open(&folder)?.encode_document(&text)?;
    let ids = &windows(&document.ids, WINDOW).inputs[..TOKENS];
    let mut pass = trunk.begin(ids, WINDOW)?;
    let mut sources = Vec::new();
    for layer in 0..checkpoint.config.layers {
        let input = pass.up_to_router(layer).ok_or("every layer is routed")?;
        let mut values = input.router_logits.to_vec();
        let output = experts.forward(layer, input.hidden, input.router_logits).output;
        moe.routing.score(&mut values, moe.experts);
        pass.add_moe(layer, &output);
        let title = format!("{name}, layer {layer}, router probabilities on a story");
        sources.push(Source { title, values, experts: moe.experts, top_k: moe.top_k });
    }
    Ok(sources)
}

/// Tokens drawn by frequency; a row is the share of its expert counts in OLMoE-1B-7B.
#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
pub(crate) fn olmoe() -> Result<Vec<Source>, Failure> {
    let (experts, top_k) = (64, 8);
    let folder: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/olmoe-routing");
    let mut sources = Vec::new();
    for layer in [0, 7, 15] {
        let text =
            fs::read_to_string(folder.join(format!("token-expert-wikipedia-layer{layer}.csv")))?;
        let mut counts: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for line in text.lines().skip(1) {
            let mut cells = line.split(',');
            let mut cell = || cells.next().ok_or("three columns");
            let (token, expert, count) = (cell()?.parse()?, cell()?.parse::<usize>()?, cell()?);
            counts.entry(token).or_insert_with(|| vec![0.0; experts])[expert] = count.parse()?;
        }
        let rows: Vec<&Vec<f64>> = counts.values().collect();
        let frequencies = WeightedIndex::new(rows.iter().map(|row| row.iter().sum::<f64>()))?;
        let mut rng = stream(u64::try_from(layer)?, "olmoe tokens");
        let mut values = Vec::with_capacity(TOKENS * experts);
        for _ in 0..TOKENS {
            let row = rows[rng.sample(&frequencies)];
            let total: f64 = row.iter().sum();
            values.extend(row.iter().map(|count| (count / total) as f32));
        }
        let title = format!("OLMoE-1B-7B, layer {layer}, share of each expert by token id");
        sources.push(Source { title, values, experts, top_k });
    }
    Ok(sources)
}
