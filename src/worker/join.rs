//! A worker's stay in a run: it joins the coordinator, renews its lease, and leaves.

use crate::transport::{Access, Calls};
use proto::{
    JoinReply, JoinRequest, RenewRequest, Standing,
    membership_service_client::MembershipServiceClient,
};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};

/// Pause between two attempts to join.
const JOIN_PAUSE: Duration = Duration::from_millis(100);

/// How long a coordinator may take for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Which run a worker joins, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The coordinator's membership service, `HOST:PORT`.
    pub coordinator: String,
    /// Where the coordinator reaches this worker, `HOST:PORT`; where it listens unless this is given.
    pub advertise: Option<String>,
    /// How long the coordinator may be out of reach before the worker gives up.
    pub patience: Duration,
}

/// Why a stay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Others hold what it held.
    Released,
    /// The run is over.
    RunOver,
    /// It was to leave while it had no seat.
    WithoutSeat,
}

/// Why a worker is not of a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The coordinator does not want it.
    #[error("{coordinator} refuses this worker: {detail}")]
    Refused {
        /// Its address.
        coordinator: String,
        /// Its sentence.
        detail: String,
    },
    /// The coordinator found its answers to be wrong.
    #[error("{coordinator} has put this worker into quarantine: {detail}")]
    Quarantined {
        /// Its address.
        coordinator: String,
        /// Its sentence.
        detail: String,
    },
    /// Nobody is there, or nobody any more.
    #[error("no answer from the coordinator {coordinator} for {} s: {detail}", .patience.as_secs())]
    Unreachable {
        /// Its address.
        coordinator: String,
        /// What the last attempt came to.
        detail: String,
        /// How long it was tried.
        patience: Duration,
    },
}

/// What a worker says of itself.
pub(super) struct Own {
    /// Where it listens.
    pub(super) address: String,
    /// Encoded bytes of all shards together.
    pub(super) shard_bytes_max: usize,
    /// Which start of it this is.
    pub(super) incarnation: u64,
}

/// Joins, and stays until the run is over or, once it is `draining`, until it is let go. A lease that
/// ran out, or a coordinator that started anew, is answered by joining again.
pub(super) async fn stay(
    join: &Join,
    access: &Access,
    own: Own,
    mut draining: watch::Receiver<bool>,
) -> Result<Left, JoinError> {
    let refused = |detail| JoinError::Refused { coordinator: join.coordinator.clone(), detail };
    let mut client = connect(&join.coordinator, access).map_err(refused)?;
    let asked = JoinRequest {
        run_token: access.token.reveal().to_owned(),
        address: join.advertise.clone().unwrap_or(own.address),
        shard_bytes_max: own.shard_bytes_max as u64,
        incarnation: own.incarnation,
    };
    let mut stay: Option<JoinReply> = None;
    let mut heard = Instant::now();
    loop {
        let is_draining = *draining.borrow_and_update();
        let answer = match &stay {
            None if is_draining => return Ok(Left::WithoutSeat),
            None => ask_to_join(&mut client, &asked, &mut stay).await,
            Some(seat) => match renew(&mut client, &asked.run_token, seat, is_draining).await {
                Ok(Standing::Released) => return Ok(Left::Released),
                Ok(Standing::RunOver) => return Ok(Left::RunOver),
                Ok(Standing::Member) => Ok(()),
                Ok(Standing::Ended | Standing::Unknown) => {
                    tracing::warn!("the lease of node {} has ended: joining anew", seat.node);
                    stay = None;
                    Ok(())
                }
                Err(status) => Err(status),
            },
        };
        match answer {
            Ok(()) => heard = Instant::now(),
            Err(status) => match status.code() {
                Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
                    return Err(refused(status.message().to_owned()));
                }
                Code::Aborted => {
                    return Err(JoinError::Quarantined {
                        coordinator: join.coordinator.clone(),
                        detail: status.message().to_owned(),
                    });
                }
                Code::FailedPrecondition => return Ok(Left::RunOver),
                // No seat is free: it waits until one is.
                Code::ResourceExhausted => heard = Instant::now(),
                _ if heard.elapsed() >= join.patience => {
                    return Err(JoinError::Unreachable {
                        coordinator: join.coordinator.clone(),
                        detail: status.message().to_owned(),
                        patience: join.patience,
                    });
                }
                _ => {}
            },
        }
        // Four renewals a lease: one that is lost or late ends no stay.
        let lease = |seat: &JoinReply| Duration::from_millis(u64::from(seat.lease_ms) / 4);
        let pause = stay.as_ref().map_or(JOIN_PAUSE, lease).max(Duration::from_millis(1));
        tokio::select! {
            () = sleep(pause) => {}
            _ = draining.changed(), if !is_draining => {}
        }
    }
}

type Client = MembershipServiceClient<Calls>;

fn connect(coordinator: &str, access: &Access) -> Result<Client, String> {
    Ok(MembershipServiceClient::new(access.calls(access.channel(coordinator)?)))
}

async fn ask_to_join(
    client: &mut Client,
    asked: &JoinRequest,
    stay: &mut Option<JoinReply>,
) -> Result<(), Status> {
    let reply = answered(client.join(asked.clone())).await?;
    tracing::info!("node {} since epoch {}", reply.node, reply.since_epoch);
    *stay = Some(reply);
    Ok(())
}

async fn renew(
    client: &mut Client,
    run_token: &str,
    seat: &JoinReply,
    draining: bool,
) -> Result<Standing, Status> {
    let request = RenewRequest {
        run_token: run_token.to_owned(),
        node: seat.node,
        since_epoch: seat.since_epoch,
        draining,
    };
    Ok(answered(client.renew(request)).await?.standing())
}

async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("it does not answer");
    timeout(ANSWER_WAIT, call).await.map_err(late)?.map(tonic::Response::into_inner)
}
