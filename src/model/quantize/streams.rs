//! Calibration tokens on their way through the exact model and through the quantized one, side by
//! side.

use super::super::checkpoint::ExpertWeights;
use super::super::context::Context;
use super::super::experts::top_k;
use super::super::trunk::{FeedForwardWeights, TokensError, add_bias};
use super::{ExpertPart, Model, Part, Projection, Rounding, window_tokens};
use agents::game::Choices;
use agents::linear::Weights;
use agents::quantize::{Format, Gptq, InputMoments, QuantizedMatrix, hqq, nearest};
use agents::routing::{gates, sigmoid};
use agents::transformer::{add_scaled, rms_norm, swiglu};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::OnceLock;

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
    let width = exact.trunk.config.width;
    let round = |part: Part, weights: &[f32], inputs: Inputs<'_>| {
        let format = formats[&part];
        let columns = match &inputs {
            Inputs::Tokens => width,
            Inputs::Moments { of, .. } => of.moments.columns(),
        };
        let matrix = match (rounding, &inputs) {
            (Rounding::Hqq, _) => hqq(weights, columns, format),
            (Rounding::Nearest, _) | (_, Inputs::Tokens) => by_itself(weights, columns, format),
            (Rounding::Gptq, Inputs::Moments { of, .. }) => of.gptq().quantize(weights, format).0,
            (Rounding::Search, Inputs::Moments { of, .. }) => match of.gptq().importance() {
                Some(importance) => nearest(weights, importance, format),
                None => by_itself(weights, columns, format),
            },
        };
        let rare = match (part, inputs) {
            (Part::Expert(layer, expert, ExpertPart::Gate), Inputs::Moments { tokens, .. })
                if tokens < columns =>
            {
                Some((layer, expert, tokens))
            }
            _ => None,
        };
        let weights = matrix.weights();
        Visited { given: (matrix, rare), replacement: Some(weights) }
    };
    let mut done = Done { matrices: BTreeMap::new(), rarely_seen: Vec::new() };
    for (part, (matrix, rare)) in visit(exact, ids, &round)?.given {
        done.matrices.insert(part, matrix);
        done.rarely_seen.extend(rare);
    }
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
        of: &'a InputsSeen,
        /// Tokens they were taken from.
        tokens: usize,
    },
}

/// Moments of inputs, factored when that is first asked for.
pub(super) struct InputsSeen {
    pub(super) moments: InputMoments,
    gptq: OnceLock<Gptq>,
}

impl InputsSeen {
    fn new(moments: InputMoments) -> Self {
        Self { moments, gptq: OnceLock::new() }
    }

    pub(super) fn gptq(&self) -> &Gptq {
        self.gptq.get_or_init(|| Gptq::new(&self.moments))
    }
}

/// What was made of a matrix.
pub(super) struct Visited<T> {
    /// Handed to the caller of [`visit`].
    pub(super) given: T,
    /// Weights that stand in its place from here on.
    pub(super) replacement: Option<Vec<f32>>,
}

/// An expert's matrices, and its outputs for its tokens.
type VisitedExpert<T> = (Vec<(Part, Visited<T>)>, Vec<f32>);

/// Makes something of a matrix and of what is known of its inputs. Experts of a layer are quantized
/// at the same time.
type Quantize<'a, T> = dyn Fn(Part, &[f32], Inputs<'_>) -> Visited<T> + Sync + 'a;

/// What a visit saw.
pub(super) struct Seen<T> {
    /// What was made of each matrix, in their order.
    pub(super) given: Vec<(Part, T)>,
    /// By layer: tokens that the exact router sent to both of two experts, `[E, E]`.
    pub(super) together: Vec<Vec<u64>>,
}

/// Sends tokens through the exact model and through one whose matrices are replaced on the way, layer
/// by layer. The same bits at any number of threads.
pub(super) fn visit<T: Send + Sync>(
    exact: &Model,
    ids: &[u32],
    quantize: &Quantize<'_, T>,
) -> Result<Seen<T>, TokensError> {
    let config = &exact.trunk.config;
    // The pass checks the ids; its own layers are not run.
    let checked = window_tokens(config).min(ids.len());
    exact.trunk.begin(&ids[..checked], checked)?;
    if let Some(position) = ids.iter().position(|id| *id as usize >= config.vocab) {
        let (id, vocab) = (ids[position], config.vocab);
        return Err(TokensError::Vocabulary { id, position, vocab });
    }
    let (given, together) = (Vec::new(), Vec::new());
    let mut walk = Walk { exact, served: exact.clone(), quantize, given, together };
    walk.replace(Part::Embedding, Inputs::Tokens);
    let mut hidden = Both { exact: embed(exact, ids), served: embed(&walk.served, ids) };
    for layer in 0..config.layers {
        let x = hidden.normed(&exact.trunk.layers[layer].attention_norm, config.rms_eps);
        let attention = walk.attention(layer, &x);
        hidden.add(&attention);
        let x = hidden.normed(&exact.trunk.layers[layer].feed_forward_norm, config.rms_eps);
        let feed_forward = walk.feed_forward(layer, &x);
        hidden.add(&feed_forward);
    }
    if !config.tied_head {
        let x = hidden.normed(&exact.trunk.final_norm, config.rms_eps);
        let of = seen(&x, &vec![1.0; ids.len()], config.width);
        walk.replace(Part::Head, Inputs::Moments { of: &of, tokens: ids.len() });
    }
    Ok(Seen { given: walk.given, together: walk.together })
}

/// Rows in the exact model and in the one whose matrices are replaced.
struct Both {
    exact: Vec<f32>,
    served: Vec<f32>,
}

impl Both {
    fn normed(&self, norm: &[f32], rms_eps: f32) -> Self {
        let normed = |rows: &[f32]| {
            let mut rows = rows.to_vec();
            rms_norm(&mut rows, norm, rms_eps);
            rows
        };
        Self { exact: normed(&self.exact), served: normed(&self.served) }
    }

    fn add(&mut self, other: &Self) {
        add_scaled(&mut self.exact, 1.0, &other.exact);
        add_scaled(&mut self.served, 1.0, &other.served);
    }
}

fn embed(model: &Model, ids: &[u32]) -> Vec<f32> {
    let width = model.trunk.config.width;
    let row = |id: &u32| &model.trunk.embedding[*id as usize * width..][..width];
    ids.iter().flat_map(row).copied().collect()
}

fn seen(x: &Both, weights: &[f32], columns: usize) -> InputsSeen {
    let mut moments = InputMoments::new(columns);
    moments.add(&x.exact, &x.served, weights);
    InputsSeen::new(moments)
}

struct Walk<'a, T> {
    exact: &'a Model,
    served: Model,
    quantize: &'a Quantize<'a, T>,
    given: Vec<(Part, T)>,
    together: Vec<Vec<u64>>,
}

/// Experts that are quantized at the same time: their outputs for all their tokens are held.
const EXPERTS_AT_ONCE: usize = 16;

impl<T: Send + Sync> Walk<'_, T> {
    fn replace(&mut self, part: Part, inputs: Inputs<'_>) {
        let visited = (self.quantize)(part, &self.exact.weights(part), inputs);
        self.keep(part, visited);
    }

    fn keep(&mut self, part: Part, visited: Visited<T>) {
        self.given.push((part, visited.given));
        if let Some(weights) = visited.replacement {
            self.served.set(part, weights);
        }
    }

    /// Quantizes a layer's attention and gives its outputs.
    fn attention(&mut self, layer: usize, x: &Both) -> Both {
        let config = &self.exact.trunk.config;
        let tokens = x.exact.len() / config.width;
        let ones = vec![1.0; tokens];
        let inputs = seen(x, &ones, config.width);
        let replace = |walk: &mut Self, projection, of: &InputsSeen| {
            walk.replace(Part::Attention(layer, projection), Inputs::Moments { of, tokens });
        };
        match &config.latent {
            None => {
                for projection in [Projection::Query, Projection::Key, Projection::Value] {
                    replace(self, projection, &inputs);
                }
            }
            Some(latent) => {
                if latent.query_rank.is_some() {
                    replace(self, Projection::QueryDown, &inputs);
                }
                replace(self, Projection::KeyValueDown, &inputs);
                let made = |model: &Model, x: &[f32]| {
                    let of_layer = model.trunk.layers[layer].latent.as_ref();
                    let of_layer = of_layer.expect("attention is latent");
                    (of_layer.query_latent(x), of_layer.key_value_latent(x))
                };
                let (exact, served) = (made(self.exact, &x.exact), made(&self.served, &x.served));
                match (latent.query_rank, exact.0, served.0) {
                    (Some(rank), Some(exact), Some(served)) => {
                        let latent = seen(&Both { exact, served }, &ones, rank);
                        replace(self, Projection::Query, &latent);
                    }
                    _ => replace(self, Projection::Query, &inputs),
                }
                let both = Both { exact: exact.1, served: served.1 };
                replace(self, Projection::KeyValueUp, &seen(&both, &ones, latent.kv_rank));
            }
        }
        let window = window_tokens(config);
        let rotary = self.exact.trunk.rotary(window);
        let attended = |model: &Model, x: &[f32]| {
            let mut context = Context::Windows { rotary: rotary.clone(), window };
            let (weights, context) = (&model.trunk.layers[layer], (layer, &mut context));
            match (&config.latent, &weights.latent) {
                (Some(latent), Some(of_layer)) => {
                    latent.attended(weights, of_layer, x, config.heads, context)
                }
                _ => model.trunk.attended(weights, x, context),
            }
        };
        let attended = Both {
            exact: attended(self.exact, &x.exact),
            served: attended(&self.served, &x.served),
        };
        replace(self, Projection::Out, &seen(&attended, &ones, self.exact.attended()));
        let out = |model: &Model, a: &[f32]| {
            let weights = &model.trunk.layers[layer];
            let mut out = weights.attention_out.product(a);
            if let Some(bias) = weights.biases.as_ref().and_then(|biases| biases.out.as_ref()) {
                add_bias(&mut out, bias);
            }
            out
        };
        Both {
            exact: out(self.exact, &attended.exact),
            served: out(&self.served, &attended.served),
        }
    }

    /// Quantizes a layer's experts and gives the layer's outputs.
    fn feed_forward(&mut self, layer: usize, x: &Both) -> Both {
        let width = self.exact.trunk.config.width;
        let routed = route(self.exact, layer, &x.exact);
        self.together.push(together(&routed, x.exact.len() / width));
        let routed_served = route(self.exact, layer, &x.served);
        // An expert that few tokens reach learns from the whole layer as well.
        let layer_moments = (routed_served.len() > 1).then(|| {
            let mut moments = InputMoments::new(width);
            moments.add(&x.exact, &x.served, &vec![1.0; x.exact.len() / width]);
            moments
        });
        let mut out = Both { exact: vec![0.0; x.exact.len()], served: vec![0.0; x.exact.len()] };
        let experts: Vec<usize> = (0..routed.len()).collect();
        for experts in experts.chunks(EXPERTS_AT_ONCE) {
            let quantized: Vec<VisitedExpert<T>> = experts
                .par_iter()
                .map(|expert| {
                    let of_layer = layer_moments.as_ref();
                    self.expert((layer, *expert), x, &routed_served[*expert], of_layer)
                })
                .collect();
            let exact: Vec<Vec<f32>> = experts
                .par_iter()
                .map(|expert| {
                    let weights = &self.exact.experts[layer][*expert];
                    let x = picked(&x.exact, &routed[*expert].0, width);
                    down(&weights.down, &inner(&weights.gate, &weights.up, &x, width), width)
                })
                .collect();
            for ((expert, (visited, served)), exact) in experts.iter().zip(quantized).zip(exact) {
                visited.into_iter().for_each(|(part, visited)| self.keep(part, visited));
                scatter(&mut out.served, &served, &routed_served[*expert], width);
                scatter(&mut out.exact, &exact, &routed[*expert], width);
            }
        }
        self.shared(layer, x, &mut out);
        out
    }

    /// Quantizes a layer's shared expert, where there is one, and adds its outputs.
    fn shared(&mut self, layer: usize, x: &Both, out: &mut Both) {
        let width = self.exact.trunk.config.width;
        let Some((own, gate)) = self.exact.shared(layer) else { return };
        // Its gate is not quantized.
        let gates = |x: &[f32]| match gate {
            Some(gate) => gate.product(x).into_iter().map(sigmoid).collect(),
            None => vec![1.0; x.len() / width],
        };
        let gates = Both { exact: gates(&x.exact), served: gates(&x.served) };
        let part = |part| Part::Shared(layer, part);
        let weights: Vec<f32> = gates.served.iter().map(|gate| gate * gate).collect();
        let (visited, served) = self.network(&part, &own, x, &weights, None);
        visited.into_iter().for_each(|(part, visited)| self.keep(part, visited));
        let exact = down(&own.down, &inner(&own.gate, &own.up, &x.exact, width), width);
        let all: Vec<usize> = (0..weights.len()).collect();
        scatter(&mut out.exact, &exact, &(all.clone(), gates.exact), width);
        scatter(&mut out.served, &served, &(all, gates.served), width);
    }

    /// Quantizes an expert and gives its outputs for its tokens.
    fn expert(
        &self,
        (layer, expert): (usize, usize),
        x: &Both,
        (rows, gates): &(Vec<usize>, Vec<f32>),
        layer_moments: Option<&InputMoments>,
    ) -> VisitedExpert<T> {
        let width = self.exact.trunk.config.width;
        let x =
            Both { exact: picked(&x.exact, rows, width), served: picked(&x.served, rows, width) };
        let weights: Vec<f32> = gates.iter().map(|gate| gate * gate).collect();
        let part = |part| Part::Expert(layer, expert, part);
        let own = &self.exact.experts[layer][expert];
        self.network(&part, own, &x, &weights, layer_moments)
    }

    /// Quantizes a network and gives its outputs for its tokens, which have these weights.
    fn network(
        &self,
        part: &dyn Fn(ExpertPart) -> Part,
        own: &ExpertWeights,
        x: &Both,
        weights: &[f32],
        layer_moments: Option<&InputMoments>,
    ) -> VisitedExpert<T> {
        let width = self.exact.trunk.config.width;
        let mut moments = InputMoments::new(width);
        moments.add(&x.exact, &x.served, weights);
        if let Some(of_layer) = layer_moments {
            borrow(&mut moments, of_layer);
        }
        let of = InputsSeen::new(moments);
        let visit = |at, rows: &[f32], of: &InputsSeen| {
            let inputs = Inputs::Moments { of, tokens: weights.len() };
            (part(at), (self.quantize)(part(at), rows, inputs))
        };
        let gate = visit(ExpertPart::Gate, &own.gate, &of);
        let up = visit(ExpertPart::Up, &own.up, &of);
        let served = |visited: &(Part, Visited<T>), exact: &[f32]| {
            visited.1.replacement.clone().unwrap_or_else(|| exact.to_vec())
        };
        let hidden = Both {
            exact: inner(&own.gate, &own.up, &x.exact, width),
            served: inner(&served(&gate, &own.gate), &served(&up, &own.up), &x.served, width),
        };
        let of = seen(&hidden, weights, own.shape.hidden);
        let last = visit(ExpertPart::Down, &own.down, &of);
        let out = down(&served(&last, &own.down), &hidden.served, width);
        (vec![gate, up, last], out)
    }
}

/// Makes up for the tokens that an expert lacks with those of its layer.
fn borrow(moments: &mut InputMoments, layer: &InputMoments) {
    let (tokens, enough) = (moments.tokens() as f64, (FEW * moments.columns()) as f64);
    if tokens >= enough {
        return;
    }
    let (own, all) = (moments.scale(), layer.scale());
    // As much energy as the missing tokens would have; any amount where none came.
    let energy = if tokens > 0.0 { own / tokens } else { all };
    let missing = (1.0 - tokens / enough) * enough;
    moments.blend(layer, if all > 0.0 { energy * missing / all } else { 0.0 });
}

/// The tokens of each expert and their gates.
pub(super) type Routed = Vec<(Vec<usize>, Vec<f32>)>;

/// Tokens that chose both of two experts, `[E, E]`.
fn together(routed: &Routed, tokens: usize) -> Vec<u64> {
    let experts = routed.len();
    let mut chosen = vec![Vec::new(); tokens];
    for (expert, (rows, _)) in routed.iter().enumerate() {
        rows.iter().for_each(|token| chosen[*token].push(expert));
    }
    let mut together = vec![0; experts * experts];
    for chosen in chosen {
        for expert in &chosen {
            chosen.iter().for_each(|other| together[expert * experts + other] += 1);
        }
    }
    together
}

/// Tokens an input that an expert needs for moments of its own.
const FEW: usize = 4;

/// Which tokens each expert gets, by the exact router; all of them in a dense layer.
pub(super) fn route(model: &Model, layer: usize, x: &[f32]) -> Routed {
    let width = model.trunk.config.width;
    let (FeedForwardWeights::Routed { router, .. }, Some(moe)) =
        (&model.trunk.layers[layer].feed_forward, model.trunk.config.moe)
    else {
        let tokens = x.len() / width;
        return vec![((0..tokens).collect(), vec![1.0; tokens])];
    };
    let mut scores = router.product(x);
    moe.routing.score(&mut scores, moe.experts);
    let selection = moe.routing.selection(&scores, &model.selection_bias[layer], moe.experts);
    let selection = selection.as_ref().unwrap_or(&scores);
    let choices: Choices = top_k(selection, moe.experts, moe.top_k);
    let gates = gates(&scores, &choices, &moe.routing);
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

pub(super) fn picked(rows: &[f32], tokens: &[usize], width: usize) -> Vec<f32> {
    tokens.iter().flat_map(|token| &rows[token * width..][..width]).copied().collect()
}

/// `silu(W_gate x) ⊙ W_up x`.
fn inner(gate: &[f32], up: &[f32], x: &[f32], width: usize) -> Vec<f32> {
    let mut inner = Weights::from_rows(gate, width).product(x);
    swiglu(&mut inner, &Weights::from_rows(up, width).product(x));
    inner
}

fn down(weights: &[f32], inner: &[f32], width: usize) -> Vec<f32> {
    Weights::from_rows(weights, weights.len() / width).product(inner)
}

fn scatter(sum: &mut [f32], rows: &[f32], (tokens, gates): &(Vec<usize>, Vec<f32>), width: usize) {
    for ((row, token), gate) in rows.chunks_exact(width).zip(tokens).zip(gates) {
        add_scaled(&mut sum[token * width..][..width], *gate, row);
    }
}
