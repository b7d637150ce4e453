//! `nashflock resume`: goes on with a run or a sweep that was cut.

use super::exports::{ExportArgs, Exports};
use super::run::{Audience, ended, on_runtime};
use super::watch::{WatchArgs, Watching};
use super::{Failure, Outcome, check, sweep};
use crate::dispatch::NodeSpec;
use crate::run::{self, CutRun};
use crate::scenario::{Scenario, sets_of_nodes};
use crate::sweep::{Shard, SweepDir};
use agents::game::Registries;
use clap::Args;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ResumeArgs {
    /// Directory of a run that was killed, interrupted, or ended by a failure, or of a sweep
    run: PathBuf,
    /// Other nodes than those it was cut on, as many of them: `in-process`, `local:N`, `peers:HOST:PORT,…`, or
    /// `join:IP:PORT:N`
    #[arg(long, value_name = "SPEC")]
    nodes: Option<NodeSpec>,
    /// Runs of a sweep at a time [default: processors by `compute.threads`]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Only this part of a sweep, such as 1/4 [default: all that were started]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Play runs of a sweep again that failed
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn resume(args: &ResumeArgs, registries: &Registries) -> Outcome {
    if SweepDir::is_at(&args.run) {
        if args.exports.is_asked() {
            let sentence = "--metrics and --otlp are of a single run, and this is a sweep";
            return Err(Failure::BadInput(sentence.to_owned()));
        }
        let which = (args.shard, args.jobs);
        return sweep::resume(&args.run, which, args.failed, registries, args.json);
    }
    let cut = CutRun::open(&args.run).map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })?;
    let mut scenario = check::load(&cut.scenario(), &[], registries, args.json)?;
    if let Some(nodes) = &args.nodes {
        scenario = on_other_nodes(&cut, nodes, scenario.nodes.seats(), registries, args.json)?;
    }
    // Standard error may be closed; the manifest says it too.
    let _ = writeln!(io::stderr(), "{}", cut.says());
    let exports = Exports::start(&args.exports, &scenario)?;
    let watching = Watching::start(args.watch, &scenario)?;
    let audience = Audience { exports, watching };
    let end = on_runtime(&scenario, registries, None, None, &audience, async |settings, clock| {
        run::resume(&scenario, cut, settings, clock).await
    });
    audience.end(end.as_ref().ok());
    ended(&end?, args.json)
}

/// The scenario with other nodes, as many as the world that was cut has.
fn on_other_nodes(
    cut: &CutRun,
    nodes: &NodeSpec,
    count: usize,
    registries: &Registries,
    json: bool,
) -> Result<Scenario, Failure> {
    if matches!(nodes, NodeSpec::Slurm | NodeSpec::Kubernetes) {
        let help =
            "within a job, name the address that its other tasks join: --nodes join:IP:PORT:N";
        return Err(Failure::BadInput(format!(
            "--nodes: a cut run is resumed by one process\nhelp: {help}"
        )));
    }
    let mut sets = sets_of_nodes(nodes);
    if matches!(nodes, NodeSpec::InProcess) {
        sets.push(format!("nodes.count={count}"));
    }
    let scenario = check::load(&cut.scenario(), &sets, registries, json)?;
    let named = scenario.nodes.seats();
    if named == count {
        return Ok(scenario);
    }
    Err(Failure::BadInput(format!(
        "--nodes: the run was cut on {count} nodes, and {named} are named: its experts are placed on as many\n\
         help: name {count}, or start it anew with `nashflock replay`"
    )))
}
