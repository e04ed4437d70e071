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

use super::q2_k::pairs;
use super::{Activation, GROUP, HALF, LANES, SUPER, dot_halves, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 110;
const HMASK: Range<usize> = 0..32;
const QS: Range<usize> = 32..96;
const SCALES: Range<usize> = 96..108;
const D: Range<usize> = 108..110;

/// Every weight's code, -4..=3.
#[inline(always)]
fn codes(block: &[u8]) -> [i8; SUPER] {
    let mut codes = pairs(&block[QS]);
    for (k, codes) in codes.chunks_exact_mut(GROUP).enumerate() {
        for (code, mask) in codes.iter_mut().zip(&block[HMASK]) {
            *code += (mask >> k & 1) as i8 * 4 - 4;
        }
    }
    codes
}

/// Every half group's scale, -32..=31.
#[inline(always)]
fn scales(block: &[u8]) -> [i8; 16] {
    let s = &block[SCALES];
    core::array::from_fn(|j| {
        let low = s[j % 8] >> (4 * (j / 8)) & 15;
        let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The weights of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    let d = scale(block, D);
    let codes = codes(block);
    for ((out, codes), s) in out.chunks_exact_mut(HALF).zip(codes.chunks_exact(HALF)).zip(scales(block)) {
        let ds = d * f32::from(s);
        for (out, &q) in out.iter_mut().zip(codes) {
            *out = ds * f32::from(q);
        }
    }
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    let mut lanes = [0.0; LANES];
    for (block, x) in row.chunks_exact(BYTES).zip(x.super_blocks()) {
        let d = scale(block, D);
        let (codes, scales) = (codes(block), scales(block));
        let groups = codes.chunks_exact(GROUP).zip(scales.as_chunks::<2>().0).zip(x.groups());
        for (lane, ((codes, s), x)) in lanes.iter_mut().zip(groups) {
            let [a, b] = dot_halves(codes, x.q);
            *lane += (a * i32::from(s[0]) + b * i32::from(s[1])) as f32 * d * x.d;
        }
    }
    sum_lanes(lanes)
}
