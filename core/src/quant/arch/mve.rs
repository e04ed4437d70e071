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

/// Adds the products of a row and an activation row to lanes.
type Add = fn(&[u8], &Activation, &mut [f32; LANES]);

/// [`super::Kernel::multiply`].
pub(super) fn multiply(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    let add: Add = match format {
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
    let rows = rows.chunks_exact(format.row_bytes(x.cols));
    for (row, products) in rows.zip(products.chunks_exact_mut(x.len())) {
        for (b, product) in products.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            add(row, &x.row(b), &mut lanes);
            *product = sum_lanes(lanes);
        }
    }
}

/// Calls `f` with each block of BYTES bytes, its group's codes and scale, the sum of the codes, and its lane.
#[inline(always)]
fn for_blocks<const BYTES: usize>(
    row: &[u8],
    x: &Activation,
    lanes: &mut [f32; LANES],
    f: impl Fn(&[u8; BYTES], &[i8; GROUP], f32, [i32; 2], &mut f32),
) {
    let mut groups = x.groups();
    for blocks in row.chunks(LANES * BYTES) {
        for ((block, x), lane) in blocks.as_chunks().0.iter().zip(&mut groups).zip(&mut *lanes) {
            f(block, x.q, x.d, x.sums, lane);
        }
    }
}

/// Calls `f` with each super-block of BYTES bytes, its activations' codes, scales and sums, and the lanes.
#[inline(always)]
fn for_super_blocks<const BYTES: usize>(
    row: &[u8],
    x: &Activation,
    lanes: &mut [f32; LANES],
    f: impl Fn(&[u8; BYTES], &[i8; SUPER], &[f32; LANES], &[[i16; 2]; LANES], &mut [f32; LANES]),
) {
    let (q, d, sums) = (x.q.as_chunks().0, x.d.as_chunks().0, x.sums.as_chunks().0.as_chunks().0);
    for (((block, q), d), sums) in row.as_chunks().0.iter().zip(q).zip(d).zip(sums) {
        f(block, q, d, sums, lanes);
    }
}

fn q8_0(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<34>(row, x, lanes, |block, q, d, _, lane| {
        *lane += dot_bytes(part(block, 2), q) as f32 * half(block, 0) * d;
    });
}

fn q4_0(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<18>(row, x, lanes, |block, q, d, sums, lane| {
        let sum = dot_nibbles(part(block, 2), q) - 8 * (sums[0] + sums[1]);
        *lane += sum as f32 * half(block, 0) * d;
    });
}

fn q4_1(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<20>(row, x, lanes, |block, q, d, sums, lane| {
        let scaled = dot_nibbles(part(block, 4), q) as f32 * half(block, 0);
        *lane += (scaled + (sums[0] + sums[1]) as f32 * half(block, 2)) * d;
    });
}

fn q5_0(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<22>(row, x, lanes, |block, q, d, sums, lane| {
        let sum = dot_fives(word(block, 2), part(block, 6), q) - 16 * (sums[0] + sums[1]);
        *lane += sum as f32 * half(block, 0) * d;
    });
}

fn q5_1(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<24>(row, x, lanes, |block, q, d, sums, lane| {
        let scaled = dot_fives(word(block, 4), part(block, 8), q) as f32 * half(block, 0);
        *lane += (scaled + (sums[0] + sums[1]) as f32 * half(block, 2)) * d;
    });
}

fn iq4_nl(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_blocks::<18>(row, x, lanes, |block, q, d, _, lane| {
        *lane += dot_steps(part(block, 2), q) as f32 * half(block, 0) * d;
    });
}

fn iq4_xs(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<136>(row, x, lanes, |block, q, x_d, _, lanes| {
        let d = half(block, 0);
        let (high, low) = (u32::from(block[2]) | u32::from(block[3]) << 8, word(block, 4));
        for (g, lane) in lanes.iter_mut().enumerate() {
            let s = (low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4) as i32 - 32;
            *lane += (dot_steps(part(block, 8 + HALF * g), codes(q, g)) * s) as f32 * d * x_d[g];
        }
    });
}

fn q2_k(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<84>(row, x, lanes, |block, q, x_d, sums, lanes| {
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

fn q3_k(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<110>(row, x, lanes, |block, q, x_d, _, lanes| {
        let d = half(block, 108);
        let scales = q3_k_scales(part(block, 96));
        let mut add = |j: usize, a: [i32; 4], b: [i32; 4]| {
            for k in 0..4 {
                let g = 4 * j + k;
                let sum = a[k] * i32::from(scales[2 * g]) + b[k] * i32::from(scales[2 * g + 1]);
                lanes[g] += sum as f32 * d * x_d[g];
            }
        };
        add(0, dot_threes::<0, 0>(block, q), dot_threes::<0, 1>(block, q));
        add(1, dot_threes::<1, 0>(block, q), dot_threes::<1, 1>(block, q));
    });
}

fn q4_k(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<144>(row, x, lanes, |block, q, x_d, sums, lanes| {
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

fn q5_k(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<176>(row, x, lanes, |block, q, x_d, sums, lanes| {
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

fn q6_k(row: &[u8], x: &Activation, lanes: &mut [f32; LANES]) {
    for_super_blocks::<210>(row, x, lanes, |block, q, x_d, _, lanes| {
        let d = half(block, 208);
        for j in 0..2 {
            let (ql, qh): (&[u8; 64], &[u8; GROUP]) = (part(block, 64 * j), part(block, 128 + 32 * j));
            let a = dot_sixes(ql, qh, &q[4 * GROUP * j..]);
            let b = dot_sixes(&ql[HALF..], &qh[HALF..], &q[4 * GROUP * j + HALF..]);
            for k in 0..4 {
                let g = 4 * j + k;
                let [s0, s1] = [block[192 + 2 * g] as i8, block[193 + 2 * g] as i8];
                lanes[g] += (a[k] * i32::from(s0) + b[k] * i32::from(s1)) as f32 * d * x_d[g];
            }
        }
    });
}

/// Group `g`'s activations.
#[inline(always)]
fn codes(q: &[i8; SUPER], g: usize) -> &[i8; GROUP] {
    &q.as_chunks().0[g]
}

/// Assembly that reads memory, with up to four sums in R0, R2, R4 and R8 (VMLAV wants even registers) and Q0 to Q7 at
/// its disposal.
macro_rules! helium {
    ([$($line:expr),* $(,)?], $($operand:tt)*) => {{
        let [s0, s1, s2, s3]: [i32; 4];
        // SAFETY: `arm_mve` says that there are these instructions, and the function around says what they read.
        unsafe {
            asm!(
                $($line,)*
                $($operand)*
                out("r0") s0, out("r2") s1, out("r4") s2, out("r8") s3,
                out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _, out("q5") _, out("q6") _, out("q7") _,
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
            "vmov.i8 q5, #0x10",
            "vand q2, q0, q4",
            "vshr.u8 q0, q0, #4",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q2, q2, q5",
            "lsr {high}, {high}, #16",
            "vmsr p0, {high}",
            "vpst",
            "vaddt.i8 q0, q0, q5",
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
            "vldrb.u8 q5, [{steps}, q0]",
            "vmlav.s8 r0, q3, q1",
            "vldrb.u8 q1, [{q}, #16]",
            "vmlava.s8 r0, q5, q1",
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

/// Half H of groups 4J..4J + 4 of a Q3_K block. Reads 16 bytes of `qs` and of `hmask`, and 16 of each 32 of `q`.
///
/// VSLI puts the third bit, and others that are then masked away, above the pair.
#[inline(always)]
fn dot_threes<const J: usize, const H: usize>(block: &[u8; 110], q: &[i8; SUPER]) -> [i32; 4] {
    let q: &[i8; 112] = first(&q[4 * GROUP * J + HALF * H..]);
    macro_rules! threes {
        ($b0:literal, $b1:literal, $b2:literal, $b3:literal) => {
            helium!(
                [
                    "vldrb.u8 q0, [{c}, #{low}]",
                    "vldrb.u8 q1, [{c}]",
                    "vmov.i8 q4, #0x03",
                    "vmov.i8 q5, #0x07",
                    "vmov.i8 q6, #0x04",
                    $b0,
                    "vand q2, q0, q4",
                    "vsli.8 q2, q3, #2",
                    "vand q2, q2, q5",
                    "vsub.i8 q2, q2, q6",
                    "vldrb.u8 q7, [{q}]",
                    "vmlav.s8 r0, q2, q7",
                    "vshr.u8 q2, q0, #2",
                    $b1,
                    "vand q2, q2, q4",
                    "vsli.8 q2, q3, #2",
                    "vand q2, q2, q5",
                    "vsub.i8 q2, q2, q6",
                    "vldrb.u8 q7, [{q}, #32]",
                    "vmlav.s8 r2, q2, q7",
                    "vshr.u8 q2, q0, #4",
                    $b2,
                    "vand q2, q2, q4",
                    "vsli.8 q2, q3, #2",
                    "vand q2, q2, q5",
                    "vsub.i8 q2, q2, q6",
                    "vldrb.u8 q7, [{q}, #64]",
                    "vmlav.s8 r4, q2, q7",
                    "vshr.u8 q2, q0, #6",
                    $b3,
                    "vsli.8 q2, q3, #2",
                    "vand q2, q2, q5",
                    "vsub.i8 q2, q2, q6",
                    "vldrb.u8 q7, [{q}, #96]",
                    "vmlav.s8 r8, q2, q7",
                ],
                c = in(reg) block[HALF * H..].as_ptr(), low = const 32 + 32 * J, q = in(reg) q.as_ptr(),
            )
        };
    }
    if J == 0 {
        threes!("vmov q3, q1", "vshr.u8 q3, q1, #1", "vshr.u8 q3, q1, #2", "vshr.u8 q3, q1, #3")
    } else {
        threes!("vshr.u8 q3, q1, #4", "vshr.u8 q3, q1, #5", "vshr.u8 q3, q1, #6", "vshr.u8 q3, q1, #7")
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
                    "vmov.i8 q5, #0x1f",
                    "vldrb.u8 q0, [{c}]",
                    "vldrb.u8 q2, [{h}]",
                    "vldrb.u8 q1, [{c}]",
                    $low,
                    "vsli.8 q1, q3, #4",
                    "vand q1, q1, q5",
                    "vldrb.u8 q4, [{q}]",
                    "vmlav.s8 r0, q1, q4",
                    $high,
                    "vsri.8 q3, q0, #4",
                    "vand q3, q3, q5",
                    "vldrb.u8 q4, [{q}, #32]",
                    "vmlav.s8 r2, q3, q4",
                    "vldrb.u8 q0, [{c}, #16]",
                    "vldrb.u8 q2, [{h}, #16]",
                    "vldrb.u8 q1, [{c}, #16]",
                    $low,
                    "vsli.8 q1, q3, #4",
                    "vand q1, q1, q5",
                    "vldrb.u8 q4, [{q}, #16]",
                    "vmlava.s8 r0, q1, q4",
                    $high,
                    "vsri.8 q3, q0, #4",
                    "vand q3, q3, q5",
                    "vldrb.u8 q4, [{q}, #48]",
                    "vmlava.s8 r2, q3, q4",
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

/// The same half of four groups of Q6_K. Reads 16 of each 32 bytes of `ql`, 16 of `qh`, and 16 of each 32 of `q`.
#[inline(always)]
fn dot_sixes(ql: &[u8], qh: &[u8], q: &[i8]) -> [i32; 4] {
    let (ql, qh, q): (&[u8; 48], &[u8; HALF], &[i8; 112]) = (first(ql), first(qh), first(q));
    helium!(
        [
            "vldrb.u8 q0, [{ql}]",
            "vldrb.u8 q1, [{qh}]",
            "vmov.i8 q4, #0x3f",
            "vmov.i8 q5, #0x20",
            // Above the high nibbles, in Q2: bits 4 and 5 where they are wanted.
            "vmov q2, q1",
            "vsri.8 q2, q0, #4",
            "vand q2, q2, q4",
            "vsub.i8 q2, q2, q5",
            "vldrb.u8 q7, [{q}, #64]",
            "vmlav.s8 r4, q2, q7",
            // Above the low nibbles: bits 0 and 1.
            "vsli.8 q0, q1, #4",
            "vand q0, q0, q4",
            "vsub.i8 q0, q0, q5",
            "vldrb.u8 q7, [{q}]",
            "vmlav.s8 r0, q0, q7",
            // The same again, with bits 6 and 7, and 2 and 3.
            "vshr.u8 q1, q1, #2",
            "vldrb.u8 q0, [{ql}, #32]",
            "vmov q2, q1",
            "vsri.8 q2, q0, #4",
            "vand q2, q2, q4",
            "vsub.i8 q2, q2, q5",
            "vldrb.u8 q7, [{q}, #96]",
            "vmlav.s8 r8, q2, q7",
            "vsli.8 q0, q1, #4",
            "vand q0, q0, q4",
            "vsub.i8 q0, q0, q5",
            "vldrb.u8 q7, [{q}, #32]",
            "vmlav.s8 r2, q0, q7",
        ],
        ql = in(reg) ql.as_ptr(), qh = in(reg) qh.as_ptr(), q = in(reg) q.as_ptr(),
    )
}

/// The first N.
#[inline(always)]
fn first<T, const N: usize>(slice: &[T]) -> &[T; N] {
    match slice.first_chunk() {
        Some(first) => first,
        None => unreachable!("blocks and groups are as long as their format says"),
    }
}
