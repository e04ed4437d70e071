//! Q5_0: 32 weights of 5 bits share one scale.
//!
//! ```text
//! byte 0        2                       6                          22
//!      ┌────────┬───────────────────────┬───────────────────────────┐
//!      │ d: f16 │ qh: u32, bit i is bit │ qs: 16 bytes, two a byte  │   weight[i] = (q[i] - 16) · d
//!      │        │ 4 of q[i]             │                           │
//!      └────────┴───────────────────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::{Activation, GROUP, LANES, dot_codes, less, nibbles, scale, sum_lanes};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 22;
const D: Range<usize> = 0..2;
const QH: Range<usize> = 2..6;
const QS: Range<usize> = 6..BYTES;

/// Nibbles `qs` and fifth bits `qh`: 0..=31. Shared with Q5_1.
#[inline(always)]
pub(super) fn fives(qh: &[u8], qs: &[u8]) -> [u8; GROUP] {
    let mut q = nibbles(qs);
    for (q, byte) in q.chunks_exact_mut(8).zip(qh) {
        q.iter_mut().enumerate().for_each(|(i, q)| *q |= u8::from(byte & 1 << i != 0) << 4);
    }
    q
}

#[inline(always)]
fn codes(block: &[u8]) -> [i8; GROUP] {
    less(fives(&block[QH], &block[QS]), 16)
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
