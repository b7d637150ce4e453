//! Gradient of the auxiliary balancing loss, as routers are trained with. A control.

use super::{RowRule, Seen, add};

/// `v_e = −step mean_t p_te (f_e − Σ_j f_j p_tj) E x_t`: down the gradient of `E Σ_e f_e P_e` (Fedus et al.
/// 2022, Switch Transformers, equations 4 to 6) by the rows, with f the loads over the fair share, held still,
/// and p the scores over their sum; token directions in the place of hidden states, so that a step is an
/// angle. Reads all tokens: it is not local.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuxiliaryLoss {
    /// Radians a batch per unit of gradient.
    pub step: f64,
}

impl Default for AuxiliaryLoss {
    fn default() -> Self {
        Self { step: 0.02 }
    }
}

impl RowRule for AuxiliaryLoss {
    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
        let experts = seen.experts();
        let mut all = vec![0.0; seen.rows.len()];
        let rows = seen.scores.chunks_exact(experts).zip(seen.tokens.chunks_exact(seen.width));
        let each = self.step * experts as f64 / (seen.tokens.len() / seen.width) as f64;
        for (scores, token) in rows {
            let sum: f64 = scores.iter().map(|p| f64::from(*p)).sum::<f64>().max(f64::MIN_POSITIVE);
            let share = |e: usize| f64::from(scores[e]) / sum;
            let mean: f64 = (0..experts).map(|e| seen.excess[e] * share(e)).sum();
            for (e, v) in all.chunks_exact_mut(seen.width).enumerate() {
                add(v, -each * share(e) * (seen.excess[e] - mean), token);
            }
        }
        all
    }
}
