//! Pruning: which experts a layer can do without.

use super::calibrate::{LayerSample, calibrate};
use super::fit::FitError;
use super::materials::Materials;
use super::read_when_used::full_expert;
use crate::measure::Clock;
use crate::model::checkpoint::CheckpointError;
use crate::scenario::Scenario;
use crate::scenario::file::PruneBy;
use crate::source::KeptExperts;
use agents::ids::{ExpertId, LayerId};
use agents::precision::{PruneCriterion, prune_lowest, prune_score};
use rayon::prelude::*;

/// Which experts stay.
#[derive(Clone)]
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
/// When an expert cannot be read or calibration fails.
pub(super) async fn prune(
    materials: &Materials,
    scenario: &Scenario,
    clock: &Clock,
) -> Result<Option<Pruned>, FitError> {
    let precision = &scenario.precision;
    let experts = materials.source(None).shape().experts;
    if precision.kept_experts(experts) == experts {
        return Ok(None);
    }
    let samples = calibrate(materials, scenario, None, clock).await?;
    let source = materials.source(None);
    let kept_by = |criterion| -> Result<KeptExperts, CheckpointError> {
        let kept = |(layer, sample): (usize, &LayerSample)| {
            let layer = LayerId::from_index(layer);
            let score = |id: usize| {
                let expert = full_expert(source.as_ref(), (layer, ExpertId::from_index(id)))?;
                let (x, gates) = (sample.x(id), &sample.gates[id]);
                Ok(prune_score(criterion, &expert, &x, gates, sample.tokens))
            };
            let scores =
                (0..experts).into_par_iter().map(score).collect::<Result<Vec<f64>, _>>()?;
            let kept = prune_lowest(&scores, precision.prune);
            Ok(kept.into_iter().map(ExpertId::from_index).collect())
        };
        samples.iter().enumerate().map(kept).collect()
    };
    let by_frequency = kept_by(PruneCriterion::Frequency)?;
    Ok(Some(match precision.prune_by {
        PruneBy::Frequency => Pruned { kept: by_frequency, kept_by_frequency: None },
        PruneBy::Reap => {
            Pruned { kept: kept_by(PruneCriterion::Reap)?, kept_by_frequency: Some(by_frequency) }
        }
    }))
}
