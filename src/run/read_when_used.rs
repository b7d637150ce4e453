//! The f32 experts of a source, read from it for each batch anew: a thread holds one of them at a time.

use crate::dispatch::{Dispatch, DispatchError, Served, ShardAssignment};
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use crate::source::ScoreSource;
use crate::wire;
use agents::expert::{BitWidth, Expert};
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::orders::{ExpertGroup, NodeReply, Orders, PairGates, Replies};
use rayon::prelude::*;

/// Reads one expert, in f32.
///
/// # Errors
/// When it cannot be read.
pub(super) fn full_expert(
    source: &dyn ScoreSource,
    place: (LayerId, ExpertId),
) -> Result<Expert, CheckpointError> {
    // The length of a group means nothing to f32.
    expert_at(source, place, [BitWidth::Full; 3], 0)
}

/// Reads one expert and gives its gate, up and down these bits.
///
/// # Errors
/// When it cannot be read.
pub(super) fn expert_at(
    source: &dyn ScoreSource,
    (layer, expert): (LayerId, ExpertId),
    bits: [BitWidth; 3],
    group: usize,
) -> Result<Expert, CheckpointError> {
    let ExpertWeights { shape, gate, up, down } = source.expert(layer, expert)?;
    Ok(Expert::quantize_parts(shape, [&gate, &up, &down], bits, group))
}

/// Computes on the rayon pool of the thread that polls [`Dispatch::send`]. The replies are those of
/// [`crate::dispatch::InProcess`] with all experts in f32, bit for bit.
pub(super) struct ReadWhenUsed<'a> {
    /// Whose experts.
    pub(super) experts: Box<dyn ScoreSource + 'a>,
}

impl ReadWhenUsed<'_> {
    /// `out`: `[tokens of the group, width]`.
    fn compute(
        &self,
        layer: LayerId,
        group: &ExpertGroup,
        (hidden, width): (&[f32], usize),
        out: &mut [f32],
    ) -> Result<(), String> {
        let expert = full_expert(self.experts.as_ref(), (layer, group.expert));
        let expert = expert.map_err(|error| error.to_string())?;
        let rows = group.tokens.iter().map(|token| &hidden[token.index() * width..][..width]);
        let rows: Vec<f32> = rows.flatten().copied().collect();
        expert.forward(&rows, out);
        Ok(())
    }
}

impl Dispatch for ReadWhenUsed<'_> {
    async fn load(&mut self, _: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        Ok(())
    }

    async fn replace(&mut self, _: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        Ok(0)
    }

    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        assert!(gates.is_none(), "what is played here is combined here");
        let mut nodes = Vec::with_capacity(orders.nodes.len());
        for order in &orders.nodes {
            let mut outputs = vec![0.0; order.pairs() * width];
            let mut rest = outputs.as_mut_slice();
            let mut groups = Vec::with_capacity(order.groups.len());
            for group in &order.groups {
                let (part, after) = rest.split_at_mut(group.tokens.len() * width);
                groups.push((group, part));
                rest = after;
            }
            let compute = |(group, out)| self.compute(orders.layer, group, (hidden, width), out);
            let computed = groups.into_par_iter().map(compute).collect::<Result<(), _>>();
            let finite = |()| {
                let checked = wire::check_finite("output", bytemuck::cast_slice(&outputs), width);
                checked.map_err(|error| error.detail)
            };
            let refused = |detail| DispatchError::Refused { node: order.node, detail };
            computed.and_then(finite).map_err(refused)?;
            nodes.push(NodeReply { node: order.node, outputs, compute_ns: 0 });
        }
        Ok(Replies { nodes })
    }

    fn is_available(&self, _: NodeId) -> bool {
        true
    }

    fn so_far(&self) -> Served {
        Served::default()
    }

    async fn close(self) -> Served {
        Served::default()
    }
}
