//! Q5_1: 32 weights of 5 bits share a scale and a minimum.
//!
//! ```text
//! byte 0        2        4                       8                          24
//!      ┌────────┬────────┬───────────────────────┬───────────────────────────┐
//!      │ d: f16 │ m: f16 │ qh: u32, bit i is bit │ qs: 16 bytes, two a byte  │   weight[i] = q[i] · d + m
//!      │        │        │ 4 of q[i]             │                           │
//!      └────────┴────────┴───────────────────────┴───────────────────────────┘
//! ```

use core::ops::Range;

use super::q5_0::fives;
use super::{Batch, GROUP, Groups, dequantize_blocks, half, less, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = 32;
/// Bytes per block.
pub(super) const BYTES: usize = 24;
const D: Range<usize> = 0..2;
const M: Range<usize> = 2..4;
const QH: Range<usize> = 4..8;
const QS: Range<usize> = 8..BYTES;

#[inline(always)]
fn codes(block: &[u8; BYTES]) -> [i8; GROUP] {
    less(fives(&block[QH], &block[QS]), 0)
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, m) = (scale(half(block, D)), scale(half(block, M)));
    for (out, q) in out.iter_mut().zip(codes(block)) {
        *out = f32::from(q) * d + m;
    }
}

/// The weights of any number of blocks.
pub(super) fn dequantize(blocks: &[u8], out: &mut [f32]) {
    dequantize_blocks(values, blocks, out);
}

/// A block's group.
#[inline(always)]
fn groups(block: &[u8; BYTES]) -> Groups<1, 1> {
    Groups { minima: [[1; 2]], m: half(block, M), ..Groups::new([codes(block)], half(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<1, 1, BYTES, true>(groups, rows, x, products)
}
