//! The kernels against each other and against integers.

use super::activations::{Grouping, Panels, Room, Rows, panels};
use super::grouped::{self, ExpertBatch};
use super::kernel::{Kernels, NO_SUMS};
use super::matrix::{FACTOR_LINES, LINE_BYTES, Layout, Line, Matrix, TILE_ROWS};
use super::tasks::Threads;
use super::{BitWidth, Expert, ExpertShape, GROUP_LENGTHS, Group};
use crate::ids::TokenId;
use crate::rng::stream;
use half::f16;
use rand::RngExt as _;

fn random(name: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(5, name);
    // Squares of numbers have a few large values among many small ones.
    (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).map(|x| x * x.abs()).collect()
}

type Formats = [(BitWidth, usize); 3];

/// Every width with every length of groups, and experts whose parts differ in both.
fn all_formats() -> Vec<Formats> {
    let lengths = |bits| GROUP_LENGTHS.map(|group| [(bits, group); 3]);
    let mut formats: Vec<Formats> = BitWidth::QUANTIZED.into_iter().flat_map(lengths).collect();
    let [two, three, four, eight] = BitWidth::QUANTIZED;
    formats.push([(two, 256), (three, 128), (four, 64)]);
    formats.push([(eight, 32), (four, 32), (three, 256)]);
    formats.push([(three, 64), (two, 128), (eight, 128)]);
    formats
}

/// An expert of random codes and factors.
fn expert(shape: ExpertShape, formats: Formats) -> Expert {
    let mut rng = stream(9, "expert");
    Expert::from_groups(shape, formats, |part, _, _| {
        let (bits, length) = formats[part];
        let last_code = u8::MAX >> (8 - bits.code_bits());
        let codes: Vec<u8> = (0..length).map(|_| rng.random::<u8>() & last_code).collect();
        let scale = rng.random::<f32>() / f32::from(last_code);
        let minimum = -scale * f32::from(last_code) * rng.random::<f32>();
        Group::with_codes(f16::from_f32(scale), f16::from_f32(minimum), &codes)
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_kind_of_instructions_gives_the_same_bits() {
    let mut rng = stream(6, "tokens");
    for (width, hidden) in [(1, 1), (33, 7), (64, 256), (70, 100), (256, 640), (290, 300)] {
        let shape = ExpertShape { width, hidden };
        let rows = 40;
        let x = random("x", rows * width);
        let experts: Vec<Expert> =
            all_formats().into_iter().map(|formats| expert(shape, formats)).collect();
        // 15 tokens are a panel of each size.
        let tokens: Vec<Vec<TokenId>> = (0..experts.len())
            .map(|_| (0..15).map(|_| TokenId(rng.random_range(0..40))).collect())
            .collect();
        let outputs = |kernels| {
            let batches = experts.iter().zip(&tokens);
            let batches: Vec<_> =
                batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
            let mut out = vec![f32::NAN; tokens.iter().flatten().count() * width];
            grouped::run(kernels, &batches, &x, &mut out, Threads::Caller);
            assert!(out.iter().all(|y| y.is_finite()));
            bits(&out)
        };
        let all: Vec<_> = Kernels::available().map(|k| (k.name(), outputs(k))).collect();
        for (name, outputs) in &all[1..] {
            assert!(outputs == &all[0].1, "{shape:?} {name}");
        }
    }
}

/// A matrix of any codes, in the padding too, whose weights are the codes.
fn of_codes(layout: Layout, mut code: impl FnMut() -> u8) -> Matrix {
    let mut lines: Vec<Line> =
        (0..layout.lines()).map(|_| Line([(); LINE_BYTES].map(|()| code()))).collect();
    let one = f16::ONE.to_le_bytes();
    for tile in lines.chunks_exact_mut(layout.tile_lines()) {
        for group in tile.chunks_mut(layout.group_lines()) {
            for (line, factor) in group[..FACTOR_LINES].iter_mut().zip([one, [0, 0]]) {
                *line = Line(std::array::from_fn(|byte| factor[byte % 2]));
            }
        }
    }
    Matrix { layout, lines }
}

#[test]
fn integer_products_are_exact_up_to_the_largest_codes() {
    let mut rng = stream(7, "codes");
    for (width, largest) in [(2, 3_i64), (3, 7), (4, 15), (8, 255)] {
        for (group, columns) in
            [(32, 37), (32, 64), (64, 5), (64, 192), (128, 130), (256, 256), (256, 301)]
        {
            let layout = Layout { rows: TILE_ROWS, columns, bits: width, group };
            for extreme in [true, false] {
                let w = of_codes(layout, || if extreme { 0xff } else { rng.random() });
                // Every group has 127 or −127, so that codes are the values.
                let mut value = |i: usize| match (extreme, i % group) {
                    (true, _) => -127.0,
                    (false, 0) => 127.0,
                    _ => f32::from(rng.random_range(-127..=127_i8)),
                };
                let x: Vec<f32> = (0..15).flat_map(|_| 0..columns).map(&mut value).collect();
                for kernels in Kernels::available() {
                    let grouping = Grouping { columns, group };
                    let mut rows = Rows::new(grouping, 15);
                    rows.parts(&x, 4).for_each(|part| Rows::fill(kernels, grouping, part));
                    let mut room = Room::default();
                    let mut rest = room.reserve(std::iter::once((grouping, 15)));
                    let mut input = Panels::new(grouping, 15, &mut rest);
                    let tokens: Vec<TokenId> = (0..15).map(TokenId).collect();
                    input.gather(kernels, &rows, &tokens);
                    for (first, size) in panels(15) {
                        let mut sums = NO_SUMS;
                        let panel = input.panel((first, size));
                        kernels.product(width, (w.tile(0), &[]), panel, &mut sums);
                        for (row, t) in
                            (0..TILE_ROWS).flat_map(|row| (0..size).map(move |t| (row, t)))
                        {
                            let x = &x[(first + t) * columns..][..columns];
                            let code = |k| i64::from(w.code(row, k));
                            assert!((0..columns).all(|k| code(k) <= largest));
                            #[expect(clippy::cast_possible_truncation, reason = "whole numbers")]
                            let dot = |k: usize| code(k) * x[k] as i64;
                            let exact: i64 = (0..columns).map(dot).sum();
                            let got = f64::from(sums[row / 16][t][row % 16]);
                            assert_eq!(got, exact as f64, "{} {layout:?}", kernels.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn panels_cover_all_tokens_in_powers_of_two() {
    for tokens in 0..40 {
        let all: Vec<_> = panels(tokens).collect();
        assert!(all.iter().all(|(_, size)| [1, 2, 4, 8].contains(size)));
        let covered: Vec<usize> = all.iter().flat_map(|(f, size)| *f..f + size).collect();
        assert_eq!(covered, (0..tokens).collect::<Vec<_>>());
    }
}

#[test]
fn a_layer_has_the_bits_of_its_experts_alone_at_any_number_of_threads() {
    let shape = ExpertShape { width: 96, hidden: 80 };
    let rows = 300;
    let x = random("rows", rows * shape.width);
    let mut experts: Vec<Expert> =
        all_formats().into_iter().step_by(2).map(|formats| expert(shape, formats)).collect();
    let part = |name| random(name, shape.weights() / 3);
    let (gate, up, down) = (part("gate"), part("up"), part("down"));
    let full = Expert::quantize(shape, &gate, &up, &down, BitWidth::Full, 32);
    experts.extend([full.clone(), full]);
    let mut rng = stream(8, "routing");
    let tokens: Vec<Vec<TokenId>> = [290, 1, 0, 7, 130, 64, 3, 128, 2, 40, 129, 16]
        .map(|n| (0..n).map(|_| TokenId(rng.random_range(0..300))).collect())
        .to_vec();
    let mut alone = Vec::new();
    for (expert, tokens) in experts.iter().zip(&tokens) {
        for token in tokens {
            let mut out = vec![f32::NAN; shape.width];
            expert.forward(&x[token.index() * shape.width..][..shape.width], &mut out);
            alone.extend(bits(&out));
        }
    }
    let batches = experts.iter().zip(&tokens);
    let batches: Vec<_> = batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
    for threads in 1..4 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut out = vec![f32::NAN; alone.len()];
        pool.install(|| grouped::forward(&batches, &x, &mut out));
        assert!(bits(&out) == alone, "{threads} threads");
    }
}
