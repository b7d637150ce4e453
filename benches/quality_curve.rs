//! Writes docs/quantization-curve.md and its picture: what a byte budget costs in loss, by allocator.
//!
//! `cargo bench --bench quality_curve > docs/quantization-curve.md`
//!
//! Costs are measured once a checkpoint. Allocators that choose the same widths share one quantized model.
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod shared;

use agents::expert::BitWidth;
use agents::game::Registries;
use agents::precision::Budget;
use agents::quantize::Format;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::eval::{Agreement, Scored, WINDOW_TOKENS, evaluate};
use nashflock::model::experts::LocalExperts;
use nashflock::model::quantize::{Allocated, Measured, Rounding};
use nashflock::model::tokenizer::{Document, Tokenizer, read_text};
use plotters::prelude::*;
use shared::Failure;
use std::collections::BTreeMap;
use std::iter::once;
use std::path::{Path, PathBuf};

/// Windows of the training text that costs are measured and weights rounded on.
const CALIBRATION_WINDOWS: usize = 128;
/// Windows of the held-out text that are scored, from its beginning.
const SCORED_WINDOWS: usize = 128;
/// Those of `quantize`.
const FORMATS: [Format; 4] = [
    Format { bits: 2, group: 256 },
    Format { bits: 3, group: 256 },
    Format { bits: 4, group: 64 },
    Format { bits: 8, group: 64 },
];
/// Of these, what every matrix may have: their sizes are budgets for all allocators.
const UNIFORM: [usize; 3] = [0, 1, 2];
/// A budget between them.
const SAVINGS: [&str; 1] = ["88%"];
const CHECKPOINTS: [&str; 2] = ["books-moe-8e2k", "books-moe-64e8k"];
const ALLOCATORS: [&str; 4] = ["exact", "hull", "flock", "local_search"];
const NEAREST: &str = "exact, nearest";
/// Later lines hide earlier ones.
const COLOURS: [(&str, RGBColor); 6] = [
    (NEAREST, RGBColor(180, 40, 60)),
    ("uniform", RGBColor(31, 41, 55)),
    ("local_search", RGBColor(30, 130, 90)),
    ("flock", RGBColor(194, 87, 12)),
    ("hull", RGBColor(138, 145, 156)),
    ("exact", RGBColor(31, 95, 191)),
];

/// What the picture shows at its lower edge, and all below.
const LEAST_NATS: f64 = 3e-4;

/// One quantized model, scored.
struct Point {
    budget: String,
    allocator: String,
    rounding: Rounding,
    bytes: u64,
    expected: f64,
    gap: Option<f64>,
    score: Agreement,
}

impl Point {
    /// The line of the picture that it is on.
    fn line(&self) -> &str {
        match self.rounding {
            Rounding::Nearest => NEAREST,
            _ => self.allocator.split(':').next().unwrap_or(&self.allocator),
        }
    }
}

fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = ["train.txt", "valid.txt"].map(|name| root.join("../shared/data/books").join(name));
    if let Some(missing) = texts.iter().find(|text| !text.exists()) {
        eprintln!("skipped: {} is not there", missing.display());
        return Ok(());
    }
    println!("{}", include_str!("quality_curve.md"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let mut curves = Vec::new();
    for name in CHECKPOINTS {
        let (bytes_f32, points) = pool.install(|| measure(root, name, &texts))?;
        table(name, bytes_f32, &points);
        curves.push((name, points));
    }
    draw(&root.join("docs/quantization-curve.svg"), &curves)
}

fn measure(
    root: &Path,
    name: &str,
    [train, valid]: &[PathBuf; 2],
) -> Result<(u64, Vec<Point>), Failure> {
    let folder = root.join("scenarios/models").join(name);
    let checkpoint = Checkpoint::open(&folder)?;
    let tokenizer = Tokenizer::open(&folder)?;
    let calibration = tokenizer.encode_document(&read_text(train)?)?.ids;
    let mut held_out = tokenizer.encode_document(&read_text(valid)?)?;
    held_out.ids.truncate(SCORED_WINDOWS * WINDOW_TOKENS + 1);
    eprintln!("{name}: measuring");
    let measured = Measured::new(&checkpoint, &FORMATS, &calibration, CALIBRATION_WINDOWS, None)?;
    let bytes_f32 = measured.bytes_f32();

    let widths = UNIFORM.map(|option| {
        let bits = FORMATS[option].bits;
        (format!("as `uniform:{bits}`"), measured.bytes_at(option), Some(format!("uniform:{bits}")))
    });
    let mut budgets: Vec<(String, u64, Option<String>)> = widths.into();
    for saving in SAVINGS {
        let bytes = saving.parse::<Budget>()?.bytes(checkpoint.weights_count());
        budgets.push((format!("{saving} saved"), bytes, None));
    }
    budgets.sort_by_key(|(_, bytes, _)| *bytes);

    let allocators = Registries::standard().allocators;
    let mut scored: BTreeMap<(Vec<usize>, bool), (u64, Agreement)> = BTreeMap::new();
    let mut points = Vec::new();
    for (budget, budget_bytes, uniform) in budgets {
        let by_gptq = ALLOCATORS.map(str::to_owned).into_iter().chain(uniform);
        let control = once(("exact".to_owned(), Rounding::Nearest));
        for (allocator, rounding) in by_gptq.map(|name| (name, Rounding::Gptq)).chain(control) {
            let allocated =
                measured.allocate(allocators.build(&allocator)?.as_ref(), budget_bytes)?;
            let Allocated { allocation, optimum } = allocated.clone();
            let key = (allocation.options.clone(), rounding == Rounding::Nearest);
            let (bytes, score) = match scored.get(&key) {
                Some(known) => *known,
                None => {
                    eprintln!("{name}: {allocator}, {rounding:?}, {budget}");
                    let model = measured.quantize(allocated, rounding)?;
                    let (trunk, experts) = model.decode(&checkpoint)?;
                    let score = agreement(&checkpoint, &held_out, (&trunk, &experts))?;
                    scored.insert(key, (model.bytes, score));
                    (model.bytes, score)
                }
            };
            let (expected, gap) = (allocation.cost, allocation.gap_to(&optimum));
            let budget = budget.clone();
            points.push(Point { budget, allocator, rounding, bytes, expected, gap, score });
        }
    }
    Ok((bytes_f32, points))
}

fn agreement(
    checkpoint: &Checkpoint,
    document: &Document,
    (trunk, experts): (&nashflock::model::trunk::Trunk, &LocalExperts),
) -> Result<Agreement, Failure> {
    let full_trunk = checkpoint.trunk()?;
    let full = LocalExperts::load(checkpoint, BitWidth::Full, 32)?;
    let mut own = |layer: usize, x: &[f32], l: &[f32]| experts.forward(layer, x, l);
    let mut other = |layer: usize, x: &[f32], l: &[f32]| full.forward(layer, x, l);
    let own = Scored { trunk, moe: &mut own };
    let other = Scored { trunk: &full_trunk, moe: &mut other };
    let evaluation = evaluate(own, Some(other), document, |_, _| ())?;
    Ok(evaluation.agreement.ok_or("a reference was given")?)
}

fn table(name: &str, bytes_f32: u64, points: &[Point]) {
    let loss_f32 = points.first().map_or(0.0, |point| point.score.loss_f32);
    println!("\n## {name}\n\n{bytes_f32} bytes and {loss_f32:.4} nats a token in f32.\n");
    println!(
        "| budget | allocator | bytes | saved | expected KL | above exact | measured KL | loss above f32, nats \
         | top-1 |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    // Allocators that chose the same widths share a row.
    let one_model = |a: &Point, b: &Point| {
        (&a.budget, a.rounding, a.bytes) == (&b.budget, b.rounding, b.bytes) && a.score == b.score
    };
    let mut rows: Vec<(Vec<String>, &Point)> = Vec::new();
    for point in points {
        let rounding = if point.rounding == Rounding::Nearest { ", nearest" } else { "" };
        let allocator = format!("`{}`{rounding}", point.allocator);
        match rows.iter_mut().find(|(_, row)| one_model(row, point)) {
            Some((names, _)) => names.push(allocator),
            None => rows.push((vec![allocator], point)),
        }
    }
    for (names, Point { budget, bytes, expected, gap, score, .. }) in rows {
        let saved = 100.0 * (1.0 - *bytes as f64 / bytes_f32 as f64);
        let gap = gap.map_or("–".to_owned(), |gap| format!("{:.2} %", 100.0 * gap));
        let half = score.loss_difference_half_width_95.unwrap_or(f64::NAN);
        println!(
            "| {budget} | {} | {bytes} | {saved:.2} % | {expected:.4} | {gap} | {:.4} | {:+.4} ± {half:.4} | \
             {:.2} % |",
            names.join(", "),
            score.kl_to_f32,
            score.loss_difference,
            100.0 * score.top1_agreement,
        );
    }
}

/// Loss above f32 over bytes, one panel a checkpoint, with the 95 % intervals.
fn draw(path: &Path, curves: &[(&str, Vec<Point>)]) -> Result<(), Failure> {
    let area = SVGBackend::new(path, (900, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, (name, points)) in area.split_evenly((1, curves.len())).iter().zip(curves) {
        let half = |point: &Point| point.score.loss_difference_half_width_95.unwrap_or(0.0);
        let nats = |value: f64| value.max(LEAST_NATS);
        let high = |point: &Point| nats(point.score.loss_difference + half(point));
        let low = |point: &Point| nats(point.score.loss_difference - half(point));
        let megabytes = |point: &Point| point.bytes as f64 / 1e6;
        let most = |value: &dyn Fn(&Point) -> f64| points.iter().map(value).fold(0.0, f64::max);
        let least = points.iter().map(megabytes).fold(f64::INFINITY, f64::min);
        let x = 0.95 * least..1.05 * most(&megabytes);
        let y = (LEAST_NATS..1.2 * most(&high)).log_scale();
        let mut chart = ChartBuilder::on(panel)
            .margin(10)
            .caption(*name, ("sans-serif", 16))
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        let axes = ["megabytes of the whole model", "loss above f32, nats a token"];
        chart.configure_mesh().x_desc(axes[0]).y_desc(axes[1]).light_line_style(WHITE).draw()?;
        for (allocator, colour) in COLOURS {
            let is_own = |point: &&Point| point.line() == allocator;
            let mut own: Vec<&Point> = points.iter().filter(is_own).collect();
            own.sort_by_key(|point| point.bytes);
            let at = |point: &&Point| (megabytes(point), nats(point.score.loss_difference));
            let line = LineSeries::new(own.iter().map(at), colour.stroke_width(2));
            chart.draw_series(line)?.label(allocator).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
            chart.draw_series(own.iter().map(|point| {
                let x = megabytes(point);
                PathElement::new([(x, low(point)), (x, high(point))], colour)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
    }
    area.present()?;
    Ok(())
}
