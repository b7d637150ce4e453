//! A round by itself: orders that leave one place together, each answered by its node.
//!
//! The course is that of messages to idle [`super::Node`]s on a flat network without jitter, with service times that
//! are given: what [`super::fit`] needs to see parameters of the ways by.

use super::Work;
use super::cores::Cores;
use super::network::{Network, Port, Topology};
use super::noise::Noise;
use super::stream::StreamKey;
use super::uplinks::Uplinks;

/// What the times of a round depend on beside the nodes' computing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fork {
    /// Least time of a way, ns.
    pub latency_ns: f64,
    /// Work of sending and of receiving a message, ns.
    pub message_ns: f64,
    /// Of a byte at each end of a way, ns.
    pub byte_ns: f64,
    /// Cores that all nodes share; 0: as many as they need.
    pub cores: u32,
}

impl Fork {
    /// With ways that take so many times as long.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            latency_ns: self.latency_ns * factor,
            message_ns: self.message_ns * factor,
            byte_ns: self.byte_ns * factor,
            cores: self.cores,
        }
    }

    /// When the answer to each order is whole, from the start, ns.
    #[must_use]
    pub fn legs(&self, orders: impl IntoIterator<Item = (Work, f64)>) -> Vec<u64> {
        let network = self.network();
        let mut cores = Cores::of(self.cores);
        let mut stream = StreamKey::new(0, "cluster fork").stream(0, 0);
        let (mut front, way) = (Port::default(), (0, 0));
        let ask = |(at, (work, service_ns)): (usize, (Work, f64))| {
            let bytes = work.request_bytes;
            (network.sent(&mut front, 0, way, bytes, &mut stream), at, work, service_ns)
        };
        let mut asked: Vec<_> = orders.into_iter().enumerate().map(ask).collect();
        asked.sort_by_key(|(asked_ns, at, ..)| (*asked_ns, *at));
        let mut returned: Vec<_> = asked
            .into_iter()
            .map(|(asked_ns, at, work, service_ns)| {
                let mut port = Port::default();
                let whole_ns = network.received(&mut port, asked_ns, work.request_bytes);
                let ended_ns = cores.free_ns(whole_ns) + super::whole_ns(service_ns);
                cores.take(ended_ns);
                let bytes = work.reply_bytes;
                (network.sent(&mut port, ended_ns, way, bytes, &mut stream), at, bytes)
            })
            .collect();
        returned.sort_unstable();
        let mut legs = vec![0; returned.len()];
        for (first_ns, at, bytes) in returned {
            legs[at] = network.received(&mut front, first_ns, bytes);
        }
        legs
    }

    fn network(&self) -> Network {
        /// A byte takes some time, if only to divide by.
        const LEAST_BYTE_NS: f64 = 1e-9;
        Network {
            topology: Topology::Flat,
            base_ns: [super::whole_ns(self.latency_ns); 3],
            jitter_ns: 0.0,
            jitter: Noise::Constant,
            bytes_per_ns: 1.0 / self.byte_ns.max(LEAST_BYTE_NS),
            message_ns: super::whole_ns(self.message_ns),
            uplinks: Uplinks::default(),
        }
    }
}
