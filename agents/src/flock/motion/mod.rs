//! Flock motion: the router rows of a layer's experts move on the sphere, batch after batch
//! (MODEL.md section 4).
//!
//! A row keeps its length; its direction u turns by a tangent velocity, `u ← (u + v)/‖u + v‖`. What an expert
//! knows is in [`Seen`]. A move after which plain top-k would keep less of the trained router's scores than
//! allowed is undone: that is the guard. Rules are [`RowRule`]s, by name in [`MotionRegistry`].

mod auxiliary;
mod boids;
mod consensus;
mod k_means;
mod memory;
mod random_step;
mod registry;

pub use auxiliary::AuxiliaryLoss;
pub use boids::Boids;
pub use consensus::SphereConsensus;
pub use k_means::KMeans;
pub use memory::{MotionMemory, RuleMemory};
pub use random_step::RandomStep;
pub use registry::{BuildMotion, MotionRegistry};

use crate::game::{Choices, CostSettings, Game, Router as _, Scores, TopK};
use crate::ids::ExpertId;
use crate::linear::Weights;
use crate::routing::Routing;

/// A rule by which rows move. Deterministic: randomness comes from streams of its own.
pub trait RowRule: Send + Sync {
    /// The velocity of each row, `[E, width]`, in radians a batch. The part along the row is taken off, and
    /// what is longer than [`MotionSettings::turn_max`] is cut to it.
    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32>;

    /// What later velocities depend on beside what is seen, the settings and the seed. Nothing, by default.
    fn memory(&self) -> RuleMemory {
        RuleMemory::default()
    }

    /// Goes on from that.
    fn recall(&mut self, _memory: RuleMemory) {}
}

/// What there is to see of a batch. A local rule reads, of each expert, what is its own or its neighbours'.
#[derive(Clone, Copy)]
pub struct Seen<'s> {
    /// Columns of a row.
    pub width: usize,
    /// k.
    pub top_k: usize,
    /// Directions of the rows, `[E, width]`, of length 1.
    pub rows: &'s [f32],
    /// The velocities of the batch before, `[E, width]`.
    pub velocities: &'s [f32],
    /// Who hears whom.
    pub neighbours: &'s [Vec<ExpertId>],
    /// Directions of the hidden states, `[T, width]`, of length 1.
    pub tokens: &'s [f32],
    /// Mean direction of the tokens that an expert serves, `[E, width]`; zero where it serves none.
    pub means: &'s [f32],
    /// What the tokens chose.
    pub choices: &'s Choices,
    /// n_e over the fair share, less 1.
    pub excess: &'s [f64],
    /// Router scores under the rows in force, `[T, E]`.
    pub scores: &'s [f32],
    judge: &'s Judge<'s>,
}

impl Seen<'_> {
    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.excess.len()
    }

    /// The row of an expert in a table `[E, width]`.
    #[must_use]
    pub fn row<'t>(&self, table: &'t [f32], expert: usize) -> &'t [f32] {
        &table[expert * self.width..][..self.width]
    }

    /// What plain top-k makes of this batch under other directions, `[E, width]`. Sees the whole: a local
    /// rule does not ask.
    #[must_use]
    pub fn outcome(&self, rows: &[f32]) -> Outcome {
        self.judge.outcome(rows)
    }
}

/// What plain top-k makes of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Largest load over the mean.
    pub max_over_mean: f64,
    /// Mean of the squared excess loads.
    pub imbalance: f64,
    /// Part of the trained router's top-k scores that its tokens lose by choosing otherwise, 0 to 1.
    pub score_loss: f64,
}

/// Parameters of the motion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MotionSettings {
    /// Nearest experts that an expert minds.
    pub neighbours: usize,
    /// Radians that a row turns in a batch at most.
    pub turn_max: f64,
    /// [`Outcome::score_loss`] above which a move is undone.
    pub score_loss_max: f64,
}

impl Default for MotionSettings {
    /// Seven neighbours, at most 0.02 rad a batch, at most 5 % of the scores.
    fn default() -> Self {
        Self { neighbours: 7, turn_max: 0.02, score_loss_max: 0.05 }
    }
}

/// The rows of one layer in motion.
pub struct LayerMotion {
    settings: MotionSettings,
    routing: Routing,
    top_k: usize,
    width: usize,
    /// Lengths of the trained rows.
    lengths: Vec<f32>,
    /// Directions `[E, width]`.
    rows: Vec<f32>,
    velocities: Vec<f32>,
    neighbours: Vec<Vec<ExpertId>>,
    weights: Weights,
    trained: Weights,
    rule: Box<dyn RowRule>,
    moves: u64,
    undone: u64,
}

impl LayerMotion {
    /// Begins at the trained `router`, `[E, width]`.
    ///
    /// # Panics
    /// When `router` has no whole rows.
    #[must_use]
    pub fn new(
        router: &[f32],
        width: usize,
        (routing, top_k): (Routing, usize),
        settings: MotionSettings,
        rule: Box<dyn RowRule>,
    ) -> Self {
        let trained = Weights::from_rows(router, width);
        let experts = router.len() / width;
        let mut rows = router.to_vec();
        let lengths: Vec<f32> = rows.chunks_exact_mut(width).map(normalise).collect();
        let neighbours = super::neighbours::nearest(router, experts, settings.neighbours);
        let velocities = vec![0.0; rows.len()];
        let weights = trained.clone();
        let (moves, undone) = (0, 0);
        Self {
            settings,
            routing,
            top_k,
            width,
            lengths,
            rows,
            velocities,
            neighbours,
            weights,
            trained,
            rule,
            moves,
            undone,
        }
    }

    /// Router logits `[T, E]` of hidden states `[T, width]` under the rows in force.
    #[must_use]
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        self.weights.product(hidden)
    }

    /// Rows in force, `[E, width]`.
    #[must_use]
    pub fn router(&self) -> Vec<f32> {
        self.weights.rows()
    }

    /// Batches after which rows have moved, and those after which the guard put them back.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.moves, self.undone)
    }

    /// Angle between each row and the trained one, in radians.
    #[must_use]
    pub fn turned(&self) -> Vec<f64> {
        let (now, trained) = (self.weights.rows(), self.trained.rows());
        let pairs = now.chunks_exact(self.width).zip(trained.chunks_exact(self.width));
        pairs
            .map(|(a, b)| {
                let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE);
                cosine.clamp(-1.0, 1.0).acos()
            })
            .collect()
    }

    /// Moves all rows by what was seen of a batch: hidden states `[T, width]`, the logits of
    /// [`Self::logits`], and what the tokens chose. Without tokens nothing moves.
    ///
    /// # Panics
    /// When the tables do not fit the layer.
    pub fn observe(&mut self, hidden: &[f32], logits: &[f32], choices: &Choices) {
        let (width, experts) = (self.width, self.lengths.len());
        let tokens = hidden.len() / width;
        assert_eq!((logits.len(), choices.tokens()), (tokens * experts, tokens), "one batch");
        if tokens == 0 {
            return;
        }
        let mut directions = hidden.to_vec();
        directions.chunks_exact_mut(width).for_each(|row| {
            normalise(row);
        });
        let means = mean_directions(&directions, choices, experts, width);
        let fair_share = choices.experts().len() as f64 / experts as f64;
        let loads = choices.loads(experts);
        let excess: Vec<f64> = loads.iter().map(|n| f64::from(*n) / fair_share - 1.0).collect();
        let mut scores = logits.to_vec();
        self.routing.score(&mut scores, experts);
        let mut trained_scores = self.trained.product(hidden);
        self.routing.score(&mut trained_scores, experts);
        let judge = Judge::new(hidden, &trained_scores, &self.lengths, width, self.top_k);
        let seen = Seen {
            width,
            top_k: self.top_k,
            rows: &self.rows,
            velocities: &self.velocities,
            neighbours: &self.neighbours,
            tokens: &directions,
            means: &means,
            choices,
            excess: &excess,
            scores: &scores,
            judge: &judge,
        };
        let mut velocities = self.rule.velocities(&seen);
        assert_eq!(velocities.len(), self.rows.len(), "a velocity a row");
        let moved = turned(&self.rows, &mut velocities, width, self.settings.turn_max);
        self.moves += 1;
        if judge.outcome(&moved).score_loss > self.settings.score_loss_max {
            self.undone += 1;
            self.velocities.fill(0.0);
            return;
        }
        self.weights = Weights::from_rows(&scaled(&moved, &self.lengths, width), width);
        (self.rows, self.velocities) = (moved, velocities);
    }
}

/// `(u + v)/‖u + v‖` for the tangent part of v, cut to `turn_max`; `velocities` become these.
fn turned(rows: &[f32], velocities: &mut [f32], width: usize, turn_max: f64) -> Vec<f32> {
    let mut moved = rows.to_vec();
    for (row, velocity) in moved.chunks_exact_mut(width).zip(velocities.chunks_exact_mut(width)) {
        let along = dot(row, velocity);
        velocity
            .iter_mut()
            .zip(row.iter())
            .for_each(|(v, u)| *v = narrow(f64::from(*v) - along * f64::from(*u)));
        let length = dot(velocity, velocity).sqrt();
        let cut = if length > turn_max { turn_max / length } else { 1.0 };
        velocity.iter_mut().for_each(|v| *v = narrow(f64::from(*v) * cut));
        row.iter_mut().zip(velocity.iter()).for_each(|(u, v)| *u += v);
        normalise(row);
    }
    moved
}

/// Mean direction of the tokens of each expert, zero where it has none.
fn mean_directions(
    directions: &[f32],
    choices: &Choices,
    experts: usize,
    width: usize,
) -> Vec<f32> {
    let mut sums = vec![0.0_f64; experts * width];
    for (token, direction) in directions.chunks_exact(width).enumerate() {
        for expert in choices.row(token) {
            let sum = &mut sums[expert.index() * width..][..width];
            sum.iter_mut().zip(direction).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    let loads = choices.loads(experts);
    let rows = sums.chunks_exact(width).zip(loads);
    rows.flat_map(|(row, load)| row.iter().map(move |sum| narrow(sum / f64::from(load.max(1)))))
        .collect()
}

/// What a batch would come to under other rows.
struct Judge<'b> {
    hidden: &'b [f32],
    trained_scores: &'b [f32],
    lengths: &'b [f32],
    width: usize,
    top_k: usize,
    /// The trained router's own top-k scores, summed.
    most: f64,
}

impl<'b> Judge<'b> {
    fn new(
        hidden: &'b [f32],
        trained_scores: &'b [f32],
        lengths: &'b [f32],
        width: usize,
        top_k: usize,
    ) -> Self {
        let mut judge = Self { hidden, trained_scores, lengths, width, top_k, most: 0.0 };
        judge.most = judge.kept(&judge.top(trained_scores));
        judge
    }

    fn outcome(&self, rows: &[f32]) -> Outcome {
        let logits = Weights::from_rows(&scaled(rows, self.lengths, self.width), self.width)
            .product(self.hidden);
        let choices = self.top(&logits);
        let experts = self.lengths.len();
        let fair_share = choices.experts().len() as f64 / experts as f64;
        let over: Vec<f64> =
            choices.loads(experts).into_iter().map(|n| f64::from(n) / fair_share).collect();
        Outcome {
            max_over_mean: over.iter().copied().fold(0.0, f64::max),
            imbalance: over.iter().map(|x| (x - 1.0).powi(2)).sum::<f64>() / experts as f64,
            score_loss: 1.0 - self.kept(&choices) / self.most,
        }
    }

    /// Plain top-k: order is all that counts, so logits do as well as scores.
    fn top(&self, values: &[f32]) -> Choices {
        let experts = self.lengths.len();
        let scores = Scores::new(values, experts).expect("finite rows times finite states");
        let cost = CostSettings::Quota { capacity_factor: experts as f64 };
        let cost = cost.build(scores.tokens(), experts, self.top_k);
        TopK.route(&Game { scores, top_k: self.top_k, cost: cost.as_ref() }, None).choices
    }

    fn kept(&self, choices: &Choices) -> f64 {
        let rows = self.trained_scores.chunks_exact(self.lengths.len()).enumerate();
        rows.map(|(token, row)| {
            choices.row(token).iter().map(|expert| f64::from(row[expert.index()])).sum::<f64>()
        })
        .sum()
    }
}

fn scaled(rows: &[f32], lengths: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width)
        .zip(lengths)
        .flat_map(|(row, length)| row.iter().map(move |x| x * length))
        .collect()
}

/// Makes a row of length 1 and gives its length before; a zero row stays.
fn normalise(row: &mut [f32]) -> f32 {
    let length = dot(row, row).sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|x| *x = narrow(f64::from(*x) / length));
    }
    narrow(length)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `to += by · x`.
fn add(to: &mut [f32], by: f64, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to = narrow(f64::from(*to) + by * f64::from(*x)));
}

#[expect(clippy::cast_possible_truncation, reason = "rows are held in f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}
