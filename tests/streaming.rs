//! Whole models through small buffers: the same bits from any source, each weight read once a token, memory as planned.

use std::ops::Range;
use std::sync::LazyLock;

use gptrickle_core::arena::{ALIGN, Arena, TooSmall};
use gptrickle_core::generate::{Error, Model, Options, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::{Generator, Params};
use gptrickle_core::source::{Counting, Resident, Source};
use gptrickle_core::tokenizer::{Control, Token};
use gptrickle_tests::anatomy::{Anatomy, Tensor};
use gptrickle_tests::buffered::Buffered;
use gptrickle_tests::recording::{Recording, Request};
use gptrickle_tests::{MODELS, files, logits, token_ids, vectors};
use proptest::prelude::*;

const KV: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0];

fn options(context: usize, batch: usize) -> Options<'static> {
    Options {
        state: gpt2::Options { context, batch, kv: KvFormat::F32, ..Default::default() },
        sampling: Params::greedy(),
        seed: 1,
        ..Options::default()
    }
}

/// All committed models: name and file.
static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for model in MODELS {
        all.extend(files(model).into_iter().map(|(kind, file)| (format!("{model}-{kind}"), file)));
    }
    all
});

fn file(name: &str) -> &'static [u8] {
    &FILES.iter().find(|file| file.0 == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// The reference prompt of a model.
fn prompt(name: &str) -> Vec<u32> {
    let model = MODELS.iter().rev().find(|model| name.starts_with(**model)).unwrap();
    token_ids(&vectors().join(model).join("ref/tokens.txt"))
}

/// Calls `f` with a session of a file.
fn with_session<S: Source, T>(src: &mut S, options: &Options, f: impl FnOnce(Session, &Model, &mut S) -> T) -> T {
    let model = Model::open(src).unwrap();
    let mut memory = vec![0; Plan::new(&model, options).total() + ALIGN];
    let session = Session::new(&model, options, src, &mut Arena::new(&mut memory)).unwrap();
    f(session, &model, src)
}

/// Asserts equal bits, and shows the first that differ.
fn assert_same(a: &[f32], b: &[f32], what: &str) {
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(i) = a.iter().zip(b).position(differ) {
        panic!("{what}: value {i} is {} and {}, of {} and {}", a[i], b[i], a.len(), b.len());
    }
    assert_eq!(a.len(), b.len(), "{what}");
}

// ---- the same bits

#[test]
fn logits_are_the_same_from_any_source() {
    for (name, file) in FILES.iter() {
        let tokens = prompt(name);
        let whole = logits(&mut &file[..], &tokens, 32, KvFormat::F32).unwrap();
        assert!(whole.iter().all(|logit| logit.is_finite()));
        let longest_row = Model::open(&mut &file[..]).unwrap().header.longest_row;
        for buffer in [longest_row, 4096, 32768] {
            let mut src = Buffered::new(file, buffer);
            let ours = logits(&mut src, &tokens, 32, KvFormat::F32).unwrap();
            assert_same(&ours, &whole, &format!("{name} through {buffer} bytes"));
        }
    }
}

#[test]
fn logits_are_the_same_for_any_batch() {
    for (name, file) in FILES.iter() {
        let tokens = prompt(name);
        // What the cache keeps of a position is the same for all types of weights: one of them will do.
        let formats = if name.ends_with("Q4_0") { &KV[..] } else { &KV[..1] };
        for &kv in formats {
            let whole = logits(&mut &file[..], &tokens, 32, kv).unwrap();
            for batch in [1, 3] {
                let ours = logits(&mut &file[..], &tokens, batch, kv).unwrap();
                assert_same(&ours, &whole, &format!("{name}, {kv:?}, batches of {batch}"));
            }
        }
    }
}

// ---- what is read

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn chunks(requests: &[Request]) -> Vec<Range<u64>> {
    let chunk = |request: &Request| match request {
        Request::Chunk(range) => Some(range.clone()),
        Request::Prefetch(_) => None,
    };
    requests.iter().filter_map(chunk).collect()
}

/// Where each tensor lies, from the tensor list alone.
fn places(file: &[u8]) -> Vec<(Tensor, Range<u64>)> {
    let mut at = Anatomy::header_len(file) as u64;
    let place = |tensor: Tensor| {
        let start = at;
        at += tensor.bytes.len() as u64;
        assert_eq!(at % 32, 0, "no padding behind {}", tensor.name);
        (tensor, start..at)
    };
    Anatomy::of(file).tensors.into_iter().map(place).collect()
}

/// What one decoded token needs, from the tensor list.
struct Needed {
    /// Stretches that are read whole, in file order.
    whole: Vec<Range<u64>>,
    /// Tensors of which one row is read, and its bytes.
    rows: Vec<(Range<u64>, u64)>,
}

fn needed(file: &[u8]) -> Needed {
    let places = places(file);
    let untied = places.iter().any(|(tensor, _)| tensor.name == "output.weight");
    let (mut whole, mut rows) = (Vec::new(), Vec::new());
    for (tensor, place) in places {
        let is_token = tensor.name == "token_embd.weight";
        if is_token || tensor.name == "position_embd.weight" {
            rows.push((place.clone(), len(&place) / tensor.dims[1]));
        }
        if tensor.name != "position_embd.weight" && (!is_token || !untied) {
            whole.push(place);
        }
    }
    Needed { whole, rows }
}

#[test]
fn a_token_reads_each_weight_once_and_nothing_else() {
    for (name, file) in FILES.iter() {
        let Needed { whole, rows } = needed(file);
        let sum = whole.iter().map(len).sum::<u64>() + rows.iter().map(|row| row.1).sum::<u64>();
        for buffer in [usize::MAX, 4096, 32768] {
            let mut slice = &file[..];
            let mut buffered = Buffered::new(file, buffer.min(32768));
            let src: &mut dyn Source = if buffer == usize::MAX { &mut slice } else { &mut buffered };
            with_session(&mut Recording::new(src), &options(16, 4), |mut session, model, src| {
                assert_eq!(model.header.bytes_per_token(), sum, "{name}");
                let tokens: Vec<Token> = prompt(name)[..5].iter().map(|&id| Token(id)).collect();
                session.push(&tokens).unwrap();
                for _ in 0..3 {
                    // The prompt, then the token it made: one each time.
                    session.next(src).unwrap().expect("more tokens");
                    let had = session.tokens().len();
                    src.take();
                    session.next(src).unwrap();
                    let mut chunks = chunks(&src.take());
                    assert_eq!(chunks.iter().map(len).sum::<u64>(), sum, "{name}: token {had}");
                    for (place, row_bytes) in &rows {
                        let is_row =
                            |c: &Range<u64>| c.start >= place.start && c.end <= place.end && len(c) == *row_bytes;
                        let row = chunks.remove(chunks.iter().position(is_row).expect("a row of each embedding"));
                        assert_eq!((row.start - place.start) % row_bytes, 0, "{name}: a whole row");
                    }
                    chunks.sort_by_key(|range| range.start);
                    let mut chunks = chunks.into_iter().peekable();
                    for place in &whole {
                        let mut at = place.start;
                        while let Some(chunk) = chunks.next_if(|chunk| chunk.start == at && chunk.end <= place.end) {
                            at = chunk.end;
                        }
                        assert_eq!(at, place.end, "{name} through {buffer} bytes: {place:?} is read once");
                    }
                    assert_eq!(chunks.next(), None, "{name} reads nothing else");
                }
            });
        }
    }
}

/// As on the command line: the token made before was written out, which reads its text. Where nothing is read between
/// the head and the next token, and the head is the token embedding, the row of the token may be there already: a source
/// that holds it need not read it again, and it is not counted.
#[test]
fn what_is_counted_is_what_a_token_reads() {
    let mut spared_rows = 0;
    for (name, file) in FILES.iter() {
        for buffer in [usize::MAX, 4096, 32768] {
            let mut slice = &file[..];
            let mut buffered = Buffered::new(file, buffer.min(32768));
            let src: &mut dyn Source = if buffer == usize::MAX { &mut slice } else { &mut buffered };
            with_session(&mut Counting::new(Recording::new(src)), &options(16, 4), |mut session, model, src| {
                let per_token = model.header.bytes_per_token();
                let tokens: Vec<Token> = prompt(name)[..5].iter().map(|&id| Token(id)).collect();
                session.push(&tokens).unwrap();
                let token = session.next(src).unwrap().expect("more tokens");
                session.tokenizer().decode(src, token, Control::Ignore, &mut [0; 64]).unwrap();
                let before = src.bytes();
                session.next(src).unwrap().expect("more tokens");
                assert_eq!(src.bytes() - before, per_token, "{name} through {buffer} bytes");

                let before = src.bytes();
                session.next(src).unwrap();
                let spared = per_token - (src.bytes() - before);
                let header = model.header;
                let row = if header.tied { header.head_bytes / header.config.n_vocab as u64 } else { 0 };
                let held = buffer == usize::MAX || spared > 0;
                assert_eq!(spared, if held { row } else { 0 }, "{name} through {buffer} bytes");
                spared_rows += usize::from(spared > 0);
            });
        }
    }
    assert!(spared_rows >= 25, "a mapped, tied file spares a row: {spared_rows}");
}

/// A prompt costs the layers once a batch, the last norm and the head once, a row of both embeddings a token.
#[test]
fn a_prompt_costs_the_layers_once_a_batch() {
    for name in ["micro-Q4_0", "tiny512-Q4_K_M", "tiny512-untied-Q2_K"] {
        let file = file(name);
        let Needed { whole, rows } = needed(file);
        let per_token: u64 = rows.iter().map(|row| row.1).sum();
        let places = places(file);
        let place = |name: &str| places.iter().find(|place| place.0.name == name).map(|place| len(&place.1));
        let head = place("output.weight").or(place("token_embd.weight")).unwrap();
        let once = head + place("output_norm.weight").unwrap() + place("output_norm.bias").unwrap();
        let layers = whole.iter().map(len).sum::<u64>() - once;
        let tokens: Vec<Token> = prompt(name)[..13].iter().map(|&id| Token(id)).collect();
        for (batch, passes) in [(1, 13), (2, 7), (3, 5), (6, 3), (7, 2), (12, 2), (13, 1), (32, 1)] {
            with_session(
                &mut Recording::new(Buffered::new(file, 4096)),
                &options(16, batch),
                |mut session, model, src| {
                    session.push(&tokens).unwrap();
                    src.take();
                    session.next(src).unwrap();
                    let read: u64 = chunks(&src.take()).iter().map(len).sum();
                    assert_eq!(model.header.bytes_per_prompt(13, batch), read, "{name} in batches of {batch}");
                    assert_eq!(read, passes * layers + once + 13 * per_token, "{name} in batches of {batch}");
                },
            );
        }
    }
}

// ---- weights kept in memory

#[test]
fn what_is_kept_is_not_read_and_changes_no_bit() {
    for (name, file) in FILES.iter() {
        let weights = Model::open(&mut &file[..]).unwrap().header;
        let all = (weights.block_bytes + weights.head_bytes) as usize;
        let token_row = needed(file).rows[0].1;
        let mut texts = Vec::new();
        for percent in [0, 1, 25, 50, 75, 99, 100] {
            let mut memory = vec![0; all * percent / 100];
            let room = memory.len();
            let mut src = Resident::new(Counting::new(Buffered::new(file, 4096)), &mut memory);
            texts.push(with_session(&mut src, &options(16, 4), |mut session, model, src| {
                let saved = session.keep(src).unwrap();
                let unused = room as u64 - saved;
                assert!(unused <= model.header.longest_row as u64, "{name}: {percent} %: {unused} bytes unused");
                session.hash_logits(true);
                session.push(&[Token(1), Token(2)]).unwrap();
                session.next(src).unwrap();
                for _ in 0..3 {
                    let before = src.inner().bytes();
                    session.next(src).unwrap();
                    let read = src.inner().bytes() - before;
                    // A row of a tied embedding may lie in the part of the head that is kept.
                    let most = model.header.bytes_per_token() - saved;
                    let least = if model.header.tied { most.saturating_sub(token_row) } else { most };
                    assert!((least..=most).contains(&read), "{name}: {percent} %: {read} not in {least}..={most}");
                }
                (session.tokens().collect::<Vec<_>>(), session.logits_hash())
            }));
        }
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{name}");
    }
}

// ---- memory

/// Memory of exactly so many bytes, on a multiple of [`ALIGN`].
fn aligned(memory: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    memory.resize(bytes + ALIGN, 0xa5);
    let start = memory.as_ptr().align_offset(ALIGN);
    &mut memory[start..][..bytes]
}

fn any_options(n_ctx: usize) -> impl Strategy<Value = Options<'static>> {
    let state = (1..=n_ctx, 0..70usize, prop::sample::select(&KV[..]));
    let sampling = (prop::sample::select(&[0.0f32, 0.7][..]), 0..600usize, any::<bool>(), 0..200usize);
    (state, sampling, 0..40usize, (0..6usize, 0..50usize)).prop_map(
        |((context, batch, kv), (temperature, top_k, penalty, repetition_window), lookup, (sequences, own))| Options {
            state: gpt2::Options { context, batch, kv, sequences, own },
            sampling: Params {
                temperature,
                top_k,
                repetition_penalty: if penalty { 1.3 } else { 1.0 },
                repetition_window,
                no_repeat_ngram_size: repetition_window % 4,
                bad_words_ids: if penalty { &[&[Token(3)], &[Token(4), Token(5)]] } else { &[] },
                min_new_tokens: top_k % 3,
                generator: if top_k % 5 == 0 { Generator::Torch } else { Generator::Pcg },
                ..Params::default()
            },
            seed: 1,
            lookup,
            ..Options::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_is_what_is_used(
        options in any_options(32),
        name in prop::sample::select(&["micro-Q4_0", "tiny512-Q4_0", "tiny512-untied-Q2_K"][..]),
        less in 1..2000usize,
    ) {
        let mut src = file(name);
        let model = Model::open(&mut src).unwrap();
        let total = Plan::new(&model, &options).total();
        let mut memory = Vec::new();
        let mut arena = Arena::new(aligned(&mut memory, total));
        Session::new(&model, &options, &mut src, &mut arena).unwrap();
        prop_assert_eq!(arena.used(), total);

        let have = total.saturating_sub(less);
        let fits = |context: &usize| {
            let state = gpt2::Options { context: *context, ..options.state };
            Plan::new(&model, &Options { state, ..options }).total() <= have
        };
        let largest = (1..=model.header.config.n_ctx).rev().find(fits);
        prop_assert_eq!(Plan::largest_context(&model, &options, have), largest);

        for have in [total - 1, have] {
            let mut arena = Arena::new(aligned(&mut memory, have));
            let error = Session::new(&model, &options, &mut src, &mut arena).unwrap_err();
            prop_assert_eq!(error, Error::Arena(TooSmall { needed: total, have }));
            let text = error.to_string();
            prop_assert!(text.contains(&total.to_string()) && text.contains(&have.to_string()), "{}", text);
            prop_assert_eq!(arena.used(), 0, "none is cut off in vain");
        }
    }
}

#[test]
fn plans_beyond_any_memory_do_not_wrap() {
    let model = Model::open(&mut file("micro-Q4_0")).unwrap();
    for batch in [usize::MAX, usize::MAX / 64, 1 << 60] {
        let options = Options { lookup: batch, ..options(32, batch) };
        assert_eq!(Plan::new(&model, &options).total(), usize::MAX);
        let error = Session::new(&model, &options, &mut file("micro-Q4_0"), &mut Arena::new(&mut [0; 64])).unwrap_err();
        assert!(matches!(error, Error::Arena(TooSmall { needed: usize::MAX, .. })), "{error:?}");
    }
}

/// Rubbish in the memory, as after a reset, changes nothing.
#[test]
fn memory_need_not_be_clean() {
    let mut texts = Vec::new();
    for rubbish in [0, 0xff, 0x7f] {
        let mut src = file("micro-Q4_0");
        let model = Model::open(&mut src).unwrap();
        let options =
            Options { sampling: Params { top_k: 0, repetition_penalty: 1.1, ..Params::default() }, ..options(32, 8) };
        let mut memory = vec![rubbish; Plan::new(&model, &options).total() + ALIGN];
        let mut session = Session::new(&model, &options, &mut src, &mut Arena::new(&mut memory)).unwrap();
        session.hash_logits(true);
        session.push_text(&mut src, b"in the", Control::Ignore).unwrap();
        while session.next(&mut src).unwrap().is_some() {}
        texts.push((session.tokens().collect::<Vec<_>>(), session.logits_hash()));
    }
    assert!(texts[0] == texts[1] && texts[0] == texts[2], "{texts:?}");
}

// ---- a text from beginning to end

/// All tokens of a text that starts with the first five of the reference prompt.
fn story(file: &[u8], options: &Options) -> (Vec<Token>, Option<StopReason>) {
    with_session(&mut &file[..], options, |mut session, _, src| {
        session.push(&[40, 11, 9, 77, 30].map(Token)).unwrap();
        while session.next(src).unwrap().is_some() {}
        (session.tokens().collect(), session.stop_reason())
    })
}

#[test]
fn a_full_context_ends_the_text() {
    let file = file("micro-Q4_0");
    let (longest, stop) = story(file, &options(32, 4));
    assert_eq!((longest.len(), stop), (32, Some(StopReason::Context)));
    for context in [5, 6, 7, 31] {
        let (tokens, stop) = story(file, &options(context, 4));
        assert_eq!((&tokens[..], stop), (&longest[..context], Some(StopReason::Context)));
    }
    with_session(&mut &file[..], &options(8, 4), |mut session, _, src| {
        session.push(&[1; 8].map(Token)).unwrap();
        for _ in 0..3 {
            assert_eq!(session.next(src), Ok(None));
            assert_eq!(session.stop_reason(), Some(StopReason::Context));
        }
        let error = session.push(&[Token(1)]).unwrap_err();
        assert_eq!(error, Error::Model(gpt2::Error::Full { tokens: 1, left: 0 }));
        assert_eq!(session.tokens().collect::<Vec<_>>(), [1; 8].map(Token));
    });
}

#[test]
fn as_many_tokens_are_made_as_were_asked_for() {
    let file = file("micro-Q4_0");
    let (longest, _) = story(file, &options(32, 4));
    with_session(&mut &file[..], &options(32, 4), |mut session, _, src| {
        session.push(&longest[..5]).unwrap();
        for end in [5, 8, 12] {
            let had = session.tokens().len();
            session.limit(end - had);
            while session.next(src).unwrap().is_some() {}
            assert_eq!(session.stop_reason(), Some(StopReason::MaxTokens));
            assert_eq!(session.tokens().collect::<Vec<_>>(), longest[..end], "goes on where it stopped");
        }
    });
}

#[test]
fn the_same_seed_tells_the_same_text() {
    let file = file("micro-Q4_0");
    let drawn = |seed| Options { sampling: Params { temperature: 1.0, ..Params::default() }, seed, ..options(32, 4) };
    let (first, _) = story(file, &drawn(7));
    assert_eq!(story(file, &drawn(7)).0, first);
    assert!((8..12).any(|seed| story(file, &drawn(seed)).0 != first), "the seed matters");
    // Once more in the same session, after another text.
    with_session(&mut &file[..], &drawn(8), |mut session, _, src| {
        session.push(&[Token(3), Token(200)]).unwrap();
        while session.next(src).unwrap().is_some() {}
        session.restart(drawn(7).sampling, 7).unwrap();
        session.push(&first[..5]).unwrap();
        while session.next(src).unwrap().is_some() {}
        assert_eq!(session.tokens().collect::<Vec<_>>(), first);
    });
}

// ---- other files of the same model

/// The nearest half-precision number.
fn f16(x: f32) -> u16 {
    // Exact steps for the magnitudes that trained weights have; anything else is not this test's business.
    assert!(x == 0.0 || (6.2e-5..65000.0).contains(&x.abs()), "{x}");
    let bits = x.to_bits();
    let rounded = bits + 0xfff + (bits >> 13 & 1);
    if x == 0.0 { 0 } else { ((bits >> 16 & 0x8000) | ((rounded & 0x7fff_ffff) - (112 << 23)) >> 13) as u16 }
}

/// What a half-precision number is worth.
fn f32_of(bits: u16) -> f32 {
    let magnitude = if bits & 0x7fff == 0 { 0 } else { (u32::from(bits & 0x7fff) << 13) + (112 << 23) };
    f32::from_bits(u32::from(bits & 0x8000) << 16 | magnitude)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Stored as F16 or BF16, norms, biases and position embeddings are worth what F32 of the same values is.
#[test]
fn vectors_and_positions_of_half_precision_give_the_same_logits() {
    let file = file("micro-Q4_0");
    let tokens = prompt("micro");
    // Below the smallest normal number a half has fewer digits; leave those values out of both files.
    let keep = |x: f32| if x.abs() < 6.2e-5 { 0.0 } else { x };
    for bf16 in [false, true] {
        let [mut wide, mut narrow] = [Anatomy::of(file), Anatomy::of(file)];
        let mut changed = 0;
        for (wide, narrow) in wide.tensors.iter_mut().zip(&mut narrow.tensors).filter(|(tensor, _)| tensor.kind == 0) {
            let halves: Vec<u16> = floats(&wide.bytes)
                .into_iter()
                .map(|x| if bf16 { (x.to_bits() >> 16) as u16 } else { f16(keep(x)) })
                .collect();
            let back = |h: u16| if bf16 { f32::from_bits(u32::from(h) << 16) } else { f32_of(h) };
            wide.bytes = halves.iter().flat_map(|&h| back(h).to_le_bytes()).collect();
            narrow.bytes = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
            narrow.kind = if bf16 { 30 } else { 1 };
            changed += 1;
        }
        assert_eq!(changed, 11, "all norms, all biases, the positions");
        let [wide, narrow] = [wide, narrow].map(|parts| parts.write());
        let of = |file: &[u8]| logits(&mut &file[..], &tokens, 8, KvFormat::F32).unwrap();
        assert_same(&of(&narrow), &of(&wide), "halves and floats");
        assert_ne!(of(&narrow), of(file), "the values did change");
    }
}

#[test]
fn keys_that_older_files_lack_are_not_needed() {
    let text = |file: &[u8]| {
        with_session(&mut &file[..], &options(32, 4), |mut session, _, src| {
            session.push_text(src, b"in the wind", Control::Ignore).unwrap();
            while session.next(src).unwrap().is_some() {}
            session.tokens().collect::<Vec<_>>()
        })
    };
    let file = file("micro-Q4_0");
    let mut parts = Anatomy::of(file);
    for key in ["tokenizer.ggml.pre", "general.type", "general.size_label", "general.name", "general.file_type"] {
        parts.remove(key);
        assert_eq!(text(&parts.write()), text(file), "without {key}");
    }
    // The head on its own, as older converters wrote it: a copy of the token embedding.
    let mut head = parts.tensor("token_embd.weight").clone();
    head.name = "output.weight".into();
    parts.tensors.insert(2, head);
    let untied = parts.write();
    assert_eq!(text(&untied), text(file), "with a head of its own");
    let [tied, untied] = [file, &untied[..]].map(|file| Model::open(&mut &file[..]).unwrap().header);
    assert_eq!((tied.tied, untied.tied), (true, false));
    assert_eq!((tied.bytes_per_token(), tied.head_bytes), (untied.bytes_per_token(), untied.head_bytes));
}

// ---- other shapes

/// Numbers that are the same everywhere (xorshift64*), evenly in -1..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A model of another shape.
#[derive(Debug, Clone, Copy)]
struct Shape {
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    n_ff: usize,
}

const N_CTX: usize = 12;
const N_VOCAB: usize = 264;

/// A model of this shape with random weights in F32, and micro's vocabulary.
fn random_model(shape: Shape) -> Anatomy {
    let Shape { n_layer, n_embd, n_head, n_ff } = shape;
    let mut parts = Anatomy::of(file("micro-f32"));
    for (key, n) in [
        ("block_count", n_layer),
        ("context_length", N_CTX),
        ("embedding_length", n_embd),
        ("feed_forward_length", n_ff),
        ("attention.head_count", n_head),
    ] {
        parts.set(&format!("gpt2.{key}"), n as u32);
    }
    parts.tensors.clear();
    let mut random = Random(0x1234_5678_9abc_def1 + n_embd as u64 * 1000 + n_head as u64);
    let mut add = |name: String, dims: &[usize], scale: f32, shift: f32| {
        let n: usize = dims.iter().product();
        let bytes: Vec<u8> = (0..n).flat_map(|_| (random.next() * scale + shift).to_le_bytes()).collect();
        parts.tensors.push(Tensor { name, dims: dims.iter().map(|&n| n as u64).collect(), kind: 0, bytes });
    };
    let scale = |cols: usize| 2.0 / (cols as f32).sqrt();
    add("token_embd.weight".into(), &[n_embd, N_VOCAB], scale(n_embd), 0.0);
    add("position_embd.weight".into(), &[n_embd, N_CTX], 0.1, 0.0);
    for l in 0..n_layer {
        for (name, cols, rows) in [
            ("attn_qkv", n_embd, 3 * n_embd),
            ("attn_output", n_embd, n_embd),
            ("ffn_up", n_embd, n_ff),
            ("ffn_down", n_ff, n_embd),
        ] {
            add(format!("blk.{l}.{name}.weight"), &[cols, rows], scale(cols), 0.0);
            add(format!("blk.{l}.{name}.bias"), &[rows], 0.1, 0.0);
        }
        for name in ["attn_norm", "ffn_norm"] {
            add(format!("blk.{l}.{name}.weight"), &[n_embd], 0.2, 1.0);
            add(format!("blk.{l}.{name}.bias"), &[n_embd], 0.1, 0.0);
        }
    }
    add("output_norm.weight".into(), &[n_embd], 0.2, 1.0);
    add("output_norm.bias".into(), &[n_embd], 0.1, 0.0);
    parts
}

/// GPT-2 as its paper has it, in f64, one position after the other: the logits of every position.
fn by_definition(parts: &Anatomy, shape: Shape, tokens: &[u32]) -> Vec<f64> {
    let Shape { n_layer, n_embd, n_head, .. } = shape;
    let head_dim = n_embd / n_head;
    let tensor = |name: String| -> Vec<f64> {
        let tensor = parts.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        floats(&tensor.bytes).into_iter().map(f64::from).collect()
    };
    let linear = |name: &str, x: &[f64]| -> Vec<f64> {
        let (w, b) = (tensor(format!("{name}.weight")), tensor(format!("{name}.bias")));
        let row = |(w, b): (&[f64], &f64)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b;
        w.chunks(x.len()).zip(&b).map(row).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let (w, b) = (tensor(format!("{name}.weight")), tensor(format!("{name}.bias")));
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter().zip(w.iter().zip(&b)).map(|(x, (w, b))| (x - mean) / (variance + 1e-5).sqrt() * w + b).collect()
    };
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    let (embedding, positions) = (tensor("token_embd.weight".into()), tensor("position_embd.weight".into()));
    let mut cache = vec![Vec::new(); n_layer]; // each position's query, key and value
    let mut logits = Vec::new();
    for (t, &token) in tokens.iter().enumerate() {
        let mut x = embedding[token as usize * n_embd..][..n_embd].to_vec();
        add(&mut x, positions[t * n_embd..][..n_embd].to_vec());
        for (l, cache) in cache.iter_mut().enumerate() {
            let name = |name: &str| format!("blk.{l}.{name}");
            cache.push(linear(&name("attn_qkv"), &norm(&name("attn_norm"), &x)));
            let mut heads = vec![0.0; n_embd];
            for at in (0..n_embd).step_by(head_dim) {
                let part = |qkv: &Vec<f64>, which: usize| qkv[which * n_embd + at..][..head_dim].to_vec();
                let q = part(&cache[t], 0);
                let score = |kv: &Vec<f64>| {
                    q.iter().zip(part(kv, 1)).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let e: Vec<f64> = cache.iter().map(|kv| score(kv).exp()).collect();
                for (kv, e2) in cache.iter().zip(&e) {
                    let weight = e2 / e.iter().sum::<f64>();
                    heads[at..][..head_dim].iter_mut().zip(part(kv, 2)).for_each(|(h, v)| *h += weight * v);
                }
            }
            add(&mut x, linear(&name("attn_output"), &heads));
            let hidden =
                linear(&name("ffn_up"), &norm(&name("ffn_norm"), &x)).into_iter().map(gelu).collect::<Vec<_>>();
            add(&mut x, linear(&name("ffn_down"), &hidden));
        }
        let x = norm("output_norm", &x);
        logits.extend(embedding.chunks(n_embd).map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>()));
    }
    logits
}

fn rms(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    (values.map(|v| v * v).sum::<f64>() / n).sqrt()
}

/// The parts, with matrices stored as Q8_0.
fn quantised(parts: &Anatomy) -> Anatomy {
    let mut parts = parts.clone();
    for tensor in
        parts.tensors.iter_mut().filter(|tensor| tensor.dims.len() == 2 && tensor.name != "position_embd.weight")
    {
        let block = |x: &[f32]| {
            let d = f16(x.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / 127.0);
            let q = x.iter().map(move |x| (x / f32_of(d)).round() as i8 as u8);
            d.to_le_bytes().into_iter().chain(q).collect::<Vec<u8>>()
        };
        tensor.bytes = floats(&tensor.bytes).chunks(32).flat_map(block).collect();
        tensor.kind = 8;
    }
    parts
}

/// Heads of 1 to 96 values, most of which are no whole groups of 32; rows that fill no block of 256.
#[test]
fn any_number_of_heads_gives_the_logits_of_the_definition() {
    let tokens = [7, 250, 3, 3, 99, 180, 0, 263, 41, 12, 77, 5];
    println!(
        "{:>6} {:>6} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "n_embd", "n_head", "n_ff", "f32", "kv f16", "kv q8_0", "kv q4_0", "q8_0"
    );
    let shapes = [
        (32, 1, 32),
        (32, 4, 64),
        (32, 32, 32),
        (64, 2, 128),
        (64, 16, 96),
        (96, 1, 96),
        (96, 3, 160),
        (96, 4, 96),
        (96, 6, 384),
        (96, 12, 32),
        (160, 5, 64),
        (160, 8, 64),
        (160, 160, 64),
    ];
    for (n_embd, n_head, n_ff) in shapes {
        let shape = Shape { n_layer: 2, n_embd, n_head, n_ff };
        let parts = random_model(shape);
        let exact = by_definition(&parts, shape, &tokens);
        let spread = rms(exact.iter().copied());
        assert!(spread > 0.3, "the logits of {shape:?} are all alike");
        let (file, small) = (parts.write(), quantised(&parts).write());
        let off = |file: &[u8], kv, batch| {
            let ours = logits(&mut Buffered::new(file, 4096), &tokens, batch, kv).unwrap();
            rms(ours.iter().zip(&exact).map(|(ours, exact)| f64::from(*ours) - exact)) / spread
        };
        let errors = [
            off(&file, KvFormat::F32, 5),
            off(&file, KvFormat::F16, 5),
            off(&file, KvFormat::Q8_0, 5),
            off(&file, KvFormat::Q4_0, 5),
            off(&small, KvFormat::F32, 5),
        ];
        let [f32, kv_f16, kv_q8_0, kv_q4_0, q8_0] = errors;
        println!("{n_embd:6} {n_head:6} {n_ff:5} {f32:9.2e} {kv_f16:9.2e} {kv_q8_0:9.2e} {kv_q4_0:9.2e} {q8_0:9.2e}");
        assert!(
            f32 < 2e-6 && kv_f16 < 1e-3 && kv_q8_0 < 2e-2 && kv_q4_0 < 0.25 && q8_0 < 4e-2,
            "{shape:?}: {errors:?}"
        );
    }
}

/// Root mean square of the difference to an f32 cache, by the logits' own. Float models show the cache's rounding; in
/// quantised ones it also moves activations from one int8 code to the next, which is most of what is seen there.
/// Measured, at most: f16 2.7e-4 and 1.5e-2, q8_0 6.9e-3 and 1.9e-2, q4_0 0.13 and 0.14.
#[test]
fn smaller_caches_stay_near_the_f32_one() {
    println!("{:20} {:>9} {:>9} {:>9}", "model", "kv f16", "kv q8_0", "kv q4_0");
    for (name, file) in FILES.iter() {
        let tokens = prompt(name);
        let of = |kv| logits(&mut &file[..], &tokens, 8, kv).unwrap();
        let whole = of(KvFormat::F32);
        let spread = rms(whole.iter().map(|&logit| f64::from(logit)));
        let off = |kv| rms(of(kv).iter().zip(&whole).map(|(a, b)| f64::from(a - b))) / spread;
        let [f16, q8_0, q4_0] = [KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0].map(off);
        println!("{name:20} {f16:9.2e} {q8_0:9.2e} {q4_0:9.2e}");
        let float = ["f32", "f16", "BF16"].iter().any(|kind| name.ends_with(kind));
        let most = if float { (4e-4, 1e-2) } else { (2e-2, 2.5e-2) };
        assert!(0.0 < f16 && f16 < most.0 && f16 < q8_0 && q8_0 < most.1, "{name}: {f16:e}, {q8_0:e}");
        assert!(q8_0 < q4_0 && q4_0 < 0.2, "{name}: {q8_0:e}, {q4_0:e}");
    }
}
