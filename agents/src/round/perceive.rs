//! Perceive: logits become router probabilities.

use crate::transformer::softmax;
use crate::world::{Batch, Perceived};
use bevy_ecs::prelude::{Res, ResMut};

/// Softmax over the experts, token by token.
pub(super) fn perceive(batch: Res<'_, Batch>, mut perceived: ResMut<'_, Perceived>) {
    perceived.probabilities.clone_from(&batch.logits);
    softmax(&mut perceived.probabilities, batch.experts);
}
