//! The integration tests of the shell, one module a subject.

mod parity;
mod results;
mod scenario;
