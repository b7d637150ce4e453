//! A pass over short lists of scores: the same selection as over rows.

#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use super::kernel::{Instructions, Prices, unsigned_zero};
use super::lanes::{LANES, Lanes, Portable};

/// Experts that a token may leave or join, ascending, at most a vector of them.
#[derive(Clone, Copy)]
pub(super) struct List<'r> {
    pub(super) token: u32,
    pub(super) experts: &'r [u32],
    pub(super) scores: &'r [f32],
    /// The lanes of the experts it is on.
    pub(super) on: u32,
}

/// What a pass found in one list.
pub(super) struct Listed<'r> {
    pub(super) list: List<'r>,
    pub(super) tied: bool,
    /// The lanes of the largest priced scores, as many as the token is on.
    pub(super) within: u32,
    /// As in [`Seen`].
    pub(super) edge: (f32, f32),
    /// The priced scores of the list, by lane.
    pub(super) keys: &'r [f32],
}

/// Visits lists of at least one expert that the token is on and one that it is not on.
pub(super) fn visit_lists<'l>(
    kind: Instructions,
    lists: impl Iterator<Item = List<'l>>,
    prices: &Prices,
    mut visit: impl FnMut(Listed<'_>),
) {
    let prices = prices.each();
    match kind {
        Instructions::Portable => each_list::<Portable>(lists, prices, &mut visit),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kind is made by `available` alone, which checked the processor.
        Instructions::Avx2 => unsafe { x86::avx2(lists, prices, &mut visit) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx512 => unsafe { x86::avx512(lists, prices, &mut visit) },
    }
}

#[inline(always)]
fn each_list<'l, V: Lanes>(
    lists: impl Iterator<Item = List<'l>>,
    prices: &[f32],
    visit: &mut impl FnMut(Listed<'_>),
) {
    let mut keys = [0.0; LANES];
    for list in lists {
        let priced = list.experts.iter().zip(list.scores).zip(&mut keys);
        for ((expert, score), key) in priced {
            *key = score - prices[*expert as usize];
        }
        let length = list.experts.len();
        let (within, edge) = if length <= SHORT {
            split_short(&keys, length, list.on.count_ones())
        } else {
            keys[length..].fill(f32::NEG_INFINITY);
            split::<V>(&keys, length, list.on.count_ones())
        };
        let tied = list.on == 0 || within.count_ones() != list.on.count_ones();
        let edge = (unsigned_zero(edge.0), unsigned_zero(edge.1));
        visit(Listed { list, tied, within, edge, keys: &keys[..length] });
    }
}

/// Lists up to this length are split without vectors: most have two or three experts.
const SHORT: usize = 4;

/// The lanes of the `wanted` largest keys, the least of these and the largest of the others.
#[inline(always)]
fn split<V: Lanes>(keys: &[f32; LANES], length: usize, wanted: u32) -> (u32, (f32, f32)) {
    let key = V::load(keys);
    let (ranks, valid) = (key.ranks(), (1_u32 << length) - 1);
    let within = V::up_to(ranks, wanted.wrapping_sub(1)) & valid;
    let next = key.least_of(V::up_to(ranks, wanted) & valid);
    (within, (key.least_of(within), next))
}

/// As [`split`].
#[inline(always)]
fn split_short(keys: &[f32; LANES], length: usize, wanted: u32) -> (u32, (f32, f32)) {
    let mut keys = *keys.first_chunk::<SHORT>().expect("short lists fit");
    keys[length..].fill(f32::NEG_INFINITY);
    let greater = |own: f32| keys.iter().fold(0, |sum, other| sum + u32::from(*other > own));
    let (mut within, mut last, mut next) = (0, f32::INFINITY, f32::NEG_INFINITY);
    for (lane, key) in keys.iter().enumerate() {
        let is_within = greater(*key) < wanted && lane < length;
        within |= u32::from(is_within) << lane;
        let (above, below) =
            if is_within { (*key, f32::NEG_INFINITY) } else { (f32::INFINITY, *key) };
        last = if above < last { above } else { last };
        next = if below > next { below } else { next };
    }
    (within, (last, next))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::{Avx2, Avx512};
    use super::{List, Listed, each_list};

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn avx2<'l>(
        lists: impl Iterator<Item = List<'l>>,
        prices: &[f32],
        visit: &mut impl FnMut(Listed<'_>),
    ) {
        each_list::<Avx2>(lists, prices, visit);
    }

    #[target_feature(enable = "avx512f,popcnt")]
    pub(super) fn avx512<'l>(
        lists: impl Iterator<Item = List<'l>>,
        prices: &[f32],
        visit: &mut impl FnMut(Listed<'_>),
    ) {
        each_list::<Avx512>(lists, prices, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::values;
    use super::super::kernel::{Instructions, Prices};
    use super::{List, visit_lists};
    use crate::game::select_top;

    #[test]
    fn every_kind_of_instructions_selects_the_same_from_a_list() {
        let prices = Prices::new(&[0.0; 20]);
        for (kind, length) in (0..5).flat_map(|kind| (2..=16).map(move |length| (kind, length))) {
            let (experts, scores): (Vec<u32>, Vec<f32>) = (3..).zip(values(kind, length)).unzip();
            for wanted in 1..length {
                let on = (1 << wanted) - 1;
                let list = List { token: 5, experts: &experts, scores: &scores, on };
                let mut found = Vec::new();
                for instructions in Instructions::available() {
                    let lists = std::iter::once(list);
                    visit_lists(instructions, lists, &prices, |seen| {
                        found.push((seen.tied, seen.within, seen.edge, seen.keys.to_vec()));
                    });
                }
                let mut best = vec![(0.0, 0); wanted + 1];
                select_top(&scores, &mut best);
                let lanes = best[..wanted].iter().fold(0, |mask, (_, lane)| mask | 1 << lane);
                let (last, next) = (best[wanted - 1].0, best[wanted].0);
                for (tied, within, edge, keys) in &found {
                    assert_eq!((*tied, keys), (last == next, &scores));
                    assert!(*tied || (*within, edge.0, edge.1) == (lanes, last, next));
                }
            }
        }
    }
}
