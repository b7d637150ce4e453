//! Records how requests ended: a row each, the histograms of their times, and the sums.

use crate::measure::Latency;
use crate::measure::latency::Interval;
use crate::results::checkpoint::RowLog;
use crate::results::{
    BatchTimes, GeneratorLag, Outcomes, RequestRow, ResultsError, RunDir, Snapshot, Summary,
    TableWriter,
};
use crate::run::decode::{Answer, StepDone};
use crate::run::decoding::Decoding;
use crate::run::demand::Demand;
use crate::run::serve::Refusal;
use crate::scenario::Scenario;
use agents::ids::{RequestId, StepId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::SystemTime;

const OK: &str = "ok";
const LATE: &str = "late";

/// Rows and sums of a run's requests.
pub(in crate::run) struct Requests {
    table: TableWriter<RequestRow>,
    tokens_per_request: u64,
    late_after_ns: u64,
    /// Of the batch that is served.
    lag_ns: u64,
    /// When each batch closes, from the start of serving, by step.
    closes_ns: Vec<u64>,
    answered: Vec<Vec<RequestId>>,
    /// The batch of the row that was restored last.
    restored_step: Option<u64>,
    sums: RequestSums,
    /// Rows of both tables since the last checkpoint; none where there are no checkpoints.
    pub(in crate::run) log: Option<RowLog>,
    /// The first error of the table's writer.
    failure: Option<ResultsError>,
}

/// What is summed over requests.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::run) struct RequestSums {
    latency: Latency,
    generator_lag: Latency,
    batches: BatchTimes,
    outcomes: Outcomes,
    tokens_answered: u64,
    tokens_in_time: u64,
    /// From the start of serving to the end of the last batch, on the run's clock.
    serving_ns: Range<u64>,
    /// Every request before this one has a row, and so have those in `ended`.
    next_request: u32,
    ended: BTreeSet<u32>,
    decoding: Option<Decoding>,
    loss: f64,
    tokens_scored: u64,
}

impl RequestSums {
    /// When serving began, on the run's clock.
    pub(in crate::run) fn serving_from_ns(&self) -> u64 {
        self.serving_ns.start
    }
}

impl Requests {
    /// Opens the table of a run directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(in crate::run) fn open(
        dir: &RunDir,
        scenario: &Scenario,
        tokens_per_request: usize,
        demand: &Demand,
    ) -> Result<Self, ResultsError> {
        Ok(Self {
            table: dir.table()?,
            tokens_per_request: tokens_per_request as u64,
            late_after_ns: u64::from(scenario.load.deadline_ms) * 1_000_000,
            lag_ns: 0,
            closes_ns: demand.batches.iter().map(|batch| batch.closes_ns).collect(),
            answered: Vec::new(),
            restored_step: None,
            sums: RequestSums::default(),
            log: None,
            failure: None,
        })
    }

    /// Everything but the rows.
    pub(in crate::run) fn sums(&self) -> &RequestSums {
        &self.sums
    }

    /// Goes on from these.
    pub(in crate::run) fn recall(&mut self, sums: RequestSums) {
        self.sums = sums;
    }

    /// Takes back a row that was recorded before the run was cut.
    ///
    /// # Errors
    /// The table cannot be written.
    pub(in crate::run) fn restore(&mut self, row: RequestRow) -> Result<(), ResultsError> {
        let is_answered = row.outcome == OK || row.outcome == LATE;
        let step = row.step.filter(|_| is_answered && !self.closes_ns.is_empty());
        if let (Some(step), Ok(request)) = (step, u32::try_from(row.request)) {
            if self.restored_step.replace(step) != Some(step) {
                self.answered.push(Vec::new());
            }
            self.answered.last_mut().expect("pushed above").push(RequestId(request));
        }
        self.table.push(row)
    }

    /// Requests that mean to arrive by `now_ns` and have not ended.
    pub(in crate::run) fn waiting(&self, intended_ns: &[u64], now_ns: u64) -> u64 {
        let arrived_ns = now_ns.saturating_sub(self.sums.serving_ns.start);
        let arrived = intended_ns.partition_point(|at| *at <= arrived_ns) as u64;
        arrived.saturating_sub(u64::from(self.sums.next_request) + self.sums.ended.len() as u64)
    }

    /// Notes when serving starts.
    pub(in crate::run) fn serving_from(&mut self, now_ns: u64) {
        self.sums.serving_ns = now_ns..now_ns;
    }

    /// Time from the start of serving to the end of the last batch, ns.
    #[must_use]
    pub(in crate::run) fn span_ns(&self) -> u64 {
        self.sums.serving_ns.end - self.sums.serving_ns.start
    }

    /// Notes how long after it could have started a batch was started.
    pub(in crate::run) fn released(&mut self, lag_ns: u64) {
        self.sums.generator_lag.record(lag_ns);
        self.lag_ns = lag_ns;
    }

    /// Records the requests of a batch that were given up at `now_ns`, before work on it began.
    pub(in crate::run) fn refused(
        &mut self,
        requests: &[RequestId],
        why: Refusal,
        intended_ns: &[u64],
        now_ns: u64,
    ) {
        let (count, outcome) = match why {
            Refusal::Shed => (&mut self.sums.outcomes.shed, "shed"),
            Refusal::Timeout => (&mut self.sums.outcomes.timeout, "timeout"),
        };
        *count += requests.len() as u64;
        for request in requests {
            let intended_ns = self.sums.serving_ns.start + intended_ns[request.index()];
            self.not_served((*request, self.tokens_per_request), intended_ns, now_ns, outcome);
        }
    }

    /// Records the answered requests of a batch: `times_ns` from its start to its end on the run's
    /// clock, `intended_ns` from the start of serving, `losses` one a request where text is scored.
    pub(in crate::run) fn batch(
        &mut self,
        (step, requests): (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        losses: Option<&[f64]>,
    ) {
        self.sums.serving_ns.end = times_ns.end;
        if let Some(closes_ns) = self.closes_ns.get(step.index()) {
            let closed_ns = self.sums.serving_ns.start + closes_ns;
            self.sums.batches.record(closed_ns, times_ns.clone(), self.lag_ns);
        }
        let tokens = self.tokens_per_request;
        for (place, request) in requests.iter().enumerate() {
            let intended_ns = self.sums.serving_ns.start + intended_ns[request.index()];
            let latency_ns = times_ns.end.saturating_sub(intended_ns);
            self.sums.latency.record_from(intended_ns, times_ns.end);
            let loss_sum = losses.map(|losses| losses[place]);
            if let Some(loss) = loss_sum {
                self.sums.loss += loss;
                self.sums.tokens_scored += tokens;
            }
            let outcome = self.answered_after(latency_ns, tokens);
            self.row(RequestRow {
                request: u64::from(request.0),
                step: Some(u64::from(step.0)),
                tokens,
                intended_ns,
                started_ns: Some(times_ns.start),
                finished_ns: times_ns.end,
                latency_ns,
                outcome: outcome.to_owned(),
                loss_sum,
                first_token_ns: None,
                generated: None,
            });
        }
        self.answered.push(requests);
    }

    /// Records a step of continuous batching.
    pub(in crate::run) fn step(&mut self, step: &StepDone) {
        self.sums.serving_ns.end = step.times_ns.end;
        self.sums.decoding.get_or_insert_default().step(step);
    }

    /// Records a request that has its whole answer.
    pub(in crate::run) fn answer(&mut self, answer: Answer) {
        let Answer { request, length, step, intended_ns, finished_ns, .. } = answer;
        self.sums.serving_ns.end = finished_ns;
        let latency_ns = finished_ns.saturating_sub(intended_ns);
        self.sums.latency.record(latency_ns);
        self.sums.decoding.get_or_insert_default().answer(&answer);
        let tokens = u64::from(length.total());
        let outcome = self.answered_after(latency_ns, tokens);
        self.row(RequestRow {
            request: u64::from(request.0),
            step: Some(u64::from(step.0)),
            tokens,
            intended_ns,
            started_ns: Some(answer.started_ns),
            finished_ns,
            latency_ns,
            outcome: outcome.to_owned(),
            loss_sum: None,
            first_token_ns: Some(answer.first_token_ns),
            generated: Some(u64::from(length.generated)),
        });
    }

    /// Counts an answered request and gives its outcome.
    fn answered_after(&mut self, latency_ns: u64, tokens: u64) -> &'static str {
        self.sums.tokens_answered += tokens;
        if latency_ns > self.late_after_ns {
            self.sums.outcomes.late += 1;
            return LATE;
        }
        self.sums.outcomes.ok += 1;
        self.sums.tokens_in_time += tokens;
        OK
    }

    /// Batches as they closed and were served; none where there are none.
    #[must_use]
    pub(in crate::run) fn batches(&self) -> Option<&BatchTimes> {
        (!self.closes_ns.is_empty()).then_some(&self.sums.batches)
    }

    /// The requests that were answered, batch by batch.
    #[must_use]
    pub(in crate::run) fn answered(&self) -> &[Vec<RequestId>] {
        &self.answered
    }

    /// Records as errors the requests that have arrived but will not be answered. Those that had
    /// not arrived yet are no requests of this run.
    pub(in crate::run) fn give_up(&mut self, demand: &Demand, now_ns: u64) {
        if self.sums.serving_ns.is_empty() && self.sums.serving_ns.start == 0 {
            // Serving never began, so nothing has arrived.
            return;
        }
        self.sums.serving_ns.end = now_ns;
        let start_ns = self.sums.serving_ns.start;
        for request in
            self.sums.next_request..u32::try_from(demand.intended_ns.len()).unwrap_or(u32::MAX)
        {
            let request = RequestId(request);
            let intended_ns = start_ns + demand.intended_ns[request.index()];
            if intended_ns > now_ns {
                break;
            }
            if !self.sums.ended.contains(&request.0) {
                self.sums.outcomes.error += 1;
                let tokens = demand.tokens(request, self.tokens_per_request);
                self.not_served((request, tokens), intended_ns, now_ns, "error");
            }
        }
    }

    fn not_served(
        &mut self,
        (request, tokens): (RequestId, u64),
        intended_ns: u64,
        now_ns: u64,
        outcome: &str,
    ) {
        self.row(RequestRow {
            request: u64::from(request.0),
            step: None,
            tokens,
            intended_ns,
            started_ns: None,
            finished_ns: now_ns,
            latency_ns: now_ns.saturating_sub(intended_ns),
            outcome: outcome.to_owned(),
            loss_sum: None,
            first_token_ns: None,
            generated: None,
        });
    }

    fn row(&mut self, row: RequestRow) {
        self.sums.ended.insert(u32::try_from(row.request).expect("ids of requests have 32 bits"));
        while self.sums.ended.remove(&self.sums.next_request) {
            self.sums.next_request += 1;
        }
        if let Some(log) = &mut self.log {
            log.request(&row);
        }
        if let Err(error) = self.table.push(row) {
            self.failure.get_or_insert(error);
        }
    }

    /// The first error of the writer, if any.
    pub(in crate::run) fn failure(&mut self) -> Option<ResultsError> {
        self.failure.take()
    }

    /// Mean loss in nats a token and the tokens it was taken over; none where no text was scored.
    #[must_use]
    pub(in crate::run) fn loss(&self) -> Option<(f64, u64)> {
        (self.sums.tokens_scored > 0)
            .then(|| (self.sums.loss / self.sums.tokens_scored as f64, self.sums.tokens_scored))
    }

    /// Tokens of requests that were answered, and of those that were answered in time.
    #[must_use]
    pub(in crate::run) fn tokens(&self) -> (u64, u64) {
        (self.sums.tokens_answered, self.sums.tokens_in_time)
    }

    /// Fills what was recorded so far into a snapshot.
    pub(in crate::run) fn fill(&self, snapshot: &mut Snapshot) {
        let sums = &self.sums;
        snapshot.outcomes = sums.outcomes;
        snapshot.answered = sums.outcomes.ok + sums.outcomes.late;
        snapshot.tokens_answered = sums.tokens_answered;
        snapshot.latency_ns = sums.latency.quantiles();
        if let Some(decoding) = &sums.decoding {
            snapshot.ttft_ns = Some(decoding.ttft.quantiles());
            snapshot.tpot_ns = Some(decoding.tpot.quantiles());
        }
    }

    /// Fills what was recorded into `summary`.
    pub(in crate::run) fn sum_up(&self, summary: &mut Summary) {
        summary.latency_ns = self.sums.latency.quantiles();
        summary.generator_lag_ns = (self.sums.generator_lag.count() > 0)
            .then(|| GeneratorLag::of(&self.sums.generator_lag, &self.sums.latency));
        summary.outcomes = self.sums.outcomes;
        if let Some(decoding) = &self.sums.decoding {
            decoding.sum_up(&self.sums.latency, summary);
        }
    }

    /// Closes the table and writes the histograms.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(in crate::run) fn finish(
        self,
        dir: &RunDir,
        started_at: SystemTime,
    ) -> Result<(), ResultsError> {
        let duration_ns = self.span_ns();
        self.table.finish()?;
        let write = |name: &str, latency: Latency| {
            let (tag, start_ns) = (name.to_owned(), self.sums.serving_ns.start);
            dir.write_hlog(name, started_at, &[Interval { start_ns, duration_ns, tag, latency }])
        };
        if let Some(Decoding { ttft, tpot, .. }) = self.sums.decoding {
            write("ttft", ttft)?;
            write("tpot", tpot)?;
        }
        write("requests", self.sums.latency)?;
        write("generator-lag", self.sums.generator_lag)
    }
}
