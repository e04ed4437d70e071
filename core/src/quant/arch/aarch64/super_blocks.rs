//! Formats of super-blocks: a row by itself, and each of four groups has a lane.
//!
//! ```text
//! codes  = unpack(weights)                   of four groups
//! totals = sums of codes · activations       one register: a lane a group, or two: a lane a half group
//! totals -= code of zero × sums of activations         so that codes need not be signed
//! lanes  += f32(totals × sub-scales) × scale × activations' scale
//! ```
//!
//! The pictures of the blocks are in the formats' own files. `Q` is the first or the second four groups.

use core::array::from_fn;

use bytemuck::cast_ref;

use super::blocks::steps;
use super::multipliers::Multiplier;
use super::neon::*;
use super::{Activations, COLUMNS, Codes, Column, strips};
use crate::part::part_mut;
use crate::quant::{Batch, SUPER, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k};

/// A format of super-blocks.
pub(super) trait SuperBlock: Codes {
    /// Bytes of a super-block.
    const BYTES: usize;
    /// Whether each half group has its own scale.
    const HALVES: bool = false;
    /// What is unpacked once for all eight groups.
    type Opened: Copy;

    fn open<M: Multiplier>(block: &[u8]) -> Self::Opened;

    /// Four groups' codes.
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], opened: &Self::Opened) -> [[I8x16; 2]; 4];

    /// Four groups' values but for the activations' scales, from their sums of products: `totals[0]`, or with `HALVES`
    /// both, half by half.
    fn values<const Q: usize>(block: &[u8], opened: &Self::Opened, totals: [I32x4; 2], sums: &Sums) -> F32x4;
}

/// The sums of four groups of activations.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    halves: I16x8,
    groups: I32x4,
}

/// All products: by columns, and row by row.
pub(super) fn multiply<M: Multiplier, F: SuperBlock>(rows: &[u8], x: &Batch, products: &mut [f32]) {
    for (b, wide) in strips(x) {
        match wide {
            true => strip::<M, F, COLUMNS>(rows, x, b, products),
            false => strip::<M, F, 1>(rows, x, b, products),
        }
    }
}

/// The products of all rows with the C activation rows from `b` on.
fn strip<M: Multiplier, F: SuperBlock, const C: usize>(rows: &[u8], x: &Batch, b: usize, products: &mut [f32]) {
    let (n, batch) = (x.cols / SUPER, x.len().max(1));
    let row_bytes = rows.len() / (products.len() / batch).max(1);
    let columns = from_fn(|c| Column::of(x, b + c));
    let mut tile = Tile::<M, C> { lanes: [[vdupq_n_f32(0.0); 2]; C], running: [M::start(); C] };
    for (row, products) in rows.chunks_exact(row_bytes.max(1)).zip(products.chunks_exact_mut(batch)) {
        tile.lanes = [[vdupq_n_f32(0.0); 2]; C];
        for i in 0..n {
            // SAFETY: each row and each column has so many.
            let (block, x) = unsafe {
                let block = row.get_unchecked(i * F::BYTES..(i + 1) * F::BYTES);
                (block, columns.each_ref().map(|x| x.run(i)))
            };
            let opened = F::open::<M>(block);
            tile.add_four::<F, 0>(block, &opened, &x);
            tile.add_four::<F, 1>(block, &opened, &x);
        }
        let sums = tile.lanes.map(|[low, high]| sum_4_lanes(vaddq_f32(low, high)));
        part_mut(products, b..).iter_mut().zip(sums).for_each(|(product, sum)| *product = sum);
    }
}

/// What the products of a row with C activation rows are added up in.
struct Tile<M: Multiplier, const C: usize> {
    lanes: [[F32x4; 2]; C],
    running: [M::Running; C],
}

impl<M: Multiplier, const C: usize> Tile<M, C> {
    /// Adds half Q of a super-block to its lanes.
    #[inline(always)]
    fn add_four<F: SuperBlock, const Q: usize>(&mut self, block: &[u8], opened: &F::Opened, x: &[Activations<'_>; C]) {
        let w = F::codes::<M, Q>(block, opened);
        for (c, x) in x.iter().enumerate() {
            let (running, q) = (&mut self.running[c], &x.q[Q]);
            let halves = load_i16(&x.sums[Q]);
            let sums = Sums { halves, groups: vpaddlq_s16(halves) };
            let totals = if F::HALVES {
                less_zeros::<F>(M::halves::<F>(running, w, M::load(cast_ref(q)).map(signed)), halves)
            } else {
                [M::groups::<F>(running, w, q.each_ref().map(load_group)); 2]
            };
            let values = F::values::<Q>(block, opened, totals, &sums);
            let lane = &mut self.lanes[c][Q];
            *lane = vaddq_f32(*lane, vmulq_f32(values, load_f32(&x.d[Q])));
        }
    }
}

/// Sums of halves less what codes have too much.
#[inline(always)]
fn less_zeros<F: SuperBlock>(totals: [I32x4; 2], sums: I16x8) -> [I32x4; 2] {
    if F::ZERO == 0 { totals } else { vmlsl_s16(totals, sums, vdupq_n_s16(F::ZERO as i16)) }
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

/// `scaled · d - minimum · dmin`.
#[inline(always)]
fn less(scaled: I32x4, d: F32x4, minimum: I32x4, dmin: F32x4) -> F32x4 {
    vsubq_f32(vmulq_f32(vcvtq_f32_s32(scaled), d), vmulq_f32(vcvtq_f32_s32(minimum), dmin))
}

pub(super) struct Q2K;

impl Codes for Q2K {
    const MAX: i32 = 3 << 4;
}

impl SuperBlock for Q2K {
    const BYTES: usize = q2_k::BYTES;
    const HALVES: bool = true;
    /// Scale and minimum.
    type Opened = [F32x4; 2];

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> [F32x4; 2] {
        // A power of two changes no bit but those of the exponent.
        const OF_GROUPS: [f32; 4] = [1.0, 0.25, 0.0625, 1.0];
        [vmulq_f32(load_f16(block, 80), load_f32(&OF_GROUPS)), load_f16(block, 82)]
    }

    /// In the places where they are, but for the last of four groups': 4 and 16 times as large as they should be.
    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &[F32x4; 2]) -> [[I8x16; 2]; 4] {
        let [bytes] = M::load(thirty_twos(block, 16 + Q * 32));
        let masked = |mask| bytes.map(|bytes| and(bytes, mask));
        [masked(3), masked(3 << 2), masked(3 << 4), bytes.map(shr::<6>)].map(signed)
    }

    #[inline(always)]
    fn values<const Q: usize>(block: &[u8], d: &[F32x4; 2], totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        let [s, m] = signed(nibbles(load(block, 0)));
        let m = if Q == 0 { vmovl_low_s8(m) } else { vmovl_high_s8(m) };
        // 15 times 16 codes of 127 fit in 16 bits.
        let minimum = vpaddlq_s16(vmulq_s16(sums.halves, m));
        less(join_halves(totals, widen::<Q>(s)), d[0], minimum, d[1])
    }
}

pub(super) struct Q3K;

impl Codes for Q3K {
    const MAX: i32 = 7;
    const ZERO: i32 = 4;
}

/// A super-block of Q3_K.
#[derive(Clone, Copy)]
pub(super) struct OpenedQ3K {
    /// Codes in nibbles: of groups 0 to 3 in the low ones, of 4 to 7 in the high ones. Bits 3 and 7 are anything.
    codes: [[U8x16; 2]; 4],
    /// Scales of the half groups.
    scales: I8x16,
    d: F32x4,
}

impl SuperBlock for Q3K {
    const BYTES: usize = q3_k::BYTES;
    const HALVES: bool = true;
    type Opened = OpenedQ3K;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> OpenedQ3K {
        const TO_BITS_4_AND_5: [i8; 16] = [4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2];
        let low = vcombine_low(nibbles(load_8(block, 96)));
        let high = vshlq_u8(load_4_times_4(block, 104), load_i8(&TO_BITS_4_AND_5));
        let scales = vaddq_s8(vreinterpretq_s8_u8(vorrq_u8(low, and(high, 0x30))), vdupq_n_s8(-32));

        // Bits 0 and 1 of a code: those of two groups, with two groups of the second half above them.
        let [third, first, second] = M::load(thirty_twos(block, 0));
        let pairs = [0, 1].map(|i| join::<4>(first[i], second[i]));
        let next_pairs = [0, 1].map(|i| join_high(first[i], second[i]));
        let join = |third: [U8x16; 2], pairs: [U8x16; 2]| [0, 1].map(|i| select(0x33, pairs[i], third[i]));
        let codes = [
            join(third.map(shl::<2>), pairs),
            join(third.map(shl::<1>), pairs.map(shr::<2>)),
            join(third, next_pairs),
            join(third.map(shr::<1>), next_pairs.map(shr::<2>)),
        ];
        OpenedQ3K { codes, scales, d: load_f16(block, 108) }
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(_: &[u8], opened: &OpenedQ3K) -> [[I8x16; 2]; 4] {
        opened.codes.map(|codes| signed(codes.map(|codes| and(if Q == 0 { codes } else { shr::<4>(codes) }, 7))))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], opened: &OpenedQ3K, totals: [I32x4; 2], _: &Sums) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(join_halves(totals, widen::<Q>(opened.scales))), opened.d)
    }
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
    /// Those of the first 16 bytes.
    #[inline(always)]
    fn of(block: &[u8]) -> Minimums {
        // Bytes 0-3 and 4-7 have the first four scales and minimums, and in their top bits those of the last four,
        // whose low nibbles are the two of bytes 8-11.
        const SECOND: [i8; 16] = [0, 0, 0, 0, -4, -4, -4, -4, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = load_8(block, 4);
        let low = vshlq_u8(load_4_times_4(block, 12), load_i8(&SECOND));
        let last = vorrq_u8(and(low, 15), and(shr::<2>(first), 0x30));
        let [s0, m0] = widen_low(vreinterpretq_s8_u8(and(first, 63)));
        let [s1, m1] = widen_low(vreinterpretq_s8_u8(last));
        Minimums { s: [s0, s1], m: [m0, m1], d: load_f16(block, 0), dmin: load_f16(block, 2) }
    }

    #[inline(always)]
    fn values<const Q: usize>(&self, totals: I32x4, sums: &Sums) -> F32x4 {
        less(vmulq_s32(totals, self.s[Q]), self.d, vmulq_s32(sums.groups, self.m[Q]), self.dmin)
    }
}

pub(super) struct Q4K;

impl Codes for Q4K {
    const MAX: i32 = 15;
}

impl SuperBlock for Q4K {
    const BYTES: usize = q4_k::BYTES;
    type Opened = Minimums;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> Minimums {
        Minimums::of(block)
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &Minimums) -> [[I8x16; 2]; 4] {
        let at = 16 + Q * 64;
        let [a, b, c, d] = [0, 16, 32, 48].map(|i| nibbles(load(block, at + i)));
        [[a[0], b[0]], [a[1], b[1]], [c[0], d[0]], [c[1], d[1]]].map(signed)
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], scales: &Minimums, totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        scales.values::<Q>(totals[0], sums)
    }
}

pub(super) struct Q5K;

impl Codes for Q5K {
    const MAX: i32 = 31;
}

impl SuperBlock for Q5K {
    const BYTES: usize = q5_k::BYTES;
    type Opened = Minimums;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> Minimums {
        Minimums::of(block)
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &Minimums) -> [[I8x16; 2]; 4] {
        let four = [0, 16].map(|i| {
            let high = load(block, 16 + i);
            let [a, b] = [0, 32].map(|of_two| load(block, 48 + Q * 64 + of_two + i));
            let low = |nibbles, high| and(join::<4>(nibbles, high), 31);
            let high_nibble = |bytes, high| join_high(bytes, and(high, 16));
            if Q == 0 {
                let [h1, h3] = [shl::<3>(high), shl::<1>(high)];
                [low(a, high), high_nibble(a, h1), low(b, shr::<2>(high)), high_nibble(b, h3)]
            } else {
                let [h5, h7] = [shr::<1>(high), shr::<3>(high)];
                [low(a, shr::<4>(high)), high_nibble(a, h5), low(b, shr::<6>(high)), high_nibble(b, h7)]
            }
        });
        from_fn(|g| signed([four[0][g], four[1][g]]))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], scales: &Minimums, totals: [I32x4; 2], sums: &Sums) -> F32x4 {
        scales.values::<Q>(totals[0], sums)
    }
}

pub(super) struct Q6K;

impl Codes for Q6K {
    const MAX: i32 = 63;
    const ZERO: i32 = 32;
}

impl SuperBlock for Q6K {
    const BYTES: usize = q6_k::BYTES;
    const HALVES: bool = true;
    type Opened = F32x4;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> F32x4 {
        load_f16(block, 208)
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &F32x4) -> [[I8x16; 2]; 4] {
        let [first, second] = M::load(thirty_twos(block, Q * 64));
        let [high] = M::load(thirty_twos(block, 128 + Q * 32));
        let shifted = high.map(shr::<2>);
        [
            [0, 1].map(|i| join::<4>(first[i], and(high[i], 3))),
            [0, 1].map(|i| join::<4>(second[i], and(shifted[i], 3))),
            [0, 1].map(|i| join_high(first[i], and(high[i], 0x30))),
            // Nothing is left above these two bits.
            [0, 1].map(|i| join_high(second[i], shifted[i])),
        ]
        .map(signed)
    }

    #[inline(always)]
    fn values<const Q: usize>(block: &[u8], d: &F32x4, totals: [I32x4; 2], _: &Sums) -> F32x4 {
        let scales = widen::<Q>(vreinterpretq_s8_u8(load(block, 192)));
        vmulq_f32(vcvtq_f32_s32(join_halves(totals, scales)), *d)
    }
}

pub(super) struct Iq4Xs;

impl Codes for Iq4Xs {
    const MAX: i32 = 127;
}

impl SuperBlock for Iq4Xs {
    const BYTES: usize = iq4_xs::BYTES;
    /// Scales of the groups, and what they are multiplied with.
    type Opened = ([I32x4; 2], F32x4);

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> ([I32x4; 2], F32x4) {
        // One after the other the nibbles of four bytes, and the pairs of bits of two, moved to bits 4 and 5.
        const PAIRS: [i8; 16] = [2, 2, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        const TO_BITS_4_AND_5: [i8; 16] = [4, 2, 0, -2, 4, 2, 0, -2, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = load_8(block, 0);
        let high = vqtbl1q_u8(first, vreinterpretq_u8_s8(load_i8(&PAIRS)));
        let high = and(vshlq_u8(high, load_i8(&TO_BITS_4_AND_5)), 0x30);
        let [even, odd] = nibbles(load_4_times_4(block, 4));
        let both = vorrq_u8(vzip1q_u8(even, odd), high);
        (widen_low(vaddq_s8(vreinterpretq_s8_u8(both), vdupq_n_s8(-32))), load_f16(block, 0))
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &([I32x4; 2], F32x4)) -> [[I8x16; 2]; 4] {
        [0, 16, 32, 48].map(|at| steps(load(block, 8 + Q * 64 + at)))
    }

    #[inline(always)]
    fn values<const Q: usize>(_: &[u8], (s, d): &([I32x4; 2], F32x4), totals: [I32x4; 2], _: &Sums) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(vmulq_s32(totals[0], s[Q])), *d)
    }
}
