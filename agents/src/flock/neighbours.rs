//! Topological neighbourhoods: each expert minds a fixed number of nearest experts, however far.
//!
//! Starlings keep track of about seven neighbours by rank, not by distance (Ballerini et al.,
//! PNAS 105, 2008). Distance between experts is the angle between their router rows: experts that
//! point the same way compete for the same tokens.

use crate::ids::ExpertId;
use nalgebra::DMatrixView;
use rayon::prelude::*;

/// The `count` nearest experts of each expert, nearest first; ties go to the lower id.
///
/// `router` is the router's weight, row-major `[experts, width]`. With fewer than `count + 1`
/// experts each minds all the others.
///
/// # Panics
/// When `router` does not hold whole rows.
#[must_use]
pub fn nearest(router: &[f32], experts: usize, count: usize) -> Vec<Vec<ExpertId>> {
    assert!(experts > 0 && router.len().is_multiple_of(experts), "router rows are whole");
    // nalgebra is column-major: each expert's row becomes one column.
    let rows = DMatrixView::from_slice(router, router.len() / experts, experts);
    let norms: Vec<f32> = rows.column_iter().map(|row| row.norm().max(f32::MIN_POSITIVE)).collect();
    let count = count.min(experts - 1);
    (0..experts)
        .into_par_iter()
        .map(|e| {
            let cosine = |f: usize| rows.column(e).dot(&rows.column(f)) / (norms[e] * norms[f]);
            let mut others: Vec<(f32, usize)> =
                (0..experts).filter(|f| *f != e).map(|f| (cosine(f), f)).collect();
            let nearer =
                |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if count < others.len() {
                others.select_nth_unstable_by(count, nearer);
                others.truncate(count);
            }
            others.sort_unstable_by(nearer);
            others.iter().map(|(_, f)| ExpertId::from_index(*f)).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::nearest;
    use crate::ids::ExpertId;

    #[test]
    fn the_nearest_rows_are_those_at_the_smallest_angle_whatever_their_length() {
        let router = [1.0, 0.0, 9.0, 0.9, 0.0, 1.0, -1.0, 0.1];
        let found = nearest(&router, 4, 2);
        assert_eq!(found[0], [ExpertId(1), ExpertId(2)]);
        assert_eq!(found[3], [ExpertId(2), ExpertId(1)]);
    }

    #[test]
    fn a_small_layer_has_fewer_neighbours_and_a_lone_expert_none() {
        assert_eq!(nearest(&[1.0, 2.0], 2, 7), [[ExpertId(1)], [ExpertId(0)]]);
        assert!(nearest(&[1.0, 2.0], 1, 7)[0].is_empty());
    }
}
