//! Rules of migration by name.

use super::{EplbMigration, FlockMigration, GreedyMigration, MigrationRule, MigrationSettings};
use crate::registry::Registry;

/// Makes a rule for one layer from a seed of its own.
pub type BuildMigration = dyn Fn(u64) -> Box<dyn MigrationRule> + Send + Sync;

/// Rules of migration by name, those of this crate and a user's own.
pub type MigrationRegistry = Registry<BuildMigration>;

impl MigrationRegistry {
    /// The rules of this crate, with their standard settings.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self::new("a rule of migration");
        let mut add = |name, summary, build: Box<BuildMigration>| {
            registry.standard_entry(name, summary, build);
        };
        add(
            "flock",
            "pairs of nodes exchange copies by what they hear of few others (experimental)",
            Box::new(|seed| {
                let settings = MigrationSettings { seed, ..MigrationSettings::default() };
                Box::new(FlockMigration { settings, rounds: 4 })
            }),
        );
        add(
            "greedy",
            "local search that sees all nodes and pays for what it sends: a control (tested)",
            Box::new(|_| Box::new(GreedyMigration { price: 0.01, evaluations_max: 500 })),
        );
        add(
            "eplb",
            "a fresh EPLB plan each time: the field's baseline (tested)",
            Box::new(|_| Box::new(EplbMigration)),
        );
        registry
    }

    /// The rule called `name`, for a layer with this seed.
    #[must_use]
    pub fn build(&self, name: &str, seed: u64) -> Option<Box<dyn MigrationRule>> {
        self.maker(name).map(|build| build(seed))
    }
}
