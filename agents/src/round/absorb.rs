//! Absorb: replies become the layer's output, summed in the order of our ids.

use crate::components::NodeWork;
use crate::game::Choices;
use crate::ids::{NodeId, TokenId};
use crate::orders::{Combine, Orders, Replies};
use crate::routing::gates;
use crate::world::{Batch, Inbox, Perceived, Response, Roster, Rules};
use bevy_ecs::prelude::{Query, Res, ResMut};
use rayon::prelude::*;

/// Tokens that one task combines.
const TOKEN_BLOCK: usize = 128;

/// Why replies cannot be combined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbsorbError {
    /// Not one reply for each order, in the same order.
    #[error("replies came from {got:?} but orders went to {asked:?}")]
    Nodes {
        /// Senders of the replies.
        got: Vec<NodeId>,
        /// Addressees of the orders.
        asked: Vec<NodeId>,
    },
    /// A reply has the wrong number of values.
    #[error("node {node} answered {got} values where {asked} were asked for")]
    Length {
        /// The sender.
        node: NodeId,
        /// Values received.
        got: usize,
        /// Values asked for: pairs × width, or tokens × width where nodes sum.
        asked: usize,
    },
}

/// Checks that every ordered pair has exactly one row in the replies, or where nodes sum every token of
/// an order.
pub(super) fn check(
    orders: &Orders,
    replies: &Replies,
    width: usize,
    combine: Combine,
) -> Result<(), AbsorbError> {
    let asked: Vec<NodeId> = orders.nodes.iter().map(|order| order.node).collect();
    let got: Vec<NodeId> = replies.nodes.iter().map(|reply| reply.node).collect();
    if asked != got {
        return Err(AbsorbError::Nodes { got, asked });
    }
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        let asked = width
            * match combine {
                Combine::Exact => order.pairs(),
                Combine::AtWorker => order.tokens().len(),
            };
        if reply.outputs.len() != asked {
            return Err(AbsorbError::Length { node: order.node, got: reply.outputs.len(), asked });
        }
    }
    Ok(())
}

/// `y_t = Σ_{e∈S_t} g_te · f_e(x_t)`, in ascending order of expert, or of node where nodes sum.
pub(super) fn combine_replies(
    mut inbox: ResMut<'_, Inbox>,
    batch: Res<'_, Batch>,
    perceived: Res<'_, Perceived>,
    response: Res<'_, Response>,
    rules: Res<'_, Rules>,
    roster: Res<'_, Roster>,
    mut nodes: Query<'_, '_, &mut NodeWork>,
) {
    let Inbox { orders, replies, width, combine, combined } = &mut *inbox;
    let (width, choices) = (*width, &response.0.choices);
    combined.resize(batch.tokens() * width, 0.0);
    match combine {
        Combine::Exact => {
            let rows = rows_by_pair(orders, replies, width, choices);
            let gates = gates(&perceived.scores, choices, &rules.routing);
            each_token(combined, width, |token, out| {
                let pairs = choices.pairs(token);
                for (row, gate) in rows[pairs.clone()].iter().zip(&gates[pairs]) {
                    out.iter_mut().zip(*row).for_each(|(y, value)| *y += gate * value);
                }
            });
        }
        Combine::AtWorker => {
            assert_ordered_once(orders, choices);
            let sums = sums_by_token(orders, replies, width, batch.tokens());
            each_token(combined, width, |token, out| {
                for row in &sums[token] {
                    out.iter_mut().zip(*row).for_each(|(y, value)| *y += value);
                }
            });
        }
    }
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        let mut work =
            nodes.get_mut(roster.nodes[reply.node.index()]).expect("the roster is complete");
        work.combined += order.pairs() as u64;
        // A peer states the time: whatever it says, the sum does not overflow.
        work.compute_ns = work.compute_ns.saturating_add(reply.compute_ns);
    }
}

/// Fills the rows of `out`, `[T, width]`.
fn each_token(out: &mut [f32], width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
    out.par_chunks_mut(TOKEN_BLOCK * width).enumerate().for_each(|(block, out)| {
        for (offset, out) in out.chunks_mut(width).enumerate() {
            fill(block * TOKEN_BLOCK + offset, out);
        }
    });
}

/// # Panics
/// When a chosen pair is not ordered exactly once. That its node sums it exactly once is what the reply
/// states, and the dispatcher checks.
fn assert_ordered_once(orders: &Orders, choices: &Choices) {
    let mut ordered = vec![0_u32; choices.experts().len()];
    for group in orders.nodes.iter().flat_map(|order| &order.groups) {
        for token in group.tokens.iter().map(|token| token.index()) {
            let slot = choices.row(token).binary_search(&group.expert);
            ordered[choices.pairs(token).start + slot.expect("ordered pairs were chosen")] += 1;
        }
    }
    assert!(ordered.iter().all(|count| *count == 1), "every chosen pair is ordered once");
}

/// The sums of each token, in ascending order of node.
fn sums_by_token<'a>(
    orders: &Orders,
    replies: &'a Replies,
    width: usize,
    tokens: usize,
) -> Vec<Vec<&'a [f32]>> {
    let mut sums = vec![Vec::new(); tokens];
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        for (token, row) in order.tokens().iter().zip(reply.outputs.chunks_exact(width)) {
            sums[token.index()].push(row);
        }
    }
    sums
}

/// Where each pair's output lies, by token and ascending expert.
///
/// # Panics
/// When a pair is answered twice or not at all: what is dispatched is combined, exactly once.
fn rows_by_pair<'a>(
    orders: &Orders,
    replies: &'a Replies,
    width: usize,
    choices: &Choices,
) -> Vec<&'a [f32]> {
    const MISSING: &[f32] = &[];
    let mut rows = vec![MISSING; choices.experts().len()];
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        let mut outputs = reply.outputs.chunks(width);
        for group in &order.groups {
            for TokenId(token) in &group.tokens {
                let token = *token as usize;
                let chosen = choices.row(token);
                let slot = chosen.binary_search(&group.expert).expect("ordered pairs were chosen");
                let row = &mut rows[choices.pairs(token).start + slot];
                assert!(row.is_empty(), "token {token} expert {} answered twice", group.expert);
                *row = outputs.next().expect("lengths were checked");
            }
        }
    }
    assert!(rows.iter().all(|row| row.len() == width), "every dispatched pair is combined once");
    rows
}
