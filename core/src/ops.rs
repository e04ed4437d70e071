//! The operations of a transformer over rows of f32, weights streamed from a [`Source`].
//!
//! Shapes stand beside the names, `(B, cols)` is B rows one after the other. Each function that streams a tensor reads
//! it once, in order, in chunks of whole rows, and hints at the next chunk before it asks for one: after its last chunk
//! that is the first one of the tensor `next`, so that a source with two buffers is never idle between tensors.

use core::fmt;

use crate::exp::exp;
use crate::quant::{self, Batch, FLOAT_LANES, Format, GROUP, HALF, Kernel, sum_lanes};
use crate::source::{Cause, Error, Source};

/// Rows whose products are handed on together, of as many positions as a pass can have; of fewer, more rows.
pub const ROWS: usize = 64;

/// A matrix in the file, or a vector, which has one column.
///
/// Holding one means: its rows fill whole blocks and lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// How its rows are stored.
    pub format: Format,
    /// Offset of its first row, from the start of the file.
    pub at: u64,
    /// How many rows it has: outputs.
    pub rows: usize,
    /// How long a row is: inputs.
    pub cols: usize,
}

impl Matrix {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.rows as u64 * self.row_bytes() as u64
    }

    /// How many rows from `first` on the source can lend at once, as offset and bytes.
    fn chunk<S: Source>(&self, src: &S, first: usize) -> (u64, usize) {
        let row_bytes = self.row_bytes();
        let at = self.at + first as u64 * row_bytes as u64;
        let rows = src.lendable(at, (self.rows - first).saturating_mul(row_bytes)) / row_bytes;
        // Even a row that lies in two places comes whole, if the source can lend as much.
        (at, rows.max((src.max_chunk() / row_bytes).min(1)) * row_bytes)
    }

    /// Lends the rows to `f` in order, as many at a time as the source can: `f(first row, their bytes)`.
    fn stream<S: Source>(
        &self,
        src: &mut S,
        next: Option<&Matrix>,
        mut f: impl FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        let row_bytes = self.row_bytes();
        let mut first = 0;
        while first < self.rows {
            let (at, len) = self.chunk(src, first);
            if len == 0 {
                let cause = Cause::ChunkTooLong(src.max_chunk());
                return Err(Error { offset: at, len: row_bytes, cause });
            }
            let after = first + len / row_bytes;
            let hint =
                if after < self.rows { Some(self.chunk(src, after)) } else { next.map(|next| next.chunk(src, 0)) };
            if let Some((at, len)) = hint {
                src.prefetch(at, len);
            }
            f(first, src.chunk(at, len)?);
            first = after;
        }
        Ok(())
    }
}

/// Who multiplies: the kernel, and how many share the work. The bits are the same for all.
#[derive(Debug, Clone, Copy)]
pub struct Engine<'a> {
    /// What multiplies a row.
    pub kernel: Kernel,
    /// Who shares the rows.
    pub team: &'a dyn Team,
}

impl Default for Engine<'_> {
    /// The best kernel, alone.
    fn default() -> Self {
        Engine { kernel: Kernel::best(), team: &Alone }
    }
}

/// A way to do two things at the same time: a pool of threads, a second core.
pub trait Team: fmt::Debug + Sync {
    /// Into how many parts work is best cut.
    fn parts(&self) -> usize;

    /// Calls both and returns when both are done.
    fn join(&self, a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send));
}

/// One core, which does one thing after the other.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Team for Alone {
    fn parts(&self) -> usize {
        1
    }

    fn join(&self, a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
        a();
        b();
    }
}

impl Engine<'_> {
    /// [`quant::multiply`], rows shared out in `parts`.
    fn multiply(&self, parts: usize, format: Format, rows: &[u8], x: &Batch, products: &mut [f32]) {
        let n_rows = products.len() / x.len();
        if parts < 2 || n_rows < 2 {
            return quant::multiply(self.kernel, format, rows, x, products);
        }
        let first = n_rows * (parts / 2) / parts;
        let (rows, other_rows) = rows.split_at(first * format.row_bytes(x.cols));
        let (products, other_products) = products.split_at_mut(first * x.len());
        self.team.join(&mut || self.multiply(parts / 2, format, rows, x, products), &mut || {
            self.multiply(parts - parts / 2, format, other_rows, x, other_products)
        });
    }
}

/// Who multiplies, and the memory it takes, for up to B rows of up to `max_cols`.
#[derive(Debug)]
pub struct Scratch<'a> {
    /// Who multiplies.
    pub engine: Engine<'a>,
    /// Activations as int8 codes (B, max_cols).
    pub q: &'a mut [i8],
    /// Their scales (B, max_cols / GROUP).
    pub d: &'a mut [f32],
    /// Sums of half groups (B, max_cols / HALF).
    pub sums: &'a mut [i16],
    /// Products on their way to a sink (ROWS, B).
    pub products: &'a mut [f32],
}

/// Multiplies every row of `w` with each of the B rows of `x` (B, w.cols), reading `w` once.
///
/// Products come as `sink(first row, products)`, as (rows, B), rows in order: as many rows at once as find room in
/// `scratch.products`. Activations are quantised into `scratch` unless `w` holds floats.
///
/// # Errors
/// The source failed, or cannot lend a whole row.
///
/// # Panics
/// `scratch` is too small for `x`.
pub fn multiply<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: Option<&Matrix>,
    x: &[f32],
    scratch: &mut Scratch,
    mut sink: impl FnMut(usize, &[f32]),
) -> Result<(), Error> {
    if x.is_empty() {
        return Ok(());
    }
    let n = x.len();
    let Scratch { engine, q, d, sums, products } = scratch;
    let (q, d, sums) = (&mut q[..n], &mut d[..n / GROUP], &mut sums[..n / HALF]);
    if !w.format.is_float() {
        engine.kernel.run(|| quant::quantize(x, q, d, sums));
    }
    let x = Batch { cols: w.cols, x, q, d, sums };
    let (row_bytes, at_once) = (w.row_bytes(), products.len() / x.len());
    w.stream(src, next, |first, rows| {
        for (i, rows) in rows.chunks(at_once * row_bytes).enumerate() {
            let products = &mut products[..rows.len() / row_bytes * x.len()];
            let parts = engine.team.parts().min(products.len() * w.cols / engine.kernel.least_shared());
            engine.multiply(parts, w.format, rows, &x, products);
            sink(first + i * at_once, products);
        }
    })
}

/// The matrix product `y = w · x` for each of the B rows of `x` (B, w.cols) and `y` (B, w.rows).
///
/// # Errors
/// As [`multiply`].
///
/// # Panics
/// `y` is too short, or `scratch` too small.
pub fn matmul<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: Option<&Matrix>,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let batch = x.len() / w.cols;
    multiply(src, w, next, x, scratch, |first, products| {
        for (b, y) in y.chunks_exact_mut(w.rows).enumerate().take(batch) {
            let products = products.iter().skip(b).step_by(batch);
            y[first..].iter_mut().zip(products).for_each(|(y, &product)| *y = product);
        }
    })
}

/// One row of `w`, dequantised, such as a token's embedding: reads that row and nothing else.
///
/// # Errors
/// The source failed, or cannot lend a whole row.
///
/// # Panics
/// `out` is not as long as a row.
pub fn row<S: Source>(src: &mut S, w: &Matrix, row: usize, out: &mut [f32]) -> Result<(), Error> {
    let bytes = w.row_bytes();
    quant::dequantize(w.format, src.chunk(w.at + row as u64 * bytes as u64, bytes)?, out);
    Ok(())
}

/// Calls `f(value, element)` for each value of vector `w`, streamed, and its element in every row of `y` (B, w.rows).
fn for_elements<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: Option<&Matrix>,
    y: &mut [f32],
    f: impl Fn(f32, &mut f32),
) -> Result<(), Error> {
    let bytes = w.row_bytes();
    w.stream(src, next, |first, values| {
        let mut buffer = [0.0; ROWS];
        for (i, values) in values.chunks(ROWS * bytes).enumerate() {
            let buffer = &mut buffer[..values.len() / bytes];
            quant::dequantize(w.format, values, buffer);
            for y in y.chunks_exact_mut(w.rows) {
                let y = &mut y[first + i * ROWS..][..buffer.len()];
                y.iter_mut().zip(buffer.iter()).for_each(|(y, &value)| f(value, y));
            }
        }
    })
}

/// Adds vector `w` to every row of `y` (B, w.rows).
///
/// # Errors
/// The source failed.
pub fn add_bias<S: Source>(src: &mut S, w: &Matrix, next: Option<&Matrix>, y: &mut [f32]) -> Result<(), Error> {
    for_elements(src, w, next, y, |value, y| *y += value)
}

/// Normalises every row of `x` (B, n) to mean 0 and variance 1, then scales by `weight` (n) and adds `bias` (n).
///
/// Source: Ba et al., Layer Normalization, 2016; `epsilon` is added to the variance.
///
/// # Errors
/// The source failed.
pub fn layer_norm<S: Source>(
    src: &mut S,
    kernel: Kernel,
    weight: &Matrix,
    bias: &Matrix,
    next: Option<&Matrix>,
    epsilon: f32,
    x: &mut [f32],
) -> Result<(), Error> {
    kernel.run(|| x.chunks_exact_mut(weight.rows).for_each(|x| normalise(epsilon, x)));
    for_elements(src, weight, Some(bias), x, |value, x| *x *= value)?;
    add_bias(src, bias, next, x)
}

/// Gives a row mean 0 and variance 1.
#[inline(always)]
fn normalise(epsilon: f32, x: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum(x, |x| x) / n;
    x.iter_mut().for_each(|x| *x -= mean);
    let variance = sum(x, |x| x * x) / n;
    let scale = 1.0 / libm::sqrtf(variance + epsilon);
    x.iter_mut().for_each(|x| *x *= scale);
}

/// The sum of `f` of each value, element `i` in lane `i % FLOAT_LANES`.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; FLOAT_LANES];
    let (chunks, rest) = x.as_chunks::<FLOAT_LANES>();
    for x in chunks {
        lanes.iter_mut().zip(x).for_each(|(lane, &x)| *lane += f(x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += f(x));
    sum_lanes(lanes)
}

/// GELU of each value, the tanh form: `x/2 · (1 + tanh(u))` with `u = √(2/π) · (x + 0.044715 x³)`.
///
/// Computed as `x / (1 + exp(-2u))`, which is the same and nowhere subtracts what is nearly equal. Source: Hendrycks
/// and Gimpel, 2016; GPT-2's `gelu_new`.
#[inline(always)]
pub fn gelu(x: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    for x in x {
        let twice_u = TWICE_SQRT_2_OVER_PI * *x * (1.0 + 0.044_715 * *x * *x);
        *x /= 1.0 + exp(-twice_u);
    }
}

/// The largest value; NaNs are passed over.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let larger = |max, x| if x > max { x } else { max };
    let mut lanes = [f32::NEG_INFINITY; FLOAT_LANES];
    let (chunks, rest) = x.as_chunks::<FLOAT_LANES>();
    for x in chunks {
        lanes.iter_mut().zip(x).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |max, &x| larger(max, x))
}

/// Turns scores into probabilities: `exp(x - max) / Σ exp(x - max)`.
#[inline(always)]
pub fn softmax(x: &mut [f32]) {
    let max = max(x);
    x.iter_mut().for_each(|x| *x = exp(*x - max));
    let scale = 1.0 / sum(x, |x| x);
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// A matrix of f32 at the start of its own file.
    fn matrix(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f32) -> (Matrix, Vec<u8>) {
        let bytes = (0..rows * cols).flat_map(|i| value(i / cols, i % cols).to_le_bytes()).collect();
        (Matrix { format: Format::F32, at: 0, rows, cols }, bytes)
    }

    /// Lends at most `max` bytes at a time.
    struct Small<'a>(&'a [u8], usize);

    impl Source for Small<'_> {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn max_chunk(&self) -> usize {
            self.1
        }
        fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
            assert!(len <= self.1);
            Ok(&self.0[offset as usize..][..len])
        }
    }

    #[test]
    fn products_are_the_same_from_any_chunk_size() {
        let (w, file) = matrix(150, 32, |r, c| ((r * 31 + c * 7) % 13) as f32 - 6.0);
        let x: Vec<f32> = (0..3 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
        let multiply = |max| {
            let (mut q, mut d, mut sums) = (vec![0; 96], vec![0.0; 3], vec![0; 6]);
            let mut products = vec![0.0; 3 * ROWS];
            let mut scratch =
                Scratch { engine: Engine::default(), q: &mut q, d: &mut d, sums: &mut sums, products: &mut products };
            let mut y = vec![0.0; 3 * 150];
            matmul(&mut Small(&file, max), &w, None, &x, &mut y, &mut scratch).map(|()| y)
        };
        let whole = multiply(usize::MAX).unwrap();
        for (i, y) in whole.iter().enumerate() {
            let (b, r) = (i / 150, i % 150);
            let exact: f64 =
                (0..32).map(|c| f64::from(((r * 31 + c * 7) % 13) as f32 - 6.0) * f64::from(x[b * 32 + c])).sum();
            assert!((f64::from(*y) - exact).abs() < 1e-4, "row {r} of {b}: {y} is not {exact}");
        }
        for max in [128, 129, 1000, 128 * 70] {
            assert_eq!(multiply(max).unwrap(), whole);
        }
        assert_eq!(multiply(127).unwrap_err().cause, Cause::ChunkTooLong(127));
    }

    #[test]
    fn layer_norm_gives_mean_0_and_variance_1() {
        let (weight, mut file) = matrix(64, 1, |_, _| 2.0);
        file.extend((0..64).flat_map(|_| 3f32.to_le_bytes()));
        let bias = Matrix { at: 64 * 4, ..weight };
        let mut x: Vec<f32> = (0..128).map(|i| (i as f32 * 1.7).cos() * 5.0 + 100.0).collect();
        layer_norm(&mut &file[..], Kernel::best(), &weight, &bias, None, 1e-5, &mut x).unwrap();
        for x in x.chunks(64) {
            let mean = x.iter().sum::<f32>() / 64.0;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / 64.0;
            assert!((mean - 3.0).abs() < 1e-3 && (variance - 4.0).abs() < 1e-2, "{mean} {variance}");
        }
    }

    #[test]
    fn gelu_and_softmax_give_the_known_values() {
        let mut x = [-10.0, -1.0, 0.0, 0.5, 1.0, 10.0];
        gelu(&mut x);
        // torch.nn.functional.gelu(x, approximate="tanh")
        for (x, known) in x.iter().zip([0.0, -0.158_808, 0.0, 0.345_714, 0.841_192, 10.0]) {
            assert!((x - known).abs() < 1e-6, "{x} is not {known}");
        }
        let mut x = [1001.0, 1002.0, 1003.0, 1003.0];
        softmax(&mut x);
        for (x, known) in x.iter().zip([0.054_064, 0.146_963, 0.399_487, 0.399_487]) {
            assert!((x - known).abs() < 1e-6, "{x} is not {known}");
        }
    }
}
