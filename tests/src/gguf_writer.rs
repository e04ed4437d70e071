//! Writes GGUF files for tests: whole ones, and ones that are wrong in one place.

pub use gptrickle::gguf_writer::{ARRAY, STRING, Value};

/// A file in the making: [`gptrickle::gguf_writer::Writer`] with the tensors' blocks.
///
/// ```
/// use gptrickle_tests::gguf_writer::Writer;
/// let file = Writer::new().entry("general.architecture", "gpt2").tensor("w", &[2], 0, [0; 8]).finish();
/// assert_eq!((&file[..4], file.len() % 32), (&b"GGUF"[..], 8));
/// ```
pub struct Writer {
    header: gptrickle::gguf_writer::Writer,
    data: Vec<u8>,
}

impl Writer {
    /// A file of nothing, aligned to 32 bytes.
    #[expect(clippy::new_without_default, reason = "a file of nothing is no default")]
    pub fn new() -> Self {
        Writer { header: gptrickle::gguf_writer::Writer::new(), data: Vec::new() }
    }

    /// Adds `general.alignment`, and places the tensors by it.
    pub fn alignment(mut self, bytes: u32) -> Self {
        self.header = self.header.alignment(bytes);
        self
    }

    /// Adds a metadata entry, even if there is one of that key.
    pub fn entry(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.header = self.header.entry(key, value);
        self
    }

    /// Replaces the value of a metadata entry, or adds the entry.
    pub fn replace(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.header = self.header.replace(key, value);
        self
    }

    /// Leaves out the metadata entries of this key.
    pub fn remove(mut self, key: &str) -> Self {
        self.header = self.header.remove(key);
        self
    }

    /// Adds a tensor: its name, its shape (the length of a row first), the id of its type and its blocks.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        self.header = self.header.tensor(name, dims, kind, bytes.len() as u64);
        self.data.extend(bytes);
        self
    }

    /// The bytes of the file, which ends with the last tensor.
    pub fn finish(self) -> Vec<u8> {
        let mut data = self.header.start(Vec::new()).expect("a vector takes all");
        data.write(&self.data).expect("a vector takes all");
        data.into_inner()
    }
}
