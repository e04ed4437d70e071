//! The sources of the desk: the same bits from each, reads ahead that come true, fail or were wrong, threads that end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gptrickle::source::reads::{ReadAt, Reads};
use gptrickle::source::throttled::{Throttle, Throttled};
use gptrickle::source::{Buffering, ModelFile};
use gptrickle_core::generate::Model;
use gptrickle_core::gguf;
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::source::{Cause, Counting, Error, Source};
use gptrickle_tests::{logits, token_ids, vectors};
use proptest::prelude::*;

const FAST: Throttle = Throttle { bytes_per_s: 10_000_000_000, latency: Duration::ZERO, chunk: Some(1024) };

fn path(model: &str, kind: &str) -> PathBuf {
    vectors().join(model).join(format!("{model}-{kind}.gguf"))
}

fn bytes(path: &Path) -> Arc<[u8]> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

/// Bytes in memory, and which of them were read; reads fail as told.
#[derive(Debug, Clone)]
struct Device {
    bytes: Arc<[u8]>,
    /// Offset and length of each read, failed ones included.
    reads: Arc<Mutex<Vec<(u64, usize)>>>,
    /// Numbers of the reads that fail, the first is 0.
    fails: std::ops::Range<usize>,
}

const CODE: i32 = 5;

impl Device {
    fn new(bytes: &Arc<[u8]>, fails: std::ops::Range<usize>) -> Device {
        Device { bytes: bytes.clone(), reads: Arc::default(), fails }
    }

    fn reads(&self) -> Vec<(u64, usize)> {
        self.reads.lock().unwrap().clone()
    }
}

impl ReadAt for Device {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut reads = self.reads.lock().unwrap();
        reads.push((offset, bytes.len()));
        bytes.fill(0xa5);
        if self.fails.contains(&(reads.len() - 1)) {
            return Err(io::Error::from_raw_os_error(CODE));
        }
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }
}

#[test]
fn every_source_gives_the_same_logits() {
    for (model, kind) in [("micro", "Q8_0"), ("tiny512", "Q4_K_M"), ("tiny512-untied", "Q2_K")] {
        let path = path(model, kind);
        let tokens = token_ids(&vectors().join(model).join("ref/tokens.txt"));
        let bits = |src: &mut ModelFile, batch| {
            let logits = logits(src, &tokens, batch, KvFormat::Q8_0).unwrap();
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let mut mapped = ModelFile::map(&path).unwrap();
        let whole = bits(&mut mapped, 32);
        let longest_row = Model::open(&mut mapped).unwrap().header.longest_row;
        for buffer in [longest_row, 5000, 1 << 30] {
            for prefetch in [false, true] {
                let buffering = Buffering { buffer, prefetch };
                for batch in [5, 32] {
                    let mut read = ModelFile::reads(&path, buffering).unwrap();
                    assert!(bits(&mut read, batch) == whole, "{model} {kind}, {buffering:?}, batch {batch}");
                }
                let mut slow = ModelFile::throttled(Some(&path), FAST, buffering).unwrap();
                assert!(bits(&mut slow, 32) == whole, "{model} {kind}, {buffering:?}, throttled");
            }
        }
    }
}

/// Every hint of a pass comes true: the device reads what is lent, once, whether a thread reads ahead or not.
#[test]
fn what_is_read_ahead_is_what_is_lent() {
    for (model, kind) in [("micro", "Q8_0"), ("tiny512-untied", "Q2_K")] {
        let file = bytes(&path(model, kind));
        let tokens = &token_ids(&vectors().join(model).join("ref/tokens.txt"))[..9];
        let read = |prefetch| {
            let device = Device::new(&file, 0..0);
            let reads =
                if prefetch { Reads::ahead(device.clone(), 4096) } else { Ok(Reads::plain(device.clone(), 4096)) };
            let mut src = Counting::new(reads.unwrap());
            logits(&mut src, tokens, 1, KvFormat::F32).unwrap();
            let lent = src.bytes();
            drop(src); // the last hint, of the token after, is read before the thread ends
            let mut reads = device.reads();
            reads.sort_unstable();
            (reads, lent)
        };
        let (plain, lent) = read(false);
        assert_eq!(plain.iter().map(|read| read.1 as u64).sum::<u64>(), lent);
        let (mut ahead, lent_ahead) = read(true);
        assert_eq!(lent_ahead, lent);
        for one in plain {
            let i = ahead.binary_search(&one).unwrap_or_else(|_| panic!("{model}: {one:?} is not read ahead"));
            ahead.remove(i);
        }
        assert_eq!(ahead.len(), 1, "{model}: the hint of the token after, and nothing else: {ahead:?}");
    }
}

/// Why the source failed.
fn source_error<T>(result: Result<T, gpt2::Error>) -> Error {
    match result {
        Err(gpt2::Error::Source(error) | gpt2::Error::Gguf(gguf::Error::Source(error))) => error,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("no error"),
    }
}

/// From any read on, the device fails: a typed error at a chunk that did not arrive, and an end.
#[test]
fn a_failing_read_surfaces_when_its_chunk_is_asked_for() {
    let file = bytes(&path("micro", "Q8_0"));
    let run = |mut reads: Reads| logits(&mut reads, &[1, 2, 3], 2, KvFormat::F32);
    let whole = Device::new(&file, 0..0);
    run(Reads::plain(whole.clone(), 512)).unwrap();
    let count = whole.reads().len();
    assert!(count > 300, "{count}");
    for n in (0..count).step_by(7) {
        let plain = Device::new(&file, n..usize::MAX);
        let error = source_error(run(Reads::plain(plain.clone(), 512)));
        let (offset, len) = plain.reads()[n];
        assert_eq!(error, Error { offset, len, cause: Cause::Device(CODE) }, "read {n}");
        // A thread reads in another order, so that other chunks may be those that fail.
        let device = Device::new(&file, n..usize::MAX);
        let error = source_error(run(Reads::ahead(device.clone(), 512).unwrap()));
        assert_eq!(error.cause, Cause::Device(CODE), "read {n}");
        let failed = &device.reads()[n..];
        assert!(failed.contains(&(error.offset, error.len)), "read {n}: {error:?} is none of {failed:?}");
        assert!(failed.len() <= 4, "read {n}: nothing goes on after {failed:?}");
    }
}

/// A single read that fails ahead of time costs nothing but itself.
#[test]
fn a_read_ahead_that_failed_is_read_anew() {
    let file = bytes(&path("micro", "Q8_0"));
    let mut whole = Reads::plain(Device::new(&file, 0..0), 512);
    let expected = logits(&mut whole, &[1, 2, 3], 2, KvFormat::F32).unwrap();
    let mut healed = 0;
    for n in 0..400 {
        let mut src = Reads::ahead(Device::new(&file, n..n + 1), 512).unwrap();
        let result = logits(&mut src, &[1, 2, 3], 2, KvFormat::F32);
        if let Ok(logits) = result {
            assert!(logits == expected, "read {n}");
            healed += 1;
            continue;
        }
        // It was not read ahead. The chunk can be asked for again.
        let Error { offset, len, cause } = source_error(result);
        assert_eq!(cause, Cause::Device(CODE), "read {n}");
        assert_eq!(src.chunk(offset, len).unwrap(), &file[offset as usize..][..len], "read {n}");
    }
    assert!(healed > 200, "{healed}");
}

#[derive(Debug, Clone)]
enum Request {
    Hint(u64, usize),
    Chunk(u64, usize),
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let place = (0..1200u64, 0..150usize);
    let request = (any::<bool>(), place)
        .prop_map(|(hint, (at, len))| if hint { Request::Hint(at, len) } else { Request::Chunk(at, len) });
    prop::collection::vec(request, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Hints may be wrong, come in any number and at any time: what is lent is what is asked for.
    #[test]
    fn wrong_hints_change_nothing(requests in requests()) {
        let file: Arc<[u8]> = (0..1000u32).map(|i| (i * 7 / 8) as u8).collect();
        let device = Device::new(&file, 0..0);
        let mut ahead = Reads::ahead(device.clone(), 128).unwrap();
        let mut plain = Reads::plain(Device::new(&file, 0..0), 128);
        for request in &requests {
            match *request {
                Request::Hint(at, len) => ahead.prefetch(at, len),
                Request::Chunk(at, len) => prop_assert_eq!(ahead.chunk(at, len), plain.chunk(at, len)),
            }
        }
        drop(ahead);
        prop_assert!(device.reads().len() <= requests.len(), "a hint costs at most its read");
    }
}

/// A device that takes a while, and counts the reads that are under way.
#[derive(Debug)]
struct Slow(Arc<[u8]>, Arc<AtomicU64>);

impl ReadAt for Slow {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        bytes.copy_from_slice(&self.0[offset as usize..][..bytes.len()]);
        self.1.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn dropping_a_source_ends_its_thread() {
    let (file, under_way): (Arc<[u8]>, _) = ([1; 1000].into(), Arc::default());
    for hints in 0..3 {
        let mut src = Reads::ahead(Slow(file.clone(), Arc::clone(&under_way)), 100).unwrap();
        (0..hints).for_each(|i| src.prefetch(i * 100, 100));
        drop(src);
        assert_eq!(under_way.load(Ordering::SeqCst), 0);
        assert_eq!((Arc::strong_count(&file), Arc::strong_count(&under_way)), (1, 1), "the device is gone with it");
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shrinks");
    std::fs::write(&path, [7; 1000]).unwrap();
    for prefetch in [false, true] {
        std::fs::write(&path, [7; 1000]).unwrap();
        let mut src = ModelFile::reads(&path, Buffering { buffer: 100, prefetch }).unwrap();
        std::fs::write(&path, [7; 500]).unwrap();
        src.prefetch(450, 100);
        let error = Error { offset: 450, len: 100, cause: Cause::Device(0) };
        assert_eq!(src.chunk(450, 100), Err(error));
        assert_eq!(src.chunk(400, 100), Ok(&[7; 100][..]));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_throttled_device_is_as_long_and_says_the_same() {
    let file: Arc<[u8]> = (0..=255u8).collect();
    let mut src = Reads::ahead(Throttled::new(Device::new(&file, 1..2), FAST), 64).unwrap();
    assert_eq!((src.len(), src.max_chunk()), (256, 64));
    assert_eq!(src.chunk(3, 3), Ok(&[3, 4, 5][..]));
    assert_eq!(src.chunk(9, 2), Err(Error { offset: 9, len: 2, cause: Cause::Device(CODE) }));
    assert_eq!(src.chunk(0, 65), Err(Error { offset: 0, len: 65, cause: Cause::ChunkTooLong(64) }));
    assert_eq!(src.chunk(250, 7), Err(Error { offset: 250, len: 7, cause: Cause::OutOfRange(256) }));
}
