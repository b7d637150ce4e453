//! The rounds of one batch: decide → send → absorb, layer by layer.

use crate::dispatch::{Dispatch, DispatchError, NodeStats, Served};
use crate::measure::Clock;
use crate::source::{LayerInput, ScoreSource};
use agents::game::GameError;
use agents::ids::{LayerId, NodeId, RequestId, StepId};
use agents::orders::{NodeReply, Orders};
use agents::round::{AbsorbError, Arena, Decision, Perception};
use std::fmt;

/// One round as it is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round<'a> {
    /// The batch.
    pub step: StepId,
    /// The layer.
    pub layer: LayerId,
    /// What the experts computed on, and the router logits.
    pub input: &'a LayerInput,
    /// What was played.
    pub decision: &'a Decision,
    /// The layer's output `[T, width]`.
    pub output: &'a [f32],
    /// Time from the orders to the combined output, ns.
    pub dispatch_ns: u64,
    /// When its parts were done.
    pub times: RoundTimes,
    /// How long each node took, [`Dispatch::legs`].
    pub legs: &'a [(NodeId, u64)],
    /// Of it, computing, ns.
    pub computed: &'a [(NodeId, u64)],
    /// What there is to see of the nodes right after it.
    pub nodes: AskNodes<'a>,
}

/// Asks for what there is to see of the nodes, which takes a moment where they are many.
#[derive(Clone, Copy)]
pub(super) struct AskNodes<'a>(&'a dyn Fn() -> NodesNow);

impl<'a> AskNodes<'a> {
    pub(super) fn new(ask: &'a dyn Fn() -> NodesNow) -> Self {
        Self(ask)
    }

    pub(super) fn now(&self) -> NodesNow {
        (self.0)()
    }
}

impl fmt::Debug for AskNodes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AskNodes")
    }
}

/// What there is to see of the nodes.
pub(super) struct NodesNow {
    pub(super) served: Served,
    /// Of each node of `served`, whether it gets work, and the pairs that it has to answer.
    pub(super) load: Vec<(bool, f64)>,
}

impl NodesNow {
    pub(super) fn of(dispatch: &impl Dispatch) -> Self {
        let served = dispatch.so_far();
        let load = |stats: &NodeStats| {
            (dispatch.is_available(stats.node), dispatch.node_load(stats.node).pending_pairs)
        };
        Self { load: served.nodes.iter().map(load).collect(), served }
    }
}

/// When the parts of a round began and ended, on the run's clock, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTimes {
    /// The decision begins.
    pub(super) decide_ns: u64,
    /// The orders go out.
    pub(super) sent_ns: u64,
    /// All replies are here.
    pub(super) replied_ns: u64,
    /// They are combined.
    pub(super) combined_ns: u64,
}

/// Why a round ended the run.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The scores cannot be played.
    #[error("step {step}, layer {layer}: {source}")]
    Game {
        /// The batch.
        step: StepId,
        /// The layer.
        layer: LayerId,
        /// What is wrong with them.
        source: GameError,
    },
    /// A node failed.
    #[error("step {step}, layer {layer}: {source}")]
    Dispatch {
        /// The batch.
        step: StepId,
        /// The layer.
        layer: LayerId,
        /// Which, and how.
        source: DispatchError,
    },
    /// A node's reply does not answer its order.
    #[error("step {step}, layer {layer}: {source}")]
    Absorb {
        /// The batch.
        step: StepId,
        /// The layer.
        layer: LayerId,
        /// What is wrong with it.
        source: AbsorbError,
    },
}

/// Plays one batch through all layers and gives the summed loss of each of its requests, where text
/// is scored. `watch` sees every round and the arena right after it.
///
/// # Errors
/// The first round that fails.
pub(super) async fn play_batch(
    source: &mut dyn ScoreSource,
    arena: &mut Arena,
    dispatch: &mut impl Dispatch,
    clock: &Clock,
    (step, requests): (StepId, &[RequestId]),
    watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<Option<Vec<f64>>, RoundError> {
    let tokens = source.shape().tokens_per_request;
    let seats: Vec<RequestId> =
        requests.iter().flat_map(|request| std::iter::repeat_n(*request, tokens)).collect();
    source.begin(requests);
    play_layers(source, arena, dispatch, clock, (step, &seats), watch).await?;
    Ok(source.finish())
}

/// Plays what the source has taken up through all layers; `seats` has the request of each row.
///
/// # Errors
/// The first round that fails.
pub(super) async fn play_layers(
    source: &mut dyn ScoreSource,
    arena: &mut Arena,
    dispatch: &mut impl Dispatch,
    clock: &Clock,
    (step, seats): (StepId, &[RequestId]),
    mut watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<(), RoundError> {
    let shape = source.shape();
    for layer in (0..shape.layers).map(LayerId::from_index) {
        let input = source.perceive(layer);
        for ((layer, expert), hosts) in dispatch.moved().into_iter().flatten() {
            arena.set_hosts(layer, expert, hosts);
        }
        arena.set_available(|node| dispatch.is_available(node));
        arena.set_node_loads(|node| dispatch.node_load(node));
        let (logits, hidden) = (&input.logits, &input.hidden);
        let perception = Perception { step, layer, requests: seats, logits, hidden };
        let decide_ns = clock.now_ns();
        let decision =
            arena.decide(&perception).map_err(|source| RoundError::Game { step, layer, source })?;

        let sent_ns = clock.now_ns();
        let orders: Orders = decision.orders.clone();
        let replies = dispatch
            .deliver(&orders, decision.gates.as_ref(), &input.hidden, shape.width)
            .await
            .map_err(|source| RoundError::Dispatch { step, layer, source })?;
        let replied_ns = clock.now_ns();
        let spent = |reply: &NodeReply| (reply.node, reply.compute_ns);
        let computed: Vec<(NodeId, u64)> = replies.nodes.iter().map(spent).collect();
        let output = arena
            .absorb(orders, replies, shape.width)
            .map_err(|source| RoundError::Absorb { step, layer, source })?;
        let combined_ns = clock.now_ns();

        let nodes = || NodesNow::of(dispatch);
        let round = Round {
            step,
            layer,
            input: &input,
            decision: &decision,
            output: &output,
            dispatch_ns: combined_ns - sent_ns,
            times: RoundTimes { decide_ns, sent_ns, replied_ns, combined_ns },
            legs: dispatch.legs(),
            computed: &computed,
            nodes: AskNodes::new(&nodes),
        };
        watch(&round, arena);
        source.absorb(layer, &output);
    }
    Ok(())
}
