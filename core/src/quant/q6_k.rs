//! Q6_K: a super-block of 256 weights of 6 bits; each 16 share an 8-bit scale.
//!
//! ```text
//! byte 0                 128               192                208      210
//!      ┌─────────────────┬─────────────────┬──────────────────┬────────┐
//!      │ ql: 2 × 64      │ qh: 2 × 32      │ scales: 16 × i8  │ d: f16 │
//!      └─────────────────┴─────────────────┴──────────────────┴────────┘
//! 64 bytes of ql and 32 of qh hold 4 × 32 weights: low nibbles of ql[0..32] and of ql[32..64], then their high ones;
//! bits 4-5 of the four come from bits 0-1, 2-3, 4-5 and 6-7 of qh
//! weight[i] = (q[i] - 32) · s · d
//! ```

use core::ops::Range;

use super::{Batch, GROUP, Group, HALF, SUPER, dequantize_blocks, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 210;
const QL: Range<usize> = 0..128;
const QH: Range<usize> = 128..192;
const SCALES: Range<usize> = 192..208;
const D: Range<usize> = 208..BYTES;

/// Group `g`'s codes, -32..=31.
#[inline(always)]
fn codes(block: &[u8; BYTES], g: usize) -> [i8; GROUP] {
    let (half, g) = (g / 4, g % 4);
    let ql = &block[QL][half * 64 + g % 2 * GROUP..][..GROUP];
    let qh = &block[QH][half * GROUP..][..GROUP];
    let mut codes = [0; GROUP];
    for ((code, low), high) in codes.iter_mut().zip(ql).zip(qh) {
        *code = (low >> (4 * (g / 2)) & 15 | (high >> (2 * g) & 3) << 4) as i8 - 32;
    }
    codes
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(block, D);
    for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let scales = &block[SCALES][2 * g..][..2];
        for (i, (out, q)) in out.iter_mut().zip(codes(block, g)).enumerate() {
            *out = d * f32::from(scales[i / HALF] as i8) * f32::from(q);
        }
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// Group `g` of a block.
#[inline(always)]
fn group(block: &[u8; BYTES], g: usize) -> Group {
    let scales = [block[SCALES][2 * g] as i8, block[SCALES][2 * g + 1] as i8];
    Group { scales, ..Group::new(codes(block, g), scale(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<LEN, BYTES, false>(group, rows, x, products)
}
