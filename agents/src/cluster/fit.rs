//! What a cluster is like, from rounds that were watched on it.
//!
//! Services and the coordinator's times are linear in what they do, with parameters that are not negative; parameters
//! of the ways are found by playing the rounds again ([`Fork`]) with the computing times that were measured. What is
//! left is kept as factors: of each service and of the coordinator's times where nodes are apart, and of all times of a
//! step where they share the cores of a machine: there what disturbs one disturbs all for longer than a round.

mod least_squares;
mod ways;

pub use least_squares::Estimate;

use super::{Fork, Work};
use crate::ids::NodeId;
use least_squares::least_squares;
use std::collections::BTreeMap;

/// Factors that stand for all that were found.
const FACTORS: usize = 200;

/// An order and what became of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    /// Who had it.
    pub node: NodeId,
    /// What it asked.
    pub work: Work,
    /// How long the node computed, ns.
    pub compute_ns: u64,
    /// From the round's start until the answer was whole, ns.
    pub leg_ns: u64,
}

/// A round that was watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Tokens in play.
    pub tokens: u64,
    /// Whether its layer is the first of the step.
    pub is_first: bool,
    /// The coordinator's own time, ns.
    pub coordinator_ns: u64,
    /// One an order, at least one.
    pub legs: Vec<Leg>,
}

impl Watched {
    /// How long the round took with the coordinator's part, ns.
    #[must_use]
    pub fn took_ns(&self) -> u64 {
        self.coordinator_ns + self.last_ns()
    }

    /// When the last answer was whole, ns.
    fn last_ns(&self) -> u64 {
        self.legs.iter().map(|leg| leg.leg_ns).max().unwrap_or(0)
    }
}

/// How far what was measured is from what the parameters say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residual {
    /// Mean of what was measured, ns.
    pub mean_ns: f64,
    /// Root of the mean square of the differences, ns.
    pub rms_ns: f64,
    /// Measured less said, mean, ns.
    pub bias_ns: f64,
}

/// A cluster as it was found. Times in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Rounds that were watched.
    pub rounds: usize,
    /// A node's time for a message, a pair, a byte of weights, and a byte each time it is read.
    pub service: [Estimate; 4],
    /// By node: how many times as long as the mean one it takes.
    pub node_factors: Vec<f64>,
    /// Of a service, ascending, equally likely and of mean 1; none where nodes share cores.
    pub service_factors: Vec<f64>,
    /// Of a way, a message and a byte.
    pub ways: [Estimate; 3],
    /// Cores that the nodes share, or 0.
    pub cores: u32,
    /// Of all times of a step, likewise; none where nodes do not share cores.
    pub step_factors: Vec<f64>,
    /// Of the coordinator for a round, a token of it, a step, and a token of it.
    pub coordinator: [Estimate; 4],
    /// As those of services.
    pub coordinator_factors: Vec<f64>,
    /// Of services, of the rounds' last answers, and of the coordinator's times.
    pub residuals: [Residual; 3],
    /// Mean time of a node for a message: the control that knows nothing else.
    pub service_mean_ns: f64,
    /// Mean time of the coordinator for a round, likewise.
    pub coordinator_mean_ns: f64,
}

/// Finds a cluster's parameters; `cores` are those that its nodes share, 0 for none. Gives nothing where there
/// is no round.
#[must_use]
pub fn fit(rounds: &[Watched], cores: u32) -> Option<Fitted> {
    (!rounds.is_empty() && rounds.iter().all(|round| !round.legs.is_empty())).then_some(())?;
    let (mut service, node_factors) = services(rounds);
    let said = |leg: &Leg, service: &[Estimate; 4]| {
        let factor = node_factors.get(&leg.node).copied().unwrap_or(1.0);
        factor * dot(&features(&leg.work), service)
    };
    let legs = || rounds.iter().flat_map(|round| &round.legs);
    let of_services = || legs().map(|leg| (leg.compute_ns as f64, said(leg, &service)));
    let residual_of_services = residual(of_services());
    let (_, mut service_factors) = factors(of_services().collect());
    let (mut ways, mut fork) = ways::fit(rounds, cores);
    let last = |round: &Watched, fork: &Fork, service: &[Estimate; 4]| {
        let orders = round.legs.iter().map(|leg| (leg.work, said(leg, service)));
        let legs = fork.legs(orders);
        (round.last_ns() as f64, legs.into_iter().max().unwrap_or(0) as f64)
    };
    let (coordinator, mut coordinator_factors, residual_of_coordinator) = coordinator(rounds);
    let mut step_factors = Vec::new();
    if cores > 0 {
        let (longer, _) =
            factors(rounds.iter().map(|round| last(round, &fork, &service)).collect());
        service = service.map(|estimate| estimate.times(longer));
        ways = ways.map(|estimate| estimate.times(longer));
        fork = fork.times(longer);
        let of_round = |round: &Watched| {
            let of_nodes = last(round, &fork, &service).1;
            (round.took_ns() as f64, of_nodes + dot(&coordinator_features(round), &coordinator))
        };
        let of_step = |step: &[Watched]| {
            let rounds = step.iter().map(of_round);
            rounds.fold((0.0, 0.0), |sum, round| (sum.0 + round.0, sum.1 + round.1))
        };
        let steps = rounds.chunk_by(|_, next| !next.is_first).map(of_step);
        step_factors = factors(steps.collect()).1;
        (service_factors, coordinator_factors) = (Vec::new(), Vec::new());
    }
    let residual_of_rounds = residual(rounds.iter().map(|round| last(round, &fork, &service)));
    let count = legs().count() as f64;
    let nodes = node_factors.keys().next_back().map_or(0, |node| node.index() + 1);
    let factor = |node| node_factors.get(&NodeId::from_index(node)).copied().unwrap_or(1.0);
    Some(Fitted {
        rounds: rounds.len(),
        service,
        node_factors: (0..nodes).map(factor).collect(),
        service_factors,
        ways,
        cores,
        step_factors,
        coordinator,
        coordinator_factors,
        residuals: [residual_of_services, residual_of_rounds, residual_of_coordinator],
        service_mean_ns: legs().map(|leg| leg.compute_ns as f64).sum::<f64>() / count,
        coordinator_mean_ns: residual_of_coordinator.mean_ns,
    })
}

fn features(work: &Work) -> [f64; 4] {
    [1.0, f64::from(work.pairs), work.weight_bytes as f64, work.pass_bytes as f64]
}

/// Parameters of the mean node, and how many times as long each takes.
fn services(rounds: &[Watched]) -> ([Estimate; 4], BTreeMap<NodeId, f64>) {
    /// The factors move by less than 10⁻⁴ after this many.
    const ROUNDS: usize = 4;
    let legs = || rounds.iter().flat_map(|round| &round.legs);
    let mut factors: BTreeMap<NodeId, f64> = legs().map(|leg| (leg.node, 1.0)).collect();
    let mut service = [Estimate::default(); 4];
    for _ in 0..ROUNDS {
        service = least_squares(legs().map(|leg| {
            let factor = factors[&leg.node];
            (features(&leg.work).map(|feature| feature * factor), leg.compute_ns as f64)
        }));
        let mut sums: BTreeMap<NodeId, [f64; 2]> = BTreeMap::new();
        for leg in legs() {
            let [measured, said] = sums.entry(leg.node).or_default();
            *measured += leg.compute_ns as f64;
            *said += dot(&features(&leg.work), &service);
        }
        let found =
            |(node, [measured, said]): (&NodeId, &[f64; 2])| (*node, ratio(*measured, *said));
        factors = sums.iter().map(found).collect();
        let mean = factors.values().sum::<f64>() / factors.len() as f64;
        if mean > 0.0 {
            factors.values_mut().for_each(|factor| *factor /= mean);
        }
    }
    (service, factors)
}

fn coordinator_features(round: &Watched) -> [f64; 4] {
    let (tokens, first) = (round.tokens as f64, f64::from(u8::from(round.is_first)));
    [1.0, tokens, first, first * tokens]
}

fn coordinator(rounds: &[Watched]) -> ([Estimate; 4], Vec<f64>, Residual) {
    let measured = |round: &Watched| round.coordinator_ns as f64;
    let found =
        least_squares(rounds.iter().map(|round| (coordinator_features(round), measured(round))));
    let said = |round: &Watched| dot(&coordinator_features(round), &found);
    let both = || rounds.iter().map(|round| (measured(round), said(round)));
    let (longer, factors) = factors(both().collect());
    (found.map(|estimate| estimate.times(longer)), factors, residual(both()))
}

/// By what all is longer than was said, and what single ones are longer by then: so many equally likely values,
/// ascending, that stand for all; each a mean of as many, counted by what was said, so that what takes long comes out
/// right. Drawn between neighbours they have mean 1.
fn factors(mut pairs: Vec<(f64, f64)>) -> (f64, Vec<f64>) {
    pairs.retain(|(_, said)| *said > 0.0);
    let (measured, said) = pairs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    if measured <= 0.0 || said <= 0.0 {
        return (1.0, vec![1.0]);
    }
    pairs.sort_unstable_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let kept = FACTORS.min(pairs.len());
    let room = said / kept as f64;
    let (mut means, mut sum, mut filled) = (Vec::with_capacity(kept), 0.0, 0.0);
    for (measured, said) in pairs {
        let mut left = said;
        while left > 0.0 {
            let part = left.min(room - filled);
            (sum, filled, left) = (sum + measured / said * part, filled + part, left - part);
            // Sums are rounded.
            if filled >= room * (1.0 - 1e-9) {
                means.push(sum / filled);
                (sum, filled) = (0.0, 0.0);
            }
        }
    }
    let between: f64 = match means.as_slice() {
        [one] => *one,
        several => {
            let middles = several.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
            middles.sum::<f64>() / (several.len() - 1) as f64
        }
    };
    means.iter_mut().for_each(|value| *value /= between);
    (measured / said, means)
}

fn residual(pairs: impl Iterator<Item = (f64, f64)>) -> Residual {
    let (mut count, mut sums) = (0_u64, [0.0; 3]);
    for (measured, said) in pairs {
        count += 1;
        let off = measured - said;
        sums = [sums[0] + measured, sums[1] + off * off, sums[2] + off];
    }
    let [mean_ns, square, bias_ns] = sums.map(|sum| sum / count.max(1) as f64);
    Residual { mean_ns, rms_ns: square.sqrt(), bias_ns }
}

fn dot<const N: usize>(features: &[f64; N], of: &[Estimate; N]) -> f64 {
    features.iter().zip(of).map(|(feature, estimate)| feature * estimate.value).sum()
}

/// 1 where nothing was said.
fn ratio(measured: f64, said: f64) -> f64 {
    if said > 0.0 { measured / said } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::{Leg, Watched, factors, fit};
    use crate::cluster::{Fork, Work};
    use crate::ids::NodeId;
    use crate::rng;
    use rand::RngExt as _;

    const FORK: Fork = Fork { latency_ns: 40_000.0, message_ns: 7_000.0, byte_ns: 0.4, cores: 2 };

    /// Of four nodes that share two cores; all times of a step are longer by one factor.
    fn rounds(mut factor: impl FnMut() -> f64) -> Vec<Watched> {
        let mut random = rng::stream(5, "fit");
        let mut longer = 1.0;
        (0..2_000)
            .map(|at| {
                let is_first = at % 2 == 0;
                if is_first {
                    longer = factor();
                }
                let tokens: u32 = random.random_range(8..200);
                let works = [0, 1, 2, 3].map(|node: u32| Work {
                    pairs: tokens + 9 * node,
                    weight_bytes: 1_000_000 + 4_000 * u64::from(random.random_range(0..99_u32)),
                    pass_bytes: 1_500_000 + 90_000 * u64::from(tokens % 8),
                    request_bytes: 128 + 512 * u64::from(tokens),
                    reply_bytes: 128 + 1_024 * u64::from(tokens),
                });
                let service = |work: &Work| {
                    let bytes = 0.1 * work.weight_bytes as f64 + 0.2 * work.pass_bytes as f64;
                    30_000.0 + 1_500.0 * f64::from(work.pairs) + bytes
                };
                let service = |work: &Work| longer * service(work);
                let legs_ns = FORK.times(longer).legs(works.map(|work| (work, service(&work))));
                let leg = |(node, (work, leg_ns))| Leg {
                    node: NodeId::from_index(node),
                    work,
                    compute_ns: super::super::whole_ns(service(&work)),
                    leg_ns,
                };
                let own_ns = 10_000 + 300 * tokens + 50_000 * u32::from(is_first);
                Watched {
                    tokens: u64::from(tokens),
                    is_first,
                    coordinator_ns: super::super::whole_ns(longer * f64::from(own_ns)),
                    legs: works.into_iter().zip(legs_ns).enumerate().map(leg).collect(),
                }
            })
            .collect()
    }

    #[test]
    fn a_cluster_is_found_by_its_rounds() {
        let found = fit(&rounds(|| 1.0), 2).expect("there are rounds");
        let expect = |found: f64, told: f64, of: &str| {
            assert!((found / told - 1.0).abs() < 0.01, "{of}: {found}, not {told}");
        };
        for (of, (found, told)) in
            found.service.iter().zip([30_000.0, 1_500.0, 0.1, 0.2]).enumerate()
        {
            expect(found.value, told, &format!("service {of}"));
        }
        for (of, (found, told)) in found.ways.iter().zip([40_000.0, 7_000.0, 0.4]).enumerate() {
            expect(found.value, told, &format!("way {of}"));
        }
        for (of, (found, told)) in
            found.coordinator.iter().zip([10_000.0, 300.0, 50_000.0]).enumerate()
        {
            expect(found.value, told, &format!("coordinator {of}"));
        }
        assert_eq!(found.coordinator[3].value, 0.0);
        assert!(found.node_factors.iter().all(|factor| (factor - 1.0).abs() < 1e-3));
        assert!(found.residuals.iter().all(|of| of.rms_ns < 1e-3 * of.mean_ns), "{found:?}");
        assert!(found.step_factors.iter().all(|factor| (factor - 1.0).abs() < 1e-3));
        // Whoever takes nodes for apart sees it in what is left.
        let apart = fit(&rounds(|| 1.0), 0).expect("there are rounds");
        let [shared, apart] = [&found, &apart].map(|fitted| fitted.residuals[1].rms_ns);
        assert!(apart > 20.0 * shared && apart > 2e4, "{apart} {shared}");
        assert!(fit(&[], 2).is_none());
    }

    #[test]
    fn what_steps_vary_by_comes_back_as_factors() {
        let mut random = rng::stream(6, "fit factors");
        let found = fit(&rounds(|| 0.5 + random.random::<f64>()), 2).expect("there are rounds");
        for (of, factor) in found.step_factors.iter().enumerate() {
            let told = 0.5 + (of as f64 + 0.5) / found.step_factors.len() as f64;
            assert!((factor - told).abs() < 0.05, "{of}: {factor}, not {told}");
        }
        assert!((found.service[1].value / 1_500.0 - 1.0).abs() < 0.05, "{:?}", found.service);
        assert!(found.residuals[1].bias_ns.abs() < 0.01 * found.residuals[1].mean_ns, "{found:?}");
    }

    #[test]
    fn factors_have_mean_one_between_neighbours_and_keep_the_order() {
        let (longer, found) = factors((0..1_000).map(|i| (f64::from(i * i), 2.0)).collect());
        assert!((longer - 999.0 * 1_999.0 / 6.0 / 2.0).abs() < 0.1, "{longer}");
        assert!(found.len() == 200 && found.is_sorted(), "{}", found.len());
        let between: f64 = found.windows(2).map(|pair| f64::midpoint(pair[0], pair[1])).sum();
        assert!((between / 199.0 - 1.0).abs() < 1e-12);
        // What is said to take nine tenths of the time is nine tenths of the values: 1 and 1.2 before they have mean 1.
        let (longer, found) = factors(vec![(9.0, 9.0), (2.0, 1.0)]);
        assert!((longer - 1.1).abs() < 1e-12 && found.len() == 2, "{found:?}");
        assert!((found[1] / found[0] - 1.2).abs() < 1e-9, "{found:?}");
        assert_eq!(factors(vec![(3.0, 1.0)]), (3.0, vec![1.0]));
        assert_eq!(factors(vec![(3.0, 0.0)]), (1.0, vec![1.0]));
    }
}
