//! The integration tests of the shell, one module a subject.

mod checkpoints;
mod nodes;
mod parity;
mod results;
mod scenario;
mod tidy;
