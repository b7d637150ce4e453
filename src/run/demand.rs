//! What is asked of the system: when requests mean to arrive, how long they are, which share a batch.

use crate::scenario::Scenario;
use crate::scenario::file::{Arrival, Lengths};
use crate::source::trace::{TraceError, read_arrivals, read_requests};
use agents::arrival::{self, ArrivalProcess, BatchLimits, PlannedBatch};
use agents::continuous::{RequestLength, StepLimits, Steps};
use agents::ids::RequestId;

/// What is asked of the system, in ns from the start of serving.
pub(super) struct Demand {
    /// When requests mean to arrive.
    pub(super) intended_ns: Vec<u64>,
    /// Which of them share a batch; none where answers are generated.
    pub(super) batches: Vec<PlannedBatch>,
    /// Where answers are generated.
    pub(super) answers: Option<Answers>,
}

/// Prompts and answers of a demand.
pub(super) struct Answers {
    /// By request, cut to the context.
    pub(super) lengths: Vec<RequestLength>,
    /// Requests that were cut.
    pub(super) cut: u64,
    /// Tokens of a prompt and its answer, at most.
    pub(super) context: usize,
    pub(super) limits: StepLimits,
}

impl Answers {
    /// The steps, by the virtual clock.
    pub(super) fn steps<'a>(&'a self, intended_ns: &'a [u64]) -> Steps<'a> {
        Steps::new(intended_ns, &self.lengths, self.limits)
    }
}

impl Demand {
    /// Batches, or steps where answers are generated.
    pub(super) fn steps(&self) -> usize {
        match &self.answers {
            None => self.batches.len(),
            Some(answers) => answers.steps(&self.intended_ns).count(),
        }
    }

    /// Tokens of a request, where windows have so many.
    pub(super) fn tokens(&self, request: RequestId, window: u64) -> u64 {
        let answers = self.answers.as_ref();
        answers.map_or(window, |answers| u64::from(answers.lengths[request.index()].total()))
    }

    /// Mean tokens of a request, likewise.
    pub(super) fn tokens_mean(&self, window: u64) -> f64 {
        let ids = (0..self.intended_ns.len()).map(RequestId::from_index);
        let sum: u64 = ids.map(|request| self.tokens(request, window)).sum();
        sum as f64 / self.intended_ns.len() as f64
    }
}

/// How a scenario's requests arrive and how long they are; its trace is read once.
pub(super) struct Arrivals {
    process: ArrivalProcess,
    /// As recorded; one for all where they are fixed.
    lengths: Vec<RequestLength>,
    /// Tokens of a prompt and its answer, at most; none where nothing is generated.
    context: Option<usize>,
}

impl Arrivals {
    /// # Errors
    /// When the trace that the scenario names cannot be used.
    pub(super) fn of(scenario: &Scenario, context: Option<usize>) -> Result<Self, TraceError> {
        let load = &scenario.load;
        let generation = &load.generation;
        let mut lengths = vec![RequestLength {
            prompt: generation.prompt_tokens,
            generated: generation.generated_tokens,
        }];
        let process = match (load.arrival, &load.trace) {
            (Arrival::Poisson, _) => ArrivalProcess::Poisson,
            (Arrival::Constant, _) => ArrivalProcess::Constant,
            (Arrival::Gamma, _) => ArrivalProcess::Gamma { variation: load.variation },
            (Arrival::Burst, _) => ArrivalProcess::Burst { requests: load.burst_requests },
            (Arrival::Trace, Some(path)) if generation.lengths == Lengths::Trace => {
                let (times_ns, recorded) = read_requests(path, load.requests)?;
                lengths =
                    recorded.into_iter().map(|of| scaled(of, generation.length_scale)).collect();
                ArrivalProcess::Trace(times_ns)
            }
            (Arrival::Trace, Some(path)) => {
                ArrivalProcess::Trace(read_arrivals(path, load.requests)?)
            }
            (Arrival::Trace, None) => unreachable!("the scenario's checks demand a trace"),
        };
        Ok(Self { process, lengths, context })
    }

    /// How many requests there can be at most; none where that is not bounded.
    pub(super) fn requests_max(&self) -> Option<usize> {
        match &self.process {
            ArrivalProcess::Trace(recorded) => Some(recorded.len()),
            _ => None,
        }
    }

    /// What the scenario asks for.
    pub(super) fn of_scenario(&self, scenario: &Scenario) -> Demand {
        let load = &scenario.load;
        self.demand(scenario, (load.rate_per_s, load.requests), scenario.seed)
    }

    /// The scenario's load at another rate, with another number of requests, its gaps drawn from `seed`.
    ///
    /// # Panics
    /// When there cannot be so many requests.
    pub(super) fn demand(
        &self,
        scenario: &Scenario,
        (rate_per_s, requests): (f64, u32),
        seed: u64,
    ) -> Demand {
        let load = &scenario.load;
        let intended_ns = arrival::intended_ns(&self.process, rate_per_s, requests, seed);
        if let Some(context) = self.context {
            let answers = Some(self.answers(scenario, requests, context));
            return Demand { intended_ns, batches: Vec::new(), answers };
        }
        let limits = BatchLimits {
            requests_max: load.batch_requests_max as usize,
            window_ns: u64::from(load.batch_window_ms) * 1_000_000,
        };
        Demand { batches: arrival::batches(&intended_ns, limits), intended_ns, answers: None }
    }

    fn answers(&self, scenario: &Scenario, requests: u32, context: usize) -> Answers {
        let generation = &scenario.load.generation;
        let most = u32::try_from(context).expect("positions of a model are few");
        let asked = self.lengths.iter().copied().cycle().take(requests as usize);
        let lengths: Vec<RequestLength> = asked.clone().map(|of| of.within(most)).collect();
        Answers {
            cut: asked.zip(&lengths).filter(|(asked, cut)| asked != *cut).count() as u64,
            lengths,
            context,
            limits: StepLimits {
                tokens_max: generation.step_tokens_max,
                running_max: generation.running_max,
                step_ns: u64::from(generation.step_us) * 1_000,
                token_ns: u64::from(generation.token_us) * 1_000,
            },
        }
    }
}

/// Lengths times `scale`, at least one token each.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the scale is at most 1, and tokens are not negative"
)]
fn scaled(length: RequestLength, scale: f64) -> RequestLength {
    let scaled = |tokens: u32| ((f64::from(tokens) * scale).ceil() as u32).max(1);
    RequestLength { prompt: scaled(length.prompt), generated: scaled(length.generated) }
}
