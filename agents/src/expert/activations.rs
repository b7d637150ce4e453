//! Activations of 8 bits, in the order in which the kernels read them.
//!
//! The columns of a row come in the groups of the weights they meet. A group has a scale `s`, a code
//! `a` in −127..=127 for each column, and `o = s · Σ a`: a value is about `s · a`. Four codes are one
//! number, a quad. Rows end with zeros to whole blocks of columns.

use super::MAX_GROUP;
use super::kernel::{Kernels, PANEL_TOKENS};
use super::matrix::{BLOCK_COLUMNS, groups};
use crate::ids::TokenId;

/// Quads of the longest group.
const GROUP_QUADS: usize = MAX_GROUP / 4;

/// How the columns of a row are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grouping {
    pub(super) columns: usize,
    pub(super) group: usize,
}

impl Grouping {
    fn groups(self) -> usize {
        groups(self.columns, self.group)
    }

    /// Quads of a row.
    fn quads(self) -> usize {
        self.columns.next_multiple_of(BLOCK_COLUMNS) / 4
    }

    /// Quads of a group that is not the last.
    fn group_quads(self) -> usize {
        self.group / 4
    }

    /// Quads of each group.
    fn each_group(self) -> impl Iterator<Item = usize> {
        let (all, most) = (self.quads(), self.group_quads());
        (0..self.groups()).map(move |g| most.min(all - g * most))
    }
}

/// Quantized rows, one after another.
pub(super) struct Rows {
    grouping: Grouping,
    /// `[token, quad]`
    codes: Vec<i32>,
    /// Scale and offset, `[token, group]`.
    factors: Vec<(f32, f32)>,
}

/// A part of [`Rows`] to be filled, with the values it comes from.
pub(super) type RowsPart<'a> = (&'a [f32], &'a mut [i32], &'a mut [(f32, f32)]);

impl Rows {
    /// Room for `tokens` rows.
    pub(super) fn new(grouping: Grouping, tokens: usize) -> Self {
        let codes = vec![0; tokens * grouping.quads()];
        Self { grouping, codes, factors: vec![(0.0, 0.0); tokens * grouping.groups()] }
    }

    pub(super) fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Parts of at most `tokens` rows, for [`Self::fill`] of the rows of `x`.
    pub(super) fn parts<'a>(
        &'a mut self,
        x: &'a [f32],
        tokens: usize,
    ) -> impl Iterator<Item = RowsPart<'a>> {
        let Grouping { columns, .. } = self.grouping;
        let codes = self.codes.chunks_mut(tokens * self.grouping.quads());
        let factors = self.factors.chunks_mut(tokens * self.grouping.groups());
        let parts = x.chunks(tokens * columns).zip(codes).zip(factors);
        parts.map(|((x, codes), factors)| (x, codes, factors))
    }

    pub(super) fn fill(kernels: &Kernels, grouping: Grouping, (x, codes, factors): RowsPart<'_>) {
        let codes = codes.chunks_exact_mut(grouping.quads());
        let factors = factors.chunks_exact_mut(grouping.groups());
        for ((x, codes), factors) in x.chunks_exact(grouping.columns).zip(codes).zip(factors) {
            let codes = codes.chunks_mut(grouping.group_quads());
            for ((x, codes), factors) in x.chunks(grouping.group).zip(codes).zip(factors) {
                *factors = if x.len() == 4 * codes.len() {
                    kernels.quantize(x, codes)
                } else {
                    let mut padded = [0.0; MAX_GROUP];
                    padded[..x.len()].copy_from_slice(x);
                    kernels.quantize(&padded[..4 * codes.len()], codes)
                };
            }
        }
    }
}

/// Rows that meet one expert, in panels of 8, 4, 2 and 1 tokens: within a group, panel by panel,
/// a panel's quads one after another and of each the tokens side by side.
pub(super) struct Panels<'a> {
    grouping: Grouping,
    tokens: usize,
    /// `[group][panel][quad][token]`
    codes: &'a mut [i32],
    /// `[group][token]`
    scales: &'a mut [f32],
    /// `[group][token]`
    offsets: &'a mut [f32],
}

/// Memory that [`Panels`] are cut from. What it holds is what earlier ones left: every code and factor
/// of panels is written before it is read.
#[derive(Default)]
pub(super) struct Room {
    codes: Vec<i32>,
    factors: Vec<f32>,
}

/// What is left of a [`Room`].
pub(super) struct Rest<'a> {
    codes: &'a mut [i32],
    factors: &'a mut [f32],
}

impl Room {
    /// Makes room for panels of all these groupings and tokens.
    pub(super) fn reserve(&mut self, panels: impl Iterator<Item = (Grouping, usize)>) -> Rest<'_> {
        let (codes, factors) = panels.fold((0, 0), |(codes, factors), (grouping, tokens)| {
            (codes + tokens * grouping.quads(), factors + 2 * tokens * grouping.groups())
        });
        if self.codes.len() < codes {
            self.codes = vec![0; codes];
        }
        if self.factors.len() < factors {
            self.factors = vec![0.0; factors];
        }
        Rest { codes: &mut self.codes, factors: &mut self.factors }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<i32>() * self.codes.len() + size_of::<f32>() * self.factors.len()
    }
}

/// Takes the first `len` values off `rest`.
fn take<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    rest.split_off_mut(..len).expect("room was reserved")
}

/// Whole groups of all tokens of [`Panels`].
pub(super) struct PanelGroups<'a> {
    tokens: usize,
    codes: &'a mut [i32],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
}

/// First token and number of tokens of each panel.
pub(super) fn panels(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let size = (1 << (tokens - first).checked_ilog2()?).min(PANEL_TOKENS);
        first += size;
        Some((first - size, size))
    })
}

impl<'a> Panels<'a> {
    /// For `tokens` rows, of what was reserved.
    pub(super) fn new(grouping: Grouping, tokens: usize, rest: &mut Rest<'a>) -> Self {
        let factors = tokens * grouping.groups();
        Self {
            grouping,
            tokens,
            codes: take(&mut rest.codes, tokens * grouping.quads()),
            scales: take(&mut rest.factors, factors),
            offsets: take(&mut rest.factors, factors),
        }
    }

    pub(super) fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Takes the rows of `tokens` out of `rows`.
    pub(super) fn gather(&mut self, kernels: &Kernels, rows: &Rows, tokens: &[TokenId]) {
        let Grouping { group, .. } = self.grouping;
        let (quads, groups) = (self.grouping.quads(), self.grouping.groups());
        for (g, mut part) in self.parts(1).enumerate() {
            let of_group = (g * group / 4)..quads.min((g + 1) * group / 4);
            for (first, size) in panels(tokens.len()) {
                let mut codes: [&[i32]; PANEL_TOKENS] = [&[]; PANEL_TOKENS];
                for (t, token) in tokens.iter().enumerate().skip(first).take(size) {
                    let row = token.index();
                    codes[t - first] = &rows.codes[row * quads..][of_group.clone()];
                    (part.scales[t], part.offsets[t]) = rows.factors[row * groups + g];
                }
                part.put(kernels, first, &codes[..size]);
            }
        }
    }

    /// Parts of `groups` groups each.
    pub(super) fn parts(&mut self, groups: usize) -> impl Iterator<Item = PanelGroups<'_>> {
        let tokens = self.tokens;
        let codes = self.codes.chunks_mut(groups * self.grouping.group_quads() * tokens);
        let scales = self.scales.chunks_mut(groups * tokens);
        let offsets = self.offsets.chunks_mut(groups * tokens);
        codes.zip(scales).zip(offsets).map(move |((codes, scales), offsets)| PanelGroups {
            tokens,
            codes,
            scales,
            offsets,
        })
    }

    /// One of [`panels`].
    pub(super) fn panel(&self, (first, tokens): (usize, usize)) -> Panel<'_> {
        Panel { of: self, first, tokens }
    }
}

impl<'a> PanelGroups<'a> {
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of all groups, with padding.
    pub(super) fn columns(&self) -> usize {
        4 * self.codes.len() / self.tokens
    }

    /// Each group alone.
    pub(super) fn each(self, grouping: Grouping) -> impl Iterator<Item = PanelGroups<'a>> {
        let tokens = self.tokens;
        let codes = self.codes.chunks_mut(grouping.group_quads() * tokens);
        let factors = self.scales.chunks_mut(tokens).zip(self.offsets.chunks_mut(tokens));
        codes.zip(factors).map(move |(codes, (scales, offsets))| PanelGroups {
            tokens,
            codes,
            scales,
            offsets,
        })
    }

    /// Quantizes the values of every token, whose rows are `stride` apart, into this one group.
    pub(super) fn fill(&mut self, kernels: &Kernels, values: &[f32], stride: usize) {
        let quads = self.columns() / 4;
        let mut codes = [[0; GROUP_QUADS]; PANEL_TOKENS];
        for (first, size) in panels(self.tokens) {
            for (t, codes) in (first..first + size).zip(&mut codes) {
                let values = &values[t * stride..][..4 * quads];
                let factors = kernels.quantize(values, &mut codes[..quads]);
                (self.scales[t], self.offsets[t]) = factors;
            }
            let rows = codes.each_ref().map(|codes| &codes[..quads]);
            self.put(kernels, first, &rows[..size]);
        }
    }

    /// Puts the codes of a panel, those of each token, into this one group.
    fn put(&mut self, kernels: &Kernels, first: usize, rows: &[&[i32]]) {
        let (size, quads) = (rows.len(), rows[0].len());
        let to = &mut self.codes[first * quads..][..size * quads];
        if let Some(rows) = rows.as_array() {
            return kernels.interleave(rows, to);
        }
        for (t, row) in rows.iter().enumerate() {
            for (to, code) in to.chunks_exact_mut(size).zip(*row) {
                to[t] = *code;
            }
        }
    }
}

/// A few tokens that meet a tile together.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    of: &'a Panels<'a>,
    first: usize,
    tokens: usize,
}

/// Where a panel stands in [`Panel::slices`].
#[derive(Clone, Copy)]
pub(super) struct PanelSizes {
    /// The panel's first token within the batch.
    pub(super) first: usize,
    /// Tokens of the panel.
    pub(super) tokens: usize,
    /// Tokens of the batch.
    pub(super) batch: usize,
    /// Quads of a row.
    pub(super) quads: usize,
    pub(super) groups: usize,
    /// Quads of a group that is not the last.
    pub(super) group_quads: usize,
}

/// One group of a panel of `M` tokens.
pub(super) struct GroupPanel<'a, const M: usize> {
    /// Quads by token; whole blocks.
    pub(super) codes: &'a [[i32; M]],
    pub(super) scales: &'a [f32; M],
    pub(super) offsets: &'a [f32; M],
}

impl<'a> Panel<'a> {
    /// Its first token within the batch.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn sizes(&self) -> PanelSizes {
        let grouping = self.of.grouping;
        PanelSizes {
            first: self.first,
            tokens: self.tokens,
            batch: self.of.tokens,
            quads: grouping.quads(),
            groups: grouping.groups(),
            group_quads: grouping.group_quads(),
        }
    }

    /// Codes, scales and offsets of the whole batch, in the order that [`Panels`] gives.
    pub(super) fn slices(&self) -> (&'a [i32], &'a [f32], &'a [f32]) {
        (self.of.codes, self.of.scales, self.of.offsets)
    }

    /// The groups, given that there are `M` tokens.
    #[inline(always)]
    pub(super) fn groups<const M: usize>(self) -> impl Iterator<Item = GroupPanel<'a, M>> {
        assert_eq!(self.tokens, M, "the kernel is one for this number of tokens");
        let Panel { of, first, .. } = self;
        let mut rest = &*of.codes;
        let factors = of.scales.chunks_exact(of.tokens).zip(of.offsets.chunks_exact(of.tokens));
        of.grouping.each_group().zip(factors).map(move |(quads, (scales, offsets))| {
            let (codes, after) = rest.split_at(quads * of.tokens);
            rest = after;
            GroupPanel {
                codes: codes[first * quads..][..M * quads].as_chunks().0,
                scales: scales[first..].first_chunk().expect("a panel is one of the batch"),
                offsets: offsets[first..].first_chunk().expect("a panel is one of the batch"),
            }
        })
    }
}
