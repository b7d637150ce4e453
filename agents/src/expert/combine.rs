//! The weighted sum of expert outputs.

use crate::ids::TokenId;

/// `out[t] = Σ gate · output` over the pairs of token `t`, in f32 and in the order of `pairs`.
///
/// The caller lists a token's pairs by ascending expert, so that the bits never depend on the order
/// in which replies arrive. `out` is `[tokens, width]`; tokens without a pair get zeros.
///
/// # Panics
/// When an output's length is not `width`, or a token lies beyond `out`.
pub fn combine(pairs: &[(TokenId, f32, &[f32])], width: usize, out: &mut [f32]) {
    out.fill(0.0);
    for (token, gate, output) in pairs {
        assert_eq!(output.len(), width, "an output has the width of the layer");
        let start = token.index() * width;
        for (sum, y) in out[start..start + width].iter_mut().zip(*output) {
            *sum += gate * y;
        }
    }
}
