//! A share of the orders is computed a second time by other holders of their experts, and the outputs
//! are compared bit by bit. Where they differ the coordinator computes once itself: whoever differs from
//! that is quarantined, and the round is sent again without it, so that nothing of it is combined that
//! was found to be wrong.
//!
//! What this guarantees: a node that answers wrongly in one of `k` orders, unseen by the nodes that are
//! asked beside it, is found after `k / share` orders on average, and what is found is never combined.
//! What it does not: an order that was not checked may be wrong, and so may one that two nodes answer with
//! the same wrong bits. It needs nodes and a coordinator of one kind of CPU, because another may
//! round otherwise.

use super::DispatchError;
use super::deliver::Delivery;
use super::round_trip::Holders;
use super::{RemoteSettings, ShardAssignment};
use crate::worker::compute;
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder, Orders, Replies};
use agents::rng::stream;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which orders are checked, and what settles a difference.
#[derive(Debug)]
pub(super) struct SpotCheck {
    share: f64,
    seed: u64,
    /// Empty where nothing is checked.
    experts: BTreeMap<(LayerId, ExpertId), Arc<Expert>>,
}

/// The second computation of one order.
struct Witnesses {
    orders: Orders,
    /// Who may be asked: not the nodes that answered first.
    holders: Holders,
}

/// A group's tokens, and what was answered by whom.
struct Answer<'a> {
    group: &'a ExpertGroup,
    node: NodeId,
    outputs: &'a [f32],
}

impl SpotCheck {
    pub(super) fn new(settings: &RemoteSettings) -> Self {
        let (share, seed) = (settings.spot_check_share, settings.spot_check_seed);
        Self { share, seed, experts: BTreeMap::new() }
    }

    /// The weights that a difference is settled by.
    pub(super) fn know(&mut self, shards: &[ShardAssignment]) {
        if self.share > 0.0 {
            let known = |shard: &ShardAssignment| {
                ((shard.layer, shard.expert), shard.expert_weights.clone())
            };
            self.experts.extend(shards.iter().map(known));
        }
    }

    /// The same for the same seed, whatever else happens in a run.
    fn is_chosen(&self, step: StepId, layer: LayerId, node: NodeId) -> bool {
        use rand::RngExt as _;
        self.share > 0.0
            && stream(self.seed, &format!("spot check {step} {layer} {node}")).random::<f64>()
                < self.share
    }

    /// What an expert answers for the tokens of a group; none where its weights are not known.
    fn truth(
        &self,
        layer: LayerId,
        group: &ExpertGroup,
        hidden: &[f32],
        width: usize,
    ) -> Option<Vec<f32>> {
        let expert = self.experts.get(&(layer, group.expert))?.clone();
        let tokens: &[TokenId] = &group.tokens;
        Some(compute::outputs(&[(expert, tokens)], bytemuck::cast_slice(hidden), width))
    }
}

impl Delivery<'_> {
    /// Checks the orders that are chosen. Says whether all is as it was answered; if not, the nodes at fault
    /// are lost now.
    ///
    /// `answerers` holds, for each order and each of its groups, the node that answered.
    pub(super) async fn passes_checks(
        &mut self,
        orders: &Orders,
        holders: &Holders,
        replies: &Replies,
        answerers: &[Vec<NodeId>],
    ) -> bool {
        let mut passes = true;
        for ((order, reply), nodes) in orders.nodes.iter().zip(&replies.nodes).zip(answerers) {
            if !self.spot_check.is_chosen(orders.step, orders.layer, order.node) {
                continue;
            }
            let first = answers(order, &reply.outputs, nodes, self.width);
            let witnesses = self.witnesses(orders, holders, &first);
            let second = match witnesses {
                Some(witnesses) => {
                    let sent = self.deliver(&witnesses.orders, &witnesses.holders).await;
                    sent.ok().map(|(replies, nodes)| (witnesses.orders, replies, nodes))
                }
                None => None,
            };
            let Some((asked, replies, nodes)) = second else {
                self.faults.spot_checks_skipped += 1;
                continue;
            };
            self.faults.spot_checks += 1;
            let mut second = BTreeMap::new();
            for ((order, reply), nodes) in asked.nodes.iter().zip(&replies.nodes).zip(&nodes) {
                for answer in answers(order, &reply.outputs, nodes, self.width) {
                    second.insert(answer.group.expert, answer);
                }
            }
            for first in first {
                let second = &second[&first.group.expert];
                passes &= self.agree(orders.layer, &first, second);
            }
        }
        passes
    }

    /// Another holder for each group; none where a group has no other.
    fn witnesses(
        &self,
        orders: &Orders,
        holders: &Holders,
        first: &[Answer<'_>],
    ) -> Option<Witnesses> {
        let mut by_node: BTreeMap<NodeId, Vec<ExpertGroup>> = BTreeMap::new();
        let mut others = Holders::new();
        for Answer { group, node, .. } in first {
            let key = (orders.layer, group.expert);
            let is_other = |other: &NodeId| {
                other != node
                    && self.peers.get(other.index()).is_some_and(|peer| peer.lost.is_none())
            };
            let free: Vec<NodeId> = holders.get(&key)?.iter().copied().filter(is_other).collect();
            // Each holder has its turn.
            let witness = *free.get(orders.step.0 as usize % free.len().max(1))?;
            by_node.entry(witness).or_default().push((*group).clone());
            others.insert(key, free);
        }
        let nodes = by_node.into_iter().map(|(node, groups)| NodeOrder { node, groups }).collect();
        let orders = Orders { step: orders.step, layer: orders.layer, nodes };
        Some(Witnesses { orders, holders: others })
    }

    /// Whether two nodes answered the same bits; those that answered wrong ones are lost now.
    fn agree(&mut self, layer: LayerId, first: &Answer<'_>, second: &Answer<'_>) -> bool {
        if same_bits(first.outputs, second.outputs) {
            return true;
        }
        let truth = self.spot_check.truth(layer, first.group, self.hidden, self.width);
        let truth =
            truth.expect("every expert that a node holds was given to it by this dispatcher");
        for answer in [first, second] {
            if !same_bits(answer.outputs, &truth) {
                self.quarantine(answer.node, layer, answer.group.expert);
            }
        }
        false
    }

    fn quarantine(&mut self, node: NodeId, layer: LayerId, expert: ExpertId) {
        let peer = &mut self.peers[node.index()];
        if peer.lost.is_some() {
            return;
        }
        let detail = format!(
            "its outputs of expert {expert} of layer {layer} are not those that another node and \
             this coordinator compute"
        );
        tracing::warn!("{}", DispatchError::BadReply { node, detail: detail.clone() });
        peer.lost = Some(detail);
        peer.is_quarantined = true;
        self.health.lose(node);
        self.faults.lost += 1;
        self.faults.quarantined += 1;
    }
}

fn answers<'a>(
    order: &'a NodeOrder,
    outputs: &'a [f32],
    nodes: &[NodeId],
    width: usize,
) -> Vec<Answer<'a>> {
    let mut rest = outputs;
    let cut = |(group, node): (&'a ExpertGroup, &NodeId)| {
        let (outputs, after) = rest.split_at(group.tokens.len() * width);
        rest = after;
        Answer { group, node: *node, outputs }
    };
    order.groups.iter().zip(nodes).map(cut).collect()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod tests {
    use super::SpotCheck;
    use crate::dispatch::RemoteSettings;
    use agents::ids::{LayerId, NodeId, StepId};

    #[test]
    fn the_share_of_orders_that_is_stated_is_chosen_alike_each_time() {
        for share in [0.0, 0.02, 0.5, 1.0] {
            let settings = RemoteSettings { spot_check_share: share, ..RemoteSettings::default() };
            let check = SpotCheck::new(&settings);
            let chosen = |step| check.is_chosen(StepId(step), LayerId(1), NodeId(2));
            let found = (0..10_000).filter(|step| chosen(*step)).count();
            let again = (0..10_000).filter(|step| chosen(*step)).count();
            assert_eq!(found, again);
            // Within five standard deviations.
            let deviation = (10_000.0 * share * (1.0 - share)).sqrt();
            assert!((found as f64 - 10_000.0 * share).abs() <= 5.0 * deviation, "{share}: {found}");
        }
    }
}
