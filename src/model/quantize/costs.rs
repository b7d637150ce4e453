//! What each width costs each matrix, in nats of expected loss.
//!
//! Output errors of different matrices cannot be compared, so they are scaled by what they do to
//! the model's predictions: all matrices of a kind in a layer are quantized at a trial width, the
//! divergence from the exact model's next-token distribution is measured, and it is shared out to
//! the matrices by their part of the output error `tr(Δ H Δᵀ)` that GPTQ leaves. Errors at other
//! widths scale with it: the divergence is quadratic in a small change of the logits.

use super::super::experts::LocalExperts;
use super::super::trunk::TokensError;
use super::streams::{Inputs, Visited, by_itself, visit};
use super::{ExpertPart, Model, Part, Projection, window_tokens};
use agents::precision::{Unit, chosen_together};
use agents::quantize::{Format, QuantizedMatrix};
use agents::transformer::divergence;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What the calibration text shows of a model.
pub(super) struct Costs {
    /// For each matrix, its cost at each format.
    each: BTreeMap<Part, Vec<f64>>,
    /// By layer: tokens that chose both of two experts, `[E, E]`.
    together: Vec<Vec<u64>>,
}

/// Windows on which divergence is measured.
const DIVERGENCE_WINDOWS: usize = 12;

/// Matrices whose divergence is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Embedding,
    Attention(usize, Projection),
    Expert(usize, ExpertPart),
    Shared(usize, ExpertPart),
    Head,
}

impl Costs {
    /// Of a matrix, at each format.
    pub(super) fn of(&self, part: Part) -> Option<&[f64]> {
        self.each.get(&part).map(Vec::as_slice)
    }
}

impl Kind {
    fn of(part: Part) -> Self {
        match part {
            Part::Embedding => Self::Embedding,
            Part::Head => Self::Head,
            Part::Attention(layer, projection) => Self::Attention(layer, projection),
            Part::Expert(layer, _, part) => Self::Expert(layer, part),
            Part::Shared(layer, part) => Self::Shared(layer, part),
        }
    }
}

/// Errors of a matrix at each format, and its weights at the trial format; none of a matrix that is not
/// quantized.
pub(super) type Trial = Option<(Vec<f64>, Vec<f32>)>;

/// Rounds a matrix by GPTQ at each format, as [`super::Measured::quantize`] does in the end.
pub(super) fn by_gptq(
    frequencies: &[f64],
    formats: &[Format],
) -> impl Fn(Part, &[f32], Inputs<'_>) -> Trial + Sync {
    // The width in the middle: large enough an error to be measured, small enough to be quadratic.
    let trial = formats.len() / 2;
    move |_, weights, inputs| {
        let quantized: Vec<(QuantizedMatrix, f64)> = match inputs {
            Inputs::Tokens => formats
                .iter()
                .map(|format| {
                    let matrix = by_itself(weights, weights.len() / frequencies.len(), *format);
                    let error = row_errors(weights, &matrix.weights(), frequencies);
                    (matrix, error)
                })
                .collect(),
            Inputs::Moments { of, .. } => {
                formats.iter().map(|format| of.gptq().quantize(weights, *format)).collect()
            }
        };
        let errors = quantized.iter().map(|(_, error)| *error).collect();
        Some((errors, quantized[trial].0.weights()))
    }
}

/// Rounds a matrix of a routed expert group by group at each format, as runs serve it; nothing else.
pub(super) fn by_groups(
    routed_layers: &[usize],
    formats: &[Format],
) -> impl Fn(Part, &[f32], Inputs<'_>) -> Trial + Sync {
    let trial = formats.len() / 2;
    move |part, weights, inputs| {
        let (Part::Expert(layer, ..), Inputs::Moments { of, .. }) = (part, inputs) else {
            return None;
        };
        if !routed_layers.contains(&layer) {
            return None;
        }
        let rounded = |format: &Format| by_itself(weights, of.moments.columns(), *format).weights();
        let mut each: Vec<Vec<f32>> = formats.iter().map(rounded).collect();
        let errors = each.iter().map(|rounded| of.moments.error(weights, rounded)).collect();
        Some((errors, each.swap_remove(trial)))
    }
}

/// Measures the costs of all matrices that `round` rounds. `trial` is the place of the trial format.
pub(super) fn measure(
    exact: &Model,
    ids: &[u32],
    trial: usize,
    round: &(dyn Fn(Part, &[f32], Inputs<'_>) -> Trial + Sync),
) -> Result<Costs, TokensError> {
    let at_each = |part: Part, weights: &[f32], inputs: Inputs<'_>| Visited {
        given: round(part, weights, inputs),
        replacement: None,
    };
    let mut errors: BTreeMap<Part, Vec<f64>> = BTreeMap::new();
    let mut trials: BTreeMap<Kind, Vec<(Part, Vec<f32>)>> = BTreeMap::new();
    let seen = visit(exact, ids, &at_each)?;
    for (part, given) in seen.given {
        let Some((each, weights)) = given else { continue };
        errors.insert(part, each);
        trials.entry(Kind::of(part)).or_default().push((part, weights));
    }
    let scales = scales(exact, ids, trials, |part| errors[&part][trial])?;
    let scaled = |(part, errors): (Part, Vec<f64>)| {
        let scale = scales[&Kind::of(part)];
        (part, errors.iter().map(|error| scale * error).collect())
    };
    let each = errors.into_iter().map(scaled).collect();
    Ok(Costs { each, together: seen.together })
}

/// Divergence for a unit of output error, of each kind of matrix, when it alone has its trial weights.
fn scales(
    exact: &Model,
    ids: &[u32],
    trials: BTreeMap<Kind, Vec<(Part, Vec<f32>)>>,
    error: impl Fn(Part) -> f64,
) -> Result<BTreeMap<Kind, f64>, TokensError> {
    let window = window_tokens(&exact.trunk.config);
    let windows = ids.len() / window;
    let taken = windows.min(DIVERGENCE_WINDOWS);
    let some: Vec<u32> = (0..taken)
        .flat_map(|at| &ids[at * windows / taken * window..][..window])
        .copied()
        .collect();
    let reference = logits(exact, &some, window)?;
    let mut scales = BTreeMap::new();
    for (kind, parts) in trials {
        let mut model = exact.clone();
        let total: f64 = parts.iter().map(|(part, _)| error(*part)).sum();
        parts.into_iter().for_each(|(part, weights)| model.set(part, weights));
        let own = logits(&model, &some, window)?;
        let vocab = exact.trunk.config.vocab;
        let rows = reference.par_chunks_exact(vocab).zip(own.par_chunks_exact(vocab));
        let each: Vec<f64> = rows.map(|(a, b)| divergence(a, b)).collect();
        let mean = each.iter().sum::<f64>() / each.len() as f64;
        scales.insert(kind, if total > 0.0 { mean.max(0.0) / total } else { 0.0 });
    }
    Ok(scales)
}

/// Squared errors of rows, times how often they are looked up.
fn row_errors(weights: &[f32], quantized: &[f32], frequencies: &[f64]) -> f64 {
    let width = weights.len() / frequencies.len();
    let rows = weights.chunks_exact(width).zip(quantized.chunks_exact(width)).zip(frequencies);
    rows.map(|((a, b), frequency)| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        frequency * squares.sum::<f64>()
    })
    .sum()
}

/// The model's logits on windows of a length, experts in f32 under plain top-k.
fn logits(model: &Model, ids: &[u32], window: usize) -> Result<Vec<f32>, TokensError> {
    logits_of((model, &model.local_experts()), ids, window)
}

/// [`logits`] of a model whose experts are made ready once.
pub(super) fn logits_of(
    (model, experts): (&Model, &LocalExperts),
    ids: &[u32],
    window: usize,
) -> Result<Vec<f32>, TokensError> {
    let mut pass = model.trunk.begin(ids, window)?;
    for layer in 0..model.trunk.layers.len() {
        let Some(input) = pass.up_to_router(layer) else { continue };
        let output = experts.forward(layer, input.hidden, input.router_logits).output;
        pass.add_moe(layer, &output);
    }
    Ok(pass.logits())
}

/// Cost and bytes of each format for every matrix, in their order.
pub(super) fn units(
    costs: &Costs,
    parts: &[(Part, usize)],
    sizes: impl Fn(&(Part, usize)) -> (usize, usize),
    formats: &[Format],
) -> Vec<Unit> {
    let unit = |part: &(Part, usize)| {
        let (rows, columns) = sizes(part);
        Unit {
            costs: costs.each[&part.0].clone(),
            bytes: formats.iter().map(|format| format.bytes(rows, columns)).collect(),
        }
    };
    parts.iter().map(unit).collect()
}

/// The matrices that each matrix minds, as places in `parts`: of an expert its other matrices, and the same matrix
/// of the experts that share most tokens with it; of attention and shared experts the other matrices of the layer;
/// of the embedding the head.
pub(super) fn neighbours(costs: &Costs, parts: &[(Part, usize)]) -> Vec<Vec<usize>> {
    /// As starlings keep, and the two that are always there.
    const NEIGHBOURS: usize = 7;
    let place: BTreeMap<Part, usize> =
        parts.iter().enumerate().map(|(at, (part, _))| (*part, at)).collect();
    let near: Vec<Vec<Vec<usize>>> = costs
        .together
        .iter()
        .map(|together| chosen_together(together, together.len().isqrt(), NEIGHBOURS - 2))
        .collect();
    let all = [ExpertPart::Gate, ExpertPart::Up, ExpertPart::Down];
    let own = |at: usize| match parts[at].0 {
        Part::Expert(layer, expert, part) => {
            let others = all.into_iter().filter(|other| *other != part);
            let others = others.map(|other| Part::Expert(layer, expert, other));
            let same = near[layer][expert].iter().map(|near| Part::Expert(layer, *near, part));
            others.chain(same).map(|part| place[&part]).collect()
        }
        Part::Shared(layer, part) => {
            let others = all.into_iter().filter(|other| *other != part);
            others.map(|other| place[&Part::Shared(layer, other)]).collect()
        }
        Part::Attention(layer, projection) => {
            let of_layer = |(other, _): &(Part, usize)| matches!(other, Part::Attention(of, p) if *of == layer && *p != projection);
            (0..parts.len()).filter(|at| of_layer(&parts[*at])).collect()
        }
        Part::Embedding | Part::Head => {
            let is_end = |at: &usize| matches!(parts[*at].0, Part::Embedding | Part::Head);
            (0..parts.len()).filter(is_end).filter(|other| *other != at).collect()
        }
    };
    (0..parts.len()).map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_mind_their_expert_and_the_experts_that_share_most_tokens() {
        use ExpertPart::{Down, Gate, Up};
        let experts = (0..3).flat_map(|e| [Gate, Up, Down].map(|part| Part::Expert(0, e, part)));
        let attention = [Projection::Query, Projection::Out].map(|p| Part::Attention(0, p));
        let parts = std::iter::once(Part::Embedding).chain(attention).chain(experts);
        let parts: Vec<(Part, usize)> = parts.map(|part| (part, 4)).collect();
        // Experts 0 and 2 met in five tokens, 1 and 2 in two, 0 and 1 never.
        let together = vec![vec![5, 0, 5, 0, 2, 2, 5, 2, 7]];
        let found = neighbours(&Costs { each: BTreeMap::new(), together }, &parts);
        let named = |at: usize| found[at].iter().map(|at| parts[*at].0).collect::<Vec<_>>();
        assert_eq!(named(0), []);
        assert_eq!(named(1), [Part::Attention(0, Projection::Out)]);
        let of_first = [Part::Expert(0, 0, Gate), Part::Expert(0, 0, Down), Part::Expert(0, 2, Up)];
        assert_eq!(named(4), of_first);
        let last = [(2, Gate), (2, Up), (0, Down), (1, Down)];
        assert_eq!(named(11), last.map(|(expert, part)| Part::Expert(0, expert, part)));
    }
}
