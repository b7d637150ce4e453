//! Figures as text, for a dashboard and for lines.

use crate::results::Snapshot;

/// A length of time with three digits and its unit.
pub(super) fn time(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        _ if ns < 1e3 => format!("{ns:.0} ns"),
        _ if ns < 1e6 => format!("{} µs", digits(ns / 1e3)),
        _ if ns < 1e9 => format!("{} ms", digits(ns / 1e6)),
        _ => format!("{} s", digits(ns / 1e9)),
    }
}

/// The same, or a dash.
pub(super) fn time_or_dash(ns: Option<u64>) -> String {
    ns.map_or_else(|| "–".to_owned(), time)
}

/// Bytes with three digits and their unit.
pub(super) fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes < 1e3 => format!("{bytes:.0} B"),
        _ if bytes < 1e6 => format!("{} kB", digits(bytes / 1e3)),
        _ if bytes < 1e9 => format!("{} MB", digits(bytes / 1e6)),
        _ => format!("{} GB", digits(bytes / 1e9)),
    }
}

/// A certificate's figure.
pub(super) fn small(figure: Option<f64>) -> String {
    match figure {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(figure) => format!("{figure:.1e}"),
    }
}

/// Three digits.
fn digits(figure: f64) -> String {
    match figure {
        _ if figure < 10.0 => format!("{figure:.2}"),
        _ if figure < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// The layer whose hottest expert is furthest above its fair share.
pub(super) fn max_over_mean(snapshot: &Snapshot) -> Option<f64> {
    snapshot.layers.iter().map(|layer| layer.max_over_mean).max_by(f64::total_cmp)
}

/// A run in one line.
#[must_use]
pub fn line(snapshot: &Snapshot) -> String {
    let Snapshot { phase, answered, requests, steps_done, steps, .. } = snapshot;
    if snapshot.rounds == 0 || snapshot.end.is_some() {
        return phase.clone();
    }
    let rate = snapshot.tokens_per_s.unwrap_or(0.0);
    let mut line = format!(
        "{phase}: {answered} of {requests} requests, batch {steps_done} of {steps}, ε {}, gap {}, \
         max over mean {:.2}, {rate:.0} tokens/s, p99 {}",
        small(snapshot.epsilon_nash),
        small(snapshot.relative_gap),
        max_over_mean(snapshot).unwrap_or(0.0),
        time_or_dash(snapshot.latency_ns.p99),
    );
    if snapshot.nodes_up < snapshot.nodes_total {
        line += &format!(", {} of {} nodes up", snapshot.nodes_up, snapshot.nodes_total);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{bytes, line, small, time};
    use crate::measure::LatencyQuantiles;
    use crate::results::{LayerSnapshot, Snapshot};

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let times = [0, 999, 1_500, 12_345_678, 123_456_789, 61_000_000_000].map(time);
        assert_eq!(times, ["0 ns", "999 ns", "1.50 µs", "12.3 ms", "123 ms", "61.0 s"]);
        let sizes = [12, 1_500, 12_345_678, 4_000_000_000].map(bytes);
        assert_eq!(sizes, ["12 B", "1.50 kB", "12.3 MB", "4.00 GB"]);
        assert_eq!([None, Some(0.0), Some(0.000_123)].map(small), ["–", "0", "1.2e-4"]);
    }

    #[test]
    fn a_line_says_how_far_a_run_is_and_how_well_it_goes() {
        let mut snapshot = Snapshot {
            phase: "serving".to_owned(),
            rounds: 8,
            steps_done: 4,
            steps: 63,
            answered: 60,
            requests: 1000,
            epsilon_nash: Some(1.21e-6),
            relative_gap: Some(0.0),
            tokens_per_s: Some(3049.6),
            layers: vec![LayerSnapshot { max_over_mean: 1.015, ..LayerSnapshot::default() }],
            latency_ns: LatencyQuantiles { p99: Some(123_400_000), ..LatencyQuantiles::default() },
            nodes_total: 3,
            nodes_up: 3,
            ..Snapshot::default()
        };
        let said = "serving: 60 of 1000 requests, batch 4 of 63, ε 1.2e-6, gap 0, \
                    max over mean 1.01, 3050 tokens/s, p99 123 ms";
        assert_eq!(line(&snapshot), said);
        snapshot.nodes_up = 2;
        assert_eq!(line(&snapshot), format!("{said}, 2 of 3 nodes up"));
        snapshot.rounds = 0;
        assert_eq!(line(&snapshot), "serving");
    }
}
