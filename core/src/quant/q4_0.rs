//! Q4_0: 32 weights of 4 bits share one scale.
//!
//! ```text
//! byte 0        2                          18
//!      ┌────────┬───────────────────────────┐
//!      │ d: f16 │ qs: 16 bytes, two a byte  │   weight[i] = (q[i] - 8) · d
//!      └────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::{Activation, GROUP, LANES, dot_codes, less, nibbles, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 18;
const D: Range<usize> = 0..2;
const QS: Range<usize> = 2..BYTES;

#[inline(always)]
fn codes(block: &[u8]) -> [i8; GROUP] {
    less(nibbles(&block[QS]), 8)
}

/// The weights of one block.
pub(super) fn dequantize(block: &[u8], out: &mut [f32]) {
    let d = scale(block, D);
    for (out, q) in out.iter_mut().zip(codes(block)) {
        *out = f32::from(q) * d;
    }
}

/// The product of a row with an activation row.
#[inline(always)]
pub(super) fn dot(row: &[u8], x: &Activation) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, (block, x)) in row.chunks_exact(BYTES).zip(x.groups()).enumerate() {
        lanes[i % LANES] += dot_codes(&codes(block), x.q) as f32 * scale(block, D) * x.d;
    }
    sum_lanes(lanes)
}
