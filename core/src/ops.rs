//! The operations of a transformer over rows of f32, weights streamed from a [`Source`].
//!
//! Shapes stand beside the names, `(B, cols)` is B rows one after the other. Each function that streams a tensor reads
//! it once, in order, in chunks of whole rows, and hints at what is read after that: `next` are the tensors behind it,
//! and `None` where something that is not known is read between them.
//! A hint covers as many whole rows as a buffer holds, of one tensor after the other as long as they fill a stretch of
//! the file, so that a source with two buffers is never idle, and sends as few commands as its buffers allow.

use core::fmt;
use core::iter::once;

use crate::exp::exp;
use crate::part::{part, part_mut, split_mut};
use crate::quant::{self, Batch, FLOAT_LANES, Format, GROUP, HALF, Kernel, Task, sum_lanes};
use crate::source::{Cause, Error, Reach, Source};

/// Rows whose products are handed on together, of as many positions as a pass can have; of fewer, more rows.
pub const ROWS: usize = 64;

/// Products that a pass of up to `batch` positions hands on together.
///
/// Many positions take four times as many rows at once: kernels rearrange activations once for all of them, and who
/// shares them waits for the others once.
pub(crate) const fn products(batch: usize) -> usize {
    let rows = if batch < 32 { ROWS } else { 4 * ROWS };
    batch.saturating_mul(rows)
}

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
    /// Bytes of one row: at least one, so that anything can be divided by it.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).max(1)
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.rows as u64 * self.row_bytes() as u64
    }

    /// The rows from `first` on.
    fn from(&self, first: usize) -> Matrix {
        Matrix { at: self.at + first as u64 * self.row_bytes() as u64, rows: self.rows - first, ..*self }
    }

    /// What the source can lend of it at once, from its first row on.
    fn reach<S: Source>(&self, src: &S) -> Reach {
        src.reach(self.at, self.rows.saturating_mul(self.row_bytes()))
    }

    /// Bytes from its first row on that the source has and was told of in whole rows, or those that it was not.
    fn told<S: Source>(&self, src: &S) -> Result<usize, usize> {
        match self.reach(src) {
            Reach::Away(n) => Err(n),
            // A row that is there in part is read whole.
            Reach::Here(n) | Reach::Ahead(n) if n < self.row_bytes() => {
                Err(n + src.reach(self.at + n as u64, self.rows.saturating_mul(self.row_bytes()) - n).bytes())
            }
            Reach::Here(n) | Reach::Ahead(n) => Ok(n),
        }
    }

    /// The rows from the first one on that the source was not told of, if there is one.
    fn untold<S: Source>(self, src: &S) -> Option<Matrix> {
        let mut rest = self;
        while rest.rows > 0 {
            match rest.told(src) {
                Ok(n) => rest = rest.from(n / rest.row_bytes()),
                Err(_) => return Some(rest),
            }
        }
        None
    }

    /// Lends the rows to `f` in order, as many at a time as the source can: `f(first row, their bytes)`.
    fn stream<S: Source>(
        &self,
        src: &mut S,
        next: impl Iterator<Item = Option<Matrix>> + Clone,
        mut f: impl FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        self.stream_hinting(src, &mut hint(next), &mut f)
    }

    /// [`stream`](Matrix::stream), compiled once for whatever is read next.
    fn stream_hinting<S: Source>(
        &self,
        src: &mut S,
        hint: &mut Hint<'_, S>,
        f: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        let row_bytes = self.row_bytes();
        let mut first = 0;
        while first < self.rows {
            let rest = self.from(first);
            // Where a stretch begins, the one behind it can go into the buffer that is free now.
            let stretches = match rest.reach(src) {
                Reach::Here(n) if n >= row_bytes => 0,
                Reach::Ahead(n) if n >= row_bytes => 1,
                _ => 2,
            };
            (0..stretches).for_each(|_| hint(src, rest));
            let rows = match rest.reach(src).bytes() / row_bytes {
                0 if row_bytes > src.max_chunk() => {
                    let cause = Cause::ChunkTooLong(src.max_chunk());
                    return Err(Error { offset: rest.at, len: row_bytes, cause });
                }
                // Even a row that lies in two places comes whole.
                rows => rows.max(1),
            };
            f(first, src.chunk(rest.at, rows * row_bytes)?);
            first += rows;
        }
        Ok(())
    }
}

/// Tells the source of one stretch of a matrix, or of what is read after it.
type Hint<'a, S> = dyn FnMut(&mut S, Matrix) + 'a;

/// The hint where `next` are the tensors behind the matrix.
fn hint<S: Source>(next: impl Iterator<Item = Option<Matrix>> + Clone) -> impl FnMut(&mut S, Matrix) {
    move |src, rest| announce(src, rest, &mut next.clone())
}

/// Tells the source of the first rows of `rest` and `next` that it was not told of yet: as many as a buffer holds, from
/// as many tensors as fill a stretch of the file, in whatever order they lie there.
fn announce<S: Source>(src: &mut S, rest: Matrix, next: &mut dyn Iterator<Item = Option<Matrix>>) {
    let mut order = once(Some(rest)).chain(next);
    let Some(first) = order.find_map(|matrix| matrix?.untold(src)) else { return };
    let mut stretch = first.at..first.at;
    // Of what is seen on the way, which is not always one stretch yet.
    let (mut span, mut bytes) = (stretch.clone(), 0);
    for matrix in once(Some(first)).chain(order) {
        // What is read in between would take the buffer.
        let Some(matrix) = matrix else { break };
        let Err(n) = matrix.told(src) else { break };
        let rows = n.min(src.max_chunk() - bytes) / matrix.row_bytes();
        let end = matrix.at + (rows * matrix.row_bytes()) as u64;
        if rows < matrix.rows {
            if stretch == span && matrix.at == span.end {
                stretch.end = end;
            }
            break;
        }
        bytes += rows * matrix.row_bytes();
        span = span.start.min(matrix.at)..span.end.max(end);
        if span.end - span.start == bytes as u64 {
            stretch = span.clone();
        }
    }
    if !stretch.is_empty() {
        src.prefetch(stretch.start, (stretch.end - stretch.start) as usize);
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
        let n_rows = products.len() / x.len().max(1);
        if parts < 2 || n_rows < 2 {
            return quant::multiply(self.kernel, format, rows, x, products);
        }
        let first = n_rows * (parts / 2) / parts;
        let middle = first * format.row_bytes(x.cols);
        let (rows, other_rows) = (part(rows, ..middle), part(rows, middle..));
        let (products, other_products) = split_mut(products, first * x.len());
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
    /// Products on their way to a sink (rows, B), at least one row.
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
/// In a debug build, if `scratch` is too small for `x`; else all products are NaN then.
pub fn multiply<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: impl Iterator<Item = Option<Matrix>> + Clone,
    x: &[f32],
    scratch: &mut Scratch,
    mut sink: impl FnMut(usize, &[f32]),
) -> Result<(), Error> {
    multiply_hinting(src, w, &mut hint(next), x, scratch, &mut sink)
}

/// [`multiply`], compiled once for whatever is read next and wherever products go.
fn multiply_hinting<S: Source>(
    src: &mut S,
    w: &Matrix,
    hint: &mut Hint<'_, S>,
    x: &[f32],
    scratch: &mut Scratch,
    sink: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), Error> {
    if x.is_empty() {
        return Ok(());
    }
    let n = x.len();
    let Scratch { engine, q, d, sums, products } = scratch;
    let (q, d, sums) = (part_mut(q, ..n), part_mut(d, ..n / GROUP), part_mut(sums, ..n / HALF));
    if !w.format.is_float() {
        engine.kernel.quantize(x, q, d, sums);
    }
    let x = Batch { cols: w.cols, x, q, d, sums };
    let (row_bytes, batch) = (w.row_bytes(), x.len().max(1));
    let at_once = products.len() / batch;
    w.stream_hinting(src, hint, &mut |first, rows| {
        for (i, rows) in rows.chunks((at_once * row_bytes).max(1)).enumerate() {
            let products = part_mut(products, ..rows.len() / row_bytes.max(1) * batch);
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
/// As [`multiply`].
pub fn matmul<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: impl Iterator<Item = Option<Matrix>> + Clone,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let batch = x.len() / w.cols.max(1);
    multiply(src, w, next, x, scratch, |first, products| {
        for (b, y) in y.chunks_exact_mut(w.rows.max(1)).enumerate().take(batch) {
            let products = products.iter().skip(b).step_by(batch.max(1));
            y.iter_mut().skip(first).zip(products).for_each(|(y, &product)| *y = product);
        }
    })
}

/// One row of `w`, dequantised, such as a token's embedding: reads that row and nothing else.
///
/// # Errors
/// The source failed, or cannot lend a whole row.
///
/// # Panics
/// In a debug build, if `out` is not as long as a row.
pub fn row<S: Source>(src: &mut S, w: &Matrix, row: usize, out: &mut [f32]) -> Result<(), Error> {
    let bytes = w.row_bytes();
    quant::dequantize(w.format, src.chunk(w.at + row as u64 * bytes as u64, bytes)?, out);
    Ok(())
}

/// Calls `f(elements, values)` for each piece of vector `w`, streamed, and what lies beside it in every row of `y`
/// (B, w.rows).
fn for_pieces<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: impl Iterator<Item = Option<Matrix>> + Clone,
    y: &mut [f32],
    f: fn(&mut [f32], &[f32]),
) -> Result<(), Error> {
    let bytes = w.row_bytes();
    w.stream(src, next, |first, values| {
        let mut buffer = [0.0; ROWS];
        for (i, values) in values.chunks((ROWS * bytes).max(1)).enumerate() {
            let buffer = part_mut(&mut buffer, ..values.len() / bytes.max(1));
            quant::dequantize(w.format, values, buffer);
            for y in y.chunks_exact_mut(w.rows.max(1)) {
                f(part_mut(y, first + i * ROWS..), buffer);
            }
        }
    })
}

/// Adds vector `w` to every row of `y` (B, w.rows).
///
/// # Errors
/// The source failed.
pub fn add_bias<S: Source>(
    src: &mut S,
    w: &Matrix,
    next: impl Iterator<Item = Option<Matrix>> + Clone,
    y: &mut [f32],
) -> Result<(), Error> {
    for_pieces(src, w, next, y, add)
}

/// Adds `x` to `y`, element by element.
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// Normalises every row of `x` (B, n) to mean 0 and variance 1, then scales by `weight` (n) and adds `bias` (n); takes
/// both off `next`, what is read from here on.
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
    next: &mut (impl Iterator<Item = Option<Matrix>> + Clone),
    epsilon: f32,
    x: &mut [f32],
) -> Result<(), Error> {
    kernel.run(Normalise { x, n: weight.rows, epsilon });
    next.next();
    for_pieces(src, weight, next.clone(), x, |x, scales| x.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale))?;
    next.next();
    add_bias(src, bias, next.clone(), x)
}

/// Gives each row of `n` mean 0 and variance 1.
struct Normalise<'a> {
    x: &'a mut [f32],
    n: usize,
    epsilon: f32,
}

impl Task for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.x.chunks_exact_mut(self.n.max(1)).for_each(|x| normalise(self.epsilon, x));
    }
}

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
pub fn gelu(kernel: Kernel, x: &mut [f32]) {
    kernel.run(Gelu(x));
}

struct Gelu<'a>(&'a mut [f32]);

impl Task for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
        for x in self.0 {
            let twice_u = TWICE_SQRT_2_OVER_PI * *x * (1.0 + 0.044_715 * *x * *x);
            *x /= 1.0 + exp(-twice_u);
        }
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
    use core::iter::empty;
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
            matmul(&mut Small(&file, max), &w, empty(), &x, &mut y, &mut scratch).map(|()| y)
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

    /// Has read nothing, and remembers what it was told of.
    struct Told(Vec<(u64, usize)>, usize);

    impl Source for Told {
        fn len(&self) -> u64 {
            1 << 20
        }
        fn max_chunk(&self) -> usize {
            self.1
        }
        fn reach(&self, offset: u64, len: usize) -> Reach {
            let within =
                |&(at, n): &(u64, usize)| (at..at + n as u64).contains(&offset).then(|| at + n as u64 - offset);
            let told = self.0.iter().find_map(within);
            told.map_or(Reach::Away(len.min(self.1)), |n| Reach::Ahead(len.min(n as usize)))
        }
        fn chunk(&mut self, _: u64, _: usize) -> Result<&[u8], Error> {
            unreachable!("nothing is asked for")
        }
        fn prefetch(&mut self, offset: u64, len: usize) {
            assert!(len <= self.1);
            self.0.push((offset, len));
        }
    }

    #[test]
    fn a_hint_runs_on_across_tensors_that_lie_beside_each_other() {
        let tensor = |at, rows| Some(Matrix { format: Format::F32, at, rows, cols: 1 });
        let hints = |order: &[Option<Matrix>], max| {
            let mut src = Told(Vec::new(), max);
            let first = order[0].unwrap();
            (0..9).for_each(|_| announce(&mut src, first, &mut order[1..].iter().copied()));
            src.0
        };
        // One after the other in the file, by whole rows, up to a gap and beyond it.
        let order = [tensor(100, 5), tensor(120, 2), tensor(128, 10), tensor(200, 1)];
        assert_eq!(hints(&order, 1000), [(100, 68), (200, 4)]);
        assert_eq!(hints(&order, 30), [(100, 28), (128, 28), (156, 12), (200, 4)]);
        assert_eq!(hints(&order, 7), [100, 104, 108, 112, 116, 120, 124, 128, 132].map(|at| (at, 4)));
        assert_eq!(hints(&order, 3), [], "no row can be lent");
        // Behind each other in the file, then with a hole that a later one fills, if the buffer holds them all.
        assert_eq!(hints(&[tensor(120, 2), tensor(100, 5), tensor(96, 1)], 1000), [(96, 32)]);
        let holed = [tensor(100, 5), tensor(128, 2), tensor(120, 2), tensor(136, 9)];
        assert_eq!(hints(&holed, 40), [(100, 40), (140, 32)]);
        assert_eq!(hints(&holed, 32), [(100, 20), (120, 32), (152, 20)]);
        // Not across something unknown.
        assert_eq!(hints(&[tensor(100, 5), None, tensor(120, 2)], 1000), [(100, 20), (120, 8)]);
    }

    #[test]
    fn layer_norm_gives_mean_0_and_variance_1() {
        let (weight, mut file) = matrix(64, 1, |_, _| 2.0);
        file.extend((0..64).flat_map(|_| 3f32.to_le_bytes()));
        let bias = Matrix { at: 64 * 4, ..weight };
        let mut x: Vec<f32> = (0..128).map(|i| (i as f32 * 1.7).cos() * 5.0 + 100.0).collect();
        layer_norm(&mut &file[..], Kernel::best(), &weight, &bias, &mut empty(), 1e-5, &mut x).unwrap();
        for x in x.chunks(64) {
            let mean = x.iter().sum::<f32>() / 64.0;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / 64.0;
            assert!((mean - 3.0).abs() < 1e-3 && (variance - 4.0).abs() < 1e-2, "{mean} {variance}");
        }
    }

    #[test]
    fn gelu_and_softmax_give_the_known_values() {
        let mut x = [-10.0, -1.0, 0.0, 0.5, 1.0, 10.0];
        gelu(Kernel::GENERIC, &mut x);
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
