//! Damaged and hostile files: a typed error that says what is wrong and where, never a panic, never a wrong text; soon,
//! and without taking memory for what a file only claims to have.
//!
//! Files are `micro-Q4_0.gguf`, whole but for the one thing that a test says. Ids name what once went wrong in another
//! reader of the same format. The classes of llama.cpp's `test-gguf` are all here; [`classes_of_test_gguf`] lists them.
//! With `--nocapture`, each refused file is a line: its number, what refusing it took, what is said of it.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Error, Model, Plan, Session};
use gptrickle_core::gguf::{self, Part};
use gptrickle_core::gpt2;
use gptrickle_core::sampler;
use gptrickle_core::tokenizer::{self, Control, TextCause, Token};
use gptrickle_tests::anatomy::{Anatomy, Tensor, info_at, put, string_at};
use gptrickle_tests::buffered::Buffered;
use gptrickle_tests::gguf_writer::Value;
use gptrickle_tests::micro::{MICRO, PROMPT, QKV, memory, micro, options, run, said, says};
use proptest::prelude::*;

/// Longest time in which a file is refused.
const SOON: Duration = Duration::from_millis(100);
/// Most memory that the desk takes from the heap meanwhile, all allocations added up.
const LITTLE: u64 = 1 << 20;

/// What it took to refuse a file.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    time: Duration,
    bytes: u64,
}

impl Taken {
    fn max(self, other: Taken) -> Taken {
        Taken { time: self.time.max(other.time), bytes: self.bytes.max(other.bytes) }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6} us {:6} B", self.time.as_micros(), self.bytes)
    }
}

/// Runs `f` and says what this thread took for it: the shortest of three times where one is too long, as the machine may
/// have had something else to do.
fn measured<T>(f: impl Fn() -> T) -> (T, Taken) {
    let once = || {
        let (start, mut result) = (Instant::now(), None);
        let allocated = allocation_counter::measure(|| result = Some(f()));
        (result.expect("it was run"), Taken { time: start.elapsed(), bytes: allocated.bytes_total })
    };
    let (mut result, mut taken) = once();
    for _ in 0..2 {
        if taken.time >= SOON {
            let (again, time) = once();
            (result, taken.time) = (again, taken.time.min(time.time));
        }
    }
    assert!(taken.time < SOON && taken.bytes < LITTLE, "{taken}");
    (result, taken)
}

/// A damaged file on the disk, which the desk opens as a user has it do; gone in the end.
struct OnDisk(File, PathBuf);

impl OnDisk {
    fn new(bytes: &[u8]) -> OnDisk {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("malformed-{}.gguf", FILES.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(bytes).unwrap();
        OnDisk(file, path)
    }

    /// Opens it and makes a token, which must fail with these words.
    fn refused(&self, words: &str) -> Taken {
        let text =
            |path: &Path| gptrickle::Model::open(path)?.generate("in the win").context(16).max_new_tokens(1).text();
        let (error, taken) = measured(|| text(&self.1).expect_err("the desk must refuse it, too"));
        says(&format!("{error:#}"), &[words]);
        taken
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

/// Asserts that a file is refused with an error of this pattern: from memory, through a small buffer, and on the desk;
/// gives what is said of it.
macro_rules! refused {
    ($file:expr, $pattern:pat $(if $guard:expr)?) => {{
        let file: &[u8] = &$file;
        let error = refuse(file);
        assert!(matches!(error, $pattern $(if $guard)?), "not this error: {error:?}");
        said(&error)
    }};
}

/// The error that a file is refused with.
#[track_caller]
fn refuse(file: &[u8]) -> Error {
    static CASES: AtomicUsize = AtomicUsize::new(0);
    let (opened, core) = measured(|| Model::open(&mut &file[..]).err());
    assert_eq!(core.bytes, 0, "core takes no memory");
    let error = run(&mut &file[..]).expect_err("the file must be refused");
    assert!(opened.is_none_or(|opened| format!("{opened:?}") == format!("{error:?}")), "{opened:?}, {error:?}");
    let small = run(&mut Buffered::new(file, 4096)).expect_err("so from a small buffer");
    let too_long = matches!(small, Error::Gguf(gguf::Error::LongString { .. }));
    assert!(too_long || format!("{small:?}") == format!("{error:?}"), "{small:?}");
    let text = said(&error);
    let desk = OnDisk::new(file).refused(if file.is_empty() { "is empty" } else { &text });
    println!("{:4} {} {text}", CASES.fetch_add(1, Ordering::Relaxed) + 1, core.max(desk));
    error
}

/// The file with these bytes overwritten.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = MICRO.clone();
    put(&mut file, at, bytes);
    file
}

/// The file with one metadata value changed or added.
fn with_entry(key: &str, value: impl Into<Value>) -> Vec<u8> {
    micro().set(key, value).write()
}

/// The file with one tensor changed.
fn with_tensor(name: &str, change: impl Fn(&mut Tensor)) -> Vec<u8> {
    let mut parts = micro();
    change(parts.tensor(name));
    parts.write()
}

/// The file with another shape claimed for a tensor, which has as many dimensions as before.
fn with_dims(name: &str, dims: &[u64]) -> Vec<u8> {
    let at = info_at(&MICRO, name) + 4;
    with(at, &dims.iter().flat_map(|dim| dim.to_le_bytes()).collect::<Vec<_>>())
}

// ---- any damage at all

#[test]
fn parts_put_together_again_are_the_file() {
    assert!(micro().write() == *MICRO);
    assert_eq!(run(&mut &MICRO[..]).unwrap(), run(&mut Buffered::new(&MICRO, 4096)).unwrap());
    assert!(run(&mut &MICRO[..]).unwrap().is_some());
}

/// Cut anywhere in the header, and at 1,000 places behind it, the shorter file ends too early, and says where.
#[test]
fn every_truncation_is_noticed() {
    let header_len = Anatomy::header_len(&MICRO);
    let data = MICRO.len() - header_len;
    let behind = (0..1000).map(|i| header_len + i * data / 1000);
    let on_disk = OnDisk::new(&MICRO);
    let mut most = Taken::default();
    let mut points = 0;
    // From long to short, so that the file on the disk need only be cut.
    for len in (0..header_len).chain(behind).rev() {
        let (error, taken) = measured(|| Model::open(&mut &MICRO[..len]).expect_err("a part of a file"));
        assert_eq!(taken.bytes, 0, "cut at {len}: core takes no memory");
        match error {
            Error::Gguf(gguf::Error::Truncated { at, needed, have, .. }) => {
                assert_eq!(at + have, len as u64, "cut at {len}: {error:?}");
                assert!(needed > have, "cut at {len}: {error:?}");
            }
            Error::Gguf(gguf::Error::TensorOutside { len: found, end, .. })
            | Error::Gguf(gguf::Error::TensorsOutside { len: found, end }) => {
                assert_eq!(found, len as u64);
                assert!(end > found, "cut at {len}: {error:?}");
            }
            _ => panic!("cut at {len}: {error:?}"),
        }
        let text = said(&error);
        says(&text, &["truncated"]);
        on_disk.0.set_len(len as u64).unwrap();
        most = most.max(taken).max(on_disk.refused(if len == 0 { "is empty" } else { &text }));
        points += 1;
    }
    println!("{points} truncations, {header_len} of them in the header; at most {most}");
}

/// Runs a damaged file; the error, if any, must be sayable. Panics are the caller's to report.
fn survives(file: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| {
        if let Err(error) = run(&mut &file[..]) {
            said(&error);
        }
    }))
    .map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(_) => "panicked".into(),
    })
}

#[test]
fn every_byte_of_the_header_damaged_is_survived() {
    let mut file = MICRO.clone();
    let mut bad = Vec::new();
    for at in 0..Anatomy::header_len(&MICRO) {
        let was = file[at];
        for damaged in [was ^ 1, was ^ 0x80, was ^ 0xff, 0, was.wrapping_add(1)] {
            file[at] = damaged;
            if let Err(panic) = survives(&file) {
                bad.push(format!("byte {at}, {was:#04x} -> {damaged:#04x}: {panic}"));
            }
        }
        file[at] = was;
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn several_damaged_bytes_are_survived(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..9usize), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = MICRO.clone();
        let header_len = Anatomy::header_len(&MICRO);
        for (at, byte, n) in damage {
            let at = at.index(header_len);
            file[at..at + n].fill(byte);
        }
        file.truncate(cut.map_or(file.len(), |cut| cut.index(MICRO.len())));
        prop_assert_eq!(survives(&file), Ok(()));
    }

    /// Weights are any bits; what does not stay finite is noticed at the latest where a token is chosen.
    #[test]
    fn damaged_weights_are_survived(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200)) {
        let mut file = MICRO.clone();
        let header_len = Anatomy::header_len(&MICRO);
        for (at, byte) in damage {
            let at = header_len + at.index(MICRO.len() - header_len);
            file[at] = byte;
        }
        prop_assert_eq!(survives(&file), Ok(()));
    }
}

// ---- the container

#[test]
fn a_file_of_another_kind_is_named() {
    let text = refused!(*b"GGML\x01\0\0\0not a model at all", Error::Gguf(gguf::Error::NotGguf { found }) if found == *b"GGML");
    says(&text, &["GGML", "GGUF"]);
    let text = refused!(*b"\x1b[2\n\0\0\0\0", Error::Gguf(gguf::Error::NotGguf { .. }));
    says(&text, &["\\x1b[2\\n"]);
    refused!([], Error::Gguf(gguf::Error::Truncated { part: Part::Header, at: 0, needed: 4, have: 0 }));
}

#[test]
fn other_versions_and_byte_orders_are_named() {
    for version in [0, 1, 4, 0xffff, u32::MAX] {
        let text =
            refused!(with(4, &version.to_le_bytes()), Error::Gguf(gguf::Error::Version { found }) if found == version);
        says(&text, &[&version.to_string()]);
    }
    for version in [2u32, 3] {
        let text = refused!(with(4, &version.to_be_bytes()), Error::Gguf(gguf::Error::BigEndian));
        says(&text, &["big-endian"]);
    }
    assert_eq!(run(&mut &with(4, &2u32.to_le_bytes())[..]), run(&mut &MICRO[..]), "version 2 is read");
}

/// CVE-2024-21836, issue 15711: a number of tensors whose product with a size wraps, or passes a check before it does.
#[test]
fn cve_2024_21836_tensor_counts_beyond_the_file() {
    for n in [u64::MAX, 1 << 63, u64::MAX / 56 + 1, u64::MAX / 368 + 1, 1 << 32, gguf::MAX_TENSORS + 1] {
        let limit = gguf::MAX_TENSORS;
        let text = refused!(with(8, &n.to_le_bytes()),
            Error::Gguf(gguf::Error::TooMany { part: Part::TensorInfo, found, limit: l }) if found == n && l == limit);
        says(&text, &[&n.to_string(), &limit.to_string()]);
    }
    refused!(with(8, &gguf::MAX_TENSORS.to_le_bytes()), Error::Gguf(gguf::Error::Truncated { part: Part::Header, .. }));
    refused!(with(8, &17u64.to_le_bytes()), Error::Gguf(_));
    refused!(with(8, &15u64.to_le_bytes()), Error::Model(gpt2::Error::MissingTensor { .. }));
    refused!(with(8, &0u64.to_le_bytes()), Error::Model(gpt2::Error::MissingTensor { .. }));
}

/// CVE-2024-23605: the same for the number of metadata entries.
#[test]
fn cve_2024_23605_entry_counts_beyond_the_file() {
    for n in [u64::MAX, 1 << 63, u64::MAX / 48 + 1, 1 << 32, gguf::MAX_ENTRIES + 1] {
        refused!(with(16, &n.to_le_bytes()), Error::Gguf(gguf::Error::TooMany { part: Part::Entry, found, .. }) if found == n);
    }
    refused!(
        with(16, &gguf::MAX_ENTRIES.to_le_bytes()),
        Error::Gguf(gguf::Error::Truncated { part: Part::Header, .. })
    );
}

/// CVE-2024-23496, PR 19856: the length of a string, plus its terminator, wraps to nothing; or is all that is left.
#[test]
fn cve_2024_23496_string_lengths_beyond_the_file() {
    let strings = [
        ("general.type", Part::Entry),
        ("Micro", Part::Value),
        ("<|endoftext|>", Part::Elements),
        (QKV, Part::TensorInfo),
    ];
    for (text, part) in strings {
        for len in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, MICRO.len() as u64] {
            let at = string_at(&MICRO, text);
            let said = refused!(with(at, &len.to_le_bytes()),
                Error::Gguf(gguf::Error::Truncated { part: p, at: found, needed, .. })
                    if p == part && found == at as u64 + 8 && needed == len);
            says(&said, &[&len.to_string(), &(at + 8).to_string()]);
        }
    }
}

/// CVE-2024-21825, CVE-2025-66960, PR 19856: the number of an array's elements, times their size, wraps.
#[test]
fn cve_2024_21825_array_lengths_beyond_the_file() {
    for kind in [0, 2, 4, 8, 10, 12] {
        for n in [u64::MAX, 1 << 63, 1 << 61, u64::MAX / 8 + 1, u64::MAX / 16 + 1, gguf::MAX_ELEMENTS + 1] {
            refused!(with_entry("some.array", Value::array(kind, n, [0; 8])),
                Error::Gguf(gguf::Error::TooMany { part: Part::Elements, found, .. }) if found == n);
        }
        let n = gguf::MAX_ELEMENTS;
        refused!(with_entry("some.array", Value::array(kind, n, [])),
            Error::Gguf(gguf::Error::Truncated { part: Part::Elements, needed, .. }) if needed >= n);
    }
}

/// An id as an index into a table (Databricks, March 2024), negative ids (PR 19856): of values, elements and tensors.
#[test]
fn unknown_type_ids_are_named() {
    for id in [13, 99, 1 << 31, u32::MAX] {
        let text = refused!(with_entry("some.key", Value::raw(id, [0; 8])),
            Error::Gguf(gguf::Error::ValueType { key, id: found }) if key.as_str() == Some("some.key") && found == id);
        says(&text, &["some.key", &id.to_string()]);
        refused!(with_entry("some.key", Value::array(id, 1, [0; 8])),
            Error::Gguf(gguf::Error::ValueType { id: found, .. }) if found == id);
    }
    // Issue 8816: types that were removed have no block size to divide by.
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 40, 43, 1000, 1 << 31, u32::MAX] {
        let text = refused!(with_tensor(QKV, |tensor| tensor.kind = id),
            Error::Gguf(gguf::Error::TensorType { tensor, id: found }) if tensor.as_str() == Some(QKV) && found == id);
        says(&text, &[QKV, &id.to_string()]);
    }
}

/// PR 28880, huggingface.js 2028: arrays within arrays, which some readers follow until the stack ends.
#[test]
fn nested_arrays_are_refused_at_the_first() {
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
    let text = refused!(with_entry("deep", Value::raw(9, nested)),
        Error::Gguf(gguf::Error::NestedArray { key }) if key.as_str() == Some("deep"));
    says(&text, &["deep"]);
}

/// CVE-2024-21802, mlx 4179: dimensions beyond the four there is room for.
#[test]
fn cve_2024_21802_too_many_dimensions() {
    for n_dims in [5u32, 8, 9, 1 << 31, u32::MAX] {
        let text = refused!(with(info_at(&MICRO, QKV), &n_dims.to_le_bytes()),
            Error::Gguf(gguf::Error::Dimensions { tensor, n_dims: n }) if tensor.as_str() == Some(QKV) && n == n_dims);
        says(&text, &[QKV, &n_dims.to_string()]);
    }
}

/// CVE-2026-33298 (bytes of one tensor wrap), issue 27203 (the product of the dimensions turns negative and passes),
/// candle 3533 (it wraps in a release build), PR 26978 (rounding up to the alignment wraps).
#[test]
fn cve_2026_33298_shapes_that_wrap() {
    let max = i64::MAX as u64;
    for dims in [
        [max - 31, 2],
        [max & !31, 2],
        [1 << 32, 1 << 32],
        [1 << 33, 1 << 31],
        [!31, 1],
        [1 << 63, 1],
        [1 << 62, 4],
        [32, u64::MAX / 32 + 1],
        [32, u64::MAX / 18 + 1],
        [32, (1 << 62) / 18 + 1],
    ] {
        let text = refused!(with_dims(QKV, &dims),
            Error::Gguf(gguf::Error::TooLarge { tensor, dims: found })
                if tensor.as_str() == Some(QKV) && found == [dims[0], dims[1], 1, 1]);
        says(&text, &[QKV, &dims[0].to_string()]);
    }
}

/// CVE-2025-53630, CVE-2026-27940, GHSA-vgg9-87g3-85w8 (a sum of sizes wraps), CVE-2026-7482 "Bleeding Llama" (more is
/// claimed than the file holds): a tensor of almost any size alone is outside, before it is added to anything.
#[test]
fn cve_2025_53630_tensors_larger_than_the_file() {
    for rows in [(1 << 62) / 36, 1 << 40, 10_000] {
        let text = refused!(with_dims(QKV, &[64, rows]),
            Error::Gguf(gguf::Error::TensorOutside { tensor, end, len })
                if tensor.as_str() == Some(QKV) && end > rows * 36 && len == MICRO.len() as u64);
        says(&text, &[QKV, &MICRO.len().to_string()]);
    }
    // As many tensors, each of which fits alone: together they do not.
    let mut parts = micro();
    parts.tensors =
        (0..100).map(|i| Tensor { name: format!("t{i}"), dims: vec![8192], kind: 0, bytes: vec![0; 32768] }).collect();
    let mut file = parts.write();
    file.truncate(50_000);
    refused!(file, Error::Gguf(gguf::Error::TensorOutside { tensor, .. }) if tensor.as_str() == Some("t1"));
}

/// PR 25596: `INT64_MAX / dim` divides by zero. The shape is no model's, so the model refuses it.
#[test]
fn dimensions_of_zero_are_refused() {
    for dims in [[0, 192], [64, 0], [0, 0]] {
        let text = refused!(micro_with_shape(QKV, &dims), Error::Model(gpt2::Error::Shape { tensor, found, expected: (192, 64) })
            if tensor.as_str() == Some(QKV) && found == [dims[0], dims[1], 1, 1]);
        says(&text, &[QKV, "192 rows of 64"]);
    }
    refused!(
        micro_with_shape("token_embd.weight", &[64, 0]),
        Error::Model(gpt2::Error::OutOfRange { found: 0, least: 1, .. })
    );
}

/// The file with a tensor of another shape, sound in itself: as many bytes as that shape has.
fn micro_with_shape(name: &str, dims: &[u64]) -> Vec<u8> {
    let mut parts = micro();
    let tensor = parts.tensor(name);
    let (len, bytes) = match tensor.kind {
        0 => (1, 4),
        2 => (32, 18),
        8 => (32, 34),
        _ => unreachable!(),
    };
    tensor.dims = dims.into();
    tensor.bytes = vec![0; dims.iter().product::<u64>() as usize / len * bytes];
    parts.write()
}

/// ik_llama 2437 (regions overlap, and a tensor reads its neighbour), mlx 4244 (an offset outside the file): each tensor
/// starts where the last one ended.
#[test]
fn misplaced_tensors_are_named() {
    let (at, offset) = (info_at(&MICRO, QKV) + 4 + 16 + 4, 30496u64);
    assert_eq!(MICRO[at..at + 8], offset.to_le_bytes(), "the offset is where this test thinks it is");
    for wrong in [0, offset - 32, offset + 32, offset + 1, offset | 1 << 40, 1 << 63, u64::MAX, u64::MAX - 30] {
        let text = refused!(with(at, &wrong.to_le_bytes()),
            Error::Gguf(gguf::Error::Misplaced { tensor, offset: o, expected })
                if tensor.as_str() == Some(QKV) && o == wrong && expected == offset);
        says(&text, &[QKV, &wrong.to_string(), &offset.to_string()]);
    }
    // Two tensors that changed places in the list, and not in the file.
    let mut parts = micro();
    parts.tensors.swap(1, 2);
    let mut file = parts.write();
    let first = info_at(&file, "position_embd.weight") + 4 + 16 + 4;
    let second = info_at(&file, "output_norm.weight") + 4 + 8 + 4;
    put(&mut file, first, &512u64.to_le_bytes());
    put(&mut file, second, &256u64.to_le_bytes());
    refused!(file, Error::Gguf(gguf::Error::Misplaced { tensor, offset: 512, expected: 256 })
        if tensor.as_str() == Some("position_embd.weight"));
}

#[test]
fn the_last_tensor_must_be_whole() {
    let end = MICRO.len() as u64;
    let text = refused!(MICRO[..MICRO.len() - 1],
        Error::Gguf(gguf::Error::TensorsOutside { end: e, len }) if e == end && len == end - 1);
    says(&text, &[&end.to_string(), "truncated"]);
    let longer = [&MICRO[..], &[0xee; 100]].concat();
    assert_eq!(run(&mut &longer[..]), run(&mut &MICRO[..]), "bytes behind the last tensor are nobody's");
}

/// Candle 3876 (alignment 0 divides), PR 25596 (another type aborts), PR 24997 (2^31 wraps a 32-bit usize).
#[test]
fn alignments_that_are_no_u32_power_of_two_are_refused() {
    for wrong in [
        Value::from(0u32),
        13u32.into(),
        33u32.into(),
        u32::MAX.into(),
        32u64.into(),
        32i32.into(),
        "32".into(),
        32f32.into(),
        true.into(),
    ] {
        let text = refused!(with_entry("general.alignment", wrong), Error::Gguf(gguf::Error::Alignment { .. }));
        says(&text, &["general.alignment"]);
    }
    refused!(
        with_entry("general.alignment", 1u32 << 31),
        Error::Gguf(gguf::Error::Misplaced { offset: 256, expected: 0x8000_0000, .. })
    );
    let mut parts = micro();
    parts.set("general.alignment", 32u32).entries.push(("general.alignment".into(), 32u32.into()));
    let text = refused!(parts.write(), Error::Gguf(gguf::Error::DuplicateKey { key }) if key.as_str() == Some("general.alignment"));
    says(&text, &["general.alignment"]);
    for alignment in [1, 2, 8, 32, 64, 4096, 1 << 16] {
        // Rows of other alignments are cut from padded ones: take the padding off first.
        let file = tight().write_aligned(alignment);
        assert_eq!(run(&mut &file[..]), run(&mut &MICRO[..]), "alignment {alignment}");
    }
}

/// The parts, without the padding behind each tensor.
fn tight() -> Anatomy {
    let mut parts = micro();
    for tensor in &mut parts.tensors {
        let (len, bytes) = [(1, 4), (1, 2), (32, 18)].get(tensor.kind as usize).copied().unwrap_or((32, 34));
        tensor.bytes.truncate(tensor.dims.iter().product::<u64>() as usize / len * bytes);
    }
    parts
}

#[test]
fn names_are_checked_and_shown_without_control_characters() {
    refused!(with_entry("", 1u32), Error::Gguf(gguf::Error::EmptyName { part: Part::Entry, .. }));
    refused!(
        with_tensor(QKV, |tensor| tensor.name.clear()),
        Error::Gguf(gguf::Error::EmptyName { part: Part::TensorInfo, .. })
    );
    let long = "n".repeat(64);
    let text =
        refused!(with_tensor(QKV, |tensor| tensor.name = long.clone()), Error::Gguf(gguf::Error::LongName { .. }));
    says(&text, &[&long[..63], "…"]);
    let just = "n".repeat(63);
    let text = refused!(
        with_tensor(QKV, |tensor| tensor.name = just.clone()),
        Error::Model(gpt2::Error::UnknownTensor { .. })
    );
    says(&text, &[&just]);

    let hostile = "\x1b[31m\r\n\0\u{7f}\u{202e}\u{85}é\"";
    let escaped = "\\x1b[31m\\r\\n\\x00\\x7f\\xe2\\x80\\xae\\xc2\\x85\\xc3\\xa9\\\"";
    says(
        &refused!(
            with_tensor(QKV, |tensor| tensor.name = hostile.into()),
            Error::Model(gpt2::Error::UnknownTensor { .. })
        ),
        &[escaped],
    );
    says(&refused!(with_entry(hostile, Value::raw(77, [])), Error::Gguf(gguf::Error::ValueType { .. })), &[escaped]);
    says(
        &refused!(with_entry("general.architecture", hostile), Error::Model(gpt2::Error::Architecture { .. })),
        &[escaped],
    );
    says(
        &refused!(with_entry("tokenizer.ggml.model", hostile), Error::Tokenizer(tokenizer::Error::Model { .. })),
        &[escaped],
    );
    says(
        &refused!(with_entry("tokenizer.ggml.pre", hostile), Error::Tokenizer(tokenizer::Error::Pre { .. })),
        &[escaped],
    );
    // Keys that nobody reads may have any length and any bytes.
    assert_eq!(run(&mut &with_entry(&hostile.repeat(500), 1u8)[..]), run(&mut &MICRO[..]));
}

// ---- the model

#[test]
fn another_architecture_is_named() {
    for name in ["llama", "gpt2x", "", "GPT2"] {
        let text = refused!(with_entry("general.architecture", name), Error::Model(gpt2::Error::Architecture { found }) if found.as_str() == Some(name));
        says(&text, &[&format!("\"{name}\""), "gpt2"]);
    }
}

#[test]
fn keys_that_are_missing_of_the_wrong_type_or_twice_are_named() {
    let numbers = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];
    let numbers: Vec<_> = numbers.iter().map(|key| format!("gpt2.{key}")).collect();
    let others = ["gpt2.attention.layer_norm_epsilon", "general.architecture"].map(String::from);
    for name in numbers.iter().chain(&others) {
        let text = refused!(micro().remove(name).write(), Error::Model(gpt2::Error::MissingKey { key }) if key == name);
        says(&text, &[name]);
        for wrong in [Value::from(false), Value::i32s(&[1]), 1f64.into()] {
            let text = refused!(with_entry(name, wrong), Error::Model(gpt2::Error::ValueType { key, .. }) if key.as_str() == Some(name));
            says(&text, &[name]);
        }
        let text = refused!(twice(name), Error::Gguf(gguf::Error::DuplicateKey { key }) if key.as_str() == Some(name));
        says(&text, &[name]);
    }
    for name in &numbers {
        refused!(with_entry(name, "1"), Error::Model(gpt2::Error::ValueType { .. }));
        refused!(with_entry(name, -1i32), Error::Model(gpt2::Error::ValueType { .. }));
        let Value { bytes, .. } = micro().entry(name).clone();
        let n = u32::from_le_bytes(bytes.try_into().unwrap());
        for value in
            [Value::from(n as u16), (n as i16).into(), (n as i32).into(), u64::from(n).into(), i64::from(n).into()]
        {
            assert_eq!(run(&mut &with_entry(name, value)[..]), run(&mut &MICRO[..]), "{name} of another integer type");
        }
    }
}

/// PR 25821, PR 26051: a number of layers beyond fixed arrays; and none.
#[test]
fn numbers_outside_their_limits_are_named() {
    for n in [0, gpt2::MAX_LAYERS + 1, 513, u64::from(u32::MAX), u64::MAX] {
        let text = refused!(with_entry("gpt2.block_count", n),
            Error::Model(gpt2::Error::OutOfRange { key: "gpt2.block_count", found, least: 1, most: gpt2::MAX_LAYERS }) if found == n);
        says(&text, &["gpt2.block_count", &n.to_string(), "1..=128"]);
    }
    for key in ["gpt2.context_length", "gpt2.embedding_length", "gpt2.feed_forward_length", "gpt2.attention.head_count"]
    {
        for n in [0, (1 << 20) + 1, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            refused!(with_entry(key, n), Error::Model(gpt2::Error::OutOfRange { key: k, found, .. }) if k == key && found == n);
        }
    }
    // One layer more, or all of them, than there are tensors for.
    for n in [2, gpt2::MAX_LAYERS] {
        let text = refused!(with_entry("gpt2.block_count", n), Error::Model(gpt2::Error::MissingTensor { .. }));
        says(&text, &["blk.1.attn_norm.weight"]);
    }
    for n in [1u32, 16, 31, 33, 64] {
        refused!(with_entry("gpt2.context_length", n), Error::Model(gpt2::Error::Shape { tensor, .. }) if tensor.as_str() == Some("position_embd.weight"));
    }
}

#[test]
fn an_epsilon_that_is_no_small_positive_number_is_refused() {
    for epsilon in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e-5, 0.0, -0.0, 1.0] {
        let text = refused!(with_entry("gpt2.attention.layer_norm_epsilon", epsilon),
            Error::Model(gpt2::Error::Epsilon { found }) if found.to_bits() == epsilon.to_bits());
        says(&text, &["epsilon", &epsilon.to_string()]);
    }
}

#[test]
fn heads_that_do_not_divide_and_widths_that_are_not_whole_groups_are_refused() {
    for n_head in [3u32, 5, 63, 65, 128] {
        let text = refused!(with_entry("gpt2.attention.head_count", n_head),
            Error::Model(gpt2::Error::Heads { n_embd: 64, n_head: n }) if n == n_head as usize);
        says(&text, &["64", &n_head.to_string()]);
    }
    for width in [16u32, 48, 62, 1000] {
        let file = micro().set("gpt2.embedding_length", width).set("gpt2.attention.head_count", 1u32).write();
        refused!(file, Error::Model(gpt2::Error::Width { found }) if found == width as usize);
        refused!(with_entry("gpt2.feed_forward_length", width), Error::Model(gpt2::Error::Width { found }) if found == width as usize);
    }
    refused!(with_entry("gpt2.embedding_length", 96u32), Error::Model(gpt2::Error::Shape { .. }));
    refused!(with_entry("gpt2.feed_forward_length", 512u32), Error::Model(gpt2::Error::Shape { .. }));
}

#[test]
fn tensors_that_are_missing_twice_or_unknown_are_named() {
    for i in 0..micro().tensors.len() {
        let mut parts = micro();
        let name = parts.tensors.remove(i).name;
        // Without the embedding there is no size of the vocabulary to check others by, but it is the first to be missed.
        let text = refused!(parts.write(), Error::Model(gpt2::Error::MissingTensor { .. }));
        says(&text, &[&name]);

        let mut parts = micro();
        let twice = parts.tensors[i].clone();
        parts.tensors.push(twice);
        let text = refused!(parts.write(), Error::Model(gpt2::Error::DuplicateTensor { tensor }) if tensor.as_str() == Some(&name));
        says(&text, &[&name]);
    }
    let names = [
        "blk.1.attn_norm.weight",
        "blk.00.attn_norm.weight",
        "blk.+0.attn_norm.weight",
        "blk.-1.attn_norm.weight",
        "blk..attn_norm.weight",
        "blk.18446744073709551616.attn_norm.weight",
        "blk.0.attn_norm",
        "blk.0.attn_q.weight",
        "blk.0.attn_norm.weight ",
        "rope_freqs.weight",
    ];
    for name in names {
        let mut parts = micro();
        parts.tensors.push(Tensor { name: name.into(), dims: vec![64], kind: 0, bytes: vec![0; 256] });
        let text = refused!(parts.write(), Error::Model(gpt2::Error::UnknownTensor { tensor }) if tensor.as_str() == Some(name));
        says(&text, &[name]);
    }
}

#[test]
fn wrong_shapes_are_named() {
    for tensor in micro().tensors {
        let name = &tensor.name;
        let mut wrong = vec![];
        for d in 0..tensor.dims.len() {
            for change in [|n| n + 32, |n| n * 2, |n: u64| n - 32] {
                let mut dims = tensor.dims.clone();
                dims[d] = change(dims[d]);
                wrong.push(dims);
            }
        }
        wrong.push(tensor.dims.iter().copied().chain([2]).collect());
        if let [a, b] = tensor.dims[..]
            && a != b
            && b % 32 == 0
        {
            wrong.push(vec![b, a]);
        }
        for dims in wrong {
            let file = micro_with_shape(name, &dims);
            if name == "token_embd.weight" && dims[0] == 64 && dims.len() == 2 {
                refused!(file, Error::VocabularySize { tokens: 264, rows } if rows as u64 == dims[1]);
                continue;
            }
            let text = refused!(file, Error::Model(gpt2::Error::Shape { .. }));
            says(&text, &[name]);
        }
        // Dimensions of 1 behind the others change nothing.
        let ones: Vec<u64> = tensor.dims.iter().copied().chain([1]).collect();
        assert_eq!(run(&mut &with_tensor(name, |tensor| tensor.dims = ones.clone())[..]), run(&mut &MICRO[..]));
    }
}

/// Stored as I32, this once was a segmentation fault.
#[test]
fn types_that_cannot_be_multiplied_are_named() {
    let (n, rows) = (64, 192);
    for (kind, name, bytes) in [
        (26, "I32", n * rows * 4),
        (24, "I8", n * rows),
        (28, "F64", n * rows * 8),
        (9, "Q8_1", n * rows / 32 * 36),
        (39, "MXFP4", n * rows / 32 * 17),
    ] {
        let file = with_tensor(QKV, |tensor| (tensor.kind, tensor.bytes) = (kind, vec![0; bytes]));
        let text = refused!(file, Error::Model(gpt2::Error::Format { tensor, kind: k, vector: false })
            if tensor.as_str() == Some(QKV) && k.id == kind);
        says(&text, &[QKV, name]);
    }
    // A row of 64 is no block of 256.
    for (kind, name) in [(12, "Q4_K"), (14, "Q6_K"), (15, "Q8_K")] {
        let text = refused!(with_tensor(QKV, |tensor| tensor.kind = kind),
            Error::Gguf(gguf::Error::Ragged { tensor, columns: 64, kind: k }) if tensor.as_str() == Some(QKV) && k.id == kind);
        says(&text, &[QKV, name, "256"]);
    }
}

/// Quantised norms and biases, which once ended the process.
#[test]
fn norms_and_biases_must_be_floats() {
    let vectors: Vec<_> = micro().tensors.into_iter().filter(|tensor| tensor.dims.len() == 1).collect();
    assert_eq!(vectors.len(), 10);
    for tensor in vectors {
        let bytes = vec![0; tensor.dims[0] as usize / 32 * 18];
        let text = refused!(with_tensor(&tensor.name, |tensor| (tensor.kind, tensor.bytes) = (2, bytes.clone())),
            Error::Model(gpt2::Error::Format { tensor: name, vector: true, .. }) if name.as_str() == Some(&tensor.name));
        says(&text, &[&tensor.name, "Q4_0"]);
    }
}

/// PR 6884: NaN and infinite scales are files like any other to most readers, and make every logit NaN.
#[test]
fn scales_that_are_not_finite_are_noticed_at_the_first_token() {
    for bad in [0x7e00u16, 0x7c00, 0xfc00] {
        for name in [QKV, "blk.0.ffn_down.weight"] {
            let file = with_tensor(name, |tensor| put(&mut tensor.bytes, 0, &bad.to_le_bytes()));
            let text = refused!(file, Error::Sampler(sampler::Error::NotFinite { .. }));
            says(&text, &["not finite"]);
        }
        // One row of the head: the token it belongs to.
        let file = with_tensor("token_embd.weight", |tensor| put(&mut tensor.bytes, 68 * 200, &bad.to_le_bytes()));
        let text = refused!(file, Error::Sampler(sampler::Error::NotFinite { token: Token(200) }));
        says(&text, &["token 200"]);
    }
    let file = with_tensor("blk.0.attn_norm.weight", |tensor| put(&mut tensor.bytes, 16, &f32::NAN.to_le_bytes()));
    refused!(file, Error::Sampler(sampler::Error::NotFinite { .. }));
}

// ---- the vocabulary

/// PR 25475, PR 14145: ids of special tokens, written down or taken for granted, beyond the vocabulary.
#[test]
fn special_ids_beyond_the_vocabulary_are_named() {
    for name in ["bos", "eos", "eot"].map(|name| format!("tokenizer.ggml.{name}_token_id")) {
        for wrong in [264, 50256, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let text = refused!(with_entry(&name, wrong),
                Error::Tokenizer(tokenizer::Error::SpecialId { key, id, n_tokens: 264 }) if key == name && id == wrong);
            says(&text, &[&name, &wrong.to_string(), "264"]);
        }
        refused!(with_entry(&name, "263"), Error::Tokenizer(tokenizer::Error::WrongType { key, .. }) if key == name);
        refused!(with_entry(&name, -1i32), Error::Tokenizer(tokenizer::Error::WrongType { key, .. }) if key == name);
    }
    // Those that this reader has no use for are nobody's index.
    let file = with_entry("tokenizer.ggml.unknown_token_id", u32::MAX);
    assert_eq!(run(&mut &file[..]), run(&mut &MICRO[..]));
}

#[test]
fn a_vocabulary_without_special_ids_takes_none_for_granted() {
    let mut parts = micro();
    let file = parts.remove("tokenizer.ggml.bos_token_id").remove("tokenizer.ggml.eos_token_id").write();
    let mut src = &file[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let mut session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    assert_eq!(session.next(&mut src), Err(Error::EmptyPrompt));
    says(&said(&Error::EmptyPrompt), &["empty"]);
    session.push_text(&mut src, PROMPT, Control::Ignore).unwrap();
    assert!(session.next(&mut src).unwrap().is_some());
    refused!(
        parts.set("tokenizer.ggml.add_bos_token", true).write(),
        Error::Tokenizer(tokenizer::Error::Missing { key: "tokenizer.ggml.bos_token_id" })
    );
}

/// PR 20735, PR 26690: arrays beside the tokens that are shorter, or of narrower elements.
#[test]
fn arrays_beside_the_tokens_must_fit_them() {
    let types = "tokenizer.ggml.token_type";
    for n in [0, 263, 265] {
        let text = refused!(with_entry(types, Value::i32s(&vec![1; n])),
            Error::Tokenizer(tokenizer::Error::TypesLength { types, tokens: 264 }) if types == n as u64);
        says(&text, &[&n.to_string(), "264"]);
    }
    for (kind, bytes) in [(0, 1), (2, 2), (6, 4), (10, 8)] {
        refused!(with_entry(types, Value::array(kind, 264, vec![0; 264 * bytes])),
            Error::Tokenizer(tokenizer::Error::WrongType { key, .. }) if key == types);
    }
    refused!(with_entry(types, Value::strings(&["1"; 264])), Error::Tokenizer(tokenizer::Error::WrongType { .. }));
    for found in [0, 7, -1] {
        let mut all = [1; 264];
        all[77] = found;
        let text = refused!(with_entry(types, Value::i32s(&all)),
            Error::Tokenizer(tokenizer::Error::TokenType { token: Token(77), found: f }) if f == found as u32);
        says(&text, &["77"]);
    }
    // Scores are for vocabularies of another kind.
    let file = with_entry("tokenizer.ggml.scores", Value::array(6, 1, [0; 4]));
    assert_eq!(run(&mut &file[..]), run(&mut &MICRO[..]));
}

/// The strings of a metadata array.
fn strings(key: &str) -> Vec<Vec<u8>> {
    let value = micro().entry(key).clone();
    let mut rest = &value.bytes[12..];
    let mut strings = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk() {
        let (text, tail) = tail.split_at(u64::from_le_bytes(*len) as usize);
        strings.push(text.to_vec());
        rest = tail;
    }
    strings
}

/// The texts of the vocabulary.
fn tokens() -> Vec<Vec<u8>> {
    let tokens = strings("tokenizer.ggml.tokens");
    assert_eq!(tokens.len(), 264);
    tokens
}

/// The file with another text for a token.
fn with_token(id: usize, text: &[u8]) -> Vec<u8> {
    let mut tokens = tokens();
    tokens[id] = text.to_vec();
    with_entry("tokenizer.ggml.tokens", Value::strings(&tokens))
}

/// CVE-2025-49847: a length beyond an i32, and a text beyond the buffer it is copied to.
#[test]
fn cve_2025_49847_tokens_that_are_too_long() {
    for len in [tokenizer::MAX_TOKEN + 1, 3000, 1 << 20] {
        let text = refused!(
            with_token(100, &vec![b'a'; len]),
            Error::Tokenizer(tokenizer::Error::TokenText { token: Token(100), cause: TextCause::TooLong })
        );
        says(&text, &["token 100"]);
    }
    let file = with_token(100, &[b'a'; tokenizer::MAX_TOKEN]);
    let model = Model::open(&mut &file[..]).unwrap();
    assert_eq!(model.vocabulary.max_token_bytes(), tokenizer::MAX_TOKEN);
}

#[test]
fn texts_outside_the_byte_alphabet_are_named() {
    for text in ["日本", " ", "a b", "\n", "\0", "\u{ad}", "\u{144}"] {
        let said = refused!(
            with_token(100, text.as_bytes()),
            Error::Tokenizer(tokenizer::Error::TokenText { token: Token(100), cause: TextCause::Outside })
        );
        says(&said, &["token 100"]);
    }
    refused!(with_token(100, b"\xff"), Error::Tokenizer(tokenizer::Error::TokenText { .. }));
    let merges = |merge: &str| with_entry("tokenizer.ggml.merges", Value::strings(&[merge]));
    for merge in ["", " ", "in", "i ", " n", "i n g", "i  n"] {
        let text = refused!(
            merges(merge),
            Error::Tokenizer(tokenizer::Error::MergeText { rank: 0, cause: TextCause::NotAPair })
        );
        says(&text, &["merge 0"]);
    }
    refused!(merges("日 本"), Error::Tokenizer(tokenizer::Error::MergeText { rank: 0, cause: TextCause::Outside }));
    refused!(merges("q q"), Error::Tokenizer(tokenizer::Error::NoResult { rank: 0 }));
    refused!(
        with_entry("tokenizer.ggml.merges", Value::strings(&["i n"; 200])),
        Error::Tokenizer(tokenizer::Error::Crowded { .. })
    );
}

#[test]
fn a_byte_without_token_is_named_when_a_text_has_it() {
    let id = tokens().iter().position(|token| token == b"w").unwrap();
    let mut parts = micro();
    let mut all = tokens();
    all[id] = b"zzz".to_vec();
    parts.set("tokenizer.ggml.tokens", Value::strings(&all)).set("tokenizer.ggml.merges", Value::strings(&["i n"]));
    let text = refused!(parts.write(), Error::Tokenizer(tokenizer::Error::NoToken { byte: b'w' }));
    says(&text, &["0x77"]);
}

/// Issue 27226: the text of a byte token of another kind of vocabulary, read as a number and used as an index.
#[test]
fn byte_tokens_are_hidden_whatever_they_say() {
    let mut parts = micro();
    let mut all = tokens();
    all[100] = b"<0x-1>".to_vec();
    let mut types = [1; 264];
    (types[100], types[263]) = (6, 3);
    parts.set("tokenizer.ggml.tokens", Value::strings(&all)).set("tokenizer.ggml.token_type", Value::i32s(&types));
    let file = parts.write();
    let mut src = &file[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    assert_eq!(session.tokenizer().decode(&mut src, Token(100), Control::Recognise, &mut []), Ok(0));
}

#[test]
fn another_kind_of_vocabulary_is_named() {
    let text = refused!(with_entry("tokenizer.ggml.model", "llama"), Error::Tokenizer(tokenizer::Error::Model { found }) if found.as_str() == Some("llama"));
    says(&text, &["llama", "gpt2"]);
    let text = refused!(with_entry("tokenizer.ggml.pre", "llama-bpe"), Error::Tokenizer(tokenizer::Error::Pre { found }) if found.as_str() == Some("llama-bpe"));
    says(&text, &["llama-bpe", "gpt-2"]);
    for name in ["model", "tokens", "merges"].map(|name| format!("tokenizer.ggml.{name}")) {
        let text =
            refused!(micro().remove(&name).write(), Error::Tokenizer(tokenizer::Error::Missing { key }) if key == name);
        says(&text, &[&name]);
        refused!(with_entry(&name, 1u32), Error::Tokenizer(tokenizer::Error::WrongType { key, .. }) if key == name);
    }
    for name in ["tokens", "token_type", "merges", "model", "pre", "bos_token_id", "eos_token_id"]
        .map(|name| format!("tokenizer.ggml.{name}"))
    {
        let text =
            refused!(twice(&name), Error::Gguf(gguf::Error::DuplicateKey { key }) if key.as_str() == Some(&name));
        says(&text, &[&name]);
    }
    for n in [263, 265] {
        let mut all = tokens();
        all.resize(n, b"x".to_vec());
        let mut parts = micro();
        parts
            .set("tokenizer.ggml.tokens", Value::strings(&all))
            .set("tokenizer.ggml.token_type", Value::i32s(&vec![1; n]));
        for name in ["bos", "eos"] {
            parts.set(&format!("tokenizer.ggml.{name}_token_id"), 0u32);
        }
        let text = refused!(parts.write(), Error::VocabularySize { tokens, rows: 264 } if tokens == n);
        says(&text, &[&n.to_string(), "264"]);
    }
}

// ---- lists

/// The classes of llama.cpp's `test-gguf`, by its names and in its order; what it takes, the container takes.
#[test]
fn classes_of_test_gguf() {
    use Error::Gguf;
    let max = u64::MAX;
    let key = string_at(&MICRO, "general.type");
    let dims = info_at(&MICRO, QKV) + 4;
    let (kind, offset) = (dims + 16, dims + 20);
    // HEADER_BAD_MAGIC, _VERSION_0, _VERSION_1, _VERSION_FUTURE, _N_KV, _N_TENSORS
    refused!(with(0, b"FUGG"), Gguf(gguf::Error::NotGguf { found }) if found == *b"FUGG");
    refused!(with(4, &[0]), Gguf(gguf::Error::Version { found: 0 }));
    refused!(with(4, &[1]), Gguf(gguf::Error::Version { found: 1 }));
    refused!(with(4, &[4]), Gguf(gguf::Error::Version { found: 4 }));
    refused!(with(16, &max.to_le_bytes()), Gguf(gguf::Error::TooMany { part: Part::Entry, .. }));
    refused!(with(8, &max.to_le_bytes()), Gguf(gguf::Error::TooMany { part: Part::TensorInfo, .. }));
    // KV_BAD_KEY_SIZE, _EMPTY_KEY, _BAD_TYPE, _DUPLICATE_KEY, _BAD_ALIGN, _WRONG_TYPE_ALIGN
    refused!(with(key, &max.to_le_bytes()), Gguf(gguf::Error::Truncated { part: Part::Entry, .. }));
    refused!(with_entry("", 1u32), Gguf(gguf::Error::EmptyName { part: Part::Entry, .. }));
    refused!(with_entry("my_key", Value::raw(13, [0])), Gguf(gguf::Error::ValueType { id: 13, .. }));
    refused!(twice("gpt2.block_count"), Gguf(gguf::Error::DuplicateKey { .. }));
    refused!(with_entry("general.alignment", 13u32), Gguf(gguf::Error::Alignment { .. }));
    refused!(with_entry("general.alignment", 32i32), Gguf(gguf::Error::Alignment { .. }));
    // TENSORS_BAD_NAME_SIZE, _BAD_N_DIMS, _BAD_SHAPE, _NE_TOO_BIG, _NBYTES_TOO_BIG, _BAD_TYPE, _BAD_OFFSET,
    // _DUPLICATE_NAME, _BAD_ALIGN, _INCONSISTENT_ALIGN
    refused!(with_tensor(QKV, |tensor| tensor.name = "n".repeat(64)), Gguf(gguf::Error::LongName { .. }));
    refused!(with(dims - 4, &[5]), Gguf(gguf::Error::Dimensions { n_dims: 5, .. }));
    refused!(with(dims, &[0xff; 16]), Gguf(gguf::Error::Ragged { columns: u64::MAX, .. }));
    refused!(with_dims(QKV, &[(4 * 0x7fff_ffff) & !31, 4 * 0x7fff_ffff]), Gguf(gguf::Error::TooLarge { .. }));
    let many = with_tensor(QKV, |tensor| (tensor.kind, tensor.dims) = (27, vec![1_533_916_891; 2])); // I64: 8 bytes each
    refused!(many, Gguf(gguf::Error::TooLarge { .. }));
    refused!(with(kind, &[43]), Gguf(gguf::Error::TensorType { id: 43, .. }));
    refused!(with(offset, &max.to_le_bytes()), Gguf(gguf::Error::Misplaced { offset: u64::MAX, .. }));
    let mut parts = micro();
    parts.tensors.push(parts.tensors[1].clone());
    refused!(parts.write(), Error::Model(gpt2::Error::DuplicateTensor { .. }));
    let aligned = string_at(&micro().write_aligned(64), "general.alignment") + 8 + 17 + 4;
    let misaligned = |by: u32| {
        let mut file = micro().write_aligned(64);
        put(&mut file, aligned, &by.to_le_bytes());
        file
    };
    refused!(misaligned(13), Gguf(gguf::Error::Alignment { .. }));
    refused!(misaligned(2048), Gguf(gguf::Error::Misplaced { .. }));
    // DATA_NOT_ENOUGH_DATA, _BAD_ALIGN, _INCONSISTENT_ALIGN as above, _MEM_SIZE_OVERFLOW
    refused!(MICRO[..MICRO.len() - 1], Gguf(gguf::Error::TensorsOutside { .. }));
    let vast = (0..2).map(|i| Tensor {
        name: format!("t{i}"),
        dims: vec![i64::MAX as u64 & !63],
        kind: 24,
        bytes: vec![0; 32],
    });
    let mut parts = micro();
    parts.tensors = vast.collect();
    refused!(parts.write(), Gguf(gguf::Error::TooLarge { .. }));
    // HEADER_EMPTY, KV_SUCCESS, TENSORS_ZERO_DIM, TENSORS_CUSTOM_ALIGN, DATA_SUCCESS: containers like any other, if no models.
    let opens = |file: &[u8]| gguf::open(&mut &*file, |_, _| Ok::<(), gguf::Error>(())).map(|file| file.n_tensors);
    assert_eq!(opens(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), Ok(0));
    assert_eq!(opens(&Anatomy { tensors: Vec::new(), ..micro() }.write()), Ok(0));
    assert_eq!(opens(&micro_with_shape(QKV, &[64, 0])), Ok(16));
    assert_eq!(opens(&tight().write_aligned(1)), Ok(16));
    assert_eq!(opens(&MICRO), Ok(16));
    let bare = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let text = refused!(*bare, Error::Model(gpt2::Error::MissingKey { key: "general.architecture" }));
    says(&text, &["general.architecture"]);
}

/// The file with an entry that stands there a second time.
fn twice(key: &str) -> Vec<u8> {
    let mut parts = micro();
    let value = parts.entry(key).clone();
    parts.entries.push((key.to_owned(), value));
    parts.write()
}

/// A key that is no UTF-8 is none that anybody reads: if it was one that is needed, that one is missing.
#[test]
fn keys_that_are_no_text_are_other_keys() {
    for key in ["gpt2.block_count", "tokenizer.ggml.tokens", "general.architecture"] {
        for byte in [0xff, 0x80, 0xc3] {
            let text = match refuse(&with(string_at(&MICRO, key) + 8, &[byte])) {
                Error::Model(gpt2::Error::MissingKey { key: found }) if found == key => {
                    said(&gpt2::Error::MissingKey { key: found })
                }
                Error::Tokenizer(tokenizer::Error::Missing { key: found }) if found == key => found.to_owned(),
                error => panic!("{error:?}"),
            };
            says(&text, &[key]);
        }
    }
    let renamed = with(string_at(&MICRO, "general.type") + 8, b"\xff\xc3");
    assert_eq!(run(&mut &renamed[..]), run(&mut &MICRO[..]));
    let tensor = with(string_at(&MICRO, QKV) + 8, b"\xff");
    let text = refused!(tensor, Error::Model(gpt2::Error::UnknownTensor { tensor }) if tensor.as_str().is_none());
    says(&text, &["\\xfflk.0.attn_qkv.weight"]);
}

/// A tensor placed by an alignment that no file of this size can have.
#[test]
fn alignments_beyond_the_file_leave_no_tensor_inside_it() {
    for alignment in [1u32 << 31, 1 << 20] {
        let mut parts = micro();
        parts.set("general.alignment", alignment).tensors.truncate(1);
        let text =
            refused!(parts.write(), Error::Gguf(gguf::Error::TensorsOutside { end, .. }) if end > alignment.into());
        says(&text, &["truncated"]);
    }
}

/// What is strange, and taken all the same, as the text is that of the sound file.
///
/// * A key twice that nobody reads: it has no meaning to be in doubt of, and remembering 65,536 keys takes memory.
/// * A merge whose sides are no tokens never applies; what it makes must be a token.
/// * A token's text twice: files whose vocabulary was padded have such. The first is what texts become, and each
///   decodes to its text. (llama.cpp ends the process.)
#[test]
fn what_harms_no_text_is_taken() {
    let sound = run(&mut &MICRO[..]);
    assert_eq!(run(&mut &twice("general.name")[..]), sound);
    let mut merges = strings("tokenizer.ggml.merges");
    let last = String::from_utf8(merges[merges.len() - 1].clone()).unwrap().replace(' ', "");
    let first = last.chars().next().unwrap().len_utf8();
    merges.push([&last[..first], " ", &last[first..]].concat().into());
    assert_eq!(run(&mut &with_entry("tokenizer.ggml.merges", Value::strings(&merges))[..]), sound);

    let (all, w) = (tokens(), tokens().iter().position(|token| token == b"w").unwrap());
    let spare = all.iter().rposition(|token| token == b"\xc5\x83").expect("a byte that the prompt lacks");
    assert!(spare > w);
    let file = with_token(spare, b"w");
    let mut src = &file[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let mut session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    session.push_text(&mut src, PROMPT, Control::Ignore).unwrap();
    assert!(session.tokens().all(|token| token.0 as usize != spare));
    for id in [w, spare] {
        let mut bytes = [0; 4];
        let n = session.tokenizer().decode(&mut src, Token(id as u32), Control::Ignore, &mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"w");
    }
}
