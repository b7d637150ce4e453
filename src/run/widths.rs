//! Widths of the experts of blocks: who has which, and what that comes to.

use super::virtual_nodes::whole;
use crate::results::BlockWidthFigures;
use crate::scenario::file::{BlockWidth, Blocks, WidthsTo};
use agents::cluster::{self as virtual_cluster, ExpertBytes, Settings, dealt_widths};
use agents::ids::ExpertId;
use std::collections::BTreeMap;

/// Units that widths are counted in: a sixteenth of a bit of each weight.
const UNITS_PER_BIT: f64 = 16.0;

/// Bytes of experts of so many weights, whose popularity is given.
pub(super) fn expert_bytes(blocks: &Blocks, popularity: &[f64], weights: f64) -> ExpertBytes {
    if blocks.widths.is_empty() {
        return ExpertBytes::All(whole(weights * blocks.weight_bits / 8.0));
    }
    let mut widths: Vec<BlockWidth> = blocks.widths.clone();
    widths.sort_by(|a, b| a.bits.total_cmp(&b.bits));
    let shares: Vec<f64> = widths.iter().map(|width| width.share).collect();
    let to = match blocks.widths_to {
        WidthsTo::Popular => virtual_cluster::WidthsTo::Popular,
        WidthsTo::Rare => virtual_cluster::WidthsTo::Rare,
        WidthsTo::Even => virtual_cluster::WidthsTo::Even,
    };
    let units = |width: usize| -> u16 {
        u16::try_from(whole(widths[width].bits * UNITS_PER_BIT)).expect("at most 32 bits")
    };
    ExpertBytes::Each {
        units: dealt_widths(popularity, &shares, to).into_iter().map(units).collect(),
        unit_bytes: weights / (8.0 * UNITS_PER_BIT),
    }
}

/// By width; none where all experts have the same by `weight_bits`.
pub(super) fn figures(cluster: &Settings) -> Vec<BlockWidthFigures> {
    let ExpertBytes::Each { units, .. } = &cluster.expert_bytes else { return Vec::new() };
    let mut of_width = BTreeMap::<u16, BlockWidthFigures>::new();
    for (expert, units) in units.iter().enumerate() {
        let id = ExpertId::from_index(expert);
        let figures = of_width.entry(*units).or_insert_with(|| BlockWidthFigures {
            bits: f64::from(*units) / UNITS_PER_BIT,
            service_ns: cluster.hardware.service.mean_ns(&cluster.work(1, *units)),
            ..BlockWidthFigures::default()
        });
        let copies = cluster.copies.hosts(id).len() as u64;
        figures.experts += 1;
        figures.copies += copies;
        figures.resident_bytes += copies * cluster.expert_bytes.of(id);
        figures.popularity += cluster.popularity.shares()[expert];
    }
    of_width.into_values().collect()
}
