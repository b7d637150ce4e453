//! A node: one queue in order of arrival, served one message at a time.
//!
//! Since the order is that of arrival, a message's end is known when it arrives (Lindley 1952): a node needs
//! no event of its own, and none while it is idle.

use super::cores::Cores;
use super::faults::FaultPlan;
use super::network::{Network, Port};
use super::noise::Noise;
use super::stream::StreamKey;
use super::whole_ns;
use crate::ids::NodeId;
use std::collections::BTreeMap;

/// What a message asks of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Token–expert pairs.
    pub pairs: u32,
    /// Encoded bytes of the weights of the experts that it touches: their widths tell.
    pub weight_bytes: u64,
    /// The same as often as they are read, see [`crate::expert::passes`].
    pub pass_bytes: u64,
    /// Bytes of the question.
    pub request_bytes: u64,
    /// Bytes of the answer.
    pub reply_bytes: u64,
}

/// How long work takes: `(setup + pairs · pair + weight bytes · byte + pass bytes · byte) · noise`, times how slow the
/// node is.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// For each message, ns.
    pub setup_ns: f64,
    /// For each pair, ns.
    pub pair_ns: f64,
    /// For each byte of the weights that are touched, ns.
    pub weight_byte_ns: f64,
    /// For each byte each time that it is read, ns.
    pub pass_byte_ns: f64,
    /// What varies.
    pub noise: Noise,
    /// Standard deviation of the nodes' slowness, log-normal with mean 1; 0: all are alike.
    pub node_deviation: f64,
    /// Nodes that are slower or faster by a factor, above 0.
    pub slowness: BTreeMap<NodeId, f64>,
}

impl Service {
    /// Without noise, on a node that is as fast as the mean, ns.
    #[must_use]
    pub fn mean_ns(&self, work: &Work) -> f64 {
        self.setup_ns
            + self.pair_ns * f64::from(work.pairs)
            + self.weight_byte_ns * work.weight_bytes as f64
            + self.pass_byte_ns * work.pass_bytes as f64
    }
}

/// What is common to all nodes and ways.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// How long nodes compute.
    pub service: Service,
    /// How long messages travel. Nodes stand at the places that have their numbers.
    pub network: Network,
    /// What goes wrong.
    pub faults: FaultPlan,
    /// From a node's crash until those who wait for it know, ns: a broken connection tells.
    pub detect_ns: u64,
    /// Of the service times.
    pub(super) service_key: StreamKey,
    /// Of nodes' slowness.
    pub(super) node_key: StreamKey,
    /// Of the ways.
    pub(super) way_key: StreamKey,
}

/// One node: 64 bytes, and nothing more while it is idle. They are one line of a cache, so that a message to any
/// of many nodes waits for the memory once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Node {
    port: Port,
    free_ns: u64,
    /// Crashes that it has come back from, or not.
    crashes: u32,
    /// Messages that it took in, over all its lives.
    pub messages: u32,
    /// Pairs that it answered.
    pub pairs: u64,
    /// Time that it computed, ns.
    pub busy_ns: u64,
    /// Time that messages waited for it to be free, ns.
    pub wait_ns: u64,
}

/// What becomes of a message at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// An answer is on its way.
    Answered {
        /// When its first byte is where the question came from.
        at_ns: u64,
        /// How long the question waited for the node.
        wait_ns: u64,
        /// How long the node computed.
        service_ns: u64,
    },
    /// The node is down, or will be before it has answered: who asked hears of it at this time.
    Broken {
        /// When.
        at_ns: u64,
    },
    /// The answer is lost on its way: nobody hears of it.
    Silent,
}

impl Hardware {
    /// With the streams of a seed.
    #[must_use]
    pub fn new(
        service: Service,
        network: Network,
        faults: FaultPlan,
        detect_ns: u64,
        seed: u64,
    ) -> Self {
        Self {
            service,
            network,
            faults,
            detect_ns,
            service_key: StreamKey::new(seed, "cluster service"),
            node_key: StreamKey::new(seed, "cluster nodes"),
            way_key: StreamKey::new(seed, "cluster ways"),
        }
    }

    /// How many times as long as the mean node this one takes, ever.
    #[must_use]
    pub fn slowness(&self, node: NodeId) -> f64 {
        let own = match self.service.node_deviation {
            deviation if deviation > 0.0 => {
                Noise::LogNormal(deviation).draw(&mut self.node_key.stream(node.0.into(), 0))
            }
            _ => 1.0,
        };
        own * self.service.slowness.get(&node).copied().unwrap_or(1.0)
    }

    /// Whether a message that is sent now between a node and a place is lost; `salt` tells messages apart.
    #[must_use]
    pub fn is_lost(&self, node: NodeId, place: u32, now_ns: u64, salt: u64) -> bool {
        if self.faults.is_empty() {
            return false;
        }
        let rack = |place| self.network.topology.rack(place);
        let lost = self.faults.loss((node.0, rack(node.0)), rack(place), now_ns);
        lost > 0.0 && self.way_key.stream(node.0.into(), salt).above_zero() <= lost
    }

    /// A message from `place` whose first byte reaches a node at `now_ns`. Messages must come in order of
    /// time; of those that come together the order is the caller's.
    #[must_use]
    pub fn serve(
        &self,
        at: NodeId,
        node: &mut Node,
        place: u32,
        now_ns: u64,
        work: &Work,
    ) -> Served {
        self.serve_on(at, (node, &mut Cores::default(), 1.0), place, now_ns, work)
    }

    /// The same where nodes may share the cores of their host, and where all takes `factor` times as long.
    #[must_use]
    pub fn serve_on(
        &self,
        at: NodeId,
        (node, cores, factor): (&mut Node, &mut Cores, f64),
        place: u32,
        now_ns: u64,
        work: &Work,
    ) -> Served {
        let (crashes, is_down) = self.faults.crashes(at.0, now_ns);
        if is_down {
            return Served::Broken { at_ns: now_ns + self.detect_ns };
        }
        if node.crashes != crashes {
            (node.port, node.free_ns, node.crashes) = (Port::default(), now_ns, crashes);
        }
        let whole_ns_at = self.network.received(&mut node.port, now_ns, work.request_bytes);
        let start_ns = cores.free_ns(whole_ns_at.max(node.free_ns));
        let mut stream = self.service_key.stream(at.0.into(), node.messages.into());
        node.messages = node.messages.wrapping_add(1);
        let slowness = self.slowness(at) * self.faults.slowness(at.0, start_ns);
        let noise = self.service.noise.draw(&mut stream);
        let service_ns = whole_ns(self.service.mean_ns(work) * noise * slowness * factor);
        let resumed_ns = self.faults.resumed(at.0, start_ns);
        // Who stands still leaves the cores to others.
        if resumed_ns == start_ns {
            cores.take(start_ns + service_ns);
        }
        node.free_ns = self.faults.ended(at.0, resumed_ns, service_ns);
        if let Some(crash_ns) = self.faults.crash_within(at.0, now_ns, node.free_ns) {
            return Served::Broken { at_ns: crash_ns.max(now_ns) + self.detect_ns };
        }
        let wait_ns = start_ns - whole_ns_at;
        node.busy_ns += service_ns;
        node.wait_ns += wait_ns;
        node.pairs += u64::from(work.pairs);
        let way = (at.0, place);
        let at_ns =
            self.network.sent(&mut node.port, node.free_ns, way, work.reply_bytes, &mut stream);
        if self.is_lost(at, place, node.free_ns, u64::from(node.messages) << 1 | 1) {
            return Served::Silent;
        }
        Served::Answered { at_ns, wait_ns, service_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hardware, Node, Served, Service, Work};
    use crate::cluster::{Cores, Fault, FaultPlan, Network, Noise, Topology, Uplinks};
    use crate::ids::NodeId;
    use std::collections::BTreeMap;

    fn hardware(faults: &[Fault]) -> Hardware {
        let service = Service {
            setup_ns: 1_000.0,
            pair_ns: 10.0,
            weight_byte_ns: 0.5,
            pass_byte_ns: 0.0,
            noise: Noise::Constant,
            node_deviation: 0.0,
            slowness: BTreeMap::from([(NodeId(1), 4.0)]),
        };
        let network = Network {
            topology: Topology::Racks { rack: 2 },
            base_ns: [100, 300, 900],
            jitter_ns: 0.0,
            jitter: Noise::Constant,
            bytes_per_ns: 1.0,
            message_ns: 0,
            uplinks: Uplinks::default(),
        };
        Hardware::new(service, network, FaultPlan::new(faults, 4, |n| n / 2), 50, 1)
    }

    const WORK: Work = Work {
        pairs: 20,
        weight_bytes: 600,
        pass_bytes: 1_200,
        request_bytes: 40,
        reply_bytes: 80,
    };

    #[test]
    fn a_message_waits_for_those_before_it_and_takes_by_pairs_bytes_and_node() {
        let (hardware, mut node) = (hardware(&[]), Node::default());
        assert!((hardware.service.mean_ns(&WORK) - 1_500.0).abs() < 1e-9);
        let mut serve = |now| hardware.serve(NodeId(0), &mut node, 3, now, &WORK);
        let answered = |at_ns, wait_ns| Served::Answered { at_ns, wait_ns, service_ns: 1_500 };
        // 40 ns of wire, 1500 of work, 300 of way.
        assert_eq!(serve(0), answered(1_840, 0));
        assert_eq!(serve(10), answered(3_340, 1_460));
        assert_eq!(serve(9_000), answered(10_840, 0));
        assert_eq!((node.messages, node.pairs, node.busy_ns, node.wait_ns), (3, 60, 4_500, 1_460));
        let slow = hardware.serve(NodeId(1), &mut Node::default(), 0, 0, &WORK);
        assert_eq!(slow, Served::Answered { at_ns: 6_140, wait_ns: 0, service_ns: 6_000 });
        assert!(size_of::<Node>() <= 64);
    }

    #[test]
    fn a_crash_takes_all_that_a_node_has_in_hand_and_leaves_it_empty() {
        let crash = Fault::Crash { node: NodeId(0), when_ns: 2_000..2_500 };
        let (hardware, mut node) = (hardware(&[crash]), Node::default());
        let mut serve = |now| hardware.serve(NodeId(0), &mut node, 1, now, &WORK);
        assert!(matches!(serve(0), Served::Answered { .. }));
        assert_eq!(serve(10), Served::Broken { at_ns: 2_050 });
        assert_eq!(serve(2_200), Served::Broken { at_ns: 2_250 });
        assert_eq!(serve(2_600), Served::Answered { at_ns: 4_240, wait_ns: 0, service_ns: 1_500 });
    }

    #[test]
    fn a_node_that_stands_still_goes_on_where_it_stood_and_leaves_its_core_to_others() {
        let pause = Fault::Pause {
            node: NodeId(0),
            when_ns: 0..1_000_000,
            every_ns: 10_000,
            stopped_ns: 4_000,
        };
        let hardware = hardware(&[pause]);
        let mut cores = Cores::of(1);
        let mut serve = |at: NodeId, now| {
            let on = (&mut Node::default(), &mut cores, 1.0);
            // In the other rack.
            let place = if at == NodeId(0) { 3 } else { 0 };
            let Served::Answered { at_ns, .. } = hardware.serve_on(at, on, place, now, &WORK)
            else {
                panic!("no node is down")
            };
            at_ns - 300
        };
        // 40 ns of wire; stopped until 4000, then 1500 of work.
        assert_eq!(serve(NodeId(0), 0), 5_500);
        assert_eq!(serve(NodeId(2), 100), 1_640, "the core was free");
        assert_eq!(serve(NodeId(3), 200), 3_140, "the core was taken");
        // From 9500 to 10000, and from 14000 on.
        assert_eq!(serve(NodeId(0), 9_460), 15_000);
    }

    #[test]
    fn what_a_partition_cuts_is_lost_without_notice() {
        let cut = Fault::Partition { rack: 0, when_ns: 1_000..9_000 };
        let hardware = hardware(&[cut]);
        let served = hardware.serve(NodeId(0), &mut Node::default(), 3, 0, &WORK);
        assert_eq!(served, Served::Silent, "its answer would leave at 1540");
        let within = hardware.serve(NodeId(0), &mut Node::default(), 1, 0, &WORK);
        assert!(matches!(within, Served::Answered { .. }));
        assert!(
            hardware.is_lost(NodeId(0), 3, 1_000, 0) && !hardware.is_lost(NodeId(0), 3, 999, 0)
        );
    }
}
