//! All experts that a node runs for one layer, as one list of tasks.
//!
//! A task is a block of rows of one expert's matrices over a chunk of its tokens. Threads take
//! tasks from the list, those of most bytes first, whatever their widths; they wait for each other once, between
//! the gate and up rows and the down rows. A chunk whose rows are too few to be cut is one task from its
//! inputs to its outputs, which waits for nobody and finds what it made in the first cache. While a tile is multiplied by many tokens, the next is
//! fetched. A chunk's tokens pass over a tile of gate and its tile of up,
//! which need not have one width, while these are in the first or second cache. Every value is computed
//! by the same operations in the same order wherever the cuts are, so a row's bits depend on nothing but
//! the row and its expert.

use super::activations::{Grouping, Panel, PanelGroups, Panels, Room, Rows, RowsPart, panels};
use super::kernel::{Kernels, NO_SUMS, PANEL_TOKENS, Sums};
use super::matrix::{LANES, Lanes, Matrix, TILE_ROWS};
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

/// What quantizing a value takes, in bytes of weights that meet a panel.
const VALUE_COST: usize = 4;

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
    let all_weights: usize = chunks.iter().map(|chunk| chunk.parts[2].layout.weights()).sum();
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let of_task = (all_weights / tasks).clamp(*TASK_WEIGHTS.start(), *TASK_WEIGHTS.end());
    let mut cut = Vec::new();
    let mut whole = Vec::new();
    for chunk in &mut chunks {
        if chunk.is_one_task(of_task) { whole.push(chunk) } else { cut.push(chunk) }
    }
    let gather = cut.iter_mut().map(|chunk| (chunk.tokens.len() * width, chunk)).collect();
    threads.each(gather, || (), |(), chunk| chunk.gather(kernels, &rows));
    let gate_up = cut.iter_mut().flat_map(|chunk| gate_up_tasks(chunk, of_task));
    let gate_up = gate_up.map(|(cost, task)| (cost, First::GateUp(task)));
    let whole = whole.into_iter().map(|chunk| (chunk.cost(), First::Whole(chunk)));
    let full = full.into_iter().map(|chunk| (full_cost(&chunk), First::Full(chunk)));
    let first = gate_up.chain(whole).chain(full).collect();
    threads.each(first, Scratch::new, |scratch, task| match task {
        First::GateUp(task) => task.run(kernels, scratch),
        First::Whole(chunk) => chunk.run(kernels, (&rows, of_task), scratch),
        First::Full(chunk) => run_full(chunk, x),
    });
    let down = cut.into_iter().flat_map(|chunk| down_tasks(chunk, of_task));
    threads.each(down.collect(), || NO_SUMS, |sums, task| task.run(kernels, sums));
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
            let cost = |part: &RowsPart<'_>| VALUE_COST * part.0.len();
            let parts = rows.parts(x, CHUNK_TOKENS).map(|part| (cost(&part), part));
            threads.each(parts.collect(), || (), |(), part| Rows::fill(kernels, grouping, part));
            all.push(rows);
        }
    }
    all
}

/// What a thread writes its sums to, and hidden values before they have codes.
struct Scratch {
    gate: Sums,
    up: Sums,
    values: Vec<f32>,
}

impl Scratch {
    fn new() -> Self {
        Self { gate: NO_SUMS, up: NO_SUMS, values: Vec::new() }
    }
}

/// A task that does not need the hidden values of others.
enum First<'a, 'c> {
    GateUp(GateUp<'c>),
    Whole(&'c mut Chunk<'a>),
    Full(FullChunk<'a>),
}

impl Chunk<'_> {
    /// Whether neither stage would be cut into tasks of about `weights`.
    fn is_one_task(&self, weights: usize) -> bool {
        let [gate, _, down] = self.parts;
        gate_up_rows(gate, weights) >= gate.layout.rows
            && down_rows(down, weights) >= down.layout.rows
    }

    fn cost(&self) -> usize {
        let cost = |part: &Matrix| cost(part, part.layout.rows, self.tokens.len());
        self.parts.iter().map(cost).sum()
    }

    /// Takes the chunk's rows out of those of `x`.
    fn gather(&mut self, kernels: &Kernels, rows: &[Rows]) {
        for input in std::iter::once(&mut self.input).chain(&mut self.up_input) {
            let rows = rows.iter().find(|rows| rows.grouping() == input.grouping());
            input.gather(kernels, rows.expect("rows have every grouping"), self.tokens);
        }
    }

    /// All of a chunk that [`Self::is_one_task`].
    fn run(&mut self, kernels: &Kernels, (rows, weights): (&[Rows], usize), scratch: &mut Scratch) {
        self.gather(kernels, rows);
        gate_up_tasks(self, weights).for_each(|(_, task)| task.run(kernels, scratch));
        let Chunk { parts: [.., down], tokens, hidden, out, .. } = self;
        let rows = down.layout.rows;
        let input = (&*hidden, tokens.len());
        down_tiles(kernels, (down, 0, rows), input, &mut scratch.gate, |token, from, sums| {
            put(&mut out[token * rows..][from..rows.min(from + TILE_ROWS)], sums);
        });
    }
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

/// Hidden rows of a task of about `weights`.
fn gate_up_rows(gate: &Matrix, weights: usize) -> usize {
    task_rows(weights, 2 * gate.layout.columns, MAX_GROUP)
}

/// Output rows of a task of about `weights`.
fn down_rows(down: &Matrix, weights: usize) -> usize {
    task_rows(weights, down.layout.columns, TILE_ROWS)
}

fn gate_up_tasks<'c>(
    chunk: &'c mut Chunk<'_>,
    weights: usize,
) -> impl Iterator<Item = (usize, GateUp<'c>)> {
    let Chunk { parts: [gate, up, _], tokens, input, up_input, hidden, .. } = chunk;
    let rows = gate_up_rows(gate, weights);
    let cost = cost(gate, rows, tokens.len()) + cost(up, rows, tokens.len());
    let inputs = [&*input, up_input.as_ref().unwrap_or(input)];
    let grouping = hidden.grouping();
    hidden.parts(rows / grouping.group).enumerate().map(move |(i, hidden)| {
        let first_tile = i * rows / TILE_ROWS;
        (cost, GateUp { gate, up, inputs, first_tile, grouping, hidden })
    })
}

fn down_tasks<'c>(chunk: &'c mut Chunk<'_>, weights: usize) -> Vec<(usize, Down<'c>)> {
    let Chunk { parts: [.., down], tokens, hidden, out, .. } = chunk;
    let rows = down_rows(down, weights);
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
    fn run(self, kernels: &Kernels, scratch: &mut Scratch) {
        let Scratch { gate, up, values } = scratch;
        let rows = self.gate.layout.rows;
        let tokens = self.hidden.tokens();
        // One group of every token: few enough to stay in the first cache with few tokens.
        let stride = self.grouping.group;
        values.resize(tokens * stride, 0.0);
        let mut tile = self.first_tile;
        for mut group in self.hidden.each(self.grouping) {
            for lane in (0..group.columns()).step_by(TILE_ROWS) {
                for panel in panels(tokens) {
                    let [gate_input, up_input] = self.inputs.map(|input| input.panel(panel));
                    product(kernels, (self.gate, tile), (gate_input, tokens), gate);
                    product(kernels, (self.up, tile), (up_input, tokens), up);
                    let values = &mut values[panel.0 * stride + lane..];
                    kernels.swiglu([&*gate, &*up], panel.1, values, stride);
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
    fn run(self, kernels: &Kernels, sums: &mut Sums) {
        let Down { down, hidden, first_tile, mut out } = self;
        let (rows, input) = (out[0].len(), (hidden, out.len()));
        down_tiles(kernels, (down, first_tile, rows), input, sums, |token, from, sums| {
            put(&mut out[token][from..rows.min(from + TILE_ROWS)], sums);
        });
    }
}

/// Products of the down matrix in `rows` rows from a tile on; `put` takes those of a token for a tile, which
/// starts at a row.
fn down_tiles(
    kernels: &Kernels,
    (down, first_tile, rows): (&Matrix, usize, usize),
    (hidden, tokens): (&Panels<'_>, usize),
    sums: &mut Sums,
    mut put: impl FnMut(usize, usize, [&Lanes; 2]),
) {
    for from in (0..rows).step_by(TILE_ROWS) {
        let tile = first_tile + from / TILE_ROWS;
        for panel in panels(tokens) {
            product(kernels, (down, tile), (hidden.panel(panel), tokens), sums);
            let [low, high] = &*sums;
            for (token, (low, high)) in low.iter().zip(high).enumerate().take(panel.1) {
                put(panel.0 + token, from, [low, high]);
            }
        }
    }
}

/// Puts the sums of a tile where its rows, fewer in a last one, have their outputs.
fn put(out: &mut [f32], [low, high]: [&Lanes; 2]) {
    if let [first, second] = out.as_chunks_mut::<LANES>().0 {
        (*first, *second) = (*low, *high);
        return;
    }
    let (first, second) = out.split_at_mut(LANES.min(out.len()));
    first.copy_from_slice(&low[..first.len()]);
    second.copy_from_slice(&high[..second.len()]);
}

/// The product of a tile and a panel of so many `tokens`. Each panel asks for its part of the next tile,
/// so that memory is read while panels are multiplied. Inlined, because small products would wait for their
/// panel to come back from the stack.
#[inline(always)]
fn product(
    kernels: &Kernels,
    (matrix, tile): (&Matrix, usize),
    (panel, tokens): (Panel<'_>, usize),
    sums: &mut Sums,
) {
    if tokens < FETCHED_TOKENS {
        return kernels.product(matrix.layout.bits, (matrix.tile(tile), &[]), panel, sums);
    }
    let next = matrix.tile_if_any(tile + 1);
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
