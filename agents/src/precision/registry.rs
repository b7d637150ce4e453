//! Allocators by name.

use super::{Allocator, Exact, Flock, Hull, LocalSearch, Uniform};
use crate::registry::Registry;

/// Makes an allocator from the number behind the colon of its name, if one was written; none where
/// a number is missing or not wanted.
pub type BuildAllocator = dyn Fn(Option<u32>) -> Option<Box<dyn Allocator>> + Send + Sync;

/// None of this name, or not with this number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no allocator \"{name}\": the allocators are {known}")]
pub struct UnknownAllocator {
    /// Name given.
    pub name: String,
    /// All there are.
    pub known: String,
}

/// Allocators by name, those of this crate and a user's own.
pub type AllocatorRegistry = Registry<BuildAllocator>;

impl AllocatorRegistry {
    /// The allocators of this crate.
    #[must_use]
    pub fn standard() -> Self {
        fn plain<A: Allocator + Default + 'static>(
            number: Option<u32>,
        ) -> Option<Box<dyn Allocator>> {
            number.is_none().then(|| Box::new(A::default()) as Box<dyn Allocator>)
        }
        let mut registry = Self::new("an allocator");
        let mut add = |name, summary, build: Box<BuildAllocator>| {
            registry.standard_entry(name, summary, build);
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

    /// The allocator called `name`, such as `hull` or `uniform:4`.
    ///
    /// # Errors
    /// None is called so, or takes this number.
    pub fn build(&self, name: &str) -> Result<Box<dyn Allocator>, UnknownAllocator> {
        let (key, number) = match name.split_once(':') {
            None => (name.to_owned(), Some(None)),
            Some((key, number)) => (format!("{key}:N"), number.parse().ok().map(Some)),
        };
        let found = self.maker(&key).zip(number).and_then(|(build, number)| build(number));
        found.ok_or_else(|| UnknownAllocator { name: name.into(), known: self.known() })
    }
}
