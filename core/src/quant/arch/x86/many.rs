//! Many activation rows: 16 of them side by side in the vectors, so that nothing is added across a vector.
//!
//! # The idea
//! ```text
//! for each 16 activation rows, for each slab of 256 weights:
//!     transpose their codes: panel.q[k] = 4 codes of each of the 16, for k in 0..64; scales and sums likewise
//!     for each weight row, for each of its 8 groups:
//!         ints = 16 sums, one an activation row = Σ 4 codes of the weight row, for all alike, · panel.q[k]
//!         sums[row][group] += ints · d · panel.d[group]
//! ```
//! A slab has a group for each lane of the definition, so `sums[row][lane]` grows once a slab, in the definition's
//! order. Beyond that the code takes several weight rows at a time, which share what is loaded of the panel, and fewer
//! than 16 activation rows are filled up with zeros.
//!
//! Floats go the same way without the transposing: 16 weights side by side are the 16 lanes of the definition.

use core::arch::x86_64::*;
use core::array;

use super::prefetch_ahead;
use super::slab::{LastSlab, Rest, SLAB, Slabs, columns};
use super::unpack::{Factors, Scales, Unpack, load_32};
use crate::quant::{Batch, FLOAT_LANES, GROUP, LANES, sum_lanes};

/// Activation rows side by side.
pub(super) const WIDE: usize = 16;
/// Weight rows whose sums are kept: 16 KiB of them for each panel.
const ROWS: usize = 32;

/// 16 numbers side by side, in one vector or several.
///
/// # Safety
/// All methods: the processor runs the instructions that the type is named after.
pub(super) trait Wide {
    /// 16 × i32.
    type Ints: Copy;
    /// 16 × f32.
    type Floats: Copy;
    /// How much the u8 code of a signed format is above its weight; 0 where signed codes multiply as they are.
    const SIGNED_BIAS: i16;

    unsafe fn ints(v: &[i32; WIDE]) -> Self::Ints;
    unsafe fn all(v: i32) -> Self::Ints;
    unsafe fn add(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn sub(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn mul(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The sum of both i16 products of each i32.
    unsafe fn mul_pairs(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Adds the sum of the products of four weights' codes with four bytes of each i32.
    ///
    /// Codes are u8, or i8 if `signed` and `SIGNED_BIAS` is 0.
    unsafe fn add_fours(sum: Self::Ints, codes: [u8; 4], q: Self::Ints, signed: bool) -> Self::Ints;

    unsafe fn to_floats(v: Self::Ints) -> Self::Floats;
    unsafe fn floats(v: &[f32; WIDE]) -> Self::Floats;
    unsafe fn all_floats(v: f32) -> Self::Floats;
    unsafe fn store(v: Self::Floats, to: &mut [f32; WIDE]);
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn values(v: Self::Floats) -> [f32; WIDE];
    /// The f16 of these bits.
    unsafe fn halves(v: &[u16; WIDE]) -> Self::Floats;
    /// The 16 of each added up, as [`sum_lanes`] does it.
    unsafe fn sum_four(v: [Self::Floats; 4]) -> [f32; 4];
    /// The bits of the nearest f16 of each.
    unsafe fn to_halves(v: Self::Floats) -> [u16; WIDE];
    /// 16 signed bytes.
    unsafe fn codes(v: &[i8; WIDE]) -> Self::Floats;
    /// 16 weights of F32.
    unsafe fn f32s(v: &[u8; 64]) -> Self::Floats;
    /// 16 weights of F16.
    unsafe fn f16s(v: &[u8; 32]) -> Self::Floats;
    /// 16 weights of BF16.
    unsafe fn bf16s(v: &[u8; 32]) -> Self::Floats;
}

/// A slab of 16 activation rows, transposed.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Panel {
    /// Four codes of each row (SLAB / 4).
    q: [[i32; WIDE]; SLAB / 4],
    /// Both halves' sums of each row, one for each group.
    sums: [[i32; WIDE]; LANES],
    /// Where a group's sum starts for a format with one scale at most: what its codes are above the weights, times Σ q.
    start: [[i32; WIDE]; LANES],
    /// The scale of each row, one for each group: bits of an f32.
    d: [[i32; WIDE]; LANES],
}

impl Panel {
    const ZERO: Panel =
        Panel { q: [[0; WIDE]; SLAB / 4], sums: [[0; WIDE]; LANES], start: [[0; WIDE]; LANES], d: [[0; WIDE]; LANES] };

    /// Fills it with slab `i` of each of 16 rows, for codes that are above the weights by `bias`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fill(&mut self, rows: &[Slabs], i: usize, bias: i16) {
        for at in [0, 8] {
            let eight = each!(c in 0, 1, 2, 3, 4, 5, 6, 7 => rows[at + c].get(i));
            for (k, q) in self.q.chunks_exact_mut(8).enumerate() {
                put(q, at, each!(c in 0, 1, 2, 3, 4, 5, 6, 7 => load_32(bytemuck::cast_slice(eight[c].q), k * 32)));
            }
            put(
                &mut self.sums,
                at,
                each!(c in 0, 1, 2, 3, 4, 5, 6, 7 => load_32(bytemuck::cast_slice(eight[c].sums), 0)),
            );
            put(&mut self.d, at, each!(c in 0, 1, 2, 3, 4, 5, 6, 7 => load_32(bytemuck::cast_slice(eight[c].d), 0)));
        }
        for (start, sums) in self.start.as_flattened_mut().iter_mut().zip(self.sums.as_flattened()) {
            let [low, high] = bytemuck::cast::<i32, [i16; 2]>(*sums);
            *start = -i32::from(bias) * (i32::from(low) + i32::from(high));
        }
    }
}

/// Puts eight rows of eight numbers into eight columns, from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
fn put(to: &mut [[i32; WIDE]], at: usize, rows: [__m256i; 8]) {
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs, then fours of 32 bits, within 16 bytes; then those.
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ef, gh) = (_mm256_unpacklo_epi32(e, f), _mm256_unpacklo_epi32(g, h));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    let (ef_high, gh_high) = (_mm256_unpackhi_epi32(e, f), _mm256_unpackhi_epi32(g, h));
    let fours = [
        (_mm256_unpacklo_epi64(ab, cd), _mm256_unpacklo_epi64(ef, gh)),
        (_mm256_unpackhi_epi64(ab, cd), _mm256_unpackhi_epi64(ef, gh)),
        (_mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpacklo_epi64(ef_high, gh_high)),
        (_mm256_unpackhi_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ef_high, gh_high)),
    ];
    for (i, (abcd, efgh)) in fours.into_iter().enumerate() {
        store_32(&mut to[i][at..], _mm256_permute2x128_si256::<0x20>(abcd, efgh));
        store_32(&mut to[i + 4][at..], _mm256_permute2x128_si256::<0x31>(abcd, efgh));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_32(to: &mut [i32], v: __m256i) {
    let to = &mut to[..8];
    // SAFETY: the slice is 32 bytes long, and any alignment will do.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
}

/// A slab of a weight row, each number where it can be loaded for all columns at once.
#[repr(C, align(64))]
struct Weights {
    codes: [[u8; 4]; SLAB / 4],
    /// One for each group, or for each half.
    scales: [i32; 2 * LANES],
    /// Both halves' scales, times the bias: i16 pairs.
    biases: [i32; LANES],
    /// Both halves' minima: i16 pairs.
    minima: [i32; LANES],
    d: [f32; LANES],
    m: [f32; LANES],
}

impl Weights {
    const ZERO: Weights = Weights {
        codes: [[0; 4]; SLAB / 4],
        scales: [0; 2 * LANES],
        biases: [0; LANES],
        minima: [0; LANES],
        d: [0.0; LANES],
        m: [0.0; LANES],
    };

    /// Takes a slab apart.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn fill<U: Unpack>(&mut self, slab: &[u8], bias: i16) {
        // SAFETY: this function has the features that these need.
        let (mut codes, Factors { scales, d, minima, m }) = unsafe { (U::codes(slab), U::factors(slab)) };
        for (to, code) in self.codes.chunks_exact_mut(8).zip(&mut codes) {
            if U::SIGNED && bias != 0 {
                *code = _mm256_xor_si256(*code, _mm256_set1_epi8(-128));
            }
            store_32(bytemuck::cast_slice_mut::<[u8; 4], i32>(to), *code);
        }
        let bias = _mm256_set1_epi16(bias);
        match U::SCALES {
            Scales::No => store_32(&mut self.biases, bias),
            Scales::Group => {
                store_32(&mut self.scales, scales);
                store_32(&mut self.biases, bias);
            }
            Scales::Half => {
                store_32(&mut self.scales, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(scales)));
                store_32(&mut self.scales[8..], _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(scales)));
                store_32(&mut self.biases, _mm256_mullo_epi16(scales, bias));
            }
        }
        store_32(bytemuck::cast_slice_mut(&mut self.d), _mm256_castps_si256(d));
        if U::MINIMA {
            store_32(&mut self.minima, minima);
            store_32(bytemuck::cast_slice_mut(&mut self.m), _mm256_castps_si256(m));
        }
    }
}

/// The products of rows with up to `MOST` activation rows, 16 for each of `PANELS`, from `first` on; `AT_ONCE` rows share
/// a panel's loads, and panels a row's.
///
/// # Safety
/// The processor runs the instructions of `W`, AVX2 and F16C.
#[inline(always)]
pub(super) unsafe fn many<W: Wide, U: Unpack, const AT_ONCE: usize, const PANELS: usize, const MOST: usize>(
    rows: &[u8],
    row_bytes: usize,
    x: &Batch,
    first: usize,
    n: usize,
    products: &mut [f32],
) {
    const { assert!(MOST == PANELS * WIDE) };
    let x_len = x.len();
    let mut rests = [Rest::ZERO; MOST];
    let columns = columns(x, first, n, &mut rests);
    let (whole, rest) = (row_bytes / U::BYTES, row_bytes % U::BYTES);
    let bias = if U::SIGNED { W::SIGNED_BIAS } else { U::BIAS };
    let mut panels = [Panel::ZERO; PANELS];
    let mut weights = [const { Weights::ZERO }; AT_ONCE];
    for (rows, products) in rows.chunks(ROWS * row_bytes).zip(products.chunks_mut(ROWS * x_len)) {
        let n_rows = rows.len() / row_bytes;
        let mut sums = [[Sums::ZERO; PANELS]; ROWS];
        let sums = &mut sums[..n_rows.next_multiple_of(AT_ONCE)];
        for i in 0..whole + usize::from(rest > 0) {
            for (panel, columns) in panels.iter_mut().zip(columns.chunks_exact(WIDE)) {
                // SAFETY: AVX2 is there, says the caller.
                unsafe { panel.fill(columns, i, bias) };
            }
            for (r, sums) in sums.chunks_exact_mut(AT_ONCE).enumerate() {
                for (a, weights) in weights.iter_mut().enumerate() {
                    // Past the end the last row again.
                    let row = &rows[(r * AT_ONCE + a).min(n_rows - 1) * row_bytes..][..row_bytes];
                    // SAFETY: AVX2 and F16C are there, says the caller.
                    unsafe {
                        match row.get(i * U::BYTES..(i + 1) * U::BYTES) {
                            Some(slab) => weights.fill::<U>(slab, bias),
                            None => weights.fill::<U>(LastSlab::new(&row[i * U::BYTES..]).bytes(U::BYTES), bias),
                        }
                    }
                }
                // SAFETY: the instructions of `W` are there, says the caller.
                unsafe { add_slab::<W, U, AT_ONCE, PANELS>(&panels, &weights, bias, sums) };
            }
        }
        for (sums, products) in sums.iter().zip(products.chunks_exact_mut(x_len)) {
            for (sums, products) in sums.iter().zip(products[first..][..n].chunks_mut(WIDE)) {
                // SAFETY: the instructions of `W` are there, says the caller.
                let columns = unsafe { sum_columns::<W>(sums) };
                products.copy_from_slice(&columns[..products.len()]);
            }
        }
    }
}

/// A row's accumulators: lanes, for each column.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[f32; WIDE]; LANES]);

impl Sums {
    const ZERO: Sums = Sums([[0.0; WIDE]; LANES]);
}

/// The sum of the lanes of each column: as [`sum_lanes`] adds them.
///
/// # Safety
/// The processor runs the instructions of `W`.
#[inline(always)]
unsafe fn sum_columns<W: Wide>(sums: &Sums) -> [f32; WIDE] {
    let mut columns = [0.0; WIDE];
    // SAFETY: the instructions of `W` are there, says the caller.
    unsafe {
        let [a, b, c, d] = each!(i in 0, 1, 2, 3 => W::add_floats(W::floats(&sums.0[i]), W::floats(&sums.0[i + 4])));
        W::store(W::add_floats(W::add_floats(a, c), W::add_floats(b, d)), &mut columns);
    }
    columns
}

/// Adds what a slab of some rows makes.
///
/// # Safety
/// The processor runs the instructions of `W`.
#[inline(always)]
unsafe fn add_slab<W: Wide, U: Unpack, const AT_ONCE: usize, const PANELS: usize>(
    panels: &[Panel; PANELS],
    weights: &[Weights; AT_ONCE],
    bias: i16,
    sums: &mut [[Sums; PANELS]],
) {
    // SAFETY: the instructions of `W` are there, says the caller.
    unsafe {
        for g in 0..LANES {
            // Sums of codes times activations; of both halves where they have scales of their own.
            let mut ints = [[[W::all(0); 2]; PANELS]; AT_ONCE];
            if U::SCALES != Scales::Half && bias > 0 {
                for (p, panel) in panels.iter().enumerate() {
                    let start = W::ints(&panel.start[g]);
                    ints.iter_mut().for_each(|ints| ints[p][0] = start);
                }
            }
            let fours = GROUP / 4;
            for k in 0..fours {
                let half = if U::SCALES == Scales::Half { k / (fours / 2) } else { 0 };
                let mut q = [W::all(0); PANELS];
                for (q, panel) in q.iter_mut().zip(panels) {
                    *q = W::ints(&panel.q[g * fours + k]);
                }
                for (ints, weights) in ints.iter_mut().zip(weights) {
                    for (ints, q) in ints.iter_mut().zip(q) {
                        ints[half] = W::add_fours(ints[half], weights.codes[g * fours + k], q, U::SIGNED);
                    }
                }
            }
            for (p, panel) in panels.iter().enumerate() {
                let x_sums = W::ints(&panel.sums[g]);
                let x_d = W::floats(bytemuck::cast_ref(&panel.d[g]));
                for ((weights, ints), sums) in weights.iter().zip(&ints).zip(sums.iter_mut()) {
                    let [mut ints, other] = ints[p];
                    if U::SCALES == Scales::Half {
                        let (a, b) = (weights.scales[2 * g], weights.scales[2 * g + 1]);
                        ints = W::add(W::mul(ints, W::all(a)), W::mul(other, W::all(b)));
                        if bias > 0 {
                            ints = W::sub(ints, W::mul_pairs(x_sums, W::all(weights.biases[g])));
                        }
                    }
                    if U::SCALES == Scales::Group {
                        ints = W::mul(ints, W::all(weights.scales[g]));
                    }
                    let mut value = W::mul_floats(W::to_floats(ints), W::all_floats(weights.d[g]));
                    if U::MINIMA {
                        let minima = W::to_floats(W::mul_pairs(x_sums, W::all(weights.minima[g])));
                        value = W::add_floats(value, W::mul_floats(minima, W::all_floats(weights.m[g])));
                    }
                    let lane = &mut sums[p].0[g];
                    W::store(W::add_floats(W::floats(lane), W::mul_floats(value, x_d)), lane);
                }
            }
        }
    }
}

/// 16 weights of a format without blocks.
pub(super) trait Floats {
    /// Bytes of 16 weights.
    const BYTES: usize;

    /// # Safety
    /// The processor runs the instructions of `W`.
    unsafe fn load<W: Wide>(bytes: &[u8]) -> W::Floats;
}

pub(super) struct F32;

impl Floats for F32 {
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn load<W: Wide>(bytes: &[u8]) -> W::Floats {
        // SAFETY: the instructions of `W` are there, says the caller.
        unsafe { W::f32s(bytes.first_chunk().unwrap_or(&[0; 64])) }
    }
}

pub(super) struct F16;

impl Floats for F16 {
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load<W: Wide>(bytes: &[u8]) -> W::Floats {
        // SAFETY: the instructions of `W` are there, says the caller.
        unsafe { W::f16s(bytes.first_chunk().unwrap_or(&[0; 32])) }
    }
}

pub(super) struct Bf16;

impl Floats for Bf16 {
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load<W: Wide>(bytes: &[u8]) -> W::Floats {
        // SAFETY: the instructions of `W` are there, says the caller.
        unsafe { W::bf16s(bytes.first_chunk().unwrap_or(&[0; 32])) }
    }
}

/// The products of rows of floats with `COLUMNS` activation rows, from `first` on; `AT_ONCE` rows share their loads.
///
/// # Safety
/// The processor runs the instructions of `W`.
#[inline(always)]
pub(super) unsafe fn floats<W: Wide, F: Floats, const AT_ONCE: usize, const COLUMNS: usize>(
    rows: &[u8],
    row_bytes: usize,
    x: &Batch,
    first: usize,
    products: &mut [f32],
) {
    let x_len = x.len();
    let columns: [&[f32]; COLUMNS] = array::from_fn(|c| x.row(first + c).x);
    let whole = x.cols / FLOAT_LANES;
    for (rows, products) in rows.chunks(AT_ONCE * row_bytes).zip(products.chunks_mut(AT_ONCE * x_len)) {
        let n_rows = rows.len() / row_bytes;
        // Past the end the last row again.
        let rows: [&[u8]; AT_ONCE] = array::from_fn(|r| &rows[r.min(n_rows - 1) * row_bytes..][..row_bytes]);
        // SAFETY: the instructions of `W` are there, says the caller.
        unsafe {
            let mut sums = [[W::all_floats(0.0); COLUMNS]; AT_ONCE];
            for i in 0..whole {
                let at = i * FLOAT_LANES;
                for row in &rows {
                    prefetch_ahead(&row[i * F::BYTES], 1);
                }
                add_floats::<W, F, AT_ONCE, COLUMNS>(&rows, i * F::BYTES, &columns, at, &mut sums);
            }
            if whole * FLOAT_LANES < x.cols {
                // What is left, and zeros: they change no lane.
                let (mut left_rows, mut left_columns) =
                    ([[0; 4 * FLOAT_LANES]; AT_ONCE], [[0.0; FLOAT_LANES]; COLUMNS]);
                for (left, row) in left_rows.iter_mut().zip(rows) {
                    left.iter_mut().zip(&row[whole * F::BYTES..]).for_each(|(left, &byte)| *left = byte);
                }
                for (left, column) in left_columns.iter_mut().zip(columns) {
                    left.iter_mut().zip(&column[whole * FLOAT_LANES..]).for_each(|(left, &x)| *left = x);
                }
                let (rows, columns) = (left_rows.each_ref().map(|r| &r[..]), left_columns.each_ref().map(|c| &c[..]));
                add_floats::<W, F, AT_ONCE, COLUMNS>(&rows, 0, &columns, 0, &mut sums);
            }
            for (sums, products) in sums.iter().zip(products.chunks_exact_mut(x_len)) {
                for (sum, product) in sums.iter().zip(&mut products[first..]) {
                    let mut lanes = [0.0; FLOAT_LANES];
                    W::store(*sum, &mut lanes);
                    *product = sum_lanes(lanes);
                }
            }
        }
    }
}

/// Adds the products of 16 weights of each row, from byte `at` on, with 16 activations, from `x_at` on.
///
/// # Safety
/// The processor runs the instructions of `W`.
#[inline(always)]
unsafe fn add_floats<W: Wide, F: Floats, const AT_ONCE: usize, const COLUMNS: usize>(
    rows: &[&[u8]; AT_ONCE],
    at: usize,
    columns: &[&[f32]; COLUMNS],
    x_at: usize,
    sums: &mut [[W::Floats; COLUMNS]; AT_ONCE],
) {
    // SAFETY: the instructions of `W` are there, says the caller.
    unsafe {
        let mut x = [W::all_floats(0.0); COLUMNS];
        for (x, column) in x.iter_mut().zip(columns) {
            *x = W::floats(column[x_at..].first_chunk().unwrap_or(&[0.0; FLOAT_LANES]));
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            let w = F::load::<W>(&row[at..][..F::BYTES]);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = W::add_floats(*sum, W::mul_floats(w, x));
            }
        }
    }
}
