//! Flock prices: an expert raises its price when it was crowded, and moves with its neighbours.
//!
//! With share excess `x_e = n_e / q − 1`, own push `u_e = step · x_e` and the velocities of its
//! neighbours from the round before,
//! `v_e ← (1 − alignment) · u_e + alignment · mean_{j∈N(e)} v_j` and `p_e ← max(0, p_e + v_e)`.
//! All experts move at once from what they saw: no expert reads a price of the same round.
//! Experimental: no convergence is claimed; the certificate beside it tells how far it is.

use crate::components::FlockPrice;
use crate::ids::ExpertId;

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlockSettings {
    /// How many nearest experts an expert minds.
    pub neighbours: usize,
    /// Price change, in units of affinity, per unit of relative excess load; ≥ 0.
    pub price_step: f64,
    /// Weight of the neighbours' velocities, 0 to 1.
    pub alignment: f64,
}

/// One synchronous update of a layer's prices. `flock` holds the loads that the current prices led
/// to, by expert; `fair_share` is q = Tk/E.
///
/// # Panics
/// When `flock` and `neighbours` differ in length or q is not positive.
pub fn update(
    flock: &mut [FlockPrice],
    neighbours: &[Vec<ExpertId>],
    fair_share: f64,
    settings: &FlockSettings,
) {
    assert_eq!(flock.len(), neighbours.len(), "one neighbourhood an expert");
    assert!(fair_share > 0.0, "a batch has tokens");
    let seen: Vec<f64> = flock.iter().map(|bird| bird.velocity).collect();
    for (bird, near) in flock.iter_mut().zip(neighbours) {
        let push = settings.price_step * (f64::from(bird.load) / fair_share - 1.0);
        let aligned = match near.len() {
            0 => push,
            count => near.iter().map(|j| seen[j.index()]).sum::<f64>() / count as f64,
        };
        bird.velocity = (1.0 - settings.alignment) * push + settings.alignment * aligned;
        bird.price = (bird.price + bird.velocity).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{FlockSettings, update};
    use crate::components::FlockPrice;
    use crate::ids::ExpertId;

    const SETTINGS: FlockSettings =
        FlockSettings { neighbours: 1, price_step: 0.5, alignment: 0.25 };

    fn bird(price: f64, velocity: f64, load: u32) -> FlockPrice {
        FlockPrice { price, velocity, load }
    }

    #[test]
    fn price_rises_when_an_expert_is_crowded_and_falls_when_it_is_idle() {
        let mut flock = [bird(0.2, 0.0, 20), bird(0.2, 0.0, 0)];
        update(&mut flock, &[vec![ExpertId(1)], vec![ExpertId(0)]], 10.0, &SETTINGS);
        assert!((flock[0].price - (0.2 + 0.75 * 0.5)).abs() < 1e-12);
        assert_eq!(flock[1].price, 0.0, "a price is never negative");
    }

    #[test]
    fn an_expert_aligns_with_the_velocity_its_neighbours_had_before_the_round() {
        let mut flock = [bird(1.0, 0.0, 10), bird(1.0, 0.4, 10)];
        update(&mut flock, &[vec![ExpertId(1)], vec![ExpertId(0)]], 10.0, &SETTINGS);
        assert!((flock[0].price - 1.1).abs() < 1e-12, "a quarter of 0.4");
        assert!((flock[1].price - 1.0).abs() < 1e-12, "its neighbour stood still");
    }

    #[test]
    fn without_neighbours_the_own_load_alone_moves_the_price() {
        let mut flock = [bird(0.0, 0.0, 30)];
        update(&mut flock, &[vec![]], 10.0, &SETTINGS);
        assert!((flock[0].price - 1.0).abs() < 1e-12);
    }
}
