//! What the page of a sweep shows, gathered from its rows.

use std::collections::BTreeMap;
use std::fs;

use super::dir::write_whole;
use super::error::{SweepError, malformed, unreadable};
use super::points::PointRuns;
use super::row::{Parameter, target_key};
use super::{SweepDir, status};
use crate::results::report::sweep::{
    Effect, PointRecord, SearchRecord, SweepRecord, TargetCurve, render_sweep,
};
use crate::results::statistics::{Interval, mean_of_groups};
use crate::scenario::Scenario;
use crate::scenario::sweep::{Experiment, Method, Optimize, Sought, Target, TargetFigure};

/// Points of a drawn axis that are drawn in a picture at most.
const DOTS_MAX: usize = 1_000;

/// Writes `report.html` from the rows that there are.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_report(dir: &SweepDir) -> Result<(), SweepError> {
    let page = render_sweep(&record(dir)?);
    write_whole(&dir.path().join("report.html"), page.as_bytes())
}

/// The experiment of a directory, which was checked when it was made.
fn experiment(dir: &SweepDir) -> Result<Experiment, SweepError> {
    let file = dir.scenario();
    let text = fs::read_to_string(&file).map_err(unreadable(&file))?;
    let scenario: Scenario = toml::from_str(&text).map_err(|error| malformed(&file, error))?;
    Ok(Experiment::new(&scenario))
}

fn record(dir: &SweepDir) -> Result<SweepRecord, SweepError> {
    let experiment = experiment(dir)?;
    let sweep = experiment.sweep();
    let figures = sweep.shown_figures();
    let points = PointRuns::gather(dir.rows()?, &figures)?;
    let (shards, failures) = status(dir)?;
    let sum = |of: fn(&super::ShardStatus) -> u64| shards.iter().map(of).sum();
    // A figure that no run has, such as a loss where no text is scored, would be an empty column.
    let is_there = |at: &usize| points.iter().any(|point| !point.values(*at).is_empty());
    let shown: Vec<usize> = (0..figures.len()).filter(is_there).collect();
    let point = |of: &PointRuns| PointRecord {
        parameters: of.parameters.iter().map(ToString::to_string).collect(),
        failed: of.failed,
        figures: shown.iter().map(|at| of.mean(*at)).collect(),
    };
    let targets = match &sweep.target {
        None => None,
        Some(target) => Some((
            target.figure.name().to_owned(),
            work_of(target.figure).to_owned(),
            target.at_most.clone(),
            curves(dir, &experiment, target)?,
        )),
    };
    Ok(SweepRecord {
        name: dir.head().name.clone(),
        method: match sweep.method {
            Method::Grid => "every value with every other".to_owned(),
            Method::Zip => "values of all axes in turn".to_owned(),
            Method::LatinHypercube => "a Latin hypercube".to_owned(),
            Method::Sobol => "a scrambled Sobol sequence".to_owned(),
            Method::Optimize => "points that an optimiser asked for".to_owned(),
        },
        seeds: sweep.seeds,
        common_random_numbers: sweep.common_random_numbers,
        runs: (dir.head().runs, sum(|of| of.done), sum(|of| of.failed)),
        failures,
        keys: experiment.keys(),
        points: points.iter().map(point).collect(),
        effects: effects(&experiment, &figures, &shown, &points),
        search: match &sweep.optimize {
            Some(optimize) if sweep.method == Method::Optimize => Some(found(dir, optimize)?),
            _ => None,
        },
        baseline: against_baseline(&experiment, &shown, &points),
        targets,
        figures: shown.iter().map(|at| figures[*at].clone()).collect(),
    })
}

/// What an optimiser found among the points that were tried.
fn found(dir: &SweepDir, optimize: &Optimize) -> Result<SearchRecord, SweepError> {
    let points = PointRuns::gather(dir.rows()?, std::slice::from_ref(&optimize.figure))?;
    let mut best: Option<(Vec<String>, Interval)> = None;
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for (tried, point) in (1_u32..).zip(&points) {
        let mean = point.mean(0).filter(|_| point.failed == 0);
        let is_better = |mean: &Interval| {
            let cost = |of: &Interval| optimize.cost(of.mean);
            best.as_ref().is_none_or(|(_, best)| cost(mean) < cost(best))
        };
        if let Some(mean) = mean.filter(is_better) {
            best = Some((point.parameters.iter().map(ToString::to_string).collect(), mean));
        }
        curve.extend(best.as_ref().map(|(_, best)| (f64::from(tried), best.mean)));
    }
    let sought = match optimize.sought {
        Sought::Least => "least",
        Sought::Largest => "largest",
    };
    Ok(SearchRecord {
        optimizer: optimize.optimizer.name().to_owned(),
        sought: (optimize.figure.clone(), sought.to_owned()),
        best,
        curve,
    })
}

/// Each axis with each figure.
fn effects(
    experiment: &Experiment,
    figures: &[String],
    shown: &[usize],
    points: &[PointRuns],
) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (axis, key) in experiment.keys().into_iter().enumerate() {
        let mut groups: Vec<(&Parameter, Vec<&PointRuns>)> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for point in points {
            let Some(value) = point.parameters.get(axis) else { continue };
            let at = *places.entry(value.to_string()).or_insert_with(|| {
                groups.push((value, Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push(point);
        }
        groups.truncate(DOTS_MAX);
        if groups.len() < 2 {
            continue;
        }
        for &figure in shown {
            let values = groups.iter().filter_map(|(value, points)| {
                let of: Vec<Vec<f64>> = points.iter().map(|point| point.values(figure)).collect();
                let of: Vec<&[f64]> =
                    of.iter().map(Vec::as_slice).filter(|of| !of.is_empty()).collect();
                let place = match value {
                    Parameter::Whole(whole) => Some(*whole as f64),
                    Parameter::Number(number) => Some(*number),
                    _ => None,
                };
                Some((value.to_string(), place, mean_of_groups(&of)?))
            });
            let values: Vec<_> = values.collect();
            effects.push(Effect { key: key.clone(), figure: figures[figure].clone(), values });
        }
    }
    effects
}

/// Each point that is not the baseline's less the one that is like it but for the baseline.
fn against_baseline(
    experiment: &Experiment,
    shown: &[usize],
    points: &[PointRuns],
) -> Option<(String, Vec<PointRecord>)> {
    let fixed = experiment.baseline();
    (!fixed.is_empty()).then_some(())?;
    let names = |point: &PointRuns| -> Vec<String> {
        point.parameters.iter().map(ToString::to_string).collect()
    };
    let by_name: BTreeMap<Vec<String>, &PointRuns> =
        points.iter().map(|point| (names(point), point)).collect();
    let differences = points.iter().filter_map(|point| {
        let mut like = names(point);
        for (axis, value) in &fixed {
            like[*axis] = Parameter::from(value).to_string();
        }
        let base = by_name.get(&like).filter(|base| base.point != point.point)?;
        Some(PointRecord {
            parameters: names(point),
            failed: point.failed,
            figures: shown.iter().map(|at| base.less_than(point, *at)).collect(),
        })
    });
    let keys = experiment.keys();
    let named = fixed.iter().map(|(axis, value)| format!("{} = {value}", keys[*axis]));
    Some((named.collect::<Vec<_>>().join(", "), differences.collect()))
}

/// What work is counted in: passes over the scores; the flock alone makes none, so of it steps.
fn work_of(figure: TargetFigure) -> &'static str {
    match figure {
        TargetFigure::FlockMaxOverMean | TargetFigure::FlockRelativeGap => "steps",
        _ => "passes",
    }
}

/// A curve for each value of the axis of the baseline, or of the first one.
fn curves(
    dir: &SweepDir,
    experiment: &Experiment,
    target: &Target,
) -> Result<Vec<TargetCurve>, SweepError> {
    const CURVES_MAX: usize = 8;
    let axis = experiment.baseline().first().map_or(0, |(axis, _)| *axis);
    let key = experiment.keys().get(axis).cloned();
    let keys =
        target.at_most.iter().map(|of| target_key(target.figure, *of, work_of(target.figure)));
    let keys: Vec<String> = keys.collect();
    let mut order: Vec<String> = Vec::new();
    let mut groups: BTreeMap<String, (Vec<f64>, u64)> = BTreeMap::new();
    for row in dir.rows()? {
        let row = row?;
        if !row.is_complete() {
            continue;
        }
        let value = row.parameters.get(axis).map(ToString::to_string);
        let name = match (&key, value) {
            (Some(key), Some(value)) => format!("{key} = {value}"),
            _ => "all runs".to_owned(),
        };
        if !groups.contains_key(&name) {
            order.push(name.clone());
        }
        let (works, trials) = groups.entry(name).or_default();
        *trials += keys.len() as u64;
        works.extend(keys.iter().filter_map(|key| row.figure(key)));
    }
    if order.len() > CURVES_MAX {
        // Too many to tell apart: all in one.
        let all = groups.into_values().fold((Vec::new(), 0), |(mut works, trials), (more, of)| {
            works.extend(more);
            (works, trials + of)
        });
        order = vec!["all runs".to_owned()];
        groups = BTreeMap::from([(order[0].clone(), all)]);
    }
    Ok(order
        .into_iter()
        .map(|name| {
            let (mut works, trials) = groups.remove(&name).unwrap_or_default();
            works.sort_by(f64::total_cmp);
            let share = |at: usize| (at + 1) as f64 / trials.max(1) as f64;
            // Of equal works the last one says how many there are.
            let ends = (0..works.len()).filter(|at| works.get(at + 1) != works.get(*at));
            let points = ends.map(|at| (works[at], share(at))).collect();
            TargetCurve { name, points, trials }
        })
        .collect())
}

/// The figures that any of these sweeps shows.
///
/// # Errors
/// A scenario cannot be read.
pub fn shown_figures(dirs: &[&SweepDir]) -> Result<Vec<String>, SweepError> {
    let mut figures: Vec<String> = Vec::new();
    for dir in dirs {
        let shown = experiment(dir)?.sweep().shown_figures();
        let new = shown.into_iter().filter(|figure| !figures.contains(figure));
        figures.extend(new.collect::<Vec<_>>());
    }
    Ok(figures)
}
