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

use super::q4_k::{self, scale_and_minimum};
use super::{Activation, GROUP, LANES, SUPER, dot_codes, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 176;
const D: Range<usize> = 0..2;
const DMIN: Range<usize> = 2..4;
const SCALES: Range<usize> = 4..16;
const QH: Range<usize> = 16..48;
const QS: Range<usize> = 48..BYTES;

/// Group `g`'s codes, 0..=31.
#[inline(always)]
fn group(block: &[u8], g: usize) -> [i8; GROUP] {
    let mut codes = q4_k::group(&block[QS], g);
    for (code, high) in codes.iter_mut().zip(&block[QH]) {
        *code |= ((high >> g & 1) << 4) as i8;
    }
    codes
}

/// The weights of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (scale(block, D), scale(block, DMIN));
    for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let (s, m) = scale_and_minimum(&block[SCALES], g);
        let (ds, dm) = (d * f32::from(s), dmin * f32::from(m));
        for (out, q) in out.iter_mut().zip(group(block, g)) {
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
        for (g, (lane, x)) in lanes.iter_mut().zip(x.groups()).enumerate() {
            let (s, m) = scale_and_minimum(&block[SCALES], g);
            let scaled = dot_codes(&group(block, g), x.q) * i32::from(s);
            let minimum = (x.sums[0] + x.sums[1]) * i32::from(m);
            *lane += (scaled as f32 * d - minimum as f32 * dmin) * x.d;
        }
    }
    sum_lanes(lanes)
}
