//! The sources of the desk: the same bits from each, reads ahead that come true, fail or were wrong, threads that end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gptrickle::source::reads::{ReadAt, Reads};
use gptrickle::source::throttled::{Throttle, Throttled};
use gptrickle::source::{Buffering, ModelFile};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Model, Options, Plan, Session};
use gptrickle_core::gguf;
use gptrickle_core::gpt2::{self, Head, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{Cause, Error, Source};
use gptrickle_core::tokenizer::Token;
use gptrickle_tests::anatomy::Anatomy;
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

/// Greedy text of `n` tokens from a prompt of one; what the device read for it, in file order, and what a token needs.
fn reads_of(file: &Arc<[u8]>, head: Head, buffer: usize, ahead: bool, n: usize) -> (Vec<(u64, usize)>, u64) {
    let device = Device::new(file, 0..0);
    let reads = if ahead { Reads::ahead(device.clone(), buffer) } else { Ok(Reads::plain(device.clone(), buffer)) };
    let mut src = reads.unwrap();
    let model = Model::open(&mut src).unwrap();
    let state = gpt2::Options { context: 16, batch: 1, kv: KvFormat::F32, ..gpt2::Options::default() };
    let options = Options { state, sampling: Params::greedy(), seed: 1, head, ..Options::default() };
    let mut memory = vec![0; Plan::new(&model, &options).total() + ALIGN];
    let mut session = Session::new(&model, &options, &mut src, &mut Arena::new(&mut memory)).unwrap();
    session.push(&[Token(1)]).unwrap();
    for _ in 0..n {
        session.next(&mut src).unwrap().expect("more tokens");
    }
    drop(src); // the last hint, of the token after, is read before the thread ends
    let mut reads = device.reads();
    reads.sort_unstable();
    let header = &model.header;
    (reads, header.bytes_per_token() - header.head_bytes + header.head_reads(head).unwrap())
}

/// What the device reads for a token is each weight once, however the hints cut the file, and no command ends where the
/// buffer could have held more of what lies behind it.
#[test]
fn each_weight_is_read_once_in_few_commands() {
    println!("{:22} {:>8} {:>9} {:>14} {:>18}", "model", "buffer", "bytes", "a token", "commands, ahead");
    let mut files: Vec<(String, Arc<[u8]>)> = Vec::new();
    for (model, kind) in [("micro", "Q8_0"), ("tiny512", "Q4_K_M"), ("tiny512-untied", "Q2_K")] {
        files.push((format!("{model} {kind}"), bytes(&path(model, kind))));
    }
    // As a pass reads it, where the files of llama.cpp lie by name.
    let mut parts = Anatomy::of(&files[2].1);
    parts.tensors.sort_by_key(|tensor| place_in_pass(&tensor.name));
    files.push(("untied, in pass order".to_owned(), parts.write().into()));
    for (name, file) in &files {
        let longest_row = Model::open(&mut &file[..]).unwrap().header.longest_row;
        for buffer in [longest_row, 4096, 32 << 10, 128 << 10] {
            let of = |ahead| {
                let [(few, per_token), (many, _)] = [2, 6].map(|n| reads_of(file, Head::Exact, buffer, ahead, n));
                let sum = |reads: &[(u64, usize)]| reads.iter().map(|read| read.1 as u64).sum::<u64>();
                let bytes = (sum(&many) - sum(&few)) / 4;
                // The row of a tied embedding may be there from the head.
                let least = if name.contains("untied") { per_token } else { per_token - longest_row as u64 };
                assert!((least..=per_token).contains(&bytes), "{name}, {buffer}: {bytes} not in {least}..={per_token}");
                (bytes, (many.len() - few.len()) / 4)
            };
            let [(bytes, plain), (_, ahead)] = [of(false), of(true)];
            println!("{name:22} {buffer:8} {bytes:9} {plain:14} {ahead:18}");
            // Two rows of embeddings; in pass order, a command goes to where the buffer holds no further row, or where
            // tensors are not beside each other: the head and the norm before it may be aligned.
            let least = (bytes as usize).div_ceil(buffer);
            let full = buffer.saturating_sub(longest_row).max(longest_row);
            let ordered = name.contains("order") && buffer >= 4 * longest_row;
            let most = if ordered { 4 + (bytes as usize).div_ceil(full) } else { usize::MAX };
            for commands in [plain, ahead] {
                assert!((least..=most).contains(&commands), "{name}, {buffer}: {commands} of {least}..={most}");
            }
        }
    }
}

/// With a head in two stages too: the draft whole, the candidates' rows, and nothing that was only guessed to come next.
#[test]
fn two_stages_read_what_they_need() {
    let file = bytes(&path("tiny512-untied", "Q2_K"));
    let longest_row = Model::open(&mut &file[..]).unwrap().header.longest_row;
    for candidates in [1, 16, 50] {
        for buffer in [longest_row, 4096, 128 << 10] {
            for ahead in [false, true] {
                let head = Head::TwoStage { candidates };
                let [(few, needed), (many, _)] = [2, 6].map(|n| reads_of(&file, head, buffer, ahead, n));
                let sum = |reads: &[(u64, usize)]| reads.iter().map(|read| read.1 as u64).sum::<u64>();
                assert_eq!(sum(&many) - sum(&few), 4 * needed, "{candidates} candidates through {buffer}, {ahead}");
            }
        }
    }
}

/// Where a pass reads a tensor: embeddings, layers, last norm, head.
fn place_in_pass(name: &str) -> (usize, usize) {
    const LAYER: [&str; 6] = ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"];
    let part = usize::from(name.ends_with(".bias"));
    if let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|name| name.split_once('.')) {
        let at = LAYER.iter().position(|name| rest.starts_with(&format!("{name}."))).unwrap();
        return (1 + layer.parse::<usize>().unwrap(), 2 * at + part);
    }
    match name {
        "output_norm.weight" | "output_norm.bias" => (100, part),
        "output.weight" => (100, 2),
        _ => (0, 0),
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
        for ahead in [false, true] {
            let device = Device::new(&file, n..usize::MAX);
            let reads = if ahead { Reads::ahead(device.clone(), 512) } else { Ok(Reads::plain(device.clone(), 512)) };
            let error = source_error(run(reads.unwrap()));
            assert_eq!(error.cause, Cause::Device(CODE), "read {n}");
            // The stretch, then the chunk alone; a thread also has the next stretch in its queue.
            let failed = &device.reads()[n..];
            assert!(failed.contains(&(error.offset, error.len)), "read {n}: {error:?} is none of {failed:?}");
            assert!(failed.len() <= if ahead { 4 } else { 2 }, "read {n}: nothing goes on after {failed:?}");
        }
    }
}

/// A single read of a stretch that fails costs nothing but itself: what was hinted at is read anew.
#[test]
fn a_stretch_that_failed_is_read_anew() {
    let file = bytes(&path("micro", "Q8_0"));
    let mut whole = Reads::plain(Device::new(&file, 0..0), 512);
    let expected = logits(&mut whole, &[1, 2, 3], 2, KvFormat::F32).unwrap();
    for ahead in [false, true] {
        let mut healed = 0;
        for n in 0..400 {
            let device = Device::new(&file, n..n + 1);
            let reads = if ahead { Reads::ahead(device, 512) } else { Ok(Reads::plain(device, 512)) };
            let mut src = reads.unwrap();
            let result = logits(&mut src, &[1, 2, 3], 2, KvFormat::F32);
            if let Ok(logits) = result {
                assert!(logits == expected, "read {n}");
                healed += 1;
                continue;
            }
            // It was not hinted at. The chunk can be asked for again.
            let Error { offset, len, cause } = source_error(result);
            assert_eq!(cause, Cause::Device(CODE), "read {n}");
            assert_eq!(src.chunk(offset, len).unwrap(), &file[offset as usize..][..len], "read {n}");
        }
        assert!(healed > 200, "{healed}");
    }
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
        let mut hinted = Reads::plain(Device::new(&file, 0..0), 128);
        let mut plain = Reads::plain(Device::new(&file, 0..0), 128);
        for request in &requests {
            match *request {
                Request::Hint(at, len) => {
                    ahead.prefetch(at, len);
                    hinted.prefetch(at, len);
                }
                Request::Chunk(at, len) => {
                    let expected = plain.chunk(at, len);
                    prop_assert_eq!(ahead.chunk(at, len), expected);
                    prop_assert_eq!(hinted.chunk(at, len), expected);
                    // What it says that it can lend from here on, it lends.
                    for src in [&mut ahead, &mut hinted] {
                        let n = src.reach(at, 40).bytes();
                        if at + n as u64 <= 1000 {
                            prop_assert_eq!(src.chunk(at, n).unwrap(), &file[at as usize..][..n]);
                        }
                    }
                }
            }
        }
        drop(ahead);
        prop_assert!(device.reads().len() <= 2 * requests.len(), "a hint costs at most its read");
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
