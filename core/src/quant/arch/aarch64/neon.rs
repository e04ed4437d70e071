//! The vector instructions that the kernels use, as safe functions where nothing but the NEON unit is needed.

use core::arch::aarch64 as arch;
use core::arch::asm;
use core::array::from_fn;
use core::marker::PhantomData;
use core::slice;

use super::blocks::Block;

pub(super) use core::arch::aarch64::{
    float32x4_t as F32x4, int8x16_t as I8x16, int16x8_t as I16x8, int32x4_t as I32x4, uint8x16_t as U8x16,
};

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
    vdupq_n_s16(x: i16) -> I16x8;
    vdupq_n_s32(x: i32) -> I32x4;
    vdupq_n_u8(x: u8) -> U8x16;
    vmovl_high_s8(a: I8x16) -> I16x8;
    vmovl_high_s16(a: I16x8) -> I32x4;
    vmulq_f32(a: F32x4, b: F32x4) -> F32x4;
    vmulq_s16(a: I16x8, b: I16x8) -> I16x8;
    vmulq_s32(a: I32x4, b: I32x4) -> I32x4;
    vmvnq_u8(a: U8x16) -> U8x16;
    vorrq_u8(a: U8x16, b: U8x16) -> U8x16;
    vpadalq_s16(a: I32x4, b: I16x8) -> I32x4;
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
    vsubq_s32(a: I32x4, b: I32x4) -> I32x4;
    vtstq_u8(a: U8x16, b: U8x16) -> U8x16;
    vzip1q_u8(a: U8x16, b: U8x16) -> U8x16;
}

/// `a - b · c`, the same lane of `c` for all: of the intrinsic the compiler makes two instructions.
#[inline(always)]
pub(super) fn vmlsq_laneq_s32<const LANE: i32>(mut a: I32x4, b: I32x4, c: I32x4) -> I32x4 {
    // SAFETY: NEON is there.
    unsafe {
        asm!("mls {a:v}.4s, {b:v}.4s, {c:v}.s[{lane}]", a = inout(vreg) a, b = in(vreg) b, c = in(vreg) c,
             lane = const LANE, options(pure, nomem, nostack, preserves_flags));
    }
    a
}

/// `a` of which the last N bits are behind the point.
#[inline(always)]
pub(super) fn vcvtq_n_f32_s32<const N: i32>(a: I32x4) -> F32x4 {
    // SAFETY: NEON is there.
    unsafe { arch::vcvtq_n_f32_s32::<N>(a) }
}

/// `a · b`, the same lane of `b` for all.
#[inline(always)]
pub(super) fn vmulq_laneq_f32<const LANE: i32>(a: F32x4, b: F32x4) -> F32x4 {
    // SAFETY: NEON is there.
    unsafe { arch::vmulq_laneq_f32::<LANE>(a, b) }
}

/// `a - b · c` of all eight of `b` and `c`: of the intrinsics the compiler makes two instructions each.
#[inline(always)]
pub(super) fn vmlsl_s16([mut low, mut high]: [I32x4; 2], b: I16x8, c: I16x8) -> [I32x4; 2] {
    // SAFETY: NEON is there.
    unsafe {
        asm!("smlsl {low:v}.4s, {b:v}.4h, {c:v}.4h", "smlsl2 {high:v}.4s, {b:v}.8h, {c:v}.8h",
             low = inout(vreg) low, high = inout(vreg) high, b = in(vreg) b, c = in(vreg) c,
             options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// `a - b · c` of all eight: of the intrinsic the compiler makes two instructions.
#[inline(always)]
pub(super) fn vmlsq_s16(mut a: I16x8, b: I16x8, c: I16x8) -> I16x8 {
    // SAFETY: NEON is there.
    unsafe {
        asm!("mls {a:v}.8h, {b:v}.8h, {c:v}.8h", a = inout(vreg) a, b = in(vreg) b, c = in(vreg) c,
             options(pure, nomem, nostack, preserves_flags));
    }
    a
}

/// The products of all eight.
#[inline(always)]
pub(super) fn vmull_s16(a: I16x8, b: I16x8) -> [I32x4; 2] {
    // SAFETY: NEON is there.
    unsafe { [arch::vmull_s16(arch::vget_low_s16(a), arch::vget_low_s16(b)), arch::vmull_high_s16(a, b)] }
}

/// The low halves of all eight.
#[inline(always)]
pub(super) fn vmovn_s32([low, high]: [I32x4; 2]) -> I16x8 {
    // SAFETY: NEON is there.
    unsafe { arch::vuzp1q_s16(arch::vreinterpretq_s16_s32(low), arch::vreinterpretq_s16_s32(high)) }
}

#[inline(always)]
pub(super) fn floats_of(v: F32x4) -> [f32; 4] {
    let mut floats = [0.0; 4];
    // SAFETY: there is room for four.
    unsafe { arch::vst1q_f32(floats.as_mut_ptr(), v) };
    floats
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

/// Each byte shifted left by 1 to 4 bits.
#[inline(always)]
pub(super) fn shl<const N: i32>(a: U8x16) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe { arch::vshlq_n_u8::<N>(a) }
}

/// The bits of `mask` from `a`, the others from `b`: the compiler takes the intrinsic apart.
#[inline(always)]
pub(super) fn select(mask: u8, a: U8x16, mut b: U8x16) -> U8x16 {
    // SAFETY: NEON is there.
    unsafe {
        asm!("bit {b:v}.16b, {a:v}.16b, {mask:v}.16b", b = inout(vreg) b, a = in(vreg) a, mask = in(vreg) vdupq_n_u8(mask),
             options(pure, nomem, nostack, preserves_flags));
    }
    b
}

#[inline(always)]
pub(super) fn and(a: U8x16, mask: u8) -> U8x16 {
    vandq_u8(a, vdupq_n_u8(mask))
}

/// 16 bytes hold 32 nibbles: low ones first.
#[inline(always)]
pub(super) fn nibbles(bytes: U8x16) -> [U8x16; 2] {
    [and(bytes, 15), shr::<4>(bytes)]
}

#[inline(always)]
pub(super) fn signed(codes: [U8x16; 2]) -> [I8x16; 2] {
    codes.map(vreinterpretq_s8_u8)
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
pub(super) fn bytes<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
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

/// `N` times 32 bytes, from `at` on.
#[inline(always)]
pub(super) fn thirty_twos<const N: usize>(from: &[u8], at: usize) -> &[[u8; 32]; N] {
    &from[at..].as_chunks().0.as_chunks().0[0]
}

/// N groups of 32 bytes. Of the two registers of each either has eight bytes of the first half and eight of the second.
#[inline(always)]
pub(super) fn load_halves<const N: usize>(from: &[[u8; 32]; N]) -> [[U8x16; 2]; N] {
    let mut at = from.as_ptr();
    from.each_ref().map(|_| {
        // SAFETY: there are 32 bytes N times. The second instruction is none: it hides from the compiler where the address
        // comes from. So it counts it up by loading; otherwise it computes each, as these loads have no offset.
        unsafe {
            let arch::uint64x2x2_t(a, b) = arch::vld2q_u64(at.cast());
            at = at.add(1);
            asm!("/* {} */", inout(reg) at, options(pure, nomem, nostack, preserves_flags));
            [a, b].map(|v| arch::vreinterpretq_u8_u64(v))
        }
    })
}

/// The 32 numbers of a group.
#[inline(always)]
pub(super) fn load_group(from: &[i8; 32]) -> [I8x16; 2] {
    let from = from.as_chunks::<16>().0;
    [load_i8(&from[0]), load_i8(&from[1])]
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

/// 16 products, two a lane.
#[inline(always)]
pub(super) fn long(w: I8x16, q: I8x16) -> I16x8 {
    // SAFETY: NEON is there.
    unsafe { arch::vmlal_high_s8(arch::vmull_s8(arch::vget_low_s8(w), arch::vget_low_s8(q)), w, q) }
}

/// [`long`], added to `sums`.
#[inline(always)]
pub(super) fn add_long(sums: I16x8, w: I8x16, q: I8x16) -> I16x8 {
    // SAFETY: NEON is there.
    unsafe { arch::vmlal_high_s8(arch::vmlal_s8(sums, arch::vget_low_s8(w), arch::vget_low_s8(q)), w, q) }
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

/// The two f16 at `at`, as f32 in the first two of four lanes.
#[inline(always)]
pub(super) fn load_2_f16(from: &[u8], at: usize) -> F32x4 {
    let both = f32::from_bits(u32::from_le_bytes(*bytes(from, at)));
    let x: F32x4;
    // SAFETY: a conversion that every processor with NEON has; exact.
    unsafe {
        asm!("fcvtl {x:v}.4s, {both:v}.4h", x = lateout(vreg) x, both = in(vreg) both,
             options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// `sums`, which are there before anything is loaded that comes after them. Otherwise compilers begin with all loads of a
/// run, and have too few registers.
#[inline(always)]
pub(super) fn before_loads<const N: usize>(sums: [I32x4; N]) -> [I32x4; N] {
    sums.map(|mut sums| {
        // SAFETY: nothing happens.
        unsafe { asm!("/* {:v} */", inout(vreg) sums, options(nostack, preserves_flags)) };
        sums
    })
}

/// [`before_loads`] of a lane.
#[inline(always)]
pub(super) fn lane_before_loads(lane: F32x4) -> F32x4 {
    // SAFETY: NEON is there.
    unsafe { arch::vreinterpretq_f32_s32(before_loads([arch::vreinterpretq_s32_f32(lane)])[0]) }
}

/// R rows of blocks, read side by side.
pub(super) struct Blocks<'a, const R: usize> {
    /// Each row's next block.
    at: [*const u8; R],
    rows: PhantomData<&'a [u8]>,
}

impl<'a, const R: usize> Blocks<'a, R> {
    /// The first R of `rows`; where there are fewer, the last one again.
    #[inline(always)]
    pub(super) fn of(rows: &'a [u8], row_bytes: usize) -> Blocks<'a, R> {
        let last = rows.len().saturating_sub(row_bytes);
        Blocks { at: from_fn(|r| rows.as_ptr().wrapping_add(last.min(r * row_bytes))), rows: PhantomData }
    }

    /// Passes over so many bytes of each row.
    #[inline(always)]
    pub(super) fn skip(&mut self, bytes: usize) {
        self.at.iter_mut().for_each(|at| *at = at.wrapping_add(bytes));
    }

    /// The next blocks, of so many bytes.
    ///
    /// # Safety
    /// Each row has another block.
    #[inline(always)]
    pub(super) unsafe fn next(&mut self, bytes: usize) -> [&'a [u8]; R] {
        self.at.each_mut().map(|at| {
            let block = *at;
            // SAFETY: the block is there.
            unsafe {
                *at = block.add(bytes);
                slice::from_raw_parts(block, bytes)
            }
        })
    }
}

impl<'a> Blocks<'a, 4> {
    /// The next blocks' scales, and minimums if the format has them, and the blocks.
    ///
    /// # Safety
    /// Each row has another block.
    #[inline(always)]
    pub(super) unsafe fn next_with_scales<F: Block>(&mut self) -> (F32x4, F32x4, [&'a [u8]; 4]) {
        let [mut a, mut b, mut c, mut d] = self.at;
        let (scales, minimums): (F32x4, F32x4);
        // SAFETY: the blocks are there, and their first bytes are these. Addresses are counted up as values are loaded:
        // that takes no instruction more.
        // And nothing says that memory stays as it is, as in [`before_loads`].
        unsafe {
            if F::MINIMUM {
                asm!(
                    "ld1r {{{m:v}.4s}}, [{a}], {step}",
                    "ld1 {{{m:v}.s}}[1], [{b}], {step}",
                    "ld1 {{{m:v}.s}}[2], [{c}], {step}",
                    "ld1 {{{m:v}.s}}[3], [{d}], {step}",
                    "xtn {s:v}.4h, {m:v}.4s",
                    "shrn {m:v}.4h, {m:v}.4s, #16",
                    "fcvtl {s:v}.4s, {s:v}.4h",
                    "fcvtl {m:v}.4s, {m:v}.4h",
                    a = inout(reg) a, b = inout(reg) b, c = inout(reg) c, d = inout(reg) d,
                    step = in(reg) F::BYTES, s = out(vreg) scales, m = out(vreg) minimums,
                    options(nostack, preserves_flags)
                );
            } else {
                asm!(
                    "ld1r {{{s:v}.4h}}, [{a}], {step}",
                    "ld1 {{{s:v}.h}}[1], [{b}], {step}",
                    "ld1 {{{s:v}.h}}[2], [{c}], {step}",
                    "ld1 {{{s:v}.h}}[3], [{d}], {step}",
                    "fcvtl {s:v}.4s, {s:v}.4h",
                    a = inout(reg) a, b = inout(reg) b, c = inout(reg) c, d = inout(reg) d,
                    step = in(reg) F::BYTES, s = out(vreg) scales,
                    options(nostack, preserves_flags)
                );
                minimums = vdupq_n_f32(0.0);
            }
            self.at = [a, b, c, d];
            (scales, minimums, self.at.map(|next| slice::from_raw_parts(next.sub(F::BYTES), F::BYTES)))
        }
    }
}

/// The intrinsic is unstable yet.
#[inline(always)]
pub(super) fn sdot(mut sum: I32x4, w: I8x16, q: I8x16) -> I32x4 {
    // SAFETY: it changes no register but `sum`; that the processor has it is what [`super::Dot`] asks of its users.
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
