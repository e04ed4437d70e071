//! The K formats: Q2_K to Q6_K.
//!
//! The codes of four groups lie in the same words of a block, so they are multiplied together, four sums at a time. A word
//! of four codes is brought together by masks, and multiplied without being taken apart any further than
//! [`Order::Quads`](super::Order) has it.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr;

use super::super::super::LANES;
use super::{Spread, Tile, bytes, half, word};

pub(super) fn q2_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 84] = bytes(row, 0);
        let (d, dmin) = (half(block, 80), half(block, 82));
        add_four::<0>(dot_twos::<0>(block, x), d, x, Some((dot_minima::<0>(block, x), dmin)), lanes);
        add_four::<1>(dot_twos::<1>(block, x), d, x, Some((dot_minima::<1>(block, x), dmin)), lanes);
    });
}

pub(super) fn q3_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 110] = bytes(row, 0);
        let d = half(block, 108);
        let scales = q3_k_scales(bytes(block, 96));
        add_four::<0>(dot_threes::<0>(block, &scales, x), d, x, None, lanes);
        add_four::<1>(dot_threes::<1>(block, &scales, x), d, x, None, lanes);
    });
}

pub(super) fn q4_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 144] = bytes(row, 0);
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (sums, minima) = dot_nibbles::<0>(block, x);
        add_four::<0>(sums, d, x, Some((minima, dmin)), lanes);
        let (sums, minima) = dot_nibbles::<1>(block, x);
        add_four::<1>(sums, d, x, Some((minima, dmin)), lanes);
    });
}

pub(super) fn q5_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 176] = bytes(row, 0);
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (sums, minima) = dot_fives::<0>(block, x);
        add_four::<0>(sums, d, x, Some((minima, dmin)), lanes);
        let (sums, minima) = dot_fives::<1>(block, x);
        add_four::<1>(sums, d, x, Some((minima, dmin)), lanes);
    });
}

pub(super) fn q6_k(tile: &Tile, lanes: &mut [[f32; LANES]]) {
    let x = tile.x;
    tile.for_rows(lanes, |row, lanes| {
        let block: &[u8; 210] = bytes(row, 0);
        let d = half(block, 208);
        add_four::<0>(dot_sixes::<0>(block, x), d, x, None, lanes);
        add_four::<1>(dot_sixes::<1>(block, x), d, x, None, lanes);
    });
}

/// The 16 scales, -32..=31, four at a time.
#[inline(always)]
fn q3_k_scales(bytes: &[u8; 12]) -> [i8; 16] {
    let (low, high) = ([word(bytes, 0), word(bytes, 4)], word(bytes, 8));
    let mut scales = [0; 16];
    for (i, four) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let s = low[i % 2] >> (4 * (i / 2)) & 0x0f0f_0f0f | (high >> (2 * i) & 0x0303_0303) << 4;
        // No byte borrows from the next, as each has its top bit set for the moment.
        *four = ((s | 0x8080_8080) - 0x2020_2020 ^ 0x8080_8080).to_le_bytes().map(|s| s as i8);
    }
    scales
}

/// `lane += (sum · d - minimum · dmin) · x.d` for groups 4J..4J + 4; without minima, `sum · d · x.d`.
///
/// VMLA and VMLS round the product.
#[inline(always)]
#[cfg(target_abi = "eabihf")]
fn add_four<const J: usize>(
    sums: [i32; 4],
    d: f32,
    x: &Spread,
    minima: Option<([i32; 4], f32)>,
    lanes: &mut [f32; LANES],
) {
    #[rustfmt::skip]
    macro_rules! add {
        ([$($less:literal),*], $($operand:tt)*) => {
            // SAFETY: every FPU that `eabihf` stands for on these processors has these instructions. They read four of
            // `x.d`, and read and write four lanes.
            unsafe {
                asm!(
                    "vmov s0, s1, {a}, {b}", "vmov s2, s3, {c}, {e}", "vmov s12, {d}",
                    "vcvt.f32.s32 s0, s0", "vcvt.f32.s32 s1, s1", "vcvt.f32.s32 s2, s2", "vcvt.f32.s32 s3, s3",
                    "vmul.f32 s0, s0, s12", "vmul.f32 s1, s1, s12", "vmul.f32 s2, s2, s12", "vmul.f32 s3, s3, s12",
                    $($less,)*
                    "vldm {x}, {{s4, s5, s6, s7}}",
                    "vldm {lanes}, {{s8, s9, s10, s11}}",
                    "vmla.f32 s8, s0, s4", "vmla.f32 s9, s1, s5", "vmla.f32 s10, s2, s6", "vmla.f32 s11, s3, s7",
                    "vstm {lanes}, {{s8, s9, s10, s11}}",
                    a = in(reg) sums[0], b = in(reg) sums[1], c = in(reg) sums[2], e = in(reg) sums[3],
                    d = in(reg) d.to_bits(), x = in(reg) x.d[4 * J..].as_ptr(), lanes = in(reg) lanes[4 * J..].as_mut_ptr(),
                    $($operand)*
                    out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _,
                    out("s7") _, out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _,
                    options(nostack),
                )
            }
        };
    }
    match minima {
        None => add!([],),
        Some((minima, dmin)) => add!(
            [
                "vmov s4, s5, {f}, {g}", "vmov s6, s7, {h}, {i}", "vmov s12, {dmin}",
                "vcvt.f32.s32 s4, s4", "vcvt.f32.s32 s5, s5", "vcvt.f32.s32 s6, s6", "vcvt.f32.s32 s7, s7",
                "vmls.f32 s0, s4, s12", "vmls.f32 s1, s5, s12", "vmls.f32 s2, s6, s12",
                "vmls.f32 s3, s7, s12"
            ],
            f = in(reg) minima[0], g = in(reg) minima[1], h = in(reg) minima[2], i = in(reg) minima[3],
            dmin = in(reg) dmin.to_bits(),
        ),
    }
}

/// The same without an FPU.
#[inline(always)]
#[cfg(not(target_abi = "eabihf"))]
fn add_four<const J: usize>(
    sums: [i32; 4],
    d: f32,
    x: &Spread,
    minima: Option<([i32; 4], f32)>,
    lanes: &mut [f32; LANES],
) {
    for k in 0..4 {
        let product = sums[k] as f32 * d;
        let less = minima.map_or(0.0, |(minima, dmin)| minima[k] as f32 * dmin);
        lanes[4 * J + k] += if minima.is_some() { product - less } else { product } * x.d[4 * J + k];
    }
}

/// Four codes, the bytes of R12, times activations in [`Order::Quads`](super::Order), added to `$sum` 256 times as large.
#[rustfmt::skip]
macro_rules! products {
    ($even:literal, $odd:literal, $sum:literal) => {
        concat!(
            "smlad ", $sum, ", r12, ", $odd, ", ", $sum, "\n",
            "uxtb16 r12, r12\n",
            "smlad ", $sum, ", r12, ", $even, ", ", $sum, "\n",
        )
    };
}

/// A word of four groups each: each `$code` puts it in R12, and its products with the next activations at R1 go to `$sum`.
#[rustfmt::skip]
macro_rules! word_of_four {
    ($sum0:literal: $code0:expr, $sum1:literal: $code1:expr, $sum2:literal: $code2:expr, $sum3:literal: $code3:expr) => {
        concat!(
            "ldm r1!, {{r2, r3, r4, r5}}\n",
            $code0, "\n", products!("r2", "r3", $sum0),
            $code1, "\n", products!("r4", "r5", $sum1),
            "ldm r1!, {{r2, r3, r4, r5}}\n",
            $code2, "\n", products!("r2", "r3", $sum2),
            $code3, "\n", products!("r4", "r5", $sum3),
        )
    };
}

/// The same where a code needs R4 and R5.
#[rustfmt::skip]
macro_rules! word_of_four_with_masks {
    ($($sum:literal: $code:expr),*) => {
        concat!($($code, "\nldrd r2, r3, [r1], #8\n", products!("r2", "r3", $sum),)*)
    };
}

/// The sums of four groups are 0 at first.
macro_rules! zero {
    () => {
        "mov r8, #0\nmov r9, #0\nmov r10, #0\nmov r11, #0"
    };
}

/// The sums of four groups are at first what the format subtracts from codes: `$at` after R1.
macro_rules! start {
    ($at:literal) => {
        concat!("add lr, r1, #", $at, "\nldm lr, {{r8, r9, r10, r11}}")
    };
}

/// The sums of half 0 of four groups times their scales, each second byte that `$mask` leaves from `$scales` on: pushed.
///
/// SMULW takes the product's upper 32 bits of 48: sums and scales are 256 times as large, so it is exact.
#[rustfmt::skip]
macro_rules! scale_first {
    ($scales:literal, $mask:literal) => {
        concat!(
            "ldr r2, [", $scales, "]\nlsl r2, r2, #8\nand r2, r2, #", $mask, "\n",
            "ldr r3, [", $scales, "+4]\nlsl r3, r3, #8\nand r3, r3, #", $mask, "\n",
            "smulwb r8, r8, r2\nsmulwt r9, r9, r2\nsmulwb r10, r10, r3\nsmulwt r11, r11, r3\n",
            "push {{r8, r9, r10, r11}}",
        )
    };
}

/// The sums of half 1 times their scales, and what half 0 pushed added.
#[rustfmt::skip]
macro_rules! scale_second {
    ($scales:literal, $mask:literal) => {
        concat!(
            "ldr r2, [", $scales, "]\nand r2, r2, #", $mask, "\n",
            "ldr r3, [", $scales, "+4]\nand r3, r3, #", $mask, "\n",
            "pop {{r6, r7, r12, lr}}\n",
            "smlawb r8, r8, r2, r6\nsmlawt r9, r9, r2, r7\nsmlawb r10, r10, r3, r12\nsmlawt r11, r11, r3, lr",
        )
    };
}

/// How far behind the activations that come next the sums of half `h` of groups 4J..4J + 4 start.
const fn start<const J: usize>(h: usize) -> usize {
    offset_of!(Spread, starts) + 4 * (LANES * h + 4 * J) - offset_of!(Spread, pairs) - 256 * J - 128 * h
}

/// The activations of groups 4J..4J + 4, within all of `x`.
#[inline(always)]
fn activations<const J: usize>(x: &Spread) -> *const u8 {
    ptr::from_ref(x).cast::<u8>().wrapping_add(offset_of!(Spread, pairs) + 256 * J)
}

/// Assembly that reads a block at R0 and activations of groups 4J..4J + 4 at R1, and leaves four sums in R8 to R11.
///
/// R6 and R7, which are no operands' to have, are borrowed.
macro_rules! four_sums {
    ([$($line:expr),* $(,)?], $block:expr, $x:expr, $($operand:tt)*) => {{
        let [s0, s1, s2, s3]: [i32; 4];
        // SAFETY: the function around says what is read of the block, aligned or not as LDR may, and beside it; of `x` are
        // read four groups' pairs and starts, words as LDM and LDRD need. Stack, R6 and R7 are as before when it ends.
        unsafe {
            asm!(
                "push {{r6, r7}}",
                $($line,)*
                "pop {{r6, r7}}",
                in("r0") $block.as_ptr(), inout("r1") activations::<J>($x) => _,
                $($operand)*
                out("r2") _, out("r3") _, out("r8") s0, out("r9") s1, out("r10") s2, out("r11") s3, out("r12") _, out("lr") _,
                options(pure, readonly),
            )
        }
        [s0, s1, s2, s3]
    }};
}

/// Byte `k` of `$to`: the scale of group `k`, or its minimum, where `$low` after R0 are those of Q4_K's first groups.
macro_rules! six_bits {
    ($to:literal, $low:literal) => {
        concat!("ldr ", $to, ", [r0, #", $low, "]\nand ", $to, ", ", $to, ", #0x3f3f3f3f")
    };
}

/// The same for groups 4 to 7: the lower bits are nibbles of the bytes in LR.
#[rustfmt::skip]
macro_rules! two_and_four_bits {
    ($to:literal, $low:literal) => {
        concat!(
            "and lr, lr, #0x0f0f0f0f\n",
            "ldr ", $to, ", [r0, #", $low, "]\nlsr ", $to, ", ", $to, ", #2\nand ", $to, ", ", $to, ", #0x30303030\n",
            "orr ", $to, ", ", $to, ", lr",
        )
    };
}

/// Assembly as of [`four_sums`] for Q4_K and Q5_K: also multiplies the sums, 256 times as large, with their scales, and
/// leaves in R2 to R5 the sums of activations times minima. R4 starts as a mask of nibbles; a block is `$at` after R0.
macro_rules! four_sums_and_minima {
    ([$($line:expr),* $(,)?], $block:expr, $x:expr, $at:expr, $($operand:tt)*) => {
        if J == 0 {
            scaled_sums!(
                six_bits!("r2", "{low_scales}"), six_bits!("r6", "{low_minima}"),
                [$($line),*], $block, $x, $at, $($operand)*
            )
        } else {
            scaled_sums!(
                concat!("ldr lr, [r0, #{high}]\n", two_and_four_bits!("r2", "{low_scales}")),
                concat!("ldr lr, [r0, #{high}]\nlsr lr, lr, #4\n", two_and_four_bits!("r6", "{low_minima}")),
                [$($line),*], $block, $x, $at, high = const $at + 12, $($operand)*
            )
        }
    };
}

/// The same; `$scales` gets the scales into R2, `$minima` the minima into R6.
macro_rules! scaled_sums {
    ($scales:expr, $minima:expr, [$($line:expr),*], $block:expr, $x:expr, $at:expr, $($operand:tt)*) => {{
        let [s0, s1, s2, s3, m0, m1, m2, m3]: [i32; 8];
        // SAFETY: as in `four_sums`; of the block are read the scales and minima, too, and of `x` four sums.
        unsafe {
            asm!(
                "push {{r6, r7}}",
                zero!(),
                $($line,)*
                // Each second scale, 256 times as large: SMULW divides by 65,536.
                $scales,
                "lsl r3, r2, #8", "and r3, r3, #0xff00ff00", "and r2, r2, #0xff00ff00",
                "smulwb r8, r8, r3", "smulwb r9, r9, r2", "smulwt r10, r10, r3", "smulwt r11, r11, r2",
                $minima,
                "uxtb16 r12, r6", "uxtb16 lr, r6, ror #8",
                "add r5, r1, #{sums}", "ldm r5, {{r2, r3, r4, r5}}",
                "smulbb r2, r2, r12", "smulbb r3, r3, lr", "smulbt r4, r4, r12", "smulbt r5, r5, lr",
                "pop {{r6, r7}}",
                in("r0") $block.as_ptr(), inout("r1") activations::<J>($x) => _,
                low_scales = const $at + 4, low_minima = const $at + 8,
                sums = const offset_of!(Spread, sums) + 16 * J - offset_of!(Spread, pairs) - 256 * (J + 1),
                $($operand)*
                out("r2") m0, out("r3") m1, inout("r4") 0x0f0f_0f0f => m2, out("r5") m3,
                out("r8") s0, out("r9") s1, out("r10") s2, out("r11") s3, out("r12") _, out("lr") _,
                options(pure, readonly),
            )
        }
        ([s0, s1, s2, s3], [m0, m1, m2, m3])
    }};
}

/// Groups 4J..4J + 4 of a Q2_K block, each half times its scale: codes 0..=3. Reads half of `qs` and of the scales.
#[inline(always)]
fn dot_twos<const J: usize>(block: &[u8; 84], x: &Spread) -> [i32; 4] {
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr r7, [r0, #{codes}+4*", $w, "]\n",
                word_of_four!(
                    "r8": "and r12, r6, r7",
                    "r9": "and r12, r6, r7, lsr #2",
                    "r10": "and r12, r6, r7, lsr #4",
                    "r11": "and r12, r6, r7, lsr #6"
                ),
            )
        };
    }
    four_sums!(
        [
            "mov r6, #0x03030303",
            zero!(), word!(0), word!(1), word!(2), word!(3), scale_first!("r0, #{scales}", "0x0f000f00"),
            zero!(), word!(4), word!(5), word!(6), word!(7), scale_second!("r0, #{scales}", "0x0f000f00"),
        ],
        block, x,
        codes = const 16 + 32 * J, scales = const 8 * J, out("r4") _, out("r5") _,
    )
}

/// What the minima of groups 4J..4J + 4 of a Q2_K block take away: a pair of them times a pair of sums.
#[inline(always)]
fn dot_minima<const J: usize>(block: &[u8; 84], x: &Spread) -> [i32; 4] {
    let [s0, s1, s2, s3];
    #[rustfmt::skip]
    macro_rules! two_groups {
        ($word:literal, $sums0:literal, $sums1:literal) => {
            concat!(
                // Nibbles 1 and 5 of the word are minima of first halves, 3 and 7 of second ones.
                "ldr ", $sums1, ", [{scales}, #", $word, "]\n",
                "and {first}, {mask}, ", $sums1, ", lsr #4\n",
                "and {second}, {mask}, ", $sums1, ", lsr #12\n",
                "pkhbt ", $sums0, ", {first}, {second}, lsl #16\n",
                "pkhtb ", $sums1, ", {second}, {first}, asr #16\n",
            )
        };
    }
    // SAFETY: reads eight bytes of the block, aligned or not as LDR may, and four words of `x`.
    unsafe {
        asm!(
            two_groups!(0, "r2", "r3"),
            two_groups!(4, "r4", "r5"),
            "ldm {x}, {{r8, r9, r10, r11}}",
            "smuad r2, r2, r8", "smuad r3, r3, r9", "smuad r4, r4, r10", "smuad r5, r5, r11",
            scales = in(reg) block[8 * J..].as_ptr(), mask = in(reg) 0x000f_000f, x = in(reg) x.half_sums[4 * J..].as_ptr(),
            first = out(reg) _, second = out(reg) _,
            out("r2") s0, out("r3") s1, out("r4") s2, out("r5") s3, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            options(pure, readonly, nostack),
        );
    }
    [s0, s1, s2, s3]
}

/// Groups 4J..4J + 4 of a Q3_K block, each half times its scale: codes 0..=7. Reads `hmask` and half of `qs` and `scales`.
#[inline(always)]
fn dot_threes<const J: usize>(block: &[u8; 110], scales: &[i8; 16], x: &Spread) -> [i32; 4] {
    /// Two bits of R7, and above them bit `$high` of R6, shifted to place 2.
    #[rustfmt::skip]
    macro_rules! code {
        ($low:literal, $high:literal, $shift:literal) => {
            concat!("and r12, r4, r7", $low, "\nand lr, r6, #0x01010101 << ", $high, "\norr r12, r12, lr", $shift)
        };
    }
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal, $h0:literal $k0:literal, $h1:literal $k1:literal, $h2:literal $k2:literal, $h3:literal $k3:literal) => {
            concat!(
                "ldr r6, [r0, #4*", $w, "]\nldr r7, [r0, #{codes}+4*", $w, "]\n",
                word_of_four_with_masks!(
                    "r8": code!("", $h0, $k0),
                    "r9": code!(", lsr #2", $h1, $k1),
                    "r10": code!(", lsr #4", $h2, $k2),
                    "r11": code!(", lsr #6", $h3, $k3)
                ),
            )
        };
    }
    macro_rules! words {
        ($($bits:tt)*) => {
            four_sums!(
                [
                    start!("{start0}"),
                    word!(0, $($bits)*), word!(1, $($bits)*), word!(2, $($bits)*), word!(3, $($bits)*),
                    scale_first!("r5, #0", "0xff00ff00"),
                    start!("{start1}"),
                    word!(4, $($bits)*), word!(5, $($bits)*), word!(6, $($bits)*), word!(7, $($bits)*),
                    scale_second!("r5, #0", "0xff00ff00"),
                ],
                block, x,
                codes = const 32 + 32 * J, start0 = const start::<J>(0), start1 = const start::<J>(1),
                in("r4") 0x0303_0303, in("r5") scales[8 * J..].as_ptr(),
            )
        };
    }
    if J == 0 {
        words!(0 ", lsl #2", 1 ", lsl #1", 2 "", 3 ", lsr #1")
    } else {
        words!(4 ", lsr #2", 5 ", lsr #3", 6 ", lsr #4", 7 ", lsr #5")
    }
}

/// Groups 4J..4J + 4 of a Q4_K block, each times its scale, and their minima: codes 0..=15. Reads half of `qs`.
#[inline(always)]
fn dot_nibbles<const J: usize>(block: &[u8; 144], x: &Spread) -> ([i32; 4], [i32; 4]) {
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            word_of_four!(
                "r8": concat!("ldr r7, [r0, #4*", $w, "]\nand r12, r6, r7"),
                "r9": "and r12, r6, r7, lsr #4",
                "r10": concat!("ldr r7, [r0, #32+4*", $w, "]\nand r12, r6, r7"),
                "r11": "and r12, r6, r7, lsr #4"
            )
        };
    }
    four_sums_and_minima!(
        ["mov r6, r4", word!(0), word!(1), word!(2), word!(3), word!(4), word!(5), word!(6), word!(7)],
        block[16 + 64 * J..],
        x,
        -16 - 64 * J as isize,
    )
}

/// Groups 4J..4J + 4 of a Q5_K block, each times its scale, and their minima: codes 0..=31. Reads `qh` and half of `qs`.
#[inline(always)]
fn dot_fives<const J: usize>(block: &[u8; 176], x: &Spread) -> ([i32; 4], [i32; 4]) {
    /// A nibble of each byte of R7, and above it bit `$high` of R6, shifted to place 4.
    #[rustfmt::skip]
    macro_rules! code {
        ($low:literal, $high:literal, $shift:literal) => {
            concat!("and r12, r4, r7", $low, "\nand lr, r6, #0x01010101 << ", $high, "\norr r12, r12, lr", $shift)
        };
    }
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal, $h0:literal $k0:literal, $h1:literal $k1:literal, $h2:literal $k2:literal, $h3:literal $k3:literal) => {
            concat!(
                "ldr r6, [r0, #16+4*", $w, "]\n",
                word_of_four_with_masks!(
                    "r8": concat!("ldr r7, [r0, #{codes}+4*", $w, "]\n", code!("", $h0, $k0)),
                    "r9": code!(", lsr #4", $h1, $k1),
                    "r10": concat!("ldr r7, [r0, #{codes}+32+4*", $w, "]\n", code!("", $h2, $k2)),
                    "r11": code!(", lsr #4", $h3, $k3)
                ),
            )
        };
    }
    macro_rules! words {
        ($($bits:tt)*) => {
            four_sums_and_minima!(
                [
                    word!(0, $($bits)*), word!(1, $($bits)*), word!(2, $($bits)*), word!(3, $($bits)*),
                    word!(4, $($bits)*), word!(5, $($bits)*), word!(6, $($bits)*), word!(7, $($bits)*),
                ],
                block, x, 0, codes = const 48 + 64 * J,
            )
        };
    }
    if J == 0 {
        words!(0 ", lsl #4", 1 ", lsl #3", 2 ", lsl #2", 3 ", lsl #1")
    } else {
        words!(4 "", 5 ", lsr #1", 6 ", lsr #2", 7 ", lsr #3")
    }
}

/// Groups 4J..4J + 4 of a Q6_K block, each half times its scale: codes 0..=63. Reads half of `ql`, `qh` and the scales.
#[inline(always)]
fn dot_sixes<const J: usize>(block: &[u8; 210], x: &Spread) -> [i32; 4] {
    // The groups in the order of their nibbles: first those of one word of `ql`, then those of the other.
    #[rustfmt::skip]
    macro_rules! word {
        ($w:literal) => {
            concat!(
                "ldr r6, [r0, #{high}+4*", $w, "]\n",
                "ldr r7, [r0, #4*", $w, "]\n",
                word_of_four!(
                    "r8": "and r12, r7, #0x0f0f0f0f\nand lr, r6, #0x03030303\norr r12, r12, lr, lsl #4",
                    "r10": "and r12, r7, #0xf0f0f0f0\nand lr, r6, #0x30303030\norr r12, lr, r12, lsr #4",
                    "r9": concat!(
                        "ldr r7, [r0, #32+4*", $w, "]\n",
                        "and r12, r7, #0x0f0f0f0f\nand lr, r6, #0x0c0c0c0c\norr r12, r12, lr, lsl #2"
                    ),
                    "r11": concat!(
                        "lsr r6, r6, #2\n",
                        "and r12, r7, #0xf0f0f0f0\nand lr, r6, #0x30303030\norr r12, lr, r12, lsr #4"
                    )
                ),
            )
        };
    }
    four_sums!(
        [
            start!("{start0}"), word!(0), word!(1), word!(2), word!(3), scale_first!("r0, #{scales}", "0xff00ff00"),
            start!("{start1}"), word!(4), word!(5), word!(6), word!(7), scale_second!("r0, #{scales}", "0xff00ff00"),
        ],
        block[64 * J..], x,
        high = const 128 - 32 * J, scales = const 192 - 56 * J,
        start0 = const start::<J>(0), start1 = const start::<J>(1), out("r4") _, out("r5") _,
    )
}
