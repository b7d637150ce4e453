//! Flock: what the experts' own local prices would have led to, and their next update.

use super::respond;
use crate::components::{FlockPrice, Neighbours};
use crate::flock::price;
use crate::game::{Game, Router as _, Scores, TopK, certify};
use crate::report::FlockReport;
use crate::world::{Batch, FlockResponse, Perceived, Roster, Rules};
use bevy_ecs::prelude::{Query, Res, ResMut};

/// Lets the tokens answer the prices that the flock has formed in earlier batches, certifies that
/// play, and moves the prices by what each expert saw. Causal: no price knows its own batch.
pub(super) fn fly(
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    rules: Res<'_, Rules>,
    roster: Res<'_, Roster>,
    mut report: ResMut<'_, FlockResponse>,
    mut experts: Query<'_, '_, (&mut FlockPrice, &Neighbours)>,
) {
    let Some(settings) = &rules.flock else { return };
    let scores = respond::scores(&batch, &perceived, &rules);
    let layer = &roster.experts[batch.layer.index()];
    let (mut flock, near): (Vec<FlockPrice>, Vec<_>) = layer
        .iter()
        .map(|entity| {
            let (bird, near) = experts.get(*entity).expect("the roster is complete");
            (*bird, near.0.clone())
        })
        .unzip();

    let prices: Vec<f64> = flock.iter().map(|bird| bird.price).collect();
    let priced = priced_scores(&scores, &prices);
    let cost = (rules.cost)(batch.shape(&rules));
    let game = Game { scores, top_k: rules.top_k, cost: cost.as_ref() };
    let under_prices = Game {
        scores: Scores::new(&priced, batch.experts).expect("finite scores less finite prices"),
        ..game
    };
    let choices = TopK.route(&under_prices, None).choices;
    let certificate = certify(&game, &choices, &prices);

    let fair_share = (batch.tokens() * rules.top_k) as f64 / batch.experts as f64;
    let loads = choices.loads(batch.experts);
    flock.iter_mut().zip(&loads).for_each(|(bird, load)| bird.load = *load);
    price::update(&mut flock, &near, fair_share, settings);
    for (entity, bird) in layer.iter().zip(flock) {
        *experts.get_mut(*entity).expect("the roster is complete").0 = bird;
    }
    let max_over_mean = f64::from(loads.into_iter().max().unwrap_or(0)) / fair_share;
    report.0 = Some(FlockReport { certificate, max_over_mean });
}

#[expect(clippy::cast_possible_truncation, reason = "prices are compared at the scores' precision")]
fn priced_scores(scores: &Scores<'_>, prices: &[f64]) -> Vec<f32> {
    let rows = scores.values().chunks(scores.experts());
    rows.flat_map(|row| row.iter().zip(prices).map(|(a, p)| (f64::from(*a) - p) as f32)).collect()
}
