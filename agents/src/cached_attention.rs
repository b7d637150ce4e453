//! Attention over keys and values that earlier steps have left.
//!
//! A row's bits are those of [`crate::transformer::causal_attention`] on the whole window: blocks of
//! positions start at the same places, and what lies beyond the window's end is zero in sums.

use crate::linear::ROW_BLOCK;
use crate::transformer::{AttentionShape, attend_block};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Keys and values of one sequence in one layer. Each head has its own rows, `[positions, head_dim]`,
/// filled up with zeros to whole blocks of [`ROW_BLOCK`] positions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeyValues {
    #[serde(with = "crate::plain_bytes")]
    keys: Vec<Vec<f32>>,
    #[serde(with = "crate::plain_bytes")]
    values: Vec<Vec<f32>>,
    positions: usize,
}

impl KeyValues {
    /// Positions that it holds.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let heads = self.keys.iter().chain(&self.values);
        heads.map(|head| head.len() * size_of::<f32>()).sum()
    }

    /// Appends rows of `[rows, kv_heads · head_dim]`, one a position.
    fn append(&mut self, k: &[f32], v: &[f32], shape: AttentionShape) {
        let AttentionShape { kv_heads, head_dim, .. } = shape;
        self.keys.resize_with(kv_heads, Vec::new);
        self.values.resize_with(kv_heads, Vec::new);
        let rows = k.len() / (kv_heads * head_dim);
        let end = self.positions + rows;
        for (held, new) in [(&mut self.keys, k), (&mut self.values, v)] {
            for (head, held) in held.iter_mut().enumerate() {
                held.resize(end.next_multiple_of(ROW_BLOCK) * head_dim, 0.0);
                let free = held[self.positions * head_dim..].chunks_exact_mut(head_dim);
                for (to, row) in free.zip(new.chunks_exact(kv_heads * head_dim)) {
                    to.copy_from_slice(&row[head * head_dim..][..head_dim]);
                }
            }
        }
        self.positions = end;
    }
}

/// Appends each sequence's new rows to its keys and values, and lets each new position see all of its own
/// sequence up to itself. `rows` has the number of rows of each sequence, in the order of `caches`; `q` is
/// `[Σ rows, heads · head_dim]`, `k` and `v` are `[Σ rows, kv_heads · head_dim]`, the result has the shape of
/// `q`. The window of `shape` is not read. Each (sequence, head) is one task.
///
/// # Panics
/// When a length does not match.
#[must_use]
pub fn cached_attention(
    (q, k, v): (&[f32], &[f32], &[f32]),
    rows: &[usize],
    caches: &mut [&mut KeyValues],
    shape: AttentionShape,
) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (q_row, kv_row) = (heads * head_dim, kv_heads * head_dim);
    let all: usize = rows.iter().sum();
    assert_eq!(rows.len(), caches.len(), "one cache a sequence");
    assert!(q.len() == all * q_row && k.len() == all * kv_row && v.len() == k.len(), "whole rows");
    let mut first_row = 0;
    let mut tasks = Vec::with_capacity(rows.len() * heads);
    for (sequence, (rows, cache)) in rows.iter().zip(caches.iter_mut()).enumerate() {
        let kv = first_row * kv_row..(first_row + rows) * kv_row;
        cache.append(&k[kv.clone()], &v[kv], shape);
        tasks.extend((0..heads).map(|head| (sequence, first_row, *rows, head)));
        first_row += rows;
    }
    let caches: Vec<&KeyValues> = caches.iter().map(|cache| &**cache).collect();
    let attended: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(sequence, first_row, rows, head)| {
            let of_head = q[first_row * q_row..(first_row + rows) * q_row].chunks_exact(q_row);
            let queries: Vec<f32> =
                of_head.flat_map(|row| &row[head * head_dim..][..head_dim]).copied().collect();
            attend_head(&queries, caches[*sequence], head / (heads / kv_heads), head_dim)
        })
        .collect();
    let mut out = vec![0.0; q.len()];
    for ((_, first_row, _, head), of_head) in tasks.iter().zip(&attended) {
        for (row, values) in of_head.chunks_exact(head_dim).enumerate() {
            out[(first_row + row) * q_row + head * head_dim..][..head_dim].copy_from_slice(values);
        }
    }
    out
}

/// One head of one sequence, whose last positions are those of `queries`.
fn attend_head(queries: &[f32], cache: &KeyValues, kv_head: usize, head_dim: usize) -> Vec<f32> {
    let (keys, values) = (&cache.keys[kv_head], &cache.values[kv_head]);
    let mut out = vec![0.0; queries.len()];
    let mut at = cache.positions - queries.len() / head_dim;
    let (mut rest, mut free) = (queries, out.as_mut_slice());
    while !rest.is_empty() {
        let block_end = (at + 1).next_multiple_of(ROW_BLOCK);
        let rows = (block_end - at).min(rest.len() / head_dim);
        let (block, later) = rest.split_at(rows * head_dim);
        let (to, after) = free.split_at_mut(rows * head_dim);
        let seen = block_end * head_dim;
        attend_block(block, at, (&keys[..seen], &values[..seen]), to, head_dim);
        (rest, free, at) = (later, after, at + rows);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{KeyValues, cached_attention};
    use crate::rng::stream;
    use crate::transformer::{AttentionShape, causal_attention};
    use rand::RngExt as _;

    fn random(purpose: &str, len: usize) -> Vec<f32> {
        let mut rng = stream(11, purpose);
        (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
    }

    /// Runs a window in pieces beside another sequence that grows at its own pace.
    fn in_pieces(of: [&[f32]; 3], pieces: &[usize], shape: AttentionShape) -> Vec<f32> {
        let (q_row, kv_row) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (mut cache, mut beside) = (KeyValues::default(), KeyValues::default());
        let (mut out, mut at) = (Vec::new(), 0);
        for rows in pieces {
            let other = 1 + at % 3;
            let [q, k, v] = [(of[0], q_row), (of[1], kv_row), (of[2], kv_row)].map(|(x, row)| {
                [&random("beside", other * row)[..], &x[at * row..(at + rows) * row]].concat()
            });
            let mut caches = [&mut beside, &mut cache];
            let both = cached_attention((&q, &k, &v), &[other, *rows], &mut caches, shape);
            out.extend_from_slice(&both[other * q_row..]);
            at += rows;
        }
        assert_eq!(cache.positions(), at);
        out
    }

    #[test]
    fn a_window_in_pieces_has_the_bits_of_the_whole_window() {
        for (window, heads, kv_heads, head_dim) in
            [(1, 1, 1, 2), (31, 2, 2, 8), (70, 4, 2, 16), (200, 2, 1, 32), (96, 2, 2, 64)]
        {
            let shape = AttentionShape { window, heads, kv_heads, head_dim };
            let q = random("q", window * heads * head_dim);
            let k = random("k", window * kv_heads * head_dim);
            let v = random("v", window * kv_heads * head_dim);
            let whole: Vec<u32> =
                causal_attention(&q, &k, &v, shape).iter().map(|x| x.to_bits()).collect();
            let prompt = window.div_ceil(3);
            let one_by_one = vec![1; window];
            let prompt_first = [vec![prompt], vec![1; window - prompt]].concat();
            let chunks = [vec![prompt; window / prompt], vec![window % prompt]].concat();
            for pieces in [one_by_one, prompt_first, chunks, vec![window]] {
                let pieces: Vec<usize> = pieces.into_iter().filter(|rows| *rows > 0).collect();
                let got = in_pieces([&q, &k, &v], &pieces, shape);
                let same = got.iter().zip(&whole).all(|(a, b)| a.to_bits() == *b);
                assert!(same && got.len() == whole.len(), "{shape:?} {pieces:?}");
            }
        }
    }
}
