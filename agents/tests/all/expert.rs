//! Expert arithmetic against its f64 definition, and the encoding against hostile bytes.

use agents::expert::{
    BitWidth, CodecError, Expert, ExpertShape, GROUP_LENGTHS, Group, f32_bytes, reference,
};
use agents::quantize::{Format, hqq, nearest};
use agents::rng::stream;
use half::f16;
use proptest::prelude::*;

const SHAPE: ExpertShape = ExpertShape { width: 256, hidden: 64 };

fn random(purpose: &str, len: usize, scale: f32) -> Vec<f32> {
    let mut rng = stream(11, purpose);
    // A sum of uniforms has tails, as trained weights and activations have.
    (0..len).map(|_| ((0..6).map(|_| rng.random::<f32>()).sum::<f32>() - 3.0) * scale).collect()
}

fn expert(shape: ExpertShape, bits: BitWidth, group: usize) -> Expert {
    let part = |purpose| random(purpose, shape.weights() / 3, 0.1);
    Expert::quantize(shape, &part("gate"), &part("up"), &part("down"), bits, group)
}

/// Formats whose parts differ in both bits and groups.
fn mixed(shape: ExpertShape) -> Expert {
    let formats = [(BitWidth::Two, 64), (BitWidth::Three, 256), (BitWidth::Eight, 32)];
    let weights = ["gate", "up", "down"].map(|part| random(part, shape.weights() / 3, 0.1));
    Expert::from_groups(shape, formats, |part, row, group| {
        let columns = if part == 2 { shape.hidden } else { shape.width };
        let (bits, length) = formats[part];
        let row = &weights[part][row * columns..][..columns];
        let from = group * length;
        let max_code = u8::MAX >> (8 - bits.code_bits());
        Group::fit(&row[from..columns.min(from + length)], max_code)
    })
}

/// Every width with every length of groups, and one of mixed parts.
fn experts(shape: ExpertShape) -> impl Iterator<Item = Expert> {
    let formats = BitWidth::ALL.into_iter().flat_map(|b| GROUP_LENGTHS.map(|group| (b, group)));
    formats.map(move |(bits, group)| expert(shape, bits, group)).chain([mixed(shape)])
}

fn forward(expert: &Expert, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    expert.forward(x, &mut out);
    out
}

/// Bounds of |kernel − exact| for one row of a product, given bounds `dx` of the input's error; with
/// activations of 8 bits when there is a group.
fn product_bound(w: &[f64], x: &[f64], dx: &[f64], group: Option<usize>) -> Vec<f64> {
    let mut dx = dx.to_vec();
    if let Some(group) = group {
        for (dx, x) in dx.chunks_mut(group).zip(x.chunks(group)) {
            // A code is within half a step of the value, and its product with the inverse scale
            // rounds, of at most 127, by less than 2⁻¹⁶.
            let largest = x.iter().zip(&*dx).map(|(x, d)| x.abs() + d).fold(0.0, f64::max);
            dx.iter_mut().for_each(|d| *d += 0.5001 * largest / 127.0);
        }
    }
    // Scale, minimum and their products round once each, and so does each of the additions, at most
    // one a column, of the sum of magnitudes. Both parts of a weight, scale times code and minimum,
    // are at most a few times the largest weight.
    let largest_w = w.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let rounding = (x.len() + 4) as f64 * f64::from(f32::EPSILON) * 4.0 * largest_w;
    let absolute: f64 = x.iter().zip(&dx).map(|(x, d)| x.abs() + d).sum();
    w.chunks(x.len())
        .map(|w| w.iter().zip(&dx).map(|(w, d)| w.abs() * d).sum::<f64>() + rounding * absolute)
        .collect()
}

fn expert_bound(expert: &Expert, x: &[f32]) -> Vec<f64> {
    let [gate, up, down] = reference::weights(expert);
    let [gate_group, up_group, down_group] =
        expert.groups().map_or([None; 3], |groups| groups.map(Some));
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let exact = |w: &[f64]| -> Vec<f64> {
        w.chunks(x.len()).map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum()).collect()
    };
    let zero = vec![0.0; x.len()];
    let dg = product_bound(&gate, &x, &zero, gate_group);
    let du = product_bound(&up, &x, &zero, up_group);
    let mut inner = Vec::new();
    let mut d_inner = Vec::new();
    for (((g, u), dg), du) in exact(&gate).into_iter().zip(exact(&up)).zip(dg).zip(du) {
        let silu = g / (1.0 + (-g).exp());
        inner.push(silu * u);
        // |silu'| < 1.1
        let rounding = 8.0 * f64::from(f32::EPSILON) * (silu * u).abs();
        d_inner.push(1.1 * dg * (u.abs() + du) + silu.abs() * du + rounding);
    }
    product_bound(&down, &inner, &d_inner, down_group)
}

#[test]
fn forward_is_within_the_derived_bound_of_the_f64_definition() {
    for (width, hidden) in [(256, 64), (300, 290), (33, 7), (1, 1), (70, 100)] {
        let shape = ExpertShape { width, hidden };
        let x = random("x", 3 * width, 1.0);
        for expert in experts(shape) {
            let what = format!("{shape:?} {:?} {:?}", expert.widths(), expert.groups());
            let (out, exact) = (forward(&expert, &x), reference::forward(&expert, &x));
            for (t, row) in x.chunks(width).enumerate() {
                let bounds = expert_bound(&expert, row);
                for (i, limit) in bounds.iter().enumerate() {
                    let at = t * width + i;
                    let error = (f64::from(out[at]) - exact[at]).abs();
                    assert!(error <= *limit, "{what}: {error} > {limit}");
                }
            }
        }
    }
}

/// Relative error of the output against the f64 definition of `exact`.
fn relative_error(out: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = out.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (error / exact.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn more_bits_and_shorter_groups_bring_the_output_closer_to_the_f32_expert() {
    let x = random("x", 32 * SHAPE.width, 1.0);
    let exact = reference::forward(&expert(SHAPE, BitWidth::Full, 64), &x);
    for group in GROUP_LENGTHS {
        let errors = BitWidth::ALL
            .map(|bits| relative_error(&forward(&expert(SHAPE, bits, group), &x), &exact));
        // A bit more about halves the step, but 2 bits gain the most from clipping.
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0] / 1.7), "{errors:?}");
        // Uniform rounding to 2^b levels over a range of 5 σ errs by 5/(2^b − 1)/√12 per product, and
        // that of activations to 8 bits, whose largest of a group is 3 σ or 4 σ, by 4/127/√12.
        for (error, limit) in errors.iter().zip([0.9, 0.4, 0.18, 0.02, 1e-6]) {
            assert!(error < &limit, "{errors:?}");
        }
    }
    let at = |group| relative_error(&forward(&expert(SHAPE, BitWidth::Four, group), &x), &exact);
    assert!(GROUP_LENGTHS.windows(2).all(|pair| at(pair[0]) < at(pair[1])));
}

/// Experts in f64 from the same codes tell the error of the activations from that of the weights.
#[test]
fn activations_of_8_bits_err_less_than_weights_of_4() {
    let x = random("x", 32 * SHAPE.width, 1.0);
    let full = reference::forward(&expert(SHAPE, BitWidth::Full, 64), &x);
    for group in GROUP_LENGTHS {
        let mut weights = Vec::new();
        let mut activations = Vec::new();
        for bits in BitWidth::QUANTIZED {
            let expert = expert(SHAPE, bits, group);
            let exact = reference::forward(&expert, &x);
            #[expect(clippy::cast_possible_truncation, reason = "an error of f32 is small")]
            let rounded: Vec<f32> = exact.iter().map(|y| *y as f32).collect();
            weights.push(relative_error(&rounded, &full));
            activations.push(relative_error(&forward(&expert, &x), &exact));
        }
        eprintln!("groups of {group}: weights {weights:.4?}, activations {activations:.4?}");
        assert!(activations.iter().all(|error| error * 5.0 < weights[2]), "{activations:?}");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    for bits in BitWidth::ALL {
        for hidden in [64, 37] {
            let shape = ExpertShape { width: 256, hidden };
            let expert = expert(shape, bits, 64);
            let x = random("rows", 200 * 256, 1.0);
            let all = forward(&expert, &x);
            for (start, rows) in [(0, 1), (7, 1), (199, 1), (0, 5), (3, 5), (150, 50), (1, 199)] {
                let range = start * 256..(start + rows) * 256;
                let some = forward(&expert, &x[range.clone()]);
                let same = some.iter().zip(&all[range]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{bits} bits, hidden {hidden}, rows {start}..{}", start + rows);
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_shows_in_its_row_only() {
    for bits in BitWidth::ALL {
        let expert = expert(SHAPE, bits, 64);
        let mut x = random("faulty", 3 * 256, 1.0);
        x[256 + 9] = f32::NAN;
        let out = forward(&expert, &x);
        assert!(out[256..512].iter().all(|y| y.is_nan()), "{bits}");
        assert!(out[..256].iter().chain(&out[512..]).all(|y| y.is_finite()), "{bits}");
    }
}

#[test]
fn no_rows_give_no_output() {
    forward(&expert(SHAPE, BitWidth::Two, 32), &[]);
    forward(&expert(SHAPE, BitWidth::Full, 32), &[]);
}

#[test]
fn sizes_count_codes_scales_and_padding() {
    for (bits, group, expected) in [
        (BitWidth::Two, 64, 2.5),
        (BitWidth::Two, 32, 3.0),
        // Rows of the down matrix have 64 weights: a shorter group.
        (BitWidth::Two, 256, (2.125 + 2.125 + 2.5) / 3.0),
        (BitWidth::Three, 64, 3.5),
        (BitWidth::Three, 256, (3.125 + 3.125 + 3.5) / 3.0),
        (BitWidth::Four, 128, (4.25 + 4.25 + 4.5) / 3.0),
        (BitWidth::Four, 64, 4.5),
        (BitWidth::Four, 32, 5.0),
        (BitWidth::Eight, 64, 8.5),
        (BitWidth::Eight, 32, 9.0),
        (BitWidth::Full, 32, 32.0),
    ] {
        let expert = expert(SHAPE, bits, group);
        assert_eq!(expert.bits_per_weight(), expected);
        assert_eq!(expert.bits(), bits);
        assert_eq!(expert.bytes() as f64, SHAPE.weights() as f64 * expected / 8.0);
        assert_eq!(expert.bytes(), SHAPE.bytes(bits, group));
    }
    let mixed = mixed(SHAPE);
    assert_eq!(mixed.bits_per_weight(), (2.5 + 3.125 + 9.0) / 3.0);
    assert_eq!(mixed.bits(), BitWidth::Eight);
    assert_eq!(mixed.widths(), [BitWidth::Two, BitWidth::Three, BitWidth::Eight]);
    assert_eq!(mixed.groups(), Some([64, 256, 32]));
    assert_eq!(f32_bytes(SHAPE), 3 * 256 * 64 * 4);
    // 5 × 3 and 3 × 5: each one tile of 32 rows by one block of 32 columns, in one group.
    let odd = ExpertShape { width: 3, hidden: 5 };
    assert_eq!(odd.bytes(BitWidth::Eight, 32), 3 * (32 * 32 + 32 * 4));
    assert_eq!(
        expert(odd, BitWidth::Eight, 32).to_bytes().len() as u64,
        28 + odd.bytes(BitWidth::Eight, 32)
    );
}

/// Plain rounding between the smallest and the largest weight, with f16 factors.
fn min_max_error(weights: &[f32], max_code: u8) -> f64 {
    let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = f16::from_f64((f64::from(high) - f64::from(low)) / f64::from(max_code)).to_f64();
    let minimum = f16::from_f32(low).to_f64();
    let error = |w: &f32| {
        let code = if scale > 0.0 { ((f64::from(*w) - minimum) / scale).round() } else { 0.0 };
        (scale * code.clamp(0.0, f64::from(max_code)) + minimum - f64::from(*w)).powi(2)
    };
    weights.iter().map(error).sum()
}

fn measured_error(weights: &[f32], group: &Group) -> f64 {
    let value = |i| group.scale.to_f64() * f64::from(group.code(i)) + group.minimum.to_f64();
    weights.iter().enumerate().map(|(i, w)| (value(i) - f64::from(*w)).powi(2)).sum()
}

proptest! {
    #[test]
    fn the_search_is_never_worse_than_plain_rounding_and_reports_its_error(
        weights in prop::collection::vec(-1.0_f32..1.0, 1..=64),
        exponent in -20_i32..15,
        offset in -3.0_f32..3.0,
    ) {
        let weights: Vec<f32> = weights.iter().map(|w| (w + offset) * 2.0_f32.powi(exponent)).collect();
        for max_code in [3, 15, 255] {
            let group = Group::fit(&weights, max_code);
            prop_assert!((0..weights.len()).all(|i| group.code(i) <= max_code));
            prop_assert!(group.squared_error <= min_max_error(&weights, max_code) * (1.0 + 1e-9));
            let measured = measured_error(&weights, &group);
            prop_assert!((measured - group.squared_error).abs() <= 1e-9 * measured);
            // Half a step, and the rounding of f16: of the minimum, and of the scale times the code,
            // relative and below the normal numbers absolute. More codes are no promise beyond that:
            // a coarse grid may fit by luck what a finer one, from other ends, does not.
            let (low, high) = weights.iter().fold((f32::MAX, f32::MIN), |(l, h), w| (l.min(*w), h.max(*w)));
            let f16_error = f64::from(low.abs() + (high - low)) / 2048.0 + 256.0 / f64::from(1 << 25);
            let limit = f64::from(high - low) / f64::from(max_code) / 2.0 + f16_error;
            prop_assert!(group.squared_error <= weights.len() as f64 * limit * limit);
        }
    }

    #[test]
    fn decoding_arbitrary_bytes_never_panics(
        sizes in [1_u32..40, 1_u32..40], bits in [0_usize..6, 0_usize..6, 0_usize..6],
        group in 0_usize..6, payload in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        let mut bytes = b"NFXP\x03\x00\x00\x00".to_vec();
        bytes.extend(sizes.map(u32::to_le_bytes).as_flattened());
        for bits in bits {
            bytes.extend([2_u16, 3, 4, 8, 32, 7][bits].to_le_bytes());
            bytes.extend([0_u16, 32, 64, 128, 256, 48][group].to_le_bytes());
        }
        // Also with the length that the header describes, where there is one.
        if let Err(CodecError::Length { expected, .. }) = Expert::from_bytes(&bytes) {
            let length = usize::try_from(expected).expect("sizes are small");
            bytes.extend(payload.iter().cycle().take((length - 28) * payload.len().min(1)));
        }
        if let Ok(expert) = Expert::from_bytes(&bytes) {
            prop_assert_eq!(&expert.to_bytes(), &bytes);
            prop_assert!(forward(&expert, &[0.5; 40][..expert.shape().width]).len() < 40);
        }
    }
}

#[test]
fn the_search_beats_plain_rounding_clearly_at_two_bits() {
    let weights = random("bell", 64 * 200, 1.0);
    let total = |error: &dyn Fn(&[f32]) -> f64| weights.chunks(64).map(error).sum::<f64>();
    let plain = total(&|w| min_max_error(w, 3));
    let search = total(&|w| Group::fit(w, 3).squared_error);
    assert!(search < 0.75 * plain, "{search} against {plain}");
}

/// Data, measure and limits of llama.cpp's `tests/test-quantize-fns.cpp`: 0.1 + 2 cos(i), 4096 values,
/// √Σd² ÷ n at most 0.0075 with 2 bits, 0.004 with 3 and 0.002 with more.
#[test]
fn errors_are_within_the_limits_that_llama_cpp_has_for_its_types() {
    let weights: Vec<f32> = (0..4096_u16).map(|i| 0.1 + 2.0 * f32::from(i).cos()).collect();
    for (bits, limit) in [(2, 0.0075), (3, 0.004), (4, 0.002), (8, 0.002)] {
        for group in GROUP_LENGTHS {
            let format = Format { bits, group };
            for (name, matrix) in [
                ("nearest", nearest(&weights, &[1.0; 256], format)),
                ("hqq", hqq(&weights, 256, format)),
            ] {
                let decoded = matrix.weights();
                let squares = weights.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2));
                let error = squares.sum::<f64>().sqrt() / weights.len() as f64;
                assert!(error <= limit, "{name}, {bits} bits in groups of {group}: {error}");
            }
        }
    }
}

#[test]
fn groups_at_the_edges_of_f16_are_represented_or_saturate() {
    let error = |weights: &[f32], max_code| Group::fit(weights, max_code).squared_error.sqrt();
    assert_eq!(error(&[0.0; 64], 3), 0.0);
    assert_eq!(error(&[-2.5; 33], 15), 0.0);
    // A constant that f16 lacks: the scale carries the rest.
    assert!(error(&[0.1234567; 64], 3) < 1e-6);
    assert!(error(&[1000.3; 5], 3) < 1e-3);
    // A narrow group far from zero: the range begins at the f16 below it.
    let far: Vec<f32> = (0..64_u8).map(|i| 1000.1 + f32::from(i) * 1e-3).collect();
    assert!(error(&far, 255) / 8.0 < 0.5 / 255.0);
    // Beyond f16: clipped towards the largest, never infinite.
    for huge in [
        [1e30, -1e30],
        [f32::MAX, f32::MIN],
        [f32::MAX, f32::MAX],
        [f32::MIN, f32::MIN],
        [7e4, 0.0],
    ] {
        let group = Group::fit(&huge, 255);
        assert!(
            group.scale.is_finite() && group.minimum.is_finite() && group.squared_error.is_finite()
        );
    }
    let clipped = Group::fit(&[f32::MAX; 4], 3);
    let value = clipped.scale.to_f32() * f32::from(clipped.code(0)) + clipped.minimum.to_f32();
    assert!(value >= 65_504.0);
    // Below the smallest f16, 2^-24: rounded to it or to zero.
    assert!(error(&[1e-9, -1e-9, 3e-38], 3) <= 2e-9);
    assert!(error(&[1e-7, -1e-7], 3) / 2.0_f64.sqrt() <= 0.5 / f64::from(1 << 24));
}

#[test]
fn an_encoding_decodes_to_the_same_expert() {
    for shape in [SHAPE, ExpertShape { width: 33, hidden: 7 }, ExpertShape { width: 1, hidden: 1 }]
    {
        for expert in experts(shape) {
            let bytes = expert.to_bytes();
            assert_eq!(bytes.len() as u64, expert.encoded_bytes());
            assert_eq!(bytes.len() as u64, 28 + expert.bytes());
            let decoded = Expert::from_bytes(&bytes).expect("its own encoding decodes");
            assert_eq!(decoded, expert);
            assert_eq!(decoded.to_bytes(), bytes);
        }
    }
}

#[test]
fn a_damaged_header_or_length_is_an_error_and_never_a_panic() {
    for bits in BitWidth::ALL {
        let bytes = expert(ExpertShape { width: 5, hidden: 3 }, bits, 32).to_bytes();
        for length in 0..bytes.len() {
            assert!(Expert::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Expert::from_bytes(&longer), Err(CodecError::Length { .. })));
        for at in 0..28 {
            for flip in 1..=255_u8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                // Some other sizes have the same length. Such an expert is whole, if not the one meant.
                if let Ok(other) = Expert::from_bytes(&damaged) {
                    assert!(at >= 8, "byte {at} with {flip} flipped");
                    assert_eq!(other.to_bytes(), damaged);
                }
            }
        }
    }
}

#[test]
fn a_header_is_judged_field_by_field() {
    let bytes = expert(SHAPE, BitWidth::Four, 64).to_bytes();
    let with = |at: usize, field: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        Expert::from_bytes(&bytes).expect_err("the field is wrong").to_string()
    };
    for (at, field, message) in [
        (0, b"GGUF".as_slice(), "these bytes are no encoded expert: they do not begin with `NFXP`"),
        (4, &[2, 0], "the encoding has version 2, this release reads version 3"),
        (6, &[1], "the header's reserved field is 1, which no expert has"),
        (8, &[0, 0, 0, 0], "the header's width is 0, which no expert has"),
        (12, &[0, 0, 0, 0], "the header's hidden is 0, which no expert has"),
        (16, &[5], "the header's gate bits is 5, which no expert has"),
        (18, &[48], "the header's gate group is 48, which no expert has"),
        (20, &[32], "the header's up bits is 32, which no expert has"),
        (22, &[0], "the header's up group is 0, which no expert has"),
        (24, &[0], "the header's down bits is 0, which no expert has"),
        (26, &[64, 1], "the header's down group is 320, which no expert has"),
        (16, &[32], "the header's gate group is 64, which no expert has"),
        (16, &[32, 0, 0, 0], "the header's up bits is 4, which no expert has"),
        (28, &[0, 0x7c], "the payload holds a weight, scale or minimum that is not finite"),
        (28 + 64, &[1, 0x7c], "the payload holds a weight, scale or minimum that is not finite"),
    ] {
        assert_eq!(with(at, field), message);
    }
    let whole = with(8, &[0xff; 8]);
    assert!(whole.contains("18446744073709551615 bytes"), "{whole}");
}

#[test]
fn bit_widths_have_names() {
    for bits in BitWidth::ALL {
        assert_eq!(BitWidth::parse(bits.name()), Ok(bits));
        assert_eq!(BitWidth::from_code_bits(bits.code_bits()), Some(bits));
    }
    let error = BitWidth::parse("5").expect_err("no such width");
    assert_eq!(error.to_string(), "`5` is no bit width: write 2, 3, 4, 8 or f32");
}

#[test]
fn parts_of_bits_of_their_own_are_those_of_experts_of_these_bits() {
    let weights = ["gate", "up", "down"].map(|part| random(part, SHAPE.weights() / 3, 0.1));
    let parts = weights.each_ref().map(Vec::as_slice);
    let bits = [BitWidth::Two, BitWidth::Eight, BitWidth::Four];
    let mixed = Expert::quantize_parts(SHAPE, parts, bits, 64);
    assert_eq!(mixed.widths(), bits);
    let decoded = reference::weights(&mixed);
    for (part, bits) in bits.into_iter().enumerate() {
        let uniform = reference::weights(&expert(SHAPE, bits, 64));
        assert_eq!(decoded[part], uniform[part], "part {part}");
    }
    let bytes = |part: usize| SHAPE.part_bytes(bits[part], 64)[part];
    assert_eq!(mixed.bytes(), bytes(0) + bytes(1) + bytes(2));
    for bits in [BitWidth::Three, BitWidth::Full] {
        assert_eq!(SHAPE.part_bytes(bits, 64).iter().sum::<u64>(), SHAPE.bytes(bits, 64));
        let alike = Expert::quantize_parts(SHAPE, parts, [bits; 3], 64);
        assert_eq!(alike, expert(SHAPE, bits, 64));
    }
}
