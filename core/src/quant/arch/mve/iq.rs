//! IQ4_NL and IQ4_XS, whose nibbles index a table.

use core::arch::asm;

use super::super::super::iq4_nl::STEPS;
use super::super::super::{GROUP, HALF, LANES, SUPER, sum_lanes};
use super::super::arm_dsp::{bytes, half, word};
use super::{Tile, helium};

pub(super) fn iq4_nl(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<18>(products, |block, x, lane| {
        *lane += dot_steps(bytes(block, 2), x.q) as f32 * half(block, 0) * x.d;
    });
}

pub(super) fn iq4_xs(tile: &Tile, products: &mut [f32]) {
    tile.for_rows(products, |row, x| {
        let mut lanes = [0.0; LANES];
        for ((block, q), x_d) in row.as_chunks::<136>().0.iter().zip(x.q.as_chunks().0).zip(x.d.as_chunks().0) {
            add_block(block, q, x_d, &mut lanes);
        }
        sum_lanes(lanes)
    });
}

/// Adds the products of a block of IQ4_XS to the lanes.
#[inline(always)]
fn add_block(block: &[u8; 136], q: &[i8; SUPER], x_d: &[f32; LANES], lanes: &mut [f32; LANES]) {
    let d = half(block, 0);
    let (high, low) = (u32::from(block[2]) | u32::from(block[3]) << 8, word(block, 4));
    for (g, lane) in lanes.iter_mut().enumerate() {
        let s = (low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4) as i32 - 32;
        *lane += (dot_steps(bytes(block, 8 + HALF * g), &q.as_chunks().0[g]) * s) as f32 * d * x_d[g];
    }
}

/// 16 bytes of nibbles that index [`STEPS`]: a load that gathers looks 16 of them up. Reads `c`, `q` and the table.
#[inline(always)]
fn dot_steps(c: &[u8; HALF], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vldrb.u8 q3, [{steps}, q2]",
            "vldrb.u8 q1, [{q}]",
            "vldrb.u8 q4, [{steps}, q0]",
            "vmlav.s8 r0, q3, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q4, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(), steps = in(reg) STEPS.as_ptr(),
    )[0]
}
