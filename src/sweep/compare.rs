//! What differs between two sweeps: keys of the scenarios, and at the points that both have, the figures.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;
use serde_json::{Value as Json, json};
use toml::{Table, Value};

use super::error::{SweepError, malformed, unreadable};
use super::points::PointRuns;
use super::{Parameter, SweepDir};
use crate::results::compare::{Difference, differences};
use crate::results::statistics::Interval;

/// Two sweeps held against each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepDifferences {
    /// Keys of the scenarios that differ, those of `[sweep]` too.
    pub scenario: Vec<Difference>,
    /// Points that both have.
    pub points: u64,
    /// Points that only the one or the other has.
    pub points_alone: [u64; 2],
    /// Of the points that both have each figure that both have.
    pub figures: Vec<FigureDifference>,
}

/// A figure at one point of both sweeps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FigureDifference {
    /// What is set at the point, by key.
    pub parameters: BTreeMap<String, String>,
    /// The key in the summary.
    pub figure: String,
    /// Of the first sweep.
    pub a: Interval,
    /// Of the second.
    pub b: Interval,
    /// b − a.
    pub difference: Interval,
    /// Whether it is over pairs of runs of the same seeds.
    pub paired: bool,
    /// Whether its interval excludes zero.
    pub moved: bool,
}

struct Side {
    scenario: Table,
    keys: Vec<String>,
    points: Vec<PointRuns>,
}

impl Side {
    fn of(dir: &SweepDir, figures: &[String]) -> Result<Self, SweepError> {
        let file = dir.scenario();
        let text = fs::read_to_string(&file).map_err(unreadable(&file))?;
        let scenario: Table = text.parse().map_err(|error| malformed(&file, error))?;
        let points = PointRuns::gather(dir.rows()?, figures)?;
        Ok(Self { scenario, keys: dir.head().keys.clone(), points })
    }

    /// What is set at a point, of the keys that either sweep varies.
    fn parameters(&self, point: &PointRuns, keys: &[String]) -> BTreeMap<String, String> {
        let of = |key: &String| {
            let axis = self.keys.iter().position(|own| own == key);
            let varied = axis.and_then(|at| point.parameters.get(at)).map(ToString::to_string);
            let fixed = || Some(Parameter::from(value_at(&self.scenario, key)?).to_string());
            (key.clone(), varied.or_else(fixed).unwrap_or_default())
        };
        keys.iter().map(of).collect()
    }
}

fn value_at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => value_at(table.get(section)?.as_table()?, rest),
    }
}

/// Holds `b` against `a`, by these figures.
///
/// # Errors
/// A file is missing or damaged.
pub fn compare(
    a: &SweepDir,
    b: &SweepDir,
    figures: &[String],
) -> Result<SweepDifferences, SweepError> {
    let (a, b) = (Side::of(a, figures)?, Side::of(b, figures)?);
    let scenario: [Json; 2] = [json!(a.scenario), json!(b.scenario)];
    let mut keys: Vec<String> = a.keys.iter().chain(&b.keys).cloned().collect();
    keys.sort();
    keys.dedup();
    let mut of_b: BTreeMap<BTreeMap<String, String>, &PointRuns> =
        b.points.iter().map(|point| (b.parameters(point, &keys), point)).collect();
    let (mut found, mut points) = (Vec::new(), 0);
    for point in &a.points {
        let parameters = a.parameters(point, &keys);
        let Some(other) = of_b.remove(&parameters) else { continue };
        points += 1;
        for (at, figure) in figures.iter().enumerate() {
            let means = point.mean(at).zip(other.mean(at)).zip(point.less_than(other, at));
            let Some(((mean_a, mean_b), difference)) = means else { continue };
            found.push(FigureDifference {
                parameters: parameters.clone(),
                figure: figure.clone(),
                a: mean_a,
                b: mean_b,
                difference,
                paired: point.shares_seeds_with(other),
                moved: difference.excludes_zero(),
            });
        }
    }
    Ok(SweepDifferences {
        scenario: differences(&scenario[0], &scenario[1]),
        points,
        points_alone: [a.points.len() as u64 - points, of_b.len() as u64],
        figures: found,
    })
}
