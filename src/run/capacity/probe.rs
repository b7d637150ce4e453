//! One probe: the scenario's requests at one rate, and how many were answered within the goal.

use crate::measure::Latency;
use crate::measure::share::{ShareBounds, misses_allowed};
use crate::results::GeneratorLag;
use crate::run::checkpoint::Boundary;
use crate::run::decode::{Answer, StepDone};
use crate::run::rounds::Round;
use crate::run::serve::{Refusal, ServeError, StageEnds, Watch};
use agents::ids::{RequestId, StepId};
use agents::round::Arena;
use std::ops::Range;

/// Every attempt at one rate, pooled.
pub(super) struct Tally {
    goal_ns: f64,
    /// Misses after which no further success would help, of the attempt under way.
    misses_max: Option<u64>,
    /// Requests that were answered or given up.
    pub(super) seen: u64,
    /// Answered within the goal.
    pub(super) in_goal: u64,
    pub(super) latency: Latency,
    lag: Latency,
    /// Time of batches, from their start to their end.
    busy_ns: u64,
    /// Of that, from orders to combined outputs: what experts and the way to them take.
    dispatch_ns: u64,
    /// Of that, the router's.
    route_ns: u64,
    span_ns: u64,
    batches: u64,
    /// When serving began, and up to when its time is in `span_ns`.
    since_ns: u64,
    counted_to_ns: u64,
}

impl Tally {
    pub(super) fn new(goal_ns: f64) -> Self {
        Self {
            goal_ns,
            misses_max: None,
            seen: 0,
            in_goal: 0,
            latency: Latency::new(),
            lag: Latency::new(),
            busy_ns: 0,
            dispatch_ns: 0,
            route_ns: 0,
            span_ns: 0,
            batches: 0,
            since_ns: 0,
            counted_to_ns: 0,
        }
    }

    /// Before an attempt of so many requests: it ends early when too many have missed the goal for the
    /// share to be reached, so that overload is not served to its end.
    pub(super) fn attempt(&mut self, requests: u64, share: f64, error: f64) {
        self.misses_max = misses_allowed(self.seen + requests, share, error);
    }

    /// Whether the attempts so far are decided against the goal, whatever else would come.
    pub(super) fn is_hopeless(&self) -> bool {
        self.misses_max.is_none_or(|most| self.seen - self.in_goal > most)
    }

    pub(super) fn bounds(&self, error: f64) -> ShareBounds {
        ShareBounds::of(self.in_goal, self.seen, error)
    }

    pub(super) fn lag(&self) -> GeneratorLag {
        GeneratorLag::of(&self.lag, &self.latency)
    }

    /// Share of the time of serving in which a batch was under way.
    pub(super) fn busy_share(&self) -> f64 {
        self.busy_ns as f64 / self.span_ns.max(1) as f64
    }

    /// Shares of a batch's time that experts and the way to them take, and the router.
    pub(super) fn parts(&self) -> (f64, f64) {
        let busy = self.busy_ns.max(1) as f64;
        (self.dispatch_ns as f64 / busy, self.route_ns as f64 / busy)
    }

    fn answer(&mut self, intended_ns: u64, finished_ns: u64) {
        let latency_ns = finished_ns.saturating_sub(intended_ns);
        self.latency.record(latency_ns);
        self.seen += 1;
        self.in_goal += u64::from(latency_ns as f64 <= self.goal_ns);
    }

    fn worked(&mut self, times_ns: Range<u64>) {
        self.batches += 1;
        self.busy_ns += times_ns.end - times_ns.start;
        self.span_ns += times_ns.end - self.counted_to_ns;
        self.counted_to_ns = times_ns.end;
    }

    /// Mean time of a batch.
    pub(super) fn batch_ns(&self) -> u64 {
        self.busy_ns.checked_div(self.batches).unwrap_or(0)
    }
}

impl Watch for Tally {
    fn serving_from(&mut self, now_ns: u64) {
        (self.since_ns, self.counted_to_ns) = (now_ns, now_ns);
    }

    fn round(&mut self, round: &Round<'_>, _: &Arena, stages: &StageEnds, _: (u64, u64)) {
        self.dispatch_ns += round.dispatch_ns;
        self.route_ns += stages.route_ns();
    }

    fn released(&mut self, lag_ns: u64) {
        self.lag.record(lag_ns);
    }

    fn refused(&mut self, requests: &[RequestId], _: Refusal, _: &[u64], _: u64) {
        self.seen += requests.len() as u64;
    }

    fn batch(
        &mut self,
        (_, requests): (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        _: Option<&[f64]>,
    ) {
        for request in &requests {
            self.answer(self.since_ns + intended_ns[request.index()], times_ns.end);
        }
        self.worked(times_ns);
    }

    fn step(&mut self, step: StepDone) {
        self.worked(step.times_ns);
    }

    fn answered(&mut self, answer: Answer) {
        self.answer(answer.intended_ns, answer.finished_ns);
    }

    fn goes_on(&mut self, _: &Boundary<'_>) -> Result<bool, ServeError> {
        Ok(!self.is_hopeless())
    }
}
