//! Axes to points: which value each axis has at which point.

use agents::rng::stream;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use toml::Value;

use super::{Axis, Method, Optimize, Scale, Sweep};

/// The points of a sweep, found one by one.
#[derive(Clone, Debug)]
pub struct Points {
    axes: Vec<AxisValues>,
    layout: Layout,
    /// Of drawn points those that differ from every earlier one; none where all do.
    distinct: Option<Vec<u32>>,
}

/// What an axis may be set to.
#[derive(Clone, Debug)]
enum AxisValues {
    Listed(Vec<Value>),
    Range { low: f64, high: f64, scale: Scale, whole: bool },
}

#[derive(Clone, Debug)]
enum Layout {
    Grid,
    Zip,
    /// Of each axis the position of every point, from 0 to below 1.
    Drawn {
        samples: u32,
        positions: Vec<Vec<f64>>,
    },
    /// Points that were asked for so far, of so many.
    Asked {
        count: u64,
        so_far: Vec<Vec<Value>>,
    },
}

impl Points {
    /// The points of a sweep whose axes were checked; `whole` says of each axis whether its key takes whole numbers.
    ///
    /// # Panics
    /// When an axis has neither values nor a range.
    #[must_use]
    pub fn new(sweep: &Sweep, whole: &[bool], seed: u64) -> Self {
        let draws = sweep.method.draws();
        let batch = |of: &Optimize| of.optimizer(sweep.axis.len(), seed).ask().len() as u64;
        let axes = sweep.axis.iter().zip(whole);
        let axes: Vec<AxisValues> =
            axes.map(|(axis, whole)| AxisValues::of(axis, *whole, draws)).collect();
        let samples = sweep.samples.unwrap_or(1);
        let layout = match sweep.method {
            Method::Grid => Layout::Grid,
            Method::Zip => Layout::Zip,
            Method::LatinHypercube => {
                let of = |axis: &Axis| latin(samples, seed, &axis.key);
                Layout::Drawn { samples, positions: sweep.axis.iter().map(of).collect() }
            }
            Method::Sobol => {
                let of = |(dimension, _): (u32, &Axis)| sobol(samples, seed, dimension);
                Layout::Drawn { samples, positions: (0..).zip(&sweep.axis).map(of).collect() }
            }
            Method::Optimize => {
                // An optimiser asks for a number of points at a time.
                let batch = sweep.optimize.as_ref().map_or(1, batch).max(1);
                let count = (u64::from(samples) / batch).max(1) * batch;
                Layout::Asked { count, so_far: Vec::new() }
            }
        };
        let mut points = Self { axes, layout, distinct: None };
        points.drop_repeated();
        points
    }

    /// How many there are; at least one.
    #[must_use]
    pub fn count(&self) -> u64 {
        if let Some(distinct) = &self.distinct {
            return distinct.len() as u64;
        }
        let mut lengths = self.axes.iter().map(|axis| axis.listed().len() as u64);
        match self.layout {
            Layout::Grid => lengths.fold(1, u64::saturating_mul),
            Layout::Zip => lengths.next().unwrap_or(1),
            Layout::Drawn { samples, .. } => u64::from(samples),
            Layout::Asked { count, .. } => count,
        }
    }

    /// Adds a point that an optimiser asks for, by its place in the unit cube.
    pub fn ask(&mut self, place: &[f64]) {
        let values = self.placed(place);
        if let Layout::Asked { so_far, .. } = &mut self.layout {
            so_far.push(values);
        }
    }

    /// The values of the axes at a place in the unit cube.
    #[must_use]
    pub fn placed(&self, place: &[f64]) -> Vec<Value> {
        self.axes.iter().zip(place).map(|(axis, at)| axis.at(*at)).collect()
    }

    /// Points that were drawn a second time, because axes have few values: they are left out.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        match (&self.layout, &self.distinct) {
            (Layout::Drawn { samples, .. }, Some(distinct)) => {
                u64::from(*samples) - distinct.len() as u64
            }
            _ => 0,
        }
    }

    /// The value of each axis at a point, in their order; of a grid the last axis changes first.
    ///
    /// # Panics
    /// When an optimiser has not asked for the point yet.
    #[must_use]
    pub fn at(&self, point: u64) -> Vec<Value> {
        let place = |index: u64| usize::try_from(index).expect("points are counted in memory");
        match &self.layout {
            Layout::Grid => {
                let mut rest = point;
                let mut values: Vec<Value> = Vec::with_capacity(self.axes.len());
                for axis in self.axes.iter().rev() {
                    let listed = axis.listed();
                    values.push(listed[place(rest % listed.len() as u64)].clone());
                    rest /= listed.len() as u64;
                }
                values.reverse();
                values
            }
            Layout::Zip => {
                self.axes.iter().map(|axis| axis.listed()[place(point)].clone()).collect()
            }
            Layout::Drawn { positions, .. } => {
                let drawn =
                    self.distinct.as_ref().map_or(place(point), |of| of[place(point)] as usize);
                let axes = self.axes.iter().zip(positions);
                axes.map(|(axis, positions)| axis.at(positions[drawn])).collect()
            }
            Layout::Asked { so_far, .. } => so_far[place(point)].clone(),
        }
    }

    /// Values that an axis is set to: of a range that is drawn from, none.
    #[must_use]
    pub fn values(&self, axis: usize) -> &[Value] {
        self.axes[axis].listed()
    }

    fn drop_repeated(&mut self) {
        let Layout::Drawn { samples, .. } = self.layout else { return };
        let mut seen = std::collections::BTreeSet::new();
        let is_new = |point: &u32| {
            let values = self.at(u64::from(*point));
            seen.insert(values.iter().map(Value::to_string).collect::<Vec<_>>())
        };
        let distinct: Vec<u32> = (0..samples).filter(is_new).collect();
        self.distinct = Some(distinct);
    }
}

impl AxisValues {
    fn of(axis: &Axis, whole: bool, draws: bool) -> Self {
        if !axis.values.is_empty() {
            return Self::Listed(axis.values.clone());
        }
        let (low, high) = axis.low.zip(axis.high).expect("an axis has values or a range");
        let scale = axis.scale;
        if draws {
            return Self::Range { low, high, scale, whole };
        }
        let steps = axis.steps.unwrap_or(2);
        let step = |step: u32| {
            let part = f64::from(step) / f64::from(steps - 1);
            let value = match scale {
                Scale::Linear => low + (high - low) * part,
                Scale::Log => low * (high / low).powf(part),
            };
            number(value.clamp(low, high), whole)
        };
        Self::Listed((0..steps).map(step).collect())
    }

    fn listed(&self) -> &[Value] {
        match self {
            Self::Listed(values) => values,
            Self::Range { .. } => &[],
        }
    }

    /// The value at a position from 0 to below 1. Whole numbers have equal shares of it, on a log scale those of
    /// the stretch from each to the next.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the length")]
    fn at(&self, position: f64) -> Value {
        match *self {
            Self::Listed(ref values) => {
                let at = (position * values.len() as f64) as usize;
                values[at.min(values.len() - 1)].clone()
            }
            Self::Range { low, high, scale, whole } => {
                let end = if whole { high + 1.0 } else { high };
                let value = match scale {
                    Scale::Linear => low + (end - low) * position,
                    Scale::Log => low * (end / low).powf(position),
                };
                let value = if whole { value.floor() } else { value };
                number(value.clamp(low, high), whole)
            }
        }
    }
}

/// A number to twelve digits: what the last bits of a power are differs from library to library, and nobody
/// wants to read them.
#[expect(clippy::cast_possible_truncation, reason = "checked to lie within 2^53")]
fn number(value: f64, whole: bool) -> Value {
    if whole {
        return Value::Integer(value.round() as i64);
    }
    Value::Float(format!("{value:.11e}").parse().expect("a number that was just printed"))
}

/// One position in each `samples`-th part, in drawn order. The stream is named by the key, so that a further
/// axis moves no other (McKay, Beckman, Conover 1979).
fn latin(samples: u32, seed: u64, key: &str) -> Vec<f64> {
    let mut rng = stream(seed, &format!("sweep latin hypercube {key}"));
    let mut parts: Vec<u32> = (0..samples).collect();
    parts.shuffle(&mut rng);
    let within = |part: u32| (f64::from(part) + rng.random::<f64>()) / f64::from(samples);
    parts.into_iter().map(within).collect()
}

/// A dimension of the Sobol sequence under Owen's scrambling: a further sample or axis moves no other.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half of the seed, mixed with the upper"
)]
fn sobol(samples: u32, seed: u64, dimension: u32) -> Vec<f64> {
    let seed = (seed ^ (seed >> 32)) as u32;
    (0..samples).map(|sample| f64::from(sobol_burley::sample(sample, dimension, seed))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        toml::from_str(text).expect("an axis")
    }

    fn sweep(method: Method, samples: u32, axes: &[&str]) -> Sweep {
        let axis = axes.iter().map(|text| axis(text)).collect();
        Sweep { method, samples: Some(samples), axis, ..Sweep::default() }
    }

    fn points(sweep: &Sweep, whole: &[bool]) -> Vec<Vec<Value>> {
        let points = Points::new(sweep, whole, 7);
        (0..points.count()).map(|point| points.at(point)).collect()
    }

    #[test]
    fn a_grid_has_every_combination_and_a_zip_the_rows() {
        let axes = ["key = 'a'\nvalues = [1, 2]", "key = 'b'\nvalues = ['x', 'y']"];
        let grid = points(&sweep(Method::Grid, 1, &axes), &[true, false]);
        let row = |a: i64, b: &str| vec![Value::Integer(a), Value::from(b)];
        assert_eq!(grid, [row(1, "x"), row(1, "y"), row(2, "x"), row(2, "y")]);
        let zip = points(&sweep(Method::Zip, 1, &axes), &[true, false]);
        assert_eq!(zip, [row(1, "x"), row(2, "y")]);
        assert_eq!(points(&sweep(Method::Grid, 1, &[]), &[]), [Vec::<Value>::new()], "seeds alone");
    }

    #[test]
    fn ranges_have_both_ends_and_equal_distances_or_ratios() {
        let of = |text: &str, whole| {
            let points = points(&sweep(Method::Grid, 1, &[text]), &[whole]);
            points.into_iter().map(|mut values| values.remove(0)).collect::<Vec<_>>()
        };
        let floats = |values: &[f64]| values.iter().map(|v| Value::Float(*v)).collect::<Vec<_>>();
        let linear = of("key = 'a'\nlow = 0\nhigh = 1\nsteps = 5", false);
        assert_eq!(linear, floats(&[0.0, 0.25, 0.5, 0.75, 1.0]));
        let log = of("key = 'a'\nlow = 0.001\nhigh = 10\nscale = 'log'\nsteps = 5", false);
        assert_eq!(log, floats(&[0.001, 0.01, 0.1, 1.0, 10.0]));
        let whole = of("key = 'a'\nlow = 16\nhigh = 256\nscale = 'log'\nsteps = 5", true);
        assert_eq!(whole, [16, 32, 64, 128, 256].map(Value::Integer));
    }

    fn position(value: &Value) -> f64 {
        value.as_float().expect("a number")
    }

    #[test]
    fn a_latin_hypercube_has_one_point_in_each_part_of_each_axis() {
        let axes = ["key = 'a'\nlow = 0\nhigh = 1", "key = 'b'\nlow = 0\nhigh = 1"];
        let drawn = points(&sweep(Method::LatinHypercube, 50, &axes), &[false, false]);
        for axis in 0..2 {
            let mut parts: Vec<_> =
                drawn.iter().map(|values| (position(&values[axis]) * 50.0).floor()).collect();
            parts.sort_by(f64::total_cmp);
            assert_eq!(parts, (0..50).map(f64::from).collect::<Vec<_>>(), "axis {axis}");
        }
        let alone = points(&sweep(Method::LatinHypercube, 50, &axes[..1]), &[false]);
        assert!(alone.iter().zip(&drawn).all(|(alone, both)| alone[0] == both[0]));
    }

    /// A digital (0, m, 2)-net: each elementary interval of volume 2^-m has one point. It fails for points that are
    /// only drawn at random.
    #[test]
    fn the_first_two_dimensions_of_sobol_are_a_net() {
        let axes = ["key = 'a'\nlow = 0\nhigh = 1", "key = 'b'\nlow = 0\nhigh = 1"];
        let drawn = points(&sweep(Method::Sobol, 64, &axes), &[false, false]);
        for wide in 0..=6 {
            let (columns, rows) = (f64::from(1 << wide), f64::from(64 >> wide));
            let mut cells: Vec<_> = drawn
                .iter()
                .map(|at| {
                    (position(&at[0]) * columns).floor() * rows + (position(&at[1]) * rows).floor()
                })
                .collect();
            cells.sort_by(f64::total_cmp);
            assert_eq!(cells, (0..64).map(f64::from).collect::<Vec<_>>(), "{columns} × {rows}");
        }
        let fewer = points(&sweep(Method::Sobol, 32, &axes), &[false, false]);
        assert_eq!(fewer, drawn[..32], "more samples move none");
    }

    #[test]
    fn whole_numbers_and_lists_are_drawn_in_equal_shares_and_repeated_points_are_left_out() {
        let axes = ["key = 'a'\nlow = 1\nhigh = 4", "key = 'b'\nvalues = ['x', 'y']"];
        let sweep = sweep(Method::Sobol, 64, &axes);
        let all = points(&sweep, &[true, false]);
        assert_eq!(all.len(), 8, "all that there are: {all:?}");
        assert_eq!(Points::new(&sweep, &[true, false], 7).repeated(), 56);
    }
}
