//! Certify: code apart from the router says how good the play is, beside plain top-k as the control.

use super::respond;
use crate::components::{KeptShare, Token};
use crate::game::{Choices, Game, Router as _, Scores, SocialReport, TopK, certify};
use crate::report::PlayReport;
use crate::world::{Batch, Certified, Perceived, Response, Rules};
use bevy_ecs::prelude::{Commands, Query, Res};

/// Certifies the play and tells each token what share of its top-k affinity it kept.
pub(super) fn certify_play(
    mut commands: Commands<'_, '_>,
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    rules: Res<'_, Rules>,
    response: Res<'_, Response>,
    mut tokens: Query<'_, '_, (&Token, &mut KeptShare)>,
) {
    let cost = (rules.cost)(batch.shape(&rules));
    let scores = respond::scores(&batch, &perceived, &rules);
    let game = Game { scores, top_k: rules.top_k, cost: cost.as_ref() };
    let play = &response.0;
    let certificate = certify(&game, &play.choices, &play.prices);
    let social = || SocialReport::new(&game, &play.choices, &certificate);
    let social = rules.social_optimum.then(social).flatten();
    let plain = TopK.route(&game, None).choices;
    commands.insert_resource(Certified(PlayReport {
        certificate,
        passes: play.passes,
        iterations: play.iterations,
        loads: play.choices.loads(batch.experts),
        loads_top_k: plain.loads(batch.experts),
        kept_share_min: keep_shares(&scores, &play.choices, &plain, &mut tokens),
        social,
    }));
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
