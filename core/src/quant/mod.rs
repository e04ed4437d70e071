//! Block formats: how weights are stored, and what their product with an activation row is.
//!
//! One file a format, the same names in each: `LEN` weights make a block of `BYTES` bytes, `dequantize` gives their
//! values, `multiply` makes the products of rows of blocks with activation rows: what a group of weights is, is said
//! there, and how it is multiplied, here. Those functions are the definition and the judge: a faster kernel must return
//! the same bits.
//!
//! # The arithmetic
//! An activation row is quantised once ([`quantize`]): groups of [`GROUP`] values share one f32 scale and become
//! int8. Group `g` of weights times group `g` of activations is a sum of integers, exact in whatever order it is
//! taken, block scales of the K formats included (all such sums stay below 2^24, so they are exact as f32, too). One
//! or two f32 multiplications turn it into a number, which is added to lane `g % LANES`; at the end the lanes are
//! added pairwise ([`sum_lanes`]). F32, F16 and BF16 weights multiply in f32: element `i` goes to lane
//! `i % FLOAT_LANES`. Nothing is contracted to a fused multiply-add.

mod arch;
mod bfloat16;
mod float16;
mod float32;
mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub mod trial;

use core::ops::Range;
use core::slice;

pub use arch::{Kernel, Lanes, LanesTask, Task, prefetch};

use crate::part::part;

/// Activations that share one scale.
pub const GROUP: usize = 32;
/// Activations whose int8 sum is kept for formats with a minimum: half a [`GROUP`].
pub const HALF: usize = 16;
/// f32 accumulators of an integer dot product.
pub const LANES: usize = 8;
/// f32 accumulators of a float dot product.
pub const FLOAT_LANES: usize = 16;
/// A group whose largest magnitude is below this is all zero: its scale could not be inverted.
const TINY: f32 = 1e-30;

/// How a row of weights is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it all; each format's file has its picture")]
#[allow(non_camel_case_types, reason = "the names people know")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// Calls `$f` of the format's own file.
macro_rules! of_format {
    ($format:expr, $f:ident ( $($arg:expr),* )) => {
        match $format {
            Format::F32 => float32::$f($($arg),*),
            Format::F16 => float16::$f($($arg),*),
            Format::BF16 => bfloat16::$f($($arg),*),
            Format::Q4_0 if cfg!(feature = "legacy") => q4_0::$f($($arg),*),
            Format::Q4_1 if cfg!(feature = "legacy") => q4_1::$f($($arg),*),
            Format::Q5_0 if cfg!(feature = "legacy") => q5_0::$f($($arg),*),
            Format::Q5_1 if cfg!(feature = "legacy") => q5_1::$f($($arg),*),
            Format::Q8_0 if cfg!(feature = "legacy") => q8_0::$f($($arg),*),
            Format::Q2_K if cfg!(feature = "k") => q2_k::$f($($arg),*),
            Format::Q3_K if cfg!(feature = "k") => q3_k::$f($($arg),*),
            Format::Q4_K if cfg!(feature = "k") => q4_k::$f($($arg),*),
            Format::Q5_K if cfg!(feature = "k") => q5_k::$f($($arg),*),
            Format::Q6_K if cfg!(feature = "k") => q6_k::$f($($arg),*),
            Format::IQ4_NL if cfg!(feature = "iq") => iq4_nl::$f($($arg),*),
            Format::IQ4_XS if cfg!(feature = "iq") => iq4_xs::$f($($arg),*),
            _ => debug_assert!(false, "Header::read lets no other format in"),
        }
    };
}

impl Format {
    /// Every format that can be multiplied.
    pub const ALL: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
    ];

    /// The format with this id in a GGUF file, if it can be multiplied.
    pub fn from_id(id: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Whether this build can multiply it: whether the feature of its family is on.
    pub const fn is_built(self) -> bool {
        use Format::*;
        match self {
            F32 | F16 | BF16 => true,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => cfg!(feature = "legacy"),
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => cfg!(feature = "k"),
            IQ4_NL | IQ4_XS => cfg!(feature = "iq"),
        }
    }

    /// Its id in a GGUF file.
    pub const fn id(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Q8_0 => 8,
            Format::Q2_K => 10,
            Format::Q3_K => 11,
            Format::Q4_K => 12,
            Format::Q5_K => 13,
            Format::Q6_K => 14,
            Format::IQ4_NL => 20,
            Format::IQ4_XS => 23,
            Format::BF16 => 30,
        }
    }

    /// Weights per block, and bytes per block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (float32::LEN, float32::BYTES),
            Format::F16 => (float16::LEN, float16::BYTES),
            Format::BF16 => (bfloat16::LEN, bfloat16::BYTES),
            Format::Q4_0 => (q4_0::LEN, q4_0::BYTES),
            Format::Q4_1 => (q4_1::LEN, q4_1::BYTES),
            Format::Q5_0 => (q5_0::LEN, q5_0::BYTES),
            Format::Q5_1 => (q5_1::LEN, q5_1::BYTES),
            Format::Q8_0 => (q8_0::LEN, q8_0::BYTES),
            Format::Q2_K => (q2_k::LEN, q2_k::BYTES),
            Format::Q3_K => (q3_k::LEN, q3_k::BYTES),
            Format::Q4_K => (q4_k::LEN, q4_k::BYTES),
            Format::Q5_K => (q5_k::LEN, q5_k::BYTES),
            Format::Q6_K => (q6_k::LEN, q6_k::BYTES),
            Format::IQ4_NL => (iq4_nl::LEN, iq4_nl::BYTES),
            Format::IQ4_XS => (iq4_xs::LEN, iq4_xs::BYTES),
        }
    }

    /// Bytes of a row of `cols` weights, which fill whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = self.block();
        cols / len * bytes
    }

    /// Whether weights multiply with f32 activations rather than with int8 ones.
    pub const fn is_float(self) -> bool {
        matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }
}

/// The weights of whole blocks, as f32: as many blocks as both `blocks` and `out` hold.
///
/// # Panics
/// In a debug build, if `out` is not as long as `blocks` make it, or the format is not built in.
pub fn dequantize(format: Format, blocks: &[u8], out: &mut [f32]) {
    let (len, bytes) = format.block();
    debug_assert_eq!(blocks.len() / bytes * len, out.len(), "one value out for each weight in");
    if format.is_built() {
        of_format!(format, dequantize(blocks, out));
    }
}

/// [`dequantize`] of the format whose one block's weights are `values`.
#[inline(always)]
fn dequantize_blocks<const LEN: usize, const BYTES: usize>(
    values: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
    blocks: &[u8],
    out: &mut [f32],
) {
    blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(block, out)| values(block, out));
}

/// The product of a row of weights with an activation row.
///
/// Integer formats read `x.q`, `x.d` and `x.sums`; float formats read `x.x`.
///
/// # Panics
/// As [`multiply`].
pub fn dot(format: Format, row: &[u8], x: &Activation) -> f32 {
    let cols = if format.is_float() { x.x.len() } else { x.q.len() };
    let Activation { x, q, d, sums } = *x;
    let x = Batch { cols, x, q, d, sums };
    let fits = fits(format, row, &x, 1);
    debug_assert!(fits, "a {format:?} row of {} bytes for {cols} activations", row.len());
    let mut product = f32::NAN;
    if fits {
        generic(format, row, &x, slice::from_mut(&mut product));
    }
    product
}

/// The products of `rows` with each of the B activation rows of `x`, as (rows, B).
///
/// The same bits as [`dot`] of each, whatever the kernel. Where shapes do not fit each other, or the format is not built
/// in, all are NaN: no token can be chosen from them.
///
/// # Panics
/// In a debug build, in that case.
pub fn multiply(kernel: Kernel, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    let fits = fits(format, rows, x, products.len()) && (format.is_float() || x.x.len() == x.q.len());
    debug_assert!(fits, "{format:?} rows of {} bytes for {} columns", rows.len(), x.cols);
    // The linker drops the kernels of formats that are not built in.
    if fits && format.is_built() {
        kernel.multiply(format, rows, x, products);
    } else {
        products.fill(f32::NAN);
    }
}

/// Whether these are whole rows, with as many products as they make with whole activation rows of the kind they need.
fn fits(format: Format, rows: &[u8], x: &Batch, products: usize) -> bool {
    let row_bytes = format.row_bytes(x.cols).max(1);
    let n = if format.is_float() { x.x.len() } else { x.q.len() };
    let quantised = x.d.len() == n / GROUP && x.sums.len() == n / HALF;
    let batch = n / x.cols.max(1);
    n == batch * x.cols
        && (format.is_float() || quantised)
        && rows.len().is_multiple_of(row_bytes)
        && products == rows.len() / row_bytes * batch
}

/// [`multiply`]: the definition.
fn generic(format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
    of_format!(format, multiply(rows, x, products));
}

/// B activation rows: as they are, and quantised in groups of [`GROUP`], unless they are to meet floats.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// How long a row is.
    pub cols: usize,
    /// The values (B, cols).
    pub x: &'a [f32],
    /// Int8 codes, -127..=127 (B, cols).
    pub q: &'a [i8],
    /// The scale of each group (B, cols / GROUP).
    pub d: &'a [f32],
    /// The sum of each half group's codes (B, cols / HALF).
    pub sums: &'a [i16],
}

impl<'a> Batch<'a> {
    /// How many rows there are (B).
    pub fn len(&self) -> usize {
        self.x.len() / self.cols.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// Row `b`; empty if there are fewer.
    ///
    /// # Panics
    /// In a debug build, if there are fewer.
    #[inline(always)]
    pub fn row(&self, b: usize) -> Activation<'a> {
        let cols = self.cols;
        Activation {
            x: part(self.x, b * cols..(b + 1) * cols),
            q: part(self.q, b * cols..(b + 1) * cols),
            d: part(self.d, b * (cols / GROUP)..(b + 1) * (cols / GROUP)),
            sums: part(self.sums, b * (cols / HALF)..(b + 1) * (cols / HALF)),
        }
    }
}

/// An activation row: as it is, and quantised in groups of [`GROUP`].
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// The values (cols).
    pub x: &'a [f32],
    /// Int8 codes, -127..=127 (cols).
    pub q: &'a [i8],
    /// The scale of each group: `x[i]` is about `q[i] * d[i / GROUP]` (cols / GROUP).
    pub d: &'a [f32],
    /// The sum of each half group's codes (cols / HALF).
    pub sums: &'a [i16],
}

/// Weights in a super-block of the K formats.
const SUPER: usize = 256;
/// Groups in a super-block.
const GROUPS: usize = SUPER / GROUP;

/// Quantises activations: per group, `d = max|x| / 127` and `q = x * 127 / max|x|`, rounded half to even.
///
/// A group whose largest magnitude is below 1e-30 becomes zero. A NaN anywhere makes its group's scale NaN, so that
/// it cannot vanish.
///
/// # Panics
/// In a debug build, if `x` is no whole number of groups, or an output is not as long as its doc in [`Activation`] says.
#[inline(always)]
pub fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    debug_assert!(x.len().is_multiple_of(GROUP) && q.len() == x.len());
    debug_assert!(d.len() == x.len() / GROUP && sums.len() == x.len() / HALF);
    let groups =
        x.as_chunks::<GROUP>().0.iter().zip(q.as_chunks_mut::<GROUP>().0).zip(d).zip(sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in groups {
        // Magnitudes compare as integers do, and NaN is above all of them.
        let max = f32::from_bits(x.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff)));
        *d = if max < TINY { 0.0 } else { max / 127.0 };
        if max < TINY || !max.is_finite() {
            q.fill(0);
            *sums = [0; 2];
            continue;
        }
        let inverse = 127.0 / max;
        // By halves: compilers make vector code of 16, but unroll 32.
        for ((sum, q), x) in sums.iter_mut().zip(q.as_chunks_mut::<HALF>().0).zip(x.as_chunks::<HALF>().0) {
            *q = x.map(|v| round_to_even(v * inverse));
            *sum = q.iter().map(|&q| i16::from(q)).sum();
        }
    }
}

/// The nearest whole number, half to even, for magnitudes up to 127.
#[inline(always)]
fn round_to_even(v: f32) -> i8 {
    // From 2^23 on an f32 has no fraction bits, so the addition itself rounds, in the default mode of every target; and
    // the sum's low bits are those of the integer.
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (v + SHIFT).to_bits() as i8
}

/// The sum of all lanes, added pairwise: lane `i` with lane `i + N / 2`, and so on down to one.
#[inline(always)]
pub fn sum_lanes<const N: usize>(mut lanes: [f32; N]) -> f32 {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        let (sums, others) = lanes.split_at_mut(half);
        sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += *other);
        half /= 2;
    }
    lanes[0]
}

/// The product of two f32 rows, element `i` in lane `i % FLOAT_LANES`: what float formats and attention use.
///
/// Elements past the shorter row's end do not count.
#[inline(always)]
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    dot_float(a, |a| a, b)
}

/// [`dot_f32`] of weights as they are decoded.
#[inline(always)]
fn dot_float<W: Copy>(w: &[W], decode: impl Fn(W) -> f32, x: &[f32]) -> f32 {
    let mut lanes = [0.0; FLOAT_LANES];
    let n = w.len().min(x.len());
    let ((w, last_w), (x, last_x)) = (w[..n].as_chunks::<FLOAT_LANES>(), x[..n].as_chunks::<FLOAT_LANES>());
    for (w, x) in w.iter().zip(x) {
        for ((lane, &w), x) in lanes.iter_mut().zip(w).zip(x) {
            *lane += decode(w) * x;
        }
    }
    for ((lane, &w), x) in lanes.iter_mut().zip(last_w).zip(last_x) {
        *lane += decode(w) * x;
    }
    sum_lanes(lanes)
}

/// The products of rows of floats, `BYTES` each, with activation rows.
#[inline(always)]
fn multiply_floats<const BYTES: usize>(
    weight: impl Fn([u8; BYTES]) -> f32,
    rows: &[u8],
    x: &Batch,
    products: &mut [f32],
) {
    let (batch, cols) = (x.len().max(1), x.cols.max(1));
    for (i, product) in products.iter_mut().enumerate() {
        let (row, b) = (i / batch * cols, i % batch * cols);
        *product = dot_float(part(rows.as_chunks().0, row..row + cols), &weight, part(x.x, b..b + cols));
    }
}

/// The N groups of a block, each with one scale (S = 1) or one a half (S = 2): weight `i` of group `g` is
/// `codes[g][i] · scales[g][i · S / GROUP] · d + minima[g][i / HALF] · m`. Where there are minima, no code is negative.
///
/// A block is unpacked at once, not group by group: so what its groups share bytes of is shifted by constants, and what
/// is packed for all of them is read once.
struct Groups<const N: usize, const S: usize> {
    codes: [[i8; GROUP]; N],
    scales: [[i8; S]; N],
    /// The bits of an f16, as `m` is.
    d: u16,
    minima: [[u8; 2]; N],
    m: u16,
}

impl<const N: usize, const S: usize> Groups<N, S> {
    /// Of a format without integer scales and minima.
    #[inline(always)]
    fn new(codes: [[i8; GROUP]; N], d: u16) -> Self {
        Groups { codes, scales: [[1; S]; N], d, minima: [[0; 2]; N], m: 0 }
    }

    /// The sum of each group's products with one of activations, for compilers that have vectors.
    #[inline(always)]
    fn sums<const MINIMA: bool>(&self, q: &[[i16; GROUP]; N]) -> [i32; N] {
        // SSE2 extends signs in two steps, the first of which waits for what its register held before. So a code becomes
        // the upper byte of two, above a zero, and the sum is shifted back.
        let shift = if MINIMA { 0 } else { 8 };
        let wide = |code: i8| (u16::from(code as u8) << shift) as i16;
        let mut sums = [0; N];
        for (((sum, codes), scales), q) in sums.iter_mut().zip(&self.codes).zip(&self.scales).zip(q) {
            // By halves: compilers make vector code of 16 products, but unroll 32.
            let half = |i: usize| -> i32 {
                let (codes, q) = (&codes[i * HALF..][..HALF], &q[i * HALF..][..HALF]);
                codes.iter().zip(q).map(|(&code, &q)| i32::from(wide(code)) * i32::from(q)).sum()
            };
            let scales = scales.map(i32::from);
            *sum = match S {
                1 => ((half(0) + half(1)) >> shift) * scales[0],
                _ => (half(0) >> shift) * scales[0] + (half(1) >> shift) * scales[S - 1],
            }
        }
        sums
    }

    /// Adds each group's product with one of activations to `lanes`, from `first` on.
    #[inline(always)]
    fn multiply<const MINIMA: bool>(
        &self,
        q: &[[i8; GROUP]; N],
        x_d: &[f32; N],
        sums: &[[i16; 2]; N],
        first: usize,
        lanes: &mut [f32; LANES],
    ) {
        let mut offsets = [0.0; N];
        if MINIMA {
            let m = scale(self.m);
            for ((offset, &minima), &sums) in offsets.iter_mut().zip(&self.minima).zip(sums) {
                *offset = minimum(minima, sums) as f32 * m;
            }
        }
        let mut ints = [0; N];
        for (((int, codes), scales), q) in ints.iter_mut().zip(&self.codes).zip(&self.scales).zip(q) {
            let half = |i: usize| -> i32 {
                let (codes, q) = (&codes[i * HALF..][..HALF], &q[i * HALF..][..HALF]);
                codes.iter().zip(q).map(|(&code, &q)| i32::from(code) * i32::from(q)).sum()
            };
            *int = half(0) * i32::from(scales[0]) + half(1) * i32::from(scales[S - 1]);
        }
        let d = scale(self.d);
        for g in 0..N {
            let mut product = ints[g] as f32 * d;
            if MINIMA {
                product += offsets[g];
            }
            lanes[(first + g) % LANES] += product * x_d[g];
        }
    }
}

/// The sum of minima times those of activations: exact.
#[inline(always)]
fn minimum(minima: [u8; 2], sums: [i16; 2]) -> i32 {
    i32::from(minima[0]) * i32::from(sums[0]) + i32::from(minima[1]) * i32::from(sums[1])
}

/// The products of rows of blocks, each of `N` groups in `BYTES` bytes, with activation rows.
///
/// `unpack` unpacks a block; `MINIMA` tells whether its groups have some.
#[inline(always)]
fn multiply_groups<const N: usize, const S: usize, const BYTES: usize, const MINIMA: bool>(
    unpack: impl Fn(&[u8; BYTES]) -> Groups<N, S> + Copy,
    rows: &[u8],
    x: &Batch,
    products: &mut [f32],
) {
    let (batch, blocks) = ((x.q.len() / x.cols.max(1)).max(1), (x.cols / (N * GROUP)).max(1));
    let rows = rows.as_chunks().0;
    if COLUMNS == 1 || batch == 1 && !VECTORS {
        for (products, row) in products.chunks_exact_mut(batch).zip(rows.chunks_exact(blocks)) {
            for (b, product) in products.iter_mut().enumerate() {
                *product = dot_groups::<N, S, BYTES, MINIMA>(unpack, row, x, b);
            }
        }
        return;
    }
    let at_once = |n: usize| n.saturating_mul(ROWS).max(1);
    for (products, rows) in products.chunks_mut(at_once(batch)).zip(rows.chunks(at_once(blocks))) {
        for first in (0..batch).step_by(COLUMNS) {
            match batch - first {
                1 => multiply_tile::<N, S, BYTES, MINIMA, 1>(unpack, rows, x, first, products),
                _ => multiply_tile::<N, S, BYTES, MINIMA, COLUMNS>(unpack, rows, x, first, products),
            }
        }
    }
}

/// The product of a row with activation row `b`, group by group.
#[inline(always)]
fn dot_groups<const N: usize, const S: usize, const BYTES: usize, const MINIMA: bool>(
    unpack: impl Fn(&[u8; BYTES]) -> Groups<N, S> + Copy,
    row: &[[u8; BYTES]],
    x: &Batch,
    b: usize,
) -> f32 {
    let first = b * (x.cols / GROUP);
    let (q, d, sums) = (part(x.q.as_chunks().0, first..), part(x.d, first..), part(x.sums.as_chunks().0, first..));
    let x = q.as_chunks().0.iter().zip(d.as_chunks().0).zip(sums.as_chunks().0);
    let mut lanes = [0.0; LANES];
    for (i, (block, ((q, d), sums))) in row.iter().zip(x).enumerate() {
        unpack(block).multiply::<MINIMA>(q, d, sums, i * N, &mut lanes);
    }
    sum_lanes(lanes)
}

/// Whether compilers have vectors for what stands in arrays.
const VECTORS: bool = cfg!(any(target_feature = "sse2", target_feature = "neon"));
/// Activation rows that groups are unpacked for at once: one on microcontrollers, which have no stack for more.
const COLUMNS: usize = if cfg!(target_pointer_width = "64") { 8 } else { 1 };
/// Weight rows that activations are widened for at once.
const ROWS: usize = if VECTORS { 16 } else { 4 };

/// The products of at most [`ROWS`] rows with at most C activation rows, from `first` on, as many groups as there are
/// lanes at a time.
#[inline(always)]
fn multiply_tile<const N: usize, const S: usize, const BYTES: usize, const MINIMA: bool, const C: usize>(
    unpack: impl Fn(&[u8; BYTES]) -> Groups<N, S> + Copy,
    rows: &[[u8; BYTES]],
    x: &Batch,
    first: usize,
    products: &mut [f32],
) {
    let (n_groups, blocks, batch) = (x.cols / GROUP, (x.cols / (N * GROUP)).max(1), x.q.len() / x.cols.max(1));
    let n = C.min(batch - first);
    let mut slab = Slab::ZERO;
    let mut columns = [Column::ZERO; C];
    let mut lanes = [[[0.0; LANES]; C]; ROWS];
    let mut last;
    for g in (0..n_groups).step_by(LANES) {
        let end = n_groups.min(g + LANES);
        for (b, column) in columns.iter_mut().enumerate().take(n) {
            let at = (first + b) * n_groups;
            column.fill::<MINIMA>(x, at + g..at + end);
        }
        for (row, lanes) in rows.chunks_exact(blocks).zip(&mut lanes) {
            let mut run = part(row, g / N..end / N);
            if run.len() < LANES / N {
                last = [[0; BYTES]; LANES];
                last.iter_mut().zip(run).for_each(|(last, block)| *last = *block);
                run = &last[..LANES / N];
            }
            if C == 1 {
                arch::prefetch_ahead(&run[0], LANES / N * BYTES);
                let (mut factors, mut sums) = (Factors::ZERO, [0; LANES]);
                // Four blocks at a time: compilers do not unroll eight, and then what they sum up waits in memory.
                let step = (4 / N).max(1);
                for first in (0..LANES / N).step_by(step) {
                    for i in first..first + step {
                        let of_block = columns[0].q.as_chunks().0.get(i).zip(sums.as_chunks_mut().0.get_mut(i));
                        if let Some((block, (q, sums))) = run.get(i).zip(of_block) {
                            let groups = unpack(block);
                            factors.put::<S, MINIMA>(i, &groups);
                            *sums = groups.sums::<MINIMA>(q);
                        }
                    }
                }
                factors.decode().add::<MINIMA>(sums, &columns[0], &mut lanes[0]);
                continue;
            }
            let factors = slab.fill::<N, S, BYTES, MINIMA>(unpack, run);
            for (column, lanes) in columns.iter().zip(lanes).take(n) {
                factors.add::<MINIMA>(slab.sums(column), column, lanes);
            }
        }
    }
    for (products, lanes) in products.chunks_exact_mut(batch.max(1)).zip(lanes) {
        products.iter_mut().skip(first).zip(lanes).take(n).for_each(|(product, lanes)| *product = sum_lanes(lanes));
    }
}

/// As many groups of an activation row as there are lanes; behind its end, zeros.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Column {
    /// Codes, as wide as those they meet.
    q: [[i16; GROUP]; LANES],
    d: [f32; LANES],
    sums: [[i16; 2]; LANES],
}

impl Column {
    const ZERO: Column = Column { q: [[0; GROUP]; LANES], d: [0.0; LANES], sums: [[0; 2]; LANES] };

    /// Takes these groups of all rows.
    #[inline(always)]
    fn fill<const MINIMA: bool>(&mut self, x: &Batch, groups: Range<usize>) {
        if groups.len() < LANES {
            *self = Column::ZERO;
        }
        for (to, q) in self.q.iter_mut().zip(part(x.q.as_chunks::<GROUP>().0, groups.clone())) {
            for (to, q) in to.as_chunks_mut::<HALF>().0.iter_mut().zip(q.as_chunks::<HALF>().0) {
                *to = q.map(i16::from);
            }
        }
        if MINIMA {
            self.sums.iter_mut().zip(part(x.sums.as_chunks().0, groups.clone())).for_each(|(to, &sums)| *to = sums);
        }
        self.d.iter_mut().zip(part(x.d, groups)).for_each(|(to, &d)| *to = d);
    }
}

/// The codes of as many groups as there are lanes, each times its integer scale.
#[repr(align(16))]
struct Slab([[i16; GROUP]; LANES]);

impl Slab {
    const ZERO: Slab = Slab([[0; GROUP]; LANES]);

    /// Takes the groups of these blocks, and returns their factors.
    #[inline(always)]
    fn fill<const N: usize, const S: usize, const BYTES: usize, const MINIMA: bool>(
        &mut self,
        unpack: impl Fn(&[u8; BYTES]) -> Groups<N, S>,
        run: &[[u8; BYTES]],
    ) -> Factors<f32, N> {
        let mut factors = Factors::ZERO;
        for (i, block) in run.iter().enumerate().take(LANES / N) {
            let groups = unpack(block);
            factors.put::<S, MINIMA>(i, &groups);
            for ((to, codes), scales) in self.0[i * N..].iter_mut().zip(&groups.codes).zip(&groups.scales) {
                let (to, codes) = (to.as_chunks_mut::<HALF>().0, codes.as_chunks::<HALF>().0);
                for ((to, codes), scale) in to.iter_mut().zip(codes).zip([scales[0], scales[S - 1]]) {
                    to.iter_mut().zip(codes).for_each(|(to, &code)| *to = i16::from(code) * i16::from(scale));
                }
            }
        }
        factors.decode()
    }

    /// The sum of each group's products with one of activations.
    ///
    /// A function of its own: where it is inlined, compilers widen the codes before they go through the columns.
    #[inline(never)]
    fn sums(&self, x: &Column) -> [i32; LANES] {
        let mut sums = [0; LANES];
        for ((sum, codes), q) in sums.iter_mut().zip(&self.0).zip(&x.q) {
            *sum = codes.iter().zip(q).map(|(&code, &q)| i32::from(code) * i32::from(q)).sum();
        }
        sums
    }
}

/// What the sums of as many groups as there are lanes are multiplied with; that of block `i` is number `i`.
struct Factors<T, const N: usize> {
    d: [T; LANES],
    minima: [[u8; 2]; LANES],
    m: [T; LANES],
}

impl<const N: usize> Factors<u16, N> {
    const ZERO: Self = Factors { d: [0; LANES], minima: [[0; 2]; LANES], m: [0; LANES] };

    /// Takes those of block `i`.
    #[inline(always)]
    fn put<const S: usize, const MINIMA: bool>(&mut self, i: usize, groups: &Groups<N, S>) {
        self.d[i] = groups.d;
        if MINIMA {
            self.m[i] = groups.m;
            for g in 0..N {
                self.minima[i * N + g] = groups.minima[g];
            }
        }
    }

    /// The f16 as f32: in vectors, if there are several.
    #[inline(always)]
    fn decode(self) -> Factors<f32, N> {
        let decode = |halves: [u16; LANES]| match N {
            1 => halves.map(scale),
            _ => [scale(halves[0]); LANES],
        };
        Factors { d: decode(self.d), minima: self.minima, m: decode(self.m) }
    }
}

impl<const N: usize> Factors<f32, N> {
    /// Adds each group's product with one of activations to its lane.
    #[inline(always)]
    fn add<const MINIMA: bool>(&self, sums: [i32; LANES], x: &Column, lanes: &mut [f32; LANES]) {
        for g in 0..LANES {
            let mut product = sums[g] as f32 * self.d[g / N];
            if MINIMA {
                product += minimum(self.minima[g], x.sums[g]) as f32 * self.m[g / N];
            }
            lanes[g] += product * x.d[g];
        }
    }
}

/// Unsigned codes less `bias`.
#[inline(always)]
fn less(codes: [u8; GROUP], bias: i8) -> [i8; GROUP] {
    let mut out = [0; GROUP];
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = code as i8 - bias);
    out
}

/// The bits of the f16 at `at`.
#[inline(always)]
fn half(block: &[u8], at: Range<usize>) -> u16 {
    let mut bytes = [0; 2];
    bytes.copy_from_slice(&block[at]);
    u16::from_le_bytes(bytes)
}

/// The f16 of these bits, as f32: exact.
///
/// As [`half_to_f32`], but no f32 below 2^-126 comes up: scales of small weights often have no exponent, and x86
/// processors take some 100 cycles to multiply such an f32.
#[inline]
fn scale(half: u16) -> f32 {
    let bits = u32::from(half);
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
    // Infinities and NaNs have all bits of the exponent set; without any, it is a multiple of 2^-24.
    let bias = if magnitude < 0x7c00 { 127 - 15 } else { 255 - 31 };
    let normal = (magnitude << 13) + (bias << 23);
    let multiple = magnitude as f32 / (1 << 24) as f32;
    f32::from_bits(sign | if magnitude < 0x400 { multiple.to_bits() } else { normal })
}

/// The f16 of these bits, as f32: exact, and without branches, so that compilers make vector code of many.
#[inline(always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    /// 2^112: by this the biases of the exponents differ.
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(bits);
    let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    // Infinities and NaNs have all bits of the exponent set.
    let exponent = if magnitude < 0x1f << 23 { 0 } else { 0xff << 23 };
    f32::from_bits((f32::from_bits(magnitude) * BIAS).to_bits() | exponent | sign)
}

/// 16 bytes hold 32 nibbles: weight `i` is byte `i`'s low one, weight `i + 16` its high one.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let mut out = [0; GROUP];
    let (low, high) = out.split_at_mut(HALF);
    // One after the other: compilers make vector code of either.
    low.iter_mut().zip(bytes).for_each(|(low, byte)| *low = byte & 15);
    high.iter_mut().zip(bytes).for_each(|(high, byte)| *high = byte >> 4);
    out
}
