//! Bytes against loss, other texts, and choice tasks.

use super::{DENSE, Failure, MOE, Texts, nashflock, number};
use nashflock::model::checkpoint::Checkpoint;
use serde_json::Value;
use std::path::Path;

const CALIBRATION_WINDOWS: &str = "128";

/// A model that was quantized.
struct Quantized {
    name: &'static str,
    of: Value,
}

pub(crate) fn size_and_loss(texts: &Texts) -> Result<(), Failure> {
    println!(
        "\n## Size and loss\n\n\
         The claims: \"34.05 MB quantized to 0.75 MB, 90.6 % saved against a target of 65 %\", where the 0.75 MB were\n\
         those of the dense baseline, and \"loss 7.07 to 6.908, 2.5 % better\", which is ln 1000: it predicted nothing.\n\
         Here bytes are those of the whole model, scales, norms and routers included; the loss is that of the whole\n\
         held-out text, and the rise is paired, with half of its 95 % interval. Calibration is on the training text\n\
         alone ({CALIBRATION_WINDOWS} windows of 256 tokens). Controls: the same bits everywhere, and the same budget\n\
         with each group rounded by itself.\n"
    );
    let dense = eval(DENSE, &texts.held_out)?;
    let folder = tempfile::tempdir()?;
    let quantized = [
        ("mixed widths, 90.6 % asked for", &["--budget", "90.6%"][..]),
        ("the same, each group rounded by itself", &["--budget", "90.6%", "--rounding", "nearest"]),
        ("3 bits everywhere", &["--budget", "3.2bpw", "--allocator", "uniform:3"]),
        ("mixed widths, 85 % asked for", &["--budget", "85%"]),
        ("8 bits everywhere", &["--budget", "8.6bpw", "--allocator", "uniform:8"]),
    ];
    let mut models = Vec::new();
    for (place, (name, words)) in quantized.into_iter().enumerate() {
        let out = folder.path().join(place.to_string());
        let of = quantize(&out, words, texts)?;
        models.push(Quantized { name, of });
    }
    let f32_loss = number(&models[0].of, "evaluation.loss_f32")?;
    let f32_bytes = number(&models[0].of, "bytes_f32")?;
    let uniform = number(&dense, "loss_uniform")?;
    println!("| model | MB | saved | bits a weight | loss, nats | rise over f32 | top-1 as f32 |");
    println!("|---|---|---|---|---|---|---|");
    println!("| predicts nothing (ln V) | 0 | | | {uniform:.4} | | |");
    let dense_bytes = 4.0 * Checkpoint::open(Path::new(DENSE))?.weights_count() as f64;
    let dense_loss = number(&dense, "loss")?;
    println!("| dense, f32 | {:.2} | | 32 | {dense_loss:.4} | | |", dense_bytes / 1e6);
    println!("| 8 experts, f32 | {:.2} | 0 % | 32 | {f32_loss:.4} | 0 | 100 % |", f32_bytes / 1e6);
    for Quantized { name, of } in &models {
        println!(
            "| {name} | {:.2} | {:.2} % | {:.3} | {:.4} | {:+.3} ± {:.3} % | {:.2} % |",
            number(of, "bytes")? / 1e6,
            100.0 * number(of, "saving")?,
            number(of, "bits_per_weight")?,
            number(of, "evaluation.loss")?,
            100.0 * number(of, "evaluation.loss_difference")? / f32_loss,
            100.0 * number(of, "evaluation.loss_difference_half_width_95")? / f32_loss,
            100.0 * number(of, "evaluation.top1_agreement")?,
        );
    }
    let tokens = number(&models[0].of, "evaluation.tokens")?;
    println!(
        "\n{tokens} tokens are predicted. Against the dense model the experts gain {:.4} nats in f32.",
        dense_loss - f32_loss
    );
    Ok(())
}

fn eval(model: &str, text: &Path) -> Result<Value, Failure> {
    nashflock(&["eval", model, "--text", path(text)?])
}

fn quantize(out: &Path, words: &[&str], texts: &Texts) -> Result<Value, Failure> {
    let calibration = ["--calibration", path(&texts.train)?, "--windows", CALIBRATION_WINDOWS];
    let always = ["quantize", MOE, "--out", path(out)?, "--text", path(&texts.held_out)?];
    nashflock(&[&always[..], &calibration, words].concat())
}

fn path(of: &Path) -> Result<&str, Failure> {
    of.to_str().ok_or_else(|| "paths are UTF-8 here".into())
}

/// What the prototype left open.
pub(crate) fn open_ends(texts: &Texts) -> Result<(), Failure> {
    println!(
        "\n## WikiText, GLUE and seven billion parameters\n\n\
         The claim: open. The shipped models were trained on seven books with a vocabulary of 1000, so on WikiText-2 they\n\
         are strangers; the figures are what they are, and a checkpoint of your own is read by the same command\n\
         (`nashflock eval CHECKPOINT --text FILE`).\n"
    );
    println!("| model | tokens of the test split | loss, nats | bits a character | ln V |");
    println!("|---|---|---|---|---|");
    for (name, model) in [("dense", DENSE), ("8 experts", MOE)] {
        let of = eval(model, &texts.wikitext)?;
        let [tokens, loss, bits, uniform] =
            ["tokens", "loss", "bits_per_char", "loss_uniform"].map(|key| number(&of, key));
        println!("| {name} | {} | {:.4} | {:.4} | {:.4} |", tokens?, loss?, bits?, uniform?);
    }
    let words = ["--prompt", "{sentence}", "--choice", " door", "--choice", " went"];
    let task = ["eval", MOE, "--task", "tests/oracles/choice-task.tsv"];
    let of = nashflock(&[&task[..], &words].concat())?;
    println!(
        "\nChoice tasks in the layout of GLUE are scored by `nashflock eval CHECKPOINT --task FILE`, by the likelihood of each\n\
         choice after a prompt; likelihoods are held against another library (`tests/all/cli_eval_task.rs`). On a file of\n\
         {} rows with labels set by hand the 8 experts get {:.0} % right, {:.0} % by always saying the same. Scores on GLUE need\n\
         its files and a checkpoint that has learnt English from more than seven books: none is given here.\n\n\
         A model of the sizes of OLMoE-1B-7B, 6.9 billion weights drawn from a seed, is decoded in\n\
         [speed.md](speed.md) with the machine's limits beside it. Its weights predict nothing; trained ones are read from\n\
         Hugging Face folders and GGUF files ([checkpoints.md](checkpoints.md)).",
        number(&of, "examples")?,
        100.0 * number(&of, "accuracy")?,
        100.0 * number(&of, "majority_share")?,
    );
    Ok(())
}
