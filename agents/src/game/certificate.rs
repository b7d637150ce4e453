//! What a play is worth, recomputed from the scores, the choices and the prices alone.
//!
//! Nothing here is shared with a solver: a mistake in one cannot hide in the other.

use rayon::prelude::*;

use super::{Choices, Game, TOKEN_BLOCK};
use crate::ids::ExpertId;

/// Which sets a token may choose. Each game contains the one before, with the same Φ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSets {
    /// Exactly k experts: the game of MODEL.md section 1.
    ExactlyK,
    /// At most k: a slot may stay empty, which is worth 0, the worth of the residual path.
    AtMostK,
    /// Any number of experts, none included.
    AnyNumber,
}

/// The distance of a play from equilibrium and from the optimum (MODEL.md section 1).
///
/// A play is certified in the smallest game that contains it: [`Self::sets`] names it. Of a play
/// with dropped or extra pairs, ε and the dual bound therefore compare an expert with nothing,
/// which is worth 0, so they mean something for affinities that are at least 0, such as
/// probabilities, and little for logits. The bound of a larger game holds for the plays of a
/// smaller one too; gaps of plays with different `sets` are distances from different optima.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Certificate {
    /// The game of the other figures.
    pub sets: TokenSets,
    /// Pairs missing: `Σ_t max(0, k − |S_t|)`.
    pub dropped: usize,
    /// Pairs beyond k: `Σ_t max(0, |S_t| − k)`.
    pub extra: usize,
    /// ε: the most any token gains by changing its set, the others staying. In score units, ≥ 0.
    /// Exact for any set it may choose: with `v[t,e] = a[t,e] − c_e(n_e + 1 − x[t,e])` its
    /// best answer is the top k of v, of which [`TokenSets::AtMostK`] takes the positive ones and
    /// [`TokenSets::AnyNumber`] takes all positive v. Infinite when a token sits on a barred
    /// expert and has an unbarred alternative; 0 for a token that has none.
    pub epsilon_nash: f64,
    /// Φ of the choices; −inf when an expert is loaded beyond what it allows.
    pub potential: f64,
    /// `D(p) = Σ_t best(a_t − p) + Σ_e C*_e(p_e)`, at least the largest Φ of this game for any
    /// prices (weak duality). The best is the top-k-sum, or what [`Self::epsilon_nash`] says of
    /// v in the larger games.
    pub dual_bound: f64,
    /// `(D − Φ) / |D|`, with 0/0 = 0: the optimum is at most this far away. May be negative by
    /// rounding, at the scale of 1e-15. Infinite when Φ is, and when D = 0
    /// but Φ is not.
    pub relative_gap: f64,
    /// `max_e n_e / (Tk/E)`, at least 1 unless pairs were dropped.
    pub max_over_mean: f64,
    /// `Σ a·x`.
    pub score: f64,
    /// `Σ a·x` of plain top-k, the most any assignment of exactly k has.
    pub score_top_k: f64,
    /// `(score_top_k − score) / |score_top_k|`, with 0/0 = 0: what balance costs. Extra pairs may
    /// make it negative.
    pub score_loss: f64,
}

/// Why choices are no assignment of a game.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoicesError {
    /// The number of rows differs from the game's tokens.
    #[error("choices of {rows} tokens given for a game of {tokens}")]
    Tokens {
        /// Given.
        rows: usize,
        /// T.
        tokens: usize,
    },
    /// An expert does not exist.
    #[error("token {token} chose expert {expert}: there are {experts}")]
    NoSuchExpert {
        /// Row.
        token: usize,
        /// Its choice.
        expert: ExpertId,
        /// E.
        experts: usize,
    },
    /// The experts of a token are not strictly ascending.
    #[error("the experts of token {token} repeat or are out of order: list them ascending")]
    Order {
        /// Row.
        token: usize,
    },
}

/// Whether every token has distinct experts in range, ascending. Any number of them: the
/// certificate counts those that differ from k.
///
/// # Errors
/// The first token that has not.
pub fn check_choices(game: &Game<'_>, choices: &Choices) -> Result<(), ChoicesError> {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    if choices.tokens() != tokens {
        return Err(ChoicesError::Tokens { rows: choices.tokens(), tokens });
    }
    for token in 0..tokens {
        let row = choices.row(token);
        if let Some(expert) = row.iter().find(|expert| expert.index() >= experts) {
            return Err(ChoicesError::NoSuchExpert { token, expert: *expert, experts });
        }
        if !row.is_sorted_by(|a, b| a < b) {
            return Err(ChoicesError::Order { token });
        }
    }
    Ok(())
}

/// Certifies choices against prices. One pass over the scores, O(TE).
///
/// # Panics
/// When [`check_choices`] fails or `prices` has not one finite value an expert.
#[must_use]
pub fn certify(game: &Game<'_>, choices: &Choices, prices: &[f64]) -> Certificate {
    assert_eq!(check_choices(game, choices), Ok(()), "a router returns an assignment of its game");
    let experts = game.scores.experts();
    assert_eq!(prices.len(), experts, "one price an expert");
    assert!(prices.iter().all(|price| price.is_finite()), "prices are finite");
    let tokens = game.scores.tokens();
    let loads = choices.loads(experts);
    let crowd = Crowd::new(game, &loads);
    let counts = || (0..tokens).map(|token| choices.pairs(token).len());
    let dropped = counts().map(|count| game.top_k.saturating_sub(count)).sum();
    let extra = counts().map(|count| count.saturating_sub(game.top_k)).sum();
    let sets = match (dropped, extra) {
        (0, 0) => TokenSets::ExactlyK,
        (_, 0) => TokenSets::AtMostK,
        _ => TokenSets::AnyNumber,
    };
    let most = match sets {
        TokenSets::ExactlyK => None,
        TokenSets::AtMostK => Some(game.top_k),
        TokenSets::AnyNumber => Some(experts),
    };

    let blocks: Vec<Sums> = (0..tokens.div_ceil(TOKEN_BLOCK))
        .into_par_iter()
        .map(|block| {
            let first = block * TOKEN_BLOCK;
            let last = (first + TOKEN_BLOCK).min(tokens);
            Sums::of_tokens(game, choices, prices, (&crowd, most), first..last)
        })
        .collect();
    let sums = blocks.into_iter().fold(Sums::default(), Sums::then);

    let ids = || (0..experts).map(ExpertId::from_index);
    let congestion: f64 = ids().zip(&loads).map(|(e, load)| game.cost.total(e, *load)).sum();
    let conjugate: f64 = ids().zip(prices).map(|(e, price)| game.cost.conjugate(e, *price)).sum();
    let potential = sums.score - congestion;
    let dual_bound = sums.priced + conjugate;
    let fair_share = tokens as f64 * game.top_k as f64 / experts as f64;
    Certificate {
        sets,
        dropped,
        extra,
        epsilon_nash: sums.regret,
        potential,
        dual_bound,
        relative_gap: ratio(dual_bound - potential, dual_bound.abs()),
        max_over_mean: f64::from(loads.into_iter().max().unwrap_or(0)) / fair_share,
        score: sums.score,
        score_top_k: sums.score_top_k,
        score_loss: ratio(sums.score_top_k - sums.score, sums.score_top_k.abs()),
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { part / whole }
}

/// What a token pays on each expert: staying on it, and joining it.
struct Crowd {
    stay: Vec<f64>,
    join: Vec<f64>,
}

impl Crowd {
    fn new(game: &Game<'_>, loads: &[u32]) -> Self {
        let cost = |(expert, load)| game.cost.marginal(ExpertId::from_index(expert), load);
        Self {
            stay: loads.iter().map(|load| (*load).max(1)).enumerate().map(cost).collect(),
            join: loads.iter().map(|load| load + 1).enumerate().map(cost).collect(),
        }
    }
}

/// Sums over tokens, in token order.
#[derive(Default)]
struct Sums {
    regret: f64,
    score: f64,
    score_top_k: f64,
    priced: f64,
}

impl Sums {
    fn of_tokens(
        game: &Game<'_>,
        choices: &Choices,
        prices: &[f64],
        (crowd, most): (&Crowd, Option<usize>),
        tokens: std::ops::Range<usize>,
    ) -> Self {
        let mut sums = Self::default();
        let mut scratch = Vec::with_capacity(prices.len());
        let mut values = Vec::with_capacity(prices.len());
        let k = game.top_k;
        let mut best_and_own = |values: &[f64], token| match most {
            None => sum_best_and_chosen(values, choices.row(token), &mut scratch),
            Some(most) => sum_gains_and_chosen(values, choices.row(token), most, &mut scratch),
        };
        let mut top_scratch = Vec::new();
        for token in tokens {
            let row = game.scores.row(token);
            let scores = || row.iter().map(|score| f64::from(*score));

            values.clear();
            values.extend(scores());
            let (best, own) = best_and_own(&values, token);
            sums.score += own;
            sums.score_top_k +=
                if most.is_none() { best } else { sum_largest(&values, k, &mut top_scratch) };

            values.clear();
            values.extend(scores().zip(prices).map(|(score, price)| score - price));
            sums.priced += best_and_own(&values, token).0;

            values.clear();
            values.extend(scores().zip(&crowd.join).map(|(score, cost)| score - cost));
            for expert in choices.row(token).iter().map(|expert| expert.index()) {
                values[expert] = f64::from(row[expert]) - crowd.stay[expert];
            }
            let (best, own) = best_and_own(&values, token);
            // Both are −inf when the token is barred from every set: no change helps it.
            let regret = if best == own { 0.0 } else { best - own };
            sums.regret = sums.regret.max(regret);
        }
        sums
    }

    fn then(self, next: Self) -> Self {
        Self {
            regret: self.regret.max(next.regret),
            score: self.score + next.score,
            score_top_k: self.score_top_k + next.score_top_k,
            priced: self.priced + next.priced,
        }
    }
}

/// The sum of the k largest values and that of the chosen ones, each in expert order, so that
/// the two are the same bits when the chosen are the largest.
fn sum_best_and_chosen(values: &[f64], chosen: &[ExpertId], scratch: &mut Vec<f64>) -> (f64, f64) {
    let own: f64 = chosen.iter().map(|expert| values[expert.index()]).sum();
    let worst = chosen.iter().map(|e| values[e.index()]).fold(f64::INFINITY, f64::min);
    let as_good = values.iter().filter(|value| **value >= worst).count();
    if as_good <= chosen.len() {
        return (own, own);
    }
    scratch.clear();
    scratch.extend_from_slice(values);
    let descending = |a: &f64, b: &f64| b.total_cmp(a);
    let threshold = *scratch.select_nth_unstable_by(chosen.len() - 1, descending).1;
    let above = values.iter().filter(|value| **value > threshold).count();
    let own_above = chosen.iter().filter(|e| values[e.index()] > threshold).count();
    if worst == threshold && own_above == above {
        // The chosen differ from the largest by equal values only.
        return (own, own);
    }
    let best = sum_largest(values, chosen.len(), scratch);
    (best, own)
}

/// The largest sum over sets of at most `most` values, the empty one included, and the sum of the
/// chosen ones. The first is at least the second but for −inf and rounding.
fn sum_gains_and_chosen(
    values: &[f64],
    chosen: &[ExpertId],
    most: usize,
    scratch: &mut Vec<f64>,
) -> (f64, f64) {
    let own: f64 = chosen.iter().map(|expert| values[expert.index()]).sum();
    if values.iter().filter(|value| **value > 0.0).count() > most {
        return (sum_largest(values, most, scratch).max(own), own);
    }
    let gains: f64 = values.iter().filter(|value| **value > 0.0).sum();
    (gains.max(own), own)
}

/// The sum of the `count` largest values in expert order; of equal ones the first are taken.
fn sum_largest(values: &[f64], count: usize, scratch: &mut Vec<f64>) -> f64 {
    scratch.clear();
    scratch.extend_from_slice(values);
    let threshold = *scratch.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
    let mut ties = count - values.iter().filter(|value| **value > threshold).count();
    let largest = values.iter().filter(|value| {
        let tied = **value == threshold && ties > 0;
        ties -= usize::from(tied);
        tied || **value > threshold
    });
    largest.sum()
}
