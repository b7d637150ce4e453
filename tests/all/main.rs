//! Tests of the whole program.

mod nodes;
