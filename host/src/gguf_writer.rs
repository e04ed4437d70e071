//! Writes GGUF files: the header at once, then the tensors' data as it comes.
//!
//! It believes what it is told and shares no code with the reader, so that tests can write wrong files with it, too.
//! Layout: GGUF version 3, little endian.
//!
//! ```text
//! ┌───────────────────────────┬──────────────────┬────────────────────────────────┬─────┬────────┬─────┬────────┬──
//! │ "GGUF", 3, counts: 24     │ metadata entries │ name, shape, type, offset each │ pad │ tensor │ pad │ tensor │ …
//! └───────────────────────────┴──────────────────┴────────────────────────────────┴─────┴────────┴─────┴────────┴──
//! ```

use std::collections::VecDeque;
use std::io::{self, Write};

/// The id of strings among the types of metadata values.
pub const STRING: u32 = 8;
/// The id of arrays among the types of metadata values.
pub const ARRAY: u32 = 9;

/// A metadata value: its type's id and the bytes that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The id of its type.
    pub kind: u32,
    /// Its bytes; an array's start with the type and the number of its elements.
    pub bytes: Vec<u8>,
}

impl Value {
    /// A value of any type, of which any bytes are claimed.
    pub fn raw(kind: u32, bytes: impl Into<Vec<u8>>) -> Value {
        Value { kind, bytes: bytes.into() }
    }

    /// An array of `n` elements of type `kind`, which are these bytes.
    pub fn array(kind: u32, n: u64, elements: impl IntoIterator<Item = u8>) -> Value {
        let mut bytes = [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
        bytes.extend(elements);
        Value { kind: ARRAY, bytes }
    }

    /// An array of strings, which need not be UTF-8.
    pub fn strings<T: AsRef<[u8]>>(strings: &[T]) -> Value {
        Value::array(STRING, strings.len() as u64, strings.iter().flat_map(|s| string(s.as_ref())))
    }

    /// An array of `i32`.
    pub fn i32s(numbers: &[i32]) -> Value {
        Value::array(5, numbers.len() as u64, numbers.iter().flat_map(|n| n.to_le_bytes()))
    }
}

macro_rules! value_from_number {
    ($($number:ty => $kind:literal),*) => {$(
        impl From<$number> for Value {
            fn from(number: $number) -> Value {
                Value::raw($kind, number.to_le_bytes())
            }
        }
    )*};
}

value_from_number! {
    u8 => 0, i8 => 1, u16 => 2, i16 => 3, u32 => 4, i32 => 5, f32 => 6, u64 => 10, i64 => 11, f64 => 12
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::raw(7, [value.into()])
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::raw(STRING, string(text.as_bytes()))
    }
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    bytes: u64,
}

/// A file's header in the making.
///
/// ```
/// use gptrickle::gguf_writer::Writer;
/// let header = Writer::new().entry("general.architecture", "gpt2").tensor("w", &[2], 0, 8);
/// let mut data = header.start(Vec::new())?;
/// data.write(&1f32.to_le_bytes())?;
/// data.write(&2f32.to_le_bytes())?;
/// let file = data.finish()?;
/// assert_eq!((&file[..4], file.len() % 32), (&b"GGUF"[..], 0));
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
pub struct Writer {
    alignment: u64,
    entries: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Writer {
    /// A file of nothing, aligned to 32 bytes.
    #[expect(clippy::new_without_default, reason = "a file of nothing is no default")]
    pub fn new() -> Self {
        Writer { alignment: 32, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Adds `general.alignment`, and places the tensors by it.
    pub fn alignment(mut self, bytes: u32) -> Self {
        self.alignment = bytes.into();
        self.entry("general.alignment", bytes)
    }

    /// Adds a metadata entry, even if there is one of that key.
    pub fn entry(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.entries.push((key.into(), value.into()));
        self
    }

    /// Adds a metadata entry in front of the others.
    pub fn first(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.entries.insert(0, (key.into(), value.into()));
        self
    }

    /// Replaces the value of a metadata entry, or adds the entry.
    pub fn replace(mut self, key: &str, value: impl Into<Value>) -> Self {
        self = self.remove(key);
        self.entry(key, value)
    }

    /// Leaves out the metadata entries of this key.
    pub fn remove(mut self, key: &str) -> Self {
        self.entries.retain(|(k, _)| k != key);
        self
    }

    /// Adds a tensor: its name, its shape (the length of a row first), the id of its type and how many bytes it has.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: u64) -> Self {
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), kind, bytes });
        self
    }

    /// The most bytes that go in front of tensors so that all are aligned.
    pub fn most_padding(&self) -> u64 {
        self.alignment * self.tensors.len() as u64
    }

    /// Writes the header; the data of the tensors is to follow in their order.
    ///
    /// # Errors
    /// Whatever `out` says.
    pub fn start<W: Write>(self, mut out: W) -> io::Result<Data<W>> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            header.extend(string(key.as_bytes()));
            header.extend(value.kind.to_le_bytes());
            header.extend(&value.bytes);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            header.extend(string(tensor.name.as_bytes()));
            header.extend((tensor.dims.len() as u32).to_le_bytes());
            header.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            header.extend(tensor.kind.to_le_bytes());
            header.extend(u64::to_le_bytes(offset));
            offset = (offset + tensor.bytes).next_multiple_of(self.alignment);
        }
        out.write_all(&header)?;
        let tensors = self.tensors.iter().map(|tensor| tensor.bytes).collect();
        Ok(Data { out, tensors, left: 0, at: header.len() as u64, alignment: self.alignment })
    }
}

/// A file whose header is written and whose data is to come.
#[derive(Debug)]
pub struct Data<W> {
    out: W,
    tensors: VecDeque<u64>, // bytes of each after the current one
    left: u64,              // bytes the current tensor lacks
    at: u64,                // bytes written
    alignment: u64,
}

impl<W: Write> Data<W> {
    /// Writes the next bytes of the tensors' data, with what goes between two tensors.
    ///
    /// # Errors
    /// Whatever the output says.
    ///
    /// # Panics
    /// The tensors have fewer bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                self.left = self.tensors.pop_front().expect("no more data than the tensors have");
                self.pad()?;
                continue;
            }
            let n = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.out.write_all(&bytes[..n])?;
            self.at += n as u64;
            self.left -= n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.at.next_multiple_of(self.alignment) - self.at;
        self.at += padding;
        self.out.write_all(&vec![0; padding as usize])
    }

    /// Fills up the last tensor's padding, as llama.cpp does, and gives back the output.
    ///
    /// # Errors
    /// Whatever the output says.
    ///
    /// # Panics
    /// The tensors have more bytes.
    pub fn finish(mut self) -> io::Result<W> {
        let missing = self.left + self.tensors.iter().sum::<u64>();
        assert_eq!(missing, 0, "as much data as the tensors have");
        self.pad()?;
        Ok(self.out)
    }

    /// How many bytes were written so far, those of the header included.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Gives back the output as it is, whatever is missing.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// A string as GGUF has it: its length, then its bytes.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}
