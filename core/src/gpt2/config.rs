//! The model's shape, as the header tells it.

use crate::gguf::{self, Name, Span, Value};
use crate::source::Source;

use super::error::Error;

/// Most layers a model may have; GPT-2 XL has 48.
pub const MAX_LAYERS: u64 = 128;
/// Most values of a row, positions or tokens: beyond any GPT-2, and small enough for every sum of sizes.
const MAX_WIDTH: u64 = 1 << 20;
const MAX_TOKENS: u64 = 1 << 24;

/// The shape of a GPT-2 model, within limits: `n_head` divides `n_embd`, rows are whole groups of 32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Blocks of the transformer.
    pub n_layer: usize,
    /// Positions it was trained with.
    pub n_ctx: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Added to the variance by every LayerNorm.
    pub epsilon: f32,
}

impl Config {
    /// Values per head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head.max(1)
    }

    /// The longest row of any weight matrix.
    pub fn max_cols(&self) -> usize {
        self.n_embd.max(self.n_ff)
    }
}

/// The metadata that describes the model, gathered while [`gguf::open`] shows the entries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Metadata {
    architecture: Option<Span>,
    numbers: [Option<u64>; NUMBERS.len()],
    epsilon: Option<f32>,
}

const ARCHITECTURE: &str = "general.architecture";
const EPSILON: &str = "gpt2.attention.layer_norm_epsilon";
/// Whole numbers: key, least and greatest value.
const NUMBERS: [(&str, u64, u64); 5] = [
    ("gpt2.block_count", 1, MAX_LAYERS),
    ("gpt2.context_length", 1, MAX_WIDTH),
    ("gpt2.embedding_length", 1, MAX_WIDTH),
    ("gpt2.attention.head_count", 1, MAX_WIDTH),
    ("gpt2.feed_forward_length", 1, MAX_WIDTH),
];

impl Metadata {
    /// Keeps an entry that describes the model; ignores any other.
    ///
    /// # Errors
    /// A value of the wrong type → [`Error::ValueType`]; outside its limits → [`Error::OutOfRange`]; a key for the
    /// second time → [`Error::Gguf`].
    pub fn note(&mut self, name: &Name, value: &Value) -> Result<(), Error> {
        let wrong_type = Error::ValueType { key: *name, value: *value };
        let twice = if let Some(i) = NUMBERS.iter().position(|number| name.is(number.0)) {
            let (key, least, most) = NUMBERS[i];
            let found = value.as_u64().ok_or(wrong_type)?;
            if !(least..=most).contains(&found) {
                return Err(Error::OutOfRange { key, found, least, most });
            }
            self.numbers[i].replace(found).is_some()
        } else if name.is(EPSILON) {
            let Value::F32(epsilon) = *value else { return Err(wrong_type) };
            if !(epsilon > 0.0 && epsilon < 1.0) {
                return Err(Error::Epsilon { found: epsilon });
            }
            self.epsilon.replace(epsilon).is_some()
        } else if name.is(ARCHITECTURE) {
            let Value::String(span) = *value else { return Err(wrong_type) };
            self.architecture.replace(span).is_some()
        } else {
            false
        };
        if twice { Err(gguf::Error::DuplicateKey { key: *name }.into()) } else { Ok(()) }
    }

    /// The shape, but for the size of the vocabulary, which is that of a tensor.
    pub(super) fn config<S: Source>(&self, src: &mut S) -> Result<Config, Error> {
        let architecture = self.architecture.ok_or(Error::MissingKey { key: ARCHITECTURE })?;
        let architecture = architecture.name(src)?;
        if !architecture.is("gpt2") {
            return Err(Error::Architecture { found: architecture });
        }
        let number = |i: usize| self.numbers[i].map(|n| n as usize).ok_or(Error::MissingKey { key: NUMBERS[i].0 });
        let config = Config {
            n_layer: number(0)?,
            n_ctx: number(1)?,
            n_embd: number(2)?,
            n_head: number(3)?,
            n_ff: number(4)?,
            n_vocab: 0,
            epsilon: self.epsilon.ok_or(Error::MissingKey { key: EPSILON })?,
        };
        if !config.n_embd.is_multiple_of(config.n_head) {
            return Err(Error::Heads { n_embd: config.n_embd, n_head: config.n_head });
        }
        for width in [config.n_embd, config.n_ff] {
            if !width.is_multiple_of(crate::quant::GROUP) {
                return Err(Error::Width { found: width });
            }
        }
        Ok(config)
    }
}

impl Config {
    /// Checks the size of the vocabulary that the token embedding has.
    pub(super) fn set_vocab(&mut self, rows: u64) -> Result<(), Error> {
        if !(1..=MAX_TOKENS).contains(&rows) {
            return Err(Error::OutOfRange {
                key: "rows of token_embd.weight",
                found: rows,
                least: 1,
                most: MAX_TOKENS,
            });
        }
        self.n_vocab = rows as usize;
        Ok(())
    }
}
