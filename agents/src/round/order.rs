//! Order: choices become one message a node.

use crate::components::{Hosts, Node, NodeWork};
use crate::game::Choices;
use crate::ids::{ExpertId, NodeId, TokenId};
use crate::orders::{ExpertGroup, NodeOrder, Orders};
use crate::placement::{
    NodeLoad, Placement, ReplicaChoice, choose_copies, dispatch_tokens, tight_set_bound,
};
use crate::report::NodeLoadReport;
use crate::rng::stream;
use crate::world::{Batch, NodeLoads, Outbox, Replicas, Response, Roster};
use bevy_ecs::prelude::{Commands, Query, Res};

/// Groups the tokens by expert and gives a replicated expert's tokens to its hosts: by plan so that the
/// largest node load is least, each host getting the next of the tokens in ascending order, else all to the
/// one that the rule in [`Replicas`] chooses. Hosts that are not available count only where an expert has no
/// other.
pub(super) fn write_orders(
    mut commands: Commands<'_, '_>,
    batch: Res<'_, Batch>,
    response: Res<'_, Response>,
    roster: Res<'_, Roster>,
    replicas: Res<'_, Replicas>,
    experts: Query<'_, '_, &Hosts>,
    mut nodes: Query<'_, '_, (&Node, &mut NodeWork)>,
) {
    let tokens_of = tokens_by_expert(&response.0.choices, batch.experts);
    let loads: Vec<u32> = tokens_of
        .iter()
        .map(|tokens| u32::try_from(tokens.len()).expect("token ids have 32 bits"))
        .collect();
    let hosts: Vec<Vec<NodeId>> = roster.experts[batch.layer.index()]
        .iter()
        .map(|entity| &experts.get(*entity).expect("the roster is complete").0)
        .map(|hosts| {
            let available = |host: &NodeId| {
                nodes.get(roster.nodes[host.index()]).expect("the roster is complete").0.available
            };
            let serving: Vec<NodeId> = hosts.iter().copied().filter(available).collect();
            if serving.is_empty() { hosts.clone() } else { serving }
        })
        .collect();
    let placement = Placement::new(roster.nodes.len(), &hosts)
        .expect("every expert has hosts, distinct nodes of the roster");
    let split = dispatch_tokens(&placement, &loads).expect("there is one load an expert");

    let shares = match replicas.choice {
        ReplicaChoice::Planned => split.shares,
        rule => {
            let (step, layer) = (batch.step, batch.layer);
            let mut rng = stream(replicas.seed, &format!("replica choice {step} {layer}"));
            let mut known = replicas.loads.clone();
            known.resize(placement.nodes(), NodeLoad::default());
            choose_copies(rule, &placement, &loads, &known, step.0 as usize, &mut rng)
        }
    };
    let groups_of = dealt(&placement, &shares, &tokens_of);
    let mut orders = Orders { step: batch.step, layer: batch.layer, nodes: Vec::new() };
    let mut node_loads = vec![0; roster.nodes.len()];
    for (node, groups) in groups_of.into_iter().enumerate().filter(|(_, groups)| !groups.is_empty())
    {
        let order = NodeOrder { node: NodeId::from_index(node), groups };
        let (_, mut work) = nodes.get_mut(roster.nodes[node]).expect("the roster is complete");
        node_loads[node] = order.pairs() as u64;
        work.pairs += node_loads[node];
        orders.nodes.push(order);
    }
    let real: Vec<f64> = loads.iter().map(|load| f64::from(*load)).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole counts")]
    let (lower_bound, max_even_split) = (
        tight_set_bound(&placement, &real, &split.tight).ceil() as u64,
        max_even_split(&placement, &real) as u64,
    );
    commands.insert_resource(Outbox(orders));
    commands.insert_resource(NodeLoads(NodeLoadReport {
        loads: node_loads,
        lower_bound,
        max_even_split,
    }));
}

/// The tokens that chose each expert, ascending.
fn tokens_by_expert(choices: &Choices, experts: usize) -> Vec<Vec<TokenId>> {
    let mut tokens_of = vec![Vec::new(); experts];
    for token in 0..choices.tokens() {
        for expert in choices.row(token) {
            tokens_of[expert.index()].push(TokenId::from_index(token));
        }
    }
    tokens_of
}

/// The groups of each node, `[N]`: every copy takes its share of the expert's tokens, in order.
fn dealt(
    placement: &Placement,
    shares: &[u32],
    tokens_of: &[Vec<TokenId>],
) -> Vec<Vec<ExpertGroup>> {
    let mut groups_of = vec![Vec::new(); placement.nodes()];
    for (expert, tokens) in (0..).map(ExpertId).zip(tokens_of) {
        let mut rest = tokens.as_slice();
        let shares = &shares[placement.copies_of(expert)];
        for (host, share) in placement.hosts(expert).iter().zip(shares) {
            let (tokens, after) = rest.split_at(*share as usize);
            rest = after;
            if !tokens.is_empty() {
                groups_of[host.index()].push(ExpertGroup { expert, tokens: tokens.to_vec() });
            }
        }
        assert!(rest.is_empty(), "the shares of an expert add up to its load");
    }
    groups_of
}

/// The largest node load when each expert's load is split evenly over its hosts, rounded up: no
/// split of whole tokens that aims at even shares is lower.
fn max_even_split(placement: &Placement, loads: &[f64]) -> f64 {
    /// More than the sums lose by rounding and less than a part of a token that matters.
    const ROUNDING: f64 = 1e-9;
    let mut node_loads = vec![0.0; placement.nodes()];
    for (expert, load) in (0..).map(ExpertId).zip(loads) {
        let hosts = placement.hosts(expert);
        hosts.iter().for_each(|host| node_loads[host.index()] += load / hosts.len() as f64);
    }
    (node_loads.into_iter().fold(0.0, f64::max) - ROUNDING).ceil()
}
