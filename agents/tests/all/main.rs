//! Properties of the pure core, and comparisons with slow definitions of the same thing.

mod expert;
mod precision;
mod round;
