//! What can be wrong with a model, or with what is asked of it.

use core::fmt;

use crate::arena::TooSmall;
use crate::gguf::{self, MAX_DIMS, Name, TensorType, Value};
use crate::source;

use super::weights::Role;

/// The file is no GPT-2 model that can be run, or more is asked than it can do.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Bytes did not arrive.
    Source(source::Error),
    /// The bytes of a tensor, or of one beside it, do not have the checksum that the file has for them.
    Damaged {
        /// The first of those tensors.
        tensor: Role,
        /// Where they lie.
        error: source::Error,
    },
    /// The file is no GGUF file that can be read.
    Gguf(gguf::Error),
    /// The caller's memory is too small.
    Arena(TooSmall),
    /// The file holds a model of another architecture.
    Architecture {
        /// Which it names.
        found: Name,
    },
    /// A metadata key is missing.
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A metadata value has the wrong type.
    ValueType {
        /// Its key.
        key: Name,
        /// What it is.
        value: Value,
    },
    /// A metadata value is outside its limits.
    OutOfRange {
        /// Its key.
        key: &'static str,
        /// What it is.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// The LayerNorm epsilon is not between 0 and 1.
    Epsilon {
        /// What it is.
        found: f32,
    },
    /// The heads do not divide the residual stream.
    Heads {
        /// Width of the residual stream.
        n_embd: usize,
        /// Heads it claims.
        n_head: usize,
    },
    /// A width is no multiple of 32.
    Width {
        /// What it is.
        found: usize,
    },
    /// A tensor is none that GPT-2 has.
    UnknownTensor {
        /// Its name.
        tensor: Name,
    },
    /// A tensor stands in the file twice.
    DuplicateTensor {
        /// Its name.
        tensor: Name,
    },
    /// A tensor is missing.
    MissingTensor {
        /// Which.
        role: Role,
    },
    /// A tensor's shape does not fit the metadata.
    Shape {
        /// Its name.
        tensor: Name,
        /// Its shape, the length of a row first.
        found: [u64; MAX_DIMS],
        /// What the metadata make it: rows, and how long a row is.
        expected: (usize, usize),
    },
    /// A tensor is stored in a way that cannot be multiplied.
    Format {
        /// Its name.
        tensor: Name,
        /// How it is stored.
        kind: TensorType,
        /// Whether it is a norm or a bias, which must be floats.
        vector: bool,
    },
    /// A tensor is stored in a way that this build leaves out.
    NotBuilt {
        /// Its name.
        tensor: Name,
        /// How it is stored.
        kind: TensorType,
    },
    /// A longer context is asked for than the model has positions, or none.
    Context {
        /// Positions asked for.
        asked: usize,
        /// Positions the model has.
        n_ctx: usize,
    },
    /// More tokens are given than there are positions left.
    Full {
        /// Tokens given.
        tokens: usize,
        /// Positions left.
        left: usize,
    },
    /// Two stages of the head are asked for, and the file has one matrix for head and token embedding.
    OneHead,
    /// Two stages of the head would read no less than the whole head.
    DraftHead {
        /// Bytes they would read.
        reads: u64,
        /// Bytes of the head.
        exact: u64,
    },
    /// A token is not in the vocabulary.
    Token {
        /// Its id.
        id: u32,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        Error::Source(error)
    }
}

impl From<gguf::Error> for Error {
    #[inline(never)] // inlined at each `?`, it is 3 kB of code
    fn from(error: gguf::Error) -> Self {
        match error {
            gguf::Error::Source(error) => Error::Source(error),
            error => Error::Gguf(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Source(error) => error.fmt(f),
            Error::Damaged { tensor, error } => write!(f, "tensor {tensor}, or one beside it, is damaged: {error}"),
            Error::Gguf(error) => error.fmt(f),
            Error::Arena(error) => error.fmt(f),
            Error::Architecture { found } => {
                write!(f, "the file holds a model of architecture \"{found}\", not gpt2: pick a GPT-2 model")
            }
            Error::MissingKey { key } => write!(f, "metadata key {key} is missing: convert the model again"),
            Error::ValueType { key, value } => write!(f, "metadata {key} has the wrong type: {value:?}"),
            Error::OutOfRange { key, found, least, most } => {
                write!(f, "{key} is {found}, not in {least}..={most}: the file is damaged, or too large a model")
            }
            Error::Epsilon { found } => write!(f, "the LayerNorm epsilon is {found}, not between 0 and 1"),
            Error::Heads { n_embd, n_head } => {
                write!(f, "{n_head} attention heads do not divide an embedding length of {n_embd}")
            }
            Error::Width { found } => write!(f, "a width of {found} is no multiple of 32, which int8 products need"),
            Error::UnknownTensor { tensor } => write!(f, "tensor {tensor} is none that GPT-2 has"),
            Error::DuplicateTensor { tensor } => write!(f, "tensor {tensor} stands in the file twice"),
            Error::MissingTensor { role } => write!(f, "tensor {role} is missing: the file is incomplete"),
            Error::Shape { tensor, found, expected } => {
                write!(
                    f,
                    "tensor {tensor} has shape {found:?}, the metadata make it {} rows of {}",
                    expected.0, expected.1
                )
            }
            Error::Format { tensor, kind, vector: false } => write!(
                f,
                "tensor {tensor} has type {}, which cannot be multiplied: quantise the model to F32, F16, BF16, \
                 Q2_K..Q8_0, IQ4_NL or IQ4_XS",
                kind.name
            ),
            Error::Format { tensor, kind, vector: true } => {
                write!(f, "tensor {tensor} has type {}, but norms and biases must be F32, F16 or BF16", kind.name)
            }
            Error::NotBuilt { tensor, kind } => write!(
                f,
                "tensor {tensor} has type {}, which was left out of this build: use another model, or build with the \
                 feature of its family",
                kind.name
            ),
            Error::Context { asked, n_ctx } => {
                write!(f, "a context of {asked} is asked for, the model has 1..={n_ctx} positions")
            }
            Error::Full { tokens, left } => {
                write!(
                    f,
                    "{tokens} tokens are given and {left} positions are left: use a larger context or a shorter text"
                )
            }
            Error::OneHead => f.write_str(
                "this file has one head, which is its token embedding: two stages need an output.weight beside it",
            ),
            Error::DraftHead { reads, exact } => write!(
                f,
                "two stages of the head would read {reads} bytes, the head alone has {exact}: use fewer candidates, or \
                 a file whose token_embd.weight is smaller than its output.weight"
            ),
            Error::Token { id, n_vocab } => write!(f, "token {id} is not in the vocabulary of {n_vocab}"),
        }
    }
}

impl core::error::Error for Error {}
