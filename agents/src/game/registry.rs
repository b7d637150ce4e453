//! Routers by name.

use super::routers::{
    Auction, BestResponse, BestResponseBatched, Bip, CachePrior, DropBy, ExpertChoice, FlockPrices,
    GroupLimited, Hash, Hedge, Logit, LossFreeBias, Migration, Quantile, QuantileBalancing,
    Sinkhorn, SmoothStale, TopKCapacity,
};
use super::{CostRegistry, Equilibrium, Router, TopK};
use crate::flock::migration::MigrationRegistry;
use crate::flock::motion::MotionRegistry;
use crate::precision::AllocatorRegistry;
use crate::registry::Registry;

/// All that scenarios and commands name: routers, congestion costs, allocators of bit
/// widths, rules of motion and of migration.
pub struct Registries {
    /// Routers by name.
    pub routers: RouterRegistry,
    /// Congestion costs by name.
    pub costs: CostRegistry,
    /// Allocators by name.
    pub allocators: AllocatorRegistry,
    /// Rules of motion by name.
    pub motions: MotionRegistry,
    /// Rules of migration by name.
    pub migrations: MigrationRegistry,
}

impl Registries {
    /// The routers, costs and allocators of this crate.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            routers: RouterRegistry::standard(),
            costs: CostRegistry::standard(),
            allocators: AllocatorRegistry::standard(),
            motions: MotionRegistry::standard(),
            migrations: MigrationRegistry::standard(),
        }
    }
}

/// Makes a router with its settings.
pub type BuildRouter = dyn Fn() -> Box<dyn Router> + Send + Sync;

/// Routers by name, those of this crate and a user's own.
pub type RouterRegistry = Registry<BuildRouter>;

impl RouterRegistry {
    /// The routers of this crate.
    #[must_use]
    pub fn standard() -> Self {
        let mut registry = Self::new("a router");
        let mut add = |name, summary, build: Box<BuildRouter>| {
            registry.standard_entry(name, summary, build);
        };
        add(
            "top_k",
            "each token's best k by score, the control (tested)",
            Box::new(|| Box::new(TopK)),
        );
        add(
            "equilibrium",
            "the exact maximum of the potential with prices that prove it (tested)",
            Box::new(|| Box::new(Equilibrium::default())),
        );
        add(
            "top_k_capacity",
            "top-k, experts drop their lowest scores beyond the fair share (tested)",
            Box::new(|| Box::new(TopKCapacity { capacity_factor: 1.0, drop: DropBy::Probability })),
        );
        add(
            "top_k_capacity_position",
            "top-k, experts drop the latest tokens beyond the fair share (tested)",
            Box::new(|| Box::new(TopKCapacity { capacity_factor: 1.0, drop: DropBy::Position })),
        );
        add(
            "hash",
            "experts by a hash of the row, whatever the scores (tested)",
            Box::new(|| Box::new(Hash { seed: 0 })),
        );
        add(
            "sinkhorn",
            "top-k of the balanced soft plan at unit temperature (tested)",
            Box::new(|| Box::new(Sinkhorn::default())),
        );
        add(
            "auction",
            "tokens bid for places, within Tk epsilon of the optimum under a quota (tested)",
            Box::new(|| Box::new(Auction::default())),
        );
        add(
            "expert_choice",
            "each expert takes its best fair share of tokens (tested)",
            Box::new(|| Box::new(ExpertChoice { capacity_factor: 1.0 })),
        );
        add(
            "loss_free_bias",
            "bias corrected by the sign of the excess load (tested)",
            Box::new(|| Box::new(LossFreeBias::sign())),
        );
        add(
            "loss_free_bias_proportional",
            "bias corrected in proportion to the excess load (tested)",
            Box::new(|| Box::new(LossFreeBias::proportional())),
        );
        add(
            "cache_prior",
            "top-k with a bonus of 0.05 for experts that worked lately (tested)",
            Box::new(|| Box::new(CachePrior { bonus: 0.05 })),
        );
        add(
            "bip",
            "dual descent on the assignment with inequalities, 4 sweeps (lightly tested)",
            Box::new(|| Box::new(Bip { sweeps: 4 })),
        );
        add(
            "quantile_balancing",
            "each price the quantile that fills its expert, 8 sweeps (tested)",
            Box::new(|| Box::new(QuantileBalancing { sweeps: 8, quantile: Quantile::Exact })),
        );
        add(
            "quantile_balancing_histogram",
            "the same with quantiles from a histogram of 1000 bins (lightly tested)",
            Box::new(|| {
                Box::new(QuantileBalancing {
                    sweeps: 8,
                    quantile: Quantile::Histogram { bins: 1000 },
                })
            }),
        );
        add(
            "best_response",
            "tokens in turn move to their best set until none would (tested)",
            Box::new(|| Box::new(BestResponse::default())),
        );
        add(
            "best_response_batched",
            "all move at once, only if the potential rises (tested)",
            Box::new(|| Box::new(BestResponseBatched::default())),
        );
        add(
            "logit",
            "asynchronous log-linear learning at temperature 0.01 (tested)",
            Box::new(|| Box::new(Logit::default())),
        );
        add(
            "hedge_linear",
            "multiplicative weights with linear updates, average play rounded (lightly tested)",
            Box::new(|| Box::new(Hedge::linear())),
        );
        add(
            "smooth_stale",
            "smooth migration under loads that are 4 rounds old (tested)",
            Box::new(|| Box::new(SmoothStale::default())),
        );
        add(
            "always_switch",
            "all tokens switch at once by loads that are up to 4 rounds old, the control of smooth_stale (tested)",
            Box::new(|| {
                let migration = Migration::Always;
                Box::new(SmoothStale { migration, rounds: 8, ..SmoothStale::default() })
            }),
        );
        add(
            "group_limited",
            "top-k inside the best 4 of 8 groups of experts (tested)",
            Box::new(|| Box::new(GroupLimited::new(Box::new(TopK), 8, 4))),
        );
        add(
            "group_limited_equilibrium",
            "the equilibrium inside the best 4 of 8 groups of experts (lightly tested)",
            Box::new(|| Box::new(GroupLimited::new(Box::new(Equilibrium::default()), 8, 4))),
        );
        add(
            "flock",
            "experts follow their bids and align with 7 neighbours, 30 rounds (experimental)",
            Box::new(|| Box::new(FlockPrices::default())),
        );
        add(
            "flock_excess",
            "the flock by excess loads alone, no bids, the control of flock (experimental)",
            Box::new(|| Box::new(FlockPrices::by_excess())),
        );
        add(
            "flock_late",
            "the flock with messages 4 rounds old and a tenth of them lost, 60 rounds (experimental)",
            Box::new(|| Box::new(FlockPrices::late())),
        );
        add(
            "flock_near",
            "the flock where a token knows its 15 best experts alone (experimental)",
            Box::new(|| Box::new(FlockPrices::near())),
        );
        registry
    }

    /// A new router, or none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Box<dyn Router>> {
        self.maker(name).map(|build| build())
    }
}
