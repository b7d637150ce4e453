//! One of several processes that an engine starts with the same command: the first coordinates and
//! hosts a worker, the others are workers that join it.

use super::{Failure, Outcome, worker};
use crate::export::MetricsAddress;
use crate::scenario::Scenario;
use crate::worker::{Join, Settings};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

/// One process of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// Its place among the tasks: 0 coordinates.
    pub(super) rank: u32,
    /// How many there are.
    pub(super) tasks: u32,
    /// Where the coordinator listens, `IP:PORT`, unless the user says so.
    pub(super) listen: Option<String>,
    /// Where the others join it, `HOST:PORT`, where that is another name for the same.
    pub(super) join: Option<String>,
    /// Where a worker listens; on the way to the coordinator where none is given.
    pub(super) own: Option<SocketAddr>,
    /// Tells runs apart where the environment has no better token.
    pub(super) run_token: String,
    /// The seed that the engine gives the run.
    pub(super) seed: Option<u64>,
}

impl Task {
    /// The `--set` texts that it stands for.
    pub(super) fn sets(&self) -> Vec<String> {
        let listen = self.listen.iter().map(|listen| format!("nodes.listen=\"{listen}\""));
        [format!("nodes.count={}", self.tasks)].into_iter().chain(listen).collect()
    }

    /// The token that the environment gives, else its own.
    pub(super) fn token(&self) -> String {
        let given = worker::run_token();
        if given.is_empty() { self.run_token.clone() } else { given }
    }

    /// Works for the task that coordinates until the run is over.
    pub(super) fn work(&self, scenario: &Scenario, metrics: Option<MetricsAddress>) -> Outcome {
        let nodes = &scenario.nodes;
        let listen = nodes.listen.clone().expect("the scenario's checks demand an address");
        let coordinator = self.join.clone().unwrap_or(listen);
        let own = match self.own {
            Some(own) => own,
            None => SocketAddr::new(
                own_address(&coordinator).map_err(|error| {
                    Failure::Dependency(format!("there is no way to {coordinator}: {error}"))
                })?,
                0,
            ),
        };
        let settings = Settings {
            threads: nodes.threads as usize,
            insecure_non_loopback: nodes.insecure_non_loopback,
            announce: false,
            run_token: self.token().into(),
            tls: nodes.tls.files(),
            join: Some(Join {
                coordinator,
                advertise: None,
                patience: Duration::from_secs(nodes.join_wait_s.into()),
            }),
            ..Settings::new(own)
        };
        worker::serve(settings, metrics)
    }
}

/// This machine's address on the way to another. Nothing is sent.
fn own_address(towards: &str) -> io::Result<IpAddr> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
    let towards = towards.to_socket_addrs()?.next().ok_or_else(unknown)?;
    let any = if towards.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(towards)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::own_address;

    #[test]
    fn the_way_to_a_loopback_address_is_loopback() {
        assert!(own_address("127.0.0.1:9").is_ok_and(|own| own.is_loopback()));
        assert!(own_address("nowhere").is_err());
    }
}
