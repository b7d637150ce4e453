//! The matrices of a model, one by one.

use super::super::checkpoint::{Checkpoint, CheckpointError, ExpertWeights};
use super::super::experts::LocalExperts;
use super::super::latent::{Arranged, LatentRows};
use super::super::trunk::{FeedForwardWeights, SwiGlu, Trunk};
use agents::expert::ExpertShape;
use agents::linear::Weights;

/// A matrix of a model, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// A projection of attention.
    Attention(usize, Projection),
    /// A matrix of an expert: layer, expert. A dense network counts as expert 0.
    Expert(usize, usize, ExpertPart),
    /// A matrix of a layer's shared expert.
    Shared(usize, ExpertPart),
    /// Output head.
    Head,
}

/// Projections of attention. Latent attention has the last three, and `Query`, `Out` besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Projection {
    Query,
    Key,
    Value,
    Out,
    QueryDown,
    KeyValueDown,
    KeyValueUp,
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
    /// By layer; empty where nothing but scores selects.
    pub(super) selection_bias: Vec<Vec<f32>>,
    /// By layer, where attention is latent: what the trunk's matrices are made of.
    latents: Vec<LatentRows>,
}

impl Model {
    pub(super) fn load(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let config = &checkpoint.config;
        let trunk = checkpoint.trunk()?;
        let experts = (0..config.layers)
            .map(|layer| match (&trunk.layers[layer].feed_forward, config.moe) {
                (FeedForwardWeights::Dense(dense), _) => Ok(vec![network(dense, config.width)]),
                (FeedForwardWeights::Routed { .. }, moe) => {
                    let experts = moe.map_or(0, |moe| moe.experts);
                    (0..experts).map(|expert| checkpoint.expert(layer, expert)).collect()
                }
            })
            .collect::<Result<_, _>>()?;
        let each = 0..config.layers;
        let latent_rows =
            |latent| each.clone().map(move |layer| checkpoint.latent_rows(latent, layer));
        Ok(Self {
            latents: config.latent.iter().flat_map(latent_rows).collect::<Result<_, _>>()?,
            selection_bias: each
                .clone()
                .map(|layer| checkpoint.selection_bias(layer))
                .collect::<Result<_, _>>()?,
            trunk,
            experts,
        })
    }

    /// The network that every token of a layer passes besides, where there is one, and its gate.
    pub(super) fn shared(&self, layer: usize) -> Option<(ExpertWeights, Option<&Weights>)> {
        let FeedForwardWeights::Routed { shared: Some(shared), .. } =
            &self.trunk.layers[layer].feed_forward
        else {
            return None;
        };
        Some((network(&shared.network, self.trunk.config.width), shared.gate.as_ref()))
    }

    /// Every matrix with its number of inputs, in the order of the forward pass.
    pub(super) fn parts(&self) -> Vec<(Part, usize)> {
        let width = self.trunk.config.width;
        let mut parts = vec![(Part::Embedding, width)];
        for (layer, experts) in self.experts.iter().enumerate() {
            use Projection::{Key, KeyValueDown, KeyValueUp, Out, Query, QueryDown, Value};
            let mut attention = |part, inputs| parts.push((Part::Attention(layer, part), inputs));
            match &self.trunk.config.latent {
                None => [Query, Key, Value].into_iter().for_each(|part| attention(part, width)),
                Some(latent) => {
                    if latent.query_rank.is_some() {
                        attention(QueryDown, width);
                    }
                    attention(KeyValueDown, width);
                    attention(Query, latent.query_rank.unwrap_or(width));
                    attention(KeyValueUp, latent.kv_rank);
                }
            }
            attention(Out, self.attended());
            for (e, expert) in experts.iter().enumerate() {
                let of = |part| Part::Expert(layer, e, part);
                parts.push((of(ExpertPart::Gate), width));
                parts.push((of(ExpertPart::Up), width));
                parts.push((of(ExpertPart::Down), expert.shape.hidden));
            }
            if let Some((shared, _)) = self.shared(layer) {
                parts.push((Part::Shared(layer, ExpertPart::Gate), width));
                parts.push((Part::Shared(layer, ExpertPart::Up), width));
                parts.push((Part::Shared(layer, ExpertPart::Down), shared.shape.hidden));
            }
        }
        if !self.trunk.config.tied_head {
            parts.push((Part::Head, width));
        }
        parts
    }

    /// Inputs of the output projection of attention.
    pub(super) fn attended(&self) -> usize {
        let config = &self.trunk.config;
        config.heads * config.latent.as_ref().map_or(config.head_dim, |latent| latent.value_dim)
    }

    /// The weights of a matrix, `[rows, inputs]`, with its rows in the order of the Hugging Face layout.
    pub(super) fn weights(&self, part: Part) -> Vec<f32> {
        match part {
            Part::Embedding => self.trunk.embedding.clone(),
            Part::Head => self.trunk.head.rows(),
            Part::Attention(layer, projection) => {
                if let Some(rows) = self.latents.get(layer).and_then(|rows| rows.part(projection)) {
                    return rows.clone();
                }
                let layer = &self.trunk.layers[layer];
                match projection {
                    Projection::Query => layer.query.rows(),
                    Projection::Key => layer.key.rows(),
                    Projection::Value => layer.value.rows(),
                    Projection::Out => layer.attention_out.rows(),
                    latent => unreachable!("{latent:?} is one of latent attention alone"),
                }
            }
            Part::Shared(layer, part) => {
                let (shared, _) = self.shared(layer).expect("a part of this model");
                match part {
                    ExpertPart::Gate => shared.gate,
                    ExpertPart::Up => shared.up,
                    ExpertPart::Down => shared.down,
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
        LocalExperts::of(&self.experts, &self.selection_bias, self.trunk.config.moe)
    }

    /// Replaces a matrix.
    pub(super) fn set(&mut self, part: Part, weights: Vec<f32>) {
        let width = self.trunk.config.width;
        let matrix = |inputs| Weights::from_rows(&weights, inputs);
        match part {
            Part::Embedding => {
                if self.trunk.config.tied_head {
                    self.trunk.head = matrix(width);
                }
                self.trunk.embedding = weights;
            }
            Part::Head => self.trunk.head = matrix(width),
            Part::Attention(layer, projection) => self.set_attention(layer, projection, weights),
            Part::Shared(layer, part) => {
                let FeedForwardWeights::Routed { shared: Some(shared), .. } =
                    &mut self.trunk.layers[layer].feed_forward
                else {
                    unreachable!("a part of this model");
                };
                set_network(&mut shared.network, part, &weights, width);
            }
            Part::Expert(layer, expert, part) => {
                let expert = &mut self.experts[layer][expert];
                if let FeedForwardWeights::Dense(network) =
                    &mut self.trunk.layers[layer].feed_forward
                {
                    set_network(network, part, &weights, width);
                }
                match part {
                    ExpertPart::Gate => expert.gate = weights,
                    ExpertPart::Up => expert.up = weights,
                    ExpertPart::Down => expert.down = weights,
                }
            }
        }
    }

    fn set_attention(&mut self, layer: usize, projection: Projection, weights: Vec<f32>) {
        let (attended, config) = (self.attended(), &self.trunk.config);
        let own = &mut self.trunk.layers[layer];
        let width = config.width;
        let latents = self.latents.get_mut(layer).zip(config.latent.as_ref());
        if let (Some((rows, latent)), true) = (latents, projection != Projection::Out) {
            rows.set(projection, weights);
            let Arranged { query, key, value, key_value_down, rotated_key } =
                rows.arranged(latent, width);
            (own.query, own.key, own.value) = (query, key, value);
            let of_layer = own.latent.as_mut().expect("attention is latent");
            (of_layer.key_value_down, of_layer.rotated_key) = (key_value_down, rotated_key);
            if let (Some((down, _)), Some(rows)) = (&mut of_layer.query_down, &rows.query_down) {
                *down = Weights::from_rows(rows, width);
            }
            return;
        }
        match projection {
            Projection::Query => own.query = Weights::from_rows(&weights, width),
            Projection::Key => own.key = Weights::from_rows(&weights, width),
            Projection::Value => own.value = Weights::from_rows(&weights, width),
            Projection::Out => own.attention_out = Weights::from_rows(&weights, attended),
            latent => unreachable!("{latent:?} is one of latent attention alone"),
        }
    }
}

impl LatentRows {
    fn part(&self, projection: Projection) -> Option<&Vec<f32>> {
        match projection {
            Projection::QueryDown => self.query_down.as_ref(),
            Projection::Query => Some(&self.query),
            Projection::KeyValueDown => Some(&self.key_value_down),
            Projection::KeyValueUp => Some(&self.key_value_up),
            Projection::Key | Projection::Value | Projection::Out => None,
        }
    }

    fn set(&mut self, projection: Projection, weights: Vec<f32>) {
        match projection {
            Projection::QueryDown => self.query_down = Some(weights),
            Projection::Query => self.query = weights,
            Projection::KeyValueDown => self.key_value_down = weights,
            Projection::KeyValueUp => self.key_value_up = weights,
            plain => unreachable!("{plain:?} is none of latent attention"),
        }
    }
}

fn network(network: &SwiGlu, width: usize) -> ExpertWeights {
    let (gate, up, down) = (network.gate.rows(), network.up.rows(), network.down.rows());
    let shape = ExpertShape { width, hidden: gate.len() / width };
    ExpertWeights { shape, gate, up, down }
}

fn set_network(network: &mut SwiGlu, part: ExpertPart, weights: &[f32], width: usize) {
    let hidden = weights.len() / width;
    match part {
        ExpertPart::Gate => network.gate = Weights::from_rows(weights, width),
        ExpertPart::Up => network.up = Weights::from_rows(weights, width),
        ExpertPart::Down => network.down = Weights::from_rows(weights, hidden),
    }
}
