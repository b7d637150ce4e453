//! What a scenario names, loaded: checkpoint and texts, or the settings of a synthetic source.

use super::shared::{Part, Resident, Sharing};
use crate::model::checkpoint::{Checkpoint, CheckpointError, checkpoint_files};
use crate::model::quantize::{ExpertCosts, QuantizeError, expert_costs};
use crate::model::tokenizer::{TextError, Tokenizer, read_text};
use crate::model::trunk::Trunk;
use crate::scenario::file::{Generation, Lengths, PlacementRule, Precision, Source};
use crate::scenario::{Scenario, migration_problem, slots_problem};
use crate::source::{
    CheckpointSource, Generate, GeneratingSource, KeptExperts, PrunedSource, ScoreSource,
    SourceError, SourceShape, SyntheticSettings, SyntheticSource,
};
use agents::continuous::RequestLength;
use agents::game::{CostError, CostRegistry, GameShape};
use agents::ids::ExpertId;
use agents::quantize::Format;
use agents::routing::Routing;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Loaded inputs; sources borrow from it.
pub(super) enum Materials {
    /// A trained model and its texts.
    Checkpoint(ModelAndTexts),
    /// Seeded draws.
    Synthetic(SyntheticSettings),
}

/// A trained model and its texts as token ids, cut to requests.
pub(super) struct ModelAndTexts {
    loaded: Arc<Loaded>,
    tokens_per_request: usize,
}

/// A trained model and its texts, as they were read.
struct Loaded {
    checkpoint: Checkpoint,
    trunk: Trunk,
    /// All texts, joined.
    ids: Vec<u32>,
    /// The first `calibration_tokens` of the calibration text and the one after; none without it.
    calibration_ids: Option<Vec<u32>>,
}

impl Resident for Loaded {
    /// Without the mapped files, whose pages are the system's.
    fn bytes(&self) -> u64 {
        let config = &self.checkpoint.config;
        let routed = config.moe.map_or(0, |moe| {
            config.routed_layers.len() * moe.experts * 3 * config.width * moe.hidden
        });
        let tied = if config.tied_head { config.vocab * config.width } else { 0 };
        let trunk = (self.checkpoint.weights_count() + tied as u64).saturating_sub(routed as u64);
        let ids = self.ids.len() + self.calibration_ids.as_ref().map_or(0, Vec::len);
        size_of::<f32>() as u64 * trunk + (size_of::<u32>() * ids) as u64
    }
}

/// A source and the number of its requests.
pub(super) type CalibrationSource<'a> = (Box<dyn ScoreSource + 'a>, usize);

/// Why a scenario's inputs cannot be used. All of these are found before anything starts.
#[derive(Debug, thiserror::Error)]
pub enum MaterialsError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Checkpoint and text together.
    #[error("{what}: {source}")]
    Source {
        /// The scenario key.
        what: &'static str,
        /// What does not fit.
        source: SourceError,
    },
    /// k exceeds the model's experts.
    #[error("game.top_k is {top_k} but the checkpoint has {experts} experts a layer: lower it")]
    TopK {
        /// k.
        top_k: usize,
        /// E.
        experts: usize,
    },
    /// Pruning leaves too few experts.
    #[error(
        "{key} is {asked} but precision.prune {share} leaves {kept} of the checkpoint's {experts} \
         experts a layer: lower {key}, or prune less"
    )]
    Pruned {
        /// The scenario key.
        key: &'static str,
        /// What it asks for.
        asked: usize,
        /// The share.
        share: f64,
        /// What it leaves.
        kept: usize,
        /// E.
        experts: usize,
    },
    /// Experts are pruned from a model whose router limits groups of them.
    #[error(
        "precision.prune is {0} but the checkpoint's router picks groups of experts, which would no \
         longer be of one size: set precision.prune = 0"
    )]
    PrunedGroups(f64),
    /// The congestion cost does not fit the model's experts or the largest batch.
    #[error("game.cost: {0}")]
    Cost(#[from] CostError),
    /// The flock asks for more neighbours than an expert has.
    #[error(
        "flock.neighbours is {neighbours} but the checkpoint has {experts} experts a layer, so at \
         most experts - 1 neighbours: lower it, or set flock.enabled = false"
    )]
    Neighbours {
        /// Asked for.
        neighbours: usize,
        /// E.
        experts: usize,
    },
    /// The copies that are asked for cannot be placed.
    #[error("{message}: {help}")]
    ReplicaSlots {
        /// What does not fit.
        message: String,
        /// What to do.
        help: String,
    },
}

/// Files that a scenario's inputs are read from: checkpoint and tokenizer, texts and trace.
pub(super) fn files_of(scenario: &Scenario) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Source::Checkpoint { checkpoint, text } = &scenario.source {
        files.extend(checkpoint_files(checkpoint));
        files.extend(text.iter().cloned());
    }
    files.extend(scenario.precision.calibration_text.clone());
    files.extend(scenario.load.trace.clone());
    files
}

impl Materials {
    /// Loads what the scenario names and checks that it fits together.
    ///
    /// # Errors
    /// The first input that cannot be used.
    pub(super) async fn load(
        sharing: Sharing<'_>,
        costs: &CostRegistry,
    ) -> Result<Self, MaterialsError> {
        let scenario = sharing.scenario;
        let tokens_per_request = scenario.load.tokens_per_request as usize;
        let materials = match &scenario.source {
            Source::Checkpoint { checkpoint, text } => {
                let load = async || Loaded::of(checkpoint, text, &scenario.precision);
                let loaded = sharing.get(Part::Model, &(), load).await?;
                Self::Checkpoint(ModelAndTexts { loaded, tokens_per_request })
            }
            Source::Synthetic { experts, layers, skew, width, expert_hidden } => {
                Self::Synthetic(SyntheticSettings {
                    shape: SourceShape {
                        layers: *layers as usize,
                        experts: *experts as usize,
                        width: *width as usize,
                        // The scenario's checks demand top_k of a synthetic source.
                        top_k: scenario.game.top_k.unwrap_or(1) as usize,
                        routing: Routing::softmax(false),
                        tokens_per_request,
                    },
                    expert_hidden: *expert_hidden as usize,
                    skew: *skew,
                    seed: scenario.seed,
                })
            }
        };
        materials.check(scenario, costs)?;
        Ok(materials)
    }

    fn check(&self, scenario: &Scenario, costs: &CostRegistry) -> Result<(), MaterialsError> {
        let shape = self.try_source()?.shape();
        self.try_calibration_source()?;
        if let (Self::Checkpoint(model), Some(context)) =
            (self, self.context(&scenario.load.generation))
        {
            // How long recorded prompts are is known later; they are cut to this.
            let generation = &scenario.load.generation;
            let most = u32::try_from(context).expect("positions of a model are few");
            let length = match generation.lengths {
                Lengths::Fixed => RequestLength {
                    prompt: generation.prompt_tokens,
                    generated: generation.generated_tokens,
                },
                Lengths::Trace | Lengths::None => RequestLength { prompt: most, generated: 1 },
            };
            model
                .generating((&[length.within(most)], context))
                .map_err(|source| MaterialsError::Source { what: "load.generation", source })?;
        }
        let top_k = scenario.game.top_k.map_or(shape.top_k, |top_k| top_k as usize);
        if top_k > shape.experts {
            return Err(MaterialsError::TopK { top_k, experts: shape.experts });
        }
        let neighbours = scenario.flock.neighbours as usize;
        if scenario.flock.enabled && neighbours >= shape.experts {
            return Err(MaterialsError::Neighbours { neighbours, experts: shape.experts });
        }
        let kept = scenario.precision.kept_experts(shape.experts);
        let (share, experts) = (scenario.precision.prune, shape.experts);
        if kept < experts && shape.routing.groups.is_some() {
            return Err(MaterialsError::PrunedGroups(share));
        }
        let pruned = |key, asked| MaterialsError::Pruned { key, asked, share, kept, experts };
        if top_k > kept {
            return Err(pruned("game.top_k", top_k));
        }
        if scenario.flock.enabled && neighbours >= kept {
            return Err(pruned("flock.neighbours", neighbours));
        }
        let by_slots = scenario.nodes.placement != PlacementRule::RoundRobin;
        if let Some((message, help)) = slots_problem(&scenario.nodes, kept).filter(|_| by_slots) {
            return Err(MaterialsError::ReplicaSlots { message, help });
        }
        if let Some((message, help)) = migration_problem(&scenario.nodes, kept) {
            return Err(MaterialsError::ReplicaSlots { message, help });
        }
        let tokens = usize::try_from(scenario.batch_tokens_max()).expect("checked to be small");
        let shape = GameShape { tokens, experts: kept, top_k };
        costs.build(&scenario.game.cost, &scenario.game.cost_parameters(), shape)?;
        Ok(())
    }

    /// A source of the scenario's requests over the experts that are kept; none: over all.
    #[must_use]
    pub(super) fn source<'a>(&'a self, kept: Option<&'a KeptExperts>) -> Box<dyn ScoreSource + 'a> {
        reduced(self.try_source().expect("checked when loaded"), kept)
    }

    /// Tokens of a prompt and its answer, at most; none where nothing is generated.
    #[must_use]
    pub(super) fn context(&self, generation: &Generation) -> Option<usize> {
        let Self::Checkpoint(model) = self else { return None };
        // A prompt and an answer have a token each.
        let positions = model.loaded.checkpoint.config.max_positions.max(2);
        let context = generation.context_max.map_or(positions, |max| positions.min(max as usize));
        (!generation.is_off()).then_some(context)
    }

    /// A source that answers prompts of these lengths, each of at most so many tokens, over the experts
    /// that are kept; none: over all.
    ///
    /// # Panics
    /// When the source generates nothing.
    #[must_use]
    pub(super) fn generating_source<'a>(
        &'a self,
        kept: Option<&'a KeptExperts>,
        lengths: (&'a [RequestLength], usize),
    ) -> Box<dyn Generate + 'a> {
        let Self::Checkpoint(model) = self else {
            panic!("the scenario's checks want a checkpoint")
        };
        let whole = model.generating(lengths).expect("checked when loaded");
        match kept {
            None => Box::new(whole),
            Some(kept) => Box::new(PrunedSource::new(Box::new(whole), kept)),
        }
    }

    /// A source of calibration requests, likewise, and how many there are; a model without calibration
    /// text has none.
    #[must_use]
    pub(super) fn calibration_source<'a>(
        &'a self,
        kept: Option<&'a KeptExperts>,
    ) -> Option<CalibrationSource<'a>> {
        let whole = self.try_calibration_source().expect("checked when loaded");
        whole.map(|(source, requests)| (reduced(source, kept), requests))
    }

    /// What each format costs each matrix of the experts that are kept, in expected loss on the calibration text.
    ///
    /// # Errors
    /// When the checkpoint cannot be read again or the text is too short.
    ///
    /// # Panics
    /// When nothing is predicted, or there is no calibration text.
    pub(super) fn expert_costs(
        &self,
        kept: Option<&KeptExperts>,
        formats: &[Format],
    ) -> Result<ExpertCosts, QuantizeError> {
        let Self::Checkpoint(model) = self else {
            panic!("the scenario's checks want a checkpoint")
        };
        let ids = model.loaded.calibration_ids.as_ref().expect("the scenario's checks want a text");
        let of_layer = |kept: &Vec<ExpertId>| kept.iter().map(|expert| expert.index()).collect();
        let kept: Option<Vec<Vec<usize>>> = kept.map(|kept| kept.iter().map(of_layer).collect());
        expert_costs(&model.loaded.checkpoint, ids, kept.as_deref(), formats)
    }

    /// Different requests that there are: windows of the text; none where each request is new.
    #[must_use]
    pub(super) fn windows(&self) -> Option<usize> {
        match self {
            Self::Checkpoint(model) => {
                let ids = model.loaded.ids.len();
                Some(ids.saturating_sub(1) / model.tokens_per_request)
            }
            Self::Synthetic(_) => None,
        }
    }

    /// Symbols of the vocabulary, where text is scored.
    #[must_use]
    pub(super) fn vocabulary(&self) -> Option<usize> {
        match self {
            Self::Checkpoint(model) => Some(model.loaded.checkpoint.config.vocab),
            Self::Synthetic(_) => None,
        }
    }

    fn try_source(&self) -> Result<Box<dyn ScoreSource + '_>, MaterialsError> {
        match self {
            Self::Checkpoint(model) => model.source("source.text", &model.loaded.ids),
            Self::Synthetic(settings) => Ok(Box::new(SyntheticSource::new(*settings))),
        }
    }

    fn try_calibration_source(&self) -> Result<Option<CalibrationSource<'_>>, MaterialsError> {
        /// Requests that a synthetic source is calibrated on.
        const SYNTHETIC_REQUESTS: usize = 16;
        match self {
            Self::Checkpoint(model) => {
                let Some(ids) = &model.loaded.calibration_ids else { return Ok(None) };
                let source = model.source("precision.calibration_text", ids)?;
                Ok(Some((source, (ids.len() - 1) / model.tokens_per_request)))
            }
            Self::Synthetic(settings) => {
                Ok(Some((Box::new(SyntheticSource::calibration(*settings)), SYNTHETIC_REQUESTS)))
            }
        }
    }
}

fn reduced<'a>(
    whole: Box<dyn ScoreSource + 'a>,
    kept: Option<&'a KeptExperts>,
) -> Box<dyn ScoreSource + 'a> {
    match kept {
        None => whole,
        Some(kept) => Box::new(PrunedSource::new(whole, kept)),
    }
}

impl Loaded {
    fn of(folder: &Path, text: &[PathBuf], precision: &Precision) -> Result<Self, MaterialsError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        let calibration_ids = match &precision.calibration_text {
            None => None,
            Some(path) => {
                let mut ids = encode(&tokenizer, std::slice::from_ref(path))?;
                ids.truncate(precision.calibration_tokens as usize + 1);
                Some(ids)
            }
        };
        let (trunk, ids) = (checkpoint.trunk()?, encode(&tokenizer, text)?);
        Ok(Self { checkpoint, trunk, ids, calibration_ids })
    }
}

impl ModelAndTexts {
    fn generating<'a>(
        &'a self,
        lengths: (&'a [RequestLength], usize),
    ) -> Result<GeneratingSource<'a>, SourceError> {
        let Loaded { checkpoint, trunk, ids, .. } = &*self.loaded;
        let model = CheckpointSource::new(checkpoint, trunk, ids, self.tokens_per_request)?;
        GeneratingSource::new(model, trunk, ids, lengths)
    }

    fn source<'a>(
        &'a self,
        what: &'static str,
        ids: &'a [u32],
    ) -> Result<Box<dyn ScoreSource + 'a>, MaterialsError> {
        let Loaded { checkpoint, trunk, .. } = &*self.loaded;
        CheckpointSource::new(checkpoint, trunk, ids, self.tokens_per_request)
            .map(|source| Box::new(source) as Box<dyn ScoreSource>)
            .map_err(|source| {
                let what = match source {
                    SourceError::Dense | SourceError::Checkpoint(_) => "source.checkpoint",
                    SourceError::LongRequest { .. } => "load.tokens_per_request",
                    SourceError::ShortText { .. }
                    | SourceError::ShortPrompts { .. }
                    | SourceError::Vocabulary { .. } => what,
                };
                MaterialsError::Source { what, source }
            })
    }
}

fn encode(tokenizer: &Tokenizer, texts: &[PathBuf]) -> Result<Vec<u32>, MaterialsError> {
    let mut ids = Vec::new();
    for path in texts {
        ids.extend(tokenizer.encode_document(&read_text(path)?)?.ids);
    }
    Ok(ids)
}
