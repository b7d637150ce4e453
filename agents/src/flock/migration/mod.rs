//! Flock migration: experts move between nodes by what two nodes know of each other.
//!
//! Each round a node hears a few others. One that is more loaded than it hears on average looks, with
//! each of these, for the exchange of copies that lowers the larger load of the two by most a byte:
//! separation. Each node takes part in one exchange a round at most: alignment. An exchange is worth
//! more when it brings an expert to those that the same tokens choose: cohesion. No node sees the
//! whole, and serving goes on between the rounds on the copies that are there.

//!
//! [`migrate`] is one round. In a run a [`MigrationRule`] says, every so many steps, which nodes shall hold
//! which copies: the flock's own, or one that sees all and serves as its control. [`Migrating`] tells the
//! rules of all layers the running loads and keeps them within bytes and room; [`Rehearsal`] does the same
//! on placements alone, for controls and tables.

mod exchange;
mod follow;
mod registry;
mod rehearsal;
mod rule;

pub use exchange::{Coactivation, Migration, MigrationSettings, Move, migrate};
pub use follow::{
    HostsChange, HostsOfLayer, Migrating, MigratingLayer, MigratingSettings, MigrationDecision,
};
pub use registry::{BuildMigration, MigrationRegistry};
pub use rehearsal::{Rehearsal, nodes_of_tokens};
pub use rule::{EplbMigration, FlockMigration, GreedyMigration, MigrationRule, MigrationView};
