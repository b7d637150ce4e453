//! Perceive: logits become scores and what selects experts, as the model was trained.

use crate::world::{Batch, Perceived, Rules, SelectionBias};
use bevy_ecs::prelude::{Res, ResMut};

/// Scores of every pair, and the selection where it differs from them.
pub(super) fn perceive(
    batch: Res<'_, Batch>,
    rules: Res<'_, Rules>,
    bias: Res<'_, SelectionBias>,
    mut perceived: ResMut<'_, Perceived>,
) {
    let Perceived { scores, selection } = &mut *perceived;
    scores.clone_from(&batch.logits);
    rules.routing.score(scores, batch.experts);
    *selection = rules.routing.selection(scores, &bias.0[batch.layer.index()], batch.experts);
}
