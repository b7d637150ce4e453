//! What a message costs on its way: latency by distance, bandwidth and work for each message at both ends, and
//! the queue at a receiver that many write to.

use super::noise::Noise;
use super::stream::Stream;
use super::uplinks::Uplinks;
use super::whole_ns;

/// Which places are near each other. Places are dealt to racks in turn of their number, racks to pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// All are equally near.
    #[default]
    Flat,
    /// Racks of so many places, ≥ 1.
    Racks {
        /// Places of a rack.
        rack: u32,
    },
    /// Pods of racks.
    Pods {
        /// Places of a rack, ≥ 1.
        rack: u32,
        /// Racks of a pod, ≥ 1.
        racks: u32,
    },
}

impl Topology {
    /// The rack of a place; all are in one where the topology is flat.
    #[must_use]
    pub fn rack(self, place: u32) -> u32 {
        match self {
            Self::Flat => 0,
            Self::Racks { rack } | Self::Pods { rack, .. } => place / rack,
        }
    }

    /// The pod of a place; all are in one where there are no pods.
    #[must_use]
    pub fn pod(self, place: u32) -> u32 {
        match self {
            Self::Pods { racks, .. } => self.rack(place) / racks,
            Self::Flat | Self::Racks { .. } => 0,
        }
    }

    /// 0 within a rack, 1 between racks of a pod, 2 between pods; 0 for all where the topology is flat.
    #[must_use]
    pub fn distance(self, a: u32, b: u32) -> usize {
        let (a, b) = (self.rack(a), self.rack(b));
        match self {
            _ if a == b => 0,
            Self::Pods { racks, .. } if a / racks != b / racks => 2,
            _ => 1,
        }
    }
}

/// Network between all places.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Which places are near.
    pub topology: Topology,
    /// Least time on the way by [`Topology::distance`], ns, each ≥ 1.
    pub base_ns: [u64; 3],
    /// Mean of what comes on top, ns.
    pub jitter_ns: f64,
    /// How that varies.
    pub jitter: Noise,
    /// What a place sends and, at the same time, receives, bytes in a ns; above 0.
    pub bytes_per_ns: f64,
    /// Work of sending and of receiving one message, ns.
    pub message_ns: u64,
    /// What places share on ways between racks and pods.
    pub uplinks: Uplinks,
}

/// The two directions of a place's connection: when each is free, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    out_ns: u64,
    in_ns: u64,
}

impl Network {
    /// The same with all times so many times as long.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        let longer = |ns: u64| whole_ns(ns as f64 * factor);
        Self {
            topology: self.topology,
            base_ns: self.base_ns.map(|ns| longer(ns).max(1)),
            jitter_ns: self.jitter_ns * factor,
            jitter: self.jitter.clone(),
            // A factor of 0 would have bytes go on for ever.
            bytes_per_ns: self.bytes_per_ns / factor.max(f64::MIN_POSITIVE),
            message_ns: longer(self.message_ns),
            uplinks: self.uplinks.times(factor),
        }
    }

    /// Least latencies of the distances that there are.
    pub(super) fn used_ns(&self) -> &[u64] {
        let used = match self.topology {
            Topology::Flat => 1,
            Topology::Racks { .. } => 2,
            Topology::Pods { .. } => 3,
        };
        &self.base_ns[..used]
    }

    /// The least time from a message's start to its first byte's arrival anywhere, or from a link of
    /// [`Uplinks`] on, ns.
    #[must_use]
    pub fn least_ns(&self) -> u64 {
        let part = |(distance, base_ns): (usize, &u64)| match self.uplinks.on_way(distance) {
            0 => base_ns + self.message_ns,
            links => base_ns / (links + 1),
        };
        self.used_ns().iter().enumerate().map(part).min().expect("one at least")
    }

    /// When a message of so many bytes, ready at `now_ns`, has its first byte at the other end.
    pub fn sent(
        &self,
        port: &mut Port,
        now_ns: u64,
        (from, to): (u32, u32),
        bytes: u64,
        stream: &mut Stream,
    ) -> u64 {
        let start_ns = now_ns.max(port.out_ns) + self.message_ns;
        port.out_ns = start_ns + self.wire_ns(bytes);
        let mut way_ns = self.base_ns[self.topology.distance(from, to)];
        if self.jitter_ns > 0.0 {
            way_ns += whole_ns(self.jitter_ns * self.jitter.draw(stream));
        }
        start_ns + way_ns
    }

    /// When a message whose first byte arrives at `now_ns` is whole: what came before is taken in first.
    pub fn received(&self, port: &mut Port, now_ns: u64, bytes: u64) -> u64 {
        port.in_ns = now_ns.max(port.in_ns) + self.message_ns + self.wire_ns(bytes);
        port.in_ns
    }

    fn wire_ns(&self, bytes: u64) -> u64 {
        whole_ns(bytes as f64 / self.bytes_per_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::{Network, Noise, Port, Topology, Uplinks};
    use crate::cluster::StreamKey;

    fn network(topology: Topology) -> Network {
        Network {
            topology,
            base_ns: [1_000, 5_000, 20_000],
            jitter_ns: 0.0,
            jitter: Noise::Constant,
            bytes_per_ns: 2.0,
            message_ns: 100,
            uplinks: Uplinks::default(),
        }
    }

    #[test]
    fn the_way_is_longer_between_racks_and_longest_between_pods() {
        let pods = network(Topology::Pods { rack: 4, racks: 2 });
        let mut stream = StreamKey::new(0, "network").stream(0, 0);
        let mut first = |to| pods.sent(&mut Port::default(), 10, (0, to), 4_000, &mut stream);
        assert_eq!([3, 4, 8].map(&mut first), [1_110, 5_110, 20_110]);
        assert_eq!(pods.least_ns(), 1_100);
        assert_eq!(network(Topology::Racks { rack: 4 }).topology.distance(3, 400), 1);
        assert_eq!(Topology::Flat.distance(3, 400), 0);
    }

    #[test]
    fn a_sender_sends_and_a_receiver_takes_in_one_message_after_the_other() {
        let flat = network(Topology::Flat);
        let mut stream = StreamKey::new(0, "network").stream(0, 0);
        let mut out = Port::default();
        let mut send = |now| flat.sent(&mut out, now, (0, 1), 4_000, &mut stream);
        assert_eq!([send(0), send(0), send(9_000)], [1_100, 3_200, 10_100]);
        // Incast: four messages whose first bytes come together take four times the wire.
        let mut port = Port::default();
        let whole: Vec<u64> = (0..4).map(|_| flat.received(&mut port, 50, 4_000)).collect();
        assert_eq!(whole, [2_150, 4_250, 6_350, 8_450]);
    }
}
