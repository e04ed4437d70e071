//! A whole model, damaged anywhere, opened and run: a typed error, or the same tokens by every kernel.

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Error, Model, Options, Overflow, Plan, Session};
use gptrickle_core::gguf;
use gptrickle_core::gpt2::{self, Head, KvFormat};
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::{Format, Kernel};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{Cause, Source};
use gptrickle_core::tokenizer::Control;

use super::{Target, assert_sayable, tiny};
use crate::buffered::Buffered;

pub(super) const TARGET: Target = Target {
    name: "model",
    about: "a whole model: open, plan, prompt, passes, tokens; by each kernel, and from a small buffer",
    check,
    seeds,
    words: &["gpt2.block_count", "output.weight", "blk.1.attn_qkv.weight", "tokenizer.ggml.add_bos_token"],
};

/// Bytes that a plan may take for one of the file, and a constant: an index, activations and positions.
const MOST_PER_BYTE: usize = 4096;
const MOST: usize = 1 << 20;

/// The last bytes of a file, behind its tensors, say how it is run.
const CHOICE: usize = 8;
/// Positions, and tokens made.
const MOST_CONTEXT: usize = 16;

fn check(file: &[u8]) {
    let choice = file.last_chunk().copied().unwrap_or_default();
    let defined = run(&mut &*file, Kernel::GENERIC, choice);
    let best = run(&mut &*file, Kernel::best(), choice);
    // As text: an error may name a number that is none, and equals nothing.
    assert_eq!(format!("{best:?}"), format!("{defined:?}"), "{} and the definition", Kernel::best().name());
    let small = run(&mut Buffered::new(file, 4096), Kernel::best(), choice);
    match (&small, &defined) {
        (Err(too_long), Ok(_)) => assert!(is_too_long(too_long), "from a small buffer: {too_long:?}"),
        (Err(error), Err(_)) => assert_sayable(error),
        _ => assert_eq!(small, defined, "from a small buffer"),
    }
    if let Err(error) = defined {
        assert_sayable(&error);
    }
}

/// Whether a source with a larger buffer could lend what was asked for.
fn is_too_long(error: &Error) -> bool {
    match error {
        Error::Source(error) => matches!(error.cause, Cause::ChunkTooLong(_)),
        Error::Gguf(gguf::Error::LongString { .. }) => true,
        _ => false,
    }
}

/// The tokens of a short text, and the hash over all logits on the way, as text.
fn run<S: Source>(src: &mut S, kernel: Kernel, choice: [u8; CHOICE]) -> Result<String, Error> {
    let model = Model::open(src)?;
    let options = options(choice, model.header.config.n_ctx);
    let plan = Plan::new(&model, &options).total();
    assert!(plan <= MOST + MOST_PER_BYTE * src.len() as usize, "a plan of {plan} bytes for {} of file", src.len());
    let mut memory = vec![0xa5; plan + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let mut session = Session::new(&model, &options, src, &mut arena)?;
    assert_eq!(arena.used(), plan, "the plan is what is used");
    session.set_engine(Engine { kernel, ..Engine::default() });
    session.hash_logits(true);
    if choice[0] & 1 == 1 {
        session.set_overflow(Overflow::Slide { keep: choice[7].into() })?;
    }
    session.push_text(src, b"abc ab", if choice[0] & 2 == 0 { Control::Ignore } else { Control::Recognise })?;
    session.limit(MOST_CONTEXT);
    let mut text = vec![0; session.tokenizer().vocabulary().max_token_bytes()];
    let mut made = Vec::new();
    while let Some(token) = session.next(src)? {
        let len = session.tokenizer().decode(src, token, Control::Recognise, &mut text)?;
        made.push((token.0, text[..len].to_vec()));
    }
    Ok(format!("{made:?} {:?} {:?}", session.stop_reason(), session.logits_hash()))
}

/// Options of every kind, most of them in range.
fn options(choice: [u8; CHOICE], n_ctx: usize) -> Options<'static> {
    let [flags, context, batch, sampling, share, top_k, lookup, _] = choice;
    let kv = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0][usize::from(batch >> 6)];
    let share = f32::from(share) / 255.0;
    let defaults =
        if sampling & 1 == 0 { Params::greedy() } else { Params { top_k: top_k.into(), ..Params::default() } };
    Options {
        state: gpt2::Options {
            context: n_ctx.min(1 + usize::from(context) % MOST_CONTEXT),
            batch: usize::from(batch % 8),
            kv,
            ..Default::default()
        },
        sampling: Params {
            top_p: if sampling & 2 == 0 { 1.0 } else { share },
            min_p: if sampling & 4 == 0 { 0.0 } else { share },
            typical_p: if sampling & 8 == 0 { 1.0 } else { share },
            eta_cutoff: if sampling & 16 == 0 { 0.0 } else { share },
            repetition_penalty: if sampling & 32 == 0 { 1.0 } else { 2.0 * share },
            no_repeat_ngram_size: usize::from(sampling >> 6),
            ..defaults
        },
        seed: lookup.into(),
        lookup: usize::from(lookup % 4),
        head: if flags & 4 == 0 { Head::Exact } else { Head::TwoStage { candidates: usize::from(flags >> 3) } },
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let choices =
        [[0; CHOICE], [1, 5, 3, 1, 230, 4, 2, 1], [20, 9, 0x82, 0x2f, 240, 0, 3, 0], [3, 11, 0xc4, 0x51, 99, 9, 1, 2]];
    let of_format = |format| {
        let choice = choices[format as usize % choices.len()];
        [tiny::model(format, choice[0] & 4 == 0), choice.to_vec()].concat()
    };
    Format::ALL.into_iter().map(of_format).collect()
}
