//! Rules of migration by name.

use super::{EplbMigration, FlockMigration, GreedyMigration, MigrationRule, MigrationSettings};
use std::collections::BTreeMap;

/// Makes a rule for one layer from a seed of its own.
pub type BuildMigration = dyn Fn(u64) -> Box<dyn MigrationRule> + Send + Sync;

/// A name that is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule of migration called '{name}' is registered already: choose another name")]
pub struct MigrationNameTaken {
    /// The name.
    pub name: String,
}

/// Rules of migration by name, those of this crate and a user's own.
pub struct MigrationRegistry {
    entries: BTreeMap<String, (String, Box<BuildMigration>)>,
}

impl MigrationRegistry {
    /// The rules of this crate, with their standard settings.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self { entries: BTreeMap::new() };
        let mut add = |name, summary, build: Box<BuildMigration>| {
            registry.insert(name, summary, build).expect("the standard names differ");
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

    /// Adds a rule with a one-line summary.
    ///
    /// # Errors
    /// [`MigrationNameTaken`] when the name is in use.
    pub fn insert(
        &mut self,
        name: &str,
        summary: &str,
        build: Box<BuildMigration>,
    ) -> Result<(), MigrationNameTaken> {
        if self.entries.contains_key(name) {
            return Err(MigrationNameTaken { name: name.into() });
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
    pub fn build(&self, name: &str, seed: u64) -> Option<Box<dyn MigrationRule>> {
        self.entries.get(name).map(|(_, build)| build(seed))
    }
}
