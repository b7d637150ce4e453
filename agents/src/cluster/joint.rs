//! How far the joint play of many front ends is from the equilibrium of all their tokens together.
//!
//! The game is that of `MODEL.md` section 1 over the tokens of all front ends in one period. A block is so many
//! tokens with the same affinities, which are known for the listed experts; those of the others are at most the
//! least listed one. Where that bound matters it is taken for their value, so ε and the dual bound are never
//! too small.

use super::demand::Candidates;
use crate::game::{CongestionCost, CostSettings};
use crate::ids::ExpertId;
use std::cmp::Ordering;

/// A block of a period.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it wanted.
    pub wants: Candidates,
    /// What it chose, k experts.
    pub chosen: Vec<ExpertId>,
}

/// The blocks of all front ends in one period.
#[derive(Clone, Debug)]
pub struct Union {
    /// All blocks.
    pub rows: Vec<Row>,
    /// Tokens of each.
    pub block_tokens: u32,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
}

/// A play of a union.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JointPlay {
    /// ε: the most that a token would gain by changing its experts, the others staying.
    pub epsilon_nash: f64,
    /// The mean of what tokens would gain.
    pub regret_mean: f64,
    /// Φ.
    pub potential: f64,
    /// `(D − Φ)/|D|`, with the least dual bound D that was found.
    pub relative_gap: f64,
    /// `max n_e / q`.
    pub max_over_mean: f64,
    /// What is given up of the affinity of plain top-k, as a share of the bound's magnitude.
    pub score_loss: f64,
}

/// The certificate of a union, beside its controls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JointCertificate {
    /// Tokens of the period.
    pub tokens: u64,
    /// The least dual bound: no play of the union has a larger potential.
    pub dual_bound: f64,
    /// What was played.
    pub played: JointPlay,
    /// The control: each block takes its k most wanted experts.
    pub plain: JointPlay,
    /// What who knows all prices reaches, by Frank–Wolfe steps on the potential.
    pub informed: JointPlay,
}

/// Steps of the search for prices.
const STEPS: u32 = 200;

impl Union {
    /// Tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.rows.len() as u64 * u64::from(self.block_tokens)
    }

    /// Certifies what was played.
    ///
    /// # Panics
    /// Without rows, or when a row chose other than k experts of its list.
    #[must_use]
    pub fn certify(&self, cost: &CostSettings) -> JointCertificate {
        let tokens = usize::try_from(self.tokens()).expect("rows in memory");
        let cost = cost.build(tokens, self.experts, self.top_k);
        let cost = cost.as_ref();
        let played: Vec<Vec<ExpertId>> = self.rows.iter().map(|row| row.chosen.clone()).collect();
        let plain = self.answers(&vec![0.0; self.experts]);
        let (dual_bound, informed) = self.search(cost, &plain);
        JointCertificate {
            tokens: self.tokens(),
            dual_bound,
            played: self.play(cost, dual_bound, &played),
            plain: self.play(cost, dual_bound, &plain),
            informed: self.play(cost, dual_bound, &informed),
        }
    }

    /// Prices by steps on averaged loads, as Frank and Wolfe (1956) do on the concave potential; the least
    /// dual bound met, and the play with the largest potential.
    fn search(
        &self,
        cost: &dyn CongestionCost,
        plain: &[Vec<ExpertId>],
    ) -> (f64, Vec<Vec<ExpertId>>) {
        let mut loads: Vec<f64> = self.loads(plain).into_iter().map(f64::from).collect();
        let (mut bound, mut best) = (f64::INFINITY, (f64::NEG_INFINITY, plain.to_vec()));
        for step in 0..STEPS {
            let prices: Vec<f64> =
                (0..).zip(&loads).map(|(e, load)| between(cost, e, *load)).collect();
            bound = bound.min(self.dual_bound(cost, &prices));
            let answers = self.answers(&prices);
            let found = self.loads(&answers);
            let potential = self.potential(cost, &answers, &found);
            if potential > best.0 {
                best = (potential, answers);
            }
            let weight = 2.0 / f64::from(step + 3);
            loads
                .iter_mut()
                .zip(found)
                .for_each(|(mean, new)| *mean += weight * (f64::from(new) - *mean));
        }
        (bound, best.1)
    }

    /// The k experts of each row with the largest affinity less price, ascending.
    fn answers(&self, prices: &[f64]) -> Vec<Vec<ExpertId>> {
        let answer = |row: &Row| {
            let mut priced = priced(&row.wants, prices);
            keep_first(&mut priced, self.top_k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut chosen: Vec<ExpertId> = priced.into_iter().map(|(_, expert)| expert).collect();
            chosen.sort_unstable();
            chosen
        };
        self.rows.iter().map(answer).collect()
    }

    fn loads(&self, chosen: &[Vec<ExpertId>]) -> Vec<u32> {
        let mut loads = vec![0; self.experts];
        chosen.iter().flatten().for_each(|expert| loads[expert.index()] += self.block_tokens);
        loads
    }

    fn score(&self, chosen: &[Vec<ExpertId>]) -> f64 {
        let of_row = |(row, chosen): (&Row, &Vec<ExpertId>)| {
            chosen.iter().map(|expert| affinity(&row.wants, *expert)).sum::<f64>()
        };
        f64::from(self.block_tokens) * self.rows.iter().zip(chosen).map(of_row).sum::<f64>()
    }

    fn potential(&self, cost: &dyn CongestionCost, chosen: &[Vec<ExpertId>], loads: &[u32]) -> f64 {
        let totals = (0..).zip(loads).map(|(expert, load)| cost.total(ExpertId(expert), *load));
        self.score(chosen) - totals.sum::<f64>()
    }

    fn dual_bound(&self, cost: &dyn CongestionCost, prices: &[f64]) -> f64 {
        let least = prices.iter().copied().fold(f64::INFINITY, f64::min);
        let best = |row: &Row| best_sum(&row.wants, prices, least, self.top_k);
        let conjugates =
            (0..).zip(prices).map(|(expert, price)| cost.conjugate(ExpertId(expert), *price));
        f64::from(self.block_tokens) * self.rows.iter().map(best).sum::<f64>()
            + conjugates.sum::<f64>()
    }

    fn play(&self, cost: &dyn CongestionCost, bound: f64, chosen: &[Vec<ExpertId>]) -> JointPlay {
        let loads = self.loads(chosen);
        let potential = self.potential(cost, chosen, &loads);
        // What a newcomer would pay, and what those who are there pay.
        let price = |expert: usize, more: u32| {
            cost.marginal(ExpertId::from_index(expert), loads[expert] + more)
        };
        let joining: Vec<f64> = (0..self.experts).map(|expert| price(expert, 1)).collect();
        let least = joining.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut worst, mut sum) = (0.0_f64, 0.0);
        let mut prices = joining.clone();
        for (row, chosen) in self.rows.iter().zip(chosen) {
            assert_eq!(chosen.len(), self.top_k, "k experts");
            let mut own = 0.0;
            for expert in chosen {
                prices[expert.index()] = price(expert.index(), 0);
                own += affinity(&row.wants, *expert) - prices[expert.index()];
            }
            // A cost that rises makes an own expert cheaper than to a newcomer.
            let least = chosen.iter().map(|e| prices[e.index()]).fold(least, f64::min);
            let regret = (best_sum(&row.wants, &prices, least, self.top_k) - own).max(0.0);
            worst = worst.max(regret);
            sum += regret;
            chosen.iter().for_each(|e| prices[e.index()] = joining[e.index()]);
        }
        let fair = self.tokens() as f64 * self.top_k as f64 / self.experts as f64;
        let most = loads.iter().copied().max().unwrap_or(0);
        let plain = self.score(&self.answers(&vec![0.0; self.experts]));
        let of = |part: f64| if bound == 0.0 { 0.0 } else { part / bound.abs() };
        JointPlay {
            epsilon_nash: worst,
            regret_mean: sum / self.rows.len().max(1) as f64,
            potential,
            relative_gap: of(bound - potential),
            max_over_mean: f64::from(most) / fair,
            score_loss: of(plain - self.score(chosen)),
        }
    }
}

/// The marginal cost at a load between whole ones.
fn between(cost: &dyn CongestionCost, expert: u32, load: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a load")]
    let whole = load as u32;
    let (low, high) =
        (cost.marginal(ExpertId(expert), whole), cost.marginal(ExpertId(expert), whole + 1));
    low + (load - f64::from(whole)) * (high - low)
}

fn priced(wants: &Candidates, prices: &[f64]) -> Vec<(f64, ExpertId)> {
    let value = |(expert, affinity): &(ExpertId, f32)| {
        (f64::from(*affinity) - prices[expert.index()], *expert)
    };
    wants.listed.iter().map(value).collect()
}

fn affinity(wants: &Candidates, expert: ExpertId) -> f64 {
    let found = wants.listed.iter().find(|(listed, _)| *listed == expert);
    f64::from(found.expect("rows choose of their lists").1)
}

/// The sum of the k largest affinities less prices; unlisted experts stand in with the most that they can have.
fn best_sum(wants: &Candidates, prices: &[f64], least_price: f64, top_k: usize) -> f64 {
    let mut values: Vec<f64> = priced(wants, prices).into_iter().map(|(value, _)| value).collect();
    if values.len() < prices.len() {
        values.extend(std::iter::repeat_n(f64::from(wants.least()) - least_price, top_k));
    }
    keep_first(&mut values, top_k, |a, b| b.total_cmp(a));
    values.iter().sum()
}

/// Sorts the first k in the order `compare` and drops the rest.
fn keep_first<T>(values: &mut Vec<T>, top_k: usize, compare: impl Fn(&T, &T) -> Ordering) {
    if top_k < values.len() {
        values.select_nth_unstable_by(top_k - 1, &compare);
        values.truncate(top_k);
    }
    values.sort_unstable_by(compare);
}

#[cfg(test)]
mod tests {
    use super::{Row, Union};
    use crate::cluster::{Candidates, Popularity, StreamKey};
    use crate::game::{Choices, CostSettings, Game, Scores, certify};
    use crate::ids::ExpertId;

    fn union(listed: usize, rows: usize) -> Union {
        let popularity = Popularity::skewed(12, 1.0, 9);
        let mut stream = StreamKey::new(9, "joint").stream(0, 0);
        let mut row = || {
            let mut wants = Candidates::default();
            popularity.candidates((listed, listed), &mut stream, &mut wants);
            let mut chosen: Vec<ExpertId> = wants.listed[1..4].iter().map(|(e, _)| *e).collect();
            chosen.sort_unstable();
            Row { wants, chosen }
        };
        Union { rows: (0..rows).map(|_| row()).collect(), block_tokens: 1, experts: 12, top_k: 3 }
    }

    const COST: CostSettings = CostSettings::Linear { price_per_fair_share: 1.0 };

    #[test]
    fn with_whole_rows_it_says_what_the_certificate_of_the_dense_game_says() {
        let union = union(12, 200);
        let mut scores = vec![0.0_f32; 200 * 12];
        for (row, at) in union.rows.iter().zip(0..) {
            row.wants.listed.iter().for_each(|(e, a)| scores[at * 12 + e.index()] = *a);
        }
        let cost = COST.build(200, 12, 3);
        let scores = Scores::new(&scores, 12).expect("finite");
        let game = Game { scores, top_k: 3, cost: cost.as_ref() };
        let chosen: Vec<ExpertId> = union.rows.iter().flat_map(|row| row.chosen.clone()).collect();
        let dense = certify(&game, &Choices::uniform(chosen, 3), &[0.5; 12]);
        let found = union.certify(&COST);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} {b}");
        close(found.played.epsilon_nash, dense.epsilon_nash);
        close(found.played.potential, dense.potential);
        close(found.played.max_over_mean, dense.max_over_mean);
        let cost = cost.as_ref();
        close(union.dual_bound(cost, &[0.5; 12]), dense.dual_bound);
        // The exact equilibrium lies between what was found and what was bounded.
        let exact = crate::game::Router::route(&crate::game::Equilibrium::default(), &game, None);
        let best = certify(&game, &exact.choices, &exact.prices).potential;
        assert!(found.informed.potential <= best + 1e-9 && best <= found.dual_bound + 1e-9);
        assert!(found.dual_bound - best < 0.01 * best.abs(), "{} {best}", found.dual_bound);
        assert!(found.informed.relative_gap < 0.05 && found.played.relative_gap > 0.1, "{found:?}");
        assert!(found.informed.potential > found.plain.potential);
    }

    #[test]
    fn lists_that_are_cut_short_never_make_a_play_look_better() {
        let (whole, cut) = (union(12, 100), union(5, 100));
        // The same blocks: the first five of each list are the same draws only by chance, so cut by hand.
        let rows = whole.rows.iter().map(|row| {
            let listed = row.wants.listed[..5].to_vec();
            Row { wants: Candidates { listed }, chosen: row.chosen.clone() }
        });
        let cut = Union { rows: rows.collect(), ..cut };
        let (whole, cut) = (whole.certify(&COST), cut.certify(&COST));
        assert!(cut.played.epsilon_nash >= whole.played.epsilon_nash - 1e-9);
        assert!(cut.dual_bound >= whole.informed.potential - 1e-9);
        assert!((cut.played.potential - whole.played.potential).abs() < 1e-9);
    }
}
