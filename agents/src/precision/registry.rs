//! Allocators by name.

use std::collections::BTreeMap;

use super::{Allocator, Exact, Flock, Hull, LocalSearch, Uniform};

/// Makes an allocator from the number behind the colon of its name, if one was written; none where
/// a number is missing or not wanted.
pub type BuildAllocator = dyn Fn(Option<u32>) -> Option<Box<dyn Allocator>> + Send + Sync;

/// Why a name is no allocator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocatorNameError {
    /// None of this name, or not with this number.
    #[error("there is no allocator \"{name}\": the allocators are {known}")]
    Unknown {
        /// Name given.
        name: String,
        /// All there are.
        known: String,
    },
    /// The name of an allocator is in use.
    #[error("an allocator called '{name}' is registered already: choose another name")]
    Taken {
        /// Name given.
        name: String,
    },
}

/// Allocators by name, those of this crate and a user's own.
pub struct AllocatorRegistry {
    entries: BTreeMap<String, (String, Box<BuildAllocator>)>,
}

impl AllocatorRegistry {
    /// The allocators of this crate.
    #[must_use]
    pub fn standard() -> Self {
        fn plain<A: Allocator + Default + 'static>(
            number: Option<u32>,
        ) -> Option<Box<dyn Allocator>> {
            number.is_none().then(|| Box::new(A::default()) as Box<dyn Allocator>)
        }
        let mut registry = Self { entries: BTreeMap::new() };
        let mut add = |name, summary, build: Box<BuildAllocator>| {
            registry.insert(name, summary, build).expect("the standard names differ");
        };
        add("exact", "the optimum, by dynamic programming (tested)", Box::new(plain::<Exact>));
        add("hull", "greedy over convex hulls, the fastest (tested)", Box::new(plain::<Hull>));
        add("flock", "a particle swarm over bit vectors (tested)", Box::new(plain::<Flock>));
        add(
            "local_search",
            "local search from random starts, the control of flock (tested)",
            Box::new(plain::<LocalSearch>),
        );
        add(
            "uniform:N",
            "all at N bits, the control of mixed widths (tested)",
            Box::new(|bits| bits.map(|bits| Box::new(Uniform { bits }) as Box<dyn Allocator>)),
        );
        registry
    }

    /// Adds an allocator: its name, with `:N` behind it where it takes a number, and a one-line summary.
    ///
    /// # Errors
    /// [`AllocatorNameError::Taken`] when the name is in use.
    pub fn insert(
        &mut self,
        name: &str,
        summary: &str,
        build: Box<BuildAllocator>,
    ) -> Result<(), AllocatorNameError> {
        if self.entries.contains_key(name) {
            return Err(AllocatorNameError::Taken { name: name.into() });
        }
        self.entries.insert(name.into(), (summary.into(), build));
        Ok(())
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Name and one-line summary of every allocator, by name.
    pub fn summaries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, (summary, _))| (name.as_str(), summary.as_str()))
    }

    /// The allocator called `name`, such as `hull` or `uniform:4`.
    ///
    /// # Errors
    /// [`AllocatorNameError::Unknown`], with all names.
    pub fn build(&self, name: &str) -> Result<Box<dyn Allocator>, AllocatorNameError> {
        let (key, number) = match name.split_once(':') {
            None => (name.to_owned(), Some(None)),
            Some((key, number)) => (format!("{key}:N"), number.parse().ok().map(Some)),
        };
        let entry = self.entries.get(&key).zip(number);
        entry.and_then(|((_, build), number)| build(number)).ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            AllocatorNameError::Unknown { name: name.into(), known }
        })
    }
}
