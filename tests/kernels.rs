//! Every kernel that this processor runs returns the definition's bits: single rows, batches, threads, whole models.

use gptrickle::threads::Threads;
use gptrickle_core::gpt2::KvFormat;
use gptrickle_core::ops::{Alone, Engine, Team};
use gptrickle_core::quant::{self, Batch, Format, GROUP, HALF, Kernel};
use gptrickle_tests::{MODELS, files, logits_by, scales};

/// Rows and batches around the sizes that kernels take at once.
const ROWS: [usize; 7] = [1, 2, 3, 4, 7, 17, 64];
const BATCHES: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33];

/// Source: Steele, Lea and Flood, SplitMix64, 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// What a row's bytes are made of.
#[derive(Debug, Clone, Copy)]
enum Bytes {
    /// Anything at all: also scales that are infinite, NaN, denormal.
    Any,
    /// All codes and scales the same byte.
    All(u8),
    /// All codes the same byte, and scales of 1.
    Codes(u8),
    /// Random blocks whose every second one has all bytes zero, so zero scales.
    Gaps,
}

/// What the activations are.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// Between -4 and 4.
    Usual,
    /// All at the ends of the codes, signs at random.
    Ends,
    /// Some groups zero, one NaN, one infinite, some beyond the reach of f32 products.
    Wild,
}

fn rows(random: &mut Random, kind: Bytes, format: Format, n: usize) -> Vec<u8> {
    match kind {
        Bytes::Any => random.bytes(n),
        Bytes::All(byte) => vec![byte; n],
        Bytes::Codes(byte) => {
            let mut bytes = vec![byte; n];
            for block in bytes.chunks_mut(format.block().1) {
                scales(format).iter().for_each(|&at| block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes()));
            }
            bytes
        }
        Bytes::Gaps => {
            let mut bytes = random.bytes(n);
            bytes.chunks_mut(format.block().1).step_by(2).for_each(|block| block.fill(0));
            bytes
        }
    }
}

fn activations(random: &mut Random, kind: Values, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..n).map(|_| (random.next() >> 40) as f32 / (1 << 21) as f32 - 4.0).collect();
    match kind {
        Values::Usual => {}
        Values::Ends => x.iter_mut().for_each(|x| *x = 3f32.copysign(*x)),
        Values::Wild => {
            for (g, x) in x.chunks_mut(GROUP).enumerate() {
                match g % 11 {
                    3 => x.fill(0.0),
                    5 => x[7] = f32::NAN,
                    6 => x[31] = f32::NEG_INFINITY,
                    8 => x.iter_mut().for_each(|x| *x *= 1e37),
                    9 => x.iter_mut().for_each(|x| *x *= 1e-30),
                    _ => {}
                }
            }
        }
    }
    x
}

/// Compares all kernels on `n_rows` rows and `batch` activation rows.
fn compare(format: Format, cols: usize, n_rows: usize, batch: usize, bytes: Bytes, values: Values) {
    let mut random = Random((cols * 1000 + n_rows * 50 + batch) as u64);
    let rows = rows(&mut random, bytes, format, n_rows * format.row_bytes(cols));
    let x = activations(&mut random, values, batch * cols);
    let n = x.len();
    let (mut q, mut d, mut sums) = (vec![0; n], vec![0.0; n / GROUP], vec![0; n / HALF]);
    quant::quantize(&x, &mut q, &mut d, &mut sums);
    let x = Batch { cols, x: &x, q: &q, d: &d, sums: &sums };
    for kernel in Kernel::available() {
        // Not zero, so that a product left out shows.
        let mut products = vec![-1e30; n_rows * batch];
        quant::multiply(kernel, format, &rows, &x, &mut products);
        for (i, &product) in products.iter().enumerate() {
            let (r, b) = (i / batch, i % batch);
            let row = &rows[r * format.row_bytes(cols)..][..format.row_bytes(cols)];
            let defined = quant::dot(format, row, &x.row(b));
            // A NaN's sign and payload differ between processors, that it is one does not.
            let same = defined.to_bits() == product.to_bits() || (defined.is_nan() && product.is_nan());
            assert!(
                same,
                "{} {format:?} {n_rows} rows of {cols}, {bytes:?}, {batch} of {values:?}: row {r} by {b} is {product:e}, \
                 not {defined:e}",
                kernel.name()
            );
        }
    }
}

#[test]
fn every_kernel_returns_the_definitions_bits() {
    for format in Format::ALL {
        let len = format.block().0.max(GROUP);
        // One block, several, and a model's rows.
        for cols in [len, 3 * len, 7 * len, 768usize.next_multiple_of(len)] {
            for n_rows in ROWS {
                compare(format, cols, n_rows, 1, Bytes::Any, Values::Usual);
            }
            for batch in BATCHES {
                compare(format, cols, 5, batch, Bytes::Any, Values::Usual);
            }
        }
    }
}

#[test]
fn edge_blocks_and_activations_too() {
    for format in Format::ALL {
        let cols = 768usize.next_multiple_of(format.block().0);
        for bytes in [Bytes::Any, Bytes::Gaps, Bytes::All(0), Bytes::All(0xff), Bytes::Codes(0xff), Bytes::Codes(0x80)]
        {
            for values in [Values::Usual, Values::Ends, Values::Wild] {
                for batch in [1, 3, 16, 18] {
                    compare(format, cols, 6, batch, bytes, values);
                }
            }
        }
    }
}

/// Rows as long as those of GPT-2 XL's feed-forward layer, with the largest sums that can be.
#[test]
fn long_rows_of_extreme_codes_too() {
    for format in Format::ALL {
        for byte in [0x7f, 0x80, 0xff] {
            compare(format, 6400, 2, 1, Bytes::Codes(byte), Values::Ends);
            compare(format, 6400, 2, 16, Bytes::Codes(byte), Values::Ends);
        }
    }
}

/// Whole models, from embedding to logits: every kernel, one to five threads, single positions and batches.
#[test]
fn logits_are_the_same_bits_by_any_kernel_and_any_number_of_threads() {
    let tokens: Vec<u32> = (0..21).map(|i| i * 37 % 256).collect();
    for model in MODELS {
        for (kind, file) in files(model) {
            let by = |kernel, team: &dyn Team, batch| {
                logits_by(Engine { kernel, team }, &mut &file[..], &tokens, batch, KvFormat::F16).unwrap()
            };
            let defined = by(Kernel::GENERIC, &Alone, 1);
            assert!(defined.iter().all(|logit| logit.is_finite()));
            for kernel in Kernel::available() {
                assert!(by(kernel, &Alone, 1) == defined, "{model} {kind} by {}", kernel.name());
                for threads in [1, 2, 5] {
                    let ours = Threads::run(threads, |team| by(kernel, team, 20)).unwrap();
                    assert!(ours == defined, "{model} {kind} by {}, {threads} threads", kernel.name());
                }
            }
        }
    }
}
