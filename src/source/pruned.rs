//! A source whose pruned experts are gone, with their router rows: the game is played over the rest.

use super::{Generate, LayerInput, ScoreSource, Sequences, SourceShape};
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use agents::continuous::StepPart;
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, RequestId};

/// The experts that each layer keeps, ascending, equally many in every layer. An expert's place in
/// its layer's list is its id in the reduced game.
pub type KeptExperts = Vec<Vec<ExpertId>>;

/// Another source over the experts that are kept. Columns of pruned experts are taken out of the
/// logits, which is a logit of −∞: the softmax, the gates and every certificate are those of the
/// reduced game.
pub struct PrunedSource<'a, S: ScoreSource + ?Sized> {
    whole: Box<S>,
    kept: &'a KeptExperts,
}

impl<'a, S: ScoreSource + ?Sized> PrunedSource<'a, S> {
    /// The source without the experts that are not kept.
    ///
    /// # Panics
    /// When `kept` has not one list a layer, or the lists differ in length.
    #[must_use]
    pub fn new(whole: Box<S>, kept: &'a KeptExperts) -> Self {
        assert_eq!(whole.shape().layers, kept.len(), "one list a layer");
        assert!(kept.iter().all(|layer| layer.len() == kept[0].len()), "equally many a layer");
        Self { whole, kept }
    }

    /// The kept entries of rows that have `each` values an expert.
    fn taken(&self, layer: LayerId, values: &[f32], each: usize) -> Vec<f32> {
        let experts = self.whole.shape().experts;
        let kept = &self.kept[layer.index()];
        let rows = values.chunks_exact(experts * each);
        rows.flat_map(|row| {
            kept.iter().flat_map(move |expert| {
                let start = expert.index() * each;
                row[start..start + each].iter().copied()
            })
        })
        .collect()
    }
}

impl<S: ScoreSource + ?Sized> ScoreSource for PrunedSource<'_, S> {
    fn shape(&self) -> SourceShape {
        let whole = self.whole.shape();
        SourceShape { experts: self.kept.first().map_or(whole.experts, Vec::len), ..whole }
    }

    fn router_rows(&self, layer: LayerId) -> Vec<f32> {
        let width = self.whole.shape().width;
        self.taken(layer, &self.whole.router_rows(layer), width)
    }

    fn selection_bias(&self, layer: LayerId) -> Vec<f32> {
        self.taken(layer, &self.whole.selection_bias(layer), 1)
    }

    fn expert(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights, CheckpointError> {
        self.whole.expert(layer, self.kept[layer.index()][expert.index()])
    }

    fn stored_expert(&self, layer: LayerId, expert: ExpertId) -> Result<Expert, CheckpointError> {
        self.whole.stored_expert(layer, self.kept[layer.index()][expert.index()])
    }

    fn begin(&mut self, requests: &[RequestId]) {
        self.whole.begin(requests);
    }

    fn perceive(&mut self, layer: LayerId) -> LayerInput {
        let LayerInput { hidden, logits } = self.whole.perceive(layer);
        LayerInput { hidden, logits: self.taken(layer, &logits, 1) }
    }

    fn absorb(&mut self, layer: LayerId, output: &[f32]) {
        self.whole.absorb(layer, output);
    }

    fn finish(&mut self) -> Option<Vec<f64>> {
        self.whole.finish()
    }
}

impl<S: Generate + ?Sized> Generate for PrunedSource<'_, S> {
    fn begin_step(&mut self, parts: &[StepPart]) {
        self.whole.begin_step(parts);
    }

    fn end_step(&mut self) -> Vec<u32> {
        self.whole.end_step()
    }

    fn sequences(&self) -> &Sequences {
        self.whole.sequences()
    }

    fn recall(&mut self, sequences: Sequences) {
        self.whole.recall(sequences);
    }

    fn cache_bytes(&self) -> usize {
        self.whole.cache_bytes()
    }
}
