//! The whole forward pass of a small model beside a dense model of its prototype's sizes in PyTorch.
//!
//! `cargo bench --bench forward [-- --python PYTHON]`, where PYTHON is one that has torch.
//!
//! Experts have the widths that a run with `precision.budget = "90.6%"` chooses. Rounds of both
//! alternate, each the median of many passes; the ratio is the median over the rounds.
#![allow(clippy::print_stdout, reason = "the figures are the output")]

mod pass;
mod shared;

use agents::expert::{BitWidth, Expert};
use nashflock::model::checkpoint::{Checkpoint, ExpertWeights};
use nashflock::model::tokenizer::{Tokenizer, read_text};
use nashflock::results::Layers;
use pass::{Forward, Parts};
use shared::Failure;
use shared::figures::{median, spread, verdict};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const MODEL: &str = "scenarios/models/books-moe-8e2k";
const TEXT: &str = "scenarios/text/murmuration.txt";
const REQUESTS: usize = 8;
const TOKENS_PER_REQUEST: usize = 32;
const GROUP: usize = 64;

const ROUNDS: usize = 9;
/// Passes of a round.
const PASSES: usize = 200;
const WARM_UP: usize = 20;

const LIMIT: f64 = 0.5;

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let mut python = None;
    while let Some(word) = words.next() {
        if word == "--python" {
            python = Some(words.next().ok_or("--python takes a path")?);
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    pool.install(|| runtime.block_on(compare(python.as_deref())))
}

async fn compare(python: Option<&str>) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(Path::new(MODEL))?;
    let trunk = checkpoint.trunk()?;
    let experts = quantized(&checkpoint, &widths()?)?;
    let mut forward = Forward::new(&trunk, &experts, REQUESTS * TOKENS_PER_REQUEST).await?;
    let mut ids =
        Tokenizer::open(Path::new(MODEL))?.encode_document(&read_text(Path::new(TEXT))?)?.ids;
    ids.truncate(REQUESTS * TOKENS_PER_REQUEST);
    let (mut ours_ms, mut torch_ms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts = Vec::new();
    for _ in 0..ROUNDS {
        let ours = round(&mut forward, &ids, &mut parts).await?;
        ours_ms.push(ours);
        if let Some(python) = python {
            let torch = torch(python)?;
            torch_ms.push(torch);
            ratios.push(ours / torch);
        }
    }
    println!("nashflock, ms       {}", spread(&ours_ms, 3));
    if python.is_some() {
        println!("PyTorch dense, ms   {}", spread(&torch_ms, 3));
        let verdict = verdict(median(&ratios), LIMIT);
        println!("ratio               {}, {verdict} the limit of {LIMIT}", spread(&ratios, 3));
    }
    print_parts(&parts);
    Ok(())
}

/// The median time of a pass, ms.
async fn round(
    forward: &mut Forward<'_>,
    ids: &[u32],
    parts: &mut Vec<Parts>,
) -> Result<f64, Failure> {
    let mut times_ms = Vec::new();
    for pass in 0..WARM_UP + PASSES {
        let (logits, of_pass) = forward.pass(ids, TOKENS_PER_REQUEST).await?;
        std::hint::black_box(logits);
        if pass >= WARM_UP {
            times_ms.push(of_pass.total() as f64 / 1e6);
            parts.push(of_pass);
        }
    }
    Ok(median(&times_ms))
}

fn print_parts(parts: &[Parts]) {
    let part = |of: fn(&Parts) -> u64| median(parts.iter().map(|parts| of(parts) as f64 / 1e6));
    println!(
        "of it, ms           trunk {:.3}, routing and certificates {:.3}, orders and experts {:.3} \
         (experts alone {:.3}), combining {:.3}, head {:.3}",
        part(|p| p.trunk),
        part(|p| p.decide),
        part(|p| p.dispatch),
        part(|p| p.compute),
        part(|p| p.combine),
        part(|p| p.head),
    );
}

/// The bits of every expert by layer, as a run chooses them.
fn widths() -> Result<Vec<Vec<BitWidth>>, Failure> {
    let scenario = format!(
        r#"schema_version = 1
name = "forward"
seed = 7
[source]
kind = "checkpoint"
checkpoint = "{}"
text = ["{}"]
[game]
router = "equilibrium"
[precision]
budget = "90.6%"
widths = [2, 4, 8]
group = {GROUP}
calibration_text = "{}"
[nodes]
engine = "in-process"
[load]
requests = {REQUESTS}
rate_per_s = 100.0
tokens_per_request = {TOKENS_PER_REQUEST}
"#,
        fs::canonicalize(MODEL)?.display(),
        fs::canonicalize(TEXT)?.display(),
        fs::canonicalize("scenarios/text/calibration.txt")?.display(),
    );
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("scenario.toml"), scenario)?;
    let output = Command::new(env!("CARGO_BIN_EXE_nashflock"))
        .current_dir(folder.path())
        .args(["run", "scenario.toml", "--out", "run"])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let layers: Layers = serde_json::from_slice(&fs::read(folder.path().join("run/layers.json"))?)?;
    let width = |bits: &u32| BitWidth::from_code_bits(*bits).ok_or_else(|| "unknown bits".into());
    layers.layers.iter().map(|layer| layer.bits.iter().map(width).collect()).collect()
}

fn quantized(
    checkpoint: &Checkpoint,
    widths: &[Vec<BitWidth>],
) -> Result<Vec<Vec<Arc<Expert>>>, Failure> {
    let (mut bytes, mut bytes_f32) = (0, 0);
    let mut experts = vec![Vec::new(); widths.len()];
    for (layer, widths) in widths.iter().enumerate() {
        for (id, bits) in widths.iter().enumerate() {
            let ExpertWeights { shape, gate, up, down } = checkpoint.expert(layer, id)?;
            let expert = Expert::quantize(shape, &gate, &up, &down, *bits, GROUP);
            bytes += expert.bytes();
            bytes_f32 += shape.bytes(BitWidth::Full, GROUP);
            experts[layer].push(Arc::new(expert));
        }
        let bits: Vec<u32> = widths.iter().map(|bits| bits.code_bits()).collect();
        println!("layer {layer}: experts of {bits:?} bits");
    }
    let saved = 1.0 - bytes as f64 / bytes_f32 as f64;
    println!("{MODEL}: {:.2} % of the expert bytes saved", 100.0 * saved);
    Ok(experts)
}

/// The median time of a pass, ms.
fn torch(python: &str) -> Result<f64, Failure> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/torch_dense.py");
    let output = Command::new(python).args([script, &PASSES.to_string()]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
