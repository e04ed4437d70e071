//! A source that lends from one small buffer, as a card or a file does.

use std::ops::Range;

use gptrickle_core::source::{Cause, Error, Source};

/// Copies each chunk into its buffer; what it held before is overwritten with rubbish first.
#[derive(Debug)]
pub struct Buffered<'a> {
    file: &'a [u8],
    buffer: Vec<u8>,
    held: Range<u64>,
}

impl<'a> Buffered<'a> {
    /// Reads `file` through a buffer of so many bytes.
    pub fn new(file: &'a [u8], buffer_bytes: usize) -> Self {
        Buffered { file, buffer: vec![0; buffer_bytes], held: 0..0 }
    }
}

impl Source for Buffered<'_> {
    fn len(&self) -> u64 {
        self.file.len() as u64
    }

    fn max_chunk(&self) -> usize {
        self.buffer.len()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let error = |cause| Error { offset, len, cause };
        let wanted = offset..offset.checked_add(len as u64).ok_or(error(Cause::OutOfRange(self.len())))?;
        if len > self.buffer.len() {
            return Err(error(Cause::ChunkTooLong(self.buffer.len())));
        }
        if wanted.end > self.len() {
            return Err(error(Cause::OutOfRange(self.len())));
        }
        if wanted.start < self.held.start || wanted.end > self.held.end {
            self.buffer.fill(0xa5);
            self.buffer[..len].copy_from_slice(&self.file[wanted.start as usize..wanted.end as usize]);
            self.held = wanted;
        }
        Ok(&self.buffer[(offset - self.held.start) as usize..][..len])
    }
}
