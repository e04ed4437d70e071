//! What can be wrong with a file's header.

use core::fmt;

use super::{MAX_DIMS, MAX_HEADER, MAX_NAME, Name, TensorType, Value};
use crate::source;

/// The part of the header that was being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first 24 bytes.
    Header,
    /// A metadata key and its type.
    Entry,
    /// A metadata value.
    Value,
    /// The elements of a metadata array.
    Elements,
    /// A tensor's name, shape, type and offset.
    TensorInfo,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Header => "the header",
            Part::Entry => "metadata entries",
            Part::Value => "a metadata value",
            Part::Elements => "metadata array elements",
            Part::TensorInfo => "tensors",
        })
    }
}

/// The file is not a GGUF file that can be read: what is wrong with it, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The bytes did not arrive.
    Source(source::Error),
    /// The file does not start with `GGUF`.
    NotGguf {
        /// What it starts with.
        found: [u8; 4],
    },
    /// The file was written for a big-endian machine.
    BigEndian,
    /// The container's version is neither 2 nor 3.
    Version {
        /// The version it claims.
        found: u32,
    },
    /// A count is over its limit.
    TooMany {
        /// What is counted.
        part: Part,
        /// The count in the file.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The file ends within its header.
    Truncated {
        /// What was being read.
        part: Part,
        /// Offset of the first byte wanted.
        at: u64,
        /// Bytes wanted.
        needed: u64,
        /// Bytes left in the file.
        have: u64,
    },
    /// The header is over [`MAX_HEADER`] bytes long.
    LongHeader {
        /// What was being read where it went beyond that.
        part: Part,
    },
    /// A string is longer than the source can lend at once.
    LongString {
        /// Offset of its first byte.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The most the source can lend, in bytes.
        max: usize,
    },
    /// A key or a tensor's name is empty.
    EmptyName {
        /// Which of the two.
        part: Part,
        /// Offset of its length.
        at: u64,
    },
    /// A tensor's name is over [`MAX_NAME`] bytes.
    LongName {
        /// Its start.
        name: Name,
    },
    /// A key stands in the file twice.
    DuplicateKey {
        /// The key.
        key: Name,
    },
    /// The file's checksums are no `u32` for each chunk of it.
    Checksums {
        /// The key they begin with.
        key: Name,
    },
    /// A metadata value has a type that GGUF does not know.
    ValueType {
        /// Its key.
        key: Name,
        /// The id of the type.
        id: u32,
    },
    /// A metadata array holds arrays, which no model needs.
    NestedArray {
        /// Its key.
        key: Name,
    },
    /// `general.alignment` is not a `u32` power of two.
    Alignment {
        /// What it is.
        value: Value,
    },
    /// A tensor has more than [`MAX_DIMS`] dimensions.
    Dimensions {
        /// Its name.
        tensor: Name,
        /// How many it claims.
        n_dims: u32,
    },
    /// A tensor has a type that GGUF does not know.
    TensorType {
        /// Its name.
        tensor: Name,
        /// The id of the type.
        id: u32,
    },
    /// A tensor's row does not fill whole blocks.
    Ragged {
        /// Its name.
        tensor: Name,
        /// The length of a row.
        columns: u64,
        /// The type, whose block length does not divide it.
        kind: TensorType,
    },
    /// A tensor's size is beyond any file.
    TooLarge {
        /// Its name.
        tensor: Name,
        /// Its shape.
        dims: [u64; MAX_DIMS],
    },
    /// A tensor does not start where the one before it ends, rounded up to the alignment.
    Misplaced {
        /// Its name.
        tensor: Name,
        /// Where it claims to start, from the first tensor.
        offset: u64,
        /// Where it must start.
        expected: u64,
    },
    /// A tensor alone is longer than the file.
    TensorOutside {
        /// Its name.
        tensor: Name,
        /// Where it ends, from the first tensor.
        end: u64,
        /// Bytes in the file.
        len: u64,
    },
    /// The file ends before its last tensor does.
    TensorsOutside {
        /// Where the last tensor ends.
        end: u64,
        /// Bytes in the file.
        len: u64,
    },
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        Error::Source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Source(error) => error.fmt(f),
            Error::NotGguf { found } => {
                write!(f, "not a GGUF file: it starts with \"{}\", not \"GGUF\"", found.escape_ascii())
            }
            Error::BigEndian => {
                write!(f, "the file is big-endian: convert it again for a little-endian machine")
            }
            Error::Version { found } => {
                write!(f, "GGUF version {found} cannot be read, only 2 and 3: convert the model again")
            }
            Error::TooMany { part, found, limit } => {
                write!(f, "the file claims {found} {part}, over the limit of {limit}: it is damaged")
            }
            Error::Truncated { part, at, needed, have } => write!(
                f,
                "the file ends within {part}: {needed} bytes needed at offset {at}, {have} left; \
                 it is truncated or damaged, copy it again"
            ),
            Error::LongHeader { part } => write!(
                f,
                "the header is over the limit of {MAX_HEADER} bytes, within {part}: the file is damaged, or no GPT-2 model"
            ),
            Error::LongString { at, len, max } => write!(
                f,
                "the string at offset {at} is {len} bytes long, the read buffer holds {max}: give it a larger one"
            ),
            Error::EmptyName { part, at } => write!(f, "empty name among {part} at offset {at}: the file is damaged"),
            Error::LongName { name } => write!(f, "tensor name \"{name}\" is over {MAX_NAME} bytes long"),
            Error::DuplicateKey { key } => write!(f, "metadata key {key} stands in the file twice"),
            Error::Checksums { key } => write!(
                f,
                "the checksums that {key} begins do not fit the file: it is truncated, damaged, or was changed after they \
                 were taken; copy or quantise it again"
            ),
            Error::ValueType { key, id } => write!(f, "metadata {key} has unknown type {id}: the file is damaged"),
            Error::NestedArray { key } => write!(f, "metadata {key} is an array of arrays, which cannot be read"),
            Error::Alignment { value } => {
                write!(f, "general.alignment must be a u32 power of two, not {value:?}: the file is damaged")
            }
            Error::Dimensions { tensor, n_dims } => {
                write!(f, "tensor {tensor} claims {n_dims} dimensions, over the limit of {MAX_DIMS}")
            }
            Error::TensorType { tensor, id } => write!(
                f,
                "tensor {tensor} has type id {id}, which this version does not know: quantise the model to another type"
            ),
            Error::Ragged { tensor, columns, kind } => write!(
                f,
                "tensor {tensor}: rows of {columns} values do not fill whole {} blocks of {}",
                kind.name, kind.block_len
            ),
            Error::TooLarge { tensor, dims } => write!(f, "tensor {tensor}: shape {dims:?} is beyond any file"),
            Error::Misplaced { tensor, offset, expected } => write!(
                f,
                "tensor {tensor} claims offset {offset} where the tensors before it end at {expected}: \
                 the file is damaged"
            ),
            Error::TensorOutside { tensor, end, len } => write!(
                f,
                "tensor {tensor} ends {end} bytes into the tensors, the whole file has {len}: \
                 it is truncated, copy it again"
            ),
            Error::TensorsOutside { end, len } => {
                write!(f, "the tensors end at {end}, the file at {len}: it is truncated, copy it again")
            }
        }
    }
}

impl core::error::Error for Error {}
