//! Serving: batches are played when they close.

use super::checkpoint::{BegunRequests, Boundary, Position};
use super::decode::{Answer, StepDone};
use super::demand::Demand;
use super::interrupt::{Interrupted, Interrupts};
use super::migrate::ExpertsMoved;
use super::observe::{Observed, Observer};
use super::on_nodes::Job;
use super::pace::{Pace, Pass};
use super::plan::Plan;
use super::reallocate::WidthsBrought;
use super::record::Recorder;
use super::rounds::{AskNodes, NodesNow, Round, RoundError, play_batch};
use super::{Progress, RunSettings};
use crate::dispatch::{Dispatch, DispatchError, Served};
use crate::measure::Clock;
use crate::measure::clock::unix_ns;
use crate::model::checkpoint::CheckpointError;
use crate::results::ResultsError;
use crate::scenario::file::{self, Engine};
use crate::source::Sequences;
use agents::admission::Admission;
use agents::ids::{RequestId, StepId};
use agents::precision::WidthDecision;
use agents::queue::{Passed, Queue, QueueLimits};
use agents::round::{Arena, Stage};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What ended a run that had started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A worker could not be started or loaded.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// A round failed.
    #[error(transparent)]
    Round(#[from] RoundError),
    /// Results cannot be written.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// Experts cannot be read again, for a control or for other widths.
    #[error("reading experts again: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The user or the system asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Hears how serving goes, and may end it.
pub(super) trait Watch {
    /// Serving starts.
    fn serving_from(&mut self, now_ns: u64);

    /// A round is done; the last are payload bytes sent and received.
    fn round(&mut self, round: &Round<'_>, arena: &Arena, stages: &StageEnds, payload: (u64, u64));

    /// Nothing is done for a while: the next batch or step is not due, or the run stands still.
    fn waits(&mut self, _nodes: AskNodes<'_>) {}

    /// A batch starts this long after it could have: it had closed and the one before had ended.
    fn released(&mut self, lag_ns: u64);

    /// Requests of a batch are not served: nothing was done for them.
    fn refused(&mut self, requests: &[RequestId], why: Refusal, intended_ns: &[u64], now_ns: u64);

    /// Requests of a batch are answered: `times_ns` from its start to its end on the run's clock,
    /// `intended_ns` from the start of serving, `losses` one a request where text is scored.
    fn batch(
        &mut self,
        batch: (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        losses: Option<&[f64]>,
    );

    /// A step of continuous batching is done.
    fn step(&mut self, step: StepDone);

    /// A request has its whole answer.
    fn answered(&mut self, answer: Answer);

    /// Other widths came into force between two steps.
    fn widths_brought(&mut self, _brought: &WidthsBrought<'_>) {}

    /// Experts work on other nodes from between two steps on.
    fn experts_moved(&mut self, _moved: &ExpertsMoved<'_>) {}

    /// A batch or step has ended and all of it was told: whether the next is worth starting.
    ///
    /// # Errors
    /// What ends serving as a failure.
    fn goes_on(&mut self, at: &Boundary<'_>) -> Result<bool, ServeError>;
}

/// What serving needs beside what it serves and where.
pub(super) struct Serving<'a> {
    pub(super) clock: &'a Clock,
    pub(super) progress: &'a dyn Progress,
    /// Whether nothing waits for its time.
    at_once: bool,
    /// Of the latest decision.
    stages: Arc<StageClock>,
    /// Columns of hidden rows that go to other processes; none where all is in this one.
    sent_width: Option<usize>,
}

impl Serving<'_> {
    /// Waits until a batch or step may start.
    pub(super) async fn until(
        &self,
        due_ns: u64,
        dispatch: &impl Dispatch,
        watch: &mut impl Watch,
    ) {
        /// A wait that whoever watches is told of.
        const LONG_NS: u64 = 100_000_000;
        let pace = self.progress.pace();
        let nodes = || NodesNow::of(dispatch);
        loop {
            let Some(pass) = pace.map_or(Some(Pass::Free), Pace::pass) else {
                watch.waits(AskNodes::new(&nodes));
                let _standing = self.clock.stand_still();
                pace.expect("without one all pass").opens().await;
                continue;
            };
            if self.at_once {
                return;
            }
            if due_ns.saturating_sub(self.clock.now_ns()) > LONG_NS {
                watch.waits(AskNodes::new(&nodes));
            }
            let Some(pace) = pace.filter(|_| pass == Pass::Free) else {
                return self.clock.sleep_until_ns(due_ns).await;
            };
            tokio::select! {
                biased;
                () = pace.pauses() => {}
                () = self.clock.sleep_until_ns(due_ns) => return,
            }
        }
    }

    /// Hands a round on, with the times of its stages and the payload.
    pub(super) fn round(&self, round: &Round<'_>, arena: &Arena, watch: &mut impl Watch) {
        let payload = self.sent_width.map_or((0, 0), |width| payload_bytes(round, width));
        watch.round(round, arena, &read(&self.stages), payload);
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot be answered in time, or found the queue full.
    Shed,
    /// It has waited too long.
    Timeout,
}

/// Decides which requests of a batch are served.
#[derive(Serialize, Deserialize)]
pub(super) enum Gate {
    All,
    Deadline(Admission),
    Queue(Queue),
}

impl Gate {
    /// Decides on a batch that closed at `closed_ns` and could start at `now_ns`.
    fn pass<I: Copy>(&mut self, requests: &[(I, u64)], closed_ns: u64, now_ns: u64) -> Passed<I> {
        let (admitted, shed) = match self {
            Self::All => (requests.iter().map(|(request, _)| *request).collect(), Vec::new()),
            Self::Deadline(admission) => admission.split(requests, closed_ns, now_ns),
            Self::Queue(queue) => return queue.pass(requests, closed_ns, now_ns),
        };
        Passed { admitted, shed, timed_out: Vec::new() }
    }

    /// A batch took this long.
    fn served(&mut self, service_ns: u64) {
        if let Self::Deadline(admission) = self {
            admission.served(service_ns);
        }
    }
}

/// Where serving goes on.
pub(super) struct GoingOn {
    pub(super) position: Position,
    /// When the checkpoint was written, ns since 1970.
    pub(super) written_unix_ns: u64,
    /// Who is served, where batches are.
    pub(super) gate: Option<Gate>,
    /// Requests under way, where answers are decoded.
    pub(super) decoding: Option<(BegunRequests, Sequences)>,
    /// Widths that were decided and not in force at the cut.
    pub(super) decided: Option<WidthDecision>,
}

/// Serves a plan's demand once, and records it.
pub(super) struct ServeOnce<'a> {
    pub(super) plan: &'a Plan<'a>,
    /// The run's clock: it goes on from a checkpoint as soon as the nodes are ready.
    pub(super) clock: Clock,
    pub(super) progress: &'a dyn Progress,
    pub(super) recorder: &'a mut Recorder,
    pub(super) observer: Observer<'a>,
    /// Outside of what an interrupt drops: it knows what was ordered when the run was stopped.
    pub(super) arena: Arena,
    pub(super) from: Option<GoingOn>,
    pub(super) at_once: bool,
    /// What the clock showed when it was last known to stand still; none while it goes.
    pub(super) stands_at_ns: Option<u64>,
}

impl Job for ServeOnce<'_> {
    fn clock(&self) -> Clock {
        self.clock
    }

    async fn work(&mut self, dispatch: &mut impl Dispatch) -> Result<(), ServeError> {
        self.progress.phase("serving");
        let demand = &self.plan.demand;
        let (arena, recorder) = (&mut self.arena, &mut *self.recorder);
        let from = self.from.take();
        if let Some(from) = &from {
            self.observer.serving_from_ns = Some(from.position.serving_from_ns);
            let now_ns = from.position.now_ns;
            let gap_ns = unix_ns(self.clock.wall_now()).saturating_sub(from.written_unix_ns);
            recorder.goes_on_after(gap_ns, &demand.intended_ns, now_ns);
            self.clock = Clock::going_on(now_ns, from.position.started_at());
            if self.progress.pace().is_some() {
                self.clock = self.clock.pausable();
            }
        }
        self.stands_at_ns = None;
        let on = (self.progress, &self.clock, self.at_once);
        let observer = &mut self.observer;
        observer.clock = self.clock;
        let watch = &mut Observed { recorder, observer };
        self.plan.serve_demand((demand, from), arena, dispatch, on, watch).await
    }
}

impl Plan<'_> {
    /// Starts the nodes, serves all batches on them, or those after a checkpoint, and always ends the
    /// nodes.
    pub(super) async fn serve(
        &self,
        settings: &RunSettings<'_>,
        clock: &Clock,
        interrupts: &mut Interrupts<'_>,
        recorder: &mut Recorder,
        (arena, from, earlier): (Arena, Option<GoingOn>, &Served),
    ) -> (Result<(), ServeError>, Served) {
        let stands_at_ns = from.as_ref().map(|from| from.position.now_ns);
        let (clock, progress, at_once) = (*clock, settings.progress, settings.at_once);
        let observer = Observer::new(self, progress, (clock, earlier));
        let mut job = ServeOnce {
            plan: self,
            clock,
            progress,
            recorder,
            observer,
            arena,
            from,
            at_once,
            stands_at_ns,
        };
        let (result, served) = self.on_nodes(settings, interrupts, &mut job).await;
        job.recorder.pairs(job.arena.pairs());
        job.recorder.motion(job.arena.motion());
        job.recorder.widths_ended(self.bits_in(&job.arena));
        if result.is_err() {
            let now_ns = job.stands_at_ns.unwrap_or_else(|| job.clock.now_ns());
            job.recorder.requests.give_up(&self.demand, now_ns);
        }
        job.recorder.paused(job.clock.stood_ns());
        job.observer.ended(job.recorder, &served);
        (result, served)
    }

    /// Serves a demand in steps where answers are generated, in batches otherwise; all of it, or what
    /// comes after a checkpoint.
    pub(super) async fn serve_demand(
        &self,
        (demand, from): (&Demand, Option<GoingOn>),
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        (progress, clock, at_once): (&dyn Progress, &Clock, bool),
        watch: &mut impl Watch,
    ) -> Result<(), ServeError> {
        let stages = time_stages(arena, *clock);
        let remote = self.scenario.nodes.engine != Engine::InProcess;
        let sent_width = remote.then(|| self.source().shape().width);
        let serving = Serving { clock, progress, at_once, stages, sent_width };
        match &demand.answers {
            None => self.serve_batches((demand, from), arena, dispatch, &serving, watch).await,
            Some(answers) => {
                self.serve_steps((demand, answers, from), arena, dispatch, &serving, watch).await
            }
        }
    }

    /// The loop. Batches start when they close, or as soon after as the one before has ended.
    async fn serve_batches(
        &self,
        (demand, from): (&Demand, Option<GoingOn>),
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        serving: &Serving<'_>,
        watch: &mut impl Watch,
    ) -> Result<(), ServeError> {
        let mut source = self.source();
        let clock = serving.clock;
        let mut widths = self.widths_in_flight();
        let mut moves = self.moves_in_flight();
        // When the batch before had ended.
        let mut free_ns = clock.now_ns();
        let (serving_from_ns, done, mut gate) = match from {
            Some(GoingOn { position, gate, decided, .. }) => {
                widths.going_on(decided, arena, dispatch).await?;
                let gate = gate.unwrap_or_else(|| self.gate());
                (position.serving_from_ns, position.steps_done, gate)
            }
            None => {
                watch.serving_from(free_ns);
                (free_ns, 0, self.gate())
            }
        };
        let requests = demand.intended_ns.len() as u64;
        for (place, batch) in demand.batches.iter().enumerate().skip(done) {
            let closes_ns = serving_from_ns + batch.closes_ns;
            serving.until(closes_ns, dispatch, watch).await;
            let started_ns = clock.now_ns();
            watch.released(started_ns.saturating_sub(closes_ns.max(free_ns)));
            free_ns = started_ns;
            let intended = |id: RequestId| (id, demand.intended_ns[id.index()]);
            let asked: Vec<_> = batch.request_ids().map(intended).collect();
            let now_ns = started_ns - serving_from_ns;
            let Passed { admitted: ids, shed, timed_out } =
                gate.pass(&asked, batch.closes_ns, now_ns);
            watch.refused(&shed, Refusal::Shed, &demand.intended_ns, started_ns);
            watch.refused(&timed_out, Refusal::Timeout, &demand.intended_ns, started_ns);
            if !ids.is_empty() {
                let played = play_batch(
                    source.as_mut(),
                    arena,
                    dispatch,
                    clock,
                    (batch.step, &ids),
                    |round, arena| serving.round(round, arena, watch),
                );
                let losses = played.await?;
                free_ns = clock.now_ns();
                gate.served(free_ns - started_ns);
                let times_ns = started_ns..free_ns;
                watch.batch((batch.step, ids), &demand.intended_ns, times_ns, losses.as_deref());
                serving.progress.answered(u64::from(batch.requests.end), requests);
                widths.step_ended(arena, dispatch, clock, watch).await?;
                moves.step_ended(arena, dispatch, clock, watch).await?;
                free_ns = clock.now_ns();
            }
            let at = Boundary {
                steps_done: place + 1,
                is_last: place + 1 == demand.batches.len(),
                clock,
                arena,
                gate: Some(&gate),
                decoding: None,
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

impl Plan<'_> {
    fn gate(&self) -> Gate {
        let load = &self.scenario.load;
        let deadline_ns = u64::from(load.deadline_ms) * 1_000_000;
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        match load.admission {
            file::Admission::All => Gate::All,
            file::Admission::Deadline => Gate::Deadline(Admission::new(deadline_ns)),
            file::Admission::Codel => Gate::Queue(Queue::new(QueueLimits {
                requests_max: load.queue_requests_max as usize,
                target_ns: ns(load.queue_target_ms),
                interval_ns: ns(load.queue_interval_ms),
            })),
        }
    }
}

/// When the stages of a decision ended, on the run's clock, ns, in the order of [`Stage::DECIDE`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageEnds(pub(super) [u64; Stage::DECIDE.len()]);

impl StageEnds {
    /// The router's time, ns.
    pub(super) fn route_ns(&self) -> u64 {
        let ended = |stage: Stage| Stage::DECIDE.iter().zip(self.0).find(|(of, _)| **of == stage);
        let ended = |stage| ended(stage).map_or(0, |(_, at_ns)| at_ns);
        ended(Stage::Respond).saturating_sub(ended(Stage::Perceive))
    }
}

/// Times of the latest decision.
type StageClock = [AtomicU64; Stage::DECIDE.len()];

fn read(clock: &StageClock) -> StageEnds {
    StageEnds(std::array::from_fn(|at| clock[at].load(Ordering::Relaxed)))
}

/// Notes when the stages of each decision end.
fn time_stages(arena: &mut Arena, clock: Clock) -> Arc<StageClock> {
    let ends = Arc::new(StageClock::default());
    let cells = Arc::clone(&ends);
    arena.observe_stages(move |stage| {
        if let Some(at) = Stage::DECIDE.iter().position(|of| *of == stage) {
            cells[at].store(clock.now_ns(), Ordering::Relaxed);
        }
    });
    ends
}

/// Bytes of the tensors that a round sends and receives: each distinct row once a node.
fn payload_bytes(round: &Round<'_>, width: usize) -> (u64, u64) {
    let row_bytes = width * size_of::<f32>();
    let (mut sent, mut received) = (0, 0);
    for order in &round.decision.orders.nodes {
        let rows = order.tokens().len();
        sent += rows * row_bytes;
        received += row_bytes * if round.decision.gates.is_some() { rows } else { order.pairs() };
    }
    (sent as u64, received as u64)
}
