//! The `nashflock` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    nashflock::cli::main()
}
