//! Q4_1: 32 weights of 4 bits share a scale and a minimum.
//!
//! ```text
//! byte 0        2        4                          20
//!      ┌────────┬────────┬───────────────────────────┐
//!      │ d: f16 │ m: f16 │ qs: 16 bytes, two a byte  │   weight[i] = q[i] · d + m
//!      └────────┴────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::{Activation, GROUP, LANES, dot_codes, less, nibbles, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 20;
const D: Range<usize> = 0..2;
const M: Range<usize> = 2..4;
const QS: Range<usize> = 4..BYTES;

#[inline(always)]
fn codes(block: &[u8]) -> [i8; GROUP] {
    less(nibbles(&block[QS]), 0)
}

/// The weights of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, D), scale(block, M));
    for (out, q) in out.iter_mut().zip(codes(block)) {
        *out = f32::from(q) * d + m;
    }
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, (block, x)) in row.chunks_exact(BYTES).zip(x.groups()).enumerate() {
        let scaled = dot_codes(&codes(block), x.q) as f32 * scale(block, D);
        let minimum = (x.sums[0] + x.sums[1]) as f32 * scale(block, M);
        lanes[i % LANES] += (scaled + minimum) * x.d;
    }
    sum_lanes(lanes)
}
