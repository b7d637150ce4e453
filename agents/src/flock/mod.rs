//! The flock: local rules by which experts balance without seeing the whole (MODEL.md section 4).

pub mod graph;
pub mod migration;
pub mod motion;
pub mod neighbours;
pub mod plane;
pub mod precision;
pub mod price;
pub mod rule;
