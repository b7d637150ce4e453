//! Continuous batching: which tokens of which requests each step computes.
//!
//! A request is a prompt and a number of tokens to generate. A step takes one token for each running
//! request whose prompt is done, then prompt tokens of the others in order of arrival, up to a budget
//! (Orca, Yu et al., OSDI 2022; prompts are cut into chunks as Sarathi-Serve does, Agrawal et al., OSDI
//! 2024). Which step a request joins follows from a virtual clock, on which a step takes a fixed time and
//! a further one a token: so the make-up of every step follows from arrivals and lengths alone, never
//! from the machine.

use crate::ids::{RequestId, StepId};
use std::collections::VecDeque;
use std::ops::Range;

/// Tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLength {
    /// Of its prompt, ≥ 1.
    pub prompt: u32,
    /// To generate, ≥ 1.
    pub generated: u32,
}

impl RequestLength {
    /// Cut to a context of `context` tokens, prompt and generated together. Half of the context is each
    /// part's own; what one part leaves of its half the other may take.
    ///
    /// # Panics
    /// When the context is below two tokens.
    #[must_use]
    pub fn within(self, context: u32) -> Self {
        assert!(context >= 2, "a prompt and an answer have a token each");
        let left = context.saturating_sub(self.generated);
        let prompt = self.prompt.min(left.max(context / 2)).max(1);
        Self { prompt, generated: self.generated.min(context - prompt).max(1) }
    }

    /// Prompt and generated tokens together.
    #[must_use]
    pub fn total(self) -> u32 {
        self.prompt + self.generated
    }
}

/// What bounds a step, and how the virtual clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens of a step, ≥ `running_max`.
    pub tokens_max: u32,
    /// Requests that have begun and not ended, ≥ 1: each holds keys and values.
    pub running_max: u32,
    /// Virtual time of a step, ns.
    pub step_ns: u64,
    /// Virtual time of each of its tokens, ns; not both are 0.
    pub token_ns: u64,
}

/// Consecutive positions of one request in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPart {
    /// The request.
    pub request: RequestId,
    /// Its positions: those of the prompt come first, generated tokens follow.
    pub positions: Range<u32>,
    /// Whether the last position's output is the request's next token: it ends the prompt, or is a
    /// generated token itself.
    pub emits: bool,
    /// Whether that token is its last.
    pub ends: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// Its id.
    pub step: StepId,
    /// When it starts on the virtual clock, ns since the run's start: no work on it starts earlier.
    pub starts_ns: u64,
    /// Requests with a token to generate first, then those with prompt left, each in order of arrival.
    pub parts: Vec<StepPart>,
}

impl PlannedStep {
    /// Tokens that it computes.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.parts.iter().map(|part| part.positions.end - part.positions.start).sum()
    }
}

/// The steps of a run, one after the other.
#[derive(Clone, Debug)]
pub struct Steps<'a> {
    intended_ns: &'a [u64],
    lengths: &'a [RequestLength],
    limits: StepLimits,
    /// Requests that have begun, in order of arrival, and the positions that they have computed.
    running: VecDeque<(RequestId, u32)>,
    next_request: usize,
    next_step: usize,
    now_ns: u64,
}

impl<'a> Steps<'a> {
    /// Plans the requests that arrive at `intended_ns`, ascending, ns since the run's start.
    ///
    /// # Panics
    /// When there is not one length a request, a length is 0, or the limits leave no step room or take
    /// no time.
    #[must_use]
    pub fn new(intended_ns: &'a [u64], lengths: &'a [RequestLength], limits: StepLimits) -> Self {
        assert_eq!(intended_ns.len(), lengths.len(), "one length a request");
        assert!(lengths.iter().all(|l| l.prompt > 0 && l.generated > 0), "no part is empty");
        assert!(limits.running_max > 0 && limits.tokens_max >= limits.running_max, "room");
        assert!(limits.step_ns + limits.token_ns > 0, "a step takes time");
        let running = VecDeque::new();
        Self { intended_ns, lengths, limits, running, next_request: 0, next_step: 0, now_ns: 0 }
    }

    fn admit(&mut self) {
        if self.running.is_empty() {
            let next = self.intended_ns.get(self.next_request).copied().unwrap_or(0);
            self.now_ns = self.now_ns.max(next);
        }
        while self.running.len() < self.limits.running_max as usize
            && self.intended_ns.get(self.next_request).is_some_and(|at| *at <= self.now_ns)
        {
            self.running.push_back((RequestId::from_index(self.next_request), 0));
            self.next_request += 1;
        }
    }

    fn part(&self, request: RequestId, done: u32, tokens: u32) -> StepPart {
        let length = self.lengths[request.index()];
        let end = done + tokens;
        // The last token is generated and never read.
        let (emits, ends) = (end >= length.prompt, end + 1 == length.total());
        StepPart { request, positions: done..end, emits, ends }
    }
}

impl Iterator for Steps<'_> {
    type Item = PlannedStep;

    fn next(&mut self) -> Option<PlannedStep> {
        self.admit();
        if self.running.is_empty() {
            return None;
        }
        let prompt = |request: RequestId| self.lengths[request.index()].prompt;
        let (decoding, reading): (Vec<_>, Vec<_>) =
            self.running.iter().copied().partition(|(request, done)| *done >= prompt(*request));
        let mut parts: Vec<StepPart> =
            decoding.iter().map(|(request, done)| self.part(*request, *done, 1)).collect();
        let mut room = self.limits.tokens_max - u32::try_from(parts.len()).expect("few run");
        for (request, done) in reading {
            let tokens = room.min(prompt(request) - done);
            if tokens == 0 {
                break;
            }
            room -= tokens;
            parts.push(self.part(request, done, tokens));
        }
        for part in &parts {
            let at = self.running.iter().position(|(request, _)| *request == part.request);
            let at = at.expect("only running requests have parts");
            if part.ends {
                self.running.remove(at);
            } else {
                self.running[at].1 = part.positions.end;
            }
        }
        let step = StepId::from_index(self.next_step);
        let planned = PlannedStep { step, starts_ns: self.now_ns, parts };
        self.next_step += 1;
        let tokens = u64::from(planned.tokens());
        self.now_ns += self.limits.step_ns + tokens * self.limits.token_ns;
        Some(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::{PlannedStep, RequestLength, StepLimits, Steps};
    use crate::ids::RequestId;
    use proptest::prelude::*;

    fn length(prompt: u32, generated: u32) -> RequestLength {
        RequestLength { prompt, generated }
    }

    fn made_of(step: &PlannedStep) -> Vec<(u32, u32, u32)> {
        let part = |p: &super::StepPart| (p.request.0, p.positions.start, p.positions.end);
        step.parts.iter().map(part).collect()
    }

    #[test]
    fn a_step_takes_a_token_of_each_running_request_and_fills_up_with_prompts() {
        let limits = StepLimits { tokens_max: 4, running_max: 2, step_ns: 10, token_ns: 1 };
        let lengths = [length(3, 3), length(6, 1), length(1, 2)];
        let steps: Vec<_> = Steps::new(&[5, 5, 6], &lengths, limits).collect();
        let made: Vec<_> = steps.iter().map(made_of).collect();
        assert_eq!(
            made,
            [
                vec![(0, 0, 3), (1, 0, 1)],
                vec![(0, 3, 4), (1, 1, 4)],
                vec![(0, 4, 5), (1, 4, 6)],
                // The first two have ended: the third was waiting for a place.
                vec![(2, 0, 1)],
                vec![(2, 1, 2)],
            ]
        );
        let starts: Vec<_> = steps.iter().map(|step| step.starts_ns).collect();
        assert_eq!(starts, [5, 19, 33, 46, 57]);
        let flags: Vec<_> =
            steps.iter().flat_map(|s| &s.parts).map(|p| (p.emits, p.ends)).collect();
        let (none, emits, ends) = ((false, false), (true, false), (true, true));
        assert_eq!(flags, [emits, none, emits, none, ends, ends, emits, ends]);
    }

    #[test]
    fn lengths_are_cut_to_the_context_and_neither_part_is_starved() {
        assert_eq!(length(20, 10).within(64), length(20, 10));
        assert_eq!(length(1_000, 10).within(64), length(54, 10));
        assert_eq!(length(10, 1_000).within(64), length(10, 54));
        assert_eq!(length(1_000, 1_000).within(64), length(32, 32));
        assert_eq!(length(1_000, 1_000).within(2), length(1, 1));
    }

    proptest! {
        #[test]
        fn every_position_is_computed_once_in_order_within_the_limits(
            requests in proptest::collection::vec((0_u64..400, 1_u32..40, 1_u32..12), 1..30),
            running_max in 1_u32..6,
            room in 0_u32..20,
        ) {
            let mut intended_ns: Vec<u64> = requests.iter().map(|r| r.0).collect();
            intended_ns.sort_unstable();
            let lengths: Vec<_> = requests.iter().map(|r| length(r.1, r.2)).collect();
            let tokens_max = running_max + room;
            let limits = StepLimits { tokens_max, running_max, step_ns: 7, token_ns: 2 };
            let mut done = vec![0; lengths.len()];
            let mut emitted = vec![0; lengths.len()];
            let mut free_ns = 0;
            for step in Steps::new(&intended_ns, &lengths, limits) {
                prop_assert!(step.tokens() > 0 && step.tokens() <= tokens_max);
                prop_assert!(step.starts_ns >= free_ns, "one step at a time");
                free_ns = step.starts_ns + 7 + 2 * u64::from(step.tokens());
                for part in &step.parts {
                    let RequestId(id) = part.request;
                    let id = id as usize;
                    prop_assert!(intended_ns[id] <= step.starts_ns, "it has arrived");
                    prop_assert_eq!(part.positions.start, done[id]);
                    done[id] = part.positions.end;
                    emitted[id] += u32::from(part.emits);
                    prop_assert_eq!(part.ends, emitted[id] == lengths[id].generated);
                }
                let running = done.iter().zip(&emitted).zip(&lengths);
                let running = running.filter(|((done, emitted), of)| **done > 0 && **emitted < of.generated);
                prop_assert!(running.count() <= running_max as usize);
            }
            for (id, of) in lengths.iter().enumerate() {
                prop_assert_eq!((done[id], emitted[id]), (of.total() - 1, of.generated));
            }
        }
    }
}
