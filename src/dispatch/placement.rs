//! The simplest placement, which looks at no loads.

use agents::ids::{ExpertId, LayerId, NodeId};

/// Experts dealt to nodes in turn, each to `replicas` distinct nodes.
///
/// The deal goes on from layer to layer, so that no node is short in every layer when the experts
/// of a layer do not divide evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundRobin {
    experts: usize,
    nodes: usize,
    replicas: usize,
}

/// Why experts cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Nothing to place, or nowhere.
    #[error(
        "a placement needs at least one expert, node and replica: {experts}, {nodes} and {replicas} were given"
    )]
    Empty {
        /// Experts a layer.
        experts: usize,
        /// Nodes.
        nodes: usize,
        /// Copies of each expert.
        replicas: usize,
    },
    /// Two copies of an expert would share a node.
    #[error(
        "{replicas} replicas need as many nodes, but there are {nodes}: lower nodes.replicas or add nodes"
    )]
    Replicas {
        /// Copies of each expert.
        replicas: usize,
        /// Nodes.
        nodes: usize,
    },
}

impl RoundRobin {
    /// Deals the `experts` of each layer to `nodes`.
    ///
    /// # Errors
    /// When a count is zero or there are more replicas than nodes.
    pub fn deal(experts: usize, nodes: usize, replicas: usize) -> Result<Self, PlacementError> {
        if experts == 0 || nodes == 0 || replicas == 0 {
            return Err(PlacementError::Empty { experts, nodes, replicas });
        }
        if replicas > nodes {
            return Err(PlacementError::Replicas { replicas, nodes });
        }
        Ok(Self { experts, nodes, replicas })
    }

    /// The nodes that hold an expert, its first host first; all distinct.
    pub fn hosts(&self, layer: LayerId, expert: ExpertId) -> impl Iterator<Item = NodeId> + use<> {
        let Self { experts, nodes, replicas } = *self;
        let first = layer.index() * experts + expert.index();
        (0..replicas).map(move |replica| NodeId::from_index((first + replica) % nodes))
    }

    /// Its first host.
    #[must_use]
    pub fn first_host(&self, layer: LayerId, expert: ExpertId) -> NodeId {
        NodeId::from_index((layer.index() * self.experts + expert.index()) % self.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::{PlacementError, RoundRobin};
    use agents::ids::{ExpertId, LayerId};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn replicas_are_on_distinct_nodes_and_no_node_has_two_more_than_another(
            experts in 1_usize..40, nodes in 1_usize..10, layers in 1_usize..5, copies in 1_usize..10,
        ) {
            let replicas = copies.min(nodes);
            let placement = RoundRobin::deal(experts, nodes, replicas).expect("valid");
            let mut held = vec![0; nodes];
            for layer in (0..layers).map(LayerId::from_index) {
                for expert in (0..experts).map(ExpertId::from_index) {
                    let hosts: Vec<_> = placement.hosts(layer, expert).collect();
                    prop_assert_eq!(hosts[0], placement.first_host(layer, expert));
                    prop_assert_eq!(hosts.iter().collect::<BTreeSet<_>>().len(), replicas);
                    hosts.iter().for_each(|node| held[node.index()] += 1);
                }
            }
            let (least, most) = (held.iter().min(), held.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= replicas));
        }
    }

    #[test]
    fn impossible_placements_are_refused() {
        assert_eq!(
            RoundRobin::deal(8, 2, 3),
            Err(PlacementError::Replicas { replicas: 3, nodes: 2 })
        );
        for (experts, nodes, replicas) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert!(RoundRobin::deal(experts, nodes, replicas).is_err());
        }
    }
}
