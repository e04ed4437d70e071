//! Where the model's bytes come from: one narrow trait that lends chunks and takes hints.
//!
//! A [`Source`] is mapped flash, a file, an SD card, a pipe to another core. It **lends** bytes in place where it
//! can, and takes a hint of what will be asked next, so that a card can read ahead while the last chunk is multiplied.

use core::fmt;

/// A read failed: where, how much was asked for, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// First byte asked for, from the start of the file.
    pub offset: u64,
    /// Bytes asked for.
    pub len: usize,
    /// Why they did not arrive.
    pub cause: Cause,
}

/// Why a chunk did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The range ends past the source's end, which is given in bytes.
    OutOfRange(u64),
    /// The chunk is longer than the source can lend, which is given in bytes: give the source a larger buffer.
    ChunkTooLong(usize),
    /// The card, flash or file failed, with its own code: retry, or reseat it.
    Device(i32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {} bytes at offset {}: ", self.len, self.offset)?;
        match self.cause {
            Cause::OutOfRange(end) => write!(f, "the file ends at {end}"),
            Cause::ChunkTooLong(max) => write!(f, "the read buffer holds {max} bytes; give it a larger one"),
            Cause::Device(code) => write!(f, "the storage device failed (code {code})"),
        }
    }
}

impl core::error::Error for Error {}

/// The model file, lent a chunk at a time.
///
/// A forward pass asks for the file's tensors in the same order for every token, so the next chunk is always
/// known: two buffers and [`prefetch`](Source::prefetch) are all that overlapping needs.
#[expect(clippy::len_without_is_empty, reason = "an empty model file is no special case")]
pub trait Source {
    /// Bytes in the file.
    fn len(&self) -> u64;

    /// The longest chunk this source can lend, in bytes; [`usize::MAX`] where storage is mapped.
    fn max_chunk(&self) -> usize;

    /// Lends the bytes `offset..offset + len`: in place where storage is mapped, else in the source's own buffer.
    ///
    /// Reads exactly `len` bytes, once. A range that lies within the chunk lent last costs no read.
    ///
    /// # Errors
    /// The range ends past [`len`](Source::len) → [`Cause::OutOfRange`]; `len` is over
    /// [`max_chunk`](Source::max_chunk) → [`Cause::ChunkTooLong`]; the device failed → [`Cause::Device`].
    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error>;

    /// Says which chunk will be asked for after the next one; does nothing where reads are free.
    ///
    /// Comes just before [`chunk`](Source::chunk), as what that lends bars any other call: `prefetch(b)`, `chunk(a)`,
    /// `prefetch(c)`, `chunk(b)`. So a source with two buffers fills one with `b` while `a` is multiplied.
    /// A hint: it may be wrong or left out, and a failure shows only when the chunk is asked for.
    fn prefetch(&mut self, _offset: u64, _len: usize) {}
}

impl Source for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn max_chunk(&self) -> usize {
        usize::MAX
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        usize::try_from(offset).ok().and_then(|start| self.get(start..start.checked_add(len)?)).ok_or(Error {
            offset,
            len,
            cause: Cause::OutOfRange(<[u8]>::len(self) as u64),
        })
    }
}

impl<S: Source + ?Sized> Source for &mut S {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn max_chunk(&self) -> usize {
        (**self).max_chunk()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        (**self).chunk(offset, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        (**self).prefetch(offset, len);
    }
}

/// Counts the bytes and chunks that any source lends.
///
/// ```
/// use gptrickle_core::source::{Counting, Source};
/// let mut src = Counting::new(&[1, 2, 3, 4][..]);
/// src.chunk(1, 2)?;
/// assert_eq!((src.bytes(), src.chunks()), (2, 1));
/// # Ok::<(), gptrickle_core::source::Error>(())
/// ```
#[derive(Debug)]
pub struct Counting<S> {
    inner: S,
    bytes: u64,
    chunks: u64,
    last: (u64, usize),
}

impl<S: Source> Counting<S> {
    /// Wraps `inner`, with nothing counted yet.
    pub fn new(inner: S) -> Self {
        Counting { inner, bytes: 0, chunks: 0, last: (0, 0) }
    }

    /// Bytes lent so far; a range within the chunk lent last is not counted again, as it costs no read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Chunks lent so far, counted as [`bytes`](Self::bytes) are.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }
}

impl<S: Source> Source for Counting<S> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn max_chunk(&self) -> usize {
        self.inner.max_chunk()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        let chunk = self.inner.chunk(offset, len)?;
        let (start, n) = self.last;
        if offset < start || offset - start + len as u64 > n as u64 {
            self.bytes += len as u64;
            self.chunks += 1;
            self.last = (offset, len);
        }
        Ok(chunk)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        self.inner.prefetch(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lends_what_it_has() {
        let mut src = &[10u8, 11, 12, 13][..];
        assert_eq!(src.chunk(1, 3), Ok(&[11u8, 12, 13][..]));
        assert_eq!(src.chunk(4, 0), Ok(&[][..]));
    }

    #[test]
    fn a_slice_refuses_what_it_lacks() {
        let mut src = &[10u8, 11, 12, 13][..];
        for (offset, len) in [(2, 3), (5, 0), (u64::MAX, 1), (1, usize::MAX)] {
            let error = Error { offset, len, cause: Cause::OutOfRange(4) };
            assert_eq!(src.chunk(offset, len), Err(error));
        }
    }

    #[test]
    fn a_chunk_inside_the_last_one_is_not_counted_again() {
        let mut src = Counting::new(&[0u8; 64][..]);
        for (offset, len) in [(0, 32), (8, 8), (0, 32), (24, 16), (24, 16)] {
            src.chunk(offset, len).unwrap();
        }
        assert_eq!((src.bytes(), src.chunks()), (48, 2));
    }
}
