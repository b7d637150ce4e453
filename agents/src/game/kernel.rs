//! One pass over rows of scores: the k best priced scores of each and how near the others are.

#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use super::Scores;
use super::lanes::{LANES, Lanes, Portable};

/// Largest k that vectors select; beyond it every row is [`Seen::tied`].
pub(super) const MOST_VECTOR_K: usize = LANES - 2;

/// Vector instructions to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Instructions {
    /// What this processor has, best last.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            (Self::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")),
            (
                Self::Avx512,
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("popcnt"),
            ),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors: [(Self, bool); 0] = [];
        let found = vectors.into_iter().filter_map(|(kind, has)| has.then_some(kind));
        std::iter::once(Self::Portable).chain(found)
    }

    /// The best that this processor has.
    pub(super) fn best() -> Self {
        Self::available().last().expect("there is always the portable kind")
    }
}

/// Prices of all experts, filled up to whole vectors with +inf.
#[derive(Clone, Debug)]
pub(super) struct Prices {
    lanes: Vec<[f32; LANES]>,
    experts: usize,
}

impl Prices {
    pub(super) fn new(prices: &[f32]) -> Self {
        let mut lanes = vec![[f32::INFINITY; LANES]; prices.len().div_ceil(LANES)];
        lanes.as_flattened_mut()[..prices.len()].copy_from_slice(prices);
        Self { lanes, experts: prices.len() }
    }

    pub(super) fn each(&self) -> &[f32] {
        &self.lanes.as_flattened()[..self.experts]
    }
}

/// What the pass found in one row. All of it is in f32 arithmetic.
pub(super) struct Seen<'r> {
    /// The token.
    pub(super) token: u32,
    /// Equal priced scores stand across the boundary, or there are more candidates than vectors
    /// handle: the fields below are unspecified.
    pub(super) tied: bool,
    /// The experts of the k largest priced scores, ascending.
    pub(super) chosen: &'r [u32],
    /// The k-th largest priced score and the next.
    pub(super) edge: (f32, f32),
    /// The experts whose priced score is less than the first of `band` below the k-th and less than
    /// the second above the next, ascending, and these scores.
    pub(super) near: (&'r [u32], &'r [f32]),
}

/// Visits the rows of `tokens` at the given prices. Needs k < E.
pub(super) fn visit_rows(
    kind: Instructions,
    scores: Scores<'_>,
    tokens: impl Iterator<Item = u32>,
    prices: &Prices,
    top_k: usize,
    band: Option<(f32, f32)>,
    mut visit: impl FnMut(Seen<'_>),
) {
    assert_eq!(scores.experts(), prices.experts, "one price an expert");
    let rows = Rows { scores, prices, top_k, band };
    match kind {
        Instructions::Portable => rows.visit::<Portable>(tokens, &mut visit),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kind is made by `available` alone, which checked the processor.
        Instructions::Avx2 => unsafe { x86::avx2(&rows, tokens, &mut visit) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx512 => unsafe { x86::avx512(&rows, tokens, &mut visit) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::{Avx2, Avx512};
    use super::{Rows, Seen};

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn avx2(
        rows: &Rows<'_>,
        tokens: impl Iterator<Item = u32>,
        visit: &mut impl FnMut(Seen<'_>),
    ) {
        rows.visit::<Avx2>(tokens, visit);
    }

    #[target_feature(enable = "avx512f,popcnt")]
    pub(super) fn avx512(
        rows: &Rows<'_>,
        tokens: impl Iterator<Item = u32>,
        visit: &mut impl FnMut(Seen<'_>),
    ) {
        rows.visit::<Avx512>(tokens, visit);
    }
}

struct Rows<'g> {
    scores: Scores<'g>,
    prices: &'g Prices,
    top_k: usize,
    band: Option<(f32, f32)>,
}

/// Most candidates of a row that are narrowed down by vectors.
const CANDIDATES: usize = 8 * LANES;

/// Memory a pass reuses from row to row.
struct Scratch {
    keys: Vec<[f32; LANES]>,
    candidates: [f32; CANDIDATES + LANES],
    experts: [u32; CANDIDATES + LANES],
    chosen: [u32; LANES],
    near_keys: Vec<f32>,
    near_experts: Vec<u32>,
}

impl Rows<'_> {
    #[inline(always)]
    fn visit<V: Lanes>(&self, tokens: impl Iterator<Item = u32>, visit: &mut impl FnMut(Seen<'_>)) {
        let vectors = self.prices.lanes.len();
        let mut scratch = Scratch {
            keys: vec![[f32::NEG_INFINITY; LANES]; vectors],
            candidates: [0.0; CANDIDATES + LANES],
            experts: [0; CANDIDATES + LANES],
            chosen: [0; LANES],
            near_keys: vec![0.0; (vectors + 1) * LANES],
            near_experts: vec![0; (vectors + 1) * LANES],
        };
        let mut guess = Guess::default();
        let mut tokens = tokens.peekable();
        while let Some(token) = tokens.next() {
            if let Some(next) = tokens.peek() {
                V::fetch(self.scores.row(*next as usize));
            }
            let found = self.select::<V>(token, guess.bound(), &mut scratch);
            let near = match (&found, self.band) {
                (Some(found), Some((below, above))) => {
                    let (last, next) = found.edge;
                    near::<V>(last - below, next + above, found, &mut scratch)
                }
                _ => 0,
            };
            if let Some(found) = &found {
                guess.learn(found.edge);
            }
            visit(Seen {
                token,
                tied: found.is_none(),
                chosen: &scratch.chosen[..self.top_k.min(LANES)],
                edge: found.map(|found| found.edge).unwrap_or_default(),
                near: (&scratch.near_experts[..near], &scratch.near_keys[..near]),
            });
        }
    }

    /// Leaves the row's priced scores and its choice in the scratch.
    ///
    /// Scores that reach `guess` are candidates if more than k do. Else the bound is the (k+1)-th of
    /// the maxima of the 16 lanes: these are different scores, so it is at most the (k+1)-th of all,
    /// and a dozen reach it for k = 8. Where more are left than fit one vector, the first 16 of them
    /// give the next bound.
    #[inline(always)]
    fn select<V: Lanes>(&self, token: u32, guess: f32, scratch: &mut Scratch) -> Option<Found> {
        let k = u32::try_from(self.top_k).ok().filter(|_| self.top_k <= MOST_VECTOR_K)?;
        let (whole, rest) = self.scores.row(token as usize).as_chunks::<LANES>();
        let Scratch { keys, candidates, experts, chosen, .. } = scratch;
        let mut bound = guess;
        let mut count = 0;
        let mut take = |first: u32, key: V, least: V, count: &mut usize| {
            let mask = !least.greater(key) & 0xffff;
            // What lies beyond the buffers is overwritten and makes the guess fail.
            let at = (*count).min(CANDIDATES);
            key.pack(mask, slot(candidates, at));
            V::pack_numbers(first, mask, slot(experts, at));
            *count += mask.count_ones() as usize;
        };
        let firsts = (0..).step_by(LANES);
        for (first, ((scores, prices), keys)) in
            firsts.clone().zip(whole.iter().zip(&self.prices.lanes).zip(&mut *keys))
        {
            let key = V::load(scores).minus(V::load(prices));
            key.store(keys);
            take(first, key, V::splat(bound), &mut count);
        }
        if !rest.is_empty() {
            let mut scores = [0.0; LANES];
            scores[..rest.len()].copy_from_slice(rest);
            let key = V::load(&scores).minus(V::load(&self.prices.lanes[whole.len()]));
            key.store(&mut keys[whole.len()]);
            let first = u32::try_from(whole.len() * LANES).expect("experts fit 32 bits");
            take(first, key, V::splat(bound), &mut count);
        }
        if count <= self.top_k || count > CANDIDATES {
            let mut top = V::splat(f32::NEG_INFINITY);
            keys.iter().for_each(|keys| top = top.larger(V::load(keys)));
            bound = top.least_of(V::up_to(top.ranks(), k));
            count = 0;
            for (first, keys) in firsts.zip(&*keys) {
                take(first, V::load(keys), V::splat(bound), &mut count);
            }
            if count > CANDIDATES {
                return None;
            }
        }
        while count > LANES {
            let best = V::load(slot(candidates, 0));
            bound = best.least_of(V::up_to(best.ranks(), k));
            let least = V::splat(bound);
            let (before, mut at) = (count, 0);
            count = 0;
            while at < before {
                let valid = if before - at < LANES { (1 << (before - at)) - 1 } else { 0xffff };
                let values = V::load(slot(candidates, at));
                let mask = !least.greater(values) & valid;
                let numbers = *slot(experts, at);
                values.pack(mask, slot(candidates, count));
                V::pack_from(&numbers, mask, slot(experts, count));
                count += mask.count_ones() as usize;
                at += LANES;
            }
            if count == before {
                return None;
            }
        }
        let valid = (1_u32 << count) - 1;
        slot(candidates, count).fill(f32::NEG_INFINITY);
        let best = V::load(slot(candidates, 0));
        let ranks = best.ranks();
        let within = V::up_to(ranks, k - 1) & valid;
        if within.count_ones() != k {
            return None;
        }
        V::pack_from(slot(experts, 0), within, chosen);
        let next = best.least_of(V::up_to(ranks, k) & valid);
        let edge = (unsigned_zero(best.least_of(within)), unsigned_zero(next));
        Some(Found { edge, bound, count })
    }
}

/// The choice of a row.
struct Found {
    /// As in [`Seen`].
    edge: (f32, f32),
    /// All priced scores that reach it are among the candidates.
    bound: f32,
    /// Candidates: at most a vector of them.
    count: usize,
}

/// What the rows before say about where the candidates of the next one begin. It decides how fast
/// a row is visited, never what is found in it.
#[derive(Default)]
struct Guess {
    rows: u32,
    /// Running means of the (k+1)-th priced score and of its distance from the k-th.
    next: f32,
    gap: f32,
}

impl Guess {
    fn bound(&self) -> f32 {
        let bound = self.next - GUESSED_GAPS * self.gap;
        if self.rows == 0 || bound.is_nan() { f32::INFINITY } else { bound }
    }

    fn learn(&mut self, (last, next): (f32, f32)) {
        let weight = if self.rows == 0 { 1.0 } else { GUESS_WEIGHT };
        self.rows = 1;
        self.next += weight * (next - self.next);
        self.gap += weight * (last - next - self.gap);
    }
}

/// Mean gaps below the mean (k+1)-th score, where about a dozen candidates for k = 8 are.
const GUESSED_GAPS: f32 = 3.0;

/// Weight of a row in the running means.
const GUESS_WEIGHT: f32 = 1.0 / 16.0;

/// Of two zeros that compare equal the kinds of instructions may take either.
#[inline(always)]
pub(super) fn unsigned_zero(value: f32) -> f32 {
    value + 0.0
}

#[inline(always)]
fn slot<V>(values: &mut [V], at: usize) -> &mut [V; LANES] {
    values[at..].first_chunk_mut().expect("buffers end with a spare vector")
}

/// Packs the keys strictly between the bounds, and returns how many there are.
#[inline(always)]
fn near<V: Lanes>(low: f32, high: f32, found: &Found, scratch: &mut Scratch) -> usize {
    let Scratch { keys, candidates, experts, near_keys, near_experts, .. } = scratch;
    let (from, to) = (V::splat(low), V::splat(high));
    if low >= found.bound {
        let keys = V::load(slot(candidates, 0));
        let mask = keys.greater(from) & to.greater(keys) & ((1 << found.count) - 1);
        keys.pack(mask, slot(near_keys, 0));
        V::pack_from(slot(experts, 0), mask, slot(near_experts, 0));
        return mask.count_ones() as usize;
    }
    let mut count = 0;
    for (first, keys) in (0..).step_by(LANES).zip(&*keys) {
        let keys = V::load(keys);
        let mask = keys.greater(from) & to.greater(keys);
        keys.pack(mask, slot(near_keys, count));
        V::pack_numbers(first, mask, slot(near_experts, count));
        count += mask.count_ones() as usize;
    }
    count
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Instructions, Prices, visit_rows};
    use crate::game::{Scores, select_top};
    use crate::rng::stream;
    use rand::RngExt as _;

    /// Scores that reach ties, both zeros, subnormals and the ends of f32.
    pub(in super::super) fn values(kind: usize, count: usize) -> Vec<f32> {
        let mut rng = stream(kind as u64, "kernel");
        let grid = [-0.0, 0.0, 1e-41, -1e-41, 1.0, -1.0, 1e30, -1e30, f32::MAX, f32::MIN];
        let value = |_| match kind {
            0 => rng.random::<f32>(),
            1 => grid[rng.random_range(0..grid.len())],
            2 => f32::from(rng.random_range(0..40_u8)),
            3 => rng.random::<f32>() * 1e-40,
            _ => 0.25,
        };
        (0..count).map(value).collect()
    }

    /// What one kind of instructions sees, by token, as bits.
    type Row = (bool, Vec<u32>, [u32; 2], Vec<(u32, u32)>);

    fn rows(kind: Instructions, scores: Scores<'_>, prices: &[f32], k: usize) -> Vec<Row> {
        let (mut rows, tokens) = (Vec::new(), 0..u32::try_from(scores.tokens()).expect("few"));
        visit_rows(kind, scores, tokens, &Prices::new(prices), k, Some((0.1, 0.2)), |seen| {
            rows.push(if seen.tied {
                (true, Vec::new(), [0; 2], Vec::new())
            } else {
                let near = seen.near.0.iter().zip(seen.near.1);
                let near = near.map(|(expert, key)| (*expert, key.to_bits())).collect();
                let edge = [seen.edge.0.to_bits(), seen.edge.1.to_bits()];
                (false, seen.chosen.to_vec(), edge, near)
            });
        });
        rows
    }

    #[test]
    fn every_kind_of_instructions_selects_what_a_sort_does() {
        let tokens = 40;
        let mut untied = 0;
        for experts in [2, 3, 9, 15, 16, 17, 31, 33, 64, 100, 256, 300] {
            for (kind, k) in (0..5).flat_map(|kind| [1, 2, 8, 14].map(|k| (kind, k))) {
                if k >= experts {
                    continue;
                }
                let values = values(kind, tokens * experts);
                let scores = Scores::new(&values, experts).expect("finite");
                let prices: Vec<f32> = (0..experts).map(|e| (e % 7) as f32 / 16.0).collect();
                let portable = rows(Instructions::Portable, scores, &prices, k);
                for instructions in Instructions::available() {
                    let what = format!("{instructions:?} kind {kind} E {experts} k {k}");
                    assert_eq!(rows(instructions, scores, &prices, k), portable, "{what}");
                }
                for (token, (tied, chosen, edge, near)) in portable.iter().enumerate() {
                    let pairs = scores.row(token).iter().zip(&prices);
                    let keys: Vec<f32> = pairs.map(|(score, price)| score - price).collect();
                    let mut best = vec![(0.0, 0); k + 1];
                    select_top(&keys, &mut best);
                    let equal = best[k - 1].0 == best[k].0;
                    if *tied {
                        // Rows of many equal scores may be left to the caller as well.
                        assert!(equal || kind > 0, "kind {kind} E {experts} k {k}");
                        continue;
                    }
                    untied += 1;
                    assert!(!equal, "kind {kind} E {experts} k {k}");
                    let mut sorted: Vec<u32> = best[..k].iter().map(|(_, at)| *at).collect();
                    sorted.sort_unstable();
                    assert_eq!(chosen, &sorted);
                    let (last, next) = (f32::from_bits(edge[0]), f32::from_bits(edge[1]));
                    assert!(last == best[k - 1].0 && next == best[k].0);
                    let close = |key: f32| key > last - 0.1 && key < next + 0.2;
                    let all = (0..).zip(&keys).filter(|(_, key)| close(**key));
                    let all: Vec<(u32, u32)> = all.map(|(e, key)| (e, key.to_bits())).collect();
                    assert_eq!(near, &all);
                }
            }
        }
        assert!(untied > 4000);
    }
}
