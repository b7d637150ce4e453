//! The integration tests of the shell, one module a subject.

mod checkpoints;
mod parity;
