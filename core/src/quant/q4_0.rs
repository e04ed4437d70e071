//! Q4_0: 32 weights of 4 bits share one scale.
//!
//! ```text
//! byte 0        2                          18
//!      ┌────────┬───────────────────────────┐
//!      │ d: f16 │ qs: 16 bytes, two a byte  │   weight[i] = (q[i] - 8) · d
//!      └────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::{Batch, GROUP, Groups, dequantize_blocks, half, less, multiply_groups, nibbles, scale};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 18;
const D: Range<usize> = 0..2;
const QS: Range<usize> = 2..BYTES;

#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [i8; GROUP] {
    less(nibbles(&block[QS]), 8)
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    for (out, q) in out.iter_mut().zip(codes(block)) {
        *out = f32::from(q) * d;
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// A block's group.
#[inline(always)]
fn groups(block: &[u8; BYTES]) -> Groups<1, 1> {
    Groups::new([codes(block)], half(block, D))
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<1, 1, BYTES, false>(groups, rows, x, products)
}
