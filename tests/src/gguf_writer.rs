//! Writes GGUF files for tests: whole ones, and ones that are wrong in one place.
//!
//! It checks nothing, and it shares no code with the reader it tests. Layout: GGUF version 3, little endian.

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

struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    bytes: Vec<u8>,
}

/// A file in the making.
///
/// ```
/// use gptrickle_tests::gguf_writer::Writer;
/// let file = Writer::new().entry("general.architecture", "gpt2").tensor("w", &[2], 0, [0; 8]).finish();
/// assert_eq!((&file[..4], file.len() % 32), (&b"GGUF"[..], 8));
/// ```
pub struct Writer {
    alignment: usize,
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
        self.alignment = bytes as usize;
        self.entry("general.alignment", bytes)
    }

    /// Adds a metadata entry, even if there is one of that key.
    pub fn entry(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.entries.push((key.into(), value.into()));
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

    /// Adds a tensor: its name, its shape (the length of a row first), the id of its type and its blocks.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), kind, bytes: bytes.into() });
        self
    }

    /// The bytes of the file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            file.extend(string(key.as_bytes()));
            file.extend(value.kind.to_le_bytes());
            file.extend(&value.bytes);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            file.extend(string(tensor.name.as_bytes()));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            file.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

/// A string as GGUF has it: its length, then its bytes.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}
