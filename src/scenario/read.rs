//! Reads a scenario: text, overrides, checks, paths.

use std::path::{Path, PathBuf};

use agents::flock::migration::MigrationRegistry;
use agents::flock::motion::MotionRegistry;
use agents::game::CostRegistry;
use agents::precision::AllocatorRegistry;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::conflicts;
use super::file::{Scenario, Source};
use super::problem::{At, Origins, Problem, Problems};
use super::set;
use super::shape::{self, join};
use super::sweep;

/// Names that scenarios may use and that others define.
#[derive(Clone)]
pub struct Known<'a> {
    /// Routers by name.
    pub routers: Vec<String>,
    /// Congestion costs by name, which check their own parameters.
    pub costs: &'a CostRegistry,
    /// Allocators of bit widths by name.
    pub allocators: &'a AllocatorRegistry,
    /// Rules of motion by name.
    pub motions: &'a MotionRegistry,
    /// Rules of migration by name.
    pub migrations: &'a MigrationRegistry,
}

/// Reads a scenario file, applies `--set` texts such as `game.top_k=4` in order, and checks the
/// outcome. Paths in it, those of `--set` included, are relative to the file and come back absolute.
///
/// # Errors
/// Every problem at once. Broken TOML syntax hides the rest: then the syntax errors that the parser
/// can tell apart.
pub fn load(path: &Path, sets: &[String], known: &Known<'_>) -> Result<Scenario, Problems> {
    let name = path.display().to_string();
    let text = text_of(path).map_err(|(message, help)| {
        Problems(vec![Origins::new(&name, "").of_file(message, help)])
    })?;
    let mut origins = Origins::new(&name, &text);
    let mut table = parse(&mut origins)?;
    let mut problems = override_with(sets, &mut table, &mut origins);
    let walked = shape::walk(&table, &origins);
    problems.extend(walked.problems);
    let scenario = Scenario::deserialize(walked.table).map(|mut scenario| {
        let base = std::path::absolute(path).unwrap_or_else(|_| path.into());
        paths_of(&mut scenario).for_each(|path| {
            let relative = std::mem::take(path);
            *path = base.parent().unwrap_or(&base).join(relative);
        });
        let folder = base.parent().unwrap_or(&base);
        scenario.sweep.iter_mut().for_each(|sweep| sweep::absolute_paths(sweep, folder));
        problems.extend(conflicts::find(&scenario, known, &origins, &walked.bad));
        if let Some(section) = &scenario.sweep {
            let is_good = problems.is_empty();
            let of = (&scenario, section);
            problems.extend(sweep::find(of, known, &origins, &walked.bad, is_good));
        }
        scenario
    });
    problems.sort_by_key(|problem| (problem.line.is_none(), problem.line, problem.column));
    match scenario {
        Ok(scenario) if problems.is_empty() => Ok(scenario),
        // The schema should leave nothing for serde to refuse; if it does, its words still reach the user.
        Err(error) if problems.is_empty() => {
            let help = "compare the file with the output of `nashflock schema`".into();
            Err(Problems(vec![origins.of_file(error.message().into(), help)]))
        }
        _ => Err(Problems(problems)),
    }
}

/// The scenario as TOML with every key stated, defaults included; optional keys without a value are
/// left out. Paths are as in the value: absolute after [`load`], so that a copy in a run directory
/// can be run again. Reading it gives the same value.
///
/// # Panics
/// When a value made by hand has no TOML form: a seed above 2^63 - 1 or a path that is not UTF-8.
/// [`load`] refuses both.
#[must_use]
pub fn resolved(scenario: &Scenario) -> String {
    toml::to_string(scenario).expect("a scenario within its documented ranges has a TOML form")
}

/// Message and help of a file that cannot be read.
fn text_of(path: &Path) -> Result<String, (String, String)> {
    const BYTES_MAX: u64 = 1 << 20;
    let unreadable = |error: std::io::Error| {
        let help = "give the path of a scenario file, such as scenarios/quickstart.toml";
        (format!("cannot read the scenario: {error}"), help.to_owned())
    };
    if path.metadata().map_err(unreadable)?.len() > BYTES_MAX {
        let help = "give the path of a scenario file: those are short TOML texts";
        return Err((format!("the file is larger than {BYTES_MAX} bytes"), help.into()));
    }
    if std::path::absolute(path).map_err(unreadable)?.to_str().is_none() {
        let help = "rename the folder: results state the path as text";
        return Err(("the path of the scenario is not UTF-8".into(), help.into()));
    }
    String::from_utf8(std::fs::read(path).map_err(unreadable)?).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        (format!("line {line} is not UTF-8 (byte {good})"), "save the file as UTF-8".into())
    })
}

/// Parses the text and notes where each key stands.
fn parse(origins: &mut Origins) -> Result<Table, Problems> {
    let text = origins.text();
    let (document, errors) = DeTable::parse_recoverable(&text);
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let help =
            "correct the TOML: `key = value` lines under [section] headers, strings in quotes";
        let span = error.span().unwrap_or(0..0);
        let problem = origins.at_span(span, "", error.message().to_string(), help.into());
        // What follows an error on its line is mostly its echo.
        if problems.iter().all(|earlier| earlier.line != problem.line) {
            problems.push(problem);
        }
    }
    if problems.is_empty() {
        Ok(plain_table(document.get_ref(), "", origins))
    } else {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Err(Problems(problems))
    }
}

fn plain_table(table: &DeTable<'_>, path: &str, origins: &mut Origins) -> Table {
    let mut plain_table = Table::new();
    for (key, value) in table {
        let path = join(path, key.get_ref());
        origins.spans.insert(path.clone(), (key.span(), value.span()));
        plain_table.insert(key.get_ref().to_string(), plain(value, &path, origins));
    }
    plain_table
}

fn plain(value: &Spanned<DeValue<'_>>, path: &str, origins: &mut Origins) -> Value {
    match value.get_ref() {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(value) => (*value).into(),
        DeValue::Float(float) => float.as_str().parse().unwrap_or(f64::NAN).into(),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => value.into(),
            // Beyond 64 bits: kept as a float, which every range of a whole number refuses.
            Err(_) => integer.as_str().parse().unwrap_or(f64::INFINITY).into(),
        },
        DeValue::Array(items) => {
            let item = |(index, item): (usize, &Spanned<DeValue<'_>>)| {
                let path = format!("{path}[{index}]");
                origins.spans.insert(path.clone(), (item.span(), item.span()));
                plain(item, &path, origins)
            };
            items.iter().enumerate().map(item).collect::<Vec<_>>().into()
        }
        DeValue::Table(table) => plain_table(table, path, origins).into(),
    }
}

/// Applies the `--set` texts.
fn override_with(sets: &[String], table: &mut Table, origins: &mut Origins) -> Vec<Problem> {
    let mut problems = Vec::new();
    for text in sets {
        let applied = set::split(text).and_then(|(key, value)| {
            set::apply(table, &key, value)?;
            origins.sets.push((key, text.clone()));
            Ok(())
        });
        if let Err((message, help)) = applied {
            let key = text.split('=').next().unwrap_or_default();
            problems.push(origins.of_set(text, At::Key, key, message, help));
        }
    }
    problems
}

fn paths_of(scenario: &mut Scenario) -> impl Iterator<Item = &mut PathBuf> {
    let source: Vec<&mut PathBuf> = match &mut scenario.source {
        Source::Checkpoint { checkpoint, text } => {
            std::iter::once(checkpoint).chain(text).collect()
        }
        Source::Synthetic { .. } => Vec::new(),
    };
    let given = [&mut scenario.precision.calibration_text, &mut scenario.load.trace];
    let tls = scenario.nodes.tls.paths_mut();
    source.into_iter().chain(given.into_iter().flatten()).chain(tls)
}
