//! Sessions that go on: past the end of the context.

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Error, Model, Options, Overflow, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::Token;
use gptrickle_tests::vectors;

const KV: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];
const PROMPT: [Token; 5] = [Token(40), Token(11), Token(9), Token(77), Token(30)];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

fn drawn(context: usize, kv: KvFormat) -> Options {
    let sampling = Params { temperature: 1.0, repetition_penalty: 1.2, ..Params::default() };
    Options { state: gpt2::Options { context, batch: 4, kv }, sampling, seed: 7 }
}

/// Memory for a session, as it is after a reset.
fn memory(file: &[u8], options: &Options) -> Vec<u8> {
    vec![0xa5; Plan::new(&Model::open(&mut &file[..]).unwrap(), options).total() + ALIGN]
}

/// A session in `memory`, which uses what the plan says.
fn session<'a>(file: &[u8], options: &Options, memory: &'a mut [u8]) -> Session<'a> {
    let model = Model::open(&mut &file[..]).unwrap();
    let mut arena = Arena::new(memory);
    let mut session = Session::new(&model, options, &mut &file[..], &mut arena).unwrap();
    assert_eq!(arena.used(), Plan::new(&model, options).total());
    session.hash_logits(true);
    session
}

fn tokens(session: &Session) -> Vec<Token> {
    session.tokens().collect()
}

// ---- past the end of the context

/// After each slide, a fresh session that is given what was kept, and the generator as it was, tells the same text.
#[test]
fn a_slide_is_a_prompt_of_what_was_kept() {
    let file = file("micro/micro-Q4_0.gguf");
    let mut slides = 0;
    for (kv, context, keep) in
        [(KV[0], 16, 0), (KV[1], 32, 4), (KV[2], 31, 5), (KV[0], 12, 10), (KV[2], 2, 0), (KV[1], 9, 3)]
    {
        let options = drawn(context, kv);
        let mut memories = [memory(&file, &options), memory(&file, &options)];
        let [memory, other] = &mut memories;
        let mut session = session(&file, &options, memory);
        session.set_overflow(Overflow::Slide { keep }).unwrap();
        session.push(&PROMPT[..5.min(context)]).unwrap();
        let mut fresh: Option<Session> = None;
        let mut other = Some(&mut other[..]);
        for made in 0..3 * context {
            let had = tokens(&session);
            if had.len() == context {
                let newest = (context - keep) / 2;
                let kept = [&had[..keep], &had[context - newest..]].concat();
                let fresh = fresh.get_or_insert_with(|| self::session(&file, &options, other.take().unwrap()));
                fresh.restart(options.sampling, options.seed).unwrap();
                fresh.skip_draws(session.draws());
                fresh.push(&kept).unwrap();
                slides += 1;
            }
            let next = session.next(&mut &file[..]).unwrap();
            if let Some(fresh) = &mut fresh {
                assert_eq!(fresh.next(&mut &file[..]).unwrap(), next, "{kv:?}, {keep} of {context}, token {made}");
                assert_eq!(tokens(fresh), tokens(&session));
            }
            if next.is_none() {
                assert_eq!(session.stop_reason(), Some(StopReason::EndOfText));
                break;
            }
            assert_eq!(session.draws(), made as u64 + 1);
        }
    }
    assert!(slides > 20, "{slides} slides");
}

#[test]
fn a_slide_needs_room() {
    let file = file("micro/micro-Q4_0.gguf");
    let options = drawn(8, KvFormat::F32);
    let mut memory = memory(&file, &options);
    let mut session = session(&file, &options, &mut memory);
    for keep in [7, 8, 100, usize::MAX] {
        let error = session.set_overflow(Overflow::Slide { keep }).unwrap_err();
        assert_eq!(error, Error::NoRoomToSlide { keep, context: 8 });
        assert!(error.to_string().contains("at most 6"), "{error}");
    }
    session.push(&[Token(1); 8]).unwrap();
    assert_eq!(session.next(&mut &file[..]), Ok(None), "a refused wish changes nothing");
    assert_eq!(session.stop_reason(), Some(StopReason::Context));
    // A text that ended there goes on, once it may.
    session.set_overflow(Overflow::Slide { keep: 6 }).unwrap();
    session.next(&mut &file[..]).unwrap().expect("a token");
    assert_eq!(session.tokens().len(), 8);
}
