//! BF16: each weight is the upper half of an f32.

use half::bf16;

use super::{Batch, multiply_floats};

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

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_floats(weight, rows, x, products)
}
