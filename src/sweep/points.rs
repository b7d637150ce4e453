//! The rows of a sweep by point, with the few figures that are asked for.

use std::collections::BTreeMap;

use super::error::SweepError;
use super::row::{Parameter, Row};
use crate::results::statistics::{self, Interval};

/// The runs of one point.
#[derive(Clone, Debug, PartialEq)]
pub struct PointRuns {
    /// Its number.
    pub point: u64,
    /// What is set there, in the order of the axes.
    pub parameters: Vec<Parameter>,
    /// Runs that failed: they have no figures.
    pub failed: u64,
    /// Of each figure that was asked for the value of each run that has it, by its repetition.
    figures: Vec<BTreeMap<u32, f64>>,
    /// Seed by repetition.
    seeds: BTreeMap<u32, u64>,
}

impl PointRuns {
    /// Gathers rows that come in the order of the runs.
    ///
    /// # Errors
    /// That of the first row that has one.
    pub fn gather(
        rows: impl Iterator<Item = Result<Row, SweepError>>,
        figures: &[String],
    ) -> Result<Vec<Self>, SweepError> {
        let mut points: Vec<Self> = Vec::new();
        for row in rows {
            let row = row?;
            if points.last().is_none_or(|point| point.point != row.point) {
                points.push(Self {
                    point: row.point,
                    parameters: row.parameters.clone(),
                    failed: 0,
                    figures: vec![BTreeMap::new(); figures.len()],
                    seeds: BTreeMap::new(),
                });
            }
            let point = points.last_mut().expect("just pushed");
            point.failed += u64::from(!row.is_complete());
            point.seeds.insert(row.replicate, row.seed);
            for (values, key) in point.figures.iter_mut().zip(figures) {
                values.extend(row.figure(key).map(|value| (row.replicate, value)));
            }
        }
        Ok(points)
    }

    /// The values of a figure, by its place among those that were asked for.
    #[must_use]
    pub fn values(&self, figure: usize) -> Vec<f64> {
        self.figures[figure].values().copied().collect()
    }

    /// Its mean over seeds.
    #[must_use]
    pub fn mean(&self, figure: usize) -> Option<Interval> {
        statistics::mean(&self.values(figure))
    }

    /// How much more of a figure `other` has: over pairs of runs where both points have the same seeds, else as of
    /// independent runs.
    #[must_use]
    pub fn less_than(&self, other: &Self, figure: usize) -> Option<Interval> {
        if self.shares_seeds_with(other) {
            let pairs = self.figures[figure].iter().filter_map(|(replicate, value)| {
                Some((*value, *other.figures[figure].get(replicate)?))
            });
            return statistics::paired(&pairs.collect::<Vec<_>>());
        }
        statistics::unpaired(&self.values(figure), &other.values(figure))
    }

    /// Whether runs of the same repetition had the same random numbers at both points.
    #[must_use]
    pub fn shares_seeds_with(&self, other: &Self) -> bool {
        self.seeds
            .iter()
            .all(|(replicate, seed)| other.seeds.get(replicate).is_none_or(|other| other == seed))
    }
}
