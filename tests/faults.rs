//! Sources that fail, and what is asked of a session that it cannot do: a typed error that says where, never a panic,
//! never a wrong text. Ids name what once went wrong in another reader of the same format.

use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Error, Model, Options, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{self, Cause, Source};
use gptrickle_core::tokenizer::{self, Control, Token};
use gptrickle_tests::buffered::Buffered;
use gptrickle_tests::faulty::{CODE, Fault, Faulty};
use gptrickle_tests::micro::{MICRO, PROMPT, memory, micro, options, run, said, says};

/// A text as it was made: its tokens, its bytes, the hash over its logits.
#[derive(Debug, PartialEq)]
struct Story {
    tokens: Vec<Token>,
    text: Vec<u8>,
    hash: String,
    stop: Option<StopReason>,
}

/// Opens, loads, prompts, makes and decodes a text to the end of the context; whatever fails is tried again, and must
/// have failed as the source said it did.
fn tell<S: Source>(mut src: Faulty<S>, options: &Options) -> (Story, Faulty<S>) {
    /// Calls `f` until it does not fail.
    fn insist<S: Source, T>(src: &mut Faulty<S>, mut f: impl FnMut(&mut Faulty<S>) -> Result<T, Error>) -> T {
        loop {
            let failed = src.failed().len();
            match f(src) {
                Ok(value) => {
                    assert_eq!(src.failed().len(), failed, "a failed read was passed over");
                    return value;
                }
                Err(error) => {
                    assert_eq!(src.failed().len(), failed + 1, "{error:?} without a failed read");
                    let expected = src.failed()[failed];
                    assert_eq!(error, Error::Source(expected));
                    says(&said(&error), &[&expected.offset.to_string(), &CODE.to_string()]);
                }
            }
        }
    }
    let model = insist(&mut src, Model::open);
    // A session that fails to start takes its arena with it.
    let mut memories = [(); 2].map(|()| memory(Plan::new(&model, options).total()));
    let mut memories = memories.iter_mut();
    let mut session = insist(&mut src, |src| {
        let memory = memories.next().expect("at most one read fails");
        Session::new(&model, options, src, &mut Arena::new(memory))
    });
    session.hash_logits(true);
    insist(&mut src, |src| session.push_text(src, PROMPT, Control::Ignore));
    let mut text = Vec::new();
    while let Some(token) = insist(&mut src, |src| session.next(src)) {
        let mut bytes = [0; 64];
        let n = insist(&mut src, |src| Ok(session.tokenizer().decode(src, token, Control::Recognise, &mut bytes)?));
        text.extend(&bytes[..n]);
    }
    let story = Story {
        tokens: session.tokens().collect(),
        text,
        hash: session.logits_hash().unwrap().to_string(),
        stop: session.stop_reason(),
    };
    (story, src)
}

/// From a file in memory, each read of a greedy text and every third of a drawn one; from behind a small buffer, fewer.
#[test]
fn each_failed_read_is_reported_and_changes_nothing() {
    let drawn =
        Options { sampling: Params { temperature: 1.0, repetition_penalty: 1.2, ..Params::default() }, ..options(14) };
    let greedy = Options { state: gpt2::Options { kv: KvFormat::Q8_0, ..options(14).state }, ..options(14) };
    let guessed = Options { lookup: 3, ..drawn };
    for (options, every) in [(greedy, 1), (drawn, 3), (guessed, 3)] {
        let (whole, src) = tell(Faulty::new(&MICRO[..], Fault::None), &options);
        assert_eq!((whole.tokens.len(), whole.stop), (14, Some(StopReason::Context)));
        for n in (0..src.reads()).step_by(every) {
            let (story, src) = tell(Faulty::new(&MICRO[..], Fault::Read(n)), &options);
            assert_eq!(src.failed().len(), 1, "read {n} is there");
            assert_eq!(story, whole, "read {n} failed");
        }
        let (story, src) = tell(Faulty::new(Buffered::new(&MICRO, 4096), Fault::None), &options);
        assert_eq!(story, whole);
        for n in (0..src.reads()).step_by(7 * every) {
            let (story, _) = tell(Faulty::new(Buffered::new(&MICRO, 4096), Fault::Read(n)), &options);
            assert_eq!(story, whole, "read {n} failed");
        }
    }
}

#[test]
fn a_file_that_ends_early_on_the_card_is_reported() {
    let mut errors = 0;
    for end in (0..=MICRO.len() as u64).step_by(211) {
        let mut src = Faulty::new(Buffered::new(&MICRO, 4096), Fault::From(end));
        match run(&mut src) {
            Err(Error::Source(error)) => {
                assert_eq!(Some(&error), src.failed().last());
                assert_eq!(error.cause, Cause::Device(CODE));
                assert!(error.offset + error.len as u64 > end);
                errors += 1;
            }
            other => panic!("{other:?} from {end} bytes"),
        }
    }
    assert_eq!(errors, MICRO.len().div_ceil(211));
}

#[test]
fn a_buffer_too_small_for_a_row_is_named_before_any_weight_is_read() {
    let model = Model::open(&mut &MICRO[..]).unwrap();
    let longest = model.header.longest_row;
    assert_eq!(longest, 64 * 4, "position_embd has the longest rows: 64 floats");
    let mut buffer = Buffered::new(&MICRO, longest - 1);
    let error = run(&mut buffer).unwrap_err();
    let Error::Source(source::Error { len, cause, .. }) = error else { panic!("{error:?}") };
    assert_eq!((len, cause), (longest, Cause::ChunkTooLong(longest - 1)));
    says(&said(&error), &["255", "256", "larger"]);
    assert_eq!(run(&mut Buffered::new(&MICRO, longest)), run(&mut &MICRO[..]));
}

/// CVE-2025-52566: the number of a text's tokens, cast to an int, turns negative; and is more than there is room for.
#[test]
fn cve_2025_52566_texts_longer_than_the_context() {
    let mut src = &MICRO[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let mut session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    session.push_text(&mut src, b"in", Control::Ignore).unwrap();
    let had: Vec<_> = session.tokens().collect();
    for n in [16, 100, 5000] {
        let text = "x ".repeat(n);
        let error = session.push_text(&mut src, text.as_bytes(), Control::Ignore).unwrap_err();
        let Error::Model(gpt2::Error::Full { tokens, left }) = error else { panic!("{error:?}") };
        assert!(tokens >= n && left == 16 - had.len(), "{error:?}");
        says(&said(&error), &[&tokens.to_string(), &left.to_string()]);
        assert_eq!(session.tokens().collect::<Vec<_>>(), had, "none is added");
    }
    let error = session.push(&[Token(1); 16]).unwrap_err();
    assert_eq!(error, Error::Model(gpt2::Error::Full { tokens: 16, left: 16 - had.len() }));
    // A word too long for the buffers.
    let error = session.push_text(&mut src, &[b'x'; 100_000], Control::Ignore).unwrap_err();
    assert!(matches!(error, Error::Tokenizer(tokenizer::Error::Scratch { .. })), "{error:?}");
    said(&error);
    assert_eq!(session.tokens().collect::<Vec<_>>(), had, "none is added");
    assert!(session.next(&mut src).unwrap().is_some(), "the session goes on");
}

#[test]
fn a_text_that_is_refused_leaves_no_first_token_behind() {
    let file = micro().set("tokenizer.ggml.add_bos_token", true).write();
    let mut src = &file[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let mut session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    session.push_text(&mut src, "x ".repeat(100).as_bytes(), Control::Ignore).unwrap_err();
    assert_eq!(session.tokens().len(), 0);
    session.push_text(&mut src, PROMPT, Control::Ignore).unwrap();
    let bos = session.tokens().filter(|token| *token == Token(263)).count();
    assert_eq!((bos, session.tokens().next()), (1, Some(Token(263))));
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let mut src = &MICRO[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(16)).total());
    let mut session = Session::new(&model, &options(16), &mut src, &mut Arena::new(&mut memory)).unwrap();
    for id in [264, 50256, u32::MAX] {
        let error = session.push(&[Token(1), Token(id)]).unwrap_err();
        assert_eq!(error, Error::Model(gpt2::Error::Token { id, n_vocab: 264 }));
        says(&said(&error), &[&id.to_string(), "264"]);
        assert_eq!(session.tokens().len(), 0);
        let error = session.tokenizer().decode(&mut src, Token(id), Control::Ignore, &mut [0; 64]).unwrap_err();
        assert_eq!(error, tokenizer::Error::UnknownToken { token: Token(id), n_tokens: 264 });
        said(&error);
    }
}

/// Running past the positions of the model once ended the process.
#[test]
fn a_context_beyond_the_model_is_refused() {
    let mut src = &MICRO[..];
    let model = Model::open(&mut src).unwrap();
    for context in [0, 33, 256, usize::MAX] {
        let mut memory = vec![0; 1 << 20];
        let error = Session::new(&model, &options(context), &mut src, &mut Arena::new(&mut memory)).unwrap_err();
        assert_eq!(error, Error::Model(gpt2::Error::Context { asked: context, n_ctx: 32 }));
        says(&said(&error), &[&context.to_string(), "32"]);
    }
}

/// `f4 90 80 80` in a prompt once ended the process. Bytes are bytes: they all come back.
#[test]
fn prompts_of_any_bytes_come_back() {
    let mut src = &MICRO[..];
    let model = Model::open(&mut src).unwrap();
    let mut memory = memory(Plan::new(&model, &options(32)).total());
    let mut session = Session::new(&model, &options(32), &mut src, &mut Arena::new(&mut memory)).unwrap();
    for prompt in [&b"\xf4\x90\x80\x80"[..], b"\xed\xa0\x80", b"\xc0\x80", b"\xff\xfe\0\x80", b"a\xf0\x9f b"] {
        session.restart(Params::greedy(), 1).unwrap();
        session.push_text(&mut src, prompt, Control::Ignore).unwrap();
        let mut text: Vec<u8> = Vec::new();
        for token in session.tokens() {
            let mut bytes = [0; 64];
            let n = session.tokenizer().decode(&mut src, token, Control::Ignore, &mut bytes).unwrap();
            text.extend(&bytes[..n]);
        }
        assert_eq!(text, prompt);
        assert!(session.next(&mut src).is_ok());
    }
}
