//! Online k-means on the sphere: each expert follows its tokens. A control.

use super::{RowRule, Seen, add};

/// `v_e = step (m_e − u_e)`: MacQueen's online k-means with directions. It minds no load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KMeans {
    /// Part of the way to the mean of its tokens, a batch.
    pub step: f64,
}

impl Default for KMeans {
    fn default() -> Self {
        Self { step: 0.05 }
    }
}

impl RowRule for KMeans {
    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
        let mut all = vec![0.0; seen.rows.len()];
        for (e, v) in all.chunks_exact_mut(seen.width).enumerate() {
            add(v, self.step, seen.row(seen.means, e));
        }
        all
    }
}
