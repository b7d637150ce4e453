//! Respond: the tokens play the game, and code apart from the router certifies the play.

use super::PlayReport;
use crate::components::{KeptShare, Load, Price, Token};
use crate::game::{Choices, Game, Router as _, Scores, TopK, certify};
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
    mut tokens: Query<'_, '_, (&Token, &mut KeptShare)>,
) {
    let scores = scores(&batch, &perceived, &rules);
    let cost = rules.cost.build(batch.tokens(), batch.experts, rules.top_k);
    let game = Game { scores, top_k: rules.top_k, cost: cost.as_ref() };
    let layer = &roster.experts[batch.layer.index()];
    let prices: Vec<f64> =
        layer.iter().map(|e| experts.get(*e).expect("the roster is complete").1.0).collect();
    let warm = (batch.step.0 > 0).then_some(prices.as_slice());

    let play = rules.router.route(&game, warm);
    let plain = TopK.route(&game, None).choices;
    let certificate = certify(&game, &play.choices, &play.prices);

    let loads = play.choices.loads(batch.experts);
    for ((entity, load), new_price) in layer.iter().zip(&loads).zip(&play.prices) {
        let (mut agent_load, mut price) = experts.get_mut(*entity).expect("the roster is complete");
        (agent_load.0, price.0) = (*load, *new_price);
    }
    let kept_share_min = keep_shares(&scores, &play.choices, &plain, &mut tokens);
    let report = PlayReport {
        certificate,
        passes: play.passes,
        iterations: play.iterations,
        loads,
        loads_top_k: plain.loads(batch.experts),
        kept_share_min,
    };
    commands.insert_resource(Response { choices: play.choices, report });
}

/// The affinities that the rules name.
pub(super) fn scores<'a>(batch: &'a Batch, perceived: &'a Perceived, rules: &Rules) -> Scores<'a> {
    let values = match rules.affinity {
        Affinity::Probability => &perceived.probabilities,
        Affinity::Logit => &batch.logits,
    };
    Scores::new(values, batch.experts).expect("logits were checked, softmax keeps them finite")
}

fn keep_shares(
    scores: &Scores<'_>,
    choices: &Choices,
    plain: &Choices,
    tokens: &mut Query<'_, '_, (&Token, &mut KeptShare)>,
) -> f32 {
    let sum = |choices: &Choices, t: usize| -> f32 {
        choices.row(t).iter().map(|e| scores.row(t)[e.index()]).sum()
    };
    let mut least = f32::INFINITY;
    let tables = tokens.contiguous_iter_mut().expect("tokens live in dense tables");
    for (tokens, mut shares) in tables {
        for (token, share) in tokens.iter().zip(shares.bypass_change_detection()) {
            let t = token.row.index();
            if t < scores.tokens() {
                share.0 = sum(choices, t) / sum(plain, t);
                least = least.min(share.0);
            }
        }
    }
    least
}
