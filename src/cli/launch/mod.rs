//! `nashflock launch`: hands a scenario to an engine that runs jobs.

mod slurm;

use super::Outcome;
use agents::game::Registries;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(super) struct LaunchArgs {
    #[command(subcommand)]
    engine: Engine,
}

#[derive(Subcommand)]
enum Engine {
    /// Submit a batch job to Slurm
    Slurm(slurm::SlurmArgs),
}

pub(super) fn launch(args: &LaunchArgs, registries: &Registries) -> Outcome {
    match &args.engine {
        Engine::Slurm(args) => slurm::slurm(args, registries),
    }
}
