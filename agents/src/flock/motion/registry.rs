//! Rules of motion by name.

use super::{AuxiliaryLoss, Boids, KMeans, RandomStep, RowRule, SphereConsensus};
use crate::registry::Registry;

/// Makes a rule for one layer from a seed of its own.
pub type BuildMotion = dyn Fn(u64) -> Box<dyn RowRule> + Send + Sync;

/// Rules of motion by name, those of this crate and a user's own.
pub type MotionRegistry = Registry<BuildMotion>;

impl MotionRegistry {
    /// The rules of this crate, with their standard settings.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self::new("a rule of motion");
        let mut add = |name, summary, build: Box<BuildMotion>| {
            registry.standard_entry(name, summary, build);
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

    /// The rule called `name`, for a layer with this seed.
    #[must_use]
    pub fn build(&self, name: &str, seed: u64) -> Option<Box<dyn RowRule>> {
        self.maker(name).map(|build| build(seed))
    }
}
