//! The published expert-parallelism load balancer, as the baseline.

use super::{Placement, PlacementError};
use crate::ids::{ExpertId, NodeId};

/// What EPLB is asked to fill. All divisions below must be exact: they are its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EplbShape {
    /// Copies of all experts together, at least one an expert; a multiple of `gpus`.
    pub replicas: usize,
    /// Groups of consecutive experts of one size. When they divide over `servers`, an expert's
    /// copies all stay on the server of its group; otherwise groups and servers are ignored.
    pub groups: usize,
    /// Machines with a fast network inside; divide `gpus`.
    pub servers: usize,
    /// Devices: the nodes of the dispatch game.
    pub gpus: usize,
}

/// EPLB's answer for one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eplb {
    /// The expert in each slot, GPU by GPU (`phy2log`): `[replicas]`.
    pub slots: Vec<ExpertId>,
    /// Copies of each expert (`logcnt`): `[E]`.
    pub copies: Vec<u32>,
    gpus: usize,
}

/// Why EPLB is undefined for a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EplbError {
    /// A division leaves a rest.
    #[error("{what} do not divide evenly: {dividend} over {divisor}")]
    Division {
        /// What over what.
        what: &'static str,
        /// Their number.
        dividend: usize,
        /// Over how many.
        divisor: usize,
    },
    /// Some expert would have no copy.
    #[error("{replicas} replicas cannot hold {experts} experts: ask for at least one each")]
    Replicas {
        /// Asked for.
        replicas: usize,
        /// E.
        experts: usize,
    },
}

impl Eplb {
    /// The load of each GPU when an expert's load is split evenly over its copies, as EPLB and its
    /// users assume: `[gpus]`.
    ///
    /// # Panics
    /// When there is not one load an expert.
    #[must_use]
    pub fn equal_split_loads(&self, loads: &[f64]) -> Vec<f64> {
        assert_eq!(loads.len(), self.copies.len(), "one load an expert");
        let even =
            |expert: &ExpertId| loads[expert.index()] / f64::from(self.copies[expert.index()]);
        self.slots
            .chunks(self.slots.len() / self.gpus)
            .map(|gpu| gpu.iter().map(even).sum())
            .collect()
    }

    /// The nodes of each expert. EPLB may put two copies of an expert on one GPU; they count once.
    ///
    /// # Panics
    /// Never: every expert has a copy.
    #[must_use]
    pub fn placement(&self) -> Placement {
        let mut hosts = vec![Vec::new(); self.copies.len()];
        let per_gpu = self.slots.len() / self.gpus;
        for (slot, expert) in self.slots.iter().enumerate() {
            hosts[expert.index()].push(NodeId::from_index(slot / per_gpu));
        }
        // Slots ascend by GPU, so equal hosts are neighbours.
        hosts.iter_mut().for_each(Vec::dedup);
        let placement: Result<_, PlacementError> = Placement::new(self.gpus, &hosts);
        placement.expect("every expert has a copy and every slot a GPU")
    }
}

/// Places one layer as published (github.com/deepseek-ai/EPLB, README and `eplb.py` of March 2025,
/// `rebalance_experts`): pack groups to servers, copy experts within a server, pack copies to
/// GPUs. Computed in f32 like the original, so that ties fall the same way; among equals the first
/// expert or pack wins.
///
/// # Errors
/// The first of the published conditions that fails.
///
/// # Panics
/// When `loads` is empty, holds a value that is negative or not finite, or the shape has a zero.
pub fn eplb(loads: &[f64], shape: EplbShape) -> Result<Eplb, EplbError> {
    assert!(loads.iter().all(|load| load.is_finite() && *load >= 0.0), "loads are amounts");
    assert!(!loads.is_empty() && shape.groups > 0 && shape.servers > 0 && shape.gpus > 0);
    #[expect(clippy::cast_possible_truncation, reason = "the original computes in f32")]
    let loads: Vec<f32> = loads.iter().map(|load| *load as f32).collect();
    let hierarchical = shape.groups.is_multiple_of(shape.servers);
    let (groups, servers) = if hierarchical { (shape.groups, shape.servers) } else { (1, 1) };
    let group_size = divide("experts over groups", loads.len(), groups)?;
    let gpus = divide("GPUs over servers", shape.gpus, servers)?;
    divide("replicas over GPUs", shape.replicas, shape.gpus)?;
    if shape.replicas < loads.len() {
        return Err(EplbError::Replicas { replicas: shape.replicas, experts: loads.len() });
    }

    let group_loads: Vec<f32> = loads.chunks(group_size).map(|group| group.iter().sum()).collect();
    let mut slots = Vec::with_capacity(shape.replicas);
    let mut copies = vec![0; loads.len()];
    for groups in packed(&group_loads, servers) {
        let experts: Vec<usize> = groups
            .into_iter()
            .flat_map(|group| group * group_size..(group + 1) * group_size)
            .collect();
        let server_loads: Vec<f32> = experts.iter().map(|expert| loads[*expert]).collect();
        let (replicas, counts) = replicated(&server_loads, shape.replicas / servers);
        let even: Vec<f32> =
            replicas.iter().map(|at| server_loads[*at] / counts[*at] as f32).collect();
        for replica in packed(&even, gpus).into_iter().flatten() {
            slots.push(ExpertId::from_index(experts[replicas[replica]]));
        }
        for (expert, count) in experts.iter().zip(counts) {
            copies[*expert] = count;
        }
    }
    Ok(Eplb { slots, copies, gpus: shape.gpus })
}

fn divide(what: &'static str, dividend: usize, divisor: usize) -> Result<usize, EplbError> {
    if dividend.is_multiple_of(divisor) {
        Ok(dividend / divisor)
    } else {
        Err(EplbError::Division { what, dividend, divisor })
    }
}

/// Items in packs of one size, the heaviest item first to the lightest pack with room
/// (`balanced_packing`): the items of each pack in the order they came.
fn packed(loads: &[f32], packs: usize) -> Vec<Vec<usize>> {
    let per_pack = loads.len() / packs;
    if per_pack == 1 {
        return (0..packs).map(|item| vec![item]).collect();
    }
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|a, b| loads[*b].total_cmp(&loads[*a]));
    let mut filled = vec![Vec::with_capacity(per_pack); packs];
    let mut weights = vec![0.0_f32; packs];
    for item in order {
        let lightest = (0..packs)
            .filter(|pack| filled[*pack].len() < per_pack)
            .min_by(|a, b| weights[*a].total_cmp(&weights[*b]))
            .expect("there is room for every item");
        filled[lightest].push(item);
        weights[lightest] += loads[item];
    }
    filled
}

/// One copy of each expert, then each further copy to the expert with the largest load a copy
/// (`replicate_experts`): the expert of each copy and the number of copies of each expert.
fn replicated(loads: &[f32], replicas: usize) -> (Vec<usize>, Vec<u32>) {
    let mut experts: Vec<usize> = (0..loads.len()).collect();
    let mut copies = vec![1_u32; loads.len()];
    while experts.len() < replicas {
        let each = |at: &usize| loads[*at] / copies[*at] as f32;
        // `max_by` keeps the last of equals, so ask from the end for the first.
        let hottest = (0..loads.len()).rev().max_by(|a, b| each(a).total_cmp(&each(b)));
        let hottest = hottest.expect("a server has experts");
        copies[hottest] += 1;
        experts.push(hottest);
    }
    (experts, copies)
}
