//! What orders asked and how long they took, for `nashflock fit`.

use crate::dispatch::work_of;
use crate::results::{ObservedRow, ResultsError, RunDir, TableWriter};
use crate::run::rounds::Round;
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId};
use std::ops::Range;
use std::sync::Arc;

/// Writes `observed.parquet`; holds the rows of one step.
pub(in crate::run) struct Sampler {
    table: TableWriter<ObservedRow>,
    /// Encoded bytes of each layer's experts.
    expert_bytes: Vec<Vec<u64>>,
    width: usize,
    step: Vec<ObservedRow>,
    /// When each round of the step had all its answers, and how long the last took, ns.
    rounds: Vec<(u64, u64)>,
    failure: Option<ResultsError>,
}

impl Sampler {
    /// # Errors
    /// The table cannot be made.
    pub(in crate::run) fn start(
        dir: &RunDir,
        experts: &[Vec<Arc<Expert>>],
        width: usize,
    ) -> Result<Self, ResultsError> {
        let bytes = |layer: &Vec<Arc<Expert>>| layer.iter().map(|e| e.encoded_bytes()).collect();
        Ok(Self {
            table: dir.table()?,
            expert_bytes: experts.iter().map(bytes).collect(),
            width,
            step: Vec::new(),
            rounds: Vec::new(),
            failure: None,
        })
    }

    pub(in crate::run) fn round(&mut self, round: &Round<'_>) {
        let (layer, orders) = (round.layer, &round.decision.orders.nodes);
        let last_ns = round.legs.iter().map(|(_, leg_ns)| *leg_ns).max().unwrap_or(0);
        self.rounds.push((round.times.replied_ns, last_ns));
        let of = |list: &[_], node| {
            list.iter().find(|(of, _)| *of == node).map(|(_, ns): &(_, u64)| *ns)
        };
        for order in orders {
            let (leg_ns, compute_ns) = (of(round.legs, order.node), of(round.computed, order.node));
            let Some((leg_ns, compute_ns)) = leg_ns.zip(compute_ns) else { continue };
            let sums = round.decision.gates.is_some();
            let work = work_of(order, self.width, sums, |expert| self.bytes(layer, expert));
            let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            self.step.push(ObservedRow {
                step: u64::from(round.step.0),
                layer: layer.0,
                node: order.node.0,
                orders: small(orders.len()),
                tokens: (round.output.len() / self.width) as u64,
                pairs: work.pairs,
                experts: small(order.groups.len()),
                weight_bytes: work.weight_bytes,
                pass_bytes: work.pass_bytes,
                request_bytes: work.request_bytes,
                reply_bytes: work.reply_bytes,
                compute_ns,
                leg_ns,
                coordinator_ns: 0,
            });
        }
    }

    /// A step has ended: what was in it but for the nodes is the coordinator's time.
    pub(in crate::run) fn step_ended(&mut self, times_ns: &Range<u64>) {
        let mut from_ns = times_ns.start;
        let mut own_ns: Vec<u64> = Vec::with_capacity(self.rounds.len());
        for (replied_ns, last_ns) in self.rounds.drain(..) {
            own_ns.push(replied_ns.saturating_sub(from_ns).saturating_sub(last_ns));
            from_ns = replied_ns;
        }
        if let Some(first) = own_ns.first_mut() {
            *first += times_ns.end.saturating_sub(from_ns);
        }
        for mut row in self.step.drain(..) {
            row.coordinator_ns = own_ns.get(row.layer as usize).copied().unwrap_or(0);
            if let Err(error) = self.table.push(row) {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// # Errors
    /// The first of all.
    pub(in crate::run) fn finish(self) -> Result<(), ResultsError> {
        self.failure.map_or_else(|| self.table.finish(), Err)
    }

    fn bytes(&self, layer: LayerId, expert: ExpertId) -> u64 {
        let layer = self.expert_bytes.get(layer.index());
        layer.and_then(|layer| layer.get(expert.index())).copied().unwrap_or(0)
    }
}
