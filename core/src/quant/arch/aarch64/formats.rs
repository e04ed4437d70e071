//! What the kernels know of each format: where in eight groups' bytes the codes and the scales are.
//!
//! The pictures are in the formats' own files.

use super::neon::*;
use crate::quant::iq4_nl::STEPS;
use crate::quant::{iq4_nl, iq4_xs, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

/// A format, in runs of eight groups. `G` is a group of the run, `Q` its first or its second four groups.
pub(super) trait Run {
    /// Bytes of eight groups.
    const BYTES: usize;
    /// The largest magnitude of a code.
    const MAX: i32;
    /// The code of weight 0: what [`Run::codes`] has too much.
    const ZERO: i32 = 0;
    /// Whether each half group has its own scale.
    const HALVES: bool = false;
    /// Whether a block is one group: then a row may end within a run, and the registers suffice for two rows at once.
    const BLOCKS: bool = false;
    /// What is unpacked once for the whole run.
    type Scales: Copy;

    fn scales(run: &[u8]) -> Self::Scales;

    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2];

    /// Four groups' values but for the activations' scales, from their sums of products: `totals[0]`, or with `HALVES`
    /// both, half by half.
    fn values<const Q: usize>(run: &[u8], scales: &Self::Scales, totals: [I32x4; 2], sums: &Sums) -> F32x4;
}

/// The sums of four groups of activations.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) halves: I16x8,
    pub(super) groups: I32x4,
}

/// A run of eight blocks of one group each.
const EIGHT: usize = 8;

#[inline(always)]
fn signed(codes: [U8x16; 2]) -> [I8x16; 2] {
    codes.map(vreinterpretq_s8_u8)
}

#[inline(always)]
fn and(a: U8x16, mask: u8) -> U8x16 {
    vandq_u8(a, vdupq_n_u8(mask))
}

/// 16 bytes hold 32 nibbles: low ones first.
#[inline(always)]
fn nibbles(bytes: U8x16) -> [U8x16; 2] {
    [and(bytes, 15), shr::<4>(bytes)]
}

/// What the nibbles of 16 bytes stand for in IQ4_NL and IQ4_XS.
#[inline(always)]
fn steps(bytes: U8x16) -> [I8x16; 2] {
    nibbles(bytes).map(|nibbles| vqtbl1q_s8(load_i8(&STEPS), nibbles))
}

/// Codes of Q5_0 less 16: nibbles where the fifth bit is set, nibbles below 16 zeros too few where not.
#[inline(always)]
fn fives(block: &[u8], qh: usize, qs: usize) -> [I8x16; 2] {
    const FIRST: [i8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
    const SECOND: [i8; 16] = [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3];
    const BITS: [i8; 16] = [1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128];
    let not = vmvnq_u8(load_4_times_4(block, qh));
    let bytes = load(block, qs);
    let clear = [FIRST, SECOND].map(|at| {
        let byte = vqtbl1q_u8(not, vreinterpretq_u8_s8(load_i8(&at)));
        vtstq_u8(byte, vreinterpretq_u8_s8(load_i8(&BITS)))
    });
    // Ones above a nibble make it the nibble less 16.
    signed([join::<4>(bytes, clear[0]), join::<4>(shr::<4>(bytes), clear[1])])
}

/// `totals · d`, the scales `STEP` bytes apart.
#[inline(always)]
fn scaled<const STEP: usize>(run: &[u8], at: usize, totals: I32x4) -> F32x4 {
    vmulq_f32(vcvtq_f32_s32(totals), load_4_f16::<STEP>(run, at))
}

/// The eight signed bytes of a register's low half as two times four numbers.
#[inline(always)]
fn widen_low(a: I8x16) -> [I32x4; 2] {
    let a = vmovl_low_s8(a);
    [vmovl_low_s16(a), vmovl_high_s16(a)]
}

/// All 16 of them, as pairs of four.
#[inline(always)]
fn widen<const Q: usize>(a: I8x16) -> [I32x4; 2] {
    let a = if Q == 0 { vmovl_low_s8(a) } else { vmovl_high_s8(a) };
    [vmovl_low_s16(a), vmovl_high_s16(a)]
}

/// The sums of groups from those of their halves, each times its scale.
#[inline(always)]
fn join_halves(totals: [I32x4; 2], scales: [I32x4; 2]) -> I32x4 {
    vpaddq_s32(vmulq_s32(totals[0], scales[0]), vmulq_s32(totals[1], scales[1]))
}

/// Formats whose block is a group: bytes of a block, largest code, the code of 0, codes of a block, and what a minimum
/// adds.
macro_rules! blocks {
    ($($name:ident $format:ident, $max:literal, $zero:literal, $codes:expr $(, minimum at $m:literal)?;)*) => {
        $(
            pub(super) struct $name;

            impl Run for $name {
                const BYTES: usize = EIGHT * $format::BYTES;
                const MAX: i32 = $max;
                const ZERO: i32 = $zero;
                const BLOCKS: bool = true;
                type Scales = ();

                #[inline(always)]
                fn scales(_: &[u8]) {}

                #[inline(always)]
                fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
                    let codes: fn(&[u8], usize) -> [I8x16; 2] = $codes;
                    codes(run, G * $format::BYTES)
                }

                #[inline(always)]
                fn values<const Q: usize>(run: &[u8], (): &(), totals: [I32x4; 2], _sums: &Sums) -> F32x4 {
                    const BYTES: usize = $format::BYTES;
                    let at = Q * 4 * BYTES;
                    let values = scaled::<BYTES>(run, at, totals[0]);
                    $(let values = vaddq_f32(values, scaled::<BYTES>(run, at + $m, _sums.groups));)?
                    values
                }
            }
        )*
    };
}

blocks! {
    Q4_0 q4_0, 15, 8, |run, at| signed(nibbles(load(run, at + 2)));
    Q4_1 q4_1, 15, 0, |run, at| signed(nibbles(load(run, at + 4))), minimum at 2;
    Q5_0 q5_0, 16, 0, |run, at| fives(run, at + 2, at + 6);
    Q5_1 q5_1, 16, -16, |run, at| fives(run, at + 4, at + 8), minimum at 2;
    Q8_0 q8_0, 128, 0, |run, at| signed([load(run, at + 2), load(run, at + 18)]);
    Iq4Nl iq4_nl, 127, 0, |run, at| steps(load(run, at + 2));
}

/// Scales and minimums of Q4_K and Q5_K, and what both are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Minimums {
    s: [I32x4; 2],
    m: [I32x4; 2],
    d: F32x4,
    dmin: F32x4,
}

impl Minimums {
    /// Those of Q4_K's first 16 bytes.
    #[inline(always)]
    fn of(run: &[u8]) -> Minimums {
        // Bytes 0-3 and 4-7 have the first four scales and minimums, and in their top bits those of the last four,
        // whose low nibbles are the two of bytes 8-11.
        const SECOND: [i8; 16] = [0, 0, 0, 0, -4, -4, -4, -4, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = load_8(run, 4);
        let low = vshlq_u8(load_4_times_4(run, 12), load_i8(&SECOND));
        let last = vorrq_u8(and(low, 15), and(shr::<2>(first), 0x30));
        let [s0, m0] = widen_low(vreinterpretq_s8_u8(and(first, 63)));
        let [s1, m1] = widen_low(vreinterpretq_s8_u8(last));
        Minimums { s: [s0, s1], m: [m0, m1], d: load_f16(run, 0), dmin: load_f16(run, 2) }
    }

    #[inline(always)]
    fn values<const Q: usize>(&self, totals: I32x4, sums: &Sums) -> F32x4 {
        less(vmulq_s32(totals, self.s[Q]), self.d, vmulq_s32(sums.groups, self.m[Q]), self.dmin)
    }
}

/// `scaled · d - minimum · dmin`.
#[inline(always)]
fn less(scaled: I32x4, d: F32x4, minimum: I32x4, dmin: F32x4) -> F32x4 {
    vsubq_f32(vmulq_f32(vcvtq_f32_s32(scaled), d), vmulq_f32(vcvtq_f32_s32(minimum), dmin))
}

pub(super) struct Q4K;

impl Run for Q4K {
    const BYTES: usize = q4_k::BYTES;
    const MAX: i32 = 15;
    type Scales = Minimums;

    #[inline(always)]
    fn scales(run: &[u8]) -> Minimums {
        Minimums::of(run)
    }

    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        let at = 16 + G / 2 * 32;
        signed([load(run, at), load(run, at + 16)].map(|bytes| nibbles(bytes)[G % 2]))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], scales: &Minimums, totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        scales.values::<Q>(totals[0], sums)
    }
}

pub(super) struct Q5K;

impl Run for Q5K {
    const BYTES: usize = q5_k::BYTES;
    const MAX: i32 = 31;
    type Scales = Minimums;

    #[inline(always)]
    fn scales(run: &[u8]) -> Minimums {
        Minimums::of(run)
    }

    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        signed([0, 16].map(|i| {
            let (high, bytes) = (load(run, 16 + i), load(run, 48 + G / 2 * 32 + i));
            let low = if G.is_multiple_of(2) { bytes } else { shr::<4>(bytes) };
            and(join::<4>(low, shr::<G>(high)), 31)
        }))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], scales: &Minimums, totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        scales.values::<Q>(totals[0], sums)
    }
}

pub(super) struct Q6K;

impl Run for Q6K {
    const BYTES: usize = q6_k::BYTES;
    const MAX: i32 = 63;
    const ZERO: i32 = 32;
    const HALVES: bool = true;
    type Scales = F32x4;

    #[inline(always)]
    fn scales(run: &[u8]) -> F32x4 {
        load_f16(run, 208)
    }

    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        signed([0, 16].map(|i| {
            let low = load(run, G / 4 * 64 + G % 2 * 32 + i);
            let high = load(run, 128 + G / 4 * 32 + i);
            match G % 4 {
                0 => join::<4>(low, and(high, 3)),
                1 => join::<4>(low, and(shr::<2>(high), 3)),
                2 => join_high(low, and(high, 0x30)),
                // Nothing is left above these two bits.
                _ => join_high(low, shr::<2>(high)),
            }
        }))
    }

    #[inline(always)]
    fn values<const Q: usize>(run: &[u8], d: &F32x4, totals: [I32x4; 2], _: &Sums) -> F32x4 {
        let scales = widen::<Q>(vreinterpretq_s8_u8(load(run, 192)));
        vmulq_f32(vcvtq_f32_s32(join_halves(totals, scales)), *d)
    }
}

/// Bytes of two bits a weight: those of group `G`, in the low bits.
#[inline(always)]
fn pairs<const G: usize>(run: &[u8], qs: usize, i: usize) -> U8x16 {
    let bytes = load(run, qs + G / 4 * 32 + i);
    match G % 4 {
        0 => bytes,
        1 => shr::<2>(bytes),
        2 => shr::<4>(bytes),
        _ => shr::<6>(bytes),
    }
}

pub(super) struct Q2K;

impl Run for Q2K {
    const BYTES: usize = q2_k::BYTES;
    const MAX: i32 = 3 << 4;
    const HALVES: bool = true;
    type Scales = [F32x4; 2];

    #[inline(always)]
    fn scales(run: &[u8]) -> [F32x4; 2] {
        // A power of two changes no bit but those of the exponent.
        const OF_GROUPS: [f32; 4] = [1.0, 0.25, 0.0625, 1.0];
        [vmulq_f32(load_f16(run, 80), load_f32(&OF_GROUPS)), load_f16(run, 82)]
    }

    /// In the places where they are, but for the last of four groups': 4 and 16 times as large as they should be.
    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        signed([0, 16].map(|i| {
            let bytes = load(run, 16 + G / 4 * 32 + i);
            if G % 4 == 3 { shr::<6>(bytes) } else { and(bytes, 3 << (2 * (G % 4))) }
        }))
    }

    #[inline(always)]
    fn values<const Q: usize>(run: &[u8], d: &[F32x4; 2], totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        let [s, m] = signed(nibbles(load(run, 0)));
        let m = if Q == 0 { vmovl_low_s8(m) } else { vmovl_high_s8(m) };
        // 15 times 16 codes of 127 fit in 16 bits.
        let minimum = vpaddlq_s16(vmulq_s16(sums.halves, m));
        less(join_halves(totals, widen::<Q>(s)), d[0], minimum, d[1])
    }
}

pub(super) struct Q3K;

impl Run for Q3K {
    const BYTES: usize = q3_k::BYTES;
    const MAX: i32 = 7;
    const ZERO: i32 = 4;
    const HALVES: bool = true;
    /// Scales of the half groups, and what they are multiplied with.
    type Scales = (I8x16, F32x4);

    #[inline(always)]
    fn scales(run: &[u8]) -> (I8x16, F32x4) {
        const TO_BITS_4_AND_5: [i8; 16] = [4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2];
        let low = vcombine_low(nibbles(load_8(run, 96)));
        let high = vshlq_u8(load_4_times_4(run, 104), load_i8(&TO_BITS_4_AND_5));
        let both = vorrq_u8(low, and(high, 0x30));
        (vaddq_s8(vreinterpretq_s8_u8(both), vdupq_n_s8(-32)), load_f16(run, 108))
    }

    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        signed([0, 16].map(|i| and(join::<2>(pairs::<G>(run, 32, i), shr::<G>(load(run, i))), 7)))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], (s, d): &(I8x16, F32x4), totals: [I32x4; 2], _: &Sums) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(join_halves(totals, widen::<Q>(*s))), *d)
    }
}

pub(super) struct Iq4Xs;

impl Run for Iq4Xs {
    const BYTES: usize = iq4_xs::BYTES;
    const MAX: i32 = 127;
    /// Scales of the groups, and what they are multiplied with.
    type Scales = ([I32x4; 2], F32x4);

    #[inline(always)]
    fn scales(run: &[u8]) -> ([I32x4; 2], F32x4) {
        // One after the other the nibbles of four bytes, and the pairs of bits of two, moved to bits 4 and 5.
        const PAIRS: [i8; 16] = [2, 2, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        const TO_BITS_4_AND_5: [i8; 16] = [4, 2, 0, -2, 4, 2, 0, -2, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = load_8(run, 0);
        let high = vqtbl1q_u8(first, vreinterpretq_u8_s8(load_i8(&PAIRS)));
        let high = and(vshlq_u8(high, load_i8(&TO_BITS_4_AND_5)), 0x30);
        let [even, odd] = nibbles(load_4_times_4(run, 4));
        let both = vorrq_u8(vzip1q_u8(even, odd), high);
        (widen_low(vaddq_s8(vreinterpretq_s8_u8(both), vdupq_n_s8(-32))), load_f16(run, 0))
    }

    #[inline(always)]
    fn codes<const G: usize>(run: &[u8]) -> [I8x16; 2] {
        steps(load(run, 8 + G * 16))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], (s, d): &([I32x4; 2], F32x4), totals: [I32x4; 2], _: &Sums) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(vmulq_s32(totals[0], s[Q])), *d)
    }
}
