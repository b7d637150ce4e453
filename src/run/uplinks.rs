//! What passed the links of racks and pods, as a summary has it.

use crate::results::{UplinkFigures, UplinkStretch};
use agents::cluster::{LinkIds, LinkKind, Network, Passed, Topology};

/// By level and direction, of links by number over a time; `stretches` of so many ns are by kind.
pub(super) fn figures(
    network: &Network,
    nodes: u32,
    links: &[Passed],
    span_ns: u64,
    (stretches, stretch_ns): (&[[Passed; 4]], u64),
) -> Vec<UplinkFigures> {
    let ids = LinkIds::new(network, nodes);
    let of_kind = |kind: LinkKind| {
        let bytes_per_ns = network.uplinks.bytes_per_ns(kind)?;
        let of: Vec<&Passed> = (0..)
            .zip(links)
            .filter(|(id, _)| ids.link(*id).kind == kind)
            .map(|(_, of)| of)
            .collect();
        let (level, direction) = names(kind);
        let count = f64::from(ids.of_kind(kind));
        let mut all = Passed::default();
        of.iter().for_each(|passed| all.add(passed));
        let (busiest, most) = of.iter().enumerate().rev().max_by_key(|(_, of)| of.busy_ns)?;
        let share = |busy_ns: u64, of_ns: u64| busy_ns as f64 / of_ns.max(1) as f64;
        let stretch = |(at, of): (u64, &[Passed; 4])| {
            let (from_ns, of) = (at * stretch_ns, of[kind as usize]);
            let length_ns = stretch_ns.min(span_ns.saturating_sub(from_ns));
            UplinkStretch {
                from_ns,
                bytes: of.bytes,
                busy_mean: share(of.busy_ns, length_ns) / count,
                wait_mean_ns: wait_mean_ns(&of),
            }
        };
        Some(UplinkFigures {
            level: level.to_owned(),
            direction: direction.to_owned(),
            links: ids.of_kind(kind).into(),
            oversubscription: places(network.topology, kind, nodes) * network.bytes_per_ns
                / bytes_per_ns,
            messages: all.messages,
            bytes: all.bytes,
            wait_mean_ns: wait_mean_ns(&all),
            busy_mean: share(all.busy_ns, span_ns) / count,
            busy_max: share(most.busy_ns, span_ns),
            busiest: busiest as u64,
            busiest_wait_mean_ns: wait_mean_ns(most),
            stretches: (0..).zip(stretches).map(stretch).collect(),
        })
    };
    LinkKind::ALL.into_iter().filter_map(of_kind).collect()
}

fn wait_mean_ns(of: &Passed) -> Option<f64> {
    (of.messages > 0).then(|| of.wait_ns as f64 / of.messages as f64)
}

fn names(kind: LinkKind) -> (&'static str, &'static str) {
    match kind {
        LinkKind::RackOut => ("rack", "out"),
        LinkKind::RackIn => ("rack", "in"),
        LinkKind::PodOut => ("pod", "out"),
        LinkKind::PodIn => ("pod", "in"),
    }
}

/// Nodes of a rack or pod that is full.
fn places(topology: Topology, kind: LinkKind, nodes: u32) -> f64 {
    let all = f64::from(nodes);
    match (topology, kind) {
        (Topology::Flat, _) | (Topology::Racks { .. }, LinkKind::PodOut | LinkKind::PodIn) => all,
        (Topology::Racks { rack }, _)
        | (Topology::Pods { rack, .. }, LinkKind::RackOut | LinkKind::RackIn) => {
            f64::from(rack).min(all)
        }
        (Topology::Pods { rack, racks }, _) => (f64::from(rack) * f64::from(racks)).min(all),
    }
}
