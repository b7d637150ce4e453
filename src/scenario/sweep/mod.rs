//! `[sweep]`: the same scenario at many points, each repeated under several seeds.

mod check;
mod expand;
mod points;

use std::borrow::Cow;

use agents::swarm::{Bounds, Kind, Optimizer};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use toml::Value;

pub(super) use check::{absolute_paths, find};
pub use expand::{Experiment, PlannedRun};
pub use points::Points;

/// Runs of a sweep, at most.
pub const RUNS_MAX: u64 = 1_000_000;

/// The same scenario at many points. `run` leaves this section out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sweep {
    /// How points are made of the axes. Default `grid`.
    pub method: Method,
    /// Points that are drawn or asked for, 1 to 65536; methods `latin_hypercube`, `sobol` and `optimize` need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub samples: Option<u32>,
    /// Runs of each point, 1 to 10000, each with a seed of its own. Default 1.
    #[schemars(range(min = 1, max = 10_000))]
    pub seeds: u32,
    /// Whether the seeds of one point are those of every other, so that points are compared on the same
    /// random numbers. Default false.
    pub common_random_numbers: bool,
    /// Whether batches and steps start without waiting for their time: the game is the same, and latencies
    /// mean nothing. Default false.
    pub at_once: bool,
    /// What a run that fails does to the others; one that misses a goal has not failed. Default `continue`.
    pub on_failure: OnFailure,
    /// Values of axes, as `game.router=top_k`: each point is held against the one that has these and is like it
    /// otherwise. Default: no point is held against another.
    #[schemars(length(max = 64))]
    pub baseline: Vec<String>,
    /// Keys of the summary that reports and comparisons show, as `convergence.max_over_mean`. Default: balance, gap and score loss
    /// of the play, and the loss where text is scored.
    #[schemars(length(max = 64))]
    pub figures: Vec<String>,
    /// What play is to reach, for curves of the work until then; absent by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What is looked for; method `optimize` needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimize: Option<Optimize>,
    /// What is varied, one `[[sweep.axis]]` a key. Default: nothing but the seed.
    #[schemars(length(max = 64))]
    pub axis: Vec<Axis>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            method: Method::Grid,
            samples: None,
            seeds: 1,
            common_random_numbers: false,
            at_once: false,
            on_failure: OnFailure::Continue,
            baseline: Vec::new(),
            figures: Vec::new(),
            target: None,
            optimize: None,
            axis: Vec::new(),
        }
    }
}

impl Sweep {
    /// The keys of the summary that reports show.
    #[must_use]
    pub fn shown_figures(&self) -> Vec<String> {
        const DEFAULT: [&str; 5] = [
            "convergence.max_over_mean",
            "convergence.relative_gap",
            "convergence.epsilon_nash",
            "convergence.score_loss",
            "quality.loss",
        ];
        if self.figures.is_empty() {
            DEFAULT.map(str::to_owned).into()
        } else {
            self.figures.clone()
        }
    }
}

/// How points are made of the axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every value of each axis with every value of the others.
    #[default]
    Grid,
    /// The first values of all axes, then the second ones, and so on: axes are of one length.
    Zip,
    /// `samples` points, of which each `samples`-th part of an axis has one.
    LatinHypercube,
    /// `samples` points of the scrambled Sobol sequence; powers of two fill the space evenly.
    Sobol,
    /// `samples` points that an optimiser asks for, each in view of what earlier ones came to.
    Optimize,
}

impl Method {
    /// Whether points are drawn, and a range needs no steps.
    #[must_use]
    pub fn draws(self) -> bool {
        matches!(self, Self::LatinHypercube | Self::Sobol | Self::Optimize)
    }
}

/// A key of the scenario and what it is set to: `values`, or a range from `low` to `high`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Dotted key of the scenario, as `--set` takes it.
    pub key: String,
    /// Values of any type that the key takes; paths are relative to the scenario file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<serde_json::Value>", length(max = 65_536))]
    pub values: Vec<Value>,
    /// Least value of a range; whole where the key takes whole numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Largest value of a range, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// How values lie in a range. Default `linear`.
    #[serde(default)]
    pub scale: Scale,
    /// Values that `grid` and `zip` take of a range, 2 to 65536, both ends among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 65_536))]
    pub steps: Option<u32>,
}

/// How values lie in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// At equal distances.
    #[default]
    Linear,
    /// At equal ratios.
    Log,
}

/// What an optimiser looks for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimize {
    /// Key of the summary, as `convergence.max_over_mean`; its mean over the seeds of a point counts.
    pub figure: String,
    /// Which of its values is sought. Default `least`.
    #[serde(default)]
    pub sought: Sought,
    /// Who asks for points. Default `spso_2011`.
    #[serde(default)]
    pub optimizer: OptimizerName,
}

/// Which value of a figure is sought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sought {
    /// The least.
    #[default]
    Least,
    /// The largest.
    Largest,
}

/// An optimiser with its published settings (MODEL.md section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OptimizerName {
    /// The standard particle swarm of 2011: 40 points at a time.
    #[default]
    #[serde(rename = "spso_2011")]
    Spso2011,
    /// A particle swarm with a constriction factor, on a ring.
    #[serde(rename = "constriction")]
    Constriction,
    /// Consensus-based optimisation.
    #[serde(rename = "consensus")]
    Consensus,
    /// Points at random: the control.
    #[serde(rename = "random_search")]
    RandomSearch,
}

impl OptimizerName {
    fn kind(self) -> Kind {
        match self {
            Self::Spso2011 => Kind::Spso2011,
            Self::Constriction => Kind::Constriction,
            Self::Consensus => Kind::Consensus,
            Self::RandomSearch => Kind::Random,
        }
    }

    /// Its name in scenarios and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.kind().name()
    }
}

impl Optimize {
    /// A fresh optimiser over the unit cube, one dimension an axis.
    ///
    /// # Panics
    /// When there is no axis.
    #[must_use]
    pub fn optimizer(&self, axes: usize, seed: u64) -> Box<dyn Optimizer> {
        let bounds = Bounds::new(vec![(0.0, 1.0); axes]).expect("the unit cube has an inside");
        self.optimizer.kind().build(bounds, seed)
    }

    /// What an optimiser, which looks for the least, is told of a mean.
    #[must_use]
    pub fn cost(&self, mean: f64) -> f64 {
        match self.sought {
            Sought::Least => mean,
            Sought::Largest => -mean,
        }
    }
}

/// What play is to reach.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What is looked at in every step, in its worst layer.
    pub figure: TargetFigure,
    /// Bounds, each a target of its own: reached in the first step that is not above it.
    #[schemars(length(min = 1, max = 64))]
    pub at_most: Vec<f64>,
}

/// A figure that every round has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetFigure {
    /// Largest load over the fair share.
    MaxOverMean,
    /// (D − Φ)/|D|.
    RelativeGap,
    /// Largest regret of a token.
    EpsilonNash,
    /// Largest load over the fair share, as the flock rules alone would route.
    FlockMaxOverMean,
    /// Relative gap under the flock rules alone.
    FlockRelativeGap,
}

impl TargetFigure {
    /// Its name in scenarios and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxOverMean => "max_over_mean",
            Self::RelativeGap => "relative_gap",
            Self::EpsilonNash => "epsilon_nash",
            Self::FlockMaxOverMean => "flock_max_over_mean",
            Self::FlockRelativeGap => "flock_relative_gap",
        }
    }
}

/// What a run that fails does to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Nothing: its message stands in its row.
    #[default]
    Continue,
    /// No other run is started.
    FailFast,
    /// It is played again up to so many times; nothing else.
    Retry(u32),
}

impl OnFailure {
    /// Attempts that a run has, at least one.
    #[must_use]
    pub fn attempts(self) -> u32 {
        match self {
            Self::Continue | Self::FailFast => 1,
            Self::Retry(further) => further.saturating_add(1),
        }
    }
}

/// By hand, because the derived one has no place for the range and the description of `retry`.
impl JsonSchema for OnFailure {
    fn schema_name() -> Cow<'static, str> {
        "OnFailure".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                {
                    "description": "Nothing: its message stands in its row.",
                    "type": "string",
                    "const": "continue"
                },
                { "description": "No other run is started.", "type": "string", "const": "fail_fast" },
                {
                    "description": "It is played again.",
                    "type": "object",
                    "properties": {
                        "retry": {
                            "description": "Further attempts, 1 to 100.",
                            "type": "integer",
                            "minimum": 1,
                            "maximum": 100
                        }
                    },
                    "required": ["retry"],
                    "additionalProperties": false
                }
            ]
        })
    }
}
