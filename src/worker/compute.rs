//! The arithmetic of one order, the same in a worker and in process.

use agents::expert::Expert;
use agents::expert::grouped::{self, ExpertBatch};
use agents::ids::TokenId;
use std::borrow::Cow;
use std::sync::Arc;

/// Runs each group's rows of `hidden` through its expert. `hidden` is little-endian f32
/// `[rows, width]`; the result is f32 `[pairs, width]` in the order of the groups and their tokens.
///
/// Runs on the current rayon pool. A row's bits depend on nothing but the row and its expert, so the
/// result is the same at any thread count and however an order is split over nodes.
///
/// # Panics
/// When a token is not a row of `hidden` or an expert has another width.
#[must_use]
pub fn outputs(groups: &[(Arc<Expert>, &[TokenId])], hidden: &[u8], width: usize) -> Vec<f32> {
    // Bytes from a socket start anywhere.
    let hidden: Cow<'_, [f32]> = match bytemuck::try_cast_slice(hidden) {
        Ok(hidden) => Cow::Borrowed(hidden),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(hidden)),
    };
    let one_width = groups.iter().all(|(expert, _)| expert.shape().width == width);
    assert!(one_width, "the caller checks the width");
    let pairs: usize = groups.iter().map(|(_, tokens)| tokens.len()).sum();
    let batches: Vec<ExpertBatch<'_>> =
        groups.iter().map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
    let mut outputs = vec![0.0; pairs * width];
    grouped::forward(&batches, &hidden, &mut outputs);
    outputs
}
