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

use super::{Batch, GROUP, Group, SUPER, dequantize_blocks, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 144;
const D: Range<usize> = 0..2;
const DMIN: Range<usize> = 2..4;
const SCALES: Range<usize> = 4..16;
const QS: Range<usize> = 16..BYTES;

/// Group `g`'s scale and minimum, 0..=63. Shared with Q5_K.
#[inline(always)]
pub(super) fn scale_and_minimum(scales: &[u8], g: usize) -> (u8, u8) {
    let [a, b, c] = [scales[g % 4], scales[4 + g % 4], scales[8 + g % 4]];
    if g < 4 { (a & 63, b & 63) } else { (c & 15 | a >> 6 << 4, c >> 4 | b >> 6 << 4) }
}

/// Group `g`'s nibbles. Shared with Q5_K.
#[inline(always)]
pub(super) fn nibbles(qs: &[u8], g: usize) -> [i8; GROUP] {
    let mut out = [0; GROUP];
    for (out, byte) in out.iter_mut().zip(&qs[g / 2 * GROUP..][..GROUP]) {
        *out = (byte >> (4 * (g % 2)) & 15) as i8;
    }
    out
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin) = (scale(block, D), scale(block, DMIN));
    for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_minimum(&block[SCALES], g);
        let (ds, dm) = (d * f32::from(s), dmin * f32::from(m));
        for (out, q) in out.iter_mut().zip(nibbles(&block[QS], g)) {
            *out = ds * f32::from(q) - dm;
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
    let (s, m) = scale_and_minimum(&block[SCALES], g);
    let (scales, minima) = ([s as i8; 2], [m; 2]);
    Group { scales, minima, m: -scale(block, DMIN), ..Group::new(nibbles(&block[QS], g), scale(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<LEN, BYTES, true>(group, rows, x, products)
}
