//! Linear least squares with parameters that are not negative.

use nalgebra::{Cholesky, DMatrix, DVector};

/// A parameter that was fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Its value; 0 too where the data do not tell it from others.
    pub value: f64,
    /// Its standard error; none where it is 0 because the data do not show it.
    pub error: Option<f64>,
}

impl Estimate {
    /// Of something that is this many times as large.
    pub(super) fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, error: self.error.map(|error| error * factor) }
    }
}

/// A column that others explain but for this share of its square is not told from them.
const LEAST_SHARE: f64 = 1e-4;

/// Parameters `c ≥ 0` for `y ≈ Σ c x` over rows `(x, y)`: of all sets of columns that of the least Bayesian
/// information criterion, n ln(RSS / n) + k ln n (Schwarz 1978), among those whose unbounded solution is not negative
/// anywhere. There are 2^N sets, so N is small.
pub(super) fn least_squares<const N: usize>(
    rows: impl Iterator<Item = ([f64; N], f64)>,
) -> [Estimate; N] {
    let mut sums = Sums::<N> { count: 0.0, squares: [[0.0; N]; N], products: [0.0; N], of_y: 0.0 };
    rows.for_each(|(x, y)| sums.add(&x, y));
    let sets = (1_u32..1 << N).map(|set| (0..N).filter(|at| set >> at & 1 == 1).collect());
    let solved = sets.filter_map(|columns: Vec<usize>| sums.solve(&columns));
    let best = solved.min_by(|a, b| a.criterion.total_cmp(&b.criterion));
    best.map_or([Estimate::default(); N], |best| best.estimates)
}

/// What all sets of columns are solved from.
struct Sums<const N: usize> {
    count: f64,
    squares: [[f64; N]; N],
    products: [f64; N],
    of_y: f64,
}

struct Solved<const N: usize> {
    estimates: [Estimate; N],
    criterion: f64,
}

impl<const N: usize> Sums<N> {
    fn add(&mut self, x: &[f64; N], y: f64) {
        self.count += 1.0;
        self.of_y += y * y;
        for (row, a) in x.iter().enumerate() {
            self.products[row] += a * y;
            self.squares[row].iter_mut().zip(x).for_each(|(sum, b)| *sum += a * b);
        }
    }

    fn solve(&self, columns: &[usize]) -> Option<Solved<N>> {
        // Columns of length 1, so that what is near 0 is so for all of them.
        let lengths: Vec<f64> = columns.iter().map(|at| self.squares[*at][*at].sqrt()).collect();
        (self.count > columns.len() as f64 && lengths.iter().all(|length| *length > 0.0))
            .then_some(())?;
        let k = columns.len();
        let normal = DMatrix::from_fn(k, k, |a, b| {
            self.squares[columns[a]][columns[b]] / (lengths[a] * lengths[b])
        });
        let right = DVector::from_fn(k, |a, _| self.products[columns[a]] / lengths[a]);
        let factored = Cholesky::new(normal)?;
        let pivots = factored.l_dirty().diagonal();
        pivots.iter().all(|pivot| pivot * pivot > LEAST_SHARE).then_some(())?;
        let solution = factored.solve(&right);
        solution.iter().all(|value| *value >= 0.0).then_some(())?;
        let explained = solution.dot(&right);
        /// Sums of squares are no more exact than this.
        const ROUNDING: f64 = 1e-12;
        let left = (self.of_y - explained).max(ROUNDING * self.of_y);
        let variance = left / (self.count - k as f64);
        let inverse = factored.inverse();
        let mut estimates = [Estimate::default(); N];
        for (at, column) in columns.iter().enumerate() {
            estimates[*column] = Estimate {
                value: solution[at] / lengths[at],
                error: Some((variance * inverse[(at, at)]).sqrt() / lengths[at]),
            };
        }
        let criterion = self.count * (left / self.count).max(f64::MIN_POSITIVE).ln()
            + k as f64 * self.count.ln();
        Some(Solved { estimates, criterion })
    }
}

#[cfg(test)]
mod tests {
    use super::least_squares;
    use crate::rng;
    use rand::RngExt as _;

    #[test]
    fn parameters_come_back_with_their_errors_and_what_does_nothing_is_0() {
        let mut random = rng::stream(3, "least squares");
        let rows: Vec<([f64; 4], f64)> = (0..4_000)
            .map(|_| {
                let [a, b, c]: [f64; 3] = [random.random(), random.random(), random.random()];
                let noise: f64 = random.random::<f64>() - 0.5;
                ([1.0, 100.0 * a, 1e6 * b, c], 20.0 + 3.0 * (100.0 * a) + 2e-5 * (1e6 * b) + noise)
            })
            .collect();
        let found = least_squares(rows.into_iter());
        for (estimate, expected) in found.iter().zip([20.0, 3.0, 2e-5]) {
            let error = estimate.error.expect("it is told");
            assert!((estimate.value - expected).abs() < 4.0 * error, "{estimate:?} {expected}");
            assert!(error < 0.01 * expected, "{estimate:?}");
        }
        assert_eq!(found[3].value, 0.0, "{:?}", found[3]);
    }

    #[test]
    fn columns_that_cannot_be_told_apart_are_one_and_none_is_negative() {
        let rows = (0..100).map(|i| ([1.0, 7.0, f64::from(i)], 14.0 - 0.01 * f64::from(i)));
        let found = least_squares(rows);
        let told = found.iter().filter(|estimate| estimate.error.is_some()).count();
        assert_eq!(told, 1, "{found:?}");
        assert!(found.iter().all(|estimate| estimate.value >= 0.0), "{found:?}");
        assert_eq!(least_squares(std::iter::empty::<([f64; 2], f64)>())[0].value, 0.0);
    }
}
