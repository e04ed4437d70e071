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

use super::{Activation, GROUP, HALF, LANES, SUPER, dot_halves, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 84;
const SCALES: Range<usize> = 0..16;
const QS: Range<usize> = 16..80;
const D: Range<usize> = 80..82;
const DMIN: Range<usize> = 82..84;

/// 64 bytes hold 256 pairs of bits, in the order of the picture. Shared with Q3_K.
#[inline(always)]
pub(super) fn pairs(qs: &[u8]) -> [i8; SUPER] {
    let mut out = [0; SUPER];
    for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
        for (out, byte) in out.iter_mut().zip(&qs[g / 4 * GROUP..][..GROUP]) {
            *out = (byte >> (2 * (g % 4)) & 3) as i8;
        }
    }
    out
}

/// The weights of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (scale(block, D), scale(block, DMIN));
    let codes = pairs(&block[QS]);
    for ((out, codes), s) in out.chunks_exact_mut(HALF).zip(codes.chunks_exact(HALF)).zip(&block[SCALES]) {
        let (ds, dm) = (d * f32::from(s & 15), dmin * f32::from(s >> 4));
        for (out, &q) in out.iter_mut().zip(codes) {
            *out = ds * f32::from(q) - dm;
        }
    }
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    let mut lanes = [0.0; LANES];
    for (block, x) in row.chunks_exact(BYTES).zip(x.super_blocks()) {
        let (d, dmin) = (scale(block, D), scale(block, DMIN));
        let codes = pairs(&block[QS]);
        let groups = codes.chunks_exact(GROUP).zip(block[SCALES].as_chunks::<2>().0).zip(x.groups());
        for (lane, ((codes, s), x)) in lanes.iter_mut().zip(groups) {
            let [a, b] = dot_halves(codes, x.q);
            let scaled = a * i32::from(s[0] & 15) + b * i32::from(s[1] & 15);
            let minimum = x.sums[0] * i32::from(s[0] >> 4) + x.sums[1] * i32::from(s[1] >> 4);
            *lane += (scaled as f32 * d - minimum as f32 * dmin) * x.d;
        }
    }
    sum_lanes(lanes)
}
