//! Latency, throughput, allocations and bytes of experts that a step touches.

use super::{DENSE, Failure, MOE};
use crate::pass::Forward;
use crate::shared::figures::{median, spread};
use agents::expert::{BitWidth, Expert};
use nashflock::measure::Clock;
use nashflock::model::checkpoint::{Checkpoint, ExpertWeights};
use nashflock::model::tokenizer::{Tokenizer, read_text};
use std::path::Path;
use std::sync::Arc;

const TEXT: &str = "scenarios/text/murmuration.txt";
const WINDOWS: usize = 8;
const WINDOW: usize = 32;
const ROUNDS: usize = 9;
const PASSES: usize = 100;
const WARM_UP: usize = 20;
const GROUP: usize = 64;

pub(crate) async fn time_and_memory() -> Result<(), Failure> {
    let dense = Checkpoint::open(Path::new(DENSE))?;
    let moe = Checkpoint::open(Path::new(MOE))?;
    let mut ids =
        Tokenizer::open(Path::new(MOE))?.encode_document(&read_text(Path::new(TEXT))?)?.ids;
    ids.truncate(WINDOWS * WINDOW);
    let dense = dense.trunk()?;
    let trunk = moe.trunk()?;
    let widths = [BitWidth::Full, BitWidth::Four];
    let mut passes = Vec::new();
    for bits in widths {
        let experts = quantized(&moe, bits)?;
        passes.push(Forward::new(&trunk, &experts, WINDOWS * WINDOW).await?);
    }
    let clock = Clock::start();
    let mut dense_ms = Vec::new();
    let mut moe_ms = vec![Vec::new(); widths.len()];
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        for pass in 0..WARM_UP + PASSES {
            let from = clock.now_ns();
            let mut pass_of = dense.begin(&ids, WINDOW)?;
            for layer in 0..dense.layers.len() {
                assert!(pass_of.up_to_router(layer).is_none(), "it has no router");
            }
            std::hint::black_box(pass_of.logits());
            if pass >= WARM_UP {
                times.push((clock.now_ns() - from) as f64 / 1e6);
            }
        }
        dense_ms.push(median(&times));
        for (forward, ms) in passes.iter_mut().zip(&mut moe_ms) {
            let mut times = Vec::new();
            for pass in 0..WARM_UP + PASSES {
                let (logits, parts) = forward.pass(&ids, WINDOW).await?;
                std::hint::black_box(logits);
                if pass >= WARM_UP {
                    times.push(parts.total() as f64 / 1e6);
                }
            }
            ms.push(median(&times));
        }
    }
    let tokens = (WINDOWS * WINDOW) as f64;
    println!(
        "\n## Time\n\n\
         The claims: 2.82 ms dense, 1390 ms with experts (495 times slower), 600 times faster with native code hoped for; reproduced\n\
         on two cores: 6.2 and 3927 ms. A batch of {WINDOWS} × {WINDOW} tokens, two threads; equilibrium routing and its certificates are part of\n\
         the pass. The dense baseline is the shipped dense model in f32, by the same attention and the same f32 products; PyTorch's time of\n\
         such a model is in [speed.md](speed.md). Medians of {ROUNDS} rounds that alternate, least to most.\n"
    );
    println!("| model | ms a batch | tokens a second | over dense |\n|---|---|---|---|");
    let row = |name: &str, ms: &[f64]| {
        let over: Vec<f64> = ms.iter().zip(&dense_ms).map(|(ms, dense)| ms / dense).collect();
        let rate = 1e3 * tokens / median(ms);
        println!("| {name} | {} | {rate:.0} | {} |", spread(ms, 3), spread(&over, 3));
    };
    row("dense, f32", &dense_ms);
    row("8 experts, f32", &moe_ms[0]);
    row("8 experts, 4 bits", &moe_ms[1]);
    memory(&mut passes, &ids).await
}

async fn memory(passes: &mut [Forward<'_>], ids: &[u32]) -> Result<(), Failure> {
    let _profiler = dhat::Profiler::builder().testing().build();
    println!(
        "\n## Memory at run time\n\n\
         The claim: \"cache-aware routing, 67 % less runtime memory\", where the cache was a dictionary in Python and the figure the\n\
         noise of the process. What a batch allocates after {WARM_UP} batches, counted by an instrumented allocator over {PASSES}\n\
         batches; what a whole run holds resident is in [speed.md](speed.md).\n"
    );
    println!(
        "| model | allocations a batch | MB allocated a batch | MB live at the peak above the model |\n|---|---|---|---|"
    );
    for (name, forward) in ["8 experts, f32", "8 experts, 4 bits"].iter().zip(passes) {
        for _ in 0..WARM_UP {
            std::hint::black_box(forward.pass(ids, WINDOW).await?);
        }
        let before = dhat::HeapStats::get();
        for _ in 0..PASSES {
            std::hint::black_box(forward.pass(ids, WINDOW).await?);
        }
        let after = dhat::HeapStats::get();
        let each = |of: u64| of as f64 / PASSES as f64;
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} |",
            each(after.total_blocks - before.total_blocks),
            each(after.total_bytes - before.total_bytes) / 1e6,
            after.max_bytes as f64 / 1e6,
        );
    }
    Ok(())
}

fn quantized(checkpoint: &Checkpoint, bits: BitWidth) -> Result<Vec<Vec<Arc<Expert>>>, Failure> {
    let moe = checkpoint.config.moe.ok_or("the model has no experts")?;
    let expert = |layer, id| -> Result<Arc<Expert>, Failure> {
        let ExpertWeights { shape, gate, up, down } = checkpoint.expert(layer, id)?;
        Ok(Arc::new(Expert::quantize(shape, &gate, &up, &down, bits, GROUP)))
    };
    let layer = |layer| (0..moe.experts).map(|id| expert(layer, id)).collect();
    (0..checkpoint.config.layers).map(layer).collect()
}
