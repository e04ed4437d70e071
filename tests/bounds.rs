//! The work of opening a file is in proportion to its header, and a header has a limit: counted in bytes read, not seconds.

use std::collections::HashSet;

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::Model;
use gptrickle_core::gguf::{self, MAX_HEADER};
use gptrickle_core::source::{Counting, Error, Source};
use gptrickle_core::tokenizer::Tokenizer;
use gptrickle_tests::anatomy::{Anatomy, Tensor};
use gptrickle_tests::buffered::Buffered;
use gptrickle_tests::gguf_writer::Value;
use gptrickle_tests::micro::micro;

/// Bytes read to open a file and to load its tokenizer.
fn work(file: &[u8]) -> u64 {
    let mut src = Counting::new(Buffered::new(file, 4096));
    let model = Model::open(&mut src).unwrap();
    let mut memory = vec![0; Tokenizer::bytes(&model.vocabulary) + ALIGN];
    Tokenizer::load(&model.vocabulary, &mut src, &mut Arena::new(&mut memory)).unwrap();
    src.bytes()
}

/// As many entries more that nobody reads.
fn with_entries(n: usize) -> Anatomy {
    let mut parts = micro();
    parts.entries.extend((0..n).map(|i| (format!("some.key.{i}"), 1u32.into())));
    parts
}

/// As many tokens made by merges, in the order of the merges or in the other.
fn with_merges(n: usize, in_order: bool) -> Anatomy {
    let mut parts = micro();
    let letters = || ('a'..='z').map(String::from);
    let pairs = || letters().flat_map(|a| letters().map(move |b| (a.clone(), b)));
    let triples = pairs().flat_map(|(a, b)| letters().map(move |c| (format!("{a}{b}"), c)));
    let merges: Vec<(String, String)> = pairs().chain(triples).take(n).collect();
    let alphabet: Vec<Vec<u8>> = {
        let bytes = parts.entry("tokenizer.ggml.tokens").bytes[12..].to_vec();
        let mut rest = &bytes[..];
        (0..256)
            .map(|_| {
                let (len, tail) = rest.split_first_chunk().unwrap();
                let (text, tail) = tail.split_at(u64::from_le_bytes(*len) as usize);
                rest = tail;
                text.to_vec()
            })
            .collect()
    };
    let mut made: Vec<Vec<u8>> = merges.iter().map(|(left, right)| format!("{left}{right}").into()).collect();
    if !in_order {
        made.reverse();
    }
    let tokens: Vec<Vec<u8>> = alphabet.into_iter().chain(made).chain([b"<|endoftext|>".to_vec()]).collect();
    assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len());
    let mut types = vec![1; tokens.len()];
    types[tokens.len() - 1] = 3;
    let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    parts
        .set("tokenizer.ggml.tokens", Value::strings(&tokens))
        .set("tokenizer.ggml.token_type", Value::i32s(&types))
        .set("tokenizer.ggml.merges", Value::strings(&merges))
        .set("tokenizer.ggml.bos_token_id", tokens.len() as u32 - 1)
        .set("tokenizer.ggml.eos_token_id", tokens.len() as u32 - 1);
    let embedding = parts.tensor("token_embd.weight");
    embedding.dims[1] = tokens.len() as u64;
    embedding.bytes = vec![0; tokens.len() * 68];
    parts
}

/// Twice as much in the header is twice the work, and no byte of it is read more than a few times.
#[test]
fn opening_takes_work_in_proportion_to_the_header() {
    type Build = fn(usize) -> Anatomy;
    let kinds: [(&str, Build, u64); 3] = [
        ("entries", with_entries, 2),
        ("tokens and merges", |n| with_merges(n, true), 8),
        ("tokens in another order", |n| with_merges(n, false), 64),
    ];
    println!("{:24} {:>6} {:>9} {:>10}", "", "n", "header", "read");
    for (name, build, most) in kinds {
        let sizes = [2048, 4096, 8192].map(|n| {
            let file = build(n).write();
            let (header, read) = (Anatomy::header_len(&file) as u64, work(&file));
            println!("{name:24} {n:6} {header:9} {read:10}");
            assert!(read < most * header, "{name}: {read} bytes read of {header}");
            read
        });
        for two in sizes.windows(2) {
            assert!(two[1] * 10 <= two[0] * 21, "{name}: {} bytes read, then {} for twice as much", two[0], two[1]);
        }
    }
}

/// The container alone, as no model has so many tensors.
#[test]
fn as_many_tensors_as_there_may_be_are_read_once() {
    let tensor = |i| Tensor { name: format!("t{i}"), dims: vec![0], kind: 0, bytes: Vec::new() };
    let read = [1 << 14, 1 << 15, 1 << 16].map(|n| {
        let mut file = Anatomy { tensors: (0..n).map(tensor).collect(), ..micro() }.write();
        file.extend([0; 32]); // where the tensors begin, and end
        let mut src = Counting::new(Buffered::new(&file, 4096));
        gguf::open(&mut src, |_, _| Ok::<(), gguf::Error>(())).unwrap();
        assert!(src.bytes() <= file.len() as u64 * 11 / 10, "{} of {}", src.bytes(), file.len());
        src.bytes()
    });
    println!("{read:?} bytes read for 16, 32 and 64 Ki tensors");
}

/// A file of a terabyte: a header, and zeros.
struct Endless(Vec<u8>, [u8; 4096]);

impl Source for Endless {
    fn len(&self) -> u64 {
        1 << 40
    }

    fn max_chunk(&self) -> usize {
        4096
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        self.1.fill(0);
        for (to, from) in self.1.iter_mut().zip(self.0.iter().skip(offset as usize)) {
            *to = *from;
        }
        Ok(&self.1[..len])
    }
}

/// A header that goes on for ever is left at its limit: strings of no length, a long array of numbers, one long string.
#[test]
fn a_header_has_a_limit() {
    let header = |value: Value| {
        let mut file = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0some".to_vec();
        file.extend(value.kind.to_le_bytes());
        file.extend(value.bytes);
        file
    };
    for value in
        [Value::array(8, 1 << 30, []), Value::array(10, MAX_HEADER / 8, []), Value::raw(8, (1u64 << 35).to_le_bytes())]
    {
        let mut src = Counting::new(Endless(header(value), [0; 4096]));
        let error = gguf::open(&mut src, |_, _| Ok::<(), gguf::Error>(())).unwrap_err();
        assert!(matches!(error, gguf::Error::LongHeader { .. }), "{error:?}");
        println!("{error} ({} bytes read)", src.bytes());
        assert!(src.bytes() <= MAX_HEADER + 4096);
    }
}
