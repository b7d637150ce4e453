//! All experts that a node runs for one layer, as one list of tasks.
//!
//! A task is a block of rows of one expert's matrices over a chunk of its tokens. Threads take
//! tasks from the list, those of most bytes first, whatever their widths; they wait for each other once, between
//! the gate and up rows and the down rows. While a tile is multiplied by many tokens, the next is
//! fetched. A chunk's tokens pass over a tile of gate and its tile of up,
//! which need not have one width, while these are in the first or second cache. Every value is computed
//! by the same operations in the same order wherever the cuts are, so a row's bits depend on nothing but
//! the row and its expert.

use super::activations::{Grouping, Panel, PanelGroups, Panels, Room, Rows, RowsPart, panels};
use super::kernel::{Kernels, NO_SUMS, PANEL_TOKENS, Sums};
use super::matrix::{LANES, Matrix, TILE_ROWS};
use super::tasks::Threads;
use super::{Expert, MAX_GROUP, Weights};
use crate::ids::TokenId;
use std::cell::Cell;
use std::ops::RangeInclusive;

/// Tokens of one chunk, at most: a multiple of the largest panel and of a block of f32 rows.
const CHUNK_TOKENS: usize = 128;

/// Weights of a task: many tasks for a thread, each long beside taking it from the list.
const TASK_WEIGHTS: RangeInclusive<usize> = 1 << 17..=1 << 20;

/// Tasks that each thread should have at least, where they do not get smaller than [`TASK_WEIGHTS`].
const TASKS_PER_THREAD: usize = 16;

/// Tokens from which on a tile is multiplied for so long that the next one is fetched meanwhile. With
/// fewer, memory is what is waited for.
const FETCHED_TOKENS: usize = 8;

/// Most bytes of [`Room`] that a thread keeps for its next call.
const KEPT_BYTES: usize = 1 << 26;

thread_local! {
    /// Memory is asked of the system once, not in every call.
    static ROOM: Cell<Room> = Cell::default();
}

/// An expert with the tokens that go to it.
#[derive(Clone, Copy, Debug)]
pub struct ExpertBatch<'a> {
    /// The expert.
    pub expert: &'a Expert,
    /// Its tokens: rows of `x`.
    pub tokens: &'a [TokenId],
}

/// Runs the rows of `x`, `[rows, width]`, that each batch names through its expert. `out` takes the
/// outputs, `[tokens of all batches, width]`, in the order of the batches and of their tokens.
///
/// Runs on the current rayon pool. A token's output has the bits that [`Expert::forward`] gives it.
///
/// # Panics
/// When the experts differ in width, a token is no row of `x`, or a length does not match.
pub fn forward(batches: &[ExpertBatch<'_>], x: &[f32], out: &mut [f32]) {
    run(Kernels::best(), batches, x, out, Threads::Pool);
}

/// The instructions that quantized experts run in: `portable`, `avx2` or `avx512-vnni`.
#[must_use]
pub fn instructions() -> &'static str {
    Kernels::best().name()
}

/// A chunk of a batch of a quantized expert.
struct Chunk<'a> {
    parts: &'a [Matrix; 3],
    tokens: &'a [TokenId],
    input: Panels<'a>,
    /// What the up matrix reads where its groups have another length than gate's.
    up_input: Option<Panels<'a>>,
    hidden: Panels<'a>,
    out: &'a mut [f32],
}

/// A chunk of a batch of an f32 expert.
struct FullChunk<'a> {
    expert: &'a Expert,
    tokens: &'a [TokenId],
    out: &'a mut [f32],
}

pub(super) fn run(
    kernels: &Kernels,
    batches: &[ExpertBatch<'_>],
    x: &[f32],
    out: &mut [f32],
    threads: Threads,
) {
    let Some(width) = batches.first().map(|batch| batch.expert.shape.width) else {
        return assert!(out.is_empty(), "no batch has an output");
    };
    assert!(x.len().is_multiple_of(width), "x has whole rows");
    let mut room = ROOM.take();
    run_in(&mut room, kernels, (batches, width), (x, out), threads);
    if room.bytes() <= KEPT_BYTES {
        ROOM.set(room);
    }
}

fn run_in(
    room: &mut Room,
    kernels: &Kernels,
    (batches, width): (&[ExpertBatch<'_>], usize),
    (x, out): (&[f32], &mut [f32]),
    threads: Threads,
) {
    let (mut chunks, full) = chunks(batches, width, out, room);
    let rows = quantized_rows(kernels, &chunks, x, threads);
    let gather = chunks.iter_mut().map(|chunk| (chunk.tokens.len() * width, chunk)).collect();
    threads.each(
        gather,
        || (),
        |(), chunk| {
            for input in std::iter::once(&mut chunk.input).chain(&mut chunk.up_input) {
                let rows = rows.iter().find(|rows| rows.grouping() == input.grouping());
                input.gather(rows.expect("rows have every grouping"), chunk.tokens);
            }
        },
    );
    let all_weights: usize = chunks.iter().map(|chunk| chunk.parts[2].layout.weights()).sum();
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let of_task = (all_weights / tasks).clamp(*TASK_WEIGHTS.start(), *TASK_WEIGHTS.end());
    let gate_up = chunks.iter_mut().flat_map(|chunk| gate_up_tasks(chunk, of_task));
    let full = full.into_iter().map(|chunk| (full_cost(&chunk), First::Full(chunk)));
    threads.each(gate_up.chain(full).collect(), Vec::new, |values, task| match task {
        First::GateUp(task) => task.run(kernels, values),
        First::Full(chunk) => run_full(chunk, x),
    });
    let down = chunks.iter_mut().flat_map(|chunk| down_tasks(chunk, of_task));
    threads.each(down.collect(), || (), |(), task| task.run(kernels));
}

/// Cuts the batches into chunks, which take their parts of `out`: of quantized experts and of f32.
fn chunks<'a>(
    batches: &[ExpertBatch<'a>],
    width: usize,
    mut out: &'a mut [f32],
    room: &'a mut Room,
) -> (Vec<Chunk<'a>>, Vec<FullChunk<'a>>) {
    let (mut quantized, mut full) = (Vec::new(), Vec::new());
    let quantized_parts = batches.iter().filter_map(|batch| match &batch.expert.weights {
        Weights::Quantized(parts) => Some((&**parts, batch.tokens.len())),
        Weights::Full(_) => None,
    });
    let mut rest = room.reserve(quantized_parts.flat_map(|(parts, tokens)| {
        let [gate, up, down] = groupings(parts);
        let up = (up != gate).then_some(up);
        [Some(gate), up, Some(down)].into_iter().flatten().map(move |part| (part, tokens))
    }));
    for ExpertBatch { expert, tokens } in batches {
        assert_eq!(expert.shape.width, width, "the experts of a layer have one width");
        for tokens in tokens.chunks(CHUNK_TOKENS) {
            assert!(out.len() >= tokens.len() * width, "out has a row for every token of a batch");
            let (part, after) = out.split_at_mut(tokens.len() * width);
            out = after;
            let Weights::Quantized(parts) = &expert.weights else {
                full.push(FullChunk { expert, tokens, out: part });
                continue;
            };
            let [gate, up, down] = groupings(parts);
            let mut panels = |grouping| Panels::new(grouping, tokens.len(), &mut rest);
            quantized.push(Chunk {
                parts,
                tokens,
                input: panels(gate),
                up_input: (up != gate).then(|| panels(up)),
                hidden: panels(down),
                out: part,
            });
        }
    }
    assert!(out.is_empty(), "out has no row besides");
    (quantized, full)
}

/// How gate, up and down group their inputs.
fn groupings(parts: &[Matrix; 3]) -> [Grouping; 3] {
    parts.each_ref().map(|part| Grouping { columns: part.layout.columns, group: part.layout.group })
}

/// The rows of `x`, quantized once for each grouping that a chunk has.
fn quantized_rows(
    kernels: &Kernels,
    chunks: &[Chunk<'_>],
    x: &[f32],
    threads: Threads,
) -> Vec<Rows> {
    let mut all: Vec<Rows> = Vec::new();
    let inputs = |chunk: &'_ Chunk<'_>| {
        [Some(chunk.input.grouping()), chunk.up_input.as_ref().map(Panels::grouping)]
    };
    for grouping in chunks.iter().flat_map(inputs).flatten() {
        if all.iter().all(|rows| rows.grouping() != grouping) {
            let mut rows = Rows::new(grouping, x.len() / grouping.columns);
            let parts = rows.parts(x, CHUNK_TOKENS).map(|part: RowsPart<'_>| (part.0.len(), part));
            threads.each(parts.collect(), || (), |(), part| Rows::fill(kernels, grouping, part));
            all.push(rows);
        }
    }
    all
}

/// A task before the hidden values are complete.
enum First<'a> {
    GateUp(GateUp<'a>),
    Full(FullChunk<'a>),
}

/// Whole groups of hidden rows of a chunk.
struct GateUp<'a> {
    gate: &'a Matrix,
    up: &'a Matrix,
    inputs: [&'a Panels<'a>; 2],
    first_tile: usize,
    grouping: Grouping,
    hidden: PanelGroups<'a>,
}

/// Rows of the down matrix for a chunk.
struct Down<'a> {
    down: &'a Matrix,
    hidden: &'a Panels<'a>,
    first_tile: usize,
    /// The rows' outputs by token.
    out: Vec<&'a mut [f32]>,
}

/// Rows of a task of about `weights`, over matrices with `columns` weights a row, in whole `step`s.
fn task_rows(weights: usize, columns: usize, step: usize) -> usize {
    (weights / columns).max(1).next_multiple_of(step)
}

/// Bytes of `rows` rows times the panels that read them.
fn cost(matrix: &Matrix, rows: usize, tokens: usize) -> usize {
    let layout = matrix.layout;
    layout.bytes() * rows.min(layout.rows) / layout.rows * tokens.div_ceil(PANEL_TOKENS)
}

fn full_cost(chunk: &FullChunk<'_>) -> usize {
    4 * chunk.expert.shape.weights() * chunk.tokens.len()
}

fn gate_up_tasks<'c>(
    chunk: &'c mut Chunk<'_>,
    weights: usize,
) -> impl Iterator<Item = (usize, First<'c>)> {
    let Chunk { parts: [gate, up, _], tokens, input, up_input, hidden, .. } = chunk;
    let rows = task_rows(weights, 2 * gate.layout.columns, MAX_GROUP);
    let cost = cost(gate, rows, tokens.len()) + cost(up, rows, tokens.len());
    let inputs = [&*input, up_input.as_ref().unwrap_or(input)];
    let grouping = hidden.grouping();
    hidden.parts(rows / grouping.group).enumerate().map(move |(i, hidden)| {
        let first_tile = i * rows / TILE_ROWS;
        (cost, First::GateUp(GateUp { gate, up, inputs, first_tile, grouping, hidden }))
    })
}

fn down_tasks<'c>(chunk: &'c mut Chunk<'_>, weights: usize) -> Vec<(usize, Down<'c>)> {
    let Chunk { parts: [.., down], tokens, hidden, out, .. } = chunk;
    let rows = task_rows(weights, down.layout.columns, TILE_ROWS);
    let cost = cost(down, rows, tokens.len());
    let first_tiles = (0..down.layout.tiles()).step_by(rows / TILE_ROWS);
    let task = |first_tile| {
        (cost, Down { down, hidden, first_tile, out: Vec::with_capacity(tokens.len()) })
    };
    let mut tasks: Vec<(usize, Down<'c>)> = first_tiles.map(task).collect();
    for row in out.chunks_exact_mut(down.layout.rows) {
        for ((_, task), part) in tasks.iter_mut().zip(row.chunks_mut(rows)) {
            task.out.push(part);
        }
    }
    tasks
}

impl GateUp<'_> {
    /// `values` is memory for hidden values.
    fn run(self, kernels: &Kernels, values: &mut Vec<f32>) {
        let rows = self.gate.layout.rows;
        let tokens = self.hidden.tokens();
        let (mut gate, mut up) = (NO_SUMS, NO_SUMS);
        // One group of every token: few enough to stay in the first cache with few tokens.
        let stride = self.grouping.group;
        values.resize(tokens * stride, 0.0);
        let mut tile = self.first_tile;
        for mut group in self.hidden.each(self.grouping) {
            for lane in (0..group.columns()).step_by(TILE_ROWS) {
                for panel in panels(tokens) {
                    let [gate_input, up_input] = self.inputs.map(|input| input.panel(panel));
                    product(kernels, (self.gate, tile), (gate_input, tokens), &mut gate);
                    product(kernels, (self.up, tile), (up_input, tokens), &mut up);
                    let values = &mut values[panel.0 * stride + lane..];
                    kernels.swiglu([&gate, &up], panel.1, values, stride);
                }
                tile += 1;
            }
            // Rows of padding may hold anything in an encoding that another program made.
            let columns = group.columns();
            let padding = (TILE_ROWS * tile).saturating_sub(rows);
            if padding > 0 {
                for values in values.chunks_exact_mut(stride) {
                    values[columns - padding..columns].fill(0.0);
                }
            }
            group.fill(kernels, values, stride);
        }
    }
}

impl Down<'_> {
    fn run(mut self, kernels: &Kernels) {
        let rows = self.out[0].len();
        let mut sums = NO_SUMS;
        for from in (0..rows).step_by(TILE_ROWS) {
            let tile = self.first_tile + from / TILE_ROWS;
            for panel in panels(self.out.len()) {
                let input = (self.hidden.panel(panel), self.out.len());
                product(kernels, (self.down, tile), input, &mut sums);
                let [low, high] = &sums;
                let out = &mut self.out[panel.0..panel.0 + panel.1];
                for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
                    let out = &mut out[from..rows.min(from + TILE_ROWS)];
                    if let [first, second] = out.as_chunks_mut::<LANES>().0 {
                        (*first, *second) = (*low, *high);
                        continue;
                    }
                    let (first, second) = out.split_at_mut(LANES.min(out.len()));
                    first.copy_from_slice(&low[..first.len()]);
                    second.copy_from_slice(&high[..second.len()]);
                }
            }
        }
    }
}

/// The product of a tile and a panel of so many `tokens`. Each panel asks for its part of the next tile,
/// so that memory is read while panels are multiplied.
fn product(
    kernels: &Kernels,
    (matrix, tile): (&Matrix, usize),
    (panel, tokens): (Panel<'_>, usize),
    sums: &mut Sums,
) {
    let next = if tokens < FETCHED_TOKENS { &[] } else { matrix.tile_if_any(tile + 1) };
    let part = next.len().div_ceil(tokens.div_ceil(PANEL_TOKENS)).max(1);
    let next = next.chunks(part).nth(panel.first() / PANEL_TOKENS).unwrap_or_default();
    kernels.product(matrix.layout.bits, (matrix.tile(tile), next), panel, sums);
}

fn run_full(FullChunk { expert, tokens, out }: FullChunk<'_>, x: &[f32]) {
    let width = expert.shape.width;
    let mut rows = Vec::with_capacity(out.len());
    for token in tokens {
        rows.extend_from_slice(&x[token.index() * width..][..width]);
    }
    expert.forward_full(&rows, out);
}
