//! Pruning: which experts a layer can do without.

use super::calibrate::{LayerSample, calibrate};
use super::controls::ExpertTable;
use super::materials::Materials;
use super::rounds::RoundError;
use crate::measure::Clock;
use crate::scenario::Scenario;
use crate::scenario::file::PruneBy;
use crate::source::KeptExperts;
use agents::ids::ExpertId;
use agents::precision::{PruneCriterion, prune_lowest, prune_score};
use rayon::prelude::*;

/// Which experts stay.
pub(super) struct Pruned {
    /// By the scenario's criterion.
    pub(super) kept: KeptExperts,
    /// By frequency, the control; none where that is the criterion.
    pub(super) kept_by_frequency: Option<KeptExperts>,
}

/// Ranks the experts on the calibration requests under plain top-k, all in f32, and keeps the best;
/// none where the scenario's share comes to no expert.
///
/// # Errors
/// When calibration fails.
pub(super) async fn prune(
    materials: &Materials,
    scenario: &Scenario,
    full: &ExpertTable,
    clock: &Clock,
) -> Result<Option<Pruned>, RoundError> {
    let precision = &scenario.precision;
    let experts = materials.source(None).shape().experts;
    if precision.kept_experts(experts) == experts {
        return Ok(None);
    }
    let samples = calibrate(materials, scenario, (full, None), clock).await?;
    let kept_by = |criterion| -> KeptExperts {
        let layers = full.iter().zip(&samples);
        let kept = |(experts, sample): (&Vec<_>, &LayerSample)| {
            let score = |(id, expert): (usize, &std::sync::Arc<_>)| {
                prune_score(criterion, expert, &sample.x(id), &sample.gates[id], sample.tokens)
            };
            let scores: Vec<f64> = experts.par_iter().enumerate().map(score).collect();
            let kept = prune_lowest(&scores, precision.prune);
            kept.into_iter().map(ExpertId::from_index).collect()
        };
        layers.map(kept).collect()
    };
    let by_frequency = kept_by(PruneCriterion::Frequency);
    Ok(Some(match precision.prune_by {
        PruneBy::Frequency => Pruned { kept: by_frequency, kept_by_frequency: None },
        PruneBy::Reap => {
            Pruned { kept: kept_by(PruneCriterion::Reap), kept_by_frequency: Some(by_frequency) }
        }
    }))
}

/// The entries of a table by layer and expert that are kept; all where nothing is pruned.
pub(super) fn kept_of<T: Clone>(table: Vec<Vec<T>>, kept: Option<&KeptExperts>) -> Vec<Vec<T>> {
    let Some(kept) = kept else { return table };
    let layer = |(all, kept): (&Vec<T>, &Vec<ExpertId>)| {
        kept.iter().map(|expert| all[expert.index()].clone()).collect()
    };
    table.iter().zip(kept).map(layer).collect()
}
