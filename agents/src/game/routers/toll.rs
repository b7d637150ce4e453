//! Finite costs of fractional loads, for dynamics that need a slope.

use super::super::Game;
use super::answer::{last_finite_load, score_range, token_count};
use crate::ids::ExpertId;

/// The game's cost, linear between whole loads. Where the cost bars any load up to T, a linear
/// toll of one score range a fair share stands for it.
pub(super) struct Toll<'g> {
    game: &'g Game<'g>,
    /// The toll's slope, if it stands for the cost.
    slope: Option<f64>,
    fair_share: f64,
}

impl<'g> Toll<'g> {
    pub(super) fn new(game: &'g Game<'g>) -> Self {
        let experts = game.scores.experts();
        let fair_share = (game.scores.tokens() * game.top_k) as f64 / experts as f64;
        let tokens = token_count(game);
        let bars = (0..experts).any(|expert| last_finite_load(game, expert) < tokens);
        let slope = bars.then(|| score_range(game) / fair_share);
        Self { game, slope, fair_share }
    }

    /// Cost at a load in [0, T]; that of the first token below 1.
    pub(super) fn at(&self, expert: usize, load: f64) -> f64 {
        if let Some(slope) = self.slope {
            return slope * load;
        }
        let most = self.game.scores.tokens() as f64;
        let load = load.clamp(1.0, most);
        let whole = load.floor().min(most - 1.0).max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 1..=T, and tokens fit 32 bits"
        )]
        let floor = whole as u32;
        let cost = |load| self.game.cost.marginal(ExpertId::from_index(expert), load);
        let below = cost(floor);
        if load == whole { below } else { below + (load - whole) * (cost(floor + 1) - below) }
    }

    /// The steepest rise of a cost between no load and twice the fair share, a token.
    pub(super) fn slope(&self) -> f64 {
        let far = (2.0 * self.fair_share).clamp(2.0, self.game.scores.tokens().max(2) as f64);
        let rise = |expert| (self.at(expert, far) - self.at(expert, 1.0)) / (far - 1.0);
        (0..self.game.scores.experts()).map(rise).fold(0.0, f64::max)
    }
}
