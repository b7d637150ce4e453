//! Respond: the tokens play the game.

use crate::components::{Load, Price};
use crate::game::{Game, Scores};
use crate::world::{Affinity, Batch, Perceived, Response, Roster, Rules};
use bevy_ecs::prelude::{Commands, Query, Res};

/// Plays the batch with the scenario's router, warm from the layer's last prices.
pub(super) fn respond(
    mut commands: Commands<'_, '_>,
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    rules: Res<'_, Rules>,
    roster: Res<'_, Roster>,
    mut experts: Query<'_, '_, (&mut Load, &mut Price)>,
) {
    let cost = rules.cost.build(batch.tokens(), batch.experts, rules.top_k);
    let scores = scores(&batch, &perceived, &rules);
    let game = Game { scores, top_k: rules.top_k, cost: cost.as_ref() };
    let layer = &roster.experts[batch.layer.index()];
    let prices: Vec<f64> =
        layer.iter().map(|e| experts.get(*e).expect("the roster is complete").1.0).collect();
    let warm = (batch.step.0 > 0).then_some(prices.as_slice());

    let play = rules.router.route(&game, warm);

    let loads = play.choices.loads(batch.experts);
    for ((entity, new_load), new_price) in layer.iter().zip(loads).zip(&play.prices) {
        let (mut load, mut price) = experts.get_mut(*entity).expect("the roster is complete");
        (load.0, price.0) = (new_load, *new_price);
    }
    commands.insert_resource(Response(play));
}

/// The affinities that the rules name.
pub(super) fn scores<'a>(batch: &'a Batch, perceived: &'a Perceived, rules: &Rules) -> Scores<'a> {
    let values = match rules.affinity {
        Affinity::Probability => perceived.selection.as_ref().unwrap_or(&perceived.scores),
        Affinity::Logit => &batch.logits,
    };
    Scores::new(values, batch.experts).expect("logits were checked, softmax keeps them finite")
}
