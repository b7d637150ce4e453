//! What fewer bits cost: the error of one expert's output, weighted by its routing.
//!
//! With f the f32 expert, f_b the expert at width b and g_t the gate weight of the expert's token t,
//! `cost(b) = Σ_t g_t² ‖f(x_t) − f_b(x_t)‖² ÷ Σ_t ‖y_t‖²`, where y_t is the layer's combined output of
//! every token of the sample. The quotient is this expert's part of the layer's relative squared
//! error, so costs add over experts (their errors taken as uncorrelated) and compare over layers.

use crate::expert::{BitWidth, Expert, ExpertShape, reference};

/// The f32 weights of one expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights<'a> {
    /// Its sizes.
    pub shape: ExpertShape,
    /// `[hidden, width]`.
    pub gate: &'a [f32],
    /// `[hidden, width]`.
    pub up: &'a [f32],
    /// `[width, hidden]`.
    pub down: &'a [f32],
}

/// What a sample of text sent to one expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSample<'a> {
    /// Activations of the expert's tokens, `[m, width]`.
    pub x: &'a [f32],
    /// Their gate weights, `[m]`.
    pub gates: &'a [f32],
    /// [`output_energy`] of the layer over the whole sample.
    pub layer_energy: f64,
    /// The share of the layer's output energy that an expert without a token is assumed to have:
    /// [`unseen_share`].
    pub unseen_share: f64,
}

/// `Σ ‖y_t‖²` over the rows of the layer's combined output.
#[must_use]
pub fn output_energy(y: &[f32]) -> f64 {
    y.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// The share of an expert that saw none of the sample's `assignments` (tokens × experts per token):
/// `1 / (assignments + experts)`, Laplace's rule of succession.
#[must_use]
pub fn unseen_share(assignments: usize, experts: usize) -> f64 {
    1.0 / (assignments + experts) as f64
}

/// The cost of each width of `widths`, in their order; [`BitWidth::Full`] costs nothing.
///
/// An expert without a token, or a layer without energy, has
/// `cost(b) = unseen_share · Σ_p ‖W_p − Ŵ_p‖² ÷ ‖W_p‖²` over its three matrices p: to first order,
/// relative errors of the factors of a product add.
///
/// # Panics
/// When a slice's length does not match, or as [`Expert::quantize`] does.
#[must_use]
pub fn sensitivity(
    weights: &ExpertWeights<'_>,
    sample: &ExpertSample<'_>,
    widths: &[BitWidth],
    group: usize,
) -> Vec<f64> {
    let width = weights.shape.width;
    assert_eq!(sample.x.len(), sample.gates.len() * width, "one gate weight per row");
    let at =
        |bits| Expert::quantize(weights.shape, weights.gate, weights.up, weights.down, bits, group);
    let full = at(BitWidth::Full);
    let seen = !sample.gates.is_empty() && sample.layer_energy > 0.0;
    let exact = forward(&full, sample.x);
    let cost = |bits: &BitWidth| {
        if *bits == BitWidth::Full {
            0.0
        } else if seen {
            let out = forward(&at(*bits), sample.x);
            gated_error(&exact, &out, sample.gates, width) / sample.layer_energy
        } else {
            sample.unseen_share * weight_error(&full, &at(*bits))
        }
    };
    widths.iter().map(cost).collect()
}

fn forward(expert: &Expert, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    expert.forward(x, &mut out);
    out
}

fn gated_error(exact: &[f32], out: &[f32], gates: &[f32], width: usize) -> f64 {
    let rows = exact.chunks_exact(width).zip(out.chunks_exact(width));
    rows.zip(gates)
        .map(|((a, b), gate)| {
            let error = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            f64::from(*gate).powi(2) * error.sum::<f64>()
        })
        .sum()
}

/// Σ over the matrices of ‖W − Ŵ‖² ÷ ‖W‖²; a matrix of zeros has no error.
fn weight_error(full: &Expert, quantized: &Expert) -> f64 {
    let relative = |(w, q): (&Vec<f64>, &Vec<f64>)| {
        let energy: f64 = w.iter().map(|w| w * w).sum();
        let error: f64 = w.iter().zip(q).map(|(w, q)| (w - q).powi(2)).sum();
        if energy > 0.0 { error / energy } else { 0.0 }
    };
    reference::weights(full).iter().zip(&reference::weights(quantized)).map(relative).sum()
}
