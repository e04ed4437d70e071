//! The two ways to multiply codes with activations: into 16 bits, or with the dot product instructions.

use core::array::from_fn;
use core::mem::replace;

use super::Codes;
use super::neon::*;
use crate::quant::HALF;

/// The largest magnitude of an activation's code.
const MAX_Q: i32 = 127;

/// How codes are multiplied with activations, four groups at a time: of four rows, or of one.
pub(super) trait Multiplier {
    /// Sums that go on from one time to the next.
    type Running: Copy;

    fn start() -> Self::Running;

    /// The sums of four groups.
    fn groups<F: Codes>(running: &mut Self::Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I32x4;

    /// N groups of 32 bytes whose halves have scales of their own.
    fn load<const N: usize>(from: &[[u8; 32]; N]) -> [[U8x16; 2]; N];

    /// The sums of the halves of four groups, in order; registers are those of `load`.
    fn halves<F: Codes>(running: &mut Self::Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> [I32x4; 2];

    /// [`halves`](Self::halves) where they fit in 16 bits.
    fn halves_16<F: Codes>(running: &mut Self::Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I16x8;
}

/// Multiplies 8 by 8 bits into 16 and adds there as long as the format's codes let it.
pub(super) struct Long;

/// Whether a 16-bit lane holds `n` products.
const fn fits<F: Codes>(n: i32) -> bool {
    n * F::MAX * MAX_Q <= i16::MAX as i32
}

/// Whether it holds the sum of half a group.
pub(super) const fn short_halves<F: Codes>() -> bool {
    fits::<F>(HALF as i32)
}

impl Multiplier for Long {
    type Running = ();

    #[inline(always)]
    fn start() {}

    #[inline(always)]
    fn groups<F: Codes>(_: &mut (), w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I32x4 {
        let low: [_; 4] = from_fn(|g| long(w[g][0], q[g][0]));
        if fits::<F>(4) {
            return sums::<F>(from_fn(|g| add_long(low[g], w[g][1], q[g][1])));
        }
        const { assert!(fits::<F>(2)) };
        let [a, b, c, d] = before_loads(from_fn(|g| vpadalq_s16(vpaddlq_s16(low[g]), long(w[g][1], q[g][1]))));
        vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
    }

    /// Half by half.
    #[inline(always)]
    fn load<const N: usize>(from: &[[u8; 32]; N]) -> [[U8x16; 2]; N] {
        from.each_ref().map(|group| [load(group, 0), load(group, 16)])
    }

    #[inline(always)]
    fn halves<F: Codes>(_: &mut (), w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> [I32x4; 2] {
        const { assert!(fits::<F>(4)) };
        let [a, b, c, d] = add_halves(w, q).map(vpaddlq_s16);
        [vpaddq_s32(a, b), vpaddq_s32(c, d)]
    }

    #[inline(always)]
    fn halves_16<F: Codes>(_: &mut (), w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I16x8 {
        debug_assert!(short_halves::<F>());
        let [a, b, c, d] = add_halves(w, q);
        vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d))
    }
}

/// The products of four groups' halves, four a lane.
#[inline(always)]
fn add_halves(w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> [I16x8; 4] {
    let sums = from_fn(|g| vpaddq_s16(long(w[g][0], q[g][0]), long(w[g][1], q[g][1])));
    before_loads(sums.map(vreinterpretq_s32_s16)).map(vreinterpretq_s16_s32)
}

/// The sum of each of four registers, whose lanes have four products.
#[inline(always)]
fn sums<F: Codes>(of: [I16x8; 4]) -> I32x4 {
    let [a, b, c, d] = before_loads(of.map(vreinterpretq_s32_s16)).map(vreinterpretq_s16_s32);
    let (ab, cd) = (vpaddq_s16(a, b), vpaddq_s16(c, d));
    if fits::<F>(16) {
        vpaddlq_s16(vpaddq_s16(ab, cd))
    } else {
        debug_assert!(fits::<F>(8));
        vpaddq_s32(vpaddlq_s16(ab), vpaddlq_s16(cd))
    }
}

/// Multiplies with the dot product instructions, four products a lane of 32 bits.
///
/// Whoever uses it has made sure that the processor has them.
pub(super) struct Dot;

/// Sums of products are never set to zero: what they were before is subtracted, of four groups at once. They may wrap.
#[derive(Clone, Copy)]
pub(super) struct Running {
    sums: [I32x4; 4],
    before: [I32x4; 2],
}

impl Running {
    #[inline(always)]
    fn add(&mut self, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> [I32x4; 2] {
        self.sums = from_fn(|g| sdot(sdot(self.sums[g], w[g][0], q[g][0]), w[g][1], q[g][1]));
        let [a, b, c, d] = self.sums;
        before_loads([vpaddq_s32(a, b), vpaddq_s32(c, d)])
    }

    /// What is new in `totals[I]`.
    #[inline(always)]
    fn new(&mut self, i: usize, total: I32x4) -> I32x4 {
        vsubq_s32(total, replace(&mut self.before[i], total))
    }
}

impl Multiplier for Dot {
    type Running = Running;

    #[inline(always)]
    fn start() -> Running {
        Running { sums: [vdupq_n_s32(0); 4], before: [vdupq_n_s32(0); 2] }
    }

    #[inline(always)]
    fn groups<F: Codes>(running: &mut Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I32x4 {
        let [ab, cd] = running.add(w, q);
        running.new(0, vpaddq_s32(ab, cd))
    }

    /// The sums of either half stay apart, in two lanes each.
    #[inline(always)]
    fn load<const N: usize>(from: &[[u8; 32]; N]) -> [[U8x16; 2]; N] {
        load_halves(from)
    }

    #[inline(always)]
    fn halves<F: Codes>(running: &mut Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> [I32x4; 2] {
        let [ab, cd] = running.add(w, q);
        [running.new(0, ab), running.new(1, cd)]
    }

    #[inline(always)]
    fn halves_16<F: Codes>(running: &mut Running, w: [[I8x16; 2]; 4], q: [[I8x16; 2]; 4]) -> I16x8 {
        debug_assert!(short_halves::<F>());
        vmovn_s32(Self::halves::<F>(running, w, q))
    }
}
