//! Serving answers: steps of continuous batching, in which prompts are read and answers decoded.

use super::checkpoint::{BegunRequests, Boundary};
use super::demand::{Answers, Demand};
use super::plan::Plan;
use super::rounds::play_layers;
use super::serve::{GoingOn, ServeError, Serving, Watch};
use crate::dispatch::Dispatch;
use agents::continuous::RequestLength;
use agents::ids::{RequestId, StepId};
use agents::round::Arena;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A step that is done.
#[derive(Clone, Debug)]
pub(super) struct StepDone {
    /// Rows that it computed.
    pub(super) tokens: u32,
    /// From its start to its end, on the run's clock.
    pub(super) times_ns: Range<u64>,
    /// How long after its time on the virtual clock it started.
    pub(super) behind_ns: u64,
    /// Bytes of keys and values after it.
    pub(super) cache_bytes: usize,
}

/// A request that is answered. Times are of the run's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) request: RequestId,
    pub(super) length: RequestLength,
    /// The step of its last token.
    pub(super) step: StepId,
    pub(super) intended_ns: u64,
    /// The start of its first step.
    pub(super) started_ns: u64,
    /// The end of the step that gave its first token.
    pub(super) first_token_ns: u64,
    /// The end of the step that gave its last token.
    pub(super) finished_ns: u64,
}

/// What is known of a request that has begun. Times are of the run's clock.
#[derive(Serialize, Deserialize)]
pub(super) struct Begun {
    started_ns: u64,
    first_token_ns: Option<u64>,
}

impl Plan<'_> {
    /// The loop. Steps start at their time on the virtual clock, or as soon after as the one before has
    /// ended.
    pub(super) async fn serve_steps(
        &self,
        (demand, answers, from): (&Demand, &Answers, Option<GoingOn>),
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        serving: &Serving<'_>,
        watch: &mut impl Watch,
    ) -> Result<(), ServeError> {
        let lengths = (answers.lengths.as_slice(), answers.context);
        let mut source = self.materials.generating_source(self.experts.kept(), lengths);
        let clock = serving.clock;
        let mut free_ns = clock.now_ns();
        let mut widths = self.widths_in_flight();
        let (from_ns, done, mut begun) = match from {
            Some(GoingOn { position, decoding, decided, .. }) => {
                widths.going_on(decided, arena, dispatch).await?;
                let (begun, sequences) = decoding.unwrap_or_default();
                source.recall(sequences);
                (position.serving_from_ns, position.steps_done, begun)
            }
            None => {
                watch.serving_from(free_ns);
                (free_ns, 0, BegunRequests::new())
            }
        };
        let requests = demand.intended_ns.len() as u64;
        let mut answered = 0;
        let mut moves = self.moves_in_flight();
        let mut steps = answers.steps(&demand.intended_ns).peekable();
        while let Some(step) = steps.next() {
            if step.step.index() < done {
                answered += step.parts.iter().filter(|part| part.ends).count() as u64;
                continue;
            }
            let due_ns = from_ns + step.starts_ns;
            serving.until(due_ns, dispatch, watch).await;
            let started_ns = clock.now_ns();
            watch.released(started_ns.saturating_sub(due_ns.max(free_ns)));
            let seats: Vec<RequestId> = step
                .parts
                .iter()
                .flat_map(|part| std::iter::repeat_n(part.request, part.positions.len()))
                .collect();
            source.begin_step(&step.parts);
            let played = play_layers(
                source.as_mut(),
                arena,
                dispatch,
                clock,
                (step.step, &seats),
                |round, arena| serving.round(round, arena, watch),
            );
            played.await?;
            source.end_step();
            free_ns = clock.now_ns();
            for part in &step.parts {
                let of = begun.entry(part.request);
                let of = of.or_insert(Begun { started_ns, first_token_ns: None });
                if part.emits {
                    of.first_token_ns.get_or_insert(free_ns);
                }
                let Some(first_token_ns) = of.first_token_ns.filter(|_| part.ends) else {
                    continue;
                };
                watch.answered(Answer {
                    request: part.request,
                    length: answers.lengths[part.request.index()],
                    step: step.step,
                    intended_ns: from_ns + demand.intended_ns[part.request.index()],
                    started_ns: of.started_ns,
                    first_token_ns,
                    finished_ns: free_ns,
                });
                begun.remove(&part.request);
                answered += 1;
            }
            watch.step(StepDone {
                tokens: step.tokens(),
                times_ns: started_ns..free_ns,
                behind_ns: started_ns.saturating_sub(due_ns),
                cache_bytes: source.cache_bytes(),
            });
            serving.progress.answered(answered, requests);
            widths.step_ended(arena, dispatch, clock, watch).await?;
            moves.step_ended(arena, dispatch, clock, watch).await?;
            free_ns = clock.now_ns();
            let at = Boundary {
                steps_done: step.step.index() + 1,
                is_last: steps.peek().is_none(),
                clock,
                arena,
                gate: None,
                decoding: Some((&begun, source.sequences())),
                decided: widths.decided(),
                served: &|| dispatch.so_far(),
            };
            if !watch.goes_on(&at)? {
                break;
            }
            // Under overload nothing else waits, and an interrupt would never be heard.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
