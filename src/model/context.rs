//! What the rows of a pass attend to: their own windows, or what earlier passes have left of their
//! sequences.

use agents::cached_attention::{KeyValues, cached_attention};
use agents::transformer::{AttentionShape, Rotary, causal_attention};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Keys and values of one sequence, by layer of the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SequenceCache(Vec<KeyValues>);

impl SequenceCache {
    /// Positions that have passed all layers.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.0.last().map_or(0, KeyValues::positions)
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(KeyValues::bytes).sum()
    }

    pub(super) fn of_layers(layers: usize) -> Self {
        Self(vec![KeyValues::default(); layers])
    }
}

/// What rows attend to.
#[derive(Debug)]
pub(super) enum Context {
    /// Windows of one length, each with a context of its own.
    Windows { rotary: Rotary, window: usize },
    /// The next positions of sequences.
    Sequences {
        rotary: Arc<Rotary>,
        /// Of each row.
        positions: Vec<usize>,
        /// Of each sequence.
        rows: Vec<usize>,
        caches: Vec<SequenceCache>,
    },
}

impl Context {
    /// The next `rows` positions of each sequence.
    pub(super) fn sequences(
        rotary: Arc<Rotary>,
        caches: Vec<SequenceCache>,
        rows: &[usize],
    ) -> Self {
        let next =
            |(cache, rows): (&SequenceCache, &usize)| cache.positions()..cache.positions() + rows;
        let positions = caches.iter().zip(rows).flat_map(next).collect();
        Self::Sequences { rotary, positions, rows: rows.to_vec(), caches }
    }

    /// Rotates every head of every row by the row's position.
    pub(super) fn rotate(&self, rows: &mut [f32], heads: usize) {
        match self {
            Self::Windows { rotary, .. } => rotary.rotate(rows, heads),
            Self::Sequences { rotary, positions, .. } => rotary.rotate_at(rows, heads, positions),
        }
    }

    /// Attention of one layer; the rows of sequences join their keys and values.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        (q, k, v): (&[f32], &[f32], &[f32]),
        (heads, kv_heads, head_dim): (usize, usize, usize),
    ) -> Vec<f32> {
        let shape = |window| AttentionShape { window, heads, kv_heads, head_dim };
        match self {
            Self::Windows { window, .. } => causal_attention(q, k, v, shape(*window)),
            Self::Sequences { rows, caches, .. } => {
                let mut of_layer: Vec<&mut KeyValues> =
                    caches.iter_mut().map(|cache| &mut cache.0[layer]).collect();
                cached_attention((q, k, v), rows, &mut of_layer, shape(1))
            }
        }
    }
}
