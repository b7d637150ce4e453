//! What the parts of the benchmark share: score matrices and their plays.

pub(crate) mod allocated;
pub(crate) mod torch;

use crate::shared::figures::median;
use agents::game::{CongestionCost, CostSettings, Game, Play, Router, Scores};
use agents::rng::stream;
use nashflock::measure::Clock;
use rand::RngExt as _;
use rand_distr::StandardNormal;

/// One batch of a source under the tight quota.
pub(crate) struct Case {
    pub values: Vec<f32>,
    pub experts: usize,
    pub top_k: usize,
    cost: Box<dyn CongestionCost>,
}

impl Case {
    /// `sigmoid(N(0,1) + 0.5·N_e)`; the experts' leanings N_e are those of the source, the same in
    /// all of its batches.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub(crate) fn new((tokens, experts, top_k): (usize, usize, usize), batch: u64) -> Self {
        let mut rng = stream(7, "speed leanings");
        let lean: Vec<f32> =
            (0..experts).map(|_| 0.5 * rng.sample::<f32, _>(StandardNormal)).collect();
        let mut rng = stream(batch, "speed scores");
        let mut values = Vec::with_capacity(tokens * experts);
        for _ in 0..tokens {
            values.extend(lean.iter().map(|lean| {
                let logit = rng.sample::<f64, _>(StandardNormal) + f64::from(*lean);
                (1.0 / (1.0 + (-logit).exp())) as f32
            }));
        }
        let cost = CostSettings::Quota { capacity_factor: 1.0 }.build(tokens, experts, top_k);
        Self { values, experts, top_k, cost }
    }

    /// The scores are checked each time, as a run does.
    pub(crate) fn game(&self) -> Game<'_> {
        let scores = Scores::new(&self.values, self.experts).expect("finite scores");
        Game { scores, top_k: self.top_k, cost: self.cost.as_ref() }
    }

    /// The play and its time in ms.
    pub(crate) fn play(
        &self,
        clock: &Clock,
        router: &dyn Router,
        warm: Option<&[f64]>,
    ) -> (Play, f64) {
        let start_ns = clock.now_ns();
        let play = router.route(&self.game(), warm);
        let time_ms = (clock.now_ns() - start_ns) as f64 / 1e6;
        (play, time_ms)
    }

    /// The median time in ms of several plays after two that warm up.
    pub(crate) fn median_ms(
        &self,
        clock: &Clock,
        router: &dyn Router,
        warm: Option<&[f64]>,
        repeats: usize,
    ) -> f64 {
        let times = (0..repeats + 2).map(|_| self.play(clock, router, warm).1);
        median(times.skip(2))
    }
}
