//! A GGUF file taken apart, to be put together again with one thing changed.
//!
//! Written from the specification, apart from the reader it tests; it trusts the file it is given.

use crate::gguf_writer::{ARRAY, STRING, Value, Writer};

/// A tensor: its info and its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape, the length of a row first.
    pub dims: Vec<u64>,
    /// The id of its type.
    pub kind: u32,
    /// Its blocks.
    pub bytes: Vec<u8>,
}

/// The parts of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Anatomy {
    /// Its metadata, in order.
    pub entries: Vec<(String, Value)>,
    /// Its tensors, in order.
    pub tensors: Vec<Tensor>,
}

impl Anatomy {
    /// Takes apart a sound file, whose tensors are aligned to 32 bytes.
    ///
    /// # Panics
    /// The file is not sound.
    pub fn of(file: &[u8]) -> Self {
        let mut reader = Reader(file, 8);
        let (n_tensors, n_entries) = (reader.u64(), reader.u64());
        let entries = (0..n_entries).map(|_| (reader.text(), reader.value())).collect();
        let infos: Vec<_> = (0..n_tensors)
            .map(|_| {
                let (name, n_dims) = (reader.text(), reader.u32());
                let dims: Vec<u64> = (0..n_dims).map(|_| reader.u64()).collect();
                (name, dims, reader.u32(), reader.u64() as usize)
            })
            .collect();
        let data = &file[reader.1.next_multiple_of(32)..];
        let ends: Vec<usize> = infos.iter().skip(1).map(|info| info.3).chain([data.len()]).collect();
        let tensors = infos
            .into_iter()
            .zip(ends)
            .map(|((name, dims, kind, start), end)| Tensor { name, dims, kind, bytes: data[start..end].into() })
            .collect();
        Anatomy { entries, tensors }
    }

    /// Offset of the first tensor, which is the header's length but for padding.
    pub fn header_len(file: &[u8]) -> usize {
        let parts = Anatomy::of(file);
        file.len() - parts.tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>()
    }

    /// A metadata value.
    ///
    /// # Panics
    /// There is none of this key.
    pub fn entry(&mut self, key: &str) -> &mut Value {
        let entry = self.entries.iter_mut().find(|(k, _)| k == key);
        &mut entry.unwrap_or_else(|| panic!("no entry {key}")).1
    }

    /// Changes a metadata value, or adds one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value.into(),
            None => self.entries.push((key.into(), value.into())),
        }
        self
    }

    /// Leaves out a metadata entry.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.entries.retain(|(k, _)| k != key);
        self
    }

    /// A tensor.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        tensor.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Puts the parts together.
    pub fn write(&self) -> Vec<u8> {
        self.on(Writer::new())
    }

    /// Puts the parts together with `general.alignment`.
    pub fn write_aligned(&self, bytes: u32) -> Vec<u8> {
        self.on(Writer::new().alignment(bytes))
    }

    fn on(&self, writer: Writer) -> Vec<u8> {
        let writer = self.entries.iter().fold(writer, |writer, (key, value)| writer.entry(key, value.clone()));
        let add = |writer: Writer, Tensor { name, dims, kind, bytes }: &Tensor| {
            writer.tensor(name, dims, *kind, bytes.clone())
        };
        self.tensors.iter().fold(writer, add).finish()
    }
}

/// Offset of the length of the first string `text` in a file.
///
/// # Panics
/// There is none.
pub fn string_at(file: &[u8], text: &str) -> usize {
    let string = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let at = file.windows(string.len()).position(|window| window == string);
    at.unwrap_or_else(|| panic!("no string {text}"))
}

/// Offset of the number of dimensions of tensor `name`; its dims, type and offset follow.
pub fn info_at(file: &[u8], name: &str) -> usize {
    string_at(file, name) + 8 + name.len()
}

/// Overwrites bytes of a file.
pub fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

struct Reader<'a>(&'a [u8], usize);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        self.1 += n;
        &self.0[self.1 - n..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.bytes(n).into()).unwrap()
    }

    fn value(&mut self) -> Value {
        let kind = self.u32();
        let start = self.1;
        self.skip(kind);
        Value::raw(kind, &self.0[start..self.1])
    }

    fn skip(&mut self, kind: u32) {
        let len = match kind {
            STRING => self.u64() as usize,
            ARRAY => {
                let (kind, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip(kind));
                0
            }
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        self.bytes(len);
    }
}
