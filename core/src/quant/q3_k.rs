//! Q3_K: a super-block of 256 weights of 3 bits; each 16 share a 6-bit scale.
//!
//! ```text
//! byte 0                  32                 96                 108      110
//!      ┌──────────────────┬──────────────────┬──────────────────┬────────┐
//!      │ hmask: 32 bytes  │ qs: 2 × 32 bytes │ scales: 12 bytes │ d: f16 │
//!      └──────────────────┴──────────────────┴──────────────────┴────────┘
//! low two bits of q as in Q2_K; weight 32k + l has bit k of hmask[l] as its third, which is worth -4 when it is 0
//! scale j: low 4 bits in nibble j of bytes 0-7 (j < 8: low nibbles), top 2 in byte 8 + j % 4, at bit 2 · (j / 4)
//! weight[i] = q[i] · (s - 32) · d
//! ```

use core::ops::Range;

use crate::part::item;

use super::q2_k::pairs;
use super::{Batch, GROUP, GROUPS, Groups, HALF, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 110;
const HMASK: Range<usize> = 0..32;
const QS: Range<usize> = 32..96;
const SCALES: Range<usize> = 96..108;
const D: Range<usize> = 108..110;

/// The codes, -4..=3.
#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [[i8; GROUP]; GROUPS] {
    let mut codes = pairs(&block[QS]);
    for (g, codes) in codes.iter_mut().enumerate() {
        for (code, mask) in codes.iter_mut().zip(&block[HMASK]) {
            *code -= if mask & 1 << g == 0 { 4 } else { 0 };
        }
    }
    codes
}

/// Every half group's scale, -32..=31.
#[inline(always)]
fn scales(block: &[u8; BYTES]) -> [[i8; 2]; GROUPS] {
    let s = &block[SCALES];
    let scale = |j: usize| {
        let low = item(s, j % 8) >> (4 * (j / 8)) & 15;
        let high = item(s, 8 + j % 4) >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    };
    core::array::from_fn(|g| [scale(2 * g), scale(2 * g + 1)])
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    for ((out, codes), scales) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(codes(block)).zip(scales(block)) {
        for (i, (out, q)) in out.iter_mut().zip(codes).enumerate() {
            *out = d * f32::from(scales[i / HALF]) * f32::from(q);
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
    Groups { scales: scales(block), ..Groups::new(codes(block), half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 2, BYTES, false>(groups, rows, x, products)
}
