//! x86-64: what the processor has, and code for it.
#![allow(unsafe_code)]

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use super::{Isa, Kernel};

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

/// [`Kernel::run`] with AVX2.
#[inline(always)]
pub(super) fn run_avx2<R>(kernel: Kernel, f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c")]
    fn inner<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    debug_assert!(kernel == Kernel(Isa::Avx2));
    // SAFETY: a kernel of this kind exists only where `has_avx2` said so.
    unsafe { inner(f) }
}

/// [`Kernel::run`] with AVX-512.
#[inline(always)]
pub(super) fn run_avx512<R>(kernel: Kernel, f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx,avx2,bmi1,bmi2,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn inner<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    debug_assert!(kernel == Kernel(Isa::Avx512));
    // SAFETY: a kernel of this kind exists only where `has_avx512` said so.
    unsafe { inner(f) }
}
