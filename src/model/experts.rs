//! Plain top-k routing, as the model was trained, with all experts in this process: the control of every run, and what
//! `eval` scores.

use super::checkpoint::{Checkpoint, CheckpointError, ExpertWeights};
use super::config::MoeConfig;
use agents::expert::grouped::{self, ExpertBatch};
use agents::expert::{BitWidth, Expert};
use agents::game::Choices;
use agents::ids::{ExpertId, TokenId};
use agents::routing::gates;
use agents::transformer::add_scaled;
use rayon::prelude::*;

/// Every expert of a model, computed here.
#[derive(Clone, Debug)]
pub struct LocalExperts {
    /// By layer; dense layers have no experts.
    layers: Vec<LayerExperts>,
    moe: Option<MoeConfig>,
}

/// The experts of one layer and what selects them besides their scores.
#[derive(Clone, Debug, Default)]
struct LayerExperts {
    experts: Vec<Expert>,
    selection_bias: Vec<f32>,
}

/// What a routed layer gives.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeOutput {
    /// Gated sum of the experts' outputs, `[tokens, width]`.
    pub output: Vec<f32>,
    /// Tokens that each expert computed.
    pub loads: Vec<u32>,
}

impl LocalExperts {
    /// Loads all experts with codes of `bits`, in groups of `group` weights.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        bits: BitWidth,
        group: usize,
    ) -> Result<Self, CheckpointError> {
        Self::each(checkpoint, |layer, expert| {
            let weights = checkpoint.expert(layer, expert)?;
            let (gate, up, down) = (&weights.gate, &weights.up, &weights.down);
            Ok(Expert::quantize(weights.shape, gate, up, down, bits, group))
        })
    }

    /// Loads all experts with the codes that they are stored in.
    ///
    /// # Errors
    /// Experts that are stored in another type, or in codes that are damaged or not computed in.
    pub fn load_stored(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        Self::each(checkpoint, |layer, expert| checkpoint.stored_expert(layer, expert))
    }

    fn each(
        checkpoint: &Checkpoint,
        load: impl Fn(usize, usize) -> Result<Expert, CheckpointError> + Sync,
    ) -> Result<Self, CheckpointError> {
        let moe = checkpoint.config.moe;
        let Some(MoeConfig { experts, .. }) = moe else {
            return Ok(Self { layers: Vec::new(), moe });
        };
        let mut layers = vec![LayerExperts::default(); checkpoint.config.layers];
        for &layer in &checkpoint.config.routed_layers {
            let all = (0..experts).into_par_iter().map(|expert| load(layer, expert));
            layers[layer] = LayerExperts {
                experts: all.collect::<Result<_, _>>()?,
                selection_bias: checkpoint.selection_bias(layer)?,
            };
        }
        Ok(Self { layers, moe })
    }

    /// Experts that are held in f32 already, by layer, with what selects them besides their scores, empty
    /// where there is no such bias; a dense model's networks are left out.
    ///
    /// # Panics
    /// When there is not one bias a layer.
    #[must_use]
    pub fn of(
        weights: &[Vec<ExpertWeights>],
        selection_bias: &[Vec<f32>],
        moe: Option<MoeConfig>,
    ) -> Self {
        assert_eq!(weights.len(), selection_bias.len(), "one bias a layer");
        let expert = |w: &ExpertWeights| {
            Expert::quantize(w.shape, &w.gate, &w.up, &w.down, BitWidth::Full, 32)
        };
        let layers = weights.iter().zip(selection_bias).filter(|_| moe.is_some());
        let layers = layers.map(|(layer, bias)| LayerExperts {
            experts: layer.par_iter().map(expert).collect(),
            selection_bias: bias.clone(),
        });
        Self { layers: layers.collect(), moe }
    }

    /// One routed layer: `x` is `[tokens, width]`, `router_logits` is `[tokens, experts]`.
    ///
    /// # Panics
    /// When the model has no such routed layer, or lengths do not match.
    #[must_use]
    pub fn forward(&self, layer: usize, x: &[f32], router_logits: &[f32]) -> MoeOutput {
        let moe = self.moe.expect("a dense model has no routed layer");
        let LayerExperts { experts, selection_bias } = &self.layers[layer];
        assert!(!experts.is_empty(), "layer {layer} is dense");
        let mut scores = router_logits.to_vec();
        moe.routing.score(&mut scores, moe.experts);
        let selection = moe.routing.selection(&scores, selection_bias, moe.experts);
        let choices = top_k(selection.as_ref().unwrap_or(&scores), moe.experts, moe.top_k);
        let gates = gates(&scores, &choices, &moe.routing);
        let output = run_experts(experts, x, &choices, &gates);
        MoeOutput { output, loads: choices.loads(moe.experts) }
    }

    /// One routed layer with experts that somebody else chose; gates are made of the logits as ever.
    ///
    /// # Panics
    /// When the model has no such routed layer, or lengths do not match.
    #[must_use]
    pub fn forward_chosen(
        &self,
        layer: usize,
        x: &[f32],
        router_logits: &[f32],
        choices: &Choices,
    ) -> MoeOutput {
        let moe = self.moe.expect("a dense model has no routed layer");
        let mut scores = router_logits.to_vec();
        moe.routing.score(&mut scores, moe.experts);
        let gates = gates(&scores, choices, &moe.routing);
        let output = run_experts(&self.layers[layer].experts, x, choices, &gates);
        MoeOutput { output, loads: choices.loads(moe.experts) }
    }
}

/// The k experts of the largest values of every row, the lowest id among equals.
///
/// # Panics
/// When `top_k` exceeds `experts`.
#[must_use]
pub fn top_k(values: &[f32], experts: usize, top_k: usize) -> Choices {
    assert!(top_k <= experts, "{top_k} of {experts} experts");
    let mut chosen = Vec::with_capacity(values.len() / experts * top_k);
    let mut order: Vec<usize> = Vec::with_capacity(experts);
    for row in values.chunks_exact(experts) {
        order.clear();
        order.extend(0..experts);
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(top_k);
        order.sort_unstable();
        chosen.extend(order.iter().map(|expert| ExpertId::from_index(*expert)));
    }
    Choices::uniform(chosen, top_k)
}

/// Runs every expert on its tokens and adds the gated outputs, in ascending order of expert.
fn run_experts(experts: &[Expert], x: &[f32], choices: &Choices, gates: &[f32]) -> Vec<f32> {
    let width = experts[0].shape().width;
    assert_eq!(x.len(), choices.tokens() * width, "one hidden state a token");
    let mut tokens = vec![Vec::new(); experts.len()];
    // Where the output of a token's i-th expert will stand among that expert's rows.
    let mut slots = Vec::with_capacity(choices.experts().len());
    for token in 0..choices.tokens() {
        for expert in choices.row(token) {
            let tokens = &mut tokens[expert.index()];
            slots.push(tokens.len());
            tokens.push(TokenId::from_index(token));
        }
    }
    let batches = experts.iter().zip(&tokens);
    let batches: Vec<_> = batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
    let mut outputs = vec![0.0; slots.len() * width];
    grouped::forward(&batches, x, &mut outputs);
    let firsts = tokens.iter().scan(0, |next, tokens| {
        let first = *next;
        *next += tokens.len();
        Some(first)
    });
    let firsts: Vec<usize> = firsts.collect();
    let mut sum = vec![0.0; x.len()];
    sum.par_chunks_exact_mut(width).enumerate().for_each(|(token, sum)| {
        for pair in choices.pairs(token) {
            let row = firsts[choices.experts()[pair].index()] + slots[pair];
            add_scaled(sum, gates[pair], &outputs[row * width..][..width]);
        }
    });
    sum
}

#[cfg(test)]
mod tests {
    use super::{gates, top_k};
    use agents::ids::ExpertId;
    use agents::routing::Routing;

    #[test]
    fn the_lowest_ids_win_among_equal_probabilities() {
        let rows = [0.2, 0.3, 0.3, 0.2, 0.25, 0.25, 0.25, 0.25];
        let choices = top_k(&rows, 4, 2);
        assert_eq!(choices.experts(), [1, 2, 0, 1].map(ExpertId));
        assert_eq!(top_k(&rows, 4, 3).row(0), [0, 1, 2].map(ExpertId));
    }

    #[test]
    fn gates_are_probabilities_and_sum_to_one_only_when_asked() {
        let rows = [0.1, 0.6, 0.1, 0.2];
        let choices = top_k(&rows, 4, 2);
        assert_eq!(gates(&rows, &choices, &Routing::softmax(false)), [0.6, 0.2]);
        assert_eq!(gates(&rows, &choices, &Routing::softmax(true)), [0.6 / 0.8, 0.2 / 0.8]);
    }
}
