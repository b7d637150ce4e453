//! Expert forward passes per width, and quantization. One item is one floating-point operation, or
//! its equivalent in the quantized kernels: 2 per weight and token.

use agents::expert::{BitWidth, Expert, ExpertShape};
use agents::rng::stream;
use divan::counter::ItemsCount;
use rand::RngExt as _;

fn main() {
    divan::main();
}

const SHAPES: [ExpertShape; 2] =
    [ExpertShape { width: 256, hidden: 64 }, ExpertShape { width: 256, hidden: 640 }];
const TOKENS: [usize; 3] = [4, 32, 256];

fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(1, purpose);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

fn expert(shape: ExpertShape, bits: BitWidth) -> Expert {
    let part = |purpose| random(purpose, shape.weights() / 3);
    Expert::quantize(shape, &part("gate"), &part("up"), &part("down"), bits, 64)
}

fn cases() -> Vec<String> {
    let names = |shape: ExpertShape| {
        TOKENS.into_iter().flat_map(move |m| {
            BitWidth::ALL.map(|bits| format!("{}x{} m={m} bits={bits}", shape.width, shape.hidden))
        })
    };
    SHAPES.into_iter().flat_map(names).collect()
}

#[divan::bench(args = cases())]
fn forward(bencher: divan::Bencher<'_, '_>, case: &str) {
    let at = cases().iter().position(|name| name == case).expect("a case from the list");
    let shape = SHAPES[at / (TOKENS.len() * BitWidth::ALL.len())];
    let tokens = TOKENS[at / BitWidth::ALL.len() % TOKENS.len()];
    let expert = expert(shape, BitWidth::ALL[at % BitWidth::ALL.len()]);
    let x = random("x", tokens * shape.width);
    let mut out = vec![0.0; x.len()];
    bencher
        .counter(ItemsCount::new(2 * tokens * shape.weights()))
        .bench_local(|| expert.forward(divan::black_box(&x), &mut out));
}

/// Items are weights.
#[divan::bench(args = [2, 4, 8])]
fn quantize(bencher: divan::Bencher<'_, '_>, bits: u32) {
    let shape = SHAPES[0];
    let weights = random("weights", shape.weights() / 3);
    let bits = BitWidth::from_code_bits(bits).expect("a width");
    bencher
        .counter(ItemsCount::new(shape.weights()))
        .bench_local(|| Expert::quantize(shape, &weights, &weights, &weights, bits, 64));
}
