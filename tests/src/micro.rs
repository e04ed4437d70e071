//! The small model that tests damage, how it is run, and what is said of what went wrong.

use std::sync::LazyLock;

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Error, Model, Options, Plan, Session};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, Token};

use crate::anatomy::Anatomy;
use crate::vectors;

/// The undamaged file, of llama.cpp's making.
pub static MICRO: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read(vectors().join("micro/micro-Q4_0.gguf")).unwrap());

/// Its parts.
pub fn micro() -> Anatomy {
    Anatomy::of(&MICRO)
}

/// One of its matrices.
pub const QKV: &str = "blk.0.attn_qkv.weight";
/// The beginning of a text.
pub const PROMPT: &[u8] = b"in the win";

/// Greedy text, of so many positions.
pub fn options(context: usize) -> Options<'static> {
    let state = gpt2::Options { context, batch: 4, kv: KvFormat::F32, ..Default::default() };
    Options { state, sampling: Params::greedy(), seed: 1, ..Options::default() }
}

/// Memory for `plan` bytes. However a file is damaged, its plan stays in proportion to the bytes it has.
///
/// # Panics
/// The plan is out of proportion.
pub fn memory(plan: usize) -> Vec<u8> {
    assert!(plan < 1 << 24, "a plan of {plan} bytes for a small file");
    vec![0; plan + ALIGN]
}

/// Opens a file and makes one token of it.
///
/// # Errors
/// The file, its model or its vocabulary is refused, or no token can be made.
pub fn run<S: Source>(src: &mut S) -> Result<Option<Token>, Error> {
    let model = Model::open(src)?;
    let options = options(model.header.config.n_ctx.min(16));
    let mut memory = memory(Plan::new(&model, &options).total());
    let mut session = Session::new(&model, &options, src, &mut Arena::new(&mut memory))?;
    session.push_text(src, PROMPT, Control::Ignore)?;
    session.next(src)
}

/// What is said of an error: one line that a terminal shows as it is.
///
/// # Panics
/// It is none.
pub fn said(error: &impl ToString) -> String {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 300, "{} bytes: {text}", text.len());
    text
}

/// Asserts that what is said has these words in it.
///
/// # Panics
/// One is missing.
#[track_caller]
pub fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}
