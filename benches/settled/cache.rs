//! Experts in a cache, token by token.

use crate::shared::Failure;
use crate::sources::{Source, checkpoint};
use agents::game::routers::CachePrior;
use agents::game::{CostSettings, Dynamics, Game, Information, Scores, certify};
use agents::ids::ExpertId;

const BONUSES: [f64; 5] = [0.0, 0.01, 0.02, 0.05, 0.1];
/// Share of the experts that a cache holds.
const HELD: [usize; 3] = [2, 3, 4];

/// What a stream of single tokens came to.
struct Stream {
    /// Of a token, by size of the cache.
    misses: Vec<f64>,
    score_loss: f64,
}

/// Prints what a cache of few experts misses, with and without a prior on what it holds.
pub(crate) fn cache() -> Result<(), Failure> {
    let name = "books-moe-64e8k";
    let layers = checkpoint(name)?;
    let Some(Source { experts, top_k, values, .. }) = layers.first() else {
        return Err("the model has a routed layer".into());
    };
    let tokens = values.len() / experts;
    println!(
        "\nWhat a cache of experts does take off is the memory that a device needs to hold, for bytes that it reads when an\n\
         expert is not there. {name}, {top_k} of {experts} experts a token, one token a step, {tokens} tokens, mean of\n\
         {} layers: misses a token of a cache that forgets the least recently used expert, by plain top-k and under\n\
         `cache_prior`, whose bonus is in units of the router's probability. Score loss is what that costs the router.\n",
        layers.len()
    );
    let columns: Vec<String> = HELD.iter().map(|of| format!("1/{of} held: misses")).collect();
    println!("| router | {} | score loss |", columns.join(" | "));
    println!("|---|{}---|", "---|".repeat(HELD.len()));
    for bonus in BONUSES {
        let streams = layers.iter().map(|layer| stream(layer, bonus));
        let streams = streams.collect::<Result<Vec<_>, Failure>>()?;
        let mean = |of: &dyn Fn(&Stream) -> f64| {
            streams.iter().map(of).sum::<f64>() / streams.len() as f64
        };
        let misses: Vec<String> =
            (0..HELD.len()).map(|size| format!("{:.2}", mean(&|of| of.misses[size]))).collect();
        let router =
            if bonus == 0.0 { "top-k, the control".to_owned() } else { format!("bonus {bonus}") };
        println!(
            "| {router} | {} | {:.2} % |",
            misses.join(" | "),
            100.0 * mean(&|of| of.score_loss)
        );
    }
    println!(
        "\nHolding 1/3 of the experts takes 67 % of their bytes off, with or without a prior: what routing changes is how often\n\
         the others are read. In a batch of many tokens every expert is used and nothing is saved; runs here hold all."
    );
    Ok(())
}

fn stream(layer: &Source, bonus: f64) -> Result<Stream, Failure> {
    let Source { experts, top_k, values, .. } = layer;
    let cost = CostSettings::Quota { capacity_factor: *experts as f64 }.build(1, *experts, *top_k);
    let mut dynamics = Dynamics::new(Box::new(CachePrior { bonus }), Information::InBatch);
    let mut recent: Vec<ExpertId> = Vec::new();
    let (mut misses, mut lost, mut tokens) = (vec![0_usize; HELD.len()], 0.0, 0.0);
    for row in values.chunks(*experts) {
        let game = Game { scores: Scores::new(row, *experts)?, top_k: *top_k, cost: cost.as_ref() };
        let play = dynamics.play(&game);
        lost += certify(&game, &play.choices, &play.prices).score_loss;
        tokens += 1.0;
        let chosen = play.choices.row(0);
        for (missed, of) in misses.iter_mut().zip(HELD) {
            let held = &recent[..recent.len().min(experts / of)];
            *missed += chosen.iter().filter(|expert| !held.contains(expert)).count();
        }
        recent.retain(|expert| !chosen.contains(expert));
        recent.splice(0..0, chosen.iter().copied());
    }
    let misses = misses.into_iter().map(|missed| missed as f64 / tokens).collect();
    Ok(Stream { misses, score_loss: lost / tokens })
}
