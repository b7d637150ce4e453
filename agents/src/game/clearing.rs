//! How an expert's load follows its price, and the price at which it clears.

/// Bins on each side of the present price, two an octave: near the price they are fine, far from
/// it coarse, so that one set of bins serves first guesses and last corrections alike.
const BINS: usize = 32;
const LAST_BIN: u32 = 31;

/// For each expert, how many open tokens leave it when its price rises by up to each bin's end,
/// and how many join it when it falls, the other prices staying.
pub(super) struct Curves {
    /// `[E, 2, BINS]`: leaving, then joining.
    bins: Vec<u32>,
    /// The bits above the bin number of the smallest bin, of either side.
    lowest: [u32; 2],
    reach: [f32; 2],
}

/// Bits of an f32 that hold less than half an octave.
const BELOW_BIN: u32 = 22;

impl Curves {
    /// For rises of price up to `rise` and falls up to `fall`.
    pub(super) fn new(experts: usize, rise: f32, fall: f32) -> Self {
        let reach = [rise, fall];
        let lowest = reach.map(|most| (most.to_bits() >> BELOW_BIN).saturating_sub(LAST_BIN));
        Self { bins: vec![0; experts * 2 * BINS], lowest, reach }
    }

    /// Counts a token on (or not on) the expert, given its priced score and the token's k-th
    /// and next.
    #[inline]
    pub(super) fn count(&mut self, expert: u32, key: f32, edge: (f32, f32), on: bool) {
        let distance = if on { key - edge.1 } else { edge.0 - key };
        let side = usize::from(!on);
        let bin = (distance.abs().to_bits() >> BELOW_BIN).saturating_sub(self.lowest[side]);
        self.bins[(expert as usize * 2 + side) * BINS + (bin as usize).min(BINS - 1)] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(own, more)| *own += more);
    }

    /// The change of price at which the expert, now at `load`, stops to be over (a rise) or
    /// under (a fall) what it supplies; at most how far its side reaches. Both are asked with a load
    /// and the change of price at it.
    pub(super) fn clearing_change(
        &self,
        expert: usize,
        load: f64,
        over: impl Fn(f64, f64) -> bool,
        under: impl Fn(f64, f64) -> bool,
    ) -> f64 {
        if over(load, 0.0) {
            self.walk(expert, 0, |gone, change| over(load - gone, change))
        } else if under(load, 0.0) {
            -self.walk(expert, 1, |come, change| under(load + come, -change))
        } else {
            0.0
        }
    }

    /// The least change, interpolated within a bin, at which `wrong` no longer holds.
    fn walk(&self, expert: usize, side: usize, wrong: impl Fn(f64, f64) -> bool) -> f64 {
        let bins = &self.bins[(expert * 2 + side) * BINS..][..BINS];
        let reach = f64::from(self.reach[side]);
        let (mut moved, mut start) = (0.0, 0.0);
        for (number, count) in (0_u32..).zip(bins) {
            let bits = (self.lowest[side] + number + 1) << BELOW_BIN;
            let end = f64::from(f32::from_bits(bits)).min(reach);
            let count = f64::from(*count);
            if !wrong(moved + count, end) {
                let at = |part: f64| (moved + part * count, start + part * (end - start));
                let (mut low, mut high) = (0.0, 1.0);
                for _ in 0..BIN_HALVINGS {
                    let middle = f64::midpoint(low, high);
                    let (moved, change) = at(middle);
                    if wrong(moved, change) { low = middle } else { high = middle }
                }
                return at(high).1;
            }
            (moved, start) = (moved + count, end);
        }
        reach
    }
}

const BIN_HALVINGS: u32 = 8;
