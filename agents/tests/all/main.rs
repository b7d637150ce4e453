//! Properties of the pure core, and comparisons with slow definitions of the same thing.

mod cluster;
mod expert;
mod flock;
mod flock_migrating;
mod flock_migration;
mod flock_motion;
mod flock_precision;
mod game;
mod information;
mod known_games;
mod membership;
mod optimum;
mod oracle;
mod placement;
mod placement_plan;
mod precision;
mod precision_allocators;
mod precision_drift;
mod precision_prune;
mod properties;
mod round;
mod round_memory;
mod routers;
mod routers_rules;
mod routers_traces;
mod swarm;
