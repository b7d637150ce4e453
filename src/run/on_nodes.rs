//! Nodes: started, given their experts, worked on, and always ended.

use super::RunSettings;
use super::controls::shards_on;
use super::interrupt::Interrupts;
use super::plan::Plan;
use super::serve::ServeError;
use super::virtual_nodes;
use crate::dispatch::{
    Deadlines, Dispatch, DispatchError, InProcess, Joined, JoinedSettings, Local, LocalSettings,
    OwnWorker, Remote, RemoteSettings, Served, SocketKind, Virtual,
};
use crate::measure::Clock;
use crate::scenario::file::{self, Engine, Sockets};
use crate::transport::{Access, Identity, RunToken};
use agents::ids::NodeId;
use std::time::Duration;

/// What is done on nodes that hold their experts.
pub(super) trait Job {
    /// The clock that it goes by.
    fn clock(&self) -> Clock;

    /// Does it; an interrupt drops it at any await.
    async fn work(&mut self, dispatch: &mut impl Dispatch) -> Result<(), ServeError>;
}

impl Plan<'_> {
    /// Starts the nodes, loads the experts, does the job, and always ends the nodes.
    pub(super) async fn on_nodes(
        &self,
        settings: &RunSettings<'_>,
        interrupts: &mut Interrupts<'_>,
        job: &mut impl Job,
    ) -> (Result<(), ServeError>, Served) {
        let nodes = &self.scenario.nodes;
        let access = match access(nodes, settings) {
            Ok(access) => access,
            Err(detail) => {
                let error = DispatchError::Start { node: NodeId(0), detail, log: Vec::new() };
                return (Err(error.into()), Served::default());
            }
        };
        let remote = remote_settings(nodes, self.scenario.seed, access);
        settings.progress.phase("starting nodes");
        match nodes.engine {
            Engine::InProcess => self.on_started(InProcess::new(), settings, interrupts, job).await,
            Engine::Virtual => {
                let nodes = Virtual::new(virtual_nodes::settings(self.scenario), job.clock());
                self.on_started(nodes, settings, interrupts, job).await
            }
            Engine::Local => {
                let threads = nodes.threads as usize;
                let local = LocalSettings {
                    threads,
                    sockets: match nodes.sockets {
                        Sockets::Unix => SocketKind::Unix,
                        Sockets::Tcp => SocketKind::Tcp,
                    },
                    remote,
                    ..LocalSettings::default()
                };
                match interrupts.or(Local::spawn(settings.program, nodes.count, local)).await {
                    Ok(Ok(local)) => self.on_started(local, settings, interrupts, job).await,
                    Ok(Err(error)) => (Err(error.into()), Served::default()),
                    Err(interrupted) => (Err(interrupted.into()), Served::default()),
                }
            }
            Engine::Peers => match interrupts.or(Remote::connect(&nodes.peers, remote)).await {
                Ok(Ok(remote)) => self.on_started(remote, settings, interrupts, job).await,
                Ok(Err(error)) => (Err(error.into()), Served::default()),
                Err(interrupted) => (Err(interrupted.into()), Served::default()),
            },
            Engine::Join => {
                settings.progress.phase("waiting for workers");
                let joined = Joined::start(joined_settings(nodes, settings, remote));
                match interrupts.or(joined).await {
                    Ok(Ok(joined)) => self.on_started(joined, settings, interrupts, job).await,
                    Ok(Err(error)) => (Err(error.into()), Served::default()),
                    Err(interrupted) => (Err(interrupted.into()), Served::default()),
                }
            }
        }
    }

    async fn on_started(
        &self,
        mut dispatch: impl Dispatch,
        settings: &RunSettings<'_>,
        interrupts: &mut Interrupts<'_>,
        job: &mut impl Job,
    ) -> (Result<(), ServeError>, Served) {
        let done = interrupts.or(async {
            settings.progress.phase("loading shards");
            dispatch.load(shards_on(&self.experts.served, |l, e| self.placed.hosts(l, e))).await?;
            job.work(&mut dispatch).await
        });
        let done = done.await.unwrap_or_else(|interrupted| Err(interrupted.into()));
        (done, dispatch.close().await)
    }
}

/// What nodes are shown. Workers of this machine get a token of their own where the user gave none.
fn access(nodes: &file::Nodes, settings: &RunSettings<'_>) -> Result<Access, String> {
    let mut token = settings.run_token.clone();
    if token.is_none() && nodes.engine == Engine::Local {
        let none = |error| format!("cannot draw a run token from /dev/urandom: {error}");
        token = RunToken::random().map_err(none)?;
    }
    let tls = nodes.tls.files().map(|files| Identity::load(&files)).transpose();
    Ok(Access { token, tls: tls.map_err(|error| error.to_string())? })
}

fn remote_settings(nodes: &file::Nodes, seed: u64, access: Access) -> RemoteSettings {
    let compute = Duration::from_millis(u64::from(nodes.deadline_ms));
    RemoteSettings {
        deadlines: Deadlines { compute, ..Deadlines::default() },
        hedge_budget: nodes.hedge_budget,
        data_connections: nodes.data_connections as usize,
        spot_check_share: nodes.spot_check_share,
        spot_check_seed: seed,
        access,
    }
}

fn joined_settings(
    nodes: &file::Nodes,
    settings: &RunSettings<'_>,
    remote: RemoteSettings,
) -> JoinedSettings {
    let listen = nodes.listen.as_deref().and_then(|listen| listen.parse().ok());
    JoinedSettings {
        listen: listen.expect("the scenario's checks demand an address"),
        seats: nodes.count as usize,
        min_workers: nodes.min_workers.unwrap_or(nodes.count) as usize,
        lease: Duration::from_millis(nodes.lease_ms.into()),
        join_wait: Duration::from_secs(nodes.join_wait_s.into()),
        own_worker: settings.hosts_worker.then(|| OwnWorker {
            program: settings.program.to_owned(),
            threads: nodes.threads as usize,
            tls: nodes.tls.files(),
        }),
        remote,
    }
}
