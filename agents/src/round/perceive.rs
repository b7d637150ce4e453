//! Perceive: logits become router probabilities.

use crate::world::{Batch, Perceived};
use bevy_ecs::prelude::{Res, ResMut};
use rayon::prelude::*;

/// Tokens that one task handles.
const TOKEN_BLOCK: usize = 128;

/// Softmax over the experts, token by token.
pub(super) fn perceive(batch: Res<'_, Batch>, mut perceived: ResMut<'_, Perceived>) {
    let experts = batch.experts;
    perceived.probabilities.clone_from(&batch.logits);
    perceived
        .probabilities
        .par_chunks_mut(TOKEN_BLOCK * experts)
        .for_each(|block| block.chunks_mut(experts).for_each(softmax));
}

/// In place, shifted by the maximum, summed in expert order.
fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use super::softmax;

    #[test]
    fn probabilities_sum_to_one_and_survive_large_logits() {
        let mut row = [1000.0, 1000.0, -1000.0, 999.0];
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((row[3] / row[0] - (-1.0f32).exp()).abs() < 1e-6);
        assert_eq!(row[2], 0.0);
    }
}
