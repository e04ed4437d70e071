//! A text run through a model in windows, each from an empty context.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gpt2::{self, Options, Role, Seen, State, Weights};
use gptrickle_core::ops::Engine;
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};

use super::model::{self, Opened};
use crate::model::Bytes;

/// The text in a file; "-" stands for standard input.
pub(super) fn text_of(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() != "-" {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

/// The tokens that a model makes of a text, with the one it wants in front, and how many bytes each is.
pub(super) fn tokens(opened: &mut Opened, text: &[u8], control: Control) -> anyhow::Result<(Vec<Token>, Vec<usize>)> {
    let Opened { src, model, name } = opened;
    let mut memory = vec![0; Tokenizer::bytes(&model.vocabulary) + ALIGN];
    let tokenizer =
        Tokenizer::load(&model.vocabulary, src, &mut Arena::new(&mut memory)).with_context(|| name.clone())?;
    let prefix = tokenizer.vocabulary().prefix();
    let tokens: Vec<Token> = prefix.into_iter().chain(model::encode(&tokenizer, src, text, control)?).collect();
    let mut bytes = vec![0; model.vocabulary.max_token_bytes()];
    let lengths: Result<_, _> =
        tokens.iter().map(|&token| tokenizer.decode(src, token, Control::Recognise, &mut bytes)).collect();
    Ok((tokens, lengths?))
}

/// A model that runs a window at a time.
pub(super) struct Sequence<'a> {
    src: &'a mut Bytes,
    weights: Weights<'a>,
    state: State<'a>,
    logits: Vec<f32>, // (B, n_vocab)
    n_vocab: usize,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(
        engine: Engine<'a>,
        opened: &'a mut Opened,
        options: &Options,
        memory: &'a mut [u8],
    ) -> anyhow::Result<Sequence<'a>> {
        let Opened { src, model, .. } = opened;
        let mut arena = Arena::new(memory);
        let config = model.header.config;
        let weights = Weights::load(&model.header, &model.file, src, &mut arena)?;
        let mut state = State::new(&config, options, &mut arena)?;
        state.set_engine(engine);
        let logits = vec![0.0; options.batch * config.n_vocab];
        Ok(Sequence { src, weights, state, logits, n_vocab: config.n_vocab })
    }

    /// Forgets all tokens.
    pub(super) fn restart(&mut self) {
        self.state.truncate(0);
    }

    /// Runs a batch that follows the ones before, and returns the logits of some of its positions.
    pub(super) fn logits(&mut self, tokens: &[Token], range: Range<usize>) -> anyhow::Result<&[f32]> {
        let (n, n_vocab) = (range.len(), self.n_vocab);
        let Sequence { src, weights, state, logits, .. } = self;
        gpt2::forward(src, weights, state, tokens.iter().map(|token| token.0), n > 0)?;
        if n > 0 {
            gpt2::logits(src, weights, state, range, |i, first, values| {
                logits[i * n_vocab + first..][..values.len()].copy_from_slice(values);
            })?;
        }
        Ok(&logits[..n * n_vocab])
    }

    /// Runs a batch that follows the ones before, and shows what each matrix is multiplied with.
    pub(super) fn inputs(&mut self, tokens: &[Token], mut show: impl FnMut(Role, &[f32])) -> anyhow::Result<()> {
        let mut watch = |seen: Seen| match seen {
            Seen::Input(matrix, x) => show(matrix, x),
            Seen::Residual(..) | Seen::Attention { .. } => {}
        };
        let Sequence { src, weights, state, .. } = self;
        gpt2::forward_watched(src, weights, state, tokens.iter().map(|token| token.0), true, &mut watch)?;
        Ok(gpt2::logits_watched(src, weights, state, 0..tokens.len(), |_, _, _| (), watch)?)
    }

    /// Runs a batch that follows the ones before, shows what it sees, and returns the normalised end of it,
    /// (tokens, n_embd).
    pub(super) fn watch(&mut self, tokens: &[Token], watch: impl FnMut(Seen)) -> anyhow::Result<&[f32]> {
        let Sequence { src, weights, state, .. } = self;
        gpt2::forward_watched(src, weights, state, tokens.iter().map(|token| token.0), true, watch)?;
        let normalised = gpt2::last_norm(src, weights, state, 0..tokens.len())?;
        src.settle()?;
        Ok(normalised)
    }
}
