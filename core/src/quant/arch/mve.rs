//! Cortex-M55, M85 and others with Helium (MVE), its integer half: VMLAV multiplies 16 pairs of bytes and sums them up.
//!
//! Codes are brought into bytes, 16 at a time, and multiplied with the activations as they are; what is left to do once a
//! group, in f32, is scalar: Helium's own floats flush subnormals to zero, so their bits would differ.
//!
//! ```text
//! for each row of weights, each activation row:
//!     for each group:
//!         for each half of it:
//!             c = 16 codes: nibbles by AND and shift; bits from two places by a shift that inserts (VSLI, VSRI)
//!             sum += Σ c · q              VMLAVA, exact
//!         lanes[group % LANES] += sum · scales, as the format's `dot` has it
//! ```
//!
//! Offsets in blocks are those of the picture in each format's file.
#![allow(unsafe_code)]

use core::arch::asm;

use super::super::{Activation, Batch, Format, GROUP, HALF, LANES, SUPER, generic, iq4_nl, sum_lanes};
use super::arm_dsp::{half, part, q3_k_scales, q4_k_scales, word};

/// Rows that meet one activation row after the other: few enough to stay in a cache.
const TILE: usize = 8;

/// Multiplies a tile's rows with an activation row.
type Multiply = fn(&Tile, &mut [f32]);

/// A few rows of weights, and an activation row.
struct Tile<'a> {
    rows: &'a [u8],
    row_bytes: usize,
    x: Activation<'a>,
    /// From a product to the next row's.
    step: usize,
}

/// [`super::Kernel::multiply`].
pub(super) fn multiply(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    let multiply: Multiply = match format {
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Q2_K => q2_k,
        Format::Q3_K => q3_k,
        Format::Q4_K => q4_k,
        Format::Q5_K => q5_k,
        Format::Q6_K => q6_k,
        Format::IQ4_NL => iq4_nl,
        Format::IQ4_XS => iq4_xs,
        Format::F32 | Format::F16 | Format::BF16 => return generic(format, rows, x, products),
    };
    if !rows.as_ptr().addr().is_multiple_of(2) {
        // A load that gathers scales wants them at even addresses, as files have them.
        return generic(format, rows, x, products);
    }
    let row_bytes = format.row_bytes(x.cols);
    let tile = if x.len() == 1 { products.len() } else { TILE };
    for (rows, products) in rows.chunks(tile * row_bytes).zip(products.chunks_mut(tile * x.len())) {
        for b in 0..x.len() {
            multiply(&Tile { rows, row_bytes, x: x.row(b), step: x.len() }, &mut products[b..]);
        }
    }
}

impl Tile<'_> {
    /// Calls `f` with each row, and with lanes whose sum is its product.
    #[inline(always)]
    fn for_rows(&self, products: &mut [f32], f: impl Fn(&[u8], &mut [f32; LANES])) {
        for (row, product) in self.rows.chunks_exact(self.row_bytes).zip(products.iter_mut().step_by(self.step)) {
            let mut lanes = [0.0; LANES];
            f(row, &mut lanes);
            *product = sum_lanes(lanes);
        }
    }

    /// Calls `f` with each block of BYTES bytes, its group's codes and scale, the sums of the codes, and its lane.
    #[inline(always)]
    fn for_blocks<const BYTES: usize>(
        &self,
        products: &mut [f32],
        f: impl Fn(&[u8; BYTES], &[i8; GROUP], f32, [i32; 2], &mut f32),
    ) {
        self.for_rows(products, |row, lanes| {
            for (g, (block, x)) in row.as_chunks().0.iter().zip(self.x.groups()).enumerate() {
                f(block, x.q, x.d, x.sums, &mut lanes[g % LANES]);
            }
        });
    }

    /// Calls `eight` with a row's blocks of BYTES bytes, LANES at a time, their activations' codes and scales, and the lanes;
    /// `one` with each block that is left over.
    #[inline(always)]
    fn for_eight_blocks<const BYTES: usize, const EIGHT: usize>(
        &self,
        products: &mut [f32],
        eight: impl Fn(&[[u8; EIGHT]], &[[i8; SUPER]], &[[f32; LANES]], &mut [f32; LANES]),
        one: impl Fn(&[u8; BYTES], &[i8; GROUP]) -> i32,
    ) {
        const { assert!(EIGHT == LANES * BYTES) };
        let (q, q_rest) = self.x.q.as_chunks();
        let (d, d_rest) = self.x.d.as_chunks();
        self.for_rows(products, |row, lanes| {
            let (blocks, rest) = row.as_chunks();
            eight(blocks, q, d, lanes);
            for (((block, q), d), lane) in rest.as_chunks().0.iter().zip(q_rest.as_chunks().0).zip(d_rest).zip(lanes) {
                *lane += one(block, q) as f32 * half(block, 0) * d;
            }
        });
    }

    /// Calls `f` with each super-block of BYTES bytes, its activations' codes, scales and sums, and the lanes.
    #[inline(always)]
    fn for_super_blocks<const BYTES: usize>(
        &self,
        products: &mut [f32],
        f: impl Fn(&[u8; BYTES], &[i8; SUPER], &[f32; LANES], &[[i16; 2]; LANES], &mut [f32; LANES]),
    ) {
        let x = &self.x;
        let (q, d, sums) = (x.q.as_chunks().0, x.d.as_chunks().0, x.sums.as_chunks().0.as_chunks().0);
        self.for_rows(products, |row, lanes| {
            for (((block, q), d), sums) in row.as_chunks().0.iter().zip(q).zip(d).zip(sums) {
                f(block, q, d, sums, lanes);
            }
        });
    }
}

fn q8_0(tile: &Tile, products: &mut [f32]) {
    tile.for_eight_blocks::<34, 272>(products, add_eight_bytes, |block, q| dot_bytes(part(block, 2), q));
}

fn q4_0(tile: &Tile, products: &mut [f32]) {
    tile.for_eight_blocks::<18, 144>(products, add_eight_nibbles, |block, q| {
        let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
        dot_nibbles(part(block, 2), q) - 8 * sum
    });
}

fn q4_1(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<20>(products, |block, q, d, sums, lane| {
        let scaled = dot_nibbles(part(block, 4), q) as f32 * half(block, 0);
        *lane += (scaled + (sums[0] + sums[1]) as f32 * half(block, 2)) * d;
    });
}

fn q5_0(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<22>(products, |block, q, d, sums, lane| {
        let sum = dot_fives(word(block, 2), part(block, 6), q) - 16 * (sums[0] + sums[1]);
        *lane += sum as f32 * half(block, 0) * d;
    });
}

fn q5_1(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<24>(products, |block, q, d, sums, lane| {
        let scaled = dot_fives(word(block, 4), part(block, 8), q) as f32 * half(block, 0);
        *lane += (scaled + (sums[0] + sums[1]) as f32 * half(block, 2)) * d;
    });
}

fn iq4_nl(tile: &Tile, products: &mut [f32]) {
    tile.for_blocks::<18>(products, |block, q, d, _, lane| {
        *lane += dot_steps(part(block, 2), q) as f32 * half(block, 0) * d;
    });
}

fn iq4_xs(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<136>(products, |block, q, x_d, _, lanes| {
        let d = half(block, 0);
        let (high, low) = (u32::from(block[2]) | u32::from(block[3]) << 8, word(block, 4));
        for (g, lane) in lanes.iter_mut().enumerate() {
            let s = (low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4) as i32 - 32;
            *lane += (dot_steps(part(block, 8 + HALF * g), codes(q, g)) * s) as f32 * d * x_d[g];
        }
    });
}

fn q2_k(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<84>(products, |block, q, x_d, sums, lanes| {
        let (d, dmin) = (half(block, 80), half(block, 82));
        for j in 0..2 {
            let a = dot_twos(part(block, 16 + 32 * j), &q[4 * GROUP * j..]);
            let b = dot_twos(part(block, 32 + 32 * j), &q[4 * GROUP * j + HALF..]);
            for k in 0..4 {
                let g = 4 * j + k;
                let [s0, s1] = [i32::from(block[2 * g]), i32::from(block[2 * g + 1])];
                let scaled = a[k] * (s0 & 15) + b[k] * (s1 & 15);
                let minimum = i32::from(sums[g][0]) * (s0 >> 4) + i32::from(sums[g][1]) * (s1 >> 4);
                lanes[g] += (scaled as f32 * d - minimum as f32 * dmin) * x_d[g];
            }
        }
    });
}

fn q3_k(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<110>(products, |block, q, x_d, _, lanes| {
        add_threes(block, &q3_k_scales(part(block, 96)), q, x_d, lanes);
    });
}

fn q4_k(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<144>(products, |block, q, x_d, sums, lanes| {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (s, m) = q4_k_scales(part(block, 4));
        for j in 0..4 {
            let dots = dot_two_nibbles(part(block, 16 + 32 * j), &q[2 * GROUP * j..]);
            for k in 0..2 {
                let g = 2 * j + k;
                let sum = i32::from(sums[g][0]) + i32::from(sums[g][1]);
                let (scaled, minimum) = (dots[k] * i32::from(s[g]), sum * i32::from(m[g]));
                lanes[g] += (scaled as f32 * d - minimum as f32 * dmin) * x_d[g];
            }
        }
    });
}

fn q5_k(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<176>(products, |block, q, x_d, sums, lanes| {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (s, m) = q4_k_scales(part(block, 4));
        let mut add = |j: usize, dots: [i32; 4]| {
            for k in 0..2 {
                let g = 2 * j + k;
                let sum = i32::from(sums[g][0]) + i32::from(sums[g][1]);
                let (scaled, minimum) = (dots[k] * i32::from(s[g]), sum * i32::from(m[g]));
                lanes[g] += (scaled as f32 * d - minimum as f32 * dmin) * x_d[g];
            }
        };
        add(0, dot_two_fives::<0>(block, q));
        add(1, dot_two_fives::<1>(block, q));
        add(2, dot_two_fives::<2>(block, q));
        add(3, dot_two_fives::<3>(block, q));
    });
}

fn q6_k(tile: &Tile, products: &mut [f32]) {
    tile.for_super_blocks::<210>(products, |block, q, x_d, _, lanes| add_sixes(block, q, x_d, lanes));
}

/// Group `g`'s activations.
#[inline(always)]
fn codes(q: &[i8; SUPER], g: usize) -> &[i8; GROUP] {
    &q.as_chunks().0[g]
}

/// Assembly that reads memory, with up to four sums in R0, R2, R4 and R8 (VMLAV wants even registers) and Q0 to Q4 at
/// its disposal; the compiler keeps scales in the others.
macro_rules! helium {
    ([$($line:expr),* $(,)?], $($operand:tt)*) => {{
        let [s0, s1, s2, s3]: [i32; 4];
        // SAFETY: `arm_mve` says that there are these instructions, and the function around says what they read.
        unsafe {
            asm!(
                $($line,)*
                $($operand)*
                out("r0") s0, out("r2") s1, out("r4") s2, out("r8") s3,
                out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _,
                options(pure, readonly, nostack),
            )
        }
        [s0, s1, s2, s3]
    }};
}

/// 32 codes of 8 bits. Reads `c` and `q`.
#[inline(always)]
fn dot_bytes(c: &[u8; GROUP], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vldrb.u8 q1, [{q}]",
            "vldrb.u8 q2, [{c}, #16]",
            "vmlav.s8 r0, q0, q1",
            "vldrb.u8 q3, [{q}, #16]",
            "vmlava.s8 r0, q2, q3",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )[0]
}

/// 16 bytes whose low nibbles are a group's first half, and whose high ones its second. Reads `c` and `q`.
#[inline(always)]
fn dot_nibbles(c: &[u8; HALF], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vldrb.u8 q1, [{q}]",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vmlav.s8 r0, q2, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q0, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )[0]
}

/// 16 bytes of nibbles, whose fifth bits are those of `high` in the order of the weights: as a predicate, each says
/// whether its byte gets 16 more. Reads `c` and `q`.
#[inline(always)]
fn dot_fives(high: u32, c: &[u8; HALF], q: &[i8; GROUP]) -> i32 {
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vmov.i8 q3, #0x10",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q2, q2, q3",
            "lsr {high}, {high}, #16",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q0, q0, q3",
            "vldrb.u8 q1, [{q}]",
            "vmlav.s8 r0, q2, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q0, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(), high = inout(reg) high => _,
    )[0]
}

/// 16 bytes of nibbles that index [`iq4_nl::STEPS`]: a load that gathers looks 16 of them up. Reads `c`, `q` and the table.
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
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(), steps = in(reg) iq4_nl::STEPS.as_ptr(),
    )[0]
}

/// 32 bytes whose low nibbles are one group, and whose high ones the next. Reads `c` and 64 of `q`.
#[inline(always)]
fn dot_two_nibbles(c: &[u8; GROUP], q: &[i8]) -> [i32; 4] {
    let q: &[i8; 64] = first(q);
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x0f",
            "vldrb.u8 q1, [{c}, #16]",
            "vand q2, q0, q4",
            "vldrb.u8 q3, [{q}]",
            "vmlav.s8 r0, q2, q3",
            "vand q2, q1, q4",
            "vldrb.u8 q3, [{q}, #16]",
            "vmlava.s8 r0, q2, q3",
            "vshr.u8 q0, q0, #4",
            "vldrb.u8 q3, [{q}, #32]",
            "vmlav.s8 r2, q0, q3",
            "vshr.u8 q1, q1, #4",
            "vldrb.u8 q3, [{q}, #48]",
            "vmlava.s8 r2, q1, q3",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )
}

/// 16 bytes that hold four pairs of bits each: the same half of four groups. Reads `c` and 16 of each 32 of `q`.
#[inline(always)]
fn dot_twos(c: &[u8; HALF], q: &[i8]) -> [i32; 4] {
    let q: &[i8; 112] = first(q);
    helium!(
        [
            "vldrb.u8 q0, [{c}]",
            "vmov.i8 q4, #0x03",
            "vldrb.u8 q1, [{q}]",
            "vand q2, q0, q4",
            "vmlav.s8 r0, q2, q1",
            "vshr.u8 q3, q0, #2",
            "vldrb.u8 q1, [{q}, #32]",
            "vand q2, q3, q4",
            "vmlav.s8 r2, q2, q1",
            "vshr.u8 q3, q0, #4",
            "vldrb.u8 q1, [{q}, #64]",
            "vand q2, q3, q4",
            "vmlav.s8 r4, q2, q1",
            "vshr.u8 q3, q0, #6",
            "vldrb.u8 q1, [{q}, #96]",
            "vmlav.s8 r8, q3, q1",
        ],
        c = in(reg) c.as_ptr(), q = in(reg) q.as_ptr(),
    )
}

/// Adds to S24 to S27 and on, lanes of a half super-block at `lanes`: half 0's sums of four groups in Q4 and half 1's in Q5,
/// which are 1 << `$fraction` times as large, times the scales at `$scales`, the scale of the block in S12, and S28 to S31,
/// those of the activations at `d`.
///
/// VMLA rounds the product before it adds it.
macro_rules! scale_four {
    ($fraction:literal, $scales:literal) => {
        concat!(
            // Each pair of scales is a word's lower half and its upper.
            "add r4, ",
            $scales,
            "\n",
            // Widening loads want a low register.
            "vldrb.s16 q0, [r4]\n",
            "vmovlb.s16 q1, q0\n",
            "vshr.s32 q0, q0, #16\n",
            "vmul.i32 q4, q4, q1\n",
            "vmul.i32 q5, q5, q0\n",
            "vldm {lanes}, {{s24-s27}}\n",
            "vadd.i32 q4, q4, q5\n",
            "vldmia {d}!, {{s28-s31}}\n",
            "vcvt.f32.s32 s16, s16, #",
            $fraction,
            "\n",
            "vcvt.f32.s32 s17, s17, #",
            $fraction,
            "\n",
            "vcvt.f32.s32 s18, s18, #",
            $fraction,
            "\n",
            "vcvt.f32.s32 s19, s19, #",
            $fraction,
            "\n",
            "vmul.f32 s16, s16, s12\n",
            "vmul.f32 s17, s17, s12\n",
            "vmul.f32 s18, s18, s12\n",
            "vmul.f32 s19, s19, s12\n",
            "vmla.f32 s24, s16, s28\n",
            "vmla.f32 s25, s17, s29\n",
            "vmla.f32 s26, s18, s30\n",
            "vmla.f32 s27, s19, s31\n",
            "vstmia {lanes}!, {{s24-s27}}",
        )
    };
}

/// Adds the products of a block of Q3_K to the lanes.
///
/// VSLI puts the third bit, inverted, above the pair, and VSHL makes it the sign: (c - 4) · 32.
#[inline(always)]
fn add_threes(block: &[u8; 110], scales: &[i8; 16], q: &[i8; SUPER], d: &[f32; LANES], lanes: &mut [f32; LANES]) {
    /// The same half of four groups: the third bits of each are shifted by `$b`.
    macro_rules! half_of_four {
        ($j:literal, $h:literal, $b0:literal, $b1:literal, $b2:literal, $b3:literal) => {
            concat!(
                "vldrb.u8 q0, [{c}, #32+32*",
                $j,
                "+16*",
                $h,
                "]\n",
                "vldrb.u8 q1, [{c}, #16*",
                $h,
                "]\n",
                "vmvn q1, q1\n",
                "vmov q2, q0\n",
                $b0,
                "\nvsli.8 q2, q7, #2\n",
                "vshl.i8 q2, q2, #5\n",
                "vldrb.u8 q7, [{q}, #16*",
                $h,
                "]\n",
                "vmlav.s8 r0, q2, q7\n",
                "vshr.u8 q2, q0, #2\n",
                $b1,
                "\nvsli.8 q2, q7, #2\n",
                "vshl.i8 q2, q2, #5\n",
                "vldrb.u8 q7, [{q}, #32+16*",
                $h,
                "]\n",
                "vmlav.s8 r2, q2, q7\n",
                "vshr.u8 q2, q0, #4\n",
                $b2,
                "\nvsli.8 q2, q7, #2\n",
                "vshl.i8 q2, q2, #5\n",
                "vldrb.u8 q7, [{q}, #64+16*",
                $h,
                "]\n",
                "vmlav.s8 r4, q2, q7\n",
                "vshr.u8 q2, q0, #6\n",
                $b3,
                "\nvsli.8 q2, q7, #2\n",
                "vshl.i8 q2, q2, #5\n",
                "vldrb.u8 q7, [{q}, #96+16*",
                $h,
                "]\n",
                "vmlav.s8 r8, q2, q7",
            )
        };
    }
    macro_rules! low {
        ($h:literal) => {
            half_of_four!(0, $h, "vmov q7, q1", "vshr.u8 q7, q1, #1", "vshr.u8 q7, q1, #2", "vshr.u8 q7, q1, #3")
        };
    }
    macro_rules! high {
        ($h:literal) => {
            half_of_four!(1, $h, "vshr.u8 q7, q1, #4", "vshr.u8 q7, q1, #5", "vshr.u8 q7, q1, #6", "vshr.u8 q7, q1, #7")
        };
    }
    // SAFETY: reads `block`, `scales`, `q` and `d`, reads and writes `lanes`, all to their ends; `arm_mve` says that there
    // are these instructions.
    unsafe {
        asm!(
            "ldrh r0, [{c}, #108]",
            "vmov s12, r0",
            "vcvtb.f32.f16 s12, s12",
            low!(0), "vmov s16, s17, r0, r2", "vmov s18, s19, r4, r8",
            low!(1), "vmov s20, s21, r0, r2", "vmov s22, s23, r4, r8",
            scale_four!("5", "{scales}, #0"),
            "add {q}, {q}, #128",
            high!(0), "vmov s16, s17, r0, r2", "vmov s18, s19, r4, r8",
            high!(1), "vmov s20, s21, r0, r2", "vmov s22, s23, r4, r8",
            scale_four!("5", "{scales}, #8"),
            c = in(reg) block.as_ptr(), q = inout(reg) q.as_ptr() => _, scales = in(reg) scales.as_ptr(),
            d = inout(reg) d.as_ptr() => _, lanes = inout(reg) lanes.as_mut_ptr() => _,
            out("r0") _, out("r2") _, out("r4") _, out("r8") _,
            out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            options(nostack),
        );
    }
}

/// Groups 2K and 2K + 1 of a Q5_K block. Reads 32 bytes each of `qh` and `qs`, and 64 of `q`.
#[inline(always)]
fn dot_two_fives<const K: usize>(block: &[u8; 176], q: &[i8; SUPER]) -> [i32; 4] {
    let q: &[i8; 64] = first(&q[2 * GROUP * K..]);
    macro_rules! fives {
        ($low:literal, $high:literal) => {
            helium!(
                [
                    "vmov.i8 q4, #0x1f",
                    "vldrb.u8 q0, [{c}]",
                    "vldrb.u8 q2, [{h}]",
                    "vldrb.u8 q1, [{c}]",
                    $low,
                    "vsli.8 q1, q3, #4",
                    "vand q1, q1, q4",
                    "vldrb.u8 q3, [{q}]",
                    "vmlav.s8 r0, q1, q3",
                    $high,
                    "vsri.8 q3, q0, #4",
                    "vand q3, q3, q4",
                    "vldrb.u8 q1, [{q}, #32]",
                    "vmlav.s8 r2, q3, q1",
                    "vldrb.u8 q0, [{c}, #16]",
                    "vldrb.u8 q2, [{h}, #16]",
                    "vldrb.u8 q1, [{c}, #16]",
                    $low,
                    "vsli.8 q1, q3, #4",
                    "vand q1, q1, q4",
                    "vldrb.u8 q3, [{q}, #16]",
                    "vmlava.s8 r0, q1, q3",
                    $high,
                    "vsri.8 q3, q0, #4",
                    "vand q3, q3, q4",
                    "vldrb.u8 q1, [{q}, #48]",
                    "vmlava.s8 r2, q3, q1",
                ],
                h = in(reg) block[16..].as_ptr(), c = in(reg) block[48 + 32 * K..].as_ptr(), q = in(reg) q.as_ptr(),
            )
        };
    }
    // Q2 holds the fifth bits; Q3 gets them at place 0 for the low nibbles, and at place 4 for the high ones.
    match K {
        0 => fives!("vmov q3, q2", "vshl.i8 q3, q2, #3"),
        1 => fives!("vshr.u8 q3, q2, #2", "vshl.i8 q3, q2, #1"),
        2 => fives!("vshr.u8 q3, q2, #4", "vshr.u8 q3, q2, #1"),
        _ => fives!("vshr.u8 q3, q2, #6", "vshr.u8 q3, q2, #3"),
    }
}

/// Adds the products of a block of Q6_K to the lanes.
///
/// The inserting shifts bring bits together, and VSHL makes the sixth, inverted before, the sign: (c - 32) · 4.
#[inline(always)]
fn add_sixes(block: &[u8; 210], q: &[i8; SUPER], d: &[f32; LANES], lanes: &mut [f32; LANES]) {
    macro_rules! half_of_four {
        ($j:literal, $h:literal) => {
            concat!(
                "vldrb.u8 q1, [{high}, #32*",
                $j,
                "+16*",
                $h,
                "]\n",
                "vldrb.u8 q0, [{c}, #64*",
                $j,
                "+16*",
                $h,
                "]\n",
                "vmov.i8 q7, #0xaa\n",
                "veor q1, q1, q7\n",
                // Above the high nibbles, in Q2: bits 4 and 5 where they are wanted.
                "vmov q2, q1\n",
                "vsri.8 q2, q0, #4\n",
                "vldrb.u8 q7, [{q}, #64+16*",
                $h,
                "]\n",
                "vshl.i8 q2, q2, #2\n",
                "vmlav.s8 r4, q2, q7\n",
                // Above the low nibbles: bits 0 and 1.
                "vsli.8 q0, q1, #4\n",
                "vldrb.u8 q7, [{q}, #16*",
                $h,
                "]\n",
                "vshl.i8 q0, q0, #2\n",
                "vmlav.s8 r0, q0, q7\n",
                // The same again, with bits 6 and 7, and 2 and 3.
                "vshr.u8 q1, q1, #2\n",
                "vldrb.u8 q0, [{c}, #64*",
                $j,
                "+32+16*",
                $h,
                "]\n",
                "vmov q2, q1\n",
                "vsri.8 q2, q0, #4\n",
                "vldrb.u8 q7, [{q}, #96+16*",
                $h,
                "]\n",
                "vshl.i8 q2, q2, #2\n",
                "vmlav.s8 r8, q2, q7\n",
                "vsli.8 q0, q1, #4\n",
                "vldrb.u8 q7, [{q}, #32+16*",
                $h,
                "]\n",
                "vshl.i8 q0, q0, #2\n",
                "vmlav.s8 r2, q0, q7",
            )
        };
    }
    // SAFETY: reads `block`, `q` and `d`, reads and writes `lanes`, all to their ends; `arm_mve` says that there are these
    // instructions.
    unsafe {
        asm!(
            "ldrh r0, [{high}, #80]",
            "vmov s12, r0",
            "vcvtb.f32.f16 s12, s12",
            half_of_four!(0, 0), "vmov s16, s17, r0, r2", "vmov s18, s19, r4, r8",
            half_of_four!(0, 1), "vmov s20, s21, r0, r2", "vmov s22, s23, r4, r8",
            scale_four!("2", "{high}, #64"),
            "add {q}, {q}, #128",
            half_of_four!(1, 0), "vmov s16, s17, r0, r2", "vmov s18, s19, r4, r8",
            half_of_four!(1, 1), "vmov s20, s21, r0, r2", "vmov s22, s23, r4, r8",
            scale_four!("2", "{high}, #72"),
            c = in(reg) block.as_ptr(), high = in(reg) block[128..].as_ptr(), q = inout(reg) q.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _, lanes = inout(reg) lanes.as_mut_ptr() => _,
            out("r0") _, out("r2") _, out("r4") _, out("r8") _,
            out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            options(nostack),
        );
    }
}

/// Two sums in R0 and R2 are put in S`$s`.
macro_rules! keep_two {
    ($s:literal) => {
        concat!("vmov ", $s, ", r0, r2")
    };
}

/// Four sums in Q4, each of which is 1 << `$fraction` times as large, times the scales of four blocks at `c`, `offsets`
/// apart, and times four at `d`, are added to S`$lane0` to S`$lane3`.
///
/// VMLA rounds the product before it adds it.
macro_rules! add_four {
    ($fraction:literal, $lane0:literal, $lane1:literal, $lane2:literal, $lane3:literal) => {
        concat!(
            "vldrw.u32 q0, [{offsets}]\n",
            "vldrh.u32 q5, [{c}, q0]\n",
            "vldmia {d}!, {{s4-s7}}\n",
            "vcvt.f32.s32 s16, s16",
            $fraction,
            "\n",
            "vcvt.f32.s32 s17, s17",
            $fraction,
            "\n",
            "vcvt.f32.s32 s18, s18",
            $fraction,
            "\n",
            "vcvt.f32.s32 s19, s19",
            $fraction,
            "\n",
            "vcvtb.f32.f16 s20, s20\n",
            "vcvtb.f32.f16 s21, s21\n",
            "vcvtb.f32.f16 s22, s22\n",
            "vcvtb.f32.f16 s23, s23\n",
            "vmul.f32 s16, s16, s20\n",
            "vmul.f32 s17, s17, s21\n",
            "vmul.f32 s18, s18, s22\n",
            "vmul.f32 s19, s19, s23\n",
            "vmla.f32 s",
            $lane0,
            ", s16, s4\n",
            "vmla.f32 s",
            $lane1,
            ", s17, s5\n",
            "vmla.f32 s",
            $lane2,
            ", s18, s6\n",
            "vmla.f32 s",
            $lane3,
            ", s19, s7",
        )
    };
}

/// Where four blocks of Q8_0 begin.
static BYTES_APART: [u32; 4] = [0, 34, 68, 102];
/// Where four blocks of Q4_0 begin.
static NIBBLES_APART: [u32; 4] = [0, 18, 36, 54];

/// Adds the products of eight blocks of Q8_0, which lie at an even address, to the lanes, which stay in S24 to S31.
#[inline(always)]
fn add_eight_bytes(c: &[[u8; 272]], q: &[[i8; SUPER]], d: &[[f32; LANES]], lanes: &mut [f32; LANES]) {
    let n = c.len().min(q.len()).min(d.len());
    if n == 0 {
        return;
    }
    macro_rules! dot {
        ($sum:literal, $block:literal) => {
            concat!(
                "vldrb.u8 q0, [{c}, #34*",
                $block,
                "+2]\n",
                "vldrb.u8 q1, [{q}], #16\n",
                "vmlav.s8 ",
                $sum,
                ", q0, q1\n",
                "vldrb.u8 q0, [{c}, #34*",
                $block,
                "+18]\n",
                "vldrb.u8 q1, [{q}], #16\n",
                "vmlava.s8 ",
                $sum,
                ", q0, q1",
            )
        };
    }
    // SAFETY: reads the first `n` of `c`, `q` and `d`, which have as many, reads and writes all `lanes`; `arm_mve` says that
    // there are these instructions.
    unsafe {
        asm!(
            "vldm {lanes}, {{s24-s31}}",
            "2:",
            dot!("r0", 0), dot!("r2", 1), keep_two!("s16, s17"), dot!("r0", 2), dot!("r2", 3), keep_two!("s18, s19"),
            add_four!("", 24, 25, 26, 27),
            "add {c}, {c}, #136",
            dot!("r0", 0), dot!("r2", 1), keep_two!("s16, s17"), dot!("r0", 2), dot!("r2", 3), keep_two!("s18, s19"),
            add_four!("", 28, 29, 30, 31),
            "add {c}, {c}, #136",
            "subs {n}, {n}, #1",
            "bne 2b",
            "vstm {lanes}, {{s24-s31}}",
            n = inout(reg) n => _, c = inout(reg) c.as_ptr() => _, q = inout(reg) q.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _, lanes = in(reg) lanes.as_mut_ptr(), offsets = in(reg) BYTES_APART.as_ptr(),
            out("r0") _, out("r2") _, out("q0") _, out("q1") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            options(nostack),
        );
    }
}

/// Adds the products of eight blocks of Q4_0, which lie at an even address, to the lanes, which stay in S24 to S31.
///
/// With its top bit flipped, a nibble is c - 8 as a signed one; at the top of a byte, (c - 8) · 16.
#[inline(always)]
fn add_eight_nibbles(c: &[[u8; 144]], q: &[[i8; SUPER]], d: &[[f32; LANES]], lanes: &mut [f32; LANES]) {
    let n = c.len().min(q.len()).min(d.len());
    if n == 0 {
        return;
    }
    macro_rules! dot {
        ($sum:literal, $block:literal) => {
            concat!(
                "vldrb.u8 q0, [{c}, #18*",
                $block,
                "+2]\n",
                "vldrb.u8 q2, [{q}], #16\n",
                "veor q0, q0, q3\n",
                "vshl.i8 q1, q0, #4\n",
                "vmlav.s8 ",
                $sum,
                ", q1, q2\n",
                "vldrb.u8 q2, [{q}], #16\n",
                "vand q0, q0, q5\n",
                "vmlava.s8 ",
                $sum,
                ", q0, q2",
            )
        };
    }
    // SAFETY: reads the first `n` of `c`, `q` and `d`, which have as many, reads and writes all `lanes`; `arm_mve` says that
    // there are these instructions.
    unsafe {
        asm!(
            "vmov.i8 q3, #0x88",
            "vldm {lanes}, {{s24-s31}}",
            "2:",
            "vmov.i8 q5, #0xf0",
            dot!("r0", 0), dot!("r2", 1), keep_two!("s16, s17"), dot!("r0", 2), dot!("r2", 3), keep_two!("s18, s19"),
            add_four!(", #4", 24, 25, 26, 27),
            "add {c}, {c}, #72",
            "vmov.i8 q5, #0xf0",
            dot!("r0", 0), dot!("r2", 1), keep_two!("s16, s17"), dot!("r0", 2), dot!("r2", 3), keep_two!("s18, s19"),
            add_four!(", #4", 28, 29, 30, 31),
            "add {c}, {c}, #72",
            "subs {n}, {n}, #1",
            "bne 2b",
            "vstm {lanes}, {{s24-s31}}",
            n = inout(reg) n => _, c = inout(reg) c.as_ptr() => _, q = inout(reg) q.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _, lanes = in(reg) lanes.as_mut_ptr(), offsets = in(reg) NIBBLES_APART.as_ptr(),
            out("r0") _, out("r2") _, out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            options(nostack),
        );
    }
}

/// The first N.
#[inline(always)]
fn first<T, const N: usize>(slice: &[T]) -> &[T; N] {
    match slice.first_chunk() {
        Some(first) => first,
        None => unreachable!("blocks and groups are as long as their format says"),
    }
}
