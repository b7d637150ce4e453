//! Rows to points: one value a step, few enough to draw, zeros given a place on a log axis.

use std::collections::BTreeMap;

use crate::results::RoundRow;

/// Points drawn in one line at most.
pub(super) const POINTS_MAX: usize = 2_000;

/// x and y, ascending in x, y finite.
pub(super) type Points = Vec<(f64, f64)>;

/// The largest value over the layers of each step; steps without one are left out.
#[expect(clippy::cast_precision_loss, reason = "a step is a position on an axis")]
pub(super) fn worst_layer(rounds: &[RoundRow], value: impl Fn(&RoundRow) -> Option<f64>) -> Points {
    let mut steps = BTreeMap::new();
    for row in rounds {
        if let Some(value) = value(row).filter(|value| value.is_finite()) {
            steps
                .entry(row.step)
                .and_modify(|worst: &mut f64| *worst = worst.max(value))
                .or_insert(value);
        }
    }
    steps.into_iter().map(|(step, worst)| (step as f64, worst)).collect()
}

/// Keeps the lowest and the highest point of each run of equal length, so that no spike is lost.
pub(super) fn thin(points: Points) -> Points {
    if points.len() <= POINTS_MAX {
        return points;
    }
    let run = points.len().div_ceil(POINTS_MAX / 2);
    points
        .chunks(run)
        .flat_map(|run| {
            let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = *run.iter().min_by(by_y).expect("chunks are not empty");
            let high = *run.iter().max_by(by_y).expect("chunks are not empty");
            match low.0.total_cmp(&high.0) {
                std::cmp::Ordering::Less => vec![low, high],
                std::cmp::Ordering::Equal => vec![low],
                std::cmp::Ordering::Greater => vec![high, low],
            }
        })
        .collect()
}

/// Lines ready for a log axis.
pub(super) struct Floored {
    /// The lines; what lay on or below zero, or below the floor, now lies on it.
    pub(super) lines: Vec<Points>,
    /// A decade under the smallest value shown.
    pub(super) floor: f64,
    /// Points moved to the floor.
    pub(super) moved: usize,
}

/// Values under this are rounding of f64 sums around 1 and are not told apart from zero.
const SMALLEST: f64 = 1e-12;

/// Moves what a log axis cannot show to a floor one decade below the smallest value it can show.
pub(super) fn floored(lines: Vec<Points>) -> Floored {
    let shown = lines.iter().flatten().map(|point| point.1).filter(|y| *y >= SMALLEST);
    let smallest = shown.fold(f64::INFINITY, f64::min);
    let floor =
        if smallest.is_finite() { 10f64.powf(smallest.log10().floor() - 1.0) } else { SMALLEST };
    let mut moved = 0;
    let lines = lines
        .into_iter()
        .map(|line| {
            line.into_iter()
                .map(|(x, y)| {
                    if y < SMALLEST {
                        moved += 1;
                        (x, floor)
                    } else {
                        (x, y)
                    }
                })
                .collect()
        })
        .collect();
    Floored { lines, floor, moved }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_every_spike_and_the_order() {
        let mut points: Points = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[7_777].1 = 50.0;
        points[1_234].1 = -3.0;
        let thinned = thin(points);
        assert!(thinned.len() <= POINTS_MAX, "{}", thinned.len());
        assert!(thinned.contains(&(7_777.0, 50.0)) && thinned.contains(&(1_234.0, -3.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn few_points_are_all_kept() {
        let points: Points = (0..2_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        assert_eq!(thin(points.clone()), points);
    }

    #[test]
    fn zeros_lie_on_a_floor_below_everything_else() {
        let floored =
            floored(vec![vec![(0.0, 0.5), (1.0, 0.0)], vec![(0.0, 0.003), (1.0, -1e-16)]]);
        assert!((floored.floor - 1e-4).abs() < 1e-16);
        assert_eq!(floored.moved, 2);
        assert_eq!(floored.lines[0][1].1, floored.floor);
        assert_eq!(floored.lines[1][0].1, 0.003);
    }
}
