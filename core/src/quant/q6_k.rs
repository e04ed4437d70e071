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

use super::{Batch, GROUP, GROUPS, Groups, HALF, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 210;
const QL: Range<usize> = 0..128;
const QH: Range<usize> = 128..192;
const SCALES: Range<usize> = 192..208;
const D: Range<usize> = 208..BYTES;

/// The codes, -32..=31.
#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [[i8; GROUP]; GROUPS] {
    let mut codes = [[0; GROUP]; GROUPS];
    let halves = block[QL].as_chunks::<64>().0.iter().zip(block[QH].as_chunks::<GROUP>().0);
    for ([a, b, c, d], (ql, qh)) in codes.as_chunks_mut::<4>().0.iter_mut().zip(halves) {
        for i in 0..GROUP {
            let (even, odd, high) = (ql[i], ql[i + GROUP], qh[i]);
            a[i] = (even & 15 | high << 4 & 0x30) as i8 - 32;
            b[i] = (odd & 15 | high << 2 & 0x30) as i8 - 32;
            c[i] = (even >> 4 | high & 0x30) as i8 - 32;
            d[i] = (odd >> 4 | high >> 2 & 0x30) as i8 - 32;
        }
    }
    codes
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    let scales = block[SCALES].as_chunks::<2>().0;
    for ((out, codes), scales) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(codes(block)).zip(scales) {
        for (i, (out, q)) in out.iter_mut().zip(codes).enumerate() {
            *out = d * f32::from(scales[i / HALF] as i8) * f32::from(q);
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
    let mut scales = [[0; 2]; GROUPS];
    scales.as_flattened_mut().copy_from_slice(&block[SCALES]);
    let scales = scales.map(|s| s.map(|s: u8| s as i8));
    Groups { scales, ..Groups::new(codes(block), half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 2, BYTES, false>(groups, rows, x, products)
}
