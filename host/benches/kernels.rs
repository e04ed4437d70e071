//! Every kernel's product of rows with 1 and with 16 activation rows, for each block format, beside what memory gives one core.
//!
//! ```text
//! cargo bench -p gptrickle --bench kernels                 all of them, about a minute
//! cargo bench -p gptrickle --bench kernels -- Q4_K         one format
//! ```
//! Elements are multiply-accumulates, bytes are weights, read once for all activation rows. The rows are those of
//! DistilGPT2's `ffn_up`, and stay in a cache from one pass to the next; quantising the activations is part of it.

use std::hint::black_box;
use std::iter::empty;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gptrickle::bandwidth::Probe;
use gptrickle::encode::encode;
use gptrickle_core::ops::{Alone, Engine, Matrix, ROWS as ROWS_AT_ONCE, Scratch, matmul};
use gptrickle_core::quant::{Format, GROUP, HALF, Kernel};

const ROWS: usize = 3072;
const COLS: usize = 768;
/// Much more than the caches hold.
const PROBE_BYTES: usize = 256 << 20;

fn kernels(criterion: &mut Criterion) {
    for format in Format::ALL {
        let w = Matrix { format, at: 0, rows: ROWS, cols: COLS };
        let bytes = weights(&w);
        let mut group = criterion.benchmark_group(format!("{format:?}"));
        for (kernel, batch) in Kernel::available().flat_map(|kernel| [1, 16].map(|batch| (kernel, batch))) {
            let (bytes_read, macs) = (w.bytes(), (batch * ROWS * COLS) as u64);
            group.throughput(Throughput::ElementsAndBytes { elements: macs, bytes: bytes_read });
            let x = wave(batch * COLS);
            let mut y = vec![0.0; batch * ROWS];
            let (mut q, mut d, mut sums) = (vec![0; x.len()], vec![0.0; x.len() / GROUP], vec![0; x.len() / HALF]);
            let mut products = vec![0.0; batch * ROWS_AT_ONCE];
            let mut scratch = Scratch {
                engine: Engine { kernel, team: &Alone },
                q: &mut q,
                d: &mut d,
                sums: &mut sums,
                products: &mut products,
            };
            group.bench_function(BenchmarkId::new(kernel.name(), batch), |bencher| {
                bencher.iter(|| {
                    let done = matmul(&mut &bytes[..], &w, empty(), black_box(&x), &mut y, &mut scratch);
                    done.expect("a slice can always be read");
                    black_box(&mut y);
                });
            });
        }
    }
}

fn memory(criterion: &mut Criterion) {
    let probe = Probe::new(PROBE_BYTES).expect("256 MiB are needed");
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::BytesDecimal(probe.bytes() as u64));
    group.bench_function("one core", |bencher| bencher.iter(|| probe.read()));
}

/// Rows that no compiler can foresee, and with all codes of the format.
fn weights(w: &Matrix) -> Vec<u8> {
    let mut bytes = vec![0; w.bytes() as usize];
    encode(w.format, &wave(w.rows * w.cols), &mut bytes);
    bytes
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * i % 8191) as f32 * 0.37).sin()).collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = memory, kernels
}
criterion_main!(benches);
