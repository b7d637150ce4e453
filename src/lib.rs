//! The shell of nashflock: everything that touches a clock, a file, a socket or a process.
//!
//! The modules stand in reading order; each may import only those above it. The game itself lives
//! in the `agents` crate.

// Blank lines keep the formatter from sorting across groups: the order is checked by a test.
pub mod measure;
pub mod model;
pub mod source;
pub mod wire;

pub mod transport;

pub mod worker;

pub mod dispatch;

pub mod results;
pub mod scenario;

pub mod run;

pub mod fidelity;

pub mod export;

pub mod watching;

pub mod sweep;

pub mod cli;
