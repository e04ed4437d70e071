//! The operations of a transformer over rows of f32, weights streamed from a [`Source`].
//!
//! Shapes stand beside the names, `(B, cols)` is B rows one after the other. Each function that streams a tensor reads
//! it once, in order, in chunks of whole rows, and hints at the next chunk before it asks for one: after its last chunk
//! that is the first one of the tensor `next`, so that a source with two buffers is never idle between tensors.

use crate::quant::{self, Activation, FLOAT_LANES, Format, GROUP, HALF, sum_lanes};
use crate::source::{Cause, Error, Source};

/// Rows whose products are handed on together.
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

/// Where [`multiply`] keeps its activations as int8, for up to B rows of up to `max_cols`.
#[derive(Debug)]
pub struct Quantised<'a> {
    /// Codes (B, max_cols).
    pub q: &'a mut [i8],
    /// Scales (B, max_cols / GROUP).
    pub d: &'a mut [f32],
    /// Sums of half groups (B, max_cols / HALF).
    pub sums: &'a mut [i16],
}

/// Multiplies every row of `w` with each of the B rows of `x` (B, w.cols), reading `w` once.
///
/// Products come as `sink(b, first row, products)`, at most [`ROWS`] at a time, rows in order for each `b`.
/// Activations are quantised into `scratch` unless `w` holds floats.
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
    scratch: &mut Quantised,
    mut sink: impl FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    let n = x.len();
    let (q, d, sums) = (&mut scratch.q[..n], &mut scratch.d[..n / GROUP], &mut scratch.sums[..n / HALF]);
    if !w.format.is_float() {
        quant::quantize(x, q, d, sums);
    }
    let activation = |b: usize| Activation {
        x: &x[b * w.cols..][..w.cols],
        q: &q[b * w.cols..][..w.cols],
        d: &d[b * (w.cols / GROUP)..][..w.cols / GROUP],
        sums: &sums[b * (w.cols / HALF)..][..w.cols / HALF],
    };
    let row_bytes = w.row_bytes();
    w.stream(src, next, |first, rows| {
        let mut products = [0.0; ROWS];
        for (i, rows) in rows.chunks(ROWS * row_bytes).enumerate() {
            for b in 0..n / w.cols {
                let x = activation(b);
                let products = &mut products[..rows.len() / row_bytes];
                for (product, row) in products.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                    *product = quant::dot(w.format, row, &x);
                }
                sink(b, first + i * ROWS, products);
            }
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
    scratch: &mut Quantised,
) -> Result<(), Error> {
    multiply(src, w, next, x, scratch, |b, first, products| {
        y[b * w.rows + first..][..products.len()].copy_from_slice(products);
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
    weight: &Matrix,
    bias: &Matrix,
    next: Option<&Matrix>,
    epsilon: f32,
    x: &mut [f32],
) -> Result<(), Error> {
    let n = weight.rows as f32;
    for x in x.chunks_exact_mut(weight.rows) {
        let mean = sum(x.iter().copied()) / n;
        x.iter_mut().for_each(|x| *x -= mean);
        let variance = sum(x.iter().map(|x| x * x)) / n;
        let scale = 1.0 / libm::sqrtf(variance + epsilon);
        x.iter_mut().for_each(|x| *x *= scale);
    }
    for_elements(src, weight, Some(bias), x, |value, x| *x *= value)?;
    add_bias(src, bias, next, x)
}

/// The sum of values, element `i` in lane `i % FLOAT_LANES`.
fn sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; FLOAT_LANES];
    for (i, value) in values.enumerate() {
        lanes[i % FLOAT_LANES] += value;
    }
    sum_lanes(lanes)
}

/// GELU of each value, the tanh form: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
///
/// Source: Hendrycks and Gimpel, 2016; GPT-2's `gelu_new`.
pub fn gelu(x: &mut [f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for x in x {
        let inner = SQRT_2_OVER_PI * *x * (1.0 + 0.044_715 * *x * *x);
        *x = 0.5 * *x * (1.0 + libm::tanhf(inner));
    }
}

/// Turns scores into probabilities: `exp(x - max) / Σ exp(x - max)`.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    x.iter_mut().for_each(|x| *x = libm::expf(*x - max));
    let scale = 1.0 / sum(x.iter().copied());
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
            let mut scratch = Quantised { q: &mut q, d: &mut d, sums: &mut sums };
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
        layer_norm(&mut &file[..], &weight, &bias, None, 1e-5, &mut x).unwrap();
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
