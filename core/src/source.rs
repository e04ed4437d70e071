//! Where the model's bytes come from: one narrow trait that lends chunks and takes hints.
//!
//! A [`Source`] is mapped flash, a file, an SD card, a pipe to another core. It **lends** bytes in place where it
//! can, and takes a hint of what will be asked next, so that a card can read ahead while the last chunk is multiplied,
//! and so that one command can bring many chunks, of one tensor or several that lie beside each other.

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
    /// The source lent fewer bytes than it was asked for: it is not written as [`Source::chunk`] says.
    Short,
    /// The card, flash or file failed, with its own code: retry, or reseat it.
    Device(i32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {} bytes at offset {}: ", self.len, self.offset)?;
        match self.cause {
            Cause::OutOfRange(end) => write!(f, "the file ends at {end}"),
            Cause::ChunkTooLong(max) => write!(f, "the read buffer holds {max} bytes; give it a larger one"),
            Cause::Short => f.write_str("the source lent fewer; its code needs mending"),
            Cause::Device(code) => write!(f, "the storage device failed (code {code})"),
        }
    }
}

impl core::error::Error for Error {}

impl Error {
    /// The source lent fewer than these bytes.
    pub(crate) fn short(offset: u64, len: usize) -> Error {
        Error { offset, len, cause: Cause::Short }
    }
}

/// How many bytes a source can lend in one chunk, and what they still cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// In place, kept in memory, or in the buffer lent from last; also where hints are of no use.
    Here(usize),
    /// Hinted at: read already, being read, or to be read in the same command as other bytes.
    Ahead(usize),
    /// Still to be read.
    Away(usize),
}

impl Reach {
    /// The bytes, wherever they are.
    pub fn bytes(self) -> usize {
        match self {
            Reach::Here(n) | Reach::Ahead(n) | Reach::Away(n) => n,
        }
    }
}

/// The model file, lent a chunk at a time.
///
/// A forward pass asks for the file's tensors in the same order for every token, so what comes next is always known: two
/// buffers and [`prefetch`](Source::prefetch) are all that overlapping needs.
#[expect(clippy::len_without_is_empty, reason = "an empty model file is no special case")]
pub trait Source {
    /// Bytes in the file.
    fn len(&self) -> u64;

    /// The longest chunk this source can lend, in bytes; [`usize::MAX`] where storage is mapped.
    fn max_chunk(&self) -> usize;

    /// How many of `len` bytes from `offset` on can be lent in one chunk, and whether they are there already.
    ///
    /// At most [`max_chunk`](Source::max_chunk), and fewer where some are kept elsewhere than the rest. A source that
    /// takes no hints says that all are [`Here`](Reach::Here).
    fn reach(&self, _offset: u64, len: usize) -> Reach {
        Reach::Here(len.min(self.max_chunk()))
    }

    /// Lends the bytes `offset..offset + len`: in place where storage is mapped, else in the source's own buffer.
    ///
    /// Reads exactly `len` bytes, once, or all of the stretch hinted at that they lie in. What lies within the buffer
    /// lent from last costs no read.
    ///
    /// # Errors
    /// The range ends past [`len`](Source::len) → [`Cause::OutOfRange`]; `len` is over
    /// [`max_chunk`](Source::max_chunk) → [`Cause::ChunkTooLong`]; the device failed → [`Cause::Device`].
    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error>;

    /// Says that all of this stretch will be asked for soon, in chunks and in any order; does nothing where reads are free.
    ///
    /// At most [`max_chunk`](Source::max_chunk) bytes: a source reads them in one command into a buffer that it need not
    /// lend from now, if it has one. It comes before [`chunk`](Source::chunk) enters another stretch, as what that lends
    /// bars any other call: `prefetch(b)`, `chunk`s of `a`, `prefetch(c)`, `chunk`s of `b`. So a source with two buffers
    /// fills one with `b` while `a` is multiplied.
    /// A hint: it may be wrong, left out or declined, and a failure shows only when a chunk is asked for.
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

    fn reach(&self, offset: u64, len: usize) -> Reach {
        (**self).reach(offset, len)
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

    fn reach(&self, offset: u64, len: usize) -> Reach {
        self.inner.reach(offset, len)
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

/// Stretches of a file that [`Resident`] can keep.
const MAX_PIECES: usize = 16;

/// A stretch of the file, and where in memory its copy starts.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    at: u64,
    len: usize,
    start: usize,
}

/// Which stretches of a file lie where in memory: what [`Resident`] keeps, or would keep.
#[derive(Debug)]
pub struct Layout {
    room: usize,
    used: usize,
    pieces: [Piece; MAX_PIECES],
    n_pieces: usize,
}

impl Layout {
    /// Nothing yet, in memory of `room` bytes.
    pub fn new(room: usize) -> Layout {
        Layout { room, used: 0, pieces: [Piece::default(); MAX_PIECES], n_pieces: 0 }
    }

    /// Takes in `len` bytes from `offset` on if they can be kept, and says how many were: all or none.
    pub fn add(&mut self, offset: u64, len: usize) -> usize {
        if !self.fits(offset, len) {
            return 0;
        }
        match self.grows(offset) {
            Some(i) => self.pieces[i].len += len,
            None => {
                self.pieces[self.n_pieces] = Piece { at: offset, len, start: self.used };
                self.n_pieces += 1;
            }
        }
        self.used += len;
        len
    }

    /// Bytes taken in.
    pub fn kept(&self) -> usize {
        self.used
    }

    /// Bytes that can still be taken in.
    pub fn room(&self) -> usize {
        self.room - self.used
    }

    fn fits(&self, offset: u64, len: usize) -> bool {
        len > 0 && len <= self.room() && (self.n_pieces < MAX_PIECES || self.grows(offset).is_some())
    }

    /// The last piece, if `offset` is where it ends.
    fn grows(&self, offset: u64) -> Option<usize> {
        let last = self.n_pieces.checked_sub(1)?;
        (self.pieces[last].at + self.pieces[last].len as u64 == offset).then_some(last)
    }
}

/// Keeps some stretches of a file in memory, and asks another source for the rest.
///
/// ```
/// use gptrickle_core::source::{Counting, Resident, Source};
/// let mut memory = [0; 4];
/// let mut src = Resident::new(Counting::new(&[1, 2, 3, 4, 5, 6][..]), &mut memory);
/// assert_eq!(src.keep(1, 3)?, 3);
/// assert_eq!(src.chunk(2, 2)?, [3, 4]);
/// assert_eq!(src.reach(0, 6).bytes(), 1); // the first byte comes from elsewhere
/// assert_eq!(src.inner().bytes(), 3);
/// # Ok::<(), gptrickle_core::source::Error>(())
/// ```
#[derive(Debug)]
pub struct Resident<'a, S> {
    inner: S,
    memory: &'a mut [u8],
    layout: Layout,
}

impl<'a, S: Source> Resident<'a, S> {
    /// Wraps `inner`, with nothing kept yet and room for as much as `memory` holds.
    pub fn new(inner: S, memory: &'a mut [u8]) -> Self {
        Resident { inner, layout: Layout::new(memory.len()), memory }
    }

    /// Reads `len` bytes from `offset` on into memory, and says how many were: all or none.
    ///
    /// None where they do not fit, or where as many stretches are kept as can be. A stretch that goes on where the one
    /// before it ends becomes one with it.
    ///
    /// # Errors
    /// The source failed; then nothing more is kept than before.
    pub fn keep(&mut self, offset: u64, len: usize) -> Result<usize, Error> {
        if !self.layout.fits(offset, len) {
            return Ok(0);
        }
        let memory = &mut self.memory[self.layout.used..][..len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let n = self.inner.reach(at, len - done).bytes().max(1);
            memory[done..done + n].copy_from_slice(self.inner.chunk(at, n)?);
            done += n;
        }
        Ok(self.layout.add(offset, len))
    }

    /// Bytes kept in memory.
    pub fn kept(&self) -> usize {
        self.layout.kept()
    }

    /// Bytes that can still be kept.
    pub fn room(&self) -> usize {
        self.layout.room()
    }

    /// The source that the rest comes from.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The bytes in memory from `offset` on, or how far it is to the next that are.
    fn find(&self, offset: u64) -> Result<&[u8], u64> {
        let mut gap = u64::MAX;
        for piece in &self.layout.pieces[..self.layout.n_pieces] {
            if let Some(into) = offset.checked_sub(piece.at) {
                if into < piece.len as u64 {
                    return Ok(&self.memory[piece.start..][..piece.len][into as usize..]);
                }
            } else {
                gap = gap.min(piece.at - offset);
            }
        }
        Err(gap)
    }
}

impl<S: Source> Source for Resident<'_, S> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn max_chunk(&self) -> usize {
        self.inner.max_chunk()
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        match self.find(offset) {
            Ok(kept) => Reach::Here(len.min(kept.len())),
            Err(gap) => self.inner.reach(offset, len.min(usize::try_from(gap).unwrap_or(usize::MAX))),
        }
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], Error> {
        // Asked twice, as a borrow that is lent in one branch only is not seen to end in the other.
        if self.find(offset).is_ok_and(|kept| len <= kept.len()) {
            return Ok(self.find(offset).map_or(&[][..], |kept| &kept[..len]));
        }
        self.inner.chunk(offset, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        if self.find(offset).is_err() {
            self.inner.prefetch(offset, len);
        }
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
    fn what_is_kept_is_lent_from_memory_and_the_rest_from_its_source() {
        let file: std::vec::Vec<u8> = (0..=255).collect();
        let mut memory = [0; 48];
        let mut src = Resident::new(Counting::new(&file[..]), &mut memory);
        assert_eq!((src.keep(100, 20), src.keep(120, 12), src.keep(16, 8)), (Ok(20), Ok(12), Ok(8)));
        assert_eq!(
            (src.keep(0, 9), src.keep(250, 8)),
            (Ok(0), Err(Error { offset: 250, len: 8, cause: Cause::OutOfRange(256) }))
        );
        assert_eq!((src.kept(), src.room()), (40, 8));
        let before = src.inner().bytes();
        assert_eq!(src.chunk(16, 8).unwrap(), &file[16..24]);
        assert_eq!(src.chunk(110, 22).unwrap(), &file[110..132]);
        assert_eq!(src.inner().bytes(), before, "no read");
        assert_eq!(
            [(0, 99), (20, 99), (24, 99), (131, 9), (132, 9)].map(|(at, len)| src.reach(at, len).bytes()),
            [16, 4, 76, 1, 9]
        );
        for (at, len) in [(0, 256), (10, 10), (20, 90), (130, 5)] {
            assert_eq!(src.chunk(at, len).unwrap(), &file[at as usize..][..len], "across an edge");
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
