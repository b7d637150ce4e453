//! Precision: which expert gets how many bits under a byte budget.

mod allocate;
mod budget;
mod exact;
mod flock;
mod follow;
mod hull;
mod ladder;
mod local_search;
mod prune;
mod reallocate;
mod registry;
mod sensitivity;
mod uniform;

pub use allocate::{Allocation, AllocationError, Allocator, Problem, Unit, evaluate};
pub use budget::{Budget, BudgetError};
pub use exact::{Exact, allocate};
pub use flock::{Flock, chosen_together};
pub use follow::{
    Follow, FollowMemory, FollowSettings, FollowedUnits, NodesOfUnits, WidthDecision, WidthMove,
    WidthPolicy,
};
pub use hull::Hull;
pub use local_search::LocalSearch;
pub use prune::{PruneCriterion, prune_lowest, prune_score, pruned_count};
pub use reallocate::{
    BitsMove, ReallocateError, ReallocateLimits, Reallocation, RunningLoads, reallocate, reweigh,
};
pub use registry::{AllocatorRegistry, BuildAllocator, UnknownAllocator};
pub use sensitivity::{ExpertSample, ExpertWeights, output_energy, sensitivity, unseen_share};
pub use uniform::{Uniform, uniform};
