//! What is wrong with a sweep, found before anything starts: axes one by one, then every point whole.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::Deserialize as _;
use serde_json::Value as Json;
use toml::Value;

use super::{Axis, Experiment, Method, RUNS_MAX, Scale, Sweep};
use crate::results::Summary;
use crate::scenario::conflicts;
use crate::scenario::file::{Admission, Scenario};
use crate::scenario::problem::{At, Origins, Problem, within};
use crate::scenario::read::Known;
use crate::scenario::set;
use crate::scenario::shape::{
    closest, is_number, known_keys, quoted, takes_whole_numbers, value_problems, walk,
};

/// Problems of points that are listed; more would say the same again.
const SHOWN_MAX: usize = 20;

/// Keys that no axis may vary, and why.
const FIXED: [(&str, &str); 4] = [
    ("schema_version", "it is one for all runs"),
    ("name", "it is one for all runs"),
    ("seed", "each run draws its own: write `seeds = N` for N runs of each point"),
    ("sweep", "a sweep has one layout"),
];

/// Keys whose values are paths.
const PATHS: [&str; 7] = [
    "source.checkpoint",
    "source.text",
    "precision.calibration_text",
    "load.trace",
    "nodes.tls.certificate",
    "nodes.tls.key",
    "nodes.tls.ca",
];

/// Makes relative paths among the values absolute, as those of other keys, and gives whole numbers of keys that
/// take any the form that those have.
pub(in crate::scenario) fn absolute_paths(sweep: &mut Sweep, base: &Path) {
    for axis in &mut sweep.axis {
        let is_path = PATHS.contains(&axis.key.as_str());
        let is_number = is_number(&axis.key);
        for value in &mut axis.values {
            match value {
                Value::String(path) if is_path => *path = absolute(path, base),
                Value::Array(paths) if is_path => {
                    let paths = paths.iter_mut();
                    paths.for_each(|of| {
                        if let Value::String(path) = of {
                            *path = absolute(path, base);
                        }
                    });
                }
                Value::Integer(whole) if is_number => *value = Value::Float(*whole as f64),
                _ => {}
            }
        }
    }
}

fn absolute(path: &str, base: &Path) -> String {
    base.join(path).to_string_lossy().into_owned()
}

/// Every problem of `[sweep]`. Points are checked where nothing else is wrong: `is_good` says so of the rest of the file.
pub(in crate::scenario) fn find(
    (scenario, sweep): (&Scenario, &Sweep),
    known: &Known<'_>,
    origins: &Origins,
    bad: &[String],
    is_good: bool,
) -> Vec<Problem> {
    if bad.iter().any(|bad| within(bad, "sweep")) {
        return Vec::new();
    }
    let mut found = Found { origins, problems: Vec::new() };
    for (at, axis) in sweep.axis.iter().enumerate() {
        found.key(at, &sweep.axis);
        found.values(at, axis, sweep.method);
    }
    found.layout(sweep);
    found.named(sweep);
    found.search(sweep, scenario.seed);
    let timeless = scenario.load.admission == Admission::All;
    found.unless(timeless || !sweep.at_once, "sweep.at_once", || {
        let message = "`load.admission` decides by the clock, which `sweep.at_once` leaves out";
        (message.into(), "write `load.admission = \"all\"`, or leave `at_once` out".into())
    });
    if found.problems.is_empty() && is_good {
        found.points(scenario, known);
    }
    found.problems
}

struct Found<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn unless(&mut self, holds: bool, key: &str, text: impl FnOnce() -> (String, String)) {
        if !holds {
            let (message, help) = text();
            self.problems.push(self.origins.problem(key, At::Value, message, help));
        }
    }

    /// The key of an axis: there is one such, and no other axis sets it.
    fn key(&mut self, at: usize, axes: &[Axis]) {
        let (place, key) = (format!("sweep.axis[{at}].key"), axes[at].key.as_str());
        if let Some((_, why)) = FIXED.iter().find(|(fixed, _)| within(key, fixed)) {
            return self.unless(false, &place, || {
                (format!("`{key}` cannot be varied"), format!("take the axis out: {why}"))
            });
        }
        let all = known_keys();
        self.unless(all.iter().any(|known| known == key), &place, || {
            let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
            let named = all.iter().find(|known| last(known) == last(key));
            let meant = closest(key, all.iter().map(String::as_str));
            let help = match meant.or(named.map(String::as_str)) {
                Some(known) => format!("did you mean `{known}`?"),
                None => "`nashflock schema` lists the keys".into(),
            };
            (format!("there is no key `{key}` to vary"), help)
        });
        let other = axes[..at].iter().find(|of| within(key, &of.key) || within(&of.key, key));
        self.unless(other.is_none(), &place, || {
            let other = other.map(|other| other.key.as_str()).unwrap_or_default();
            let message = format!("`{key}` and `{other}` set the same key");
            (message, "write one axis with the values of both".into())
        });
    }

    /// What an axis may be set to: each value is one that its key takes.
    fn values(&mut self, at: usize, axis: &Axis, method: Method) {
        let (place, key) = (format!("sweep.axis[{at}]"), axis.key.as_str());
        if !known_keys().iter().any(|known| known == key) {
            return;
        }
        let is_range = axis.low.is_some() || axis.high.is_some();
        if axis.values.is_empty() != is_range {
            return self.unless(false, &place, || {
                let which = if is_range { "has both values and a range" } else { "has no values" };
                let help = "write `values = […]`, or `low` and `high`";
                (format!("the axis of `{key}` {which}"), help.into())
            });
        }
        if is_range {
            return self.range((&place, key), axis, method);
        }
        let mut seen = BTreeSet::new();
        for (nth, value) in axis.values.iter().enumerate() {
            let place = format!("{place}.values[{nth}]");
            self.one_value(&place, key, value);
            self.unless(seen.insert(value.to_string()), &place, || {
                let message = format!("`{key}` has the value {value} twice");
                (message, "take one out: each point is played under `seeds` seeds".into())
            });
        }
    }

    fn one_value(&mut self, place: &str, key: &str, value: &Value) {
        let of_key = value_problems(key, value, place, self.origins);
        self.problems.extend(of_key.into_iter().map(|mut problem| {
            problem.message = problem.message.replace(place, key);
            problem
        }));
    }

    fn range(&mut self, (place, key): (&str, &str), axis: &Axis, method: Method) {
        let whole = takes_whole_numbers(key);
        if !whole && !is_number(key) {
            return self.unless(false, &format!("{place}.low"), || {
                (
                    format!("`{key}` takes no numbers, so it has no range"),
                    "write `values = […]`".into(),
                )
            });
        }
        let (Some(low), Some(high)) = (axis.low, axis.high) else {
            let is_low = axis.low.is_none();
            return self.unless(false, place, || {
                let missing = if is_low { "low" } else { "high" };
                (format!("the range of `{key}` has no `{missing}`"), format!("add `{missing} = …`"))
            });
        };
        for (name, end) in [("low", low), ("high", high)] {
            let at = format!("{place}.{name}");
            let is_whole = end.fract() == 0.0 && end.abs() < 9e15;
            self.unless(!whole || is_whole, &at, || {
                (format!("`{key}` takes whole numbers, not {end}"), "write a whole number".into())
            });
            #[expect(clippy::cast_possible_truncation, reason = "just checked")]
            let value = if whole { Value::Integer(end as i64) } else { Value::Float(end) };
            if !whole || is_whole {
                self.one_value(&at, key, &value);
            }
        }
        self.unless(low < high, &format!("{place}.high"), || {
            let message = format!("the range of `{key}` is empty: from {low} to {high}");
            (message, "write a `high` above `low`".into())
        });
        self.unless(axis.scale == Scale::Linear || low > 0.0, &format!("{place}.low"), || {
            let message = format!("a log scale has no {low}");
            (message, "write a `low` above 0, or `scale = \"linear\"`".into())
        });
        if method.draws() {
            return;
        }
        let steps = axis.steps.unwrap_or(0);
        self.unless(steps > 0, place, || {
            let message = format!("the range of `{key}` has no `steps`");
            (message, "add `steps = N`: the values that are taken, both ends among them".into())
        });
        if whole && steps > 0 && low < high && (axis.scale == Scale::Linear || low > 0.0) {
            let sweep = Sweep { axis: vec![axis.clone()], ..Sweep::default() };
            let points = super::Points::new(&sweep, &[true], 0);
            let distinct: BTreeSet<String> =
                points.values(0).iter().map(Value::to_string).collect();
            self.unless(
                distinct.len() == points.values(0).len(),
                &format!("{place}.steps"),
                || {
                    let count = distinct.len();
                    let message = format!("{steps} steps of `{key}` fall on {count} whole numbers");
                    (message, "write fewer steps, or `values = […]`".into())
                },
            );
        }
    }

    /// What the axes are together.
    fn layout(&mut self, sweep: &Sweep) {
        let length = |axis: &Axis| match axis.values.len() {
            0 => axis.steps.unwrap_or(0) as usize,
            values => values,
        };
        if sweep.method == Method::Zip {
            let first = sweep.axis.first().map_or(0, length);
            let other = sweep.axis.iter().position(|axis| length(axis) != first);
            self.unless(other.is_none(), &format!("sweep.axis[{}]", other.unwrap_or(0)), || {
                let axis = &sweep.axis[other.unwrap_or(0)];
                let message = format!(
                    "`{}` has {} values to zip, and `{}` has {first}",
                    axis.key,
                    length(axis),
                    sweep.axis[0].key
                );
                (message, "give all axes as many values, or write `method = \"grid\"`".into())
            });
        }
        self.unless(!sweep.method.draws() || sweep.samples.is_some(), "sweep.method", || {
            let message = "`sweep.samples` is missing: points are drawn";
            (message.into(), "add `samples = N` under [sweep]".into())
        });
        let points = match sweep.method {
            Method::Grid => {
                sweep.axis.iter().fold(1, |all: u64, of| all.saturating_mul(length(of) as u64))
            }
            Method::Zip => sweep.axis.first().map_or(1, |axis| length(axis) as u64),
            Method::LatinHypercube | Method::Sobol | Method::Optimize => {
                u64::from(sweep.samples.unwrap_or(1))
            }
        };
        let runs = points.saturating_mul(u64::from(sweep.seeds));
        self.unless(runs <= RUNS_MAX, "sweep.seeds", || {
            let message = format!("{points} points under {} seeds are {runs} runs", sweep.seeds);
            (message, format!("a sweep has at most {RUNS_MAX}: take fewer values or seeds, or draw points with `method = \"sobol\"`"))
        });
    }

    /// What an optimiser needs.
    fn search(&mut self, sweep: &Sweep, seed: u64) {
        let is_search = sweep.method == Method::Optimize;
        let Some(optimize) = &sweep.optimize else {
            return self.unless(!is_search, "sweep.method", || {
                let message = "section [sweep.optimize] is missing: nothing is looked for";
                (message.into(), "add [sweep.optimize] with `figure = …`".into())
            });
        };
        self.figure("sweep.optimize.figure", &optimize.figure);
        self.unless(!is_search || !sweep.axis.is_empty(), "sweep.method", || {
            let message = "`optimize` needs an axis: there is nothing to choose";
            (message.into(), "add [[sweep.axis]] with `key`, `low` and `high`".into())
        });
        if let (true, false, Some(samples)) = (is_search, sweep.axis.is_empty(), sweep.samples) {
            let batch = optimize.optimizer(sweep.axis.len(), seed).ask().len();
            self.unless(samples as usize >= batch, "sweep.samples", || {
                let message = format!("the optimiser asks for {batch} points at a time");
                (message, format!("write at least {batch} samples"))
            });
        }
    }

    fn figure(&mut self, place: &str, figure: &String) {
        self.unless(FIGURES.contains(figure), place, || {
            let help = match closest(figure, FIGURES.iter().map(String::as_str)) {
                Some(known) => format!("did you mean `{known}`?"),
                None => "write a key of `summary.json` that is a number, such as `convergence.max_over_mean`".into(),
            };
            (format!("no summary has the figure `{figure}`"), help)
        });
    }

    /// Baseline and figures name what there is.
    fn named(&mut self, sweep: &Sweep) {
        for (at, text) in sweep.baseline.iter().enumerate() {
            let place = format!("sweep.baseline[{at}]");
            let Ok((key, value)) = set::split(text) else {
                self.unless(false, &place, || {
                    let help = "write \"key=value\", such as \"game.router=top_k\"";
                    (format!("`{text}` names no value of an axis"), help.into())
                });
                continue;
            };
            let Some(axis) = sweep.axis.iter().find(|axis| axis.key == key) else {
                self.unless(false, &place, || {
                    let keys = quoted(sweep.axis.iter().map(|axis| axis.key.as_str()));
                    (format!("no axis varies `{key}`"), format!("the axes are {keys}"))
                });
                continue;
            };
            let is_value = axis.values.iter().any(|of| is_same(&key, of, &value));
            self.unless(is_value, &place, || {
                let values: Vec<String> = axis.values.iter().map(Value::to_string).collect();
                let message = format!("{value} is no value of the axis of `{key}`");
                (message, format!("write one of its values: {}", values.join(", ")))
            });
        }
        for (at, figure) in sweep.figures.iter().enumerate() {
            self.figure(&format!("sweep.figures[{at}]"), figure);
        }
    }

    /// Each point as a scenario of its own.
    fn points(&mut self, scenario: &Scenario, known: &Known<'_>) {
        let experiment = Experiment::new(scenario);
        let mut told = BTreeSet::new();
        let points = experiment.points();
        let axes = experiment.sweep().axis.len();
        // Which points an optimiser asks for is not known: its box has ends.
        let is_search = experiment.sweep().method == Method::Optimize;
        let count = if is_search { 2 } else { points.count() };
        let at = |point| {
            if is_search { points.placed(&vec![point as f64; axes]) } else { points.at(point) }
        };
        for point in 0..count {
            let parameters = at(point);
            for (key, message, help) in point_problems(&experiment, &parameters, known) {
                if told.len() == SHOWN_MAX || !told.insert((key.clone(), message.clone())) {
                    continue;
                }
                let axes = experiment.keys();
                let by_key = axes.iter().position(|of| within(&key, of) || within(of, &key));
                let place = format!("sweep.axis[{}]", by_key.unwrap_or(0));
                let named: Vec<String> = axes
                    .iter()
                    .zip(&parameters)
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let message = format!("at the point {}: {message}", named.join(", "));
                self.unless(false, &place, || (message, help));
            }
        }
    }
}

/// Key, message and help of what is wrong with the scenario of one point.
fn point_problems(
    experiment: &Experiment,
    parameters: &[Value],
    known: &Known<'_>,
) -> Vec<(String, String, String)> {
    let table = match experiment.table_at(parameters) {
        Ok(table) => table,
        Err((message, help)) => return vec![(String::new(), message, help)],
    };
    let origins = Origins::new("", "");
    let walked = walk(&table, &origins);
    let mut problems = walked.problems;
    match Scenario::deserialize(walked.table) {
        Ok(scenario) => {
            problems.extend(conflicts::find(&scenario, known, &origins, &walked.bad));
        }
        Err(error) if problems.is_empty() => {
            let help = "compare the values with the output of `nashflock schema`".to_owned();
            return vec![(String::new(), error.message().to_owned(), help)];
        }
        Err(_) => {}
    }
    problems.into_iter().map(|problem| (problem.key, problem.message, problem.help)).collect()
}

/// Whether two values of a key are one: numbers by what they are.
pub(super) fn is_same(key: &str, a: &Value, b: &Value) -> bool {
    let number =
        |value: &Value| value.as_float().or_else(|| value.as_integer().map(|of| of as f64));
    match (number(a), number(b)) {
        (Some(a), Some(b)) if is_number(key) || takes_whole_numbers(key) => a == b,
        _ => a == b,
    }
}

/// The keys of the summary that are numbers or true or false.
static FIGURES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Summary>().to_value();
    let mut keys = BTreeSet::new();
    figures("", &schema, &mut keys);
    keys
});

fn figures(path: &str, schema: &Json, keys: &mut BTreeSet<String>) {
    let variants = ["anyOf", "oneOf", "allOf"].iter().filter_map(|of| schema[of].as_array());
    variants.flatten().for_each(|variant| figures(path, variant, keys));
    for (key, of_key) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        figures(&path, of_key, keys);
    }
    let is_figure = |name: &Json| matches!(name.as_str(), Some("integer" | "number" | "boolean"));
    let types = &schema["type"];
    if is_figure(types) || types.as_array().is_some_and(|types| types.iter().any(is_figure)) {
        keys.insert(path.to_owned());
    }
}
