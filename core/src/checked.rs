//! Compares a file's bytes with the checksums it carries, as they are lent.
//!
//! A file for boards has a CRC-32 (as in zip and PNG) for each chunk of itself, in its first two metadata entries, so that
//! they are there before anything else is read:
//!
//! ```text
//! byte 0     24
//! ┌────────┬────────────────────────────┬─────────────────────────────┬───────────────┬─────┬─────────┐
//! │ header │ gptrickle.crc32.chunk_bytes│ gptrickle.crc32.table: n u32│ other entries │ ... │ tensors │
//! └────────┴────────────────────────────┴─────────────────────────────┴───────────────┴─────┴─────────┘
//! chunk 0: bytes 0..chunk_bytes │ chunk 1 │ ... │ chunk n - 1: to the file's end       the table counts as zeros
//! ```
//!
//! Where storage is read, every read is compared. Chunks of the table are longer than the buffers of a board, so a CRC runs
//! along with what is lent, and the verdict comes at the chunk's end: reads in file order cost no byte more, a jump costs
//! the rest of one chunk and the beginning of the next. [`Source::settle`] is where who made something of the bytes waits
//! for the verdict. Where storage is mapped, a chunk is compared once, when it is first asked for.
//!
//! Of a file without a table nothing is compared: then a flipped bit is a weight like any other.

use core::num::NonZeroU64;
use core::ops::Range;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::arena::{Arena, TooSmall};
use crate::gguf::{ElementType, Entries, Error, Span, Value};
use crate::source::{self, Cause, Reach, Source};

/// The metadata key of a chunk's bytes, a `u32`: the file's first entry.
pub const CHUNK: &str = "gptrickle.crc32.chunk_bytes";
/// The metadata key of the checksums, an array of `u32`: the file's second entry.
pub const TABLE: &str = "gptrickle.crc32.table";

/// The CRC-32 of what came before and these bytes: `crc(0, bytes)` is that of `bytes` alone.
pub type Crc32 = fn(u32, &[u8]) -> u32;

/// [`Crc32`] with a table of 1 KiB, a byte at a time.
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut digest = CRC.digest_with_initial((!before).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// Where a file has its checksums.
///
/// Holding one means: there is one for each chunk of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    chunk: NonZeroU64, // bytes
    file_len: u64,
    span: Span,
}

impl Table {
    /// Looks for the table of a file that was not opened yet; reads its first two metadata entries.
    ///
    /// # Errors
    /// A table that does not fit the file → [`Error::Checksums`]; the device failed → [`Error::Source`].
    pub fn find<S: Source>(src: &mut S) -> Result<Option<Table>, Error> {
        let file_len = src.len();
        let mut entries = Entries::unchecked(src)?;
        let mut next = || match entries.next() {
            Err(Error::Source(error)) => Err(error),
            other => Ok(other.ok().flatten()), // what else is wrong, opening the file tells
        };
        let Some((key, chunk)) = next()?.filter(|(key, _)| key.is(CHUNK)) else { return Ok(None) };
        let table = next()?.filter(|(key, _)| key.is(TABLE));
        let (Value::U32(chunk), Some((_, Value::Array(table)))) = (chunk, table) else {
            return Err(Error::Checksums { key });
        };
        let fits = |chunk: &NonZeroU64| table.n == file_len / *chunk + u64::from(file_len % *chunk > 0);
        let chunk = NonZeroU64::new(chunk.into()).filter(fits).filter(|_| table.element.id == ElementType::U32);
        let chunk = chunk.ok_or(Error::Checksums { key })?;
        Ok(Some(Table { chunk, file_len, span: table.span }))
    }

    /// Chunks of the file: as many words of memory as [`Checked`] takes.
    pub fn chunks(&self) -> usize {
        (self.span.len / 4) as usize
    }

    /// Cuts that memory from an arena.
    ///
    /// # Errors
    /// The arena is too small.
    pub fn words<'a>(&self, arena: &mut Arena<'a>) -> Result<&'a mut [u32], TooSmall> {
        arena.take(self.chunks())
    }

    /// Bytes of a chunk; the last one may have fewer.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk.get()
    }

    /// The chunk that byte `at` lies in: its number and its bytes.
    fn chunk_of(&self, at: u64) -> (usize, Range<u64>) {
        let index = at / self.chunk;
        let start = index * self.chunk.get();
        (index as usize, start..self.file_len.min(start.saturating_add(self.chunk.get())))
    }

    /// Continues a chunk's CRC with the bytes from `at` on; those of the table itself count as zeros.
    fn crc(&self, crc32: Crc32, mut crc: u32, at: u64, bytes: &[u8]) -> u32 {
        let own = |end: u64| (end.saturating_sub(at) as usize).min(bytes.len());
        let (from, to) = (own(self.span.at), own(self.span.at + self.span.len));
        let part = |range: Range<usize>| bytes.get(range).unwrap_or(&[]);
        crc = crc32(crc, part(0..from));
        for zeros in part(from..to).chunks(64) {
            crc = crc32(crc, [0; 64].get(..zeros.len()).unwrap_or(&[]));
        }
        crc32(crc, part(to..bytes.len()))
    }
}

/// Lends what another source does, once it has compared it, if the file has checksums.
///
/// `M` is memory for [`Table::chunks`] words.
#[derive(Debug)]
pub struct Checked<S, M> {
    inner: S,
    table: Option<Table>,
    /// The chunks' checksums, or where storage is mapped, whether each was compared (chunks).
    words: M,
    crc32: Crc32,
    /// The bytes up to here, from the start of their chunk on, have this CRC.
    next: u64,
    crc: u32,
    /// What was lent last, and can be lent again.
    lent: Range<u64>,
}

impl<S: Source, M: AsRef<[u32]> + AsMut<[u32]>> Checked<S, M> {
    /// Wraps `inner`, a file with this table or with none, and reads the table into `words` unless storage is mapped.
    ///
    /// With fewer words than chunks, no chunk is taken for right.
    ///
    /// # Errors
    /// The source failed.
    pub fn new(mut inner: S, table: Option<Table>, mut words: M, crc32: Crc32) -> Result<Self, source::Error> {
        words.as_mut().fill(0);
        if let Some(table) = table.filter(|_| inner.max_chunk() < usize::MAX) {
            let at_once = (inner.max_chunk() / 4).max(1);
            let mut at = table.span.at;
            for words in words.as_mut().get_mut(..table.chunks()).unwrap_or(&mut []).chunks_mut(at_once) {
                let bytes = inner.chunk(at, words.len() * 4)?;
                words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, &bytes)| *word = u32::from_le_bytes(bytes));
                at += words.len() as u64 * 4;
            }
        }
        let table = table.filter(|table| table.file_len == inner.len());
        Ok(Checked { inner, table, words, crc32, next: 0, crc: 0, lent: 0..0 })
    }

    /// Where the bytes come from.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Compares the chunks that these bytes of mapped storage lie in, those that were not compared before.
    fn compare_mapped(&mut self, table: &Table, bytes: Range<u64>) -> Result<(), source::Error> {
        let mut at = bytes.start;
        while at < bytes.end {
            let (index, chunk) = table.chunk_of(at);
            at = chunk.end;
            let mut compared = self.words.as_mut().get_mut(index);
            if compared.as_deref() == Some(&1) {
                continue;
            }
            let expected = self.inner.chunk(table.span.at + index as u64 * 4, 4)?.first_chunk();
            let expected = expected.map(|&word| u32::from_le_bytes(word));
            let len = (chunk.end - chunk.start) as usize;
            let crc = table.crc(self.crc32, 0, chunk.start, self.inner.chunk(chunk.start, len)?);
            match &mut compared {
                Some(compared) if expected == Some(crc) => **compared = 1,
                _ => return Err(source::Error { offset: chunk.start, len, cause: Cause::Checksum }),
            }
        }
        Ok(())
    }

    /// Reads up to `end`, within the chunk that is under way, for its CRC alone.
    fn read_on(&mut self, table: &Table, end: u64) -> Result<(), source::Error> {
        while self.next < end {
            let len = self.inner.reach(self.next, (end - self.next) as usize).bytes().max(1);
            self.follow(table, len)?;
        }
        Ok(())
    }

    /// Lends the `len` bytes that come next, and runs the CRC over them; where a chunk ends, it is compared.
    fn follow(&mut self, table: &Table, len: usize) -> Result<&[u8], source::Error> {
        // Whatever fails, what comes next begins anew.
        let (mut at, mut crc) = (core::mem::take(&mut self.next), core::mem::take(&mut self.crc));
        self.lent = 0..0;
        let all = self.inner.chunk(at, len)?;
        let (lent, mut bytes) = (at..at + len as u64, all);
        while at < lent.end {
            let (index, chunk) = table.chunk_of(at);
            let these = bytes.split_at_checked((chunk.end.min(lent.end) - at) as usize);
            let (these, rest) = these.ok_or(source::Error::short(lent.start, len))?;
            crc = table.crc(self.crc32, crc, at, these);
            (at, bytes) = (at + these.len() as u64, rest);
            if at == chunk.end {
                if self.words.as_ref().get(index) != Some(&crc) {
                    let len = (chunk.end - chunk.start) as usize;
                    return Err(source::Error { offset: chunk.start, len, cause: Cause::Checksum });
                }
                crc = 0;
            }
        }
        (self.next, self.crc, self.lent) = (at, crc, lent);
        Ok(all)
    }
}

impl<S: Source, M: AsRef<[u32]> + AsMut<[u32]>> Source for Checked<S, M> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn max_chunk(&self) -> usize {
        self.inner.max_chunk()
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        self.inner.reach(offset, len)
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], source::Error> {
        let Some(table) = self.table else { return self.inner.chunk(offset, len) };
        let end = offset.checked_add(len as u64).filter(|&end| len > 0 && end <= self.inner.len());
        let Some(end) = end else { return self.inner.chunk(offset, len) };
        if self.inner.max_chunk() == usize::MAX {
            self.compare_mapped(&table, offset..end)?;
            return self.inner.chunk(offset, len);
        }
        if len > self.inner.max_chunk() || (self.lent.start <= offset && end <= self.lent.end) {
            return self.inner.chunk(offset, len);
        }
        if offset != self.next {
            self.settle()?;
            self.next = table.chunk_of(offset).1.start;
            self.read_on(&table, offset)?;
        }
        self.follow(&table, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        // The buffer lent from last may be given to this read.
        self.lent = 0..0;
        self.inner.prefetch(offset, len);
    }

    fn settle(&mut self) -> Result<(), source::Error> {
        if let Some(table) = self.table.filter(|table| self.next % table.chunk > 0) {
            self.read_on(&table, table.chunk_of(self.next).1.end)?;
        }
        self.inner.settle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn the_sum_goes_on_where_it_stopped() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926, "the check value of CRC-32/ISO-HDLC");
        assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
        assert_eq!(crc32(7, b""), 7);
    }

    /// A source with a buffer of 40 bytes, and a file of 300 whose chunks have 64; the table is bytes 70..90.
    struct Card(Vec<u8>, Vec<u8>, usize);

    const TABLE_AT: u64 = 70;

    impl Source for Card {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn max_chunk(&self) -> usize {
            40
        }
        fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], source::Error> {
            assert!(len <= 40);
            if offset + len as u64 > self.len() {
                return Err(source::Error { offset, len, cause: Cause::OutOfRange(self.len()) });
            }
            self.2 += len;
            self.1 = self.0[offset as usize..][..len].to_vec();
            Ok(&self.1)
        }
    }

    /// The file, with its table in place.
    fn file() -> (Vec<u8>, Table) {
        let mut file: Vec<u8> = (0..300u32).map(|i| (i * i) as u8).collect();
        let span = Span { at: TABLE_AT, len: 20 };
        file[TABLE_AT as usize..][..20].fill(0);
        let sums: Vec<u8> = file.chunks(64).flat_map(|chunk| crc32(0, chunk).to_le_bytes()).collect();
        file[TABLE_AT as usize..][..20].copy_from_slice(&sums);
        (file, Table { chunk: NonZeroU64::new(64).unwrap(), file_len: 300, span })
    }

    fn checked(file: &[u8]) -> Checked<Card, Vec<u32>> {
        let card = Card(file.to_vec(), Vec::new(), 0);
        Checked::new(card, Some(self::file().1), vec![0; 5], crc32).unwrap()
    }

    #[test]
    fn what_is_whole_is_lent_in_any_order() {
        let (file, _) = file();
        let mut src = checked(&file);
        for (at, len) in [(0, 40), (40, 40), (80, 3), (81, 1), (5, 7), (299, 1), (260, 40), (100, 40), (10, 0)] {
            assert_eq!(src.chunk(at, len).unwrap(), &file[at as usize..][..len]);
        }
        assert_eq!(src.settle(), Ok(()));
        let before = src.inner().2;
        (0..300).step_by(20).for_each(|at| assert_eq!(src.chunk(at, 20).unwrap(), &file[at as usize..][..20]));
        assert_eq!((src.settle(), src.inner().2 - before), (Ok(()), 300), "file order costs no byte more");
        assert_eq!(src.chunk(290, 11).unwrap_err().cause, Cause::OutOfRange(300));
    }

    #[test]
    fn every_flipped_bit_is_noticed_before_anything_is_made_of_it() {
        let (file, table) = file();
        for bit in 0..300 * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let chunk = table.chunk_of(bit as u64 / 8).1;
            // A word of the table is wrong about its own chunk, not about the one it lies in.
            let own = (TABLE_AT..TABLE_AT + 20).contains(&(bit as u64 / 8));
            let wrong = if own { table.chunk_of((bit as u64 / 8 - TABLE_AT) / 4 * 64).1 } else { chunk };
            let error =
                source::Error { offset: wrong.start, len: (wrong.end - wrong.start) as usize, cause: Cause::Checksum };
            for at in wrong.clone().step_by(19) {
                let mut src = checked(&damaged);
                let read = src.chunk(at, 1).map(<[u8]>::len).and_then(|_| src.settle());
                assert_eq!(read, Err(error), "bit {bit}, read at {at}");
                assert_eq!(src.settle(), Ok(()), "told once");
            }
            let mut mapped = Checked::new(&damaged[..], Some(table), [0; 5], crc32).unwrap();
            assert_eq!(mapped.chunk(wrong.start + 1, 1), Err(error), "bit {bit}");
            let other = (wrong.start + 64) % 256;
            assert_eq!(mapped.chunk(other, 9).unwrap(), &damaged[other as usize..][..9]);
        }
    }
}
