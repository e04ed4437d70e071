//! x86-64: what the processor has, and code for it.
//!
//! Rows go by slabs of 256 weights ([`slab`]), taken apart alike for both instruction sets ([`unpack`]). For few
//! activation rows each set has its own loop ([`avx2`], [`avx512`]), for many both share one ([`mod@many`]).
#![allow(unsafe_code)]

/// An array of an expression for each `$i`: as `map`, but no closure, which would not be inlined into code for more
/// instructions than the caller of `map` may use.
macro_rules! each {
    ($i:ident in $($value:expr),* => $result:expr) => {
        [$({
            let $i = $value;
            $result
        }),*]
    };
}

mod avx2;
mod avx512;
mod many;
mod slab;
mod unpack;

use core::arch::x86_64::{__cpuid, __cpuid_count, _MM_HINT_T0, _mm_prefetch, _xgetbv};
use core::marker::PhantomData;
use core::ptr;

use self::avx2::Avx2;
use self::avx512::{Arrange, Avx512};
use self::many::{Bf16, F16, F32, Floats, WIDE, Wide, floats, many};
use self::unpack::{Iq4_Nl, Iq4_Xs, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Unpack};
use super::{Batch, Format, Isa, Kernel, Lanes, LanesTask, Task};
use crate::quant::FLOAT_LANES;

/// Bits of CPUID leaf 1, ECX.
const FMA_OSXSAVE_AVX_F16C: u32 = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;
/// Bits of CPUID leaf 7, EBX: BMI1, AVX2, BMI2.
const AVX2: u32 = 1 << 3 | 1 << 5 | 1 << 8;
/// Bits of CPUID leaf 7, EBX: AVX-512 F, DQ, BW, VL.
const AVX512: u32 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
/// Bits of CPUID leaf 7, ECX: AVX-512 VBMI, VNNI.
const VBMI_VNNI: u32 = 1 << 1 | 1 << 11;
/// Bits of XCR0: the operating system keeps XMM and YMM registers.
const YMM: u64 = 0b110;
/// And mask and ZMM registers.
const ZMM: u64 = 0b1110_0110;

/// CPUID leaf 7's EBX and ECX, and XCR0; zero where the processor has not even AVX.
fn features() -> (u32, u32, u64) {
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & FMA_OSXSAVE_AVX_F16C != FMA_OSXSAVE_AVX_F16C {
        return (0, 0, 0);
    }
    let leaf = __cpuid_count(7, 0);
    // SAFETY: the OSXSAVE bit, checked above, says that this instruction may be used.
    (leaf.ebx, leaf.ecx, unsafe { xcr0() })
}

/// Which registers the operating system keeps.
#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// Whether processor and operating system run AVX2 code, with F16C and BMI.
pub(super) fn has_avx2() -> bool {
    let (ebx, _, xcr0) = features();
    ebx & AVX2 == AVX2 && xcr0 & YMM == YMM
}

/// Whether they run AVX-512 code, with VBMI and VNNI besides.
pub(super) fn has_avx512() -> bool {
    let (ebx, ecx, xcr0) = features();
    has_avx2() && ebx & AVX512 == AVX512 && ecx & VBMI_VNNI == VBMI_VNNI && xcr0 & ZMM == ZMM
}

/// [`super::prefetch`]: every line of the cache that they touch.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T]) {
    let before = values.as_ptr().addr() % 64;
    for at in (0..size_of_val(values) + before).step_by(64) {
        // SAFETY: every processor of this architecture has the instruction, which takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>().wrapping_add(at)) };
    }
}

/// Bytes that memory is asked for ahead of use.
const AHEAD: usize = 16384;

/// [`super::prefetch_ahead`].
#[inline(always)]
pub(super) fn prefetch_ahead<T>(first: &T, bytes: usize) {
    let ahead = ptr::from_ref(first).cast::<i8>().wrapping_add(AHEAD);
    for at in (0..bytes).step_by(64) {
        // SAFETY: every processor of this architecture has the instruction, which takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at)) };
    }
}

/// [`Kernel::run`] with AVX2.
#[inline(always)]
pub(super) fn run_avx2<T: Task>(kernel: Kernel, task: T) -> T::Output {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
    fn inner<T: Task>(task: T) -> T::Output {
        task.run()
    }
    debug_assert!(kernel == Kernel(Isa::Avx2));
    // SAFETY: a kernel of this kind exists only where `has_avx2` said so.
    unsafe { inner(task) }
}

/// [`Kernel::run`] with AVX-512.
#[inline(always)]
pub(super) fn run_avx512<T: Task>(kernel: Kernel, task: T) -> T::Output {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn inner<T: Task>(task: T) -> T::Output {
        task.run()
    }
    debug_assert!(kernel == Kernel(Isa::Avx512));
    // SAFETY: a kernel of this kind exists only where `has_avx512` said so.
    unsafe { inner(task) }
}

/// The lanes of a float product in vectors of an instruction set.
struct X86Lanes<W>(PhantomData<W>);

impl<W> Clone for X86Lanes<W> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for X86Lanes<W> {}

impl<W: Wide> X86Lanes<W> {
    /// # Safety
    /// The processor runs the instructions of `W`.
    #[inline(always)]
    unsafe fn new() -> Self {
        X86Lanes(PhantomData)
    }
}

/// Methods of [`Lanes`] that are functions of [`Wide`].
macro_rules! lanes {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty { $function:ident }),*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            // SAFETY: the instructions of `W` are there, said who made this.
            unsafe { W::$function($($arg),*) }
        }
    )*};
}

impl<W: Wide> Lanes for X86Lanes<W> {
    type Floats = W::Floats;
    const ROOMY: bool = true;

    lanes! {
        load(values: &[f32; FLOAT_LANES]) -> W::Floats { floats },
        load_halves(halves: &[u16; FLOAT_LANES]) -> W::Floats { halves },
        load_codes(codes: &[i8; FLOAT_LANES]) -> W::Floats { codes },
        all(value: f32) -> W::Floats { all_floats },
        mul(a: W::Floats, b: W::Floats) -> W::Floats { mul_floats },
        add(a: W::Floats, b: W::Floats) -> W::Floats { add_floats },
        sum_four(v: [W::Floats; 4]) -> [f32; 4] { sum_four },
        to_halves(v: W::Floats) -> [u16; FLOAT_LANES] { to_halves },
        values(v: W::Floats) -> [f32; FLOAT_LANES] { values }
    }
}

/// [`Kernel::run_lanes`] with AVX2.
#[inline(always)]
pub(super) fn run_lanes_avx2<T: LanesTask>(kernel: Kernel, task: T) -> T::Output {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
    fn inner<T: LanesTask>(task: T) -> T::Output {
        // SAFETY: this function has those instructions.
        task.run(unsafe { X86Lanes::<Avx2>::new() })
    }
    debug_assert!(kernel == Kernel(Isa::Avx2));
    // SAFETY: a kernel of this kind exists only where `has_avx2` said so.
    unsafe { inner(task) }
}

/// [`Kernel::run_lanes`] with AVX-512.
#[inline(always)]
pub(super) fn run_lanes_avx512<T: LanesTask>(kernel: Kernel, task: T) -> T::Output {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn inner<T: LanesTask>(task: T) -> T::Output {
        // SAFETY: this function has those instructions.
        task.run(unsafe { X86Lanes::<Avx512>::new() })
    }
    debug_assert!(kernel == Kernel(Isa::Avx512));
    // SAFETY: a kernel of this kind exists only where `has_avx512` said so.
    unsafe { inner(task) }
}

/// Calls `$blocks::<T>` or `$floats::<T>` with the format's type.
macro_rules! of_format {
    ($format:expr, $blocks:ident, $floats:ident, $args:tt) => {
        match $format {
            Format::F32 => $floats::<F32> $args,
            Format::F16 => $floats::<F16> $args,
            Format::BF16 => $floats::<Bf16> $args,
            Format::Q4_0 => $blocks::<Q4_0> $args,
            Format::Q4_1 => $blocks::<Q4_1> $args,
            Format::Q5_0 => $blocks::<Q5_0> $args,
            Format::Q5_1 => $blocks::<Q5_1> $args,
            Format::Q8_0 => $blocks::<Q8_0> $args,
            Format::Q2_K => $blocks::<Q2_K> $args,
            Format::Q3_K => $blocks::<Q3_K> $args,
            Format::Q4_K => $blocks::<Q4_K> $args,
            Format::Q5_K => $blocks::<Q5_K> $args,
            Format::Q6_K => $blocks::<Q6_K> $args,
            Format::IQ4_NL => $blocks::<Iq4_Nl> $args,
            Format::IQ4_XS => $blocks::<Iq4_Xs> $args,
        }
    };
}

/// Most activation rows that go through `few` with AVX2: laying 16 side by side takes as long as 11 of those.
const FEW_AVX2: usize = 10;
/// And with AVX-512.
const FEW_AVX512: usize = 8;

/// [`super::super::multiply`] with AVX2.
pub(super) fn multiply_avx2(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
    fn blocks<U: Unpack>(rows: &[u8], row_bytes: usize, x: &Batch, products: &mut [f32]) {
        for (first, n) in portions(x.len(), WIDE) {
            match n {
                1 => avx2::few::<U, 1>(rows, row_bytes, x, first, n, products),
                2..=FEW_AVX2 => avx2::few::<U, FEW_AVX2>(rows, row_bytes, x, first, n, products),
                // SAFETY: this function has those features.
                _ => unsafe { many::<Avx2, U, 2, 1, WIDE>(rows, row_bytes, x, first, n, products) },
            }
        }
    }
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
    fn wholes<F: Floats>(rows: &[u8], row_bytes: usize, x: &Batch, products: &mut [f32]) {
        // SAFETY: this function has the features of `Avx2`.
        unsafe { all_floats::<Avx2, F, 1>(rows, row_bytes, x, products) }
    }
    debug_assert!(kernel == Kernel(Isa::Avx2));
    let row_bytes = format.row_bytes(x.cols);
    // SAFETY: a kernel of this kind exists only where `has_avx2` said so.
    unsafe { of_format!(format, blocks, wholes, (rows, row_bytes, x, products)) }
}

/// [`super::super::multiply`] with AVX-512.
pub(super) fn multiply_avx512(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn blocks<U: Arrange>(rows: &[u8], row_bytes: usize, x: &Batch, products: &mut [f32]) {
        for (first, n) in portions(x.len(), 2 * WIDE) {
            match n {
                1 => avx512::few::<U, 1>(rows, row_bytes, x, first, n, products),
                2..=FEW_AVX512 => avx512::few::<U, FEW_AVX512>(rows, row_bytes, x, first, n, products),
                // SAFETY: this function has those features.
                ..=WIDE => unsafe { many::<Avx512, U, 4, 1, WIDE>(rows, row_bytes, x, first, n, products) },
                // SAFETY: as above.
                _ => unsafe { many::<Avx512, U, 4, 2, { 2 * WIDE }>(rows, row_bytes, x, first, n, products) },
            }
        }
    }
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn wholes<F: Floats>(rows: &[u8], row_bytes: usize, x: &Batch, products: &mut [f32]) {
        // SAFETY: this function has the features of `Avx512`.
        unsafe { all_floats::<Avx512, F, 2>(rows, row_bytes, x, products) }
    }
    debug_assert!(kernel == Kernel(Isa::Avx512));
    let row_bytes = format.row_bytes(x.cols);
    // SAFETY: a kernel of this kind exists only where `has_avx512` said so.
    unsafe { of_format!(format, blocks, wholes, (rows, row_bytes, x, products)) }
}

/// `n` activation rows in portions, as first one and how many: `most` at a time, and what is left, many or few.
fn portions(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(most).map(move |first| (first, (n - first).min(most)))
}

/// [`floats`] for all activation rows, four at a time while there are as many.
///
/// # Safety
/// The processor runs the instructions of `W`.
#[inline(always)]
unsafe fn all_floats<W: Wide, F: Floats, const AT_ONCE: usize>(
    rows: &[u8],
    row_bytes: usize,
    x: &Batch,
    products: &mut [f32],
) {
    let fours = x.len() / 4 * 4;
    // SAFETY: the instructions of `W` are there, says the caller.
    unsafe {
        for first in (0..fours).step_by(4) {
            floats::<W, F, AT_ONCE, 4>(rows, row_bytes, x, first, products);
        }
        for first in fours..x.len() {
            floats::<W, F, AT_ONCE, 1>(rows, row_bytes, x, first, products);
        }
    }
}
