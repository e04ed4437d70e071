//! Q5_K: a super-block of 256 weights of 5 bits; each 32 share a 6-bit scale and a 6-bit minimum.
//!
//! ```text
//! byte 0        2           4                  16             48                 176
//!      ┌────────┬───────────┬──────────────────┬──────────────┬───────────────────┐
//!      │ d: f16 │ dmin: f16 │ scales: 12 bytes │ qh: 32 bytes │ qs: 4 × 32 bytes  │
//!      └────────┴───────────┴──────────────────┴──────────────┴───────────────────┘
//! scales and qs as in Q4_K; weight 32g + l has bit g of qh[l] as its fifth
//! weight[i] = q[i] · s · d - m · dmin
//! ```

use core::ops::Range;

use super::q4_k::{nibbles, scales_and_minima};
use super::{Batch, GROUP, GROUPS, Groups, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 176;
const D: Range<usize> = 0..2;
const DMIN: Range<usize> = 2..4;
const SCALES: Range<usize> = 4..16;
const QH: Range<usize> = 16..48;
const QS: Range<usize> = 48..BYTES;

/// The codes, 0..=31.
#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [[i8; GROUP]; GROUPS] {
    let mut codes = nibbles(&block[QS]);
    for (g, codes) in codes.iter_mut().enumerate() {
        for (code, high) in codes.iter_mut().zip(&block[QH]) {
            *code |= if high & 1 << g == 0 { 0 } else { 16 };
        }
    }
    codes
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin) = (scale(half(block, D)), scale(half(block, DMIN)));
    let groups = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(codes(block));
    for ((out, codes), (s, m)) in groups.zip(scales_and_minima(&block[SCALES])) {
        let (ds, dm) = (d * f32::from(s), dmin * f32::from(m));
        for (out, q) in out.iter_mut().zip(codes) {
            *out = ds * f32::from(q) - dm;
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
    let both = scales_and_minima(&block[SCALES]);
    let (scales, minima) = (both.map(|(s, _)| [s as i8]), both.map(|(_, m)| [m; 2]));
    Groups { scales, minima, m: half(block, DMIN) ^ 0x8000, ..Groups::new(codes(block), half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 1, BYTES, true>(groups, rows, x, products)
}
