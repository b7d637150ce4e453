//! Scenario files: shape, checks and what they resolve to.
//!
//! [`load`] turns TOML text and `--set` overrides into a [`Scenario`], or into all problems at once,
//! each with its line, column and remedy. It reads files and runs nothing.

mod blocks;
mod budget;
mod conflicts;
pub mod file;
mod problem;
mod read;
mod set;
mod shape;
pub mod sweep;
mod virtual_nodes;

pub use budget::Budget;
pub(crate) use conflicts::{migration_problem, slots_problem};
pub use file::Scenario;
pub use problem::{Problem, Problems};
pub use read::{Known, load, resolved};
pub use set::sets_of_nodes;
pub use shape::schema;
