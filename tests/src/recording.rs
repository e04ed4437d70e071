//! A source that writes down what it is asked for.

use std::ops::Range;

use gptrickle_core::source::{Error, Reach, Source};

/// What a source was asked for, in bytes from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To lend a chunk.
    Chunk(Range<u64>),
    /// To have a stretch ready.
    Prefetch(Range<u64>),
}

/// Lends what another source does, and keeps a record.
#[derive(Debug)]
pub struct Recording<S> {
    inner: S,
    requests: Vec<Request>,
}

impl<S: Source> Recording<S> {
    /// Wraps `inner`, with nothing recorded yet.
    pub fn new(inner: S) -> Self {
        Recording { inner, requests: Vec::new() }
    }

    /// Takes what was recorded since the last time.
    pub fn take(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }
}

impl<S: Source> Source for Recording<S> {
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
        self.requests.push(Request::Chunk(offset..offset + len as u64));
        self.inner.chunk(offset, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        self.requests.push(Request::Prefetch(offset..offset + len as u64));
        self.inner.prefetch(offset, len);
    }
}
