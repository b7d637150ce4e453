//! Boids: cohesion, separation and alignment of experts.

use super::{RowRule, Seen, add};

/// An expert turns to its own tokens (cohesion), the less the more it has of them; away from neighbours that
/// point the same way (separation); towards the tokens of neighbours that have more than itself; and as its
/// neighbours turned (alignment). With excess x, mean token direction m, neighbours N:
///
/// ```text
/// w_e = (cohesion − push max(x_e, 0)) m_e + push mean_j max(x_j − x_e, 0) m_j − separation mean_j max(u_j·u_e, 0) u_j
/// v_e = (1 − alignment) w_e + alignment mean_j v_j
/// ```
///
/// Reads what is its own or its neighbours' and no more. Nothing is proven of it. Label: experimental.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Boids {
    /// Pull to the own tokens, radians a batch.
    pub cohesion: f64,
    /// Push by load, radians a batch per fair share.
    pub push: f64,
    /// Push from neighbours, radians a batch.
    pub separation: f64,
    /// Weight of the neighbours' velocities, 0 to 1.
    pub alignment: f64,
}

impl Default for Boids {
    fn default() -> Self {
        Self { cohesion: 0.005, push: 0.05, separation: 0.005, alignment: 0.1 }
    }
}

impl RowRule for Boids {
    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
        let mut all = vec![0.0; seen.rows.len()];
        for (e, v) in all.chunks_exact_mut(seen.width).enumerate() {
            let own = 1.0 - self.alignment;
            add(
                v,
                own * (self.cohesion - self.push * seen.excess[e].max(0.0)),
                seen.row(seen.means, e),
            );
            let each = 1.0 / seen.neighbours[e].len().max(1) as f64;
            for j in seen.neighbours[e].iter().map(|j| j.index()) {
                let (crowd, near) =
                    ((seen.excess[j] - seen.excess[e]).max(0.0), seen.row(seen.rows, j));
                let alike = super::dot(near, seen.row(seen.rows, e)).max(0.0);
                add(v, own * each * self.push * crowd, seen.row(seen.means, j));
                add(v, -own * each * self.separation * alike, near);
                add(v, self.alignment * each, seen.row(seen.velocities, j));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Judge, RowRule as _, Seen};
    use super::Boids;
    use crate::game::Choices;
    use crate::ids::ExpertId;

    #[test]
    fn an_expert_minds_itself_and_its_neighbours_and_nobody_else() {
        let rows = [1.0, 0.0, 0.8, 0.6, 0.0, 1.0];
        let judge = Judge::new(&[1.0, 0.0], &[0.5, 0.3, 0.2], &[1.0; 3], 2, 1);
        let choices = Choices::uniform(vec![ExpertId(0)], 1);
        let neighbours = [vec![ExpertId(1)], vec![ExpertId(0)], vec![ExpertId(1)]];
        let fly = |means: &[f32], excess: &[f64], velocities: &[f32]| {
            let seen = Seen {
                width: 2,
                top_k: 1,
                rows: &rows,
                velocities,
                neighbours: &neighbours,
                tokens: &[1.0, 0.0],
                means,
                choices: &choices,
                excess,
                scores: &[0.5, 0.3, 0.2],
                judge: &judge,
            };
            Boids::default().velocities(&seen)
        };
        let before = fly(&[0.9, 0.1, 0.5, 0.5, 0.1, 0.9], &[1.0, 0.5, -1.0], &[0.0; 6]);
        let after =
            fly(&[0.9, 0.1, 0.5, 0.5, 0.4, 0.2], &[1.0, 0.5, 2.0], &[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(before[..4], after[..4], "the third is nobody's neighbour");
        assert_ne!(before[4..], after[4..]);
        assert!(before[0] < 0.0, "a crowded expert turns from its tokens");
    }
}
