//! The streaming GGUF reader: everything is checked once, at the door.
//!
//! ```text
//! byte 0      4         8           16          24
//!      ┌──────┬─────────┬───────────┬───────────┬─────────┬──────────────┬─────┬──────────────────┐
//!      │ GGUF │ version │ n_tensors │ n_entries │ entries │ tensor infos │ pad │ tensors, aligned │
//!      └──────┴─────────┴───────────┴───────────┴─────────┴──────────────┴─────┴──────────────────┘
//! entry: key string, u32 type, value          string: u64 length, bytes
//! info:  name string, u32 n_dims, n_dims × u64, u32 type, u64 offset from the first tensor
//! ```
//!
//! [`open`] reads the header front to back through a window of at most 4 KiB and compares every count, length, type
//! and tensor range with the file's length and with the limits below. What it returns, and what the readers of
//! [`File`] return later, cannot point outside the file. Versions 2 and 3 share this layout (3 only adds big-endian
//! files). Source: the GGUF specification, and ggml's `gguf.cpp` for the rule that tensors lie gapless in file order.

mod cursor;
mod error;
mod types;

use core::fmt;

use crate::source::Source;
pub(crate) use cursor::Cursor;
pub use error::{Error, Part};
pub use types::TensorType;

/// Most bytes of a header; that of GPT-2's vocabulary has 1.8 MB.
pub const MAX_HEADER: u64 = 1 << 26;
/// Most tensors a file may hold; GPT-2 XL has 581.
pub const MAX_TENSORS: u64 = 1 << 16;
/// Most metadata entries a file may hold; a stock file has about 20.
pub const MAX_ENTRIES: u64 = 1 << 16;
/// Most elements of a metadata array; ggml's own limit.
pub const MAX_ELEMENTS: u64 = 1 << 30;
/// Longest tensor name, in bytes; ggml's own limit.
pub const MAX_NAME: usize = 63;
/// Most dimensions of a tensor; ggml's own limit.
pub const MAX_DIMS: usize = 4;
/// Alignment of the tensors where `general.alignment` does not say otherwise, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Fewest bytes that an entry takes: an empty key, a type, a one-byte value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// Fewest bytes that a tensor info takes: an empty name, no dimensions, a type, an offset.
const MIN_INFO: u64 = 8 + 4 + 4 + 8;

/// A stretch of the file, which lies wholly inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte, from the start of the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    /// The string that lies here, of which a name keeps the start.
    pub(crate) fn name<S: Source>(&self, src: &mut S) -> Result<Name, Error> {
        let kept = self.len.min(MAX_NAME as u64) as usize;
        Ok(Name::new(src.chunk(self.at, kept)?, self.len))
    }
}

/// A key or a tensor's name: its first [`MAX_NAME`] bytes, printed with control characters escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    /// Bytes of the whole name; 64 when it has more than are kept.
    len: u8,
}

impl Name {
    /// A name of `len` bytes, of which `kept` are the first [`MAX_NAME`].
    fn new(kept: &[u8], len: u64) -> Name {
        let mut bytes = [0; MAX_NAME];
        bytes.iter_mut().zip(kept).for_each(|(byte, &kept)| *byte = kept);
        Name { bytes, len: len.min(MAX_NAME as u64 + 1) as u8 }
    }

    /// The whole name; `None` if it is longer than [`MAX_NAME`] or no UTF-8, which no known name is.
    pub fn as_str(&self) -> Option<&str> {
        core::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The whole name; `None` if it is longer than [`MAX_NAME`].
    pub(crate) fn as_bytes(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len.into())
    }

    /// Whether this is the whole name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.as_bytes() == Some(name.as_bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = MAX_NAME.min(self.len.into());
        write!(f, "{}", self.bytes[..kept].escape_ascii())?;
        if kept < self.len.into() { f.write_str("…") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A metadata value; strings and arrays stay in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7: one byte, zero or not.
    Bool(bool),
    /// Type 8: where its bytes lie.
    String(Span),
    /// Type 9.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

impl Value {
    /// The value as a whole number that is not negative, whatever integer type the writer chose.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    #[inline(never)] // inlined, each `?` moves an error field by field: half a kilobyte of code
    fn read<S: Source>(cursor: &mut Cursor<'_, S>, kind: u32, key: &Name) -> Result<Value, Error> {
        let part = Part::Value;
        match kind {
            ElementType::STRING => return cursor.span(part).map(Value::String),
            9 => return Array::read(cursor, key).map(Value::Array),
            _ => {}
        }
        let wrong = Error::ValueType { key: *key, id: kind };
        let Some(ElementType { bytes, .. }) = ElementType::from_id(kind) else { return Err(wrong) };
        let n = cursor.number(part, bytes as usize)?;
        Ok(match kind {
            0 => Value::U8(n as u8),
            1 => Value::I8(n as i8),
            2 => Value::U16(n as u16),
            3 => Value::I16(n as i16),
            4 => Value::U32(n as u32),
            5 => Value::I32(n as i32),
            6 => Value::F32(f32::from_bits(n as u32)),
            7 => Value::Bool(n != 0),
            10 => Value::U64(n),
            11 => Value::I64(n as i64),
            12 => Value::F64(f64::from_bits(n)),
            _ => return Err(wrong),
        })
    }
}

/// The element type of a metadata array of numbers, or of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementType {
    /// The id in the file, as the comments of [`Value`] list them.
    pub id: u32,
    /// Bytes per element; 0 for strings, each of which has its own length.
    pub bytes: u64,
}

impl ElementType {
    /// The id of strings.
    pub const STRING: u32 = 8;
    /// The id of `i32`, and of `u32`, which vocabularies use for token types.
    pub const I32: u32 = 5;
    /// The id of `u32`.
    pub const U32: u32 = 4;

    fn from_id(id: u32) -> Option<ElementType> {
        let bytes = match id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => 0,
            10..=12 => 8,
            _ => return None,
        };
        Some(ElementType { id, bytes })
    }
}

/// A metadata array, which stays in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array {
    /// What its elements are.
    pub element: ElementType,
    /// How many there are.
    pub n: u64,
    /// Where the elements lie, one after the other.
    pub span: Span,
}

impl Array {
    fn read<S: Source>(cursor: &mut Cursor<'_, S>, key: &Name) -> Result<Array, Error> {
        let id = cursor.u32(Part::Value)?;
        let element = match id {
            9 => return Err(Error::NestedArray { key: *key }),
            _ => ElementType::from_id(id).ok_or(Error::ValueType { key: *key, id })?,
        };
        let n = cursor.u64(Part::Value)?;
        check_count(Part::Elements, n, MAX_ELEMENTS)?;
        let at = cursor.at();
        if element.id == ElementType::STRING {
            cursor.expect(Part::Elements, n * 8)?;
            cursor.skip_strings(Part::Elements, n)?;
        } else {
            cursor.skip(Part::Elements, n * element.bytes)?;
        }
        Ok(Array { element, n, span: Span { at, len: cursor.at() - at } })
    }
}

/// One tensor: a name, a shape and a stretch of the file that holds exactly its blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: Name,
    /// How its values are stored.
    pub kind: TensorType,
    /// Its shape, the length of a row first; dimensions it lacks are 1.
    pub dims: [u64; MAX_DIMS],
    /// Where its blocks lie. Rows are whole blocks and follow each other without gaps.
    pub span: Span,
}

/// A file whose header was checked: reading it again cannot fail, but for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Version of the container, 2 or 3.
    pub version: u32,
    /// How many metadata entries it has.
    pub n_entries: u64,
    /// How many tensors it has.
    pub n_tensors: u64,
    /// Every tensor starts on a multiple of this, from [`data_at`](File::data_at) on, in bytes.
    pub alignment: u64,
    entries_at: u64,
    tensors_at: u64,
    /// Offset of the first tensor, from the start of the file.
    pub data_at: u64,
    /// One past the last tensor's last byte.
    pub end: u64,
}

/// Checks a file from its first byte to the last tensor info, and shows each metadata entry on the way.
///
/// Reads the header once, front to back (1.8 MB for the vocabulary of GPT-2, [`MAX_HEADER`] at most), and no tensor.
///
/// # Errors
/// Anything that is not a whole, little-endian GGUF file of version 2 or 3 → the variants of [`Error`], each of
/// which says what is wrong and where. Whatever `entry` returns ends the reading.
pub fn open<S: Source, E: From<Error>>(
    src: &mut S,
    mut entry: impl FnMut(&Name, &Value) -> Result<(), E>,
) -> Result<File, E> {
    let file_len = src.len();
    let mut cursor = Cursor::within(src, 0, file_len.min(MAX_HEADER));
    let magic = cursor.array(Part::Header)?;
    if magic != *b"GGUF" {
        return Err(Error::NotGguf { found: magic }.into());
    }
    let version = cursor.u32(Part::Header)?;
    match version {
        2 | 3 => {}
        // A small number written the other way round.
        _ if version != 0 && version & 0xffff == 0 => return Err(Error::BigEndian.into()),
        _ => return Err(Error::Version { found: version }.into()),
    }
    let n_tensors = cursor.u64(Part::Header)?;
    check_count(Part::TensorInfo, n_tensors, MAX_TENSORS)?;
    let n_entries = cursor.u64(Part::Header)?;
    check_count(Part::Entry, n_entries, MAX_ENTRIES)?;
    cursor.expect(Part::Header, n_entries * MIN_ENTRY + n_tensors * MIN_INFO)?;

    let entries_at = cursor.at();
    let mut alignment = None;
    for _ in 0..n_entries {
        let (key, value) = read_entry(&mut cursor)?;
        if key.is("general.alignment") {
            let claimed = match value {
                Value::U32(n) if n.is_power_of_two() => u64::from(n),
                _ => return Err(Error::Alignment { value }.into()),
            };
            if alignment.replace(claimed).is_some() {
                return Err(Error::DuplicateKey { key }.into());
            }
        }
        entry(&key, &value)?;
    }
    let alignment = alignment.unwrap_or(DEFAULT_ALIGNMENT);

    let tensors_at = cursor.at();
    let mut next = 0; // offset, from the first tensor, at which the next one must start
    let mut last_end = 0;
    for _ in 0..n_tensors {
        let info = read_info(&mut cursor)?;
        if info.offset != next {
            return Err(Error::Misplaced { tensor: info.name, offset: info.offset, expected: next }.into());
        }
        // No overflow: both are below the file's length, or the file has been refused.
        last_end = info.offset + info.bytes;
        if last_end > file_len {
            return Err(Error::TensorOutside { tensor: info.name, end: last_end, len: file_len }.into());
        }
        next = align(last_end, alignment);
    }
    let data_at = align(cursor.at(), alignment);
    let end = data_at + last_end;
    if n_tensors > 0 && end > file_len {
        return Err(Error::TensorsOutside { end, len: file_len }.into());
    }
    Ok(File { version, n_entries, n_tensors, alignment, entries_at, tensors_at, data_at, end })
}

impl File {
    /// The metadata entries, in file order.
    pub fn entries<'s, S: Source>(&self, src: &'s mut S) -> Entries<'s, S> {
        Entries { cursor: Cursor::new(src, self.entries_at), left: self.n_entries }
    }

    /// The tensors, in file order.
    pub fn tensors<'s, S: Source>(&self, src: &'s mut S) -> Tensors<'s, S> {
        Tensors { cursor: Cursor::new(src, self.tensors_at), left: self.n_tensors, data_at: self.data_at }
    }
}

/// The metadata entries of a [`File`], read again from its header.
pub struct Entries<'s, S> {
    cursor: Cursor<'s, S>,
    left: u64,
}

impl<'s, S: Source> Entries<'s, S> {
    /// The entries that a file claims to have, before it was checked; none if it is no GGUF file.
    pub(crate) fn unchecked(src: &'s mut S) -> Result<Self, Error> {
        const N_ENTRIES: u64 = 16;
        const ENTRIES: u64 = 24;
        if src.len() < ENTRIES || Cursor::new(src, 0).array(Part::Header)? != *b"GGUF" {
            return Ok(Entries { cursor: Cursor::new(src, 0), left: 0 });
        }
        let left = Cursor::new(src, N_ENTRIES).u64(Part::Header)?;
        Ok(Entries { cursor: Cursor::new(src, ENTRIES), left })
    }

    /// The next entry, or `None` after the last.
    ///
    /// # Errors
    /// The device failed → [`Error::Source`].
    #[expect(clippy::should_implement_trait, reason = "fallible, so that `?` works in a `while let`")]
    pub fn next(&mut self) -> Result<Option<(Name, Value)>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        read_entry(&mut self.cursor).map(Some)
    }
}

/// The tensors of a [`File`], read again from its header.
pub struct Tensors<'s, S> {
    cursor: Cursor<'s, S>,
    left: u64,
    data_at: u64,
}

impl<S: Source> Tensors<'_, S> {
    /// The next tensor, or `None` after the last.
    ///
    /// # Errors
    /// The device failed → [`Error::Source`].
    #[expect(clippy::should_implement_trait, reason = "fallible, so that `?` works in a `while let`")]
    pub fn next(&mut self) -> Result<Option<Tensor>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let Info { name, kind, dims, bytes, offset } = read_info(&mut self.cursor)?;
        Ok(Some(Tensor { name, kind, dims, span: Span { at: self.data_at + offset, len: bytes } }))
    }
}

/// The strings of an [`Array`], one after the other.
pub struct Strings<'s, S> {
    cursor: Cursor<'s, S>,
    end: u64,
}

impl<'s, S: Source> Strings<'s, S> {
    /// Reads the strings of `array` from the one that starts at offset `at` on.
    pub(crate) fn from(src: &'s mut S, array: &Array, at: u64) -> Self {
        let end = if array.element.id == ElementType::STRING { array.span.at + array.span.len } else { at };
        Strings { cursor: Cursor::within(src, at, end), end }
    }

    /// The strings of `array` from its first on; none if it holds numbers.
    pub fn new(src: &'s mut S, array: &Array) -> Self {
        Strings::from(src, array, array.span.at)
    }

    /// Offset of the next string's length, from the start of the file.
    pub fn at(&self) -> u64 {
        self.cursor.at()
    }

    /// The next string's bytes, or `None` after the last.
    ///
    /// # Errors
    /// It is longer than the source can lend → [`Error::LongString`]; the device failed → [`Error::Source`].
    #[expect(clippy::should_implement_trait, reason = "it lends from the source, which an iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        if self.cursor.at() >= self.end {
            return Ok(None);
        }
        self.cursor.string(Part::Elements).map(Some)
    }

    /// Steps over `n` strings; the last one is as far as it goes.
    ///
    /// # Errors
    /// The device failed → [`Error::Source`].
    pub fn skip(&mut self, n: u64) -> Result<(), Error> {
        for _ in 0..n {
            if self.cursor.at() >= self.end {
                break;
            }
            self.cursor.span(Part::Elements)?;
        }
        Ok(())
    }
}

/// The 32-bit numbers of an [`Array`], one after the other.
pub(crate) struct Words<'s, S> {
    cursor: Cursor<'s, S>,
}

impl<'s, S: Source> Words<'s, S> {
    /// Reads up to `n` numbers of `array` from number `first` on; none if its elements are of another type.
    pub(crate) fn from(src: &'s mut S, array: &Array, first: u64, n: u64) -> Self {
        let bytes = match array.element.id {
            ElementType::I32 | ElementType::U32 => array.span.len,
            _ => 0,
        };
        let [start, end] = [first, first.saturating_add(n)].map(|i| array.span.at + i.saturating_mul(4).min(bytes));
        Words { cursor: Cursor::within(src, start, end) }
    }

    /// The next number's bits, or `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<u32>, Error> {
        if self.cursor.remaining() == 0 { Ok(None) } else { self.cursor.u32(Part::Elements).map(Some) }
    }
}

/// The first multiple of `alignment`, a power of two, from `at` on.
fn align(at: u64, alignment: u64) -> u64 {
    (at + (alignment - 1)) & !(alignment - 1)
}

fn check_count(part: Part, found: u64, limit: u64) -> Result<(), Error> {
    if found > limit { Err(Error::TooMany { part, found, limit }) } else { Ok(()) }
}

#[inline(never)] // as `Value::read`
fn read_entry<S: Source>(cursor: &mut Cursor<'_, S>) -> Result<(Name, Value), Error> {
    let at = cursor.at();
    let key = cursor.name(Part::Entry)?;
    if key.len == 0 {
        return Err(Error::EmptyName { part: Part::Entry, at });
    }
    let kind = cursor.u32(Part::Entry)?;
    let value = Value::read(cursor, kind, &key)?;
    Ok((key, value))
}

/// A tensor info as the file has it, each field within its own limits.
struct Info {
    name: Name,
    kind: TensorType,
    dims: [u64; MAX_DIMS],
    bytes: u64,
    /// From the first tensor.
    offset: u64,
}

fn read_info<S: Source>(cursor: &mut Cursor<'_, S>) -> Result<Info, Error> {
    let part = Part::TensorInfo;
    let at = cursor.at();
    let name = cursor.name(part)?;
    if name.len == 0 {
        return Err(Error::EmptyName { part, at });
    }
    if usize::from(name.len) > MAX_NAME {
        return Err(Error::LongName { name });
    }
    let n_dims = cursor.u32(part)?;
    if n_dims as usize > MAX_DIMS {
        return Err(Error::Dimensions { tensor: name, n_dims });
    }
    let mut dims = [1; MAX_DIMS];
    for dim in dims.iter_mut().take(n_dims as usize) {
        *dim = cursor.u64(part)?;
    }
    let id = cursor.u32(part)?;
    let kind = TensorType::from_id(id).ok_or(Error::TensorType { tensor: name, id })?;
    // Shifted, not divided: divisions of 64 bits take a kilobyte of code on processors that have none.
    let shift = kind.block_len.trailing_zeros();
    let blocks = dims[0] >> shift;
    if blocks << shift != dims[0] {
        return Err(Error::Ragged { tensor: name, columns: dims[0], kind });
    }
    let bytes = [dims[1], dims[2], dims[3], kind.block_bytes.into()]
        .iter()
        .try_fold(blocks, |n, &factor| n.checked_mul(factor))
        // Sums of such sizes and of an alignment below 2^32 cannot wrap.
        .filter(|&bytes| bytes < 1 << 62)
        .ok_or(Error::TooLarge { tensor: name, dims })?;
    let offset = cursor.u64(part)?;
    Ok(Info { name, kind, dims, bytes, offset })
}
