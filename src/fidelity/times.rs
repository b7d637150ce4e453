//! Times of a run, and how far those of another are from them.

use super::{FidelityError, rounds};
use crate::results::{RequestRow, RunDir};
use agents::cluster::fit::Watched;
use serde::Serialize;

/// What is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Of each step from its start to its end, ns, ascending, as all below.
    pub step_ns: Vec<u64>,
    /// From a request's intended start to its first token; empty where nothing is decoded.
    pub first_token_ns: Vec<u64>,
    /// Mean of a request's further tokens; empty likewise.
    pub token_ns: Vec<u64>,
    /// From a request's intended start to its end.
    pub request_ns: Vec<u64>,
}

/// A figure of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The mean.
    Mean,
    /// The median.
    P50,
    /// The 90th percentile.
    P90,
    /// The 99th percentile.
    P99,
    /// The 99.9th percentile.
    P999,
}

/// One figure of a run beside what others say it is. Errors are shares of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `step`, `first token`, `token` or `request`.
    pub of: &'static str,
    /// Which.
    pub statistic: Statistic,
    /// How many times it is of.
    pub count: usize,
    /// As the run has it, ns.
    pub measured_ns: f64,
    /// As the virtual cluster has it, ns.
    pub predicted_ns: f64,
    /// Of what is predicted.
    pub error: f64,
    /// Of the control, a virtual cluster that knows nothing but means.
    pub control_error: f64,
    /// Of one of the repetitions of the run on real nodes, taken for a prediction of the others, where there are any.
    pub repeat_error: Option<f64>,
}

/// All figures of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Its directory; of several repetitions, the first's.
    pub run: String,
    /// How many times it was played: what was measured is of all of them.
    pub repetitions: usize,
    /// Its scenario.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Whether the virtual cluster played the same game.
    pub same_state: bool,
    /// Figure by figure.
    pub figures: Vec<Figure>,
}

impl Times {
    /// Of a run that was observed.
    ///
    /// # Errors
    /// It was not, or its tables cannot be read.
    pub fn of(dir: &RunDir) -> Result<Self, FidelityError> {
        let mut times = Self { step_ns: steps(&rounds(dir)?), ..Self::default() };
        let requests: Vec<RequestRow> = dir.read_table()?;
        for row in requests.iter().filter(|row| row.outcome == "ok" || row.outcome == "late") {
            times.request_ns.push(row.latency_ns);
            let Some(first_ns) = row.first_token_ns else { continue };
            times.first_token_ns.push(first_ns.saturating_sub(row.intended_ns));
            let further = row.generated.unwrap_or(0).saturating_sub(1);
            if let Some(each_ns) = row.finished_ns.saturating_sub(first_ns).checked_div(further) {
                times.token_ns.push(each_ns);
            }
        }
        for list in [&mut times.first_token_ns, &mut times.token_ns, &mut times.request_ns] {
            list.sort_unstable();
        }
        Ok(times)
    }

    fn lists(&self) -> [(&'static str, &[u64]); 4] {
        [
            ("step", &self.step_ns),
            ("first token", &self.first_token_ns),
            ("token", &self.token_ns),
            ("request", &self.request_ns),
        ]
    }

    /// The times of several runs together.
    #[must_use]
    pub fn pooled(runs: &[&Self]) -> Self {
        let all = |list: fn(&Self) -> &Vec<u64>| {
            let mut all: Vec<u64> = runs.iter().flat_map(|run| list(run)).copied().collect();
            all.sort_unstable();
            all
        };
        Self {
            step_ns: all(|run| &run.step_ns),
            first_token_ns: all(|run| &run.first_token_ns),
            token_ns: all(|run| &run.token_ns),
            request_ns: all(|run| &run.request_ns),
        }
    }

    /// What was measured in all repetitions of a run beside what is predicted, what the control says and, where
    /// there are several, how near the first comes to the others.
    #[must_use]
    pub fn compare(repetitions: &[&Self], predicted: &Self, control: &Self) -> Vec<Figure> {
        use Statistic::{Mean, P50, P90, P99, P999};
        let measured = Self::pooled(repetitions);
        let others = repetitions.split_first().filter(|(_, others)| !others.is_empty());
        let others = others.map(|(first, others)| (*first, Self::pooled(others)));
        let mut figures = Vec::new();
        let said = predicted.lists().into_iter().zip(control.lists());
        for (at, ((of, list), ((_, predicted), (_, control)))) in
            measured.lists().into_iter().zip(said).enumerate()
        {
            for statistic in [Mean, P50, P90, P99, P999] {
                let Some(measured_ns) = statistic.of(list) else { continue };
                let error = |other: f64| other / measured_ns - 1.0;
                let predicted_ns = statistic.of(predicted).unwrap_or(f64::NAN);
                let control_ns = statistic.of(control).unwrap_or(f64::NAN);
                let repeat_error = others.as_ref().and_then(|(first, others)| {
                    Some(
                        statistic.of(first.lists()[at].1)? / statistic.of(others.lists()[at].1)?
                            - 1.0,
                    )
                });
                figures.push(Figure {
                    of,
                    statistic,
                    count: list.len(),
                    measured_ns,
                    predicted_ns,
                    error: error(predicted_ns),
                    control_error: error(control_ns),
                    repeat_error,
                });
            }
        }
        figures
    }
}

/// Times of the steps of which all rounds are there.
fn steps(rounds: &[Watched]) -> Vec<u64> {
    let layers = rounds.split(|round| round.is_first).map(<[Watched]>::len).max().unwrap_or(0);
    let mut steps = Vec::new();
    let mut from = 0;
    for (at, round) in rounds.iter().enumerate() {
        let ends = rounds.get(at + 1).is_none_or(|next| next.is_first);
        if round.is_first {
            from = at;
        }
        // Its other rounds, as many as any step has.
        if ends && rounds[from].is_first && at - from == layers {
            steps.push(rounds[from..=at].iter().map(Watched::took_ns).sum());
        }
    }
    steps.sort_unstable();
    steps
}

impl Statistic {
    /// Its name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }

    /// Of values in ascending order; a quantile is the smallest that at least its share do not exceed.
    #[must_use]
    pub fn of(self, ascending: &[u64]) -> Option<f64> {
        let per_mille = match self {
            Self::Mean => {
                let sum: f64 = ascending.iter().map(|value| *value as f64).sum();
                return (!ascending.is_empty()).then(|| sum / ascending.len() as f64);
            }
            Self::P50 => 500,
            Self::P90 => 900,
            Self::P99 => 990,
            Self::P999 => 999,
        };
        let rank = (ascending.len() * per_mille).div_ceil(1000).max(1);
        ascending.get(rank - 1).map(|value| *value as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::{Statistic, Times, steps};
    use agents::cluster::Work;
    use agents::cluster::fit::{Leg, Watched};
    use agents::ids::NodeId;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<u64> = (1..=1000).collect();
        let all = [Statistic::Mean, Statistic::P50, Statistic::P99, Statistic::P999];
        assert_eq!(all.map(|of| of.of(&values)), [500.5, 500.0, 990.0, 999.0].map(Some));
        assert_eq!(all.map(|of| of.of(&[7])), [Some(7.0); 4]);
        assert_eq!(all.map(|of| of.of(&[])), [None; 4]);
    }

    #[test]
    fn errors_are_shares_of_what_was_measured() {
        let times = |ns: u64| Times { request_ns: vec![ns; 3], ..Times::default() };
        let figures = Times::compare(&[&times(100)], &times(110), &times(50));
        assert_eq!(figures.len(), 5, "steps and tokens were not measured");
        for figure in figures {
            assert_eq!((figure.of, figure.measured_ns, figure.count), ("request", 100.0, 3));
            let errors = [figure.error, figure.control_error];
            assert!(errors.iter().zip([0.1, -0.5]).all(|(e, of)| (e - of).abs() < 1e-12));
            assert_eq!(figure.repeat_error, None);
        }
    }

    #[test]
    fn repetitions_are_measured_together_and_the_first_predicts_the_others() {
        let times = |ns: &[u64]| Times { request_ns: ns.to_vec(), ..Times::default() };
        let runs = [times(&[30, 90]), times(&[40, 80]), times(&[50, 70])];
        let figures = Times::compare(&runs.each_ref(), &times(&[66]), &times(&[30]));
        let of = |statistic| figures.iter().find(|figure| figure.statistic == statistic);
        let mean = of(Statistic::Mean).expect("it was measured");
        assert_eq!((mean.count, mean.measured_ns, mean.repeat_error), (6, 60.0, Some(0.0)));
        assert!((mean.error - 0.1).abs() < 1e-12 && (mean.control_error + 0.5).abs() < 1e-12);
        let p50 = of(Statistic::P50).expect("it was measured");
        assert_eq!((p50.measured_ns, p50.repeat_error), (50.0, Some(30.0 / 50.0 - 1.0)));
    }

    #[test]
    fn a_step_is_the_sum_of_its_rounds_and_one_that_lacks_a_round_is_left_out() {
        let round = |is_first, coordinator_ns, leg_ns| Watched {
            tokens: 1,
            is_first,
            coordinator_ns,
            legs: vec![Leg { node: NodeId(0), work: Work::default(), compute_ns: 1, leg_ns }],
        };
        let rounds = [
            round(true, 10, 100),
            round(false, 20, 200),
            round(true, 1, 1),
            round(true, 5, 5),
            round(false, 5, 5),
            round(false, 7, 7),
        ];
        assert_eq!(steps(&rounds[..5]), [20, 330]);
        assert_eq!(steps(&rounds[3..]), [34]);
        assert_eq!(steps(&rounds[3..4]), [10]);
    }
}
