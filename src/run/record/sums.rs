//! Sums over rounds: what the summary says of the router, of the flock and of the nodes.

use crate::dispatch::placement::RoundRobin;
use crate::results::{Convergence, FlockComparison, ServedNodeLoads, SocialFigures};
use agents::game::SocialReport;
use agents::ids::{ExpertId, LayerId};
use agents::placement::placement_lower_bound;
use agents::report::{FlockReport, NodeLoadReport, PlayReport};
use serde::{Deserialize, Serialize};

/// A gap that counts as converged when the scenario states no goal of its own.
const CONVERGED_GAP: f64 = 1e-4;

/// The router over all rounds.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::run) struct PlaySums {
    rounds: u64,
    tokens: u64,
    iterations: u64,
    passes: u64,
    route_ns: u64,
    epsilon_nash: f64,
    relative_gap: f64,
    max_over_mean_worst: f64,
    /// Weighted by tokens, as the two below.
    max_over_mean: f64,
    max_over_mean_top_k: f64,
    score_loss: f64,
    kept_share_min: Option<f32>,
    dropped_pairs: u64,
    extra_pairs: u64,
    social: Option<SocialReport>,
    /// Rounds in `social`.
    social_rounds: u64,
}

impl PlaySums {
    /// Adds one round.
    pub(in crate::run) fn add(
        &mut self,
        play: &PlayReport,
        tokens: u64,
        max_over_mean_top_k: f64,
        route_ns: u64,
    ) {
        let (certificate, weight) = (&play.certificate, tokens as f64);
        self.rounds += 1;
        self.tokens += tokens;
        self.iterations += u64::from(play.iterations);
        self.passes += u64::from(play.passes);
        self.route_ns += route_ns;
        self.epsilon_nash = self.epsilon_nash.max(certificate.epsilon_nash);
        self.relative_gap = self.relative_gap.max(certificate.relative_gap);
        self.max_over_mean_worst = self.max_over_mean_worst.max(certificate.max_over_mean);
        self.max_over_mean += weight * certificate.max_over_mean;
        self.max_over_mean_top_k += weight * max_over_mean_top_k;
        self.score_loss += weight * certificate.score_loss;
        self.dropped_pairs += certificate.dropped as u64;
        self.extra_pairs += certificate.extra as u64;
        if let Some(report) = play.social {
            self.social = Some(self.social.map_or(report, |sum| sum.plus(report)));
            self.social_rounds += 1;
        }
        let kept = self.kept_share_min.get_or_insert(f32::INFINITY);
        *kept = kept.min(play.kept_share_min);
    }

    /// Rounds added.
    pub(in crate::run) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The figures of the summary; `gap_max` is the scenario's goal.
    pub(in crate::run) fn convergence(&self, router: &str, gap_max: Option<f64>) -> Convergence {
        let mean = |sum: f64| (self.tokens > 0).then(|| sum / self.tokens as f64);
        let worst = |value: f64| (self.rounds > 0 && value.is_finite()).then_some(value);
        Convergence {
            router: router.to_owned(),
            rounds: self.rounds,
            iterations: self.iterations,
            passes: self.passes,
            route_ns: self.route_ns,
            epsilon_nash: worst(self.epsilon_nash),
            relative_gap: worst(self.relative_gap),
            max_over_mean: mean(self.max_over_mean),
            max_over_mean_worst: worst(self.max_over_mean_worst),
            max_over_mean_top_k: mean(self.max_over_mean_top_k),
            score_loss: mean(self.score_loss),
            dropped_pairs: self.dropped_pairs,
            extra_pairs: self.extra_pairs,
            kept_share_min: self.kept_share_min.map(f64::from),
            converged: self.rounds > 0 && self.relative_gap <= gap_max.unwrap_or(CONVERGED_GAP),
            social: None,
        }
    }

    /// The plays against the social optimum; without figures unless every round had them.
    pub(in crate::run) fn social(&self) -> SocialFigures {
        let finite = |value: f64| value.is_finite().then_some(value);
        let whole = self.social.filter(|_| self.social_rounds == self.rounds);
        whole.map_or_else(SocialFigures::default, |sum| SocialFigures {
            cost: finite(sum.cost),
            optimum: finite(sum.optimum),
            optimum_bound: finite(sum.optimum_bound),
            price_of_anarchy: sum.price_of_anarchy(),
        })
    }
}

/// The flock over the first and the last quarter of a run: one batch alone is mostly noise.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::run) struct FlockSums {
    steps: usize,
    first: Quarter,
    last: Quarter,
}

#[derive(Default, Serialize, Deserialize)]
struct Quarter {
    tokens: u64,
    /// Weighted by tokens, as the router's.
    max_over_mean: f64,
    epsilon_nash: f64,
    relative_gap: f64,
}

impl FlockSums {
    /// For a run of `steps` batches.
    pub(in crate::run) fn over(steps: usize) -> Self {
        Self { steps, ..Self::default() }
    }

    /// Adds one round of batch `step` with `tokens` tokens.
    pub(in crate::run) fn add(&mut self, step: usize, tokens: u64, report: &FlockReport) {
        let quarter = self.steps.div_ceil(4);
        if step < quarter {
            self.first.add(tokens, report);
        }
        if step + quarter >= self.steps {
            self.last.add(tokens, report);
        }
    }

    /// The figures of the summary; none where no flock flew.
    pub(in crate::run) fn comparison(&self) -> Option<FlockComparison> {
        let finite = |value: f64| (self.last.tokens > 0 && value.is_finite()).then_some(value);
        (self.first.tokens > 0).then(|| FlockComparison {
            epsilon_nash: finite(self.last.epsilon_nash),
            relative_gap: finite(self.last.relative_gap),
            max_over_mean_first: self.first.mean(),
            max_over_mean_last: self.last.mean(),
        })
    }
}

impl Quarter {
    fn add(&mut self, tokens: u64, report: &FlockReport) {
        self.tokens += tokens;
        self.max_over_mean += tokens as f64 * report.max_over_mean;
        self.epsilon_nash = self.epsilon_nash.max(report.certificate.epsilon_nash);
        self.relative_gap = self.relative_gap.max(report.certificate.relative_gap);
    }

    fn mean(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.max_over_mean / self.tokens as f64)
    }
}

/// The nodes over all rounds: sums of largest node loads, in pairs.
pub(in crate::run) struct NodeLoadSums {
    /// Room for copies by layer and node.
    slots: Vec<Vec<usize>>,
    round_robin: RoundRobin,
    pub(in crate::run) totals: NodeLoadTotals,
}

/// Sums of largest node loads, in pairs.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::run) struct NodeLoadTotals {
    pairs: u64,
    largest: u64,
    dispatch_bound: u64,
    placement_bound: u64,
    even_split: u64,
    dealt: u64,
}

impl NodeLoadSums {
    /// For the slots of each layer's nodes.
    pub(in crate::run) fn over(slots: Vec<Vec<usize>>, round_robin: RoundRobin) -> Self {
        Self { slots, round_robin, totals: NodeLoadTotals::default() }
    }

    /// Adds one round of a layer, whose experts got `loads`.
    pub(in crate::run) fn add(&mut self, layer: LayerId, loads: &[u32], report: &NodeLoadReport) {
        let totals = &mut self.totals;
        totals.pairs += report.loads.iter().sum::<u64>();
        totals.largest += report.max();
        totals.dispatch_bound += report.lower_bound;
        totals.even_split += report.max_even_split;
        let mut dealt = vec![0_u64; report.loads.len()];
        for (expert, load) in (0..).map(ExpertId).zip(loads) {
            dealt[self.round_robin.first_host(layer, expert).index()] += u64::from(*load);
        }
        totals.dealt += dealt.into_iter().max().unwrap_or(0);
        let real: Vec<f64> = loads.iter().map(|load| f64::from(*load)).collect();
        let bound = placement_lower_bound(&real, &self.slots[layer.index()]);
        // Node loads are whole, so the bound may be rounded up.
        let bound = bound.expect("the slots hold every expert").ceil();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole")]
        let bound = bound as u64;
        totals.placement_bound += bound;
    }

    /// The figures of the summary.
    pub(in crate::run) fn served(&self) -> ServedNodeLoads {
        let nodes = self.slots.first().map_or(0, Vec::len) as f64;
        let totals = &self.totals;
        let over_mean =
            |sum: u64| (totals.pairs > 0).then(|| sum as f64 * nodes / totals.pairs as f64);
        ServedNodeLoads {
            max_over_mean: over_mean(totals.largest),
            dispatch_lower_bound: over_mean(totals.dispatch_bound),
            lower_bound: over_mean(totals.placement_bound),
            max_over_mean_even_split: over_mean(totals.even_split),
            max_over_mean_round_robin: over_mean(totals.dealt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FlockSums;
    use agents::game::{Certificate, TokenSets};
    use agents::report::FlockReport;

    #[test]
    fn the_flock_is_weighted_by_tokens_over_the_first_and_the_last_quarter() {
        let report = |max_over_mean| {
            let certificate = Certificate {
                sets: TokenSets::ExactlyK,
                dropped: 0,
                extra: 0,
                epsilon_nash: 0.5,
                potential: 0.0,
                dual_bound: 0.0,
                relative_gap: 0.25,
                max_over_mean,
                score: 0.0,
                score_top_k: 0.0,
                score_loss: 0.0,
            };
            FlockReport { certificate, max_over_mean }
        };
        let mut sums = FlockSums::over(8);
        for (step, (tokens, max_over_mean)) in
            [(30, 4.0), (10, 2.0), (10, 9.0)].into_iter().enumerate()
        {
            sums.add(step, tokens, &report(max_over_mean));
        }
        let early = sums.comparison().expect("a flock flew");
        assert_eq!((early.max_over_mean_first, early.max_over_mean_last), (Some(3.5), None));
        assert_eq!((early.epsilon_nash, early.relative_gap), (None, None), "not the last quarter");
        sums.add(7, 20, &report(1.5));
        let late = sums.comparison().expect("a flock flew");
        assert_eq!((late.max_over_mean_last, late.relative_gap), (Some(1.5), Some(0.25)));
    }
}
