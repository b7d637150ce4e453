//! Routers by name.

use std::collections::BTreeMap;

use super::{Equilibrium, Router, TopK};

/// Makes a router with its settings.
pub type BuildRouter = dyn Fn() -> Box<dyn Router> + Send + Sync;

/// The name of a router is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a router called '{name}' is registered already: choose another name")]
pub struct RouterNameTaken {
    /// Name given.
    pub name: String,
}

/// Routers by name, those of this crate and a user's own.
pub struct RouterRegistry {
    entries: BTreeMap<String, (String, Box<BuildRouter>)>,
}

impl RouterRegistry {
    /// The routers of this crate.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self { entries: BTreeMap::new() };
        let mut add = |name, summary, build: Box<BuildRouter>| {
            registry.insert(name, summary, build).expect("the standard names differ");
        };
        add(
            "top_k",
            "each token's best k by score, the control (tested)",
            Box::new(|| Box::new(TopK)),
        );
        add(
            "equilibrium",
            "the exact maximum of the potential with prices that prove it (tested)",
            Box::new(|| Box::new(Equilibrium::default())),
        );
        registry
    }

    /// Adds a router: its name, a one-line summary and its constructor.
    ///
    /// # Errors
    /// When the name is in use.
    pub fn insert(
        &mut self,
        name: &str,
        summary: &str,
        build: Box<BuildRouter>,
    ) -> Result<(), RouterNameTaken> {
        if self.entries.contains_key(name) {
            return Err(RouterNameTaken { name: name.into() });
        }
        self.entries.insert(name.into(), (summary.into(), build));
        Ok(())
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The one-line summary of a router.
    #[must_use]
    pub fn summary(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|(summary, _)| summary.as_str())
    }

    /// A new router, or none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Box<dyn Router>> {
        self.entries.get(name).map(|(_, build)| build())
    }
}
