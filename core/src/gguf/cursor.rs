//! Reads the header front to back through a small window.

use super::{Error, MAX_HEADER, MAX_NAME, Name, Part, Span};
use crate::source::{self, Source};

/// Most bytes asked of the source at a time while the header is read.
const WINDOW: usize = 4096;

/// A place in the header, and the stretch of it that the source lends.
pub(crate) struct Cursor<'s, S> {
    src: &'s mut S,
    at: u64,
    /// One past the last byte that is read: the end of the file, or of the part of it that was asked for.
    end: u64,
    window: Span,
}

impl<'s, S: Source> Cursor<'s, S> {
    pub(crate) fn new(src: &'s mut S, at: u64) -> Self {
        let end = src.len();
        Cursor::within(src, at, end)
    }

    /// Reads from `at` on, and nothing from `end` on.
    pub(crate) fn within(src: &'s mut S, at: u64, end: u64) -> Self {
        Cursor { src, at, end, window: Span { at, len: 0 } }
    }

    /// Offset of the next byte, from the start of the file.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes between here and the end.
    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Compares a claimed length with what the file still holds.
    pub(crate) fn expect(&self, part: Part, bytes: u64) -> Result<(), Error> {
        if bytes > self.remaining() {
            if self.end == MAX_HEADER && self.src.len() > MAX_HEADER {
                return Err(Error::LongHeader { part });
            }
            return Err(Error::Truncated { part, at: self.at, needed: bytes, have: self.remaining() });
        }
        Ok(())
    }

    /// The next `n` bytes; more than the source can lend at once is its error.
    pub(crate) fn bytes(&mut self, part: Part, n: usize) -> Result<&[u8], Error> {
        self.expect(part, n as u64)?;
        if self.at < self.window.at || self.at + n as u64 > self.window.at + self.window.len {
            let len = WINDOW.min(self.src.max_chunk()).max(n) as u64;
            self.window = Span { at: self.at, len: len.min(self.remaining()) };
        }
        let start = (self.at - self.window.at) as usize;
        self.at += n as u64;
        let Span { at, len } = self.window;
        let window = self.src.chunk(at, len as usize)?;
        Ok(window.get(start..start + n).ok_or(source::Error::short(at, len as usize))?)
    }

    /// Steps over `n` bytes.
    pub(crate) fn skip(&mut self, part: Part, n: u64) -> Result<(), Error> {
        self.expect(part, n)?;
        self.at += n;
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self, part: Part) -> Result<[u8; N], Error> {
        let at = self.at;
        Ok(*self.bytes(part, N)?.first_chunk().ok_or(source::Error::short(at, N))?)
    }

    /// A number of `n` bytes, 8 at most, whose higher bits are 0.
    pub(crate) fn number(&mut self, part: Part, n: usize) -> Result<u64, Error> {
        let mut out = [0; 8];
        out.iter_mut().zip(self.bytes(part, n)?).for_each(|(out, &byte)| *out = byte);
        Ok(u64::from_le_bytes(out))
    }

    pub(crate) fn u32(&mut self, part: Part) -> Result<u32, Error> {
        self.array(part).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, part: Part) -> Result<u64, Error> {
        self.array(part).map(u64::from_le_bytes)
    }

    /// Steps over a string and says where it lies.
    pub(crate) fn span(&mut self, part: Part) -> Result<Span, Error> {
        let len = self.u64(part)?;
        let at = self.at;
        self.skip(part, len)?;
        Ok(Span { at, len })
    }

    /// Steps over `n` strings.
    pub(crate) fn skip_strings(&mut self, part: Part, n: u64) -> Result<(), Error> {
        let mut left = n;
        while left > 0 {
            self.span(part)?;
            left -= 1;
            // That brought a window; those that lie wholly within it need no more checks.
            let lent = self.src.chunk(self.window.at, self.window.len as usize)?;
            let here = usize::try_from(self.at - self.window.at).ok();
            let mut rest = here.and_then(|here| lent.get(here..)).unwrap_or(&[]);
            let had = rest.len();
            while left > 0
                && let Some((len, tail)) = rest.split_first_chunk()
                && let Some(tail) = usize::try_from(u64::from_le_bytes(*len)).ok().and_then(|len| tail.get(len..))
            {
                rest = tail;
                left -= 1;
            }
            self.at += (had - rest.len()) as u64;
        }
        Ok(())
    }

    /// The next string, of which a name keeps the start.
    pub(crate) fn name(&mut self, part: Part) -> Result<Name, Error> {
        let len = self.u64(part)?;
        self.expect(part, len)?;
        let kept = len.min(MAX_NAME as u64) as usize;
        let name = Name::new(self.bytes(part, kept)?, len);
        self.skip(part, len - kept as u64)?;
        Ok(name)
    }

    /// The next string, whole.
    pub(crate) fn string(&mut self, part: Part) -> Result<&[u8], Error> {
        let len = self.u64(part)?;
        self.expect(part, len)?;
        let max = self.src.max_chunk();
        match usize::try_from(len) {
            Ok(n) if n <= max => self.bytes(part, n),
            _ => Err(Error::LongString { at: self.at, len, max }),
        }
    }

    /// The next string, whole, lent for as long as the source is.
    pub(crate) fn into_string(mut self, part: Part) -> Result<&'s [u8], Error> {
        let Span { at, len } = self.span(part)?;
        let max = self.src.max_chunk();
        match usize::try_from(len) {
            Ok(n) if n <= max => Ok(self.src.chunk(at, n)?),
            _ => Err(Error::LongString { at, len, max }),
        }
    }
}
