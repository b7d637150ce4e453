//! What is recorded while the run goes.

use super::Recorder;
use crate::results::{RoundRow, TOKENS_PLACED};
use crate::run::checkpoint::Boundary;
use crate::run::decode::{Answer, StepDone};
use crate::run::migrate::ExpertsMoved;
use crate::run::reallocate::WidthsBrought;
use crate::run::rounds::Round;
use crate::run::serve::{Refusal, ServeError, StageEnds, Watch};
use crate::run::timeline::{self, Took};
use crate::scenario::file::Engine;
use agents::ids::{ExpertId, RequestId, StepId};
use agents::round::Arena;
use std::ops::Range;

impl Watch for Recorder {
    fn serving_from(&mut self, now_ns: u64) {
        self.requests.serving_from(now_ns);
    }

    fn round(
        &mut self,
        round: &Round<'_>,
        arena: &Arena,
        stages: &StageEnds,
        (bytes_sent, bytes_received): (u64, u64),
    ) {
        if let Some(trace) = &mut self.trace {
            timeline::round(round, stages, &mut |took| trace.took(&took));
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.round(round);
        }
        self.in_time(round);
        let state = &mut self.sums.state;
        arena.fingerprint(|bytes| {
            state.update(bytes);
        });
        state.update(bytemuck::cast_slice(round.output));
        if let Some(migration) = &mut self.migration {
            migration.round(round, arena);
        }
        self.sums.payload_bytes += bytes_sent + bytes_received;
        let row = RoundRow { bytes_sent, bytes_received, ..self.sum_up(round, stages.route_ns()) };
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.round();
        }
        if let Some(log) = &mut self.requests.log {
            log.round(&row);
        }
        if let Err(error) = self.rounds.push(row) {
            self.failure.get_or_insert(error);
        }
    }

    fn released(&mut self, lag_ns: u64) {
        self.requests.released(lag_ns);
    }

    fn refused(&mut self, requests: &[RequestId], why: Refusal, intended_ns: &[u64], now_ns: u64) {
        self.requests.refused(requests, why, intended_ns, now_ns);
    }

    fn batch(
        &mut self,
        batch: (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        losses: Option<&[f64]>,
    ) {
        if let Some(trace) = &mut self.trace {
            let from_ns = self.requests.sums().serving_from_ns();
            let asked = |request: &RequestId| {
                (request.index() as u64, from_ns + intended_ns[request.index()])
            };
            let (step, times_ns) = (u64::from(batch.0.0), (times_ns.start, times_ns.end));
            let tell = &mut |took| trace.took(&took);
            timeline::batch(step, times_ns, batch.1.iter().map(asked), tell);
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.step_ended(&times_ns);
        }
        self.requests.batch(batch, intended_ns, times_ns, losses);
    }

    fn step(&mut self, step: StepDone) {
        if let Some(trace) = &mut self.trace {
            trace.took(&Took::from(&step));
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.step_ended(&step.times_ns);
        }
        self.requests.step(&step);
    }

    fn answered(&mut self, answer: Answer) {
        if let Some(trace) = &mut self.trace {
            trace.took(&Took::from(&answer));
        }
        self.requests.answer(answer);
    }

    fn widths_brought(&mut self, brought: &WidthsBrought<'_>) {
        if let Some(figures) = &mut self.sums.reallocation {
            figures.add(brought);
            let answered = self.requests.answered().len();
            self.sums.width_changes.push((answered, brought.decision.moves.clone()));
        }
    }

    fn experts_moved(&mut self, moved: &ExpertsMoved<'_>) {
        if let Some(migration) = &mut self.migration {
            migration.moved(moved);
        }
    }

    fn goes_on(&mut self, at: &Boundary<'_>) -> Result<bool, ServeError> {
        if let Some(error) = self.failure.take().or_else(|| self.requests.failure()) {
            return Err(error.into());
        }
        let log = self.requests.log.as_mut();
        if let Some((checkpoints, log)) = self.checkpoints.as_mut().zip(log)
            && checkpoints.is_due(at, log.bytes())
        {
            let rows = log.take();
            let sums = (&self.sums, &self.node_loads.totals, self.requests.sums());
            checkpoints.cut(at, rows, sums)?;
        }
        Ok(true)
    }
}

impl Recorder {
    /// Adds a round's play to the sums; gives its row, but for the bytes.
    fn sum_up(&mut self, round: &Round<'_>, route_ns: u64) -> RoundRow {
        let (play, flock) = (&round.decision.play, &round.decision.flock);
        // Of the control's own loads: a router may drop pairs.
        let max_over_mean_top_k = largest(&play.loads_top_k) / mean(&play.loads_top_k);
        let tokens = (round.output.len() / self.shape.width) as u64;
        self.sums.play.add(play, tokens, max_over_mean_top_k, route_ns);
        if let Some(flock) = flock {
            self.sums.flock.add(round.step.index(), tokens, flock);
        }
        self.node_loads.add(round.layer, &play.loads, &round.decision.node_loads);
        self.sums.tokens_played += if round.layer.index() == 0 { tokens } else { 0 };
        self.in_layer(round);

        let certificate = &play.certificate;
        let finite = |value: f64| value.is_finite().then_some(value);
        RoundRow {
            step: u64::from(round.step.0),
            layer: round.layer.0,
            tokens,
            router: self.scenario.game.router.clone(),
            iterations: u64::from(play.iterations),
            passes: u64::from(play.passes),
            epsilon_nash: certificate.epsilon_nash,
            relative_gap: finite(certificate.relative_gap),
            potential: certificate.potential,
            dual_bound: finite(certificate.dual_bound),
            max_over_mean: certificate.max_over_mean,
            max_over_mean_top_k: Some(max_over_mean_top_k),
            score_loss: Some(certificate.score_loss),
            flock_max_over_mean: flock.as_ref().map(|flock| flock.max_over_mean),
            flock_epsilon_nash: flock.as_ref().and_then(|f| finite(f.certificate.epsilon_nash)),
            flock_relative_gap: flock.as_ref().and_then(|f| finite(f.certificate.relative_gap)),
            route_ns,
            dispatch_ns: round.dispatch_ns,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Loads and places of a round in the figures of its layer.
    fn in_layer(&mut self, round: &Round<'_>) {
        let play = &round.decision.play;
        let figures = &mut self.sums.layers[round.layer.index()];
        let kept = self.kept.as_ref().map(|kept| kept[round.layer.index()].as_slice());
        add_loads(&mut figures.loads, &play.loads, kept);
        add_loads(&mut figures.loads_top_k, &play.loads_top_k, kept);
        let plane = self.planes[round.layer.index()].as_ref();
        figures.keep_step(&play.loads_top_k, &play.loads, || {
            let hidden = round.input.hidden.chunks_exact(self.shape.width).take(TOKENS_PLACED);
            plane.map(|plane| hidden.map(|row| plane.turn(row)).collect()).unwrap_or_default()
        });
    }

    /// What the nodes did in a round, from when serving started.
    fn in_time(&mut self, round: &Round<'_>) {
        let from_ns = self.requests.sums().serving_from_ns();
        let since = |at_ns: u64| at_ns.saturating_sub(from_ns);
        let sent_ns = round.times.sent_ns;
        // In one process nobody is asked and nobody fails.
        if self.scenario.nodes.engine != Engine::InProcess {
            for order in &round.decision.orders.nodes {
                let has_answered = round.legs.iter().any(|(node, _)| *node == order.node);
                self.sums.timeline.asked(order.node.0, since(sent_ns), has_answered);
            }
        }
        for (node, compute_ns) in round.computed {
            let leg = round.legs.iter().find(|(of, _)| of == node);
            let ended_ns = leg.map_or(round.times.replied_ns, |(_, took_ns)| sent_ns + took_ns);
            let times_ns = (since(ended_ns.saturating_sub(*compute_ns)), since(ended_ns));
            self.sums.timeline.computed(node.0, times_ns);
        }
    }
}

/// Adds the loads of a layer's experts in play, which are all or those that are kept.
fn add_loads(sums: &mut [u64], loads: &[u32], kept: Option<&[ExpertId]>) {
    for (place, load) in loads.iter().enumerate() {
        sums[kept.map_or(place, |kept| kept[place].index())] += u64::from(*load);
    }
}

fn mean(loads: &[u32]) -> f64 {
    loads.iter().map(|load| f64::from(*load)).sum::<f64>() / loads.len() as f64
}

fn largest(loads: &[u32]) -> f64 {
    f64::from(loads.iter().copied().max().unwrap_or(0))
}
