//! F16: each weight is an IEEE half-precision number.

use half::f16;

use super::{Activation, dot_float};

/// Weights per block.
pub(super) const LEN: usize = 1;
/// Bytes per block.
pub(super) const BYTES: usize = 2;

/// The weights of a row.
fn weights(row: &[u8]) -> impl Iterator<Item = f32> + Clone {
    row.as_chunks::<BYTES>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32())
}

/// The weight of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    weights(block).zip(out).for_each(|(w, out)| *out = w);
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    dot_float(weights(row), x.x)
}
