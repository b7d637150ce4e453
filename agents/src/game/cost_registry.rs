//! Congestion costs by name.

use std::sync::Arc;

use super::{CongestionCost, CostError, CostSettings, GameShape};
use crate::registry::Registry;

/// What scenarios and commands say of costs. Each cost reads the numbers that it needs, as
/// [`CostSettings`] describes them; a cost of a user's crate may read any of them or capture its own.
#[derive(Clone, Debug, PartialEq)]
pub struct CostParameters {
    /// Of `quota`: the capacity in fair shares, at least 1.
    pub capacity_factor: f64,
    /// Of `linear` and `polynomial`: the cost at a load of one fair share, in units of the scores.
    pub price_per_fair_share: f64,
    /// Of `polynomial`: its degree.
    pub degree: f64,
    /// Of `latency`: the service time of a token in ms, one for every expert or one for all.
    pub service_ms: Vec<f64>,
    /// Of `latency`: the time in ms in which the batch is to be served.
    pub window_ms: f64,
    /// Of `latency`: the standard deviation of a service time over its mean.
    pub variation: f64,
    /// Of `latency`: the worth of a ms of waiting in units of the scores.
    pub price_per_ms: f64,
}

/// Builds a cost for a game of the given shape. What it builds for the largest batch of a run it
/// builds for every smaller one.
pub type BuildCost =
    dyn Fn(&CostParameters, GameShape) -> Result<Box<dyn CongestionCost>, CostError> + Send + Sync;

/// The cost of each game of a run: batches differ in their number of tokens.
pub type CostOfGame = dyn Fn(GameShape) -> Box<dyn CongestionCost> + Send + Sync;

/// Costs by name, those of this crate and a user's own.
pub type CostRegistry = Registry<BuildCost>;

impl CostRegistry {
    /// [`CostSettings`] by name: `quota`, `linear`, `polynomial` and `latency`.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self::new("a congestion cost");
        let mut add = |name, summary, settings: fn(&CostParameters) -> CostSettings| {
            let build = move |parameters: &CostParameters, shape: GameShape| {
                let settings = settings(parameters);
                settings.check_game(shape)?;
                Ok(settings.build(shape.tokens, shape.experts, shape.top_k))
            };
            registry.standard_entry(name, summary, Box::new(build));
        };
        add("quota", "free up to capacity_factor × Tk/E tokens an expert, then barred", |p| {
            CostSettings::Quota { capacity_factor: p.capacity_factor }
        });
        add("linear", "price_per_fair_share × load / (Tk/E)", |p| CostSettings::Linear {
            price_per_fair_share: p.price_per_fair_share,
        });
        add("polynomial", "price_per_fair_share × (load / (Tk/E))^degree", |p| {
            CostSettings::Polynomial {
                price_per_fair_share: p.price_per_fair_share,
                degree: p.degree,
            }
        });
        add(
            "latency",
            "price_per_ms × the mean wait of a queue, barred where it never ends",
            |p| CostSettings::Latency {
                service_ms: p.service_ms.clone(),
                window_ms: p.window_ms,
                variation: p.variation,
                price_per_ms: p.price_per_ms,
            },
        );
        registry
    }

    /// Builds the cost called `name`.
    ///
    /// # Errors
    /// [`CostError::Unknown`], and what the constructor refuses.
    pub fn build(
        &self,
        name: &str,
        parameters: &CostParameters,
        shape: GameShape,
    ) -> Result<Box<dyn CongestionCost>, CostError> {
        match self.maker(name) {
            Some(build) => build(parameters, shape),
            None => Err(CostError::Unknown { name: name.into(), known: self.known() }),
        }
    }

    /// The cost called `name` for every game of a run, or none of this name. It panics where
    /// [`Self::build`] fails: build it once for the largest batch before.
    #[must_use]
    pub fn of_games(&self, name: &str, parameters: CostParameters) -> Option<Box<CostOfGame>> {
        let build = Arc::clone(self.maker(name)?);
        Some(Box::new(move |shape| {
            build(&parameters, shape).unwrap_or_else(|error| panic!("built before: {error}"))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::{CostParameters, CostRegistry, CostSettings, GameShape};
    use crate::ids::ExpertId;
    use crate::registry::NameTaken;

    const SHAPE: GameShape = GameShape { tokens: 8, experts: 4, top_k: 2 };

    fn good() -> CostParameters {
        CostParameters {
            capacity_factor: 1.0,
            price_per_fair_share: 0.5,
            degree: 2.0,
            service_ms: vec![1.0],
            window_ms: 8.0,
            variation: 1.0,
            price_per_ms: 0.25,
        }
    }

    #[test]
    fn each_standard_cost_reads_its_own_parameters() {
        let registry = CostRegistry::standard();
        for (name, third, sixth) in [
            ("quota", 0.0, f64::INFINITY),
            ("linear", 0.375, 0.75),
            ("polynomial", 0.281_25, 1.125),
            // M/M/1 with s = 1: ρ/(1 − ρ).
            ("latency", 0.25 * 0.6, 0.25 * 3.0),
        ] {
            let cost = registry.build(name, &good(), SHAPE).expect(name);
            for (load, expected) in [(3, third), (6, sixth)] {
                let found = cost.marginal(ExpertId(1), load);
                assert!(found == expected || (found - expected).abs() < 1e-12, "{name} {found}");
            }
        }
    }

    #[test]
    fn parameters_out_of_range_and_unknown_names_are_refused() {
        type Change = fn(&mut CostParameters);
        let registry = CostRegistry::standard();
        let rows: [(&str, &str, Change); 12] = [
            ("quota", "capacity_factor", |p| p.capacity_factor = 0.99),
            ("quota", "capacity_factor", |p| p.capacity_factor = f64::NAN),
            ("linear", "price_per_fair_share", |p| p.price_per_fair_share = -1.0),
            ("linear", "price_per_fair_share", |p| p.price_per_fair_share = f64::INFINITY),
            ("polynomial", "price_per_fair_share", |p| p.price_per_fair_share = -1.0),
            ("polynomial", "degree", |p| p.degree = -0.5),
            ("latency", "service_ms", |p| p.service_ms = vec![-1.0]),
            ("latency", "window_ms", |p| p.window_ms = 0.0),
            ("latency", "variation", |p| p.variation = f64::NAN),
            ("latency", "price_per_ms", |p| p.price_per_ms = -1.0),
            ("latency", "4 experts", |p| p.service_ms = vec![1.0, 1.0]),
            ("latency", "12 places", |p| p.window_ms = 4.0),
        ];
        for (name, says, change) in rows {
            let mut parameters = good();
            change(&mut parameters);
            let refused = registry.build(name, &parameters, SHAPE).err();
            let refused = refused.unwrap_or_else(|| panic!("{name} {says}")).to_string();
            assert!(refused.contains(says), "{name}: {refused}");
        }
        let message = registry.build("tax", &good(), SHAPE).err().expect("unknown").to_string();
        assert_eq!(
            message,
            "no congestion cost is called 'tax': choose one of latency, linear, polynomial, quota"
        );
    }

    #[test]
    fn a_cost_of_another_crate_is_built_by_name_and_cannot_displace_one() {
        let mut registry = CostRegistry::standard();
        let free = |_: &CostParameters, shape: GameShape| {
            let settings = CostSettings::Linear { price_per_fair_share: 0.0 };
            Ok(settings.build(shape.tokens, shape.experts, shape.top_k))
        };
        registry.insert("free", "costs nothing", Box::new(free)).expect("a new name");
        let taken = registry.insert("quota", "mine", Box::new(free)).err();
        assert_eq!(taken, Some(NameTaken { kind: "a congestion cost", name: "quota".into() }));
        let cost = registry.build("free", &good(), SHAPE).expect("registered");
        assert_eq!(cost.marginal(ExpertId(3), 8).to_bits(), 0.0_f64.to_bits());
        let names: Vec<&str> = registry.summaries().map(|(name, _)| name).collect();
        assert_eq!(names, ["free", "latency", "linear", "polynomial", "quota"]);
        assert!(registry.names().eq(names));
    }
}
