//! A head in two stages: the token embedding proposes, the head decides, and other rows of the head are not read.

use std::ops::Range;

use gptrickle_core::arena::{ALIGN, Arena, TooSmall};
use gptrickle_core::generate::{Error, LogitsHash, Model, Options, Plan, RestoreError, Saved, Session, StopReason};
use gptrickle_core::gpt2::{self, Head, KvFormat, State, Weights};
use gptrickle_core::sampler::{self, Params, Sampler};
use gptrickle_core::source::{Resident, Source};
use gptrickle_core::tokenizer::Token;
use gptrickle_tests::anatomy::Anatomy;
use gptrickle_tests::buffered::Buffered;
use gptrickle_tests::faulty::{Fault, Faulty};
use gptrickle_tests::recording::{Recording, Request};
use gptrickle_tests::vectors;
use proptest::prelude::*;

/// Untied: a head of Q6_K, and a smaller token embedding.
const NAMES: [&str; 2] = ["tiny512-untied/tiny512-untied-Q2_K.gguf", "tiny512-untied/tiny512-untied-Q4_0.gguf"];
const PROMPT: [Token; 5] = [Token(40), Token(11), Token(9), Token(77), Token(30)];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

fn two_stage(candidates: usize) -> Head {
    Head::TwoStage { candidates }
}

fn options(candidates: usize) -> Options<'static> {
    Options {
        state: gpt2::Options { context: 32, batch: 4, kv: KvFormat::F32, ..Default::default() },
        sampling: Params { temperature: 1.0, top_k: 0, repetition_penalty: 1.2, ..Params::default() },
        seed: 8,
        head: two_stage(candidates),
        ..Options::default()
    }
}

/// A session whose memory is what was planned, in memory as it is after a reset.
fn with_session<S: Source, T>(src: &mut S, options: &Options, f: impl FnOnce(Session, &Model, &mut S) -> T) -> T {
    let model = Model::open(src).unwrap();
    let total = Plan::new(&model, options).total();
    let mut memory = vec![0xa5; total + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let mut session = Session::new(&model, options, src, &mut arena).unwrap();
    assert_eq!(arena.used(), total);
    session.hash_logits(true);
    f(session, &model, src)
}

type Text = (Vec<Token>, Option<StopReason>, Option<LogitsHash>);

/// A text of at most 12 tokens; a failed read is tried again.
fn text<S: Source>(session: &mut Session, src: &mut S) -> Text {
    session.push(&PROMPT).unwrap();
    session.limit(12);
    let mut failures = 0;
    loop {
        match session.next(src) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Error::Source(_)) if failures == 0 => failures += 1,
            Err(error) => panic!("{error}"),
        }
    }
    (session.tokens().collect(), session.stop_reason(), session.logits_hash())
}

fn tell(file: &[u8], options: &Options) -> Text {
    with_session(&mut &file[..], options, |mut session, _, src| text(&mut session, src))
}

/// The next token by the definition: both heads' logits of all tokens, the best by the first, chosen by the second.
fn definition(file: &[u8], text: &[Token], options: &Options, draws: u64) -> Token {
    let mut src = file;
    let model = Model::open(&mut src).unwrap();
    let config = &model.header.config;
    let n_vocab = config.n_vocab;
    let state = gpt2::Options { context: text.len(), batch: text.len(), ..options.state };
    let mut memory = vec![0; gpt2::Plan::new(config, &state).total() + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let weights = Weights::load(&model.header, &model.file, &mut src, &mut arena).unwrap();
    let mut state = State::new(config, &state, &mut arena).unwrap();
    gpt2::forward(&mut src, &weights, &mut state, text.iter().map(|token| token.0), true).unwrap();
    let [mut draft, mut exact] = [vec![0.0; n_vocab], vec![0.0; n_vocab]];
    let last = text.len() - 1..text.len();
    gpt2::draft_logits(&mut src, &weights, &mut state, last.clone(), |_, first, logits| {
        draft[first..][..logits.len()].copy_from_slice(logits);
    })
    .unwrap();
    gpt2::logits(&mut src, &weights, &mut state, last, |_, first, logits| {
        exact[first..][..logits.len()].copy_from_slice(logits);
    })
    .unwrap();
    let mut best: Vec<usize> = (0..n_vocab).collect();
    best.sort_by(|&a, &b| draft[b].total_cmp(&draft[a]).then(a.cmp(&b)));
    best.truncate(options.head.candidates(n_vocab));
    // What is no candidate has the least logit there is, and is too unlikely to be drawn.
    let mut left = vec![-1e30; n_vocab];
    best.iter().for_each(|&id| left[id] = exact[id]);
    let params = Params { top_k: options.head.candidates(n_vocab), ..options.sampling };
    let mut memory = vec![0; params.bytes(n_vocab, 64, 1) + ALIGN];
    let mut sampler = Sampler::new(params, options.seed, n_vocab, 64, 1, &mut Arena::new(&mut memory)).unwrap();
    sampler.skip_draws(draws);
    let history: Vec<u32> = text.iter().map(|token| token.0).collect();
    sampler.begin(&history, history.len(), 0);
    sampler.push(0, 0, &left);
    sampler.pick(0).unwrap()
}

#[test]
fn the_best_of_the_draft_are_chosen_from_by_the_head() {
    let mut differ = 0;
    for name in NAMES {
        let file = file(name);
        for candidates in [1, 2, 64] {
            for temperature in [0.0, 1.0] {
                let base = options(candidates);
                let options = Options { sampling: Params { temperature, ..base.sampling }, ..base };
                let (tokens, ..) = tell(&file, &options);
                for n in 5..tokens.len() {
                    let draws = if temperature > 0.0 { n as u64 - 5 } else { 0 };
                    let expected = definition(&file, &tokens[..n], &options, draws);
                    assert_eq!(tokens[n], expected, "{name}, {candidates} candidates, token {n}");
                }
                let exact = tell(&file, &Options { head: Head::Exact, ..options });
                differ += usize::from(exact.0 != tokens);
            }
        }
    }
    assert!(differ > 2, "one or two candidates make another text: {differ}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guesses and texts side by side: each choice has candidates of its own.
    #[test]
    fn choices_kept_together_are_those_made_one_by_one(
        name in prop::sample::select(&NAMES[..]),
        candidates in 0..150usize,
        (temperature, penalty) in prop::sample::select(&[(0.0f32, 1.0f32), (0.3, 1.0), (1.0, 1.2)][..]),
        (batch, lookup, sequences, seed) in (0..7usize, 0..6usize, 2..5usize, 0..1000u64),
        less in 1..2000usize,
    ) {
        let file = file(name);
        let base = options(candidates);
        let sampling = Params { temperature, repetition_penalty: penalty, ..base.sampling };
        let state = gpt2::Options { batch, ..base.state };
        let alone = |seed, lookup| {
            let options = Options { sampling, seed, lookup, state, ..base };
            tell(&file, &options)
        };
        let single = alone(seed, 0);
        prop_assert_eq!(&single, &alone(seed, lookup));

        let state = gpt2::Options { sequences, own: 12, ..state };
        let together = Options { sampling, seed, state, ..base };
        with_session(&mut &file[..], &together, |mut session, _, src| {
            session.push(&PROMPT).unwrap();
            session.limit(12);
            let mut sequences = session.sequences().unwrap();
            let mut texts = vec![PROMPT.to_vec(); sequences.len()];
            while let Some((i, token)) = sequences.next(src).unwrap() {
                texts[i].push(token);
            }
            for (i, tokens) in texts.into_iter().enumerate() {
                let text = (tokens, sequences.stop_reason(i), sequences.logits_hash(i));
                assert_eq!(text, alone(seed + i as u64, 0), "sequence {i}");
            }
        });

        let mut src = &file[..];
        let model = Model::open(&mut src).unwrap();
        let needed = Plan::new(&model, &together).total();
        let have = needed.saturating_sub(less);
        let mut memory = vec![0; have + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        let mut arena = Arena::new(&mut memory[start..][..have]);
        let error = Session::new(&model, &together, &mut src, &mut arena).unwrap_err();
        prop_assert_eq!(error, Error::Arena(TooSmall { needed, have }));
    }
}

/// Where a tensor lies, and how long its rows are.
fn place(file: &[u8], name: &str) -> (Range<u64>, u64) {
    let mut at = Anatomy::header_len(file) as u64;
    for tensor in Anatomy::of(file).tensors {
        let len = tensor.bytes.len() as u64;
        if tensor.name == name {
            return (at..at + len, len / tensor.dims.get(1).unwrap_or(&1));
        }
        at += len;
    }
    panic!("no {name}");
}

/// A token reads the blocks and the draft once, and as many rows of the head as there are candidates, in file order.
#[test]
fn a_token_reads_the_draft_and_the_rows_it_leaves() {
    for name in NAMES {
        let file = file(name);
        let (head, row) = place(&file, "output.weight");
        let (draft, draft_row) = place(&file, "token_embd.weight");
        for candidates in [1, 16, 64] {
            for buffer in [4096, 32768] {
                let mut src = Recording::new(Buffered::new(&file, buffer));
                with_session(&mut src, &options(candidates), |mut session, model, src| {
                    let header = &model.header;
                    assert_eq!(header.token_embd_bytes, draft.end - draft.start);
                    let reads = header.head_reads(two_stage(candidates)).unwrap();
                    assert_eq!(reads, draft.end - draft.start + candidates as u64 * row);
                    session.push(&PROMPT).unwrap();
                    session.next(src).unwrap().unwrap();
                    src.take();
                    for _ in 0..3 {
                        session.next(src).unwrap().unwrap();
                        let mut rows = Vec::new();
                        let (mut read, mut drafted) = (0, 0);
                        for request in src.take() {
                            let Request::Chunk(range) = request else { continue };
                            let len = range.end - range.start;
                            read += len;
                            let whole = draft.contains(&range.start) && len > draft_row;
                            drafted += if whole { len } else { 0 };
                            if head.contains(&range.start) {
                                assert_eq!((len, (range.start - head.start) % row), (row, 0));
                                rows.push(range.start);
                            }
                        }
                        assert_eq!(read, header.bytes_per_token() - header.head_bytes + reads, "{name}");
                        assert_eq!(drafted, draft.end - draft.start, "{name}");
                        assert!(rows.len() == candidates && rows.is_sorted_by(|a, b| a < b), "{name}: {rows:?}");
                    }
                });
            }
        }
    }
}

/// What is read of every token is kept first: the draft, not the head.
#[test]
fn the_draft_is_kept_first() {
    let file = file(NAMES[0]);
    let (draft, row) = place(&file, "token_embd.weight");
    let draft_bytes = (draft.end - draft.start) as usize;
    let mut texts = Vec::new();
    for bytes in [0, 1000, draft_bytes, draft_bytes + 50_000, 1 << 20] {
        let mut memory = vec![0; bytes];
        let mut src = Resident::new(gptrickle_core::source::Counting::new(Buffered::new(&file, 4096)), &mut memory);
        texts.push(with_session(&mut src, &options(16), |mut session, model, src| {
            let saved = session.keep(src).unwrap();
            let all = model.header.block_bytes + model.header.token_embd_bytes;
            assert!(saved + row > all.min(bytes as u64), "{saved} of {bytes}");
            session.push(&PROMPT).unwrap();
            session.next(src).unwrap();
            for _ in 0..3 {
                let before = src.inner().bytes();
                session.next(src).unwrap();
                let reads = model.header.head_reads(two_stage(16)).unwrap();
                let most = model.header.bytes_per_token() - model.header.head_bytes + reads - saved;
                let read = src.inner().bytes() - before;
                // The row of a token may lie in the part of the draft that is kept.
                assert!((most - row..=most).contains(&read), "{read} of {most} with {bytes}");
            }
            (session.tokens().collect::<Vec<_>>(), session.logits_hash())
        }));
    }
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_failed_read_changes_no_text() {
    let file = file(NAMES[0]);
    let options = Options { lookup: 2, ..options(9) };
    let tell = |fault| {
        let mut src = Faulty::new(Buffered::new(&file, 4096), fault);
        with_session(&mut src, &options, |mut session, _, src| {
            let first = src.reads();
            (text(&mut session, src), first..src.reads())
        })
    };
    let (whole, reads) = tell(Fault::None);
    for n in reads.step_by(41) {
        assert!(tell(Fault::Read(n)).0 == whole, "read {n} failed");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    fn error(file: &[u8], options: &Options) -> Error {
        let mut src = file;
        let model = Model::open(&mut src).unwrap();
        let mut memory = vec![0; Plan::new(&model, options).total() + ALIGN];
        let mut arena = Arena::new(&mut memory);
        let error = Session::new(&model, options, &mut src, &mut arena).unwrap_err();
        assert_eq!(arena.used(), 0);
        error
    }
    let tied = error(&file("tiny512/tiny512-Q2_K.gguf"), &options(16));
    assert_eq!(tied, Error::Model(gpt2::Error::OneHead));
    assert!(tied.to_string().starts_with("this file has one head"), "{tied}");

    let file = file(NAMES[0]);
    // 307 rows of 210 bytes and a draft of 43,008 are less than the 107,520 of the head.
    let many = error(&file, &options(308));
    assert_eq!(many, Error::Model(gpt2::Error::DraftHead { reads: 107_688, exact: 107_520 }));
    assert!(many.to_string().contains("fewer candidates"), "{many}");
    with_session(&mut &file[..], &options(307), |_, _, _| {});

    let base = options(16);
    let top_k = Options { sampling: Params { top_k: 17, ..base.sampling }, ..base };
    let refused = Error::TopK { top_k: 17, candidates: 16 };
    assert_eq!(error(&file, &top_k), refused);
    assert!(refused.to_string().contains("at most 16"), "{refused}");
    // The likeliest token is one of any candidates.
    let greedy = Options { sampling: Params { temperature: 0.0, ..top_k.sampling }, ..base };
    with_session(&mut &file[..], &greedy, |_, _, _| {});
    with_session(&mut &file[..], &base, |mut session, _, _| {
        assert_eq!(session.restart(top_k.sampling, 1), Err(refused));
        session.restart(Params { top_k: 16, ..base.sampling }, 1).unwrap();
    });

    // Saved with a whole head and its controls.
    let exact = Options { head: Head::Exact, sampling: Params { top_k: 50, ..base.sampling }, ..base };
    let fingerprint = Model::open(&mut &file[..]).unwrap().fingerprint(&mut &file[..]).unwrap();
    let mut bytes = Vec::new();
    with_session(&mut &file[..], &exact, |session, _, _| {
        session.save(fingerprint, &mut |piece| {
            bytes.extend(piece);
            Ok::<(), ()>(())
        })
    })
    .unwrap();
    let mut rest = &bytes[..];
    let mut read = |out: &mut [u8]| std::io::Read::read(&mut rest, out);
    let saved = Saved::open(fingerprint, &mut read).unwrap();
    with_session(&mut &file[..], &base, |mut session, _, _| {
        assert!(matches!(session.restore(&saved, &mut read), Err(RestoreError::Memory(_))));
    });
}

/// A draft that is damaged is an error, not a text.
#[test]
fn a_draft_that_is_not_finite_is_an_error() {
    let mut file = file(NAMES[0]);
    let (draft, row) = place(&file, "token_embd.weight");
    // The scale of the last block of Q2_K is its last four bytes: d and dmin, in half precision.
    let end = (draft.start + 300 * row) as usize + row as usize;
    file[end - 4..end].copy_from_slice(&[0xff, 0x7e, 0xff, 0x7e]);
    with_session(&mut &file[..], &options(16), |mut session, _, src| {
        session.push(&PROMPT).unwrap();
        let error = session.next(src).unwrap_err();
        assert_eq!(error, Error::Sampler(sampler::Error::NotFinite { token: Token(300) }));
    });
}
