//! Every kernel that this processor runs returns the definition's bits: single rows, batches, threads, whole models.

use gptrickle::threads::Threads;
use gptrickle_core::gpt2::KvFormat;
use gptrickle_core::ops::{Alone, Engine, Team};
use gptrickle_core::quant::trial::{self, Bytes, Difference, Random, Values};
use gptrickle_core::quant::{self, Batch, Format, GROUP, HALF, Kernel};
use gptrickle_tests::{MODELS, files, logits_by};

/// Rows and batches around the sizes that kernels take at once.
const ROWS: [usize; 7] = [1, 2, 3, 4, 7, 17, 64];
const BATCHES: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33];

/// Compares all kernels on `n_rows` rows and `batch` activation rows.
fn compare(format: Format, cols: usize, n_rows: usize, batch: usize, bytes: Bytes, values: Values) {
    let mut random = Random((cols * 1000 + n_rows * 50 + batch) as u64);
    let (mut rows, mut x) = (vec![0; n_rows * format.row_bytes(cols)], vec![0.0; batch * cols]);
    bytes.fill(&mut random, format, &mut rows);
    values.fill(&mut random, &mut x);
    let n = x.len();
    let (mut q, mut d, mut sums) = (vec![0; n], vec![0.0; n / GROUP], vec![0; n / HALF]);
    quant::quantize(&x, &mut q, &mut d, &mut sums);
    let x = Batch { cols, x: &x, q: &q, d: &d, sums: &sums };
    let mut products = vec![0.0; n_rows * batch];
    for kernel in Kernel::available() {
        if let Some(difference) = trial::difference(kernel, format, &rows, &x, &mut products) {
            let Difference { row, b, product, defined } = difference;
            panic!(
                "{} {format:?} {n_rows} rows of {cols}, {bytes:?}, {batch} of {values:?}: row {row} by {b} is {product:e}, \
                 not {defined:e}",
                kernel.name()
            );
        }
    }
}

/// What a board's `:check` asks of its kernels.
#[test]
fn the_trials_of_boards_pass_here() {
    for format in Format::ALL.into_iter().filter(|format| !format.is_float()) {
        for kernel in Kernel::available() {
            assert_eq!(
                trial::try_kernel(kernel, format),
                Ok(3 * 5 * 3 * (1 + 2 + 3 + 4 + 5)),
                "{} {format:?}",
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
