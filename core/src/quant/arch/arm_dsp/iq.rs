//! IQ4_NL and IQ4_XS, whose nibbles index a table.

use core::arch::asm;

use super::super::super::iq4_nl::STEPS;
use super::super::super::{HALF, LANES};
use super::legacy::add_scaled;
use super::{PAIRS, Tile, bytes, half, word};

pub(super) fn iq4_nl(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_blocks::<18>(lanes, |g, block, lane| {
        add_scaled(dot_steps(bytes(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

pub(super) fn iq4_xs(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 136] = bytes(row, 0);
        let d = half(block, 0);
        let (high, low) = (u32::from(block[2]) | u32::from(block[3]) << 8, word(block, 4));
        for (g, lane) in lanes.iter_mut().enumerate() {
            let s = (low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4) as i32 - 32;
            *lane += (dot_steps(bytes(block, 8 + 16 * g), &x.pairs[g]) * s) as f32 * d * x.d[g];
        }
    });
}

/// What both nibbles of a byte stand for in the IQ4 formats, as a pair. 1 KiB of flash.
static STEP_PAIRS: [u32; 256] = {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (STEPS[byte & 15], STEPS[byte >> 4]);
        pairs[byte] = low as u16 as u32 | (high as u16 as u32) << 16;
        byte += 1;
    }
    pairs
};

/// 16 bytes of nibbles that index [`STEPS`]; pairs of activations in [`Order::Halves`].
#[inline(always)]
fn dot_steps(q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldm {x}!, {{r2, r3, r4, r5}}\n",
                "ldr {w}, [{q}, #4*",
                $w,
                "]\n",
                "uxtb {t}, {w}\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r2, {sum}\n",
                "ubfx {t}, {w}, #8, #8\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r3, {sum}\n",
                "ubfx {t}, {w}, #16, #8\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r4, {sum}\n",
                "lsr {t}, {w}, #24\n",
                "ldr {t}, [{steps}, {t}, lsl #2]\n",
                "smlad {sum}, {t}, r5, {sum}",
            )
        };
    }
    let mut sum = 0;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, the 64 of `x`, which are words as LDM needs, and
    // words of a table that has one for each byte there is.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            q = in(reg) q.as_ptr(), x = inout(reg) x.as_ptr() => _, steps = in(reg) STEP_PAIRS.as_ptr(),
            sum = inout(reg) sum, w = out(reg) _, t = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(pure, readonly, nostack),
        );
    }
    sum
}
