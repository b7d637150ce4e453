//! The pure core of nashflock.
//!
//! Tokens, experts and nodes are agents in an ECS world. This crate holds the routing game, the
//! flock, the precision policy and the expert arithmetic. It has no clock, socket, file or
//! environment in it: time and randomness arrive as arguments, work leaves as [`orders::Orders`]
//! and comes back as [`orders::Replies`].
//!
//! Equations and symbols are those of `MODEL.md`.

pub mod admission;
pub mod arrival;
pub mod cached_attention;
pub mod cluster;
pub mod components;
pub mod continuous;
pub mod expert;
pub mod flock;
pub mod game;
pub mod ids;
pub mod linear;
pub mod membership;
pub mod orders;
pub mod placement;
mod plain_bytes;
pub mod precision;
pub mod quantize;
pub mod queue;
pub mod queueing;
pub mod registry;
pub mod report;
pub mod rng;
pub mod round;
pub mod routing;
pub mod swarm;
pub mod transformer;
pub mod world;
