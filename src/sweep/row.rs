//! One run of a sweep as a row: what was set, how it ended, and its figures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use toml::Value;

use crate::results::compare::game_figures;
use crate::results::{RoundRow, Summary};
use crate::scenario::sweep::{PlannedRun, Target, TargetFigure};

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its number in the sweep.
    pub run: u64,
    /// The point that it is of.
    pub point: u64,
    /// Which of the point's runs.
    pub replicate: u32,
    /// Seed of every random stream.
    pub seed: u64,
    /// First 32 hex digits of the BLAKE3 of the resolved scenario.
    pub id: String,
    /// What is set at the point, in the order of the axes.
    pub parameters: Vec<Parameter>,
    /// As the command `run` would have ended: 0, or 3 where a goal was missed; all else is a failure.
    pub exit_code: u8,
    /// Why it failed.
    pub message: Option<String>,
    /// BLAKE3 of the game's state; none where it failed.
    pub state_hash: Option<String>,
    /// BLAKE3 over those of the files that were read; none where there were none.
    pub inputs: Option<String>,
    /// Figures that follow from scenario and seed, by their keys in the summary.
    pub figures: BTreeMap<String, f64>,
    /// Figures that a clock, a fault or the placement enters, likewise.
    pub measured: BTreeMap<String, f64>,
}

/// A value of an axis, as a column holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Parameter {
    /// A whole number.
    Whole(i64),
    /// Any number.
    Number(f64),
    /// True or false.
    Truth(bool),
    /// A string; of lists and sections their TOML.
    Text(String),
}

impl From<&Value> for Parameter {
    fn from(value: &Value) -> Self {
        match value {
            Value::Integer(whole) => Self::Whole(*whole),
            Value::Float(number) => Self::Number(*number),
            Value::Boolean(truth) => Self::Truth(*truth),
            Value::String(text) => Self::Text(text.clone()),
            other => Self::Text(other.to_string()),
        }
    }
}

impl From<&Parameter> for Value {
    /// Of lists and sections the text alone is known, and stays one.
    fn from(parameter: &Parameter) -> Self {
        match parameter {
            Parameter::Whole(whole) => Self::Integer(*whole),
            Parameter::Number(number) => Self::Float(*number),
            Parameter::Truth(truth) => Self::Boolean(*truth),
            Parameter::Text(text) => Self::String(text.clone()),
        }
    }
}

impl std::fmt::Display for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(whole) => write!(f, "{whole}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Row {
    /// The row of a run that ended this way; figures are added where there are any.
    pub(super) fn of(planned: &PlannedRun, exit_code: u8, message: Option<String>) -> Self {
        Self {
            run: planned.run,
            point: planned.point,
            replicate: planned.replicate,
            seed: planned.scenario.seed,
            id: planned.id.clone(),
            parameters: planned.parameters.iter().map(Parameter::from).collect(),
            exit_code,
            message,
            state_hash: None,
            inputs: None,
            figures: BTreeMap::new(),
            measured: BTreeMap::new(),
        }
    }

    /// Whether it ended by itself, with its goals or without.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.exit_code, 0 | 3)
    }

    /// A figure of either kind.
    #[must_use]
    pub fn figure(&self, key: &str) -> Option<f64> {
        self.figures.get(key).or_else(|| self.measured.get(key)).copied()
    }

    /// Takes the figures of a summary.
    pub(super) fn take_summary(&mut self, summary: &Summary) {
        self.state_hash = Some(summary.state_hash.clone());
        let mut figures = BTreeMap::new();
        numbers("", &game_figures(summary), &mut figures);
        figures.remove("convergence.route_ns");
        let timed = json!({
            "convergence": {"route_ns": summary.convergence.route_ns},
            "throughput": summary.throughput,
            "latency_ns": summary.latency_ns,
            "ttft_ns": summary.ttft_ns,
            "tpot_ns": summary.tpot_ns,
            "e2e_ns": summary.e2e_ns,
            "generation": summary.generation,
            "outcomes": summary.outcomes,
            "placement": summary.placement,
            "reallocation": summary.reallocation,
            "faults": summary.faults,
            "membership": summary.membership,
            "virtual_time": summary.virtual_time,
        });
        numbers("", &timed, &mut self.measured);
        self.measured.retain(|key, _| !figures.contains_key(key));
        self.figures.extend(figures);
    }

    /// Takes the work until each target was reached; a target that was not is left out.
    pub(super) fn take_targets(&mut self, target: &Target, rounds: &[RoundRow]) {
        let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
        for round in rounds {
            let step = steps.entry(round.step).or_default();
            let figure = match target.figure {
                TargetFigure::MaxOverMean => Some(round.max_over_mean),
                TargetFigure::RelativeGap => round.relative_gap,
                TargetFigure::EpsilonNash => Some(round.epsilon_nash),
                TargetFigure::FlockMaxOverMean => round.flock_max_over_mean,
                TargetFigure::FlockRelativeGap => round.flock_relative_gap,
            };
            step.worst = step.worst.max(figure.unwrap_or(f64::INFINITY));
            step.passes += round.passes as f64;
            step.iterations += round.iterations as f64;
            step.route_ns += round.route_ns as f64;
        }
        for bound in &target.at_most {
            let (mut steps_done, mut passes, mut iterations, mut route_ns) = (0.0, 0.0, 0.0, 0.0);
            for step in steps.values() {
                steps_done += 1.0;
                passes += step.passes;
                iterations += step.iterations;
                route_ns += step.route_ns;
                if step.worst <= *bound {
                    let key = |what| target_key(target.figure, *bound, what);
                    self.figures.insert(key("steps"), steps_done);
                    self.figures.insert(key("passes"), passes);
                    self.figures.insert(key("iterations"), iterations);
                    self.measured.insert(key("route_ns"), route_ns);
                    break;
                }
            }
        }
    }
}

/// The name of a column: work of the kind `what` until a target was reached.
#[must_use]
pub fn target_key(figure: TargetFigure, bound: f64, what: &str) -> String {
    format!("target.{}.{bound}.{what}", figure.name())
}

#[derive(Default)]
struct Step {
    worst: f64,
    passes: f64,
    iterations: f64,
    route_ns: f64,
}

/// Every number and truth under a dotted key; lists have no place in a column.
fn numbers(path: &str, value: &Json, found: &mut BTreeMap<String, f64>) {
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                numbers(&path, value, found);
            }
        }
        Json::Bool(truth) => {
            found.insert(path.to_owned(), f64::from(u8::from(*truth)));
        }
        Json::Number(number) => {
            found.extend(number.as_f64().map(|number| (path.to_owned(), number)));
        }
        Json::Null | Json::String(_) | Json::Array(_) => {}
    }
}
