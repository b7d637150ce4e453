//! What was recorded, as figures of the summary.

use super::{Recorder, Sampler, Trace};
use crate::results::{
    BatchTimes, HottestExpert, LayerFigures, Layers, Outcomes, ResultsError, RunDir,
    ServedNodeLoads, StepTheory, Summary, TailTheory, Throughput,
};
use crate::run::checkpoint::Checkpoints;
use crate::run::goals::goals;
use crate::run::migrate::MigrationRecord;
use std::time::SystemTime;

impl Recorder {
    /// Closes the tables, writes histogram and layers, and fills what was recorded into `summary`.
    ///
    /// # Errors
    /// When a file cannot be written; those already written stay.
    pub(in crate::run) fn finish(
        mut self,
        dir: &RunDir,
        summary: &mut Summary,
        started_at: SystemTime,
    ) -> Result<(), ResultsError> {
        let cut = self.checkpoints.take().map_or(Ok(()), Checkpoints::finish);
        let drawn = self.trace.take().map_or(Ok(()), Trace::finish);
        let observed = self.sampler.take().map_or(Ok(()), Sampler::finish);
        let elapsed_ns = self.requests.span_ns();
        summary.state_hash = self.sums.state.finalize().to_hex().to_string();
        let gap_max = self.scenario.goals.relative_gap_max;
        summary.convergence = self.sums.play.convergence(&self.scenario.game.router, gap_max);
        if self.scenario.game.social_optimum {
            summary.convergence.social = Some(self.sums.play.social());
        }
        summary.flock = self.sums.flock.comparison();
        summary.motion.clone_from(&self.motion);
        if let Some(placement) = summary.placement.as_mut().filter(|_| !self.sums.nodes_changed) {
            placement.served = self.node_loads.served();
        }
        summary.throughput = self.throughput(elapsed_ns);
        let batches = self.requests.batches().cloned();
        self.requests.sum_up(summary);
        summary.theory = self.theory(batches.as_ref(), summary);
        summary.pairs = Some(self.pairs);
        summary.reallocation.clone_from(&self.sums.reallocation);
        summary.migration = self.migration.as_ref().map(MigrationRecord::figures);
        summary.paused_ns = self.paused_ns;
        summary.goals = goals(&self.scenario.goals, summary);
        self.null_reasons(summary);
        self.rounds.finish()?;
        self.requests.finish(dir, started_at)?;
        dir.write_timeline(&self.sums.timeline)?;
        dir.write_layers(&Layers::new(self.sums.layers))?;
        cut.and(drawn).and(observed)
    }

    /// Why a certificate is absent, where the play itself is the reason.
    fn null_reasons(&self, summary: &mut Summary) {
        if self.sums.nodes_changed {
            let reason = "workers came or went, so experts were not always hosted as placed";
            for key in ServedNodeLoads::KEYS {
                summary.null_reasons.insert(format!("placement.served.{key}"), reason.to_owned());
            }
        }
        const OVER_QUOTA: &str = "the play exceeds a quota, so its potential is minus infinity";
        if let Some(social) = &summary.convergence.social {
            let reason = match social.optimum {
                None => "a play had not k experts a token, or the cost has no convex total",
                Some(_) if social.cost.is_none() => OVER_QUOTA,
                Some(_)
                    if summary.convergence.epsilon_nash.is_none_or(|epsilon| epsilon > 1e-9) =>
                {
                    "a play is no equilibrium: see epsilon_nash"
                }
                Some(_) => "the bound does not prove the optimum to within 1e-6",
            };
            let figures = [
                ("cost", social.cost),
                ("optimum", social.optimum),
                ("optimum_bound", social.optimum_bound),
                ("price_of_anarchy", social.price_of_anarchy),
            ];
            for (key, _) in figures.iter().filter(|(_, figure)| figure.is_none()) {
                let path = format!("convergence.social.{key}");
                summary.null_reasons.insert(path, reason.to_owned());
            }
        }
        let router = (&summary.convergence.relative_gap, "convergence.relative_gap");
        // A run that ended before the flock's last quarter did not measure it.
        let flock = summary.flock.as_ref().filter(|flock| flock.max_over_mean_last.is_some());
        let flock = flock.map(|flock| (&flock.relative_gap, "flock.relative_gap"));
        let absent = [Some(router), flock].into_iter().flatten().filter(|(gap, _)| gap.is_none());
        let keys: Vec<&str> = absent.map(|(_, key)| key).collect();
        if self.sums.play.rounds() > 0 {
            for key in keys {
                summary.null_reasons.insert(key.to_owned(), OVER_QUOTA.to_owned());
                let epsilon = key.replace("relative_gap", "epsilon_nash");
                summary.null_reasons.insert(epsilon, OVER_QUOTA.to_owned());
            }
        }
    }

    /// Measured tails beside their bounds; none where nothing was served.
    fn theory(&self, batches: Option<&BatchTimes>, summary: &Summary) -> Option<TailTheory> {
        (self.sums.tokens_played > 0).then_some(())?;
        let Outcomes { timeout, shed, error, .. } = summary.outcomes;
        let (fork_join, pair_ns) = &self.nodes_took;
        Some(TailTheory {
            queue: batches.map(|batches| batches.theory(timeout + shed + error == 0)),
            steps: fork_join.as_ref().filter(|found| found.steps() > 0).map(StepTheory::of),
            hottest_expert: Some(self.hottest_expert(*pair_ns, summary)),
        })
    }

    fn hottest_expert(&self, pair_ns: Option<f64>, summary: &Summary) -> HottestExpert {
        let nodes = &self.scenario.nodes;
        let has_copies = nodes.replicas > 1 || nodes.replica_slots > 0 || self.sums.nodes_changed;
        let tokens = self.sums.tokens_played as f64;
        let largest = |layer: &LayerFigures| layer.loads.iter().copied().max().unwrap_or(0) as f64;
        let mean = |layer: &LayerFigures| {
            layer.loads.iter().sum::<u64>() as f64 / layer.loads.len().max(1) as f64
        };
        let shares = self.sums.layers.iter().map(|layer| largest(layer) / tokens).sum();
        let shares_even = self.sums.layers.iter().map(|layer| mean(layer) / tokens).sum();
        HottestExpert::new(
            (shares, shares_even),
            pair_ns,
            summary.throughput.tokens_per_s,
            has_copies,
        )
    }

    fn throughput(&self, elapsed_ns: u64) -> Throughput {
        let rate = |count: u64| (elapsed_ns > 0).then(|| count as f64 * 1e9 / elapsed_ns as f64);
        let (answered, in_time) = self.requests.tokens();
        let offered = self.scenario.load.rate_per_s * self.tokens_offered;
        Throughput {
            tokens_per_s: rate(answered),
            goodput_tokens_per_s: rate(in_time),
            offered_tokens_per_s: Some(offered),
            token_experts_per_s: rate(self.pairs.combined),
            bytes_per_s: rate(self.sums.payload_bytes),
            elapsed_ns,
        }
    }
}
