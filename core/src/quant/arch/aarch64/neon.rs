//! The vector instructions that the kernels use, as safe functions, and the two ways to multiply codes.
//!
//! All `unsafe` of the kernels is here: an intrinsic needs nothing but the NEON unit, a load 16 bytes to read.

use core::arch::aarch64 as arch;
use core::arch::asm;

use super::formats::Run;

pub(super) use core::arch::aarch64::{
    float32x4_t as F32x4, int8x16_t as I8x16, int16x8_t as I16x8, int32x4_t as I32x4, uint8x16_t as U8x16,
};

/// The largest magnitude of an activation's code.
const MAX_Q: i32 = 127;

/// Functions with the names of the intrinsics that they are.
macro_rules! intrinsics {
    ($($name:ident ( $($arg:ident: $of:ty),* ) -> $result:ty;)*) => {
        $(
            #[inline(always)]
            pub(super) fn $name($($arg: $of),*) -> $result {
                // SAFETY: this file is compiled only for targets whose every processor has NEON.
                unsafe { arch::$name($($arg),*) }
            }
        )*
    };
}

intrinsics! {
    vaddq_f32(a: F32x4, b: F32x4) -> F32x4;
    vaddq_s8(a: I8x16, b: I8x16) -> I8x16;
    vandq_u8(a: U8x16, b: U8x16) -> U8x16;
    vcvtq_f32_s32(a: I32x4) -> F32x4;
    vdupq_n_f32(x: f32) -> F32x4;
    vdupq_n_s8(x: i8) -> I8x16;
    vdupq_n_s32(x: i32) -> I32x4;
    vdupq_n_u8(x: u8) -> U8x16;
    vmlsq_s32(a: I32x4, b: I32x4, c: I32x4) -> I32x4;
    vmovl_high_s8(a: I8x16) -> I16x8;
    vmovl_high_s16(a: I16x8) -> I32x4;
    vmulq_f32(a: F32x4, b: F32x4) -> F32x4;
    vmulq_s16(a: I16x8, b: I16x8) -> I16x8;
    vmulq_s32(a: I32x4, b: I32x4) -> I32x4;
    vmvnq_u8(a: U8x16) -> U8x16;
    vorrq_u8(a: U8x16, b: U8x16) -> U8x16;
    vpaddlq_s16(a: I16x8) -> I32x4;
    vpaddq_s16(a: I16x8, b: I16x8) -> I16x8;
    vqtbl1q_s8(table: I8x16, at: U8x16) -> I8x16;
    vqtbl1q_u8(table: U8x16, at: U8x16) -> U8x16;
    vreinterpretq_s8_u8(a: U8x16) -> I8x16;
    vreinterpretq_s16_s32(a: I32x4) -> I16x8;
    vreinterpretq_s32_s16(a: I16x8) -> I32x4;
    vreinterpretq_u8_s8(a: I8x16) -> U8x16;
    vshlq_u8(a: U8x16, by: I8x16) -> U8x16;
    vsubq_f32(a: F32x4, b: F32x4) -> F32x4;
    vtstq_u8(a: U8x16, b: U8x16) -> U8x16;
    vzip1q_u8(a: U8x16, b: U8x16) -> U8x16;
}

/// Functions of a register's low half.
macro_rules! low {
    ($($name:ident = $intrinsic:ident ( $low:ident: $of:ty ) -> $result:ty;)*) => {
        $(
            #[inline(always)]
            pub(super) fn $name(a: $of) -> $result {
                // SAFETY: as above.
                unsafe { arch::$intrinsic(arch::$low(a)) }
            }
        )*
    };
}

low! {
    vmovl_low_s8 = vmovl_s8(vget_low_s8: I8x16) -> I16x8;
    vmovl_low_s16 = vmovl_s16(vget_low_s16: I16x8) -> I32x4;
}

/// Each byte shifted right by 0 to 7 bits.
#[inline(always)]
pub(super) fn shr<const N: usize>(a: U8x16) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe {
        match N {
            0 => a,
            1 => arch::vshrq_n_u8::<1>(a),
            2 => arch::vshrq_n_u8::<2>(a),
            3 => arch::vshrq_n_u8::<3>(a),
            4 => arch::vshrq_n_u8::<4>(a),
            5 => arch::vshrq_n_u8::<5>(a),
            6 => arch::vshrq_n_u8::<6>(a),
            _ => arch::vshrq_n_u8::<7>(a),
        }
    }
}

/// Each byte's low `N` bits of `a`, with `b`'s low bits above them.
#[inline(always)]
pub(super) fn join<const N: i32>(a: U8x16, b: U8x16) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe { arch::vsliq_n_u8::<N>(a, b) }
}

/// Each byte's high nibble of `a` as the low one, below `b`'s high nibble: of the intrinsic the compiler makes two.
#[inline(always)]
pub(super) fn join_high(a: U8x16, mut b: U8x16) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe {
        asm!("sri {b:v}.16b, {a:v}.16b, #4", b = inout(vreg) b, a = in(vreg) a,
             options(pure, nomem, nostack, preserves_flags));
    }
    b
}

/// The low halves of both, in one.
#[inline(always)]
pub(super) fn vcombine_low([a, b]: [U8x16; 2]) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe { arch::vcombine_u8(arch::vget_low_u8(a), arch::vget_low_u8(b)) }
}

/// The `N` bytes at `at`.
#[inline(always)]
fn bytes<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes[at..].as_chunks().0[0]
}

/// The 16 bytes at `at`.
#[inline(always)]
pub(super) fn load(from: &[u8], at: usize) -> U8x16 {
    let from: &[u8; 16] = bytes(from, at);
    // SAFETY: there are 16 bytes.
    unsafe { arch::vld1q_u8(from.as_ptr()) }
}

/// The 4 bytes at `at`, four times.
#[inline(always)]
pub(super) fn load_4_times_4(from: &[u8], at: usize) -> U8x16 {
    let word = u32::from_le_bytes(*bytes(from, at));
    // SAFETY: NEON is there.
    unsafe { arch::vreinterpretq_u8_u32(arch::vdupq_n_u32(word)) }
}

/// The 8 bytes at `at`, and zeros.
#[inline(always)]
pub(super) fn load_8(from: &[u8], at: usize) -> U8x16 {
    let from: &[u8; 8] = bytes(from, at);
    // SAFETY: there are 8 bytes.
    unsafe { arch::vcombine_u8(arch::vld1_u8(from.as_ptr()), arch::vdup_n_u8(0)) }
}

/// 16 bytes, as signed numbers.
#[inline(always)]
pub(super) fn load_i8(from: &[i8; 16]) -> I8x16 {
    // SAFETY: there are 16.
    unsafe { arch::vld1q_s8(from.as_ptr()) }
}

#[inline(always)]
pub(super) fn load_i16(from: &[i16; 8]) -> I16x8 {
    // SAFETY: there are 8.
    unsafe { arch::vld1q_s16(from.as_ptr()) }
}

#[inline(always)]
pub(super) fn load_f32(from: &[f32; 4]) -> F32x4 {
    // SAFETY: there are 4.
    unsafe { arch::vld1q_f32(from.as_ptr()) }
}

/// Pairwise sums: the compiler takes the intrinsic apart, into three instructions.
#[inline(always)]
pub(super) fn vpaddq_s32(a: I32x4, b: I32x4) -> I32x4 {
    let sums;
    // SAFETY: NEON is there.
    unsafe {
        asm!("addp {sums:v}.4s, {a:v}.4s, {b:v}.4s", sums = lateout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// 16 weights as they are.
#[inline(always)]
pub(super) fn load_16_f32(from: &[[u8; 4]; 16]) -> [F32x4; 4] {
    // SAFETY: 64 bytes, at any address.
    unsafe {
        let from: *const u8 = from.as_ptr().cast();
        [0, 16, 32, 48].map(|at| arch::vreinterpretq_f32_u8(arch::vld1q_u8(from.add(at))))
    }
}

/// 16 f16 as f32.
#[inline(always)]
pub(super) fn load_16_f16(from: &[[u8; 2]; 16]) -> [F32x4; 4] {
    let from = from.as_flattened();
    let ([a, b], [c, d]) = (widen_8_f16(load(from, 0)), widen_8_f16(load(from, 16)));
    [a, b, c, d]
}

/// Eight f16 as f32. The intrinsic needs a type that is unstable yet.
#[inline(always)]
fn widen_8_f16(halves: U8x16) -> [F32x4; 2] {
    let (low, high): (F32x4, F32x4);
    // SAFETY: conversions that every processor with NEON has; exact.
    unsafe {
        asm!("fcvtl {low:v}.4s, {halves:v}.4h", "fcvtl2 {high:v}.4s, {halves:v}.8h",
             low = out(vreg) low, high = lateout(vreg) high, halves = in(vreg) halves,
             options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// 16 bf16 as f32: they are its high halves.
#[inline(always)]
pub(super) fn load_16_bf16(from: &[[u8; 2]; 16]) -> [F32x4; 4] {
    let from = from.as_flattened();
    let zero = vdupq_n_u8(0);
    // SAFETY: NEON is there.
    let widen = |at| unsafe {
        let [zero, halves] = [zero, load(from, at)].map(|v| arch::vreinterpretq_u16_u8(v));
        [arch::vzip1q_u16(zero, halves), arch::vzip2q_u16(zero, halves)].map(|v| arch::vreinterpretq_f32_u16(v))
    };
    let ([a, b], [c, d]) = (widen(0), widen(16));
    [a, b, c, d]
}

/// The sum of lanes as [`crate::quant::sum_lanes`] adds them: each with the one two further on, then the two.
#[inline(always)]
pub(super) fn sum_4_lanes(lanes: F32x4) -> f32 {
    // SAFETY: NEON is there.
    unsafe { arch::vpadds_f32(arch::vadd_f32(arch::vget_low_f32(lanes), arch::vget_high_f32(lanes))) }
}

/// The f16 at `at`, as f32, four times.
#[inline(always)]
pub(super) fn load_f16(from: &[u8], at: usize) -> F32x4 {
    let half = u16::from_le_bytes(*bytes(from, at));
    let x: f32;
    // SAFETY: a conversion that every processor with NEON has; exact.
    unsafe {
        asm!("fcvt {x:s}, {half:h}", x = lateout(vreg) x, half = in(vreg) f32::from_bits(half.into()),
             options(pure, nomem, nostack, preserves_flags));
    }
    vdupq_n_f32(x)
}

/// Four f16, `STEP` bytes apart from `at` on, as f32.
#[inline(always)]
pub(super) fn load_4_f16<const STEP: usize>(from: &[u8], at: usize) -> F32x4 {
    let from = &from[at..][..3 * STEP + 2];
    let halves: F32x4;
    // SAFETY: the last load ends where `from` does.
    unsafe {
        asm!(
            "ldr {v:h}, [{p}], #{first_step}",
            "ld1 {{{v:v}.h}}[1], [{p}], {step}",
            "ld1 {{{v:v}.h}}[2], [{p}], {step}",
            "ld1 {{{v:v}.h}}[3], [{p}]",
            "fcvtl {v:v}.4s, {v:v}.4h",
            p = inout(reg) from.as_ptr() => _,
            step = in(reg) STEP,
            first_step = const STEP,
            v = out(vreg) halves,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    halves
}

/// How codes are multiplied with activations.
///
/// `group` returns partial sums of 32 products, `half` those of 16. `quad(pair(a, b), pair(c, d))` is the four sums, in
/// order.
pub(super) trait Multiplier {
    fn half<F: Run>(w: I8x16, q: I8x16) -> I32x4;
    fn group<F: Run>(w: [I8x16; 2], q: [I8x16; 2]) -> I32x4;
    fn pair<F: Run>(a: I32x4, b: I32x4) -> I32x4;
    fn quad<F: Run>(a: I32x4, b: I32x4) -> I32x4;
}

/// Multiplies 8 by 8 bits into 16 and adds there as long as the format's codes let it.
pub(super) struct Long;

/// Whether a 16-bit lane holds `n` times the products that it has when 8 lanes share a group, or a half.
const fn fits<F: Run>(n: i32) -> bool {
    let products = if F::HALVES { 2 } else { 4 };
    n * products * F::MAX * MAX_Q <= i16::MAX as i32
}

impl Multiplier for Long {
    #[inline(always)]
    fn half<F: Run>(w: I8x16, q: I8x16) -> I32x4 {
        const { assert!(2 * F::MAX * MAX_Q <= i16::MAX as i32) };
        vreinterpretq_s32_s16(long(w, q))
    }

    #[inline(always)]
    fn group<F: Run>(w: [I8x16; 2], q: [I8x16; 2]) -> I32x4 {
        if fits::<F>(1) {
            // SAFETY: NEON is there.
            unsafe {
                let sum = long(w[0], q[0]);
                let sum = arch::vmlal_s8(sum, arch::vget_low_s8(w[1]), arch::vget_low_s8(q[1]));
                vreinterpretq_s32_s16(arch::vmlal_high_s8(sum, w[1], q[1]))
            }
        } else {
            const { assert!(2 * F::MAX * MAX_Q <= i16::MAX as i32) };
            // SAFETY: NEON is there.
            unsafe { arch::vpadalq_s16(vpaddlq_s16(long(w[0], q[0])), long(w[1], q[1])) }
        }
    }

    #[inline(always)]
    fn pair<F: Run>(a: I32x4, b: I32x4) -> I32x4 {
        if fits::<F>(2) {
            vreinterpretq_s32_s16(vpaddq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)))
        } else if fits::<F>(1) {
            vpaddq_s32(vpaddlq_s16(vreinterpretq_s16_s32(a)), vpaddlq_s16(vreinterpretq_s16_s32(b)))
        } else {
            vpaddq_s32(a, b)
        }
    }

    #[inline(always)]
    fn quad<F: Run>(a: I32x4, b: I32x4) -> I32x4 {
        if fits::<F>(4) {
            vpaddlq_s16(vpaddq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)))
        } else if fits::<F>(2) {
            vpaddq_s32(vpaddlq_s16(vreinterpretq_s16_s32(a)), vpaddlq_s16(vreinterpretq_s16_s32(b)))
        } else {
            vpaddq_s32(a, b)
        }
    }
}

/// 16 products, two a lane.
#[inline(always)]
fn long(w: I8x16, q: I8x16) -> I16x8 {
    // SAFETY: NEON is there.
    unsafe { arch::vmlal_high_s8(arch::vmull_s8(arch::vget_low_s8(w), arch::vget_low_s8(q)), w, q) }
}

/// Multiplies with the dot product instructions, four products a lane of 32 bits.
///
/// Whoever uses it has made sure that the processor has them.
pub(super) struct Dot;

impl Multiplier for Dot {
    #[inline(always)]
    fn half<F: Run>(w: I8x16, q: I8x16) -> I32x4 {
        sdot(vdupq_n_s32(0), w, q)
    }

    #[inline(always)]
    fn group<F: Run>(w: [I8x16; 2], q: [I8x16; 2]) -> I32x4 {
        sdot(sdot(vdupq_n_s32(0), w[0], q[0]), w[1], q[1])
    }

    #[inline(always)]
    fn pair<F: Run>(a: I32x4, b: I32x4) -> I32x4 {
        vpaddq_s32(a, b)
    }

    #[inline(always)]
    fn quad<F: Run>(a: I32x4, b: I32x4) -> I32x4 {
        vpaddq_s32(a, b)
    }
}

/// The intrinsic is unstable yet.
#[inline(always)]
fn sdot(mut sum: I32x4, w: I8x16, q: I8x16) -> I32x4 {
    // SAFETY: it changes no register but `sum`; that the processor has it is what `Dot` asks of its users.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {w:v}.16b, {q:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            q = in(vreg) q,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
