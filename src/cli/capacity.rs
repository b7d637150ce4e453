//! `nashflock capacity`: the highest rate that holds a latency goal.

use super::run::{Audience, on_runtime};
use super::{Failure, Outcome, check, print, print_json};
use crate::dispatch::NodeSpec;
use crate::run::{ATTEMPTS_MAX, Capacity, CapacityGoal, ServeError, Verdict, requests_needed};
use crate::scenario::file::Engine;
use crate::scenario::{Scenario, sets_of_nodes};
use agents::game::Registries;
use clap::Args;
use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct CapacityArgs {
    /// Scenario file; its rate is where the search begins, its requests are those of a probe
    scenario: PathBuf,
    /// Override a key, as `load.requests=500`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The goal: 99th percentile of latency in ms [default: the scenario's goals.p99_ms_max]
    #[arg(long, value_name = "MS")]
    goal_p99_ms: Option<f64>,
    /// How sure a probe's verdict is, above 0.5 and below 1
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    confidence: f64,
    /// Ends when the rate that fails is at most this share above the one that holds, 0.001 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    precision: f64,
    /// Nodes: `in-process`, `local:N` or `peers:HOST:PORT,…`
    #[arg(long, value_name = "SPEC")]
    nodes: Option<NodeSpec>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn capacity(mut args: CapacityArgs, registries: &Registries) -> Outcome {
    if let Some(NodeSpec::Slurm | NodeSpec::Kubernetes) = args.nodes {
        let text = "--nodes must be in-process, local:N or peers:HOST:PORT,… for a search";
        return Err(Failure::BadInput(text.to_owned()));
    }
    args.sets.extend(args.nodes.iter().flat_map(sets_of_nodes));
    let scenario = check::load(&args.scenario, &args.sets, registries, args.json)?;
    let goal = goal(&args, &scenario)?;
    let found = on_runtime(
        &scenario,
        registries,
        None,
        None,
        &Audience::default(),
        async |settings, clock| crate::run::capacity(&scenario, goal, settings, clock).await,
    )?;
    let found = found.map_err(|error| match error {
        ServeError::Interrupted(_) => Failure::Interrupted(error.to_string()),
        _ => Failure::dependency(error),
    })?;
    if args.json {
        print_json(&serde_json::to_value(&found).expect("plain figures have a JSON form"))?;
    } else {
        print(&table(&found))?;
    }
    match found.rate_per_s {
        Some(_) => Ok(()),
        None => Err(Failure::MissedGoal(format!(
            "missed goal: no rate holds a p99 of {} ms",
            goal.p99_ms
        ))),
    }
}

fn goal(args: &CapacityArgs, scenario: &Scenario) -> Result<CapacityGoal, Failure> {
    let bad = |text: &str| Err(Failure::BadInput(text.to_owned()));
    if scenario.nodes.engine == Engine::Join {
        return bad("capacity needs nodes that stay: use in-process, local:N or peers:HOST:PORT,…");
    }
    if !scenario.precision.reallocate.is_off() {
        return bad(
            "precision.reallocate.every_steps is not 0, and what a rate holds would depend on the rates \
             tried before: give --set precision.reallocate.every_steps=0",
        );
    }
    if !scenario.nodes.migration.is_off() {
        return bad(
            "nodes.migration.policy is not none, and what a rate holds would depend on the rates tried \
             before: give --set nodes.migration.policy=none",
        );
    }
    let Some(p99_ms) = args.goal_p99_ms.or(scenario.goals.p99_ms_max) else {
        return bad(
            "there is no goal to hold: write p99_ms_max under [goals], or give --goal-p99-ms",
        );
    };
    if !(0.001..=3_600_000.0).contains(&p99_ms) {
        return bad("--goal-p99-ms must be 0.001 to 3600000");
    }
    if !(args.confidence > 0.5 && args.confidence < 1.0) {
        return bad("--confidence must be above 0.5 and below 1");
    }
    if !(0.001..=1.0).contains(&args.precision) {
        return bad("--precision must be 0.001 to 1");
    }
    let (requests, needed) = (scenario.load.requests, requests_needed(args.confidence));
    if u64::from(requests) * u64::from(ATTEMPTS_MAX) < needed {
        let least = needed.div_ceil(u64::from(ATTEMPTS_MAX));
        return Err(Failure::BadInput(format!(
            "load.requests is {requests}: even if all {ATTEMPTS_MAX} attempts at a rate met the goal, \
             that would not show 99 % with a confidence of {}: write at least {least}, or {needed} to \
             need one attempt",
            args.confidence
        )));
    }
    Ok(CapacityGoal { p99_ms, confidence: args.confidence, precision: args.precision })
}

fn table(found: &Capacity) -> String {
    const FITS: &str = "a string takes any text";
    let mut text =
        format!("{}: requests within {} ms, 99 % asked for\n", found.scenario, found.goal_p99_ms);
    let head =
        ["requests/s", "tries", "p50 ms", "p99 ms", "in goal", "at least", "at most", "busy"];
    for name in head {
        write!(text, "{name:>12}").expect(FITS);
    }
    text.push('\n');
    for probe in &found.probes {
        let ms = |value: Option<f64>| value.map_or("n/a".to_owned(), |ms| format!("{ms:.2}"));
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let verdict = match probe.verdict {
            Verdict::Holds => "holds",
            Verdict::Fails => "fails",
            Verdict::Undecided => "undecided, counted as failed",
        };
        for cell in [
            format!("{:.2}", probe.rate_per_s),
            probe.attempts.to_string(),
            ms(probe.p50_ms),
            ms(probe.p99_ms),
            percent(probe.share),
            percent(probe.share_lower),
            percent(probe.share_upper),
            percent(probe.busy_share),
        ] {
            write!(text, "{cell:>12}").expect(FITS);
        }
        let lagged = if probe.generator_lagged { ", the generator lagged" } else { "" };
        writeln!(text, "  {verdict}{lagged}").expect(FITS);
    }
    let answer = match (found.rate_per_s, found.fails_at_per_s) {
        (Some(holds), Some(fails)) => {
            format!("{holds:.2} requests/s hold the goal, {fails:.2} do not")
        }
        (Some(holds), None) => {
            format!("{holds:.2} requests/s hold the goal, the most within reach")
        }
        (None, Some(fails)) => format!("no rate holds the goal, down to {fails:.4} requests/s"),
        (None, None) => unreachable!("a search tries at least one rate"),
    };
    writeln!(text, "{answer}").expect(FITS);
    writeln!(text, "limited by {}", found.limited_by).expect(FITS);
    writeln!(
        text,
        "Bounds are exact for independent requests, {} sure over all tries at a rate. Requests of one queue \
         are not independent, so the long run may vary more.",
        found.confidence
    )
    .expect(FITS);
    text
}
