//! AArch64: kernels for NEON, with and without its dot product.
//!
//! # The idea
//! Four sums of integers, of one group each, are one register: floats are multiplied four at a time. Of formats whose
//! block is a group, the four are of four rows (`blocks`); of super-blocks, four groups of a row (`super_blocks`).
//! Integers are exact in any order and each float operation is the definition's, so the bits are, too.
//!
//! # Beyond it
//! - Eight groups of a row are a *run*: as many as there are lanes in the definition.
//! - A tile meets [`COLUMNS`] activation rows, which share the unpacked codes, or one.
//! - Partial sums stay 16 bits wide as long as a format's codes let them, or 32 bits with the dot product: see
//!   `multipliers`.
//! - `neon` has the instructions. Some of its functions only keep the compiler from rearranging them.
#![allow(unsafe_code)]

mod blocks;
mod multipliers;
mod neon;
mod super_blocks;

use core::arch::asm;

use self::blocks::*;
use self::multipliers::*;
use self::neon::*;
use self::super_blocks::*;
use super::super::{Batch, FLOAT_LANES, Format, GROUP, LANES, SUPER};
use super::{Isa, Kernel, Task};

/// Activation rows that meet one row together.
const COLUMNS: usize = 4;

/// Whether the processor has dot product instructions.
///
/// Linux (since 4.11) lets programs read the register that says so; without an operating system it can be read anyway.
/// Elsewhere what the compiler was told counts.
pub(super) fn has_dot_product() -> bool {
    if cfg!(target_feature = "dotprod") {
        return true;
    }
    if cfg!(not(any(target_os = "none", target_os = "linux"))) {
        return false;
    }
    let features: u64;
    // SAFETY: reading it changes nothing, and it can be read as said above.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) features, options(pure, nomem, nostack, preserves_flags)) };
    features >> 44 & 0xf != 0
}

/// [`Kernel::run`] with the dot product.
#[inline(always)]
pub(super) fn run_dot<T: Task>(kernel: Kernel, task: T) -> T::Output {
    #[target_feature(enable = "dotprod")]
    fn inner<T: Task>(task: T) -> T::Output {
        task.run()
    }
    debug_assert!(kernel == Kernel(Isa::NeonDot));
    // SAFETY: a kernel of this kind exists only where `has_dot_product` said so.
    unsafe { inner(task) }
}

/// [`super::super::multiply`] with the instructions of `kernel`.
pub(super) fn multiply(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    match kernel.0 {
        Isa::NeonDot => by::<Dot>(format, rows, x, products),
        _ => by::<Long>(format, rows, x, products),
    }
}

fn by<M: Multiplier>(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    match format {
        Format::F32 => floats(rows, x, products, load_16_f32),
        Format::F16 => floats(rows, x, products, load_16_f16),
        Format::BF16 => floats(rows, x, products, load_16_bf16),
        Format::Q4_0 => blocks::multiply::<M, Q4_0>(rows, x, products),
        Format::Q4_1 => blocks::multiply::<M, Q4_1>(rows, x, products),
        Format::Q5_0 => blocks::multiply::<M, Q5_0>(rows, x, products),
        Format::Q5_1 => blocks::multiply::<M, Q5_1>(rows, x, products),
        Format::Q8_0 => blocks::multiply::<M, Q8_0>(rows, x, products),
        Format::Q2_K => super_blocks::multiply::<M, Q2K>(rows, x, products),
        Format::Q3_K => super_blocks::multiply::<M, Q3K>(rows, x, products),
        Format::Q4_K => super_blocks::multiply::<M, Q4K>(rows, x, products),
        Format::Q5_K => super_blocks::multiply::<M, Q5K>(rows, x, products),
        Format::Q6_K => super_blocks::multiply::<M, Q6K>(rows, x, products),
        Format::IQ4_NL => blocks::multiply::<M, Iq4Nl>(rows, x, products),
        Format::IQ4_XS => super_blocks::multiply::<M, Iq4Xs>(rows, x, products),
    }
}

/// Where strips of activation rows begin, and whether they are [`COLUMNS`] wide, or one.
fn strips(x: &Batch) -> impl Iterator<Item = (usize, bool)> {
    let wide = x.len() / COLUMNS * COLUMNS;
    (0..wide).step_by(COLUMNS).map(|b| (b, true)).chain((wide..x.len()).map(|b| (b, false)))
}

/// All products of rows of BYTES a weight that `load` makes f32, 16 at once. What is left of a row is filled with zeros,
/// which change no lane.
#[inline(always)]
fn floats<const BYTES: usize>(
    rows: &[u8],
    x: &Batch,
    products: &mut [f32],
    load: fn(&[[u8; BYTES]; 16]) -> [F32x4; 4],
) {
    let (batch, cols) = (x.len().max(1), x.cols.max(1));
    let weights = rows.as_chunks::<BYTES>().0;
    for (products, weights) in products.chunks_exact_mut(batch).zip(weights.chunks_exact(cols)) {
        for (product, x) in products.iter_mut().zip(x.x.chunks_exact(cols)) {
            let mut lanes = [vdupq_n_f32(0.0); 4];
            let mut add = |w: &[[u8; BYTES]; 16], x: &[f32; 16]| {
                let x = x.as_chunks().0;
                for ((lanes, w), x) in lanes.iter_mut().zip(load(w)).zip(x) {
                    *lanes = vaddq_f32(*lanes, vmulq_f32(w, load_f32(x)));
                }
            };
            let ((w, w_rest), (x, x_rest)) = (weights.as_chunks(), x.as_chunks());
            w.iter().zip(x).for_each(|(w, x)| add(w, x));
            if !w_rest.is_empty() {
                let mut w = [[0; BYTES]; FLOAT_LANES];
                w.iter_mut().zip(w_rest).for_each(|(to, &weight)| *to = weight);
                add(&w, &filled(x_rest));
            }
            let [a, b, c, d] = lanes;
            *product = sum_4_lanes(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)));
        }
    }
}

/// What is known of a format's codes.
trait Codes {
    /// The largest magnitude.
    const MAX: i32;
    /// The code of weight 0: what codes have too much.
    const ZERO: i32 = 0;
}

/// Activations of a run.
#[derive(Clone, Copy)]
struct Activations<'a> {
    q: &'a [[[i8; GROUP]; 4]; 2],
    d: &'a [[f32; 4]; 2],
    sums: &'a [[i16; 8]; 2],
}

/// An activation row: its runs, and the groups after the last one.
struct Column<'a> {
    q: (&'a [[[[i8; GROUP]; 4]; 2]], &'a [i8]),
    d: (&'a [[[f32; 4]; 2]], &'a [f32]),
    sums: (&'a [[[i16; 8]; 2]], &'a [i16]),
}

impl<'a> Column<'a> {
    fn of(x: &Batch<'a>, b: usize) -> Column<'a> {
        let x = x.row(b);
        let (q, rest) = x.q.split_at(x.q.len() / SUPER * SUPER);
        let (q, d, sums) = ((in_runs(q), rest), runs(x.d), runs(x.sums));
        Column { q, d, sums }
    }

    fn rest(&self) -> Rest {
        Rest { q: filled(self.q.1), d: filled(self.d.1), sums: filled(self.sums.1) }
    }

    /// Run `i`.
    ///
    /// # Safety
    /// There are more than `i`.
    #[inline(always)]
    unsafe fn run(&self, i: usize) -> Activations<'a> {
        // SAFETY: as said above.
        unsafe {
            Activations {
                q: self.q.0.get_unchecked(i),
                d: self.d.0.get_unchecked(i),
                sums: self.sums.0.get_unchecked(i),
            }
        }
    }
}

/// Runs of A arrays of N, and what is left.
#[inline(always)]
fn runs<T, const N: usize, const A: usize>(all: &[T]) -> (&[[[T; N]; A]], &[T]) {
    let (whole, rest) = all.split_at(all.len() / (N * A) * (N * A));
    (whole.as_chunks().0.as_chunks().0, rest)
}

/// Codes by runs, halves of runs and groups.
#[inline(always)]
fn in_runs(codes: &[i8]) -> &[[[[i8; GROUP]; 4]; 2]] {
    codes.as_chunks().0.as_chunks().0.as_chunks().0
}

/// Groups after the last run, filled up to one.
struct Rest {
    q: [i8; SUPER],
    d: [f32; LANES],
    sums: [i16; 2 * LANES],
}

impl Rest {
    fn run(&self) -> Activations<'_> {
        Activations { q: &in_runs(&self.q)[0], d: &runs(&self.d).0[0], sums: &runs(&self.sums).0[0] }
    }
}

/// `some`, and zeros.
fn filled<T: Copy + Default, const N: usize>(some: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all.iter_mut().zip(some).for_each(|(to, &value)| *to = value);
    all
}
