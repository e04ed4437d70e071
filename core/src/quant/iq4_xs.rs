//! IQ4_XS: a super-block of 256 weights of 4 bits, which index a table of uneven steps; each 32 share a 6-bit scale.
//!
//! ```text
//! byte 0        2               4             8                           136
//!      ┌────────┬───────────────┬─────────────┬─────────────────────────────┐
//!      │ d: f16 │ scales_h: u16 │ scales_l: 4 │ qs: 8 groups of 16 bytes    │
//!      └────────┴───────────────┴─────────────┴─────────────────────────────┘
//! group g's scale s: nibble g of scales_l, bits 2g and 2g + 1 of scales_h above it
//! weight[i] = STEPS[q[i]] · (s - 32) · d
//! ```

use core::ops::Range;

use crate::part::item;

use super::iq4_nl::steps;
use super::{Batch, GROUP, GROUPS, Groups, HALF, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 136;
const D: Range<usize> = 0..2;
const SCALES_H: Range<usize> = 2..4;
const SCALES_L: Range<usize> = 4..8;
const QS: Range<usize> = 8..BYTES;

/// Each group's scale, -32..=31.
#[inline(always)]
fn scales(block: &[u8; BYTES]) -> [i8; 8] {
    let (high, low) = (&block[SCALES_H], &block[SCALES_L]);
    core::array::from_fn(|g| {
        let low = item(low, g / 2) >> (4 * (g % 2)) & 15;
        let high = item(high, g / 4) >> (2 * (g % 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    for ((out, qs), s) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(block[QS].chunks_exact(HALF)).zip(scales(block))
    {
        let ds = d * f32::from(s);
        for (out, q) in out.iter_mut().zip(steps(qs)) {
            *out = ds * f32::from(q);
        }
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// A block's groups.
#[inline(always)]
fn groups(block: &[u8; BYTES]) -> Groups<GROUPS, 1> {
    let mut codes = [[0; GROUP]; GROUPS];
    codes.iter_mut().zip(block[QS].chunks_exact(HALF)).for_each(|(codes, qs)| *codes = steps(qs));
    Groups { scales: scales(block).map(|s| [s]), ..Groups::new(codes, half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 1, BYTES, false>(groups, rows, x, products)
}
