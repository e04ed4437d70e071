//! Several texts from one prompt: each is the one that its own seed makes alone, and a pass reads what one does.

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Error, LogitsHash, Model, Options, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{Counting, Source};
use gptrickle_core::tokenizer::Token;
use gptrickle_tests::faulty::{Fault, Faulty};
use gptrickle_tests::vectors;
use proptest::prelude::*;

const KV: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0];
const NAMES: [&str; 2] = ["micro/micro-Q4_0.gguf", "tiny512-untied/tiny512-untied-Q2_K.gguf"];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

/// What became of a text: its new tokens, why it ended, and the hash over its logits.
#[derive(Debug, Default, PartialEq)]
struct Text {
    tokens: Vec<Token>,
    stop: Option<StopReason>,
    hash: Option<LogitsHash>,
}

/// Whether the caller stops a text once it has so many tokens.
type Cut = Option<usize>;

fn options(context: usize, sequences: usize, own: usize) -> Options<'static> {
    Options {
        state: gpt2::Options { context, batch: 2, kv: KvFormat::F32, sequences, own },
        sampling: Params { temperature: 1.0, repetition_penalty: 1.2, ..Params::default() },
        seed: 8,
        ..Options::default()
    }
}

/// A session whose memory is what was planned, in memory as it is after a reset.
fn with_session<S: Source, T>(src: &mut S, options: &Options, f: impl FnOnce(Session, &mut S) -> T) -> T {
    let model = Model::open(src).unwrap();
    let total = Plan::new(&model, options).total();
    let mut memory = vec![0xa5; total + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let session = Session::new(&model, options, src, &mut arena).unwrap();
    assert_eq!(arena.used(), total);
    f(session, src)
}

fn alone(file: &[u8], options: &Options, prompt: &[Token], limit: usize, cut: Cut) -> Text {
    with_session(&mut &file[..], options, |mut session, src| {
        session.hash_logits(true);
        session.push(prompt).unwrap();
        session.limit(limit);
        let mut tokens = Vec::new();
        while let Some(token) = session.next(src).unwrap() {
            tokens.push(token);
            if cut == Some(tokens.len()) {
                session.stop(StopReason::StopString);
                break;
            }
        }
        Text { tokens, stop: session.stop_reason(), hash: session.logits_hash() }
    })
}

/// All sequences of a session; a failed read is tried again.
fn together<S: Source>(session: &mut Session, src: &mut S, cuts: &[Cut]) -> Vec<Text> {
    let mut failures = 0;
    let mut sequences = session.sequences().unwrap();
    let mut texts: Vec<Text> = (0..sequences.len()).map(|_| Text::default()).collect();
    loop {
        match sequences.next(src) {
            Ok(None) => break,
            Ok(Some((i, token))) => {
                texts[i].tokens.push(token);
                if cuts.get(i).copied().flatten() == Some(texts[i].tokens.len()) {
                    sequences.stop(i, StopReason::StopString);
                }
            }
            Err(Error::Source(_)) if failures == 0 => failures += 1,
            Err(error) => panic!("{error}"),
        }
    }
    for (i, text) in texts.iter_mut().enumerate() {
        (text.stop, text.hash) = (sequences.stop_reason(i), sequences.logits_hash(i));
    }
    texts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_sequence_is_what_its_own_seed_makes_alone(
        name in prop::sample::select(&NAMES[..]),
        kv in prop::sample::select(&KV[..]),
        (temperature, top_k) in prop::sample::select(&[(0.0f32, 1usize), (0.5, 5), (1.0, 50), (9.0, 0)][..]),
        penalty in prop::sample::select(&[1.0f32, 1.2][..]),
        (context, batch, limit, seed) in (2..33usize, 0..9usize, 0..32usize, any::<u64>()),
        prompt in prop::collection::vec(0..256u32, 1..12),
        (no_repeat_ngram_size, min_new_tokens) in (0..4usize, 0..9usize),
        cuts in prop::collection::vec(prop::option::of(1..20usize), 2..6),
        prefill in any::<bool>(),
    ) {
        let file = file(name);
        let prompt: Vec<Token> = prompt.into_iter().take(context).map(Token).collect();
        let sampling = Params {
            temperature,
            top_k,
            repetition_penalty: penalty,
            no_repeat_ngram_size,
            min_new_tokens,
            ..Params::default()
        };
        let state = gpt2::Options { context, batch, kv, sequences: cuts.len(), own: limit };
        let options = Options { state, sampling, seed, ..Options::default() };
        let texts = with_session(&mut &file[..], &options, |mut session, src| {
            session.hash_logits(true);
            session.push(&prompt).unwrap();
            session.limit(limit);
            while prefill && session.pass(src).unwrap() > 0 {}
            let texts = together(&mut session, src, &cuts);
            assert_eq!(session.tokens().collect::<Vec<_>>(), prompt, "the text is the prompt again");
            // And once more, from the same memory.
            assert_eq!(texts, together(&mut session, src, &cuts));
            texts
        });
        let state = gpt2::Options { sequences: 0, own: 0, ..options.state };
        for (i, (text, cut)) in texts.iter().zip(&cuts).enumerate() {
            let options = Options { state, seed: seed.wrapping_add(i as u64), ..options };
            prop_assert_eq!(text, &alone(&file, &options, &prompt, limit, *cut), "sequence {}", i);
        }
    }
}

/// After its sequences, a session goes on as if there had been none.
#[test]
fn the_session_goes_on_from_the_prompt() {
    let file = file(NAMES[0]);
    let prompt = [40, 11, 9, 77, 30].map(Token);
    let single = alone(&file, &options(32, 1, 0), &prompt, 12, None);
    with_session(&mut &file[..], &options(32, 3, 12), |mut session, src| {
        session.hash_logits(true);
        session.push(&prompt).unwrap();
        session.limit(12);
        assert_eq!(together(&mut session, src, &[])[0], single);
        // Dropped in the middle of a turn.
        let mut sequences = session.sequences().unwrap();
        (0..7).for_each(|_| _ = sequences.next(src).unwrap().unwrap());
        assert_eq!((0..3).map(|i| sequences.seed(i)).collect::<Vec<_>>(), [8, 9, 10].map(Some));
        drop(sequences);
        let tokens: Vec<Token> = std::iter::from_fn(|| session.next(src).unwrap()).collect();
        assert_eq!((tokens, session.logits_hash()), (single.tokens, single.hash));
    });
    with_session(&mut &file[..], &options(32, 1, 12), |mut session, src| {
        session.push(&prompt).unwrap();
        let mut sequences = session.sequences().unwrap();
        assert!(sequences.is_empty(), "one was planned");
        assert_eq!((sequences.next(src), sequences.stop_reason(0)), (Ok(None), None));
        sequences.stop(7, StopReason::Interrupted);
    });
}

/// The weights once a step, whatever the number of sequences: two rows of embeddings more for each further one.
#[test]
fn three_sequences_read_what_one_does() {
    for name in NAMES {
        let file = file(name);
        let options = Options { sampling: Params::greedy(), ..options(32, 3, 20) };
        with_session(&mut Counting::new(&file[..]), &options, |mut session, src| {
            let header = Model::open(src).unwrap().header;
            let prompt = [40, 11, 9, 77, 30].map(Token);
            session.push(&prompt).unwrap();
            session.limit(10);
            let before = src.bytes();
            let mut sequences = session.sequences().unwrap();
            sequences.next(src).unwrap();
            assert_eq!(src.bytes() - before, header.bytes_per_prompt(5, 2 + 1), "{name}: the prompt, once");
            for active in [3, 3, 3, 2, 2, 1] {
                // The turns of the others read nothing.
                let before = src.bytes();
                (1..sequences_left(&sequences)).for_each(|_| _ = sequences.next(src).unwrap());
                assert_eq!(src.bytes(), before, "{name}");
                (0..3 - active).for_each(|i| sequences.stop(i, StopReason::Interrupted));
                assert!(
                    sequences.next(src).unwrap().is_some(),
                    "{name}: {:?}",
                    [0, 1, 2].map(|i| sequences.stop_reason(i))
                );
                // A row of a tied embedding may be there already: the whole file is mapped, and the head read last.
                let read = src.bytes() - before;
                let rows = header.embedding_bytes * (active as u64 - 1);
                let most = header.bytes_per_token() + rows;
                let spared = if header.tied { header.head_bytes / header.config.n_vocab as u64 } else { 0 };
                assert!(read == most || read == most - spared, "{name}: {read} of {most} bytes for {active}");
            }
            assert_eq!(sequences.passes(), 2 + 6);
        });
    }
}

fn sequences_left(sequences: &gptrickle_core::generate::Sequences) -> usize {
    (0..sequences.len()).filter(|&i| sequences.stop_reason(i).is_none()).count()
}

#[test]
fn a_failed_read_changes_no_sequence() {
    let file = file(NAMES[0]);
    let tell = |fault| {
        let mut src = Faulty::new(&file[..], fault);
        with_session(&mut src, &options(16, 3, 6), |mut session, src| {
            session.hash_logits(true);
            session.push(&[40, 11, 9, 77, 30].map(Token)).unwrap();
            let first = src.reads();
            (together(&mut session, src, &[Some(2)]), first..src.reads())
        })
    };
    let (whole, reads) = tell(Fault::None);
    assert_eq!(whole.iter().map(|text| text.tokens.len()).collect::<Vec<_>>(), [2, 6, 6]);
    for n in reads {
        assert!(tell(Fault::Read(n)).0 == whole, "read {n} failed");
    }
}

/// Keys and values of the prompt once, those of the new positions for each.
#[test]
fn further_sequences_take_their_own_positions() {
    let file = file(NAMES[0]);
    let model = Model::open(&mut &file[..]).unwrap();
    let kv = |context, sequences, own| Plan::new(&model, &options(context, sequences, own)).model.kv;
    assert_eq!(kv(20, 3, 5), kv(20 + 2 * 5, 1, 0));
    assert_eq!(kv(20, 3, 500), kv(20 * 3, 1, 0));
    assert_eq!(kv(20, 0, 500), kv(20, 1, 0));
    assert_eq!(Plan::new(&model, &options(20, usize::MAX, 5)).total(), usize::MAX);
    // A batch is at least what a step of all takes.
    let plans = [0, 1, 4, 5].map(|batch| {
        let options = options(20, 4, 5);
        Plan::new(&model, &Options { state: gpt2::Options { batch, ..options.state }, ..options })
    });
    assert!(plans[0] == plans[2] && plans[1] == plans[2] && plans[3].total() > plans[2].total());
}

#[test]
fn sequences_that_were_not_planned_are_refused() {
    let file = file(NAMES[0]);
    let mut src = &file[..];
    let model = Model::open(&mut src).unwrap();
    let options = gpt2::Options { context: 8, batch: 4, sequences: 2, own: 3, ..Default::default() };
    let mut memory = vec![0; gpt2::Plan::new(&model.header.config, &options).total() + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let weights = gpt2::Weights::load(&model.header, &model.file, &mut src, &mut arena).unwrap();
    let mut state = gpt2::State::new(&model.header.config, &options, &mut arena).unwrap();
    gpt2::forward(&mut src, &weights, &mut state, [1, 2].into_iter(), false).unwrap();
    state.share(2);
    let mut run = |sequences: &[u32], n| {
        gpt2::forward_each(&mut src, &weights, &mut state, sequences, vec![5; n].into_iter(), false)
    };
    assert_eq!(run(&[0, 2], 2), Err(gpt2::Error::Full { tokens: 2, left: 0 }));
    assert_eq!(run(&[0, 1], 3), Err(gpt2::Error::Full { tokens: 3, left: 2 }));
    for _ in 0..3 {
        run(&[1, 0], 2).unwrap();
    }
    assert_eq!(run(&[1, 0], 2), Err(gpt2::Error::Full { tokens: 2, left: 0 }));
    (0..3).for_each(|_| run(&[0], 1).unwrap());
    assert_eq!(run(&[0], 1), Err(gpt2::Error::Full { tokens: 1, left: 0 }));
}
