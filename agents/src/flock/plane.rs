//! A plane through router rows, for pictures: where experts are, and what tokens turn to.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// The shorter side of a matrix of rows, at most: finding the plane takes its cube.
const SIDE_MAX: usize = 512;

/// The two principal components of the directions of router rows (Pearson 1901): the plane in which they differ
/// most.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// Of the directions.
    mean: DVector<f64>,
    /// Orthonormal, the larger spread first; the largest entry of each is positive.
    axes: [DVector<f64>; 2],
}

impl Plane {
    /// Of rows `[E, width]`. None where they do not span a plane, or both sides exceed 512.
    ///
    /// # Panics
    /// When rows are not whole.
    #[must_use]
    pub fn of(rows: &[f32], width: usize) -> Option<Self> {
        assert!(width > 0 && rows.len().is_multiple_of(width), "rows are whole");
        let experts = rows.len() / width;
        if experts < 3 || width < 2 || experts.min(width) > SIDE_MAX {
            return None;
        }
        let mut directions = DMatrix::zeros(experts, width);
        for (expert, row) in rows.chunks_exact(width).enumerate() {
            directions.set_row(expert, &direction(row).transpose());
        }
        let mean = directions.row_mean().transpose();
        directions.row_iter_mut().for_each(|mut row| row -= mean.transpose());
        // The eigenvectors of XᵀX are those of XXᵀ times Xᵀ: the smaller of the two is solved.
        let is_tall = width <= experts;
        let products = if is_tall {
            directions.tr_mul(&directions)
        } else {
            &directions * directions.transpose()
        };
        let found = SymmetricEigen::new(products);
        let mut order: Vec<usize> = (0..found.eigenvalues.len()).collect();
        order.sort_by(|a, b| found.eigenvalues[*b].total_cmp(&found.eigenvalues[*a]));
        let axis = |place: usize| {
            let (spread, vector) =
                (found.eigenvalues[order[place]], found.eigenvectors.column(order[place]));
            let axis = if is_tall { vector.into_owned() } else { directions.tr_mul(&vector) };
            let axis = axis.try_normalize(0.0).filter(|_| spread > 1e-12)?;
            let largest = axis[axis.iamax()];
            Some(axis * largest.signum())
        };
        Some(Self { mean, axes: [axis(0)?, axis(1)?] })
    }

    /// A row's direction from the mean of all, in thousandths.
    ///
    /// # Panics
    /// When it has another width.
    #[must_use]
    pub fn place(&self, row: &[f32]) -> [i16; 2] {
        let from_mean = direction(row) - &self.mean;
        self.axes.each_ref().map(|axis| thousandths(axis.dot(&from_mean)))
    }

    /// The cosines of a hidden state with the axes, in thousandths.
    ///
    /// # Panics
    /// When it has another width.
    #[must_use]
    pub fn turn(&self, hidden: &[f32]) -> [i16; 2] {
        let direction = direction(hidden);
        self.axes.each_ref().map(|axis| thousandths(axis.dot(&direction)))
    }
}

fn direction(row: &[f32]) -> DVector<f64> {
    let row = DVector::from_iterator(row.len(), row.iter().map(|value| f64::from(*value)));
    row.clone().try_normalize(0.0).unwrap_or(row)
}

#[expect(clippy::cast_possible_truncation, reason = "a cosine times a thousand, clamped")]
fn thousandths(value: f64) -> i16 {
    (1000.0 * value.clamp(-2.0, 2.0)).round() as i16
}

#[cfg(test)]
mod tests {
    use super::Plane;

    #[test]
    fn the_plane_is_that_of_the_largest_spreads_at_any_shape() {
        // Directions about the first axis that lean to the second by ±0.6 and to the third by ±0.3.
        let leaning = |two: f32, three: f32| [1.0, two, three, 0.0, 0.0];
        let rows = [leaning(0.6, 0.0), leaning(-0.6, 0.0), leaning(0.0, 0.3), leaning(0.0, -0.3)];
        for copies in [1, 3] {
            let rows: Vec<f32> = std::iter::repeat_n(rows, copies).flatten().flatten().collect();
            let plane = Plane::of(&rows, 5).expect("a plane");
            let places: Vec<[i16; 2]> = rows.chunks(5).map(|row| plane.place(row)).collect();
            let (two, three) = (1000.0 * 0.6 / 1.36_f64.sqrt(), 1000.0 * 0.3 / 1.09_f64.sqrt());
            for (place, [x, y]) in
                places.iter().zip([[two, 0.0], [-two, 0.0], [0.0, three], [0.0, -three]])
            {
                let near = |at: i16, of: f64| (f64::from(at) - of).abs() < 1.5;
                assert!(near(place[0], x) && near(place[1], y), "{copies}: {places:?}");
            }
            assert_eq!(plane.turn(&[0.0, 2.0, 0.0, 0.0, 0.0]), [1000, 0]);
        }
    }

    #[test]
    fn rows_without_a_plane_have_none() {
        assert_eq!(Plane::of(&[1.0, 0.0, 0.0, 1.0], 2), None, "two rows are a line");
        assert_eq!(Plane::of(&[1.0; 12], 3), None, "all point one way");
        assert_eq!(Plane::of(&[0.0; 12], 3), None);
        assert_eq!(Plane::of(&vec![1.0; 600 * 600], 600), None, "too large");
    }
}
