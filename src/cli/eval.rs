//! `nashflock eval`: scores a text or a choice task with a checkpoint.

use super::{Failure, Outcome, print, print_json};
use crate::model::checkpoint::Checkpoint;
use crate::model::choice::{ChoiceScores, Template, read_examples, score_choices};
use crate::model::eval::{Evaluation, Scored, evaluate};
use crate::model::experts::LocalExperts;
use crate::model::tokenizer::{Tokenizer, read_text};
use agents::expert::BitWidth;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct EvalArgs {
    /// Folder of a checkpoint in the Hugging Face layout, or a GGUF file
    checkpoint: PathBuf,
    /// UTF-8 text to score
    #[arg(long, value_name = "FILE", required_unless_present = "task")]
    text: Option<PathBuf>,
    /// Choice task to score instead: tab-separated columns with a header and a column `label`, as GLUE has them
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    task: Option<PathBuf>,
    /// Prompt of the task; `{column}` stands for a column [default: that of SST-2 in the LM Evaluation Harness]
    #[arg(long, value_name = "TEXT", requires = "task")]
    prompt: Option<String>,
    /// What may follow the prompt, once for each label from 0 on [default: " negative" and " positive"]
    #[arg(long = "choice", value_name = "TEXT", requires = "task")]
    choices: Vec<String>,
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
    let mut moe = |layer: usize, x: &[f32], logits: &[f32]| experts.forward(layer, x, logits);
    let scored = Scored { trunk: &trunk, moe: &mut moe };
    match (&args.text, &args.task) {
        (Some(text), _) => text_scored(scored, &tokenizer, text, args.json),
        (None, Some(task)) => task_scored(scored, &tokenizer, task, args),
        (None, None) => unreachable!("one of the two is required"),
    }
}

fn bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    let template = format!("scoring {{wide_bar}} {{pos}}/{{len}} {what}, {{elapsed}}");
    bar.set_style(ProgressStyle::with_template(&template).expect("the template is well formed"));
    bar
}

fn text_scored(scored: Scored<'_>, tokenizer: &Tokenizer, text: &Path, json: bool) -> Outcome {
    let text = read_text(text).map_err(Failure::bad_input)?;
    let document = tokenizer.encode_document(&text).map_err(Failure::bad_input)?;
    let bar = bar("windows");
    let evaluation = evaluate(scored, None, &document, |done, windows| {
        bar.set_length(windows as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let evaluation = evaluation.map_err(Failure::bad_input)?;
    if json { print_json(&as_json(&evaluation)) } else { print(&as_table(&evaluation)) }
}

fn task_scored(scored: Scored<'_>, tokenizer: &Tokenizer, task: &Path, args: &EvalArgs) -> Outcome {
    let sst2 = Template::default();
    let template = Template {
        prompt: args.prompt.clone().unwrap_or(sst2.prompt),
        choices: if args.choices.is_empty() { sst2.choices } else { args.choices.clone() },
    };
    let examples = read_examples(task, &template).map_err(Failure::bad_input)?;
    let bar = bar("examples");
    bar.set_length(examples.len() as u64);
    let scores = score_choices(scored, tokenizer, &template, &examples, |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let scores = scores.map_err(Failure::bad_input)?;
    if args.json {
        let value = serde_json::to_value(&scores).expect("scores are finite numbers");
        print_json(&value)
    } else {
        print(&task_table(&scores, &template))
    }
}

fn task_table(scores: &ChoiceScores, template: &Template) -> String {
    let [low, high] = scores.accuracy_interval_95.map(|share| 100.0 * share);
    let mut text = format!(
        "accuracy       {:.2} %, 95 % interval {low:.2} to {high:.2}; {:.2} % by always saying the most frequent label\n\
         by byte        {:.2} %, likelihoods divided by the bytes of the choice\n\
         margin         {:.4} nats, right choice over the best other\n\
         examples       {}, {} with a prompt cut to what the model reads\n",
        100.0 * scores.accuracy,
        100.0 * scores.majority_share,
        100.0 * scores.accuracy_by_byte,
        scores.margin_mean,
        scores.examples,
        scores.truncated,
    );
    for (choice, share) in template.choices.iter().zip(&scores.chosen) {
        text += &format!("chosen         {:.2} % {choice:?}\n", 100.0 * share);
    }
    text
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
