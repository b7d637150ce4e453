//! Precision: experts keep count of how much their bits matter.

use crate::components::Precision;
use crate::world::{Batch, Perceived, Response, Roster};
use bevy_ecs::prelude::{Query, Res};

/// Adds the router probability that the batch routed to each expert of the layer: its observed
/// importance, for precision policies to read.
pub(super) fn weigh(
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    response: Res<'_, Response>,
    roster: Res<'_, Roster>,
    mut experts: Query<'_, '_, &mut Precision>,
) {
    let mut gate_sums = vec![0.0_f64; batch.experts];
    for (token, row) in perceived.scores.chunks(batch.experts).enumerate() {
        for expert in response.0.choices.row(token) {
            gate_sums[expert.index()] += f64::from(row[expert.index()]);
        }
    }
    for (entity, sum) in roster.experts[batch.layer.index()].iter().zip(gate_sums) {
        experts.get_mut(*entity).expect("the roster is complete").routed_gate += sum;
    }
}
