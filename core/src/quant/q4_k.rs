//! Q4_K: a super-block of 256 weights of 4 bits; each 32 share a 6-bit scale and a 6-bit minimum.
//!
//! ```text
//! byte 0        2           4                  16                 144
//!      ┌────────┬───────────┬──────────────────┬───────────────────┐
//!      │ d: f16 │ dmin: f16 │ scales: 12 bytes │ qs: 4 × 32 bytes  │
//!      └────────┴───────────┴──────────────────┴───────────────────┘
//! 32 bytes of qs hold 2 × 32 weights: the low nibbles, then the high ones
//! scales: group g < 4 has its scale in bits 0-5 of byte g and its minimum in those of byte g + 4;
//!         group g ≥ 4 has 4 low bits of both in byte g + 4, and the 2 top bits in bits 6-7 of bytes g - 4 and g
//! weight[i] = q[i] · s · d - m · dmin
//! ```

use core::ops::Range;

use super::{Batch, GROUP, GROUPS, Groups, SUPER, dequantize_blocks, half, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 144;
const D: Range<usize> = 0..2;
const DMIN: Range<usize> = 2..4;
const SCALES: Range<usize> = 4..16;
const QS: Range<usize> = 16..BYTES;

/// Each group's scale and minimum, 0..=63. Shared with Q5_K.
#[inline(always)]
pub(super) fn scales_and_minima(bytes: &[u8]) -> [(u8, u8); GROUPS] {
    core::array::from_fn(|g| {
        let [a, b, c] = [bytes[g % 4], bytes[4 + g % 4], bytes[8 + g % 4]];
        if g < 4 { (a & 63, b & 63) } else { (c & 15 | a >> 6 << 4, c >> 4 | b >> 6 << 4) }
    })
}

/// The nibbles. Shared with Q5_K.
#[inline(always)]
pub(super) fn nibbles(qs: &[u8]) -> [[i8; GROUP]; GROUPS] {
    let mut out = [[0; GROUP]; GROUPS];
    for ([low, high], qs) in out.as_chunks_mut::<2>().0.iter_mut().zip(qs.as_chunks::<GROUP>().0) {
        for (i, byte) in qs.iter().enumerate() {
            (low[i], high[i]) = ((byte & 15) as i8, (byte >> 4) as i8);
        }
    }
    out
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin) = (scale(half(block, D)), scale(half(block, DMIN)));
    let groups = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(nibbles(&block[QS]));
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
    Groups { scales, minima, m: half(block, DMIN) ^ 0x8000, ..Groups::new(nibbles(&block[QS]), half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<GROUPS, 1, BYTES, true>(groups, rows, x, products)
}
