//! The integration tests of the shell, one module a subject.

mod arrivals;
mod binary;
mod checkpoints;
mod cli_bad_input;
mod cli_ended_early;
mod cli_faults;
mod cli_membership;
mod cli_placement;
mod cli_precision;
mod cli_quantize;
mod cli_readme;
mod cli_route;
mod cli_run;
mod cli_scenarios;
mod cli_stored;
mod families;
mod gguf;
mod launch_kubernetes;
mod nodes;
mod parity;
mod results;
mod scenario;
mod slurm;
mod tidy;
mod wire;
mod worker;
