//! `nashflock quantize`: writes a checkpoint with quantized weights.

use super::eval::within;
use super::{Failure, Outcome, print, print_json};
use crate::model::checkpoint::Checkpoint;
use crate::model::eval::{Evaluation, Scored, evaluate};
use crate::model::experts::LocalExperts;
use crate::model::quantize::{
    OWN_WINDOWS, Pruning, QuantizeSettings, QuantizedModel, Rounding, check_empty, own_text,
    quantize as quantize_model, write,
};
use crate::model::tokenizer::{Document, Tokenizer, read_text};
use agents::expert::{BitWidth, MAX_GROUP};
use agents::game::Registries;
use agents::precision::{Budget, PruneCriterion};
use agents::quantize::Format;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// Checkpoint: a folder in the Hugging Face layout, or a GGUF file
    checkpoint: PathBuf,
    /// New folder for the quantized checkpoint
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Size of the whole model against f32, such as 90.6%, 3.1bpw or 3MB
    #[arg(long)]
    budget: Budget,
    /// UTF-8 text that shows what the weights are multiplied with; without it the model writes its own
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Windows of 256 tokens that are taken from it, evenly spaced; of its own a model writes 16 at most
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    windows: u32,
    /// Widths to choose from: bits, or bits:weights that share a scale
    #[arg(long, value_delimiter = ',', default_values = ["2:256", "3:256", "4:64", "8:64"])]
    formats: Vec<NamedFormat>,
    /// Who chooses widths: `exact`, `hull`, `flock`, `local_search`, or `uniform:N` for N bits everywhere
    #[arg(long, value_name = "NAME", default_value = "exact")]
    allocator: String,
    /// How weights are rounded once their widths are chosen: by default `gptq` with a calibration text,
    /// `search` without
    #[arg(long, value_enum)]
    rounding: Option<RoundingName>,
    /// Share of each layer's experts to leave out first, from 0 to below 1, rounded down
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    prune: f64,
    /// Who goes: experts of the lowest value
    #[arg(long, value_enum, default_value_t = CriterionName::Reap)]
    prune_by: CriterionName,
    /// UTF-8 text to score the result on, beside the f32 model
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoundingName {
    /// For the inputs that they meet, each making up for those before
    Gptq,
    /// Each group by itself, for the least squared error weighted by the inputs it meets
    Search,
    /// Each group by itself, for the least error in the 0.7-norm; without data
    Hqq,
    /// Each group by itself, for the least squared error: the control
    Nearest,
}

#[derive(Clone, Copy, ValueEnum)]
enum CriterionName {
    /// Mean of gate times output norm over the tokens that an expert got
    Reap,
    /// Share of tokens that an expert got: the control
    Frequency,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "write a share from 0 to below 1, such as 0.25".to_owned())
}

/// `4` or `4:64`.
#[derive(Clone, Copy)]
struct NamedFormat(Format);

impl std::str::FromStr for NamedFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bits, group) = text.split_once(':').unwrap_or((text, "64"));
        let number = |text: &str, most: usize| {
            text.parse().ok().filter(|number| (1..=most).contains(number))
        };
        match (number(bits, 8), number(group, MAX_GROUP)) {
            (Some(bits), Some(group)) => {
                let bits = u32::try_from(bits).expect("at most 8");
                Ok(Self(Format { bits, group }))
            }
            _ => Err(format!(
                "write bits from 1 to 8, and after a colon 1 to {MAX_GROUP} weights a scale: 4:64"
            )),
        }
    }
}

pub(super) fn quantize(args: &QuantizeArgs, registries: &Registries) -> Outcome {
    let allocator = registries.allocators.build(&args.allocator).map_err(Failure::bad_input)?;
    check_empty(&args.out).map_err(Failure::bad_input)?;
    let checkpoint = Checkpoint::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let tokenizer = Tokenizer::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let encode = |path: &PathBuf| {
        let text = read_text(path).map_err(Failure::bad_input)?;
        tokenizer.encode_document(&text).map_err(Failure::bad_input)
    };
    let given = args.calibration.as_ref().map(encode).transpose()?.map(|text| text.ids);
    let scored = args.text.as_ref().map(encode).transpose()?;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let is_own = given.is_none();
    let calibration = given.map_or_else(
        || {
            bar.set_message("letting the model write calibration text");
            own_text(&checkpoint, args.windows as usize).map_err(Failure::bad_input)
        },
        Ok,
    )?;
    let default = if is_own { RoundingName::Search } else { RoundingName::Gptq };
    let settings = QuantizeSettings {
        budget_bytes: args.budget.bytes(checkpoint.weights_count()),
        formats: args.formats.iter().map(|format| format.0).collect(),
        rounding: match args.rounding.unwrap_or(default) {
            RoundingName::Gptq => Rounding::Gptq,
            RoundingName::Search => Rounding::Search,
            RoundingName::Hqq => Rounding::Hqq,
            RoundingName::Nearest => Rounding::Nearest,
        },
        calibration,
        windows: args.windows as usize,
        pruning: (args.prune > 0.0).then_some(Pruning {
            share: args.prune,
            criterion: match args.prune_by {
                CriterionName::Reap => PruneCriterion::Reap,
                CriterionName::Frequency => PruneCriterion::Frequency,
            },
        }),
    };
    let told = bar.clone();
    let model = quantize_model(&checkpoint, &settings, allocator.as_ref(), |done| {
        told.set_message(done.to_owned());
    })
    .map_err(Failure::bad_input)?;
    write(&model, &checkpoint, &args.checkpoint, &args.out).map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })?;
    bar.set_message("scoring");
    let evaluation = scored.map(|document| score(&model, &checkpoint, &document)).transpose()?;
    bar.finish_and_clear();
    let shown = Shown { model: &model, settings: &settings, allocator: &args.allocator, is_own };
    if args.json {
        print_json(&shown.json(evaluation.as_ref()))
    } else {
        print(&shown.table(evaluation.as_ref()))
    }
}

/// Scores the quantized model beside the f32 one.
fn score(
    model: &QuantizedModel,
    checkpoint: &Checkpoint,
    document: &Document,
) -> Result<Evaluation, Failure> {
    let (trunk, experts) = model.decode(checkpoint).map_err(Failure::bad_input)?;
    let full_trunk = checkpoint.trunk().map_err(Failure::bad_input)?;
    let full = LocalExperts::load(checkpoint, BitWidth::Full, 32).map_err(Failure::bad_input)?;
    let mut own = |layer: usize, x: &[f32], l: &[f32]| experts.forward(layer, x, l);
    let mut other = |layer: usize, x: &[f32], l: &[f32]| full.forward(layer, x, l);
    let own = Scored { trunk: &trunk, moe: &mut own };
    let other = Scored { trunk: &full_trunk, moe: &mut other };
    evaluate(own, Some(other), document, |_, _| ()).map_err(Failure::bad_input)
}

/// What is printed of a model.
struct Shown<'a> {
    model: &'a QuantizedModel,
    settings: &'a QuantizeSettings,
    allocator: &'a str,
    /// Whether the model wrote the calibration text.
    is_own: bool,
}

impl Shown<'_> {
    fn saved(&self) -> f64 {
        1.0 - self.model.bytes as f64 / self.model.bytes_f32 as f64
    }

    fn bits_per_weight(&self) -> f64 {
        32.0 * self.model.bytes as f64 / self.model.bytes_f32 as f64
    }

    /// Formats, and how many matrices have them.
    fn formats(&self) -> impl Iterator<Item = (Format, usize)> {
        self.settings.formats.iter().map(|format| {
            let matrices = self.model.matrices.values();
            (*format, matrices.filter(|matrix| matrix.format() == *format).count())
        })
    }

    /// Experts with few tokens, and those with none.
    fn rare_and_unseen(&self) -> (usize, usize) {
        let unseen = self.model.rarely_seen.iter().filter(|(.., tokens)| *tokens == 0).count();
        (self.model.rarely_seen.len() - unseen, unseen)
    }

    fn json(&self, evaluation: Option<&Evaluation>) -> serde_json::Value {
        let QuantizedModel { allocation, optimum, .. } = self.model;
        let formats = self.formats().map(|(format, matrices)| {
            json!({"bits": format.bits, "group": format.group, "matrices": matrices})
        });
        let (rare, unseen) = self.rare_and_unseen();
        json!({
            "bytes": self.model.bytes,
            "bytes_f32": self.model.bytes_f32,
            "saving": self.saved(),
            "bits_per_weight": self.bits_per_weight(),
            "allocator": self.allocator,
            "calibration": if self.is_own { "own" } else { "given" },
            "gap_to_exact": allocation.gap_to(optimum),
            "exact": optimum.exact,
            "expected_divergence": allocation.cost,
            "dual_bound": allocation.dual_bound,
            "formats": formats.collect::<Vec<_>>(),
            "rarely_seen_experts": rare,
            "unseen_experts": unseen,
            "kept_experts": self.model.kept,
            "evaluation": evaluation,
        })
    }

    fn table(&self, evaluation: Option<&Evaluation>) -> String {
        let QuantizedModel { allocation, optimum, bytes, bytes_f32, .. } = self.model;
        let mut text = format!(
            "size           {bytes} bytes of {bytes_f32} in f32: {:.2} % saved, {:.3} bits a weight with \
             scales\n",
            100.0 * self.saved(),
            self.bits_per_weight(),
        );
        for (layer, kept) in self.model.kept.iter().flatten() {
            let names: Vec<String> = kept.iter().map(ToString::to_string).collect();
            let count = kept.len();
            text += &format!("layer {layer:<8} {count} experts kept: {}\n", names.join(" "));
        }
        for (Format { bits, group }, count) in self.formats() {
            text += &format!("{bits} bits         {count} matrices, {group} weights a scale\n");
        }
        if self.is_own {
            let windows = self.settings.windows.min(OWN_WINDOWS);
            text += &format!("calibration    on text of the model's own, {windows} windows\n");
        }
        let gap = allocation
            .gap_to(optimum)
            .map_or("infinitely far".to_owned(), |gap| format!("{:.3} %", 100.0 * gap));
        let rounded = match optimum.exact {
            true => String::new(),
            false => format!(", whose sizes are rounded up to {} bytes", optimum.step_bytes),
        };
        text += &format!(
            "allocator      {}, {gap} above the exact optimum{rounded}\n\
             divergence     {:.5} nats expected, at least {:.5} at any choice of widths\n",
            self.allocator, allocation.cost, allocation.dual_bound
        );
        let (rare, unseen) = self.rare_and_unseen();
        if rare > 0 {
            text += &format!(
                "rarely seen    {rare} experts had fewer tokens than inputs and learnt from their layer\n"
            );
        }
        if unseen > 0 {
            text += &format!(
                "never seen     {unseen} experts had no token: they have their layer's inputs, or are rounded \
                 by themselves\n"
            );
        }
        text + &evaluation.map_or(String::new(), scores)
    }
}

fn scores(evaluation: &Evaluation) -> String {
    let Some(agreement) = evaluation.agreement else { return String::new() };
    let relative = |nats: f64| 100.0 * nats / agreement.loss_f32;
    format!(
        "loss           {:.4}{} nats a token, {:.4} in f32; ln V = {:.4}\n\
         loss rise      {:+.5}{} nats, {:+.3}{} %\n\
         divergence     {:.5} nats from f32, measured\n\
         top-1          {:.2} % as in f32\n\
         tokens         {}\n",
        evaluation.loss,
        within(evaluation.loss_half_width_95, 4),
        agreement.loss_f32,
        evaluation.loss_uniform,
        agreement.loss_difference,
        within(agreement.loss_difference_half_width_95, 5),
        relative(agreement.loss_difference),
        within(agreement.loss_difference_half_width_95.map(relative), 3),
        agreement.kl_to_f32,
        100.0 * agreement.top1_agreement,
        evaluation.tokens,
    )
}
