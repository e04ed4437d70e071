//! Sessions that go on: past the end of the context, after a reset, and several tokens a pass.

use std::convert::Infallible;

use gptrickle::source::DEMO;
use gptrickle_core::arena::{ALIGN, Arena, TooSmall};
use gptrickle_core::generate::{
    Error, Fingerprint, Model, Options, Overflow, Plan, RestoreError, Saved, Session, StopReason,
};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::Kernel;
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::{Control, Token};
use gptrickle_tests::vectors;
use proptest::prelude::*;

const KV: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0];
const PROMPT: [Token; 5] = [Token(40), Token(11), Token(9), Token(77), Token(30)];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

fn drawn(context: usize, kv: KvFormat) -> Options<'static> {
    let sampling = Params { temperature: 1.0, repetition_penalty: 1.2, ..Params::default() };
    Options {
        state: gpt2::Options { context, batch: 4, kv, ..Default::default() },
        sampling,
        seed: 8,
        ..Options::default()
    }
}

/// Memory for a session, as it is after a reset.
fn memory(file: &[u8], options: &Options) -> Vec<u8> {
    vec![0xa5; Plan::new(&Model::open(&mut &file[..]).unwrap(), options).total() + ALIGN]
}

/// A session in `memory`, which uses what the plan says.
fn session<'a>(file: &[u8], options: &Options<'a>, memory: &'a mut [u8]) -> Session<'a> {
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

// ---- after a reset

fn fingerprint(file: &[u8]) -> Fingerprint {
    Model::open(&mut &file[..]).unwrap().fingerprint(&mut &file[..]).unwrap()
}

fn save(session: &Session, model: Fingerprint) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(()) = session.save(model, &mut |piece| {
        assert!(piece.len() <= 256);
        bytes.extend_from_slice(piece);
        Ok::<(), Infallible>(())
    });
    assert_eq!(bytes.len(), session.saved_bytes());
    bytes
}

/// A reader that gives a few bytes at a time.
fn reader(mut bytes: &[u8]) -> impl FnMut(&mut [u8]) -> Result<usize, Infallible> {
    move |out| {
        let n = out.len().min(bytes.len()).min(100);
        out[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        Ok(n)
    }
}

fn restore(session: &mut Session, model: Fingerprint, bytes: &[u8]) -> Result<(), RestoreError<Infallible>> {
    let mut read = reader(bytes);
    let saved = Saved::open(model, &mut read)?;
    session.restore(&saved, &mut read)
}

/// Saved at any token, restored elsewhere, with another batch: the same tokens, and the same bits in all logits.
#[test]
fn a_restored_session_goes_on_as_if_nothing_had_happened() {
    for (name, kv, context, overflow) in [
        ("tiny512/tiny512-Q4_K_M.gguf", KV[0], 64, Overflow::Stop),
        ("tiny512/tiny512-Q4_K_M.gguf", KV[1], 64, Overflow::Stop),
        ("tiny512/tiny512-Q4_K_M.gguf", KV[2], 64, Overflow::Stop),
        ("micro/micro-Q4_0.gguf", KV[2], 32, Overflow::Slide { keep: 3 }),
    ] {
        let (file, options) = (file(name), drawn(context, kv));
        let model = fingerprint(&file);
        let mut memories = [memory(&file, &options), memory(&file, &options)];
        let [memory, other] = &mut memories;
        let mut session = session(&file, &options, memory);
        session.set_overflow(overflow).unwrap();
        session.limit(70);
        session.push(&PROMPT).unwrap();
        let (mut states, mut made) = (vec![save(&session, model)], Vec::new());
        while let Some(token) = session.next(&mut &file[..]).unwrap() {
            made.push(token);
            states.push(save(&session, model));
        }
        assert!(
            made.len() > 50 && session.stop_reason().is_some(),
            "{name} {kv:?}: {} tokens, {:?}",
            made.len(),
            session.stop_reason()
        );
        let row = match kv {
            KvFormat::F32 => 4.0,
            KvFormat::F16 => 2.0,
            KvFormat::Q8_0 => 1.125,
            KvFormat::Q4_0 => 0.5625,
        };
        let mut other = Some(&mut other[..]);
        for at in [0, 1, 20, 50, made.len()] {
            let state = &states[at];
            let saved = Saved::open(model, &mut reader(state)).unwrap();
            let options = saved.options(if other.is_some() { 9 } else { 4 });
            assert_eq!(options.sampling, drawn(context, kv).sampling);
            let mut memory = vec![0x5a; Plan::new(&Model::open(&mut &file[..]).unwrap(), &options).total() + ALIGN];
            let memory = if at == 50 { other.take().unwrap() } else { &mut memory[..] };
            let options = if at == 50 { drawn(context, kv) } else { options };
            let mut restored = self::session(&file, &options, memory);
            restore(&mut restored, model, state).unwrap();
            assert!(save(&restored, model) == *state, "{name}: what was restored is what was saved");
            for (i, token) in made[at..].iter().enumerate() {
                assert_eq!(restored.next(&mut &file[..]).unwrap(), Some(*token), "{name} {kv:?} {}", at + i);
            }
            assert_eq!(restored.next(&mut &file[..]).unwrap(), None);
            assert_eq!(restored.stop_reason(), session.stop_reason());
            assert_eq!(restored.logits_hash(), session.logits_hash(), "{name} {kv:?} from {at}");
            assert_eq!(tokens(&restored), tokens(&session));
        }
        let config = Model::open(&mut &file[..]).unwrap().header.config;
        let one = states[2].len() - states[1].len();
        assert_eq!(one, 4 + (row * (2 * config.n_layer * config.n_embd) as f64) as usize, "bytes a token");
    }
}

/// Thousands of tokens, a hundred times the context: the same with every kernel, and by a session that is saved again and
/// again, now and then, and goes on in memory full of rubbish. `cargo xtask soak` makes a hundred thousand.
#[test]
fn a_long_text_does_not_drift() {
    const TOKENS: usize = 3000;
    let file = file("micro/micro-Q4_0.gguf");
    let model = fingerprint(&file);
    let sampling = Params { temperature: 1.0, min_new_tokens: TOKENS, ..Params::default() };
    let options = Options { sampling, ..drawn(32, KvFormat::Q8_0) };
    let start = |session: &mut Session| {
        session.set_overflow(Overflow::Slide { keep: 3 }).unwrap();
        session.limit(TOKENS);
        session.push(&PROMPT).unwrap();
    };
    let run = |kernel: Kernel| {
        let mut memory = memory(&file, &options);
        let mut session = session(&file, &options, &mut memory);
        session.set_engine(Engine { kernel, ..Engine::default() });
        start(&mut session);
        let made: Vec<Token> = std::iter::from_fn(|| session.next(&mut &file[..]).unwrap()).collect();
        (made, session.logits_hash())
    };
    let defined = run(Kernel::GENERIC);
    assert_eq!(defined.0.len(), TOKENS);
    for kernel in Kernel::available() {
        assert!(run(kernel) == defined, "{}", kernel.name());
    }

    let (mut made, mut state, mut random) = (Vec::new(), None::<Vec<u8>>, 1u32);
    let mut most_saved = 0;
    while made.len() < TOKENS {
        let mut memory = memory(&file, &options);
        let mut session = session(&file, &options, &mut memory);
        match &state {
            None => start(&mut session),
            Some(state) => restore(&mut session, model, state).unwrap(),
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let n = 1 + (random >> 8) as usize % 200;
        made.extend(std::iter::from_fn(|| session.next(&mut &file[..]).unwrap()).take(n));
        let saved = save(&session, model);
        most_saved = most_saved.max(saved.len());
        assert!(made.len() < TOKENS || session.logits_hash() == defined.1);
        state = Some(saved);
    }
    assert!(made == defined.0);
    let row = 2 * 64 * 36 / 32; // keys and values of 64 in q8_0
    assert!(most_saved <= 192 + 32 * (4 + row), "{most_saved} bytes are more than a context");
}

/// The model's own end is kept; an interruption is not.
#[test]
fn an_ended_text_stays_ended() {
    let file = file("micro/micro-Q4_0.gguf");
    let (options, model) = (Options { seed: 9, ..drawn(32, KvFormat::Q8_0) }, fingerprint(&file));
    let mut memories = [memory(&file, &options), memory(&file, &options)];
    let [memory, other] = &mut memories;
    let (mut session, mut restored) = (session(&file, &options, memory), self::session(&file, &options, other));
    session.set_overflow(Overflow::Slide { keep: 3 }).unwrap();
    session.push(&PROMPT).unwrap();
    session.stop(StopReason::Interrupted);
    restore(&mut restored, model, &save(&session, model)).unwrap();
    assert_eq!(restored.stop_reason(), None);
    while restored.next(&mut &file[..]).unwrap().is_some() {}
    assert_eq!(restored.stop_reason(), Some(StopReason::EndOfText));
    restore(&mut session, model, &save(&restored, model)).unwrap();
    assert_eq!(session.next(&mut &file[..]), Ok(None));
    assert_eq!(session.stop_reason(), Some(StopReason::EndOfText));
    assert_eq!(tokens(&session), tokens(&restored));
}

/// A small text, saved.
fn small(file: &[u8], kv: KvFormat) -> (Options<'static>, Vec<u8>) {
    let options = drawn(8, kv);
    let mut memory = memory(file, &options);
    let mut session = session(file, &options, &mut memory);
    session.push(&PROMPT[..2]).unwrap();
    session.next(&mut &file[..]).unwrap();
    (options, save(&session, fingerprint(file)))
}

/// After what was refused, the session tells what it would have told anyway.
fn assert_usable(session: &mut Session, file: &[u8], expected: &[Token]) {
    assert_eq!(session.tokens().len(), 0, "empty");
    session.push(&PROMPT).unwrap();
    while session.next(&mut &file[..]).unwrap().is_some() {}
    assert_eq!(tokens(session), expected);
}

#[test]
fn every_damage_to_a_saved_session_is_refused() {
    let file = file("micro/micro-Q4_0.gguf");
    let model = fingerprint(&file);
    for kv in KV {
        let (options, state) = small(&file, kv);
        let [mut memory, mut other] = [memory(&file, &options), memory(&file, &options)];
        let mut session = session(&file, &options, &mut memory);
        let mut expected = self::session(&file, &options, &mut other);
        expected.push(&PROMPT).unwrap();
        while expected.next(&mut &file[..]).unwrap().is_some() {}
        let expected = tokens(&expected);
        let mut damaged = state.clone();
        for at in 0..state.len() {
            for bits in [1, 0x80, 0xff] {
                damaged[at] ^= bits;
                let error = restore(&mut session, model, &damaged).unwrap_err();
                let known = match at {
                    0..8 => error == RestoreError::Magic,
                    8..12 => matches!(error, RestoreError::Version { .. }),
                    _ => error == RestoreError::Checksum,
                };
                assert!(known, "{kv:?}: byte {at}, {error:?}");
                damaged[at] ^= bits;
            }
            assert_eq!(restore(&mut session, model, &state[..at]), Err(RestoreError::Truncated), "{kv:?}: {at} bytes");
            if at % 50 == 0 {
                assert_usable(&mut session, &file, &expected);
                session.restart(options.sampling, options.seed).unwrap();
            }
        }
        assert_usable(&mut session, &file, &expected);
        restore(&mut session, model, &state).unwrap();
        assert_eq!(save(&session, model), state, "and the undamaged one is still taken");
    }
}

#[test]
fn a_session_of_something_else_is_refused() {
    let file = file("micro/micro-Q4_0.gguf");
    let model = fingerprint(&file);
    let (options, state) = small(&file, KvFormat::F16);
    // The same shape and vocabulary, other weights, or the same weights stored otherwise.
    let mut trained = file.clone();
    let end = trained.len();
    trained[end - 2000..].iter_mut().for_each(|byte| *byte ^= 1);
    for other in [trained, self::file("micro/micro-Q8_0.gguf")] {
        let here = fingerprint(&other);
        let error = Saved::open(here, &mut reader(&state)).unwrap_err();
        assert_eq!(error, RestoreError::Model { saved: model, here });
        assert!(error.to_string().contains(&here.to_string()), "{error}");
    }

    let text = |options: &Options, error: RestoreError<Infallible>| {
        let mut memory = memory(&file, options);
        let mut session = session(&file, options, &mut memory);
        session.push(&PROMPT).unwrap();
        session.next(&mut &file[..]).unwrap();
        let (had, draws) = (tokens(&session), session.draws());
        assert_eq!(restore(&mut session, model, &state), Err(error));
        assert_eq!((tokens(&session), session.draws()), (had, draws), "as it was");
        session.next(&mut &file[..]).unwrap().expect("and goes on");
    };
    let state_of =
        |context, kv| Options { state: gpt2::Options { context, batch: 4, kv, ..Default::default() }, ..options };
    text(&state_of(9, KvFormat::F16), RestoreError::Context { saved: 8, here: 9 });
    text(&state_of(8, KvFormat::F32), RestoreError::Kv { saved: KvFormat::F16, here: KvFormat::F32 });
    let less = Options { sampling: Params { top_k: 3, ..options.sampling }, ..options };
    text(&less, RestoreError::Memory(TooSmall { needed: 50 * 8 + 8 * 4, have: 32 + 8 * 4 }));

    // The controls need not be planned for exactly: those of the saved session are taken.
    let more = Options { sampling: Params { top_k: 0, temperature: 3.0, ..options.sampling }, seed: 99, ..options };
    let mut memory = memory(&file, &more);
    let mut session = session(&file, &more, &mut memory);
    restore(&mut session, model, &state).unwrap();
    assert_eq!(save(&session, model), state);
}

/// Whoever computes the checksum for it can write any number; nothing panics, and nothing strange is taken.
#[test]
fn forged_numbers_are_refused() {
    let file = file("micro/micro-Q4_0.gguf");
    let model = fingerprint(&file);
    let (options, state) = small(&file, KvFormat::Q8_0);
    let mut memory = memory(&file, &options);
    let mut session = session(&file, &options, &mut memory);
    let mut refused = 0;
    for at in (12..176).step_by(4).filter(|at| !(16..24).contains(at)) {
        for value in [0xffff_ffffu32, 0x7fff_ffff, 0x8000_0000, 9, 0x7fc0_0000] {
            let mut forged = state.clone();
            forged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc64(&forged[..176]);
            forged[176..184].copy_from_slice(&crc.to_le_bytes());
            if restore(&mut session, model, &forged).is_err() {
                refused += 1;
            } else {
                session.limit(3);
                while session.next(&mut &file[..]).unwrap().is_some() {}
            }
        }
    }
    assert!(refused > 50, "{refused} refused");
}

/// CRC-64/XZ, a bit at a time.
fn crc64(bytes: &[u8]) -> u64 {
    let bit = |crc: u64, _| if crc & 1 == 1 { crc >> 1 ^ 0xc96c_5795_d787_0f42 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u64::from(byte), bit))
}

// ---- several tokens a pass

/// What a text of the demo model is, and the passes it took after the prompt.
fn demo(prompt: &[u8], sampling: Params, lookup: usize) -> (Vec<Token>, String, u64) {
    let state = gpt2::Options { context: 256, batch: 8, kv: KvFormat::F32, ..Default::default() };
    let options = Options { state, sampling, seed: 42, lookup, ..Options::default() };
    let mut memory = memory(DEMO, &options);
    let mut session = session(DEMO, &options, &mut memory);
    session.push_text(&mut &DEMO[..], prompt, Control::Ignore).unwrap();
    while session.pass(&mut &DEMO[..]).unwrap() > 0 {}
    let passes = session.passes();
    session.limit(100);
    while session.next(&mut &DEMO[..]).unwrap().is_some() {}
    (tokens(&session), session.logits_hash().unwrap().to_string(), session.passes() - passes)
}

/// Greedy continuations of what repeats itself do so, too; stories hardly do.
#[test]
fn text_that_repeats_itself_takes_fewer_passes() {
    let drawn = Params { temperature: 0.5, ..Params::default() };
    for (prompt, sampling, repeats) in [
        ("one two three one two three one two three one two three", Params::greedy(), true),
        ("\"No, no, no, no, no, no, no", Params::greedy(), true),
        ("a b c d e f a b c d e f a b c d e f", Params::greedy(), true),
        ("Once upon a time", Params::greedy(), false),
        ("Once upon a time", drawn, false),
        ("The cat sat on the mat. The dog sat on the mat.", drawn, false),
    ] {
        let (text, hash, passes) = demo(prompt.as_bytes(), sampling, 0);
        for lookup in [4, 8] {
            let (same, same_hash, fewer) = demo(prompt.as_bytes(), sampling, lookup);
            assert!(same == text, "{prompt:?}: other text with lookup {lookup}");
            assert_eq!(same_hash, hash, "{prompt:?}, lookup {lookup}");
            let ratio = passes as f64 / fewer as f64;
            println!(
                "{:24} lookup {lookup}: {passes} -> {fewer} passes, {ratio:.2} x",
                &prompt[..prompt.len().min(24)]
            );
            assert!(fewer <= passes && (!repeats || ratio >= 1.5), "{prompt:?}, lookup {lookup}: {ratio}");
        }
    }
}

/// A session that guesses and one that does not, side by side.
fn beside(name: &str, options: Options, lookup: usize, keep: Option<usize>, steps: &[u8]) -> u64 {
    let (file, guessing) = (file(name), Options { lookup, ..options });
    let model = fingerprint(&file);
    let mut memories = [memory(&file, &options), memory(&file, &guessing)];
    let [memory, other] = &mut memories;
    let (mut plain, mut fast) = (session(&file, &options, memory), session(&file, &guessing, other));
    let both = [&mut plain, &mut fast];
    for session in both {
        session.set_overflow(keep.map_or(Overflow::Stop, |keep| Overflow::Slide { keep })).unwrap();
        session.push(&[3, 200, 7, 3, 200, 7, 3].map(Token)).unwrap();
        session.limit(60);
    }
    for &step in steps {
        match step {
            0 => {
                // Whatever is refused changes nothing.
                let text = "x ".repeat(1000);
                plain.push_text(&mut &file[..], text.as_bytes(), Control::Ignore).unwrap_err();
                fast.push_text(&mut &file[..], text.as_bytes(), Control::Ignore).unwrap_err();
            }
            1 => {
                let more = [Token(3), Token(200)];
                assert_eq!(plain.push(&more), fast.push(&more));
            }
            2 => {
                // Of a guess that was right, keys and values may be there a pass earlier: each takes the other's.
                let states = [save(&fast, model), save(&plain, model)];
                restore(&mut plain, model, &states[0]).unwrap();
                restore(&mut fast, model, &states[1]).unwrap();
            }
            3 => assert_eq!(fast.push(&[]), plain.push(&[])),
            _ => assert_eq!(fast.next(&mut &file[..]), plain.next(&mut &file[..])),
        }
        assert_eq!((tokens(&fast), fast.draws()), (tokens(&plain), plain.draws()));
        assert_eq!((fast.logits_hash(), fast.stop_reason()), (plain.logits_hash(), plain.stop_reason()));
    }
    assert!(fast.passes() <= plain.passes() + steps.len() as u64);
    plain.passes().saturating_sub(fast.passes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens between tokens, guesses show in nothing but the number of passes.
    #[test]
    fn guesses_change_no_text(
        tiny in any::<bool>(),
        (temperature, top_k) in prop::sample::select(&[(0.0f32, 1usize), (0.3, 5), (1.0, 50), (1.0, 0)][..]),
        penalty in prop::sample::select(&[1.0f32, 1.2, 0.6][..]),
        kv in prop::sample::select(&KV[..]),
        (context, batch, lookup, seed) in (8..33usize, 1..9usize, 1..12usize, 0..1000u64),
        (no_repeat_ngram_size, min_new_tokens) in (0..4usize, 0..9usize),
        keep in prop::option::of(0..7usize),
        steps in prop::collection::vec(0..30u8, 70),
    ) {
        let name = if tiny { "tiny512-untied/tiny512-untied-Q2_K.gguf" } else { "micro/micro-Q4_0.gguf" };
        let sampling = Params {
            temperature,
            top_k,
            repetition_penalty: penalty,
            no_repeat_ngram_size,
            min_new_tokens,
            bad_words_ids: &[&[Token(104)], &[Token(101), Token(32)]],
            ..Params::default()
        };
        let state = gpt2::Options { context, batch, kv, ..Default::default() };
        beside(name, Options { state, sampling, seed, ..Options::default() }, lookup, keep, &steps);
    }
}
