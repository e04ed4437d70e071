//! Which kernels multiply: chosen at compile time on boards, once at start on the desk.
//!
//! The functions of each format's file are the definition and the judge. What stands here only adds speed: a kernel
//! returns the same bits, and where it has nothing faster, the definition is called.

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod aarch64;
#[cfg(arm_dsp)]
mod arm_dsp;
mod lanes;
#[cfg(arm_mve)]
mod mve;
#[cfg(target_arch = "x86_64")]
mod x86;

use self::lanes::Portable;
pub use self::lanes::{Lanes, LanesTask};
use super::{Batch, Format, generic, quantize};

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
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    NeonDot,
    #[cfg(arm_dsp)]
    ArmDsp,
    #[cfg(arm_mve)]
    Mve,
}

/// What [`Kernel::run`] runs: a type whose `run` is `#[inline(always)]`, and so is compiled for each kernel.
///
/// What is called from it and not inlined would be compiled once, for no kernel in particular; so would a closure.
pub trait Task {
    /// What it returns.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// A task for lanes, with those that every processor has.
struct WithPortable<T>(T);

impl<T: LanesTask> Task for WithPortable<T> {
    type Output = T::Output;

    #[inline(always)]
    fn run(self) -> T::Output {
        self.0.run(Portable)
    }
}

/// [`quantize`], with what it takes.
struct Quantize<'a> {
    x: &'a [f32],
    q: &'a mut [i8],
    d: &'a mut [f32],
    sums: &'a mut [i16],
}

impl Task for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        quantize(self.x, self.q, self.d, self.sums);
    }
}

/// Asks for values that will be read soon, on processors that can be asked.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(values);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Asks for `bytes` bytes that stand some way behind `first`, and will be read in a while, on processors that can be asked.
#[inline(always)]
pub(super) fn prefetch_ahead<T>(first: &T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch_ahead(first, bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, bytes);
}

/// All kernels of this build, the fastest last.
const ALL: &[Isa] = &[
    Isa::Generic,
    #[cfg(target_arch = "x86_64")]
    Isa::Avx2,
    #[cfg(target_arch = "x86_64")]
    Isa::Avx512,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Isa::Neon,
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Isa::NeonDot,
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
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::Neon => true,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::NeonDot => aarch64::has_dot_product(),
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
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::Neon => "neon",
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::NeonDot => "neon-dot",
            #[cfg(arm_dsp)]
            Isa::ArmDsp => "dsp",
            #[cfg(arm_mve)]
            Isa::Mve => "helium",
        }
    }

    /// Multiplications of weights below which a part of a product is better not given to another core.
    ///
    /// To hand it over and to wait for it takes time. For vectors on the desk, twice and half as many were as good with two
    /// threads, four times as many not.
    pub fn least_shared(self) -> usize {
        match self.0 {
            Isa::Generic => 1 << 12,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => 1 << 15,
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::Neon | Isa::NeonDot => 1 << 16,
            #[cfg(arm_dsp)]
            Isa::ArmDsp => 1 << 14,
            #[cfg(arm_mve)]
            Isa::Mve => 1 << 14,
        }
    }

    /// Runs code that is written once for all, with this kernel's instructions where the compiler can use them.
    ///
    /// The bits are the same: the compiler reorders no float operation.
    #[inline(always)]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Isa::Generic => task.run(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::run_avx2(self, task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::run_avx512(self, task),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::Neon => task.run(),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::NeonDot => aarch64::run_dot(self, task),
            #[cfg(arm_dsp)]
            Isa::ArmDsp => task.run(),
            #[cfg(arm_mve)]
            Isa::Mve => task.run(),
        }
    }

    /// Runs code that is written once for all lanes, with those of this kernel.
    #[inline(always)]
    pub fn run_lanes<T: LanesTask>(self, task: T) -> T::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::run_lanes_avx2(self, task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::run_lanes_avx512(self, task),
            _ => self.run(WithPortable(task)),
        }
    }

    /// [`super::quantize`] with this kernel.
    pub(crate) fn quantize(self, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
        self.run(Quantize { x, q, d, sums });
    }

    /// [`super::multiply`] with this kernel.
    pub(super) fn multiply(self, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
        match self.0 {
            Isa::Generic => generic(format, rows, x, products),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::multiply_avx2(self, format, rows, x, products),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::multiply_avx512(self, format, rows, x, products),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Isa::Neon | Isa::NeonDot => aarch64::multiply(self, format, rows, x, products),
            #[cfg(arm_dsp)]
            Isa::ArmDsp => arm_dsp::multiply(format, rows, x, products),
            #[cfg(arm_mve)]
            Isa::Mve => mve::multiply(format, rows, x, products),
        }
    }
}
