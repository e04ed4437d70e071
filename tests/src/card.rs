//! A card that is read through a small buffer, and goes wrong at one of its reads.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use gptrickle::checksums::{CHUNK, TABLE, crc32};
use gptrickle_core::source::{Cause, Error, Source};

use crate::anatomy::{Anatomy, put, string_at};
use crate::gguf_writer::Value;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The read fails, and says so.
    Error,
    /// Half of the bytes arrive, and the driver says so.
    Short,
    /// This read and all after it end by time-out.
    Stuck,
    /// One bit arrives flipped, and nobody says so.
    Flip,
    /// Nothing arrives, so the buffer has what it had before, and nobody says so.
    Stale,
}

/// A file on a card.
///
/// Its clones are the same card, whose reads they count together, each with a buffer of its own.
#[derive(Debug, Clone)]
pub struct Card<'a> {
    file: &'a [u8],
    buffer: Vec<u8>,
    held: Range<u64>,
    trouble: Option<(usize, Trouble)>,
    reads: Rc<Cell<usize>>,
}

impl<'a> Card<'a> {
    /// A card that is read through so many bytes, and goes wrong at the read of this number, if at any; the first is 0.
    pub fn new(file: &'a [u8], buffer_bytes: usize, trouble: Option<(usize, Trouble)>) -> Self {
        Card { file, buffer: vec![0; buffer_bytes], held: 0..0, trouble, reads: Rc::default() }
    }

    /// Reads so far.
    pub fn reads(&self) -> usize {
        self.reads.get()
    }

    /// Reads into the buffer what it shall hold.
    fn read(&mut self, wanted: &Range<u64>) -> Result<(), Cause> {
        let n = self.reads.replace(self.reads.get() + 1);
        let from = &self.file[wanted.start as usize..wanted.end as usize];
        let to = &mut self.buffer[..from.len()];
        self.held = 0..0;
        let trouble = self.trouble.filter(|&(at, trouble)| n == at || (trouble == Trouble::Stuck && n > at));
        match trouble.map(|(_, trouble)| trouble) {
            Some(Trouble::Error) => return Err(Cause::Device(-5)),
            Some(Trouble::Stuck) => return Err(Cause::Device(-110)),
            Some(Trouble::Short) => {
                let half = from.len() / 2;
                to[..half].copy_from_slice(&from[..half]);
                return Err(Cause::Device(-32));
            }
            Some(Trouble::Stale) => {}
            Some(Trouble::Flip) => {
                to.copy_from_slice(from);
                let bit = n * 7919 % (8 * from.len());
                to[bit / 8] ^= 1 << (bit % 8);
            }
            None => to.copy_from_slice(from),
        }
        self.held = wanted.clone();
        Ok(())
    }
}

impl Source for Card<'_> {
    fn len(&self) -> u64 {
        self.file.len() as u64
    }

    fn max_chunk(&self) -> usize {
        self.buffer.len()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let fail = |cause| Error { offset, len, cause };
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len());
        let wanted = offset..end.ok_or(fail(Cause::OutOfRange(self.len())))?;
        if len > self.buffer.len() {
            return Err(fail(Cause::ChunkTooLong(self.buffer.len())));
        }
        if len > 0 && (wanted.start < self.held.start || wanted.end > self.held.end) {
            self.read(&wanted).map_err(fail)?;
        }
        Ok(if len == 0 { &[] } else { &self.buffer[(offset - self.held.start) as usize..][..len] })
    }
}

/// The file with checksums of `chunk` bytes each, as one for boards has them.
pub fn with_checksums(parts: &Anatomy, chunk: u32) -> Vec<u8> {
    let with = |table: &[u32]| {
        let words = table.iter().flat_map(|crc| crc.to_le_bytes());
        let mut parts = parts.clone();
        parts.entries.insert(0, (TABLE.to_owned(), Value::array(4, table.len() as u64, words)));
        parts.entries.insert(0, (CHUNK.to_owned(), chunk.into()));
        parts.write()
    };
    let mut file = with(&[]);
    let mut chunks = 0;
    while chunks != file.len().div_ceil(chunk as usize) {
        chunks = file.len().div_ceil(chunk as usize);
        file = with(&vec![0; chunks]);
    }
    let table: Vec<u8> = file.chunks(chunk as usize).flat_map(|bytes| crc32(0, bytes).to_le_bytes()).collect();
    let at = string_at(&file, TABLE) + 8 + TABLE.len() + 4 + 4 + 8;
    put(&mut file, at, &table);
    file
}
