//! Q2_K: a super-block of 256 weights of 2 bits; each 16 share a 4-bit scale and a 4-bit minimum.
//!
//! ```text
//! byte 0                    16                 80       82         84
//!      ┌────────────────────┬──────────────────┬────────┬───────────┐
//!      │ scales: 16 bytes   │ qs: 2 × 32 bytes │ d: f16 │ dmin: f16 │
//!      └────────────────────┴──────────────────┴────────┴───────────┘
//! byte j of scales: scale s in the low nibble, minimum m in the high one, of weights 16j..16j + 16
//! 32 bytes of qs hold 4 × 32 weights: bits 0-1 the first 32, bits 2-3 the next, and so on
//! weight[i] = q[i] · s · d - m · dmin
//! ```

use core::ops::Range;

use super::{Batch, GROUP, GROUPS, Groups, HALF, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 84;
const SCALES: Range<usize> = 0..16;
const QS: Range<usize> = 16..80;
const D: Range<usize> = 80..82;
const DMIN: Range<usize> = 82..84;

/// The pairs of bits of 64 bytes, in the order of the picture. Shared with Q3_K.
#[inline(always)]
pub(super) fn pairs(qs: &[u8]) -> [[i8; GROUP]; GROUPS] {
    let mut out = [[0; GROUP]; GROUPS];
    for ([a, b, c, d], qs) in out.as_chunks_mut::<4>().0.iter_mut().zip(qs.as_chunks::<GROUP>().0) {
        for (i, byte) in qs.iter().enumerate() {
            a[i] = (byte & 3) as i8;
            b[i] = (byte >> 2 & 3) as i8;
            c[i] = (byte >> 4 & 3) as i8;
            d[i] = (byte >> 6) as i8;
        }
    }
    out
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin) = (scale(half(block, D)), scale(half(block, DMIN)));
    let scales = block[SCALES].as_chunks::<2>().0;
    for ((out, pairs), scales) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(pairs(&block[QS])).zip(scales) {
        for (i, (out, q)) in out.iter_mut().zip(pairs).enumerate() {
            let s = scales[i / HALF];
            *out = d * f32::from(s & 15) * f32::from(q) - dmin * f32::from(s >> 4);
        }
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// A block's groups.
#[inline(always)]
fn groups(block: &[u8; BYTES]) -> Groups<GROUPS, 2> {
    let mut both = [[0; 2]; GROUPS];
    both.as_flattened_mut().copy_from_slice(&block[SCALES]);
    let (scales, minima) = (both.map(|s| s.map(|s| (s & 15) as i8)), both.map(|s| s.map(|s| s >> 4)));
    Groups { scales, minima, m: half(block, DMIN) ^ 0x8000, ..Groups::new(pairs(&block[QS]), half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 2, BYTES, true>(groups, rows, x, products)
}
