//! Congestion costs.

use super::CongestionCost;
use super::tabled::Tabled;
use crate::ids::ExpertId;

/// The size of one game: what a cost must know to scale itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GameShape {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// k, with 1 ≤ k ≤ E.
    pub top_k: usize,
}

impl GameShape {
    /// The fair share q = Tk/E.
    #[must_use]
    pub fn fair_share(&self) -> f64 {
        self.tokens as f64 * self.top_k as f64 / self.experts as f64
    }
}

/// A cost of this crate with its parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum CostSettings {
    /// Free up to `ceil(capacity_factor · Tk/E)` tokens an expert, then barred.
    Quota {
        /// Capacity in fair shares, finite and ≥ 1, so that a feasible assignment exists.
        capacity_factor: f64,
    },
    /// `c_e(n) = price_per_fair_share · n / q`.
    Linear {
        /// λ, in units of the scores: the cost at a load of one fair share. Finite and ≥ 0.
        price_per_fair_share: f64,
    },
    /// `c_e(n) = price_per_fair_share · (n / q)^degree`.
    Polynomial {
        /// λ, in units of the scores. Finite and ≥ 0.
        price_per_fair_share: f64,
        /// d, finite and ≥ 0; 1 is [`Self::Linear`], 4 the road model of the US Bureau of Public
        /// Roads.
        degree: f64,
    },
    /// The mean time in the queue of a single server with general service times, `c_e(n) =
    /// price_per_ms · W`, `W = ρ/(1 − ρ) · (1 + C²)/2 · s`, utilisation `ρ = n s / window`
    /// (Pollaczek–Khinchine, M/G/1); infinite from ρ = 1 on.
    Latency {
        /// s, the measured service time of a token in ms, one for every expert: that of the node
        /// which hosts it. One value alone holds for all. Finite and ≥ 0.
        service_ms: Vec<f64>,
        /// The time in ms in which the batch is to be served, finite and > 0.
        window_ms: f64,
        /// C, the standard deviation of a service time over its mean: 0 if all are alike, 1 if
        /// exponential. Finite and ≥ 0.
        variation: f64,
        /// The worth of a ms of waiting in units of the scores. Finite and ≥ 0.
        price_per_ms: f64,
    },
}

/// Why a cost cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CostError {
    /// A parameter is out of its range.
    #[error(
        "cost '{cost}': {parameter} is {value}, choose a finite number that is at least {least}"
    )]
    Range {
        /// Name of the cost.
        cost: String,
        /// Name of its parameter.
        parameter: String,
        /// Value given.
        value: f64,
        /// Smallest value allowed.
        least: f64,
    },
    /// Service times are given for another number of experts.
    #[error(
        "cost 'latency' has {given} service times for {experts} experts: give one each, or one"
    )]
    ServiceTimes {
        /// Times given.
        given: usize,
        /// E.
        experts: usize,
    },
    /// The cost bars every assignment.
    #[error(
        "cost '{cost}' has {places} places for the {pairs} token-expert pairs of {tokens} tokens: \
         allow higher loads"
    )]
    Places {
        /// Name of the cost.
        cost: String,
        /// Pairs that fit, over all experts.
        places: u64,
        /// Tk.
        pairs: u64,
        /// T.
        tokens: usize,
    },
    /// No cost has this name.
    #[error("no congestion cost is called '{name}': choose one of {known}")]
    Unknown {
        /// Name given.
        name: String,
        /// Names there are, comma separated.
        known: String,
    },
}

impl CostSettings {
    /// Checks the ranges of the parameters.
    ///
    /// # Errors
    /// [`CostError::Range`] of the first parameter out of range.
    pub fn check(&self) -> Result<(), CostError> {
        match self {
            Self::Quota { capacity_factor } => {
                check_range("quota", "capacity_factor", *capacity_factor, 1.0)
            }
            Self::Linear { price_per_fair_share } => {
                check_range("linear", "price_per_fair_share", *price_per_fair_share, 0.0)
            }
            Self::Polynomial { price_per_fair_share, degree } => {
                check_range("polynomial", "price_per_fair_share", *price_per_fair_share, 0.0)?;
                check_range("polynomial", "degree", *degree, 0.0)
            }
            Self::Latency { service_ms, window_ms, variation, price_per_ms } => {
                for service_ms in service_ms {
                    check_range("latency", "service_ms", *service_ms, 0.0)?;
                }
                check_range("latency", "window_ms", *window_ms, f64::MIN_POSITIVE)?;
                check_range("latency", "variation", *variation, 0.0)?;
                check_range("latency", "price_per_ms", *price_per_ms, 0.0)
            }
        }
    }

    /// Checks the ranges, and that there are as many parameters as `experts` need.
    ///
    /// # Errors
    /// Those of [`Self::check`], and [`CostError::ServiceTimes`].
    pub fn check_for(&self, experts: usize) -> Result<(), CostError> {
        self.check()?;
        match self {
            Self::Latency { service_ms, .. } if ![1, experts].contains(&service_ms.len()) => {
                Err(CostError::ServiceTimes { given: service_ms.len(), experts })
            }
            _ => Ok(()),
        }
    }

    /// Checks that a game of this shape can be played: all of [`Self::check_for`], and that the
    /// cost leaves an assignment unbarred. Then games of fewer tokens can be played too.
    ///
    /// # Errors
    /// Those of [`Self::check_for`], and [`CostError::Places`].
    pub fn check_game(&self, shape: GameShape) -> Result<(), CostError> {
        self.check_for(shape.experts)?;
        let Self::Latency { service_ms, window_ms, .. } = self else {
            // A quota of at least one fair share has a place for each pair, the others bar nothing.
            return Ok(());
        };
        let tokens = shape.tokens as u64;
        // The largest load n < T + 1 with n s / window < 1.
        let places = |service_ms: &f64| {
            let allowed = |load: u64| load as f64 * service_ms / window_ms < 1.0;
            let (mut low, mut high) = (0, tokens);
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                if allowed(middle) { low = middle } else { high = middle - 1 }
            }
            low
        };
        let places = match &service_ms[..] {
            [one] => places(one) * shape.experts as u64,
            each => each.iter().map(places).sum(),
        };
        let pairs = tokens * shape.top_k as u64;
        if places >= pairs {
            return Ok(());
        }
        Err(CostError::Places { cost: "latency".into(), places, pairs, tokens: shape.tokens })
    }

    /// The cost for a game of T tokens, E experts and k experts a token.
    ///
    /// # Panics
    /// When [`Self::check_for`] fails.
    #[must_use]
    pub fn build(&self, tokens: usize, experts: usize, top_k: usize) -> Box<dyn CongestionCost> {
        assert_eq!(self.check_for(experts), Ok(()), "settings are checked before a cost is built");
        let shape = GameShape { tokens, experts, top_k };
        match self {
            Self::Quota { capacity_factor } => Box::new(Quota {
                capacity: (capacity_factor * shape.fair_share()).ceil(),
                tokens: tokens as f64,
            }),
            Self::Linear { price_per_fair_share } => Box::new(Linear {
                slope: price_per_fair_share / shape.fair_share(),
                tokens: tokens as f64,
            }),
            Self::Polynomial { price_per_fair_share, degree } => {
                let price = |load: f64| (load / shape.fair_share()).powf(*degree);
                Box::new(Tabled::new(tokens, &[0.0], |_, load| {
                    scaled(*price_per_fair_share, price(load))
                }))
            }
            Self::Latency { service_ms, window_ms, variation, price_per_ms } => {
                let spread = f64::midpoint(1.0, variation * variation);
                Box::new(Tabled::new(tokens, service_ms, |service_ms, load| {
                    let utilisation = load * service_ms / window_ms;
                    if utilisation >= 1.0 {
                        return f64::INFINITY;
                    }
                    let wait_ms = utilisation / (1.0 - utilisation) * spread * service_ms;
                    scaled(*price_per_ms, wait_ms)
                }))
            }
        }
    }
}

fn check_range(cost: &str, parameter: &str, value: f64, least: f64) -> Result<(), CostError> {
    if value.is_finite() && value >= least {
        return Ok(());
    }
    Err(CostError::Range { cost: cost.into(), parameter: parameter.into(), value, least })
}

/// The product, 0 if the price is, whatever overflowed.
fn scaled(price: f64, amount: f64) -> f64 {
    if price == 0.0 { 0.0 } else { price * amount }
}

/// Free up to `capacity` tokens, then barred.
struct Quota {
    capacity: f64,
    tokens: f64,
}

impl CongestionCost for Quota {
    fn marginal(&self, _: ExpertId, load: u32) -> f64 {
        if f64::from(load) <= self.capacity { 0.0 } else { f64::INFINITY }
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        self.marginal(expert, load)
    }

    fn conjugate(&self, _: ExpertId, price: f64) -> f64 {
        price.max(0.0) * self.capacity.min(self.tokens)
    }
}

/// `slope · n`.
struct Linear {
    slope: f64,
    tokens: f64,
}

impl CongestionCost for Linear {
    fn marginal(&self, _: ExpertId, load: u32) -> f64 {
        self.slope * f64::from(load)
    }

    fn total(&self, _: ExpertId, load: u32) -> f64 {
        let load = f64::from(load);
        self.slope * (load * (load + 1.0) / 2.0)
    }

    fn conjugate(&self, _: ExpertId, price: f64) -> f64 {
        if price <= 0.0 {
            return 0.0;
        }
        // The maximum is at the last load whose marginal cost the price covers. The division may
        // round across an integer, so both neighbours are tried.
        let last = if self.slope > 0.0 { (price / self.slope).floor() } else { self.tokens };
        [last - 1.0, last, last + 1.0]
            .map(|load| {
                let load = load.clamp(0.0, self.tokens);
                price * load - self.slope * (load * (load + 1.0) / 2.0)
            })
            .into_iter()
            .fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::{CostError, CostSettings, GameShape};
    use crate::ids::ExpertId;

    #[test]
    fn totals_and_conjugates_follow_from_the_marginal_cost() {
        let settings = [
            CostSettings::Quota { capacity_factor: 1.0 },
            CostSettings::Quota { capacity_factor: 1.3 },
            CostSettings::Linear { price_per_fair_share: 0.0 },
            CostSettings::Linear { price_per_fair_share: 0.7 },
            CostSettings::Polynomial { price_per_fair_share: 0.0, degree: 1e6 },
            CostSettings::Polynomial { price_per_fair_share: 0.7, degree: 0.0 },
            CostSettings::Polynomial { price_per_fair_share: 0.3, degree: 2.0 },
            CostSettings::Polynomial { price_per_fair_share: 0.1, degree: 4.5 },
            CostSettings::Latency {
                service_ms: vec![0.8],
                window_ms: 6.0,
                variation: 0.5,
                price_per_ms: 0.4,
            },
        ];
        for (tokens, experts, top_k) in [(1, 1, 1), (5, 3, 2), (16, 4, 1), (7, 2, 2)] {
            for settings in &settings {
                let cost = settings.build(tokens, experts, top_k);
                let expert = ExpertId(0);
                let limit = u32::try_from(tokens).expect("small");
                let totals: Vec<f64> = (0..=limit)
                    .map(|load| (1..=load).map(|l| cost.marginal(expert, l)).sum())
                    .collect();
                for (load, total) in (0..).zip(&totals) {
                    let given = cost.total(expert, load);
                    assert!(
                        given == *total || (given - total).abs() < 1e-12,
                        "{settings:?} {load}"
                    );
                }
                for price in [-1.0, 0.0, 0.1, 0.35, 0.7, 1.4, 50.0] {
                    let best = (0..=limit)
                        .zip(&totals)
                        .map(|(load, total)| price * f64::from(load) - total)
                        .fold(f64::NEG_INFINITY, f64::max);
                    let given = cost.conjugate(expert, price);
                    assert!((given - best).abs() < 1e-12, "{settings:?} {price}: {given} {best}");
                }
            }
        }
    }

    #[test]
    fn a_slow_node_waits_longer_and_is_barred_earlier() {
        let latency = |service_ms: Vec<f64>, variation| CostSettings::Latency {
            service_ms,
            window_ms: 8.0,
            variation,
            price_per_ms: 1.0,
        };
        let cost = latency(vec![1.0, 2.0, 1.0], 1.0).build(8, 3, 1);
        let marginal = |expert, load| cost.marginal(ExpertId(expert), load);
        // M/M/1: the mean wait is ρ/(1 − ρ) · s. Half busy: one service time.
        assert!((marginal(0, 4) - 1.0).abs() < 1e-12 && (marginal(1, 2) - 2.0).abs() < 1e-12);
        assert_eq!(marginal(0, 5).to_bits(), marginal(2, 5).to_bits());
        assert!(marginal(1, 3) > marginal(0, 3) && marginal(0, 7).is_finite());
        assert!(marginal(1, 4).is_infinite() && marginal(0, 8).is_infinite());
        assert!(cost.total(ExpertId(1), 4).is_infinite());
        // M/D/1 waits half of M/M/1.
        let even = latency(vec![1.0], 0.0).build(8, 3, 1);
        assert!((even.marginal(ExpertId(2), 4) - 0.5).abs() < 1e-12);
        // 7 + 3 + 7 places.
        for (tokens, places) in [(17, None), (18, Some(17))] {
            let checked = latency(vec![1.0, 2.0, 1.0], 1.0).check_game(GameShape {
                tokens,
                experts: 3,
                top_k: 1,
            });
            let expected = places.map(|places| CostError::Places {
                cost: "latency".into(),
                places,
                pairs: tokens as u64,
                tokens,
            });
            assert_eq!(checked.err(), expected);
        }
        let refused = latency(vec![1.0, 2.0], 1.0).check_for(3).expect_err("two for three");
        assert_eq!(refused, CostError::ServiceTimes { given: 2, experts: 3 });
        for service_ms in [-1.0, f64::NAN] {
            let refused = latency(vec![1.0, service_ms], 1.0).check();
            assert!(matches!(refused, Err(CostError::Range { .. })));
        }
    }
}
