//! `nashflock launch`: hands a scenario to an engine that runs jobs.

mod kubernetes;
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
    /// Print the manifests of a job for Kubernetes, as one list for `kubectl apply -f -`
    Kubernetes(kubernetes::KubernetesArgs),
}

pub(super) fn launch(args: &LaunchArgs, registries: &Registries) -> Outcome {
    match &args.engine {
        Engine::Kubernetes(args) => kubernetes::kubernetes(args, registries),
        Engine::Slurm(args) => slurm::slurm(args, registries),
    }
}
