//! A trained checkpoint that goes on writing: requests are prompts, answers are decoded greedily.

use super::checkpoint::{CheckpointSource, SourceError};
use super::{LayerInput, ScoreSource, SourceShape};
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use crate::model::context::SequenceCache;
use crate::model::trunk::{Pass, Trunk};
use agents::continuous::{RequestLength, StepPart};
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, RequestId};
use agents::transformer::{Rotary, argmax};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A source whose batches are steps of continuous batching. For each step the calls are `begin_step`,
/// then `perceive` and `absorb` for each layer in order, then `end_step`.
pub trait Generate: ScoreSource {
    /// Takes up a step: one row a position, in the order of the parts.
    ///
    /// # Panics
    /// When a part does not go on where its request's last one ended.
    fn begin_step(&mut self, parts: &[StepPart]);

    /// Ends the step: the next token of each part that emits one, in order. What is held for requests
    /// that end is dropped.
    fn end_step(&mut self) -> Vec<u32>;

    /// What is held of the requests that have begun and not ended, between two steps.
    fn sequences(&self) -> &Sequences;

    /// Holds this instead, before the next step.
    fn recall(&mut self, sequences: Sequences);

    /// Bytes of keys and values that are held.
    fn cache_bytes(&self) -> usize;
}

/// A checkpoint that continues texts. The prompt of request i starts `i · tokens_per_request` tokens into
/// the text, from its start again at its end. The likeliest token follows, the lowest id among equals; an
/// answer has the length that it was given, whatever it says.
pub struct GeneratingSource<'a> {
    /// What a request does not change: routers, experts, shape.
    model: CheckpointSource<'a>,
    trunk: &'a Trunk,
    ids: &'a [u32],
    lengths: &'a [RequestLength],
    rotary: Arc<Rotary>,
    sequences: Sequences,
    step: Option<(Pass<'a>, Vec<StepPart>)>,
}

/// Requests that have begun and not ended.
pub type Sequences = BTreeMap<RequestId, Sequence>;

/// What is held of a request that has begun: keys, values and the tokens of its answer so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// None while a step holds it.
    cache: Option<SequenceCache>,
    generated: Vec<u32>,
}

impl<'a> GeneratingSource<'a> {
    /// Requests of these lengths, each of at most `context` tokens, over the text of `model`.
    ///
    /// # Errors
    /// When the text is not longer than the longest prompt.
    ///
    /// # Panics
    /// When a request is longer than `context`, or `context` exceeds the model's positions.
    pub fn new(
        model: CheckpointSource<'a>,
        trunk: &'a Trunk,
        ids: &'a [u32],
        (lengths, context): (&'a [RequestLength], usize),
    ) -> Result<Self, SourceError> {
        assert!(context <= trunk.config.max_positions, "the context is the model's");
        assert!(lengths.iter().all(|l| l.total() as usize <= context), "cut to the context");
        let longest = lengths.iter().map(|length| length.prompt as usize).max().unwrap_or(0);
        if ids.len() <= longest {
            return Err(SourceError::ShortPrompts { tokens: ids.len(), longest });
        }
        let rotary = Arc::new(trunk.rotary(context));
        let sequences = Sequences::new();
        Ok(Self { model, trunk, ids, lengths, rotary, sequences, step: None })
    }

    /// The token at a position of a request: of its prompt, or generated before.
    fn token(&self, request: RequestId, position: u32) -> u32 {
        let RequestLength { prompt, .. } = self.lengths[request.index()];
        match position.checked_sub(prompt) {
            None => {
                let starts = self.ids.len() - prompt as usize;
                let stride = self.model.shape().tokens_per_request;
                self.ids[request.index() * stride % starts + position as usize]
            }
            Some(generated) => self.sequences[&request].generated[generated as usize],
        }
    }

    fn pass(&mut self) -> &mut Pass<'a> {
        &mut self.step.as_mut().expect("begin_step comes first").0
    }
}

impl ScoreSource for GeneratingSource<'_> {
    fn shape(&self) -> SourceShape {
        self.model.shape()
    }

    fn router_rows(&self, layer: LayerId) -> Vec<f32> {
        self.model.router_rows(layer)
    }

    fn selection_bias(&self, layer: LayerId) -> Vec<f32> {
        self.model.selection_bias(layer)
    }

    fn expert(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights, CheckpointError> {
        self.model.expert(layer, expert)
    }

    fn stored_expert(&self, layer: LayerId, expert: ExpertId) -> Result<Expert, CheckpointError> {
        self.model.stored_expert(layer, expert)
    }

    fn begin(&mut self, _: &[RequestId]) {
        unreachable!("requests of this source come step by step");
    }

    fn perceive(&mut self, layer: LayerId) -> LayerInput {
        let layer = self.model.routed_layer(layer);
        let pass = self.pass();
        pass.run_dense(layer);
        pass.up_to_router(layer).expect("the game is played on routed layers");
        let (hidden, logits) = pass.take_input();
        LayerInput { hidden, logits }
    }

    fn absorb(&mut self, layer: LayerId, output: &[f32]) {
        let layer = self.model.routed_layer(layer);
        self.pass().add_moe(layer, output);
    }

    fn finish(&mut self) -> Option<Vec<f64>> {
        None
    }
}

impl Generate for GeneratingSource<'_> {
    fn begin_step(&mut self, parts: &[StepPart]) {
        let (mut caches, mut rows, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            ids.extend(part.positions.clone().map(|position| self.token(part.request, position)));
            rows.push(part.positions.len());
            let sequence = self.sequences.entry(part.request).or_default();
            let cache = sequence.cache.take().unwrap_or_else(|| self.trunk.empty_cache());
            assert_eq!(cache.positions(), part.positions.start as usize, "no position is left out");
            caches.push(cache);
        }
        let pass = self
            .trunk
            .begin_next(&ids, &self.rotary, caches, &rows)
            .expect("ids and lengths were checked when the source was made");
        self.step = Some((pass, parts.to_vec()));
    }

    fn end_step(&mut self) -> Vec<u32> {
        let (mut pass, parts) = self.step.take().expect("begin_step comes first");
        pass.run_dense(self.trunk.layers.len());
        let mut end = 0;
        let mut emitting = Vec::new();
        for part in &parts {
            end += part.positions.len();
            if part.emits {
                emitting.push(end - 1);
            }
        }
        let logits = pass.logits_of(&emitting);
        let tokens: Vec<u32> = logits
            .chunks_exact(self.trunk.config.vocab)
            .map(|row| u32::try_from(argmax(row)).expect("token ids have 32 bits"))
            .collect();
        let mut next = tokens.iter();
        for (part, cache) in parts.iter().zip(pass.into_caches()) {
            let token = part.emits.then(|| *next.next().expect("one token a part that emits"));
            if part.ends {
                self.sequences.remove(&part.request);
            } else {
                let sequence = self.sequences.get_mut(&part.request).expect("it has begun");
                sequence.cache = Some(cache);
                sequence.generated.extend(token);
            }
        }
        tokens
    }

    fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    fn recall(&mut self, sequences: Sequences) {
        self.sequences = sequences;
    }

    fn cache_bytes(&self) -> usize {
        self.sequences.values().filter_map(|s| s.cache.as_ref()).map(SequenceCache::bytes).sum()
    }
}
