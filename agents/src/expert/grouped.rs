//! All experts that a node runs for one layer, as one list of tasks.
//!
//! A task is a block of rows of one expert's matrices over a chunk of its tokens. The pool takes
//! tasks one by one, the most bytes first, whatever their widths; it waits once, between the
//! gate and up rows and the down rows. A chunk's tokens pass over a tile of gate and its tile of up,
//! which need not have one width, while these are in the first or second cache. Every value is computed
//! by the same operations in the same order wherever the cuts are, so a row's bits depend on nothing but
//! the row and its expert.

use super::activations::{Grouping, Panel, PanelGroups, Panels, Rows, RowsPart, panels};
use super::kernel::{Kernels, NO_SUMS, PANEL_TOKENS, Sums};
use super::matrix::{LANES, Matrix, TILE_ROWS};
use super::{Expert, MAX_GROUP, Weights};
use crate::ids::TokenId;
use rayon::prelude::*;
use std::cmp::Reverse;

/// Tokens of one chunk, at most: a multiple of the largest panel and of a block of f32 rows.
const CHUNK_TOKENS: usize = 128;

/// Weights of a task, about: many tasks for a thread, each long beside taking it from the list.
const TASK_WEIGHTS: usize = 1 << 17;

/// Bytes times panels below which other threads are not worth waking.
const SERIAL_COST: usize = 1 << 16;

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

/// Who works on the tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    Caller,
    Pool,
}

impl Threads {
    /// Does all tasks, each with its cost.
    fn each<T: Send>(self, mut tasks: Vec<(usize, T)>, run: impl Fn(T) + Sync) {
        let cost: usize = tasks.iter().map(|(cost, _)| cost).sum();
        if self == Self::Caller || cost < SERIAL_COST || tasks.len() == 1 {
            return tasks.into_iter().for_each(|(_, task)| run(task));
        }
        tasks.sort_by_key(|(cost, _)| Reverse(*cost));
        tasks.into_iter().par_bridge().for_each(|(_, task)| run(task));
    }
}

/// A chunk of a batch of a quantized expert.
struct Chunk<'a> {
    parts: &'a [Matrix; 3],
    tokens: &'a [TokenId],
    input: Panels,
    /// What the up matrix reads where its groups have another length than gate's.
    up_input: Option<Panels>,
    hidden: Panels,
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
    let (mut chunks, full) = chunks(batches, width, out);
    let rows = quantized_rows(kernels, &chunks, x, threads);
    let gather = chunks.iter_mut().map(|chunk| (chunk.tokens.len() * width, chunk)).collect();
    threads.each(gather, |chunk| {
        for input in std::iter::once(&mut chunk.input).chain(&mut chunk.up_input) {
            let rows = rows.iter().find(|rows| rows.grouping() == input.grouping());
            input.gather(rows.expect("rows have every grouping"), chunk.tokens);
        }
    });
    let gate_up = chunks.iter_mut().flat_map(gate_up_tasks);
    let full = full.into_iter().map(|chunk| (full_cost(&chunk), First::Full(chunk)));
    threads.each(gate_up.chain(full).collect(), |task| match task {
        First::GateUp(task) => task.run(kernels),
        First::Full(chunk) => run_full(chunk, x),
    });
    threads.each(chunks.iter_mut().flat_map(down_tasks).collect(), |task| task.run(kernels));
}

/// Cuts the batches into chunks, which take their parts of `out`: of quantized experts and of f32.
fn chunks<'a>(
    batches: &[ExpertBatch<'a>],
    width: usize,
    mut out: &'a mut [f32],
) -> (Vec<Chunk<'a>>, Vec<FullChunk<'a>>) {
    let (mut quantized, mut full) = (Vec::new(), Vec::new());
    for ExpertBatch { expert, tokens } in batches {
        assert_eq!(expert.shape.width, width, "the experts of a layer have one width");
        for tokens in tokens.chunks(CHUNK_TOKENS) {
            assert!(out.len() >= tokens.len() * width, "out has a row for every token of a batch");
            let (part, rest) = out.split_at_mut(tokens.len() * width);
            out = rest;
            match &expert.weights {
                Weights::Full(_) => full.push(FullChunk { expert, tokens, out: part }),
                Weights::Quantized(parts) => {
                    let [gate, up, down] = (**parts).each_ref().map(|part| Grouping {
                        columns: part.layout.columns,
                        group: part.layout.group,
                    });
                    quantized.push(Chunk {
                        parts,
                        tokens,
                        input: Panels::new(gate, tokens.len()),
                        up_input: (up != gate).then(|| Panels::new(up, tokens.len())),
                        hidden: Panels::new(down, tokens.len()),
                        out: part,
                    });
                }
            }
        }
    }
    assert!(out.is_empty(), "out has no row besides");
    (quantized, full)
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
            threads.each(parts.collect(), |part| Rows::fill(kernels, grouping, part));
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
    inputs: [&'a Panels; 2],
    first_tile: usize,
    grouping: Grouping,
    hidden: PanelGroups<'a>,
}

/// Rows of the down matrix for a chunk.
struct Down<'a> {
    down: &'a Matrix,
    hidden: &'a Panels,
    first_tile: usize,
    /// The rows' outputs by token.
    out: Vec<&'a mut [f32]>,
}

/// Rows of a task over matrices with `columns` weights a row, in whole `step`s.
fn task_rows(columns: usize, step: usize) -> usize {
    (TASK_WEIGHTS / columns).max(1).next_multiple_of(step)
}

/// Bytes of `rows` rows times the panels that read them.
fn cost(matrix: &Matrix, rows: usize, tokens: usize) -> usize {
    let layout = matrix.layout;
    layout.bytes() * rows.min(layout.rows) / layout.rows * tokens.div_ceil(PANEL_TOKENS)
}

fn full_cost(chunk: &FullChunk<'_>) -> usize {
    4 * chunk.expert.shape.weights() * chunk.tokens.len()
}

fn gate_up_tasks<'c>(chunk: &'c mut Chunk<'_>) -> impl Iterator<Item = (usize, First<'c>)> {
    let Chunk { parts: [gate, up, _], tokens, input, up_input, hidden, .. } = chunk;
    let rows = task_rows(2 * gate.layout.columns, MAX_GROUP);
    let cost = cost(gate, rows, tokens.len()) + cost(up, rows, tokens.len());
    let inputs = [&*input, up_input.as_ref().unwrap_or(input)];
    let grouping = hidden.grouping();
    hidden.parts(rows / grouping.group).enumerate().map(move |(i, hidden)| {
        let first_tile = i * rows / TILE_ROWS;
        (cost, First::GateUp(GateUp { gate, up, inputs, first_tile, grouping, hidden }))
    })
}

fn down_tasks<'c>(chunk: &'c mut Chunk<'_>) -> Vec<(usize, Down<'c>)> {
    let Chunk { parts: [.., down], tokens, hidden, out, .. } = chunk;
    let rows = task_rows(down.layout.columns, TILE_ROWS);
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
    fn run(self, kernels: &Kernels) {
        let rows = self.gate.layout.rows;
        let tokens = self.hidden.tokens();
        let (mut gate, mut up) = (NO_SUMS, NO_SUMS);
        let mut values = vec![0.0; tokens * MAX_GROUP];
        let mut tile = self.first_tile;
        for mut group in self.hidden.each(self.grouping) {
            for lane in (0..group.columns()).step_by(TILE_ROWS) {
                for panel in panels(tokens) {
                    product(kernels, (self.gate, tile), self.inputs[0].panel(panel), &mut gate);
                    product(kernels, (self.up, tile), self.inputs[1].panel(panel), &mut up);
                    let values = &mut values[panel.0 * MAX_GROUP + lane..];
                    kernels.swiglu([&gate, &up], panel.1, values, MAX_GROUP);
                }
                tile += 1;
            }
            // Rows of padding may hold anything in an encoding that another program made.
            let columns = group.columns();
            let padding = (TILE_ROWS * tile).saturating_sub(rows);
            for values in values.chunks_exact_mut(MAX_GROUP) {
                values[columns - padding..columns].fill(0.0);
            }
            group.fill(kernels, &values, MAX_GROUP);
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
                product(kernels, (self.down, tile), self.hidden.panel(panel), &mut sums);
                let [low, high] = &sums;
                let out = &mut self.out[panel.0..panel.0 + panel.1];
                for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
                    let out = &mut out[from..rows.min(from + TILE_ROWS)];
                    let (first, second) = out.split_at_mut(LANES.min(out.len()));
                    first.copy_from_slice(&low[..first.len()]);
                    second.copy_from_slice(&high[..second.len()]);
                }
            }
        }
    }
}

fn product(kernels: &Kernels, (matrix, tile): (&Matrix, usize), panel: Panel<'_>, sums: &mut Sums) {
    kernels.product(matrix.layout.bits, matrix.tile(tile), panel, sums);
}

fn run_full(FullChunk { expert, tokens, out }: FullChunk<'_>, x: &[f32]) {
    let width = expert.shape.width;
    let mut rows = Vec::with_capacity(out.len());
    for token in tokens {
        rows.extend_from_slice(&x[token.index() * width..][..width]);
    }
    expert.forward_full(&rows, out);
}
