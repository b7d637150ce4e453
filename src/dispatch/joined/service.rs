//! The membership service: workers join, renew and leave over gRPC.

use super::super::node_spec::is_host_and_port;
use super::register::{Heard, NoSeat, Register, Registered};
use crate::transport::{
    ConnectionLimits, Identity, Incoming, Listen, OTHER_RUN, Peer, Refusals, ServerLimits, server,
    with_health_and_reflection,
};
use crate::wire;
use proto::{
    JoinReply, JoinRequest, RenewReply, RenewRequest, Standing,
    membership_service_server::{MembershipService, MembershipServiceServer},
};
use std::net::{IpAddr, SocketAddr};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tonic::{Request, Response, Status, service::Routes};

/// Longest request, in bytes; a token and an address fit many times over.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

/// Connections beside one for each seat: of workers that come anew or wait.
const SPARE_CONNECTIONS: usize = 256;

/// What a worker in quarantine reads.
const QUARANTINED: &str =
    "its answers were not those that others computed; look at its machine, then start it anew";

struct Service {
    register: Arc<Register>,
    refusals: Arc<Refusals>,
}

/// The service on its socket, with the task that ends leases. It stops when this is dropped.
#[derive(Debug)]
pub(super) struct Serving {
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl Serving {
    /// Listens at `address`.
    ///
    /// # Errors
    /// When the address is in use or not of this machine.
    pub(super) fn start(
        address: SocketAddr,
        tls: Option<&Identity>,
        register: Arc<Register>,
    ) -> io::Result<Self> {
        let refusals = Arc::new(Refusals::new());
        let limits = ConnectionLimits::new(register.seats + SPARE_CONNECTIONS);
        let (incoming, at) =
            Incoming::bind(&Listen::Tcp(address), tls, limits, Arc::clone(&refusals))?;
        tracing::info!("workers join at {at}");
        let (stop, stopped) = oneshot::channel::<()>();
        let service = Service { register: Arc::clone(&register), refusals };
        let service =
            MembershipServiceServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (reporter, health) = tonic_health::server::health_reporter();
        let routes =
            with_health_and_reflection(Routes::new(service), health, proto::MEMBERSHIP_DESCRIPTORS);
        let server = tokio::spawn(async move {
            reporter.set_serving::<MembershipServiceServer<Service>>().await;
            let served = server(ServerLimits { streams: 16, is_bulk: false })
                .timeout(Duration::from_secs(5))
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, async {
                    // An error means that the sender is gone, and so is the run.
                    let _ = stopped.await;
                });
            if let Err(error) = served.await {
                tracing::error!("the membership service failed: {error}");
            }
        });
        let keeper = tokio::spawn(async move {
            // Often enough that a lease that ran out costs little beyond itself.
            let pause = (register.lease / 20).max(Duration::from_millis(1));
            loop {
                sleep(pause).await;
                register.expire();
            }
        });
        Ok(Self { stop: Some(stop), server, keeper })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.keeper.abort();
        // An error means that the server has ended.
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.server.abort();
    }
}

#[tonic::async_trait]
impl MembershipService for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let from = peer.as_ref().and_then(Peer::address).map(|address| address.ip());
        let JoinRequest { run_token, address, shard_bytes_max, incarnation } = request.into_inner();
        let address = reachable(&address, from).map_err(Status::invalid_argument)?;
        if let Some(peer) = peer.filter(|_| self.register.is_of_this_run(&run_token)) {
            peer.admit();
        }
        let worker = Registered { address: address.clone(), shard_bytes_max, incarnation };
        let pass = self.register.join(&run_token, worker);
        match pass {
            Ok(pass) => Ok(Response::new(wire::encode_pass(pass, self.register.lease))),
            Err(NoSeat::OtherRun) => Err(self.other_run(&address)),
            Err(NoSeat::Quarantined) => {
                self.refusals.note(format_args!("a worker, {address}: it is in quarantine"));
                Err(Status::aborted(QUARANTINED))
            }
            Err(NoSeat::RunOver) => Err(Status::failed_precondition("the run is over")),
            Err(NoSeat::Full(detail)) => Err(Status::resource_exhausted(detail)),
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let request = request.into_inner();
        if !self.register.is_of_this_run(&request.run_token) {
            return Err(self.other_run("one that renews"));
        }
        peer.inspect(|peer| peer.admit());
        let heard = self.register.renew(wire::decode_pass(&request), request.draining);
        let (standing, epoch) = match heard {
            Heard::Member(epoch) => (Standing::Member, epoch),
            Heard::Released(epoch) => (Standing::Released, epoch),
            Heard::Ended(epoch) => (Standing::Ended, epoch),
            Heard::RunOver(epoch) => (Standing::RunOver, epoch),
        };
        Ok(Response::new(RenewReply { standing: standing.into(), epoch: epoch.0 }))
    }
}

impl Service {
    fn other_run(&self, worker: &str) -> Status {
        self.refusals.note(format_args!("a worker, {worker}: its run token is another"));
        Status::permission_denied(OTHER_RUN)
    }
}

/// Where a worker that joins `from` there is reached, when it calls its own address that.
fn reachable(address: &str, from: Option<IpAddr>) -> Result<String, String> {
    if address.len() > ADDRESS_BYTES_MAX || !is_host_and_port(address) {
        return Err("its address is not HOST:PORT".into());
    }
    match (address.parse::<SocketAddr>(), from) {
        (Ok(own), Some(from)) if own.ip().is_unspecified() => {
            Ok(SocketAddr::new(from, own.port()).to_string())
        }
        _ => Ok(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn a_worker_that_listens_everywhere_is_reached_where_it_comes_from() {
        let from = Some("10.0.0.7".parse().expect("an address"));
        for (own, expected) in [
            ("0.0.0.0:5001", Ok("10.0.0.7:5001")),
            ("[::]:5001", Ok("10.0.0.7:5001")),
            ("node3:5001", Ok("node3:5001")),
            ("127.0.0.1:5001", Ok("127.0.0.1:5001")),
            ("node3", Err(())),
            ("node3:0", Err(())),
            ("", Err(())),
        ] {
            let found = reachable(own, from);
            assert_eq!(found.as_deref().map_err(|_| ()), expected, "{own}");
        }
        assert!(reachable(&format!("{}:1", "a".repeat(300)), from).is_err());
    }
}
