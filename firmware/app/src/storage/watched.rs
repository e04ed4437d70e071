//! A model whose every chunk tells a watchdog that the application is alive.

use gptrickle_core::source::{Error as SourceError, Reach, Source};

use super::{Error, Storage};

/// Storage or a source, and what feeds the watchdog.
#[derive(Debug, Clone, Copy)]
pub struct Watched<T> {
    inner: T,
    feed: fn(),
}

impl<T> Watched<T> {
    /// Calls `feed` before it looks for a model, and before each chunk.
    pub fn new(inner: T, feed: fn()) -> Self {
        Watched { inner, feed }
    }
}

impl<T: Storage> Storage for Watched<T> {
    type Source<'a>
        = Watched<T::Source<'a>>
    where
        T: 'a;

    fn open(&mut self) -> Result<Self::Source<'_>, Error> {
        (self.feed)();
        Ok(Watched { inner: self.inner.open()?, feed: self.feed })
    }
}

impl<S: Source> Source for Watched<S> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn max_chunk(&self) -> usize {
        self.inner.max_chunk()
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], SourceError> {
        (self.feed)();
        self.inner.chunk(offset, len)
    }

    fn reach(&self, offset: u64, len: usize) -> Reach {
        self.inner.reach(offset, len)
    }

    fn prefetch(&mut self, offset: u64, len: usize) {
        self.inner.prefetch(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Flash;

    impl Storage for Flash {
        type Source<'a> = &'static [u8];

        fn open(&mut self) -> Result<&'static [u8], Error> {
            Ok(&[1, 2, 3, 4])
        }
    }

    #[test]
    fn every_chunk_feeds_and_is_the_sources_own() {
        static FED: AtomicU32 = AtomicU32::new(0);
        fn feed() {
            FED.fetch_add(1, Ordering::Relaxed);
        }
        let mut storage = Watched::new(Flash, feed);
        let mut source = storage.open().unwrap();
        assert_eq!(source.chunk(1, 2), Ok(&[2, 3][..]));
        assert!(source.chunk(3, 2).is_err());
        assert_eq!(FED.load(Ordering::Relaxed), 3);
    }
}
