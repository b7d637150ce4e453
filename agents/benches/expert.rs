//! Writes the part of docs/speed.md on experts: the experts of a layer beside what the machine can do.
//!
//! `cargo bench -p agents --bench expert [-- FILTER]`, of which FILTER is a part of a section's title.
//! On a shared machine, build with `--no-run` and give the binary the machine to itself.

#![allow(clippy::print_stdout, reason = "the page")]

mod ceilings;
#[allow(dead_code, reason = "one figure is wanted")]
#[path = "../../benches/shared/figures.rs"]
mod figures;

use agents::expert::grouped::{self, ExpertBatch};
use agents::expert::{BitWidth, Expert, ExpertShape, Group};
use agents::ids::TokenId;
use agents::rng::stream;
use ceilings::{giga_macs_per_s, read_gb_per_s, seconds};
use figures::median;
use rand::RngExt as _;

/// Repeats of each case, of which the first warms up.
const REPEATS: usize = 15;

/// A case takes at least about this long, in as many runs as that takes.
const CASE_SECONDS: f64 = 2e-3;

const THREADS: usize = 2;
const EXPERTS: usize = 64;

/// Least share of the read rate that decoding should reach.
const DECODE_LIMIT: f64 = 0.7;
/// Least share of the products' peak that prefill should reach.
const PREFILL_LIMIT: f64 = 0.5;
/// Most that mixed widths should take of the byte-weighted mean.
const MIXED_LIMIT: f64 = 1.05;
/// From so many tokens of an expert on it is prefill.
const PREFILL_TOKENS: usize = 32;

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

/// Far above any last cache, and those of the shipped models.
const SHAPES: [ExpertShape; 3] = [
    ExpertShape { width: 2048, hidden: 1024 },
    ExpertShape { width: 256, hidden: 640 },
    ExpertShape { width: 256, hidden: 64 },
];

fn main() {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    println!("{}", include_str!("expert.md").trim_end());
    println!("\nInstructions {}, {THREADS} threads, {}.\n", grouped::instructions(), processor());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
    pool.expect("threads").install(|| tables(&filter));
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name).to_owned()
}

/// Worst of the cases that a bar is for, and which it was.
struct Bar {
    name: String,
    limit: f64,
    /// Whether values should lie below the limit.
    below: bool,
    worst: Option<(f64, String)>,
}

impl Bar {
    fn new(name: String, limit: f64, below: bool) -> Self {
        Self { name, limit, below, worst: None }
    }

    fn take(&mut self, value: f64, case: String) {
        let is_worse = |(worst, _): &(f64, String)| (value > *worst) == self.below;
        if self.worst.as_ref().is_none_or(is_worse) {
            self.worst = Some((value, case));
        }
    }

    fn print(&self) {
        let Some((worst, case)) = &self.worst else { return };
        let (bound, out) = if self.below { ("at most", "above") } else { ("at least", "below") };
        let is_within = (*worst <= self.limit) == self.below || *worst == self.limit;
        let verdict = if is_within { "within" } else { out };
        println!("| {} | {bound} {:.2} | {worst:.2} | {case} | {verdict} |", self.name, self.limit);
    }
}

fn tables(filter: &str) {
    let memory = vec![1_u64; 1 << 25];
    let mut bars = Vec::new();
    for shape in SHAPES {
        let name = format!("{} × {}", shape.width, shape.hidden);
        let mut own = [
            Bar::new(format!("{name}, decoding, share of reads"), DECODE_LIMIT, false),
            Bar::new(format!("{name}, prefill, share of products"), PREFILL_LIMIT, false),
            Bar::new(format!("{name}, all widths in turn over their mean"), MIXED_LIMIT, true),
        ];
        for tokens in TOKENS {
            let title = format!("{name}, {tokens} tokens an expert");
            if title.contains(filter) {
                section(&title, shape, tokens, &memory, &mut own);
            }
        }
        bars.extend(own);
    }
    println!("\n### Bars of experts\n");
    println!("| bar | limit | worst | where | |");
    println!("|---|---|---:|---|---|");
    bars.iter().for_each(Bar::print);
}

/// Measured once a repeat.
#[derive(Default)]
struct Case {
    seconds: Vec<f64>,
    of_reads: Vec<f64>,
    /// Of the rate at which as many bytes are read again and again.
    of_rereads: Vec<f64>,
    of_products: Vec<f64>,
}

/// The same routing to each of [`MODELS`], and to a model of all of their experts.
fn section(title: &str, shape: ExpertShape, tokens: usize, memory: &[u64], bars: &mut [Bar; 3]) {
    let models = MODELS.map(|(_, formats)| vec![expert(shape, formats); EXPERTS]);
    let mixed = (0..EXPERTS).map(|e| models[e % MODELS.len()][e].clone()).collect();
    let models: Vec<Vec<Expert>> = models.into_iter().chain([mixed]).collect();
    let bytes = |model: &[Expert]| model.iter().map(|e| e.bytes() as f64).sum::<f64>();
    let macs = (EXPERTS * tokens * shape.weights()) as f64;
    let (cases, reads, products) = measure(&models, shape, tokens, memory);
    println!("\n### {title}\n");
    println!("Reads {:.1} GB/s, products {:.0} GMAC/s.\n", median(&reads), median(&products));
    println!("| bits:group | ms | GB/s | of reads | of rereads | GMAC/s | of products |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (i, name) in MODELS.map(|(name, _)| name).into_iter().chain(["all in turn"]).enumerate() {
        let seconds = median(&cases[i].seconds);
        let (of_reads, of_products) = (median(&cases[i].of_reads), median(&cases[i].of_products));
        println!(
            "| {name} | {:.3} | {:.1} | {:.0} % | {:.0} % | {:.0} | {:.0} % |",
            seconds * 1e3,
            bytes(&models[i]) / seconds / 1e9,
            100.0 * of_reads,
            100.0 * median(&cases[i].of_rereads),
            macs / seconds / 1e9,
            100.0 * of_products,
        );
        let case = format!("{name}, {tokens} tokens");
        if tokens < PREFILL_TOKENS {
            bars[0].take(of_reads, case);
        } else {
            bars[1].take(of_products, case);
        }
    }
    // Expert e of the mixed model costs its share of the uniform model of its formats.
    let share = |i: usize| {
        let own = (i..EXPERTS).step_by(MODELS.len()).map(|e| models[i][e].bytes() as f64);
        own.sum::<f64>() / bytes(&models[i])
    };
    let ratios: Vec<f64> = (0..cases[0].seconds.len())
        .map(|repeat| {
            let mean = (0..MODELS.len()).map(|i| cases[i].seconds[repeat] * share(i)).sum::<f64>();
            cases[MODELS.len()].seconds[repeat] / mean
        })
        .collect();
    let ratio = median(&ratios);
    println!("\nAll in turn take {ratio:.3} of the byte-weighted mean of the others.");
    bars[2].take(ratio, format!("{tokens} tokens"));
}

/// Each repeat measures every case, and before and after it the ceilings: shares are of their mean.
fn measure(
    models: &[Vec<Expert>],
    shape: ExpertShape,
    tokens: usize,
    memory: &[u64],
) -> (Vec<Case>, Vec<f64>, Vec<f64>) {
    let rows = (tokens * EXPERTS).div_ceil(8);
    let x = random("x", rows * shape.width);
    let mut out = vec![0.0; EXPERTS * tokens * shape.width];
    let mut rng = stream(3, "routing");
    let mut row = || TokenId::from_index(rng.random_range(0..rows));
    let routed: Vec<Vec<TokenId>> =
        (0..EXPERTS).map(|_| (0..tokens).map(|_| row()).collect()).collect();
    let macs = (EXPERTS * tokens * shape.weights()) as f64;
    let mut cases: Vec<Case> = models.iter().map(|_| Case::default()).collect();
    let (mut reads, mut products) = (Vec::new(), Vec::new());
    let mut ceilings = || {
        reads.push(read_gb_per_s(memory, 1));
        products.push(giga_macs_per_s(THREADS));
        [reads[reads.len() - 1], products[products.len() - 1]]
    };
    for repeat in 0..REPEATS {
        let mut before = ceilings();
        for (model, case) in models.iter().zip(&mut cases) {
            let batches = model.iter().zip(&routed);
            let batches: Vec<ExpertBatch<'_>> =
                batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
            let mut run = || grouped::forward(&batches, &x, &mut out);
            // Small models are in a cache when they are used again; the reads have emptied it.
            let once = seconds(&mut run);
            let runs = (CASE_SECONDS / once).ceil().clamp(1.0, 200.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 200")]
            let time = seconds(|| (0..runs as usize).for_each(|_| run())) / runs;
            let bytes: f64 = model.iter().map(|e| e.bytes() as f64).sum();
            let rereads = reread_gb_per_s(memory, bytes);
            let after = ceilings();
            if repeat > 0 {
                let mean = |which: usize| f64::midpoint(before[which], after[which]);
                case.seconds.push(time);
                case.of_reads.push(bytes / time / 1e9 / mean(0));
                case.of_rereads.push(bytes / time / 1e9 / rereads);
                case.of_products.push(macs / time / 1e9 / mean(1));
            }
            before = after;
        }
    }
    (cases, reads, products)
}

/// The rate at which so many bytes, or all of `memory` where they are more, are read for about as long as a case.
fn reread_gb_per_s(memory: &[u64], bytes: f64) -> f64 {
    /// Bytes that are read in about that time from a near cache.
    const BYTES: usize = 1 << 28;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a model")]
    let values = (bytes as usize / 8).min(memory.len());
    read_gb_per_s(&memory[..values], (BYTES / 8 / values).max(1))
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
