//! The K formats: Q2_K to Q6_K, a row at a time.
//!
//! In the assembly, R1 is somewhere in a block, R3 at its activations, R9 at their sums, R11 at their scales, and R5 at
//! the lanes, which lie in Q6 and Q7 until the row ends, so their memory can hold integer scales. LR counts blocks. Four
//! groups share bytes of a block, so their sums are taken together: to Q4, and those of second halves, where these have
//! scales of their own, to Q5.

use core::arch::asm;

use super::super::super::{Activation, LANES};
use super::{Tile, add_to_lanes, keep_four, row};

pub(super) fn q2_k(tile: &Tile, products: &mut [f32]) {
    let (n, mut lanes) = (tile.eights::<84>(), [0.0; LANES]);
    tile.for_rows(products, |row, x| dot_twos(n, row, x, &mut lanes));
}

pub(super) fn q3_k(tile: &Tile, products: &mut [f32]) {
    let (n, mut lanes) = (tile.eights::<110>(), [0.0; LANES]);
    tile.for_rows(products, |row, x| dot_threes(n, row, x, &mut lanes));
}

pub(super) fn q4_k(tile: &Tile, products: &mut [f32]) {
    let (n, mut lanes) = (tile.eights::<144>(), [0.0; LANES]);
    tile.for_rows(products, |row, x| dot_fours(n, row, x, &mut lanes));
}

pub(super) fn q5_k(tile: &Tile, products: &mut [f32]) {
    let (n, mut lanes) = (tile.eights::<176>(), [0.0; LANES]);
    tile.for_rows(products, |row, x| dot_fives(n, row, x, &mut lanes));
}

pub(super) fn q6_k(tile: &Tile, products: &mut [f32]) {
    let (n, mut lanes) = (tile.eights::<210>(), [0.0; LANES]);
    tile.for_rows(products, |row, x| dot_sixes(n, row, x, &mut lanes));
}

/// The f16 `$at` after R1 to R10.
macro_rules! scale {
    ($at:literal) => {
        concat!("ldrh r0, [r1, #", $at, "]\nvmov s0, r0\nvcvtb.f32.f16 s0, s0\nvmov r10, s0")
    };
}

/// The two f16 `$at` after R1 to R10 and R12.
#[rustfmt::skip]
macro_rules! scale_and_minimum {
    ($at:literal) => {
        concat!(
            "ldr r0, [r1, #", $at, "]\nvmov s0, r0\n",
            "vcvtt.f32.f16 s1, s0\nvcvtb.f32.f16 s0, s0\nvmov r10, r12, s0, s1"
        )
    };
}

/// The 6-bit scales and minima of Q4_K and Q5_K, `$a`, `$b` and `$c` after R1, to bytes at R5: scales, then minima.
#[rustfmt::skip]
macro_rules! scales_and_minima {
    ($a:literal, $b:literal, $c:literal) => {
        concat!(
            "ldr r0, [r1, #", $a, "]\nldr r2, [r1, #", $b, "]\nldr r4, [r1, #", $c, "]\n",
            "and r8, r0, #0x3f3f3f3f\n",
            "lsr r0, r0, #2\nand r0, r0, #0x30303030\n",
            "and r10, r4, #0x0f0f0f0f\norr r0, r0, r10\n",
            "strd r8, r0, [r5]\n",
            "and r8, r2, #0x3f3f3f3f\n",
            "lsr r2, r2, #2\nand r2, r2, #0x30303030\n",
            "lsr r4, r4, #4\nand r4, r4, #0x0f0f0f0f\norr r2, r2, r4\n",
            "strd r8, r2, [r5, #8]",
        )
    };
}

/// The sums in Q4 times the scales that [`scales_and_minima`] stored for these four groups, and the minima times the
/// groups' sums to Q5.
#[rustfmt::skip]
macro_rules! scale_groups {
    ($j:literal) => {
        concat!(
            "vldrb.u32 q0, [r5, #4*", $j, "]\nvmul.i32 q4, q4, q0\n",
            "vldrw.u32 q0, [r9], #16\n",
            "vmovlb.s16 q1, q0\nvshr.s32 q0, q0, #16\nvadd.i32 q0, q0, q1\n",
            "vldrb.u32 q1, [r5, #8+4*", $j, "]\nvmul.i32 q5, q0, q1",
        )
    };
}

/// The sums in Q4 and Q5 times the scales of their halves, 16-bit numbers in Q0, added up to Q4.
macro_rules! scale_halves {
    () => {
        "vmovlb.s16 q1, q0\nvshr.s32 q0, q0, #16\nvmul.i32 q4, q4, q1\nvmul.i32 q5, q5, q0\nvadd.i32 q4, q4, q5"
    };
}

/// The sums in Q4 times the scale in R10, less the minima in Q5 times that in R12.
macro_rules! less_minima {
    () => {
        "vcvt.f32.s32 q4, q4\nvcvt.f32.s32 q5, q5\nvmul.f32 q4, q4, r10\nvmul.f32 q5, q5, r12\nvsub.f32 q4, q4, q5"
    };
}

/// Codes: pairs of bits.
#[inline(always)]
fn dot_twos(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    #[rustfmt::skip]
    macro_rules! half_of_four {
        ($j:literal, $h:literal) => {
            concat!(
                "vldrb.u8 q0, [r1, #16+32*", $j, "+16*", $h, "]\n",
                "vand q1, q0, q3\nvldrb.u8 q2, [r3, #16*", $h, "]\nvmlav.s8 r0, q1, q2\n",
                "vshr.u8 q1, q0, #2\nvand q1, q1, q3\nvldrb.u8 q2, [r3, #32+16*", $h, "]\nvmlav.s8 r2, q1, q2\n",
                "vshr.u8 q1, q0, #4\nvand q1, q1, q3\nvldrb.u8 q2, [r3, #64+16*", $h, "]\nvmlav.s8 r4, q1, q2\n",
                "vshr.u8 q1, q0, #6\nvldrb.u8 q2, [r3, #96+16*", $h, "]\nvmlav.s8 r8, q1, q2",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_groups {
        ($j:literal) => {
            concat!(
                half_of_four!($j, 0), "\n", keep_four!(4), "\n", half_of_four!($j, 1), "\n", keep_four!(5), "\n",
                "vldrb.u16 q0, [r1, #8*", $j, "]\n",
                "vshr.u16 q2, q0, #4\nvbic.i16 q0, #0xf0\n", scale_halves!(), "\n",
                // Products of first halves, and of second ones.
                "vldrw.u32 q0, [r9], #16\nvmullb.s16 q1, q0, q2\nvmullt.s16 q5, q0, q2\nvadd.i32 q5, q5, q1\n",
                less_minima!(), "\nadd r3, r3, #128",
            )
        };
    }
    row!(
        n, ["vmov.i8 q3, #0x03"],
        [
            scale_and_minimum!(80),
            four_groups!(0), add_to_lanes!("s24", "s25", "s26", "s27"),
            four_groups!(1), add_to_lanes!("s28", "s29", "s30", "s31"),
            "add r1, r1, #84",
        ],
        row, x, lanes, inout("r9") x.sums.as_ptr() => _, out("r10") _, out("r12") _,
    )
}

/// Codes: VSLI puts the third bit, inverted, above the pair, and VSHL makes it the sign: (c - 4) · 32.
#[inline(always)]
fn dot_threes(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    /// `$low` brings a pair of bits from Q0 to the bottom of Q2, and `$high` a third bit from Q1 to that of Q5.
    #[rustfmt::skip]
    macro_rules! group {
        ($sum:literal, $low:literal, $high:literal, $x:expr) => {
            concat!(
                $low, "\n", $high, "\nvsli.8 q2, q5, #2\nvshl.i8 q2, q2, #5\n",
                "vldrb.u8 q5, [r3, #", $x, "]\nvmlav.s8 ", $sum, ", q2, q5\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! half_of_four {
        ($j:literal, $h:literal, $b0:literal, $b1:literal, $b2:literal, $b3:literal) => {
            concat!(
                "vldrb.u8 q0, [r1, #32+32*", $j, "+16*", $h, "]\nvldrb.u8 q1, [r1, #16*", $h, "]\nvmvn q1, q1\n",
                group!("r0", "vmov q2, q0", $b0, concat!("16*", $h)),
                group!("r2", "vshr.u8 q2, q0, #2", $b1, concat!("32+16*", $h)),
                group!("r4", "vshr.u8 q2, q0, #4", $b2, concat!("64+16*", $h)),
                group!("r8", "vshr.u8 q2, q0, #6", $b3, concat!("96+16*", $h)),
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_groups {
        ($j:literal, $($bit:literal),*) => {
            concat!(
                half_of_four!($j, 0, $($bit),*), keep_four!(4), "\n", half_of_four!($j, 1, $($bit),*), keep_four!(5), "\n",
                "vldrb.u16 q0, [r5, #8*", $j, "]\nvsub.i16 q0, q0, r12\n", scale_halves!(), "\n",
                "vcvt.f32.s32 q4, q4, #5\nvmul.f32 q4, q4, r10\nadd r3, r3, #128",
            )
        };
    }
    row!(
        n, [],
        [
            // The 16 scales, 32 too large, four at a time.
            "ldr r0, [r1, #96]", "ldr r2, [r1, #100]", "ldr r4, [r1, #104]",
            "and r8, r0, #0x0f0f0f0f", "and r10, r4, #0x03030303", "orr r8, r8, r10, lsl #4", "str r8, [r5]",
            "and r8, r2, #0x0f0f0f0f", "and r10, r4, #0x0c0c0c0c", "orr r8, r8, r10, lsl #2", "str r8, [r5, #4]",
            "and r8, r0, #0xf0f0f0f0", "and r10, r4, #0x30303030", "orr r8, r10, r8, lsr #4", "str r8, [r5, #8]",
            "lsr r4, r4, #2",
            "and r8, r2, #0xf0f0f0f0", "and r10, r4, #0x30303030", "orr r8, r10, r8, lsr #4", "str r8, [r5, #12]",
            scale!(108),
            four_groups!(0, "vmov q5, q1", "vshr.u8 q5, q1, #1", "vshr.u8 q5, q1, #2", "vshr.u8 q5, q1, #3"),
            add_to_lanes!("s24", "s25", "s26", "s27"),
            four_groups!(1, "vshr.u8 q5, q1, #4", "vshr.u8 q5, q1, #5", "vshr.u8 q5, q1, #6", "vshr.u8 q5, q1, #7"),
            add_to_lanes!("s28", "s29", "s30", "s31"),
            "add r1, r1, #110",
        ],
        row, x, lanes, out("r10") _, in("r12") 32,
    )
}

/// Codes: nibbles.
#[inline(always)]
fn dot_fours(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    #[rustfmt::skip]
    macro_rules! half_of_two {
        ($vmlav:literal, $at:expr, $low:literal, $x0:expr, $high:literal, $x1:expr) => {
            concat!(
                "vldrb.u8 q0, [r1, #", $at, "]\n",
                "vand q1, q0, q3\nvldrb.u8 q2, [r3, #", $x0, "]\n", $vmlav, " ", $low, ", q1, q2\n",
                "vshr.u8 q0, q0, #4\nvldrb.u8 q2, [r3, #", $x1, "]\n", $vmlav, " ", $high, ", q0, q2\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_groups {
        ($j:literal) => {
            concat!(
                half_of_two!("vmlav.s8", concat!("64*", $j), "r0", 0, "r2", 32),
                half_of_two!("vmlava.s8", concat!("16+64*", $j), "r0", 16, "r2", 48),
                half_of_two!("vmlav.s8", concat!("32+64*", $j), "r4", 64, "r8", 96),
                half_of_two!("vmlava.s8", concat!("48+64*", $j), "r4", 80, "r8", 112),
                keep_four!(4), "\n", scale_groups!($j), "\n", less_minima!(), "\nadd r3, r3, #128",
            )
        };
    }
    row!(
        n, ["add r1, r1, #16", "vmov.i8 q3, #0x0f"],
        [
            scales_and_minima!(-12, -8, -4), scale_and_minimum!(-16),
            four_groups!(0), add_to_lanes!("s24", "s25", "s26", "s27"),
            four_groups!(1), add_to_lanes!("s28", "s29", "s30", "s31"),
            "add r1, r1, #144",
        ],
        row, x, lanes, inout("r9") x.sums.as_ptr() => _, out("r10") _, out("r12") _,
    )
}

/// Codes: nibbles, and above them a bit each from `qh`.
#[inline(always)]
fn dot_fives(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    /// 16 bytes of nibbles: `$bit0` brings the low ones' fifth bits from Q1 to the bottom of Q2, `$bit1` the high ones' to
    /// place 4.
    #[rustfmt::skip]
    macro_rules! half_of_two {
        ($vmlav:literal, $at:expr, $bit0:literal, $low:literal, $x0:expr, $bit1:literal, $high:literal, $x1:expr) => {
            concat!(
                "vldrb.u8 q0, [r1, #", $at, "]\nvmov q4, q0\n",
                $bit0, "\nvsli.8 q4, q2, #4\nvand q4, q4, q3\n",
                "vldrb.u8 q5, [r3, #", $x0, "]\n", $vmlav, " ", $low, ", q4, q5\n",
                $bit1, "\nvsri.8 q2, q0, #4\nvand q2, q2, q3\n",
                "vldrb.u8 q5, [r3, #", $x1, "]\n", $vmlav, " ", $high, ", q2, q5\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! half_of_four {
        ($vmlav:literal, $j:literal, $h:literal, $b0:literal, $b1:literal, $b2:literal, $b3:literal) => {
            concat!(
                "vldrb.u8 q1, [r1, #-32+16*", $h, "]\n",
                half_of_two!($vmlav, concat!("64*", $j, "+16*", $h), $b0, "r0", concat!("16*", $h),
                    $b1, "r2", concat!("32+16*", $h)),
                half_of_two!($vmlav, concat!("32+64*", $j, "+16*", $h), $b2, "r4", concat!("64+16*", $h),
                    $b3, "r8", concat!("96+16*", $h)),
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_groups {
        ($j:literal, $($bit:literal),*) => {
            concat!(
                half_of_four!("vmlav.s8", $j, 0, $($bit),*), half_of_four!("vmlava.s8", $j, 1, $($bit),*),
                keep_four!(4), "\n", scale_groups!($j), "\n", less_minima!(), "\nadd r3, r3, #128",
            )
        };
    }
    row!(
        n, ["add r1, r1, #48", "vmov.i8 q3, #0x1f"],
        [
            scales_and_minima!(-44, -40, -36), scale_and_minimum!(-48),
            four_groups!(0, "vmov q2, q1", "vshl.i8 q2, q1, #3", "vshr.u8 q2, q1, #2", "vshl.i8 q2, q1, #1"),
            add_to_lanes!("s24", "s25", "s26", "s27"),
            four_groups!(1, "vshr.u8 q2, q1, #4", "vshr.u8 q2, q1, #1", "vshr.u8 q2, q1, #6", "vshr.u8 q2, q1, #3"),
            add_to_lanes!("s28", "s29", "s30", "s31"),
            "add r1, r1, #176",
        ],
        row, x, lanes, inout("r9") x.sums.as_ptr() => _, out("r10") _, out("r12") _,
    )
}

/// Codes: the inserting shifts bring nibbles and two bits of `qh` together, and VSHL makes the sixth, inverted before, the
/// sign: (c - 32) · 4.
#[inline(always)]
fn dot_sixes(n: usize, row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) -> f32 {
    /// 16 bytes of nibbles, whose fifth and sixth bits are at the bottom of Q1, and at place 4.
    #[rustfmt::skip]
    macro_rules! half_of_two {
        ($at:expr, $low:literal, $x0:expr, $high:literal, $x1:expr) => {
            concat!(
                "vldrb.u8 q0, [r1, #", $at, "]\n",
                "vmov q2, q1\nvsri.8 q2, q0, #4\nvshl.i8 q2, q2, #2\n",
                "vldrb.u8 q5, [r3, #", $x1, "]\nvmlav.s8 ", $high, ", q2, q5\n",
                "vsli.8 q0, q1, #4\nvshl.i8 q0, q0, #2\n",
                "vldrb.u8 q5, [r3, #", $x0, "]\nvmlav.s8 ", $low, ", q0, q5\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! half_of_four {
        ($j:literal, $h:literal) => {
            concat!(
                "vldrb.u8 q1, [r1, #28+32*", $j, "+16*", $h, "]\nveor q1, q1, q3\n",
                half_of_two!(concat!("-100+64*", $j, "+16*", $h), "r0", concat!("16*", $h), "r4", concat!("64+16*", $h)),
                "vshr.u8 q1, q1, #2\n",
                half_of_two!(concat!("-68+64*", $j, "+16*", $h), "r2", concat!("32+16*", $h), "r8", concat!("96+16*", $h)),
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! four_groups {
        ($j:literal) => {
            concat!(
                half_of_four!($j, 0), keep_four!(4), "\n", half_of_four!($j, 1), keep_four!(5), "\n",
                "vldrb.s16 q0, [r1, #92+8*", $j, "]\n", scale_halves!(), "\n",
                "vcvt.f32.s32 q4, q4, #2\nvmul.f32 q4, q4, r10\nadd r3, r3, #128",
            )
        };
    }
    row!(
        // From byte 100 the others are in reach.
        n, ["add r1, r1, #100", "vmov.i8 q3, #0xaa"],
        [
            scale!(108),
            four_groups!(0), add_to_lanes!("s24", "s25", "s26", "s27"),
            four_groups!(1), add_to_lanes!("s28", "s29", "s30", "s31"),
            "add r1, r1, #210",
        ],
        row, x, lanes, out("r10") _,
    )
}
