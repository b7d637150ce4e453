//! Respond: the tokens play the game.

use crate::components::{Load, Price};
use crate::game::{Game, Scores};
use crate::world::{Affinity, Batch, LayerDynamics, Perceived, Response, Roster, Rules};
use bevy_ecs::prelude::{Commands, Query, Res, ResMut};

/// Plays the batch with what its layer remembers and the scenario's information.
pub(super) fn respond(
    mut commands: Commands<'_, '_>,
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    rules: Res<'_, Rules>,
    roster: Res<'_, Roster>,
    mut dynamics: ResMut<'_, LayerDynamics>,
    mut experts: Query<'_, '_, (&mut Load, &mut Price)>,
) {
    let cost = (rules.cost)(batch.shape(&rules));
    let scores = scores(&batch, &perceived, &rules);
    let game = Game { scores, top_k: rules.top_k, cost: cost.as_ref() };
    let play = dynamics.0[batch.layer.index()].play(&game);

    let layer = &roster.experts[batch.layer.index()];
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
