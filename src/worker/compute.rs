//! The arithmetic of one order, the same in a worker and in process.

use agents::{expert::Expert, ids::TokenId, linear::ROW_BLOCK};
use rayon::prelude::*;
use std::sync::Arc;

/// Runs each group's rows of `hidden` through its expert. `hidden` is little-endian f32
/// `[rows, width]`; the result is f32 `[pairs, width]` in the order of the groups and their tokens.
///
/// Fixed row blocks run on the current rayon pool, and a row's bits never depend on its block, so
/// the result is the same at any thread count and however an order is split over nodes.
///
/// # Panics
/// When a token is not a row of `hidden` or an expert has another width.
#[must_use]
pub fn outputs(groups: &[(Arc<Expert>, &[TokenId])], hidden: &[u8], width: usize) -> Vec<f32> {
    let pairs: usize = groups.iter().map(|(_, tokens)| tokens.len()).sum();
    let mut outputs = vec![0.0; pairs * width];
    let mut rest = outputs.as_mut_slice();
    let mut blocks = Vec::with_capacity(pairs / ROW_BLOCK + groups.len());
    for (expert, tokens) in groups {
        assert_eq!(expert.shape().width, width, "the caller checks the width");
        for tokens in tokens.chunks(ROW_BLOCK) {
            let (block, after) = rest.split_at_mut(tokens.len() * width);
            rest = after;
            blocks.push((expert, tokens, block));
        }
    }
    blocks.into_par_iter().for_each(|(expert, tokens, block)| {
        let mut rows = vec![0.0_f32; block.len()];
        let row_bytes = width * 4;
        let into: &mut [u8] = bytemuck::cast_slice_mut(&mut rows);
        for (row, token) in into.chunks_exact_mut(row_bytes).zip(tokens) {
            row.copy_from_slice(&hidden[token.index() * row_bytes..][..row_bytes]);
        }
        expert.forward(&rows, block);
    });
    outputs
}
