//! Order: choices become one message a node.

use crate::components::{Hosts, NodeWork};
use crate::ids::{ExpertId, NodeId, TokenId};
use crate::orders::{ExpertGroup, NodeOrder, Orders};
use crate::world::{Batch, Outbox, Response, Roster};
use bevy_ecs::prelude::{Commands, Query, Res};

/// Groups the tokens by expert and deals a replicated expert's tokens to its hosts in turn.
pub(super) fn write_orders(
    mut commands: Commands<'_, '_>,
    batch: Res<'_, Batch>,
    response: Res<'_, Response>,
    roster: Res<'_, Roster>,
    experts: Query<'_, '_, &Hosts>,
    mut nodes: Query<'_, '_, &mut NodeWork>,
) {
    let mut tokens_of = vec![Vec::new(); batch.experts];
    for token in 0..response.0.choices.tokens() {
        for expert in response.0.choices.row(token) {
            tokens_of[expert.index()].push(TokenId::from_index(token));
        }
    }
    let mut groups_of: Vec<Vec<ExpertGroup>> = vec![Vec::new(); roster.nodes.len()];
    let layer = &roster.experts[batch.layer.index()];
    for (expert, (tokens, entity)) in tokens_of.iter().zip(layer).enumerate() {
        let hosts = &experts.get(*entity).expect("the roster is complete").0;
        for (turn, host) in hosts.iter().enumerate() {
            let dealt: Vec<TokenId> =
                tokens.iter().skip(turn).step_by(hosts.len()).copied().collect();
            if !dealt.is_empty() {
                groups_of[host.index()]
                    .push(ExpertGroup { expert: ExpertId::from_index(expert), tokens: dealt });
            }
        }
    }
    let mut orders = Orders { step: batch.step, layer: batch.layer, nodes: Vec::new() };
    for (node, groups) in groups_of.into_iter().enumerate().filter(|(_, groups)| !groups.is_empty())
    {
        let order = NodeOrder { node: NodeId::from_index(node), groups };
        let mut work = nodes.get_mut(roster.nodes[node]).expect("the roster is complete");
        work.pairs += order.pairs() as u64;
        orders.nodes.push(order);
    }
    commands.insert_resource(Outbox(orders));
}
