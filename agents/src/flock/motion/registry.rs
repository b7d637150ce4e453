//! Rules of motion by name.

use super::{AuxiliaryLoss, Boids, KMeans, RandomStep, RowRule, SphereConsensus};
use std::collections::BTreeMap;

/// Makes a rule for one layer from a seed of its own.
pub type BuildMotion = dyn Fn(u64) -> Box<dyn RowRule> + Send + Sync;

/// A name that is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule of motion called '{name}' is registered already: choose another name")]
pub struct MotionNameTaken {
    /// The name.
    pub name: String,
}

/// Rules of motion by name, those of this crate and a user's own.
pub struct MotionRegistry {
    entries: BTreeMap<String, (String, Box<BuildMotion>)>,
}

impl MotionRegistry {
    /// The rules of this crate, with their standard settings.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self { entries: BTreeMap::new() };
        let mut add = |name, summary, build: Box<BuildMotion>| {
            registry.insert(name, summary, build).expect("the standard names differ");
        };
        add(
            "boids",
            "cohesion, separation and alignment, by load (experimental)",
            Box::new(|_| Box::new(Boids::default())),
        );
        add(
            "k_means",
            "each expert follows its tokens: a control (tested)",
            Box::new(|_| Box::new(KMeans::default())),
        );
        add(
            "auxiliary_loss",
            "down the gradient of the balancing loss of Switch: a control (tested)",
            Box::new(|_| Box::new(AuxiliaryLoss::default())),
        );
        add(
            "consensus",
            "consensus-based optimisation on spheres, not local (experimental)",
            Box::new(|seed| Box::new(SphereConsensus::new(16, seed))),
        );
        add(
            "random_step",
            "steps at random, kept where they help: a control (tested)",
            Box::new(|seed| Box::new(RandomStep::new(0.01, seed))),
        );
        registry
    }

    /// Adds a rule with a one-line summary.
    ///
    /// # Errors
    /// [`MotionNameTaken`] when the name is in use.
    pub fn insert(
        &mut self,
        name: &str,
        summary: &str,
        build: Box<BuildMotion>,
    ) -> Result<(), MotionNameTaken> {
        if self.entries.contains_key(name) {
            return Err(MotionNameTaken { name: name.into() });
        }
        self.entries.insert(name.into(), (summary.into(), build));
        Ok(())
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Name and one-line summary of every rule, by name.
    pub fn summaries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, (summary, _))| (name.as_str(), summary.as_str()))
    }

    /// The rule called `name`, for a layer with this seed.
    #[must_use]
    pub fn build(&self, name: &str, seed: u64) -> Option<Box<dyn RowRule>> {
        self.entries.get(name).map(|(_, build)| build(seed))
    }
}
