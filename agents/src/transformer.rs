//! The f32 arithmetic of a decoder around its experts: norm, rotary positions, attention, losses.
//!
//! Matrices are row-major with one token a row. Every function splits its work in fixed tasks on
//! the current rayon pool, and a row's bits never depend on the windows beside it.

use crate::linear;
use rayon::prelude::*;

/// Root-mean-square norm in place: each row becomes `x / sqrt(mean(x²) + eps) ⊙ weight`, and a
/// row is as long as `weight` (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4).
///
/// # Panics
/// When `rows` has no whole rows.
pub fn rms_norm(rows: &mut [f32], weight: &[f32], eps: f32) {
    assert!(rows.len().is_multiple_of(weight.len()), "whole rows");
    rows.par_chunks_mut(linear::ROW_BLOCK * weight.len()).for_each(|rows| {
        for row in rows.chunks_exact_mut(weight.len()) {
            let scale = 1.0 / (sum_of_squares(row) / weight.len() as f32 + eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
        }
    });
}

/// Rotary position table for windows of one length (Su et al. 2021, arXiv:2104.09864), in the
/// "rotate half" layout of the Hugging Face checkpoints: component i is paired with i + d/2.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines and sines, `[positions, head_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    head_dim: usize,
}

impl Rotary {
    /// Angles `position · theta^(−2i/head_dim)` for positions `0..window`, taken in f64.
    ///
    /// # Panics
    /// When `head_dim` is odd or zero, or `window` is zero.
    #[must_use]
    pub fn new(window: usize, head_dim: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "pairs of components");
        Self::with_frequencies(window, &frequencies(head_dim, theta), 1.0)
    }

    /// Angles `position · frequency`, one frequency a pair of components; rotated components are
    /// multiplied by `factor` too.
    ///
    /// # Panics
    /// When there is no frequency, or `window` is zero.
    #[must_use]
    pub fn with_frequencies(window: usize, frequencies: &[f64], factor: f64) -> Self {
        assert!(window > 0 && !frequencies.is_empty(), "positions and pairs of components");
        let angles =
            (0..window).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let rounded = |angle: f64| ((angle.cos() * factor) as f32, (angle.sin() * factor) as f32);
        let (cos, sin) = angles.map(rounded).unzip();
        Self { cos, sin, head_dim: 2 * frequencies.len() }
    }

    /// Rotates every head of every row in place. Rows are `[windows · window, heads · head_dim]`;
    /// each window starts at position 0.
    ///
    /// # Panics
    /// When `rows` is not whole windows of `heads` heads.
    pub fn rotate(&self, rows: &mut [f32], heads: usize) {
        let window = self.positions();
        assert!(rows.len().is_multiple_of(window * heads * self.head_dim), "whole windows");
        self.rotate_each(rows, heads, |row| row % window);
    }

    /// Rotates every head of every row, `[rows, heads · head_dim]`, in place; `positions` has one a row.
    ///
    /// # Panics
    /// When there is not one position a row, or one is beyond the table.
    pub fn rotate_at(&self, rows: &mut [f32], heads: usize, positions: &[usize]) {
        assert_eq!(rows.len(), positions.len() * heads * self.head_dim, "one position a row");
        self.rotate_each(rows, heads, |row| positions[row]);
    }

    /// Positions of the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / (self.head_dim / 2)
    }

    fn rotate_each(
        &self,
        rows: &mut [f32],
        heads: usize,
        position: impl Fn(usize) -> usize + Sync,
    ) {
        let half = self.head_dim / 2;
        let row_len = heads * self.head_dim;
        each_row(rows, row_len, |row, values| {
            let at = position(row) * half;
            let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
            for head in values.chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
    }
}

/// Does something to every row: a block of them is a task, for a row alone is too little.
fn each_row(rows: &mut [f32], row_len: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    rows.par_chunks_mut(linear::ROW_BLOCK * row_len).enumerate().for_each(|(block, rows)| {
        for (row, values) in rows.chunks_exact_mut(row_len).enumerate() {
            run(block * linear::ROW_BLOCK + row, values);
        }
    });
}

/// The rotary frequencies `theta^(−2i/head_dim)` of `head_dim / 2` pairs of components.
#[must_use]
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64)).collect()
}

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Positions of a window.
    pub window: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`, and query head h reads `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Components of a head.
    pub head_dim: usize,
}

/// Softmax attention in which a position sees itself and the earlier ones of its own window.
///
/// `q` is `[windows · window, heads · head_dim]`, `k` and `v` are `[.., kv_heads · head_dim]`; the
/// result has the shape of `q`. Each (window, head) is one task.
///
/// # Panics
/// When a length does not match the shape.
#[must_use]
pub fn causal_attention(q: &[f32], k: &[f32], v: &[f32], shape: AttentionShape) -> Vec<f32> {
    let AttentionShape { window, heads, kv_heads, head_dim } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
    let (q_window, kv_window) = (window * heads * head_dim, window * kv_heads * head_dim);
    assert!(q_window > 0 && q.len().is_multiple_of(q_window), "whole windows");
    assert!(k.len() == v.len() && k.len() / kv_window == q.len() / q_window, "as many keys");
    assert!(k.len().is_multiple_of(kv_window), "whole windows of keys");

    let mut by_head = vec![0.0; q.len()];
    by_head.par_chunks_mut(window * head_dim).enumerate().for_each(|(task, out)| {
        let (at, head) = (task / heads, task % heads);
        let kv_head = head / (heads / kv_heads);
        let queries = columns(&q[at * q_window..(at + 1) * q_window], heads, head, head_dim);
        let kv = at * kv_window..(at + 1) * kv_window;
        let keys = columns(&k[kv.clone()], kv_heads, kv_head, head_dim);
        let values = columns(&v[kv], kv_heads, kv_head, head_dim);
        attend(queries, &keys, &values, out, head_dim);
    });

    let mut out = vec![0.0; q.len()];
    each_row(&mut out, heads * head_dim, |row, out| {
        let (at, position) = (row / window, row % window);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let from = ((at * heads + head) * window + position) * head_dim;
            out.copy_from_slice(&by_head[from..from + head_dim]);
        }
    });
    out
}

/// `gate = silu(gate) ⊙ up`, the inner activation of SwiGLU (Shazeer 2020, arXiv:2002.05202).
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    const BLOCK: usize = 1 << 14;
    assert_eq!(gate.len(), up.len(), "one gate for each value");
    gate.par_chunks_mut(BLOCK).zip(up.par_chunks(BLOCK)).for_each(|(gate, up)| {
        gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
    });
}

/// `out += scale · x`.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(out: &mut [f32], scale: f32, x: &[f32]) {
    assert_eq!(out.len(), x.len(), "vectors of one length");
    out.iter_mut().zip(x).for_each(|(out, x)| *out += scale * x);
}

/// Softmax of every row of `columns` values, in place.
///
/// # Panics
/// When `rows` has no whole rows.
pub fn softmax(rows: &mut [f32], columns: usize) {
    assert!(columns > 0 && rows.len().is_multiple_of(columns), "whole rows");
    rows.par_chunks_mut(linear::ROW_BLOCK * columns).for_each(|rows| {
        for row in rows.chunks_exact_mut(columns) {
            let sum = exponentials(row);
            row.iter_mut().for_each(|p| *p /= sum);
        }
    });
}

/// `−ln softmax(logits)[target]`, in nats.
///
/// # Panics
/// When `target` is not a column.
#[must_use]
pub fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target])
}

/// Kullback–Leibler divergence `Σ p ln(p / q)` in nats, where p and q are the softmax of
/// `reference` and `other`.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn divergence(reference: &[f32], other: &[f32]) -> f64 {
    assert_eq!(reference.len(), other.len(), "two distributions over the same symbols");
    let (p_norm, q_norm) = (log_sum_exp(reference), log_sum_exp(other));
    reference
        .iter()
        .zip(other)
        .map(|(p, q)| {
            let ln_p = f64::from(*p) - p_norm;
            ln_p.exp() * (ln_p - (f64::from(*q) - q_norm))
        })
        .sum()
}

/// The position of the largest value, the lowest among equals.
///
/// # Panics
/// When `row` is empty.
#[must_use]
pub fn argmax(row: &[f32]) -> usize {
    assert!(!row.is_empty(), "a row has a largest value");
    (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}

/// One head of one window: `queries`, `keys` and `values` are `[window, head_dim]`, as is `out`.
fn attend(queries: Vec<f32>, keys: &[f32], values: &[f32], out: &mut [f32], head_dim: usize) {
    let block = linear::ROW_BLOCK * head_dim;
    let blocks = queries.chunks(block).zip(out.chunks_mut(block)).enumerate();
    for (index, (queries, out)) in blocks {
        // Later keys are masked for every row of this block, so they are left out of the product.
        let first = index * linear::ROW_BLOCK;
        let seen = (first + queries.len() / head_dim) * head_dim;
        attend_block(queries, first, (&keys[..seen], &values[..seen]), out, head_dim);
    }
}

/// At most [`linear::ROW_BLOCK`] queries, `[rows, head_dim]`, at positions from `first` on, over `keys`
/// and `values` of positions from 0 on, `[seen, head_dim]`: each sees those up to its own position.
pub(crate) fn attend_block(
    queries: &[f32],
    first: usize,
    (keys, values): (&[f32], &[f32]),
    out: &mut [f32],
    head_dim: usize,
) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let scaled: Vec<f32> = queries.iter().map(|q| q * scale).collect();
    let (rows, seen) = (queries.len() / head_dim, keys.len() / head_dim);
    let mut scores = vec![0.0; rows * seen];
    linear::linear_serial(&scaled, keys, &mut scores, head_dim, seen);
    let mut sums = [0.0; linear::ROW_BLOCK];
    for (row, (scores, sum)) in scores.chunks_exact_mut(seen).zip(&mut sums).enumerate() {
        let (visible, masked) = scores.split_at_mut(first + row + 1);
        *sum = exponentials(visible);
        masked.fill(0.0);
    }
    let mut by_component = vec![0.0; seen * head_dim];
    for (component, column) in by_component.chunks_exact_mut(seen).enumerate() {
        let values = values.iter().skip(component).step_by(head_dim);
        column.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
    }
    linear::linear_serial(&scores, &by_component, out, seen, head_dim);
    for (out, sum) in out.chunks_exact_mut(head_dim).zip(&sums) {
        out.iter_mut().for_each(|x| *x /= sum);
    }
}

/// The `[window, head_dim]` part of one head.
fn columns(rows: &[f32], heads: usize, head: usize, head_dim: usize) -> Vec<f32> {
    let mut part = Vec::with_capacity(rows.len() / heads);
    for row in rows.chunks_exact(heads * head_dim) {
        part.extend_from_slice(&row[head * head_dim..][..head_dim]);
    }
    part
}

/// Replaces a row by `exp(x − max)` and returns the sum.
fn exponentials(row: &mut [f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row {
        *x = (*x - max).exp();
        sum += *x;
    }
    sum
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// Sums in sixteen fixed lanes, which the compiler turns into vector adds.
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x * x);
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use rand::RngExt as _;

    fn random(purpose: &str, len: usize) -> Vec<f32> {
        let mut rng = stream(7, purpose);
        (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
    }

    /// Attention straight from its definition, in f64.
    fn attention_by_definition(q: &[f32], k: &[f32], v: &[f32], s: AttentionShape) -> Vec<f64> {
        let (row_q, row_k) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let mut out = vec![0.0; q.len()];
        for t in 0..q.len() / row_q {
            let start = t / s.window * s.window;
            for head in 0..s.heads {
                let kv = head / (s.heads / s.kv_heads) * s.head_dim;
                let weights: Vec<f64> = (start..=t)
                    .map(|u| {
                        let dot: f64 = (0..s.head_dim)
                            .map(|c| {
                                f64::from(q[t * row_q + head * s.head_dim + c])
                                    * f64::from(k[u * row_k + kv + c])
                            })
                            .sum();
                        (dot / (s.head_dim as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..s.head_dim {
                    out[t * row_q + head * s.head_dim + c] = weights
                        .iter()
                        .zip(start..)
                        .map(|(w, u)| w / sum * f64::from(v[u * row_k + kv + c]))
                        .sum();
                }
            }
        }
        out
    }

    #[test]
    fn attention_agrees_with_its_definition_for_shared_and_own_key_heads() {
        for (window, heads, kv_heads, head_dim) in
            [(1, 1, 1, 2), (5, 2, 1, 4), (70, 4, 2, 8), (130, 6, 2, 4)]
        {
            let shape = AttentionShape { window, heads, kv_heads, head_dim };
            let rows = 2 * window;
            let q = random("q", rows * heads * head_dim);
            let k = random("k", rows * kv_heads * head_dim);
            let v = random("v", rows * kv_heads * head_dim);
            let exact = attention_by_definition(&q, &k, &v, shape);
            for (got, want) in causal_attention(&q, &k, &v, shape).iter().zip(exact) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{shape:?}: {got} {want}");
            }
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_distance_alone() {
        let (window, head_dim) = (40, 8);
        let rotary = Rotary::new(window, head_dim, 10_000.0);
        let (a, b) = (random("a", head_dim), random("b", head_dim));
        let (mut all_a, mut all_b) = (a.repeat(window), b.repeat(window));
        rotary.rotate(&mut all_a, 1);
        rotary.rotate(&mut all_b, 1);
        assert_eq!(all_a[..head_dim], a, "position 0 is not rotated");
        let dot = |i: usize, j: usize| -> f32 {
            let (a, b) = (&all_a[i * head_dim..][..head_dim], &all_b[j * head_dim..][..head_dim]);
            a.iter().zip(b).map(|(a, b)| a * b).sum()
        };
        for i in 3..window {
            assert!((dot(i, i - 3) - dot(3, 0)).abs() < 1e-4, "distance 3 at {i}");
        }
        assert!((dot(9, 0) - dot(3, 0)).abs() > 1e-2, "distance matters");
    }

    #[test]
    fn norm_gives_rows_of_unit_mean_square() {
        let mut rows = random("norm", 3 * 37);
        rms_norm(&mut rows, &[2.0; 37], 0.0);
        for row in rows.chunks(37) {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / 37.0;
            assert!((mean - 4.0).abs() < 1e-5);
        }
    }

    #[test]
    fn losses_and_divergences_of_known_distributions() {
        let ln = |p: f32| p.ln() + 3.0;
        let (p, q) = ([ln(0.5), ln(0.25), ln(0.25)], [ln(0.25), ln(0.25), ln(0.5)]);
        assert!((cross_entropy(&p, 1) - 4f64.ln()).abs() < 1e-6);
        assert!((divergence(&p, &q) - 0.25 * 2f64.ln()).abs() < 1e-6);
        assert!(divergence(&p, &p).abs() < 1e-12);
        assert_eq!((argmax(&p), argmax(&[1.0, 2.0, 2.0])), (0, 1));
        let mut rows = [p, q].concat();
        softmax(&mut rows, 3);
        for (got, want) in rows.iter().zip([0.5, 0.25, 0.25, 0.25, 0.25, 0.5]) {
            assert!((got - want).abs() < 1e-6);
        }
    }
}
