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

use super::{Batch, GROUP, Groups, dequantize_blocks, half, less, multiply_groups, nibbles, scale};

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
    let mut bits = [[0; 8]; 4];
    bits.iter_mut().zip(qh).for_each(|(bits, &byte)| *bits = [byte; 8]);
    let mut q = nibbles(qs);
    for (i, (q, byte)) in q.iter_mut().zip(bits.as_flattened()).enumerate() {
        *q |= if byte & 1 << (i % 8) == 0 { 0 } else { 16 };
    }
    q
}

#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [i8; GROUP] {
    less(fives(&block[QH], &block[QS]), 16)
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(half(block, D));
    for (out, q) in out.iter_mut().zip(codes(block)) {
        *out = f32::from(q) * d;
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// A block's group.
#[inline(always)]
fn groups(block: &[u8; BYTES]) -> Groups<1, 1> {
    Groups::new([codes(block)], half(block, D))
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<1, 1, BYTES, false>(groups, rows, x, products)
}
