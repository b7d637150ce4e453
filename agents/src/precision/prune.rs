//! Pruning: width 0 for the experts of a layer that matter least.
//!
//! A pruned expert's router row goes with it, which is the same as a logit of −∞ before the top k:
//! the softmax and the gates are those of the experts that are left. Keeping the row and answering
//! zeros instead ruins a model at a few percent.

use crate::expert::Expert;

/// By what experts are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneCriterion {
    /// `Σ_t g_t ‖f(x_t)‖₂ / m` over the expert's m tokens: router-weighted expert activation pruning
    /// (REAP, arXiv 2510.13999).
    Reap,
    /// The share of tokens routed to the expert: the control.
    Frequency,
}

/// An expert's score on a sample under plain top-k: `x` is `[m, width]`, its tokens, and `gates` their
/// gate weights `[m]`; `tokens` is the size of the whole sample. An expert without a token scores 0.
///
/// # Panics
/// When there is not one gate a row.
#[must_use]
pub fn prune_score(
    criterion: PruneCriterion,
    expert: &Expert,
    x: &[f32],
    gates: &[f32],
    tokens: usize,
) -> f64 {
    let width = expert.shape().width;
    assert_eq!(x.len(), gates.len() * width, "one gate weight per row");
    if gates.is_empty() {
        return 0.0;
    }
    match criterion {
        PruneCriterion::Frequency => gates.len() as f64 / tokens as f64,
        PruneCriterion::Reap => {
            let mut out = vec![0.0; x.len()];
            expert.forward(x, &mut out);
            let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let weighted = out.chunks_exact(width).zip(gates);
            let sum: f64 = weighted.map(|(row, gate)| f64::from(*gate) * norm(row)).sum();
            sum / gates.len() as f64
        }
    }
}

/// Experts that a share of a layer comes to, rounded down; fewer than there are.
///
/// # Panics
/// When the share is not from 0 to below 1.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounding down is meant, and a share is not negative"
)]
pub fn pruned_count(share: f64, experts: usize) -> usize {
    assert!((0.0..1.0).contains(&share), "a share lies from 0 to below 1");
    // A product that is whole on paper may end just below.
    let count = (share * experts as f64 + 1e-9) as usize;
    count.min(experts.saturating_sub(1))
}

/// The experts that are kept, ascending, when the [`pruned_count`] with the lowest scores go; of equal
/// scores the higher id goes first.
///
/// # Panics
/// When the share is out of range.
#[must_use]
pub fn prune_lowest(scores: &[f64], share: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(scores.len() - pruned_count(share, scores.len()));
    order.sort_unstable();
    order
}
