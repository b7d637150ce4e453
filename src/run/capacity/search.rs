//! Where to look next for the largest rate that holds: outward until a rate that holds and one that
//! fails are known, then between them.

/// Rates that scenarios allow, requests a second.
pub(super) const RATES: (f64, f64) = (0.001, 1_000_000.0);

/// The search's state: what is known of rates so far, taking it that what holds at one rate holds at
/// every lower one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    start: f64,
    highest: f64,
    precision: f64,
    /// The largest rate that held.
    pub(super) holds: Option<f64>,
    /// The smallest rate that did not.
    pub(super) fails: Option<f64>,
}

impl Search {
    /// Begins at `start` and goes up to `highest`; ends when the two ends differ by at most the share
    /// `precision` of the lower.
    pub(super) fn new(start: f64, highest: f64, precision: f64) -> Self {
        let highest = highest.clamp(RATES.0, RATES.1);
        Self { start: start.min(highest), highest, precision, holds: None, fails: None }
    }

    /// The next rate to try; none when the answer is known as well as was asked for, or there is none
    /// within reach.
    pub(super) fn next(&self) -> Option<f64> {
        let (lowest, highest) = (RATES.0, self.highest);
        match (self.holds, self.fails) {
            (None, None) => Some(self.start),
            (Some(holds), None) => (holds < highest).then(|| (holds * 2.0).min(highest)),
            (None, Some(fails)) => (fails > lowest).then(|| (fails / 2.0).max(lowest)),
            // A rate is a scale: half way between 10 and 40 is 20.
            (Some(holds), Some(fails)) => {
                (fails > holds * (1.0 + self.precision)).then(|| (holds * fails).sqrt())
            }
        }
    }

    /// Takes in what was found at a rate that [`Search::next`] gave.
    pub(super) fn learn(&mut self, rate: f64, held: bool) {
        *(if held { &mut self.holds } else { &mut self.fails }) = Some(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::Search;

    fn find(start: f64, precision: f64, holds: impl Fn(f64) -> bool) -> (Search, usize) {
        let mut search = Search::new(start, 1_000_000.0, precision);
        let mut tried = 0;
        while let Some(rate) = search.next() {
            search.learn(rate, holds(rate));
            tried += 1;
            assert!(tried < 100, "the search ends");
        }
        (search, tried)
    }

    #[test]
    fn the_edge_is_found_from_below_and_from_above() {
        for start in [0.5, 70.0, 100.0, 3_000.0] {
            for edge in [0.9, 77.7, 100.0, 41_234.5] {
                let (found, tried) = find(start, 0.02, |rate| rate <= edge);
                let (holds, fails) = (found.holds.expect("below"), found.fails.expect("above"));
                assert!(holds <= edge && edge < fails && fails <= holds * 1.02, "{found:?}");
                assert!(tried <= 26, "{start} {edge}: {tried}");
            }
        }
    }

    #[test]
    fn the_search_ends_where_no_rate_holds_or_all_do() {
        let (none, _) = find(8.0, 0.05, |_| false);
        assert_eq!((none.holds, none.fails), (None, Some(0.001)));
        let (all, _) = find(8.0, 0.05, |_| true);
        assert_eq!((all.holds, all.fails), (Some(1_000_000.0), None));
    }
}
