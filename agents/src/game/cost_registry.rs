//! Congestion costs by name.

use std::collections::BTreeMap;

use super::{CongestionCost, CostError, CostSettings, GameShape};

/// Builds a cost from its one parameter for a game of the given shape.
pub type BuildCost =
    dyn Fn(f64, GameShape) -> Result<Box<dyn CongestionCost>, CostError> + Send + Sync;

/// Costs by name. Each takes one parameter; a cost of a user's crate that needs more captures it
/// in its constructor.
pub struct CostRegistry {
    entries: BTreeMap<String, (String, Box<BuildCost>)>,
}

impl CostRegistry {
    /// `quota` (its parameter is the capacity factor), `linear` and `quadratic` (price per fair
    /// share). [`CostSettings::Polynomial`] of another degree and [`CostSettings::Latency`] need
    /// more than one number: register them with their other parameters captured.
    #[must_use]
    pub fn standard() -> Self {
        let standard = |settings: CostSettings, shape: GameShape| {
            settings.check()?;
            Ok(settings.build(shape.tokens, shape.experts, shape.top_k))
        };
        let mut registry = Self { entries: BTreeMap::new() };
        registry
            .insert(
                "quota",
                "free up to capacity_factor × Tk/E tokens an expert, then barred",
                Box::new(move |capacity_factor, shape| {
                    standard(CostSettings::Quota { capacity_factor }, shape)
                }),
            )
            .and_then(|()| {
                registry.insert(
                    "linear",
                    "price_per_fair_share × load / (Tk/E)",
                    Box::new(move |price_per_fair_share, shape| {
                        standard(CostSettings::Linear { price_per_fair_share }, shape)
                    }),
                )
            })
            .and_then(|()| {
                registry.insert(
                    "quadratic",
                    "price_per_fair_share × (load / (Tk/E))²",
                    Box::new(move |price_per_fair_share, shape| {
                        let degree = 2.0;
                        standard(CostSettings::Polynomial { price_per_fair_share, degree }, shape)
                    }),
                )
            })
            .expect("the standard names differ");
        registry
    }

    /// Adds a cost with a one-line summary.
    ///
    /// # Errors
    /// [`CostError::Taken`] when the name is in use.
    pub fn insert(
        &mut self,
        name: &str,
        summary: &str,
        build: Box<BuildCost>,
    ) -> Result<(), CostError> {
        if self.entries.contains_key(name) {
            return Err(CostError::Taken { name: name.into() });
        }
        self.entries.insert(name.into(), (summary.into(), build));
        Ok(())
    }

    /// Name and one-line summary of every cost, by name.
    pub fn summaries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, (summary, _))| (name.as_str(), summary.as_str()))
    }

    /// Builds the cost called `name`.
    ///
    /// # Errors
    /// [`CostError::Unknown`], and what the constructor refuses.
    pub fn build(
        &self,
        name: &str,
        parameter: f64,
        shape: GameShape,
    ) -> Result<Box<dyn CongestionCost>, CostError> {
        match self.entries.get(name) {
            Some((_, build)) => build(parameter, shape),
            None => Err(CostError::Unknown {
                name: name.into(),
                known: self.entries.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CostError, CostRegistry, CostSettings, GameShape};
    use crate::ids::ExpertId;

    #[test]
    fn parameters_out_of_range_and_unknown_names_are_refused() {
        let shape = GameShape { tokens: 8, experts: 4, top_k: 2 };
        let registry = CostRegistry::standard();
        for (name, parameter) in
            [("quota", 0.99), ("quota", f64::NAN), ("linear", -1.0), ("linear", f64::INFINITY)]
        {
            let refused = registry.build(name, parameter, shape).err();
            assert!(matches!(refused, Some(CostError::Range { .. })), "{name} {parameter}");
        }
        let message = registry.build("tax", 1.0, shape).err().expect("unknown").to_string();
        assert_eq!(
            message,
            "no congestion cost is called 'tax': choose one of linear, quadratic, quota"
        );
    }

    #[test]
    fn a_cost_of_another_crate_is_built_by_name_and_cannot_displace_one() {
        let mut registry = CostRegistry::standard();
        let free = |_, shape: GameShape| {
            let settings = CostSettings::Linear { price_per_fair_share: 0.0 };
            Ok(settings.build(shape.tokens, shape.experts, shape.top_k))
        };
        registry.insert("free", "costs nothing", Box::new(free)).expect("a new name");
        let taken = registry.insert("quota", "mine", Box::new(free)).err();
        assert_eq!(taken, Some(CostError::Taken { name: "quota".into() }));
        let shape = GameShape { tokens: 8, experts: 4, top_k: 2 };
        let cost = registry.build("free", 0.0, shape).expect("registered");
        assert_eq!(cost.marginal(ExpertId(3), 8).to_bits(), 0.0_f64.to_bits());
        let names: Vec<&str> = registry.summaries().map(|(name, _)| name).collect();
        assert_eq!(names, ["free", "linear", "quadratic", "quota"]);
    }
}
