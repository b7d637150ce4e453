//! Serving: nodes are started, batches are played when they close, and the nodes are always ended.

use super::controls::shards_on;
use super::interrupt::{Interrupted, Interrupts};
use super::plan::Plan;
use super::record::Recorder;
use super::rounds::{Round, RoundError, play_batch};
use super::{Progress, RunSettings};
use crate::dispatch::{
    Deadlines, Dispatch, DispatchError, InProcess, Joined, JoinedSettings, Local, LocalSettings,
    OwnWorker, Remote, Served,
};
use crate::measure::Clock;
use crate::model::checkpoint::CheckpointError;
use crate::results::ResultsError;
use crate::scenario::file::{self, Engine};
use agents::admission::Admission;
use agents::ids::RequestId;
use agents::round::{Arena, Stage};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    /// The experts of a control cannot be read again.
    #[error("the controls' experts: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The user or the system asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Plan<'_> {
    /// Starts the nodes, serves all batches on them, and always ends the nodes.
    pub(super) async fn serve(
        &self,
        settings: &RunSettings<'_>,
        clock: &Clock,
        interrupts: &mut Interrupts,
        recorder: &mut Recorder,
    ) -> (Result<(), ServeError>, Served) {
        let nodes = &self.scenario.nodes;
        let deadlines = Deadlines {
            compute: Duration::from_millis(u64::from(nodes.deadline_ms)),
            ..Deadlines::default()
        };
        settings.progress.phase("starting nodes");
        match nodes.engine {
            Engine::InProcess => {
                self.serve_on(InProcess::new(), settings, clock, interrupts, recorder).await
            }
            Engine::Local => {
                let threads = nodes.threads as usize;
                let local = LocalSettings {
                    threads,
                    deadlines,
                    hedge_budget: nodes.hedge_budget,
                    ..LocalSettings::default()
                };
                match interrupts.or(Local::spawn(settings.program, nodes.count, local)).await {
                    Ok(Ok(local)) => {
                        self.serve_on(local, settings, clock, interrupts, recorder).await
                    }
                    Ok(Err(error)) => (Err(error.into()), Served::default()),
                    Err(interrupted) => (Err(interrupted.into()), Served::default()),
                }
            }
            Engine::Peers => match interrupts
                .or(Remote::connect(&nodes.peers, deadlines, nodes.hedge_budget))
                .await
            {
                Ok(Ok(remote)) => {
                    self.serve_on(remote, settings, clock, interrupts, recorder).await
                }
                Ok(Err(error)) => (Err(error.into()), Served::default()),
                Err(interrupted) => (Err(interrupted.into()), Served::default()),
            },
            Engine::Join => {
                settings.progress.phase("waiting for workers");
                let joined = Joined::start(joined_settings(nodes, settings, deadlines));
                match interrupts.or(joined).await {
                    Ok(Ok(joined)) => {
                        self.serve_on(joined, settings, clock, interrupts, recorder).await
                    }
                    Ok(Err(error)) => (Err(error.into()), Served::default()),
                    Err(interrupted) => (Err(interrupted.into()), Served::default()),
                }
            }
        }
    }

    async fn serve_on(
        &self,
        mut dispatch: impl Dispatch,
        settings: &RunSettings<'_>,
        clock: &Clock,
        interrupts: &mut Interrupts,
        recorder: &mut Recorder,
    ) -> (Result<(), ServeError>, Served) {
        // Outside of what an interrupt drops: it knows what was ordered when the run was stopped.
        let mut arena = self.arena(self.source().as_ref());
        let served = interrupts.or(async {
            settings.progress.phase("loading shards");
            dispatch.load(shards_on(&self.experts.served, |l, e| self.placed.hosts(l, e))).await?;
            settings.progress.phase("serving");
            self.serve_batches(&mut arena, &mut dispatch, settings.progress, clock, recorder).await
        });
        let served = served.await.unwrap_or_else(|interrupted| Err(interrupted.into()));
        recorder.pairs(arena.pairs());
        if served.is_err() {
            recorder.give_up(&self.intended_ns, clock.now_ns());
        }
        (served, dispatch.close().await)
    }

    /// The loop. Batches start when they close, or as soon after as the one before has ended.
    async fn serve_batches(
        &self,
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        progress: &dyn Progress,
        clock: &Clock,
        recorder: &mut Recorder,
    ) -> Result<(), ServeError> {
        let mut source = self.source();
        let width = source.shape().width;
        let route_ns = time_router(arena, *clock);
        let remote = self.scenario.nodes.engine != Engine::InProcess;
        let serving_from_ns = clock.now_ns();
        recorder.serving_from(serving_from_ns);
        let requests = self.intended_ns.len() as u64;
        let mut admission = self.admission();
        for batch in &self.batches {
            clock.sleep_until_ns(serving_from_ns + batch.closes_ns).await;
            let started_ns = clock.now_ns();
            let mut ids: Vec<RequestId> = batch.request_ids().collect();
            if let Some(admission) = &mut admission {
                let intended = |id: &RequestId| (*id, self.intended_ns[id.index()]);
                let asked: Vec<_> = ids.iter().map(intended).collect();
                let now_ns = started_ns - serving_from_ns;
                let (admitted, shed) = admission.split(&asked, batch.closes_ns, now_ns);
                recorder.shed(&shed, &self.intended_ns, started_ns);
                ids = admitted;
                if ids.is_empty() {
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let played = play_batch(
                source.as_mut(),
                arena,
                dispatch,
                clock,
                (batch.step, &ids),
                |round, arena| {
                    let payload = if remote { payload_bytes(round, width) } else { (0, 0) };
                    recorder.round(round, arena, route_ns.load(Ordering::Relaxed), payload);
                },
            );
            let losses = played.await?;
            let times = started_ns..clock.now_ns();
            if let Some(admission) = &mut admission {
                admission.served(times.end - times.start);
            }
            recorder.batch((batch.step, ids), &self.intended_ns, times, losses.as_deref());
            if let Some(error) = recorder.failure() {
                return Err(error.into());
            }
            progress.answered(u64::from(batch.requests.end), requests);
            // Under overload nothing else waits, and an interrupt would never be heard.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

fn joined_settings(
    nodes: &file::Nodes,
    settings: &RunSettings<'_>,
    deadlines: Deadlines,
) -> JoinedSettings {
    let listen = nodes.listen.as_deref().and_then(|listen| listen.parse().ok());
    JoinedSettings {
        listen: listen.expect("the scenario's checks demand an address"),
        seats: nodes.count as usize,
        min_workers: nodes.min_workers.unwrap_or(nodes.count) as usize,
        lease: Duration::from_millis(nodes.lease_ms.into()),
        join_wait: Duration::from_secs(nodes.join_wait_s.into()),
        run_token: settings.run_token.clone(),
        own_worker: settings.hosts_worker.then(|| OwnWorker {
            program: settings.program.to_owned(),
            threads: nodes.threads as usize,
        }),
        deadlines,
        hedge_budget: nodes.hedge_budget,
    }
}

impl Plan<'_> {
    /// What sheds requests; none where all are served.
    fn admission(&self) -> Option<Admission> {
        let load = &self.scenario.load;
        let deadline_ns = u64::from(load.deadline_ms) * 1_000_000;
        (load.admission == file::Admission::Deadline).then(|| Admission::new(deadline_ns))
    }
}

/// Measures the respond stage of each round; the latest time is in the returned cell.
fn time_router(arena: &mut Arena, clock: Clock) -> Arc<AtomicU64> {
    let route_ns = Arc::new(AtomicU64::new(0));
    let cell = Arc::clone(&route_ns);
    let began_ns = AtomicU64::new(0);
    arena.observe_stages(move |stage| match stage {
        Stage::Perceive => began_ns.store(clock.now_ns(), Ordering::Relaxed),
        Stage::Respond => {
            cell.store(clock.now_ns() - began_ns.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        _ => {}
    });
    route_ns
}

/// Bytes of the tensors that a round sends and receives: each distinct row once a node.
fn payload_bytes(round: &Round<'_>, width: usize) -> (u64, u64) {
    let row_bytes = width * size_of::<f32>();
    let (mut sent, mut received) = (0, 0);
    for order in &round.decision.orders.nodes {
        let mut rows: Vec<_> = order.groups.iter().flat_map(|group| &group.tokens).collect();
        received += rows.len() * row_bytes;
        rows.sort_unstable();
        rows.dedup();
        sent += rows.len() * row_bytes;
    }
    (sent as u64, received as u64)
}
