//! `nashflock eval`: scores a text with a checkpoint.

use super::{Failure, Outcome, print, print_json};
use crate::model::checkpoint::Checkpoint;
use crate::model::eval::{Evaluation, Scored, evaluate};
use crate::model::experts::LocalExperts;
use crate::model::tokenizer::{Tokenizer, read_text};
use agents::expert::BitWidth;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct EvalArgs {
    /// Folder of a checkpoint in the Hugging Face layout, or a GGUF file
    checkpoint: PathBuf,
    /// UTF-8 text to score
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Run the experts of a quantized checkpoint from their codes, with activations of 8 bits, as
    /// workers do; else in f32
    #[arg(long)]
    stored: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn eval(args: &EvalArgs) -> Outcome {
    let checkpoint = Checkpoint::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let trunk = checkpoint.trunk().map_err(Failure::bad_input)?;
    let experts = if args.stored {
        LocalExperts::load_stored(&checkpoint)
    } else {
        LocalExperts::load(&checkpoint, BitWidth::Full, 32)
    };
    let experts = experts.map_err(Failure::bad_input)?;
    let tokenizer = Tokenizer::open(&args.checkpoint).map_err(Failure::bad_input)?;
    let text = read_text(&args.text).map_err(Failure::bad_input)?;
    let document = tokenizer.encode_document(&text).map_err(Failure::bad_input)?;

    let bar = ProgressBar::no_length();
    let template = "scoring {wide_bar} {pos}/{len} windows, {elapsed}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
    let mut moe = |layer: usize, x: &[f32], logits: &[f32]| experts.forward(layer, x, logits);
    let scored = Scored { trunk: &trunk, moe: &mut moe };
    let evaluation = evaluate(scored, None, &document, |done, windows| {
        bar.set_length(windows as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let evaluation = evaluation.map_err(Failure::bad_input)?;
    if args.json { print_json(&as_json(&evaluation)) } else { print(&as_table(&evaluation)) }
}

fn as_json(evaluation: &Evaluation) -> serde_json::Value {
    let loads = evaluation.expert_loads.iter().map(|layer| {
        json!({"layer": layer.layer, "loads": layer.loads, "max_over_mean": layer.max_over_mean})
    });
    json!({
        "loss": evaluation.loss,
        "loss_half_width_95": evaluation.loss_half_width_95,
        "perplexity": evaluation.perplexity,
        "bits_per_char": evaluation.bits_per_char,
        "tokens": evaluation.tokens,
        "loss_uniform": evaluation.loss_uniform,
        "expert_loads": loads.collect::<Vec<_>>(),
    })
}

/// ` ± 0.0123`, half of an interval, where there is one.
pub(super) fn within(half_width: Option<f64>, digits: usize) -> String {
    half_width.map_or(String::new(), |half| format!(" ± {half:.digits$}"))
}

fn as_table(evaluation: &Evaluation) -> String {
    let mut text = format!(
        "loss           {:.4}{} nats a token; ln V = {:.4} for a model that predicts nothing\n\
         perplexity     {:.3}\n\
         bits per char  {:.4}\n\
         tokens         {}\n",
        evaluation.loss,
        within(evaluation.loss_half_width_95, 4),
        evaluation.loss_uniform,
        evaluation.perplexity,
        evaluation.bits_per_char,
        evaluation.tokens,
    );
    for layer in &evaluation.expert_loads {
        text += &format!(
            "layer {:<8} hottest expert {:.2} × the mean under plain top-k\n",
            layer.layer, layer.max_over_mean
        );
    }
    text
}
