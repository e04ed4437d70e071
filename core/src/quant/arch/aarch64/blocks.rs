//! Formats whose block is one group: four rows at a time, and each has a lane.
//!
//! ```text
//! partial = codes · activations              for each of four rows
//! totals  = pairwise sums of the partials    one register: a lane a row
//! ```
//!
//! Rows share loads of activations, and what is left at the end, eight sums of each, is added without crossing lanes.

use core::array::from_fn;

use super::multipliers::Multiplier;
use super::neon::*;
use super::{Activations, COLUMNS, Codes, Column, Rest, strips};
use crate::part::{part, part_mut};
use crate::quant::iq4_nl::STEPS;
use crate::quant::{Batch, GROUP, LANES, SUPER, iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0};

/// A format whose block is a group. It starts with its scale, an f16.
pub(super) trait Block: Codes {
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether a minimum follows the scale.
    const MINIMUM: bool = false;

    fn codes(block: &[u8]) -> [I8x16; 2];
}

macro_rules! blocks {
    ($($name:ident $format:ident, $max:literal, $zero:literal, $minimum:literal, $codes:expr;)*) => {
        $(
            pub(super) struct $name;

            impl Codes for $name {
                const MAX: i32 = $max;
                const ZERO: i32 = $zero;
            }

            impl Block for $name {
                const BYTES: usize = $format::BYTES;
                const MINIMUM: bool = $minimum;

                #[inline(always)]
                fn codes(block: &[u8]) -> [I8x16; 2] {
                    let codes: fn(&[u8]) -> [I8x16; 2] = $codes;
                    codes(block)
                }
            }
        )*
    };
}

// Largest code, the code of 0, whether there is a minimum, and the codes.
blocks! {
    Q4_0 q4_0, 15, 8, false, |block| signed(nibbles(load(block, 2)));
    Q4_1 q4_1, 15, 0, true, |block| signed(nibbles(load(block, 4)));
    Q5_0 q5_0, 16, 0, false, |block| fives(block, 2, 6);
    Q5_1 q5_1, 16, -16, true, |block| fives(block, 4, 8);
    Q8_0 q8_0, 128, 0, false, |block| signed([load(block, 2), load(block, 18)]);
    Iq4Nl iq4_nl, 127, 0, false, |block| steps(load(block, 2));
}

/// What the nibbles of 16 bytes stand for in IQ4_NL and IQ4_XS.
#[inline(always)]
pub(super) fn steps(bytes: U8x16) -> [I8x16; 2] {
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

/// All products: by columns, and four rows at a time.
pub(super) fn multiply<M: Multiplier, F: Block>(rows: &[u8], x: &Batch, products: &mut [f32]) {
    for (b, wide) in strips(x) {
        match wide {
            true => strip::<M, F, COLUMNS>(rows, x, b, products),
            false => strip::<M, F, 1>(rows, x, b, products),
        }
    }
}

/// The products of all rows with the C activation rows from `b` on.
#[inline(never)]
fn strip<M: Multiplier, F: Block, const C: usize>(rows: &[u8], x: &Batch, b: usize, products: &mut [f32]) {
    let (batch, row_bytes) = (x.len().max(1), (x.cols / GROUP * F::BYTES).max(1));
    let columns = from_fn(|c| Column::of(x, b + c));
    let rest = columns.each_ref().map(Column::rest);
    let (n, left) = (x.cols / SUPER, x.cols / GROUP % LANES);
    // SAFETY: so many has each column, and as many groups each row.
    let run = |i: usize| columns.each_ref().map(|x| unsafe { x.run(i) });
    let mut tile = Tile::<M, C> { lanes: [[vdupq_n_f32(0.0); LANES]; C], running: [M::start(); C] };
    let mut blocks = Blocks::of(rows, row_bytes);
    let n_rows = (rows.len() / row_bytes).min(products.len() / batch);
    let whole = n_rows / 4 * 4;
    let products = part_mut(products, ..n_rows * batch);
    for (i, products) in products.chunks_mut((4 * batch).max(1)).enumerate() {
        if 4 * i == whole {
            // Fewer than four rows are left.
            blocks = Blocks::of(part(rows, whole * row_bytes..), row_bytes);
        }
        tile.lanes = [[vdupq_n_f32(0.0); LANES]; C];
        for i in 0..n {
            // SAFETY: these are some of the row's.
            unsafe { tile.add_run::<F>(&mut blocks, &run(i)) };
        }
        if left > 0 {
            // SAFETY: these are the row's last ones.
            (tile, blocks) = unsafe { tile.with_rest::<F>(blocks, &rest, left) };
        }
        blocks.skip(3 * row_bytes);
        for (c, sums) in tile.lanes.map(sum_8_lanes).into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                if let Some(product) = products.get_mut(r * batch + b + c) {
                    *product = sum;
                }
            }
        }
    }
}

/// What the products of four rows with C activation rows are added up in.
struct Tile<M: Multiplier, const C: usize> {
    /// The definition's lanes, each of four rows.
    lanes: [[F32x4; LANES]; C],
    running: [M::Running; C],
}

impl<M: Multiplier, const C: usize> Tile<M, C> {
    /// Adds eight groups to their lanes.
    ///
    /// # Safety
    /// Each row has eight blocks more.
    #[inline(always)]
    unsafe fn add_run<F: Block>(&mut self, blocks: &mut Blocks<'_, 4>, x: &[Activations<'_>; C]) {
        let [first, second] = [0, 1].map(|half| Scales::of(x, half));
        // SAFETY: as said above.
        unsafe {
            self.add_group::<F, 0, 0>(blocks, x, &first);
            self.add_group::<F, 0, 1>(blocks, x, &first);
            self.add_group::<F, 0, 2>(blocks, x, &first);
            self.add_group::<F, 0, 3>(blocks, x, &first);
            self.add_group::<F, 1, 0>(blocks, x, &second);
            self.add_group::<F, 1, 1>(blocks, x, &second);
            self.add_group::<F, 1, 2>(blocks, x, &second);
            self.add_group::<F, 1, 3>(blocks, x, &second);
        }
    }

    /// With the `n` groups, fewer than eight, that are left of each row; and the blocks behind them.
    ///
    /// # Safety
    /// Each row has so many blocks more.
    #[inline(never)]
    unsafe fn with_rest<'a, F: Block>(
        mut self,
        mut blocks: Blocks<'a, 4>,
        x: &[Rest; C],
        n: usize,
    ) -> (Self, Blocks<'a, 4>) {
        let x = &x.each_ref().map(Rest::run);
        let [first, second] = [0, 1].map(|half| Scales::of(x, half));
        for group in 0..n {
            // SAFETY: as said above.
            unsafe {
                match group {
                    0 => self.add_group::<F, 0, 0>(&mut blocks, x, &first),
                    1 => self.add_group::<F, 0, 1>(&mut blocks, x, &first),
                    2 => self.add_group::<F, 0, 2>(&mut blocks, x, &first),
                    3 => self.add_group::<F, 0, 3>(&mut blocks, x, &first),
                    4 => self.add_group::<F, 1, 0>(&mut blocks, x, &second),
                    5 => self.add_group::<F, 1, 1>(&mut blocks, x, &second),
                    _ => self.add_group::<F, 1, 2>(&mut blocks, x, &second),
                }
            }
        }
        (self, blocks)
    }

    /// Adds group G of half H of a run.
    ///
    /// # Safety
    /// Each row has a block more.
    #[inline(always)]
    unsafe fn add_group<F: Block, const H: usize, const G: i32>(
        &mut self,
        blocks: &mut Blocks<'_, 4>,
        x: &[Activations<'_>; C],
        of_x: &Scales<C>,
    ) {
        let group = 4 * H + G as usize;
        // SAFETY: as said above.
        let (scales, minimums, blocks) = unsafe { blocks.next_with_scales::<F>() };
        let [w0, w1, w2, w3] = blocks;
        let w = [F::codes(w0), F::codes(w1), F::codes(w2), F::codes(w3)];
        for c in 0..C {
            let mut totals = M::groups::<F>(&mut self.running[c], w, [load_group(&x[c].q[H][G as usize]); 4]);
            // The group before this one is finished meanwhile.
            let last = &mut self.lanes[c][(group + LANES - 1) % LANES];
            *last = lane_before_loads(*last);
            if F::ZERO != 0 {
                totals = vmlsq_laneq_s32::<G>(totals, vdupq_n_s32(F::ZERO), of_x.sums[c]);
            }
            let mut values = vmulq_f32(vcvtq_f32_s32(totals), scales);
            if F::MINIMUM {
                values = vaddq_f32(values, vmulq_laneq_f32::<G>(minimums, vcvtq_f32_s32(of_x.sums[c])));
            }
            let lane = &mut self.lanes[c][group];
            *lane = vaddq_f32(*lane, vmulq_laneq_f32::<G>(values, of_x.d[c]));
        }
    }
}

/// Sums and scales of four groups of C activation rows.
struct Scales<const C: usize> {
    sums: [I32x4; C],
    d: [F32x4; C],
}

impl<const C: usize> Scales<C> {
    /// Those of a run's first or second half.
    #[inline(always)]
    fn of(x: &[Activations<'_>; C], half: usize) -> Scales<C> {
        Scales { sums: x.map(|x| vpaddlq_s16(load_i16(&x.sums[half]))), d: x.map(|x| load_f32(&x.d[half])) }
    }
}

/// The sums of each row's lanes as [`crate::quant::sum_lanes`] adds them.
#[inline(always)]
fn sum_8_lanes(lanes: [F32x4; LANES]) -> [f32; 4] {
    let [a, b, c, d] = from_fn(|i| vaddq_f32(lanes[i], lanes[i + 4]));
    floats_of(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)))
}
