//! The exact maximum of the potential, with prices that prove it.

use super::kernel::Instructions;
use super::marginal::settle_and_repair;
use super::prices::Supply;
use super::reference::sweep_and_repair;
use super::small;
use super::{Choices, Game, Play, Router};
use crate::ids::ExpertId;

/// The assignment of largest potential Φ: a pure Nash equilibrium, with prices whose dual bound
/// equals Φ but for rounding.
///
/// Guaranteed for any nondecreasing cost and any T, E and k: Φ is the maximum, because Φ is a
/// min-cost flow (Rosenthal 1973 for the potential) and successive shortest paths keep every
/// intermediate flow optimal (Ahuja, Magnanti and Orlin 1993, section 9.7). Sums and differences
/// are in f64: parts of the scores smaller than about 1e-16 of the largest price cannot be told
/// apart. Where the cost bars every assignment, the choices are valid and Φ is −inf.
///
/// Prices come from a sample of the tokens, or from the batch before if they fit it, and from a
/// few passes over the batch. Each pass visits only tokens whose margin does not prove that the
/// drift of prices since an earlier pass cannot have changed their choice, and the repair moves
/// only those that are left at the end; that the final prices stayed within every bound is
/// checked, and where they did not, tokens are opened again. Games that defeat this (many equal
/// tokens, experts that dominate, scores near the ends of f32) go the plain way: sweeps and a
/// repair over all tokens.
///
/// Small games in which every expert fills up take whole rows instead: a few sweeps, then shortest
/// paths over a table of what each move gains.
///
/// The work of the plain way is bounded by `most_repair_visits`. A game that would need more ends with valid
/// choices, without overload where that is possible, and a gap that the certificate shows. That
/// takes thousands of identical tokens: with them, prices alone balance nothing, and under a
/// strictly rising cost every unit of load is a path of its own.
///
/// Iterations are price sweeps plus paths of the repair. Passes are visits of a score divided by
/// TE, rounded up. Not causal in a batch: prices follow from all of its tokens. Label: tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equilibrium {
    /// Sweeps of the price phase at most. 0 leaves all work to the repair of the plain way.
    pub most_sweeps: u32,
    /// Scores and arcs that the repair may visit.
    pub most_repair_visits: u64,
}

impl Default for Equilibrium {
    /// 16 sweeps, and 4·10⁹ visits: some seconds.
    fn default() -> Self {
        Self { most_sweeps: 16, most_repair_visits: 4_000_000_000 }
    }
}

impl Router for Equilibrium {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (experts, k) = (game.scores.experts(), game.top_k);
        let supply = Supply::new(game);
        if k == experts {
            return everyone_everywhere(game, supply);
        }
        let usable = |p: &&[f64]| p.len() == experts && p.iter().all(|price| price.is_finite());
        let start = warm.filter(usable).map_or_else(|| vec![0.0; experts], <[f64]>::to_vec);
        let warm = warm.is_some_and(|prices| usable(&prices));
        let play = || self.play(game, supply, start, warm, Instructions::best());
        if game.scores.values().len() < LEAST_POOL_SCORES {
            return play();
        }
        // One move to the pool's threads instead of one for every pass.
        rayon::scope(|_| play())
    }
}

/// Scores from which on passes run in parallel.
const LEAST_POOL_SCORES: usize = 1 << 15;

impl Equilibrium {
    fn play(
        &self,
        game: &Game<'_>,
        supply: Supply<'_>,
        start: Vec<f64>,
        warm: bool,
        kind: Instructions,
    ) -> Play {
        let sweeps = self.most_sweeps;
        let units = (game.scores.tokens() * game.top_k) as u64;
        let fast = (sweeps > 0).then(|| {
            let tight = supply.is_tight(start.len(), units);
            let start = if tight && !warm { mean_scores(game) } else { start.clone() };
            if tight && small::is_small(game.scores) {
                small::sweep_and_move(game, supply, &start, sweeps, kind)
            } else {
                settle_and_repair(game, supply, &start, warm, sweeps, kind)
            }
        });
        fast.flatten().unwrap_or_else(|| {
            sweep_and_repair(game, supply, start, sweeps, self.most_repair_visits)
        })
    }
}

/// What each expert's scores are in the mean over some tokens: prices that take away most of what
/// experts differ by.
fn mean_scores(game: &Game<'_>) -> Vec<f64> {
    let tokens = game.scores.tokens();
    let rows = tokens.min(MEAN_ROWS);
    let mut sums = vec![0.0_f32; game.scores.experts()];
    for at in 0..rows {
        let row = game.scores.row(at * tokens / rows);
        sums.iter_mut().zip(row).for_each(|(sum, score)| *sum += score);
    }
    let mean = |sum: &f32| f64::from(*sum) / rows as f64;
    let means: Vec<f64> = sums.iter().map(mean).collect();
    if means.iter().all(|mean| mean.is_finite()) { means } else { vec![0.0; means.len()] }
}

/// Tokens that mean scores are taken over.
const MEAN_ROWS: usize = 512;

/// The only assignment when k = E. Any price that covers the last token's cost proves it.
fn everyone_everywhere(game: &Game<'_>, supply: Supply<'_>) -> Play {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    let load = u32::try_from(tokens).expect("tokens fit 32 bits");
    let price = |expert| Some(supply.marginal(expert, load)).filter(|p| p.is_finite());
    let row = (0..experts).map(ExpertId::from_index);
    Play {
        choices: Choices::uniform(std::iter::repeat_n(row, tokens).flatten().collect(), experts),
        prices: (0..experts).map(|expert| price(expert).unwrap_or(0.0)).collect(),
        passes: 0,
        iterations: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Instructions;
    use super::super::marginal::settle_and_repair;
    use super::super::prices::Supply;
    use super::super::reference::sweep_and_repair;
    use super::super::small::sweep_and_move;
    use super::super::{CostSettings, Game, Play, Scores, certify};
    use crate::rng::stream;
    use rand::RngExt as _;

    /// Scores of experts of unequal popularity; `grid` makes many of them equal.
    fn values(tokens: usize, experts: usize, batch: u64, grid: bool) -> Vec<f32> {
        let mut rng = stream(batch, "fast way");
        let value = |at: usize| {
            let sum: f32 = (0..6).map(|_| rng.random::<f32>()).sum();
            let score = sum + (at % experts) as f32 / experts as f32;
            if grid { (score * 64.0).round() / 64.0 } else { score }
        };
        (0..tokens * experts).map(value).collect()
    }

    fn bits(play: &Play) -> (Vec<u64>, u32, u32) {
        let prices = play.prices.iter().map(|price| price.to_bits()).collect();
        (prices, play.passes, play.iterations)
    }

    type Way<'g> = &'g dyn Fn(Instructions) -> Option<Play>;

    /// Shapes on each side of the sizes at which samples start and grow, ragged ones among them.
    const SHAPES: [(usize, usize, usize); 10] = [
        (90, 7, 2),
        (512, 12, 3),
        (64, 64, 8),
        (700, 16, 15),
        (1100, 24, 4),
        (1500, 130, 6),
        (2048, 64, 8),
        (4099, 33, 3),
        (17_000, 16, 2),
        (300, 100, 20),
    ];

    #[test]
    fn the_fast_way_equals_the_plain_one_on_every_kind_of_processor() {
        let costs = [
            CostSettings::Quota { capacity_factor: 1.0 },
            CostSettings::Quota { capacity_factor: 1.25 },
            CostSettings::Linear { price_per_fair_share: 0.3 },
        ];
        for (tokens, experts, k) in SHAPES {
            for (cost, grid) in costs.iter().flat_map(|cost| [(cost, false), (cost, true)]) {
                if tokens > 4200 && (grid || *cost != costs[0]) {
                    continue;
                }
                let what = format!("{tokens}x{experts} k {k} {cost:?} grid {grid}");
                let built = cost.build(tokens, experts, k);
                let values = [0, 1].map(|batch| values(tokens, experts, batch, grid));
                let mut start = vec![0.0; experts];
                for (batch, values) in values.iter().enumerate() {
                    let scores = Scores::new(values, experts).expect("finite");
                    let game = Game { scores, top_k: k, cost: built.as_ref() };
                    let supply = Supply::new(&game);
                    let plain = sweep_and_repair(&game, supply, start.clone(), 16, 4_000_000_000);
                    let certificate = certify(&game, &plain.choices, &plain.prices);
                    let lists =
                        |kind| settle_and_repair(&game, supply, &start, batch > 0, 16, kind);
                    let rows = |kind| sweep_and_move(&game, supply, &start, 16, kind);
                    let tight = supply.is_tight(experts, (tokens * k) as u64);
                    let ways: [(&str, Way<'_>); 2] = [("lists", &lists), ("rows", &rows)];
                    for (way, fast) in &ways[..1 + usize::from(tight && tokens <= 2048)] {
                        let what = format!("{what} {way}");
                        let first = fast(Instructions::Portable);
                        assert!(first.is_some() || grid || *cost != costs[0], "{what}");
                        for kind in Instructions::available() {
                            let again = fast(kind);
                            let pair = (first.as_ref().map(bits), again.as_ref().map(bits));
                            assert_eq!(pair.0, pair.1, "{what} {kind:?}");
                            let choices =
                                |play: &Option<Play>| play.as_ref().map(|p| p.choices.clone());
                            assert_eq!(choices(&first), choices(&again), "{what} {kind:?}");
                        }
                        if let Some(play) = &first {
                            let own = certify(&game, &play.choices, &play.prices);
                            let off = (own.potential - certificate.potential).abs();
                            assert!(off <= 1e-11 * certificate.potential.abs(), "{what} {own:?}");
                            assert!(own.relative_gap.abs() < 1e-11, "{what} {own:?}");
                        }
                    }
                    start.clone_from(&plain.prices);
                }
            }
        }
    }
}
