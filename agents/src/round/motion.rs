//! Motion: tokens perceive the rows in force, and the rows move by what was chosen.

use crate::flock::motion::LayerMotion;
use crate::world::{Batch, Response};
use bevy_ecs::prelude::{Res, ResMut, Resource};

/// The rows of each layer, and the hidden states of the batch.
#[derive(Resource)]
pub(super) struct Motions {
    pub(super) layers: Vec<LayerMotion>,
    pub(super) hidden: Vec<f32>,
}

/// The logits become those of the rows in force.
pub(super) fn perceive(mut batch: ResMut<'_, Batch>, motions: Res<'_, Motions>) {
    let logits = motions.layers[batch.layer.index()].logits(&motions.hidden);
    assert_eq!(logits.len(), batch.logits.len(), "where rows move, a perception has hidden states");
    batch.logits = logits;
}

/// The rows move.
pub(super) fn fly(
    batch: Res<'_, Batch>,
    play: Res<'_, Response>,
    mut motions: ResMut<'_, Motions>,
) {
    let Motions { layers, hidden } = &mut *motions;
    layers[batch.layer.index()].observe(hidden, &batch.logits, &play.0.choices);
}
