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
//! - A tile is [`ROWS`] rows by one activation row, which share the loads of activations, or one row by [`COLUMNS`]
//!   activation rows, which share the unpacked codes.
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
use super::super::{Batch, Format, GROUP, HALF, LANES, SUPER, generic, sum_lanes};
use super::{Isa, Kernel};

/// Rows that meet one activation row together.
const ROWS: usize = 4;
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
pub(super) fn run_dot<R>(kernel: Kernel, f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "dotprod")]
    fn inner<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    debug_assert!(kernel == Kernel(Isa::NeonDot));
    // SAFETY: a kernel of this kind exists only where `has_dot_product` said so.
    unsafe { inner(f) }
}

/// [`super::super::multiply`] with the instructions of `kernel`.
pub(super) fn multiply(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    match kernel.0 {
        Isa::NeonDot => by::<Dot>(kernel, format, rows, x, products),
        _ => by::<Long>(kernel, format, rows, x, products),
    }
}

fn by<M: Multiplier>(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => kernel.run(|| generic(format, rows, x, products)),
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
    let batch = x.len();
    let n_rows = products.len() / batch;
    let row_bytes = rows.len() / n_rows.max(1);
    let row = |r: usize| &rows[r * row_bytes..][..row_bytes];
    let wide = batch / COLUMNS * COLUMNS;
    for r in 0..n_rows {
        for b in (0..wide).step_by(COLUMNS) {
            let tile = tile::<M, F, 1, COLUMNS>([row(r)], from_fn(|i| Column::of(x, b + i)));
            products[r * batch + b..][..COLUMNS].copy_from_slice(&tile[0]);
        }
    }
    for b in wide..batch {
        let column = Column::of(x, b);
        let tall = n_rows / ROWS * ROWS;
        for r in (0..tall).step_by(ROWS) {
            let tile = tile::<M, F, ROWS, 1>(from_fn(|i| row(r + i)), [column]);
            (0..ROWS).for_each(|i| products[(r + i) * batch + b] = tile[i][0]);
        }
        for r in tall..n_rows {
            products[r * batch + b] = tile::<M, F, 1, 1>([row(r)], [column])[0][0];
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

/// An activation row in runs, and the groups after the last one.
#[derive(Clone, Copy)]
struct Column<'a> {
    q: &'a [i8],
    d: &'a [f32],
    sums: &'a [i16],
}

impl<'a> Column<'a> {
    #[inline(always)]
    fn of(x: &Batch<'a>, b: usize) -> Column<'a> {
        let x = x.row(b);
        Column { q: x.q, d: x.d, sums: x.sums }
    }

    /// Run `i`.
    #[inline(always)]
    fn run(&self, i: usize) -> Activations<'a> {
        Activations {
            q: &self.q.as_chunks().0.as_chunks().0[i],
            d: &self.d.as_chunks().0.as_chunks().0[i],
            sums: &self.sums.as_chunks().0.as_chunks().0[i],
        }
    }
}

/// A run's worth of bytes of the largest block of one group.
const LARGEST: usize = 8 * super::super::q8_0::BYTES;

/// The products of R rows with C activation rows.
#[inline(always)]
fn tile<M: Multiplier, F: Run, const R: usize, const C: usize>(
    rows: [&[u8]; R],
    columns: [Column<'_>; C],
) -> [[f32; C]; R] {
    let mut lanes = [[[vdupq_n_f32(0.0); 2]; C]; R];
    let mut runs = rows.map(|row| row.chunks_exact(F::BYTES));
    let groups = columns[0].d.len();
    for i in 0..groups / LANES {
        let runs = runs.each_mut().map(|run| run.next().unwrap_or(&[]));
        add_run::<M, F, R, C>(&mut lanes, runs, columns.map(|x| x.run(i)));
    }
    if !groups.is_multiple_of(LANES) {
        let mut filled = [[0; LARGEST]; R];
        for (filled, runs) in filled.iter_mut().zip(&runs) {
            let rest = runs.remainder();
            filled[..rest.len()].copy_from_slice(rest);
        }
        let (mut q, mut d, mut sums) = ([[0; SUPER]; C], [[0.0; LANES]; C], [[0; 2 * LANES]; C]);
        let whole = groups / LANES * LANES;
        for (c, x) in columns.iter().enumerate() {
            let (rest_q, rest_d, rest_sums) = (&x.q[whole * GROUP..], &x.d[whole..], &x.sums[whole * GROUP / HALF..]);
            q[c][..rest_q.len()].copy_from_slice(rest_q);
            d[c][..rest_d.len()].copy_from_slice(rest_d);
            sums[c][..rest_sums.len()].copy_from_slice(rest_sums);
        }
        let x = from_fn(|c| Column { q: &q[c], d: &d[c], sums: &sums[c] }.run(0));
        add_run::<M, F, R, C>(&mut lanes, filled.each_ref().map(|filled| &filled[..F::BYTES]), x);
    }
    lanes.map(|lanes| {
        lanes.map(|[low, high]| {
            let ([a, b, c, d], [e, f, g, h]) = (store_f32(low), store_f32(high));
            sum_lanes([a, b, c, d, e, f, g, h])
        })
    })
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
