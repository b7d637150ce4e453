//! What scenarios and commands name: makers by name, those of this crate and a user's own.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A name that is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} called '{name}' is registered already: choose another name")]
pub struct NameTaken {
    /// What it names, as `a router`.
    pub kind: &'static str,
    /// Name given.
    pub name: String,
}

/// Makers of one kind, functions of type `Make`, by name.
pub struct Registry<Make: ?Sized> {
    kind: &'static str,
    entries: BTreeMap<String, (String, Arc<Make>)>,
}

impl<Make: ?Sized> Registry<Make> {
    /// None yet, of a kind such as `a router`.
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, entries: BTreeMap::new() }
    }

    /// Adds one of this crate's own.
    pub(crate) fn standard_entry(&mut self, name: &str, summary: &str, make: Box<Make>) {
        self.insert(name, summary, make).expect("the standard names differ");
    }

    /// Adds a name with a one-line summary and what makes it.
    ///
    /// # Errors
    /// When the name is in use.
    pub fn insert(&mut self, name: &str, summary: &str, make: Box<Make>) -> Result<(), NameTaken> {
        if self.entries.contains_key(name) {
            return Err(NameTaken { kind: self.kind, name: name.into() });
        }
        self.entries.insert(name.into(), (summary.into(), make.into()));
        Ok(())
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// All names, in alphabetical order, comma separated.
    pub(crate) fn known(&self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }

    /// Name and one-line summary of each, in alphabetical order.
    pub fn summaries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, (summary, _))| (name.as_str(), summary.as_str()))
    }

    /// The one-line summary of a name.
    #[must_use]
    pub fn summary(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|(summary, _)| summary.as_str())
    }

    /// What makes the one called `name`, or none of this name.
    pub(crate) fn maker(&self, name: &str) -> Option<&Arc<Make>> {
        self.entries.get(name).map(|(_, make)| make)
    }
}
