//! What can be wrong with a vocabulary, a text or the buffers for them.

use core::fmt;

use super::{MAX_SPECIAL, MAX_STOP, MAX_TOKEN, Token};
use crate::arena::TooSmall;
use crate::gguf::{self, Name, Value};
use crate::source;

/// What is wrong with the text of a token or of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextCause {
    /// A character stands for no byte.
    Outside,
    /// It is over [`MAX_TOKEN`] bytes long.
    TooLong,
    /// A merge is not two texts with one space between them.
    NotAPair,
}

impl fmt::Display for TextCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TextCause::Outside => f.write_str("it has a character outside GPT-2's byte alphabet"),
            TextCause::TooLong => write!(f, "it is over {MAX_TOKEN} bytes long"),
            TextCause::NotAPair => f.write_str("it is not two texts with one space between them"),
        }
    }
}

/// The tokenizer cannot be built, or cannot do what was asked: what is wrong, and what to do.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The header is not readable, or the device failed.
    Gguf(gguf::Error),
    /// The arena is too small for the tokenizer.
    Memory(TooSmall),
    /// The file lacks an entry that the tokenizer needs.
    Missing {
        /// Its key.
        key: &'static str,
    },
    /// An entry has a value of another type than it must have.
    WrongType {
        /// Its key.
        key: &'static str,
        /// The value.
        value: Value,
    },
    /// `tokenizer.ggml.model` is not `gpt2`.
    Model {
        /// What it is.
        found: Name,
    },
    /// `tokenizer.ggml.pre` is not `gpt-2`: the text is split otherwise before it is merged.
    Pre {
        /// What it is.
        found: Name,
    },
    /// An array of strings is over 4 GiB long.
    ArrayTooLong {
        /// Its key.
        key: &'static str,
        /// Its bytes.
        bytes: u64,
    },
    /// There are not as many token types as tokens.
    TypesLength {
        /// Token types.
        types: u64,
        /// Tokens.
        tokens: u64,
    },
    /// An id such as `tokenizer.ggml.eos_token_id` is no token's.
    SpecialId {
        /// The key.
        key: &'static str,
        /// The id.
        id: u64,
        /// Tokens in the vocabulary.
        n_tokens: u32,
    },
    /// A token's type is none that GGUF knows.
    TokenType {
        /// The token.
        token: Token,
        /// Its type.
        found: u32,
    },
    /// A token's text cannot be read.
    TokenText {
        /// The token.
        token: Token,
        /// Why.
        cause: TextCause,
    },
    /// More than [`MAX_SPECIAL`] tokens are control or user-defined ones.
    TooManySpecial {
        /// How many are.
        found: u32,
    },
    /// A merge's text cannot be read.
    MergeText {
        /// The merge's place in the list.
        rank: u32,
        /// Why.
        cause: TextCause,
    },
    /// A merge makes a text that is no token.
    NoResult {
        /// The merge's place in the list.
        rank: u32,
    },
    /// The merges are repeated, or made to slow the look-up down.
    Crowded {
        /// The first merge there was no room for.
        rank: u32,
    },
    /// The text has a byte that no token stands for.
    NoToken {
        /// The byte.
        byte: u8,
    },
    /// The scratch memory is too small for the text's longest piece.
    Scratch {
        /// Words that the first piece too long for it needs; [`scratch_len`](super::Tokenizer::scratch_len) is
        /// enough for all.
        needed: usize,
        /// Words there are.
        have: usize,
    },
    /// The text has more tokens than there is room for.
    TooManyTokens {
        /// Tokens in the text.
        needed: usize,
        /// Room for tokens.
        have: usize,
    },
    /// The vocabulary has no such token.
    UnknownToken {
        /// The token.
        token: Token,
        /// Tokens in the vocabulary.
        n_tokens: u32,
    },
    /// A token has more bytes than there is room for.
    OutTooSmall {
        /// Room for bytes; [`max_token_bytes`](super::Vocabulary::max_token_bytes) is enough for all.
        have: usize,
    },
    /// A stop string is empty, or over [`MAX_STOP`] bytes long.
    StopLength {
        /// Its place in the list.
        index: usize,
        /// Its bytes.
        len: usize,
    },
}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        Error::Gguf(error)
    }
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        Error::Gguf(error.into())
    }
}

impl From<TooSmall> for Error {
    fn from(error: TooSmall) -> Self {
        Error::Memory(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gguf(error) => error.fmt(f),
            Error::Memory(error) => write!(f, "the tokenizer {error}"),
            Error::Missing { key } => write!(f, "the file has no {key}: convert the model again"),
            Error::WrongType { key, value } => {
                write!(f, "metadata {key} has a value of the wrong type, {value:?}: convert the model again")
            }
            Error::Model { found } => {
                write!(f, "the vocabulary is of kind \"{found}\", only \"gpt2\" (byte-level BPE) can be read")
            }
            Error::Pre { found } => {
                write!(f, "the vocabulary splits text as \"{found}\" does, only \"gpt-2\" can be read")
            }
            Error::ArrayTooLong { key, bytes } => {
                write!(f, "metadata {key} is {bytes} bytes long, over the limit of 4 GiB")
            }
            Error::TypesLength { types, tokens } => {
                write!(f, "the file has {types} token types for {tokens} tokens: it is damaged")
            }
            Error::SpecialId { key, id, n_tokens } => {
                write!(f, "metadata {key} is {id}, the vocabulary has {n_tokens} tokens: the file is damaged")
            }
            Error::TokenType { token, found } => {
                write!(f, "token {token} has unknown type {found}: the file is damaged")
            }
            Error::TokenText { token, cause } => write!(f, "token {token} cannot be read: {cause}"),
            Error::TooManySpecial { found } => {
                write!(f, "the vocabulary has {found} control and user-defined tokens, over the limit of {MAX_SPECIAL}")
            }
            Error::MergeText { rank, cause } => write!(f, "merge {rank} cannot be read: {cause}"),
            Error::NoResult { rank } => {
                write!(f, "merge {rank} makes a text that is no token: the file is damaged, convert the model again")
            }
            Error::Crowded { rank } => {
                write!(f, "too many merges make the same text as merge {rank}, or collide with it: the file is damaged")
            }
            Error::NoToken { byte } => {
                write!(f, "the text has byte 0x{byte:02x}, which no token of this vocabulary stands for")
            }
            Error::Scratch { needed, have } => write!(
                f,
                "a piece of the text needs {needed} words of scratch memory, there are {have}: \
                 give it more, or put spaces in"
            ),
            Error::TooManyTokens { needed, have } => {
                write!(f, "the text has {needed} tokens, there is room for {have}: shorten it")
            }
            Error::UnknownToken { token, n_tokens } => {
                write!(f, "there is no token {token}, the vocabulary has {n_tokens}")
            }
            Error::OutTooSmall { have } => write!(f, "the token is over {have} bytes long: give it a larger buffer"),
            Error::StopLength { index, len } => {
                write!(f, "stop string {index} is {len} bytes long, it must have 1 to {MAX_STOP}")
            }
        }
    }
}

impl core::error::Error for Error {}
