//! The slow definition of an expert, in f64: the oracle of the kernels.

use super::{Expert, ExpertShape, Weights};

/// Gate and up `[hidden, width]` and down `[width, hidden]` as the codes define them, exact.
#[must_use]
pub fn weights(expert: &Expert) -> [Vec<f64>; 3] {
    match &expert.weights {
        Weights::Full(parts) => {
            (**parts).each_ref().map(|part| part.rows().into_iter().map(f64::from).collect())
        }
        Weights::Quantized(parts) => (**parts).each_ref().map(|matrix| {
            let columns = matrix.layout.columns;
            (0..matrix.layout.rows * columns)
                .map(|i| {
                    let (scale, minimum) = matrix.scale_and_minimum(i / columns, i % columns);
                    let code = f64::from(matrix.code(i / columns, i % columns));
                    scale.to_f64() * code + minimum.to_f64()
                })
                .collect()
        }),
    }
}

/// `expert(x)` in f64 from [`weights`], with activations as they are. `x` is row-major `[m, width]`.
#[must_use]
pub fn forward(expert: &Expert, x: &[f32]) -> Vec<f64> {
    let ExpertShape { width, hidden } = expert.shape;
    let [gate, up, down] = weights(expert);
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let inner: Vec<f64> = product(&x, &gate, width)
        .iter()
        .zip(product(&x, &up, width))
        .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        .collect();
    product(&inner, &down, hidden)
}

/// `x · wᵀ` for row-major `x` and `w` of `columns` each.
fn product(x: &[f64], w: &[f64], columns: usize) -> Vec<f64> {
    let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum();
    x.chunks(columns).flat_map(|row| w.chunks(columns).map(move |w| dot(row, w))).collect()
}
