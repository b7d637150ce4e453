//! `nashflock quantize`: writes a checkpoint with quantized weights.

use super::{Failure, Outcome, print, print_json};
use crate::model::checkpoint::Checkpoint;
use crate::model::eval::{Evaluation, Scored, evaluate};
use crate::model::experts::LocalExperts;
use crate::model::quantize::{
    QuantizeSettings, QuantizedModel, Rounding, check_empty, quantize as quantize_model, write,
};
use crate::model::tokenizer::{Tokenizer, read_text};
use agents::expert::{BitWidth, MAX_GROUP};
use agents::precision::Budget;
use agents::quantize::Format;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// Folder of a checkpoint in the Hugging Face layout
    checkpoint: PathBuf,
    /// New folder for the quantized checkpoint
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Size of the whole model against f32, such as 90.6%, 3.1bpw or 3MB
    #[arg(long)]
    budget: Budget,
    /// UTF-8 text that shows what the weights are multiplied with
    #[arg(long, value_name = "FILE")]
    calibration: PathBuf,
    /// Windows of 256 tokens that are taken from it, evenly spaced
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    windows: u32,
    /// Widths to choose from: bits, or bits:weights that share a scale
    #[arg(long, value_delimiter = ',', default_values = ["2:256", "3:256", "4:64", "8:64"])]
    formats: Vec<NamedFormat>,
    /// How weights are rounded once their widths are chosen
    #[arg(long, value_enum, default_value_t = RoundingName::Gptq)]
    rounding: RoundingName,
    /// UTF-8 text to score the result on, beside the f32 model
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoundingName {
    /// For the inputs that they meet
    Gptq,
    /// Each group by itself: the control
    Nearest,
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

pub(super) fn quantize(args: &QuantizeArgs) -> Outcome {
    check_empty(&args.out).map_err(Failure::bad_input)?;
    let checkpoint = Checkpoint::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let tokenizer = Tokenizer::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let encode = |path: &PathBuf| {
        let text = read_text(path).map_err(Failure::bad_input)?;
        tokenizer.encode_document(&text).map_err(Failure::bad_input)
    };
    let calibration = encode(&args.calibration)?.ids;
    let scored = args.text.as_ref().map(encode).transpose()?;
    let settings = QuantizeSettings {
        budget_bytes: args.budget.bytes(checkpoint.weights_count()),
        formats: args.formats.iter().map(|format| format.0).collect(),
        rounding: match args.rounding {
            RoundingName::Gptq => Rounding::Gptq,
            RoundingName::Nearest => Rounding::Nearest,
        },
        calibration,
        windows: args.windows as usize,
    };
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let told = bar.clone();
    let model = quantize_model(&checkpoint, &settings, |done| told.set_message(done.to_owned()))
        .map_err(Failure::bad_input)?;
    write(&model, &checkpoint, &args.checkpoint, &args.out).map_err(Failure::bad_input)?;
    bar.set_message("scoring");
    let evaluation = match &scored {
        None => None,
        Some(document) => {
            let (trunk, experts) = model.decode(&checkpoint).map_err(Failure::bad_input)?;
            let full_trunk = checkpoint.trunk().map_err(Failure::bad_input)?;
            let full =
                LocalExperts::load(&checkpoint, BitWidth::Full, 32).map_err(Failure::bad_input)?;
            let mut own = |layer: usize, x: &[f32], l: &[f32]| experts.forward(layer, x, l);
            let mut other = |layer: usize, x: &[f32], l: &[f32]| full.forward(layer, x, l);
            let own = Scored { trunk: &trunk, moe: &mut own };
            let other = Scored { trunk: &full_trunk, moe: &mut other };
            let result = evaluate(own, Some(other), document, |_, _| ());
            Some(result.map_err(Failure::bad_input)?)
        }
    };
    bar.finish_and_clear();
    if args.json {
        print_json(&as_json(&model, &settings, evaluation.as_ref()))
    } else {
        print(&as_table(&model, &settings, evaluation.as_ref()))
    }
}

fn saved(model: &QuantizedModel) -> f64 {
    1.0 - model.bytes as f64 / model.bytes_f32 as f64
}

fn as_json(
    model: &QuantizedModel,
    settings: &QuantizeSettings,
    evaluation: Option<&Evaluation>,
) -> serde_json::Value {
    let formats = settings.formats.iter().map(|format| {
        let matrices = model.matrices.values().filter(|matrix| matrix.format() == *format);
        json!({"bits": format.bits, "group": format.group, "matrices": matrices.count()})
    });
    json!({
        "bytes": model.bytes,
        "bytes_f32": model.bytes_f32,
        "saving": saved(model),
        "bits_per_weight": 32.0 * model.bytes as f64 / model.bytes_f32 as f64,
        "expected_divergence": model.allocation.cost,
        "dual_bound": model.allocation.dual_bound,
        "formats": formats.collect::<Vec<_>>(),
        "rarely_seen_experts": model.rarely_seen.len(),
        "evaluation": evaluation,
    })
}

fn as_table(
    model: &QuantizedModel,
    settings: &QuantizeSettings,
    evaluation: Option<&Evaluation>,
) -> String {
    let mut text = format!(
        "size           {} bytes of {} in f32: {:.2} % saved, {:.3} bits a weight with scales\n",
        model.bytes,
        model.bytes_f32,
        100.0 * saved(model),
        32.0 * model.bytes as f64 / model.bytes_f32 as f64,
    );
    for format in &settings.formats {
        let matrices = model.matrices.values().filter(|matrix| matrix.format() == *format);
        let count = matrices.count();
        text += &format!(
            "{} bits         {count} matrices, {} weights a scale\n",
            format.bits, format.group
        );
    }
    text += &format!(
        "divergence     {:.5} nats expected, at least {:.5} at any choice of widths\n",
        model.allocation.cost, model.allocation.dual_bound
    );
    if !model.rarely_seen.is_empty() {
        text += &format!(
            "rarely seen    {} experts had fewer tokens than inputs and learnt from their layer\n",
            model.rarely_seen.len()
        );
    }
    if let Some((evaluation, agreement)) = evaluation.and_then(|e| Some((e, e.agreement?))) {
        text += &format!(
            "loss           {:.4} nats a token, {:.4} in f32: {:+.3} %; ln V = {:.4}\n\
             divergence     {:.5} nats from f32, measured\n\
             top-1          {:.2} % as in f32\n\
             tokens         {}\n",
            evaluation.loss,
            agreement.loss_f32,
            100.0 * (evaluation.loss / agreement.loss_f32 - 1.0),
            evaluation.loss_uniform,
            agreement.kl_to_f32,
            100.0 * agreement.top1_agreement,
            evaluation.tokens,
        );
    }
    text
}
