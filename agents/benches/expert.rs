//! The experts of a layer beside what the machine can do. Run with `cargo bench -p agents --bench
//! expert [-- FILTER]`; on a shared machine, build with `--no-run` and give the binary a priority.
//!
//! Ceilings are measured beside the cases: the rate at which all threads read memory, before every
//! case, and the rate of 8-bit products of registers. A figure is the median of the repeats; the
//! cases of a section alternate, so that a slow spell hits them alike.

#![allow(clippy::print_stdout, reason = "the table")]

mod ceilings;

use agents::expert::grouped::{self, ExpertBatch};
use agents::expert::{BitWidth, Expert, ExpertShape, Group};
use agents::ids::TokenId;
use agents::rng::stream;
use ceilings::{giga_macs_per_s, read_gb_per_s, seconds};
use rand::RngExt as _;

/// Repeats of each case.
const REPEATS: usize = 15;

/// Bits and length of groups of gate, up and down.
type Formats = [(BitWidth, usize); 3];

/// What the models of a section are made of: all experts alike, and then all of these in turn.
const MODELS: [(&str, Formats); 6] = [
    ("2:64", [(BitWidth::Two, 64); 3]),
    ("2:256", [(BitWidth::Two, 256); 3]),
    ("3:256", [(BitWidth::Three, 256); 3]),
    ("4:64", [(BitWidth::Four, 64); 3]),
    ("8:64", [(BitWidth::Eight, 64); 3]),
    ("2:256 3:256 4:64", [(BitWidth::Two, 256), (BitWidth::Three, 256), (BitWidth::Four, 64)]),
];

/// Tokens of an expert.
const TOKENS: [usize; 5] = [1, 2, 4, 32, 128];

const LARGE: ExpertShape = ExpertShape { width: 2048, hidden: 1024 };
const SHIPPED: [ExpertShape; 2] =
    [ExpertShape { width: 256, hidden: 64 }, ExpertShape { width: 256, hidden: 640 }];

fn main() {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    println!("instructions {}; formats are bits:group", grouped::instructions());
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| tables(threads, &filter));
    }
}

fn tables(threads: usize, filter: &str) {
    let memory = vec![1_u64; 1 << 25];
    let products = (0..REPEATS).map(|_| giga_macs_per_s(threads)).collect::<Vec<_>>();
    let peak = median(&products);
    println!("{threads} threads: {peak:.0} GMAC/s of 8-bit products of registers");
    for shape in [LARGE].into_iter().chain(SHIPPED) {
        for tokens in TOKENS {
            let what = if tokens < 32 { "decode" } else { "prefill" };
            let title = format!("{}x{} {what} {tokens}", shape.width, shape.hidden);
            if title.contains(filter) {
                section(&title, shape, tokens, (&memory, peak));
            }
        }
    }
}

/// The same routing to each of [`MODELS`], and to a model of all of their experts.
fn section(title: &str, shape: ExpertShape, tokens: usize, (memory, peak): (&[u64], f64)) {
    let experts = 64;
    let models = MODELS.map(|(_, formats)| vec![expert(shape, formats); experts]);
    let mixed = (0..experts).map(|e| models[e % MODELS.len()][e].clone()).collect();
    let models: Vec<Vec<Expert>> = models.into_iter().chain([mixed]).collect();
    let rows = (tokens * experts).div_ceil(8);
    let x = random("x", rows * shape.width);
    let mut out = vec![0.0; experts * tokens * shape.width];
    let mut rng = stream(3, "routing");
    let mut row = || TokenId::from_index(rng.random_range(0..rows));
    let routed: Vec<Vec<TokenId>> =
        (0..experts).map(|_| (0..tokens).map(|_| row()).collect()).collect();
    let mut reads = Vec::new();
    let mut times = vec![Vec::new(); models.len()];
    for _ in 0..=REPEATS {
        for (model, times) in models.iter().zip(&mut times) {
            reads.push(read_gb_per_s(memory));
            let batches = model.iter().zip(&routed);
            let batches: Vec<ExpertBatch<'_>> =
                batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
            // Small models stay in the cache, as they do in use: one run is too short to time.
            let runs = (LARGE.weights() / shape.weights() / tokens).clamp(1, 50);
            let run = || (0..runs).for_each(|_| grouped::forward(&batches, &x, &mut out));
            times.push(seconds(run) / runs as f64);
        }
    }
    let read = median(&reads);
    // The first round warms up.
    let times: Vec<f64> = times.iter().map(|times| median(&times[1..])).collect();
    let bytes = |model: &[Expert]| model.iter().map(|e| e.bytes() as f64).sum::<f64>();
    let macs = (experts * tokens * shape.weights()) as f64;
    println!("{title}: reads {read:.1} GB/s");
    for (i, name) in MODELS.map(|(name, _)| name).into_iter().chain(["all in turn"]).enumerate() {
        let (gb_per_s, gmac_per_s) = (bytes(&models[i]) / times[i] / 1e9, macs / times[i] / 1e9);
        let (of_read, of_peak) = (gb_per_s / read, gmac_per_s / peak);
        println!(
            "  {name:<16} {:>9.3} ms {gb_per_s:>6.1} GB/s {:>4.0} % of reads {gmac_per_s:>6.1} GMAC/s {:>3.0} % of products",
            times[i] * 1e3,
            100.0 * of_read,
            100.0 * of_peak,
        );
    }
    // Expert e of the mixed model costs its share of the uniform model of its formats.
    let share = |i: usize| {
        (i..experts).step_by(MODELS.len()).map(|e| models[i][e].bytes() as f64).sum::<f64>()
    };
    let mean: f64 = (0..MODELS.len()).map(|i| times[i] * share(i) / bytes(&models[i])).sum();
    let ratio = times[MODELS.len()] / mean;
    println!("  all in turn take {ratio:.3} of the byte-weighted mean of the others");
}

/// An expert of one group of codes again and again: what they are does not change the time.
fn expert(shape: ExpertShape, formats: Formats) -> Expert {
    let groups = formats.map(|(bits, group)| {
        let max_code = u8::try_from((1_u32 << bits.code_bits()) - 1).expect("at most 8 bits");
        Group::fit(&random("group", group), max_code)
    });
    Expert::from_groups(shape, formats, |part, _, _| groups[part])
}

fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(1, purpose);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
