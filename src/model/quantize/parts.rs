//! The matrices of a model, one by one.

use super::super::checkpoint::{Checkpoint, CheckpointError, ExpertWeights};
use super::super::experts::LocalExperts;
use super::super::trunk::{FeedForwardWeights, LayerWeights, Trunk};

/// A matrix of a model, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// A projection of attention.
    Attention(usize, Projection),
    /// A matrix of an expert: layer, expert. A dense network counts as expert 0.
    Expert(usize, usize, ExpertPart),
    /// Output head.
    Head,
}

/// Projections of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Projection {
    Query,
    Key,
    Value,
    Out,
}

/// Matrices of a SwiGLU network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ExpertPart {
    Gate,
    Up,
    Down,
}

/// The weights of a model in f32, experts included.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) trunk: Trunk,
    /// By layer and expert; a dense layer has its network as its only one.
    pub(super) experts: Vec<Vec<ExpertWeights>>,
}

impl Model {
    pub(super) fn load(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let config = &checkpoint.config;
        let trunk = checkpoint.trunk()?;
        let experts = (0..config.layers)
            .map(|layer| match (&trunk.layers[layer].feed_forward, config.moe) {
                (FeedForwardWeights::Dense(network), _) => {
                    let (gate, up) = (network.gate.rows(), network.up.rows());
                    let shape = agents::expert::ExpertShape {
                        width: config.width,
                        hidden: gate.len() / config.width,
                    };
                    Ok(vec![ExpertWeights { shape, gate, up, down: network.down.rows() }])
                }
                (FeedForwardWeights::Routed { .. }, moe) => {
                    let experts = moe.map_or(0, |moe| moe.experts);
                    (0..experts).map(|expert| checkpoint.expert(layer, expert)).collect()
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { trunk, experts })
    }

    /// Every matrix with its number of inputs, in the order of the forward pass.
    pub(super) fn parts(&self) -> Vec<(Part, usize)> {
        let width = self.trunk.config.width;
        let mut parts = vec![(Part::Embedding, width)];
        for (layer, experts) in self.experts.iter().enumerate() {
            let attended = self.trunk.config.heads * self.trunk.config.head_dim;
            use Projection::{Key, Out, Query, Value};
            parts.extend([Query, Key, Value].map(|p| (Part::Attention(layer, p), width)));
            parts.push((Part::Attention(layer, Out), attended));
            for (e, expert) in experts.iter().enumerate() {
                let of = |part| Part::Expert(layer, e, part);
                parts.push((of(ExpertPart::Gate), width));
                parts.push((of(ExpertPart::Up), width));
                parts.push((of(ExpertPart::Down), expert.shape.hidden));
            }
        }
        if !self.trunk.config.tied_head {
            parts.push((Part::Head, width));
        }
        parts
    }

    /// The weights of a matrix, `[rows, inputs]`.
    pub(super) fn weights(&self, part: Part) -> Vec<f32> {
        match part {
            Part::Embedding => self.trunk.embedding.clone(),
            Part::Head => self.trunk.head.rows(),
            Part::Attention(layer, projection) => {
                let layer = &self.trunk.layers[layer];
                match projection {
                    Projection::Query => layer.query.rows(),
                    Projection::Key => layer.key.rows(),
                    Projection::Value => layer.value.rows(),
                    Projection::Out => layer.attention_out.rows(),
                }
            }
            Part::Expert(layer, expert, part) => {
                let expert = &self.experts[layer][expert];
                match part {
                    ExpertPart::Gate => expert.gate.clone(),
                    ExpertPart::Up => expert.up.clone(),
                    ExpertPart::Down => expert.down.clone(),
                }
            }
        }
    }

    pub(super) fn local_experts(&self) -> LocalExperts {
        LocalExperts::of(&self.experts, self.trunk.config.moe)
    }

    /// Replaces a matrix.
    pub(super) fn set(&mut self, part: Part, weights: Vec<f32>) {
        let width = self.trunk.config.width;
        let matrix = |inputs| agents::linear::Weights::from_rows(&weights, inputs);
        match part {
            Part::Embedding => {
                if self.trunk.config.tied_head {
                    self.trunk.head = matrix(width);
                }
                self.trunk.embedding = weights;
            }
            Part::Head => self.trunk.head = matrix(width),
            Part::Attention(layer, projection) => {
                let layer = &mut self.trunk.layers[layer];
                let inputs = weights.len() / layer_outputs(layer, projection);
                let matrix = agents::linear::Weights::from_rows(&weights, inputs);
                match projection {
                    Projection::Query => layer.query = matrix,
                    Projection::Key => layer.key = matrix,
                    Projection::Value => layer.value = matrix,
                    Projection::Out => layer.attention_out = matrix,
                }
            }
            Part::Expert(layer, expert, part) => {
                let expert = &mut self.experts[layer][expert];
                if let FeedForwardWeights::Dense(network) =
                    &mut self.trunk.layers[layer].feed_forward
                {
                    let matrix = |inputs| agents::linear::Weights::from_rows(&weights, inputs);
                    match part {
                        ExpertPart::Gate => network.gate = matrix(expert.shape.width),
                        ExpertPart::Up => network.up = matrix(expert.shape.width),
                        ExpertPart::Down => network.down = matrix(expert.shape.hidden),
                    }
                }
                match part {
                    ExpertPart::Gate => expert.gate = weights,
                    ExpertPart::Up => expert.up = weights,
                    ExpertPart::Down => expert.down = weights,
                }
            }
        }
    }
}

fn layer_outputs(layer: &LayerWeights, projection: Projection) -> usize {
    match projection {
        Projection::Query => layer.query.outputs(),
        Projection::Key => layer.key.outputs(),
        Projection::Value => layer.value.outputs(),
        Projection::Out => layer.attention_out.outputs(),
    }
}
