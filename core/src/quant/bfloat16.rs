//! BF16: each weight is the upper half of an f32.

use half::bf16;

use super::{Activation, dot_float};

/// Weights per block.
pub(super) const LEN: usize = 1;
/// Bytes per block.
pub(super) const BYTES: usize = 2;

#[inline(always)]
fn weight(bytes: [u8; BYTES]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    blocks.as_chunks().0.iter().zip(out).for_each(|(&bytes, out)| *out = weight(bytes));
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    dot_float(row.as_chunks().0, weight, x.x)
}
