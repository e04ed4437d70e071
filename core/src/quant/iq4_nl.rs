//! IQ4_NL: 32 weights of 4 bits, which index a table of uneven steps, share one scale.
//!
//! ```text
//! byte 0        2                          18
//!      ┌────────┬───────────────────────────┐
//!      │ d: f16 │ qs: 16 bytes, two a byte  │   weight[i] = STEPS[q[i]] · d
//!      └────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::{Batch, GROUP, Groups, dequantize_blocks, half, multiply_groups, nibbles, scale};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 18;
const D: Range<usize> = 0..2;
const QS: Range<usize> = 2..BYTES;

/// What a nibble stands for. Shared with IQ4_XS.
pub(super) const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The codes of 16 bytes. Shared with IQ4_XS.
pub(super) fn steps(qs: &[u8]) -> [i8; GROUP] {
    nibbles(qs).map(|q| STEPS[usize::from(q & 15)])
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    for (out, q) in out.iter_mut().zip(steps(&block[QS])) {
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
    Groups::new([steps(&block[QS])], half(block, D))
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<1, 1, BYTES, false>(groups, rows, x, products)
}
