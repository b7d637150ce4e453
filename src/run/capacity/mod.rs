//! The highest rate of a scenario's requests that holds a latency goal, found by probes.
//!
//! A probe serves the scenario's requests at one rate, and more of them where that would last less than
//! ten times the goal: a short burst is answered in time at any rate. It holds if the exact lower confidence bound on
//! the share of requests within the goal reaches 99 %, fails if the upper bound does not, and is
//! repeated on other arrivals in between, a bounded number of times. The nodes start once, for all.

mod probe;
mod search;

use super::demand::Arrivals;
use super::interrupt::Interrupts;
use super::on_nodes::Job;
use super::plan::Plan;
use super::serve::ServeError;
use super::shared::Sharing;
use super::{PlanError, Progress, RunSettings, prepare};
use crate::dispatch::Dispatch;
use crate::measure::Clock;
use crate::measure::share::ShareBounds;
use crate::scenario::Scenario;
use probe::Tally;
use search::Search;

use super::materials::Materials;

/// Requests of an attempt, at most, as of a run.
const REQUESTS_MAX: usize = 100_000_000;

/// The share of requests that a goal on the 99th percentile asks for.
const SHARE: f64 = 0.99;

/// Attempts at one rate, at most.
pub const ATTEMPTS_MAX: u32 = 4;

/// A probe lasts at least this many times the goal.
const GOALS_LONG: f64 = 10.0;

/// Where a batch is under way for less than this share of the time and the goal is missed all the same,
/// no lower rate would hold it.
const IDLE: f64 = 0.1;

/// A generator whose lag takes more than this share of the goal is what limits.
const LAG_SHARE: f64 = 0.1;

/// A batch under way for this share of the time leaves no room for more load.
const SATURATED: f64 = 0.9;

/// What is searched for, and how surely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CapacityGoal {
    /// The 99th percentile of latency from the intended start, ms.
    pub p99_ms: f64,
    /// Probability that a probe's verdict is right, were its requests independent; above 0.5, below 1.
    pub confidence: f64,
    /// The search ends when the rate that fails is at most this share above the one that holds.
    pub precision: f64,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Capacity {
    /// Name of the scenario.
    pub scenario: String,
    /// The goal, ms.
    pub goal_p99_ms: f64,
    /// Of each verdict.
    pub confidence: f64,
    /// The highest rate that held, requests a second; none where no rate did.
    pub rate_per_s: Option<f64>,
    /// The lowest rate that did not hold: the answer lies between. None where every rate held.
    pub fails_at_per_s: Option<f64>,
    /// What keeps higher rates from holding.
    pub limited_by: String,
    /// Every probe, in order.
    pub probes: Vec<Probe>,
}

/// What one rate gave, all its attempts together.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Probe {
    /// Requests a second.
    pub rate_per_s: f64,
    /// How often it was tried.
    pub attempts: u32,
    /// Requests answered or shed; a hopeless attempt ends early.
    pub requests: u64,
    /// Those answered within the goal.
    pub in_goal: u64,
    /// Their share.
    pub share: f64,
    /// Exact lower bound on the share in the long run, were requests independent.
    pub share_lower: f64,
    /// Exact upper bound.
    pub share_upper: f64,
    /// Median latency of answered requests, ms.
    pub p50_ms: Option<f64>,
    /// 99th percentile, ms.
    pub p99_ms: Option<f64>,
    /// Share of the time in which a batch was under way.
    pub busy_share: f64,
    /// Mean time of a batch, ms.
    pub batch_ms: f64,
    /// Share of that for experts and the way to them.
    pub dispatch_share: f64,
    /// Share of that for the router.
    pub route_share: f64,
    /// 99th percentile of the load generator's own lag, ms.
    pub generator_lag_p99_ms: Option<f64>,
    /// Whether that is above 1 % of the median latency: latencies are the generator's too, then.
    pub generator_lagged: bool,
    /// What follows.
    pub verdict: Verdict,
}

/// What follows from a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The lower bound reaches 99 %.
    Holds,
    /// The upper bound does not.
    Fails,
    /// Neither, after all attempts: counted as failed.
    Undecided,
}

/// Requests that one rate's attempts need together for a lower bound of 99 % where none misses.
#[must_use]
pub fn requests_needed(confidence: f64) -> u64 {
    let error = error_of_a_look(confidence);
    (1..).find(|n| ShareBounds::of(*n, *n, error).lower >= SHARE).expect("some number suffices")
}

/// A probe is looked at after every attempt: each look may err this often, so that all of them
/// together are as sure as was asked for.
fn error_of_a_look(confidence: f64) -> f64 {
    (1.0 - confidence) / f64::from(ATTEMPTS_MAX)
}

/// Searches. Call it as [`super::run`] is called.
///
/// # Errors
/// What is wrong with the input: nothing was started then. Inside: what ended the search.
pub async fn capacity(
    scenario: &Scenario,
    goal: CapacityGoal,
    settings: RunSettings<'_>,
    clock: &Clock,
) -> Result<Result<Capacity, ServeError>, PlanError> {
    let mut interrupts = Interrupts::listen().map_err(PlanError::Signals)?;
    settings.progress.phase("loading");
    let sharing = Sharing::of(scenario, settings.shared);
    let materials = Materials::load(sharing, &settings.registries.costs).await?;
    let arrivals = Arrivals::of(scenario, materials.context(&scenario.load.generation))?;
    let prepared = match interrupts.or(prepare(&materials, scenario, &settings, clock)).await {
        Ok(prepared) => prepared?,
        Err(interrupted) => return Ok(Err(interrupted.into())),
    };
    let demand = arrivals.of_scenario(scenario);
    let plan = Plan::new(scenario, settings.registries, &materials, demand, prepared);
    let at_least_s = GOALS_LONG * goal.p99_ms / 1e3;
    let requests_max = arrivals.requests_max().unwrap_or(REQUESTS_MAX);
    let highest = requests_max.min(REQUESTS_MAX) as f64 / at_least_s;
    let search = Search::new(scenario.load.rate_per_s, highest, goal.precision);
    let progress = settings.progress;
    let mut probes =
        Probes { plan: &plan, arrivals, goal, clock, progress, search, done: Vec::new() };
    let (result, _) = plan.on_nodes(&settings, &mut interrupts, &mut probes).await;
    Ok(result.map(|()| probes.found()))
}

/// The probes as one job on the nodes.
struct Probes<'a> {
    plan: &'a Plan<'a>,
    arrivals: Arrivals,
    goal: CapacityGoal,
    clock: &'a Clock,
    progress: &'a dyn Progress,
    search: Search,
    done: Vec<Probe>,
}

impl Job for Probes<'_> {
    fn clock(&self) -> Clock {
        *self.clock
    }

    async fn work(&mut self, dispatch: &mut impl Dispatch) -> Result<(), ServeError> {
        while let Some(rate) = self.search.next() {
            let probe = self.probe(rate, dispatch).await?;
            let held = probe.verdict == Verdict::Holds;
            let idle = probe.busy_share < IDLE;
            self.search.learn(rate, held);
            self.done.push(probe);
            if !held && idle && self.search.holds.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl Probes<'_> {
    async fn probe(
        &self,
        rate_per_s: f64,
        dispatch: &mut impl Dispatch,
    ) -> Result<Probe, ServeError> {
        let scenario = self.plan.scenario;
        let error = error_of_a_look(self.goal.confidence);
        let requests = self.requests(rate_per_s);
        let mut tally = Tally::new(self.goal.p99_ms * 1e6);
        let (mut attempts, mut verdict) = (0, Verdict::Undecided);
        while verdict == Verdict::Undecided && attempts < ATTEMPTS_MAX {
            self.progress.phase(&format!("probing {rate_per_s:.4} requests/s"));
            // The first attempt at every rate has the scenario's own arrivals, stretched.
            let seed = scenario.seed + u64::from(attempts);
            let demand = self.arrivals.demand(scenario, (rate_per_s, requests), seed);
            let mut arena = self.plan.arena(self.plan.source().as_ref());
            tally.attempt(u64::from(requests), SHARE, error);
            let on = (self.progress, self.clock, false);
            self.plan.serve_demand((&demand, None), &mut arena, dispatch, on, &mut tally).await?;
            attempts += 1;
            let bounds = tally.bounds(error);
            if tally.is_hopeless() || bounds.upper < SHARE {
                verdict = Verdict::Fails;
            } else if bounds.lower >= SHARE {
                verdict = Verdict::Holds;
            }
        }
        let bounds = tally.bounds(error);
        let ms = |q| tally.latency.quantile(q).map(|ns| ns as f64 / 1e6);
        let (dispatch_share, route_share) = tally.parts();
        let lag = tally.lag();
        Ok(Probe {
            rate_per_s,
            attempts,
            requests: tally.seen,
            in_goal: tally.in_goal,
            share: tally.in_goal as f64 / tally.seen.max(1) as f64,
            share_lower: bounds.lower,
            share_upper: bounds.upper,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            busy_share: tally.busy_share(),
            batch_ms: tally.batch_ns() as f64 / 1e6,
            dispatch_share,
            route_share,
            generator_lag_p99_ms: lag.p99.map(|ns| ns as f64 / 1e6),
            generator_lagged: lag.lagged,
            verdict,
        })
    }

    /// Requests of an attempt.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded by the search"
    )]
    fn requests(&self, rate_per_s: f64) -> u32 {
        let least = (rate_per_s * GOALS_LONG * self.goal.p99_ms / 1e3) as u32;
        self.plan.scenario.load.requests.max(least)
    }

    fn found(self) -> Capacity {
        let Self { plan, goal, search, done, .. } = self;
        Capacity {
            scenario: plan.scenario.name.clone(),
            goal_p99_ms: goal.p99_ms,
            confidence: goal.confidence,
            rate_per_s: search.holds,
            fails_at_per_s: search.fails,
            limited_by: limit(plan.scenario, goal, search.fails, &done),
            probes: done,
        }
    }
}

/// What keeps the lowest rate that failed from holding.
fn limit(scenario: &Scenario, goal: CapacityGoal, fails: Option<f64>, probes: &[Probe]) -> String {
    let failed = probes.iter().find(|probe| Some(probe.rate_per_s) == fails);
    let Some(probe) = failed else {
        return "nothing: the largest rate within reach holds".to_owned();
    };
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let rest = 1.0 - probe.dispatch_share - probe.route_share;
    let parts = format!(
        "{} of it experts and the way to them, {} the router, {} the rest of the model and the game",
        percent(probe.dispatch_share),
        percent(probe.route_share),
        percent(rest)
    );
    if probe.busy_share >= SATURATED {
        return format!(
            "service: a batch is under way {} of the time and takes {:.2} ms, {parts}",
            percent(probe.busy_share),
            probe.batch_ms
        );
    }
    let is_generating = !scenario.load.generation.is_off();
    let window_ms = if is_generating { 0.0 } else { f64::from(scenario.load.batch_window_ms) };
    if probe.batch_ms + window_ms > goal.p99_ms {
        return format!(
            "a batch alone: {window_ms} ms until its window ends and {:.2} ms of service, {parts}",
            probe.batch_ms
        );
    }
    if probe.generator_lag_p99_ms.is_some_and(|lag_ms| lag_ms > LAG_SHARE * goal.p99_ms) {
        return "the load generator, which was late itself: latencies are not the system's"
            .to_owned();
    }
    format!(
        "the tail: a batch is under way only {} of the time and takes {:.2} ms, {parts}; what is over \
         the goal waits for batches that come together or take longer than most",
        percent(probe.busy_share),
        probe.batch_ms
    )
}
