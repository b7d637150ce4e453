//! Precision: which expert gets how many bits under a byte budget.

mod allocate;
mod budget;
mod sensitivity;

pub use allocate::{Allocation, AllocationError, Unit, allocate, evaluate, uniform};
pub use budget::{Budget, BudgetError};
pub use sensitivity::{ExpertSample, ExpertWeights, output_energy, sensitivity, unseen_share};
