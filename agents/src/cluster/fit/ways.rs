//! Latency, work for a message and bandwidth, from when answers came.

use super::{Estimate, Watched};
use crate::cluster::{Fork, Work};
use nalgebra::{Matrix3, Vector3};

/// Rounds that are played again, evenly over all, at most.
const ROUNDS: usize = 1_000;

/// A round ends with its last answer; the others only tell the parameters apart.
const EARLIER_WEIGHT: f64 = 0.25;

const STEPS: usize = 60;

struct Played {
    orders: Vec<(Work, f64)>,
    /// Ascending: which node of those that share cores comes first is chance.
    legs_ns: Vec<f64>,
}

/// Parameters not below 0 for which the answers come when they did, by damped least squares (Levenberg 1944,
/// Marquardt 1963), each node computing for as long as it did. What is off by far counts by its distance instead of
/// its square (Huber 1964): a machine that stalls for some ms says nothing of its ways.
pub(super) fn fit(rounds: &[Watched], cores: u32) -> ([Estimate; 3], Fork) {
    let every = rounds.len().div_ceil(ROUNDS).max(1);
    let played: Vec<Played> = rounds.iter().step_by(every).map(Played::of).collect();
    let fork =
        |at: &Vector3<f64>| Fork { latency_ns: at[0], message_ns: at[1], byte_ns: at[2], cores };
    let mut at = Vector3::new(20_000.0, 2_000.0, 0.1);
    let mut off = residuals(&played, &fork(&at));
    let mut damping = 1e-3;
    let mut normal = Matrix3::zeros();
    for _ in 0..STEPS {
        let weights = weights(&off);
        let slopes = slopes(&played, &at, &off, fork);
        normal = Matrix3::from_fn(|a, b| weighted(&slopes[a], &slopes[b], &weights));
        let right = Vector3::from_fn(|a, _| weighted(&slopes[a], &off, &weights));
        let mut damped = normal;
        (0..3).for_each(|a| damped[(a, a)] += damping * normal[(a, a)].max(f64::MIN_POSITIVE));
        let Some(step) = damped.cholesky().map(|factored| factored.solve(&right)) else { break };
        let next = (at + step).map(|value| value.max(0.0));
        let next_off = residuals(&played, &fork(&next));
        let before = weighted(&off, &off, &weights);
        let after = weighted(&next_off, &next_off, &weights);
        if after < before {
            (at, off) = (next, next_off);
            damping = (damping * 0.3).max(1e-9);
            if before - after <= 1e-9 * before {
                break;
            }
        } else {
            damping *= 10.0;
            if damping > 1e9 {
                break;
            }
        }
    }
    let freedom = off.len().saturating_sub(3).max(1) as f64;
    let variance = weighted(&off, &off, &weights(&off)) / freedom;
    let inverse = normal.try_inverse();
    let estimate = |a: usize| Estimate {
        value: at[a],
        error: inverse.map(|inverse| (variance * inverse[(a, a)].max(0.0)).sqrt()),
    };
    ([0, 1, 2].map(estimate), fork(&at))
}

impl Played {
    fn of(round: &Watched) -> Self {
        let orders = round.legs.iter().map(|leg| (leg.work, leg.compute_ns as f64)).collect();
        let mut legs_ns: Vec<f64> = round.legs.iter().map(|leg| leg.leg_ns as f64).collect();
        legs_ns.sort_unstable_by(f64::total_cmp);
        Self { orders, legs_ns }
    }
}

/// Measured less played, weighted, answer by answer.
fn residuals(played: &[Played], fork: &Fork) -> Vec<f64> {
    let mut off = Vec::with_capacity(played.iter().map(|round| round.legs_ns.len()).sum());
    for round in played {
        let mut legs = fork.legs(round.orders.iter().copied());
        legs.sort_unstable();
        let last = legs.len() - 1;
        off.extend(legs.iter().zip(&round.legs_ns).enumerate().map(|(at, (said, measured))| {
            let weight = if at == last { 1.0 } else { EARLIER_WEIGHT };
            weight * (measured - *said as f64)
        }));
    }
    off
}

/// How what is played changes with each parameter.
fn slopes(
    played: &[Played],
    at: &Vector3<f64>,
    off: &[f64],
    fork: impl Fn(&Vector3<f64>) -> Fork,
) -> [Vec<f64>; 3] {
    /// Times are whole nanoseconds: a step moves them by many.
    const LEAST: [f64; 3] = [500.0, 500.0, 0.01];
    [0, 1, 2].map(|a| {
        let step = (0.01 * at[a]).max(LEAST[a]);
        let mut moved = *at;
        moved[a] += step;
        let moved = residuals(played, &fork(&moved));
        off.iter().zip(&moved).map(|(before, after)| (before - after) / step).collect()
    })
}

/// 1 for residuals up to three times their median, and falling with the distance beyond.
fn weights(off: &[f64]) -> Vec<f64> {
    const NEAR: f64 = 3.0;
    let mut sizes: Vec<f64> = off.iter().map(|off| off.abs()).collect();
    let middle = sizes.len() / 2;
    let (_, median, _) = sizes.select_nth_unstable_by(middle, f64::total_cmp);
    let near = NEAR * median.max(1.0);
    off.iter().map(|off| (near / off.abs()).min(1.0)).collect()
}

fn weighted(a: &[f64], b: &[f64], weights: &[f64]) -> f64 {
    a.iter().zip(b).zip(weights).map(|((a, b), weight)| a * b * weight).sum()
}
