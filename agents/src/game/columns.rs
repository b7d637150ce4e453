//! The prices at which experts clear, each alone, by halving: all tokens of some experts at once.

#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use super::Scores;
use super::kernel::Instructions;
use super::lanes::LANES;

/// Halvings of twice the width.
const HALVINGS: u32 = 8;

/// The change of each expert's price, at most `width`, that leaves it as many tokens as it wants,
/// the other prices staying.
///
/// Token t joins or leaves expert e at the price `a[t,e]` minus the priced score that e competes
/// with: of `edges[t]` the first, the k-th, for a token outside, the second, the (k+1)-th, for one
/// inside.
pub(super) fn clear_columns(
    kind: Instructions,
    scores: Scores<'_>,
    edges: &[(f32, f32)],
    prices: &[f32],
    wanted: &[f32],
    width: f32,
) -> Vec<f32> {
    let columns = Columns { scores, edges, prices, wanted, width };
    match kind {
        Instructions::Portable => columns.clear(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kind is made by `available` alone, which checked the processor.
        Instructions::Avx2 => unsafe { x86::avx2(&columns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx512 => unsafe { x86::avx512(&columns) },
    }
}

struct Columns<'g> {
    scores: Scores<'g>,
    edges: &'g [(f32, f32)],
    prices: &'g [f32],
    wanted: &'g [f32],
    width: f32,
}

impl Columns<'_> {
    #[inline(always)]
    fn clear(&self) -> Vec<f32> {
        let experts = self.scores.experts();
        let mut changes = Vec::with_capacity(experts.next_multiple_of(LANES));
        let mut margins = vec![[0.0_f32; LANES]; self.edges.len()];
        let fill = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            lanes
        };
        for first in (0..experts).step_by(LANES) {
            let range = first..(first + LANES).min(experts);
            let (prices, wanted) =
                (fill(&self.prices[range.clone()]), fill(&self.wanted[range.clone()]));
            let rows = self.scores.values().chunks_exact(experts).zip(self.edges);
            for (margins, (row, edge)) in margins.iter_mut().zip(rows) {
                let (last, next) = *edge;
                let scores = match row[first..].first_chunk::<LANES>() {
                    Some(scores) => *scores,
                    None => fill(&row[range.clone()]),
                };
                for lane in 0..LANES {
                    let key = scores[lane] - prices[lane];
                    let rival = if key >= last { next } else { last };
                    margins[lane] = key - rival;
                }
            }
            changes.extend_from_slice(&self.halve(&margins, &wanted));
        }
        changes.truncate(experts);
        changes
    }

    #[inline(always)]
    fn halve(&self, margins: &[[f32; LANES]], wanted: &[f32; LANES]) -> [f32; LANES] {
        let (mut low, mut high) = ([-self.width; LANES], [self.width; LANES]);
        for _ in 0..HALVINGS {
            let mut middle = [0.0; LANES];
            for lane in 0..LANES {
                middle[lane] = low[lane] + (high[lane] - low[lane]) / 2.0;
            }
            // Four sums, so that additions need not wait for each other.
            let mut sums = [[0.0_f32; LANES]; 4];
            let (fours, rest) = margins.as_chunks::<4>();
            for four in fours {
                for (sum, margins) in sums.iter_mut().zip(four) {
                    count_above(sum, margins, &middle);
                }
            }
            rest.iter().for_each(|margins| count_above(&mut sums[0], margins, &middle));
            for lane in 0..LANES {
                let above = sums.iter().map(|sum| sum[lane]).sum::<f32>();
                let over = above > wanted[lane];
                low[lane] = if over { middle[lane] } else { low[lane] };
                high[lane] = if over { high[lane] } else { middle[lane] };
            }
        }
        high
    }
}

#[inline(always)]
fn count_above(sum: &mut [f32; LANES], margins: &[f32; LANES], bound: &[f32; LANES]) {
    for lane in 0..LANES {
        sum[lane] += if margins[lane] > bound[lane] { 1.0 } else { 0.0 };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Columns;

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(columns: &Columns<'_>) -> Vec<f32> {
        columns.clear()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(columns: &Columns<'_>) -> Vec<f32> {
        columns.clear()
    }
}
