//! Precision: experts keep count of how much their bits matter, and bits follow where that changes.

use crate::components::{Load, Precision};
use crate::world::{Batch, Perceived, Response, Roster, Widths};
use bevy_ecs::prelude::{Query, Res, ResMut};

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

/// Tells the widths what each expert of the layer was asked for. After the last layer of a step they may decide
/// to change: what they decide waits for the shell, and no round sees it before the shell has brought it.
pub(super) fn follow(
    batch: Res<'_, Batch>,
    roster: Res<'_, Roster>,
    loads: Query<'_, '_, &Load>,
    widths: Option<ResMut<'_, Widths>>,
) {
    let Some(mut widths) = widths else { return };
    let experts = &roster.experts[batch.layer.index()];
    let load = |entity| loads.get(entity).expect("the roster is complete").0;
    let loads: Vec<u32> = experts.iter().map(|entity| load(*entity)).collect();
    if let Some(decision) = widths.follow.absorb(batch.layer, &loads) {
        widths.decided = Some(decision);
    }
}
