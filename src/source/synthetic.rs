//! Seeded synthetic scores: any T, E, k and skew, without a checkpoint.
//!
//! A token's hidden state is drawn from N(0, I), a router row from N(0, I/width), so logits are
//! N(0, 1) and experts whose rows point the same way compete for the same tokens. `skew` adds
//! `skew · N(0, 1)` to the logits of each expert once and for all. Experts are real networks with
//! seeded weights; a layer's output is added to the hidden state, which is scaled back to unit
//! mean square.

use super::{LayerInput, ScoreSource, SourceShape};
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use agents::expert::ExpertShape;
use agents::ids::{ExpertId, LayerId, RequestId};
use agents::linear::Weights;
use agents::rng::stream;
use rand::RngExt as _;
use rand_distr::StandardNormal;
use rayon::prelude::*;

/// Sizes and skew of a synthetic source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyntheticSettings {
    /// Sizes; `routing` is free to choose.
    pub shape: SourceShape,
    /// Rows of an expert's gate and up projections.
    pub expert_hidden: usize,
    /// Standard deviation of the experts' bias, in logits.
    pub skew: f64,
    /// Seed of all its draws.
    pub seed: u64,
}

/// A [`ScoreSource`] made of seeded normal draws.
pub struct SyntheticSource {
    settings: SyntheticSettings,
    /// Names the stream that requests are drawn from.
    requests: &'static str,
    /// By layer: router `[E, width]` and bias `[E]`.
    routers: Vec<(Weights, Vec<f32>)>,
    hidden: Vec<f32>,
}

impl SyntheticSource {
    /// Draws the routers; tokens and experts are drawn when they are asked for.
    #[must_use]
    pub fn new(settings: SyntheticSettings) -> Self {
        Self::with_requests(settings, "request")
    }

    /// The same routers and experts with requests of their own, to calibrate on.
    #[must_use]
    pub fn calibration(settings: SyntheticSettings) -> Self {
        Self::with_requests(settings, "calibration request")
    }

    fn with_requests(settings: SyntheticSettings, requests: &'static str) -> Self {
        let SourceShape { layers, experts, width, .. } = settings.shape;
        let routers = (0..layers)
            .map(|layer| {
                let name = format!("synthetic router {layer}");
                let rows = normal(settings.seed, &name, experts * width, 1.0 / root(width));
                let name = format!("synthetic skew {layer}");
                let bias = normal(settings.seed, &name, experts, settings.skew);
                (Weights::from_rows(&rows, width), bias)
            })
            .collect();
        Self { settings, requests, routers, hidden: Vec::new() }
    }
}

impl ScoreSource for SyntheticSource {
    fn shape(&self) -> SourceShape {
        self.settings.shape
    }

    fn router_rows(&self, layer: LayerId) -> Vec<f32> {
        self.routers[layer.index()].0.rows()
    }

    fn expert(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights, CheckpointError> {
        let shape =
            ExpertShape { width: self.settings.shape.width, hidden: self.settings.expert_hidden };
        let matrix = |part: &str, inputs: usize| {
            let name = format!("synthetic expert {layer} {expert} {part}");
            normal(self.settings.seed, &name, shape.width * shape.hidden, 1.0 / root(inputs))
        };
        Ok(ExpertWeights {
            shape,
            gate: matrix("gate", shape.width),
            up: matrix("up", shape.width),
            down: matrix("down", shape.hidden),
        })
    }

    fn begin(&mut self, requests: &[RequestId]) {
        let SourceShape { width, tokens_per_request, .. } = self.settings.shape;
        let (seed, stream_name) = (self.settings.seed, self.requests);
        let rows: Vec<Vec<f32>> = requests
            .par_iter()
            .map(|request| {
                let name = format!("synthetic {stream_name} {request}");
                normal(seed, &name, tokens_per_request * width, 1.0)
            })
            .collect();
        self.hidden = rows.concat();
    }

    fn perceive(&mut self, layer: LayerId) -> LayerInput {
        let experts = self.settings.shape.experts;
        let (router, bias) = &self.routers[layer.index()];
        let mut logits = router.product(&self.hidden);
        logits
            .par_chunks_mut(experts)
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias));
        LayerInput { hidden: self.hidden.clone(), logits }
    }

    fn absorb(&mut self, _: LayerId, output: &[f32]) {
        let width = self.settings.shape.width;
        assert_eq!(output.len(), self.hidden.len(), "one output row a token");
        self.hidden.par_chunks_mut(width).zip(output.par_chunks(width)).for_each(
            |(row, output)| {
                row.iter_mut().zip(output).for_each(|(x, y)| *x += y);
                let mean_square = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
                let scale = 1.0 / mean_square.max(f32::MIN_POSITIVE).sqrt();
                row.iter_mut().for_each(|x| *x *= scale);
            },
        );
    }

    fn finish(&mut self) -> Option<Vec<f64>> {
        None
    }
}

fn root(n: usize) -> f64 {
    (n as f64).sqrt()
}

#[expect(clippy::cast_possible_truncation, reason = "draws are stored at the precision of weights")]
fn normal(seed: u64, name: &str, len: usize, deviation: f64) -> Vec<f32> {
    let mut rng = stream(seed, name);
    (0..len).map(|_| (rng.sample::<f64, _>(StandardNormal) * deviation) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::{SyntheticSettings, SyntheticSource};
    use crate::source::{ScoreSource as _, SourceShape};
    use agents::ids::{LayerId, RequestId};
    use agents::routing::Routing;

    fn source(skew: f64) -> SyntheticSource {
        SyntheticSource::new(SyntheticSettings {
            shape: SourceShape {
                layers: 1,
                experts: 16,
                width: 64,
                top_k: 2,
                routing: Routing::softmax(false),
                tokens_per_request: 500,
            },
            expert_hidden: 8,
            skew,
            seed: 3,
        })
    }

    #[test]
    fn logits_have_unit_variance_and_skew_favours_some_experts() {
        let columns = |skew| {
            let mut source = source(skew);
            source.begin(&[RequestId(0), RequestId(1)]);
            let logits = source.perceive(LayerId(0)).logits;
            let mean = |e: usize| logits.iter().skip(e).step_by(16).sum::<f32>() / 1000.0;
            let means: Vec<f32> = (0..16).map(mean).collect();
            let square = logits.iter().map(|z| z * z).sum::<f32>() / logits.len() as f32;
            (square, means.iter().map(|m| m * m).sum::<f32>() / 16.0)
        };
        let (plain_square, plain_bias) = columns(0.0);
        assert!((plain_square - 1.0).abs() < 0.25, "{plain_square}");
        assert!(plain_bias < 0.01, "{plain_bias}");
        assert!(columns(1.0).1 > 0.2);
    }

    #[test]
    fn a_request_draws_the_same_tokens_in_any_batch() {
        let (mut a, mut b) = (source(0.5), source(0.5));
        a.begin(&[RequestId(4), RequestId(9)]);
        b.begin(&[RequestId(9)]);
        let (a, b) = (a.perceive(LayerId(0)), b.perceive(LayerId(0)));
        assert_eq!(a.hidden[500 * 64..], b.hidden);
        assert_eq!(a.logits[500 * 16..], b.logits);
    }
}
