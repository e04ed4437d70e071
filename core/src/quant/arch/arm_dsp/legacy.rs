//! Blocks of 32 weights: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

use core::arch::asm;
#[cfg(target_abi = "eabihf")]
use core::mem::offset_of;

use super::super::super::{GROUP, HALF, LANES};
use super::{PAIRS, Spread, Tile, bytes, half};

pub(super) fn q8_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_two_rows::<34>(lanes, add_two_rows_of_bytes, |g, block, lane| {
        add_scaled(dot_bytes(bytes(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

pub(super) fn q4_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_two_rows::<18>(lanes, add_two_rows_of_nibbles, |g, block, lane| {
        add_scaled(dot_nibbles(tile.x.sums[g], bytes(block, 2), &tile.x.pairs[g]), block, &tile.x.d[g], lane);
    });
}

pub(super) fn q4_1(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_blocks::<20>(lanes, |g, block, lane| {
        let scaled = dot_nibbles(0, bytes(block, 4), &x.pairs[g]) as f32 * half(block, 0);
        *lane += (scaled + x.sums[g] as f32 * half(block, 2)) * x.d[g];
    });
}

pub(super) fn q5_0(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    tile.for_blocks::<22>(lanes, |g, block, lane| {
        let sum = dot_fives(tile.x.sums[g], bytes(block, 2), bytes(block, 6), &tile.x.pairs[g]);
        add_scaled(sum, block, &tile.x.d[g], lane);
    });
}

pub(super) fn q5_1(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_blocks::<24>(lanes, |g, block, lane| {
        let scaled = dot_fives(0, bytes(block, 4), bytes(block, 8), &x.pairs[g]) as f32 * half(block, 0);
        *lane += (scaled + x.sums[g] as f32 * half(block, 2)) * x.d[g];
    });
}

/// `lane += sum · scale · d`, where the scale is the f16 a block starts with.
#[inline(always)]
#[cfg(target_abi = "eabihf")]
pub(super) fn add_scaled<const BYTES: usize>(sum: i32, block: &[u8; BYTES], d: &f32, lane: &mut f32) {
    // SAFETY: every FPU that `eabihf` stands for on these processors has these instructions. They read the block's first
    // two bytes, aligned or not as LDRH may, and the f32 `d`, and write the f32 `lane`. VMLA rounds the product.
    unsafe {
        asm!(
            "ldrh {scale}, [{block}]",
            "vmov s0, {sum}",
            "vmov s1, {scale}",
            "vcvt.f32.s32 s0, s0",
            "vcvtb.f32.f16 s1, s1",
            "vldr s2, [{d}]",
            "vmul.f32 s0, s0, s1",
            "vldr s1, [{lane}]",
            "vmla.f32 s1, s0, s2",
            "vstr s1, [{lane}]",
            scale = out(reg) _, block = in(reg) block.as_ptr(), sum = in(reg) sum, d = in(reg) d, lane = in(reg) lane,
            out("s0") _, out("s1") _, out("s2") _,
            options(nostack),
        );
    }
}

/// The same without an FPU.
#[inline(always)]
#[cfg(not(target_abi = "eabihf"))]
pub(super) fn add_scaled<const BYTES: usize>(sum: i32, block: &[u8; BYTES], d: &f32, lane: &mut f32) {
    *lane += sum as f32 * half(block, 0) * d;
}

/// 32 codes of 8 bits: two SXTB16 and two SMLAD for each word.
#[inline(always)]
fn dot_bytes(q: &[u8; GROUP], x: &[u32; PAIRS]) -> i32 {
    #[rustfmt::skip]
    macro_rules! eight {
        ($at:literal) => {
            concat!(
                "ldm {x}!, {{r2, r3, r4, r5}}\n",
                "ldr {w}, [{q}, #", $at, "]\n",
                "sxtb16 {t}, {w}\n", "smlad {sum}, {t}, r2, {sum}\n",
                "sxtb16 {w}, {w}, ror #8\n", "smlad {sum}, {w}, r3, {sum}\n",
                "ldr {w}, [{q}, #", $at, "+4]\n",
                "sxtb16 {t}, {w}\n", "smlad {sum}, {t}, r4, {sum}\n",
                "sxtb16 {w}, {w}, ror #8\n", "smlad {sum}, {w}, r5, {sum}",
            )
        };
    }
    let mut sum = 0;
    // SAFETY: reads the 32 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDM needs.
    unsafe {
        asm!(
            eight!(0), eight!(8), eight!(16), eight!(24),
            q = in(reg) q.as_ptr(), x = inout(reg) x.as_ptr() => _, sum = inout(reg) sum, w = out(reg) _, t = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(pure, readonly, nostack),
        );
    }
    sum
}

/// Two rows' sums in R8 and R9, times the scales of their blocks at R0 and R1 and of the activations at R11, are added to
/// the lanes at R12, the second row's being 32 bytes after the first's. All pointers move on, blocks being `$bytes` long.
///
/// VMLA rounds the product before it adds it.
#[cfg(target_abi = "eabihf")]
#[rustfmt::skip]
macro_rules! add_two_scaled {
    ($bytes:literal) => {
        concat!(
            "vmov s0, s1, r8, r9\n", "vcvt.f32.s32 s0, s0\n", "vcvt.f32.s32 s1, s1\n",
            "ldrh r6, [r0], #", $bytes, "\n", "ldrh r7, [r1], #", $bytes, "\n",
            "vmov s2, s3, r6, r7\n", "vcvtb.f32.f16 s2, s2\n", "vcvtb.f32.f16 s3, s3\n",
            "vmul.f32 s0, s0, s2\n", "vmul.f32 s1, s1, s3\n",
            "vldmia r11!, {{s4}}\n",
            "vldr s2, [r12]\n", "vldr s3, [r12, #32]\n",
            "vmla.f32 s2, s0, s4\n", "vmla.f32 s3, s1, s4\n",
            "vstr s3, [r12, #32]\n", "vstmia r12!, {{s2}}",
        )
    };
}

/// Adds the products of two rows' blocks of Q8_0 to their lanes. Both share the loads of activations.
///
/// R6 and R7, which are no operands' to have, are borrowed.
#[cfg(target_abi = "eabihf")]
fn add_two_rows_of_bytes(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    let n = (row.len() / 34).min(LANES);
    if n == 0 || row.len() != other.len() {
        return;
    }
    /// Two words of codes of the block at `$row`; `$first` multiplies their first pair.
    #[rustfmt::skip]
    macro_rules! two_words {
        ($row:literal, $sum:literal, $at:literal, $first:expr) => {
            concat!(
                "ldr r6, [", $row, ", #2+", $at, "]\n",
                "sxtb16 r7, r6\n", $first, "\n",
                "sxtb16 r6, r6, ror #8\n", "smlad ", $sum, ", r6, r3, ", $sum, "\n",
                "ldr r6, [", $row, ", #6+", $at, "]\n",
                "sxtb16 r7, r6\n", "smlad ", $sum, ", r7, r4, ", $sum, "\n",
                "sxtb16 r6, r6, ror #8\n", "smlad ", $sum, ", r6, r5, ", $sum, "\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! eight {
        (0) => {
            concat!(
                "ldm r10!, {{r2, r3, r4, r5}}\n",
                two_words!("r0", "r8", 0, "smuad r8, r7, r2"), two_words!("r1", "r9", 0, "smuad r9, r7, r2")
            )
        };
        ($at:literal) => {
            concat!(
                "ldm r10!, {{r2, r3, r4, r5}}\n",
                two_words!("r0", "r8", $at, "smlad r8, r7, r2, r8"), two_words!("r1", "r9", $at, "smlad r9, r7, r2, r9")
            )
        };
    }
    // SAFETY: reads `n` blocks of both rows, aligned or not as LDR and LDRH may, and `n` groups' pairs and scales; reads
    // and writes `n` lanes of each row, the second's 32 bytes after the first's. `n` is at most LANES, and both rows are
    // as long. R6 and R7 are as before when it ends.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            "2:",
            eight!(0), eight!(8), eight!(16), eight!(24), add_two_scaled!(34),
            "subs lr, lr, #1",
            "bne 2b",
            "pop {{r6, r7}}",
            inout("r0") row.as_ptr() => _, inout("r1") other.as_ptr() => _, inout("r10") x.pairs.as_ptr() => _,
            inout("r11") x.d.as_ptr() => _, inout("r12") lanes.as_mut_ptr() => _, inout("lr") n => _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _, out("r8") _, out("r9") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
        );
    }
}

/// Adds the products of two rows' blocks of Q4_0 to their lanes, as [`add_two_rows_of_bytes`] does.
#[cfg(target_abi = "eabihf")]
fn add_two_rows_of_nibbles(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    let n = (row.len() / 18).min(LANES);
    if n == 0 || row.len() != other.len() {
        return;
    }
    /// Pairs of word R6 of a row and of word R7 of the other, shifted by each `$shift`, with those in R2 and in R3.
    #[rustfmt::skip]
    macro_rules! both_rows {
        ($shift0:literal, $shift1:literal) => {
            concat!(
                "and r4, r5, r6", $shift0, "\n", "smlad r8, r4, r2, r8\n",
                "and r4, r5, r6", $shift1, "\n", "smlad r8, r4, r3, r8\n",
                "and r4, r5, r7", $shift0, "\n", "smlad r9, r4, r2, r9\n",
                "and r4, r5, r7", $shift1, "\n", "smlad r9, r4, r3, r9\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr r6, [r0, #2+4*", $w, "]\n", "ldr r7, [r1, #2+4*", $w, "]\n",
                "ldrd r2, r3, [r10, #8*", $w, "]\n", both_rows!("", ", lsr #8"),
                "ldrd r2, r3, [r10, #32+8*", $w, "]\n", both_rows!(", lsr #4", ", lsr #12"),
            )
        };
    }
    // SAFETY: as there; what the sums start with is in `x`, too, `sums` bytes after a group's scale.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            "2:",
            "ldr r8, [r11, #{sums}]",
            "mov r9, r8",
            word!(0), word!(1), word!(2), word!(3), add_two_scaled!(18),
            "add r10, r10, #64",
            "subs lr, lr, #1",
            "bne 2b",
            "pop {{r6, r7}}",
            sums = const offset_of!(Spread, sums) - offset_of!(Spread, d),
            inout("r0") row.as_ptr() => _, inout("r1") other.as_ptr() => _,
            inout("r10") (x as *const Spread).cast::<u8>() => _,
            inout("r11") (x as *const Spread).cast::<u8>().add(offset_of!(Spread, d)) => _,
            inout("r12") lanes.as_mut_ptr() => _, inout("lr") n => _, in("r5") 0x000f_000f,
            out("r2") _, out("r3") _, out("r4") _, out("r8") _, out("r9") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
        );
    }
}

/// The same without an FPU.
#[cfg(not(target_abi = "eabihf"))]
fn add_two_rows_of_bytes(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    for (row, lanes) in [row, other].into_iter().zip(lanes) {
        for (g, (block, lane)) in row.as_chunks::<34>().0.iter().zip(lanes).enumerate() {
            add_scaled(dot_bytes(bytes(block, 2), &x.pairs[g]), block, &x.d[g], lane);
        }
    }
}

/// The same without an FPU.
#[cfg(not(target_abi = "eabihf"))]
fn add_two_rows_of_nibbles(row: &[u8], other: &[u8], x: &Spread, lanes: &mut [[f32; LANES]; 2]) {
    for (row, lanes) in [row, other].into_iter().zip(lanes) {
        for (g, (block, lane)) in row.as_chunks::<18>().0.iter().zip(lanes).enumerate() {
            add_scaled(dot_nibbles(x.sums[g], bytes(block, 2), &x.pairs[g]), block, &x.d[g], lane);
        }
    }
}

/// 16 bytes whose low nibbles are a group's first half, and whose high ones its second.
#[inline(always)]
fn dot_nibbles(start: i32, q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr {w}, [{q}, #4*", $w, "]\n",
                "ldrd {a}, {b}, [{x}, #8*", $w, "]\n",
                "and {t}, {m}, {w}\n", "smlad {sum}, {t}, {a}, {sum}\n",
                "and {t}, {m}, {w}, lsr #8\n", "smlad {sum}, {t}, {b}, {sum}\n",
                "ldrd {a}, {b}, [{x}, #32+8*", $w, "]\n",
                "and {t}, {m}, {w}, lsr #4\n", "smlad {sum}, {t}, {a}, {sum}\n",
                "and {t}, {m}, {w}, lsr #12\n", "smlad {sum}, {t}, {b}, {sum}",
            )
        };
    }
    let mut sum = start;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDRD needs.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            q = in(reg) q.as_ptr(), x = in(reg) x.as_ptr(), m = in(reg) 0x000f_000f, sum = inout(reg) sum,
            w = out(reg) _, t = out(reg) _, a = out(reg) _, b = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    sum
}

/// 16 bytes of nibbles, whose fifth bits are those of `high` in the order of the weights.
#[inline(always)]
fn dot_fives(start: i32, high: &[u8; 4], q: &[u8; HALF], x: &[u32; PAIRS]) -> i32 {
    /// Four bits times SPREAD are one at place 4 of each byte.
    #[rustfmt::skip]
    macro_rules! four_codes {
        ($nibbles:literal, $bits:expr, $x:expr) => {
            concat!(
                "ubfx {high}, {bits}, #", $bits, ", #4\n",
                "mul {high}, {high}, {spread}\n",
                "and {high}, {high}, #0x10101010\n",
                "and {t}, {m}, {w}", $nibbles, "\n",
                "orr {t}, {t}, {high}\n",
                "ldrd {a}, {b}, [{x}, #", $x, "]\n",
                "uxtb16 {high}, {t}\n", "smlad {sum}, {high}, {a}, {sum}\n",
                "uxtb16 {t}, {t}, ror #8\n", "smlad {sum}, {t}, {b}, {sum}\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr {w}, [{q}, #4*", $w, "]\n",
                four_codes!("", concat!("4*", $w), concat!("8*", $w)),
                four_codes!(", lsr #4", concat!("16+4*", $w), concat!("32+8*", $w)),
            )
        };
    }
    const SPREAD: u32 = 1 << 4 | 1 << 11 | 1 << 18 | 1 << 25;
    let mut sum = start;
    // SAFETY: reads the 16 bytes of `q`, aligned or not as LDR may, and the 64 of `x`, which are words as LDRD needs.
    unsafe {
        asm!(
            word!(0), word!(1), word!(2), word!(3),
            q = in(reg) q.as_ptr(), x = in(reg) x.as_ptr(), bits = in(reg) u32::from_le_bytes(*high),
            spread = in(reg) SPREAD, m = in(reg) 0x0f0f_0f0f, sum = inout(reg) sum,
            w = out(reg) _, t = out(reg) _, high = out(reg) _, a = out(reg) _, b = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    sum
}
