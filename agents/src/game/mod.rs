//! The routing game: T tokens each pick k of E experts (MODEL.md section 1).
//!
//! Utility of a token is `Σ_{e∈S} a[t,e] − c_e(n_e)`; the potential is
//! `Φ = Σ a·x − Σ_e Σ_{l≤n_e} c_e(l)`. Every router is a dynamics of this game, and every play can
//! be certified:
//!
//! ```
//! use agents::game::{CostSettings, Game, RouterRegistry, Scores, certify};
//!
//! // Three tokens, two experts: all prefer the first, the second token least.
//! let values = [0.9, 0.1, 0.6, 0.4, 0.8, 0.1];
//! let cost = CostSettings::Quota { capacity_factor: 1.0 }.build(3, 2, 1);
//! let game = Game { scores: Scores::new(&values, 2)?, top_k: 1, cost: cost.as_ref() };
//!
//! let router = RouterRegistry::standard().get("equilibrium").expect("a standard router");
//! let play = router.route(&game, None);
//! assert_eq!(play.choices.loads(2), [2, 1]);
//! let certificate = certify(&game, &play.choices, &play.prices);
//! assert!(certificate.relative_gap < 1e-12 && certificate.epsilon_nash == 0.0);
//! # Ok::<(), agents::game::GameError>(())
//! ```

mod certificate;
mod clearing;
mod columns;
mod cost;
mod cost_registry;
mod demand;
mod equilibrium;
mod information;
mod kernel;
mod lanes;
mod list_kernel;
mod marginal;
mod moves;
mod prices;
mod reference;
mod registry;
mod repair;
pub mod routers;
mod rows;
mod small;
mod social;
mod swaps;
mod tabled;
mod top_k;

pub use certificate::{Certificate, ChoicesError, TokenSets, certify, check_choices};
pub use cost::{CostError, CostSettings, GameShape};
pub use cost_registry::{BuildCost, CostOfGame, CostParameters, CostRegistry};
pub use equilibrium::Equilibrium;
pub use information::{Dynamics, Information};
pub use registry::{BuildRouter, Registries, RouterRegistry};
pub use social::{SocialCost, SocialReport};
pub use top_k::{TopK, select_top};

use crate::ids::ExpertId;
use std::ops::Range;

/// Affinities `a[t,e]`, row-major `[T, E]`, all finite.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    values: &'a [f32],
    experts: usize,
}

/// Why a game cannot be played.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GameError {
    /// The matrix has no rows or no columns, or its length is not a multiple of its columns.
    #[error(
        "the score matrix has {values} values and {experts} columns: it needs at least one whole row"
    )]
    Shape {
        /// Values given.
        values: usize,
        /// Columns given.
        experts: usize,
    },
    /// A score is NaN or infinite.
    #[error("score {value} at row {row}, column {column}: scores must be finite")]
    NotFinite {
        /// Token.
        row: usize,
        /// Expert.
        column: usize,
        /// The value found.
        value: f32,
    },
    /// k is zero or exceeds the number of experts.
    #[error("top_k is {top_k} but there are {experts} experts: choose 1 to {experts}")]
    TopK {
        /// Experts a token asks for.
        top_k: usize,
        /// Experts there are.
        experts: usize,
    },
}

/// Scores tested together.
const FINITE_BLOCK: usize = 256;

impl<'a> Scores<'a> {
    /// Checks shape and values.
    ///
    /// # Errors
    /// An empty or ragged matrix, and the first NaN or infinity with its row and column.
    pub fn new(values: &'a [f32], experts: usize) -> Result<Self, GameError> {
        if experts == 0 || values.is_empty() || !values.len().is_multiple_of(experts) {
            return Err(GameError::Shape { values: values.len(), experts });
        }
        // Whole blocks are tested without a branch for each value.
        let all_finite = |block: &[f32]| block.iter().fold(true, |all, v| all & v.is_finite());
        if values.chunks(FINITE_BLOCK).all(all_finite) {
            return Ok(Self { values, experts });
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Self { values, experts }),
            Some(at) => Err(GameError::NotFinite {
                row: at / experts,
                column: at % experts,
                value: values[at],
            }),
        }
    }

    /// T.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.values.len() / self.experts
    }

    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The affinities of one token.
    #[must_use]
    pub fn row(&self, token: usize) -> &'a [f32] {
        &self.values[token * self.experts..(token + 1) * self.experts]
    }

    /// All rows, in token order.
    #[must_use]
    pub fn values(&self) -> &'a [f32] {
        self.values
    }
}

/// Every token's distinct experts, ascending within a token. Most routers give each token exactly k;
/// one that drops or lets experts choose may give fewer or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// By token.
    experts: Vec<ExpertId>,
    /// Where each token's experts start; one more at the end.
    starts: Vec<usize>,
}

impl Choices {
    /// The same number of experts for every token: `experts` is row-major `[T, k]`.
    ///
    /// # Panics
    /// When there is not a whole number of rows.
    #[must_use]
    pub fn uniform(experts: Vec<ExpertId>, top_k: usize) -> Self {
        assert!(top_k > 0 && experts.len().is_multiple_of(top_k), "whole rows of {top_k}");
        let starts = (0..=experts.len()).step_by(top_k).collect();
        Self { experts, starts }
    }

    /// As many experts as each row has.
    #[must_use]
    pub fn ragged(rows: &[Vec<ExpertId>]) -> Self {
        let mut starts = vec![0];
        starts.extend(rows.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        Self { experts: rows.concat(), starts }
    }

    /// The experts of one token.
    #[must_use]
    pub fn row(&self, token: usize) -> &[ExpertId] {
        &self.experts[self.pairs(token)]
    }

    /// Where a token's experts stand in [`Self::experts`].
    #[must_use]
    pub fn pairs(&self, token: usize) -> Range<usize> {
        self.starts[token]..self.starts[token + 1]
    }

    /// The experts of all tokens, in token order.
    #[must_use]
    pub fn experts(&self) -> &[ExpertId] {
        &self.experts
    }

    /// T.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.starts.len() - 1
    }

    /// n_e for every expert.
    #[must_use]
    pub fn loads(&self, experts: usize) -> Vec<u32> {
        let mut loads = vec![0; experts];
        self.experts.iter().for_each(|expert| loads[expert.index()] += 1);
        loads
    }
}

/// What congestion costs: `c_e(n)`, nondecreasing in the load n.
pub trait CongestionCost: Send + Sync {
    /// `c_e(n)`, the cost a token pays on expert e under load n ≥ 1; infinite where n is barred.
    fn marginal(&self, expert: ExpertId, load: u32) -> f64;

    /// `C_e(n) = Σ_{1≤l≤n} c_e(l)`.
    fn total(&self, expert: ExpertId, load: u32) -> f64;

    /// The convex conjugate `C*_e(p) = max_{0≤n≤T} (p·n − C_e(n))`.
    fn conjugate(&self, expert: ExpertId, price: f64) -> f64;
}

/// One game: scores, k and the congestion cost.
#[derive(Clone, Copy)]
pub struct Game<'a> {
    /// Affinities.
    pub scores: Scores<'a>,
    /// k, with 1 ≤ k ≤ E.
    pub top_k: usize,
    /// Congestion.
    pub cost: &'a dyn CongestionCost,
}

/// What a router returns.
#[derive(Clone, Debug)]
pub struct Play {
    /// The assignment.
    pub choices: Choices,
    /// The prices p_e it ended with, one an expert: the dual point of certificate 2.
    pub prices: Vec<f64>,
    /// Passes over the T × E scores.
    pub passes: u32,
    /// Steps of the router's own kind (price sweeps, moves); its docs say which.
    pub iterations: u32,
}

/// A dynamics of the game. One file each; an own router is about 40 lines.
pub trait Router: Send + Sync {
    /// Plays one game. `warm` holds the prices of an earlier batch of the same layer, if any.
    /// Deterministic: the same arguments give the same bits at any thread count.
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play;
}

/// Tokens a parallel pass takes at a time. Fixed, so that sums and choices do not depend on the
/// number of threads.
const TOKEN_BLOCK: usize = 256;
