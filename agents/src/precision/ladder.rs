//! Each unit's options that are worth having, in order of size, and greedy steps between them.

use std::collections::BinaryHeap;

use rand::RngExt as _;

use super::Unit;

/// One option of a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rung {
    pub(super) option: usize,
    pub(super) bytes: u64,
    pub(super) cost: f64,
}

/// A move of one unit, ordered by its rate; of equal rates the lowest unit comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) rate: f64,
    pub(super) unit: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rate.total_cmp(&other.rate).then(other.unit.cmp(&self.unit))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

/// A unit's options without those that are neither smaller nor cheaper than another: bytes rise and
/// costs fall strictly.
pub(super) fn rungs(unit: &Unit) -> Vec<Rung> {
    let options = unit.costs.iter().zip(&unit.bytes).enumerate();
    let mut sorted: Vec<Rung> = options
        .map(|(option, (cost, bytes))| Rung { option, bytes: *bytes, cost: *cost })
        .collect();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
    let mut kept: Vec<Rung> = Vec::with_capacity(sorted.len());
    for rung in sorted {
        if kept.last().is_none_or(|last| rung.cost < last.cost) {
            kept.push(rung);
        }
    }
    kept
}

/// Cost that a step between two rungs saves for each byte it takes.
pub(super) fn rate(from: &Rung, to: &Rung) -> f64 {
    (from.cost - to.cost) / (to.bytes - from.bytes) as f64
}

/// The ladders of all units. A level is a place on a unit's ladder.
pub(super) struct Ladders(pub(super) Vec<Vec<Rung>>);

impl Ladders {
    pub(super) fn new(units: &[Unit]) -> Self {
        Self(units.iter().map(rungs).collect())
    }

    /// The options at these levels.
    pub(super) fn options(&self, levels: &[usize]) -> Vec<usize> {
        self.0.iter().zip(levels).map(|(ladder, level)| ladder[*level].option).collect()
    }

    /// The nearest levels to a point of real ones.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a level lies between 0 and the number of options"
    )]
    pub(super) fn levels_at(&self, point: &[f64]) -> Vec<usize> {
        let level = |(x, ladder): (&f64, &Vec<Rung>)| (x.round() as usize).min(ladder.len() - 1);
        point.iter().zip(&self.0).map(level).collect()
    }

    /// The highest level of each unit that is not larger than the given option: it costs no more.
    pub(super) fn levels_of(&self, units: &[Unit], option: usize) -> Vec<usize> {
        let level = |(ladder, unit): (&Vec<Rung>, &Unit)| {
            ladder.partition_point(|rung| rung.bytes <= unit.bytes[option]).saturating_sub(1)
        };
        self.0.iter().zip(units).map(level).collect()
    }

    /// Sum of the costs, in the order of the units, and of the bytes.
    pub(super) fn sums(&self, levels: &[usize]) -> (f64, u128) {
        let chosen = self.0.iter().zip(levels).map(|(ladder, level)| ladder[*level]);
        chosen.fold((0.0, 0), |(cost, bytes), rung| {
            (cost + rung.cost, bytes + u128::from(rung.bytes))
        })
    }

    /// Brings levels within the budget by local contests alone, and gives the sum of costs. Units are
    /// visited in a random order, again and again; at each, that one of the unit and its neighbours
    /// steps down which loses least for each byte, until the budget holds. Then likewise up, while
    /// anything fits. The smallest levels must fit. At most one pass a step, and steps are as many as
    /// there are options.
    pub(super) fn contest(
        &self,
        levels: &mut [usize],
        budget: u64,
        neighbours: &[Vec<usize>],
        rng: &mut impl rand::Rng,
    ) -> f64 {
        let budget = u128::from(budget);
        let mut bytes = self.sums(levels).1;
        let mut order: Vec<usize> = (0..levels.len()).collect();
        for place in (1..order.len()).rev() {
            order.swap(place, rng.random_range(0..=place));
        }
        let best = |unit: usize, step: &dyn Fn(usize) -> Option<Step>| {
            std::iter::once(&unit).chain(&neighbours[unit]).filter_map(|near| step(*near)).max()
        };
        while bytes > budget {
            for visited in &order {
                let down = |unit: usize| {
                    let (ladder, lower) = (&self.0[unit], levels[unit].checked_sub(1)?);
                    Some(Step { rate: -rate(&ladder[lower], &ladder[lower + 1]), unit })
                };
                let Some(Step { unit, .. }) = best(*visited, &down) else { continue };
                levels[unit] -= 1;
                bytes -= self.step_bytes(unit, levels[unit]);
                if bytes <= budget {
                    break;
                }
            }
        }
        loop {
            let before = bytes;
            for visited in &order {
                let up = |unit: usize| {
                    let (ladder, level) = (&self.0[unit], levels[unit]);
                    let upper = ladder.get(level + 1)?;
                    let fits = bytes + self.step_bytes(unit, level) <= budget;
                    fits.then(|| Step { rate: rate(&ladder[level], upper), unit })
                };
                let Some(Step { unit, .. }) = best(*visited, &up) else { continue };
                bytes += self.step_bytes(unit, levels[unit]);
                levels[unit] += 1;
            }
            if bytes == before {
                return self.sums(levels).0;
            }
        }
    }

    /// Bytes between a level and the next.
    fn step_bytes(&self, unit: usize, level: usize) -> u128 {
        u128::from(self.0[unit][level + 1].bytes - self.0[unit][level].bytes)
    }

    /// Steps up while anything fits, those first that save most for each byte.
    pub(super) fn fill(&self, levels: &mut [usize], budget: u64) {
        let bytes = self.sums(levels).1;
        let mut left = u128::from(budget).saturating_sub(bytes);
        let up = |unit: usize, level: usize| {
            let ladder = &self.0[unit];
            let upper = ladder.get(level + 1)?;
            Some(Step { rate: rate(&ladder[level], upper), unit })
        };
        let steps = levels.iter().enumerate().filter_map(|(unit, level)| up(unit, *level));
        let mut heap: BinaryHeap<Step> = steps.collect();
        while let Some(Step { unit, .. }) = heap.pop() {
            let ladder = &self.0[unit];
            let level = levels[unit];
            let more = u128::from(ladder[level + 1].bytes - ladder[level].bytes);
            if more <= left {
                left -= more;
                levels[unit] = level + 1;
                heap.extend(up(unit, level + 1));
            }
        }
    }
}
