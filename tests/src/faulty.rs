//! A source that fails where a test wants it to.

use gptrickle_core::source::{Cause, Error, Reach, Source};

/// What [`Faulty`] says when it fails.
pub const CODE: i32 = -5;

/// When a source fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never.
    None,
    /// The read of this number, once; the first is 0.
    Read(usize),
    /// Every read that goes beyond this offset.
    From(u64),
}

/// Lends what another source does, until it fails.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    fault: Fault,
    reads: usize,
    failed: Vec<Error>,
}

impl<S: Source> Faulty<S> {
    /// Wraps `inner`, which fails as `fault` says.
    pub fn new(inner: S, fault: Fault) -> Self {
        Faulty { inner, fault, reads: 0, failed: Vec::new() }
    }

    /// Reads so far, failed ones included.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// The errors so far.
    pub fn failed(&self) -> &[Error] {
        &self.failed
    }
}

impl<S: Source> Source for Faulty<S> {
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
        self.reads += 1;
        let fails = match self.fault {
            Fault::None => false,
            Fault::Read(n) => n + 1 == self.reads,
            Fault::From(end) => offset + len as u64 > end,
        };
        if fails {
            self.failed.push(Error { offset, len, cause: Cause::Device(CODE) });
            return Err(self.failed[self.failed.len() - 1]);
        }
        self.inner.chunk(offset, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        self.inner.prefetch(offset, len);
    }
}
