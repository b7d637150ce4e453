//! Sums over steps of continuous batching and over the answers that they gave.

use super::decode::{Answer, StepDone};
use crate::measure::Latency;
use crate::results::{GenerationFigures, Summary};
use serde::{Deserialize, Serialize};

/// Times of answers, and what steps came to.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Decoding {
    /// From the intended start to the first token.
    pub(super) ttft: Latency,
    /// Of each further token, a request's mean.
    pub(super) tpot: Latency,
    step: Latency,
    steps: u64,
    tokens: u64,
    behind_steps: u64,
    behind_ns_max: u64,
    cache_bytes_max: usize,
    prompt_tokens: u64,
    generated_tokens: u64,
}

impl Decoding {
    pub(super) fn step(&mut self, step: &StepDone) {
        /// A step that starts within this of its virtual time is on it: timers are no better.
        const ON_TIME_NS: u64 = 1_000_000;
        self.steps += 1;
        self.tokens += u64::from(step.tokens);
        self.step.record(step.times_ns.end - step.times_ns.start);
        self.behind_steps += u64::from(step.behind_ns > ON_TIME_NS);
        self.behind_ns_max = self.behind_ns_max.max(step.behind_ns);
        self.cache_bytes_max = self.cache_bytes_max.max(step.cache_bytes);
    }

    pub(super) fn answer(&mut self, answer: &Answer) {
        self.ttft.record_from(answer.intended_ns, answer.first_token_ns);
        let further = u64::from(answer.length.generated) - 1;
        let time_ns = answer.finished_ns - answer.first_token_ns;
        if let Some(each_ns) = time_ns.checked_div(further) {
            self.tpot.record(each_ns);
        }
        self.prompt_tokens += u64::from(answer.length.prompt);
        self.generated_tokens += u64::from(answer.length.generated);
    }

    pub(super) fn sum_up(&self, e2e: &Latency, summary: &mut Summary) {
        summary.ttft_ns = Some(self.ttft.quantiles());
        summary.tpot_ns = Some(self.tpot.quantiles());
        summary.e2e_ns = Some(e2e.quantiles());
        let share = |part: u64| (self.steps > 0).then(|| part as f64 / self.steps as f64);
        summary.generation = Some(GenerationFigures {
            steps: self.steps,
            tokens_per_step: share(self.tokens),
            step_ns: self.step.quantiles(),
            behind_share: share(self.behind_steps),
            behind_ns_max: self.behind_ns_max,
            cache_bytes_max: self.cache_bytes_max as u64,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            ..summary.generation.take().unwrap_or_default()
        });
    }
}
