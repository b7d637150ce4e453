//! What token blocks want: affinities of more experts than fit in a row, of which only the largest are drawn.
//!
//! The affinity of a block for an expert is `ln w_e + G` with G standard Gumbel, so plain top-1 picks e with
//! probability w_e, as sampling from a softmax does (Gumbel 1954). `−ln` of arrival times of independent
//! Poisson processes of rates w_e have this distribution, and the first C arrivals can be drawn alone: the next
//! one comes after an exponential time at the rate of what is left, and is e with a probability in proportion
//! to w_e. So the C largest affinities are exact though the other E − C are never made.

use super::stream::{Stream, StreamKey};
use crate::ids::ExpertId;
use rand_distr::{Distribution as _, Exp1, StandardNormal};

/// How popular experts are, and a table to draw one by that in constant time (Walker 1977, Vose 1991).
#[derive(Clone, Debug)]
pub struct Popularity {
    shares: Vec<f64>,
    keep: Vec<f32>,
    alias: Vec<u32>,
}

/// The largest affinities of one block, descending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Expert and affinity.
    pub listed: Vec<(ExpertId, f32)>,
}

impl Candidates {
    /// No expert that is not listed is wanted more than this.
    #[must_use]
    pub fn least(&self) -> f32 {
        self.listed.last().map_or(f32::NEG_INFINITY, |(_, affinity)| *affinity)
    }
}

impl Popularity {
    /// Shares in proportion to `exp(N(0, skew²))`, of `experts` ≥ 1.
    #[must_use]
    pub fn skewed(experts: usize, skew: f64, seed: u64) -> Self {
        let mut stream = StreamKey::new(seed, "cluster popularity").stream(0, 0);
        let draw = |_| -> f64 {
            let normal: f64 = StandardNormal.sample(&mut stream);
            (skew * normal).exp()
        };
        Self::new((0..experts).map(draw).collect())
    }

    /// Shares in proportion to `weights`, each above 0.
    #[must_use]
    pub fn new(weights: Vec<f64>) -> Self {
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.into_iter().map(|weight| weight / sum).collect();
        let n = shares.len() as f64;
        let mut scaled: Vec<f64> = shares.iter().map(|share| share * n).collect();
        let (mut keep, mut alias) = (vec![1.0; shares.len()], vec![0; shares.len()]);
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..shares.len()).partition(|at| scaled[*at] < 1.0);
        while let (Some(low), Some(high)) = (small.pop(), large.pop()) {
            #[expect(clippy::cast_possible_truncation, reason = "a probability")]
            let kept = scaled[low] as f32;
            (keep[low], alias[low]) = (kept, u32::try_from(high).expect("experts fit 32 bits"));
            scaled[high] -= 1.0 - scaled[low];
            if scaled[high] < 1.0 { small.push(high) } else { large.push(high) }
        }
        Self { shares, keep, alias }
    }

    /// By expert; they sum to 1.
    #[must_use]
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    fn draw(&self, stream: &mut Stream) -> usize {
        let at = stream.below(self.keep.len());
        if stream.above_zero() <= f64::from(self.keep[at]) { at } else { self.alias[at] as usize }
    }

    /// The `count` largest affinities of a new block. Fewer, but at least `least`, where a few experts are so
    /// popular that others are hardly ever drawn.
    pub fn candidates(
        &self,
        (least, count): (usize, usize),
        stream: &mut Stream,
        into: &mut Candidates,
    ) {
        let listed = &mut into.listed;
        listed.clear();
        let (mut left, mut time) = (1.0, 0.0);
        let count = count.min(self.shares.len());
        let mut in_vain = 0;
        while listed.len() < count && (in_vain < 4 * count || listed.len() < least) {
            let expert = self.draw(stream);
            let id = ExpertId::from_index(expert);
            if listed.iter().any(|(known, _)| *known == id) {
                in_vain += 1;
                continue;
            }
            let gap: f64 = Exp1.sample(stream);
            time += gap / f64::max(left, f64::MIN_POSITIVE);
            left -= self.shares[expert];
            #[expect(clippy::cast_possible_truncation, reason = "affinities are f32")]
            listed.push((id, -time.ln() as f32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidates, Popularity};
    use crate::cluster::StreamKey;
    use rand_distr::{Distribution as _, Gumbel};

    /// The largest affinities, from rows that are drawn whole: the definition.
    #[test]
    fn the_largest_affinities_are_those_of_whole_rows() {
        let popularity = Popularity::skewed(40, 1.0, 3);
        let mut stream = StreamKey::new(3, "candidates").stream(0, 0);
        let gumbel = Gumbel::new(0.0, 1.0).expect("a distribution");
        let (rows, listed) = (40_000, 6);
        let (mut whole_sums, mut drawn_sums) = (vec![0.0; listed], vec![0.0; listed]);
        let (mut whole_picks, mut drawn_picks) = (vec![0_u32; 40], vec![0_u32; 40]);
        let mut candidates = Candidates::default();
        for _ in 0..rows {
            let affinity = |share: &f64| share.ln() + gumbel.sample(&mut stream);
            let mut row: Vec<(f64, usize)> =
                popularity.shares().iter().map(affinity).zip(0..).collect();
            row.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            for (place, (value, expert)) in row[..listed].iter().enumerate() {
                whole_sums[place] += value;
                whole_picks[*expert] += 1;
            }
            popularity.candidates((1, listed), &mut stream, &mut candidates);
            assert!(candidates.listed.is_sorted_by(|a, b| a.1 > b.1));
            for (place, (expert, value)) in candidates.listed.iter().enumerate() {
                drawn_sums[place] += f64::from(*value);
                drawn_picks[expert.index()] += 1;
            }
        }
        for (whole, drawn) in whole_sums.iter().zip(&drawn_sums) {
            let off = (whole - drawn) / f64::from(rows);
            assert!(off.abs() < 0.03, "{off} of a standard deviation near 1.3");
        }
        for (whole, drawn) in whole_picks.iter().zip(&drawn_picks) {
            let (whole, drawn) = (f64::from(*whole), f64::from(*drawn));
            assert!((whole - drawn).abs() < 5.0 * (whole + drawn).sqrt(), "{whole} {drawn}");
        }
    }
}
