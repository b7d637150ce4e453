//! What was seen of a run, thinned out so that it covers the whole run in bounded memory.

use crate::results::Snapshot;

/// Points kept at most: then every other one is dropped.
const POINTS_MAX: usize = 600;

/// From this long on a run without new tokens plays none a second.
const IDLE_NS: u64 = 1_000_000_000;

/// Points of a run, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: Vec<Point>,
    /// Snapshots for each point kept.
    every: u64,
    /// Snapshots since the last point.
    since: u64,
    /// What the rate is taken from.
    before: Option<(u64, u64)>,
}

/// One moment of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// From the start of serving, s.
    pub at_s: f64,
    /// Largest ε of the layers' latest rounds, score units.
    pub epsilon_nash: Option<f64>,
    /// Largest gap of the same, a share.
    pub relative_gap: Option<f64>,
    /// Tokens played a second since the point before.
    pub tokens_per_s: f64,
}

impl History {
    /// Adds a snapshot; one that says nothing new of the play is left out.
    pub fn add(&mut self, snapshot: &Snapshot) {
        let (elapsed_ns, tokens) = (snapshot.elapsed_ns, snapshot.tokens_played);
        let before = *self.before.get_or_insert((elapsed_ns, tokens));
        if snapshot.rounds == 0 || elapsed_ns <= before.0 {
            return;
        }
        // Snapshots come between batches too: a short wait is no rate of zero.
        if tokens == before.1 && elapsed_ns - before.0 < IDLE_NS {
            return;
        }
        self.since += 1;
        if self.since < self.every {
            return;
        }
        let passed_s = (elapsed_ns - before.0) as f64 / 1e9;
        self.points.push(Point {
            at_s: elapsed_ns as f64 / 1e9,
            epsilon_nash: snapshot.epsilon_nash,
            relative_gap: snapshot.relative_gap,
            tokens_per_s: tokens.saturating_sub(before.1) as f64 / passed_s,
        });
        (self.since, self.before) = (0, Some((elapsed_ns, tokens)));
        if self.points.len() >= POINTS_MAX {
            let mut at = 0;
            self.points.retain(|_| {
                at += 1;
                at % 2 == 0
            });
            self.every = 2 * self.every.max(1);
        }
    }

    /// What is kept, in the order of time.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::{History, POINTS_MAX};
    use crate::results::Snapshot;

    #[test]
    fn a_long_run_is_covered_from_start_to_end_by_a_bounded_number_of_points() {
        let mut history = History::default();
        for at in 0..10_000_u64 {
            let (elapsed_ns, tokens_played) = (at * 100_000_000, at * 40);
            history.add(&Snapshot { elapsed_ns, tokens_played, rounds: at, ..Snapshot::default() });
        }
        let points = history.points();
        assert!((POINTS_MAX / 4..POINTS_MAX).contains(&points.len()), "{}", points.len());
        assert!(points[0].at_s < 10.0 && points[points.len() - 1].at_s > 990.0);
        assert!(points.windows(2).all(|pair| pair[0].at_s < pair[1].at_s));
        assert!(points.iter().all(|point| (399.0..401.0).contains(&point.tokens_per_s)));
    }

    #[test]
    fn a_snapshot_that_says_nothing_new_is_left_out() {
        let mut history = History::default();
        let mut snapshot = Snapshot::default();
        history.add(&snapshot);
        (snapshot.elapsed_ns, snapshot.tokens_played, snapshot.rounds) = (1_000_000_000, 50, 1);
        history.add(&snapshot);
        history.add(&snapshot);
        snapshot.elapsed_ns = 1_500_000_000;
        history.add(&snapshot);
        assert_eq!(history.points().len(), 1);
        assert_eq!(history.points()[0].tokens_per_s.to_bits(), 50.0_f64.to_bits());
        snapshot.elapsed_ns = 2_000_000_000;
        history.add(&snapshot);
        assert_eq!(history.points()[1].tokens_per_s.to_bits(), 0.0_f64.to_bits());
    }
}
