//! Calibration tokens on their way through the exact model and through the quantized one, side by
//! side.

use super::super::eval::WINDOW_TOKENS;
use super::super::experts::top_k;
use super::super::trunk::{FeedForwardWeights, TokensError};
use super::{ExpertPart, Model, Part, Projection, Rounding};
use agents::game::Choices;
use agents::linear::Weights;
use agents::quantize::{Format, Gptq, InputMoments, QuantizedMatrix, nearest};
use agents::routing::gates;
use agents::transformer::{Rotary, add_scaled, rms_norm, swiglu};
use std::collections::BTreeMap;

/// What [`quantize_in_order`] gives.
pub(super) struct Done {
    pub(super) matrices: BTreeMap<Part, QuantizedMatrix>,
    /// Layer, expert and tokens of experts with fewer tokens than inputs.
    pub(super) rarely_seen: Vec<(usize, usize, usize)>,
}

/// Quantizes every matrix for the inputs that the matrices before it give.
pub(super) fn quantize_in_order(
    exact: &Model,
    ids: &[u32],
    formats: &BTreeMap<Part, Format>,
    rounding: Rounding,
) -> Result<Done, TokensError> {
    let (mut served, width) = (exact.clone(), exact.trunk.config.width);
    let mut done = Done { matrices: BTreeMap::new(), rarely_seen: Vec::new() };
    visit(exact, &mut served, ids, |part, weights, inputs| {
        let format = formats[&part];
        let matrix = match inputs {
            Inputs::Tokens => by_itself(&weights, width, format),
            Inputs::Moments { gptq, tokens } => {
                if let Part::Expert(layer, expert, ExpertPart::Gate) = part
                    && tokens < gptq.columns()
                {
                    done.rarely_seen.push((layer, expert, tokens));
                }
                match rounding {
                    Rounding::Gptq => gptq.quantize(&weights, format).0,
                    Rounding::Nearest => by_itself(&weights, gptq.columns(), format),
                }
            }
        };
        let weights = matrix.weights();
        done.matrices.insert(part, matrix);
        Some(weights)
    })?;
    Ok(done)
}

/// Every group by itself, all inputs alike: the components of an embedding, which rows are looked up
/// in, and the control of all other matrices.
pub(super) fn by_itself(weights: &[f32], columns: usize, format: Format) -> QuantizedMatrix {
    nearest(weights, &vec![1.0; columns], format)
}

/// What a matrix is quantized for.
pub(super) enum Inputs<'a> {
    /// Rows are looked up.
    Tokens,
    /// Rows multiply inputs with these moments.
    Moments {
        gptq: &'a Gptq,
        /// Tokens they were taken from.
        tokens: usize,
    },
}

/// Sends tokens through both models, layer by layer. `quantize` is given each matrix with what is
/// known of its inputs, and may give weights that replace it in `served`.
pub(super) fn visit(
    exact: &Model,
    served: &mut Model,
    ids: &[u32],
    mut quantize: impl FnMut(Part, Vec<f32>, Inputs<'_>) -> Option<Vec<f32>>,
) -> Result<(), TokensError> {
    let config = &exact.trunk.config;
    // The pass checks the ids; its own layers are not run.
    exact.trunk.begin(&ids[..WINDOW_TOKENS.min(ids.len())], WINDOW_TOKENS.min(ids.len()))?;
    if let Some(position) = ids.iter().position(|id| *id as usize >= config.vocab) {
        let (id, vocab) = (ids[position], config.vocab);
        return Err(TokensError::Vocabulary { id, position, vocab });
    }
    let mut replace = |served: &mut Model, part: Part, inputs: Inputs<'_>| {
        if let Some(weights) = quantize(part, exact.weights(part), inputs) {
            served.set(part, weights);
        }
    };
    let embed = |model: &Model| -> Vec<f32> {
        let row = |id: &u32| &model.trunk.embedding[*id as usize * config.width..][..config.width];
        ids.iter().flat_map(row).copied().collect()
    };
    replace(served, Part::Embedding, Inputs::Tokens);
    let (mut h, mut h_served) = (embed(exact), embed(served));
    let rotary = Rotary::new(WINDOW_TOKENS, config.head_dim, config.rope_theta);
    let ones = vec![1.0; ids.len()];

    for layer in 0..config.layers {
        let norm = |h: &[f32]| {
            let mut x = h.to_vec();
            rms_norm(&mut x, &exact.trunk.layers[layer].attention_norm, config.rms_eps);
            x
        };
        let (x, x_served) = (norm(&h), norm(&h_served));
        let gptq = factor(&x, &x_served, &ones, config.width);
        for projection in [Projection::Query, Projection::Key, Projection::Value] {
            let inputs = Inputs::Moments { gptq: &gptq, tokens: ids.len() };
            replace(served, Part::Attention(layer, projection), inputs);
        }
        let attended = |model: &Model, x: &[f32]| {
            model.trunk.attended(&model.trunk.layers[layer], x, (&rotary, WINDOW_TOKENS))
        };
        let (a, a_served) = (attended(exact, &x), attended(served, &x_served));
        let gptq = factor(&a, &a_served, &ones, config.heads * config.head_dim);
        let inputs = Inputs::Moments { gptq: &gptq, tokens: ids.len() };
        replace(served, Part::Attention(layer, Projection::Out), inputs);
        let out = |model: &Model, a: &[f32]| model.trunk.layers[layer].attention_out.product(a);
        add_scaled(&mut h, 1.0, &out(exact, &a));
        add_scaled(&mut h_served, 1.0, &out(served, &a_served));

        let norm = |h: &[f32]| {
            let mut x = h.to_vec();
            rms_norm(&mut x, &exact.trunk.layers[layer].feed_forward_norm, config.rms_eps);
            x
        };
        let (x, x_served) = (norm(&h), norm(&h_served));
        let mut feed = FeedForward { layer, exact, x: &x, x_served: &x_served };
        let (out, out_served) = feed.run(served, &mut replace);
        add_scaled(&mut h, 1.0, &out);
        add_scaled(&mut h_served, 1.0, &out_served);
    }
    let norm = |h: &[f32]| {
        let mut x = h.to_vec();
        rms_norm(&mut x, &exact.trunk.final_norm, config.rms_eps);
        x
    };
    if !config.tied_head {
        let gptq = factor(&norm(&h), &norm(&h_served), &ones, config.width);
        replace(served, Part::Head, Inputs::Moments { gptq: &gptq, tokens: ids.len() });
    }
    Ok(())
}

fn factor(exact: &[f32], served: &[f32], weights: &[f32], columns: usize) -> Gptq {
    let mut moments = InputMoments::new(columns);
    moments.add(exact, served, weights);
    Gptq::new(&moments)
}

struct FeedForward<'a> {
    layer: usize,
    exact: &'a Model,
    x: &'a [f32],
    x_served: &'a [f32],
}

/// The tokens of each expert and their gates.
type Routed = Vec<(Vec<usize>, Vec<f32>)>;

impl FeedForward<'_> {
    /// Quantizes the layer's experts and gives the layer's outputs in both models.
    fn run(
        &mut self,
        served: &mut Model,
        replace: &mut impl FnMut(&mut Model, Part, Inputs<'_>),
    ) -> (Vec<f32>, Vec<f32>) {
        let width = self.exact.trunk.config.width;
        let tokens = self.x.len() / width;
        let routed = route(self.exact, self.layer, self.x);
        let routed_served = route(self.exact, self.layer, self.x_served);
        // An expert that few tokens reach learns from the whole layer as well.
        let layer_moments = (routed_served.len() > 1).then(|| {
            let mut moments = InputMoments::new(width);
            moments.add(self.x, self.x_served, &vec![1.0; tokens]);
            moments
        });
        let (mut out, mut out_served) = (vec![0.0; self.x.len()], vec![0.0; self.x.len()]);
        for (expert, (rows, gates)) in routed_served.iter().enumerate() {
            let of = |part| Part::Expert(self.layer, expert, part);
            let (x, x_served) = (pick(self.x, rows, width), pick(self.x_served, rows, width));
            let weights: Vec<f32> = gates.iter().map(|gate| gate * gate).collect();
            let mut moments = InputMoments::new(width);
            moments.add(&x, &x_served, &weights);
            if let Some(layer) = layer_moments.as_ref().filter(|_| rows.len() < FEW * width) {
                let (own, all) = (moments.scale(), layer.scale());
                let share = 1.0 - rows.len() as f64 / (FEW * width) as f64;
                // As much energy as the missing tokens would have; any amount where none came.
                let energy = if rows.is_empty() { all } else { own / rows.len() as f64 };
                let missing = share * (FEW * width) as f64;
                moments.blend(layer, if all > 0.0 { energy * missing / all } else { 0.0 });
            }
            let gptq = Gptq::new(&moments);
            for part in [ExpertPart::Gate, ExpertPart::Up] {
                replace(served, of(part), Inputs::Moments { gptq: &gptq, tokens: rows.len() });
            }
            let inner = inner(&self.exact.experts[self.layer][expert], &x);
            let inner_served = self::inner(&served.experts[self.layer][expert], &x_served);
            let hidden = served.experts[self.layer][expert].shape.hidden;
            let gptq = factor(&inner, &inner_served, &weights, hidden);
            replace(
                served,
                of(ExpertPart::Down),
                Inputs::Moments { gptq: &gptq, tokens: rows.len() },
            );
            let down = Weights::from_rows(&served.experts[self.layer][expert].down, hidden);
            scatter(&mut out_served, &down.product(&inner_served), rows, gates, width);
        }
        for (expert, (rows, gates)) in routed.iter().enumerate() {
            let weights = &self.exact.experts[self.layer][expert];
            let inner = inner(weights, &pick(self.x, rows, width));
            let down = Weights::from_rows(&weights.down, weights.shape.hidden);
            scatter(&mut out, &down.product(&inner), rows, gates, width);
        }
        (out, out_served)
    }
}

/// Tokens an input that an expert needs for moments of its own.
const FEW: usize = 4;

/// Which tokens each expert gets, by the exact router; all of them in a dense layer.
fn route(model: &Model, layer: usize, x: &[f32]) -> Routed {
    let width = model.trunk.config.width;
    let (FeedForwardWeights::Routed { router, .. }, Some(moe)) =
        (&model.trunk.layers[layer].feed_forward, model.trunk.config.moe)
    else {
        let tokens = x.len() / width;
        return vec![((0..tokens).collect(), vec![1.0; tokens])];
    };
    let mut probabilities = router.product(x);
    moe.routing.score(&mut probabilities, moe.experts);
    let choices: Choices = top_k(&probabilities, moe.experts, moe.top_k);
    let gates = gates(&probabilities, &choices, &moe.routing);
    let mut routed: Routed = vec![(Vec::new(), Vec::new()); moe.experts];
    for token in 0..choices.tokens() {
        for pair in choices.pairs(token) {
            let (rows, own) = &mut routed[choices.experts()[pair].index()];
            rows.push(token);
            own.push(gates[pair]);
        }
    }
    routed
}

fn pick(rows: &[f32], tokens: &[usize], width: usize) -> Vec<f32> {
    tokens.iter().flat_map(|token| &rows[token * width..][..width]).copied().collect()
}

/// `silu(W_gate x) ⊙ W_up x`.
fn inner(expert: &super::ExpertWeights, x: &[f32]) -> Vec<f32> {
    let width = expert.shape.width;
    let mut gate = Weights::from_rows(&expert.gate, width).product(x);
    swiglu(&mut gate, &Weights::from_rows(&expert.up, width).product(x));
    gate
}

fn scatter(sum: &mut [f32], rows: &[f32], tokens: &[usize], gates: &[f32], width: usize) {
    for ((row, token), gate) in rows.chunks_exact(width).zip(tokens).zip(gates) {
        add_scaled(&mut sum[token * width..][..width], *gate, row);
    }
}
