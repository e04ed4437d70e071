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
use super::{Batch, GROUP, Group, HALF, SUPER, dequantize_blocks, multiply_groups, scale};

/// Weights per block.
pub(super) const LEN: usize = SUPER;
/// Bytes per block.
pub(super) const BYTES: usize = 110;
const HMASK: Range<usize> = 0..32;
const QS: Range<usize> = 32..96;
const SCALES: Range<usize> = 96..108;
const D: Range<usize> = 108..110;

/// Group `g`'s codes, -4..=3.
#[inline(always)]
fn codes(block: &[u8; BYTES], g: usize) -> [i8; GROUP] {
    let mut codes = pairs(&block[QS], g);
    for (code, mask) in codes.iter_mut().zip(&block[HMASK]) {
        *code += (mask >> g & 1) as i8 * 4 - 4;
    }
    codes
}

/// Every half group's scale, -32..=31.
#[inline(always)]
fn scales(block: &[u8; BYTES]) -> [i8; 16] {
    let s = &block[SCALES];
    core::array::from_fn(|j| {
        let low = s[j % 8] >> (4 * (j / 8)) & 15;
        let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The weights of one block.
fn values(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = scale(block, D);
    let scales = scales(block);
    for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        for (i, (out, q)) in out.iter_mut().zip(codes(block, g)).enumerate() {
            *out = d * f32::from(scales[2 * g + i / HALF]) * f32::from(q);
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
    let scales = scales(block);
    Group { scales: [scales[2 * g], scales[2 * g + 1]], ..Group::new(codes(block, g), scale(block, D)) }
}

/// The products of rows with activation rows.
pub(super) fn multiply(rows: &[u8], x: &Batch, products: &mut [f32]) {
    multiply_groups::<LEN, BYTES, false>(group, rows, x, products)
}
