//! The membership service: workers join, renew and leave over gRPC.

use super::super::node_spec::is_host_and_port;
use super::register::{Heard, NoSeat, Register, Registered};
use crate::wire;
use crate::worker::KEEPALIVE;
use proto::{
    JoinReply, JoinRequest, RenewReply, RenewRequest, Standing,
    membership_service_server::{MembershipService, MembershipServiceServer},
};
use std::net::{IpAddr, SocketAddr};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Longest request, in bytes; a token and an address fit many times over.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

struct Service(Arc<Register>);

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
    pub(super) fn start(address: SocketAddr, register: Arc<Register>) -> io::Result<Self> {
        let incoming = TcpIncoming::bind(address)?.with_nodelay(Some(true));
        tracing::info!("workers join at {}", incoming.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let service = MembershipServiceServer::new(Service(Arc::clone(&register)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::MEMBERSHIP_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors were compiled with this program");
        let (reporter, health) = tonic_health::server::health_reporter();
        let server = tokio::spawn(async move {
            reporter.set_serving::<MembershipServiceServer<Service>>().await;
            let served = Server::builder()
                .timeout(Duration::from_secs(5))
                .concurrency_limit_per_connection(16)
                .max_concurrent_streams(16)
                .http2_max_header_list_size(16 << 10)
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE))
                .add_service(health)
                .add_service(reflection)
                .add_service(service)
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
        let from = request.remote_addr().map(|address| address.ip());
        let JoinRequest { run_token, address, shard_bytes_max } = request.into_inner();
        let address = reachable(&address, from).map_err(Status::invalid_argument)?;
        let pass =
            self.0.join(&run_token, Registered { address: address.clone(), shard_bytes_max });
        match pass {
            Ok(pass) => Ok(Response::new(wire::encode_pass(pass, self.0.lease))),
            Err(NoSeat::OtherRun) => {
                tracing::warn!("a worker at {address} is refused: its run token is another");
                Err(other_run())
            }
            Err(NoSeat::RunOver) => Err(Status::failed_precondition("the run is over")),
            Err(NoSeat::Full(detail)) => Err(Status::resource_exhausted(detail)),
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let request = request.into_inner();
        if !self.0.is_of_this_run(&request.run_token) {
            return Err(other_run());
        }
        let heard = self.0.renew(wire::decode_pass(&request), request.draining);
        let (standing, epoch) = match heard {
            Heard::Member(epoch) => (Standing::Member, epoch),
            Heard::Released(epoch) => (Standing::Released, epoch),
            Heard::Ended(epoch) => (Standing::Ended, epoch),
            Heard::RunOver(epoch) => (Standing::RunOver, epoch),
        };
        Ok(Response::new(RenewReply { standing: standing.into(), epoch: epoch.0 }))
    }
}

fn other_run() -> Status {
    Status::permission_denied("the run token is not that of this run")
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
