//! AArch64: kernels for NEON, with and without its dot product.
//!
//! # The idea
//! Eight groups of a row are a *run*: a super-block of the K formats, eight blocks of the others. A run's eight integer
//! sums are two registers, and so are its eight scales and the row's eight lanes. Four groups at a time:
//!
//! ```text
//! for each of four groups:   codes = unpack(weights)            two registers
//!                            partial = codes · activations      8 lanes of 16 bits, or 4 of 32 by `sdot`
//! totals = pairwise sums of the partials                        one register: a lane a group
//! totals -= code of zero × sums of activations                  so that codes need not be signed
//! lanes += f32(totals × sub-scales) × scale × activations' scale
//! ```
//!
//! Integers are exact in any order and each float operation is the definition's, so the bits are, too.
//!
//! # Beyond it
//! - A tile is one row by [`COLUMNS`] activation rows, which share the unpacked codes, or by one. Of formats whose block is
//!   a group [`ROWS`] rows by one activation row share the loads of activations.
//! - Partial sums stay 16 bits wide as long as a format's codes let them: see `neon::Long`.
//! - A row that ends within a run is filled up with zeros. They add 0 to lanes that started as +0: nothing changes.
//! - `formats` says for each format where its codes and scales are; `neon` has the instructions.
#![allow(unsafe_code)]

mod formats;
mod neon;

use core::arch::asm;
use core::array::from_fn;

use self::formats::*;
use self::neon::*;
use super::super::{Batch, FLOAT_LANES, Format, LANES, SUPER, q8_0};
use super::{Isa, Kernel, Task};
use crate::part::{part, part_mut, split_mut};

/// Rows that meet one activation row together.
const ROWS: usize = 2;
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
        Format::Q4_0 => tiles::<M, Q4_0>(rows, x, products),
        Format::Q4_1 => tiles::<M, Q4_1>(rows, x, products),
        Format::Q5_0 => tiles::<M, Q5_0>(rows, x, products),
        Format::Q5_1 => tiles::<M, Q5_1>(rows, x, products),
        Format::Q8_0 => tiles::<M, Q8_0>(rows, x, products),
        Format::Q2_K => tiles::<M, Q2K>(rows, x, products),
        Format::Q3_K => tiles::<M, Q3K>(rows, x, products),
        Format::Q4_K => tiles::<M, Q4K>(rows, x, products),
        Format::Q5_K => tiles::<M, Q5K>(rows, x, products),
        Format::Q6_K => tiles::<M, Q6K>(rows, x, products),
        Format::IQ4_NL => tiles::<M, Iq4Nl>(rows, x, products),
        Format::IQ4_XS => tiles::<M, Iq4Xs>(rows, x, products),
    }
}

/// All products, tile by tile.
fn tiles<M: Multiplier, F: Run>(rows: &[u8], x: &Batch, products: &mut [f32]) {
    let batch = x.len().max(1);
    let n_rows = products.len() / batch;
    let row_bytes = rows.len() / n_rows.max(1);
    let wide = batch / COLUMNS * COLUMNS;
    for b in (0..wide).step_by(COLUMNS) {
        strips::<M, F, 1, COLUMNS>(rows, row_bytes, x, b, products);
    }
    let tall = if F::BLOCKS { n_rows / ROWS * ROWS } else { 0 };
    for b in wide..batch {
        let (first, last) = split_mut(products, tall * batch);
        strips::<M, F, ROWS, 1>(rows, row_bytes, x, b, first);
        strips::<M, F, 1, 1>(part(rows, tall * row_bytes..), row_bytes, x, b, last);
    }
}

/// The products of all rows, R at a time, with the C activation rows from `b` on.
fn strips<M: Multiplier, F: Run, const R: usize, const C: usize>(
    rows: &[u8],
    row_bytes: usize,
    x: &Batch,
    b: usize,
    products: &mut [f32],
) {
    let batch = x.len().max(1);
    let columns = from_fn(|c| Column::of(x, b + c));
    let at_once = |n: usize| (R * n).max(1);
    let strips = rows.chunks_exact(at_once(row_bytes)).zip(products.chunks_exact_mut(at_once(batch)));
    for (rows, products) in strips {
        let tile = tile::<M, F, R, C>(rows, &columns);
        for (products, tile) in products.chunks_exact_mut(batch).zip(tile) {
            part_mut(products, b..).iter_mut().zip(tile).for_each(|(to, product)| *to = product);
        }
    }
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

/// Activations of a run.
#[derive(Clone, Copy)]
struct Activations<'a> {
    q: &'a [[i8; 16]; SUPER / 16],
    d: &'a [[f32; 4]; 2],
    sums: &'a [[i16; 8]; 2],
}

/// An activation row: its runs, and the groups after the last one.
struct Column<'a> {
    q: (&'a [[[i8; 16]; SUPER / 16]], &'a [i8]),
    d: (&'a [[[f32; 4]; 2]], &'a [f32]),
    sums: (&'a [[[i16; 8]; 2]], &'a [i16]),
    /// How many runs there are.
    len: usize,
}

impl<'a> Column<'a> {
    fn of(x: &Batch<'a>, b: usize) -> Column<'a> {
        let x = x.row(b);
        let (q, d, sums) = (runs(x.q), runs(x.d), runs(x.sums));
        Column { q, d, sums, len: q.0.len().min(d.0.len()).min(sums.0.len()) }
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

/// A run's worth of bytes of the largest block of one group.
const LARGEST: usize = LANES * q8_0::BYTES;

/// The products of R rows, one after the other, with C activation rows.
#[inline(always)]
fn tile<M: Multiplier, F: Run, const R: usize, const C: usize>(
    rows: &[u8],
    columns: &[Column<'_>; C],
) -> [[f32; C]; R] {
    let mut lanes = [[[vdupq_n_f32(0.0); 2]; C]; R];
    let row_bytes = rows.len() / R;
    // As many runs as there are of all.
    let n = columns.iter().fold(row_bytes / F::BYTES, |n, x| n.min(x.len));
    for i in 0..n {
        // SAFETY: each row has n runs.
        let runs = from_fn(|r| unsafe {
            let at = r * row_bytes + i * F::BYTES;
            rows.get_unchecked(at..at + F::BYTES)
        });
        // SAFETY: each column has n runs.
        let x = columns.each_ref().map(|x| unsafe { x.run(i) });
        add_run::<M, F, R, C>(&mut lanes, runs, x);
    }
    if F::BLOCKS && row_bytes > n * F::BYTES {
        let rest = |r: usize| part(rows, r * row_bytes + n * F::BYTES..(r + 1) * row_bytes);
        let fill: [_; R] = from_fn(|r| filled::<u8, LARGEST>(rest(r)));
        let q = columns.each_ref().map(|x| filled::<i8, SUPER>(x.q.1));
        let d = columns.each_ref().map(|x| filled::<f32, LANES>(x.d.1));
        let sums = columns.each_ref().map(|x| filled::<i16, { 2 * LANES }>(x.sums.1));
        let x = from_fn(|c| Activations { q: &runs(&q[c]).0[0], d: &runs(&d[c]).0[0], sums: &runs(&sums[c]).0[0] });
        add_run::<M, F, R, C>(&mut lanes, fill.each_ref().map(|fill| &fill[..F::BYTES]), x);
    }
    lanes.map(|lanes| lanes.map(|[low, high]| sum_4_lanes(vaddq_f32(low, high))))
}

/// `some`, and zeros.
fn filled<T: Copy + Default, const N: usize>(some: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all.iter_mut().zip(some).for_each(|(to, &value)| *to = value);
    all
}

/// Adds eight groups to their lanes.
#[inline(always)]
fn add_run<M: Multiplier, F: Run, const R: usize, const C: usize>(
    lanes: &mut [[[F32x4; 2]; C]; R],
    runs: [&[u8]; R],
    x: [Activations<'_>; C],
) {
    let scales = runs.map(F::scales);
    add_four::<M, F, R, C, 0, 0, 1, 2, 3>(lanes, runs, &scales, &x);
    add_four::<M, F, R, C, 1, 4, 5, 6, 7>(lanes, runs, &scales, &x);
}

/// Adds the groups G0 to G3, which are half Q of a run.
#[inline(always)]
fn add_four<
    M: Multiplier,
    F: Run,
    const R: usize,
    const C: usize,
    const Q: usize,
    const G0: usize,
    const G1: usize,
    const G2: usize,
    const G3: usize,
>(
    lanes: &mut [[[F32x4; 2]; C]; R],
    runs: [&[u8]; R],
    scales: &[F::Scales; R],
    x: &[Activations<'_>; C],
) {
    let a = partials::<M, F, R, C, G0>(runs, x);
    let b = partials::<M, F, R, C, G1>(runs, x);
    let ab = pairs::<M, F, R, C>(a, b);
    let c = partials::<M, F, R, C, G2>(runs, x);
    let d = partials::<M, F, R, C, G3>(runs, x);
    let cd = pairs::<M, F, R, C>(c, d);
    for (c, x) in x.iter().enumerate() {
        let halves = load_i16(&x.sums[Q]);
        let sums = Sums { halves, groups: vpaddlq_s16(halves) };
        let d = load_f32(&x.d[Q]);
        for r in 0..R {
            let totals = totals::<M, F>(ab[r][c], cd[r][c], &sums);
            let values = F::values::<Q>(runs[r], &scales[r], totals, &sums);
            lanes[r][c][Q] = vaddq_f32(lanes[r][c][Q], vmulq_f32(values, d));
        }
    }
}

/// The partial sums of each row's group G with each activation row: one, or one for each half.
#[inline(always)]
fn partials<M: Multiplier, F: Run, const R: usize, const C: usize, const G: usize>(
    runs: [&[u8]; R],
    x: &[Activations<'_>; C],
) -> [[[I32x4; 2]; C]; R] {
    let q = x.map(|x| [load_i8(&x.q[2 * G]), load_i8(&x.q[2 * G + 1])]);
    runs.map(|run| {
        let w = F::codes::<G>(run);
        q.map(|q| match F::HALVES {
            true => [M::half::<F>(w[0], q[0]), M::half::<F>(w[1], q[1])],
            false => [M::group::<F>(w, q); 2],
        })
    })
}

/// Those of two groups together: one, or one for each group.
#[inline(always)]
fn pairs<M: Multiplier, F: Run, const R: usize, const C: usize>(
    a: [[[I32x4; 2]; C]; R],
    b: [[[I32x4; 2]; C]; R],
) -> [[[I32x4; 2]; C]; R] {
    from_fn(|r| {
        from_fn(|c| match F::HALVES {
            true => [a[r][c], b[r][c]].map(|[low, high]| M::pair::<F>(low, high)),
            false => [M::pair::<F>(a[r][c][0], b[r][c][0]); 2],
        })
    })
}

/// The sums of four groups, or of eight halves.
#[inline(always)]
fn totals<M: Multiplier, F: Run>(ab: [I32x4; 2], cd: [I32x4; 2], sums: &Sums) -> [I32x4; 2] {
    let zero = vdupq_n_s32(F::ZERO);
    match (F::HALVES, F::ZERO) {
        (true, 0) => [M::quad::<F>(ab[0], ab[1]), M::quad::<F>(cd[0], cd[1])],
        (true, _) => [
            vmlsq_s32(M::quad::<F>(ab[0], ab[1]), vmovl_low_s16(sums.halves), zero),
            vmlsq_s32(M::quad::<F>(cd[0], cd[1]), vmovl_high_s16(sums.halves), zero),
        ],
        (false, 0) => [M::quad::<F>(ab[0], cd[0]); 2],
        (false, _) => [vmlsq_s32(M::quad::<F>(ab[0], cd[0]), sums.groups, zero); 2],
    }
}
