//! What a play costs all tokens together, and what it would cost at best.

use super::{
    Certificate, Choices, CongestionCost, Equilibrium, Game, Router as _, TokenSets, certify,
};
use crate::ids::ExpertId;

/// Marginal-cost pricing: what one token more on an expert costs all of them together,
/// `n·c(n) − (n−1)·c(n−1) = c(n) + (n−1)·(c(n) − c(n−1))`, its own cost and the toll for what it
/// adds to the others' (Pigou 1920).
///
/// The potential under this cost is `Σ a·x − Σ_e n_e c_e(n_e)`, the welfare of all tokens. So the
/// equilibrium of largest potential is the social optimum, and its certificate is the optimum's.
pub struct SocialCost<'g> {
    own: &'g dyn CongestionCost,
    tokens: u32,
}

impl<'g> SocialCost<'g> {
    /// Of the game's cost; none where `n·c_e(n)` is not convex for some expert, since what one
    /// token more costs all would then fall. All costs of this crate are. Reads every cost for every
    /// load, O(TE).
    #[must_use]
    pub fn new(game: &Game<'g>) -> Option<Self> {
        let tokens = u32::try_from(game.scores.tokens()).expect("tokens fit 32 bits");
        let social = Self { own: game.cost, tokens };
        let rises = |expert| {
            let marginals = (1..=tokens).map(|load| (load, social.marginal(expert, load)));
            let mut below = f64::NEG_INFINITY;
            marginals.into_iter().all(|(load, marginal)| {
                // A flat cost may seem to fall by the rounding of its differences.
                let slack = ROUNDING * f64::from(load) * marginal.abs();
                let holds = marginal.is_infinite() || marginal >= below - slack;
                below = marginal;
                holds
            })
        };
        (0..game.scores.experts()).map(ExpertId::from_index).all(rises).then_some(social)
    }
}

/// Differences of neighbouring costs are accurate to a few of their last bits.
const ROUNDING: f64 = 8.0 * f64::EPSILON;

impl CongestionCost for SocialCost<'_> {
    fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
        let own = self.own.marginal(expert, load);
        if load <= 1 || own.is_infinite() {
            return own;
        }
        own + f64::from(load - 1) * (own - self.own.marginal(expert, load - 1))
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        if load == 0 { 0.0 } else { f64::from(load) * self.own.marginal(expert, load) }
    }

    fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
        let (mut low, mut high) = (0, self.tokens);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.marginal(expert, middle) > price { high = middle - 1 } else { low = middle }
        }
        // The search may stop a load off where rounding hides a rise.
        let loads = [low.saturating_sub(1), low, (low + 1).min(self.tokens)];
        let worth = |load| price * f64::from(load) - self.total(expert, load);
        loads.into_iter().map(worth).fold(0.0, f64::max)
    }
}

/// The social cost of a play beside the least there is.
///
/// `SC(x) = Σ_t (topk-sum(a_t) − Σ_{e∈S_t} a[t,e]) + Σ_e n_e c_e(n_e)`: the affinity that tokens
/// give up and the congestion that they suffer, in units of the scores, ≥ 0.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SocialReport {
    /// SC of the play; infinite where it exceeds what an expert allows.
    pub cost: f64,
    /// SC of the social optimum found.
    pub optimum: f64,
    /// No assignment has a smaller SC: weak duality at the optimum's prices. At most
    /// [`Self::optimum`] but for rounding, and equal to it where the optimum is exact.
    pub optimum_bound: f64,
    /// ε of the play's own game: 0 at an equilibrium.
    pub epsilon_nash: f64,
}

impl SocialReport {
    /// Finds the social optimum of the game and holds the play against it. None where the play is no
    /// assignment of exactly k, or where [`SocialCost::new`] gives none.
    #[must_use]
    pub fn new(game: &Game<'_>, choices: &Choices, certificate: &Certificate) -> Option<Self> {
        if certificate.sets != TokenSets::ExactlyK {
            return None;
        }
        let social = SocialCost::new(game)?;
        let congestion: f64 = choices
            .loads(game.scores.experts())
            .into_iter()
            .enumerate()
            .map(|(expert, load)| social.total(ExpertId::from_index(expert), load))
            .sum();
        let planned = Game { cost: &social, ..*game };
        let play = Equilibrium::default().route(&planned, None);
        let optimum = certify(&planned, &play.choices, &play.prices);
        let top_k = certificate.score_top_k;
        Some(Self {
            cost: top_k - certificate.score + congestion,
            optimum: top_k - optimum.potential,
            optimum_bound: top_k - optimum.dual_bound,
            epsilon_nash: certificate.epsilon_nash,
        })
    }

    /// Adds another game's, to sum over rounds.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cost: self.cost + other.cost,
            optimum: self.optimum + other.optimum,
            optimum_bound: self.optimum_bound + other.optimum_bound,
            epsilon_nash: self.epsilon_nash.max(other.epsilon_nash),
        }
    }

    /// `cost / optimum` of an equilibrium, with 0/0 = 1: at least 1. The price of anarchy is the
    /// ratio at the worst equilibrium (Koutsoupias and Papadimitriou 1999), so this bounds it from
    /// below. None where ε exceeds 1e-9, so that the play is no equilibrium, where its cost is
    /// infinite, and where the optimum is not proven to within 1e-6 of itself.
    ///
    /// Known for costs linear in the load: at most 5/2 with whole tokens (Awerbuch, Azar and
    /// Epstein 2005; Christodoulou and Koutsoupias 2005) and 4/3 in the limit of many small ones
    /// (Roughgarden and Tardos 2002). Offsets that are not negative, such as the affinity given up,
    /// leave both as they are.
    #[must_use]
    pub fn price_of_anarchy(&self) -> Option<f64> {
        const PROVEN: f64 = 1e-6;
        const EQUILIBRIUM: f64 = 1e-9;
        let proven = self.optimum - self.optimum_bound <= PROVEN * self.optimum.abs();
        let equilibrium = self.epsilon_nash <= EQUILIBRIUM;
        if !(proven && equilibrium && self.cost.is_finite() && self.optimum.is_finite()) {
            return None;
        }
        Some(if self.cost == self.optimum { 1.0 } else { self.cost / self.optimum })
    }
}

#[cfg(test)]
mod tests {
    use super::{SocialCost, SocialReport};
    use crate::game::{
        Certificate, Choices, CongestionCost, CostSettings, Equilibrium, Game, Router as _, Scores,
        certify,
    };
    use crate::ids::ExpertId;
    use crate::rng::stream;
    use rand::RngExt as _;

    /// Every assignment of k experts to each token.
    fn assignments(tokens: usize, experts: usize, k: usize) -> Vec<Choices> {
        let sets: Vec<Vec<ExpertId>> = (0..1_u32 << experts)
            .filter(|set| set.count_ones() as usize == k)
            .map(|set| {
                let members = (0..experts).filter(|expert| set >> expert & 1 == 1);
                members.map(ExpertId::from_index).collect()
            })
            .collect();
        let mut all = vec![Vec::new()];
        for _ in 0..tokens {
            let grown = all.iter().flat_map(|rows: &Vec<Vec<ExpertId>>| {
                sets.iter().map(|set| [&rows[..], std::slice::from_ref(set)].concat())
            });
            all = grown.collect();
        }
        all.iter().map(|rows| Choices::ragged(rows)).collect()
    }

    /// By the definition, from scores and costs alone.
    fn social_cost(game: &Game<'_>, choices: &Choices) -> f64 {
        let loads = choices.loads(game.scores.experts());
        (0..choices.tokens())
            .map(|token| {
                let row = game.scores.row(token);
                let mut best = row.to_vec();
                best.sort_by(|a, b| b.total_cmp(a));
                let best: f64 = best[..game.top_k].iter().map(|score| f64::from(*score)).sum();
                let pays = |expert: &ExpertId| {
                    game.cost.marginal(*expert, loads[expert.index()])
                        - f64::from(row[expert.index()])
                };
                best + choices.row(token).iter().map(pays).sum::<f64>()
            })
            .sum()
    }

    fn certificate(game: &Game<'_>, choices: &Choices) -> Certificate {
        certify(game, choices, &vec![0.0; game.scores.experts()])
    }

    #[test]
    fn the_optimum_is_that_of_brute_force_and_linear_costs_keep_to_five_halves() {
        let costs = [
            CostSettings::Linear { price_per_fair_share: 0.8 },
            CostSettings::Polynomial { price_per_fair_share: 0.4, degree: 3.0 },
            CostSettings::Quota { capacity_factor: 1.0 },
            CostSettings::Latency {
                service_ms: vec![1.0],
                window_ms: 7.0,
                variation: 1.0,
                price_per_ms: 0.1,
            },
        ];
        let mut worst = 1.0_f64;
        for (case, (tokens, experts, k)) in
            [(4, 3, 1), (5, 3, 2), (6, 2, 1), (4, 4, 2)].into_iter().enumerate()
        {
            for (settings, grid) in costs.iter().flat_map(|cost| [(cost, 1e6_f32), (cost, 2.0)]) {
                let mut rng = stream(case as u64, "social cost");
                let values: Vec<f32> = (0..tokens * experts)
                    .map(|_| (rng.random::<f32>() * grid).round() / grid)
                    .collect();
                let cost = settings.build(tokens, experts, k);
                let scores = Scores::new(&values, experts).expect("finite");
                let game = Game { scores, top_k: k, cost: cost.as_ref() };
                let what = format!("{settings:?} {tokens}x{experts} k {k} grid {grid}");

                let all = assignments(tokens, experts, k);
                let least = all.iter().map(|x| social_cost(&game, x)).fold(f64::INFINITY, f64::min);
                for choices in &all {
                    let certificate = certificate(&game, choices);
                    let report = SocialReport::new(&game, choices, &certificate).expect("convex");
                    let own = social_cost(&game, choices);
                    assert!(own == report.cost || (own - report.cost).abs() < 1e-12, "{what}");
                    assert!((report.optimum - least).abs() < 1e-12, "{what}: {report:?} {least}");
                    assert!((report.optimum_bound - least).abs() < 1e-12, "{what}: {report:?}");
                    let linear = matches!(settings, CostSettings::Linear { .. });
                    if linear && certificate.epsilon_nash < 1e-12 {
                        let ratio = report.price_of_anarchy().expect("a proven optimum");
                        assert!((1.0 - 1e-12..=2.5).contains(&ratio), "{what}: {ratio}");
                        worst = worst.max(ratio);
                    }
                }
            }
        }
        assert!(worst > 1.02, "some equilibrium of these games is worse than the optimum: {worst}");
    }

    /// Pigou's two roads: one costs its share of the traffic to some power, the other always 1.
    struct Pigou {
        tokens: u32,
        degree: f64,
    }

    impl CongestionCost for Pigou {
        fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
            let share = f64::from(load) / f64::from(self.tokens);
            if expert.index() == 0 { share.powf(self.degree) } else { 1.0 }
        }

        fn total(&self, expert: ExpertId, load: u32) -> f64 {
            (1..=load).map(|load| self.marginal(expert, load)).sum()
        }

        fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
            let gains = (1..=self.tokens).map(|load| price - self.marginal(expert, load));
            gains.take_while(|gain| *gain > 0.0).sum()
        }
    }

    #[test]
    fn pigous_example_has_the_ratio_that_is_known_for_its_degree() {
        const TOKENS: u32 = 1000;
        let values = vec![0.0_f32; 2 * TOKENS as usize];
        // [1 − d (d+1)^(−(d+1)/d)]⁻¹ (Roughgarden 2003), 4/3 at d = 1, 2.151 at the roads' d = 4.
        for (degree, known) in [(1.0, 4.0 / 3.0), (2.0, 1.625_848), (4.0, 2.150_517)] {
            let power = (degree + 1.0_f64).powf(-(degree + 1.0) / degree);
            assert!((1.0 / (1.0 - degree * power) - known).abs() < 1e-4);
            let cost = Pigou { tokens: TOKENS, degree };
            let scores = Scores::new(&values, 2).expect("finite");
            let game = Game { scores, top_k: 1, cost: &cost };
            let play = Equilibrium::default().route(&game, None);
            let certificate = certify(&game, &play.choices, &play.prices);
            assert!(certificate.epsilon_nash < 1e-12 && certificate.relative_gap < 1e-12);
            let report = SocialReport::new(&game, &play.choices, &certificate).expect("convex");
            let ratio = report.price_of_anarchy().expect("a proven optimum");
            // The last token or two may take either road: a share of d/1000 each.
            assert!(ratio <= known + 1e-4 && ratio > known - 0.01 * degree, "{degree}: {ratio}");
        }
    }

    /// Falls towards its second unit's share: `2·c(2) − c(1)` exceeds `3·c(3) − 2·c(2)`.
    struct Step;

    impl CongestionCost for Step {
        fn marginal(&self, _: ExpertId, load: u32) -> f64 {
            f64::from(load.min(2))
        }

        fn total(&self, expert: ExpertId, load: u32) -> f64 {
            (1..=load).map(|load| self.marginal(expert, load)).sum()
        }

        fn conjugate(&self, _: ExpertId, _: f64) -> f64 {
            0.0
        }
    }

    #[test]
    fn a_cost_whose_toll_falls_and_plays_of_another_size_have_no_report() {
        let values = [0.5_f32; 8];
        let scores = Scores::new(&values, 2).expect("finite");
        assert!(SocialCost::new(&Game { scores, top_k: 1, cost: &Step }).is_none());
        let flat = CostSettings::Polynomial { price_per_fair_share: 0.1, degree: 0.0 };
        let flat = flat.build(4, 2, 1);
        let game = Game { scores, top_k: 1, cost: flat.as_ref() };
        assert!(SocialCost::new(&game).is_some(), "a flat toll does not fall");
        let dropped = Choices::ragged(&[vec![], vec![], vec![], vec![]]);
        let report = SocialReport::new(&game, &dropped, &certificate(&game, &dropped));
        assert_eq!(report, None);
        let all_alike = Choices::uniform(vec![ExpertId(0); 4], 1);
        let report = SocialReport::new(&game, &all_alike, &certificate(&game, &all_alike));
        let report = report.expect("a convex cost and one expert a token");
        let ratio = report.price_of_anarchy().expect("proven");
        assert!((ratio - 1.0).abs() < 1e-12, "a flat cost has no anarchy: {ratio}");
        for not_known in [
            SocialReport { epsilon_nash: 1e-3, ..report },
            SocialReport { optimum_bound: 0.9 * report.optimum, ..report },
            SocialReport { cost: f64::INFINITY, ..report },
        ] {
            assert_eq!(not_known.price_of_anarchy(), None, "{not_known:?}");
        }
    }
}
