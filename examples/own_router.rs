//! nashflock with a router of one's own.

use agents::game::{Choices, Game, Play, Registries, Router};
use agents::ids::ExpertId;

/// Tokens choose one after the other, each its best k at the loads that it finds.
struct InTurn;

impl Router for InTurn {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let experts = game.scores.experts();
        let mut loads = vec![0_u32; experts];
        let mut chosen = Vec::new();
        for token in 0..game.scores.tokens() {
            let gain = |e: usize| {
                let cost = game.cost.marginal(ExpertId::from_index(e), loads[e] + 1);
                f64::from(game.scores.row(token)[e]) - cost
            };
            let mut best: Vec<usize> = (0..experts).collect();
            best.sort_by(|a, b| gain(*b).total_cmp(&gain(*a)));
            best.truncate(game.top_k);
            best.sort_unstable();
            best.iter().for_each(|e| loads[*e] += 1);
            chosen.extend(best.into_iter().map(ExpertId::from_index));
        }
        let choices = Choices::uniform(chosen, game.top_k);
        Play { choices, prices: vec![0.0; experts], passes: 1, iterations: 0 }
    }
}

fn main() -> std::process::ExitCode {
    let mut known = Registries::standard();
    let build = Box::new(|| Box::new(InTurn) as Box<dyn Router>);
    known.routers.insert("in_turn", "one after the other, at the loads found", build).expect("new");
    nashflock::cli::main_with(&known)
}
