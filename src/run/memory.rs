//! Whether experts fit in the memory of virtual nodes.

use super::fit::FittedExperts;
use super::placement::Placed;
use crate::results::NodeMemory;
use crate::scenario::file::VirtualNodes;
use agents::ids::{ExpertId, LayerId};
use std::fmt::{self, Display, Formatter};

/// Nodes that a message names; the others are counted.
const NAMED_MAX: usize = 16;

/// A placement that nodes have too little memory for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct MemoryExceeded {
    /// Of a node.
    memory_bytes: u64,
    /// All nodes.
    nodes: usize,
    /// Node and the bytes that it would hold, of those that are too small.
    over: Vec<(usize, u64)>,
}

impl Display for MemoryExceeded {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { memory_bytes, nodes, over } = self;
        write!(
            f,
            "{} of {nodes} nodes would hold more than their {memory_bytes} bytes of memory, replicas counted:",
            over.len()
        )?;
        for (at, (node, bytes)) in over.iter().take(NAMED_MAX).enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma} node {node} {bytes}")?;
        }
        if let Some(more) = over.len().checked_sub(NAMED_MAX + 1) {
            let most = over.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
            write!(f, " and {} more, the fullest {most}", more + 1)?;
        }
        write!(f, "; take more nodes, narrower widths or fewer replicas, or raise memory_bytes")
    }
}

/// What nodes hold, if each has room for it.
///
/// # Errors
/// [`MemoryExceeded`].
pub(super) fn of_nodes(
    with: &VirtualNodes,
    resident: &[u64],
) -> Result<NodeMemory, MemoryExceeded> {
    let memory_bytes = (with.memory_bytes > 0).then_some(with.memory_bytes);
    let limit = memory_bytes.unwrap_or(u64::MAX);
    let over: Vec<(usize, u64)> =
        resident.iter().copied().enumerate().filter(|(_, bytes)| *bytes > limit).collect();
    if !over.is_empty() {
        return Err(MemoryExceeded { memory_bytes: limit, nodes: resident.len(), over });
    }
    let all: u64 = resident.iter().sum();
    let most = resident.iter().copied().enumerate().rev().max_by_key(|(_, bytes)| *bytes);
    let (fullest, resident_bytes_max) = most.unwrap_or_default();
    Ok(NodeMemory {
        memory_bytes,
        resident_bytes: all,
        resident_bytes_mean: all as f64 / resident.len().max(1) as f64,
        resident_bytes_max,
        fullest: fullest as u64,
    })
}

/// Bytes of the experts that each of `nodes` holds, over all layers.
pub(super) fn resident(experts: &FittedExperts, placed: &Placed, nodes: u32) -> Vec<u64> {
    let mut resident = vec![0; nodes as usize];
    for (layer, experts) in (0..).map(LayerId).zip(experts.served.iter()) {
        for (expert, weights) in (0..).map(ExpertId).zip(experts) {
            let hosts = placed.hosts(layer, expert);
            hosts.iter().for_each(|host| resident[host.index()] += weights.encoded_bytes());
        }
    }
    resident
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_hold_too_much_are_all_named_or_counted() {
        let with = |memory_bytes| VirtualNodes { memory_bytes, ..VirtualNodes::default() };
        let resident = [40, 70, 10, 70];
        let fits = of_nodes(&with(70), &resident).expect("70 bytes are enough");
        assert_eq!((fits.resident_bytes, fits.resident_bytes_max, fits.fullest), (190, 70, 1));
        assert_eq!(fits.memory_bytes, Some(70));
        assert_eq!(of_nodes(&with(0), &resident).expect("no limit").memory_bytes, None);
        let says =
            |resident: &[u64]| of_nodes(&with(39), resident).expect_err("39 are not").to_string();
        let few = says(&resident);
        assert!(few.starts_with("3 of 4 nodes would hold more than their 39 bytes"), "{few}");
        assert!(few.contains("node 0 40, node 1 70, node 3 70; take"), "{few}");
        let many = says(&[60; 100]);
        assert!(many.contains("node 15 60 and 84 more, the fullest 60"), "{many}");
    }
}
