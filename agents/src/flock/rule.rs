//! Rules by which an expert moves its price from what it alone sees.
//!
//! A rule is one function of [`Seen`]; an own rule implements [`PriceRule`].

/// What one expert knows in a round.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'h> {
    /// Its own price, in units of the score.
    pub price: f64,
    /// The price at which the bids it got would fill it as far as it wants; its own price if it
    /// got none.
    pub clearing: f64,
    /// Tokens that chose it.
    pub load: f64,
    /// The load of an expert in the mean, Tk/E.
    pub fair_share: f64,
    /// Rounds that pass until a price is answered; 0 when it is answered in the same round.
    pub delay_rounds: u32,
    /// What was last heard from each neighbour.
    pub neighbours: &'h [Heard],
}

/// A neighbour's message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heard {
    /// By how much it moved its price.
    pub velocity: f64,
    /// Its load over the fair share, less 1.
    pub excess: f64,
}

/// A local rule for prices. It sees no more than [`Seen`], so it is local by construction.
pub trait PriceRule: Send + Sync {
    /// The change of the expert's price in this round.
    fn velocity(&self, seen: &Seen<'_>) -> f64;
}

/// Part of the way to the price that clears the own bids, aligned with the neighbours' last moves.
///
/// `v = (1 − a)·s·(p* − p) + a·mean_j v_j` with `s = step / (1 + delay/2)`: what is not answered
/// yet is asked for only once. Experimental: no convergence is claimed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clearing {
    /// s without delay, 0 to 1.
    pub step: f64,
    /// a, 0 to 1.
    pub alignment: f64,
}

impl PriceRule for Clearing {
    fn velocity(&self, seen: &Seen<'_>) -> f64 {
        let step = self.step / (1.0 + f64::from(seen.delay_rounds) / 2.0);
        aligned(step * (seen.clearing - seen.price), self.alignment, seen.neighbours)
    }
}

/// In proportion to the excess load: `v = (1 − a)·step·(n/q − 1) + a·mean_j v_j`, with no bids
/// read. The control of [`Clearing`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excess {
    /// Price, in units of the score, for a load of twice the fair share.
    pub step: f64,
    /// a, 0 to 1.
    pub alignment: f64,
}

impl PriceRule for Excess {
    fn velocity(&self, seen: &Seen<'_>) -> f64 {
        let step = self.step / (1.0 + f64::from(seen.delay_rounds));
        aligned(step * (seen.load / seen.fair_share - 1.0), self.alignment, seen.neighbours)
    }
}

fn aligned(push: f64, alignment: f64, neighbours: &[Heard]) -> f64 {
    if neighbours.is_empty() {
        return push;
    }
    let sum: f64 = neighbours.iter().map(|heard| heard.velocity).sum();
    (1.0 - alignment) * push + alignment * sum / neighbours.len() as f64
}

#[cfg(test)]
mod tests {
    use super::{Clearing, Excess, Heard, PriceRule, Seen};

    fn seen(neighbours: &[Heard]) -> Seen<'_> {
        let (price, clearing, load, fair_share) = (1.0, 3.0, 30.0, 20.0);
        Seen { price, clearing, load, fair_share, delay_rounds: 0, neighbours }
    }

    #[test]
    fn an_expert_goes_part_of_the_way_and_aligns_with_what_it_heard() {
        let heard = [0.2, 0.6].map(|velocity| Heard { velocity, excess: 0.0 });
        let rule = Clearing { step: 0.5, alignment: 0.25 };
        assert!((rule.velocity(&seen(&heard)) - (0.75 + 0.1)).abs() < 1e-12);
        assert!((rule.velocity(&seen(&[])) - 1.0).abs() < 1e-12, "alone it follows its bids");
        let late = Seen { delay_rounds: 4, ..seen(&[]) };
        assert!((rule.velocity(&late) - 1.0 / 3.0).abs() < 1e-12);
        let rule = Excess { step: 0.5, alignment: 0.0 };
        assert!((rule.velocity(&seen(&heard)) - 0.25).abs() < 1e-12);
    }
}
