//! Formats of super-blocks: each of four groups of a row has a lane. One or two rows at a time.
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
use super::multipliers::{Multiplier, short_halves};
use super::neon::*;
use super::{Activations, COLUMNS, Codes, Column, strips};
use crate::part::{part, split_mut};
use crate::quant::{Batch, SUPER, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k};

/// A format of super-blocks.
pub(super) trait SuperBlock: Codes {
    /// Bytes of a super-block.
    const BYTES: usize;
    /// How many rows share what is loaded of an activation row: one where what is unpacked once takes many registers.
    const ROWS: usize = 2;
    /// What is unpacked once for all eight groups.
    type Opened: Copy;
    /// [`OfGroups`], or [`OfHalves`].
    type Scales: Scales;

    fn open<M: Multiplier>(block: &[u8]) -> Self::Opened;

    /// Four groups' codes.
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], opened: &Self::Opened) -> [[I8x16; 2]; 4];

    /// Four groups' scales.
    fn scales<const Q: usize>(block: &[u8], opened: &Self::Opened) -> Self::Scales;

    /// Four groups' values but for the activations' scales, from their sums of products, each times its scale.
    fn values<const Q: usize>(opened: &Self::Opened, scaled: I32x4, x: &Four) -> F32x4;
}

/// Four groups of activations.
pub(super) struct Four {
    q: [[I8x16; 2]; 4],
    sums: I16x8, // of their halves
}

/// Scales of four groups.
pub(super) trait Scales {
    /// Half Q of a run, for products whose sums have such scales.
    fn load<M: Multiplier, const Q: usize>(x: &Activations<'_>) -> Four;

    /// The sums of products of four groups of F's codes, times these scales.
    fn scaled<M: Multiplier, F: Codes>(self, running: &mut M::Running, w: [[I8x16; 2]; 4], x: &Four) -> I32x4;
}

/// Each group has a scale.
pub(super) struct OfGroups(I32x4);

impl Scales for OfGroups {
    #[inline(always)]
    fn load<M: Multiplier, const Q: usize>(x: &Activations<'_>) -> Four {
        Four { q: x.q[Q].each_ref().map(load_group), sums: load_i16(&x.sums[Q]) }
    }

    #[inline(always)]
    fn scaled<M: Multiplier, F: Codes>(self, running: &mut M::Running, w: [[I8x16; 2]; 4], x: &Four) -> I32x4 {
        const { assert!(F::ZERO == 0) };
        vmulq_s32(M::groups::<F>(running, w, x.q), self.0)
    }
}

/// Each half of a group has a scale.
pub(super) struct OfHalves(I16x8);

impl Scales for OfHalves {
    #[inline(always)]
    fn load<M: Multiplier, const Q: usize>(x: &Activations<'_>) -> Four {
        Four { q: M::load(cast_ref(&x.q[Q])).map(signed), sums: load_i16(&x.sums[Q]) }
    }

    #[inline(always)]
    fn scaled<M: Multiplier, F: Codes>(self, running: &mut M::Running, w: [[I8x16; 2]; 4], x: &Four) -> I32x4 {
        let zero = F::ZERO as i16;
        let [a, b] = if short_halves::<F>() {
            let totals = M::halves_16::<F>(running, w, x.q);
            vmull_s16(if zero == 0 { totals } else { vmlsq_s16(totals, x.sums, vdupq_n_s16(zero)) }, self.0)
        } else {
            let totals = M::halves::<F>(running, w, x.q);
            let [a, b] = if zero == 0 { totals } else { vmlsl_s16(totals, x.sums, vdupq_n_s16(zero)) };
            [vmulq_s32(a, vmovl_low_s16(self.0)), vmulq_s32(b, vmovl_high_s16(self.0))]
        };
        vpaddq_s32(a, b)
    }
}

/// All products: by columns, and ROWS rows at a time.
pub(super) fn multiply<M: Multiplier, F: SuperBlock>(rows: &[u8], x: &Batch, products: &mut [f32]) {
    for (b, wide) in strips(x) {
        if wide {
            strip::<M, F, COLUMNS, 1>(rows, x, b, products);
        } else if F::ROWS == 1 {
            strip::<M, F, 1, 1>(rows, x, b, products);
        } else {
            strip::<M, F, 1, 2>(rows, x, b, products);
        }
    }
}

/// The products of rows, R at a time, with the C activation rows from `b` on; then those of the rows that are left.
#[inline(never)]
fn strip<M: Multiplier, F: SuperBlock, const C: usize, const R: usize>(
    rows: &[u8],
    x: &Batch,
    b: usize,
    products: &mut [f32],
) {
    let (n, batch) = (x.cols / SUPER, x.len().max(1));
    let row_bytes = (n * F::BYTES).max(1);
    let times = (rows.len() / row_bytes).min(products.len() / batch) / R;
    let (products, products_left) = split_mut(products, times * R * batch);

    let columns = from_fn(|c| Column::of(x, b + c));
    let mut blocks = Blocks::<R>::of(rows, row_bytes);
    let mut tile = Tile::<M, C, R> { lanes: [[[vdupq_n_f32(0.0); 2]; C]; R], running: [M::start(); C] };
    for products in products.chunks_exact_mut((R * batch).max(1)) {
        tile.lanes = [[[vdupq_n_f32(0.0); 2]; C]; R];
        for i in 0..n {
            // SAFETY: each row and each column has so many.
            let (blocks, x) = unsafe { (blocks.next(F::BYTES), columns.each_ref().map(|x| x.run(i))) };
            let opened = blocks.map(F::open::<M>);
            tile.add_four::<F, 0>(&blocks, &opened, &x);
            tile.add_four::<F, 1>(&blocks, &opened, &x);
        }
        blocks.skip((R - 1) * row_bytes);
        for r in 0..R {
            for c in 0..C {
                let [low, high] = tile.lanes[r][c];
                if let Some(product) = products.get_mut(r * batch + b + c) {
                    *product = sum_4_lanes(vaddq_f32(low, high));
                }
            }
        }
    }
    if R > 1 {
        strip::<M, F, C, 1>(part(rows, times * R * row_bytes..), x, b, products_left);
    }
}

/// What the products of R rows with C activation rows are added up in.
struct Tile<M: Multiplier, const C: usize, const R: usize> {
    lanes: [[[F32x4; 2]; C]; R],
    running: [M::Running; C],
}

impl<M: Multiplier, const C: usize, const R: usize> Tile<M, C, R> {
    /// Adds half Q of super-blocks to its lanes.
    #[inline(always)]
    fn add_four<F: SuperBlock, const Q: usize>(
        &mut self,
        blocks: &[&[u8]; R],
        opened: &[F::Opened; R],
        x: &[Activations<'_>; C],
    ) {
        // Either C or R is 1.
        let codes = |r: usize| F::codes::<M, Q>(blocks[r], &opened[r]);
        let first = codes(0);
        for (c, x) in x.iter().enumerate() {
            let four = F::Scales::load::<M, Q>(x);
            let d = load_f32(&x.d[Q]);
            for r in 0..R {
                let w = if r == 0 { first } else { codes(r) };
                let scaled = F::scales::<Q>(blocks[r], &opened[r]).scaled::<M, F>(&mut self.running[c], w, &four);
                if C == 1 {
                    // The lanes before these are finished meanwhile.
                    let (r, q) = if r > 0 { (r - 1, Q) } else { (R - 1, 1 - Q) };
                    let last = &mut self.lanes[r][c][q];
                    *last = lane_before_loads(*last);
                }
                let values = F::values::<Q>(&opened[r], scaled, &four);
                let lane = &mut self.lanes[r][c][Q];
                *lane = vaddq_f32(*lane, vmulq_f32(values, d));
            }
        }
    }
}

/// One half of 16 signed bytes, as 16-bit numbers.
#[inline(always)]
fn widen<const Q: usize>(a: I8x16) -> I16x8 {
    if Q == 0 { vmovl_low_s8(a) } else { vmovl_high_s8(a) }
}

/// `scaled · d - minimums · dmin`, where `d` are these two.
#[inline(always)]
fn less(scaled: F32x4, minimums: F32x4, d: F32x4) -> F32x4 {
    vsubq_f32(vmulq_laneq_f32::<0>(scaled, d), vmulq_laneq_f32::<1>(minimums, d))
}

pub(super) struct Q2K;

impl Codes for Q2K {
    const MAX: i32 = 3 << 2;
}

/// Of a super-block of Q2_K: of half groups scales and minimums, and what both are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct OpenedQ2K {
    s: I8x16,
    m: I8x16,
    d: F32x4,
}

impl SuperBlock for Q2K {
    const BYTES: usize = q2_k::BYTES;
    type Opened = OpenedQ2K;
    type Scales = OfHalves;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> OpenedQ2K {
        // Scales make up for codes that are too small.
        const TO_FOURS: [i8; 16] = [2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0];
        let [s, m] = nibbles(load(block, 0));
        let [s, m] = signed([vshlq_u8(s, load_i8(&TO_FOURS)), m]);
        OpenedQ2K { s, m, d: load_2_f16(block, 80) }
    }

    /// In the places where they are in a nibble: every second group's are 4 times as large as they should be.
    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &OpenedQ2K) -> [[I8x16; 2]; 4] {
        let [bytes] = M::load(thirty_twos(block, 16 + Q * 32));
        let high = bytes.map(shr::<4>);
        let masked = |bytes: [U8x16; 2], mask| signed(bytes.map(|bytes| and(bytes, mask)));
        [masked(bytes, 3), masked(bytes, 3 << 2), masked(high, 3), masked(high, 3 << 2)]
    }

    #[inline(always)]
    fn scales<const Q: usize>(_: &[u8], opened: &OpenedQ2K) -> OfHalves {
        OfHalves(widen::<Q>(opened.s))
    }

    #[inline(always)]
    fn values<const Q: usize>(opened: &OpenedQ2K, scaled: I32x4, x: &Four) -> F32x4 {
        // 15 times 16 codes of 127 fit in 16 bits.
        let minimums = vpaddlq_s16(vmulq_s16(x.sums, widen::<Q>(opened.m)));
        less(vcvtq_n_f32_s32::<2>(scaled), vcvtq_f32_s32(minimums), opened.d)
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
    const ROWS: usize = 1;
    type Opened = OpenedQ3K;
    type Scales = OfHalves;

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
    fn scales<const Q: usize>(_: &[u8], opened: &OpenedQ3K) -> OfHalves {
        OfHalves(widen::<Q>(opened.scales))
    }

    #[inline(always)]
    fn values<const Q: usize>(opened: &OpenedQ3K, scaled: I32x4, _: &Four) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(scaled), opened.d)
    }
}

/// Scales and minimums of Q4_K and Q5_K, and what both are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Minimums {
    /// Four scales and four minimums, for either half.
    of_groups: [I8x16; 2],
    d: F32x4,
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
        Minimums { of_groups: signed([and(first, 63), last]), d: load_2_f16(block, 0) }
    }

    #[inline(always)]
    fn scales<const Q: usize>(&self) -> OfGroups {
        OfGroups(vmovl_low_s16(vmovl_low_s8(self.of_groups[Q])))
    }

    #[inline(always)]
    fn values<const Q: usize>(&self, scaled: I32x4, x: &Four) -> F32x4 {
        let minimums = vmovl_high_s16(vmovl_low_s8(self.of_groups[Q]));
        less(vcvtq_f32_s32(scaled), vcvtq_f32_s32(vmulq_s32(vpaddlq_s16(x.sums), minimums)), self.d)
    }
}

pub(super) struct Q4K;

impl Codes for Q4K {
    const MAX: i32 = 15;
}

impl SuperBlock for Q4K {
    const BYTES: usize = q4_k::BYTES;
    type Opened = Minimums;
    type Scales = OfGroups;

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
    fn scales<const Q: usize>(_: &[u8], opened: &Minimums) -> OfGroups {
        opened.scales::<Q>()
    }

    #[inline(always)]
    fn values<const Q: usize>(opened: &Minimums, scaled: I32x4, x: &Four) -> F32x4 {
        opened.values::<Q>(scaled, x)
    }
}

pub(super) struct Q5K;

impl Codes for Q5K {
    const MAX: i32 = 31;
}

/// A super-block of Q5_K.
#[derive(Clone, Copy)]
pub(super) struct OpenedQ5K {
    /// The fifth bits of groups `i` and `i + 4`, which are bits 0 and 4. All others are zeros.
    fifth: [[U8x16; 2]; 4],
    minimums: Minimums,
}

impl SuperBlock for Q5K {
    const BYTES: usize = q5_k::BYTES;
    const ROWS: usize = 1;
    type Opened = OpenedQ5K;
    type Scales = OfGroups;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> OpenedQ5K {
        let high = [load(block, 16), load(block, 32)];
        let fifth = [high, high.map(shr::<1>), high.map(shr::<2>), high.map(shr::<3>)];
        OpenedQ5K { fifth: fifth.map(|two| two.map(|bits| and(bits, 0x11))), minimums: Minimums::of(block) }
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], opened: &OpenedQ5K) -> [[I8x16; 2]; 4] {
        let four = [0, 1].map(|i| {
            let [a, b] = [0, 32].map(|of_two| load(block, 48 + Q * 64 + of_two + 16 * i));
            let [bits_0, bits_1, bits_2, bits_3] = opened.fifth.map(|bits| bits[i]);
            if Q == 0 {
                let low = |nibbles, bits| join::<4>(nibbles, bits);
                let high = |bytes, bits| join_high(bytes, shl::<4>(bits));
                [low(a, bits_0), high(a, bits_1), low(b, bits_2), high(b, bits_3)]
            } else {
                let low = |nibbles, bits| select(15, nibbles, bits);
                [low(a, bits_0), join_high(a, bits_1), low(b, bits_2), join_high(b, bits_3)]
            }
        });
        from_fn(|g| signed([four[0][g], four[1][g]]))
    }

    #[inline(always)]
    fn scales<const Q: usize>(_: &[u8], opened: &OpenedQ5K) -> OfGroups {
        opened.minimums.scales::<Q>()
    }

    #[inline(always)]
    fn values<const Q: usize>(opened: &OpenedQ5K, scaled: I32x4, x: &Four) -> F32x4 {
        opened.minimums.values::<Q>(scaled, x)
    }
}

pub(super) struct Q6K;

impl Codes for Q6K {
    const MAX: i32 = 63;
    const ZERO: i32 = 32;
}

impl SuperBlock for Q6K {
    const BYTES: usize = q6_k::BYTES;
    type Opened = F32x4;
    type Scales = OfHalves;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> F32x4 {
        load_f16(block, 208)
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &F32x4) -> [[I8x16; 2]; 4] {
        let [first, second] = M::load(thirty_twos(block, Q * 64));
        let [high] = M::load(thirty_twos(block, 128 + Q * 32));
        let shifted = high.map(shr::<2>);
        // Two bits for low nibbles, and two for high ones.
        let [of_first, of_second] = [high, shifted].map(|bits| bits.map(|bits| and(bits, 0x33)));
        [
            [0, 1].map(|i| join::<4>(first[i], of_first[i])),
            [0, 1].map(|i| join::<4>(second[i], of_second[i])),
            [0, 1].map(|i| join_high(first[i], of_first[i])),
            // Nothing is left above these two bits.
            [0, 1].map(|i| join_high(second[i], shifted[i])),
        ]
        .map(signed)
    }

    #[inline(always)]
    fn scales<const Q: usize>(block: &[u8], _: &F32x4) -> OfHalves {
        OfHalves(vmovl_low_s8(vreinterpretq_s8_u8(load_8(block, 192 + 8 * Q))))
    }

    #[inline(always)]
    fn values<const Q: usize>(d: &F32x4, scaled: I32x4, _: &Four) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(scaled), *d)
    }
}

pub(super) struct Iq4Xs;

impl Codes for Iq4Xs {
    const MAX: i32 = 127;
}

impl SuperBlock for Iq4Xs {
    const BYTES: usize = iq4_xs::BYTES;
    const ROWS: usize = 1;
    /// Scales of the groups, and what they are multiplied with.
    type Opened = (I8x16, F32x4);
    type Scales = OfGroups;

    #[inline(always)]
    fn open<M: Multiplier>(block: &[u8]) -> (I8x16, F32x4) {
        // One after the other the nibbles of four bytes, and the pairs of bits of two, moved to bits 4 and 5.
        const PAIRS: [i8; 16] = [2, 2, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        const TO_BITS_4_AND_5: [i8; 16] = [4, 2, 0, -2, 4, 2, 0, -2, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = load_8(block, 0);
        let high = vqtbl1q_u8(first, vreinterpretq_u8_s8(load_i8(&PAIRS)));
        let high = and(vshlq_u8(high, load_i8(&TO_BITS_4_AND_5)), 0x30);
        let [even, odd] = nibbles(load_4_times_4(block, 4));
        let both = vorrq_u8(vzip1q_u8(even, odd), high);
        (vaddq_s8(vreinterpretq_s8_u8(both), vdupq_n_s8(-32)), load_f16(block, 0))
    }

    #[inline(always)]
    fn codes<M: Multiplier, const Q: usize>(block: &[u8], _: &(I8x16, F32x4)) -> [[I8x16; 2]; 4] {
        [0, 16, 32, 48].map(|at| steps(load(block, 8 + Q * 64 + at)))
    }

    #[inline(always)]
    fn scales<const Q: usize>(_: &[u8], (scales, _): &(I8x16, F32x4)) -> OfGroups {
        let eight = vmovl_low_s8(*scales);
        OfGroups(if Q == 0 { vmovl_low_s16(eight) } else { vmovl_high_s16(eight) })
    }

    #[inline(always)]
    fn values<const Q: usize>((_, d): &(I8x16, F32x4), scaled: I32x4, _: &Four) -> F32x4 {
        vmulq_f32(vcvtq_f32_s32(scaled), *d)
    }
}
