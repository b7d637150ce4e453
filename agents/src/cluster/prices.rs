//! What front ends know of each other's loads, and the prices that they make of it.

use super::stream::StreamKey;

/// How prices come about. Where there are none, front ends play plain top-k.
#[derive(Clone, Debug, PartialEq)]
pub struct Pricing {
    /// Loads are counted and told by period, ns, ≥ 1.
    pub period_ns: u64,
    /// From a period's end until its loads are known elsewhere, ns.
    pub delay_ns: u64,
    /// Other front ends whose loads one hears in each period; all from `fronts − 1` on. What it did not hear
    /// is taken to be like what it heard and its own.
    pub fan_out: u32,
    /// Share of the way that prices go towards the cost of the loads heard, above 0, at most 1.
    pub step: f64,
    /// λ: the cost of a load of one fair share.
    pub price_per_fair_share: f64,
    /// d: the cost is `λ (n / q)^d`.
    pub degree: f64,
}

/// The loads that one front end made, for periods of late.
#[derive(Clone, Debug)]
pub(super) struct OwnLoads {
    /// By period modulo their number: which one, and tokens by expert.
    periods: Vec<(u64, Vec<u32>)>,
}

impl OwnLoads {
    /// For `kept` periods.
    pub(super) fn new(kept: usize, experts: usize) -> Self {
        Self { periods: vec![(u64::MAX, vec![0; experts]); kept] }
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.periods.iter().map(|(_, loads)| 32 + 4 * loads.len()).sum()
    }

    fn place(&self, period: u64) -> usize {
        usize::try_from(period % self.periods.len() as u64).expect("below their number")
    }

    /// The loads of a period that is under way.
    pub(super) fn of_now(&mut self, period: u64) -> &mut [u32] {
        let at = self.place(period);
        let (is, loads) = &mut self.periods[at];
        if *is != period {
            *is = period;
            loads.fill(0);
        }
        loads
    }

    /// The loads of a period that is over; none where it had none.
    pub(super) fn of_past(&self, period: u64) -> Option<&[u32]> {
        let (is, loads) = &self.periods[self.place(period)];
        (*is == period).then_some(loads)
    }
}

impl Pricing {
    /// Periods whose loads have to be kept.
    pub(super) fn kept(&self) -> usize {
        usize::try_from(self.delay_ns / self.period_ns).expect("periods in memory") + 3
    }

    /// When the loads of a period are known.
    pub(super) fn known_ns(&self, period: u64) -> u64 {
        (period + 1) * self.period_ns + self.delay_ns
    }

    /// Whom a front end hears of in a period, of `fronts`; itself first.
    pub(super) fn heard(&self, key: StreamKey, period: u64, front: u32, fronts: u32) -> Vec<u32> {
        let mut heard = vec![front];
        let mut stream = key.stream(front.into(), period);
        // Distinct others, by Floyd's sampling of the fronts − 1 others.
        let others = fronts - 1;
        let count = self.fan_out.min(others);
        let other = |at: u32| if at >= front { at + 1 } else { at };
        for last in others - count..others {
            let drawn = u32::try_from(stream.below(last as usize + 1)).expect("a front end");
            let drawn = if heard[1..].contains(&other(drawn)) { last } else { drawn };
            heard.push(other(drawn));
        }
        heard
    }

    /// Moves prices by loads that were heard. Without any they stay.
    pub(super) fn update(&self, heard: &[u64], prices: &mut [f32]) {
        let sum: u64 = heard.iter().sum();
        if sum == 0 {
            return;
        }
        let fair = sum as f64 / heard.len() as f64;
        for (price, load) in prices.iter_mut().zip(heard) {
            let share = *load as f64 / fair;
            let power = if self.degree == 1.0 { share } else { share.powf(self.degree) };
            let cost = self.price_per_fair_share * power;
            let moved = f64::from(*price) + self.step * (cost - f64::from(*price));
            #[expect(clippy::cast_possible_truncation, reason = "prices are f32")]
            let moved = moved as f32;
            *price = moved;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OwnLoads, Pricing};
    use crate::cluster::StreamKey;
    use std::collections::BTreeSet;

    const PRICING: Pricing = Pricing {
        period_ns: 10,
        delay_ns: 25,
        fan_out: 3,
        step: 0.5,
        price_per_fair_share: 2.0,
        degree: 1.0,
    };

    #[test]
    fn a_front_end_hears_itself_and_as_many_others_as_are_told_it() {
        let key = StreamKey::new(1, "heard");
        let mut counts = [0; 6];
        for period in 0..6000 {
            let heard = PRICING.heard(key, period, 2, 6);
            let distinct: BTreeSet<u32> = heard.iter().copied().collect();
            assert!(heard[0] == 2 && heard.len() == 4 && distinct.len() == 4, "{heard:?}");
            heard.iter().for_each(|front| counts[*front as usize] += 1);
        }
        assert_eq!(counts[2], 6000);
        assert!(counts.iter().all(|n| *n == 6000 || (3400..3800).contains(n)), "{counts:?}");
        let all = Pricing { fan_out: 99, ..PRICING };
        assert_eq!(all.heard(key, 0, 0, 3).len(), 3);
        assert_eq!(PRICING.heard(key, 0, 0, 1), [0]);
    }

    #[test]
    fn prices_go_part_of_the_way_to_the_cost_of_the_loads() {
        let mut prices = [0.0, 1.0];
        PRICING.update(&[30, 10], &mut prices);
        // Fair share 20: costs 3 and 1.
        assert_eq!(prices, [1.5, 1.0]);
        PRICING.update(&[0, 0], &mut prices);
        assert_eq!(prices, [1.5, 1.0]);
    }

    #[test]
    fn loads_are_kept_until_they_are_known_everywhere() {
        let mut loads = OwnLoads::new(PRICING.kept(), 2);
        for period in 0..100 {
            loads.of_now(period)[1] += u32::try_from(period).expect("small");
            if let Some(told) = (0..=period).rev().find(|p| PRICING.known_ns(*p) <= period * 10) {
                assert_eq!(loads.of_past(told).map(|l| u64::from(l[1])), Some(told));
            }
        }
        assert_eq!(loads.of_past(3), None);
    }
}
