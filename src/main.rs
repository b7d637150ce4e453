//! The `nashflock` binary.

fn main() {}
