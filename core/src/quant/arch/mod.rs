//! Which kernels multiply: chosen at compile time on boards, once at start on the desk.
//!
//! The functions of each format's file are the definition and the judge. What stands here only adds speed: a kernel
//! returns the same bits, and where it has nothing faster, the definition is called.

#[cfg(arm_dsp)]
mod arm_dsp;
#[cfg(arm_mve)]
mod mve;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Batch, Format, generic};

/// A set of kernels.
///
/// Holding one means that this processor runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    Generic,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(arm_dsp)]
    ArmDsp,
    #[cfg(arm_mve)]
    Mve,
}

/// All kernels of this build, the fastest last.
const ALL: &[Isa] = &[
    Isa::Generic,
    #[cfg(target_arch = "x86_64")]
    Isa::Avx2,
    #[cfg(target_arch = "x86_64")]
    Isa::Avx512,
    #[cfg(arm_dsp)]
    Isa::ArmDsp,
    #[cfg(arm_mve)]
    Isa::Mve,
];

impl Isa {
    /// Whether this processor runs it.
    fn runs(self) -> bool {
        match self {
            Isa::Generic => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::has_avx512(),
            #[cfg(arm_dsp)]
            Isa::ArmDsp => true,
            #[cfg(arm_mve)]
            Isa::Mve => true,
        }
    }
}

impl Kernel {
    /// The definition.
    pub const GENERIC: Kernel = Kernel(Isa::Generic);

    /// Those that this processor runs, the fastest last.
    pub fn available() -> impl Iterator<Item = Kernel> {
        ALL.iter().filter(|isa| isa.runs()).map(|&isa| Kernel(isa))
    }

    /// The fastest one that this processor runs.
    pub fn best() -> Kernel {
        Kernel::available().last().unwrap_or(Kernel::GENERIC)
    }

    /// Its name, as it is typed.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Generic => "generic",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(arm_dsp)]
            Isa::ArmDsp => "dsp",
            #[cfg(arm_mve)]
            Isa::Mve => "helium",
        }
    }

    /// Runs code that is written once for all, with this kernel's instructions where the compiler can use them.
    ///
    /// Only what is inlined into `f` profits. The bits are the same: the compiler reorders no float operation.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self.0 {
            Isa::Generic => f(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::run_avx2(self, f),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::run_avx512(self, f),
            #[cfg(arm_dsp)]
            Isa::ArmDsp => f(),
            #[cfg(arm_mve)]
            Isa::Mve => f(),
        }
    }

    /// [`super::multiply`] with this kernel.
    pub(super) fn multiply(self, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
        match self.0 {
            Isa::Generic => generic(format, rows, x, products),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => self.run(|| generic(format, rows, x, products)),
            #[cfg(arm_dsp)]
            Isa::ArmDsp => arm_dsp::multiply(format, rows, x, products),
            #[cfg(arm_mve)]
            Isa::Mve => mve::multiply(format, rows, x, products),
        }
    }
}
